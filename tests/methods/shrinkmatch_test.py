"""ShrinkMatch: two kinds of guesses, and a head for the unsure ones."""

from contract import CLASSES, HIDDEN, Contract, network, optimizer
from fixture_methods import smooth
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, pseudo
from jnl.base import Model
from jnl.methods import auxiliary_head, shrinkmatch

B, C, DIM, D, TAU = 16, 5, 3, 8, 0.7
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
LABELED = np.arange(B) % 4 == 0
WEIGHTS = RNG.choice([0, 0.5, 1, 2], B).astype(np.float32)
BATCH = {
  'x': RNG.normal(size=(B, DIM)).astype(np.float32),
  'x_strong': RNG.normal(size=(B, DIM)).astype(np.float32),
  'labels': np.where(LABELED, RNG.integers(0, C, B), -1),
  'labeled': LABELED,
  'index': np.arange(B),
  'weight': WEIGHTS,
}


def build(model=None, num_features=D, **options):
  options = {'momentum': 0.75, 'threshold': TAU, **options}
  return shrinkmatch(
    *(model or smooth(DIM, D, C), optax.sgd(0.1)),
    num_classes=C,
    num_features=num_features,
    **options,
  )


@jax.jit
def rows(state):
  """Losses of each row, and who counts, by predictions on both views."""
  predict = lambda name: build().predict(state, BATCH[name])
  weak, strong = predict('x'), predict('x_strong')
  p = jax.nn.softmax(weak.logits)
  sure = jnp.max(p, axis=1) >= TAU
  labels = jnp.where(LABELED, BATCH['labels'], 0)
  return losses.ce(weak.logits, labels), {
    'unsupervised': losses.ce(strong.logits, p) * sure,
    'used': sure,
    'shrunk': pseudo.shrunk_cross_entropy(strong.aux, p, threshold=TAU),
    'used_shrunk': pseudo.shrinkable(p, threshold=TAU),
  }


def test_a_step_is_as_defined():
  """rho starts at the first share; labels that are not there change nothing."""
  method, ratio = build(weight=lambda step: 2 + step), None
  start, step = jax.jit(method.init)(KEY), jax.jit(method.step)
  other = np.where(LABELED, BATCH['labels'], RNG.integers(0, C, B))
  mean = lambda v, kind: np.average(v, weights=WEIGHTS * kind)
  state = start
  for lam in 2, 3:
    supervised, values = rows(state)
    parts = {name: mean(v, ~LABELED) for name, v in values.items()}
    assert min(parts.values()) > 0
    used = parts['used']
    ratio = used if ratio is None else 0.75 * ratio + 0.25 * used
    parts['shrunk'] *= ratio
    parts['supervised'] = mean(supervised, LABELED)
    loss = parts['unsupervised'] + parts['shrunk']
    parts['loss'] = parts['supervised'] + lam * loss
    again, _ = step(state, {**BATCH, 'labels': other}, KEY)
    state, metrics = step(state, BATCH, KEY)
    for name, value in parts.items():
      np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(state.extra.policy.ratio, ratio, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, again, state)
  same = jax.tree.map(np.array_equal, state.params, start.params)
  assert not any(jax.tree.leaves(same))


def test_a_network_may_bring_its_own_head():
  """Predictions are of the first; the other one learns what shrinks alone."""
  net = smooth(DIM, D, C)
  own = auxiliary_head(net, D, C)
  state = jax.jit(build().init)(KEY)
  shapes = jax.tree.map(jnp.shape, state.params['head'])
  assert [layer['weights'] for layer in shapes] == [(8, 2), (2, 2), (2, C)]
  assert [layer['bias'] for layer in shapes] == [(2,), (2,), (C,)]

  @jax.jit
  def run(state):
    method = build(own, None, threshold=0.0)  # all are sure: nothing shrinks
    state, metrics = method.step(state, BATCH, KEY)
    here = method.predict(state, BATCH['x'])
    there, _ = net.apply(state.params['net'], {}, BATCH['x'], None, False)
    return state.params['head'], metrics, here, there

  head, metrics, here, there = run(state)
  jax.tree.map(np.testing.assert_array_equal, head, state.params['head'])
  assert [metrics[k] for k in ('used', 'used_shrunk', 'shrunk')] == [1, 0, 0]
  np.testing.assert_array_equal(here.logits, there.logits)
  np.testing.assert_array_equal(here.features, there.features)


def step_of(method):
  return jax.eval_shape(
    method.step, jax.eval_shape(method.init, KEY), BATCH, KEY
  )


@pytest.mark.parametrize(
  ('call', 'error', 'match'),
  [
    (lambda: build(threshold=1.5), ValueError, 'threshold must lie in'),
    (lambda: build(momentum=-1.0), ValueError, 'momentum must lie in'),
    (lambda: build(weight=-1.0), ValueError, 'weight must be'),
    (lambda: build(num_features=0), ValueError, 'num_features must be'),
    (lambda: build(Model), TypeError, 'must be a jnl.Model'),
    (lambda: step_of(build(num_features=None)), ValueError, 'auxiliary head'),
    (
      lambda: step_of(build(align=pseudo.queue_alignment(C + 1))),
      ValueError,
      r'probs must be \[b, 6\]',
    ),
  ],
)
def test_bad_input_is_named(call, error, match):
  with pytest.raises(error, match=match):
    call()


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return shrinkmatch(
      *(network(), optimizer()),
      num_classes=CLASSES,
      num_features=HIDDEN,
      threshold=0.6,
      align=pseudo.queue_alignment(CLASSES, length=2),
    )
