"""Plain convolutional networks."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax.numpy as jnp

from jnl.base import Array, Key, Outputs
from jnl.nets._layers import Dropout, batch_norm, max_pool


class StridedCNN(nn.Module):
  """A small CNN: 3x3 convolutions of stride 2, then a dense layer.

  Strides instead of pooling: about 20 times cheaper on CPU than convolutions at
  full resolution with max pooling, whose backward pass is slow there.

  Attributes:
    num_classes: number of classes.
    channels: of each convolution.
    hidden: width of the dense layer, the features.
    batch_norm: normalize after each convolution.
    dropout: rate on the features.
    dtype: of the computation (parameters are float32), for example bfloat16.
  """

  num_classes: int
  channels: Sequence[int] = (16, 32)
  hidden: int = 64
  batch_norm: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    for channels in self.channels:
      x = nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype)(x)
      if self.batch_norm:
        x = batch_norm(train, dtype=self.dtype)(x)
      x = nn.relu(x)
    x = x.reshape((x.shape[0], -1))
    x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
    x = Dropout(self.dropout)(x, keys, train)
    return Outputs(nn.Dense(self.num_classes, dtype=self.dtype)(x), x)


class CNN8(nn.Module):
  """The 8-layer CNN that robust losses are compared with on CIFAR-10.

  Three times two 3x3 convolutions and a max pooling, then two dense layers, as
  in the code of APL. Convolutions have a bias although batch normalization
  takes it away again, and the third pair has 196 channels, not 192. Biases
  start at zero.

  Attributes:
    num_classes: number of classes.
    channels: of each pair of convolutions.
    hidden: width of the first dense layer, the features.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: Ma, Huang, Wang, Romano, Erfani, Bailey, "Normalized Loss Functions
  for Deep Learning with Noisy Labels", ICML 2020, arXiv 2006.13554.
  """

  num_classes: int
  channels: Sequence[int] = (64, 128, 196)
  hidden: int = 256
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    del keys
    conv = functools.partial(
      nn.Conv,
      kernel_size=(3, 3),
      kernel_init=nn.initializers.he_uniform(),
      dtype=self.dtype,
    )
    dense = functools.partial(
      nn.Dense, kernel_init=nn.initializers.glorot_uniform(), dtype=self.dtype
    )
    for channels in self.channels:
      for _ in range(2):
        x = nn.relu(batch_norm(train, dtype=self.dtype)(conv(channels)(x)))
      x = max_pool(x, 2)
    x = dense(self.hidden)(x.reshape((x.shape[0], -1)))
    x = nn.relu(batch_norm(train, dtype=self.dtype)(x))
    return Outputs(dense(self.num_classes)(x), x)
