"""Negatives that hide a relation: labels against those of their neighbors.

Where most rows are of one class, "no relation", noise is mostly that a row of
another class was overlooked and stands there.
"""

from typing import Any, Literal, NamedTuple, get_args
import warnings

import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import neighbors
from jnl.audit._rows import as_given, numbers, read, read_mask
from jnl.base import PAD, Array, check, check_auto, check_name, is_concrete
from jnl.inputs import check_simplex, read_floats, read_labels

Scope = Literal['negatives', 'all']
Mode = Literal['eliminate', 'reannotate']
LARGEST = np.iinfo(np.int32).max
"""Labels are smaller."""


class RelationFlags(NamedTuple):
  """Labels that look wrong, and what they would be.

  Attributes:
    flags: [n] bool.
    suggested: [n] int32, another label where one is flagged, else as given.
  """

  flags: Any
  suggested: Any


class Relabeled(NamedTuple):
  """Labels to train on.

  Attributes:
    labels: [n] int32.
    keep: [n] bool, the rows to train on: their `weight`.
  """

  labels: Any
  keep: Any


def intrinsic_flags(
  labels: ArrayLike,
  pred_probs: ArrayLike,
  features: ArrayLike,
  *,
  k: int = 5,
  negative: int = 0,
  mask: ArrayLike | None = None,
) -> RelationFlags:
  r"""Negatives that the model calls positive, and their nearest negatives.

  .. math::
    S = \{i : y_i = 0,\ \textstyle\arg\max_j p_{ij} \ne 0\}, \qquad
    F = S \cup \bigcup_{i \in S} N_k(i)

  Positives are taken for right. N are the k other negatives (all, if they are
  fewer) of least cosine distance. The label that is suggested is the positive
  class that the model finds likeliest.

  Probabilities have to be out of fold (`jnl.train.out_of_fold`): a model calls
  few of the labels wrong that it was trained on. Features may be of them too,
  `log(p) - mean(log(p))` of each row.

  This is a reconstruction from the abstract of the paper: that seeds and their
  neighbors are flagged alike, which neighbors, and the label that is suggested
  are ours.

  Args:
    labels: y, [n] int in [0, c).
    pred_probs: p, [n, c], out-of-fold probabilities.
    features: [n, d] floating-point. A row of zeros is near to none.
    k: neighbors of each seed, at least 0.
    negative: the class "no relation"; 0 in the equation.
    mask: [n] bool, the rows that count, such as those that are not trusted; by
      default all. The others are neither flagged nor neighbors.

  Returns:
    `RelationFlags`. Can be jitted and vmapped; there a label out of range does
    not count.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> probs = np.array([[.9, .1], [.2, .8], [.6, .4], [.1, .9], [.9, .1]])
  >>> x = np.array([[1., 0.], [0., 1.], [.1, 1.], [0., 1.], [1., .1]])
  >>> found = intrinsic_flags([0, 0, 0, 1, 0], probs, x, k=1)
  >>> found.flags.tolist(), found.suggested.tolist()
  ([False, True, True, False, False], [0, 1, 1, 1, 0])

  Reference: see `extrinsic_flags`.
  """
  given = labels, pred_probs, features
  _length('labels', labels)
  _check_whole(k=k, negative=negative)
  rows = read(labels, pred_probs, mask)
  check_simplex('pred_probs', rows.probs, where=rows.mask)
  n, c = rows.probs.shape
  check(0 <= negative < c, f'negative must lie in [0, {c}), got {negative}')
  check(k >= 0, f'k must not be negative, got {k}')
  points = _read_features('features', features, n, rows.mask)
  labels, probs = jnp.asarray(rows.labels), jnp.asarray(rows.probs)
  negatives = labels == negative
  if rows.mask is not None:
    negatives &= rows.mask
  seeds = negatives & (jnp.argmax(probs, 1) != negative)
  flags = seeds | _near_to(seeds, points, negatives, min(k, n - 1))
  positive = jnp.argmax(probs.at[:, negative].set(-1), 1)
  return as_given(_flagged(given[0], flags, positive), *given)


def extrinsic_flags(
  labels: ArrayLike,
  features: ArrayLike,
  trusted_labels: ArrayLike,
  trusted_features: ArrayLike,
  *,
  k: int = 5,
  negative: int = 0,
  scope: Scope = 'negatives',
  mask: ArrayLike | None = None,
) -> RelationFlags:
  r"""Labels that the nearest rows of a trusted subset contradict.

  .. math::
    v_i = \textstyle\arg\max_j |\{m \in N_k(i) : y_m = j\}|, \qquad
    F = \{i : y_i = 0,\ v_i \ne 0\}

  N are the k trusted rows of least cosine distance; of labels with equally many
  of them the one with the nearest counts. It is what is suggested.

  This is a reconstruction from the abstract of the paper: how neighbors vote is
  ours. There it helps to look at positives too (`scope='all'`); on questions of
  TREC with made-up noise of negatives alone, it does not.

  Args:
    labels: y, [n] int from 0 on.
    features: [n, d] floating-point, such as out-of-fold `log(p) - mean(log(p))`
      of each row. A row of zeros is at distance 1 from all.
    trusted_labels: [m] int from 0 on, right.
    trusted_features: [m, d]. Of rows that are among the others, `mask` has to
      say so, or each is a neighbor of itself.
    k: neighbors that vote, in [1, m].
    negative: the class "no relation"; 0 in the equation.
    scope: whose labels may be flagged: of 'negatives', or of 'all', y_i != v_i.
    mask: [n] bool, the rows that count, such as those that are not trusted; by
      default all. The others are not flagged.

  Returns:
    `RelationFlags`. Can be jitted and vmapped; there the trusted labels are not
    looked at. A label that no trusted row has is never flagged: nobody there
    could speak for it.

  Raises:
    TypeError, ValueError: if an argument is malformed, or no trusted row is of
      the negative class: everything would look positive. A warning names other
      classes that are missing.

  >>> trusted = np.array([[1., 0.], [.9, .1], [0., 1.]])
  >>> x = np.array([[1., .1], [.1, 1.], [0., 1.]])
  >>> found = extrinsic_flags([0, 0, 2], x, [0, 0, 2], trusted, k=1)
  >>> found.flags.tolist(), found.suggested.tolist()
  ([False, True, False], [0, 2, 2])

  Reference: Parekh, Anand, Awekar, "Noise in Relation Classification Dataset
  TACRED: Characterization and Reduction", 2023, arXiv 2311.12298.
  """
  check_name('scope', scope, get_args(Scope))
  given = labels, features, trusted_labels, trusted_features
  _check_whole(k=k, negative=negative)
  n, m = _length('labels', labels), _length('trusted_labels', trusted_labels)
  check(1 <= k <= m, f'k must lie in [1, {m}], the trusted rows, got {k}')
  own, there = _read_classes('labels', labels, read_mask(mask, n))
  known, _ = _read_classes('trusted_labels', trusted_labels)
  points = _read_features('features', features, n, there)
  trusted = _read_features('trusted_features', trusted_features, m)
  _check_known(own, there, known, negative)
  index = neighbors.nearest(points, trusted, k, metric='cosine').index
  voted = _elected(known[index])
  there &= (own == negative) if scope == 'negatives' else jnp.isin(own, known)
  return as_given(_flagged(labels, there & (voted != own), voted), *given)


def apply_flags(
  labels: ArrayLike, found: RelationFlags, *, mode: Mode = 'eliminate'
) -> Relabeled:
  """Labels and rows to train on, without the flagged labels.

  Args:
    labels: [n] int.
    found: of `intrinsic_flags` or `extrinsic_flags`.
    mode: 'eliminate' leaves the flagged rows out, 'reannotate' gives them the
      label that is suggested.

  Returns:
    `Relabeled`. Where nothing is flagged, all labels as they are.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> found = RelationFlags(np.array([False, True]), np.array([0, 2]))
  >>> apply_flags([0, 0], found, mode='reannotate').labels
  array([0, 2], dtype=int32)
  >>> apply_flags([0, 0], found).keep
  array([ True, False])

  Reference: see `extrinsic_flags`.
  """
  check_name('mode', mode, get_args(Mode))
  check(
    isinstance(found, RelationFlags),
    f'found must be RelationFlags, got {type(found).__name__}',
    TypeError,
  )
  flags, suggested = (numbers(k, v) for k, v in found._asdict().items())
  check(
    flags.dtype == bool, f'flags must be bool, got {flags.dtype}', TypeError
  )
  n = _length('labels', labels)
  for name, values in (('flags', flags), ('suggested', suggested)):
    check(
      values.shape == (n,),
      f'{name} must be [{n}], like the labels, got shape {values.shape}',
    )
  own = jnp.asarray(numbers('labels', labels)).astype(jnp.int32)
  if mode == 'eliminate':
    made = Relabeled(own, ~flags)
  else:
    made = Relabeled(jnp.where(flags, suggested, own), jnp.ones(n, bool))
  return as_given(made, labels, flags, suggested)


# --- reading -----------------------------------------------------------------


def _check_whole(**values: Any) -> None:
  for name, value in values.items():
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(whole, f'{name} must be an integer, got {value!r}', TypeError)


def _length(name: str, labels: ArrayLike) -> int:
  shape = np.shape(labels)
  check(
    len(shape) == 1 and shape[0] >= 1,
    f'{name} must be [n], not empty, got shape {shape}',
  )
  return shape[0]


def _read_classes(
  name: str, labels: ArrayLike, mask: Any = None
) -> tuple[Array, Array]:
  """Labels [n] as int32, and which rows count; below 0 none does."""
  where = jnp.ones(np.shape(labels), bool) if mask is None else mask
  given = numbers(name, labels)
  read, valid = read_labels(given, LARGEST, name, where=where)
  return read.astype(jnp.int32), jnp.asarray(where) & valid


def _read_features(
  name: str, features: ArrayLike, n: int, mask: Any = None
) -> Array:
  """[n, d], at least float32, 0 where a row does not count."""
  check_auto(features, name)
  x = read_floats(name, numbers(name, features))
  check(
    x.ndim == 2 and len(x) == n and x.shape[1] >= 1,
    f'{name} must be [n, d] with a row of each of the {n} labels, got shape '
    f'{x.shape}',
  )
  if mask is not None:
    x = jnp.where(jnp.asarray(mask)[:, None], x, 0)
  if is_concrete(x):
    finite = np.asarray(jnp.all(jnp.isfinite(x), axis=1))
    check(finite.all(), f'{name} must be finite; row {finite.argmin()} is not')
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_known(
  labels: Array, there: Array, known: Array, negative: int
) -> None:
  """Looks for the classes of the labels among the trusted ones."""
  if not is_concrete(labels, there, known):
    return
  trusted = np.unique(known)
  check(
    negative in trusted,
    f'trusted_labels have no row of the negative class {negative}: by them '
    'everything would look positive',
  )
  asked = np.unique(np.asarray(labels)[np.asarray(there)])
  lacking = np.setdiff1d(asked, trusted)
  if len(lacking):
    warnings.warn(
      f'trusted_labels lack {lacking.tolist()}, which labels have: nothing is '
      'taken for these classes, and none of their rows is flagged',
      stacklevel=3,
    )


# --- neighbors ---------------------------------------------------------------


def _near_to(seeds: Array, points: Array, among: Array, k: int) -> Array:
  """[n] bool: which rows `among` [n] are the k nearest others of a seed."""
  near = jnp.zeros(len(seeds), bool)
  if k == 0:
    return near
  among &= jnp.all(jnp.isfinite(points), axis=1) & jnp.any(points, axis=1)
  index = neighbors.knn(points, k, metric='cosine', mask=among).index
  index = jnp.where(seeds[:, None], index, PAD)
  return near.at[index].set(True, mode='drop')


def _elected(votes: Array) -> Array:
  """The commonest of [n, k], nearest first; of several that of the nearest."""
  counts = jnp.sum(votes[:, :, None] == votes[:, None, :], axis=2)
  first = jnp.argmax(counts, axis=1)[:, None]
  return jnp.take_along_axis(votes, first, axis=1)[:, 0]


def _flagged(labels: ArrayLike, flags: Array, other: Array) -> RelationFlags:
  own = jnp.asarray(numbers('labels', labels)).astype(jnp.int32)
  return RelationFlags(flags, jnp.where(flags, other, own).astype(jnp.int32))
