"""Peer loss: cross-entropy less that of unrelated inputs and labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
  check_batch,
  global_mean,
  shuffle_within,
)
from jnl.inputs import check_range
from jnl.methods._cores import of_epoch
from jnl.methods._published import Case, Settings
from jnl.steps import (
  check_losses,
  from_loss,
  labels_of,
  model_keys,
  training_pass,
)

PEER_TAG = 3
"""Tag of the key that draws the peers."""
UNIFORM = (
  (20, 0.0),
  (39, 0.1),
  (40, 1.0),
  (89, 2.0),
  (90, 2.0),
  (139, 2.5),
  (140, 2.5),
  (239, 3.3),
  (240, 3.3),
  (339, 5.0),
)
"""The official weights on CIFAR-10 with uniform and random noise, by epoch."""


def peer(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  alpha: Sequence[tuple[Scalar, Scalar]] = UNIFORM,
  offset: Scalar = 1e-5,
) -> Method:
  r"""Peer loss: cross-entropy less that of unrelated inputs and labels.

  A network that answers alike whatever it sees gains nothing by it, and neither
  does one that learns labels by heart; no noise rate need be known:

  .. math::
    L = \frac{1}{1 + \alpha} \operatorname{mean}_i \left[
      -\log(p_{i, y_i} + \epsilon) + \alpha \log(p_{n(i), y_{m(i)}} + \epsilon)
      \right]

  with n and m two independent shuffles of the batch, and alpha growing from
  epoch to epoch. See `losses.peer`.

  The official code takes inputs and labels of peers from two further batches,
  at the price of a second pass; here they are those of the batch itself,
  shuffled within each shard, as mixup does. Of m examples in a shard (b over
  `data_shards(n, b)`), one peer in m is the example's own pair, whose loss is
  subtracted too, so that in the mean the weight is alpha (m - 1) / (m - alpha):
  alpha = 5 acts as 6.8 with m = 16, and from m on the sign turns. So shards
  should have many more examples than alpha is large.

  The official code divides the learning rate by 1 + alpha; here it is the loss,
  which for plain descent is the same. A decay of weights by `tx` keeps its rate
  here and slows down there; momentum weighs gradients of earlier epochs by
  their alpha, not by that of now; and Adam, which takes no notice of a scale,
  steps at its full rate.

  Args:
    model: the network.
    tx: the optimizer.
    steps_per_epoch: n // b.
    alpha: (epoch, weight >= 0) points of a line, as `ramps.piecewise_linear`
      takes them; it is read once an epoch. By default that of the official code
      on CIFAR-10 with uniform noise and 300 epochs, with its leap after epoch
      39. It has to rise before labels are learned by heart.
    offset: epsilon >= 0, which bounds the loss below.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`, without a
    memory. Metrics: `loss`, which falls below 0, `cross_entropy`, of the given
    labels, and `alpha`. Inside jit a label that is out of range (-1, or c)
    makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, the epochs of `alpha` do not rise,
      or a batch lacks an array.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = peer(
  ...   model, optax.sgd(0.1), steps_per_epoch=1, alpha=((0, 0.5),))
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['loss']), 3)  # log(2) (1 - alpha) / (1 + alpha)
  0.231

  Reference: Liu, Guo, "Peer Loss Functions: Learning from Noisy Labels without
  Knowing Noise Rates", ICML 2020, arXiv 1910.03231.
  """
  ramp = of_epoch('alpha', alpha, steps_per_epoch)
  check_range('offset', offset, 0)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    labels, index = labels_of(batch), batch['index']
    weight = jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    first, second = jax.random.split(jax.random.fold_in(key, PEER_TAG))
    weight_now = ramp(state.step)
    values = losses.peer(
      outputs.logits,
      labels,
      shuffle_within(first, index, outputs.logits, where=weight > 0),
      shuffle_within(second, index, labels, where=weight > 0),
      alpha=weight_now,
      offset=offset,
    )
    check_losses(values, weight)
    metrics = {
      'cross_entropy': global_mean(losses.ce(outputs.logits, labels), weight),
      'alpha': weight_now,
    }
    loss = global_mean(values, weight) / (1 + weight_now)
    return loss, Aux(stats, metrics=metrics)

  return from_loss(loss_fn, model, tx)


def _published(
  about: str,
  epochs: int,
  drops: tuple[int, ...],
  weight_decay: float,
  alpha: Sequence[tuple[Scalar, Scalar]],
) -> Settings:
  return Settings(
    source='official multi-class code of arXiv 1910.03231, its uniform and '
    f'random noise; {about}it also rotates images, and momentum starts anew '
    'every epoch',
    method='peer',
    net='preact_resnet18',
    epochs=epochs,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=weight_decay,
    drops=drops,
    views='crop_flip',
    arguments={'alpha': alpha},
  )


SETTINGS: dict[Case, Settings] = {
  ('cifar10', 'symmetric', None): _published(
    '', 300, tuple(range(40, 281, 40)), 1e-4, UNIFORM
  ),
  ('cifar100', 'symmetric', None): _published(
    'from epoch 100 it goes on from the best so far; ',
    250,
    (60, 100),
    5e-4,
    ((99, 0.0), (100, 0.95)),
  ),
}
"""Its files have 18 to 63% of wrong labels on CIFAR-10, 20 and 49 on the other.

Sparse noise, classes taken for each other in pairs, has no function here; its
alpha rises to 1, 2, 5, 10 at epochs 39, 89, 139, 239.
"""
