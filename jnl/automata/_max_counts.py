"""A factor on the count where only the likeliest labels matter."""

from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.automata._inputs import is_possible, possible_counts, read_factor
from jnl.automata._tree import clamp
from jnl.base import LOG_ZERO, Array


def max_count_messages(
  log_odds: ArrayLike, log_factor: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Max-product messages of a factor on the count to each instance.

  .. math:: M_i = \max_n\,[\phi(n + 1) + A_{-i}(n)]
                - \max_n\,[\phi(n) + A_{-i}(n)]

  with A_{-i}(n) the sum of the n largest log-odds of the others. It is the
  limit of T `count_messages(log_odds / T, log_factor / T)` for T -> 0. The sign
  of log-odds and message together is the label in the likeliest labeling. By
  one sort, O(m log m), for any factor.

  As `count_messages`, with maxima for sums.

  Args:
    log_odds: [..., m], of each label being 1.
    log_factor: [..., m + 1], log phi; -inf forbids a count.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [..., m] messages, at least float32; 0 in masked slots and where no count is
    allowed, infinite where the factor alone decides, NaN where a log-odds is.
    Log-odds count for 4e6 at the most, in float64 2e15.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> one_of_three = jnp.array([-jnp.inf, 0., -jnp.inf, -jnp.inf])
  >>> max_count_messages(jnp.array([2., .5, -1.]), one_of_three).tolist()
  [-0.5, -2.0, -2.0]
  """
  log_odds, log_factor, mask = read_factor(log_odds, log_factor, mask)
  possible = possible_counts(log_odds, log_factor, mask)
  factor = jnp.where(possible, log_factor, LOG_ZERO)
  log_odds = clamp(log_odds)

  order = jnp.argsort(jnp.where(mask, -log_odds, jnp.inf), axis=-1)
  largest = jnp.where(mask, log_odds, LOG_ZERO)
  largest = jnp.take_along_axis(largest, order, axis=-1)
  sums = _sums_about(largest, factor)
  # With the instance at place r: n of the others are the n first where n <= r,
  # and the n + 1 first without it beyond.
  with_one = _best(factor[..., 1:], sums, largest)
  without = _best(factor[..., :-1], sums, largest)
  may_be_one, may_be_zero = is_possible(with_one), is_possible(without)
  messages = jnp.where(may_be_zero, with_one - without, jnp.inf)
  messages = jnp.where(may_be_one, messages, -jnp.inf)
  messages = jnp.where(may_be_one | may_be_zero, messages, 0)
  unknown = jnp.isnan(jnp.sum(log_odds, -1) + jnp.sum(factor, -1))
  messages = jnp.where(unknown[..., None], jnp.nan, messages)
  back = jnp.argsort(order, axis=-1)
  return jnp.where(mask, jnp.take_along_axis(messages, back, axis=-1), 0)


def likeliest(log_odds: Array, counts: Array, mask: Array) -> Array:
  """The labels that are 1 in the likeliest labeling with a known count.

  Args:
    log_odds: [..., m], of each label being 1; of equal ones the first goes
      before.
    counts: [...] int in [0, number of instances].
    mask: [..., m] bool, true where there is an instance.

  Returns:
    [..., m] bool.
  """
  order = jnp.argsort(-jnp.where(mask, log_odds, -jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)
  return rank < counts[..., None]


def _best(factor: Array, sums: Array, largest: Array) -> Array:
  """max_n factor(n) + A_{-i}(n) for the instance at each place, [..., m]."""
  axis = factor.ndim - 1
  before = lax.cummax(factor + sums[..., :-1], axis=axis)
  after = lax.cummax(factor + sums[..., 1:], axis=axis, reverse=True)
  after = jnp.concatenate(
    [after[..., 1:], jnp.full_like(after[..., :1], LOG_ZERO)], axis=axis
  )
  return jnp.maximum(before, after - largest)


def _sums_about(largest: Array, factor: Array) -> Array:
  """Sums of the n first, [..., m + 1], less that of the best n.

  From there outward: near it, where the answer is, nothing large cancels.
  """
  zero = jnp.zeros_like(largest[..., :1])
  plain = jnp.concatenate([zero, jnp.cumsum(largest, axis=-1)], axis=-1)
  center = jnp.argmax(factor + plain, axis=-1)[..., None]
  place = jnp.arange(largest.shape[-1])
  after = jnp.cumsum(jnp.where(place >= center, largest, 0), axis=-1)
  before = jnp.where(place < center, largest, 0)
  before = lax.cumsum(before, axis=before.ndim - 1, reverse=True)
  beyond = jnp.concatenate([zero, after], axis=-1)
  return beyond - jnp.concatenate([before, zero], axis=-1)
