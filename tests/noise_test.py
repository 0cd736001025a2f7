"""Transition matrices and draws from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import noise

KEY = jax.random.key(0)
MATRICES = [noise.symmetric, noise.symmetric_inclusive, noise.pair_flip]


@pytest.mark.parametrize('matrix', MATRICES)
@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
def test_rows_are_probabilities(matrix, rate):
  transition = np.asarray(matrix(5, rate))
  assert (transition >= 0).all()
  np.testing.assert_allclose(transition.sum(1), 1, rtol=1e-6)
  wrong = rate * 4 / 5 if matrix is noise.symmetric_inclusive else rate
  np.testing.assert_allclose(1 - np.diag(transition), wrong, atol=1e-6)


def test_pair_flip_goes_to_the_next_class():
  expected = [[0.7, 0.3, 0], [0, 0.7, 0.3], [0.3, 0, 0.7]]
  np.testing.assert_allclose(noise.pair_flip(3, 0.3), expected, rtol=1e-6)


@pytest.mark.parametrize('matrix', MATRICES)
def test_draws_follow_the_matrix(matrix):
  transition = np.asarray(matrix(4, 0.4))
  labels = np.arange(40_000) % 4
  noisy = noise.corrupt(KEY, labels, transition)
  counts = np.zeros((4, 4))
  np.add.at(counts, (labels, np.asarray(noisy)), 1)
  expected = 10_000 * transition
  assert counts[expected == 0].sum() == 0
  used = expected > 0
  chi2 = ((counts - expected) ** 2)[used] / expected[used]
  # The .999 quantile for at most 12 degrees of freedom.
  assert chi2.sum() < 32.9
  assert noisy.dtype == jnp.int32


def test_the_key_decides_the_draw():
  labels, transition = np.arange(100) % 4, noise.symmetric(4, 0.4)
  first, again = (noise.corrupt(KEY, labels, transition) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  other = noise.corrupt(jax.random.key(1), labels, transition)
  assert (other != first).any()


@pytest.mark.parametrize('rate', [-0.1, 1.1])
@pytest.mark.parametrize('matrix', MATRICES)
def test_rates_and_classes_are_checked(matrix, rate):
  with pytest.raises(ValueError, match='rate'):
    matrix(4, rate)
  with pytest.raises(ValueError, match='num_classes'):
    matrix(1, 0.1)


@pytest.mark.parametrize(
  ('labels', 'transition', 'error', 'name'),
  [
    ([0, 4], np.eye(4), ValueError, 'labels'),
    ([0, -1], np.eye(4), ValueError, 'labels'),
    ([0.0, 1.0], np.eye(4), TypeError, 'labels'),
    ([0, 1], np.ones((4, 4)), ValueError, 'transition'),
    ([0, 1], np.full((4, 4), np.nan), ValueError, 'transition'),
    ([0, 1], np.ones((4, 3)), ValueError, 'transition'),
    ([0, 1], np.eye(4) + np.array([1, -1, 0, 0]), ValueError, 'transition'),
  ],
)
def test_bad_input_names_the_argument(labels, transition, error, name):
  with pytest.raises(error, match=name):
    noise.corrupt(KEY, np.array(labels), transition)
