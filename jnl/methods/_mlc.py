"""Meta label correction (MLC)."""

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
  check,
  global_grad,
  global_mean,
  pack_rows,
  unplaced,
)
from jnl.steps import predict_with, training_pass


class Corrected(NamedTuple):
  """The memory of MLC.

  Attributes:
    corrector: parameters of the corrector.
    corrector_stats: its statistics.
    corrector_opt: the state of its optimizer.
    gradient: what its meta gradient has come to since its last step.
    weights: [n], what its label last left to the given class of each example;
      zeros at first.
  """

  corrector: Params
  corrector_stats: Stats
  corrector_opt: optax.OptState
  gradient: Params
  weights: Table


def mlc(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_features: int,
  num_classes: int,
  gradient_steps: int = 1,
  corrector: Model | None = None,
  corrector_tx: optax.GradientTransformation | None = None,
  shards: int = 1,
) -> Method:
  r"""A second network corrects the labels that the first one learns from.

  .. math:: L = -\operatorname{mean}_i \sum_k q_\alpha(h_i, y_i)_k
    \log \mathrm{softmax}(z_i)_k, \qquad
    \theta' = \theta + u(\nabla_\theta L)

  with h the features of the network, which the corrector sees and does not
  change. The corrector descends the clean loss M(theta'). Over T steps its
  gradients add up, that of the last step times the discount

  .. math:: D_t = \nabla_\alpha M(\theta_{t+1}) + \gamma_t D_{t-1}, \qquad
    \gamma = \frac{\langle (I + \partial u/\partial g)\, g', g \rangle}
    {\|g\|^2}

  (`meta.look_ahead_discount`), g and g' the gradients of M before and after the
  step; then it takes one. The virtual step is the step itself, with the
  momentum and the decay of `tx`.

  A step is a pass forward and back over the clean batch (two of them if T > 1),
  and over the training batch forward, along a tangent, and back.

  Args:
    model: the network; its features are [b, d].
    tx: its optimizer. The official scripts: SGD with momentum .9 and decay
      5e-4, or Adam at 3e-4.
    num_examples: n; batches carry `index` in [0, n).
    num_features: d.
    num_classes: c.
    gradient_steps: T >= 1.
    corrector: of `(features, labels)`, by default `meta.corrector(d, c)`.
    corrector_tx: its optimizer, by default AMSGrad at 3e-5.
    shards: of the table: `data_shards(n, batch_size)` for `fit`, 1 in a loop of
      one's own.

  Returns:
    A method over batches of `x`, `labels`, `weight`, `index`, and of `x_meta`,
    `labels_meta` and maybe `weight_meta` and `index_meta`: a clean batch of any
    size. `state.extra` is a `Corrected`. Metrics: `loss`, `meta_loss` (after
    the step), `kept`, the mean of what is left to the given class, `discount`,
    and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if an argument is out of range, or if the batch lacks
      a stream or has it in a wrong form.

  Reference: Zheng, Awadallah and Dumais, "Meta Label Correction for Noisy Label
  Learning", AAAI 2021, arXiv 1911.03809. The official code also has a mode in
  which half of the clean batch is trained on; it is not here.
  """
  check(
    gradient_steps >= 1,
    f'gradient_steps must be at least 1, got {gradient_steps}',
  )
  default = meta.corrector(num_features, num_classes)
  net = default if corrector is None else corrector
  net_tx = optax.amsgrad(3e-5) if corrector_tx is None else corrector_tx

  def init(key: Key) -> State:
    key_model, key_corrector = jax.random.split(key)
    params, stats = model.init(key_model)
    alpha, alpha_stats = net.init(key_corrector)
    extra = Corrected(
      alpha,
      alpha_stats,
      net_tx.init(alpha),
      jax.tree.map(jnp.zeros_like, alpha),
      pack_rows(jnp.zeros(num_examples), shards),
    )
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    old = state.extra
    train = meta.read_stream(batch, key)
    clean = meta.read_stream(batch, key, meta=True)
    run = meta.passing(model, losses.ce, state.stats, train)
    run_clean = meta.passing(model, losses.ce, state.stats, clean)

    def correct(alpha: Params, passed: meta.Passed) -> tuple[Array, Stats]:
      features, there = lax.stop_gradient((passed.features, passed.weight))
      x, stats = (features, train.labels), old.corrector_stats
      outputs, stats = training_pass(net, alpha, stats, x, train.keys, there)
      return jax.nn.softmax(outputs.logits), stats

    def loss_fn(params: Params) -> tuple[Array, PyTree]:
      passed = run(params)
      _check_features(passed.features, num_features)
      labels, _ = correct(old.corrector, passed)
      values = losses.ce(passed.logits, labels)
      return global_mean(values, passed.weight), (passed, labels)

    def meta_fn(params: Params) -> tuple[Array, None]:
      return run_clean(params).mean, None

    def objective(alpha: Params) -> tuple[Array, Stats]:
      labels, stats = correct(alpha, passed)
      slope = -jnp.sum(labels * slopes, axis=-1)
      return global_mean(slope, passed.weight), stats

    (value, (passed, labels)), gradient = global_grad(loss_fn)(state.params)
    params, opt, pull = meta.virtual_step(gradient, state.params, state.opt, tx)
    (meta_loss, _), by_moved = global_grad(meta_fn)(params)
    direction = pull(by_moved)
    slopes = meta.weight_gradient(
      lambda params: jax.nn.log_softmax(run(params).logits),
      state.params,
      direction,
    )
    (_, alpha_stats), by_alpha = global_grad(objective)(old.corrector)
    discount = jnp.zeros(())
    if gradient_steps > 1:
      _, before = global_grad(meta_fn)(state.params)
      discount = meta.look_ahead_discount(before, by_moved, direction)
      by_alpha = jax.tree.map(
        lambda g, last: g + discount * last, by_alpha, old.gradient
      )
    alpha, alpha_opt, left = _corrector_step(
      by_alpha, old, net_tx, (state.step + 1) % gradient_steps == 0
    )
    params, stats, opt, alpha, alpha_stats, alpha_opt, left = meta.settle(
      meta.all_finite((params, by_alpha)),
      (params, passed.stats, opt, alpha, alpha_stats, alpha_opt, left),
      (state.params, state.stats, state.opt, *old[:4]),
    )
    kept = jnp.take_along_axis(
      labels, train.labels[:, None], axis=1, mode='clip'
    )[:, 0]
    table = meta.remember(old.weights, batch['index'], kept, passed.weight)
    metrics = {
      'loss': value,
      'meta_loss': meta_loss,
      'kept': global_mean(kept, passed.weight),
      'discount': discount,
      **unplaced(table, batch),
    }
    extra = Corrected(alpha, alpha_stats, alpha_opt, left, table)
    return State(state.step + 1, params, stats, opt, extra), metrics

  return Method(init, step, predict_with(model))


def _check_features(features: Array, num_features: int) -> None:
  check(
    features.ndim == 2 and features.shape[1] == num_features,
    f'features of the network must be [b, num_features = {num_features}], got '
    f'{features.shape}',
  )


def _corrector_step(
  gradient: Params,
  old: Corrected,
  tx: optax.GradientTransformation,
  due: Array,
) -> tuple[Params, optax.OptState, Params]:
  """One step of the corrector if it is due; else its gradient is kept."""
  updates, opt = tx.update(gradient, old.corrector_opt, old.corrector)
  moved = optax.apply_updates(old.corrector, updates)
  empty = jax.tree.map(jnp.zeros_like, gradient)
  return meta.settle(
    due, (moved, opt, empty), (old.corrector, old.corrector_opt, gradient)
  )
