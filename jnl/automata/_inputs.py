"""What all constraints share: one entry for bags and evidence, one result."""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

from jnl.base import LOG_ZERO, Array, check, is_concrete

LARGEST = 1e20
"""The most log-odds of what is finite: a bag of them is far from `LOG_ZERO`."""


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


def read_bags(
  logits: Array, mask: Array | None, classes: int | None = None
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
  logits, mask = read_logits(logits, mask, classes)
  # A logit may be -inf, but recursions need numbers.
  return jnp.maximum(log_softmax(logits), LOG_ZERO), mask


def read_logits(
  logits: Array, mask: Array | None, classes: int | None = None
) -> tuple[Array, Array]:
  """As `read_bags`, but for the normalization: a logit may be anything."""
  logits = jnp.asarray(logits)
  check(
    jnp.issubdtype(logits.dtype, jnp.floating),
    f'logits must be floating-point, got {logits.dtype}',
    TypeError,
  )
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


def read_mask(mask: Array | None, shape: tuple[int, ...]) -> Array:
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


def read_log_odds(log_odds: Array, mask: Array | None) -> tuple[Array, Array]:
  """Checks binary bags.

  Args:
    log_odds: [..., m] floating-point.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    The log-odds in at least float32, 0 in masked slots, and the mask. They may
    be infinite, where a label is known; finite ones are within `LARGEST`.

  Raises:
    TypeError, ValueError: if an array is malformed.
  """
  log_odds = jnp.asarray(log_odds)
  check(
    jnp.issubdtype(log_odds.dtype, jnp.floating),
    f'log_odds must be floating-point, got {log_odds.dtype}',
    TypeError,
  )
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
  log_odds: Array, log_factor: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
  """As `read_log_odds`, with a factor [..., m + 1] on the count."""
  log_odds, mask = read_log_odds(log_odds, mask)
  log_factor = jnp.asarray(log_factor, log_odds.dtype)
  expected = (*mask.shape[:-1], mask.shape[-1] + 1)
  check(
    log_factor.shape == expected,
    f'log_factor must be [..., m + 1], {expected}, got {log_factor.shape}',
  )
  return log_odds, log_factor, mask


def read_counts(counts: Array, mask: Array, name: str = 'counts') -> Array:
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


def read_class_counts(counts: Array, mask: Array, classes: int) -> Array:
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


def possible_counts(log_odds: Array, log_factor: Array, mask: Array) -> Array:
  """Which counts [..., m + 1] the factor, the bag and its labels allow.

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
  """Ends a constraint: -inf and the prediction where nothing is possible.

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
