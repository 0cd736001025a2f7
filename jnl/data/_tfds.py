"""Image and text data sets of TFDS by name, read without TensorFlow.

TFDS keeps them in `~/tensorflow_datasets` or in the folder that the environment
variable TFDS_DATA_DIR names. Its own builders of MNIST, Fashion-MNIST, CIFAR
and their kin need TensorFlow to prepare; `prepare` stores the same files as
plain tensors, under the name `jnl_NAME`, with the published row in `id`. Text
sets (imdb_reviews, trec) need TensorFlow once, to prepare, and not to be read.
"""

import pathlib
from typing import Any

import numpy as np

from jnl.base import check, check_name
from jnl.data import _files as files
from jnl.data._files import Examples

# What the input and the label are called, the first pair that a set has.
_COLUMNS = (('image', 'label'), ('text', 'label'), ('text', 'label-coarse'))


def read(
  name: str, *, root: str | pathlib.Path | None = None
) -> tuple[Examples, Examples | None]:
  """Training and test part of a data set, downloaded and prepared if need be.

  Args:
    name: as TFDS calls it, such as `'fashion_mnist'`.
    root: where TFDS keeps its data sets, by default where it always does.

  Returns:
    (train, test), in the published order where the data set has an `id`, else
    in that of TFDS, which is shuffled.

  Raises:
    ValueError: for an unknown name, with the close matches, or if the data set
      has no image or text with a label.
    RuntimeError: if it cannot be prepared here, saying why and what to do.
  """
  builder = _prepared(name, root)
  if builder is None:
    prepare(name, root=root)
    builder = _prepared(name, root)
  check(builder is not None, f'{name} was prepared, but TFDS does not find it')
  _columns(builder)
  test = _read_split(builder, 'test') if 'test' in builder.info.splits else None
  return _read_split(builder, 'train'), test


def prepare(
  name: str,
  *,
  downloads: str | pathlib.Path | None = None,
  root: str | pathlib.Path | None = None,
) -> None:
  """Downloads a data set and stores it as TFDS does, for random access.

  Args:
    name: as TFDS calls it.
    downloads: a folder that already holds the published files, by their own
      names; TFDS still verifies their sizes and checksums.
    root: where TFDS keeps its data sets, by default where it always does.

  Raises:
    ValueError: for an unknown name, with the close matches.
    RuntimeError: if a download fails, or the data set is not one of those that
      jnl prepares itself and TensorFlow is not installed.
  """
  tfds = _import_tfds()
  check_name(
    'dataset',
    name,
    ['digits', *tfds.list_builders(with_community_datasets=False)],
  )
  config = tfds.download.DownloadConfig(
    manual_dir=None if downloads is None else pathlib.Path(downloads)
  )
  try:
    _builder(name, root).download_and_prepare(
      download_config=config, file_format='array_record'
    )
  except Exception as error:
    raise RuntimeError(
      f'TFDS could not prepare {name}: {type(error).__name__}: {error}\n'
      'Without a connection, put the published files into a folder and call '
      f'jnl.data.prepare({name!r}, downloads=FOLDER), or read local files '
      'with data_dir. A data set that TFDS alone can prepare may need '
      '`pip install tensorflow` for that one step.'
    ) from error


def _import_tfds() -> Any:
  try:
    import tensorflow_datasets  # takes a while
  except ImportError as error:
    raise ImportError(
      'data sets other than digits need TFDS: pip install "jnl[experiments]"; '
      f'or read local files with data_dir ({error})'
    ) from error
  return tensorflow_datasets


def _prepared(name: str, root: str | pathlib.Path | None) -> Any:
  """A builder whose data can be read at random, or None."""
  tfds = _import_tfds()
  for candidate in (f'jnl_{name}', name):
    try:
      builder = tfds.builder(candidate, data_dir=root)
    except tfds.core.DatasetNotFoundError:
      continue
    at_random = 'TFRECORD' not in str(builder.info.file_format)
    if builder.is_prepared() and at_random:
      return builder
  return None


def _columns(builder: Any) -> tuple[str, str]:
  """The names of the input and the label."""
  features = set(builder.info.features)
  found = [pair for pair in _COLUMNS if set(pair) <= features]
  check(
    found != [],
    f'{builder.info.name} of TFDS has no image or text with a label, only '
    f'{", ".join(sorted(features))}',
  )
  return found[0]


def _read_split(builder: Any, split: str) -> Examples:
  source = builder.as_data_source(split=split)
  # All at once is five times as fast as one by one.
  rows = source.__getitems__(range(len(source)))
  of, label = _columns(builder)
  labels = np.stack([row[label] for row in rows])
  argument = f'{builder.info.name}, {split}'
  if of == 'text':
    texts = [row[of].decode() for row in rows]
    return files.text_examples(texts, labels, argument)
  x = np.stack([row[of] for row in rows])
  if 'id' not in builder.info.features:
    return files.examples(x, labels, argument)
  ids = np.array([_row_number(row['id']) for row in rows])
  order = np.argsort(ids)
  return files.examples(x[order], labels[order], argument, ids[order])


def _row_number(id: Any) -> int:
  """The number in an id, which TFDS spells like b'train_00042'."""
  text = id.decode() if isinstance(id, bytes) else str(id)
  digits = text.rpartition('_')[2]
  check(digits.isdigit(), f'an id of TFDS, {text!r}, ends in no row number')
  return int(digits)


def _builder(name: str, root: str | pathlib.Path | None) -> Any:
  """jnl's builder for the formats it reads, else that of TFDS."""
  tfds = _import_tfds()
  stock = tfds.builder_cls(name)(data_dir=root)
  urls = {info.filename: url for url, info in stock.url_infos.items()}
  if set(urls) == {f'{file}.gz' for file in files.IDX_FILES}:
    read = lambda paths: files.read_idx_set(
      {file: paths[f'{file}.gz'] for file in files.IDX_FILES}
    )
  elif name in files.CIFAR and set(urls) == {files.CIFAR[name][0]}:
    read = lambda paths: files.read_cifar(paths[files.CIFAR[name][0]], name)
  else:
    return stock
  image, label = (stock.info.features[key] for key in ('image', 'label'))
  features, own_name = tfds.features, f'jnl_{name}'
  base: Any = tfds.core.GeneratorBasedBuilder

  class Builder(base, skip_registration=True):  # type: ignore[call-arg]
    """The published files as plain tensors."""

    name = own_name
    VERSION = stock.version
    url_infos = stock.url_infos

    def _info(self) -> Any:
      return tfds.core.DatasetInfo(
        builder=self,
        description=f'{name} without TensorFlow; see jnl.data._tfds.',
        features=features.FeaturesDict(
          {
            'image': features.Tensor(shape=image.shape, dtype=np.uint8),
            'label': features.ClassLabel(names=label.names),
            'id': features.Scalar(np.int32),
          }
        ),
      )

    def _split_generators(self, dl_manager: Any) -> Any:
      train, test = read(dl_manager.download(urls))
      return {
        'train': self._generate_examples(train),
        'test': self._generate_examples(test),
      }

    def _generate_examples(self, part: Examples) -> Any:
      x = part.x.reshape(-1, *image.shape)
      for i, row, y in zip(part.id, x, part.labels, strict=True):
        yield int(i), {'image': row, 'label': int(y), 'id': int(i)}

  return Builder(data_dir=root)
