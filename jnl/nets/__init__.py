"""Flax networks as `Model`s. The only room of jnl that imports flax."""

from jnl.nets._adapters import (
  feature_width,
  from_linen,
  from_nnx,
  standardize,
)
from jnl.nets._cnn import CNN8, StridedCNN
from jnl.nets._layers import BatchNorm, Dropout, batch_norm, max_pool
from jnl.nets._mlp import MLP
from jnl.nets._names import build
from jnl.nets._resnet import PreActResNet, ResNet, WideResNet
from jnl.nets._text import NgramClassifier, TextTransformer

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
