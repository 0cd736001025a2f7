"""Scores of held-out sets, for `fit(scores=)` and `evaluate(score=)`.

Of labels: `accuracy` (the default), `balanced_accuracy`, `worst_class`,
`macro_f1`, `micro_f1`, `f1`, `expected_calibration_error`; of two classes:
`roc_auc`, `average_precision`, `fpr_at_95`; of several labels a row:
`mean_average_precision`; of rows of which some are of no class:
`harmonic_accuracy`; of candidates: `coverage`; of bags: `bag_nll`.
`mean` and `quantiles` make one of any value of an example, `join` one of
several. Each gives numbers by name: `accuracy` of a set `test` is the column
`test_accuracy` of a history. A row of weight 0 is not there, whatever it holds;
other weights count as scikit-learn's `sample_weight`. Where a value that counts
is NaN, so is what is made of values: a run that has diverged shows it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Batch, State, check, global_mean
from jnl.steps import bag_logits
from jnl.train._score import Predict, Score, of_x


def _nan_like(values: Array, weight: Array) -> Array:
  """0, [], or NaN if a value [n] that counts is."""
  return jnp.where(jnp.any(jnp.isnan(values) & (weight > 0)), jnp.nan, 0.0)


# --- means -------------------------------------------------------------------


def mean(
  name: str,
  of: Callable[[Any, Batch], Array],
  forward: Callable[[Predict, State, Batch], Any] = of_x,
) -> Score:
  """The mean of a value of each example, by `weight`.

  Args:
    name: of the number.
    of: `(outputs, batch) -> [b]`.
    forward: as of a `Score`; `bags` gives `of` the logits of bags.

  Returns:
    The score; 0 of a set without weight.

  >>> entropy = mean('entropy', lambda outputs, batch: jax.scipy.special.entr(
  ...   jax.nn.softmax(outputs.logits)).sum(-1))
  """

  def collect(outputs: Any, batch: Batch) -> Array:
    return of(outputs, batch).astype(jnp.float32)

  def reduce(rows: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: global_mean(rows, arrays['weight'])}

  return Score(collect, reduce, forward)


def hits(outputs: Any, batch: Batch) -> Array:
  """Where the likeliest class is the label.

  Args:
    outputs: with `logits` [b, c].
    batch: with `labels` [b].

  Returns:
    [b] bool.

  Raises:
    ValueError: if there are not as many labels as logits.
  """
  return _top(outputs, batch) == batch['labels']


def _top(outputs: Any, batch: Batch) -> Array:
  """The likeliest class, [b]; of examples with one label each."""
  shape = batch['labels'].shape
  check(
    len(shape) == 1 and outputs.logits.shape[:-1] == shape,
    'labels must be [n] integers for logits [n, c], got '
    f'{list(shape)} for {list(outputs.logits.shape)}',
  )
  return jnp.argmax(outputs.logits, -1)


accuracy = mean('accuracy', hits)
"""The share of examples whose likeliest class is their label."""


def _candidates_hit(outputs: Any, batch: Batch) -> Array:
  top = jnp.argmax(outputs.logits, -1)[:, None]
  return jnp.take_along_axis(batch['candidates'], top, axis=1)[:, 0]


coverage = mean('coverage', _candidates_hit)
"""The share of examples whose likeliest class is one of their `candidates`."""


# --- classes -----------------------------------------------------------------


class _Rows(NamedTuple):
  """The prediction [b]; `none` [b, 0, c] hands on c and holds nothing."""

  prediction: Array
  none: Array


class _Counts(NamedTuple):
  """Weight by class, [c] each."""

  right: Array
  labeled: Array
  predicted: Array


def _predictions(outputs: Any, batch: Batch) -> _Rows:
  prediction = _top(outputs, batch)
  c = outputs.logits.shape[-1]
  return _Rows(prediction, jnp.zeros((len(prediction), 0, c), bool))


def _counts(rows: _Rows, arrays: Mapping[str, Array]) -> _Counts:
  classes = jnp.arange(rows.none.shape[-1])
  weight, labels = arrays['weight'], arrays['labels']

  def by_class(of: Array, where: Array) -> Array:
    own = (of[:, None] == classes) & where[:, None] & (weight[:, None] > 0)
    return jnp.sum(jnp.where(own, weight[:, None], 0), axis=0)

  everywhere = jnp.ones(labels.shape, bool)
  return _Counts(
    by_class(labels, rows.prediction == labels),
    by_class(labels, everywhere),
    by_class(rows.prediction, everywhere),
  )


def _of_classes(name: str, of: Callable[[_Counts], Array]) -> Score:
  return Score(
    _predictions, lambda rows, arrays: {name: of(_counts(rows, arrays))}
  )


def _ratio(part: Array, whole: Array) -> Array:
  """The ratio, and 0 where there is nothing to divide by."""
  return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _recall(counts: _Counts) -> tuple[Array, Array]:
  """The recall of each class, [c], and where there is one."""
  return _ratio(counts.right, counts.labeled), counts.labeled > 0


def _mean_recall(counts: _Counts) -> Array:
  recall, present = _recall(counts)
  return _ratio(jnp.sum(recall), jnp.sum(present).astype(recall.dtype))


def _least_recall(counts: _Counts) -> Array:
  recall, present = _recall(counts)
  least = jnp.min(recall, initial=1, where=present)
  return jnp.where(jnp.any(present), least, 0)


balanced_accuracy = _of_classes('balanced_accuracy', _mean_recall)
"""The mean recall of the classes that have examples."""
worst_class = _of_classes('worst_class', _least_recall)
"""The least recall of a class that has examples."""


def f1(
  average: Literal['macro', 'micro'], *, without: Sequence[int] = ()
) -> Score:
  """The F1 score of classes, 2 right / (labeled + predicted).

  Args:
    average: 'macro' is the mean over the classes that are a label or a
      prediction of an example; 'micro' has the sums over all classes in the
      fraction, which is the accuracy, unless some are left out.
    without: classes that are left out, such as "no relation".

  Returns:
    The score `macro_f1` or `micro_f1`; 0 where no class is left.

  Raises:
    ValueError: if the average is neither.

  >>> sorted(f1('micro', without=[0])._fields)
  ['collect', 'forward', 'reduce']
  """
  check(
    average in ('macro', 'micro'),
    f"average must be 'macro' or 'micro', got {average!r}",
  )

  def of(counts: _Counts) -> Array:
    kept = jnp.ones(counts.right.shape, bool)
    for k in without:
      kept = kept.at[k].set(False)
    right = jnp.where(kept, 2 * counts.right, 0)
    either = jnp.where(kept, counts.labeled + counts.predicted, 0)
    if average == 'micro':
      return _ratio(jnp.sum(right), jnp.sum(either))
    known = jnp.sum(either > 0).astype(right.dtype)
    return _ratio(jnp.sum(_ratio(right, either)), known)

  return _of_classes(f'{average}_f1', of)


macro_f1 = f1('macro')
"""The mean F1 score of the classes; see `f1`."""
micro_f1 = f1('micro')
"""The F1 score of all decisions, which is the accuracy; see `f1`."""


def expected_calibration_error(bins: int = 15) -> Score:
  """How far confidence is from accuracy, over bins of equal confidence.

  .. math:: \\sum_k |\\sum_{i \\in B_k} w_i (hit_i - p_i)| / \\sum_i w_i

  with p the probability of the likeliest class, and B_k those examples whose p
  lies in ((k - 1) / bins, k / bins].

  Args:
    bins: their number.

  Returns:
    The score `expected_calibration_error`, in [0, 1].

  Raises:
    ValueError: if there is no bin.

  Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
  Networks", ICML 2017, arXiv 1706.04599 (eq. 3).
  """
  check(bins >= 1, f'bins must be at least 1, got {bins}')

  def collect(outputs: Any, batch: Batch) -> tuple[Array, Array]:
    logits = outputs.logits.astype(jnp.float32)
    confidence = jnp.max(jax.nn.softmax(logits), -1)
    return hits(outputs, batch), confidence

  def reduce(rows: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    hit, confidence = rows
    weight = arrays['weight']
    bin_ = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1)
    own = (bin_[:, None] == jnp.arange(bins)) & (weight[:, None] > 0)
    gap = (weight * (hit - confidence))[:, None]
    gaps = jnp.abs(jnp.sum(jnp.where(own, gap, 0), axis=0))
    total = jnp.sum(jnp.where(weight > 0, weight, 0))
    error = _ratio(jnp.sum(gaps), total) + _nan_like(confidence, weight)
    return {'expected_calibration_error': error}

  return Score(collect, reduce)


# --- ranks -------------------------------------------------------------------


def roc_auc_of(
  values: Array, labels: Array, weight: ArrayLike | None = None
) -> Array:
  """The area under the ROC curve: how often a positive ranks above a negative.

  Ties count half.

  Args:
    values: [n], that rank.
    labels: [n] int or bool, 1 for positives and 0.
    weight: [n], by default 1; a row of weight 0 is not there.

  Returns:
    [] float32 in [0, 1]; one half where a class is absent.

  >>> values = jnp.array([.1, .4, .4, .8])
  >>> float(roc_auc_of(values, jnp.array([0, 0, 1, 1])))
  0.875
  """
  values, positive, negative, unknown = _split(values, labels, weight)
  order = jnp.argsort(values)
  ranked, positive = values[order], positive[order]
  # Weights of 1 are counted without rounding up to 2^24.
  sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(negative[order])])
  below = sums[jnp.searchsorted(ranked, ranked, method='sort')]
  upto = sums[jnp.searchsorted(ranked, ranked, 'right', method='sort')]
  pairs = jnp.sum(positive) * sums[-1]
  wins = jnp.sum(positive * (below + upto) / 2)
  area = jnp.where(pairs > 0, wins / jnp.where(pairs > 0, pairs, 1), 0.5)
  return area + unknown


def average_precision_of(
  values: Array, labels: Array, weight: ArrayLike | None = None
) -> Array:
  """The mean precision at the ranks of the positives.

  The precision is that of all that rank as high or higher.

  Args:
    values: [n], that rank.
    labels: [n] int or bool, 1 for positives and 0.
    weight: [n], by default 1; a row of weight 0 is not there.

  Returns:
    [] float32 in [0, 1]; 0 where there are no positives.

  >>> values = jnp.array([.1, .4, .35, .8])
  >>> round(float(average_precision_of(values, jnp.array([0, 0, 1, 1]))), 3)
  0.833
  """
  values, positive, negative, unknown = _split(values, labels, weight)
  order = jnp.argsort(-values)
  ranked, positive = -values[order], positive[order]
  last = jnp.searchsorted(ranked, ranked, 'right', method='sort') - 1
  found = jnp.cumsum(positive)[last]
  precision = _ratio(found, found + jnp.cumsum(negative[order])[last])
  return _ratio(jnp.sum(positive * precision), jnp.sum(positive)) + unknown


def fpr_at_95_of(
  values: Array, labels: Array, weight: ArrayLike | None = None
) -> Array:
  """How many negatives rank as high as 95% of the positives, at the least.

  .. math:: \\min_t \\{ FPR(t) : TPR(t) \\ge .95 \\}

  over thresholds t, rows of value t above it. Some codes take instead the
  threshold whose recall is nearest to .95.

  Args:
    values: [n], that rank.
    labels: [n] int or bool, 1 for positives and 0.
    weight: [n], by default 1; a row of weight 0 is not there.

  Returns:
    [] float32 in [0, 1]; .95, as of a coin, where a class is absent.

  >>> values = jnp.array([.1, .4, .4, .8])
  >>> float(fpr_at_95_of(values, jnp.array([0, 0, 1, 1])))
  0.5
  """
  values, positive, negative, unknown = _split(values, labels, weight)
  order = jnp.argsort(-values)
  ranked = -values[order]
  last = jnp.searchsorted(ranked, ranked, 'right', method='sort') - 1
  found = jnp.cumsum(positive[order])
  wrong = jnp.cumsum(negative[order])
  enough = found >= 0.95 * found[-1]
  least = jnp.min(wrong[last], initial=wrong[-1], where=enough[last])
  both = (found[-1] > 0) & (wrong[-1] > 0)
  return jnp.where(both, _ratio(least, wrong[-1]), 0.95) + unknown


def _split(
  values: Array, labels: Array, weight: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
  """Values, the weights of positives and of negatives, [n] each; 0 or NaN."""
  weight = jnp.ones(values.shape) if weight is None else jnp.asarray(weight)
  there = weight > 0
  unknown = _nan_like(values, weight)
  values = jnp.where(there, values.astype(jnp.float32), 0)
  weight = jnp.where(there, weight.astype(jnp.float32), 0)
  positive = labels == 1
  zero = jnp.zeros_like(weight)
  return (
    values,
    jnp.where(positive, weight, zero),
    jnp.where(positive, zero, weight),
    unknown,
  )


def log_odds(outputs: Any, batch: Batch) -> Array:
  """Log-odds of the second of two classes.

  Args:
    outputs: with `logits` [b, 2].
    batch: not looked at.

  Returns:
    [b].

  Raises:
    ValueError: if there are not two classes.
  """
  del batch
  c = outputs.logits.shape[-1]
  check(c == 2, f'logits must be of two classes, got {c}')
  return outputs.logits[..., 1] - outputs.logits[..., 0]


def _of_ranks(name: str, of: Callable[..., Array]) -> Score:
  def reduce(rows: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: of(rows, arrays['labels'], arrays['weight'])}

  return Score(log_odds, reduce)


def _logits(outputs: Any, batch: Batch) -> Array:
  """The logits of several labels, each a question of its own, [b, c]."""
  shape = batch['labels'].shape
  check(
    len(shape) == 2 and outputs.logits.shape == shape,
    'labels must be [n, c] bool or 0 and 1 for logits [n, c], got '
    f'{list(shape)} for {list(outputs.logits.shape)}',
  )
  return outputs.logits


def _mean_precision(
  rows: Array, arrays: Mapping[str, Array]
) -> dict[str, Array]:
  """Of the labels that some row has, and NaN if a row that counts is."""
  labels, weight = arrays['labels'], arrays['weight']
  own = jax.vmap(average_precision_of, (1, 1, None))(rows, labels, weight)
  held = jnp.any((labels == 1) & (weight > 0)[:, None], axis=0)
  total = jnp.sum(jnp.where(held, own, 0))
  return {'mean_average_precision': _ratio(total, jnp.sum(held))}


roc_auc = _of_ranks('roc_auc', roc_auc_of)
"""The area under the ROC curve of two classes; see `roc_auc_of`."""
average_precision = _of_ranks('average_precision', average_precision_of)
"""The average precision of the second of two classes."""
mean_average_precision = Score(_logits, _mean_precision)
"""Of `labels` [n, c] bool, or 0 and 1, and as many logits: the mean over labels
of `average_precision_of`, but those that no row has; 0 if none has any."""
fpr_at_95 = _of_ranks('fpr_at_95', fpr_at_95_of)
"""The false positives at 95% recall of the second class; `fpr_at_95_of`."""


# --- rows of no class --------------------------------------------------------


class HarmonicAccuracy(NamedTuple):
  """How right it is to keep some rows and to reject others.

  Attributes:
    kept: [], of the rows that have a class, how many are kept, and of the class
      that is said; Acc_S in the paper.
    rejected: [], of those that have none, how many are rejected; Acc_N.
    harmonic: [], the harmonic mean of both; Acc_H.
  """

  kept: Array
  rejected: Array
  harmonic: Array


def harmonic_accuracy_of(
  predictions: ArrayLike,
  rejected: ArrayLike,
  labels: ArrayLike,
  weight: ArrayLike | None = None,
) -> HarmonicAccuracy:
  r"""Accuracy where some rows are of no class, and are to be rejected.

  .. math:: H = 2 S N / (S + N)

  with S the share of right and kept rows among those of a class, and N the
  share of rejected rows among the others.

  Args:
    predictions: [n] int, the class that is said.
    rejected: [n] bool, the rows that are said to have none.
    labels: [n] int; negative is of no class.
    weight: [n], by default 1; a row of weight 0 is not there.

  Returns:
    All three, float32; NaN of rows that there are none of, so that a stream
    without noise has no harmonic mean.

  Raises:
    ValueError: if an argument is not [n].

  >>> said, rejected = jnp.array([0, 1, 1, 2]), jnp.array([0, 0, 1, 0], bool)
  >>> labels = jnp.array([0, 0, -1, -1])
  >>> [float(x) for x in harmonic_accuracy_of(said, rejected, labels)]
  [0.5, 0.5, 0.5]

  Reference: Cao, Zhong, Zhou, Liu, Liu, Han, "Noisy Test-Time Adaptation in
  Vision-Language Models", ICLR 2025, arXiv 2502.14604.
  """
  labels = jnp.asarray(labels)
  weight = jnp.ones(labels.shape) if weight is None else jnp.asarray(weight)
  for name, rows in (
    ('predictions', predictions),
    ('rejected', rejected),
    ('labels', labels),
    ('weight', weight),
  ):
    check(
      jnp.shape(rows) == labels.shape and labels.ndim == 1,
      f'{name} must be [n] as labels are, got shape {jnp.shape(rows)} for '
      f'labels {labels.shape}',
    )
  of_class, rejected = labels >= 0, jnp.asarray(rejected).astype(bool)

  def share(hit: Array, own: Array) -> Array:
    w = jnp.where(own, weight, 0).astype(jnp.float32)
    return jnp.where(jnp.any(w > 0), global_mean(hit, w), jnp.nan)

  right = ~rejected & (jnp.asarray(predictions) == labels)
  kept, found = share(right, of_class), share(rejected, ~of_class)
  either = kept + found
  mean = 2 * kept * found / jnp.where(either == 0, 1, either)
  return HarmonicAccuracy(kept, found, mean)


def _kept_and_rejected(outputs: Any, batch: Batch) -> tuple[Array, Array]:
  return _top(outputs, batch), outputs.aux['noise']


def _harmonic(rows: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
  top, rejected = rows
  labels, weight = arrays['labels'], arrays['weight']
  found = harmonic_accuracy_of(top, rejected, labels, weight)
  return {
    'kept_accuracy': found.kept,
    'rejected_accuracy': found.rejected,
    'harmonic_accuracy': found.harmonic,
  }


harmonic_accuracy = Score(_kept_and_rejected, _harmonic)
"""Of outputs whose `aux['noise']` [b] says which rows are rejected, and labels
of which the negative ones are of no class: `kept_accuracy`,
`rejected_accuracy`, `harmonic_accuracy`; see `harmonic_accuracy_of`."""


# --- quantiles ---------------------------------------------------------------


def quantiles_of(
  values: Array, levels: ArrayLike, weight: ArrayLike | None = None
) -> Array:
  """Quantiles, interpolated between neighbors.

  Args:
    values: [n].
    levels: [k] in [0, 1].
    weight: [n], by default 1; a value of weight w counts as w copies of it.

  Returns:
    [k] float32; NaN where there is no value.

  >>> quantiles_of(jnp.array([3., 1., 2.]), [0., .5, .75]).tolist()
  [1.0, 2.0, 2.5]
  """
  weight = jnp.ones(values.shape) if weight is None else jnp.asarray(weight)
  there = weight > 0
  values = jnp.where(there, values.astype(jnp.float32), jnp.inf)
  order = jnp.argsort(values)
  sums = jnp.cumsum(jnp.where(there, weight, 0)[order])
  place = jnp.asarray(levels) * jnp.maximum(sums[-1] - 1, 0)
  first = jnp.floor(place)
  last = jnp.sum(there) - 1

  def at(copy: Array) -> Array:
    row = jnp.searchsorted(sums, copy, side='right')
    return values[order[jnp.minimum(row, last)]]

  low, high, share = at(first), at(first + 1), place - first
  # Neither product may be that of 0 and infinity.
  mixed = low + jnp.where(share > 0, share * (high - low), 0)
  known = jnp.any(there) & ~jnp.any(there & jnp.isnan(values))
  return jnp.where(known, mixed, jnp.nan)


def quantiles(
  name: str,
  of: Callable[[Any, Batch], Array],
  levels: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
  forward: Callable[[Predict, State, Batch], Any] = of_x,
) -> Score:
  """Quantiles of a value of each example.

  Args:
    name: of the value; the numbers are `NAME_q10`, `NAME_q25`, ...
    of: `(outputs, batch) -> [b]`.
    levels: in [0, 1].
    forward: as of a `Score`.

  Returns:
    The score.

  Raises:
    ValueError: if a level is not in [0, 1].
  """
  check(
    len(levels) > 0 and all(0 <= level <= 1 for level in levels),
    f'levels must lie in [0, 1], got {levels}',
  )

  def reduce(rows: Array, arrays: Mapping[str, Array]) -> dict[str, Array]:
    found = quantiles_of(rows, jnp.asarray(levels), arrays['weight'])
    names = [f'{name}_q{100 * level:g}' for level in levels]
    return dict(zip(names, found, strict=True))

  return Score(of, reduce, forward)


# --- bags, and several -------------------------------------------------------


def bags(predict: Predict, state: State, batch: Batch) -> Array:
  """The logits of the instances of bags, as `Score.forward`.

  Args:
    predict: of a method.
    state: its state.
    batch: with `x` [b, m, ...].

  Returns:
    [b, m, c].
  """
  return bag_logits(predict, state, batch['x'])


def bag_nll(infer: Callable[[Array, Batch], Any]) -> Score:
  """How unlikely the evidence about bags is, the mean over what can be.

  Args:
    infer: `(logits [b, m, c], batch) -> automata.Inference`, as for
      `methods.weak_em`: `lambda z, b: automata.count(z, b['counts'],
      b['mask'])`, say.

  Returns:
    The score `nll`: minus the mean log-likelihood, over bags whose evidence is
    not impossible by itself.
  """

  def collect(logits: Array, batch: Batch) -> tuple[Array, Array]:
    found = infer(logits, batch)
    return found.log_likelihood, found.feasible

  def reduce(rows: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    log_likelihood, feasible = rows
    return {'nll': global_mean(-log_likelihood, arrays['weight'] * feasible)}

  return Score(collect, reduce, bags)


def join(*scores: Score) -> Score:
  """Several scores as one, of one pass of the network.

  Args:
    *scores: whose numbers have names of their own.

  Returns:
    The score with the numbers of all.

  Raises:
    ValueError: when it is used, if two numbers have one name.

  >>> both = join(accuracy, expected_calibration_error())
  """
  # Scores that look at the same outputs share them.
  forwards = list(dict.fromkeys(score.forward for score in scores))
  place = [forwards.index(score.forward) for score in scores]

  def forward(predict: Predict, state: State, batch: Batch) -> list:
    return [of(predict, state, batch) for of in forwards]

  def collect(outputs: list, batch: Batch) -> list:
    pairs = zip(scores, place, strict=True)
    return [score.collect(outputs[i], batch) for score, i in pairs]

  def reduce(rows: list, arrays: Mapping[str, Array]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for score, own in zip(scores, rows, strict=True):
      numbers = score.reduce(own, arrays)
      double = sorted(set(found) & set(numbers))
      check(not double, f'two scores have a number called {double}')
      found |= numbers
    return found

  return Score(collect, reduce, forward)
