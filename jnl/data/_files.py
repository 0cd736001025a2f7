"""Local files: what `--data-dir` reads, and labels by people (CIFAR-N).

A data set NAME in a folder DIR is one of

  DIR/NAME.npz       arrays x_train, y_train, x_test, y_test; or x, y; or num
                     and cat instead of x, a table (`jnl.data._tables`); or JPEG
                     files in one array: jpg, offsets, label_train, label_test;
                     or texts in one array of UTF-8: text, offsets, y (and
                     video), or each with _train and with _test
  DIR/NAME/*.gz      the four idx files of MNIST and its kin, also unpacked
  DIR/cifar-10-binary.tar.gz, DIR/cifar-100-binary.tar.gz
                     for the names cifar10 and cifar100
  DIR/NAME/          the text files that youtube_spam, trec6 and rt_polarity are
                     published as (`TEXT_FILES`)

Rows keep the order of the file. No pickle is ever loaded.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import gzip
import io
import itertools
import math
import pathlib
import tarfile
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from jnl.base import check, check_name
from jnl.data import _tables as tables
from jnl.data import _text as text
from jnl.data._batches import check_arrays, check_labels

IDX = {
  'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
  'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
IDX_FILES = [file for pair in IDX.values() for file in pair]
CIFAR: dict[str, tuple[str, dict[str, tuple[str, ...]], int]] = {
  # name: archive, members of train and test, label bytes before the pixels
  'cifar10': (
    'cifar-10-binary.tar.gz',
    {
      'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
      'test': ('test_batch.bin',),
    },
    1,
  ),
  'cifar100': (
    'cifar-100-binary.tar.gz',
    {'train': ('train.bin',), 'test': ('test.bin',)},
    2,
  ),
}
TEXT_FILES: dict[str, tuple[dict[str, Callable[[bytes], text.Parsed]], int]] = {
  # name: files and how each is parsed, how many of the last ones are the test
  'youtube_spam': (
    {
      f'Youtube0{i}-{singer}.csv': text.parse_youtube
      for i, singer in enumerate(
        ('Psy', 'KatyPerry', 'LMFAO', 'Eminem', 'Shakira'), 1
      )
    },
    1,
  ),
  'trec6': (
    {
      'train_5500.label': text.parse_trec,
      'TREC_10.label': text.parse_trec,
    },
    1,
  ),
  'rt_polarity': (
    {
      'rt-polarity.neg': functools.partial(text.parse_sentences, label=0),
      'rt-polarity.pos': functools.partial(text.parse_sentences, label=1),
    },
    0,
  ),
}
TEXT_ARRAYS = ('text', 'offsets', 'y')
HUMAN = {
  # noise: file, array of noisy labels, array of clean labels
  **{
    f'cifar10n_{name}': ('cifar10_human_labels.npz', array, 'clean_label')
    for name, array in (
      ('aggre', 'aggre_label'),
      ('random1', 'random_label1'),
      ('random2', 'random_label2'),
      ('random3', 'random_label3'),
      ('worse', 'worse_label'),
    )
  },
  'cifar100n': ('cifar100n_labels.npz', 'noisy_label', 'clean_label'),
}


class Examples(NamedTuple):
  """A part of a data set.

  Attributes:
    x: [n, ...]; float32 in a `Dataset`, as stored before. Of a text set [n]
      strings, or their ids [n, length] int32 (`encode_text`).
    labels: [n] int32, clean.
    id: [n] int32, the row in the data set as published.
  """

  x: np.ndarray
  labels: np.ndarray
  id: np.ndarray


def examples(
  x: np.ndarray, labels: np.ndarray, argument: str, id: np.ndarray | None = None
) -> Examples:
  """Checks that arrays belong together; rows are numbered by default.

  Raises:
    ValueError, TypeError: naming `argument`.
  """
  x, labels = np.asarray(x), np.asarray(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  check(x.ndim >= 2, f'{argument}: x must be [n, ...], got {x.shape}')
  check(labels.ndim == 1, f'{argument}: labels must be [n], got {labels.shape}')
  id = np.arange(len(labels)) if id is None else np.asarray(id)
  check_arrays({'x': x, 'labels': labels, 'id': id}, None, argument)
  check(labels.min() >= 0, f'{argument}: labels hold {labels.min()}')
  return Examples(x, labels, id)


def text_examples(
  texts: list[str], labels: list[int] | np.ndarray, argument: str
) -> Examples:
  """Checks that texts and labels belong together, as `examples` does."""
  text.check_texts(texts, argument)
  x, y = np.array(texts, object), np.asarray(labels)
  check(
    y.shape == x.shape,
    f'{argument}: {len(x)} texts, but labels of shape {y.shape}',
  )
  check_labels(y, None, f'{argument}: labels')
  check(y.min() >= 0, f'{argument}: labels hold {y.min()}')
  return Examples(x, y, np.arange(len(y)))


def read_folder(
  name: str, data_dir: str | pathlib.Path
) -> tuple[Examples, Examples | None]:
  """The training and test part (if there is one) of a data set in a folder.

  Args:
    name: of the data set.
    data_dir: the folder; what it may hold is said above.

  Raises:
    FileNotFoundError: if there is no such data set, saying what was looked for.
    ValueError: naming the file, if it is truncated, foreign, or its arrays do
      not fit together.
  """
  folder = pathlib.Path(data_dir).expanduser()
  npz = folder / f'{name}.npz'
  if npz.exists():
    return _read_npz_set(npz)
  if name in CIFAR and (folder / CIFAR[name][0]).exists():
    return read_cifar(folder / CIFAR[name][0], name)
  for place in (folder / name, folder):
    if place.name == name and _idx_file(place, IDX['train'][0]).exists():
      return read_idx_set({file: _idx_file(place, file) for file in IDX_FILES})
  if name in TEXT_FILES and (folder / name).is_dir():
    return read_text_set(name, folder / name)
  archive = f' or {CIFAR[name][0]}' if name in CIFAR else ''
  if name in TEXT_FILES:
    archive = f' or {name}/{next(iter(TEXT_FILES[name][0]))}'
  raise FileNotFoundError(
    f'no data set {name!r} in data_dir {folder}: looked for {name}.npz, '
    f'{name}/{IDX["train"][0]}(.gz){archive}'
  )


# --- formats -----------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Names the file in whatever goes wrong while it is read."""
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist')
  try:
    yield
  except (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
  ) as error:
    raise ValueError(
      f'{path} is truncated or not what its name says: {error}'
    ) from error


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of an npz file.

  Raises:
    FileNotFoundError, ValueError: naming the file.
  """
  path = pathlib.Path(path).expanduser()
  with _reading(path), np.load(path, allow_pickle=False) as file:
    check(hasattr(file, 'files'), 'it holds one array, not several by name')
    return {name: file[name] for name in file.files}


def read_idx(path: str | pathlib.Path) -> np.ndarray:
  """The array of an idx file (the format of MNIST), gzipped or not.

  Raises:
    FileNotFoundError, ValueError: naming the file.
  """
  path = pathlib.Path(path)
  with _reading(path):
    raw = path.read_bytes()
    if raw[:2] == b'\x1f\x8b':
      raw = gzip.decompress(raw)
    check(
      len(raw) >= 4 and raw[:3] == b'\0\0\x08',
      'it does not start as an idx file of bytes does',
    )
    rank = raw[3]
    shape = tuple(np.frombuffer(raw, '>u4', rank, offset=4).tolist())
    start = 4 + 4 * rank
    check(
      len(raw) - start == math.prod(shape),
      f'its header says {shape}, it holds {len(raw) - start} bytes',
    )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_idx_set(
  paths: Mapping[str, str | pathlib.Path],
) -> tuple[Examples, Examples]:
  """Training and test part of the four idx files, by their names in `IDX`."""
  parts = []
  for images, labels in IDX.values():
    x, y = read_idx(paths[images]), read_idx(paths[labels])
    parts.append(examples(x, y, f'{paths[images]}, {paths[labels]}'))
  return parts[0], parts[1]


def _idx_file(folder: pathlib.Path, name: str) -> pathlib.Path:
  packed = folder / f'{name}.gz'
  return packed if packed.exists() else folder / name


def read_cifar(
  path: str | pathlib.Path, name: str
) -> tuple[Examples, Examples]:
  """Training and test part of the binary archive of CIFAR-10 or CIFAR-100.

  Raises:
    FileNotFoundError, ValueError: naming the file.
  """
  path = pathlib.Path(path)
  _, members, label_bytes = CIFAR[name]
  with _reading(path), tarfile.open(path) as archive:
    found = {pathlib.PurePath(m.name).name: m for m in archive.getmembers()}
    parts = []
    for names in members.values():
      raw = b''.join(_member(archive, found[n]) for n in names)
      rows = np.frombuffer(raw, np.uint8).reshape(-1, label_bytes + 3072)
      x = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
      # The finest label comes last.
      parts.append(examples(x, rows[:, label_bytes - 1], str(path)))
  return parts[0], parts[1]


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
  file = archive.extractfile(info)
  check(file is not None, f'its {info.name} is no file')
  return b'' if file is None else file.read()


def _read_npz_set(path: pathlib.Path) -> tuple[Examples, Examples | None]:
  arrays = read_npz(path)
  if {'x_train', 'y_train', 'x_test', 'y_test'} <= set(arrays):
    return (
      examples(arrays['x_train'], arrays['y_train'], f'{path}, train'),
      examples(arrays['x_test'], arrays['y_test'], f'{path}, test'),
    )
  if {'x', 'y'} <= set(arrays):
    return examples(arrays['x'], arrays['y'], str(path)), None
  if set(tables.ARRAYS) <= set(arrays):
    train, test = tables.rows_of_table(arrays, str(path))
    return (
      examples(train, arrays['y_train'], f'{path}, train'),
      examples(test, arrays['y_test'], f'{path}, test'),
    )
  if {'jpg', 'offsets', 'label_train', 'label_test'} <= set(arrays):
    return _read_jpegs(path, arrays)
  if set(TEXT_ARRAYS) <= set(arrays):
    return _read_text(path, arrays)
  if {f'{a}_{b}' for a in TEXT_ARRAYS for b in ('train', 'test')} <= set(
    arrays
  ):
    return (
      _read_text_part(path, arrays, '_train'),
      _read_text_part(path, arrays, '_test'),
    )
  raise ValueError(
    f'{path} holds {sorted(arrays)}; it must hold x_train, y_train, x_test and '
    'y_test, or x and y, or num and cat for each x, or jpg, offsets, '
    'label_train and label_test, or text, offsets and y'
  )


def _read_jpegs(
  path: pathlib.Path, arrays: dict[str, np.ndarray]
) -> tuple[Examples, Examples]:
  """Training images first, then test images, as JPEG files end to end."""
  from PIL import Image  # belongs to the extra `experiments`

  jpg, offsets = arrays['jpg'].tobytes(), arrays['offsets']
  labels = np.concatenate([arrays['label_train'], arrays['label_test']])
  check(
    len(offsets) == len(labels) + 1 and offsets[-1] == len(jpg),
    f'{path}: {len(offsets) - 1} images in {len(jpg)} bytes (offsets end at '
    f'{offsets[-1]}), but {len(labels)} labels',
  )
  with _reading(path):
    x = np.stack(
      [
        np.asarray(Image.open(io.BytesIO(jpg[first:last])))
        for first, last in itertools.pairwise(offsets)
      ]
    )
  n = len(arrays['label_train'])
  return (
    examples(x[:n], labels[:n], f'{path}, train'),
    examples(x[n:], labels[n:], f'{path}, test'),
  )


def read_text_set(
  name: str, folder: str | pathlib.Path
) -> tuple[Examples, Examples | None]:
  """Texts and labels of the files that a text set is published as.

  youtube_spam: five CSV files, one for each video; the comments on the last are
  the test set, as in Snorkel's tutorial and in WRENCH. trec6: the files that
  give its training and test set; classes are those of `text.TREC_CLASSES`.
  rt_polarity: two files, one for each class (0 is negative); no test set.

  Raises:
    FileNotFoundError, ValueError: naming the file, and the line if one is
      malformed.
  """
  parsers, tests = TEXT_FILES[name]
  parsed = []
  for file, parse in parsers.items():
    path = pathlib.Path(folder) / file
    with _reading(path):
      parsed.append(parse(path.read_bytes()))
      check(len(parsed[-1][0]) > 0, 'it holds no texts')
  train, test = parsed[: len(parsed) - tests], parsed[len(parsed) - tests :]
  if not test:
    return _joined(train, str(folder)), None
  return _joined(train, str(folder)), _joined(test, str(folder))


def _joined(parsed: list[text.Parsed], argument: str) -> Examples:
  texts = [one for part, _ in parsed for one in part]
  labels = [one for _, part in parsed for one in part]
  return text_examples(texts, labels, argument)


def _read_text(
  path: pathlib.Path, arrays: dict[str, np.ndarray]
) -> tuple[Examples, Examples | None]:
  """All texts; where there is a `video`, those on the last are the test."""
  whole = _read_text_part(path, arrays, '')
  video = arrays.get('video')
  if video is None:
    return whole, None
  check(
    video.shape == whole.labels.shape,
    f'{path}: {len(whole.labels)} texts, but video has shape {video.shape}',
  )
  last = video == video.max()
  check(not last.all(), f'{path}: all texts are of one video')
  train, test = (
    text_examples(list(whole.x[rows]), whole.labels[rows], str(path))
    for rows in (~last, last)
  )
  return train, test


def _read_text_part(
  path: pathlib.Path, arrays: dict[str, np.ndarray], part: str
) -> Examples:
  with _reading(path):
    parsed = text.parse_npz(*(arrays[f'{name}{part}'] for name in TEXT_ARRAYS))
  return text_examples(*parsed, f'{path}{part.replace("_", ", ")}')


# --- labels by people --------------------------------------------------------


def human_labels(
  noise: str, data_dir: str | pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
  """The noisy labels that people gave to CIFAR: CIFAR-10N and CIFAR-100N.

  Args:
    noise: `'cifar10n_aggre'`, `'cifar10n_random1'`, `..2`, `..3`,
      `'cifar10n_worse'` or `'cifar100n'`.
    data_dir: a folder with `cifar10_human_labels.npz` or
      `cifar100n_labels.npz`: the arrays that the authors publish as a
      dictionary in `CIFAR-10_human.pt`, by the same names.

  Returns:
    (noisy, clean), each [50000] int32, in the order of the training set as
    published.

  Raises:
    FileNotFoundError, ValueError: naming the file.

  Reference: Wei, Zhu, Cheng, Liu, Niu, Liu, "Learning with Noisy Labels
  Revisited: A Study Using Real-World Human Annotations", ICLR 2022, arXiv
  2110.12088.
  """
  check_name('noise', noise, HUMAN)
  file, noisy, clean = HUMAN[noise]
  path = pathlib.Path(data_dir).expanduser() / file
  arrays = read_npz(path)
  for name in (noisy, clean):
    check(name in arrays, f'{path} holds no {name}, only {sorted(arrays)}')
  pair = arrays[noisy], arrays[clean]
  check(
    pair[0].shape == pair[1].shape and pair[0].ndim == 1,
    f'{path}: {noisy} is {pair[0].shape} and {clean} {pair[1].shape}',
  )
  return pair[0].astype(np.int32), pair[1].astype(np.int32)
