"""Arrays in, batches out. The only room of jnl that imports TFDS and Grain."""

from jnl.data import augment
from jnl.data._batches import (
  PerRun,
  check_arrays,
  check_labels,
  epoch_order,
  index_order,
  stream_order,
  take_batch,
)
from jnl.data._datasets import (
  Dataset,
  digits,
  encode_text,
  from_arrays,
  load,
  load_text,
  published_order,
  take,
)
from jnl.data._files import Examples, human_labels
from jnl.data._noisy import NOISES, Noisy, check_noise, noisy, save_noisy
from jnl.data._text import ngram_ids, token_ids, tokenize
from jnl.data._tfds import prepare

__all__ = [
  'NOISES',
  'Dataset',
  'Examples',
  'Noisy',
  'PerRun',
  'augment',
  'check_arrays',
  'check_labels',
  'check_noise',
  'digits',
  'encode_text',
  'epoch_order',
  'from_arrays',
  'human_labels',
  'index_order',
  'load',
  'load_text',
  'ngram_ids',
  'noisy',
  'prepare',
  'published_order',
  'save_noisy',
  'stream_order',
  'take_batch',
  'token_ids',
  'tokenize',
]
