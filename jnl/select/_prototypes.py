"""One vector for each class, and whom it is near to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Scalar, check, global_sum, is_concrete, whole
from jnl.inputs import check_between, check_range, read_floats, read_labels


class Nearest(NamedTuple):
  """Which prototype is nearest.

  Attributes:
    labels: [n] int32, its class.
    similarity: [n, c], cosines; -inf to a prototype of zeros.
  """

  labels: Array
  similarity: Array


def class_means(
  features: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  weights: ArrayLike | None = None,
  normalize: bool = True,
) -> Array:
  r"""The mean of the features of each class, its prototype.

  .. math:: c_k = \Big\langle \sum_{i: y_i = k} w_i \langle f_i \rangle
     \Big\rangle,\qquad \langle f \rangle = f / |f|

  Args:
    features: [n, d] floating-point.
    labels: [n] int in [0, c).
    num_classes: c.
    weights: [n] >= 0, or bool: how much each row counts. A row of weight 0
      leaves no trace.
    normalize: whether features and means are scaled to unit length; without,
      they are weighted means.

  Returns:
    [c, d], at least float32, the same on all devices; zeros for a class without
    examples, which `nearest_prototype` never finds.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if a
      feature that counts is not finite or its label out of range; inside jit
      such a label does not count.

  >>> features = jnp.array([[1., 0.], [0., 2.], [0., 4.]])
  >>> class_means(features, jnp.array([0, 1, 1]), 3).tolist()
  [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]

  Reference: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot
  Learning", NeurIPS 2017, arXiv 1703.05175.
  """
  features, rows = _read_features(features, weights)
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  check(
    np.shape(labels) == rows.shape,
    f'labels must be [n], {rows.shape}, got {np.shape(labels)}',
  )
  labels, valid = read_labels(labels, num_classes, where=rows > 0)
  features, labels, rows = map(
    whole, (features, labels, jnp.where(valid, rows, 0))
  )
  if normalize:
    features = _unit(features)
  sums = jnp.concatenate([features * rows[:, None], rows[:, None]], axis=1)
  sums = global_sum(jax.ops.segment_sum(sums, labels, num_classes))
  count = sums[:, -1:]
  means = sums[:, :-1] / jnp.where(count > 0, count, 1)
  return _unit(means) if normalize else means


def nearest_prototype(features: ArrayLike, prototypes: ArrayLike) -> Nearest:
  r"""The class whose prototype has the largest cosine with the features.

  .. math:: \arg\max_k \langle f \rangle \cdot \langle c_k \rangle

  Args:
    features: [n, d] floating-point.
    prototypes: [c, d], as of `class_means`.

  Returns:
    A `Nearest`. Features of zeros have the cosine 0 with all; of equal cosines
    the first class is taken.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit not
      finite.

  >>> nearest_prototype(jnp.array([[1., 3.]]), jnp.eye(2)).labels.tolist()
  [1]
  """
  features, _ = _read_features(features, None)
  prototypes = _read_prototypes(prototypes, features)
  some = jnp.any(prototypes != 0, axis=1)
  near = jnp.matmul(
    _unit(features), _unit(prototypes).T, precision=jax.lax.Precision.HIGHEST
  )
  near = jnp.where(some, near, -jnp.inf)
  return Nearest(jnp.argmax(near, axis=1).astype(jnp.int32), near)


def update_prototypes(
  prototypes: ArrayLike,
  features: ArrayLike,
  labels: ArrayLike,
  *,
  momentum: Scalar = 0.999,
  weights: ArrayLike | None = None,
) -> Array:
  r"""Prototypes moved towards the class means of a batch.

  .. math:: c_k \leftarrow \langle m\, c_k + (1 - m)\, \bar f_k \rangle

  with the means of `class_means` over the batch on all devices. MoPro moves
  them by one example after the other.

  Args:
    prototypes: [c, d]; one of zeros takes the mean as it is.
    features: [b, d] floating-point.
    labels: [b] int in [0, c).
    momentum: m in [0, 1].
    weights: [b] >= 0, or bool: how much each row counts.

  Returns:
    [c, d], of unit length; a class without examples stays.

  Raises:
    TypeError, ValueError: as `class_means`.

  >>> moved = update_prototypes(
  ...   jnp.eye(2), jnp.array([[0., 2.]]), jnp.array([0]), momentum=0.5)
  >>> moved.round(3).tolist()
  [[0.7070000171661377, 0.7070000171661377], [0.0, 1.0]]

  Reference: Li, Xiong, Hoi, "MoPro: Webly Supervised Learning with Momentum
  Prototypes", ICLR 2021, arXiv 2009.07995.
  """
  check_range('momentum', momentum, 0, 1)
  features, rows = _read_features(features, weights)
  prototypes = _read_prototypes(prototypes, features)
  means = class_means(features, labels, len(prototypes), weights=rows)
  moved = _unit(momentum * prototypes + (1 - momentum) * means)
  moved = jnp.where(jnp.any(prototypes != 0, 1, keepdims=True), moved, means)
  return jnp.where(jnp.any(means != 0, 1, keepdims=True), moved, prototypes)


def _read_features(
  features: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array]:
  """Features [n, d], zeros where the weight [n] is 0, and the weights."""
  features = read_floats('features', features)
  check(
    features.ndim == 2 and features.shape[1] >= 1,
    f'features must be [n, d], got shape {features.shape}',
  )
  features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  rows = jnp.ones(len(features), features.dtype)
  if weights is not None:
    check(
      np.shape(weights) == rows.shape,
      f'weights must be [n], {rows.shape}, got {np.shape(weights)}',
    )
    check_between('weights', weights, 0)
    rows = jnp.asarray(weights).astype(features.dtype)
  features = jnp.where(rows[:, None] > 0, features, 0)
  if is_concrete(features):
    check(jnp.all(jnp.isfinite(features)), 'features must be finite')
  return features, rows


def _read_prototypes(prototypes: ArrayLike, features: Array) -> Array:
  prototypes = read_floats('prototypes', prototypes)
  check(
    prototypes.ndim == 2 and prototypes.shape[1] == features.shape[1],
    f'prototypes must be [c, d] with d = {features.shape[1]}, got shape '
    f'{prototypes.shape}',
  )
  return prototypes.astype(features.dtype)


def _unit(x: Array) -> Array:
  """Rows of unit length; zeros, without a gradient, stay zeros."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
  x = x / jnp.where(largest > 0, largest, 1)  # its square is representable
  square = jnp.sum(x * x, axis=1, keepdims=True)
  return x / jnp.sqrt(jnp.where(square > 0, square, 1))
