"""The test of a method of one's own: the contract, and a training."""

from contract import CLASSES, DIM, SHARDS, Contract, N, network, optimizer
import jax
import numpy as np
import pytest
from sham import median_confidence, sham

from jnl import Model, Outputs
from jnl.train import Stream, fit, scores


def make(model, shards=SHARDS):
  return sham(
    model, optimizer(), num_examples=N, num_unlabeled=N, shards=shards,
    shards_u=shards,
  )  # fmt: skip


def linear():
  """The quickest to compile."""
  return Model(
    lambda key: (jax.random.normal(key, (DIM, CLASSES)), {}),
    lambda params, stats, x, keys, train: (Outputs(x @ params, x), stats),
  )


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return make(network())

  def streams(self):
    return {'u': 24}


@pytest.mark.slow
def test_it_trains_on_both_streams_and_has_its_scores():
  x = TestContract().arrays()['x']
  arrays = {'x': x, 'labels': x[:, :CLASSES].argmax(1).astype(np.int32)}
  fitted = fit(
    make(linear()),
    arrays,
    jax.random.key(0),
    epochs=8,
    batch_size=16,
    streams={'u': Stream({'x': x}, 24)},
    held_out={'test': arrays},
    scores={'test': scores.join(scores.accuracy, median_confidence)},
  )
  history = fitted.history
  assert history['test_accuracy'][-1] > 0.5 > 1 / CLASSES
  assert history['test_median_confidence'].shape == (8,)
  trust = np.asarray(fitted.state.extra.trust.rows).reshape(-1)[:N]
  assert 0.6 < trust.mean() < 0.8
