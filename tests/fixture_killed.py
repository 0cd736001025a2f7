"""A training run in a process of its own, to be killed: FOLDER OUT EPOCHS."""

import os
import sys

# Before jax starts, and not where pytest imports this to look for doctests: it
# would hold all tests of that process to one core.
if __name__ == '__main__':
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import numpy as np
import optax

from jnl.base import data_shards
from jnl.methods import elr
from jnl.nets import MLP, from_linen
from jnl.train import Checkpoint, fit

N, BATCH = 160, 16


def main(folder, out, epochs):
  rng = np.random.default_rng(0)
  data = {'x': rng.normal(size=(N, 6)).astype(np.float32)}
  data['labels'] = rng.integers(0, 3, N)
  model = from_linen(MLP(3, (16,), batch_norm=True, dropout=0.1), (6,))
  shards = data_shards(N, BATCH)
  method = elr(
    model, optax.adam(1e-2), num_examples=N, num_classes=3, shards=shards
  )
  print('training', flush=True)
  fitted = fit(
    method,
    data,
    jax.random.key(0),
    epochs=epochs,
    batch_size=BATCH,
    held_out={'train': data},
    log=f'{out}.jsonl',
    checkpoint=Checkpoint(folder, resume=True, every=4),
  )
  leaves = jax.tree.leaves(fitted.state)
  arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
  np.savez(out, **arrays, **fitted.history)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
