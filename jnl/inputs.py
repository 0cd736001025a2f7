"""Arguments that several rooms read: one law for each of them.

Values are checked where they can be looked at, and left alone while tracing.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import LOG_ZERO, Array, Scalar, check, is_concrete
from jnl.logspace import bounded, log_softmax

BELOW_ZERO = 1e-6
"""How negative a probability may be by rounding."""


# --- logits, labels, sets ----------------------------------------------------


def as_array(name: str, x: Any) -> Array:
  """An array of numbers; what is none, such as strings, is named."""
  try:
    return jnp.asarray(x)
  except TypeError as error:
    kind = np.asarray(x).dtype
    raise TypeError(
      f'{name} must be an array of numbers, got {kind}'
    ) from error


def read_floats(name: str, x: Any) -> Array:
  """An array of floating-point numbers, in its own dtype.

  Args:
    name: what the error calls it.
    x: a list, numpy or jax array.

  Returns:
    The array.

  Raises:
    TypeError: if it is of anything else.
  """
  x = as_array(name, x)
  check(
    jnp.issubdtype(x.dtype, jnp.floating),
    f'{name} must be floating-point, got {x.dtype}',
    TypeError,
  )
  return x


def read_logits(
  logits: Any, name: str = 'logits', *, masked: bool = False
) -> Array:
  """Checks logits [..., c] and raises them to at least float32.

  Args:
    logits: floating-point, c >= 2.
    name: what the errors call them.
    masked: makes -inf, a class that is masked, -1e30 without gradient, so that
      0 times the logarithm of its probability is 0. Only where such products
      follow: beside a gather it costs up to 40% on CPU. +inf and NaN stay, and
      make a loss NaN.
  """
  logits = read_floats(name, logits)
  check(
    logits.ndim >= 1 and logits.shape[-1] >= 2,
    f'{name} must be [..., c] with c >= 2 classes, got shape {logits.shape}',
  )
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return bounded(logits) if masked else logits


def is_missing(value: Any) -> bool:
  """Whether a cell of a table is empty: None, NaN, NA or NaT.

  Args:
    value: of any kind.

  Returns:
    A bool.

  >>> is_missing(float('nan')), is_missing(None), is_missing(0)
  (True, True, False)
  """
  if value is None or type(value).__name__ in ('NAType', 'NaTType'):
    return True
  if isinstance(value, np.datetime64 | np.timedelta64):
    return bool(np.isnat(value))
  return isinstance(value, float | np.floating) and bool(np.isnan(value))


def read_labels(
  labels: Any,
  num_classes: int,
  name: str = 'labels',
  *,
  where: Array | None = None,
) -> tuple[Array, Array]:
  """Integer labels that are safe to gather, and which of them are in range.

  Args:
    labels: [...] int in [0, num_classes).
    num_classes: c.
    name: what the errors call them.
    where: [...] bool, the labels that have to be right; by default all.

  Returns:
    The labels, at least int32, 0 in place of those out of range; [...] bool.

  Raises:
    TypeError: if they are not integers.
    ValueError: outside jit, if one is out of range.
  """
  labels = as_array(name, labels)
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'{name} must be integers, got {labels.dtype}',
    TypeError,
  )
  if labels.dtype.itemsize < 4:  # so that c fits the dtype of the labels
    labels = labels.astype(jnp.int32)
  valid = (labels >= 0) & (labels < num_classes)
  bad = ~valid if where is None else ~valid & where
  if is_concrete(bad) and (bad := np.asarray(bad)).any():
    first = np.unravel_index(bad.argmax(), bad.shape)
    at = f' in row {", ".join(map(str, first))}' if first else ''
    raise ValueError(
      f'{name} must lie in [0, {num_classes}), got {labels[first]}{at}'
    )
  return jnp.where(valid, labels, 0), valid


def read_candidates(
  logits: ArrayLike,
  candidates: ArrayLike,
  *,
  may_be_empty: bool = False,
  masked: bool = True,
) -> tuple[Array, Array]:
  """Checks logits [..., c] and candidates of the same shape.

  Args:
    logits: floating-point, c >= 2.
    candidates: bool.
    may_be_empty: whether a set without candidates has a meaning.
    masked: see `read_logits`.

  Returns:
    The logits in at least float32, and the candidates.

  Raises:
    TypeError: if a dtype is wrong.
    ValueError: if a shape is, or outside jit if a set is empty.
  """
  logits = read_logits(logits, masked=masked)
  candidates = as_array('candidates', candidates)
  check(
    candidates.dtype == bool,
    f'candidates must be bool, got {candidates.dtype}',
    TypeError,
  )
  check(
    candidates.shape == logits.shape,
    f'candidates must have the shape of the logits, {logits.shape}, got '
    f'{candidates.shape}',
  )
  if not may_be_empty and is_concrete(candidates):
    check(
      jnp.all(jnp.any(candidates, axis=-1)),
      'candidates must hold at least one class in every row',
    )
  return logits, candidates


# --- probabilities ------------------------------------------------------------


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


def check_simplex(
  name: str,
  rows: ArrayLike,
  *,
  where: ArrayLike | None = None,
  may_be_zero: bool = False,
) -> None:
  """Outside jit raises ValueError unless the rows [..., c] are probabilities.

  Args:
    name: what the error calls them.
    rows: sums may be off by 1e-3, or by what rounding to their dtype may do.
    where: [...] bool, the rows that count; by default all.
    may_be_zero: whether a row may also be all zeros.
  """
  # A sum is traced inside jit, where constants are not looked at either.
  if not is_concrete(jnp.sum(rows, axis=-1), where):
    return
  values = np.asarray(rows)
  bad, sums = off_simplex(values)
  if may_be_zero:
    bad &= values.any(-1)
  if where is not None:
    bad &= np.asarray(where)
  if bad.any():
    row = np.unravel_index(bad.argmax(), bad.shape)
    at = f'row {", ".join(map(str, row))}' if row else 'the row'
    raise ValueError(
      f'{name} must have rows >= 0 that sum to one'
      + ', or are 0' * may_be_zero
      + f'; {at} is {values[row]} and sums to {sums[row]:.6g}'
    )


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


# --- bags ---------------------------------------------------------------------


def read_bags(
  logits: ArrayLike, mask: ArrayLike | None, classes: int | None = None
) -> tuple[Array, Array]:
  """Checks bags and gives log-probabilities that are safe everywhere.

  Args:
    logits: [..., m, c] floating-point; log-probabilities are logits too.
    mask: [..., m] bool, true where there is an instance; None for everywhere.
    classes: what c has to be, if given.

  Returns:
    Log-probabilities [..., m, c] in at least float32, uniform in masked slots
    whatever the logits there (and without gradient), and the mask.

  Raises:
    TypeError: if `logits` are not floating-point or `mask` not bool.
    ValueError: if a shape does not match, or outside jit if a bag is empty.
  """
  logits, mask = read_bag_logits(logits, mask, classes)
  # A logit may be -inf, but recursions need numbers.
  return jnp.maximum(log_softmax(logits), LOG_ZERO), mask


def read_bag_logits(
  logits: ArrayLike, mask: ArrayLike | None, classes: int | None = None
) -> tuple[Array, Array]:
  """As `read_bags`, but for the normalization: a logit may be anything."""
  logits = read_floats('logits', logits)
  check(
    logits.ndim >= 2 and logits.shape[-1] >= 2,
    f'logits must be [..., m, c] with c >= 2 classes, got shape {logits.shape}',
  )
  check(
    classes is None or logits.shape[-1] == classes,
    f'logits must be [..., m, {classes}], got shape {logits.shape}',
  )
  mask = read_mask(mask, logits.shape[:-1])
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jnp.where(mask[..., None], logits, 0), mask


def read_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array:
  """Checks a mask [..., m]; all true if None. Outside jit no bag is empty."""
  if mask is None:
    check(shape[-1] > 0, 'a bag must hold at least one instance')
    return jnp.ones(shape, bool)
  mask = jnp.asarray(mask)
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  check(
    mask.shape == shape,
    f'mask must be [..., m] like the instances, {shape}, got {mask.shape}',
  )
  if is_concrete(mask):
    check(jnp.all(jnp.any(mask, -1)), 'mask must not leave a bag empty')
  return mask


def read_row_mask(mask: ArrayLike, n: int) -> Array:
  """Checks a mask of rows, [n] bool; it may leave none."""
  mask = as_array('mask', mask)
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  check(mask.shape == (n,), f'mask must be [{n}], got shape {mask.shape}')
  return mask


def read_counts(counts: ArrayLike, mask: Array, name: str = 'counts') -> Array:
  """Checks counts [...] of instances in bags with `mask` [..., m].

  Args:
    counts: [...] integers in [0, number of instances]. Inside jit a count out
      of range is evidence that is impossible.
    mask: [..., m] bool.
    name: what the error calls them.

  Returns:
    The counts as int32.

  Raises:
    TypeError: if they are not integers.
    ValueError: if the shape does not match or, outside jit, one is out of
      range.
  """
  counts = jnp.asarray(counts)
  check(
    jnp.issubdtype(counts.dtype, jnp.integer),
    f'{name} must be integers, got {counts.dtype}; a bag of which nothing is '
    'known (NaN) is to be dropped, or has any number and weight 0',
    TypeError,
  )
  check(
    counts.shape == mask.shape[:-1],
    f'{name} must have the shape of the bags, {mask.shape[:-1]}, got '
    f'{counts.shape}',
  )
  if is_concrete(counts, mask):
    check(
      jnp.all((counts >= 0) & (counts <= jnp.sum(mask, -1))),
      f'{name} must lie between 0 and the number of instances in the bag',
    )
  return counts.astype(jnp.int32)


def read_class_counts(counts: ArrayLike, mask: Array, classes: int) -> Array:
  """Checks that counts are integers [..., c]; what they may be is not asked.

  Args:
    counts: [..., c], of each class in bags with `mask` [..., m].
    mask: [..., m] bool.
    classes: c.

  Raises:
    TypeError: if they are not integers.
    ValueError: if the shape does not match.
  """
  counts = jnp.asarray(counts)
  check(
    jnp.issubdtype(counts.dtype, jnp.integer),
    f'counts must be integers, got {counts.dtype}',
    TypeError,
  )
  expected = (*mask.shape[:-1], classes)
  check(
    counts.shape == expected,
    f'counts must be [..., c], {expected}, got {counts.shape}',
  )
  return counts


# --- hyperparameters ----------------------------------------------------------


def check_scalar(name: str, value: Scalar) -> None:
  """Raises ValueError unless a hyperparameter is one number, traced or not.

  An array would broadcast with the losses: [b, 1] to [b, b] of them.
  """
  shape = np.shape(value)
  check(
    shape == (),
    f'{name} must be a scalar, got shape {shape}; for several values use '
    f'jax.vmap',
  )


def check_int(name: str, value: Any, low: int = 1) -> None:
  """Raises ValueError unless this is an int of at least `low`."""
  check(
    isinstance(value, int | np.integer) and value >= low,
    f'{name} must be an int of at least {low}, got {value}',
  )


def check_range(
  name: str,
  value: Scalar,
  low: float = -math.inf,
  high: float = math.inf,
  *,
  open_low=False,
) -> None:
  """Raises ValueError unless a scalar lies in [low, high]; traced, any does."""
  check_scalar(name, value)
  check_between(name, value, low, high, open_low)


def check_between(
  name: str,
  value: Any,
  low: float,
  high: float = math.inf,
  open_low: bool = False,
) -> None:
  """Raises ValueError unless all of an array lies in [low, high]."""
  if is_concrete(value):
    value = np.asarray(value)
    inside = ((value > low) if open_low else (value >= low)) & (value <= high)
    bracket = '(' if open_low else '['
    check(
      inside.all(),
      f'{name} must lie in {bracket}{low}, {high}], got '
      f'{value[~inside].flat[0] if not inside.all() else value}',
    )


def read_weight(
  name: str, value: Any, losses: Array, high: float = math.inf
) -> Array:
  """A weight of each example, or one of all: in the dtype of the losses.

  Args:
    name: what the error calls it.
    value: a scalar or [...], in [0, high]; traced, any value does.
    losses: [...], that it is going to multiply.
    high: the largest weight.

  Returns:
    [] or [...].
  """
  shape = np.shape(value)
  check(
    shape in ((), losses.shape),
    f'{name} must be a scalar or have shape {losses.shape}, got {shape}',
  )
  check_between(name, value, 0, high)
  return as_array(name, value).astype(losses.dtype)
