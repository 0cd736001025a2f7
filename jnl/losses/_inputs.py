"""What all losses share: one entry for their inputs, and log-space pieces.

A loss reads `logits` and `labels` once, writes its equation for "the value if
the label were k", and ends in `expect`. For integer labels these values are
gathered, [..., 1]; for soft ones they are [..., c], and `expect` averages them.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jnl.base import Array, check, is_concrete

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


def read_logits(logits: Array) -> Array:
  """Checks logits [..., c] and raises them to at least float32."""
  logits = jnp.asarray(logits)
  check(
    jnp.issubdtype(logits.dtype, jnp.floating),
    f'logits must be floating-point, got {logits.dtype}',
    TypeError,
  )
  check(
    logits.ndim >= 1 and logits.shape[-1] >= 2,
    f'logits must be [..., c] with c >= 2 classes, got shape {logits.shape}',
  )
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def read(logits: Array, labels: Array) -> tuple[Array, Label]:
  """The shared entry: checks, at least float32, labels that are safe to gather.

  Args:
    logits: [..., c] floating-point, c >= 2.
    labels: [...] int in [0, c), or [..., c] soft.

  Returns:
    The logits in at least float32, and the label.

  Raises:
    TypeError: if `labels` [...] are not integers, `labels` [..., c] not
      floating point, or `logits` not floating-point.
    ValueError: if a shape does not match, or if an integer label that is not
      being traced is out of range. Inside jit such a label makes the loss NaN
      with gradient zero, so that masked examples stay harmless.
  """
  logits, labels = read_logits(logits), jnp.asarray(labels)
  hard = labels.ndim == logits.ndim - 1
  check(
    hard or labels.ndim == logits.ndim,
    f'labels must be [...] int or [..., c] soft for logits [..., c]; got shape '
    f'{labels.shape} for logits {logits.shape}',
  )
  kind = jnp.integer if hard else jnp.floating
  check(
    jnp.issubdtype(labels.dtype, kind),
    f'labels of shape {labels.shape} for logits {logits.shape} must be '
    f'{kind.__name__}, got {labels.dtype}',
    TypeError,
  )
  expected = logits.shape[:-1] if hard else logits.shape
  check(
    labels.shape == expected,
    f'labels must have shape {logits.shape[:-1]} (int) or {logits.shape} '
    f'(soft), got {labels.shape}',
  )
  if not hard:
    return logits, Label(labels.astype(logits.dtype), None)
  classes = logits.shape[-1]
  if labels.dtype.itemsize < 4:  # so that c fits the dtype of the labels
    labels = labels.astype(jnp.int32)
  valid = (labels >= 0) & (labels < classes)
  if is_concrete(labels, valid):
    check(jnp.all(valid), f'labels must lie in [0, {classes})')
  return logits, Label(jnp.where(valid, labels, 0)[..., None], valid)


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


def check_range(
  name: str,
  value: Scalar,
  low: float,
  high: float = math.inf,
  *,
  open_low=False,
) -> None:
  """Raises ValueError unless low <= value <= high; tracers are skipped."""
  above = value > low if open_low else value >= low
  bracket = '(' if open_low else '['
  check(
    above & (value <= high),
    f'{name} must lie in {bracket}{low}, {high}], got {value}',
  )


def is_zero(value: Scalar) -> bool:
  """Whether a hyperparameter is known to be 0; a traced one is not."""
  return is_concrete(value) and bool(value == 0)


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
  total = jnp.sum(jnp.exp(centered) * centered, axis=-1, keepdims=True)
  return total * jnp.exp(-log_sum) - log_sum


def sum_box_cox(logits: Array, q: Scalar) -> Array:
  """The sum of (1 - p^q) / q over the classes, [..., 1], by (e^a)^q (e^b)^q."""
  shift, log_sum = shift_and_log_sum(logits)
  total = jnp.sum(box_cox(logits - shift, q), axis=-1, keepdims=True)
  own = logits.shape[-1] * box_cox(-log_sum, q)
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
