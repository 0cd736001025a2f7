"""Meta soft label corrector (MSLC)."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from jnl import losses, meta
from jnl.base import (
  Array,
  Batch,
  Key,
  Method,
  Metrics,
  Model,
  Params,
  PyTree,
  Scalar,
  State,
  Stats,
  Table,
  check,
  global_grad,
  global_mean,
  pack_rows,
  read_rows,
  unplaced,
)
from jnl.methods._mwn import weigher_optimizer
from jnl.steps import predict_with


class Purified(NamedTuple):
  """The memory of MSLC.

  Attributes:
    nets: parameters of the two weighers, of alpha and of beta.
    nets_stats: their statistics.
    nets_opt: the state of their optimizer.
    virtual_opt: the state of the optimizer of virtual steps.
    labels: [n, c], the soft label of each example; zeros before it is seen.
    weights: [n], the last alpha, the trust in the label; zeros at first.
  """

  nets: tuple[Params, Params]
  nets_stats: tuple[Stats, Stats]
  nets_opt: optax.OptState
  virtual_opt: optax.OptState
  labels: Table
  weights: Table


def mslc(
  model: Model,
  tx: optax.GradientTransformation,
  virtual_tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  warmup: Scalar = 0,
  weigher: Model | None = None,
  weigher_tx: optax.GradientTransformation | None = None,
  shards: int = 1,
  dtype: DTypeLike = jnp.float32,
) -> Method:
  r"""Learns how to mix the label, its memory and the prediction.

  .. math:: L = \operatorname{mean}_i \left[ \alpha\, \ell(z, y) + (1 - \alpha)
    (\beta\, \ell(z, \hat s) + (1 - \beta)\, \ell(z, \hat z)) \right]

  with l the cross-entropy, s-hat and z-hat the likeliest classes of the memory
  and of the prediction, alpha and beta the weighers' (as in Meta-Weight-Net) of
  the first and the second of the losses. They descend the clean loss after a
  virtual step; then the network descends L with them, and the memory becomes
  what they make of label, memory and prediction (`meta.mslc_labels`).

  A step is that of Meta-Weight-Net, in the warm-up too.

  Args:
    model: the network.
    tx: its optimizer. The official code: SGD, rate .1 (times .1 after epochs 80
      and 100 of 120), momentum .9, weight decay 5e-4, batches of 100.
    virtual_tx: the optimizer of virtual steps: `optax.sgd` at the rate (or the
      schedule) of `tx`, without momentum and decay.
    num_examples: n; batches carry `index` in [0, n).
    num_classes: c.
    warmup: steps in which alpha is 1, nothing else is learned, and the memory
      takes the predictions. The official code: 80 epochs.
    weigher: of losses [b, 1], by default `meta.weigher()`; two of them.
    weigher_tx: their optimizer, by default Adam at 1e-3 with decay 1e-4.
    shards: of the tables: `data_shards(n, batch_size)` for `fit`, 1 in a loop
      of one's own.
    dtype: of the table of labels: bfloat16 halves it.

  Returns:
    A method over batches of `x`, `labels`, `weight`, `index`, and of `x_meta`,
    `labels_meta` and maybe `weight_meta` and `index_meta`: a clean batch of any
    size. `state.extra` is a `Purified`. Metrics: `loss`, `meta_loss`,
    `alpha` and `beta`, their means, and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if `warmup` is negative, or if the batch lacks a
      stream or has it in a wrong form.

  Reference: Wu, Shu, Xie, Zhao and Meng, "Learning to Purify Noisy Labels via
  Meta Soft Label Corrector", AAAI 2021, arXiv 2008.00627.
  """
  check(warmup >= 0, f'warmup must not be negative, got {warmup}')
  net = meta.weigher() if weigher is None else weigher
  net_tx = weigher_optimizer() if weigher_tx is None else weigher_tx

  def init(key: Key) -> State:
    key_model, key_alpha, key_beta = jax.random.split(key, 3)
    params, stats = model.init(key_model)
    (alpha, alpha_stats), (beta, beta_stats) = (
      net.init(k) for k in (key_alpha, key_beta)
    )
    extra = Purified(
      (alpha, beta),
      (alpha_stats, beta_stats),
      net_tx.init((alpha, beta)),
      virtual_tx.init(params),
      pack_rows(jnp.zeros((num_examples, num_classes), dtype), shards),
      pack_rows(jnp.zeros(num_examples), shards),
    )
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    old, index = state.extra, batch['index']
    warm = state.step < warmup
    train = meta.read_stream(batch, key)
    clean = meta.read_stream(batch, key, meta=True)
    run = meta.passing(model, losses.ce, state.stats, train)
    run_clean = meta.passing(model, losses.ce, state.stats, clean)
    known = read_rows(old.labels, index).astype(jnp.float32)
    seen = jnp.sum(known, axis=1, keepdims=True) > 0

    def recall(logits: Array) -> Array:
      """The soft label in memory, or else the prediction."""
      return jnp.where(seen, known, jax.nn.softmax(lax.stop_gradient(logits)))

    def parts(params: Params) -> tuple[Array, meta.Passed]:
      passed = run(params)
      values = meta.mslc_losses(
        passed.logits, train.labels, recall(passed.logits)
      )
      # `passed` knows which of them are not finite, from the first.
      there = passed.weight > 0
      return jnp.where(there, values, 0), passed

    def trust(
      nets: PyTree, values: Array, there: Array
    ) -> tuple[Array, Array, PyTree]:
      values, keys = lax.stop_gradient(values), train.keys
      (alpha, alpha_stats), (beta, beta_stats) = (
        meta.weigh(net, nets[i], old.nets_stats[i], values[i], keys, there)
        for i in range(2)
      )
      return jnp.where(warm, 1, alpha), beta, (alpha_stats, beta_stats)

    def loss_fn(params: Params, nets: PyTree) -> tuple[Array, PyTree]:
      values, passed = parts(params)
      alpha, beta, _ = trust(nets, values, passed.weight)
      mixed = meta.mslc_mix(values, alpha, beta)
      return global_mean(mixed, passed.weight), (passed, values, alpha, beta)

    def meta_fn(params: Params) -> tuple[Array, None]:
      return run_clean(params).mean, None

    def objective(nets: PyTree) -> tuple[Array, PyTree]:
      alpha, beta, stats = trust(nets, values, passed.weight)
      slope = meta.mslc_mix(slopes, alpha, beta)
      return global_mean(slope, passed.weight), stats

    (_, (passed, values, _, _)), gradient = global_grad(loss_fn)(
      state.params, old.nets
    )
    moved, virtual_opt, pull = meta.virtual_step(
      gradient, state.params, old.virtual_opt, virtual_tx
    )
    (meta_loss, _), by_moved = global_grad(meta_fn)(moved)
    slopes = meta.weight_gradient(
      lambda params: parts(params)[0], state.params, pull(by_moved)
    )
    (_, nets_stats), by_nets = global_grad(objective)(old.nets)
    learned = meta.all_finite(by_nets) & ~warm
    nets, nets_stats, nets_opt = meta.descend(
      net_tx, by_nets, old[:3], nets_stats, learned
    )
    (value, (passed, _, alpha, beta)), gradient = global_grad(loss_fn)(
      state.params, nets
    )
    now = state.params, state.stats, state.opt
    params, stats, opt = meta.descend(
      tx, gradient, now, passed.stats, meta.all_finite(gradient)
    )
    soft = meta.mslc_labels(
      passed.logits, train.labels, recall(passed.logits), alpha, beta
    )
    soft = jnp.where(warm, jax.nn.softmax(passed.logits), soft)
    extra = Purified(
      nets,
      nets_stats,
      nets_opt,
      virtual_opt,
      meta.remember(old.labels, index, soft, passed.weight),
      meta.remember(old.weights, index, alpha, passed.weight),
    )
    metrics = {
      'loss': value,
      'meta_loss': meta_loss,
      'alpha': global_mean(alpha, passed.weight),
      'beta': global_mean(beta, passed.weight),
      **unplaced(extra, batch),
    }
    return State(state.step + 1, params, stats, opt, extra), metrics

  return Method(init, step, predict_with(model))
