"""Bags that are cut from all examples, and what they are told."""

import time

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
  index, mask, names = bags
  members = [
    row[there].tolist() for row, there in zip(index, mask, strict=True)
  ]
  assert members == [[1], [3, 5], [0, 2, 4]]
  assert names.tolist() == [-1, 4, 9]
  assert noise.cut_bags([0, 1], 1).ids is None


@pytest.mark.parametrize(
  'kind', [list, np.array, lambda x: np.array(x, object)]
)
def test_counts_are_looked_up_by_the_names_of_the_bags(kind):
  bags = noise.bags_of_ids(kind(['south', 'north', 'south', 'west', 'south']))
  assert bags.ids.tolist() == ['north', 'south', 'west']
  assert bags.index[1].tolist() == [0, 2, 4]
  counts = {'south': np.int64(2), 'west': 0, 'north': 1}
  found = noise.counts_of_ids(bags, counts)
  assert found.tolist() == [1, 2, 0]
  assert found.dtype == np.int32


def test_many_rows_of_names_are_quick():
  ids = np.random.default_rng(0).integers(0, 20_000, 200_000)
  names = np.char.add('g', ids.astype(str)).astype(object)
  counts = {f'g{i}': i % 2 for i in range(20_000)}
  start = time.process_time()
  bags = noise.bags_of_ids(names)
  found = noise.counts_of_ids(bags, {name: counts[name] for name in bags.ids})
  assert time.process_time() - start < 5  # a scan for each bag takes minutes
  assert bags.mask.sum() == 200_000
  assert found[0] == int(bags.ids[0][1:]) % 2


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


NAMED = noise.bags_of_ids(['a', 'b', 'b'])


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: noise.cut_bags([], 2), TypeError, 'order must be integers'),
    (lambda: noise.cut_bags([[1]], 2), ValueError, 'order must be \\[n\\]'),
    (lambda: noise.cut_bags([1], 0), ValueError, 'bag_size'),
    (lambda: noise.bags_of_ids([0.5]), TypeError, 'ids must be integers or'),
    (
      lambda: noise.bags_of_ids(np.array(['a', np.nan], object)),
      TypeError,
      'ids must be integers or strings, none missing',
    ),
    (
      lambda: noise.counts_of_ids(noise.cut_bags([0, 1], 1), {0: 1}),
      ValueError,
      'bags have no ids',
    ),
    (
      lambda: noise.counts_of_ids(NAMED, {'a': 1, 'c': 0}),
      ValueError,
      r"counts: 1 bags have none, the first is \['b'\]",
    ),
    (
      lambda: noise.counts_of_ids(NAMED, {'a': 1, 'b': 0, 'c': 0, 'd': 1}),
      ValueError,
      r"counts: 2 ids have no example, the first is \['c'\]",
    ),
    (
      lambda: noise.counts_of_ids(NAMED, {'a': 1, 'b': np.nan}),
      TypeError,
      'counts must be integers, got float64; where some are missing',
    ),
    (
      lambda: noise.counts_of_ids(NAMED, {'a': 1, 'b': 3}),
      ValueError,
      "counts: 3 of the 2 instances of bag 'b'",
    ),
    (
      lambda: noise.check_whole_bags(['a'], [1]),
      TypeError,
      'held_out_ids must be like ids',
    ),
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
      lambda: noise.counts_of_proportions([0.5, np.nan], [[True] * 4] * 2),
      ValueError,
      r'proportions: those of bags \[1\] are missing .*drop the bags, or give',
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
  noise.check_whole_bags(['a', 'b'], ['c'])
