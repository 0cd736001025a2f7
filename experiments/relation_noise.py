"""Negatives that hide a relation: rows left out, or relabeled by neighbors.

Strategies of Parekh, Anand, Awekar (2023, arXiv 2311.12298), as far as their
abstract tells, on data of which some classes are made "no relation" and a part
of the others is relabeled to it:

  python experiments/relation_noise.py                          # digits
  python experiments/relation_noise.py --dataset trec6 --data-dir DIR

  clean, noisy, trusted        true labels; relabeled ones; trusted rows alone
  intrinsic_eliminate          without negatives that the model calls positive,
                               and their neighbors
  intrinsic_reannotate         with the likeliest positive class for these
  extrinsic_eliminate          without negatives whose trusted neighbors are
                               positive
  extrinsic_reannotate         with the class of the neighbors for these
  extrinsic_all                as extrinsic_eliminate, but also positives whose
                               trusted neighbors are another class

The trusted rows are trained on as all others. Everything that is said of a row
is out of fold: five models, each trained without a fifth of the rows; the noisy
ones give predictions and, as their logarithms, the space in which neighbors are
near. The score is the micro-F1 of the positive classes on rows held out, as the
models are, and tuned: with the probability below which "no relation" is not
said, which is best on the trusted rows. Few rows are needed for that, and it is
what the strategies have to beat.

Texts are classified by logistic regression on tf-idf of words and pairs of
words (`tfidf`), which is far ahead of the network `ngram` here.

Test rows are a fifth of the training set: the published test set of TREC has
other questions, and there 30% of noise do not hurt.

Out come a table, `results.jsonl`, and `micro_f1.png` with the curves.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import audit, data, losses, noise, train
from jnl.base import Method, Model, Outputs, check
from jnl.data import Dataset
from jnl.steps import linear, supervised
from jnl.train import Fit, OutOfFold, Trained, option, report, scores, script

METHODS = (
  'clean', 'noisy', 'trusted', 'intrinsic_eliminate', 'intrinsic_reannotate',
  'extrinsic_eliminate', 'extrinsic_reannotate', 'extrinsic_all',
)  # fmt: skip
TEXT_NETS = ('tfidf', 'ngram')
BUCKETS = 1 << 17
"""Of hashed words and pairs of words: few of TREC share one."""
RATES = {'tfidf': 0.1}
"""Learning rates of Adam that are not 3e-3."""
F1 = scores.f1('micro', without=[0])


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, f'some of {", ".join(METHODS)}')
  negative: tuple[str, ...] = option(
    ('0', '1', '3'), 'the classes that are "no relation"'
  )
  rate: float = option(0.3, 'share of the positives that become negatives')
  trusted: float = option(0.1, 'share of the rows that keep their labels')
  k: int = option(5, 'neighbors')
  net: str = option('', 'network: by default mlp, of texts tfidf')
  seeds: int = option(3, 'runs, each with its own noise and trusted rows')
  folds: int = option(5, 'models of a run, each trained without its part')
  epochs: int = option(10, 'passes over the training set')
  batch_size: int = option(50, 'examples in a step')
  learning_rate: float = option(0.0, 'of Adam: by default 3e-3, tfidf .1')
  out: str = option('results/relation_noise', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, epochs, folds, methods')


class Task(NamedTuple):
  """Rows with class 0 for "no relation", and what is known of each run.

  Attributes:
    num_classes: c.
    x: [n, ...].
    labels: [n], true.
    noisy: [runs, n], of which those of `trusted` rows [runs, n] are true.
    trusted: [runs, n] bool.
    held_out: `test`, and `validation` for each run, with noise.
    keys: [runs].
  """

  num_classes: int
  x: np.ndarray
  labels: np.ndarray
  noisy: np.ndarray
  trusted: np.ndarray
  held_out: list[dict[str, dict[str, np.ndarray]]]
  keys: jax.Array


def main(config: Config) -> None:
  """Data -> noise -> out-of-fold predictions -> flags -> fits and report."""
  with train.options():
    check_options(config)
    config, dataset = read(config)
    task = make_task(config, dataset)
    method = build(config, task)
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  comparison = train.Comparison(
    config.out,
    script.about('relation_noise', config, 'micro_f1'),
    score='test_micro_f1',
    chosen_by='validation_micro_f1',
    heads=('last epoch', 'best by noisy val.'),
    show={'tuned': ('tuned', report.mean_sd)},
  )
  negatives = f'{np.mean(task.labels == 0):.0%}, {np.mean(task.noisy == 0):.0%}'
  title = f'{config.dataset}, negatives: {negatives} with noise'
  print(f'{len(task.x)} rows, {title}; {task.trusted[0].sum()} trusted')
  train.plot(comparison, title, 'micro-F1 of positives', 'micro_f1.png')

  @functools.cache
  def fitted(name: str) -> list[OutOfFold]:
    """What is trained of each run, after what it asks for."""
    return [
      fit(config, method, task, r, name, base)
      for r, base in enumerate(asked_by(name))
    ]

  def asked_by(name: str) -> Sequence[OutOfFold | None]:
    """What strategies look at: the models of noisy labels."""
    plain = name in METHODS[:3]
    return [None] * config.seeds if plain else fitted('noisy')

  def run_of(name: str) -> Fit:
    every = [own.fit for own in fitted(name)]
    means = {
      k: np.stack([own.history[k].mean(0) for own in every])
      for k in every[0].history
    }
    return every[0]._replace(history=means)

  def done(name: str, one: Trained) -> Trained:
    columns = [
      told(config, method, task, r, name, base, own)
      for r, (base, own) in enumerate(
        zip(asked_by(name), fitted(name), strict=True)
      )
    ]
    found = {k: np.array([own[k] for own in columns]) for k in columns[0]}
    return train.record(comparison, name, one.also(found))

  train.compare(comparison, train.train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check(len(config.methods) >= 1, 'methods must name at least one')
  own = config.net == 'tfidf'
  script.check_common(
    dataclasses.replace(config, net='') if own else config, METHODS
  )
  script.numbers('negative', config.negative)
  for name in ('rate', 'trusted'):
    value = getattr(config, name)
    check(0 < value < 1, f'{name} must lie between 0 and 1, got {value:g}')
  for name, least in (('k', 1), ('folds', 2), ('epochs', 1), ('batch_size', 1)):
    value = getattr(config, name)
    check(value >= least, f'{name} must be at least {least}, got {value}')


# --- data ---------------------------------------------------------------------


def read(config: Config) -> tuple[Config, Dataset]:
  """The options with what was left open filled in, and the data set."""
  dataset = script.read(config)
  text = bool(np.issubdtype(dataset.train.x.dtype, np.integer))
  net = config.net or ('tfidf' if text else 'mlp')
  kind = 'texts' if text else 'images'
  check(text == (net in TEXT_NETS), f'net {net} is not for {kind}')
  if net == 'tfidf':
    texts = data.load_text(config.dataset, data_dir=config.data_dir or None)
    ids = functools.partial(data.ngram_ids, buckets=BUCKETS)
    dataset = data.encode_text(texts, ids)
  rate = config.learning_rate or RATES.get(net, 3e-3)
  config = dataclasses.replace(config, net=net, learning_rate=rate)
  if config.smoke:
    chosen = config.methods != Config.methods
    few = config.methods if chosen else ('noisy', 'extrinsic_eliminate')
    config = dataclasses.replace(
      config, methods=few, seeds=2, epochs=2, folds=2
    )
  return config, dataset


def make_task(config: Config, dataset: Dataset) -> Task:
  """One class of those that are "no relation", and the noise of each run."""
  negative = script.numbers('negative', config.negative)
  positive = [k for k in range(dataset.num_classes) if k not in negative]
  inside = all(k < dataset.num_classes for k in negative)
  check(
    inside and 0 < len(positive) < dataset.num_classes,
    f'negative must be some of the {dataset.num_classes} classes of '
    f'{config.dataset}, and not all, got {config.negative}',
  )
  merged = np.zeros(dataset.num_classes, np.int32)
  merged[positive] = np.arange(len(positive)) + 1
  matrix = noise.class_map([0] * (len(positive) + 1), config.rate)
  keys = jax.random.split(jax.random.key(0), (config.seeds, 4))

  def noisy(key: jax.Array, labels: np.ndarray) -> np.ndarray:
    return np.asarray(noise.corrupt(key, labels, matrix).labels)

  (x, labels, _), validation = dataset.train, dataset.validation
  labels, chosen_by = merged[labels], merged[validation.labels]
  n = len(x) - len(x) // 5
  most = train.training_size(n, config.folds)
  b = config.batch_size
  check(b <= most, f'batch_size must be at most {most}, got {b}')
  check(
    config.k <= config.trusted * n,
    f'k must be at most the number of trusted rows, {config.trusted * n:.0f}, '
    f'got {config.k}',
  )
  trusted, wrong, held_out = [], [], []
  for key in keys:
    order = np.asarray(jax.random.permutation(key[0], n))
    trusted.append(order < config.trusted * n)
    wrong.append(np.where(trusted[-1], labels[:n], noisy(key[1], labels[:n])))
    held_out.append({
      'test': {'x': x[n:], 'labels': labels[n:]},
      'validation': {'x': validation.x, 'labels': noisy(key[2], chosen_by)},
    })  # fmt: skip
  runs = np.stack(wrong), np.stack(trusted), held_out, keys[:, 3]
  return Task(len(positive) + 1, x[:n], labels[:n], *runs)


# --- flags and trainings ------------------------------------------------------


def build(config: Config, task: Task) -> Method:
  """Cross entropy; of tf-idf with the penalty of C = 10 in scikit-learn."""
  tx = optax.adam(config.learning_rate)
  if config.net == 'tfidf':
    model = tfidf(task.num_classes, task.x)
    tx = optax.chain(optax.add_decayed_weights(0.1 / len(task.x)), tx)
  else:
    model = script.network(config.net, task.num_classes, task.x)
  return supervised(losses.ce, model, tx)


def tfidf(num_classes: int, x: np.ndarray) -> Model:
  """A linear model of tf-idf, of unit length, of the n-grams with these ids."""
  rows = np.concatenate([np.unique(ids) for ids in x])
  count = np.bincount(rows, minlength=BUCKETS)
  count[0] = 0  # padding; what no text has weighs nothing either
  rarity = np.where(count > 0, np.log((1 + len(x)) / (1 + count)) + 1, 0)

  def apply(
    params: Any, stats: Any, x: jax.Array, keys: Any, train: bool
  ) -> tuple[Outputs, Any]:
    weight = jnp.asarray(rarity, jnp.float32)[x]
    same = x[:, :, None] == x[:, None, :]
    square = jnp.sum(same * weight[:, :, None] * weight[:, None, :], (1, 2))
    weight /= jnp.sqrt(jnp.maximum(square, 1e-12))[:, None]
    logits = jnp.einsum('bl,blc->bc', weight, params['weights'][x])
    return Outputs(logits + params['bias'], logits), stats

  return Model(linear(BUCKETS, num_classes).init, apply)


def flagged(
  config: Config, task: Task, run: int, name: str, probs: np.ndarray
) -> audit.RelationFlags:
  """The labels of a run that look wrong, by what noisy models say of them."""
  labels, trusted = task.noisy[run], task.trusted[run]
  space = np.log(np.maximum(probs, 1e-30))
  space -= space.mean(1, keepdims=True)
  given: dict[str, Any] = {'k': config.k, 'mask': ~trusted}
  if name.startswith('intrinsic'):
    return audit.intrinsic_flags(labels, probs, space, **given)
  known = labels[trusted], space[trusted]
  if name == 'extrinsic_all':
    given['scope'] = 'all'
  return audit.extrinsic_flags(labels, space, *known, **given)


def fit(
  config: Config,
  method: Method,
  task: Task,
  run: int,
  name: str,
  noisy: OutOfFold | None,
) -> OutOfFold:
  """The models of a run, on the labels and rows that a strategy leaves."""
  labels, keep = task.noisy[run], np.ones(len(task.x), bool)
  if name == 'clean':
    labels = task.labels
  elif name == 'trusted':
    keep = task.trusted[run]
  elif noisy is not None:
    found = flagged(config, task, run, name, noisy.pred_probs)
    mode: Any = 'reannotate' if name.endswith('reannotate') else 'eliminate'
    labels, keep = audit.apply_flags(labels, found, mode=mode)
  return train.out_of_fold(
    method,
    {'x': task.x, 'labels': labels, 'weight': keep.astype(np.float32)},
    task.keys[run],
    folds=config.folds,
    epochs=config.epochs,
    batch_size=config.batch_size,
    held_out=task.held_out[run],
    scores={'test': F1, 'validation': F1},
    label=name,
  )


# --- what comes out -----------------------------------------------------------


def told(
  config: Config,
  method: Method,
  task: Task,
  run: int,
  name: str,
  noisy: OutOfFold | None,
  own: OutOfFold,
) -> dict[str, float]:
  """F1 with the tuned threshold, and how many flags are right, of a run."""
  test, trusted = task.held_out[run]['test'], task.trusted[run]
  known = own.pred_probs[trusted], task.labels[trusted]
  threshold = tuned(*known)
  probs = np.asarray(_probs(method, own.fit.state, test['x']))
  every = [micro_f1(decided(p, threshold), test['labels']) for p in probs]
  found = {'tuned': float(np.mean(every))}
  if noisy is not None:
    flags = flagged(config, task, run, name, noisy.pred_probs).flags
    wrong = task.noisy[run] != task.labels
    right = (flags & wrong).sum()
    found['flags_recall'] = right / max(wrong.sum(), 1)
    found['flags_precision'] = right / max(flags.sum(), 1)
  return found


@functools.partial(jax.jit, static_argnums=0)
def _probs(method: Method, states: Any, x: np.ndarray) -> jax.Array:
  """Of each model, [models, n, c]."""
  return jax.lax.map(
    lambda state: jax.nn.softmax(method.predict(state, x).logits), states
  )


def decided(probs: np.ndarray, threshold: float) -> np.ndarray:
  """The likeliest positive where "no relation" is less probable than that."""
  likeliest = 1 + probs[:, 1:].argmax(1)
  return np.where(probs[:, 0] < threshold, likeliest, 0)


def micro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
  """That of the classes from 1 on; 0 where there are none."""
  right = ((predicted == labels) & (labels > 0)).sum()
  return 2 * right / max((predicted > 0).sum() + (labels > 0).sum(), 1)


def tuned(probs: np.ndarray, labels: np.ndarray) -> float:
  """The threshold of the best F1; of several the one in the middle."""
  low = np.unique(probs[:, 0])
  between = np.append((low[1:] + low[:-1]) / 2, 1.0)
  found = np.array([micro_f1(decided(probs, t), labels) for t in between])
  best = np.flatnonzero(found == found.max())
  return float(between[best[len(best) // 2]])


if __name__ == '__main__':
  train.run(main, Config, __doc__)
