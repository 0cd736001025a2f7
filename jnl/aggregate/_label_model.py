"""Labeling functions: what they say together, by moments and by likelihood."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from jnl.aggregate import _law as laws
from jnl.aggregate import _sums as sums
from jnl.aggregate._triples import (
  Triples,
  Votes,
  num_workers,
  packed,
  read_votes,
  votes_of,
)
from jnl.base import (
  Array,
  PyTree,
  Scalar,
  check,
  global_grad,
  global_mean,
  global_sum,
  is_concrete,
)
from jnl.inputs import as_array, check_between, check_range

CHUNK = 1024
"""Items whose votes are spread over classes at once."""
PRECISION = 0.7
"""How probable it is at the start that a vote is right, as in official code."""


class LabelModel(NamedTuple):
  """What is known of labeling functions that may abstain.

  Attributes:
    posterior: [n, c], P(true label | votes); of an item without votes the class
      balance.
    class_balance: [c], P(true label).
    mu: [a, c, c], P(a votes k | true label y) at [a, y, k]; rows sum to how
      often it votes.
    accuracy: [a], P(the vote is right | there is one).
    loss: [], what was minimized, at the end.
    one_sided: [a] bool, who only ever votes for one class.
    collapsed: [] bool, as in `Aggregated`.
  """

  posterior: Array
  class_balance: Array
  mu: Array
  accuracy: Array
  loss: Array
  one_sided: Array
  collapsed: Array


def vote_moments(votes: Votes, *, num_classes: int | None = None) -> Array:
  r"""How often pairs of annotators give pairs of answers to the same item.

  .. math:: O_{ak, bl} = \frac1n \sum_i 1[v_{ia} = k]\, 1[v_{ib} = l]

  Args:
    votes: [n, a] int in [0, c), -1 where an annotator gave no label, or
      `Triples`, of which that table is made.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given.

  Returns:
    [a, c, a, c].

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> vote_moments([[0, 0], [1, 0]])[:, :, 0, 0].tolist()
  [[0.5, 0.0], [0.5, 0.0]]
  """
  return _moments(*read_votes(votes, num_classes))


def label_model_loss(
  mu: ArrayLike, moments: ArrayLike, class_balance: ArrayLike
) -> Array:
  r"""How far functions that err independently are from moments of votes.

  .. math::
    \sum_{a \ne b} \sum_{kl} \Bigl(O_{ak, bl} - \sum_y \pi_y \mu^a_{yk}
      \mu^b_{yl}\Bigr)^2 + \sum_{ak} \Bigl(O_{ak, ak} - \sum_y \pi_y
      \mu^a_{yk}\Bigr)^2

  Args:
    mu: [a, c, c], P(a votes k | true label y) at [a, y, k].
    moments: O, [a, c, a, c], of `vote_moments`.
    class_balance: pi, [c].

  Returns:
    [].

  Raises:
    ValueError: if a shape does not match.

  >>> moments = vote_moments([[0, 0, 0], [1, 1, 1]])
  >>> float(label_model_loss(jnp.stack([jnp.eye(2)] * 3), moments, [.5, .5]))
  0.0
  """
  mu, moments = as_array('mu', mu), as_array('moments', moments)
  a, c = moments.shape[:2]
  for name, array, shape in (
    ('mu', mu, (a, c, c)),
    ('moments', moments, (a, c, a, c)),
  ):
    check(
      array.shape == shape, f'{name} must be {shape}, got shape {array.shape}'
    )
  balance = laws.read_balance(class_balance, c)
  joint = mu * balance[:, None]
  together = jnp.einsum('ayk,byl->akbl', joint, mu)
  others = 1 - jnp.eye(a, dtype=mu.dtype)
  off = jnp.sum((moments - together) ** 2 * others[:, None, :, None])
  own = jnp.einsum('akak->ak', moments) - jnp.sum(joint, axis=1)
  return off + jnp.sum(own**2)


def label_model(
  votes: Votes,
  *,
  num_classes: int | None = None,
  class_balance: ArrayLike | None = None,
  num_steps: int = 1000,
  learning_rate: Scalar = 0.05,
) -> LabelModel:
  r"""Labels and functions that fit the moments of votes (data programming).

  Minimizes `label_model_loss` by Adam, over functions whose answers and
  silence sum to one, from a start at which all votes are right with probability
  .7. The learning rate falls to 0 along a cosine. No random numbers: the
  official code multiplies its start by one, and stops early. Labels are then
  those of functions that err independently, and silence says nothing:

  .. math:: q_{ik} \propto \pi_k \prod_{a \in i} \mu^a_{k v_{ia}}

  It needs functions that meet: of one that never votes together with another
  nothing is learned but how often it votes for each class. How often functions
  vote is counted among all items, also those that nobody votes on: to leave
  these out, drop them.

  Args:
    votes: [n, a] int in [0, c), -1 where a function abstains, or `Triples`.
      At least three functions.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given.
    class_balance: pi, [c]; moments do not tell it, and by default all classes
      are alike.
    num_steps: of Adam, >= 1.
    learning_rate: of the first step, > 0.

  Returns:
    `LabelModel`. No probability in `mu` is less than 1 / n, or .01. Can be
    jitted, vmapped and split over devices by items, with one reduction over
    devices.

  Raises:
    TypeError, ValueError: if an argument is malformed; if there are less than
      three functions, or, outside jit, no item has two votes.

  >>> votes = [[0, 0, -1], [0, 0, 0], [1, 1, 0], [-1, 1, 1], [1, -1, 1]]
  >>> label_model(votes).posterior.argmax(1).tolist()
  [0, 0, 1, 1, 1]

  Reference: Ratner, Hancock, Dunnmon, Sala, Pandey, Ré, "Training Complex
  Models with Multi-Task Weak Supervision", AAAI 2019, arXiv 1810.02840.
  """
  votes, c = read_votes(votes, num_classes)
  _check_functions(votes, 3)
  check(num_steps >= 1, f'num_steps must be at least 1, got {num_steps}')
  check_range('learning_rate', learning_rate, 0, open_low=True)
  alike = np.full(c, 1 / c)
  given = alike if class_balance is None else class_balance
  balance = laws.read_balance(given, c)
  return _fit_moments(votes, balance, learning_rate, num_steps)


def label_model_posterior(
  votes: Votes, mu: ArrayLike, class_balance: ArrayLike
) -> Array:
  r"""P(true label | votes) of items that are new to functions that are known.

  .. math:: q_{ik} \propto \pi_k \prod_{a \in i} \mu^a_{k v_{ia}}

  Args:
    votes: [n, a] int in [0, c), -1 where a function abstains, or `Triples`.
    mu: [a, c, c] >= 0, P(a votes k | true label y) at [a, y, k].
    class_balance: pi, [c].

  Returns:
    [n, c]; of an item without votes the class balance.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> mu = jnp.array([[[.6, .2], [.2, .6]]])
  >>> print(label_model_posterior([[0], [-1]], mu, [.5, .5]).round(2))
  [[0.75 0.25]
   [0.5  0.5 ]]
  """
  mu = as_array('mu', mu)
  c = np.shape(class_balance)[0]
  balance = laws.read_balance(class_balance, c)
  votes, _ = read_votes(votes, c)
  a = num_workers(votes)
  check(
    mu.shape == (a, c, c),
    f'mu must be [a, c, c] = [{a}, {c}, {c}], got shape {mu.shape}',
  )
  check_between('mu', mu, 0)
  return laws.evaluated(votes, laws.Law(balance, mu))[0]


def triplet_accuracies(votes: Votes) -> Array:
  r"""The accuracies of functions of two classes, from triplets, in closed form.

  .. math::
    M_{ab} = E[s_a s_b], \qquad r_a^2 = \frac{|M_{ab} M_{ac}|}{|M_{bc}|},
    \qquad p_a = \frac{1 + r_a}{2}

  s is +1 or -1, and the mean over items on which both vote. Of several pairs
  (b, c), r_a^2 is that of least squares: the sum of abs(M_ab M_ac M_bc) over
  that of M_bc^2.
  Functions are taken to err independently, to be right more often than not, and
  alike on both classes.

  Args:
    votes: [n, a] int, 0 or 1, -1 where a function abstains, or `Triples`. At
      least three functions.

  Returns:
    [a] in [.5, 1]; NaN of a function that is in no triplet all of which meet,
    or only in such as agree as often as not.

  Raises:
    TypeError, ValueError: if `votes` is malformed, or has less than three
      functions.

  >>> votes = [[1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
  >>> votes = jnp.array(votes + [[1, 1, 1], [0, 0, 0]])
  >>> [round(float(p), 2) for p in triplet_accuracies(votes)]
  [0.83, 0.83, 0.83]

  Reference: Fu, Chen, Sala, Hooper, Fatahalian, Ré, "Fast and Three-rious:
  Speeding Up Weak Supervision with Triplet Methods", ICML 2020, arXiv
  2002.11955.
  """
  votes, _ = read_votes(votes, 2)
  _check_functions(votes, 3)
  return _triplets(votes)


@jax.jit
def _triplets(votes: Array | Triples) -> Array:
  moments = _moments(votes, 2)
  met = jnp.sum(moments, axis=(1, 3))
  sign = jnp.array([-1.0, 1.0])
  agree = jnp.einsum('akbl,k,l->ab', moments, sign, sign)
  apart = ~jnp.eye(len(met), dtype=bool)
  m = jnp.abs(jnp.where(apart & (met > 0), agree / jnp.where(met, met, 1), 0))
  there = (met > 0) & apart
  # Sums over ordered pairs (b, c) of which both meet a, and each other.
  product = jnp.einsum('ab,bc,ca->a', m, m, m)
  squares = jnp.einsum('ab,bc,ca->a', there * 1.0, m**2, there * 1.0)
  r = jnp.sqrt(product / jnp.where(squares > 0, squares, 1))
  return jnp.where(squares > 0, (1 + jnp.minimum(r, 1)) / 2, jnp.nan)


def _check_functions(votes: Array | Triples, least: int) -> None:
  a = num_workers(votes)
  check(
    a >= least,
    f'votes must be of at least {least} functions, got {a}: of fewer, moments '
    'do not tell how good each is; see majority_vote',
  )
  if is_concrete(*jax.tree.leaves(votes)):
    check(
      _some_meet(votes),
      'votes must have an item with two of them, or nothing tells how good the '
      'functions are',
    )


def _some_meet(votes: Array | Triples) -> bool:
  """Whether there are more votes than items with votes."""
  if not isinstance(votes, Triples):
    given = np.asarray(votes) >= 0
    return bool(given.sum() > given.any(1).sum())
  given = np.asarray(votes.answer) >= 0
  item = np.asarray(votes.item) + votes.size * np.arange(len(given))[:, None]
  return bool(given.sum() > len(np.unique(item[given.any(1)])))


# --- moments -----------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1)
def _moments(votes: Array | Triples, c: int) -> Array:
  table = votes_of(votes) if isinstance(votes, Triples) else votes
  shards = packed(table).answer
  a = shards.shape[1]
  chunks = -(-shards.shape[2] // CHUNK)
  pad = chunks * CHUNK - shards.shape[2]
  shards = jnp.pad(shards, ((0, 0), (0, 0), (0, pad)), constant_values=-1)
  shards = shards.reshape(-1, a, chunks, CHUNK)

  def pairs(chunk: Array) -> Array:
    spread = jax.nn.one_hot(chunk, c).reshape(a, -1, c)
    spread = jnp.swapaxes(spread, 1, 2).reshape(a * c, -1)
    return spread @ spread.T

  def one(shard: Array) -> Array:
    add = lambda j, total: total + pairs(shard[:, j])
    return lax.fori_loop(1, chunks, add, pairs(shard[:, 0]))

  total = global_sum(jnp.sum(jax.vmap(one)(shards), axis=0))
  return (total / sums.number_of_items(votes)).reshape(a, c, a, c)


@functools.partial(jax.jit, static_argnums=3)
def _fit_moments(
  votes: Array | Triples, balance: Array, learning_rate: Scalar, num_steps: int
) -> LabelModel:
  moments = _moments(votes, len(balance))
  voted = jnp.einsum('akak->ak', moments)
  floor = jnp.minimum(0.01, 1 / sums.number_of_items(votes))
  with_silence = lambda mu: jnp.concatenate(
    [mu, 1 - jnp.sum(mu, axis=-1, keepdims=True)], axis=-1
  )
  mu_of = lambda logits: jax.nn.softmax(logits)[..., :-1]
  loss_of = lambda logits: label_model_loss(mu_of(logits), moments, balance)
  start = jnp.log(jnp.maximum(with_silence(_first(voted, balance)), floor))
  logits = _adam(jax.grad(loss_of), start, learning_rate, num_steps)
  law = laws.Law(balance, jnp.maximum(mu_of(logits), floor))
  rows = packed(votes)
  shares, there = laws.start(rows, len(balance))
  posterior, _ = laws.e_step(rows, sums.places(rows, len(balance)), law)
  return LabelModel(
    posterior=sums.unpacked(rows, posterior),
    class_balance=balance,
    mu=law.confusion,
    accuracy=laws.accuracy(law),
    loss=loss_of(logits),
    one_sided=laws.one_sided(voted),
    collapsed=laws.collapsed(posterior, shares, there),
  )


def _first(voted: Array, balance: Array) -> Array:
  """[a, c, c]: functions of which a vote is right with probability .7."""
  c = len(balance)
  eye = jnp.eye(c, dtype=voted.dtype)
  right = PRECISION * eye + (1 - PRECISION) / (c - 1) * (1 - eye)
  mu = right * voted[:, None, :] / jnp.maximum(balance, 1e-6)[:, None]
  return mu / jnp.maximum(jnp.sum(mu, axis=-1, keepdims=True), 1)


def _adam(
  gradient: Callable[[PyTree], PyTree],
  start: PyTree,
  learning_rate: Scalar,
  num_steps: int,
  eps: float = 1e-8,
) -> PyTree:
  """Where Adam comes to, whose learning rate falls to 0 along a cosine.

  Gradients of less than `eps` move nothing: they may be rounding alone.
  """
  tx = optax.adam(optax.cosine_decay_schedule(1.0, num_steps), eps=eps)

  def step(_: int, carry: tuple) -> tuple:
    params, state = carry
    updates, state = tx.update(gradient(params), state)
    updates = optax.tree.scale(learning_rate, updates)
    return optax.apply_updates(params, updates), state

  return lax.fori_loop(0, num_steps, step, (start, tx.init(start)))[0]


# --- likelihood --------------------------------------------------------------


def marginal_nll(
  votes: Votes, class_balance: ArrayLike, confusion: ArrayLike
) -> Array:
  r"""How improbable the votes on each item are, whatever its label.

  .. math:: -\log \sum_y \pi_y \prod_{a \in i} E^a_{y v_{ia}}

  Args:
    votes: [n, a] int in [0, c), -1 where a function abstains, or `Triples`.
    class_balance: pi, [c].
    confusion: E, [a, c, c], P(a votes k | true label y) at [a, y, k], of those
      who vote, or also of silence: then [a, c, c + 1], of a table [n, a].

  Returns:
    [n], with gradients in both laws; 0 of an item without votes, unless silence
    has a law.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> confusion = [[[.8, .2], [.4, .6]]]
  >>> print(marginal_nll([[0]], [.5, .5], confusion).round(2))
  [0.51]

  Reference: see `generative_model`.
  """
  return -laws.evaluated(*laws.read(votes, class_balance, confusion))[1]


def generative_model(
  votes: Votes,
  *,
  num_classes: int | None = None,
  class_balance: ArrayLike | None = None,
  accuracy_prior: tuple[Scalar, Scalar] = (0.7, 0.3),
  num_steps: int = 500,
  learning_rate: Scalar = 0.05,
) -> LabelModel:
  r"""Labels and functions by the largest marginal likelihood of the votes.

  .. math::
    \mu^a_{yk} = \beta_a \bigl[\alpha_{ay} \text{ if } k = y \text{ else }
      (1 - \alpha_{ay}) / (c - 1)\bigr]

  A function votes with propensity beta, whatever the label, and is right with
  an accuracy of each class; errors are even. beta is the coverage. alpha and
  the class balance are found by Adam on `marginal_nll`, from the accuracy of
  the prior and from equal classes, at a learning rate that falls to 0 along a
  cosine.

  Args:
    votes: [n, a] int in [0, c), -1 where a function abstains, or `Triples`.
    num_classes: c; by default the largest vote + 1. Inside jit it has to be
      given.
    class_balance: pi, [c], if it is known; by default it is learned.
    accuracy_prior: (right, wrong), votes > 0 that each function is taken to
      have given on items of each class.
    num_steps: of Adam, >= 1.
    learning_rate: of the first step, > 0.

  Returns:
    `LabelModel`; its loss is the mean over items with votes, of the prior too.
    Can be jitted, vmapped and split over devices by items, with one reduction
    over devices a step.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> votes = [[0, 0, -1], [0, 0, 0], [1, 1, 0], [-1, 1, 1], [1, -1, 1]]
  >>> generative_model(votes).posterior.argmax(1).tolist()
  [0, 0, 1, 1, 1]

  Reference: Ratner, De Sa, Wu, Selsam, Ré, "Data Programming: Creating Large
  Training Sets, Quickly", NeurIPS 2016, arXiv 1605.07723; of a class each, as
  in Xu, Ding, Zhang, Zhou, "DP-SSL: Towards Robust Semi-supervised Learning
  with A Few Labeled Samples", NeurIPS 2021, arXiv 2110.13740.
  """
  votes, c = read_votes(votes, num_classes)
  check(num_steps >= 1, f'num_steps must be at least 1, got {num_steps}')
  check_range('learning_rate', learning_rate, 0, open_low=True)
  right, wrong = laws.read_prior(accuracy_prior)
  prior = jnp.asarray([right, wrong], float)
  check_between('accuracy_prior', prior, 0, open_low=True)
  balance = laws.read_known(class_balance, c)
  return _fit_likelihood(votes, balance, prior, learning_rate, c, num_steps)


class _Free(NamedTuple):
  """What Adam moves: log-odds of alpha [a, c], and logits of pi [c]."""

  right: Array
  classes: Array


@functools.partial(jax.jit, static_argnames=('c', 'num_steps'))
def _fit_likelihood(
  votes: Array | Triples,
  balance: Array | None,
  prior: Array,
  learning_rate: Scalar,
  c: int,
  num_steps: int,
) -> LabelModel:
  rows = packed(votes)
  place = sums.places(rows, c)
  shares, there = laws.start(rows, c)
  number = jnp.maximum(global_sum(sums.over_items(there * 1.0))[0], 1)

  def law_of(free: _Free) -> laws.Law:
    log_p = jax.nn.log_softmax(free.classes)
    return laws.Law(
      jnp.exp(log_p) if balance is None else balance, _evenly(free.right)
    )

  def loss_of(free: _Free) -> tuple[Array, tuple]:
    _, evidence = laws.e_step(rows, place, law_of(free))
    known = jnp.stack(
      [jax.nn.softplus(-free.right), jax.nn.softplus(free.right)]
    )
    known = jnp.sum(jnp.tensordot(prior, known, 1)) / number
    return known - global_mean(evidence, there), ()

  a = rows.num_workers
  start = _Free(jnp.full((a, c), jnp.log(prior[0] / prior[1])), jnp.zeros(c))
  gradient = lambda free: global_grad(loss_of)(free)[1]
  free = _adam(gradient, start, learning_rate, num_steps, eps=1e-6)
  law = law_of(free)
  posterior, _ = laws.e_step(rows, place, law)
  voted = sums.of_answers(rows, c)
  coverage = jnp.sum(voted, axis=1) / sums.number_of_items(votes)
  return LabelModel(
    posterior=sums.unpacked(rows, posterior),
    class_balance=law.balance,
    mu=coverage[:, None, None] * law.confusion,
    accuracy=laws.accuracy(law),
    loss=loss_of(free)[0],
    one_sided=laws.one_sided(voted),
    collapsed=laws.collapsed(posterior, shares, there),
  )


def _evenly(log_odds: Array) -> Array:
  """[a, c, c]: right with log-odds [a, c], wrong in even parts."""
  c = log_odds.shape[1]
  eye = jnp.eye(c, dtype=log_odds.dtype)
  right, wrong = jax.nn.sigmoid(log_odds), jax.nn.sigmoid(-log_odds)
  return right[..., None] * eye + wrong[..., None] / (c - 1) * (1 - eye)
