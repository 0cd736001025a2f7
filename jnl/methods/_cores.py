"""CORES: confidence-regularized cross-entropy, and a sieve of examples."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from jnl import losses, ramps
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
  global_sum,
)
from jnl.inputs import as_array, check_range, check_simplex
from jnl.methods._published import Case, Settings
from jnl.steps import (
  check_losses,
  from_loss,
  labels_of,
  model_keys,
  training_pass,
)


def cores(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  beta: Sequence[tuple[Scalar, Scalar]] = ((10, 0.0), (39, 2.0)),
  sieve: int = 31,
  prior: ArrayLike | None = None,
  offset: Scalar = 1e-8,
) -> Method:
  r"""CORES: sure predictions are rewarded, and doubtful labels sieved out.

  Who is rewarded for being sure leaves wrong labels alone, whose loss then
  stands out; those whose loss is above the mean over all labels do not count:

  .. math::
    L = \frac{1}{1 + \beta} \frac{\sum_i v_i \ell_i}{\sum_i v_i}, \qquad
    \ell_i = -\log p_{i, y_i} + \beta \sum_k \pi_k \log(p_{ik} + \epsilon),
    \qquad
    v_i = 1\left[-\log p_{i, y_i}
      \le -\tfrac{1}{c} \sum_k \log(p_{ik} + \epsilon)\right]

  with beta growing from epoch to epoch, and v = 1 before epoch `sieve`. An
  example that is out may come back at any step. See `losses.cores2` and
  `losses.cores2_sieve`. A batch of which nobody is kept counts whole.

  This is the first phase of the paper; the second, which trains another network
  with consistency on what was sieved out, is not here.

  The official code divides the learning rate by 1 + beta; here it is the loss,
  which for its plain descent is the same; not so with a decay of weights or
  momentum by `tx`, see `peer`.

  Args:
    model: the network.
    tx: the optimizer.
    steps_per_epoch: n // b.
    beta: (epoch, weight >= 0) points of a line, as `ramps.piecewise_linear`
      takes them; it is read once an epoch. The official code: 0 for 10 epochs,
      30 values from 0 to 2 in the next 30.
    sieve: the first epoch, counted from 0, in which labels are sieved.
    prior: pi, [c] on the simplex, the frequencies of the given labels; uniform
      by default. The official code starts from them and takes off, after each
      epoch, those that were sieved out; the sieve knows no prior.
    offset: epsilon >= 0, which bounds the loss below.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`, without a
    memory. Metrics: `loss`, which falls below 0; `beta`; `kept`, the share of
    examples that the sieve keeps, 1 before it starts, 0 in a batch that counts
    whole because it kept nobody. Inside jit a label that is out of range (-1,
    or c) makes the loss NaN, and all that follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, the epochs of `beta` do not rise,
      `prior` is off the simplex, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = cores(
  ...   model, optax.sgd(0.1), steps_per_epoch=1, beta=((0, 0.5),))
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['loss']), 3)  # log(2) (1 - beta) / (1 + beta)
  0.231

  Reference: Cheng, Zhu, Li, Gong, Sun, Liu, "Learning with Instance-Dependent
  Label Noise: A Sample Sieve Approach", ICLR 2021, arXiv 2010.02347.
  """
  ramp = of_epoch('beta', beta, steps_per_epoch)
  check(sieve >= 0, f'sieve must be at least 0, got {sieve}')
  check_range('offset', offset, 0)
  if prior is not None:
    prior = as_array('prior', prior)
    check(prior.ndim == 1, f'prior must be [c], got shape {prior.shape}')
    check_simplex('prior', prior)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    labels, weight = labels_of(batch), jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    weight_now = ramp(state.step)
    values = losses.cores2(
      outputs.logits, labels, beta=weight_now, prior=prior, offset=offset
    )
    check_losses(values, weight)
    kept = losses.cores2_sieve(outputs.logits, labels, offset=offset)
    early = state.step < sieve * steps_per_epoch
    # What is NaN counts, so that a run that has diverged shows it.
    kept = kept | jnp.isnan(values) | early
    some = global_sum(jnp.sum(kept & (weight > 0))) > 0
    loss = global_mean(values, weight * (kept | ~some)) / (1 + weight_now)
    metrics = {'beta': weight_now, 'kept': global_mean(kept, weight)}
    return loss, Aux(stats, metrics=metrics)

  return from_loss(loss_fn, model, tx)


def of_epoch(
  name: str, points: Sequence[tuple[Scalar, Scalar]], steps_per_epoch: int
) -> Callable[[Scalar], Array]:
  """The weight at a step, constant in an epoch; checks the points.

  Args:
    name: what errors call them.
    points: (epoch, weight >= 0), as for `ramps.piecewise_linear`.
    steps_per_epoch: n // b.

  Returns:
    `step -> weight`, [].

  Raises:
    ValueError: if these are no points, their epochs do not rise, or a number is
      out of range.
  """
  check(
    steps_per_epoch >= 1,
    f'steps_per_epoch must be at least 1, got {steps_per_epoch}',
  )
  ramps.check_points(name, points)
  for _, weight in points:
    check_range(name, weight, 0)
  return lambda step: ramps.piecewise_linear(step // steps_per_epoch, points)


_PUBLISHED = Settings(
  source='official code of arXiv 2010.02347, first phase; its prior is that of '
  'the labels which the sieve has left',
  method='cores',
  net='resnet34',
  epochs=100,
  batch_size=64,
  learning_rate=0.1,
  momentum=0.0,
  drops=(50,),
  views='crop_flip',
)
SETTINGS: dict[Case, Settings] = {
  ('cifar10', noise, None): _PUBLISHED
  for noise in ('part_dependent', 'symmetric', 'pair_flip')
}
"""For instance-dependent noise it is documented; the others are its options."""
