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
  r"""The mean prediction of each bag is drawn to the bag's proportion.

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

  Reference: Ardehaly, Culotta, "Co-training for Demographic Classification
  Using Deep Learning from Label Proportions", ICDM Workshops 2017, arXiv
  1709.04108.
  """

  def per_bag(logits: Array, batch: Batch) -> Array:
    return loss(logits, proportions_of(batch), mask_of(batch))

  return supervised_bags(per_bag, model, tx)
