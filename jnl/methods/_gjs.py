"""Generalized Jensen-Shannon divergence (GJS) of the label and two views."""

from collections.abc import Sequence

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
  check,
  check_batch,
  global_mean,
)
from jnl.inputs import check_between, check_simplex
from jnl.methods._published import Case, Settings
from jnl.steps import (
  apply_views,
  from_loss,
  labels_of,
  model_keys,
)


def gjs(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  weights: Sequence[Scalar] | Array = (0.3, 0.35, 0.35),
) -> Method:
  r"""Generalized Jensen-Shannon divergence (GJS): the label is one opinion.

  The label and the predictions of two views are drawn to their common mean m,
  each as far as its weight says; where the views agree against the label, they
  keep most of their own way:

  .. math::
    L = \operatorname{mean}_i \frac{w_0 \mathrm{KL}(y_i \| m_i)
      + w_1 \mathrm{KL}(p_i \| m_i) + w_2 \mathrm{KL}(p'_i \| m_i)}
      {-(1 - w_0) \log(1 - w_0)}, \qquad m_i = w_0 y_i + w_1 p_i + w_2 p'_i

  See `losses.gjs`. A weight w_0 near 0 is cross-entropy with the mean
  prediction, one near 1 the mean absolute error. With one view it is
  `supervised(losses.js, ...)`.

  Args:
    model: the network.
    tx: the optimizer.
    weights: [3] positive, summing to one: of the label, of `x` and of
      `x_strong`. See `SETTINGS` of this file for the paper's.

  Returns:
    A method over batches of `x`, `x_strong`, `labels`, `weight` and `index`,
    without memory. Metrics: `loss` and its two terms, `divergence`, between the
    label and the mean of the views (`losses.gjs_of_mean`), and `consistency`,
    the views' disagreement, scaled alike. Inside jit a label that is out of
    range (-1, or c) makes the loss NaN unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if `weights` are out of range, or a batch lacks an array; at
      trace time if the views differ in shape.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = gjs(linear(2, 2), optax.sgd(0.1))  # see `jnl.nets` for networks
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2) + 0.1,
  ...   'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['consistency']) < 1e-6  # the network says nothing yet
  True

  Reference: Englesson, Azizpour, "Generalized Jensen-Shannon Divergence Loss
  for Learning with Noisy Labels", NeurIPS 2021, arXiv 2105.04522. The official
  code clamps logarithms at 1e-7; here they are exact.
  """
  given = jnp.asarray(weights)
  check(given.shape == (3,), f'weights must be [3], got shape {given.shape}')
  check_between('weights', given, 0, 1, open_low=True)
  check_simplex('weights', given)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'x_strong', 'labels', 'weight', 'index')
    weight, labels = jnp.asarray(batch['weight']), labels_of(batch)
    outputs, stats = apply_views(
      model,
      params,
      state.stats,
      (batch['x'], batch['x_strong']),
      model_keys(key, batch),
      weight,
    )
    z = jnp.moveaxis(outputs.logits, 1, 0)
    loss, divergence = (
      global_mean(f(z, labels, weights=weights), weight)
      for f in (losses.gjs, losses.gjs_of_mean)
    )
    metrics = {'divergence': divergence, 'consistency': loss - divergence}
    return loss, Aux(stats, (), metrics)

  return from_loss(loss_fn, model, tx)


def _published(
  dataset: str,
  noise: str,
  learning_rate: float,
  weight_decay: float,
  label_weights: dict[float, float],
) -> dict[Case, Settings]:
  def settings(w: float) -> Settings:
    return Settings(
      source='official code, ErikEnglesson/GJS, scripts; both views there are '
      'by crops, mirrors, RandAugment(1, 3) and cutout',
      method='gjs',
      net='preact_resnet34',
      epochs=400,
      batch_size=128,
      learning_rate=learning_rate,
      weight_decay=weight_decay,
      drops=(200, 300),
      nesterov=True,
      views='crop_flip',
      arguments={'weights': (w, (1 - w) / 2, (1 - w) / 2)},
    )

  return {
    (dataset, noise, rate): settings(w) for rate, w in label_weights.items()
  }


SETTINGS = {
  **_published(
    'cifar10',
    'symmetric_inclusive',
    0.1,
    5e-4,
    {0.2: 0.3, 0.4: 0.9, 0.6: 0.1, 0.8: 0.1},
  ),
  **_published(
    'cifar10', 'cifar10_asymmetric_in_place', 0.1, 1e-3, {0.2: 0.3, 0.4: 0.3}
  ),
  **_published(
    'cifar100',
    'symmetric_inclusive',
    0.2,
    5e-5,
    {0.2: 0.3, 0.4: 0.5, 0.6: 0.9, 0.8: 0.1},
  ),
  **_published(
    'cifar100', 'cifar100_superclasses', 0.4, 1e-4, {0.2: 0.5, 0.4: 0.1}
  ),
}
"""By data set, noise and rate; symmetric noise was drawn in fixed counts."""
