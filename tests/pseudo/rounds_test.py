"""Rules of rounds, against their definitions in numpy."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import pseudo
from jnl.pseudo import Seen

RNG = np.random.default_rng(0)
N, C, K, DEVICES = 48, 4, 3, 6
PROBS = RNG.dirichlet(np.full(C, 0.4), N).astype(np.float32)
PROBS[[3, 11, 30]] = PROBS[20]  # ties
LABELED = RNG.random(N) < 0.2
UNLABELED = ~LABELED
UNLABELED[-8:] = False  # a device without any, and rows that are not there


def all_rules(probs, unlabeled, labeled, step):
  """Weights of each rule; [b] and last [b, c]."""
  seen = Seen(probs, unlabeled, labeled, jnp.arange(len(probs)), step)
  rules = (
    pseudo.most_confident(10),
    pseudo.curriculum(0.2),
    pseudo.share_per_class(0.3, step=0.1, most=0.6),
    pseudo.transductive(),
    pseudo.boards(K),
  )
  return tuple(rule.apply(rule.init(), seen)[1] for rule in rules)


def surest(score, where, k):
  """A mask of the k largest scores, of equal ones the first."""
  order = np.argsort(-np.where(where, score, -np.inf), kind='stable')
  chosen = np.zeros(len(score))
  chosen[order[: min(int(k), where.sum())]] = 1
  return chosen


def rounded(share, n):
  return max(np.round(share * n), 1)


def limits(v):
  """The thresholds of `transductive`, as its equation has them."""
  guess, t = v.argmax(1), np.ones(v.shape[1])
  for k in set(guess):
    own, risks = v[:, k], []
    cuts = own.min() + (own.max() - own.min()) * np.arange(50) / 50
    for cut in cuts:
      gamma = cut + (1 - cut) * np.arange(1, 51)[:, None] / 50
      inside = (cut <= own) & (own < gamma)
      margin = (own * (guess == k)) @ v - (own * inside) @ v
      bound = np.min(inside @ v + np.maximum(margin, 0) / gamma, axis=0)
      found = ((guess == k) & (own >= cut)).sum()
      risks.append((bound.sum() - bound[k]) / found if found else np.inf)
    t[k] = cuts[np.argmin(risks)]
  return t


def expected(probs, unlabeled, step):
  """What `all_rules` has to find."""
  sure, guess = probs.max(1), probs.argmax(1)
  n = unlabeled.sum()
  share = min(0.6, 0.3 + 0.1 * step)
  groups = [unlabeled & (guess == k) for k in range(C)]
  each = [surest(sure, own, rounded(share, own.sum())) for own in groups]
  reached = unlabeled.copy()
  if n:
    reached &= sure >= limits(probs[unlabeled].astype(np.float64))[guess]
  return (
    surest(sure, unlabeled, 10),
    surest(sure, unlabeled, rounded(min(1, 0.2 * (step + 1)), n)),
    sum(each),
    reached,
    np.stack([surest(p, unlabeled, K) for p in probs.T], axis=1),
  )


@pytest.fixture(scope='module')
def run():
  return jax.jit(all_rules)


def check_all(found, *given):
  for a, b in zip(found, expected(*given), strict=True):
    np.testing.assert_array_equal(a, b)


def test_rules_are_as_defined(run):
  for step in 0, 1, 4, 9:
    found = run(PROBS, UNLABELED, LABELED, step)
    check_all(found, PROBS, UNLABELED, step)
  assert found[1].sum() == UNLABELED.sum()  # at last all
  assert {a.dtype for a in found} == {np.dtype(np.float32)}
  for alpha in 0.1, 2.0:
    probs = RNG.dirichlet(np.full(C, alpha), N).astype(np.float32)
    check_all(run(probs, UNLABELED, LABELED, 0), probs, UNLABELED, 0)


def test_edges(run):
  """Nobody, one row, a class never guessed, equal rows, certain rows."""
  none, one = np.zeros(N, bool), np.arange(N) == 7
  for unlabeled in none, one:
    found = run(PROBS, unlabeled, LABELED, 0)
    check_all(found, PROBS, unlabeled, 0)
  equal = np.full_like(PROBS, 1 / C)
  certain = np.eye(C, dtype=np.float32)[np.arange(N) % 2]
  for probs in equal, certain:
    check_all(run(probs, UNLABELED, LABELED, 0), probs, UNLABELED, 0)


def test_rows_that_are_not_there_leave_no_trace(run):
  """Nor predictions that are not finite, inside jit; outside they are named."""
  absent = ~UNLABELED & ~LABELED
  wild = PROBS.copy()
  wild[absent] = np.nan
  wild[LABELED] = 1 / C
  whole = run(PROBS, UNLABELED, LABELED, 1)
  jax.tree.map(
    np.testing.assert_array_equal, run(wild, UNLABELED, LABELED, 1), whole
  )
  wild[2], wild[5, 1] = np.inf, np.nan
  rest = UNLABELED & ~np.isin(np.arange(N), [2, 5])
  check_all(run(wild, UNLABELED, LABELED, 1), np.nan_to_num(wild), rest, 1)
  with pytest.raises(ValueError, match='probs must have rows'):
    all_rules(wild, UNLABELED, LABELED, 1)


def test_devices_and_precision(run):
  """Six devices under the checked shard_map, and bfloat16."""
  mesh = jax.make_mesh(
    (DEVICES,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:DEVICES],
  )
  mapped = jax.shard_map(
    all_rules,
    mesh=mesh,
    in_specs=(P('data'), P('data'), P('data'), P()),
    out_specs=P('data'),
  )
  found = jax.jit(mapped)(PROBS, UNLABELED, LABELED, np.int32(1))
  check_all(found, PROBS, UNLABELED, 1)
  half = jnp.asarray(PROBS, jnp.bfloat16)
  shapes = jax.eval_shape(all_rules, half, UNLABELED, LABELED, 1)
  assert {a.dtype for a in shapes} == {np.dtype(np.float32)}


def test_one_class():
  """Everything is of it."""
  ones = np.ones((5, 1), np.float32)
  where = np.arange(5) < 4
  found = jax.jit(all_rules)(ones, where, ~where, 0)
  for a in (*found[:1], found[3]):
    np.testing.assert_array_equal(a, where)
  for a, k in zip((*found[1:3], found[4][:, 0]), (1, 1, 3), strict=True):
    np.testing.assert_array_equal(a, np.arange(5) < k)


@pytest.mark.parametrize(
  ('call', 'match'),
  [
    (lambda: pseudo.most_confident(0), 'k must lie in'),
    (lambda: pseudo.most_confident(np.ones(2)), 'k must be a scalar'),
    (lambda: pseudo.curriculum(0.0), r'step must lie in \(0, 1\]'),
    (lambda: pseudo.share_per_class(0.0), r'share must lie in \(0, 1\]'),
    (lambda: pseudo.share_per_class(0.6), 'most must be at least share, 0.6'),
    (lambda: pseudo.share_per_class(step=-1), 'step must lie in'),
    (lambda: pseudo.share_per_class(most=2), r'most must lie in \[0, 1\]'),
    (lambda: pseudo.boards(0), 'k must be an int of at least 1'),
    (lambda: pseudo.boards(2.5), 'k must be an int'),
    (
      lambda: all_rules(PROBS, UNLABELED[:, None], LABELED, 0),
      r'unlabeled must be \[b\]',
    ),
  ],
)
def test_bad_input_is_named(call, match):
  with pytest.raises(ValueError, match=match):
    call()
