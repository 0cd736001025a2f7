"""Layers that draw per-example randomness and know about devices."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jnl.base import AXIS, Array, Key, axis_is_bound, check


class Dropout(nn.Module):
  """Dropout whose mask depends on the example's own key only.

  So a batch is masked alike on any number of devices. Written for modules whose
  `__call__` takes `(x, keys, train)`.

  Attributes:
    rate: [0, 1), the share of units set to zero.
    tag: folded into the keys; each Dropout of a network has its own.
  """

  rate: float
  tag: int = 0

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Array:
    """Masks x [b, ...] by `keys` [b]; the identity unless `train`."""
    check(0 <= self.rate < 1, f'rate must lie in [0, 1), got {self.rate}')
    if not train or self.rate == 0:
      return x
    if keys is None:
      raise ValueError('keys must be given to train with dropout')
    keep = 1 - self.rate

    def mask(key: Key) -> Array:
      key = jax.random.fold_in(key, self.tag)
      return jax.random.bernoulli(key, keep, x.shape[1:])

    return jnp.where(jax.vmap(mask)(keys), x / keep, 0)


def batch_norm(
  train: bool, *, momentum: float = 0.9, dtype: jnp.dtype | None = None
) -> nn.BatchNorm:
  """Batch normalization over the global batch, in every parallel mode.

  Args:
    train: normalize by the batch (and remember it), or by what is remembered.
    momentum: of the running statistics.
    dtype: of the computation; statistics are float32.

  Returns:
    A Linen module to be called in a compact method.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    dtype=dtype,
    axis_name=AXIS if axis_is_bound() else None,
  )
