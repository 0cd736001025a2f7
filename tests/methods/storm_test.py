"""STORM keeps the contract; for its mathematics see meta_test.py."""

from contract import BATCH, CLASSES, SHARDS, Contract, N, network
import optax
import pytest

from jnl.methods import storm


@pytest.mark.slow
class TestContract(Contract):
  # It remembers rows by their place in a batch, and takes batches of one size.
  pads = False

  def make(self):
    # Losses are sums, so that a rate is that of an example; and divergences
    # magnify roundings, of which Adam would make steps.
    return storm(
      network(),
      optax.sgd(0.1 / BATCH),
      num_examples=N,
      num_classes=CLASSES,
      batch_size=BATCH,
      rescaler_tx=optax.sgd(1e-3),
      shards=SHARDS,
    )

  def streams(self):
    return {'meta': BATCH}
