"""Tables of numbers and categories."""

import numpy as np
import pytest

from jnl.data import load
from jnl.data._tables import rows_of_table


def arrays(**changes):
  rng = np.random.default_rng(0)
  return {
    'num_train': rng.normal(3, 2, (40, 2)) * [1, 0] + [0, 7],
    'num_test': np.full((10, 2), 3.0),
    'cat_train': rng.integers(0, 3, (40, 1)),
    'cat_test': np.arange(10)[:, None] % 5,
    'y_train': np.arange(40) % 2,
    'y_test': np.arange(10) % 2,
    **changes,
  }


def test_numbers_are_standard_and_categories_one_hot():
  table = arrays()
  train, test = rows_of_table(table, 'table')
  assert train.dtype == np.float32
  assert train.shape == (40, 2 + 5)  # categories of the test set have a column
  np.testing.assert_allclose(train[:, 0].mean(), 0, atol=1e-6)
  np.testing.assert_allclose(train[:, 0].std(), 1, rtol=1e-5)
  assert not train[:, 1].any()  # constant in training
  np.testing.assert_array_equal(
    train[:, 2:].argmax(1), table['cat_train'][:, 0]
  )
  np.testing.assert_array_equal(test[:, 2:], np.eye(5)[np.arange(10) % 5])
  mean, std = table['num_train'][:, 0].mean(), table['num_train'][:, 0].std()
  np.testing.assert_allclose(test[:, 0], (3 - mean) / std, rtol=1e-5)


def test_a_table_loads_by_name(tmp_path):
  np.savez(tmp_path / 'mine.npz', **arrays())
  data = load('mine', data_dir=str(tmp_path))
  assert data.num_classes == 2
  assert data.train.x.shape == (36, 7)
  assert data.test.x.shape == (10, 7)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_test': np.zeros((10, 3))}, 'num_train and num_test'),
    ({'cat_train': np.zeros((39, 1), int)}, 'num_train has 40 rows, cat_train'),
    ({'cat_test': np.zeros((10, 1)) - 1}, 'cat_test must be integers'),
    ({'cat_train': np.full((40, 1), 'north')}, 'cat_train .* got <U5: np.uniq'),
    ({'num_train': np.full((40, 2), np.nan)}, 'num_train must be finite'),
    ({'num_test': np.full((10, 2), None)}, 'num_test .* none missing, got obj'),
  ],
)
def test_malformed_tables_are_named(changes, message):
  with pytest.raises(ValueError, match=f'mine: {message}'):
    rows_of_table(arrays(**changes), 'mine')
