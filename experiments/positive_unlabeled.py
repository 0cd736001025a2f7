"""Positive and unlabeled examples: what holds is known of some rows, no more.

Of two classes, some rows of one are labeled and nothing else is (even digits
against odd ones, say); what is known beside is the share of that class:

  upu                 risk without bias (du Plessis et al., 2014, 2015)
  nnpu                the same, and the way back below 0 (Kiryo et al., 2017)
  clipped             the same, its negative part cut off at 0
  ..._logistic        these by cross-entropy instead of the sigmoid loss
  unlabeled_negative  cross-entropy, as if unlabeled rows were negative
  two_bags            positives, and a bag with that share (`losses.dllp`)
  supervised          the label of every row, as the ceiling

The positives come beside the others, all of them in every step: mixed into the
batches, a few in each, upu overfits less.

Of several labels a row, a part of those that hold is known, and no other:

  assume_negative     binary cross-entropy, what is not known being negative
  pu_mlc              PU-MLC (Yuan et al., 2024), which needs no shares
  pu_mlc_plain        the same without its mixed examples
  nnpu                nnPU of each label, by the true shares
  supervised          all labels, as the ceiling

  python experiments/positive_unlabeled.py                 # digits
  python experiments/positive_unlabeled.py --dataset fashion_mnist \\
    --data-dir DIR --examples 10000 --seeds 2
  python experiments/positive_unlabeled.py --dataset multilabel_scene \\
    --data-dir DIR
  python experiments/positive_unlabeled.py --dataset multilabel_emotions \\
    --data-dir DIR

Tables have the accuracy, or the mean average precision of several labels, after
the last epoch; after the one that known positives of held-out rows choose, by
the least risk without bias (`losses.upu`), of several labels also by the least
variational loss, which needs no shares (`losses.vpu`); and `peak`, at the best
epoch for the test set, which nobody knows. `negative` is the risk of negatives
of the last epoch, where a method has one: below 0 it is overfitted. Out come a
table, `results.jsonl` and a plot.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, methods
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Params,
  State,
  check,
  global_mean,
)
from jnl.data import Examples, PerRun
from jnl.steps import from_loss, join_labeled, model_keys, training_pass
from jnl.train import (
  Comparison,
  Fit,
  Score,
  Stream,
  Trained,
  compare,
  fit_many,
  option,
  options,
  plot,
  record,
  report,
  run,
  scores,
  script,
  train_each,
)

OF_TWO = (
  'upu', 'nnpu', 'clipped', 'upu_logistic', 'nnpu_logistic', 'clipped_logistic',
  'unlabeled_negative', 'two_bags', 'supervised',
)  # fmt: skip
OF_SEVERAL = ('assume_negative', 'pu_mlc', 'pu_mlc_plain', 'nnpu', 'supervised')


class Setting(NamedTuple):
  """How a data set is trained on, unless the options say otherwise."""

  epochs: int
  batch_size: int
  hidden: int
  known: float


SETTINGS = {
  'digits': Setting(200, 200, 100, 100),
  'multilabel_scene': Setting(60, 128, 64, 0.1),
  'multilabel_emotions': Setting(60, 64, 64, 0.2),
}
OF_IMAGES = Setting(20, 500, 100, 100)
"""Of other data sets of two classes; of several labels those of scenes."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option((), 'some of these; by default all')
  positive: tuple[str, ...] = option((), 'labels; by default the even ones')
  known: float = option(
    0.0, 'positives that are known: rows, or of several labels the share'
  )
  prior: float = option(
    0.0, 'the share of positives that is told; by default the true one'
  )
  beside: int = option(
    100, 'known positives in a step, beside the others; not of several labels'
  )
  examples: int = option(0, 'first rows of the training set; 0 is all')
  epochs: int = option(0, 'of training; 0 is as measured for the data set')
  batch_size: int = option(0, 'rows in a step; 0 as well')
  learning_rate: float = option(1e-3, 'of Adam')
  seeds: int = option(3, 'runs, each with positives of its own')
  out: str = option('results/positive_unlabeled', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two methods')


class Part(NamedTuple):
  """Rows; `labels` are [n] bool, or [n, c] of several labels."""

  x: np.ndarray
  labels: np.ndarray


class Data(NamedTuple):
  """Rows to learn from, to choose an epoch by, and to test on."""

  train: Part
  validation: Part
  test: Part


def main(config: Config) -> None:
  """Data -> known positives -> methods -> fits and report."""
  if config.smoke:
    few = config.methods or ('nnpu', 'supervised')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  with options():
    several = is_several(config)
    check_options(config, OF_SEVERAL if several else OF_TWO)
    data = read(config)
    keys = jax.random.split(jax.random.key(0), (config.seeds, 2))
    setting = setting_of(config)
    draws = [known_of(data, setting.known, key) for key in keys[:, 0]]
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  metric = 'mean_average_precision' if several else 'accuracy'
  about = script.about('positive_unlabeled', config, metric=metric)
  about['setting'] |= setting._asdict()
  comparison = Comparison(
    config.out,
    about,
    score=f'test_{metric}',
    chosen_by='validation_risk',
    better='lower',
    heads=('last epoch', 'best by held-out risk'),
    show={
      'peak': ('peak', report.mean_sd),
      'by_vpu': ('by held-out vpu', report.mean_sd),
    },
  )
  title = f'{config.dataset}, {setting.known:g} known, seeds: {config.seeds}'
  plot(comparison, title, f'test {metric.replace("_", " ")}')
  train_all(config, data, draws, keys[:, 1], comparison)
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def train_all(
  config: Config,
  data: Data,
  draws: list[tuple[np.ndarray, np.ndarray]],
  keys: Key,
  comparison: Comparison,
) -> None:
  """All methods on the same positives of each run."""
  several, setting = is_several(config), setting_of(config)
  positive, held_out = (PerRun(np.stack(a)) for a in zip(*draws, strict=True))
  shares = prior_of(config, data.train.labels, positive.values[0])
  print(f'{len(data.train.x)} rows, {np.mean(shares):.1%} positive')
  risk = held_out_risks(shares, several)
  right = scores.mean_average_precision if several else scores.accuracy
  test = data.test._replace(labels=data.test.labels.astype(np.int32))
  streams = {}
  if not several:
    x, labels = data.train.x, data.train.labels.astype(np.int32)
    part = Examples(x, labels, np.arange(len(labels)))
    beside = script.labeled_stream(part, list(positive.values), config.beside)
    streams = {'l': Stream(beside, config.beside)}

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        build(name, config, data, shares),
        {'x': data.train.x, 'positive': positive, 'truth': data.train.labels},
        keys,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        streams=streams,
        held_out={
          'test': test._asdict(),
          'validation': {'x': data.validation.x, 'positive': held_out},
        },
        scores={'test': right, 'validation': risk},
        log=log,
        label=name,
      )

  def done(name: str, one: Trained) -> Trained:
    columns = {'peak': one.fit.history[comparison.score].max(axis=1)}
    if several:
      by = 'validation_variational'
      columns['by_vpu'] = one.best(comparison.score, by, 'lower')
    if 'negative' in one.fit.history:
      columns['negative'] = one.last('negative')
    return record(comparison, name, one.also(columns))

  names = config.methods or (OF_SEVERAL if several else OF_TWO)
  compare(comparison, train_each(names, run_of, done))


# --- options and data ---------------------------------------------------------


def is_several(config: Config) -> bool:
  """Whether rows have several labels."""
  return config.dataset.startswith('multilabel')


def setting_of(config: Config) -> Setting:
  """How to train: as the options say, or as was measured."""
  other = SETTINGS['multilabel_scene'] if is_several(config) else OF_IMAGES
  found = SETTINGS.get(config.dataset, other)
  return Setting(
    config.epochs or found.epochs,
    config.batch_size or found.batch_size,
    found.hidden,
    config.known or found.known,
  )


def check_options(config: Config, names: tuple[str, ...]) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, names)
  check(config.beside >= 1, f'beside must be at least 1, got {config.beside}')
  for name in ('epochs', 'batch_size', 'examples'):
    size = getattr(config, name)
    check(size >= 0, f'{name} must not be negative, got {size}')
  check(0 <= config.prior < 1, f'prior must lie in (0, 1), got {config.prior}')
  known, several = setting_of(config).known, is_several(config)
  check(
    0 < known <= 1 if several else known >= 1 and known == int(known),
    'known must be '
    + ('a share in (0, 1]' if several else 'a number of rows')
    + f', got {known:g}',
  )


def read(config: Config) -> Data:
  """The data set, of two classes or of several labels."""
  if is_several(config):
    return read_several(config)
  dataset = script.first(script.read(config), config.examples)
  positive = script.numbers('positive', config.positive)
  dataset = script.binary(dataset, positive or range(0, dataset.num_classes, 2))
  return Data(
    *(
      Part(part.x, part.labels == 1)
      for part in (dataset.train, dataset.validation, dataset.test)
    )
  )


def read_several(config: Config) -> Data:
  """Arrays of a file; of the training set a fifth is held out."""
  path = pathlib.Path(config.data_dir).expanduser() / f'{config.dataset}.npz'
  check(
    config.data_dir and path.exists(),
    f'{config.dataset} is read from a file: give data-dir, where '
    f'{path.name} is',
  )
  with np.load(path, allow_pickle=False) as file:
    parts = [
      Part(file[f'x_{name}'].astype(np.float32), file[f'y_{name}'] == 1)
      for name in ('train', 'test')
    ]
  train, test = parts
  order = np.random.default_rng(0).permutation(len(train.x))
  rows = np.split(order[: config.examples or None], [len(order) // 5])
  validation, train = (Part(train.x[own], train.labels[own]) for own in rows)
  return Data(train, validation, test)


def known_of(
  data: Data, known: float, key: Key
) -> tuple[np.ndarray, np.ndarray]:
  """Which positives are known, in training and held out, drawn at random."""
  keys = jax.random.split(key)
  truth = data.train.labels
  if truth.ndim == 2:  # each label that holds, by itself
    kept = [
      part.labels
      & (np.asarray(jax.random.uniform(k, part.labels.shape)) < known)
      for part, k in zip(data[:2], keys, strict=True)
    ]
    return kept[0], kept[1]
  total = truth.sum()
  check(known <= total, f'known: there are {total} positives, got {known:g}')
  share = known / total

  def some(labels: np.ndarray, count: int, key: Key) -> np.ndarray:
    rows = np.asarray(jax.random.permutation(key, np.flatnonzero(labels)))
    found = np.zeros(len(labels), bool)
    found[rows[:count]] = True
    return found

  held_out = data.validation.labels
  few = max(1, round(share * held_out.sum()))
  return some(truth, int(known), keys[0]), some(held_out, few, keys[1])


def prior_of(
  config: Config, truth: np.ndarray, positive: np.ndarray
) -> np.ndarray:
  """The share of positives: among the others, or of each of several labels."""
  true = truth.mean(0) if truth.ndim == 2 else truth[~positive].mean()
  return np.full_like(true, config.prior) if config.prior else true


# --- what chooses an epoch ----------------------------------------------------


def held_out_risks(prior: np.ndarray, several: bool) -> Score:
  """The risk without bias, by the sigmoid loss; of several labels `vpu` too."""

  def collect(outputs: Any, batch: Batch) -> Array:
    return outputs.logits if several else scores.log_odds(outputs, batch)

  def reduce(rows: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    known, weights = arrays['positive'], arrays['weight']
    each = losses.upu(rows, known, prior, weights, all_unlabeled=several)
    found = {'risk': jnp.mean(each)}
    if several:
      each = losses.vpu(rows, known, weights, all_unlabeled=True)
      found['variational'] = jnp.mean(each)
    return found

  return Score(collect, reduce)


# --- methods ------------------------------------------------------------------

Terms = tuple[Array, dict[str, Array]]
"""The loss of a batch, and metrics."""
OfLogits = Callable[[Array, Batch], Terms]


def of_logits(
  loss: OfLogits,
  model: Model,
  tx: optax.GradientTransformation,
  *,
  joined: bool = False,
) -> Method:
  """A method that descends a loss of all logits of a batch.

  `joined` with the known positives that come beside it, which are then not
  counted again.
  """

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    if joined:
      batch = join_labeled(batch)
      known = batch['labeled']
      weight = batch['weight'] * (known | ~batch['positive'])
      batch = {**batch, 'positive': known, 'weight': weight}
    outputs, stats = training_pass(
      *(model, params, state.stats, batch['x'], model_keys(key, batch)),
      batch['weight'],
    )
    value, metrics = loss(outputs.logits, batch)
    return value, Aux(stats, (), metrics)

  return from_loss(loss_fn, model, tx)


def build(name: str, config: Config, data: Data, prior: np.ndarray) -> Method:
  """The method of that name."""
  labels, x = data.train.labels, data.train.x
  several = labels.ndim == 2
  model = script.network(
    *(config.net, labels.shape[1] if several else 2, x),
    hidden=(setting_of(config).hidden,),
    standardize=several,
  )
  tx = optax.adam(config.learning_rate)
  if name.startswith('pu_mlc'):
    return methods.pu_mlc(model, tx, mixup=0.0 if 'plain' in name else 1.0)
  rule, _, kind = name.partition('_')
  if rule in ('upu', 'nnpu', 'clipped'):
    margin = losses.logistic_loss if kind else losses.sigmoid_loss
    how: Any = {'prior': prior, 'loss': margin, 'all_unlabeled': several}
    risks = functools.partial(by_risks, rule, how)
    return of_logits(risks, model, tx, joined=not several)
  if several:
    column = 'positive' if name == 'assume_negative' else 'truth'
    return of_logits(functools.partial(each_label, column), model, tx)
  if name == 'two_bags':
    bags = functools.partial(two_bags, float(prior))
    return of_logits(bags, model, tx, joined=True)
  column = 'positive' if name == 'unlabeled_negative' else 'truth'
  return of_logits(functools.partial(cross_entropy, column), model, tx)


def by_risks(
  rule: str, how: dict[str, Any], logits: Array, batch: Batch
) -> Terms:
  """uPU, nnPU or clipped, added up over several labels."""
  positive, weight = batch['positive'], batch['weight']
  odds = logits if positive.ndim == 2 else logits[:, 1] - logits[:, 0]
  of_positives, of_negatives = losses.pu_risks(
    odds, positive, weights=weight, **how
  )
  if rule == 'clipped':
    value = of_positives + losses.clip_risks(of_negatives[..., None])
  else:
    risk = losses.upu if rule == 'upu' else losses.nnpu
    value = risk(odds, positive, weights=weight, **how)
  return jnp.sum(value), {'negative': jnp.mean(of_negatives)}


def each_label(column: str, logits: Array, batch: Batch) -> Terms:
  """Binary cross-entropy, added up over several labels."""
  each = losses.logistic_loss(jnp.where(batch[column], logits, -logits))
  return global_mean(each.sum(1), batch['weight']), {}


def cross_entropy(column: str, logits: Array, batch: Batch) -> Terms:
  """Of two classes, against the truth or what is known."""
  labels = batch[column].astype(jnp.int32)
  return global_mean(losses.ce(logits, labels), batch['weight']), {}


def two_bags(prior: float, logits: Array, batch: Batch) -> Terms:
  """Positives one by one, and the others as a bag with a share of them."""
  known, there = batch['positive'], batch['weight'] > 0
  share = jnp.array([[1 - prior, prior]])
  bag = losses.dllp(logits[None], share, (~known & there)[None])
  own = losses.ce(logits, jnp.ones(len(logits), jnp.int32))
  return bag[0] + global_mean(own, known * batch['weight']), {}


if __name__ == '__main__':
  run(main, Config, __doc__)
