"""L2RW keeps the contract; for its mathematics see meta_test.py."""

from contract import BATCH, SHARDS, EveryMode, N, network
import optax

from jnl.methods import l2rw


class TestContract(EveryMode):
  def make(self):
    # Weights come from inner products that cancel; without the momentum, which
    # would keep the sum of their roundings.
    return l2rw(network(), optax.sgd(0.1), num_examples=N, shards=SHARDS)

  def streams(self):
    return {'meta': BATCH}
