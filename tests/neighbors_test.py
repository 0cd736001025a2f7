"""Neighbors against scikit-learn, graphs against dense matrices."""

from extras import marks, needs
from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jnl import neighbors
from jnl.base import PAD

RNG = np.random.default_rng(0)
SLOW = pytest.mark.slow
WAYS = ['exact', pytest.param('faiss', marks=marks('faiss'))]


def reference(points, k, metric):
  """Distances of the k nearest others, in float64."""
  points = np.asarray(points, np.float64)
  fitted = NearestNeighbors(algorithm='brute', metric=metric).fit(points)
  return fitted.kneighbors(n_neighbors=k)  # without the point itself


def size(n, d, k, metric, slow=True):
  return pytest.param(n, d, k, metric, marks=[SLOW] if slow else [])


@pytest.mark.parametrize('search', WAYS)
@pytest.mark.parametrize(
  ('n', 'd', 'k', 'metric'),
  [
    size(2, 1, 1, 'cosine', slow=False),
    size(2, 1, 1, 'euclidean'),
    size(6, 3, 5, 'cosine'),
    size(6, 3, 5, 'euclidean', slow=False),
    size(300, 2, 4, 'cosine'),
    size(300, 2, 4, 'euclidean'),
    size(1500, 20, 5, 'cosine', slow=False),
    size(1500, 20, 5, 'euclidean', slow=False),
  ],
)
def test_the_nearest_are_sklearns(n, d, k, metric, search):
  points = RNG.normal(size=(n, d)).astype(np.float32)
  found = neighbors.knn(points, k, metric=metric, search=search)
  distances, index = reference(points, k, metric)
  np.testing.assert_allclose(found.distances, distances, atol=2e-6, rtol=1e-5)
  # Where d is 1 all cosine distances are 0 or 2, and any of them will do.
  if metric == 'euclidean' or d > 1:
    np.testing.assert_array_equal(found.index, index)
  assert found.index.dtype == jnp.int32
  assert not np.any(np.asarray(found.index) == np.arange(n)[:, None])


@pytest.mark.parametrize('search', WAYS)
def test_points_outside_a_mask_are_nobodys_neighbors(search):
  points = RNG.normal(size=(40, 3)).astype(np.float32)
  mask = np.arange(40) % 8 < 5
  points[~mask] = np.nan
  own = np.flatnonzero(mask)
  distances, index = reference(points[mask], 4, 'cosine')
  found = neighbors.knn(points, 4, metric='cosine', search=search, mask=mask)
  np.testing.assert_array_equal(found.index[own], own[index])
  np.testing.assert_allclose(found.distances[own], distances, atol=2e-6)
  np.testing.assert_array_equal(found.index[~mask], PAD)
  queries = points[own[:3]]
  index = neighbors.nearest(queries, points, 4, search=search, mask=mask).index
  np.testing.assert_array_equal(index[:, 0], own[:3])
  few = np.arange(40) < 2
  found = neighbors.nearest(queries, points, 4, search=search, mask=few)
  np.testing.assert_array_equal(np.sort(found.index)[0], [0, 1, PAD, PAD])
  assert np.isinf(found.distances[:, 2:]).all()
  with pytest.raises(ValueError, match=r'mask must be \[40\]'):
    neighbors.knn(points, 4, mask=mask[:, None])


def test_all_blocks_of_queries(monkeypatch):
  """The last one is padded; each leaves out its own."""
  monkeypatch.setattr(neighbors, 'BLOCK', 1000 * 300)
  points = RNG.normal(size=(1000, 4)).astype(np.float32)
  neighbors._find_on_devices.clear_cache()
  found = neighbors.knn(points, 3, search='exact')
  neighbors._find_on_devices.clear_cache()
  np.testing.assert_array_equal(
    found.index, reference(points, 3, 'euclidean')[1]
  )


@pytest.mark.parametrize('search', WAYS)
@pytest.mark.parametrize(
  'metric', ['euclidean', pytest.param('cosine', marks=SLOW)]
)
def test_queries_apart_from_points(metric, search):
  points = RNG.normal(size=(400, 5)).astype(np.float32)
  queries = RNG.normal(size=(7, 5)).astype(np.float32)
  fitted = NearestNeighbors(algorithm='brute', metric=metric).fit(points)
  distances, index = fitted.kneighbors(queries, 3)
  found = neighbors.nearest(queries, points, 3, metric=metric, search=search)
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distances, distances, atol=1e-6)


def test_a_point_may_find_itself_among_others():
  points = RNG.normal(size=(50, 3)).astype(np.float32)
  found = neighbors.nearest(points, points, 1)
  np.testing.assert_array_equal(found.index[:, 0], np.arange(50))
  assert not np.any(found.distances)
  everything = neighbors.nearest(points[:2], points, 50)
  index = np.asarray(everything.index)[0]
  np.testing.assert_array_equal(np.sort(index), np.arange(50))


def test_far_from_the_origin():
  """Products of large numbers would lose all digits of the distances."""
  points = RNG.normal(size=(400, 3)) + 3000
  points = points.astype(np.float32)
  found = neighbors.knn(points, 9, search='exact')
  distances, index = reference(points, 9, 'euclidean')
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distances, distances, rtol=1e-4)


def test_duplicates_are_at_distance_zero():
  points = np.repeat(RNG.normal(size=(40, 3)), 10, axis=0).astype(np.float32)
  found = neighbors.knn(points, 9, search='exact')
  assert not np.any(found.distances)
  index = np.asarray(found.index)
  assert np.all(index // 10 == np.arange(400)[:, None] // 10)
  assert np.all(np.diff(index, axis=1) > 0)
  same = neighbors.knn(np.ones([5, 2], np.float32), 4, metric='cosine')
  np.testing.assert_allclose(same.distances, 0)


@pytest.mark.parametrize('search', WAYS)
def test_vectors_of_zeros_are_at_cosine_distance_one(search):
  points = np.array([[0, 0], [1, 0], [-1, 0], [1, 1], [0, 0]], np.float32)
  found = neighbors.knn(points, 4, metric='cosine', search=search)
  np.testing.assert_allclose(found.distances[0], 1)
  distances, _ = reference(points, 4, 'cosine')
  np.testing.assert_allclose(found.distances, distances, atol=1e-6)


def test_pairs_with_a_vector_of_zeros_are_at_cosine_distance_one():
  points = np.array([[0, 0], [1, 0], [-1, 0], [1, 1], [0, 0]], np.float32)
  index = np.array([[4], [0], [1], [1], [0]])
  apart = compiled(
    lambda x: neighbors.pair_distances(x, index, metric='cosine')
  )(points)
  np.testing.assert_allclose(
    apart[:, 0], [1, 1, 2, 1 - np.sqrt(0.5), 1], atol=1e-6
  )


def test_approximate_search_finds_most():
  points = RNG.normal(size=(3000, 8)).astype(np.float32)
  found = neighbors.knn(points, 10, search='approximate')
  exact = reference(points, 10, 'euclidean')[1]
  index = np.asarray(found.index)
  hits = [len(set(a) & set(b)) for a, b in zip(exact, index, strict=True)]
  assert np.mean(hits) >= 9.8


@pytest.mark.parametrize(
  'dtype', [jnp.bfloat16, pytest.param(jnp.float16, marks=SLOW)]
)
def test_low_precision_is_read_as_float32(dtype):
  points = RNG.normal(size=(60, 3)).astype(dtype)
  found = neighbors.knn(points, 2)
  assert found.distances.dtype == jnp.float32
  np.testing.assert_array_equal(
    found.index, neighbors.knn(points.astype('float32'), 2).index
  )


@pytest.mark.parametrize(
  ('metric', 'count'),
  [
    ('euclidean', 8),
    pytest.param('cosine', 8, marks=SLOW),
    pytest.param('euclidean', 6, marks=SLOW),
  ],
)
def test_devices_find_what_one_finds(metric, count):
  points = RNG.normal(size=(101 * count, 6)).astype(np.float32)
  one = neighbors.knn(points, 4, metric=metric)
  mesh = Mesh(np.array(jax.devices()[:count]), ('data',))
  split = jax.device_put(points, NamedSharding(mesh, P('data')))
  found = neighbors.knn(split, 4, metric=metric)
  assert len(found.index.sharding.device_set) == count
  np.testing.assert_array_equal(found.index, one.index)
  np.testing.assert_allclose(found.distances, one.distances, rtol=1e-6)


def test_explicit_mesh_axes_are_refused_by_name():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  points = RNG.normal(size=(40, 3)).astype(np.float32)
  split = jax.device_put(points, NamedSharding(mesh, P('data')))
  for run in (
    lambda: neighbors.knn(split, 3),
    lambda: neighbors.nearest(split, points, 3),
    lambda: neighbors.pair_distances(split, np.zeros((40, 1), int)),
  ):
    with pytest.raises(
      ValueError, match=r'explicit mesh axes .*AxisType\.Auto'
    ):
      run()
  whole = jax.device_put(points, NamedSharding(mesh, P()))
  np.testing.assert_array_equal(
    neighbors.knn(whole, 3).index, neighbors.knn(points, 3).index
  )


def test_inside_jit():
  points = RNG.normal(size=(100, 3)).astype(np.float32)
  run = jax.jit(lambda x: neighbors.knn(x, 3))
  np.testing.assert_array_equal(
    run(points).index, reference(points, 3, 'euclidean')[1]
  )
  points[7] = np.inf  # which is an error outside
  assert np.isnan(np.asarray(run(points).distances)).all()


def test_pair_distances_and_their_gradient():
  points = RNG.normal(size=(6, 3)).astype(np.float32)
  points[1] = points[0]
  index = np.array([[1, 2], [0, PAD], [3, 4], [2, 5], [5, 0], [0, 1]])

  @compiled
  def run(x):
    distances = lambda x: neighbors.pair_distances(x, index)
    total = lambda x: neighbors.matern12(distances(x)).sum()
    return distances(x), jax.grad(total)(x)

  distances, gradient = run(points)
  rows = np.arange(6)[:, None]
  safe = np.where(index == PAD, rows, index)
  expected = np.linalg.norm(points[rows] - points[safe], axis=-1)
  np.testing.assert_allclose(distances, expected, rtol=1e-6)
  assert np.all(np.isfinite(gradient))


def test_kernels():
  d = np.array([0.0, 1.0, 3.0])
  run = compiled(
    lambda d: (
      neighbors.matern12(d, scale=2.0),
      neighbors.rbf(d, scale=2.0),
      neighbors.cosine(d),
    )
  )
  matern12, rbf, cosine = run(d)
  np.testing.assert_allclose(matern12, np.exp(-d / 2), rtol=1e-6)
  np.testing.assert_allclose(rbf, np.exp(-(d**2) / 8), rtol=1e-6)
  np.testing.assert_allclose(cosine, 1 - d)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'points': np.zeros((3, 2), int)}, 'points must be floating'),
    ({'points': np.zeros(3)}, r'points must be \[n, d\]'),
    ({'points': np.zeros((0, 2))}, r'points must be \[n, d\]'),
    ({'points': np.array([[np.nan], [1.0]]), 'k': 1}, 'points must be finite'),
    ({'points': np.array([[np.inf], [1.0]]), 'k': 1}, 'points must be finite'),
    ({'k': 3}, 'k must lie between 1 and n - 1 = 2'),
    ({'points': np.zeros((1, 2)), 'k': 1}, 'between 1 and n - 1 = 0, got 1'),
    ({'k': 0}, 'k must lie between'),
    ({'metric': 'manhattan'}, 'metric must be one of'),
    ({'search': 'lsh'}, 'search must be one of'),
  ],
)
def test_bad_searches(change, message):
  arguments = {'points': np.zeros((3, 2)), 'k': 2, **change}
  with pytest.raises((TypeError, ValueError), match=message):
    neighbors.knn(**arguments)


def test_faiss_that_is_not_there(monkeypatch):
  monkeypatch.setattr(neighbors.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match="'faiss' needs faiss installed"):
    neighbors.knn(np.zeros((3, 2)), 1, search='faiss')


@needs('faiss')
def test_faiss_is_used_if_asked_for_alone(monkeypatch):
  """By default the same program runs wherever jnl is installed."""

  def never(*arguments):
    raise AssertionError('faiss was not asked for')

  points = RNG.normal(size=(60, 3)).astype(np.float32)
  with pytest.raises(ValueError, match='not inside jit'):
    jax.jit(lambda x: neighbors.knn(x, 2, search='faiss'))(points)
  monkeypatch.setattr(neighbors, '_find_by_faiss', never)
  for search in ({}, {'search': 'exact'}):
    neighbors.knn(points, 2, **search)
    neighbors.nearest(points, points, 2, **search)
  with pytest.raises(AssertionError, match='not asked for'):
    neighbors.knn(points, 2, search='faiss')


def dense(graph):
  """The matrix of a graph, from both ends of each tie."""
  n = len(graph.neighbors)
  matrix = np.zeros([n, n])
  for i, (row, weights) in enumerate(
    zip(graph.neighbors, graph.weights, strict=True)
  ):
    for j, w in zip(row, weights, strict=True):
      if j != PAD:
        matrix[i, j] += w
      else:
        assert w == 0
  for (i, j), w in zip(graph.spill, graph.spill_weights, strict=True):
    matrix[i, j] += w
  return matrix


@pytest.mark.parametrize('degree', [None, 0, 1, 3, 40])
def test_a_graph_holds_every_tie_at_both_ends(degree):
  n = 30
  edges = RNG.integers(0, n, (90, 2))
  edges[:20, 0] = 7  # a vertex with many
  weights = RNG.normal(size=90)
  graph = neighbors.graph_of_edges(edges, weights, n, degree=degree)
  expected = np.zeros([n, n])
  for (i, j), w in zip(edges, weights, strict=True):
    if i != j:
      expected[i, j] += w
      expected[j, i] += w
  np.testing.assert_allclose(dense(graph), expected, atol=1e-12)
  if degree is not None:
    assert graph.neighbors.shape == (n, degree)
  assert np.all(np.diff(graph.spill[:, 0]) >= 0)


def test_a_heavy_vertex_does_not_widen_the_rows_of_all():
  n = 1000
  ring = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
  star = np.stack([np.zeros(n - 1, int), np.arange(1, n)], axis=1)
  edges = np.concatenate([ring, star[1:-1]])
  graph = neighbors.graph_of_edges(edges, np.ones(len(edges)), n)
  assert graph.neighbors.shape[1] == 3
  assert len(graph.spill) == n - 1 - 3


def test_neighbors_of_neighbors_are_tied_once():
  points = RNG.normal(size=(200, 3)).astype(np.float32)
  found = neighbors.knn(points, 4)
  index, weights = np.asarray(found.index), np.exp(-np.asarray(found.distances))
  matrix = dense(neighbors.graph_of_neighbors(index, weights))
  expected = np.zeros([200, 200])
  expected[np.arange(200)[:, None], index] = weights
  np.testing.assert_allclose(matrix, np.maximum(expected, expected.T))
  np.testing.assert_array_equal(matrix, matrix.T)


def test_graphs_of_little():
  empty = neighbors.graph_of_edges([], [], 3)
  assert empty.neighbors.shape == (3, 0)
  assert len(empty.spill) == 0
  only_itself = neighbors.graph_of_edges([[1, 1]], [2.0], 3)
  assert not dense(only_itself).any()
  none = neighbors.graph_of_neighbors(np.full((3, 2), PAD), np.ones((3, 2)))
  assert not dense(none).any()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'edges': [[0, 3]]}, 'edges must lie between 0 and n - 1 = 2'),
    ({'edges': [[-1, 0]]}, 'edges must lie between'),
    ({'edges': [[0.0, 1.0]]}, 'edges must be integers'),
    ({'edges': [[0, 1, 2]]}, r'edges must be \[e, 2\]'),
    ({'weights': [np.nan]}, 'weights must be finite'),
    ({'weights': [1.0, 2.0]}, r'weights must be \[e\] with e = 1'),
    ({'degree': -1}, 'degree must be >= 0'),
    ({'n': 0}, 'n must be at least 1'),
  ],
)
def test_bad_graphs(change, message):
  arguments = {'edges': [[0, 1]], 'weights': [1.0], 'n': 3, **change}
  with pytest.raises((TypeError, ValueError), match=message):
    neighbors.graph_of_edges(**arguments)


def test_bad_graphs_of_neighbors():
  with pytest.raises(ValueError, match=r'index must be \[n, k\]'):
    neighbors.graph_of_neighbors(np.zeros(3, int), np.zeros(3))
  with pytest.raises(ValueError, match='weights must be like index'):
    neighbors.graph_of_neighbors(np.zeros((3, 1), int), np.zeros(3))
