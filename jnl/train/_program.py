"""The compiled parts of training: of one run, or of many runs at once.

Each part is written once, for one run in the global view. `compile_one`
compiles them for a mesh `'data'`; `compile_many` maps them over an axis of
runs, and spreads that axis over the devices instead.

Steps follow each other in one compiled loop on accelerators, and in Python on
CPU, where XLA runs a convolution inside a loop an order of magnitude slower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
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
  Method,
  Metrics,
  PyTree,
  Refit,
  State,
  Table,
  example_keys,
  pack_rows,
  write_rows,
)
from jnl.data._batches import (
  PerRun,
  epoch_order,
  index_order,
  packed_on_host,
  take_batch,
)
from jnl.train._evaluate import Score, put_batch
from jnl.train._parallel import How, data_mesh, parallel, shardings

Augment = Callable[[Key, Batch], Batch]
Tables = Mapping[str, Table]
Loop = Literal['compiled', 'python']

INIT, ORDER, STEP, REFIT = range(4)
"""Tags of the four roots that a run's key is folded into."""
AUGMENT_TAG = 1 << 16
"""Tag of the keys for augmentation within a step; methods use small tags."""


class Plan(NamedTuple):
  """What is trained, on how much.

  Attributes:
    method: the method.
    n: training examples.
    shards: of the tables of data, by default `data_shards(n, batch_size)`.
    batch_size: examples in a step.
    batch: shapes and dtypes of a batch, before augmentation.
    augment: `(keys [b], batch) -> batch`, or None.
    scores: for the name of every held-out set, what it is scored by.
    metrics: shapes and dtypes of those of a step.
    traced: the jaxpr of a step, for what can be read off it.
  """

  method: Method
  n: int
  shards: int
  batch_size: int
  batch: Mapping[str, jax.ShapeDtypeStruct]
  augment: Augment | None = None
  scores: Mapping[str, Score] = types.MappingProxyType({})
  metrics: Mapping[str, jax.ShapeDtypeStruct] = types.MappingProxyType({})
  traced: Any = None


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
    tables: what lives on the devices.
    stream: `(epoch, first) -> batches` of what does not, from step `first` of
      the epoch on; None if there is nothing. Epoch -1 is in index order.
  """

  tables: Tables
  stream: Callable[[int, int], Iterator[Batch]] | None = None


# --- the parts, for one run --------------------------------------------------


def init(plan: Plan, key: Key) -> State:
  """The first state."""
  return plan.method.init(jax.random.fold_in(key, INIT))


def order(plan: Plan, key: Key, epoch: Array) -> Array:
  """The order of an epoch."""
  key = jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch)
  return epoch_order(key, plan.n, plan.shards)


def take(
  plan: Plan, tables: Tables, order: Array, i: Array, key: Key, epoch: Array
) -> tuple[Batch, Key]:
  """The i-th batch of an epoch and the key of its step."""
  key = jax.random.fold_in(jax.random.fold_in(key, STEP), epoch)
  batch = take_batch(tables, order, i, plan.batch_size)
  return batch, jax.random.fold_in(key, i)


def step_state(
  plan: Plan, state: State, batch: Batch, key: Key
) -> tuple[State, Metrics]:
  """The method's step on an augmented batch."""
  if plan.augment is not None:
    tagged = jax.random.fold_in(key, AUGMENT_TAG)
    batch = plan.augment(example_keys(tagged, batch['index']), batch)
  return plan.method.step(state, batch, key)


def start(plan: Plan, state: State) -> Carry:
  """The carry before the first step of an epoch."""
  zeros = lambda m: jnp.zeros(m.shape, m.dtype)
  means = jax.tree.map(zeros, dict(plan.metrics))
  return Carry(state, means, jnp.int32(0))


def step(
  plan: Plan, carry: Carry, batch: Batch, key: Key
) -> tuple[Carry, Metrics]:
  """A step, and the running means of its metrics."""
  state, metrics = step_state(plan, carry.state, batch, key)
  steps = carry.steps + 1
  means = jax.tree.map(
    lambda mean, m: (mean + (m - mean) / steps).astype(mean.dtype),
    carry.means,
    metrics,
  )
  return Carry(state, means, steps), {}


def score(plan: Plan, state: State, batch: Batch, *, name: str) -> Array:
  """The score of a batch of the held-out set of that name."""
  return plan.scores[name](plan.method.predict, state, batch)


def refit_key(plan: Plan, key: Key, epoch: Array) -> Key:
  """The key of the refit before an epoch."""
  del plan
  return jax.random.fold_in(jax.random.fold_in(key, REFIT), epoch)


def _refit_of(plan: Plan) -> Refit:
  assert plan.method.refit is not None, 'asked for by the loop alone'
  return plan.method.refit


def refit_blank(plan: Plan, state: State, key: Key) -> PyTree:
  """Empty tables for what a refit collects."""
  rows = jax.eval_shape(_refit_of(plan).collect, state, plan.batch, key)

  def table(r: jax.ShapeDtypeStruct) -> Table:
    return pack_rows(jnp.zeros((plan.n, *r.shape[1:]), r.dtype), plan.shards)

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


class Program(NamedTuple):
  """The compiled parts of training, `Plan` applied.

  Attributes:
    plan: what is trained.
    loop: of the steps.
    devices: how many it runs on.
    put_data: `arrays [n, ...] -> tables`, on the devices.
    put_batch: a held-out batch onto the devices.
    multiple: of which the size of held-out batches should be one.
    init, order: the parts.
    score: `(name, state, batch) -> []`, of a held-out set.
    abstract: shapes, dtypes and shardings of a carry, for restoring one.
    start: `state -> carry` before an epoch; donates the state.
    run: `(carry, feed, order, key, epoch, first, last) -> carry`, the steps
      from first to last; donates the carry.
    refit: `(state, feed, key, epoch) -> state`.
    fill: keys or a carry of the runs, with runs added until all devices have
      as many; the identity where there is nothing to add.
    drop: what was filled, without the runs that were added.
  """

  plan: Plan
  loop: Loop
  devices: int
  put_data: Callable[[Mapping[str, Any]], Tables]
  put_batch: Callable[[Batch], Batch]
  multiple: int
  init: Callable[[Key], State]
  order: Callable[[Key, Any], Array]
  score: Callable[[str, State, Batch], Array]
  abstract: Callable[[Carry], PyTree]
  start: Callable[[State], Carry]
  run: Callable[[Carry, Feed, Array, Key, int, int, int], Carry]
  refit: Callable[[State, Feed, Key, int], State]
  fill: Callable[[PyTree], PyTree]
  drop: Callable[[PyTree], PyTree]

  @property
  def steps(self) -> int:
    """Steps in an epoch."""
    return self.plan.n // self.plan.batch_size


class _Placement(NamedTuple):
  """What is where.

  Attributes:
    whole, carry, batch, run: shardings of what all devices hold, of a carry, of
      the batch of a step, and of what there is one of for each run.
    rows: of a table of data.
    held_out: puts a held-out batch.
    per_run: for the arrays of the data, whether they differ from run to run.
    added: runs, beside those that were asked for.
  """

  whole: NamedSharding
  carry: Any
  batch: NamedSharding
  run: NamedSharding
  rows: NamedSharding
  held_out: Callable[[Batch], Batch]
  per_run: Mapping[str, bool] = types.MappingProxyType({})
  added: int = 0


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
      shards.
    loop: of the steps; compiled by default on accelerators, but for pmap.
  """
  devices = list(jax.devices() if devices is None else devices)
  used = max(d for d in range(1, len(devices) + 1) if plan.shards % d == 0)
  mesh = data_mesh(devices[:used])
  abstract = jax.eval_shape(plan.method.init, jax.random.key(0))
  # Metrics and their number are replicated, whatever they are.
  carry: Any = Carry(abstract, means={}, steps=jnp.int32(0))
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

  def compiled(f: Callable, axes: Any, out: Any, donate: Any = ()) -> Callable:
    del axes
    f = functools.partial(f, plan)
    return jax.jit(f, out_shardings=out, donate_argnums=donate)

  return _program(
    plan,
    compiled,
    parallel(
      functools.partial(step, plan),
      carry._replace(means=jnp.float32(0)),
      how,
      mesh=mesh,
    ),
    _Placement(
      whole=whole,
      carry=shardings(carry, mesh)._replace(means=whole),
      batch=split,
      run=whole,
      rows=split,
      held_out=functools.partial(put_batch, mesh=mesh),
    ),
    loop='python' if how == 'pmap' else loop or _default_loop(),
    devices=used,
    multiple=used,
  )


def compile_many(
  plan: Plan,
  runs: int,
  per_run: Mapping[str, bool],
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
    per_run: for the arrays of the data, whether they differ from run to run.
    devices: the first of these, by default of all.
    loop: of the steps; compiled by default on accelerators.
  """
  devices = list(jax.devices() if devices is None else devices)
  each = -(-runs // len(devices))
  used = -(-runs // each)
  mesh = jax.make_mesh(
    (used,), ('run',), axis_types=(AxisType.Auto,), devices=devices[:used]
  )
  whole: Any = NamedSharding(mesh, P())
  on_run: Any = NamedSharding(mesh, P('run'))

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

  added = used * each - runs
  return _program(
    plan,
    compiled,
    compiled(step, (0, 0, 0), (on_run, on_run), donate=0),
    _Placement(
      whole=whole,
      carry=Carry(state=on_run, means=on_run, steps=on_run),
      batch=on_run,
      run=on_run,
      rows=whole,
      held_out=held_out,
      per_run=per_run,
      added=added,
    ),
    loop=loop or _default_loop(),
    devices=used,
  )


def _default_loop() -> Loop:
  return 'python' if jax.default_backend() == 'cpu' else 'compiled'


def _axis(per_run: bool) -> int | None:
  return 0 if per_run else None


def _filled(values: Any, added: int) -> Any:
  """[runs + added, ...]: the first runs come again at the end."""
  if not added:
    return values
  return values[np.arange(len(values) + added) % len(values)]


def _program(
  plan: Plan,
  compiled: Callable[..., Callable],
  step: Callable[[Carry, Batch, Key], tuple[Carry, Metrics]],
  where: _Placement,
  *,
  loop: Loop,
  devices: int,
  multiple: int = 1,
) -> Program:
  """Puts the parts together, and says which arguments have an axis of runs."""
  in_tables = {name: _axis(own) for name, own in where.per_run.items()}
  natural = index_order(plan.n, plan.shards, plan.batch_size)
  taken = (where.batch, where.run)
  take_shuffled = compiled(take, (in_tables, 0, None, 0, None), taken)
  take_natural = compiled(take, (in_tables, None, None, 0, None), taken)
  key_of = compiled(refit_key, (0, None), where.run)
  blank = compiled(refit_blank, (0, 0), where.batch)
  collect = compiled(refit_collect, (0, 0, 0, 0), where.batch, donate=0)
  update = compiled(refit_update, (0, 0, 0), where.carry.state, donate=0)

  def fill(tree: PyTree) -> PyTree:
    filled = jax.tree.map(lambda x: _filled(x, where.added), tree)
    return jax.device_put(filled, where.run) if where.added else tree

  def drop(tree: PyTree) -> PyTree:
    if not where.added:
      return tree
    kept = jax.tree.map(lambda x: x[: len(x) - where.added], tree)
    return jax.device_put(kept, where.whole)

  def put_data(arrays: Mapping[str, Any]) -> Tables:
    return {name: put_rows(values) for name, values in arrays.items()}

  def put_rows(values: Any) -> Table:
    if not isinstance(values, PerRun):
      rows = packed_on_host(values, plan.shards)
      return Table(jax.device_put(rows, where.rows))
    rows = packed_on_host(values.values, plan.shards, axis=1)
    return Table(jax.device_put(_filled(rows, where.added), where.run))

  def batches(
    take: Callable, feed: Feed, order: Any, key: Key, epoch: int, steps: range
  ) -> Iterator[tuple[Batch, Key]]:
    """What lives on the devices, joined with what is streamed to them."""
    streamed = feed.stream and feed.stream(epoch, steps.start)
    for i in steps:
      batch, step_key = take(feed.tables, order, i, key, max(epoch, 0))
      rows = jax.device_put(next(streamed), where.batch) if streamed else {}
      yield {**batch, **rows}, step_key

  def run(
    carry: Carry,
    feed: Feed,
    order: Array,
    key: Key,
    epoch: int,
    first: int,
    last: int,
  ) -> Carry:
    if loop == 'compiled' and feed.stream is None:
      return run_compiled(carry, feed.tables, order, key, epoch, first, last)
    steps = range(first, last)
    for batch, k in batches(take_shuffled, feed, order, key, epoch, steps):
      carry, _ = step(carry, batch, k)
    return carry

  @functools.partial(jax.jit, out_shardings=where.carry, donate_argnums=0)
  def run_compiled(
    carry: Carry,
    tables: Tables,
    order: Array,
    key: Key,
    epoch: Array,
    first: Array,
    last: Array,
  ) -> Carry:
    def body(i: Array, carry: Carry) -> Carry:
      return step(carry, *take_shuffled(tables, order, i, key, epoch))[0]

    return lax.fori_loop(first, last, body, carry)

  def refit(state: State, feed: Feed, key: Key, epoch: int) -> State:
    key = key_of(key, epoch)
    steps = range(natural.size // plan.batch_size)
    collected = blank(state, key)
    for batch, k in batches(take_natural, feed, natural, key, -1, steps):
      collected = collect(collected, state, batch, k)
    return update(state, collected, key)

  @functools.cache
  def compiled_score(name: str, axes: tuple) -> Callable:
    of_set = functools.partial(score, name=name)
    return compiled(of_set, (0, dict(axes)), where.run)

  def score_by_name(name: str, state: State, batch: Batch) -> Array:
    axes = tuple((k, _axis(isinstance(v, PerRun))) for k, v in batch.items())
    values = {
      k: v.values if isinstance(v, PerRun) else v for k, v in batch.items()
    }
    return drop(compiled_score(name, axes)(state, values))

  def abstract(carry: Carry) -> PyTree:
    # No sharding splits runs that do not divide.
    on = lambda x: where.whole if where.added else x.sharding
    return jax.tree.map(
      lambda x, kept: jax.ShapeDtypeStruct(kept.shape, x.dtype, sharding=on(x)),
      carry,
      jax.eval_shape(drop, carry),
    )

  return Program(
    plan=plan,
    loop=loop,
    devices=devices,
    put_data=put_data,
    put_batch=where.held_out,
    multiple=multiple,
    init=compiled(init, (0,), where.carry.state),
    order=compiled(order, (0, None), where.run),
    score=score_by_name,
    abstract=abstract,
    start=compiled(start, (0,), where.carry, donate=0),
    run=run,
    refit=refit,
    fill=fill,
    drop=drop,
  )
