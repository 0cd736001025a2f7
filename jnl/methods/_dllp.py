"""Deep learning from label proportions (DLLP): mean predictions matched."""

from collections.abc import Callable

import optax

from jnl import losses
from jnl.base import Array, Batch, Method, Model
from jnl.steps import mask_of, proportions_of, supervised_bags


def dllp(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  loss: Callable[[Array, Array, Array], Array] = losses.dllp,
) -> Method:
  r"""DLLP: draws the mean prediction of each bag to the bag's proportion.

  .. math:: L = \operatorname{mean}_b\, \ell\Big(\frac{S_b}{m_b},
    \frac1{m_b} \sum_{i \in b} p_i\Big)

  Args:
    model: of instances, of two classes.
    tx: the optimizer.
    loss: `(logits [b, m, 2], proportions [b, 2], mask [b, m]) -> [b]`: the
      cross-entropy, or `losses.dllp_l1`, `losses.dllp_squared`.

  Returns:
    A method over batches of `x` [b, m, ...], `counts`, `index` and `weight` [b]
    and `mask` [b, m]; `predict` is of instances.

  Raises:
    ValueError, TypeError: at trace time, if a batch lacks an array or `counts`
      are no integers.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = dllp(model, optax.sgd(0.1))
  >>> batch = {'x': jnp.ones((2, 3, 2)), 'counts': jnp.array([1, 3]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> round(float(metrics['loss']), 3)
  0.693

  Reference: Ardehaly, Culotta, "Co-training for Demographic Classification
  Using Deep Learning from Label Proportions", ICDM Workshops 2017, arXiv
  1709.04108.
  """

  def per_bag(logits: Array, batch: Batch) -> Array:
    return loss(logits, proportions_of(batch), mask_of(batch))

  return supervised_bags(per_bag, model, tx)
