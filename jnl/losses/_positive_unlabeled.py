"""Losses where some examples are known to be positive, and of none else a word.

`scores` [b, ...] are log-odds of being positive, `positive` [b, ...] bool says
which are known to be; trailing dimensions are classes, each a problem of its
own, and losses are [...]. The other examples are unlabeled, or all are: by
default a data set of positives lies beside one of unlabeled examples; with
`all_unlabeled=True` the positives are those of one data set that are labeled.

All are functions of the whole batch, of sums over all devices, and take
`weights` [b]: rows of weight 0 leave no trace, whatever they hold. A mean over
no example is 0. As they compare sums of a batch, each should hold positives.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Scalar, check, global_sum, is_concrete
from jnl.inputs import as_array, check_between, check_range, read_floats
from jnl.logspace import add_offset, bounded
from jnl.losses._risks import ascend_risks

MarginLoss = Callable[[Array], Array]
"""The loss of scores if positive; of their negatives, if negative."""


# --- of one score -------------------------------------------------------------


def sigmoid_loss(scores: ArrayLike) -> Array:
  r"""The probability of the other label: a smooth count of errors.

  .. math:: \ell(x) = \sigma(-x)

  Bounded and symmetric, l(x) + l(-x) = 1: it is the mean absolute error.

  Args:
    scores: x, [...] log-odds of the right label.

  Returns:
    [...], at least float32, in [0, 1].

  Raises:
    TypeError: if `scores` are no floats.

  >>> sigmoid_loss(jnp.array([0., 1e4, -1e4])).tolist()
  [0.5, 0.0, 1.0]

  Reference: Kiryo, Niu, du Plessis, Sugiyama, "Positive-Unlabeled Learning with
  Non-Negative Risk Estimator", NeurIPS 2017, arXiv 1703.00593.
  """
  return jax.nn.sigmoid(-_read_scores(scores))


def logistic_loss(scores: ArrayLike) -> Array:
  r"""Cross-entropy, of log-odds.

  .. math:: \ell(x) = \log(1 + e^{-x})

  l(x) - l(-x) = -x: the risk of positives and unlabeled examples is convex.

  Args:
    scores: x, [...] log-odds of the right label.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError: if `scores` are no floats.

  >>> logistic_loss(jnp.array([0., 1e4, -1e4])).round(4).tolist()
  [0.6930999755859375, 0.0, 10000.0]

  Reference: du Plessis, Niu, Sugiyama, "Convex Formulation for Learning from
  Positive and Unlabeled Data", ICML 2015.
  """
  return jax.nn.softplus(-_read_scores(scores))


# --- risks with the prior -----------------------------------------------------


def pu_risks(
  scores: ArrayLike,
  positive: ArrayLike,
  prior: ArrayLike,
  weights: ArrayLike,
  *,
  loss: MarginLoss = sigmoid_loss,
  all_unlabeled: bool = False,
) -> tuple[Array, Array]:
  r"""The risk of positives, and that of negatives without one of them.

  .. math:: R_P = \pi \operatorname{mean}_P \ell(x), \qquad
    R_N = \operatorname{mean}_U \ell(-x) - \pi \operatorname{mean}_P \ell(-x)

  The second has the right mean, but of few examples it may be negative, and is
  where a network overfits: `upu` adds both, `nnpu` turns back, and
  `R_P + clip_risks(R_N[..., None])` leaves it out then.

  Args:
    scores: x, [b, ...] log-odds.
    positive: [b, ...] bool.
    prior: pi in (0, 1), the share of positives among the unlabeled examples; a
      scalar, or [...] one for each class.
    weights: [b], >= 0.
    loss: `scores -> values` of the same shape: `sigmoid_loss`, `logistic_loss`
      or any other.
    all_unlabeled: whether positives count as unlabeled examples as well.

  Returns:
    R_P and R_N, [...] each, at least float32, the same on every device. Without
    positives R_P is 0 and R_N that of taking all for negative.

  Raises:
    TypeError: if `scores` are no floats, or `positive` not bool.
    ValueError: if a shape does not match, or outside jit if `prior` is out of
      range or a weight negative.

  >>> scores, positive = jnp.array([2., 2., -2.]), jnp.array([1, 0, 0], bool)
  >>> found = pu_risks(scores, positive, .5, jnp.ones(3))
  >>> [round(float(risk), 3) for risk in found]
  [0.06, 0.06]

  Reference: du Plessis, Niu, Sugiyama, "Analysis of Learning from Positive and
  Unlabeled Data", NeurIPS 2014; see also `nnpu`.
  """
  scores, positive, weights = _read(scores, positive, weights)
  prior = _read_prior(prior, scores)
  known, rest = _parts(positive, weights, all_unlabeled)
  if_positive, if_negative = loss(scores), loss(-scores)
  for values in (if_positive, if_negative):
    check(
      np.shape(values) == scores.shape,
      f'loss must give one value for each score, {scores.shape}, got '
      f'{np.shape(values)}',
    )
  as_negative = prior * _mean(if_negative, known)
  return prior * _mean(if_positive, known), (
    _mean(if_negative, rest) - as_negative
  )


def upu(
  scores: ArrayLike,
  positive: ArrayLike,
  prior: ArrayLike,
  weights: ArrayLike,
  *,
  loss: MarginLoss = sigmoid_loss,
  all_unlabeled: bool = False,
) -> Array:
  r"""The unbiased risk of positives and unlabeled examples (uPU).

  .. math:: R_P + R_N

  of `pu_risks`. It is the risk to choose a model by, on held-out rows; a
  flexible network trained on it makes it negative.

  Args:
    scores: [b, ...] log-odds.
    positive: [b, ...] bool.
    prior: in (0, 1), a scalar or [...].
    weights: [b], >= 0.
    loss: see `pu_risks`.
    all_unlabeled: see `pu_risks`.

  Returns:
    [...], at least float32, the same on every device.

  Raises:
    TypeError, ValueError: as `pu_risks`.

  >>> scores, positive = jnp.array([2., 2., -2.]), jnp.array([1, 0, 0], bool)
  >>> round(float(upu(scores, positive, .5, jnp.ones(3))), 3)
  0.119

  Reference: see `pu_risks` and `logistic_loss`.
  """
  how: Any = {'loss': loss, 'all_unlabeled': all_unlabeled}
  risks = pu_risks(scores, positive, prior, weights, **how)
  return risks[0] + risks[1]


def nnpu(
  scores: ArrayLike,
  positive: ArrayLike,
  prior: ArrayLike,
  weights: ArrayLike,
  *,
  loss: MarginLoss = sigmoid_loss,
  beta: Scalar = 0.0,
  gamma: Scalar = 1.0,
  all_unlabeled: bool = False,
) -> Array:
  r"""The non-negative risk of positives and unlabeled examples (nnPU).

  .. math::
    \begin{cases}
      R_P + R_N & R_N \ge -\beta \\
      R_P - \beta, \text{ with the gradient of } -\gamma R_N & \text{otherwise}
    \end{cases}

  of `pu_risks`: where the risk of negatives is too negative, descent climbs out
  of it and does nothing else (`ascend_risks`). To clip the risk at 0 instead,
  without the way back, is less.

  Args:
    scores: [b, ...] log-odds.
    positive: [b, ...] bool.
    prior: in (0, 1), a scalar or [...].
    weights: [b], >= 0.
    loss: see `pu_risks`.
    beta: how far below zero R_N may be, >= 0.
    gamma: the pace of the way back, >= 0.
    all_unlabeled: see `pu_risks`.

  Returns:
    [...], at least float32, the same on every device; each class, and all
    devices together, take one branch. A batch of positives alone is always in
    the second, which then teaches that they are negative: leave such out.

  Raises:
    TypeError, ValueError: as `pu_risks`.
    ValueError: if `beta` or `gamma` is negative.

  >>> scores, positive = jnp.array([2., -2., -2.]), jnp.array([1, 0, 0], bool)
  >>> round(float(nnpu(scores, positive, .5, jnp.ones(3))), 3)  # R_N < 0
  0.06

  Reference: Kiryo, Niu, du Plessis, Sugiyama, "Positive-Unlabeled Learning with
  Non-Negative Risk Estimator", NeurIPS 2017, arXiv 1703.00593.
  """
  how: Any = {'loss': loss, 'all_unlabeled': all_unlabeled}
  of_positives, of_negatives = pu_risks(scores, positive, prior, weights, **how)
  way = ascend_risks(of_negatives[..., None], beta=beta, gamma=gamma)
  value = lax.stop_gradient(of_positives - beta - way)
  return way + jnp.where(of_negatives < -beta, value, of_positives)


# --- without the prior --------------------------------------------------------


def vpu(
  scores: ArrayLike,
  positive: ArrayLike,
  weights: ArrayLike,
  *,
  all_unlabeled: bool = False,
  offset: Scalar = 0.0,
) -> Array:
  r"""The variational loss of positives and unlabeled examples, without prior.

  .. math:: \log \operatorname{mean}_U \sigma(x)
    - \operatorname{mean}_P \log \sigma(x)

  It is least where sigma is proportional to the share of positives at x, the
  largest being 1: scores rank, but their scale is not that of probabilities.
  The paper adds `mixup_log_consistency`, without which networks overfit.

  Args:
    scores: x, [b, ...] log-odds.
    positive: [b, ...] bool.
    weights: [b], >= 0.
    all_unlabeled: see `pu_risks`.
    offset: epsilon >= 0, added in both logarithms. The default keeps value and
      gradient of the second; in the first, where the mean underflows it counts
      as the smallest normal number.

  Returns:
    [...], at least float32, the same on every device.

  Raises:
    TypeError: if `scores` are no floats, or `positive` not bool.
    ValueError: if a shape does not match, `offset` is negative, or outside jit
      a weight is.

  >>> scores, positive = jnp.array([0., 0.]), jnp.array([True, False])
  >>> float(vpu(scores, positive, jnp.ones(2)))
  0.0

  Reference: Chen, Liu, Wang, Zhao, Wu, "A Variational Approach for Learning
  from Positive and Unlabeled Data", NeurIPS 2020, arXiv 1906.00642.
  """
  check_range('offset', offset, 0)
  scores, positive, weights = _read(scores, positive, weights)
  known, rest = _parts(positive, weights, all_unlabeled)
  return _log_mean(scores, rest, offset) - _mean_log(scores, known, offset)


def pu_mlc_temperature(
  scores: ArrayLike,
  weights: ArrayLike,
  *,
  alpha: Scalar = 2.0,
  least: Scalar = 0.01,
) -> Array:
  r"""The temperature of each class in PU-MLC: the spread of its scores.

  .. math:: \tau_k = \max(\epsilon, \min(1, \alpha \operatorname{std}_i x_{ik}))

  Args:
    scores: x, [b, ...].
    weights: [b], >= 0.
    alpha: >= 0; 2 on VOC, 1 on COCO.
    least: epsilon > 0. The official code has none, and divides by 0 where all
      scores are alike, as they are in a batch of one.

  Returns:
    [...], at least float32, the same on every device, without gradient.

  Raises:
    TypeError: if `scores` are no floats.
    ValueError: if a shape does not match, or a number is out of range.

  >>> tau = pu_mlc_temperature(jnp.array([-.2, .2]), jnp.ones(2))
  >>> round(float(tau), 3)
  0.4

  Reference: see `pu_mlc`.
  """
  check_range('alpha', alpha, 0)
  check_range('least', least, 0, 1, open_low=True)
  scores = _read_scores(scores)
  scores, weights = _weighted(scores, weights)
  scores = lax.stop_gradient(scores)
  spread = jnp.sqrt(_mean(jnp.square(scores - _mean(scores, weights)), weights))
  # Not `clip`: a score that is NaN has to show.
  spread = jnp.minimum(alpha * spread, 1)
  return jnp.maximum(spread, least)


def pu_mlc(
  scores: ArrayLike,
  positive: ArrayLike,
  weights: ArrayLike,
  *,
  gamma: Scalar = 0.85,
  alpha: Scalar = 2.0,
  least: Scalar = 0.01,
  offset: Scalar = 0.0,
) -> Array:
  r"""Several labels, of which some that hold are known: `vpu` of each, weighed.

  .. math:: w_k \log \operatorname{mean}_i s_{ik}
    - \operatorname{mean}_{i \in P_k} \log s_{ik}, \qquad
    s_{ik} = \sigma(x_{ik} / \tau_k), \quad
    w_k = (\operatorname{mean}_i s_{ik})^\gamma

  with the temperatures of `pu_mlc_temperature` and the weights w without
  gradient; the weights make little of the unlabeled examples of rare classes.
  All examples are unlabeled, the positives too.

  Args:
    scores: x, [b, c] log-odds; [b, ...] as of the others.
    positive: [b, c] bool: the labels that are known to hold.
    weights: [b], >= 0.
    gamma: >= 0; .85 on VOC, .55 on COCO.
    alpha: >= 0; 2 on VOC, 1 on COCO.
    least: > 0, see `pu_mlc_temperature`.
    offset: >= 0, see `vpu`; 2e-10 in the official code.

  Returns:
    [c], at least float32, the same on every device; the official loss is their
    sum. A class without positives has the first term alone.

  Raises:
    TypeError, ValueError: as `vpu`.
    ValueError: if `gamma`, `alpha` or `least` is out of range.

  >>> scores = jnp.array([[1., -1.], [-1., 1.], [-1., -1.]])
  >>> found = pu_mlc(scores, scores > 0, jnp.ones(3))
  >>> [round(float(x), 2) for x in found]
  [-0.1, -0.1]

  Reference: Yuan, Zhang, Huang, "Positive Label Is All You Need for Multi-Label
  Classification", ICME 2024, arXiv 2306.16016.
  """
  check_range('gamma', gamma, 0)
  check_range('offset', offset, 0)
  tau = pu_mlc_temperature(scores, weights, alpha=alpha, least=least)
  scores, positive, weights = _read(scores, positive, weights)
  scores = scores / tau
  of_all = _log_mean(scores, weights, offset)
  share = _mean(lax.stop_gradient(jax.nn.sigmoid(scores)), weights)
  known, _ = _parts(positive, weights, True)
  return share**gamma * of_all - _mean_log(scores, known, offset)


def mixup_log_consistency(
  scores: ArrayLike,
  log_targets: ArrayLike,
  partner_log_targets: ArrayLike,
  ratio: ArrayLike,
  *,
  offset: Scalar = 0.0,
) -> Array:
  r"""How far what is said of mixed inputs is from what is said of their parts.

  .. math:: \left[ \log(r t + (1 - r) t') - \log \sigma(x) \right]^2

  The target t of an example that is known to be positive is 1, of another its
  own probability: `log_targets = jnp.where(positive, 0, log_sigmoid(own))`. The
  gradient flows through the targets as well. Inputs and log-targets are paired
  with those of other rows by `jnl.base.shuffle_within`, the former mixed by
  `jnl.steps.mix`, see `methods.pu_mlc`.

  Args:
    scores: x, [b, ...] log-odds of the mixed inputs.
    log_targets: log t, like `scores`, <= 0.
    partner_log_targets: log t', like `scores`, <= 0.
    ratio: r in [0, 1], a scalar or [b].
    offset: epsilon >= 0, added to target and probability; 1e-10 in the official
      code. It keeps the logarithms, and so the loss, bounded.

  Returns:
    [b, ...], at least float32, for `global_mean`; officially the mean over
    examples of the sum over classes.

  Raises:
    TypeError: if an array is of no floats.
    ValueError: if a shape does not match, or a number is out of range.

  >>> half = jnp.log(jnp.array([.5]))
  >>> mixup_log_consistency(jnp.zeros(1), half, half, .3).round(4).tolist()
  [0.0]

  Reference: see `vpu` and `pu_mlc`.
  """
  check_range('offset', offset, 0)
  check_between('ratio', ratio, 0, 1)
  scores = _read_scores(scores)
  targets = []
  for name, values in (
    ('log_targets', log_targets),
    ('partner_log_targets', partner_log_targets),
  ):
    values = read_floats(name, values)
    check(
      values.shape == scores.shape,
      f'{name} must have the shape of scores, {scores.shape}, got '
      f'{values.shape}',
    )
    targets.append(bounded(values.astype(scores.dtype)))
  r = as_array('ratio', ratio).astype(scores.dtype)
  check(
    r.shape in ((), scores.shape[:1]),
    f'ratio must be a scalar or [b] = {list(scores.shape[:1])}, got {r.shape}',
  )
  r = r.reshape(r.shape + (1,) * (scores.ndim - r.ndim))
  own, other = targets
  mixed = jnp.logaddexp(
    bounded(jnp.log(r)) + own, bounded(jnp.log1p(-r)) + other
  )
  found = jax.nn.log_sigmoid(scores)
  return jnp.square(add_offset(mixed, offset) - add_offset(found, offset))


# --- the pieces ---------------------------------------------------------------


def _read_scores(scores: ArrayLike) -> Array:
  scores = read_floats('scores', scores)
  return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _weighted(scores: Array, weights: ArrayLike) -> tuple[Array, Array]:
  """Scores, 0 in rows of weight 0, and the weights [b, 1, ...]."""
  weights = as_array('weights', weights)
  check(
    scores.ndim >= 1 and weights.shape == scores.shape[:1],
    'weights must be [b] for scores [b, ...], got shapes '
    f'{weights.shape} and {scores.shape}',
  )
  check_between('weights', weights, 0)
  weights = weights.reshape(-1, *(1,) * (scores.ndim - 1)).astype(scores.dtype)
  return jnp.where(weights == 0, 0, scores), weights


def _read(
  scores: ArrayLike, positive: ArrayLike, weights: ArrayLike
) -> tuple[Array, Array, Array]:
  """Scores in at least float32, positives, weights [b, 1, ...]."""
  scores, positive = _read_scores(scores), as_array('positive', positive)
  check(
    positive.dtype == bool,
    f'positive must be bool, got {positive.dtype}: where a label is known to '
    'hold, `labels == 1`',
    TypeError,
  )
  check(
    positive.shape == scores.shape,
    f'positive must have the shape of scores, {scores.shape}, got '
    f'{positive.shape}',
  )
  scores, weights = _weighted(scores, weights)
  return scores, positive, weights


def _read_prior(prior: ArrayLike, scores: Array) -> Array:
  """A scalar or [...], in (0, 1) where it can be looked at."""
  prior = as_array('prior', prior)
  check(
    prior.shape in ((), scores.shape[1:]),
    'prior must be a scalar'
    + f' or have shape {scores.shape[1:]}' * (scores.ndim > 1)
    + f', got shape {prior.shape}',
  )
  if is_concrete(prior):
    values = np.asarray(prior)
    bad = values[~((values > 0) & (values < 1))]
    check(not bad.size, f'prior must lie in (0, 1), got {bad}')
  return prior.astype(scores.dtype)


def _parts(
  positive: Array, weights: Array, all_unlabeled: bool
) -> tuple[Array, Array]:
  """The weights of the positives and of the unlabeled examples, [b, ...]."""
  known = jnp.where(positive, weights, 0)
  everyone = jnp.broadcast_to(weights, positive.shape)
  return known, everyone if all_unlabeled else jnp.where(positive, 0, weights)


def _mean(values: Array, weights: Array) -> Array:
  """Weighted means over all examples of all devices, [...]; 0 of none."""
  weights = jnp.broadcast_to(weights, values.shape)
  terms = jnp.where(weights == 0, 0, values) * weights
  total, count = global_sum((jnp.sum(terms, axis=0), jnp.sum(weights, axis=0)))
  return total / jnp.where(count == 0, 1, count)


def _log_mean(scores: Array, weights: Array, offset: Scalar) -> Array:
  """log(mean sigma + offset); of what has underflowed, that of `tiny`."""
  mean = _mean(jax.nn.sigmoid(scores), weights)
  some = global_sum(jnp.sum(weights, axis=0)) > 0
  mean, least = mean + offset, jnp.finfo(mean.dtype).tiny
  known = jnp.log(jnp.where(mean < least, least, mean))
  return jnp.where(some, known, 0)


def _mean_log(scores: Array, weights: Array, offset: Scalar) -> Array:
  """The mean of log(sigma + offset)."""
  return _mean(add_offset(jax.nn.log_sigmoid(scores), offset), weights)
