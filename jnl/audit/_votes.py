"""What people said of doubtful test labels, and what a benchmark says then.

People who are shown a doubtful test example vote for one of four answers: the
given label is right, the label that was guessed instead is, neither, or both.
Labels that they reject make two parts of a test set, of right and of erroneous
rows, and the order of models may depend on how large the second one is.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Key, check, check_key, is_concrete
from jnl.inputs import check_between

ANSWERS = ('given', 'guessed', 'neither', 'both')
"""What people may answer: the columns of their votes."""

# --- votes --------------------------------------------------------------------


class Consensus(NamedTuple):
  """What people agreed on.

  Attributes:
    is_error: [m] bool, too few voted for the given label.
    corrected: [m] int32, the labels to go on with: the given one where it
      stands, the guessed one where they agreed on that, else -1.
    answer: [m] int32, the first of the answers given (0), guessed (1), neither
      (2) and both (3) with enough votes; -1 if there is none.
  """

  is_error: Array
  corrected: Array
  answer: Array


def consensus_of_votes(
  votes: ArrayLike, given: ArrayLike, guessed: ArrayLike, *, min_agree: int = 3
) -> Consensus:
  r"""Which labels people reject, and which ones they put in their place.

  .. math:: \text{error}_i = [v_{i,\text{given}} < a]

  A row without votes was shown to nobody, and its label stands. Where the two
  labels are one, both columns may hold its votes, as for MNIST in the published
  files, where sums of votes are 9 or 10 then.

  Args:
    votes: v, [m, 4] int >= 0, for given, guessed, neither and both; zeros for
      an answer that was not offered.
    given: [m] int >= 0, the labels of the data set.
    guessed: [m] int >= 0, the labels that were offered instead.
    min_agree: a >= 1, how many votes decide: 3 of 5.

  Returns:
    `Consensus`; numpy arrays unless an argument is a jax array.

  Raises:
    TypeError: if an argument is not of integers.
    ValueError: if a shape does not match or, outside jit, a number is negative.

  >>> votes = np.array([[5, 0, 0, 0], [1, 4, 0, 0], [0, 2, 2, 1]])
  >>> found = consensus_of_votes(votes, [7, 7, 7], [1, 1, 1])
  >>> found.is_error.tolist(), found.corrected.tolist()
  ([False, True, True], [7, 1, -1])

  Reference: Northcutt, Athalye, Mueller, "Pervasive Label Errors in Test Sets
  Destabilize Machine Learning Benchmarks", NeurIPS 2021, arXiv 2103.14749.
  """
  xp = _module(votes, given, guessed)
  counts = _read_ints(xp, 'votes', votes, '[m, 4]')
  check(
    counts.shape[1] == len(ANSWERS),
    f'votes must be [m, 4], of {", ".join(ANSWERS)}, got shape {counts.shape}',
  )
  old = _read_ints(xp, 'given', given, '[m]', len(counts))
  new = _read_ints(xp, 'guessed', guessed, '[m]', len(counts))
  for name, values in (('votes', counts), ('given', old), ('guessed', new)):
    check_between(name, values, 0)
  check(min_agree >= 1, f'min_agree must be at least 1, got {min_agree}')
  for_old = xp.where(old == new, xp.max(counts[:, :2], 1), counts[:, 0])
  is_error = (for_old < min_agree) & xp.any(counts > 0, axis=1)
  enough = xp.concatenate([for_old[:, None], counts[:, 1:]], 1) >= min_agree
  answer = xp.where(xp.any(enough, axis=1), xp.argmax(enough, axis=1), -1)
  agreed = xp.where(answer == ANSWERS.index('guessed'), new, -1)
  return Consensus(
    is_error, xp.where(is_error, agreed, old), answer.astype(np.int32)
  )


# --- accuracy of the parts of a test set --------------------------------------


class PartAccuracy(NamedTuple):
  """Accuracy of k models on the parts of a test set; NaN on one without rows.

  Attributes:
    right: A, [..., k], on the rows whose label stands.
    given: O, [..., k], on the erroneous rows, by their given labels.
    corrected: C, [..., k], on the erroneous rows, by their corrected labels.
  """

  right: Array
  given: Array
  corrected: Array


def part_accuracy(
  predictions: ArrayLike, labels: ArrayLike, corrected: ArrayLike
) -> PartAccuracy:
  """Accuracy of models on right rows, and twice on erroneous ones.

  A row is right where both labels are the same, and erroneous where they
  differ. One that has no label, such as an error without a corrected label,
  counts for nothing.

  Args:
    predictions: [n, k] int, of k models.
    labels: [n] int, as given; negative for none.
    corrected: [n] int, as people would have it; negative for none.

  Returns:
    `PartAccuracy` [k]; numpy arrays unless an argument is a jax array.

  Raises:
    TypeError: if an argument is not of integers.
    ValueError: if a shape does not match.

  >>> predictions = np.array([[0, 0], [1, 0], [1, 2], [1, 1]])
  >>> found = part_accuracy(predictions, [0, 1, 1, 1], [0, 1, 2, -1])
  >>> [part.tolist() for part in found]
  [[1.0, 0.5], [1.0, 0.0], [0.0, 1.0]]

  Reference: see `consensus_of_votes`.
  """
  xp = _module(predictions, labels, corrected)
  arrays = _read_rows(xp, predictions, labels, corrected)
  right, erroneous = _parts(*arrays[1:])
  return PartAccuracy(
    *_means(xp, *_hits(*arrays), right[:, None], erroneous[:, None])
  )


def bootstrap_accuracy(
  key: Key,
  predictions: ArrayLike,
  labels: ArrayLike,
  corrected: ArrayLike,
  *,
  samples: int = 1000,
) -> PartAccuracy:
  """Accuracy of models on test sets drawn anew from this one, for intervals.

  Rows are drawn with replacement among those of their part, the same for all
  models, so that each part keeps its size. Of anything that is computed from
  the parts, quantiles over the samples are a confidence interval: of the rows,
  for these models, not of training.

  Args:
    key: PRNG key.
    predictions: [n, k] int, see `part_accuracy`.
    labels: [n] int.
    corrected: [n] int.
    samples: s >= 1, how many test sets.

  Returns:
    `PartAccuracy` [s, k]; numpy arrays unless an argument is a jax array.

  Raises:
    TypeError: if an argument is not of integers, or `key` is no key.
    ValueError: if a shape does not match, or `samples` is below 1.

  >>> predictions = np.arange(40)[:, None] % 4 // np.array([1, 2])
  >>> labels = np.zeros(40, int)
  >>> corrected = np.arange(40) // 20
  >>> drawn = bootstrap_accuracy(
  ...   jax.random.key(0), predictions, labels, corrected)
  >>> at_half = accuracy_vs_prevalence(drawn, [.5]).corrected[:, 0]
  >>> np.quantile(at_half, [.025, .975], axis=0).round(2).tolist()
  [[0.13, 0.35], [0.4, 0.65]]
  """
  check_key(key)
  check(samples >= 1, f'samples must be at least 1, got {samples}')
  xp = _module(predictions, labels, corrected)
  arrays = _read_rows(xp, predictions, labels, corrected)
  found = _bootstrap(key, *arrays, samples)
  on_host = xp is np and is_concrete(*found)
  return jax.tree.map(np.asarray, found) if on_host else found


@functools.partial(jax.jit, static_argnums=4)
def _bootstrap(
  key: Key, predictions: Array, labels: Array, corrected: Array, samples: int
) -> PartAccuracy:
  right, erroneous = _parts(labels, corrected)
  # Sorted by part, so that a row of the same one is a number in a range.
  part = jnp.where(right, 0, jnp.where(erroneous, 1, 2))
  order = jnp.argsort(part)
  by_given, by_corrected = (
    hits[order] for hits in _hits(predictions, labels, corrected)
  )
  part = part[order]
  sizes = jnp.sum(part == jnp.arange(3)[:, None], axis=1)
  first, size = (jnp.cumsum(sizes) - sizes)[part], sizes[part]

  def one(key: Key) -> PartAccuracy:
    row = first + jax.random.randint(key, part.shape, 0, size)
    of_part = (part == 0)[:, None], (part == 1)[:, None]
    return PartAccuracy(
      *_means(jnp, by_given[row], by_corrected[row], *of_part)
    )

  return lax.map(one, jax.random.split(key, samples))


# --- accuracy by prevalence ---------------------------------------------------


class PrevalenceAccuracy(NamedTuple):
  """Accuracy of k models on test sets with r shares of erroneous rows.

  Attributes:
    given: [..., r, k], by the given labels.
    corrected: [..., r, k], by the corrected labels.
  """

  given: Array
  corrected: Array


def accuracy_vs_prevalence(
  parts: PartAccuracy, prevalence: ArrayLike
) -> PrevalenceAccuracy:
  r"""Accuracy of models as the share of erroneous rows grows.

  .. math:: \text{given}(\rho) = (1 - \rho) A + \rho O, \qquad
    \text{corrected}(\rho) = (1 - \rho) A + \rho C

  These are the accuracies on a test set from which so many right rows were
  taken out at random that a share rho of the rest is erroneous.

  Args:
    parts: [..., k], of `part_accuracy`, or of its bootstrap.
    prevalence: rho, [r] in [0, 1].

  Returns:
    `PrevalenceAccuracy`; numpy arrays unless an argument is a jax array. Of a
    part that has no rows the accuracy is not known, so that it is NaN but where
    the share of that part is 0.

  Raises:
    TypeError: if an argument is not of numbers.
    ValueError: if a shape does not match or, outside jit, a prevalence is not
      in [0, 1].

  >>> parts = PartAccuracy(np.array([.9, .8]), np.array([.5, 0.]),
  ...   np.array([.2, .6]))
  >>> accuracy_vs_prevalence(parts, [0., .5]).corrected.round(2).tolist()
  [[0.9, 0.8], [0.55, 0.7]]

  Reference: see `consensus_of_votes`.
  """
  xp = _module(*parts, prevalence)
  right, given, corrected = _read_parts(xp, parts)
  rho = _read_floats(xp, 'prevalence', prevalence)
  check(rho.ndim == 1, f'prevalence must be [r], got shape {rho.shape}')
  check_between('prevalence', rho, 0, 1)
  rho = rho[:, None]

  def mixed(erroneous: Any) -> Any:
    kept = xp.where(rho == 1, 0, (1 - rho) * right[..., None, :])
    return kept + xp.where(rho == 0, 0, rho * erroneous[..., None, :])

  return PrevalenceAccuracy(mixed(given), mixed(corrected))


def rank_flip_prevalence(parts: PartAccuracy) -> Array:
  r"""The share of erroneous rows at which two models change places.

  .. math:: \rho^* = \frac{A_1 - A_2}{(A_1 - A_2) - (C_1 - C_2)}

  By corrected labels, of all pairs of models. The one that is better on right
  rows is ahead below, the other one above.

  Args:
    parts: [..., k], of `part_accuracy`, or of its bootstrap.

  Returns:
    [..., k, k], symmetric, in [0, 1]; NaN where no place is changed: the lines
    are parallel or meet elsewhere, or a part has no rows. A numpy array unless
    an argument is a jax array.

  Raises:
    TypeError: if an argument is not of numbers.
    ValueError: if a shape does not match.

  >>> parts = PartAccuracy(np.array([.9, .8]), np.array([.5, 0.]),
  ...   np.array([.2, .6]))
  >>> rank_flip_prevalence(parts).round(2).tolist()
  [[nan, 0.2], [0.2, nan]]

  Reference: see `consensus_of_votes`.
  """
  xp = _module(*parts)
  right, _, corrected = _read_parts(xp, parts)
  ahead, behind = (
    part[..., :, None] - part[..., None, :] for part in (right, corrected)
  )
  turn = ahead - behind
  meets = xp.isfinite(turn) & (turn != 0)
  rho = xp.where(meets, ahead, -1) / xp.where(meets, turn, 1)
  return xp.where((rho >= 0) & (rho <= 1), rho, np.nan)


# --- what is read -------------------------------------------------------------


def _module(*arrays: Any) -> Any:
  """jax.numpy if one of the arrays is of jax, traced ones too, else numpy."""
  return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def _read_ints(
  xp: Any, name: str, values: Any, shape: str, length: int | None = None
) -> Any:
  """An array of integers as int32, so that -1 is one."""
  values = xp.asarray(values)
  check(
    jnp.issubdtype(values.dtype, np.integer),
    f'{name} must be integers, got {values.dtype}',
    TypeError,
  )
  rank = shape.count(',') + 1
  check(
    values.ndim == rank and length in (None, len(values)),
    f'{name} must be {shape}'
    + (f' with {length} rows' if length is not None else '')
    + f', got shape {values.shape}',
  )
  return values.astype(np.int32)


def _read_floats(xp: Any, name: str, values: Any) -> Any:
  """An array of floating-point numbers, at least float32."""
  values = xp.asarray(values)
  check(
    jnp.issubdtype(values.dtype, np.number)
    and not jnp.issubdtype(values.dtype, np.complexfloating),
    f'{name} must be numbers, got {values.dtype}',
    TypeError,
  )
  return values.astype(jnp.promote_types(values.dtype, np.float32))


def _read_rows(
  xp: Any, predictions: Any, labels: Any, corrected: Any
) -> tuple[Any, Any, Any]:
  predictions = _read_ints(xp, 'predictions', predictions, '[n, k]')
  n = len(predictions)
  return (
    predictions,
    _read_ints(xp, 'labels', labels, '[n]', n),
    _read_ints(xp, 'corrected', corrected, '[n]', n),
  )


def _read_parts(xp: Any, parts: PartAccuracy) -> tuple[Any, Any, Any]:
  right, given, corrected = (
    _read_floats(xp, f'parts.{name}', part)
    for name, part in zip(PartAccuracy._fields, parts, strict=True)
  )
  check(
    right.ndim >= 1 and right.shape == given.shape == corrected.shape,
    'parts must be three arrays [..., k] of one shape, got '
    f'{right.shape}, {given.shape} and {corrected.shape}',
  )
  return right, given, corrected


def _parts(labels: Any, corrected: Any) -> tuple[Any, Any]:
  """Which rows [n] are right, and which are erroneous."""
  known = (labels >= 0) & (corrected >= 0)
  return known & (labels == corrected), known & (labels != corrected)


def _hits(predictions: Any, labels: Any, corrected: Any) -> tuple[Any, Any]:
  """Whether predictions [n, k] are the given, and the corrected labels."""
  return predictions == labels[:, None], predictions == corrected[:, None]


def _means(
  xp: Any, by_given: Any, by_corrected: Any, right: Any, erroneous: Any
) -> tuple[Any, Any, Any]:
  """Shares [k] of hits [n, k] among the rows [n, 1] of a part."""

  def mean(hits: Any, part: Any) -> Any:
    size = xp.sum(part)
    share = xp.sum(hits & part, axis=0) / xp.maximum(size, 1)
    return xp.where(size > 0, share, np.nan)

  return (
    mean(by_given, right),
    mean(by_given, erroneous),
    mean(by_corrected, erroneous),
  )
