"""From batches to per-example losses: what the meta methods share.

A batch holds the training stream (`x`, `labels`, `weight`, `index`) and the
meta stream (`x_meta`, `labels_meta`, and `weight_meta` and `index_meta` if
there are any), clean or drawn from the training set itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jnl.base import (
  AXIS,
  Array,
  Batch,
  Inputs,
  Key,
  Model,
  Params,
  Stats,
  Table,
  axis_is_bound,
  check,
  global_mean,
  write_rows,
)
from jnl.steps import model_keys, training_pass

Loss = Callable[[Array, Array], Array]
"""Per-example: `(logits [b, c], labels [b]) -> [b]`."""

_META_TAG, _DRAW_TAG = 1, 2


class Stream(NamedTuple):
  """One of the streams of a batch.

  Attributes:
    x: [b, ...], the inputs.
    labels: [b] int.
    weight: [b].
    keys: [b], for the network's own randomness.
  """

  x: Inputs
  labels: Array
  weight: Array
  keys: Key


class Passed(NamedTuple):
  """What a network says of a stream.

  Attributes:
    losses: [b], zeros where they were not finite.
    weight: [b]; 0 where the loss was not finite.
    logits: [b, c].
    features: [b, ...].
    stats: the new batch statistics.
  """

  losses: Array
  weight: Array
  logits: Array
  features: Array
  stats: Stats

  @property
  def mean(self) -> Array:
    """The mean loss over all devices, []."""
    return global_mean(self.losses, self.weight)


def read_stream(batch: Batch, key: Key, *, meta: bool = False) -> Stream:
  """The training stream of a batch, or its meta stream.

  Args:
    batch: see the module.
    key: the step's.
    meta: which one. Without `weight_meta` all weights are one, without
      `index_meta` examples are told apart by their position.

  Returns:
    The stream.

  Raises:
    ValueError, TypeError: naming what the batch lacks or has in a wrong form.
  """
  suffix = '_meta' if meta else ''
  names = ('x', 'labels') if meta else ('x', 'labels', 'weight', 'index')
  for name in names:
    check(
      name + suffix in batch,
      f'the batch lacks {name + suffix!r}; it has {", ".join(sorted(batch))}'
      + ('. `meta.drawn` makes a meta stream' if meta else ''),
    )
  x, labels = batch['x' + suffix], batch['labels' + suffix]
  _check_labels(x, labels, suffix)
  weight = batch.get('weight' + suffix)
  weight = jnp.ones(labels.shape) if weight is None else jnp.asarray(weight)
  index = batch.get('index' + suffix)
  index = _positions(labels.shape[0]) if index is None else index
  key = jax.random.fold_in(key, _META_TAG) if meta else key
  return Stream(x, labels, weight, model_keys(key, {'index': index}))


def passing(
  model: Model, loss: Loss, stats: Stats, stream: Stream
) -> Callable[[Params], Passed]:
  """A training pass over a stream, as a function of the parameters.

  An example of weight 0 leaves no trace in it, whatever it holds. One whose
  loss is not finite is not there either: its weight becomes 0. But if its
  inputs are not finite, the gradient of a batch with it is not either, since
  backward passes multiply zero by NaN; see `settle`.
  """

  def run(params: Params) -> Passed:
    outputs, new = training_pass(
      model, params, stats, stream.x, stream.keys, stream.weight
    )
    losses = loss(outputs.logits, stream.labels)
    check(
      losses.shape == stream.labels.shape,
      f'loss must give one value for each example, [b] = '
      f'{stream.labels.shape}, got {losses.shape}',
    )
    finite = jnp.isfinite(losses)
    return Passed(
      jnp.where(finite, losses, 0),
      jnp.where(finite, stream.weight, 0),
      outputs.logits,
      outputs.features,
      new,
    )

  return run


def remember(table: Table, index: Array, rows: Array, weight: Array) -> Table:
  """Writes rows [b, ...] of the examples that are there, of positive weight."""
  return write_rows(table, index, rows, where=weight > 0)


def drawn(
  data: Mapping[str, Any], *, every: int = 1
) -> Callable[[Key, Batch], Batch]:
  """An `augment` for `fit` that adds a meta stream, drawn with replacement.

  From a small clean set, or from the (noisy) training set itself, as STORM has
  it. The arrays become constants of the compiled step. A large set is better
  given to `fit` with the rest, as `x_meta` and `labels_meta` [n, ...] in an
  order of their own.

  Args:
    data: `x` [m, ...] and `labels` [m].
    every: one for each so many examples of the batch (of each device).

  Returns:
    `(keys [b], batch) -> batch` with `x_meta` and `labels_meta`.

  Raises:
    ValueError: if `data` lacks an array or is empty.

  >>> add = drawn({'x': jnp.arange(3.)[:, None], 'labels': jnp.arange(3)})
  >>> batch = add(jax.random.split(jax.random.key(0), 2), {})
  >>> batch['x_meta'].shape, batch['labels_meta'].shape
  ((2, 1), (2,))
  """
  for name in ('x', 'labels'):
    check(name in data, f'data must hold {name!r}, got {sorted(data)}')
  check(every >= 1, f'every must be at least 1, got {every}')
  size = len(data['labels'])
  check(size >= 1, 'data must not be empty')

  def add(keys: Key, batch: Batch) -> Batch:
    # A fold of its own, so that draws do not depend on other augmentation.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _DRAW_TAG))(keys)
    row = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
    row = row[::every]
    x, labels = jax.tree.map(
      lambda a: jnp.asarray(a)[row], (data['x'], data['labels'])
    )
    return {**batch, 'x_meta': x, 'labels_meta': labels}

  return add


def _check_labels(x: Inputs, labels: Array, suffix: str) -> None:
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels{suffix} must be integer, got {labels.dtype}',
    TypeError,
  )
  for a in jax.tree.leaves(x):
    check(
      labels.ndim == 1 and a.shape[:1] == labels.shape,
      f'x{suffix} and labels{suffix} must have the same first size, got shapes '
      f'{a.shape} and {labels.shape}',
    )
  check(labels.size > 0, f'labels{suffix} must not be empty')


def _positions(b: int) -> Array:
  first = lax.axis_index(AXIS) * b if axis_is_bound() else 0
  return first + jnp.arange(b)
