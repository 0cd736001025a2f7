"""EasyLLP keeps the contract; for what it descends see llp_bp_test.py."""

from contract import Contract, bags, instance_network, optimizer
import pytest

from jnl.methods import easy_llp


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return easy_llp(instance_network(), optimizer(), prior=0.4)

  def arrays(self):
    return bags()
