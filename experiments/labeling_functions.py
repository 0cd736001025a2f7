"""Labeling functions: rules that vote for a class, or do not vote at all.

A function here is a few words and a class: it votes for the class where one of
the words stands. What do ten of them say together, and is a classifier that is
trained on what they say any better? Ways to make one label of their votes:

  majority             the class with most votes
  truth                the true labels of the rows with votes, as the ceiling
  one_coin             an accuracy for each function, by EM (`jnl.aggregate`)
  dawid_skene          a confusion matrix for each, by EM
  dawid_skene_missing  the same, no vote being an answer that says something
  dawid_skene_balance  that, with all classes equally frequent
  moments              data programming: fits how often functions agree
  generative           a model of votes and silence, by marginal likelihood
  one_coin_weak        one_coin, classes equally frequent, a prior Beta(70, 30)
  one_coin_strong      the same with Beta(700, 300)

  python experiments/labeling_functions.py           # digits: is it odd?
  python experiments/labeling_functions.py --dataset youtube_spam --data-dir DIR
  python experiments/labeling_functions.py --dataset trec6 --data-dir DIR

In each run another part of the rows is the test: where the file of texts says
on which `video` they are, those on one video, else a fifth. Functions are
picked by the labels of the other rows, five of a class with up to three words
each, one word after the other: the one by which the majority is right on most
of them, where a coin decides what is tied and what nobody votes on. A person
with a list of words would do much the same. Nothing else sees those labels.

Functions of one class each are what EM cannot cope with: if all rows are of
one class, the functions of that class are always right. The column `collapsed`
says in how many runs that happened, against what most of the votes say.

The classifier is a softmax regression of tf-idf of words (document frequencies
are of all rows), or of pixels, in rows of length 1. It is trained on the rows
with votes, a tenth of which picks an epoch, and learns the likeliest class,
with `--soft` the posterior as it is. Images are cut in two classes, even and
odd labels, and a pixel is a word that stands there where it is bright.

How functions are picked, three words of each, and labels without `--soft` were
settled with test accuracy on YouTube spam in view, among some 25 choices.

Out come a table of the functions of the first run, a table of methods,
`results.jsonl` and `accuracy.png`.
"""

from collections import Counter
from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jnl import aggregate, data, losses, train
from jnl.base import check
from jnl.data import Dataset, PerRun
from jnl.steps import linear, supervised
from jnl.train import Fit, Trained, option, report, script

METHODS = (
  'majority', 'truth', 'one_coin', 'dawid_skene', 'dawid_skene_missing',
  'dawid_skene_balance', 'moments', 'generative', 'one_coin_weak',
  'one_coin_strong',
)  # fmt: skip
HEAR_SILENCE = ('dawid_skene_missing', 'dawid_skene_balance', 'moments')
"""To these a row without votes says something; to the rest it is not there."""
FOLDS, RARE, SELDOM, BRIGHT = 5, 2, 10, 0.75
"""Parts of rows without a video; the fewest rows of a word that the classifier
and that a function may have; from where on a pixel is bright."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, f'some of {", ".join(METHODS)}')
  functions: int = option(5, 'of each class')
  words: int = option(3, 'of each function, at most')
  soft: bool = option(False, 'posteriors are learned, not the likeliest class')
  net: str = option('', 'network: by default none, a softmax regression')
  seeds: int = option(FOLDS, 'runs, each with another part as its test')
  epochs: int = option(40, 'passes over the training set')
  batch_size: int = option(100, 'rows in a step')
  learning_rate: float = option(1.0, 'of SGD with momentum .9')
  weight_decay: float = option(1e-3, 'L2')
  out: str = option('results/labeling_functions', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 runs, 2 epochs, 2 methods')


class Task(NamedTuple):
  """Rows, what functions look for in them, and which belong together.

  Attributes:
    x: [n, ...], what the classifier sees.
    stands: [n, v] bool, which words stand there.
    words: [v], their names.
    labels: [n] int, true.
    part: [n] int, from 0: the run in which a row is tested.
    num_classes: c.
  """

  x: np.ndarray
  stands: np.ndarray
  words: list[str]
  labels: np.ndarray
  part: np.ndarray
  num_classes: int


class Function(NamedTuple):
  """Votes for a class where one of some words (columns of `stands`) is."""

  words: list[int]
  voted: int


def main(config: Config) -> None:
  """Data -> functions -> votes -> labels of each method -> classifiers."""
  if config.smoke:
    chosen = config.methods != Config.methods
    few = config.methods if chosen else ('majority', 'one_coin_strong')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  with train.options():
    check_options(config)
    task = read(config)
    parts = task.part.max() + 1
    check(config.seeds <= parts, f'seeds must be at most {parts}')
    picked = [pick(config, task, task.part != r) for r in range(config.seeds)]
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  votes = np.stack([votes_of(task, functions) for functions in picked])
  trained_on = task.part != np.arange(config.seeds)[:, None]
  covered = (votes >= 0).any(2) & trained_on
  tell(task, picked[0], votes[0][trained_on[0]], trained_on[0])
  share = covered.sum(1) / trained_on.sum(1)
  print(f'\n{report.mean_sd(share)}% of the rows have a vote\n')
  comparison = train.Comparison(
    config.out,
    script.about('labeling_functions', config),
    of_runs={'coverage': share},
    show={
      'labels': ('labels, rows with votes', report.mean_sd),
      'collapsed': ('collapsed', lambda v: f'{v.sum()} of {len(v)}'),
    },
  )
  title = f'{config.dataset}, {votes.shape[2]} functions, runs: {config.seeds}'
  train.plot(comparison, title, 'test accuracy')
  known: dict[str, dict[str, np.ndarray]] = {}
  fit = make_fit(config, task, covered)

  def run_of(name: str) -> Fit:
    labels = labels_of(name, task, votes, covered)
    known[name] = labels.known
    return fit(name, labels)

  def done(name: str, one: Trained) -> Trained:
    return train.record(comparison, name, one.also(known[name]))

  train.compare(comparison, train.train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  for name in ('functions', 'words', 'epochs', 'batch_size'):
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')


# --- data --------------------------------------------------------------------


def read(config: Config) -> Task:
  """The data set of that name: texts, or images of even and of odd labels."""
  dataset = script.read(config)
  if np.issubdtype(dataset.train.x.dtype, np.integer):
    return of_texts(config)
  odd = range(1, dataset.num_classes, 2)
  x, labels = whole(script.binary(dataset, odd))
  pixels = x.reshape(len(x), -1)
  names = [f'pixel {place}' for place in range(pixels.shape[1])]
  part = np.arange(len(x)) % FOLDS
  return Task(unit(pixels), pixels > BRIGHT, names, labels, part, 2)


def of_texts(config: Config) -> Task:
  """Words of texts, and their tf-idf."""
  folder = config.data_dir or None
  dataset = data.load_text(config.dataset, data_dir=folder)
  texts, labels = whole(dataset)
  tokens = [Counter(data.tokenize(text)) for text in texts]
  rows = Counter(word for own in tokens for word in own)
  words = sorted(word for word in rows if rows[word] >= RARE)
  place = {word: k for k, word in enumerate(words)}
  counts = np.zeros((len(texts), len(words)), np.float32)
  for row, own in zip(counts, tokens, strict=True):
    for word in own.keys() & place.keys():
      row[place[word]] = own[word]
  stands = counts > 0
  x = counts * (1 + np.log((1 + len(texts)) / (1 + stands.sum(0))))
  part = videos(config, len(texts))
  return Task(unit(x), stands, words, labels, part, dataset.num_classes)


def unit(x: np.ndarray) -> np.ndarray:
  """Rows [n, d] of length 1."""
  length = np.linalg.norm(x, axis=1, keepdims=True)
  return (x / np.maximum(length, 1e-6)).astype(np.float32)


def whole(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """All rows and labels: as published, then those of the test set."""
  parts = data.published_order(dataset), dataset.test
  x, labels, _ = map(np.concatenate, zip(*parts, strict=True))
  return x, labels


def videos(config: Config, n: int) -> np.ndarray:
  """The part [n] of each text: its video if the file has it, else a fifth."""
  path = pathlib.Path(config.data_dir) / f'{config.dataset}.npz'
  if config.data_dir and path.exists():
    with np.load(path) as file:
      if 'video' in file:
        # Texts on the last one are the test set of `data.load`, and so last.
        last = file['video'] == file['video'].max()
        order = np.argsort(last, kind='stable')
        return np.unique(file['video'][order], return_inverse=True)[1]
  return np.arange(n) % FOLDS


# --- functions ---------------------------------------------------------------


def pick(config: Config, task: Task, rows: np.ndarray) -> list[Function]:
  """Functions of each class, of the words that help the majority most."""
  stands, labels = task.stands[rows], task.labels[rows]
  table = stands.astype(np.float32)
  free = stands.sum(0) >= SELDOM
  check(
    free.sum() >= config.functions * config.words * task.num_classes,
    f'functions and words: only {free.sum()} words stand in {SELDOM} rows',
  )
  found = [
    Function([], k)
    for _ in range(config.functions)
    for k in range(task.num_classes)
  ]
  votes = np.full((len(labels), len(found)), -1)
  counts = np.zeros((len(labels), task.num_classes), int)
  for _ in range(config.words):
    for j, (words, k) in enumerate(found):
      more = counts + np.eye(task.num_classes, dtype=int)[k]
      gain = right(more, labels) - right(counts, labels)
      gain = np.where(votes[:, j] < 0, gain, 0) @ table
      gain = np.where(free, gain, -np.inf)
      best = gain.argmax()
      if words and gain[best] <= 0:
        continue
      free[best] = False
      words.append(int(best))
      new = stands[:, best] & (votes[:, j] < 0)
      votes[new, j], counts[new] = k, more[new]
  return found


def right(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """How probably [n] the majority is right if ties are drawn."""
  most = counts == counts.max(1, keepdims=True)
  return most[np.arange(len(labels)), labels] / most.sum(1)


def votes_of(task: Task, functions: list[Function]) -> np.ndarray:
  """[n, a] int, -1 where a function does not vote."""
  return np.stack(
    [
      np.where(task.stands[:, words].any(1), voted, -1)
      for words, voted in functions
    ],
    axis=1,
  )


def tell(
  task: Task, functions: list[Function], votes: np.ndarray, rows: np.ndarray
) -> None:
  """Prints what the functions of a run are like."""
  c = task.num_classes
  numbers = [
    aggregate.coverage(votes, num_classes=c),
    aggregate.overlap(votes, num_classes=c),
    aggregate.conflict(votes, num_classes=c),
    aggregate.empirical_accuracy(votes, task.labels[rows], num_classes=c),
  ]
  lines = [
    [', '.join(task.words[w] for w in words), voted, *map('{:.3f}'.format, own)]
    for (words, voted), *own in zip(functions, *numbers, strict=True)
  ]
  heads = ('words', 'class', 'coverage', 'overlap', 'conflict', 'accuracy')
  print(report.table(heads, lines))


# --- labels ------------------------------------------------------------------


def models(c: int) -> dict[str, Callable[[np.ndarray], Any]]:
  """What makes posteriors of votes, by name."""
  balance = np.full(c, 1 / c)
  coin = functools.partial(aggregate.one_coin, num_classes=c)
  matrix = functools.partial(aggregate.dawid_skene, num_classes=c)
  missing = functools.partial(matrix, abstain_informative=True)
  known = functools.partial(coin, class_balance=balance)
  return {
    'one_coin': coin,
    'dawid_skene': matrix,
    'dawid_skene_missing': missing,
    'dawid_skene_balance': functools.partial(missing, class_balance=balance),
    'moments': functools.partial(
      aggregate.label_model, num_classes=c, class_balance=balance
    ),
    'generative': functools.partial(
      aggregate.generative_model, num_classes=c, class_balance=balance
    ),
    'one_coin_weak': functools.partial(known, accuracy_prior=(70.0, 30.0)),
    'one_coin_strong': functools.partial(known, accuracy_prior=(700.0, 300.0)),
  }


class Labels(NamedTuple):
  """What a method makes of the votes of all runs.

  Attributes:
    soft: [runs, n, c], alike where nobody votes.
    hard: [runs, n] int, the likeliest class.
    known: [runs] by name: the share of hard labels that are right among rows
      with votes, and whether the method collapsed.
  """

  soft: np.ndarray
  hard: np.ndarray
  known: dict[str, np.ndarray]


def labels_of(
  name: str, task: Task, votes: np.ndarray, covered: np.ndarray
) -> Labels:
  """The labels of rows with votes, and how good they are."""
  c = task.num_classes
  soft = np.full((*covered.shape, c), 1 / c, np.float32)
  hard = np.zeros(covered.shape, int)
  collapsed = np.zeros(len(votes), bool)
  for r, rows in enumerate(covered):
    mine = np.where(rows[:, None], votes[r], -1)
    if name == 'majority':
      soft[r] = aggregate.vote_shares(mine, num_classes=c)
      hard[r] = aggregate.majority_vote(mine, num_classes=c)
      continue
    if name == 'truth':
      soft[r] = np.eye(c)[task.labels]
    else:
      used = rows if name in HEAR_SILENCE else np.ones_like(rows)
      found = models(c)[name](mine[used])
      soft[r, used], collapsed[r] = found.posterior, found.collapsed
    hard[r] = soft[r].argmax(1)
  right = (hard == task.labels) & covered
  good = right.sum(1) / covered.sum(1)
  return Labels(soft, hard, {'labels': good, 'collapsed': collapsed})


# --- the classifier ----------------------------------------------------------


def make_fit(
  config: Config, task: Task, covered: np.ndarray
) -> Callable[[str, Labels], Fit]:
  """What trains on the labels of the rows that are covered."""
  c, runs = task.num_classes, np.arange(config.seeds)
  model = linear(task.x.shape[1], c)
  if config.net:
    model = script.network(config.net, c, task.x)
  tx = script.optimizer('sgd', config.learning_rate, config.weight_decay)
  method = supervised(losses.ce, model, tx)  # one, so that it compiles once
  kept = np.random.default_rng(0).random(len(task.x)) < 0.1
  weight = lambda rows: PerRun(rows.astype(np.float32))

  def fit(name: str, labels: Labels) -> Fit:
    sure = np.eye(c, dtype=np.float32)[labels.hard]
    with script.logging(config, name) as log:
      return train.fit_many(
        method,
        {
          'x': task.x,
          'labels': PerRun(labels.soft if config.soft else sure),
          'weight': weight(covered & ~kept),
        },
        jax.random.split(jax.random.key(0), config.seeds),
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out={
          'test': {
            'x': task.x,
            'labels': task.labels,
            'weight': weight(task.part == runs[:, None]),
          },
          'validation': {
            'x': task.x,
            'labels': PerRun(labels.hard),
            'weight': weight(covered & kept),
          },
        },
        log=log,
        label=name,
      )

  return fit


if __name__ == '__main__':
  train.run(main, Config, __doc__)
