"""The factors of a law, laid out for devices.

Every instance has a slot. The slots of a shard are those of its bags, sorted
into groups of about one size (unless they are few) and padded to the longest of
a group, then those of instances without a bag. A tie is held at both of its
ends: that is twice the memory, and all that has to be known of other shards in
a round of messages is one number for each slot.
"""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
import numpy as np

from jnl.base import AXIS, PAD, Array, check, is_concrete
from jnl.inputs import read_floats
from jnl.neighbors import Graph, graph_of_edges, within_runs

Factorization = Literal['count', 'pairwise']
FEW = 1 << 16
"""Cells of padded bags that are no trouble: compiling a group takes seconds."""
CERTAIN = 1e6
"""The most log-odds that are known of an instance: its label is certain."""


class BagGroup(NamedTuple):
  """Bags of about the same size.

  Attributes:
    mask: [shards, bags, m] bool, where there is an instance.
    log_factor: [shards, bags, m + 1].
  """

  mask: Array
  log_factor: Array


class FactorGraph(NamedTuple):
  """A law, as arrays that `propagate` runs on; made by `factor_graph`.

  Of each shard there are N slots. All but `slots`, `bags` and `spills` are
  split over devices by their first axis.

  Attributes:
    log_odds: [shards, N], theta that belongs to the law itself.
    neighbors: [shards, degree, N] int32, slots of all shards, numbered through.
    weights: [shards, degree, N], 0 in empty places.
    spill_slot: [shards, s] int32, slots of the shard, ascending.
    spill_neighbors: [shards, s] int32, slots of all shards.
    spill_weights: [shards, s].
    groups: the bags; their slots come first, in this order.
    slots: [n] int32, where each instance is.
    bags: [k] int32, where each bag is among those of all groups.
    spills: [s] int32, where each spilled tie of the `Graph` is.
  """

  log_odds: Array
  neighbors: Array
  weights: Array
  spill_slot: Array
  spill_neighbors: Array
  spill_weights: Array
  groups: tuple[BagGroup, ...]
  slots: Array
  bags: Array
  spills: Array


def count_factor(
  counts: ArrayLike, mask: ArrayLike, *, strength: float
) -> np.ndarray:
  r"""The log factor of a bag on its number of positives, given a count S.

  .. math:: \phi(c) = -\lambda (c - S)^2

  and for a strength of infinity 0 at S, -inf elsewhere.

  Args:
    counts: [k], in [0, instances of the bag]; integers where they bind, and
      otherwise any number, as a noisy count may be.
    mask: [k, m] bool, where there is an instance.
    strength: lambda >= 0, 10 in the code of LLP-BP; infinity binds.

  Returns:
    [k, m + 1], -inf beyond the size of a bag.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> count_factor([1], [[True, True]], strength=2.0).tolist()
  [[-2.0, -0.0, -2.0]]
  """
  counts, mask = np.asarray(counts), _read_mask(mask)
  sizes = mask.sum(1)
  check(
    np.issubdtype(counts.dtype, np.number),
    f'counts must be numbers, got {counts.dtype}',
    TypeError,
  )
  check(
    counts.shape == sizes.shape,
    f'counts must be [k] with k = {len(sizes)} bags, got shape {counts.shape}',
  )
  missing = np.flatnonzero(np.isnan(counts))
  check(
    not missing.size,
    f'counts: those of bags {missing[:3]} are missing (NaN); leave the bags '
    'out, their instances may stay',
  )
  check(
    np.all((counts >= 0) & (counts <= sizes)),
    'counts must lie between 0 and the number of instances in the bag',
  )
  check(strength >= 0, f'strength must be >= 0, got {strength}')
  apart = np.arange(mask.shape[1] + 1) - counts[:, None].astype(np.float64)
  if np.isinf(strength):
    check(
      np.all(counts == np.round(counts)),
      'counts must be whole where they bind (strength is infinite)',
    )
    factor = np.where(apart == 0, 0.0, -np.inf)
  else:
    factor = -strength * apart**2
  return _within_size(factor, mask)


def factor_graph(
  graph: Graph,
  index: ArrayLike,
  mask: ArrayLike,
  log_factor: ArrayLike,
  *,
  shards: int = 1,
) -> FactorGraph:
  """The law of tied pairs and of bags, laid out for `propagate`.

  Nothing is known of single instances yet (theta = 0): see `add_log_odds`. On
  the host, in numpy; n in the millions takes seconds.

  Args:
    graph: w, of n vertices.
    index: [k, m] int32, the instances of each bag, as in `noise.Bags`; an
      instance is in one bag at most.
    mask: [k, m] bool, where there is one; bags may be of any size, down to 1.
    log_factor: [k, m + 1], phi; -inf forbids a count. Those beyond the size of
      a bag are not read.
    shards: over how many devices it can be split, or a multiple of that. The
      results do not depend on it.

  Returns:
    `FactorGraph`.

  Raises:
    TypeError, ValueError: if an argument is malformed or a bag is impossible.

  >>> from jnl.neighbors import graph_of_edges
  >>> tie = graph_of_edges([[0, 1]], [1.], 2)
  >>> law = factor_graph(tie, [[0, 1]], [[True, True]], [[0., 1., 0.]])
  >>> law.slots.tolist(), len(law.groups)
  ([0, 1], 1)
  """
  n = len(graph.neighbors)
  mask = _read_mask(mask)
  index = _read_index(index, mask, n)
  log_factor = np.asarray(log_factor)
  expected = (mask.shape[0], mask.shape[1] + 1)
  check(
    log_factor.shape == expected,
    f'log_factor must be [k, m + 1], {expected}, got {log_factor.shape}',
  )
  log_factor = _within_size(log_factor, mask)
  check(not np.any(np.isnan(log_factor)), 'log_factor must not be NaN')
  check(np.all(log_factor < np.inf), 'log_factor must not be +inf')
  forbidden = ~np.any(np.isfinite(log_factor), axis=1)
  check(
    not np.any(forbidden),
    f'log_factor allows no count in {forbidden.sum()} of the bags',
  )
  check(shards >= 1, f'shards must be at least 1, got {shards}')
  check(np.all(np.isfinite(graph.weights)), 'weights must be finite')
  dtype = np.promote_types(graph.weights.dtype, np.float32)
  return _lay_out(graph, index, mask, log_factor.astype(dtype), shards)


def label_proportions(
  graph: Graph,
  index: ArrayLike,
  mask: ArrayLike,
  counts: ArrayLike,
  *,
  pair_strength: float = 1.0,
  bag_strength: float = 1.0,
  factorization: Factorization = 'count',
  shards: int = 1,
) -> FactorGraph:
  r"""The law of LLP-BP, given how many instances of each bag are positive.

  .. math:: \log p(y) = -\lambda_s \sum_{ij} s_{ij} (y_i - y_j)^2
            -\lambda_b \sum_b \Big(\sum_{i \in b} y_i - S_b\Big)^2 + const

  `count` has one factor for each bag, whose messages are exact. `pairwise`
  multiplies the square out, as the published code does: the same law, with a
  repelling pair factor for every two instances of a bag, m (m - 1) / 2 of them;
  ties within a bag are added to these. Its messages differ, and are further
  from the truth wherever that could be computed.

  Args:
    graph: s, the similarities.
    index: [k, m] int32, the instances of each bag.
    mask: [k, m] bool, where there is one.
    counts: [k], S.
    pair_strength: lambda_s >= 0; 10 in the published code.
    bag_strength: lambda_b >= 0; 10 in the published code. Infinity binds, which
      `pairwise` cannot.
    factorization: 'count' or 'pairwise'.
    shards: as in `factor_graph`.

  Returns:
    `FactorGraph`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  Reference: Havaldar, Sharma, Sareen, Shanmugam, Raghuveer, "Learning from
  Label Proportions: Bootstrapping Supervised Learners via Belief Propagation",
  ICLR 2024, arXiv 2310.08056, and its code, which keeps a tie only where the
  first of the two is in a bag with one positive at most. Nothing in the paper
  says so; here all are kept.
  """
  check(
    factorization in get_args(Factorization),
    f'factorization must be one of {get_args(Factorization)}, got '
    f'{factorization!r}',
  )
  check(
    np.isfinite(pair_strength) and pair_strength >= 0,
    f'pair_strength must be finite and >= 0, got {pair_strength}',
  )
  counts, mask = np.asarray(counts), np.asarray(mask)
  factor = count_factor(counts, mask, strength=bag_strength)
  graph = graph._replace(
    weights=graph.weights * float(pair_strength),
    spill_weights=graph.spill_weights * float(pair_strength),
  )
  if factorization == 'count':
    return factor_graph(graph, index, mask, factor, shards=shards)
  check(
    np.isfinite(bag_strength),
    "bag_strength must be finite where factorization is 'pairwise'",
  )
  index = _read_index(index, mask, len(graph.neighbors))
  return _pairwise(graph, index, mask, counts, bag_strength, shards)


def tie_neighbors(
  graph: FactorGraph, index: ArrayLike, weights: ArrayLike
) -> FactorGraph:
  """The law with ties to nearest neighbors in place of its own, under jit.

  That of `factor_graph` with `neighbors.graph_of_neighbors`, but that it can be
  traced, and so be part of a program: its shapes do not depend on who is whose
  neighbor. For that an instance holds k ties, and those of others to it are in
  the list of what is spilled, which is slower where it is large.

  Args:
    graph: of n instances in one shard; its bags and log-odds are kept.
    index: [n, k] int, the neighbors of each instance, as of `neighbors.knn`.
    weights: [n, k], w, finite; the same for i and j as for j and i, as those of
      a kernel are.

  Returns:
    `FactorGraph`, not for `pair_probs`, which reads the ties of a `Graph`.

  Raises:
    ValueError: if the law is of several shards, or an array of another shape.

  >>> import numpy as np
  >>> from jnl.neighbors import graph_of_edges
  >>> no_ties = graph_of_edges(np.zeros([0, 2], int), np.zeros(0), 3)
  >>> bag = [[0, 1, 2]], [[True] * 3], [[0., 0., 0., 0.]]
  >>> law = factor_graph(no_ties, *bag)
  >>> law = tie_neighbors(law, [[1], [0], [1]], [[.5], [.5], [2.]])
  >>> law.weights[0, 0].tolist(), law.spill_weights[0].tolist()
  ([0.5, 0.5, 2.0], [2.0, 0.0, 0.0])
  """
  index, weights = jnp.asarray(index), jnp.asarray(weights)
  n, (shards, size) = len(graph.slots), graph.log_odds.shape
  check(shards == 1, f'graph must be of one shard, got {shards}')
  check(
    index.ndim == 2 and len(index) == n and index.shape == weights.shape,
    f'index and weights must be [n, k] with n = {n}, got {index.shape} and '
    f'{weights.shape}',
  )
  k, weights = index.shape[1], weights.astype(graph.weights.dtype)
  theirs = graph.slots[index]
  rows = lambda values: (
    jnp.zeros([size, k], values.dtype).at[graph.slots].set(values).T[None]
  )
  # Where both name each other, both hold the tie already.
  mutual = jnp.any(index[index] == jnp.arange(n)[:, None, None], axis=-1)
  owner = jnp.where(mutual, size, theirs).ravel()  # padding stays last
  order = jnp.argsort(owner)
  own = jnp.repeat(graph.slots, k)
  return graph._replace(
    neighbors=rows(theirs),
    weights=rows(weights),
    spill_slot=owner[order][None],
    spill_neighbors=own[order][None],
    spill_weights=jnp.where(mutual, 0, weights).ravel()[order][None],
    spills=jnp.zeros(0, jnp.int32),
  )


def add_log_odds(graph: FactorGraph, log_odds: ArrayLike) -> FactorGraph:
  """The law with log-odds added to single instances, as of a network.

  Args:
    graph: from `factor_graph`.
    log_odds: [n] floating-point, finite; added to theta, which stays within
      1e6: as much is a label that is certain. May be traced; then infinite ones
      are certain as well.

  Returns:
    `FactorGraph`.

  Raises:
    TypeError, ValueError: if `log_odds` is malformed.
  """
  n, log_odds = len(graph.slots), read_floats('log_odds', log_odds)
  check(log_odds.shape == (n,), f'log_odds must be [{n}], got {log_odds.shape}')
  if is_concrete(log_odds):
    check(jnp.all(jnp.isfinite(log_odds)), 'log_odds must be finite')
  theta = graph.log_odds.ravel()
  theta = theta.at[graph.slots].add(log_odds.astype(theta.dtype))
  theta = jnp.clip(theta, -CERTAIN, CERTAIN)
  return graph._replace(log_odds=theta.reshape(graph.log_odds.shape))


def place(graph: FactorGraph, mesh: Mesh) -> FactorGraph:
  """The law with its shards split over the axis `'data'` of a mesh.

  Args:
    graph: whose number of shards is a multiple of the number of devices along
      the axis; 6 devices need 6 shards, or 12.
    mesh: of axes that are `AxisType.Auto`, as in `jax.make_mesh((8,),
      ('data',), axis_types=(AxisType.Auto,))`.

  Returns:
    The same law.

  Raises:
    ValueError: if the mesh has no such axis, an axis that is not `Auto`, or
      a number of devices that does not divide the shards.
  """
  check(
    AXIS in mesh.axis_names,
    f'mesh must have an axis {AXIS!r}, got {mesh.axis_names}',
  )
  check(
    all(kind == AxisType.Auto for kind in mesh.axis_types),
    f'mesh must be made with axis_types=(AxisType.Auto,) for each axis, got '
    f'{mesh.axis_types}',
  )
  shards, devices = graph.weights.shape[0], mesh.shape[AXIS]
  check(
    shards % devices == 0,
    f'shards must be a multiple of the {devices} devices, got {shards}: '
    f'lay the law out with shards={devices}',
  )
  shardings = jax.tree.map(
    lambda _, spec: NamedSharding(mesh, spec), graph, specs_of(graph)
  )
  return jax.device_put(graph, shardings)


def specs_of(graph: FactorGraph) -> FactorGraph:
  """A `PartitionSpec` for each array of a law, as `place` splits it."""
  split = jax.tree.map(lambda _: P(AXIS), graph)
  return split._replace(slots=P(), bags=P(), spills=P())


# --- reading -----------------------------------------------------------------


def _read_mask(mask: Any) -> np.ndarray:
  mask = np.asarray(mask)
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  check(
    mask.ndim == 2 and mask.shape[1] >= 1,
    f'mask must be [k, m] with m >= 1, got shape {mask.shape}',
  )
  check(np.all(mask.any(1)), 'mask must not leave a bag empty')
  return mask


def _read_index(index: Any, mask: np.ndarray, n: int) -> np.ndarray:
  index = np.asarray(index)
  check(
    np.issubdtype(index.dtype, np.integer),
    f'index must be integers, got {index.dtype}',
    TypeError,
  )
  check(
    index.shape == mask.shape,
    f'index must be like mask, {mask.shape}, got {index.shape}',
  )
  members = index[mask]
  check(
    np.all((members >= 0) & (members < n)),
    f'index must lie between 0 and n - 1 = {n - 1} where there is an instance',
  )
  times = np.bincount(members, minlength=n)
  check(
    times.max(initial=0) <= 1,
    f'index must put an instance into one bag at most; {times.argmax()} is in '
    f'{times.max(initial=0)}',
  )
  return np.where(mask, index, PAD)


def _within_size(log_factor: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """A factor [k, m + 1] with -inf beyond the size of each bag."""
  possible = np.arange(mask.shape[1] + 1) <= mask.sum(1)[:, None]
  return np.where(possible, log_factor, -np.inf)


# --- the layout --------------------------------------------------------------


def _lay_out(
  graph: Graph,
  index: np.ndarray,
  mask: np.ndarray,
  log_factor: np.ndarray,
  shards: int,
) -> FactorGraph:
  n = len(graph.neighbors)
  slots = np.full(n, -1)
  bags = np.zeros(len(mask), np.int32)
  groups = []
  first = 0  # slot of a shard; then how many bags came before
  before = 0
  for members in _by_size(mask.sum(1)):
    group, of_instances, of_bags = _lay_out_group(
      index[members], mask[members], log_factor[members], shards
    )
    groups.append((group, of_instances, first))
    bags[members] = before + of_bags
    first += of_instances.shape[1]
    before += group.mask.shape[0] * group.mask.shape[1]
  free = np.setdiff1d(np.arange(n), index[mask], assume_unique=True)
  size = first + -(-len(free) // shards)  # of a shard
  for _, of_instances, start in groups:
    shard, place = np.nonzero(of_instances != PAD)
    slots[of_instances[shard, place]] = shard * size + start + place
  where = np.arange(len(free))
  slots[free] = where % shards * size + first + where // shards

  table = functools.partial(_spread, slots=slots, shards=shards, size=size)
  neighbors = np.where(
    graph.neighbors == PAD,
    0,
    slots[np.where(graph.neighbors == PAD, 0, graph.neighbors)],
  )
  spill = _lay_out_spill(graph, slots, shards, size)
  as_arrays = lambda tree: jax.tree.map(jnp.asarray, tree)
  none = np.zeros([shards, size], log_factor.dtype)
  return FactorGraph(
    log_odds=jnp.asarray(none),
    neighbors=jnp.asarray(table(neighbors.astype(np.int32))),
    weights=jnp.asarray(table(graph.weights.astype(log_factor.dtype))),
    **as_arrays(spill),
    groups=tuple(as_arrays(group) for group, _, _ in groups),
    slots=jnp.asarray(slots, jnp.int32),
    bags=jnp.asarray(bags),
  )


def _by_size(sizes: np.ndarray) -> list[np.ndarray]:
  """Bags by the power of two that their size is rounded up to; few: all."""
  if 0 < len(sizes) * sizes.max(initial=0) <= FEW:
    return [np.arange(len(sizes))]
  powers = np.ceil(np.log2(np.maximum(sizes, 1))).astype(int)
  return [np.flatnonzero(powers == p) for p in np.unique(powers)]


def _lay_out_group(
  index: np.ndarray, mask: np.ndarray, log_factor: np.ndarray, shards: int
) -> tuple[BagGroup, np.ndarray, np.ndarray]:
  """The group, its instances [shards, bags * m], and the places of its bags."""
  k, m = len(mask), mask.sum(1).max()
  # Instances to the front of their bag, so that m of them suffice.
  order = np.argsort(~mask, axis=1, kind='stable')[:, :m]
  index = np.take_along_axis(index, order, axis=1)
  log_factor = log_factor[:, : m + 1]
  each = -(-k // shards)
  padding = ((0, each * shards - k), (0, 0))
  index = np.pad(index, padding, constant_values=PAD)
  log_factor = np.pad(log_factor, padding)
  # Bag j is in shard j % shards, so that the padding is spread.
  dealt = lambda x: x.reshape(each, shards, -1).swapaxes(0, 1)
  index = dealt(index)
  j = np.arange(k)
  group = BagGroup(index != PAD, dealt(log_factor))
  return group, index.reshape(shards, -1), j % shards * each + j // shards


def _spread(
  rows: np.ndarray, slots: np.ndarray, shards: int, size: int
) -> np.ndarray:
  """Rows [n, width] of instances as [shards, width, size], 0 where is none."""
  table = np.zeros([shards * size, rows.shape[1]], rows.dtype)
  table[slots] = rows
  return np.ascontiguousarray(
    table.reshape(shards, size, rows.shape[1]).swapaxes(1, 2)
  )


def _lay_out_spill(
  graph: Graph, slots: np.ndarray, shards: int, size: int
) -> dict[str, np.ndarray]:
  """The spilled ties of each shard, padded to the longest list."""
  slot = slots[graph.spill[:, 0]]
  order = np.argsort(slot, kind='stable')
  shard = slot[order] // size
  lengths = np.bincount(shard, minlength=shards)
  longest = int(lengths.max(initial=0))
  place = within_runs(lengths)
  tables = {
    # Padding belongs to no slot, and stays last.
    'spill_slot': np.full([shards, longest], size, np.int32),
    'spill_neighbors': np.zeros([shards, longest], np.int32),
    'spill_weights': np.zeros([shards, longest], graph.weights.dtype),
  }
  tables['spill_slot'][shard, place] = slot[order] % size
  tables['spill_neighbors'][shard, place] = slots[graph.spill[order, 1]]
  tables['spill_weights'][shard, place] = graph.spill_weights[order]
  spills = np.zeros(len(order), np.int32)
  spills[order] = shard * longest + place
  return {**tables, 'spills': spills}


# --- the square multiplied out -----------------------------------------------


def _pairwise(
  graph: Graph,
  index: np.ndarray,
  mask: np.ndarray,
  counts: np.ndarray,
  strength: float,
  shards: int,
) -> FactorGraph:
  r"""-lam (c - S)^2 = lam (2 S - m) c + lam \sum_{i < j} (y_i - y_j)^2 + const.

  For c^2 is m c less the number of pairs that differ.
  """
  n, sizes = len(graph.neighbors), mask.sum(1)
  theta = np.zeros(n)
  per_bag = strength * (2 * counts.astype(np.float64) - sizes)
  theta[index[mask]] = np.repeat(per_bag, sizes)
  pairs = [_edges_of(graph)]
  for size in np.unique(sizes):
    of_size = sizes == size
    members = index[of_size][mask[of_size]].reshape(-1, size)
    first, second = np.triu_indices(size, 1)
    within = np.stack([members[:, first], members[:, second]], axis=-1)
    pairs.append(
      (within.reshape(-1, 2), np.full(within[..., 0].size, -strength))
    )
  edges, weights = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
  expanded = graph_of_edges(edges, weights.astype(graph.weights.dtype), n)
  none = np.zeros([0, 1])
  law = factor_graph(
    expanded,
    none.astype(int),
    none.astype(bool),
    np.zeros([0, 2]),
    shards=shards,
  )
  return add_log_odds(law, jnp.asarray(theta, law.weights.dtype))


def _edges_of(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
  """Each tie once, [e, 2], and its weight."""
  vertex, slot = np.nonzero(graph.neighbors != PAD)
  edges = np.stack([vertex, graph.neighbors[vertex, slot]], axis=1)
  edges = np.concatenate([edges, graph.spill])
  weights = np.concatenate([graph.weights[vertex, slot], graph.spill_weights])
  once = edges[:, 0] < edges[:, 1]
  return edges[once], weights[once]
