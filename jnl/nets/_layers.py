"""Layers that know about examples and devices, and pooling."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from jnl.base import AXIS, Array, Key, axis_is_bound, check, global_sum


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


class BatchNorm(nn.Module):
  r"""Batch normalization over the examples that count, on all devices.

  .. math:: y = \gamma\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

  As `flax.linen.BatchNorm`, with parameters and statistics of the same names;
  but with a mask, over several devices, its mean is the mean of all examples,
  where Flax averages the means of devices that may hold more or fewer.

  Attributes:
    use_running_average: normalize by what is remembered, not by the batch.
    momentum: of the running statistics.
    epsilon: added to variances.
    dtype: of the result; statistics are computed and kept in float32.
  """

  use_running_average: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
    """Normalizes x [b, ..., ch] by the rows of `mask` [b, 1, ...] bool."""
    channels = x.shape[-1:]
    stat = functools.partial(self.variable, 'batch_stats')
    mean = stat('mean', jnp.zeros, channels, jnp.float32)
    var = stat('var', jnp.ones, channels, jnp.float32)
    scale = self.param('scale', nn.initializers.ones, channels)
    bias = self.param('bias', nn.initializers.zeros, channels)
    mu, sigma2 = mean.value, var.value
    if not self.use_running_average:
      mu, sigma2 = _mean_and_variance(x, mask)
      if not self.is_initializing():
        keep = self.momentum
        mean.value = keep * mean.value + (1 - keep) * mu
        var.value = keep * var.value + (1 - keep) * sigma2
    y = (x - mu) * (lax.rsqrt(sigma2 + self.epsilon) * scale) + bias
    return y.astype(jnp.result_type(x) if self.dtype is None else self.dtype)


def _mean_and_variance(x: Array, mask: Array | None) -> tuple[Array, Array]:
  """Over all but the last axis, and over all devices, [ch] each."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(x.ndim - 1))
  size = x.size // x.shape[-1]
  count = jnp.asarray(size, x.dtype)
  if mask is not None:
    x = jnp.where(mask, x, 0)
    count = jnp.sum(mask) * (size / mask.size)
  sums = jnp.sum(x, axes), jnp.sum(x * x, axes), count
  total, squares, count = global_sum(sums)
  mean = total / count
  return mean, jnp.maximum(squares / count - mean * mean, 0)


def rows_of(mask: Array, x: Array) -> Array:
  """A mask of examples [b] as one of the rows of a layer, [r b, 1, ...].

  Where a layer has r rows for each example, as after a reshape, those of one
  example are taken to be together.

  Raises:
    ValueError: if x has no whole number of rows for each example, or a single
      value of each channel.
  """
  times, rest = divmod(x.shape[0], mask.size)
  check(
    times >= 1 and rest == 0,
    f'batch normalization has {x.shape[0]} rows, which a mask of {mask.size} '
    'examples does not fit',
  )
  devices = lax.axis_size(AXIS) if axis_is_bound() else 1
  check(
    x.size * devices > x.shape[-1],
    'batch normalization has a batch of one value of each channel, from which '
    'its mean takes all there is: the batch must have at least 2 examples',
  )
  return jnp.repeat(mask, times).reshape(-1, *(1,) * (x.ndim - 1))


def counting(mask: Array | None) -> Callable[..., Any]:
  """Has every batch normalization of a Linen network count a part of the rows.

  Args:
    mask: [b] bool, of the examples; None for all.

  Returns:
    An interceptor for `nn.intercept_methods`.
  """

  def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    layer = isinstance(context.module, BatchNorm | nn.BatchNorm)
    if mask is None or not layer or context.method_name != '__call__':
      return call(*args, **kwargs)
    return call(*args, **{'mask': rows_of(mask, args[0]), **kwargs})

  return intercept


def batch_norm(
  train: bool, *, momentum: float = 0.9, dtype: jnp.dtype | None = None
) -> BatchNorm:
  """A layer of batch normalization over the global batch, in every mode.

  PyTorch's default momentum of 0.1 is 0.9 here, and 1e-5 is added to variances
  in both. The running variance is that of the batch divided by its size n, not
  by n - 1 as in PyTorch.

  Args:
    train: normalize by the batch (and remember it), or by what is remembered.
    momentum: of the running statistics.
    dtype: of the result; statistics are computed and kept in float32.

  Returns:
    A Linen module to be called in a compact method. Examples of weight 0 are
    left out of its statistics by `from_linen`.
  """
  return BatchNorm(not train, momentum, dtype=dtype)


@jax.custom_jvp
def _larger(a: Array, b: Array) -> Array:
  """The maximum of two, whose gradient compares the two with each other.

  JAX compares them with the maximum. Where XLA computes an input anew for that,
  and rounds it otherwise, none of them is it, and the gradient of a maximum
  over a window becomes 0 / 0.
  """
  return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals, tangents):
  (a, b), (d_a, d_b) = primals, tangents
  tied = jnp.where(a < b, d_b, (d_a + d_b) / 2)
  return _larger(a, b), jnp.where(a > b, d_a, tied)


def max_pool(x: Array, size: int) -> Array:
  """The maxima of square windows without overlap.

  By reshaping: a small CNN trains 1.7 times quicker with it on CPU than with
  `nn.max_pool`, whose backward pass is a select and scatter. Tied maxima share
  the gradient, by pairs.

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
  x = x.reshape(b, rows, size, columns, size, ch)
  x = functools.reduce(_larger, [x[:, :, i] for i in range(size)])
  return functools.reduce(_larger, [x[:, :, :, i] for i in range(size)])
