"""Data sets by name, as arrays in memory, shuffled once."""

from collections.abc import Iterable
import difflib
from typing import NamedTuple

import numpy as np

from jnl.base import check


class Examples(NamedTuple):
  """A part of a data set.

  Attributes:
    x: [n, ...] float32.
    labels: [n] int32, clean.
    id: [n] int32, the row in the data set as published.
  """

  x: np.ndarray
  labels: np.ndarray
  id: np.ndarray


class Dataset(NamedTuple):
  """A data set for classification, in three parts.

  Attributes:
    name: as given to `load`.
    num_classes: c.
    train: what a method trains on, once its labels are made noisy.
    validation: for choosing an epoch by labels as noisy as those of `train`.
    test: with clean labels, looked at for the report alone.
  """

  name: str
  num_classes: int
  train: Examples
  validation: Examples
  test: Examples


def digits(seed: int = 0) -> Dataset:
  """Scans of handwritten digits, embedded in scikit-learn.

  1797 real 8x8 images with pixels in 0..16, divided by 16; a seeded permutation
  cut into 1200 training, 120 validation and 477 test rows.

  Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
  Digits, UCI Machine Learning Repository, 1998.
  """
  from sklearn.datasets import load_digits  # slow to import

  x, labels = load_digits(return_X_y=True)
  x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
  order = np.random.default_rng(seed).permutation(len(x)).astype(np.int32)
  parts = [
    Examples(x[rows], labels[rows].astype(np.int32), rows)
    for rows in np.split(order, [1200, 1320])
  ]
  return Dataset('digits', 10, *parts)


_LOADERS = {'digits': digits}


def load(name: str, *, seed: int = 0) -> Dataset:
  """A data set by name.

  Args:
    name: `'digits'`.
    seed: of the split.

  Raises:
    ValueError: for an unknown name, with the close matches.
  """
  check_name('dataset', name, _LOADERS)
  return _LOADERS[name](seed)


def check_name(argument: str, name: str, known: Iterable[str]) -> None:
  """Raises for a name that is not known, and names the close matches.

  >>> check_name('net', 'mpl', ['mlp', 'cnn'])
  Traceback (most recent call last):
  ...
  ValueError: unknown net 'mpl'; did you mean 'mlp'? Known: mlp, cnn
  """
  known = list(known)
  close = difflib.get_close_matches(name, known, cutoff=0.5)
  hint = f'did you mean {" or ".join(map(repr, close))}? ' if close else ''
  check(
    name in known,
    f'unknown {argument} {name!r}; {hint}Known: {", ".join(known)}',
  )
