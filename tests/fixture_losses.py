"""What the tests of the losses share.

One shape for nearly all of them: run op by op, its small kernels are compiled
once for all tests.
"""

import jax
import jax.numpy as jnp
import numpy as np

B, C = 64, 4


def draw(b=B, c=C, scale=2.0, seed=0, dtype=jnp.float32):
  """Random logits [b, c] and labels [b]."""
  rng = np.random.default_rng(seed)
  logits = scale * rng.standard_normal([b, c])
  return jnp.asarray(logits, dtype), jnp.asarray(rng.integers(0, c, b))


def close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def grad(f, argnums=0):
  """`jax.grad`, compiled: quicker than op by op on shapes used once."""
  return jax.jit(jax.grad(f, argnums))


def value_and_grad(f, argnums=0):
  return jax.jit(jax.value_and_grad(f, argnums))


def value_and_slope(loss, z, y, **hp):
  """The losses, and the gradient of their sum."""
  value, back = jax.vjp(lambda z: loss(z, y, **hp), z)
  return value, back(jnp.ones_like(value))[0]


def slope(loss, z, y, **hp):
  return value_and_slope(loss, z, y, **hp)[1]
