"""Sums over votes: of each item, and of each annotator and answer.

Both go over the slots of `Triples` one by one, so that nothing has the size of
the votes times the classes; and by shard, so that devices exchange only sums.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jnl.aggregate._triples import Triples
from jnl.base import Array, global_sum

PARTIAL = 1024  # terms of a sum in float32 before it is added to others


def places(votes: Triples, symbols: int) -> Array:
  """[s, v, r]: worker * symbols + answer; of no vote, one after the last."""
  place = votes.worker * symbols + votes.answer
  return jnp.where(votes.answer < 0, votes.num_workers * symbols, place)


def of_items(votes: Triples, place: Array, table: Array) -> Array:
  """[s, size, k]: of each item the sum of the table [p, k] at its votes.

  Place p is of what counts nothing.
  """
  table = jnp.concatenate([table, jnp.zeros_like(table[:1])])
  at = lambda slot: table.at[slot].get(mode='promise_in_bounds')

  def one(item: Array, place: Array) -> Array:
    add = lambda j, total: total + at(place[j])
    total = lax.fori_loop(1, len(place), add, at(place[0]))
    zeros = jnp.zeros((votes.size, table.shape[1]), table.dtype)
    return zeros.at[item].add(total, mode='promise_in_bounds')

  return jax.vmap(one)(votes.item, place)


def of_places(votes: Triples, place: Array, rows: Array, p: int) -> Array:
  """[p, k]: of each place the sum of the rows [s, size, k] of its votes."""

  def one(item: Array, place: Array, rows: Array) -> Array:
    rows = rows.at[item].get(mode='promise_in_bounds')
    add = lambda j, total: total.at[place[j]].add(
      rows, mode='promise_in_bounds'
    )
    zeros = jnp.zeros((p + 1, rows.shape[1]), rows.dtype)
    return lax.fori_loop(1, len(place), add, add(0, zeros))

  return jnp.sum(jax.vmap(one)(votes.item, place, rows), axis=0)[:p]


def over_items(rows: Array) -> Array:
  """[k]: the sum of rows [s, size, k], in parts of few terms."""
  s, size, k = rows.shape
  parts = -(-size // PARTIAL)
  rows = jnp.pad(rows, ((0, 0), (0, parts * PARTIAL - size), (0, 0)))
  return jnp.sum(jnp.sum(rows.reshape(s, parts, PARTIAL, k), 2), (0, 1))


def unpacked(votes: Triples, rows: Array) -> Array:
  """[n, k] of rows [s, size, k]."""
  return rows.reshape(-1, rows.shape[-1])[: votes.num_items]


def of_own(votes: Triples, rows: Array) -> Array:
  """[a]: of all devices the sum of what rows [s, size, c] say of each vote."""
  a, c = votes.num_workers, rows.shape[-1]
  table = of_places(votes, places(votes, c), rows, a * c)
  return jnp.trace(global_sum(table).reshape(a, c, c), axis1=1, axis2=2)


def of_answers(votes: Triples, c: int) -> Array:
  """[a, c] int: of all devices the votes of each annotator for each class."""
  ones = jnp.ones((len(votes.item), votes.size, 1), jnp.int32)
  a, place = votes.num_workers, places(votes, c)
  return global_sum(of_places(votes, place, ones, a * c)).reshape(a, c)


def number_of_items(votes: Array | Triples) -> int | Array:
  """n, of all devices; of a table each has its own rows."""
  if isinstance(votes, Triples):
    return votes.num_items
  return global_sum(jnp.asarray(len(votes)))
