"""What votes are like: how often there are some, and how often they differ."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.aggregate import _sums as sums
from jnl.aggregate._majority import item_counts
from jnl.aggregate._triples import (
  MISSING,
  Triples,
  Votes,
  num_items,
  packed,
  read_votes,
)
from jnl.base import Array, check, is_concrete
from jnl.inputs import as_array, read_labels


def coverage(votes: Votes, *, num_classes: int | None = None) -> Array:
  """The share of the items that each annotator votes on.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given, as in all functions here.

  Returns:
    [a] in [0, 1].

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> coverage([[0, 1], [0, -1]]).tolist()
  [1.0, 0.5]
  """
  return _described(*read_votes(votes, num_classes)).coverage


def overlap(votes: Votes, *, num_classes: int | None = None) -> Array:
  """The share of the items that each annotator votes on together with others.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1.

  Returns:
    [a], at most the coverage.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> overlap([[0, 1], [0, -1]]).tolist()
  [0.5, 0.5]
  """
  return _described(*read_votes(votes, num_classes)).overlap


def conflict(votes: Votes, *, num_classes: int | None = None) -> Array:
  """The share of the items on which somebody else votes for another class.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1.

  Returns:
    [a], at most the overlap.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> conflict([[0, 1, 1], [0, 0, -1]]).tolist()
  [0.5, 0.5, 0.5]
  """
  return _described(*read_votes(votes, num_classes)).conflict


def empirical_accuracy(
  votes: Votes, labels: ArrayLike, *, num_classes: int | None = None
) -> Array:
  """The share of the votes of each annotator that labels say are right.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    labels: [n] int in [0, c), -1 where the label is not known.
    num_classes: c; by default what the largest vote or label asks for.

  Returns:
    [a]; NaN of who has no vote on an item with a label.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> empirical_accuracy([[0, 1], [1, 1], [1, 0]], [0, 1, -1]).tolist()
  [1.0, 0.5]
  """
  known = as_array('labels', labels)
  n = num_items(votes)
  check(
    known.shape == (n,),
    f'labels must be [n] = [{n}], got shape {known.shape}',
  )
  if num_classes is None and is_concrete(known):
    num_classes = max(read_votes(votes)[1], int(np.max(known, initial=0)) + 1)
  votes, c = read_votes(votes, num_classes)
  known, there = read_labels(known, c, where=known != MISSING)
  return _accuracy(votes, jnp.where(there, known, MISSING), c)


class _Described(NamedTuple):
  """Shares of items, [a] each."""

  coverage: Array
  overlap: Array
  conflict: Array


@functools.partial(jax.jit, static_argnums=1)
def _described(votes: Array | Triples, c: int) -> _Described:
  rows = packed(votes)
  counts = item_counts(rows, c)
  total = jnp.sum(counts, axis=-1, keepdims=True)
  number = sums.number_of_items(votes)
  return _Described(
    *(
      sums.of_own(rows, jnp.broadcast_to(where, counts.shape) * 1) / number
      for where in (total > 0, total > 1, total > counts)
    )
  )


@functools.partial(jax.jit, static_argnums=2)
def _accuracy(votes: Array | Triples, labels: Array, c: int) -> Array:
  rows = packed(votes)
  pad = len(rows.item) * rows.size - len(labels)
  labels = jnp.pad(labels, (0, pad), constant_values=MISSING)
  labels = labels.reshape(len(rows.item), rows.size, 1)
  right = sums.of_own(rows, (labels == jnp.arange(c)) * 1)
  known = jnp.broadcast_to((labels >= 0) * 1, (*labels.shape[:2], c))
  number = sums.of_own(rows, known)
  share = right / jnp.maximum(number, 1)
  return jnp.where(number > 0, share, jnp.nan)
