"""Annotators as laws, P(answer | true label): what they say of an item."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.aggregate import _sums as sums
from jnl.aggregate._majority import item_counts, shares_of
from jnl.aggregate._triples import (
  Triples,
  Votes,
  num_workers,
  packed,
  read_votes,
)
from jnl.base import Array, Scalar, check, global_sum
from jnl.inputs import as_array, check_range, check_simplex
from jnl.logspace import safe_log

FEW = 0.1
"""The share of items outside one class from which on there are several."""
LEFT = 1 / 3
"""The share of these that a posterior has to leave there."""
TIED = 1e-4
"""How far below the largest a probability is as large, relative to it."""


class Law(NamedTuple):
  """How labels and answers come: pi [c] and E [a, c, symbols]."""

  balance: Array
  confusion: Array


def read_balance(class_balance: ArrayLike, c: int) -> Array:
  """[c] probabilities, which then sum to one exactly."""
  balance = as_array('class_balance', class_balance)
  check(
    balance.shape == (c,),
    f'class_balance must be [c] = [{c}], got shape {balance.shape}',
  )
  check_simplex('class_balance', balance)
  return normalized(balance.astype(jnp.result_type(float)))


def read_known(class_balance: ArrayLike | None, c: int) -> Array | None:
  """The same, or None, where it is to be learned."""
  return None if class_balance is None else read_balance(class_balance, c)


def read_prior(prior: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
  """(right, wrong), numbers of votes >= 0."""
  check(
    len(prior) == 2,
    f'accuracy_prior must be two numbers, (right, wrong), got {prior}',
  )
  for number in prior:
    check_range('accuracy_prior', number, 0)
  return prior


def read(
  votes: Votes, class_balance: ArrayLike, confusion: ArrayLike
) -> tuple[Array | Triples, Law]:
  """Votes, and laws that are given for them."""
  shape = np.shape(class_balance)
  check(
    len(shape) == 1 and shape[0] >= 2,
    f'class_balance must be [c] with c >= 2, got shape {shape}',
  )
  c = shape[0]
  balance = read_balance(class_balance, c)
  confusion = as_array('confusion', confusion)
  table, _ = read_votes(votes, c)
  a = num_workers(table)
  check(
    confusion.shape in ((a, c, c), (a, c, c + 1)),
    f'confusion must be [a, c, c] = [{a}, {c}, {c}], or with a column more, '
    f'got shape {confusion.shape}',
  )
  check(
    confusion.shape[-1] == c or not isinstance(table, Triples),
    f'confusion must be [a, c, c] for triples, got shape {confusion.shape}: '
    'nobody is asked for an answer to every item',
  )
  check_simplex('confusion', confusion)
  return table, Law(balance, confusion)


@jax.jit
def evaluated(votes: Array | Triples, law: Law) -> tuple[Array, Array]:
  """The posterior [n, c] and the log-evidence [n] of each item."""
  rows, (_, c, symbols) = packed(votes), law.confusion.shape
  if symbols > c:
    rows = with_symbol(rows, c)
  posterior, evidence = e_step(rows, sums.places(rows, symbols), law)
  evidence = sums.unpacked(rows, evidence)[:, 0]
  return sums.unpacked(rows, posterior), evidence


def start(rows: Triples, c: int) -> tuple[Array, Array]:
  """The shares of votes [s, size, c], and which items have some [.., 1]."""
  counts = item_counts(rows, c)
  return shares_of(counts), jnp.any(counts > 0, axis=-1, keepdims=True)


def with_symbol(rows: Triples, c: int) -> Triples:
  """No answer becomes answer c."""
  answer = jnp.where(rows.answer < 0, c, rows.answer)
  return Triples(
    rows.item, rows.worker, answer, rows.num_items, rows.num_workers, rows.size
  )


def e_step(rows: Triples, place: Array, law: Law) -> tuple[Array, Array]:
  """The posterior [s, size, c], and the log-evidence of each item [.., 1]."""
  a, c, symbols = law.confusion.shape
  table = jnp.swapaxes(safe_log(law.confusion), 1, 2).reshape(a * symbols, c)
  logits = sums.of_items(rows, place, table) + safe_log(law.balance)
  top = jnp.max(logits, axis=-1, keepdims=True)
  likely = jnp.exp(logits - top)
  total = jnp.sum(likely, axis=-1, keepdims=True)
  return likely / total, top + jnp.log(total)


def normalized(counts: Array) -> Array:
  """Rows that sum to one; of zeros, alike."""
  total = jnp.sum(counts, axis=-1, keepdims=True)
  alike = 1 / counts.shape[-1]
  return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), alike)


def one_sided(voted: Array) -> Array:
  """[a] bool, who only ever votes for one class, of votes [a, c]."""
  return jnp.sum(voted > 0, axis=1) == 1


def accuracy(law: Law) -> Array:
  """[a]: how probable it is that a vote is right."""
  c = len(law.balance)
  answers = law.balance[:, None] * law.confusion[:, :, :c]
  total = jnp.sum(answers, axis=(1, 2))
  right = jnp.trace(answers, axis1=1, axis2=2)
  return right / jnp.where(total > 0, total, 1)


def _top(probs: Array) -> Array:
  """[..., c]: 1 at the largest probability, in even parts where it is tied."""
  most = jnp.max(probs, axis=-1, keepdims=True)
  return shares_of(probs >= most * (1 - TIED))


def collapsed(posterior: Array, shares: Array, there: Array) -> Array:
  """Whether far too many items are of one class, as the majority has it."""
  c = posterior.shape[-1]
  guess, most = _top(posterior), _top(shares)
  both = jnp.concatenate([guess, most, jnp.ones_like(guess[..., :1])], axis=-1)
  numbers = global_sum(sums.over_items(both * there))
  guess, most, number = numbers[:c], numbers[c:-1], numbers[-1]
  k = jnp.argmax(guess)
  outside, expected = number - guess[k], number - most[k]
  return (expected > FEW * number) & (outside < LEFT * expected)
