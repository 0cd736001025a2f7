"""JoCoR: two networks that are to agree, on the labels where that is easy."""

from jax import lax
import optax

from jnl import select
from jnl.base import Array, Method, Metrics, Model, Scalar
from jnl.inputs import check_range
from jnl.methods._co_teaching import (
  check_ramp,
  how_many,
  learned_from,
  settings_of,
  two_networks,
)
from jnl.methods._published import Case, Settings
from jnl.ramps import forget_rate
from jnl.steps import check_losses


def jocor(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  rate: Scalar = 0.2,
  co_lambda: Scalar = 0.1,
  ramp: Scalar = 10,
) -> Method:
  r"""JoCoR: two networks learn their small joint losses, and to agree.

  .. math::
    \ell_i = (1 - \lambda) (\ell(z^1_i, y_i) + \ell(z^2_i, y_i))
      + \lambda (KL(p^2_i \| p^1_i) + KL(p^1_i \| p^2_i)), \qquad
    L = \operatorname{mean}_{i \in S} \ell_i

  with S the k examples of smallest l, and k the whole part of (1 - R) times the
  number of examples in the batch, on all devices, and at least 1. R, the share
  that is left out, rises from 0 to `rate`, see `ramps.forget_rate`. See
  `select.jocor` for l.

  The official code has one Adam for both, which treats each parameter by itself
  and is the same as one for each.

  Accuracy on digits after 100 epochs of 12 steps, 40% symmetric noise, rate .4,
  2 seeds (cross-entropy 68): with lambda .1, .5 and .9 it is 92.6, 96.0 and
  81.7, and with .9 and a ramp of 30 epochs 96.0.

  Args:
    model: the network; there are two of it, with different parameters at first.
    tx: the optimizer of one network; each has its own.
    steps_per_epoch: of batches, n // batch_size; >= 1.
    rate: tau in [0, 1], what is left out in the end: the share of wrong labels.
      Of asymmetric noise, which leaves half of the classes as they are, the
      code takes half the rate.
    co_lambda: lambda in [0, 1], weight of agreement. The default is that of the
      code, whose authors recommend .5 to .9: .9 on CIFAR-10, .65 at 80% noise,
      .85 on CIFAR-100.
    ramp: >= 0, epochs until then. A large lambda learns labels slowly, and
      needs more of them where epochs have few steps.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`, [b] int or
    [b, c] soft labels. `state.params` are stacked, [2, ...], and `predict` has
    the mean of both logits, those of each in `aux`. Metrics: `loss`; `kept`,
    the share of examples that are learned; `agree`, the share on which both
    predict the same class. Inside jit a label that is out of range (-1, or c)
    makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax, jax.numpy as jnp
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = jocor(
  ...   model, optax.sgd(0.1), steps_per_epoch=5, rate=0.5, ramp=0)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['loss']), 3)  # .9 times twice the logarithm of 2
  1.248

  Reference: Wei, Feng, Chen, An, "Combating noisy labels by agreement: A joint
  training method with co-regularization", CVPR 2020, arXiv 2003.02752.
  """
  check_ramp(rate, ramp)
  check_range('co_lambda', co_lambda, 0, 1)

  def lesson(
    logits: Array, labels: Array, weight: Array, epoch: Array
  ) -> tuple[Array, Metrics]:
    there = weight > 0
    joint = select.jocor(logits[0], logits[1], labels, co_lambda=co_lambda)
    check_losses(joint, weight)
    k = how_many(there, forget_rate(epoch, rate=rate, length=ramp))
    small = select.small_loss(lax.stop_gradient(joint), k, where=there)
    return learned_from(joint[None], [small], weight)

  return two_networks(model, tx, steps_per_epoch, lesson)


def _published(
  dataset: str,
  noise: str,
  rate: float,
  co_lambda: float,
  net: str = 'cnn8',
  forget: float | None = None,
) -> dict[Case, Settings]:
  layers = {'cnn8': '6 convolutions', 'mlp': 'one hidden layer'}[net]
  settings = settings_of(
    'jocor',
    f'README and code of arXiv 2003.02752 (net: the nearest to its {layers})',
    net,
    100 if dataset == 'cifar100' else 80,
    rate=rate if forget is None else forget,
    co_lambda=co_lambda,
  )
  return {(dataset, noise, rate): settings}


SETTINGS = {
  **_published('mnist', 'symmetric', 0.2, 0.95, 'mlp'),
  **_published('cifar10', 'symmetric', 0.2, 0.9),
  **_published('cifar10', 'symmetric', 0.5, 0.9),
  **_published('cifar10', 'symmetric', 0.8, 0.65),
  **_published('cifar10', 'cifar10_asymmetric', 0.4, 0.9, forget=0.2),
  **_published('cifar100', 'symmetric', 0.2, 0.85),
  **_published('cifar100', 'symmetric', 0.5, 0.85),
  **_published('cifar100', 'symmetric', 0.8, 0.85),
  **_published('cifar100', 'cifar100_index_blocks', 0.4, 0.85, forget=0.2),
}
"""By data set, noise and rate: those whose lambda the authors say."""
