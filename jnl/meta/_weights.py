"""Weights and labels out of meta gradients: L2RW, MLC and MSLC."""

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import Array, Params, Scalar, check, global_sum


def l2rw_weights(alignment: Array, weight: Array | None = None) -> Array:
  r"""Learning to reweight: the examples whose gradients agree with a clean one.

  .. math:: w_i = \frac{\max(a_i, 0)}{\sum_j \max(a_j, 0)}, \qquad
    a_i = \langle \nabla M(\theta), \nabla \ell_i(\theta) \rangle

  which is minus the derivative of the meta loss M by the weight of example i,
  at weights of zero, up to a learning rate that the sum takes away.

  Args:
    alignment: a [b], `weight_gradient(losses, params, gradient of M)`.
    weight: [b], >= 0: a factor of each example, 0 if it is not there.

  Returns:
    [b], with the sum one over all devices; all zero if no example agrees.

  >>> l2rw_weights(jnp.array([3., -1., 1.])).tolist()
  [0.75, 0.0, 0.25]

  Reference: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust
  Deep Learning", ICML 2018, arXiv 1803.09050.
  """
  weight = jnp.ones(alignment.shape) if weight is None else weight
  check(
    weight.shape == alignment.shape,
    f'weight must be [b] = {alignment.shape}, got {weight.shape}',
  )
  # What is not a number agrees with nothing.
  agrees = jnp.where((weight > 0) & (alignment > 0), alignment, 0)
  clipped = agrees * weight.astype(agrees.dtype)
  everyone = global_sum(jnp.sum(clipped))
  return clipped / jnp.where(everyone > 0, everyone, 1)


def look_ahead_discount(before: Params, after: Params, pulled: Params) -> Array:
  r"""How much the meta gradient of the last step still counts in this one.

  .. math:: \gamma = \frac{\langle (I + \partial u / \partial g)\, g', g
    \rangle}{\|g\|^2}

  with the Hessian of the training loss taken for the identity, as the paper
  has it.

  Args:
    before: g, the gradient of the meta loss before the step.
    after: g', that after it.
    pulled: `pull(after)` of the step; for SGD, minus the rate times g'.

  Returns:
    [], 0 if g is.

  Reference: see `corrector`.
  """
  moved = jax.tree.map(jnp.add, after, pulled)
  norm = optax.tree.vdot(before, before)
  return jnp.where(
    norm > 0,
    optax.tree.vdot(moved, before) / jnp.where(norm > 0, norm, 1),
    0,
  )


def mslc_losses(logits: Array, labels: Array, soft: Array) -> Array:
  r"""The three losses that MSLC mixes.

  .. math:: (-\log p_y,\ -\log p_z,\ -\log \max_k p_k), \qquad
    z = \operatorname{argmax}_k s_k

  Args:
    logits: [b, c].
    labels: y [b] int.
    soft: s [b, c], the labels in memory.

  Returns:
    [3, b].

  Reference: see `mslc_labels`.
  """
  stored, current = jnp.argmax(soft, axis=-1), jnp.argmax(logits, axis=-1)
  return jnp.stack([losses.ce(logits, y) for y in (labels, stored, current)])


def mslc_mix(values: Array, alpha: Scalar, beta: Scalar) -> Array:
  r"""A mixture of three: of the label, of the memory, of the prediction.

  .. math:: \alpha v_1 + (1 - \alpha) (\beta v_2 + (1 - \beta) v_3)

  Args:
    values: [3, b, ...]: losses, or soft labels.
    alpha: trust in the label, [b, ...].
    beta: trust in the memory over the prediction, [b, ...].

  Returns:
    [b, ...].

  >>> float(mslc_mix(jnp.array([1., 10., 100.]), 0.5, 0.5))
  28.0

  Reference: see `mslc_labels`.
  """
  label, stored, current = values
  return alpha * label + (1 - alpha) * (beta * stored + (1 - beta) * current)


def mslc_labels(
  logits: Array, labels: Array, soft: Array, alpha: Array, beta: Array
) -> Array:
  r"""The label that goes into the memory of MSLC.

  .. math:: \alpha 1_y + (1 - \alpha)(\beta s + (1 - \beta)\,
    \mathrm{softmax}(z))

  Args:
    logits: z [b, c].
    labels: y [b] int.
    soft: s [b, c], the label in memory.
    alpha: [b].
    beta: [b].

  Returns:
    [b, c].

  Reference: Wu, Shu, Xie, Zhao, Meng, "Learning to Purify Noisy Labels via Meta
  Soft Label Corrector", AAAI 2021, arXiv 2008.00627.
  """
  probs = jax.nn.softmax(logits)
  own = jax.nn.one_hot(labels, logits.shape[-1], dtype=probs.dtype)
  values = jnp.stack([own, soft.astype(probs.dtype), probs])
  return mslc_mix(values, alpha[:, None], beta[:, None])
