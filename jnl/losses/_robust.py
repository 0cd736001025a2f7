"""Robust losses of one probability: bounded, symmetric and asymmetric ones.

All are functions of p_y, the probability of the label. A soft label means the
expected loss, sum_k t_k loss(z, k).
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import inputs, logspace
from jnl.base import Array, Scalar
from jnl.inputs import check_range
from jnl.logspace import expm1
from jnl.losses._cross_entropy import ce
from jnl.losses._labels import expect, log_prob, read

LOG_ZERO = math.log(1e-4)
"""What reverse cross-entropy takes for log 0 (A in the papers)."""


def mae(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""Mean absolute error, scaled to [0, 1].

  .. math:: \ell(z, y) = 1 - p_y = \tfrac12 \sum_k |1[k = y] - p_k|

  Symmetric: its sum over all labels is c - 1 whatever the logits. The paper's
  value is twice this one.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, in [0, 1].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> mae(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.75]

  Reference: Ghosh, Kumar, Sastry, "Robust Loss Functions under Label Noise for
  Deep Neural Networks", AAAI 2017, arXiv 1712.09482.
  """
  logits, label = read(logits, labels)
  return expect(-expm1(log_prob(logits, label)), label)


def rce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  r"""Reverse cross-entropy: the label as prediction, the prediction as label.

  .. math:: \ell(z, y) = -\sum_k p_k \log 1[k = y] = -A\, (1 - p_y),
    \qquad \log 0 := A

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    log_zero: A <= 0. The paper has -4, its code log(1e-4) = -9.21, as here.
    clip: the p_k of the sum are raised to it, as public code does with 1e-7,
      which stops the gradient of classes below and adds up to -A c clip. The
      default has the closed form and keeps the gradient.

  Returns:
    [...], at least float32, in [0, -A].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `log_zero` or `clip` is out of range.

  >>> rce(jnp.zeros([1, 4]), jnp.array([2]), log_zero=-4).tolist()
  [3.0]

  Reference: Wang, Ma, Chen, Luo, Yi, Bailey, "Symmetric Cross Entropy for
  Robust Learning with Noisy Labels", ICCV 2019, arXiv 1908.06112.
  """
  check_range('log_zero', log_zero, high=0)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  log_p = log_prob(logits, label)
  others = -expm1(log_p)
  if not logspace.is_zero(clip):
    lifted = jnp.maximum(clip - jnp.exp(logspace.log_probs(logits)), 0)
    others += jnp.sum(lifted, axis=-1, keepdims=True)
    others -= jnp.maximum(clip - jnp.exp(log_p), 0)
  return expect(-log_zero * others, label)


def sce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 0.1,
  beta: Scalar = 1.0,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  r"""Symmetric cross-entropy.

  .. math:: \ell = \alpha\, \ell_{\mathrm{CE}} + \beta\, \ell_{\mathrm{RCE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `ce`, >= 0; .1 for CIFAR-10, 6 for CIFAR-100, .01 for
      MNIST.
    beta: weight of `rce`, >= 0; 1 for CIFAR-10 and MNIST, .1 for CIFAR-100.
    log_zero: see `rce`.
    clip: see `rce`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> sce(jnp.zeros([1, 4]), jnp.array([2]), alpha=0., log_zero=-4.).tolist()
  [3.0]

  Reference: Wang, Ma, Chen, Luo, Yi, Bailey, "Symmetric Cross Entropy for
  Robust Learning with Noisy Labels", ICCV 2019, arXiv 1908.06112.
  """
  check_range('alpha', alpha, 0)
  check_range('beta', beta, 0)
  reverse = rce(logits, labels, log_zero=log_zero, clip=clip)
  return alpha * ce(logits, labels) + beta * reverse


def gce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  q: Scalar = 0.7,
  clip: Scalar = 0.0,
) -> Array:
  r"""Generalized cross-entropy: between cross-entropy and absolute error.

  .. math:: \ell(z, y) = (1 - p_y^q) / q

  q = 0 is cross-entropy, q = 1 is `mae`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    q: in [0, 1].
    clip: p_y is raised to it, which stops the gradient below. Public code takes
      1e-7; the default keeps the gradient.

  Returns:
    [...], at least float32, in [0, 1 / q].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `q` or `clip` is out of range.

  >>> gce(jnp.zeros([1, 4]), jnp.array([2]), q=0.5).tolist()
  [1.0]

  Reference: Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep
  Neural Networks with Noisy Labels", NeurIPS 2018, arXiv 1805.07836.
  """
  check_range('q', q, 0, 1)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  log_p = logspace.floor(log_prob(logits, label), clip)
  return expect(logspace.box_cox(log_p, q), label)


def truncated_gce(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  *,
  q: Scalar = 0.7,
  k: Scalar = 0.5,
) -> Array:
  r"""Truncated generalized cross-entropy: of the examples that are kept alone.

  .. math:: \ell_i = w_i \left( \frac{1 - p_{y_i}^q}{q} - \frac{1 - k^q}{q}
    \right)

  The weights are kept for each example and refreshed now and then by
  `truncated_gce_weights` (in the official code from epoch 40 of 120, every ten
  epochs); they start at one. As the official code has it; in the paper a
  dropped example counts (1 - k^q) / q, which has the same gradient.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    weights: w >= 0, [...] or a scalar, from `truncated_gce_weights`.
    q: in [0, 1].
    k: in (0, 1].

  Returns:
    [...], at least float32; negative where p_y > k.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `weights` have another shape, or `weights`, `q` or `k` are
      out of range.

  >>> z, y = jnp.zeros([1, 4]), jnp.array([2])
  >>> truncated_gce(z, y, jnp.ones(1), k=0.25).tolist()
  [0.0]

  Reference: Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep
  Neural Networks with Noisy Labels", NeurIPS 2018, arXiv 1805.07836.
  """
  check_range('k', k, 0, 1, open_low=True)
  losses = gce(logits, labels, q=q)
  weights = inputs.read_weight('weights', weights, losses)
  threshold = logspace.box_cox(jnp.log(jnp.asarray(k, losses.dtype)), q)
  return weights * (losses - threshold)


def truncated_gce_weights(
  logits: ArrayLike, labels: ArrayLike, *, k: Scalar = 0.5
) -> Array:
  r"""The examples that `truncated_gce` keeps: w = 1[p_y > k].

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    k: in (0, 1].

  Returns:
    [...], at least float32, 0 or 1 (a mean of them for soft labels), without
    gradient.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `k` is out of range.

  >>> truncated_gce_weights(jnp.array([[0., 3.]]), jnp.array([1])).tolist()
  [1.0]

  Reference: see `truncated_gce`.
  """
  check_range('k', k, 0, 1, open_low=True)
  logits, label = read(logits, labels)
  log_p = log_prob(logits, label)
  return expect((log_p > jnp.log(k)).astype(log_p.dtype), label)


def taylor_ce(logits: ArrayLike, labels: ArrayLike, *, order: int = 2) -> Array:
  r"""Cross-entropy by the first terms of its Taylor series.

  .. math:: \ell(z, y) = \sum_{i=1}^t (1 - p_y)^i / i

  t = 1 is `mae`; t to infinity is cross-entropy.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    order: t >= 1, a Python int (not traced: the number of terms).

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `order` is less than 1.

  >>> taylor_ce(jnp.zeros([1, 2]), jnp.array([0]), order=2).tolist()
  [0.625]

  Reference: Feng, Shu, Lin, Lv, Li, An, "Can Cross Entropy Loss Be Robust to
  Label Noise?", IJCAI 2020.
  """
  check_range('order', order, 1)
  logits, label = read(logits, labels)
  rest = -expm1(log_prob(logits, label))
  total = jnp.zeros_like(rest)
  for i in range(order, 0, -1):  # Horner
    total = rest * (1 / i + total)
  return expect(total, label)


def agce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  a: Scalar = 0.6,
  q: Scalar = 0.6,
) -> Array:
  r"""Asymmetric generalized cross-entropy.

  .. math:: \ell(z, y) = ((a + 1)^q - (a + p_y)^q) / q

  a = 0 is `gce`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    a: >= 0; with q: .6, .6 for CIFAR-10, 4, .2 for MNIST.
    q: >= 0; 0 is the limit log((a + 1) / (a + p_y)).

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `a` or `q` is out of range.

  >>> agce(jnp.zeros([1, 4]), jnp.array([2]), a=1., q=1.).tolist()
  [0.75]

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  check_range('a', a, 0)
  check_range('q', q, 0)
  logits, label = read(logits, labels)
  log_p = log_prob(logits, label)
  log_ratio = jnp.logaddexp(jnp.log(a), log_p) - jnp.log1p(a)
  losses = jnp.exp(q * jnp.log1p(a)) * logspace.box_cox(log_ratio, q)
  return expect(losses, label)


def aul(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  a: Scalar = 5.5,
  q: Scalar = 3.0,
) -> Array:
  r"""Asymmetric unhinged loss (AUE in the official code).

  .. math:: \ell(z, y) = ((a - p_y)^q - (a - 1)^q) / q

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    a: >= 1; with q: 5.5, 3 for CIFAR-10, 3, .1 for MNIST.
    q: > 0.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `a` or `q` is out of range.

  >>> aul(jnp.zeros([1, 4]), jnp.array([2]), a=2., q=1.).tolist()
  [0.75]

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  check_range('a', a, 1)
  check_range('q', q, 0, open_low=True)
  logits, label = read(logits, labels)
  rest = -expm1(log_prob(logits, label))
  least = jnp.asarray(a, rest.dtype) - 1
  power = logspace.raise_to(least + rest, q) - logspace.raise_to(least, q)
  return expect(power / q, label)


def ael(logits: ArrayLike, labels: ArrayLike, *, a: Scalar = 2.5) -> Array:
  r"""Asymmetric exponential loss.

  .. math:: \ell(z, y) = \exp(-p_y / a)

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    a: > 0; 2.5 for CIFAR-10, 3.5 for MNIST.

  Returns:
    [...], at least float32, in [exp(-1 / a), 1]: never 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `a` is out of range.

  >>> bool(ael(jnp.zeros(4), jnp.array(2), a=0.25) == jnp.exp(-1.))
  True

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  check_range('a', a, 0, open_low=True)
  logits, label = read(logits, labels)
  return expect(jnp.exp(-jnp.exp(log_prob(logits, label)) / a), label)
