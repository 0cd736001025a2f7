"""The compiled parts of training: of one run, or of many runs at once.

Each part is written once, for one run in the global view. `compile_one`
compiles them for a mesh `'data'`; `compile_many` maps them over an axis of
runs, and spreads that axis over the devices instead.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

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
from jnl.data.batches import epoch_order, index_order, take_batch
from jnl.train.evaluate import accuracy
from jnl.train.parallel import How, data_mesh, parallel, place, shardings

Augment = Callable[[Key, Batch], Batch]
Tables = Mapping[str, Table]

INIT, ORDER, STEP, REFIT = range(4)
"""Tags of the four roots that a run's key is folded into."""
AUGMENT_TAG = 1 << 16
"""Tag of the keys for augmentation within a step; methods use small tags."""


class Plan(NamedTuple):
  """What is trained, on how much.

  Attributes:
    method: the method.
    n: training examples.
    shards: of the tables of data, `data_shards(n, batch_size)`.
    batch_size: examples in a step.
    augment: `(keys [b], batch) -> batch`, or None.
  """

  method: Method
  n: int
  shards: int
  batch_size: int
  augment: Augment | None = None


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


def step(
  plan: Plan, state: State, batch: Batch, key: Key
) -> tuple[State, Metrics]:
  """The method's step on an augmented batch."""
  if plan.augment is not None:
    tagged = jax.random.fold_in(key, AUGMENT_TAG)
    batch = plan.augment(example_keys(tagged, batch['index']), batch)
  return plan.method.step(state, batch, key)


def score(plan: Plan, state: State, batch: Batch) -> Array:
  """Accuracy on a held-out batch."""
  return accuracy(plan.method.predict, state, batch)


def refit_key(plan: Plan, key: Key, epoch: Array) -> Key:
  """The key of the refit before an epoch."""
  del plan
  return jax.random.fold_in(jax.random.fold_in(key, REFIT), epoch)


def _refit_of(plan: Plan) -> Refit:
  assert plan.method.refit is not None, 'asked for by the loop alone'
  return plan.method.refit


def refit_rows(
  plan: Plan, state: State, tables: Tables, order: Array, i: Array, key: Key
) -> tuple[Array, PyTree]:
  """What the i-th batch contributes to a refit, and its index."""
  batch = take_batch(tables, order, i, plan.batch_size)
  refit = _refit_of(plan)
  rows = refit.collect(state, batch, jax.random.fold_in(key, i))
  return batch['index'], rows


def refit_blank(
  plan: Plan, state: State, tables: Tables, order: Array, key: Key
) -> PyTree:
  """Empty tables for what a refit collects."""
  rows_of = functools.partial(refit_rows, plan)
  _, rows = jax.eval_shape(rows_of, state, tables, order, jnp.int32(0), key)

  def table(r: jax.ShapeDtypeStruct) -> Table:
    return pack_rows(jnp.zeros((plan.n, *r.shape[1:]), r.dtype), plan.shards)

  return jax.tree.map(table, rows)


def refit_collect(
  plan: Plan,
  collected: PyTree,
  state: State,
  tables: Tables,
  order: Array,
  i: Array,
  key: Key,
) -> PyTree:
  """The collected tables with the rows of the i-th batch."""
  index, rows = refit_rows(plan, state, tables, order, i, key)
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
    put_data: `arrays [n, ...] -> tables`, on the devices.
    put: an array onto the devices, whole on each.
    init, order, take, step, score: the parts; `step` donates the state.
    refit: `(state, tables, key, epoch) -> state`.
  """

  plan: Plan
  put_data: Callable[[Mapping[str, Any]], Tables]
  put: Callable[[PyTree], PyTree]
  init: Callable[[Key], State]
  order: Callable[[Key, Any], Array]
  take: Callable[[Tables, Array, Any, Key, Any], tuple[Batch, Key]]
  step: Callable[[State, Batch, Key], tuple[State, Metrics]]
  score: Callable[[State, Batch], Array]
  refit: Callable[[State, Tables, Key, Any], State]

  @property
  def steps(self) -> int:
    """Steps in an epoch."""
    return self.plan.n // self.plan.batch_size


def compile_one(
  plan: Plan,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
) -> Program:
  """The program of one run, data parallel.

  Args:
    plan: what is trained.
    how: see `parallel`.
    devices: as many of these (by default of all) as divide the shards.
  """
  devices = list(jax.devices() if devices is None else devices)
  mesh = data_mesh(devices[: math.gcd(plan.shards, len(devices))])
  abstract = jax.eval_shape(plan.method.init, jax.random.key(0))

  def compiled(f: Callable, axes: Any, out: Any, donate: Any = ()) -> Callable:
    del axes
    f = functools.partial(f, plan)
    return jax.jit(f, out_shardings=out, donate_argnums=donate)

  return _program(
    plan,
    compiled,
    parallel(functools.partial(step, plan), abstract, how, mesh=mesh),
    put_data=lambda tables: place(tables, mesh),
    whole=NamedSharding(mesh, P()),
    on_state=shardings(abstract, mesh),
    on_batch=NamedSharding(mesh, P(AXIS)),
    on_run=NamedSharding(mesh, P()),
  )


def compile_many(
  plan: Plan,
  runs: int,
  per_run: Mapping[str, bool],
  devices: Sequence[jax.Device] | None = None,
) -> Program:
  """The program of many runs at once: states and keys have an axis of runs.

  Args:
    plan: what one run trains.
    runs: their number.
    per_run: for the name of every array, whether it differs from run to run;
      such an array is [n, runs, ...].
    devices: as many of these (by default of all) as divide the runs; each holds
      whole runs, so that nothing is communicated.
  """
  devices = list(jax.devices() if devices is None else devices)
  devices = devices[: math.gcd(runs, len(devices))]
  mesh = jax.make_mesh(
    (len(devices),), ('run',), axis_types=(AxisType.Auto,), devices=devices
  )
  whole, on_run = NamedSharding(mesh, P()), NamedSharding(mesh, P('run'))

  def compiled(f: Callable, axes: Any, out: Any, donate: Any = ()) -> Callable:
    f = jax.vmap(functools.partial(f, plan), axes)
    return jax.jit(f, out_shardings=out, donate_argnums=donate)

  return _program(
    plan,
    compiled,
    compiled(step, (0, 0, 0), (on_run, on_run), donate=0),
    put_data=lambda tables: jax.device_put(tables, whole),
    whole=whole,
    on_state=on_run,
    on_batch=on_run,
    on_run=on_run,
    per_run=per_run,
  )


def _program(
  plan: Plan,
  compiled: Callable[..., Callable],
  compiled_step: Callable,
  *,
  put_data: Callable[[Tables], Tables],
  whole: NamedSharding,
  on_state: Any,
  on_batch: NamedSharding,
  on_run: NamedSharding,
  per_run: Mapping[str, bool] = {},
) -> Program:
  """Says what is where, and which arguments have an axis of runs."""
  in_tables = {name: 2 if own else None for name, own in per_run.items()}
  in_batch = {
    name: 1 if per_run.get(name) else None for name in ('x', 'labels', 'weight')
  }
  natural = index_order(plan.n, plan.shards, plan.batch_size)
  key_of = compiled(refit_key, (0, None), on_run)
  blank = compiled(refit_blank, (0, in_tables, None, 0), on_batch)
  collect = compiled(
    refit_collect, (0, 0, in_tables, None, None, 0), on_batch, donate=0
  )
  update = compiled(refit_update, (0, 0, 0), on_state, donate=0)

  def refit(state: State, tables: Tables, key: Key, epoch: Any) -> State:
    key = key_of(key, epoch)
    collected = blank(state, tables, natural, key)
    for i in range(natural.size // plan.batch_size):
      collected = collect(collected, state, tables, natural, i, key)
    return update(state, collected, key)

  return Program(
    plan=plan,
    put_data=lambda arrays: put_data(
      {name: pack_rows(v, plan.shards) for name, v in arrays.items()}
    ),
    put=lambda tree: jax.device_put(tree, whole),
    init=compiled(init, (0,), on_state),
    order=compiled(order, (0, None), on_run),
    take=compiled(take, (in_tables, 0, None, 0, None), (on_batch, on_run)),
    step=compiled_step,
    score=compiled(score, (0, in_batch), on_run),
    refit=refit,
  )
