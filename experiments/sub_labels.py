"""Weak labels of the web: split by what a teacher guesses, instead of filtered.

A network is trained on the labels of one of these, its last layer is thrown
away, and a linear classifier of a few clean rows reads its features (Li et al.,
"Learning from Weakly-labeled Web Videos via Exploring Sub-Concepts", AAAI 2022,
arXiv 2101.03713, of which there is no code: it is made from its text):

  weak          the weak labels
  teacher       the guesses of a teacher, who learned the few clean rows
  filtered      weak labels, where the teacher agrees; other rows are left out
  spl           each pair of weak label and guess is a label (SPL)
  spl_agree     the weak label, one for where they agree, one for where not
  spl_frequent  the --keep most frequent pairs; rows of others are left out
  untrained     no training: the features of the network as it begins

  python experiments/sub_labels.py                           # made up
  python experiments/sub_labels.py --dataset cifar10_small --data-dir DIR \\
    --net strided_cnn --standardize --few 40 --keep 50 --seeds 2 --epochs 8 \\
    --teacher-epochs 40 --learning-rate .001

Made up is a video: features of its scene and of what is done in it, in which
the classes differ. The weak label is what somebody searched for. Most found
scenes are of it, but fewer of the acts; clean rows, and those of the test, have
any scene. Of `cifar10_small` the weak labels are the worst ones that people
gave (CIFAR-10N), and the teacher has seen 40 clean images of each class. Then
fewer guesses than weak labels are right, and pairs are worse than weak labels.

Out come a table, `results.jsonl`, and curves: after each epoch the accuracy of
the nearest class mean of the few clean rows.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from jnl import data, losses, pseudo
from jnl.base import Array, Batch, Model, Outputs, State, check, check_name
from jnl.data import PerRun
from jnl.select import class_means, nearest_prototype
from jnl.steps import supervised
from jnl.train import (
  Comparison,
  Fit,
  Score,
  Trained,
  compare,
  fit_many,
  option,
  options,
  padded_batches,
  record,
  report,
  run,
  script,
  train_each,
)

METHODS = (
  'weak', 'teacher', 'filtered', 'spl', 'spl_agree', 'spl_frequent',
  'untrained',
)  # fmt: skip
CLASSES, SIZE = 6, 10
"""Of videos that are made up: classes, and features of a scene or an act."""
LOUD = np.array([7.0, 4.5])
"""How far from 0 the centers of scenes, and of acts, are."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  dataset: str = option('videos', 'videos, made up, or cifar10_small')
  noise: str = option('cifar10n_worse', 'of cifar10_small: weak labels')
  examples: int = option(3000, 'of videos: weakly labeled rows')
  few: int = option(8, 'clean rows of each class')
  keep: int = option(18, 'spl_frequent: how many pairs')
  width: int = option(32, 'of the hidden layer of mlp')
  standardize: bool = option(False, 'channels to mean 0 and deviation 1')
  epochs: int = option(25, 'on weak labels')
  teacher_epochs: int = option(100, 'of the teacher, on clean rows')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.003, 'of Adam')
  seeds: int = option(4, 'runs, each with clean rows of its own')
  out: str = option('results/sub_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two methods')


class Task(NamedTuple):
  """The rows of all runs.

  Attributes:
    num_classes: c.
    x: [runs, n, ...].
    weak: [runs, n] int.
    truth: [runs, n] int, for the report alone.
    few_x: [runs, m, ...], clean rows.
    few: [runs, m] int.
    test_x: [runs, t, ...].
    test: [runs, t] int.
  """

  num_classes: int
  x: np.ndarray
  weak: np.ndarray
  truth: np.ndarray
  few_x: np.ndarray
  few: np.ndarray
  test_x: np.ndarray
  test: np.ndarray


def main(config: Config) -> None:
  """Weak labels -> teacher -> labels of each method -> features and probes."""
  if config.smoke:
    chosen = config.methods != METHODS
    few = config.methods if chosen else ('weak', 'spl')
    config = dataclasses.replace(
      config, methods=few, seeds=2, epochs=2, teacher_epochs=2, examples=200
    )
  with options():
    check_options(config)
    task = videos(config) if config.dataset == 'videos' else images(config)
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  guessed = teach(config, task)
  for name, right in (('weak labels', task.weak), ('guesses', guessed)):
    print(f'{report.mean_sd((right == task.truth).mean(1))}% of {name} right')
  comparison = Comparison(
    config.out,
    script.about('sub_labels', config),
    score='accuracy',
    chosen_by=None,
    heads=('linear probe', ''),
    show={
      'used': ('rows used', report.mean_sd),
      'nearest mean': ('nearest mean', report.mean_sd),
    },
  )
  report.put_plot(
    config.out,
    'nearest_mean.png',
    group=comparison.group,
    column='test_nearest_mean',
    title=f'{config.dataset}, runs: {config.seeds}',
    ylabel='accuracy of the nearest mean',
  )
  used: dict[str, np.ndarray] = {}

  def run_of(name: str) -> Fit:
    labels, count = labels_of(config, name, task, guessed)
    used[name] = (labels >= 0).mean(1)
    return pretrain(config, name, task, labels, count)

  def done(name: str, one: Trained) -> Trained:
    found = {'used': used[name], 'nearest mean': one.last('test_nearest_mean')}
    return record(comparison, name, one.also(found))

  compare(comparison, train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check_name('dataset', config.dataset, ('videos', 'cifar10_small'))
  names = 'examples few keep width epochs teacher_epochs batch_size'
  for name in names.split():
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')


# --- data ---------------------------------------------------------------------


def videos(config: Config) -> Task:
  """Scenes and acts, normal around a center for each class."""

  def one(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = np.linalg.qr(rng.normal(size=(2, SIZE, CLASSES)))[0].mT
    centers = LOUD[:, None, None] * drawn  # at right angles

    def film(scene: np.ndarray, act: np.ndarray) -> np.ndarray:
      middle = np.concatenate([centers[0, scene], centers[1, act]], axis=1)
      noisy = middle + rng.normal(size=middle.shape)
      return noisy.astype(np.float32)

    def mostly(labels: np.ndarray, share: float) -> np.ndarray:
      other = rng.integers(0, CLASSES, len(labels))
      return np.where(rng.random(len(labels)) < share, labels, other)

    def clean(n: int) -> tuple[np.ndarray, np.ndarray]:
      act = np.arange(n) % CLASSES
      return film(rng.integers(0, CLASSES, n), act), act

    weak = rng.integers(0, CLASSES, config.examples)
    act = mostly(weak, 0.4)
    x = film(mostly(weak, 0.9), act)
    return [x, weak, act, *clean(config.few * CLASSES), *clean(1200)]

  runs = [one(seed) for seed in range(config.seeds)]
  return Task(CLASSES, *map(np.stack, zip(*runs, strict=True)))


def images(config: Config) -> Task:
  """Images with labels that people gave them, some of whose are known."""
  dataset = script.read(config)
  folder = config.data_dir or None
  found = data.noisy(
    jax.random.key(0), dataset, config.noise, 0.0, data_dir=folder
  )
  x = data.published_order(dataset).x
  weak, truth = np.asarray(found.draw.labels), found.clean
  test = dataset.test

  def one(seed: int) -> list[np.ndarray]:
    key = jax.random.fold_in(jax.random.key(1), seed)
    order = np.asarray(jax.random.permutation(key, len(x)))
    rows = script.per_class(truth, config.few, order)
    return [x, weak, truth, x[rows], truth[rows], test.x, test.labels]

  runs = [one(seed) for seed in range(config.seeds)]
  arrays = map(np.stack, zip(*runs, strict=True))
  return Task(dataset.num_classes, *arrays)


# --- networks -----------------------------------------------------------------


def network(config: Config, num_classes: int, x: np.ndarray) -> Model:
  """The network of the options, for inputs such as x [runs, n, ...]."""
  width = (config.width,)
  whiten = config.standardize
  return script.network(
    config.net, num_classes, x[0], hidden=width, standardize=whiten
  )


def keys_of(config: Config, seed: int) -> Array:
  """A key for each run."""
  return jax.random.split(jax.random.key(seed), config.seeds)


def teach(config: Config, task: Task) -> np.ndarray:
  """What a teacher guesses [runs, n], who learned the few clean rows."""
  model = network(config, task.num_classes, task.x)
  tx = script.optimizer('adam', config.learning_rate)
  method = supervised(losses.ce, model, tx)
  states = fit_many(
    method,
    {'x': PerRun(task.few_x), 'labels': PerRun(task.few)},
    keys_of(config, 0),
    epochs=config.teacher_epochs,
    batch_size=min(config.batch_size, task.few.shape[1]),
    label='teacher',
  ).state
  return each_run(
    lambda state, x: method.predict(state, x).logits.argmax(1), states, task.x
  )


def each_run(
  say: Callable[[State, Array], Array], states: State, x: np.ndarray
) -> np.ndarray:
  """What the network of each run says of its rows [runs, n, ...]."""
  say, found = jax.jit(say), []
  for r, own in enumerate(x):
    state = jax.tree.map(lambda leaf, r=r: leaf[r], states)
    parts = [say(state, batch['x']) for batch in padded_batches({'x': own})]
    found.append(np.concatenate(parts)[: len(own)])
  return np.stack(found)


def pretrain(
  config: Config, name: str, task: Task, labels: np.ndarray, count: int
) -> Fit:
  """Trained on labels [runs, n], -1 where left out, and read by a probe."""
  model = network(config, count, task.x)
  rate = 0.0 if name == 'untrained' else config.learning_rate
  method = supervised(losses.ce, model, script.optimizer('adam', rate))
  both = np.concatenate([task.few_x, task.test_x], axis=1)
  known = np.concatenate([task.few, task.test], axis=1)
  first = np.arange(both.shape[1]) < task.few.shape[1]
  fit = fit_many(
    method,
    {
      'x': PerRun(task.x),
      'labels': PerRun(np.maximum(labels, 0).astype(np.int32)),
      'weight': PerRun((labels >= 0).astype(np.float32)),
    },
    keys_of(config, 1),
    epochs=1 if name == 'untrained' else config.epochs,
    batch_size=config.batch_size,
    held_out={
      'test': {'x': PerRun(both), 'truth': PerRun(known), 'few': first}
    },
    scores={'test': nearest_mean(task.num_classes)},
    label=name,
  )
  features = each_run(
    lambda state, x: method.predict(state, x).features, fit.state, both
  )
  accuracy = [
    *map(probe, features[:, first], task.few, features[:, ~first], task.test)
  ]
  history = {**fit.history, 'accuracy': np.array(accuracy, np.float32)[:, None]}
  return fit._replace(history=history)


def nearest_mean(num_classes: int) -> Score:
  """The accuracy of the class means of the few rows, on the others."""

  def collect(outputs: Outputs, batch: Batch) -> Array:
    del batch
    return outputs.features

  def reduce(rows: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    few, truth = arrays['few'], arrays['truth']
    means = class_means(rows, truth, num_classes, weights=few)
    right = nearest_prototype(rows, means).labels == truth
    return {'nearest_mean': (right & ~few).sum() / (~few).sum()}

  return Score(collect, reduce)


def probe(
  features: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray
) -> float:
  """The accuracy of logistic regression on features of few rows."""
  from sklearn.linear_model import LogisticRegression  # slow to import

  return (
    LogisticRegression(max_iter=1000).fit(features, labels).score(test, truth)
  )


# --- labels -------------------------------------------------------------------


def labels_of(
  config: Config, name: str, task: Task, guessed: np.ndarray
) -> tuple[np.ndarray, int]:
  """Labels [runs, n], -1 for rows that are left out, and how many there are."""
  c, weak = task.num_classes, task.weak
  if name in ('weak', 'untrained'):
    return weak, c
  if name == 'teacher':
    return guessed, c
  if name == 'filtered':
    return np.where(weak == guessed, weak, -1), c
  kinds = {'spl': ('all', c * c), 'spl_agree': ('agree', 2 * c)}
  kind, count = kinds.get(name, ('frequent', config.keep))
  keep = config.keep if kind == 'frequent' else None
  pairs = zip(weak, guessed, strict=True)
  found = [pseudo.sub_labels(*pair, c, kind=kind, keep=keep) for pair in pairs]
  return np.stack(found), count


if __name__ == '__main__':
  run(main, Config, __doc__)
