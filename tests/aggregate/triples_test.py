"""Votes as tables and as triples, counted, described, and handed in wrong."""

import functools

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import aggregate

N, A, C = 16, 5, 3


def drawn(seed=0, missing=0.5):
  """Items 3 and 15 and annotator 2 have no votes, annotator 4 has one."""
  rng = np.random.default_rng(seed)
  votes = rng.integers(0, C, (N, A)).astype(np.int32)
  votes[rng.random((N, A)) < missing] = -1
  votes[[3, 15]] = -1
  votes[:, 2] = -1
  votes[1:, 4] = -1
  votes[0] = 1, 1, -1, 2, 2
  return votes


VOTES = drawn()
LABELS = np.where(np.arange(N) % 4 == 1, -1, np.arange(N) % C)
PROBS = np.random.default_rng(1).dirichlet(np.ones(C), N).astype(np.float32)
WEIGHTS = np.arange(1, A + 1, dtype=np.float32)


def packed(shards):
  return aggregate.triples_of(VOTES, shards=shards)


def everything(votes):
  n = {'num_classes': C}
  return {
    'counts': aggregate.vote_counts(votes, **n),
    'weighted': aggregate.vote_counts(votes, weights=WEIGHTS, **n),
    'shares': aggregate.vote_shares(votes, **n),
    'majority': aggregate.majority_vote(votes, **n),
    'by model': aggregate.majority_vote(votes, PROBS),
    'coverage': aggregate.coverage(votes, **n),
    'overlap': aggregate.overlap(votes, **n),
    'conflict': aggregate.conflict(votes, **n),
    'accuracy': aggregate.empirical_accuracy(votes, LABELS, **n),
  }


@functools.cache
def found():
  """Of the table, and of triples in 3 shards."""

  @compiled
  def run(table, triples):
    return everything(table), everything(triples), aggregate.votes_of(triples)

  *by, table = run(VOTES, packed(3))
  np.testing.assert_array_equal(table, VOTES)
  return by


def test_all_ways_to_hold_votes_say_the_same():
  first, *others = found()
  for other in others:
    jax.tree.map(np.testing.assert_array_equal, other, first)


def test_counts():
  out = found()[0]
  spread = (VOTES[..., None] == np.arange(C)).astype(int)
  counts = spread.sum(1)
  np.testing.assert_array_equal(out['counts'], counts)
  assert out['counts'].dtype == np.int32
  np.testing.assert_array_equal(
    out['weighted'], np.einsum('iak,a->ik', spread, WEIGHTS)
  )
  some = counts.sum(1) > 0
  shares = np.where(
    some[:, None], counts / np.maximum(counts.sum(1), 1)[:, None], 1 / C
  )
  np.testing.assert_allclose(out['shares'], shares, rtol=1e-6)
  assert np.all(out['majority'][~some] == -1)
  top = counts[some, out['majority'][some]]
  np.testing.assert_array_equal(top, counts[some].max(1))
  np.testing.assert_array_equal(out['by model'][~some], PROBS[~some].argmax(1))


def test_descriptions():
  out, given = found()[0], VOTES >= 0
  number = given.sum(1)
  np.testing.assert_allclose(out['coverage'], given.mean(0), rtol=1e-6)
  together = given & (number > 1)[:, None]
  np.testing.assert_allclose(out['overlap'], together.mean(0), rtol=1e-6)
  differ = [
    [
      v >= 0 and any(w >= 0 and w != v for w in np.delete(row, a))
      for a, v in enumerate(row)
    ]
    for row in VOTES
  ]
  np.testing.assert_allclose(out['conflict'], np.mean(differ, 0), rtol=1e-6)
  assert np.all(out['conflict'] <= out['overlap'])
  for a in range(A):
    own = given[:, a] & (LABELS >= 0)
    right = np.mean(VOTES[own, a] == LABELS[own]) if own.any() else np.nan
    np.testing.assert_allclose(out['accuracy'][a], right, rtol=1e-6)


def test_rows_of_items_with_many_votes():
  """One item of 40 votes among 200 of one: no row is as wide."""
  item = np.r_[np.arange(200), np.zeros(40, int)][::-1]
  worker = np.r_[np.arange(200) % 50 + 50, np.arange(40)][::-1]
  votes = aggregate.triples(item, worker, item % C, shards=2)
  assert votes.num_items == 200
  assert votes.num_workers == 100
  assert votes.answer.size < 600
  table = np.full((200, 100), -1)
  table[item, worker] = item % C
  np.testing.assert_array_equal(aggregate.votes_of(votes), table)


def test_kinds_of_arrays():
  for kind in (np.int8, np.uint8, np.int64):
    votes = aggregate.triples(*np.array([[0, 1], [1, 0], [2, 0]], kind))
    kinds = {x.dtype for x in jax.tree.leaves(votes)}
    assert kinds == {np.dtype(np.int32)}
  assert isinstance(aggregate.majority_vote(votes), jax.Array)
  assert isinstance(aggregate.majority_vote([[1]]), np.ndarray)
  assert aggregate.read_votes([[-1]])[1] == 2  # nothing asks for more


@pytest.mark.parametrize(
  ('arrays', 'sizes', 'error', 'match'),
  [
    ([[0, 0], [1, 1], [0, 2]], {}, ValueError, '1 triples .*item 0, worker 1'),
    ([[0.0], [0], [0]], {}, TypeError, 'item must be integers.*np.unique'),
    ([['a'], [0], [0]], {}, TypeError, 'item must be integers'),
    ([[0], [0], [-1]], {}, ValueError, 'answer must lie.*is missing'),
    ([[0], [0, 1], [0]], {}, ValueError, 'worker must have a number for each'),
    ([[], [], []], {}, TypeError, 'item'),
    ([[[0]], [0], [0]], {}, ValueError, r'item must be \[m\]'),
    ([[4], [0], [0]], {'num_items': 4}, ValueError, r'item must lie in \[0, 4'),
    ([[0], [3], [0]], {'num_workers': 3}, ValueError, 'worker must lie'),
    ([[1 << 40], [0], [0]], {}, ValueError, 'item must lie'),
    ([[0], [0], [0]], {'shards': 0}, ValueError, 'shards must be at least 1'),
  ],
)
def test_bad_triples(arrays, sizes, error, match):
  with pytest.raises(error, match=match):
    aggregate.triples(*arrays, **sizes)


def test_bad_votes():
  votes = packed(1)
  with pytest.raises(ValueError, match='answer of triples must lie'):
    aggregate.majority_vote(votes, num_classes=2)
  with pytest.raises(ValueError, match='num_classes has to be given'):
    jax.eval_shape(aggregate.vote_counts, votes)
  with pytest.raises(ValueError, match=r'weights must be \[a\] = \[5\]'):
    aggregate.vote_counts(votes, weights=np.ones((A, 1)))
  with pytest.raises(ValueError, match=r'labels must be \[n\] = \[16\]'):
    aggregate.empirical_accuracy(votes, LABELS[:, None])
  with pytest.raises(ValueError, match='labels must lie'):
    aggregate.empirical_accuracy(votes, LABELS + 200, num_classes=C)
  with pytest.raises(ValueError, match='votes must have a row of each'):
    aggregate.majority_vote(votes, PROBS[:3])
  with pytest.raises(TypeError, match='votes must be integers'):
    aggregate.vote_shares([[0.0]])
  with pytest.raises(ValueError, match=r'votes must be \[n, a\]'):
    aggregate.coverage(np.zeros(3, int))
  with pytest.raises(ValueError, match='votes must have'):
    aggregate.triples_of([[-1, -1]])


def test_votes_out_of_range_are_none_inside_jit():
  bad = jnp.where(VOTES < 0, 200, VOTES).astype(jnp.uint8)
  run = jax.jit(lambda x: aggregate.vote_counts(x, num_classes=C))
  np.testing.assert_array_equal(run(bad), found()[0]['counts'])
