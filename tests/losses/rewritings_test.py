"""Losses as they are computed, for speed or in hard places, are as defined."""

from fixture_losses import close, draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import logspace, losses


@pytest.mark.parametrize('classes', [2, 3, 10, 12, 101])
def test_top_class_is_the_argmax_first_among_equals(classes):
  z = jnp.round(draw(200, classes, scale=0.7)[0])  # many ties
  z = z.at[0].set(0).at[1].set(-jnp.inf).at[1, -1].set(0)
  z = z.reshape(4, 50, classes)
  expected = jnp.argmax(z, axis=-1, keepdims=True)
  for top_class in (logspace.top_class, jax.jit(jax.vmap(logspace.top_class))):
    np.testing.assert_array_equal(top_class(z), expected)


@pytest.mark.parametrize(
  'loss', [losses.focal, losses.nfl, losses.nnfl], ids=lambda f: f.__name__
)
@pytest.mark.parametrize('detach', [True, False])
def test_the_square_root_is_the_power(loss, detach):
  """gamma = 1/2 has a form of its own; a traced gamma takes the general one."""
  z, y = draw(scale=4.0)
  z = z.at[0].set(jnp.array([200.0, 0, 0, 0])).at[1].set(0)  # p = 1, p = 1/4
  tangent = draw(seed=1)[0]

  def derivatives(gamma):
    def slope(z):
      value, back = jax.vjp(lambda z: loss(z, y, gamma=gamma, detach=detach), z)
      return value, back(jnp.ones_like(value))[0]

    return *slope(z), jax.jvp(lambda z: slope(z)[1], [z], [tangent])[1][2:]

  own = jax.jit(lambda: derivatives(0.5))()
  general = jax.jit(derivatives)(jnp.float32(0.5))
  for a, b in zip(own, general, strict=True):
    assert np.isfinite(a).all()
    close(a, b, rtol=1e-3, atol=2e-5)


def sop_as_defined(z, y, u, v, clip=1e-4):
  """The equations, with every label one-hot."""
  y = jax.nn.one_hot(y, z.shape[-1])
  add = jnp.clip(u[:, None] ** 2 * y, 0, 1)
  remove = jnp.clip(v**2 * (1 - y), 0, 1)
  shift = add - jax.lax.stop_gradient(remove)
  q = jnp.maximum(jax.nn.softmax(z) + shift, clip)
  q = q / q.sum(-1, keepdims=True)
  top = jax.nn.one_hot(jnp.argmax(z, -1), z.shape[-1])
  square = jnp.sum((top + add - remove - y) ** 2, axis=-1)
  return -jnp.sum(y * jnp.log(q), axis=-1) + square


@pytest.mark.parametrize('scale', [1.0, 8.0])
def test_sop_of_integer_labels_is_the_equation(scale):
  """Value, gradient, and the derivative of the gradient, as a meta step has."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    z, y = draw(scale=scale)
    u, v = rng.uniform(-1.2, 1.2, 64), rng.uniform(-1.2, 1.2, z.shape)
    wrt = (z.astype(jnp.float64), jnp.asarray(u), jnp.asarray(v))
    tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), wrt)

    def everything(loss):
      total = lambda z, u, v: jnp.sum(loss(z, y, u, v))
      slope = jax.grad(total, argnums=(0, 1, 2))
      return loss(wrt[0], y, *wrt[1:]), *jax.jvp(slope, wrt, tangent)

    own = everything(losses.sop)
    jax.tree.map(
      lambda a, b: close(a, b, rtol=1e-6, atol=1e-9),
      own,
      everything(sop_as_defined),
    )


def test_mean_log_prob_survives_a_large_common_offset():
  """The differences to the largest logit are summed, not the logits."""
  z = jnp.full([1, 1000], 1e30)
  close(logspace.mean_log_prob(z), -np.log(1000), rtol=1e-6)
  jitted = jax.jit(losses.label_smoothing)
  close(jitted(z, jnp.array([3])), np.log(1000), rtol=1e-6)
