"""FST: looking ahead, deep and wide, written once more in NumPy."""

from contract import Contract, network, optimizer
import jax
import numpy as np
import optax
import pytest

from jnl import pseudo
from jnl.base import PAD
from jnl.methods import fst
from jnl.steps import linear
from jnl.teacher import Averaged, part_of

B, D, C, K = 16, 3, 4, 2
KEY = jax.random.key(0)
MODEL, RATE, MOMENTUM = linear(D, C), 0.5, 0.9
TX = optax.sgd(RATE, momentum=MOMENTUM)
LABELED = np.arange(B) % 3 == 0
PERCENT, LAM, DECAY, STEP = 60, 2.0, 0.5, 5


def made(**options):
  options.setdefault('policy', pseudo.low_entropy(PERCENT))
  return fst(
    *(MODEL, TX),
    **{'decay': DECAY, 'look_ahead': K, 'weight': LAM, **options},
  )


# What the official codes do instead, restore=False, is in the golden files.
WAYS = {
  'plain': made(look_ahead=0),
  'deep': made(),
  'wide': made(mode='wide', last=False),
}


@jax.jit
def stepped(states, batch):
  return {k: method.step(states[k], batch, KEY) for k, method in WAYS.items()}


def a_batch():
  """One row of each kind is not there."""
  rng = np.random.default_rng(0)
  x, strong = rng.normal(size=(2, B, D)).astype(np.float32)
  weight = rng.choice(np.float32([0.5, 1, 2]), B)
  labels = np.where(LABELED, rng.integers(0, C, B), 255).astype(np.uint8)
  index = rng.permutation(B).astype(np.int32)
  for row in (3, 7):
    x[row], strong[row], weight[row], labels[row] = np.nan, np.inf, 0, 200
    index[row] = PAD
  return {
    'x': x,
    'x_strong': strong,
    'labels': labels,
    'labeled': LABELED,
    'truth': rng.integers(0, C, B, np.int32),
    'index': index,
    'weight': weight,
  }


def a_state():
  """Student, teacher and momentum, each its own."""
  rng = np.random.default_rng(1)
  one = lambda: {
    'weights': rng.normal(size=(D, C)).astype(np.float32),
    'bias': rng.normal(size=C).astype(np.float32),
  }
  state = WAYS['plain'].init(KEY)
  params, average, trace = one(), one(), one()
  opt = jax.tree.map(lambda _, new: new, state.opt[0].trace, trace)
  return state._replace(
    step=np.int32(STEP),
    params=params,
    opt=(state.opt[0]._replace(trace=opt), *state.opt[1:]),
    extra=Averaged(average, ()),
  )


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def moved(average, params):
  return {k: DECAY * average[k] + (1 - DECAY) * params[k] for k in params}


class Walk:
  """The optimizer's memory, and its steps on a batch of NumPy arrays."""

  def __init__(self, state, batch):
    there = batch['weight'] > 0
    self.batch, self.trace = batch, dict(state.opt[0].trace)
    shown = np.where(there[:, None], batch['x'], 0)
    strong = np.where(there[:, None], batch['x_strong'], 0)
    self.x, self.own = shown, np.where(LABELED[:, None], shown, strong)

  def step(self, params, average, weight):
    on, off = weight * LABELED, weight * ~LABELED
    said = softmax(self.x @ average['weights'] + average['bias'])
    entropy = -(said * np.log(said + 1e-10)).sum(1)
    limit = np.percentile(entropy[off > 0], PERCENT)
    used = off * (entropy < limit)
    own = np.where(on > 0, self.batch['labels'], said.argmax(1))
    p = softmax(self.own @ params['weights'] + params['bias'])
    ce = -np.log(p[np.arange(B), own])
    right = said.argmax(1) == self.batch['truth']
    self.metrics = {
      'supervised': on @ ce / on.sum(),
      'unsupervised': used @ ce / used.sum(),
      'used': used.sum() / off.sum(),
      'correct': used @ right / used.sum(),
      'skipped': 0.0,
    }
    loss = self.metrics['supervised'] + LAM * self.metrics['unsupervised']
    self.metrics['loss'] = loss
    share = on / on.sum() + LAM * used / used.sum()
    slope = share[:, None] * (p - np.eye(C)[own])
    gradient = {'weights': self.own.T @ slope, 'bias': slope.sum(0)}
    self.trace = {k: gradient[k] + MOMENTUM * self.trace[k] for k in gradient}
    return {k: params[k] - RATE * self.trace[k] for k in params}


def expected(name, state, batch):
  """The student, the teacher, the momentum and the metrics after a step."""
  walk, weight = Walk(state, batch), batch['weight']
  start, average = state.params, state.extra.params
  params, trace, ends = start, dict(walk.trace), []
  for k in range(K if name != 'plain' else 0):
    if name == 'wide':
      walk.trace = dict(trace)
      part = np.asarray(part_of(batch, KEY, k, K)['weight'])
      ends.append(walk.step(start, average, part))
    else:
      average = moved(average, params)
      params = walk.step(params, average, weight)
  if ends:
    params = {k: np.mean([end[k] for end in ends], axis=0) for k in start}
  if name != 'plain':
    average, walk.trace = moved(average, params), dict(trace)
  params = walk.step(start, average, weight)
  if name != 'wide':
    average = moved(average, params)
  return params, average, walk.trace, walk.metrics


@pytest.fixture(scope='module')
def ran():
  state, batch = a_state(), a_batch()
  return (
    state,
    batch,
    jax.device_get(stepped(dict.fromkeys(WAYS, state), batch)),
  )


@pytest.mark.parametrize('name', WAYS)
def test_a_step_is_what_the_equations_say(ran, name):
  state, batch, found = ran
  new, metrics = found[name]
  params, average, trace, numbers = expected(name, state, batch)
  assert new.step == STEP + 1
  assert 0 < numbers['used'] < 1
  assert metrics.keys() == numbers.keys()
  for label, value, wanted in (
    ('student', new.params, params),
    ('teacher', new.extra.params, average),
    ('momentum', new.opt[0].trace, trace),
    ('metrics', metrics, numbers),
  ):
    for k, own in wanted.items():
      np.testing.assert_allclose(
        value[k], own, rtol=2e-4, atol=2e-5, err_msg=f'{label} {k}'
      )


def test_it_is_a_single_step_taught_by_what_is_ahead(ran):
  """Which is what is left where the average does not follow at last."""
  state, batch, found = ran
  ahead = found['wide'][0]
  taught = state._replace(extra=Averaged(ahead.extra.params, ()))
  single = stepped(dict.fromkeys(WAYS, taught), batch)['plain'][0]
  for k, values in ahead.params.items():
    np.testing.assert_allclose(single.params[k], values, rtol=1e-5)
    assert np.abs(values - found['plain'][0].params[k]).max() > 1e-3


def test_nobody_counts_where_all_entropies_are_one(ran):
  """Of which none is below their percentile: the official loss is infinite."""
  state, batch, _ = ran
  zeros = jax.tree.map(np.zeros_like, state.extra.params)
  state = state._replace(extra=Averaged(zeros, ()))
  new, metrics = jax.device_get(
    stepped(dict.fromkeys(WAYS, state), batch)['plain']
  )
  assert metrics['used'] == metrics['unsupervised'] == metrics['skipped'] == 0
  assert metrics['loss'] == metrics['supervised'] > 0
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(new))


def test_a_step_whose_loss_is_not_finite_is_skipped(ran):
  """A guess of no number does not count; a label that is none is a mistake."""
  state, batch, _ = ran
  states = dict.fromkeys(WAYS, state)
  x, labels = batch['x'].copy(), batch['labels'].copy()
  x[1], labels[0] = np.inf, 77
  unsure = jax.device_get(stepped(states, {**batch, 'x': x}))
  wrong = jax.device_get(stepped(states, {**batch, 'labels': labels}))
  for name in WAYS:
    assert unsure[name][1]['skipped'] == 0
    new, metrics = wrong[name]
    assert metrics['skipped'] == 1
    for k, values in state.params.items():
      np.testing.assert_array_equal(new.params[k], values)
      assert np.isfinite(new.extra.params[k]).all()


def test_numbers_and_names_are_checked():
  for change in (
    {'weight': -1.0},
    {'decay': 1.1},
    {'look_ahead': -1},
    {'look_ahead': 1.5},
    {'mode': 'wider'},
  ):
    with pytest.raises(ValueError, match=next(iter(change))):
      made(**change)
  with pytest.raises(TypeError, match='model must be'):
    fst('mlp', TX)


def test_a_policy_may_remember():
  rule = pseudo.freematch(C, momentum=0.5)
  method = made(policy=rule, look_ahead=0)
  batch = a_batch()
  state = jax.eval_shape(method.init, KEY)
  new, metrics = jax.eval_shape(method.step, state, batch, KEY)
  assert jax.tree.map(lambda a: a.shape, new) == jax.tree.map(
    lambda a: a.shape, state
  )
  assert 'used' in metrics


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return fst(network(), optimizer(), decay=0.9, look_ahead=2)
