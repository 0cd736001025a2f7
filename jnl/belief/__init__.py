r"""Which instances of a bag are positive? Exact counts in belief propagation.

The law of binary labels y of n instances, some tied in pairs, some in bags:

.. math:: \log p(y) = \sum_i \theta_i y_i - \sum_{ij} w_{ij} (y_i - y_j)^2
                      + \sum_b \phi_b\Big(\sum_{i \in b} y_i\Big) + const

`factor_graph` (or `label_proportions`, for counts) lays it out; `propagate`
passes messages until they rest; the rest of this room reads the result. All is
in log-odds: one number for each message, the marginal is their sigmoid.

On a tree the marginals are exact. On a graph with loops they are those of a
stationary point of the Bethe free energy, if `converged`; if not, they are
nothing in particular: damp more, or anneal.
"""

from jnl.belief._factors import (
  FactorGraph,
  add_log_odds,
  count_factor,
  factor_graph,
  label_proportions,
  place,
)
from jnl.belief._messages import (
  Beliefs,
  Messages,
  no_messages,
  no_product_messages,
  pair_messages,
  propagate,
)
from jnl.belief._readout import (
  PairProbs,
  bethe_free_energy,
  count_log_probs,
  pair_probs,
  top_of_bags,
)

__all__ = [
  'Beliefs',
  'FactorGraph',
  'Messages',
  'PairProbs',
  'add_log_odds',
  'bethe_free_energy',
  'count_factor',
  'count_log_probs',
  'factor_graph',
  'label_proportions',
  'no_messages',
  'no_product_messages',
  'pair_messages',
  'pair_probs',
  'place',
  'propagate',
  'top_of_bags',
]
