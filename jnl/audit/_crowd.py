"""Labels of many people: their consensus, and how good each vote is."""

import functools
import math
from typing import Any, Literal, NamedTuple, get_args
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.aggregate import Triples, majority_vote, read_votes, vote_counts
from jnl.audit._rows import as_given, numbers, read_probs
from jnl.base import Array, check, check_name, is_concrete
from jnl.inputs import check_simplex

Consensus = Literal['best_quality', 'majority_vote']
Quality = Literal['crowdlab', 'agreement']
LEAST = 1e-6
"""The least weight and the least error, as in the official code."""
TINY = 1e-30
"""The least probability whose logarithm is taken, as in the official code."""
COARSE = np.array([0.1, 0.2, 0.5, 0.8, 1, 2, 3, 5, 8])
"""The temperatures that are tried first."""


class Crowd(NamedTuple):
  """What `crowdlab` says of items, annotators and votes. NaN: nothing is known.

  Attributes:
    labels: [n] int32, the consensus.
    quality: [n], how probable it is that the consensus is right.
    agreement: [n], the share of the votes that are for the consensus; NaN for
      an item without votes.
    annotator_quality: [a], how good the labels of each are; NaN for those who
      never vote on an item together with others, unless nobody does.
    vote_quality: [n, a], how probable it is that this vote is right; NaN where
      there is none.
    model_weight: [], of the probabilities in the posterior.
    annotator_weights: [a], of a vote of each; 0 for those who never vote.
    posterior: [n, c], P(true label | votes, model).
  """

  labels: Any
  quality: Any
  agreement: Any
  annotator_quality: Any
  vote_quality: Any
  model_weight: Any
  annotator_weights: Any
  posterior: Any


def crowdlab(
  votes: ArrayLike,
  pred_probs: ArrayLike,
  *,
  consensus: Consensus = 'best_quality',
  quality: Quality = 'crowdlab',
  as_coded: bool = False,
) -> Crowd:
  r"""Consensus labels of several annotators and a model, and their quality.

  .. math::
    p(k \mid i) \propto w_M\, p_{ik} + \sum_{a \in i} w_a
      \bigl[P \text{ if } v_{ia} = k \text{ else } (1 - P) / (c - 1)\bigr]

  P is the mean agreement with the consensus, w_a = 1 - (error of a) / e, w_M =
  (1 - (error of the model) / e) sqrt(votes per item), at least 1e-6 each. The
  error of an annotator is the share of other annotators' votes on the same
  items that differ (of one who never meets others, the mean of the others);
  that of the model counts where its most probable class is not the consensus; e
  is the error of always saying the commonest consensus. P and errors are of the
  items with at least two votes.

  Where no item has two, which is warned of, nothing is known of annotators: all
  weigh 1 and count as right. Their votes are then the consensus, in the order
  of `label_quality`. An item without votes has the model's probabilities, and
  leaves no trace in anything else.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label.
    pred_probs: [n, c], of a model that did not see the item: out of sample.
    consensus: 'majority_vote', or 'best_quality': the class of the largest
      posterior once that is computed with the majority, which stays where that
      is tied.
    quality: 'crowdlab', or 'agreement', for which the posterior is the share of
      votes for each class, and the model only breaks ties.
    as_coded: the official code loses the classes of votes that it counts with
      `quality` 'agreement': to the classes of an item, in order, it gives the
      places 0, 1, ... of the posterior. So here, to compare with it.

  Returns:
    `Crowd`. Can be jitted and vmapped; there a vote out of range is none.

  Raises:
    TypeError, ValueError: if an argument is malformed. NaN for a missing vote
      is refused.

  >>> votes = [[0, 0, -1], [1, 1, 0], [1, -1, 1], [0, 1, 0]]
  >>> probs = np.array([[.9, .1], [.2, .8], [.3, .7], [.4, .6]])
  >>> crowd = crowdlab(votes, probs)
  >>> print(crowd.labels, crowd.annotator_quality.round(2))
  [0 1 1 0] [0.81 0.71 0.53]

  Reference: Goh, Tkachenko, Mueller, "CROWDLAB: Supervised learning to infer
  consensus labels and quality scores for data with multiple annotators",
  NeurIPS 2022 workshop, arXiv 2210.06812.
  """
  check_name('consensus', consensus, get_args(Consensus))
  check_name('quality', quality, get_args(Quality))
  given, probs = (votes, pred_probs), _read_probs(pred_probs)
  votes = _read_votes(votes, *probs.shape)
  if is_concrete(votes) and not _some_share(np.asarray(votes)):
    warnings.warn(
      'no item of votes has two of them, so nothing tells how far annotators '
      'are right: all weigh 1; see label_quality for one label of each item',
      stacklevel=2,
    )
  judged = _judged(votes, probs, consensus, quality, as_coded)
  crowd = _described(votes, *judged, quality=quality)
  return as_given(crowd, *given)


def active_learning_scores(
  votes: ArrayLike, pred_probs: ArrayLike, *, as_coded: bool = False
) -> Any:
  r"""How little one more vote on an item would tell; ask first where it is low.

  .. math::
    s_i = \frac{(w_M + \sum_{a \in i} w_a)\, q_i + \bar w / c}
      {w_M + \sum_{a \in i} w_a + \bar w}

  q and w are the quality of the consensus and the weights of `crowdlab`, after
  the probabilities were raised to 1 / T and normalized, T such that their cross
  entropy with the shares of votes is least (of .1 to 8, on a grid, then on a
  finer one); bar w is the mean weight of those who vote. Items without votes
  are among them and can be compared with the others. Where no item has two
  votes, T and all weights are 1 and q is the probability of the vote.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label.
    pred_probs: [n, c], of a model that did not see the item: out of sample.
    as_coded: T as in the official code, which counts votes without their
      classes, see `crowdlab`, and does not end at 8.

  Returns:
    [n] in (0, 1]. Can be jitted and vmapped; there a vote out of range is none.

  Raises:
    TypeError, ValueError: if an argument is malformed. NaN for a missing vote
      is refused.

  >>> probs = np.array([[.9, .1], [.2, .8], [.7, .3], [.6, .4]])
  >>> votes = [[0, 0, 0], [1, 1, 1], [0, -1, -1], [-1, -1, -1]]
  >>> print(active_learning_scores(votes, probs).round(2))
  [0.91 0.91 0.86 0.79]

  Reference: Goh, Mueller, "ActiveLab: Active Learning with Re-Labeling by
  Multiple Annotators", ICLR 2023 workshop, arXiv 2301.11856.
  """
  given, probs = (votes, pred_probs), _read_probs(pred_probs)
  votes = _read_votes(votes, *probs.shape)
  probs = _tempered(votes, probs, as_coded)
  _, labels, found = _judged(votes, probs)
  return as_given(_settled(votes, probs, labels, found), *given)


# --- reading -----------------------------------------------------------------


def _read_probs(pred_probs: ArrayLike) -> Array:
  """Probabilities [n, c] whose rows sum to one."""
  probs = read_probs(pred_probs)
  check(probs.ndim == 2, f'pred_probs must be [n, c], got shape {probs.shape}')
  check_simplex('pred_probs', numbers('pred_probs', pred_probs))
  return jnp.asarray(probs)


def _read_votes(votes: Any, n: int, c: int) -> Array:
  """Votes [n, a] as int32, -1 where there is none."""
  table, _ = read_votes(votes, c)
  if isinstance(table, Triples):
    raise TypeError('votes must be [n, a]; of triples votes_of makes that')
  check(
    len(table) == n,
    f'votes must have a row of each of the {n} of pred_probs, got shape '
    f'{table.shape}',
  )
  return table


def _some_share(votes: Any) -> Any:
  """Whether an item has two votes."""
  return ((votes >= 0).sum(1) > 1).any()


# --- sums over votes ---------------------------------------------------------


def _at_votes(table: Array, votes: Array) -> Array:
  """[n, a]: what [n, c] says of the class that each voted for."""
  return jnp.take_along_axis(table, jnp.maximum(votes, 0), axis=1)


def _at(table: Array, labels: Array) -> Array:
  """[n]: what [n, c] says of these labels."""
  return jnp.take_along_axis(table, labels[:, None], axis=1)[:, 0]


def _mean(
  values: Array,
  where: Array,
  axis: int | None = None,
  none: float = 0.0,
  dtype: Any = None,
) -> Array:
  """Mean of the values that count, or `none` where there is nothing.

  Whole numbers are added as such: sums of many are exact.
  """
  number = jnp.sum(where, axis, dtype=jnp.int32)
  total = jnp.sum(jnp.where(where, values, 0), axis)
  total = total if dtype is None else total.astype(dtype)
  return jnp.where(number > 0, total / jnp.maximum(number, 1), none)


# --- the majority ------------------------------------------------------------
#
# Jitted one by one, so that what one function needs twice, or two need, is
# compiled once.

_counts = jax.jit(vote_counts, static_argnames='num_classes')
_majority = jax.jit(majority_vote)


# --- the posterior -----------------------------------------------------------


class _Posterior(NamedTuple):
  """As the fields of `Crowd`."""

  probs: Array
  model_weight: Array
  annotator_weights: Array


def _judged(
  votes: Array,
  probs: Array,
  consensus: Consensus = 'best_quality',
  quality: Quality = 'crowdlab',
  as_coded: bool = False,
) -> tuple[Array, Array, _Posterior]:
  """Counts of votes, consensus, and the posterior that this gives."""
  counts = _counts(votes, num_classes=probs.shape[1])

  def posterior(labels: Array) -> _Posterior:
    if quality == 'agreement':
      return _of_shares(votes, counts, probs, as_coded)
    return _weighted(votes, counts, probs, labels)

  labels = _majority(votes, probs)
  if consensus == 'best_quality':
    labels = _likeliest(posterior(labels).probs, labels)
  return counts, labels, posterior(labels)


@jax.jit
def _likeliest(posterior: Array, labels: Array) -> Array:
  """The class of the largest posterior; where several have it, as it was."""
  rounding = 4 * float(jnp.finfo(posterior.dtype).eps)
  largest = jnp.max(posterior, axis=1, keepdims=True)
  alone = jnp.sum(posterior >= largest * (1 - rounding), axis=1) == 1
  best = jnp.argmax(posterior, axis=1).astype(jnp.int32)
  return jnp.where(alone, best, labels)


@functools.partial(jax.jit, static_argnames='quality')
def _described(
  votes: Array,
  counts: Array,
  labels: Array,
  found: _Posterior,
  *,
  quality: Quality,
) -> Crowd:
  given, some = votes >= 0, jnp.any(counts > 0, axis=1)
  agreement = _agreement(counts, labels, found.probs.dtype)
  likely = _at(found.probs, labels)
  if quality == 'agreement':
    likely = jnp.where(some, agreement, likely)
  one = _at_votes(found.probs, votes)
  return Crowd(
    labels=labels,
    quality=likely,
    agreement=jnp.where(some, agreement, jnp.nan),
    annotator_quality=_of_annotators(votes, labels, one, found),
    vote_quality=jnp.where(given, one, jnp.nan),
    model_weight=found.model_weight,
    annotator_weights=found.annotator_weights,
    posterior=found.probs,
  )


def _compared(votes: Array) -> Array:
  """[n] bool: items with two votes; where there is none, those with one."""
  number = jnp.sum(votes >= 0, axis=1)
  return number > jnp.where(_some_share(votes), 1, 0)


def _agreement(counts: Array, labels: Array, dtype: Any) -> Array:
  """[n]: the share of the votes that are for these labels, 0 without any."""
  number = jnp.maximum(jnp.sum(counts, axis=1), 1)
  return _at(counts, labels).astype(dtype) / number


@functools.partial(jax.jit, static_argnums=3)
def _of_shares(
  votes: Array, counts: Array, probs: Array, as_coded: bool
) -> _Posterior:
  """The votes alone; of items without any, the model's probabilities."""
  shares = _shares(counts, probs.dtype, as_coded)
  some = jnp.any(counts > 0, axis=1, keepdims=True)
  voted = jnp.any(votes >= 0, axis=0)
  return _Posterior(
    jnp.where(some, shares, probs),
    jnp.zeros([], probs.dtype),
    voted.astype(probs.dtype),
  )


def _shares(counts: Array, dtype: Any, as_coded: bool) -> Array:
  """[n, c]: the share of the votes for each class, 0 without votes."""
  if as_coded:
    order = jnp.argsort(counts == 0, axis=1, stable=True)
    counts = jnp.take_along_axis(counts, order, axis=1)
  number = jnp.sum(counts, axis=1, keepdims=True)
  return counts.astype(dtype) / jnp.maximum(number, 1)


@jax.jit
def _weighted(
  votes: Array, counts: Array, probs: Array, labels: Array
) -> _Posterior:
  """Votes and model, weighted by how often they are right."""
  c, given, compared = probs.shape[1], votes >= 0, _compared(votes)
  number = jnp.sum(counts, axis=1)
  likely = _mean(_agreement(counts, labels, probs.dtype), compared)
  unlikely = (1 - likely) / (c - 1)

  sizes = jnp.zeros(c, jnp.int32).at[labels].add(compared)
  error = _mean(labels != jnp.argmax(sizes), compared, dtype=probs.dtype)
  error = jnp.maximum(error, LEAST)
  wrong = _mean(jnp.argmax(probs, 1) != labels, compared, dtype=probs.dtype)
  per_item = _mean(number, number > 0, dtype=probs.dtype)
  model = jnp.maximum(1 - wrong / error, LEAST) * jnp.sqrt(per_item)
  weights = jnp.maximum(1 - _errors(votes, counts, probs.dtype) / error, LEAST)
  weights = jnp.where(jnp.any(given, axis=0), weights, 0)

  behind = jnp.sum(jnp.where(given, weights, 0), axis=1, keepdims=True)
  apart = weights * (likely - unlikely)
  mine = vote_counts(votes, num_classes=c, weights=apart)
  total = model * probs + unlikely * behind + mine
  some = (number > 0)[:, None]
  total = total / jnp.where(some, model + behind, 1)
  return _Posterior(jnp.where(some, total, probs), model, weights)


def _errors(votes: Array, counts: Array, dtype: Any) -> Array:
  """[a]: the share of others' votes on the same items that differ."""
  given = votes >= 0
  others = jnp.sum(counts, axis=1, keepdims=True) - 1
  differ = jnp.where(given, others + 1 - _at_votes(counts, votes), 0)
  met = jnp.sum(jnp.where(given, others, 0), axis=0)
  errors = jnp.sum(differ, axis=0).astype(dtype) / jnp.maximum(met, 1)
  return jnp.where(met > 0, errors, _mean(errors, met > 0))


def _of_annotators(
  votes: Array, labels: Array, vote_quality: Array, found: _Posterior
) -> Array:
  """[a]: of what the posterior says of their votes, and the consensus."""
  given = votes >= 0
  met = given & _compared(votes)[:, None]
  right, dtype = votes == labels[:, None], vote_quality.dtype
  agreement = _mean(right, met, axis=0, none=jnp.nan, dtype=dtype)
  own = _mean(vote_quality, given, axis=0)
  number = jnp.sum(given, axis=1)
  per_item = _mean(number, number > 0, dtype=dtype)
  annotators = jnp.maximum(jnp.sum(jnp.any(given, axis=0)), 1)
  crowd = jnp.sum(found.annotator_weights) * per_item / annotators
  model = found.model_weight
  share = model / jnp.where(model + crowd > 0, model + crowd, 1)
  return share * own + (1 - share) * agreement


# --- whom to ask -------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def _tempered(votes: Array, probs: Array, as_coded: bool) -> Array:
  """The probabilities to the power 1 / T that fits the votes, normalized."""
  shares = _shares(
    _counts(votes, num_classes=probs.shape[1]), probs.dtype, as_coded
  )
  logs = jnp.log(jnp.maximum(probs, TINY))
  some = jnp.any(votes >= 0, axis=1)
  fitted = jax.nn.softmax(logs / _temperature(logs, shares, some, as_coded))
  return jnp.where(_some_share(votes), fitted, probs)


@jax.jit
def _settled(
  votes: Array, probs: Array, labels: Array, found: _Posterior
) -> Array:
  given, shared = votes >= 0, _some_share(votes)
  voters = jnp.any(given, axis=0)
  # With one vote for each item, what the model says of it.
  quality = _at(jnp.where(shared, found.probs, probs), labels)
  weights = jnp.where(shared, found.annotator_weights, voters)
  model = jnp.where(shared, found.model_weight, 1)
  mean = _mean(weights, voters, none=1)
  known = model + jnp.sum(jnp.where(given, weights, 0), axis=1)
  return (known * quality + mean / probs.shape[1]) / (known + mean)


def _temperature(
  logs: Array, shares: Array, some: Array, as_coded: bool
) -> Array:
  """Where the cross entropy with the shares of votes is least, on two grids."""

  def loss(temperature: Array) -> Array:
    fitted = jax.nn.log_softmax(logs / temperature)
    fitted = jnp.maximum(fitted, math.log(TINY))
    return -_mean(jnp.sum(shares * fitted, axis=1), some)

  coarse = jnp.asarray(COARSE, logs.dtype)
  best = jnp.argmin(jax.lax.map(loss, coarse))
  low = coarse[jnp.maximum(best - 1, 0)]
  here, high = coarse[best], coarse[jnp.minimum(best + 1, len(COARSE) - 1)]
  steps = jnp.arange(4, dtype=logs.dtype) / 4
  # At an end of the grid some are the end, more than once.
  fine = jnp.concatenate(
    [low + steps * (here - low), here + steps * (high - here), high[None]]
  )
  losses = jax.lax.map(loss, fine)
  if as_coded:
    losses = jnp.where(fine < COARSE[-1], losses, jnp.inf)
  return fine[jnp.argmin(losses)]
