"""What a policy of guesses is: a rule that sees predictions and remembers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jnl.base import Array, PyTree, Scalar, check, global_mean
from jnl.inputs import as_array, check_between, check_simplex, read_floats


class Seen(NamedTuple):
  """What a rule may look at: a batch of a step, or the whole set of a round.

  Attributes:
    probs: [b, c], predictions on the weak view, without gradient.
    unlabeled: [b] >= 0, the weights of rows without a label.
    labeled: [b] >= 0, the weights of rows with one. A row has one of both, or
      neither: then it is not there.
    index: [b] int, which examples these are.
    step: [] int, of training; or the round, from 0.
  """

  probs: Array
  unlabeled: Array
  labeled: Array
  index: Array  # type: ignore[assignment]  # hides tuple.index; as in batches
  step: Array


class Rule(NamedTuple):
  """Which guesses count and how much, or what they are, as two pure functions.

  The same on any number of devices: means are `base.global_mean`s before they
  are remembered. Rows that are not there leave no trace; nor does a prediction
  that is not finite, which is never used.

  Attributes:
    init: `() -> memory`, a tree of arrays and `Table`s.
    apply: `(memory, Seen) -> (memory, weights)`: [b] >= 0, 0 for rows that have
      a label; of `boards` [b, c]. Of an alignment the second is probabilities
      [b, c]; rows with a label keep theirs.
  """

  init: Callable[[], PyTree]
  apply: Callable[[PyTree, Seen], tuple[PyTree, Array]]


def nothing() -> PyTree:
  """The memory of a rule that has none."""
  return ()


def read(seen: Seen, num_classes: int | None = None) -> Seen:
  """What is seen, as arrays that are safe to compute with.

  Args:
    seen: what a rule was given.
    num_classes: c, of a rule that knows it.

  Returns:
    The same, at least float32; a row that is not there, or whose prediction is
    not finite, is uniform, of weights 0.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if `probs`
      of a row that is there are none, NaN among them, or weights negative.
  """
  probs = read_floats('probs', seen.probs)
  check(
    probs.ndim == 2 and probs.shape[1] == (num_classes or probs.shape[1]) > 0,
    f'probs must be [b, {num_classes or "c"}], got shape {probs.shape}',
  )
  weights = {}
  for name in ('unlabeled', 'labeled', 'index'):
    values = weights[name] = as_array(name, getattr(seen, name))
    check(
      values.shape == probs.shape[:1],
      f'{name} must be [b] = {probs.shape[:1]}, got shape {values.shape}',
    )
    if name != 'index':
      check_between(name, values, 0)
      weights[name] = values.astype(jnp.promote_types(probs.dtype, jnp.float32))
  there = (weights['unlabeled'] > 0) | (weights['labeled'] > 0)
  check_simplex('probs', probs, where=there)
  probs = lax.stop_gradient(probs).astype(weights['labeled'].dtype)
  there &= jnp.all(jnp.isfinite(probs), axis=1)
  shown = {k: jnp.where(there, weights[k], 0) for k in ('unlabeled', 'labeled')}
  probs = jnp.where(there[:, None], probs, 1 / probs.shape[1])
  step = as_array('step', seen.step)
  return Seen(probs, **shown, index=weights['index'], step=step)


def top(seen: Seen) -> tuple[Array, Array]:
  """The largest probability of each row, and whose it is, the first of equals.

  Args:
    seen: as `read` gives it.

  Returns:
    [b] and [b] int.
  """
  return jnp.max(seen.probs, axis=1), jnp.argmax(seen.probs, axis=1)


def weights_of(seen: Seen, chosen: Array) -> Array:
  """The weights [b] of unlabeled rows that are chosen, 1 or 0.

  Args:
    seen: as `read` gives it.
    chosen: [b] bool.

  Returns:
    [b].
  """
  return (chosen & (seen.unlabeled > 0)).astype(seen.probs.dtype)


def mean_rows(values: Array, weights: Array) -> Array:
  """The mean [c] of rows [b, c] over all devices; 0 where all weights are.

  Args:
    values: [b, c].
    weights: [b].

  Returns:
    [c].
  """
  return jax.vmap(global_mean, (1, None))(values, weights)


def some(weights: Array) -> Array:
  """Whether any row of any device counts, [] bool.

  Args:
    weights: [b].

  Returns:
    [] bool.
  """
  return global_mean(jnp.ones(weights.shape), weights) > 0


def follow(
  average: PyTree, values: PyTree, momentum: Scalar, moves: Array
) -> PyTree:
  """The next moving averages; where there are no values they stay.

  Args:
    average: a tree of arrays.
    values: a tree like it, of this batch, the same on all devices.
    momentum: how much of the average is kept, in [0, 1].
    moves: [] bool, whether there are any.

  Returns:
    A tree like `average`.
  """

  def one(old: Array, new: Array) -> Array:
    moved = momentum * old + (1 - momentum) * new
    return jnp.where(moves, moved, old).astype(old.dtype)

  return jax.tree.map(one, average, values)
