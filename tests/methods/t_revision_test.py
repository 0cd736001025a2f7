"""T-Revision as a method: what moves in each of its three stages."""

import functools

from contract import CLASSES, Contract, N, network, optimizer
from fixture_estimated import B, C, D, batch_of, log_softmax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import pack_rows
from jnl.methods import estimated_transition, t_revision
from jnl.steps import linear

KEY = jax.random.key(0)
SIZES = {'num_examples': B, 'num_classes': C}
RATE, SLOW = 0.5, 0.01
small = functools.partial(t_revision, linear(D, C), optax.sgd(RATE), **SIZES)


def twice(refit):
  """An estimate, and the beginning of its revision."""

  def update(state, tables, key):
    return refit.update(refit.update(state, tables, key), tables, key)

  return refit._replace(update=update)


@pytest.mark.slow
class TestContract(Contract):
  """Its third step is one of the revision."""

  def make(self):
    method = t_revision(
      network(),
      optimizer(),
      num_examples=N,
      num_classes=CLASSES,
      revision_tx=optax.adam(0.01),
    )
    return method._replace(refit=twice(method.refit))


def loss_of(flat, batch, transition, beta=None):
  """In float64, of network and revision one after the other; and beta."""
  net, revision = flat[: -C * C], flat[-C * C :].reshape(C, C)
  weights, bias = net[: D * C].reshape(D, C), net[D * C :]
  labels = batch['labels'][:-1]
  log_p = log_softmax(batch['x'][:-1].astype(np.float64) @ weights + bias)
  own = np.arange(B - 1), labels
  noisy = np.exp(log_p) @ (transition + revision)
  beta = np.exp(log_p[own]) / noisy[own] if beta is None else beta
  return -(beta * log_p[own]).mean(), beta


def flatten(params):
  parts = params.net['weights'], params.net['bias'], params.matrix
  return np.concatenate([np.float64(part).reshape(-1) for part in parts])


def gradient_of(loss, flat, h=1e-6):
  steps = h * np.eye(len(flat))
  return np.array([(loss(flat + d) - loss(flat - d)) / (2 * h) for d in steps])


def test_three_stages():
  """Weights without a gradient; then with one, by another optimizer."""
  revision_tx = optax.sgd(SLOW)
  method = small(warmup=2, revise=5, quantile=None, revision_tx=revision_tx)
  assert [e for e in range(9) if method.refit.when(e)] == [2, 5]
  batch = batch_of()

  @jax.jit
  def step(state):
    return method.step(state, batch, KEY)

  @jax.jit
  def refit(state):
    rows = method.refit.collect(state, batch, KEY)
    return method.refit.update(state, jax.tree.map(pack_rows, rows), KEY)

  states, metrics = [jax.jit(method.init)(KEY)], []
  for stage in range(3):
    if stage:
      states.append(refit(states[-1]))
    for _ in range(2):
      state, m = step(states[-1])
      states.append(state)
      metrics.append(m)
  init, _, one, estimated, _, two, revising, _, three = map(
    flatten, (state.params for state in states)
  )
  # Each refit leaves the network where it is, and T is estimated once.
  np.testing.assert_array_equal(one, estimated)
  np.testing.assert_array_equal(two, revising)
  found = np.asarray(states[3].extra.transition)
  for state in states[4:]:
    np.testing.assert_array_equal(state.extra.transition, found)
  assert not np.allclose(found, np.eye(C), atol=0.05)
  rows = np.exp(
    log_softmax(
      batch['x'][:-1] @ one[: D * C].reshape(D, C) + one[D * C : -C * C]
    )
  )
  np.testing.assert_allclose(found, rows[rows.argmax(0)], rtol=1e-4)
  # What the first step of each stage does, and no more.
  np.testing.assert_allclose(metrics[0]['loss'], np.log(C), rtol=1e-6)
  for before, after, transition, rate, full in (
    (init, flatten(states[1].params), np.eye(C), RATE, False),
    (estimated, flatten(states[4].params), found, RATE, False),
    (revising, flatten(states[7].params), found, SLOW, True),
  ):
    _, beta = loss_of(before, batch, transition)
    beta = None if full else beta

    def loss(flat, transition=transition, beta=beta):
      return loss_of(flat, batch, transition, beta)[0]

    expected = before - rate * gradient_of(loss, before)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
    moved = np.any(after[-C * C :])
    assert moved == full
  np.testing.assert_allclose(
    metrics[2]['loss'], loss_of(estimated, batch, found)[0], rtol=1e-4
  )
  total = found + three[-C * C :].reshape(C, C)
  np.testing.assert_allclose(estimated_transition(states[-1]), total, rtol=1e-6)
  np.testing.assert_allclose(
    metrics[5]['kept'],
    np.diag(found + flatten(states[7].params)[-C * C :].reshape(C, C)).mean(),
    rtol=1e-5,
  )


def test_both_optimizers_start_with_their_stage():
  """The schedule of the first one begins with the estimate."""
  counted = optax.sgd(optax.constant_schedule(0.1))
  method = t_revision(linear(D, C), counted, **SIZES)
  batch = batch_of()

  @jax.jit
  def counts():
    state, found = method.init(KEY), []
    for stage in range(3):
      if stage:
        rows = method.refit.collect(state, batch, KEY)
        tables = jax.tree.map(pack_rows, rows)
        state = method.refit.update(state, tables, KEY)
      state, _ = method.step(state, batch, KEY)
      opt = state.opt
      found.append(
        [
          opt.revising,
          optax.tree.get(opt.before, 'count'),
          optax.tree.get(opt.revision, 'count'),
        ]
      )
    return jnp.array(found), state.params.matrix

  found, matrix = counts()
  np.testing.assert_array_equal(found, [[0, 1, 0], [0, 1, 0], [1, 0, 1]])
  # By default Adam at 5e-7.
  np.testing.assert_allclose(np.abs(matrix), 5e-7, rtol=0.01)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'warmup': 0}, 'warmup must be at least 1'),
    ({'warmup': 4, 'revise': 4}, 'revise must exceed warmup = 4, got 4'),
    ({'quantile': 0.1}, 'quantile must leave some'),
  ],
)
def test_numbers_are_checked(change, match):
  with pytest.raises(ValueError, match=match):
    small(**change)
  with pytest.raises(TypeError, match='model must be'):
    t_revision('mlp', optax.sgd(RATE), **SIZES)
