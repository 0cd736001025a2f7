r"""Which instances of a bag are positive? Exact counts in belief propagation.

The law of binary labels y of n instances, some tied in pairs, some in bags:

.. math:: \log p(y) = \sum_i \theta_i y_i - \sum_{ij} w_{ij} (y_i - y_j)^2
                      + \sum_b \phi_b\Big(\sum_{i \in b} y_i\Big) + const

The law, a `FactorGraph`
  label_proportions    of LLP-BP, given the counts of bags
  factor_graph         of any ties and factors of bags
  count_factor         phi of a count, for it
  add_log_odds         with theta, as of a network
  tie_neighbors        with ties to nearest neighbors, under jit
  place                on several devices
  FactorGraph          its arrays
Messages
  propagate            passes them until they rest: `Beliefs`
  pair_messages        through pair factors
  no_messages          to start from: all silent
  no_product_messages  to start from: as PGMax does
  Messages             of all factors, in log-odds
  Beliefs              log-odds, marginals, and how it went
The result, read
  top_of_bags          labels that hold the counts
  pair_probs           `PairProbs` of all ties
  PairProbs            joint probabilities
  count_log_probs      of all counts of each bag
  bethe_free_energy    -log Z

All is in log-odds: one number for each message, the marginal is their sigmoid.
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
  tie_neighbors,
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
  'tie_neighbors',
  'top_of_bags',
]


def __dir__() -> list[str]:
  return __all__
