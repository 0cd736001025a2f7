"""Meta label correction (MLC)."""

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
  write_rows,
)
from jnl.methods._meta import (
  Learners,
  Passed,
  Run,
  StreamBatch,
  forward,
  mean_loss,
  read_streams,
  start,
)
from jnl.steps import all_finite, predict_with, select, training_pass

_Correct = Callable[[Params, Passed], tuple[Array, Stats]]
_Loss = Callable[[Params], tuple[Array, PyTree]]


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
    size, `fit(streams={'meta': Stream(clean, batch_size)})`. `state.extra` is a
    `Corrected`. Metrics: `loss`, `meta_loss` (after the step), `kept`, the mean
    of what is left to the given class, `discount`, and `unplaced`, see
    `base.unplaced`.

  Raises:
    ValueError, TypeError: if an argument is out of range, or if the batch lacks
      a stream or has it in a wrong form.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = mlc(model, optax.sgd(0.1), num_examples=4, num_features=2,
  ...   num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 0]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2),
  ...   'x_meta': jnp.eye(2), 'labels_meta': jnp.array([0, 1])}
  >>> key = jax.random.key(0)  # of the first step only the shapes, in no time
  >>> state, metrics = jax.eval_shape(
  ...   lambda: method.step(method.init(key), batch, key))
  >>> sorted(metrics), state.extra.weights.rows.shape
  (['discount', 'kept', 'loss', 'meta_loss', 'unplaced'], (1, 4))

  Reference: Zheng, Awadallah, Dumais, "Meta Label Correction for Noisy Label
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
  learners = Learners(model, tx, net, net_tx)

  def init(key: Key) -> State:
    network, (alpha, alpha_stats, alpha_opt) = start(learners, key)
    gradient = jax.tree.map(jnp.zeros_like, alpha)
    table = pack_rows(jnp.zeros(num_examples), shards)
    extra = Corrected(alpha, alpha_stats, alpha_opt, gradient, table)
    return State(jnp.int32(0), *network, extra)

  step = partial(_step, learners, num_features, gradient_steps)
  return Method(init, step, predict_with(model))


def _step(
  learners: Learners,
  num_features: int,
  gradient_steps: int,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[State, Metrics]:
  model, tx, net, net_tx = learners
  old = state.extra
  train, clean = read_streams(batch, key)
  run = partial(forward, model, losses.ce, state.stats, train)
  clean_loss = partial(
    mean_loss, partial(forward, model, losses.ce, state.stats, clean)
  )
  correct = partial(_correct, net, old.corrector_stats, train)
  loss_fn = partial(_corrected_loss, run, correct, num_features)

  # The step, which is the virtual one too; what it does to the clean loss.
  found, gradient = global_grad(loss_fn)(state.params, old.corrector)
  value, (passed, labels) = found
  virtual = meta.virtual_step(gradient, state.params, state.opt, tx)
  ahead = meta.look_ahead(
    virtual,
    clean_loss,
    lambda params: jax.nn.log_softmax(run(params).logits),
    state.params,
  )

  # The corrector descends that, over so many steps together.
  objective = partial(_objective, correct, passed, ahead.slopes)
  (_, alpha_stats), by_alpha = global_grad(objective)(old.corrector)
  discount = jnp.zeros(())
  if gradient_steps > 1:
    by_alpha, discount = _with_earlier(
      by_alpha, old.gradient, clean_loss, state.params, ahead
    )

  # Both step, or neither does; the corrector if its turn has come.
  done = all_finite((virtual.params, by_alpha))
  network = virtual.params, passed.stats, virtual.opt
  now = select(done, network, (state.params, state.stats, state.opt))
  due = (state.step + 1) % gradient_steps == 0
  corrector = _update_corrector(net_tx, by_alpha, alpha_stats, old, due, done)

  # What is remembered, and reported.
  kept, table = _remember(
    old.weights, batch['index'], train.labels, labels, passed.weight
  )
  metrics = {
    'loss': value,
    'meta_loss': ahead.meta_loss,
    'kept': global_mean(kept, passed.weight),
    'discount': discount,
    **unplaced(table, batch),
  }
  extra = Corrected(*corrector, table)
  return State(state.step + 1, *now, extra), metrics


def _correct(
  net: Model, stats: Stats, train: StreamBatch, alpha: Params, passed: Passed
) -> tuple[Array, Stats]:
  """Soft labels [b, c], without a gradient by the network."""
  features, there = lax.stop_gradient((passed.features, passed.weight))
  x = features, train.labels
  outputs, stats = training_pass(net, alpha, stats, x, train.keys, there)
  return jax.nn.softmax(outputs.logits), stats


def _corrected_loss(
  run: Run, correct: _Correct, num_features: int, params: Params, alpha: Params
) -> tuple[Array, tuple[Passed, Array]]:
  passed = run(params)
  _check_features(passed.features, num_features)
  labels, _ = correct(alpha, passed)
  values = losses.ce(passed.logits, labels)
  return global_mean(values, passed.weight), (passed, labels)


def _objective(
  correct: _Correct, passed: Passed, slopes: Array, alpha: Params
) -> tuple[Array, Stats]:
  """The clean loss after the step, to first order in the labels."""
  labels, stats = correct(alpha, passed)
  slope = -jnp.sum(labels * slopes, axis=-1)
  return global_mean(slope, passed.weight), stats


def _with_earlier(
  gradient: Params,
  earlier: Params,
  clean_loss: _Loss,
  params: Params,
  ahead: meta.LookAhead,
) -> tuple[Params, Array]:
  """The gradient with those of the steps before, and their discount []."""
  _, before = global_grad(clean_loss)(params)
  discount = meta.look_ahead_discount(before, ahead.gradient, ahead.direction)
  return jax.tree.map(
    lambda g, last: g + discount * last, gradient, earlier
  ), discount


def _update_corrector(
  tx: optax.GradientTransformation,
  gradient: Params,
  stats: Stats,
  old: Corrected,
  due: Array,
  done: Array,
) -> tuple[Params, Stats, optax.OptState, Params]:
  """A step of the corrector if it is due; else its gradient is kept."""
  updates, opt = tx.update(gradient, old.corrector_opt, old.corrector)
  moved = optax.apply_updates(old.corrector, updates)
  empty = jax.tree.map(jnp.zeros_like, gradient)
  alpha, opt, left = select(
    due, (moved, opt, empty), (old.corrector, old.corrector_opt, gradient)
  )
  return select(done, (alpha, stats, opt, left), old[:4])


def _remember(
  table: Table, index: Array, given: Array, labels: Array, weight: Array
) -> tuple[Array, Table]:
  """What is left to the given class [b], and the table with it."""
  kept = jnp.take_along_axis(labels, given[:, None], axis=1, mode='clip')[:, 0]
  return kept, write_rows(table, index, kept, where=weight > 0)


def _check_features(features: Array, num_features: int) -> None:
  check(
    features.ndim == 2 and features.shape[1] == num_features,
    f'features of the network must be [b, num_features = {num_features}], got '
    f'{features.shape}',
  )
