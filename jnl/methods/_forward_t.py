"""Forward correction by a transition matrix that is given, or estimated."""

import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from jnl import losses
from jnl import transition as estimators
from jnl.base import Array, Method, Model, Params, Scalar
from jnl.inputs import read_transition
from jnl.methods._estimated import (
  Estimated,
  Seen,
  check_estimate,
  train_by,
  train_by_estimate,
)
from jnl.methods._published import Case, Settings


def forward_t(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  transition: ArrayLike | None = None,
  warmup: int = 20,
  quantile: Scalar | None = 0.97,
) -> Method:
  r"""Forward correction: the network is read through a transition matrix.

  .. math:: L = \operatorname{mean}_i -\log (p_i T)_{y_i}

  where T is given, or estimated: after `warmup` epochs of cross-entropy the
  anchor of each class says what its labels turn into (`transition.anchor`), and
  a new network is trained by this T. See `losses.forward`.

  The warm-up is to end before the network memorizes labels, where T becomes the
  identity; the epoch of the best accuracy on noisy labels that are held out is
  a good one. The paper's code takes the network of least loss on such labels.
  On digits (1,200 of them, 40% symmetric noise, 12 steps an epoch, 3 seeds) the
  identity is .40 off the true T, in total variation, and the estimate .16 after
  5 epochs, .14 after 10, .18 after 20 and .30 after 60.

  Args:
    model: the network.
    tx: the optimizer. It starts again after the estimate, its schedules too.
    num_examples: n.
    num_classes: c.
    transition: T, [c, c], rows on the simplex, `T[i, j] = P(noisy = j | clean =
      i)`: trained by it from the first epoch on, without a warm-up.
    warmup: epochs before the estimate, >= 1.
    quantile: in (1 - 1 / c, 1], the anchor is the example whose probability is
      the largest below this quantile; None for the largest of all, as the
      paper's code has it for 100 classes.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`. `state.extra`
    is an `Estimated`; `estimated_transition` gives T. The refit estimates; in a
    loop of one's own call it once. Metrics: `loss`, `kept`, the mean of T_ii,
    and `guessed`, the share of classes that were no example's likeliest, so
    that their row of T is a guess. Inside jit a label that is out of range (-1,
    or c) makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if `transition` is not [c, c] or has rows off the simplex, a
      number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = forward_t(
  ...   model, optax.sgd(0.1), num_examples=4, num_classes=2,
  ...   transition=[[0.75, 0.25], [0.0, 1.0]])
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['kept']), 3), round(float(metrics['loss']), 3)
  (0.875, 0.725)

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """

  def estimate(seen: Seen) -> estimators.Anchors:
    return estimators.anchor(seen.probs, quantile=quantile, mask=seen.there)

  if transition is not None:
    given = read_transition(transition, num_classes).astype(jnp.float32)
    return train_by(forward_loss, model, tx, given)
  check_estimate(warmup, quantile, num_classes)
  return train_by_estimate(
    forward_loss,
    model,
    tx,
    estimate,
    num_examples=num_examples,
    num_classes=num_classes,
    warmup=warmup,
    restart=True,
  )


def forward_loss(
  logits: Array, labels: Array, params: Params, extra: Estimated
) -> Array:
  """`losses.forward` by the matrix in the memory."""
  del params
  return losses.forward(logits, labels, extra.transition)


# --- published settings ------------------------------------------------------


def _published(
  epochs: int,
  decay: float,
  drops: tuple[int, ...],
  quantile: float | None,
) -> Settings:
  """Two trainings, one after the other; Keras' L2 has no half."""
  depth = 32 if quantile else 44
  return Settings(
    source='code of Patrini et al., arXiv 1609.03683 (there CIFAR '
    f'ResNet-{depth}; T is of the epoch of least validation loss)',
    method='forward_t',
    net='wide_resnet28_2',
    epochs=2 * epochs,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=2 * decay,
    drops=drops,
    views='crop_flip',
    arguments={'warmup': epochs, 'quantile': quantile},
  )


_TEN = _published(120, 1e-4, (41, 81), 0.97)
_HUNDRED = _published(150, 1e-3, (81, 121), None)
SETTINGS: dict[Case, Settings] = {
  ('cifar10', 'symmetric', None): _TEN,
  ('cifar10', 'cifar10_asymmetric', None): _TEN,
  ('cifar100', 'symmetric', None): _HUNDRED,
  ('cifar100', 'cifar100_index_blocks', None): _HUNDRED,
}
"""Of any rate: the code has one setting for a data set."""
