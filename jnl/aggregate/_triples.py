"""Votes as triples (item, worker, answer), and what a function takes as votes.

A table [n, a] of a million items and a thousand annotators has mostly holes.
`Triples` keeps the votes that there are, in rows of a few slots: all votes of a
row are of one item, which has as many rows as it needs.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import SHARDS, Array, check, check_auto, is_concrete

MISSING = -1
"""The answer of who gave none."""


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['item', 'worker', 'answer'],
  meta_fields=['num_items', 'num_workers', 'size'],
)
@dataclasses.dataclass(frozen=True)
class Triples:
  """Votes of workers on items, packed; made by `triples`.

  Cut in s shards of consecutive items, so that devices that hold whole shards
  exchange nothing but sums over all votes. A row has v slots, for votes on one
  item; an item with more has several rows.

  Attributes:
    item: [s, r] int32, of each row, counted within its shard.
    worker: [s, v, r] int32, who voted.
    answer: [s, v, r] int32, -1 where a slot is empty.
    num_items: n.
    num_workers: a.
    size: items of a shard.
  """

  item: Array
  worker: Array
  answer: Array
  num_items: int
  num_workers: int
  size: int


Votes = ArrayLike | Triples
"""[n, a] int, -1 where there is none, or `Triples`."""


def triples(
  item: ArrayLike,
  worker: ArrayLike,
  answer: ArrayLike,
  *,
  num_items: int | None = None,
  num_workers: int | None = None,
  shards: int = 1,
) -> Triples:
  """Votes as crowds come: who said what of which item; looked at on the host.

  Args:
    item: [m] int in [0, num_items), in any order. Of names of any kind
      `np.unique(names, return_inverse=True)` makes them.
    worker: [m] int in [0, num_workers).
    answer: [m] int >= 0, the class.
    num_items: n; by default the largest item + 1.
    num_workers: a; by default the largest worker + 1.
    shards: in how many parts the items are cut, 8 to split them over 2, 4 or 8
      devices: `jax.device_put(triples, NamedSharding(mesh, P('data')))`.

  Returns:
    `Triples`, which every function of this room takes as votes.

  Raises:
    TypeError: if an argument is not of integers.
    ValueError: if one is out of range, or a worker votes twice on an item.

  >>> votes = triples([0, 0, 1], [0, 1, 1], [2, 2, 0])
  >>> votes_of(votes).tolist()
  [[2, 2], [-1, 0]]
  """
  items, num_items = _ids('item', item, num_items)
  workers, num_workers = _ids('worker', worker, num_workers)
  answers, _ = _ids('answer', answer, None)
  for name, ids in (('worker', workers), ('answer', answers)):
    check(
      ids.shape == items.shape,
      f'{name} must have a number for each of the {len(items)} of item, got '
      f'shape {ids.shape}',
    )
  check(shards >= 1, f'shards must be at least 1, got {shards}')
  pair = items.astype(np.int64) * num_workers + workers
  if np.any(pair[1:] <= pair[:-1]):
    order = np.argsort(pair, kind='stable')
    pair, items = pair[order], items[order]
    workers, answers = workers[order], answers[order]
  twice = np.flatnonzero(pair[1:] == pair[:-1])
  if len(twice):
    first = divmod(int(pair[twice[0]]), num_workers)
    raise ValueError(
      f'a worker has one vote on an item, but {len(twice)} triples are of a '
      f'pair that is there already, the first of item {first[0]}, worker '
      f'{first[1]}'
    )
  return _packed(items, workers, answers, num_items, num_workers, shards)


def _ids(name: str, x: Any, number: int | None) -> tuple[np.ndarray, int]:
  """[m] int32 in [0, number), and the number."""
  x = np.asarray(x)
  check(
    np.issubdtype(x.dtype, np.integer),
    f'{name} must be integers, got {x.dtype}; names are numbered by np.unique('
    f'{name}, return_inverse=True)[1]',
    TypeError,
  )
  check(
    x.ndim == 1 and x.size > 0,
    f'{name} must be [m], not empty, got shape {x.shape}',
  )
  largest = int(x.max())
  number = largest + 1 if number is None else number
  check(
    x.min() >= 0 and largest < min(number, 2**31),
    f'{name} must lie in [0, {number}), got {x.min()} to {largest}; a vote '
    'that is missing is no triple',
  )
  return x.astype(np.int32), number


def _packed(
  item: np.ndarray,
  worker: np.ndarray,
  answer: np.ndarray,
  num_items: int,
  num_workers: int,
  shards: int,
) -> Triples:
  """Of votes sorted by item."""
  size = -(-num_items // shards)
  number = np.bincount(item, minlength=size * shards)
  width = _width(number[number > 0])
  rows = -(-number // width)  # of each item
  each = rows.reshape(shards, size)
  most = int(each.sum(1).max())
  # Of an item the first row in its shard; of a vote which of its item it is.
  first = (np.cumsum(each, 1) - each).reshape(-1)
  nth = np.arange(len(item)) - (np.cumsum(number) - number)[item]
  row = first[item] + nth // width
  place = (item // size * width + nth % width) * most + row
  owner = np.zeros((shards, most), np.int32)
  for j in range(shards):
    own = np.repeat(np.arange(size, dtype=np.int32), each[j])
    owner[j, : len(own)] = own
  shape = shards, width, most
  workers = np.zeros(shape, np.int32)
  answers = np.full(shape, MISSING, np.int32)
  workers.reshape(-1)[place] = worker
  answers.reshape(-1)[place] = answer
  return Triples(
    jnp.asarray(owner),
    jnp.asarray(workers),
    jnp.asarray(answers),
    num_items,
    num_workers,
    size,
  )


def _width(number: np.ndarray) -> int:
  """Slots of a row, such that few are empty and few items need two rows."""
  widths = np.unique(np.quantile(number, [0.25, 0.5, 0.75, 0.9, 0.99, 1]))
  widths = np.ceil(widths).astype(int)
  cost = [(w + 2) * np.sum(-(-number // w)) for w in widths]
  return int(widths[np.argmin(cost)])


def triples_of(votes: ArrayLike, *, shards: int = 1) -> Triples:
  """The triples of a table of votes; looked at on the host.

  Args:
    votes: [n, a] int, -1 where an annotator gave no label.
    shards: as in `triples`.

  Returns:
    `Triples`.

  Raises:
    TypeError, ValueError: if `votes` is malformed, or has none.

  >>> triples_of([[2, -1], [0, 1]]).num_items
  2
  """
  seen = np.asarray(read_votes(votes)[0])
  check(np.any(seen >= 0), 'votes must have one: all are missing')
  item, worker = np.nonzero(seen >= 0)
  n, a = seen.shape
  return triples(
    item,
    worker,
    seen[item, worker],
    num_items=n,
    num_workers=a,
    shards=shards,
  )


def votes_of(votes: Triples) -> Array:
  """The table of votes that triples are of.

  Args:
    votes: `Triples` of n items and a workers.

  Returns:
    [n, a] int32, -1 where there is none.

  >>> votes_of(triples([1], [0], [3])).tolist()
  [[-1], [3]]
  """
  item = votes.item + votes.size * jnp.arange(len(votes.item))[:, None]
  item = jnp.where(votes.answer < 0, votes.num_items, item[:, None, :])
  table = jnp.full((votes.num_items, votes.num_workers), MISSING, jnp.int32)
  return table.at[item, votes.worker].set(votes.answer, mode='drop')


def read_votes(
  votes: Votes, num_classes: int | None = None
) -> tuple[Array | Triples, int]:
  """Votes as the functions of this room read them, and how many classes.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c >= 2; by default the largest vote + 1. Inside jit it has to
      be given.

  Returns:
    [n, a] int32, or `Triples`, -1 also for what is out of range inside jit; c.

  Raises:
    TypeError: if votes are not integers; NaN for a missing vote is refused.
    ValueError: if they have another shape, or one is out of range.

  >>> read_votes([[0, 2]])[1]
  3
  """
  check(
    num_classes is None or num_classes >= 2,
    f'num_classes must be at least 2, got {num_classes}',
  )
  if isinstance(votes, Triples):
    answer, c = _in_range(votes.answer, num_classes, 'answer of triples')
    return dataclasses.replace(votes, answer=answer), c
  table = votes if isinstance(votes, jax.Array) else np.asarray(votes)
  check_auto(table, 'votes')
  check(
    np.issubdtype(table.dtype, np.integer),
    f'votes must be integers, -1 where one is missing, got {table.dtype}; of '
    'NaN make np.where(np.isnan(votes), -1, votes).astype(int), of a DataFrame '
    'votes.fillna(-1).astype(int)',
    TypeError,
  )
  check(
    table.ndim == 2 and table.size > 0,
    'votes must be [n, a], a column of each annotator, not empty, or the '
    f'result of triples, got shape {table.shape}',
  )
  return _in_range(table, num_classes)


def _in_range(
  votes: Any, c: int | None, name: str = 'votes'
) -> tuple[Array, int]:
  if is_concrete(votes):
    seen = np.asarray(votes)
    full = np.iinfo(seen.dtype).max
    check(
      c is not None or full > 255 or seen.max() < full,
      f'{name} hold {full}, the largest {seen.dtype}: if that is a missing '
      'vote, make it -1 in int32; if it is a class, give num_classes',
    )
    c = c or max(2, int(seen.max()) + 1)
    bad = (seen < MISSING) | (seen >= c)
    if bad.any():
      at = np.unravel_index(bad.argmax(), bad.shape)
      where = f' in row {at[0]}, column {at[1]}' if name == 'votes' else ''
      raise ValueError(
        f'{name} must lie in [0, {c}), or be -1 where one is missing, got '
        f'{seen[at]}{where}'
      )
  if c is None:
    raise ValueError('num_classes has to be given inside jit')
  votes = jnp.asarray(votes.astype(np.int32))
  return jnp.where((votes >= 0) & (votes < c), votes, MISSING), c


def num_items(votes: Votes) -> int:
  """How many items there are; of what is no table, as many as it has rows."""
  if isinstance(votes, Triples):
    return votes.num_items
  shape = np.shape(votes)
  return shape[0] if shape else 0


def num_workers(votes: Array | Triples) -> int:
  """How many annotators there are."""
  return votes.num_workers if isinstance(votes, Triples) else votes.shape[1]


def packed(votes: Array | Triples) -> Triples:
  """A table as triples, a slot for each annotator; for use inside jit."""
  if isinstance(votes, Triples):
    return votes
  n, a = votes.shape
  shards = math.gcd(n, SHARDS)
  size = n // shards
  return Triples(
    item=jnp.broadcast_to(jnp.arange(size), (shards, size)),
    worker=jnp.broadcast_to(jnp.arange(a)[:, None], (shards, a, 1)),
    answer=jnp.swapaxes(votes.reshape(shards, size, a), 1, 2),
    num_items=n,
    num_workers=a,
    size=size,
  )
