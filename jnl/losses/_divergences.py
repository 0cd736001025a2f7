"""Robust losses between two distributions: the label's and the prediction's.

A soft label enters their definition as a distribution: the loss of a mixture of
labels is not the mixture of the losses.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import inputs, logspace
from jnl.base import Array, Scalar, check, is_concrete
from jnl.inputs import check_range
from jnl.logspace import expm1
from jnl.losses import _labels
from jnl.losses._labels import Label, read, settle


def js(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  w0: Scalar = 0.5,
  clip: Scalar = 0.0,
) -> Array:
  r"""Weighted Jensen-Shannon divergence of label and prediction, scaled.

  .. math::
    \ell = \frac{w_0 \mathrm{KL}(y \| m) + (1 - w_0) \mathrm{KL}(p \| m)}
      {-(1 - w_0) \log(1 - w_0)},\qquad m = w_0 y + (1 - w_0) p

  Tends to cross-entropy as w0 falls to 0, and to `mae` as it rises to 1.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    w0: weight of the label, in (0, 1). The paper tunes it to data and noise,
      for example .7 for CIFAR-10 with 20% symmetric noise, .9 with 60%.
    clip: what the logarithms are clamped at, as the official code does with
      1e-7. The default has a closed form in p_y for integer labels and keeps
      the gradient.

  Returns:
    [...], at least float32, >= 0, bounded for fixed w0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `w0` or `clip` is out of range.

  >>> f'{float(js(jnp.array([0., 30.]), jnp.array(0))):.3f}'
  '2.000'

  Reference: Englesson, Azizpour, "Generalized Jensen-Shannon Divergence Loss
  for Learning with Noisy Labels", NeurIPS 2021, arXiv 2105.04522.
  """
  _check_weight(w0)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  w0 = jnp.asarray(w0, logits.dtype)
  if label.valid is not None and logspace.is_zero(clip):
    return settle(_js_of_label(_labels.log_prob(logits, label), w0), label)
  log_p = logspace.log_probs(logits)
  targets = _labels.soft(label, logits)
  losses = _js(targets, log_p[None], (w0, 1 - w0), clip) / _scale(w0)
  return settle(losses, label)


def gjs(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  weights: Sequence[Scalar] | Array = (0.3, 0.35, 0.35),
  clip: Scalar = 0.0,
) -> Array:
  r"""Generalized Jensen-Shannon divergence of the label and several views.

  .. math::
    \ell = \frac{w_0 \mathrm{KL}(y \| m) + \sum_i w_i \mathrm{KL}(p_i \| m)}
      {-(1 - w_0) \log(1 - w_0)},\qquad m = w_0 y + \sum_i w_i p_i

  One view is `js`.

  Args:
    logits: [v, ..., c], of v augmentations of the same examples.
    labels: [...] int, or [..., c] soft.
    weights: [v + 1] positive, summing to one, first the label's: .3, .35, .35
      for CIFAR-10 with 20% symmetric noise, .9, .05, .05 with 40%.
    clip: what the logarithms are clamped at; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `weights` do not fit, or `clip` is out of range.

  >>> z, y = jnp.zeros([2, 5, 4]), jnp.arange(5) % 4
  >>> both = jax.jit(lambda z, y: (gjs(z, y), js(z[0], y, w0=0.3)))(z, y)
  >>> bool(jnp.allclose(*both, rtol=1e-5))
  True

  Reference: Englesson, Azizpour, "Generalized Jensen-Shannon Divergence Loss
  for Learning with Noisy Labels", NeurIPS 2021, arXiv 2105.04522.
  """
  check_range('clip', clip, 0, 1)
  logits, label, weights = _read_views(logits, labels, weights)
  log_p = logspace.log_probs(logits)
  targets = _labels.soft(label, logits[0])
  losses = _js(targets, log_p, weights, clip) / _scale(weights[0])
  return settle(losses, label)


def gjs_of_mean(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  weights: Sequence[Scalar] | Array = (0.3, 0.35, 0.35),
  clip: Scalar = 0.0,
  as_coded: bool = False,
) -> Array:
  r"""`gjs` without its consistency term: of the label and the mean view.

  .. math:: \ell = \mathrm{JS}_{w_0}(y, \bar p),\qquad
    \bar p = \sum_i w_i p_i / (1 - w_0)

  What `gjs` exceeds it by, scaled alike, is the views' disagreement.

  Args:
    logits: [v, ..., c], of v augmentations of the same examples.
    labels: [...] int, or [..., c] soft.
    weights: as in `gjs`.
    clip: what the logarithms are clamped at; 1e-7 in the official code.
    as_coded: the official code does not divide by 1 - w0, so that the average
      sums to 1 - w0. The default does.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `weights` do not fit, or `clip` is out of range.

  >>> z, y = jnp.array([[[3., 0.]], [[0., 3.]]]), jnp.array([0])
  >>> mean, each = jax.jit(lambda z, y: (gjs_of_mean(z, y), gjs(z, y)))(z, y)
  >>> bool(mean[0] < each[0])
  True

  Reference: see `gjs`.
  """
  check_range('clip', clip, 0, 1)
  logits, label, weights = _read_views(logits, labels, weights)
  logits = logspace.bounded(logits)
  log_w = jnp.log(weights[1:]).reshape((-1,) + (1,) * (logits.ndim - 1))
  log_p = jax.nn.logsumexp(log_w + logspace.log_probs(logits), axis=0)
  w0 = weights[0]
  if not as_coded:
    log_p = log_p - jnp.log1p(-w0)
  targets = _labels.soft(label, logits[0])
  losses = _js(targets, log_p[None], (w0, 1 - w0), clip) / _scale(w0)
  return settle(losses, label)


def anorm(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  a: Scalar = 1.5,
  p: Scalar = 0.9,
  clip: Scalar = 0.0,
) -> Array:
  r"""Asymmetric p-norm of the difference of label and prediction.

  .. math:: \ell = \frac1p \Bigl( \sum_k |a\, y_k - p_k|^p - (a - 1)^p \Bigr)

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    a: >= 1.
    p: > 0.
    clip: the probabilities are raised to it, as the official code does with
      1e-5, which stops the gradient below. The default keeps it.

  Returns:
    [...], at least float32, >= 0 for integer labels.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `a`, `p` or `clip` is out of range.

  >>> anorm(jnp.zeros(4), jnp.array(2), a=1., p=1.).tolist()
  1.5

  Reference: the official code of Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss
  Functions for Learning with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  check_range('a', a, 1)
  check_range('p', p, 0, open_low=True)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  targets = _labels.soft(label, logits)
  log_p = logspace.floor(logspace.log_probs(logits), clip)
  # Where the label has no mass the term is p_k^p, finite only in log space.
  apart = jnp.where(targets == 0, 1, jnp.abs(a * targets - jnp.exp(log_p)))
  powers = jnp.where(
    targets == 0, jnp.exp(p * log_p), logspace.raise_to(apart, p)
  )
  least = logspace.raise_to(jnp.asarray(a, logits.dtype) - 1, p)
  return settle((jnp.sum(powers, axis=-1) - least) / p, label)


def bi_tempered(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  t1: Scalar = 0.8,
  t2: Scalar = 1.2,
) -> Array:
  r"""Bi-tempered logistic loss: a bounded loss of a heavy-tailed softmax.

  .. math::
    \ell = \sum_k y_k (\log_{t_1} y_k - \log_{t_1} p_k)
      - \frac{y_k^{2 - t_1} - p_k^{2 - t_1}}{2 - t_1},\qquad
    p_k = \exp_{t_2}(z_k - \lambda(z))

  with log_t x = (x^(1 - t) - 1) / (1 - t), exp_t its inverse, and lambda such
  that p sums to one. t1 = t2 = 1 is cross-entropy (for soft labels less their
  entropy).

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    t1: in [0, 1]; bounds the loss if below 1.
    t2: > 0; tails heavier than the softmax's if above 1. Below 1 probabilities
      can be exactly 0, and with t1 = 1 the loss is then 1e30.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `t1` or `t2` is out of range.

  >>> z, y = jnp.array([1., 2., 3.]), jnp.array(0)
  >>> f'{float(bi_tempered(z, y, t1=1., t2=1.)):.3f}'
  '2.408'

  Reference: Amid, Warmuth, Anil, Koren, "Robust Bi-Tempered Logistic Loss Based
  on Bregman Divergences", NeurIPS 2019, arXiv 1906.03361.
  """
  check_range('t1', t1, 0, 1)
  check_range('t2', t2, 0, open_low=True)
  logits, label = read(logits, labels)
  t1 = jnp.asarray(t1, logits.dtype)
  log_p = tempered_log_softmax(logits, t=t2)
  own = log_p if label.valid is None else logspace.take(log_p, label.values)
  squares = jnp.sum(jnp.exp((2 - t1) * log_p), axis=-1, keepdims=True)
  losses = logspace.box_cox(own, 1 - t1) + (squares - 1) / (2 - t1)
  losses = _labels.expect(losses, label)
  if label.valid is None:  # what the same terms are at p = y: 0 for one-hot
    targets = label.values
    log_y = jnp.log(jnp.where(targets > 0, targets, 1))
    squares = jnp.sum(targets * jnp.exp((1 - t1) * log_y), axis=-1)
    losses -= jnp.sum(targets * logspace.box_cox(log_y, 1 - t1), axis=-1)
    losses -= (squares - 1) / (2 - t1)
  return losses


def tempered_log_softmax(logits: ArrayLike, *, t: Scalar = 1.2) -> Array:
  r"""The logarithm of the tempered softmax, normalized exactly.

  .. math:: \log \exp_t(z_k - \lambda),\qquad
    \sum_k \exp_t(z_k - \lambda) = 1

  Newton's method on the tempered logarithm of the sum: one step from below is
  exact for the ordinary softmax (t = 1), and for every t the steps rise
  monotonically to the solution. (The paper iterates a fixed point for t > 1 and
  bisects for t < 1; public code stops after five rounds.) Derivatives are those
  of the solution, by the implicit function theorem.

  Args:
    logits: [..., c].
    t: > 0.

  Returns:
    [..., c], at least float32; -1e30 where a probability is 0 (only if t < 1).

  Raises:
    TypeError, ValueError: if `logits` are malformed.
    ValueError: if `t` is out of range.

  >>> jnp.exp(tempered_log_softmax(jnp.zeros(4), t=2.)).tolist()
  [0.25, 0.25, 0.25, 0.25]

  Reference: see `bi_tempered`.
  """
  check_range('t', t, 0, open_low=True)
  logits = inputs.read_logits(logits)
  t = jnp.asarray(t, logits.dtype)
  shifted = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  return _log_exp(shifted - _tempered_normalizer(shifted, t), t)


# --- the pieces --------------------------------------------------------------

NEVER = -1e30
"""A finite logarithm of 0."""


def _check_weight(w0: Scalar) -> None:
  inputs.check_scalar('w0', w0)
  check((w0 > 0) & (w0 < 1), f'w0 must lie in (0, 1), got {w0}')


def _read_views(
  logits: ArrayLike, labels: ArrayLike, weights: Sequence[Scalar] | Array
) -> tuple[Array, Label, Array]:
  """Checks the inputs of `gjs`."""
  logits = inputs.read_logits(logits)
  check(
    logits.ndim >= 2 and logits.shape[0] >= 1,
    f'logits must be [v, ..., c] with v >= 1 views, got shape {logits.shape}',
  )
  _, label = read(logits[0], labels)
  weights = jnp.asarray(weights, logits.dtype)
  check(
    weights.shape == (logits.shape[0] + 1,),
    f'weights must be [v + 1] = [{logits.shape[0] + 1}], one for the label and '
    f'one for each view, got shape {weights.shape}',
  )
  if is_concrete(weights):
    check(
      jnp.all(weights > 0) & (jnp.abs(jnp.sum(weights) - 1) < 1e-4),
      f'weights must be positive and sum to one, got {weights}',
    )
  return logits, label, weights


def _scale(w0: Scalar) -> Array:
  return -(1 - w0) * jnp.log1p(-w0)


def _js_of_label(log_p: Array, w0: Scalar) -> Array:
  """`js` for integer labels, from log p_y [..., 1].

  With r = 1 - p_y and L = -log(1 - w0) the mixture's log at y is log m, and
  KL(p || m) = r L - p_y log(m / p_y). The two terms are both O(w0) and nearly
  cancel for small w0; written as here they lose no more than the rounding.
  """
  log_p = log_p[..., 0]
  rest, log_keep = -expm1(log_p), jnp.log1p(-w0)
  # m / p_y = 1 + w0 r / p_y
  safe = jnp.where(rest > 0, rest, 1)
  gap = jax.nn.softplus(jnp.log(w0) + jnp.log(safe) - log_p)
  gap = jnp.where(rest > 0, gap, 0)
  log_m = jnp.where(
    rest < 0.5,
    jnp.log1p(-(1 - w0) * rest),
    jnp.logaddexp(jnp.log(w0), log_keep + log_p),
  )
  second = -rest * log_keep - jnp.exp(log_p) * gap
  return (-w0 * log_m + (1 - w0) * second) / _scale(w0)


def _js(
  targets: Array, log_p: Array, weights: Sequence | Array, clip: Scalar
) -> Array:
  """Weighted KL to the mixture of `targets` [..., c] and log_p [v, ..., c]."""
  p = jnp.exp(log_p)
  mixture = weights[0] * targets
  for i in range(p.shape[0]):
    mixture = mixture + weights[i + 1] * p[i]
  log_m = _clamped_log(mixture, clip)

  def kl(x: Array, log_x: Array) -> Array:
    return jnp.sum(x * (log_x - log_m), axis=-1)

  total = weights[0] * kl(targets, _clamped_log(targets, clip))
  for i in range(p.shape[0]):
    log_p_i = logspace.floor(jnp.where(p[i] > 0, log_p[i], 0), clip)
    total = total + weights[i + 1] * kl(p[i], log_p_i)
  return total


def _clamped_log(x: Array, clip: Scalar) -> Array:
  """log max(x, clip), and 0 where that is log 0: its factor is 0 as well."""
  positive = x > 0
  log_x = jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), 0)
  return logspace.floor(log_x, clip)


def _log_exp(x: Array, t: Array) -> Array:
  """log exp_t(x), with a finite log 0."""
  off = t != 1
  rate = jnp.where(off, 1 - t, 1)
  argument = rate * x
  inside = ~(argument <= -1)  # a NaN too, and stays one
  tempered = jnp.log1p(jnp.where(inside, argument, 0)) / rate
  return jnp.where(off, jnp.where(inside, tempered, NEVER), x)


@jax.custom_jvp
@jax.jit  # so that a loop run op by op is compiled once, not at every call
def _tempered_normalizer(shifted: Array, t: Array) -> Array:
  """lambda [..., 1] for logits whose maximum is 0."""
  # The steps converge quadratically: after one this small nothing is left.
  tolerance = 0.1 * jnp.finfo(shifted.dtype).eps ** 0.5

  def step(carry):
    lam, unfinished, count = carry
    log_e = _log_exp(shifted - lam, t)
    log_f = jax.nn.logsumexp(log_e, axis=-1, keepdims=True)
    slope = jnp.sum(jnp.exp(t * log_e), axis=-1, keepdims=True)
    move = -jnp.exp(t * log_f) * logspace.box_cox(log_f, 1 - t) / slope
    # Each example for itself, and a NaN is never unfinished: neither one's
    # neighbors nor a row of weight 0 decide where its steps end.
    moved = jnp.where(unfinished, lam + move, lam)
    unfinished = unfinished & (jnp.abs(move) > tolerance * (1 + lam))
    return moved, unfinished, count + 1

  def goes_on(carry):
    return jnp.any(carry[1]) & (carry[2] < 100)

  # The first step is outside, so that what is carried varies over mapped axes
  # as the logits do.
  first = step((jnp.zeros_like(shifted[..., :1]), True, 0))
  return lax.while_loop(goes_on, step, first)[0]


@_tempered_normalizer.defjvp
def _tempered_normalizer_jvp(primals, tangents):
  shifted, t = primals
  lam = _tempered_normalizer(shifted, t)

  def total(shifted, t):
    log_e = _log_exp(shifted - lam, t)
    return jnp.sum(jnp.exp(log_e), axis=-1, keepdims=True)

  _, d_total = jax.jvp(total, primals, tangents)
  log_e = _log_exp(shifted - lam, t)
  return lam, d_total / jnp.sum(jnp.exp(t * log_e), axis=-1, keepdims=True)
