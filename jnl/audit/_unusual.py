"""Rows unlike all others, and rows that are there twice.

Scores lie in [0, 1], and a low one is unusual. They are made of what a model
says of a row, or of how far its features are from those of others.
"""

import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import neighbors
from jnl.audit._rows import as_given, is_jax, numbers, read_probs
from jnl.base import Array, Scalar, check, check_name, is_concrete
from jnl.inputs import check_range, check_simplex, read_floats

Method = Literal['entropy', 'least_confidence', 'gen']
CLOSE = 10
"""Neighbors that are looked at by default, where there are so many."""
FEW = 3
"""The most features for which the distance is Euclidean by default."""
SMALLEST = 100 * float(np.finfo(np.float64).eps)
"""The least scale of distances, as in the official code."""


class FeatureScores(NamedTuple):
  """How usual rows are, and in which unit that is measured.

  Attributes:
    scores: [n] in [0, 1], low is unusual.
    scale: [], the median of the mean distances to the k nearest; `ood_queries`
      asks for it.
  """

  scores: Any
  scale: Any


class NearDuplicates(NamedTuple):
  """Which rows are there more than once, or nearly so.

  Attributes:
    is_duplicate: [n] bool.
    group: [n] int32, the same number for rows that are tied to each other, in
      order of their first row; -1 for a row that is no duplicate.
    distances: [n], to the nearest other row, 0 where one is the same.
  """

  is_duplicate: Any
  group: Any
  distances: Any


# --- from probabilities ------------------------------------------------------


def ood_probs(
  pred_probs: ArrayLike,
  *,
  method: Method = 'entropy',
  thresholds: ArrayLike | None = None,
  top: int = 100,
  gamma: Scalar = 0.1,
) -> Any:
  r"""How sure a model is of each row, low where it has seen nothing alike.

  .. math::
    \text{entropy:}\ 1 + \tfrac1{\log c} \sum_k p_k \log p_k, \qquad
    \text{least confidence:}\ \max_k p_k, \qquad
    \text{GEN:}\ 1 - \tfrac1M \sum_{k \le M} [s_k (1 - s_k)]^\gamma

  GEN is that of cleanlab: s are the M largest of softmax(p), although p are
  probabilities already, and the sum is divided by M even where c < M. It ranks;
  its values are close to each other. The paper has s = p and sums alone.

  With thresholds t, of the labels and probabilities of the training set, p is
  replaced by p - t + max t, normalized, so that classes of which the model is
  never sure do not look unusual. (For GEN that is not advised.)

  Args:
    pred_probs: [..., c], of a model that did not see the row: out of sample.
    method: which score.
    thresholds: [c], as of `confident_thresholds`; by default none.
    top: M, for 'gen'.
    gamma: in (0, 1), for 'gen'.

  Returns:
    [...] in [0, 1]. Can be jitted and vmapped.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> print(ood_probs(np.array([[.5, .5], [.9, .1]])).round(2))
  [0.   0.53]

  Reference: Kuan, Mueller, "Back to the Basics: Revisiting Out-of-Distribution
  Detection Baselines", ICML 2022 workshop, arXiv 2207.03061; Hendrycks, Gimpel,
  "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
  Neural Networks", ICLR 2017, arXiv 1610.02136; Liu, Lochman, Zach, "GEN:
  Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
  """
  check_name('method', method, get_args(Method))
  given, probs = (pred_probs, thresholds), jnp.asarray(read_probs(pred_probs))
  check_simplex('pred_probs', numbers('pred_probs', pred_probs))
  c = probs.shape[-1]
  if thresholds is not None:
    thresholds = jnp.asarray(numbers('thresholds', thresholds), probs.dtype)
    check(
      thresholds.shape == (c,),
      f'thresholds must be [c] = [{c}], got shape {thresholds.shape}',
    )
    if is_concrete(thresholds):
      check(jnp.all(jnp.isfinite(thresholds)), 'thresholds must be finite')
  check(top >= 1, f'top must be at least 1, got {top}')
  check_range('gamma', gamma, 0, 1, open_low=True)
  scores = _of_probs(probs, thresholds, gamma, method=method, top=top)
  return as_given(scores, *given)


@functools.partial(jax.jit, static_argnames=('method', 'top'))
def _of_probs(
  probs: Array,
  thresholds: Array | None,
  gamma: Scalar,
  *,
  method: Method,
  top: int,
) -> Array:
  if thresholds is not None:
    probs = probs - thresholds + jnp.max(thresholds)
    probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
  if method == 'least_confidence':
    return jnp.max(probs, axis=-1)
  if method == 'gen':
    largest = jax.nn.softmax(probs)
    if top < probs.shape[-1]:
      largest = jax.lax.top_k(largest, top)[0]
    return 1 - jnp.sum((largest * (1 - largest)) ** gamma, axis=-1) / top
  some = probs > 0
  terms = jnp.where(some, probs * jnp.log(jnp.where(some, probs, 1)), 0)
  scores = 1 + jnp.sum(terms, axis=-1) / math.log(probs.shape[-1])
  return jnp.clip(scores, 0, 1)


# --- from features -----------------------------------------------------------


def ood_features(
  features: ArrayLike,
  *,
  k: int | None = None,
  t: Scalar = 1.0,
  metric: neighbors.Metric | None = None,
) -> FeatureScores:
  r"""How close each row is to the others, low for outliers.

  .. math::
    s_i = \exp(-t\, \bar d_i / \operatorname{median}_j \bar d_j)

  bar d is the mean distance to the k nearest other rows. A row that is the same
  counts among these at distance 0, also one of zeros under 'cosine'.

  Args:
    features: [n, d] floating-point, n >= 2.
    k: in [1, n - 1]; by default 10, or all others if these are fewer.
    t: > 0, how fast scores fall with the distance.
    metric: 'euclidean' or 'cosine', as in `jnl.neighbors.knn`; by default
      'cosine' of more than three features.

  Returns:
    `FeatureScores`, with the scale that `ood_queries` scores other rows by. Can
    be jitted and vmapped; there a feature that is not finite makes scores NaN.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> scores, scale = ood_features(np.array([[0.], [1.], [2.], [9.]]), k=1)
  >>> print(scores.round(3), scale)
  [0.368 0.368 0.368 0.001] 1.0

  Reference: Kuan, Mueller, "Back to the Basics: Revisiting Out-of-Distribution
  Detection Baselines", ICML 2022 workshop, arXiv 2207.03061.
  """
  given, points = features, _read_features('features', features)
  metric, k = _defaults(points, metric, k)
  check_range('t', t, 0, open_low=True)
  found = neighbors.knn(points, k, metric=metric)
  return as_given(_of_features(points, *found, t, metric=metric), given)


def ood_queries(
  queries: ArrayLike,
  features: ArrayLike,
  scale: Scalar,
  *,
  k: int | None = None,
  t: Scalar = 1.0,
  metric: neighbors.Metric | None = None,
) -> Any:
  """How close each row of another set is to the rows of a training set.

  The score of `ood_features`, with the distances to the k nearest rows of the
  training set and its scale. The same rows asked here again are at distance 0
  from themselves, and score higher than there.

  Args:
    queries: [q, d] floating-point, to be scored.
    features: [n, d], of the training set.
    scale: [] >= 0, `ood_features(features).scale`, made with the same k and
      metric.
    k: in [1, n]; by default as in `ood_features`.
    t: > 0, how fast scores fall with the distance.
    metric: by default as in `ood_features`.

  Returns:
    [q] in [0, 1]. Can be jitted and vmapped; there a feature that is not finite
    makes scores NaN.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> train = np.array([[0.], [1.], [2.], [9.]])
  >>> scale = ood_features(train, k=1).scale
  >>> print(ood_queries(np.array([[1.], [4.]]), train, scale, k=1).round(3))
  [1.    0.135]

  Reference: see `ood_features`.
  """
  given = queries, features, scale
  rows = _read_features('queries', queries, 1)
  points = _read_features('features', features)
  check(
    rows.shape[1] == points.shape[1],
    f'queries must have the {points.shape[1]} columns of features, got shape '
    f'{rows.shape}',
  )
  metric, k = _defaults(points, metric, k)
  check_range('scale', scale, 0)
  check_range('t', t, 0, open_low=True)
  found = neighbors.nearest(rows, points, k, metric=metric)
  scores = _score(_rounded(found.distances, metric).mean(1), scale, t)
  return as_given(scores, *given)


def near_duplicates(
  features: ArrayLike,
  *,
  fraction: Scalar = 0.13,
  quantile: Scalar = 0.5,
  metric: neighbors.Metric | None = None,
  k: int | None = None,
) -> NearDuplicates:
  """Rows that are there more than once, or nearly, and which belong together.

  Two rows are tied if they are the same, or if one is among the k nearest of
  the other and closer than `fraction` of the `quantile` of all distances to the
  nearest other row. A group is what ties connect. Rows that are the same are
  duplicates whatever the quantile, 0 too, however many they are.

  Args:
    features: [n, d] floating-point, n >= 2.
    fraction: >= 0.
    quantile: in [0, 1]; .5 is the median.
    metric: 'euclidean' or 'cosine', as in `jnl.neighbors.knn`; by default
      'cosine' of more than three features.
    k: in [1, n - 1]; by default 10, or all others if these are fewer.

  Returns:
    `NearDuplicates`. Can be jitted and vmapped; there a feature that is not
    finite makes distances NaN.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> x = np.array([5., 1., 5.01, 3., 7., 1., 9., 12., 15.])
  >>> print(near_duplicates(x[:, None]).group)
  [ 0  1  0 -1 -1  1 -1 -1 -1]
  """
  given, points = features, _read_features('features', features)
  metric, k = _defaults(points, metric, k)
  check_range('fraction', fraction, 0)
  check_range('quantile', quantile, 0, 1)
  found = neighbors.knn(points, k, metric=metric)
  groups = _groups(points, *found, fraction, quantile, metric=metric)
  return as_given(groups, given)


def _read_features(name: str, features: ArrayLike, least: int = 2) -> Array:
  if not is_jax(features):
    numbers(name, features)
  x = read_floats(name, features)
  check(
    x.ndim == 2 and len(x) >= least and x.shape[1] >= 1,
    f'{name} must be [n, d] with n >= {least}, got shape {x.shape}',
  )
  if is_concrete(x):
    finite = np.asarray(jnp.all(jnp.isfinite(x), axis=1))
    check(finite.all(), f'{name} must be finite; row {finite.argmin()} is not')
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _defaults(
  points: Array, metric: neighbors.Metric | None, k: int | None
) -> tuple[neighbors.Metric, int]:
  n, d = points.shape
  if metric is None:
    metric = 'cosine' if d > FEW else 'euclidean'
  check_name('metric', metric, get_args(neighbors.Metric))
  return metric, min(CLOSE, n - 1) if k is None else k


@functools.partial(jax.jit, static_argnames='metric')
def _of_features(
  points: Array,
  index: Array,
  distances: Array,
  t: Scalar,
  *,
  metric: neighbors.Metric,
) -> FeatureScores:
  k, first = index.shape[1], _first_twin(points)
  twins = jnp.zeros_like(first).at[first].add(1)[first] - 1
  # All twins come first, at distance 0, also those that the search overlooked.
  apart = jnp.where(first[index] == first[:, None], jnp.inf, distances)
  apart = jnp.sort(_rounded(apart, metric), axis=1)
  others = jnp.arange(k) < k - twins[:, None]
  mean = jnp.sum(jnp.where(others, apart, 0), axis=1) / k
  scale = jnp.maximum(jnp.median(mean), SMALLEST)
  return FeatureScores(_score(mean, scale, t), scale)


def _score(distances: Array, scale: Scalar, t: Scalar) -> Array:
  scale = jnp.asarray(scale, distances.dtype)
  return jnp.exp(-t * distances / jnp.maximum(scale, SMALLEST))


def _rounded(distances: Array, metric: neighbors.Metric) -> Array:
  """0 where that is what rows of unit length differ by after rounding."""
  if metric == 'euclidean':
    return distances
  least = (8 * float(jnp.finfo(distances.dtype).eps)) ** 2
  return jnp.where(distances <= least, 0, distances)


# --- groups ------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames='metric')
def _groups(
  points: Array,
  index: Array,
  distances: Array,
  fraction: Scalar,
  quantile: Scalar,
  *,
  metric: neighbors.Metric,
) -> NearDuplicates:
  n, first = len(points), _first_twin(points)
  same = jnp.zeros_like(first).at[first].add(1)[first] > 1
  distances = _rounded(distances, metric)
  nearest = jnp.where(same, 0, distances[:, 0])
  near = fraction * jnp.quantile(nearest, quantile)
  tied = (distances < near) | (distances == 0)
  # A twin may not be among the nearest: each is tied to the first one.
  index = jnp.concatenate([index, first[:, None]], axis=1)
  tied = jnp.concatenate([tied, same[:, None]], axis=1)

  root = _components(index, tied)
  rows = jnp.arange(n, dtype=jnp.int32)
  several = jnp.zeros(n, jnp.int32).at[root].add(1) > 1
  number = jnp.cumsum((root == rows) & several, dtype=jnp.int32) - 1
  duplicate = several[root]
  group = jnp.where(duplicate, number[root], -1)
  return NearDuplicates(duplicate, group, nearest)


def _components(index: Array, tied: Array) -> Array:
  """[n]: the lowest row that each is connected to by ties [n, k]."""
  n = len(index)
  index = jnp.where(tied, index, n)

  def step(carry: tuple[Array, Any]) -> tuple[Array, Array]:
    old, _ = carry
    best = old.at[index].get(mode='fill', fill_value=n)
    best = jnp.minimum(old, jnp.min(best, axis=1))
    # Both ends of a tie, and what stands for the row until now, hear of it.
    root = best.at[index].min(best[:, None], mode='drop')
    root = root.at[old].min(best)
    root = root[root]
    return root, jnp.any(root != old)

  start = jnp.arange(n, dtype=jnp.int32), jnp.asarray(True)
  return jax.lax.while_loop(lambda carry: carry[1], step, start)[0]


def _first_twin(x: Array) -> Array:
  """[n] int32: the first row that is the same as each.

  Rows are sorted by 64 bits made of theirs, then compared with the one before.
  What is called the same is the same; one pair in 2^64 is overlooked.
  """
  x = jnp.where(x == 0, 0, x)  # -0 is 0
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(len(x), -1)
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = bits ^ (bits >> 13)
  odd = (
    np.random.default_rng(0).integers(0, 1 << 31, (2, bits.shape[1])) * 2 + 1
  )
  keys = [jnp.sum(bits * jnp.asarray(m, jnp.uint32), axis=1) for m in odd]
  order = jnp.lexsort(keys)
  new = jnp.any(x[order[1:]] != x[order[:-1]], axis=1)
  new = jnp.concatenate([jnp.ones(1, bool), new])
  start = jax.lax.cummax(jnp.where(new, jnp.arange(len(x)), 0))
  first = order[start].astype(jnp.int32)
  return jnp.zeros(len(x), jnp.int32).at[order].set(first)
