"""The mixed step of MixMatch, which DivideMix shares.

Both guess labels on several views, mix each example with a partner of either
kind, and learn those with a label by cross-entropy, the others by squares.
"""

import jax
import jax.numpy as jnp

from jnl import losses
from jnl.base import (
  Array,
  Inputs,
  Key,
  Model,
  Params,
  Stats,
  global_mean,
  shuffle_within,
)
from jnl.steps import mix

MIX_TAG, RATIO_TAG = 2, 3
"""Tags of the keys that draw partners, and how much of them."""


def probs_of_views(
  model: Model, params: Params, stats: Stats, views: list[Inputs]
) -> list[Array]:
  """What a network predicts of each view, by its running statistics.

  Args:
    model: the network.
    params: its parameters.
    stats: its batch statistics.
    views: of [b, ...].

  Returns:
    As many [b, c], at least float32.
  """

  def probs(x: Inputs) -> Array:
    logits = model.apply(params, stats, x, None, False)[0].logits
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return jax.nn.softmax(logits.astype(wide))

  return [probs(x) for x in views]


def mixed_views(
  key: Key,
  ratio: Array,
  index: Array,
  views: list[Inputs],
  targets: Array,
  there: Array,
) -> tuple[list[Inputs], Array]:
  """Examples mixed with partners, in each view with others.

  Args:
    key: of the step, or of a network.
    ratio: [], the share that an example keeps.
    index: [b] int.
    views: of [b, ...], floating-point.
    targets: [b, c].
    there: [b] bool; the others are nobody's partners.

  Returns:
    The views, and the targets [b, views, c].

  Raises:
    TypeError: if a view is not floating-point.
  """
  keys = jax.random.split(jax.random.fold_in(key, MIX_TAG), len(views))
  mixed = []
  for own, x in zip(keys, views, strict=True):
    rows = (x, targets)
    partners = shuffle_within(own, index, rows, where=there)
    mixed.append(mix(ratio, rows, partners))
  return [x for x, _ in mixed], jnp.stack([t for _, t in mixed], axis=1)


def mixed_losses(
  logits: Array, targets: Array, present: Array, missing: Array
) -> tuple[Array, Array]:
  r"""The losses of mixed examples, by what each was before.

  .. math::
    \operatorname{mean}_{\text{labeled}} \left[ -\langle t, \log p \rangle
      \right], \qquad
    \operatorname{mean}_{\text{unlabeled}} \left[ \lVert p - t \rVert^2 / c
      \right]

  Args:
    logits: [b, views, c].
    targets: [b, views, c].
    present: [b] >= 0, the weights of those that had a label.
    missing: [b] >= 0, of those that had none.

  Returns:
    [], []; 0 where there are none.
  """
  error = jnp.square(jax.nn.softmax(logits.astype(targets.dtype)) - targets)
  return (
    global_mean(losses.ce(logits, targets), present),
    global_mean(error, missing),
  )
