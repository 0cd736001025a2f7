"""Confident learning: who is confidently of which class, counted by label."""

from typing import Any, Literal, NamedTuple, get_args
import warnings

import numpy as np

from jnl.audit._rows import (
  BLOCK,
  MARGIN,
  Argmax,
  Rows,
  as_given,
  class_means,
  numbers,
  on_cores,
  own_of,
  pair_counts,
  parts_of,
  read,
  suggest,
)
from jnl.base import check, check_name, is_concrete

TINY = 1e-100
FEW = 30  # rows among which perfect predictions are no surprise
Latents = Literal['cnt', 'eqn', 'marginal', 'marginal_ps']
LATENTS = get_args(Latents)
Estimate = Literal['off_diagonal', 'off_diagonal_calibrated']
ESTIMATES = get_args(Estimate)


class ConfidentJoint(NamedTuple):
  """Rows counted by their label and by the class that they suggest.

  Attributes:
    counts: [c, c] int; `counts[i, j]` rows of label i are confidently of class
      j. The diagonal is at least 1.
    guess: [n] int32, the class that a row suggests, -1 where none is confident.
    confident: [n] bool, whether one is.
  """

  counts: Any
  guess: Any
  confident: Any


class Latent(NamedTuple):
  """What the true labels are like, from counts of pairs.

  Attributes:
    prior: [c], P(true = j).
    noise: [c, c], `noise[i, j]` = P(given = i | true = j); columns sum to one.
    inverse: [c, c], `inverse[j, i]` = P(true = j | given = i); columns too.
  """

  prior: Any
  noise: Any
  inverse: Any


# --- of rows -----------------------------------------------------------------


def confident_thresholds(
  labels: Any, pred_probs: Any, *, weights: Any = None
) -> Any:
  r"""How probable a class is on average where it is the label.

  .. math:: t_k = \sum_{i: s_i = k} w_i p_{ik} \Big/ \sum_{i: s_i = k} w_i

  and at least 2e-6. A class without examples has the threshold 2, which nothing
  reaches.

  Args:
    labels: s, [n] int in [0, c).
    pred_probs: p, [n, c], out-of-sample probabilities.
    weights: w, [n] >= 0, or bool. Rows of weight 0 may hold anything.

  Returns:
    [c], of the kind and dtype of `pred_probs`. On the host sums are of float64;
    on devices of float32 in parts, off by some 1e-7.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> confident_thresholds([0, 0, 1], [[.9, .1], [.7, .3], [.2, .8]])
  array([0.8, 0.8])

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (eq. 2).
  """
  mask = None
  if weights is not None:
    weights = numbers('weights', weights)
    check(
      not is_concrete(weights) or np.all(np.asarray(weights) >= 0),
      'weights must not be negative or NaN',
    )
    n = np.shape(pred_probs)[:1]
    check(
      weights.shape == n, f'weights must be {[*n]}, got shape {weights.shape}'
    )
    mask = weights > 0
  rows = read(labels, pred_probs, mask)
  return as_given(class_means(rows, own_of(rows), weights), rows.probs)


def confident_joint(
  labels: Any,
  pred_probs: Any,
  thresholds: Any = None,
  *,
  mask: Any = None,
  argmax_over: Argmax = 'all',
) -> ConfidentJoint:
  r"""Counts rows by their label and by the class that they confidently suggest.

  A class is confident in a row if it is as probable there as it is on average
  where it is the label:

  .. math::
    C_{ij} = \#\{r : s_r = i,\ g_r = j\},\qquad
    g_r = \arg\max_k p_{rk} \text{ over } \{k : p_{rk} \ge t_k - 10^{-6}\}

  If several classes are confident, the code of the paper takes the largest of
  *all* classes, which need not be confident itself; `argmax_over='confident'`
  is what the paper says. Of equal probabilities the lowest class is taken.

  The number of rows by label and argmax, which looks alike, is not this: rows
  without a confident class count there, and classes that a model is more sure
  of than of others win.

  Args:
    labels: s, [n] int in [0, c).
    pred_probs: p, [n, c], probabilities of a model that has not learned from
      the row itself (see `jnl.train.out_of_fold`).
    thresholds: t, [c]; by default `confident_thresholds` of the rows that
      count.
    mask: [n] bool, the rows that count; by default all. Others may hold
      anything.
    argmax_over: 'all' as in the code, 'confident' as in the paper.

  Returns:
    `ConfidentJoint`. Under `jax.jit` with rows over several devices it takes
    two small all-reduces, of the sums of thresholds and of the counts.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if a row
      that counts does not hold probabilities.

  >>> joint = confident_joint([0, 0, 1], [[.9, .1], [.1, .9], [.2, .8]])
  >>> joint.counts.tolist(), joint.guess.tolist()
  ([[1, 1], [0, 1]], [0, 1, 1])

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (eq. 1).
  """
  rows = read(labels, pred_probs, mask)
  counts, found = count(rows, thresholds, argmax_over)
  return as_given(
    ConfidentJoint(counts, found.guess, found.guess >= 0), rows.probs
  )


def count(rows: Rows, thresholds: Any, argmax_over: Argmax) -> tuple[Any, Any]:
  """The counts of pairs [c, c], and what each row suggests."""
  c = rows.probs.shape[1]
  own = own_of(rows)
  if thresholds is None:
    thresholds = class_means(rows, own, None)
  thresholds = numbers('thresholds', thresholds)
  check(
    thresholds.shape == (c,),
    f'thresholds must be [c] = [{c}], got shape {thresholds.shape}',
  )
  found = suggest(rows, own, thresholds, argmax_over)
  warn_of_own_rows(found.contradicts)
  counts = pair_counts(rows.labels, found.guess, c)
  at = np.arange(c)
  if isinstance(counts, np.ndarray):
    counts[at, at] = np.maximum(counts[at, at], 1)
  else:
    counts = counts.at[at, at].max(1)
  return counts, found


def warn_of_own_rows(contradicts: Any) -> None:
  """Warns where every row suggests its own label."""
  if not is_concrete(contradicts) or len(contradicts) < FEW:
    return
  if not np.asarray(contradicts).any():
    warnings.warn(
      'pred_probs put every label first: are they of a model that was trained '
      'on these labels? Nothing can be found so; jnl.train.out_of_fold makes '
      'probabilities of rows that a model has not seen',
      stacklevel=4,
    )


def num_label_issues(
  labels: Any,
  pred_probs: Any,
  *,
  estimate: Estimate = 'off_diagonal',
  mask: Any = None,
) -> int:
  """Estimates how many labels are wrong.

  Args:
    labels: [n] int in [0, c).
    pred_probs: [n, c], out-of-sample probabilities.
    estimate: 'off_diagonal': the rows that confidently suggest another class
      than their label and also contradict it; 'off_diagonal_calibrated':
      n (1 - trace of `estimate_joint`), which is better for two or three
      classes.
    mask: [n] bool, the rows that count; by default all.

  Returns:
    The number; outside jit only.

  Raises:
    TypeError, ValueError: as `confident_joint`.

  >>> num_label_issues([0, 0, 1], [[.9, .1], [.1, .9], [.2, .8]])
  1

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068.
  """
  check_name('estimate', estimate, ESTIMATES)
  rows = read(labels, pred_probs, mask)
  check_outside_jit('num_label_issues', *rows)
  counts, found = count(rows, None, 'all')
  if estimate == 'off_diagonal':
    return int(np.sum(off_diagonal(rows, found)))
  each = label_counts_of(rows)
  trace = np.trace(estimate_joint(np.asarray(counts), each))
  return int(np.rint((1 - trace) * each.sum()))


def off_diagonal(rows: Rows, found: Any) -> np.ndarray:
  """Rows off the diagonal of the joint that contradict their label, [n]."""
  guess, contradicts = np.asarray(found.guess), np.asarray(found.contradicts)
  return (guess >= 0) & (guess != np.asarray(rows.labels)) & contradicts


def label_counts_of(rows: Rows) -> np.ndarray:
  """How many rows that count have each label, [c] int."""
  labels = np.asarray(rows.labels)
  labels = labels if rows.mask is None else labels[np.asarray(rows.mask)]
  return np.bincount(labels, minlength=rows.probs.shape[1])


def check_outside_jit(name: str, *arrays: Any) -> None:
  """Raises for arrays that are being traced: what comes out depends on them."""
  check(
    is_concrete(*arrays),
    f'{name} looks at values: call it outside jit, vmap and shard_map; '
    'confident_joint and label_quality work inside',
    TypeError,
  )


# --- of counts ---------------------------------------------------------------


def calibrate_joint(
  counts: Any, label_counts: Any = None, *, rounding: bool = True
) -> Any:
  """Scales counts of pairs to as many rows of each label as there are.

  Rows without a confident class are missing in `ConfidentJoint.counts`: each
  row of it is scaled to the number of rows with that label, and all to n.

  Args:
    counts: [c, c] >= 0, by label and suggestion.
    label_counts: [c] >= 0, how many rows have each label; by default the sums
      of the rows of `counts`.
    rounding: whether to round to integers that keep the sum of each row: halves
      to the even number, then one more or less where rounding was furthest off;
      of equal ones where `numpy.argsort` says, as cleanlab does.

  Returns:
    [c, c], int if rounded, otherwise float64; computed on the host.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> calibrate_joint([[3, 1], [0, 2]], [8, 2]).tolist()
  [[6, 2], [0, 2]]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (eq. 3).
  """
  values, each = _read_counts(counts, label_counts)
  scaled = _calibrated(values, each)
  return as_given(rounded_rows(scaled) if rounding else scaled, counts)


def _calibrated(values: np.ndarray, each: np.ndarray) -> np.ndarray:
  scaled = values / np.maximum(values.sum(1), TINY)[:, None]
  scaled *= each[:, None]  # in place: of thousands of classes it is large
  scaled /= max(scaled.sum(), TINY)
  scaled *= each.sum()
  return scaled


def _read_counts(
  counts: Any, label_counts: Any
) -> tuple[np.ndarray, np.ndarray]:
  check_outside_jit('what is computed of counts', counts, label_counts)
  values = np.asarray(numbers('counts', counts), np.float64)
  check(
    values.ndim == 2 and values.shape[0] == values.shape[1] >= 2,
    f'counts must be [c, c] with c >= 2, got shape {values.shape}',
  )
  check(np.all(values >= 0), 'counts must not be negative or NaN')
  if label_counts is None:
    return values, values.sum(1)
  each = np.asarray(numbers('label_counts', label_counts), np.float64)
  check(
    each.shape == values.shape[:1],
    f'label_counts must be [{len(values)}], got shape {each.shape}',
  )
  check(np.all(each >= 0), 'label_counts must not be negative or NaN')
  return values, each


def rounded_rows(values: np.ndarray) -> np.ndarray:
  """Rounds [c, c] to integers that keep the (rounded) sum of each row."""
  whole = np.empty(values.shape, np.int64)

  def run(part: slice) -> None:
    whole[part] = _rounded(values[part])

  size = max(BLOCK // 8 // values.shape[1], 1)  # they are sorted in the cache
  on_cores(run, [*parts_of(len(values), size, overlap=False)])
  return whole


def _rounded(values: np.ndarray) -> np.ndarray:
  whole = np.rint(values)
  missing = np.rint(values.sum(1)) - whole.sum(1)
  rows = np.flatnonzero(missing)
  if not len(rows):
    return whole
  more = missing[rows].astype(int)[:, None]
  # Of equal ones numpy decides which comes first, as in cleanlab.
  order = np.argsort(values[rows] - whole[rows])
  most = np.abs(more).max()
  order = np.where(more > 0, order[:, : -most - 1 : -1], order[:, :most])
  row, place = np.nonzero(np.arange(most) < np.abs(more))
  whole[rows[row], order[row, place]] += np.sign(more)[row, 0]
  return whole


def estimate_joint(counts: Any, label_counts: Any = None) -> Any:
  """The joint distribution of given and true labels, from counts of pairs.

  Args:
    counts: [c, c] >= 0, by label and suggestion.
    label_counts: [c] >= 0, how many rows have each label; by default the sums
      of the rows of `counts`.

  Returns:
    [c, c] that sums to one: `calibrate_joint`, rounded, divided by its sum.

  Raises:
    TypeError, ValueError: as `calibrate_joint`.

  >>> estimate_joint([[3, 1], [0, 2]], [8, 2]).tolist()
  [[0.6, 0.2], [0.0, 0.2]]

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (eq. 3).
  """
  values, each = _read_counts(counts, label_counts)
  whole = rounded_rows(_calibrated(values, each))
  return as_given(whole / max(whole.sum(), 1), counts)


def latent(
  counts: Any, label_counts: Any = None, *, method: Latents = 'cnt'
) -> Latent:
  r"""Estimates the prior of the true labels, and the noise both ways.

  With the counts C, P(given) = ps, and off-diagonal rates clipped to [0,
  .9999]:

  .. math::
    \text{noise}_{ij} = C_{ij} / \textstyle\sum_a C_{aj},\qquad
    \text{inverse}_{ji} = C_{ij} / \textstyle\sum_b C_{ib}

  Args:
    counts: C, [c, c] >= 0, by label and suggestion, as `confident_joint` or
      `calibrate_joint` have them.
    label_counts: [c], how many rows have each label: ps times n. By default the
      sums of the rows of `counts`.
    method: of the prior. 'cnt': ps inverse_jj / noise_jj; 'eqn': noise^-1 ps;
      'marginal': the sums of the columns of C; 'marginal_ps': inverse ps. All
      are clipped to [1e-6, 1] and divided by their sum.

  Returns:
    `Latent`, computed on the host in float64.

  Raises:
    TypeError, ValueError: as `calibrate_joint`; and if 'eqn' meets a class that
      nothing suggests.

  >>> latent([[6, 2], [0, 2]]).prior
  array([0.6, 0.4])

  Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating
  Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068 (section 3).
  """
  check_name('method', method, LATENTS)
  values, each = _read_counts(counts, label_counts)
  given = each / max(each.sum(), TINY)
  noise = values / np.maximum(values.sum(0), TINY)
  inverse = values.T / np.maximum(values.sum(1), TINY)
  if method == 'cnt':
    prior = np.diag(inverse) / np.maximum(np.diag(noise), TINY) * given
  elif method == 'eqn':
    try:
      prior = np.linalg.solve(noise, given)
    except np.linalg.LinAlgError as error:
      raise ValueError(
        "counts have a class that nothing suggests: method must not be 'eqn'"
      ) from error
  elif method == 'marginal':
    prior = values.sum(0) / max(values.sum(), TINY)
  else:
    prior = inverse @ given
  prior = np.clip(prior, MARGIN, 1)
  found = Latent(prior / prior.sum(), _clipped(noise), _clipped(inverse))
  return as_given(found, counts)


def _clipped(rates: np.ndarray) -> np.ndarray:
  off = ~np.eye(len(rates), dtype=bool)
  rates = np.where(off, np.clip(rates, 0, 0.9999), rates)
  return rates / np.maximum(rates.sum(0), TINY)


def noise_of_inverse(inverse: Any, given: Any) -> Any:
  r"""Turns P(true | given) around: P(given | true), by Bayes' rule.

  .. math:: \text{noise}_{ij} \propto \text{inverse}_{ji}\, P(\text{given} = i)

  Args:
    inverse: [c, c], P(true = j | given = i) at [j, i]; columns sum to one.
    given: [c], P(given).

  Returns:
    [c, c], P(given = i | true = j) at [i, j]; columns sum to one. The way back
    is the same: `noise_of_inverse(noise, prior)` is P(true | given).

  Raises:
    ValueError: if a shape does not match.

  >>> noise_of_inverse([[.75, 0.], [.25, 1.]], [.8, .2]).round(2)
  array([[1. , 0.5],
         [0. , 0.5]])
  """
  rates, share = numbers('inverse', inverse), numbers('given', given)
  check(
    rates.ndim == 2 and rates.shape == (len(share),) * 2 and share.ndim == 1,
    f'inverse must be [c, c] and given [c], got {rates.shape}, {share.shape}',
  )
  joint = rates.T * share[:, None]
  total = joint.sum(0)
  return joint / (total + (total == 0))
