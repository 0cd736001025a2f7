"""Augmentation on the device: pure functions `(keys [b], x [b, ...]) -> x`.

Images are [b, h, w, c] with values in [0, 1]. What happens to an example
depends on its own key alone, so that views are the same on any number of
devices, and nothing is communicated. Hyperparameters are set with
`functools.partial`.

Put together
  compose           one after the other
  views             weak and strong views of a batch, for `fit(augment=)`
  Augmentation      the type of these functions
Simple ones
  pad_crop          padded, and cut out at a random place
  flip              mirrored left to right
  cutout            a square covered
  gaussian_noise    normal noise added
  feature_dropout   values set to zero
Policies
  rand_augment      RandAugment
  fixmatch_augment  the strong view of FixMatch
  auto_augment      AutoAugment
  cotta_views       the views that CoTTA's teacher averages over
  distort           one operation for each image
  OPS               the operations
  RAND_AUGMENT_OPS  those of RandAugment
  CIFAR10_POLICY    the sub-policies of AutoAugment
Corruptions
  corrupt           noise, blur, fog and the like, severities 1 to 5
  CIFAR_C           the strengths of CIFAR-10-C and CIFAR-100-C
  MNIST_C           those of MNIST-C
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
from jnl.data.augment._corruptions import CIFAR_C, MNIST_C, corrupt
from jnl.data.augment._cotta import cotta_views
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
  'CIFAR_C',
  'MNIST_C',
  'OPS',
  'RAND_AUGMENT_OPS',
  'Augmentation',
  'auto_augment',
  'compose',
  'corrupt',
  'cotta_views',
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


def __dir__() -> list[str]:
  return __all__
