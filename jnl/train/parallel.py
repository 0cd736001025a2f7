"""Runs the step of a method on several devices, in any of JAX's three ways.

`specs(state)` says where everything lives: the rows of `Table`s are split over
the mesh axis `'data'`, the rest is replicated. Nothing else has to be known.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jnl.base import AXIS, Batch, Key, Metrics, PyTree, State, Table, check

How = Literal['jit', 'shard_map', 'pmap']
Step = Callable[[Any, Batch, Key], tuple[Any, Metrics]]


def _is_table(x: Any) -> bool:
  return isinstance(x, Table)


def specs(tree: PyTree) -> PyTree:
  """`P('data')` for the rows of Tables, `P()` for every other array.

  >>> specs({'a': Table(rows=0), 'b': 1})
  {'a': Table(rows=P('data',)), 'b': P()}
  """
  split: Any = P(AXIS)
  return jax.tree.map(
    lambda x: Table(split) if _is_table(x) else P(), tree, is_leaf=_is_table
  )


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of one axis `'data'` over the devices, by default over all."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh(
    (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """`specs(tree)` on a mesh."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))


def place(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts Tables and replicated arrays onto the mesh.

  Always copies: `device_put` may hand on a buffer that is already there, and a
  step that donates its state would take it from whoever else holds it.

  Raises:
    ValueError: if the shards of a Table do not divide over the devices.
  """
  for x in jax.tree.leaves(tree, is_leaf=_is_table):
    if _is_table(x):
      check(
        x.rows.shape[0] % mesh.size == 0,
        f'a table of {x.rows.shape[0]} shards does not divide over '
        f'{mesh.size} devices: take a batch size that is a multiple of '
        f'{mesh.size}, or fewer devices',
      )
  copies = jax.tree.map(jnp.copy, tree)
  return jax.device_put(copies, shardings(tree, mesh))


def parallel(
  step: Step,
  state: PyTree,
  how: How = 'jit',
  *,
  mesh: Mesh | None = None,
  check_vma: bool = False,
) -> Step:
  """The same step, compiled for a mesh; the state is donated.

  Args:
    step: `(state, batch, key) -> (state, metrics)`, as in `Method`.
    state: a state or its `jax.eval_shape`: only its structure is looked at.
    how: `'jit'` (global view, the default), `'shard_map'` or `'pmap'`.
    mesh: from `data_mesh`, by default over all devices.
    check_vma: the check of `jax.shard_map`; the step is right with and without,
      but a `lax.scan` inside may not pass it.

  Returns:
    A function like `step`. Every array of the batch is split over its first
    axis, whose size must be a multiple of the number of devices.

  Raises:
    ValueError: if `how` is unknown.
  """
  check(
    how in get_args(How), f'how must be one of {get_args(How)}, got {how!r}'
  )
  mesh = data_mesh() if mesh is None else mesh
  state_specs = specs(state)
  if how == 'pmap':
    return _pmapped(step, state_specs, mesh)
  if how == 'shard_map':
    step = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(state_specs, P(AXIS), P()),
      out_specs=(state_specs, P()),
      check_vma=check_vma,
    )
  placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs)
  everywhere = NamedSharding(mesh, P())
  return jax.jit(
    step,
    in_shardings=(placed, NamedSharding(mesh, P(AXIS)), everywhere),
    out_shardings=(placed, everywhere),
    donate_argnums=0,
  )


def _pmapped(step: Step, state_specs: PyTree, mesh: Mesh) -> Step:
  """pmap sees one leading axis of devices, which this adds and takes away."""
  axes = jax.tree.map(lambda spec: 0 if spec == P(AXIS) else None, state_specs)
  devices = mesh.size
  mapped = jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(axes, 0, None),
    out_axes=(axes, None),
    devices=mesh.devices.flatten().tolist(),
  )

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

  def join(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

  def tables(f: Callable, state: State) -> State:
    return jax.tree.map(
      lambda x: Table(f(x.rows)) if _is_table(x) else x,
      state,
      is_leaf=_is_table,
    )

  def run(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    state, metrics = mapped(
      tables(split, state), jax.tree.map(split, dict(batch)), key
    )
    return tables(join, state), metrics

  return run
