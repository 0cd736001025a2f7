"""Learning to reweight (L2RW)."""

from functools import partial
from typing import NamedTuple

import jax
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
  Table,
  global_grad,
  global_mean,
  pack_rows,
  unplaced,
  write_rows,
)
from jnl.methods._meta import (
  Loss,
  Passed,
  Run,
  forward,
  mean_loss,
  read_streams,
  update_network,
)
from jnl.steps import predict_with


class Reweighted(NamedTuple):
  """The memory of L2RW, for people to look at.

  Attributes:
    weights: [n], the last weight of each example, among those of its batch;
      zeros at first.
  """

  weights: Table


def l2rw(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  loss: Loss = losses.ce,
  shards: int = 1,
) -> Method:
  r"""Each step learns from the examples that a clean batch agrees with.

  .. math:: L = \sum_i w_i \ell_i(\theta), \qquad
    w_i \propto \max(\langle \nabla M(\theta), \nabla \ell_i(\theta) \rangle, 0)

  with M the mean loss of the meta batch; the weights have the sum one. If no
  example agrees, the step is skipped: parameters, optimizer and statistics stay
  as they are. All inner products are one Jacobian-vector product.

  A step is a pass over the meta batch forward and back, and over the training
  batch forward, along a tangent, and back: 2.3 times a plain step if both are
  of one size (in operations, backward passes counting twice).

  Args:
    model: the network.
    tx: the optimizer. The paper's direction of gradient descent decides about
      the weights, whatever `tx` does with them.
    num_examples: n; batches carry `index` in [0, n).
    loss: of each example.
    shards: of the table of weights: `data_shards(n, batch_size)` for `fit`, 1
      in a loop of one's own.

  Returns:
    A method over batches of `x`, `labels`, `weight`, `index`, and of `x_meta`,
    `labels_meta` and maybe `weight_meta` and `index_meta`: a clean batch of any
    size, `fit(streams={'meta': Stream(clean, batch_size)})`. `state.extra` is a
    `Reweighted`. Metrics: `loss`, `meta_loss`, `kept`, the share of examples of
    positive weight, `skipped`, and `unplaced`, see `base.unplaced`.

  Raises:
    ValueError, TypeError: if the batch lacks a stream, or has it in a wrong
      form.

  >>> import jax
  >>> from jnl.base import Outputs, unpack_rows
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = l2rw(model, optax.sgd(0.1), num_examples=4)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 0]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2),
  ...   'x_meta': jnp.eye(2), 'labels_meta': jnp.array([0, 1])}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> unpack_rows(state.extra.weights, 4).tolist()  # 3 has a wrong label
  [1.0, 0.0, 0.0, 0.0]

  Reference: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust
  Deep Learning", ICML 2018, arXiv 1803.09050. As in the official code, the
  weights are those of a virtual step of plain gradient descent.
  """

  def init(key: Key) -> State:
    params, stats = model.init(key)
    extra = Reweighted(pack_rows(jnp.zeros(num_examples), shards))
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    train, clean = read_streams(batch, key)
    run = partial(forward, model, loss, state.stats, train)
    run_clean = partial(forward, model, loss, state.stats, clean)

    # Which examples agree with the clean gradient, in one product.
    (meta_loss, _), direction = global_grad(partial(mean_loss, run_clean))(
      state.params
    )
    _, alignment, usable = jax.jvp(
      partial(_losses, run), (state.params,), (direction,), has_aux=True
    )
    weights = meta.l2rw_weights(alignment, usable)
    kept = global_mean((weights > 0).astype(jnp.float32), usable > 0)

    # The network learns from these.
    loss_fn = partial(_weighted_loss, run, weights)
    (value, _), now, done = update_network(tx, loss_fn, state, kept > 0)

    # What is remembered, for people to look at, and reported.
    metrics = {
      'loss': value,
      'meta_loss': meta_loss,
      'kept': kept,
      'skipped': 1 - done.astype(jnp.float32),
      **unplaced(state.extra, batch),
    }
    extra = Reweighted(
      write_rows(state.extra.weights, batch['index'], weights, where=usable > 0)
    )
    return State(state.step + 1, *now, extra), metrics

  return Method(init, step, predict_with(model))


def _losses(run: Run, params: Params) -> tuple[Array, Array]:
  """[b], and who has any."""
  passed = run(params)
  return passed.losses, passed.weight


def _weighted_loss(
  run: Run, weights: Array, params: Params
) -> tuple[Array, tuple[Passed, tuple[()]]]:
  passed = run(params)
  return meta.total(passed.losses, weights), (passed, ())
