"""One HTML page of what an audit of labels found, for people to judge.

  labeled = Labeled(labels, pred_probs, images=images)   # or read_labeled(path)
  issues = audit.rank_label_issues(labels, pred_probs)
  audit_page('audit.html', labeled, issues, scores, joint)
  write_issues('issues.csv', labeled, issues, scores)

The page is a single file. It needs no network and no script, and its content
policy allows neither; whatever comes from the data is escaped.
"""

from collections.abc import Mapping
import csv
from typing import Any, NamedTuple
import zipfile
import zlib

from jax.typing import ArrayLike
import numpy as np

from jnl.base import check
from jnl.inputs import read_labels
from jnl.train import _sections as sections
from jnl.train._html import check_image, document, facts, tag
from jnl.train.report import PathLike, replacing


class Labeled(NamedTuple):
  """Labels, what a model thinks of them, and what they are labels of.

  Attributes:
    labels: [n] int in [0, c), as given.
    pred_probs: [n, c], of models that were not trained on the row; the largest
      one is the label that is suggested.
    images: [n] arrays [h, w] or [h, w, 1, 3 or 4], in one array or of several
      sizes: bytes, or floats in [0, 1]; others are stretched to their range.
    texts: [n] strings.
    features: [n, d], in which near-duplicates and outliers are looked for.
    class_names: [c] strings, by default the numbers of the classes.
  """

  labels: Any
  pred_probs: Any
  images: Any = None
  texts: Any = None
  features: Any = None
  class_names: Any = None


def read_labeled(path: PathLike) -> Labeled:
  """Reads arrays that are named as the fields of `Labeled` from an npz file.

  Args:
    path: of the file, with `labels` and `pred_probs` at least. Arrays of
      objects are refused, as they would be unpickled; others are not read.

  Returns:
    The arrays.

  Raises:
    TypeError, ValueError: naming the array that is missing or malformed.

  >>> import pathlib, tempfile
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'mine.npz'
  >>> np.savez(path, labels=[0, 1], pred_probs=np.eye(2), texts=['a', 'b'])
  >>> read_labeled(path).texts.tolist()
  ['a', 'b']
  """
  check(zipfile.is_zipfile(path), f'{path} is not there, or is no npz file')
  arrays = {}
  with np.load(path, allow_pickle=False) as file:
    for name in ('labels', 'pred_probs'):
      check(name in file.files, f'{path} lacks {name}; it has {file.files}')
    for name in [name for name in Labeled._fields if name in file.files]:
      try:
        arrays[name] = file[name]
      except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path}: {name}: {error}') from error
  return _checked(Labeled(**arrays))


def write_issues(
  path: PathLike,
  labeled: Labeled,
  issues: ArrayLike,
  scores: ArrayLike,
  *,
  rule: str = '',
  groups: ArrayLike | None = None,
) -> None:
  """Writes labels that look wrong as CSV, all or nothing.

  The columns are row, given, suggested (names of classes), score, rule and
  duplicate group, which is empty for a row without.

  Args:
    path: of the file.
    labeled: what was audited.
    issues: [m] int in [0, n), the rows that look wrong, in this order.
    scores: [n], of the labels.
    rule: what has found them.
    groups: [n] int, the same number for near-duplicates, -1 for all others.

  Raises:
    TypeError, ValueError: naming the argument that is malformed.
  """
  found = _found(labeled, issues, scores, groups)
  guess = found.probs[found.issues].argmax(1).tolist()
  header = 'row', 'given', 'suggested', 'score', 'rule', 'duplicate group'
  with (
    replacing(path) as partial,
    partial.open('w', encoding='utf-8', errors='replace', newline='') as file,
  ):
    writer = csv.writer(file)
    writer.writerow(header)
    for row, suggested in zip(found.issues.tolist(), guess, strict=True):
      group = -1 if found.groups is None else found.groups[row]
      names = found.names[found.labels[row]], found.names[suggested]
      last = f'{found.scores[row]:.6g}', rule, '' if group < 0 else group
      writer.writerow((row, *names, *last))


def audit_page(
  path: PathLike,
  labeled: Labeled,
  issues: ArrayLike,
  scores: ArrayLike,
  joint: ArrayLike,
  *,
  groups: ArrayLike | None = None,
  typical: ArrayLike | None = None,
  title: str = 'Label audit',
  about: Mapping[str, Any] | None = None,
) -> None:
  r"""Writes a page of the labels that look wrong, to be opened in a browser.

  It has the numbers of the audit; the worst examples with given and suggested
  label, to be filtered by pairs of classes; the noise matrix

  .. math::  T_{ij} = P(\text{given } j \mid \text{true } i)
    = J_{ji} / \sum_k J_{ki};

  histograms of the scores; classes that overlap; near-duplicates and outliers.
  It is written whole or not at all, and stays below 3 MB.

  Args:
    path: of the HTML file.
    labeled: what was audited.
    issues: [m] int in [0, n), the rows that look wrong, the worst first
      (`audit.rank_label_issues`).
    scores: [n], of the labels, low is suspicious (`audit.label_quality`).
    joint: J, [c, c], of given (row) and true label, sums to one
      (`audit.estimate_joint`).
    groups: [n] int, the same number for near-duplicates, -1 for all others
      (`audit.near_duplicates`).
    typical: [n], low for outliers (`audit.ood_features`).
    title: of the page.
    about: what else a reader has to know, by name: which data these are, what
      gave the probabilities.

  Raises:
    TypeError, ValueError: naming the argument that is malformed.

  >>> import pathlib, tempfile
  >>> mine = Labeled(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]])
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'audit.html'
  >>> audit_page(path, mine, [2], [1, 1, 0], np.eye(2) / 2)
  >>> '1 of 3 labels' in path.read_text()
  True
  """
  found = _found(labeled, issues, scores, groups, typical, joint)
  every = {
    'Suspicious labels': sections.suspicious(found),
    'Noise matrix': sections.matrix(found),
    'Scores': sections.scores(found),
    'Classes': sections.classes(found),
    'Overlapping classes': sections.overlaps(found),
    'Near-duplicates': sections.duplicates(found),
    'Outliers': sections.outliers(found),
    'About': facts(about, 'facts') if about else None,
  }
  some = {name: inner for name, inner in every.items() if inner}
  id = {name: name.lower().replace(' ', '-') for name in some}
  body = tag(
    'main',
    tag('h1', title),
    sections.numbers(found),
    tag('nav', *(tag('a', name, href=f'#{id[name]}') for name in some)),
    *(
      tag('section', tag('h2', name), inner, id=id[name])
      for name, inner in some.items()
    ),
  )
  with replacing(path) as partial:
    text = document(title, body)
    partial.write_text(text, encoding='utf-8', errors='replace')


# --- checks -------------------------------------------------------------------


def _checked(labeled: Labeled) -> Labeled:
  """Labels and probabilities as arrays of numpy, all of fitting lengths."""
  probs = np.asarray(labeled.pred_probs)
  check(
    probs.ndim == 2 and len(probs) and probs.shape[1] >= 2,
    f'pred_probs must be [n, c] with c >= 2 classes, got shape {probs.shape}',
  )
  n, c = probs.shape
  labels = _each('labels', labeled.labels, n)
  for name, length in {
    'images': n,
    'texts': n,
    'features': n,
    'class_names': c,
  }.items():
    values = getattr(labeled, name)
    check(
      values is None or len(values) == length,
      f'{name} must be of length {length}, as pred_probs has it, got '
      f'{0 if values is None else len(values)}',
    )
  if labeled.images is not None:
    check_image(labeled.images[0])
  labels = np.asarray(read_labels(labels, c)[0])
  return labeled._replace(labels=labels, pred_probs=probs)


def _each(name: str, values: Any, n: int) -> np.ndarray:
  """An array with a number for each row."""
  shape = np.shape(values)
  check(
    shape == (n,),
    f'{name} must be [n] = [{n}], as pred_probs has it, got shape {shape}',
  )
  return np.asarray(values)


def _found(
  labeled: Labeled,
  issues: Any,
  scores: Any,
  groups: Any = None,
  typical: Any = None,
  joint: Any = None,
) -> sections.Found:
  """All arguments, checked."""
  labeled = _checked(labeled)
  n, c = labeled.pred_probs.shape
  rows = np.asarray(issues)
  check(rows.ndim == 1, f'issues must be [m] rows, got shape {rows.shape}')
  rows = rows if rows.size else rows.astype(np.int32)
  if joint is not None:
    shape = np.shape(joint)
    check(shape == (c, c), f'joint must be [{c}, {c}], got shape {shape}')
  names = range(c) if labeled.class_names is None else labeled.class_names
  return sections.Found(
    labeled.labels,
    labeled.pred_probs,
    [sections.text_of(name) for name in names],
    labeled.images,
    labeled.texts,
    np.asarray(read_labels(rows, n, 'issues')[0]),
    _each('scores', scores, n).astype(float),
    np.asarray(joint, float),
    None if groups is None else _each('groups', groups, n),
    None if typical is None else _each('typical', typical, n).astype(float),
  )
