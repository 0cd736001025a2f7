"""Golden checks of adapters to the stream, and of what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl.methods._adand import adand
from jnl.select._split import _split

KEY = jax.random.key(0)
GRID = np.arange(0, 1, 0.01)


def worth(scores):
  """The criterion in float64, [grid]."""
  scores = np.asarray(scores, np.float64)
  upper = scores >= GRID[:, None]
  with np.errstate(invalid='ignore', divide='ignore'):
    sides = []
    for own in (upper, ~upper):
      n = own.sum(1)
      mean = (own * scores).sum(1) / n
      sides.append((own * (scores - mean[:, None]) ** 2).sum(1))
  return np.where(np.isfinite(sides[0] + sides[1]), sum(sides), np.inf) / len(
    scores
  )


def check_threshold(case):
  """In float32 a score on the grid may be on the other side of it."""
  scores = case['scores']
  best, criterion = yield (
    lambda s: _split(s, jnp.ones(len(s), bool), len(GRID)),
    scores,
  )
  if case.precision == 'f64':
    case.equal(best, 'best')
    case.value(criterion, 'criterion')
    return
  exact = case.arrays['scores']
  moved = (scores >= GRID[:, None]) != (exact >= GRID[:, None])
  if case.has('best'):
    wanted = case.expected('best')
    if moved.any():
      wanted = GRID[np.argmin(worth(scores))]
    np.testing.assert_allclose(best, wanted, rtol=1e-6)
  if case.has('criterion'):
    wanted = np.where(moved.any(1), worth(scores), case.expected('criterion'))
    np.testing.assert_allclose(criterion, wanted, rtol=1e-5, atol=1e-7)


def check_stream(case):
  """Batch after batch: decisions, thresholds and the detector after each."""
  memory, warmup, rate = case['hyper'].tolist()
  adapter = adand(optax.adam(rate), warmup=int(warmup), memory=int(memory))

  def run(params, batches):
    def walk(state, batch):
      state, outputs = adapter.step(state, batch, KEY)
      return state, (state.params, outputs.aux)

    return jax.lax.scan(walk, adapter.init(params, {}), batches)[1]

  start = {'weights': case['w0'].T, 'bias': case['b0']}
  batches = {
    'features': case['features'],
    'logits': case['zs_logits'],
    'injected': case['target'] == -1000,
  }
  params, aux = yield run, start, batches
  decides = np.arange(len(aux['noise'])) > warmup
  case.equal(aux['noise'], 'mask')
  case.value(np.swapaxes(params['weights'], 1, 2), 'det_w')
  case.value(params['bias'], 'det_b')
  kept = np.where(decides[:, None], aux['confidence'], np.float32(-1))
  case.value(kept, 'conf')
  second = np.where(decides, aux['threshold'][:, 0], -1)
  thresholds = np.stack([aux['zero_shot_threshold'][:, 0], second], axis=1)
  case.close(thresholds, 'thresholds', rtol=1e-6)  # on a grid of .01


CHECKS = {
  ('adand', 'adaptive_threshold'): check_threshold,
  ('adand', 'detector_stream'): check_stream,
}
