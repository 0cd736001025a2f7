"""What to do with risks that cannot be negative, and are estimated as such.

A risk that is a difference of means, as it is where labels say what an example
is not or where there are positives alone, falls below zero as soon as a network
is flexible enough, and goes on falling: it overfits. These functions make one
number of partial risks.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check
from jnl.inputs import check_range, read_floats


def clip_risks(risks: ArrayLike) -> Array:
  r"""The sum of risks without those that are negative (NN).

  .. math:: \sum_k \max(0, R_k)

  Args:
    risks: R, [..., k], each a ratio of sums over all examples of all devices.

  Returns:
    [...], at least float32; NaN if a risk is.

  Raises:
    TypeError: if `risks` are no floats.
    ValueError: if they are a scalar.

  >>> float(clip_risks(jnp.array([2.0, -1.0])))
  2.0

  Reference: Ishida, Niu, Menon, Sugiyama, "Complementary-Label Learning for
  Arbitrary Losses and Models", ICML 2019, arXiv 1810.04327.
  """
  risks = _read(risks)
  return jnp.sum(jnp.where(risks < 0, 0, risks), axis=-1)


def abs_risks(risks: ArrayLike) -> Array:
  r"""The sum of risks by their size.

  .. math:: \sum_k |R_k|

  Args:
    risks: R, [..., k], each a ratio of sums over all examples of all devices.

  Returns:
    [...], at least float32.

  Raises:
    TypeError: if `risks` are no floats.
    ValueError: if they are a scalar.

  >>> float(abs_risks(jnp.array([2.0, -1.0])))
  3.0

  Reference: Wang, Ishida, Zhang, Niu, Sugiyama, "Learning with Complementary
  Labels Revisited: The Selected-Completely-at-Random Setting Is More
  Practical", ICML 2024, arXiv 2311.15502, where it corrects each class.
  """
  risks = _read(risks)
  return jnp.sum(jnp.abs(risks), axis=-1)


def ascend_risks(
  risks: ArrayLike, *, beta: Scalar = 0.0, gamma: Scalar = 1.0
) -> Array:
  r"""The sum of risks, or the way back where one is too negative (GA).

  .. math::
    \begin{cases}
      \sum_k R_k & \min_k R_k \ge -\beta \\
      -\gamma \sum_k \min(0, R_k) & \text{otherwise}
    \end{cases}

  so that gradient descent climbs out of what has overfitted, and does nothing
  else meanwhile.

  Args:
    risks: R, [..., k], each a ratio of sums over all examples of all devices:
      then all devices take the same branch.
    beta: how far below zero a risk may be, >= 0.
    gamma: the pace of the way back, >= 0.

  Returns:
    [...], at least float32; NaN if a risk is.

  Raises:
    TypeError: if `risks` are no floats.
    ValueError: if they are a scalar, or `beta` or `gamma` is negative.

  >>> risks = jnp.array([2.0, -1.0])
  >>> float(ascend_risks(risks)), float(ascend_risks(risks, beta=3.0))
  (1.0, 1.0)

  Reference: Kiryo, Niu, du Plessis, Sugiyama, "Positive-Unlabeled Learning with
  Non-Negative Risk Estimator", NeurIPS 2017, arXiv 1703.00593, for one risk;
  Ishida, Niu, Menon, Sugiyama, "Complementary-Label Learning for Arbitrary
  Losses and Models", ICML 2019, arXiv 1810.04327, for one of each class.
  """
  check_range('beta', beta, 0)
  check_range('gamma', gamma, 0)
  risks = _read(risks)
  back = -gamma * jnp.sum(jnp.where(risks >= 0, 0, risks), axis=-1)
  total = jnp.sum(risks, axis=-1)
  return jnp.where(jnp.any(risks < -beta, axis=-1), back, total)


def _read(risks: ArrayLike) -> Array:
  """In at least float32."""
  risks = read_floats('risks', risks)
  check(risks.ndim > 0, 'risks must be [..., k], got a scalar')
  return risks.astype(jnp.promote_types(risks.dtype, jnp.float32))
