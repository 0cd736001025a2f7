"""Golden checks of votes and outliers in `jnl.audit`; see golden_case.py."""

import itertools

import numpy as np

from jnl import audit

CONSENSUS = 'best_quality', 'majority_vote'
QUALITY = 'crowdlab', 'agreement'
METHODS = 'entropy', 'least_confidence', 'gen'


def check_crowd(case):
  """Counted without classes, as the file was: the code lost those of floats."""
  votes, probs = case['labels_multiannotator'], case['pred_probs']
  votes = np.where(np.isnan(votes), -1, votes).astype(np.int32)
  case.skip('true_labels')  # of nothing that is compared

  def run(votes, probs):
    crowds = {
      f'{consensus}_{quality}': audit.crowdlab(
        votes, probs, consensus=consensus, quality=quality, as_coded=True
      )
      for consensus, quality in itertools.product(CONSENSUS, QUALITY)
    }
    asked = audit.active_learning_scores(votes, probs, as_coded=True)
    return crowds, audit.majority_vote(votes, probs), asked

  crowds, majority, asked = yield run, votes, probs
  case.equal(majority, 'majority_vote')
  case.value(asked, 'active_learning_scores')
  for name, crowd in crowds.items():
    case.equal(crowd.labels, f'{name}_consensus_label')
    case.value(crowd.quality, f'{name}_consensus_quality')
    case.value(crowd.agreement, f'{name}_annotator_agreement')
    case.value(crowd.annotator_quality, f'{name}_annotator_quality')
    case.value(crowd.vote_quality, f'{name}_detailed')
    case.value(crowd.model_weight, f'{name}_model_weight')
    case.value(crowd.annotator_weights, f'{name}_annotator_weight')


def check_probs(case):
  probs = case['pred_probs']
  thresholds = audit.confident_thresholds(case['labels'], probs)
  variants = list(itertools.product(METHODS, (0, 1)))

  def run(probs, thresholds):
    t = None, thresholds
    return [
      audit.ood_probs(probs, method=method, thresholds=t[adjust])
      for method, adjust in variants
    ]

  found = yield run, probs, thresholds.astype(probs.dtype)
  for scores, (method, adjust) in zip(found, variants, strict=True):
    case.value(scores, f'ood_{method}_adj{adjust}')


def check_features(case):
  points, queries, k = case['X'], case['X_test'], case.hp('k')
  cosine = points.shape[1] > 3
  assert case.hp('metric_cosine') == cosine

  def run(points, queries):
    found = audit.ood_features(points, k=k)
    return found, audit.ood_queries(queries, points, found.scale, k=k)

  (scores, scale), of_queries = yield run, points, queries
  case.value(scores, 'scores')
  case.value(scale, 'scaling')
  case.value(of_queries, 'scores_test')


CHECKS = {
  ('cleanlab', 'multiannotator'): check_crowd,
  ('cleanlab', 'ood_predprobs'): check_probs,
  ('cleanlab', 'knn_outlier'): check_features,
}
