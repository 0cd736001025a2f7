"""Votes counted, the class with most of them, and their shares."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.aggregate import _sums as sums
from jnl.aggregate._triples import (
  Triples,
  Votes,
  num_items,
  num_workers,
  packed,
  read_votes,
)
from jnl.base import Array, check, global_sum, is_concrete
from jnl.inputs import as_array, read_rows_of_probs

NEAR = 1e-6
"""Annotators that agree as often as that with the majority are alike."""


def vote_counts(
  votes: Votes,
  *,
  num_classes: int | None = None,
  weights: ArrayLike | None = None,
) -> Array:
  r"""How many votes each class has of each item.

  .. math:: n_{ik} = \sum_{a \in i} w_a\, 1[v_{ia} = k]

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1.
    weights: w, [a], what a vote of each counts; by default 1.

  Returns:
    [n, c], int32 without `weights`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> vote_counts([[2, 2, 0], [1, -1, -1]]).tolist()
  [[1, 0, 2], [0, 1, 0]]
  """
  votes, c = read_votes(votes, num_classes)
  if weights is not None:
    a = num_workers(votes)
    weights = as_array('weights', weights)
    check(
      weights.shape == (a,),
      f'weights must be [a] = [{a}], got shape {weights.shape}',
    )
  return _counts(votes, weights, c)


@functools.partial(jax.jit, static_argnums=2)
def _counts(votes: Array | Triples, weights: Array | None, c: int) -> Array:
  rows = packed(votes)
  return sums.unpacked(rows, item_counts(rows, c, weights))


def item_counts(votes: Triples, c: int, weights: Array | None = None) -> Array:
  """[s, size, c]: the votes of each item for each class."""
  if weights is None:
    return sums.of_items(
      votes, jnp.where(votes.answer < 0, c, votes.answer), jnp.eye(c, dtype=int)
    )
  table = jnp.repeat(weights, c)[:, None] * jnp.tile(
    jnp.eye(c, dtype=weights.dtype), (len(weights), 1)
  )
  return sums.of_items(votes, sums.places(votes, c), table)


def vote_shares(votes: Votes, *, num_classes: int | None = None) -> Array:
  r"""The share of the votes that each class has of each item: soft labels.

  .. math:: q_{ik} = n_{ik} \Big/ \sum_l n_{il}

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1.

  Returns:
    [n, c], 1 / c where an item has no votes.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> vote_shares([[1, 1, 0, 1], [-1, -1, -1, -1]]).tolist()
  [[0.25, 0.75], [0.5, 0.5]]
  """
  return shares_of(vote_counts(votes, num_classes=num_classes))


@jax.jit
def shares_of(counts: Array) -> Array:
  """[..., c]: counts over their sum, alike where there are none."""
  counts = counts.astype(jnp.result_type(float))
  number = jnp.sum(counts, axis=-1, keepdims=True)
  some = number > 0
  alike = 1 / counts.shape[-1]
  return jnp.where(some, counts / jnp.where(some, number, 1), alike)


def majority_vote(
  votes: Votes,
  pred_probs: ArrayLike | None = None,
  *,
  num_classes: int | None = None,
) -> Any:
  """The label that most annotators gave, ties broken in a defined order.

  Of the classes with most votes the one that the model finds most probable (if
  `pred_probs` are given); of these the one with the fewest votes in all; of
  these the one whose voters agree most often with the majority on items that
  are not tied (a mean over voters, alike if within 1e-6); of these the lowest.
  The official code draws at random in the end.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    pred_probs: [n, c], of a model that did not see the item.
    num_classes: c; by default that of `pred_probs`, or without them what the
      largest vote asks for. Inside jit without `pred_probs` it has to be given.

  Returns:
    [n] int32, of numpy where nothing of jax came in. Of an item without votes
    it is what the model says, and without a model -1. Can be jitted and
    vmapped; there a vote out of range is none.

  Raises:
    TypeError, ValueError: if an argument is malformed. NaN for a missing vote
      is refused.

  >>> majority_vote([[2, 2, 0], [1, 0, -1]], num_classes=3).tolist()
  [2, 1]

  Reference: Goh, Tkachenko, Mueller, "CROWDLAB: Supervised learning to infer
  consensus labels and quality scores for data with multiple annotators",
  NeurIPS 2022 workshop, arXiv 2210.06812.
  """
  given = jax.tree.leaves((votes, pred_probs))
  probs = None
  if pred_probs is not None:
    probs = read_rows_of_probs(pred_probs, 'pred_probs')
    check(
      num_classes in (None, probs.shape[1]),
      f'num_classes is {num_classes}, but pred_probs has {probs.shape[1]} '
      'columns',
    )
    num_classes = probs.shape[1]
  votes, c = read_votes(votes, num_classes)
  if probs is not None:
    check(
      num_items(votes) == len(probs),
      f'votes must have a row of each of the {len(probs)} of pred_probs, got '
      f'{num_items(votes)}',
    )
  labels = _majority(votes, probs, c)
  jax_given = any(isinstance(x, jax.Array) for x in given)
  if jax_given or not is_concrete(labels):
    return labels
  return np.array(labels)


@functools.partial(jax.jit, static_argnums=2)
def _majority(votes: Array | Triples, probs: Array | None, c: int) -> Array:
  rows = packed(votes)
  counts = item_counts(rows, c)
  left = counts == jnp.max(counts, axis=-1, keepdims=True)
  weights = _agreement(rows, left)
  voters = sums.unpacked(rows, item_counts(rows, c, weights))
  counts, left = sums.unpacked(rows, counts), sums.unpacked(rows, left)
  if probs is not None:
    left = _best(left, probs)
  left = _best(left, -global_sum(jnp.sum(counts, axis=0)))
  left = _best(left, voters / jnp.maximum(counts, 1), NEAR)
  labels = jnp.argmax(left, axis=1).astype(jnp.int32)
  if probs is None:
    labels = jnp.where(jnp.any(counts > 0, axis=1), labels, -1)
  return labels


def _agreement(votes: Triples, left: Array) -> Array:
  """[a]: how often each votes as the majority where that is not tied."""
  decided = jnp.sum(left, axis=-1, keepdims=True) == 1
  right = sums.of_own(votes, (left & decided).astype(jnp.int32))
  decided = jnp.broadcast_to(decided, left.shape).astype(jnp.int32)
  number = sums.of_own(votes, decided)
  some = number > 0
  share = right / jnp.maximum(number, 1)
  mean = jnp.sum(share * some) / jnp.maximum(jnp.sum(some), 1)
  return jnp.where(some, share, mean)


def _best(left: Array, score: Array, near: float = 0) -> Array:
  """Of the classes that are left [n, c], those of the best score."""
  exact = jnp.issubdtype(score.dtype, jnp.integer)
  lowest = jnp.iinfo(score.dtype).min if exact else -jnp.inf
  score = jnp.where(left, score, lowest)
  best = jnp.max(score, axis=1, keepdims=True)
  return left & (score >= best - near)
