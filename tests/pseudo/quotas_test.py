"""How many of each class, against the definitions in numpy."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.pseudo import (
  balanced_copies,
  growing_quota,
  leaderboard,
  sub_labels,
  top_per_class,
)

RNG = np.random.default_rng(0)
N, C, DEVICES, KEYS = 48, 4, 6, 64
PROBS = RNG.dirichlet((2, 1, 0.3, 0.3), N).astype(np.float32)
PROBS[[3, 11, 30]] = PROBS[20]  # ties
PROBS[7] = 0.95, 0.05, 0, 0  # on the grid
WHERE = RNG.random(N) < 0.7
WHERE[-8:] = False  # a device without any
WEAK, GUESSED = RNG.integers(0, C, (2, N)) * RNG.integers(0, 2, (2, N))
GUESSED = GUESSED.astype(np.uint8)


def copies_of(keys, probs):
  """[keys, n] for 2, 7 and 60 of each class."""
  draw = jax.vmap(balanced_copies, (0, None, None))
  return [draw(keys, probs, m) for m in (2, 7, 60)]


def everything(keys, probs, where, weak, guessed):
  return {
    'few': top_per_class(probs, 5, where=where),
    'many': top_per_class(probs, N + 2, where=where),
    'copies': copies_of(keys, probs),
    'all': sub_labels(weak, guessed, C),
    'agree': sub_labels(weak, guessed, C, kind='agree'),
    'frequent': sub_labels(weak, guessed, C, kind='frequent', keep=3),
    'more': sub_labels(weak, guessed, C, kind='frequent', keep=C * C),
  }


@pytest.fixture(scope='module')
def given():
  return jax.random.split(jax.random.key(0), KEYS), PROBS, WHERE, WEAK, GUESSED


@pytest.fixture(scope='module')
def run():
  return jax.jit(everything)


def check_top(found, probs, where, k):
  index, valid = map(np.asarray, found)
  there = min(k, where.sum())
  scores = np.where(where, probs.T, -1)
  order = np.argsort(-scores, axis=1, kind='stable')[:, :there]
  np.testing.assert_array_equal(index[:, :there], order)
  np.testing.assert_array_equal(index[:, there:], 0)
  np.testing.assert_array_equal(valid, [np.arange(k) < there] * C)


def check_copies(copies, probs, m):
  """[keys, n]: as often as the definition says, on average m of a class."""
  sure, guess = probs.max(1), probs.argmax(1)
  grid = (np.arange(30, 101) / 100).astype(np.float32)
  for k in range(C):
    own = guess == k
    counts = (sure[own][:, None] >= grid).sum(0)
    limit = grid[max((counts >= m).sum() - 1, 0)]
    chosen = own & (sure >= limit)
    assert not np.any(copies[:, own & ~chosen])
    if chosen.any():
      ratio = m / chosen.sum()
      few, rest = int(ratio), ratio - int(ratio)
      off = copies[:, chosen] - few
      assert set(np.unique(off)) <= ({0, 1} if rest else {0})
      apart = 4 * np.sqrt(chosen.sum() * rest * (1 - rest) / KEYS)
      assert abs(copies[:, chosen].sum(1).mean() - m) <= apart + 1e-9


def test_quotas_are_as_defined(run, given):
  found = jax.device_get(run(*given))
  check_top(found['few'], PROBS, WHERE, 5)
  check_top(found['many'], PROBS, WHERE, N + 2)
  for m, copies in zip((2, 7, 60), found['copies'], strict=True):
    check_copies(copies, PROBS, m)
  pair = WEAK * C + GUESSED
  agree = np.where(WEAK == GUESSED, WEAK, C + WEAK)
  order = np.argsort(-np.bincount(pair, minlength=C * C), kind='stable')
  rank = np.argsort(order)[pair]
  np.testing.assert_array_equal(found['all'], pair)
  np.testing.assert_array_equal(found['agree'], agree)
  np.testing.assert_array_equal(found['frequent'], np.where(rank < 3, rank, -1))
  np.testing.assert_array_equal(found['more'], rank)


def test_devices_change_nothing(run, given):
  """Six of them, under the checked shard_map."""
  mesh = jax.make_mesh(
    (DEVICES,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:DEVICES],
  )
  rows = P('data')
  labels = dict.fromkeys(('all', 'agree', 'frequent', 'more'), rows)
  mapped = jax.shard_map(
    everything,
    mesh=mesh,
    in_specs=(P(), rows, rows, rows, rows),
    out_specs={
      **{'few': P(), 'many': P(), 'copies': P(None, 'data')},
      **labels,
    },
  )
  jax.tree.map(
    np.testing.assert_array_equal, jax.jit(mapped)(*given), run(*given)
  )


def test_edges(run, given):
  """Nobody to choose from, rows that are not finite, labels out of range."""
  keys, *_ = given
  wild, ok = PROBS.copy(), ~np.isin(np.arange(N), [2, 5])
  wild[2], wild[5, 1] = np.nan, np.inf
  weak, guessed = WEAK.copy(), GUESSED.copy()
  weak[0], guessed[1] = -1, 255
  found = jax.device_get(run(keys, wild, WHERE, weak, guessed))
  check_top(found['few'], np.nan_to_num(wild, posinf=0), WHERE & ok, 5)
  for m, copies in zip((2, 7, 60), found['copies'], strict=True):
    assert not np.any(copies[:, ~ok])
    check_copies(copies[:, ok], PROBS[ok], m)
  for kind in 'all', 'agree', 'frequent', 'more':
    assert found[kind][0] == found[kind][1] == -1
  none = jax.device_get(run(keys, PROBS, ~WHERE & WHERE, WEAK, GUESSED))
  assert not np.any(none['few'][1])
  certain = np.eye(C, dtype=np.float32)[np.arange(N) % 2]  # of two classes
  found = jax.device_get(run(keys, certain, WHERE, WEAK, GUESSED))
  check_top(found['few'], certain, WHERE, 5)
  check_copies(found['copies'][1], certain, 7)


def test_growing_quota():
  """As published, but never 0; it ends with all rows."""
  quotas = [growing_quota(i, 95, 10, 10) for i in range(11)]
  assert quotas == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
  assert growing_quota(0, 3, 10, 10) == 1
  assert growing_quota(np.int32(4), 100, 1, 5) == 100


def test_leaderboard():
  """One board full: the next class is tried, and who falls off is gone."""
  probs = np.float32([[0.6, 0.4], [0.7, 0.3], [0.55, 0.45], [0.1, 0.9]])
  index, labels = leaderboard(probs, 1)
  assert index.tolist() == [1, 3]
  assert labels.tolist() == [0, 1]
  index, labels = leaderboard(probs, 9)
  assert index.tolist() == [0, 1, 2, 3]
  assert leaderboard(np.ones((3, 1), np.float32), 2)[0].tolist() == [0, 1]


KEY, F = jax.random.key(0), np.float32
Y, NAN = np.eye(2, dtype=F), np.full((2, 2), np.nan, F)


@pytest.mark.parametrize(
  ('call', 'error', 'match'),
  [
    (lambda: top_per_class(Y, 0), ValueError, 'k must be an int of at least 1'),
    (lambda: top_per_class(Y, 1.5), ValueError, 'k must be an int'),
    (lambda: top_per_class([0, 1], 1), TypeError, 'probs must be floating'),
    (lambda: top_per_class(Y[0], 1), ValueError, r'probs must be \[n, c\]'),
    (lambda: top_per_class(3 * Y, 1), ValueError, 'probs must have rows'),
    (lambda: top_per_class(NAN, 1), ValueError, 'probs must have rows'),
    (lambda: top_per_class(Y, 1, where=[1, 0]), TypeError, 'where must be bo'),
    (
      lambda: top_per_class(Y, 1, where=np.ones((2, 1), bool)),
      ValueError,
      r'where must be \[n\] = \(2,\)',
    ),
    (lambda: growing_quota(-1, 9, 2, 3), ValueError, 'round must be an int'),
    (lambda: growing_quota(0, 0, 2, 3), ValueError, 'n must be an int of at'),
    (lambda: growing_quota(0, 9, 0, 3), ValueError, 'num_classes must be an'),
    (lambda: growing_quota(0, 9, 2, 0.5), ValueError, 'rounds must be an int'),
    (lambda: leaderboard(Y, 0), ValueError, 'k must be an int of at least 1'),
    (lambda: leaderboard(NAN, 1), ValueError, 'probs must have rows'),
    (lambda: sub_labels([0], [0], 2, kind='B'), ValueError, "kind 'B'"),
    (lambda: sub_labels([0], [0], 2, keep=1), ValueError, 'keep is needed by'),
    (
      lambda: sub_labels([0], [0], 2, kind='frequent'),
      ValueError,
      'keep is needed by',
    ),
    (
      lambda: sub_labels([0], [0], 2, kind='frequent', keep=0),
      ValueError,
      'keep must be an int',
    ),
    (lambda: sub_labels([-1], [0], 2), ValueError, r'weak must lie in \[0, 2'),
    (lambda: sub_labels([0], [255], 2), ValueError, 'guessed must lie in'),
    (lambda: sub_labels([0.0], [0], 2), TypeError, 'weak must be integers'),
    (lambda: sub_labels([[0]], [0], 2), ValueError, r'weak must be \[n\]'),
    (lambda: sub_labels([0], [[0]], 2), ValueError, 'guessed must be'),
    (lambda: balanced_copies(0, Y, 1), TypeError, 'key must be made by'),
    (lambda: balanced_copies(KEY, Y, 0), ValueError, 'per_class must lie in'),
    (lambda: balanced_copies(KEY, NAN, 1), ValueError, 'probs must have rows'),
    (
      lambda: balanced_copies(KEY, Y, 1, least=2),
      ValueError,
      r'least must lie in \[0, 1\]',
    ),
  ],
)
def test_bad_input_is_named(call, error, match):
  with pytest.raises(error, match=match):
    call()
