"""The training loop: a method, arrays, a key, and the curves that come out.

`fit` trains once; `fit_many` trains several runs of one method, seeds and noise
draws, in one program. Data live on the device; order, batches, augmentation and
steps are compiled, and the state is donated from step to step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Key, Method, State, Table, check, data_shards
from jnl.data.batches import check_arrays
from jnl.train.evaluate import average, padded_batches
from jnl.train.parallel import How
from jnl.train.program import (
  Augment,
  Plan,
  Program,
  compile_many,
  compile_one,
  step,
)
from jnl.train.report import PathLike, Row, append_jsonl

Arrays = Mapping[str, np.ndarray]


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
  augment: Augment | None = None,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
  log: PathLike | None = None,
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
    held_out: sets of `x` and `labels` by name; the history has their accuracy.
    augment: `(keys [b], batch) -> batch`, run inside the compiled step.
    how: see `parallel`.
    devices: by default as many of all as divide the shards of the data.
    log: a file that gets a JSON line after every epoch.
    label: the name on the progress bar, which a terminal shows.

  Returns:
    The last state and the history, [epochs] each.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled.
  """
  held_out = held_out or {}
  plan = _plan(method, data, held_out, epochs, batch_size, augment)
  program = compile_one(plan, how, devices)
  with _outlets(log, label, epochs * program.steps) as (write, bar):
    return _train(program, data, key, held_out, epochs, write, bar)


def fit_many(
  method: Method,
  data: Arrays,
  keys: Key,
  *,
  epochs: int,
  batch_size: int,
  per_run: Sequence[str] = (),
  held_out: Mapping[str, Arrays] | None = None,
  augment: Augment | None = None,
  vectorize: bool | None = None,
  devices: Sequence[jax.Device] | None = None,
  log: PathLike | None = None,
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
    augment: as for `fit`.
    vectorize: all runs at once by `vmap`, spread over the devices where there
      are several, or one after the other through the same compiled step. By
      default at once, unless the step has convolutions: `vmap` slows them down.
    devices: by default as many of all as divide the runs (one after the other:
      the shards of the data).
    log: as for `fit`; at once, the values of a line are lists over runs.
    label: as for `fit`.

  Returns:
    States and history with a leading axis of runs.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled.
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
    plan = _plan(method, d, h, epochs, batch_size, augment)
  if vectorize is None:
    vectorize = not _convolves(plan, run_data[0])

  if vectorize:
    own = {name: name in per_run for name in data}
    program = compile_many(plan, runs, own, devices)
    # [runs, n, ...] -> [n, runs, ...]: examples lead in every array.
    data = _runs_second(data, per_run)
    held_out = {k: _runs_second(v, per_run) for k, v in held_out.items()}
    with _outlets(log, label, epochs * program.steps) as (write, bar):
      state, history = _train(program, data, keys, held_out, epochs, write, bar)
    return Fit(state, {k: np.moveaxis(v, 0, 1) for k, v in history.items()})

  program = compile_one(plan, devices=devices)
  fits = []
  with _outlets(log, label, runs * epochs * program.steps) as (write, bar):
    for r in range(runs):

      def write_run(row: Row, r: int = r) -> None:
        write({'run': r, **row})

      fits.append(
        _train(
          program, run_data[r], keys[r], run_held_out[r], epochs, write_run, bar
        )
      )
  return jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *fits)


# --- the loop ----------------------------------------------------------------


def _train(
  program: Program,
  data: Arrays,
  key: Key,
  held_out: Mapping[str, Arrays],
  epochs: int,
  write: Callable[[Row], None],
  advance: Callable[[], None],
) -> Fit:
  """Runs a program. Nothing waits for the device but the end of an epoch."""
  refit = program.plan.method.refit
  tables = program.put_data(data)
  batches = {k: padded_batches(v) for k, v in held_out.items()}
  on_device = {k: program.put(v) for k, v in batches.items()}
  state = program.init(key)
  rows = []
  for epoch in range(epochs):
    if refit is not None and refit.when(epoch):
      state = program.refit(state, tables, key, epoch)
    order = program.order(key, epoch)
    steps = []
    for i in range(program.steps):
      batch, step_key = program.take(tables, order, i, key, epoch)
      state, metrics = program.step(state, batch, step_key)
      steps.append(metrics)
      advance()
    row = {
      k: np.mean([m[k] for m in jax.device_get(steps)], 0) for k in metrics
    }
    for name, parts in on_device.items():
      scores = [program.score(state, part) for part in parts]
      row[name] = average(scores, batches[name])
    write({'epoch': epoch + 1, **row})
    rows.append(row)
  history = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  return Fit(state, history)


@contextlib.contextmanager
def _outlets(
  log: PathLike | None, label: str, steps: int
) -> Iterator[tuple[Callable[[Row], None], Callable[[], None]]]:
  """Where rows and progress go: a file if named, a bar on a terminal."""
  with append_jsonl(log) as write:
    try:
      from tqdm import tqdm
    except ImportError:  # it belongs to the extra `experiments`
      yield write, lambda: None
      return
    # disable=None: quiet unless standard error is a terminal.
    with tqdm(total=steps, desc=label, unit='step', disable=None) as bar:
      yield write, lambda: (bar.update(), None)[1]


# --- checks ------------------------------------------------------------------


def _plan(
  method: Method,
  data: Arrays,
  held_out: Mapping[str, Arrays],
  epochs: int,
  batch_size: int,
  augment: Augment | None,
) -> Plan:
  """Checks everything that can be checked before anything is compiled."""
  check(epochs >= 1, f'epochs must be at least 1, got {epochs}')
  abstract = jax.eval_shape(method.init, jax.random.key(0))
  num_classes = None
  if 'x' in data:
    row = jnp.asarray(data['x'][:1])
    logits = jax.eval_shape(method.predict, abstract, row).logits
    num_classes = logits.shape[-1]
  n = check_arrays(data, num_classes, 'data')
  for name, arrays in held_out.items():
    check(
      {'x', 'labels'} == set(arrays),
      f'held_out[{name!r}] must hold x and labels, got {sorted(arrays)}',
    )
    check_arrays(arrays, num_classes, f'held_out[{name!r}]')
  plan = Plan(method, n, data_shards(n, batch_size), batch_size, augment)
  _check_tables(plan, abstract)
  return plan


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


def _convolves(plan: Plan, data: Arrays) -> bool:
  """Whether a step has convolutions."""
  batch = {k: jnp.asarray(v[: plan.batch_size]) for k, v in data.items()}
  batch.setdefault('weight', jnp.ones(plan.batch_size))
  batch['index'] = jnp.arange(plan.batch_size)
  key = jax.random.key(0)
  state = jax.eval_shape(plan.method.init, key)
  traced = jax.make_jaxpr(lambda *args: step(plan, *args))
  return 'conv_general_dilated' in str(traced(state, batch, key))


def _of_run(arrays: Arrays, per_run: Sequence[str], r: int) -> Arrays:
  return {k: v[r] if k in per_run else v for k, v in arrays.items()}


def _runs_second(arrays: Arrays, per_run: Sequence[str]) -> Arrays:
  return {
    k: np.moveaxis(np.asarray(v), 0, 1) if k in per_run else v
    for k, v in arrays.items()
  }
