"""Bags of examples, drawn or cut, and what is told of them."""

from collections.abc import Hashable, Mapping
import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import PAD, Array, Key, check, check_key
from jnl.inputs import is_missing


class Bags(NamedTuple):
  """Bags of examples, padded to the longest.

  Attributes:
    index: [k, m] int32, examples in [0, n); `PAD` where there is none.
    mask: [k, m] bool, where there is one.
    ids: [k], what the bags are called, numbers, strings or other names; None
      where they were drawn or cut and have no names.
  """

  index: Array | np.ndarray  # type: ignore[assignment]  # hides tuple.index
  mask: Array | np.ndarray
  ids: np.ndarray | None = None


def bags(key: Key, n: int, num_bags: int, *, mean: float, std: float) -> Bags:
  """Draws bags of examples, with replacement.

  Args:
    key: PRNG key.
    n: number of examples, >= 1.
    num_bags: k >= 1.
    mean: of the length of a bag before rounding; 10 in GLWS.
    std: >= 0, of the length; 1 in GLWS.

  Returns:
    `Bags` with m the longest length, max(2, int(N(mean, std^2))). On the host:
    m depends on the draw, so the key cannot be traced.

  Raises:
    ValueError: if an argument is out of range.

  GLWS goes on to reject bags until each combination of target classes has its
  share; that depends on the task and is not done here.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922: its code.
  """
  check_key(key)
  check(n >= 1, f'n must be at least 1, got {n}')
  check(num_bags >= 1, f'num_bags must be at least 1, got {num_bags}')
  check(np.isfinite(mean), f'mean must be finite, got {mean}')
  check(
    np.isfinite(std) and std >= 0, f'std must be finite and >= 0, got {std}'
  )
  key_lengths, key_index = jax.random.split(key)
  normal = np.asarray(jax.random.normal(key_lengths, (num_bags,)))
  lengths = np.maximum(2, np.trunc(mean + std * normal).astype(int))
  m = int(lengths.max())
  mask = jnp.asarray(np.arange(m) < lengths[:, None])
  index = jax.random.randint(key_index, (num_bags, m), 0, n, jnp.int32)
  return Bags(jnp.where(mask, index, PAD), mask)


def cut_bags(order: Any, bag_size: int) -> Bags:
  """Cuts a row of examples into bags, one after the other.

  Bags form at random from a permutation, by order from `range(n)`, and by a
  feature from the order in which it ascends.

  Args:
    order: [n] int, examples; n >= 1.
    bag_size: m >= 1.

  Returns:
    `Bags` of numpy arrays with k = ceil(n / m); the last one is short if m does
    not divide n. No example is left out.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> cut_bags([3, 1, 0, 2, 4], 2).mask.tolist()
  [[True, True], [True, True], [True, False]]
  """
  order = _read_order(order)
  check(bag_size >= 1, f'bag_size must be at least 1, got {bag_size}')
  k = -(-len(order) // bag_size)
  index = np.full((k, bag_size), PAD, np.int32)
  index.flat[: len(order)] = order
  return Bags(index, index != PAD)


def bags_of_ids(ids: Any) -> Bags:
  """The bags of a column that says, for each example, which one it is in.

  From a table with a group column, and another one with the counts of groups:

  >>> region = ['north', 'south', 'north', 'north']
  >>> positives = {'south': 0, 'north': 2}
  >>> bags = bags_of_ids(region)
  >>> bags.ids.tolist(), bags.index[:, :2].tolist()
  (['north', 'south'], [[0, 2], [1, 2147483647]])
  >>> counts_of_ids(bags, positives)
  array([2, 0], dtype=int32)

  `rows_of_bags(x, bags)`, `bags.mask` and the counts are what methods train on.

  Args:
    ids: [n] integers, strings, or whatever else can be the key of a dict:
      dates, truth values, a column of categories. Floating-point numbers
      cannot.

  Returns:
    `Bags` of numpy arrays, by ascending id, padded to the longest; ids that
    have no order come as they first appear.

  Raises:
    TypeError, ValueError: if `ids` is malformed, or one is missing, naming its
      row.
  """
  ids = _read_ids('ids', ids)
  names, bag = _numbered(ids)
  sizes = np.bincount(bag)
  order = np.argsort(bag, kind='stable')
  mask = np.arange(sizes.max()) < sizes[:, None]
  index = np.full(mask.shape, PAD, np.int32)
  index[mask] = order
  return Bags(index, mask, names)


def counts_of_ids(bags: Bags, counts: Mapping[Any, int]) -> np.ndarray:
  """The counts of bags in their order, looked up by what the bags are called.

  Args:
    bags: from `bags_of_ids`.
    counts: {id: count}, a dict or a Series, in any order; one of each bag.
      Whole numbers: a Series that had gaps holds them as 2.0.

  Returns:
    [k] int32.

  Raises:
    TypeError: if a count is no number, or missing (NaN).
    ValueError: naming bags without a count, with two, ids without an example,
      or a count that is not whole, or not between 0 and the instances of its
      bag.

  >>> counts_of_ids(bags_of_ids([7, 2, 7]), {2: 1, 7: 2})
  array([1, 2], dtype=int32)
  """
  check(bags.ids is not None, 'bags have no ids: they are not of bags_of_ids')
  names = np.asarray(bags.ids).tolist()
  counts = _read_mapping(counts)
  missing = [name for name in names if name not in counts]
  check(
    not missing,
    f'counts: {len(missing)} bags have none, the first is {missing[:1]}; drop '
    'their examples, or give them any count and weight 0',
  )
  unknown = sorted(set(counts) - set(names), key=str)
  check(
    not unknown,
    f'counts: {len(unknown)} ids have no example, the first is {unknown[:1]}; '
    'an empty bag says nothing',
  )
  found = np.array([counts[name] for name in names])
  gaps = found.dtype.kind == 'f' and np.isnan(found).any()
  check(
    found.dtype.kind in 'iuf' and not gaps,
    f'counts must be integers, got {found.dtype}; where some are missing '
    '(NaN), drop those bags, or give them any count and weight 0',
    TypeError,
  )
  off = found != np.round(found)
  check(
    not off.any(),
    f'counts: {found[off.argmax()]} of bag {names[off.argmax()]!r} is no whole '
    'number; of shares, counts are `counts_of_proportions`',
  )
  sizes = np.asarray(bags.mask).sum(1)
  off = (found < 0) | (found > sizes)
  worst = off.argmax()
  check(
    not off.any(),
    f'counts: {found[worst]:.0f} of the {sizes[worst]} instances of bag '
    f'{names[worst]!r}; a count lies between 0 and the size of its bag',
  )
  return found.astype(np.int32)


def check_whole_bags(ids: Any, held_out_ids: Any) -> None:
  """Raises if a bag has examples both in training and held out.

  Its count would tell of examples that a test must not know.

  Args:
    ids: [n] as for `bags_of_ids`, the bag of each training example.
    held_out_ids: [h] the same, of each one that is held out.

  Raises:
    TypeError, ValueError: naming a bag that is split, or an argument.
  """
  ids = _read_ids('ids', ids)
  held_out_ids = _read_ids('held_out_ids', held_out_ids)
  check(
    (ids.dtype.kind == 'U') == (held_out_ids.dtype.kind == 'U'),
    f'held_out_ids must be like ids, {ids.dtype}, got {held_out_ids.dtype}',
    TypeError,
  )
  others = set(held_out_ids.tolist())
  split = [name for name in _numbered(ids)[0].tolist() if name in others]
  check(
    len(split) == 0,
    f'held_out_ids: {len(split)} bags are split over training and held-out '
    f'examples, the first is {split[:1]}',
  )


def rows_of_bags(values: Any, bags: Bags) -> np.ndarray:
  """What belongs to the examples of each bag.

  Args:
    values: [n, ...], of each example.
    bags: of these examples.

  Returns:
    [k, m, ...], zeros in padding.
  """
  values, mask = np.asarray(values), np.asarray(bags.mask)
  rows = values[np.where(mask, bags.index, 0)]
  rows[~mask] = 0
  return rows


def counts_of_proportions(proportions: Any, mask: Any) -> np.ndarray:
  """How many instances of a bag are positive, given which share of them is.

  Args:
    proportions: [k] floating-point in [0, 1].
    mask: [k, m] bool, where there is an instance.

  Returns:
    [k] int32.

  Raises:
    TypeError, ValueError: if an array is malformed, or a share is that of no
      whole number, to 1% of an instance.

  >>> counts_of_proportions([.25, .667], [[True] * 4, [True] * 3 + [False]])
  array([1, 2], dtype=int32)
  """
  proportions, mask = np.asarray(proportions), np.asarray(mask)
  check(
    np.issubdtype(proportions.dtype, np.floating),
    f'proportions must be floating-point, got {proportions.dtype}',
    TypeError,
  )
  check(
    mask.dtype == bool and mask.ndim == 2,
    f'mask must be [k, m] bool, got {mask.dtype} of shape {mask.shape}',
    TypeError,
  )
  check(
    proportions.shape == mask.shape[:1],
    f'proportions must be [k] with k = {len(mask)}, got {proportions.shape}',
  )
  missing = np.flatnonzero(np.isnan(proportions))
  check(
    not missing.size,
    f'proportions: those of bags {missing[:3]} are missing (NaN); drop the '
    'bags, or give them any count and weight 0',
  )
  check(
    np.all((proportions >= 0) & (proportions <= 1)),
    'proportions must lie in [0, 1]',
  )
  expected = proportions * mask.sum(1)
  counts = np.round(expected)
  off = np.abs(expected - counts) > 0.01
  worst = off.argmax()
  check(
    not off.any(),
    f'proportions: {proportions[worst]} of the {mask[worst].sum()} instances '
    f'of bag {worst} is no whole number',
  )
  return counts.astype(np.int32)


def _read_order(order: Any) -> np.ndarray:
  order = np.asarray(order)
  check(
    np.issubdtype(order.dtype, np.integer),
    f'order must be integers, got {order.dtype}',
    TypeError,
  )
  return _read_column('order', order)


def _read_ids(name: str, ids: Any) -> np.ndarray:
  """Integers as they are, strings as numpy's, other names as objects."""
  values = np.asarray(ids)
  if values.dtype.kind == 'O' and values.ndim == 1:
    kinds = {type(value) for value in values}
    if all(issubclass(kind, str) for kind in kinds):
      values = values.astype(str)
    elif all(issubclass(k, int | np.integer) and k is not bool for k in kinds):
      values = values.astype(np.int64)
  elif values.dtype.kind == 'T':
    values = values.astype(str)
  elif values.dtype.kind in 'bmM' and values.ndim == 1:
    # As a Series gives its dates, which are then found in a dict of such.
    values = _objects(ids if hasattr(ids, 'iloc') else values)
  words = f'{name} must be integers or strings, none missing, or other keys'
  check(values.dtype.kind in 'iuUO', f'{words}, got {values.dtype}', TypeError)
  if values.dtype.kind == 'O' and values.ndim == 1:
    for row, value in enumerate(values):
      check(is_key(value), f'{words}, got {value!r} in row {row}', TypeError)
  return _read_column(name, values)


def _objects(values: Any) -> np.ndarray:
  found = np.empty(len(values), object)
  for i, value in enumerate(values):  # a list of tuples would be a matrix
    found[i] = value
  return found


def is_key(value: Any) -> bool:
  """Whether this can name a bag: hashable, not missing, no float.

  >>> [is_key(value) for value in ('a', 7, (1, 2), 0.5, None, [])]
  [True, True, True, False, False, False]
  """
  named = isinstance(value, Hashable) and not is_missing(value)
  return named and not isinstance(value, float | np.floating)


def _numbered(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The different ids, and which of them each row has."""
  if ids.dtype.kind != 'O':
    return np.unique(ids, return_inverse=True)
  names = list(dict.fromkeys(ids))
  with contextlib.suppress(TypeError):  # of no order
    names = sorted(names)
  number = {name: i for i, name in enumerate(names)}
  return _objects(names), np.array([number[i] for i in ids])


def _read_mapping(counts: Any) -> dict[Any, Any]:
  """A dict, of a dict or a Series; raises where this has an id twice."""
  check(
    hasattr(counts, 'items'),
    f'counts must be {{id: count}}, a dict or a Series, got '
    f'{type(counts).__name__}',
    TypeError,
  )
  found: dict[Any, Any] = {}
  for name, count in counts.items():
    check(name not in found, f'counts: bag {name!r} has more than one')
    found[name] = count
  return found


def _read_column(name: str, values: np.ndarray) -> np.ndarray:
  check(
    values.ndim == 1 and len(values) >= 1,
    f'{name} must be [n] with n >= 1, got shape {values.shape}',
  )
  return values
