"""PRODEN: the true label is identified among the candidates in training."""

import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from jnl import losses
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Params,
  State,
  Table,
  check_batch,
  global_mean,
  pack_rows,
  read_rows,
  write_rows,
)
from jnl.steps import from_loss, model_keys, training_pass


def proden(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  shards: int = 1,
  dtype: DTypeLike = jnp.float32,
) -> Method:
  r"""PRODEN: cross-entropy against confidences that follow the predictions.

  .. math:: \ell_i = -\sum_k w_{ik} \log p_{ik},\qquad
    w_{ik} \leftarrow p_{ik}\, 1[k \in S_i] \Big/ \sum_{j \in S_i} p_{ij}

  after each step; the confidence of an example is of its last visit, and
  uniform over its candidates before the first. (With that of the present
  prediction the gradient would be that of `losses.cc`.)

  Args:
    model: the network.
    tx: its optimizer.
    num_examples: n, of the training set.
    num_classes: c.
    shards: of the memory, `data_shards(n, batch_size)` under `fit`.
    dtype: of the memory: bfloat16 halves it.

  Returns:
    A method over batches of `x`, `candidates` [b, c] bool, `weight` and
    `index`. `state.extra` is the `Table` of confidences, zeros for an example
    not seen yet. Metrics: `loss`, and `unplaced`, see
    `base.unplaced`.

  Raises:
    ValueError: if a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = proden(model, optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> batch = {'x': jnp.eye(2),
  ...   'candidates': jnp.array([[True, False], [True, True]]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.extra.rows.tolist()  # the confidences of examples 0 and 3
  [[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.5]]]

  Reference: Lv, Xu, Feng, Niu, Geng, Sugiyama, "Progressive Identification of
  True Labels for Partial-Label Learning", ICML 2020, arXiv 2002.08053.
  """

  def init_extra(key: Key) -> Table:
    del key
    return pack_rows(jnp.zeros((num_examples, num_classes), dtype), shards)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'candidates', 'weight', 'index')
    candidates, weight = batch['candidates'], jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    old = read_rows(state.extra, batch['index']).astype(jnp.float32)
    seen = jnp.sum(old, axis=-1, keepdims=True) > 0
    size = jnp.maximum(jnp.sum(candidates, axis=-1, keepdims=True), 1)
    confidence = jnp.where(seen, old, candidates / size)
    loss = global_mean(losses.proden(outputs.logits, confidence), weight)
    new = losses.proden_confidence(outputs.logits, candidates)
    extra = write_rows(state.extra, batch['index'], new, where=weight > 0)
    return loss, Aux(stats, extra)

  return from_loss(loss_fn, model, tx, init_extra=init_extra)
