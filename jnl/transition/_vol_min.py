"""A transition matrix that is learned with the network, of least volume."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import losses
from jnl.base import Array, Scalar, check
from jnl.inputs import check_range, read_floats, read_transition


def vol_min_transition(weights: ArrayLike) -> Array:
  r"""The transition matrix of learned weights, largest on its diagonal.

  .. math:: T_{ij} = \frac{A_{ij}}{\sum_k A_{ik}}, \qquad
    A = I + (1 - I) \odot \sigma(W)

  No entry of a row is larger than that on the diagonal.

  Args:
    weights: W, [c, c] floating-point; the diagonal is not read. In the paper's
      code all -2 at first (-4.5 for the 100 classes of CIFAR-100), of which T
      keeps a label with probability 1 / (1 + (c - 1) sigma(W)).

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`, at least float32.

  Raises:
    TypeError, ValueError: if `weights` are no square floating-point matrix.

  >>> vol_min_transition(jnp.zeros([3, 3]))[0].tolist()
  [0.5, 0.25, 0.25]

  Reference: Li, Liu, Han, Niu, Sugiyama, "Provably End-to-end Label-noise
  Learning without Anchor Points", ICML 2021, arXiv 2102.02400.
  """
  weights = read_floats('weights', weights)
  check(
    weights.ndim == 2 and weights.shape[0] == weights.shape[1] >= 2,
    f'weights must be [c, c] with c >= 2, got shape {weights.shape}',
  )
  weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
  eye = jnp.eye(len(weights), dtype=bool)
  amounts = jnp.where(eye, 1, jax.nn.sigmoid(weights))
  return amounts / jnp.sum(amounts, axis=1, keepdims=True)


def vol_min_penalty(transition: ArrayLike) -> Array:
  r"""The logarithm of the volume that a transition matrix spans.

  .. math:: \log |\det T|

  Of all matrices that explain the noisy labels the one of least volume is the
  true one, if the posteriors of clean labels are spread widely enough.

  Args:
    transition: T, [c, c], rows on the simplex.

  Returns:
    [], at most 0; -inf for a matrix without inverse, where the gradient is NaN.

  Raises:
    TypeError, ValueError: as `jnl.inputs.read_transition`.

  >>> f'{vol_min_penalty([[.75, .25], [.25, .75]]):.4f}'
  '-0.6931'

  Reference: see `vol_min_transition`.
  """
  return jnp.linalg.slogdet(read_transition(transition)).logabsdet


def vol_min_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  *,
  lam: Scalar = 1e-4,
) -> Array:
  r"""The forward loss by a learned matrix, with a penalty on its volume.

  .. math:: \ell(z, y) = -\log (p\, T(W))_y + \lambda \log |\det T(W)|

  Network and matrix descend its mean together; the penalty is the same in every
  example.

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    weights: W, [c, c], see `vol_min_transition`. In the paper's code they are
      moved by SGD at .01 with momentum .9 (CIFAR-10) or Adam at .01 (MNIST,
      CIFAR-100), without weight decay.
    lam: lambda >= 0.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits`, `labels` or `weights` are malformed, or
      `lam` is negative.

  >>> z, y, w = jnp.array([4., 0.]), jnp.array(0), jnp.full([2, 2], -2.)
  >>> f'{vol_min_loss(z, y, w):.4f}'
  '0.1286'

  Reference: see `vol_min_transition`.
  """
  check_range('lam', lam, 0)
  transition = vol_min_transition(weights)
  fit = losses.forward(logits, labels, transition)
  return fit + (lam * vol_min_penalty(transition)).astype(fit.dtype)
