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
import types
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import (
  Batch,
  Key,
  Method,
  PyTree,
  State,
  check,
  data_shards,
  example_keys,
  tables_of,
)
from jnl.data._batches import PerRun, check_arrays, check_numbers, of_run
from jnl.data._stream import check_main_guard
from jnl.train import _traced as traced
from jnl.train._evaluate import Score, accuracy, average, padded_batches
from jnl.train._parallel import How
from jnl.train._program import (
  Augment,
  Carry,
  Feed,
  Loop,
  Plan,
  Program,
  compile_many,
  compile_one,
  refit_blank,
  refit_collect,
  refit_update,
  score,
  step_state,
)
from jnl.train.report import PathLike, Row, append_jsonl, plain

Arrays = Mapping[str, Any]
"""Arrays [n, ...] by name; `fit_many` takes `PerRun` ones among them."""
Log = PathLike | Callable[[Row], None]


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
  shards: int | None = None,
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
      `weight` [n] is optional; rows of weight 0 may have any label. Each device
      is sent its part from the host.
    key: everything random follows from it, whatever the number of devices.
    epochs: passes over the data; what does not fill a batch is left out, other
      examples each time.
    batch_size: examples in a step, over all devices.
    held_out: sets of arrays by name, which must not be that of a metric; the
      history has their scores.
    scores: for the name of a held-out set `(predict, state, batch) -> []`, its
      mean over a batch by `weight` [b]. By default it is the accuracy on `x`
      and `labels`. Batches are split over the devices, unless there are fewer
      examples.
    augment: `(keys [b], batch) -> batch`, run inside the compiled step.
    how: see `parallel`.
    devices: by default all; of these, the most that divide the shards of the
      data. A warning says so where some stay idle.
    shards: how many parts the data and all tables are cut into, a divisor of
      the batch size. The order of examples depends on them and not on the
      devices. By default `data_shards(n, batch_size)`, at most 8: more than 8
      devices need more.
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

  Returns:
    The last state and the history, [epochs] each.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled, or
      if the checkpoint belongs to another run, saying what differs.
    OSError: if a checkpoint cannot be written; the last good one is kept.
  """
  check_main_guard()
  _check_key(key, 'key', 0)
  _check_checkpoint(checkpoint)
  held_out = held_out or {}
  plan = _plan(
    method, data, held_out, epochs, batch_size, augment, scores, shards
  )
  program = compile_one(plan, how, devices, loop)
  _say_idle(program, devices)
  run = _Run(program, key, data, held_out, epochs, checkpoint, label)
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
  _check_key(keys, 'keys', 1)
  _check_checkpoint(checkpoint)
  held_out, runs = held_out or {}, len(keys)
  plan = _plan(
    method, data, held_out, epochs, batch_size, augment, scores, shards, runs
  )
  if vectorize is None:
    platform = (jax.devices() if devices is None else devices)[0].platform
    vectorize = platform != 'cpu' or not traced.convolves(plan.traced)

  if vectorize:
    per_run_of = {name: isinstance(v, PerRun) for name, v in data.items()}
    program = compile_many(plan, runs, per_run_of, devices, loop)
    _say_idle(program, devices, runs)
    run = _Run(program, keys, data, held_out, epochs, checkpoint, label)
    steps = epochs * program.steps
    with _outlets(log, checkpoint, label, steps) as (write, bar):
      feed = Feed(program.put_data(data))
      state, history = _train(run, feed, write, bar)
    return Fit(state, {k: np.moveaxis(v, 0, 1) for k, v in history.items()})

  program = compile_one(plan, devices=devices, loop=loop)
  _say_idle(program, devices)
  fits, steps = [], runs * epochs * program.steps
  with _outlets(log, checkpoint, label, steps) as (write, bar):
    for r in range(runs):

      def write_run(row: Row, r: int = r) -> None:
        write({'run': r, **row})

      own_folder = checkpoint and checkpoint._replace(
        folder=pathlib.Path(checkpoint.folder) / f'run_{r}'
      )
      own_data = of_run(data, r)
      own_held_out = {name: of_run(v, r) for name, v in held_out.items()}
      run = _Run(
        program, keys[r], own_data, own_held_out, epochs, own_folder, label
      )
      feed = Feed(program.put_data(own_data))
      fits.append(_train(run, feed, write_run, bar))
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
    why = (
      f'the data are cut into {plan.shards} shards. All work with a batch size '
      f'that is a multiple of {given} (it is {plan.batch_size}) and '
      f'shards={given}'
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
  """What `_train` trains."""

  program: Program
  key: Key
  data: Arrays
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
  refit, steps = program.plan.method.refit, program.steps
  key = program.fill(run.key)
  batches = {
    name: padded_batches(arrays, multiple=program.multiple)
    for name, arrays in run.held_out.items()
  }
  on_device = {k: list(map(program.put_batch, v)) for k, v in batches.items()}
  stride, every = _strides(program, run.checkpoint)
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
      row = jax.device_get(program.drop(dict(carry.means)))
      for name, parts in on_device.items():
        scores = [program.score(name, carry.state, part) for part in parts]
        row[name] = average(scores, batches[name])
      rows.append(plain(row))
      write({'epoch': epoch + 1, **row})
      done = 0
      if due or epoch + 1 == epochs or stopping():
        save(carry, epoch + 1, 0, rows)
  history = {k: np.array([row[k] for row in rows]) for k in rows[0]}
  return Fit(program.drop(carry.state), history)


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
  program, key, data, held_out, epochs, checkpoint, label = run
  if checkpoint is None:
    yield lambda *_: None, lambda carry: (carry, 0, 0, []), lambda: False
    return
  from jnl.train import _checkpoint as checkpoints  # Orbax is slow to import

  plan = program.plan
  about = {
    'method': label,
    'config': plain(dict(checkpoint.config)),
    'data': {'n': plan.n, 'batch_size': plan.batch_size, 'shards': plan.shards},
    'key': np.asarray(jax.random.key_data(key)).tolist(),
    'checksums': jax.tree.map(
      checkpoints.checksum,
      {
        'data': dict(data),
        'held_out': {k: dict(v) for k, v in held_out.items()},
      },
      is_leaf=lambda x: not isinstance(x, dict),
    ),
  }
  tracer = f'jax {jax.__version__}, {jax.default_backend()}'
  with (
    checkpoints.open_checkpoints(
      checkpoint.folder,
      about,
      resume=checkpoint.resume,
      keep=checkpoint.keep,
      step={tracer: traced.fingerprint(plan.traced, *_traced_refit(plan))},
      same_step=checkpoint.same_step,
    ) as opened,
    checkpoints.noticing_sigterm() as stopping,
  ):
    said = False

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
      return program.fill(carry), epoch, step, position['history']

    def save(carry: Carry, epoch: int, step: int, rows: list) -> None:
      nonlocal said
      carry = program.drop(carry)
      good = np.asarray(checkpoints.finite_runs(carry.state))
      if good.any():
        position = {'epoch': epoch, 'step': step, 'history': rows}
        opened.save(epoch * program.steps + step, carry, position)
      if not (good.all() or said):
        said = True
        which = f' in runs {np.flatnonzero(~good).tolist()}' * good.ndim
        checkpoints.say(
          f'after epoch {epoch}, step {step} the parameters are not finite'
          f'{which}: {"the others are" if good.any() else "this is not"} '
          f'saved; the last checkpoint in {checkpoint.folder} is '
          f'{opened.latest()}. Training goes on'
        )
      if stopping():
        done = 'saved' if good.any() else 'not saved, as it is not finite:'
        checkpoints.say(
          f'SIGTERM: {done} epoch {epoch}, step {step} to {checkpoint.folder}; '
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
  from jnl.data._stream import streaming  # Grain is slow to import

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


def _check_key(key: Any, argument: str, ndim: int) -> None:
  """Raises unless this is a key, or [runs] keys; old ones are `uint32`."""
  dtype = getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  example = 'jax.random.key(0)'
  if ndim:
    example = f'jax.random.split({example}, 5)'
  check(
    (typed and key.ndim == ndim)
    or (dtype == 'uint32' and key.ndim == ndim + 1),
    f'{argument} must be made by jax.random, such as {example}; got '
    + (f'{dtype} of shape {key.shape}' if hasattr(key, 'shape') else repr(key)),
    TypeError,
  )


def _check_checkpoint(checkpoint: Any) -> None:
  check(
    checkpoint is None or isinstance(checkpoint, Checkpoint),
    f'checkpoint must be a Checkpoint(folder), got {checkpoint!r}',
    TypeError,
  )


def _plan(
  method: Method,
  data: Arrays,
  held_out: Mapping[str, Arrays],
  epochs: int,
  batch_size: int,
  augment: Augment | None,
  scores: Mapping[str, Score],
  shards: int | None,
  runs: int | None = None,
) -> Plan:
  """Checks everything that can be checked before anything is compiled."""
  check(epochs >= 1, f'epochs must be at least 1, got {epochs}')
  check(
    set(scores) <= set(held_out),
    f'scores has {sorted(set(scores) - set(held_out))}, which held_out has not',
  )
  for name, arrays in held_out.items():
    check(
      name in scores or {'x', 'labels'} == set(arrays) - {'weight'},
      f'held_out[{name!r}] must hold x and labels, or have a score of its own; '
      f'got {sorted(arrays)}',
    )
  sets = {'data': data}
  sets |= {f'held_out[{name!r}]': arrays for name, arrays in held_out.items()}
  first = {name: _first_run(v, name, runs) for name, v in sets.items()}
  abstract = jax.eval_shape(method.init, jax.random.key(0))
  num_classes = _num_classes(method, abstract, list(first.values()))
  for name, arrays in sets.items():
    shared = [k for k, v in arrays.items() if not isinstance(v, PerRun)]
    for r in range(1 if len(shared) == len(arrays) else runs or 1):
      checked = shared if r > 0 else ()  # what runs share is looked at once
      check_arrays(of_run(arrays, r), num_classes, name, checked)
  for name in held_out:
    _check_held_out(first[f'held_out[{name!r}]'], name, name in scores)
  n = len(next(iter(first['data'].values())))
  plan = Plan(
    method,
    n,
    _shards(n, batch_size, shards),
    batch_size,
    _abstract_batch(first['data'], batch_size),
    augment,
    {name: scores.get(name, accuracy) for name in held_out},
  )
  _check_tables(plan, abstract)
  seen_by_method = _augmented(plan)
  plan = _with_trace(plan, abstract)
  _check_whole_numbers(plan, abstract, first, seen_by_method)
  return plan


def _first_run(arrays: Arrays, argument: str, runs: int | None) -> Arrays:
  """The arrays of one run; raises unless all are arrays, of so many runs."""
  if runs is None:
    check_numbers(arrays, argument)
    return arrays
  own = {k: v for k, v in dict(arrays).items() if isinstance(v, PerRun)}
  check_numbers({k: v.values for k, v in own.items()}, f'{argument}, PerRun')
  for name, values in own.items():
    check(
      values.values.shape[0] == runs,
      f'{argument}: {name} is PerRun: its leading size must be {runs}, as that '
      f'of keys; its shape is {values.values.shape}',
    )
  first = of_run(arrays, 0)
  check_numbers(first, argument)
  return first


def _check_held_out(arrays: Arrays, name: str, has_score: bool) -> None:
  """What the scores need."""
  if not has_score:
    dtype = arrays['labels'].dtype
    check(
      jnp.issubdtype(dtype, jnp.integer),
      f'held_out[{name!r}]: labels must be integers for the accuracy, got '
      f'{dtype}; soft labels need a score of their own (scores=)',
      TypeError,
    )
  check(
    'weight' not in arrays or np.sum(arrays['weight']) > 0,
    f'held_out[{name!r}]: weight is 0 everywhere',
  )


def _shards(n: int, batch_size: int, shards: int | None) -> int:
  """Those that were asked for if they can be, or the default."""
  if shards is None:
    return data_shards(n, batch_size)
  check(
    shards >= 1 and batch_size % shards == 0,
    f'shards must divide the batch size, {batch_size}, got {shards}',
  )
  check(
    data_shards(n, batch_size, shards) == shards,
    f'shards is {shards}, and the last of them would have too few of the {n} '
    f'examples for the {n // batch_size} steps of an epoch: take fewer',
  )
  return shards


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
  for table in tables_of(abstract):
    check(
      table.rows.shape[:2] == (plan.shards, rows),
      f'the method keeps a table of {table.rows.shape[:2]} (shards, rows); '
      f'{plan.n} examples in batches of {plan.batch_size} need '
      f'{(plan.shards, rows)}: build the method with num_examples={plan.n} and '
      f'shards={plan.shards}, that is data_shards(n, batch_size) unless fit is '
      'given other shards',
    )


def _with_trace(plan: Plan, abstract: State) -> Plan:
  """The plan with its step traced, and the names of its metrics checked."""
  step = jax.make_jaxpr(
    lambda *args: step_state(plan, *args), return_shape=True
  )
  with _naming_what_is_missing(plan):
    jaxpr, (_, metrics) = step(abstract, plan.batch, jax.random.key(0))
  own = ('epoch', 'run')
  for taken, names, what in (
    (own, metrics, 'the method has a metric'),
    ((*own, *metrics), plan.scores, 'there is a held-out set'),
  ):
    clash = sorted(set(names) & set(taken))
    check(
      not clash,
      f'{what} called {clash}, which is also the name of something else in the '
      f'history ({", ".join(taken)}): rename it',
    )
  return plan._replace(metrics=dict(metrics), traced=jaxpr)


@contextlib.contextmanager
def _naming_what_is_missing(plan: Plan) -> Iterator[None]:
  """Says which array a step looks for in vain."""
  try:
    yield
  except KeyError as error:
    name = error.args[0] if error.args else None
    if not isinstance(name, str) or name in plan.batch:
      raise
    raise ValueError(
      f'a step reads {name!r}, which is not in data: it has '
      f'{sorted(set(plan.batch) - {"index", "weight"})}, and index and weight '
      'are added'
    ) from error


def _augmented(plan: Plan) -> Batch:
  """The batch that the method sees."""
  augment = plan.augment
  if augment is None:
    return plan.batch
  keys = lambda batch: example_keys(jax.random.key(0), batch['index'])
  called = 'augment must be a function (keys [b], batch) -> batch'
  hint = (
    'what takes images alone, as augment.pad_crop does, is wrapped: '
    'augment.views(augment.pad_crop), with augment of jnl.data'
  )
  with _naming_what_is_missing(plan):
    try:
      batch = jax.eval_shape(lambda b: augment(keys(b), b), plan.batch)
    except KeyError:
      raise
    except Exception as error:
      raise TypeError(
        f'{called}, and failed on {sorted(plan.batch)}; {hint}. It said: '
        f'{error}'
      ) from error
  check(isinstance(batch, Mapping), f'{called}; {hint}', TypeError)
  return batch


def _check_whole_numbers(
  plan: Plan,
  abstract: State,
  first: Mapping[str, Arrays],
  seen_by_method: Batch,
) -> None:
  """Raises if pixels or tokens are multiplied by weights as they are."""
  of_step: tuple[Callable, Any, tuple] = (
    plan.method.step,
    seen_by_method,
    (jax.random.key(0),),
  )
  seen = {'data': of_step}
  for name in plan.scores:
    of_set = first[f'held_out[{name!r}]']
    size = min(1024, len(next(iter(of_set.values()))))
    batch = _abstract_batch(of_set, size)
    del batch['index']
    one = functools.partial(score, plan, name=name)
    seen[f'held_out[{name!r}]'] = one, batch, ()
  for argument, (f, batch, rest) in seen.items():
    for name, values in batch.items():
      dtype = getattr(values, 'dtype', bool)
      if not (name.startswith('x') and jnp.issubdtype(dtype, jnp.integer)):
        continue
      jaxpr = jax.make_jaxpr(f)(abstract, batch, *rest)
      tree: PyTree = (abstract, batch, *rest)
      raw = jax.tree.map(lambda _: False, tree)
      raw[1][name] = True
      check(
        not traced.multiplied_raw(jaxpr, jax.tree.leaves(raw)),
        f'{argument}: {name} holds whole numbers ({values.dtype}), and the '
        'network multiplies them by its weights as they are. Scale pixels '
        '(x / 255; data.from_arrays does), on the host or in augment; give '
        'tokens a network that looks them up, such as nets.build("ngram", c); '
        'or mean it: x.astype(np.float32)',
        TypeError,
      )


def _traced_refit(plan: Plan) -> list[Any]:
  """The jaxpr of a refit, if there is one."""
  if plan.method.refit is None:
    return []
  key = jax.random.key(0)

  def refit(state: State, batch: Any) -> State:
    collected = refit_blank(plan, state, key)
    collected = refit_collect(plan, collected, state, batch, key)
    return refit_update(plan, state, collected, key)

  abstract = jax.eval_shape(plan.method.init, key)
  return [jax.make_jaxpr(refit)(abstract, plan.batch)]
