"""Which labels are wrong, from the labels of neighbors, without training."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, check
from jnl.inputs import read_transition
from jnl.neighbors import Neighbors
from jnl.transition._inputs import near_of, read_given, read_prior

LEAST_RATE = 0.05
"""The least, and one less the largest, share of labels that is flagged."""
LEAST_VOTE = 1e-8
"""What is added to a vote before its logarithm is taken."""


class Flags(NamedTuple):
  """What neighbors say of labels.

  Attributes:
    flags: [n] bool, which labels look wrong; False for rows that do not count.
    scores: [n], how little the neighbors vote for the label: high is
      suspicious; 0 for rows that do not count.
    votes: [n, c], see `knn_votes`.
  """

  flags: Array
  scores: Array
  votes: Array


def knn_votes(
  labels: ArrayLike,
  features: ArrayLike | Neighbors,
  num_classes: int,
  *,
  k: int = 10,
  mask: ArrayLike | None = None,
) -> Array:
  r"""What the k nearest rows, the row itself among them, say of its class.

  .. math:: v_{nc} \propto \sum_{m \in N(n)} (1 - d_{nm})\, 1[\tilde y_m = c],
    \qquad d_{nn} = 2 d_{n n_1} - d_{n n_2}

  of unit length. A vote weighs as the cosine; the row itself, which is at
  distance 0, counts as if it lay as much nearer than its first neighbor as that
  is than the second.

  Args:
    labels: [n] int, noisy, in [0, c).
    features: [n, d] floating-point, or `Neighbors` of the metric 'cosine', at
      least k - 1 of them, as for `hoc`.
    num_classes: c >= 2.
    k: votes, the row's own among them, in [3, n].
    mask: [n] bool, the rows that count; by default all. Others have no vote,
      and votes of 0.

  Returns:
    [n, c]; 0 where no vote weighs anything.

  Raises:
    TypeError, ValueError: as `hoc`.

  >>> x = jnp.array([[1., 0.], [1., .1], [1., .2], [0., 1.], [.1, 1.]])
  >>> knn_votes([0, 1, 0, 1, 1], x, 2, k=3).argmax(1).tolist()
  [0, 0, 0, 1, 1]

  Reference: see `simifeat_votes`.
  """
  return _votes(*_read(labels, features, num_classes, k, mask), num_classes)


def simifeat_votes(
  labels: ArrayLike,
  features: ArrayLike | Neighbors,
  num_classes: int,
  *,
  k: int = 10,
  mask: ArrayLike | None = None,
) -> Flags:
  r"""Flags a label for which fewer neighbors vote than for another class.

  .. math:: \max_c v_{nc} > v_{n \tilde y_n}, \qquad
    s_n = -\log(v_{n \tilde y_n} + 10^{-8})

  with the votes of `knn_votes`. As far as neighbors are of one clean class it
  finds nearly all wrong labels, where each class keeps most of its own; see
  `hoc` for how to look at features.

  Args:
    labels: [n] int, noisy, in [0, c).
    features: [n, d] floating-point, or `Neighbors` of the metric 'cosine', at
      least k - 1 of them, as for `hoc`.
    num_classes: c >= 2.
    k: votes, the row's own among them, in [3, n].
    mask: [n] bool, the rows that count; by default all.

  Returns:
    `Flags`. A label whose votes are among the most is not flagged.

  Raises:
    TypeError, ValueError: as `hoc`.

  The official code takes the vote of flags on 21 random subsets of 90% of the
  rows; here all rows are looked at once, and nothing is random.

  >>> x = jnp.array([[1., 0.], [1., .1], [1., .2], [0., 1.], [.1, 1.]])
  >>> simifeat_votes([0, 1, 0, 1, 1], x, 2, k=3).flags.tolist()
  [False, True, False, False, False]

  Reference: Zhu, Dong, Liu, "Detecting Corrupted Labels Without Training a
  Model to Predict", ICML 2022, arXiv 2110.06283.
  """
  labels, where, near = _read(labels, features, num_classes, k, mask)
  votes = _votes(labels, where, near, num_classes)
  scores, own = _scores(votes, labels, where)
  return Flags(where & (jnp.max(votes, axis=1) > own), scores, votes)


def simifeat_rank(
  labels: ArrayLike,
  features: ArrayLike | Neighbors,
  transition: ArrayLike,
  prior: ArrayLike,
  *,
  k: int = 10,
  mask: ArrayLike | None = None,
) -> Flags:
  r"""Flags the labels for which neighbors vote least, as many as are wrong.

  .. math:: s_n \ge \mathrm{quantile}_{1 - r_c}(s_m : \tilde y_m = c), \qquad
    r_c = 1 - \frac{T_{cc}\, p_c}{P(\tilde y = c)}, \qquad c = \tilde y_n

  with the scores of `simifeat_votes`: of the labels c a share r_c, kept within
  .05 and .95, is of another class.

  Args:
    labels: [n] int, noisy, in [0, c).
    features: [n, d] floating-point, or `Neighbors` of the metric 'cosine', at
      least k - 1 of them, as for `hoc`.
    transition: T, [c, c], rows on the simplex, of `hoc` for one.
    prior: p, [c], the frequencies of the clean classes, on the simplex.
    k: votes, the row's own among them, in [3, n].
    mask: [n] bool, the rows that count; by default all.

  Returns:
    `Flags`. Since at least 5% of each class are flagged, clean labels are too.

  Raises:
    TypeError, ValueError: as `hoc`, or if `transition` or `prior` is malformed.

  >>> x = jnp.array([[1., 0.], [1., .1], [1., .2], [0., 1.], [.1, 1.]])
  >>> noise = jnp.array([[.75, .25], [.25, .75]])
  >>> found = simifeat_rank([0, 1, 0, 1, 1], x, noise, [.5, .5], k=3)
  >>> int(found.scores.argmax()), bool(found.flags[1])
  (1, True)

  Reference: see `simifeat_votes`.
  """
  transition = read_transition(transition)
  c = len(transition)
  prior = read_prior(prior, c)
  labels, where, near = _read(labels, features, c, k, mask)
  votes = _votes(labels, where, near, c)
  scores, _ = _scores(votes, labels, where)
  number = jnp.zeros(c, jnp.int32).at[labels].add(where)
  given = number / jnp.maximum(jnp.sum(number), 1)
  right = jnp.diagonal(transition) * prior / jnp.where(number > 0, given, 1)
  rates = jnp.clip(1 - right, LEAST_RATE, 1 - LEAST_RATE)
  limits = _quantiles(scores, labels, where, number, 1 - rates)
  return Flags(where & (scores >= limits[labels]), scores, votes)


def _read(
  labels: ArrayLike,
  features: ArrayLike | Neighbors,
  c: int,
  k: int,
  mask: ArrayLike | None,
) -> tuple[Array, Array, Neighbors]:
  """Labels, which rows count, and the k - 1 neighbors of each."""
  labels, where = read_given(labels, c, mask)
  check(k >= 3, f'k must be at least 3, the row and two neighbors, got {k}')
  return labels, where, near_of(features, k - 1, where)


def _votes(labels: Array, where: Array, near: Neighbors, c: int) -> Array:
  own = 2 * near.distances[:, :1] - near.distances[:, 1:2]
  distances = jnp.concatenate([own, near.distances], axis=1)
  look = lambda x, fill: x.at[near.index].get(mode='fill', fill_value=fill)
  voters = jnp.concatenate([labels[:, None], look(labels, 0)], axis=1)
  there = where[:, None] & jnp.concatenate(
    [where[:, None], look(where, False)], axis=1
  )
  weights = jnp.where(there, 1 - distances, 0)
  rows = jnp.arange(len(labels))[:, None]
  votes = (
    jnp.zeros((len(labels), c), weights.dtype).at[rows, voters].add(weights)
  )
  norm = jnp.linalg.norm(votes, axis=1, keepdims=True)
  return votes / jnp.where(norm > 0, norm, 1)


def _scores(votes: Array, labels: Array, where: Array) -> tuple[Array, Array]:
  """The scores, and the votes for the labels, [n]."""
  own = jnp.take_along_axis(votes, labels[:, None], axis=1)[:, 0]
  scores = -jnp.log(jnp.maximum(own, 0) + LEAST_VOTE)
  return jnp.where(where, scores, 0), own


def _quantiles(
  scores: Array, labels: Array, where: Array, number: Array, q: Array
) -> Array:
  """The q-quantile [c] of the scores of each label, between the two nearest."""
  order = jnp.lexsort((scores, jnp.where(where, labels, len(number))))
  ascending = scores[order]
  first = jnp.cumsum(number) - number
  place = q * jnp.maximum(number - 1, 0)
  low = jnp.floor(place)
  at = lambda i: ascending[
    jnp.minimum(first + i.astype(jnp.int32), len(scores) - 1)
  ]
  below, above = at(low), at(jnp.ceil(place))
  return below + (place - low) * (above - below)
