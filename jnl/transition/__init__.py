"""What label turns into what: estimates of the transition matrix.

`T[i, j] = P(noisy = j | clean = i)`, from noisy labels [n] and

  anchor(probs), dual_t(probs, labels)
                         what a model says that was trained on them
  vol_min_loss(logits, labels, weights)
                         a network that learns the matrix as it trains
  hoc(labels, features, c)
                         who is near whom, by frozen features: no training
  simifeat_votes, simifeat_rank
                         the same neighbors, to say which labels are wrong

Losses that use a matrix are `jnl.losses.forward`, `backward`,
`importance_reweight` and `t_revision`; `experiments/noise_rates.py` compares
the estimates with the truth.
"""

from jnl.transition._anchor import Anchors, DualT, anchor, dual_t
from jnl.transition._hoc import (
  Consensus,
  Hoc,
  consensus,
  consensus_counts,
  hoc,
)
from jnl.transition._simifeat import (
  Flags,
  knn_votes,
  simifeat_rank,
  simifeat_votes,
)
from jnl.transition._vol_min import (
  vol_min_loss,
  vol_min_penalty,
  vol_min_transition,
)

__all__ = [
  'Anchors',
  'Consensus',
  'DualT',
  'Flags',
  'Hoc',
  'anchor',
  'consensus',
  'consensus_counts',
  'dual_t',
  'hoc',
  'knn_votes',
  'simifeat_rank',
  'simifeat_votes',
  'vol_min_loss',
  'vol_min_penalty',
  'vol_min_transition',
]


def __dir__() -> list[str]:
  return __all__
