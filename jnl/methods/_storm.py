"""Self-taught on-the-fly meta loss rescaling (STORM)."""

from collections.abc import Callable
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
  PyTree,
  State,
  Stats,
  Table,
  check,
  global_grad,
  global_mean,
  global_sum,
  pack_rows,
  unplaced,
)
from jnl.steps import predict_with


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


class Seen(NamedTuple):
  """A stream as the rescaler sees it.

  Attributes:
    features: [b, 19].
    labels: [b].
    weight: [b], 0 where one of the passes had no finite loss.
    memory: with the batch in it.
  """

  features: Array
  labels: Array
  weight: Array
  memory: meta.Memory


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
  loss: meta.Loss = losses.ce,
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
    `labels_meta` and maybe `weight_meta` and `index_meta`, drawn from the same
    training set (`meta.drawn`); no clean data. `state.extra` is a `Rescaled`.
    Metrics: `loss` and `meta_loss`, divided by the size of the batch,
    `mean_weight`, `agreement`, the share of examples whose label most passes
    predict, and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if an argument is out of range, the batch lacks a
      stream, has one example, or more than `batch_size`, or if the network has
      more classes than `num_classes`.

  Reference: Heck, Geishauser, Lubis, van Niekerk, Feng, Lin, Ruppik, Vukovic
  and Gasic, "Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss
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
  epoch = num_examples // batch_size

  def init(key: Key) -> State:
    key_model, key_rescaler = jax.random.split(key)
    params, stats = model.init(key_model)
    omega, omega_stats = net.init(key_rescaler)
    extra = Rescaled(
      omega,
      omega_stats,
      net_tx.init(omega),
      meta.storm_memory(num_classes, window * batch_size),
      meta.storm_memory(num_classes, window * batch_size),
      pack_rows(jnp.zeros(num_examples), shards),
    )
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def run(params: Params, stats: Stats, stream: meta.Stream) -> meta.Passed:
    if augment is not None:
      stream = stream._replace(x=augment(stream.keys, stream.x))
    return meta.passing(model, loss, stats, stream)(params)

  def see(
    params: Params,
    stats: Stats,
    stream: meta.Stream,
    first: meta.Passed,
    memory: meta.Memory,
  ) -> Seen:
    """The other passes, and what all of them come to."""
    params = lax.stop_gradient(params)

    def another(number: Array) -> tuple[Array, Array, Array]:
      keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(stream.keys)
      passed = run(params, stats, stream._replace(keys=keys))
      return passed.losses, passed.logits, passed.weight

    all_passes = (first.losses[None], first.logits[None], first.weight[None])
    if passes > 1:
      others = jax.vmap(another)(jnp.arange(1, passes))
      all_passes = jax.tree.map(
        lambda *a: jnp.concatenate(a), all_passes, others
      )
    values, logits, weight = all_passes
    weight = jnp.where(jnp.all(weight > 0, axis=0), first.weight, 0)
    features, memory = meta.storm_features(
      values, logits, stream.labels, memory, weight
    )
    return Seen(features, stream.labels, weight, memory)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    old = state.extra
    train = meta.read_stream(batch, key)
    drawn = meta.read_stream(batch, key, meta=True)
    fresh = state.step % epoch == 0
    memory, memory_meta = (
      m._replace(filled=jnp.where(fresh, 0, m.filled))
      for m in (old.memory, old.memory_meta)
    )

    def weigh(omega: Params, seen: Seen, keys: Key) -> tuple[Array, Stats]:
      stats = old.rescaler_stats
      weights, stats = meta.rescale(net, omega, stats, *seen[:3], keys)
      # That of a label out of range is not a number.
      return jnp.where(seen.weight > 0, weights, 0), stats

    def weighted(
      params: Params, stream: meta.Stream, memory: meta.Memory
    ) -> tuple[Array, PyTree]:
      passed = run(params, state.stats, stream)
      seen = see(params, state.stats, stream, passed, memory)
      weights, _ = weigh(old.rescaler, seen, stream.keys)
      loss = meta.total(weights * passed.losses, seen.weight)
      return loss, (passed, seen, weights)

    def objective(omega: Params) -> tuple[Array, Stats]:
      weights, stats = weigh(omega, seen, train.keys)
      value = jnp.zeros(())
      if g_meta:
        value += meta.total(slopes * weights, seen.weight)
      if g_outer:
        weights_meta, _ = weigh(omega, seen_meta, drawn.keys)
        value += meta.total(passed_meta.losses * weights_meta, seen_meta.weight)
      return value, stats

    (value, (passed, seen, weights)), gradient = global_grad(weighted)(
      state.params, train, memory
    )
    params, opt, pull = meta.virtual_step(gradient, state.params, state.opt, tx)
    # At once, so that only one of them has to be kept from here on.
    params, stats, opt = meta.settle(
      meta.all_finite(gradient),
      (params, passed.stats, opt),
      (state.params, state.stats, state.opt),
    )
    (meta_value, (passed_meta, seen_meta, _)), by_moved = global_grad(weighted)(
      params, drawn, memory_meta
    )
    if g_meta:
      slopes = meta.weight_gradient(
        lambda params: run(params, state.stats, train).losses,
        state.params,
        pull(by_moved),
      )
    (_, omega_stats), by_omega = global_grad(objective)(old.rescaler)
    omega, omega_stats, omega_opt = meta.descend(
      net_tx, by_omega, old[:3], omega_stats, meta.all_finite(by_omega)
    )
    extra = Rescaled(
      omega,
      omega_stats,
      omega_opt,
      seen.memory,
      seen_meta.memory,
      meta.remember(old.weights, batch['index'], weights, seen.weight),
    )
    metrics = {
      'loss': value / _count(seen),
      'meta_loss': meta_value / _count(seen_meta),
      'mean_weight': global_mean(weights, seen.weight),
      'agreement': global_mean(seen.features[:, -1], seen.weight),
      **unplaced(extra, batch),
    }
    return State(state.step + 1, params, stats, opt, extra), metrics

  return Method(init, step, predict_with(model))


def _count(seen: Seen) -> Array:
  """The weight of a batch, or 1 if it has none."""
  weight = global_sum(jnp.sum(seen.weight))
  return jnp.where(weight > 0, weight, 1)
