"""Outliers and near-duplicates against the equations in numpy."""

import functools
from unittest import mock

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import audit, neighbors

RNG = np.random.default_rng(0)
N, K = 60, 4


# --- from probabilities ------------------------------------------------------


PROBS = np.concatenate(
  [RNG.dirichlet(np.ones(5), 9), [[1, 0, 0, 0, 0], [0.2] * 5]]
).astype(np.float32)
THRESHOLDS = np.float32([0.9, 0.4, 0.6, 2.0, 0.2])  # a class has no examples


def plain(probs, method, thresholds=None, top=100, gamma=0.1):
  p = probs.astype(np.float64)
  if thresholds is not None:
    p = p - thresholds + thresholds.max()
    p /= p.sum(1, keepdims=True)
  if method == 'entropy':
    return 1 + (p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(p.shape[1])
  if method == 'least_confidence':
    return p.max(1)
  s = np.sort(np.exp(p) / np.exp(p).sum(1, keepdims=True))[:, -top:]
  return 1 - (s**gamma * (1 - s) ** gamma).sum(1) / top


CALLS = {
  'entropy': {'method': 'entropy'},
  'adjusted': {'method': 'entropy', 'thresholds': THRESHOLDS},
  'least': {'method': 'least_confidence'},
  'least adjusted': {'method': 'least_confidence', 'thresholds': THRESHOLDS},
  'gen': {'method': 'gen'},
  'gen of some': {'method': 'gen', 'top': 3, 'gamma': 0.5},
}


@functools.cache
def scores_of_probs():
  @compiled
  def run(probs):
    one = {name: audit.ood_probs(probs, **call) for name, call in CALLS.items()}
    maps = jax.vmap(audit.ood_probs)(probs[None])
    return one, maps, audit.ood_probs(probs[None])

  return run(PROBS)


@pytest.mark.parametrize('name', CALLS)
def test_scores_of_probabilities(name):
  scores = scores_of_probs()[0][name]
  np.testing.assert_allclose(scores, plain(PROBS, **CALLS[name]), 1e-5, 1e-6)
  assert np.all((scores >= 0) & (scores <= 1))


def test_certain_and_ignorant():
  one, mapped, whole = scores_of_probs()
  np.testing.assert_allclose(one['entropy'][-2:], [1, 0], atol=1e-6)
  np.testing.assert_allclose(one['least'][-2:], [1, 0.2], rtol=1e-6)
  assert one['gen'].argmin() == len(PROBS) - 1
  for more in (mapped, whole):
    np.testing.assert_allclose(more[0], one['entropy'], rtol=1e-6)


def test_kinds_of_probabilities():
  scores = audit.ood_probs(PROBS)
  assert isinstance(scores, np.ndarray)
  np.testing.assert_allclose(scores, scores_of_probs()[0]['entropy'], rtol=1e-6)
  assert isinstance(audit.ood_probs(jnp.asarray(PROBS)), jax.Array)
  with pytest.warns(UserWarning, match='bfloat16'):
    half = audit.ood_probs(jnp.asarray(PROBS, jnp.bfloat16))
  np.testing.assert_allclose(half, scores, atol=0.02)


@pytest.mark.parametrize(
  ('changed', 'error', 'match'),
  [
    ({'pred_probs': [[0.5, 0.6]]}, ValueError, 'pred_probs must have rows'),
    ({'pred_probs': [[np.nan, 1]]}, ValueError, 'pred_probs must have rows'),
    ({'pred_probs': [[1.0]]}, ValueError, 'pred_probs must be'),
    ({'pred_probs': [[0, 1]]}, TypeError, 'pred_probs must be floating'),
    ({'method': 'energy'}, ValueError, 'method'),
    ({'thresholds': [0.5]}, ValueError, r'thresholds must be \[c\] = \[2\]'),
    ({'thresholds': [0.5, np.inf]}, ValueError, 'thresholds must be finite'),
    ({'top': 0}, ValueError, 'top must be at least 1'),
    ({'gamma': 0.0}, ValueError, 'gamma must lie'),
    ({'gamma': np.ones(2)}, ValueError, 'gamma must be a scalar'),
  ],
)
def test_bad_probabilities(changed, error, match):
  arguments = {'pred_probs': [[0.5, 0.5]], **changed}
  with pytest.raises(error, match=match):
    audit.ood_probs(np.array(arguments.pop('pred_probs')), **arguments)


# --- features of one shape ---------------------------------------------------


def cloud(d, seed=1):
  return np.random.default_rng(seed).normal(size=(N, d)).astype(np.float32)


def with_twins(d):
  """Two, three, and more rows that are the same than neighbors are asked."""
  x = cloud(d, seed=2)
  x[[50, 7]] = x[3]
  x[30] = x[9]
  x[40:49] = x[11]
  return x


def with_zeros():
  """Under cosine they are far from all, but for each other."""
  x = with_twins(5)
  x[[5, 20]] = 0
  x[20] = -0.0
  return x


def hidden():
  """Rows so close to many others that products do not tell them apart."""
  x = 1e-4 * cloud(2, seed=3)
  x[: N // 2] += 1
  x[:10] = x[20:30]
  return x


def with_near(d):
  x = cloud(d)
  x[[8, 31]] = x[2] + np.float32([[1e-3], [2e-3]])
  return x


POINTS = {
  'cloud': (with_near(2), 'euclidean'),
  'twins': (with_twins(2), 'euclidean'),
  'hidden': (hidden(), 'euclidean'),
  'directions': (with_twins(5), 'cosine'),
  'zeros': (with_zeros(), 'cosine'),
}


def all_distances(x, metric, y=None):
  """[n, n] in float64: 0 between rows that are the same, inf to itself."""
  x, own = np.asarray(x, np.float64), y is None
  y = x if own else np.asarray(y, np.float64)
  if metric == 'euclidean':
    d = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
  else:
    norm = lambda z: np.linalg.norm(z, axis=1, keepdims=True)
    unit = lambda z: z / np.where(norm(z) > 0, norm(z), 1)
    d = 1 - unit(x) @ unit(y).T
  if own:
    d[(x[:, None] == y).all(-1)] = 0
    np.fill_diagonal(d, np.inf)
  return d


def plain_features(x, metric, k=K, t=1.0):
  mean = np.sort(all_distances(x, metric), axis=1)[:, :k].mean(1)
  return np.exp(-t * mean / np.median(mean)), np.median(mean)


def plain_groups(x, metric, fraction=0.13, quantile=0.5):
  """Ties among all rows, followed one by one."""
  distances = all_distances(x, metric)
  nearest = distances.min(1)
  near = fraction * np.quantile(nearest, quantile)
  tied = (distances < near) | (distances == 0)
  group, number = np.full(len(x), -1), 0
  for i in range(len(x)):
    if group[i] < 0 and tied[i].any():
      waiting = [i]
      while waiting:
        j = waiting.pop()
        if group[j] < 0:
          group[j] = number
          waiting += list(np.flatnonzero(tied[j]))
      number += 1
  return group, nearest


@functools.cache
def of_metric(metric):
  """By name of the points: (scores, queries scored, duplicates by quantile)."""
  names = [name for name, (_, m) in POINTS.items() if m == metric]
  points = np.stack([POINTS[name][0] for name in names])

  @compiled
  @jax.vmap
  def run(points):
    found = audit.ood_features(points, k=K)
    queries = audit.ood_queries(points[:7] + 0.5, points, found.scale, k=K)
    groups = [
      audit.near_duplicates(points, k=K, quantile=q) for q in (0.5, 0.0)
    ]
    return found, queries, groups

  out = run(points)
  return {
    name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(names)
  }


@pytest.mark.parametrize('name', POINTS)
def test_scores_of_features(name):
  points, metric = POINTS[name]
  found, of_queries, _ = of_metric(metric)[name]
  scores, scale = plain_features(points, metric)
  if name == 'hidden':
    # Which are the nearest is rounding; who is the same is not.
    assert np.all((found.scores > 0) & (found.scores <= 1))
    return
  np.testing.assert_allclose(found.scores, scores, 1e-4, 1e-6)
  np.testing.assert_allclose(found.scale, scale, 1e-5)
  mean = np.sort(all_distances(points[:7] + 0.5, metric, points), axis=1)
  mean = mean[:, :K].mean(1)
  np.testing.assert_allclose(of_queries, np.exp(-mean / scale), 1e-4, 1e-6)


@pytest.mark.parametrize('name', POINTS)
@pytest.mark.parametrize('which', [0, 1])
def test_near_duplicates(name, which):
  """The median, and a quantile of 0: then only those that are the same."""
  points, metric = POINTS[name]
  found = of_metric(metric)[name][2][which]
  if name == 'hidden' and not which:
    same = found.group[:10], found.group[20:30]
    np.testing.assert_array_equal(*same)
    assert np.all(same[0] >= 0)
    return
  group, nearest = plain_groups(points, metric, quantile=[0.5, 0.0][which])
  np.testing.assert_array_equal(found.group, group)
  np.testing.assert_array_equal(found.is_duplicate, group >= 0)
  if name != 'hidden':
    np.testing.assert_allclose(found.distances, nearest, 1e-4, 1e-6)
  assert found.group.dtype == np.int32
  assert (group >= 0).any() == (not which or name != 'cloud')


def test_the_search_alone_overlooks_rows_that_are_the_same():
  found = neighbors.knn(hidden(), K)
  assert np.any(found.distances[:10, 0] > 0)
  assert not of_metric('euclidean')['hidden'][2][1].distances[:10].any()


def test_chains_are_one_group():
  """In any order of the rows, and however long."""
  x = np.zeros((N, 2), np.float32)
  x[:, 0] = np.arange(N)
  x[N // 2 :] *= 1000
  rows = np.random.default_rng(4).permutation(N)
  found = audit.near_duplicates(x[rows], fraction=1.5, quantile=0.3, k=K)
  assert isinstance(found.group, np.ndarray)
  np.testing.assert_array_equal(found.group, np.where(rows < N // 2, 0, -1))
  # From its middle on, nearest first: each names the one before it.
  order = np.argsort(np.abs(np.arange(N) - N // 2 + 0.1))
  x[:, 0] = order
  found = audit.near_duplicates(x, fraction=1.5, quantile=0.3, k=K)
  assert not found.group.any()


def test_more_than_half_are_the_same():
  """The quantile is 0; what is not the same is none, however near."""
  x = cloud(2)
  x[20:] = x[20]
  found = audit.near_duplicates(x, fraction=1.5, quantile=0.3, k=K)
  np.testing.assert_array_equal(found.group, np.where(np.arange(N) < 20, -1, 0))
  scores, scale = audit.ood_features(x, k=K)
  assert scale > 0
  assert np.all(scores[20:] == 1)
  assert np.all(scores[:20] < 1e-3)


def test_the_same_direction_is_at_distance_zero():
  """Of any length: what is left of rounding is neither near nor unusual."""
  x = (cloud(5, seed=6)[:1] * np.linspace(1, 2, N)[:, None]).astype(np.float32)
  found = audit.near_duplicates(x, k=K)
  assert not found.distances.any()
  assert not found.group.any()
  assert np.all(audit.ood_features(x, k=K).scores == 1)


def test_kinds_of_features():
  x, run = cloud(5), functools.partial(audit.ood_features, k=K)
  of_numpy, of_jax = run(x), run(jnp.asarray(x))
  assert all(isinstance(a, np.ndarray) for a in of_numpy)
  assert all(isinstance(a, jax.Array) for a in of_jax)
  groups = audit.near_duplicates(jnp.asarray(x), k=K)
  assert all(isinstance(a, jax.Array) for a in groups)
  half = run(jnp.asarray(x, jnp.bfloat16))
  assert half.scores.dtype == jnp.float32
  np.testing.assert_allclose(half.scores, of_numpy.scores, atol=0.02)
  again = audit.ood_queries(x, x, of_numpy.scale, k=K)
  assert isinstance(again, np.ndarray)
  assert np.all(again > of_numpy.scores)


@pytest.mark.parametrize(
  ('changed', 'error', 'match'),
  [
    ({'features': np.zeros(3)}, ValueError, r'features must be \[n, d\]'),
    ({'features': np.zeros((1, 3))}, ValueError, 'features must .* n >= 2'),
    ({'features': np.zeros((3, 0))}, ValueError, r'features must be \[n, d\]'),
    ({'features': np.zeros((3, 3), int)}, TypeError, 'features must be float'),
    ({'features': np.array([['a'], ['b']])}, TypeError, 'features must be'),
    (
      {'features': np.array([[0.0], [np.nan], [1.0]])},
      ValueError,
      'features must be finite; row 1',
    ),
    ({'metric': 'manhattan'}, ValueError, 'metric'),
    ({'k': 3}, ValueError, 'k must lie'),
    ({'k': 0}, ValueError, 'k must lie'),
  ],
)
def test_bad_features(changed, error, match):
  arguments = {'features': np.eye(3), **changed}
  for run in (audit.ood_features, audit.near_duplicates):
    with pytest.raises(error, match=match):
      run(**arguments)


def test_defaults_follow_the_shape():
  shape = lambda n, d: jax.ShapeDtypeStruct((n, d), jnp.float32)
  for n, d, metric, k in ((4, 3, 'euclidean', 3), (30, 4, 'cosine', 10)):
    with mock.patch.object(neighbors, 'knn', wraps=neighbors.knn) as knn:
      out = jax.eval_shape(audit.near_duplicates, shape(n, d))
    assert knn.call_args.kwargs == {'metric': metric}
    assert knn.call_args.args[1] == k
    assert out.group.shape == (n,)


def test_bad_options_of_features():
  x = np.eye(3)
  with pytest.raises(ValueError, match='t must lie'):
    audit.ood_features(x, t=0.0)
  with pytest.raises(ValueError, match='fraction must lie'):
    audit.near_duplicates(x, fraction=-1.0)
  with pytest.raises(ValueError, match='quantile must lie'):
    audit.near_duplicates(x, quantile=1.5)
  with pytest.raises(ValueError, match='scale must'):
    audit.ood_queries(x, x, -1.0)
  with pytest.raises(ValueError, match='scale must be a scalar'):
    audit.ood_queries(x, x, np.ones(3))
  with pytest.raises(ValueError, match='queries must have the 3 columns'):
    audit.ood_queries(x[:, :2], x, 1.0)
  with pytest.raises(ValueError, match='queries must be finite; row 0'):
    audit.ood_queries(x + np.inf, x, 1.0)
