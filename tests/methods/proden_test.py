"""PRODEN keeps the contract; its loss is tested with those of sets."""

from contract import CLASSES, SHARDS, Contract, N, network, optimizer
import pytest

from jnl.methods import proden


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return proden(
      network(), optimizer(), num_examples=N, num_classes=CLASSES, shards=SHARDS
    )
