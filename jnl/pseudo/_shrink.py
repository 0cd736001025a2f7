"""Guesses that are not sure, but are so among fewer classes."""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check, global_mean
from jnl.inputs import check_range, read_logits
from jnl.logspace import log_probs
from jnl.pseudo._rule import Rule, Seen, follow, read, some
from jnl.pseudo._rules import fixed
from jnl.pseudo._targets import read_probs


def shrinkable(probs: ArrayLike, *, threshold: Scalar = 0.95) -> Array:
  """Whether a guess that is not sure is so among fewer classes.

  Args:
    probs: p, [..., c] >= 0.
    threshold: tau in [0, 1].

  Returns:
    [...] bool: max p is below tau, and would not be if the best class had only
    the least probable one beside it. False for c < 3, where there is no class
    to leave out, and for a row that is not finite.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit out of
      range.

  >>> p = jnp.array([[0.6, 0.39, 0.01], [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]])
  >>> shrinkable(p).tolist()
  [True, False, False]

  Reference: see `shrunk_cross_entropy`.
  """
  check_range('threshold', threshold, 0, 1)
  probs = lax.stop_gradient(read_probs('probs', probs))
  if probs.shape[-1] < 3:
    return jnp.zeros(probs.shape[:-1], bool)
  top, least = jnp.max(probs, axis=-1), jnp.min(probs, axis=-1)
  reached = top / jnp.where(top > 0, top + least, 1) >= threshold
  finite = jnp.all(jnp.isfinite(probs), axis=-1)
  return finite & (top < threshold) & reached


def shrunk_cross_entropy(
  logits: ArrayLike, probs: ArrayLike, *, threshold: Scalar = 0.95
) -> Array:
  r"""Cross-entropy to an unsure guess among the classes that leave it sure.

  .. math::
    \ell = -p_{(0)} \log \frac{e^{z_{(0)}}}
      {e^{z_{(0)}} + \sum_{j \ge m} e^{z_{(j)}}},\qquad
    m = \min\Big\{ m \ge 2 : \frac{p_{(0)}}{p_{(0)} + \sum_{j \ge m} p_{(j)}}
      \ge \tau \Big\}

  where (0), (1), ... are the classes from the most to the least probable. So at
  least the second one is left out. It is 0 for guesses that are sure already
  and for those that never are, see `shrinkable`.

  Args:
    logits: z, [..., c], of the strong view; in ShrinkMatch of an auxiliary
      head.
    probs: p, [..., c], of the weak view. No gradient.
    threshold: tau in [0, 1].

  Returns:
    [...], at least float32, >= 0. The gradient by classes that are left out is
    0, and so is that by rows that do not count.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit out of
      range.

  >>> p = jnp.array([[0.6, 0.39, 0.01], [0.98, 0.01, 0.01]])
  >>> [f'{v:.3f}' for v in shrunk_cross_entropy(jnp.zeros((2, 3)), p).tolist()]
  ['0.416', '0.000']

  Reference: Yang, Zhao, Qi, Qiao, Shi, Zhao, "Shrinking Class Space for
  Enhanced Certainty in Semi-Supervised Learning", ICCV 2023, arXiv 2308.06777.
  """
  counts = shrinkable(probs, threshold=threshold)
  logits = read_logits(logits)
  probs = lax.stop_gradient(read_probs('probs', probs))
  check(
    probs.shape == logits.shape,
    f'probs must have the shape of logits, {logits.shape}, got {probs.shape}',
  )
  shown = counts[..., None]
  logits, probs = jnp.where(shown, logits, 0), jnp.where(shown, probs, 1)
  # One sort of both: from the most probable class down, the first of equals.
  below, z = lax.sort((-probs, logits), num_keys=1, is_stable=True)
  top, ranks = -below[..., :1], jnp.arange(logits.shape[-1])
  tails = lax.cumsum(-below, axis=below.ndim - 1, reverse=True)
  enough = (top / (top + tails) >= threshold) & (ranks >= 2)
  z = jnp.where(enough | (ranks == 0), z, -jnp.inf)
  return jnp.where(counts, -top[..., 0] * log_probs(z)[..., 0], 0)


class Shrinking(NamedTuple):
  """The memory of `shrinking`.

  Attributes:
    ratio: [], the average share of unlabeled rows whose guess is sure.
    started: [] bool, whether there has been an unlabeled row.
  """

  ratio: Array
  started: Array


def shrinking(threshold: Scalar = 0.95, *, momentum: Scalar = 0.999) -> Rule:
  """Sure guesses count, as by `fixed`, and their share is remembered.

  ShrinkMatch multiplies `shrunk_cross_entropy` by it, so that unsure guesses
  count for little as long as few are sure. The average starts at the share of
  the first batch and goes on; the official code for CIFAR starts it anew in
  each epoch.

  Args:
    threshold: tau in [0, 1].
    momentum: of the average, in [0, 1].

  Returns:
    A rule that remembers `Shrinking`.

  Raises:
    ValueError: if a number is out of range.

  >>> rule = shrinking(0.95)
  >>> probs = jnp.array([[0.97, 0.03], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(0))
  >>> memory, weights = rule.apply(rule.init(), seen)
  >>> float(memory.ratio), weights.tolist()
  (0.5, [1.0, 0.0])

  Reference: see `shrunk_cross_entropy`.
  """
  check_range('momentum', momentum, 0, 1)
  sure = fixed(threshold)

  def init() -> Shrinking:
    return Shrinking(jnp.float32(0), jnp.bool_(False))

  def apply(memory: Shrinking, seen: Seen) -> tuple[Shrinking, Array]:
    seen = read(seen)
    _, weights = sure.apply((), seen)
    share, here = global_mean(weights, seen.unlabeled), some(seen.unlabeled)
    kept = jnp.where(memory.started, momentum, 0)
    ratio = follow(memory.ratio, share, kept, here)
    return Shrinking(ratio, memory.started | here), weights

  return Rule(init, apply)
