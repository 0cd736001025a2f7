"""ELR as a method: its memory, its flags, and that the mechanism matters."""

import warnings

from contract import CLASSES, SHARDS, EveryMode, N, linen_network, optimizer
from fixture_methods import accuracy, batches, mlp, smooth, train
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import State, pack_rows, unpack_rows
from jnl.data import load
from jnl.methods import elr, mislabeled
from jnl.steps import supervised

KEY = jax.random.key(0)


def small(**kwargs):
  return elr(
    smooth(2, 4, 3), optax.sgd(0.1), num_examples=6, num_classes=3, **kwargs
  )


def batch_of(index, weight):
  b = len(index)
  return {
    'x': np.float32([[i, i] for i in range(1, b + 1)]),
    'labels': np.zeros(b, np.int32),
    'index': np.array(index),
    'weight': np.array(weight, np.float32),
  }


def test_a_step_moves_the_memory_of_its_batch_alone():
  method, batch = small(beta=0.7), batch_of([4, 1], [1.0, 0.0])

  @jax.jit
  def stepped(batch):
    start = method.init(KEY)
    state, metrics = method.step(start, batch, KEY)
    probs = jax.nn.softmax(method.predict(start, batch['x']).logits)
    return probs, unpack_rows(state.extra, 6), metrics

  probs, memory, metrics = jax.device_get(stepped(batch))
  np.testing.assert_allclose(memory[4], 0.3 * probs[0], rtol=1e-4)
  others = np.delete(memory, 4, axis=0)
  np.testing.assert_array_equal(others, 0)  # that of weight 0 among them
  total = metrics['cross_entropy'] + 3 * metrics['penalty']
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-6)
  assert metrics['penalty'] < 0


def test_the_memory_may_be_kept_in_bfloat16():
  """Half of it, the same but for its rounding; int64 indices warn nobody."""
  batch = batch_of([4, 1], [1.0, 1.0])
  assert batch['index'].dtype == np.int64
  methods = [small(dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]

  @jax.jit
  def step(states):  # the batch as it is: inside jit, arguments are int32
    return [m.step(s, batch, KEY) for m, s in zip(methods, states, strict=True)]

  states = jax.jit(lambda: [method.init(KEY) for method in methods])()
  for _ in range(3):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      states, metrics = zip(*step(states), strict=True)
  assert [s.extra.rows.dtype for s in states] == [jnp.float32, jnp.bfloat16]
  high, low = (np.float32(s.extra.rows) for s in states)
  assert np.any(high != low)
  np.testing.assert_allclose(low, high, rtol=1e-2)
  np.testing.assert_allclose(metrics[1]['loss'], metrics[0]['loss'], rtol=1e-2)


def test_flags_are_contradictions_of_examples_that_were_seen():
  memory = np.float32([[0.1, 0.5], [0.4, 0.1], [0, 0], [0.2, 0.3]])

  @jax.jit
  def flagged(memory, labels):
    state = State(jnp.int32(1), {}, {}, (), pack_rows(memory, 2))
    return mislabeled(state, labels)

  flags = flagged(memory, np.array([1, 1, 1, 0]))
  np.testing.assert_array_equal(flags, [False, True, False, True])


@pytest.mark.parametrize('name', ['beta', 'lam'])
def test_hyperparameters_are_checked(name):
  with pytest.raises(ValueError, match=name):
    small(**{name: -0.1})


def test_hyperparameters_may_be_swept():
  batch = batch_of([0, 1, 2], [1.0, 1.0, 1.0])

  def loss(beta, lam):
    method = small(beta=beta, lam=lam)
    return method.step(method.init(KEY), batch, KEY)[1]['loss']

  @jax.jit
  def both(betas, lams):
    return jax.vmap(loss)(betas, lams), [loss(0.1, 0.0), loss(0.9, 3.0)]

  found, expected = both(np.float32([0.1, 0.9]), np.float32([0, 3]))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def noisy_digits(runs):
  """Digits, 40% symmetric noise: noisy labels, 50 epochs, a test set."""
  digits, rng = load('digits'), np.random.default_rng(0)
  labels = np.tile(digits.train.labels, (runs, 1))
  other = (labels + rng.integers(1, 10, labels.shape)) % 10
  noisy = np.where(rng.random(labels.shape) < 0.4, other, labels)
  arrays = {'x': digits.train.x, 'labels': digits.train.labels}
  order = batches(arrays, epochs=50, batch_size=100)
  return noisy, order, digits


MODEL, TX = mlp(64, 256, 10), optax.sgd(0.1, momentum=0.9)


def on_digits(**kwargs):
  return elr(MODEL, TX, num_examples=1200, num_classes=10, **kwargs)


def f1_of_flags(state, noisy, clean):
  flags, wrong = np.asarray(mislabeled(state, noisy)), noisy != clean
  return 2 * (flags & wrong).sum() / (flags.sum() + wrong.sum())


def test_elr_does_not_memorize_and_finds_the_wrong_labels():
  """Seen: CE 74, ELR 98."""
  (noisy,), order, digits = noisy_digits(1)
  order, seen = {**order, 'labels': noisy[order['index']]}, {}
  for name, method in (
    ('ce', supervised(losses.ce, MODEL, TX)),
    ('elr', on_digits()),
  ):
    state = train(method, order)
    seen[name] = accuracy(method, state, digits.test.x, digits.test.labels)
  assert seen['elr'] > 0.94
  assert seen['elr'] > seen['ce'] + 0.1
  assert f1_of_flags(state, noisy, digits.train.labels) > 0.9


@pytest.mark.slow
def test_cross_entropy_falls_and_beta_0_does_not_help():
  """Four seeds, in one program; without the penalty it is cross-entropy.

  Without memory runs end anywhere between .1 and .98, by the last digit.
  """
  noisy, order, digits = noisy_digits(4)
  settings = {'ce': (0.7, 0.0), 'elr': (0.7, 3.0), 'beta 0': (0.0, 3.0)}

  def trained(labels, beta, lam, epochs):
    method = on_digits(beta=beta, lam=lam)

    def step(state, batch):
      batch = {**batch, 'labels': labels[batch['index']]}
      return method.step(state, batch, KEY)

    def epoch(state, order):
      state, _ = jax.lax.scan(step, state, order)
      found = jnp.argmax(method.predict(state, digits.test.x).logits, axis=1)
      return state, jnp.mean(found == digits.test.labels)

    return jax.lax.scan(epoch, method.init(KEY), epochs)

  over_seeds = jax.vmap(trained, (0, None, None, None))
  over_both = jax.vmap(over_seeds, (None, 0, 0, None))
  epochs = {k: a.reshape(50, -1, *a.shape[1:]) for k, a in order.items()}
  rates = np.float32(list(settings.values())).T
  states, curves = jax.device_get(jax.jit(over_both)(noisy, *rates, epochs))
  curve = dict(zip(settings, curves, strict=True))  # [seeds, epochs]
  last = {name: a[:, -1].mean() for name, a in curve.items()}
  assert last['elr'] > 0.94
  assert last['elr'] > last['ce'] + 0.1
  assert last['elr'] > last['beta 0'] + 0.05
  assert curve['ce'].max(1).mean() > last['ce'] + 0.08
  for run in range(4):
    state = jax.tree.map(lambda a, run=run: a[1, run], states)
    assert f1_of_flags(state, noisy[run], digits.train.labels) > 0.9


class TestContract(EveryMode):
  def make(self):
    return elr(
      linen_network(),
      optimizer(),
      num_examples=N,
      num_classes=CLASSES,
      shards=SHARDS,
    )
