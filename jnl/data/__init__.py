"""Arrays in, batches out. The only room of jnl that imports TFDS and Grain."""

from jnl.data.batches import (
  check_arrays,
  check_labels,
  epoch_order,
  index_order,
  take_batch,
)
from jnl.data.datasets import Dataset, Examples, check_name, digits, load

__all__ = [
  'Dataset',
  'Examples',
  'check_arrays',
  'check_labels',
  'check_name',
  'digits',
  'epoch_order',
  'index_order',
  'load',
  'take_batch',
]
