"""Votes on doubtful labels, and what a benchmark says as errors grow."""

import os
import pathlib
import re

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl.audit import (
  Consensus,
  PartAccuracy,
  accuracy_vs_prevalence,
  bootstrap_accuracy,
  consensus_of_votes,
  part_accuracy,
  rank_flip_prevalence,
)

KEY = jax.random.key(0)
RHO = np.array([0.0, 0.2, 1.0])
# votes for given, guessed, neither, both; given, guessed; error, corrected,
# answer.
CASES = [
  ([5, 0, 0, 0], 7, 1, False, 7, 0),
  ([3, 2, 0, 0], 7, 1, False, 7, 0),
  ([2, 3, 0, 0], 7, 1, True, 1, 1),
  ([2, 2, 1, 0], 7, 1, True, -1, -1),
  ([0, 1, 4, 0], 7, 1, True, -1, 2),
  ([1, 1, 0, 3], 7, 1, True, -1, 3),
  ([0, 0, 0, 0], 7, 1, False, 7, -1),  # shown to nobody
  ([5, 5, 0, 0], 4, 4, False, 4, 0),  # one label, its votes in both columns
  ([0, 4, 1, 0], 4, 4, False, 4, 0),  # or in one of them
  ([2, 2, 3, 0], 4, 4, True, -1, 2),
  ([0, 5, 0, 0], 255, 254, True, 254, 1),
]
VOTES, GIVEN, GUESSED, ERROR, CORRECTED, ANSWER = map(
  np.array, zip(*CASES, strict=True)
)
VOTES = VOTES.astype(np.uint8)


def made_up(n=60, models=3, seed=0):
  """Predictions, labels, corrected labels; rows of all kinds."""
  rng = np.random.default_rng(seed)
  labels, corrected = rng.integers(0, 3, (2, n)).astype(np.int8)
  corrected[n // 4 :] = labels[n // 4 :]
  corrected[::7] = -1
  labels[3] = -1
  truth = np.where(rng.uniform(size=(models, n)) < 0.6, corrected, labels)
  return truth.T.astype(np.int64), labels, corrected


ROWS = made_up()


def everything(votes, given, guessed, key, predictions, labels, corrected):
  parts = part_accuracy(predictions, labels, corrected)
  drawn = bootstrap_accuracy(key, predictions, labels, corrected, samples=30)
  return (
    consensus_of_votes(votes, given, guessed),
    parts,
    accuracy_vs_prevalence(parts, RHO),
    rank_flip_prevalence(parts),
    drawn,
    accuracy_vs_prevalence(drawn, RHO),
    rank_flip_prevalence(drawn),
  )


ARGUMENTS = VOTES, GIVEN, GUESSED, KEY, *ROWS


def test_the_answers_of_people():
  found = consensus_of_votes(VOTES, GIVEN.astype(np.uint8), GUESSED)
  np.testing.assert_array_equal(found.is_error, ERROR)
  np.testing.assert_array_equal(found.corrected, CORRECTED)
  np.testing.assert_array_equal(found.answer, ANSWER)
  of_two = consensus_of_votes(VOTES, GIVEN, GUESSED, min_agree=2)
  assert of_two.answer[:4].tolist() == [0, 0, 0, 0]
  assert not of_two.is_error[:4].any()
  nobody = consensus_of_votes(VOTES[:0], GIVEN[:0], GUESSED[:0])
  assert [a.shape for a in nobody] == [(0,)] * 3
  one = consensus_of_votes([[1, 4, 0, 0]], [0], [2])  # lists
  assert one == Consensus(np.array([True]), np.array([2]), np.array([1]))


def test_numpy_in_numpy_out_and_jax_in_jax_out():
  host = everything(*ARGUMENTS)
  leaves = jax.tree.leaves(host)
  assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
  assert {leaf.dtype for leaf in jax.tree.leaves(host[1:4])} == {
    np.dtype(np.float64)
  }
  traced = jax.eval_shape(everything, *ARGUMENTS)
  jitted = compiled(everything)(*ARGUMENTS)
  for a, b, t in zip(
    leaves, jax.tree.leaves(jitted), jax.tree.leaves(traced), strict=True
  ):
    assert a.shape == b.shape == t.shape
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  found = consensus_of_votes(jnp.array(VOTES), GIVEN, GUESSED)
  assert all(isinstance(leaf, jax.Array) for leaf in found)
  np.testing.assert_array_equal(found.corrected, CORRECTED)


def test_parts_are_counted():
  predictions, labels, corrected = ROWS
  found = part_accuracy(*ROWS)
  for k in range(predictions.shape[1]):
    hits = [[], [], []]
    for p, y, z in zip(predictions[:, k], labels, corrected, strict=True):
      if min(y, z) < 0:
        continue
      if y == z:
        hits[0].append(p == y)
      else:
        hits[1].append(p == y)
        hits[2].append(p == z)
    assert [part[k] for part in found] == [np.mean(h) for h in hits]
  assert 0 < len(hits[1]) < len(hits[0])


def test_rows_without_a_label_leave_no_trace():
  predictions, labels, corrected = ROWS
  known = (labels >= 0) & (corrected >= 0)
  few = predictions[known], labels[known], corrected[known]
  for a, b in zip(part_accuracy(*ROWS), part_accuracy(*few), strict=True):
    np.testing.assert_array_equal(a, b)
  none = part_accuracy(predictions, labels, np.full_like(labels, -1))
  assert np.isnan(none).all()


def test_parts_without_rows():
  """What is not known is NaN, and what does not depend on it is not."""
  predictions, labels, _ = ROWS
  clean = part_accuracy(predictions, labels, labels)
  assert np.isnan(clean.given).all()
  assert np.isnan(clean.corrected).all()
  for found in accuracy_vs_prevalence(clean, RHO):
    np.testing.assert_array_equal(found[0], clean.right)
    assert np.isnan(found[1:]).all()
  assert np.isnan(rank_flip_prevalence(clean)).all()
  wrong = part_accuracy([[1], [0]], [0, 0], [1, 1])
  assert np.isnan(wrong.right).all()
  found = accuracy_vs_prevalence(wrong, RHO)
  assert found.given[-1] == wrong.given == 0.5
  assert np.isnan(found.given[:-1]).all()
  drawn = bootstrap_accuracy(KEY, predictions, labels, labels, samples=30)
  assert np.isnan(drawn.given).all()
  assert np.isfinite(drawn.right).all()
  one = part_accuracy([[2]], [2], [2])
  assert one.right.tolist() == [1.0]


def test_the_law_of_the_paper():
  parts = PartAccuracy(*np.random.default_rng(0).uniform(size=(3, 2, 4)))
  found = accuracy_vs_prevalence(parts, RHO)
  assert found.given.shape == (2, 3, 4)
  for i, rho in enumerate(RHO):
    mixed = (1 - rho) * parts.right + rho * parts.given
    np.testing.assert_allclose(found.given[:, i], mixed, rtol=1e-12)
    mixed = (1 - rho) * parts.right + rho * parts.corrected
    np.testing.assert_allclose(found.corrected[:, i], mixed, rtol=1e-12)


def test_where_models_change_places():
  rng = np.random.default_rng(0)
  parts = PartAccuracy(*rng.uniform(size=(3, 7)))
  flips = rank_flip_prevalence(parts)
  np.testing.assert_array_equal(flips, flips.T)
  a, c = parts.right, parts.corrected
  for i in range(7):
    for j in range(7):
      order = (a[i] - a[j]) * (c[i] - c[j])
      assert np.isfinite(flips[i, j]) == (order < 0)
      if order < 0:
        at = accuracy_vs_prevalence(parts, [flips[i, j]]).corrected[0]
        assert at[i] == pytest.approx(at[j], rel=1e-12)
  assert np.isfinite(flips).any()
  parallel = PartAccuracy(*np.array([[0.9, 0.8], [0, 0], [0.5, 0.4]]))
  beyond = PartAccuracy(*np.array([[0.9, 0.8], [0, 0], [0.5, 0.3]]))
  alike = PartAccuracy(*np.full((3, 2), 0.5))
  for none in (parallel, beyond, alike):
    assert np.isnan(rank_flip_prevalence(none)).all()
  from_start = PartAccuracy(*np.array([[0.9, 0.9], [0, 0], [0.5, 0.3]]))
  assert rank_flip_prevalence(from_start)[0, 1] == 0
  at_end = PartAccuracy(*np.array([[0.9, 0.8], [0, 0], [0.5, 0.5]]))
  assert rank_flip_prevalence(at_end)[0, 1] == 1


def test_closed_form_is_what_removing_rows_gives():
  """Of right rows at random, until two models change places."""
  rng = np.random.default_rng(0)
  n, errors = 200_000, 30_000
  labels = rng.integers(0, 10, n)
  corrected = labels.copy()
  corrected[:errors] = (labels[:errors] + 1) % 10
  hit = rng.uniform(size=(n, 2))
  hit[:errors] = hit[:errors] < [0.2, 0.6]
  hit[errors:] = hit[errors:] < [0.95, 0.8]
  predictions = np.where(hit == 1, corrected[:, None], 11)
  flip = rank_flip_prevalence(part_accuracy(predictions, labels, corrected))
  ahead = (hit[:, 0] - hit[:, 1])[:errors].sum()
  right = rng.permutation(n - errors) + errors
  lead = ahead + np.cumsum((hit[:, 0] - hit[:, 1])[right])
  kept = np.flatnonzero(lead < 0)[-1] + 1  # the last at which 1 is behind
  assert flip[0, 1] == pytest.approx(errors / (errors + kept), abs=0.005)
  assert 0.2 < flip[0, 1] < 0.35


def test_test_sets_are_drawn_within_their_parts():
  n, errors, samples = 300, 60, 400
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, n)
  corrected = labels.copy()
  corrected[rng.permutation(n)[:errors]] += 4
  chance = rng.uniform(size=n)
  shown = np.where(chance < 0.7, corrected, labels)
  shown[(chance < 0.2) & (labels == corrected)] = 9
  predictions = np.stack([shown, shown, labels], 1)
  draw = jax.jit(
    lambda key: bootstrap_accuracy(
      key, predictions, labels, corrected, samples=samples
    )
  )
  drawn, again, other = map(draw, (KEY, KEY, jax.random.key(1)))
  drawn = jax.tree.map(np.asarray, drawn)
  parts = part_accuracy(predictions, labels, corrected)
  for found, expected, size in zip(
    drawn, parts, (n - errors, errors, errors), strict=True
  ):
    assert found.shape == (samples, 3)
    # Each part keeps its size, and models are asked about the same rows.
    np.testing.assert_allclose(found * size, np.round(found * size), atol=1e-3)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    deviation = np.sqrt(expected * (1 - expected) / size)
    off = np.abs(found.mean(0) - expected)
    assert (off <= 4 * deviation / np.sqrt(samples) + 1e-6).all()
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.15, atol=1e-6)
  total = drawn.given + drawn.corrected
  np.testing.assert_allclose(total, 1, atol=1e-6)
  np.testing.assert_array_equal(drawn.corrected, again.corrected)
  assert (drawn.corrected != np.asarray(other.corrected)).any()
  # The two parts are drawn independently.
  assert abs(np.corrcoef(drawn.right[:, 0], drawn.given[:, 0])[0, 1]) < 0.2


def test_half_precision():
  parts = PartAccuracy(
    *(jnp.array(p, jnp.bfloat16) for p in ([0.9, 0.8], [0, 0], [0.2, 0.6]))
  )
  flips = rank_flip_prevalence(parts)
  assert flips.dtype == jnp.float32
  assert float(flips[0, 1]) == pytest.approx(0.2, abs=0.02)
  assert accuracy_vs_prevalence(parts, RHO).given.dtype == jnp.float32


PARTS = PartAccuracy(*np.full((3, 2), 0.5))


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (
      lambda: consensus_of_votes(VOTES[:, :3], GIVEN, GUESSED),
      ValueError,
      'votes must be [m, 4], of given, guessed, neither, both, got shape (11,',
    ),
    (
      lambda: consensus_of_votes(VOTES[0], GIVEN, GUESSED),
      ValueError,
      'votes must be [m, 4], got shape (4,)',
    ),
    (
      lambda: consensus_of_votes(VOTES / 5, GIVEN, GUESSED),
      TypeError,
      'votes must be integers, got float64',
    ),
    (
      lambda: consensus_of_votes(-VOTES.astype(int), GIVEN, GUESSED),
      ValueError,
      'votes must lie in [0, inf], got -5',
    ),
    (
      lambda: consensus_of_votes(VOTES, GIVEN[:, None], GUESSED),
      ValueError,
      'given must be [m] with 11 rows, got shape (11, 1)',
    ),
    (
      lambda: consensus_of_votes(VOTES, GIVEN, GUESSED[1:]),
      ValueError,
      'guessed must be [m] with 11 rows, got shape (10,)',
    ),
    (
      lambda: consensus_of_votes(VOTES, GIVEN, -GUESSED),
      ValueError,
      'guessed must lie in [0, inf], got -1',
    ),
    (
      lambda: consensus_of_votes(VOTES, GIVEN, GUESSED, min_agree=0),
      ValueError,
      'min_agree must be at least 1, got 0',
    ),
    (
      lambda: part_accuracy(ROWS[1], ROWS[1], ROWS[2]),
      ValueError,
      'predictions must be [n, k], got shape (60,)',
    ),
    (
      lambda: part_accuracy(np.eye(60), ROWS[1], ROWS[2]),
      TypeError,
      'predictions must be integers, got float64',
    ),
    (
      lambda: part_accuracy(ROWS[0], ROWS[1] >= 0, ROWS[2]),
      TypeError,
      'labels must be integers, got bool',
    ),
    (
      lambda: part_accuracy(ROWS[0], ROWS[1], ROWS[2][:, None]),
      ValueError,
      'corrected must be [n] with 60 rows, got shape (60, 1)',
    ),
    (
      lambda: part_accuracy(ROWS[0], np.array(['a'] * 60, object), ROWS[2]),
      TypeError,
      'labels must be integers, got object',
    ),
    (
      lambda: bootstrap_accuracy(0, *ROWS),
      TypeError,
      'key must be made by jax.random',
    ),
    (
      lambda: bootstrap_accuracy(KEY, *ROWS, samples=0),
      ValueError,
      'samples must be at least 1, got 0',
    ),
    (
      lambda: accuracy_vs_prevalence(PARTS, [0.5, 1.5]),
      ValueError,
      'prevalence must lie in [0, 1], got 1.5',
    ),
    (
      lambda: accuracy_vs_prevalence(PARTS, [np.nan]),
      ValueError,
      'prevalence must lie in [0, 1], got nan',
    ),
    (
      lambda: accuracy_vs_prevalence(PARTS, 0.5),
      ValueError,
      'prevalence must be [r], got shape ()',
    ),
    (
      lambda: rank_flip_prevalence(PARTS._replace(right=np.ones([2, 2]))),
      ValueError,
      'parts must be three arrays [..., k] of one shape, got (2, 2), (2,) and',
    ),
    (
      lambda: rank_flip_prevalence(PARTS._replace(given=np.array(['a', 'b']))),
      TypeError,
      'parts.given must be numbers, got <U1',
    ),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=re.escape(message)):
    call()


# --- real votes ---------------------------------------------------------------

FOLDER = pathlib.Path(
  os.environ.get('JNL_DATA', pathlib.Path(__file__).parents[3] / 'shared/data')
)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.exists(), reason=f'{FOLDER} is not here')
@pytest.mark.parametrize(
  ('name', 'reviewed', 'errors', 'corrected'),
  [
    ('mnist', 100, 15, 10),
    ('cifar10', 275, 54, 18),
    ('20news', 93, 82, 22),
  ],
)
def test_errors_that_people_found(name, reviewed, errors, corrected):
  """As many as published, and how many have a label that three agreed on."""
  file = np.load(FOLDER / f'label_errors_{name}_test_set.npz')
  given, guessed = file['given_original_label'], file['our_guessed_label']
  columns = [f'votes_{answer}' for answer in ('given', 'guessed', 'neither')]
  votes = [file[column] for column in columns]
  none = np.zeros_like(votes[0])
  votes.append(file.get('votes_both', none))
  found = consensus_of_votes(np.stack(votes, 1), given, guessed)
  assert len(found.is_error) == reviewed
  assert found.is_error.sum() == errors
  assert (found.is_error & (found.corrected >= 0)).sum() == corrected
  sums = np.sum(votes, axis=0, dtype=int)
  np.testing.assert_array_equal(sums > 5, given == guessed)  # counted twice
