"""Scores on held-out data, in padded batches of one shape."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jnl.base import (
  AXIS,
  Array,
  Batch,
  Inputs,
  Outputs,
  State,
  check,
  global_mean,
)
from jnl.data import PerRun

Predict = Callable[[State, Inputs], Outputs]
Score = Callable[[Predict, State, Batch], Array]
"""The mean [] over a held-out batch, by its `weight` [b], of what is scored."""


def accuracy(predict: Predict, state: State, batch: Batch) -> Array:
  """The share of examples whose likeliest class is their label.

  Args:
    predict: of a method.
    state: its state.
    batch: `x` [b, ...], `labels` [b] and `weight` [b].

  Returns:
    [] float32 in [0, 1].
  """
  logits = predict(state, batch['x']).logits
  return global_mean(
    (jnp.argmax(logits, -1) == batch['labels']).astype(jnp.float32),
    batch['weight'],
  )


def roc_auc(scores: Array, labels: Array) -> Array:
  """The area under the ROC curve: how often a positive scores above a negative.

  Ties count half.

  Args:
    scores: [n], of being positive.
    labels: [n] int, 1 for positives and 0.

  Returns:
    [] float32 in [0, 1]; one half where a class is absent.

  >>> float(roc_auc(jnp.array([.1, .4, .4, .8]), jnp.array([0, 0, 1, 1])))
  0.875
  """
  order = jnp.argsort(scores)
  ranked, positive = scores[order], (labels[order] == 1).astype(jnp.float32)
  # Counted up to 2^24 without rounding.
  negatives = jnp.concatenate([jnp.zeros(1), jnp.cumsum(1 - positive)])
  below = negatives[jnp.searchsorted(ranked, ranked, method='sort')]
  upto = negatives[jnp.searchsorted(ranked, ranked, 'right', method='sort')]
  pairs = jnp.sum(positive) * negatives[-1]
  wins = jnp.sum(positive * (below + upto) / 2)
  return jnp.where(pairs > 0, wins / jnp.where(pairs > 0, pairs, 1), 0.5)


def padded_batches(
  arrays: Mapping[str, Any], batch_size: int = 1024, multiple: int = 1
) -> list[dict[str, Any]]:
  """Cuts arrays [n, ...] into batches of one size, the last one padded.

  Args:
    arrays: by name; `weight` [n] is optional. What is `PerRun` stays so.
    batch_size: at most so many examples in a batch.
    multiple: of which their number is one, unless there are fewer examples.

  Returns:
    Batches with `weight` [b]: that of the arrays or 1, and 0 for padding.

  Raises:
    ValueError: if the lengths differ or are 0.
  """
  lengths = {
    name: values.values.shape[1] if isinstance(values, PerRun) else len(values)
    for name, values in arrays.items()
  }
  n = min(lengths.values())
  check(
    n > 0 and n == max(lengths.values()),
    f'held-out arrays must have one length above 0, got {lengths}',
  )
  size = min(batch_size, n)
  if n >= multiple:
    size += -size % multiple
  arrays = {'weight': np.ones(n, np.float32), **arrays}

  def cut(values: Any, i: int) -> Any:
    axis = 1 if isinstance(values, PerRun) else 0
    values = values.values if axis else values
    part = np.asarray(values[(slice(None),) * axis + (slice(i, i + size),)])
    missing = size - part.shape[axis]
    if missing:
      padding = [(0, 0)] * part.ndim
      padding[axis] = (0, missing)
      part = np.pad(part, padding)
    return PerRun(part) if axis else part

  return [
    {name: cut(values, i) for name, values in arrays.items()}
    for i in range(0, n, size)
  ]


_accuracy = jax.jit(accuracy, static_argnums=0)


def evaluate(
  predict: Predict,
  state: State,
  arrays: Mapping[str, np.ndarray],
  *,
  batch_size: int = 1024,
) -> float:
  """Accuracy on held-out `x` and `labels`.

  Compiled once for each `predict`, and split over the devices of the state.

  Args:
    predict: of a method.
    state: its state.
    arrays: `x` [n, ...] and `labels` [n]; `weight` [n] is optional.
    batch_size: examples in one pass.

  Returns:
    The accuracy in [0, 1].
  """
  mesh = _data_mesh_of(state)
  batches = padded_batches(arrays, batch_size, mesh.size if mesh else 1)
  put = functools.partial(put_batch, mesh=mesh) if mesh else lambda b: b
  return float(
    average([_accuracy(predict, state, put(b)) for b in batches], batches)
  )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
  """Splits a batch over the devices, or copies it where it does not divide."""
  size = len(batch['weight'])
  split = P(AXIS) if size % mesh.size == 0 else P()
  return jax.device_put(batch, NamedSharding(mesh, split))


def _data_mesh_of(state: State) -> Mesh | None:
  """The mesh with an axis `'data'` that a state lives on, if there is one."""
  for leaf in jax.tree.leaves(state):
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, NamedSharding):
      mesh = sharding.mesh
      if isinstance(mesh, Mesh) and mesh.axis_names == (AXIS,):
        return mesh
  return None


def average(scores: list, batches: list[dict[str, Any]]) -> np.ndarray:
  """The mean of per-batch means [...], weighted by what each batch holds.

  With weights that are `PerRun`, scores are [runs, ...].
  """
  of_batches = np.stack(jax.device_get(scores))
  weights = [batch['weight'] for batch in batches]
  held = np.stack(
    [w.values.sum(1) if isinstance(w, PerRun) else w.sum() for w in weights]
  )
  held = held.reshape(held.shape + (1,) * (of_batches.ndim - held.ndim))
  held = np.broadcast_to(held, of_batches.shape)
  # A batch without weight may hold anything.
  of_batches = np.where(held > 0, of_batches, 0)
  return np.average(of_batches, axis=0, weights=held)
