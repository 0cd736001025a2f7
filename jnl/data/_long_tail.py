"""Data sets with few examples of some classes, made of balanced ones."""

import jax
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Key, check, check_key
from jnl.inputs import check_range


def long_tail(key: Key, labels: ArrayLike, ratio: float) -> np.ndarray:
  r"""Rows of a data set whose classes become smaller exponentially.

  .. math:: n_k = \mathrm{round}(n\, r^{-k / (c - 1)})

  where n is the size of the smallest class of all rows, so that every class has
  as many, and c the largest label plus one: the first class keeps n rows, the
  last n / r. Classes are in the order of their labels.

  It is the recipe of CIFAR-LT (of ratio 100: 5000, 2997, ..., 50), where sizes
  are rounded down, so that some have one row less. Take the rows before labels
  are made wrong, and of a training set alone: tests stay as they are, and are
  scored by `train.scores.balanced_accuracy`.

  Args:
    key: says which rows.
    labels: [n] int, >= 0, on the host; the true ones.
    ratio: r, how often the first class is the last one, >= 1.

  Returns:
    [m] int, row numbers in ascending order, for `take`; the same for the same
    key. Whatever the key, classes have the same sizes, and with a larger ratio
    the rows of a class are some of those with a smaller one.

  Raises:
    TypeError: if `key` is none, or `labels` are not integers.
    ValueError: if `labels` are not [n], negative or all 0, a class has no row,
      or `ratio` is out of range, or so large that the last class gets none.

  >>> labels = np.arange(40) % 2
  >>> np.bincount(labels[long_tail(jax.random.key(0), labels, 10)]).tolist()
  [20, 2]

  Reference: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on
  Effective Number of Samples", CVPR 2019, arXiv 1901.05555. Cao, Wei, Gaidon,
  Arechiga, Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware
  Margin Loss", NeurIPS 2019, arXiv 1906.07413.
  """
  check_key(key)
  check_range('ratio', ratio, 1)
  labels = np.asarray(labels)
  check(
    np.issubdtype(labels.dtype, np.integer),
    f'labels must be integers, got {labels.dtype}',
    TypeError,
  )
  check(
    labels.ndim == 1 and labels.size > 0,
    f'labels must be [n] with n >= 1, got shape {labels.shape}',
  )
  low, last = int(labels.min()), int(labels.max())
  check(
    low >= 0 and last >= 1,
    f'labels must be >= 0, of 2 classes or more, got {low} to {last}',
  )
  found = np.bincount(labels)
  check(
    found.min() > 0,
    f'labels must have rows of all classes from 0 to {last}, got none of '
    f'{found.argmin()}',
  )
  shares = float(ratio) ** -(np.arange(last + 1) / last)
  sizes = np.floor(found.min() * shares + 0.5).astype(int)
  check(
    sizes[-1] > 0,
    f'ratio must leave the last class a row, got {ratio:g} where the smallest '
    f'class of all has {found.min()} rows',
  )
  order = np.asarray(jax.random.permutation(key, len(labels)))
  order = order[np.argsort(labels[order], kind='stable')]
  rank = np.arange(len(labels)) - np.repeat(np.cumsum(found) - found, found)
  return np.sort(order[rank < np.repeat(sizes, found)])
