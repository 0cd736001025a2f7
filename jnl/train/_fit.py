"""The training loop: a method, arrays, a key, and the curves that come out.

`fit` trains once; `fit_many` trains several runs of one method, seeds and noise
draws, in one program. Data live on the device, or are streamed to it; order,
batches, augmentation and steps are compiled, and the state is donated from step
to step. With a `Checkpoint` a run that was interrupted goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import pathlib
import sys
import time
import types
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Batch, Key, Method, State, check, check_key
from jnl.data._batches import PerRun, of_run
from jnl.data._stream import check_main_guard
from jnl.train import _program as programs
from jnl.train import _traced as traced
from jnl.train._parallel import How
from jnl.train._plan import Arrays, Augment, Plan, Source, Stream, make_plan
from jnl.train._program import Carry, Feed, Loop, Program
from jnl.train._score import Score
from jnl.train.report import PathLike, Row, append_jsonl, plain

Log = PathLike | Callable[[Row], None]

SECONDS_BETWEEN_LINES = 30
"""Of progress, where there is no terminal for a bar."""


class Checkpoint(NamedTuple):
  """Where a run is saved, and how often.

  Attributes:
    folder: of checkpoints, and of nothing else.
    resume: go on from the last one there, if there is one.
    every: steps between two of them, by default those of an epoch.
    keep: how many of the last ones stay. A run whose parameters are no longer
      finite is not saved, so that a good one stays.
    config: hyperparameters, as JSON; together with the label, the key, and
      sizes and checksums of the data they say which run a checkpoint belongs
      to.
    same_step: refuse to go on with another step: another hyperparameter,
      network, optimizer, augmentation or refit, as jax traces them. A
      checkpoint of another version of jax is not compared.
  """

  folder: PathLike
  resume: bool = False
  every: int | None = None
  keep: int = 3
  config: Mapping[str, Any] = types.MappingProxyType({})
  same_step: bool = True


class Fit(NamedTuple):
  """What training leaves.

  Attributes:
    state: the last state; with a leading axis of runs from `fit_many`.
    history: for each metric of the method its mean over the epoch, and for each
      score of a held-out set its value after the epoch, by the names of both
      (`test_accuracy`): [epochs], or [runs, epochs].
  """

  state: State
  history: dict[str, np.ndarray]


def fit(
  method: Method,
  data: Arrays,
  key: Key,
  *,
  epochs: int,
  batch_size: int,
  streams: Mapping[str, Stream] = types.MappingProxyType({}),
  held_out: Mapping[str, Arrays] | None = None,
  scores: Mapping[str, Score] = types.MappingProxyType({}),
  augment: Augment | None = None,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
  shards: int | None = None,
  loop: Loop | None = None,
  stream: int | None = None,
  checkpoint: Checkpoint | None = None,
  log: Log | None = None,
  label: str = 'fit',
) -> Fit:
  """Trains a method on arrays in memory.

  Args:
    method: what to train. A further call with the same object and arrays of the
      same shapes compiles nothing.
    data: arrays [n, ...], named as in the method's batches (`x`, `labels`).
      `weight` [n] is optional; rows of weight 0 may have any label. Each device
      is sent its part from the host.
    key: everything random follows from it, whatever the number of devices.
    epochs: passes over the data; what does not fill a batch is left out, other
      examples each time.
    batch_size: examples in a step, over all devices.
    streams: further examples by name, each with its own number, order and batch
      size: `{'u': Stream(arrays, batch_size)}` adds `x_u`, `index_u` and so on
      to the batches. An epoch is one of `data`.
    held_out: sets of arrays by name; the history has their scores.
    scores: the `Score` of a held-out set, by its name. By default it is
      `scores.accuracy`, on `x` and `labels`. Batches are split over the
      devices, unless there are fewer examples.
    augment: `(keys [b], batch) -> batch`, run inside the compiled step.
    how: see `parallel`.
    devices: by default all; of these, the most that divide the shards of the
      data. A warning says so where some stay idle.
    shards: how many parts the data, the streams and all tables are cut into, a
      divisor of the batch sizes. The order of examples depends on them and not
      on the devices. By default `data_shards(n, batch_size)`, at most 8: more
      than 8 devices need more.
    loop: of the steps: compiled as one (by default on accelerators), or in
      Python (by default on CPU, where convolutions are slow in a compiled loop,
      and always for pmap and streams). The numbers are the same.
    stream: keep the data on the host (`np.memmap` does) and hand on batches
      while the last ones are trained on, by so many worker processes of Grain,
      or by a thread if 0. By default the data live on the devices. Workers
      import the script again, so what trains has to stand under
      `if __name__ == '__main__':`.
    checkpoint: where the run is saved and resumed from. SIGTERM then saves and
      ends the program.
    log: a file that gets a JSON line after every epoch, or a function that gets
      the row, such as that of `report.tensorboard`.
    label: the name of the method, on the progress bar and in checkpoints.
      Without a terminal a line on standard error says every 30 s how far it is.

  Returns:
    The last state and the history, [epochs] each.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled, or
      if the checkpoint belongs to another run, saying what differs.
    OSError: if a checkpoint cannot be written; the last good one is kept.
  """
  check_main_guard()
  check_key(key, 'key', 0)
  _check_checkpoint(checkpoint)
  held_out = held_out or {}
  check(
    stream is None or isinstance(stream, int),
    f'stream must be a number of workers, or 0 for a thread, got {stream!r} '
    '(further examples go to streams=)',
    TypeError,
  )
  plan = make_plan(
    method,
    data,
    streams,
    held_out,
    epochs=epochs,
    batch_size=batch_size,
    augment=augment,
    scores=scores,
    shards=shards,
  )
  program = programs.compile_one(plan, how, devices, loop)
  _say_idle(program, devices)
  sets = _sets(data, streams)
  run = _Run(program, key, sets, held_out, epochs, checkpoint, label)
  with (
    _feed(program, sets, key, epochs, stream) as feed,
    _outlets(log, checkpoint, label, epochs * plan.steps) as (write, bar),
  ):
    return _train(run, feed, write, bar)


def fit_many(
  method: Method,
  data: Arrays,
  keys: Key,
  *,
  epochs: int,
  batch_size: int,
  streams: Mapping[str, Stream] = types.MappingProxyType({}),
  held_out: Mapping[str, Arrays] | None = None,
  scores: Mapping[str, Score] = types.MappingProxyType({}),
  augment: Augment | None = None,
  vectorize: bool | None = None,
  devices: Sequence[jax.Device] | None = None,
  shards: int | None = None,
  loop: Loop | None = None,
  checkpoint: Checkpoint | None = None,
  log: Log | None = None,
  label: str = 'fit',
) -> Fit:
  """Trains several runs of one method: "mean and deviation over 5 seeds".

  Args:
    method: what to train.
    data: as for `fit`; an array that differs from run to run, such as noisy
      labels, is `PerRun(array)` with an array [runs, n, ...]. All others are
      shared, never copied for each run.
    keys: [runs] keys; run r equals `fit` with `keys[r]`.
    epochs: as for `fit`.
    batch_size: as for `fit`.
    streams: as for `fit`; arrays may be `PerRun`.
    held_out: as for `fit`, and `PerRun` as in `data`.
    scores: as for `fit`.
    augment: as for `fit`.
    vectorize: all runs at once by `vmap`, spread over the devices where there
      are several, or one after the other through the same compiled step. By
      default at once, unless the step has convolutions and runs on a CPU, where
      `vmap` slows them down.
    devices: by default all; each has as many whole runs, so that some stay idle
      where there are more devices than runs, which a warning says (one run
      after the other: as for `fit`).
    shards: as for `fit`.
    loop: as for `fit`.
    checkpoint: as for `fit`; runs one after the other have folders `run_0` and
      so on in its folder.
    log: as for `fit`; at once, the values of a line are lists over runs.
    label: as for `fit`.

  Returns:
    States and history with a leading axis of runs.

  Raises:
    ValueError, TypeError, OSError: as for `fit`.
  """
  check_main_guard()
  check_key(keys, 'keys', 1)
  _check_checkpoint(checkpoint)
  held_out, runs = held_out or {}, len(keys)
  plan = make_plan(
    method,
    data,
    streams,
    held_out,
    epochs=epochs,
    batch_size=batch_size,
    augment=augment,
    scores=scores,
    shards=shards,
    runs=runs,
  )
  if vectorize is None:
    platform = (jax.devices() if devices is None else devices)[0].platform
    vectorize = platform != 'cpu' or not traced.convolves(plan.traced)
  sets = _sets(data, streams)
  if vectorize:
    program = programs.compile_many(plan, runs, _per_run(sets), devices, loop)
    _say_idle(program, devices, runs)
    run = _Run(program, keys, sets, held_out, epochs, checkpoint, label)
    return _train_at_once(run, log)
  program = programs.compile_one(plan, devices=devices, loop=loop)
  _say_idle(program, devices)
  run = _Run(program, keys, sets, held_out, epochs, checkpoint, label)
  return _train_one_by_one(run, log)


def _sets(data: Arrays, streams: Mapping[str, Stream]) -> dict[str, Arrays]:
  """The arrays of all sources."""
  return {'': data, **{name: own.arrays for name, own in streams.items()}}


def _per_run(sets: Mapping[str, Arrays]) -> dict[str, dict[str, bool]]:
  return {
    name: {k: isinstance(v, PerRun) for k, v in arrays.items()}
    for name, arrays in sets.items()
  }


def _train_at_once(run: '_Run', log: Log | None) -> Fit:
  """All runs in one program."""
  steps = run.epochs * run.program.plan.steps
  with _outlets(log, run.checkpoint, run.label, steps) as (write, bar):
    feed = Feed(programs.put_data(run.program, run.sets))
    state, history = _train(run, feed, write, bar)
  return Fit(state, {k: np.moveaxis(v, 0, 1) for k, v in history.items()})


def _train_one_by_one(run: '_Run', log: Log | None) -> Fit:
  """One run after the other through the same program."""
  fits, runs, program = [], len(run.key), run.program
  steps = runs * run.epochs * program.plan.steps
  with _outlets(log, run.checkpoint, run.label, steps) as (write, bar):
    for r in range(runs):

      def write_run(row: Row, r: int = r) -> None:
        write({'run': r, **row})

      own = run._replace(
        key=run.key[r],
        sets={name: of_run(v, r) for name, v in run.sets.items()},
        held_out={name: of_run(v, r) for name, v in run.held_out.items()},
        checkpoint=run.checkpoint
        and run.checkpoint._replace(
          folder=pathlib.Path(run.checkpoint.folder) / f'run_{r}'
        ),
      )
      feed = Feed(programs.put_data(program, own.sets))
      fits.append(_train(own, feed, write_run, bar))
  states, histories = zip(*fits, strict=True)
  return Fit(
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
    jax.tree.map(lambda *curves: np.stack(curves), *histories),
  )


def _say_idle(
  program: Program,
  devices: Sequence[jax.Device] | None,
  runs: int | None = None,
) -> None:
  """Warns the caller of `fit` if there are devices that do nothing."""
  used, plan = program.devices, program.plan
  given = len(jax.devices() if devices is None else devices)
  if used == given:
    return
  if runs is None:
    why = '. '.join(
      f'{name or "the data"} {"is" if name else "are"} cut into '
      f'{source.shards} shards. All work with a batch size that is a multiple '
      f'of {given} (it is {source.batch_size}) and shards={given}'
      for name, source in plan.sources.items()
      if source.shards % given
    )
  else:
    each = -(-runs // used)
    why = (
      f'there are {runs} runs, {each} on each. As many as {each * given} would '
      'take no longer'
    )
  warnings.warn(
    f'{used} of {given} devices are used, since {why}; or give devices= to use '
    'the others elsewhere',
    stacklevel=3,
  )


# --- the loop ----------------------------------------------------------------


class _Run(NamedTuple):
  """What `_train` trains; `sets` are the arrays of all sources."""

  program: Program
  key: Key
  sets: Mapping[str, Arrays]
  held_out: Mapping[str, Arrays]
  epochs: int
  checkpoint: Checkpoint | None
  label: str


def _train(
  run: _Run,
  feed: Feed,
  write: Callable[[Row], None],
  advance: Callable[[int], None],
) -> Fit:
  """Runs a program. Nothing waits for the device but the end of an epoch."""
  program, epochs = run.program, run.epochs
  parts, refit = program.parts, program.plan.method.refit
  steps = program.plan.steps
  key = programs.fill(program, run.key)
  held = {k: programs.hold_out(program, v) for k, v in run.held_out.items()}
  stride, every = _strides(program, run.checkpoint)
  with _saving(run) as (save, restore, stopping):
    carry = parts.start(parts.init(key))
    carry, first, done, rows = restore(carry)
    advance(first * steps + done)
    for epoch in range(first, epochs):
      if done == 0:
        state = carry.state
        if refit is not None and refit.when(epoch):
          state = programs.run_refit(program, state, feed, key, epoch)
        carry = parts.start(state)
      orders = parts.order(key, epoch)
      while done < steps:
        to_save = every - (epoch * steps + done) % every
        last = min(steps, done + stride, done + to_save)
        carry = programs.run_steps(
          program, carry, feed, orders, key, epoch, done, last
        )
        advance(last - done)
        due = last - done == to_save
        done = last
        if done < steps and (due or stopping()):
          save(carry, epoch, done, rows)
      row = dict(programs.drop(program, dict(carry.means)))
      for name, own in held.items():
        row |= programs.score_set(program, name, carry.state, own)
      row = jax.device_get(row)
      rows.append(plain(row))
      write({'epoch': epoch + 1, **row})
      done = 0
      if due or epoch + 1 == epochs or stopping():
        save(carry, epoch + 1, 0, rows)
  history = {k: np.array([row[k] for row in rows]) for k in rows[0]}
  return Fit(programs.drop(program, carry.state), history)


def _strides(
  program: Program, checkpoint: Checkpoint | None
) -> tuple[int, int]:
  """Steps between two looks at the clock, and between two checkpoints."""
  every = program.plan.steps
  if checkpoint is not None and checkpoint.every is not None:
    every = checkpoint.every
  check(every >= 1, f'checkpoint.every must be at least 1, got {every}')
  # A compiled loop is left some twenty times in an epoch, for the progress bar.
  stride = 1 if program.loop == 'python' else max(1, program.plan.steps // 20)
  return stride, every


@contextlib.contextmanager
def _saving(run: _Run) -> Iterator[tuple[Callable, Callable, Callable]]:
  """Gives `save`, `restore` and `stopping`; idle without a checkpoint."""
  checkpoint, plan = run.checkpoint, run.program.plan
  if checkpoint is None:
    yield lambda *_: None, lambda carry: (carry, 0, 0, []), lambda: False
    return
  from jnl.train import _checkpoint as checkpoints  # Orbax is slow to import

  with (
    checkpoints.open_checkpoints(
      checkpoint.folder,
      _about(run, checkpoint, checkpoints.checksum),
      resume=checkpoint.resume,
      keep=checkpoint.keep,
      step={
        traced.tracer(): traced.fingerprint(plan.traced, *_traced_refit(plan))
      },
      same_step=checkpoint.same_step,
    ) as opened,
    checkpoints.noticing_sigterm() as stopping,
  ):
    said: list[bool] = []
    yield (
      functools.partial(_save, run, opened, stopping, said),
      functools.partial(_restore, run, opened),
      stopping,
    )


def _about(
  run: _Run, checkpoint: Checkpoint, checksum: Callable[[Any], str]
) -> dict[str, Any]:
  """Which run a checkpoint belongs to, as JSON."""
  sources = run.program.plan.sources
  streams = {name: dict(v) for name, v in run.sets.items() if name}
  held_out = {name: dict(v) for name, v in run.held_out.items()}
  arrays = {'data': dict(run.sets['']), 'streams': streams}
  return {
    'method': run.label,
    'config': plain(dict(checkpoint.config)),
    'data': _sizes(sources['']),
    'streams': {name: _sizes(v) for name, v in sources.items() if name},
    'key': np.asarray(jax.random.key_data(run.key)).tolist(),
    'checksums': jax.tree.map(
      checksum,
      {**arrays, 'held_out': held_out},
      is_leaf=lambda x: not isinstance(x, dict),
    ),
  }


def _restore(
  run: _Run, opened: Any, carry: Carry
) -> tuple[Carry, int, int, list]:
  """The last carry that was saved, its epoch and step, and the rows so far."""
  program = run.program
  found = opened.restore(programs.abstract_carry(program, carry))
  if found is None:
    return carry, 0, 0, []
  carry, position = found
  epoch, step = position['epoch'], position['step']
  folder = run.checkpoint and run.checkpoint.folder
  check(
    epoch + (step > 0) <= run.epochs,
    f'epochs is {run.epochs}, but the checkpoint in {folder} has trained for '
    f'{epoch} and {step} steps',
  )
  return programs.fill(program, carry), epoch, step, position['history']


def _save(
  run: _Run,
  opened: Any,
  stopping: Callable[[], bool],
  said: list[bool],
  carry: Carry,
  epoch: int,
  step: int,
  rows: list,
) -> None:
  """Saves a carry that is finite, says so once if not, ends where asked to."""
  from jnl.train import _checkpoint as checkpoints

  carry = programs.drop(run.program, carry)
  good = np.asarray(checkpoints.finite_runs(carry.state))
  folder = run.checkpoint and run.checkpoint.folder
  if good.any():
    position = {'epoch': epoch, 'step': step, 'history': rows}
    opened.save(epoch * run.program.plan.steps + step, carry, position)
  if not (good.all() or said):
    said.append(True)
    which = f' in runs {np.flatnonzero(~good).tolist()}' * good.ndim
    checkpoints.say(
      f'after epoch {epoch}, step {step} the parameters are not finite'
      f'{which}: {"the others are" if good.any() else "this is not"} saved; '
      f'the last checkpoint in {folder} is {opened.latest()}. Training goes on'
    )
  if stopping():
    done = 'saved' if good.any() else 'not saved, as it is not finite:'
    checkpoints.say(
      f'SIGTERM: {done} epoch {epoch}, step {step} to {folder}; resume to go on'
    )
    raise SystemExit(128 + 15)


def _sizes(source: Source) -> dict[str, int]:
  """What a checkpoint knows of a source, beside its values."""
  return {
    'n': source.n,
    'batch_size': source.batch_size,
    'shards': source.shards,
  }


def _traced_refit(plan: Plan) -> list[Any]:
  """The jaxpr of a refit, if there is one."""
  if plan.method.refit is None:
    return []
  key = jax.random.key(0)

  def refit(state: State, batch: Any) -> State:
    collected = programs.refit_blank(plan, state, key)
    collected = programs.refit_collect(plan, collected, state, batch, key)
    return programs.refit_update(plan, state, collected, key)

  abstract = jax.eval_shape(plan.method.init, key)
  return [jax.make_jaxpr(refit)(abstract, plan.main.batch)]


@contextlib.contextmanager
def _feed(
  program: Program,
  sets: Mapping[str, Arrays],
  key: Key,
  epochs: int,
  stream: int | None,
) -> Iterator[Feed]:
  """The data and the streams, on the devices or streamed to them."""
  if stream is None:
    yield Feed(programs.put_data(program, sets))
    return
  from jnl.data._stream import streaming  # Grain is slow to import

  plan = program.plan

  @functools.lru_cache(maxsize=2)  # every source asks for this and the next
  def orders(epoch: int) -> dict[str, jax.Array]:
    return program.parts.order(key, epoch)

  def order_of(name: str, epoch: int) -> np.ndarray:
    return np.asarray(orders(epoch)[name])

  with contextlib.ExitStack() as stack:
    opened = {
      name: stack.enter_context(
        streaming(
          sets[name],
          functools.partial(order_of, name),
          shards=source.shards,
          batch_size=source.batch_size,
          steps=plan.steps,
          epochs=epochs,
          workers=stream,
        )
      )
      for name, source in plan.sources.items()
    }

    def batches(epoch: int, first: int) -> Iterator[Mapping[str, Batch]]:
      names = [''] if epoch < 0 else list(opened)
      streamed = [opened[name](epoch, first) for name in names]
      for parts in zip(*streamed, strict=False):
        yield dict(zip(names, parts, strict=True))

    yield Feed({name: {} for name in opened}, batches)


@contextlib.contextmanager
def _outlets(
  log: Log | None, checkpoint: Checkpoint | None, label: str, steps: int
) -> Iterator[tuple[Callable[[Row], None], Callable[[int], None]]]:
  """Where rows and progress go: a file or function, a bar on a terminal."""
  known = ('run', 'epoch') if checkpoint and checkpoint.resume else ()
  rows = (
    contextlib.nullcontext(log)
    if callable(log)
    else append_jsonl(log, known=known)
  )
  with rows as write, _progress(label, steps) as advance:
    yield write, advance


@contextlib.contextmanager
def _progress(label: str, steps: int) -> Iterator[Callable[[int], None]]:
  """Gives a function that is told of steps: a bar, or a line now and then."""
  try:
    from tqdm import tqdm
  except ImportError:  # it belongs to the extra `experiments`
    tqdm = None
  if tqdm is not None and sys.stderr.isatty():
    with tqdm(total=steps, desc=label, unit='step', leave=False) as bar:
      yield lambda more: (bar.update(more), None)[1]
    return
  start = said = time.monotonic()
  done = 0

  def advance(more: int) -> None:
    nonlocal done, said
    done, now = done + more, time.monotonic()
    if now - said >= SECONDS_BETWEEN_LINES:
      said = now
      print(
        f'{label}: {done} of {steps} steps, {now - start:.0f} s',
        file=sys.stderr,
        flush=True,
      )

  yield advance


# --- checks ------------------------------------------------------------------


def _check_checkpoint(checkpoint: Any) -> None:
  check(
    checkpoint is None or isinstance(checkpoint, Checkpoint),
    f'checkpoint must be a Checkpoint(folder), got {checkpoint!r}',
    TypeError,
  )
