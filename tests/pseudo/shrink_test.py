"""Guesses among fewer classes: against a loop over rows and classes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.pseudo import (
  Seen,
  Shrinking,
  shrinkable,
  shrinking,
  shrunk_cross_entropy,
)

RNG = np.random.default_rng(0)
B, C, TAU = 16, 6, 0.9
PROBS = np.concatenate(
  [
    RNG.dirichlet(np.full(C, 0.3), B - 6),
    [
      [0.45, 0.45, 0.1, 0, 0, 0],  # two are best: the first of them
      [0.04, 0.4, 0.4, 0.04, 0.06, 0.06],
      np.eye(C)[2],
      np.full(C, 1 / C),  # nothing helps
      [0.3, 0.3, 0.3, 0.05, 0.05, 0],  # of equals the last ones stay
      np.full(C, np.nan),
    ],
  ]
).astype(np.float32)
LOGITS = RNG.normal(size=(B, C)).astype(np.float32)


def left(p):
  """The classes that are left, the best one first; none if it is not unsure."""
  order = sorted(range(len(p)), key=lambda k: (-p[k], k))
  best = p[order[0]]
  if not best < TAU:
    return []
  for m in range(2, len(p)):
    if best / (best + sum(p[k] for k in order[m:])) >= TAU:
      return [order[0], *order[m:]]
  return []


def loss(z, p):
  kept = left(p)
  if not kept:
    return 0
  z = z[kept].astype(float)
  return p[kept[0]] * (np.log(np.exp(z).sum()) - z[0])


def all_of(z, p):
  value = lambda z, p: shrunk_cross_entropy(z, p, threshold=TAU)
  slopes = jax.grad(lambda z, p: jnp.sum(value(z, p)), (0, 1))(z, p)
  return value(z, p), shrinkable(p, threshold=TAU), slopes


def test_it_is_the_loop_on_one_device_and_on_eight():
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  z = LOGITS.copy()
  kept = [left(p) for p in PROBS]
  for i in range(B):  # what does not count may be anything
    out = sorted(set(range(C)) - set(kept[i]))
    z[i, out] = [np.nan, np.inf, -np.inf, 1e30, 0, 1][: len(out)]
  run = jax.jit(
    lambda *a: [
      all_of(*a),
      jax.vmap(all_of)(*a),
      jax.shard_map(all_of, mesh=mesh, in_specs=P('data'), out_specs=P('data'))(
        *a
      ),
    ]
  )
  split = jax.NamedSharding(mesh, P('data'))
  found = jax.device_get(run(*(jax.device_put(a, split) for a in (z, PROBS))))
  expected = [loss(*row) for row in zip(z, PROBS, strict=True)]
  assert sum(map(bool, kept)) > 5
  for values, counts, (slope, none) in found:
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counts, list(map(bool, kept)))
    assert np.all(np.isfinite(slope))
    for i in range(B):
      assert set(np.flatnonzero(slope[i])) == set(kept[i])
    np.testing.assert_allclose(slope.sum(1), 0, atol=1e-6)
    np.testing.assert_array_equal(none, 0)


def test_few_classes_have_none_to_leave_out_and_halves_are_raised():
  two = np.float32([[0.6, 0.4], [0.5, 0.5]])
  half = jnp.bfloat16([[0.5, 0.25, 0.0], [0.75, 0.125, 0.125]])
  few, none, low, none_sure, single = jax.jit(
    lambda: (
      jax.value_and_grad(lambda z: shrunk_cross_entropy(z, two).sum())(two),
      shrinkable(two),
      shrunk_cross_entropy(0 * half, half),
      shrunk_cross_entropy(0 * half, half, threshold=0.0),
      shrunk_cross_entropy(np.zeros(3, np.float32), half[0]),
    )
  )()
  for zeros in (*few, none, none_sure):
    np.testing.assert_array_equal(zeros, 0)
  assert low.dtype == np.float32
  np.testing.assert_allclose(low, [np.log(2) / 2, 0], rtol=1e-6)
  np.testing.assert_allclose(single, np.log(2) / 2, rtol=1e-6)


def test_the_share_of_sure_guesses_is_remembered():
  """From the first batch with an unlabeled row; others change nothing."""
  rule, t = shrinking(TAU, momentum=0.75), 4
  probs = np.where(RNG.random((t, B, 1)) < 0.4, [0.95, 0.05], [0.5, 0.5])
  probs = probs.astype(np.float32)
  weights = RNG.choice([0.5, 2], (t, B)).astype(np.float32)
  kind = RNG.integers(0, 3, (t, B))
  kind[0], kind[2] = 1, 2  # labeled ones alone; nobody
  probs[kind == 2] = np.nan
  unlabeled, labeled = weights * (kind == 0), weights * (kind == 1)
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def step(memory, seen):
    memory, counts = rule.apply(memory, Seen(*seen, jnp.arange(B // 8), 0))
    return memory, (memory, counts)

  split = P(None, 'data')
  run = jax.shard_map(
    lambda *seen: jax.lax.scan(step, rule.init(), seen)[1],
    mesh=mesh,
    in_specs=split,
    out_specs=(P(), split),
  )
  memory, counts = jax.jit(run)(probs, unlabeled, labeled)
  sure = (probs[..., 0] > TAU) & (kind == 0)
  np.testing.assert_array_equal(counts, sure)
  share = [(sure * unlabeled)[i].sum() / unlabeled[i].sum() for i in (1, 3)]
  last = 0.75 * share[0] + 0.25 * share[1]
  np.testing.assert_allclose(
    memory.ratio, [0, share[0], share[0], last], rtol=1e-6
  )
  np.testing.assert_array_equal(memory.started, [0, 1, 1, 1])
  abstract = jax.eval_shape(rule.init)
  assert isinstance(abstract, Shrinking)
  assert [a.dtype for a in abstract] == [np.float32, bool]


F = np.float32
Z = np.zeros((2, 3), F)


@pytest.mark.parametrize(
  ('call', 'error', 'match'),
  [
    (
      lambda: shrunk_cross_entropy(Z, Z, threshold=1.1),
      ValueError,
      'threshold',
    ),
    (lambda: shrinkable(Z, threshold=F([1])), ValueError, 'must be a scalar'),
    (lambda: shrunk_cross_entropy(Z, Z[:1]), ValueError, 'the shape of logits'),
    (lambda: shrunk_cross_entropy(Z, Z - 1), ValueError, 'of logits they are'),
    (lambda: shrunk_cross_entropy(Z.astype(int), Z), TypeError, 'logits must'),
    (lambda: shrinkable(F(1)), ValueError, 'got a scalar'),
    (lambda: shrinking(-0.1), ValueError, 'threshold must lie in'),
    (lambda: shrinking(momentum=2.0), ValueError, 'momentum must lie in'),
  ],
)
def test_bad_input_is_named(call, error, match):
  with pytest.raises(error, match=match):
    call()
