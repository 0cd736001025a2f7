"""VolMinNet: a transition matrix that is learned with the network."""

import math

import jax.numpy as jnp
import optax

from jnl import transition
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
  check,
  check_batch,
  global_mean,
)
from jnl.inputs import check_range, check_scalar
from jnl.methods._estimated import WithMatrix, kept, with_matrix
from jnl.methods._published import Case, Settings
from jnl.steps import (
  check_losses,
  from_loss,
  labels_of,
  model_keys,
  training_pass,
)


def vol_min(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  matrix_tx: optax.GradientTransformation | None = None,
  lam: Scalar = 1e-4,
  first: Scalar | None = None,
) -> Method:
  r"""VolMinNet: network and transition matrix learned at once, without anchors.

  .. math:: L = \operatorname{mean}_i -\log (p_i T)_{y_i}
    + \lambda \log |\det T|

  Of all matrices that explain the labels the penalty prefers the one of least
  volume, nearest to what the labels can say. T is largest on its diagonal; see
  `transition.vol_min_transition`, `transition.vol_min_loss`.

  Args:
    model: the network.
    tx: its optimizer.
    num_classes: c.
    matrix_tx: the optimizer of the weights that T is made of, without weight
      decay, by default Adam at .01, as the paper's code has it for MNIST and
      CIFAR-100; for CIFAR-10 `optax.sgd(.01, momentum=.9)`. Its rate falls
      there when that of the network does.
    lam: lambda >= 0.
    first: the weights off the diagonal at first, log-odds. By default such that
      T keeps a label with probability .48, whatever c is, as it is in the code:
      -2 for 10 classes, -4.5 for 100.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`. `state.params`
    is a `WithMatrix`, of the network and the weights; `estimated_transition`
    gives T. Metrics: `loss`, `kept`, the mean of T_ii, and `log_volume`,
    the logarithm of the determinant. Inside jit a label that is out of range
    (-1, or c) makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = vol_min(model, optax.sgd(0.1), num_classes=2, first=-2.0)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['kept']), 3), state.params.matrix.shape
  (0.893, (2, 2))

  Reference: Li, Liu, Han, Niu, Sugiyama, "Provably End-to-end Label-noise
  Learning without Anchor Points", ICML 2021, arXiv 2102.02400.
  """
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check_range('lam', lam, 0)
  if first is None:
    share = min(1.08 / (num_classes - 1), 0.5)
    first = math.log(share / (1 - share))
  check_scalar('first', first)
  shape = (num_classes, num_classes)
  both = with_matrix(model, jnp.full(shape, first, jnp.float32))

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    weight = jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      both, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    own = transition.vol_min_loss(
      outputs.logits, labels_of(batch), params.matrix, lam=lam
    )
    check_losses(own, weight)
    found = transition.vol_min_transition(params.matrix)
    metrics = {
      'kept': kept(found),
      'log_volume': transition.vol_min_penalty(found),
    }
    return global_mean(own, weight), Aux(stats, state.extra, metrics)

  own_tx = optax.adam(0.01) if matrix_tx is None else matrix_tx
  parts = {'net': tx, 'matrix': own_tx}
  return from_loss(loss_fn, both, optax.partition(parts, WithMatrix(*parts)))


def _published(net: str, first: float, more: str) -> Settings:
  return Settings(
    source=f'code of Li et al., arXiv 2102.02400 ({more})',
    method='vol_min',
    net=net,
    epochs=80,
    batch_size=128,
    learning_rate=0.01,
    weight_decay=1e-4,
    drops=(30, 60),
    views='crop_flip',
    arguments={'first': first},
  )


_TEN = _published(
  'preact_resnet18', -2.0, 'there ResNet-18, matrix_tx=SGD(.01, .9)'
)
_HUNDRED = _published('resnet34', -4.5, "the matrix's rate falls too")
SETTINGS: dict[Case, Settings] = {
  (dataset, noise, None): settings
  for dataset, settings in (('cifar10', _TEN), ('cifar100', _HUNDRED))
  for noise in ('symmetric', 'pair_flip')
}
"""Of any rate: the code has one setting for a data set."""
