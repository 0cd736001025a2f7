r"""Who is near whom: exact nearest neighbors, kernels, and graphs of them.

Distances are never held for all pairs: a block of queries meets all points, and
only the best of each are kept. What comes out can be made a `Graph`, in which
each tie is held at both of its ends.
"""

import functools
import importlib.util
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
import numpy as np

from jnl.base import (
  AXIS,
  PAD,
  Array,
  Scalar,
  check,
  check_auto,
  is_concrete,
  mesh_of,
)
from jnl.inputs import read_floats, read_row_mask

Metric = Literal['euclidean', 'cosine']
Search = Literal['exact', 'approximate', 'faiss']
GROUP = 32
"""Points whose best stands for all of them in the first round of a search."""
SPARE = 8
"""Neighbors found beyond k, of which rounding may have hidden a nearer one."""
BLOCK = 1 << 24
"""Similarities computed at a time."""


class Neighbors(NamedTuple):
  """The k nearest points of each query.

  Attributes:
    index: [q, k] int32, nearest first. Of points at the same distance any may
      be kept; those that are stand in order of their index. `PAD` where a mask
      leaves fewer than k.
    distances: [q, k], at least float32; there infinite.
  """

  index: Array  # type: ignore[assignment]  # hides tuple.index; as in batches
  distances: Array


def knn(
  points: ArrayLike,
  k: int,
  *,
  metric: Metric = 'euclidean',
  search: Search = 'exact',
  mask: ArrayLike | None = None,
) -> Neighbors:
  r"""The k nearest of the other points, of each point.

  `euclidean` is `|x - y|`; `cosine` is `1 - x.y / (|x| |y|)`, and 1 to and from
  a vector of zeros. Duplicates are at distance 0; a point is not its own
  neighbor.

  Candidates are ranked by one matrix product over a block of queries; k + 8 of
  them are ranked again by distances of full precision. Points that are split
  over devices (`P('data')` on the first axis) are searched by each for its own,
  which needs all points there once.

  Args:
    points: [n, d] floating-point; float16 and bfloat16 are read as float32.
    k: in [1, n - 1].
    metric: which distance.
    search: 'exact'; 'approximate' (`jax.lax.approx_max_k`, made for TPUs; it
      finds 99 of 100 or more on average); 'faiss' (exact, on the host, if it is
      installed: not inside jit).
    mask: [n] bool, the points that count; by default all. The others may hold
      anything: they are nobody's neighbors and have none.

  Returns:
    `Neighbors` with q = n. Inside jit a point that is not finite makes
    distances NaN.

  Raises:
    TypeError, ValueError: if `points` is no finite [n, d] or split over an
      explicit mesh axis, k is out of range, an option is unknown, or faiss is
      not installed or asked inside jit.

  >>> knn(jnp.array([[0.], [1.], [3.]]), 1).index.ravel().tolist()
  [1, 0, 1]
  """
  points, mask = _read_points('points', points, mask)
  n = len(points)
  check(1 <= k < n, f'k must lie between 1 and n - 1 = {n - 1}, got {k}')
  found = _find(points, None, k, metric, search, mask)
  return found if mask is None else _kept(found, mask[:, None])


def nearest(
  queries: ArrayLike,
  points: ArrayLike,
  k: int,
  *,
  metric: Metric = 'euclidean',
  search: Search = 'exact',
  mask: ArrayLike | None = None,
) -> Neighbors:
  """The k nearest points of each query.

  As `knn`, but between two sets of points.

  Args:
    queries: [q, d] floating-point.
    points: [n, d] floating-point.
    k: in [1, n].
    metric: which distance.
    search: how, as in `knn`.
    mask: [n] bool, the points that count; by default all.

  Returns:
    `Neighbors` with `index` into `points`.

  Raises:
    TypeError, ValueError: as `knn`.

  >>> nearest(jnp.array([[2.1]]), jnp.array([[0.], [1.], [3.]]), 2).index
  Array([[2, 1]], dtype=int32)
  """
  queries, _ = _read_points('queries', queries)
  points, mask = _read_points('points', points, mask)
  check(
    queries.shape[1] == points.shape[1],
    f'queries must have the {points.shape[1]} columns of points, got shape '
    f'{queries.shape}',
  )
  n = len(points)
  check(1 <= k <= n, f'k must lie between 1 and n = {n}, got {k}')
  return _find(points, queries, k, metric, search, mask)


def _read_points(
  name: str, points: ArrayLike, mask: ArrayLike | None = None
) -> tuple[Array, Array | None]:
  """Points [n, d] in at least float32, 0 outside the mask [n]; and the mask."""
  check_auto(points, name)
  points = read_floats(name, points)
  check(
    points.ndim == 2 and points.shape[0] >= 1 and points.shape[1] >= 1,
    f'{name} must be [n, d], not empty, got shape {points.shape}',
  )
  if mask is not None:
    mask = read_row_mask(mask, len(points))
    points = jnp.where(mask[:, None], points, 0)
  if is_concrete(points):
    check(jnp.all(jnp.isfinite(points)), f'{name} must be finite')
  points = points.astype(jnp.promote_types(points.dtype, jnp.float32))
  return points, mask


def _check_metric(metric: Metric) -> None:
  check(
    metric in get_args(Metric),
    f'metric must be one of {get_args(Metric)}, got {metric!r}',
  )


def _find(
  points: Array,
  queries: Array | None,
  k: int,
  metric: Metric,
  search: Search,
  mask: Array | None,
) -> Neighbors:
  """Either way of searching, for checked arrays; no queries: the points."""
  _check_metric(metric)
  check(
    search in get_args(Search),
    f'search must be one of {get_args(Search)}, got {search!r}',
  )
  if search == 'faiss':
    installed = importlib.util.find_spec('faiss') is not None
    check(installed, "search='faiss' needs faiss installed")
    check(
      is_concrete(points, queries),
      "search='faiss' runs on the host, not inside jit: use 'exact'",
    )
    return _find_by_faiss(points, queries, k, metric, mask)
  mesh = mesh_of(points if queries is None else queries)
  return _find_on_devices(
    points, queries, mask, k, metric, search == 'approximate', mesh
  )


def _kept(found: Neighbors, there: Array) -> Neighbors:
  """Without those that are not there, [q, k] or [q, 1]."""
  return Neighbors(
    jnp.where(there, found.index, PAD),
    jnp.where(there, found.distances, jnp.inf),
  )


# --- on the devices ----------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _find_on_devices(
  points: Array,
  queries: Array | None,
  mask: Array | None,
  k: int,
  metric: Metric,
  approximate: bool,
  mesh: Mesh | None,
) -> Neighbors:
  points, queries = _centered(points, queries, metric)
  if queries is None:
    own = jnp.arange(len(points), dtype=jnp.int32)
    queries = points
  else:
    own = jnp.full(len(queries), -1, jnp.int32)
  search = functools.partial(
    _search, k=k, metric=metric, approximate=approximate
  )
  if mesh is not None:
    search = jax.shard_map(
      search,
      mesh=mesh,
      in_specs=(P(AXIS), P(AXIS), P(), P()),
      out_specs=P(AXIS),
    )
  return search(queries, own, points, mask)


def _centered(
  points: Array, queries: Array | None, metric: Metric
) -> tuple[Array, Array | None]:
  """Moved so that a product loses least: to the mean, or to unit length."""
  if metric == 'cosine':
    return _unit(points), None if queries is None else _unit(queries)
  mean = jnp.mean(points, axis=0)
  return points - mean, None if queries is None else queries - mean


def _unit(x: Array) -> Array:
  largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)  # its square is representable
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.where(norm > 0, norm, 1)


def _search(
  queries: Array,
  own: Array,
  points: Array,
  mask: Array | None,
  *,
  k: int,
  metric: Metric,
  approximate: bool,
) -> Neighbors:
  """Block by block of queries [q, d]; point `own` [q] of each is left out."""
  (q, d), n = queries.shape, len(points)
  # By columns, and the point i + j * groups in group i, both for one reading
  # of memory in a row: padded with points that nobody is near to.
  groups = math.ceil(n / GROUP)
  missing = groups * GROUP - n
  columns = jnp.pad(points, ((0, missing), (0, 0))).T
  half = jnp.sum(points * points, axis=1) / 2 if metric == 'euclidean' else 0.0
  half = jnp.broadcast_to(jnp.asarray(half, points.dtype), n)
  if mask is not None:
    half = jnp.where(mask, half, jnp.inf)
  half = jnp.pad(half, (0, missing), constant_values=jnp.inf)
  kept = min(k + SPARE, n)
  rows = max(1, min(q, BLOCK // (groups * GROUP)))
  blocks = math.ceil(q / rows)

  def of_block(block: tuple[Array, Array]) -> Neighbors:
    queries, own = block
    near = queries @ columns - half
    near = near.at[jnp.arange(rows), own].set(-jnp.inf, mode='drop')
    if approximate:
      found = lax.approx_max_k(near, kept, recall_target=0.99)[1]
    else:
      found = _largest(near.reshape(rows, GROUP, groups), kept)
    return _rank(queries, own, points, found.astype(jnp.int32), mask, k, metric)

  padding = blocks * rows - q
  # -1 would wrap to the last point; this is dropped.
  own = jnp.where(own < 0, groups * GROUP, own)
  own = jnp.pad(own, (0, padding), constant_values=groups * GROUP)
  queries = jnp.pad(queries, ((0, padding), (0, 0)))
  found = lax.map(
    of_block, (queries.reshape(blocks, rows, d), own.reshape(blocks, rows))
  )
  return jax.tree.map(lambda x: x.reshape(-1, k)[:q], found)


def _largest(near: Array, k: int) -> Array:
  """Where the k largest of [rows, members, groups] are, [rows, k], flat.

  They lie in the k groups whose largest are largest: only these are sorted.
  """
  rows, members, groups = near.shape
  if groups <= k:
    return lax.top_k(near.reshape(rows, -1), k)[1]
  best = lax.top_k(jnp.max(near, axis=1), k)[1]
  candidates = jnp.take_along_axis(near, best[:, None], axis=2)
  _, found = lax.top_k(candidates.reshape(rows, members * k), k)
  member, group = found // k, found % k
  return member * groups + jnp.take_along_axis(best, group, axis=1)


def _rank(
  queries: Array,
  own: Array,
  points: Array,
  found: Array,
  mask: Array | None,
  k: int,
  metric: Metric,
) -> Neighbors:
  """The k nearest of the points found, by their differences."""
  found = jnp.sort(found, axis=1)  # of equal distances, the lowest index first
  safe = jnp.minimum(found, len(points) - 1)
  squares = _squares(queries, points[safe], metric)
  none = (found >= len(points)) | (found == own[:, None])
  if mask is not None:
    none |= ~mask[safe]
  closest, order = lax.top_k(-jnp.where(none, jnp.inf, squares), k)
  distances = -closest / 2 if metric == 'cosine' else jnp.sqrt(-closest)
  ranked = Neighbors(jnp.take_along_axis(found, order, axis=1), distances)
  return ranked if mask is None else _kept(ranked, distances < jnp.inf)


def _squares(x: Array, others: Array, metric: Metric) -> Array:
  """|x - y|^2 of x [n, d] and others [n, k, d]: of unit vectors 2 (1 - x.y).

  With the metric 'cosine' it is 2 from and to zeros.
  """
  apart = x[:, None] - others
  squares = jnp.sum(apart * apart, axis=-1)
  if metric == 'euclidean':
    return squares
  zero = ~jnp.any(x, axis=-1)[:, None] | ~jnp.any(others, axis=-1)
  return jnp.where(zero, 2, squares)


# --- on the host -------------------------------------------------------------


def _find_by_faiss(
  points: Array,
  queries: Array | None,
  k: int,
  metric: Metric,
  mask: Array | None,
) -> Neighbors:
  """Candidates from an exact index of faiss, ranked as all others are."""
  import faiss  # of all rooms, only here and only if asked for

  n, d = points.shape
  points, queries = _centered(points, queries, metric)
  host = np.ascontiguousarray(points, np.float32)
  index = (
    faiss.IndexFlatL2(d) if metric == 'euclidean' else faiss.IndexFlatIP(d)
  )
  there = np.arange(n) if mask is None else np.flatnonzero(mask)
  index.add(host[there])
  asked = host if queries is None else np.ascontiguousarray(queries, np.float32)
  found = index.search(asked, min(k + SPARE, n))[1]
  # It says -1 where there are no more.
  found = np.append(there, n).astype(np.int32)[found]
  own = np.arange(n) if queries is None else np.full(len(found), n)
  asked_of = points if queries is None else queries
  rank = jax.jit(_rank, static_argnums=(5, 6))
  rows = max(1, BLOCK // (found.shape[1] * d))
  ranked = []
  for first in range(0, len(found), rows):
    block = slice(first, first + rows)
    ranked.append(
      rank(asked_of[block], own[block], points, found[block], mask, k, metric)
    )
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *ranked)


# --- kernels -----------------------------------------------------------------


def pair_distances(
  points: ArrayLike, index: ArrayLike, *, metric: Metric = 'euclidean'
) -> Array:
  """Distances from each point to some others, differentiable.

  Args:
    points: [n, d] floating-point.
    index: [n, k] int, which others; for `PAD` the distance is 0.
    metric: which distance, as in `knn`.

  Returns:
    [n, k], at least float32. The gradient of a distance of 0 is 0.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> pair_distances(jnp.array([[0.], [1.], [3.]]), jnp.array([[2], [0], [1]]))
  Array([[3.],
         [1.],
         [2.]], dtype=float32)
  """
  _check_metric(metric)
  (points, _), index = _read_points('points', points), jnp.asarray(index)
  check(
    index.ndim == 2 and len(index) == len(points),
    f'index must be [n, k] with n = {len(points)}, got shape {index.shape}',
  )
  if metric == 'cosine':
    points = _unit(points)
  others = points.at[index].get(mode='fill', fill_value=0)
  squares = _squares(points, others, metric)
  if metric == 'cosine':
    distances = squares / 2
  else:
    some = squares > 0
    distances = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)
  return jnp.where(index == PAD, 0, distances)


def matern12(distances: ArrayLike, *, scale: Scalar = 1.0) -> Array:
  """The Matern kernel of order 1/2, exp(-d / scale): the similarity of LLP-BP.

  Args:
    distances: d, [...] >= 0, Euclidean.
    scale: > 0, in units of the distances.

  Returns:
    [...] in (0, 1], 1 at distance 0.

  Raises:
    ValueError: if `scale` is not positive.

  >>> matern12(jnp.array([0., 2.]), scale=2.)
  Array([1.        , 0.36787945], dtype=float32)

  Reference: Rasmussen, Williams, "Gaussian Processes for Machine Learning", MIT
  Press 2006 (eq. 4.17, the exponential covariance function).
  """
  check(scale > 0, f'scale must be positive, got {scale}')
  return jnp.exp(-jnp.asarray(distances) / scale)


def rbf(distances: ArrayLike, *, scale: Scalar = 1.0) -> Array:
  """The Gaussian kernel, exp(-d^2 / (2 scale^2)).

  Args:
    distances: d, [...] >= 0, Euclidean.
    scale: > 0, in units of the distances.

  Returns:
    [...] in [0, 1], 1 at distance 0.

  Raises:
    ValueError: if `scale` is not positive.

  >>> rbf(jnp.array([0., 1.]))
  Array([1.        , 0.60653067], dtype=float32)

  Reference: Rasmussen, Williams, "Gaussian Processes for Machine Learning", MIT
  Press 2006 (eq. 4.9, the squared exponential covariance function).
  """
  check(scale > 0, f'scale must be positive, got {scale}')
  return jnp.exp(-((jnp.asarray(distances) / scale) ** 2) / 2)


def cosine(distances: ArrayLike) -> Array:
  """The cosine of the angle between two points, 1 - d, a kernel.

  Args:
    distances: d, [...] in [0, 2], as of `knn` with the metric 'cosine'.

  Returns:
    [...] in [-1, 1].

  >>> cosine(jnp.array([0., 1.])).tolist()
  [1.0, 0.0]
  """
  return 1 - jnp.asarray(distances)


# --- graphs ------------------------------------------------------------------


class Graph(NamedTuple):
  """A symmetric weighted graph: each tie is held at both of its ends.

  A vertex has a row of `degree` slots; the ties of those few that have more go
  to a list. Nothing is lost, whatever the degree.

  Attributes:
    neighbors: [n, degree] int32; `PAD` in empty slots.
    weights: [n, degree]; 0 in empty slots.
    spill: [s, 2] int32, a vertex and its neighbor, in order of the vertex.
    spill_weights: [s].
  """

  neighbors: np.ndarray
  weights: np.ndarray
  spill: np.ndarray
  spill_weights: np.ndarray


def graph_of_edges(
  edges: ArrayLike, weights: ArrayLike, n: int, *, degree: int | None = None
) -> Graph:
  """The symmetric graph of undirected edges, built on the host.

  The weights of an edge that is given more than once, in either direction, are
  added; a tie of a vertex to itself, and one of weight 0, ties nothing and is
  left out.

  Args:
    edges: [e, 2] int, in [0, n).
    weights: [e], finite; negative ones repel.
    n: number of vertices.
    degree: slots of a vertex; by default what takes the least memory and time.

  Returns:
    `Graph`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> graph_of_edges([[0, 1], [2, 1]], [.5, .25], 3).neighbors.tolist()[1]
  [0, 2]
  """
  return _build(*_read_edges(edges, weights, n), n, degree, np.add)


def graph_of_neighbors(
  index: ArrayLike, weights: ArrayLike, *, degree: int | None = None
) -> Graph:
  """The graph in which two are tied if either has the other for a neighbor.

  The weight of a tie is that of the one who names the other; of both the
  larger, which for a symmetric kernel is either.

  Args:
    index: [n, k] int in [0, n), as of `knn`; `PAD` for none.
    weights: [n, k], finite.
    degree: slots of a vertex; by default what takes the least memory and time.

  Returns:
    `Graph`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> found = knn(jnp.array([[0.], [1.], [3.]]), 1)
  >>> graph_of_neighbors(found.index, matern12(found.distances)).neighbors
  array([[         1, 2147483647],
         [         0,          2],
         [         1, 2147483647]], dtype=int32)
  """
  index, weights = np.asarray(index), np.asarray(weights)
  check(index.ndim == 2, f'index must be [n, k], got shape {index.shape}')
  check(
    weights.shape == index.shape,
    f'weights must be like index, {index.shape}, got {weights.shape}',
  )
  n, k = index.shape
  some = (index != PAD).ravel()
  edges = np.stack([np.repeat(np.arange(n), k), index.ravel()], axis=1)[some]
  read = _read_edges(edges, weights.ravel()[some], n)
  return _build(*read, n, degree, np.maximum)


def _read_edges(
  edges: Any, weights: Any, n: int
) -> tuple[np.ndarray, np.ndarray]:
  edges, weights = np.asarray(edges), np.asarray(weights)
  check(n >= 1, f'n must be at least 1, got {n}')
  edges = edges.reshape(-1, 2) if edges.size == 0 else edges
  check(
    edges.size == 0 or np.issubdtype(edges.dtype, np.integer),
    f'edges must be integers, got {edges.dtype}',
    TypeError,
  )
  check(
    edges.ndim == 2 and edges.shape[1] == 2,
    f'edges must be [e, 2], got shape {edges.shape}',
  )
  check(
    np.all((edges >= 0) & (edges < n)),
    f'edges must lie between 0 and n - 1 = {n - 1}',
  )
  check(
    weights.shape == edges.shape[:1],
    f'weights must be [e] with e = {len(edges)}, got shape {weights.shape}',
  )
  weights = weights.astype(np.promote_types(weights.dtype, np.float32))
  check(np.all(np.isfinite(weights)), 'weights must be finite')
  return edges.astype(np.int64), weights


def _build(
  edges: np.ndarray,
  weights: np.ndarray,
  n: int,
  degree: int | None,
  merge: np.ufunc,
) -> Graph:
  check(degree is None or degree >= 0, f'degree must be >= 0, got {degree}')
  edges = np.sort(edges, axis=1)
  name = edges[:, 0] * n + edges[:, 1]
  order = np.argsort(name, kind='stable')
  name, first = np.unique(name[order], return_index=True)
  if len(name):
    weights = merge.reduceat(weights[order], first)
  low, high = np.divmod(name, n)
  ties = (low != high) & (weights != 0)
  low, high, weights = low[ties], high[ties], weights[ties]

  # Both directions, in order of the vertex whose they are, then of the other.
  vertex = np.concatenate([high, low])
  order = np.argsort(vertex, kind='stable')
  vertex = vertex[order]
  neighbor = np.concatenate([low, high])[order].astype(np.int32)
  weights = np.concatenate([weights, weights])[order]
  degrees = np.bincount(vertex, minlength=n)
  slot = within_runs(degrees)
  degree = _cheapest_degree(degrees) if degree is None else degree
  neighbors = np.full([n, degree], PAD, np.int32)
  table = np.zeros([n, degree], weights.dtype)
  fits = slot < degree
  neighbors[vertex[fits], slot[fits]] = neighbor[fits]
  table[vertex[fits], slot[fits]] = weights[fits]
  spill = np.stack([vertex[~fits].astype(np.int32), neighbor[~fits]], axis=1)
  return Graph(neighbors, table, spill, weights[~fits])


def within_runs(lengths: np.ndarray) -> np.ndarray:
  """The place of each item in its run, for runs that follow each other.

  Args:
    lengths: [k] int >= 0.

  Returns:
    [sum of lengths] int: 0, 1, ... in each run.

  >>> within_runs(np.array([2, 0, 3])).tolist()
  [0, 1, 0, 1, 2]
  """
  first = np.cumsum(lengths) - lengths
  return np.arange(lengths.sum()) - np.repeat(first, lengths)


def _cheapest_degree(degrees: np.ndarray) -> int:
  """Slots cost their number; what is spilled costs four times as much."""
  counts = np.bincount(degrees)
  # [d]: how many vertices have more than d ties, and how many ties beyond d.
  more = len(degrees) - np.cumsum(counts)
  beyond = np.cumsum(more[::-1])[::-1]
  return int(np.argmin(np.arange(len(counts)) * len(degrees) + 4 * beyond))
