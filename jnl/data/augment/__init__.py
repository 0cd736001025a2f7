"""Augmentation on the device: pure functions `(keys [b], x [b, ...]) -> x`.

Images are [b, h, w, c] with values in [0, 1]. What happens to an example
depends on its own key alone, so that views are the same on any number of
devices, and nothing is communicated. Put together with `compose`, set hyper-
parameters with `functools.partial`, and hand `views` to `fit(augment=)`.
"""

from jnl.data.augment._basic import (
  Augmentation,
  compose,
  cutout,
  feature_dropout,
  flip,
  gaussian_noise,
  pad_crop,
  views,
)
from jnl.data.augment._ops import OPS, distort
from jnl.data.augment._policies import (
  CIFAR10_POLICY,
  RAND_AUGMENT_OPS,
  auto_augment,
  fixmatch_augment,
  rand_augment,
)

__all__ = [
  'CIFAR10_POLICY',
  'OPS',
  'RAND_AUGMENT_OPS',
  'Augmentation',
  'auto_augment',
  'compose',
  'cutout',
  'distort',
  'feature_dropout',
  'fixmatch_augment',
  'flip',
  'gaussian_noise',
  'pad_crop',
  'rand_augment',
  'views',
]
