"""The matrix of VolMinNet, its volume and its loss."""

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import transition

B, C = 6, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, C)).astype(np.float32)
LABELS = RNG.integers(0, C, B)
WEIGHTS = RNG.normal(size=(C, C)).astype(np.float32)


@compiled
def run(logits, labels, weights):
  def mean(weights):
    return transition.vol_min_loss(logits, labels, weights, lam=0.5).mean()

  matrix = transition.vol_min_transition(weights)
  return (
    matrix,
    transition.vol_min_penalty(matrix),
    transition.vol_min_loss(logits, labels, weights, lam=0.5),
    jax.grad(mean)(weights),
  )


def test_equations():
  matrix, penalty, losses, gradient = run(LOGITS, LABELS, WEIGHTS)
  amounts = 1 / (1 + np.exp(-WEIGHTS.astype(np.float64)))
  amounts[np.eye(C, dtype=bool)] = 1
  expected = amounts / amounts.sum(1, keepdims=True)
  np.testing.assert_allclose(matrix, expected, rtol=1e-6)
  assert np.all(matrix.argmax(1) == np.arange(C))
  volume = np.log(abs(np.linalg.det(expected)))
  np.testing.assert_allclose(penalty, volume, rtol=1e-5)
  probs = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
  fit = -np.log((probs @ expected)[np.arange(B), LABELS])
  np.testing.assert_allclose(losses, fit + volume / 2, rtol=1e-5)
  np.testing.assert_array_equal(gradient.diagonal(), 0)  # is not read
  assert np.all(gradient[~np.eye(C, dtype=bool)] != 0)


def test_extreme_weights():
  """Saturated either way: the identity; a matrix without volume."""
  logits = 1e4 * LOGITS
  matrix, penalty, losses, gradient = run(logits, LABELS, WEIGHTS * 0 - 1e3)
  np.testing.assert_array_equal(matrix, np.eye(C))
  assert penalty == 0
  assert np.all(np.isfinite(losses))
  assert np.all(np.isfinite(gradient))
  matrix, penalty, *_ = run(logits, LABELS, WEIGHTS * 0 + 1e3)
  np.testing.assert_array_equal(matrix, 1 / C)
  assert penalty == -np.inf


def test_low_precision_is_raised():
  half = jax.ShapeDtypeStruct((B, C), 'bfloat16')
  weights = jax.ShapeDtypeStruct((C, C), 'bfloat16')
  labels = jax.ShapeDtypeStruct((B,), 'uint8')
  loss = jax.eval_shape(transition.vol_min_loss, half, labels, weights)
  assert (loss.shape, loss.dtype) == ((B,), jnp.float32)


@pytest.mark.parametrize(
  ('weights', 'options', 'error', 'match'),
  [
    (WEIGHTS[1:], {}, ValueError, r'weights must be \[c, c\]'),
    (WEIGHTS[0], {}, ValueError, r'weights must be \[c, c\]'),
    (np.eye(C, dtype=int), {}, TypeError, 'weights must be floating-point'),
    (np.eye(C + 1), {}, ValueError, r'transition must be \[c, c\] = \[4, 4\]'),
    (WEIGHTS, {'lam': -1}, ValueError, 'lam must lie in'),
    (WEIGHTS, {'lam': np.ones(B)}, ValueError, 'lam must be a scalar'),
  ],
)
def test_bad_input(weights, options, error, match):
  with pytest.raises(error, match=match):
    transition.vol_min_loss(LOGITS, LABELS, weights, **options)
