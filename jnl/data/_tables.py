"""Tables of numbers and categories as rows of floats."""

from collections.abc import Mapping

import numpy as np

from jnl.base import check

ARRAYS = tuple(
  f'{kind}_{part}' for kind in ('num', 'cat', 'y') for part in ('train', 'test')
)


def rows_of_table(
  arrays: Mapping[str, np.ndarray], argument: str
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of a table as numbers: standardized columns, categories one-hot.

  Args:
    arrays: `num_train`, `num_test` [n, d] and `cat_train`, `cat_test` [n, q],
      category numbers in [0, categories of the column): as many as there are
      up to the largest in either part.
    argument: what the arrays are called in errors.

  Returns:
    Training and test rows [n, d + categories] float32. A column of one number
    is zeros.

  Raises:
    ValueError: if an array is malformed.
  """
  numbers = [arrays[f'num_{part}'] for part in ('train', 'test')]
  categories = [arrays[f'cat_{part}'] for part in ('train', 'test')]
  for kind, (train, test) in (('num', numbers), ('cat', categories)):
    check(
      train.ndim == test.ndim == 2 and train.shape[1] == test.shape[1],
      f'{argument}: {kind}_train and {kind}_test must be [n, columns], got '
      f'{train.shape} and {test.shape}',
    )
  for part, of_numbers, of_categories in zip(
    ('train', 'test'), numbers, categories, strict=True
  ):
    check(
      len(of_numbers) == len(of_categories),
      f'{argument}: num_{part} has {len(of_numbers)} rows, cat_{part} '
      f'{len(of_categories)}',
    )
    check(
      of_numbers.dtype.kind in 'buif' and np.all(np.isfinite(of_numbers)),
      f'{argument}: num_{part} must be finite numbers, none missing, got '
      f'{of_numbers.dtype}',
    )
    check(
      np.issubdtype(of_categories.dtype, np.integer)
      and np.all(of_categories >= 0),
      f'{argument}: cat_{part} must be integers >= 0, got '
      f'{of_categories.dtype}: np.unique(column, return_inverse=True) numbers '
      'the values of a column',
    )
  mean, std = numbers[0].mean(0), numbers[0].std(0)
  sizes = np.concatenate(categories).max(0).astype(int) + 1

  def rows(of_numbers: np.ndarray, of_categories: np.ndarray) -> np.ndarray:
    standard = (of_numbers - mean) / np.where(std > 0, std, 1)
    one_hot = [
      column[:, None] == np.arange(size)
      for column, size in zip(of_categories.T, sizes, strict=True)
    ]
    return np.concatenate([standard, *one_hot], axis=1).astype(np.float32)

  train, test = map(rows, numbers, categories)
  return train, test
