"""VolMinNet as a method: its loss, its two optimizers, and where T goes."""

import functools

from contract import CLASSES, Contract, network, optimizer
from fixture_estimated import C, D, batch_of, truth_found
import jax
import numpy as np
import optax
import pytest

from jnl.methods import WithMatrix, estimated_transition, vol_min
from jnl.steps import linear

KEY = jax.random.key(0)
small = functools.partial(vol_min, linear(D, C), optax.sgd(0.5), num_classes=C)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return vol_min(network(), optimizer(), num_classes=CLASSES)


def matrix_of(weights):
  amounts = np.where(np.eye(len(weights)), 1, 1 / (1 + np.exp(-weights)))
  return amounts / amounts.sum(1, keepdims=True)


def test_network_and_matrix_descend_together_by_optimizers_of_their_own():
  """A row of weight 0 leaves no trace."""
  method, batch = (
    small(matrix_tx=optax.sgd(3.0), lam=0.1, first=-2.0),
    batch_of(),
  )

  @jax.jit
  def run(batch):
    start = method.init(KEY)
    return start, *method.step(start, batch, KEY)

  start, state, metrics = jax.device_get(run(batch))
  labels = batch['labels'][:-1]
  weights = np.full((C, C), -2.0)

  def loss(weights):
    found = matrix_of(weights)
    fit = -np.log(found.mean(0))[labels].mean()
    return fit + 0.1 * np.log(np.abs(np.linalg.det(found)))

  found = matrix_of(weights)
  np.testing.assert_allclose(estimated_transition(start), found, rtol=1e-6)
  np.testing.assert_allclose(metrics['loss'], loss(weights), rtol=1e-5)
  np.testing.assert_allclose(metrics['kept'], found[0, 0], rtol=1e-6)
  volume = np.log(np.linalg.det(found))
  np.testing.assert_allclose(metrics['log_volume'], volume, rtol=1e-5)
  h = 1e-5 * np.eye(C * C).reshape(-1, C, C)
  slope = np.array([(loss(weights + d) - loss(weights - d)) / 2e-5 for d in h])
  expected = weights - 3 * slope.reshape(C, C)
  np.testing.assert_allclose(state.params.matrix, expected, rtol=1e-4)
  # The network of zeros says 1 / c of all: its error through T.
  noisy = found.mean(0)
  error = (1 - found[:, labels].T / noisy[labels, None]) / C
  x = batch['x'][:-1]
  np.testing.assert_allclose(
    state.params.net['weights'],
    -0.5 * x.T @ error / len(x),
    rtol=1e-4,
    atol=1e-6,
  )
  batch['x'][-1], batch['labels'][-1] = np.inf, -1
  jax.tree.map(np.testing.assert_array_equal, run(batch)[1:], (state, metrics))


@pytest.mark.parametrize(('c', 'first'), [(10, -2.0), (100, -4.5), (2, 0.0)])
def test_labels_are_kept_by_half_at_first(c, first):
  """Near the numbers of the paper's code, for any number of classes."""
  state = vol_min(linear(D, c), optax.sgd(0.1), num_classes=c).init(KEY)
  weights = np.asarray(state.params.matrix)
  np.testing.assert_allclose(weights, first, atol=0.02)
  kept = np.diag(matrix_of(weights))
  np.testing.assert_allclose(kept, 2 / 3 if c == 2 else 0.4808, rtol=1e-3)


def test_hyperparameters_may_be_swept_and_are_checked():
  batch = batch_of()

  def loss(lam, first):
    method = small(lam=lam, first=first)
    return method.step(method.init(KEY), batch, KEY)[1]['loss']

  found = jax.jit(jax.vmap(loss))(np.float32([0, 1]), np.float32([-2, -2]))
  volume = np.log(np.linalg.det(matrix_of(np.full((C, C), -2.0))))
  np.testing.assert_allclose(found[1] - found[0], volume, rtol=1e-4)
  for change in {'lam': -1.0}, {'num_classes': 1}, {'first': np.zeros(2)}:
    with pytest.raises(ValueError, match=next(iter(change))):
      vol_min(linear(D, C), optax.sgd(0.1), **{'num_classes': C, **change})
  with pytest.raises(TypeError, match='model must be'):
    vol_min('mlp', optax.sgd(0.1), num_classes=C)
  state = jax.eval_shape(small().init, KEY)
  assert isinstance(state.params, WithMatrix)
  batch['labels'] = batch['labels'][:, None]
  with pytest.raises(ValueError, match='labels'):
    jax.eval_shape(small().step, state, batch, KEY)


@pytest.mark.slow
def test_the_matrix_comes_near_the_truth():
  """Digits, 40% flipped in pairs, 30 epochs."""
  error, of_identity = truth_found(
    functools.partial(vol_min, num_classes=10), epochs=30, refit=False
  )
  assert error < 0.5 * of_identity
