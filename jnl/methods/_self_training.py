"""Self-training in rounds: a learner guesses, and learns what is sure enough.

A loop on the host over any learner, scikit-learn's too. FPL, IFPL and GRIP are
settings of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, PyTree, check
from jnl.inputs import check_int, check_simplex
from jnl.pseudo import Rule, Seen, boards, growing_quota

Predict = Callable[[Any], ArrayLike]
"""Inputs [m, ...] -> probabilities [m, c]."""
Learner = Callable[[Any, np.ndarray, np.ndarray], Predict]
"""Inputs [m, ...], labels [m] int32 and weights [m] -> what was learned."""


class SelfTrained(NamedTuple):
  """What a loop of rounds has come to.

  Attributes:
    labels: [n] int32, those that were given and those that were guessed; -1 for
      rows that no guess counts of.
    round: [n] int32, the round in which each was guessed: 0 if it was given, -1
      if it has none.
    probs: [n, c], what the last learner predicts.
    rounds: how many rounds there were. With fewer than were asked for all rows
      are labeled, or else nobody was chosen in the last one.
    predict: the last learner: inputs [m, ...] -> probabilities [m, c].
  """

  labels: np.ndarray
  round: np.ndarray
  probs: np.ndarray
  rounds: int
  predict: Predict


class _Guesses(NamedTuple):
  """Guesses that count: rows, classes and weights, [z] each."""

  rows: np.ndarray
  classes: np.ndarray
  weights: np.ndarray


def self_train(
  fit: Learner,
  x: Any,
  labels: ArrayLike | None,
  rule: Rule,
  *,
  rounds: int,
  keep: bool = True,
  start: ArrayLike | None = None,
) -> SelfTrained:
  r"""Labels found in rounds: a learner from scratch, guesses, those that count.

  .. math::
    f_r = \operatorname{argmin}_f \frac1m \sum_{i \in L} \ell(f(x_i), y_i)
      + \frac1{|Z_r|} \sum_{i \in Z_r} w_i \ell(f(x_i), \hat y_i),\qquad
    Z_{r + 1}, w = \mathrm{rule}(f_r(x))

  with L the m labeled rows, and guesses y-hat of the most probable class. At
  last a learner is fitted once more. With `keep` a guess that counts is never
  taken back, nor its weight, and the others are guessed on, as scikit-learn's
  `SelfTrainingClassifier` does; without, all are guessed anew in each round, as
  in curriculum labeling, and `rounds=5` goes with `curriculum(.2)`. It ends
  early where no row is left to guess, or the rule chooses nobody.

  The survey has no code: the loop is made from its text. That labels have a
  mean of their own matters: on digits with three of each class, guesses that
  count as much as labels do harm (`experiments/self_training.py`).

  Args:
    fit: `(x [m, ...], labels [m], weights [m]) -> (x -> probs [m, c])`, begins
      anew each time. Rows come in the order of `x`, the labeled ones and the
      guesses. Their `weights` are of mean 1 where w is 1 or 0: as long as there
      are only labels, or only guesses, they are 1 and w; then labels have (m +
      z) / 2m and guesses w (m + z) / 2z each, with z the number of guesses, so
      that both have a mean each. Who wants all rows to count alike does not
      look at them. Predictions need a column for each class, also for those
      that no label has: a classifier of scikit-learn has columns only for those
      that it saw.
    x: [n, ...], an array, or a sparse matrix whose rows can be taken.
    labels: [n] int, -1 where there is none; of two classes at least, but for
      `start`.
    rule: which guesses count, of `jnl.pseudo`; its memory goes on from round to
      round. It sees all n rows, unlabeled those that are to be guessed, labeled
      those whose label was given (guesses that were kept are neither), index 0
      to n - 1, and the round, from 0, as the step. Where it gives weights [n,
      c], as `boards` does, a row is learned once for each of its classes. It
      runs outside jit, and those of jnl in float32 unless x64 is enabled.
    rounds: at least 1, how many at most.
    keep: guesses that count once, count for good.
    start: [n, c], probabilities to guess from in the first round, in place of a
      first learner; then no label is needed.

  Returns:
    Labels, rounds and predictions: `SelfTrained`.

  Raises:
    TypeError: if `labels` are no integers.
    ValueError: naming the argument, if a shape or a label does not fit, if
      nothing can be learned from, or if what `fit` predicts are no
      probabilities [n, c], NaN among them.

  >>> def fit(x, labels, weights):  # the nearest mean
  ...   means = np.array([x[labels == k].mean() for k in (0, 1)])
  ...   def predict(x):
  ...     near = np.exp(-np.square(x - means))
  ...     return near / near.sum(1, keepdims=True)
  ...   return predict
  >>> x = np.array([[0.0], [0.5], [1.6], [3.9], [4.0]])
  >>> from jnl.pseudo import fixed
  >>> found = self_train(fit, x, [0, -1, -1, -1, 1], fixed(0.97), rounds=9)
  >>> found.labels.tolist(), found.round.tolist(), found.rounds
  ([0, 0, 0, 1, 1], [0, 1, 2, 1, 0], 2)

  Reference: Amini, Feofanov, Pauletto, Hadjadj, Devijver, Maximov,
  "Self-Training: A Survey", Neurocomputing 2025, arXiv 2202.12040.
  """
  x, labels = _read(fit, x, labels, rounds)
  check(
    isinstance(rule, Rule), f'rule must be a Rule of jnl.pseudo, got {rule!r}'
  )
  given = labels >= 0
  probs = None if start is None else _checked('start', start, labels)
  check(
    probs is not None or len(np.unique(labels[given])) >= 2,
    'labels must be of two classes at least, or start must say what to guess',
  )
  guesses = nobody = _Guesses(*(np.zeros(0, t) for t in ('i4', 'i4', 'f8')))
  unguessed = np.where(given, 0, -1).astype(np.int32)
  since = unguessed.copy()
  memory, done = rule.init(), 0
  while done < rounds and (free := since < 0 if keep else ~given).any():
    if done or probs is None:
      predict = _learn(fit, x, labels, guesses)
      probs = _checked('what fit predicts', predict(x), labels, probs)
    seen = Seen(
      probs=jnp.asarray(probs),
      unlabeled=jnp.asarray(free, jnp.float32),
      labeled=jnp.asarray(given, jnp.float32),
      index=jnp.arange(len(labels)),
      step=jnp.int32(done),
    )
    memory, weights = rule.apply(memory, seen)
    new = _chosen(weights, probs, free)
    done += 1
    if not keep:
      guesses, since = nobody, unguessed.copy()
    guesses = _Guesses(*map(np.append, guesses, new))
    since[new.rows] = done
    if not len(new.rows):
      break
  predict = _learn(fit, x, labels, guesses)
  probs = _checked('what fit predicts', predict(x), labels, probs)
  found = labels.copy()
  found[guesses.rows] = guesses.classes  # the last of a row is the surest
  return SelfTrained(found, since, probs, done, predict)


def fpl(
  fit: Learner,
  x: Any,
  probs: ArrayLike,
  *,
  labels: ArrayLike | None = None,
  k: int = 16,
) -> SelfTrained:
  """Few pseudo-labels: for each class the k rows that are most probably of it.

  They are guessed once, from probabilities that are there before anything is
  learned, such as those of a zero-shot classifier, and learned. A row may be
  learned as of several classes. The official code goes through the rows once
  and depends on their order, see `pseudo.leaderboard`; this does not.

  Args:
    fit: see `self_train`.
    x: [n, ...], inputs; of real models features, that are frozen.
    probs: [n, c].
    labels: [n] int, -1 where there is none; by default nowhere. Labeled rows
      are not guessed, and have half of the weight, as officially.
    k: how many of each class, below the number of rows to guess. Above that
      number / c some row is of two classes.

  Returns:
    Labels, rounds and predictions: `SelfTrained`.

  Raises:
    TypeError, ValueError: see `self_train`; if `k` is no int or out of range.

  >>> probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
  >>> learned = []
  >>> def fit(x, labels, weights):
  ...   learned.append((x.tolist(), labels.tolist()))
  ...   return lambda x: probs
  >>> fpl(fit, np.array([5, 6, 7]), probs, k=1).labels.tolist()
  [0, -1, 1]
  >>> learned
  [([5, 7], [0, 1])]

  Reference: Menghini, Delworth, Bach, "Enhancing CLIP with CLIP: Exploring
  Pseudolabeling for Limited-Label Prompt Tuning", NeurIPS 2023, arXiv
  2306.01669.
  """
  return ifpl(fit, x, probs, labels=labels, k=k, rounds=1)


def ifpl(
  fit: Learner,
  x: Any,
  probs: ArrayLike,
  *,
  labels: ArrayLike | None = None,
  k: int = 16,
  rounds: int = 10,
) -> SelfTrained:
  """The same in rounds: the k rows of each class that the learner finds.

  In each round the learner begins anew, and all rows are guessed anew.

  Args:
    fit: see `self_train`.
    x: [n, ...].
    probs: [n, c], from which the first round guesses.
    labels: [n] int, see `fpl`.
    k: how many of each class in each round, see `fpl`.
    rounds: at least 1.

  Returns:
    Labels, rounds and predictions: `SelfTrained`.

  Raises:
    TypeError, ValueError: see `fpl`.

  >>> probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
  >>> fit = lambda x, labels, weights: lambda x: probs[::-1]
  >>> ifpl(fit, np.arange(3), probs, k=1, rounds=2).labels.tolist()
  [1, -1, 0]

  Reference: see `fpl`.
  """
  boards(k)  # looks at it

  def quota(round: int, n: int, c: int) -> int:
    check(
      k < n,
      f'k must be below the number of rows to guess, {n}, or each would be of '
      f'all classes; got {k}',
    )
    return k

  return _by_class(fit, x, probs, labels, quota, rounds)


def grip(
  fit: Learner,
  x: Any,
  probs: ArrayLike,
  *,
  labels: ArrayLike | None = None,
  rounds: int = 10,
) -> SelfTrained:
  """The same with more rows of each class in each round, until all are guessed.

  How many in which round, `pseudo.growing_quota` says, of the rows that have no
  label: at last as many of each class. The learner begins anew in each round.
  Officially there is one round more, like the last.

  Args:
    fit: see `self_train`.
    x: [n, ...].
    probs: [n, c], from which the first round guesses.
    labels: [n] int, see `fpl`.
    rounds: at least 1.

  Returns:
    Labels, rounds and predictions: `SelfTrained`.

  Raises:
    TypeError, ValueError: see `self_train`.

  >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
  >>> fit = lambda x, labels, weights: lambda x: probs
  >>> grip(fit, np.arange(4), probs, rounds=1).labels.tolist()
  [0, 0, 1, 1]

  Reference: see `fpl`.
  """

  def quota(round: int, n: int, c: int) -> int:
    return growing_quota(round, n, c, rounds)

  return _by_class(fit, x, probs, labels, quota, rounds)


def _by_class(
  fit: Learner,
  x: Any,
  probs: ArrayLike,
  labels: ArrayLike | None,
  quota: Callable[[int, int, int], int],
  rounds: int,
) -> SelfTrained:
  """Rounds that guess so many of each class: of a round, of n rows, of c."""

  def apply(memory: PyTree, seen: Seen) -> tuple[PyTree, Array]:
    n, c = int(np.sum(seen.unlabeled > 0)), seen.probs.shape[1]
    return boards(quota(int(seen.step), n, c)).apply(memory, seen)

  rule = Rule(tuple, apply)
  return self_train(
    fit, x, labels, rule, rounds=rounds, keep=False, start=probs
  )


def _read(
  fit: Learner, x: Any, labels: ArrayLike | None, rounds: int
) -> tuple[Any, np.ndarray]:
  """Inputs whose rows can be taken, and labels [n] int32."""
  check(callable(fit), f'fit must be a function, got {fit!r}')
  check_int('rounds', rounds)
  array = np.asarray(x)
  x = array if array.ndim else x  # of a sparse matrix numpy knows nothing
  n = np.shape(x)[:1]
  check(len(n) == 1 and n[0] > 0, f'x must have rows, got shape {np.shape(x)}')
  labels = np.full(n, -1) if labels is None else np.asarray(labels)
  check(
    np.issubdtype(labels.dtype, np.integer),
    f'labels must be integers, got {labels.dtype}',
    TypeError,
  )
  check(
    labels.shape == n,
    f'labels must be [n] = {n} as x has rows, got shape {labels.shape}',
  )
  check(labels.min() >= -1, f'labels must be -1 or a class, got {labels.min()}')
  return x, labels.astype(np.int32)


def _checked(
  name: str,
  probs: ArrayLike,
  labels: np.ndarray,
  last: np.ndarray | None = None,
) -> np.ndarray:
  """Probabilities [n, c], of as many classes as before and as there are."""
  probs = np.asarray(probs)
  n = len(labels)
  c = (
    last.shape[1] if last is not None else probs.shape[-1] if probs.ndim else 0
  )
  check(
    probs.shape == (n, c),
    f'{name} must be [n, c] = {(n, c)}, got shape {probs.shape}',
  )
  check(c > 1, f'{name} must be of two classes at least, got {c}')
  check(
    labels.max() < c,
    f'{name} must have a column for each class, of labels up to '
    f'{labels.max()}; there are {c}',
  )
  check_simplex(name, probs)
  return probs


def _chosen(
  weights: ArrayLike, probs: np.ndarray, free: np.ndarray
) -> _Guesses:
  """The guesses that count, of rows that are free; the surest come last."""
  n, c = probs.shape
  found = np.asarray(weights, np.float64)
  check(
    found.shape in ((n,), (n, c)),
    f'rule must give weights [n] = {(n,)}, or [n, c] = {(n, c)}, got shape '
    f'{found.shape}',
  )
  check(
    np.isfinite(found).all() and found.min() >= 0,
    'rule must give weights that are finite and not negative',
  )
  if found.ndim == 1:
    guess = probs.argmax(1)[:, None]
    found = found[:, None] * (guess == np.arange(c))
  rows, classes = np.nonzero(found * free[:, None])
  order = np.argsort(probs[rows, classes], kind='stable')
  rows, classes = rows[order], classes[order]
  return _Guesses(rows, classes, found[rows, classes])


def _learn(
  fit: Learner, x: Any, labels: np.ndarray, guesses: _Guesses
) -> Predict:
  """What is learned of labels and guesses, in the order of the rows."""
  given = np.flatnonzero(labels >= 0)
  m, z = len(given), len(guesses.rows)
  check(m or z, 'rule chose nobody, and there are no labels to learn')
  rows = np.append(given, guesses.rows)
  classes = np.append(labels[given], guesses.classes).astype(np.int32)
  weights = np.append(np.ones(m), guesses.weights)
  if m and z:
    weights *= np.repeat([(m + z) / (2 * m), (m + z) / (2 * z)], [m, z])
  order = np.argsort(rows, kind='stable')
  predict = fit(x[rows[order]], classes[order], weights[order])
  check(callable(predict), f'fit must give a function, got {predict!r}')
  return predict
