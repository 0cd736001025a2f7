"""Arrays in, batches out: the order of an epoch and the batches along it.

All on the device and jit-able; equal on any number of devices.
"""

from collections.abc import Mapping
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jnl.base import PAD, Array, Batch, Key, Table, check, read_rows


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


def index_order(n: int, shards: int, batch_size: int) -> np.ndarray:
  """The index order within each shard, padded so that batches cover all n.

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


def check_arrays(
  arrays: Mapping[str, np.ndarray],
  num_classes: int | None = None,
  argument: str = 'data',
) -> int:
  """Checks the arrays of a data set on the host.

  Args:
    arrays: [n, ...] by name.
    num_classes: if given, integer `labels` must lie in [0, num_classes).
    argument: what the error calls them.

  Returns:
    n.

  Raises:
    ValueError: naming the array, if lengths differ, a value is NaN or infinite,
      a label is out of range, a weight is negative, a set of `candidates` or a
      bag (`mask`) is empty, `counts` do not fit the bags, a name is reserved.
    TypeError: if one is no array, or `labels` [n] are not integers.
  """
  check(len(arrays) > 0, f'{argument} must hold at least one array')
  check('index' not in arrays, f"{argument} must not hold 'index'")
  lengths = {name: len(values) for name, values in arrays.items()}
  n = next(iter(lengths.values()))
  check(
    n > 0 and set(lengths.values()) == {n},
    f'the arrays of {argument} must have one length above 0, got {lengths}',
  )
  for name, values in arrays.items():
    check(
      hasattr(values, 'dtype'),
      f'{argument}: {name} must be an array, got {type(values).__name__}',
      TypeError,
    )
    if jnp.issubdtype(values.dtype, jnp.inexact):
      # In parts: the array may be mapped from a file larger than the memory.
      for first in range(0, n, 4096):
        part = np.asarray(values[first : first + 4096])
        bad = ~np.isfinite(part).reshape(len(part), -1).all(1)
        check(
          not bad.any(),
          f'{argument}: {name} holds NaN or infinite values, first in row '
          f'{first + bad.argmax()}',
        )
  if 'weight' in arrays:
    check(
      (np.asarray(arrays['weight']) >= 0).all(),
      f'{argument}: weight must not be negative',
    )
  if 'labels' in arrays:
    check_labels(arrays['labels'], num_classes, f'{argument}: labels')
  if 'candidates' in arrays:
    check_candidates(arrays['candidates'], f'{argument}: candidates')
  if 'mask' in arrays:
    check_mask(arrays['mask'], f'{argument}: mask')
  if 'counts' in arrays:
    mask = arrays.get('mask', np.ones((n, *arrays['x'].shape[1:2]), bool))
    check_counts(arrays['counts'], mask, f'{argument}: counts')
  return n


def check_candidates(
  candidates: np.ndarray, argument: str = 'candidates'
) -> None:
  """Raises unless these are sets [n, c] bool, none of them empty."""
  candidates = np.asarray(candidates)
  check(
    candidates.dtype == bool and candidates.ndim == 2,
    f'{argument} must be [n, c] bool, got {candidates.dtype} of shape '
    f'{candidates.shape}',
    TypeError,
  )
  empty = ~candidates.any(1)
  check(
    not empty.any(), f'{argument}: the set of row {empty.argmax()} is empty'
  )


def check_mask(mask: np.ndarray, argument: str = 'mask') -> None:
  """Raises unless this is [n, m, ...] bool and no row is empty."""
  mask = np.asarray(mask)
  check(
    mask.dtype == bool and mask.ndim >= 2,
    f'{argument} must be [n, m] bool, got {mask.dtype} of shape {mask.shape}',
    TypeError,
  )
  empty = ~mask.reshape(len(mask), -1).any(1)
  check(not empty.any(), f'{argument}: bag {empty.argmax()} is empty')


def check_counts(
  counts: np.ndarray, mask: np.ndarray, argument: str = 'counts'
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
  check(
    not bad.any(),
    f'{argument} must lie between 0 and the size of the bag; that of bag '
    f'{bad.argmax()} does not',
  )


def check_labels(
  labels: np.ndarray, num_classes: int | None, argument: str = 'labels'
) -> None:
  """Raises unless labels are integers in [0, num_classes), or soft, [n, c]."""
  labels = np.asarray(labels)
  if labels.ndim > 1 and jnp.issubdtype(labels.dtype, jnp.floating):
    return
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'{argument} must be integers, got {labels.dtype}',
    TypeError,
  )
  if num_classes is not None and labels.size:
    low, high = labels.min(), labels.max()
    check(
      low >= 0 and high < num_classes,
      f'{argument} must lie in [0, {num_classes}), got values from {low} to '
      f'{high}',
    )
