"""Batches of bags: how a network of instances runs on them.

Batches have `x` [b, m, ...], `index` and `weight` [b], `mask` [b, m] bool where
bags are ragged, and what a loss reads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

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
  State,
  Stats,
  check,
  check_batch,
  check_losses,
  from_loss,
  global_mean,
  model_keys,
  training_pass,
)


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
    check_batch(batch, 'x', 'weight')
    views = batch['x'][None]
    outputs, stats = apply_to_bags(
      model, params, state.stats, views, batch, key
    )
    losses = per_bag_loss(outputs.logits[0], batch)
    check_losses(losses, batch['weight'])
    return global_mean(losses, batch['weight']), Aux(stats)

  return from_loss(loss_fn, model, tx)


def bag_logits(
  predict: Callable[[State, Inputs], Outputs], state: State, x: Array
) -> Array:
  """Logits [b, m, c] of instances x [b, m, ...]."""
  flat = predict(state, x.reshape(-1, *x.shape[2:])).logits
  return flat.reshape(*x.shape[:2], -1)


def mask_of(batch: Batch) -> Array:
  """[b, m] bool, where there is an instance."""
  shape = batch['x'].shape[:2]
  return jnp.asarray(batch.get('mask', jnp.ones(shape, bool)))


def proportions_of(batch: Batch) -> Array:
  """[b, 2], the shares of both classes in each bag by its `counts` [b].

  A bag of weight 0 may hold anything: its share is one half.

  Raises:
    TypeError: if the counts are no integers: they may be shares already.
  """
  check_batch(batch, 'counts')
  counts, sizes = jnp.asarray(batch['counts']), jnp.sum(mask_of(batch), axis=1)
  check(
    jnp.issubdtype(counts.dtype, jnp.integer),
    f'counts must be integers, got {counts.dtype}; of shares they are '
    '`noise.counts_of_proportions`',
    TypeError,
  )
  known = jnp.asarray(batch.get('weight', jnp.ones(sizes.shape))) > 0
  share = jnp.where(known, counts / jnp.maximum(sizes, 1), 0.5)
  return jnp.stack([1 - share, share], axis=-1)


def apply_to_bags(
  model: Model,
  params: Params,
  stats: Stats,
  views: Array,
  batch: Batch,
  key: Key,
) -> tuple[Outputs, Stats]:
  """Outputs [views, b, m, ...] of all instances, in one training pass.

  Instances outside the mask and bags of weight 0 leave no trace in it, however
  wide the padding is: see `training_pass`.

  Args:
    model: of instances.
    params: its parameters.
    stats: its batch statistics.
    views: [views, b, m, ...].
    batch: with `index` [b], from which come the keys, `weight` [b], and `mask`
      [b, m] where bags are ragged.
    key: of the step.

  Returns:
    The outputs without `aux`, and the new statistics.
  """
  count, b, m = views.shape[:3]
  there = mask_of(batch) & (jnp.asarray(batch['weight']) > 0)[:, None]
  # [b, views, m]: what is of one bag, and so of one device, stays together.
  x = jnp.moveaxis(views, 0, 1).reshape(-1, *views.shape[3:])
  split = jax.vmap(jax.random.split, (0, None))
  keys = split(split(model_keys(key, batch), count).reshape(-1), m)
  weight = jnp.broadcast_to(there[:, None], (b, count, m))
  outputs, stats = training_pass(
    model, params, stats, x, keys.reshape(-1), weight.reshape(-1)
  )

  def of_bags(values: Array) -> Array:
    values = values.reshape(b, count, m, *values.shape[1:])
    return jnp.moveaxis(values, 1, 0)

  return Outputs(of_bags(outputs.logits), of_bags(outputs.features)), stats
