"""Training that survives wrong labels: robust losses and ELR against plain CE.

The memorization curve of Liu et al. (ELR, NeurIPS 2020, arXiv 2007.00151)
on real scans: under 40% symmetric label noise the clean test accuracy of
cross-entropy rises and then falls, as the network first learns the digits and
then the wrong labels; robust losses and ELR hold on.

  python experiments/noisy_labels.py                 # digits, 5 seeds, a minute
  python experiments/noisy_labels.py --methods ce,elr --noise pair_flip

Out come a table, `results.jsonl` (one line for each method and seed) and
`accuracy.png`. An epoch is chosen by *noisy* validation, never by clean labels.

The default setting is fixed and not tuned: pixels / 16 and no standardization,
which would reverse the order (ELR 65, CE 70).
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, noise
from jnl.base import Array, Method, check, data_shards, supervised
from jnl.data import Dataset, check_name, load
from jnl.methods.elr import elr, mislabeled
from jnl.nets import MLP, StridedCNN, from_linen
from jnl.train import report
from jnl.train.cli import option, parse
from jnl.train.fit import Fit, fit_many

NETS = ('mlp', 'strided_cnn')
NOISES = ('symmetric', 'symmetric_inclusive', 'pair_flip')
LOSSES = (
  'ce', 'label_smoothing', 'gls', 'bootstrap_soft', 'bootstrap_hard', 'focal',
  'mae', 'rce', 'sce', 'gce', 'taylor_ce', 'js', 'bi_tempered',
  'nce', 'ngce', 'nfl', 'nnce', 'nnfl', 'nce_rce', 'nce_mae', 'nfl_rce',
  'nfl_mae', 'ngce_rce', 'ngce_mae', 'nce_agce', 'nce_aul', 'nce_ael', 'agce',
  'aul', 'ael', 'anorm', 'anl_ce', 'anl_fl',
)  # fmt: skip
METHODS = ('elr', *LOSSES)
SKIPPED = ('methods', 'dataset', 'seeds', 'out', 'smoke')


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('ce', 'gce', 'sce', 'nce_rce', 'elr'),
    'elr, or per-example losses of jnl.losses',
  )
  dataset: str = option('digits', 'data set')
  net: str = option('mlp', 'network: mlp or strided_cnn')
  noise: str = option('symmetric', f'noise: {", ".join(NOISES)}')
  rate: float = option(0.4, 'noise rate, in [0, 1]')
  seeds: int = option(5, 'runs, each with its own noise draw')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  weight_decay: float = option(5e-4, 'L2, added to the gradient')
  beta: float = option(0.7, 'ELR: memory of the targets')
  lam: float = option(3.0, 'ELR: weight of the penalty')
  out: str = option('results/noisy_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs')


def main(config: Config) -> None:
  """Data -> network -> methods -> fit -> report."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=2)
  check_names(config)
  dataset = load(config.dataset)
  transition = getattr(noise, config.noise)(dataset.num_classes, config.rate)
  runs = jax.random.split(jax.random.key(0), (config.seeds, 3))
  train_labels = draw(runs[:, 0], dataset.train.labels, transition)
  validation_labels = draw(runs[:, 1], dataset.validation.labels, transition)
  test_labels = np.tile(dataset.test.labels, (config.seeds, 1))

  rows, lines, curves = [], [], {}
  for name in config.methods:
    start = time.perf_counter()
    fitted = fit_many(
      build(name, config, dataset),
      {'x': dataset.train.x, 'labels': train_labels},
      runs[:, 2],
      per_run=('labels',),
      held_out={
        'test': {'x': dataset.test.x, 'labels': test_labels},
        'validation': {'x': dataset.validation.x, 'labels': validation_labels},
      },
      epochs=config.epochs,
      batch_size=config.batch_size,
      label=name,
    )
    seconds = time.perf_counter() - start
    curves[name] = fitted.history['test']
    best = best_by_validation(fitted)
    flags = flag_f1(name, fitted, train_labels, dataset.train.labels)
    rows += result_rows(config, name, curves[name][:, -1], best, flags, seconds)
    lines.append(
      [
        name,
        report.mean_sd(curves[name][:, -1]),
        report.mean_sd(best),
        '' if flags is None else f'{np.mean(flags):.3f}',
        f'{seconds:.1f}',
      ]
    )
  header = ['method', 'last epoch', 'best by noisy val.', 'flags F1', 'seconds']
  print(report.table(header, lines))
  title = f'{config.dataset}, {config.noise} noise {config.rate:g}'
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  report.plot_curves(
    f'{config.out}/accuracy.png',
    curves,
    title=f'{title}, {config.seeds} seeds',
    ylabel='clean test accuracy',
  )
  print(f'\nwrote results.jsonl and accuracy.png to {config.out}')


def check_names(config: Config) -> None:
  """Raises for a name that is not known, before any work."""
  for method in config.methods:
    check_name('method', method, METHODS)
  check_name('net', config.net, NETS)
  check_name('noise', config.noise, NOISES)
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')


def draw(keys: Array, labels: np.ndarray, transition: Array) -> np.ndarray:
  """Noisy labels [runs, n], one draw for each key."""
  corrupt = jax.vmap(noise.corrupt, (0, None, None))
  return np.asarray(corrupt(keys, jnp.asarray(labels), transition))


def build(name: str, config: Config, dataset: Dataset) -> Method:
  """The method of that name, with the settings of the published ones."""
  c, n = dataset.num_classes, len(dataset.train.labels)
  net = MLP(c) if config.net == 'mlp' else StridedCNN(c)
  model = from_linen(net, dataset.train.x.shape[1:])
  tx = optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(config.learning_rate, momentum=0.9),
  )
  if name == 'elr':
    shards = data_shards(n, config.batch_size)
    return elr(model, tx, n, c, beta=config.beta, lam=config.lam, shards=shards)
  return supervised(getattr(losses, name), model, tx)


def best_by_validation(fitted: Fit) -> np.ndarray:
  """Clean test accuracy [runs] at the epoch of the best noisy validation."""
  epoch = fitted.history['validation'].argmax(axis=1)
  return np.take_along_axis(fitted.history['test'], epoch[:, None], 1)[:, 0]


def flag_f1(
  name: str, fitted: Fit, noisy: np.ndarray, clean: np.ndarray
) -> np.ndarray | None:
  """F1 [runs] of ELR's flags against the labels that are truly wrong."""
  if name != 'elr':
    return None
  flagged = jax.vmap(mislabeled)(fitted.state, jnp.asarray(noisy))
  wrong = noisy != clean
  return 2 * (flagged & wrong).sum(1) / (flagged.sum(1) + wrong.sum(1))


def result_rows(
  config: Config,
  name: str,
  last: np.ndarray,
  best: np.ndarray,
  flags: np.ndarray | None,
  seconds: float,
) -> list[dict]:
  """One row for each run; seconds are those of all runs together."""
  setting = {
    k: v for k, v in dataclasses.asdict(config).items() if k not in SKIPPED
  }
  return [
    {
      'experiment': 'noisy_labels',
      'method': name,
      'dataset': config.dataset,
      'setting': setting,
      'seed': seed,
      'metric': 'accuracy',
      'last': last[seed],
      'best_val': best[seed],
      'seconds': seconds,
      **({} if flags is None else {'flag_f1': flags[seed]}),
    }
    for seed in range(config.seeds)
  ]


if __name__ == '__main__':
  main(parse(Config, __doc__))
