"""A stream with things in it that are no class: found by AdaND as it goes.

A frozen classifier is asked about a stream, a part of which it should reject:

  zero_shot       where its confidence is below a threshold of the last scores
  adand           a linear detector, which learns from that on the way
  adand_injected  the same, and an eighth more images that are surely noise

  python experiments/noisy_stream.py                          # made up
  python experiments/noisy_stream.py --dataset fashion_mnist --data-dir DIR

Made up are unit features around ten directions, of classes, and around ten
others, half as near to one of them, of noise; images of noise have a direction
of their own in common, which the classifier does not look at, and the detector
can learn. Of a data set a network is trained, digits of another one (MNIST)
are the noise, and the detector sees principal components of the pixels, or of
the network's features.

For each share of noise a table: the accuracy of clean rows, right and kept
(Acc_S), of noise, rejected (Acc_N), and the harmonic mean (Acc_H); AUROC and
FPR95 of the score by which a method decides, after the warm-up; and the recall
of the threshold, that teaches the detector. It is the sign to look for: near
one half, or under it, most of what the detector is taught about noise is wrong,
and a line under the table says so. Injected images, which are not counted, are
what a clean stream needs; where noise is badly found they are all that the
detector then calls noise, and it does worse with them.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import optax

from jnl import losses, methods
from jnl.base import Adapter, Array, State, check, check_name
from jnl.data import Dataset
from jnl.inputs import check_range
from jnl.methods import noise_images
from jnl.steps import linear, supervised
from jnl.train import (
  Adapted,
  Comparison,
  Fit,
  Trained,
  adapt,
  compare,
  fit_many,
  option,
  options,
  padded_batches,
  record,
  report,
  run,
  scores,
  script,
  train_each,
)

METHODS = ('zero_shot', 'adand', 'adand_injected')
SIMULATED = 'simulated'
SIZE, CLASSES = 64, 10
"""Of what is made up: features, and classes."""
BOTH = {True: (80, 64, 5e-4), False: (50, 128, 5e-3)}
"""Batches, their size and the rate: of what is made up, and of images."""
SCALE = 0.3
"""By which principal components are multiplied."""
WARMUP = 10
RECALL = 0.6
"""Up to here a line is printed on the recall of the threshold."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  dataset: str = option(SIMULATED, 'simulated, or a set of images to train on')
  noise: str = option('mnist', 'the set of images that are noise')
  rates: tuple[str, ...] = option(('0', '25', '50'), 'percent of noise')
  injected: float = option(0.125, 'of adand_injected: rows for each of others')
  net: str = option('strided_cnn', 'network: a name of nets.build')
  examples: int = option(0, 'rows that it is trained on; 0 is all')
  epochs: int = option(3, 'of its training')
  features: str = option('pixels', 'of the detector: pixels or network')
  components: int = option(64, 'principal components of these')
  batches: int = option(0, 'of the stream; 0: 80 if simulated, else 50')
  batch_size: int = option(0, 'rows in each; 0: 64 if simulated, else 128')
  learning_rate: float = option(0.0, 'of Adam; 0: 5e-4 if simulated, else 5e-3')
  seeds: int = option(3, 'runs, each with a network and a stream of its own')
  out: str = option('results/noisy_stream', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 20 batches, 1 epoch')


class Rows(NamedTuple):
  """A stream, or what one is drawn from.

  Attributes:
    features: [n, d].
    logits: [n, c], of the frozen classifier.
    labels: [n] int, -1 for noise; for the report alone.
    injected: [n] bool.
  """

  features: np.ndarray
  logits: np.ndarray
  labels: np.ndarray
  injected: np.ndarray


Streams = Callable[[int, float, bool], Rows]
"""The stream of a seed, of a share of noise, with injected rows or without."""


def main(config: Config) -> None:
  """Classifiers -> streams -> thresholds and detectors -> tables."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, batches=20, epochs=1)
  with options():
    check_options(config)
    config = filled(config)
    simulated = config.dataset == SIMULATED
    streams = made_up(config) if simulated else of_images(config)
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  adapter = methods.adand(optax.adam(config.learning_rate), warmup=WARMUP)
  for rate in script.numbers('rates', config.rates):
    compare_on(config, adapter, streams, rate)
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def compare_on(
  config: Config, adapter: Adapter, streams: Streams, rate: int
) -> None:
  """The methods on streams with one share of noise."""
  score = 'harmonic' if rate else 'kept'
  percent = {
    'kept': 'Acc_S', 'rejected': 'Acc_N', 'harmonic': 'Acc_H',
    'auroc': 'AUROC', 'fpr95': 'FPR95',
    'recall': 'recall of the threshold',
  }  # fmt: skip
  setting = {**script.setting(config, ('rates',)), 'noise_percent': rate}
  comparison = Comparison(
    config.out,
    {**script.about('noisy_stream', config, score), 'setting': setting},
    score=score,
    chosen_by=None,
    heads=(percent[score], ''),
    show={k: (head, report.mean_sd) for k, head in percent.items()},
    group=f'{rate}% noise',
  )
  title = f'{config.dataset}, {rate}% noise, seeds: {config.seeds}'
  report.put_plot(
    config.out,
    f'noise_{rate}.png',
    group=comparison.group,
    column=score,
    title=title,
    ylabel=f'{percent[score]} so far',
    xlabel='batch',
  )
  known: dict[str, dict[str, np.ndarray]] = {}

  def run_of(name: str) -> Fit:
    found = []
    for seed in range(config.seeds):
      rows = streams(seed, rate / 100, name == 'adand_injected')
      adapted = adapted_to(config, adapter, rows, seed, name)
      found.append(read_off(config, name, adapted, rows))
    columns, curves, states = zip(*found, strict=True)
    known[name] = stacked(columns)
    return Fit(jax.tree.map(lambda *a: np.stack(a), *states), stacked(curves))

  def done(name: str, one: Trained) -> Trained:
    rest = {k: v for k, v in known[name].items() if k != score}
    return record(comparison, name, one.also(rest))

  print(f'\n{comparison.group}')
  compare(comparison, train_each(config.methods, run_of, done))
  recall = known[config.methods[0]].get('recall')
  if recall is not None and recall.mean() <= RECALL:
    print(
      f'The threshold finds {recall.mean():.0%} of the noise. Near one half, '
      'or under it, what the detector is taught amplifies the errors.'
    )


# --- options ------------------------------------------------------------------


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check(config.rates, 'rates must name at least one')
  for rate in script.numbers('rates', config.rates):
    check(rate < 100, f'rates must be percents below 100, got {rate}')
  check_range('injected', config.injected, 0)
  check_name('features', config.features, ('pixels', 'network'))
  for name in ('epochs', 'components'):
    size = getattr(config, name)
    check(size >= 1, f'{name} must be at least 1, got {size}')
  for name in ('batches', 'batch_size', 'learning_rate'):
    size = getattr(config, name)
    check(size >= 0, f'{name} must not be negative, got {size}')
  least = WARMUP + 2
  check(
    config.batches == 0 or config.batches >= least,
    f'batches must be at least {least}, of which the detector decides in the '
    f'last one, got {config.batches}',
  )


def filled(config: Config) -> Config:
  """With the numbers that depend on the data."""
  batches, size, rate = BOTH[config.dataset == SIMULATED]
  return dataclasses.replace(
    config,
    batches=config.batches or batches,
    batch_size=config.batch_size or size,
    learning_rate=config.learning_rate or rate,
  )


# --- streams ------------------------------------------------------------------


def made_up(config: Config) -> Streams:
  """Unit features; logits are 15 times the cosine with the class."""
  n = config.batches * config.batch_size
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)

  def stream(seed: int, rate: float, inject: bool) -> Rows:
    rng = np.random.default_rng(seed)
    drawn = lambda *shape: unit(rng.normal(size=(*shape, SIZE)))
    centers, others = drawn(CLASSES), drawn(CLASSES)
    clean, noisy, surely = 0.6 * drawn(3)  # what the images of a kind share
    others = unit(0.3 * centers + 0.7 * others)
    labels, noise = rng.integers(0, CLASSES, n), rng.random(n) < rate
    spread = rng.normal(size=(n, SIZE)) / np.sqrt(SIZE)
    x = np.where(
      noise[:, None],
      others[labels] + noisy + spread,
      centers[labels] + clean + 1.6 * spread,
    )
    k = round(config.injected * n) if inject else 0
    more = 2 * surely + noisy / 2 + 0.3 * rng.normal(size=(k, SIZE)) / 8
    x = unit(np.concatenate([x, more]))
    return mixed(rng, x, 15 * x @ centers.T, np.where(noise, -1, labels))

  return stream


def of_images(config: Config) -> Streams:
  """Test images of two sets, and what networks trained on the first say."""
  dataset = script.first(script.read(config), config.examples)
  other = script.read(dataclasses.replace(config, dataset=config.noise))
  own, noise = dataset.test, other.test.x
  check(
    noise.shape[1:] == own.x.shape[1:],
    f'noise must have images {own.x.shape[1:]}, {config.noise} has '
    f'{noise.shape[1:]}',
  )
  n = config.batches * config.batch_size
  check(
    n <= min(len(noise), len(own.x)),
    f'batches: a stream of {n} rows needs as many test images of both sets',
  )
  say = networks(config, dataset)

  def stream(seed: int, rate: float, inject: bool) -> Rows:
    rng = np.random.default_rng(seed)
    key = jax.random.fold_in(jax.random.key(2), seed)
    alien = rng.random(n) < rate
    first = rng.permutation(len(own.x))[:n]
    labels = np.where(alien, -1, own.labels[first])
    x = own.x[first]
    x[alien] = noise[rng.permutation(len(noise))[: alien.sum()]]
    k = round(config.injected * n) if inject else 0
    surely = np.asarray(noise_images(key, k, x.shape[1:]))
    features, logits = say(seed, np.concatenate([x, surely]))
    return mixed(rng, features, logits, labels)

  return stream


def mixed(
  rng: np.random.Generator, x: np.ndarray, z: np.ndarray, labels: np.ndarray
) -> Rows:
  """Rows in random order; those after the last label are injected."""
  order = rng.permutation(len(x))
  injected = np.arange(len(x)) >= len(labels)
  labels = np.pad(labels, (0, len(x) - len(labels)), constant_values=-1)
  rows = Rows(x.astype(np.float32), z.astype(np.float32), labels, injected)
  return Rows(*(a[order] for a in rows))


def networks(
  config: Config, dataset: Dataset
) -> Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """What the network of a seed says of images: features and logits."""
  train, test = dataset.train, dataset.test
  model = script.network(config.net, dataset.num_classes, train.x)
  method = supervised(losses.ce, model, optax.adam(1e-3))
  fitted = fit_many(
    method,
    {'x': train.x, 'labels': train.labels},
    jax.random.split(jax.random.key(0), config.seeds),
    epochs=config.epochs,
    batch_size=100,
    held_out={'test': {'x': test.x, 'labels': test.labels}},
    label='classifier',
  )
  right = fitted.history['test_accuracy'][:, -1]
  print(f'{report.mean_sd(right)}% of clean test images right')

  @jax.jit
  def both(state: State, x: Array) -> tuple[Array, Array]:
    outputs = method.predict(state, x)
    return outputs.features, outputs.logits

  def say(seed: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    state = jax.tree.map(lambda a: a[seed], fitted.state)
    parts = [both(state, part['x']) for part in padded_batches({'x': x})]
    features, logits = (
      np.concatenate(a)[: len(x)]
      for a in zip(*jax.device_get(parts), strict=True)
    )
    pixels = config.features == 'pixels'
    return x.reshape(len(x), -1) if pixels else features, logits

  reduced = [
    principal(say(seed, train.x)[0], config.components)
    for seed in range(config.seeds)
  ]

  def shown(seed: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, logits = say(seed, x)
    middle, axes = reduced[seed]
    return SCALE * (features - middle) @ axes, logits

  return shown


def principal(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The mean of rows [n, d], and their first principal axes [d, count]."""
  middle = x.mean(0)
  _, axes = np.linalg.eigh((x - middle).T @ (x - middle))
  return middle, axes[:, ::-1][:, :count]


# --- what came of them --------------------------------------------------------


def adapted_to(
  config: Config, adapter: Adapter, rows: Rows, seed: int, name: str
) -> Adapted:
  """The answers to a stream; the detector is zeros at first."""
  detector = linear(rows.features.shape[1], 2).init(jax.random.key(seed))
  arrays = {k: v for k, v in rows._asdict().items() if k != 'labels'}
  return adapt(
    adapter,
    adapter.init(*detector),
    arrays,
    jax.random.key(seed),
    batch_size=config.batch_size,
    label=name,
  )


def read_off(
  config: Config, name: str, adapted: Adapted, rows: Rows
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], State]:
  """Scores of a run, those after each part of the stream, and its state."""
  own, aux = ~rows.injected, adapted.outputs.aux
  first = 'zero_shot_' if name == 'zero_shot' else ''
  top, labels = rows.logits.argmax(1)[own], rows.labels[own]
  rejected, score = aux[f'{first}noise'][own], aux[f'{first}score'][own]
  parts = np.arange(1, config.batches + 1) / config.batches
  curves = {
    k: np.array(v)
    for k, v in so_far(top, rejected, labels, parts)._asdict().items()
  }
  noise = labels < 0
  columns = {k: v[-1] for k, v in curves.items()}
  if noise.any():
    # Until the detector decides, its score is that of the threshold.
    batch = np.arange(len(own)) // config.batch_size
    ranked = score, noise, (batch > WARMUP)[own]
    columns |= {
      'auroc': np.asarray(scores.roc_auc_of(*ranked)),
      'fpr95': np.asarray(scores.fpr_at_95_of(*ranked)),
      'recall': aux['zero_shot_noise'][own][noise].mean(),
    }
  else:  # of no noise there is nothing to say
    curves, columns = {'kept': curves['kept']}, {'kept': columns['kept']}
  return columns, curves, adapted.state


def so_far(
  top: np.ndarray, rejected: np.ndarray, labels: np.ndarray, parts: np.ndarray
) -> scores.HarmonicAccuracy:
  """Scores of the first parts of a stream, [parts] each."""
  place = np.arange(1, len(top) + 1) / len(top)
  of = lambda part: scores.harmonic_accuracy_of(
    top, rejected, labels, place <= part
  )
  return jax.jit(jax.vmap(of))(parts)


def stacked(rows: tuple[dict[str, np.ndarray], ...]) -> dict[str, np.ndarray]:
  """The values of all runs, by name."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


if __name__ == '__main__':
  run(main, Config, __doc__)
