"""Papers of few labels: what each says, and the contract of each."""

from contract import CLASSES, SHARDS, Contract, N, network, optimizer
import jax
import numpy as np
import optax
import pytest

from jnl import pseudo
from jnl.methods import (
  adamatch,
  build,
  dash,
  fixmatch,
  flexmatch,
  freematch,
  pseudo_label,
  softmatch,
  uda,
)
from jnl.steps import linear

B, D, C = 8, 3, 4
KEY = jax.random.key(0)
MODEL, TX = linear(D, C), optax.sgd(1.0)
BUILT = {
  'pseudo_label': pseudo_label(MODEL, TX, threshold=0.5),
  'uda': uda(MODEL, TX, threshold=0.5, temperature=0.4),
  'fixmatch': fixmatch(MODEL, TX, threshold=0.5),
  'flexmatch': flexmatch(
    MODEL, TX, num_examples=B, num_classes=C, threshold=0.5
  ),
  'freematch': freematch(MODEL, TX, num_classes=C, fairness=0.1),
  'softmatch': softmatch(MODEL, TX, num_classes=C, momentum=0.5),
  'adamatch': adamatch(MODEL, TX, num_classes=C, threshold=0.5, momentum=0.5),
  'dash': dash(MODEL, TX, num_classes=C, steps_per_epoch=2, every=1),
  'dash_last': dash(
    *(MODEL, TX),
    **{'num_classes': C, 'steps_per_epoch': 2, 'every': 1, 'least': 1.4},
  ),
}


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def cases():
  """Two steps of each, by one program."""
  rng = np.random.default_rng(1)
  x, strong = rng.normal(size=(2, B, D)).astype(np.float32)
  labeled = np.arange(B) < 3
  batch = {
    **{'x': x, 'x_strong': strong, 'labeled': labeled},
    'labels': np.where(labeled, 1, -1),
    'index': np.arange(B, dtype=np.int32),
    'weight': np.ones(B, np.float32),
  }
  params = {'weights': 2 * rng.normal(size=(D, C)), 'bias': np.zeros(C)}
  params = jax.tree.map(np.float32, params)

  @jax.jit
  def run(batch):
    found = {}
    for name, method in BUILT.items():
      state = method.init(KEY)._replace(params=params)
      new, metrics = method.step(state, batch, KEY)
      found[name] = new, metrics
    return found

  p = softmax(x @ params['weights'])
  q = softmax(strong @ params['weights'])
  return labeled, p, q, jax.device_get(run(batch))


def test_each_learns_what_its_paper_says(cases):
  labeled, p, q, found = cases
  u, sure, hard = p[~labeled], p[~labeled].max(1), np.eye(C)[p.argmax(1)]
  hard, log_p = hard[~labeled], -np.log(p[~labeled])
  log_q = -np.log(q[~labeled])
  t = u**2.5 / (u**2.5).sum(1, keepdims=True)
  expected = {
    'pseudo_label': (sure >= 0.5, hard * log_p),
    'uda': (sure >= 0.5, t * log_q),
    'fixmatch': (sure >= 0.5, hard * log_q),
    'flexmatch': (sure >= 0, hard * log_q),  # nobody has been counted
  }
  tau = 0.999 / C + 0.001 * sure.mean()
  mean = 0.999 / C + 0.001 * u.mean(0)
  free = sure >= tau * mean[u.argmax(1)] / mean.max()
  expected['freematch'] = free, hard * log_q
  ratio = (u / (u.mean(0) + 1e-6)).T
  r = (ratio / ratio.sum(0)).T
  mu = 0.5 / C + 0.5 * r.max(1).mean()
  var = 0.5 + 0.5 * r.max(1).var(ddof=1)
  w = np.exp(-(np.minimum(r.max(1) - mu, 0) ** 2) / (2 * var / 4))
  expected['softmatch'] = w, hard * log_q  # of what is not aligned
  target = 0.5 / C + 0.5 * p[labeled].mean(0)
  ratio = (u * (target + 1e-6) / (u.mean(0) + 1e-6)).T
  r = (ratio / ratio.sum(0)).T
  near = r.max(1) >= 0.5 * p[labeled].max(1).mean()
  expected['adamatch'] = near, np.eye(C)[r.argmax(1)] * log_q
  t = u**2 / (u**2).sum(1, keepdims=True)
  small = (t * log_p).sum(1) <= 1.0001 * np.log(C)
  expected['dash'] = small, t * log_q
  small = (hard * log_p).sum(1) <= 1.4  # the least: from now on hard
  expected['dash_last'] = small, hard * log_q
  for name, (w, terms) in expected.items():
    metrics = found[name][1]
    unsupervised = (w * terms.sum(1)).mean()
    np.testing.assert_allclose(
      *(metrics['unsupervised'], unsupervised),
      **{'rtol': 2e-5, 'err_msg': name},
    )
    np.testing.assert_allclose(metrics['used'], np.mean(w), rtol=1e-5)
  ce = -np.log(p[labeled, 1]).mean()
  np.testing.assert_allclose(found['dash'][1]['supervised'], ce, rtol=1e-5)


def test_freematch_is_fair_to_classes(cases):
  metrics = cases[3]['freematch'][1]
  parts = metrics['supervised'] + metrics['unsupervised']
  total = parts + 0.1 * metrics['fairness']
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
  assert metrics['fairness'] < 0


def test_they_are_built_by_name():
  x = np.zeros((20, D), np.float32)
  for name in BUILT.keys() - {'dash_last'}:
    method = build(name, MODEL, TX, x=x, num_classes=C, batch_size=8)
    jax.eval_shape(method.init, KEY)
  method = build(
    *('flexmatch', MODEL, TX),
    **{'x': x, 'num_classes': C, 'batch_size': 8, 'threshold': 0.9},
  )
  chosen = jax.eval_shape(method.init, KEY).extra.policy.chosen
  assert chosen.rows.shape[0] in (1, 2, 4)


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (lambda: fixmatch(MODEL, TX, threshold=95), 'threshold'),
    (lambda: uda(MODEL, TX, temperature=0.0), 'temperature'),
    (lambda: freematch(MODEL, TX, num_classes=C, fairness=-1), 'fairness'),
    (lambda: freematch(MODEL, TX, num_classes=0), 'num_classes'),
    (lambda: softmatch(MODEL, TX, num_classes=C, n_sigma=0), 'n_sigma'),
    (lambda: adamatch(MODEL, TX, num_classes=C, momentum=2), 'momentum'),
    (lambda: dash(MODEL, TX, num_classes=1, steps_per_epoch=1), 'num_classes'),
    (lambda: dash(MODEL, TX, num_classes=C, steps_per_epoch=0), 'steps_per_'),
    (
      lambda: dash(MODEL, TX, num_classes=C, steps_per_epoch=1, every=0),
      'every',
    ),
    (lambda: fixmatch('mlp', TX), 'model must be'),
  ],
)
def test_numbers_are_checked(make, match):
  with pytest.raises((ValueError, TypeError), match=match):
    make()


# --- the contract -------------------------------------------------------------


@pytest.mark.slow
class TestPseudoLabel(Contract):
  def make(self):
    return pseudo_label(network(), optimizer(), threshold=0.3)


@pytest.mark.slow
class TestUda(Contract):
  def make(self):
    anneal = lambda step: pseudo.annealing_threshold(step, 3, CLASSES)
    return uda(network(), optimizer(), threshold=0.3, anneal=anneal)


@pytest.mark.slow
class TestFixmatch(Contract):
  def make(self):
    return fixmatch(network(), optimizer(), threshold=0.3)


@pytest.mark.slow
class TestFlexmatch(Contract):
  """Labeled rows are a stream of their own; the others have the table."""

  def make(self):
    return flexmatch(
      network(),
      optimizer(),
      num_examples=N,
      num_classes=CLASSES,
      threshold=0.4,
      shards=SHARDS,
    )

  def streams(self):
    return {'l': 8}


@pytest.mark.slow
class TestFreematch(Contract):
  def make(self):
    return freematch(
      network(), optimizer(), num_classes=CLASSES, momentum=0.5, quantile=0.6
    )


@pytest.mark.slow
class TestSoftmatch(Contract):
  def make(self):
    return softmatch(network(), optimizer(), num_classes=CLASSES, momentum=0.5)


@pytest.mark.slow
class TestAdamatch(Contract):
  def make(self):
    return adamatch(network(), optimizer(), num_classes=CLASSES, momentum=0.5)


@pytest.mark.slow
class TestDash(Contract):
  def make(self):
    return dash(
      network(), optimizer(), num_classes=CLASSES, steps_per_epoch=1, every=1
    )
