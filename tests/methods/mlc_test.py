"""Meta label correction keeps the contract; see meta_test.py for the rest."""

from contract import (
  BATCH,
  CLASSES,
  HIDDEN,
  SHARDS,
  Contract,
  N,
  network,
  optimizer,
)
import pytest

from jnl import meta
from jnl.methods import mlc


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return mlc(
      network(),
      optimizer(),
      num_examples=N,
      num_features=HIDDEN,
      num_classes=CLASSES,
      gradient_steps=2,
      corrector=meta.corrector(HIDDEN, CLASSES, embedding=3, hidden=(4,)),
      shards=SHARDS,
    )

  def streams(self):
    return {'meta': BATCH}
