"""Arguments of the generators: checked on the host, left alone inside jit."""

from collections.abc import Callable
from typing import Any

from jax import lax
import jax.numpy as jnp
import numpy as np

from jnl import inputs
from jnl.base import Array, Scalar, check, check_auto

BLOCK = 2**24
"""Most numbers that are made at once, for n examples of some numbers each.

Up to so many in all a draw is made in one piece: what a key gives depends on
it.
"""


def check_classes(num_classes: int) -> None:
  """At least two classes."""
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')


def check_rate(name: str, rate: Scalar) -> None:
  """A number in [0, 1]: an array would broadcast over the wrong axis."""
  check(np.ndim(rate) == 0, f'{name} must be a scalar, got {np.shape(rate)}')
  check((rate >= 0) & (rate <= 1), f'{name} must lie in [0, 1], got {rate}')


def check_length(name: str, array: Any, n: int) -> None:
  """One row for each of the n labels."""
  check(
    np.ndim(array) >= 1 and len(array) == n,
    f'{name} has shape {np.shape(array)}; it must have a row for each of the '
    f'{n} labels',
  )


def read_labels(name: str, labels: Any, num_classes: int) -> Array:
  """Labels as int32, in [0, c)."""
  check_auto(labels, name)
  labels, _ = inputs.read_labels(labels, num_classes, name)
  return labels.astype(jnp.int32)


def read_vector(name: str, labels: Any, num_classes: int) -> Array:
  """`read_labels` of one axis, [n]."""
  labels = read_labels(name, labels, num_classes)
  check(labels.ndim == 1, f'{name} must be [n], got shape {labels.shape}')
  return labels


def fits(n: int, numbers: int) -> bool:
  """Whether n rows of so many numbers may be made at once."""
  return n * numbers <= BLOCK


def by_rows(row: Callable[[Array], Any], n: int, numbers: int) -> Any:
  """row(i), of so many numbers, for i in [0, n): in blocks of few enough.

  Over row numbers: a map over arrays would copy them once more.
  """
  at_once = max(1, min(n, BLOCK // max(1, numbers)))
  return lax.map(row, jnp.arange(n), batch_size=at_once)
