"""What all constraints share: one entry for bags and evidence, one result."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import LOG_ZERO, Array, check
from jnl.inputs import read_floats, read_mask
from jnl.logspace import LARGEST


class Inference(NamedTuple):
  """What evidence about a bag says of the latent labels in it.

  Attributes:
    log_likelihood: [...], log P(evidence | logits), at least float32. -inf with
      gradient 0 where the evidence is impossible; elsewhere its gradient by the
      logits is `posterior - softmax(logits)`. NaN where a logit is, so that a
      run that has diverged shows it.
    posterior: [..., m, c], P(y_i = k | evidence). Where the evidence is
      impossible, the prediction; 0 in masked slots.
    feasible: [...] bool, whether the evidence is possible at all. Where that is
      not known, since a logit is NaN, it is true: the bag counts, as NaN.

  A logit of -inf rules its label out, exactly: evidence that needs the label is
  impossible. One of +inf has overflowed, and leaves the others 1e20 behind.
  Finite logits are never so far apart that a label is ruled out: beyond 1e20
  (in the recursions on binary counts 4e6, in float64 2e15) the distance is that
  of the bound, and so is what contradicting evidence costs; there the gradient
  may vanish.
  """

  log_likelihood: Array
  posterior: Array
  feasible: Array


def read_log_odds(
  log_odds: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array]:
  """Log-odds and mask of binary bags, checked.

  Args:
    log_odds: [..., m] floating-point.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    The log-odds in at least float32, 0 in masked slots, and the mask. They may
    be infinite, where a label is known; finite ones are within `LARGEST`.

  Raises:
    TypeError, ValueError: if an array is malformed.
  """
  log_odds = read_floats('log_odds', log_odds)
  check(
    log_odds.ndim >= 1 and log_odds.shape[-1] >= 1,
    f'log_odds must be [..., m] with m >= 1, got shape {log_odds.shape}',
  )
  mask = read_mask(mask, log_odds.shape)
  dtype = jnp.promote_types(log_odds.dtype, jnp.float32)
  log_odds = jnp.where(mask, log_odds.astype(dtype), 0)
  bounded = jnp.clip(log_odds, -LARGEST, LARGEST)
  return jnp.where(jnp.isinf(log_odds), log_odds, bounded), mask


def read_factor(
  log_odds: ArrayLike, log_factor: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array, Array]:
  """Log-odds, factor [..., m + 1] on the count and mask, checked."""
  log_odds, mask = read_log_odds(log_odds, mask)
  log_factor = jnp.asarray(log_factor, log_odds.dtype)
  expected = (*mask.shape[:-1], mask.shape[-1] + 1)
  check(
    log_factor.shape == expected,
    f'log_factor must be [..., m + 1], {expected}, got {log_factor.shape}',
  )
  return log_odds, log_factor, mask


def possible_counts(log_odds: Array, log_factor: Array, mask: Array) -> Array:
  """The counts [..., m + 1] that the factor, the bag and its labels allow.

  Labels of infinite log-odds are known. A factor that is NaN forbids nothing.
  """
  n = jnp.arange(mask.shape[-1] + 1)
  total = lambda some: jnp.sum(mask & some, -1)[..., None]
  within = (n >= total(log_odds == jnp.inf)) & (
    n <= total(log_odds != -jnp.inf)
  )
  return within & ~(log_factor <= LOG_ZERO / 2)


def is_possible(log_likelihood: Array) -> Array:
  """Whether evidence is possible, or its likelihood NaN."""
  return ~(log_likelihood <= LOG_ZERO / 2)


def conclude(
  log_likelihood: Array, posterior: Array, log_probs: Array, mask: Array
) -> Inference:
  """The `Inference`: -inf and the prediction where nothing is possible.

  Args:
    log_likelihood: [...], about `LOG_ZERO` where the evidence is impossible.
    posterior: [..., m, c]; anything there.
    log_probs: [..., m, c] from `read_bags`.
    mask: [..., m].
  """
  feasible = is_possible(log_likelihood)
  value = jnp.where(feasible, log_likelihood, -jnp.inf)
  fallback = jnp.exp(log_probs)
  posterior = jnp.where(feasible[..., None, None], posterior, fallback)
  return Inference(value, jnp.where(mask[..., None], posterior, 0), feasible)
