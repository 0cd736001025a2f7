"""Any finite automaton as evidence: the labels of a bag are read in order.

The builders give automata for common evidence. Label 1 of two is the positive
one; with `counted`, any set of classes is. Positive-unlabeled learning with a
known prior is a count over the unlabeled part of a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
from jax.nn import logsumexp
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.automata._inputs import Inference, conclude
from jnl.base import LOG_ZERO, Array, check, is_concrete
from jnl.inputs import read_bags, read_floats

BINARY = (False, True)
"""`counted` for two classes: label 1 is the positive one."""


class Automaton(NamedTuple):
  """A weighted finite automaton with s states over k labels.

  Log weights: 0 for what is allowed, -inf (or anything <= -1e30) for what is
  not, anything else for soft evidence. It may be nondeterministic; the weight
  of a string of labels is the sum over its paths. Leading dimensions broadcast
  against the bags: one automaton for all, or one for each.

  Attributes:
    start: [..., s], of beginning in a state.
    step: [..., s, k, s], of going from a state to another on reading a label.
    end: [..., s], of ending in a state.
  """

  start: Array
  step: Array
  end: Array


def infer(
  automaton: Automaton, logits: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  r"""Posteriors and likelihood, given that an automaton accepts a bag.

  .. math:: P = \sum_{y_1 \dots y_m} w(y_1 \dots y_m) \prod_i p_i(y_i),\qquad
    q_i(k) = \frac{\partial \log P}{\partial \log p_i(k)}

  with w the weight that the automaton gives a string of labels. Forward and
  backward recursions in log space: time O(m k s^2), memory O(m s) for each bag.
  The likelihood can be differentiated by the logits and by the weights, in
  forward and reverse mode.

  Args:
    automaton: s states over k labels.
    logits: [..., m, k], one bag in each row.
    mask: [..., m] bool, true where there is an instance; others are not read.

  Returns:
    `Inference`; its leading shape is that of the bags broadcast with that of
    the automaton, so that many kinds of evidence about one bag are one call.

  Raises:
    TypeError, ValueError: if an array is malformed, or if outside jit a bag is
      empty.

  >>> two = count_automaton(2, 3)
  >>> p = jnp.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
  >>> result = jax.jit(infer)(two, jnp.log(p))
  >>> f'{jnp.exp(result.log_likelihood):.3f}'
  '0.275'
  >>> [f'{q:.3f}' for q in result.posterior[:, 1]]
  ['0.909', '0.909', '0.182']

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922. Exact, where the official code
  departs from enumeration in several places.
  """
  log_probs, mask = read_bags(logits, mask)
  start, step, end = _read(automaton, log_probs)

  def push(alpha: Array) -> Array:
    return logsumexp(alpha[..., :, None, None] + step, axis=-3)

  def pull(beta: Array) -> Array:
    return logsumexp(step + beta[..., None, None, :], axis=-1)

  shape = jnp.broadcast_shapes(
    mask.shape[:-1], start.shape[:-1], step.shape[:-3], end.shape[:-1]
  )
  log_probs = jnp.broadcast_to(log_probs, shape + log_probs.shape[-2:])
  mask = jnp.broadcast_to(mask, shape + mask.shape[-1:])
  value, posterior = forward_backward(start, push, pull, end, log_probs, mask)
  return conclude(value, posterior, log_probs, mask)


def forward_backward(
  start: Array,
  push: Callable[[Array], Array],
  pull: Callable[[Array], Array],
  end: Array,
  log_probs: Array,
  mask: Array,
) -> tuple[Array, Array]:
  r"""The likelihood and the posteriors, by recursions given as functions.

  .. math:: \alpha_i(t) = \log \sum_k p_i(k)\, e^{g_{kt}},\qquad
    \beta_{i-1}(s) = \log \sum_k p_i(k)\, e^{h_{sk}},\qquad
    q_i(k) \propto p_i(k) \sum_s e^{\alpha_{i-1}(s) + h_{sk}}

  Args:
    start: [..., s] finite log weights.
    push: alpha [..., s] to g [..., k, s], the log weight of arriving in each
      state by each label.
    pull: beta [..., s] to h [..., s, k], the log weight of what follows a label
      read in each state; the transpose of `push`.
    end: [..., s] finite log weights.
    log_probs: [..., m, k], finite.
    mask: [..., m].

  Returns:
    log P [...], about `LOG_ZERO` if nothing is accepted, and the posterior
    [..., m, k], anything there and in masked slots.
  """

  def forward(
    carry: tuple[Array, Array], read: tuple[Array, Array]
  ) -> tuple[tuple[Array, Array], Array]:
    alpha, scale = carry
    log_p, here = read
    after = logsumexp(log_p[..., :, None] + push(alpha), axis=-2)
    # In float32 the sum of many log-probabilities has few digits left for the
    # differences between states; so the states are kept relative to the best.
    after, top = _relative(after)
    after = jnp.where(here[..., None], after, alpha)
    return (after, scale + jnp.where(here, top, 0)), alpha

  def backward(
    beta: Array, read: tuple[Array, Array, Array]
  ) -> tuple[Array, Array]:
    alpha, log_p, here = read
    follow = pull(beta)
    joint = log_p + logsumexp(alpha[..., :, None] + follow, axis=-2)
    before, _ = _relative(logsumexp(log_p[..., None, :] + follow, axis=-1))
    return jnp.where(here[..., None], before, beta), jax.nn.softmax(joint)

  # A carry has to vary over mapped axes as the bags do: hence the sum.
  zero = jnp.zeros_like(log_probs[..., 0, 0]) * log_probs[..., 0, 0]
  log_probs, mask = jnp.moveaxis(log_probs, -2, 0), jnp.moveaxis(mask, -1, 0)
  first, last = start + zero[..., None], end + zero[..., None]
  (alpha, scale), alphas = lax.scan(forward, (first, zero), (log_probs, mask))
  value = scale + logsumexp(alpha + end, axis=-1)
  _, posterior = lax.scan(
    backward, last, (alphas, log_probs, mask), reverse=True
  )
  return value, jnp.moveaxis(posterior, 0, -2)


# --- builders ----------------------------------------------------------------


def count_automaton(
  counts: Array | int, most: int, *, counted: Array | tuple[bool, ...] = BINARY
) -> Automaton:
  """The automaton that accepts `counts` labels of the counted classes.

  The states are the counts 0 to `most`. For long bags of two classes, `count`
  is quicker.

  Args:
    counts: [...] int in [0, most].
    most: the largest of the counts; static.
    counted: [k] bool, which classes count.

  Returns:
    `Automaton` with most + 1 states.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if it is
      out of range. Inside jit a count out of range accepts nothing.

  >>> count_automaton(jnp.array([1, 2]), 2).end.shape
  (2, 3)
  """
  counts = _read_bound('counts', counts, most)
  return _counter(counts, counts, most, counted, saturate=False)


def interval_automaton(
  low: Array | int,
  high: Array | int,
  most: int,
  *,
  counted: Array | tuple[bool, ...] = BINARY,
) -> Automaton:
  """The automaton that accepts `low` to `high` labels of the counted classes.

  Both bounds are included.

  Args:
    low: [...] int in [0, high].
    high: [...] int in [low, most].
    most: the largest of the bounds; static.
    counted: [k] bool, which classes count.

  Returns:
    `Automaton` with most + 1 states.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if it is
      out of range. Inside jit an empty interval accepts nothing.

  >>> jnp.exp(interval_automaton(1, 2, 3).end).tolist()
  [0.0, 1.0, 1.0, 0.0]
  """
  low = _read_bound('low', low, most)
  high = _read_bound('high', high, most)
  if is_concrete(low, high):
    check(jnp.all(low <= high), 'low must not be greater than high')
  return _counter(low, high, most, counted, saturate=False)


def at_least_automaton(
  least: Array | int, most: int, *, counted: Array | tuple[bool, ...] = BINARY
) -> Automaton:
  """The automaton that accepts `least` labels or more of the counted classes.

  With `least` 1, multiple-instance learning: a positive bag. The last state
  stands for `most` and more.

  Args:
    least: [...] int in [0, most].
    most: the largest of `least`, not of the bags; static.
    counted: [k] bool, which classes count.

  Returns:
    `Automaton` with most + 1 states.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if it is
      out of range. Inside jit `least` > `most` accepts nothing.

  >>> result = jax.jit(infer)(at_least_automaton(1, 1), jnp.zeros([3, 2]))
  >>> f'{jnp.exp(result.log_likelihood):.3f}'
  '0.875'
  """
  least = _read_bound('least', least, most)
  return _counter(least, most, most, counted, saturate=True)


def all_equal_automaton(k: int) -> Automaton:
  """The automaton that accepts labels that are all of one class.

  Args:
    k: number of classes, >= 2.

  Returns:
    `Automaton`; the state is the class seen, or none.

  Raises:
    ValueError: if `k` is out of range.

  >>> result = jax.jit(infer)(all_equal_automaton(3), jnp.zeros([3, 3]))
  >>> f'{jnp.exp(result.log_likelihood):.3f}'
  '0.111'
  """
  check(k >= 2, f'k must be at least 2, got {k}')
  state, label = np.arange(k + 1), np.arange(1, k + 1)
  agree = (state[:, None] == 0) | (state[:, None] == label)
  step = agree[:, :, None] & (label[:, None] == state)
  return Automaton(_log(state == 0), _log(step), _log(state >= 0))


def pair_automaton(log_weights: ArrayLike) -> Automaton:
  """The automaton that reads exactly two labels and weighs the pair.

  The state is nothing read, the first label, or both read. `pair` says the same
  in one step; this is for combining it with other automata.

  Args:
    log_weights: [..., k, k], of (first, second).

  Returns:
    `Automaton` with k + 2 states.

  Raises:
    TypeError, ValueError: if `log_weights` is malformed.

  >>> pair_automaton(jnp.zeros([3, 3])).step.shape
  (5, 3, 5)
  """
  log_weights = read_table(log_weights)
  k = log_weights.shape[-1]
  state, label = np.arange(k + 2), np.arange(1, k + 1)
  first = (state[:, None, None] == 0) & (label[:, None] == state)
  step = jnp.broadcast_to(
    _log(first), (*log_weights.shape[:-2], k + 2, k, k + 2)
  ).astype(log_weights.dtype)
  step = step.at[..., 1 : k + 1, :, k + 1].set(log_weights)
  return Automaton(_log(state == 0), step, _log(state == k + 1))


# --- the pieces --------------------------------------------------------------


def read_table(log_weights: ArrayLike) -> Array:
  """The log weights [..., k, k] of pairs of labels, checked."""
  log_weights = read_floats('log_weights', log_weights)
  check(
    log_weights.ndim >= 2
    and log_weights.shape[-1] == log_weights.shape[-2] >= 2,
    f'log_weights must be [..., k, k], got shape {log_weights.shape}',
  )
  return log_weights


def _read(automaton: Automaton, log_probs: Array) -> list[Array]:
  """Checks an automaton, and makes its weights finite."""
  s, k = jnp.shape(automaton.start)[-1:], log_probs.shape[-1:]
  shapes = {'start': s, 'step': s + k + s, 'end': s}
  weights = []
  for name, shape in shapes.items():
    weight = jnp.asarray(getattr(automaton, name))
    check(
      jnp.issubdtype(weight.dtype, jnp.floating),
      f'automaton.{name} must be floating-point log weights, got '
      f'{weight.dtype}',
      TypeError,
    )
    lead = weight.ndim - len(shape)
    check(
      s and lead >= 0 and weight.shape[lead:] == shape,
      f'automaton.{name} must be [..., {", ".join(map(str, shape))}] to go '
      f'with automaton.start and {k[0]} classes, got shape {weight.shape}',
    )
    check_broadcast(
      f'automaton.{name}', weight.shape[:lead], log_probs.shape[:-2]
    )
    weights.append(jnp.maximum(weight.astype(log_probs.dtype), LOG_ZERO))
  return weights


def check_broadcast(
  name: str, lead: tuple[int, ...], bags: tuple[int, ...]
) -> None:
  """Raises unless evidence of shape `lead` can be matched with the bags."""
  try:
    jnp.broadcast_shapes(lead, bags)
  except ValueError:
    raise ValueError(
      f'{name} has the leading shape {lead}, which does not broadcast against '
      f'that of the bags, {bags}'
    ) from None


def _relative(log_weights: Array) -> tuple[Array, Array]:
  """Log weights [..., s] less their maximum, and that."""
  top = lax.stop_gradient(jnp.max(log_weights, axis=-1))
  return log_weights - top[..., None], top


def _log(allowed: Array | np.ndarray) -> Array:
  """Log weights 0 and `LOG_ZERO`."""
  return jnp.where(allowed, 0, LOG_ZERO).astype(float)


def _read_bound(name: str, bound: Array | int, most: int) -> Array:
  """Checks a bound [...] on a count, in [0, most]."""
  check(most >= 0, f'most must be at least 0, got {most}')
  bound = jnp.asarray(bound)
  check(
    jnp.issubdtype(bound.dtype, jnp.integer),
    f'{name} must be integers, got {bound.dtype}',
    TypeError,
  )
  check(
    jnp.all((bound >= 0) & (bound <= most)),
    f'{name} must lie between 0 and most = {most}',
  )
  return bound


def _counter(
  low: Array,
  high: Array | int,
  most: int,
  counted: Array | tuple[bool, ...],
  *,
  saturate: bool,
) -> Automaton:
  """Counts up to `most`, and accepts from `low` to `high`.

  One more is impossible, or changes nothing if `saturate`.
  """
  counted = jnp.asarray(counted)
  check(
    counted.dtype == bool,
    f'counted must be bool, got {counted.dtype}',
    TypeError,
  )
  check(
    counted.ndim == 1 and counted.size >= 2,
    f'counted must be [k] with k >= 2 classes, got shape {counted.shape}',
  )
  state = jnp.arange(most + 1)
  stay = state[:, None] == state
  more = state[:, None] + 1 == state
  if saturate:
    more |= stay & (state == most)
  step = jnp.where(counted[:, None], more[:, None], stay[:, None])
  low, high = jnp.asarray(low)[..., None], jnp.asarray(high)[..., None]
  end = (low <= state) & (state <= high)
  return Automaton(_log(state == 0), _log(step), _log(end))
