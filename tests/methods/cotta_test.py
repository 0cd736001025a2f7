"""CoTTA, beside the golden checks of its steps."""

import functools

import chex
from contract import CLASSES, DIM, HIDDEN, AdapterContract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import Model, Outputs
from jnl.methods import confidence_quantile, cotta
from jnl.nets import MLP, from_linen
from jnl.steps import linear

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(24, DIM)).astype(np.float32)


def normalized():
  return from_linen(MLP(CLASSES, (HIDDEN,), batch_norm=True), (DIM,))


def noisy(keys, x):
  draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)
  return x + 0.1 * jax.vmap(draw)(keys)


@pytest.mark.slow
class TestContract(AdapterContract):
  def make(self):
    return cotta(*(normalized(), optax.adam(0.01), noisy), views=3, restore=0.1)

  def trained(self, key):
    return normalized().init(key)


def step_of(model, **options):
  adapter = cotta(model, optax.sgd(0.1), noisy, **options)
  state = adapter.init(*model.init(KEY))
  return state, *jax.jit(adapter.step)(state, {'x': X}, KEY)


def test_logits_are_averaged_and_views_come_from_the_index():
  start, _, outputs = step_of(linear_drawn(), views=4)
  assert outputs.aux['unsure'].min() == 1
  assert outputs.aux['confidence'].max() < 1

  # A linear network: the mean of logits is the logits of the mean.
  def mean_view(i):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(KEY, 1), jnp.arange(len(X))
    )
    return noisy(jax.vmap(jax.random.fold_in, (0, None))(keys, i), X)

  x = np.mean([mean_view(i) for i in range(4)], axis=0)
  wanted = x @ start.params['w']
  np.testing.assert_allclose(outputs.logits, wanted, atol=1e-5)
  np.testing.assert_allclose(outputs.features, x, atol=1e-6)


def linear_drawn():
  """A linear network, with a number in its parameters that is no weight."""

  def init(key):
    return {'w': jax.random.normal(key, (DIM, CLASSES)), 'n': jnp.int32(7)}, {}

  def apply(params, stats, x, keys, train):
    del keys, train
    return Outputs(x @ params['w'], x), stats

  return Model(init, apply)


@pytest.mark.parametrize('symmetric', [False, True])
def test_the_step_by_hand(symmetric):
  """A sure batch: the teacher is the student at first, and answers from x."""
  start, after, outputs = step_of(
    *(linear_drawn(),),
    threshold=0.0,
    restore=0.0,
    decay=0.75,
    symmetric=symmetric,
  )
  w = start.params['w']
  np.testing.assert_allclose(outputs.logits, X @ w, rtol=1e-5, atol=1e-5)
  assert outputs.aux['unsure'].max() == 0
  p = jax.nn.softmax(outputs.logits)
  np.testing.assert_allclose(
    *(outputs.aux['loss'], -(p * jnp.log(p)).sum(1)), rtol=1e-4
  )

  def loss(w):
    z = X @ w
    own = -(p * jax.nn.log_softmax(z)).sum(1).mean()
    other = -(jax.nn.softmax(z) * jnp.log(p)).sum(1).mean()
    return (own + other) / 2 if symmetric else own

  wanted = w - 0.1 * jax.grad(loss)(w)
  np.testing.assert_allclose(after.params['w'], wanted, atol=1e-6)
  follows = 0.75 * w + 0.25 * wanted
  np.testing.assert_allclose(after.extra.teacher['w'], follows, atol=1e-6)
  np.testing.assert_array_equal(after.extra.source['w'], w)
  assert after.params['n'] == after.extra.teacher['n'] == 7


def test_restoring_all_and_none():
  """The teacher follows the student that was not restored."""
  everything, nothing = (
    step_of(normalized(), views=2, restore=rate, decay=0.5)
    for rate in (1.0, 0.0)
  )
  start, after, _ = everything
  chex.assert_trees_all_equal(start.params, after.params)
  _, free, _ = nothing
  chex.assert_trees_all_close(
    after.extra.teacher, free.extra.teacher, atol=1e-6
  )
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(start.params, free.params)


@functools.cache
def drift(restore):
  """|student - source| after 400 steps of a rate that is large."""
  model = normalized()
  adapter = cotta(*(model, optax.adam(1e-3), noisy), views=2, restore=restore)

  def body(state, key):
    x = X + jax.random.normal(key, X.shape)
    return adapter.step(state, {'x': x}, key)[0], ()

  state = adapter.init(*model.init(KEY))
  keys = jax.random.split(KEY, 400)
  state, _ = jax.jit(lambda s: jax.lax.scan(body, s, keys))(state)
  moved = jax.tree.map(jnp.subtract, state.params, state.extra.source)
  return sum(float(jnp.sum(a**2)) for a in jax.tree.leaves(moved)) ** 0.5


def test_restoring_keeps_the_student_near_the_source():
  assert drift(0.01) < 0.9 * drift(0.0)


def test_what_a_source_is_sure_of():
  model = normalized()
  params, stats = model.init(KEY)
  x = np.random.default_rng(1).normal(size=(1500, DIM)).astype(np.float32)
  logits = model.apply(params, stats, x, None, False)[0].logits
  sure = jax.nn.softmax(logits).max(1)
  for q in (0.0, 0.05, 1.0):
    found = confidence_quantile(model, params, stats, x, q)
    np.testing.assert_allclose(found, np.quantile(sure, q), rtol=1e-6)
  with pytest.raises(ValueError, match='q must lie'):
    confidence_quantile(model, params, stats, x, 2)
  with pytest.raises(ValueError, match='x must have'):
    confidence_quantile(model, params, stats, x[:0])


def test_arguments_that_cannot_be():
  model, tx = linear(DIM, CLASSES), optax.sgd(0.1)
  for name in ('decay', 'restore', 'threshold'):
    with pytest.raises(ValueError, match=f'{name} must lie'):
      cotta(model, tx, noisy, **{name: 1.5})
  with pytest.raises(ValueError, match='views must be'):
    cotta(model, tx, noisy, views=0)
  with pytest.raises(TypeError, match='augment must be'):
    cotta(model, tx, None)
  adapter = cotta(model, tx, noisy, views=1)
  with pytest.raises(TypeError, match='key must be made'):
    adapter.step(adapter.init(*model.init(KEY)), {'x': X}, 0)
