"""Classes of uneven size: what answers them, and what wrong labels make of it.

Of digits, 109 rows of the first class are left, 4 of the last, falling
exponentially (CIFAR-LT's recipe); the test set is as it was, and all classes
count alike there: balanced accuracy. `--noise .3` makes labels wrong as well.

  ce                 cross-entropy
  class_weights      weighted by the effective number of examples (Cui et al.,
                     2019), here nearly the inverse of the size
  adjusted           of logits plus the log prior of the labels as given, the
                     balanced softmax (Menon et al., 2021; Ren et al., 2020)
  adjusted_clean     the same by the prior of the true classes
  adjusted_after     cross-entropy; the prior is taken out of what it learned
  margins            LDAM's margins on plain logits
  cosine             cross-entropy of a cosine head of scale 30, for the next
  ldam               margins on cosines (Cao et al., 2019)
  ldam_drw           and class weights in the last fifth of the training
  gce                a loss that withstands wrong labels
  gce_adjusted       of logits plus the log prior of the true classes
  gce_weights        weighted by the effective number
  forward            cross-entropy of p T, the true T
  forward_adjusted   of logits plus the log prior of the true classes

  python experiments/long_tail.py
  python experiments/long_tail.py --noise .3 --epochs 80

Adjusting answers uneven classes, not wrong labels: on a loss that learns these
by heart it gains nothing (59 to 64 beside 68 of `ce`, of 30% wrong labels).
They are spread evenly, so that most labels of the tail are those of the head,
and a network that has fitted them is told to believe in rare classes; weights
do the same. A loss that withstands them learns the tail slowly (of clean labels
`gce` has 78 after 100 epochs where `ce` has 88), and adjusted by the prior of
the true classes it is the best of wrong labels at the last epoch, 79. An epoch
chosen by held-out labels brings `ce` to 76, weighted to 78 and `gce_adjusted`
to 78. `forward` gains nothing by adjusting.

`adjusted_clean`, `gce_adjusted`, `gce_weights` and `forward*` are told that
prior or the transition matrix, which in life have to be estimated
(`jnl.transition`).

Out come a table with the mean recall of the head, the middle and the tail,
thirds of the classes; `results.jsonl` and a plot. An epoch is chosen by
held-out labels that are wrong as often, of as many rows of each class.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import data, losses, methods, noise
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Outputs,
  Params,
  State,
  Stats,
  check,
  global_mean,
)
from jnl.data import Dataset, PerRun
from jnl.steps import feature_width, from_loss, model_keys, training_pass
from jnl.train import (
  Comparison,
  Fit,
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

CLEAN = (
  'ce', 'class_weights', 'adjusted', 'adjusted_after', 'margins', 'cosine',
  'ldam', 'ldam_drw', 'gce', 'gce_adjusted',
)  # fmt: skip
NOISY = (
  'ce', 'class_weights', 'adjusted', 'adjusted_clean', 'adjusted_after', 'gce',
  'gce_adjusted', 'gce_weights', 'forward', 'forward_adjusted',
)  # fmt: skip
METHODS = tuple(dict.fromkeys(CLEAN + NOISY))
PARTS = ('head', 'middle', 'tail')
SCALE = 30.0
"""Of cosines, as LDAM has it."""
DEFERRED = 0.8
"""The part of the training after which LDAM's weights begin: 160 of 200."""


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    (), 'some of those above; by default what fits the noise'
  )
  ratio: float = option(30.0, 'how often the first class is the last one')
  noise: float = option(0.0, 'rate of wrong labels, spread over other classes')
  tau: float = option(1.0, 'weight of the log prior')
  beta: float = option(0.9999, 'of the effective number of examples')
  largest: float = option(0.5, 'margin of the smallest class')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(50, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  weight_decay: float = option(0.0, 'L2, added to the gradient')
  hidden: int = option(256, 'width of the one hidden layer of mlp')
  seeds: int = option(4, 'runs, each with rows of its own')
  out: str = option('results/long_tail', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two methods')


class Task(NamedTuple):
  """The data of all runs, and what is known of them.

  Attributes:
    counts: [c], the true classes of the training rows.
    transition: [c, c] of the wrong labels.
    train: `x` and `labels`, of each run.
    held_out: `test`, and `validation` with wrong labels.
    wrong: [seeds], the share of wrong labels.
  """

  counts: np.ndarray
  transition: np.ndarray
  train: dict[str, PerRun]
  held_out: dict[str, dict]
  wrong: np.ndarray

  @property
  def prior(self) -> np.ndarray:
    """Of the true classes, [c]."""
    return self.counts / self.counts.sum()

  @property
  def given(self) -> np.ndarray:
    """Of the labels, as many draws would give it, [c]."""
    return self.prior @ self.transition


def main(config: Config) -> None:
  """Data -> a tail, wrong labels -> networks and losses -> fits and report."""
  chosen = config.methods or (NOISY if config.noise else CLEAN)
  if config.smoke:
    few = config.methods or ('ce', 'adjusted')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  else:
    config = dataclasses.replace(config, methods=chosen)
  with options():
    check_options(config)
    dataset = script.read(config)
    runs = jax.random.split(jax.random.key(0), (config.seeds, 3))
    task = task_of(config, dataset, runs)
    out = report.own_folder(config.out, resume=config.resume)
    config = dataclasses.replace(config, out=out)
  rows, wrong = task.counts.sum(), task.wrong.mean()
  print(f'{task.counts.tolist()}: {rows} rows, {wrong:.1%} of labels wrong')
  comparison = Comparison(
    config.out,
    script.about('long_tail', config, 'balanced_accuracy'),
    score='test_balanced_accuracy',
    chosen_by='validation_balanced_accuracy',
    heads=('last epoch', 'best by validation'),
    of_runs={'wrong_labels': task.wrong},
  )
  title = f'{config.dataset}, ratio {config.ratio:g}, {wrong:.0%} wrong labels'
  plot(comparison, f'{title}, seeds: {config.seeds}', 'balanced accuracy')

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        build(name, config, task, dataset),
        task.train,
        runs[:, 2],
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out=task.held_out,
        scores=dict.fromkeys(task.held_out, score_of(dataset.num_classes)),
        checkpoint=script.checkpoint(config, name),
        log=log,
        label=name,
      )

  def done(name: str, one: Trained) -> Trained:
    parts = {part: one.last(f'test_{part}') for part in PARTS}
    return record(comparison, name, one.also(parts))

  compare(comparison, train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


# --- data --------------------------------------------------------------------


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(0 <= config.noise < 1, f'noise must lie in [0, 1), got {config.noise}')
  check(0 <= config.beta <= 1, f'beta must lie in [0, 1], got {config.beta}')
  check(config.largest >= 0, f'largest must be >= 0, got {config.largest}')
  check(math.isfinite(config.tau), f'tau must be finite, got {config.tau}')
  for name in ('epochs', 'batch_size', 'hidden'):
    size = getattr(config, name)
    check(size >= 1, f'{name} must be at least 1, got {size}')


def task_of(config: Config, dataset: Dataset, runs: Key) -> Task:
  """Rows of a long tail for each seed, and labels that may be wrong."""
  train, test, c = dataset.train, dataset.test, dataset.num_classes
  rows = [data.long_tail(key, train.labels, config.ratio) for key in runs[:, 0]]
  check(
    config.batch_size <= len(rows[0]),
    f'batch_size must be at most the {len(rows[0])} rows, got '
    f'{config.batch_size}',
  )
  transition = noise.symmetric(c, config.noise)

  def spoiled(key: Key, labels: np.ndarray) -> np.ndarray:
    return np.asarray(noise.corrupt(key, labels, transition).labels)

  keys = jax.vmap(jax.random.split)(runs[:, 1])
  true = np.stack([train.labels[own] for own in rows])
  labels = np.stack(
    [spoiled(*one) for one in zip(keys[:, 0], true, strict=True)]
  )
  validation = dataset.validation
  chosen_by = np.stack([spoiled(key, validation.labels) for key in keys[:, 1]])
  return Task(
    np.bincount(true[0]),
    np.asarray(transition),
    {'x': PerRun(train.x[np.stack(rows)]), 'labels': PerRun(labels)},
    {
      'test': {'x': test.x, 'labels': test.labels},
      'validation': {'x': validation.x, 'labels': PerRun(chosen_by)},
    },
    (labels != true).mean(1),
  )


def score_of(c: int) -> scores.Score:
  """Balanced accuracy, and that of thirds of the classes."""
  thirds = np.array_split(np.arange(c), 3)

  def of(name: str, part: np.ndarray) -> scores.Score:
    def reduce(rows, arrays):
      own = jnp.isin(arrays['labels'], part)
      weight = jnp.where(own, arrays['weight'], 0)
      found = scores.balanced_accuracy.reduce(
        rows, {**arrays, 'weight': weight}
      )
      return {name: found['balanced_accuracy']}

    return scores.balanced_accuracy._replace(reduce=reduce)

  parts = [of(name, part) for name, part in zip(PARTS, thirds, strict=True)]
  return scores.join(scores.balanced_accuracy, *parts)


# --- methods -----------------------------------------------------------------


def build(name: str, config: Config, task: Task, dataset: Dataset) -> Method:
  """A network, and a loss of its logits."""
  model = script.network(
    config.net, dataset.num_classes, dataset.train.x, hidden=(config.hidden,)
  )
  if name in ('cosine', 'ldam', 'ldam_drw'):
    model = with_cosines(model, dataset.train.x[:1], dataset.num_classes)
  tx = script.optimizer('sgd', config.learning_rate, config.weight_decay)
  own = losses.class_weights(
    task.counts if name == 'gce_weights' else task.given * task.counts.sum(),
    beta=config.beta,
  )
  steps = config.epochs * (task.counts.sum() // config.batch_size)
  since = {
    'class_weights': 0,
    'gce_weights': 0,
    'ldam_drw': round(DEFERRED * int(steps)),
  }.get(name, steps + 1)
  method = weighted(loss_of(name, config, task), model, tx, own, since)
  if name != 'adjusted_after':
    return method

  def predict(state: State, x: Array) -> Outputs:
    outputs = method.predict(state, x)
    logits = losses.adjust_logits(outputs.logits, task.given, tau=-config.tau)
    return outputs._replace(logits=logits)

  return method._replace(predict=predict)


def loss_of(
  name: str, config: Config, task: Task
) -> Callable[[Array, Array], Array]:
  """The loss `(logits, labels) -> [b]` of a method."""
  margins = losses.ldam_margins(
    task.given * task.counts.sum(), largest=config.largest
  )

  def adjusted(z: Array, prior: np.ndarray) -> Array:
    return losses.adjust_logits(z, prior, tau=config.tau)

  def forward(z: Array, y: Array) -> Array:
    return losses.forward(z, y, task.transition)

  def less(z: Array, y: Array, scale: float) -> Array:
    return losses.ce(losses.subtract_margins(z, y, scale * margins), y)

  return {
    'adjusted': lambda z, y: losses.ce(adjusted(z, task.given), y),
    'adjusted_clean': lambda z, y: losses.ce(adjusted(z, task.prior), y),
    'margins': lambda z, y: less(z, y, 1.0),
    'ldam': lambda z, y: less(z, y, SCALE),
    'ldam_drw': lambda z, y: less(z, y, SCALE),
    'gce': losses.gce,
    'gce_weights': losses.gce,
    'gce_adjusted': lambda z, y: losses.gce(adjusted(z, task.prior), y),
    'forward': forward,
    'forward_adjusted': lambda z, y: forward(adjusted(z, task.prior), y),
  }.get(name, losses.ce)


def weighted(
  loss: Callable[[Array, Array], Array],
  model: Model,
  tx: optax.GradientTransformation,
  own: Array,
  since: int,
) -> Method:
  """A loss whose mean, from a step on, is over weights `own` [c] of classes."""

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    weight, labels = batch['weight'], batch['labels']
    keys = model_keys(key, batch)
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], keys, weight
    )
    share = jnp.where(state.step >= since, own[labels], 1)
    value = global_mean(loss(outputs.logits, labels), weight * share)
    return value, Aux(stats)

  return from_loss(loss_fn, model, tx)


def with_cosines(model: Model, x: np.ndarray, c: int) -> Model:
  """A network whose logits are cosines of its features with class vectors."""
  width = feature_width(model, x)
  vectors = jax.random.normal(jax.random.key(0), (c, width))
  head = methods.class_vectors(vectors, SCALE)

  def init(key: Key) -> tuple[Params, Stats]:
    params, stats = model.init(key)
    return {'net': params, 'head': head.init(key)[0]}, stats

  def apply(
    params: Params, stats: Stats, x: Array, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    outputs, stats = model.apply(params['net'], stats, x, keys, train)
    cosines, _ = head.apply(params['head'], {}, outputs.features, None, train)
    return outputs._replace(logits=cosines.logits), stats

  return Model(init, apply)


if __name__ == '__main__':
  run(main, Config, __doc__)
