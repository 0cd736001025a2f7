"""DLLP keeps the contract; for what it descends see llp_bp_test.py."""

from contract import EveryMode, bags, instance_network, optimizer

from jnl.methods import dllp


class TestContract(EveryMode):
  def make(self):
    return dllp(instance_network(), optimizer())

  def arrays(self):
    return bags()
