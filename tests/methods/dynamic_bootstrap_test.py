"""M-DYR-H: its loss, its mixture, and that this finds the wrong labels."""

from contract import Contract, network, optimizer
from fixture_methods import batches, mlp, noisy_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jnl import losses
from jnl.base import State, Table, pack_rows, shuffle_within
from jnl.methods import dynamic_bootstrap
from jnl.methods._dynamic_bootstrap import MIX_TAG
from jnl.select import BetaMixture, beta_mixture, clean_probability
from jnl.steps import linear, mixup_ratio

KEY = jax.random.key(0)
B, D, C = 12, 3, 4


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return dynamic_bootstrap(network(), optimizer(), alpha=1.0, warmup=0)


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def test_a_step_before_and_after_the_first_mixture():
  """A row of weight 0 may hold anything, and is nobody's partner."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, D)).astype(np.float32)
  w = 2 * rng.normal(size=(D, C)).astype(np.float32)
  there, labels = np.arange(B) != 4, rng.integers(0, C, B, np.uint8)
  batch = {'x': x.copy(), 'labels': labels.copy(), 'index': np.arange(B)}
  batch['weight'] = there.astype(np.float32)
  batch['x'][4], batch['labels'][4] = np.nan, 255
  method = dynamic_bootstrap(linear(D, C), optax.sgd(0.5), alpha=2.0, reg=0.7)

  @jax.jit
  def stepped(state, batch):
    keys = jax.random.split(jax.random.fold_in(KEY, MIX_TAG))
    index = batch['index']
    partner = shuffle_within(keys[1], index, index, where=there)
    return method.step(state, batch, KEY), mixup_ratio(keys[0], 2.0), partner

  none = jax.device_get(method.init(KEY)).extra
  some = BetaMixture(
    *np.float32([[2, 5], [6, 3], [0.6, 0.4]]), *np.float32([0.2, 4]), *none[5:]
  )._replace(collapsed=np.array(False))
  params = {'weights': w, 'bias': np.zeros(C, np.float32)}
  for mixture in none, some:
    start = State(np.int32(0), params, {}, optax.sgd(0.5).init(params), mixture)
    (state, metrics), r, j = jax.device_get(stepped(start, batch))
    assert set(j[there]) == {*range(B)} - {4}
    p = softmax(x @ w)
    loss, guess = -np.log(p[np.arange(B), labels]), p.argmax(1)
    scaled = np.clip((loss - 0.2) / 3.8, 1e-3, 1 - 1e-3)
    clean, wrong = (
      share * stats.beta.pdf(scaled, a, b)
      for share, a, b in ((0.6, 2, 6), (0.4, 5, 3))
    )
    noisy = np.clip(wrong / (clean + wrong), 1e-4, 1 - 1e-4)
    noisy = 0 * noisy if mixture is none else noisy
    own = (1 - noisy)[:, None] * np.eye(C)[labels]
    own += noisy[:, None] * np.eye(C)[guess]
    target = (r * own + (1 - r) * own[j])[there]
    mixed = (r * x + (1 - r) * x[j])[there]
    p = softmax(mixed @ w)
    bootstrap = -(target * np.log(p)).sum(1).mean()
    mean = p.mean(0)
    balance = -np.log(C * mean).mean()
    reg = 0 if mixture is none else 0.7
    np.testing.assert_allclose(
      [metrics[k] for k in ('loss', 'bootstrap', 'balance', 'noisy')],
      [bootstrap + reg * balance, bootstrap, balance, noisy[there].mean()],
      rtol=1e-4,
    )
    assert metrics['collapsed'] == (mixture is none)
    slope = -reg / (C * mean)
    slope = p * (slope - (p * slope).sum(1, keepdims=True))
    new = w - 0.5 * mixed.T @ (p - target + slope) / len(mixed)
    np.testing.assert_allclose(
      state.params['weights'], new, rtol=1e-3, atol=1e-5
    )


def test_the_mixture_is_of_the_losses_that_are_there():
  """Padding changes nothing; equal losses collapse, and so does nobody."""
  method = dynamic_bootstrap(linear(D, C), optax.sgd(0.5), warmup=3)
  assert [method.refit.when(epoch) for epoch in (0, 2, 3, 4)] == [0, 0, 1, 1]
  rng = np.random.default_rng(0)
  values = rng.gamma(np.where(rng.random(30) < 0.6, 1, 9)).astype(np.float32)
  padded, there = np.full((4, 8), np.nan, np.float32), np.zeros((4, 8), bool)
  padded.flat[:30], there.flat[:30] = values, True
  start = jax.device_get(method.init(KEY))

  @jax.jit
  def updated(rows, there):
    state = method.refit.update(start, (Table(rows), Table(there)), KEY)
    return state.extra, beta_mixture(values, tol=0.0)

  found, expected = updated(padded, there)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)
  assert not found.collapsed
  assert updated(np.ones_like(padded), there)[0].collapsed
  assert updated(padded, there & False)[0].collapsed


@pytest.mark.parametrize(
  ('name', 'value'), [('warmup', -1), ('alpha', 0.0), ('reg', -0.1)]
)
def test_arguments_are_checked(name, value):
  with pytest.raises(ValueError, match=name):
    dynamic_bootstrap(linear(D, C), optax.sgd(0.5), **{name: value})


def test_what_cannot_be_mixed_is_refused():
  method = dynamic_bootstrap(linear(D, C), optax.sgd(0.5))
  batch = {'x': np.ones((B, D), np.int32), 'labels': np.zeros(B, np.int32)}
  batch |= {'index': np.arange(B), 'weight': np.ones(B, np.float32)}
  with pytest.raises(TypeError, match='floating'):
    jax.eval_shape(lambda: method.step(method.init(KEY), batch, KEY))


@pytest.mark.slow
def test_the_mixture_finds_the_wrong_labels():
  """Digits, 40% symmetric noise."""
  digits, labels = noisy_digits(np.random.default_rng(0))
  clean, x = digits.train.labels, digits.train.x
  order = batches({'x': x, 'labels': labels}, epochs=40, batch_size=100)
  order = jax.tree.map(lambda a: a.reshape(40, 12, *a.shape[1:]), order)
  method = dynamic_bootstrap(mlp(64, 128, 10), optax.sgd(0.05, momentum=0.9))
  every = {'x': x, 'labels': labels, 'weight': np.ones(len(x), np.float32)}

  @jax.jit
  def run(order):
    def step(state, batch):
      return method.step(state, batch, jax.random.fold_in(KEY, state.step))

    def epoch(state, order):
      rows = method.refit.collect(state, every, KEY)
      tables = jax.tree.map(pack_rows, rows)
      refitted = method.refit.update(state, tables, KEY)
      late = state.step >= 15 * 12
      state = jax.tree.map(lambda a, b: jnp.where(late, a, b), refitted, state)
      state, metrics = jax.lax.scan(step, state, order)
      return state, metrics['noisy'].mean()

    state, noisy = jax.lax.scan(epoch, method.init(KEY), order)
    values = losses.ce(method.predict(state, x).logits, labels)
    found = jnp.argmax(method.predict(state, digits.test.x).logits, axis=1)
    return 1 - clean_probability(state.extra, values), found, noisy

  wrong, found, noisy = jax.device_get(run(order))
  right = labels == clean
  ranks = stats.mannwhitneyu(wrong[~right], wrong[right]).statistic
  assert ranks / (right.sum() * (~right).sum()) > 0.95
  assert np.all(noisy[:15] == 0)
  assert abs(noisy[-1] - (~right).mean()) < 0.2
  assert np.mean(found == digits.test.labels) > 0.9
