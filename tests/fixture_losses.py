"""What the tests of the losses share."""

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np

B, C = 64, 4


def draw(b=B, c=C, scale=2.0, seed=0, dtype=np.float32):
  """Random logits [b, c] and labels [b], of numpy."""
  rng = np.random.default_rng(seed)
  logits = scale * rng.standard_normal([b, c])
  return logits.astype(dtype), rng.integers(0, c, b).astype(np.int32)


def softmax(z):
  """Of numpy, in float64."""
  p = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def close(actual, expected, rtol=1e-5, atol=1e-6, err_msg=''):
  np.testing.assert_allclose(actual, expected, rtol, atol, err_msg=err_msg)


def value_and_slope(loss, z, y, **hp):
  """The losses, and the gradient of their sum."""
  value, back = jax.vjp(lambda z: loss(z, y, **hp), z)
  return value, back(jnp.ones_like(value))[0]


def slope(loss, z, y, **hp):
  return value_and_slope(loss, z, y, **hp)[1]


def grad(f, argnums=0):
  """`jax.grad`, compiled: quicker than op by op on shapes used once."""
  return jax.jit(jax.grad(f, argnums))


def value_and_grad(f, argnums=0):
  return jax.jit(jax.value_and_grad(f, argnums))


def run(f, *arguments):
  """What a function gives, in numpy: one program is cheaper than its ops."""
  return compiled(f)(*arguments)
