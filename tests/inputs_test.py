"""One law for the arguments that several rooms read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import em, losses, noise
from jnl.inputs import read_rows_of_probs, read_transition

KEY = jax.random.key(0)
LABELS = np.array([0, 1, 2, 2])
Z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SETS = np.arange(3) == LABELS[:, None]
# One function of each room and of each way it takes a matrix.
ROOMS = {
  'losses.forward': lambda t: losses.forward(Z, LABELS, t),
  'losses.importance_reweight': lambda t: losses.importance_reweight(
    Z, LABELS, t
  ),
  'em.noisy_posterior': lambda t: em.noisy_posterior(Z, LABELS, t),
  'em.noisy_log_likelihood': lambda t: em.noisy_log_likelihood(Z, LABELS, t),
  'em.mixed_posterior': lambda t: em.mixed_posterior(
    Z, SETS, np.ones(4, bool), t
  ),
  'noise.corrupt': lambda t: noise.corrupt(KEY, LABELS, t).labels,
  'noise.fixed_count': lambda t: noise.fixed_count(KEY, LABELS, t, 1.0).labels,
  'noise.corrupt_each': lambda t: noise.corrupt_each(KEY, LABELS[:3], t).labels,
}
every_room = pytest.mark.parametrize('room', ROOMS)
T = np.array([[0.8, 0.2, 0], [0.1, 0.6, 0.3], [0, 0.25, 0.75]], np.float32)


def changed(row, *values):
  matrix = T.copy()
  matrix[row] = values
  return matrix


GOOD = {
  'a little below zero': changed(0, 0.8, 0.2, -1e-7),
  'printed with three digits': changed(1, 0.1, 0.6, 0.2995),
  'stored in half precision': T.astype(np.float16),
  'a list': T.tolist(),
  'the identity in integers': np.eye(3, dtype=int),
}
BAD = {
  'row 1 sums to 0.9': changed(1, 0.1, 0.6, 0.2),
  'must not be negative; row 2': changed(2, -0.01, 0.26, 0.75),
  'must not be negative; row 0': changed(0, np.nan, 0.2, 0.8),
}


@every_room
def test_what_one_room_takes_all_take(room):
  for name, matrix in GOOD.items():
    found = ROOMS[room](matrix)
    assert np.isfinite(found).all(), name


@every_room
def test_what_one_room_refuses_all_refuse(room):
  for message, matrix in BAD.items():
    with pytest.raises(ValueError, match=message):
      ROOMS[room](matrix)
  if room != 'noise.corrupt_each':
    with pytest.raises(ValueError, match=r'\[c, c\]'):
      ROOMS[room](T[:2])


def test_a_probability_below_zero_is_never_drawn():
  matrix = changed(0, 0.8, 0.2, -1e-7)

  @jax.jit
  def program(t):
    log_likelihood = lambda t: em.noisy_log_likelihood(Z, LABELS, t).sum()
    return (
      noise.corrupt(KEY, np.zeros(500, int), matrix).labels,
      em.noisy_posterior(np.zeros((1, 3), np.float32), np.array([2]), matrix),
      jax.value_and_grad(log_likelihood)(t),
    )

  labels, q, (value, slope) = jax.device_get(program(matrix))
  assert labels.max() == 1
  assert q[0, 0] == 0
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


def test_columns_may_sum_to_one_where_it_is_said():
  columns = np.ascontiguousarray(T.T)
  assert read_transition(columns, columns=True).shape == (3, 3)
  with pytest.raises(ValueError, match='or columns that do; row 0 sums'):
    read_transition(T * 1.1, columns=True)
  with pytest.raises(ValueError, match='rows that sum to one; row 0 sums'):
    read_transition(columns)


def test_what_is_not_a_matrix_is_named():
  with pytest.raises(ValueError, match=r'kernel must be \[c, c\] = \[4, 4\]'):
    read_transition(T, 4, name='kernel')
  with pytest.raises(ValueError, match=r'must be \[c, c\] with c >= 2'):
    read_transition([[1.0]])
  with pytest.raises(ValueError, match='at least 2 probabilities'):
    read_rows_of_probs(np.ones((3, 1)))
  with pytest.raises(TypeError, match='transition must be numbers'):
    read_transition(jax.random.split(KEY, (2, 2)))


def test_a_traced_matrix_is_taken_as_it_is():
  constant = jnp.asarray(T)

  @jax.jit
  def run(t):
    of_constants = [ROOMS[room](constant) for room in ROOMS]
    return (
      read_transition(t),
      noise.corrupt(KEY, LABELS, t).labels,
      of_constants,
    )

  found, labels, _ = run(jnp.asarray(T * 2, jnp.bfloat16))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, jnp.asarray(T * 2, jnp.bfloat16))
  assert np.all((labels >= 0) & (labels < 3))
