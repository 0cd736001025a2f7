"""What all losses share: one entry for their inputs, and log-space pieces.

A loss reads `logits` and `labels` once, writes its equation for "the value if
the label were k", and ends in `expect`. For integer labels these values are
gathered, [..., 1]; for soft ones they are [..., c], and `expect` averages them.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jnl.base import LOG_ZERO, Array, check, is_concrete
from jnl.inputs import off_simplex

Scalar = float | Array
"""A hyperparameter: a number, or a scalar array, which may be traced."""


class Label(NamedTuple):
  """Labels that passed the checks.

  Attributes:
    values: [..., 1] int in [0, c), or [..., c] soft in the dtype of the logits.
    valid: [...] bool, false where an integer label was out of range; None for
      soft labels.
  """

  values: Array
  valid: Array | None


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
  logits = as_array(name, logits)
  check(
    jnp.issubdtype(logits.dtype, jnp.floating),
    f'{name} must be floating-point, got {logits.dtype}',
    TypeError,
  )
  check(
    logits.ndim >= 1 and logits.shape[-1] >= 2,
    f'{name} must be [..., c] with c >= 2 classes, got shape {logits.shape}',
  )
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return bounded(logits) if masked else logits


def bounded(log: Array) -> Array:
  """Logarithms with -1e30, without gradient, in place of -inf."""
  return jnp.where(log == -jnp.inf, LOG_ZERO, log)


def read(
  logits: Any,
  labels: Any,
  name: str = 'labels',
  *,
  where: Array | None = None,
) -> tuple[Array, Label]:
  """The shared entry: checks, at least float32, labels that are safe to gather.

  Args:
    logits: [..., c] floating-point, c >= 2.
    labels: [...] int in [0, c), or [..., c] soft, on the simplex.
    name: what the errors call the labels.
    where: [...] bool, the rows whose labels have to be right; by default all.

  Returns:
    The logits in at least float32, and the label.

  Raises:
    TypeError: if `labels` [...] are not integers, `labels` [..., c] not
      floating point, or `logits` not floating-point.
    ValueError: if a shape does not match, or outside jit if an integer label is
      out of range or a soft one off the simplex. Inside jit the former makes
      the loss NaN with gradient zero, so that masked examples stay harmless;
      the latter is taken as it is.
  """
  logits = read_logits(logits)
  labels = as_array(name, labels)
  rows, classes = logits.shape[:-1], logits.shape[-1]
  integer = jnp.issubdtype(labels.dtype, jnp.integer)
  got = f'got shape {labels.shape} for logits {logits.shape}'
  check(
    not (integer and labels.shape == logits.shape and logits.ndim == 1),
    f'logits must be [..., c] for {name} [...], they lack the classes (or, if '
    f'{name} are one-hot, these must be floating); {got}',
  )
  hard = labels.shape == rows
  check(
    hard or labels.shape == logits.shape,
    f'{name} must be [...] int or [..., c] soft for logits [..., c]; {got}'
    + f'; use {name}[..., 0]' * (labels.shape == (*rows, 1)),
  )
  check(
    integer if hard else jnp.issubdtype(labels.dtype, jnp.floating),
    f'{name} of shape {labels.shape} for logits {logits.shape} must be '
    + ('integer' if hard else 'floating: one-hot ones are .astype(float)')
    + f', got {labels.dtype}',
    TypeError,
  )
  if not hard:
    check_simplex(name, labels, where=where)
    return bounded(logits), Label(labels.astype(logits.dtype), None)
  if labels.dtype.itemsize < 4:  # so that c fits the dtype of the labels
    labels = labels.astype(jnp.int32)
  valid = (labels >= 0) & (labels < classes)
  bad = ~valid if where is None else ~valid & where
  if is_concrete(bad):
    check(not jnp.any(bad), f'{name} must lie in [0, {classes})')
  return logits, Label(jnp.where(valid, labels, 0)[..., None], valid)


def as_array(name: str, x: Any) -> Array:
  """An array of numbers; what is none, such as strings, is named."""
  try:
    return jnp.asarray(x)
  except TypeError as error:
    kind = np.asarray(x).dtype
    raise TypeError(
      f'{name} must be an array of numbers, got {kind}'
    ) from error


def check_simplex(
  name: str,
  rows: Array,
  *,
  where: Array | None = None,
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


def expect(values: Array, label: Label) -> Array:
  """Ends a loss: its value at the label, or the mean under a soft label.

  Args:
    values: [..., 1] or [..., c], the loss if the label were that class.
    label: from `read`.

  Returns:
    [...]; NaN without gradient where the label was out of range.
  """
  if label.valid is None:
    return jnp.sum(label.values * values, axis=-1)
  return settle(values[..., 0], label)


def settle(losses: Array, label: Label) -> Array:
  """NaN, without gradient, for losses [...] whose label was out of range."""
  if label.valid is None:
    return losses
  return jnp.where(label.valid, losses, jnp.nan)


def soft(label: Label, logits: Array) -> Array:
  """Labels as distributions [..., c]: where a formula has no gathered form."""
  if label.valid is None:
    return label.values
  return one_hot(label.values, logits)


def one_hot(index: Array, logits: Array) -> Array:
  """Index [..., 1] as a distribution; a comparison that XLA fuses."""
  classes = jnp.arange(logits.shape[-1], dtype=index.dtype)
  return (index == classes).astype(logits.dtype)


# --- checks of hyperparameters -----------------------------------------------


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


def is_zero(value: Scalar) -> bool:
  """Whether a hyperparameter is known to be 0; a traced one is not."""
  return is_concrete(value) and bool(value == 0)


def may_be_zero(value: Scalar) -> bool:
  """Whether a hyperparameter is 0, or traced."""
  return not is_concrete(value) or bool(value == 0)


# --- log-space pieces --------------------------------------------------------


@jax.custom_jvp
def take(values: Array, index: Array) -> Array:
  """`values[..., index]` as [..., 1].

  Backward it is a select that fuses with the softmax beside it, where the
  transpose of a gather would be a scatter into a [..., c] array of its own.
  """
  return jnp.take_along_axis(values, index, axis=-1)


@take.defjvp
def _take_jvp(primals, tangents):
  (values, index), (d_values, _) = primals, tangents
  own = index == jnp.arange(values.shape[-1], dtype=index.dtype)
  d = jnp.sum(jnp.where(own, d_values, 0), axis=-1, keepdims=True)
  return take(values, index), d


@jax.custom_jvp
def expm1(x: Array) -> Array:
  """`exp(x) - 1` with the derivative exp(x).

  JAX takes `expm1(x) + 1`, which is 0 in float32 below x = -17: the gradient of
  an example with a small probability would vanish.
  """
  return jnp.expm1(x)


expm1.defjvps(lambda d, _, x: jnp.exp(x) * d)


def unfused(sums: Array) -> Array:
  """The same numbers [..., 1], kept apart from what they are used for.

  XLA:CPU fuses a sum over the classes with the arithmetic that follows it, here
  or in the gradient, if that is arithmetic alone; every operand [..., c] is
  then written to memory first. A select is not: this one ends the fusion.
  """
  return jnp.where(jnp.isnan(sums), jnp.nan, sums)


def shift_and_log_sum(logits: Array) -> tuple[Array, Array]:
  """(m, s), both [..., 1], with log p_k = (z_k - m) - s.

  Subtracting m + s at once would round log p to the spacing of floats near m.
  """
  shift = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  total = jnp.sum(jnp.exp(logits - shift), axis=-1, keepdims=True)
  return shift, unfused(jnp.log(total))


def probs(logits: Array) -> Array:
  """Probabilities of all classes, [..., c]."""
  shift = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  p = jnp.exp(logits - shift)
  return p / unfused(jnp.sum(p, axis=-1, keepdims=True))


def log_probs(logits: Array) -> Array:
  """Log-probabilities of all classes, [..., c]."""
  shift, log_sum = shift_and_log_sum(logits)
  return (logits - shift) - log_sum


def log_prob(logits: Array, label: Label) -> Array:
  """Log-probabilities of the label: [..., 1], or [..., c] for soft labels."""
  if label.valid is None:
    return log_probs(logits)
  return log_prob_at(logits, label.values)


def log_prob_at(logits: Array, index: Array) -> Array:
  """Log-probabilities of one class each, [..., 1]."""
  shift, log_sum = shift_and_log_sum(logits)
  return (take(logits, index) - shift) - log_sum


def negative_entropy(logits: Array) -> Array:
  """The sum of p log p over the classes, [..., 1].

  Kept as sums over the shifted logits, here and in `sum_box_cox`: a sum over
  classes whose terms contain log_sum costs another pass backward.
  """
  shift, log_sum = shift_and_log_sum(logits)
  centered = logits - shift
  terms = jnp.exp(centered) * _at_least(centered)  # 0 log 0 = 0
  total = jnp.sum(terms, axis=-1, keepdims=True)
  return total * jnp.exp(-log_sum) - log_sum


@jax.custom_jvp
def _at_least(log: Array) -> Array:
  """`bounded`, but its gradient is not masked: cheaper where p is a factor."""
  return lax.max(log, jnp.asarray(LOG_ZERO, log.dtype))


_at_least.defjvps(lambda d, _, x: d)


def sum_box_cox(logits: Array, q: Scalar) -> Array:
  """The sum of (1 - p^q) / q over the classes, [..., 1], by (e^a)^q (e^b)^q."""
  shift, log_sum = shift_and_log_sum(logits)
  total = jnp.sum(box_cox(logits - shift, q), axis=-1, keepdims=True)
  own = logits.shape[-1] * box_cox(-log_sum, q)
  if may_be_zero(q):  # infinite there if a class is masked
    total = -bounded(-total)
  return jnp.exp(-q * log_sum) * total + own


def mean_log_prob(logits: Array) -> Array:
  """The mean of log p over the classes, [..., 1].

  Not `logits - shift`, which XLA would share with the exponentials: on CPU it
  then writes the differences to memory and reads them again for this sum.
  """
  shift, log_sum = shift_and_log_sum(logits)
  return jnp.mean(logits + (-shift), axis=-1, keepdims=True) - log_sum


def top_class(logits: Array) -> Array:
  """The first most probable class, [..., 1].

  First the group of neighbors that it is in, then which of the group: on CPU
  the largest of many numbers is found much faster than where it is.
  """
  logits, classes = lax.stop_gradient(logits), logits.shape[-1]
  sizes = range(1, math.isqrt(classes) + 1)
  size = max(size for size in sizes if classes % size == 0)
  groups = logits.reshape(*logits.shape[:-1], classes // size, size)
  group = _first_largest(jnp.max(groups, axis=-1))
  own = jnp.take_along_axis(groups, group[..., None], axis=-2)[..., 0, :]
  return group * size + _first_largest(own)


def _first_largest(x: Array) -> Array:
  """Where in the last dimension: an argmax [..., 1] that XLA vectorizes."""
  last = x.shape[-1] - 1
  largest = x == jnp.max(x, axis=-1, keepdims=True)
  candidates = jnp.where(largest, jnp.arange(last + 1), last)
  return jnp.min(candidates, axis=-1, keepdims=True)


def floor(log_p: Array, clip: Scalar) -> Array:
  """log max(p, clip): no gradient below the clip."""
  if is_zero(clip):
    return log_p
  least = jnp.log(clip)
  return jnp.where(log_p < least, least, log_p)


def box_cox(log_p: Array, q: Scalar) -> Array:
  """(1 - p^q) / q, and its limit -log p at q = 0."""
  nonzero = jnp.where(q == 0, 1, q)
  return jnp.where(q == 0, -log_p, -expm1(nonzero * log_p) / nonzero)


def raise_to(x: Array, exponent: Scalar) -> Array:
  """x^exponent for x >= 0, with gradient 0 instead of infinite at x = 0."""
  if is_concrete(exponent) and exponent == 0.5:  # the usual one of focal losses
    return jnp.sqrt(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
  positive = x > 0
  log_x = jnp.log(jnp.where(positive, x, 1))
  return jnp.where(positive, jnp.exp(exponent * log_x), exponent == 0)
