"""Benchmarks with wrong test labels: which model is ahead, and up to where.

Northcutt, Athalye, Mueller (NeurIPS 2021, arXiv 2103.14749) had people look at
test labels that a model doubted. Models are scored by the given and by the
corrected labels as the share of erroneous rows grows, and may change places.

  python experiments/benchmark_errors.py            # digits, made-up votes
  python experiments/benchmark_errors.py --dataset mnist --data-dir DIR \\
    --errors DIR/label_errors_mnist_test_set.npz --batch-size 128 --epochs 3

`--errors` has the rows that people saw, mturk_index; given_original_label and
our_guessed_label; votes_given, votes_guessed, votes_neither and votes_both. A
label with less than 3 votes is an error, corrected where 3 agree on the guess
and left out elsewhere. Rows that nobody saw count as right. The model `guesser`
is the argmax of its pred_probs, which made the guesses: corrections favor it.

Out come tables, `results.jsonl`, `prevalence.jsonl`, `flips.jsonl` and a plot.
Intervals are the central 95% of test sets that are drawn anew from this one, of
the mean of the seeds: they tell of rows, not of training.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import audit, losses, train
from jnl.base import Method, check
from jnl.data import Dataset
from jnl.steps import supervised
from jnl.train import Fit, Trained, option, report, script

METHODS: dict[str, tuple[str, Any, Any]] = {
  # name: network, '' for that of the options; widths of an MLP; loss
  'linear': ('mlp', (), losses.ce),
  'mlp': ('mlp', (256, 256), losses.ce),
  'cnn': ('', None, losses.ce),
  'cnn_gce': ('', None, losses.gce),
}
GUESSER = 'guesser'
ARRAYS = (
  'mturk_index', 'given_original_label', 'our_guessed_label',
  'votes_given', 'votes_guessed', 'votes_neither', 'votes_both',
)  # fmt: skip
SAMPLES, PLACES = 1000, np.linspace(0, 1, 11)
"""Test sets drawn for an interval, and shares of erroneous rows in the plot."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    tuple(METHODS), f'some of {", ".join(METHODS)}, {GUESSER}'
  )
  errors: str = option('', 'file of human votes; by default they are made up')
  prevalence: tuple[float, ...] = option(
    (0.0, 0.05, 0.1, 0.2, 0.5), 'shares of erroneous rows in the table'
  )
  net: str = option('strided_cnn', 'network of cnn and cnn_gce')
  seeds: int = option(3, 'runs of training')
  epochs: int = option(20, 'passes over the training set')
  batch_size: int = option(50, 'examples in a step')
  learning_rate: float = option(1e-3, 'of Adam')
  out: str = option('results/benchmark_errors', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two models')


def main(config: Config) -> None:
  """Data -> votes -> models -> accuracy of the parts -> tables and plot."""
  if config.smoke:
    chosen = config.methods != Config.methods
    few = config.methods if chosen else ('linear', 'mlp')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  with train.options():
    script.check_common(config, (*METHODS, GUESSER))
    trained = [name for name in config.methods if name != GUESSER]
    check(trained, 'methods must name one to train')
    for share in config.prevalence:
      check(0 <= share <= 1, f'prevalence must lie in [0, 1], got {share:g}')
    dataset = script.read(config)
    labels, corrected, guesses = read_review(config, dataset)
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  heads = ('right rows', 'errors, given label', 'errors, corrected')
  columns = zip(audit.PartAccuracy._fields, heads, strict=True)
  comparison = train.Comparison(
    config.out,
    script.about('benchmark_errors', config),
    show={name: (head, report.mean_sd) for name, head in columns},
  )
  report.put_plot(
    config.out,
    'corrected.png',
    group='prevalence',
    column='corrected',
    title=f'{config.dataset}, seeds: {config.seeds}',
    ylabel='accuracy by corrected labels',
    x=PLACES.tolist(),
    xlabel='share of erroneous rows',
  )
  methods = {name: build(name, config, dataset) for name in trained}
  predictions, held_out = {}, dataset.validation._asdict()

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return train.fit_many(
        methods[name],
        {'x': dataset.train.x, 'labels': dataset.train.labels},
        jax.random.split(jax.random.key(0), config.seeds),
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out={
          'test': {'x': dataset.test.x, 'labels': labels},
          'validation': {k: held_out[k] for k in ('x', 'labels')},
        },
        log=log,
        label=name,
      )

  def done(name: str, one: Trained) -> Trained:
    predictions[name] = predict(methods[name], one.fit, dataset.test.x)
    parts = audit.part_accuracy(predictions[name], labels, corrected)
    return train.record(comparison, name, one.also(parts._asdict()))

  train.compare(comparison, train.train_each(methods, run_of, done))
  if GUESSER in config.methods:
    predictions[GUESSER] = np.stack([guesses] * config.seeds, axis=1)
  tell(config, predictions, labels, corrected)
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def read_review(
  config: Config, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Test labels [n], given and corrected (-1: left out), and guesses."""
  labels, found = made_up(dataset)
  if config.errors:
    labels = dataset.test.labels
    with np.load(config.errors) as file:
      found = dict(file)
    found.setdefault('votes_both', np.zeros_like(found.get('votes_given', 0)))
  needed = (*ARRAYS, 'pred_probs') if GUESSER in config.methods else ARRAYS
  missing = [name for name in needed if name not in found]
  check(not missing, f'errors {config.errors!r} lacks {", ".join(missing)}')
  index, given, guessed, *votes = (found[name] for name in ARRAYS)
  index = index.astype(int)
  guesses = found.get('pred_probs', np.eye(len(labels))).argmax(1)
  fits = len(guesses) == len(labels) and np.isin(index, range(len(labels)))
  check(
    np.all(fits) and np.array_equal(labels[index], given),
    f'errors {config.errors!r} are not of the test set of {config.dataset}: '
    'numbers of rows or given labels differ',
  )
  people = audit.consensus_of_votes(np.stack(votes, axis=1), given, guessed)
  corrected = labels.copy()
  corrected[index] = people.corrected
  print(
    f'{len(index)} of {len(labels)} test labels were looked at, '
    f'{people.is_error.sum()} are errors, {(corrected < 0).sum()} of them '
    'without a corrected label'
  )
  return labels, corrected, guesses


def made_up(dataset: Dataset) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Test labels of which a sixteenth is wrong, and votes of five people."""
  rng, labels = np.random.default_rng(0), dataset.test.labels.copy()
  index = rng.permutation(len(labels))[: len(labels) // 8]
  truth, wrong = labels[index], np.arange(len(index)) % 2 == 0
  shift = rng.integers(1, dataset.num_classes, len(index), labels.dtype)
  other = (truth + shift) % dataset.num_classes
  labels[index] = given = np.where(wrong, other, truth)
  votes = rng.multinomial(5, [0.8, 0.1, 0.1, 0.0], len(index))
  votes[wrong, :2] = votes[wrong, 1::-1]
  arrays = index, given, np.where(wrong, truth, other), *votes.T
  return labels, dict(zip(ARRAYS, arrays, strict=True))


def build(name: str, config: Config, dataset: Dataset) -> Method:
  """The model of that name, as a method that trains it."""
  net, hidden, loss = METHODS[name]
  model = script.network(
    net or config.net,
    dataset.num_classes,
    dataset.train.x,
    hidden=hidden,
    standardize=True,
  )
  return supervised(loss, model, optax.adam(config.learning_rate))


def predict(method: Method, fitted: Fit, x: np.ndarray) -> np.ndarray:
  """The classes [n, seeds] that the runs of a model predict."""
  one = jax.jit(lambda s, x: jnp.argmax(method.predict(s, x).logits, axis=-1))
  batches, found = train.padded_batches({'x': x}), []
  for r in range(len(fitted.state.step)):
    state = jax.tree.map(lambda leaf, r=r: leaf[r], fitted.state)
    parts = [np.asarray(one(state, batch['x'])) for batch in batches]
    found.append(np.concatenate(parts)[: len(x)])
  return np.stack(found, axis=1)


def tell(
  config: Config,
  predictions: dict[str, np.ndarray],
  labels: np.ndarray,
  corrected: np.ndarray,
) -> None:
  """Writes and prints accuracies by prevalence, and where models flip."""
  names, kept = list(predictions), corrected >= 0
  rows = np.concatenate(list(predictions.values()), axis=1), labels, corrected

  def of_models(parts: audit.PartAccuracy) -> audit.PartAccuracy:
    means = (p.reshape(*p.shape[:-1], len(names), -1).mean(-1) for p in parts)
    return audit.PartAccuracy(*means)

  key, as_is = jax.random.key(1), np.mean((labels != corrected)[kept])
  parts = of_models(audit.part_accuracy(*rows))
  drawn = of_models(audit.bootstrap_accuracy(key, *rows, samples=SAMPLES))
  shares = np.array([as_is, *config.prevalence])
  tell_accuracy(config.out, names, parts, drawn, shares)
  tell_flips(config.out, names, parts, drawn)
  found, cut = audit.accuracy_vs_prevalence(drawn, PLACES), SAMPLES // 40
  for kind, values in found._asdict().items():
    central = np.sort(values, axis=0)[cut:-cut]  # whose range is the interval
    curves = {f'{n}/{kind}': central[..., i] for i, n in enumerate(names)}
    own = {f'prevalence/{name}': curve for name, curve in curves.items()}
    report.put_curves(config.out, own)


def tell_accuracy(
  out: str, names: list[str], parts: Any, drawn: Any, shares: np.ndarray
) -> None:
  """By given and by corrected labels, at shares of erroneous rows."""
  found = audit.accuracy_vs_prevalence(parts, shares)._asdict()
  around = audit.accuracy_vs_prevalence(drawn, shares)._asdict()
  lines, results = [], []
  for (i, name), kind in itertools.product(enumerate(names), found):
    cells = []
    for r, share in enumerate(shares):
      low, high = np.quantile(around[kind][:, r, i], (0.025, 0.975))
      numbers = {'accuracy': found[kind][r, i], 'low': low, 'high': high}
      results.append({'model': name, 'labels': kind, 'share': share, **numbers})
      cells.append(shown(*numbers.values()))
    lines.append([name, kind, *cells])
  heads = [f'{100 * share:.3g}%' for share in shares]
  print('\nshares of erroneous rows, the first one as it is\n')
  print(report.table(['model', 'labels', *heads], lines))
  report.write_jsonl(f'{out}/prevalence.jsonl', results)


def tell_flips(out: str, names: list[str], parts: Any, drawn: Any) -> None:
  """Where, by corrected labels, the better of two models is the other one."""
  flips, around = (
    np.where(at < 1 - 1e-6, at, np.nan)  # else they are alike on errors
    for at in map(audit.rank_flip_prevalence, (parts, drawn))
  )
  lines, results = [], []
  better = np.argsort(-parts.right, kind='stable')
  for i, j in itertools.combinations(better, 2):
    pair, some = (names[i], names[j]), np.isfinite(around[:, i, j])
    own = np.quantile(around[some, i, j], (0.025, 0.975)) if some.any() else ()
    at = float(flips[i, j]) if np.isfinite(flips[i, j]) else None
    cell = '' if at is None else shown(at, *own)
    lines.append([*pair, cell, f'{some.mean():.0%}'])
    results.append(
      {'models': pair, 'flip': at, 'interval': own, 'of_draws': some.mean()}
    )
  print('\nshare of erroneous rows from which the second model is ahead\n')
  print(report.table(['ahead on right rows', 'then', 'from', 'draws'], lines))
  report.write_jsonl(f'{out}/flips.jsonl', results)


def shown(value: float, *interval: float) -> str:
  """In percent: `97.1 [96.8, 97.4]`."""
  ends = ', '.join(f'{100 * end:.1f}' for end in interval)
  return f'{100 * value:.1f} [{ends}]'


if __name__ == '__main__':
  train.run(main, Config, __doc__)
