"""Meta rescaling: weights and labels that make one step of training better.

Gradients through the step by forward mode (`virtual_step`, `weight_gradient`,
`meta_gradient`), the features and the memory of STORM, and the small networks
of the papers. The methods are in `jnl.methods`: l2rw, mwn, storm, mlc, mslc.
"""

from jnl.meta._gradients import (
  MetaGradient,
  all_finite,
  descend,
  first_adam,
  meta_gradient,
  reverse_meta_gradient,
  settle,
  total,
  virtual_step,
  weight_gradient,
)
from jnl.meta._networks import corrector, rescale, rescaler, weigh, weigher
from jnl.meta._statistics import (
  Memory,
  check_classes,
  storm_features,
  storm_memory,
)
from jnl.meta._streams import (
  Loss,
  Passed,
  Stream,
  drawn,
  passing,
  read_stream,
  remember,
)
from jnl.meta._weights import (
  l2rw_weights,
  look_ahead_discount,
  mslc_labels,
  mslc_losses,
  mslc_mix,
)

__all__ = [
  'Loss',
  'Memory',
  'MetaGradient',
  'Passed',
  'Stream',
  'all_finite',
  'check_classes',
  'corrector',
  'descend',
  'drawn',
  'first_adam',
  'l2rw_weights',
  'look_ahead_discount',
  'meta_gradient',
  'mslc_labels',
  'mslc_losses',
  'mslc_mix',
  'passing',
  'read_stream',
  'remember',
  'rescale',
  'rescaler',
  'reverse_meta_gradient',
  'settle',
  'storm_features',
  'storm_memory',
  'total',
  'virtual_step',
  'weigh',
  'weigher',
  'weight_gradient',
]
