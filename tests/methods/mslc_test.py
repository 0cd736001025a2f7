"""MSLC keeps the contract; for its mathematics see meta_test.py."""

from contract import BATCH, CLASSES, SHARDS, Contract, N, network, optimizer
import jax.numpy as jnp
import optax
import pytest

from jnl.base import Model, Outputs
from jnl.methods import mslc


def sloped():
  """The smallest weigher; that of the paper is in the contract of mwn."""
  return Model(
    lambda key: (jnp.ones(1), {}),
    lambda params, stats, x, keys, train: (Outputs(x * params, x), stats),
  )


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
      weigher=sloped(),
      weigher_tx=optax.sgd(0.1),
      shards=SHARDS,
    )

  def streams(self):
    return {'meta': BATCH}
