"""Averaged methods: the average, and that training goes on without it."""

from contract import SHARDS, Contract, N, network, optimizer
from fixture_methods import co_divide
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import Method, Refit
from jnl.nets import MLP, from_linen
from jnl.steps import supervised
from jnl.teacher import Averaged, averaged, student

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
  'x': RNG.normal(size=(6, 4)).astype(np.float32),
  'labels': RNG.integers(0, 3, 6),
  'index': np.arange(6),
  'weight': np.ones(6, np.float32),
}


def plain():
  net = MLP(3, (5,), batch_norm=True)
  return supervised(losses.ce, from_linen(net, (4,)), optax.sgd(0.5))


def steps(method, count=3):
  states = [jax.jit(method.init)(KEY)]
  step = jax.jit(method.step)
  for _ in range(count):
    states.append(step(states[-1], BATCH, KEY)[0])
  return states


def equal(a, b, rtol=0.0):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_the_average_follows_and_training_does_not_know():
  inner = plain()
  expected, found = steps(inner), steps(averaged(inner, decay=0.8))
  average = expected[0].params
  for e, f in zip(expected, found, strict=True):
    equal(e, student(f), 1e-6)
    average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, e.params)
    equal(average, f.extra.params, 1e-5)


def test_predicts_with_the_average_and_current_statistics():
  inner = plain()
  method = averaged(inner, decay=0.8)
  state = steps(method)[-1]
  with_average = student(state)._replace(params=state.extra.params)
  expected = inner.predict(with_average, BATCH['x'])
  found = method.predict(state, BATCH['x'])
  equal(expected, found)
  assert np.abs(
    found.logits - inner.predict(student(state), BATCH['x']).logits
  ).max() > 1e-3  # fmt: skip


@pytest.mark.parametrize(('decay', 'follows'), [(0.0, -1), (1.0, 0)])
def test_limits(decay, follows):
  states = steps(averaged(plain(), decay=decay))
  equal(states[-1].extra.params, states[follows].params)


def test_the_inner_refit_sees_and_changes_what_is_trained():
  inner = plain()

  def collect(state, batch, key):
    assert state.extra == ()
    return inner.predict(state, batch['x']).logits

  def update(state, tables, key):
    assert state.extra == ()
    return state._replace(step=state.step + tables)

  method = averaged(
    Method(*inner[:3], Refit(collect, update, lambda epoch: epoch > 3))
  )
  state = steps(method)[-1]
  found = method.refit.collect(state, BATCH, KEY)
  equal(found, inner.predict(student(state), BATCH['x']).logits)
  new = method.refit.update(state, 10, KEY)
  assert new.step == 13
  assert isinstance(new.extra, Averaged)
  equal(new.extra.params, state.extra.params)
  assert [method.refit.when(epoch) for epoch in (3, 4)] == [False, True]
  assert averaged(inner).refit is None


def test_decay_is_checked_and_may_be_swept():
  with pytest.raises(ValueError, match='decay'):
    averaged(plain(), decay=1.1)

  def logits(decay):
    method = averaged(plain(), decay=decay)
    state, _ = method.step(method.init(KEY), BATCH, KEY)
    return method.predict(state, BATCH['x']).logits

  found = jax.jit(jax.vmap(logits))(jnp.array([0.0, 0.9]))
  equal(found[1], jax.jit(logits)(0.9), 1e-4)
  assert np.abs(found[0] - found[1]).max() > 1e-3


class TestContract(Contract):
  def make(self):
    method = co_divide(network(), optimizer(), N, SHARDS)
    return averaged(method, decay=0.9)
