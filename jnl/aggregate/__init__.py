"""What several votes say together: one label, or how probable each class is.

Votes are a table [n, a] of int, a column for each annotator or labeling
function and -1 where there is none, or `Triples`, which hold only what there
is: a million items and a thousand annotators.

  triples(item, worker, answer)     as crowds come; triples_of, votes_of
  majority_vote, vote_shares        one label, soft labels; vote_counts
  dawid_skene, one_coin             EM: a matrix of each annotator, an accuracy;
                                    dawid_skene_posterior for new items
  label_model, generative_model     functions that abstain: by moments, by
                                    likelihood; label_model_posterior
  label_model_loss, vote_moments, marginal_nll
                                    what these minimize, for fits of your own
  triplet_accuracies                two classes, in closed form
  coverage, overlap, conflict, empirical_accuracy
                                    what votes are like
"""

from jnl.aggregate._dawid_skene import (
  Aggregated,
  dawid_skene,
  dawid_skene_posterior,
  one_coin,
)
from jnl.aggregate._describe import (
  conflict,
  coverage,
  empirical_accuracy,
  overlap,
)
from jnl.aggregate._label_model import (
  LabelModel,
  generative_model,
  label_model,
  label_model_loss,
  label_model_posterior,
  marginal_nll,
  triplet_accuracies,
  vote_moments,
)
from jnl.aggregate._majority import majority_vote, vote_counts, vote_shares
from jnl.aggregate._triples import (
  Triples,
  read_votes,
  triples,
  triples_of,
  votes_of,
)

__all__ = [
  'Aggregated',
  'LabelModel',
  'Triples',
  'conflict',
  'coverage',
  'dawid_skene',
  'dawid_skene_posterior',
  'empirical_accuracy',
  'generative_model',
  'label_model',
  'label_model_loss',
  'label_model_posterior',
  'majority_vote',
  'marginal_nll',
  'one_coin',
  'overlap',
  'read_votes',
  'triples',
  'triples_of',
  'triplet_accuracies',
  'vote_counts',
  'vote_moments',
  'vote_shares',
  'votes_of',
]


def __dir__() -> list[str]:
  return __all__
