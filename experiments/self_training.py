"""Self-training in rounds: which guesses are learned next, by rule.

A classifier learns a few labels, guesses the other rows, and learns anew what
counts of its guesses; labels have a mean in the loss, and guesses have one. The
rules of `jnl.pseudo`, and what they are compared with:

  supervised      nothing is guessed
  fixed_95        guesses above .95 are added, for good
  fixed_80        above .8
  most_confident  the 100 surest of each round are added
  curriculum      the surest fifth, two fifths, ..., all, guessed anew
                  (Cascante-Bonilla et al., 2021)
  alike           the same, but each guess counts as much as a label
  by_class        a share of the guesses of each class, anew (Zou et al., 2018)
  transductive    above thresholds that bound the errors (Feofanov et al., 2019)
  freematch       above thresholds that follow how sure it is, anew
  softmatch       all, the unsure ones less, anew
  noisy_student   a network, then three larger ones with dropout and strong
                  views, which learn copies of guesses, as many of each class
                  (Xie et al., 2020)
  student_alone   such a larger one that learns the labels alone

  python experiments/self_training.py                # digits, 3 of a class
  python experiments/self_training.py --methods noisy_student --labels 20

All but the last two are multinomial logistic regressions, by scikit-learn, on
principal components of the training rows. Out come a table, `results.jsonl` and
plots by round: accuracy (round 0 has learned the labels alone), and the share
of guesses that are right (`correct.png`), which clean labels say, for the
report alone. The column `least gain` is that of the worst run over its own
round 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jnl import losses, nets, pseudo
from jnl.base import Method, PyTree, check
from jnl.data import Dataset, augment
from jnl.methods import Learner, self_train
from jnl.steps import supervised
from jnl.train import (
  Comparison,
  Fit,
  Trained,
  compare,
  fit,
  option,
  options,
  record,
  report,
  run,
  script,
  train_each,
)

METHODS = (
  'supervised', 'fixed_95', 'fixed_80', 'most_confident', 'curriculum', 'alike',
  'by_class', 'transductive', 'freematch', 'softmatch', 'noisy_student',
  'student_alone',
)  # fmt: skip
NETWORKS = 'noisy_student', 'student_alone'
STUDENTS, TEACHER, STUDENT, DROPOUT = 3, (128,), (512, 512), 0.5
"""How many students, hidden layers of both, and the dropout of students."""
WEAK, STRONG = script.near, script.NEAR_VIEWS[1]
"""What teacher and students see."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  labels: int = option(30, 'labeled rows, as many of each class')
  examples: int = option(0, 'first rows of the training set; 0 is all')
  components: int = option(20, 'principal components')
  rounds: int = option(12, 'at most')
  epochs: int = option(60, 'of each network, of n copies')
  batch_size: int = option(100, 'copies in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  seeds: int = option(5, 'runs, each with labeled rows of its own')
  out: str = option('results/self_training', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 runs, 2 rounds, two methods')


class Policy(NamedTuple):
  """How rounds go.

  Attributes:
    rule: which guesses count.
    keep: whether they count for good.
    rounds: how many there are.
  """

  rule: pseudo.Rule
  keep: bool
  rounds: int


class Rounds(NamedTuple):
  """What is known of a run.

  Attributes:
    accuracy: [rounds + 1], of the test set, by learner.
    correct: [rounds], which share is right of the guesses that count.
    used: the share of rows that are learned at last.
    rounds: how many there were.
  """

  accuracy: list[float]
  correct: list[float]
  used: float
  rounds: int


def main(config: Config) -> None:
  """Data -> few labels -> rounds of each rule -> a table and curves."""
  if config.smoke:
    chosen = config.methods != METHODS
    few = config.methods if chosen else ('supervised', 'curriculum')
    config = dataclasses.replace(
      config, methods=few, seeds=2, rounds=2, epochs=1
    )
  with options():
    check_options(config)
    dataset = script.first(script.read(config), config.examples)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    labels = [few_labels(config, dataset, key) for key in keys]
    features = components(config, dataset)
    check(
      config.batch_size <= len(labels[0]),
      f'batch_size must be at most {len(labels[0])}, got {config.batch_size}',
    )
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  print(f'{config.labels} labels beside {len(labels[0])} examples')
  comparison = Comparison(
    config.out,
    script.about('self_training', config),
    chosen_by=None,
    heads=('last round', ''),
    show={'gain': ('least gain', lambda v: f'{v.min():+.3f}')},
  )
  draw_plots(config, comparison)
  known: dict[str, dict[str, np.ndarray]] = {}

  def run_of(name: str) -> Fit:
    policy = policy_of(name, config, dataset)
    found = []
    for key, own in zip(keys, labels, strict=True):
      if name in NETWORKS:
        x = dataset.train.x, dataset.test.x
        learner = networks(config, dataset, key, name == 'noisy_student')
      else:
        x, learner = features, functools.partial(logistic, name != 'alike')
      found.append(one_run(policy, learner, x, dataset, own))
    known[name] = columns(found)
    say(name, found)
    # No state is left: each round had its own learner.
    return Fit(None, curves(config, found))  # type: ignore[arg-type]

  def done(name: str, one: Trained) -> Trained:
    return record(comparison, name, one.also(known[name]))

  compare(comparison, train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  for name in ('labels', 'components', 'rounds', 'epochs', 'batch_size'):
    size = getattr(config, name)
    check(size >= 1, f'{name} must be at least 1, got {size}')


def draw_plots(config: Config, comparison: Comparison) -> None:
  """Says what is to be drawn."""
  title = f'{config.dataset}, {config.labels} labels, seeds: {config.seeds}'
  every = list(range(config.rounds + 1))
  what = 'guesses that are right, of those that count'
  plots = {
    'accuracy.png': (comparison.score, 'test accuracy', every),
    'correct.png': ('correct', what, every[1:]),
  }
  for plot, (column, ylabel, x) in plots.items():
    report.put_plot(
      config.out,
      plot,
      group=comparison.group,
      column=column,
      title=title,
      ylabel=ylabel,
      x=x,
      xlabel='round',
    )


# --- rounds ------------------------------------------------------------------


def one_run(
  policy: Policy,
  learner: Learner,
  x: tuple[Any, Any],
  dataset: Dataset,
  labels: np.ndarray,
) -> Rounds:
  """Self-training that is watched: by the test set and by clean labels."""
  truth, test = dataset.train.labels, dataset.test.labels
  accuracy: list[float] = []
  correct: list[float] = []
  guessed = np.full(len(labels), -1)

  def fit(x_own: Any, own: np.ndarray, weights: np.ndarray) -> Any:
    predict = learner(x_own, own, weights)
    guess = np.asarray(predict(x[1])).argmax(1)
    accuracy.append(float((guess == test).mean()))
    return predict

  def apply(memory: PyTree, seen: pseudo.Seen) -> tuple[PyTree, jax.Array]:
    memory, weights = policy.rule.apply(memory, seen)
    counts = np.asarray(weights) > 0
    if not policy.keep:
      guessed[:] = -1
    guessed[counts] = np.asarray(seen.probs).argmax(1)[counts]
    there = guessed >= 0
    right = (guessed == truth)[there]
    correct.append(float(right.mean()) if len(right) else np.nan)
    return memory, weights

  found = self_train(
    fit,
    x[0],
    labels,
    pseudo.Rule(policy.rule.init, apply),
    rounds=policy.rounds,
    keep=policy.keep,
  )
  used = float((found.labels >= 0).mean())
  return Rounds(accuracy, correct, used, found.rounds)


def policy_of(name: str, config: Config, dataset: Dataset) -> Policy:
  """What a method does in its rounds."""
  n, c, most = len(dataset.train.labels), dataset.num_classes, config.rounds
  alone = Policy(pseudo.fixed(1.0, strict=True), True, 1)
  fifths = Policy(pseudo.curriculum(0.2), False, min(5, most))
  policies = {
    'supervised': alone,
    'student_alone': alone,
    'fixed_95': Policy(pseudo.fixed(0.95, strict=True), True, most),
    'fixed_80': Policy(pseudo.fixed(0.8, strict=True), True, most),
    'most_confident': Policy(pseudo.most_confident(100), True, most),
    'curriculum': fifths,
    'alike': fifths,
    'by_class': Policy(pseudo.share_per_class(), False, most),
    'transductive': Policy(pseudo.transductive(), True, most),
    'freematch': Policy(pseudo.freematch(c, momentum=0.5), False, most),
    'softmatch': Policy(pseudo.softmatch(c, momentum=0.5), False, most),
    'noisy_student': Policy(copies(n // c), False, min(STUDENTS, most)),
  }
  policy = policies[name]
  apply = policy.rule.apply
  # Compiled once for all rounds and runs.
  return policy._replace(rule=policy.rule._replace(apply=jax.jit(apply)))


def copies(per_class: int) -> pseudo.Rule:
  """As many copies of each class, of guesses that are sure enough."""

  def apply(memory: PyTree, seen: pseudo.Seen) -> tuple[PyTree, jax.Array]:
    key = jax.random.fold_in(jax.random.key(1), seen.step)
    number = pseudo.balanced_copies(key, seen.probs, per_class)
    return memory, number * seen.unlabeled

  return pseudo.Rule(tuple, apply)


def few_labels(config: Config, dataset: Dataset, key: jax.Array) -> np.ndarray:
  """Labels [n] of a few rows of each class, and -1."""
  train, c = dataset.train, dataset.num_classes
  each = script.each_class(config.labels, c)
  own = script.few_rows(train, each, c, key)
  return np.where(own, train.labels, -1)


def say(name: str, found: list[Rounds]) -> None:
  """Prints the mean accuracy of the learner of each round."""
  most = max(len(one.accuracy) for one in found)
  means = padded([one.accuracy for one in found], most).mean(0)
  print(f'{name} by round: {" ".join(f"{100 * a:.1f}" for a in means)}')


def columns(found: list[Rounds]) -> dict[str, np.ndarray]:
  """What is known of the runs, [runs] each."""
  known = {
    'gain': [one.accuracy[-1] - one.accuracy[0] for one in found],
    'used': [one.used for one in found],
    'rounds': [float(one.rounds) for one in found],
    'correct': [one.correct[-1] for one in found],
  }
  finite = np.isfinite(known['correct']).all()
  return {k: np.array(v) for k, v in known.items() if k != 'correct' or finite}


def curves(config: Config, found: list[Rounds]) -> dict[str, np.ndarray]:
  """Curves [runs, rounds], which stay where they were when a run had ended."""

  r = config.rounds
  history = {
    'test_accuracy': padded([one.accuracy for one in found], r + 1),
    'correct': padded([one.correct for one in found], r),
  }
  if not np.isfinite(history['correct']).any():
    del history['correct']
  return history


def padded(rows: list[list[float]], size: int) -> np.ndarray:
  """Rows of so many values: the last one of each stays."""
  return np.stack([np.pad(a, (0, size - len(a)), mode='edge') for a in rows])


# --- learners ----------------------------------------------------------------


def components(
  config: Config, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
  """Principal components of training and test rows, of the training rows."""
  from sklearn.decomposition import PCA  # slow to import

  flat = [
    part.x.reshape(len(part.x), -1) for part in (dataset.train, dataset.test)
  ]
  most = min(flat[0].shape)
  check(
    config.components <= most,
    f'components must be at most {most}, got {config.components}',
  )
  pca = PCA(config.components, random_state=0).fit(flat[0])
  train, test = map(pca.transform, flat)
  return train, test


def logistic(
  weighted: bool, x: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Any:
  """A multinomial logistic regression, as scikit-learn has it by default."""
  from sklearn.linear_model import LogisticRegression  # slow to import

  model = LogisticRegression(max_iter=1000)
  model.fit(x, labels, sample_weight=weights if weighted else None)
  return model.predict_proba


def networks(
  config: Config, dataset: Dataset, key: jax.Array, taught: bool
) -> Learner:
  """A teacher, if they are taught, and then larger students with noise."""
  x, c = dataset.train.x, dataset.num_classes
  n = len(x)
  teacher, student = (
    method_of(config, c, x.shape[1:], hidden, dropout)
    for hidden, dropout in ((TEACHER, 0.0), (STUDENT, DROPOUT))
  )
  keys = iter(jax.random.split(key, STUDENTS + 1))
  first = taught

  def learner(x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Any:
    nonlocal first
    (method, predict), view = (teacher, WEAK) if first else (student, STRONG)
    first, own = False, next(keys)
    # Rows as often as they weigh, so that each network sees as many.
    seed = int(jax.random.randint(own, (), 0, 2**31 - 1))
    rows = np.random.default_rng(seed).choice(
      len(labels), n, p=weights / weights.sum()
    )
    found = fit(
      method,
      {'x': x[rows], 'labels': labels[rows]},
      own,
      epochs=config.epochs,
      batch_size=config.batch_size,
      augment=augment.views(view),
      label='teacher' if view is WEAK else 'student',
    )
    return functools.partial(predict, found.state)

  return learner


@functools.cache
def method_of(
  config: Config,
  num_classes: int,
  shape: tuple[int, ...],
  hidden: tuple[int, ...],
  dropout: float,
) -> tuple[Method, Any]:
  """The training of a network, and its probabilities."""
  net = nets.MLP(num_classes, hidden, dropout=dropout)
  tx = script.optimizer('sgd', config.learning_rate, 5e-4)
  method = supervised(losses.ce, nets.from_linen(net, shape), tx)

  @jax.jit
  def predict(state: Any, x: jax.Array) -> jax.Array:
    return jax.nn.softmax(method.predict(state, x).logits)

  return method, predict


if __name__ == '__main__':
  run(main, Config, __doc__)
