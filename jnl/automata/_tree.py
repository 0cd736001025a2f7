r"""The count of positives in a bag: its distribution, and factors on it.

With independent binary labels N = sum_i y_i is Poisson-binomial. Evidence about
N is a factor phi(N): 1 at a count that was seen (and 0 elsewhere), 1 on an
interval, or a soft preference. All that follows from one pass up and one pass
down a binary tree over the instances, whose nodes hold the distribution of the
positives below: direct convolutions of non-negative numbers, O(m^2) operations
in O(log m) levels and O(m log m) memory, exact to rounding also where an FFT,
whose error is relative to the largest number, has no digit left.

Before that the log-odds are tilted: adding t to all of them multiplies
P(N = n) by exp(t n) and a constant, so any t gives the same answer; the one
that moves the mean to where phi P(N) is largest keeps what matters in the range
of floats, however far the evidence is from the prediction.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.automata._inputs import (
  is_possible,
  possible_counts,
  read_factor,
  read_log_odds,
)
from jnl.base import LOG_ZERO, Array, Scalar

STEEP = 1e30
"""The slope of log phi beside the counts it allows."""
ROUNDS = 64
"""Halvings of a tilt at the most; clamped log-odds in float64 take 60."""
SURE = 1e-3
"""Within so much of a whole number the mean of a count is that number."""


class CountMessages(NamedTuple):
  """The messages and the likelihood of a factor on the count of a bag.

  Attributes:
    messages: [..., m], log-odds of each label from the factor and the *other*
      instances; the posterior is `sigmoid(log_odds + messages)`. 0 in masked
      slots, infinite where the factor alone decides (no or all positives), and
      within some 80 of the tilt in float32 otherwise, which no posterior feels.
    log_z: [...], log E[phi(N)]; -inf with gradient 0 if phi allows no count
      that the known labels do. NaN, like the messages, where a log-odds is.
  """

  messages: Array
  log_z: Array


def count_messages(
  log_odds: ArrayLike, log_factor: ArrayLike, mask: ArrayLike | None = None
) -> CountMessages:
  r"""Messages of a factor on the count of a bag to each of the instances.

  .. math:: M_i = \log \frac{\sum_n \phi(n + 1)\, P(N_{-i} = n)}
                            {\sum_n \phi(n)\, P(N_{-i} = n)}

  with N_{-i} the number of positives among the others.

  Args:
    log_odds: [..., m], of each label being 1; infinite where it is known. What
      is finite counts for 4e6 at the most, in float64 2e15.
    log_factor: [..., m + 1], log phi; -inf forbids a count. Full precision is
      for a log-concave phi (one count, an interval, a quadratic): one of
      several separate peaks may lose those e^80 times less likely, in float32.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    `CountMessages`, at least float32. Gradients are exact, in both modes.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> log_factor = jnp.array([-jnp.inf, 0., -jnp.inf])  # one of two is positive
  >>> messages, log_z = count_messages(jnp.array([2., 0.]), log_factor)
  >>> messages.round(3).tolist()  # the other one is 0 or 1: log-odds reversed
  [0.0, -2.0]
  """
  log_odds, log_factor, mask = read_factor(log_odds, log_factor, mask)
  messages, _, log_z = solve_messages(log_odds, log_factor, mask)
  return CountMessages(messages, jnp.where(is_possible(log_z), log_z, -jnp.inf))


def count_log_probs(
  log_odds: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  """The log-probabilities of all counts of a bag, exact far into the tails.

  The tree of this module in log space: slower than what needs one count or one
  factor, and the reference for it. Its gradient by reverse mode keeps O(m^2).

  Args:
    log_odds: [..., m], of each label being 1.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [..., m + 1], log P(N = n), at least float32; -inf for n above the number of
    instances, without gradient.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> jnp.exp(count_log_probs(jnp.zeros(2))).round(3).tolist()
  [0.25, 0.5, 0.25]
  """
  log_odds, mask = read_log_odds(log_odds, mask)
  root = _log_root(_instances_first(log_odds), _instances_first(mask))
  m = mask.shape[-1]
  root = root[: m + 1].T.reshape(*mask.shape[:-1], m + 1)
  return jnp.where(is_possible(root), root, -jnp.inf)


# --- the tree ----------------------------------------------------------------
#
# Nodes of a level are [nodes, taps, bags]: bags are contiguous, which is what a
# CPU vectorizes, and stay a dimension of their own, which is what is sharded.
# Node i and node i + half have one parent, so that either half is contiguous.

TOGETHER = 8
"""Taps of a convolution in one pass over its result."""


def _instances_first(x: Array) -> Array:
  """[..., m] as [2^k, bags], padded with zeros (False)."""
  m = x.shape[-1]
  x = x.reshape(-1, m).T
  return jnp.pad(x, ((0, 2 ** math.ceil(math.log2(m)) - m), (0, 0)))


def _halves(nodes: Array) -> tuple[Array, Array]:
  half = nodes.shape[0] // 2
  return nodes[:half], nodes[half:]


def _taps(x: Array, start: int | Array, length: int) -> Array:
  return lax.dynamic_slice_in_dim(x, start, length, axis=1)


def _pad_taps(x: Array, before: int, after: int, value: float = 0) -> Array:
  padding = ((0, 0), (before, after), (0, 0))
  return jnp.pad(x, padding, constant_values=value)


def _convolve(a: Array, b: Array) -> Array:
  """out(n) = sum_k a(k) b(n - k), h = 2^j + 1 taps each -> 2 h - 1."""
  h = a.shape[1]
  together = min(TOGETHER, h - 1)
  shifts = range(together - 1, -1, -1)
  length = h + together - 1  # of what so many taps touch
  padded = _pad_taps(b, together - 1, together - 1)

  def add(i: Array, out: Array) -> Array:
    k = 1 + together * i
    window = _taps(out, k, length)
    for u, shift in enumerate(shifts):
      window += _taps(a, k + u, 1) * padded[:, shift : shift + length]
    return lax.dynamic_update_slice_in_dim(out, window, k, axis=1)

  first = _pad_taps(a[:, :1] * b, 0, h - 1)
  return lax.fori_loop(0, (h - 1) // together, add, first)


def _correlate(a: Array, g: Array) -> Array:
  """out(n) = sum_k a(k) g(n + k), h = 2^j + 1 taps and 2 h - 1 -> h."""
  h = a.shape[1]
  together = min(TOGETHER, h - 1)

  def add(i: Array, out: Array) -> Array:
    for u in range(together):
      k = 1 + together * i + u
      out += _taps(a, k, 1) * _taps(g, k, h)
    return out

  first = a[:, :1] * g[:, :h]
  return lax.fori_loop(0, (h - 1) // together, add, first)


def _log_convolve(a: Array, b: Array) -> Array:
  """`_convolve` of logarithms."""
  h = a.shape[1]

  def add(k: Array, out: Array) -> Array:
    window = jnp.logaddexp(_taps(out, k, h), _taps(a, k, 1) + b)
    return lax.dynamic_update_slice_in_dim(out, window, k, axis=1)

  first = _pad_taps(a[:, :1] + b, 0, h - 1, LOG_ZERO)
  return lax.fori_loop(1, h, add, first)


@jax.jit
def _log_root(log_odds: Array, mask: Array) -> Array:
  """log P(N = n) [2^k + 1, bags] for log-odds [2^k, bags]."""
  nodes = jnp.stack(
    [
      jnp.where(mask, jax.nn.log_sigmoid(-log_odds), 0),
      jnp.where(mask, jax.nn.log_sigmoid(log_odds), LOG_ZERO),
    ],
    axis=1,
  )
  nodes = jnp.maximum(nodes, LOG_ZERO)
  while len(nodes) > 1:
    nodes = _log_convolve(*_halves(nodes))
  return nodes[0]


def _up(leaves: Array) -> list[Array]:
  """All levels, leaves [2^k, 2, bags] first, root [1, 2^k + 1, bags] last."""
  levels = [leaves]
  while len(levels[-1]) > 1:
    levels.append(_convolve(*_halves(levels[-1])))
  return levels


def _down(levels: list[Array], root: Array) -> Array:
  """What the rest says of each leaf's count, [2^k, 2, bags], up to a factor.

  A child hears of a count what its parent would hear with the sibling's added.
  """
  g = root
  for depth, nodes in enumerate(levels[-2::-1]):
    left, right = _halves(nodes)
    g = jnp.concatenate([_correlate(right, g), _correlate(left, g)])
    if depth % 2:
      largest = lax.stop_gradient(jnp.max(g, axis=1, keepdims=True))
      g = g / jnp.where(largest > 0, largest, 1)
  return g


# --- a factor on the count ---------------------------------------------------


def solve_messages(
  log_odds: Array, log_factor: Array, mask: Array
) -> tuple[Array, Array, Array]:
  """`count_messages` of checked arrays.

  Returns:
    Messages, log-odds and messages together (summed before either is rounded:
    where both are large that is more precise), and log_z with LOG_ZERO for
    -inf.
  """
  batch, m = mask.shape[:-1], mask.shape[-1]
  bags = math.prod(batch)
  possible = possible_counts(log_odds, log_factor, mask)
  log_factor = jnp.where(possible, log_factor, LOG_ZERO)
  log_z, messages, posterior = _solve(
    _instances_first(log_odds),
    log_factor.reshape(bags, m + 1).T,
    _instances_first(mask),
  )
  # Exact where the factor alone decides; the tree would give its smallest log.
  none = ~jnp.any(possible[..., 1:], -1, keepdims=True)
  every = ~jnp.any(possible & ~_last(possible, mask), -1, keepdims=True)
  neither = ~mask | ~jnp.any(possible, -1, keepdims=True)

  def outside(x: Array, silent: Scalar | Array) -> Array:
    x = x[:m].T.reshape(mask.shape)
    x = jnp.where(every, jnp.inf, jnp.where(none, -jnp.inf, x))
    return jnp.where(neither, silent, x)

  messages, posterior = outside(messages, 0), outside(posterior, log_odds)
  return messages, posterior, log_z.reshape(batch)


def clamp(log_odds: Array) -> Array:
  """Log-odds that a tilt can undo to half a unit: 2^22, in float64 2^51."""
  largest = 0.5 / jnp.finfo(log_odds.dtype).eps
  return jnp.clip(log_odds, -largest, largest)


def _last(possible: Array, mask: Array) -> Array:
  """Where n is the number of instances, [..., m + 1]."""
  return jnp.arange(possible.shape[-1]) == jnp.sum(mask, -1)[..., None]


@jax.custom_jvp
def _solve(
  log_odds: Array, log_factor: Array, mask: Array
) -> tuple[Array, Array, Array]:
  """log_z [bags], and messages and posterior log-odds [2^k, bags].

  Args:
    log_odds: [2^k, bags].
    log_factor: [m + 1, bags], LOG_ZERO for impossible counts.
    mask: [2^k, bags].
  """
  return _pass_both_ways(clamp(log_odds), log_factor, mask)[:3]


@_solve.defjvp
def _solve_jvp(primals, tangents):
  """d log_z is the posterior less the prior: no tree is differentiated for it.

  Messages are differentiated through the tree, where anybody asks for that.
  """
  log_odds, log_factor, mask = primals
  log_odds = clamp(log_odds)  # here, where it does not stop the gradient
  d_log_odds, d_log_factor, _ = tangents
  (log_z, *outputs, counts), (_, *d_outputs, _) = jax.jvp(
    lambda odds, factor: _pass_both_ways(odds, factor, mask),
    (log_odds, log_factor),
    (d_log_odds, d_log_factor),
  )
  shift = jax.nn.sigmoid(outputs[1]) - jax.nn.sigmoid(log_odds)
  d = jnp.sum(jnp.where(mask, shift, 0) * d_log_odds, axis=0)
  d += jnp.sum(counts * d_log_factor, axis=0)
  d = jnp.where(is_possible(log_z), d, 0)
  return (log_z, *outputs), (d, *d_outputs)


@jax.jit
def _pass_both_ways(
  log_odds: Array, log_factor: Array, mask: Array
) -> tuple[Array, Array, Array, Array]:
  """As `_solve`, and P(n | phi) [m + 1, bags]."""
  t, center = _tilt(*lax.stop_gradient((log_odds, log_factor)), mask)
  u = log_odds + t
  leaves = jnp.stack(
    [
      jnp.where(mask, jax.nn.sigmoid(-u), 1),
      jnp.where(mask, jax.nn.sigmoid(u), 0),
    ],
    axis=1,
  )
  levels = _up(leaves)
  taps = len(log_factor)

  # phi(n) exp(-t n), relative to the center, where it is about largest.
  n = jnp.arange(taps)[:, None]
  at_center = jnp.take_along_axis(log_factor, center[None], axis=0)
  tilted = log_factor - at_center - t * (n - center)
  tilted = jnp.where(is_possible(log_factor), tilted, LOG_ZERO)
  largest = lax.stop_gradient(jnp.max(tilted, axis=0))
  factor = jnp.exp(tilted - largest)
  joint = levels[-1][0, :taps] * factor
  total = jnp.sum(joint, axis=0)
  tiny = jnp.finfo(total.dtype).tiny
  log_total = jnp.log(jnp.maximum(total, tiny)) + largest + at_center[0]
  log_z = log_total + _log_normalizer(log_odds, t, center, mask)
  impossible = ~jnp.any(is_possible(log_factor), axis=0)
  log_z = jnp.where(impossible, LOG_ZERO, log_z)

  # No scatter, which would ask an explicit mesh how to split its result.
  root = jnp.pad(factor, ((0, levels[-1].shape[1] - taps), (0, 0)))[None]
  g = jnp.maximum(_down(levels, root), tiny)
  told = jnp.log(g[:, 1]) - jnp.log(g[:, 0])
  return log_z, t + told, u + told, joint / jnp.maximum(total, tiny)


def _log_normalizer(
  log_odds: Array, t: Array, center: Array, mask: Array
) -> Array:
  """log E[exp(t (N - center))] without its cancellations, [bags].

  Each instance is counted as 0 or 1 by its tilted log-odds; what remains is of
  the size of its uncertainty.
  """
  u = log_odds + t
  counted = mask & (u > 0)
  flipped = counted != (log_odds > 0)
  terms = jax.nn.softplus(-jnp.abs(u)) - jax.nn.softplus(-jnp.abs(log_odds))
  terms = terms - jnp.where(flipped, jnp.abs(log_odds), 0)
  excess = jnp.sum(counted, axis=0) - center
  return jnp.sum(jnp.where(mask, terms, 0), axis=0) + t * excess


def _tilt(
  log_odds: Array, log_factor: Array, mask: Array
) -> tuple[Array, Array]:
  """The tilt t [bags], and the count nearest to the tilted mean, int [bags].

  Where phi P is largest, log phi rises as fast as log P falls. The slope of
  log P at n is minus the tilt whose mean is n (to leading order), so t is a
  root of phi'(mean(t)) = t, found by bisection. It has to be right to less than
  one standard deviation of N, and need not be exact.
  """
  allowed = is_possible(log_factor)
  first = jnp.argmax(allowed, axis=0)
  last = log_factor.shape[0] - 1 - jnp.argmax(allowed[::-1], axis=0)
  slopes = jnp.diff(log_factor, axis=0)
  n = jnp.arange(len(slopes))[:, None]
  slopes = jnp.where(n < first, STEEP, jnp.where(n >= last, -STEEP, slopes))

  def mean(t: Array) -> Array:
    return jnp.sum(jnp.where(mask, jax.nn.sigmoid(log_odds + t), 0), axis=0)

  def goes_on(carry: tuple[Array, Array, Array]) -> Array:
    i, low, high = carry
    middle = (low + high) / 2
    wide = (high - low > precision) & (low < middle) & (middle < high)
    return (i < ROUNDS) & jnp.any(wide)

  def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    i, low, high = carry
    middle = (low + high) / 2
    # Where all labels are decided any tilt will do, and the one nearest to 0
    # keeps the most digits: a mean that is whole counts as beyond it.
    at = mean(middle) + jnp.where(middle < 0, -SURE, SURE)
    at = jnp.clip(at.astype(jnp.int32), 0, len(slopes) - 1)
    rises = jnp.take_along_axis(slopes, at[None], axis=0)[0] > middle
    return i + 1, jnp.where(rises, middle, low), jnp.where(rises, high, middle)

  # From a quarter of a positive to all but a quarter.
  margin = math.log(4 * len(log_odds))
  low = -jnp.max(jnp.where(mask, log_odds, -STEEP), axis=0) - margin
  high = -jnp.min(jnp.where(mask, log_odds, STEEP), axis=0) + margin
  empty = ~jnp.any(mask, axis=0)
  low, high = jnp.where(empty, 0, low), jnp.where(empty, 0, high)
  precision = min(
    0.5, 4 / math.sqrt(len(log_odds))
  )  # N is right to one deviation
  _, low, high = lax.while_loop(goes_on, halve, (jnp.int32(0), low, high))
  t = (low + high) / 2
  center = jnp.clip(jnp.round(mean(t)).astype(jnp.int32), first, last)
  return t, center
