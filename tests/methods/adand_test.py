"""AdaND: a stream, written once more in NumPy; and what it is good for."""

import pathlib
import runpy

from contract import BATCH, AdapterContract, N, examples
from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.methods import Ring, adand, noise_images
from jnl.methods._adand import _pushed
from jnl.select import split_threshold
from jnl.steps import linear

B, D, C, STEPS, WARMUP, MEMORY = 16, 5, 4, 7, 2, 40
KEY = jax.random.key(0)
ADAPTER = adand(optax.adam(0.05), warmup=WARMUP, memory=MEMORY)
step = jax.jit(ADAPTER.step)
above = jax.jit(split_threshold)


def a_stream():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(STEPS, B, D)).astype(np.float32)
  z = 3 * rng.normal(size=(STEPS, B, C)).astype(np.float32)
  weight = rng.choice(np.float32([0, 0.5, 1, 2]), (STEPS, B))
  x[weight == 0], z[weight == 0] = np.nan, np.inf
  return {
    'features': x,
    'logits': z,
    'injected': rng.random((STEPS, B)) < 0.2,
    'weight': weight,
  }


def a_detector():
  rng = np.random.default_rng(1)
  weights = 0.3 * rng.normal(size=(D, 2)).astype(np.float32)
  return {'weights': weights, 'bias': np.float32([0.1, -0.1])}


def batch_of(stream, i):
  return {k: a[i] for k, a in stream.items()}


@pytest.fixture(scope='module')
def ran():
  """A state after all, those before each step, and all answers."""
  state, stream = ADAPTER.init(a_detector(), {}), a_stream()
  states, answers = [], []
  for i in range(STEPS):
    states.append(jax.device_get(state))
    state, outputs = step(state, batch_of(stream, i), KEY)
    answers.append(jax.device_get(outputs))
  return jax.device_get(state), states, answers


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def last(scores):
  """The threshold of the last scores; tests/select says that it is right."""
  scores = np.float32(scores[-MEMORY:])
  padded = np.pad(scores, (0, MEMORY - len(scores)))
  return float(above(padded, np.arange(MEMORY) < len(scores)))


def test_a_stream_is_what_the_equations_say(ran):
  final, _, answers = ran
  stream, first, second = a_stream(), [], []
  params = {k: v.astype(np.float64) for k, v in a_detector().items()}
  tx = optax.adam(0.05)
  opt = tx.init(params)
  for i in range(STEPS):
    b, aux = batch_of(stream, i), answers[i].aux
    there = b['weight'] > 0
    x, w = b['features'][there], b['weight'][there]
    score = 1 - softmax(b['logits'][there]).max(1)
    first += score.tolist()
    threshold = last(first)
    noise = (score > threshold) | b['injected'][there]
    q = softmax(x @ params['weights'] + params['bias'])
    label = np.where(noise, 0, 1)
    slope = (w / w.sum())[:, None] * (q - np.eye(2)[label])
    wanted = {
      'zero_shot_score': score,
      'zero_shot_threshold': threshold,
      'zero_shot_noise': score > threshold,
      'loss': -np.log(q[np.arange(len(q)), label]),
      'skipped': 0,
    }
    if i > WARMUP:
      second += q[:, 0].tolist()
      score, threshold = q[:, 0], last(second)
      noise = score > threshold
    wanted |= {'noise': noise, 'score': score, 'threshold': threshold}
    wanted['confidence'] = 1 - score
    assert aux.keys() == wanted.keys()
    for name, values in wanted.items():
      np.testing.assert_allclose(
        aux[name][there], values, rtol=1e-4, atol=1e-5, err_msg=f'{i} {name}'
      )
    gradient = {'weights': x.T @ slope, 'bias': slope.sum(0)}
    updates, opt = tx.update(gradient, opt, params)
    params = jax.tree.map(np.add, params, updates)
  for k, values in params.items():
    np.testing.assert_allclose(final.params[k], values, atol=1e-5)
  assert final.step == STEPS
  assert final.extra.zero_shot.filled == MEMORY < len(first)
  np.testing.assert_allclose(
    final.extra.detector.scores, second[-MEMORY:], atol=1e-5
  )


def test_logits_and_features_are_the_frozen_ones(ran):
  stream = a_stream()
  for i, outputs in enumerate(ran[2]):
    np.testing.assert_array_equal(outputs.logits, stream['logits'][i])
    np.testing.assert_array_equal(outputs.features, stream['features'][i])


def test_a_batch_that_is_not_finite_is_answered_and_not_learned(ran):
  state, stream = ran[0], a_stream()
  start = jax.device_put(state)
  whole = batch_of(stream, 0)
  whole['weight'] = np.ones(B, np.float32)
  for name in ('features', 'logits'):
    for value in (np.nan, np.inf):
      batch = {k: np.nan_to_num(v, posinf=0) for k, v in whole.items()}
      batch[name][3] = value
      new, outputs = step(start, batch, KEY)
      jax.tree.map(np.testing.assert_array_equal, new, state)
      assert outputs.aux['skipped'].tolist() == [1] * B
      assert outputs.aux['noise'][3]
      assert not outputs.aux['noise'].all()
  # Nor is one of a finite gradient whose squares, in Adam, are not.
  large = {**whole, 'features': 1e30 * whole['features']}
  new, outputs = step(start, large, KEY)
  jax.tree.map(np.testing.assert_array_equal, new, state)
  assert outputs.aux['skipped'].tolist() == [1] * B
  # Nor is one that nobody is in: Adam would move on.
  nobody = {**batch_of(stream, 0), 'weight': np.zeros(B, np.float32)}
  jax.tree.map(
    np.testing.assert_array_equal, step(start, nobody, KEY)[0], state
  )


def test_constant_scores_and_one_row():
  """The threshold is 0: all with a score above it are noise."""
  state = ADAPTER.init(a_detector(), {})
  for b, level in ((B, 0.0), (1, 0.0), (B, 99.0)):
    batch = {
      'features': np.zeros((b, D), np.float32),
      'logits': np.float32([[level, 0, 0, 0]] * b),
    }
    _, outputs = jax.jit(ADAPTER.step)(state, batch, KEY)
    assert outputs.aux['threshold'].tolist() == [0] * b
    assert outputs.aux['noise'].tolist() == [level == 0] * b


def test_the_ring_keeps_the_last_ones_also_of_larger_batches():
  rng = np.random.default_rng(0)
  scores, there = (
    rng.random((6, 7)).astype(np.float32),
    rng.random((6, 7)) < 0.5,
  )
  empty = Ring(np.zeros(4, np.float32), np.int32(0))
  walk = lambda ring, row: 2 * (_pushed(ring, *row)[0],)
  _, rings = compiled(lambda *rows: jax.lax.scan(walk, empty, rows))(
    np.where(there, scores, np.nan), there
  )
  kept = []
  for i in range(6):
    kept = (kept + scores[i][there[i]].tolist())[-4:]
    assert rings.filled[i] == len(kept)
    expected = np.pad(kept, (4 - len(kept), 0))
    np.testing.assert_array_equal(rings.scores[i], np.float32(expected))


@pytest.mark.parametrize(
  ('change', 'error', 'match'),
  [
    ({'features': np.zeros((B, D), np.uint8)}, TypeError, 'features must be f'),
    (
      {'features': np.zeros((B, D + 1))},
      ValueError,
      r'features must be \[b, 5',
    ),
    ({'logits': np.zeros((B, 1))}, ValueError, 'c >= 2 classes'),
    ({'logits': np.zeros((B - 1, C))}, ValueError, 'logits must be'),
    ({'weight': np.ones((B, 1))}, ValueError, r'weight must be \[16\]'),
    ({'injected': np.zeros((B, 1), bool)}, ValueError, 'injected must be'),
    ({'injected': np.zeros(B, int)}, TypeError, 'injected must be bool'),
  ],
)
def test_bad_batches_are_named(change, error, match):
  state = jax.eval_shape(ADAPTER.init, a_detector(), {})
  batch = {**batch_of(a_stream(), 0), **change}
  with pytest.raises(error, match=match):
    jax.eval_shape(ADAPTER.step, state, batch, KEY)


@pytest.mark.parametrize(
  ('use', 'error', 'match'),
  [
    (lambda: adand(warmup=-1), ValueError, 'warmup must be'),
    (lambda: adand(memory=0), ValueError, 'memory must be'),
    (lambda: ADAPTER.init(np.zeros(3), {}), ValueError, 'got ndarray'),
    (lambda: ADAPTER.init({'w': 0}, {}), ValueError, r"got \['w'\]"),
    (
      lambda: ADAPTER.init(linear(D, 3).init(KEY)[0], {}),
      ValueError,
      r'\(5, 3\) and \(3,\)',
    ),
    (lambda: noise_images(0, 1, (2,)), TypeError, 'key must be made'),
    (lambda: noise_images(KEY, -1, (2,)), ValueError, 'n must be'),
    (lambda: noise_images(KEY, 1, (2, 0)), ValueError, 'size in shape'),
  ],
)
def test_bad_arguments_are_named(use, error, match):
  with pytest.raises(error, match=match):
    use()


def test_noise_images():
  x = np.asarray(noise_images(KEY, 40, (12, 12, 3)))
  flat = x.reshape(40, -1)
  assert (flat.min(1) == 0).all()
  assert flat.max() <= 1
  np.testing.assert_allclose(flat.max(1), 1, atol=1e-6)
  # Normal: what is scaled has its kurtosis, and no correlation in space.
  z = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
  assert abs((z**4).mean() - 3) < 0.15
  assert abs((z[:, 1:] * z[:, :-1]).mean()) < 0.03
  assert not np.allclose(flat[0], flat[1])
  assert noise_images(KEY, 0, (3, 3)).shape == (0, 3, 3)
  assert noise_images(KEY, 2, (1,)).tolist() == [[0.0], [0.0]]


@pytest.mark.slow
def test_it_finds_more_noise_and_injection_keeps_what_is_clean():
  """The streams that experiments/noisy_stream.py makes up, of two seeds."""
  folder = pathlib.Path(__file__).parents[2] / 'experiments'
  script = runpy.run_path(str(folder / 'noisy_stream.py'))
  config = script['filled'](script['Config']())
  streams, adapter = script['made_up'](config), adand()

  @compiled
  def decisions(batches):
    start = adapter.init(*linear(script['SIZE'], 2).init(KEY))
    walk = lambda state, batch: adapter.step(state, batch, KEY)
    return jax.lax.scan(walk, start, batches)[1].aux

  def shares(rate, inject):
    """Of clean rows kept and right, and of noise rejected: by both."""
    found = []
    for seed in range(2):
      rows = streams(seed, rate, inject)
      arrays = {k: v for k, v in rows._asdict().items() if k != 'labels'}
      cut = lambda a: a.reshape(-1, config.batch_size, *a.shape[1:])
      aux = decisions({k: cut(v) for k, v in arrays.items()})
      right = rows.logits.argmax(1) == rows.labels
      clean, noise = rows.labels >= 0, (rows.labels < 0) & ~rows.injected
      for name in ('zero_shot_noise', 'noise'):
        said = aux[name].ravel()
        kept = (right & ~said)[clean].mean()
        found.append((kept, said[noise].mean() if rate else 1))
    return np.reshape(found, (2, 2, 2))  # [seeds, method, share]

  kept, rejected = np.moveaxis(shares(0.5, False), -1, 0)
  harmonic = (2 * kept * rejected / (kept + rejected)).mean(0)
  assert harmonic[1] > harmonic[0] + 0.02
  alone, injected = (shares(0, inject)[:, 1, 0] for inject in (False, True))
  assert injected.mean() > alone.mean() + 0.05


class TestContract(AdapterContract):
  random = False

  def make(self):
    return adand(optax.adam(0.05), warmup=0, memory=3 * BATCH)

  def trained(self, key):
    x = jax.random.normal(key, (examples()['x'].shape[1], 2))
    return {'weights': x, 'bias': jnp.zeros(2)}, {}

  def stream(self):
    x, rng = examples()['x'], np.random.default_rng(2)
    logits = 3 * rng.normal(size=(N, C)).astype(np.float32)
    injected = rng.random(N) < 0.2
    return {'features': x, 'logits': logits, 'injected': injected}
