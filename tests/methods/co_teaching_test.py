"""Co-teaching, Co-teaching+, Decoupling: steps against numpy, who is kept."""

import inspect

from contract import Contract, network, optimizer
from fixture_methods import noisy_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, select
from jnl.base import State
from jnl.methods import (
  co_teaching,
  co_teaching_plus,
  decoupling,
  known_settings,
  published,
)
from jnl.methods._co_teaching import how_many
from jnl.nets import MLP, from_linen
from jnl.steps import linear, supervised

KEY = jax.random.key(0)
B, D, C, RATE = 20, 3, 3, 0.5
ALL = (co_teaching, co_teaching_plus, decoupling)


def small(make, **kwargs):
  """Two steps make an epoch; R is 0, .25, then .5; the third epoch starts."""
  own = {
    co_teaching: {'rate': RATE, 'ramp': 3},
    co_teaching_plus: {'rate': RATE, 'ramp': 3, 'warmup': 2},
    decoupling: {'warmup': 2},
  }[make]
  tx = optax.sgd(0.5)
  return make(linear(D, C), tx, **{'steps_per_epoch': 2, **own, **kwargs})


def batch_of(rng):
  """The last two rows have no weight and hold garbage."""
  batch = {
    'x': rng.normal(size=(B, D)).astype(np.float32),
    'labels': rng.integers(0, C, B, np.uint8),
    'index': np.arange(B),
    'weight': rng.choice(np.float32([0.5, 1, 2]), B),
  }
  batch['x'][-2:], batch['labels'][-2:] = np.nan, 255
  batch['weight'][-2:] = 0
  return batch


@jax.jit
def steps(params, batch, step):
  """A step of each method, from the same parameters."""
  found = []
  for make in ALL:
    state = State(step, params, {}, optax.sgd(0.5).init(()))
    state, metrics = small(make).step(state, batch, KEY)
    found.append((state.params['weights'], metrics))
  return found


def log_softmax(z):
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


class Expected:
  """The same by numpy, of the rows with a weight."""

  def __init__(self, params, batch):
    n = B - 2
    self.x, self.weight = batch['x'][:n], batch['weight'][:n].astype(float)
    self.eye, self.params = np.eye(C)[batch['labels'][:n]], params
    z = self.x @ params['weights'].astype(float) + params['bias'][:, None]
    self.log = log_softmax(z)
    self.ce = -(self.log * self.eye).sum(-1)
    self.differ = z[0].argmax(1) != z[1].argmax(1)

  def small(self, among, forget):
    """Which rows each learns from: the small losses of the other."""
    rows = np.flatnonzero(among)
    k = max(int((1 - forget) * len(rows)), 1)
    order = [rows[np.argsort(ce[rows], kind='stable')[:k]] for ce in self.ce]
    masks = np.zeros(self.ce.shape, bool)
    masks[0, order[1]], masks[1, order[0]] = True, True
    return masks

  def check(self, found, masks, scale=1.0):
    """The loss, who is kept, and the weights after a step of sgd(.5)."""
    weights, metrics = found
    own = masks * self.weight
    own *= scale / np.maximum(own.sum(1, keepdims=True), 1e-9)
    error = (np.exp(self.log) - self.eye) * own[..., None]
    new = self.params['weights'] - 0.5 * np.einsum('bd,mbc->mdc', self.x, error)
    np.testing.assert_allclose(weights, new, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
      [metrics[name] for name in ('loss', 'kept', 'agree')],
      [(own * self.ce).sum(), masks.mean(), 1 - self.differ.mean()],
      rtol=1e-5,
    )


def drawn(seed=0):
  rng = np.random.default_rng(seed)
  one = {'weights': rng.normal(size=(D, C)), 'bias': rng.normal(size=C)}
  params = jax.tree.map(
    lambda a: np.float32([a, a + rng.normal(size=a.shape)]), one
  )
  return params, batch_of(rng)


@pytest.mark.parametrize(('step', 'forget'), [(0, 0), (3, 0.25), (4, 0.5)])
def test_a_step_is_that_of_the_paper(step, forget):
  """Each learns from what is easy to the other, by the weights of examples."""
  params, batch = drawn()
  expected, warm = Expected(params, batch), step < 4
  assert 4 < expected.differ.sum() < B - 6
  every = np.ones(B - 2, bool)
  differ = every if warm else expected.differ
  found = jax.device_get(steps(params, batch, np.int32(step)))
  expected.check(found[0], expected.small(every, forget))
  expected.check(found[1], expected.small(differ, forget))
  expected.check(found[2], np.stack([differ, differ]))
  assert found[1][1]['fallback'] == 0


def test_few_disagreements_move_little_and_one_is_enough_to_learn_from():
  """Of one in 18 rows Co-teaching+ takes it, Decoupling as of a tenth."""
  params, batch = drawn()
  params = jax.tree.map(lambda a: np.stack([a[0], a[0]]), params)
  batch['weight'][:-2] = 1
  row = 7
  batch['x'][:, 0] = np.arange(B) == row  # what the second network sees more of
  z = batch['x'][row] @ params['weights'][0] + params['bias'][0]
  params['weights'][1, 0, z.argmin()] += 2 * np.ptp(z)
  expected = Expected(params, batch)
  one = np.arange(B - 2) == row
  np.testing.assert_array_equal(expected.differ, one)
  found = jax.device_get(steps(params, batch, np.int32(4)))
  expected.check(found[1], np.stack([one, one]))
  expected.check(found[2], np.stack([one, one]), 10 / 18)


def test_networks_that_agree_co_teach_or_rest():
  params, batch = drawn()
  params = jax.tree.map(lambda a: np.stack([a[0], a[0]]), params)
  expected, every = Expected(params, batch), np.ones(B - 2, bool)
  for step in 3, 4:
    found = jax.device_get(steps(params, batch, np.int32(step)))
    forget = 0.25 if step == 3 else 0.5
    expected.check(found[1], expected.small(every, forget))
    assert found[1][1]['fallback'] == (step == 4)
  expected.check(found[2], np.zeros((2, B - 2), bool))
  np.testing.assert_array_equal(found[2][0], params['weights'])


def test_nobody_there_and_labels_that_are_none():
  params, batch = drawn()
  nobody = {**batch, 'weight': np.zeros(B, np.float32)}
  for weights, metrics in jax.device_get(steps(params, nobody, np.int32(4))):
    np.testing.assert_array_equal(weights, params['weights'])
    assert metrics['loss'] == metrics['kept'] == 0
  batch['labels'][Expected(params, batch).differ.argmax()] = 255
  for _, metrics in jax.device_get(steps(params, batch, np.int32(4))):
    assert np.isnan(metrics['loss'])


def test_a_share_leaves_a_whole_number_and_at_least_one():
  """As with whole numbers: by rounding alone, .6 of 100 would leave 39."""
  percent = np.arange(101)

  @jax.jit
  def kept(rates):
    sizes = [1, 20, 100, 128]
    return [
      jax.vmap(lambda r, n=n: how_many(jnp.ones(n, bool), r))(rates)
      for n in sizes
    ], sizes

  found, sizes = jax.device_get(kept(np.float32(percent / 100)))
  for n, k in zip(sizes, found, strict=True):
    np.testing.assert_array_equal(k, np.maximum((100 - percent) * n // 100, 1))


def test_both_networks_start_differently_and_predict_their_mean():
  model = from_linen(MLP(C, (4,)), (D,))
  method = co_teaching(model, optax.sgd(0.1), steps_per_epoch=1)
  x = np.ones((2, D), np.float32)
  both = jax.jit(lambda key: method.predict(method.init(key), x))(KEY)
  assert np.all(both.aux.logits[0] != both.aux.logits[1])
  np.testing.assert_allclose(both.logits, both.aux.logits.mean(0), rtol=1e-6)


@pytest.mark.parametrize('make', ALL)
def test_bad_input(make):
  takes = inspect.signature(make).parameters
  for name, value in (
    ('steps_per_epoch', 0),
    ('rate', 1.1),
    ('ramp', -1),
    ('exponent', 0),
    ('warmup', -1),
  ):
    if name in takes:
      with pytest.raises(ValueError, match=name):
        small(make, **{name: value})
  with pytest.raises(TypeError, match='model'):
    make('cnn', optax.sgd(0.1), steps_per_epoch=1)
  batch = batch_of(np.random.default_rng(0))
  method = small(make)
  for name in ('labels', 'weight'):
    wrong = {**batch, name: batch[name][:, None]}
    with pytest.raises(ValueError, match=r'\(20, 1\)'):
      jax.eval_shape(lambda b: method.step(method.init(KEY), b, KEY), wrong)
    wrong.pop(name)
    with pytest.raises(ValueError, match=name):
      jax.eval_shape(lambda b: method.step(method.init(KEY), b, KEY), wrong)


def test_published_settings_are_arguments():
  for make in ALL[:2]:
    for settings in known_settings(make.__name__).values():
      small(make, **settings.arguments)
  plus = published('co_teaching_plus', 'cifar100', 'pair_flip', 0.45)
  assert plus.arguments == {'rate': 0.45, 'ramp': 10, 'warmup': 5}
  assert (plus.adam, plus.falls_from, plus.epochs) == (True, 80, 200)
  assert (
    published('co_teaching', 'cifar100', 'symmetric', 0.5).falls_from == 100
  )


# --- the mechanism ------------------------------------------------------------


@pytest.mark.slow
def test_what_is_kept_is_clean_and_is_not_learned_by_heart():
  """Digits, 40% wrong labels. Seen: CE 82, these 95 and 93; kept 95% clean."""
  rng = np.random.default_rng(0)
  digits, noisy = noisy_digits(rng)
  x, clean, test = digits.train.x, digits.train.labels, digits.test
  order = np.concatenate([rng.permutation(len(x)) for _ in range(40)])
  net, tx = from_linen(MLP(10, (128,)), (64,)), optax.sgd(0.1, momentum=0.9)
  own = {'steps_per_epoch': len(x) // 100}
  methods = (
    supervised(losses.ce, net, tx),
    co_teaching(net, tx, rate=0.4, **own),
    decoupling(net, tx, warmup=5, **own),
  )

  @jax.jit
  def trained(x, noisy, order):
    def step(states, index):
      batch = {'x': x[index], 'labels': noisy[index], 'index': index}
      batch['weight'] = jnp.ones(len(index))
      found = [
        m.step(s, batch, KEY) for m, s in zip(methods, states, strict=True)
      ]
      return [s for s, _ in found], [m.get('kept') for _, m in found]

    states = [method.init(KEY) for method in methods]
    states, kept = jax.lax.scan(step, states, order)
    found = [
      m.predict(s, jnp.concatenate([x, test.x]))
      for m, s in zip(methods, states, strict=True)
    ]
    right = [
      jnp.mean(out.logits[len(x) :].argmax(1) == test.labels) for out in found
    ]
    ce = [losses.ce(z, noisy) for z in found[1].aux.logits[:, : len(x)]]
    small = select.co_teaching(*ce, 0.6 * len(x))[0]
    return right, kept, jnp.sum(small & (noisy == clean)) / jnp.sum(small)

  found = trained(x, noisy, order.reshape(-1, 100))
  (ce, taught, apart), kept, pure = jax.device_get(found)
  assert pure > 0.9 > 0.65 > np.mean(noisy == clean)
  assert taught > 0.92
  assert min(taught - 0.1, apart - 0.05) > ce
  np.testing.assert_allclose(kept[1][120:], 0.6, rtol=1e-5)
  assert np.mean(kept[2][120:]) < 0.2  # where the two differ


class TestContract(Contract):
  pytestmark = pytest.mark.slow

  def make(self):
    return co_teaching(
      network(), optimizer(), steps_per_epoch=1, rate=0.4, ramp=2
    )


class TestPlus(Contract):
  pytestmark = pytest.mark.slow

  def make(self):
    return co_teaching_plus(
      network(), optimizer(), steps_per_epoch=1, rate=0.4, ramp=2, warmup=1
    )


class TestDecoupling(Contract):
  pytestmark = pytest.mark.slow

  def make(self):
    return decoupling(network(), optimizer(), steps_per_epoch=1, warmup=1)
