"""Scores are those of scikit-learn, by weight, and of nothing but what counts.

All are reduced by one program for all cases: rows of weight 0 hold NaN.
"""

import itertools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from sklearn import metrics

from jnl import automata
from jnl.base import Outputs
from jnl.train import data_mesh, evaluate, scores

N, C = 120, 5
OF_CLASSES = scores.join(
  scores.accuracy,
  scores.balanced_accuracy,
  scores.worst_class,
  scores.macro_f1,
  scores.micro_f1,
  scores.f1('micro', without=[0, 3])._replace(
    reduce=lambda rows, arrays: {
      'kept_f1': scores.f1('micro', without=[0, 3]).reduce(rows, arrays)[
        'micro_f1'
      ]
    }
  ),
  scores.expected_calibration_error(bins=7),
)
OF_TWO = scores.join(scores.roc_auc, scores.average_precision, scores.fpr_at_95)


def numbers_of(score):
  """(logits, arrays) -> the numbers, for several runs at once."""

  def of_run(logits, arrays):
    state, batch = None, {'x': logits, **arrays}
    outputs = score.forward(lambda _, x: Outputs(x, x), state, batch)
    return score.reduce(score.collect(outputs, batch), arrays)

  return jax.jit(jax.vmap(of_run))


def cases(c, seed):
  """Logits [runs, n, c], labels and weights: of ones, of parts, of few."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, c, (4, N)).astype(np.int32)
  logits = rng.normal(size=(4, N, c)).astype(np.float32)
  logits += np.eye(c, dtype=np.float32)[labels]
  logits[2] = logits[2].round()  # ties
  weight = np.ones((4, N), np.float32)
  weight[1:] = rng.choice([0, 0.5, 1, 2.25], (3, N))
  if c > 2:
    labels[3] = rng.choice([1, 3, 4], N)  # some classes have no example,
    logits[3, :, 4] += 20  # and most have no prediction
  dirty = logits.copy()
  dirty[weight == 0] = np.nan
  return logits, dirty, labels, weight


def calibration_error(prob, labels, weight, bins):
  top, confidence = prob.argmax(1), prob.max(1)
  gap = 0.0
  for k in range(bins):
    own = (confidence > k / bins) & (confidence <= (k + 1) / bins)
    gap += abs((weight * ((top == labels) - confidence))[own].sum())
  return gap / weight.sum()


@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_scores_of_classes_are_those_of_scikit_learn():
  logits, dirty, labels, weight = cases(C, 0)
  arrays = {'labels': labels, 'weight': weight}
  found = numbers_of(OF_CLASSES)(dirty, arrays)
  for r in range(4):
    there = weight[r] > 0
    y, w, z = labels[r][there], weight[r][there], logits[r][there]
    top = z.argmax(1)
    recall = metrics.recall_score(
      y, top, labels=np.unique(y), average=None, sample_weight=w
    )
    prob = np.asarray(jax.nn.softmax(z))
    f1 = lambda average, y=y, top=top, w=w, **kept: metrics.f1_score(
      y, top, average=average, sample_weight=w, zero_division=0, **kept
    )
    expected = {
      'accuracy': metrics.accuracy_score(y, top, sample_weight=w),
      'balanced_accuracy': metrics.balanced_accuracy_score(
        y, top, sample_weight=w
      ),
      'worst_class': recall.min(),
      'macro_f1': f1('macro'),
      'micro_f1': f1('micro'),
      'kept_f1': f1('micro', labels=[1, 2, 4]),
      'expected_calibration_error': calibration_error(prob, y, w, 7),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][r], value, atol=2e-6, err_msg=name)
  # The last run has classes without examples: they are no part of a mean.
  assert len(np.unique(labels[3])) == 3


def fpr_at_95(labels, values, sample_weight=None):
  fpr, tpr, _ = metrics.roc_curve(
    labels, values, sample_weight=sample_weight, drop_intermediate=False
  )
  return fpr[tpr >= 0.95 - 1e-9].min()


def test_scores_of_two_classes_are_those_of_scikit_learn():
  logits, dirty, labels, weight = cases(2, 1)
  found = numbers_of(OF_TWO)(dirty, {'labels': labels, 'weight': weight})
  for r in range(4):
    y, w = labels[r], weight[r]
    odds = logits[r, :, 1] - logits[r, :, 0]
    for name, of in (
      ('roc_auc', metrics.roc_auc_score),
      ('average_precision', metrics.average_precision_score),
      ('fpr_at_95', fpr_at_95),
    ):
      np.testing.assert_allclose(
        found[name][r], of(y, odds, sample_weight=w), atol=2e-6, err_msg=name
      )


roc_auc_of = jax.jit(scores.roc_auc_of)


def test_mean_average_precision_is_that_of_labels_that_some_row_has():
  rng = np.random.default_rng(4)
  labels = (rng.random((4, N, C)) < 0.3).astype(np.int32)
  logits = (rng.normal(size=labels.shape) + labels).astype(np.float32)
  logits[2] = logits[2].round()  # ties
  weight = np.ones((4, N), np.float32)
  weight[1:] = rng.choice([0, 0.5, 1, 2.25], (3, N))
  labels[3, weight[3] > 0, 2] = 0  # which scikit-learn counts as 0
  dirty = np.where(weight[..., None] == 0, np.nan, logits)
  arrays = {'labels': labels, 'weight': weight}
  found = numbers_of(scores.mean_average_precision)(dirty, arrays)
  for r in range(4):
    there = weight[r] > 0
    kept = [k for k in range(C) if labels[r, there, k].any()]
    expected = metrics.average_precision_score(
      labels[r, there][:, kept], logits[r, there][:, kept],
      sample_weight=weight[r, there],
    )  # fmt: skip
    np.testing.assert_allclose(
      found['mean_average_precision'][r], expected, atol=2e-6
    )
  assert len(kept) == C - 1
  with pytest.raises(ValueError, match='labels must be'):
    numbers_of(scores.mean_average_precision)(
      logits, {**arrays, 'labels': labels[..., 0]}
    )


average_precision_of = jax.jit(scores.average_precision_of)
fpr_at_95_of = jax.jit(scores.fpr_at_95_of)
quantiles_of = jax.jit(scores.quantiles_of)


@pytest.mark.parametrize('levels', [3, 50, 10**6])
def test_ranks_of_many_with_and_without_ties(levels):
  rng = np.random.default_rng(levels)
  values = rng.integers(0, levels, 3000).astype(np.float32)
  labels = (rng.random(3000) < 0.2 + 0.5 * values / levels).astype(np.int32)
  np.testing.assert_allclose(
    roc_auc_of(values, labels),
    metrics.roc_auc_score(labels, values),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    average_precision_of(values, labels),
    metrics.average_precision_score(labels, values),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    fpr_at_95_of(values, labels), fpr_at_95(labels, values), atol=1e-6
  )


def test_95_of_100_positives_are_enough():
  values, labels = np.arange(200.0, dtype=np.float32), np.arange(200) >= 100
  values[100:105] = 49.5  # five of them rank above half of the others
  assert fpr_at_95_of(values, labels) == 0
  values[105] = 49.5
  assert fpr_at_95_of(values, labels) == 0.5


def test_small_sets_by_enumeration():
  """All labels of four ranks with a tie, by counting pairs."""
  values = np.array([0.1, 0.4, 0.4, 0.8], np.float32)
  labels = np.array(list(itertools.product([0, 1], repeat=4)))
  of_all = jax.jit(jax.vmap(scores.roc_auc_of, (None, 0)))(values, labels)
  for found, y in zip(np.asarray(of_all), labels, strict=True):
    pairs = list(itertools.product(values[y == 1], values[y == 0]))
    wins = [(p > n) + 0.5 * (p == n) for p, n in pairs]
    assert float(found) == (np.mean(wins) if wins else 0.5)


def test_sets_without_a_class_or_without_weight():
  logits, _, labels, _ = cases(C, 2)
  empty = {'labels': labels, 'weight': np.zeros((4, N), np.float32)}
  found = numbers_of(OF_CLASSES)(logits * np.nan, empty)
  assert {float(v) for values in found.values() for v in values} == {0.0}
  values, zero = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
  of_one = jax.jit(
    lambda y, weight: (
      scores.roc_auc_of(values, y, weight),
      scores.average_precision_of(values, y, weight),
      scores.quantiles_of(values, np.array([0.5]), weight),
      scores.fpr_at_95_of(values, y, weight),
    )
  )
  for y in (0, 1):
    auc, precision, _, fpr = of_one(np.full(4, y), zero + 1)
    assert auc == 0.5
    assert precision == y
    assert fpr == np.float32(0.95)
  auc, _, quantile, fpr = of_one(np.arange(4) % 2, zero)
  assert auc == 0.5
  assert fpr == np.float32(0.95)
  assert np.isnan(quantile).all()


def test_rows_of_no_class_are_to_be_rejected():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(N, C)).astype(np.float32)
  labels = np.where(rng.random(N) < 0.6, rng.integers(0, C, N), -1)
  logits[np.arange(N), labels] += 2
  noise, weight = rng.random(N) < 0.3, rng.choice([0, 0.5, 2], N)
  known, top = labels >= 0, logits.argmax(1)
  kept = metrics.accuracy_score(
    labels[known], np.where(noise, -2, top)[known], sample_weight=weight[known]
  )
  found = metrics.recall_score(~known, noise, sample_weight=weight)
  assert 0 < found < kept < 1
  expected = {
    'kept_accuracy': kept,
    'rejected_accuracy': found,
    'harmonic_accuracy': 2 / (1 / kept + 1 / found),
  }
  dirty = np.where(weight[:, None] > 0, logits, np.nan)
  arrays = {'x': dirty, 'y': noise, 'labels': labels, 'weight': weight}
  score = scores.harmonic_accuracy._replace(
    forward=lambda predict, state, batch: Outputs(
      batch['x'], batch['x'], {'noise': batch['y']}
    )
  )
  assert evaluate(lambda _, x: x, None, arrays, score=score) == {
    k: pytest.approx(v, abs=1e-6) for k, v in expected.items()
  }
  of = jax.jit(scores.harmonic_accuracy_of)
  clean = of(top[known], noise[known], labels[known])
  assert np.isnan(clean.rejected)
  assert np.isnan(clean.harmonic)
  assert 0 < clean.kept < 1
  never = of(top, np.zeros(N, bool), labels)
  assert (never.rejected, never.harmonic) == (0, 0)
  nothing = of(np.full(N, C), np.zeros(N, bool), labels)
  assert (nothing.kept, nothing.harmonic) == (0, 0)
  with pytest.raises(ValueError, match=r'rejected must be \[n\]'):
    scores.harmonic_accuracy_of(top, noise[:, None], labels)


def test_quantiles_count_a_weight_as_copies():
  rng = np.random.default_rng(0)
  values = rng.normal(size=40).astype(np.float32)
  weight = rng.integers(0, 4, 40)
  levels = np.array([0, 0.1, 0.33, 0.5, 0.9, 1])
  found = quantiles_of(np.where(weight > 0, values, np.nan), levels, weight)
  expected = np.quantile(np.repeat(values, weight), levels)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  score = scores.quantiles('margin', scores.log_odds, levels=[0.25, 0.5])
  arrays = {'x': np.stack([0 * values, values], 1), 'labels': 0 * weight}
  assert evaluate(lambda _, x: Outputs(x, x), None, arrays, score=score) == {
    f'margin_q{100 * q:g}': pytest.approx(np.quantile(values, q), rel=1e-5)
    for q in (0.25, 0.5)
  }


def test_scores_of_candidates_and_of_bags():
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(6, 3)).astype(np.float32)
  sets = rng.random((6, 3)) < 0.5
  arrays = {'x': logits, 'candidates': sets}
  of_x = lambda _, x: Outputs(x, x)
  top = logits.argmax(1)
  assert evaluate(of_x, None, arrays, score=scores.coverage) == {
    'coverage': pytest.approx(sets[np.arange(6), top].mean())
  }
  # Counts of three bags, of which one cannot be and one has no weight.
  x = rng.normal(size=(4, 3, 2)).astype(np.float32)
  counts, mask = np.array([1, 0, 3, 2]), np.ones((4, 3), bool)
  mask[2, 0] = False
  bags = {'x': x, 'counts': counts, 'mask': mask}
  bags['weight'] = np.array([1, 3, 1, 0], np.float32)
  x[3] = np.nan
  infer = lambda z, b: automata.count(z, b['counts'], b['mask'])
  prob = np.asarray(jax.nn.softmax(x))
  likelihood = lambda bag, k: sum(
    np.prod(prob[bag, np.arange(3), y])
    for y in map(list, itertools.product([0, 1], repeat=3))
    if sum(y) == k
  )
  expected = -(np.log(likelihood(0, 1)) + 3 * np.log(likelihood(1, 0))) / 4
  assert evaluate(of_x, None, bags, score=scores.bag_nll(infer)) == {
    'nll': pytest.approx(expected, rel=1e-5)
  }


def test_joined_scores_share_a_pass():
  passes = []

  def forward(predict, state, batch):
    passes.append(1)
    return predict(state, batch['x'])

  one = scores.mean('top', lambda o, b: o.logits.max(-1), forward)
  two = scores.mean('low', lambda o, b: o.logits.min(-1), forward)
  x = np.arange(8, dtype=np.float32).reshape(4, 2)
  both = scores.join(one, two, scores.mean('x', lambda o, b: o.features[:, 0]))
  of_x = lambda _, x: Outputs(x, x)
  assert evaluate(of_x, None, {'x': x}, score=both) == {
    'top': 4, 'low': 3, 'x': 3
  }  # fmt: skip
  # Looked at once before anything is compiled, and once compiled.
  assert len(passes) == 2
  with pytest.raises(ValueError, match=r"a number called \['top'\]"):
    evaluate(of_x, None, {'x': x}, score=scores.join(one, one))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: scores.f1('mean'), 'average must be'),
    (lambda: scores.expected_calibration_error(0), 'bins must be at least 1'),
    (lambda: scores.quantiles('a', scores.log_odds, [2]), 'levels must lie'),
    (lambda: scores.roc_auc, 'must be of two classes, got 3'),
    (
      lambda: scores.accuracy._replace(
        forward=lambda predict, state, batch: Outputs(batch['x'][None], None)
      ),
      r'labels must be \[n\] integers',
    ),
  ],
)
def test_bad_input_is_named(make, message):
  arrays = {'x': np.zeros((4, 3)), 'labels': np.zeros(4, int)}

  def use():
    evaluate(lambda _, x: Outputs(x, x), None, arrays, score=make())

  with pytest.raises(ValueError, match=message):
    use()


def test_rows_come_from_all_devices():
  """Also those that hold nothing but their shape; the last batch is padded."""
  mesh = data_mesh()
  assert mesh.size == 8
  scale = jax.device_put(jnp.ones(()), NamedSharding(mesh, P()))
  logits, _, labels, weight = cases(C, 4)
  arrays = {'x': logits[1], 'labels': labels[1], 'weight': weight[1]}
  predict = lambda state, x: Outputs(state * x, x)
  found = evaluate(
    predict, scale, arrays, score=scores.balanced_accuracy, batch_size=50
  )
  expected = metrics.balanced_accuracy_score(
    labels[1], logits[1].argmax(1), sample_weight=weight[1]
  )
  assert found == {'balanced_accuracy': pytest.approx(expected, abs=1e-6)}


def test_what_has_diverged_shows_unless_it_is_not_there():
  values = np.array([0.1, np.nan, 0.7, 0.4], np.float32)
  labels, error = np.array([0, 1, 1, 0]), scores.expected_calibration_error(3)
  numbers = jax.jit(
    lambda weight: (
      scores.roc_auc_of(values, labels, weight),
      scores.average_precision_of(values, labels, weight),
      scores.quantiles_of(values, np.array([0.5]), weight)[0],
      scores.fpr_at_95_of(values, labels, weight),
      *error.reduce((labels == 1, values), {'weight': weight}).values(),
    )
  )
  for gone in (False, True):
    found = numbers(np.array([1, not gone, 1, 1], np.float32))
    assert [bool(np.isnan(v)) for v in found] == [not gone] * 5
