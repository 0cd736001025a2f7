"""Beliefs against enumeration, on trees and loops, and against themselves."""

import functools
import itertools

from cost import slow
from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from jnl import automata, belief, neighbors
from jnl.base import mesh_of
from jnl.belief import _messages as messages
from jnl.train import data_mesh

N = 12
LABELS = np.array(list(itertools.product([0, 1], repeat=N)))
INF = np.inf


def law_of(edges, weights, bags, factors, theta, n=N):
  """The factor graph of bags [list of members], with some ties spilled."""
  longest = max(map(len, bags), default=1)
  index = np.full([len(bags), longest], -7)
  mask = np.zeros(index.shape, bool)
  log_factor = np.zeros([len(bags), longest + 1])
  for row, (bag, factor) in enumerate(zip(bags, factors, strict=True)):
    index[row, : len(bag)], mask[row, : len(bag)] = bag, True
    log_factor[row, : len(factor)] = factor
  ties = neighbors.graph_of_edges(edges, weights, n, degree=3)
  law = belief.factor_graph(ties, index, mask, log_factor)
  return add_log_odds(law, np.asarray(theta, np.float32))


add_log_odds = jax.jit(belief.add_log_odds)


def propagate(law, **run):
  """In numpy."""
  return jax.tree.map(np.asarray, belief.propagate(law, **run))


def log_law(edges, weights, bags, factors, theta):
  """log p of all labels of N instances, not normalized."""
  log_p = LABELS @ theta
  for (i, j), w in zip(edges, weights, strict=True):
    log_p = log_p - w * (LABELS[:, i] - LABELS[:, j]) ** 2
  for bag, factor in zip(bags, factors, strict=True):
    log_p = log_p + np.asarray(factor)[LABELS[:, bag].sum(1)]
  return log_p


def marginals_of(log_p):
  return np.exp(log_p - logsumexp(log_p)) @ LABELS


def random_factor(rng, m):
  """Of a hard, a soft or an odd kind."""
  kind = rng.integers(3)
  counts = np.arange(m + 1)
  if kind == 0:
    return np.where(counts == rng.integers(m + 1), 0, -INF)
  if kind == 1:
    return -rng.uniform(0.2, 3) * (counts - rng.integers(m + 1)) ** 2
  return rng.normal(0, 2, m + 1)


def random_tree(rng):
  """Pairs and bags (one for each instance at most) that close no loop."""
  part = np.arange(N)
  edges, bags, bagged = [], [], set()
  for _ in range(200):
    bag = rng.random() < 0.3
    size = rng.integers(1, 5) if bag else 2
    members = rng.choice(N, size, replace=False)
    closes = len(set(part[members])) < size
    if closes or (bag and bagged & set(members)):
      continue
    part[np.isin(part, part[members])] = part[members[0]]
    if bag:
      bags.append(members)
      bagged |= set(members)
    else:
      edges.append(members)
  edges = np.reshape(edges, [-1, 2]).astype(int)
  weights = rng.normal(0, 1.5, len(edges))
  factors = [random_factor(rng, len(bag)) for bag in bags]
  return edges, weights, bags, factors, rng.normal(0, 1, N)


def side_by_side(problems):
  """One problem of all, without ties between them: compiled once."""
  edges, weights, bags, factors, theta = zip(*problems, strict=True)
  shifted = [e + N * i for i, e in enumerate(edges)]
  moved = [bag + N * i for i, some in enumerate(bags) for bag in some]
  return (
    np.concatenate(shifted),
    np.concatenate(weights),
    moved,
    [factor for some in factors for factor in some],
    np.concatenate(theta),
  )


TREES = [random_tree(np.random.default_rng(seed)) for seed in range(8)]


@functools.cache
def of_trees(**options):
  law = law_of(*side_by_side(TREES), n=N * len(TREES))
  return law, propagate(law, **options)


READOUTS = [belief.bethe_free_energy, belief.count_log_probs, belief.pair_probs]


def readouts(law, found):
  return [jax.tree.map(np.asarray, read(law, found)) for read in READOUTS]


@pytest.mark.parametrize(
  'schedule',
  ['flooding', pytest.param('alternating', marks=pytest.mark.slow)],
)
def test_trees_are_exact(schedule):
  law, found = of_trees(schedule=schedule, tolerance=1e-6)
  assert found.converged
  log_ps = [log_law(*tree) for tree in TREES]
  exact = np.concatenate([marginals_of(log_p) for log_p in log_ps])
  np.testing.assert_allclose(found.marginals, exact, atol=1e-5)
  energy = belief.bethe_free_energy(law, found)
  log_z = sum(logsumexp(log_p) for log_p in log_ps)
  np.testing.assert_allclose(-np.asarray(energy), log_z, rtol=1e-5)


def test_bags_and_pairs_of_trees_are_exact():
  edges, weights, bags, _, _ = side_by_side(TREES)
  law, found = of_trees(schedule='flooding', tolerance=1e-6)
  _, log_counts, pairs = readouts(law, found)
  log_ps = [log_law(*tree) for tree in TREES]
  probs = [np.exp(log_p - logsumexp(log_p)) for log_p in log_ps]
  for row, bag in zip(np.exp(log_counts), bags, strict=True):
    p, y = probs[bag[0] // N], LABELS[:, bag % N]
    times = np.bincount(y.sum(1), p, minlength=len(row))
    np.testing.assert_allclose(row, times, atol=1e-5)
    np.testing.assert_allclose(
      row @ np.arange(len(row)), np.sum(found.marginals[bag]), atol=1e-4
    )
  tables = joint_of(edges, weights, len(found.marginals), pairs)
  for table, (i, j) in zip(tables, edges, strict=True):
    pair = 2 * LABELS[:, i % N] + LABELS[:, j % N]
    cells = np.bincount(pair, probs[i // N], minlength=4).reshape(2, 2)
    np.testing.assert_allclose(table, cells, atol=1e-5)


def joint_of(edges, weights, n, pairs):
  """P(y_i, y_j) of the edges, wherever they are kept."""
  ties = neighbors.graph_of_edges(edges, weights, n, degree=3)
  assert len(ties.spill)  # both places are seen
  for i, j in edges:
    at = np.flatnonzero(ties.neighbors[i] == j)
    spilled = np.flatnonzero((ties.spill == [i, j]).all(1))
    yield pairs.neighbors[i, at[0]] if len(at) else pairs.spill[spilled[0]]


def test_the_likeliest_labels_of_a_tree():
  _, found = of_trees(temperature=0.0)
  assert found.converged
  for first, tree in zip(range(0, N * len(TREES), N), TREES, strict=True):
    log_p = log_law(*tree)
    best = LABELS[log_p.argmax()]
    own = found.log_odds[first : first + N]
    np.testing.assert_array_equal(own > 0, best == 1)
    np.testing.assert_array_equal(found.marginals[first : first + N], best)
    # The log-odds are what the other label of an instance would cost.
    with_label = lambda i, a, log_p=log_p: log_p[LABELS[:, i] == a].max()
    cost = np.array([with_label(i, 1) - with_label(i, 0) for i in range(N)])
    free = np.isfinite(cost)
    np.testing.assert_allclose(own[free], cost[free], atol=2e-3)


def test_temperature_is_a_power_of_the_law():
  _, cold = of_trees(temperature=0.5, tolerance=1e-6)
  exact = [marginals_of(2 * log_law(*tree)) for tree in TREES]
  np.testing.assert_allclose(cold.marginals, np.concatenate(exact), atol=1e-5)
  np.testing.assert_allclose(
    cold.marginals, expit(2 * cold.log_odds), atol=1e-6
  )


def loopy(seed, strength=0.5):
  """Three bags of four, a dozen random ties across and within."""
  rng = np.random.default_rng(seed)
  pairs = np.array(list(itertools.combinations(range(N), 2)))
  edges = pairs[rng.choice(len(pairs), 10, replace=False)]
  weights = rng.uniform(0, strength, len(edges))
  bags = np.arange(N).reshape(3, 4)
  counts = np.arange(5) - rng.integers(0, 5, 3)[:, None]
  return edges, weights, bags, list(-0.5 * counts**2), rng.normal(0, 1, N)


LOOPY = [loopy(seed) for seed in range(8)]


def law_of_loops(edges, weights, bags, factors, theta):
  return law_of(edges, weights, bags, factors, theta, n=N * len(LOOPY))


@functools.cache
def of_loops(**options):
  law = law_of_loops(*side_by_side(LOOPY))
  return law, propagate(law, **options)


def test_loops_are_near_the_truth():
  _, found = of_loops()
  assert found.converged
  exact = np.concatenate([marginals_of(log_law(*each)) for each in LOOPY])
  assert np.abs(found.marginals - exact).max() < 0.03


@pytest.mark.slow
def test_counts_are_nearer_to_the_truth_than_pairs():
  ties = neighbors.graph_of_edges([[0, 4], [5, 8], [9, 1]], [1.0, 0.6, 0.3], N)
  index, mask = np.arange(N).reshape(3, 4), np.ones([3, 4], bool)
  counts = np.array([1, 2, 3])
  theta = np.linspace(-1, 1, N).astype(np.float32)
  edges = [[0, 4], [5, 8], [9, 1]]
  factors = list(-1.5 * (np.arange(5) - counts[:, None]) ** 2)
  exact = marginals_of(log_law(edges, [1.0, 0.6, 0.3], index, factors, theta))
  error = {}
  for kind in ('count', 'pairwise'):
    law = belief.label_proportions(
      ties, index, mask, counts, bag_strength=1.5, factorization=kind
    )
    law = add_log_odds(law, theta)
    found = propagate(law, iterations=500, damping=0.8)
    assert found.converged, kind
    error[kind] = np.abs(found.marginals - exact).max()
  assert error['count'] < 0.01 < error['pairwise'] < 0.3


def energies(law):
  """log p of all labels, read off the arrays of a law with pairs alone."""
  law = jax.tree.map(np.asarray, law)
  y = LABELS[:, : len(law.slots)]
  flat = np.zeros([len(y), law.log_odds.size])
  flat[:, law.slots] = y
  total = flat @ law.log_odds.ravel()
  for k, i in zip(*np.nonzero(law.weights[0]), strict=True):
    w, j = law.weights[0, k, i], law.neighbors[0, k, i]
    total -= w / 2 * (flat[:, i] - flat[:, j]) ** 2
  for i, j, w in zip(
    law.spill_slot[0], law.spill_neighbors[0], law.spill_weights[0], strict=True
  ):
    total -= w / 2 * (flat[:, i] - flat[:, j]) ** 2
  return total


def test_the_square_multiplied_out_is_the_same_law():
  edges, weights = [[0, 4], [0, 1], [5, 8]], [1.0, 0.5, -0.3]
  ties = neighbors.graph_of_edges(edges, weights, N)
  index = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 99, 99], [8, 99, 99, 99, 99]])
  mask = index < 99
  counts = np.array([2, 1, 1])
  law = belief.label_proportions(
    ties, index, mask, counts,
    pair_strength=2.0, bag_strength=0.7, factorization='pairwise',
  )  # fmt: skip
  bags = [row[m] for row, m in zip(index, mask, strict=True)]
  factors = [
    -0.7 * (np.arange(len(bag) + 1) - s) ** 2
    for bag, s in zip(bags, counts, strict=True)
  ]
  expected = log_law(edges, 2 * np.array(weights), bags, factors, np.zeros(N))
  found = energies(law)
  np.testing.assert_allclose(
    found - found[0], expected - expected[0], atol=1e-4
  )


def test_permuting_the_instances_permutes_the_beliefs():
  edges, weights, bags, factors, theta = side_by_side(LOOPY)
  _, first = of_loops()
  order = np.random.default_rng(1).permutation(len(theta))  # new name of each
  place = np.argsort(order)
  bags = [np.random.default_rng(2).permutation(order[bag]) for bag in bags]
  again = propagate(
    law_of_loops(order[edges], weights, bags[::-1], factors[::-1], theta[place])
  )
  np.testing.assert_allclose(again.log_odds[order], first.log_odds, atol=1e-5)


def test_flipping_the_labels_flips_the_beliefs():
  edges, weights, bags, factors, theta = side_by_side(LOOPY)
  _, first = of_loops()
  flipped = propagate(
    law_of_loops(edges, weights, bags, [f[::-1] for f in factors], -theta)
  )
  np.testing.assert_allclose(flipped.marginals, 1 - first.marginals, atol=1e-5)


@functools.cache
def ragged(shards=1, n=70, strength=1.0):
  """Bags of three kinds of sizes, and instances without one."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, 2))
  apart = np.linalg.norm(x[:, None] - x, axis=-1)
  near = np.argsort(apart, axis=1)[:, 1:5]
  similar = np.exp(-np.take_along_axis(apart, near, axis=1))
  ties = neighbors.graph_of_neighbors(near, similar, degree=5)
  sizes = [1, 3, 4, 5, 8, 1, 3, 7, 4, 1, 8, 4, 3, 6]
  index = np.full([len(sizes), 10], -1)
  free = rng.permutation(n)
  for row, size in enumerate(sizes):
    # Instances anywhere in the row, so that the mask is not a prefix.
    where = rng.choice(10, size, replace=False)
    index[row, where], free = free[:size], free[size:]
  mask = index >= 0
  counts = (mask.sum(1) * rng.random(len(sizes))).round().astype(int)
  law = belief.label_proportions(
    ties, index, mask, counts, bag_strength=strength, shards=shards
  )
  theta = rng.normal(size=n).astype(np.float32)
  return add_log_odds(law, theta), (index, mask, counts)


TO_REST = {'iterations': 250, 'tolerance': 1e-5}


@functools.cache
def ragged_beliefs(shards=1):
  return propagate(ragged(shards)[0], **TO_REST)


def test_a_run_ends_when_it_rests():
  law, _ = ragged()
  found = propagate(law, iterations=250, tolerance=1e-3)
  assert found.converged
  assert 1 < found.iterations < 250
  done = int(found.iterations)
  assert found.residuals[done - 1] <= 1e-3 < found.residuals[done - 2]
  assert np.all(np.isnan(found.residuals[done:]))
  more = propagate(law, iterations=250, tolerance=1e-3, messages=found.messages)
  assert more.iterations <= 2


@pytest.mark.slow
def test_shards_change_nothing():
  law, (index, mask, _) = ragged(8)
  found, one = ragged_beliefs(8), ragged_beliefs()
  energy, counts, pairs = readouts(law, found)
  energy_of_one, counts_of_one, pairs_of_one = readouts(ragged()[0], one)
  assert found.converged
  np.testing.assert_allclose(found.log_odds, one.log_odds, atol=1e-4)
  np.testing.assert_allclose(
    found.residuals[:40], one.residuals[:40], atol=1e-5, rtol=1e-3
  )
  mean = np.exp(counts) @ np.arange(counts.shape[1])
  of_bag = [
    np.sum(found.marginals[row[m]]) for row, m in zip(index, mask, strict=True)
  ]
  np.testing.assert_allclose(mean, of_bag, rtol=1e-4)
  np.testing.assert_allclose(counts_of_one, counts, atol=1e-3)
  np.testing.assert_allclose(energy_of_one, energy, rtol=1e-5)
  for ours, theirs in zip(pairs_of_one, pairs, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_eight_devices_equal_one_with_one_gather_in_a_round():
  law, _ = ragged(shards=8)
  placed = belief.place(law, data_mesh())
  assert len(placed.weights.sharding.device_set) == 8
  found, one = belief.propagate(placed, **TO_REST), ragged_beliefs()
  np.testing.assert_allclose(found.log_odds, one.log_odds, atol=1e-4)
  np.testing.assert_allclose(
    np.asarray(found.residuals)[:40],
    one.residuals[:40],
    atol=1e-5,
    rtol=1e-3,
  )
  assert len(found.messages.pair_in.sharding.device_set) == 8
  text = compiled_loop(placed)
  loop = text[: text.index('ENTRY')]
  assert loop.count(' all-gather(') == 1
  assert loop.count(' all-reduce(') == 1  # the residual, one number
  again = belief.propagate(placed, **TO_REST, messages=found.messages)
  assert np.asarray(again.residuals)[0] < 1e-4


def compiled_loop(law):
  dtype = jnp.float32
  arguments = (
    law, belief.no_messages(law), dtype(0), dtype(0.5), jnp.int32(0),
    jnp.int32(3), dtype(1), 256, True, 'flooding', mesh_of(law.weights),
  )  # fmt: skip
  return messages._run.lower(*arguments).compile().as_text()


def test_too_many_devices_for_the_shards():
  with pytest.raises(ValueError, match='shards must be a multiple of the 8'):
    belief.place(ragged(shards=2)[0], data_mesh())


def test_a_mesh_that_is_not_ours_is_refused():
  law = ragged(shards=8)[0]
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  with pytest.raises(ValueError, match=r'AxisType\.Auto'):
    belief.place(law, mesh)
  mesh = jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Auto,))
  with pytest.raises(ValueError, match="axis 'data'"):
    belief.place(law, mesh)


# --- messages ----------------------------------------------------------------


def test_pair_messages_are_the_definition():
  c, w = np.meshgrid(np.linspace(-30, 30, 41), np.linspace(-20, 20, 31))
  expected = np.logaddexp(-w, c) - np.logaddexp(0, c - w)
  run = compiled(belief.pair_messages)
  with jax.enable_x64(True):
    found = run(c, w)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  single = run(c.astype(np.float32), w.astype(np.float32))
  np.testing.assert_allclose(single, expected, atol=1e-6)


@compiled
def of_pairs(c, t):
  message, w = belief.pair_messages, jnp.float32(1.5)
  return {
    'large': message(jnp.float32([1e4, -1e4, 1e30, 0.0]), jnp.float32(3)),
    'nothing': message(jnp.float32([-1e4, -2.0, 0.0, 1e-3, 50.0]), np.zeros(5)),
    'traced': message(c, w, temperature=t),
    **{
      str(t): (message(c, w, temperature=t), t * message(c / t, w / t))
      for t in (0.3, 2.0)
    },
  }


@functools.cache
def some_pairs():
  """At the temperature 0.3 where it is traced."""
  return of_pairs(np.linspace(-4, 4, 9).astype(np.float32), np.float32(0.3))


def test_pair_messages_are_no_larger_than_the_weight():
  np.testing.assert_array_equal(some_pairs()['large'], [3, -3, 3, 0])


def test_a_weight_of_zero_says_nothing():
  np.testing.assert_array_equal(some_pairs()['nothing'], 0)


@pytest.mark.parametrize('temperature', [0.3, 2.0])
def test_pair_messages_at_a_temperature(temperature):
  found, expected = some_pairs()[str(temperature)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pair_messages_at_a_traced_temperature():
  found = some_pairs()
  np.testing.assert_allclose(found['traced'], found['0.3'][0], atol=1e-6)


def brute_max_messages(log_odds, factor):
  m = len(log_odds)
  labels = np.array(list(itertools.product([0, 1], repeat=m)))
  value = labels @ log_odds + factor[labels.sum(1)]
  best = lambda i, a: value[labels[:, i] == a].max()
  return [best(i, 1) - best(i, 0) - log_odds[i] for i in range(m)]


SIZES = [1, 2, 5, 8]


def bags_of(m):
  """Log-odds [6, m] and factors on their count."""
  rng = np.random.default_rng(m)
  log_odds = rng.normal(0, 3, [6, m])
  return log_odds, np.stack([random_factor(rng, m) for _ in range(6)])


def masked_bags():
  """One that has a slot without an instance, and one of ties."""
  log_odds = np.array([[1.0, 99.0, 1.0, -3.0], [5.0, 5.0, 5.0, 5.0]])
  mask = np.array([[True, False, True, True], [True] * 4])
  return log_odds, np.array([[-INF, 0.0, -INF, 0.0, 0.0]] * 2), mask


def cold_bags():
  rng = np.random.default_rng(0)
  counts = np.array([[3.0], [6.0], [11.0]])
  return rng.normal(0, 5, [3, 12]), -2.0 * (np.arange(13) - counts) ** 2


def long_bag():
  log_odds = np.random.default_rng(0).normal(0, 60, [1, 2048])
  return log_odds, np.where(np.arange(2049) == 700, 0, -INF)[None]


COLD = 0.05


@functools.cache
def max_messages():
  """Of all bags above; of the cold ones also those with sums."""
  cases = {str(m): bags_of(m) for m in SIZES}
  cases |= {'masked': masked_bags(), 'cold': cold_bags(), 'long': long_bag()}
  cases = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(np.float32), cases
  )

  @compiled
  def run(cases):
    found = {
      name: automata.max_count_messages(*case) for name, case in cases.items()
    }
    log_odds, factor = cases['cold']
    sums, _ = automata.count_messages(log_odds / COLD, factor / COLD)
    return found, COLD * sums

  return run(cases)


@pytest.mark.parametrize('m', [slow(1), 2, slow(5), 8])
def test_max_count_messages_are_the_best_labelings(m):
  expected = [
    brute_max_messages(z, f) for z, f in zip(*bags_of(m), strict=True)
  ]
  np.testing.assert_allclose(max_messages()[0][str(m)], expected, atol=2e-5)


def test_max_count_messages_of_masked_slots_and_ties():
  found = max_messages()[0]['masked']
  known = [1.0, 1.0, -3.0]
  expected = brute_max_messages(known, np.array([-INF, 0, -INF, 0]))
  np.testing.assert_allclose(found[0, [0, 2, 3]], expected)
  assert found[0, 1] == 0
  expected = brute_max_messages(
    np.full(4, 5.0), np.array([-INF, 0, -INF, 0, 0])
  )
  np.testing.assert_allclose(found[1], expected)


def test_max_count_messages_are_the_cold_limit():
  found, cold = max_messages()
  np.testing.assert_allclose(found['cold'], cold, atol=0.15)


def test_long_saturated_bags_lose_nothing_in_max_product():
  log_odds, _ = long_bag()
  ordered = -np.sort(-log_odds[0])
  expected = np.where(log_odds >= ordered[699], -ordered[700], -ordered[699])
  np.testing.assert_allclose(max_messages()[0]['long'], expected, atol=1e-3)


# --- the run -----------------------------------------------------------------


def test_a_run_that_does_not_rest_says_so():
  """The published strengths and factors on forty instances: chaos."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(40, 4)).astype(np.float32)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  near = np.argsort(-unit @ unit.T, axis=1)[:, 1:6]
  apart = np.linalg.norm(x[:, None] - x[near], axis=-1)
  ties = neighbors.graph_of_neighbors(near, np.exp(-apart))
  index, mask = np.arange(40).reshape(5, 8), np.ones([5, 8], bool)
  law = belief.label_proportions(
    ties, index, mask, np.array([1, 1, 1, 1, 2]),
    pair_strength=10, bag_strength=10, factorization='pairwise',
  )  # fmt: skip
  found = propagate(law, iterations=50)
  assert not found.converged
  assert found.iterations == 50
  assert np.all(np.isfinite(found.residuals))
  assert np.all(np.isfinite(found.log_odds))


def test_annealing_ends_at_full_strength():
  edges, weights, bags, factors, theta = side_by_side(LOOPY)
  law, plain = of_loops(tolerance=1e-6)
  slow = propagate(law, tolerance=1e-6, anneal=60)
  assert slow.converged
  assert slow.iterations >= 60
  np.testing.assert_allclose(slow.marginals, plain.marginals, atol=1e-4)
  half = propagate(law, iterations=1, anneal=2, damping=0.0)
  weaker = law_of_loops(
    edges, weights / 2, bags, [f / 2 for f in factors], theta
  )
  np.testing.assert_allclose(
    half.log_odds,
    propagate(weaker, iterations=1, damping=0.0).log_odds,
    atol=1e-5,
  )


def test_schedules_rest_at_the_same_beliefs():
  law, flooding = of_loops(tolerance=1e-6)
  alternating = propagate(law, tolerance=1e-6, schedule='alternating')
  assert flooding.converged
  assert alternating.converged
  np.testing.assert_allclose(
    alternating.marginals, flooding.marginals, atol=1e-5
  )


def test_counts_that_bind():
  law, (index, mask, counts) = ragged(strength=INF)
  found = propagate(law, iterations=200, damping=0.7)
  assert np.all(np.isfinite(found.log_odds))
  # Even a run that has not rested has no doubt about pure bags.
  for row, m, count in zip(index, mask, counts, strict=True):
    if count in (0, m.sum()):
      np.testing.assert_array_equal(found.marginals[row[m]], float(count > 0))
  labels = compiled(belief.top_of_bags)(found.log_odds, index, mask, counts)
  sums = [labels[row[m]].sum() for row, m in zip(index, mask, strict=True)]
  np.testing.assert_array_equal(sums, counts)
  log_counts = belief.count_log_probs(law, found)
  np.testing.assert_array_equal(np.argmax(log_counts, axis=1), counts)


def test_bags_of_one_are_labels():
  ties = neighbors.graph_of_edges([[0, 1], [1, 2]], [1.0, 1.0], 3)
  index, mask = np.array([[0], [2]]), np.ones([2, 1], bool)
  law = belief.label_proportions(ties, index, mask, [1, 0], bag_strength=INF)
  found = propagate(law)
  np.testing.assert_allclose(found.marginals, [1, 0.5, 0], atol=1e-6)
  soft = belief.label_proportions(ties, index, mask, [0.5, 0], bag_strength=2.0)
  assert propagate(soft).marginals[0] < 0.5


def test_no_ties_or_no_bags():
  none = neighbors.graph_of_edges([], [], 6)
  index, mask = np.arange(6).reshape(2, 3), np.ones([2, 3], bool)
  law = belief.label_proportions(none, index, mask, [1, 2], bag_strength=INF)
  found = propagate(law, damping=0.0)
  np.testing.assert_allclose(
    found.marginals, [1 / 3] * 3 + [2 / 3] * 3, rtol=1e-6
  )
  assert found.converged
  empty = belief.label_proportions(
    none, np.zeros([0, 1], int), np.zeros([0, 1], bool), []
  )
  law = add_log_odds(empty, np.arange(6.0, dtype=np.float32))
  found = propagate(law)
  np.testing.assert_allclose(found.log_odds, np.arange(6), rtol=1e-6)
  counts = jax.eval_shape(belief.count_log_probs, law, found)
  assert counts.shape == (0, 2)


@functools.cache
def swept():
  """Inside jit over draws of theta, of which the last is NaN, and T."""
  law, _ = of_loops()
  thetas = np.random.default_rng(0).normal(size=(4, N * len(LOOPY)))
  thetas[3] = np.nan
  run = lambda theta, t: belief.propagate(
    belief.add_log_odds(law, theta), iterations=30, temperature=t
  )
  arguments = thetas.astype(np.float32), np.float32([0.5, 1.0, 1.7, 1.0])
  return law, *arguments, compiled(jax.vmap(run))(*arguments)


def test_beliefs_inside_jit_and_over_draws_of_theta_and_temperatures():
  law, thetas, temperatures, many = swept()
  for i in range(3):
    told = add_log_odds(law, thetas[i])
    one = propagate(told, iterations=30, temperature=temperatures[i])
    np.testing.assert_allclose(many.log_odds[i], one.log_odds, atol=1e-5)


def test_nan_inside_jit_ends_the_run_unconverged():
  found = swept()[-1]
  assert not found.converged[3]
  assert found.iterations[3] == 30


def test_a_learner_in_bfloat16_does_not_lower_the_precision():
  law, _ = of_loops()
  run = lambda logits: belief.propagate(belief.add_log_odds(law, logits))
  logits = jax.ShapeDtypeStruct((N * len(LOOPY),), jnp.bfloat16)
  assert jax.eval_shape(run, logits).log_odds.dtype == jnp.float32


def test_the_top_of_bags():
  log_odds = np.float32([0.1, 3.0, -2.0, -1.0, 9.0, -0.5, 0.5])
  index = np.array([[0, 1, 2], [3, -5, 4]])
  mask = np.array([[True] * 3, [True, False, True]])
  run = compiled(belief.top_of_bags)
  found = run(log_odds, index, mask, np.array([2, 0]))
  assert found.tolist() == [1, 1, 0, 0, 0, 0, 1]
  assert found.dtype == np.int32


# --- bad input ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'counts': [3, 1]}, 'counts must lie between 0 and the number'),
    ({'counts': [-1, 1]}, 'counts must lie between 0'),
    ({'counts': [0, np.nan]}, r'counts: those of bags \[1\] are missing'),
    ({'counts': [0.5, 1], 'bag_strength': INF}, 'counts must be whole where'),
    ({'counts': [1, 1, 1]}, r'counts must be \[k\] with k = 2'),
    ({'counts': ['1', '0']}, 'counts must be numbers'),
    ({'bag_strength': -1.0}, 'strength must be >= 0'),
    ({'pair_strength': np.nan}, 'pair_strength must be finite'),
    ({'factorization': 'pairs'}, 'factorization must be one of'),
    ({'factorization': 'pairwise', 'bag_strength': INF}, 'bag_strength must'),
    ({'mask': [[True, True], [False, False]]}, 'mask must not leave a bag'),
    ({'mask': np.ones([2, 2])}, 'mask must be bool'),
    ({'mask': np.ones([2, 3], bool)}, 'index must be like mask'),
    ({'index': [[0, 1], [1, 2]]}, 'index must put an instance into one bag'),
    ({'index': [[0, 1], [2, 9]]}, 'index must lie between 0 and n - 1 = 4'),
    ({'index': [[0, 1], [2, 0.5]]}, 'index must be integers'),
    ({'shards': 0}, 'shards must be at least 1'),
  ],
)
def test_bad_bags(change, message):
  arguments = {
    'index': [[0, 1], [2, 3]],
    'mask': np.ones([2, 2], bool),
    'counts': [1, 0],
    **change,
  }
  ties = neighbors.graph_of_edges([[0, 2]], [1.0], 5)
  with pytest.raises((TypeError, ValueError), match=message):
    belief.label_proportions(ties, **arguments)


def test_bad_factors():
  ties = neighbors.graph_of_edges([[0, 2]], [1.0], 4)
  index, mask = np.arange(4).reshape(2, 2), np.ones([2, 2], bool)
  for factor, message in (
    (np.zeros([2, 2]), r'log_factor must be \[k, m \+ 1\]'),
    (np.full([2, 3], np.nan), 'log_factor must not be NaN'),
    (np.full([2, 3], INF), r'log_factor must not be \+inf'),
    (np.array([[0, 0, 0], [-INF] * 3]), 'allows no count in 1 of the bags'),
  ):
    with pytest.raises(ValueError, match=message):
      belief.factor_graph(ties, index, mask, factor)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'iterations': 0}, 'iterations must be at least 1'),
    ({'damping': 1.0}, r'damping must lie in \[0, 1\)'),
    ({'damping': -0.1}, r'damping must lie in'),
    ({'tolerance': -1.0}, 'tolerance must be >= 0'),
    ({'temperature': -1.0}, 'temperature must be finite and >= 0'),
    ({'schedule': 'serial'}, 'schedule must be one of'),
    ({'anneal': -1}, 'anneal must be >= 0'),
  ],
)
def test_bad_runs(change, message):
  with pytest.raises(ValueError, match=message):
    belief.propagate(ragged()[0], **change)


def test_bad_log_odds():
  law = ragged()[0]
  for log_odds, message in (
    (np.zeros(69), r'log_odds must be \[70\]'),
    (np.zeros(70, int), 'log_odds must be floating-point'),
    (np.full(70, np.nan), 'log_odds must be finite'),
  ):
    with pytest.raises((TypeError, ValueError), match=message):
      belief.add_log_odds(law, log_odds)


def binding(theta, counts, weight):
  """Two bags of two that must hold their counts, and one tie across."""
  ties = neighbors.graph_of_edges([[0, 2]], [weight], 5)
  law = belief.label_proportions(
    ties,
    [[0, 1], [2, 3]],
    np.ones([2, 2], bool),
    counts,
    bag_strength=INF,
  )
  return add_log_odds(law, np.float32([*theta, 0.0, 0.0]))


@pytest.mark.parametrize(
  ('theta', 'counts', 'weight', 'expected'),
  [
    ([0, 0, 0], [1, 1], 1.0, [0.5, 0.5, 0.5, 0.5, 0.5]),
    # A bag that decides wins over anything that is not certain.
    ([1e5, 1e5, 0], [0, 1], 1.0, [0, 0, 0.269, 0.731, 0.5]),
    ([1e5, 9e4, 0], [1, 2], 1.0, [1, 0, 1, 1, 0.5]),
    ([3e38, -3e38, 3], [1, 1], 1.0, [1, 0, 0.98, 0.02, 0.5]),
    ([3e38, 0, 0], [1, 1], 1e3, [1, 0, 1, 0, 0.5]),
    # What is certain is denied: by its bag, by its fellow, by its neighbor.
    ([3e38, 0, 0], [0, 1], 1.0, None),
    ([3e38, 3e38, 0], [1, 1], 1.0, None),
    ([3e38, 0, -3e38], [1, 1], 3e6, None),
    ([0, 0, 0], [2, 0], 3e3, [1, 1, 0, 0, 0.5]),
  ],
)
def test_impossible_evidence_does_not_converge(theta, counts, weight, expected):
  found = propagate(binding(theta, counts, weight))
  assert bool(found.converged) == (expected is not None)
  assert np.all(np.isfinite(found.log_odds))
  if expected:
    np.testing.assert_allclose(found.marginals, expected, atol=5e-3)


def test_what_no_law_allows_does_not_converge_inside_jit():
  law = binding([0, 0, 0], [1, 1], 1.0)
  (group,) = law.groups

  @jax.jit
  def run(theta, log_factor):
    told = law._replace(groups=(group._replace(log_factor=log_factor),))
    return belief.propagate(belief.add_log_odds(told, theta)).converged

  factor, none = np.asarray(group.log_factor), np.zeros(5, np.float32)
  denied, certain = factor.copy(), np.eye(5, dtype=bool)
  denied[0, 1] = -INF
  assert run(none, factor)
  assert not run(none, denied)
  assert run(np.where(certain[0], INF, np.where(certain[1], -INF, 0)), factor)
  assert not run(np.where(certain[0] | certain[1], INF, 0), factor)
  for i in range(5):  # the last one is in no bag and has no tie
    assert not run(np.where(certain[i], np.nan, 0), factor)


def test_one_program_serves_all_temperatures():
  law, _ = of_loops()
  before = messages._run._cache_size()
  found = [propagate(law, temperature=t) for t in (0.8, jnp.float32(1.1))]
  assert messages._run._cache_size() == before
  assert np.any(found[0].log_odds != found[1].log_odds)
  law, cold = of_trees(temperature=0.0)
  again = propagate(law, temperature=np.float32(0))
  np.testing.assert_array_equal(cold.log_odds, again.log_odds)
