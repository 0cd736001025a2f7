"""Which label turns into which, and how often: estimates against the truth.

The transition matrix T[i, j] = P(noisy = j | clean = i), estimated from noisy
labels alone:

  identity      as if no label were wrong
  anchor        the likeliest example of each class (Patrini et al., CVPR 2017)
  anchor_97     the likeliest below the 97th percentile
  dual_t        that, by way of the predicted class (Yao et al., NeurIPS 2020)
  vol_min       learned with the network (Li et al., ICML 2021)
  vol_min_long  the same for twice the epochs
  hoc           how far neighbors agree, without training (Zhu et al., ICML
                2021)

and the labels that neighbors call wrong, simifeat_votes and simifeat_rank (Zhu
et al., ICML 2022), beside the confident joint of a linear model, out of fold.

  python experiments/noise_rates.py            # digits, three kinds of noise
  python experiments/noise_rates.py --dataset blobs --noise symmetric --spread 6
  python experiments/noise_rates.py --dataset blobs --data-dir DIR \\
    --noise cifar100n --rows 20000 --epochs 10 --seeds 1
  python experiments/noise_rates.py --dataset cifar10_jpg --data-dir DIR \\
    --rows 4000 --noise cifar10n_aggre,cifar10n_worse --net strided_cnn \\
    --standardize --features network --epochs 4 --seeds 1

The true matrix is the one that labels were drawn by; of people, and of noise
that depends on the example (part_dependent), the share of each label in each
class. The error is sum |T - T*| / c, from 0 to 2: of the identity it is twice
the share of wrong labels. `blobs` are Gaussian, five classes, or the clean
labels of CIFAR-10N and CIFAR-100N with inputs that are made here: labels by
people, on features as good as they can be.

Neighbors are looked for among pixels, by angle, or (`--features network`) in
the features of the network that was trained on the noisy labels: for few
epochs, since once it has memorized a label its features have it too, and the
neighbors agree. Out come two tables, `results.jsonl`, `matrices.npz` and
`matrices.png`, heat maps side by side.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jnl import audit, data, losses, methods, train, transition
from jnl.base import Array, Method, Model, State, check, check_name
from jnl.data import Dataset, PerRun
from jnl.neighbors import Neighbors, knn
from jnl.steps import linear, supervised
from jnl.train import option, report, script

ESTIMATORS = (
  'identity', 'anchor', 'anchor_97', 'dual_t', 'vol_min', 'vol_min_long', 'hoc'
)  # fmt: skip
FLAGS = ('confident_joint', 'simifeat_votes', 'simifeat_rank')
VOTES = 10
QUANTILE = 0.97
FOLDS = 5
PEOPLE = [
  name for name in data.NOISES if name.startswith(('cifar10n', 'cifar100n'))
]


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    (*ESTIMATORS, *FLAGS), f'some of {", ".join((*ESTIMATORS, *FLAGS))}'
  )
  dataset: str = option('digits', 'digits, blobs, a set of TFDS or in data-dir')
  data_dir: str = option('', 'folder of local files, see jnl.data.load')
  rows: int = option(0, 'the first so many rows of it alone; 0 is all')
  spread: float = option(1.0, 'blobs: deviation of a row from its center')
  noise: tuple[str, ...] = option(
    ('symmetric', 'pair_flip', 'part_dependent'),
    f'one or several of {", ".join(data.NOISES)}',
  )
  rate: float = option(0.3, 'noise rate, in [0, 1]; people have their own')
  features: str = option('pixels', 'of neighbors: pixels or network')
  net: str = option('mlp', 'network: mlp or another name of nets.build')
  standardize: bool = option(False, 'channels to mean 0 and deviation 1')
  epochs: int = option(20, 'passes over the rows')
  batch_size: int = option(50, 'examples in a step')
  learning_rate: float = option(0.01, 'of SGD with momentum .9')
  seeds: int = option(3, 'runs, each with labels of its own')
  out: str = option('results/noise_rates', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs')


class Task(NamedTuple):
  """One draw of wrong labels, of which everything is known.

  Attributes:
    noise: its name.
    seed: of the draw.
    labels: [n] int32, noisy.
    wrong: [n] bool.
    transition: [c, c], the truth.
  """

  noise: str
  seed: int
  labels: np.ndarray
  wrong: np.ndarray
  transition: np.ndarray


class Learned(NamedTuple):
  """What cross-entropy makes of the noisy labels of all runs.

  Attributes:
    probs: [runs, n, c].
    features: [runs, n, d].
  """

  probs: np.ndarray
  features: np.ndarray


def main(config: Config) -> None:
  """Data -> wrong labels -> estimates and flags -> tables and heat maps."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=2)
  with train.options():
    check_options(config)
    dataset = read(config)
    x = data.published_order(dataset).x[slice(config.rows or None)]
    tasks = [
      spoil(config, dataset, noise, seed)
      for noise in config.noise
      for seed in range(config.seeds)
    ]
    out = report.own_folder(config.out)
  c, labels = dataset.num_classes, np.stack([one.labels for one in tasks])
  learned = learn(config, c, x, labels) if needs_network(config) else None
  near = neighbors(config, x, learned, len(tasks))
  matrices = estimate(config, c, x, labels, learned, near)
  flagged = flag(config, c, x, labels, near)
  errors = {name: of_errors(found, tasks) for name, found in matrices.items()}
  save(config, out, tasks, matrices, errors, flagged)
  for noise in config.noise:
    wrong = np.mean([one.wrong for one in tasks if one.noise == noise])
    print(f'{noise}: {wrong:.1%} of {labels.shape[1]} labels are wrong')
  print(f'\nsum |T - T*| / {c}\n{table_of_errors(config, errors)}')
  if flagged:
    print(f'\nwrong labels\n{table_of_flags(config, tasks, flagged)}')
  print(f'\nresults, matrices and heat maps are in {out}')


# --- data ---------------------------------------------------------------------


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check(config.methods, 'methods must name at least one')
  for name in config.methods:
    check_name('method', name, (*ESTIMATORS, *FLAGS))
  check(config.noise, 'noise must name at least one')
  for name in config.noise:
    data.check_noise(name, config.data_dir or None)
  check_name('features', config.features, ('pixels', 'network'))
  check(config.rows >= 0, f'rows must not be negative, got {config.rows}')
  check(0 <= config.rate <= 1, f'rate must lie in [0, 1], got {config.rate}')
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')


def read(config: Config) -> Dataset:
  """The data set: all its rows, since nothing is tested here."""
  human = [name for name in config.noise if name in PEOPLE]
  if config.dataset == 'blobs':
    clean = np.arange(2000) % 5
    if human:
      clean = data.human_labels(human[0], config.data_dir)[1]
    x = blobs(clean, config.spread)
  else:
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    if human:  # they labeled the training set alone
      return dataset
    parts = data.published_order(dataset), dataset.test
    x, clean = (np.concatenate([part[i] for part in parts]) for i in range(2))
  return data.from_arrays(x, clean, x, clean, name=config.dataset)


def blobs(clean: np.ndarray, spread: float) -> np.ndarray:
  """Inputs [n, 16], Gaussian around a center for each class."""
  rng = np.random.default_rng(0)
  centers = 3 * rng.normal(size=(clean.max() + 1, 16))
  x = centers[clean] + spread * rng.normal(size=(len(clean), 16))
  return x.astype(np.float32)


def spoil(config: Config, dataset: Dataset, noise: str, seed: int) -> Task:
  """Wrong labels, and the matrix that they follow."""
  folder, first = config.data_dir or None, slice(config.rows or None)
  key = jax.random.fold_in(jax.random.key(0), seed)
  noisy = data.noisy(key, dataset, noise, config.rate, data_dir=folder)
  labels, clean = np.asarray(noisy.draw.labels)[first], noisy.clean[first]
  probs, c = np.asarray(noisy.draw.probs), dataset.num_classes
  if len(probs) != c:  # of each row
    own = noisy.clean[:, None] == np.arange(c)
    probs = own.T @ probs / own.sum(0)[:, None]
  return Task(noise, seed, labels, labels != clean, probs)


# --- networks -----------------------------------------------------------------


def needs_network(config: Config) -> bool:
  """Whether anything is read from a network trained by cross-entropy."""
  read = {'anchor', 'anchor_97', 'dual_t'} & {*config.methods}
  return bool(read) or config.features == 'network'


def network(config: Config, c: int, x: np.ndarray) -> Model:
  """The network of the options."""
  whiten = config.standardize
  return script.network(config.net, c, x, standardize=whiten)


def fit(
  config: Config,
  method: Method,
  x: np.ndarray,
  labels: np.ndarray,
  label: str,
  epochs: int,
) -> State:
  """The states of all runs, trained on labels [runs, n]."""
  return train.fit_many(
    method,
    {'x': x, 'labels': PerRun(labels)},
    jax.random.split(jax.random.key(1), len(labels)),
    epochs=epochs,
    batch_size=config.batch_size,
    label=label,
  ).state


def learn(config: Config, c: int, x: np.ndarray, labels: np.ndarray) -> Learned:
  """Cross-entropy on the noisy labels."""
  tx = script.optimizer('sgd', config.learning_rate)
  method = supervised(losses.ce, network(config, c, x), tx)
  states = fit(config, method, x, labels, 'ce', config.epochs)

  @jax.jit
  def say(state: State, x: Array) -> tuple[Array, Array]:
    outputs = method.predict(state, x)
    return jax.nn.softmax(outputs.logits), outputs.features

  found = []
  for run in range(len(labels)):
    state = jax.tree.map(lambda leaf, run=run: leaf[run], states)
    parts = [say(state, part['x']) for part in train.padded_batches({'x': x})]
    whole = map(np.concatenate, zip(*jax.device_get(parts), strict=True))
    found.append([values[: len(x)] for values in whole])
  return Learned(*map(np.stack, zip(*found, strict=True)))


# --- estimates ----------------------------------------------------------------


def neighbors(
  config: Config, x: np.ndarray, learned: Learned | None, runs: int
) -> list[Neighbors]:
  """Who is near whom in each run."""
  find = lambda features: knn(features, VOTES - 1, metric='cosine')
  if config.features == 'network' and learned is not None:
    return [find(features) for features in learned.features]
  return [find(x.reshape(len(x), -1))] * runs


def estimate(
  config: Config,
  c: int,
  x: np.ndarray,
  labels: np.ndarray,
  learned: Learned | None,
  near: list[Neighbors],
) -> dict[str, np.ndarray]:
  """By estimator, matrices [runs, c, c]."""
  tx = script.optimizer('sgd', config.learning_rate)
  method = methods.vol_min(network(config, c, x), tx, num_classes=c)

  def by_network(name: str, epochs: int) -> np.ndarray:
    states = fit(config, method, x, labels, name, epochs)
    return np.asarray(jax.vmap(methods.estimated_transition)(states))

  def by_probs(of: Callable[[Array, Array], Any]) -> np.ndarray:
    assert learned is not None
    pairs = zip(learned.probs, labels, strict=True)
    return np.stack([of(*pair).transition for pair in pairs])

  ways: dict[str, Callable[[], np.ndarray]] = {
    'identity': lambda: np.broadcast_to(np.eye(c), (len(labels), c, c)),
    'anchor': lambda: by_probs(lambda p, y: transition.anchor(p)),
    'anchor_97': lambda: by_probs(
      lambda p, y: transition.anchor(p, quantile=QUANTILE)
    ),
    'dual_t': lambda: by_probs(
      lambda p, y: transition.dual_t(p, y, quantile=QUANTILE)
    ),
    'vol_min': lambda: by_network('vol_min', config.epochs),
    'vol_min_long': lambda: by_network('vol_min_long', 2 * config.epochs),
    'hoc': lambda: np.stack(
      [found.transition for found in by_neighbors(c, labels, near)]
    ),
  }
  return {name: ways[name]() for name in config.methods if name in ways}


def by_neighbors(
  c: int, labels: np.ndarray, near: list[Neighbors]
) -> list[transition.Hoc]:
  """HOC of each run."""
  pairs = zip(labels, near, strict=True)
  return [transition.hoc(own, around, c) for own, around in pairs]


def flag(
  config: Config,
  c: int,
  x: np.ndarray,
  labels: np.ndarray,
  near: list[Neighbors],
) -> dict[str, np.ndarray]:
  """By rule, the labels [runs, n] that it calls wrong."""
  flat = x.reshape(len(x), -1)
  flat = 4 * flat / np.sqrt(np.mean(np.sum(flat**2, 1)))
  tx = script.optimizer('sgd', 0.05, weight_decay=1e-3)
  method = supervised(losses.ce, linear(flat.shape[1], c), tx)

  def joint(own: np.ndarray, around: Neighbors) -> np.ndarray:
    probs = train.out_of_fold(
      method,
      {'x': flat, 'labels': own},
      jax.random.key(2),
      folds=FOLDS,
      epochs=config.epochs,
      batch_size=config.batch_size,
      label='linear',
    ).pred_probs
    return audit.find_label_issues(own, probs, filter_by='confident_learning')

  def rank(own: np.ndarray, around: Neighbors) -> Array:
    (found,) = by_neighbors(c, own[None], [around])
    fitted = found.transition, found.prior
    return transition.simifeat_rank(own, around, *fitted, k=VOTES).flags

  ways: dict[str, Callable[[np.ndarray, Neighbors], Any]] = {
    'confident_joint': joint,
    'simifeat_votes': lambda own, around: (
      transition.simifeat_votes(own, around, c, k=VOTES).flags
    ),
    'simifeat_rank': rank,
  }
  return {
    name: np.stack([*map(ways[name], labels, near)])
    for name in config.methods
    if name in ways
  }


# --- what comes out -----------------------------------------------------------


def of_errors(matrices: np.ndarray, tasks: list[Task]) -> np.ndarray:
  """sum |T - T*| / c of each run."""
  truth = np.stack([one.transition for one in tasks])
  return np.abs(matrices - truth).sum((1, 2)) / len(truth[0])


def of_flags(flags: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
  """Precision and recall."""
  hits = float((flags & wrong).sum())
  return hits / max(flags.sum(), 1), hits / max(wrong.sum(), 1)


def table_of_errors(config: Config, errors: dict[str, np.ndarray]) -> str:
  """Means and deviations over seeds, a column for each noise."""

  def cell(values: np.ndarray) -> str:
    spread = f' +- {values.std(ddof=1):.3f}' if len(values) > 1 else ''
    return f'{values.mean():.3f}{spread}'

  shape = len(config.noise), config.seeds
  rows = [
    [name, *map(cell, values.reshape(shape))] for name, values in errors.items()
  ]
  return report.table(['estimate', *config.noise], rows)


def table_of_flags(
  config: Config, tasks: list[Task], flagged: dict[str, np.ndarray]
) -> str:
  """Precision and recall, means over seeds, a column for each noise."""
  rows = []
  for name, flags in flagged.items():
    pairs = zip(flags, (one.wrong for one in tasks), strict=True)
    found = np.array([of_flags(*pair) for pair in pairs])
    means = found.reshape(len(config.noise), config.seeds, 2).mean(1)
    rows.append([name, *(f'{p:.3f}, {r:.3f}' for p, r in means)])
  head = [f'{noise}: precision, recall' for noise in config.noise]
  return report.table(['flags', *head], rows)


def save(
  config: Config,
  out: str,
  tasks: list[Task],
  matrices: dict[str, np.ndarray],
  errors: dict[str, np.ndarray],
  flagged: dict[str, np.ndarray],
) -> None:
  """Writes a line for each method and run, the matrices, and the heat maps."""
  setting = dataclasses.asdict(config)
  for name in ('methods', 'dataset', 'data_dir', 'noise', 'out', 'smoke'):
    del setting[name]
  lines = []
  for i, task in enumerate(tasks):
    about = {
      'experiment': 'noise_rates', 'dataset': config.dataset,
      'setting': setting, 'noise': task.noise, 'seed': task.seed,
      'wrong_labels': float(task.wrong.mean()),
    }  # fmt: skip
    for name, values in errors.items():
      lines.append({**about, 'method': name, 'error': float(values[i])})
    for name, flags in flagged.items():
      precision, recall = of_flags(flags[i], task.wrong)
      own = {'method': name, 'precision': precision, 'recall': recall}
      lines.append({**about, **own})
  report.write_jsonl(f'{out}/results.jsonl', lines)
  truth = np.stack([one.transition for one in tasks])
  if not matrices:
    return
  panels = {'truth': truth, **matrices}
  with report.replacing(f'{out}/matrices.npz') as path:
    np.savez_compressed(path, **panels)  # type: ignore[arg-type]
  with report.replacing(f'{out}/matrices.png') as path:
    heat_maps(path, config, panels, errors)


def heat_maps(
  path: Any,
  config: Config,
  panels: dict[str, np.ndarray],
  errors: dict[str, np.ndarray],
) -> None:
  """A row for each noise, the truth and the estimates side by side."""
  from matplotlib.figure import Figure  # slow to import

  rows, columns = len(config.noise), len(panels)
  figure = Figure((1.7 * columns, 2 * rows), layout='constrained')
  axes = figure.subplots(rows, columns, squeeze=False)
  for i, noise in enumerate(config.noise):
    runs = slice(i * config.seeds, (i + 1) * config.seeds)
    for j, (name, matrices) in enumerate(panels.items()):
      shown = axes[i, j].imshow(
        np.mean(matrices[runs], 0), vmin=0, vmax=1, cmap='magma_r'
      )
      title = name
      if name in errors:
        title += f'\n{errors[name][runs].mean():.2f}'
      axes[i, j].set_title(title, fontsize='small')
      axes[i, j].set(xticks=[], yticks=[])
    axes[i, 0].set_ylabel(f'{noise}\nclean class')
  for axis in axes[-1]:
    axis.set_xlabel('noisy label', fontsize='small')
  figure.colorbar(shown, ax=axes, shrink=0.6)
  figure.suptitle(
    f'{config.dataset}: T and its estimates, mean of {config.seeds} seeds; '
    'sum |T - T*| / classes'
  )
  figure.savefig(path, dpi=150)


if __name__ == '__main__':
  train.run(main, Config, __doc__)
