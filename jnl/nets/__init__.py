"""Flax networks as `Model`s. The only room of jnl that imports flax.

Models
  build            a network with the settings of its paper, by name
  from_linen       of a Flax Linen module
  from_nnx         of a Flax NNX module
  standardize      with inputs that are standardized first
  feature_width    the size of its features
Linen modules
  MLP              dense layers
  CNN8             the 8-layer CNN of robust losses
  StridedCNN       a small CNN, quick on a CPU
  ResNet           for small images
  PreActResNet     of DivideMix and ELR+
  WideResNet       WRN-d-k
  NgramClassifier  of hashed n-grams of texts
  TextTransformer  a small encoder of texts
Layers
  BatchNorm        over the examples that count, on all devices
  batch_norm       that layer, in training or not
  Dropout          by the example's own key
  max_pool         without overlap, quick on a CPU
"""

from jnl.nets._adapters import from_linen, from_nnx, standardize
from jnl.nets._cnn import CNN8, StridedCNN
from jnl.nets._layers import BatchNorm, Dropout, batch_norm, max_pool
from jnl.nets._mlp import MLP
from jnl.nets._names import build
from jnl.nets._resnet import PreActResNet, ResNet, WideResNet
from jnl.nets._text import NgramClassifier, TextTransformer
from jnl.steps import feature_width

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


def __dir__() -> list[str]:
  return __all__
