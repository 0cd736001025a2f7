"""Weights that make a step of training better: L2RW, MWN, MLC, MSLC and STORM.

Each of them asks what a step does to the loss of other examples. Most ask a
small clean set; STORM (Heck et al., AAAI 2025, arXiv 2412.12955) asks the noisy
training set itself. Side by side, on the same wrong labels:

  plain         cross-entropy
  plain_clean   the same, the clean set added to what is trained on: the control
                for all who are given one
  l2rw          weights that agree with the clean set (Ren et al., 2018)
  mwn           weights that a network makes of losses (Shu et al., 2019)
  mlc           labels that a network corrects (Zheng et al., 2021)
  mslc          mixtures of label, memory and prediction (Wu et al., 2021)
  storm         weights from 19 features of several passes, without clean data
  storm_meta    STORM with `g_meta` alone, the gradient through the step
  storm_outer   STORM with `g_outer` alone, that through the weights

  python experiments/meta_rescaling.py               # digits, 60% resampled
  python experiments/meta_rescaling.py --noise class_imbalanced --rate .4
  python experiments/meta_rescaling.py --dataset youtube_spam --data-dir DIR
  python experiments/meta_rescaling.py --dataset trec6 --data-dir DIR \\
    --methods plain,storm,storm_meta,storm_outer --optimizer first_adam

Noise: `symmetric` (to other classes), `symmetric_inclusive` (resampled from all
classes), `pair_flip` (to the next class), `class_imbalanced` (to other classes,
at rates that rise from class to class); `--imbalance 10` thins the training set
out, to a tenth for the last class. The clean set is taken out of the training
set, so that `plain` never sees it, and is the same in all runs; its batches are
as large as those of the training set, or all of it. The optimizer is that of
every method, and of STORM's step that it looks ahead with; `first_adam` is what
the published STORM amounts to.

Out come a table, `results.jsonl`, `accuracy.png`, and `weights.png`: how the
weights of clean and of flipped examples spread from epoch to epoch. The
`weight_auc` says how often a clean example outweighs a flipped one; of MLC and
MSLC the weight is what is left to the given label. *Noisy* validation picks an
epoch.

Weighers and correctors learn at 1e-2, the published rate of STORM alone (MWN
and MSLC 1e-3, MLC 3e-5), and on images the network at .005, since there are
2000 steps here, not 60000. Both were settled with test accuracy on digits in
view; nothing was tuned on texts. experiments/README.md has what hangs on it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import Method, State, data, losses, meta, methods, nets, noise, train
from jnl.base import check, check_name, data_shards, unpack_rows
from jnl.data import Dataset, PerRun, augment
from jnl.train import Stream, Trained, option, report, scores, script

WITH_CLEAN = ('l2rw', 'mwn', 'mlc', 'mslc')
STORMS = {  # with g_meta, with g_outer
  'storm': (True, True), 'storm_meta': (True, False),
  'storm_outer': (False, True),
}  # fmt: skip
METHODS = ('plain', 'plain_clean', *WITH_CLEAN, *STORMS)
NOISES = ('symmetric', 'symmetric_inclusive', 'pair_flip', 'class_imbalanced')
TEXT_NETS = ('ngram', 'text_transformer')
LEVELS = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
"""Quantiles of the weights that are plotted."""
CHOICES: dict[str, dict[str, Any]] = {
  'images': {
    'net': 'mlp', 'optimizer': 'sgd', 'weight_decay': 5e-4, 'epochs': ('60',),
    'noise': 'symmetric_inclusive', 'rate': 0.6,
  },
  'texts': {
    'net': 'ngram', 'optimizer': 'adam', 'weight_decay': 0.0,
    'epochs': ('10', '20'), 'noise': 'symmetric', 'rate': 0.3,
  },
}  # fmt: skip
"""What is chosen where options leave it open."""
RATES = {'images': (0.005, 1e-3), 'texts': (0.5, 3e-3)}
"""Learning rates of SGD, and of Adam and its first step."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS[:7], f'of {", ".join(METHODS)}')
  dataset: str = option('digits', 'images or texts: digits, of TFDS, a file')
  noise: str = option('', f'one of {", ".join(NOISES)}')
  rate: float = option(-1.0, 'noise rate: by default .6, texts .3')
  imbalance: float = option(1.0, 'how often the first class is the last one')
  meta_per_class: int = option(10, 'clean examples of each class')
  net: str = option('', 'network: by default mlp, texts ngram; see nets.build')
  dropout: float = option(0.1, 'of the network, if it has dropout')
  augment: str = option('none', 'of images: none, or crop_flip')
  optimizer: str = option('', 'sgd, adam or first_adam; by default sgd or adam')
  learning_rate: float = option(0.0, 'by default that of data and optimizer')
  weight_decay: float = option(-1.0, 'of sgd: by default 5e-4, texts 0')
  meta_rate: float = option(1e-2, 'learning rate of weighers and correctors')
  passes: int = option(3, 'STORM: G, forward passes over a batch')
  warmup: int = option(5, 'MSLC: epochs before labels are corrected')
  epochs: tuple[str, ...] = option((), 'passes; each of several is reported')
  batch_size: int = option(32, 'examples in a step')
  seeds: int = option(3, 'runs, each with its own noise draw')
  out: str = option('results/meta_rescaling', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, plain and l2rw')


class Task(NamedTuple):
  """What the methods share: arrays by name, and [runs] numbers and keys.

  Attributes:
    num_classes: c.
    train: `x` [n, ...], and of each run `labels` [n], noisy.
    clean: `x` [m, ...] and `labels` [m], the clean set.
    held_out: what is scored; of `weights` the rows [n] of the training set, and
      which are `flipped`.
    wrong: the share of wrong labels.
    keys: of the runs.
  """

  num_classes: int
  train: dict[str, Any]
  clean: dict[str, Any]
  held_out: dict[str, dict[str, Any]]
  wrong: np.ndarray
  keys: jax.Array


def main(config: Config) -> None:
  """Data -> clean set and noise -> methods -> fits and report."""
  with train.options():
    check_options(config)
    dataset = read(config)
    config = with_recipe(config, dataset)
    task = make_task(config, dataset)
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  n, m = len(task.train['x']), len(task.clean['x'])
  print(f'{n} rows, {task.wrong.mean():.1%} wrong labels; {m} clean rows')
  wrong = f'{config.noise}, {task.wrong.mean():.0%} wrong'
  title = f'{config.dataset}, {wrong}, seeds: {config.seeds}'
  comparisons = [compared(config, task, int(text)) for text in config.epochs]

  report.put_plot(
    config.out,
    'weights.png',
    kind='quantiles',
    group=comparisons[-1].group,
    column='weights_',
    kinds=('clean', 'flipped'),
    title=title,
    ylabel='weight / mean weight\n10, 25, 50, 75, 90%',
  )
  train.plot(comparisons[-1], title, 'clean test accuracy')

  def done(name: str, one: Trained) -> Trained:
    for epochs, comparison in zip(config.epochs, comparisons, strict=True):
      train.record(comparison, name, with_auc(one.until(int(epochs))))
    return one

  fits = train.train_each(
    config.methods, lambda name: run(name, config, task), done
  )
  for epochs, comparison in zip(config.epochs, comparisons, strict=True):
    print(f'\n{title}, {config.optimizer}, epochs: {epochs}')
    own = {k: with_auc(one.until(int(epochs))) for k, one in fits.items()}
    train.compare(comparison, own)
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def compared(config: Config, task: Task, epochs: int) -> train.Comparison:
  """How methods are compared after so many epochs."""
  about = script.about('meta_rescaling', config)
  about['setting'] = {**about['setting'], 'epochs': epochs}
  several = len(config.epochs) > 1
  return train.Comparison(
    config.out,
    about,
    heads=('last epoch', 'best by noisy val.'),
    of_runs={'wrong_labels': task.wrong},
    group=f'epochs_{epochs}' if several else 'runs',
  )


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check(len(config.methods) >= 1, 'methods must name at least one')
  script.check_common(config, METHODS)
  check_name('augment', config.augment, script.VIEWS)
  if config.noise:
    check_name('noise', config.noise, NOISES)
  if config.optimizer:
    check_name('optimizer', config.optimizer, script.OPTIMIZERS)
  rate = config.rate
  check(0 <= rate <= 1 or rate == -1, f'rate must lie in [0, 1], got {rate}')
  script.numbers('epochs', config.epochs, 1)
  check(0 <= config.dropout < 1, f'dropout must be < 1, got {config.dropout}')
  for name, least in (
    ('imbalance', 1), ('meta_per_class', 1), ('passes', 1), ('batch_size', 2),
    ('learning_rate', 0), ('weight_decay', -1), ('meta_rate', 0), ('warmup', 0),
  ):  # fmt: skip
    value = getattr(config, name)
    check(value >= least, f'{name} must be at least {least}, got {value}')


def with_recipe(config: Config, dataset: Dataset) -> Config:
  """The config with what was left open filled in."""
  text = bool(np.issubdtype(dataset.train.x.dtype, np.integer))
  kind = 'texts' if text else 'images'
  for name, value in CHOICES[kind].items():
    if getattr(config, name) == getattr(Config, name):
      config = dataclasses.replace(config, **{name: value})
  rate = config.learning_rate or RATES[kind][config.optimizer != 'sgd']
  epochs = tuple(sorted(config.epochs, key=int))
  config = dataclasses.replace(config, learning_rate=rate, epochs=epochs)
  fits = text == (config.net in TEXT_NETS)
  check(fits, f'net {config.net} is not for {kind}')
  fits = not text or config.augment == 'none'
  check(fits, f'augment {config.augment} is for images')
  if config.smoke:
    chosen = config.methods != Config.methods
    few = config.methods if chosen else ('plain', 'l2rw')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=('2',))
  return config


# --- data --------------------------------------------------------------------


def read(config: Config) -> Dataset:
  """The data set of that name, as the network takes it."""
  if config.net != 'text_transformer':
    return script.read(config)
  texts = data.load_text(config.dataset, data_dir=config.data_dir or None)
  return data.encode_text(texts, data.token_ids)


def make_task(config: Config, dataset: Dataset) -> Task:
  """The clean set, and the noisy labels of each run from its key."""
  runs = jax.random.split(jax.random.key(0), (config.seeds, 3))
  clean, rest = picked(config, dataset.train.labels)
  n, b = rest.sum(), config.batch_size
  check(b <= n, f'batch_size must be at most {n}, got {b}')
  matrix = getattr(noise, config.noise)(dataset.num_classes, config.rate)

  def noisy(labels: np.ndarray, keys: jax.Array) -> np.ndarray:
    draws = [noise.corrupt(key, labels, matrix).labels for key in keys]
    return np.stack([np.asarray(own) for own in draws])

  (x, true, _), validation = dataset.train, dataset.validation
  labels = noisy(true[rest], runs[:, 0])
  chosen_by = noisy(validation.labels, runs[:, 1])
  flipped = labels != true[rest]
  return Task(
    dataset.num_classes,
    {'x': x[rest], 'labels': PerRun(labels)},
    {'x': x[clean], 'labels': true[clean]},
    {
      'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
      'validation': {'x': validation.x, 'labels': PerRun(chosen_by)},
      'weights': {
        'row': np.arange(n, dtype=np.int32),
        'flipped': PerRun(flipped),
      },
    },
    flipped.mean(1),
    runs[:, 2],
  )


def picked(config: Config, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Which rows are the clean set, and which are trained on, [n] bool each."""
  count = np.bincount(labels)
  place = np.arange(len(count)) / max(1, len(count) - 1)
  size = np.ceil(config.imbalance**-place * count)
  check(
    config.meta_per_class < size.min(),
    f'meta_per_class must be less than the {size.min():.0f} examples of the '
    f'smallest class, got {config.meta_per_class}',
  )
  clean = script.per_class(labels, config.meta_per_class)
  return clean, script.per_class(labels, size) & ~clean


# --- methods and their weights ------------------------------------------------


def run(name: str, config: Config, task: Task) -> train.Fit:
  """Trains a method, all runs."""
  weighted = name in WITH_CLEAN or name in STORMS
  view = script.VIEWS[config.augment]
  views = augment.views(view) if view else None
  streams, arrays, held_out = {}, task.train, dict(task.held_out)
  if not weighted:
    del held_out['weights']
  if name in WITH_CLEAN:
    size = min(config.batch_size, len(task.clean['labels']))
    streams['meta'] = Stream(task.clean, size, views)
  if name in STORMS:
    views = None  # it makes its views itself
    streams['meta'] = Stream(task.train, config.batch_size)
  if name == 'plain_clean':
    clean = task.clean['labels']
    labels = [np.append(own, clean) for own in arrays['labels'].values]
    x = np.concatenate([arrays['x'], task.clean['x']])
    arrays = {'x': x, 'labels': PerRun(np.stack(labels))}
  with script.logging(config, name) as log:
    return train.fit_many(
      build(name, config, task),
      arrays,
      task.keys,
      epochs=int(config.epochs[-1]),
      batch_size=config.batch_size,
      streams=streams,
      held_out=held_out,
      scores={'weights': WEIGHTS} if weighted else {},
      augment=views,
      log=log,
      label=name,
    )


def build(name: str, config: Config, task: Task) -> Method:
  """The method of that name."""
  c, x = task.num_classes, task.train['x']
  n, b, rate = len(x), config.batch_size, config.learning_rate
  model = script.network(config.net, c, x, dropout=config.dropout)
  tx = script.optimizer(config.optimizer, rate, config.weight_decay)
  sgd, adam = optax.sgd(rate), optax.adam(config.meta_rate)
  shards = data_shards(n, b)
  weigher_tx = optax.chain(optax.add_decayed_weights(1e-4), adam)
  if name == 'l2rw':
    return methods.l2rw(model, tx, num_examples=n, shards=shards)
  if name == 'mwn':
    return methods.mwn(
      model, tx, sgd, num_examples=n, weigher_tx=weigher_tx, shards=shards
    )
  if name == 'mlc':
    width = nets.feature_width(model, x[:1])
    # Without its gate, labels are noise at first, and stay so for too long.
    return methods.mlc(
      model, tx, num_examples=n, num_features=width, num_classes=c,
      corrector=meta.corrector(width, c, skip=True),
      corrector_tx=optax.amsgrad(config.meta_rate), shards=shards,
    )  # fmt: skip
  if name == 'mslc':
    return methods.mslc(
      model, tx, sgd, num_examples=n, num_classes=c,
      warmup=config.warmup * (n // b), weigher_tx=weigher_tx, shards=shards,
    )  # fmt: skip
  if name in STORMS:
    g_meta, g_outer = STORMS[name]
    if config.optimizer == 'sgd':
      # Its losses are sums, with weights of one half on average at first.
      tx = optax.chain(optax.scale(2 / b), tx)
    return methods.storm(
      model, tx, num_examples=n, num_classes=c, batch_size=b,
      passes=config.passes, g_meta=g_meta, g_outer=g_outer,
      rescaler_tx=adam, augment=script.VIEWS[config.augment], shards=shards,
    )  # fmt: skip
  return methods.supervised(losses.ce, model, tx)


def weights_of(predict: Any, state: State, batch: Any) -> jax.Array:
  """The last weights [b] of training examples."""
  del predict
  table = state.extra.weights
  return unpack_rows(table, table.rows.size)[batch['row']]


def spread(weights: jax.Array, arrays: Any) -> dict[str, jax.Array]:
  """AUC of the weights; quantiles of clean and flipped, over the mean."""
  flipped = arrays['flipped']
  found = {'auc': scores.roc_auc_of(weights, ~flipped)}
  weights /= jnp.maximum(jnp.mean(weights), 1e-30)
  for name, own in (('clean', ~flipped), ('flipped', flipped)):
    values = scores.quantiles_of(weights, LEVELS, own)
    found |= {f'{name}_{k}': value for k, value in enumerate(values)}
  return found


WEIGHTS = train.Score(lambda weights, batch: weights, spread, weights_of)


def with_auc(one: Trained) -> Trained:
  """With the AUC of the weights at the last epoch and at the chosen one."""
  if 'weights_auc' not in one.fit.history:
    return one
  last = one.last('weights_auc')
  best = one.best('weights_auc', 'validation_accuracy')
  return one.also({'weight_auc': last, 'weight_auc_best': best})


if __name__ == '__main__':
  train.run(main, Config, __doc__)
