"""From texts to integer ids, on the host: tokens, n-grams, hashing.

Ids are hashed, so that there is no vocabulary to build, store or leak from the
test set, and any text has ids. `PAD_ID` fills rows up; the networks of
`jnl.nets` see nothing of it. The parsers read the files in which text sets are
published; `jnl.data._files` knows where they lie.
"""

from collections.abc import Iterable, Sequence
import csv
import io
import re
import zlib

import numpy as np

from jnl.base import check

PAD_ID = 0
"""The id behind the end of a text."""

# Words with apostrophes inside, else single signs. U+FEFF, invisible, is left
# over from the crawl in most comments of the YouTube set that are not spam.
_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s\ufeff]")


def tokenize(text: str) -> list[str]:
  """The words and signs of a text, in lower case.

  Args:
    text: any string.

  Returns:
    The tokens in order; words keep apostrophes inside.

  >>> tokenize("Check out MY channel: don't miss it!!")
  ['check', 'out', 'my', 'channel', ':', "don't", 'miss', 'it', '!', '!']
  """
  return _TOKEN.findall(text.lower())


def hashed_id(gram: str, buckets: int) -> int:
  """The id of a token or n-gram: 1 + crc32(UTF-8) mod (buckets - 1).

  The same in any process, on any machine and in any release, unlike Python's
  `hash`. Different n-grams may share an id.

  >>> hashed_id('spam', 8192), hashed_id('check out', 8192)
  (7718, 3513)
  """
  return 1 + zlib.crc32(gram.encode('utf-8', 'surrogatepass')) % (buckets - 1)


def token_ids(
  texts: Sequence[str], *, buckets: int = 8192, length: int = 64
) -> np.ndarray:
  """The hashed tokens of texts, in order, for `TextTransformer`.

  Args:
    texts: n strings; one without tokens is all padding.
    buckets: ids lie in [1, buckets), and `PAD_ID` is 0; at least 2.
    length: of a row, at least 1; what is beyond is cut off.

  Returns:
    [n, length] int32.

  Raises:
    ValueError: if `texts` is empty, or an argument out of range.
    TypeError: if one of `texts` is no string, naming it.

  >>> token_ids(['Spam, spam!', ''], buckets=100, length=5).tolist()
  [[11, 99, 11, 24, 0], [0, 0, 0, 0, 0]]
  """
  return ngram_ids(texts, sizes=(1,), buckets=buckets, length=length)


def ngram_ids(
  texts: Sequence[str],
  *,
  sizes: Sequence[int] = (1, 2),
  buckets: int = 8192,
  length: int = 64,
) -> np.ndarray:
  """The hashed n-grams of the tokens of texts, for `NgramClassifier`.

  They come by the token they begin with, so that what is cut off is the end of
  a text.

  Args:
    texts: n strings; one without tokens is all padding.
    sizes: how many tokens an n-gram has; each at least 1.
    buckets: ids lie in [1, buckets), and `PAD_ID` is 0; at least 2.
    length: of a row, at least 1; what is beyond is cut off.

  Returns:
    [n, length] int32.

  Raises:
    ValueError: if `texts` is empty, or an argument out of range.
    TypeError: if one of `texts` is no string, naming it.

  Reference: Weinberger, Dasgupta, Langford, Smola, Attenberg, "Feature Hashing
  for Large Scale Multitask Learning", ICML 2009, arXiv 0902.2206, with signs
  that are not needed here, where an embedding is learned.

  >>> ngram_ids(['Spam, spam!'], buckets=100, length=5).tolist()
  [[11, 31, 99, 1, 11]]
  """
  check_texts(texts)
  check(buckets >= 2, f'buckets must be at least 2, got {buckets}')
  check(length >= 1, f'length must be at least 1, got {length}')
  check(
    len(sizes) > 0 and min(sizes) >= 1,
    f'sizes must hold numbers of tokens, each at least 1, got {sizes}',
  )
  ids = np.full((len(texts), length), PAD_ID, np.int32)
  for row, text in zip(ids, texts, strict=True):
    tokens = tokenize(text)[: length + max(sizes)]
    grams = [
      ' '.join(tokens[first : first + size])
      for first in range(len(tokens))
      for size in sizes
      if first + size <= len(tokens)
    ][:length]
    row[: len(grams)] = [hashed_id(gram, buckets) for gram in grams]
  return ids


def check_texts(texts: Sequence[str], argument: str = 'texts') -> None:
  """Raises unless this is a non-empty sequence of strings."""
  check(
    not isinstance(texts, str | bytes),
    f'{argument} must be a sequence of strings, got one {type(texts).__name__}',
    TypeError,
  )
  check(len(texts) > 0, f'{argument} must hold at least one text')
  for i, text in enumerate(texts):
    check(
      isinstance(text, str),
      f'{argument} must be strings, got {type(text).__name__} at {i}',
      TypeError,
    )


# --- formats -----------------------------------------------------------------

TREC_CLASSES = ('DESC', 'ENTY', 'ABBR', 'HUM', 'LOC', 'NUM')

Parsed = tuple[list[str], list[int]]


def parse_npz(
  text: np.ndarray, offsets: np.ndarray, labels: np.ndarray
) -> Parsed:
  """Texts that lie end to end in one array of UTF-8 bytes.

  Args:
    text: [bytes] uint8.
    offsets: [n + 1] int; text i lies between offsets i and i + 1.
    labels: [n] int.

  Raises:
    ValueError: naming the row, if the arrays do not fit together.
  """
  raw = text.tobytes()
  check(
    offsets.ndim == 1 and labels.shape == (len(offsets) - 1,),
    f'{len(offsets) - 1} texts, but labels of shape {labels.shape}',
  )
  short = np.diff(offsets.astype(np.int64)) < 0
  check(
    not short.any(), f'row {short.argmax()}: its text ends before it starts'
  )
  check(
    offsets[0] == 0 and offsets[-1] == len(raw),
    f'offsets go from {offsets[0]} to {offsets[-1]}, but there are {len(raw)} '
    'bytes of text',
  )
  texts = []
  for i in range(len(labels)):
    try:
      texts.append(raw[offsets[i] : offsets[i + 1]].decode())
    except UnicodeDecodeError as error:
      raise ValueError(f'row {i}: {error}') from error
  return texts, labels.tolist()


def parse_youtube(raw: bytes) -> Parsed:
  """A CSV file of the YouTube spam collection: columns CONTENT and CLASS.

  CLASS is 1 for spam.

  Raises:
    ValueError: naming the line.
  """
  reader = csv.DictReader(io.StringIO(raw.decode('utf-8-sig'), newline=''))
  columns = reader.fieldnames or []
  check(
    {'CONTENT', 'CLASS'} <= set(columns),
    f'line 1: no columns CONTENT and CLASS, but {columns}',
  )
  texts, labels = [], []
  try:
    for row in reader:
      content, label = row['CONTENT'], row['CLASS']
      check(
        content is not None and label in ('0', '1'),
        f'line {reader.line_num}: CLASS must be 0 or 1, got {label!r}',
      )
      texts.append(content)
      labels.append(int(label))
  except csv.Error as error:
    raise ValueError(f'line {reader.reader.line_num}: {error}') from error
  return texts, labels


def parse_trec(raw: bytes) -> Parsed:
  """A file of TREC questions: lines like `NUM:date When did Hawaii ...`.

  Labels are numbered as in `TREC_CLASSES`. As in TFDS, the one byte that is not
  ASCII becomes a space.

  Raises:
    ValueError: naming the line.
  """
  texts, labels = [], []
  for number, line in _lines(raw.replace(b'\xf0', b' ').decode('latin-1')):
    label, _, text = line.partition(' ')
    coarse = label.partition(':')[0]
    check(
      coarse in TREC_CLASSES and text != '',
      f'line {number}: must be a class of {", ".join(TREC_CLASSES)} and a '
      f'question, got {line[:40]!r}',
    )
    texts.append(text)
    labels.append(TREC_CLASSES.index(coarse))
  return texts, labels


def parse_sentences(raw: bytes, label: int) -> Parsed:
  """A file of sentences, one in a line, all of one class.

  Raises:
    ValueError: naming the line, if one is empty.
  """
  texts = [line for _, line in _lines(raw.decode('latin-1'))]
  return texts, [label] * len(texts)


def _lines(text: str) -> Iterable[tuple[int, str]]:
  """Numbered lines; an empty one is an error, but for the end of the file."""
  for number, line in enumerate(text.removesuffix('\n').split('\n'), 1):
    check(line.strip() != '', f'line {number} is empty')
    yield number, line.strip()
