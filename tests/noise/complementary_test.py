"""Draws of complementary labels."""

import jax
import numpy as np
import pytest

from jnl import losses, noise

KEY = jax.random.key(0)
C, N = 6, 6000
LABELS = np.arange(N) % C


def test_uniform():
  q = np.asarray(noise.complementary(C))
  np.testing.assert_allclose(q, (1 - np.eye(C)) / (C - 1), atol=1e-7)
  q = np.asarray(noise.complementary(10, miss=0.0393))
  np.testing.assert_allclose(np.diag(q), 0.0393, atol=1e-7)
  np.testing.assert_allclose(q.sum(1), 1, atol=1e-6)
  drawn = noise.corrupt(KEY, LABELS, noise.complementary(C)).labels
  assert (drawn != LABELS).all()
  for bad in (-0.1, 1.1):
    with pytest.raises(ValueError, match='miss must lie'):
      noise.complementary(C, miss=bad)
  with pytest.raises(ValueError, match='num_classes must be at least 2'):
    noise.complementary(1)


def test_biased():
  q = np.asarray(noise.complementary_biased(KEY, 10))
  thirds = np.repeat([0, 0.01 / 3, 0.24 / 3, 0.75 / 3], [1, 3, 3, 3])
  np.testing.assert_allclose(np.sort(q, 1), np.tile(thirds, (10, 1)), atol=1e-6)
  np.testing.assert_array_equal(np.diag(q), 0)
  assert len(np.unique(q[:, 0])) > 1
  # Which classes are preferred is drawn, evenly.
  keys = jax.random.split(KEY, 300)
  many = jax.vmap(lambda k: noise.complementary_biased(k, 10))(keys)
  mean = np.asarray(many).mean(0)
  np.testing.assert_allclose(mean, (1 - np.eye(10)) / 9, atol=0.03)
  uneven = np.asarray(
    noise.complementary_biased(KEY, 6, shares=(0.5, 0.5), miss=0.2)
  )
  row = 0.8 * np.array([0, 0.5 / 3, 0.5 / 3, 0.5 / 3, 0.25, 0.25])
  row[0] = 0.2
  np.testing.assert_allclose(np.sort(uneven, 1)[3], np.sort(row), atol=1e-6)
  np.testing.assert_allclose(np.diag(uneven), 0.2, atol=1e-6)


def test_a_biased_matrix_can_mostly_be_inverted():
  """Where it cannot well enough, risks through its inverse say so."""
  keys = jax.random.split(KEY, 100)
  many = jax.vmap(lambda k: noise.complementary_biased(k, 10))(keys)
  conditions = np.linalg.cond(np.float64(many))
  assert np.median(conditions) < 100
  assert (conditions < losses._complementary.CONDITION).mean() > 0.9


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'shares': (0.5, 0.6)}, 'shares must be positive and sum to one'),
    ({'shares': (1.5, -0.5)}, 'shares must be positive'),
    ({'shares': (0.25,) * 4}, 'shares must be at most c - 1 = 3'),
    ({'shares': ()}, 'shares must be at most'),
    ({'miss': 2.0}, 'miss must lie'),
  ],
)
def test_bad_shares_are_named(changed, message):
  with pytest.raises(ValueError, match=message):
    noise.complementary_biased(KEY, 4, **changed)


def test_sets_are_uniform_over_all_sets_of_their_size():
  labels = np.zeros(N, int)
  sets = np.asarray(noise.complementary_sets(KEY, labels, 5, 2))
  assert sets.dtype == bool
  assert not sets[:, 0].any()
  assert (sets.sum(1) == 2).all()
  codes, counts = np.unique(sets @ 2 ** np.arange(5), return_counts=True)
  assert len(codes) == 6  # of 4 classes
  # A chi-squared of 5 degrees of freedom: 99.99% are below 26.
  assert ((counts - N / 6) ** 2 / (N / 6)).sum() < 26


def test_sizes_by_row_and_keys_by_row():
  size = 1 + np.arange(N) % (C - 1)
  sets = np.asarray(noise.complementary_sets(KEY, LABELS, C, size))
  np.testing.assert_array_equal(sets.sum(1), size)
  assert not sets[np.arange(N), LABELS].any()
  few = noise.complementary_sets(KEY, LABELS[:7], C, size[:7])
  np.testing.assert_array_equal(few, sets[:7])
  assert noise.complementary_sets(KEY, LABELS[:0], C, 1).shape == (0, C)
  most = np.asarray(noise.complementary_sets(KEY, LABELS, C, C - 1))
  np.testing.assert_array_equal(most, LABELS[:, None] != np.arange(C))
  traced = jax.jit(lambda k, y, s: noise.complementary_sets(k, y, C, s))
  np.testing.assert_array_equal(traced(KEY, LABELS, size), sets)


def test_one_label_of_a_set_is_uniform():
  sets = np.asarray(noise.complementary_sets(KEY, LABELS, C, 1))
  found = np.stack([sets[k == LABELS].mean(0) for k in range(C)])
  np.testing.assert_allclose(found, noise.complementary(C), atol=0.07)


def test_bad_sizes_are_named():
  for size in (0, C, np.arange(N) % C):
    with pytest.raises(ValueError, match=r'size must lie in \[1, 5\]'):
      noise.complementary_sets(KEY, LABELS, C, size)
  with pytest.raises(TypeError, match='size must be an integer'):
    noise.complementary_sets(KEY, LABELS, C, 1.0)
  with pytest.raises(ValueError, match=r'size must be a scalar or \[n\]'):
    noise.complementary_sets(KEY, LABELS, C, np.ones(3, int))
  with pytest.raises(TypeError, match='key must be made'):
    noise.complementary_sets(0, LABELS, C, 1)
  with pytest.raises(ValueError, match=r'labels must lie in \[0, 6\)'):
    noise.complementary_sets(KEY, [6], C, 1)
