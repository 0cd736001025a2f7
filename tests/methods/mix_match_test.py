"""MixMatch: what is guessed, mixed and learned, written once more in NumPy."""

from contract import Contract, network, optimizer
import jax
import numpy as np
import optax
import pytest

from jnl.base import State
from jnl.methods import mix_match
from jnl.methods._mixing import RATIO_TAG, mixed_views
from jnl.steps import linear, mixup_ratio

KEY = jax.random.key(0)
B, D, C = 16, 3, 4
RATE = 0.5
METHOD = mix_match(
  linear(D, C), optax.sgd(RATE), lam=10.0, ramp=4, temperature=0.5, alpha=0.75
)
LABELED = np.arange(B) % 3 == 0
STEP = 1  # of a ramp of 4


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def a_batch():
  """A state and a batch; one row of each kind is not there."""
  rng = np.random.default_rng(0)
  params = {
    'weights': rng.normal(size=(D, C)).astype(np.float32),
    'bias': rng.normal(size=C).astype(np.float32),
  }
  x, other = rng.normal(size=(2, B, D)).astype(np.float32)
  weight = rng.choice(np.float32([0.5, 1, 2]), B)
  labels = rng.integers(0, C, B, np.int32)
  truth = np.where(LABELED, -1, labels)
  for row, wrong in ((0, 255), (4, -1)):
    x[row], other[row], weight[row], labels[row] = np.nan, np.inf, 0, wrong
  state = State(np.int32(STEP), params, {}, optax.sgd(RATE).init(params), ())
  return state, {
    'x': x,
    'x_strong': other,
    'labels': labels,
    'labeled': LABELED,
    'weight': weight,
    'index': rng.permutation(B),
    'truth': truth,
  }


stepped = jax.jit(METHOD.step)


@jax.jit
def drawn(index, there):
  """Whose part is in whom, [b, views, b], and the ratio of a step."""
  ratio = mixup_ratio(jax.random.fold_in(KEY, RATIO_TAG), 0.75, major=True)
  x = np.zeros((B, 1), np.float32)
  own = np.eye(B, dtype=np.float32)
  return mixed_views(KEY, ratio, index, [x, x], own, there)[1], ratio


def test_a_step_is_what_the_equations_say():
  """Who is whose partner is that of `mixed_views`, which DivideMix tests."""
  state, batch = a_batch()
  there = batch['weight'] > 0
  whose, ratio = jax.device_get(drawn(batch['index'], there))
  whose = whose[there][..., there]
  partners = whose - ratio * np.eye(there.sum())[:, None]
  assert 0.5 < ratio < 1
  assert (partners[:, 0] != partners[:, 1]).any()

  views = np.stack([batch['x'], batch['x_strong']], 1)[there]
  labels, labeled = batch['labels'][there], LABELED[there]
  weight, truth = batch['weight'][there], batch['truth'][there]
  w, bias = state.params['weights'], state.params['bias']
  mean = softmax(views @ w + bias).mean(1)
  guess = mean**2 / (mean**2).sum(-1, keepdims=True)
  t = np.where(labeled[:, None], np.eye(C)[labels], guess)
  x = np.einsum('ivj,jvd->ivd', whose, views)
  t = np.einsum('ivj,jc->ivc', whose, t)
  p = softmax(x @ w + bias)
  ce = -(t * np.log(p)).sum(-1).mean(1)
  square = ((p - t) ** 2).mean((1, 2))
  on, off = weight * labeled, weight * ~labeled
  expected = {
    'supervised': (on * ce).sum() / on.sum(),
    'unsupervised': (off * square).sum() / off.sum(),
    'correct': (off * (guess.argmax(-1) == truth)).sum() / off.sum(),
  }
  assert 0 < expected['correct'] < 1
  lam = 10 * STEP / 4
  expected['loss'] = expected['supervised'] + lam * expected['unsupervised']
  new, metrics = stepped(state, batch, KEY)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)

  # Guesses are constants: the gradient is of p alone.
  slope = 2 * (p - t) / C
  slope = p * (slope - (p * slope).sum(-1, keepdims=True))
  slope = slope * (lam * off / off.sum())[:, None, None]
  slope += (p - t) * (on / on.sum())[:, None, None]
  slope = np.einsum('ivd,ivc->dc', x, slope) / 2
  np.testing.assert_allclose(
    new.params['weights'], w - RATE * slope, rtol=1e-4, atol=1e-6
  )


def test_labels_of_unlabeled_rows_are_not_looked_at():
  state, batch = a_batch()
  first = jax.device_get(stepped(state, batch, KEY))
  for hidden in (batch['labels'][::-1], np.int32(-1), np.int32(255)):
    labels = np.where(LABELED, batch['labels'], hidden)
    found = jax.device_get(stepped(state, {**batch, 'labels': labels}, KEY))
    jax.tree.map(np.testing.assert_array_equal, first, found)
  labels = np.where(LABELED, (batch['labels'] + 1) % C, batch['labels'])
  other = stepped(state, {**batch, 'labels': labels}, KEY)[1]
  assert other['loss'] != first[1]['loss']


@pytest.mark.parametrize(
  ('labeled', 'gone'), [(False, 'supervised'), (True, 'unsupervised')]
)
def test_where_all_rows_are_of_one_kind_the_other_term_is_0(labeled, gone):
  state, batch = a_batch()
  batch['labels'] %= C
  batch['labeled'] = np.full(B, labeled)
  new, metrics = stepped(state, batch, KEY)
  other = {'supervised', 'unsupervised'} - {gone}
  assert metrics[gone] == 0 < metrics[other.pop()]
  assert np.isfinite(new.params['weights']).all()
  batch['weight'][:] = 0  # nor the other one
  new, metrics = stepped(state, batch, KEY)
  assert metrics['loss'] == 0
  np.testing.assert_array_equal(new.params['weights'], state.params['weights'])


def test_batches_are_looked_at():
  state, batch = a_batch()
  pixels = {name: np.ones((B, D), np.uint8) for name in ('x', 'x_strong')}
  for change, error, match in (
    (pixels, TypeError, 'floating-point inputs, got uint8'),
    ({'labels': batch['labels'][:, None]}, ValueError, 'labels must be'),
    ({'labels': batch['labels'] * 1.0}, Exception, 'labels'),
    ({'labeled': np.ones(B)}, TypeError, 'labeled must be bool'),
    ({'labeled': LABELED[:, None]}, ValueError, 'labeled must be'),
    ({'truth': batch['truth'][:, None]}, ValueError, 'truth must be'),
    ({'x_strong': np.ones((B, D + 1), np.float32)}, Exception, 'shape'),
  ):
    with pytest.raises(error, match=match):
      jax.eval_shape(METHOD.step, state, {**batch, **change}, KEY)
  for name in ('x', 'x_strong', 'labels', 'labeled', 'weight', 'index'):
    less = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
      jax.eval_shape(METHOD.step, state, less, KEY)
  # Labels of another type, and rows with labels in a stream of their own.
  small = {**batch, 'labels': batch['labels'].astype(np.uint8)}
  split = {'x_l': batch['x'][:4], 'labels_l': small['labels'][:4]}
  rest = {k: v for k, v in batch.items() if k not in ('labels', 'labeled')}
  for other in (small, {**rest, **split}):
    found = jax.eval_shape(METHOD.step, state, other, KEY)
    assert set(found[1]) == {'loss', 'supervised', 'unsupervised', 'correct'}


@pytest.mark.parametrize(
  'change',
  [{'lam': -1.0}, {'ramp': -1}, {'temperature': 0.0}, {'alpha': 0.0}],
)
def test_numbers_are_checked(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    mix_match(linear(D, C), optax.sgd(RATE), **change)


def test_it_wants_a_model():
  with pytest.raises(TypeError, match='model must be'):
    mix_match('mlp', optax.sgd(RATE))


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return mix_match(network(), optimizer(), ramp=2)
