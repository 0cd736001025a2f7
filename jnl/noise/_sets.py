"""Weaker than a label: sets of candidates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Key, Scalar, check_key
from jnl.noise._inputs import (
  by_rows,
  check_classes,
  check_rate,
  fits,
  read_vector,
)


class Candidates(NamedTuple):
  """Candidate sets, where they miss the true class, and their probabilities.

  Attributes:
    candidates: [n, c] bool, S_i as its indicator.
    dropped: [n] bool, where the true class is not a candidate.
    probs: [c, c], P(j in S | clean = i); rows sum to the expected size of S.
  """

  candidates: Array
  dropped: Array
  probs: Array


def candidate_sets(
  key: Key, labels: ArrayLike, num_classes: int, q: Scalar
) -> Candidates:
  """Candidate sets: the true class, and each other one with probability q.

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    q: in [0, 1], the partial ratio. Sets may be the true class alone, or all.

  Returns:
    `Candidates`, none dropped.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `labels` are not integers.

  Reference: Lv et al., "Progressive Identification of True Labels for
  Partial-Label Learning", ICML 2020, arXiv 2002.08053.
  """
  check_key(key)
  check_classes(num_classes)
  check_rate('q', q)
  labels = read_vector('labels', labels, num_classes)

  def row(key: Key, labels: Array) -> Array:
    true = labels[..., None] == jnp.arange(num_classes)
    return true | (jax.random.uniform(key, true.shape) < q)

  sets = _each(row, key, num_classes, labels)
  eye = jnp.eye(num_classes)
  probs = eye + q * (1 - eye)
  return Candidates(sets, jnp.zeros(len(labels), bool), probs)


def noisy_candidate_sets(
  key: Key, labels: ArrayLike, num_classes: int, q: Scalar, eta: Scalar
) -> Candidates:
  r"""Candidate sets that may miss the true class.

  A set of `candidate_sets` is corrupted with probability eta: the true class is
  dropped, and a random class that was no candidate is added. A set of all
  classes has none to add and stays as it is, true class included. So

  .. math:: P(i \in S) = 1 - \eta\, (1 - q^{c-1}),\qquad
    P(j \in S) = q + \eta\, \frac{1 - q^{c-1}}{c - 1}

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    q: in [0, 1], the partial ratio.
    eta: in [0, 1], the noise ratio.

  Returns:
    `Candidates`; `dropped` says which sets were corrupted. A set is never empty
    and keeps its size.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `labels` are not integers.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922: its code.
  """
  check_key(key)
  check_rate('eta', eta)
  key_sets, key_drop, key_add = jax.random.split(key, 3)
  sets, _, probs = candidate_sets(key_sets, labels, num_classes, q)
  n, c = sets.shape
  dropped = jax.random.uniform(key_drop, (n,)) < eta
  dropped &= ~jnp.all(sets, axis=1)

  def row(key: Key, sets: Array, labels: Array, dropped: Array) -> Array:
    classes = jnp.arange(c)
    scores = jnp.where(sets, -1, jax.random.uniform(key, sets.shape))
    added = jnp.argmax(scores, axis=-1)[..., None] == classes
    others = sets & (labels[..., None] != classes)
    return jnp.where(dropped[..., None], others | added, sets)

  noisy = _each(row, key_add, c, sets, jnp.asarray(labels), dropped)
  moved = eta * (1 - jnp.asarray(q) ** (c - 1))
  eye = jnp.eye(c)
  probs = probs + moved * ((1 - eye) / (c - 1) - eye)
  return Candidates(noisy, dropped, probs)


def _each(
  row: Callable[..., Array], key: Key, numbers: int, *arrays: Array
) -> Array:
  """row(key, *arrays) of all rows at once or, where they are too many, by one.

  Each then has a key of its own.
  """
  n = len(arrays[0])
  if fits(n, numbers):
    return row(key, *arrays)
  return by_rows(
    lambda i: row(jax.random.fold_in(key, i), *(a[i] for a in arrays)),
    n,
    numbers,
  )
