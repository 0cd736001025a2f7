"""Early-learning regularization (ELR)."""

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
  Scalar,
  State,
  Table,
  check,
  check_batch,
  global_mean,
  pack_rows,
  read_rows,
  unpack_rows,
  write_rows,
)
from jnl.methods._published import Case, Settings
from jnl.steps import (
  from_loss,
  labels_of,
  model_keys,
  training_pass,
)


def elr(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  beta: Scalar = 0.7,
  lam: Scalar = 3.0,
  shards: int = 1,
  dtype: DTypeLike = jnp.float32,
) -> Method:
  r"""Early-learning regularization (ELR): cross-entropy and a penalty.

  What the network believed early on holds it back: a moving average of its own
  predictions is kept for each training example, and agreement is rewarded:

  .. math::
    t_i \leftarrow \beta t_i + (1 - \beta) \bar p_i, \qquad
    L = \operatorname{mean}_i \left[ -\log \mathrm{softmax}(z_i)_{y_i}
        + \lambda \log(1 - \langle t_i, p_i \rangle) \right]

  with p the softmax clipped to [1e-4, 1 - 1e-4], p-bar the same renormalized,
  and t the average after its update. See `losses.elr_targets` and
  `losses.elr_penalty`.

  Args:
    model: the network.
    tx: the optimizer.
    num_examples: n; batches carry `index` in [0, n).
    num_classes: c.
    beta: [0, 1), memory of the average. The paper: .7 on CIFAR-10 with
      symmetric noise, .9 with asymmetric noise and on CIFAR-100.
    lam: >= 0, weight of the penalty. The paper: 3, 1, and 7 on CIFAR-100.
    shards: of the table of averages: `data_shards(n, batch_size)` for `fit`, 1
      in a loop of one's own.
    dtype: of that table: bfloat16 halves it. What is computed stays float32.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`. `state.extra`
    is the Table of averages, [n, c], zeros at first. Metrics: `loss`,
    `cross_entropy`, `penalty`, and `unplaced`, see `base.unplaced`. Inside jit
    a label that is out of range (-1, or c) makes the loss NaN, and all that
    follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if `beta` or `lam` is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = elr(model, optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.extra.rows.shape, round(float(metrics['cross_entropy']), 3)
  ((1, 4, 2), 0.693)

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151. Clipping and renormalization are in the official code and not in
  the paper; the code is followed.
  """
  check((beta >= 0) & (beta < 1), f'beta must lie in [0, 1), got {beta}')
  check(lam >= 0, f'lam must not be negative, got {lam}')

  def init_extra(key: Key) -> Table:
    del key
    return pack_rows(jnp.zeros((num_examples, num_classes), dtype), shards)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    index, weight = batch['index'], jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    old = read_rows(state.extra, index).astype(jnp.float32)
    targets = losses.elr_targets(old, outputs.logits, beta=beta)
    cross_entropy = global_mean(
      losses.ce(outputs.logits, labels_of(batch)), weight
    )
    penalty = global_mean(losses.elr_penalty(outputs.logits, targets), weight)
    extra = write_rows(state.extra, index, targets, where=weight > 0)
    metrics = {'cross_entropy': cross_entropy, 'penalty': penalty}
    return cross_entropy + lam * penalty, Aux(stats, extra, metrics)

  return from_loss(loss_fn, model, tx, init_extra=init_extra)


def mislabeled(state: State, labels: Array) -> Array:
  """The labels that the memory of ELR, or of ELR+, contradicts.

  Args:
    state: of a method built by `elr`, or by `elr_plus`, of whose two memories
      the mean t is asked.
    labels: [n] int, the labels trained on, in index order.

  Returns:
    [n] bool, `argmax t_i != labels_i`; False for examples never seen, whose
    memory is empty.
  """
  alone = isinstance(state.extra, Table)
  table = state.extra if alone else state.extra.targets
  targets = unpack_rows(table, labels.shape[0])
  targets = targets if alone else jnp.mean(targets, axis=1)
  seen = jnp.sum(targets, axis=-1) > 0
  return seen & (jnp.argmax(targets, axis=-1) != labels)


def _published(
  dataset: str, noise: str, rates: tuple[float, ...], beta: float, lam: float
) -> dict[Case, Settings]:
  ten = dataset == 'cifar10'
  settings = Settings(
    source='arXiv 2007.00151, table 1 (ELR, no cosine) and appendix G.4',
    method='elr',
    net='resnet34',
    epochs=120 if ten else 150,
    batch_size=128,
    learning_rate=0.02,
    weight_decay=1e-3,
    drops=(40, 80) if ten else (80, 120),
    drop=0.01,
    views='crop_flip',
    arguments={'beta': beta, 'lam': lam},
  )
  return {(dataset, noise, rate): settings for rate in rates}


_SYMMETRIC, _ASYMMETRIC = (0.2, 0.4, 0.6, 0.8), (0.1, 0.2, 0.3, 0.4)
SETTINGS = {
  **_published('cifar10', 'symmetric_inclusive', _SYMMETRIC, 0.7, 3.0),
  **_published('cifar10', 'cifar10_asymmetric_in_place', _ASYMMETRIC, 0.9, 1.0),
  **_published('cifar100', 'symmetric_inclusive', _SYMMETRIC, 0.9, 7.0),
  **_published('cifar100', 'cifar100_index_blocks', _ASYMMETRIC, 0.9, 7.0),
}
"""By data set, noise and rate; symmetric noise was drawn in fixed counts."""
