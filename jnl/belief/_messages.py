"""Messages between instances and factors, until they rest."""

import functools
import math
from typing import Literal, NamedTuple, get_args

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jnl.automata import count_messages, max_count_messages
from jnl.base import (
  AXIS,
  LOG_ZERO,
  Array,
  Scalar,
  axis_is_bound,
  check,
  is_concrete,
  mesh_of,
)
from jnl.belief._factors import CERTAIN, FactorGraph, specs_of

Schedule = Literal['flooding', 'alternating']
LARGE = 1e4
"""Log-odds of an instance that its bag decides: no factor is infinite."""
LEAST_ROOM = 128
"""Iterations that there is room to keep the residuals of."""


class Messages(NamedTuple):
  """The messages of all factors to the instances, in log-odds.

  Attributes:
    pair_in: [shards, degree, N], to the instance in the slot, of its ties.
    pair_out: [shards, degree, N], to its neighbors: where they hold the same
      tie, it is their `pair_in`.
    spill_in: [shards, s], as `pair_in`, of spilled ties.
    spill_out: [shards, s], as `pair_out`.
    bag: [shards, N], to the instance of its bag.
  """

  pair_in: Array
  pair_out: Array
  spill_in: Array
  spill_out: Array
  bag: Array


class Beliefs(NamedTuple):
  """The beliefs that propagation ended with, and how it went.

  Attributes:
    log_odds: [n], of each label being 1, in the order of the instances.
    marginals: [n], P(y_i = 1) = sigmoid(log_odds).
    messages: to start from again, or to read more from.
    iterations: [] int32, how many there were.
    converged: [] bool, whether the last residual is within the tolerance and
      the beliefs are those of a possible law. False where a log-odds is NaN, a
      bag allows no count, a label given as certain (log-odds of 1e6, the most
      there are) is contradicted, or an instance hears more than 4e6.
    residuals: [iterations asked for], the largest change of a message in each;
      NaN for those that there were not.
  """

  log_odds: Array
  marginals: Array
  messages: Messages
  iterations: Array
  converged: Array
  residuals: Array


def pair_messages(
  log_odds: ArrayLike, weights: ArrayLike, *, temperature: Scalar = 1.0
) -> Array:
  r"""The messages through pair factors exp(-w (y_i - y_j)^2), end to end.

  .. math:: M = \log \frac{e^{-w} + e^c}{1 + e^{c - w}}
              = 2 \tanh^{-1}(\tanh(w / 2) \tanh(c / 2))

  It has the sign of w c, is no larger than either, and moves by `e^{-|c|}`
  where these are large; so it is written. At temperature T it is
  T M(w / T, c / T), and at 0 the smaller of the two.

  Args:
    log_odds: [...], c: what the one end is without this factor.
    weights: [...], w; negative ones repel.
    temperature: T >= 0; positive where it is traced.

  Returns:
    [...], log-odds for the other end.

  >>> pair_messages(jnp.array([100., -.5]), jnp.array(2.)).round(4)
  Array([ 2.    , -0.3775], dtype=float32)
  """
  c, w = jnp.abs(log_odds), jnp.abs(weights)
  sign = jnp.sign(log_odds) * jnp.sign(weights)
  smaller = jnp.minimum(c, w)
  if is_hot(temperature):
    together = jnp.exp(-(c + w) / temperature)
    apart = jnp.exp(-jnp.abs(c - w) / temperature)
    smaller = smaller + temperature * jnp.log((1 + together) / (1 + apart))
  return sign * smaller


def is_hot(temperature: Scalar) -> bool:
  """Whether sums are meant and not maxima: T = 0 has equations of its own."""
  return not is_concrete(temperature) or bool(temperature > 0)


def no_messages(graph: FactorGraph) -> Messages:
  """The messages of silent factors, all 0: where propagation starts.

  Args:
    graph: from `factor_graph`.

  Returns:
    `Messages` for `propagate`.
  """
  pairs = jnp.zeros_like(graph.weights)
  spill = jnp.zeros_like(graph.spill_weights)
  return Messages(pairs, pairs, spill, spill, jnp.zeros_like(graph.log_odds))


def no_product_messages(graph: FactorGraph) -> Messages:
  """The messages of silent factors of y_i y_j: where PGMax starts.

  .. math:: -w (y_i - y_j)^2 = 2 w y_i y_j - w y_i - w y_j

  The published code starts there too. A factor that is the product alone says w
  more than the `pair_messages` of the square do, and nothing where these are
  -w.

  Args:
    graph: from `label_proportions`, 'pairwise' as the published law is.

  Returns:
    `Messages` for `propagate`.

  >>> from jnl.belief import label_proportions
  >>> from jnl.neighbors import graph_of_edges
  >>> tie = graph_of_edges([[0, 1]], [3.], 2)
  >>> law = label_proportions(  # of a bag that repels its two by 1
  ...   tie, [[0, 1]], [[True, True]], [1], factorization='pairwise')
  >>> no_product_messages(law).pair_in.tolist()
  [[[-2.0, -2.0]]]
  """
  pairs, spill = -graph.weights, -graph.spill_weights
  return Messages(pairs, pairs, spill, spill, jnp.zeros_like(graph.log_odds))


def propagate(
  graph: FactorGraph,
  *,
  iterations: int = 100,
  tolerance: Scalar = 1e-4,
  damping: Scalar = 0.5,
  temperature: Scalar = 1.0,
  schedule: Schedule = 'flooding',
  anneal: int = 0,
  messages: Messages | None = None,
) -> Beliefs:
  r"""The beliefs about binary labels by belief propagation, in log-odds.

  To a factor goes the sum of all that an instance hears but from this factor;
  back comes `pair_messages` of a pair, and of a bag
  `automata.count_messages`, exact. Each message is damped:

  .. math:: M \leftarrow d M + (1 - d) M_{new}

  until none changes by more than the tolerance (never while annealing).

  A graph that is split over devices (`place`) is worked on by all of them, each
  on its bags. In a round one number for each slot goes round; the result is
  that of one device. The global view only.

  Args:
    graph: from `factor_graph` or `label_proportions`; what else is known of
      each instance, such as a network's logits, comes in by `add_log_odds`.
    iterations: the most there may be, >= 1; 100 in the code of LLP-BP.
    tolerance: of the largest change of a message, >= 0.
    damping: d in [0, 1).
    temperature: T >= 0: beliefs about p^(1/T), times T. At 0 it is max-product:
      the sign of the log-odds is the label in the likeliest labeling. One
      program serves all T > 0; a traced T has to be positive, and 0 gives NaN.
    schedule: 'flooding' has all factors speak at once, 'alternating' pairs
      first and bags after they have heard them.
    anneal: over so many iterations the factors grow to their full strength, in
      equal parts.
    messages: to start from, as of an earlier result; None for none.

  Returns:
    `Beliefs`, at least float32.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> import numpy as np
  >>> from jnl.belief import label_proportions
  >>> from jnl.neighbors import graph_of_edges
  >>> tie = graph_of_edges([[0, 2]], [3.], 4)  # of bags (0, 1) and (2, 3)
  >>> bags = np.array([[0, 1], [2, 3]])
  >>> law = label_proportions(
  ...   tie, bags, np.ones([2, 2], bool), [1, 2], bag_strength=np.inf)
  >>> found = propagate(law)
  >>> found.marginals.round(2), bool(found.converged)
  (Array([0.95, 0.05, 1.  , 1.  ], dtype=float32), True)

  Reference: Kschischang et al., "Factor graphs and the sum-product algorithm",
  IEEE Trans Inf Theory 2001; the law is that of Havaldar, Sharma, Sareen,
  Shanmugam, Raghuveer, "Learning from Label Proportions: Bootstrapping
  Supervised Learners via Belief Propagation", ICLR 2024, arXiv 2310.08056.
  """
  check(iterations >= 1, f'iterations must be at least 1, got {iterations}')
  check(anneal >= 0, f'anneal must be >= 0, got {anneal}')
  check(tolerance >= 0, f'tolerance must be >= 0, got {tolerance}')
  check(
    (damping >= 0) & (damping < 1), f'damping must lie in [0, 1), got {damping}'
  )
  check(
    (temperature >= 0) & (temperature < float('inf')),
    f'temperature must be finite and >= 0, got {temperature}',
  )
  check(
    schedule in get_args(Schedule),
    f'schedule must be one of {get_args(Schedule)}, got {schedule!r}',
  )
  messages = no_messages(graph) if messages is None else messages
  dtype = graph.weights.dtype
  # One program serves all numbers of iterations up to a power of two.
  room = max(LEAST_ROOM, 2 ** math.ceil(math.log2(iterations)))
  found = _run(
    graph,
    messages,
    jnp.asarray(tolerance, dtype),
    jnp.asarray(damping, dtype),
    jnp.asarray(anneal, jnp.int32),
    jnp.asarray(iterations, jnp.int32),
    jnp.asarray(temperature, dtype),
    room,
    is_hot(temperature),
    schedule,
    mesh_of(graph.weights),
  )
  return found._replace(residuals=found.residuals[:iterations])


@functools.partial(jax.jit, static_argnums=(7, 8, 9, 10))
def _run(
  graph: FactorGraph,
  messages: Messages,
  tolerance: Array,
  damping: Array,
  anneal: Array,
  iterations: Array,
  temperature: Array,
  room: int,
  hot: bool,
  schedule: Schedule,
  mesh: Mesh | None,
) -> Beliefs:
  def goes_on(carry):
    _, _, done, converged, _ = carry
    return (done < iterations) & ~converged

  def iterate(graph, carry):
    old, seen, done, _, residuals = carry
    strength = jnp.minimum(1, (done + 1) / jnp.maximum(anneal, 1))
    scaled = _scaled(graph, strength.astype(residuals.dtype))
    new = _iterate(scaled, old, seen, damping, hot, schedule == 'alternating')
    residual = unit * _largest_change(old, new)
    converged = (residual <= tolerance) & (done + 1 >= anneal)
    residuals = residuals.at[done].set(residual)
    return new, _look(graph, new), done + 1, converged, residuals

  def loop(graph, messages):
    """On the shards of this device; log-odds are [shards, N]."""
    residuals = jnp.full(room, jnp.nan, graph.weights.dtype)
    seen = _look(graph, messages)
    carry = (messages, seen, jnp.int32(0), jnp.array(False), residuals)
    step = functools.partial(iterate, graph)
    messages, seen, *status = lax.while_loop(goes_on, step, carry)
    return seen.known + messages.bag, messages, *status

  if mesh is not None:
    loop = jax.shard_map(
      loop,
      mesh=mesh,
      in_specs=(specs_of(graph), P(AXIS)),
      out_specs=(P(AXIS), P(AXIS), P(), P(), P()),
    )
  # In units of the temperature it is 1, and nothing in the loop knows of it.
  unit = temperature if hot else jnp.ones_like(temperature)
  in_units = _scaled(graph, 1 / unit)._replace(log_odds=graph.log_odds / unit)
  start = jax.tree.map(lambda message: message / unit, messages)
  total, messages, done, converged, residuals = loop(in_units, start)
  total, messages = jax.tree.map(lambda x: unit * x, (total, messages))
  converged &= _is_possible(graph, total, messages)
  found = total.ravel()[graph.slots]
  marginals = jax.nn.sigmoid(found / unit) if hot else (jnp.sign(found) + 1) / 2
  return Beliefs(found, marginals, messages, done, converged, residuals)


def _is_possible(graph: FactorGraph, total: Array, messages: Messages) -> Array:
  """[], whether a law can have beliefs [shards, N]; no comparison holds of NaN.

  Far beyond `CERTAIN` counting has no digits left; and what is as sure as that
  must not be denied: the law would be impossible, but for the bound.
  """
  theta = graph.log_odds
  within = jnp.abs(total - messages.bag) <= 4 * CERTAIN
  holds = (jnp.abs(theta) < CERTAIN) | (jnp.sign(theta) * total > CERTAIN / 2)
  allowed = [
    jnp.any(group.log_factor > LOG_ZERO / 2, -1) for group in graph.groups
  ]
  return functools.reduce(
    jnp.logical_and, map(jnp.all, allowed), jnp.all(within & holds)
  )


def _scaled(graph: FactorGraph, strength: Array) -> FactorGraph:
  """The factors at a part of their strength."""
  return graph._replace(
    weights=strength * graph.weights,
    spill_weights=strength * graph.spill_weights,
    groups=tuple(
      group._replace(log_factor=strength * group.log_factor)
      for group in graph.groups
    ),
  )


def heard(graph: FactorGraph, messages: Messages) -> Array:
  """What each instance hears from all but its bag, [shards, N]."""
  # Row by row: XLA's reduction over a dimension in the middle is slow on CPU.
  total = graph.log_odds
  for slot in range(messages.pair_in.shape[1]):
    total = total + messages.pair_in[:, slot]
  if not messages.spill_in.size:
    return total
  add = lambda total, slot, spilled: total.at[slot].add(
    spilled, mode='drop', indices_are_sorted=True
  )
  return jax.vmap(add)(total, graph.spill_slot, messages.spill_in)


def at_spill(graph: FactorGraph, total: Array) -> Array:
  """Log-odds [shards, N] of those whose ties are spilled, [shards, s]."""
  last = total.shape[1] - 1  # padding reads anything: its weight is 0
  return jnp.take_along_axis(total, jnp.minimum(graph.spill_slot, last), axis=1)


def everywhere(total: Array) -> Array:
  """[shards, N] of this device as [all shards * N] of all devices."""
  if axis_is_bound():
    total = lax.all_gather(total, AXIS, tiled=True)
  return total.ravel()


class _Seen(NamedTuple):
  """What an iteration starts from; computed at the end of the last one.

  A gather that XLA fuses with what reads it is not vectorized on CPU. As the
  carry of a loop it is an array of its own.

  Attributes:
    known: [shards, N], of each instance but from its bag.
    theirs: [shards, degree, N], log-odds of its neighbors.
    spill_own, spill_theirs: [shards, s], log-odds of both ends.
  """

  known: Array
  theirs: Array
  spill_own: Array
  spill_theirs: Array


def _look(graph: FactorGraph, messages: Messages) -> _Seen:
  known = heard(graph, messages)
  total = known + messages.bag
  all_of_them = everywhere(total)
  return _Seen(
    known,
    all_of_them[graph.neighbors],
    at_spill(graph, total),
    all_of_them[graph.spill_neighbors],
  )


def _iterate(
  graph: FactorGraph,
  old: Messages,
  seen: _Seen,
  damping: Array,
  hot: bool,
  alternating: bool,
) -> Messages:
  """One round of all factors, at temperature 1, or 0."""
  message = functools.partial(pair_messages, temperature=float(hot))
  damp = lambda old, new: damping * old + (1 - damping) * new
  own = (seen.known + old.bag)[:, None]
  new = Messages(
    message(seen.theirs - old.pair_out, graph.weights),
    message(own - old.pair_in, graph.weights),
    message(seen.spill_theirs - old.spill_out, graph.spill_weights),
    message(seen.spill_own - old.spill_in, graph.spill_weights),
    old.bag,
  )
  new = jax.tree.map(damp, old, new)
  known = heard(graph, new) if alternating else seen.known
  bag = _bag_messages(graph, known, hot)
  return new._replace(bag=damp(old.bag, bag))


def by_bags(graph: FactorGraph, x: Array) -> list[Array]:
  """The slots [shards, N] of each group, [shards, bags, m]; the others last."""
  parts, first = [], 0
  for mask, _ in graph.groups:
    size = mask.shape[1] * mask.shape[2]
    # Of x: its shards are those of this device.
    parts.append(x[:, first : first + size].reshape(-1, *mask.shape[1:]))
    first += size
  return [*parts, x[:, first:]]


def _bag_messages(graph: FactorGraph, known: Array, hot: bool) -> Array:
  """Of the count factors, [shards, N]; 0 for instances without a bag.

  Where a bag decides an instance alone, it wins, whatever else is known of it.
  """
  *of_bags, others = by_bags(graph, known)
  of_groups = []
  for (mask, log_factor), log_odds in zip(graph.groups, of_bags, strict=True):
    if hot:
      messages, _ = count_messages(log_odds, log_factor, mask)
    else:
      messages = max_count_messages(log_odds, log_factor, mask)
    largest = LARGE + jnp.abs(log_odds)
    messages = jnp.clip(messages, -largest, largest)
    of_groups.append(messages.reshape(len(known), -1))
  of_groups.append(jnp.zeros_like(others))
  return jnp.concatenate(of_groups, axis=1)


def _largest_change(old: Messages, new: Messages) -> Array:
  """[], over all devices; NaN if any is."""
  changes = [
    jnp.max(jnp.abs(b - a), initial=0)
    for a, b in (
      (old.pair_in, new.pair_in),
      (old.spill_in, new.spill_in),
      (old.bag, new.bag),
    )
  ]
  residual = functools.reduce(jnp.maximum, changes)
  return lax.pmax(residual, AXIS) if axis_is_bound() else residual
