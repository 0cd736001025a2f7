"""Losses and terms that couple the examples of a batch.

Two kinds. `peer`, `f_divergence` and `cores2` return one value per example, but
compare it with other examples, which the caller draws. The others are functions
of the whole batch and return a scalar: they take `weights`, and reduce over all
devices, so that a split batch gives the value and gradient of the whole one.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import inputs, logspace
from jnl.base import Array, Scalar, check, global_mean, global_sum, whole
from jnl.inputs import check_range
from jnl.losses import _labels
from jnl.losses._cross_entropy import ce
from jnl.losses._labels import expect, log_prob, read


def peer(
  logits: ArrayLike,
  labels: ArrayLike,
  peer_logits: ArrayLike,
  peer_labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  offset: Scalar = 0.0,
) -> Array:
  r"""Peer loss: cross-entropy less that of an unrelated input and label.

  .. math:: \ell_i = -\log(p_{i, y_i} + \epsilon)
    + \alpha \log(p_{n, y_m} + \epsilon)

  Batch-coupled through the caller: n and m are drawn independently of each
  other, for example by two calls of `jnl.base.shuffle_within` with different
  keys. The gradient flows through both terms; unbounded below unless an offset
  bounds it.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    peer_logits: like `logits`, of other inputs, drawn at random.
    peer_labels: like `labels`, of yet other examples, drawn at random.
    alpha: the weight; official runs ramp it from 0 to 1 and on to 2 and more,
      and divide the learning rate by 1 + alpha.
    offset: epsilon >= 0; 1e-5 in the official code, 0 in the paper.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed.
    ValueError: if `alpha` is no scalar, or `offset` is negative.

  >>> z, y = jnp.zeros([2, 3]), jnp.array([0, 1])
  >>> peer(z, y, z[::-1], y).tolist()
  [0.0, 0.0]

  Reference: Liu, Guo, "Peer Loss Functions: Learning from Noisy Labels without
  Knowing Noise Rates", ICML 2020, arXiv 1910.03231.
  """
  check_range('alpha', alpha)
  check_range('offset', offset, 0)
  own, other = (
    expect(-logspace.add_offset(log_prob(z, y), offset), y)
    for z, y in _read_peers(logits, labels, peer_logits, peer_labels)
  )
  return own - alpha * other


def cores2(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  beta: Scalar = 2.0,
  prior: ArrayLike | None = None,
  offset: Scalar = 0.0,
) -> Array:
  r"""Confidence-regularized cross-entropy (CORES): less the mean peer term.

  .. math:: \ell(z, y) = -\log p_y + \beta \sum_k \pi_k \log(p_k + \epsilon)

  Unbounded below unless an offset bounds it.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    beta: 0 for 10 epochs, rising to 2 over the next 30 in the official code.
    prior: pi, [c] on the simplex, of the noisy labels; uniform by default.
    offset: epsilon >= 0; 1e-8 in the official code, 0 in the paper.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `prior` is not [c] or off the simplex, `beta` is no scalar,
      or `offset` is negative.

  >>> cores2(jnp.zeros([1, 4]), jnp.array([2]), beta=1.).tolist()
  [0.0]

  Reference: Cheng, Zhu, Li, Gong, Sun, Liu, "Learning with Instance-Dependent
  Label Noise: A Sample Sieve Approach", ICLR 2021, arXiv 2010.02347.
  """
  check_range('beta', beta)
  check_range('offset', offset, 0)
  losses = ce(logits, labels)
  plain = prior is None and logspace.is_zero(offset)
  logits = inputs.read_logits(logits, masked=not plain)
  log_p = logspace.add_offset(logspace.log_probs(logits), offset)
  mean = jnp.sum(_prior(prior, logits) * log_p, axis=-1)
  return losses + beta * logspace.bounded(mean)


def cores2_sieve(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  prior: ArrayLike | None = None,
  offset: Scalar = 0.0,
) -> Array:
  r"""The examples that CORES keeps: where `cores2` with beta 1 is <= 0.

  .. math:: -\log p_y \le -\sum_k \pi_k \log(p_k + \epsilon)

  After 30 epochs the official code takes the mean over these alone:
  `global_mean(cores2(...), weight * kept)`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    prior: see `cores2`.
    offset: see `cores2`.

  Returns:
    [...] bool.

  Raises:
    TypeError, ValueError: as `cores2`.

  >>> cores2_sieve(jnp.array([[0., 3.], [3., 0.]]), jnp.array([1, 1])).tolist()
  [True, False]

  Reference: see `cores2`.
  """
  return cores2(logits, labels, beta=1.0, prior=prior, offset=offset) <= 0


class Divergence(NamedTuple):
  """The variational form of an f-divergence, for `f_divergence`.

  Attributes:
    activation: g, increasing, from a real v to the domain of f*.
    conjugate: v to f*(g(v)), f* the convex conjugate of f.
  """

  activation: Callable[[Array], Array]
  conjugate: Callable[[Array], Array]


LOG_2 = math.log(2)
TOTAL_VARIATION = Divergence(
  lambda v: jnp.tanh(v) / 2, lambda v: jnp.tanh(v) / 2
)
JENSEN_SHANNON = Divergence(
  lambda v: LOG_2 - jax.nn.softplus(-v), lambda v: jax.nn.softplus(v) - LOG_2
)
KULLBACK_LEIBLER = Divergence(lambda v: v, lambda v: jnp.exp(v - 1))
REVERSE_KL = Divergence(lambda v: -jnp.exp(-v), lambda v: v - 1)
PEARSON = Divergence(lambda v: v, lambda v: v * v / 4 + v)
NEYMAN = Divergence(lambda v: -jnp.expm1(-v), lambda v: -2 * jnp.expm1(-v / 2))
SQUARED_HELLINGER = Divergence(lambda v: -jnp.expm1(-v), jnp.expm1)


def f_divergence(
  logits: ArrayLike,
  labels: ArrayLike,
  peer_logits: ArrayLike,
  peer_labels: ArrayLike,
  *,
  divergence: Divergence = TOTAL_VARIATION,
) -> Array:
  r"""The negative f-divergence of paired against unpaired inputs and labels.

  .. math:: \ell_i = -g(p_{i, y_i}) + f^*(g(p_{n, y_m}))

  Its minimum has the largest divergence. Batch-coupled through the caller, like
  `peer`. Robust without knowing the
  noise rates for some divergences, total variation above all.

  `TOTAL_VARIATION`, `JENSEN_SHANNON`, `KULLBACK_LEIBLER`, `REVERSE_KL`,
  `PEARSON`, `NEYMAN` and `SQUARED_HELLINGER` are ready; any other pair can be
  made. For REVERSE_KL, NEYMAN and SQUARED_HELLINGER the official code has
  activations that fall with p, and so pushes the label's probability down; here
  all rise. Its Jeffrey divergence, an approximation, is left out.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    peer_logits: like `logits`, of other inputs, drawn at random.
    peer_labels: like `labels`, of yet other examples, drawn at random.
    divergence: g and f*(g).

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z, y = jnp.zeros([2, 3]), jnp.array([0, 1])
  >>> f_divergence(z, y, z[::-1], y).tolist()
  [0.0, 0.0]

  Reference: Wei, Liu, "When Optimizing f-divergence is Robust with Label
  Noise", ICLR 2021, arXiv 2011.03687; Nowozin, Cseke, Tomioka, "f-GAN: Training
  Generative Neural Samplers using Variational Divergence Minimization", NeurIPS
  2016, arXiv 1606.00709.
  """
  pairs = _read_peers(logits, labels, peer_logits, peer_labels)
  functions = (divergence.activation, divergence.conjugate)
  own, other = (
    expect(f(jnp.exp(log_prob(z, y))), y)
    for f, (z, y) in zip(functions, pairs, strict=True)
  )
  return other - own


def dmi(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  *,
  offset: Scalar = 1e-3,
  mean: bool = False,
) -> Array:
  r"""Negative determinant-based mutual information of predictions and labels.

  .. math:: -\log(|\det U| + \epsilon),\qquad
    U_{jk} = \sum_i w_i\, 1[y_i = j]\, p_{ik}

  Batch-coupled: one value for the batch. It needs every class in the batch; if
  the determinant is 0 the value is -log(offset), without gradient. Start from a
  network trained with cross-entropy, as the paper does.

  Args:
    logits: [b, c].
    labels: [b] int, or [b, c] soft.
    weights: [b], >= 0; examples of weight 0 count for nothing, whatever their
      logits and label.
    offset: epsilon > 0, 1e-3 in most public code.
    mean: divides U by the total weight, with `offset=1e-4` the other public
      form. (The paper's U is a mean too.)

  Returns:
    [], at least float32, the same on every device.

  Raises:
    TypeError, ValueError: if an array is malformed.
    ValueError: if `offset` is out of range.

  >>> z, y = 50 * jnp.eye(3), jnp.arange(3)
  >>> f'{abs(float(dmi(z, y, jnp.ones(3), offset=1.) + jnp.log(2.))):.4f}'
  '0.0000'

  Reference: Xu, Cao, Kong, Wang, "L_DMI: A Novel Information-theoretic Loss
  Function for Training Deep Nets Robust to Label Noise", NeurIPS 2019, arXiv
  1909.03388.
  """
  check_range('offset', offset, 0, open_low=True)
  p, label, weights = _read_batch(logits, labels, weights)
  u, total = global_sum((_confusion(p, label, weights), jnp.sum(weights)))
  if mean:
    u = u / jnp.where(total > 0, total, 1)
  singular = jnp.linalg.slogdet(lax.stop_gradient(u))[0] == 0
  safe = jnp.where(singular, jnp.eye(u.shape[0], dtype=u.dtype), u)
  log_det = jnp.linalg.slogdet(safe)[1]
  log_offset = jnp.log(jnp.asarray(offset, p.dtype))
  return -jnp.where(singular, log_offset, jnp.logaddexp(log_det, log_offset))


def mean_entropy_gap(
  logits: ArrayLike, weights: ArrayLike, *, clip: Scalar = 0.0
) -> Array:
  r"""The entropy by which the mean prediction falls short of the uniform one.

  .. math:: \log c + \sum_k m_k \log m_k,\qquad
    m = \sum_i w_i p_i \Big/ \sum_i w_i

  Batch-coupled: one value for the batch. The entropy term of ANL-CE-ER, with
  the factor 2 for CIFAR-10 and .01 for CIFAR-100.

  Args:
    logits: [..., c].
    weights: [...], >= 0.
    clip: probabilities are clipped to [clip, 1 - clip] and their mean brought
      back to sum one, with 1e-7 in the official code.

  Returns:
    [], at least float32, >= 0, the same on every device.

  Raises:
    TypeError, ValueError: if an array is malformed.
    ValueError: if `clip` is out of range.

  >>> mean_entropy_gap(jnp.array([[9., 0.], [0., 9.]]), jnp.ones(2)).tolist()
  0.0

  Reference: the official code of Ye, Li, Dai, Liu, Sun, Tong, "Active Negative
  Loss Functions for Learning with Noisy Labels", NeurIPS 2023.
  """
  check_range('clip', clip, 0, 0.5)
  mean = _mean_prediction(logits, weights, clip)
  return math.log(mean.shape[-1]) + jnp.sum(mean * _safe_log(mean))


def prior_mean_kl(
  logits: ArrayLike, weights: ArrayLike, *, prior: ArrayLike | None = None
) -> Array:
  r"""Kullback-Leibler divergence of the mean prediction from a class prior.

  .. math:: \sum_k \pi_k \log(\pi_k / m_k),\qquad
    m = \sum_i w_i p_i \Big/ \sum_i w_i

  Batch-coupled: one value for the batch. So that no class dies out, M-DYR,
  DivideMix and SOP+ add it with a uniform prior (SOP+ as a cross-entropy, which
  is larger by log c).

  Args:
    logits: [..., c]; log-probabilities are logits too.
    weights: [...], >= 0.
    prior: pi, [c] on the simplex; uniform by default.

  Returns:
    [], at least float32, >= 0, the same on every device. A class whose mean
    underflows to 0 counts as the smallest normal number, without gradient.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> prior_mean_kl(jnp.array([[9., 0.], [0., 9.]]), jnp.ones(2)).tolist()
  0.0

  Reference: Tanaka, Ikami, Yamasaki, Aizawa, "Joint Optimization Framework for
  Learning with Noisy Labels", CVPR 2018, arXiv 1803.11364.
  """
  mean = _mean_prediction(logits, weights, 0.0)
  prior = _prior(prior, mean)
  return jnp.sum(prior * (_safe_log(prior) - _safe_log(mean)))


# --- the pieces --------------------------------------------------------------


def _read_peers(
  logits: ArrayLike,
  labels: ArrayLike,
  peer_logits: ArrayLike,
  peer_labels: ArrayLike,
) -> tuple[tuple[Array, _labels.Label], tuple[Array, _labels.Label]]:
  """Checks both pairs, which must not broadcast against each other."""
  own = read(logits, labels)
  peer_logits = inputs.read_logits(peer_logits, 'peer_logits')
  check(
    peer_logits.shape == own[0].shape,
    f'peer_logits must have the shape of logits, {own[0].shape}, got '
    f'{peer_logits.shape}',
  )
  return own, read(peer_logits, peer_labels, 'peer_labels')


def _prior(prior: ArrayLike | None, logits: Array) -> Array:
  c = logits.shape[-1]
  if prior is None:
    return jnp.full([c], 1 / c, logits.dtype)
  prior = inputs.as_array('prior', prior)
  check(prior.shape == (c,), f'prior must be [{c}], got shape {prior.shape}')
  inputs.check_simplex('prior', prior)
  return prior.astype(logits.dtype)


def _safe_log(x: Array) -> Array:
  """log of x >= 0, finite at 0 and without gradient there."""
  tiny = jnp.finfo(x.dtype).tiny
  return jnp.log(jnp.where(x > tiny, x, tiny))


def _mean_prediction(
  logits: ArrayLike, weights: ArrayLike, clip: Scalar
) -> Array:
  """Mean of softmax over all examples of all devices, [c]; uniform if none."""
  logits, weights = inputs.read_logits(logits), jnp.asarray(weights)
  check(
    weights.shape == logits.shape[:-1],
    f'weights must have shape {logits.shape[:-1]}, got {weights.shape}',
  )
  logits = jnp.where(weights[..., None] != 0, logits, 0)  # a masked NaN
  p = jnp.exp(logspace.log_probs(logits))
  if not logspace.is_zero(clip):
    p = jnp.clip(p, clip, 1 - clip)
  mean = jax.vmap(global_mean, (-1, None))(p, weights)
  total = jnp.sum(mean)
  some = total > 0
  return jnp.where(some, mean / jnp.where(some, total, 1), 1 / p.shape[-1])


def _read_batch(
  logits: ArrayLike, labels: ArrayLike, weights: ArrayLike
) -> tuple[Array, _labels.Label, Array]:
  """Probabilities [b, c], labels and weights with masked rows neutral."""
  shape, weights = np.shape(logits), jnp.asarray(weights)
  check(len(shape) == 2, f'logits must be [b, c], got shape {shape}')
  check(
    weights.shape == shape[:1],
    f'weights must be [b] = [{shape[0]}], got shape {weights.shape}',
  )
  counts = weights != 0
  logits, label = read(logits, labels, where=counts)
  weights = weights.astype(logits.dtype)
  logits = jnp.where(counts[:, None], logits, 0)  # a masked NaN
  if label.valid is not None:
    weights = jnp.where(counts & ~label.valid, jnp.nan, weights)
  return jnp.exp(logspace.log_probs(logits)), label, weights


def _confusion(p: Array, label: _labels.Label, weights: Array) -> Array:
  """The weighted sum of predictions for each label, [c, c]."""
  weighted = whole(weights[:, None] * p)
  if label.valid is None:
    counts = (weights != 0)[:, None]
    return whole(jnp.where(counts, label.values, 0)).T @ weighted
  own = whole(label.values[:, 0])
  return jax.ops.segment_sum(weighted, own, num_segments=p.shape[-1])
