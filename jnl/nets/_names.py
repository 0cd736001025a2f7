"""The networks of the papers, by the names that experiments give them."""

from flax import linen as nn
import jax.numpy as jnp

from jnl.base import check_name
from jnl.nets._cnn import CNN8, StridedCNN
from jnl.nets._mlp import MLP
from jnl.nets._resnet import PreActResNet, ResNet, WideResNet
from jnl.nets._text import NgramClassifier, TextTransformer


def build(
  name: str, num_classes: int, *, dtype: jnp.dtype | None = None
) -> nn.Module:
  """A network with the settings of its paper, by name.

  Args:
    name: mlp, strided_cnn, cnn8, preact_resnet18, preact_resnet34, resnet34,
      wide_resnet28_2, wide_resnet28_8, wide_resnet28_10 or wide_resnet34_10;
      for texts ngram or text_transformer.
    num_classes: c.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Returns:
    The module, for `from_linen`.

  Raises:
    ValueError: if the name is not known; it says which are.

  >>> build('wide_resnet28_2', 10).widen_factor
  2
  """
  nets: dict[str, nn.Module] = {
    'mlp': MLP(num_classes, dtype=dtype),
    'strided_cnn': StridedCNN(num_classes, dtype=dtype),
    'cnn8': CNN8(num_classes, dtype=dtype),
    'preact_resnet18': PreActResNet(num_classes, (2, 2, 2, 2), dtype=dtype),
    'preact_resnet34': PreActResNet(num_classes, (3, 4, 6, 3), dtype=dtype),
    'resnet34': ResNet(num_classes, (3, 4, 6, 3), dtype=dtype),
    'wide_resnet28_2': WideResNet(num_classes, 28, 2, dtype=dtype),
    'wide_resnet28_8': WideResNet(num_classes, 28, 8, dtype=dtype),
    'wide_resnet28_10': WideResNet(num_classes, 28, 10, dtype=dtype),
    'wide_resnet34_10': WideResNet(num_classes, 34, 10, dtype=dtype),
    'ngram': NgramClassifier(num_classes, dtype=dtype),
    'text_transformer': TextTransformer(num_classes, dtype=dtype),
  }
  check_name('net', name, nets)
  return nets[name]
