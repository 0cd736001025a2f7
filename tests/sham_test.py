"""The test of a method of one's own: the contract, and a training."""

from contract import CLASSES, SHARDS, Contract, N, network, optimizer
import jax
import numpy as np
from sham import median_confidence, sham

from jnl.train import Stream, fit, scores


def make(shards=SHARDS):
  return sham(
    network(), optimizer(), num_examples=N, num_unlabeled=N, shards=shards,
    shards_u=shards,
  )  # fmt: skip


class TestContract(Contract):
  def make(self):
    return make()

  def streams(self):
    return {'u': 24}


def test_it_trains_on_both_streams_and_has_its_scores():
  arrays = {k: TestContract().arrays()[k] for k in ('x', 'labels')}
  fitted = fit(
    make(),
    arrays,
    jax.random.key(0),
    epochs=30,
    batch_size=16,
    streams={'u': Stream({'x': arrays['x']}, 24)},
    held_out={'test': arrays},
    scores={'test': scores.join(scores.accuracy, median_confidence)},
  )
  history = fitted.history
  assert history['test_accuracy'][-1] > 0.5 > 1 / CLASSES
  assert history['test_median_confidence'].shape == (30,)
  trust = np.asarray(fitted.state.extra.trust.rows).reshape(-1)[:N]
  assert 0.6 < trust.mean() < 0.8
