"""Checkpoints: the whole state and the position, restored only where they fit.

The only room of jnl that imports Orbax. A checkpoint is written next to its
place and renamed, so that it is there whole or not at all.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import json
import logging
import math
import pathlib
import shutil
import signal
import sys
import threading
import time
import types
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jnl.base import PyTree, State, check
from jnl.data import PerRun

PathLike = str | pathlib.Path
Json = Mapping[str, Any]


class Checkpoints(NamedTuple):
  """A folder of checkpoints that is open, from `open_checkpoints`.

  Attributes:
    save: `(number, state, position) -> None`; numbers rise, and `position` is
      anything that JSON can hold.
    restore: `abstract state -> (state, position)` of the last checkpoint that
      can be read, or None if there is none. The abstract state is made of
      `jax.ShapeDtypeStruct` with the shardings to restore onto.
    latest: the number of the last checkpoint, or 'none', as text.
  """

  save: Callable[[int, PyTree, Any], None]
  restore: Callable[[PyTree], tuple[PyTree, Any] | None]
  latest: Callable[[], str]


@contextlib.contextmanager
def open_checkpoints(
  folder: PathLike,
  about: Json,
  *,
  resume: bool,
  keep: int = 3,
  step: Json = types.MappingProxyType({}),
  same_step: bool = True,
) -> Iterator[Checkpoints]:
  """Opens a folder of checkpoints; it is made if need be.

  Args:
    folder: holds checkpoints and nothing else.
    about: what the run is, as JSON: method, hyperparameters, data. Restoring
      compares it with what was saved, together with the shapes and dtypes of
      the state (Orbax alone would cast silently). What only one of the two has
      at the top is not compared: older checkpoints say less.
    resume: go on from what is there; else the folder must not hold checkpoints.
    keep: how many of the last checkpoints stay.
    step: a fingerprint of what is computed, by what traced it; those traced by
      the same must agree.
    same_step: whether to look at that.

  Yields:
    `Checkpoints`.

  Raises:
    ValueError: if the folder holds something else, or checkpoints that are not
      to be resumed, and on restoring if one was made by another run, naming
      what differs, or if none can be read.
    OSError: if the folder or a checkpoint cannot be written; the last good
      checkpoint is still there.
  """
  check(keep >= 1, f'keep must be at least 1, got {keep}')
  folder = pathlib.Path(folder).absolute()
  _check_folder(folder, resume)
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    cleanup_tmp_directories=True,
    save_root_metadata=False,
    enable_async_checkpointing=False,
  )
  about, step = (json.loads(json.dumps(dict(x))) for x in (about, step))
  with ocp.CheckpointManager(folder, options=options) as manager:
    yield Checkpoints(
      functools.partial(_save, manager, folder, about, step),
      functools.partial(_restore, manager, folder, about, step, same_step),
      functools.partial(_latest, manager),
    )


def _save(
  manager: ocp.CheckpointManager,
  folder: pathlib.Path,
  about: Json,
  step: Json,
  number: int,
  state: PyTree,
  position: Any,
) -> None:
  """Writes a checkpoint of that number, or raises and leaves nothing of it."""
  record = {
    'about': about,
    'arrays': _arrays(state),
    'step': step,
    'position': position,
  }
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(record)
  )
  try:
    with _quiet():
      if number in manager.all_steps():  # one that could not be read
        manager.delete(number)
      manager.save(number, args=items, force=True)
  except Exception as error:
    _remove_partial(folder)
    raise OSError(
      f'could not write checkpoint {number} to {folder} '
      f'({str(error).splitlines()[0]}); the last good one is {_latest(manager)}'
    ) from None


def _restore(
  manager: ocp.CheckpointManager,
  folder: pathlib.Path,
  about: Json,
  step: Json,
  same_step: bool,
  abstract: PyTree,
) -> tuple[PyTree, Any] | None:
  """The last checkpoint that can be read, if it is of the same run."""
  numbers = sorted(manager.all_steps(), reverse=True)
  for number in numbers:
    try:
      with _quiet():
        record = _read(manager, number, position=ocp.args.JsonRestore())
    except Exception as error:
      _say_unreadable(folder, number, error)
      continue
    known = _of_both(record['about'], about)
    _compare(folder, number, 'description', *known)
    _compare(folder, number, 'state', record['arrays'], _arrays(abstract))
    _check_step(folder, number, record.get('step', {}), step, same_step)
    try:
      with _quiet():
        state = _read(manager, number, state=ocp.args.StandardRestore(abstract))
    except Exception as error:
      _say_unreadable(folder, number, error)
      continue
    return state, record['position']
  check(not numbers, f'no checkpoint in {folder} can be read')
  return None


def _check_folder(folder: pathlib.Path, resume: bool) -> None:
  """Makes the folder, or checks that it is one of checkpoints."""
  folder.mkdir(parents=True, exist_ok=True)
  names = sorted(path.name for path in folder.iterdir())
  whole = [name for name in names if name.isdigit()]
  foreign = [
    n for n in names if not n.isdigit() and '.orbax-checkpoint-tmp' not in n
  ]
  check(
    not foreign,
    f'{folder} is no folder of checkpoints, it also holds {foreign[:3]}',
  )
  check(
    resume or not whole,
    f'{folder} already holds checkpoints ({", ".join(whole)}): resume, or take '
    'another folder',
  )
  if resume and not whole:
    say(f'nothing to resume in {folder}: starting from the beginning')


def _arrays(state: PyTree) -> dict[str, list]:
  """Shape and dtype of every array, by its path in the state."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {
    jax.tree_util.keystr(path): [list(x.shape), str(x.dtype)]
    for path, x in leaves
  }


def _compare(
  folder: pathlib.Path, number: int, what: str, saved: Json, here: Json
) -> None:
  """Raises unless both agree, naming what differs."""
  saved, here = _flat(saved), _flat(here)
  differing = [
    f'{name}: {saved.get(name, "missing")} saved, '
    f'{here.get(name, "missing")} here'
    for name in {**saved, **here}
    if saved.get(name) != here.get(name)
  ]
  more = f' (and {len(differing) - 5} more)' if len(differing) > 5 else ''
  check(
    not differing,
    f'checkpoint {number} in {folder} belongs to another run; in its {what} '
    f'differ: {"; ".join(differing[:5])}{more}',
  )


def _of_both(saved: Json, here: Json) -> tuple[Json, Json]:
  """The entries that both have."""
  names = [name for name in saved if name in here]
  return {k: saved[k] for k in names}, {k: here[k] for k in names}


def _check_step(
  folder: pathlib.Path, number: int, saved: Json, here: Json, same_step: bool
) -> None:
  """Raises if the same tracer found another step."""
  saved, here = _of_both(saved, here)
  check(
    not same_step or saved == here,
    f'checkpoint {number} in {folder} was trained by another step: a '
    'hyperparameter, the network, the optimizer, augment or refit has changed. '
    'Take another folder, or Checkpoint(same_step=False) to go on from there',
  )


CHECKSUM_BYTES = 1 << 30
"""Of an array larger than this, evenly spaced blocks are looked at."""


def checksum(values: Any) -> str:
  """A name for what an array holds, read in blocks, as the devices hold it.

  >>> labels = np.array([0, 1, 2])
  >>> checksum(labels) == checksum(labels.astype(np.int32))
  True
  >>> checksum(labels) == checksum(labels[::-1])
  False
  """
  if isinstance(values, PerRun):
    return ' '.join(map(checksum, values.values))
  values = np.asarray(values) if isinstance(values, jax.Array) else values
  dtype = jax.dtypes.canonicalize_dtype(values.dtype)
  row = max(1, np.dtype(dtype).itemsize * math.prod(values.shape[1:]))
  rows = max(1, (1 << 22) // row)
  blocks = -(-row * len(values) // CHECKSUM_BYTES)
  crc = 0
  for first in range(0, len(values), rows * max(1, blocks)):
    part = np.asarray(values[first : first + rows], dtype)
    crc = zlib.crc32(part.tobytes(), crc)
  return f'{crc:08x}'


@jax.jit
def finite_runs(state: State) -> jax.Array:
  """Whether a state can be gone on from; where there are runs, [runs].

  Parameters and batch statistics must be finite, and the optimizer's state must
  not hold NaN (infinity may be meant).
  """
  runs = state.step.shape
  good = jnp.ones(runs, bool)
  for tree, bad in (
    ((state.params, state.stats), lambda x: ~jnp.isfinite(x)),
    (state.opt, jnp.isnan),
  ):
    for x in jax.tree.leaves(tree):
      if jnp.issubdtype(x.dtype, jnp.inexact):
        good &= ~jnp.any(bad(x), axis=tuple(range(len(runs), x.ndim)))
  return good


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Nested mappings as one, with dotted names.

  >>> _flat({'a': {'b': 1}, 'c': [2]})
  {'a.b': 1, 'c': [2]}
  """
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {
    name: value
    for key, inner in tree.items()
    for name, value in _flat(
      inner, f'{prefix}.{key}' if prefix else key
    ).items()
  }


def _read(manager: ocp.CheckpointManager, number: int, **item: Any) -> Any:
  (name,) = item
  restored = manager.restore(number, args=ocp.args.Composite(**item))
  return restored[name]


def _latest(manager: ocp.CheckpointManager) -> str:
  numbers = manager.all_steps()
  return str(max(numbers)) if numbers else 'none'


def _remove_partial(folder: pathlib.Path) -> None:
  """Removes what a failed save left; its threads may still be writing."""
  for _ in range(40):
    partial = list(folder.glob('*.orbax-checkpoint-tmp*'))
    for path in partial:
      shutil.rmtree(path, ignore_errors=True)
    if not partial:
      return
    time.sleep(0.05)


def say(message: str) -> None:
  """Prints where a user looks for it, beside what a script writes."""
  print(message, file=sys.stderr, flush=True)


def _say_unreadable(
  folder: pathlib.Path, number: int, error: Exception
) -> None:
  reason = (str(error).splitlines() or [''])[0]
  say(
    f'checkpoint {number} in {folder} cannot be read '
    f'({type(error).__name__}: {reason[:200]}): trying an older one'
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax from logging pages of tracebacks beside what it raises."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def noticing_sigterm() -> Iterator[Callable[[], bool]]:
  """Gives a function that says whether SIGTERM has come.

  Inside, the signal does not end the process: whoever asks saves and exits.
  Outside the main thread, where Python sets no handlers, it is always False.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  came = threading.Event()
  old = signal.signal(signal.SIGTERM, lambda *_: came.set())
  try:
    yield came.is_set
  finally:
    signal.signal(signal.SIGTERM, old)
