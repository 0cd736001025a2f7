"""Gradients through one step of training, by forward mode.

A meta loss looks at parameters after a step: theta' = theta + u(g), with g =
sum_i w_i grad l_i(theta) and u the update of an optimizer. Its derivative by
the weight of one example is an inner product,

  dM / dw_i = < (du/dg)^T grad M(theta'), grad l_i(theta) >,

and all of them are one Jacobian-vector product: the per-example losses, pushed
forward along the pulled-back meta gradient. No graph of second order is built.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl.base import (
  Array,
  Params,
  PyTree,
  Scalar,
  check,
  global_grad,
  global_sum,
)

LossesFn = Callable[[Params], Array]
"""Per-example losses [b] of parameters."""
Pull = Callable[[Params], Params]
"""From a gradient by the new parameters to one by the gradient of the step."""


class Virtual(NamedTuple):
  """A step that was looked at, not taken.

  Attributes:
    params: theta', the parameters after it.
    opt: the state of the optimizer after it.
    pull: from a gradient by theta' to one by the gradient of the step.
  """

  params: Params
  opt: optax.OptState
  pull: Pull


class LookAhead(NamedTuple):
  """What a meta loss says of a step.

  Attributes:
    slopes: [..., b], the derivative of the meta loss by the weight of each
      loss of the step.
    meta_loss: [].
    aux: what came with the meta loss.
    gradient: of the meta loss at theta'.
    direction: the same, pulled back through the step.
  """

  slopes: Array
  meta_loss: Array
  aux: PyTree
  gradient: Params
  direction: Params


class MetaGradient(NamedTuple):
  """What a meta loss says of the weights of a batch.

  Attributes:
    weights: [b], the derivative of the meta loss by each weight.
    meta_loss: [].
    params: the parameters after the virtual step.
    opt: the state of the optimizer after it.
  """

  weights: Array
  meta_loss: Array
  params: Params
  opt: optax.OptState


def total(values: Array, weights: Array) -> Array:
  r"""Weighted sum over all examples of all devices.

  .. math:: \sum_i w_i v_i

  Args:
    values: [b].
    weights: [b]; of weight 0, a value counts for nothing, even if it is NaN.

  Returns:
    [].

  >>> float(total(jnp.array([1., 2., jnp.nan]), jnp.array([2., 3., 0.])))
  8.0
  """
  return global_sum(jnp.sum(jnp.where(weights == 0, 0, values) * weights))


def virtual_step(
  gradient: Params,
  params: Params,
  opt: optax.OptState,
  tx: optax.GradientTransformation,
) -> Virtual:
  r"""One step of any optimizer, and how its end depends on the gradient.

  .. math:: \theta' = \theta + u(g), \qquad
    \mathrm{pull}(d) = (\partial u / \partial g)^\top d

  The optimizer is as it is: with its momentum, its decay and its second
  moments, in the state that it is in. Nothing is changed but what is returned.

  Args:
    gradient: g, a tree like `params`.
    params: theta.
    opt: the optimizer's state.
    tx: the optimizer.

  Returns:
    The step: the new parameters, the new state of the optimizer, and `pull`.
    Where a gradient and all before it were zero, Adam has no derivative (its
    second moment is at the tip of a square root): `pull` is zero there.

  >>> params, tx = jnp.array([1.]), optax.sgd(0.5)
  >>> params, opt, pull = virtual_step(
  ...   jnp.array([2.]), params, tx.init(params), tx)
  >>> params.tolist(), pull(jnp.array([3.])).tolist()
  ([0.0], [-1.5])
  """

  def step(gradient: Params) -> tuple[Params, optax.OptState]:
    updates, new = tx.update(gradient, opt, params)
    return optax.apply_updates(params, updates), new

  moved, transposed, new = jax.vjp(step, gradient, has_aux=True)

  def pull(direction: Params) -> Params:
    (pulled,) = transposed(direction)
    return jax.tree.map(
      lambda p, d: jnp.where(jnp.isnan(p) & ~jnp.isnan(d), 0, p),
      pulled,
      direction,
    )

  return Virtual(moved, new, pull)


def first_adam(
  learning_rate: Scalar | optax.Schedule,
  *,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
) -> optax.GradientTransformation:
  r"""Adam's first step, taken again and again.

  .. math:: u = -\eta\, \frac{g}{|g| + \epsilon'}, \qquad
    \frac{\partial u}{\partial g} = -\eta\,
    \frac{\epsilon'}{(|g| + \epsilon')^2}, \qquad
    \epsilon' = \epsilon / \sqrt{1 - \beta_2}

  The published STORM has it, by rebuilding its optimizer in every step: nearly
  a sign, whose derivative lets next to nothing of a meta gradient pass. For
  comparisons; `optax.adam` is what was meant.

  Args:
    learning_rate: eta, a number or a schedule.
    b2: [0, 1).
    eps: > 0.

  Returns:
    The optimizer.

  Raises:
    ValueError: if `b2` or `eps` is out of range.
  """
  check((b2 >= 0) & (b2 < 1), f'b2 must lie in [0, 1), got {b2}')
  check(eps > 0, f'eps must be positive, got {eps}')
  effective = eps / jnp.sqrt(1 - b2)

  def scale(g: Array) -> Array:
    e, fixed = effective.astype(g.dtype), lax.stop_gradient(g)
    size = jnp.abs(fixed) + e
    # The slope is a difference of nearly equal terms to automatic rules.
    return fixed / size + (g - fixed) * (e / size**2)

  def update(
    gradient: Params, state: optax.OptState, params: Params | None = None
  ) -> tuple[Params, optax.OptState]:
    del params
    return jax.tree.map(scale, gradient), state

  return optax.chain(
    optax.GradientTransformation(lambda params: optax.EmptyState(), update),
    optax.scale_by_learning_rate(learning_rate),
  )


def weight_gradient(
  losses_fn: LossesFn, params: Params, direction: Params
) -> Array:
  r"""The derivative of a meta loss by the weights of the examples.

  .. math:: \frac{\partial M}{\partial w_i}
    = \langle d, \nabla_\theta \ell_i(\theta) \rangle

  for all i in one Jacobian-vector product, at about the price of two forward
  passes, of which one is shared with whoever else evaluates the losses.

  Args:
    losses_fn: `params -> losses [..., b]`; also of several losses for each
      example.
    params: theta.
    direction: d, a tree like `params`: `pull(gradient of M at theta')`.

  Returns:
    [..., b].

  >>> x = jnp.array([[1., 0.], [1., 2.]])
  >>> w, d = jnp.zeros(2), jnp.array([1., 10.])
  >>> weight_gradient(lambda w: x @ w, w, d).tolist()
  [1.0, 21.0]
  """
  return jax.jvp(losses_fn, (params,), (direction,))[1]


def look_ahead(
  virtual: Virtual,
  meta_loss_fn: Callable[[Params], tuple[Array, PyTree]],
  losses_fn: LossesFn,
  params: Params,
) -> LookAhead:
  r"""What the end of a step does to a meta loss, by the weight of each loss.

  .. math:: d = \mathrm{pull}(\nabla M(\theta')), \qquad
    s_i = \langle d, \nabla_\theta \ell_i(\theta) \rangle

  A weigher then descends the sum (the mean) of the slopes s times the weights
  that it gives: that has the gradient of M by the weigher.

  Args:
    virtual: the step, see `virtual_step`.
    meta_loss_fn: `params -> ([], aux)`, M, made of `global_mean`s or `total`s.
    losses_fn: `params -> [..., b]`, the losses that the step is made of.
    params: theta, where it starts.

  Returns:
    The slopes, and what they are made of.

  >>> x, w, tx = jnp.array([1., -2.]), jnp.float32(1.), optax.sgd(0.5)
  >>> virtual = virtual_step(jnp.float32(0), w, tx.init(w), tx)
  >>> look_ahead(
  ...   virtual, lambda w: (w**2, ()), lambda w: x * w, w).slopes.tolist()
  [-1.0, 2.0]
  """
  (meta_loss, aux), gradient = global_grad(meta_loss_fn)(virtual.params)
  direction = virtual.pull(gradient)
  slopes = weight_gradient(losses_fn, params, direction)
  return LookAhead(slopes, meta_loss, aux, gradient, direction)


def meta_gradient(
  losses_fn: LossesFn,
  meta_loss_fn: Callable[[Params], Array],
  weights: Array,
  params: Params,
  opt: optax.OptState,
  tx: optax.GradientTransformation,
) -> MetaGradient:
  r"""Weights judged by what a step with them does to a meta loss.

  .. math:: \frac{\partial}{\partial w}\, M\!\left(\theta
    + u\left(\textstyle\sum_i w_i \nabla \ell_i(\theta)\right)\right)

  Args:
    losses_fn: `params -> [b]`, the losses of the batch.
    meta_loss_fn: `params -> []`, M, made of `global_mean`s or `total`s.
    weights: w [b]; zeros for L2RW.
    params: theta.
    opt: the state of `tx`.
    tx: the optimizer of the virtual step.

  Returns:
    The gradient and the step that it looked ahead with.

  >>> x, w, tx = jnp.array([1., -2.]), jnp.float32(1.), optax.sgd(0.5)
  >>> found = meta_gradient(
  ...   lambda w: x * w, lambda w: w**2, jnp.zeros(2), w, tx.init(w), tx)
  >>> found.weights.tolist()
  [-1.0, 2.0]
  """

  def loss_fn(params: Params) -> tuple[Array, None]:
    return total(losses_fn(params), weights), None

  def meta_fn(params: Params) -> tuple[Array, None]:
    return meta_loss_fn(params), None

  _, gradient = global_grad(loss_fn)(params)
  virtual = virtual_step(gradient, params, opt, tx)
  ahead = look_ahead(virtual, meta_fn, losses_fn, params)
  return MetaGradient(
    ahead.slopes, ahead.meta_loss, virtual.params, virtual.opt
  )


def reverse_meta_gradient(
  losses_fn: LossesFn,
  meta_loss_fn: Callable[[Params], Array],
  weights: Array,
  params: Params,
  opt: optax.OptState,
  tx: optax.GradientTransformation,
) -> MetaGradient:
  """`meta_gradient` as the definition has it: reverse over reverse.

  A reference to test against, for the global view only. The step is linear in
  the weights, so that JAX transposes what torch would keep a graph of second
  order for: the same numbers, time and memory, measured with SGD. But Adam
  makes it NaN where a gradient and all before it were zero.

  Args:
    losses_fn: see `meta_gradient`.
    meta_loss_fn: see `meta_gradient`.
    weights: see `meta_gradient`.
    params: see `meta_gradient`.
    opt: see `meta_gradient`.
    tx: see `meta_gradient`.

  Returns:
    The same.
  """

  def meta(weights: Array) -> tuple[Array, tuple[Params, optax.OptState]]:
    gradient = jax.grad(lambda p: jnp.sum(weights * losses_fn(p)))(params)
    updates, new = tx.update(gradient, opt, params)
    moved = optax.apply_updates(params, updates)
    return meta_loss_fn(moved), (moved, new)

  (loss, (moved, new)), by_weight = jax.value_and_grad(meta, has_aux=True)(
    weights
  )
  return MetaGradient(by_weight, loss, moved, new)
