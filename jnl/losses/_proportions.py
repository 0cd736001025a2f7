"""Losses for bags of which the counts of the classes are known: [...] per bag.

A bag is a row of instances, logits [..., m, c], of which only the counts are
seen. The likelihoods are exact; posteriors of the instances are in
`jnl.automata`. A bag whose count is impossible (inside jit; outside it raises)
has the loss 0 and no gradient: `automata.count(...).feasible` says which.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import automata
from jnl.automata import Inference, likeliest
from jnl.base import (
  LOG_ZERO,
  Array,
  Key,
  Scalar,
  check,
  gather,
  global_sum,
  is_concrete,
)
from jnl.inputs import check_range, read_bags, read_class_counts
from jnl.logspace import is_zero
from jnl.losses._cross_entropy import ce


def count_nll(
  logits: ArrayLike, counts: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Negative log-likelihood of the number of positives in a bag.

  .. math:: \ell = -\log P\Big(\sum_i y_i = n\Big),\qquad
    \partial \ell / \partial z_i = p_i - P(y_i \mid N = n)

  Args:
    logits: [..., m, 2]; class 1 is the positive one.
    counts: [...] int, n in [0, number of instances].
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32, >= 0 up to rounding.

  Raises:
    TypeError, ValueError: if an array is malformed or, outside jit, a bag empty
      or a count out of range.

  >>> round(float(jnp.exp(-count_nll(jnp.zeros((2, 2)), jnp.array(1)))), 3)
  0.5

  Reference: Shukla, Zeng, Ahmed, Van den Broeck, "A Unified Approach to
  Count-Based Weakly-Supervised Learning", NeurIPS 2023, arXiv 2311.13718.
  """
  return _nll(automata.count(logits, counts, mask))


def count_nll_one_versus_rest(
  logits: ArrayLike, counts: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Negative log-likelihoods of the count of each class, added up.

  .. math:: \ell = -\sum_k \log P\Big(\sum_i 1[y_i = k] = n_k\Big)

  Each term is exact; their sum takes the counts of the classes as independent,
  which they are not: see `count_nll_joint`. For two classes it is twice
  `count_nll`.

  Args:
    logits: [..., m, c].
    counts: [..., c] int, n_k in [0, number of instances].
    mask: [..., m] bool, or None.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `count_nll`.

  >>> z, counts = jnp.zeros((3, 2)), jnp.array([2, 1])
  >>> loss = jax.jit(count_nll_one_versus_rest)(z, counts)
  >>> round(float(jnp.exp(-loss)), 4)  # 3/8 for each of the classes
  0.1406

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922.
  """
  return _nll(automata.count_one_versus_rest(logits, counts, mask))


def count_nll_joint(
  logits: ArrayLike,
  counts: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  states: int | None = None,
) -> Array:
  r"""Negative log-likelihood of all counts of a bag at once.

  .. math:: \ell = -\log P(N_1 = n_1, \dots, N_c = n_c)

  Args:
    logits: [..., m, c].
    counts: [..., c] int, which add up to the number of instances.
    mask: [..., m] bool, or None.
    states: as for `automata.joint_count`, at least the product of n_k + 1.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `automata.joint_count`.

  >>> loss = count_nll_joint(jnp.zeros((3, 3)), jnp.array([1, 1, 1]))
  >>> round(float(jnp.exp(-loss)) * 27, 3)  # of 27 strings, 6 have these counts
  6.0
  """
  return _nll(automata.joint_count(logits, counts, mask, states=states))


def dllp(
  logits: ArrayLike, proportions: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Cross-entropy of the mean prediction of a bag and its proportions.

  .. math:: \ell = -\sum_k \pi_k \log \frac1m \sum_i p_{ik}

  The usual baseline. It is no likelihood of the counts: it is as content with
  m undecided instances as with m/2 sure ones of each class.

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> loss = dllp(jnp.array([[9., 0.], [0., 9.]]), jnp.array([.5, .5]))
  >>> round(float(loss), 3)
  0.693

  Reference: Ardehaly, Culotta, "Co-training for Demographic Classification
  Using Deep Learning from Label Proportions", ICDM Workshops 2017, arXiv
  1709.04108.
  """
  log_probs, mask = read_bags(logits, mask)
  proportions = _read_proportions(proportions, log_probs, mask)
  return -jnp.sum(proportions * _log_mean(log_probs, mask), axis=-1)


def dllp_l1(
  logits: ArrayLike, proportions: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Absolute differences of the mean prediction of a bag and its proportions.

  .. math:: \ell = \sum_k \Big|\pi_k - \frac1m \sum_i p_{ik}\Big|

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32, in [0, 2].

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> dllp_l1(jnp.zeros((3, 2)), jnp.array([1., 0.])).tolist()
  1.0

  Reference: see `dllp`.
  """
  return jnp.sum(jnp.abs(_off(logits, proportions, mask)), axis=-1)


def dllp_squared(
  logits: ArrayLike, proportions: ArrayLike, mask: ArrayLike | None = None
) -> Array:
  r"""Squared differences of the mean prediction of a bag and its proportions.

  .. math:: \ell = \sum_k \Big(\pi_k - \frac1m \sum_i p_{ik}\Big)^2

  For two classes twice the square of either.

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32, in [0, 2].

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> dllp_squared(jnp.zeros((3, 2)), jnp.array([1., 0.])).tolist()
  0.5

  Reference: see `dllp`.
  """
  return jnp.sum(_off(logits, proportions, mask) ** 2, axis=-1)


def easy_llp(
  logits: ArrayLike,
  proportions: ArrayLike,
  prior: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  loss: Callable[[Array, Array], Array] = ce,
) -> Array:
  r"""An unbiased estimate of the loss of instances, from their bags.

  .. math:: \frac1m \sum_i \sum_k w_k\, \ell(z_i, k),\qquad
    w_k = m (\pi_k - \rho_k) + \rho_k

  with rho the proportions of the whole population. If bags are drawn at random,
  its mean is that of the loss with the true labels. Weights may be negative, so
  it is not bounded below. With bags of one it is the loss itself.

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    prior: rho, [c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.
    loss: `(logits [..., c], labels [...]) -> [...]`, of an instance.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z, shares, prior = jnp.zeros((2, 2)), jnp.array([0., 1.]), jnp.full(2, .5)
  >>> round(float(easy_llp(z, shares, prior)), 3)
  0.693

  Reference: Busa-Fekete, Choi, Dick, Gentile, Munoz Medina, "Easy Learning from
  Label Proportions", NeurIPS 2023, arXiv 2302.03115.
  """
  values, mask = _easy_llp(logits, proportions, prior, mask, loss)
  return _bag_mean(values, mask)


def easy_llp_sampled(
  key: Key,
  logits: ArrayLike,
  proportions: ArrayLike,
  prior: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  loss: Callable[[Array, Array], Array] = ce,
) -> Array:
  """`easy_llp` of one instance of each bag, drawn at random.

  As LLP-Bench has it; the mean over draws is `easy_llp`.

  Args:
    key: PRNG key; or keys [...], one for each bag, as `base.example_keys` makes
      them: on any number of devices they draw the same. With one key each
      device (shard_map, pmap) draws as if its bags were the first.
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    prior: rho, [c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.
    loss: `(logits [..., c], labels [...]) -> [...]`, of an instance.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `easy_llp`.
    ValueError: if there are keys, but not one for each bag.

  >>> z, shares = jnp.zeros((2, 3, 2)), jnp.array([[1., 0.], [0., 1.]])
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> jax.jit(easy_llp_sampled)(keys, z, shares, jnp.full(2, .5)).shape
  (2,)

  Reference: see `easy_llp`.
  """
  values, mask = _easy_llp(logits, proportions, prior, mask, loss)
  drawn = _gumbel(key, mask.shape)
  chosen = jnp.argmax(jnp.where(mask, drawn, -jnp.inf), axis=-1)
  return jnp.take_along_axis(values, chosen[..., None], axis=-1)[..., 0]


def _gumbel(key: Key, shape: tuple[int, ...]) -> Array:
  """Draws [..., m] by one key, or by one for each row [...]."""
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  rows = key.shape if typed else key.shape[:-1]
  if not rows:
    return jax.random.gumbel(key, shape)
  check(
    rows == shape[:-1],
    f'key must be one, or one for each bag, {shape[:-1]}, got {rows}',
  )
  draw = lambda key: jax.random.gumbel(key, shape[-1:])
  for _ in rows:
    draw = jax.vmap(draw)
  return draw(key)


def _easy_llp(
  logits: ArrayLike,
  proportions: ArrayLike,
  prior: ArrayLike,
  mask: ArrayLike | None,
  loss: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
  """The estimate from each instance [..., m], and the mask."""
  log_probs, mask = read_bags(logits, mask)
  proportions = _read_proportions(proportions, log_probs, mask)
  classes = log_probs.shape[-1]
  prior = _read_prior(prior, classes, log_probs.dtype)
  m = jnp.sum(mask, axis=-1)[..., None]
  weights = m * (proportions - prior) + prior
  values = jnp.stack(
    [loss(log_probs, jnp.full(mask.shape, k)) for k in range(classes)], axis=-1
  )
  return jnp.sum(weights[..., None, :] * values, axis=-1), mask


def dsq(
  logits: ArrayLike,
  proportions: ArrayLike,
  prior: ArrayLike,
  mask: ArrayLike | None = None,
) -> Array:
  r"""An unbiased estimate of the squared loss of instances, from their bags.

  .. math:: \frac12 \sum_k m (\pi_k - \bar p_k)^2 - m (\bar p_k - \rho_k)^2
    + \frac1m \sum_i (p_{ik} - \rho_k)^2

  Args:
    logits: [..., m, c].
    proportions: pi, [..., c] on the simplex.
    prior: rho, [c] on the simplex.
    mask: [..., m] bool, true where there is an instance; None for everywhere.

  Returns:
    [...], at least float32. For two classes, the published binary form.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> dsq(jnp.zeros((2, 2)), jnp.array([0., 1.]), jnp.full(2, .5)).tolist()
  0.5

  Reference: Busa-Fekete, Choi, Dick, Gentile, Munoz Medina, "Easy Learning from
  Label Proportions", NeurIPS 2023, arXiv 2302.03115, and the code of Brahmbhatt
  et al., "LLP-Bench: A Large Scale Tabular Benchmark for Learning from Label
  Proportions", 2023, arXiv 2310.10096.
  """
  log_probs, mask = read_bags(logits, mask)
  proportions = _read_proportions(proportions, log_probs, mask)
  prior = _read_prior(prior, log_probs.shape[-1], log_probs.dtype)
  m = jnp.sum(mask, axis=-1)[..., None]
  p = jnp.exp(log_probs)
  mean = jnp.exp(_log_mean(log_probs, mask))
  spread = _bag_mean(jnp.sum((p - prior) ** 2, axis=-1), mask)
  matched = m * ((proportions - mean) ** 2 - (mean - prior) ** 2)
  return (jnp.sum(matched, axis=-1) + spread) / 2


def gen_bags(
  logits: ArrayLike,
  counts: ArrayLike,
  weights: ArrayLike,
  mask: ArrayLike | None = None,
) -> Array:
  r"""The squared error of the counts of randomly combined bags.

  .. math:: \ell_r = \frac12 \sum_k \Big(\sum_b w_{rb}
    \big(\sum_{i \in b} p_{ik} - S_{bk}\big)\Big)^2

  Batch-coupled: the sum is over the bags of all devices. Where each has a part
  of the bags (shard_map, pmap), give it the columns of `weights` that are
  theirs, for example by the spec P(None, 'data').

  Args:
    logits: [b, m, c].
    counts: S, [b, c].
    weights: w, [r, b], of each combination; drawn from a normal distribution in
      the paper. A bag whose weights are all 0 counts for nothing, whatever it
      holds.
    mask: [b, m] bool, true where there is an instance; None for everywhere.

  Returns:
    [r], at least float32, the same on every device. For two classes, the
    published binary form.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z, counts = jnp.zeros((2, 4, 2)), jnp.array([[2, 2], [0, 4]])
  >>> bags = jnp.array([[1., 0.], [1., -1.]])
  >>> jax.jit(gen_bags)(z, counts, bags).tolist()
  [0.0, 4.0]

  Reference: Saket, Raghuveer, Ravindran, "On Combining Bags to Better Learn
  from Label Proportions", AISTATS 2022.
  """
  logits, weights = jnp.asarray(logits), jnp.asarray(weights)
  check(logits.ndim == 3, f'logits must be [b, m, c], got {logits.shape}')
  bags, _, classes = logits.shape
  check(
    weights.ndim == 2 and weights.shape[1] == bags,
    f'weights must be [r, b] with b = {bags}, got {weights.shape}',
  )
  there = jnp.any(weights != 0, axis=0)[:, None]
  log_probs, mask = read_bags(jnp.where(there[..., None], logits, 0), mask)
  counts = jnp.asarray(counts, log_probs.dtype)
  check(
    counts.shape == (bags, classes),
    f'counts must be [b, c], {(bags, classes)}, got {counts.shape}',
  )
  expected = jnp.sum(jnp.where(mask[..., None], jnp.exp(log_probs), 0), axis=1)
  off = jnp.where(there, expected - counts, 0)
  # No matrix product: which way it is split would be asked on explicit meshes,
  # and accelerators would round its terms.
  combined = jnp.sum(weights.astype(off.dtype)[..., None] * off, axis=1)
  combined = global_sum(combined)
  return jnp.sum(combined**2, axis=-1) / 2


def transport_labels(
  logits: ArrayLike,
  counts: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  reg: Scalar = 0.2,
  iterations: int = 1000,
) -> Array:
  r"""Labels that hold a bag's counts and cost least, by optimal transport.

  .. math:: \min_{q} -\sum_{ik} q_{ik} \log p_{ik} - \epsilon H(q)
    \quad\text{with}\quad \sum_k q_{ik} = 1,\ \sum_i q_{ik} = S_k

  For two classes q_i = sigmoid(z_i / epsilon + t) with the t that meets the
  count; beyond, by Sinkhorn's iterations. Without entropy, of two classes: the
  S instances of the largest log-odds.

  Args:
    logits: [..., m, c].
    counts: S, [..., c] int, which add up to the number of instances.
    mask: [..., m] bool, true where there is an instance; None for everywhere.
    reg: epsilon > 0, or 0 for hard labels of two classes. Inside jit what is
      out of range makes the labels NaN.
    iterations: of Sinkhorn, >= 1, at the most; a bag ends at a change of 1e-6.

  Returns:
    [..., m, c], at least float32, without gradient; 0 in masked slots.

  Raises:
    TypeError, ValueError: if an array is malformed, or `reg` or `iterations`
      out of range.

  >>> z = jnp.array([[0., 2.], [0., 1.], [0., 0.]])
  >>> transport_labels(z, jnp.array([2, 1]), reg=0.)[:, 1].tolist()
  [1.0, 0.0, 0.0]

  Reference: Liu, Wang, Qi, Tian, Shi, "Two-stage Training for Learning from
  Label Proportions", IJCAI 2021, arXiv 2105.10635.
  """
  log_probs, mask = read_bags(logits, mask)
  return _transported(log_probs, counts, mask, reg, iterations)


def transport(
  logits: ArrayLike,
  counts: ArrayLike,
  mask: ArrayLike | None = None,
  *,
  reg: Scalar = 0.2,
  iterations: int = 1000,
) -> Array:
  r"""Cross-entropy to `transport_labels`, averaged over the bag.

  .. math:: \ell = -\frac1m \sum_{ik} q_{ik} \log p_{ik}

  Args:
    logits: [..., m, c].
    counts: S, [..., c] int, which add up to the number of instances.
    mask: [..., m] bool, true where there is an instance; None for everywhere.
    reg: see `transport_labels`.
    iterations: see `transport_labels`.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: as `transport_labels`.

  Reference: see `transport_labels`.
  """
  log_probs, mask = read_bags(logits, mask)
  q = _transported(log_probs, counts, mask, reg, iterations)
  return _bag_mean(-jnp.sum(q * log_probs, axis=-1), mask)


def _transported(
  log_probs: Array, counts: ArrayLike, mask: Array, reg: Scalar, iterations: int
) -> Array:
  """`transport_labels` of bags that are read."""
  log_probs, classes = lax.stop_gradient(log_probs), log_probs.shape[-1]
  counts = read_class_counts(counts, mask, classes)
  if is_concrete(counts, mask):
    check(
      jnp.all(counts >= 0) & jnp.all(counts.sum(-1) == mask.sum(-1)),
      'counts must be >= 0 and add up to the number of instances in the bag',
    )
  check(iterations >= 1, f'iterations must be >= 1, got {iterations}')
  check_range('reg', reg, 0)
  check(
    classes == 2 or not is_zero(reg),
    f'reg must be positive for more than two classes, got {classes} classes',
  )
  if is_zero(reg):
    q = _hard(log_probs, counts, mask)
  else:
    q = _soft(log_probs, counts, mask, reg, iterations)
  if not is_concrete(reg):  # it may be anything
    hard = _hard(log_probs, counts, mask) if classes == 2 else jnp.nan
    q = jnp.where(reg > 0, q, jnp.where(reg == 0, hard, jnp.nan))
  return jnp.where(mask[..., None], q, 0)


def _hard(log_probs: Array, counts: Array, mask: Array) -> Array:
  """The likeliest labels of two classes with these counts."""
  log_odds = log_probs[..., 1] - log_probs[..., 0]
  one = likeliest(log_odds, counts[..., 1], mask).astype(log_odds.dtype)
  return jnp.stack([1 - one, one], axis=-1)


def _soft(
  log_probs: Array, counts: Array, mask: Array, reg: Scalar, iterations: int
) -> Array:
  """Where `reg` is positive; elsewhere anything."""
  reg = jnp.where(reg > 0, jnp.asarray(reg, log_probs.dtype), 1)
  if log_probs.shape[-1] > 2:
    return _sinkhorn(log_probs / reg, counts, mask, iterations)
  log_odds = log_probs[..., 1] - log_probs[..., 0]
  one = _tilted(log_odds / reg, counts[..., 1], mask)
  return jnp.stack([1 - one, one], axis=-1)


SURE = 30
"""Log-odds beyond 2^30 are alike to `_tilted`, which has to bracket them."""


def _tilted(log_odds: Array, count: Array, mask: Array) -> Array:
  """sigmoid(log_odds + t) with sum `count`, by bisection on t."""
  log_odds = jnp.clip(log_odds, -(2.0**SURE), 2.0**SURE)
  largest = jnp.max(jnp.where(mask, jnp.abs(log_odds), 0), axis=-1)
  # Beyond this the sum is within an instance's rounding of none or all.
  high = largest + 60

  def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bracket
    t = (low + high) / 2
    total = jnp.sum(
      jnp.where(mask, jax.nn.sigmoid(log_odds + t[..., None]), 0), axis=-1
    )
    return jnp.where(total < count, t, low), jnp.where(total < count, high, t)

  # To a rounding of numbers of size one. The first is outside, so that what is
  # carried varies over mapped axes as all inputs do.
  rounds = SURE + 3 + jnp.finfo(log_odds.dtype).nmant
  first = halve(jnp.array(0), (-high, high))
  low, high = lax.fori_loop(1, rounds, halve, first)
  tilted = jax.nn.sigmoid(log_odds + ((low + high) / 2)[..., None])
  every = count >= jnp.sum(mask, axis=-1)
  tilted = jnp.where((count <= 0)[..., None], 0, tilted)
  return jnp.where(every[..., None], 1, tilted)


def _sinkhorn(
  scores: Array, counts: Array, mask: Array, iterations: int
) -> Array:
  """exp(scores + f_i + g_k) with rows that sum to 1 and columns to `counts`."""
  scores = jnp.where(mask[..., None], scores, LOG_ZERO)
  log_counts = jnp.log(jnp.maximum(counts, 1).astype(scores.dtype))
  log_counts = jnp.where(counts > 0, log_counts, LOG_ZERO)

  def rows(g: Array) -> Array:
    return jax.nn.log_softmax(scores + g[..., None, :], axis=-1)

  def goes_on(carry: tuple[Array, Array, Array]) -> Array:
    _, moves, done = carry
    return jnp.any(moves) & (done < iterations)

  def iterate(
    carry: tuple[Array, Array, Array],
  ) -> tuple[Array, Array, Array]:
    g, moves, done = carry
    log_q = jnp.where(mask[..., None], rows(g), LOG_ZERO)
    step = log_counts - jax.nn.logsumexp(log_q, axis=-2)
    step = jnp.where(counts > 0, step, LOG_ZERO - g)
    change = jnp.where(counts > 0, jnp.abs(step), 0)
    # Each bag for itself, and a NaN has ended: a bag's labels do not depend on
    # what is beside it.
    g = jnp.where(moves[..., None], g + step, g)
    return g, moves & jnp.any(change > 1e-6, axis=-1), done + 1

  # The first is outside, as above.
  every = jnp.ones(mask.shape[:-1], bool)
  first = iterate((jnp.zeros_like(log_counts), every, jnp.int32(0)))
  g, _, _ = lax.while_loop(goes_on, iterate, first)
  return jnp.exp(rows(g))


def similarity_smoothness(
  scores: ArrayLike, x: ArrayLike, weights: ArrayLike | None = None
) -> Array:
  r"""Mean squared difference of scores, weighted by the likeness of instances.

  .. math:: \ell_i = \sum_j w_j\, e^{-|x_i - x_j|^2} (s_i - s_j)^2 \Big/
    \sum_j w_j

  Batch-coupled: j runs over the instances of all devices.

  Args:
    scores: [n], such as the probability of being positive. The published code
      passes the sigmoid of that, by oversight.
    x: [n, d].
    weights: [n], >= 0; None for 1. Instances of weight 0 count for nothing,
      whatever they hold.

  Returns:
    [n], at least float32, 0 where the weight is; SIM-LLP adds their mean to a
    loss of bags.

  Raises:
    ValueError: if a shape does not match.

  >>> similarity_smoothness(jnp.array([0., 1.]), jnp.zeros((2, 1))).tolist()
  [0.5, 0.5]

  Reference: the code of Brahmbhatt et al., "LLP-Bench: A Large Scale Tabular
  Benchmark for Learning from Label Proportions", 2023, arXiv 2310.10096.
  """
  scores, x = jnp.asarray(scores), jnp.asarray(x)
  check(scores.ndim == 1, f'scores must be [n], got {scores.shape}')
  check(
    x.ndim == 2 and len(x) == len(scores),
    f'x must be [n, d] with n = {len(scores)}, got {x.shape}',
  )
  dtype = jnp.promote_types(scores.dtype, jnp.float32)
  weights = jnp.ones(scores.shape) if weights is None else jnp.asarray(weights)
  check(
    weights.shape == scores.shape,
    f'weights must be [n] = {scores.shape}, got {weights.shape}',
  )
  there, weights = weights != 0, weights.astype(dtype)
  scores = jnp.where(there, scores.astype(dtype), 0)
  x = jnp.where(there[:, None], x.astype(dtype), 0)
  all_scores, all_x, all_weights = gather((scores, x, weights))
  squares = jnp.sum((x[:, None] - all_x) ** 2, axis=-1)
  differences = (scores[:, None] - all_scores) ** 2
  total = jnp.sum(all_weights)
  alike = jnp.exp(-squares) * all_weights / jnp.where(total > 0, total, 1)
  return jnp.where(there, jnp.sum(alike * differences, axis=1), 0)


# --- what they share ---------------------------------------------------------


def _read_proportions(
  proportions: ArrayLike, log_probs: Array, mask: Array
) -> Array:
  proportions = jnp.asarray(proportions, log_probs.dtype)
  expected = (*mask.shape[:-1], log_probs.shape[-1])
  check(
    proportions.shape == expected,
    f'proportions must be [..., c], {expected}, got {proportions.shape}',
  )
  return proportions


def _read_prior(prior: ArrayLike, classes: int, dtype: Any) -> Array:
  prior = jnp.asarray(prior, dtype)
  check(
    prior.shape == (classes,),
    f'prior must be [c] with c = {classes}, got {prior.shape}',
  )
  return prior


def _bag_mean(values: Array, mask: Array) -> Array:
  """Mean over the instances of a bag; 0 of none."""
  m = jnp.sum(mask, axis=-1)
  total = jnp.sum(jnp.where(mask, values, 0), axis=-1)
  return total / jnp.maximum(m, 1).astype(total.dtype)


def _log_mean(log_probs: Array, mask: Array) -> Array:
  """log of the mean prediction of a bag, [..., c]."""
  there = mask[..., None]
  total = jax.nn.logsumexp(jnp.where(there, log_probs, LOG_ZERO), axis=-2)
  return total - jnp.log(jnp.maximum(jnp.sum(there, axis=-2), 1))


def _off(
  logits: ArrayLike, proportions: ArrayLike, mask: ArrayLike | None
) -> Array:
  """By how much a bag's mean prediction misses, [..., c]."""
  log_probs, mask = read_bags(logits, mask)
  proportions = _read_proportions(proportions, log_probs, mask)
  return proportions - jnp.exp(_log_mean(log_probs, mask))


def _nll(found: Inference) -> Array:
  return jnp.where(found.feasible, -found.log_likelihood, 0)
