"""Losses as they are computed, for speed or in hard places, are as defined."""

from fixture_losses import close, draw, run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import logspace, losses


@pytest.mark.parametrize('classes', [2, 3, 10, 12, 101])
def test_top_class_is_the_argmax_first_among_equals(classes):
  z = np.round(draw(200, classes, scale=0.7)[0])  # many ties
  z[0], z[1], z[1, -1] = 0, -np.inf, 0
  z = z.reshape(4, 50, classes)
  expected = np.argmax(z, axis=-1)[..., None]
  top = logspace.top_class
  for found in run(lambda z: (top(z), jax.vmap(top)(z)), z):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  'loss', [losses.focal, losses.nfl, losses.nnfl], ids=lambda f: f.__name__
)
def test_the_square_root_is_the_power(loss):
  """gamma = 1/2 has a form of its own; a traced gamma takes the general one."""
  z, y = draw(scale=4.0)
  z[0], z[1] = [200, 0, 0, 0], 0  # p = 1, p = 1/4
  tangent = draw(seed=1)[0]

  def derivatives(gamma, detach):
    def slope(z):
      value, back = jax.vjp(lambda z: loss(z, y, gamma=gamma, detach=detach), z)
      return value, back(jnp.ones_like(value))[0]

    (value, first), (_, second) = jax.jvp(slope, [z], [tangent])
    return value, first, second[2:]

  detaches = (True, False)
  found = run(
    lambda gamma: [
      (derivatives(0.5, detach), derivatives(gamma, detach))
      for detach in detaches
    ],
    np.float32(0.5),
  )
  for detach, both in zip(detaches, found, strict=True):
    for own, general in zip(*both, strict=True):
      assert np.isfinite(own).all()
      close(own, general, rtol=1e-3, atol=2e-5, err_msg=f'detach {detach}')


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
  z, y = draw(scale=scale)
  u, v = rng.uniform(-1.2, 1.2, 64), rng.uniform(-1.2, 1.2, z.shape)
  wrt = np.float64(z), u, v
  tangent = tuple(rng.normal(size=a.shape) for a in wrt)

  def everything(loss, wrt):
    total = lambda z, u, v: jnp.sum(loss(z, y, u, v))
    slope = jax.grad(total, argnums=(0, 1, 2))
    return loss(wrt[0], y, *wrt[1:]), *jax.jvp(slope, wrt, tangent)

  with jax.enable_x64(True):
    both = run(
      lambda wrt: [everything(f, wrt) for f in (losses.sop, sop_as_defined)],
      wrt,
    )
  own, expected = map(jax.tree.leaves, both)
  for a, b in zip(own, expected, strict=True):
    close(a, b, rtol=1e-6, atol=1e-9)


def test_mean_log_prob_survives_a_large_common_offset():
  """The differences to the largest logit are summed, not the logits."""
  mean, smoothed = run(
    lambda z: (
      logspace.mean_log_prob(z),
      losses.label_smoothing(z, jnp.array([3])),
    ),
    np.full([1, 1000], 1e30, np.float32),
  )
  close(mean, -np.log(1000), rtol=1e-6)
  close(smoothed, np.log(1000), rtol=1e-6)
