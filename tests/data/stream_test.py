"""Streamed from the host, the same batches come as from the devices."""

import subprocess
import sys

import chex
from cost import slow
from fixture_methods import co_divide, cross_entropy, linear
import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest

from jnl.base import PAD, Refit, data_shards, unpack_rows
from jnl.data import epoch_order, index_order
from jnl.data._stream import streaming
from jnl.nets import MLP, from_linen
from jnl.steps import supervised
from jnl.train import Checkpoint, fit

N, BATCH, EPOCHS = 62, 16, 3
SHARDS = data_shards(N, BATCH)
X = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
DATA = {'x': X, 'labels': (X[:, 0] > 0).astype(np.int32)}


def order(epoch):
  return np.asarray(epoch_order(jax.random.key(epoch), N, SHARDS))


def expected(epoch, i):
  index = order(epoch) if epoch >= 0 else index_order(N, SHARDS, BATCH)
  columns = BATCH // SHARDS
  index = index[:, i * columns : (i + 1) * columns].reshape(-1)
  rows = X[np.where(index == PAD, 0, index)]
  return np.where((index == PAD)[:, None], 0, rows)


def mapped(tmp_path):
  """The inputs as a file that is mapped into memory."""
  path = tmp_path / 'x.bin'
  X.tofile(path)
  return {**DATA, 'x': np.memmap(path, np.float32, 'r', shape=X.shape)}


FROM_ANYWHERE = ((1, 2), (2, 0), (0, 0), (0, 1), (-1, 0), (0, 2))


@pytest.mark.parametrize(
  ('workers', 'places'),
  [
    (0, FROM_ANYWHERE),
    slow(1, ((0, 1), (1, 0))),  # going on: the worker starts once
    pytest.param(2, ((1, 2), (2, 0), (-1, 0)), marks=pytest.mark.slow),
  ],
)
def test_batches_come_in_order_from_anywhere(workers, places, tmp_path):
  with streaming(
    mapped(tmp_path),
    order,
    shards=SHARDS,
    batch_size=BATCH,
    steps=N // BATCH,
    epochs=EPOCHS,
    workers=workers,
  ) as stream:
    steps = N // BATCH
    for epoch, first in places:
      batches = stream(epoch, first)
      count = -(-N // BATCH) if epoch < 0 else steps - first
      if (epoch, first) == (0, 0):
        count = 1  # and then from step 1 on
      for i in range(first, first + count):
        np.testing.assert_array_equal(next(batches)['x'], expected(epoch, i))


def refitted():
  """A linear model, moved between epochs by the rows of all examples."""

  def update(state, table, key):
    rows = jnp.arange(N) @ unpack_rows(table, N)
    return state._replace(params=state.params + 1e-3 * jnp.tanh(rows))

  collect = lambda state, batch, key: batch['x'] @ state.params + 0.1
  method = supervised(cross_entropy, linear(), optax.sgd(0.1))
  return method._replace(refit=Refit(collect, update))


def divided():
  return co_divide(from_linen(MLP(2, (16,)), (2,)), optax.sgd(0.1), N, SHARDS)


@pytest.mark.parametrize(
  ('make', 'devices'),
  [
    (refitted, 8),
    pytest.param(refitted, 1, marks=pytest.mark.slow),
    pytest.param(divided, 8, marks=pytest.mark.slow),
  ],
)
def test_a_streamed_run_is_the_run(make, devices, tmp_path):
  method = make()
  options = {'epochs': EPOCHS, 'batch_size': BATCH}
  options['devices'] = jax.devices()[:devices]
  on_device = fit(method, DATA, jax.random.key(0), **options)
  save = Checkpoint(tmp_path / 'run', every=5)
  streamed = fit(
    method, mapped(tmp_path), jax.random.key(0), stream=0, checkpoint=save,
    **options,
  )  # fmt: skip
  chex.assert_trees_all_close(on_device, streamed, atol=1e-6)
  (tmp_path / 'run' / '9').rename(tmp_path / 'last')
  resumed = fit(
    method, DATA, jax.random.key(0), stream=0, **options,
    checkpoint=save._replace(resume=True),
  )  # fmt: skip
  chex.assert_trees_all_close(on_device, resumed, atol=1e-6)


SCRIPT = """
import numpy as np, optax
import jax
from jnl.steps import supervised
from jnl.losses import ce
from jnl.nets import MLP, from_linen
from jnl.train import fit

data = {'x': np.zeros((8, 2), np.float32), 'labels': np.zeros(8, int)}
method = supervised(ce, from_linen(MLP(2, ()), (2,)), optax.sgd(0.1))
fit(method, data, jax.random.key(0), epochs=1, batch_size=8, stream=1)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
  (tmp_path / 'script.py').write_text(SCRIPT)
  done = subprocess.run(
    [sys.executable, tmp_path / 'script.py'],
    capture_output=True,
    text=True,
    env=processes.users(),
  )
  assert done.returncode != 0
  assert "put what trains under `if __name__ == '__main__':`" in done.stderr


def test_the_number_of_workers_is_checked():
  method = supervised(cross_entropy, linear(), optax.sgd(0.1))
  with pytest.raises(ValueError, match='stream must not be negative'):
    fit(method, DATA, jax.random.key(0), epochs=1, batch_size=16, stream=-1)
