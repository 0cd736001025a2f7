"""DivideMix: who is clean, what is learned from whom, and that it helps."""

from contract import (
  CLASSES,
  SHARDS,
  Contract,
  N,
  network,
  optimizer,
)
from fixture_methods import accuracy, batches, mlp, noisy_digits
import jax
import numpy as np
import optax
import pytest

from jnl.base import Model, State, Table, pack_rows, unpack_rows
from jnl.methods import Divided, divide_mix
from jnl.methods._divide_mix import _Seen
from jnl.methods._mixing import mixed_views
from jnl.steps import linear, select

KEY = jax.random.key(0)
B, D, C = 8, 3, 4
MODEL, TX = linear(D, C), optax.sgd(0.5)


def small(**kwargs):
  sizes = {'num_examples': B, 'num_classes': C, 'steps_per_epoch': 4}
  return divide_mix(MODEL, TX, **sizes, **{'warmup': 1, **kwargs})


# --- the step -----------------------------------------------------------------


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sharp(p):
  return p**2 / (p**2).sum(-1, keepdims=True)


def batch_of(rng, rounds, *, step, clean):
  """A state, a batch whose last row is not there, and [views, rows, d]."""
  params = {'weights': (2, D, C), 'bias': (2, C)}
  params = {k: np.float32(rng.normal(size=s)) for k, s in params.items()}
  views = rng.normal(size=(2, B, D)).astype(np.float32)
  labels = rng.integers(0, C, B, np.uint8)
  weight = np.ones(B, np.float32)
  weight[-1], labels[-1], views[:, -1] = 0, 255, np.nan
  batch = {
    'x': views[0],
    'x_strong': views[1],
    'labels': labels,
    'weight': weight,
    'index': np.arange(B),
  }
  table, none = Table(np.float32(clean)[None]), np.zeros(2, bool)
  extra = Divided(table, (), np.int32(rounds), none)
  return State(np.int32(step), params, {}, TX.init(()), extra), batch


@jax.jit
def stepped(state, batch, penalty, lam):
  method = small(confidence_penalty=penalty, lam=lam, ramp=2)
  state, metrics = method.step(state, batch, KEY)
  return state.params, metrics, method.refit.collect(state, batch, KEY)


def test_a_step_learns_refined_labels_and_guesses():
  """Of 8 rows in 8 shards nobody has a partner but himself."""
  rng = np.random.default_rng(0)
  clean = rng.random((B, 2))
  clean[0], clean[1], clean[-1] = 0.9, 0.1, np.nan
  state, batch = batch_of(rng, 1, step=6, clean=clean)
  params, metrics, seen = stepped(state, batch, 3.0, 10.0)
  views = np.stack([batch['x'], batch['x_strong']])[:, None, :-1]
  w, b = state.params['weights'], state.params['bias'][:, None]
  p = softmax(views @ w + b)  # [views, 2, rows, c]
  labels, clean = np.eye(C)[batch['labels'][:-1]], clean[:-1].T
  trust = clean[..., None]
  refined = sharp(trust * labels + (1 - trust) * p.mean(0))
  labeled = clean > 0.5
  assert labeled.any(1).all()
  assert not labeled.all(1).any()
  t = np.where(labeled[..., None], refined, sharp(p.mean((0, 1))))
  ce = -(t * np.log(p)).sum(-1).mean(0)
  error = ((p - t) ** 2).mean((0, 3))
  mean = p.mean((0, 2))
  expected = {
    'labeled': sum(ce[k][labeled[k]].mean() for k in (0, 1)),
    # Half an epoch after the warm-up, of two that it rises.
    'guessed': 2.5 * sum(error[k][~labeled[k]].mean() for k in (0, 1)),
    'prior': -np.log(mean * C).mean(1).sum(),
    'clean': labeled.mean(),
    'collapsed': 0,
  }
  expected['loss'] = sum(expected[k] for k in ('labeled', 'guessed', 'prior'))
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  assert np.all(np.any(params['weights'] != w, axis=(1, 2)))
  # What the next division is of: the losses of x, without the other view.
  z = np.log(
    softmax(views[0] @ np.asarray(params['weights']) + params['bias'][:, None])
  )
  found = np.asarray(seen.losses)[:-1].T
  np.testing.assert_allclose(found, -(z * labels).sum(-1), rtol=1e-4)
  np.testing.assert_array_equal(seen.there, batch['weight'] > 0)
  # Without labeled examples, or without others, that term is 0.
  for some, gone in ((0, 'labeled'), (1, 'guessed')):
    table = Table(np.full((1, B, 2), some, np.float32))
    state = state._replace(extra=state.extra._replace(clean=table))
    _, metrics, _ = stepped(state, batch, 3.0, 10.0)
    assert metrics['clean'] == some
    assert metrics[gone] == 0
    assert np.isfinite(metrics['loss'])


def test_the_warm_up_is_cross_entropy():
  """However long it takes: until the first division; by the same program."""
  rng = np.random.default_rng(1)
  state, batch = batch_of(rng, 0, step=99, clean=np.ones((B, 2)))
  w, b = state.params['weights'], state.params['bias'][:, None]
  views = np.stack([batch['x'], batch['x_strong']])[:, None, :-1]
  labels = np.eye(C)[batch['labels'][:-1]]
  p = softmax(views @ w + b)
  slope = np.einsum('vord,vkrc->kdc', views, p - labels) / (2 * (B - 1))
  params, metrics, _ = stepped(state, batch, 0.0, 10.0)
  np.testing.assert_allclose(params['weights'], w - 0.5 * slope, rtol=1e-4)
  loss = -(labels * np.log(p)).sum(-1).mean((0, 2)).sum()
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  assert (metrics['guessed'], metrics['prior']) == (0, 0)
  metrics = stepped(state, batch, 2.0, 10.0)[1]
  loss += 2 * (p * np.log(p)).sum(-1).mean((0, 2)).sum()
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  batch['labels'][0] = 255
  assert np.isnan(stepped(state, batch, 0.0, 10.0)[1]['loss'])


def test_examples_are_mixed_with_those_that_are_there():
  """Each stays most of itself; inputs and targets have the same partner."""
  b, runs, index = 40, 20, np.arange(40)
  there = index % 5 > 0
  x = np.where(there, index, np.nan)[:, None].astype(np.float32)
  own = np.eye(b, dtype=np.float32)  # so that a target says whose it is

  ratios = np.linspace(0.5, 1, runs, dtype=np.float32)  # 1 in the warm-up

  @jax.jit
  @jax.vmap
  def mixed(key, ratio):
    return mixed_views(key, ratio, index, [x, -x], own, there)

  keys = jax.random.split(KEY, runs)
  (first, second), whose = jax.device_get(mixed(keys, ratios))
  whose = whose[:, there][..., there]  # [runs, rows, views, rows]
  for view, inputs in ((0, first), (1, -second)):
    found = whose[:, :, view]
    np.testing.assert_allclose(
      inputs[:, there, 0], found @ x[there, 0], rtol=1e-4
    )
    ratio = ratios[:-1, None, None]
    partner = (found[:-1] - ratio * np.eye(32)) / (1 - ratio)
    np.testing.assert_allclose(found[-1], np.eye(32))
    np.testing.assert_allclose(partner, np.round(partner), atol=1e-3)
    for axis in (1, 2):  # each is the partner of one
      np.testing.assert_allclose(partner.sum(axis), 1, rtol=1e-3)
    block = np.arange(32) // 4
    apart = block[:, None] != block
    np.testing.assert_allclose(partner[:, apart], 0, atol=1e-3)
  assert np.any(whose[:, :, 0] != whose[:, :, 1])


# --- the division -------------------------------------------------------------


N_DIVIDED, THERE = 60, np.arange(60) < 58


@jax.jit
def divided(losses, threshold):
  """After each of some divisions, by losses [cases, times, n, 2]."""
  method = divide_mix(
    MODEL,
    TX,
    num_examples=N_DIVIDED,
    num_classes=C,
    steps_per_epoch=1,
    threshold=threshold,
    averaged=3,
  )

  def update(state, values):
    seen = _Seen(pack_rows(values), pack_rows(THERE))
    state = method.refit.update(state, seen, KEY)
    return state, state.extra

  start = State(0, {}, {}, (), method.init(KEY).extra)
  extra = jax.vmap(lambda v: jax.lax.scan(update, start, v)[1])(losses)
  return extra.clean.rows[:, :, 0], extra.past.rows[:, :, 0], extra


def test_each_network_is_told_by_the_other():
  """By the losses of the last epochs, each from 0 to 1."""
  rng = np.random.default_rng(0)
  wrong = rng.random((N_DIVIDED, 2)) < (0.4, 0.3)
  values = rng.gamma(2, 0.1, (4, N_DIVIDED, 2)) + 3 * wrong
  values = np.float32(values * [[[1]], [[9]], [[1]], [[1]]])  # no matter
  values[:, ~THERE] = np.nan
  endless = values.copy()
  endless[:, 0], wrong[0] = np.inf, True
  flat, nan = np.full_like(values, 0.7), np.full_like(values, np.nan)
  half = np.stack([values[..., 0], flat[..., 1]], axis=-1)
  stacked = np.stack([endless, flat, half, nan])
  clean, past, extra = jax.device_get(divided(stacked, 0.5))
  right = ~wrong[:, ::-1] & THERE[:, None]
  for found in clean[0]:
    np.testing.assert_array_equal(found > 0.5, right)
  np.testing.assert_array_equal(clean[1], 1)  # train on all
  np.testing.assert_array_equal(clean[2, :, :, 0], 1)
  own = right[1:, 1] == (clean[2, :, 1:, 1] > 0.5)
  assert own.all()
  np.testing.assert_array_equal(clean[3], 1)
  collapsed = [[False] * 2, [True] * 2, [True, False], [True] * 2]
  np.testing.assert_array_equal(extra.collapsed[:, -1], collapsed)
  np.testing.assert_array_equal(extra.rounds[0], [1, 2, 3, 4])
  # Nobody is above the threshold: everybody is labeled.
  all_clean, _, extra = divided(stacked, 1.0)
  np.testing.assert_array_equal(all_clean, 1)
  np.testing.assert_array_equal(extra.collapsed, True)
  # The memory has the last three.
  known = endless[:, THERE][:, 1:]
  low, high = known.min(1, keepdims=True), known.max(1, keepdims=True)
  scaled = (known - low) / (high - low)
  past = past[0][:, THERE][:, 1:].swapaxes(1, 2)
  np.testing.assert_allclose(past[-1], scaled[1:], atol=1e-5)
  np.testing.assert_array_equal(past[0, :2], 0)
  np.testing.assert_allclose(past[0, 2], scaled[0], atol=1e-5)


def test_divisions_begin_after_the_warm_up():
  when = small(warmup=3).refit.when
  assert [e for e in range(6) if when(e)] == [3, 4, 5]
  assert small(warmup=0).refit.when(0)


@pytest.mark.parametrize(
  'change',
  [
    {'steps_per_epoch': 0},
    {'warmup': -1},
    {'lam': -1.0},
    {'ramp': -1},
    {'temperature': 0.0},
    {'alpha': 0.0},
    {'threshold': 1.5},
    {'averaged': 0},
    {'confidence_penalty': -1.0},
  ],
)
def test_numbers_are_checked(change):
  sizes = {'num_examples': B, 'num_classes': C, 'steps_per_epoch': 4}
  with pytest.raises(ValueError, match=next(iter(change))):
    divide_mix(MODEL, TX, **{**sizes, **change})


def test_batches_are_looked_at():
  method = small()
  state, batch = batch_of(
    np.random.default_rng(0), 1, step=0, clean=np.ones((B, 2))
  )
  for change, error, match in (
    ({'x': np.ones((B, D), np.uint8)}, TypeError, 'floating-point inputs'),
    ({'labels': batch['labels'][:, None]}, ValueError, 'labels'),
    ({'x_strong': np.ones((B, D + 1), np.float32)}, Exception, 'shape'),
  ):
    with pytest.raises(error, match=match):
      jax.eval_shape(method.step, state, {**batch, **change}, KEY)
  del batch['index']
  with pytest.raises(ValueError, match="lacks 'index'"):
    jax.eval_shape(method.step, state, batch, KEY)
  with pytest.raises(TypeError, match='model must be'):
    divide_mix('mlp', TX, num_examples=B, num_classes=C, steps_per_epoch=1)


# --- digits -------------------------------------------------------------------


def network_of(key):
  """The network of the fixture, from a start of its own."""
  params, stats = mlp(64, 256, 10).init(key)
  flip = lambda a: a * jax.random.rademacher(key, a.shape, a.dtype)
  return jax.tree.map(flip, params), stats


@pytest.mark.slow
def test_wrong_labels_are_told_and_do_not_harm():
  """40% symmetric noise; without divisions it is cross-entropy.

  Seen: two networks by cross-entropy 85, by DivideMix 96.
  """
  digits, noisy = noisy_digits(np.random.default_rng(0))
  x, truth = digits.train.x, digits.train.labels
  arrays = {'x': x.reshape(len(x), -1), 'labels': noisy}
  order = batches(arrays, epochs=25, batch_size=100)
  epochs = {k: a.reshape(25, 12, *a.shape[1:]) for k, a in order.items()}
  method = divide_mix(
    Model(network_of, mlp(64, 256, 10).apply),
    optax.sgd(0.2, momentum=0.9),
    num_examples=len(x),
    num_classes=10,
    steps_per_epoch=12,
    warmup=6,
    ramp=6,
  )
  every = {**arrays, 'weight': np.ones(len(x), np.float32)}

  def step(state, batch):
    key = jax.random.fold_in(jax.random.key(1), state.step)
    return method.step(state, batch, key)

  @jax.jit
  def trained(first, every, epochs):
    def epoch(state, batches):
      rows = method.refit.collect(state, every, KEY)
      tables = jax.tree.map(pack_rows, rows)
      new = method.refit.update(state, tables, KEY)
      started = state.step >= first * 12
      return jax.lax.scan(step, select(started, new, state), batches)

    return jax.lax.scan(epoch, method.init(jax.random.key(0)), epochs)

  seen = {}
  for name, first in (('ce', 99), ('divide_mix', 6)):
    state, metrics = jax.device_get(trained(first, every, epochs))
    seen[name] = accuracy(
      method, state, digits.test.x.reshape(-1, 64), digits.test.labels
    )
  right, clean = noisy == truth, unpack_rows(state.extra.clean, len(x))
  for k in (0, 1):
    own = clean[:, k]
    assert right[own > 0.5].mean() > 0.97, 'few wrong ones are trusted'
    assert (own > 0.5)[right].mean() > 0.9, 'most right ones are'
  assert seen['divide_mix'] > 0.94
  assert seen['divide_mix'] > seen['ce'] + 0.07
  share = metrics['clean'].mean(1)
  assert np.all(share[:6] == 1)
  np.testing.assert_allclose(share[12:], right.mean(), atol=0.05)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return divide_mix(
      network(),
      optimizer(),
      num_examples=N,
      num_classes=CLASSES,
      steps_per_epoch=1,
      warmup=0,
      ramp=4,
      averaged=2,
      confidence_penalty=0.1,
      shards=SHARDS,
    )
