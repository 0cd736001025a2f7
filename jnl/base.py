"""The one abstraction of jnl, and the few operations that know about devices.

A `Method` is a handful of pure functions written for the global view of a
batch. Under `jax.jit` with shardings they are right as they stand. The same
functions also run per device, inside `jax.shard_map` or `jax.pmap` over an axis
called `'data'`: `global_mean`, `global_grad` and `gather` ask at trace time
whether that axis is bound, and communicate only then.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import difflib
import functools
import math
import types
from typing import Any, NamedTuple, TypeVar
import zlib

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

AXIS = 'data'
"""Name of the mapped axis for those who write their own shard_map or pmap."""
SHARDS = 8
"""Most shards a `Table` is cut into; see `data_shards`."""
PAD = np.iinfo(np.int32).max
"""The index of a padded example: zero on read, dropped on write."""
AWAY = 1 << 30
"""From here on an index, PAD too, is of an example that no table knows."""
LOG_ZERO = -1e30
"""log 0 in recursions and evidence: through -inf, gradients would be NaN."""

Array = jax.Array
Key = jax.Array
PyTree = Any
Scalar = float | Array
Params = PyTree
Stats = PyTree
Inputs = PyTree
Batch = Mapping[str, Any]
Metrics = Mapping[str, Array]
T = TypeVar('T')


# --- the abstraction ---------------------------------------------------------


class Outputs(NamedTuple):
  """What a network says of a batch.

  Attributes:
    logits: [..., c]; `softmax(logits)` is the prediction.
    features: [..., d], the representation that the logits are read from.
    aux: further heads or ensemble members.
  """

  logits: Array
  features: Array
  aux: PyTree = ()


class Model(NamedTuple):
  """A network as two pure functions.

  Attributes:
    init: `key -> (params, stats)`.
    apply: `(params, stats, x, keys, train) -> (outputs, stats)`; `keys` [b] are
      one for each example (None where nothing is random), `train` is a Python
      bool. A network with batch statistics gets a sixth argument in training,
      `mask` [b] bool: the examples that the statistics are of. At least one of
      all devices is among them.
  """

  init: Callable[[Key], tuple[Params, Stats]]
  apply: Callable[..., tuple[Outputs, Stats]]


class State(NamedTuple):
  """Everything that changes while training; a checkpoint is exactly this.

  Attributes:
    step: [] int32, the steps taken.
    params: what the optimizer moves.
    stats: batch statistics, `{}` if the network has none.
    opt: the optimizer's state.
    extra: the method's own memory (per-example `Table`s, a teacher, ...).
  """

  step: Array
  params: Params
  stats: Stats
  opt: optax.OptState
  extra: PyTree = ()


class Aux(NamedTuple):
  """What a loss function returns beside the loss.

  Attributes:
    stats: the new batch statistics.
    extra: the new `State.extra`, of the same structure as the old.
    metrics: scalars that are already global (`global_mean`).
  """

  stats: Stats
  extra: PyTree = ()
  metrics: Metrics = types.MappingProxyType({})


def every_epoch(epoch: int) -> bool:
  """True for every epoch: the default of `Refit.when`.

  Args:
    epoch: any.

  Returns:
    True.
  """
  del epoch
  return True


class Refit(NamedTuple):
  """Work between epochs; both parts are pure, jit-able and global view.

  Attributes:
    collect: `(state, batch, key) -> rows [b, ...]`, called on all batches of
      the training set; the trainer assembles the rows into `Table`s. Rows of
      weight 0 may hold anything, NaN too: collect what `update` knows them by.
    update: `(state, tables, key) -> state`, called once on these tables (fit a
      mixture, propagate beliefs, ...).
    when: `epoch -> bool`, asked on the host before that epoch is trained; an
      epoch that says no costs nothing.
  """

  collect: Callable[[State, Batch, Key], PyTree]
  update: Callable[[State, PyTree, Key], State]
  when: Callable[[int], bool] = every_epoch


class Method(NamedTuple):
  """A way to train: pure functions, global view.

  Attributes:
    init: `key -> State`.
    step: `(state, batch, key) -> (state, metrics)` for one batch; can be
      jitted, scanned and vmapped, and also runs per device (see the module).
    predict: `(state, x) -> Outputs`, deterministic; the method knows which
      weights to evaluate.
    refit: what happens between epochs, if anything.
  """

  init: Callable[[Key], State]
  step: Callable[[State, Batch, Key], tuple[State, Metrics]]
  predict: Callable[[State, Inputs], Outputs]
  refit: Refit | None = None


class Adapter(NamedTuple):
  """A way to go on learning from the stream that is asked about, label-free.

  As in a `Method` the functions are pure and of the global view; but the answer
  is part of the step, and there is no `predict`: what a batch is answered by
  exists only while it is looked at.

  Attributes:
    init: `(params, stats) -> State`, from a trained network.
    step: `(state, batch, key) -> (state, outputs)` for one batch: the answers,
      [b, ...], then what is learned from it. The batch has no labels. Rows
      [b] that the adapter has to say beside its logits stand in `outputs.aux`,
      by name.
  """

  init: Callable[[Params, Stats], State]
  step: Callable[[State, Batch, Key], tuple[State, Outputs]]


# --- checks ------------------------------------------------------------------


def check(ok: Any, message: str, error: type[Exception] = ValueError) -> None:
  """Raises `error(message)` unless `ok`; does nothing while tracing.

  Args:
    ok: a bool or a scalar boolean array. A tracer is skipped, so that the same
      check serves concrete hyperparameters and swept ones.
    message: names the argument and says what it has to be.
    error: `ValueError`, or `TypeError` for a wrong dtype.

  Raises:
    error: if `ok` is concrete and false.

  >>> check(0 <= 0.3 <= 1, 'rate must lie in [0, 1]')
  """
  if not isinstance(ok, jax.core.Tracer) and not ok:
    raise error(message)


def is_concrete(*arrays: Any) -> bool:
  """Whether the values can be looked at: none of the arrays is being traced.

  Args:
    *arrays: of any kind; what is no array counts as concrete.

  Returns:
    A bool, known while tracing.
  """
  return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def check_name(argument: str, name: str, known: Iterable[str]) -> None:
  """Raises for a name that is not known, and names the close matches.

  Args:
    argument: what the error calls it.
    name: as given.
    known: the names there are.

  Raises:
    ValueError: if `name` is not among them.

  >>> check_name('net', 'mpl', ['mlp', 'cnn'])
  Traceback (most recent call last):
  ...
  ValueError: unknown net 'mpl'; did you mean 'mlp'? Known: mlp, cnn
  """
  known = list(known)
  close = difflib.get_close_matches(name, known, cutoff=0.5)
  hint = f'did you mean {" or ".join(map(repr, close))}? ' if close else ''
  listed = ', '.join(known) if len(known) <= 50 else f'{len(known)} names'
  check(name in known, f'unknown {argument} {name!r}; {hint}Known: {listed}')


def check_batch(batch: Batch, *names: str) -> None:
  """Raises unless the batch has arrays of these names.

  Args:
    batch: arrays by name.
    *names: those it needs.

  Raises:
    ValueError: if one is missing.

  >>> check_batch({'x': 0}, 'x', 'labels')
  Traceback (most recent call last):
  ...
  ValueError: the batch lacks 'labels'; it has x
  """
  for name in names:
    check(
      name in batch,
      f'the batch lacks {name!r}; it has {", ".join(sorted(batch))}'
      + _made_by(name),
    )


def _made_by(name: str) -> str:
  if 'strong' in name:
    return '. The strong view is made by `augment`'
  if name == 'weight':
    return '. It is jnp.ones(b) where all examples count'
  if name == 'index':
    return '. It is where each example stands in the training set, [b] int'
  array, _, stream = name.partition('_')
  known = stream and array in ('x', 'labels', 'index', 'weight')
  return f'. `fit(streams={{{stream!r}: ...}})` makes it' if known else ''


def check_key(key: Any, name: str = 'key', ndim: int = 0) -> None:
  """Raises unless this is a random key, or an array of keys.

  Args:
    key: of `jax.random.key`, or an old one of `jax.random.PRNGKey`.
    name: what the error calls it.
    ndim: 1 for [n] keys.

  Raises:
    TypeError: if it is anything else, such as a seed.

  >>> check_key(0)
  Traceback (most recent call last):
  ...
  TypeError: key must be made by jax.random, such as jax.random.key(0); got 0
  """
  dtype = getattr(key, 'dtype', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  example = 'jax.random.key(0)'
  if ndim:
    example = f'jax.random.split({example}, n)'
  old = dtype == 'uint32'
  got = f'{dtype} of shape {key.shape}' if hasattr(key, 'shape') else repr(key)
  check(
    (typed and key.ndim == ndim) or (old and key.ndim == ndim + 1),
    f'{name} must be made by jax.random, such as {example}; got {got}',
    TypeError,
  )


# --- across devices ----------------------------------------------------------


def axis_is_bound() -> bool:
  """Whether this code is traced per device, over the axis `'data'`.

  Returns:
    A bool, known while tracing; False in the global view.

  Raises:
    ValueError: if it is traced per device over other axes alone: what is meant
      to be of all examples would be of those of a device.
  """
  try:
    lax.axis_size(AXIS)
  except NameError:
    others = jax.sharding.get_abstract_mesh().manual_axes
    check(
      not others,
      f'this is mapped over {", ".join(map(repr, others))} by pmap or '
      f'shard_map, and jnl reduces over an axis called {AXIS!r}: give the axis '
      'of examples that name. (Runs are mapped by vmap, under any name.)',
    )
    return False
  return True


def check_auto(x: Any, name: str) -> None:
  """Raises for an array whose rows are split over an explicit mesh axis.

  JAX asks there how the result of every indexing is to be split, which code
  that is written for any mesh, and for none, cannot say.

  Args:
    x: an array, or anything else, which passes.
    name: what the error calls it.

  Raises:
    ValueError: if the rows are split over an explicit axis.
  """
  if not isinstance(x, jax.Array):
    return
  sharding = jax.typeof(x).sharding
  explicit = sharding.mesh.explicit_axes
  check(
    not explicit or not any(sharding.spec),
    f'{name} is split over the explicit mesh axes {explicit}: make the mesh '
    "with jax.make_mesh((n,), ('data',), axis_types=(AxisType.Auto,)), or take "
    'the step from `jnl.train.parallel`',
  )


def mesh_of(x: Any) -> Mesh | None:
  """The mesh over whose axis `'data'` the rows of an array are split, if any.

  Args:
    x: an array, or anything else.

  Returns:
    The mesh; None for what lies on one device or whole on each of several, for
    what is no array, and while tracing.
  """
  sharding = getattr(x, 'sharding', None) if is_concrete(x) else None
  if not isinstance(sharding, NamedSharding) or not sharding.spec:
    return None
  mesh = sharding.mesh
  split = sharding.spec[0] == AXIS and mesh.shape[AXIS] > 1
  return mesh if split and isinstance(mesh, Mesh) else None


def global_sum(values: PyTree) -> PyTree:
  """Sum over all devices of what each of them holds.

  Args:
    values: a tree of arrays: the sums over this device's examples. In the
      global view they are over all examples already, and the identity is right.

  Returns:
    A tree like `values`, the same on all devices.

  Raises:
    ValueError: as `axis_is_bound`.

  >>> float(global_sum(jnp.sum(jnp.array([1., 2.]))))
  3.0
  """
  return lax.psum(values, AXIS) if axis_is_bound() else values


def global_mean(
  values: Array, weights: Array, denominator: Array | None = None
) -> Array:
  r"""Weighted mean over all examples of all devices.

  .. math:: \sum_i w_i v_i \Big/ \sum_i d_i,\qquad d = w \text{ by default}

  The only reduction over examples: a mean of per-device means is wrong as soon
  as masks or padding differ between devices. Values of weight zero count for
  nothing, even where they are NaN. An empty selection has the mean 0.

  Args:
    values: [b, ...], for example per-example losses.
    weights: [b] or any leading part of the shape of `values`, >= 0; bool or
      numeric. Broadcast over the trailing dimensions of `values`.
    denominator: like `weights`; its sum divides instead. The mean over the
      whole batch of a masked loss, as FixMatch has it, is
      `global_mean(loss, weight * mask, denominator=weight)`.

  Returns:
    [], at least float32, the same on every device.

  Raises:
    ValueError: if a shape does not match.

  >>> float(global_mean(jnp.array([1., 3., jnp.nan]), jnp.array([1, 1, 0])))
  2.0
  """
  values = jnp.asarray(values)
  dtype = jnp.promote_types(values.dtype, jnp.float32)

  def full(w: Array, name: str) -> Array:
    w = jnp.asarray(w)
    check(
      values.shape[: w.ndim] == w.shape,
      f'{name} has shape {w.shape}; it must be a leading part of the shape of '
      f'values, {values.shape}',
    )
    w = w.astype(dtype).reshape(w.shape + (1,) * (values.ndim - w.ndim))
    return jnp.broadcast_to(w, values.shape)

  w = full(weights, 'weights')
  d = w if denominator is None else full(denominator, 'denominator')
  total = jnp.sum(jnp.where(w == 0, 0, values) * w, dtype=dtype)
  total, count = global_sum((total, jnp.sum(d)))
  return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))


def global_grad(
  loss_fn: Callable[..., tuple[Array, T]],
) -> Callable[..., tuple[tuple[Array, T], PyTree]]:
  """Value and gradient of a global loss with respect to replicated parameters.

  Like `jax.value_and_grad(loss_fn, has_aux=True)`, and right in every mode: the
  gradient of a loss that is already a mean over devices, averaged once more, is
  the true gradient under jit, shard_map (both checks), pmap and vmap with an
  axis name. `grad(pmean(loss))` alone and `pmean(grad(loss))` alone are each
  silently wrong in one of them.

  Args:
    loss_fn: `(params, ...) -> (loss, aux)` with `loss` made of `global_mean`s.

  Returns:
    `(params, ...) -> ((loss, aux), gradient)`.

  >>> loss = lambda w, x: (global_mean(w * x, jnp.ones(2)), ())
  >>> float(global_grad(loss)(jnp.float32(1), jnp.array([1., 3.]))[1])
  2.0
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

  @functools.wraps(loss_fn)
  def with_gradient(params: Params, *args: Any) -> Any:
    result, gradient = value_and_grad(params, *args)
    if axis_is_bound():
      gradient = lax.pmean(gradient, AXIS)
    return result, gradient

  return with_gradient


def whole(x: Array) -> Array:
  """The same array, whole on every device where an explicit mesh splits it.

  For what JAX cannot split by itself there, such as a scatter by labels.

  Args:
    x: of any shape.

  Returns:
    An array with the values of `x`; `x` itself where no mesh is explicit.
  """
  mesh = jax.typeof(x).sharding.mesh
  if not mesh.explicit_axes:
    return x
  return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def gather(x: PyTree) -> PyTree:
  """All examples of all devices, [b, ...], on every device, in global order.

  For what is O(b): thresholds, ranks, negatives. The identity in the global
  view (on an explicit mesh `whole`). Gradients flow through it, right in every
  mode; those of `all_gather` are not, since no one value of its argument `to`
  suits shard_map with and without its check, pmap and vmap.

  Args:
    x: a tree of arrays, of the b / devices examples of this device; in the
      global view of all b.

  Returns:
    A tree of [b, ...], the same on all devices.

  Raises:
    ValueError: as `axis_is_bound`.

  >>> gather(jnp.array([1, 2])).tolist()
  [1, 2]
  """
  if not axis_is_bound():
    return jax.tree.map(whole, x)
  devices, own = lax.axis_size(AXIS), lax.axis_index(AXIS)

  def gather_one(a: Array) -> Array:
    slots = jnp.zeros((devices, *a.shape), a.dtype).at[own].set(a)
    whole = lax.psum(slots, AXIS).astype(a.dtype)
    return whole.reshape(devices * a.shape[0], *a.shape[1:])

  return jax.tree.map(gather_one, x)


def own_rows(values: Array, b: int) -> Array:
  """The rows of this device among those of all, the inverse of `gather`.

  Args:
    values: [n, ...] in global order, the same on all devices.
    b: how many examples this device has; in the global view n.

  Returns:
    [b, ...].

  >>> own_rows(jnp.array([1, 2]), 2).tolist()
  [1, 2]
  """
  if not axis_is_bound():
    return values
  return lax.dynamic_slice_in_dim(values, lax.axis_index(AXIS) * b, b)


def global_quantile(values: Array, where: Array, level: Scalar) -> Array:
  """Quantiles over the examples of all devices, by sorting them.

  Args:
    values: [b].
    where: [b] bool, the examples that count.
    level: [...], in [0, 1]; .5 is the median.

  Returns:
    [...], each on a line between the two nearest of them, the same on all
    devices; 0 if none counts.

  >>> values = jnp.array([3.0, jnp.nan, 1.0])
  >>> float(global_quantile(values, jnp.array([True, False, True]), 0.25))
  1.5
  """
  ascending = jnp.sort(gather(jnp.where(where, values, jnp.inf)))
  n = global_sum(jnp.sum(where))
  place = jnp.asarray(level, ascending.dtype) * jnp.maximum(n - 1, 0)
  below = jnp.floor(place).astype(jnp.int32)
  first = ascending[below]
  second = ascending[jnp.minimum(below + 1, n - 1)]
  return jnp.where(n > 0, first + (place - below) * (second - first), 0)


# --- per-example memory ------------------------------------------------------


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['rows'],
  meta_fields=['stream'],
)
@dataclasses.dataclass(frozen=True)
class Table:
  """One row for each of n training examples, cut into shards.

  Example i is row `i % m` of shard `i // m`, m = ceil(n / shards), so
  `unpack_rows(table, n)` is in index order. A batch is laid out shard by shard,
  the same number of examples from each (`data.take_batch` does so), and devices
  hold whole shards; that is why reading and writing communicate nothing. With
  `shards=1` it is an ordinary table, for any order of examples on one device.

  Attributes:
    rows: [shards, m, ...].
    stream: of whose examples it is: '' for those of `index`, 'u' for those of
      `index_u`.
  """

  rows: Array
  stream: str = ''


def data_shards(n: int, batch_size: int, most: int = SHARDS) -> int:
  """How many shards the tables of a data set have: a property of the data.

  At most 8 and a divisor of the batch size, so that 1, 2, 4 and 8 devices (as
  far as they divide it) draw the same batches; fewer for data sets so small
  that the last shard would run short.

  Args:
    n: examples.
    batch_size: in [1, n].
    most: what to start from; 16 devices need 16, 6 devices 6.

  Returns:
    `most`, or as large a part of it as divides the batch size and leaves the
    last shard enough examples for every step of an epoch.

  Raises:
    ValueError: if an argument is out of range.

  >>> data_shards(1200, 100), data_shards(50_000, 128)
  (4, 8)
  """
  check(n >= 1, f'n must be at least 1, got {n}')
  check(
    1 <= batch_size <= n,
    f'batch_size must lie between 1 and n = {n}, got {batch_size}',
  )
  check(most >= 1, f'most must be at least 1, got {most}')
  common = math.gcd(most, batch_size)
  for shards in range(common, 1, -1):
    last = n - (shards - 1) * math.ceil(n / shards)
    enough = last // (batch_size // shards) >= n // batch_size
    if common % shards == 0 and enough:
      return shards
  return 1


def pack_rows(values: Array, shards: int = 1, stream: str = '') -> Table:
  """The `Table` whose rows are `values`, padded with zeros.

  Args:
    values: [n, ...], in index order.
    shards: in how many it is cut, >= 1: `data_shards(n, batch_size)` for `fit`.
    stream: of whose examples they are, see `Table`.

  Returns:
    The table: rows [shards, ceil(n / shards), ...].

  Raises:
    ValueError: if there are no shards.

  >>> pack_rows(jnp.arange(5), shards=2).rows.tolist()
  [[0, 1, 2], [3, 4, 0]]
  """
  check(shards >= 1, f'shards must be at least 1, got {shards}')
  values = jnp.asarray(values)
  n = values.shape[0]
  m = math.ceil(n / shards)
  padding = [(0, shards * m - n)] + [(0, 0)] * (values.ndim - 1)
  rows = jnp.pad(values, padding)
  return Table(rows.reshape(shards, m, *values.shape[1:]), stream)


def unpack_rows(table: Table, n: int) -> Array:
  """The first n rows of a table in index order, [n, ...].

  Args:
    table: rows [shards, m, ...].
    n: how many examples there are, <= shards * m.

  Returns:
    [n, ...], of the dtype of the table.

  >>> unpack_rows(pack_rows(jnp.arange(5), shards=2), 5).tolist()
  [0, 1, 2, 3, 4]
  """
  shards, m = table.rows.shape[:2]
  return table.rows.reshape(shards * m, *table.rows.shape[2:])[:n]


def _place(table: Table, index: Array) -> tuple[Array, Array]:
  """[shards, b / shards] rows within each shard, and whether there is one."""
  shards, m = table.rows.shape[:2]
  check_auto(index, 'index')
  index = jnp.asarray(index)
  check(
    index.ndim == 1 and index.shape[0] % shards == 0,
    f'index must be [b] with b a multiple of the {shards} shards of the table, '
    f'got shape {index.shape}',
  )
  check(
    jnp.issubdtype(index.dtype, jnp.integer),
    f'index must be integer, got {index.dtype}',
    TypeError,
  )
  first = lax.axis_index(AXIS) * shards if axis_is_bound() else 0
  own = first + jnp.arange(shards, dtype=index.dtype)[:, None]
  index = index.reshape(shards, -1)
  # Division floors, so a negative index belongs to no shard; neither does PAD.
  belongs = index // m == own
  return jnp.where(belongs, index - own * m, m), belongs


def _local_index(table: Table, index: Array) -> Array:
  """[shards, b / shards] rows within each shard; m where there is none."""
  local, belongs = _place(table, index)
  if is_concrete(belongs):
    shards, m = table.rows.shape[:2]
    check(
      jnp.all(belongs | (jnp.reshape(index, belongs.shape) >= AWAY)),
      f'index is out of range, or not laid out shard by shard: the table has '
      f'{shards} shards of {m} rows',
    )
  return local


def suffixed(name: str, stream: str) -> str:
  """What an array of a stream is called in a batch.

  Args:
    name: of the array.
    stream: its name, '' for the examples that training goes over.

  Returns:
    The name with the suffix of the stream.

  >>> suffixed('x', 'u'), suffixed('x', '')
  ('x_u', 'x')
  """
  return f'{name}_{stream}' if stream else name


def is_table(x: Any) -> bool:
  """Whether this is a `Table`, for `is_leaf` of `jax.tree.map`.

  Args:
    x: anything.

  Returns:
    A bool.
  """
  return isinstance(x, Table)


def tables_of(tree: PyTree) -> list[Table]:
  """All tables of a state, or of another tree.

  Args:
    tree: of arrays and `Table`s.

  Returns:
    The tables, in the order of the leaves.
  """
  return [x for x in jax.tree.leaves(tree, is_leaf=is_table) if is_table(x)]


def unplaced(tree: PyTree, batch: Batch) -> dict[str, Array]:
  """The share of a batch that the tables of a state have no place for.

  Inside jit nobody else says so: such a row is read as zeros and not written.
  It happens where batches are laid out otherwise than the tables (a loader of
  one's own wants tables of one shard), or `num_examples` is too small.

  Args:
    tree: a state, or a part of it.
    batch: `index` [b], and `weight` [b] if any, and those of the streams that
      tables are of; examples of weight 0, and those from `AWAY` on, need no
      place.

  Returns:
    `{'unplaced': []}`, a metric, 0 if all is well, of the worst of the streams;
    nothing if there is no `Table` or no `index` of it.

  >>> table, index = pack_rows(jnp.zeros(4)), jnp.array([0, 1, 7, 9])
  >>> [float(share) for share in unplaced(table, {'index': index}).values()]
  [0.5]
  """
  placed: dict[str, Array] = {}
  layouts = {(t.stream, t.rows.shape[:2]): t for t in tables_of(tree)}
  for table in layouts.values():
    index = batch.get(suffixed('index', table.stream))
    if index is not None:
      own = _place(table, index)[1].reshape(-1)
      placed[table.stream] = own & placed.get(table.stream, jnp.array(True))
  if not placed:
    return {}
  shares = []
  for stream, own in placed.items():
    index = jnp.asarray(batch[suffixed('index', stream)])
    weight = batch.get(suffixed('weight', stream), jnp.ones(index.shape))
    needed = jnp.asarray(weight) * (index < AWAY)
    shares.append(global_mean(1.0 - own, needed))
  return {'unplaced': functools.reduce(jnp.maximum, shares)}


def read_rows(table: Table, index: Array) -> Array:
  """The rows of a table that belong to the examples of a batch.

  Args:
    table: rows [shards, m, ...].
    index: [b] int, global, laid out shard by shard.

  Returns:
    [b, ...]; zeros from `AWAY` on, and inside jit for indices out of place.

  Raises:
    ValueError: if b is not a multiple of the shards, or outside jit if an index
      is out of range or out of place.
    TypeError: if `index` is not integer.

  >>> read_rows(pack_rows(jnp.array([.5, .25])), jnp.array([1, PAD])).tolist()
  [0.25, 0.0]
  """
  local = _local_index(table, index)
  read = jax.vmap(lambda rows, i: rows.at[i].get(mode='fill', fill_value=0))
  return read(table.rows, local).reshape(index.shape + table.rows.shape[2:])


def write_rows(
  table: Table, index: Array, rows: Array, *, where: Array | None = None
) -> Table:
  """The table with the rows of the examples of a batch replaced.

  Args:
    table: rows [shards, m, ...].
    index: [b] int, global, laid out shard by shard, without repetition.
    rows: [b, ...], cast to the dtype of the table.
    where: [b] bool, the rows to write; None for all. An example of weight 0 is
      not there: `weight > 0` keeps it from leaving a trace in the memory.

  Returns:
    The new table; rows from `AWAY` on are dropped.

  Raises:
    ValueError: as `read_rows`, or if `rows` or `where` does not fit.
    TypeError: if `index` is not integer.

  >>> write_rows(pack_rows(jnp.zeros(2)), jnp.array([1]), jnp.ones(1)).rows
  Array([[0., 1.]], dtype=float32)
  """
  local = _local_index(table, index)
  expected = index.shape + table.rows.shape[2:]
  check(rows.shape == expected, f'rows must be {expected}, got {rows.shape}')
  if where is not None:
    check(
      where.shape == index.shape,
      f'where must be [b] = {index.shape}, got {where.shape}',
    )
    local = jnp.where(where.reshape(local.shape), local, table.rows.shape[1])
  rows = rows.astype(table.rows.dtype).reshape(
    local.shape + table.rows.shape[2:]
  )
  write = jax.vmap(lambda old, i, new: old.at[i].set(new, mode='drop'))
  return dataclasses.replace(table, rows=write(table.rows, local, rows))


# --- randomness --------------------------------------------------------------


def example_keys(key: Key, index: Array) -> Key:
  """A key for each example of a batch, the same on any number of devices.

  Args:
    key: the step's key, after a `fold_in` with a fixed tag for each use.
    index: [b] int, global.

  Returns:
    [b] keys.

  Raises:
    ValueError: if `index` is not [b], or split over an explicit mesh axis.
  """
  check_auto(index, 'index')
  check(
    jnp.ndim(index) == 1, f'index must be [b], got shape {jnp.shape(index)}'
  )
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def name_tag(name: str) -> int:
  """A tag for `jax.random.fold_in` that belongs to a name, in any process.

  Args:
    name: of a stream, or of a use of random numbers.

  Returns:
    An int in [0, 2^32), its CRC-32.

  >>> name_tag('u') == name_tag('u'), name_tag('u') == name_tag('meta')
  (True, False)
  """
  return zlib.crc32(name.encode())


def shuffle_within(
  key: Key, index: Array, tree: T, *, where: Array | None = None
) -> T:
  """The examples of a batch, permuted within its shards.

  For what pairs examples, such as mixup: it needs no communication, and gives
  the same pairs on any number of devices that divides gcd(8, b), the default
  shards; on 6 or 16 devices they are others than on one.

  Args:
    key: the step's key, after a `fold_in` with a fixed tag.
    index: [b] int, global.
    tree: arrays [b, ...]; all are permuted alike.
    where: [b] bool, the examples that are permuted among themselves, such as
      `weight > 0`; the others stay where they are, and what they hold, their
      index too, changes nothing for these. By default all.

  Returns:
    The permuted tree.

  Raises:
    ValueError: if `where` is not [b].

  >>> x, there = jnp.arange(4), jnp.array([True, False, True, True])
  >>> shuffle_within(jax.random.key(0), x, x, where=there)[1].tolist()
  1
  """
  devices = lax.axis_size(AXIS) if axis_is_bound() else 1
  b = index.shape[0]
  groups = max(1, math.gcd(SHARDS, b * devices) // devices)
  groups = math.gcd(groups, b)
  score = jax.vmap(jax.random.bits)(example_keys(key, index))
  score = score.reshape(groups, -1)
  if where is None:
    order = jnp.argsort(score, axis=1)
  else:
    check(
      where.shape == index.shape,
      f'where must be [b] = {index.shape}, got {where.shape}',
    )
    order = jax.vmap(_order_among)(score, where.reshape(groups, -1))

  def permute(x: Array) -> Array:
    grouped = x.reshape(groups, b // groups, *x.shape[1:])
    return jax.vmap(lambda rows, i: rows[i])(grouped, order).reshape(x.shape)

  return jax.tree.map(permute, tree)


def _order_among(score: Array, where: Array) -> Array:
  """A permutation that sorts those of `where` by score in their own places."""
  places = jnp.argsort(~where, stable=True)
  ranked = jnp.lexsort((jnp.where(where, score, 0), ~where))
  return jnp.zeros_like(places).at[places].set(ranked)
