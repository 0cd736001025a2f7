"""Rules for a whole set, in rounds: which guesses to learn from next."""

from jax import lax
import jax.numpy as jnp

from jnl.base import Array, PyTree, Scalar, check, gather, global_sum, own_rows
from jnl.inputs import check_int, check_range
from jnl.pseudo._quotas import top_per_class
from jnl.pseudo._rule import Rule, Seen, nothing, read, top, weights_of
from jnl.select import small_loss

CUTS = 50
"""Thresholds of a class that `transductive` tries, and margins above each."""


def most_confident(k: Scalar) -> Rule:
  """The k guesses of the largest probabilities count.

  Args:
    k: at least 1; where there are fewer unlabeled rows all of them count. Of
      equal ones the first do.

  Returns:
    A rule without memory, for a whole set.

  Raises:
    ValueError: if `k` is out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
  >>> seen = Seen(probs, jnp.ones(3), jnp.zeros(3), jnp.arange(3), jnp.array(0))
  >>> most_confident(2).apply((), seen)[1].tolist()
  [1.0, 0.0, 1.0]

  Reference: Amini, Feofanov, Pauletto, Hadjadj, Devijver, Maximov,
  "Self-Training: A Survey", Neurocomputing 2025, arXiv 2202.12040.
  """
  check_range('k', k, 1)

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    return memory, _surest(seen, k)

  return Rule(nothing, apply)


def curriculum(step: Scalar = 0.2) -> Rule:
  r"""The most confident share of all guesses counts, more in each round.

  .. math:: \min(1, s (r + 1))

  of all unlabeled rows, in round r = 0, 1, ...: at last all. The number is
  rounded to the nearest, and is at least one. In the paper the network starts
  anew in each round, and rows are chosen again from all of them.

  Args:
    step: s in (0, 1].

  Returns:
    A rule without memory, for a whole set; `Seen.step` is the round.

  Raises:
    ValueError: if `step` is out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
  >>> seen = Seen(probs, jnp.ones(4), jnp.zeros(4), jnp.arange(4), jnp.array(1))
  >>> curriculum(0.25).apply((), seen)[1].tolist()
  [1.0, 0.0, 1.0, 0.0]

  Reference: Cascante-Bonilla, Tan, Qi, Ordonez, "Curriculum Labeling:
  Revisiting Pseudo-Labeling for Semi-Supervised Learning", AAAI 2021, arXiv
  2001.06001.
  """
  check_range('step', step, 0, 1, open_low=True)

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    share = jnp.minimum(1.0, step * (seen.step + 1))
    n = global_sum(jnp.sum(seen.unlabeled > 0))
    return memory, _surest(seen, _quota(share, n))

  return Rule(nothing, apply)


def share_per_class(
  share: Scalar = 0.2, *, step: Scalar = 0.05, most: Scalar = 0.5
) -> Rule:
  r"""The most confident share of the guesses of each class counts.

  .. math:: \min(p_{max}, p + s r)

  of the rows whose largest probability is that of the class, in round r = 0, 1,
  ...: classes that are hard to tell have as much of a say as easy ones. The
  number is rounded to the nearest, and is at least one if the class is guessed
  at all. CBST also divides probabilities by the thresholds that this amounts to
  before it guesses; here guesses stay what they are.

  Args:
    share: p in (0, 1].
    step: s >= 0; 0 for the same share in all rounds.
    most: p_max in [p, 1].

  Returns:
    A rule without memory, for a whole set; `Seen.step` is the round.

  Raises:
    ValueError: if a number is out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.3, 0.7]])
  >>> seen = Seen(probs, jnp.ones(4), jnp.zeros(4), jnp.arange(4), jnp.array(0))
  >>> share_per_class(0.5).apply((), seen)[1].tolist()
  [1.0, 0.0, 0.0, 1.0]

  Reference: Zou, Yu, Kumar, Wang, "Unsupervised Domain Adaptation for Semantic
  Segmentation via Class-Balanced Self-Training", ECCV 2018, arXiv 1810.07911.
  """
  check_range('share', share, 0, 1, open_low=True)
  check_range('step', step, 0)
  check_range('most', most, 0, 1)
  check(share <= most, f'most must be at least share, {share}, got {most}')

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    b, c = seen.probs.shape
    sure, guess = top(seen)
    group = jnp.where(seen.unlabeled > 0, guess, c)  # rows of none come last
    sure, group = gather((sure, group))
    counts = jnp.bincount(group, length=c + 1)
    quota = _quota(jnp.minimum(most, share + step * seen.step), counts)
    order = jnp.lexsort((-sure, group))  # stable: the first of equal ones
    sorted_group = group[order]
    first = jnp.cumsum(counts) - counts
    rank = jnp.arange(len(order)) - first[sorted_group]
    chosen = (rank < quota[sorted_group]) & (sorted_group < c)
    chosen = jnp.zeros_like(chosen).at[order].set(chosen)
    return memory, own_rows(chosen, b).astype(seen.probs.dtype)

  return Rule(nothing, apply)


def transductive() -> Rule:
  r"""Guesses count above thresholds that bound their errors best.

  With v the probabilities of all unlabeled rows, those of other classes that
  are guessed to be k, and more surely than t, have a mass of at most

  .. math::
    E_{ik}(t) = \min_\gamma \left[ \sum v_i 1(t \le v_k < \gamma)
      + \frac1\gamma \left(\sum v_i v_k 1(\operatorname{argmax} v = k)
      - \sum v_i v_k 1(t \le v_k < \gamma)\right)_+ \right]

  with 50 margins :math:`\gamma = t + (1 - t) g / 50`, g = 1, ..., 50. The
  threshold of class k is, of 50 from the least :math:`v_k` up to, not
  including, the largest, the first with the least

  .. math::
    \sum_{i \ne k} E_{ik}(t) \Big/ \#(\operatorname{argmax} v = k, v_k \ge t)

  and a guess counts if its probability reaches the threshold of its class. (The
  paper's bound is :math:`E_{ik}` over the mass of class i, which cancels.) A
  class that is never guessed has the threshold 1.

  The cost is O(n c^2) of time and O(n c) of memory.

  Returns:
    A rule without memory, for a whole set.

  >>> probs = jnp.array([[0.95, 0.05], [0.9, 0.1], [0.55, 0.45], [0.2, 0.8]])
  >>> seen = Seen(probs, jnp.ones(4), jnp.zeros(4), jnp.arange(4), jnp.array(0))
  >>> transductive().apply((), seen)[1].tolist()
  [1.0, 1.0, 0.0, 1.0]

  Reference: Feofanov, Devijver, Amini, "Transductive Bounds for the Multi-Class
  Majority Vote Classifier", AAAI 2019.
  """

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    sure, guess = top(seen)
    limits = thresholds(*gather((seen.probs, seen.unlabeled > 0)))
    own = guess[:, None] == jnp.arange(len(limits))
    chosen = jnp.any(own & (sure[:, None] >= limits), axis=1)
    return memory, weights_of(seen, chosen)

  return Rule(nothing, apply)


def boards(k: int) -> Rule:
  """For each class the k rows count that are most probably of it.

  A row may count for several classes, and then has several labels: weights are
  [b, c]. What GRIP asks for in a round, `growing_quota` says.

  Args:
    k: at least 1.

  Returns:
    A rule without memory, for a whole set.

  Raises:
    ValueError: if `k` is no int or out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
  >>> seen = Seen(probs, jnp.ones(3), jnp.zeros(3), jnp.arange(3), jnp.array(0))
  >>> boards(1).apply((), seen)[1].tolist()
  [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]

  Reference: see `top_per_class`.
  """
  check_int('k', k)

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    index, valid = top_per_class(seen.probs, k, where=seen.unlabeled > 0)
    probs = gather(seen.probs)
    weights = jnp.zeros_like(probs)
    classes = jnp.arange(probs.shape[1])[:, None]
    weights = weights.at[index, classes].max(valid.astype(probs.dtype))
    return memory, own_rows(weights, len(seen.probs))

  return Rule(nothing, apply)


def thresholds(probs: Array, there: Array) -> Array:
  """The thresholds [c] of `transductive`.

  Args:
    probs: v, [n, c], of all devices.
    there: [n] bool, the unlabeled rows.

  Returns:
    [c].
  """
  c = probs.shape[1]
  guess = jnp.where(there, jnp.argmax(probs, axis=1), c)
  rows = jnp.where(there[:, None], probs, 0)

  def of_class(k: Array) -> Array:
    own = jnp.where(there, probs[:, k], jnp.inf)
    order = jnp.argsort(own)
    ascending = own[order]
    v, v_k = rows[order], rows[order, k]
    guessed = guess[order] == k
    # [n + 1, 2 c + 1]: sums over the rows below a place, in order of v_k
    every = jnp.concatenate(
      [v, v * v_k[:, None], guessed[:, None].astype(v.dtype)], axis=1
    )
    below = jnp.pad(jnp.cumsum(every, axis=0), ((1, 0), (0, 0)))
    part = jnp.arange(CUTS) / CUTS
    t = ascending[0] + part * (jnp.max(v_k) - ascending[0])
    gamma = 1 - (1 - t[:, None]) * part[::-1]  # t + (1 - t) (1 ... 50) / 50
    upto = below[jnp.searchsorted(ascending, t)]
    inside = below[jnp.searchsorted(ascending, gamma)] - upto[:, None]
    mass, margin = inside[..., :c], inside[..., c : 2 * c]
    total = jnp.sum(v * (v_k * guessed)[:, None], axis=0)
    bound = mass + jnp.maximum(total - margin, 0) / gamma[..., None]
    bound = jnp.min(bound, axis=1)
    others = jnp.sum(jnp.where(jnp.arange(c) == k, 0, bound), axis=1)
    found = below[-1, -1] - upto[:, -1]
    risk = jnp.where(found > 0, others / jnp.maximum(found, 1), jnp.inf)
    return jnp.where(below[-1, -1] > 0, t[jnp.argmin(risk)], 1)

  return lax.map(of_class, jnp.arange(c))


def _surest(seen: Seen, k: Scalar) -> Array:
  """Weights of the k surest guesses, of what `read` gives."""
  sure, _ = top(seen)
  chosen = small_loss(-sure, k, where=seen.unlabeled > 0)
  return chosen.astype(seen.probs.dtype)


def _quota(share: Array, n: Array) -> Array:
  """That share of n, rounded, at least one."""
  return jnp.maximum(jnp.round(share * n), 1)
