"""What the tests of the trainer share: data and a network quick to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Model, Outputs, global_sum

N, CLASSES = 62, 3


def arrays(n=N, seed=0):
  """Three separable classes in the plane."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, n).astype(np.int32)
  angle = 2 * np.pi * labels / CLASSES
  x = np.stack([np.cos(angle), np.sin(angle)], 1)
  x += 0.2 * rng.normal(size=(n, 2))
  return {'x': x.astype(np.float32), 'labels': labels}


def network():
  """One matrix; with dropout, and batch statistics of all devices.

  What is random is read off the bits of the keys, which costs no compilation.
  """

  def init(key):
    odd = jax.random.key_data(key)[-2:] % 1000 / 1000
    return jnp.outer(odd, jnp.arange(CLASSES) - 0.5), {'mean': jnp.zeros(2)}

  def apply(params, stats, x, keys, train, mask=None):
    if not train:
      return Outputs((x - stats['mean']) @ params, x), stats
    counted = jnp.where(mask[:, None], x, 0).sum(0), mask.sum()
    total, count = map(global_sum, counted)
    kept = jax.random.key_data(keys)[:, -2:] % 4 > 0
    logits = jnp.where(kept, x - total / count, 0) @ params
    mean = 0.9 * stats['mean'] + 0.1 * total / count
    return Outputs(logits, x), {'mean': mean}

  return Model(init, apply)


def with_key(method):
  """The method with a random key beside its memory, and that in a list."""

  def init(key):
    state = method.init(key)
    return state._replace(extra=[state.extra, jax.random.fold_in(key, 1)])

  def step(state, batch, key):
    memory, own = state.extra
    state, metrics = method.step(state._replace(extra=memory), batch, own)
    own = jax.random.fold_in(own, 0)
    return state._replace(extra=[state.extra, own]), metrics

  return method._replace(init=init, step=step)


def raw_keys(tree):
  """The tree with the numbers of its keys."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if is_key(x) else x, tree
  )
