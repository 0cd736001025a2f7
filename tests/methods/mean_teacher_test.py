"""Mean Teacher: its step by numpy, and that the student has something to learn.

FST's tests build on the batch that is made here.
"""

from contract import Contract, network, optimizer
import jax
import numpy as np
import optax
import pytest

from jnl.methods import mean_teacher
from jnl.ramps import linear_rampup
from jnl.steps import linear
from jnl.teacher import Averaged, student

B, D, C = 8, 3, 4
KEY = jax.random.key(0)
MODEL, RATE, DECAY = linear(D, C), 0.5, 0.75
LABELED = np.arange(B) % 3 == 0
METHOD = mean_teacher(
  *(MODEL, optax.sgd(RATE)),
  decay=DECAY,
  weight=lambda step: 10 * linear_rampup(step, 4),
)
STEP = 1  # of a ramp of 4


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def logits(params, x):
  return x @ params['weights'] + params['bias']


def drawn(rng):
  params = {'weights': rng.normal(size=(D, C)), 'bias': rng.normal(size=C)}
  return jax.tree.map(np.float32, params)


def a_batch():
  """Rows 3 and 7, one of each kind, are not there."""
  rng = np.random.default_rng(0)
  x, other = rng.normal(size=(2, B, D)).astype(np.float32)
  weight = np.float32([1, 2, 1, 0, 1, 1, 3, 0])
  labels = np.where(LABELED, rng.integers(0, C, B), 255).astype(np.uint8)
  labels[3] = 200
  gone = weight[:, None] == 0
  return {
    'x': np.where(gone, np.nan, x),
    'x_strong': np.where(gone | LABELED[:, None], np.inf, other),
    'labels': labels,
    'labeled': LABELED,
    'truth': rng.integers(0, C, B, np.int32),
    'index': np.arange(B, dtype=np.int32),
    'weight': weight,
  }


def a_state(method=METHOD):
  """A student and a teacher that differ."""
  rng = np.random.default_rng(1)
  state = jax.device_get(method.init(KEY))
  params, average = drawn(rng), drawn(rng)
  extra = Averaged(average, state.extra.extra)
  return state._replace(step=np.int32(STEP), params=params, extra=extra)


stepped = jax.jit(METHOD.step)


def views(batch):
  """What there is of a batch: views of student and teacher, and weights."""
  there = batch['weight'] > 0
  x = np.where(there[:, None], batch['x'], 0)
  strong = np.where((there & ~LABELED)[:, None], batch['x_strong'], 0)
  own = np.where(LABELED[:, None], x, strong)
  weight = batch['weight']
  return own, x, weight * LABELED, weight * ~LABELED


def test_a_step_is_what_the_equations_say():
  state, batch = a_state(), a_batch()
  own, x, on, off = views(batch)
  p = softmax(logits(state.params, own))
  taught = softmax(logits(state.extra.params, x))
  labels = np.eye(C)[np.where(on > 0, batch['labels'], 0)]
  right = taught.argmax(1) == batch['truth']
  expected = {
    'supervised': on @ -np.log((p * labels).sum(1)) / on.sum(),
    'unsupervised': off @ ((p - taught) ** 2).mean(1) / off.sum(),
    'correct': off @ right / off.sum(),
    'skipped': 0,
  }
  lam = 10 * STEP / 4
  expected['loss'] = expected['supervised'] + lam * expected['unsupervised']
  new, metrics = jax.device_get(stepped(state, batch, KEY))
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)

  # The teacher is a constant, and follows the student.
  slope = 2 * (p - taught) / C
  slope = p * (slope - (p * slope).sum(1, keepdims=True))
  slope = (lam * off / off.sum())[:, None] * slope
  assert np.abs(own.T @ slope).max() > 0.05, 'the student learns from it'
  slope += (on / on.sum())[:, None] * (p - labels)
  params = {
    'weights': state.params['weights'] - RATE * own.T @ slope,
    'bias': state.params['bias'] - RATE * slope.sum(0),
  }
  for k, value in params.items():
    np.testing.assert_allclose(new.params[k], value, rtol=1e-4, atol=1e-6)
    average = DECAY * state.extra.params[k] + (1 - DECAY) * value
    np.testing.assert_allclose(
      new.extra.params[k], average, rtol=1e-4, atol=1e-6
    )
  assert new.step == STEP + 1
  assert student(new).extra == ()


def test_unlabeled_rows_alone_teach():
  """The known code compares the teacher with itself: it learns nothing."""
  state, batch = a_state(), a_batch()
  batch['labeled'] = np.zeros(B, bool)
  batch['x_strong'] = np.where(np.isfinite(batch['x']), batch['x'], 0)
  new, metrics = jax.device_get(stepped(state, batch, KEY))
  assert metrics['supervised'] == 0 < metrics['unsupervised']
  assert np.abs(new.params['weights'] - state.params['weights']).max() > 0.01
  # Where the student is its teacher and both views are one, nothing is left.
  same = state._replace(extra=Averaged(state.params, ()))
  new, metrics = jax.device_get(stepped(same, batch, KEY))
  assert metrics['loss'] == 0
  np.testing.assert_array_equal(new.params['weights'], state.params['weights'])


def test_labels_of_unlabeled_rows_are_not_looked_at():
  state, batch = a_state(), a_batch()
  first = jax.device_get(stepped(state, batch, KEY))
  labels = np.where(LABELED, batch['labels'], 1).astype(np.uint8)
  found = jax.device_get(stepped(state, {**batch, 'labels': labels}, KEY))
  jax.tree.map(np.testing.assert_array_equal, first, found)


def test_a_step_whose_loss_is_not_finite_is_skipped():
  """What the teacher says is not, or a label is none."""
  state, batch = a_state(), a_batch()
  for name, row, value in (('x', 1, np.inf), ('labels', 0, 77)):
    bad = {**batch, name: batch[name].copy()}
    bad[name][row] = value
    new, metrics = jax.device_get(stepped(state, bad, KEY))
    assert metrics['skipped'] == 1
    assert not np.isfinite(metrics['loss'])
    for k, values in state.params.items():
      np.testing.assert_array_equal(new.params[k], values)
      assert np.isfinite(new.extra.params[k]).all()
    assert new.step == STEP + 1
  batch['weight'] = np.zeros(B, np.float32)  # nobody is there
  new, metrics = jax.device_get(stepped(state, batch, KEY))
  assert metrics['loss'] == metrics['skipped'] == 0


def test_batches_and_numbers_are_looked_at():
  state, batch = a_state(), a_batch()
  for change, error, match in (
    ({'labeled': np.ones(B)}, TypeError, 'labeled must be bool'),
    ({'labeled': LABELED[:, None]}, ValueError, r'labeled must be \[b\]'),
    ({'labels': batch['labels'][:, None]}, ValueError, 'labels must be'),
    ({'truth': batch['truth'][:, None]}, ValueError, r'truth must be \[b\]'),
    ({'x_strong': np.ones((B, D + 1))}, ValueError, 'x and x_strong must'),
  ):
    with pytest.raises(error, match=match):
      jax.eval_shape(METHOD.step, state, {**batch, **change}, KEY)
  for name in ('x', 'x_strong', 'labels', 'labeled', 'weight', 'index'):
    less = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
      jax.eval_shape(METHOD.step, state, less, KEY)
  # Soft labels, and rows with labels in a stream of their own.
  rest = {k: v for k, v in batch.items() if k not in ('labels', 'labeled')}
  streams = {'x_l': batch['x'][:4], 'labels_l': batch['labels'][:4]}
  soft = {**batch, 'labels': np.eye(C, dtype=np.float32)[np.arange(B) % C]}
  for other in ({**rest, **streams}, soft):
    found = jax.eval_shape(METHOD.step, state, other, KEY)
    assert {'loss', 'supervised', 'unsupervised', 'correct'} < set(found[1])
  for change in ({'weight': -1.0}, {'decay': 1.1}):
    with pytest.raises(ValueError, match=next(iter(change))):
      mean_teacher(MODEL, optax.sgd(RATE), **change)
  with pytest.raises(TypeError, match='model must be'):
    mean_teacher('mlp', optax.sgd(RATE))


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return mean_teacher(network(), optimizer(), decay=0.9, weight=5.0)
