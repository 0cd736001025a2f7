"""Batch statistics, and TENT."""

import functools

import chex
from contract import CLASSES, DIM, HIDDEN, AdapterContract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import Model, Outputs
from jnl.methods import batch_norm_adapt, tent
from jnl.nets import MLP, from_linen
from jnl.steps import linear

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(3.0, 2.0, (24, DIM)).astype(np.float32)


def normalized():
  return from_linen(MLP(CLASSES, (HIDDEN,), batch_norm=True), (DIM,))


class TestBatchNorm(AdapterContract):
  random = learns = False

  def make(self):
    return batch_norm_adapt(normalized())

  def trained(self, key):
    return normalized().init(key)


@pytest.mark.slow
class TestTent(AdapterContract):
  random = False

  def make(self):
    return tent(normalized(), optax.sgd(0.1, momentum=0.9))

  def trained(self, key):
    return normalized().init(key)


@functools.cache
def ran():
  """(start, after, outputs) of a step of TENT."""
  adapter = tent(normalized(), optax.adamw(0.01, weight_decay=0.5))
  start = adapter.init(*normalized().init(KEY))
  after, outputs = jax.jit(adapter.step)(start, {'x': X}, KEY)
  return start, after, outputs


def by_hand(params, x):
  """Logits of the network in float64, normalized by the batch."""
  h = np.float64(x) @ np.float64(params['Dense_0']['kernel'])
  h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
  bn, out = params['BatchNorm_0'], params['Dense_1']
  h = np.maximum(h * bn['scale'] + bn['bias'], 0)
  return h @ np.float64(out['kernel']) + out['bias']


def test_the_batch_normalizes_and_nothing_is_remembered():
  start, after, outputs = ran()
  wanted = by_hand(start.params, X)
  np.testing.assert_allclose(outputs.logits, wanted, atol=1e-5)
  chex.assert_trees_all_equal(start.stats, after.stats)
  adapter = batch_norm_adapt(normalized())
  state, same = adapter.step(
    adapter.init(start.params, start.stats), {'x': X}, KEY
  )
  np.testing.assert_allclose(same.logits, wanted, atol=1e-5)
  assert int(state.step) == 1


def test_tent_answers_first_and_moves_the_norms_alone():
  """Adam's first step is by the sign of the gradient, and decay of the rest."""
  start, after, outputs = ran()
  p = jax.nn.softmax(outputs.logits)
  entropy = -(p * jnp.log(p)).sum(1)
  np.testing.assert_allclose(outputs.aux['loss'], entropy, rtol=1e-5)
  assert outputs.aux['skipped'].max() == 0
  for name in ('Dense_0', 'Dense_1'):
    chex.assert_trees_all_equal(start.params[name], after.params[name])

  def mean_entropy(change):
    params = jax.tree.map(np.float64, start.params)
    params['BatchNorm_0'] = jax.tree.map(np.add, params['BatchNorm_0'], change)
    z = by_hand(params, X)
    z -= z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1).mean()

  norm = start.params['BatchNorm_0']
  for name in ('scale', 'bias'):
    for j in range(3):
      step = np.zeros(HIDDEN)
      step[j] = 1e-5
      zero = np.zeros(HIDDEN)
      slopes = [
        mean_entropy({'scale': zero, 'bias': zero, name: s})
        for s in (step, -step)
      ]
      slope = (slopes[0] - slopes[1]) / 2e-5
      moved = after.params['BatchNorm_0'][name][j] - norm[name][j]
      wanted = -0.01 * np.sign(slope) - 0.01 * 0.5 * norm[name][j]
      np.testing.assert_allclose(moved, wanted, rtol=1e-3)


def test_entropy_falls():
  adapter = tent(normalized(), optax.adam(0.01))
  step = jax.jit(adapter.step)
  state, values = adapter.init(*normalized().init(KEY)), []
  for _ in range(20):
    state, outputs = step(state, {'x': X}, KEY)
    values.append(float(outputs.aux['loss'].mean()))
  assert values[-1] < values[0] - 0.05


def group_normed():
  """A network that has a layer norm and no batch statistics."""

  def init(key):
    w = jax.random.normal(key, (DIM, CLASSES))
    norm = {'scale': jnp.ones(DIM), 'bias': jnp.zeros(DIM)}
    return {'LayerNorm_0': norm, 'head': w}, {}

  def apply(params, stats, x, keys, train):
    del keys, train
    x = x - x.mean(-1, keepdims=True)
    norm = params['LayerNorm_0']
    x = x / x.std(-1, keepdims=True) * norm['scale'] + norm['bias']
    return Outputs(x @ params['head'], x), stats

  return Model(init, apply)


def test_networks_without_batch_statistics():
  params, stats = group_normed().init(KEY)
  adapter = tent(group_normed(), optax.sgd(0.1))
  state, _ = adapter.step(adapter.init(params, stats), {'x': X}, KEY)
  assert np.any(state.params['LayerNorm_0']['scale'] != 1)
  np.testing.assert_array_equal(state.params['head'], params['head'])
  with pytest.raises(ValueError, match='no batch normalization'):
    batch_norm_adapt(group_normed()).init(params, stats)
  plain = linear(DIM, CLASSES)
  with pytest.raises(ValueError, match='norm_parameters'):
    tent(plain, optax.sgd(0.1)).init(*plain.init(KEY))
  with pytest.raises(TypeError, match=r'must be a jnl\.Model'):
    tent(MLP(2), optax.sgd(0.1))


def test_a_step_that_overflows_is_not_taken():
  """Loss and gradient are finite; in float16 the squares of Adam are zeros."""
  adapter = tent(normalized(), optax.adam(0.01))
  params, stats = jax.tree.map(np.float16, normalized().init(KEY))
  state = adapter.init(params, stats)
  after, outputs = adapter.step(state, {'x': np.float16(X)}, KEY)
  assert np.isfinite(outputs.logits).all()
  assert outputs.aux['skipped'].min() == 1
  chex.assert_trees_all_equal(state, after)


def test_batches_that_cannot_be():
  adapter = tent(normalized(), optax.sgd(0.1))
  state = adapter.init(*normalized().init(KEY))
  for bad, message in (
    ({'x': X[:1]}, 'at least 2 examples'),
    ({}, "lacks 'x'"),
    ({'x': X, 'weight': np.ones((len(X), 1))}, 'weight must be'),
    ({'x': X, 'index': np.arange(3)}, 'index must be'),
  ):
    with pytest.raises(ValueError, match=message):
      adapter.step(state, bad, KEY)
  nobody = {'x': X, 'weight': np.zeros(len(X))}
  after, outputs = adapter.step(state, nobody, KEY)
  chex.assert_trees_all_equal(state, after)
  assert outputs.aux['skipped'].min() == 1
