"""Meta-Weight-Net (MWN)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
  State,
  Stats,
  Table,
  global_grad,
  global_mean,
  pack_rows,
  unplaced,
  write_rows,
)
from jnl.methods._meta import (
  Learners,
  Loss,
  Passed,
  Run,
  forward,
  look_ahead,
  read_streams,
  start,
  update_network,
  update_weigher,
)
from jnl.steps import predict_with

_Weigh = Callable[[Params, Passed], tuple[Array, Stats]]
"""From a weigher and a pass to weights [b] and the weigher's statistics."""


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
  loss: Loss = losses.ce,
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
    size, `fit(streams={'meta': Stream(clean, batch_size)})`. `state.extra` is a
    `Weighed`. Metrics: `loss`, `meta_loss`, `mean_weight`, and `unplaced`, see
    `base.unplaced`.

  Raises:
    ValueError, TypeError: if the batch lacks a stream, or has it in a wrong
      form.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> tx = optax.sgd(0.1)
  >>> method = mwn(model, tx, virtual_tx=optax.sgd(0.1), num_examples=4)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 0]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2),
  ...   'x_meta': jnp.eye(2), 'labels_meta': jnp.array([0, 1])}
  >>> key = jax.random.key(0)  # of the first step only the shapes, in no time
  >>> state, metrics = jax.eval_shape(
  ...   lambda: method.step(method.init(key), batch, key))
  >>> sorted(metrics), state.extra.weights.rows.shape
  (['loss', 'mean_weight', 'meta_loss', 'unplaced'], (1, 4))

  Reference: Shu, Xie, Yi, Zhao, Zhou, Xu, Meng, "Meta-Weight-Net: Learning an
  Explicit Mapping For Sample Weighting", NeurIPS 2019, arXiv 1902.07379. The
  official code is followed: weights are not normalized over the batch.
  """
  net = meta.weigher() if weigher is None else weigher
  net_tx = weigher_optimizer() if weigher_tx is None else weigher_tx
  learners = Learners(model, tx, net, net_tx)

  def init(key: Key) -> State:
    network, learned = start(learners, key)
    virtual_opt = virtual_tx.init(network[0])
    table = pack_rows(jnp.zeros(num_examples), shards)
    extra = Weighed(*learned, virtual_opt, table)
    return State(jnp.int32(0), *network, extra)

  step = partial(_step, learners, virtual_tx, loss)
  return Method(init, step, predict_with(model))


def weigher_optimizer() -> optax.GradientTransformation:
  """The weigher's optimizer in official code: Adam, 1e-3, weight decay 1e-4.

  Returns:
    The optimizer, for `mwn(weigher_tx=...)`.
  """
  return optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))


def _step(
  learners: Learners,
  virtual_tx: optax.GradientTransformation,
  loss: Loss,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[State, Metrics]:
  model, tx, net, net_tx = learners
  old = state.extra
  train, clean = read_streams(batch, key)
  run = partial(forward, model, loss, state.stats, train)
  run_clean = partial(forward, model, loss, state.stats, clean)
  weigh = partial(_weigh, net, old.weigher_stats, train.keys)
  weighted = partial(_weighted_loss, run, weigh)

  # A virtual step with the weigher as it is; what the clean loss says of it.
  (_, (first, _)), gradient = global_grad(weighted)(state.params, old.weigher)
  virtual_opt, ahead = look_ahead(
    virtual_tx, gradient, state, run_clean, lambda params: run(params).losses
  )

  # The weigher descends the clean loss, ...
  objective = partial(_objective, weigh, first, ahead.slopes)
  weigher = update_weigher(net_tx, objective, old[:3])

  # ... the network its own with the new weights.
  loss_fn = partial(weighted, omega=weigher[0])
  (value, (passed, weights)), now, _ = update_network(tx, loss_fn, state)

  # What is remembered, and reported.
  table = write_rows(
    old.weights, batch['index'], weights, where=passed.weight > 0
  )
  metrics = {
    'loss': value,
    'meta_loss': ahead.meta_loss,
    'mean_weight': global_mean(weights, passed.weight),
    **unplaced(table, batch),
  }
  extra = Weighed(*weigher, virtual_opt, table)
  return State(state.step + 1, *now, extra), metrics


def _weigh(
  net: Model, stats: Stats, keys: Key, omega: Params, passed: Passed
) -> tuple[Array, Stats]:
  """Weights of a pass, without a gradient by the network."""
  values, there = lax.stop_gradient((passed.losses, passed.weight))
  return meta.weigh(net, omega, stats, values, keys, there)


def _weighted_loss(
  run: Run, weigh: _Weigh, params: Params, omega: Params
) -> tuple[Array, tuple[Passed, Array]]:
  passed = run(params)
  weights, _ = weigh(omega, passed)
  mean = global_mean(weights * passed.losses, passed.weight)
  return mean, (passed, weights)


def _objective(
  weigh: _Weigh, passed: Passed, slopes: Array, omega: Params
) -> tuple[Array, Stats]:
  """The clean loss after the virtual step, to first order in the weights."""
  weights, stats = weigh(omega, passed)
  return global_mean(slopes * weights, passed.weight), stats
