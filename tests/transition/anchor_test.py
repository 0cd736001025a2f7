"""Anchors and Dual-T against the equations in numpy, and what is handed in."""

from fixture_programs import compiled
import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import transition

N, C, Q = 40, 3, 0.9
RNG = np.random.default_rng(0)
EVERY = np.ones(N, bool)


def drawn(never=()):
  """Probabilities, labels; some classes are never the likeliest."""
  probs = RNG.dirichlet(np.ones(C), N)
  for k in never:
    probs[:, k] *= 0.02
  probs /= probs.sum(1, keepdims=True)
  return probs.astype(np.float32), RNG.integers(0, C, N), EVERY


def masked():
  """Of the rows that do not count nothing may be known."""
  probs, labels, _ = drawn()
  mask = np.arange(N) % 4 != 1
  probs[~mask] = np.nan, np.inf, -1
  return probs, np.where(mask, labels, 255), mask


def tied():
  """All rows alike: nothing lies below the quantile."""
  probs = np.tile(np.float32([0.5, 0.25, 0.25]), (N, 1))
  return probs, RNG.integers(0, C, N), EVERY


DATA = {
  'drawn': drawn(),
  'never': drawn(never=[1]),
  'masked': masked(),
  'tied': tied(),
  'one row': (*drawn()[:2], np.arange(N) == 7),
}
NAMES = list(DATA)


@compiled
@jax.vmap
def run(probs, labels, mask):
  return (
    transition.anchor(probs, mask=mask),
    transition.anchor(probs, mask=mask, quantile=Q),
    transition.dual_t(probs, labels, mask=mask, quantile=Q),
  )


@pytest.fixture(scope='module')
def found():
  out = run(*map(np.stack, zip(*DATA.values(), strict=True)))
  return {
    name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(NAMES)
  }


def anchors(probs, quantile=None):
  best = []
  for column in probs.T:
    if quantile is None:
      best.append(column.argmax())
      continue
    limit = np.quantile(column, quantile, method='higher')
    below = column < limit
    below = below if below.any() else column <= limit
    best.append(np.where(below, column, -1).argmax())
  return np.array(best)


@pytest.mark.parametrize('name', NAMES)
def test_equations(name, found):
  probs, labels, mask = DATA[name]
  rows = np.flatnonzero(mask)
  probs, labels = probs[rows].astype(np.float64), labels[rows]
  predicted = probs.argmax(1)
  largest, below, dual = found[name]
  for one, quantile in ((largest, None), (below, Q)):
    best = anchors(probs, quantile)
    np.testing.assert_array_equal(one.index, rows[best])
    np.testing.assert_allclose(one.transition, probs[best], rtol=1e-6)
    each = np.bincount(predicted, minlength=C)
    np.testing.assert_array_equal(one.support, each)
  counted = np.eye(C)
  for k in np.unique(predicted):
    counted[k] = np.bincount(labels[predicted == k], minlength=C)
  counted /= counted.sum(1, keepdims=True)
  np.testing.assert_allclose(dual.counted, counted, rtol=1e-6)
  np.testing.assert_array_equal(dual.anchor, below.transition)
  expected = probs[anchors(probs, Q)] @ counted
  np.testing.assert_allclose(dual.transition, expected, rtol=1e-5)
  np.testing.assert_allclose(dual.transition.sum(1), 1, rtol=1e-6)


def test_a_class_that_is_never_predicted_is_told(found):
  largest, _, dual = found['never']
  assert largest.support[1] == dual.support[1] == 0
  np.testing.assert_array_equal(dual.counted[1], np.eye(C)[1])


def test_devices_find_what_one_finds(found):
  """Under shard_map, checked."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = jax.shard_map(
    lambda *rows: transition.dual_t(*rows[:2], mask=rows[2], quantile=Q),
    mesh=mesh,
    in_specs=(P('data'), P('data'), P('data')),
    out_specs=P(),
  )
  dual = compiled(split)(*DATA['masked'])
  for one, other in zip(dual, found['masked'][2], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_low_precision_is_raised():
  half = jax.ShapeDtypeStruct((N, C), 'bfloat16')
  labels = jax.ShapeDtypeStruct((N,), 'uint8')
  dual = jax.eval_shape(transition.dual_t, half, labels)
  assert dual.transition.dtype == np.float32


PROBS, LABELS, _ = DATA['drawn']


@pytest.mark.parametrize(
  ('probs', 'labels', 'options', 'error', 'match'),
  [
    (PROBS[0], LABELS, {}, ValueError, r'probs must be \[n, c\]'),
    (PROBS[:, :1], LABELS, {}, ValueError, r'probs must be \[n, c\]'),
    (PROBS * 2, LABELS, {}, ValueError, 'probs must have rows .* sum to one'),
    (PROBS * np.nan, LABELS, {}, ValueError, 'probs must have rows'),
    (LABELS, LABELS, {}, TypeError, 'probs must be floating-point'),
    (PROBS, LABELS[:, None], {}, ValueError, r'labels must be \[n\] = '),
    (PROBS, LABELS[1:], {}, ValueError, r'labels must be \[n\] = \[40\]'),
    (PROBS, LABELS - 1, {}, ValueError, r'labels must lie in \[0, 3\), got -1'),
    (PROBS, LABELS + 0.5, {}, TypeError, 'labels must be integers'),
    (PROBS, LABELS, {'quantile': 0}, ValueError, 'quantile must lie in'),
    (PROBS, LABELS, {'quantile': 97}, ValueError, 'quantile must lie in'),
    (PROBS, LABELS, {'mask': EVERY & False}, ValueError, 'mask must leave'),
    (PROBS, LABELS, {'mask': LABELS}, TypeError, 'mask must be bool'),
    (PROBS, LABELS, {'mask': EVERY[1:]}, ValueError, r'mask must be \[40\]'),
  ],
)
def test_bad_input(probs, labels, options, error, match):
  with pytest.raises(error, match=match):
    transition.dual_t(probs, labels, **options)
