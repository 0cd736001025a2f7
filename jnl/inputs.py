"""Arguments that several rooms read: one law for each of them.

Values are checked where they can be looked at, and left alone while tracing.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jnl.base import Array, check, is_concrete

BELOW_ZERO = 1e-6
"""How negative a probability may be by rounding."""


def off_one(dtype: Any) -> float:
  """How far a sum of probabilities may be from one: 1e-3, or by rounding.

  Loose: they are estimated, printed, stored and multiplied in float32 or less.
  In bfloat16 it is the spacing of its numbers at one.

  >>> off_one(jnp.float32), off_one(jnp.bfloat16)
  (0.001, 0.0078125)
  """
  floating = jnp.issubdtype(dtype, jnp.floating)
  return max(1e-3, float(jnp.finfo(dtype).eps) if floating else 0.0)


def off_simplex(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Which rows [..., c] are no probabilities, NaN among them, and their sums.

  >>> bad, sums = off_simplex(np.array([[.5, .5], [.5, .4], [1.5, -.5]]))
  >>> bad.tolist(), sums.round(2).tolist()
  ([False, True, True], [1.0, 0.9, 1.0])
  """
  values = rows.astype(np.float64)
  sums = values.sum(-1)
  one = np.abs(sums - 1) <= off_one(rows.dtype)
  return ~((values >= -BELOW_ZERO).all(-1) & one), sums


def read_transition(
  transition: Any,
  num_classes: int | None = None,
  *,
  name: str = 'transition',
  columns: bool = False,
) -> Array:
  """A transition matrix, P(noisy = j | clean = i), by the one law for all.

  Entries are at least -1e-6 and rows sum to one within 1e-3.

  Args:
    transition: [c, c], c >= 2; a list, numpy or jax array.
    num_classes: what c has to be, if given.
    name: what the error calls it.
    columns: the columns may sum to one instead.

  Returns:
    [c, c], at least float32, otherwise as it is.

  Raises:
    TypeError: if it is not numeric.
    ValueError: naming the shape, or outside jit the row that is off and by how
      much.

  >>> read_transition([[.9, .1], [.2, .7]])
  Traceback (most recent call last):
  ...
  ValueError: transition must have rows that sum to one; row 1 sums to 0.9
  """
  shape, c = np.shape(transition), num_classes
  expected = '[c, c] with c >= 2' if c is None else f'[c, c] = [{c}, {c}]'
  check(
    len(shape) == 2 and shape[0] == shape[1] >= 2 and c in (None, shape[0]),
    f'{name} must be {expected}, got shape {shape}',
  )
  return read_rows_of_probs(transition, name, columns=columns)


def read_rows_of_probs(
  probs: Any, name: str = 'probs', *, columns: bool = False
) -> Array:
  """Rows of probabilities [n, c], by the law of `read_transition`.

  Args:
    probs: [n, c], c >= 2.
    name: what the error calls them.
    columns: the columns may sum to one instead.

  Returns:
    [n, c], at least float32, otherwise as they are.

  Raises:
    TypeError, ValueError: as `read_transition`.
  """
  probs = jnp.asarray(probs)
  check(
    jnp.issubdtype(probs.dtype, jnp.number) or probs.dtype == bool,
    f'{name} must be numbers, got {probs.dtype}',
    TypeError,
  )
  check(
    probs.ndim == 2 and probs.shape[1] >= 2,
    f'{name} must be rows of at least 2 probabilities, got shape {probs.shape}',
  )
  if is_concrete(probs) and len(probs):
    _check_rows(name, np.asarray(probs), columns)
  return probs.astype(jnp.promote_types(probs.dtype, jnp.float32))


def _check_rows(name: str, values: np.ndarray, columns: bool) -> None:
  """Raises unless the rows are probabilities, or the columns if allowed."""
  low = ~(values >= -BELOW_ZERO).all(1)  # so that NaN is low
  row = low.argmax()
  check(
    not low.any(), f'{name} must not be negative; row {row} is {values[row]}'
  )
  off, sums = off_simplex(values)
  if columns and not off_simplex(values.T)[0].any():
    return
  row = off.argmax()
  check(
    not off.any(),
    f'{name} must have rows that sum to one'
    + (', or columns that do' if columns else '')
    + f'; row {row} sums to {sums[row]:.6g}',
  )
