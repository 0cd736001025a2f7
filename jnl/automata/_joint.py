"""The whole count vector of a bag at once, for small bags of many classes.

One count for each class apart (`count_one_versus_rest`) forgets that every
instance has one label; here nothing is forgotten.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.automata._general import forward_backward
from jnl.automata._inputs import Inference, conclude
from jnl.base import LOG_ZERO, Array, check, is_concrete
from jnl.inputs import read_bags, read_class_counts

STATES = 100_000
"""The most states that `joint_count` takes unasked."""
MOST_STATES = 2**24
"""Where float32 stops counting."""


def joint_count(
  logits: ArrayLike,
  counts: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  states: int | None = None,
) -> Inference:
  r"""Posteriors and likelihood, given the counts of all classes at once.

  .. math:: P = \sum_{y:\, \#\{i: y_i = k\} = n_k\ \forall k} \prod_i p_i(y_i)

  A recursion over count vectors. The count of the most frequent class follows
  from the others, so that a bag needs

  .. math:: S = \prod_k (n_k + 1) \Big/ \max_k (n_k + 1)

  states, time O(m c S) and memory O((m + c) S). For two classes it equals
  `count`, which is quicker for long bags.

  Args:
    logits: [..., m, c].
    counts: n, [..., c] int >= 0, whose sum is the number of instances.
    mask: [..., m] bool, true where there is an instance.
    states: a bound on S; static. Computed from the counts outside jit, where
      more than 100,000 are an error unless asked for.

  Returns:
    `Inference`. Inside jit, counts that are negative or of another sum are
    infeasible; so is, for want of states, a bag that needs more than `states`.

  Raises:
    TypeError, ValueError: if an array is malformed or, outside jit, if counts
      are out of range, `states` too small or a bag empty; inside jit, if
      `states` is not given.

  >>> z = jnp.log(jnp.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]]))
  >>> result = joint_count(z, jnp.array([1, 1, 0]))
  >>> f'{jnp.exp(result.log_likelihood):.2f}'
  '0.40'
  >>> [[f'{q:.1f}' for q in row] for row in result.posterior]
  [['0.9', '0.1', '0.0'], ['0.1', '0.9', '0.0']]

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922, where the classes are counted
  apart.
  """
  log_probs, mask = read_bags(logits, mask)
  counts = _read_counts(counts, mask, log_probs.shape[-1])
  states = _read_states(states, counts)

  # An impossible count would make a state index point anywhere.
  c = counts.shape[-1]
  possible = jnp.all(counts >= 0, -1) & (
    jnp.sum(counts, -1) == jnp.sum(mask, -1)
  )
  implied = jnp.argmax(counts, -1)[..., None] == jnp.arange(c)
  base = jnp.where(implied, 1, jnp.maximum(counts, 0) + 1)
  # In float32 a product that is too large saturates instead of wrapping.
  size = jnp.cumprod(base.astype(jnp.float32), axis=-1)
  possible &= size[..., -1] <= states
  stride = jnp.concatenate([jnp.ones_like(size[..., :1]), size[..., :-1]], -1)
  stride = jnp.minimum(stride, states).astype(jnp.int32)
  last = jnp.minimum(size[..., -1], states).astype(jnp.int32) - 1

  # State sum_k n_k stride_k; reading class k adds stride_k, or nothing if its
  # count is implied. What lies beyond the last state is cut off.
  state, k = jnp.arange(states)[:, None], (..., None, slice(None))
  digit = state // stride[k] % base[k]
  shift = jnp.where(implied, 0, stride)[k]
  origin, target = state - shift, state + shift
  came = implied[k] | (digit > 0)
  goes = (implied[k] | (digit + 1 < base[k])) & (
    target <= last[..., None, None]
  )
  origin, target = jnp.where(came, origin, 0), jnp.where(goes, target, 0)

  def push(alpha: Array) -> Array:
    return jnp.swapaxes(jnp.where(came, _take(alpha, origin), LOG_ZERO), -1, -2)

  def pull(beta: Array) -> Array:
    return jnp.where(goes, _take(beta, target), LOG_ZERO)

  def only(here: Array) -> Array:
    return jnp.where(here, 0, LOG_ZERO).astype(log_probs.dtype)

  value, posterior = forward_backward(
    only(state[:, 0] == 0),
    push,
    pull,
    only(state[:, 0] == last[..., None]),
    log_probs,
    mask,
  )
  value = jnp.where(possible, value, LOG_ZERO)
  return conclude(value, posterior, log_probs, mask)


def _take(values: Array, index: Array) -> Array:
  """values[..., index] for values [..., s] and an index [..., s, c] of each."""
  flat = index.reshape(*index.shape[:-2], -1)
  return jnp.take_along_axis(values, flat, axis=-1).reshape(index.shape)


def _read_counts(counts: ArrayLike, mask: Array, classes: int) -> Array:
  """Checks counts [..., c] of the instances in each bag."""
  counts = read_class_counts(counts, mask, classes)
  if is_concrete(counts, mask):
    check(jnp.all(counts >= 0), 'counts must not be negative')
    check(
      jnp.all(jnp.sum(counts, -1) == jnp.sum(mask, -1)),
      'counts must sum to the number of instances in the bag',
    )
  return counts.astype(jnp.int32)


def _read_states(states: int | None, counts: Array) -> int:
  """The number of states to use; computed if None."""
  check(
    states is None or 1 <= states < MOST_STATES,
    f'states must lie in [1, {MOST_STATES}), got {states}',
  )
  if not is_concrete(counts):
    check(
      states is not None,
      'joint_count needs `states` inside jit: a bound on the product of '
      '(count + 1) over all classes but the most frequent one',
    )
    return states or 1
  bases = np.sort(np.asarray(counts, np.float64) + 1, axis=-1)
  with np.errstate(over='ignore'):
    needed = np.max(np.prod(bases[..., :-1], axis=-1), initial=1)
  limit = STATES if states is None else states
  check(
    needed <= limit,
    f'joint_count needs {needed:,.0f} states for one of these bags and may use '
    f'{limit:,}; pass `states` if there is memory for that many in each '
    f'instance of each bag, or merge classes, split the bag, or count each '
    f'class against the rest with `count`',
  )
  return int(needed) if states is None else states
