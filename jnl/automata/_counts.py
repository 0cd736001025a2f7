"""Evidence about how many of a bag are positive: a count, bounds, or any.

With binary labels that are independent given the instances. All is one factor
on the count, solved by the tree in `jnl.automata._tree`.
"""

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.automata._inputs import Inference, is_possible
from jnl.automata._tree import solve_messages
from jnl.base import LOG_ZERO, Array, check, is_concrete
from jnl.inputs import read_bag_logits, read_class_counts, read_counts
from jnl.logspace import LARGEST, log_softmax


def count(
  logits: ArrayLike, counts: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  r"""Posteriors and likelihood, given the number of positives in a bag.

  .. math:: \log P(N = n \mid x),\qquad q_i = P(y_i = 1 \mid N = n, x),\qquad
    \sum_i q_i = n

  Label proportions, positive and unlabeled, two unlabeled sets: all are counts.

  Args:
    logits: [..., m, 2]; class 1 is the positive one. `one_versus_rest` makes
      such logits of several classes.
    counts: [...] int, n in [0, number of instances]. For proportions, round
      their product with the number of instances.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    `Inference`, posteriors [..., m, 2]. Inside jit a count out of range is
    impossible evidence, and an empty bag has the count 0.

  Raises:
    TypeError, ValueError: if an array is malformed or, outside jit, a bag empty
      or a count out of range.

  >>> found = jax.jit(count)(jnp.zeros((3, 2)), jnp.array(1))
  >>> [round(float(q), 3) for q in found.posterior[:, 1]]
  [0.333, 0.333, 0.333]

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922; Shukla, Zeng, Ahmed, Van den
  Broeck, "A Unified Approach to Count-Based Weakly-Supervised Learning",
  NeurIPS 2023, arXiv 2311.13718. The official recursion of the former is not
  exact (the emission of its last state is the negative one, and its likelihood
  is P(N = n) / P(N <= n)); this one is.
  """
  log_odds, mask = _read_bags(logits, mask)
  counts = read_counts(counts, mask)
  return _interval(log_odds, counts, counts, mask)


def interval(
  logits: ArrayLike,
  low: ArrayLike,
  high: ArrayLike,
  mask: ArrayLike | None = None,
) -> Inference:
  """Posteriors and likelihood, given bounds on the number of positives.

  Args:
    logits: [..., m, 2]; class 1 is the positive one.
    low: [...] int, in [0, number of instances].
    high: [...] int, in [low, number of instances].
    mask: [..., m] bool, or None.

  Returns:
    `Inference`, posteriors [..., m, 2].

  Raises:
    TypeError, ValueError: as `count`.

  >>> found = jax.jit(interval)(jnp.zeros((2, 2)), 0, 1)
  >>> round(float(jnp.exp(found.log_likelihood)), 3)
  0.75
  """
  log_odds, mask = _read_bags(logits, mask)
  low, high = read_counts(low, mask, 'low'), read_counts(high, mask, 'high')
  if is_concrete(low, high):
    check(jnp.all(low <= high), 'low must not be above high')
  return _interval(log_odds, low, high, mask)


def at_least(
  logits: ArrayLike, least: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  """Posteriors and likelihood, given a lower bound on the number of positives.

  Args:
    logits: [..., m, 2]; class 1 is the positive one.
    least: [...] int, in [0, number of instances].
    mask: [..., m] bool, or None.

  Returns:
    `Inference`, posteriors [..., m, 2].

  Raises:
    TypeError, ValueError: as `count`.
  """
  log_odds, mask = _read_bags(logits, mask)
  least = read_counts(least, mask, 'least')
  return _interval(log_odds, least, jnp.sum(mask, -1), mask)


def multiple_instance(
  logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  r"""Posteriors and likelihood, given whether a bag holds any positive.

  .. math:: P(+) = 1 - \prod_i (1 - p_i),\qquad q_i = p_i / P(+)

  for a positive bag; all instances of a negative one are negative.

  Args:
    logits: [..., m, 2]; class 1 is the positive one.
    labels: [...] bool or int in {0, 1}, of the bags.
    mask: [..., m] bool, or None.

  Returns:
    `Inference`, posteriors [..., m, 2].

  Raises:
    TypeError, ValueError: as `count`.

  >>> z, labels = jnp.zeros((2, 2, 2)), jnp.array([True, False])
  >>> found = jax.jit(multiple_instance)(z, labels)
  >>> [[round(float(q), 3) for q in bag[:, 1]] for bag in found.posterior]
  [[0.667, 0.667], [0.0, 0.0]]

  Reference: see `pair`.
  """
  log_odds, mask = _read_bags(logits, mask)
  labels = jnp.asarray(labels)
  if is_concrete(labels):
    binary = (labels == 0) | (labels == 1)
    check(jnp.all(binary), 'labels of bags must be 0 or 1')
  least = labels.astype(jnp.int32) if labels.dtype == bool else labels
  least = read_counts(least, mask, 'labels')
  high = jnp.where(least > 0, jnp.sum(mask, -1), 0)
  return _interval(log_odds, least, high, mask)


def count_one_versus_rest(
  logits: ArrayLike, counts: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  r"""Posteriors and likelihoods, given the count of each class on its own.

  .. math:: \sum_k \log P\Big(\sum_i 1[y_i = k] = n_k\Big),\qquad
    q_{ik} \propto P\Big(y_i = k \,\Big|\, \sum_j 1[y_j = k] = n_k\Big)

  Each term is exact. Together they forget that every instance has one label,
  and the posteriors are brought to sum one; `joint_count` forgets nothing, for
  small bags. For two classes the posterior is that of `count`, and the
  log-likelihood twice as large.

  Args:
    logits: [..., m, c].
    counts: [..., c] int, n_k in [0, number of instances].
    mask: [..., m] bool, or None.

  Returns:
    `Inference`, posteriors [..., m, c]; feasible if every count is.

  Raises:
    TypeError, ValueError: as `count`.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922.
  """
  logits, mask = read_bag_logits(logits, mask)
  counts = read_class_counts(counts, mask, logits.shape[-1])
  log_p = log_softmax(logits)
  bags = jnp.moveaxis(_one_versus_rest(log_p), -2, -3)
  of_class = jnp.broadcast_to(mask[..., None, :], bags.shape[:-1])
  log_likelihood, posterior, feasible = count(bags, counts, of_class)
  own = jnp.moveaxis(posterior[..., 1], -2, -1)
  total = jnp.sum(own, axis=-1, keepdims=True)
  every = jnp.all(feasible, axis=-1)
  prediction = jnp.where(mask[..., None], jnp.exp(log_p), 0)
  possible = every[..., None, None] & (total > 0)
  own = jnp.where(possible, own / jnp.where(total > 0, total, 1), prediction)
  # Where one class is impossible the bag is, and learns nothing of the others.
  finite = jnp.where(feasible, log_likelihood, 0)
  total = jnp.sum(jnp.where(every[..., None], finite, 0), axis=-1)
  return Inference(jnp.where(every, total, -jnp.inf), own, every)


def one_versus_rest(logits: Array) -> Array:
  """Binary logits of each class against all others.

  Args:
    logits: [..., c].

  Returns:
    [..., c, 2], log(1 - p_k) and log p_k, both to full relative precision. For
    bags [..., m, c], `one_versus_rest(logits)[..., k, :]` are those of class k.

  >>> rest, own = one_versus_rest(jnp.array([0., 0., 200.]))[2]
  >>> round(float(rest), 2), float(own)
  (-199.31, 0.0)
  """
  return _one_versus_rest(log_softmax(logits))


def _one_versus_rest(log_p: Array) -> Array:
  """`one_versus_rest` of log-probabilities, of which some may be -inf."""
  classes = log_p.shape[-1]
  top = jnp.argmax(lax.stop_gradient(log_p), -1, keepdims=True)
  is_top = jnp.arange(classes) == top
  without_top = jnp.where(is_top, LOG_ZERO, jnp.maximum(log_p, LOG_ZERO))
  rest = jax.nn.logsumexp(without_top, axis=-1, keepdims=True)
  rest = jnp.where(is_possible(rest), rest, -jnp.inf)
  # Of a class that is not the top one the probability is at most a half.
  others = jnp.log1p(-jnp.exp(without_top))
  return jnp.stack([jnp.where(is_top, rest, others), log_p], axis=-1)


def _read_bags(
  logits: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array]:
  """Log-odds [..., m] of binary logits, and the mask."""
  logits, mask = read_bag_logits(logits, mask, classes=2)
  zero, one = logits[..., 0], logits[..., 1]
  log_odds = one - zero
  # A label that is ruled out leaves no doubt; an overflow does.
  low, high = jnp.minimum(zero, one), jnp.maximum(zero, one)
  over = jnp.isinf(log_odds) & ((low > -jnp.inf) | (high == jnp.inf))
  bound = jnp.where(log_odds > 0, LARGEST, -LARGEST)
  return jnp.where(over, bound, log_odds), mask


def _interval(
  log_odds: Array, low: Array, high: Array, mask: Array
) -> Inference:
  """Inference from low <= N <= high, arguments checked."""
  n = jnp.arange(mask.shape[-1] + 1)
  allowed = (n >= low[..., None]) & (n <= high[..., None])
  log_factor = jnp.where(allowed, 0.0, -jnp.inf).astype(log_odds.dtype)
  # Where nothing is possible, the prediction is left.
  _, own, log_z = solve_messages(log_odds, log_factor, mask)
  posterior = jax.nn.sigmoid(jnp.stack([-own, own], axis=-1))
  feasible = is_possible(log_z)
  log_likelihood = jnp.where(feasible, log_z, -jnp.inf)
  return Inference(
    log_likelihood, jnp.where(mask[..., None], posterior, 0), feasible
  )
