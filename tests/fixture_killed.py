"""A training run in a process of its own, to be killed: FOLDER OUT EPOCHS."""

import os
import sys

# Before jax starts, and not where pytest imports this to look for doctests: it
# would hold all tests of that process to one core.
if __name__ == '__main__' and hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from fixture_train import CLASSES, network
import jax
import numpy as np
import optax

from jnl.base import data_shards
from jnl.methods import elr
from jnl.train import Checkpoint, fit

N, BATCH = 160, 16


def main(folder, out, epochs):
  """Trains on one device, and goes on from what is in the folder."""
  rng = np.random.default_rng(0)
  data = {'x': rng.normal(size=(N, 2)).astype(np.float32)}
  data['labels'] = rng.integers(0, CLASSES, N)
  method = elr(
    network(),
    optax.adam(1e-2),
    num_examples=N,
    num_classes=CLASSES,
    shards=data_shards(N, BATCH),
  )
  print('training', flush=True)
  fitted = fit(
    method,
    data,
    jax.random.key(0),
    epochs=epochs,
    batch_size=BATCH,
    held_out={'train': data},
    devices=jax.devices()[:1],
    log=f'{out}.jsonl',
    checkpoint=Checkpoint(folder, resume=True, every=4),
  )
  leaves = jax.tree.leaves(fitted.state)
  arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
  np.savez(out, **arrays, **fitted.history)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
