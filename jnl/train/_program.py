"""The compiled parts of training: of one run, or of many runs at once.

Each part is written once, for one run in the global view. `compile_one`
compiles them for a mesh `'data'`; `compile_many` maps them over an axis of
runs, and spreads that axis over the devices instead.

Steps follow each other in one compiled loop on accelerators, and in Python on
CPU, where XLA runs a convolution inside a loop an order of magnitude slower.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
import types
from typing import Any, Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jnl.base import (
  AXIS,
  Array,
  Batch,
  Key,
  Metrics,
  PyTree,
  Refit,
  State,
  Table,
  name_tag,
  pack_rows,
  write_rows,
)
from jnl.data._batches import (
  PerRun,
  epoch_order,
  index_order,
  packed_on_host,
  stream_order,
  take_batch,
)
from jnl.train._evaluate import (
  collect_rows,
  known_of,
  padded_batches,
  put_batch,
  reduce_rows,
)
from jnl.train._parallel import (
  How,
  dividing_mesh,
  parallel,
  shardings,
)
from jnl.train._plan import Plan, history_name, seen_by_step

Tables = Mapping[str, Mapping[str, Table]]
"""The arrays of each source, by name."""
Loop = Literal['compiled', 'python']

INIT, ORDER, STEP, REFIT, STREAM = range(5)
"""Tags of the five roots that a run's key is folded into."""


class Carry(NamedTuple):
  """What one step hands to the next; with the position it is a checkpoint.

  Attributes:
    state: of the method.
    means: of its metrics over the steps of the epoch so far.
    steps: [] int32, their number.
  """

  state: State
  means: Metrics
  steps: Array


class Feed(NamedTuple):
  """Where batches come from.

  Attributes:
    tables: what lives on the devices, by source.
    stream: `(epoch, first) -> batches by source` of what does not, from step
      `first` of the epoch on; None if there is nothing. Epoch -1 is in index
      order, of the data alone.
  """

  tables: Tables
  stream: Callable[[int, int], Iterator[Mapping[str, Batch]]] | None = None


# --- the parts, for one run --------------------------------------------------


def init(plan: Plan, key: Key) -> State:
  """The first state."""
  return plan.method.init(jax.random.fold_in(key, INIT))


def order(plan: Plan, key: Key, epoch: Array) -> dict[str, Array]:
  """The orders of all sources in an epoch of the data."""
  own = jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch)
  orders = {'': epoch_order(own, plan.main.n, plan.main.shards)}
  root = jax.random.fold_in(key, STREAM)
  for name, source in plan.sources.items():
    if name:
      tagged = jax.random.fold_in(root, name_tag(name))
      orders[name] = stream_order(
        tagged,
        source.n,
        source.shards,
        source.batch_size,
        first=epoch * plan.steps,
        steps=plan.steps,
      )
  return orders


def take(
  plan: Plan,
  tables: Tables,
  order: Mapping[str, Array],
  i: Array,
  key: Key,
  epoch: Array,
) -> tuple[dict[str, Batch], Key]:
  """The i-th batches of the sources that have an order; the key of the step."""
  key = jax.random.fold_in(jax.random.fold_in(key, STEP), epoch)
  batches = {
    name: take_batch(tables[name], own, i, plan.sources[name].batch_size)
    for name, own in order.items()
  }
  return batches, jax.random.fold_in(key, i)


def start(plan: Plan, state: State) -> Carry:
  """The carry before the first step of an epoch."""
  zeros = lambda m: jnp.zeros(m.shape, m.dtype)
  means = jax.tree.map(zeros, dict(plan.metrics))
  return Carry(state, means, jnp.int32(0))


def step(
  plan: Plan, carry: Carry, batches: Mapping[str, Batch], key: Key
) -> tuple[Carry, Metrics]:
  """A step on augmented batches, and the running means of its metrics."""
  seen = seen_by_step(plan, batches, key)
  state, metrics = plan.method.step(carry.state, seen, key)
  steps = carry.steps + 1
  means = jax.tree.map(
    lambda mean, m: (mean + (m - mean) / steps).astype(mean.dtype),
    carry.means,
    metrics,
  )
  return Carry(state, means, steps), {}


def collect(plan: Plan, state: State, batch: Batch, *, name: str) -> PyTree:
  """The rows of a batch of the held-out set of that name."""
  return collect_rows(plan.method.predict, plan.scores[name], state, batch)


def reduce(
  plan: Plan, parts: list[PyTree], arrays: Mapping[str, Array], *, name: str
) -> dict[str, Array]:
  """The numbers of a held-out set, as they are called in the history."""
  found = reduce_rows(plan.scores[name], parts, arrays)
  return {history_name(name, score): value for score, value in found.items()}


def refit_key(plan: Plan, key: Key, epoch: Array) -> Key:
  """The key of the refit before an epoch."""
  del plan
  return jax.random.fold_in(jax.random.fold_in(key, REFIT), epoch)


def _refit_of(plan: Plan) -> Refit:
  assert plan.method.refit is not None, 'asked for by the loop alone'
  return plan.method.refit


def refit_blank(plan: Plan, state: State, key: Key) -> PyTree:
  """Empty tables for what a refit collects."""
  main = plan.main
  rows = jax.eval_shape(_refit_of(plan).collect, state, main.batch, key)

  def table(r: jax.ShapeDtypeStruct) -> Table:
    return pack_rows(jnp.zeros((main.n, *r.shape[1:]), r.dtype), main.shards)

  return jax.tree.map(table, rows)


def refit_collect(
  plan: Plan, collected: PyTree, state: State, batch: Batch, key: Key
) -> PyTree:
  """The collected tables with the rows of a batch."""
  rows = _refit_of(plan).collect(state, batch, key)
  index = batch['index']
  return jax.tree.map(lambda r, t: write_rows(t, index, r), rows, collected)


def refit_update(
  plan: Plan, state: State, collected: PyTree, key: Key
) -> State:
  """The state after a refit."""
  return _refit_of(plan).update(state, collected, key)


# --- the same, compiled ------------------------------------------------------


class Placement(NamedTuple):
  """What is where.

  Attributes:
    whole: the sharding of what all devices hold.
    carry: that of a carry.
    batch: that of the batches of a step.
    run: that of what there is one of for each run.
    rows: that of a table of data.
    held_out: puts a held-out batch onto the devices.
    known: puts what scores know of a held-out set.
    multiple: of which the size of held-out batches should be one.
    per_run: by source and array, whether it differs from run to run.
    added: runs, beside those that were asked for.
  """

  whole: NamedSharding
  carry: Any
  batch: NamedSharding
  run: NamedSharding
  rows: NamedSharding
  held_out: Callable[[Batch], Batch]
  known: Callable[[Batch], Batch]
  multiple: int = 1
  per_run: Mapping[str, Mapping[str, bool]] = types.MappingProxyType({})
  added: int = 0


class Parts(NamedTuple):
  """The parts of training, each compiled once.

  Attributes:
    init: `key -> state`.
    order: `(key, epoch) -> orders`.
    take: `(tables, orders, i, key, epoch) -> (batches, key of the step)`.
    take_in_order: the same of one order for all runs.
    start: `state -> carry` before an epoch; donates the state.
    step: `(carry, batches, key) -> (carry, {})`; donates the carry.
    refit_key: `(key, epoch) -> key`.
    blank: `(state, key) -> tables` for what a refit collects.
    collect: `(tables, state, batch, key) -> tables`; donates the tables.
    update: `(state, tables, key) -> state`; donates the state.
    score: `(name, axes) -> (collect, reduce)` of a held-out set whose arrays
      have these axes of runs.
  """

  init: Callable[[Key], State]
  order: Callable[..., dict[str, Array]]
  take: Callable[..., tuple[dict[str, Batch], Key]]
  take_in_order: Callable[..., tuple[dict[str, Batch], Key]]
  start: Callable[[State], Carry]
  step: Callable[..., tuple[Carry, Metrics]]
  refit_key: Callable[[Key, Any], Key]
  blank: Callable[[State, Key], PyTree]
  collect: Callable[..., PyTree]
  update: Callable[..., State]
  score: Callable[[str, tuple], tuple[Callable, Callable]]


class Program(NamedTuple):
  """What is trained, compiled for some devices.

  Attributes:
    plan: what is trained.
    loop: of the steps.
    devices: how many it runs on.
    where: what is where.
    parts: of training.
    run_compiled: `(carry, tables, orders, key, epoch, first, last) -> carry`,
      steps in one compiled loop; donates the carry.
  """

  plan: Plan
  loop: Loop
  devices: int
  where: Placement
  parts: Parts
  run_compiled: Callable[..., Carry]


class HeldOut(NamedTuple):
  """A held-out set on the devices.

  Attributes:
    batches: padded; what differs from run to run is `PerRun`.
    known: its arrays [n, ...] but for `x`.
  """

  batches: list[Batch]
  known: Batch


Compiled = Callable[..., Callable]
"""`(f, axes of runs, out shardings, donated) -> f of a plan, compiled`."""

KEPT = 16
"""Programs that are kept, for trainings that differ in values alone."""
_kept: collections.OrderedDict[Any, Program] = collections.OrderedDict()


def _keeping(
  plan: Plan, rest: tuple, build: Callable[[Plan], Program]
) -> Program:
  """A program for this method and these shapes: that of before, or a new one.

  Two plans whose method, augmentations and scores are the same functions, and
  whose arrays have the same shapes, have one program. So a sweep compiles once.
  """
  shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), plan.batches)
  augments = tuple(source.augment for source in plan.sources.values())
  sizes = tuple((s.n, s.shards, s.batch_size) for s in plan.sources.values())
  key = (
    plan.method,
    augments,
    sizes,
    repr(shapes),
    tuple(plan.scores.items()),
    jax.dtypes.canonicalize_dtype(np.float64),
    rest,
  )
  try:
    hash(key)
  except TypeError:  # a function that cannot be compared
    return build(plan)
  if key not in _kept:
    _kept[key] = build(plan._replace(traced=None))
  _kept.move_to_end(key)
  while len(_kept) > KEPT:
    _kept.popitem(last=False)
  return _kept[key]._replace(plan=plan)


def compile_one(
  plan: Plan,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
  loop: Loop | None = None,
) -> Program:
  """The program of one run, data parallel.

  Args:
    plan: what is trained.
    how: see `parallel`.
    devices: the first of these (by default of all), the most that divide the
      shards of all sources.
    loop: of the steps; compiled by default on accelerators, but for pmap.

  Returns:
    The program.
  """
  devices = list(jax.devices() if devices is None else devices)
  loop = 'python' if how == 'pmap' else loop or _default_loop()
  return _keeping(
    plan,
    (how, tuple(devices), loop),
    functools.partial(_one, how=how, devices=devices, loop=loop),
  )


def _one(
  plan: Plan, how: How, devices: Sequence[jax.Device], loop: Loop
) -> Program:
  shards = math.gcd(*(source.shards for source in plan.sources.values()))
  mesh = dividing_mesh(shards, devices)
  abstract = jax.eval_shape(plan.method.init, jax.random.key(0))
  # Metrics and their number are replicated, whatever they are.
  carry: Any = Carry(abstract, means={}, steps=jnp.int32(0))
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

  def compiled(f: Callable, axes: Any, out: Any, donate: Any = ()) -> Callable:
    del axes
    f = functools.partial(f, plan)
    return jax.jit(f, out_shardings=out, donate_argnums=donate)

  own_step = parallel(
    functools.partial(step, plan),
    carry._replace(means=jnp.float32(0)),
    how,
    mesh=mesh,
  )
  where = Placement(
    whole=whole,
    carry=shardings(carry, mesh)._replace(means=whole),
    batch=split,
    run=whole,
    rows=split,
    held_out=functools.partial(put_batch, mesh=mesh),
    known=functools.partial(jax.device_put, device=whole),
    multiple=mesh.size,
  )
  return _program(plan, compiled, own_step, where, loop, mesh.size)


def compile_many(
  plan: Plan,
  runs: int,
  per_run: Mapping[str, Mapping[str, bool]],
  devices: Sequence[jax.Device] | None = None,
  loop: Loop | None = None,
) -> Program:
  """The program of many runs at once: states and keys have an axis of runs.

  Each device holds as many whole runs, so that nothing is communicated. Where
  their number does not divide, the first runs are trained once more, and
  dropped.

  Args:
    plan: what one run trains.
    runs: their number.
    per_run: by source and array, whether it differs from run to run.
    devices: the first of these, by default of all.
    loop: of the steps; compiled by default on accelerators.

  Returns:
    The program.
  """
  devices = list(jax.devices() if devices is None else devices)
  axes = tuple((k, tuple(v.items())) for k, v in per_run.items())
  loop = loop or _default_loop()
  return _keeping(
    plan,
    (runs, axes, tuple(devices), loop),
    functools.partial(
      _many, runs=runs, per_run=per_run, devices=devices, loop=loop
    ),
  )


def _many(
  plan: Plan,
  runs: int,
  per_run: Mapping[str, Mapping[str, bool]],
  devices: Sequence[jax.Device],
  loop: Loop,
) -> Program:
  each = -(-runs // len(devices))
  used = -(-runs // each)
  mesh = jax.make_mesh(
    (used,), ('run',), axis_types=(AxisType.Auto,), devices=devices[:used]
  )
  whole: Any = NamedSharding(mesh, P())
  on_run: Any = NamedSharding(mesh, P('run'))
  added = used * each - runs

  def compiled(f: Callable, axes: Any, out: Any, donate: Any = ()) -> Callable:
    f = jax.vmap(functools.partial(f, plan), axes)
    return jax.jit(f, out_shardings=out, donate_argnums=donate)

  def held_out(batch: Batch) -> Batch:
    return {
      name: PerRun(jax.device_put(_filled(v.values, added), on_run))
      if isinstance(v, PerRun)
      else jax.device_put(v, whole)
      for name, v in batch.items()
    }

  own_step = compiled(step, (0, 0, 0), (on_run, on_run), donate=0)
  where = Placement(
    whole=whole,
    carry=Carry(state=on_run, means=on_run, steps=on_run),
    batch=on_run,
    run=on_run,
    rows=whole,
    held_out=held_out,
    known=held_out,
    per_run=per_run,
    added=added,
  )
  return _program(plan, compiled, own_step, where, loop, used)


def _default_loop() -> Loop:
  return 'python' if jax.default_backend() == 'cpu' else 'compiled'


def _axis(per_run: bool) -> int | None:
  return 0 if per_run else None


def _program(
  plan: Plan,
  compiled: Compiled,
  own_step: Callable,
  where: Placement,
  loop: Loop,
  devices: int,
) -> Program:
  parts = _compile_parts(compiled, own_step, where)
  run_compiled = _compile_loop(parts, where)
  return Program(plan, loop, devices, where, parts, run_compiled)


def _compile_parts(
  compiled: Compiled, own_step: Callable, where: Placement
) -> Parts:
  """Says which arguments of each part have an axis of runs."""
  per_run = {name: dict(arrays) for name, arrays in where.per_run.items()}
  in_tables = jax.tree.map(_axis, per_run)
  taken = (where.batch, where.run)
  in_data = {'': in_tables.get('', None)} if in_tables else None

  @functools.cache
  def scored(name: str, axes: tuple) -> tuple[Callable, Callable]:
    rows = functools.partial(collect, name=name)
    numbers = functools.partial(reduce, name=name)
    batch, known = map(dict, axes)
    return (
      compiled(rows, (0, batch), where.run),
      compiled(numbers, (0, known), where.run),
    )

  return Parts(
    init=compiled(init, (0,), where.carry.state),
    order=compiled(order, (0, None), where.run),
    take=compiled(take, (in_tables, 0, None, 0, None), taken),
    take_in_order=compiled(take, (in_data, None, None, 0, None), taken),
    start=compiled(start, (0,), where.carry, donate=0),
    step=own_step,
    refit_key=compiled(refit_key, (0, None), where.run),
    blank=compiled(refit_blank, (0, 0), where.batch),
    collect=compiled(refit_collect, (0, 0, 0, 0), where.batch, donate=0),
    update=compiled(refit_update, (0, 0, 0), where.carry.state, donate=0),
    score=scored,
  )


def _compile_loop(parts: Parts, where: Placement) -> Callable[..., Carry]:
  """Steps in one compiled loop, whose bounds are no constants of it."""

  @functools.partial(jax.jit, out_shardings=where.carry, donate_argnums=0)
  def run_compiled(
    carry: Carry,
    tables: Tables,
    orders: Mapping[str, Array],
    key: Key,
    epoch: Array,
    first: Array,
    last: Array,
  ) -> Carry:
    def body(i: Array, carry: Carry) -> Carry:
      return parts.step(carry, *parts.take(tables, orders, i, key, epoch))[0]

    return lax.fori_loop(first, last, body, carry)

  return run_compiled


# --- running it ---------------------------------------------------------------


def put_data(program: Program, sets: Mapping[str, Mapping[str, Any]]) -> Tables:
  """The arrays [n, ...] of the sources, on the devices."""
  plan, where = program.plan, program.where

  def put(values: Any, shards: int) -> Table:
    if not isinstance(values, PerRun):
      rows = packed_on_host(values, shards)
      return Table(jax.device_put(rows, where.rows))
    rows = packed_on_host(values.values, shards, axis=1)
    return Table(jax.device_put(_filled(rows, where.added), where.run))

  return {
    name: {k: put(v, plan.sources[name].shards) for k, v in arrays.items()}
    for name, arrays in sets.items()
  }


def hold_out(program: Program, arrays: Mapping[str, Any]) -> HeldOut:
  """A held-out set, on the devices."""
  where = program.where
  batches = padded_batches(arrays, multiple=where.multiple)
  return HeldOut(
    list(map(where.held_out, batches)), where.known(known_of(arrays))
  )


def run_steps(
  program: Program,
  carry: Carry,
  feed: Feed,
  orders: Mapping[str, Array],
  key: Key,
  epoch: int,
  first: int,
  last: int,
) -> Carry:
  """The steps of an epoch from first to last; donates the carry."""
  if program.loop == 'compiled' and feed.stream is None:
    return program.run_compiled(
      carry, feed.tables, orders, key, epoch, first, last
    )
  take, steps = program.parts.take, range(first, last)
  for batches, k in _batches(program, take, feed, orders, key, epoch, steps):
    carry, _ = program.parts.step(carry, batches, k)
  return carry


def run_refit(
  program: Program, state: State, feed: Feed, key: Key, epoch: int
) -> State:
  """What happens between epochs; donates the state."""
  main, parts = program.plan.main, program.parts
  # Sent once, and not again with every batch.
  natural = jax.device_put(
    index_order(main.n, main.shards, main.batch_size), program.where.whole
  )
  take, steps = parts.take_in_order, range(natural.size // main.batch_size)
  feed = feed._replace(tables={'': feed.tables['']})
  key = parts.refit_key(key, epoch)
  collected = parts.blank(state, key)
  for batches, k in _batches(
    program, take, feed, {'': natural}, key, -1, steps
  ):
    collected = parts.collect(collected, state, batches[''], k)
  return parts.update(state, collected, key)


def _batches(
  program: Program,
  take: Callable,
  feed: Feed,
  orders: Mapping[str, Any],
  key: Key,
  epoch: int,
  steps: range,
) -> Iterator[tuple[dict[str, Batch], Key]]:
  """What lives on the devices, joined with what is streamed to them."""
  streamed = feed.stream and feed.stream(epoch, steps.start)
  for i in steps:
    batches, step_key = take(feed.tables, orders, i, key, max(epoch, 0))
    if streamed:
      rows = jax.device_put(next(streamed), program.where.batch)
      batches = {name: {**batches[name], **rows[name]} for name in batches}
    yield batches, step_key


def score_set(
  program: Program, name: str, state: State, held: HeldOut
) -> dict[str, Array]:
  """The numbers of the held-out set of that name, as in the history."""

  def axes(arrays: Batch) -> tuple:
    return tuple((k, _axis(isinstance(v, PerRun))) for k, v in arrays.items())

  def bare(arrays: Batch) -> dict[str, Any]:
    return {
      k: v.values if isinstance(v, PerRun) else v for k, v in arrays.items()
    }

  both = axes(held.batches[0]), axes(held.known)
  rows_of, numbers_of = program.parts.score(name, both)
  rows = [rows_of(state, bare(batch)) for batch in held.batches]
  return drop(program, numbers_of(rows, bare(held.known)))


# --- runs that were added ----------------------------------------------------


def _filled(values: Any, added: int) -> Any:
  """[runs + added, ...]: the first runs come again at the end."""
  if not added:
    return values
  return values[np.arange(len(values) + added) % len(values)]


def fill(program: Program, tree: PyTree) -> PyTree:
  """Keys or a carry, with runs added until all devices have as many."""
  where = program.where
  if not where.added:
    return tree
  filled = jax.tree.map(lambda x: _filled(x, where.added), tree)
  return jax.device_put(filled, where.run)


def drop(program: Program, tree: PyTree) -> PyTree:
  """What was filled, without the runs that were added."""
  where = program.where
  if not where.added:
    return tree
  kept = jax.tree.map(lambda x: x[: len(x) - where.added], tree)
  return jax.device_put(kept, where.whole)


def abstract_carry(program: Program, carry: Carry) -> PyTree:
  """Shapes, dtypes and shardings of a carry, for restoring one."""
  where = program.where
  # No sharding splits runs that do not divide.
  on = lambda x: where.whole if where.added else x.sharding
  return jax.tree.map(
    lambda x, kept: jax.ShapeDtypeStruct(kept.shape, x.dtype, sharding=on(x)),
    carry,
    jax.eval_shape(functools.partial(drop, program), carry),
  )
