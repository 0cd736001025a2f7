"""Rules of a step: what they say, remember, and make of odd batches."""

import dataclasses

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import pseudo
from jnl.base import PAD, pack_rows
from jnl.pseudo import Seen
from jnl.train import data_mesh

B, C, N = 16, 4, 24
KINDS = np.array([0, 1, 1, 0, 2, 2, 0, 0] * 2)  # unlabeled, labeled, absent
UNLABELED = np.where(KINDS == 0, np.tile([1, 2], 8), 0).astype(np.float32)
LABELED = np.where(KINDS == 1, 0.5, 0).astype(np.float32)
RULES = {
  'everything': pseudo.everything(),
  'fixed': pseudo.fixed(0.6),
  'strict': pseudo.fixed(0.6, strict=True),
  'relative': pseudo.relative(0.9),
  'dash': pseudo.dash(10, initial=1.0),
  'low_entropy': pseudo.low_entropy(60.0),
  'flexmatch': pseudo.flexmatch(N, C, threshold=0.6, num_unlabeled=18),
  'freematch': pseudo.freematch(C, momentum=0.8),
  'quantile': pseudo.freematch(C, momentum=0.8, quantile=0.7, clip=0.5),
  'softmatch': pseudo.softmatch(
    C, momentum=0.8, align=pseudo.ema_alignment(C, momentum=0.7)
  ),
}
SHARDED = {
  **RULES,
  'flexmatch': pseudo.flexmatch(
    *(N, C), threshold=0.6, num_unlabeled=18, shards=8
  ),
}


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def batch_of(rng, step, **changed):
  """Indices are laid out in 8 shards of 3 rows, two of each in a batch."""
  index = np.arange(8)[:, None] * 3 + [step % 3, (step + 1) % 3]
  seen = Seen(
    softmax(2 * rng.normal(size=(B, C))).astype(np.float32),
    *(UNLABELED, LABELED, index.reshape(-1).astype(np.int32), np.int32(step)),
  )
  return seen._replace(**changed)


def spoiled(seen):
  """Rows that are not there hold anything."""
  probs, index = seen.probs.copy(), seen.index.copy()
  probs[KINDS == 2], index[KINDS == 2] = np.nan, PAD
  return seen._replace(probs=probs, index=index)


def applied(rules, memories, seen):
  found = {name: rules[name].apply(memories[name], seen) for name in rules}
  return tuple({k: pair[i] for k, pair in found.items()} for i in (0, 1))


step = jax.jit(lambda memories, seen: applied(RULES, memories, seen))


def run(seens, step=step, rules=RULES):
  memories, weights = {k: rule.init() for k, rule in rules.items()}, []
  start = jax.device_get(memories)
  for seen in seens:
    memories, w = step(memories, seen)
    weights.append(jax.device_get(w))
  return start, jax.device_get(memories), weights


@pytest.fixture(scope='module')
def seens():
  rng = np.random.default_rng(0)
  return [batch_of(rng, i) for i in range(6)]


@pytest.fixture(scope='module')
def found(seens):
  return run(seens)


def test_what_counts_is_what_the_equations_say(seens, found):
  """Those without a memory."""
  for seen, w in zip(seens, found[2], strict=True):
    there, p = KINDS == 0, seen.probs
    sure = p.max(1)
    assert all((own[~there] == 0).all() for own in w.values())
    expected = {
      'everything': there,
      'fixed': there & (sure >= 0.6),
      'relative': there & (sure >= 0.9 * sure[KINDS == 1].mean()),
    }
    entropy = -(p * np.log(p + 1e-10)).sum(1)
    limit = np.percentile(entropy[there], 60)
    expected['low_entropy'] = there & (entropy < limit)
    t = p**2 / (p**2).sum(1, keepdims=True)
    losses = -(t * np.log(p)).sum(1)
    expected['dash'] = there & (losses <= 1.0001)
    for name, mask in expected.items():
      np.testing.assert_array_equal(w[name], mask, err_msg=name)


def test_flexmatch_weighs_before_it_counts(seens, found):
  """By a recount of everything after each batch."""
  chosen, b = np.full(N, -1), np.zeros(C)
  for seen, w in zip(seens, found[2], strict=True):
    there, sure = KINDS == 0, seen.probs.max(1)
    guess = seen.probs.argmax(1)
    limit = 0.6 * b[guess] / (2 - b[guess])
    np.testing.assert_array_equal(w['flexmatch'], there & (sure >= limit))
    rows = there & (sure >= 0.6)
    chosen[seen.index[rows]] = guess[rows]
    counts = (chosen[:, None] == np.arange(C)).sum(0)
    b = counts / max(counts.max(), 18 - counts.sum())
  memory = found[1]['flexmatch']
  np.testing.assert_array_equal(memory.counts, counts)
  np.testing.assert_array_equal(memory.chosen.rows[0], chosen)
  np.testing.assert_allclose(memory.learned, b, rtol=1e-6)
  assert 0 < counts.sum() < 18


def test_freematch_and_softmatch_count_before_they_weigh(seens, found):
  """With weights 1 and 2, as if rows came so often."""
  levels = np.full(1 + 2 * C, 1 / C)
  mu, var, mean = 1 / C, 1.0, None
  w = UNLABELED / UNLABELED.sum()
  rows = np.count_nonzero(w)
  for seen, found_w in zip(seens, found[2], strict=True):
    p, guess = seen.probs, seen.probs.argmax(1)
    hits = np.eye(C)[guess]
    here = np.concatenate([[w @ p.max(1)], w @ p, w @ hits])
    levels = 0.8 * levels + 0.2 * here
    of_class = levels[1 : 1 + C] / levels[1 : 1 + C].max()
    expected = (w > 0) & (p.max(1) >= levels[0] * of_class[guess])
    np.testing.assert_array_equal(found_w['freematch'], expected)
    mean = w @ p if mean is None else 0.7 * mean + 0.3 * (w @ p)
    r = p * (1 / C + 1e-6) / (mean + 1e-6)
    q = (r / r.sum(1, keepdims=True)).max(1)
    here = w @ (q - w @ q) ** 2 * rows / (rows - 1)
    mu, var = 0.8 * mu + 0.2 * (w @ q), 0.8 * var + 0.2 * here
    soft = np.exp(-(np.minimum(q - mu, 0) ** 2) / (2 * var / 4))
    expected = np.where(w > 0, soft, 0)
    np.testing.assert_allclose(found_w['softmatch'], expected, rtol=1e-5)
  assert found[1]['quantile'].sure <= 0.5


def test_rows_that_are_not_there_leave_no_trace(seens, found):
  jax.tree.map(np.testing.assert_array_equal, run(map(spoiled, seens)), found)


def test_eight_devices_equal_one(seens, found):
  """Under the checked shard_map; what they hold differs."""
  mesh = data_mesh()
  memories = {k: rule.init() for k, rule in SHARDED.items()}
  of_memory = jax.tree.map(lambda _: P(), memories)
  table = memories['flexmatch'].chosen
  of_memory['flexmatch'] = memories['flexmatch']._replace(
    chosen=dataclasses.replace(table, rows=P('data')), counts=P(), learned=P()
  )
  rows = Seen(*[P('data')] * 4, step=P())
  weights = {k: P('data') for k in SHARDED}
  mapped = jax.jit(
    jax.shard_map(
      lambda memories, seen: applied(SHARDED, memories, seen),
      mesh=mesh,
      in_specs=(of_memory, rows),
      out_specs=(of_memory, weights),
    )
  )
  _, memories, weights = run(map(spoiled, seens), mapped, SHARDED)
  table = memories['flexmatch'].chosen
  memories['flexmatch'] = memories['flexmatch']._replace(
    chosen=pack_rows(table.rows.reshape(-1))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7),
    (memories, weights),
    found[1:],
  )


def test_odd_batches_are_defined(seens):
  """None without a label; one; all of one class; a prediction that is NaN."""
  nobody = [s._replace(unlabeled=np.zeros_like(UNLABELED)) for s in seens]
  start, end, weights = run(nobody)
  jax.tree.map(np.testing.assert_array_equal, start, end)
  assert all((w == 0).all() for one in weights for w in one.values())

  alone = seens[0]._replace(unlabeled=np.float32(np.arange(B) == 3))
  _, end, weights = run([alone])
  assert end['softmatch'].variance == 1, 'one row has no variance'
  assert weights[0]['softmatch'][3] > 0
  assert weights[0]['low_entropy'][3] == 0, 'it is the largest itself'

  hers = np.tile(np.float32([0.97, 0.01, 0.01, 0.01]), (B, 1))
  _, end, weights = run([s._replace(probs=hers) for s in seens])
  assert weights[-1]['freematch'][0] == weights[-1]['flexmatch'][0] == 1
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(end))

  unlabeled = seens[0]._replace(labeled=np.zeros_like(LABELED))
  _, _, weights = run([unlabeled])
  sure = seens[0].probs.max(1)
  expected = (KINDS == 0) & (sure >= 0.9)  # measured against 1
  np.testing.assert_array_equal(weights[0]['relative'], expected)

  probs = seens[0].probs.copy()
  probs[0, 1] = np.nan
  gone = seens[0]._replace(unlabeled=UNLABELED * (np.arange(B) != 0))
  jax.tree.map(
    np.testing.assert_array_equal,
    run([seens[0]._replace(probs=probs)]),
    run([gone]),
  )


def test_equal_probabilities_are_of_the_first_class():
  probs = np.full((2, C), 1 / C, np.float32)
  seen = Seen(probs, np.ones(2), np.zeros(2), np.arange(2), np.int32(0))
  rule = pseudo.flexmatch(2, C, threshold=0.25)
  memory, weights = rule.apply(rule.init(), seen)
  assert memory.counts.tolist() == [2, 0, 0, 0]
  assert memory.learned.tolist() == [0] * C, 'all of one class: it stays'
  assert weights.tolist() == [1, 1]
  one = seen._replace(probs=np.ones((2, 1), np.float32))  # one class alone
  rule = pseudo.freematch(1)
  assert rule.apply(rule.init(), one)[1].tolist() == [1, 1]


@pytest.mark.parametrize(
  ('rule', 'changed', 'error', 'match'),
  [
    ('fixed', {'probs': np.full((B, C), np.nan)}, ValueError, 'probs'),
    ('fixed', {'probs': np.full((B, C), 0.5)}, ValueError, 'probs'),
    ('fixed', {'probs': np.ones(B)}, ValueError, r'probs must be \[b, c\]'),
    ('fixed', {'probs': np.ones((B, C), int)}, TypeError, 'probs'),
    ('fixed', {'unlabeled': np.ones((B, 1))}, ValueError, 'unlabeled must be'),
    ('fixed', {'unlabeled': -UNLABELED}, ValueError, 'unlabeled must lie'),
    ('fixed', {'labeled': np.ones(B - 1)}, ValueError, 'labeled must be'),
    ('flexmatch', {'index': np.arange(B + 1)}, ValueError, 'index must be'),
    ('flexmatch', {'index': np.arange(B) + N}, ValueError, 'index is out of'),
    (
      *('freematch', {'probs': np.full((B, 2), 0.5)}),
      *(ValueError, r'probs must be \[b, 4\]'),
    ),
  ],
)
def test_what_is_malformed_is_named(seens, rule, changed, error, match):
  rule = RULES[rule]
  with pytest.raises(error, match=match):
    rule.apply(rule.init(), seens[0]._replace(**changed))


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (lambda: pseudo.fixed(95), 'threshold'),
    (lambda: pseudo.relative(-0.1), 'threshold'),
    (lambda: pseudo.low_entropy(101), 'percent'),
    (lambda: pseudo.dash(0, initial=1.0), 'period'),
    (lambda: pseudo.dash(9, initial=0.0), 'initial'),
    (lambda: pseudo.dash(9, initial=1.0, gamma=1.0), 'gamma'),
    (lambda: pseudo.dash(9, initial=1.0, temperature=0), 'temperature'),
    (lambda: pseudo.flexmatch(0, 3), 'num_examples'),
    (lambda: pseudo.flexmatch(9, 0), 'num_classes'),
    (lambda: pseudo.flexmatch(9, 3, num_unlabeled=10), 'num_unlabeled'),
    (lambda: pseudo.freematch(3, momentum=1.1), 'momentum'),
    (lambda: pseudo.freematch(3, quantile=2), 'quantile'),
    (lambda: pseudo.softmatch(3, n_sigma=0), 'n_sigma'),
  ],
)
def test_numbers_are_checked(make, match):
  with pytest.raises(ValueError, match=match):
    make()
