"""Probabilities and their logarithms: floors, powers, and sums of them.

What has a value and a gradient at the edges: where a probability is 0, a logit
infinite, an exponent 0. Arrays are [..., c], and [..., 1] where a class is
chosen or all are summed.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jnl.base import LOG_ZERO, Array, Scalar, is_concrete

LARGEST = 1e20
"""The most log-odds of what is finite: a bag of them is far from `LOG_ZERO`."""


def bounded(log: Array) -> Array:
  """Logarithms with -1e30, without gradient, in place of -inf."""
  return jnp.where(log == -jnp.inf, LOG_ZERO, log)


def safe_log(x: Array) -> Array:
  """log of x >= 0: LOG_ZERO without gradient at 0."""
  zero = x <= 0
  return jnp.where(zero, LOG_ZERO, jnp.log(jnp.where(zero, 1, x)))


def log_softmax(logits: Array) -> Array:
  """log_softmax [..., c] of logits that may be infinite.

  One that is +inf has overflowed: the others are `LARGEST` below it, as finite
  ones are at the most. -inf stays -inf. Of two that are +inf, or where all are
  -inf, nothing is known: NaN.
  """
  top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  endless = jnp.isinf(top)
  below = jnp.where(endless & (logits == top), 0, logits - top)
  out = (logits == -jnp.inf) & (top < jnp.inf)
  below = jnp.where((below < -LARGEST) & ~out, -LARGEST, below)
  total = jnp.sum(jnp.exp(below), axis=-1, keepdims=True)
  return jnp.where(endless & (total > 1), jnp.nan, below - jnp.log(total))


def add_offset(log_p: Array, offset: Scalar) -> Array:
  """log(p + offset)."""
  if is_zero(offset):
    return log_p
  return jnp.logaddexp(log_p, jnp.log(jnp.asarray(offset, log_p.dtype)))


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


def is_zero(value: Scalar) -> bool:
  """Whether a hyperparameter is known to be 0; a traced one is not."""
  return is_concrete(value) and bool(value == 0)


def may_be_zero(value: Scalar) -> bool:
  """Whether a hyperparameter is 0, or traced."""
  return not is_concrete(value) or bool(value == 0)
