"""Small losses, and what two networks say of each other's examples."""

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import losses as losses_
from jnl.base import Array, Scalar, check, gather, own_rows
from jnl.inputs import check_range, check_scalar, read_floats, read_logits
from jnl.logspace import log_probs, top_class


def small_loss(
  losses: ArrayLike, k: Scalar, *, where: ArrayLike | None = None
) -> Array:
  """The k examples of smallest loss, of a batch on all devices.

  `k = (1 - forget_rate) * b` with `ramps.forget_rate` is Co-teaching's choice;
  k may be traced, and is rounded down.

  Args:
    losses: [b] floating-point.
    k: how many, on all devices together. All there are if it is larger, nobody
      below 1.
    where: [b] bool, those to choose from, such as `weight > 0`; by default all.

  Returns:
    [b] bool. Of equal losses, those of lowest index; +inf comes last and NaN is
    never chosen.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> small_loss(jnp.array([3., 1., 2., 1.]), 2).tolist()
  [False, True, False, True]

  Reference: Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching: Robust
  Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
  arXiv 1804.06872.
  """
  losses = read_floats('losses', losses)
  check(losses.ndim == 1, f'losses must be [b], got shape {losses.shape}')
  check_scalar('k', k)
  there = ~jnp.isnan(losses)
  if where is not None:
    where = jnp.asarray(where)
    check(
      where.dtype == bool, f'where must be bool, got {where.dtype}', TypeError
    )
    check(
      where.shape == losses.shape,
      f'where must be [b] like losses, {losses.shape}, got {where.shape}',
    )
    there &= where
  every, out = gather((jnp.where(there, losses, 0), ~there))
  order = jnp.lexsort((every, out))  # stable: by index where losses are equal
  b = len(order)
  rank = jnp.zeros(b, jnp.int32).at[order].set(jnp.arange(b, dtype=jnp.int32))
  chosen = (rank + 1 <= k) & ~out
  return own_rows(chosen, len(losses))


def co_teaching(
  losses_1: ArrayLike,
  losses_2: ArrayLike,
  k: Scalar,
  *,
  where: ArrayLike | None = None,
) -> tuple[Array, Array]:
  """What each of two networks learns from: the small losses of the other.

  The loss of a network is the mean over its examples, `global_mean(loss, mask)`
  (0 if there are none). The official code divides that mean by k once more, so
  its learning rate is to be divided by k for the same steps. For Co-teaching+
  `where` is `disagreement`.

  Args:
    losses_1: [b] floating-point, of the first network.
    losses_2: [b] of the second.
    k: how many each gets, see `small_loss`.
    where: [b] bool, those to choose from.

  Returns:
    Two [b] bool: what the first learns from, and what the second does.

  Raises:
    TypeError, ValueError: as `small_loss`.

  >>> first, second = co_teaching(jnp.array([1., 2.]), jnp.array([4., 3.]), 1)
  >>> first.tolist(), second.tolist()
  ([False, True], [True, False])

  Reference: Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching: Robust
  Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
  arXiv 1804.06872.
  """
  check(
    np.shape(losses_1) == np.shape(losses_2),
    f'losses_2 must be [b] like losses_1, {np.shape(losses_1)}, got '
    f'{np.shape(losses_2)}',
  )
  return small_loss(losses_2, k, where=where), small_loss(
    losses_1, k, where=where
  )


def disagreement(logits_1: ArrayLike, logits_2: ArrayLike) -> Array:
  """Where two networks predict different classes: Co-teaching+ learns there.

  Args:
    logits_1: [..., c].
    logits_2: [..., c].

  Returns:
    [...] bool. Of classes of equal logits the first is predicted.

  Raises:
    TypeError, ValueError: if the logits are malformed or of different shapes.

  >>> disagreement(jnp.array([[1., 0.]] * 2), jnp.array([[2., 1.], [0., 1.]]))
  Array([False,  True], dtype=bool)

  Reference: Yu, Han, Yao, Niu, Tsang, Sugiyama, "How does Disagreement Help
  Generalization against Label Corruption?", ICML 2019, arXiv 1901.04215.
  """
  one, two = _two(logits_1, logits_2)
  return (top_class(one) != top_class(two))[..., 0]


def jocor(
  logits_1: ArrayLike,
  logits_2: ArrayLike,
  labels: ArrayLike,
  *,
  co_lambda: Scalar = 0.1,
) -> Array:
  r"""Joint loss of two networks, of which both learn the small ones.

  .. math:: (1 - \lambda) (\ell(z_1, y) + \ell(z_2, y)) + \lambda
     (KL(p_2 \| p_1) + KL(p_1 \| p_2))

  with cross-entropy as loss, and gradients through both predictions. JoCoR
  means it over `small_loss(jocor(...), k)`.

  Args:
    logits_1: [..., c], of the first network.
    logits_2: [..., c], of the second.
    labels: [...] int, or [..., c] soft.
    co_lambda: lambda in [0, 1].

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> z = jnp.array([[0., 0.]])
  >>> jocor(z, z, jnp.array([0]), co_lambda=0.5).round(3).tolist()
  [0.6930000185966492]

  Reference: Wei, Feng, Chen, An, "Combating noisy labels by agreement: A joint
  training method with co-regularization", CVPR 2020, arXiv 2003.02752.
  """
  one, two = _two(logits_1, logits_2)
  check_range('co_lambda', co_lambda, 0, 1)
  apart = log_probs(one) - log_probs(two)
  differ = jnp.exp(log_probs(one)) - jnp.exp(log_probs(two))
  divergence = jnp.sum(differ * apart, axis=-1)
  supervised = losses_.ce(one, labels) + losses_.ce(two, labels)
  return (1 - co_lambda) * supervised + co_lambda * divergence


def _two(logits_1: ArrayLike, logits_2: ArrayLike) -> tuple[Array, Array]:
  one = read_logits(logits_1, 'logits_1', masked=True)
  two = read_logits(logits_2, 'logits_2', masked=True)
  check(
    one.shape == two.shape,
    f'logits_2 must have the shape of logits_1, {one.shape}, got {two.shape}',
  )
  return one, two.astype(one.dtype)
