"""What the meta methods share: two streams, passes over them, two learners.

A batch holds the training stream (`x`, `labels`, `weight`, `index`) and the
stream `meta` (`x_meta`, `labels_meta`, and `weight_meta` and `index_meta` if
there are any), of clean examples or of the training set again:
`fit(streams={'meta': Stream(arrays, batch_size)})` makes it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jnl import meta
from jnl.base import (
  Array,
  Batch,
  Inputs,
  Key,
  Model,
  Params,
  State,
  Stats,
  check,
  check_batch,
  check_key,
  global_grad,
  global_mean,
)
from jnl.steps import guarded_step, model_keys, of_stream, training_pass

T = TypeVar('T')
Loss = Callable[[Array, Array], Array]
"""Per-example: `(logits [b, c], labels [b]) -> [b]`."""
Learned = tuple[Params, Stats, optax.OptState]
"""Of a network: what a step of its optimizer changes."""


class Learners(NamedTuple):
  """The network, the weigher (or corrector) of its examples, the optimizers."""

  model: Model
  tx: optax.GradientTransformation
  net: Model
  net_tx: optax.GradientTransformation


class StreamBatch(NamedTuple):
  """What a batch has of one stream.

  Attributes:
    x: [b, ...], the inputs.
    labels: [b] int.
    weight: [b].
    keys: [b], for the network's own randomness.
  """

  x: Inputs
  labels: Array
  weight: Array
  keys: Key


class Passed(NamedTuple):
  """What a network says of a stream.

  Attributes:
    losses: [b], zeros where they were not finite.
    weight: [b]; 0 where the loss was not finite.
    logits: [b, c].
    features: [b, ...].
    stats: the new batch statistics.
  """

  losses: Array
  weight: Array
  logits: Array
  features: Array
  stats: Stats


Run = Callable[[Params], Passed]
"""A training pass over a stream, `forward` but for its last argument."""


def start(learners: Learners, key: Key) -> tuple[Learned, Learned]:
  """The network and the weigher before their first step."""
  check_key(key)
  key_model, key_net = jax.random.split(key)
  params, stats = learners.model.init(key_model)
  omega, omega_stats = learners.net.init(key_net)
  return (
    (params, stats, learners.tx.init(params)),
    (omega, omega_stats, learners.net_tx.init(omega)),
  )


def read_streams(batch: Batch, key: Key) -> tuple[StreamBatch, StreamBatch]:
  """The training stream of a batch, and its stream `meta`.

  Args:
    batch: see the module.
    key: the step's.

  Returns:
    Both. Without `weight_meta` all weights are one, without `index_meta`
    examples are told apart by their position.

  Raises:
    ValueError, TypeError: naming what the batch lacks or has in a wrong form.
  """
  check_batch(batch, 'x', 'labels', 'weight', 'index')
  check_batch(batch, 'x_meta', 'labels_meta')
  return _read(batch, key, ''), _read(of_stream(batch, 'meta'), key, 'meta')


def _read(batch: Batch, key: Key, stream: str) -> StreamBatch:
  x, labels, suffix = batch['x'], batch['labels'], f'_{stream}' * bool(stream)
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels{suffix} must be integer, got {labels.dtype}',
    TypeError,
  )
  for a in jax.tree.leaves(x):
    check(
      labels.ndim == 1 and a.shape[:1] == labels.shape,
      f'x{suffix} and labels{suffix} must have the same first size, got shapes '
      f'{a.shape} and {labels.shape}',
    )
  check(labels.size > 0, f'labels{suffix} must not be empty')
  weight, keys = jnp.asarray(batch['weight']), model_keys(key, batch, stream)
  return StreamBatch(x, labels, weight, keys)


# --- stages of a step ---------------------------------------------------------


def forward(
  model: Model, loss: Loss, stats: Stats, stream: StreamBatch, params: Params
) -> Passed:
  """A training pass over a stream.

  An example of weight 0 leaves no trace in it, whatever it holds. One whose
  loss is not finite is not there either: its weight becomes 0. But if its
  inputs are not finite, the gradient of a batch with it is not either, since
  backward passes multiply zero by NaN; `guarded_step` then stays.
  """
  outputs, new = training_pass(
    model, params, stats, stream.x, stream.keys, stream.weight
  )
  losses = loss(outputs.logits, stream.labels)
  check(
    losses.shape == stream.labels.shape,
    f'loss must give one value for each example, [b] = '
    f'{stream.labels.shape}, got {losses.shape}',
  )
  finite = jnp.isfinite(losses)
  return Passed(
    jnp.where(finite, losses, 0),
    jnp.where(finite, stream.weight, 0),
    outputs.logits,
    outputs.features,
    new,
  )


def mean_loss(run: Run, params: Params) -> tuple[Array, tuple[()]]:
  """The mean loss of a stream over all devices, and nothing beside it."""
  passed = run(params)
  return global_mean(passed.losses, passed.weight), ()


def look_ahead(
  virtual_tx: optax.GradientTransformation,
  gradient: Params,
  state: State,
  run_clean: Run,
  losses_fn: Callable[[Params], Array],
) -> tuple[optax.OptState, meta.LookAhead]:
  """What the clean loss says of a virtual step.

  Args:
    virtual_tx: the optimizer of virtual steps, whose state is
      `state.extra.virtual_opt`.
    gradient: of the network's loss.
    state: where the step starts from.
    run_clean: a pass over the clean examples.
    losses_fn: `params -> [..., b]`, what the step is made of.

  Returns:
    The state of `virtual_tx` after the step, and the look ahead.
  """
  virtual = meta.virtual_step(
    gradient, state.params, state.extra.virtual_opt, virtual_tx
  )
  clean_loss = partial(mean_loss, run_clean)
  return virtual.opt, meta.look_ahead(
    virtual, clean_loss, losses_fn, state.params
  )


def update_weigher(
  tx: optax.GradientTransformation,
  objective: Callable[[Params], tuple[Array, Stats]],
  old: Learned,
  allowed: Array | bool = True,
) -> Learned:
  """A step of the weigher on what `meta.look_ahead` says of its weights.

  Args:
    tx: its optimizer.
    objective: `params -> ([], its new statistics)`.
    old: the weigher.
    allowed: [] bool; where it is false the weigher stays as it is, as it does
      where the gradient is not finite.

  Returns:
    The weigher after the step.
  """
  (_, stats), gradient = global_grad(objective)(old[0])
  return guarded_step(tx, gradient, old, stats, allowed)[0]


def update_network(
  tx: optax.GradientTransformation,
  loss_fn: Callable[[Params], tuple[Array, tuple[Passed, T]]],
  state: State,
  allowed: Array | bool = True,
) -> tuple[tuple[Array, tuple[Passed, T]], Learned, Array]:
  """A step of the network.

  Args:
    tx: its optimizer.
    loss_fn: `params -> ([], (the pass, what else))`.
    state: the network's parameters, statistics and optimizer.
    allowed: as for `update_weigher`.

  Returns:
    What `loss_fn` returned, the network after the step, and whether it was
    done, [] bool.
  """
  found, gradient = global_grad(loss_fn)(state.params)
  old = state.params, state.stats, state.opt
  stats = found[1][0].stats
  return found, *guarded_step(tx, gradient, old, stats, allowed)
