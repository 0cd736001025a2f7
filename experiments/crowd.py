"""Labels of many people: one of all votes, and a classifier that learns it.

Annotators differ, and some take one class for another. What is made of their
votes, from Dawid and Skene (Applied Statistics 1979) to CROWDLAB (Goh et al.,
arXiv 2210.06812), and how well a network does that learns it:

  majority     the class with most votes; the shares of the votes
  one_coin     one accuracy for each annotator, by EM
  dawid_skene  a confusion matrix for each, by EM
  crowdlab     votes and a model, weighted by how often they are right
  truth        the true labels, as the ceiling

  python experiments/crowd.py                # digits, 8 made-up annotators
  python experiments/crowd.py --errors symmetric --accuracy .5,.7 --items 200
  python experiments/crowd.py --dataset simulated     # four classes, no images
  python experiments/crowd.py --dataset crowd_bluebird --data-dir DIR

The crowd is made up: of accuracies from one to the other of `--accuracy`, each
votes on a share of the items, `--present`. `systematic` errors are one wrong
class for each true one, one, two or three further on; `symmetric` errors are
any other class. A file of a crowd has `item`, `worker`, `answer` [m] and the
`truth` [items]; `simulated`, and these, have no inputs. So there is no
classifier, and CROWDLAB is told that all classes are as probable: what is left
of it is how it weighs annotators. With inputs its model is the network, trained
on the majority's labels, each fifth of the items without its own.

The network learns posteriors as they are, with `--hard` their likeliest class;
labels of the crowd for the validation rows pick an epoch.

Out come a table, `results.jsonl`, and where something is trained
`accuracy.png`.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jnl import aggregate, audit, losses, train
from jnl.base import Method, check, check_name
from jnl.data import Dataset, PerRun
from jnl.steps import supervised
from jnl.train import Comparison, Fit, Trained, option, report, script

METHODS = ('majority', 'one_coin', 'dawid_skene', 'crowdlab', 'truth')
ERRORS = ('systematic', 'symmetric')
SIMULATED, CLASSES, FOLDS = 'simulated', 4, 5


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, f'some of {", ".join(METHODS)}')
  dataset: str = option(
    'digits', f'digits, of TFDS, {SIMULATED}, or one in data-dir, crowds too'
  )
  errors: str = option(ERRORS[0], f'of a made-up crowd: {", ".join(ERRORS)}')
  annotators: int = option(8, 'in it')
  accuracy: tuple[float, ...] = option((0.4, 0.9), 'of the worst and the best')
  present: float = option(0.7, 'the share of the items that each votes on')
  items: int = option(1500, 'the first so many rows, and those of validation')
  hard: bool = option(False, 'labels are the likeliest class, nothing between')
  seeds: int = option(4, 'runs, each with votes of its own')
  epochs: int = option(20, 'passes over the items')
  batch_size: int = option(50, 'items in a step')
  learning_rate: float = option(1e-3, 'of Adam')
  out: str = option('results/crowd', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 runs, 2 epochs, 2 methods')


class Crowd(NamedTuple):
  """The votes of each run.

  Attributes:
    votes: [n, a] of each run, or `Triples`.
    truth: [runs, n] int.
    num_classes: c.
    voted: [runs, n] bool, which items have votes.
  """

  votes: list[Any]
  truth: np.ndarray
  num_classes: int
  voted: np.ndarray


class Labels(NamedTuple):
  """What a method makes of the votes of all runs.

  Attributes:
    soft: [runs, n, c], how probable each class is.
    hard: [runs, n] int, the likeliest class.
    known: [runs] by name: the share of hard labels that are right among items
      with votes, and whether the method collapsed.
  """

  soft: np.ndarray
  hard: np.ndarray
  known: dict[str, np.ndarray]


def main(config: Config) -> None:
  """Votes -> labels of each method -> a table, or classifiers and a table."""
  if config.smoke:
    chosen = config.methods != Config.methods
    few = config.methods if chosen else ('majority', 'dawid_skene')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  with train.options():
    check_options(config)
    dataset, crowd = read(config)
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  runs, n = crowd.truth.shape
  workers = aggregate.coverage(crowd.votes[0], num_classes=crowd.num_classes)
  print(f'{n} items, {crowd.num_classes} classes, {len(workers)} annotators')
  if dataset is None:
    tell(config, crowd, runs)
    return
  x, _ = items_of(config, dataset)
  model = script.network(config.net, crowd.num_classes, x)
  method = supervised(losses.ce, model, optax.adam(config.learning_rate))
  known: dict[str, dict[str, np.ndarray]] = {}
  comparison = Comparison(
    config.out,
    script.about('crowd', config),
    show={
      'labels': ('labels', report.mean_sd),
      'collapsed': ('collapsed', lambda v: f'{v.sum()} of {len(v)}'),
    },
  )
  title = f'{config.dataset}, {config.errors} errors, seeds: {config.seeds}'
  train.plot(comparison, title, 'test accuracy')

  def run_of(name: str) -> Fit:
    probs = functools.partial(model_of, config, method, x)
    labels = labels_of(name, crowd, probs)
    known[name] = labels.known
    with script.logging(config, name) as log:
      return fit(config, dataset, x, crowd, method, labels, log=log, label=name)

  def done(name: str, one: Trained) -> Trained:
    return train.record(comparison, name, one.also(known[name]))

  train.compare(comparison, train.train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check_name('errors', config.errors, ERRORS)
  worst_best = config.accuracy
  check(
    len(worst_best) == 2 and all(0 <= p <= 1 for p in worst_best),
    f'accuracy must be two numbers in [0, 1], got {worst_best}',
  )
  check(
    0 < config.present <= 1, f'present must lie in (0, 1], got {config.present}'
  )
  for name in ('annotators', 'items', 'epochs', 'batch_size'):
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')


# --- votes -------------------------------------------------------------------


def read(config: Config) -> tuple[Dataset | None, Crowd]:
  """A crowd, and the data set whose items it votes on, if there is one."""
  path = pathlib.Path(config.data_dir) / f'{config.dataset}.npz'
  if config.data_dir and path.exists():
    with np.load(path) as file:
      if {'item', 'worker', 'answer', 'truth'} <= set(file.files):
        return None, of_triples(dict(file))
  if config.dataset == SIMULATED:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (config.seeds, config.items))
    return None, made_up(config, truth, CLASSES)
  dataset = script.read(config)
  _, labels = items_of(config, dataset)
  truth = np.tile(labels, (config.seeds, 1))
  return dataset, made_up(config, truth, dataset.num_classes)


def items_of(config: Config, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """What is voted on, and its labels: so many rows, and those of validation."""
  (x, labels, _), validation = dataset.train, dataset.validation
  return (
    np.concatenate([x[: config.items], validation.x]),
    np.concatenate([labels[: config.items], validation.labels]),
  )


def of_triples(arrays: dict[str, np.ndarray]) -> Crowd:
  """A crowd of people, who voted once."""
  truth = arrays['truth'].astype(int)
  votes = aggregate.triples(
    *(arrays[name].astype(int) for name in ('item', 'worker', 'answer')),
    num_items=len(truth),
  )
  c = max(2, truth.max() + 1, arrays['answer'].max() + 1)
  voted = np.bincount(arrays['item'], minlength=len(truth)) > 0
  return Crowd([votes], truth[None], int(c), voted[None])


def made_up(config: Config, truth: np.ndarray, c: int) -> Crowd:
  """Annotators who are right so often, in each run anew."""
  a = config.annotators
  worst, best = config.accuracy
  right = np.linspace(worst, best, a)
  votes = []
  for r, labels in enumerate(truth):
    rng = np.random.default_rng(r)
    shape = len(labels), a
    further = rng.integers(1, c, shape)
    if config.errors == 'systematic':
      further = 1 + np.broadcast_to(np.arange(a) % min(3, c - 1), shape)
    wrong = (labels[:, None] + further) % c
    answers = np.where(rng.random(shape) < right, labels[:, None], wrong)
    there = rng.random(shape) < config.present
    votes.append(np.where(there, answers, -1))
  voted = np.any(np.stack(votes) >= 0, axis=2)
  return Crowd(votes, truth, c, np.asarray(voted))


# --- labels ------------------------------------------------------------------


def labels_of(
  name: str,
  crowd: Crowd,
  model: Callable[[Crowd, int], np.ndarray] | None = None,
) -> Labels:
  """What a method makes of the votes; `model` gives CROWDLAB probabilities."""
  c, shape = crowd.num_classes, crowd.truth.shape
  soft = np.full((*shape, c), 1 / c, np.float32)
  hard, collapsed = np.zeros(shape, int), np.zeros(len(soft), bool)
  for r, votes in enumerate(crowd.votes):
    if name == 'truth':
      soft[r] = np.eye(c)[crowd.truth[r]]
    elif name == 'majority':
      soft[r] = aggregate.vote_shares(votes, num_classes=c)
      hard[r] = aggregate.majority_vote(votes, num_classes=c)
      continue
    elif name == 'crowdlab':
      probs = np.full((shape[1], c), 1 / c) if not model else model(crowd, r)
      table = np.asarray(table_of(votes))
      soft[r] = audit.crowdlab(table, probs).posterior
    else:
      found = getattr(aggregate, name)(votes, num_classes=c)
      soft[r], collapsed[r] = found.posterior, found.collapsed
    hard[r] = soft[r].argmax(1)
  right = ((hard == crowd.truth) & crowd.voted).sum(1) / crowd.voted.sum(1)
  return Labels(soft, hard, {'labels': right, 'collapsed': collapsed})


def table_of(votes: Any) -> Any:
  """Votes [n, a], of triples too."""
  if isinstance(votes, aggregate.Triples):
    return aggregate.votes_of(votes)
  return votes


def model_of(
  config: Config, method: Method, x: np.ndarray, crowd: Crowd, run: int
) -> np.ndarray:
  """Probabilities of items by a network that has not seen their votes."""
  c, votes = crowd.num_classes, crowd.votes[run]
  labels = np.maximum(aggregate.majority_vote(votes, num_classes=c), 0)
  return train.out_of_fold(
    method,
    {'x': x, 'labels': labels, 'weight': crowd.voted[run] * 1.0},
    jax.random.key(run),
    folds=FOLDS,
    epochs=config.epochs,
    batch_size=config.batch_size,
    label='crowdlab',
  ).pred_probs


def tell(config: Config, crowd: Crowd, runs: int) -> None:
  """Without inputs: prints and writes how many labels are right."""
  about = script.about('crowd', config, 'label accuracy')
  lines, rows = [], []
  for name in config.methods:
    if name == 'truth':
      continue
    start = time.perf_counter()
    known = labels_of(name, crowd).known
    seconds = time.perf_counter() - start
    right, collapsed = known['labels'], known['collapsed']
    rows += report.result_rows(about, name, right, right, seconds, known)
    cell = f'{collapsed.sum()} of {runs}'
    lines.append([name, report.mean_sd(right), cell, f'{seconds:.1f}'])
  report.write_jsonl(pathlib.Path(config.out) / report.RESULTS, rows)
  print(
    '\n' + report.table(['method', 'labels', 'collapsed', 'seconds'], lines)
  )
  print(f'\nresults are in {config.out}')


# --- the classifier ----------------------------------------------------------


def fit(
  config: Config,
  dataset: Dataset,
  x: np.ndarray,
  crowd: Crowd,
  method: Method,
  labels: Labels,
  **logged: Any,
) -> Fit:
  """Trains on labels of the items, but those of the validation set."""
  n = crowd.truth.shape[1] - len(dataset.validation.labels)
  one_hot = np.eye(crowd.num_classes, dtype=np.float32)[labels.hard]
  weight = crowd.voted.astype(np.float32)
  return train.fit_many(
    method,
    {
      'x': x[:n],
      'labels': PerRun((one_hot if config.hard else labels.soft)[:, :n]),
      'weight': PerRun(weight[:, :n]),
    },
    jax.random.split(jax.random.key(0), config.seeds),
    epochs=config.epochs,
    batch_size=config.batch_size,
    held_out={
      'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
      'validation': {
        'x': x[n:],
        'labels': PerRun(np.maximum(labels.hard[:, n:], 0)),
        'weight': PerRun(weight[:, n:]),
      },
    },
    **logged,
  )


if __name__ == '__main__':
  train.run(main, Config, __doc__)
