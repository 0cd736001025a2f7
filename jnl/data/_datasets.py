"""Data sets as arrays in memory: read, checked, split and shuffled once.

load('digits')                               embedded in scikit-learn
load('fashion_mnist')                        through TFDS, without TensorFlow
load('cifar10_jpg', data_dir='~/data')       local files, see `jnl.data._files`
load('trec6', data_dir='~/data')             texts, as ids of their n-grams
load_text('trec6', data_dir='~/data')        texts as strings
from_arrays(x, labels, x_test, labels_test)  your own, DataFrames too
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jnl.base import check
from jnl.data import _files as files
from jnl.data import _tables as tables
from jnl.data import _tfds as tfds
from jnl.data._batches import check_arrays
from jnl.data._files import Examples
from jnl.data._text import ngram_ids

EMBEDDED = ('digits',)


class Dataset(NamedTuple):
  """A data set for classification, in three parts.

  Attributes:
    name: as given to `load`.
    num_classes: c.
    train: what a method trains on, once its labels are made noisy.
    validation: for choosing an epoch by labels as noisy as those of `train`;
      with `train` it makes up the published training set.
    test: with clean labels, looked at for the report alone.
    classes: what the labels were called, in the order of their numbers; ()
      where they were numbers.
    columns: what the columns of x [n, d] are called, where they came from a
      table; else ().
  """

  name: str
  num_classes: int
  train: Examples
  validation: Examples
  test: Examples
  classes: tuple[Any, ...] = ()
  columns: tuple[str, ...] = ()


def digits(seed: int = 0) -> Dataset:
  """Scans of handwritten digits, embedded in scikit-learn.

  1797 real 8x8 images with pixels in 0..16, divided by 16.

  Args:
    seed: of the permutation that is cut into the parts.

  Returns:
    The data set: 1200 training, 120 validation and 477 test rows.

  Reference: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI
  Machine Learning Repository 1998.
  """
  from sklearn.datasets import load_digits  # slow to import

  x, labels = load_digits(return_X_y=True)
  whole = Examples(
    (x / 16).astype(np.float32).reshape(-1, 8, 8, 1),
    labels.astype(np.int32),
    np.arange(len(x), dtype=np.int32),
  )
  order = np.random.default_rng(seed).permutation(len(x))
  train, validation, test = (
    take(whole, rows) for rows in np.split(order, [1200, 1320])
  )
  return Dataset('digits', 10, train, validation, test)


def load(
  name: str,
  *,
  data_dir: str | None = None,
  validation: float = 0.1,
  seed: int = 0,
) -> Dataset:
  """A data set by name, split and shuffled.

  Args:
    name: `'digits'`; with `data_dir`, a data set in that folder, named as its
      files are (`jnl.data._files`); without, an image or text data set of TFDS,
      which is downloaded and prepared where need be (`jnl.data._tfds`).
    data_dir: a folder of local files.
    validation: the share of the training set that is held out; of digits always
      120 rows.
    seed: of the split and the order.

  Returns:
    The data set; pixels are divided by the largest one of the training set,
    texts are the ids [n, 64] int32 of their words and pairs of words
    (`ngram_ids`; `load_text` leaves the choice).

  Raises:
    ValueError: for an unknown name, with the close matches, or for files that
      are truncated, foreign or do not fit together, naming the file.
    FileNotFoundError: if `data_dir` holds no such data set.
  """
  if data_dir is not None:
    parts = files.read_folder(name, data_dir)
  elif name in EMBEDDED:
    return digits(seed)
  else:
    parts = tfds.read(name)
  dataset = _split(name, *parts, None, validation, seed)
  return encode_text(dataset) if _is_text(dataset.train) else dataset


def load_text(
  name: str,
  *,
  data_dir: str | None = None,
  validation: float = 0.1,
  seed: int = 0,
) -> Dataset:
  """A text data set by name, as strings, for a tokenizer of one's choice.

  With `data_dir`: youtube_spam (comments on five videos; those on the last are
  the test set), trec6 (questions, published with a test set) and rt_polarity
  (sentences of reviews; a seeded quarter is the test set), or a file NAME.npz
  of your own texts (`jnl.data._files`). Without, a data set of TFDS, such as
  imdb_reviews (`jnl.data._tfds`).

  Args:
    name: as for `load`.
    data_dir: as for `load`.
    validation: as for `load`.
    seed: as for `load`; the parts are the same.

  Returns:
    The data set, each x an array [n] of strings; `encode_text` turns them into
    what networks take.

  Raises:
    ValueError, FileNotFoundError: as `load`; or if the data set is not text.

  Reference: Alberto, Lochter, Almeida, "TubeSpam: Comment Spam Filtering on
  YouTube", ICMLA 2015; Li, Roth, "Learning Question Classifiers", COLING 2002;
  Pang, Lee, "Seeing Stars: Exploiting Class Relationships for Sentiment
  Categorization with Respect to Rating Scales", ACL 2005, arXiv cs/0506075.
  """
  if data_dir is not None:
    parts = files.read_folder(name, data_dir)
  else:
    check(name not in EMBEDDED, f'{name} is no text data set')
    parts = tfds.read(name)
  check(_is_text(parts[0]), f'{name} is no text data set')
  return _split(name, *parts, None, validation, seed)


def encode_text(
  dataset: Dataset, ids: Callable[[Sequence[str]], np.ndarray] = ngram_ids
) -> Dataset:
  """The data set with its texts as ids of tokens or n-grams.

  Args:
    dataset: as from `load_text`.
    ids: `texts -> [n, length] int32`, for example
      `functools.partial(token_ids, length=32)`.

  Returns:
    The data set, x [n, length] int32.

  Raises:
    ValueError: if it holds no texts.
  """
  check(_is_text(dataset.train), f'{dataset.name} holds no texts')
  train, validation, test = (
    part._replace(x=ids(list(part.x)))
    for part in (dataset.train, dataset.validation, dataset.test)
  )
  return dataset._replace(train=train, validation=validation, test=test)


def from_arrays(
  x: Any,
  labels: Any,
  x_test: Any = None,
  labels_test: Any = None,
  *,
  name: str = 'arrays',
  num_classes: int | None = None,
  validation: float = 0.1,
  seed: int = 0,
  ids: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Dataset:
  """A data set from arrays, DataFrames or texts of your own.

  Args:
    x: [n, ...]; uint8 pixels are divided by the largest one, other numbers
      taken as they are; images without channels, [n, h, w], get one. Of a
      DataFrame the columns of numbers as they are and those of categories by
      zeros and ones, as in `from_table`. Texts need `ids`.
    labels: [n] int from 0, clean if the test labels are to be believed; or
      strings, categories or truth values, which are numbered (`classes`).
    x_test: [n_test, ...]; by default a quarter of `x` is the test set.
    labels_test: [n_test], of the same kind as `labels`.
    name: what reports call it.
    num_classes: c, by default the largest label plus one, and then every class
      must have an example.
    validation: the share of the training set that is held out, in (0, 1).
    seed: of the split and the order.
    ids: what makes numbers of texts, `ngram_ids` or `token_ids` (the networks
      `ngram` and `transformer` take these), as for `encode_text`.

  Returns:
    The data set, with the row of `x` (or `x_test`) in `id`, and `classes` and
    `columns` where these had names.

  Raises:
    ValueError: naming the argument, and the column, row, class or category, if
      lengths differ, values are missing or infinite, labels are out of range, a
      class is empty, or the test set holds one that training has not.
    TypeError: if labels are neither integers nor names, `x` are texts without
      `ids`, a column holds strings, or images are integers of another kind than
      uint8, which may be pixels or not.

  >>> import numpy as np
  >>> data = from_arrays(np.zeros((40, 5)), np.arange(40) % 4)
  >>> [part.x.shape for part in (data.train, data.validation, data.test)]
  [(27, 5), (3, 5), (10, 5)]
  >>> data = from_arrays(['good', 'so bad'] * 20, ['pos', 'neg'] * 20,
  ...   ids=ngram_ids)
  >>> data.train.x.shape, data.classes
  ((27, 64), ('neg', 'pos'))
  """
  check(
    (x_test is None) == (labels_test is None),
    'x_test and labels_test must be given together',
  )
  x, columns = _read_x('x', x, ids, None)
  labels, classes = tables.read_labels(labels, 'labels')
  check(
    not classes or num_classes in (None, len(classes)),
    f'labels have the {len(classes)} classes {list(classes)[:5]}, and '
    f'num_classes is {num_classes}',
  )
  train = files.examples(x, labels, 'x, labels')
  test = None
  if x_test is not None and labels_test is not None:
    x_test, _ = _read_x('x_test', x_test, ids, columns)
    read = tables.read_labels(labels_test, 'labels_test', classes)
    test = files.examples(x_test, read[0], 'x_test, labels_test')
  dataset = _split(name, train, test, num_classes, validation, seed, classes)
  return dataset._replace(classes=classes, columns=columns)


def take(examples: Examples, rows: np.ndarray) -> Examples:
  """Some of the examples, in the order of their rows.

  Args:
    examples: n of them.
    rows: [m] int in [0, n), or [n] bool.

  Returns:
    The examples of these rows.
  """
  return Examples(*(values[rows] for values in examples))


def published_order(dataset: Dataset) -> Examples:
  """The training and validation rows in the order of the published file.

  Noise is drawn on these, so that a draw depends on its key and on the file
  alone, not on how the rows are split and shuffled here.

  Args:
    dataset: as from `load`.

  Returns:
    Its `train` and `validation` rows together, by ascending `id`.

  >>> digits = load('digits')
  >>> whole = published_order(digits)
  >>> len(whole.labels), bool((np.diff(whole.id) > 0).all())
  (1320, True)
  """
  parts = dataset.train, dataset.validation
  whole = Examples(*map(np.concatenate, zip(*parts, strict=True)))
  return take(whole, np.argsort(whole.id))


def _read_x(
  name: str,
  x: Any,
  ids: Callable[[Sequence[str]], np.ndarray] | None,
  like: tuple[str, ...] | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
  """x as an array, and the names of its columns; raises TypeError for texts."""
  if tables.is_frame(x):
    check(ids is None, f'ids= is for texts, and {name} is a table')
    return tables.rows_of_frame(x, name, (), like or None)
  x = np.asarray(x)
  if ids is not None:
    check(
      x.ndim == 1,
      f'ids= is for texts, and {name} must be [n] strings, got shape {x.shape}',
    )
    texts = x.tolist()
    files.text.check_texts(texts, name)
    return np.asarray(ids(texts)), ()
  check(
    x.dtype.kind not in 'OSUT',
    f'{name} must be numbers, got {x.dtype}: texts become numbers by '
    'ids=jnl.data.ngram_ids or ids=jnl.data.token_ids, tables as DataFrames',
    TypeError,
  )
  return x, ()


def _check_alike(name: str, train: Examples, test: Examples) -> None:
  """Raises unless both hold inputs of one kind."""
  check(
    train.x.shape[1:] == test.x.shape[1:],
    f'{name}: x is {train.x.shape[1:]} in training and {test.x.shape[1:]} in '
    'the test set',
  )
  pixels = [part.x.dtype == np.uint8 for part in (train, test)]
  check(
    train.x.ndim < 3 or pixels[0] or train.x.dtype.kind not in 'iu',
    f'{name}: x {train.x.shape} must be uint8 if it holds pixels (which are '
    f'scaled), floating if other numbers (which are not), got {train.x.dtype}',
    TypeError,
  )
  check(
    pixels[0] == pixels[1],
    f'{name}: x is {train.x.dtype} in training and {test.x.dtype} in the test '
    'set; pixels, uint8, are scaled alone',
  )


def _split(
  name: str,
  train: Examples,
  test: Examples | None,
  num_classes: int | None,
  validation: float,
  seed: int,
  classes: tuple[Any, ...] = (),
) -> Dataset:
  """Checks, splits, shuffles, and makes numbers of pixels."""
  check(0 < validation < 1, f'validation must lie in (0, 1), got {validation}')
  order = np.random.default_rng(seed).permutation(len(train.labels))
  if test is None:
    cut = len(order) // 4
    test, order = take(train, np.sort(order[:cut])), order[cut:]
  cut = len(order) - max(1, round(validation * len(order)))
  check(
    cut > 0 and len(test.labels) > 0,
    f'{name} has too few examples to split: {len(order)}, and '
    f'{len(test.labels)} for the test',
  )
  _check_alike(name, train, test)
  c = num_classes or len(classes) or int(train.labels.max()) + 1
  for part, called in ((train, 'train'), (test, 'test')):
    check_arrays(part._asdict(), c, f'{name}, {called}')
  counts = np.bincount(train.labels, minlength=c)
  empty = classes[counts.argmin()] if classes else int(counts.argmin())
  check(
    num_classes or counts.all(),
    f'{name}: labels hold no example of class {empty!r} (of {c})',
  )
  scale = float(train.x.max()) or 1.0 if train.x.dtype == np.uint8 else 1.0
  parts = take(train, order[:cut]), take(train, order[cut:]), test
  train, held_out, test = (_as_numbers(part, scale) for part in parts)
  return Dataset(name, c, train, held_out, test)


def _is_text(examples: Examples) -> bool:
  return examples.x.dtype == object


def _as_numbers(examples: Examples, scale: float) -> Examples:
  """x as float32, pixels divided by `scale`, images with a channel.

  Texts stay as they are.
  """
  x = examples.x
  if not _is_text(examples):
    x = x.astype(np.float32)
    x = x[..., None] if x.ndim == 3 else x
    x /= np.float32(scale)
  return Examples(
    x, examples.labels.astype(np.int32), examples.id.astype(np.int32)
  )
