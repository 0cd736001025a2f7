"""Averaged methods: the average, and that training goes on without it."""

import functools

from contract import SHARDS, Contract, N, network, optimizer
from fixture_methods import co_divide
import jax
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


DECAYS = (0.0, 0.8, 1.0)


@functools.cache
def ran():
  """States of the plain method, of an averaged one, of several decays at once.

  The first one, and those after each of three steps.
  """
  inner = plain()
  init = jax.jit(inner.init)

  def walk(step, state):
    states, step = [state], jax.jit(step)
    for _ in range(3):
      states.append(step(states[-1], BATCH, KEY)[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

  def step(state, batch, key, decay=0.8):
    return averaged(inner, decay=decay).step(state, batch, key)

  def swept(states, batch, key):
    each = lambda state, decay: step(state, batch, key, decay)
    return jax.vmap(each)(states, np.float32(DECAYS))

  first = init(KEY)
  started = first._replace(extra=Averaged(first.params, ()))
  several = jax.tree.map(lambda a: np.stack([a] * len(DECAYS)), started)
  states = walk(swept, several)
  by_decay = jax.tree.map(lambda a: a.swapaxes(0, 1), states)
  return walk(inner.step, first), walk(step, started), by_decay


def at(states, *place):
  return jax.tree.map(lambda a: a[place], states)


def equal(a, b, rtol=0.0):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_the_average_starts_where_training_does():
  start = jax.jit(averaged(plain()).init)(KEY)
  assert isinstance(start.extra, Averaged)
  equal(start.extra.params, start.params)


def test_the_average_follows_and_training_does_not_know():
  plainly, found, _ = ran()
  equal(plainly, student(found), 1e-6)
  average = at(plainly, 0).params
  for i in range(4):
    params = at(plainly, i).params
    average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, params)
    equal(average, at(found, i).extra.params, 1e-5)


def test_predicts_with_the_average_and_current_statistics():
  inner = plain()
  method = averaged(inner, decay=0.8)

  @jax.jit
  def program(state):
    with_average = student(state)._replace(params=state.extra.params)
    return (
      inner.predict(with_average, BATCH['x']),
      method.predict(state, BATCH['x']),
      inner.predict(student(state), BATCH['x']),
    )

  expected, found, of_student = jax.device_get(program(at(ran()[1], -1)))
  equal(expected, found)
  assert np.abs(found.logits - of_student.logits).max() > 1e-3


@pytest.mark.parametrize(('decay', 'follows'), [(0.0, -1), (1.0, 0)])
def test_limits(decay, follows):
  states = at(ran()[2], DECAYS.index(decay))
  equal(at(states, -1).extra.params, at(states, follows).params)


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
  state = at(ran()[1], -1)
  found, expected = jax.jit(
    lambda state: (
      method.refit.collect(state, BATCH, KEY),
      inner.predict(student(state), BATCH['x']).logits,
    )
  )(state)
  equal(found, expected)
  new = method.refit.update(state, 10, KEY)
  assert new.step == 13
  assert isinstance(new.extra, Averaged)
  equal(new.extra.params, state.extra.params)
  assert [method.refit.when(epoch) for epoch in (3, 4)] == [False, True]
  assert averaged(inner).refit is None


def test_decay_is_checked_and_may_be_swept():
  with pytest.raises(ValueError, match='decay'):
    averaged(plain(), decay=1.1)
  _, alone, swept = ran()
  equal(at(swept, DECAYS.index(0.8)), alone, 1e-4)
  averages = [at(swept, i, -1).extra.params for i in (0, 1)]
  leaves = zip(*map(jax.tree.leaves, averages), strict=True)
  assert max(np.abs(a - b).max() for a, b in leaves) > 1e-3


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    method = co_divide(network(), optimizer(), N, SHARDS)
    return averaged(method, decay=0.9)
