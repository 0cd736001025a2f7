"""Rules of a step: which guesses are sure enough to be learned."""

import jax.numpy as jnp

from jnl.base import (
  Array,
  PyTree,
  Scalar,
  check,
  global_mean,
  global_quantile,
)
from jnl.inputs import check_range
from jnl.logspace import safe_log
from jnl.pseudo._rule import (
  Rule,
  Seen,
  nothing,
  read,
  some,
  top,
  weights_of,
)
from jnl.pseudo._targets import hard, sharpen

ENTROPY_OFFSET = 1e-10
"""Added to probabilities in a logarithm, as FST's code has it."""


def everything() -> Rule:
  """All guesses count, w = 1.

  Returns:
    A rule without memory.

  >>> seen = Seen(jnp.full((2, 2), 0.5), jnp.array([1, 0]), jnp.zeros(2),
  ...   jnp.arange(2), jnp.array(0))
  >>> everything().apply((), seen)[1].tolist()
  [1.0, 0.0]
  """

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    return memory, weights_of(seen, seen.unlabeled > 0)

  return Rule(nothing, apply)


def fixed(threshold: Scalar = 0.95, *, strict: bool = False) -> Rule:
  r"""Guesses of a largest probability that reaches a threshold count.

  .. math:: w_i = 1[\max_k p_{ik} \ge \tau]

  Args:
    threshold: tau in [0, 1]: .95 in FixMatch, .8 in UDA.
    strict: the probability has to be larger, as in scikit-learn's
      `SelfTrainingClassifier`.

  Returns:
    A rule without memory.

  Raises:
    ValueError: if `threshold` is out of range.

  >>> probs = jnp.array([[0.97, 0.03], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(0))
  >>> fixed(0.95).apply((), seen)[1].tolist()
  [1.0, 0.0]

  Reference: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised
  Learning Method for Deep Neural Networks", ICML Workshop on Challenges in
  Representation Learning 2013.
  """
  check_range('threshold', threshold, 0, 1)

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    sure, _ = top(seen)
    return memory, weights_of(
      seen, sure > threshold if strict else sure >= threshold
    )

  return Rule(nothing, apply)


def relative(threshold: Scalar = 0.95) -> Rule:
  r"""Guesses nearly as sure as the batch's labeled rows are, on average, count.

  .. math::
    w_i = 1\left[\max_k p_{ik} \ge \tau
      \operatorname{mean}_{\text{labeled}} \max_k p_k \right]

  Args:
    threshold: tau in [0, 1]. A batch without labeled rows is measured against
      1, as by `fixed`.

  Returns:
    A rule without memory.

  Raises:
    ValueError: if `threshold` is out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2]])
  >>> seen = Seen(probs, jnp.array([1, 1, 0]), jnp.array([0, 0, 1]),
  ...   jnp.arange(3), jnp.array(0))
  >>> relative(0.95).apply((), seen)[1].tolist()
  [1.0, 0.0, 0.0]

  Reference: Berthelot, Roelofs, Sohn, Carlini, Kurakin, "AdaMatch: A Unified
  Approach to Semi-Supervised Learning and Domain Adaptation", ICLR 2022, arXiv
  2106.04732.
  """
  check_range('threshold', threshold, 0, 1)

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    sure, _ = top(seen)
    mean = global_mean(sure, seen.labeled)
    mean = jnp.where(some(seen.labeled), mean, 1)
    return memory, weights_of(seen, sure >= threshold * mean)

  return Rule(nothing, apply)


def dash_threshold(
  step: Scalar,
  period: Scalar,
  *,
  initial: Scalar,
  gamma: Scalar = 1.27,
  scale: Scalar = 1.0001,
  least: Scalar = 0.05,
) -> Array:
  r"""The loss that Dash lets pass, which falls while training goes on.

  .. math:: \rho(s) = \max(C \gamma^{-\lfloor s / P \rfloor} \rho_0, \rho_{min})

  Args:
    step: s, the steps taken, of any shape.
    period: P >= 1, steps after which it falls.
    initial: rho_0 > 0, the mean loss of labeled rows at first.
    gamma: > 1.
    scale: C > 0.
    least: rho_min > 0.

  Returns:
    The shape of `step`, at least float32.

  Raises:
    ValueError: if a number is out of range.

  >>> [f'{dash_threshold(s, 10, initial=1.0):.3f}' for s in (0, 10, 1000)]
  ['1.000', '0.787', '0.050']

  Reference: Xu, Shang, Ye, Qian, Li, Sun, Li, Jin, "Dash: Semi-Supervised
  Learning with Dynamic Thresholding", ICML 2021.
  """
  check_range('period', period, 1)
  for name, value in (
    ('initial', initial),
    ('scale', scale),
    ('least', least),
  ):
    check_range(name, value, 0, open_low=True)
  check_range('gamma', gamma, 1, open_low=True)
  falls = jnp.floor(jnp.asarray(step, jnp.float32) / period)
  return jnp.maximum(scale * gamma**-falls * initial, least)


def dash_targets(
  probs: Array, threshold: Scalar, *, least: Scalar, temperature: Scalar = 0.5
) -> Array:
  """What Dash learns: sharpened guesses, hard ones once the threshold is least.

  Args:
    probs: [..., c].
    threshold: of `dash_threshold`.
    least: as there.
    temperature: > 0, see `sharpen`.

  Returns:
    [..., c], at least float32.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> p = jnp.array([0.75, 0.25])
  >>> dash_targets(p, 0.05, least=0.05).tolist()
  [1.0, 0.0]
  """
  soft = sharpen(probs, temperature)
  return jnp.where(threshold <= least, hard(soft), soft)


def dash(
  period: Scalar,
  *,
  initial: Scalar,
  gamma: Scalar = 1.27,
  scale: Scalar = 1.0001,
  least: Scalar = 0.05,
  temperature: Scalar = 0.5,
) -> Rule:
  r"""Guesses of a small loss count; how small, falls while training goes on.

  .. math:: w_i = 1\left[ -\textstyle\sum_k t_{ik} \log p_{ik} \le \rho \right]

  with rho of `dash_threshold` and t of `dash_targets`.

  Args:
    period: see `dash_threshold`; ten epochs in the paper.
    initial: see `dash_threshold`; log c is that of a network that knows
      nothing.
    gamma: see `dash_threshold`.
    scale: see `dash_threshold`.
    least: see `dash_threshold`.
    temperature: see `dash_targets`.

  Returns:
    A rule without memory.

  Raises:
    ValueError: if a number is out of range.

  >>> probs = jnp.array([[0.97, 0.03], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(9))
  >>> dash(1, initial=0.7).apply((), seen)[1].tolist()
  [1.0, 0.0]

  Reference: see `dash_threshold`.
  """
  check_range('temperature', temperature, 0, open_low=True)
  falling = {
    'initial': initial,
    'gamma': gamma,
    'scale': scale,
    'least': least,
  }
  dash_threshold(0, period, **falling)  # looks at the numbers

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    rho = dash_threshold(seen.step, period, **falling)
    targets = dash_targets(
      seen.probs, rho, least=least, temperature=temperature
    )
    losses = -jnp.sum(targets * safe_log(seen.probs), axis=1)
    return memory, weights_of(seen, losses <= rho)

  return Rule(nothing, apply)


def low_entropy(percent: Scalar = 80.0) -> Rule:
  r"""Guesses whose entropy is below a percentile of the batch's count.

  .. math::
    w_i = 1[H_i < \mathrm{percentile}(H, q)],\qquad
    H_i = -\sum_k p_{ik} \log(p_{ik} + 10^{-10})

  Strictly below: of 100% the row of the largest entropy is still left out.

  Args:
    percent: q in [0, 100], the share that is kept.

  Returns:
    A rule without memory.

  Raises:
    ValueError: if `percent` is out of range.

  >>> probs = jnp.array([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2]])
  >>> seen = Seen(probs, jnp.ones(3), jnp.zeros(3), jnp.arange(3), jnp.array(0))
  >>> low_entropy(60.0).apply((), seen)[1].tolist()
  [1.0, 0.0, 1.0]

  Reference: Du, Shen, Wang, Fei, Li, Wu, Zhao, Fu, Liu, "Learning from Future:
  A Novel Self-Training Framework for Semantic Segmentation", NeurIPS 2022,
  arXiv 2209.06993.
  """
  check(
    (percent >= 0) & (percent <= 100),
    f'percent must lie in [0, 100], got {percent}',
  )

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    seen = read(seen)
    logs = jnp.log(seen.probs + ENTROPY_OFFSET)
    entropy = -jnp.sum(seen.probs * logs, axis=1)
    limit = global_quantile(entropy, seen.unlabeled > 0, percent / 100)
    return memory, weights_of(seen, entropy < limit)

  return Rule(nothing, apply)
