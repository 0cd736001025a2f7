"""The embedded data, and the order in which batches come."""

import jax
import numpy as np
import pytest

from jnl.base import PAD, data_shards, pack_rows
from jnl.data import check_labels, epoch_order, index_order, load, take_batch

KEY = jax.random.key(0)


def test_digits_are_the_published_rows_split_once():
  from sklearn.datasets import load_digits

  x, labels = load_digits(return_X_y=True)
  digits = load('digits')
  parts = digits.train, digits.validation, digits.test
  assert [len(p.labels) for p in parts] == [1200, 120, 477]
  ids = np.concatenate([p.id for p in parts])
  assert sorted(ids.tolist()) == list(range(1797))
  for part in parts:
    np.testing.assert_array_equal(part.x.reshape(-1, 64) * 16, x[part.id])
    np.testing.assert_array_equal(part.labels, labels[part.id])
    assert (part.x.dtype, part.labels.dtype) == (np.float32, np.int32)
  other = load('digits', seed=1)
  assert (other.train.id != digits.train.id).any()


def test_an_unknown_name_is_answered_with_close_ones():
  with pytest.raises(ValueError, match=r"unknown dataset 'digit'; .*'digits'"):
    load('digit')


@pytest.mark.parametrize(('n', 'b'), [(62, 16), (1201, 100), (5, 2)])
def test_orders_are_permutations_within_shards(n, b):
  shards = data_shards(n, b)
  m = -(-n // shards)
  first, other = (
    np.asarray(epoch_order(jax.random.key(k), n, shards)) for k in (0, 1)
  )
  for order in (first, other):
    for s, row in enumerate(order):
      real = row[row != PAD]
      expected = np.arange(s * m, min(n, (s + 1) * m))
      np.testing.assert_array_equal(np.sort(real), expected)
      assert (row[len(real) :] == PAD).all(), 'padding comes last'
  assert (first != other).any()


@pytest.mark.parametrize(('n', 'b'), [(62, 16), (1201, 100), (5, 4)])
def test_batches_in_index_order_cover_everything_once(n, b):
  shards = data_shards(n, b)
  values = np.arange(n) + 1.0
  order = index_order(n, shards, b)
  seen, weights = [], []
  for i in range(order.size // b):
    batch = take_batch({'x': pack_rows(values, shards)}, order, i, b)
    assert batch['x'].shape == (b,)
    real = np.asarray(batch['weight']) > 0
    np.testing.assert_array_equal(batch['x'][~real], 0)
    np.testing.assert_array_equal(batch['index'][~real], PAD)
    np.testing.assert_array_equal(batch['x'][real], batch['index'][real] + 1)
    seen += batch['index'][real].tolist()
    weights += batch['weight'].tolist()
  assert sorted(seen) == list(range(n))
  assert sum(weights) == n


def test_a_batch_brings_the_weights_of_the_data():
  tables = {'weight': pack_rows(np.array([0.0, 2.0, 3.0, 4.0]), 2)}
  batch = take_batch(tables, epoch_order(KEY, 4, 2), 0, 2)
  np.testing.assert_array_equal(
    batch['weight'], np.array([0, 2, 3, 4])[batch['index']]
  )


def test_labels_are_checked():
  check_labels(np.array([0, 2]), 3)
  check_labels(np.array([[0.5, 0.5]]), 2)
  with pytest.raises(ValueError, match=r'labels must lie in \[0, 3\)'):
    check_labels(np.array([0, 3]), 3)
  with pytest.raises(TypeError, match='labels must be integers, got float'):
    check_labels(np.array([0.0]), 3)
