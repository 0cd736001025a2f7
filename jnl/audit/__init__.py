"""Which labels are wrong, and why one should believe it: arrays in, arrays out.

The labels [n] that are given, and probabilities [n, c] of a model that has not
learned from the row itself (`jnl.train.out_of_fold` makes them): numpy in gives
numpy out, jax in gives jax out.

  find_label_issues(labels, pred_probs)       bool [n]
  rank_label_issues(labels, pred_probs)       rows, the worst first
  label_quality(labels, pred_probs)           a score of every label, low is bad
  confident_joint -> calibrate_joint -> estimate_joint -> latent
                                              what is taken for what, how often
  rank_classes, overlapping_classes, health   the same, to be read
  ..._streamed(chunks, num_classes)           of more rows than memory holds
  find_multilabel_issues, ensemble_quality    several labels, several models
  crowdlab, majority_vote, active_learning_scores
                                              several annotators of each row
  ood_probs, ood_features, near_duplicates    unusual rows, rows that come twice
  intrinsic_flags, extrinsic_flags -> apply_flags
                                              "no relation" where there is one
  consensus_of_votes, part_accuracy, accuracy_vs_prevalence, ...
                                              test sets that people looked at

`jnl.train.page` shows it on a page, which `experiments/label_audit.py` makes.
"""

from jnl.aggregate import majority_vote
from jnl.audit._classes import (
  Overlaps,
  RankedClasses,
  health,
  overlapping_classes,
  rank_classes,
)
from jnl.audit._confident import (
  ConfidentJoint,
  Latent,
  calibrate_joint,
  confident_joint,
  confident_thresholds,
  estimate_joint,
  latent,
  noise_of_inverse,
  num_label_issues,
)
from jnl.audit._crowd import (
  Crowd,
  active_learning_scores,
  crowdlab,
)
from jnl.audit._issues import (
  find_label_issues,
  find_multilabel_issues,
  rank_label_issues,
)
from jnl.audit._quality import ensemble_quality, label_quality
from jnl.audit._relations import (
  Relabeled,
  RelationFlags,
  apply_flags,
  extrinsic_flags,
  intrinsic_flags,
)
from jnl.audit._streamed import (
  StreamedJoint,
  confident_joint_streamed,
  find_label_issues_streamed,
)
from jnl.audit._unusual import (
  FeatureScores,
  NearDuplicates,
  near_duplicates,
  ood_features,
  ood_probs,
  ood_queries,
)
from jnl.audit._votes import (
  Consensus,
  PartAccuracy,
  PrevalenceAccuracy,
  accuracy_vs_prevalence,
  bootstrap_accuracy,
  consensus_of_votes,
  part_accuracy,
  rank_flip_prevalence,
)

__all__ = [
  'ConfidentJoint',
  'Consensus',
  'Crowd',
  'FeatureScores',
  'Latent',
  'NearDuplicates',
  'Overlaps',
  'PartAccuracy',
  'PrevalenceAccuracy',
  'RankedClasses',
  'Relabeled',
  'RelationFlags',
  'StreamedJoint',
  'accuracy_vs_prevalence',
  'active_learning_scores',
  'apply_flags',
  'bootstrap_accuracy',
  'calibrate_joint',
  'confident_joint',
  'confident_joint_streamed',
  'confident_thresholds',
  'consensus_of_votes',
  'crowdlab',
  'ensemble_quality',
  'estimate_joint',
  'extrinsic_flags',
  'find_label_issues',
  'find_label_issues_streamed',
  'find_multilabel_issues',
  'health',
  'intrinsic_flags',
  'label_quality',
  'latent',
  'majority_vote',
  'near_duplicates',
  'noise_of_inverse',
  'num_label_issues',
  'ood_features',
  'ood_probs',
  'ood_queries',
  'overlapping_classes',
  'part_accuracy',
  'rank_classes',
  'rank_flip_prevalence',
  'rank_label_issues',
]


def __dir__() -> list[str]:
  return __all__
