"""Multilayer perceptrons."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp

from jnl.base import Array, Key, Outputs
from jnl.nets._layers import Dropout, batch_norm


class MLP(nn.Module):
  """A multilayer perceptron with ReLU: x [b, ...], flattened, -> Outputs.

  Attributes:
    num_classes: number of classes.
    hidden: width of each hidden layer; the last one gives the features.
    batch_norm: normalize before each ReLU.
    dropout: rate after each ReLU.
    dtype: of the computation (parameters are float32), for example bfloat16.
  """

  num_classes: int
  hidden: Sequence[int] = (256, 256)
  batch_norm: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    x = x.reshape((x.shape[0], -1))
    for i, width in enumerate(self.hidden):
      x = nn.Dense(width, use_bias=not self.batch_norm, dtype=self.dtype)(x)
      if self.batch_norm:
        x = batch_norm(train, dtype=self.dtype)(x)
      x = Dropout(self.dropout, tag=i)(nn.relu(x), keys, train)
    return Outputs(nn.Dense(self.num_classes, dtype=self.dtype)(x), x)
