"""Self-taught on-the-fly meta loss rescaling (STORM)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl import losses, meta
from jnl.base import (
  Array,
  Batch,
  Inputs,
  Key,
  Method,
  Metrics,
  Model,
  Params,
  State,
  Stats,
  Table,
  check,
  global_grad,
  global_mean,
  global_sum,
  pack_rows,
  unplaced,
  write_rows,
)
from jnl.methods._meta import (
  Learners,
  Loss,
  Passed,
  StreamBatch,
  forward,
  read_streams,
  start,
  update_weigher,
)
from jnl.steps import all_finite, predict_with, select


class Rescaled(NamedTuple):
  """The memory of STORM.

  Attributes:
    rescaler: parameters of the rescaler.
    rescaler_stats: its statistics.
    rescaler_opt: the state of its optimizer.
    memory: of training batches.
    memory_meta: of meta batches.
    weights: [n], the last weight of each example; zeros at first.
  """

  rescaler: Params
  rescaler_stats: Stats
  rescaler_opt: optax.OptState
  memory: meta.Memory
  memory_meta: meta.Memory
  weights: Table


def storm(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  batch_size: int,
  passes: int = 3,
  window: int = 1,
  g_meta: bool = True,
  g_outer: bool = True,
  rescaler: Model | None = None,
  rescaler_tx: optax.GradientTransformation | None = None,
  augment: Callable[[Key, Inputs], Inputs] | None = None,
  loss: Loss = losses.ce,
  shards: int = 1,
) -> Method:
  r"""A rescaler learns from noisy data alone how much to trust an example.

  .. math:: \theta' = \theta + u\Big(\nabla \sum_i w_\omega(f_i)\,
    \ell_i(\theta)\Big), \qquad
    M(\omega) = \sum_j w_\omega(f'_j)\, \ell_j(\theta'(\omega))

  with features f of several passes with dropout (`meta.storm_features`), u the
  update of the optimizer, and j over a second batch of the same noisy data. The
  gradient by omega has two terms: `g_meta`, through theta', and `g_outer`,
  through the weights of M. Both losses are sums, not means: a rate is per
  example. What is learned from is the step itself; there is no other.

  What a step costs, with G passes: 2 forward passes with a backward one (of the
  training and of the meta batch), 2 (G - 1) forward passes without, and one
  pass along a tangent, at the price of a backward one (not without `g_meta`).

  Args:
    model: the network; it should be random in training (dropout), unless
      `augment` is.
    tx: its optimizer, through whose update `g_meta` goes: `optax.sgd`;
      `meta.first_adam`, which the official code amounts to and which leaves
      next to nothing of `g_meta`; `optax.adam`, whose state goes on.
    num_examples: n; batches carry `index` in [0, n).
    num_classes: c.
    batch_size: over all devices; the memory of each class has `window` times
      this size, and is emptied after an epoch of n // batch_size steps.
    passes: G >= 1; the first one is the one that is learned from.
    window: memory of so many batches for each class.
    g_meta: with the first term of the gradient.
    g_outer: with the second.
    rescaler: of `(features, labels, mask)`, by default
      `meta.rescaler(num_classes)`.
    rescaler_tx: its optimizer, by default Adam at 1e-2.
    augment: `(keys [b], x) -> x`, another view for every pass.
    loss: of each example.
    shards: of the table of weights: `data_shards(n, batch_size)` for `fit`, 1
      in a loop of one's own.

  Returns:
    A method over batches of `x`, `labels`, `weight`, `index`, and of `x_meta`,
    `labels_meta` and maybe `weight_meta` and `index_meta`, of the same training
    set, `fit(streams={'meta': Stream(data, batch_size)})`; no clean data.
    `state.extra` is a `Rescaled`.
    Metrics: `loss` and `meta_loss`, divided by the size of the batch,
    `mean_weight`, `agreement`, the share of examples whose label most passes
    predict, and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if an argument is out of range, the batch lacks a
      stream, has one example, or more than `batch_size`, or if the network has
      more classes than `num_classes`.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = storm(model, optax.sgd(0.1), num_examples=4, num_classes=2,
  ...   batch_size=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 0]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2),
  ...   'x_meta': jnp.eye(2), 'labels_meta': jnp.array([1, 1])}
  >>> key = jax.random.key(0)  # of the first step only the shapes, in no time
  >>> state, metrics = jax.eval_shape(
  ...   lambda: method.step(method.init(key), batch, key))
  >>> sorted(metrics), state.extra.memory.rows.shape
  (['agreement', 'loss', 'mean_weight', 'meta_loss', 'unplaced'], (2, 2, 5))

  Reference: Heck, Geishauser, Lubis, van Niekerk, Feng, Lin, Ruppik, Vukovic,
  Gasic, "Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss
  Rescaling", AAAI 2025, arXiv 2412.12955. Batches of 32, dropout .1. The second
  column of the softmax is the weight, as in the code; the paper has the first.
  """
  check(passes >= 1, f'passes must be at least 1, got {passes}')
  check(window >= 1, f'window must be at least 1, got {window}')
  check(g_meta or g_outer, 'g_meta or g_outer must be on: nothing is learned')
  check(
    1 <= batch_size <= num_examples,
    f'batch_size must lie in [1, {num_examples}], got {batch_size}',
  )
  net = meta.rescaler(num_classes) if rescaler is None else rescaler
  net_tx = optax.adam(1e-2) if rescaler_tx is None else rescaler_tx
  learners = Learners(model, tx, net, net_tx)
  epoch = num_examples // batch_size
  options = _Options(loss, augment, passes, g_meta, g_outer, epoch)

  def init(key: Key) -> State:
    network, learned = start(learners, key)
    size = window * batch_size
    memory, memory_meta = (
      meta.storm_memory(num_classes, size) for _ in range(2)
    )
    table = pack_rows(jnp.zeros(num_examples), shards)
    extra = Rescaled(*learned, memory, memory_meta, table)
    return State(jnp.int32(0), *network, extra)

  step = partial(_step, learners, options)
  return Method(init, step, predict_with(model))


class _Options(NamedTuple):
  """Those of `storm` that its step reads; an epoch has so many steps."""

  loss: Loss
  augment: Callable[[Key, Inputs], Inputs] | None
  passes: int
  g_meta: bool
  g_outer: bool
  epoch: int


class _Seen(NamedTuple):
  """A stream as the rescaler sees it.

  Attributes:
    features: [b, 19].
    labels: [b].
    weight: [b], 0 where one of the passes had no finite loss.
    keys: [b].
    memory: with the batch in it.
  """

  features: Array
  labels: Array
  weight: Array
  keys: Key
  memory: meta.Memory


class _Weighted(NamedTuple):
  """What a weighted sum of losses is made of; weights are [b]."""

  passed: Passed
  seen: _Seen
  weights: Array


_Run = Callable[[StreamBatch, Params], Passed]
_Weigh = Callable[[Params, _Seen], tuple[Array, Stats]]


def _step(
  learners: Learners,
  options: _Options,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[State, Metrics]:
  model, tx, net, net_tx = learners
  old = state.extra
  train, second = read_streams(batch, key)
  memories = _in_this_epoch(old, state.step % options.epoch == 0)
  run = partial(_run, model, options, state.stats)
  weigh = partial(_weigh, net, old.rescaler_stats)
  weighted = partial(
    _weighted_loss, run, weigh, options.passes, omega=old.rescaler
  )

  # The step with the rescaler as it is, which is the virtual one too. It is
  # settled at once, so that only one of both has to be kept from here on.
  (value, inner), gradient = global_grad(weighted)(
    state.params, train, memories[0]
  )
  virtual = meta.virtual_step(gradient, state.params, state.opt, tx)
  now = select(
    all_finite(gradient),
    (virtual.params, inner.passed.stats, virtual.opt),
    (state.params, state.stats, state.opt),
  )

  # What it does to the weighted loss of the second batch.
  ahead = meta.look_ahead(
    virtual._replace(params=now[0]),
    partial(weighted, stream=second, memory=memories[1]),
    lambda params: run(train, params).losses,
    state.params,
  )
  outer = ahead.aux

  # The rescaler descends that loss: through the step, and through its weights.
  objective = partial(_objective, weigh, options, inner, outer, ahead.slopes)
  rescaler = update_weigher(net_tx, objective, old[:3])

  # What is remembered, and reported.
  there = inner.seen.weight
  table = write_rows(
    old.weights, batch['index'], inner.weights, where=there > 0
  )
  metrics = {
    'loss': value / _count(inner.seen),
    'meta_loss': ahead.meta_loss / _count(outer.seen),
    'mean_weight': global_mean(inner.weights, there),
    'agreement': global_mean(inner.seen.features[:, -1], there),
    **unplaced(table, batch),
  }
  extra = Rescaled(*rescaler, inner.seen.memory, outer.seen.memory, table)
  return State(state.step + 1, *now, extra), metrics


def _in_this_epoch(
  old: Rescaled, fresh: Array
) -> tuple[meta.Memory, meta.Memory]:
  """Both memories, emptied if an epoch begins."""
  memory, memory_meta = (
    m._replace(filled=jnp.where(fresh, 0, m.filled))
    for m in (old.memory, old.memory_meta)
  )
  return memory, memory_meta


def _run(
  model: Model,
  options: _Options,
  stats: Stats,
  stream: StreamBatch,
  params: Params,
) -> Passed:
  """A pass, each with a view of its own."""
  if options.augment is not None:
    stream = stream._replace(x=options.augment(stream.keys, stream.x))
  return forward(model, options.loss, stats, stream, params)


def _weighted_loss(
  run: _Run,
  weigh: _Weigh,
  passes: int,
  params: Params,
  stream: StreamBatch,
  memory: meta.Memory,
  omega: Params,
) -> tuple[Array, _Weighted]:
  passed = run(stream, params)
  seen = _see(run, passes, lax.stop_gradient(params), stream, passed, memory)
  weights, _ = weigh(omega, seen)
  loss = meta.total(weights * passed.losses, seen.weight)
  return loss, _Weighted(passed, seen, weights)


def _see(
  run: _Run,
  passes: int,
  params: Params,
  stream: StreamBatch,
  first: Passed,
  memory: meta.Memory,
) -> _Seen:
  """The other passes, and what all of them come to."""

  def another(number: Array) -> tuple[Array, Array, Array]:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(stream.keys)
    passed = run(stream._replace(keys=keys), params)
    return passed.losses, passed.logits, passed.weight

  found = (first.losses[None], first.logits[None], first.weight[None])
  if passes > 1:
    others = jax.vmap(another)(jnp.arange(1, passes))
    found = jax.tree.map(lambda *a: jnp.concatenate(a), found, others)
  values, logits, weight = found
  weight = jnp.where(jnp.all(weight > 0, axis=0), first.weight, 0)
  features, memory = meta.storm_features(
    values, logits, stream.labels, memory, weight
  )
  return _Seen(features, stream.labels, weight, stream.keys, memory)


def _weigh(
  net: Model, stats: Stats, omega: Params, seen: _Seen
) -> tuple[Array, Stats]:
  """Weights [b]; 0 of who is not there."""
  weights, stats = meta.rescale(net, omega, stats, *seen[:4])
  # That of a label out of range is not a number.
  return jnp.where(seen.weight > 0, weights, 0), stats


def _objective(
  weigh: _Weigh,
  options: _Options,
  inner: _Weighted,
  outer: _Weighted,
  slopes: Array,
  omega: Params,
) -> tuple[Array, Stats]:
  """The second loss after the step, to first order in all weights."""
  weights, stats = weigh(omega, inner.seen)
  value = jnp.zeros(())
  if options.g_meta:
    value += meta.total(slopes * weights, inner.seen.weight)
  if options.g_outer:
    weights, _ = weigh(omega, outer.seen)
    value += meta.total(outer.passed.losses * weights, outer.seen.weight)
  return value, stats


def _count(seen: _Seen) -> Array:
  """The weight of a batch, or 1 if it has none."""
  weight = global_sum(jnp.sum(seen.weight))
  return jnp.where(weight > 0, weight, 1)
