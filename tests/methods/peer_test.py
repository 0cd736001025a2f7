"""Peer loss as a method: its peers, its weight by epochs, what it ignores."""

from contract import Contract, network, optimizer
from fixture_methods import batches, mlp, noisy_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import State, shuffle_within
from jnl.methods import peer
from jnl.methods._peer import PEER_TAG, UNIFORM
from jnl.ramps import piecewise_linear
from jnl.steps import linear

KEY = jax.random.key(0)
B, D, C = 12, 3, 4


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    ramp = (0, 0.5), (2, 2.0)
    return peer(network(), optimizer(), steps_per_epoch=1, alpha=ramp)


def test_a_step_subtracts_the_loss_of_shuffled_pairs():
  """A row of weight 0 may hold anything, and is nobody's peer."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, D)).astype(np.float32)
  w = rng.normal(size=(D, C)).astype(np.float32)
  there, labels = np.arange(B) != 4, rng.integers(0, C, B, np.uint8)
  batch = {'x': x.copy(), 'labels': labels.copy(), 'index': np.arange(B)}
  batch['weight'] = np.where(there, np.float32(rng.integers(1, 3, B)), 0)
  batch['x'][4], batch['labels'][4] = np.nan, 255
  params = {'weights': w, 'bias': np.zeros(C, np.float32)}
  start = State(np.int32(7), params, {}, optax.sgd(0.5).init(params), ())
  ramp = (1, 0.5), (5, 2.5)
  method = peer(linear(D, C), optax.sgd(0.5), steps_per_epoch=2, alpha=ramp)

  @jax.jit
  def stepped(state, batch):
    drawn = [
      shuffle_within(k, batch['index'], batch['index'], where=there)
      for k in jax.random.split(jax.random.fold_in(KEY, PEER_TAG))
    ]
    return method.step(state, batch, KEY), drawn

  (state, metrics), (first, second) = jax.device_get(stepped(start, batch))
  assert set(first[there]) == set(second[there]) == {*range(B)} - {4}
  assert np.any(first != second)
  z = x @ w
  p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  y, own = np.eye(C)[labels], batch['weight'] / batch['weight'].sum()
  alpha = 1.5  # of epoch 3
  value = lambda p, y: -np.log((p * y).sum(1) + 1e-5)
  loss = own @ (value(p, y) - alpha * value(p[first], y[second])) / (1 + alpha)
  np.testing.assert_allclose(
    [metrics[k] for k in ('loss', 'alpha', 'cross_entropy')],
    [loss, alpha, own @ -np.log((p * y).sum(1))],
    rtol=1e-4,
  )

  def slope(p, y):  # of the value, by logits
    own = (p * y).sum(1, keepdims=True)
    return (p - y) * own / (own + 1e-5)

  others = alpha * own[:, None] * slope(p[first], y[second])
  gradient = x.T @ (own[:, None] * slope(p, y)) - x[first].T @ others
  new = w - 0.5 * gradient / (1 + alpha)
  np.testing.assert_allclose(state.params['weights'], new, rtol=1e-3, atol=1e-5)


def test_the_official_weights():
  """Thirty segments of `linspace`, as the code joins them."""
  parts = (0, 0, 20), (0, 0.1, 20), (1, 2, 50), (2, 2.5, 50), (2.5, 3.3, 100)
  official = np.concatenate([np.linspace(*part) for part in parts])
  found = piecewise_linear(np.arange(240), UNIFORM)
  np.testing.assert_allclose(found, official, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'steps_per_epoch': 0}, 'steps_per_epoch'),
    ({'alpha': ((0, -1.0),)}, 'alpha'),
    ({'alpha': ((5, 0.0), (5, 1.0))}, 'alpha must rise'),
    ({'alpha': 1.0}, 'alpha'),
    ({'offset': -1e-5}, 'offset'),
  ],
)
def test_arguments_are_checked(kwargs, message):
  with pytest.raises(ValueError, match=message):
    peer(linear(D, C), optax.sgd(0.5), **{'steps_per_epoch': 1, **kwargs})


@pytest.mark.slow
def test_wrong_labels_are_not_learned():
  """Digits, 40% symmetric noise; by cross-entropy all end near 0."""
  digits, labels = noisy_digits(np.random.default_rng(0))
  clean, x = digits.train.labels, digits.train.x
  order = batches({'x': x, 'labels': labels}, epochs=40, batch_size=100)
  method = peer(
    mlp(64, 256, 10),
    optax.sgd(0.05, momentum=0.9),
    steps_per_epoch=12,
    alpha=((3, 0.0), (10, 1.0)),
  )

  @jax.jit
  def run(order):
    def step(state, batch):
      key = jax.random.fold_in(KEY, state.step)
      return method.step(state, batch, key)[0], None

    state, _ = jax.lax.scan(step, method.init(KEY), order)
    found = jnp.argmax(method.predict(state, digits.test.x).logits, axis=1)
    return losses.ce(method.predict(state, x).logits, labels), found

  values, found = jax.device_get(run(order))
  right = labels == clean
  assert np.median(values[right]) < 0.1
  assert np.median(values[~right]) > 3
  assert np.mean(found == digits.test.labels) > 0.88
