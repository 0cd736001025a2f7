"""Candidate sets and bags."""

from unittest import mock
import zlib

from fixture_programs import compiled
from golden_noise import assert_drawn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jnl import noise
from jnl.base import PAD
from jnl.noise import _inputs

KEY = jax.random.key(0)
C, N = 4, 2000
LABELS = np.arange(N) % C


@compiled
def clean(key, labels, q):
  return noise.candidate_sets(key, labels, C, q)


@compiled
def noisy(key, labels, q, eta):
  return noise.noisy_candidate_sets(key, labels, C, q, eta)


def frequencies(sets):
  """How often class j is a candidate of an example of class i, [c, c]."""
  inside = sets.candidates
  return np.stack([inside[i == LABELS].mean(0) for i in range(C)])


@pytest.mark.parametrize('q', [0.0, 0.3, 1.0])
def test_candidate_sets(q):
  sets = clean(KEY, LABELS, q)
  assert sets.candidates.dtype == bool
  assert sets.candidates[np.arange(N), LABELS].all()
  assert not sets.dropped.any()
  np.testing.assert_allclose(np.diag(sets.probs), 1)
  # 500 of each class: five standard deviations.
  atol = 5 * np.sqrt(q * (1 - q) / (N / C))
  np.testing.assert_allclose(frequencies(sets), sets.probs, atol=atol + 1e-6)


@pytest.mark.parametrize('q', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
def test_noisy_candidate_sets(q, eta):
  sets = noisy(KEY, LABELS, q, eta)
  inside = sets.candidates
  true = inside[np.arange(N), LABELS]
  np.testing.assert_array_equal(true, ~sets.dropped)
  assert inside.any(axis=1).all()
  if q == 1:
    assert inside.all()
  if q == 0:
    assert (inside.sum(1) == 1).all()
  np.testing.assert_allclose(
    frequencies(sets), sets.probs, atol=5 * 0.5 / np.sqrt(N / C)
  )
  size = 1 + q * (C - 1)  # corruption keeps the size of a set
  np.testing.assert_allclose(sets.probs.sum(1), size, rtol=1e-6)
  assert sets.dropped.mean() == pytest.approx(
    eta * (1 - q ** (C - 1)), abs=0.06
  )


def test_keys_give_the_sets_that_they_always_gave():
  """Checksums of the draws that the results in README were measured with."""
  known = {
    3036423969: noisy(KEY, LABELS, 0.4, 0.3),
    1778812662: clean(KEY, LABELS, 0.4),
  }
  for checksum, sets in known.items():
    assert zlib.crc32(sets.candidates.tobytes()) == checksum


@pytest.mark.slow
def test_sets_are_the_same_outside_jit():
  both = [
    (noise.noisy_candidate_sets(KEY, LABELS, C, 0.4, 0.3), (0.4, 0.3), noisy),
    (noise.candidate_sets(KEY, LABELS, C, 0.4), (0.4,), clean),
  ]
  for sets, rates, make in both:
    inside = make(KEY, LABELS, *rates)
    np.testing.assert_array_equal(sets.candidates, inside.candidates)
    np.testing.assert_array_equal(sets.dropped, inside.dropped)


def test_many_sets_follow_the_same_law():
  """Beyond `BLOCK` numbers each set has a key of its own."""
  few = noisy(KEY, LABELS, 0.4, 0.3)
  run = compiled(
    lambda y: noise.noisy_candidate_sets(KEY, y, C, 0.4, 0.3)  # traced anew
  )
  with mock.patch.object(_inputs, 'BLOCK', 301 * C):  # and 194 rows are left
    many = run(LABELS)
  assert np.mean(few.candidates == many.candidates) < 0.9
  np.testing.assert_array_equal(
    many.candidates[np.arange(N), LABELS], ~many.dropped
  )
  np.testing.assert_allclose(
    frequencies(many), many.probs, atol=5 * 0.5 / np.sqrt(N / C)
  )
  # Sets of different examples differ: their keys do.
  assert len(np.unique(many.candidates, axis=0)) == 2**C - 1


def test_candidates_of_a_sweep_over_keys_and_rates():
  def draw(key, q):
    return noise.noisy_candidate_sets(key, LABELS, C, q, 0.3).candidates

  keys, qs = jax.random.split(KEY, 2), np.float32([0.1, 0.5])
  together = compiled(jax.vmap(draw))(keys, qs)
  for i in range(2):
    one = noisy(keys[i], LABELS, qs[i], 0.3)
    np.testing.assert_array_equal(one.candidates, together[i])


@pytest.mark.parametrize(
  ('make', 'rates'), [(clean, [0.3]), (noisy, [0.3, 0.2])]
)
def test_eight_devices_draw_the_same(make, rates):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  labels = jax.device_put(LABELS, sharding)
  assert len(labels.sharding.device_set) == 8
  eight, one = make(KEY, labels, *rates), make(KEY, LABELS, *rates)
  np.testing.assert_array_equal(one.candidates, eight.candidates)
  np.testing.assert_array_equal(one.dropped, eight.dropped)


def test_candidate_sets_check_their_input():
  for q in (-0.1, 1.1):
    with pytest.raises(ValueError, match='q must'):
      noise.candidate_sets(KEY, LABELS, C, q)
    with pytest.raises(ValueError, match='eta must'):
      noise.noisy_candidate_sets(KEY, LABELS, C, 0.1, q)
  with pytest.raises(ValueError, match='labels'):
    noise.candidate_sets(KEY, LABELS, 2, 0.1)
  with pytest.raises(ValueError, match='num_classes'):
    noise.candidate_sets(KEY, LABELS * 0, 1, 0.1)


def test_bags():
  n, k = 50, 400
  drawn = noise.bags(KEY, n, k, mean=10, std=1)
  index, mask = np.asarray(drawn.index), np.asarray(drawn.mask)
  lengths = mask.sum(1)
  assert index.shape == mask.shape == (k, lengths.max())
  assert drawn.index.dtype == jnp.int32
  assert (index[~mask] == PAD).all()
  assert ((index[mask] >= 0) & (index[mask] < n)).all()
  # Lengths are cut to integers, which takes half a one off the mean.
  assert lengths.mean() == pytest.approx(9.5, abs=0.25)
  assert lengths.std() == pytest.approx(np.sqrt(1 + 1 / 12), abs=0.2)
  used = np.bincount(index[mask], minlength=n)
  assert_drawn(index[mask], np.full((mask.sum(), n), 1 / n))
  assert used.max() > 1  # with replacement
  again = noise.bags(KEY, n, k, mean=10, std=1)
  np.testing.assert_array_equal(drawn.index, again.index)


def test_bags_are_never_shorter_than_two():
  drawn = noise.bags(KEY, 1, 400, mean=-3, std=0)
  assert drawn.index.tolist() == [[0, 0]] * 400
  assert np.asarray(drawn.mask).all()
  wrong = [
    ({'n': 0}, 'n must'),
    ({'num_bags': 0}, 'num_bags'),
    ({'std': -1}, 'std'),
    ({'mean': np.nan}, 'mean'),
  ]
  for change, name in wrong:
    arguments = {'n': 5, 'num_bags': 2, 'mean': 3, 'std': 1, **change}
    with pytest.raises(ValueError, match=name):
      noise.bags(KEY, **arguments)
