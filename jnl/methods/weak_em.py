"""Learning from weak evidence about bags of instances, by exact EM.

Also `supervised_bags`, which trains on any loss of bags.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.automata import Inference
from jnl.base import (
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Model,
  Outputs,
  Params,
  Scalar,
  State,
  Stats,
  check,
  from_loss,
  global_mean,
  model_keys,
)


def weak_em(
  model: Model,
  tx: optax.GradientTransformation,
  infer: Callable[[Array, Batch], Inference],
  *,
  likelihood_weight: Scalar = 1.0,
  em_weight: Scalar = 1.0,
) -> Method:
  r"""Trains on whatever `jnl.automata` can infer from: counts, pairs, ...

  With z the logits of the instances of a bag, W what is known of it and z' the
  logits of the strong views (of the same view, where there is no other),

  .. math:: \ell = -\lambda_1 \log P(W \mid z)
    - \lambda_2\, \frac1m \sum_i \sum_k q_{ik} \log \mathrm{softmax}(z'_i)_k,
    \qquad q = \mathrm{sg}\, P(y \mid W, z)

  a mean over bags of the first term and over instances of the second. On one
  view the two have the same gradient, but for the weight of long bags.

  Batches have `x` [b, m, ...] (and `x_strong`, the same), `mask` [b, m] bool
  where bags are ragged, `index` and `weight` [b], and what `infer` reads. A bag
  whose evidence is impossible counts for nothing; the metric `infeasible` is
  the share of these.

  Args:
    model: of instances.
    tx: the optimizer.
    infer: `(logits [b, m, c], batch) -> Inference`, such as `lambda logits,
      batch: automata.count(logits, batch['counts'], batch.get('mask'))`.
    likelihood_weight: lambda_1 >= 0.
    em_weight: lambda_2 >= 0.

  Returns:
    The method; `predict` is of instances, x [b, ...]. Metrics: `loss`, `nll`
    and `em`, its two terms, and `infeasible`.

  Raises:
    ValueError: if a weight is negative.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922. The official code's recursions are
  not exact for counts, multiple instances and confidences; these are.
  """
  check(likelihood_weight >= 0, 'likelihood_weight must not be negative')
  check(em_weight >= 0, 'em_weight must not be negative')

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    names = ['x', 'x_strong'] if 'x_strong' in batch else ['x']
    views = [batch[name] for name in names]
    logits, stats = _apply(model, params, state.stats, views, batch, key)
    found = infer(logits[0], batch)
    weight, mask = batch['weight'], _mask(batch)
    usable = weight * found.feasible
    nll = global_mean(-found.log_likelihood, usable)
    targets = jax.lax.stop_gradient(found.posterior)
    em = global_mean(losses.ce(logits[-1], targets), usable[:, None] * mask)
    infeasible = global_mean(1.0 - found.feasible, weight)
    metrics = {'nll': nll, 'em': em, 'infeasible': infeasible}
    return likelihood_weight * nll + em_weight * em, Aux(stats, (), metrics)

  return from_loss(loss_fn, model, tx)


def supervised_bags(
  per_bag_loss: Callable[[Array, Batch], Array],
  model: Model,
  tx: optax.GradientTransformation,
) -> Method:
  """Trains on any loss of whole bags.

  Args:
    per_bag_loss: `(logits [b, m, c], batch) -> [b]`.
    model: of instances.
    tx: the optimizer.

  Returns:
    A method over batches of `x` [b, m, ...], `index` and `weight` [b], and what
    the loss reads; `predict` is of instances.
  """

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    logits, stats = _apply(model, params, state.stats, [batch['x']], batch, key)
    losses = per_bag_loss(logits[0], batch)
    return global_mean(losses, batch['weight']), Aux(stats)

  return from_loss(loss_fn, model, tx)


def bag_logits(
  predict: Callable[[State, Inputs], Outputs], state: State, x: Array
) -> Array:
  """Logits [b, m, c] of instances x [b, m, ...]."""
  flat = predict(state, x.reshape(-1, *x.shape[2:])).logits
  return flat.reshape(*x.shape[:2], -1)


def _mask(batch: Batch) -> Array:
  shape = batch['x'].shape[:2]
  return jnp.asarray(batch.get('mask', jnp.ones(shape, bool)))


def _apply(
  model: Model,
  params: Params,
  stats: Stats,
  views: list[Inputs],
  batch: Batch,
  key: Key,
) -> tuple[Array, Stats]:
  """Logits [views, b, m, c] of all instances in one pass."""
  b, m = views[0].shape[:2]
  # [b, views, m]: what is of one bag, and so of one device, stays together.
  x = jnp.stack(views, axis=1)
  keys = jax.vmap(lambda key: jax.random.split(key, len(views) * m))(
    model_keys(key, batch)
  )
  x = x.reshape(-1, *x.shape[3:])
  outputs, stats = model.apply(params, stats, x, keys.reshape(-1), True)
  logits = outputs.logits.reshape(b, len(views), m, -1)
  return jnp.moveaxis(logits, 1, 0), stats
