"""Alignments: averages and queues of predictions, on one and eight devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.pseudo import Seen, ema_alignment, queue_alignment

RNG = np.random.default_rng(0)
T, B, C, M = 6, 16, 4, 0.7
PROBS = RNG.dirichlet(np.ones(C), (T, B)).astype(np.float32)
WEIGHTS = RNG.choice([0.5, 1, 2], (T, B)).astype(np.float32)
KIND = RNG.integers(0, 3, (T, B))  # unlabeled, labeled, not there
KIND[1] = np.where(KIND[1] == 0, 2, KIND[1])  # no unlabeled row
KIND[2] = np.where(KIND[2] == 1, 2, KIND[2])  # no labeled row
KIND[0] = 2  # neither
UNLABELED, LABELED = WEIGHTS * (KIND == 0), WEIGHTS * (KIND == 1)
GIVEN = np.where((KIND == 2)[..., None], np.nan, PROBS)  # leave no trace
RULES = {
  (kind, target): rule
  for target in ('uniform', 'model')
  for kind, rule in {
    'ema': ema_alignment(C, target=target, momentum=M, offset=0.01),
    'queue': queue_alignment(C, length=3, target=target, offset=0.01),
  }.items()
}


def batches(probs, unlabeled, labeled):
  index = jnp.broadcast_to(jnp.arange(probs.shape[1]), unlabeled.shape)
  return Seen(probs, unlabeled, labeled, index, jnp.arange(T))


def along(probs, unlabeled, labeled):
  """Of each rule what it remembers at the end, and all that it aligned."""
  seen = batches(probs, unlabeled, labeled)
  return {
    name: jax.lax.scan(rule.apply, rule.init(), seen)
    for name, rule in RULES.items()
  }


def mean(t, weights):
  return (PROBS[t] * weights[t][:, None]).sum(0) / weights[t].sum()


def expected(kind, target):
  """In a loop, of rows that are there."""
  model, known, aligned = None, np.full(C, 1 / C), []
  queue = {'u': [np.zeros(C)] * 3, 'l': [np.zeros(C)] * 3}
  for t in range(T):
    if UNLABELED[t].any():
      new = mean(t, UNLABELED)
      model = new if model is None else M * model + (1 - M) * new
      queue['u'] = [new, *queue['u'][:2]]
    if LABELED[t].any():
      new = mean(t, LABELED)
      known = M * known + (1 - M) * new
      queue['l'] = [new, *queue['l'][:2]]
    prior, goal = model, known
    if kind == 'queue':
      prior, goal = np.mean(queue['u'], 0), np.mean(queue['l'], 0)
    if target == 'uniform':
      goal = np.full(C, 1 / C)
    r = PROBS[t].copy()
    if UNLABELED[t].any():
      r *= (goal + 0.01) / (prior + 0.01)
      r /= r.sum(1, keepdims=True)
    aligned.append(np.where((UNLABELED[t] > 0)[:, None], r, GIVEN[t]))
  return np.array(aligned), (model if kind == 'ema' else queue['u'])


def test_they_are_as_defined_on_one_device_and_on_eight():
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = P(None, 'data')
  mapped = jax.shard_map(
    along,
    mesh=mesh,
    in_specs=(split,) * 3,
    out_specs=dict.fromkeys(RULES, (P(), split)),
  )
  arguments = [
    jax.device_put(a, jax.NamedSharding(mesh, split))
    for a in (GIVEN, UNLABELED, LABELED)
  ]
  run = jax.jit(lambda *a: (along(*a), mapped(*a)))
  one, eight = jax.device_get(run(*arguments))
  for name in RULES:
    aligned, average = expected(*name)
    for memory, found in (one[name], eight[name]):
      np.testing.assert_allclose(found, aligned, rtol=2e-5, err_msg=name)
      np.testing.assert_allclose(memory.unlabeled, average, rtol=1e-5)
  labeled = KIND == 1
  found = one['ema', 'model'][1]
  np.testing.assert_array_equal(found[labeled], PROBS[labeled])


def test_edges():
  """Before there is anything, one row, one class alone, a bfloat16."""
  ema = ema_alignment(2, target='model', offset=0.0)
  queue = queue_alignment(2, target='model', length=2)
  certain = np.float32([[1, 0], [1, 0]])
  none, one = np.zeros(2, np.float32), np.float32([1, 0])

  @jax.jit
  def found(probs):
    step = lambda rule, some, known: rule.apply(
      rule.init(), Seen(probs, some, known, jnp.arange(2), jnp.int32(0))
    )
    return [
      step(rule, *kinds)
      for rule in (ema, queue)
      for kinds in ((none, none), (one, none), (one, 1 - one), (none, one))
    ]

  for memory, aligned in found(certain):
    assert np.all(np.isfinite(jax.tree.leaves(memory)[0]))
    np.testing.assert_allclose(aligned.sum(1), 1, rtol=1e-6)
    there = aligned[:, 0] != 0.5
    np.testing.assert_array_equal(aligned[there], certain[there])
  # Nothing is known of the other class: its prediction stays what it is.
  spread = np.float32([[0.5, 0.5], [0.75, 0.25]])
  (_, empty), (memory, alone), (_, both), _, *queued = found(spread)
  np.testing.assert_array_equal(empty, spread)
  assert not found(spread)[0][0].started
  np.testing.assert_allclose(memory.unlabeled, [0.5, 0.5])
  np.testing.assert_allclose(alone[0], [0.5, 0.5])
  np.testing.assert_allclose(both[1], spread[1])
  np.testing.assert_allclose(queued[1][1][0], [0.5, 0.5])  # no label yet
  np.testing.assert_allclose(queued[2][1][0], spread[1], rtol=1e-6)
  half = jax.eval_shape(
    ema.apply,
    ema.init(),
    Seen(jnp.ones((2, 2), jnp.bfloat16), one, none, one.astype(int), one[0]),
  )
  assert half[1].dtype == np.float32
  assert [a.dtype for a in half[0]] == [np.float32, np.float32, bool]


F = np.float32
SEEN = Seen(F([[0.5, 0.5]]), F([1]), F([0]), np.int32([0]), np.int32(0))


@pytest.mark.parametrize(
  ('call', 'match'),
  [
    (lambda: ema_alignment(1), 'num_classes must be at least 2'),
    (lambda: ema_alignment(2, momentum=1.1), 'momentum must lie in'),
    (lambda: ema_alignment(2, target='even'), "unknown target 'even'"),
    (lambda: ema_alignment(2, offset=-1.0), 'offset must lie in'),
    (lambda: queue_alignment(2, length=0), 'length must be at least 1'),
    (lambda: queue_alignment(2, target='labels'), 'unknown target'),
    (lambda: queue_alignment(2, offset=F([0, 0])), 'offset must be a scalar'),
    (
      lambda: (rule := ema_alignment(3)).apply(rule.init(), SEEN),
      r'probs must be \[b, 3\]',
    ),
    (
      lambda: (rule := queue_alignment(2)).apply(
        rule.init(), SEEN._replace(unlabeled=F([[1]]))
      ),
      'unlabeled must be',
    ),
  ],
)
def test_bad_input_is_named(call, match):
  with pytest.raises(ValueError, match=match):
    call()
