"""Learning to reweight (L2RW)."""

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
  Stats,
  Table,
  global_grad,
  global_mean,
  pack_rows,
  unplaced,
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
  loss: meta.Loss = losses.ce,
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
    size. `state.extra` is a `Reweighted`. Metrics: `loss`, `meta_loss`,
    `kept`, the share of examples of positive weight, `skipped`, and `unplaced`,
    see `base.unplaced`.

  Raises:
    ValueError, TypeError: if the batch lacks a stream, or has it in a wrong
      form.

  Reference: Ren, Zeng, Yang and Urtasun, "Learning to Reweight Examples for
  Robust Deep Learning", ICML 2018, arXiv 1803.09050. As in the official code,
  the weights are those of a virtual step of plain gradient descent.
  """

  def init(key: Key) -> State:
    params, stats = model.init(key)
    extra = Reweighted(pack_rows(jnp.zeros(num_examples), shards))
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    train = meta.read_stream(batch, key)
    clean = meta.read_stream(batch, key, meta=True)
    run = meta.passing(model, loss, state.stats, train)
    run_clean = meta.passing(model, loss, state.stats, clean)

    def meta_fn(params: Params) -> tuple[Array, None]:
      return run_clean(params).mean, None

    def losses_fn(params: Params) -> tuple[Array, Array]:
      passed = run(params)
      return passed.losses, passed.weight

    def loss_fn(params: Params) -> tuple[Array, Stats]:
      passed = run(params)
      return meta.total(passed.losses, weights), passed.stats

    (meta_loss, _), direction = global_grad(meta_fn)(state.params)
    _, alignment, usable = jax.jvp(
      losses_fn, (state.params,), (direction,), has_aux=True
    )
    weights = meta.l2rw_weights(alignment, usable)
    (value, stats), gradient = global_grad(loss_fn)(state.params)
    kept = global_mean((weights > 0).astype(jnp.float32), usable > 0)
    done = meta.all_finite(gradient) & (kept > 0)
    now = state.params, state.stats, state.opt
    params, stats, opt = meta.descend(tx, gradient, now, stats, done)
    table = state.extra.weights
    extra = Reweighted(meta.remember(table, batch['index'], weights, usable))
    metrics = {
      'loss': value,
      'meta_loss': meta_loss,
      'kept': kept,
      'skipped': 1 - done.astype(jnp.float32),
      **unplaced(extra, batch),
    }
    return State(state.step + 1, params, stats, opt, extra), metrics

  return Method(init, step, predict_with(model))
