"""Of classes: which have many wrong labels, which are taken for one another."""

from typing import Any, NamedTuple

import numpy as np

from jnl.audit._confident import Estimate, check_outside_jit, num_label_issues
from jnl.audit._rows import as_given, numbers
from jnl.base import check

LEAST = 1e-6


class RankedClasses(NamedTuple):
  """Classes, that of the worst labels first.

  Attributes:
    index: [c] int, the class.
    issues: [c] int, about how many rows have this label and another true one.
    missed: [c] int, about how many rows have another label, and this true one.
    noise: [c], P(true is another | given is this).
    missed_rate: [c], P(given is another | true is this).
    quality: [c], 1 - noise.
  """

  index: Any
  issues: Any
  missed: Any
  noise: Any
  missed_rate: Any
  quality: Any


class Overlaps(NamedTuple):
  """Pairs of classes, those that are taken for one another most often first.

  Attributes:
    a: [m] int, a class.
    b: [m] int, a class after it.
    rows: [m] int, about how many rows have the label of one and are of the
      other.
    share: [m], P of that.
  """

  a: Any
  b: Any
  rows: Any
  share: Any


def rank_classes(joint: Any, num_examples: int) -> RankedClasses:
  """Which classes have the worst labels.

  Args:
    joint: [c, c], of given and true labels, sums to one: `estimate_joint`.
    num_examples: n, of how many rows.

  Returns:
    `RankedClasses`, ascending by quality, equal ones by index. A class without
    rows has the quality 1.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> rank_classes([[.6, .2], [0., .2]], 10).index.tolist()
  [0, 1]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  values = _read_joint(joint, num_examples)
  given, true, both = values.sum(1), values.sum(0), np.diag(values)
  noise = (given - both) / np.maximum(given, LEAST)
  order = np.argsort(1 - noise, kind='stable')
  found = RankedClasses(
    np.arange(len(values)),
    np.round((given - both) * num_examples).astype(np.int64),
    np.round((true - both) * num_examples).astype(np.int64),
    noise,
    (true - both) / np.maximum(true, LEAST),
    1 - noise,
  )
  return as_given(RankedClasses(*(a[order] for a in found)), joint)


def overlapping_classes(joint: Any, num_examples: int) -> Overlaps:
  """Which classes are taken for one another.

  Args:
    joint: [c, c], of given and true labels, sums to one: `estimate_joint`.
    num_examples: n, of how many rows.

  Returns:
    `Overlaps` of all c (c - 1) / 2 pairs, descending, equal ones by index.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> overlapping_classes([[.6, .2], [0., .2]], 10).rows.tolist()
  [2]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  values = _read_joint(joint, num_examples)
  a, b = np.triu_indices(len(values), 1)
  share = values[a, b] + values[b, a]
  order = np.argsort(-share, kind='stable')
  rows = np.round(share * num_examples).astype(np.int64)
  found = Overlaps(a[order], b[order], rows[order], share[order])
  return as_given(found, joint)


def _read_joint(joint: Any, num_examples: int) -> np.ndarray:
  check_outside_jit('what is read of a joint', joint)
  values = np.asarray(numbers('joint', joint), np.float64)
  check(
    values.ndim == 2 and values.shape[0] == values.shape[1] >= 2,
    f'joint must be [c, c] with c >= 2, got shape {values.shape}',
  )
  total = values.sum()
  check(
    np.all(values >= 0) and abs(total - 1) < 1e-3,
    'joint must not be negative and sum to one (estimate_joint makes it of '
    f'counts); it sums to {total:.6g}',
  )
  check(
    num_examples >= 0, f'num_examples must not be negative, got {num_examples}'
  )
  return values


def health(
  labels: Any,
  pred_probs: Any,
  *,
  estimate: Estimate = 'off_diagonal',
  mask: Any = None,
) -> float:
  """The share of labels that are estimated to be right.

  Args:
    labels: [n] int in [0, c).
    pred_probs: [n, c], out-of-sample probabilities.
    estimate: as in `num_label_issues`. Of a joint alone it is its trace.
    mask: [n] bool, the rows that count; by default all.

  Returns:
    In [0, 1]; 1 of no rows.

  Raises:
    TypeError, ValueError: as `num_label_issues`.

  >>> health([0, 0, 1, 1], [[.9, .1], [.1, .9], [.2, .8], [.3, .7]])
  0.75

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  wrong = num_label_issues(labels, pred_probs, estimate=estimate, mask=mask)
  n = len(labels) if mask is None else int(np.sum(np.asarray(mask)))
  return 1 - wrong / max(n, 1)
