"""The embedded data, and the order in which batches come."""

import functools

from extras import needs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl.base import PAD, data_shards, pack_rows
from jnl.data import (
  check_labels,
  epoch_order,
  from_arrays,
  index_order,
  load,
  ngram_ids,
  take_batch,
)

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


@needs('tensorflow_datasets')
def test_an_unknown_name_is_answered_with_close_ones():
  with pytest.raises(ValueError, match=r"unknown dataset 'digit'; .*'digits'"):
    load('digit')


ORDERED = [(62, 16), (1201, 100), (5, 2)]


@functools.cache
def orders():
  """Two orders of n examples, for each n and batch size."""
  keys = jax.random.key(0), jax.random.key(1)
  draw = lambda n, b: [epoch_order(key, n, data_shards(n, b)) for key in keys]
  drawn = jax.device_get(jax.jit(lambda: [draw(*size) for size in ORDERED])())
  return dict(zip(ORDERED, drawn, strict=True))


@pytest.mark.parametrize(('n', 'b'), ORDERED)
def test_orders_are_permutations_within_shards(n, b):
  first, other = orders()[n, b]
  shards, m = first.shape
  assert (shards, m) == (data_shards(n, b), -(-n // shards))
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
  order = index_order(n, shards, b)

  @jax.jit
  def batches(values):
    tables = {'x': pack_rows(values, shards)}
    take = lambda i: take_batch(tables, order, i, b)
    return jax.vmap(take)(jnp.arange(order.size // b))

  taken = jax.device_get(batches(np.arange(n, dtype=np.float32) + 1))
  assert taken['x'].shape == (order.size // b, b)
  real = taken['weight'] > 0
  np.testing.assert_array_equal(taken['x'][~real], 0)
  np.testing.assert_array_equal(taken['index'][~real], PAD)
  np.testing.assert_array_equal(taken['x'][real], taken['index'][real] + 1)
  assert sorted(taken['index'][real]) == list(range(n))
  assert taken['weight'].sum() == n


def test_a_batch_brings_the_weights_of_the_data():
  weight = np.array([0.0, 2.0, 3.0, 4.0], np.float32)

  @jax.jit
  def first(weight):
    tables = {'weight': pack_rows(weight, 2)}
    return take_batch(tables, epoch_order(KEY, 4, 2), 0, 2)

  batch = jax.device_get(first(weight))
  np.testing.assert_array_equal(batch['weight'], weight[batch['index']])


def test_texts_are_sent_to_their_ids():
  """Any array or list of strings; 600 of them were 'x must be [n, ...]'."""
  texts = ['some words', 'other words'] * 20
  labels = np.arange(40) % 2
  for x in (texts, np.array(texts), np.array(texts, object)):
    with pytest.raises(TypeError, match=r'x must be numbers.*ngram_ids'):
      from_arrays(x, labels)
  ids = ngram_ids(texts)
  with pytest.raises(TypeError, match=r'x_test must be numbers.*token_ids'):
    from_arrays(ids, labels, texts, labels)
  assert from_arrays(ids, labels).train.x.shape == (27, 64)


def test_pixels_are_uint8_and_scaled_or_an_error():
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (40, 4, 4)), np.arange(40) % 2
  pixels = images.astype(np.uint8)
  scaled = from_arrays(pixels, labels[:, None]).train.x
  assert scaled.shape == (27, 4, 4, 1)
  assert 0.9 < scaled.max() <= 1
  for kind in (np.int32, np.int64, np.uint16):
    with pytest.raises(TypeError, match=f'must be uint8.*got {kind.__name__}'):
      from_arrays(images.astype(kind), labels)
  taken = from_arrays(images.astype(np.float32), labels).train.x
  assert taken.max() > 200  # floating numbers are taken as they are
  # Not so the rows of a table.
  table = from_arrays(images.reshape(40, 16), labels).train.x
  assert table.max() > 200
  for x, x_test in ((pixels, scaled[..., 0]), (scaled[..., 0], pixels)):
    y, y_test = (np.arange(len(a)) % 2 for a in (x, x_test))
    with pytest.raises(ValueError, match=r'uint8.* scaled alone'):
      from_arrays(x, y, x_test, y_test)


def test_labels_are_checked():
  check_labels(np.array([0, 2]), 3)
  check_labels(np.array([[0.5, 0.5]]), 2)
  with pytest.raises(ValueError, match=r'labels must lie in \[0, 3\)'):
    check_labels(np.array([0, 3]), 3)
  with pytest.raises(TypeError, match='labels must be integers, got float'):
    check_labels(np.array([0.0]), 3)
