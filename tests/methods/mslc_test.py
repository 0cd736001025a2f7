"""MSLC keeps the contract; for its mathematics see meta_test.py."""

from contract import BATCH, CLASSES, SHARDS, Contract, N, network, optimizer
import optax
import pytest

from jnl.methods import mslc


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return mslc(
      network(),
      optimizer(),
      optax.sgd(0.1),
      num_examples=N,
      num_classes=CLASSES,
      warmup=1,
      shards=SHARDS,
    )

  def streams(self):
    return {'meta': BATCH}
