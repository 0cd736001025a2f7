"""Meta-Weight-Net keeps the contract; for its mathematics see meta_test.py."""

from contract import BATCH, SHARDS, Contract, N, network, optimizer
import optax
import pytest

from jnl.methods import mwn


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    weigher_tx = optax.sgd(0.1)
    return mwn(
      network(), optimizer(), weigher_tx, num_examples=N, shards=SHARDS
    )

  def streams(self):
    return {'meta': BATCH}
