"""GJS as a method: what it descends, and that views keep each other right."""

import pathlib

from contract import Contract, network, optimizer
import jax
import numpy as np
import optax
import pytest

from jnl.base import Model, Outputs
from jnl.methods import gjs, known_settings
from jnl.steps import linear

KEY = jax.random.key(0)
GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return gjs(network(), optimizer())


def of_rows(logits):
  """A network whose inputs are rows of its parameters, the logits."""

  def apply(params, stats, x, keys, train):
    del keys, train
    return Outputs(params[x], params[x]), stats

  return Model(lambda key: (logits, {}), apply)


def test_a_step_is_the_official_one():
  """An example of weight 0 leaves no trace, whatever its label is."""
  golden = np.load(GOLDEN / 'robust__gjs__public_m3.npz')
  logits, labels = golden['logits_views'], golden['labels']
  b, c = logits.shape[1:]
  rows = np.arange(2 * b).reshape(2, b)
  batch = {
    'x': np.append(rows[0], 0),
    'x_strong': np.append(rows[1], 0),
    'labels': np.append(labels, 255),
    'index': np.arange(b + 1),
    'weight': np.append(np.ones(b), 0).astype(np.float32),
  }
  z = logits.reshape(-1, c).astype(np.float32)
  method = gjs(of_rows(z), optax.sgd(1.0), weights=golden['weights'])
  step = jax.jit(lambda batch: method.step(method.init(KEY), batch, KEY))
  state, metrics = step(batch)
  expected = golden['scaled_loss_mean_f64']
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  slope = golden['scaled_grad_logits_f64'].reshape(-1, c)
  np.testing.assert_allclose(z - state.params, slope, atol=1e-6)
  parts = metrics['divergence'] + metrics['consistency']
  np.testing.assert_allclose(parts, metrics['loss'], rtol=1e-6)
  assert min(metrics['divergence'], metrics['consistency']) > 0


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'x_strong': None}, 'x_strong'),
    ({'x_strong': np.ones((4, 3), np.float32)}, 'views'),
    ({'labels': np.zeros((4, 1), np.int32)}, 'labels'),
    ({'weight': np.ones((4, 1), np.float32)}, 'weight'),
  ],
)
def test_a_batch_that_does_not_fit_is_refused(change, match):
  method = gjs(linear(2, 3), optax.sgd(0.1))
  batch = {
    'x': np.ones((4, 2), np.float32),
    'x_strong': np.ones((4, 2), np.float32),
    'labels': np.zeros(4, np.int32),
    'index': np.arange(4),
    'weight': np.ones(4, np.float32),
    **change,
  }
  batch = {k: v for k, v in batch.items() if v is not None}
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lambda: method.step(method.init(KEY), batch, KEY))


@pytest.mark.parametrize(
  'weights', [(0.5, 0.5), (0.5, 0.25, 0.5), (0.0, 0.5, 0.5)]
)
def test_weights_are_checked(weights):
  with pytest.raises(ValueError, match='weights'):
    gjs(linear(2, 3), optax.sgd(0.1), weights=weights)


def test_published_weights_sum_to_one():
  settings = known_settings('gjs')
  assert len(settings) == 12
  for one in settings.values():
    np.testing.assert_allclose(sum(one.arguments['weights']), 1)
