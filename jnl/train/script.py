"""What experiment scripts share: options, networks, optimizers, picks of rows.

A script has `class Config(script.Common)`, whose further fields are its own
options, and says in `main` what is done with them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from jnl import nets, noise
from jnl.base import Key, Model, check, check_name
from jnl.data import Dataset, Examples, PerRun, augment, load, take
from jnl.meta import first_adam
from jnl.train import report
from jnl.train._cli import option
from jnl.train._fit import Checkpoint

# --- options -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Common:
  """The options of every experiment; a script may give others defaults."""

  methods: tuple[str, ...] = option((), 'what is compared')
  dataset: str = option(
    'digits', 'digits, an image set of TFDS, or one in data-dir'
  )
  data_dir: str = option('', 'folder of local files, see jnl.data.load')
  net: str = option('mlp', 'network: mlp or another name of nets.build')
  seeds: int = option(5, 'runs, each with labels of its own')
  out: str = option(
    'results', 'folder for what comes out; one that is taken gets a number'
  )
  tensorboard: bool = option(
    False, 'curves for TensorBoard, in out/tensorboard'
  )
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs')


@dataclasses.dataclass(frozen=True)
class Resumable(Common):
  """Options of an experiment whose runs can go on after a crash."""

  checkpoint_every: int = option(0, 'steps between checkpoints; 0 is none')
  resume: bool = option(False, 'go on from the checkpoints in out')


SKIPPED = {field.name for field in dataclasses.fields(Resumable)} - {'net'}
"""What a `setting` leaves out: no number of a run depends on it."""


def setting(config: Common, skipped: Collection[str] = ()) -> dict[str, Any]:
  """The options that the numbers of a run depend on, but for the data set.

  Args:
    config: of the script.
    skipped: further fields that are left out.

  Returns:
    By name.

  >>> setting(Common(seeds=3))
  {'net': 'mlp'}
  """
  fields = dataclasses.asdict(config)
  return {
    k: v for k, v in fields.items() if k not in SKIPPED and k not in skipped
  }


def about(
  experiment: str, config: Common, metric: str = 'accuracy'
) -> dict[str, Any]:
  """What all rows of the results share, for `compare`.

  Args:
    experiment: the name of the script.
    config: its options.
    metric: what is compared.

  Returns:
    By name.
  """
  return {
    'experiment': experiment,
    'dataset': config.dataset,
    'setting': setting(config),
    'metric': metric,
  }


def check_common(config: Common, methods: Collection[str]) -> None:
  """Raises ValueError for a common option that cannot be, before any work.

  Args:
    config: of the script; a `net` that is '' is for the script to choose.
    methods: that it has.
  """
  for method in config.methods:
    check_name('method', method, methods)
  if config.net:
    nets.build(config.net, 2)
  check(
    not config.tensorboard or importlib.util.find_spec('tensorboard'),
    'tensorboard needs the package: pip install tensorboard',
  )
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')
  every = config.checkpoint_every if isinstance(config, Resumable) else 0
  check(every >= 0, f'checkpoint-every must not be negative, got {every}')


def listing(methods: Mapping[str, Callable]) -> str:
  """Lines for `--help` that say what each method is.

  Args:
    methods: by name, functions whose docstrings begin with a line.

  Returns:
    The lines, after an empty one.

  >>> print(listing({'abs': abs}))
  <BLANKLINE>
  methods:
    abs  Return the absolute value of the argument
  """
  width, lines = max(map(len, methods)), ['', 'methods:']
  for name, method in methods.items():
    first = (method.__doc__ or '').strip().partition('\n')[0]
    lines.append(f'  {name:<{width}}  {first.rstrip(".")}')
  return '\n'.join(lines)


@contextlib.contextmanager
def logging(config: Common, name: str) -> Iterator[Callable | None]:
  """Gives the `log` of `fit` for a method: TensorBoard's, if it is asked for.

  Args:
    config: of the script.
    name: of the method.

  Yields:
    The function, or None.
  """
  if not config.tensorboard:
    yield None
    return
  with report.tensorboard(f'{config.out}/tensorboard/{name}') as write:
    yield write


def numbers(name: str, values: Sequence[str], least: int = 0) -> list[int]:
  """The numbers of an option that is given with commas.

  Args:
    name: of the option.
    values: what was given.
    least: the smallest that may be.

  Returns:
    The numbers.

  Raises:
    ValueError: naming the option.

  >>> numbers('bag_sizes', ('8', '32'))
  [8, 32]
  """
  check(
    all(value.isdigit() and int(value) >= least for value in values),
    f'{name} must be numbers from {least} on, with commas, got {values}',
  )
  return [int(value) for value in values]


def checkpoint(config: Resumable, name: str) -> Checkpoint | None:
  """Where the runs of a method are saved, if the options say so.

  Args:
    config: of the script; a run may go on for more `epochs`.
    name: of the method.

  Returns:
    The folder and what is kept there, or None.
  """
  every = config.checkpoint_every
  if not every and not config.resume:
    return None
  return Checkpoint(
    f'{config.out}/checkpoints/{name}',
    resume=config.resume,
    every=every or None,
    config={**setting(config), 'dataset': config.dataset, 'epochs': None},
  )


# --- data --------------------------------------------------------------------


def read(config: Common) -> Dataset:
  """The data set of the options.

  Args:
    config: of the script.

  Returns:
    The data set.
  """
  return load(config.dataset, data_dir=config.data_dir or None)


def first(dataset: Dataset, examples: int) -> Dataset:
  """The same data set with the first rows of its training set, as published.

  Args:
    dataset: any.
    examples: how many rows; 0 is all.

  Returns:
    The data set.

  Raises:
    ValueError: if `examples` is out of range.
  """
  n = len(dataset.train.labels)
  check(0 <= examples <= n, f'examples must lie in [0, {n}], got {examples}')
  if not examples:
    return dataset
  rows = np.sort(np.argsort(dataset.train.id)[:examples])
  return dataset._replace(train=take(dataset.train, rows))


def binary(dataset: Dataset, positive: Collection[int]) -> Dataset:
  """The data set with label 1 for some classes and 0 for the others.

  Args:
    dataset: of several classes.
    positive: the classes that become 1.

  Returns:
    The data set.

  Raises:
    ValueError: if the test set then has one class alone.
  """

  def relabeled(part: Examples) -> Examples:
    labels = np.isin(part.labels, list(positive)).astype(np.int32)
    return part._replace(labels=labels)

  train, validation, test = map(
    relabeled, (dataset.train, dataset.validation, dataset.test)
  )
  check(
    0 < test.labels.mean() < 1,
    f'positive must leave both classes in the test set, got {positive}',
  )
  return Dataset(dataset.name, 2, train, validation, test)


def per_class(
  labels: np.ndarray, size: ArrayLike, order: ArrayLike | None = None
) -> np.ndarray:
  """So many rows of each class, the first of them.

  Args:
    labels: [n] int.
    size: how many: a number, or [c] one for each class.
    order: [n], in which rows come; by default as they are.

  Returns:
    [n] bool, which rows.

  >>> per_class(np.array([0, 1, 0, 0, 1]), 1).tolist()
  [True, True, False, False, False]
  """
  order = np.arange(len(labels)) if order is None else np.asarray(order)
  size = np.asarray(size)
  rank = np.empty(len(labels), int)
  for k in np.unique(labels):
    rows = order[labels[order] == k]
    rank[rows] = np.arange(len(rows))
  return rank < (size[labels] if size.ndim else size)


def few_rows(
  part: Examples, size: int, num_classes: int, key: Key, name: str = 'labels'
) -> np.ndarray:
  """Rows drawn from each class, as many: the few that have a label.

  Args:
    part: the training set.
    size: how many of each class.
    num_classes: c.
    key: says which.
    name: the option that says how many, for the error.

  Returns:
    [n] bool.

  Raises:
    ValueError: if a class has fewer rows.
  """
  order = jax.random.permutation(key, len(part.labels))
  rows = per_class(part.labels, size, order)
  check(
    rows.sum() == size * num_classes,
    f'{name}: some class has fewer than {size} training rows',
  )
  return rows


def each_class(labels: int, num_classes: int) -> int:
  """How many of each class so many labels are.

  Args:
    labels: how many in all.
    num_classes: c.

  Returns:
    The number.

  Raises:
    ValueError: if it is not as many of each.

  >>> each_class(40, 10)
  4
  """
  size, rest = divmod(labels, num_classes)
  check(
    size >= 1 and not rest,
    f'labels must be a multiple of the {num_classes} classes, got {labels}',
  )
  return size


def labeled_stream(
  part: Examples, rows: Sequence[np.ndarray], least: int
) -> dict[str, PerRun]:
  """The labeled rows of each run, repeated until there are so many.

  Args:
    part: the training set.
    rows: of each run, [n] bool, as many in each; see `few_rows`.
    least: how many a step takes.

  Returns:
    `PerRun` arrays `x` and `labels`, for a `Stream`.
  """

  def one(own: np.ndarray) -> dict[str, np.ndarray]:
    index = np.flatnonzero(own)
    index = np.tile(index, math.ceil(least / len(index)))
    return {'x': part.x[index], 'labels': part.labels[index]}

  return per_run([one(own) for own in rows])


def bag_arrays(part: Examples, bags: noise.Bags) -> dict[str, np.ndarray]:
  """Bags of examples with two classes, as the arrays of a data set.

  Args:
    part: whose labels are 0 and 1.
    bags: of these examples, k of up to m.

  Returns:
    `x` [k, m, ...], `mask` [k, m], `counts` [k] of positives and
    `instance_labels` [k, m]; zeros in padding.
  """
  labels = noise.rows_of_bags(part.labels, bags)
  return {
    'x': noise.rows_of_bags(part.x, bags),
    'mask': np.asarray(bags.mask),
    'counts': labels.sum(1),
    'instance_labels': labels,
  }


def per_run(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, PerRun]:
  """The arrays of all runs, by name, for `fit_many`.

  Args:
    runs: the arrays [n, ...] of each run.

  Returns:
    `PerRun` [runs, n, ...] by name.
  """
  stacked = jax.tree.map(lambda *rows: np.stack(rows), *map(dict, runs))
  return {name: PerRun(values) for name, values in stacked.items()}


# --- views, networks, optimizers ---------------------------------------------


def faded(scale: float) -> augment.Augmentation:
  """Examples with normal noise of that deviation.

  Args:
    scale: the deviation.

  Returns:
    The augmentation.
  """
  return functools.partial(augment.gaussian_noise, scale=scale)


def hidden(size: int) -> augment.Augmentation:
  """Images with a black square somewhere.

  Args:
    size: its side in pixels.

  Returns:
    The augmentation.
  """
  return functools.partial(augment.cutout, size=size, fill=0.0)


near = functools.partial(augment.pad_crop, padding=1, mode='constant')
"""Shifts by a pixel."""
NEAR_VIEWS = (
  augment.compose(near, faded(0.05)),
  augment.compose(near, hidden(3), faded(0.2)),
)
"""A weak and a strong view of images as small as digits."""
crop_flip = augment.compose(augment.pad_crop, augment.flip)
VIEWS: dict[str, augment.Augmentation | None] = {
  'none': None,
  'crop_flip': crop_flip,
}
"""What may be done to images: nothing; shifts by 4 and mirrors."""
noise_view = augment.compose(augment.feature_dropout, faded(0.1))
STRONG_VIEWS: dict[str, augment.Augmentation] = {
  'none': noise_view,
  'crop_flip': augment.compose(crop_flip, augment.fixmatch_augment),
}
"""The strong view beside each of them: a fifth of the values set to 0, and
normal noise; RandAugment and cutout."""


def network(
  name: str,
  num_classes: int,
  x: np.ndarray,
  *,
  hidden: Sequence[int] | None = None,
  dropout: float | None = None,
  dtype: str = 'float32',
  standardize: bool = False,
) -> Model:
  """The network of that name, for inputs such as these.

  Args:
    name: as for `nets.build`.
    num_classes: c.
    x: [n, ...], the training set.
    hidden: the widths of `mlp`, if it is one.
    dropout: its rate, if the network has dropout.
    dtype: of the computation, float32 or bfloat16.
    standardize: each channel of `x` to mean 0 and deviation 1.

  Returns:
    The model.

  Raises:
    ValueError: if the name or the dtype is not known.
  """
  check_name('dtype', dtype, ('float32', 'bfloat16'))
  net = nets.build(name, num_classes, dtype=getattr(jnp, dtype))
  if hidden is not None and isinstance(net, nets.MLP):
    net = net.clone(hidden=tuple(hidden))
  if dropout is not None and hasattr(net, 'dropout'):
    net = net.clone(dropout=dropout)
  model = nets.from_linen(net, x.shape[1:])
  if standardize:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes, dtype=np.float64)  # float32 sums of 1e8 pixels drift
    model = nets.standardize(model, mean, x.std(axes, dtype=np.float64))
  return model


OPTIMIZERS = ('sgd', 'adam', 'first_adam')


def optimizer(
  name: str, rate: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """The optimizer of that name.

  Args:
    name: 'sgd' (momentum .9), 'adam', or 'first_adam' (`meta.first_adam`).
    rate: the learning rate.
    weight_decay: of sgd alone, L2: added to the gradient.

  Returns:
    The transformation.

  Raises:
    ValueError: if the name is not known.
  """
  check_name('optimizer', name, OPTIMIZERS)
  if name == 'sgd':
    return optax.chain(
      optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=0.9)
    )
  return optax.adam(rate) if name == 'adam' else first_adam(rate)
