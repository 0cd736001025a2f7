"""Forward correction as a method: its estimate, and what starts again."""

import functools

from contract import CLASSES, Contract, N, network, optimizer
from fixture_estimated import B, C, D, batch_of, log_softmax, truth_found
import jax
import numpy as np
import optax
import pytest

from jnl.base import pack_rows
from jnl.methods import estimated_transition, forward_t
from jnl.steps import linear

KEY = jax.random.key(0)
SIZES = {'num_examples': B, 'num_classes': C}
TX = optax.sgd(0.5, momentum=0.9)
small = functools.partial(forward_t, linear(D, C), TX, **SIZES)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return forward_t(
      network(), optimizer(), num_examples=N, num_classes=CLASSES
    )


def test_anchors_are_read_and_a_new_network_starts():
  """Of cross-entropy before; a row of weight 0 leaves no trace."""
  method, batch = small(warmup=3, quantile=None), batch_of()
  assert [e for e in range(9) if method.refit.when(e)] == [3]

  @jax.jit
  def run(batch):
    start = method.init(KEY)
    first, before = method.step(start, batch, KEY)
    logits = method.predict(first, batch['x']).logits
    rows = method.refit.collect(first, batch, KEY)
    tables = jax.tree.map(functools.partial(pack_rows, shards=5), rows)
    again = method.refit.update(first, tables, KEY)
    return start, first, before, logits, again, method.step(again, batch, KEY)

  start, first, before, z, again, (last, after) = jax.device_get(run(batch))
  labels = batch['labels'][:-1]
  np.testing.assert_allclose(before['loss'], np.log(C), rtol=1e-6)
  assert before['kept'] == 1
  assert before['guessed'] == 0
  assert np.any(first.params['weights'])
  probs = np.exp(log_softmax(z[:-1]))
  expected = probs[probs.argmax(0)]
  found = again.extra.transition
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_array_equal(
    again.extra.support, np.bincount(probs.argmax(1), minlength=C)
  )
  np.testing.assert_array_equal(estimated_transition(again), found)
  fresh = (start.params, start.opt), (again.params, again.opt)
  jax.tree.map(np.testing.assert_array_equal, *fresh)
  assert (first.step, again.step, last.step) == (1, 1, 2)
  noisy = np.full(C, 1 / C) @ found
  np.testing.assert_allclose(
    after['loss'], -np.log(noisy)[labels].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(after['kept'], np.diag(found).mean(), rtol=1e-6)
  for value, label in (np.inf, -1), (0.0, 1):
    batch['x'][-1], batch['labels'][-1] = value, label
    other = jax.device_get(run(batch))
    jax.tree.map(
      np.testing.assert_array_equal, other[-2:], (again, (last, after))
    )


def test_classes_that_are_nobodys_likeliest_are_counted():
  """A network that has diverged shows in T."""
  method, batch = small(quantile=None), batch_of()

  @jax.jit
  def run(bias, batch):
    state = method.init(KEY)
    params = {**state.params, 'bias': bias}
    rows = method.refit.collect(state._replace(params=params), batch, KEY)
    state = method.refit.update(state, jax.tree.map(pack_rows, rows), KEY)
    return method.step(state, batch, KEY)

  state, metrics = run(np.float32([0, 9, 0]), batch)
  assert state.extra.support.tolist() == [0, B - 1, 0]
  np.testing.assert_allclose(metrics['guessed'], 2 / 3, rtol=1e-6)
  assert np.isfinite(metrics['loss'])
  state, metrics = run(np.float32([0, np.nan, 0]), batch)
  assert np.isnan(state.extra.transition).all()
  assert np.isnan(metrics['kept'])


def test_a_matrix_may_be_given():
  given = np.array([[0.5, 0.5, 0], [0, 1, 0], [0.25, 0, 0.75]])
  method, batch = small(transition=given), batch_of()
  assert method.refit is None
  state, metrics = jax.jit(method.step)(method.init(KEY), batch, KEY)
  np.testing.assert_array_equal(estimated_transition(state), given)
  noisy = np.full(C, 1 / C) @ given
  expected = -np.log(noisy)[batch['labels'][:-1]].mean()
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  assert metrics['kept'] == 0.75
  assert metrics['guessed'] == 0


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'transition': np.eye(2)}, r'transition must be \[c, c\] = \[3, 3\]'),
    (
      {'transition': np.full((3, 3), 0.5)},
      'transition must have rows that sum',
    ),
    ({'warmup': 0}, 'warmup must be at least 1'),
    ({'quantile': 0.5}, r'quantile .* each of 3 classes, so lie above 0\.66'),
    ({'quantile': 1.5}, r'quantile must lie in \(0, 1\]'),
    ({'num_classes': 1}, 'num_classes must be at least 2'),
  ],
)
def test_numbers_are_checked(change, match):
  with pytest.raises(ValueError, match=match):
    small(**change)


def test_what_is_no_label_no_network_and_no_such_state_is_named():
  method, batch = small(), batch_of()
  batch['labels'] = batch['labels'][:, None]
  state = jax.eval_shape(method.init, KEY)
  with pytest.raises(ValueError, match='labels'):
    jax.eval_shape(method.step, state, batch, KEY)
  with pytest.raises(TypeError, match='model must be'):
    forward_t('mlp', TX, **SIZES)
  with pytest.raises(TypeError, match='no transition matrix'):
    estimated_transition(state._replace(extra=()))


@pytest.mark.slow
def test_the_matrix_comes_near_the_truth():
  """Digits, 40% flipped in pairs: 10 epochs, seen .10 of .4."""
  error, of_identity = truth_found(
    functools.partial(forward_t, num_examples=1200, num_classes=10)
  )
  assert error < 0.5 * of_identity
