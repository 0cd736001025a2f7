"""Normalized losses: a loss divided by its sum over all labels.

Any loss becomes symmetric (its sum over the labels constant) and so robust;
what it loses in fit, the combinations in `combined.py` give back.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import inputs, logspace
from jnl.base import Array, Scalar, check
from jnl.inputs import check_range
from jnl.losses._labels import expect, log_prob, read
from jnl.losses._robust import mae, rce


def nce(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""Normalized cross-entropy: of the label, over the sum of all classes.

  .. math:: \ell(z, y) = \log p_y \Big/ \sum_k \log p_k

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, in [0, 1]; the sum over all labels is 1.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> nce(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.25]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  logits, label = read(logits, labels)
  total = logits.shape[-1] * logspace.mean_log_prob(logits)
  return expect(log_prob(logits, label) / total, label)


def nmae(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""Normalized mean absolute error: of the label, over the sum of all classes.

  .. math:: \ell(z, y) = (1 - p_y) / (c - 1)

  The paper's form; its code returns half of it. `mae` is symmetric as it is, so
  that normalizing only scales it.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, >= 0; the sum over all labels is 1.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> nmae(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.25]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  return mae(logits, labels) / (np.shape(logits)[-1] - 1)


def nrce(logits: ArrayLike, labels: ArrayLike, *, clip: Scalar = 0.0) -> Array:
  r"""Normalized reverse cross-entropy: of the label, over the sum of all.

  .. math:: \ell(z, y) = (1 - p_y) / (c - 1)

  The paper's form, in which A = log 0 cancels; without a clip it is `nmae`. The
  official code instead returns -A (c - 1)^2 / 4 times this, A = log(1e-4).

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    clip: see `rce`.

  Returns:
    [...], at least float32, >= 0; the sum over all labels is 1.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `clip` is out of range.

  >>> nrce(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.25]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  reverse = rce(logits, labels, log_zero=-1.0, clip=clip)
  return reverse / (np.shape(logits)[-1] - 1)


def ngce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  q: Scalar = 0.7,
  clip: Scalar = 0.0,
) -> Array:
  r"""Normalized generalized cross-entropy: of the label, over the sum of all.

  .. math:: \ell(z, y) = (1 - p_y^q) \Big/ \Bigl(c - \sum_k p_k^q\Bigr)

  q = 0 is `nce`, q = 1 is `nmae`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    q: in [0, 1]; .7 for CIFAR, .1 for MNIST.
    clip: the probabilities are raised to it, which stops the gradient below.
      The official code takes 1e-7; the default keeps the gradient.

  Returns:
    [...], at least float32, in [0, 1]; the sum over all labels is 1.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `q` or `clip` is out of range.

  >>> ngce(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.25]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  check_range('q', q, 0, 1)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  if logspace.is_zero(clip):
    total = logspace.sum_box_cox(logits, q)
  else:
    every = logspace.floor(logspace.log_probs(logits), clip)
    total = jnp.sum(logspace.box_cox(every, q), axis=-1, keepdims=True)
  own = logspace.floor(log_prob(logits, label), clip)
  return expect(logspace.box_cox(own, q) / total, label)


def focal(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  gamma: Scalar = 0.5,
  detach: bool = False,
) -> Array:
  r"""Focal loss: cross-entropy weighted down where the example is easy.

  .. math:: \ell(z, y) = -(1 - p_y)^\gamma \log p_y

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    gamma: >= 0; .5 in the noisy-label papers, 2 in object detection.
    detach: treats the factor (1 - p_y)^gamma as constant in the gradient, as
      the noisy-label codebases do; the default is the gradient of the equation.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `gamma` is negative.

  >>> bool(focal(jnp.zeros(4), jnp.array(2), gamma=1.) == 0.75 * jnp.log(4.))
  True

  Reference: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object
  Detection", ICCV 2017, arXiv 1708.02002.
  """
  check_range('gamma', gamma, 0)
  logits, label = read(logits, labels)
  return expect(_focal(log_prob(logits, label), gamma, detach), label)


def nfl(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  gamma: Scalar = 0.5,
  detach: bool = True,
) -> Array:
  r"""Normalized focal loss: of the label, over the sum of all classes.

  .. math:: \ell(z, y) = \frac{(1 - p_y)^\gamma \log p_y}
    {\sum_k (1 - p_k)^\gamma \log p_k}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    gamma: >= 0; 0 is `nce`.
    detach: treats the factors (1 - p)^gamma as constants in the gradient. The
      default, as in the official code of the paper.

  Returns:
    [...], at least float32, in [0, 1]; the sum over all labels is 1.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `gamma` is negative.

  >>> nfl(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.25]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  check_range('gamma', gamma, 0)
  logits, label = read(logits, labels)
  every = _focal(logspace.log_probs(logits), gamma, detach)
  total = jnp.sum(every, axis=-1, keepdims=True)
  own = _focal(log_prob(logits, label), gamma, detach)
  return expect(own / total, label)


def nnce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  min_prob: Scalar = 1e-7,
  max_prob: Scalar = 1.0,
) -> Array:
  r"""Normalized negative cross-entropy, a passive loss.

  .. math:: \ell(z, y) = 1 - \frac{A + \log p_y}{\sum_k (A + \log p_k)},
    \qquad A = -\log p_{\min}

  Probabilities are clipped to [min_prob, max_prob], which belongs to the
  method: classes below have no gradient.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    min_prob: in (0, 1 / c).
    max_prob: in (1 / c, 1]; the code of ANL-CE-ER has 1 - min_prob.

  Returns:
    [...], at least float32, in [0, 1].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `min_prob` or `max_prob` is out of range.

  >>> nnce(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.75]

  Reference: Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for
  Learning with Noisy Labels", NeurIPS 2023.
  """
  logits, label = read(logits, labels)
  _check_min_prob(min_prob, logits)
  check_range('max_prob', max_prob, 1 / logits.shape[-1], 1)

  def surplus(log_p: Array) -> Array:
    most = jnp.log(max_prob)
    log_p = jnp.where(log_p > most, most, log_p)
    return logspace.floor(log_p, min_prob) - jnp.log(min_prob)

  total = jnp.sum(surplus(logspace.log_probs(logits)), axis=-1, keepdims=True)
  return expect(1 - surplus(log_prob(logits, label)) / total, label)


def nnfl(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  gamma: Scalar = 0.5,
  min_prob: Scalar = 1e-7,
  detach: bool = True,
) -> Array:
  r"""Normalized negative focal loss, a passive loss.

  .. math:: \ell(z, y) = 1 - \frac{A - f(p_y)}{\sum_k (A - f(p_k))},\qquad
    f(p) = -(1 - p)^\gamma \log p,\quad A = f(p_{\min})

  Probabilities are clipped to at least min_prob, as in `nnce`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    gamma: >= 0; 0 is `nnce`.
    min_prob: in (0, 1 / c).
    detach: see `nfl`.

  Returns:
    [...], at least float32, in [0, 1].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `gamma` or `min_prob` is out of range.

  >>> nnfl(jnp.zeros([1, 4]), jnp.array([2])).tolist()
  [0.75]

  Reference: Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for
  Learning with Noisy Labels", NeurIPS 2023.
  """
  check_range('gamma', gamma, 0)
  logits, label = read(logits, labels)
  _check_min_prob(min_prob, logits)
  least = jnp.log(jnp.asarray(min_prob, logits.dtype))

  def surplus(log_p: Array) -> Array:
    log_p = logspace.floor(log_p, min_prob)
    return _focal(least, gamma, detach) - _focal(log_p, gamma, detach)

  total = jnp.sum(surplus(logspace.log_probs(logits)), axis=-1, keepdims=True)
  return expect(1 - surplus(log_prob(logits, label)) / total, label)


def _focal(log_p: Array, gamma: Scalar, detach: bool) -> Array:
  factor = logspace.raise_to(-logspace.expm1(log_p), gamma)
  if detach:
    factor = jax.lax.stop_gradient(factor)
  else:
    log_p = logspace.bounded(log_p)  # its product with the slope of the factor
  return -factor * log_p


def _check_min_prob(min_prob: Scalar, logits: Array) -> None:
  # From 1 / c on the normalizer could be 0.
  inputs.check_scalar('min_prob', min_prob)
  classes = logits.shape[-1]
  check(
    (min_prob > 0) & (min_prob < 1 / classes),
    f'min_prob must lie in (0, 1 / c) = (0, {1 / classes:.3g}), got {min_prob}',
  )
