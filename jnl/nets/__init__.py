"""Flax networks as `Model`s. The only room of jnl that imports flax."""

from jnl.nets.adapters import (
  feature_width,
  from_linen,
  from_nnx,
  standardize,
)
from jnl.nets.cnn import CNN8, StridedCNN
from jnl.nets.layers import BatchNorm, Dropout, batch_norm, max_pool
from jnl.nets.mlp import MLP
from jnl.nets.names import build
from jnl.nets.resnet import PreActResNet, ResNet, WideResNet
from jnl.nets.text import NgramClassifier, TextTransformer

__all__ = [
  'CNN8',
  'MLP',
  'BatchNorm',
  'Dropout',
  'NgramClassifier',
  'PreActResNet',
  'ResNet',
  'StridedCNN',
  'TextTransformer',
  'WideResNet',
  'batch_norm',
  'build',
  'feature_width',
  'from_linen',
  'from_nnx',
  'max_pool',
  'standardize',
]
