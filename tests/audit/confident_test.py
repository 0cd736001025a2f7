"""Confident learning against plain loops that follow the equations."""

import re
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import audit
from jnl.audit import _issues, _rows

RNG = np.random.default_rng(0)
RULES = _issues.RULES
N, C = 400, 5


def draw(n=N, c=C, wrong=0.3, absent=None):
  """Labels, a part of them wrong, and probabilities that mostly know it."""
  truth = RNG.integers(0, c, n)
  labels = np.where(RNG.random(n) < wrong, RNG.integers(0, c, n), truth)
  if absent is not None:
    labels[labels == absent] = (absent + 1) % c
  logits = RNG.normal(size=(n, c))
  logits[np.arange(n), truth] += 1.5
  probs = np.exp(logits)
  return labels, (probs / probs.sum(1, keepdims=True)).astype(np.float32)


LABELS, PROBS = draw()
FEW, FEW_PROBS = draw(90, 7, 0.5, absent=3)
COARSE = (np.round(8 * PROBS) + 1) / (np.round(8 * PROBS) + 1).sum(1)[:, None]
SETS = [(LABELS, PROBS), (FEW, FEW_PROBS), (LABELS, COARSE)]


# --- loops -------------------------------------------------------------------


def thresholds_by_loop(labels, probs):
  own = [probs[labels == k, k] for k in range(probs.shape[1])]
  return [max(p.mean(dtype=np.float64), 2e-6) if p.size else 2 for p in own]


def guess_by_loop(labels, probs, argmax_over):
  low = np.asarray(thresholds_by_loop(labels, probs)).astype(probs.dtype) - 1e-6
  for p in probs:
    confident = [k for k in range(len(p)) if p[k] >= low[k]]
    if len(confident) > 1 and argmax_over == 'all':
      yield int(np.argmax(p))
    else:
      yield max(confident, key=lambda k: (p[k], -k), default=-1)


def contradicts(labels, probs):
  own = np.take_along_axis(probs, labels[:, None], 1)[:, 0]
  return probs.max(1) - own > 1e-6


def first(order, number):
  """The first rows of an order that is given as keys, by index where equal."""
  return sorted(order, key=lambda item: (item[0], item[1]))[: max(0, number)]


def issues_by_loop(labels, probs, rule):
  """By the rules as they are written, every pair sorted on its own."""
  n, c = probs.shape
  guess = np.array([*guess_by_loop(labels, probs, 'all')])
  leans = contradicts(labels, probs)
  off = (guess >= 0) & (guess != labels) & leans
  counts = np.zeros((c, c), int)
  for i in range(n):
    if guess[i] >= 0:
      counts[labels[i], guess[i]] += 1
  counts[np.arange(c), np.arange(c)] = np.maximum(np.diag(counts), 1)
  each = np.bincount(labels, minlength=c)
  joint = audit.calibrate_joint(counts, each)
  taken = {'predicted_neq_given': leans, 'confident_learning': off}
  for score in ('normalized_margin', 'self_confidence'):
    keys = zip(
      audit.label_quality(labels, probs, method=score), range(n), strict=True
    )
    taken[f'low_{score}'] = mask_of(first(keys, off.sum()), n)
  by_class, by_rate = set(), set()
  for k in range(c):
    rows = np.flatnonzero(labels == k)
    if len(rows) <= 1:
      continue
    stays = max(joint[k, k], 1)
    less = (stays - joint[k, k]) / max((joint[k] > 0).sum() - 1, 1)
    own = [(probs[i, k], i) for i in rows]
    budget = [int(max(m - less, 0)) for m in joint[k]]
    # What is cut off joins the diagonal.
    kept = np.maximum(joint[k] - less, 0)
    stays += int(kept.sum() - kept[k] - sum(budget) + budget[k])
    by_class |= {i for _, i in first(own, len(rows) - stays)}
    for j in set(range(c)) - {k}:
      margins = [(probs[i, k] - probs[i, j], i) for i in rows]
      by_rate |= {i for _, i in first(margins, budget[j])}
  masks = [np.isin(np.arange(n), [*s]) for s in (by_class, by_rate)]
  taken['prune_by_class'], taken['prune_by_noise_rate'] = masks
  taken['both'] = masks[0] & masks[1]
  return taken[rule] & leans if 'low' not in rule else taken[rule]


def mask_of(items, n):
  return np.isin(np.arange(n), [i for _, i in items])


# --- the joint ---------------------------------------------------------------


@pytest.mark.parametrize(('labels', 'probs'), SETS)
@pytest.mark.parametrize('argmax_over', ['all', 'confident'])
def test_the_joint_is_that_of_loops(labels, probs, argmax_over):
  found = audit.confident_joint(labels, probs, argmax_over=argmax_over)
  guess = [*guess_by_loop(labels, probs, argmax_over)]
  np.testing.assert_array_equal(found.guess, guess)
  np.testing.assert_array_equal(found.confident, np.asarray(guess) >= 0)
  for i in range(probs.shape[1]):
    for j in range(probs.shape[1]):
      number = np.sum((labels == i) & (found.guess == j))
      assert found.counts[i, j] == max(number, i == j)
  np.testing.assert_allclose(
    audit.confident_thresholds(labels, probs),
    thresholds_by_loop(labels, probs),
    rtol=1e-6,
  )


def test_which_argmax_makes_a_difference():
  row, thresholds = np.array([[0.5, 0.3, 0.2]]), np.array([0.6, 0.25, 0.15])
  for over, guess in (('all', 0), ('confident', 1)):
    found = audit.confident_joint([2], row, thresholds, argmax_over=over)
    assert found.guess == guess


def inputs(mask=None):
  """Rows as they are, and with anything in those that do not count."""
  labels, probs = LABELS.copy(), PROBS.copy()
  labels[~mask], probs[~mask] = 255, np.nan
  return labels, probs


MASK = RNG.random(N) < 0.6


@jax.jit
def on_device(labels, probs, mask):
  return (
    audit.confident_joint(labels, probs, mask=mask),
    audit.confident_joint(labels, probs, mask=mask, argmax_over='confident'),
    audit.confident_thresholds(labels, probs, weights=mask * 2.0),
  )


def test_the_jitted_program_is_that_of_the_host():
  """And rows that are masked leave no trace, whatever they hold."""
  labels, probs = inputs(MASK)
  joint, paper, thresholds = on_device(labels, probs, MASK)
  some = LABELS[MASK], PROBS[MASK]
  for found, over in ((joint, 'all'), (paper, 'confident')):
    host = audit.confident_joint(labels, probs, mask=MASK, argmax_over=over)
    alone = audit.confident_joint(*some, argmax_over=over)
    np.testing.assert_array_equal(host.guess[MASK], alone.guess)
    assert np.all(host.guess[~MASK] == -1)
    for a, b, c in zip(found, host, alone, strict=True):
      np.testing.assert_array_equal(a, b)
      if a.ndim == 2:
        np.testing.assert_array_equal(a, c)
  np.testing.assert_allclose(
    thresholds, audit.confident_thresholds(*some), rtol=1e-6
  )
  for array in (*joint, thresholds):
    assert isinstance(array, jax.Array)


def test_large_narrow_rows_go_to_the_device_in_chunks(monkeypatch):
  """Of one size, the last of which overlap; float64 stays float64."""
  expected = audit.confident_joint(LABELS, PROBS.astype(np.float64))
  monkeypatch.setattr(_rows, 'CHUNK', 300)
  for dtype in (np.float32, np.float64):
    found = audit.confident_joint(LABELS, PROBS.astype(dtype))
    np.testing.assert_array_equal(found.guess, expected.guess)
    assert isinstance(found.guess, np.ndarray)
  broken = PROBS.copy()
  broken[-1] = 0.5
  with pytest.raises(ValueError, match='pred_probs must have rows'):
    audit.confident_joint(LABELS, broken)


def test_float32_does_not_drift():
  """A plain sum of so many terms is off by more than the margin of 1e-6."""
  labels = np.zeros(300_000, np.int32)
  p = (0.9 + 0.1 * RNG.random(len(labels))).astype(np.float32)
  probs = np.stack([p, 1 - p], 1)
  exact = p.mean(dtype=np.float64)
  found = np.asarray(
    audit.confident_thresholds(*map(jnp.asarray, (labels, probs)))
  )
  host = audit.confident_thresholds(labels, probs)
  traced = jax.jit(audit.confident_thresholds)(labels, probs)
  for threshold in (found[0], host[0], traced[0]):
    assert abs(threshold - exact) < 2e-7
  assert host[1] == found[1] == 2


def test_rows_over_devices_take_two_small_all_reduces():
  labels, probs = LABELS.astype(np.int32), PROBS
  expected = audit.confident_joint(labels, probs)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('data'))
  rows = jax.device_put((labels, probs), split)
  out = audit.ConfidentJoint(P(), P('data'), P('data'))
  for program in (
    jax.jit(audit.confident_joint),
    jax.jit(
      jax.shard_map(
        audit.confident_joint,
        mesh=mesh,
        in_specs=(P('data'), P('data')),
        out_specs=out,
      )
    ),
  ):
    compiled = program.lower(*rows).compile()
    kinds = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter'
    found = re.findall(rf'= (.*?) ({kinds})\(', compiled.as_text())
    assert [kind for _, kind in found] == 2 * ['all-reduce'], found
    sizes = re.findall(r'\[([\d,]*)\]', ' '.join(shape for shape, _ in found))
    numbers = [np.prod([int(d) for d in s.split(',') if d]) for s in sizes]
    assert sum(numbers) < 3 * C * C
    for a, b in zip(compiled(*rows), expected, strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(
    audit.find_label_issues(*rows), audit.find_label_issues(labels, probs)
  )
  explicit = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  rows = jax.device_put((labels, probs), NamedSharding(explicit, P('data')))
  with pytest.raises(ValueError, match='pred_probs is split over the explicit'):
    audit.confident_joint(*rows)


def test_runs_at_once():
  labels, probs = LABELS.reshape(4, -1), PROBS.reshape(4, -1, C)
  found = jax.jit(jax.vmap(audit.confident_joint))(labels, probs)
  for i in range(4):
    host = audit.confident_joint(labels[i], probs[i])
    np.testing.assert_array_equal(found.counts[i], host.counts)


# --- counts ------------------------------------------------------------------


def test_calibrated_counts_keep_every_total():
  for labels, probs in SETS:
    c = probs.shape[1]
    each = np.bincount(labels, minlength=c)
    counts = audit.confident_joint(labels, probs).counts
    whole = audit.calibrate_joint(counts, each)
    part = audit.calibrate_joint(counts, each, rounding=False)
    np.testing.assert_array_equal(whole.sum(1), each)
    np.testing.assert_allclose(part.sum(1), each, rtol=1e-12)
    assert np.abs(whole - part).max() < 1.5
    assert np.all(whole >= 0)
    joint = audit.estimate_joint(counts, each)
    assert abs(joint.sum() - 1) < 1e-12
    found = audit.latent(whole)
    np.testing.assert_allclose(found.noise.sum(0)[each > 0], 1)
    around = audit.noise_of_inverse(found.noise, found.prior)
    np.testing.assert_allclose(
      around[:, each > 0], found.inverse[:, each > 0], atol=0.02
    )


def test_a_joint_alone_says_which_classes_are_bad():
  joint = np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.0], [0.05, 0.0, 0.35]])
  ranked = audit.rank_classes(joint, 200)
  assert ranked.index.tolist() == [0, 2, 1]
  assert ranked.issues.tolist() == [20, 10, 0]
  assert ranked.missed.tolist() == [10, 0, 20]
  np.testing.assert_allclose(ranked.quality, [0.75, 0.875, 1])
  overlap = audit.overlapping_classes(joint, 200)
  pairs = zip(overlap.a.tolist(), overlap.b.tolist(), strict=True)
  assert [*pairs] == [(0, 1), (0, 2), (1, 2)]
  assert overlap.rows.tolist() == [20, 10, 0]
  health = audit.health(LABELS, PROBS)
  assert health == 1 - audit.num_label_issues(LABELS, PROBS) / N
  assert audit.health(*inputs(MASK), mask=MASK) == audit.health(
    LABELS[MASK], PROBS[MASK]
  )


def test_the_joint_is_nearer_the_truth_than_a_confusion_matrix():
  rng = np.random.default_rng(1)
  n, c = 20_000, 4
  truth = rng.integers(0, c, n)
  wrong = rng.random(n) < 0.25
  labels = np.where(wrong, (truth + 1) % c, truth)
  logits = rng.normal(size=(n, c))
  logits[np.arange(n), truth] += 2
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  actual = np.bincount(labels * c + truth, minlength=c * c) / n
  each = np.bincount(labels)
  found = audit.estimate_joint(
    audit.confident_joint(labels, probs).counts, each
  )
  confusion = np.bincount(labels * c + probs.argmax(1), minlength=c * c) / n
  off = [np.abs(a.ravel() - actual).sum() for a in (found, confusion)]
  assert off[0] < 0.6 * off[1]


# --- issues ------------------------------------------------------------------


@pytest.mark.parametrize(('labels', 'probs'), SETS)
@pytest.mark.parametrize('rule', RULES)
def test_issues_are_those_of_loops(labels, probs, rule, monkeypatch):
  expected = issues_by_loop(labels, probs, rule)
  assert 0 < expected.sum() < len(labels)
  chunks = lambda: ((labels[i : i + 37], probs[i : i + 37]) for i in starts)
  starts = range(0, len(labels), 37)
  for most in (1 << 21, 10):
    monkeypatch.setattr(_issues, 'MOST', most)
    found = audit.find_label_issues(labels, probs, filter_by=rule)
    np.testing.assert_array_equal(found, expected)
    streamed = audit.find_label_issues_streamed(
      chunks, probs.shape[1], filter_by=rule
    )
    np.testing.assert_array_equal(streamed, expected)
  joint = audit.confident_joint_streamed(chunks, probs.shape[1])
  whole = audit.confident_joint(labels, probs)
  np.testing.assert_array_equal(joint.counts, whole.counts)


def test_a_budget_beyond_those_that_lean_is_filled_with_others():
  """The rows of a pair that wants more are looked at once more."""
  sure, unsure, wrong = [0.94, 0.03, 0.03], [0.5, 0.3, 0.2], [0.02, 0.95, 0.03]
  of_zero = np.array(6 * [sure] + 40 * [unsure] + 5 * [wrong])
  of_zero[6:46, 1] += np.linspace(0, 0.1, 40)
  of_zero[6:46, 2] -= np.linspace(0, 0.1, 40)
  of_others = np.roll(np.array(20 * [sure]), 1, axis=1)
  probs = np.concatenate([of_zero, of_others, np.roll(of_others, 1, axis=1)])
  labels = np.repeat([0, 1, 2], [51, 20, 20])
  expected = issues_by_loop(labels, probs, 'prune_by_noise_rate')
  seen = []
  original = _issues._of_pairs

  def of_pairs(passes, limit):
    seen.append(limit)
    return original(passes, limit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_issues, '_of_pairs', of_pairs)
    found = audit.find_label_issues(labels, probs)
  assert seen
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('rule', RULES)
def test_masked_rows_and_arrays_of_jax(rule):
  labels, probs = inputs(MASK)
  found = audit.find_label_issues(labels, probs, filter_by=rule, mask=MASK)
  alone = audit.find_label_issues(LABELS[MASK], PROBS[MASK], filter_by=rule)
  np.testing.assert_array_equal(found[MASK], alone)
  assert not found[~MASK].any()
  on_device = audit.find_label_issues(
    *map(jnp.asarray, (labels, probs)), filter_by=rule, mask=MASK
  )
  assert isinstance(on_device, jax.Array)
  np.testing.assert_array_equal(on_device, found)


def test_issues_are_ranked_worst_first_and_equal_ones_by_index():
  for labels, probs in SETS:
    for score in ('self_confidence', 'normalized_margin'):
      found = audit.rank_label_issues(labels, probs, rank_by=score)
      mask = audit.find_label_issues(labels, probs)
      quality = audit.label_quality(labels, probs, method=score)
      rows = np.flatnonzero(mask)
      assert found.tolist() == sorted(rows, key=lambda i: (quality[i], i))


def test_how_many_are_taken_can_be_said():
  number = [
    audit.find_label_issues(LABELS, PROBS, frac_noise=f).sum()
    for f in (0, 0.3, 0.6, 1)
  ]
  assert number[0] == 0
  assert number == sorted(number)
  each = np.bincount(LABELS)
  for rule in ('prune_by_noise_rate', 'prune_by_class'):
    asked = np.array([3, 0, 7, 2, 1])
    found = audit.find_label_issues(
      LABELS, PROBS, filter_by=rule, num_to_remove_per_class=asked
    )
    taken = np.bincount(LABELS[found], minlength=C)
    assert np.all(taken <= asked)
    assert taken.sum() >= asked.sum() - 3
  at_least = audit.find_label_issues(
    LABELS,
    PROBS,
    filter_by='prune_by_class',
    min_examples_per_class=int(each.min()) - 5,
  )
  left = np.bincount(LABELS[~at_least], minlength=C)
  assert np.all(left >= each.min() - 5)
  assert at_least.any()


def test_every_class_of_several_is_a_problem_of_its_own():
  labels = RNG.random((200, 3)) < 0.4
  labels[:, 2] = True
  probs = np.clip(labels + 0.45 * RNG.normal(size=labels.shape), 0.01, 0.99)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    found = audit.find_multilabel_issues(labels, probs)
    for k in range(3):
      both = np.stack([1 - probs[:, k], probs[:, k]], 1)
      one = audit.find_label_issues(labels[:, k].astype(int), both)
      np.testing.assert_array_equal(found[:, k], one)
  assert found[:, 0].any()


# --- scores ------------------------------------------------------------------


def test_a_sure_label_is_the_best_there_is():
  probs = np.eye(4)[[0, 0, 1]]
  score = 'confidence_weighted_entropy'
  found = audit.label_quality([0, 1, 1], probs, method=score)
  assert found[0] == found[2] == 1
  assert found[1] <= 1
  nearly = np.array([[1 - 3e-6, 1e-6, 1e-6, 1e-6], [0.7, 0.1, 0.1, 0.1]])
  found = audit.label_quality([0, 0], nearly, method=score)
  assert 1 > found[0] > 0.99 > found[1]


def test_tokens_pixels_and_one_label():
  labels, probs = LABELS.reshape(4, 10, 10), PROBS.reshape(4, 10, 10, C)
  for method in _rows_of_scores():
    flat = audit.label_quality(LABELS, PROBS, method=method)
    found = audit.label_quality(labels, probs, method=method)
    np.testing.assert_array_equal(found, flat.reshape(labels.shape))
  score = 'normalized_margin'
  one = audit.label_quality(LABELS[0], PROBS[0], method=score)
  assert one == audit.label_quality(LABELS, PROBS, method=score)[0]
  run = lambda adjust: jax.jit(
    lambda *rows: audit.label_quality(*rows, method=score, adjust=adjust)
  )
  for adjust in (False, True):
    np.testing.assert_allclose(
      run(adjust)(labels, probs),
      audit.label_quality(labels, probs, method=score, adjust=adjust),
      atol=1e-6,
    )


def test_a_label_out_of_range_leaves_no_trace_inside_jit():
  labels = np.where(MASK, LABELS, RNG.choice([-1, 255, 2**30], N))
  some = LABELS[MASK], PROBS[MASK]
  run = lambda function, **options: jax.jit(
    lambda *rows: function(*rows, **options)
  )(labels, PROBS)
  np.testing.assert_allclose(
    run(audit.confident_thresholds),
    audit.confident_thresholds(*some),
    rtol=1e-6,
  )
  for adjust in (False, True):
    found = np.asarray(run(audit.label_quality, adjust=adjust))
    assert np.all(np.isnan(found[~MASK]))
    expected = audit.label_quality(*some, adjust=adjust)
    np.testing.assert_allclose(found[MASK], expected, atol=1e-6)


def _rows_of_scores():
  return 'self_confidence', 'normalized_margin', 'confidence_weighted_entropy'


def test_members_that_know_more_count_more():
  _, noise = draw(N, C)
  probs = np.stack([PROBS, noise[RNG.permutation(N)]])
  clean = LABELS
  uniform, weighted, searched = (
    audit.ensemble_quality(clean, probs, weights=w)
    for w in ('uniform', 'accuracy', 'log_loss_search')
  )
  good = audit.label_quality(clean, PROBS)
  off = [np.abs(q - good).mean() for q in (uniform, weighted, searched)]
  assert off[0] > off[1] > off[2]
  found = audit.ensemble_quality(clean, probs, weights=[1.0, 0.0])
  np.testing.assert_allclose(found, good, rtol=1e-6)
  jitted = jax.jit(audit.ensemble_quality)(clean, probs)
  np.testing.assert_allclose(jitted, weighted, rtol=1e-5)


# --- misuse ------------------------------------------------------------------


def changed(i, row):
  probs = PROBS.copy()
  probs[i] = row
  return probs


@pytest.mark.parametrize(
  ('labels', 'probs', 'message'),
  [
    (LABELS, changed(3, np.nan), 'pred_probs must have rows.*row 3 is'),
    (LABELS, changed(4, [-0.5, 0.5, 1, 0, 0]), 'pred_probs.*row 4'),
    (LABELS, PROBS * 1.1, 'pred_probs.*sums to 1.1'),
    (LABELS, np.log(PROBS), 'pred_probs must have rows >= 0'),
    (LABELS, PROBS[:, 0], r'pred_probs must be \[n, c\]'),
    (LABELS, PROBS[:, :1], 'pred_probs must be.*np.stack'),
    (LABELS, PROBS.astype(object), 'pred_probs must be an array of numbers'),
    (LABELS, PROBS > 0.5, 'pred_probs must be floating-point, got bool'),
    (LABELS - 1, PROBS, r'labels must lie in \[0, 5\).*got -1'),
    (LABELS[:, None], PROBS, r'labels must have shape \(400,\)'),
    (LABELS.astype(float), PROBS, 'labels must be integers, got float64'),
    (LABELS.astype(str), PROBS, 'labels must be an array of numbers'),
  ],
)
def test_bad_rows_are_named(labels, probs, message):
  for function in (audit.find_label_issues, audit.confident_joint):
    with pytest.raises((ValueError, TypeError), match=message):
      function(labels, probs)


def test_bad_options_are_named():
  find, each = audit.find_label_issues, np.ones(C, int)
  for message, call in (
    (
      "unknown filter_by 'prune'",
      lambda: find(LABELS, PROBS, filter_by='prune'),
    ),
    ('frac_noise must lie', lambda: find(LABELS, PROBS, frac_noise=1.5)),
    (
      "not of 'low_self_confidence'",
      lambda: find(
        LABELS, PROBS, filter_by='low_self_confidence', frac_noise=0.5
      ),
    ),
    (
      'num_to_remove_per_class must be',
      lambda: find(LABELS, PROBS, num_to_remove_per_class=each[1:]),
    ),
    ('mask must be bool', lambda: find(LABELS, PROBS, mask=LABELS)),
    ('outside jit', lambda: jax.jit(find)(LABELS, PROBS)),
    (
      'weights must not be negative',
      lambda: audit.confident_thresholds(LABELS, PROBS, weights=-np.ones(N)),
    ),
    (
      r'thresholds must be \[c\]',
      lambda: audit.confident_joint(LABELS, PROBS, each[1:] / 2),
    ),
    ('counts must not be', lambda: audit.calibrate_joint(-np.eye(3))),
    ('that nothing suggests', lambda: eqn(np.ones((3, 3)))),
    ('joint must not be', lambda: audit.rank_classes(np.eye(3), 3)),
    (
      "method must not be 'confidence",
      lambda: audit.label_quality(
        LABELS, PROBS, method='confidence_weighted_entropy', adjust=True
      ),
    ),
    (
      r'pred_probs must lie in \[0, 1\]',
      lambda: audit.find_multilabel_issues(PROBS > 0.5, 2 * PROBS),
    ),
    (
      'chunks must be a function',
      lambda: audit.confident_joint_streamed([(LABELS, PROBS)], C),
    ),
    (
      'chunks must have num_classes = 3',
      lambda: audit.confident_joint_streamed(lambda: [(LABELS, PROBS)], 3),
    ),
    ('400 rows first and 0 then', only_once),
  ):
    with pytest.raises((ValueError, TypeError), match=message):
      call()


def eqn(counts):
  return audit.latent(counts, method='eqn')


def only_once():
  chunks = iter([(LABELS, PROBS)])
  audit.find_label_issues_streamed(lambda: chunks, C)


def test_surprises_are_warned_of():
  with pytest.warns(UserWarning, match='put every label first'):
    found = audit.find_label_issues(PROBS.argmax(1), PROBS)
  assert not found.any()
  labels = np.where(LABELS == 4, 3, LABELS)
  labels[0] = 4
  with pytest.warns(UserWarning, match=r'none of these is taken: labels \[4\]'):
    found = audit.find_label_issues(labels, PROBS)
  assert not found[0]
  for dtype in (jnp.bfloat16, jnp.float16):
    with pytest.warns(UserWarning, match='their order is lost'):
      found = audit.find_label_issues(LABELS, jnp.asarray(PROBS, dtype))
    exact = audit.find_label_issues(LABELS, PROBS)
    assert np.mean(np.asarray(found) != exact) < 0.02
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert audit.find_label_issues(LABELS[:0], PROBS[:0]).shape == (0,)
    nobody = np.zeros(N, bool)
    assert not audit.find_label_issues(LABELS, PROBS, mask=nobody).any()
    as_lists = audit.find_label_issues(LABELS.tolist(), PROBS.tolist())
    small = audit.find_label_issues(LABELS.astype(np.uint8), PROBS)
  exact = audit.find_label_issues(LABELS, PROBS)
  np.testing.assert_array_equal(small, exact)
  np.testing.assert_array_equal(as_lists, exact)
