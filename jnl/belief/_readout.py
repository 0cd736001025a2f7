"""What beliefs say of pairs, of bags, and of the law as a whole."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import automata
from jnl.automata import likeliest
from jnl.base import Array, check
from jnl.belief._factors import FactorGraph
from jnl.belief._messages import (
  Beliefs,
  Messages,
  at_spill,
  by_bags,
  everywhere,
  heard,
)
from jnl.inputs import read_counts


class PairProbs(NamedTuple):
  """Joint probabilities of tied instances, as the `Graph` has them.

  Attributes:
    neighbors: [n, degree, 2, 2], P(y_i, y_j) of the i-th instance and each of
      its neighbors; that of an independent stranger in empty slots.
    spill: [s, 2, 2], of the ties in `Graph.spill`.
  """

  neighbors: Array
  spill: Array


@jax.jit
def pair_probs(graph: FactorGraph, beliefs: Beliefs) -> PairProbs:
  r"""The joint probabilities P(y_i, y_j) of all ties.

  .. math:: P(y_i, y_j) \propto \exp(c_i y_i + c_j y_j - w (y_i - y_j)^2)

  with c the log-odds of an end but for this tie.

  Args:
    graph: from `factor_graph`.
    beliefs: from `propagate` on it, at temperature 1.

  Returns:
    `PairProbs`.
  """
  total = _totals(graph, beliefs)
  own, theirs = _cavities(graph, beliefs.messages, total)
  tables = jnp.moveaxis(_joint(own, theirs, graph.weights), 1, 2)
  tables = tables.reshape(total.size, *tables.shape[2:])
  own, theirs = _spilled_cavities(graph, beliefs.messages, total)
  spill = _joint(own, theirs, graph.spill_weights).reshape(-1, 2, 2)
  return PairProbs(tables[graph.slots], spill[graph.spills])


@jax.jit
def count_log_probs(graph: FactorGraph, beliefs: Beliefs) -> Array:
  """The log-probabilities of all numbers of positives in each bag.

  Args:
    graph: from `factor_graph`.
    beliefs: from `propagate` on it, at temperature 1.

  Returns:
    [k, m + 1], log P(N_b = c), for the longest bag's m; -inf beyond a bag's
    size.
  """
  of_groups = []
  longest = max((g.mask.shape[2] for g in graph.groups), default=1)
  known = by_bags(graph, heard(graph, beliefs.messages))[:-1]
  for group, log_odds in zip(graph.groups, known, strict=True):
    joint = automata.count_log_probs(log_odds, group.mask) + group.log_factor
    log_probs = jax.nn.log_softmax(joint, axis=-1)
    width = ((0, 0), (0, 0), (0, longest + 1 - joint.shape[-1]))
    log_probs = jnp.pad(log_probs, width, constant_values=-jnp.inf)
    of_groups.append(log_probs.reshape(-1, longest + 1))
  of_groups.append(jnp.zeros([0, longest + 1], graph.weights.dtype))
  return jnp.concatenate(of_groups)[graph.bags]


@jax.jit
def bethe_free_energy(graph: FactorGraph, beliefs: Beliefs) -> Array:
  r"""The Bethe free energy, -log Z: exact on a tree.

  .. math:: -\log Z = -\sum_a \log Z_a - \sum_i (1 - d_i) \log Z_i

  over all factors a; Z_a sums the factor times what its instances say to it,
  Z_i what the d_i factors of an instance say together.

  Args:
    graph: from `factor_graph`.
    beliefs: from `propagate` on it, at temperature 1, converged: elsewhere the
      free energy is that of no distribution.

  Returns:
    [], relative to the terms that the law leaves out (`log p` up to the factors
    as they were given).
  """
  messages, total = beliefs.messages, _totals(graph, beliefs)
  likely = total > 0

  def doubt(log_odds: Array, likely: Array) -> Array:
    """log(1 + e^c), less c where 1 is likely: these come to theta in the sum.

    What is left is small where an instance is decided, and nothing cancels.
    """
    return jax.nn.softplus(jnp.where(likely, -log_odds, log_odds))

  at_slots = jnp.where(likely, graph.log_odds, 0) + doubt(total, likely)
  log_z = jnp.sum(at_slots.ravel()[graph.slots])

  def less(own: Array, total: Array) -> Array:
    """Of an instance, what it is without a factor less what it is anyway."""
    return doubt(own, total > 0) - doubt(total, total > 0)

  own, theirs = _cavities(graph, messages, total)
  each = _tied(own, theirs, graph.weights) + less(own, total[:, None])
  log_z += jnp.sum(jnp.where(graph.weights != 0, each, 0))
  own, theirs = _spilled_cavities(graph, messages, total)
  each = _tied(own, theirs, graph.spill_weights)
  each += less(own, at_spill(graph, total))
  log_z += jnp.sum(jnp.where(graph.spill_weights != 0, each, 0))
  known = by_bags(graph, heard(graph, messages))[:-1]
  ended = by_bags(graph, total)[:-1]
  for group, own, instance in zip(graph.groups, known, ended, strict=True):
    _, expected = automata.count_messages(own, group.log_factor, group.mask)
    log_z += jnp.sum(jnp.where(group.mask, less(own, instance), 0))
    log_z += jnp.sum(jnp.where(jnp.any(group.mask, -1), expected, 0))
  return -log_z


def top_of_bags(
  log_odds: ArrayLike, index: ArrayLike, mask: ArrayLike, counts: ArrayLike
) -> Array:
  """The labels that hold each bag's count: 1 for its likeliest instances.

  The other way to decide is a threshold, `beliefs.marginals > 0.5`, which may
  be better where counts do not bind.

  Args:
    log_odds: [n] beliefs.
    index: [k, m] int32, the instances of each bag.
    mask: [k, m] bool, where there is one.
    counts: [k] int, S in [0, instances].

  Returns:
    [n] int32; of instances without a bag, whether they are likelier than not.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> bags = jnp.array([[0, 1], [2, 3]])
  >>> found = jnp.array([1., 2., -3., -1.])
  >>> top_of_bags(found, bags, jnp.ones([2, 2], bool), [1, 1]).tolist()
  [0, 1, 0, 1]
  """
  log_odds, index = jnp.asarray(log_odds), jnp.asarray(index)
  mask, counts = jnp.asarray(mask), jnp.asarray(counts)
  check(log_odds.ndim == 1, f'log_odds must be [n], got {log_odds.shape}')
  check(
    index.ndim == 2 and index.shape == mask.shape,
    f'index and mask must be [k, m], got {index.shape} and {mask.shape}',
  )
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  counts = read_counts(counts, mask)
  known = log_odds.at[index].get(mode='fill', fill_value=-jnp.inf)
  chosen = likeliest(known, counts, mask).astype(jnp.int32)
  alone = (log_odds > 0).astype(jnp.int32)
  index = jnp.where(mask, index, len(log_odds))
  return alone.at[index].set(chosen, mode='drop')


# --- cavities ----------------------------------------------------------------


def _totals(graph: FactorGraph, beliefs: Beliefs) -> Array:
  """Log-odds of the slots, [shards, N]."""
  total = jnp.zeros_like(graph.log_odds).ravel()
  total = total.at[graph.slots].set(beliefs.log_odds)
  return total.reshape(graph.log_odds.shape)


def _cavities(
  graph: FactorGraph, messages: Messages, total: Array
) -> tuple[Array, Array]:
  """Of both ends of each tie, [shards, degree, N], without the tie."""
  theirs = everywhere(total)[graph.neighbors]
  return total[:, None] - messages.pair_in, theirs - messages.pair_out


def _spilled_cavities(
  graph: FactorGraph, messages: Messages, total: Array
) -> tuple[Array, Array]:
  """As `_cavities`, [shards, s]."""
  theirs = everywhere(total)[graph.spill_neighbors]
  own = at_spill(graph, total)
  return own - messages.spill_in, theirs - messages.spill_out


def _tied(own: Array, theirs: Array, weights: Array) -> Array:
  """Half of log E[exp(-w (y_i - y_j)^2)] of two that are independent.

  Half, since a tie is seen from both of its ends.
  """
  neither, second, first, both = _cells(own, theirs, weights)
  agree, differ = jnp.logaddexp(both, neither), jnp.logaddexp(first, second)
  return jnp.logaddexp(agree, differ) / 2


def _joint(own: Array, theirs: Array, weights: Array) -> Array:
  """P(y_i, y_j) [..., 2, 2] for cavities [...]."""
  cells = jnp.stack(_cells(own, theirs, weights), axis=-1)
  return jax.nn.softmax(cells, axis=-1).reshape(*own.shape, 2, 2)


def _cells(own: Array, theirs: Array, weights: Array) -> tuple[Array, ...]:
  """Log weights [...] of (y_i, y_j): (0, 0), (0, 1), (1, 0) and (1, 1)."""
  one, zero = jax.nn.log_sigmoid, lambda c: jax.nn.log_sigmoid(-c)
  return (
    zero(own) + zero(theirs),
    zero(own) + one(theirs) - weights,
    one(own) + zero(theirs) - weights,
    one(own) + one(theirs),
  )
