"""Subsets whose classes become smaller exponentially."""

import re

import jax
import numpy as np
import pytest

from jnl.data import load, long_tail, take

KEYS = jax.random.split(jax.random.key(0), 3)


def sizes(labels, ratio, key=KEYS[0]):
  return np.bincount(labels[long_tail(key, labels, ratio)]).tolist()


def test_sizes_are_those_of_cifar_lt_but_for_rounding():
  """Published: 5000 2997 1796 1077 645 387 232 139 83 50, rounded down."""
  labels = np.random.default_rng(0).permutation(np.arange(50000) % 10)
  found = sizes(labels, 100)
  assert found == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
  assert sizes(labels, 1) == [5000] * 10
  # 100 classes of 500, of ratio 50: 12,608 rows rounded down.
  many = np.array(sizes(np.repeat(np.arange(100), 500), 50))
  exact = 500 * 50 ** (-np.arange(100) / 99)
  assert np.abs(many - exact).max() <= 0.5 + 1e-9
  assert np.floor(exact + 1e-9).sum() == 12608


def test_digits():
  train = load('digits').train
  rows = long_tail(KEYS[0], train.labels, 30)
  assert len(rows) == 338
  kept = take(train, rows)
  expected = [109, 75, 51, 35, 24, 16, 11, 8, 5, 4]
  assert np.bincount(kept.labels).tolist() == expected


def test_rows_are_drawn_by_the_key():
  labels = np.repeat(np.arange(3), [400, 300, 200])
  one, again, other = (
    long_tail(key, labels, 10) for key in (KEYS[0], KEYS[0], KEYS[1])
  )
  np.testing.assert_array_equal(one, again)
  assert one.tolist() == sorted(set(one.tolist()))
  assert (one != other).any()
  assert sizes(labels, 10) == sizes(labels, 10, KEYS[1]) == [200, 63, 20]
  smaller = long_tail(KEYS[0], labels, 20)
  assert set(smaller) < set(one)
  drawn = np.zeros(len(labels))
  for key in jax.random.split(jax.random.key(1), 60):
    drawn[long_tail(key, labels, 10)] += 1 / 60
  # Each row of the first class is as likely as any: half of the draws.
  first = drawn[:400]
  assert abs(first.mean() - 0.5) < 1e-6
  assert 0.8 < first.std() / np.sqrt(0.25 / 60) < 1.2
  assert abs(first[:200].mean() - 0.5) < 0.02


@pytest.mark.parametrize(
  ('labels', 'ratio', 'error', 'message'),
  [
    ([0, 0, 1], 0.5, ValueError, 'ratio must lie in [1, inf]'),
    ([0, 0, 1], float('nan'), ValueError, 'ratio must lie in'),
    ([0, 0, 1, 1], 9, ValueError, 'ratio must leave the last class a row, got'),
    ([0, 0, 1, 1], float('inf'), ValueError, 'ratio must leave the last class'),
    (
      [0, 0, 2],
      1,
      ValueError,
      'rows of all classes from 0 to 2, got none of 1',
    ),
    ([0, 0], 1, ValueError, 'labels must be >= 0, of 2 classes or more'),
    ([0, -1, 1], 1, ValueError, 'labels must be >= 0'),
    ([[0, 1]], 1, ValueError, 'labels must be [n]'),
    (np.zeros(0, int), 1, ValueError, 'labels must be [n]'),
    ([0.0, 1.0], 1, TypeError, 'labels must be integers'),
  ],
)
def test_bad_input_is_named(labels, ratio, error, message):
  with pytest.raises(error, match=re.escape(message)):
    long_tail(KEYS[0], labels, ratio)


def test_a_seed_is_no_key():
  with pytest.raises(TypeError, match='key must be'):
    long_tail(0, [0, 1], 1)


def test_an_uneven_set_and_small_dtypes():
  """All classes have what the smallest one has, at most."""
  labels = np.repeat(np.arange(3), [10, 90, 40]).astype(np.uint8)
  assert sizes(labels, 4) == [10, 5, 3]
  assert sizes(np.array([1, 0], np.uint8), 1) == [1, 1]
