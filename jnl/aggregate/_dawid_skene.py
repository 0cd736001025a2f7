"""Annotators with errors of their own, by EM: Dawid-Skene and one-coin."""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.aggregate import _law as laws
from jnl.aggregate import _sums as sums
from jnl.aggregate._triples import (
  Triples,
  Votes,
  packed,
  read_votes,
)
from jnl.base import Array, Scalar, check, global_sum
from jnl.inputs import check_range


class Aggregated(NamedTuple):
  """What EM says of items and annotators.

  Attributes:
    posterior: [n, c], P(true label | votes); of an item without votes the class
      balance.
    class_balance: [c], P(true label).
    confusion: [a, c, c], P(a says j | true label i) at [a, i, j]; with
      `abstain_informative` [a, c, c + 1], the last column is of no answer.
    accuracy: [a], P(the answer is right | there is one).
    log_likelihood: [], of all votes, without priors.
    converged: [] bool, whether the last step moved no parameter by more than
      `tol`.
    num_iter: [] int32, the steps taken.
    one_sided: [a] bool, who only ever votes for one class. EM without a prior
      finds such functions right whenever they vote for what is common.
    collapsed: [] bool: one class has taken the items of others. Of those with
      votes the majority puts more than 10% into classes other than the one
      that is commonest now, and the posterior less than a third of that. Then
      EM has explained the votes without the labels, unless that class is as
      common as it says: fix `class_balance`, and give an `accuracy_prior` that
      is strong.
  """

  posterior: Array
  class_balance: Array
  confusion: Array
  accuracy: Array
  log_likelihood: Array
  converged: Array
  num_iter: Array
  one_sided: Array
  collapsed: Array


def dawid_skene(
  votes: Votes,
  *,
  num_classes: int | None = None,
  class_balance: ArrayLike | None = None,
  abstain_informative: bool = False,
  smoothing: Scalar = 0.01,
  accuracy_prior: tuple[Scalar, Scalar] | None = None,
  max_iter: int = 100,
  tol: Scalar = 1e-5,
) -> Aggregated:
  r"""Labels and the confusion matrix of each annotator, by EM.

  .. math::
    q_{ik} \propto \pi_k \prod_{a \in i} E^a_{k v_{ia}}, \qquad
    E^a_{kl} \propto s_{kl} + \sum_i q_{ik}\, 1[v_{ia} = l], \qquad
    \pi_k \propto s + \sum_i q_{ik}

  The second and third step come first, with q the shares of the votes. An item
  without votes leaves no trace.

  Where errors are systematic (an annotator takes a class for a certain other)
  it is far better than the majority: .998 against .908 with 4 classes and 8
  functions, of accuracy .4 to .9, that vote on 70% of 1,500 items. Where they
  are symmetric a matrix is more than a few votes tell, and it may fall below
  the majority: .751 against .793 with 5 functions, of accuracy .5 to .8, and
  200 items (`one_coin`: .804). Of functions that only ever vote for one class
  it learns nothing: their column of E is 1.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given.
    class_balance: pi, [c], if it is known; by default it is learned.
    abstain_informative: no answer is an answer like others, which may depend on
      the true label. For a table [n, a], whose items then all count.
    smoothing: s >= 0, votes that everybody is taken to have given of each class
      for each class. With 0 what was never seen is impossible.
    accuracy_prior: (right, wrong), votes >= 0 that everybody is taken to have
      given of each class, right ones and wrong ones in even parts, beside
      `smoothing`.
    max_iter: the most steps, >= 1.
    tol: how far the last step may move a parameter.

  Returns:
    `Aggregated`. Can be jitted, vmapped and split over devices by items, with
    one reduction over devices a step.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> votes = [[0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1], [1, -1, 0]]
  >>> found = dawid_skene(votes)
  >>> found.posterior.argmax(1).tolist()
  [0, 0, 1, 1, 1]

  Reference: Dawid, Skene, "Maximum Likelihood Estimation of Observer
  Error-Rates Using the EM Algorithm", Applied Statistics 1979.
  """
  votes, c = read_votes(votes, num_classes)
  check(
    not (abstain_informative and isinstance(votes, Triples)),
    'abstain_informative needs votes [n, a]: of triples nobody is asked for '
    'an answer to every item',
  )
  right, wrong = laws.read_prior(accuracy_prior or (0.0, 0.0))
  check_range('smoothing', smoothing, 0)
  prior = smoothing + _diagonal(right, wrong, c)
  if abstain_informative:
    missing = jnp.full((c, 1), smoothing, prior.dtype)
    prior = jnp.concatenate([prior, missing], axis=1)
  return _fit(
    votes,
    laws.read_known(class_balance, c),
    _Prior(prior, jnp.asarray(smoothing, prior.dtype)),
    jnp.asarray(tol, prior.dtype),
    one_coin=False,
    max_iter=_read_steps(max_iter, tol),
  )


def one_coin(
  votes: Votes,
  *,
  num_classes: int | None = None,
  class_balance: ArrayLike | None = None,
  accuracy_prior: tuple[Scalar, Scalar] | None = None,
  max_iter: int = 100,
  tol: Scalar = 1e-5,
) -> Aggregated:
  r"""Labels and one accuracy for each annotator, by EM.

  .. math::
    q_{ik} \propto \pi_k \prod_{a \in i}
      \bigl[p_a \text{ if } v_{ia} = k \text{ else } (1 - p_a) / (c - 1)\bigr],
    \qquad
    p_a = \frac{r + \sum_i q_{i v_{ia}}}{r + w + \sum_i 1[v_{ia} \ge 0]}

  pi is the mean of q over the items with votes. The second step comes first,
  with q the shares of the votes.

  It collapses where the likelihood is largest if all items are of one class: of
  functions that only ever vote for one class it is, unless the class balance is
  fixed and the prior strong, (700, 300) for some hundred votes of each; and of
  the crowd of bluebird (58% right, the majority 76%), whose errors are of one
  kind. The result says so.

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given.
    class_balance: pi, [c], if it is known; by default it is learned.
    accuracy_prior: (r, w), right and wrong votes >= 0 that everybody is taken
      to have given: Beta(r, w). By default .01 and .01 (c - 1).
    max_iter: the most steps, >= 1.
    tol: how far the last step may move a parameter.

  Returns:
    `Aggregated`, with the matrix that each accuracy means. As `dawid_skene`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> votes = [[0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1], [1, -1, 0]]
  >>> found = one_coin(votes, accuracy_prior=(2, 1))
  >>> [round(float(p), 2) for p in found.accuracy]
  [0.84, 0.84, 0.52]

  Reference: see `dawid_skene`, whose matrices have one number each here.
  """
  votes, c = read_votes(votes, num_classes)
  right, wrong = laws.read_prior(accuracy_prior or (0.01, 0.01 * (c - 1)))
  return _fit(
    votes,
    laws.read_known(class_balance, c),
    _Prior(_diagonal(right, wrong, c) / c, jnp.zeros([])),
    jnp.asarray(tol, float),
    one_coin=True,
    max_iter=_read_steps(max_iter, tol),
  )


def dawid_skene_posterior(
  votes: Votes, class_balance: ArrayLike, confusion: ArrayLike
) -> Array:
  r"""P(true label | votes) of items that are new to annotators who are known.

  .. math:: q_{ik} \propto \pi_k \prod_{a \in i} E^a_{k v_{ia}}

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`.
    class_balance: pi, [c].
    confusion: E, [a, c, c], or [a, c, c + 1] if no answer is one, as in
      `Aggregated`.

  Returns:
    [n, c]; of an item without votes the class balance.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> known = dawid_skene([[0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]])
  >>> new = [[0, -1, -1], [-1, -1, -1]]
  >>> found = dawid_skene_posterior(new, known.class_balance, known.confusion)
  >>> print(found.round(2))
  [[1.  0. ]
   [0.5 0.5]]
  """
  return laws.evaluated(*laws.read(votes, class_balance, confusion))[0]


def _read_steps(max_iter: int, tol: Scalar) -> int:
  check(max_iter >= 1, f'max_iter must be at least 1, got {max_iter}')
  check_range('tol', tol, 0)
  return max_iter


def _diagonal(right: Scalar, wrong: Scalar, c: int) -> Array:
  """[c, c]: right on the diagonal, wrong in even parts beside it."""
  eye = jnp.eye(c, dtype=jnp.result_type(float))
  return right * eye + wrong / (c - 1) * (1 - eye)


# --- EM ----------------------------------------------------------------------


class _Prior(NamedTuple):
  """Votes [c, symbols] and items [] of each class that were never given."""

  votes: Array
  items: Array


class _Loop(NamedTuple):
  law: laws.Law
  change: Array
  step: Array


@functools.partial(jax.jit, static_argnames=('one_coin', 'max_iter'))
def _fit(
  votes: Array | Triples,
  balance: Array | None,
  prior: _Prior,
  tol: Array,
  *,
  one_coin: bool,
  max_iter: int,
) -> Aggregated:
  rows, symbols = packed(votes), prior.votes.shape[1]
  c = len(prior.votes)
  shares, voted = laws.start(rows, c)
  counts = voted
  if symbols > c:
    rows, counts = laws.with_symbol(rows, c), jnp.ones_like(voted)
  place = sums.places(rows, symbols)
  a = rows.num_workers

  def m_step(posterior: Array) -> laws.Law:
    table = sums.of_places(rows, place, posterior, a * symbols)
    items = sums.over_items(posterior * counts)
    table, items = global_sum((table, items))
    table = jnp.swapaxes(table.reshape(a, symbols, c), 1, 2)
    return laws.Law(
      laws.normalized(items + prior.items) if balance is None else balance,
      (_coins if one_coin else laws.normalized)(table + prior.votes),
    )

  def step(loop: _Loop) -> _Loop:
    law = m_step(laws.e_step(rows, place, loop.law)[0])
    moved = [
      jnp.max(jnp.abs(new - old))
      for new, old in zip(law, loop.law, strict=True)
    ]
    return _Loop(law, jnp.maximum(*moved), loop.step + 1)

  start = _Loop(m_step(shares), jnp.full_like(tol, jnp.inf), jnp.int32(1))
  end = lax.while_loop(
    lambda loop: (loop.step < max_iter) & (loop.change > tol), step, start
  )
  posterior, evidence = laws.e_step(rows, place, end.law)
  return Aggregated(
    posterior=sums.unpacked(rows, posterior),
    class_balance=end.law.balance,
    confusion=end.law.confusion,
    accuracy=laws.accuracy(end.law),
    log_likelihood=global_sum(sums.over_items(evidence * counts)[0]),
    converged=end.change <= tol,
    num_iter=end.step,
    one_sided=laws.one_sided(sums.of_answers(packed(votes), c)),
    collapsed=laws.collapsed(posterior, shares, voted),
  )


def _coins(table: Array) -> Array:
  """[a, c, c]: one accuracy for all rows."""
  c = table.shape[-1]
  right = jnp.trace(table, axis1=1, axis2=2)
  total = jnp.sum(table, axis=(1, 2))
  p = jnp.where(total > 0, right / jnp.where(total > 0, total, 1), 1 / c)
  p, eye = p[:, None, None], jnp.eye(c, dtype=table.dtype)
  return p * eye + (1 - p) / (c - 1) * (1 - eye)
