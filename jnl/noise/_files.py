"""A draw as a small file, so that others train on the very same labels."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Key, check
from jnl.noise._draws import NoisyLabels

VERSION = 1


class SavedDraw(NamedTuple):
  """Noisy labels read from a file of `save_draw`, and how they were made.

  Attributes:
    draw: labels and flipped [n]; probs is [c, c] also if the labels were drawn
      from an [n, c] (see `save_draw`).
    generator: what made it, as the file says.
    rate: the rate it was made with, or None.
    key: the PRNG key it was made with.
  """

  draw: NoisyLabels
  generator: str
  rate: float | None
  key: Key


def save_draw(
  path: str | os.PathLike[str],
  draw: NoisyLabels,
  clean: ArrayLike,
  *,
  generator: str,
  rate: float | None,
  key: Key,
  dataset: str,
  id: ArrayLike | None = None,
) -> None:
  """Writes noisy labels and how they were drawn to a small npz file.

  Atomically, compressed; folders are made. The file holds the format version,
  labels, clean labels and row numbers (in the order of the latter),
  probabilities [c, c], generator, rate, the data and the name of the key, and
  the name of the data set: plain arrays, no pickle. Probabilities [n, c] are
  too many to share: stored is their mean over the examples of each class,
  P(noisy = j | clean = i) as well, and the identity for a class without
  examples. Where n = c they are taken to be [c, c].

  Args:
    path: of the file; an old one is replaced.
    draw: labels and flipped [n].
    clean: [n] int, what the draw was made from.
    generator: how to call it, such as 'symmetric'.
    rate: the rate, or None if it has none.
    key: the PRNG key of the draw, new or old style.
    dataset: name and split of the data set.
    id: [n] int, >= 0, distinct: the row of each example in the published data
      set. Default: 0 to n - 1.

  Raises:
    ValueError: if shapes do not match, `draw` was not made from `clean`, a
      label is out of range, or `id` repeats a row.
    TypeError: if `clean` or `id` are not integers.
  """
  labels = _read('draw', draw.labels)
  clean = _read('clean', clean)
  id = _read('id', np.arange(len(clean)) if id is None else id)
  for name, array in (('draw', labels), ('id', id)):
    check(
      array.shape == clean.shape,
      f'{name} has {len(array)} labels, clean has {len(clean)}',
    )
  check(
    np.array_equal(labels != clean, np.asarray(draw.flipped)),
    'draw was not made from these clean labels: flipped differs',
  )
  check(len(np.unique(id)) == len(id), 'id must not repeat a row')
  probs = _class_probs(np.asarray(draw.probs), clean)
  order, c = np.argsort(id), len(probs)
  check(
    max(labels.max(initial=0), clean.max(initial=0)) < c,
    f'draw and clean must lie in [0, {c})',
  )
  smallest = np.min_scalar_type(c - 1)
  arrays = {
    'version': np.array(VERSION),
    'labels': labels[order].astype(smallest),
    'clean': clean[order].astype(smallest),
    'id': id[order].astype(np.min_scalar_type(id.max(initial=0))),
    'probs': probs,
    'generator': np.array(generator),
    'rate': np.array(np.nan if rate is None else rate, np.float64),
    'key_data': np.asarray(jax.random.key_data(key)),
    'key_impl': np.array(str(jax.random.key_impl(key))),
    'dataset': np.array(dataset),
  }
  _write(pathlib.Path(path), arrays)


def _class_probs(probs: np.ndarray, clean: np.ndarray) -> np.ndarray:
  """[c, c], the mean of the rows of each class if there is one per example."""
  n, c = len(clean), probs.shape[-1]
  check(
    probs.shape in ((c, c), (n, c)),
    f'probs of draw must be [c, c] or [n, c] with n = {n}, got {probs.shape}',
  )
  if probs.shape == (c, c):
    return probs
  matrix = np.eye(c, dtype=probs.dtype)
  for i in np.unique(clean):
    matrix[i] = probs[clean == i].mean(0)
  return matrix


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """All of the file or nothing, also when two processes write it at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f'.{path.name}.{os.getpid()}.new')
  try:
    with open(new, 'wb') as file:
      np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)


def load_draw(
  path: str | os.PathLike[str],
  *,
  dataset: str,
  clean: ArrayLike,
  id: ArrayLike | None = None,
) -> SavedDraw:
  """The noisy labels in a file of `save_draw`, for the examples at hand.

  Args:
    path: of a file of `save_draw`.
    dataset: the name it was saved with.
    clean: [n] int, the clean labels of the examples, compared with the file's.
    id: [n] int, their rows in the published data set, any part of those of the
      draw in any order. Default: 0 to n - 1, which must be all of them.

  Returns:
    `SavedDraw`, with row i belonging to clean[i].

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is damaged or something else, was made for another
      data set, has no label for one of the examples, or has other clean labels
      for them; names the file.
    TypeError: if `clean` or `id` are not integers.
  """
  clean = _read('clean', clean)
  saved, stored, rows, found = _open(pathlib.Path(path))
  check(
    found == dataset,
    f'{path} is a draw for the data set {found!r}, not for {dataset!r}',
  )
  if id is None:
    id = np.arange(len(clean))
    check(
      len(rows) == len(id),
      f'{path} has labels of {len(rows)} examples, clean has {len(id)}: say '
      'which with id',
    )
  id = _read('id', id)
  check(
    id.shape == clean.shape,
    f'id has {len(id)} rows, clean has {len(clean)} labels',
  )
  missing = np.setdiff1d(id, rows)
  check(
    not missing.size,
    f'{path} has no labels for {missing.size} of the examples, the first is '
    f'id {missing[:1]}; it has {len(rows)} rows',
  )
  at = np.searchsorted(rows, id)
  differ = np.sum(stored[at] != clean)
  check(
    differ == 0,
    f'{path} was made for another data set or another order of it: {differ} of '
    f'{len(clean)} clean labels differ',
  )
  labels, flipped = saved.draw.labels[at], saved.draw.flipped[at]
  return saved._replace(draw=NoisyLabels(labels, flipped, saved.draw.probs))


def _open(
  path: pathlib.Path,
) -> tuple[SavedDraw, np.ndarray, np.ndarray, str]:
  """All of a file: the draw, clean labels, row numbers, and the data set."""
  if not path.exists():
    raise FileNotFoundError(f'there is no draw at {path}')
  with _blamed(path), np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
    version = int(arrays['version'])
  check(
    version == VERSION,
    f'{path} has the format version {version}, this jnl reads {VERSION}',
  )
  with _blamed(path):
    return _parse(arrays)


@contextlib.contextmanager
def _blamed(path: pathlib.Path) -> Iterator[None]:
  """Turns what zip, zlib, pickle, numpy and jax raise into one error."""
  try:
    yield
  except Exception as error:
    raise ValueError(f'{path} is not a saved draw, or is damaged') from error


def _parse(
  arrays: dict[str, np.ndarray],
) -> tuple[SavedDraw, np.ndarray, np.ndarray, str]:
  labels, clean, id = (arrays[name] for name in ('labels', 'clean', 'id'))
  probs, rate = arrays['probs'], float(arrays['rate'])
  for column in (labels, clean, id):
    check(column.shape == (len(labels),), 'columns of different lengths')
    check(column.dtype.kind == 'u', 'columns of another type')
  check(np.all(id[1:] > id[:-1]), 'id is not sorted')
  check(
    probs.ndim == 2 and len(probs) == probs.shape[1] > labels.max(initial=0),
    'probs do not fit the labels',
  )
  key_data, impl = jnp.asarray(arrays['key_data']), str(arrays['key_impl'])
  draw = NoisyLabels(
    jnp.asarray(labels.astype(np.int32)),
    jnp.asarray(labels != clean),
    jnp.asarray(probs),
  )
  saved = SavedDraw(
    draw,
    str(arrays['generator']),
    None if np.isnan(rate) else rate,
    jax.random.wrap_key_data(key_data, impl=impl),
  )
  return saved, clean, id, str(arrays['dataset'])


def _read(name: str, array: Any) -> np.ndarray:
  """[n] integers, on the host."""
  array = np.asarray(array)
  check(
    np.issubdtype(array.dtype, np.integer),
    f'{name} must be integers, got {array.dtype}',
    TypeError,
  )
  check(array.ndim == 1, f'{name} must be [n], got shape {array.shape}')
  check(array.size == 0 or array.min() >= 0, f'{name} must not be negative')
  return array
