"""Arrays in, batches out. The only room of jnl that imports TFDS and Grain.

Data sets
  load             by name: digits, files of a folder, or TFDS
  load_text        the same of texts
  digits           scans that are part of scikit-learn
  from_arrays      arrays, DataFrames or texts of one's own
  encode_text      texts as ids; `tokenize`, `token_ids`, `ngram_ids`
  prepare          a set of TFDS, of files that were downloaded
  published_order  the examples as their authors numbered them
  long_tail        rows whose classes become smaller exponentially
  Dataset          what is loaded; `Examples` are a part of it; `take` some
Tables
  from_table       a DataFrame as rows, labels, groups and counts: `Tabular`
Wrong labels
  noisy            the noise of a run, by name; `NOISES`, `check_noise`
  save_noisy       to files; `Noisy` is what there is to save
  human_labels     those that people gave, `HUMAN`: CIFAR-10N, CIFAR-100N
Batches
  augment          augmentation, on the device
  epoch_order      the order of an epoch; `stream_order` of a stream
  index_order      the order of the file
  take_batch       a batch along an order
  PerRun           an array that differs from run to run
  check_arrays     whether arrays can be trained on; `check_labels`
"""

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
from jnl.data._files import HUMAN, Examples, human_labels
from jnl.data._long_tail import long_tail
from jnl.data._noisy import NOISES, Noisy, check_noise, noisy, save_noisy
from jnl.data._tables import Tabular, from_table
from jnl.data._text import ngram_ids, token_ids, tokenize
from jnl.data._tfds import prepare

__all__ = [
  'HUMAN',
  'NOISES',
  'Dataset',
  'Examples',
  'Noisy',
  'PerRun',
  'Tabular',
  'augment',
  'check_arrays',
  'check_labels',
  'check_noise',
  'digits',
  'encode_text',
  'epoch_order',
  'from_arrays',
  'from_table',
  'human_labels',
  'index_order',
  'load',
  'load_text',
  'long_tail',
  'ngram_ids',
  'noisy',
  'prepare',
  'published_order',
  'save_noisy',
  'stream_order',
  'take',
  'take_batch',
  'token_ids',
  'tokenize',
]


def __dir__() -> list[str]:
  return __all__
