"""The training loop: a method, arrays, a key, and the curves that come out.

`fit` trains once; `fit_many` trains several runs of one method, seeds and noise
draws, in one program. Data live on the device, or are streamed to it; order,
batches, augmentation and steps are compiled, and the state is donated from step
to step. With a `Checkpoint` a run that was interrupted goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import pathlib
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Key, Method, State, Table, check, data_shards
from jnl.data.batches import check_arrays
from jnl.train.evaluate import Score, accuracy, average, padded_batches
from jnl.train.parallel import How
from jnl.train.program import (
  Augment,
  Carry,
  Feed,
  Loop,
  Plan,
  Program,
  compile_many,
  compile_one,
  step_state,
)
from jnl.train.report import PathLike, Row, append_jsonl, plain

Arrays = Mapping[str, np.ndarray]
Log = PathLike | Callable[[Row], None]


class Checkpoint(NamedTuple):
  """Where a run is saved, and how often.

  Attributes:
    folder: of checkpoints, and of nothing else.
    resume: go on from the last one there, if there is one.
    every: steps between two of them, by default those of an epoch.
    keep: how many of the last ones stay.
    config: hyperparameters, as JSON; together with the label, the sizes of the
      data and the key they say which run a checkpoint belongs to.
  """

  folder: PathLike
  resume: bool = False
  every: int | None = None
  keep: int = 3
  config: Mapping[str, Any] = types.MappingProxyType({})


class Fit(NamedTuple):
  """What training leaves.

  Attributes:
    state: the last state; with a leading axis of runs from `fit_many`.
    history: for each metric of the method its mean over the epoch, and for each
      held-out set the accuracy after the epoch: [epochs], or [runs, epochs].
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
  held_out: Mapping[str, Arrays] | None = None,
  scores: Mapping[str, Score] = types.MappingProxyType({}),
  augment: Augment | None = None,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
  loop: Loop | None = None,
  stream: int | None = None,
  checkpoint: Checkpoint | None = None,
  log: Log | None = None,
  label: str = 'fit',
) -> Fit:
  """Trains a method on arrays in memory.

  Args:
    method: what to train.
    data: arrays [n, ...], named as in the method's batches (`x`, `labels`).
      `weight` [n] is optional.
    key: everything random follows from it, whatever the number of devices.
    epochs: passes over the data; what does not fill a batch is left out, other
      examples each time.
    batch_size: examples in a step, over all devices.
    held_out: sets of arrays by name; the history has their scores.
    scores: for the name of a held-out set `(predict, state, batch) -> []`, its
      mean over a batch by `weight` [b]. By default it is the accuracy on `x`
      and `labels`.
    augment: `(keys [b], batch) -> batch`, run inside the compiled step.
    how: see `parallel`.
    devices: by default as many of all as divide the shards of the data.
    loop: of the steps: compiled as one (by default on accelerators), or in
      Python (by default on CPU, where convolutions are slow in a compiled loop,
      and always for pmap and streams). The numbers are the same.
    stream: keep the data on the host (`np.memmap` does) and hand on batches
      while the last ones are trained on, by so many worker processes of Grain,
      or by a thread if 0. By default the data live on the devices.
    checkpoint: where the run is saved and resumed from. SIGTERM then saves and
      ends the program.
    log: a file that gets a JSON line after every epoch, or a function that gets
      the row, such as that of `report.tensorboard`.
    label: the name of the method, on the progress bar and in checkpoints.

  Returns:
    The last state and the history, [epochs] each.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled, or
      if the checkpoint belongs to another run, saying what differs.
    OSError: if a checkpoint cannot be written; the last good one is kept.
  """
  held_out = held_out or {}
  plan = _plan(method, data, held_out, epochs, batch_size, augment, scores)
  program = compile_one(plan, how, devices, loop)
  run = _Run(program, key, held_out, epochs, checkpoint, label)
  with (
    _feed(program, data, key, epochs, stream) as feed,
    _outlets(log, checkpoint, label, epochs * program.steps) as (write, bar),
  ):
    return _train(run, feed, write, bar)


def fit_many(
  method: Method,
  data: Arrays,
  keys: Key,
  *,
  epochs: int,
  batch_size: int,
  per_run: Sequence[str] = (),
  held_out: Mapping[str, Arrays] | None = None,
  scores: Mapping[str, Score] = types.MappingProxyType({}),
  augment: Augment | None = None,
  vectorize: bool | None = None,
  devices: Sequence[jax.Device] | None = None,
  loop: Loop | None = None,
  checkpoint: Checkpoint | None = None,
  log: Log | None = None,
  label: str = 'fit',
) -> Fit:
  """Trains several runs of one method: "mean and deviation over 5 seeds".

  Args:
    method: what to train.
    data: as for `fit`.
    keys: [runs] keys; run r equals `fit` with `keys[r]`.
    epochs: as for `fit`.
    batch_size: as for `fit`.
    per_run: names of arrays that differ from run to run, such as `labels`; in
      `data` and in every held-out set these are [runs, n, ...].
    held_out: as for `fit`.
    scores: as for `fit`.
    augment: as for `fit`.
    vectorize: all runs at once by `vmap`, spread over the devices where there
      are several, or one after the other through the same compiled step. By
      default at once, unless the step has convolutions: `vmap` slows them down.
    devices: by default as many of all as divide the runs (one after the other:
      the shards of the data).
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
  held_out, runs = held_out or {}, len(keys)
  for name in per_run:
    for arrays in (data, *held_out.values()):
      check(
        name not in arrays or len(arrays[name]) == runs,
        f'{name} is per run: its leading size must be {runs}, as that of keys',
      )
  run_data = [_of_run(data, per_run, r) for r in range(runs)]
  run_held_out = [
    {name: _of_run(arrays, per_run, r) for name, arrays in held_out.items()}
    for r in range(runs)
  ]
  for d, h in zip(run_data, run_held_out, strict=True):
    plan = _plan(method, d, h, epochs, batch_size, augment, scores)
  if vectorize is None:
    vectorize = not _convolves(plan)

  if vectorize:
    program = compile_many(plan, runs, list(data), per_run, devices, loop)
    # [runs, n, ...] -> [n, runs, ...]: examples lead in every array.
    data = _runs_second(data, per_run)
    held_out = {k: _runs_second(v, per_run) for k, v in held_out.items()}
    run = _Run(program, keys, held_out, epochs, checkpoint, label)
    steps = epochs * program.steps
    with _outlets(log, checkpoint, label, steps) as (write, bar):
      feed = Feed(program.put_data(data))
      state, history = _train(run, feed, write, bar)
    return Fit(state, {k: np.moveaxis(v, 0, 1) for k, v in history.items()})

  program = compile_one(plan, devices=devices, loop=loop)
  fits, steps = [], runs * epochs * program.steps
  with _outlets(log, checkpoint, label, steps) as (write, bar):
    for r in range(runs):

      def write_run(row: Row, r: int = r) -> None:
        write({'run': r, **row})

      own_folder = checkpoint and checkpoint._replace(
        folder=pathlib.Path(checkpoint.folder) / f'run_{r}'
      )
      run = _Run(program, keys[r], run_held_out[r], epochs, own_folder, label)
      feed = Feed(program.put_data(run_data[r]))
      fits.append(_train(run, feed, write_run, bar))
  return jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *fits)


# --- the loop ----------------------------------------------------------------


class _Run(NamedTuple):
  """What `_train` trains, but for the data."""

  program: Program
  key: Key
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
  program, key, held_out, epochs, checkpoint, _ = run
  refit, steps = program.plan.method.refit, program.steps
  batches = {k: padded_batches(v) for k, v in held_out.items()}
  on_device = {k: program.put(v) for k, v in batches.items()}
  stride, every = _strides(program, checkpoint)
  with _saving(run) as (save, restore, stopping):
    carry = program.start(program.init(key))
    carry, first, done, rows = restore(carry)
    advance(first * steps + done)
    for epoch in range(first, epochs):
      if done == 0:
        state = carry.state
        if refit is not None and refit.when(epoch):
          state = program.refit(state, feed, key, epoch)
        carry = program.start(state)
      order = program.order(key, epoch)
      while done < steps:
        to_save = every - (epoch * steps + done) % every
        last = min(steps, done + stride, done + to_save)
        carry = program.run(carry, feed, order, key, epoch, done, last)
        advance(last - done)
        due = last - done == to_save
        done = last
        if done < steps and (due or stopping()):
          save(carry, epoch, done, rows)
      row = jax.device_get(dict(carry.means))
      for name, parts in on_device.items():
        scores = [program.score(name, carry.state, part) for part in parts]
        row[name] = average(scores, batches[name])
      rows.append(plain(row))
      write({'epoch': epoch + 1, **row})
      done = 0
      if due or epoch + 1 == epochs or stopping():
        save(carry, epoch + 1, 0, rows)
  history = {k: np.array([row[k] for row in rows]) for k in rows[0]}
  return Fit(carry.state, history)


def _strides(
  program: Program, checkpoint: Checkpoint | None
) -> tuple[int, int]:
  """Steps between two looks at the clock, and between two checkpoints."""
  every = program.steps
  if checkpoint is not None and checkpoint.every is not None:
    every = checkpoint.every
  check(every >= 1, f'checkpoint.every must be at least 1, got {every}')
  # A compiled loop is left some twenty times in an epoch, for the progress bar.
  stride = 1 if program.loop == 'python' else max(1, program.steps // 20)
  return stride, every


@contextlib.contextmanager
def _saving(run: _Run) -> Iterator[tuple[Callable, Callable, Callable]]:
  """Gives `save`, `restore` and `stopping`; idle without a checkpoint."""
  program, key, _, epochs, checkpoint, label = run
  if checkpoint is None:
    yield lambda *_: None, lambda carry: (carry, 0, 0, []), lambda: False
    return
  from jnl.train import checkpoint as checkpoints  # Orbax is slow to import

  plan = program.plan
  about = {
    'method': label,
    'config': plain(dict(checkpoint.config)),
    'data': {'n': plan.n, 'batch_size': plan.batch_size, 'shards': plan.shards},
    'key': np.asarray(jax.random.key_data(key)).tolist(),
  }
  with (
    checkpoints.open_checkpoints(
      checkpoint.folder, about, resume=checkpoint.resume, keep=checkpoint.keep
    ) as opened,
    checkpoints.noticing_sigterm() as stopping,
  ):

    def restore(carry: Carry) -> tuple[Carry, int, int, list]:
      found = opened.restore(program.abstract(carry))
      if found is None:
        return carry, 0, 0, []
      carry, position = found
      epoch, step = position['epoch'], position['step']
      check(
        epoch + (step > 0) <= epochs,
        f'epochs is {epochs}, but the checkpoint in {checkpoint.folder} has '
        f'trained for {epoch} and {step} steps',
      )
      return carry, epoch, step, position['history']

    def save(carry: Carry, epoch: int, step: int, rows: list) -> None:
      position = {'epoch': epoch, 'step': step, 'history': rows}
      opened.save(epoch * program.steps + step, carry, position)
      if stopping():
        checkpoints.say(
          f'SIGTERM: saved epoch {epoch}, step {step} to {checkpoint.folder}; '
          'resume to go on'
        )
        raise SystemExit(128 + 15)

    yield save, restore, stopping


@contextlib.contextmanager
def _feed(
  program: Program, data: Arrays, key: Key, epochs: int, stream: int | None
) -> Iterator[Feed]:
  """The data, on the devices or streamed to them."""
  if stream is None:
    yield Feed(program.put_data(data))
    return
  from jnl.data.stream import streaming  # Grain is slow to import

  plan = program.plan
  order = lambda epoch: np.asarray(program.order(key, epoch))
  with streaming(
    data,
    order,
    shards=plan.shards,
    batch_size=plan.batch_size,
    epochs=epochs,
    workers=stream,
  ) as batches:
    yield Feed({}, batches)


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
  with rows as write:
    try:
      from tqdm import tqdm
    except ImportError:  # it belongs to the extra `experiments`
      yield write, lambda steps: None
      return
    # disable=None: quiet unless standard error is a terminal.
    with tqdm(total=steps, desc=label, unit='step', disable=None) as bar:
      yield write, lambda steps: (bar.update(steps), None)[1]


# --- checks ------------------------------------------------------------------


def _plan(
  method: Method,
  data: Arrays,
  held_out: Mapping[str, Arrays],
  epochs: int,
  batch_size: int,
  augment: Augment | None,
  scores: Mapping[str, Score],
) -> Plan:
  """Checks everything that can be checked before anything is compiled."""
  check(epochs >= 1, f'epochs must be at least 1, got {epochs}')
  abstract = jax.eval_shape(method.init, jax.random.key(0))
  num_classes = _num_classes(method, abstract, [data, *held_out.values()])
  n = check_arrays(data, num_classes, 'data')
  check(
    set(scores) <= set(held_out),
    f'scores has {sorted(set(scores) - set(held_out))}, which held_out has not',
  )
  for name, arrays in held_out.items():
    check(
      name in scores or {'x', 'labels'} == set(arrays),
      f'held_out[{name!r}] must hold x and labels, or have a score of its own; '
      f'got {sorted(arrays)}',
    )
    check_arrays(arrays, num_classes, f'held_out[{name!r}]')
  shards = data_shards(n, batch_size)
  batch = _abstract_batch(data, batch_size)
  scores = {name: scores.get(name, accuracy) for name in held_out}
  plan = Plan(method, n, shards, batch_size, batch, augment, scores)
  _check_tables(plan, abstract)
  return plan


def _num_classes(
  method: Method, abstract: State, sets: Sequence[Arrays]
) -> int | None:
  """Of the first labeled examples; bags, which have no labels, are not `x`."""
  for arrays in sets:
    if {'x', 'labels'} <= set(arrays):
      row = jnp.asarray(arrays['x'][:1])
      return jax.eval_shape(method.predict, abstract, row).logits.shape[-1]
  return None


def _abstract_batch(
  data: Arrays, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """What `take_batch` gives."""
  batch = {
    name: jax.ShapeDtypeStruct(
      (batch_size, *values.shape[1:]), jnp.asarray(values[:1]).dtype
    )
    for name, values in data.items()
  }
  weight = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
  index = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  return {'weight': weight, **batch, 'index': index}


def _check_tables(plan: Plan, abstract: State) -> None:
  rows = -(-plan.n // plan.shards)
  is_table = lambda x: isinstance(x, Table)
  for table in jax.tree.leaves(abstract, is_leaf=is_table):
    if is_table(table):
      check(
        table.rows.shape[:2] == (plan.shards, rows),
        f'the method keeps a table of {table.rows.shape[:2]} (shards, rows); '
        f'{plan.n} examples in batches of {plan.batch_size} need '
        f'{(plan.shards, rows)}: build the method with num_examples={plan.n} '
        f'and shards={plan.shards}, that is data_shards(n, batch_size)',
      )


def _convolves(plan: Plan) -> bool:
  """Whether a step has convolutions."""
  key = jax.random.key(0)
  state = jax.eval_shape(plan.method.init, key)
  traced = jax.make_jaxpr(lambda *args: step_state(plan, *args))
  return 'conv_general_dilated' in str(traced(state, plan.batch, key))


def _of_run(arrays: Arrays, per_run: Sequence[str], r: int) -> Arrays:
  return {k: v[r] if k in per_run else v for k, v in arrays.items()}


def _runs_second(arrays: Arrays, per_run: Sequence[str]) -> Arrays:
  return {
    k: np.moveaxis(np.asarray(v), 0, 1) if k in per_run else v
    for k, v in arrays.items()
  }
