"""Runs the step of a method on several devices, in any of JAX's three ways.

`specs(state)` says where everything lives: the rows of `Table`s are split over
the mesh axis `'data'`, the rest is replicated. Nothing else has to be known.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jnl.base import (
  AWAY,
  AXIS,
  Batch,
  Key,
  PyTree,
  State,
  check,
  is_concrete,
  is_table,
  suffixed,
  tables_of,
)

How = Literal['jit', 'shard_map', 'pmap']
Step = Callable[[Any, Batch, Key], tuple[Any, Any]]


def specs(tree: PyTree) -> PyTree:
  """`P('data')` for the rows of Tables, `P()` for every other array.

  Args:
    tree: a state, or a part of it.

  Returns:
    A tree like it, of a `PartitionSpec` for each array.

  >>> from jnl.base import Table
  >>> specs({'a': Table(0), 'b': 1})
  {'a': Table(rows=P('data',), stream=''), 'b': P()}
  """
  split: Any = P(AXIS)
  return jax.tree.map(
    lambda x: dataclasses.replace(x, rows=split) if is_table(x) else P(),
    tree,
    is_leaf=is_table,
  )


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of one axis `'data'` over the devices, by default over all.

  Args:
    devices: which, in order; None for all.

  Returns:
    The mesh, of an axis that is `AxisType.Auto`.
  """
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh(
    (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def dividing_mesh(size: int, devices: Sequence[jax.Device]) -> Mesh:
  """The mesh over the first of the devices, the most that divide a size.

  Args:
    size: of a batch, or a number of shards.
    devices: at least one.

  Returns:
    The mesh, as of `data_mesh`; its `size` is how many are used.
  """
  used = max(d for d in range(1, len(devices) + 1) if size % d == 0)
  return data_mesh(devices[:used])


def auto(mesh: Mesh) -> Mesh:
  """The same mesh with automatic axes, on which all of jnl is written.

  `jax.make_mesh` makes explicit ones unless told otherwise.

  Args:
    mesh: of any kind of axes.

  Returns:
    A mesh of the same devices and names.
  """
  kinds = (AxisType.Auto,) * len(mesh.axis_names)
  return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _on_auto(tree: PyTree) -> PyTree:
  """Arrays that lie on explicit axes, on the same devices of an automatic mesh.

  Nothing is moved.
  """

  def moved(x: Any) -> Any:
    sharding = getattr(x, 'sharding', None)
    if not isinstance(sharding, NamedSharding):
      return x
    mesh = sharding.mesh
    if not isinstance(mesh, Mesh) or AxisType.Explicit not in mesh.axis_types:
      return x
    return jax.device_put(x, NamedSharding(auto(mesh), sharding.spec))

  return jax.tree.map(moved, tree)


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """`specs(tree)` on a mesh.

  Args:
    tree: a state, or a part of it.
    mesh: with an axis `'data'`.

  Returns:
    A tree like it, of a `NamedSharding` for each array.
  """
  mesh = auto(mesh)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))


def place(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts Tables and replicated arrays onto the mesh.

  Always copies: `device_put` may hand on a buffer that is already there, and a
  step that donates its state would take it from whoever else holds it.

  Args:
    tree: a state, or any tree of arrays and Tables.
    mesh: with an axis `'data'`; its axes are taken as automatic ones.

  Returns:
    The tree on the mesh.

  Raises:
    ValueError: if the shards of a Table do not divide over the devices.
  """
  _check_shards(tree, mesh)
  copies = jax.tree.map(jnp.copy, _on_auto(tree))
  return jax.device_put(copies, shardings(tree, mesh))


def _check_shards(tree: PyTree, mesh: Mesh) -> None:
  devices = mesh.shape[AXIS]
  for table in tables_of(tree):
    shards = table.rows.shape[0]
    check(
      shards % devices == 0,
      f'a table of {shards} shards does not divide over {devices} devices: '
      f'take shards and a batch size that are multiples of {devices}, or fewer '
      'devices',
    )


def check_layout(state: PyTree, batch: Batch) -> None:
  """Raises if the tables of a state have no place for an example of a batch.

  On the host. Inside jit such rows are read as zeros and not written, and only
  the metric `unplaced` says so.

  Args:
    state: with any number of `Table`s.
    batch: `index` [b], and `weight` [b] if any, and those of the streams that
      tables are of: examples of weight 0, and those from `AWAY` on, need no
      place.

  Raises:
    ValueError: naming the first index, and the layout of the table.
  """
  for table in tables_of(state):
    name = suffixed('index', table.stream)
    if name not in batch:
      continue
    index = np.asarray(batch[name])
    weight = batch.get(suffixed('weight', table.stream), np.ones(index.shape))
    needed = (np.asarray(weight) > 0) & (index < AWAY)
    shards, m = table.rows.shape[:2]
    check(
      index.ndim == 1 and index.size % shards == 0,
      f'{name} must be [b] with b a multiple of the {shards} shards of the '
      f'table, got shape {index.shape}',
    )
    own = np.repeat(np.arange(shards), index.size // shards)
    lost = needed & (index // m != own)
    check(
      not lost.any(),
      f'{name}: example {index[lost.argmax()]}, number {lost.argmax()} of the '
      f'batch, has no place in a table of {shards} shards of {m} rows. Either '
      'num_examples is too small, or batches are not laid out shard by shard: '
      'with a loader of your own build the method with shards=1 (on one device)'
      ', or draw batches by `data.epoch_order` and `data.take_batch`',
    )


def parallel(
  step: Step,
  state: PyTree,
  how: How = 'jit',
  *,
  mesh: Mesh | None = None,
  check_vma: bool = True,
  per_example: bool = False,
) -> Step:
  """The same step, compiled for a mesh; the state is donated (not by pmap).

  Args:
    step: `(state, batch, key) -> (state, metrics)`, as in `Method`; or that of
      an `Adapter`, `(state, batch, key) -> (state, outputs)`.
    state: a state or its `jax.eval_shape`: only its structure is looked at.
    how: `'jit'` (global view, the default), `'shard_map'` or `'pmap'`.
    mesh: from `data_mesh`, by default over all devices. Its axes, and those
      that arrays lie on, may be explicit; inside they are automatic.
    check_vma: the check of `jax.shard_map`, as there on by default. Without it
      a loss or metric that is no mean over all devices is taken from the first
      one in silence.
    per_example: what the step gives beside the state is arrays [b, ...], one
      row for each example, and split as the batch is; by default it is metrics,
      the same on all devices.

  Returns:
    A function like `step`. Every array of the batch is split over its first
    axis, whose size must be a multiple of the number of devices. Where tables
    have no place for an `index`, it raises: each index that is a numpy array is
    looked at, and the first one that lies on a device.

  Raises:
    ValueError: if `how` is unknown, the mesh has no axis `'data'`, or the
      shards of a table do not divide over its devices.
  """
  check(
    how in get_args(How), f'how must be one of {get_args(How)}, got {how!r}'
  )
  mesh = data_mesh() if mesh is None else auto(mesh)
  check(
    AXIS in mesh.axis_names,
    f'mesh must have an axis {AXIS!r}, got {mesh.axis_names}',
  )
  _check_shards(state, mesh)
  state_specs = specs(state)
  rest = P(AXIS) if per_example else P()
  if how == 'pmap':
    return _looked_at(_pmapped(step, state_specs, mesh, per_example))
  if how == 'shard_map':
    step = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(state_specs, P(AXIS), P()),
      out_specs=(state_specs, rest),
      check_vma=check_vma,
    )
  placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs)
  everywhere = NamedSharding(mesh, P())
  compiled = jax.jit(
    step,
    in_shardings=(placed, NamedSharding(mesh, P(AXIS)), everywhere),
    out_shardings=(placed, NamedSharding(mesh, rest)),
    donate_argnums=0,
  )
  return _looked_at(compiled)


def _looked_at(step: Step) -> Step:
  """The step, of arguments that are looked at on the host beforehand."""
  first = [True]

  @functools.wraps(step)
  def run(state: State, batch: Batch, key: Key) -> tuple[State, Any]:
    found = [v for k, v in batch.items() if k.partition('_')[0] == 'index']
    here = any(isinstance(index, np.ndarray) for index in found)
    on_device = [v for v in found if isinstance(v, jax.Array)]
    if on_device and is_concrete(*on_device) and first[0]:
      here, first[0] = all(v.is_fully_addressable for v in on_device), False
    if here:
      check_layout(state, batch)
    return step(*_on_auto((state, dict(batch), key)))

  return run


def _pmapped(
  step: Step, state_specs: PyTree, mesh: Mesh, per_example: bool
) -> Step:
  """pmap sees one leading axis of devices, which this adds and takes away."""
  axes = jax.tree.map(lambda spec: 0 if spec == P(AXIS) else None, state_specs)
  devices = mesh.size
  mapped = jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(axes, 0, None),
    out_axes=(axes, 0 if per_example else None),
    devices=mesh.devices.flatten().tolist(),
  )

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

  def join(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

  def tables(f: Callable, state: State) -> State:
    return jax.tree.map(
      lambda x: dataclasses.replace(x, rows=f(x.rows)) if is_table(x) else x,
      state,
      is_leaf=is_table,
    )

  def run(state: State, batch: Batch, key: Key) -> tuple[State, Any]:
    state, rest = mapped(
      tables(split, state), jax.tree.map(split, dict(batch)), key
    )
    if per_example:
      rest = jax.tree.map(join, rest)
    return tables(join, state), rest

  return run
