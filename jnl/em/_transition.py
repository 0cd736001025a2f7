"""A transition matrix that is learned along with the network."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar
from jnl.em._inputs import read_square
from jnl.inputs import check_range

SMALLEST_NORM = 1e-12
"""What vectors are divided by at least when they are normalized."""


def noise_logits(weights: ArrayLike, *, scale: Scalar = 1.0) -> Array:
  r"""The logits of a transition from a learned matrix, normalized twice.

  .. math:: M = s \cdot \mathrm{rows}(\mathrm{columns}(W^\top))

  where columns and rows divide each column or row by its l2 norm, or by 1e-12
  if that is more. No row is longer than s, so that the scale is an inverse
  temperature: at 10 classes and scale 1 even W = I trusts a label with 0.23.

  Args:
    weights: W, [c, c]; the identity at first.
    scale: s > 0. The paper's code: 1 on CIFAR-10, 2 to 2.5 on CIFAR-100, .5 on
      Clothing1M.

  Returns:
    [c, c], at least float32. The gradient is finite also where a row or column
    is 0.

  Raises:
    TypeError, ValueError: if `weights` are not a square floating-point matrix,
      or `scale` is not positive.

  >>> noise_logits(jnp.array([[0., 0.], [2., 9.]])).tolist()
  [[0.0, 1.0], [0.0, 1.0]]

  Reference: Chen, Shah, Wang, Tao, Wang, Li, Xie, Sugiyama, Singh, Raj,
  "Imprecise Label Learning: A Unified Framework for Learning with Various
  Imprecise Label Configurations", NeurIPS 2024, arXiv 2305.12715. The
  normalization is that of the code.
  """
  check_range('scale', scale, 0, open_low=True)
  weights = read_square('weights', weights)
  return scale * _unit(_unit(weights.T, axis=0), axis=1)


def row_transition(weights: ArrayLike, *, scale: Scalar = 1.0) -> Array:
  """P(noisy = j | clean = k) [k, j]: softmax of `noise_logits` over j.

  Args:
    weights: see `noise_logits`.
    scale: see `noise_logits`.

  Returns:
    [c, c], rows on the simplex.

  Raises:
    TypeError, ValueError: as `noise_logits`.

  >>> f'{row_transition(jnp.eye(10))[0, 0]:.2f}'
  '0.23'
  """
  return jax.nn.softmax(noise_logits(weights, scale=scale), axis=1)


def column_transition(weights: ArrayLike, *, scale: Scalar = 1.0) -> Array:
  """The transition by columns [k, j]: softmax of `noise_logits` over k.

  The paper's code reads predictions through this matrix where it compares them
  with the labels, and through `row_transition` in the E-step. It weighs how
  often class k is behind label j if all labels are as frequent; normalized over
  j (`noisy_log_likelihood` does so), p T is a distribution again.

  Args:
    weights: see `noise_logits`.
    scale: see `noise_logits`.

  Returns:
    [c, c].

  Raises:
    TypeError, ValueError: as `noise_logits`.

  >>> w = jnp.array([[1., 2.], [0., 1.]])
  >>> column_transition(w).sum(0).tolist()
  [1.0, 1.0]
  """
  return jax.nn.softmax(noise_logits(weights, scale=scale), axis=0)


def _unit(x: Array, axis: int) -> Array:
  """Vectors along an axis, divided by their norms."""
  square = jnp.sum(x * x, axis=axis, keepdims=True)
  long = square > SMALLEST_NORM**2
  norm = jnp.sqrt(jnp.where(long, square, 1))
  return x / jnp.where(long, norm, SMALLEST_NORM)
