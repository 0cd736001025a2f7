"""What a row says: the class it suggests, whether it contradicts its label.

One law, two ways of going through the rows: a jitted program, and numpy block
by block where that is faster: on the host, of many classes or of few rows.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import functools
import os
from typing import Any, Literal, NamedTuple, TypeVar
import warnings

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jnl.base import (
  Array,
  check,
  check_auto,
  check_name,
  global_sum,
  is_concrete,
)
from jnl.inputs import BELOW_ZERO, check_simplex, off_one

MARGIN = 1e-6
"""What floating-point numbers are compared with, as cleanlab does."""
UNREACHABLE = 2.0
"""The threshold of a class without examples."""
BLOCK = 1 << 20  # elements that stay in the cache
CHUNK = 1 << 22  # elements that go to a device at once
ROUND = 1 << 14  # rows: what goes to a device is a multiple of it
WIDE = 64  # classes from which on numpy is faster than XLA on a CPU
PARTIAL = 1024  # terms of a sum in float32 before it is added to others

Argmax = Literal['all', 'confident']
Probs = Any  # np.ndarray or jax.Array
T = TypeVar('T')


class Rows(NamedTuple):
  """Labels, probabilities, and which of them count, in arrays of one kind.

  Attributes:
    labels: [n] int, 0 where a row does not count.
    probs: [n, c].
    mask: [n] bool, or None where all count.
  """

  labels: Any
  probs: Probs
  mask: Any


class Suggested(NamedTuple):
  """What the rows suggest.

  Attributes:
    guess: [n] int32, the class, -1 where none is confident.
    contradicts: [n] bool, whether some class beats the label by the margin.
    valid: [] bool, whether all rows that count hold probabilities.
  """

  guess: Any
  contradicts: Any
  valid: Any


# --- reading -----------------------------------------------------------------


def is_jax(*arrays: Any) -> bool:
  """Whether one of them is an array of jax: then jax comes out."""
  return any(isinstance(a, jax.Array) for a in arrays)


def as_given(out: Any, *arrays: Any) -> Any:
  """A tree of arrays of the kind that came in; those of numpy are writable."""
  if is_jax(*arrays):
    return jax.tree.map(jnp.asarray, out)
  own = lambda a: np.array(a) if isinstance(a, jax.Array) else a
  return jax.tree.map(own, out)


def numbers(name: str, x: Any) -> Any:
  """An array of jax as it is, anything else as numpy's; objects are refused."""
  if isinstance(x, jax.Array):
    return x
  x = np.asarray(x)
  check(
    x.dtype.kind in 'biuf' or x.dtype.name == 'bfloat16',
    f'{name} must be an array of numbers, got {x.dtype}',
    TypeError,
  )
  return x


def read_probs(pred_probs: Any, name: str = 'pred_probs') -> Probs:
  """Checks probabilities [..., c]: kind and shape; float16 is warned of."""
  probs = numbers(name, pred_probs)
  check_auto(probs, name)
  check(
    jnp.issubdtype(probs.dtype, jnp.floating),
    f'{name} must be floating-point, got {probs.dtype}',
    TypeError,
  )
  check(
    probs.ndim >= 1 and probs.shape[-1] >= 2,
    f'{name} must be [..., c] with c >= 2 classes, got shape {probs.shape}; of '
    'the probability p of one class make np.stack([1 - p, p], -1)',
  )
  if probs.dtype.itemsize < 4:
    warnings.warn(
      f'{name} are {probs.dtype}: near 1 many of them are the same number, and '
      'their order is lost; give float32',
      stacklevel=4,
    )
    rough, probs = probs, probs.astype(np.float32)
    if off_one(rough.dtype) > off_one(np.float32):
      check_simplex(name, rough)
      probs = probs / probs.sum(-1, keepdims=True)
  return probs


def read_given(
  labels: Any, shape: tuple[int, ...], c: int, mask: Any = None
) -> tuple[Any, Any]:
  """Labels [...] that are safe to gather, and which of them count.

  Their range is looked at; inside jit one out of range does not count.
  """
  labels = numbers('labels', labels)
  check_auto(labels, 'labels')
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels must be integers, got {labels.dtype}',
    TypeError,
  )
  check(
    labels.shape == shape,
    f'labels must have shape {shape}, like the rows of pred_probs, got '
    f'{labels.shape}',
  )
  if is_concrete(labels, mask):
    counted = np.asarray(labels)
    counted = counted if mask is None else counted[np.asarray(mask)]
    if counted.size and not 0 <= counted.min() <= counted.max() < c:
      bad = counted[(counted < 0) | (counted >= c)][0]
      raise ValueError(
        f'labels must lie in [0, {c}), the columns of pred_probs, got {bad}; a '
        'row without a label is left out by mask'
      )
  if isinstance(labels, np.ndarray):
    labels = labels.astype(np.int64, copy=False)  # as numpy counts
  else:
    labels = labels.astype(jnp.int32)
  if not is_concrete(labels, mask):
    known = (labels >= 0) & (labels < c)
    mask = known if mask is None else known & mask
  return (labels if mask is None else labels * mask), mask


def read_mask(mask: Any, n: int) -> Any:
  """Checks a mask [n] of bool, or None."""
  if mask is None:
    return None
  mask = numbers('mask', mask)
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  check(mask.shape == (n,), f'mask must be [{n}], got shape {mask.shape}')
  return mask


def read(labels: Any, pred_probs: Any, mask: Any = None) -> Rows:
  """Checks labels [n] and probabilities [n, c], all but their values."""
  probs = read_probs(pred_probs)
  check(probs.ndim == 2, f'pred_probs must be [n, c], got shape {probs.shape}')
  n, c = probs.shape
  labels, mask = read_given(labels, (n,), c, read_mask(mask, n))
  return Rows(labels, probs, mask)


def on_host(rows: Rows) -> bool:
  """Whether they can be looked at where they are: all in the host's memory."""
  if not is_concrete(*rows):
    return False
  if isinstance(rows.probs, np.ndarray):
    return True
  devices = rows.probs.devices()
  return len(devices) == 1 and all(d.platform == 'cpu' for d in devices)


def as_numpy(rows: Rows) -> Rows:
  """The same on the host; of what lies there already, a view."""
  mask = None if rows.mask is None else np.asarray(rows.mask)
  labels = np.asarray(rows.labels).astype(np.int64, copy=False)
  return Rows(labels, np.asarray(rows.probs), mask)


def check_valid(valid: Any, probs: Probs, mask: Any = None) -> None:
  """Raises ValueError naming the row that holds no probabilities."""
  if is_concrete(valid) and not valid:
    check_simplex('pred_probs', np.asarray(probs), where=mask)


# --- thresholds --------------------------------------------------------------


def own_of(rows: Rows) -> Any:
  """The probability of the label of each row, [n]."""
  if isinstance(rows.probs, np.ndarray):
    return own_probs(rows.labels, rows.probs)
  return _own(rows.labels, rows.probs)


def own_probs(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
  """The same of arrays of numpy."""
  n, c = probs.shape
  if probs.flags.c_contiguous:
    place = np.arange(0, n * c, c)
    place += labels  # in place: fresh memory costs more than the sum
    return probs.reshape(-1).take(place)
  return probs[np.arange(n), labels]


@jax.jit
def _own(labels: Array, probs: Array) -> Array:
  own = jnp.take_along_axis(
    probs, labels[:, None], axis=1, mode='promise_in_bounds'
  )
  return own[:, 0]


def class_means(rows: Rows, own: Any, weights: Any) -> Any:
  """Mean probability of each class where it is the label, [c]; 2 of none."""
  c = rows.probs.shape[1]
  if isinstance(rows.probs, np.ndarray) and is_concrete(weights):
    total, count = class_sums(rows, own, weights)
    return means_of(total, count, rows.probs.dtype)
  return _means(rows.labels, own, rows.mask, weights, c)


def class_sums(
  rows: Rows, own: np.ndarray, weights: Any = None
) -> tuple[np.ndarray, np.ndarray]:
  """By label, sums of the probability of the label, and of weights, [c]."""
  labels, c = rows.labels, rows.probs.shape[1]
  w = rows.mask if weights is None else np.asarray(weights, np.float64)
  if w is not None:
    own = np.where(w > 0, own, 0) * w
  return np.bincount(labels, own, c), np.bincount(labels, w, c)


def means_of(total: np.ndarray, count: np.ndarray, dtype: Any) -> np.ndarray:
  """The thresholds, of sums."""
  means = np.maximum(total / np.where(count > 0, count, 1), 2 * MARGIN)
  return np.where(count > 0, means, UNREACHABLE).astype(dtype)


@functools.partial(jax.jit, static_argnums=4)
def _means(labels: Array, own: Array, mask: Any, weights: Any, c: int) -> Array:
  if mask is None and weights is None:
    w, terms = jnp.int32(1), own
  else:
    w = jnp.asarray(mask if weights is None else weights, own.dtype)
    terms = jnp.where(w > 0, own, 0) * w
  # In parts: one sum of 1e5 terms in float32 drifts by more than the margin.
  parts = min(max(1, len(labels) // (PARTIAL * c)), 4096)
  place = labels * parts + jnp.arange(len(labels)) % parts

  def sums(values: Array) -> Array:
    table = jnp.zeros(c * parts, values.dtype)
    table = table.at[place].add(values, mode='promise_in_bounds')
    return table.reshape(c, parts).sum(1).astype(own.dtype)

  total, count = global_sum(jnp.stack([sums(terms), sums(w)]))
  means = total / jnp.where(count > 0, count, 1)
  return jnp.where(count > 0, jnp.maximum(means, 2 * MARGIN), UNREACHABLE)


# --- suggestions -------------------------------------------------------------


def suggest(
  rows: Rows, own: Any, thresholds: Any, argmax_over: Argmax
) -> Suggested:
  """What every row suggests, after a look whether it holds probabilities.

  Raises:
    ValueError: outside jit, if it is not.
  """
  check_name('argmax_over', argmax_over, ('all', 'confident'))
  n, c = rows.probs.shape
  wide = c >= WIDE and on_host(rows)
  if not wide and not isinstance(rows.probs, np.ndarray):
    found = _suggest(
      rows.probs, rows.mask, own, jnp.asarray(thresholds), argmax_over
    )
    check_valid(found.valid, rows.probs, rows.mask)
    return found
  thresholds = np.asarray(thresholds)
  _, probs, mask = as_numpy(rows)
  arrays = probs, mask, np.asarray(own)
  if wide or n * c < CHUNK:
    found = _in_turn(arrays, max(BLOCK // c, 1), thresholds, argmax_over)
  else:
    size = -(-n // -(-n * c // CHUNK))  # alike, and of few sizes to compile
    found = _ahead(arrays, -(-size // ROUND) * ROUND, thresholds, argmax_over)
  guess, contradicts = np.empty(n, np.int32), np.empty(n, bool)
  for part, block, of_block in found:
    check_valid(of_block.valid, *block[:2])
    guess[part], contradicts[part] = of_block.guess, of_block.contradicts
  return Suggested(guess, contradicts, True)


Found = Iterator[tuple[slice, tuple, Suggested]]
"""Of every block: where it is, its arrays, and what its rows suggest."""


def _in_turn(
  arrays: tuple, size: int, thresholds: np.ndarray, argmax_over: Argmax
) -> Found:
  """By numpy, in blocks that the cache holds, on all cores."""
  parts = [*parts_of(len(arrays[0]), size)]
  blocks = [_cut(arrays, part) for part in parts]

  def run(block: tuple) -> Suggested:
    probs, mask, own = block
    return _suggest_on_host(probs, mask, own, thresholds, argmax_over)

  yield from zip(parts, blocks, on_cores(run, blocks), strict=True)


def on_cores(run: Callable[[Any], T], parts: list[Any]) -> list[T]:
  """What a function says of each part, computed by numpy on all cores."""
  if len(parts) == 1:
    return [run(parts[0])]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(run, parts))


def _ahead(
  arrays: tuple, size: int, thresholds: np.ndarray, argmax_over: Argmax
) -> Found:
  """By the jitted program; while it runs, the next block is sent."""
  waiting: list = []
  for part in parts_of(len(arrays[0]), size):
    block = _cut(arrays, part)
    with doubles(block[0].dtype):
      found = _suggest(*block, thresholds, argmax_over)
    yield from waiting
    waiting = [(part, block, found)]
  yield from waiting


def _cut(arrays: tuple, part: slice) -> tuple:
  return tuple(None if a is None else a[part] for a in arrays)


def parts_of(n: int, rows: int, *, overlap: bool = True) -> Iterator[slice]:
  """Slices that cover n rows; all of one size, if the last two may overlap."""
  for first in range(0, n, rows):
    last = min(first + rows, n)
    yield slice(max(0, last - rows) if overlap else first, last)


def doubles(dtype: Any) -> contextlib.AbstractContextManager:
  """A context in which jax keeps float64 as it is."""
  narrowed = jax.dtypes.canonicalize_dtype(dtype) != dtype
  return jax.enable_x64(True) if narrowed else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=4)
def _suggest(
  probs: Array,
  mask: Any,
  own: Array,
  thresholds: Array,
  argmax_over: Argmax,
) -> Suggested:
  c = probs.shape[1]
  thresholds = (thresholds - MARGIN).astype(probs.dtype)
  classes = lax.broadcasted_iota(jnp.int32, probs.shape, 1)
  confident = probs >= thresholds
  compared = probs if argmax_over == 'all' else jnp.where(confident, probs, -1)
  first = jnp.where(confident, classes, c)
  zero, high = jnp.zeros((), probs.dtype), jnp.asarray(jnp.inf, probs.dtype)
  # One reduction, which reads the rows once.
  largest, several, number, first, total, least = lax.reduce(
    (compared, classes, confident * 1, first, probs, probs),
    (-high, jnp.int32(c), 0, jnp.int32(c), zero, high),
    _both,
    (1,),
  )
  if argmax_over == 'confident':
    largest = jnp.max(probs, axis=1)
  guess = jnp.where(number > 1, several, first)
  contradicts = largest - own > MARGIN
  valid = (jnp.abs(total - 1) <= off_one(probs.dtype)) & (least >= -BELOW_ZERO)
  there = number > 0
  if mask is not None:
    there, contradicts, valid = there & mask, contradicts & mask, valid | ~mask
  return Suggested(jnp.where(there, guess, -1), contradicts, jnp.all(valid))


def _both(a: tuple, b: tuple) -> tuple:
  """Of two parts of a row: largest and where, counts, first, sums, least."""
  (best, at, number, first, total, least) = zip(a, b, strict=True)
  second = (best[1] > best[0]) | ((best[1] == best[0]) & (at[1] < at[0]))
  return (
    jnp.where(second, best[1], best[0]),
    jnp.where(second, at[1], at[0]),
    sum(number),
    jnp.minimum(*first),
    sum(total),
    jnp.minimum(*least),
  )


def _suggest_on_host(
  probs: np.ndarray,
  mask: Any,
  own: np.ndarray,
  thresholds: np.ndarray,
  argmax_over: Argmax,
) -> Suggested:
  """The same by a shortcut: where the largest is confident, it is the guess."""
  guess = probs.argmax(1).astype(np.int32)
  largest = probs[np.arange(len(probs)), guess]
  contradicts = largest - own > MARGIN
  valid = valid_rows(probs)
  thresholds = (thresholds - MARGIN).astype(probs.dtype)
  guess[largest < thresholds.min()] = -1  # then nothing else reaches its own
  rest = np.flatnonzero((guess >= 0) & (largest < thresholds[guess]))
  confident = probs.take(rest, 0) >= thresholds
  first = confident.argmax(1)
  there = confident[np.arange(len(rest)), first]
  guess[rest[~there]] = -1
  rest, confident, first = rest[there], confident[there], first[there]
  if argmax_over == 'all':
    several = guess[rest]
  else:
    several = np.where(confident, probs[rest], -1).argmax(1)
  guess[rest] = np.where(confident.sum(1) > 1, several, first)
  if mask is not None:
    guess, contradicts = np.where(mask, guess, -1), contradicts & mask
    valid |= ~mask
  return Suggested(guess, contradicts, valid.all())


def valid_rows(probs: np.ndarray) -> np.ndarray:
  """Which rows hold probabilities, [n] bool; NaN is none."""
  # By columns where rows are short. Not by BLAS, whose threads wait in a spin;
  # einsum adds in one pass, twice as fast as the pairs of sum.
  wide = probs.shape[1] >= WIDE
  total = np.einsum('ij->i', probs) if wide else sum(probs.T)
  valid = np.abs(total - 1) <= off_one(probs.dtype)
  if probs.size and probs.min() < -BELOW_ZERO:
    valid &= probs.min(1) >= -BELOW_ZERO
  return valid


def pair_counts(labels: Any, guess: Any, c: int) -> Any:
  """How often each pair of label and guess occurs, [c, c] int."""
  if isinstance(guess, np.ndarray):
    labels, cells = np.asarray(labels), c * (c + 1)

    def count(part: slice) -> np.ndarray:
      pair = labels[part] * (c + 1)
      pair += guess[part]
      pair += 1
      return np.bincount(pair, minlength=cells)

    parts = [*parts_of(len(guess), max(BLOCK, cells), overlap=False)]
    found = functools.reduce(np.add, map(count, parts or [slice(0)]))
    return found.reshape(c, c + 1)[:, 1:]
  return _pair_counts(labels, guess, c)


@functools.partial(jax.jit, static_argnums=2)
def _pair_counts(labels: Array, guess: Array, c: int) -> Array:
  place = labels * (c + 1) + guess + 1
  counts = jnp.zeros(c * (c + 1), jnp.int32)
  counts = counts.at[place].add(1, mode='promise_in_bounds')
  return global_sum(counts.reshape(c, c + 1)[:, 1:])
