"""Arrays in, batches out. The only room of jnl that imports TFDS and Grain."""

from jnl.data import augment
from jnl.data.batches import (
  check_arrays,
  check_labels,
  epoch_order,
  index_order,
  take_batch,
)
from jnl.data.datasets import (
  Dataset,
  digits,
  from_arrays,
  load,
  published_order,
)
from jnl.data.files import Examples, human_labels

__all__ = [
  'Dataset',
  'Examples',
  'augment',
  'check_arrays',
  'check_labels',
  'digits',
  'epoch_order',
  'from_arrays',
  'human_labels',
  'index_order',
  'load',
  'published_order',
  'take_batch',
]
