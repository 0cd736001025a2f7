"""Dual T as a method: what it estimates, and that rows may be missing."""

import functools

from contract import CLASSES, Contract, N, network, optimizer
from fixture_estimated import B, C, D, batch_of, log_softmax, truth_found
import jax
import numpy as np
import optax
import pytest

from jnl.base import pack_rows
from jnl.methods import dual_t, estimated_transition
from jnl.steps import linear

KEY = jax.random.key(0)
SIZES = {'num_examples': B, 'num_classes': C}
small = functools.partial(dual_t, linear(D, C), optax.sgd(0.5), **SIZES)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return dual_t(network(), optimizer(), num_examples=N, num_classes=CLASSES)


def test_anchors_are_multiplied_by_counts_and_a_new_network_starts():
  """Row B - 1 has weight 0; nothing of it is counted, labels of uint8 are."""
  method, batch = small(warmup=2, quantile=None), batch_of()
  batch['labels'] = batch['labels'].astype(np.uint8)
  assert [e for e in range(9) if method.refit.when(e)] == [2]

  @jax.jit
  def run(batch):
    state, _ = method.step(method.init(KEY), batch, KEY)
    logits = method.predict(state, batch['x']).logits
    rows = method.refit.collect(state, batch, KEY)
    tables = jax.tree.map(functools.partial(pack_rows, shards=3), rows)
    new = method.refit.update(state, tables, KEY)
    return logits, new, method.step(new, batch, KEY)[1]

  z, state, metrics = jax.device_get(run(batch))
  probs, labels = np.exp(log_softmax(z[:-1])), batch['labels'][:-1]
  pairs = np.zeros((C, C))
  np.add.at(pairs, (probs.argmax(1), labels), 1)
  assert pairs.sum(1).all()
  shares = pairs / pairs.sum(1, keepdims=True)
  expected = probs[probs.argmax(0)] @ shares
  found = estimated_transition(state)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_array_equal(state.extra.support, pairs.sum(1))
  np.testing.assert_array_equal(state.params['weights'], 0)
  loss = -np.log(expected.mean(0))[labels].mean()
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  batch['x'][-1], batch['labels'][-1] = 1, 0
  jax.tree.map(np.testing.assert_array_equal, run(batch)[1], state)


def test_labels_that_cannot_be_counted_are_refused_at_once():
  method, batch = small(), batch_of()
  state = jax.eval_shape(method.init, KEY)
  for labels in np.ones((B, C)) / C, batch['labels'][:, None]:
    with pytest.raises(ValueError, match=r'labels must be \[b\]'):
      jax.eval_shape(method.step, state, {**batch, 'labels': labels}, KEY)
  with pytest.raises(ValueError, match='quantile'):
    small(quantile=0.0)


@pytest.mark.slow
def test_the_matrix_comes_near_the_truth():
  """Digits, 40% flipped in pairs, 30 epochs: later than for anchors alone."""
  error, of_identity = truth_found(
    functools.partial(dual_t, num_examples=1200, num_classes=10), epochs=30
  )
  assert error < 0.5 * of_identity
