"""EasyLLP: the loss of instances, estimated from bags without bias."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import Array, Batch, Method, Model, Scalar, check
from jnl.steps import mask_of, proportions_of, supervised_bags


def easy_llp(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  prior: Scalar,
  loss: Callable[[Array, Array, Array, Array], Array] = losses.easy_llp,
) -> Method:
  """EasyLLP: descends `losses.easy_llp`, which has no lower bound.

  Right where bags are drawn at random; where they are not, biased.

  Args:
    model: of instances, of two classes.
    tx: the optimizer.
    prior: the share of positives among all instances, in [0, 1].
    loss: `(logits [b, m, 2], proportions [b, 2], prior [2], mask [b, m]) ->
      [b]`: the cross-entropy, or `losses.dsq`.

  Returns:
    A method over batches of `x` [b, m, ...], `counts`, `index` and `weight` [b]
    and `mask` [b, m]; `predict` is of instances.

  Raises:
    ValueError: if `prior` is out of range.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = easy_llp(model, optax.sgd(0.1), prior=0.5)
  >>> batch = {'x': jnp.ones((2, 3, 2)), 'counts': jnp.array([1, 3]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['loss']), 3)
  0.693

  Reference: Busa-Fekete, Choi, Dick, Gentile, Munoz Medina, "Easy Learning from
  Label Proportions", NeurIPS 2023, arXiv 2302.03115.
  """
  check((prior >= 0) & (prior <= 1), f'prior must lie in [0, 1], got {prior}')

  def per_bag(logits: Array, batch: Batch) -> Array:
    both = jnp.stack([1 - jnp.asarray(prior), jnp.asarray(prior)])
    return loss(logits, proportions_of(batch), both, mask_of(batch))

  return supervised_bags(per_bag, model, tx)
