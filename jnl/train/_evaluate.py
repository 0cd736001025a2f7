"""Scores on held-out data: rows of each example, then numbers of the whole set.

Batches are padded to one shape, so that everything is compiled once for a
method, a score and the shapes of a set.
"""

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
  PyTree,
  State,
  check,
)
from jnl.data import PerRun
from jnl.train._score import Predict, Score
from jnl.train.scores import accuracy

# --- the parts, for one run --------------------------------------------------


def collect_rows(
  predict: Predict, score: Score, state: State, batch: Batch
) -> PyTree:
  """The rows [b, ...] of a batch."""
  return score.collect(score.forward(predict, state, batch), batch)


def reduce_rows(
  score: Score, parts: list[PyTree], arrays: Mapping[str, Array]
) -> dict[str, Array]:
  """The numbers of a set, of the rows of its padded batches."""
  n = len(arrays['weight'])
  whole = lambda *rows: jnp.concatenate(rows)[:n]
  return dict(score.reduce(jax.tree.map(whole, *parts), arrays))


_collect_rows = jax.jit(collect_rows, static_argnums=(0, 1))
_reduce_rows = jax.jit(reduce_rows, static_argnums=0)


def evaluate(
  predict: Predict,
  state: State,
  arrays: Mapping[str, Any],
  *,
  score: Score = accuracy,
  batch_size: int = 1024,
) -> dict[str, float]:
  """The scores of a state on held-out arrays.

  Compiled once for each `predict`, score and shape, and split over the devices
  of the state.

  Args:
    predict: of a method.
    state: its state.
    arrays: [n, ...] by name: `x`, `labels` and what else the score reads;
      `weight` [n] is optional.
    score: of `jnl.train.scores`, or one's own.
    batch_size: examples in one pass.

  Returns:
    The numbers of the score, by name: `{'accuracy': ...}`.

  Raises:
    ValueError: if the lengths of the arrays differ or are 0, an array is
      missing, or the parts of the score do not fit each other.
  """
  check_score(score, predict, state, arrays, 'score', 'arrays')
  mesh = _data_mesh_of(state)
  batches = padded_batches(arrays, batch_size, mesh.size if mesh else 1)
  put = functools.partial(put_batch, mesh=mesh) if mesh else lambda b: b
  parts = [_collect_rows(predict, score, state, put(b)) for b in batches]
  found = _reduce_rows(score, parts, known_of(arrays))
  return {name: float(value) for name, value in found.items()}


# --- batches -----------------------------------------------------------------


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
  n = _length(arrays)
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


def known_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """What `Score.reduce` reads: all but `x`, with `weight`."""
  known = {'weight': np.ones(_length(arrays), np.float32), **arrays}
  known.pop('x', None)
  return known


def _length(arrays: Mapping[str, Any]) -> int:
  lengths = {
    name: values.values.shape[1] if isinstance(values, PerRun) else len(values)
    for name, values in arrays.items()
  }
  n = min(lengths.values(), default=0)
  check(
    n > 0 and n == max(lengths.values()),
    f'held-out arrays must have one length above 0, got {lengths}',
  )
  return n


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


# --- checks ------------------------------------------------------------------


def check_score(
  score: Any,
  predict: Predict,
  state: State,
  arrays: Mapping[str, Any],
  name: str,
  arrays_name: str,
) -> tuple[str, ...]:
  """Raises unless the parts of a score fit a method, a set and each other.

  Nothing is compiled or computed.

  Args:
    score: what is to be a `Score`.
    predict: of the method.
    state: a state, or its shapes.
    arrays: of the set, of one run.
    name: what the errors call the score.
    arrays_name: what they call the set.

  Returns:
    The names of its numbers.

  Raises:
    TypeError: if it is no `Score`.
    ValueError: if an array is missing, the rows are not one for each example,
      or `reduce` does not take them or gives anything but numbers by name.
  """
  check(
    isinstance(score, Score),
    f'{name} must be a Score(collect, reduce), such as those of '
    f'jnl.train.scores; got {score!r}',
    TypeError,
  )
  n = _length(arrays)
  shapes = {
    k: jax.ShapeDtypeStruct((n, *v.shape[1:]), jnp.asarray(v[:1]).dtype)
    for k, v in arrays.items()
  }
  shapes = {'weight': jax.ShapeDtypeStruct((n,), jnp.float32), **shapes}
  of_batch = functools.partial(collect_rows, predict, score)
  rows = _traced(of_batch, state, shapes, what=name, arrays_name=arrays_name)
  for leaf in jax.tree.leaves(rows):
    check(
      getattr(leaf, 'shape', ())[:1] == (n,),
      f'{name}: collect must give rows [b, ...], one for each example of the '
      f'batch, here {n}; got shape {getattr(leaf, "shape", ())}',
    )
  known = {k: v for k, v in shapes.items() if k != 'x'}
  try:
    found = _traced(
      lambda rows, known: score.reduce(rows, known),
      rows,
      known,
      what=name,
      arrays_name=f'what reduce is given of {arrays_name}',
    )
  except (TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{name}: reduce does not take the rows that collect gives, '
      f'{jax.tree.map(lambda r: r.shape, rows)}: {error}'
    ) from error
  _check_found(found, name)
  return tuple(found)


def _check_found(found: Any, name: str) -> None:
  """Raises unless these are numbers by name, of which there is one."""
  numbers = isinstance(found, Mapping) and all(
    isinstance(k, str) and getattr(v, 'shape', None) == ()
    for k, v in found.items()
  )
  check(
    numbers and len(found) > 0,
    f'{name}: reduce must give numbers by name, {{name: []}}, got '
    f'{jax.tree.map(lambda v: getattr(v, "shape", v), found)}',
  )


def _traced(f: Callable, *args: Any, what: str, arrays_name: str) -> Any:
  """The shapes of what f gives; an array that it misses is named."""
  try:
    return jax.eval_shape(f, *args)
  except KeyError as error:
    missing = error.args[0] if error.args else None
    arrays = args[-1]
    if not isinstance(missing, str) or missing in arrays:
      raise
    raise ValueError(
      f'{arrays_name} lacks {missing!r}, which {what} reads; it has '
      f'{sorted(set(arrays) - {"weight"})}'
    ) from error
