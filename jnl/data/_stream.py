"""Batches from the host for data that do not fit on the devices, by Grain.

Whole batches are read, along the same orders as on the devices, so that both
give the same numbers.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import multiprocessing
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from jnl.base import PAD, Batch, check
from jnl.data._batches import index_order

Batches = Callable[[int, int], Iterator[Batch]]


@contextlib.contextmanager
def streaming(
  arrays: Mapping[str, np.ndarray],
  order: Callable[[int], np.ndarray],
  *,
  shards: int,
  batch_size: int,
  steps: int,
  epochs: int,
  workers: int = 0,
) -> Iterator[Batches]:
  """Reads batches ahead of those who train on them.

  Args:
    arrays: [n, ...] by name. An `np.memmap` is opened anew by every worker;
      other arrays are copied to it.
    order: `epoch -> [shards, m]`, as from `epoch_order`.
    shards: of the data.
    batch_size: a multiple of the shards.
    steps: in an epoch, that an order is for.
    epochs: how many orders there are.
    workers: processes of Grain that read, or 0 for threads of this one.

  Yields:
    `(epoch, first) -> batches` from step `first` of the epoch on; going on from
    where the last one stopped costs nothing. Epoch -1 is in index order, padded
    with zeros, and ends.

  Raises:
    ValueError: if `workers` is negative.
  """
  check(workers >= 0, f'stream must not be negative, got {workers}')
  n = len(next(iter(arrays.values())))
  reopened = {name: _Reopened.of(values) for name, values in arrays.items()}
  with tempfile.TemporaryDirectory(prefix='jnl-orders-') as name:
    folder = pathlib.Path(name)
    position = -1
    batches: Iterator[Batch] = iter(())

    def read(first: int, last: int, per_epoch: int) -> Iterator[Batch]:
      source = _Source(reopened, folder, first, last, per_epoch, batch_size)
      return _pipeline(source, workers)

    def going_on() -> Iterator[Batch]:
      nonlocal position
      while position < epochs * steps:
        _write_orders(folder, order, position // steps, epochs)
        batch = next(batches)
        position += 1
        yield batch

    def stream(epoch: int, first: int) -> Iterator[Batch]:
      nonlocal position, batches
      if epoch < 0:
        natural = index_order(n, shards, batch_size)
        np.save(folder / '-1.npy', natural)
        count = natural.size // batch_size
        return read(-count, 0, count)
      if position != epoch * steps + first:
        position = epoch * steps + first
        _write_orders(folder, order, epoch, epochs)
        _close(batches)
        batches = read(position, epochs * steps, steps)
      return going_on()

    try:
      yield stream
    finally:
      _close(batches)


def _write_orders(
  folder: pathlib.Path,
  order: Callable[[int], np.ndarray],
  epoch: int,
  epochs: int,
) -> None:
  """Workers read ahead, so the next epoch's order is there as well."""
  for e in (epoch, epoch + 1):
    if e < epochs and not (folder / f'{e}.npy').exists():
      np.save(folder / f'.{e}.npy', np.asarray(order(e)))
      (folder / f'.{e}.npy').rename(folder / f'{e}.npy')
  (folder / f'{epoch - 1}.npy').unlink(missing_ok=True)


def check_main_guard() -> None:
  """Raises in a worker that is still importing the script that started it.

  Workers import it before they work. What stands at its top level runs again
  then, and would train, and start workers, in every one of them.

  Raises:
    RuntimeError: saying what to write.
  """
  importing = getattr(multiprocessing.current_process(), '_inheriting', False)
  check(
    not importing,
    'fit is called at the top level of a script that starts worker processes '
    '(stream=1 or more), and every worker runs that script again: put what '
    "trains under `if __name__ == '__main__':`, or take stream=0",
    RuntimeError,
  )


def _close(batches: Iterator[Batch]) -> None:
  """Ends the workers of a pipeline, which may be reading ahead."""
  if hasattr(batches, 'close'):
    batches.close()


class _Reopened(NamedTuple):
  """An array as it travels to a worker: a file that is mapped keeps its place.

  Pickling an `np.memmap` would copy all of it.
  """

  values: np.ndarray | None
  file: tuple[Any, ...] = ()

  @classmethod
  def of(cls, values: np.ndarray) -> '_Reopened':
    if isinstance(values, np.memmap) and values.filename is not None:
      return cls(
        None, (values.filename, values.dtype, 'r', values.offset, values.shape)
      )
    return cls(np.asarray(values))

  def open(self) -> np.ndarray:
    return np.memmap(*self.file) if self.values is None else self.values


class _Source:
  """Batches by number, for Grain."""

  def __init__(
    self,
    arrays: Mapping[str, _Reopened],
    folder: pathlib.Path,
    first: int,
    last: int,
    per_epoch: int,
    batch_size: int,
  ):
    self._arrays = arrays
    self._folder = folder
    self._first = first
    self._count = last - first
    self._per_epoch = per_epoch
    self._batch_size = batch_size
    self._opened: dict[str, np.ndarray] = {}
    self._order: tuple[int, np.ndarray] = (-2, np.zeros((1, 0), np.int32))

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, number: int) -> Batch:
    epoch, i = divmod(self._first + number, self._per_epoch)
    order = self._order_of(epoch)
    columns = self._batch_size // order.shape[0]
    index = order[:, i * columns : (i + 1) * columns].reshape(-1)
    rows = np.where(index == PAD, 0, index)
    if not self._opened:
      self._opened = {name: a.open() for name, a in self._arrays.items()}
    batch = {name: values[rows] for name, values in self._opened.items()}
    for values in batch.values():
      values[index == PAD] = 0
    return batch

  def _order_of(self, epoch: int) -> np.ndarray:
    last, order = self._order
    if last != epoch:
      path = self._folder / f'{epoch}.npy'
      while not path.exists():  # far ahead of training
        time.sleep(0.01)
      order = np.load(path)
      self._order = epoch, order
    return order


def _pipeline(source: _Source, workers: int) -> Iterator[Batch]:
  from absl import flags
  import grain  # slow to import

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's workers ask for flags
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  batches = grain.MapDataset.source(source).to_iter_dataset(options)
  if workers:
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=4
      )
    )
  return iter(batches)
