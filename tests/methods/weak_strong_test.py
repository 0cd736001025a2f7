"""The step of few labels: by numpy, from one stream and from two."""

import chex
from contract import CLASSES, Contract, network, optimizer
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, pseudo
from jnl.methods import flexmatch, weak_strong
from jnl.steps import join_labeled, linear
from jnl.train import Checkpoint, Stream, fit

B, D, C = 8, 3, 4
KEY = jax.random.key(0)
MODEL, TX = linear(D, C), optax.sgd(1.0)
LABELED = np.arange(B) % 3 == 0


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def batch_of(rng):
  x, strong = rng.normal(size=(2, B, D)).astype(np.float32)
  weight = np.float32([1, 2, 1, 0, 1, 1, 3, 0])
  labels = np.where(LABELED, rng.integers(0, C, B), 255).astype(np.uint8)
  labels[3] = 200  # labeled, of weight 0
  return {
    'x': np.where(weight[:, None] > 0, x, np.nan),
    'x_strong': np.where(LABELED[:, None], np.inf, strong),
    'labels': labels,
    'labeled': LABELED,
    'truth': rng.integers(0, C, B, np.int32),
    'index': np.arange(B, dtype=np.int32),
    'weight': weight,
  }


def state_of(rng, method):
  params = {'weights': rng.normal(size=(D, C)), 'bias': rng.normal(size=C)}
  params = jax.tree.map(np.float32, params)
  return method.init(KEY)._replace(params=params)


def small(**kwargs):
  kwargs.setdefault('policy', pseudo.fixed(0.5))
  return weak_strong(MODEL, TX, kwargs.pop('policy'), **kwargs)


@pytest.fixture(scope='module')
def cases():
  """Ways to be built, and what a step makes of them, by one program."""
  ways = {
    'plain': small(),
    'annealed': small(anneal=lambda step: 0.3 + 0.1 * step, weight=0.5),
    'soft': small(target=pseudo.soft(0.4), weight=lambda step: 2.0 + step),
    'same_view': small(student='x'),
    'squared': small(
      loss=lambda z, t: jnp.square(jax.nn.softmax(z) - t).mean(-1),
      align=pseudo.ema_alignment(C),
      term=lambda memory, seen, outputs, w: (
        3 * outputs.logits[:, 0].mean(),
        {'seen': jnp.sum(seen.unlabeled) + seen.step},
      ),
    ),
  }
  rng = np.random.default_rng(0)
  batch = batch_of(rng)
  states = {k: state_of(rng, method) for k, method in ways.items()}
  others = {**batch, 'labels': np.roll(batch['labels'], 3)}
  others['labels'][LABELED] = batch['labels'][LABELED]
  streams = {  # the same rows, in another order
    k: v[~LABELED] for k, v in batch.items() if k not in ('labels', 'labeled')
  } | {f'{k}_l': batch[k][LABELED] for k in ('x', 'labels', 'weight', 'index')}
  streams |= {f'{k}_l': batch[k][LABELED] for k in ('x_strong', 'truth')}

  @jax.jit
  def run(states, *batches):
    return {
      k: [method.step(states[k], b, KEY) for b in batches]
      for k, method in ways.items()
    }

  found = jax.device_get(run(states, batch, others, streams))
  return batch, states, found


def test_a_step_is_what_the_equations_say(cases):
  batch, states, found = cases
  w, there = batch['weight'], batch['weight'] > 0
  present, missing = w * LABELED, w * ~LABELED
  for name, state in states.items():
    weights, bias = state.params['weights'], state.params['bias']
    z = np.where(there[:, None], batch['x'], 0) @ weights + bias
    strong = np.where(there & ~LABELED, batch['x_strong'].T, 0).T
    strong = z if name == 'same_view' else strong @ weights + bias
    p = softmax(z)
    if name == 'squared':
      mean = missing @ p / missing.sum()
      r = p * (1 / C + 1e-6) / (mean + 1e-6)
      p = r / r.sum(1, keepdims=True)
    used = (p.max(1) >= 0.5) * missing
    t = np.eye(C)[p.argmax(1)]
    if name == 'soft':
      t = p**2.5 / (p**2.5).sum(1, keepdims=True)
    values = -(t * np.log(softmax(strong))).sum(1)
    if name == 'squared':
      values = ((softmax(strong) - t) ** 2).mean(1)
    own = np.where(there & LABELED, batch['labels'], 0)
    ce = -np.log(softmax(z)[np.arange(B), own])
    kept = np.exp(-ce) <= 0.3 if name == 'annealed' else True
    metrics = found[name][0][1]
    supervised = present @ (ce * kept) / present.sum()
    unsupervised = used @ values / missing.sum()
    lam = {'annealed': 0.5, 'soft': 2.0}.get(name, 1.0)
    loss = supervised + lam * unsupervised
    if name == 'squared':
      loss += 3 * strong[:, 0].mean()
      assert metrics['seen'] == missing.sum()
    right = t.argmax(1) == batch['truth']
    for key, value in (
      ('supervised', supervised),
      ('unsupervised', unsupervised),
      ('loss', loss),
      ('used', used.sum() / missing.sum()),
      ('correct', used @ right / used.sum()),
    ):
      np.testing.assert_allclose(
        metrics[key], value, rtol=2e-5, atol=1e-6, err_msg=f'{name}, {key}'
      )
  assert 0 < found['plain'][0][1]['used'] < 1


def test_labels_of_unlabeled_rows_are_not_looked_at(cases):
  for first, second, _ in cases[2].values():
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_two_streams_are_one(cases):
  """Labeled rows of their own, joined: the same but for the order of sums."""
  for first, _, joined in cases[2].values():
    first[1].pop('correct'), joined[1].pop('correct')
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
      *(first, joined),
    )


def test_nothing_is_learned_through_guesses(cases):
  """The gradient of unlabeled rows is of the strong view alone."""
  batch, states, _ = cases
  method, state = small(), states['plain']
  unlabeled = {**batch, 'labeled': np.zeros(B, bool)}
  unlabeled['x_strong'] = np.zeros((B, D), np.float32)  # no slope by weights
  new, metrics = jax.jit(method.step)(state, unlabeled, KEY)
  np.testing.assert_array_equal(new.params['weights'], state.params['weights'])
  assert (new.params['bias'] != state.params['bias']).any()
  assert metrics['supervised'] == 0, 'no labeled row'


def test_a_row_whose_prediction_is_infinite_is_not_used(cases):
  """It overflows in the network; nothing of it is learned."""
  batch, states, _ = cases
  method = small()
  bad = np.flatnonzero(~LABELED & (batch['weight'] > 0))[0]
  huge = {k: batch[k].copy() for k in ('x', 'x_strong')}
  for x in huge.values():
    x[bad] = 3e38
  new, metrics = jax.jit(method.step)(
    states['plain'], {**batch, **huge, 'truth': np.full(B, -1)}, KEY
  )
  chex.assert_tree_all_finite((new, metrics))
  assert metrics['used'] < 1


def test_joined_batches_are_interleaved_in_groups():
  batch = {
    'x': np.arange(8, dtype=np.float32),
    'x_strong': np.arange(8, dtype=np.float32) + 100,
    'index': np.arange(8),
    'truth': np.arange(8),
    'x_l': -np.arange(1, 5, dtype=np.float32),
    'labels_l': np.uint8([1, 2, 3, 255]),
    'weight_l': np.float32([1, 1, 1, 0]),
    'index_l': np.array([5, 6, 7, np.iinfo(np.int32).max]),
  }
  both = jax.device_get(join_labeled(batch))
  assert both['x'].tolist() == [0, 1, -1, 2, 3, -2, 4, 5, -3, 6, 7, -4]
  assert both['x_strong'].tolist()[:3] == [100, 101, -1]
  assert both['labeled'].tolist() == [False, False, True] * 4
  assert both['labels'].tolist()[:9] == [-1, -1, 1, -1, -1, 2, -1, -1, 3]
  assert both['labels'].tolist()[9:] == [-1, -1, 255]
  assert both['weight'].tolist() == [1.0] * 11 + [0.0]
  assert both['truth'].tolist()[:3] == [0, 1, 0]
  assert (both['index'][2::3] >= 1 << 30).all()
  assert len(set(both['index'].tolist())) == 12
  soft = {**batch, 'labels_l': np.eye(4, dtype=np.float32)}
  assert join_labeled(soft)['labels'][0].tolist() == [0.25] * 4
  assert join_labeled({'x': 1}) == {'x': 1}
  meta = {'x_meta': np.zeros(8), 'index_meta': np.arange(8)}
  assert join_labeled({**batch, **meta})['x_meta'].shape == (8,)
  none = {k: v[:0] if k.endswith('_l') else v for k, v in batch.items()}
  assert join_labeled(none)['x'].tolist() == batch['x'].tolist()
  for change, error, match in (
    (
      {'x_strong_l': np.zeros((4, 2), np.float32)},
      ValueError,
      'must be like x_strong_l',
    ),
    ({'x_l': np.zeros((4, 2), np.float32)}, ValueError, 'x must be like x_l'),
    ({'x_l': np.zeros(4, np.uint8)}, TypeError, 'x must have the dtype of x_l'),
    ({'truth': np.zeros(7, int)}, ValueError, 'truth must have 8 rows'),
    ({'weight_l': np.ones(3)}, ValueError, 'weight_l must have 4 rows'),
  ):
    with pytest.raises(error, match=match):
      join_labeled({**batch, **change})
  for name in ('labels_l', 'index'):
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
      join_labeled({k: v for k, v in batch.items() if k != name})


def test_batches_and_numbers_are_looked_at(cases):
  batch, states, _ = cases
  method, state = small(), states['plain']
  for change, error, match in (
    ({'labeled': LABELED.astype(int)}, TypeError, 'labeled must be bool'),
    ({'labeled': LABELED[:, None]}, ValueError, r'labeled must be \[b\]'),
    ({'labels': batch['labels'][:, None]}, ValueError, 'labels'),
    ({'truth': batch['truth'][:, None]}, ValueError, r'truth must be \[b\]'),
    (
      {'labeled': LABELED[:, None], 'weight': np.ones((B, 1), np.float32)},
      *(ValueError, r'weight must be \[b\]'),
    ),
    ({'x_strong': np.zeros((B, D + 1))}, ValueError, 'views must all have'),
  ):
    with pytest.raises(error, match=match):
      jax.eval_shape(method.step, state, {**batch, **change}, KEY)
  for name in ('x_strong', 'labeled', 'index', 'labels'):
    rest = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
      jax.eval_shape(method.step, state, rest, KEY)
  whole = small(loss=lambda z, t: losses.ce(z, t)[:, None])
  with pytest.raises(ValueError, match='one value for each example'):
    jax.eval_shape(whole.step, state, batch, KEY)
  with pytest.raises(ValueError, match='weight must be at least 0'):
    small(weight=-1.0)
  with pytest.raises(TypeError, match='model must be'):
    weak_strong('mlp', TX, pseudo.everything())


def test_a_memory_in_shards_wants_streams_that_they_divide():
  method = flexmatch(MODEL, TX, num_examples=32, num_classes=C, shards=8)
  state = method.init(KEY)
  batch = {
    'x': np.zeros((16, D), np.float32),
    'x_strong': np.zeros((16, D), np.float32),
    'index': np.arange(16),
    'x_l': np.zeros((4, D), np.float32),
    'labels_l': np.zeros(4, np.int32),
  }
  with pytest.raises(ValueError, match='that 8, the shards'):
    jax.eval_shape(method.step, state, batch, KEY)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_in_the_middle_of_an_epoch(tmp_path):
  """Two streams, a table, and memories of rules."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, D)).astype(np.float32)
  labels = rng.integers(0, C, 8, np.int32)
  method = flexmatch(
    *(MODEL, optax.sgd(0.1, momentum=0.9)),
    **{'num_examples': 64, 'num_classes': C, 'threshold': 0.3, 'shards': 8},
  )
  arrays = {'x': x, 'x_strong': x + 0.1}
  streams = {'l': Stream({'x': x[:8], 'labels': labels}, 8)}

  class KilledError(Exception):
    """In the place of a signal."""

  def stop(row):
    if row['epoch'] == 2:
      raise KilledError

  def run(checkpoint=None, log=None):
    return fit(
      method,
      arrays,
      KEY,
      epochs=3,
      batch_size=16,
      streams=streams,
      checkpoint=checkpoint,
      log=log,
    )

  whole = run()
  with pytest.raises(KilledError):
    run(Checkpoint(tmp_path, every=3), stop)
  resumed = run(Checkpoint(tmp_path, every=3, resume=True))
  jax.tree.map(
    np.testing.assert_array_equal,
    *map(jax.device_get, (whole.state, resumed.state)),
  )
  assert np.asarray(whole.state.extra.policy.counts).sum() > 0


@pytest.mark.slow
class TestContract(Contract):
  """Of a rule with an alignment, a schedule and a term."""

  def make(self):
    def term(memory, seen, outputs, weights):
      del memory, seen
      value = losses.prior_mean_kl(outputs.logits, weights)
      return value, {'prior': value}

    return weak_strong(
      network(),
      optimizer(),
      pseudo.relative(0.8),
      align=pseudo.queue_alignment(CLASSES, length=4),
      weight=lambda step: 1.0 + step,
      anneal=lambda step: 0.9,
      term=term,
    )
