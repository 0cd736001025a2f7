"""CORES as a method: beta by epochs, and whom the sieve keeps."""

from contract import Contract, network, optimizer
from fixture_methods import batches, mlp, noisy_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import State
from jnl.losses import cores2_sieve
from jnl.methods import cores
from jnl.steps import linear

KEY = jax.random.key(0)
B, D, C = 6, 3, 4


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    ramp = (0, 0.5), (2, 2.0)
    return cores(network(), optimizer(), steps_per_epoch=1, beta=ramp, sieve=1)


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def start_of(w, epoch):
  params = {'weights': np.float32(w), 'bias': np.zeros(C, np.float32)}
  return State(np.int32(2 * epoch), params, {}, optax.sgd(0.5).init(params), ())


def test_steps_before_and_after_the_sieve():
  """A row of weight 0 may hold anything; who keeps nobody takes all."""
  rng = np.random.default_rng(0)
  prior = np.float32([0.4, 0.3, 0.2, 0.1])
  x, w = rng.normal(size=(B, D)), rng.normal(size=(D, C))
  x, w = x.astype(np.float32), w.astype(np.float32)
  p = softmax(x @ w)
  best, worst = p.argmax(1), p.argmin(1)
  mixed = np.where(np.arange(B) < 3, best, worst)
  batch = {'x': x.copy(), 'index': np.arange(B), 'weight': np.ones(B)}
  batch['weight'] = np.float32([1, 2, 1, 1, 1, 0])
  batch['x'][-1] = np.nan
  method = cores(linear(D, C), optax.sgd(0.5), steps_per_epoch=2, prior=prior)
  step = jax.jit(method.step)
  keeps = {'mixed': np.arange(B) < 3, 'nobody': np.arange(B) < 0}
  for epoch, beta, name in (
    (0, 0.0, 'mixed'),
    (30, 2 * 20 / 29, 'mixed'),
    (31, 2 * 21 / 29, 'mixed'),
    (31, 2 * 21 / 29, 'nobody'),
    (60, 2.0, 'mixed'),
  ):
    labels = np.where(name == 'mixed', mixed, worst)
    labels[-1] = 255
    state, metrics = step(
      start_of(w, epoch), {**batch, 'labels': labels.astype(np.uint8)}, KEY
    )
    labels[-1] = 0
    share = batch['weight'] * (keeps[name] if epoch > 30 else 1)
    kept = share.sum() / batch['weight'].sum()
    share = share if kept else batch['weight']
    own, y = share[:-1] / share.sum(), np.eye(C)[labels[:-1]]
    logs = np.log(p[:-1])
    loss = (own[:, None] * (beta * prior - y) * logs).sum() / (1 + beta)
    np.testing.assert_allclose(
      [metrics[k] for k in ('loss', 'beta', 'kept')],
      [loss, beta, kept],
      rtol=1e-5,
    )
    slope = (1 - beta) * p[:-1] - y + beta * prior
    error = own[:, None] * slope / (1 + beta)
    new = w - 0.5 * x[:-1].T @ error
    np.testing.assert_allclose(
      state.params['weights'], new, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'steps_per_epoch': 0}, 'steps_per_epoch'),
    ({'sieve': -1}, 'sieve'),
    ({'beta': ((0, -1.0),)}, 'beta'),
    ({'beta': ((5, 0.0), (5, 1.0))}, 'beta must rise'),
    ({'beta': 2.0}, 'beta'),
    ({'prior': np.float32([0.5, 0.6])}, 'prior'),
    ({'offset': -1e-8}, 'offset'),
  ],
)
def test_arguments_are_checked(kwargs, message):
  with pytest.raises(ValueError, match=message):
    cores(linear(D, C), optax.sgd(0.5), **{'steps_per_epoch': 1, **kwargs})


@pytest.mark.slow
def test_the_sieve_keeps_what_is_clean():
  """Digits, 40% symmetric noise; of clean labels .99 are kept, of wrong .0."""
  digits, labels = noisy_digits(np.random.default_rng(0))
  clean, x = digits.train.labels, digits.train.x
  order = batches({'x': x, 'labels': labels}, epochs=40, batch_size=100)
  method = cores(
    mlp(64, 256, 10),
    optax.sgd(0.05, momentum=0.9),
    steps_per_epoch=12,
    beta=((5, 0.0), (20, 2.0)),
    sieve=15,
  )

  @jax.jit
  def run(order):
    step = lambda state, batch: method.step(state, batch, KEY)
    state, metrics = jax.lax.scan(step, method.init(KEY), order)
    logits = method.predict(state, x).logits
    found = jnp.argmax(method.predict(state, digits.test.x).logits, axis=1)
    return cores2_sieve(logits, labels, offset=1e-8), found, metrics['kept']

  kept, found, share = jax.device_get(run(order))
  assert kept[labels == clean].mean() > 0.95
  assert kept[labels != clean].mean() < 0.1
  shares = share.reshape(40, -1).mean(1)
  assert np.all(shares[:15] == 1)
  assert np.all(np.abs(shares[30:] - (labels == clean).mean()) < 0.05)
  assert np.mean(found == digits.test.labels) > 0.88
