"""Arrays in, batches out: the order of an epoch and the batches along it.

All on the device and jit-able; equal on any number of devices.
"""

from collections.abc import Collection, Iterator, Mapping
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jnl.base import PAD, Array, Batch, Key, Table, check, read_rows
from jnl.inputs import off_simplex


def epoch_order(key: Key, n: int, shards: int) -> Array:
  """A random order of the training examples, within each shard.

  Args:
    key: the epoch's.
    n: number of examples.
    shards: of the tables (`base.data_shards`).

  Returns:
    [shards, m] int32 global indices, m = ceil(n / shards); where a shard is
    short, `PAD` comes last.
  """
  m = math.ceil(n / shards)
  index = jnp.arange(shards * m, dtype=jnp.int32).reshape(shards, m)
  score = jnp.where(index < n, jax.random.uniform(key, (shards, m)), 2.0)
  index = jnp.where(index < n, index, PAD)
  return jnp.take_along_axis(index, jnp.argsort(score, axis=1), axis=1)


def stream_order(
  key: Key,
  n: int,
  shards: int,
  batch_size: int,
  *,
  first: Array | int,
  steps: int,
) -> Array:
  """The order in which a stream gives the batches of a number of steps.

  It goes over its examples again and again, in another order each time; what
  does not fill a batch is left out of that pass.

  Args:
    key: of the stream.
    n: examples.
    shards: of its tables.
    batch_size: examples in a step, a multiple of the shards.
    first: [] int, the number of the first step since training began.
    steps: how many.

  Returns:
    [shards, steps * batch_size / shards] int32, as `epoch_order`; batch i of
    `take_batch` is that of step first + i.

  >>> order = stream_order(jax.random.key(0), 5, 1, 2, first=1, steps=3)
  >>> order.shape
  (1, 6)
  """
  per_pass, columns = n // batch_size, batch_size // shards
  # However the first step lies in its pass.
  passes = -(-(per_pass - 1 + steps) // per_pass)
  own = jnp.asarray(first) // per_pass + jnp.arange(passes)

  def one(number: Array) -> Array:
    order = epoch_order(jax.random.fold_in(key, number), n, shards)
    return order[:, : per_pass * columns]

  orders = jnp.moveaxis(jax.vmap(one)(own), 0, 1).reshape(shards, -1)
  start = jnp.asarray(first) % per_pass * columns
  return lax.dynamic_slice_in_dim(orders, start, steps * columns, axis=1)


def index_order(n: int, shards: int, batch_size: int) -> np.ndarray:
  """The index order within each shard, padded so that batches cover all n.

  Args:
    n: examples.
    shards: in how many they are cut, a divisor of the batch size.
    batch_size: of all shards together.

  Returns:
    [shards, m'] int32 with m' a multiple of batch_size / shards.
  """
  m, columns = math.ceil(n / shards), batch_size // shards
  index = np.arange(shards * m, dtype=np.int32).reshape(shards, m)
  index = np.where(index < n, index, PAD)
  padding = ((0, 0), (0, -m % columns))
  return np.pad(index, padding, constant_values=PAD)


def take_batch(
  tables: Mapping[str, Table], order: Array, i: Array, batch_size: int
) -> Batch:
  """The i-th batch along an order.

  Args:
    tables: the data, one Table for each key of the batch.
    order: [shards, m] from `epoch_order` or `index_order`.
    i: [] int, the number of the batch; may be traced.
    batch_size: a multiple of the shards.

  Returns:
    The rows of `tables` with `index` [b] and `weight` [b]: that of the data or
    1, and 0 for padding.
  """
  columns = batch_size // order.shape[0]
  index = lax.dynamic_slice_in_dim(order, i * columns, columns, axis=1)
  index = index.reshape(-1)
  batch = {name: read_rows(table, index) for name, table in tables.items()}
  batch.setdefault('weight', (index != PAD).astype(jnp.float32))
  return {**batch, 'index': index}


def packed_on_host(
  values: np.ndarray, shards: int, axis: int = 0
) -> np.ndarray:
  """The rows [shards, m, ...] of a `Table` of `values` [n, ...], in numpy.

  From here every device is sent its own shards: none ever holds the whole, or
  more than one copy. A view where no shard runs short.

  Args:
    values: with n examples along `axis`.
    shards: of the table.
    axis: 1 where runs come first; it becomes [shards, m].

  >>> packed_on_host(np.arange(5), shards=2).tolist()
  [[0, 1, 2], [3, 4, 0]]
  """
  values = np.asarray(values)
  n = values.shape[axis]
  m = math.ceil(n / shards)
  if n < shards * m:
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, shards * m - n)
    values = np.pad(values, padding)
  before, after = values.shape[:axis], values.shape[axis + 1 :]
  return values.reshape(*before, shards, m, *after)


class PerRun(NamedTuple):
  """Marks an array that differs from run to run, for `fit_many`.

  >>> labels = PerRun(np.array([[0, 1, 1], [0, 0, 1]]))  # two runs

  Attributes:
    values: [runs, n, ...].
  """

  values: np.ndarray


def of_run(arrays: Mapping[str, Any], run: int) -> dict[str, np.ndarray]:
  """The arrays of one run: its own of what is `PerRun`, and all others.

  >>> of_run({'x': np.arange(2), 'labels': PerRun(np.eye(2, dtype=int))}, 1)
  {'x': array([0, 1]), 'labels': array([0, 1])}
  """
  return {
    name: values.values[run] if isinstance(values, PerRun) else values
    for name, values in arrays.items()
  }


def check_arrays(
  arrays: Mapping[str, np.ndarray],
  num_classes: int | None = None,
  argument: str = 'data',
  checked: Collection[str] = (),
) -> int:
  """Checks the arrays of a data set on the host.

  Values are looked at in rows that count: of a `weight` above 0; labels where
  `labeled`, if there is one, is True as well.

  Args:
    arrays: [n, ...] by name.
    num_classes: if given, integer `labels` must lie in [0, num_classes).
    argument: what the error calls them.
    checked: names of arrays whose values are known to be good, since other runs
      share them.

  Returns:
    n.

  Raises:
    ValueError: naming the array, if lengths differ, a value is NaN or infinite,
      a label is out of range or no distribution, a weight is negative, a set of
      `candidates` or a bag (`mask`) is empty, `counts` do not fit the bags, a
      name is reserved.
    TypeError: if `labels` [n] are not integers.
  """
  check(len(arrays) > 0, f'{argument} must hold at least one array')
  check('index' not in arrays, f"{argument} must not hold 'index'")
  lengths = {name: len(values) for name, values in arrays.items()}
  n = next(iter(lengths.values()))
  check(
    n > 0 and set(lengths.values()) == {n},
    f'the arrays of {argument} must have one length above 0, got {lengths}',
  )
  new = set(arrays) - set(checked)
  counts = np.ones(n, bool)
  if 'weight' in arrays:
    weight = np.asarray(arrays['weight'])
    check(
      weight.shape == (n,) and (weight >= 0).all(),
      f'{argument}: weight must be [n] and not negative, got shape '
      f'{weight.shape}',
    )
    counts &= weight > 0
  for name in new:
    if jnp.issubdtype(arrays[name].dtype, jnp.inexact):
      for first, part in _blocks(arrays[name]):
        bad = ~np.isfinite(part).reshape(len(part), -1).all(1)
        row = _first(bad, counts[first : first + len(part)])
        check(
          row is None,
          f'{argument}: {name} holds NaN or infinite values, first in row '
          f'{first + (row or 0)}; leave such a row out, or give it weight 0',
        )
  if 'labels' in arrays and new & {'labels', 'weight', 'labeled'}:
    known = np.asarray(arrays.get('labeled', counts))
    known = known if known.shape == (n,) else counts
    name = f'{argument}: labels'
    check_labels(arrays['labels'], num_classes, name, counts & (known != 0))
  if 'candidates' in arrays and new & {'candidates', 'weight'}:
    check_candidates(arrays['candidates'], f'{argument}: candidates', counts)
  if 'mask' in arrays and new & {'mask', 'weight'}:
    check_mask(arrays['mask'], f'{argument}: mask', counts)
  if 'counts' in arrays and new & {'counts', 'mask', 'weight'}:
    mask = arrays.get('mask')
    if mask is None:
      mask = np.ones((n, *arrays['x'].shape[1:2]), bool)
    check_counts(arrays['counts'], mask, f'{argument}: counts', counts)
  return n


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Some rows at once: an array may be mapped from a file above the memory."""
  for first in range(0, len(values), 4096):
    yield first, np.asarray(values[first : first + 4096])


def check_numbers(arrays: Mapping[str, Any], argument: str = 'data') -> None:
  """Raises unless these are arrays of numbers or truth values, by name.

  Raises:
    TypeError: naming the array.
  """
  check(
    isinstance(arrays, Mapping),
    f"{argument} must be a dict of arrays, {{'x': ..., 'labels': ...}}, got "
    f'{type(arrays).__name__}',
    TypeError,
  )
  for name, values in arrays.items():
    dtype: Any = getattr(values, 'dtype', None)
    check(
      dtype is not None and len(values.shape) >= 1,
      f'{argument}: {name} must be an array [n, ...] (np.asarray makes one, '
      f'data.from_table of a DataFrame), got {type(values).__name__}',
      TypeError,
    )
    try:
      good = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, bool)
    except TypeError:  # a dtype of another library
      good = False
    check(
      good,
      f'{argument}: {name} must be numbers in an array of numpy or jax, got '
      f'{type(values).__name__} of {dtype}',
      TypeError,
    )


def _first(bad: Any, rows: np.ndarray | None) -> int | None:
  """The first bad row among those that count, if there is one."""
  bad = bad if rows is None else bad & rows
  return int(bad.argmax()) if bad.any() else None


def check_candidates(
  candidates: np.ndarray,
  argument: str = 'candidates',
  rows: np.ndarray | None = None,
) -> None:
  """Raises unless these are sets [n, c] bool; none of the `rows` is empty."""
  candidates = np.asarray(candidates)
  check(
    candidates.dtype == bool and candidates.ndim == 2,
    f'{argument} must be [n, c] bool, got {candidates.dtype} of shape '
    f'{candidates.shape}',
    TypeError,
  )
  row = _first(~candidates.any(1), rows)
  check(row is None, f'{argument}: the set of row {row} is empty')


def check_mask(
  mask: np.ndarray,
  argument: str = 'mask',
  rows: np.ndarray | None = None,
) -> None:
  """Raises unless this is [n, m, ...] bool and none of the `rows` is empty."""
  mask = np.asarray(mask)
  check(
    mask.dtype == bool and mask.ndim >= 2,
    f'{argument} must be [n, m] bool, got {mask.dtype} of shape {mask.shape}',
    TypeError,
  )
  row = _first(~mask.reshape(len(mask), -1).any(1), rows)
  check(
    row is None,
    f'{argument}: bag {row} is empty; leave it out, or give it weight 0',
  )


def check_counts(
  counts: np.ndarray,
  mask: np.ndarray,
  argument: str = 'counts',
  rows: np.ndarray | None = None,
) -> None:
  """Raises unless counts [n] or [n, c] are integers that the bags can hold."""
  counts, size = np.asarray(counts), np.asarray(mask).sum(1)
  check(
    np.issubdtype(counts.dtype, np.integer),
    f'{argument} must be integers, got {counts.dtype}',
    TypeError,
  )
  size = size.reshape(-1, *(1,) * (counts.ndim - 1))
  bad = ((counts < 0) | (counts > size)).reshape(len(counts), -1).any(1)
  row = _first(bad, rows)
  check(
    row is None,
    f'{argument} must lie between 0 and the size of the bag; that of bag '
    f'{row} does not. If it is not known, give the bag weight 0',
  )


def check_labels(
  labels: np.ndarray,
  num_classes: int | None,
  argument: str = 'labels',
  rows: np.ndarray | None = None,
) -> None:
  """Raises unless labels are right, in the `rows` [n] bool that count (all).

  Labels are integers in [0, num_classes), or soft ones [n, ..., c]: floats that
  are not negative and sum to one, within 1e-3 or what their dtype resolves; or
  sets of candidates [n, c] bool, as `losses.cc` takes them.

  Args:
    labels: [n, ...] int, [n, ..., c] soft, or [n, c] bool.
    num_classes: c; None leaves the upper end open.
    argument: what the error calls them.
    rows: [n] bool, which of them have to be right; None for all.

  Raises:
    TypeError: if they are none of these.
    ValueError: if one is out of range, or a set is empty.
  """
  if len(labels.shape) == 2 and labels.dtype == bool:
    check_candidates(labels, argument, rows)
    return
  if len(labels.shape) > 1 and jnp.issubdtype(labels.dtype, jnp.floating):
    _check_soft(labels, argument, rows)
    return
  labels = np.asarray(labels)
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'{argument} must be integers, got {labels.dtype}',
    TypeError,
  )
  if rows is not None:
    labels = labels[rows]
  if num_classes is not None and labels.size:
    low, high = labels.min(), labels.max()
    check(
      low >= 0 and high < num_classes,
      f'{argument} must lie in [0, {num_classes}) where a row counts (its '
      f'weight is above 0), got values from {low} to {high}',
    )


def _check_soft(
  labels: np.ndarray, argument: str, rows: np.ndarray | None
) -> None:
  for first, part in _blocks(labels):
    bad, sums = off_simplex(part)
    own = None if rows is None else rows[first : first + len(part)]
    row = _first(bad.reshape(len(part), -1).any(1), own)
    if row is not None:
      raise ValueError(
        f'{argument}: soft labels must not be negative and must sum to one; '
        f'row {first + row} has values from {part[row].min():.4g} to '
        f'{part[row].max():.4g} and the sum {sums[row].flat[0]:.6g}'
      )
