"""What tests of methods that estimate a transition matrix share."""

from fixture_methods import batches, mlp
import jax
import numpy as np
import optax

from jnl.base import pack_rows
from jnl.data import load
from jnl.methods import estimated_transition

B, D, C = 20, 4, 3
KEY = jax.random.key(0)


def batch_of():
  """Three classes in four dimensions; the last row is not there."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, C, B, np.int32)
  x = rng.normal(size=(B, D)) + 2 * np.eye(C, D)[labels]
  x[-1], labels[-1] = np.nan, 255
  weight = np.arange(B) < B - 1
  return {
    'x': x.astype(np.float32),
    'labels': labels,
    'index': np.arange(B),
    'weight': weight.astype(np.float32),
  }


def log_softmax(z):
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def truth_found(make, epochs=10, refit=True):
  """How far T is from the truth, in total variation, and the identity.

  Digits, 40% flipped to the next class; `epochs`, and maybe an estimate.
  """
  digits, rng = load('digits'), np.random.default_rng(0)
  clean = digits.train.labels
  labels = np.where(rng.random(len(clean)) < 0.4, (clean + 1) % 10, clean)
  arrays = {'x': digits.train.x, 'labels': labels.astype(np.int32)}
  order = batches(arrays, epochs=epochs, batch_size=100)
  n = len(clean)
  method = make(mlp(64, 256, 10), optax.sgd(0.05, momentum=0.9))

  def step(state, batch):
    return method.step(state, batch, KEY)[0], None

  @jax.jit
  def run(order, every):
    state, _ = jax.lax.scan(step, method.init(KEY), order)
    if refit:
      rows = method.refit.collect(state, every, KEY)
      state = method.refit.update(state, jax.tree.map(pack_rows, rows), KEY)
    return estimated_transition(state)

  every = {**arrays, 'index': np.arange(n), 'weight': np.ones(n, np.float32)}
  found, eye = run(order, every), np.eye(10)
  truth = 0.6 * eye + 0.4 * np.roll(eye, 1, axis=1)
  return [np.abs(a - truth).sum(1).mean() / 2 for a in (found, eye)]
