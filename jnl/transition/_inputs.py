"""What estimators read: labels, rows that count, neighbors by cosine."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, axis_is_bound, check, check_auto, is_concrete
from jnl.inputs import (
  as_array,
  check_simplex,
  read_floats,
  read_labels,
  read_row_mask,
  read_rows_of_probs,
)
from jnl.neighbors import Neighbors, knn


def read_where(mask: ArrayLike | None, n: int) -> Array:
  """Checks a mask [n] of bool, all true if None; outside jit one row counts."""
  mask = jnp.ones(n, bool) if mask is None else read_row_mask(mask, n)
  if is_concrete(mask):
    check(jnp.any(mask), 'mask must leave at least one row')
  return mask


def read_given(
  labels: ArrayLike, num_classes: int, mask: ArrayLike | None
) -> tuple[Array, Array]:
  """Labels [n] that are safe to gather, and which rows [n] count.

  Inside jit a row whose label is out of range does not count.
  """
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check_auto(labels, 'labels')
  labels = as_array('labels', labels)
  check(
    labels.ndim == 1 and len(labels) >= 1,
    f'labels must be [n], not empty, got shape {labels.shape}',
  )
  where = read_where(mask, len(labels))
  labels, valid = read_labels(labels, num_classes, where=where)
  return labels.astype(jnp.int32), where & valid


def read_probs(probs: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
  """Rows of probabilities [n, c], those that do not count uniform; which do."""
  check_auto(probs, 'probs')
  probs = read_floats('probs', probs)
  check(
    probs.ndim == 2 and len(probs) >= 1 and probs.shape[1] >= 2,
    f'probs must be [n, c] with n >= 1 and c >= 2, got shape {probs.shape}',
  )
  where = read_where(mask, len(probs))
  check_simplex('probs', probs, where=where)
  probs = probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
  probs = jnp.where(where[:, None], probs, 1 / probs.shape[1])
  return probs / jnp.sum(probs, axis=1, keepdims=True), where


def read_prior(prior: ArrayLike, c: int) -> Array:
  """Frequencies of the clean classes, [c] on the simplex."""
  prior = jnp.asarray(prior)
  check(prior.shape == (c,), f'prior must be [{c}], got shape {prior.shape}')
  return read_rows_of_probs(prior[None], 'prior')[0]


def read_index(index: ArrayLike, n: int, k: int) -> Array:
  """The first k columns of neighbors [n, >= k], none of them the row itself."""
  index = as_array('index', index)
  check(
    jnp.issubdtype(index.dtype, jnp.integer),
    f'index must be integers, got {index.dtype}',
    TypeError,
  )
  check(
    index.ndim == 2 and len(index) == n and index.shape[1] >= k,
    f'index must be [n, {k}] with n = {n} rows, or have more columns, got '
    f'shape {index.shape}',
  )
  index = index[:, :k].astype(jnp.int32)
  if is_concrete(index) and not axis_is_bound():
    check(jnp.all((index >= 0) & (index < n)), f'index must lie in [0, {n})')
    check(
      jnp.all(index != jnp.arange(n)[:, None]),
      'index must not name the row itself among its neighbors: its own label '
      'would agree with it. `jnl.neighbors.knn` leaves it out',
    )
  return index


def near_of(features: ArrayLike | Neighbors, k: int, where: Array) -> Neighbors:
  """The k nearest rows of each by cosine, which are found or given.

  Rows that do not count are nobody's neighbors where they are looked for.
  """
  n = len(where)
  if isinstance(features, Neighbors):
    index = read_index(features.index, n, k)
    distances = read_floats('distances', features.distances)
    check(
      distances.shape == features.index.shape,
      f'distances must have the shape of index, {features.index.shape}, got '
      f'{distances.shape}',
    )
    if is_concrete(distances, where):
      known = jnp.isfinite(distances) | ~where[:, None]
      check(jnp.all(known), 'distances must be finite')
    return Neighbors(index, distances[:, :k])
  points = _read_features(features, where)
  counted = int(jnp.sum(where)) if is_concrete(where) else n
  check(
    k < counted,
    f'features have {counted} rows that count: too few for {k} neighbors',
  )
  return knn(points, k, metric='cosine', mask=where)


def _read_features(features: ArrayLike, where: Array) -> Array:
  """[n, d], 0 where a row does not count."""
  check_auto(features, 'features')
  features = read_floats('features', features)
  check(
    features.ndim == 2
    and len(features) == len(where)
    and features.shape[1] >= 2,
    f'features must be [n, d] with a row of each of the {len(where)} labels '
    f'and d >= 2, since angles are compared, got shape {features.shape}',
  )
  features = jnp.where(where[:, None], features, 0)
  if is_concrete(features):
    check(jnp.all(jnp.isfinite(features)), 'features must be finite')
  return features
