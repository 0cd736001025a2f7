"""Meta-Weight-Net (MWN)."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
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
  State,
  Stats,
  Table,
  global_grad,
  global_mean,
  pack_rows,
  unplaced,
)
from jnl.steps import predict_with


class Weighed(NamedTuple):
  """The memory of Meta-Weight-Net.

  Attributes:
    weigher: parameters of the weigher.
    weigher_stats: its statistics.
    weigher_opt: the state of its optimizer.
    virtual_opt: the state of the optimizer of virtual steps.
    weights: [n], the last weight of each example; zeros at first.
  """

  weigher: Params
  weigher_stats: Stats
  weigher_opt: optax.OptState
  virtual_opt: optax.OptState
  weights: Table


def mwn(
  model: Model,
  tx: optax.GradientTransformation,
  virtual_tx: optax.GradientTransformation,
  *,
  num_examples: int,
  weigher: Model | None = None,
  weigher_tx: optax.GradientTransformation | None = None,
  loss: meta.Loss = losses.ce,
  shards: int = 1,
) -> Method:
  r"""A small network learns how much to trust an example with such a loss.

  .. math:: L = \operatorname{mean}_i v_\omega(\ell_i)\, \ell_i(\theta),
    \qquad \omega \text{ descends } M(\theta'(\omega)), \quad
    \theta' = \theta - \eta\, \nabla_\theta L

  with M the mean loss of the meta batch; then theta descends L with the new
  weigher. The weights are not differentiated by theta. The gradient by omega is
  one Jacobian-vector product of the losses and a backward pass of the weigher.

  A step is a pass forward and back over the meta batch, and over the training
  batch forward, along a tangent, and twice back: 3 times a plain step if both
  are of one size.

  Args:
    model: the network.
    tx: its optimizer. The official code: SGD, rate .1 (times .1 after epochs 80
      and 100 of 120), momentum .9, weight decay 5e-4, batches of 100.
    virtual_tx: the optimizer of virtual steps: `optax.sgd` at the rate (or the
      schedule) of `tx`, without momentum and decay.
    num_examples: n; batches carry `index` in [0, n).
    weigher: of losses [b, 1], by default `meta.weigher()`.
    weigher_tx: its optimizer, by default Adam at 1e-3 with decay 1e-4.
    loss: of each example.
    shards: of the table of weights: `data_shards(n, batch_size)` for `fit`, 1
      in a loop of one's own.

  Returns:
    A method over batches of `x`, `labels`, `weight`, `index`, and of `x_meta`,
    `labels_meta` and maybe `weight_meta` and `index_meta`: a clean batch of any
    size. `state.extra` is a `Weighed`. Metrics: `loss`, `meta_loss`,
    `mean_weight`, and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if the batch lacks a stream, or has it in a wrong
      form.

  Reference: Shu, Xie, Yi, Zhao, Zhou, Xu and Meng, "Meta-Weight-Net: Learning
  an Explicit Mapping For Sample Weighting", NeurIPS 2019, arXiv 1902.07379. The
  official code is followed: weights are not normalized over the batch.
  """
  net = meta.weigher() if weigher is None else weigher
  net_tx = weigher_optimizer() if weigher_tx is None else weigher_tx

  def init(key: Key) -> State:
    key_model, key_weigher = jax.random.split(key)
    params, stats = model.init(key_model)
    omega, omega_stats = net.init(key_weigher)
    extra = Weighed(
      omega,
      omega_stats,
      net_tx.init(omega),
      virtual_tx.init(params),
      pack_rows(jnp.zeros(num_examples), shards),
    )
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    old = state.extra
    train = meta.read_stream(batch, key)
    clean = meta.read_stream(batch, key, meta=True)
    run = meta.passing(model, loss, state.stats, train)
    run_clean = meta.passing(model, loss, state.stats, clean)

    def weigh(omega: Params, passed: meta.Passed) -> tuple[Array, Stats]:
      values, there = lax.stop_gradient((passed.losses, passed.weight))
      stats = old.weigher_stats
      return meta.weigh(net, omega, stats, values, train.keys, there)

    def loss_fn(params: Params, omega: Params) -> tuple[Array, PyTree]:
      passed = run(params)
      weights, _ = weigh(omega, passed)
      mean = global_mean(weights * passed.losses, passed.weight)
      return mean, (passed, weights)

    def meta_fn(params: Params) -> tuple[Array, None]:
      return run_clean(params).mean, None

    def objective(omega: Params) -> tuple[Array, Stats]:
      weights, stats = weigh(omega, passed)
      return global_mean(slopes * weights, passed.weight), stats

    (_, (passed, _)), gradient = global_grad(loss_fn)(state.params, old.weigher)
    moved, virtual_opt, pull = meta.virtual_step(
      gradient, state.params, old.virtual_opt, virtual_tx
    )
    (meta_loss, _), by_moved = global_grad(meta_fn)(moved)
    slopes = meta.weight_gradient(
      lambda params: run(params).losses, state.params, pull(by_moved)
    )
    (_, omega_stats), by_omega = global_grad(objective)(old.weigher)
    omega, omega_stats, omega_opt = meta.descend(
      net_tx, by_omega, old[:3], omega_stats, meta.all_finite(by_omega)
    )
    (value, (passed, weights)), gradient = global_grad(loss_fn)(
      state.params, omega
    )
    now = state.params, state.stats, state.opt
    params, stats, opt = meta.descend(
      tx, gradient, now, passed.stats, meta.all_finite(gradient)
    )
    table = meta.remember(old.weights, batch['index'], weights, passed.weight)
    extra = Weighed(omega, omega_stats, omega_opt, virtual_opt, table)
    metrics = {
      'loss': value,
      'meta_loss': meta_loss,
      'mean_weight': global_mean(weights, passed.weight),
      **unplaced(extra, batch),
    }
    return State(state.step + 1, params, stats, opt, extra), metrics

  return Method(init, step, predict_with(model))


def weigher_optimizer() -> optax.GradientTransformation:
  """That of the official code: Adam, rate 1e-3, weight decay 1e-4."""
  return optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))
