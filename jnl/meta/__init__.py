"""Meta rescaling: weights and labels that make one step of training better.

Gradients through the step by forward mode (`virtual_step`, `look_ahead`,
`weight_gradient`, `meta_gradient`), the weights and labels that L2RW and MSLC
make, the features and the memory of STORM, and the small networks of the
papers. The methods are in `jnl.methods`: l2rw, mwn, storm, mlc, mslc.
"""

from jnl.meta._gradients import (
  LookAhead,
  MetaGradient,
  Virtual,
  first_adam,
  look_ahead,
  meta_gradient,
  reverse_meta_gradient,
  total,
  virtual_step,
  weight_gradient,
)
from jnl.meta._networks import corrector, rescale, rescaler, weigh, weigher
from jnl.meta._statistics import Memory, storm_features, storm_memory
from jnl.meta._weights import (
  l2rw_weights,
  look_ahead_discount,
  mslc_labels,
  mslc_losses,
  mslc_mix,
)

__all__ = [
  'LookAhead',
  'Memory',
  'MetaGradient',
  'Virtual',
  'corrector',
  'first_adam',
  'l2rw_weights',
  'look_ahead',
  'look_ahead_discount',
  'meta_gradient',
  'mslc_labels',
  'mslc_losses',
  'mslc_mix',
  'rescale',
  'rescaler',
  'reverse_meta_gradient',
  'storm_features',
  'storm_memory',
  'total',
  'virtual_step',
  'weigh',
  'weigher',
  'weight_gradient',
]


def __dir__() -> list[str]:
  return __all__
