"""Which labels are wrong: seven rules, in a defined order."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args
import warnings

import numpy as np

from jnl.audit._confident import (
  calibrate_joint,
  check_outside_jit,
  count,
  label_counts_of,
  off_diagonal,
  rounded_rows,
)
from jnl.audit._quality import SCORES, Score, scores_of
from jnl.audit._rows import (
  MARGIN,
  Rows,
  as_given,
  as_numpy,
  numbers,
  own_probs,
  parts_of,
  read,
)
from jnl.base import check, check_name
from jnl.inputs import check_between, check_range

Rule = Literal[
  'prune_by_noise_rate',
  'prune_by_class',
  'both',
  'confident_learning',
  'predicted_neq_given',
  'low_normalized_margin',
  'low_self_confidence',
]
CHUNK = 1 << 20  # margins that are looked at together
LOW: dict[str, Score] = {
  'low_normalized_margin': 'normalized_margin',
  'low_self_confidence': 'self_confidence',
}
NOTHING = np.zeros((3, 0), np.int32)
MOST = 1 << 21  # rows that lean to a class which are kept without a cut
PRUNING = ('prune_by_noise_rate', 'prune_by_class', 'both')
RULES = get_args(Rule)

Passes = Callable[[], Iterable[Rows]]
"""Goes over all rows once more; on the host, none masked."""


class Counted(NamedTuple):
  """What two passes over the rows find.

  Attributes:
    counts: [c, c] int, of the confident joint.
    label_counts: [c] int.
    contradicts: [n] bool.
    off_diagonal: [n] bool.
  """

  counts: np.ndarray
  label_counts: np.ndarray
  contradicts: np.ndarray
  off_diagonal: np.ndarray


class Leaning(NamedTuple):
  """Rows that lean to another class than their label, in order.

  Attributes:
    row: [e] int.
    pair: [e] int, label * c + the other class.
    margin: [e], by how much the other one is more probable.
  """

  row: np.ndarray
  pair: np.ndarray
  margin: np.ndarray


def find_label_issues(
  labels: Any,
  pred_probs: Any,
  *,
  filter_by: Rule = 'prune_by_noise_rate',
  frac_noise: float = 1.0,
  min_examples_per_class: int = 1,
  num_to_remove_per_class: Any = None,
  mask: Any = None,
) -> Any:
  """Finds the labels that are probably wrong.

  With M the calibrated joint (`calibrate_joint`), at most n_k - M_kk rows of
  label k are taken. The rules:

  - 'prune_by_noise_rate': for every other class j the M_kj rows of label k with
    the largest p_j - p_k;
  - 'prune_by_class': the n_k - M_kk rows of label k with the smallest p_k;
  - 'both': what both of these take;
  - 'confident_learning': rows off the diagonal of `confident_joint`;
  - 'predicted_neq_given': rows whose most probable class is not the label, as
    many as the model has errors of its own;
  - 'low_normalized_margin', 'low_self_confidence': the lowest `label_quality`,
    `num_label_issues` of them.

  Of all but the last two only rows stay in which some class beats the label by
  more than 1e-6. Of equal rows at a cut the lower index is taken.

  Args:
    labels: [n] int in [0, c).
    pred_probs: [n, c], probabilities of a model that has not learned from the
      row itself (see `jnl.train.out_of_fold`).
    filter_by: the rule.
    frac_noise: in [0, 1], which share of the estimated errors the pruning rules
      take, the most severe ones.
    min_examples_per_class: how many rows of each label pruning leaves at least.
      A label with no more rows than that keeps them all, and a warning says so.
    num_to_remove_per_class: [c] int, how many rows of each label the pruning
      rules take at most, instead of the estimate.
    mask: [n] bool, the rows that count; by default all. Others are never taken
      and may hold anything.

  Returns:
    [n] bool; computed outside jit.

  Raises:
    TypeError, ValueError: if an argument is malformed, or a row that counts
      does not hold probabilities.

  >>> probs = [[.9, .1], [.1, .9], [.8, .2], [.2, .8], [.1, .9]]
  >>> find_label_issues([0, 0, 0, 1, 1], probs).tolist()
  [False, True, False, False, False]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (section 3.2).
  """
  rows = read(labels, pred_probs, mask)
  taken = _find(
    rows,
    filter_by,
    frac_noise,
    min_examples_per_class,
    num_to_remove_per_class,
  )
  return as_given(taken, rows.probs)


def rank_label_issues(
  labels: Any,
  pred_probs: Any,
  *,
  rank_by: Score = 'self_confidence',
  filter_by: Rule = 'prune_by_noise_rate',
  frac_noise: float = 1.0,
  min_examples_per_class: int = 1,
  num_to_remove_per_class: Any = None,
  mask: Any = None,
) -> Any:
  """The rows of `find_label_issues`, the worst first.

  Args:
    labels: [n] int in [0, c).
    pred_probs: [n, c], out-of-sample probabilities.
    rank_by: the score, see `label_quality`. Of equal ones the lower index is
      first.
    filter_by: as in `find_label_issues`, like all that follow.
    frac_noise: in [0, 1].
    min_examples_per_class: int.
    num_to_remove_per_class: [c] int.
    mask: [n] bool.

  Returns:
    [m] int, the rows.

  Raises:
    TypeError, ValueError: as `find_label_issues`.

  >>> probs = [[.9, .1], [.1, .9], [.8, .2], [.2, .8], [.1, .9]]
  >>> rank_label_issues([0, 0, 0, 1, 1], probs).tolist()
  [1]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  check_name('rank_by', rank_by, SCORES)
  rows = read(labels, pred_probs, mask)
  taken = _find(
    rows,
    filter_by,
    frac_noise,
    min_examples_per_class,
    num_to_remove_per_class,
  )
  index = np.flatnonzero(taken)
  host = as_numpy(rows)
  some = Rows(host.labels[index], host.probs[index], None)
  scores = np.asarray(scores_of(some, rank_by, None))
  return as_given(index[np.argsort(scores, kind='stable')], rows.probs)


def find_multilabel_issues(labels: Any, pred_probs: Any, **options: Any) -> Any:
  """Finds wrong entries of multi-label rows, one class after the other.

  Args:
    labels: [n, c] bool, which classes a row is said to have.
    pred_probs: [n, c] in [0, 1], out-of-sample probabilities of each class;
      rows need not sum to one.
    **options: of `find_label_issues`, for every class: whose classes are 0, it
      is not there, and 1, it is. A class that all rows have, or none, has no
      issues.

  Returns:
    [n, c] bool, the entries of `labels` that are probably wrong.

  Raises:
    TypeError, ValueError: as `find_label_issues`.

  >>> labels = np.array([[1], [1], [1], [0], [0]], bool)
  >>> probs = np.array([[.9], [.1], [.8], [.2], [.1]])
  >>> find_multilabel_issues(labels, probs)[:, 0].tolist()
  [False, True, False, False, False]

  Reference: Thyagarajan, Snorrason, Northcutt, Mueller, "Identifying Incorrect
  Annotations in Multi-Label Classification Data", 2022, arXiv 2211.13895.
  """
  given, probs = numbers('labels', labels), numbers('pred_probs', pred_probs)
  check(
    given.dtype == bool, f'labels must be bool, got {given.dtype}', TypeError
  )
  check(
    given.ndim == 2 and given.shape == probs.shape,
    f'labels and pred_probs must both be [n, c], got {given.shape} and '
    f'{probs.shape}',
  )
  check_outside_jit('find_multilabel_issues', given, probs)
  check_between('pred_probs', probs, 0, 1)
  wrong = np.zeros(given.shape, bool)
  has, of_class = np.asarray(given), np.asarray(probs)
  for k in range(given.shape[1]):
    p = of_class[:, k]
    wrong[:, k] = find_label_issues(
      has[:, k].astype(np.int32), np.stack([1 - p, p], 1), **options
    )
  return as_given(wrong, pred_probs)


# --- the rules ---------------------------------------------------------------


def _find(
  rows: Rows,
  rule: Rule,
  frac_noise: float,
  at_least: int,
  to_remove: Any,
) -> np.ndarray:
  check_rule(rule, frac_noise, at_least, to_remove)
  check_outside_jit('find_label_issues', *rows)
  if rows.mask is not None:
    counts = np.asarray(rows.mask)
    some = Rows(rows.labels[counts], rows.probs[counts], None)
    taken = np.zeros(len(counts), bool)
    taken[counts] = _find(some, rule, frac_noise, at_least, to_remove)
    return taken
  pairs, found = count(rows, None, 'all')
  rows = as_numpy(rows)
  counted = Counted(
    np.asarray(pairs),
    label_counts_of(rows),
    np.asarray(found.contradicts),
    off_diagonal(rows, found),
  )
  return apply(rule, lambda: [rows], counted, frac_noise, at_least, to_remove)


def check_rule(
  rule: Rule, frac_noise: float, at_least: int, to_remove: Any
) -> None:
  """Raises ValueError for options that do not go together."""
  check_name('filter_by', rule, RULES)
  check_range('frac_noise', frac_noise, 0, 1)
  check_range('min_examples_per_class', at_least, 0)
  check(
    rule in PRUNING or (to_remove is None and frac_noise == 1),
    f'frac_noise and num_to_remove_per_class are of pruning, not of {rule!r}: '
    f'filter_by must be one of {", ".join(PRUNING)}',
  )


def apply(
  rule: Rule,
  passes: Passes,
  counted: Counted,
  frac_noise: float,
  at_least: int,
  to_remove: Any,
) -> np.ndarray:
  """The rows that a rule takes, [n] bool; goes over them again if need be."""
  if rule == 'predicted_neq_given':
    return counted.contradicts
  if rule == 'confident_learning':
    return counted.off_diagonal
  if rule not in PRUNING:
    score = LOW[rule]
    parts = [scores_of(rows, score, None) for rows in passes()]
    return lowest(np.concatenate(parts), int(counted.off_diagonal.sum()))
  each, taken = counted.label_counts, counted.contradicts
  budget = budgets(counted.counts, each, frac_noise, at_least, to_remove)
  if rule != 'prune_by_noise_rate':
    taken = taken & _by_class(passes, each - np.diag(budget))
  if rule != 'prune_by_class':
    taken = taken & _by_noise_rate(passes, counted.contradicts, budget)
  return taken


def budgets(
  counts: np.ndarray,
  each: np.ndarray,
  frac_noise: float,
  at_least: int,
  to_remove: Any,
) -> np.ndarray:
  """How many rows of label k may go to class j, [c, c] int by (k, j).

  The diagonal is what stays. Nothing goes of labels with few rows.
  """
  diagonal = np.eye(len(each), dtype=bool)
  joint = calibrate_joint(counts, each)
  stays = np.maximum(np.diag(joint), at_least)
  more = stays - np.diag(joint)
  others = np.maximum((joint > 0).sum(1) - 1, 1)
  kept = np.maximum(joint - (more / others)[:, None], 0)
  kept[diagonal] = stays
  part = kept * frac_noise
  part[diagonal] = 0
  part[diagonal] = kept.sum(1) - part.sum(1)
  budget = part.astype(np.int64)  # towards 0, as cleanlab has it
  if to_remove is not None:
    budget = _removing(budget, each, to_remove)
  few = each <= at_least
  if np.any(few & (each > 0)):
    some = np.flatnonzero(few & (each > 0)).tolist()
    warnings.warn(
      f'{len(some)} of the labels have no more rows than '
      f'min_examples_per_class = {at_least}, and none of these is taken: '
      f'labels {some[:10]}',
      stacklevel=5,
    )
  budget[few] = 0
  budget[diagonal] = np.where(few, each, budget[diagonal])
  return budget


def _removing(
  budget: np.ndarray, each: np.ndarray, to_remove: Any
) -> np.ndarray:
  """The same in sum of the numbers that are asked for, [c] by label."""
  asked = np.asarray(numbers('num_to_remove_per_class', to_remove))
  check(
    asked.shape == each.shape
    and np.issubdtype(asked.dtype, np.integer)
    and np.all((asked >= 0) & (asked <= each)),
    'num_to_remove_per_class must be [c] integers between 0 and the number of '
    f'rows of each label, got {asked}',
  )
  off = np.where(np.eye(len(each), dtype=bool), 0, budget).astype(np.float64)
  scaled = rounded_rows(off * (asked / np.maximum(off.sum(1), 1))[:, None])
  np.fill_diagonal(scaled, each - asked)
  return scaled


def _by_class(passes: Passes, number: np.ndarray) -> np.ndarray:
  """The rows of each label with the smallest probability of it."""
  parts = [(r.labels, own_probs(r.labels, r.probs)) for r in passes()]
  labels, own = map(np.concatenate, zip(*parts, strict=True))
  taken = np.zeros(len(own), bool)
  for k, index in enumerate(rows_by_label(labels, len(number))):
    taken[index[lowest(own[index], int(number[k]))]] = True
  return taken


def rows_by_label(labels: np.ndarray, c: int) -> list[np.ndarray]:
  """Which rows have each of c labels, in order."""
  order = np.argsort(smallest(labels, c), kind='stable')
  return np.split(order, np.cumsum(np.bincount(labels, minlength=c))[:-1])


def smallest(values: np.ndarray, end: int) -> np.ndarray:
  """Integers in [0, end) in a dtype that is sorted by radix, if it is one."""
  return values.astype(np.uint16) if end <= 1 << 16 else values


def lowest(values: np.ndarray, number: int) -> np.ndarray:
  """Which are the lowest, [n] bool; of equal ones those that come first."""
  if number <= 0 or number >= len(values):
    return np.full(len(values), number > 0)
  cut = np.partition(values, number - 1)[number - 1]
  taken = values < cut
  at_cut = np.flatnonzero(values == cut)
  taken[at_cut[: number - int(taken.sum())]] = True
  return taken


def _by_noise_rate(
  passes: Passes, contradicts: np.ndarray, budget: np.ndarray
) -> np.ndarray:
  """The rows of each pair of label and class with the largest margins.

  Only rows that contradict their label can be taken in the end, and where their
  margin is positive nobody else comes before them: so only these are looked at.
  A pair with more budget than such rows is looked at again, with all its rows.
  """
  limit = budget.copy()
  np.fill_diagonal(limit, 0)
  leaning = _leaning(passes, contradicts, limit)
  number = np.bincount(leaning.pair, minlength=limit.size)
  taken = np.zeros(len(contradicts), bool)
  taken[_within(leaning, limit.ravel()).row] = True
  short = np.where(number < limit.ravel(), limit.ravel(), 0)
  if short.any():
    taken[_of_pairs(passes, short.reshape(limit.shape)).row] = True
  return taken


def _leaning(
  passes: Passes, contradicts: np.ndarray, limit: np.ndarray
) -> Leaning:
  """Where rows that contradict their label lean to, of pairs with a limit."""
  c, first = len(limit), 0
  allowed, kept = limit > 0, Leaning(*NOTHING)
  for labels, probs, _ in passes():
    index = np.flatnonzero(contradicts[first : first + len(labels)])
    for part in parts_of(len(index), max(1, CHUNK // c), overlap=False):
      row = index[part]
      label = labels[row]
      margin = probs.take(row, 0)
      margin -= own_probs(label, margin)[:, None]
      entry = np.flatnonzero((margin > MARGIN) & allowed.take(label, 0))
      at = entry // c
      pair = label[at] * c + (entry - at * c)
      found = Leaning(first + row[at], pair, margin.ravel()[entry])
      kept = _joined(kept, found, limit)
    first += len(labels)
  return kept


def _of_pairs(passes: Passes, limit: np.ndarray) -> Leaning:
  """The largest margins of all rows of pairs with a limit, within it."""
  c, first = len(limit), 0
  given, other = np.nonzero(limit)
  kept = Leaning(*NOTHING)
  for labels, probs, _ in passes():
    rows = rows_by_label(labels, c)
    index = [rows[k] for k in given]
    margins = [
      probs[row, j] - probs[row, k]
      for row, k, j in zip(index, given, other, strict=True)
    ]
    pair = np.repeat(given * c + other, [*map(len, index)])
    row, margin = np.concatenate(index), np.concatenate(margins)
    order = np.argsort(row, kind='stable')
    found = Leaning(first + row[order], pair[order], margin[order])
    kept = _joined(kept, found, limit)
    first += len(labels)
  return _within(kept, limit.ravel())


def _joined(kept: Leaning, found: Leaning, limit: np.ndarray) -> Leaning:
  """Both, in the order of rows; cut where they become many."""
  both = Leaning(*map(np.concatenate, zip(kept, found, strict=True)))
  return both if len(both.row) < MOST else _within(both, limit.ravel())


def _within(leaning: Leaning, limit: np.ndarray) -> Leaning:
  """Those with the largest margins of each pair, as many as the limit says.

  They come and stay in the order of rows: of equal ones the first are kept.
  """
  order = np.argsort(smallest(leaning.pair, len(limit)), kind='stable')
  number = np.bincount(leaning.pair, minlength=len(limit))
  end = np.cumsum(number)
  kept = np.ones(len(order), bool)
  for pair in np.flatnonzero(number > limit):
    own = order[end[pair] - number[pair] : end[pair]]
    kept[own] = lowest(-leaning.margin[own], int(limit[pair]))
  index = np.flatnonzero(kept)
  return Leaning(*(a.take(index) for a in leaning))
