"""Flax networks as `Model`s. The only room of jnl that imports flax."""

from jnl.nets.adapters import from_linen, from_nnx
from jnl.nets.cnn import StridedCNN
from jnl.nets.layers import Dropout, batch_norm
from jnl.nets.mlp import MLP

__all__ = [
  'MLP',
  'Dropout',
  'StridedCNN',
  'batch_norm',
  'from_linen',
  'from_nnx',
]
