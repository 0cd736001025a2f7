"""Golden checks of confident learning in `jnl.audit`; see golden_case.py.

Masks and counts are exact. Where ties leave open which rows are taken, as many
are, and their scores at the cut are the same.
"""

import functools
import os
import pathlib
import warnings

from golden_case import side_by_side
import numpy as np
import pytest

from jnl import audit, neighbors

SCORES = 'self_confidence', 'normalized_margin', 'confidence_weighted_entropy'
DATA = pathlib.Path(
  os.environ.get('JNL_DATA', pathlib.Path(__file__).parents[2] / 'shared/data')
)
OPTIONS = {'frac05': {'frac_noise': 0.5}, 'min5': {'min_examples_per_class': 5}}


def audited(case):
  """Labels, probabilities, and how many rows have each label."""
  labels, probs = case['labels'], case['pred_probs']
  return labels, probs, np.bincount(labels, minlength=probs.shape[1])


def open_rounding(counts, each):
  """Labels [c] whose row can be rounded in several ways, of equal remainders.

  numpy's sort decides, as in the reference; it is another one on other
  processors.
  """
  exact = audit.calibrate_joint(counts, each, rounding=False)
  off = np.sort(exact - audit.calibrate_joint(counts, each), axis=1)
  up, down = off.max(1), off.min(1)
  return up - down > 1 - 1e-9


def same_rounding(found, expected, counts, each):
  """Integers that are as far from the exact numbers, in any order of equals."""
  exact = audit.calibrate_joint(counts, each, rounding=False)
  off = [np.sort(whole - exact, axis=1) for whole in (found, expected)]
  np.testing.assert_allclose(*off, atol=1e-9)
  closed = ~open_rounding(counts, each)
  np.testing.assert_array_equal(found[closed], expected[closed])


def check_joint(case):
  yield
  labels, probs, each = audited(case)
  found = audit.confident_joint(labels, probs)
  case.value(audit.confident_thresholds(labels, probs), 'thresholds')
  case.equal(found.counts, 'cj_uncalibrated')
  wrong = np.flatnonzero(found.confident & (found.guess != labels))
  case.equal(wrong, 'off_diagonal_indices')
  whole = audit.calibrate_joint(found.counts, each)
  joint = audit.estimate_joint(found.counts, each)
  if case.has('cj_calibrated'):
    same_rounding(whole, case.expected('cj_calibrated'), found.counts, each)
  if case.has('joint'):
    theirs = case.expected('joint') * len(labels)
    same_rounding(joint * len(labels), theirs, found.counts, each)
  for estimate in ('off_diagonal', 'off_diagonal_calibrated'):
    number = audit.num_label_issues(labels, probs, estimate=estimate)
    case.equal(number, f'num_issues_{estimate}')


def check_latent(method):
  def check(case):
    yield
    counts = case['confident_joint']
    each = np.bincount(case['labels'], minlength=len(counts))
    found = audit.latent(counts, each, method=method)
    case.close(found.prior, 'py', rtol=1e-9)
    case.close(found.noise, 'noise_matrix', rtol=1e-9)
    case.close(found.inverse, 'inverse_noise_matrix', rtol=1e-9)

  return check


def check_algebra(case):
  yield
  noise, prior, given = case['noise_matrix'], case['py'], case['ps']
  inverse = case['inv_noise_matrix']
  around = audit.noise_of_inverse
  case.value(around(noise, prior), 'inv_noise_matrix')
  case.value(around(inverse, given), 'noise_matrix_from_inv')
  case.value(noise @ prior, 'ps')


def by(case, options):
  """What the rule sorts by, a column for each class that it may suggest."""
  labels, probs, _ = audited(case)
  rule = options['filter_by']
  own = np.take_along_axis(probs, labels[:, None], 1)
  if rule == 'low_normalized_margin':
    return audit.label_quality(labels, probs, method=rule[4:])[:, None]
  return own if rule != 'prune_by_noise_rate' else own - probs


def same_rows(found, expected, case, options):
  """Equal, but for rows that tie with others of their label at the cut."""
  labels, probs, each = audited(case)
  counts = audit.confident_joint(labels, probs).counts
  prunes = options['filter_by'].startswith(('prune', 'both'))
  either = open_rounding(counts, each)[labels] & prunes
  assert (found & either).sum() == pytest.approx(
    (expected & either).sum(), abs=2
  )
  found, expected = found & ~either, expected & ~either
  assert found.sum() == expected.sum()
  more, less = found & ~expected, expected & ~found
  keys = by(case, options)
  for row in np.flatnonzero(less):
    like = more & (labels == labels[row])
    like = more if options['filter_by'].startswith('low') else like
    assert np.any(np.abs(keys[like] - keys[row]) < 1e-6), row


def check_issues(case):
  yield
  labels, probs, _ = audited(case)
  for name in [name for name in case.arrays if name.startswith('mask_')]:
    rule, *option = name.removeprefix('mask_').rsplit('_', 1)
    if option and option[0] in OPTIONS:
      options = {'filter_by': rule, **OPTIONS[option[0]]}
    else:
      options = {'filter_by': name.removeprefix('mask_')}
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of labels with few rows
      found = audit.find_label_issues(labels, probs, **options)
    same_rows(found, case.expected(name), case, options)
  for rank_by in SCORES:
    name = f'ranked_pbnr_{rank_by}'
    if not case.has(name):
      continue
    order, expected = (
      audit.rank_label_issues(labels, probs, rank_by=rank_by),
      case.expected(name),
    )
    scores = audit.label_quality(labels, probs, method=rank_by)
    assert np.all(np.diff(scores[order]) >= 0)
    both = np.isin(expected, order)
    assert (~both).sum() <= 2
    np.testing.assert_allclose(
      np.sort(scores[expected[both]]), scores[expected[both]], atol=1e-6
    )


def check_quality(case):
  yield
  labels, probs, _ = audited(case)
  for method in SCORES[:2]:
    for adjust in (False, True):
      found = audit.label_quality(labels, probs, method=method, adjust=adjust)
      case.value(found, f'{method}_adj{adjust:d}')
  p = probs.astype(np.float64)
  entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(p.shape[1])
  case.close(entropy, 'norm_entropy', atol=3e-7)
  name = f'{SCORES[2]}_adj0'
  if case.has(name):
    found = audit.label_quality(labels, probs, method=SCORES[2])
    own = np.take_along_axis(p, labels[:, None], 1)[:, 0]
    q = entropy / np.maximum(own, 1e-6)
    # What rounding a probability to its dtype does to entropy / p.
    off = 8 * np.finfo(probs.dtype).eps / np.maximum(own, 1e-6) + 1e-12
    sure = q < 1e-6 + off  # 1, the best score; theirs is the worst, or nearly
    assert np.all(found[sure] >= 1 - 1e-5 - off[sure])
    expected = case.expected(name)
    assert np.all(expected[sure] <= 1)
    assert np.all(np.abs(found - expected)[~sure] < off[~sure] + 1e-6)


def check_dataset(case):
  yield
  labels, probs, each = audited(case)
  counts = audit.confident_joint(labels, probs).counts
  joint = audit.estimate_joint(counts, each)
  n = len(labels)
  ranked = np.stack(audit.rank_classes(joint, n), 1)
  overlaps = np.stack(audit.overlapping_classes(joint, n), 1)[:200]
  for found, name in ((ranked, 'rank_classes'), (overlaps, 'overlap_rows')):
    if case.has(name):
      expected = case.expected(name)
      column = -1  # equal ones in any order
      np.testing.assert_allclose(
        found[:, column], expected[:, column], 1e-9, 1e-12
      )
      in_order = lambda rows: rows[np.lexsort(rows.T[:2])]
      np.testing.assert_allclose(
        in_order(found), in_order(expected), 1e-9, 1e-12
      )
  case.close(audit.health(labels, probs), 'health', rtol=1e-12)


def check_ensemble(case):
  yield
  labels, probs = case['labels'], case['pred_probs']
  for weights in ('uniform', 'accuracy', 'log_loss_search'):
    case.value(audit.ensemble_quality(labels, probs, weights=weights), weights)


def check_test_sets(case):
  """Of inputs that are not in the file, but in a folder of data sets."""
  yield
  paths = DATA.glob('label_errors_*_test_set.npz')
  read = ((path, np.load(path)) for path in paths)
  asked = case['mturk_id']
  both = [r for _, r in read if np.array_equal(r['mturk_index'], asked)]
  if not both:
    pytest.skip(f'no label_errors_*_test_set.npz with these rows in {DATA}')
  labels, probs = both[0]['given_label'], both[0]['pred_probs']
  votes, given, guessed = (
    case[f'mturk_{name}'] for name in ('votes', 'given', 'guessed')
  )
  consensus = audit.consensus_of_votes(votes, given, guessed)
  case.equal(labels[asked], 'mturk_given')
  np.testing.assert_array_equal(consensus.is_error, votes[:, 0] < 3)
  counts = audit.confident_joint(labels, probs).counts
  case.close(audit.confident_thresholds(labels, probs), 'thresholds', rtol=1e-6)
  case.equal(counts, 'cj_uncalibrated')
  case.equal(
    audit.calibrate_joint(counts, np.bincount(labels)), 'cj_calibrated'
  )
  for name in [name for name in case.arrays if name.startswith('idx_')]:
    rule = name.removeprefix('idx_')
    found = audit.find_label_issues(labels, probs, filter_by=rule)
    case.equal(np.flatnonzero(found), name)


def check_relations(case):
  """Neighbors among the positives, and votes that weigh 1 / distance."""
  points, labels, k = case['X'], case['labels'], case.hp('k')
  positive, c = case['pos_idx'], len(case['classes'])
  case.skip('true')  # of nothing that is compared

  def run(points):
    near = functools.partial(neighbors.nearest, k=k, metric='cosine')
    return near(points, points[positive]), near(points, points)

  of_positives, of_all = yield run, points
  case.close(of_positives.distances, 'nn_dist', rtol=1e-5, atol=1e-6)
  case.equal(of_positives.index, 'nn_idx')
  np.testing.assert_array_equal(labels[positive] > 0, True)
  weights = 1 / np.maximum(of_all.distances, 1e-12)  # the row itself is all
  votes = np.stack([(labels[of_all.index] == j) * weights for j in range(c)], 1)
  probs = votes.sum(2) / weights.sum(1, keepdims=True)
  case.close(probs, 'knn_proba', atol=1e-4)


CHECKS = {
  ('tacred', 'knn_reference'): (check_relations, side_by_side),
  ('labelerrors', 'find_label_issues_outputs'): (check_test_sets, list),
  ('cleanlab', 'confident_joint'): (check_joint, list),
  **{
    ('cleanlab', f'estimate_latent_{method}'): (check_latent(method), list)
    for method in ('cnt', 'eqn', 'marginal', 'marginal_ps')
  },
  ('cleanlab', 'latent_algebra'): (check_algebra, list),
  ('cleanlab', 'find_label_issues'): (check_issues, list),
  ('cleanlab', 'label_quality'): (check_quality, list),
  ('cleanlab', 'dataset'): (check_dataset, list),
  ('cleanlab', 'ensemble_scores'): (check_ensemble, list),
}
