"""Residual networks for small images: ResNet, PreActResNet and WideResNet.

Inputs are [b, h, w, ch]; the papers have 32 by 32 pixels, any size does.
"""

from collections.abc import Callable, Iterator, Sequence
import functools

from flax import linen as nn
import jax.numpy as jnp

from jnl.base import Array, Key, Outputs, check
from jnl.nets._layers import Dropout, batch_norm

# What PyTorch's layers start from, and so most published code: U(-a, a) with
# a = 1 / sqrt(fan in). The paper's own N(0, 2 / fan out) is up to 6 times wider
# in variance.
_torch_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
_he_init = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


def _conv(
  channels: int,
  size: int,
  stride: int = 1,
  *,
  kernel_init: nn.initializers.Initializer = _torch_init,
  dtype: jnp.dtype | None = None,
) -> nn.Conv:
  """A square convolution without bias, padded alike on all four sides.

  As published. Flax's 'SAME' pads a stride of 2 at the right and the bottom
  only: another network.
  """
  return nn.Conv(
    channels,
    (size, size),
    stride,
    padding=[(size // 2, size // 2)] * 2,
    use_bias=False,
    kernel_init=kernel_init,
    dtype=dtype,
  )


def _plan(blocks: Sequence[int], channels: int) -> Iterator[tuple[int, int]]:
  """(channels, stride) of each block; a new stage doubles and halves.

  >>> list(_plan((1, 2), 64))
  [(64, 1), (128, 2), (128, 1)]
  """
  for stage, count in enumerate(blocks):
    for block in range(count):
      yield channels << stage, 2 if stage and not block else 1


def _head(x: Array, classes: int, dtype: jnp.dtype | None) -> Outputs:
  """The mean over pixels, and one dense layer."""
  x = x.mean((1, 2))
  dense = nn.Dense(classes, kernel_init=_torch_init, dtype=dtype)
  return Outputs(dense(x), x)


class BasicBlock(nn.Module):
  """relu(BN(conv(relu(BN(conv(x))))) + skip): the block of 2015.

  skip is x, or BN(conv1x1(x)) where the shape changes.

  Attributes:
    conv: `(channels, size, stride) -> module`.
    norm: `train -> module`.
    channels: of the output.
    stride: of the first convolution, and of that of the skip.
  """

  conv: Callable[..., nn.Module]
  norm: Callable[[bool], nn.Module]
  channels: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    h = self.conv(self.channels, 3, self.stride)(x)
    h = nn.relu(self.norm(train)(h))
    h = self.norm(train)(self.conv(self.channels, 3)(h))
    if h.shape != x.shape:
      x = self.norm(train)(self.conv(self.channels, 1, self.stride)(x))
    return nn.relu(h + x)


class PreActBlock(nn.Module):
  """conv(dropout(act(BN(conv(a))))) + skip, a = act(BN(x)): the block of 2016.

  skip is x (a unless `identity`), or conv1x1(a) where the shape changes.

  Attributes:
    conv: `(channels, size, stride) -> module`.
    norm: `train -> module`.
    channels: of the output.
    stride: of the first convolution, and of that of the skip.
    identity: the skip hands on x itself where the shape allows.
    act: the nonlinearity.
    dropout: its rate.
    tag: of the dropout.
  """

  conv: Callable[..., nn.Module]
  norm: Callable[[bool], nn.Module]
  channels: int
  stride: int = 1
  identity: bool = True
  act: Callable[[Array], Array] = nn.relu
  dropout: float = 0.0
  tag: int = 0

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Array:
    a = self.act(self.norm(train)(x))
    h = self.conv(self.channels, 3, self.stride)(a)
    h = self.act(self.norm(train)(h))
    h = Dropout(self.dropout, self.tag)(h, keys, train)
    h = self.conv(self.channels, 3)(h)
    if h.shape != x.shape:
      return h + self.conv(self.channels, 1, self.stride)(a)
    return h + (x if self.identity else a)


class ResNet(nn.Module):
  """ResNet for small images: the stages of ImageNet's, a 3x3 stem, no pooling.

  The paper's own networks for CIFAR are thinner and have three stages. This is
  the form of kuangliu/pytorch-cifar, which the codes of ELR and of the active
  passive losses (APL) use. Kernels start as PyTorch's do, as in ELR; APL has
  He's and Glorot's uniform ones. Biases start at zero everywhere.

  Attributes:
    num_classes: number of classes.
    blocks: of each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
    width: channels of the first stage; doubled from stage to stage.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image
  Recognition", CVPR 2016, arXiv 1512.03385.
  """

  num_classes: int
  blocks: Sequence[int] = (3, 4, 6, 3)
  width: int = 64
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    del keys
    conv = functools.partial(_conv, dtype=self.dtype)
    norm = functools.partial(batch_norm, dtype=self.dtype)
    x = nn.relu(norm(train)(conv(self.width, 3)(x)))
    for channels, stride in _plan(self.blocks, self.width):
      x = BasicBlock(conv, norm, channels, stride)(x, train)
    return _head(x, self.num_classes, self.dtype)


class PreActResNet(nn.Module):
  """Pre-activation ResNet for small images, as DivideMix and ELR+ have it.

  Published codes differ in what follows the stem, in the skip where shapes
  agree, and in what comes before the pooling:

  - the paper, `identity=True`: nothing; x; BN, ReLU
  - kuangliu/pytorch-cifar: nothing; x; nothing
  - DivideMix, ELR+, `identity=False`: BN, ReLU; relu(BN(x)); nothing

  The last one, the default since the published numbers are of it, has no
  identity mapping at all: it keeps an early slip of kuangliu/pytorch-cifar,
  corrected there in July 2017. All take the 1x1 convolution of the skip from
  relu(BN(x)) and do not normalize it. Kernels start as PyTorch's do.

  Attributes:
    num_classes: number of classes.
    blocks: of each stage; (2, 2, 2, 2) is the network of 18 layers,
      (3, 4, 6, 3) that of 34.
    width: channels of the first stage; doubled from stage to stage.
    identity: the network of the paper.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks",
  ECCV 2016, arXiv 1603.05027.
  """

  num_classes: int
  blocks: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  identity: bool = False
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    conv = functools.partial(_conv, dtype=self.dtype)
    norm = functools.partial(batch_norm, dtype=self.dtype)
    x = conv(self.width, 3)(x)
    if not self.identity:
      x = nn.relu(norm(train)(x))
    for channels, stride in _plan(self.blocks, self.width):
      block = PreActBlock(conv, norm, channels, stride, self.identity)
      x = block(x, keys, train)
    if self.identity:
      x = nn.relu(norm(train)(x))
    return _head(x, self.num_classes, self.dtype)


class WideResNet(nn.Module):
  """Wide residual network WRN-d-k.

  As in the paper and its code: three stages of (d - 4) / 6 pre-activated
  blocks, dropout between the convolutions of a block, kernels from
  N(0, 2 / fan out).

  Semi-supervised codes since MixMatch and FixMatch call WRN-28-2 what is nearly
  `WideResNet(num_classes, 28, 2, slope=0.1, momentum=0.999)`: theirs takes the
  1x1 convolutions of the second and third stage from x instead of act(BN(x)),
  convolves with biases, pads strides as TensorFlow does, adds 1e-3 to variances
  and draws the last layer from Glorot's normal. kekmodel/FixMatch-pytorch, in
  those two blocks, also feeds x itself to the first convolution.

  Attributes:
    num_classes: number of classes.
    depth: d = 6 n + 4, for n blocks in a stage.
    widen_factor: k; the stages have 16 k, 32 k and 64 k channels.
    dropout: rate, .3 in the paper where it has dropout.
    slope: of the leaky ReLU; 0 is ReLU.
    momentum: of the running statistics.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv
  1605.07146.
  """

  num_classes: int
  depth: int = 28
  widen_factor: int = 10
  dropout: float = 0.0
  slope: float = 0.0
  momentum: float = 0.9
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    n, rest = divmod(self.depth - 4, 6)
    check(
      n >= 1 and rest == 0,
      f'depth must be 6 n + 4 with n at least 1, got {self.depth}',
    )
    conv = functools.partial(_conv, kernel_init=_he_init, dtype=self.dtype)
    norm = functools.partial(
      batch_norm, momentum=self.momentum, dtype=self.dtype
    )
    leaky = functools.partial(nn.leaky_relu, negative_slope=self.slope)
    act = leaky if self.slope else nn.relu
    x = conv(16, 3)(x)
    plan = _plan((n, n, n), 16 * self.widen_factor)
    for tag, (channels, stride) in enumerate(plan):
      x = PreActBlock(
        conv,
        norm,
        channels,
        stride,
        act=act,
        dropout=self.dropout,
        tag=tag,
      )(x, keys, train)
    return _head(act(norm(train)(x)), self.num_classes, self.dtype)
