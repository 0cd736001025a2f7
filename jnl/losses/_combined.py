"""Weighted sums of two losses: one fits, the other is robust.

CE is cross-entropy. Active and passive losses: an active one raises p_y, a
passive one also lowers the other probabilities. Active and negative ones: the
passive loss is an active one turned upside down.

Each raises what its two terms raise: TypeError or ValueError for malformed
logits and labels, ValueError for a hyperparameter, a weight too, out of range.

>>> import jax.numpy as jnp
>>> from jnl.losses import mae, nce
>>> z, y = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([2])
>>> total = nce_mae(z, y, alpha=10.0, beta=0.5)
>>> bool(jnp.allclose(total, 10.0 * nce(z, y) + 0.5 * mae(z, y)))
True

References:
  Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions for Deep
  Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning with Noisy
  Labels", ICML 2021, arXiv 2106.03110.
  Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for Learning with
  Noisy Labels", NeurIPS 2023.
"""

from jax.typing import ArrayLike

from jnl.base import Array, Scalar
from jnl.inputs import check_range
from jnl.losses._normalized import nce, nfl, ngce, nnce, nnfl
from jnl.losses._robust import LOG_ZERO, ael, agce, aul, mae, rce


def nce_rce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  """Normalized and reverse cross-entropy: alpha `nce` + beta `rce`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, .1 for
      CIFAR-100; 1, 10 for MNIST.
    log_zero, clip: see `rce`; the official code clips at 1e-7.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nce(logits, labels)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def nce_mae(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
) -> Array:
  """Normalized cross-entropy and absolute error: alpha `nce` + beta `mae`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, 1 for
      CIFAR-100; 1, 10 for MNIST.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nce(logits, labels)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def nfl_rce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  gamma: Scalar = 0.5,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  """Normalized focal loss and reverse CE: alpha `nfl` + beta `rce`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, .1 for
      CIFAR-100; 1, 10 for MNIST.
    gamma: >= 0, see `nfl`.
    log_zero, clip: see `rce`; the official code clips at 1e-7.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nfl(logits, labels, gamma=gamma)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def nfl_mae(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  gamma: Scalar = 0.5,
) -> Array:
  """Normalized focal loss and absolute error: alpha `nfl` + beta `mae`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, 1 for
      CIFAR-100; 1, 10 for MNIST.
    gamma: >= 0, see `nfl`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nfl(logits, labels, gamma=gamma)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def ngce_rce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  q: Scalar = 0.7,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  """Normalized generalized and reverse CE: alpha `ngce` + beta `rce`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, .1 for
      CIFAR-100; 1, 10 for MNIST.
    q: in [0, 1], see `ngce`.
    log_zero: see `rce`.
    clip: in [0, 1], see `ngce` and `rce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = ngce(logits, labels, q=q, clip=clip)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def ngce_mae(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  q: Scalar = 0.7,
  clip: Scalar = 0.0,
) -> Array:
  """Normalized generalized CE and absolute error: alpha `ngce` + beta `mae`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 1, 1 for CIFAR-10; 10, 1 for
      CIFAR-100; 1, 10 for MNIST.
    q: in [0, 1], see `ngce`.
    clip: in [0, 1], see `ngce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = ngce(logits, labels, q=q, clip=clip)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def nce_agce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 6.0,
  q: Scalar = 1.5,
) -> Array:
  """Normalized and asymmetric generalized CE: alpha `nce` + beta `agce`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published with a, q: 1, 4, 6, 1.5 for CIFAR-10;
      10, .1, 1.8, 3 for CIFAR-100.
    a: >= 0, see `agce`.
    q: >= 0, see `agce`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = agce(logits, labels, a=a, q=q)
  return _weighted(alpha, active, beta, passive)


def nce_aul(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 6.3,
  q: Scalar = 1.5,
) -> Array:
  """Normalized CE and asymmetric unhinged loss: alpha `nce` + beta `aul`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published with a, q: 1, 4, 6.3, 1.5 for CIFAR-10;
      10, .015, 6, 3 for CIFAR-100.
    a: >= 1, see `aul`.
    q: > 0, see `aul`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = aul(logits, labels, a=a, q=q)
  return _weighted(alpha, active, beta, passive)


def nce_ael(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 5.0,
) -> Array:
  """Normalized CE, asymmetric exponential loss: alpha `nce` + beta `ael`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published with a: 1, 4, 5 for CIFAR-10; 10, .1,
      1.5 for CIFAR-100.
    a: > 0, see `ael`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = ael(logits, labels, a=a)
  return _weighted(alpha, active, beta, passive)


def anl_ce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 5.0,
  beta: Scalar = 5.0,
  min_prob: Scalar = 1e-7,
  max_prob: Scalar = 1.0,
) -> Array:
  """Active negative loss of cross-entropy: alpha `nce` + beta `nnce`.

  The method adds the L1 norm of all parameters with a factor delta: 5e-5 for
  CIFAR-10, 5e-7 for CIFAR-100, 1e-6 for MNIST, in place of weight decay. Its
  variant ANL-CE-ER has `mean_entropy_gap` instead (and `max_prob` 1 - 1e-7).

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 5, 5 for CIFAR-10; 10, 1 for
      CIFAR-100; 1, 1 for MNIST.
    min_prob: in (0, 1 / c), see `nnce`.
    max_prob: in (1 / c, 1], see `nnce`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for
  Learning with Noisy Labels", NeurIPS 2023.
  """
  active = nce(logits, labels)
  passive = nnce(logits, labels, min_prob=min_prob, max_prob=max_prob)
  return _weighted(alpha, active, beta, passive)


def anl_fl(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: Scalar = 5.0,
  beta: Scalar = 5.0,
  gamma: Scalar = 0.5,
  min_prob: Scalar = 1e-7,
) -> Array:
  """Active negative loss of the focal loss: alpha `nfl` + beta `nnfl`.

  The L1 norm of the parameters is added as for `anl_ce`.

  Args:
    logits, labels: [..., c], and [...] int or [..., c] soft.
    alpha, beta: weights >= 0; published: 5, 5 for CIFAR-10; 10, 1 for
      CIFAR-100; 1, 1 for MNIST.
    gamma: >= 0, see `nfl`.
    min_prob: in (0, 1 / c), see `nnce`.

  Returns:
    [...], at least float32, >= 0.

  Reference: Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for
  Learning with Noisy Labels", NeurIPS 2023.
  """
  active = nfl(logits, labels, gamma=gamma)
  passive = nnfl(logits, labels, gamma=gamma, min_prob=min_prob)
  return _weighted(alpha, active, beta, passive)


def _weighted(
  alpha: Scalar, active: Array, beta: Scalar, passive: Array
) -> Array:
  check_range('alpha', alpha, 0)
  check_range('beta', beta, 0)
  return alpha * active + beta * passive
