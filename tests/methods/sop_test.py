"""SOP as a method: what moves, by how much, and which labels it finds wrong."""

import pathlib

from contract import CLASSES, SHARDS, Contract, N, network, optimizer
from fixture_methods import batches, mlp, noisy_digits, train
import jax
import numpy as np
import optax
import pytest

from jnl.base import Model, Outputs, State, pack_rows, unpack_rows
from jnl.methods import (
  SparseNoise,
  known_settings,
  learned_noise,
  sop,
  sop_plus,
)
from jnl.steps import linear

KEY = jax.random.key(0)
GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'
SIZES = {'num_examples': N, 'num_classes': CLASSES, 'shards': SHARDS}


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return sop(network(), optimizer(), **SIZES)


@pytest.mark.slow
class TestContractOfPlus(Contract):
  def make(self):
    return sop_plus(network(), optimizer(), **SIZES)


def of_rows(logits):
  """A network whose inputs are rows of its parameters, the logits."""

  def apply(params, stats, x, keys, train):
    del keys, train
    return Outputs(params[x], params[x]), stats

  return Model(lambda key: (logits, {}), apply)


@pytest.mark.parametrize('case', ['plain', 'plus'])
def test_a_step_is_the_official_one(case):
  """But u and v descend the loss of one example, b times the mean of b.

  The balance of classes reaches u too. An example of weight 0 leaves no trace,
  whatever its label is.
  """
  golden = np.load(GOLDEN / f'sop__step__public_{case}.npz')
  z, u, v = (golden[k].astype(np.float32) for k in ('logits', 'u', 'v'))
  labels, index = golden['labels'], golden['indices']
  (n, c), b, plus = v.shape, len(labels), case == 'plus'
  batch = {
    'x': np.append(np.arange(b), 0),
    'x_strong': np.append(np.arange(len(z) - b, len(z)), 0),
    'labels': np.append(labels, 255),
    'index': np.append(index, 0),
    'weight': np.append(np.ones(b), 0).astype(np.float32),
  }
  factors = {k: golden[f'hp_ratio_{k}'] for k in ('consistency', 'balance')}
  make, own = (sop_plus, factors) if plus else (sop, {})
  own |= {'num_examples': n, 'num_classes': c, 'u_rate': 0.5, 'v_rate': 3.0}
  method = make(of_rows(z), optax.sgd(1.0), **own)

  @jax.jit
  def step(u, v, batch):
    start = method.init(KEY)
    noise = SparseNoise(pack_rows(u), pack_rows(v))
    state, metrics = method.step(start._replace(extra=noise), batch, KEY)
    return state.params, *(unpack_rows(t, n) for t in state.extra), metrics

  *moved, metrics = step(u[:, 0], v, batch)
  for old, new, factor, name in (
    (z, moved[0], 1, 'logits'),
    (u[:, 0], moved[1], 0.5 * b, 'u'),
    (v, moved[2], 3.0 * b, 'v'),
  ):
    slope = factor * golden[f'grad_{name}_f64'].reshape(old.shape)
    np.testing.assert_allclose(new, old - slope, rtol=2e-5, atol=2e-6)
    unseen = np.delete(np.arange(n), index)
    if name != 'logits':
      np.testing.assert_array_equal(new[unseen], old[unseen])
  # The official balance is a cross-entropy, larger by log c.
  expected = golden['loss_f64'] - plus * factors['balance'] * np.log(c)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  noise = np.mean(np.minimum(np.square(u[index]), 1))
  np.testing.assert_allclose(metrics['noise'], noise, rtol=1e-5)


def test_the_noise_is_small_at_first_and_read_in_index_order():
  method = sop(linear(2, 3), optax.sgd(0.1), num_examples=90, num_classes=3)
  u = np.float32([1e-8, -0.5, 2.0, 0.0, -1.0])

  @jax.jit
  def run():
    noise = SparseNoise(pack_rows(u, 2), ())
    return method.init(KEY).extra, learned_noise(
      State(0, {}, {}, (), noise), len(u)
    )

  start, found = run()
  np.testing.assert_allclose(found, [0, 0.25, 1, 0, 1], atol=1e-12)
  for table in start:
    assert table.rows.dtype == np.float32
    assert 0.7e-8 < np.std(table.rows) < 1.3e-8
  assert abs(np.corrcoef(start.u.rows, start.v.rows[..., 0])[0, 1]) < 0.4


@pytest.mark.parametrize(
  ('change', 'own', 'match'),
  [
    ({'x_strong': None}, {}, 'x_strong'),
    ({'index': None}, {}, 'index'),
    ({'x_strong': np.ones((4, 3), np.float32)}, {}, 'views'),
    ({'labels': np.zeros((4, 1), np.int32)}, {}, 'labels'),
    ({'weight': np.ones((4, 1), np.float32)}, {}, 'weight'),
    ({}, {'num_classes': 4}, 'num_classes is 4'),
    ({}, {'u_rate': -1.0}, 'u_rate'),
    ({}, {'v_rate': -1.0}, 'v_rate'),
    ({}, {'scale': 0.0}, 'scale'),
    ({}, {'consistency': -1.0}, 'consistency'),
    ({}, {'balance': -1.0}, 'balance'),
  ],
)
def test_what_does_not_fit_is_refused(change, own, match):
  batch = {
    'x': np.ones((4, 2), np.float32),
    'x_strong': np.ones((4, 2), np.float32),
    'labels': np.zeros(4, np.int32),
    'index': np.arange(4),
    'weight': np.ones(4, np.float32),
    **change,
  }
  batch = {k: v for k, v in batch.items() if v is not None}
  sizes = {'num_examples': 4, 'num_classes': 3, **own}

  def step():
    method = sop_plus(linear(2, 3), optax.sgd(0.1), **sizes)
    return method.step(method.init(KEY), batch, KEY)

  with pytest.raises(ValueError, match=match):
    jax.eval_shape(step)


def test_published_rates_are_of_one_example():
  """The official ones are of the mean of 128."""
  plain, plus = known_settings('sop'), known_settings('sop_plus')
  assert (len(plain), len(plus)) == (4, 10)
  case = 'cifar100', 'symmetric_inclusive', None
  for found in plain[case], plus[case]:
    rates = [128 * found.arguments[k] for k in ('u_rate', 'v_rate')]
    np.testing.assert_allclose(rates, [1, 10])


@pytest.mark.slow
def test_u_grows_on_wrong_labels_and_the_network_is_spared():
  """Digits, 40% symmetric noise; at rates of 0 it is clipped cross-entropy.

  Seen: accuracy 73 and 97, AUC .98.
  """
  digits, noisy = noisy_digits(np.random.default_rng(0))
  clean = digits.train.labels
  arrays = {'x': digits.train.x, 'labels': noisy}
  order = batches(arrays, epochs=50, batch_size=100)
  model, tx = mlp(64, 256, 10), optax.sgd(0.1, momentum=0.9)

  def trained(rate):
    own = {'num_examples': len(clean), 'num_classes': 10}
    method = sop(model, tx, **own, u_rate=rate, v_rate=rate)
    state = train(method, order)
    logits = method.predict(state, digits.test.x).logits
    return logits, learned_noise(state, len(clean))

  rates = np.float32([0, 0.3])
  logits, noise = jax.device_get(jax.jit(jax.vmap(trained))(rates))
  right = np.mean(logits.argmax(-1) == digits.test.labels, axis=1)
  wrong = noisy != clean
  ahead = [np.mean(u[wrong][:, None] > u[~wrong]) for u in noise]
  assert right[1] > right[0] + 0.1
  assert ahead[1] > 0.95  # the AUC
  assert noise[1, wrong].mean() > 0.9
  assert noise[1, ~wrong].mean() < 0.1
