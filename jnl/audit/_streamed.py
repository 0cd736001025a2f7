"""The same of more rows than memory holds: chunk by chunk, exactly."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jnl.audit._confident import off_diagonal, warn_of_own_rows
from jnl.audit._issues import Counted, Rule, apply, check_rule
from jnl.audit._rows import (
  Rows,
  as_numpy,
  class_sums,
  means_of,
  own_of,
  pair_counts,
  read,
  suggest,
)
from jnl.base import check

Chunks = Callable[[], Iterable[tuple[Any, Any]]]
"""Starts anew and gives (labels [b], probabilities [b, c]), chunk by chunk."""


class StreamedJoint(NamedTuple):
  """The confident joint of all chunks, and what it was counted with.

  Attributes:
    counts: [c, c] int, as in `ConfidentJoint`.
    label_counts: [c] int, how many rows have each label.
    thresholds: [c].
  """

  counts: np.ndarray
  label_counts: np.ndarray
  thresholds: np.ndarray


def confident_joint_streamed(chunks: Chunks, num_classes: int) -> StreamedJoint:
  """Counts rows as `confident_joint` does, without ever holding all of them.

  The rows are read twice, for the thresholds and for the counts; the result is
  the same, whatever the size of the chunks.

  Args:
    chunks: a function that starts anew and gives pairs of labels [b] int and
      out-of-sample probabilities [b, c], in the same order each time. The size
      b may vary.
    num_classes: c.

  Returns:
    `StreamedJoint`, numpy.

  Raises:
    TypeError, ValueError: as `confident_joint`; and if `chunks` is no function,
      or gives other rows the second time.

  >>> halves = [([0, 0], [[.9, .1], [.1, .9]]), ([1], [[.2, .8]])]
  >>> confident_joint_streamed(lambda: halves, 2).counts.tolist()
  [[1, 1], [0, 1]]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  return _count(chunks, num_classes)[0]


def find_label_issues_streamed(
  chunks: Chunks,
  num_classes: int,
  *,
  filter_by: Rule = 'prune_by_noise_rate',
  frac_noise: float = 1.0,
  min_examples_per_class: int = 1,
  num_to_remove_per_class: Any = None,
) -> np.ndarray:
  """Finds the labels of `find_label_issues`, without ever holding all rows.

  A third pass finds the cut of every pair of given and suggested class. A
  fourth one is needed where more rows are to be taken than lean to the other
  class. What is kept of a row are some numbers, never its probabilities.

  Args:
    chunks: as in `confident_joint_streamed`.
    num_classes: c.
    filter_by: the rule, as in `find_label_issues`, like all that follow.
    frac_noise: in [0, 1].
    min_examples_per_class: int.
    num_to_remove_per_class: [c] int.

  Returns:
    [n] bool, in the order of the rows, numpy; the same as in memory.

  Raises:
    TypeError, ValueError: as `confident_joint_streamed` and
      `find_label_issues`.

  >>> halves = [([0, 0], [[.9, .1], [.1, .9]]), ([1], [[.2, .8]])]
  >>> find_label_issues_streamed(lambda: halves, 2).tolist()
  [False, True, False]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (section 3.2).
  """
  options = frac_noise, min_examples_per_class, num_to_remove_per_class
  check_rule(filter_by, *options)
  _, counted = _count(chunks, num_classes)
  n = len(counted.contradicts)
  return apply(
    filter_by, lambda: _read(chunks, num_classes, n), counted, *options
  )


def _count(chunks: Chunks, c: int) -> tuple[StreamedJoint, Counted]:
  total, weight, dtype = np.zeros(c), np.zeros(c, np.int64), np.float32
  for rows in _read(chunks, c):
    sums, number = class_sums(rows, own_of(rows))
    total, weight, dtype = total + sums, weight + number, rows.probs.dtype
  thresholds = means_of(total, weight, dtype)
  n = int(weight.sum())
  counts = np.zeros((c, c), np.int64)
  contradicts, off = np.zeros(n, bool), np.zeros(n, bool)
  first = 0
  for rows in _read(chunks, c, n):
    found = suggest(rows, own_of(rows), thresholds, 'all')
    counts += pair_counts(rows.labels, found.guess, c)
    part = slice(first, first + len(rows.labels))
    contradicts[part] = found.contradicts
    off[part] = off_diagonal(rows, found)
    first = part.stop
  warn_of_own_rows(contradicts)
  np.fill_diagonal(counts, np.maximum(np.diag(counts), 1))
  joint = StreamedJoint(counts, weight, thresholds)
  return joint, Counted(counts, weight, contradicts, off)


def _read(chunks: Chunks, c: int, n: int | None = None) -> Iterator[Rows]:
  """The chunks, on the host, checked; there have to be n rows."""
  check(
    callable(chunks),
    'chunks must be a function that gives an iterator, such as lambda: '
    'iter(...): the rows are read more than once',
    TypeError,
  )
  number = 0
  for labels, pred_probs in chunks():
    rows = read(labels, pred_probs)
    check(
      rows.probs.shape[1] == c,
      f'chunks must have num_classes = {c} columns, got shape '
      f'{rows.probs.shape}',
    )
    number += len(rows.labels)
    yield as_numpy(rows)
  check(
    n is None or number == n,
    f'chunks gave {n} rows first and {number} then: the function has to start '
    'anew each time',
  )
