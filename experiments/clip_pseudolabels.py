"""Frozen features and a zero-shot classifier: guesses in rounds, by class.

Of rows [n, d] and a vector for each class, such as CLIP gives of images and of
the names of classes (Menghini et al., NeurIPS 2023, arXiv 2306.01669):

  zero_shot    the class whose vector has the largest cosine
  labels       a learner of the labeled rows alone (with --labels)
  all_guesses  of the zero-shot guesses of all rows
  fpl          of the 16 rows that are most probably of each class
  ifpl         the same in 10 rounds, each of which guesses anew
  grip         the same with more of each class in each round, at last all

  python experiments/clip_pseudolabels.py                # prototypes of digits
  python experiments/clip_pseudolabels.py --learner logistic
  python experiments/clip_pseudolabels.py --task mnist --data-dir DIR
  python experiments/clip_pseudolabels.py --task mnist --data-dir DIR --labels 2
  python experiments/clip_pseudolabels.py --features FILE.npz --scale 100

The task `prototypes`: scikit-learn's digits, and the mean of each class,
spoiled by normal noise. `mnist`: a network that has learned MNIST, made 8x8,
reads scikit-learn's digits; its last layer has the vectors. FILE has `x` [n, d]
and `vectors` [c, d], and `labels` [n] where they are known, -1 elsewhere.

The learner begins with the vectors and learns them (`methods.fit_vectors`,
where the paper learns a prompt), or is scikit-learn's logistic regression,
which begins with nothing. No row is kept apart: what is scored are the rows
without a label, by labels that serve the report alone. Out come a table,
`results.jsonl`, curves over the rounds, and of FILE `guesses.npz`: for each
method `probs` [n, c], and `labels` [n] as the last round guessed them.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike
import numpy as np

from jnl import data, losses, methods, pseudo
from jnl.base import Array, check, check_name
from jnl.methods import Learner
from jnl.steps import supervised
from jnl.train import (
  Comparison,
  Fit,
  Trained,
  compare,
  fit_many,
  option,
  options,
  record,
  report,
  run,
  script,
  train_each,
)

METHODS = ('zero_shot', 'labels', 'all_guesses', 'fpl', 'ifpl', 'grip')
LEARNERS = ('vectors', 'logistic')
WIDTH = 128
"""Of the layer of the network that has learned MNIST."""


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  task: str = option('prototypes', 'prototypes or mnist')
  features: str = option('', 'a file of features, instead of a task')
  data_dir: str = option('', 'folder of local files, of mnist')
  examples: int = option(10000, 'of mnist, that the network learns; 0 is all')
  epochs: int = option(10, 'for which it does')
  noise: float = option(0.22, 'deviation of the noise of prototypes')
  labels: int = option(0, 'labeled rows of each class')
  k: int = option(16, 'fpl and ifpl: guesses of each class')
  rounds: int = option(10, 'of ifpl and grip')
  learner: str = option('vectors', 'vectors or logistic')
  scale: float = option(20.0, 'of cosines; 100 is that of CLIP')
  learning_rate: float = option(16.0, 'of vectors, see methods.fit_vectors')
  steps: int = option(200, 'of vectors')
  seeds: int = option(4, 'runs, each with noise, network and labels of its own')
  out: str = option('results/clip_pseudolabels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 rounds, two methods')


class Task(NamedTuple):
  """Frozen features, and what is known of them.

  Attributes:
    x: [n, d].
    vectors: [c, d].
    truth: [n] int, -1 where it is not known.
    given: [n] int, the labels that a learner may see, -1 elsewhere.
    probs: [n, c], zero-shot.
  """

  x: np.ndarray
  vectors: np.ndarray
  truth: np.ndarray
  given: np.ndarray
  probs: np.ndarray

  @property
  def scored(self) -> np.ndarray:
    """The rows [n] bool that the report is of."""
    return (self.truth >= 0) & (self.given < 0)


class Outcome(NamedTuple):
  """What a method made of a task.

  Attributes:
    probs: predictions [n, c] after each round.
    labels: [n] int, given and guessed in the last one; -1 where there is none.
  """

  probs: list[np.ndarray]
  labels: np.ndarray


def main(config: Config) -> None:
  """Features and vectors -> guesses in rounds -> table and curves."""
  if config.smoke:
    few = METHODS[:1] + METHODS[-1:] if config.methods == METHODS else None
    config = dataclasses.replace(
      config, methods=few or config.methods, seeds=2, rounds=2, steps=10
    )
  with options():
    check_options(config)
    tasks = read(config)
    out = report.own_folder(config.out)
  names = [name for name in config.methods if name != 'labels' or config.labels]
  n, d = tasks[0].x.shape
  print(f'{n} rows of {d} features, {tasks[0].probs.shape[1]} classes')
  comparison = Comparison(
    out,
    about_of(config),
    score='accuracy',
    chosen_by=None,
    heads=('accuracy', ''),
  )
  known = bool(tasks[0].scored.any())
  title = f'{about_of(config)["dataset"]}, runs: {len(tasks)}'
  if known:
    draw_plots(comparison, title)
  outcomes: dict[str, list[Outcome]] = {}

  def run_of(name: str) -> Fit:
    outcomes[name] = [learn(config, name, task) for task in tasks]
    pairs = zip(tasks, outcomes[name], strict=True)
    rows = [history_of(config, *pair) for pair in pairs]
    stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    # No state is left: each round had its own learner.
    return Fit((), stacked)  # type: ignore[arg-type]

  def done(name: str, one: Trained) -> Trained:
    if not known:
      return one
    right = np.array([*map(right_guesses, tasks, outcomes[name])])
    found = {'worst class': one.last('worst'), 'right guesses': right}
    return record(comparison, name, one.also(found))

  trained = train_each(names, run_of, done)
  if known:
    compare(comparison, trained)
    report.redraw(out)
  if config.features:
    save_guesses(f'{out}/guesses.npz', outcomes)
  print(f'\nwhat was found is in {out}')


def about_of(config: Config) -> dict[str, Any]:
  """What all rows of the results share."""
  setting = dataclasses.asdict(config)
  for name in ('methods', 'task', 'features', 'data_dir', 'seeds', 'out'):
    del setting[name]
  del setting['smoke']
  return {
    'experiment': 'clip_pseudolabels',
    'dataset': config.features or config.task,
    'setting': setting,
    'metric': 'accuracy of rows without a label',
  }


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check(config.methods, 'methods must name at least one')
  for name in config.methods:
    check_name('method', name, METHODS)
  check_name('task', config.task, ('prototypes', 'mnist'))
  check_name('learner', config.learner, LEARNERS)
  for name in ('k', 'rounds', 'steps', 'seeds', 'epochs'):
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')
  for name in ('labels', 'noise', 'examples'):
    value = getattr(config, name)
    check(value >= 0, f'{name} must not be negative, got {value}')


def draw_plots(comparison: Comparison, title: str) -> None:
  """Says what is to be drawn."""
  for column, what in (('accuracy', ''), ('worst', ' of the worst class')):
    report.put_plot(
      comparison.out,
      f'{column}.png',
      group=comparison.group,
      column=column,
      title=title,
      ylabel=f'accuracy{what}',
      xlabel='round',
    )


# --- tasks --------------------------------------------------------------------


def read(config: Config) -> list[Task]:
  """The task of each run."""
  if config.features:
    x, vectors, truth = read_file(config.features)
    runs = [(x, vectors)] * (config.seeds if config.labels else 1)
  else:
    digits = data.load('digits')
    parts = digits.train, digits.validation, digits.test
    x, truth = (np.concatenate([part[i] for part in parts]) for i in range(2))
    if config.task == 'mnist':
      runs = read_by_network(config, x)
    else:
      flat = x.reshape(len(x), -1)
      runs = [
        (flat, prototypes(flat, truth, config.noise, seed))
        for seed in range(config.seeds)
      ]
  return [make(config, *run, truth, seed) for seed, run in enumerate(runs)]


def make(
  config: Config,
  x: np.ndarray,
  vectors: np.ndarray,
  truth: np.ndarray,
  seed: int,
) -> Task:
  """What is given, drawn, and guessed at first."""
  given = np.full(len(x), -1, np.int32)
  if config.labels:
    key = jax.random.fold_in(jax.random.key(1), seed)
    order = np.asarray(jax.random.permutation(key, len(x)))
    rows = script.per_class(truth, config.labels, order) & (truth >= 0)
    given[rows] = truth[rows]
    wanted = config.labels * len(vectors)
    check(
      rows.sum() == wanted,
      f'labels: some class has fewer than {config.labels} known rows',
    )
  probs = zero_shot(vectors, x, config.scale)
  return Task(x, vectors, truth, given, np.asarray(probs))


@jax.jit
def zero_shot(vectors: Array, x: Array, scale: Array) -> Array:
  """What the vectors say [n, c] before they have learned anything."""
  model = methods.class_vectors(vectors, scale)
  state = model.init(jax.random.key(0))
  return jax.nn.softmax(model.apply(*state, x, None, False)[0].logits)


def read_file(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Features, vectors, and labels as far as they are known, of a file."""
  with np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
  for name in ('x', 'vectors'):
    check(name in arrays, f'{path} lacks {name}, it has {sorted(arrays)}')
  x, vectors = arrays['x'], arrays['vectors']
  check(
    x.ndim == vectors.ndim == 2 and x.shape[1] == vectors.shape[1],
    f'{path}: x must be [n, d] and vectors [c, d], got {x.shape} and '
    f'{vectors.shape}',
  )
  check(np.isfinite(x).all(), f'{path}: x must be finite')
  truth = np.asarray(arrays.get('labels', np.full(len(x), -1)))
  check(
    truth.shape == x.shape[:1]
    and np.issubdtype(truth.dtype, np.integer)
    and -1 <= truth.min() <= truth.max() < len(vectors),
    f'{path}: labels must be [n] int below {len(vectors)}, or -1',
  )
  return x.astype(np.float32), vectors.astype(np.float32), truth.astype(int)


def prototypes(
  x: np.ndarray, labels: np.ndarray, noise: float, seed: int
) -> np.ndarray:
  """The mean of each class, spoiled."""
  means = np.stack([x[labels == k].mean(0) for k in range(10)])
  rng = np.random.default_rng(seed)
  spoiled = means + noise * rng.normal(size=means.shape)
  return spoiled.astype(np.float32)


def read_by_network(
  config: Config, x: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Features of digits, and the last layer, of networks that learned MNIST."""
  mnist = data.load('mnist', data_dir=config.data_dir or None)
  mnist = script.first(mnist, config.examples)
  model = script.network('mlp', 10, x, hidden=(WIDTH,))
  method = supervised(losses.ce, model, script.optimizer('adam', 1e-3))
  states = fit_many(
    method,
    {'x': as_digits(mnist.train.x), 'labels': mnist.train.labels},
    jax.random.split(jax.random.key(0), config.seeds),
    epochs=config.epochs,
    batch_size=100,
    label='mnist',
  ).state
  read = jax.jit(jax.vmap(lambda state: method.predict(state, x).features))
  last = states.params['Dense_1']['kernel']
  return [*zip(*jax.device_get((read(states), last.mT)), strict=True)]


def as_digits(x: np.ndarray) -> np.ndarray:
  """MNIST [n, 28, 28, 1] as scikit-learn's digits: its middle 20x20, made 8x8.

  A pixel is the mean of 2.5 x 2.5 of them.
  """
  edges = np.linspace(4, 24, 9)
  low, high = edges[:-1, None], edges[1:, None]
  place = np.arange(28)
  share = np.clip(np.minimum(high, place + 1) - np.maximum(low, place), 0, 1)
  share = np.float32(share / 2.5)  # [8, 28]
  return np.einsum('ia,nabc,jb->nijc', share, x, share)


# --- methods ------------------------------------------------------------------


def learn(config: Config, name: str, task: Task) -> Outcome:
  """The rounds of a method."""
  if name == 'zero_shot':
    labels = np.where(task.given < 0, task.probs.argmax(1), task.given)
    return Outcome([task.probs], labels)
  predicted: list[np.ndarray] = []
  fit = watched(learner(config, task.vectors), task.x, predicted)
  x, probs, given = task.x, task.probs, task.given
  if name == 'labels':
    rows = given >= 0
    fit(x[rows], given[rows], np.ones(rows.sum()))
    return Outcome(predicted, given)
  if name == 'all_guesses':
    rule = pseudo.everything()
    found = methods.self_train(
      fit, x, given, rule, rounds=1, keep=False, start=probs
    )
  elif name == 'fpl':
    found = methods.fpl(fit, x, probs, labels=given, k=config.k)
  elif name == 'ifpl':
    found = methods.ifpl(
      fit, x, probs, labels=given, k=config.k, rounds=config.rounds
    )
  else:
    found = methods.grip(fit, x, probs, labels=given, rounds=config.rounds)
  return Outcome(predicted, found.labels)


def learner(config: Config, vectors: np.ndarray) -> Learner:
  """What is fitted in each round, from its beginning."""
  if config.learner == 'logistic':
    return logistic(len(vectors))
  return methods.fit_vectors(
    vectors,
    scale=config.scale,
    learning_rate=config.learning_rate,
    steps=config.steps,
  )


def logistic(num_classes: int) -> Learner:
  """Logistic regression of scikit-learn, with a column for every class."""
  from sklearn.linear_model import LogisticRegression  # slow to import

  def fit(
    x: Any, labels: np.ndarray, weights: np.ndarray
  ) -> Callable[[Any], ArrayLike]:
    model = LogisticRegression(max_iter=1000).fit(x, labels, weights)

    def predict(x: Any) -> np.ndarray:
      probs = np.zeros((len(x), num_classes))
      probs[:, model.classes_] = model.predict_proba(x)
      return probs

    return predict

  return fit


def watched(
  fit: Learner, x: np.ndarray, predicted: list[np.ndarray]
) -> Learner:
  """The same learner; what each one predicts is put down."""

  def fit_and_tell(*rows: Any) -> Callable[[Any], ArrayLike]:
    predict = fit(*rows)
    predicted.append(np.asarray(predict(x)))
    return predict

  return fit_and_tell


# --- what comes out -----------------------------------------------------------


def history_of(
  config: Config, task: Task, outcome: Outcome
) -> dict[str, np.ndarray]:
  """Accuracy [rounds], and that of the worst class; the last one stays."""
  if not task.scored.any():
    return {}
  truth = task.truth[task.scored]
  rows = []
  for probs in outcome.probs:
    right = probs[task.scored].argmax(1) == truth
    classes = np.unique(truth)
    rows.append((right.mean(), min(right[truth == k].mean() for k in classes)))
  rows += rows[-1:] * (config.rounds - len(rows))
  accuracy, worst = np.array(rows, np.float32).T
  return {'accuracy': accuracy, 'worst': worst}


def right_guesses(task: Task, outcome: Outcome) -> float:
  """The share of guesses of the last round that are right; NaN of none."""
  rows = task.scored & (outcome.labels >= 0)
  right = outcome.labels[rows] == task.truth[rows]
  return float(right.mean()) if len(right) else float('nan')


def save_guesses(path: str, outcomes: dict[str, list[Outcome]]) -> None:
  """Writes what each method predicts of a file, in the first run."""
  arrays = {}
  for name, runs in outcomes.items():
    arrays[f'{name}/probs'] = runs[0].probs[-1]
    arrays[f'{name}/labels'] = runs[0].labels
  with report.replacing(path) as partial:
    # Its stubs take the names of arrays for options.
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]


if __name__ == '__main__':
  run(main, Config, __doc__)
