"""Answers a stream, batch after batch, while an adapter learns from it.

In the order of the stream, once. Data stay on the host, and so do the answers;
the state is donated from step to step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jnl.base import (
  Adapter,
  Key,
  Outputs,
  State,
  check,
  check_key,
)
from jnl.inputs import check_int
from jnl.train import _traced as traced
from jnl.train._fit import Checkpoint, _check_checkpoint, _progress
from jnl.train._parallel import How, dividing_mesh, parallel, place
from jnl.train._plan import Arrays, check_scaled
from jnl.train.report import plain


class Adapted(NamedTuple):
  """What a stream leaves.

  Attributes:
    state: the last state: what `adapt` goes on from with the next stream.
    outputs: the answers, numpy arrays [n, ...] in the order of the stream.
    metrics: of each step, [steps] by name: the mean of each row [b] of numbers
      that the adapter says beside its answers (`outputs.aux`), and `accuracy`
      if the data have labels. NaN where no example counts.
  """

  state: State
  outputs: Outputs
  metrics: dict[str, np.ndarray]


def adapt(
  adapter: Adapter,
  state: State,
  data: Arrays,
  key: Key,
  *,
  batch_size: int,
  how: How = 'jit',
  devices: Sequence[jax.Device] | None = None,
  checkpoint: Checkpoint | None = None,
  label: str = 'adapt',
) -> Adapted:
  """Answers a stream in its order, while an adapter learns from it.

  The last batch may be smaller, and is not padded: batch statistics would count
  what is not there. It is computed whole on every device if they do not divide
  it, and compiled for itself.

  Args:
    adapter: such as `methods.tent(model, tx)`. A further call with the same
      object and arrays of the same shapes compiles nothing.
    state: `adapter.init(params, stats)`, or `Adapted.state` of what came
      before. It is copied, and stays valid.
    data: arrays [n, ...] by name, such as `x`; `np.memmap` is read batch by
      batch. `weight` [n] is optional, of weight 0 are rows that are not there.
      `labels` [n] int are for the metric `accuracy` alone, and kept from the
      adapter; rows of a negative label have no class and do not count in it.
    key: everything random follows from it, whatever the number of devices.
    batch_size: examples that are answered together, over all devices; the
      adapters' learning rates belong to it.
    how: see `parallel`. Only in the global view, 'jit', is Flax's own batch
      normalization that of all devices; `nets.BatchNorm` is in each.
    devices: by default all; of these, the most that divide `batch_size`. A
      warning says so where some stay idle.
    checkpoint: where the state and the answers so far are saved, and resumed
      from in mid-stream; `every` is a number of steps, by default all. SIGTERM
      saves and ends the program.
    label: of the progress line, and of checkpoints.

  Returns:
    The last state, the answers, and the metrics of each step.

  Raises:
    ValueError, TypeError: naming the argument, before anything is computed: if
      arrays differ in length or are empty, a batch (the last one too) is too
      small for the network, pixels are whole numbers, or the checkpoint belongs
      to another run.
    OSError: if a checkpoint cannot be written; the last good one is kept.

  >>> from jnl import methods
  >>> from jnl.nets import MLP, from_linen
  >>> model = from_linen(MLP(2, (4,), batch_norm=True), (3,))
  >>> adapter = methods.batch_norm_adapt(model)
  >>> state = adapter.init(*model.init(jax.random.key(0)))
  >>> stream = {'x': np.random.default_rng(0).normal(size=(10, 3))}
  >>> adapted = adapt(adapter, state, stream, jax.random.key(1), batch_size=4)
  >>> adapted.outputs.logits.shape
  (10, 2)
  """
  _check_adapter(adapter, state)
  check_key(key)
  check_int('batch_size', batch_size)
  _check_checkpoint(checkpoint)
  data, labels, weight = _read(data)
  n = len(weight)
  size = min(batch_size, n)
  mesh = _mesh_for(size, devices)
  stream = _Stream(data, weight, key, size, n)
  abstract = _abstract(adapter, state, stream, 0)
  _abstract(adapter, state, stream, stream.steps - 1)
  check_scaled('data', adapter.step, state, stream.batch(0), key)
  full = _compiled(adapter.step, how, mesh, *_shapes_of(state))
  last = _compiled_whole(adapter.step, mesh) if n % size % mesh.size else full
  found = jax.tree.map(lambda a: np.zeros((n, *a.shape[1:]), a.dtype), abstract)
  state = place(state, mesh)
  with (
    _saving(adapter, stream, checkpoint, label, state) as saving,
    _progress(label, stream.steps) as advance,
  ):
    state = _answer(stream, full, last, state, found, saving, advance)
  return Adapted(state, found, _metrics(found, labels, weight, size))


def _check_adapter(adapter: Any, state: Any) -> None:
  hint = '; a Method is trained by fit' if hasattr(adapter, 'predict') else ''
  check(
    isinstance(adapter, Adapter),
    'adapter must be an Adapter, such as methods.tent(model, tx), got '
    f'{type(adapter).__name__}{hint}',
    TypeError,
  )
  check(
    isinstance(state, State),
    f'state must be adapter.init(params, stats), got a {type(state).__name__}',
    TypeError,
  )


class _Stream(NamedTuple):
  """What is asked about, batch after batch."""

  data: Mapping[str, Any]
  weight: np.ndarray
  key_of_all: Key
  size: int
  n: int

  @property
  def steps(self) -> int:
    return -(-self.n // self.size)

  def batch(self, i: int) -> dict[str, Any]:
    """The i-th batch, numpy arrays, with `weight` and `index`."""
    first, last = i * self.size, min((i + 1) * self.size, self.n)
    rows = slice(first, last)
    return {
      **jax.tree.map(lambda a: np.asarray(a[rows]), dict(self.data)),
      'weight': self.weight[rows],
      'index': np.arange(first, last, dtype=np.int32),
    }

  def key(self, i: int) -> Key:
    return jax.random.fold_in(self.key_of_all, i)


class _Saving(NamedTuple):
  """What a checkpoint is to the loop.

  Attributes:
    save: `(state, answers, steps done) -> None`.
    restore: `(state, answers) -> (state, steps done)`, the answers filled in.
    every: steps between two of them.
    stopping: whether to save and end.
  """

  save: Callable[[State, Outputs, int], None]
  restore: Callable[[State, Outputs], tuple[State, int]]
  every: int
  stopping: Callable[[], bool]


def _answer(
  stream: _Stream,
  full: Callable,
  last: Callable,
  state: State,
  found: Outputs,
  saving: _Saving,
  advance: Callable[[int], None],
) -> State:
  """Goes through a stream, and writes the answers to `found`."""
  state, first = saving.restore(state, found)
  advance(first)
  pending: tuple[int, Outputs] | None = None
  for i in range(first, stream.steps):
    run = full if (i + 1) * stream.size <= stream.n else last
    state, outputs = run(state, stream.batch(i), stream.key(i))
    _put(found, stream.size, pending)  # while the device computes
    pending = i, outputs
    advance(1)
    due = (i + 1) % saving.every == 0 or i + 1 == stream.steps
    if due or saving.stopping():
      _put(found, stream.size, pending)
      pending = None
      saving.save(state, found, i + 1)
  return state


# --- compiled -----------------------------------------------------------------


def _mesh_for(size: int, devices: Sequence[jax.Device] | None) -> Mesh:
  """Of the devices the most that divide a batch."""
  given = list(jax.devices() if devices is None else devices)
  check(len(given) >= 1, 'devices must have at least one device')
  mesh = dividing_mesh(size, given)
  if mesh.size < len(given):
    warnings.warn(
      f'{mesh.size} of {len(given)} devices are used, as batch_size = {size} '
      f'is not a multiple of {len(given)}; or give devices= to use the others '
      'elsewhere',
      stacklevel=3,
    )
  return mesh


def _shapes_of(state: State) -> tuple[Any, tuple[Any, ...]]:
  """Structure, and shape and dtype of each leaf: what can be compared."""
  leaves, tree = jax.tree.flatten(state)
  return tree, tuple((jnp.shape(a), jnp.result_type(a)) for a in leaves)


@functools.lru_cache(maxsize=16)
def _compiled(
  step: Callable, how: How, mesh: Mesh, tree: Any, shapes: tuple
) -> Callable:
  """The step for full batches; the same one for the same step and shapes."""
  state = tree.unflatten(jax.ShapeDtypeStruct(*shape) for shape in shapes)
  return parallel(step, state, how, mesh=mesh, per_example=True)


@functools.lru_cache(maxsize=16)
def _compiled_whole(step: Callable, mesh: Mesh) -> Callable:
  """The step for a batch that lies whole on every device."""
  return jax.jit(step, out_shardings=NamedSharding(mesh, P()), donate_argnums=0)


def _abstract(
  adapter: Adapter, state: State, stream: _Stream, i: int
) -> Outputs:
  """The shapes of the answers to the i-th batch, looked at on the host."""
  batch = stream.batch(i)
  new, outputs = jax.eval_shape(adapter.step, state, batch, stream.key(i))
  b = len(batch['weight'])
  for path, a in jax.tree_util.tree_leaves_with_path(outputs):
    check(
      a.shape[:1] == (b,),
      f'adapter.step must give outputs [b, ...], one row for each of {b} '
      f'examples, got outputs{jax.tree_util.keystr(path)} of shape {a.shape}',
    )
  check(
    _shapes_of(new) == _shapes_of(state),
    'adapter.step must give a state like the one it is given: state is not one '
    'that adapter.init makes',
  )
  return outputs


# --- rows ---------------------------------------------------------------------


def _read(
  data: Arrays,
) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray]:
  """The arrays without labels, the labels if there are any, the weights."""
  check(
    isinstance(data, Mapping),
    f'data must be a dict of arrays, such as x, got {type(data).__name__}',
    TypeError,
  )
  # What lies on devices comes to the host, once.
  arrays = jax.tree.map(
    lambda a: np.asarray(a) if isinstance(a, jax.Array) else a, dict(data)
  )
  check(len(arrays) > 0, 'data has no arrays')
  lengths = {
    name: {np.shape(a)[:1] for a in jax.tree.leaves(values)}
    for name, values in arrays.items()
  }
  known = set.union(*lengths.values())
  check(
    len(known) == 1 and known != {()} and known != {(0,)},
    'data must have arrays [n, ...] of one length above 0, got '
    f'{ {k: sorted(v) for k, v in lengths.items()} }',
  )
  ((n,),) = known
  check(
    'index' not in arrays,
    "data must not have 'index', which is the place in the stream",
  )
  labels = arrays.pop('labels', None)
  if labels is not None:
    labels = np.asarray(labels)
    check(
      labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
      f'data: labels must be [n] int, got {labels.dtype} {labels.shape}',
    )
  weight = np.asarray(arrays.pop('weight', np.ones(n)), np.float32)
  check(weight.ndim == 1, f'data: weight must be [n], got {weight.shape}')
  counted = np.isfinite(weight) & (weight >= 0)
  check(
    counted.all(),
    f'data: weight must be finite and at least 0; row {counted.argmin()} is '
    f'{weight[counted.argmin()]}',
  )
  return arrays, labels, weight


def _put(
  found: Outputs, size: int, pending: tuple[int, Outputs] | None
) -> None:
  """Writes the answers to a batch into those of the stream."""
  if pending is None:
    return
  i, outputs = pending

  def write(rows: np.ndarray, new: Any) -> None:
    new = np.asarray(new)
    rows[i * size : i * size + len(new)] = new

  jax.tree.map(write, found, jax.device_get(outputs))


def _metrics(
  found: Outputs, labels: np.ndarray | None, weight: np.ndarray, size: int
) -> dict[str, np.ndarray]:
  """Means of each step, by name."""
  first = np.arange(0, len(weight), size)

  def means(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    values = np.where(weight > 0, values.astype(np.float64), 0) * weight
    total, count = (np.add.reduceat(a, first) for a in (values, weight))
    with np.errstate(invalid='ignore', divide='ignore'):
      return (total / count).astype(np.float32)

  weight = weight.astype(np.float64)
  metrics = {}
  if labels is not None:
    right = np.argmax(found.logits, axis=-1) == labels
    metrics['accuracy'] = means(right, np.where(labels >= 0, weight, 0))
  if isinstance(found.aux, Mapping):
    for name, values in found.aux.items():
      if getattr(values, 'shape', None) == weight.shape:
        metrics[name] = means(values, weight)
  return metrics


# --- checkpoints --------------------------------------------------------------


@contextlib.contextmanager
def _saving(
  adapter: Adapter,
  stream: _Stream,
  checkpoint: Checkpoint | None,
  label: str,
  state: State,
) -> Iterator[_Saving]:
  """What a folder of checkpoints is to the loop; idle without one."""
  if checkpoint is None:
    yield _Saving(
      lambda *_: None, lambda s, _: (s, 0), stream.steps, lambda: False
    )
    return
  from jnl.train import _checkpoint as checkpoints  # Orbax is slow to import

  every = stream.steps if checkpoint.every is None else checkpoint.every
  check_int('checkpoint.every', every)
  # Without the devices that it lies on: those may be others on resuming.
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
  jaxpr = jax.make_jaxpr(adapter.step)(shapes, stream.batch(0), stream.key(0))
  about = {
    'adapter': label,
    'config': plain(dict(checkpoint.config)),
    'stream': {'n': stream.n, 'batch_size': stream.size},
    'key': np.asarray(jax.random.key_data(stream.key_of_all)).tolist(),
    'checksums': {
      jax.tree_util.keystr(path): checkpoints.checksum(_numbers(a))
      for path, a in jax.tree_util.tree_leaves_with_path(
        (dict(stream.data), stream.weight, state)
      )
    },
  }
  with (
    checkpoints.open_checkpoints(
      checkpoint.folder,
      about,
      resume=checkpoint.resume,
      keep=checkpoint.keep,
      step={traced.tracer(): traced.fingerprint(jaxpr)},
      same_step=checkpoint.same_step,
    ) as opened,
    checkpoints.noticing_sigterm() as stopping,
  ):
    yield _Saving(
      functools.partial(_save, opened, stopping),
      functools.partial(_restore, opened),
      every,
      stopping,
    )


def _numbers(a: Any) -> np.ndarray:
  """An array [n, ...] on the host; of keys what they are made of."""
  dtype = getattr(a, 'dtype', None)
  keys = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  return np.atleast_1d(np.asarray(jax.random.key_data(a) if keys else a))


def _save(
  opened: Any,
  stopping: Callable[[], bool],
  state: State,
  found: Outputs,
  done: int,
) -> None:
  """Saves a state that is finite, says so if not, ends where asked to."""
  from jnl.train import _checkpoint as checkpoints

  good = bool(checkpoints.finite_runs(state))
  if good:
    opened.save(done, {'state': state, 'outputs': found}, {'step': done})
  else:
    checkpoints.say(
      f'after step {done} the parameters are not finite: this is not saved'
    )
  if stopping():
    what = 'saved' if good else 'not saved:'
    checkpoints.say(f'SIGTERM: {what} step {done}; resume to go on')
    raise SystemExit(128 + 15)


def _restore(opened: Any, state: State, found: Outputs) -> tuple[State, int]:
  """The last state that was saved; its answers go to `found`."""
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
    state,
  )
  saved = opened.restore({'state': abstract, 'outputs': found})
  if saved is None:
    return state, 0
  tree, position = saved
  jax.tree.map(np.copyto, found, jax.tree.map(np.asarray, tree['outputs']))
  return tree['state'], position['step']
