"""Votes of neighbors against loops in numpy, and which labels they flag."""

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import noise, transition
from jnl.neighbors import Neighbors, knn

N, C, D, K = 40, 3, 4, 6
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C, N)
X = RNG.normal(size=(N, D)).astype(np.float32)
MATRIX = RNG.dirichlet(np.ones(C), C) / 2 + np.eye(C) / 2
PRIOR = RNG.dirichlet(np.ones(C))
MASK = np.arange(N) % 5 != 2


def distances(x):
  x = x.astype(np.float64)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  return 1 - x @ x.T


def votes_of(labels, x):
  found = np.zeros((len(x), C))
  for i, row in enumerate(distances(x)):
    order = np.argsort(np.where(np.arange(len(x)) == i, np.inf, row))[: K - 1]
    d = [2 * row[order[0]] - row[order[1]], *row[order]]
    for away, j in zip(d, [i, *order], strict=True):
      found[i, labels[j]] += 1 - away
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def ranked(labels, scores):
  flags = np.zeros(len(labels), bool)
  for k in np.unique(labels):
    own = labels == k
    rate = np.clip(1 - MATRIX[k, k] * PRIOR[k] / own.mean(), 0.05, 0.95)
    flags |= own & (scores >= np.quantile(scores[own], 1 - rate))
  return flags


@compiled
@jax.vmap
def run(labels, x, mask):
  votes = transition.simifeat_votes(labels, x, C, k=K, mask=mask)
  rank = transition.simifeat_rank(labels, x, MATRIX, PRIOR, k=K, mask=mask)
  return votes, rank


@pytest.fixture(scope='module')
def found():
  x = np.where(MASK[:, None], X, np.nan)
  two = np.where(LABELS == 2, 0, LABELS)
  return run(
    np.stack([LABELS, np.where(MASK, LABELS, 255), two]),
    np.stack([X, x, X]),
    np.stack([MASK | True, MASK, MASK | True]),
  )


@pytest.mark.parametrize('case', range(3))
def test_equations(case, found):
  """All rows, some that do not count and hold NaN, a class without labels."""
  kept = MASK if case == 1 else MASK | True
  labels = np.where(LABELS == 2, 0, LABELS) if case == 2 else LABELS
  labels, votes = labels[kept], votes_of(labels[kept], X[kept])
  by_votes, by_rank = jax.tree.map(lambda x: x[case], found)
  np.testing.assert_allclose(by_votes.votes[kept], votes, 1e-4, 1e-5)
  own = votes[np.arange(len(votes)), labels]
  scores = -np.log(np.maximum(own, 0) + 1e-8)
  np.testing.assert_allclose(by_votes.scores[kept], scores, 1e-3, 1e-4)
  np.testing.assert_array_equal(by_votes.flags[kept], votes.argmax(1) != labels)
  np.testing.assert_array_equal(by_rank.flags[kept], ranked(labels, scores))
  for flags in (by_votes, by_rank):
    assert not flags.flags[~kept].any()
    np.testing.assert_array_equal(flags.scores[~kept], 0)
    np.testing.assert_array_equal(flags.votes[~kept], 0)


def test_outside_jit_and_with_neighbors_that_are_given(found):
  near = knn(X, K + 2, metric='cosine')
  for features in (X, near):
    flags = transition.simifeat_votes(LABELS, features, C, k=K)
    np.testing.assert_allclose(flags.votes, found[0].votes[0], 1e-4, 1e-5)
  np.testing.assert_allclose(
    transition.knn_votes(LABELS, near, C, k=K), flags.votes, 1e-6
  )


def test_duplicates_and_zeros():
  """Ties are for the label; a vote that weighs nothing is none."""
  labels = np.where(np.arange(N) % 2, 1, 0)
  flags = transition.simifeat_votes(labels, np.ones((N, D)), C, k=N)
  assert not flags.flags.any()
  nothing = transition.simifeat_votes(labels, np.zeros((N, D)), C, k=K)
  np.testing.assert_array_equal(nothing.votes, 0)
  assert np.all(np.isfinite(nothing.scores))
  assert not nothing.flags.any()


@pytest.mark.parametrize(
  ('labels', 'features', 'k', 'error', 'match'),
  [
    (LABELS, X, 2, ValueError, 'k must be at least 3'),
    (LABELS, X, N + 1, ValueError, 'features have 40 rows that count: too few'),
    (LABELS, X + np.nan, K, ValueError, 'features must be finite'),
    (LABELS - 1, X, K, ValueError, r'labels must lie in \[0, 3\), got -1'),
    (LABELS[:, None], X, K, ValueError, r'labels must be \[n\]'),
    (LABELS, X[:, :1], K, ValueError, r'features must be \[n, d\]'),
    (LABELS, Neighbors(X, X), K, TypeError, 'index must be integers'),
    (LABELS, knn(X, 3), K, ValueError, r'index must be \[n, 5\]'),
  ],
)
def test_bad_input(labels, features, k, error, match):
  with pytest.raises(error, match=match):
    transition.simifeat_votes(labels, features, C, k=k)


def test_bad_matrix():
  with pytest.raises(ValueError, match=r'prior must be \[3\]'):
    transition.simifeat_rank(LABELS, X, MATRIX, PRIOR[:2])
  with pytest.raises(ValueError, match='transition must have rows that sum'):
    transition.simifeat_rank(LABELS, X, 2 * MATRIX, PRIOR)
  with pytest.raises(ValueError, match='name the row itself'):
    transition.knn_votes(LABELS, Neighbors(np.zeros((N, 9), int), X), C)


@pytest.mark.slow
@pytest.mark.parametrize('rate', [0.2, 0.3])
def test_blobs(rate):
  """Flags and HOC hold where blobs are apart; where they overlap both break."""
  clean, rng = np.arange(2000) % 5, np.random.default_rng(0)
  centers, around = 3 * rng.normal(size=(5, 10)), rng.normal(size=(2000, 10))
  matrix = noise.symmetric(5, rate)
  drawn = noise.corrupt(jax.random.key(0), clean, matrix)
  labels, wrong = np.asarray(drawn.labels), np.asarray(drawn.flipped)

  def look(spread):
    """Same class nearest, how far the diagonal is off, precisions."""
    x = jnp.float32(centers[clean] + spread * around)
    near = knn(x, 9, metric='cosine')
    fitted = transition.hoc(labels, near, 5)
    flags = (
      transition.simifeat_votes(labels, near, 5).flags,
      transition.simifeat_rank(labels, near, *fitted[:2]).flags,
    )
    off = jnp.abs(fitted.transition - matrix).diagonal().max()
    same = np.mean(clean[near.index[:, 0]] == clean)
    return same, off, *((f & wrong).sum() / f.sum() for f in flags)

  same, off, by_votes, by_rank = look(spread=1)
  assert same >= 0.998
  assert off <= 0.08
  assert by_votes >= 0.97
  assert by_rank >= 0.93
  same, off, by_votes, by_rank = look(spread=4)
  assert same <= 0.9
  assert off >= 0.1
  assert max(by_votes, by_rank) <= 0.75
