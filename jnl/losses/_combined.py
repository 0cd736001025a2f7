"""Weighted sums of two losses: one fits, the other is robust.

Active and passive losses (Ma et al. 2020): an active one raises p_y, a passive
one also lowers the other probabilities. Active and negative ones (Ye et al.
2023): the passive loss is an active one turned upside down.
"""

from jnl.base import Array, Scalar
from jnl.inputs import check_range
from jnl.losses._normalized import nce, nfl, ngce, nnce, nnfl
from jnl.losses._robust import LOG_ZERO, ael, agce, aul, mae, rce


def nce_rce(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  r"""Normalized cross-entropy and reverse cross-entropy.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{RCE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, .1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `rce`, >= 0.
    log_zero: <= 0, see `rce`.
    clip: in [0, 1], see `rce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nce_rce(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nce(logits, labels)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def nce_mae(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
) -> Array:
  r"""Normalized cross-entropy and mean absolute error.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{MAE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, 1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `mae`, >= 0.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> import jax.numpy as jnp
  >>> nce_mae(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nce(logits, labels)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def nfl_rce(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  gamma: Scalar = 0.5,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  r"""Normalized focal loss and reverse cross-entropy.

  .. math:: \alpha\, \ell_{\mathrm{NFL}}
    + \beta\, \ell_{\mathrm{RCE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nfl`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, .1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `rce`, >= 0.
    gamma: >= 0, see `nfl`.
    log_zero: <= 0, see `rce`.
    clip: in [0, 1], see `rce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nfl_rce(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nfl(logits, labels, gamma=gamma)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def nfl_mae(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  gamma: Scalar = 0.5,
) -> Array:
  r"""Normalized focal loss and mean absolute error.

  .. math:: \alpha\, \ell_{\mathrm{NFL}}
    + \beta\, \ell_{\mathrm{MAE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nfl`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, 1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `mae`, >= 0.
    gamma: >= 0, see `nfl`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nfl_mae(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = nfl(logits, labels, gamma=gamma)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def ngce_rce(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  q: Scalar = 0.7,
  log_zero: Scalar = LOG_ZERO,
  clip: Scalar = 0.0,
) -> Array:
  r"""Normalized generalized cross-entropy and reverse cross-entropy.

  .. math:: \alpha\, \ell_{\mathrm{NGCE}}
    + \beta\, \ell_{\mathrm{RCE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `ngce`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, .1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `rce`, >= 0.
    q: in [0, 1], see `ngce`.
    log_zero: <= 0, see `rce`.
    clip: in [0, 1], see `ngce` and `rce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> ngce_rce(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = ngce(logits, labels, q=q, clip=clip)
  passive = rce(logits, labels, log_zero=log_zero, clip=clip)
  return _weighted(alpha, active, beta, passive)


def ngce_mae(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 1.0,
  q: Scalar = 0.7,
  clip: Scalar = 0.0,
) -> Array:
  r"""Normalized generalized cross-entropy and mean absolute error.

  .. math:: \alpha\, \ell_{\mathrm{NGCE}}
    + \beta\, \ell_{\mathrm{MAE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `ngce`, >= 0; 1, 1 (with beta) for CIFAR-10, 10, 1 for
      CIFAR-100, 1, 10 for MNIST.
    beta: weight of `mae`, >= 0.
    q: in [0, 1], see `ngce`.
    clip: in [0, 1], see `ngce`; 1e-7 in the official code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> ngce_mae(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """
  active = ngce(logits, labels, q=q, clip=clip)
  passive = mae(logits, labels)
  return _weighted(alpha, active, beta, passive)


def nce_agce(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 6.0,
  q: Scalar = 1.5,
) -> Array:
  r"""Normalized and asymmetric generalized cross-entropy.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{AGCE}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; with beta, a, q: 1, 4, 6, 1.5 for CIFAR-10,
      10, .1, 1.8, 3 for CIFAR-100.
    beta: weight of `agce`, >= 0.
    a: >= 0, see `agce`.
    q: >= 0, see `agce`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nce_agce(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = agce(logits, labels, a=a, q=q)
  return _weighted(alpha, active, beta, passive)


def nce_aul(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 6.3,
  q: Scalar = 1.5,
) -> Array:
  r"""Normalized cross-entropy and asymmetric unhinged loss.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{AUL}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; with beta, a, q: 1, 4, 6.3, 1.5 for
      CIFAR-10, 10, .015, 6, 3 for CIFAR-100.
    beta: weight of `aul`, >= 0.
    a: >= 1, see `aul`.
    q: > 0, see `aul`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nce_aul(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = aul(logits, labels, a=a, q=q)
  return _weighted(alpha, active, beta, passive)


def nce_ael(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 1.0,
  beta: Scalar = 4.0,
  a: Scalar = 5.0,
) -> Array:
  r"""Normalized cross-entropy and asymmetric exponential loss.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{AEL}}

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; with beta, a: 1, 4, 5 for CIFAR-10, 10, .1,
      1.5 for CIFAR-100.
    beta: weight of `ael`, >= 0.
    a: > 0, see `ael`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> nce_ael(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Zhou, Liu, Jiang, Gao, Ji, "Asymmetric Loss Functions for Learning
  with Noisy Labels", ICML 2021, arXiv 2106.03110.
  """
  active = nce(logits, labels)
  passive = ael(logits, labels, a=a)
  return _weighted(alpha, active, beta, passive)


def anl_ce(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 5.0,
  beta: Scalar = 5.0,
  min_prob: Scalar = 1e-7,
  max_prob: Scalar = 1.0,
) -> Array:
  r"""Active negative loss of cross-entropy.

  .. math:: \alpha\, \ell_{\mathrm{NCE}}
    + \beta\, \ell_{\mathrm{NNCE}}

  The method adds the L1 norm of all parameters with a factor delta: 5e-5 for
  CIFAR-10, 5e-7 for CIFAR-100, 1e-6 for MNIST, in place of weight decay. Its
  variant ANL-CE-ER has `mean_entropy_gap` instead (and `max_prob` 1 - 1e-7).

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nce`, >= 0; with beta: 5, 5 for CIFAR-10, 10, 1 for
      CIFAR-100, 1, 1 for MNIST.
    beta: weight of `nnce`, >= 0.
    min_prob: in (0, 1 / c), see `nnce`.
    max_prob: in (1 / c, 1], see `nnce`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> anl_ce(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

  Reference: Ye, Li, Dai, Liu, Sun, Tong, "Active Negative Loss Functions for
  Learning with Noisy Labels", NeurIPS 2023.
  """
  active = nce(logits, labels)
  passive = nnce(logits, labels, min_prob=min_prob, max_prob=max_prob)
  return _weighted(alpha, active, beta, passive)


def anl_fl(
  logits: Array,
  labels: Array,
  *,
  alpha: Scalar = 5.0,
  beta: Scalar = 5.0,
  gamma: Scalar = 0.5,
  min_prob: Scalar = 1e-7,
) -> Array:
  r"""Active negative loss of the focal loss.

  .. math:: \alpha\, \ell_{\mathrm{NFL}}
    + \beta\, \ell_{\mathrm{NNFL}}

  The method adds the L1 norm of all parameters with a factor delta: 5e-5 for
  CIFAR-10, 5e-7 for CIFAR-100, 1e-6 for MNIST, in place of weight decay.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    alpha: weight of `nfl`, >= 0; with beta: 5, 5 for CIFAR-10, 10, 1 for
      CIFAR-100, 1, 1 for MNIST.
    beta: weight of `nnfl`, >= 0.
    gamma: >= 0, see `nfl`.
    min_prob: in (0, 1 / c), see `nnce`.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> import jax.numpy as jnp
  >>> anl_fl(jnp.zeros([1, 4]), jnp.array([2]), alpha=4., beta=0.).tolist()
  [1.0]

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
