"""Bags that are cut from all examples, and what they are told."""

import numpy as np
import pytest

from jnl import noise


def test_every_example_is_in_one_bag():
  order = np.random.default_rng(0).permutation(23)
  bags = noise.cut_bags(order, 5)
  assert bags.index.shape == (5, 5)
  assert bags.mask.sum(1).tolist() == [5, 5, 5, 5, 3]
  np.testing.assert_array_equal(bags.index[bags.mask], order)


def test_bags_of_a_column_of_ids():
  ids = np.array([9, -1, 9, 4, 9, 4])
  bags = noise.bags_of_ids(ids)
  members = [row[there].tolist() for row, there in zip(*bags, strict=True)]
  assert members == [[1], [3, 5], [0, 2, 4]]


def test_rows_of_bags_have_zeros_where_there_is_none():
  values = np.arange(1, 6)[:, None] * [1, 10]
  rows = noise.rows_of_bags(values, noise.cut_bags([4, 0, 2], 2))
  assert rows.tolist() == [[[5, 50], [1, 10]], [[3, 30], [0, 0]]]
  assert values[0].tolist() == [1, 10]


def test_proportions_are_counts_of_whole_instances():
  counts, sizes = np.array([0, 3, 7, 512]), np.array([2, 3, 11, 512])
  mask = np.arange(512) < sizes[:, None]
  for dtype in (np.float32, np.float64):
    found = noise.counts_of_proportions((counts / sizes).astype(dtype), mask)
    np.testing.assert_array_equal(found, counts)
  published = np.round(counts / sizes, 4)  # as a file has them
  np.testing.assert_array_equal(
    noise.counts_of_proportions(published[:3], mask[:3]), counts[:3]
  )


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: noise.cut_bags([], 2), TypeError, 'order must be integers'),
    (lambda: noise.cut_bags([[1]], 2), ValueError, 'order must be \\[n\\]'),
    (lambda: noise.cut_bags([1], 0), ValueError, 'bag_size'),
    (lambda: noise.bags_of_ids([0.5]), TypeError, 'ids'),
    (
      lambda: noise.check_whole_bags([1, 2, 5], [5, 7, 2]),
      ValueError,
      'held_out_ids: 2 bags are split',
    ),
    (
      lambda: noise.counts_of_proportions([0.3], [[True] * 4]),
      ValueError,
      'proportions: 0.3 of the 4 instances of bag 0 is no whole number',
    ),
    (
      lambda: noise.counts_of_proportions([1.5], [[True] * 4]),
      ValueError,
      'proportions must lie in',
    ),
    (
      lambda: noise.counts_of_proportions([np.nan], [[True] * 4]),
      ValueError,
      'proportions must lie in',
    ),
    (
      lambda: noise.counts_of_proportions([1], [[True]]),
      TypeError,
      'proportions must be floating-point',
    ),
  ],
)
def test_they_check_their_input(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_whole_bags_pass():
  noise.check_whole_bags([1, 1, 2], [3, 4])
