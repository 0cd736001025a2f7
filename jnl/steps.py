"""What methods are built from: passes over a network, steps of an optimizer.

`from_loss` makes a method of a loss, `supervised` and `supervised_bags` of a
loss of labels. Methods with a step of their own take the pieces: `model_keys`,
`training_pass`, `apply_views` and `apply_to_bags` for a network's passes,
`guarded_step`, `ema` and `per_example_step` for what moves; `pair` and
`each_optimizer` of two networks, `mixup_ratio` and `mix` of mixed examples. All
is written for the global view of a batch, as `jnl.base` says.
"""

from collections.abc import Callable, Sequence
import functools
import math
import operator
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl.base import (
  AWAY,
  AXIS,
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Metrics,
  Model,
  Outputs,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  Stats,
  Table,
  axis_is_bound,
  check,
  check_auto,
  check_batch,
  check_key,
  example_keys,
  global_grad,
  global_mean,
  global_sum,
  name_tag,
  read_rows,
  suffixed,
  unplaced,
  write_rows,
)

T = TypeVar('T')
MODEL_TAG = 0
"""Tag of the keys that networks get for their own randomness (dropout)."""


def linear(num_features: int, num_classes: int) -> Model:
  r"""A linear classifier (softmax regression), zeros at first.

  .. math:: z = x W + b

  For features that are at hand, and for trying a method without a network; see
  `jnl.nets` for those.

  Args:
    num_features: d.
    num_classes: c.

  Returns:
    A model of inputs [..., d], which are its features.

  >>> params, stats = linear(3, 2).init(jax.random.key(0))
  >>> jax.tree.map(jnp.shape, params)
  {'bias': (2,), 'weights': (3, 2)}
  """

  def init(key: Key) -> tuple[Params, Stats]:
    del key
    weights = jnp.zeros((num_features, num_classes))
    return {'weights': weights, 'bias': jnp.zeros(num_classes)}, {}

  def apply(
    params: Params, stats: Stats, x: Array, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    del keys, train
    return Outputs(x @ params['weights'] + params['bias'], x), stats

  return Model(init, apply)


# --- methods ------------------------------------------------------------------


def _no_extra(key: Key) -> PyTree:
  del key
  return ()


def from_loss(
  loss_fn: Callable[[Params, State, Batch, Key], tuple[Array, Aux]],
  model: Model,
  tx: optax.GradientTransformation,
  *,
  init_extra: Callable[[Key], PyTree] = _no_extra,
  refit: Refit | None = None,
) -> Method:
  """A method that descends one loss by one optimizer.

  Args:
    loss_fn: `(params, state, batch, key) -> (loss, Aux)`; differentiates by
      `params`, finds batch statistics and memory in `state`, returns a sum of
      `global_mean`s. It must hand `state.extra` on in `Aux.extra`.
    model: the network; `predict` is its deterministic pass.
    tx: the optimizer.
    init_extra: `key -> State.extra`.
    refit: handed on.

  Returns:
    The method. `step` reports the metrics `loss`, those of `Aux`, and where
    there are `Table`s `unplaced`.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: at trace time, if `Aux.extra` or `Aux.stats` has another
      structure than the state's.
  """

  def init(key: Key) -> State:
    check_key(key)
    key_model, key_extra = jax.random.split(key)
    params, stats = model.init(key_model)
    extra = init_extra(key_extra)
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    (loss, aux), gradient = global_grad(loss_fn)(
      state.params, state, batch, key
    )
    for name in ('stats', 'extra'):
      old, new = (
        str(jax.tree.structure(getattr(s, name))) for s in (state, aux)
      )
      check(
        old == new,
        f'Aux.{name} has the structure {new}, State.{name} has {old}',
      )
    updates, opt = tx.update(gradient, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    state = State(state.step + 1, params, aux.stats, opt, aux.extra)
    metrics = {'loss': loss, **aux.metrics, **unplaced(aux.extra, batch)}
    return state, metrics

  return Method(init, step, predict_with(model), refit)


def supervised(
  per_example_loss: Callable[[Array, Array], Array],
  model: Model,
  tx: optax.GradientTransformation,
) -> Method:
  """A method that trains on `labels` with any per-example loss.

  Args:
    per_example_loss: `(logits [b, c], labels) -> [b]`.
    model: the network.
    tx: the optimizer.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`. Labels are
    what the loss takes: [b] int, [b, c] soft, or [b, c] bool, sets of
    candidates (`losses.cc`). Inside jit a label that is out of range (-1, or c)
    makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: at trace time, if a batch lacks an array or the loss gives
      anything but one value for each example.

  >>> model = linear(2, 2)
  >>> from jnl import losses
  >>> method = supervised(losses.gce, model, optax.sgd(0.1))
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> method.predict(state, jnp.eye(2)).logits.argmax(1).tolist()
  [0, 1]
  """

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    weight = jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    losses = per_example_loss(outputs.logits, labels_of(batch))
    check_losses(losses, weight)
    return global_mean(losses, weight), Aux(stats)

  return from_loss(loss_fn, model, tx)


def supervised_bags(
  per_bag_loss: Callable[[Array, Batch], Array],
  model: Model,
  tx: optax.GradientTransformation,
) -> Method:
  """A method that trains on any loss of whole bags.

  Args:
    per_bag_loss: `(logits [b, m, c], batch) -> [b]`.
    model: of instances.
    tx: the optimizer.

  Returns:
    A method over batches of `x` [b, m, ...], `index` and `weight` [b], and what
    the loss reads; `predict` is of instances.

  Raises:
    ValueError: at trace time, if a batch lacks an array or the loss gives
      anything but one value for each bag.

  >>> model = linear(2, 2)
  >>> from jnl import losses
  >>> method = supervised_bags(
  ...   lambda logits, batch: losses.dllp(logits, proportions_of(batch)),
  ...   model, optax.sgd(0.1))
  >>> batch = {'x': jnp.ones((2, 3, 2)), 'counts': jnp.array([1, 3]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> method.predict(state, jnp.ones((5, 2))).logits.shape  # of instances
  (5, 2)
  """

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'weight', 'index')
    views = batch['x'][None]
    outputs, stats = apply_to_bags(
      model, params, state.stats, views, batch, key
    )
    losses = per_bag_loss(outputs.logits[0], batch)
    check_losses(losses, batch['weight'])
    return global_mean(losses, batch['weight']), Aux(stats)

  return from_loss(loss_fn, model, tx)


def check_losses(losses: Array, weight: Array) -> None:
  """Raises unless there is one loss [b] for each example with `weight` [b].

  `global_mean` would take [b, b], which some broadcasting made, as well.

  Args:
    losses: [b].
    weight: [b].

  Raises:
    ValueError: if the shapes differ.
  """
  check(
    losses.shape == weight.shape,
    f'the loss must give one value for each example, as weight has: '
    f'{weight.shape}, got {losses.shape}',
  )


def feature_width(model: Model, x: Inputs) -> int:
  """The size of the features of a network, for heads on top of it.

  Args:
    model: the network.
    x: [b, ...], inputs such as it takes; nothing is computed on them.

  Returns:
    d of the features [..., d].

  >>> feature_width(linear(4, 2), jnp.zeros((1, 4)))
  4
  """

  def features(key: Key) -> Array:
    return model.apply(*model.init(key), x, None, False)[0].features

  return jax.eval_shape(features, jax.random.key(0)).shape[-1]


def check_model(model: Model) -> None:
  """Raises unless this is a `Model`, and says how a network becomes one.

  Args:
    model: what a method was given.

  Raises:
    TypeError: if it is anything else, a Flax module for one.

  >>> check_model(linear(2, 2))
  """
  check(
    isinstance(model, Model),
    f'model must be a jnl.Model, got {_kind(model)}. A Flax network becomes '
    'one by `jnl.nets.from_linen(net, shape)`, with the shape of one input, or '
    '`jnl.nets.from_nnx(lambda rngs: Net(..., rngs=rngs))`',
    TypeError,
  )


def _kind(x: object) -> str:
  return f'the class {x.__name__}' if isinstance(x, type) else type(x).__name__


def predict_with(model: Model) -> Callable[[State, Inputs], Outputs]:
  """`Method.predict` where the weights to evaluate are `state.params`.

  Every method ends here, so that here its network is looked at.

  Args:
    model: the network.

  Returns:
    `(state, x) -> Outputs`, its pass without `keys` and `train`.

  Raises:
    TypeError: if it is no `Model`.
  """
  check_model(model)

  def predict(state: State, x: Inputs) -> Outputs:
    return model.apply(state.params, state.stats, x, None, False)[0]

  return predict


# --- passes -------------------------------------------------------------------


def of_stream(batch: Batch, name: str) -> Batch:
  """The arrays of a second stream of a batch, without the suffix of its name.

  Args:
    batch: with `x_NAME`, `weight_NAME`, `index_NAME` and others, as
      `fit(streams={NAME: ...})` makes them.
    name: of the stream.

  Returns:
    A batch of `x`, `weight`, `index`, ...: what ends in the suffix. Without a
    weight all weights are one, without an index examples are told apart by
    their position.

  Raises:
    ValueError: if the batch has no such stream.

  >>> batch = {'x': jnp.zeros(2), 'x_u': jnp.ones(3), 'index_u': jnp.arange(3)}
  >>> sorted(of_stream(batch, 'u'))
  ['index', 'weight', 'x']
  """
  check_batch(batch, f'x_{name}')
  suffix = f'_{name}'
  found = {
    key.removesuffix(suffix): values
    for key, values in batch.items()
    if key.endswith(suffix)
  }
  b = jax.tree.leaves(found['x'])[0].shape[0]
  found.setdefault('weight', jnp.ones(b))
  found.setdefault('index', positions(b))
  return found


def join_labeled(batch: Batch, stream: str = 'l') -> Batch:
  """One batch of unlabeled examples and of a stream of labeled ones.

  Where few rows have labels they come as a stream of their own, some of them in
  every step: FixMatch has 64 beside 448. Joined, they are what methods of few
  labels take: one batch, and a mask. Both are interleaved in as many groups as
  there can be, so that every device joins what it has, and rows of tables stay
  with their shards. A labeled example has an index of its own, for its keys,
  and a place in no table.

  Args:
    batch: `x`, `index` and other arrays [m, ...] of the unlabeled examples, and
      of the stream `x_l` and `labels_l` [k, ...], as `fit(streams={'l':
      Stream(...)})` makes them. A view that the stream lacks is its `x`.
    stream: its name.

  Returns:
    A batch of [m + k, ...]: `x` and its views, `labels`, `labeled` bool,
    `weight` and `index`; what else unlabeled examples have is 0 where labeled.
    Other streams stay as they are. Without the stream, `batch`.

  Raises:
    ValueError: if an array lacks, or does not fit the other one's.
    TypeError: if their dtypes differ.

  >>> batch = {'x': jnp.zeros(4), 'index': jnp.arange(4), 'x_l': jnp.ones(2),
  ...   'labels_l': jnp.array([7, 8])}
  >>> both = join_labeled(batch)
  >>> both['x'].tolist(), both['labels'].tolist()
  ([0.0, 0.0, 1.0, 0.0, 0.0, 1.0], [-1, -1, 7, -1, -1, 8])

  Reference: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel,
  "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
  Confidence", NeurIPS 2020, arXiv 2001.07685, for the two streams.
  """
  if f'x_{stream}' not in batch:
    return batch
  check_batch(batch, 'x', 'index', f'labels_{stream}')
  own = of_stream(batch, stream)
  streams = {k.removeprefix('index_') for k in batch if k.startswith('index_')}
  suffixes = tuple(f'_{name}' for name in streams | {stream})
  rest = {k: a for k, a in batch.items() if not k.endswith(suffixes)}
  m, k = (jax.tree.leaves(part['x'])[0].shape[0] for part in (rest, own))
  labels = jnp.asarray(own['labels'])
  soft = jnp.issubdtype(labels.dtype, jnp.floating)
  labels = labels if soft else labels.astype(jnp.int32)
  none = 1 / labels.shape[-1] if soft else -1
  rest = {
    'weight': jnp.ones(m),
    **rest,
    'labels': jnp.full_like(labels, none, shape=(m, *labels.shape[1:])),
    'labeled': jnp.zeros(m, bool),
  }
  own = {
    **own,
    'labels': labels,
    'index': (AWAY + own['index'] % AWAY).astype(rest['index'].dtype),
    'labeled': jnp.ones(k, bool),
  }

  def of_labeled(name: str, values: PyTree) -> PyTree:
    if name in own or name.startswith('x'):
      return own.get(name, own['x'])
    return jax.tree.map(
      lambda a: jnp.zeros_like(a, shape=(k, *a.shape[1:])), values
    )

  join = lambda name, values: jax.tree.map(
    functools.partial(_interleave, (m, k), name, stream),
    *(values, of_labeled(name, values)),
  )
  joined = {name: join(name, values) for name, values in rest.items()}
  others = batch.keys() - rest.keys()
  others -= {name for name in others if name.endswith(f'_{stream}')}
  return {**joined, **{name: batch[name] for name in others}}


def _interleave(
  sizes: tuple[int, int], name: str, stream: str, a: Array, b: Array
) -> Array:
  """Rows [m, ...] and [k, ...] in groups that have some of both."""
  check_auto(a, name)
  arrays = [jnp.asarray(a), jnp.asarray(b)]
  names = [name, suffixed(name, stream)]
  for own, values, size in zip(names, arrays, sizes, strict=True):
    check(
      values.shape[:1] == (size,),
      f'{own} must have {size} rows, as its x has; got shape {values.shape}',
    )
  check(
    arrays[0].shape[1:] == arrays[1].shape[1:],
    f'{names[0]} must be like {names[1]} but for the number of rows, got '
    f'shapes {arrays[0].shape} and {arrays[1].shape}',
  )
  kinds = [values.dtype for values in arrays]
  check(
    name == 'weight' or kinds[0] == kinds[1],
    f'{names[0]} must have the dtype of {names[1]}, got {kinds[0]} and '
    f'{kinds[1]}',
    TypeError,
  )
  groups = max(1, math.gcd(*sizes))
  split = [v.reshape(groups, -1, *v.shape[1:]) for v in arrays if len(v)]
  if not split:
    return arrays[0]
  both = jnp.concatenate(split, axis=1)
  return both.reshape(sum(sizes), *both.shape[2:])


def positions(b: int) -> Array:
  """Where the examples of this device stand in the batch of all devices.

  Args:
    b: how many this device has.

  Returns:
    [b] int.

  >>> positions(3).tolist()
  [0, 1, 2]
  """
  first = lax.axis_index(AXIS) * b if axis_is_bound() else 0
  return first + jnp.arange(b)


def model_keys(key: Key, batch: Batch, stream: str = '') -> Key:
  """The random keys [b] for a network's training pass on `batch`.

  Args:
    key: of the step.
    batch: with `index` [b].
    stream: its name, if it comes from `of_stream`: examples of two streams are
      not the same though they have the same index.

  Returns:
    [b] keys.

  Raises:
    ValueError: if the batch has no `index`.
    TypeError: if `key` is none.
  """
  check_batch(batch, 'index')
  check_key(key)
  key = jax.random.fold_in(key, MODEL_TAG)
  if stream:
    key = jax.random.fold_in(key, name_tag(stream))
  return example_keys(key, batch['index'])


def training_pass(
  model: Model,
  params: Params,
  stats: Stats,
  x: Inputs,
  keys: Key | None,
  weight: Array,
) -> tuple[Outputs, Stats]:
  """A network's outputs and statistics in training, of rows of weight > 0.

  Rows of weight 0 leave no trace: their inputs become zeros, whatever they hold
  (backward passes would multiply zero by NaN), and batch statistics are of the
  others alone. A batch without any weight changes no statistics.

  Args:
    model: the network.
    params: its parameters.
    stats: its batch statistics.
    x: arrays [b, ...].
    keys: [b], one for each example.
    weight: [b], >= 0 or bool.

  Returns:
    The outputs, of zeros in rows of weight 0, and the new statistics.

  Raises:
    ValueError: if an array of `x` or `weight` is not [b, ...].
  """
  there = jnp.asarray(weight) > 0

  def shown(a: Array) -> Array:
    check(
      there.ndim == 1 and a.shape[:1] == there.shape,
      f'weight must be [b] and x [b, ...], got shapes {there.shape} and '
      f'{a.shape}',
    )
    return jnp.where(there.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)

  x = jax.tree.map(shown, x)
  if not jax.tree.leaves(stats):
    return model.apply(params, stats, x, keys, True)
  some = global_sum(jnp.sum(there)) > 0
  outputs, new = model.apply(params, stats, x, keys, True, there | ~some)
  return outputs, jax.tree.map(lambda n, o: jnp.where(some, n, o), new, stats)


def labels_of(batch: Batch) -> Array:
  """The labels of a batch; soft ones are uniform in rows of weight 0.

  Whatever such a row holds must not reach a loss: backward passes multiply zero
  by NaN. (Integers are looked at by the losses.)

  Args:
    batch: with `weight` [b] and `labels`, [b] int, [b, c] soft or bool.

  Returns:
    Labels of the same shape and dtype.

  >>> soft = jnp.array([[1.0, 0.0], [jnp.nan, 2.0]])
  >>> labels_of({'labels': soft, 'weight': jnp.array([1, 0])}).tolist()
  [[1.0, 0.0], [0.5, 0.5]]
  """
  check_batch(batch, 'labels', 'weight')
  labels, there = jnp.asarray(batch['labels']), jnp.asarray(batch['weight']) > 0
  if labels.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.floating):
    return labels
  check(
    len(labels) == len(there),
    f'weight must be [b] and labels [b, c], got shapes {there.shape} and '
    f'{labels.shape}',
  )
  return jnp.where(there[:, None], labels, 1 / labels.shape[1])


def apply_views(
  model: Model,
  params: Params,
  stats: Stats,
  views: Sequence[Inputs],
  keys: Key,
  weight: Array,
) -> tuple[Outputs, Stats]:
  """Outputs [b, views, ...] of several views of each example, in one pass.

  The views of an example stay side by side, and so on one device: put one after
  the other, arrays that are split over devices would have to move. Batch
  statistics are of all views together.

  Args:
    model: the network.
    params: its parameters.
    stats: its batch statistics.
    views: at least one tree of arrays [b, ...], all of one structure and shape.
    keys: [b], as from `model_keys`.
    weight: [b], as for `training_pass`; [b, views] where an example does not
      have all of them.

  Returns:
    The outputs, and the new statistics.

  Raises:
    ValueError: if the views differ in shape, or as `training_pass`.
  """
  count, b = len(views), keys.shape[0]
  shapes = [jax.tree.map(jnp.shape, view) for view in views]
  check(
    all(shape == shapes[0] for shape in shapes),
    f'views must all have one shape, got {shapes}',
  )

  def flatten(a: Array) -> Array:
    return a.reshape(b * count, *a.shape[2:])

  x = jax.tree.map(lambda *a: flatten(jnp.stack(a, axis=1)), *views)
  keys = flatten(jax.vmap(lambda k: jax.random.split(k, count))(keys))
  weight = jnp.asarray(weight)
  if weight.ndim == 1:
    weight = jnp.repeat(weight[:, None], count, axis=1)
  check(
    weight.shape == (b, count),
    f'weight must be [b] = [{b}], or [b, views], got shape {weight.shape}',
  )
  weight = flatten(weight)
  outputs, stats = training_pass(model, params, stats, x, keys, weight)

  def of_views(values: Array) -> Array:
    return values.reshape(b, count, *values.shape[1:])

  return jax.tree.map(of_views, outputs), stats


def apply_to_bags(
  model: Model,
  params: Params,
  stats: Stats,
  views: Array,
  batch: Batch,
  key: Key,
) -> tuple[Outputs, Stats]:
  """Outputs [views, b, m, ...] of all instances, in one training pass.

  Instances outside the mask and bags of weight 0 leave no trace in it, however
  wide the padding is: see `training_pass`.

  Args:
    model: of instances.
    params: its parameters.
    stats: its batch statistics.
    views: [views, b, m, ...].
    batch: with `index` [b], from which come the keys, `weight` [b], and `mask`
      [b, m] where bags are ragged.
    key: of the step.

  Returns:
    The outputs without `aux`, and the new statistics.

  Raises:
    ValueError: if the batch has no `x`, `weight` or `index`.
  """
  check_batch(batch, 'x', 'weight', 'index')
  count, b, m = views.shape[:3]
  there = mask_of(batch) & (jnp.asarray(batch['weight']) > 0)[:, None]
  # [b, views, m]: what is of one bag, and so of one device, stays together.
  x = jnp.moveaxis(views, 0, 1).reshape(-1, *views.shape[3:])
  split = jax.vmap(jax.random.split, (0, None))
  keys = split(split(model_keys(key, batch), count).reshape(-1), m)
  weight = jnp.broadcast_to(there[:, None], (b, count, m))
  outputs, stats = training_pass(
    model, params, stats, x, keys.reshape(-1), weight.reshape(-1)
  )

  def of_bags(values: Array) -> Array:
    values = values.reshape(b, count, m, *values.shape[1:])
    return jnp.moveaxis(values, 1, 0)

  return Outputs(of_bags(outputs.logits), of_bags(outputs.features)), stats


def bag_logits(
  predict: Callable[[State, Inputs], Outputs], state: State, x: Array
) -> Array:
  """Logits [b, m, c] of the instances of bags, without training.

  Args:
    predict: a `Method.predict` of instances.
    state: of that method.
    x: [b, m, ...].

  Returns:
    [b, m, c].
  """
  flat = predict(state, x.reshape(-1, *x.shape[2:])).logits
  return flat.reshape(*x.shape[:2], -1)


def mask_of(batch: Batch) -> Array:
  """Where the bags of a batch have an instance.

  Args:
    batch: `x` [b, m, ...], and `mask` [b, m] where bags are ragged.

  Returns:
    [b, m] bool; all true without a mask.
  """
  shape = batch['x'].shape[:2]
  return jnp.asarray(batch.get('mask', jnp.ones(shape, bool)))


def proportions_of(batch: Batch) -> Array:
  """The shares of both classes in each bag, by its `counts`.

  Args:
    batch: `x` [b, m, ...]; `counts` [b] int of positives; `mask` [b, m] and
      `weight` [b] if any. A bag of weight 0 may hold anything: its share is one
      half.

  Returns:
    [b, 2], summing to one.

  Raises:
    ValueError: if the batch has no `counts`.
    TypeError: if they are no integers: they may be shares already.

  >>> batch = {'x': jnp.zeros([1, 4, 1]), 'counts': jnp.array([1])}
  >>> proportions_of(batch).tolist()
  [[0.75, 0.25]]
  """
  check_batch(batch, 'counts')
  counts, sizes = jnp.asarray(batch['counts']), jnp.sum(mask_of(batch), axis=1)
  check(
    jnp.issubdtype(counts.dtype, jnp.integer),
    f'counts must be integers, got {counts.dtype}; of shares they are '
    '`noise.counts_of_proportions`',
    TypeError,
  )
  known = jnp.asarray(batch.get('weight', jnp.ones(sizes.shape))) > 0
  share = jnp.where(known, counts / jnp.maximum(sizes, 1), 0.5)
  return jnp.stack([1 - share, share], axis=-1)


def each(f: Callable[..., T], count: int, *stacked: PyTree) -> T:
  """The stacked results of `f` on each of `count` stacked networks.

  An unrolled loop: `vmap` over convolutional networks becomes grouped
  convolutions, which are several times slower on CPU.

  Args:
    f: called with the i-th slice of every argument.
    count: the leading size of every array in `stacked`.
    *stacked: trees of [count, ...].

  Returns:
    A tree of [count, ...].

  Raises:
    ValueError: if an array has another leading size.

  >>> each(lambda p: 2 * p, 2, jnp.array([1, 2])).tolist()
  [2, 4]
  """
  for leaf in jax.tree.leaves(stacked):
    check(
      leaf.shape[:1] == (count,),
      f'each: a stacked array has shape {leaf.shape}; its leading size must be '
      f'count = {count}',
    )
  results = [
    f(*jax.tree.map(operator.itemgetter(i), stacked)) for i in range(count)
  ]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def pair(model: Model) -> Model:
  """Two networks of one kind as a model, each with parameters of its own.

  Parameters and statistics are stacked, [2, ...]; both networks see the same
  inputs. Where they see different ones, call `each` with `model` itself.

  Args:
    model: one network.

  Returns:
    A model whose logits are the mean of both, whose features are those of both
    side by side, and whose `aux` is the `Outputs` of each, stacked [2, b, ...].

  Raises:
    TypeError: if `model` is no `Model`.

  >>> both = pair(linear(3, 2))
  >>> params, stats = both.init(jax.random.key(0))
  >>> outputs, _ = both.apply(params, stats, jnp.ones((5, 3)), None, False)
  >>> outputs.logits.shape, outputs.features.shape, outputs.aux.logits.shape
  ((5, 2), (5, 6), (2, 5, 2))
  """
  check_model(model)

  def init(key: Key) -> tuple[Params, Stats]:
    return jax.vmap(model.init)(jax.random.split(key))

  def apply(
    params: Params, stats: Stats, x: Inputs, keys: Key | None, *rest: Any
  ) -> tuple[Outputs, Stats]:
    def one(params: Params, stats: Stats, i: Array) -> tuple[Outputs, Stats]:
      own = None
      if keys is not None:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
      outputs, stats = model.apply(params, stats, x, own, *rest)
      return outputs._replace(aux=()), stats

    both, stats = each(one, 2, params, stats, jnp.arange(2))
    features = jnp.concatenate([*both.features], axis=-1)
    return Outputs(jnp.mean(both.logits, axis=0), features, both), stats

  return Model(init, apply)


def each_optimizer(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """An optimizer of stacked networks, as if each had one of its own.

  What is of all parameters together, such as a clip by their norm, is of one
  network.

  Args:
    tx: of one network.

  Returns:
    The same over trees of [networks, ...].

  >>> tx = each_optimizer(optax.clip_by_global_norm(1.0))
  >>> gradient = jnp.array([[2.0], [0.5]])
  >>> tx.update(gradient, tx.init(gradient))[0].tolist()
  [[1.0], [0.5]]
  """
  return optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))


# --- mixing -------------------------------------------------------------------


def mixup_ratio(key: Key, alpha: Scalar, *, major: bool = False) -> Array:
  r"""The share that an example keeps when it is mixed, one for the batch.

  .. math:: r \sim \mathrm{Beta}(\alpha, \alpha)

  Args:
    key: the step's key, after a `fold_in` with a fixed tag.
    alpha: > 0; 1 is uniform, large ones are near 1/2.
    major: max(r, 1 - r) instead, so that an example stays most of itself, as in
      MixMatch.

  Returns:
    [], float32, in [0, 1].

  Raises:
    ValueError: if `alpha` is not positive.

  >>> bool(mixup_ratio(jax.random.key(0), 1.0, major=True) >= 0.5)
  True

  Reference: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk
  Minimization", ICLR 2018, arXiv 1710.09412. Drawn as by Devroye, "Random
  variate generation in one line of code", Winter Simulation Conference 1996.
  """
  check(alpha > 0, f'alpha must be positive, got {alpha}')
  # A closed form, of two uniform numbers: the rejection sampling of
  # `jax.random.beta` takes as long to compile as a small network.
  u, v = jax.random.uniform(key, (2,), minval=jnp.finfo(jnp.float32).tiny)
  cosine = jnp.cos(2 * jnp.pi * v)
  odds = jnp.expm1(-jnp.log(u) / alpha) * cosine**2
  distance = lax.rsqrt(1 + 1 / odds) / 2
  return 0.5 + (distance if major else jnp.sign(cosine) * distance)


def mix(ratio: Scalar, tree: T, partners: T) -> T:
  r"""Examples mixed with their partners.

  .. math:: r x + (1 - r) x'

  `partners = shuffle_within(key, index, tree, where=weight > 0)` gives them:
  an example of weight 0 is nobody's partner.

  Args:
    ratio: r in [0, 1], a scalar.
    tree: x, floating-point arrays [b, ...].
    partners: x', a tree like it.

  Returns:
    A tree like `tree`, of its dtypes.

  Raises:
    TypeError: if an array is not floating-point: texts cannot be mixed.

  >>> mix(0.75, jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])).tolist()
  [0.75, 0.25]

  Reference: see `mixup_ratio`.
  """

  def one(x: Array, other: Array) -> Array:
    check(
      jnp.issubdtype(x.dtype, jnp.floating),
      f'mixup needs floating-point inputs, got {x.dtype}',
      TypeError,
    )
    return (ratio * x + (1 - ratio) * other).astype(x.dtype)

  return jax.tree.map(one, tree, partners)


# --- steps --------------------------------------------------------------------


def all_finite(tree: PyTree) -> Array:
  """Whether every number of every array is finite, [] bool.

  Args:
    tree: of arrays.

  Returns:
    [] bool; of arrays that are the same on all devices, so is this.

  >>> bool(all_finite({'a': jnp.ones(2), 'b': jnp.array([jnp.nan])}))
  False
  """
  finite = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(finite))


def select(done: Array, new: T, old: T) -> T:
  """The new arrays if a step is done, else the old ones.

  Args:
    done: [] bool, the same on all devices.
    new: a tree of arrays.
    old: a tree like `new`.

  Returns:
    A tree like `new`.

  >>> select(jnp.array(False), {'w': jnp.ones(1)}, {'w': jnp.zeros(1)})
  {'w': Array([0.], dtype=float32)}
  """
  return jax.tree.map(lambda new, old: jnp.where(done, new, old), new, old)


def guarded_step(
  tx: optax.GradientTransformation,
  gradient: Params,
  old: tuple[Params, Stats, optax.OptState],
  stats: Stats,
  allowed: Array | bool = True,
) -> tuple[tuple[Params, Stats, optax.OptState], Array]:
  """A step of an optimizer, skipped if the gradient is not finite.

  Args:
    tx: the optimizer.
    gradient: a tree like the parameters, the same on all devices.
    old: parameters, batch statistics, and the state of `tx`.
    stats: the new statistics.
    allowed: [] bool; where it is false the step is skipped as well.

  Returns:
    The new three, or `old`; and whether the step was done, [] bool.

  >>> tx, params = optax.sgd(1.0), jnp.ones(1)
  >>> old = params, {}, tx.init(params)
  >>> (new, _, _), done = guarded_step(tx, jnp.array([jnp.nan]), old, {})
  >>> new.tolist(), bool(done)
  ([1.0], False)
  """
  done = all_finite(gradient) & allowed
  updates, opt = tx.update(gradient, old[2], old[0])
  new = optax.apply_updates(old[0], updates), stats, opt
  return select(done, new, old), done


def ema(average: T, values: T, decay: Scalar) -> T:
  r"""The next value of an exponential moving average.

  .. math:: a \leftarrow d a + (1 - d) v

  Args:
    average: a, a tree of arrays.
    values: v, a tree like it. What is not floating point is taken as it is.
    decay: d in [0, 1].

  Returns:
    A tree like `average`, of its dtypes.

  >>> ema(jnp.array([1.0]), jnp.array([0.0]), 0.75).tolist()
  [0.75]
  """

  def moved(old: Array, new: Array) -> Array:
    if not jnp.issubdtype(old.dtype, jnp.inexact):
      return new
    return optax.incremental_update(new, old, 1 - decay).astype(old.dtype)

  return jax.tree.map(moved, average, values)


def per_example_step(
  table: Table,
  index: Array,
  gradient: Array,
  learning_rate: Scalar,
  *,
  where: Array | None = None,
) -> Table:
  r"""A table after plain gradient descent on the rows of a batch.

  .. math:: r_i \leftarrow r_i - \eta\, \nabla_{r_i} \sum_j \ell_j

  What belongs to one example descends the loss of that example: take the
  gradient of the *sum* of the local losses by the rows that were read, which no
  other device knows. Of the mean it would be b times smaller.

  Args:
    table: rows [shards, m, ...].
    index: [b] int, as for `base.read_rows`.
    gradient: [b, ...].
    learning_rate: eta.
    where: [b] bool, the examples that step, as in `base.write_rows`.

  Returns:
    The new table.

  Raises:
    ValueError: as `base.write_rows`.

  >>> from jnl.base import pack_rows, unpack_rows
  >>> table = pack_rows(jnp.zeros(3))
  >>> new = per_example_step(table, jnp.array([2]), jnp.array([1.0]), 0.5)
  >>> unpack_rows(new, 3).tolist()
  [0.0, 0.0, -0.5]

  Reference: Liu, Zhu, Qu, You, "Robust Training under Label Noise by
  Over-parameterization", ICML 2022, arXiv 2202.14026, whose variables move so.
  """
  rows = read_rows(table, index)
  moved = rows - learning_rate * gradient.astype(rows.dtype)
  return write_rows(table, index, moved, where=where)
