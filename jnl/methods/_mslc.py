"""Meta soft label corrector (MSLC)."""

from collections.abc import Callable
from functools import partial
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
  write_rows,
)
from jnl.methods._meta import (
  Learners,
  Passed,
  Run,
  forward,
  look_ahead,
  read_streams,
  update_network,
  update_weigher,
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
    size, `fit(streams={'meta': Stream(clean, batch_size)})`. `state.extra` is a
    `Purified`. Metrics: `loss`, `meta_loss`, `alpha` and `beta`, their means,
    and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if `warmup` is negative, or if the batch lacks a
      stream or has it in a wrong form.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> tx = optax.sgd(0.1)
  >>> method = mslc(model, tx, optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 0]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2),
  ...   'x_meta': jnp.eye(2), 'labels_meta': jnp.array([0, 1])}
  >>> key = jax.random.key(0)  # of the first step only the shapes, in no time
  >>> state, metrics = jax.eval_shape(
  ...   lambda: method.step(method.init(key), batch, key))
  >>> sorted(metrics), state.extra.labels.rows.shape
  (['alpha', 'beta', 'loss', 'meta_loss', 'unplaced'], (1, 4, 2))

  Reference: Wu, Shu, Xie, Zhao, Meng, "Learning to Purify Noisy Labels via Meta
  Soft Label Corrector", AAAI 2021, arXiv 2008.00627.
  """
  check(warmup >= 0, f'warmup must not be negative, got {warmup}')
  net = meta.weigher() if weigher is None else weigher
  net_tx = weigher_optimizer() if weigher_tx is None else weigher_tx

  def init(key: Key) -> State:
    key_model, *keys = jax.random.split(key, 3)
    params, stats = model.init(key_model)
    (alpha, alpha_stats), (beta, beta_stats) = map(net.init, keys)
    nets, nets_stats = (alpha, beta), (alpha_stats, beta_stats)
    labels = jnp.zeros((num_examples, num_classes), dtype)
    extra = Purified(
      nets,
      nets_stats,
      net_tx.init(nets),
      virtual_tx.init(params),
      pack_rows(labels, shards),
      pack_rows(jnp.zeros(num_examples), shards),
    )
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  step = partial(_step, Learners(model, tx, net, net_tx), virtual_tx, warmup)
  return Method(init, step, predict_with(model))


class _Parts(NamedTuple):
  """The losses of a pass, and what they are losses of.

  Attributes:
    values: [3, b], of the label, the memory and the prediction.
    soft: [b, c], the soft label in memory, or else the prediction.
    passed: the pass.
  """

  values: Array
  soft: Array
  passed: Passed


class _Mixed(NamedTuple):
  """A mixture of them: trust [b] in the label, and in the memory."""

  parts: _Parts
  alpha: Array
  beta: Array


_Part = Callable[[Params], _Parts]
_Trust = Callable[[PyTree, _Parts], tuple[Array, Array, PyTree]]


def _step(
  learners: Learners,
  virtual_tx: optax.GradientTransformation,
  warmup: Scalar,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[State, Metrics]:
  model, tx, net, net_tx = learners
  old, warm = state.extra, state.step < warmup
  train, clean = read_streams(batch, key)
  run = partial(forward, model, losses.ce, state.stats, train)
  run_clean = partial(forward, model, losses.ce, state.stats, clean)
  known = read_rows(old.labels, batch['index']).astype(jnp.float32)
  part = partial(_part, run, train.labels, known)
  trust = partial(_trust, net, old.nets_stats, train.keys, warm)
  mixed = partial(_mixed_loss, part, trust)

  # A virtual step with the weighers as they are; what the clean loss says.
  (_, (_, first)), gradient = global_grad(mixed)(state.params, old.nets)
  virtual_opt, ahead = look_ahead(
    virtual_tx, gradient, state, run_clean, lambda params: part(params).values
  )

  # The weighers descend the clean loss, ...
  objective = partial(_objective, trust, first.parts, ahead.slopes)
  nets = update_weigher(net_tx, objective, old[:3], ~warm)

  # ... the network its own with the new mixture, which is remembered.
  loss_fn = partial(mixed, nets=nets[0])
  (value, (passed, found)), now, _ = update_network(tx, loss_fn, state)
  tables = _remember(old, batch['index'], train.labels, warm, found)

  metrics = {
    'loss': value,
    'meta_loss': ahead.meta_loss,
    'alpha': global_mean(found.alpha, passed.weight),
    'beta': global_mean(found.beta, passed.weight),
    **unplaced(tables, batch),
  }
  extra = Purified(*nets, virtual_opt, *tables)
  return State(state.step + 1, *now, extra), metrics


def _part(run: Run, labels: Array, known: Array, params: Params) -> _Parts:
  passed = run(params)
  probs = jax.nn.softmax(lax.stop_gradient(passed.logits))
  seen = jnp.sum(known, axis=1, keepdims=True) > 0
  soft = jnp.where(seen, known, probs)
  values = meta.mslc_losses(passed.logits, labels, soft)
  # `passed` knows which of them are not finite, from the first.
  return _Parts(jnp.where(passed.weight > 0, values, 0), soft, passed)


def _trust(
  net: Model,
  stats: tuple[Stats, Stats],
  keys: Key,
  warm: Array,
  nets: PyTree,
  parts: _Parts,
) -> tuple[Array, Array, PyTree]:
  """Alpha and beta [b], without a gradient by the network; new statistics."""
  values, there = lax.stop_gradient((parts.values, parts.passed.weight))
  (alpha, alpha_stats), (beta, beta_stats) = (
    meta.weigh(net, nets[i], stats[i], values[i], keys, there) for i in range(2)
  )
  return jnp.where(warm, 1, alpha), beta, (alpha_stats, beta_stats)


def _mixed_loss(
  part: _Part, trust: _Trust, params: Params, nets: PyTree
) -> tuple[Array, tuple[Passed, _Mixed]]:
  parts = part(params)
  alpha, beta, _ = trust(nets, parts)
  mixed = meta.mslc_mix(parts.values, alpha, beta)
  loss = global_mean(mixed, parts.passed.weight)
  return loss, (parts.passed, _Mixed(parts, alpha, beta))


def _objective(
  trust: _Trust, parts: _Parts, slopes: Array, nets: PyTree
) -> tuple[Array, PyTree]:
  """The clean loss after the virtual step, to first order in the mixture."""
  alpha, beta, stats = trust(nets, parts)
  slope = meta.mslc_mix(slopes, alpha, beta)
  return global_mean(slope, parts.passed.weight), stats


def _remember(
  old: Purified, index: Array, labels: Array, warm: Array, found: _Mixed
) -> tuple[Table, Table]:
  """The tables of soft labels and of alphas, with those of the batch."""
  (_, soft, passed), alpha, beta = found
  mixed = meta.mslc_labels(passed.logits, labels, soft, alpha, beta)
  soft = jnp.where(warm, jax.nn.softmax(passed.logits), mixed)
  there = passed.weight > 0
  return (
    write_rows(old.labels, index, soft, where=there),
    write_rows(old.weights, index, alpha, where=there),
  )
