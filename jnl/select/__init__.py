"""Which examples to trust: small losses, mixtures of losses, prototypes.

  small_loss                 the k examples of smallest loss in a batch
  co_teaching                those of the other network (Co-teaching)
  disagreement               where two networks differ (Co-teaching+)
  jocor                      the joint loss of two networks (JoCoR)
  gaussian_mixture           two Gaussians of losses (DivideMix)
  beta_mixture               two beta distributions (M-DYR)
  gaussian_mixture_by_class, beta_mixture_by_class
                             the same for each class
  clean_probability          what a mixture says of a loss
  lrt_correct, lrt_delta     labels moved to the prediction (LRT, PLC)
  class_means                a prototype of each class
  update_prototypes          the same, by momentum over batches
  nearest_prototype          the class whose prototype is nearest
  split_threshold            scores parted where the sides vary least (Otsu)

`ramps.forget_rate` is how many small losses are left out, `losses.cores2_sieve`
another choice by the loss of an example, `neighbors` who is near whom.
"""

from jnl.select._corrected import Corrected, lrt_correct, lrt_delta
from jnl.select._mixtures import (
  BetaMixture,
  GaussianMixture,
  beta_mixture,
  beta_mixture_by_class,
  clean_probability,
  gaussian_mixture,
  gaussian_mixture_by_class,
)
from jnl.select._prototypes import (
  Nearest,
  class_means,
  nearest_prototype,
  update_prototypes,
)
from jnl.select._small_loss import (
  co_teaching,
  disagreement,
  jocor,
  small_loss,
)
from jnl.select._split import split_threshold

__all__ = [
  'BetaMixture',
  'Corrected',
  'GaussianMixture',
  'Nearest',
  'beta_mixture',
  'beta_mixture_by_class',
  'class_means',
  'clean_probability',
  'co_teaching',
  'disagreement',
  'gaussian_mixture',
  'gaussian_mixture_by_class',
  'jocor',
  'lrt_correct',
  'lrt_delta',
  'nearest_prototype',
  'small_loss',
  'split_threshold',
  'update_prototypes',
]


def __dir__() -> list[str]:
  return __all__
