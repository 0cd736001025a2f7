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
  python experiments/meta_rescaling.py --dataset mnist --data-dir DIR \\
    --net strided_cnn --epochs 5 --seeds 1
  python experiments/meta_rescaling.py --dataset youtube_spam --data-dir DIR
  python experiments/meta_rescaling.py --dataset trec6 --data-dir DIR \\
    --methods plain,storm,storm_meta,storm_outer --optimizer first_adam

Noise: `symmetric` (to other classes), `symmetric_inclusive` (resampled from all
classes), `pair_flip` (to the next class), `class_imbalanced` (to other classes,
at rates that rise from class to class); `--imbalance 10` thins the training set
out, to a tenth for the last class. The clean set is taken out of the training
set, so that `plain` never sees it, and is the same in all runs. The optimizer
is that of every method, and of STORM's step that it looks ahead with;
`first_adam` is what the published STORM amounts to.

Out come a table, `results.jsonl`, `accuracy.png`, and `weights.png`: how the
weights of clean and of flipped examples spread from epoch to epoch. `weight
AUC` is how often a clean example outweighs a flipped one; of MLC and MSLC the
weight is what is left to the given label. An epoch is chosen by *noisy*
validation.

Weighers and correctors learn at 1e-2, the published rate of STORM alone (MWN
and MSLC 1e-3, MLC 3e-5): there are 2000 steps here, not 60000, and at 1e-3 MWN
hardly starts. On images the network learns at .005 for the same reason: at .05
and batches of 100, MWN's weights are one before losses tell clean from flipped
(65.3 at the end, plain 65.2). Both were settled with test accuracy on digits in
view; nothing was tuned on texts. There STORM is above plain at the last epoch
with Adam and SGD, most of it by `g_outer`; on digits it falls behind (70.7,
plain 86.1).
"""

from collections.abc import Mapping
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, meta, nets, noise
from jnl.base import (
  Array,
  Batch,
  Key,
  Method,
  State,
  check,
  check_name,
  data_shards,
  unpack_rows,
)
from jnl.data import (
  Dataset,
  Examples,
  PerRun,
  augment,
  encode_text,
  load,
  load_text,
  token_ids,
)
from jnl.methods import l2rw, mlc, mslc, mwn, storm
from jnl.steps import supervised
from jnl.train import (
  Fit,
  Predict,
  chosen_epoch,
  fit_many,
  option,
  parse,
  report,
  roc_auc,
)
from jnl.train._program import Augment

Arrays = dict[str, Any]

WITH_CLEAN = ('l2rw', 'mwn', 'mlc', 'mslc')
STORMS = {
  'storm': (True, True),
  'storm_meta': (True, False),
  'storm_outer': (False, True),
}
"""With `g_meta`, with `g_outer`."""
METHODS = ('plain', 'plain_clean', *WITH_CLEAN, *STORMS)
NOISES = ('symmetric', 'symmetric_inclusive', 'pair_flip', 'class_imbalanced')
TEXT_NETS = ('ngram', 'text_transformer')
VIEWS = {
  'none': None,
  'crop_flip': augment.compose(augment.pad_crop, augment.flip),
}
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the weights that are plotted."""


class Recipe(NamedTuple):
  """How a kind of data is trained on unless options say otherwise."""

  net: str
  optimizer: str
  learning_rates: Mapping[str, float]
  weight_decay: float
  epochs: tuple[str, ...]
  noise: str
  rate: float


IMAGES = Recipe(
  'mlp',
  'sgd',
  {'sgd': 0.005, 'adam': 1e-3, 'first_adam': 1e-3},
  5e-4,
  ('60',),
  'symmetric_inclusive',
  0.6,
)
TEXTS = Recipe(
  'ngram',
  'adam',
  {'sgd': 0.5, 'adam': 3e-3, 'first_adam': 3e-3},
  0.0,
  ('10', '20'),
  'symmetric',
  0.3,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('plain', 'plain_clean', *WITH_CLEAN, 'storm'),
    f'some of {", ".join(METHODS)}',
  )
  dataset: str = option(
    'digits', 'digits, an image or text set of TFDS, or one in data-dir'
  )
  data_dir: str = option('', 'folder of local files, see jnl/data/files.py')
  noise: str = option('', f'one of {", ".join(NOISES)}')
  rate: float = option(-1.0, 'noise rate: by default .6, texts .3')
  imbalance: float = option(1.0, 'how often the first class is the last one')
  meta_per_class: int = option(10, 'clean examples of each class')
  net: str = option('', 'network: by default mlp, texts ngram; nets/names.py')
  dropout: float = option(0.1, 'of the network, if it has dropout')
  augment: str = option('none', 'of images: none, or crop_flip')
  optimizer: str = option('', 'sgd, adam or first_adam; by default sgd or adam')
  learning_rate: float = option(0.0, 'by default that of data and optimizer')
  weight_decay: float = option(-1.0, 'of sgd: by default 5e-4, texts 0')
  meta_rate: float = option(1e-2, 'learning rate of weighers and correctors')
  passes: int = option(3, 'STORM: G, forward passes over a batch')
  warmup: int = option(5, 'MSLC: epochs before labels are corrected')
  epochs: tuple[str, ...] = option(
    (), 'passes over the training set; each of several is reported'
  )
  batch_size: int = option(32, 'examples in a step')
  seeds: int = option(3, 'runs, each with its own noise draw')
  out: str = option('results/meta_rescaling', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs')


class Task(NamedTuple):
  """What the methods share.

  Attributes:
    num_classes: c.
    train: `x` [n, ...], and of each run `labels` [n], noisy, and `run` [n].
    clean: `x` [m, ...] and `labels` [m], the clean set.
    held_out: the arrays that are scored.
    wrong: [runs], the share of wrong labels.
    keys: [runs].
  """

  num_classes: int
  train: Arrays
  clean: Arrays
  held_out: dict[str, Arrays]
  wrong: np.ndarray
  keys: Key


def main(config: Config) -> None:
  """Data -> clean set and noise -> methods -> fits and report."""
  check_options(config)
  dataset = read(config)
  config = with_recipe(config, dataset)
  task = make_task(config, dataset)
  print(
    f'{len(task.train["x"])} rows, {task.wrong.mean():.1%} of the '
    f'labels wrong; {len(task.clean["labels"])} clean rows'
  )
  fits, seconds = {}, {}
  for name in config.methods:
    start = time.perf_counter()
    fits[name] = run(name, config, task)
    seconds[name] = time.perf_counter() - start
  title = (
    f'{config.dataset}, {config.noise}, {task.wrong.mean():.0%} wrong, '
    f'seeds: {config.seeds}'
  )
  rows = []
  for epochs in map(int, config.epochs):
    results = {name: result_of(fits[name], epochs) for name in fits}
    print(f'\n{title}, {config.optimizer}, epochs: {epochs}\n')
    print(table(results, seconds))
    for name, result in results.items():
      rows += rows_of(name, result, seconds[name], config, epochs, task)
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  report.plot_curves(
    f'{config.out}/accuracy.png',
    {name: fitted.history['test'] for name, fitted in fits.items()},
    title=title,
    ylabel='clean test accuracy',
  )
  plot_weights(f'{config.out}/weights.png', fits, title)
  print(f'\nwrote results.jsonl, accuracy.png and weights.png to {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check(len(config.methods) >= 1, 'methods must name at least one')
  for method in config.methods:
    check_name('method', method, METHODS)
  check_name('augment', config.augment, VIEWS)
  if config.noise:
    check_name('noise', config.noise, NOISES)
  if config.optimizer:
    check_name('optimizer', config.optimizer, IMAGES.learning_rates)
  if config.net:
    nets.build(config.net, 2)
  rate, epochs = config.rate, config.epochs
  check(0 <= rate <= 1 or rate == -1, f'rate must lie in [0, 1], got {rate}')
  check(
    all(e.isdigit() and int(e) >= 1 for e in epochs),
    f'epochs must be numbers from 1 on, with commas, got {epochs}',
  )
  check(0 <= config.dropout < 1, f'dropout must be < 1, got {config.dropout}')
  for name, least in (
    ('imbalance', 1), ('meta_per_class', 1), ('passes', 1), ('seeds', 1),
    ('batch_size', 2), ('learning_rate', 0), ('meta_rate', 0), ('warmup', 0),
  ):  # fmt: skip
    value = getattr(config, name)
    check(value >= least, f'{name} must be at least {least}, got {value}')


def with_recipe(config: Config, dataset: Dataset) -> Config:
  """The config with what was left open filled in."""
  text = is_text(dataset)
  recipe = TEXTS if text else IMAGES
  optimizer = config.optimizer or recipe.optimizer
  decay = config.weight_decay
  config = dataclasses.replace(
    config,
    noise=config.noise or recipe.noise,
    rate=recipe.rate if config.rate == -1 else config.rate,
    net=config.net or recipe.net,
    optimizer=optimizer,
    learning_rate=config.learning_rate or recipe.learning_rates[optimizer],
    weight_decay=recipe.weight_decay if decay < 0 else decay,
    epochs=tuple(sorted(config.epochs or recipe.epochs, key=int)),
  )
  check(
    text == (config.net in TEXT_NETS),
    f'net {config.net} is not for {"texts" if text else "images"}',
  )
  check(
    not text or config.augment == 'none',
    f'augment {config.augment} is for images',
  )
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=('2',))
  return config


# --- data --------------------------------------------------------------------


def read(config: Config) -> Dataset:
  """The data set of that name, as the network takes it."""
  data_dir = config.data_dir or None
  if config.net == 'text_transformer':
    return encode_text(load_text(config.dataset, data_dir=data_dir), token_ids)
  return load(config.dataset, data_dir=data_dir)


def is_text(dataset: Dataset) -> bool:
  """Texts are whole numbers, images are not."""
  return bool(np.issubdtype(dataset.train.x.dtype, np.integer))


def make_task(config: Config, dataset: Dataset) -> Task:
  """The clean set, and the noisy labels of each run from its key."""
  runs = jax.random.split(jax.random.key(0), (config.seeds, 3))
  matrix = transition(config.noise, dataset.num_classes, config.rate)
  clean, train = set_apart(
    thinned(dataset.train, config.imbalance), config.meta_per_class
  )
  n = len(train.labels)
  check(
    config.batch_size <= n,
    f'batch_size must be at most {n}, got {config.batch_size}',
  )

  def noisy(part: Examples, keys: Key) -> np.ndarray:
    draws = [noise.corrupt(key, part.labels, matrix).labels for key in keys]
    return np.stack([np.asarray(labels) for labels in draws])

  labels = noisy(train, runs[:, 0])
  flipped = labels != train.labels
  number = np.arange(config.seeds, dtype=np.int32)
  return Task(
    dataset.num_classes,
    {
      'x': train.x,
      'labels': PerRun(labels),
      'run': PerRun(np.repeat(number[:, None], n, axis=1)),
    },
    {'x': clean.x, 'labels': clean.labels},
    {
      'test': {
        'x': dataset.test.x,
        'labels': dataset.test.labels,
      },
      'validation': {
        'x': dataset.validation.x,
        'labels': PerRun(noisy(dataset.validation, runs[:, 1])),
      },
      # All in one row: an AUC is no mean over batches.
      'weights': {'flipped': PerRun(flipped[:, None])},
    },
    flipped.mean(1),
    runs[:, 2],
  )


def transition(name: str, c: int, rate: float) -> Array:
  """The matrix of the noise."""
  if name != 'class_imbalanced':
    return getattr(noise, name)(c, rate)
  spread = min(rate, 1 - rate)
  rates = np.linspace(rate - spread, rate + spread, c)
  return jnp.stack([noise.symmetric(c, r)[k] for k, r in enumerate(rates)])


def thinned(part: Examples, ratio: float) -> Examples:
  """Of the last class one in `ratio`, of those before it in geometric order."""
  c = part.labels.max() + 1
  share = ratio ** (-np.arange(c) / max(1, c - 1))
  size = np.ceil(share * np.bincount(part.labels))
  kept = rank(part.labels) < size[part.labels]
  return Examples(*(values[kept] for values in part))


def set_apart(part: Examples, per_class: int) -> tuple[Examples, Examples]:
  """So many of each class, and the rest."""
  least = np.bincount(part.labels).min()
  check(
    per_class < least,
    f'meta_per_class must be less than the {least} examples of the smallest '
    f'class, got {per_class}',
  )
  chosen = rank(part.labels) < per_class
  own, rest = (
    Examples(*(values[rows] for values in part)) for rows in (chosen, ~chosen)
  )
  return own, rest


def rank(labels: np.ndarray) -> np.ndarray:
  """How many of the same class come before, [n]; data are in random order."""
  ranks = np.empty(len(labels), int)
  for k in np.unique(labels):
    rows = np.flatnonzero(labels == k)
    ranks[rows] = np.arange(len(rows))
  return ranks


# --- methods -----------------------------------------------------------------


def run(name: str, config: Config, task: Task) -> Fit:
  """Trains a method, all runs."""
  data, held_out = task.train, dict(task.held_out)
  if name == 'plain_clean':
    clean = task.clean['labels']
    data = {
      'x': np.concatenate([data['x'], task.clean['x']]),
      'labels': PerRun(
        np.stack([np.append(own, clean) for own in data['labels'].values])
      ),
    }
  weighted = name in WITH_CLEAN or name in STORMS
  if not weighted:
    del held_out['weights']
  return fit_many(
    build(name, config, task),
    data,
    task.keys,
    epochs=int(config.epochs[-1]),
    batch_size=config.batch_size,
    held_out=held_out,
    scores={'weights': spread} if weighted else {},
    augment=streams(name, config, task),
    label=name,
  )


def build(name: str, config: Config, task: Task) -> Method:
  """The method of that name."""
  c, n = task.num_classes, len(task.train['x'])
  net = nets.build(config.net, c)
  if hasattr(net, 'dropout'):
    net = net.clone(dropout=config.dropout)
  model = nets.from_linen(net, task.train['x'].shape[1:])
  tx = optimizer(config)
  virtual_tx = optax.sgd(config.learning_rate)
  weigher_tx = optax.chain(
    optax.add_decayed_weights(1e-4), optax.adam(config.meta_rate)
  )
  shards = data_shards(n, config.batch_size)
  if name == 'l2rw':
    return l2rw(model, tx, num_examples=n, shards=shards)
  if name == 'mwn':
    return mwn(
      model,
      tx,
      virtual_tx,
      num_examples=n,
      weigher_tx=weigher_tx,
      shards=shards,
    )
  if name == 'mlc':
    width = nets.feature_width(model, task.train['x'][:1])
    # Without its gate, labels are noise at first, and stay so for too long.
    return mlc(
      model, tx, num_examples=n, num_features=width, num_classes=c, corrector=meta.corrector(width, c, skip=True),
      corrector_tx=optax.amsgrad(config.meta_rate), shards=shards,
    )  # fmt: skip
  if name == 'mslc':
    warmup = config.warmup * (n // config.batch_size)
    return mslc(
      model, tx, virtual_tx, num_examples=n, num_classes=c, warmup=warmup, weigher_tx=weigher_tx,
      shards=shards,
    )  # fmt: skip
  if name in STORMS:
    g_meta, g_outer = STORMS[name]
    if config.optimizer == 'sgd':
      # Its losses are sums, with weights of one half on average at first.
      tx = optax.chain(optax.scale(2 / config.batch_size), tx)
    return storm(
      model, tx, num_examples=n, num_classes=c, batch_size=config.batch_size, passes=config.passes, g_meta=g_meta,
      g_outer=g_outer, rescaler_tx=optax.adam(config.meta_rate),
      augment=VIEWS[config.augment], shards=shards,
    )  # fmt: skip
  return supervised(losses.ce, model, tx)


def optimizer(config: Config) -> optax.GradientTransformation:
  """Of every method."""
  rate = config.learning_rate
  if config.optimizer == 'adam':
    return optax.adam(rate)
  if config.optimizer == 'first_adam':
    return meta.first_adam(rate)
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(rate, momentum=0.9),
  )


def streams(name: str, config: Config, task: Task) -> Augment | None:
  """What a method sees beside the training batch, and through which views."""
  view = VIEWS[config.augment]
  if name in STORMS:
    return from_training(task)  # it makes its views itself
  if name not in WITH_CLEAN:
    return augment.views(view) if view else None
  add = meta.drawn({k: jnp.asarray(v) for k, v in task.clean.items()})
  if view is None:
    return add
  views = augment.views(view, names=('x', 'x_meta'))
  return lambda keys, batch: views(keys, add(keys, batch))


def from_training(task: Task) -> Augment:
  """STORM's meta stream: the noisy training set of the run."""
  x, labels = task.train['x'], task.train['labels'].values
  rows = jnp.arange(len(x))
  draw = meta.drawn({'x': rows, 'labels': rows})

  def add(keys: Key, batch: Batch) -> Batch:
    batch = draw(keys, batch)
    row = batch['labels_meta']
    return {
      **batch,
      'x_meta': jnp.asarray(x)[row],
      'labels_meta': jnp.asarray(labels)[batch['run'], row],
    }

  return add


# --- report ------------------------------------------------------------------


def spread(predict: Predict, state: State, batch: Batch) -> Array:
  """AUC of the weights; then quantiles of those of clean and of flipped.

  Quantiles are relative to the mean weight.
  """
  del predict
  flipped = batch['flipped'][0]
  weights = unpack_rows(state.extra.weights, len(flipped))
  auc = roc_auc(weights, ~flipped)
  weights /= jnp.maximum(jnp.mean(weights), 1e-30)
  levels = jnp.array(LEVELS)
  clean, wrong = (
    jnp.nanquantile(jnp.where(mask, weights, jnp.nan), levels)
    for mask in (~flipped, flipped)
  )
  return jnp.concatenate([auc[None], clean, wrong])


class Result(NamedTuple):
  """Of one method, [runs] each.

  Attributes:
    last: test accuracy at the last epoch.
    best: the same at the epoch of the best noisy validation.
    auc_last: of the weights, of those who have any.
    auc_best: the same at the chosen epoch.
  """

  last: np.ndarray
  best: np.ndarray
  auc_last: np.ndarray | None = None
  auc_best: np.ndarray | None = None


def result_of(fitted: Fit, epochs: int) -> Result:
  """What the first so many epochs come to."""
  history = {
    name: values[:, :epochs] for name, values in fitted.history.items()
  }
  of_test = history['test'][:, -1], chosen_epoch(Fit(fitted.state, history))
  if 'weights' not in history:
    return Result(*of_test)
  auc = history['weights'][..., 0]
  of_weights = Fit(fitted.state, {**history, 'test': auc})
  return Result(*of_test, auc[:, -1], chosen_epoch(of_weights))


def table(results: Mapping[str, Result], seconds: Mapping[str, float]) -> str:
  """Accuracies and the AUC of weights."""
  header = [
    'method',
    'last epoch',
    'best by noisy val.',
    'weight AUC, last',
    'at best',
    'seconds',
  ]

  def mean(values: np.ndarray | None) -> str:
    return '' if values is None else f'{values.mean():.3f}'

  return report.table(
    header,
    [
      [
        name,
        report.mean_sd(result.last),
        report.mean_sd(result.best),
        mean(result.auc_last),
        mean(result.auc_best),
        f'{seconds[name]:.1f}',
      ]
      for name, result in results.items()
    ],
  )


def rows_of(
  name: str,
  result: Result,
  seconds: float,
  config: Config,
  epochs: int,
  task: Task,
) -> list[dict]:
  """A row for each run."""
  skipped = ('methods', 'dataset', 'data_dir', 'seeds', 'out', 'smoke')
  fields = dataclasses.asdict(config)
  setting = {k: v for k, v in fields.items() if k not in skipped}
  about = {
    'experiment': 'meta_rescaling',
    'dataset': config.dataset,
    'setting': {**setting, 'epochs': epochs},
    'metric': 'accuracy',
  }
  columns = {
    'wrong_labels': task.wrong,
    'weight_auc': result.auc_last,
    'weight_auc_best': result.auc_best,
  }
  known = {k: values for k, values in columns.items() if values is not None}
  return report.result_rows(
    about, name, result.last, result.best, seconds, known
  )


def plot_weights(path: str, fits: Mapping[str, Fit], title: str) -> None:
  """Quantiles of the weights after each epoch, means over runs."""
  curves = {
    name: fitted.history['weights'].mean(0)[:, 1:].T.reshape(2, len(LEVELS), -1)
    for name, fitted in fits.items()
    if 'weights' in fitted.history
  }
  if not curves:
    return
  import matplotlib  # slow to import

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, panels = plt.subplots(
    1, len(curves), figsize=(0.5 + 3 * len(curves), 3.4), squeeze=False
  )
  for axes, (name, both) in zip(panels[0], curves.items(), strict=True):
    epochs = np.arange(1, both.shape[-1] + 1)
    for of, color, values in zip(
      ('clean', 'flipped'), ('C0', 'C3'), both, strict=True
    ):
      axes.plot(epochs, values[2], color=color, label=of)
      for low, high in ((0, 4), (1, 3)):
        axes.fill_between(
          epochs, values[low], values[high], color=color, alpha=0.15
        )
    axes.set(title=name, xlabel='epoch')
    axes.margins(x=0)
    axes.grid(alpha=0.3)
  panels[0, 0].set_ylabel('weight / mean weight\n10, 25, 50, 75, 90%')
  panels[0, 0].legend(fontsize='small', frameon=False)
  figure.suptitle(title)
  figure.tight_layout()
  with report.replacing(path) as partial:
    figure.savefig(partial, dpi=150)
  plt.close(figure)


if __name__ == '__main__':
  main(parse(Config, __doc__))
