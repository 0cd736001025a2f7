"""Automata, pairs and count vectors against enumeration of all label strings.

All evidence of one kind is one padded batch: compiling is what takes the time.
"""

import functools
import itertools

from fixture_losses import close
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
import numpy as np
import pytest

from jnl import automata
from jnl.base import LOG_ZERO

M = 8


# --- enumeration, float64 ----------------------------------------------------


@functools.cache
def strings(k, m):
  return np.array(list(itertools.product(range(k), repeat=m)))


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def enumerate_bag(z, weigh):
  """log P, posterior [m, k] for `weigh`: strings [n, m] -> weights [n]."""
  m, k = z.shape
  y = strings(k, m)
  log_w = log_softmax(z)[np.arange(m), y].sum(1)
  with np.errstate(divide='ignore'):
    log_w = log_w + np.log(weigh(y).astype(np.float64))
  top = log_w.max()
  if top == -np.inf:
    return -np.inf, np.exp(log_softmax(z))
  w = np.exp(log_w - top)
  posterior = np.einsum('n,nmk->mk', w, y[:, :, None] == np.arange(k)) / w.sum()
  return top + np.log(w.sum()), posterior


def draw_bags(lengths, k, scale=2.0, seed=0):
  """Logits [b, M, k] and a mask with `lengths` instances in random slots."""
  rng = np.random.default_rng(seed)
  z = (scale * rng.standard_normal([len(lengths), M, k])).astype(np.float32)
  mask = rng.permuted(np.arange(M) < np.asarray(lengths)[:, None], axis=1)
  return z, mask


@functools.partial(jax.jit, static_argnames='infer')
def solve(infer, z, mask, *args):
  """The result, and the gradient of the likelihoods that are finite."""

  def total(z):
    result = infer(z, mask, *args)
    return jnp.sum(jnp.where(result.feasible, result.log_likelihood, 0)), result

  gradient, result = jax.grad(total, has_aux=True)(z)
  return result, gradient


def assert_exact(result, gradient, z, mask, weighs, atol=2e-6):
  """Equal to enumeration; the gradient by the logits is q - p."""
  for i, weigh in enumerate(weighs):
    own = z[i].astype(np.float64)[mask[i]]
    value, posterior = enumerate_bag(own, weigh)
    close(result.log_likelihood[i], value, atol=1e-5)
    assert result.feasible[i] == np.isfinite(value)
    close(result.posterior[i][mask[i]], posterior, atol=atol)
    q_less_p = posterior - np.exp(log_softmax(own))
    close(gradient[i][mask[i]], q_less_p, atol=2 * atol)
  np.testing.assert_array_equal(result.posterior[~mask], 0)
  np.testing.assert_array_equal(gradient[~mask], 0)


def general(z, mask, automaton):
  return automata.infer(automaton, z, mask)


# --- builders ----------------------------------------------------------------


@pytest.mark.parametrize('kind', ['count', 'at least', 'interval'])
def test_counts_of_all_lengths(kind):
  cases = [
    (m, low, high)
    for m in range(1, M + 1)
    for low in range(m + 1)
    for high in range(low, m + 1)
    if {'count': low == high, 'at least': high == m, 'interval': True}[kind]
  ]
  m, low, high = np.array(cases).T
  automaton = {
    'count': lambda: automata.count_automaton(low, M),
    'at least': lambda: automata.at_least_automaton(low, M),
    'interval': lambda: automata.interval_automaton(low, high, M),
  }[kind]()
  z, mask = draw_bags(m, 2)
  result, gradient = solve(general, z, mask, automaton)
  weighs = [
    lambda y, a=a, b=b: (a <= y.sum(1)) & (y.sum(1) <= b)
    for a, b in zip(low, high, strict=True)
  ]
  assert_exact(result, gradient, z, mask, weighs)
  expected = result.posterior[..., 1].sum(1)
  assert np.all(expected > low - 1e-4)
  assert np.all(expected < high + 1e-4)
  if kind == 'count':
    close(expected, low, atol=1e-5)


def test_at_least_saturates():
  m = np.arange(1, M + 1)
  z, mask = draw_bags(m, 2)
  result, gradient = solve(general, z, mask, automata.at_least_automaton(2, 2))
  weighs = [lambda y: y.sum(1) >= 2] * M
  assert_exact(result, gradient, z, mask, weighs)
  assert result.feasible.tolist() == [False] + [True] * (M - 1)


def test_counts_of_a_set_of_classes():
  counted = np.array([False, True, True, False])
  m = np.array([1, 2, 3, 4, 5, 6])
  n = np.array([0, 1, 2, 4, 2, 3])
  z, mask = draw_bags(m, 4)
  automaton = automata.count_automaton(n, 5, counted=counted)
  result, gradient = solve(general, z, mask, automaton)
  weighs = [lambda y, n=n: counted[y].sum(1) == n for n in n]
  assert_exact(result, gradient, z, mask, weighs)
  close(result.posterior[..., counted].sum((1, 2)), n, atol=1e-5)


def test_all_equal_does_not_know_the_classes():
  z, mask = draw_bags(np.arange(1, 7), 3)
  automaton = automata.all_equal_automaton(3)
  result, gradient = solve(general, z, mask, automaton)
  weighs = [lambda y: np.all(y == y[:, :1], axis=1)] * 6
  assert_exact(result, gradient, z, mask, weighs)
  order = [2, 0, 1]
  renamed, _ = solve(general, z[..., order], mask, automaton)
  close(renamed.posterior, result.posterior[..., order])


def test_count_probabilities_sum_to_one():
  """One bag, all counts: the automaton has the leading dimension."""
  z, _ = draw_bags([M], 2)
  every = automata.count_automaton(np.arange(M + 1), M)
  p = jnp.exp(automata.infer(every, z[0]).log_likelihood)
  close(p.sum(), 1)
  close(p @ np.arange(M + 1), jax.nn.softmax(z[0])[:, 1].sum())


def test_order_of_instances():
  z, mask = draw_bags(range(1, M + 1), 2)
  automaton = automata.interval_automaton(1, 3, 3)
  result, _ = solve(general, z, mask, automaton)
  order = np.random.default_rng(1).permutation(M)
  permuted, _ = solve(general, z[:, order], mask[:, order], automaton)
  close(permuted.log_likelihood, result.log_likelihood)
  close(permuted.posterior, result.posterior[:, order])


# --- any automaton -----------------------------------------------------------


def random_automata(b, k, s, seed=0):
  """One for each bag, a third of all transitions impossible."""
  rng = np.random.default_rng(seed)
  shapes = [(b, s), (b, s, k, s), (b, s)]
  weights = [rng.standard_normal(shape) for shape in shapes]
  impossible = -np.inf
  for weight in weights:
    weight[rng.random(weight.shape) < 0.35] = impossible
  return automata.Automaton(*(jnp.asarray(w, jnp.float32) for w in weights))


def path_sums(automaton, i):
  """Weights of strings as products of matrices."""
  start, step, end = (np.exp(np.asarray(w[i], np.float64)) for w in automaton)

  def weigh(y):
    state = np.repeat(start[None], len(y), axis=0)
    for labels in y.T:
      state = np.einsum('ns,snt->nt', state, step[:, labels])
    return state @ end

  return weigh


@pytest.mark.parametrize(
  ('k', 's', 'longest'), [(2, 5, 8), (3, 4, 7), (4, 3, 6)]
)
def test_random_weighted_automata(k, s, longest):
  lengths = np.resize(np.arange(1, longest + 1), 12)
  z, mask = draw_bags(lengths, k)
  automaton = random_automata(len(lengths), k, s)
  result, gradient = solve(general, z, mask, automaton)
  weighs = [path_sums(automaton, i) for i in range(len(lengths))]
  assert_exact(result, gradient, z, mask, weighs)


def test_posterior_is_the_gradient_by_log_probabilities():
  """A label's log-probability is a weight that all automata share."""
  z, mask = draw_bags([5, 8, 1, 3], 3)
  automaton = random_automata(4, 3, 4, seed=1)

  @jax.jit
  def log_p(shift):
    # Softmax takes no shift of one class; a step's weight does.
    step = automaton.step + shift[:, None, :, None]
    return automata.infer(automaton._replace(step=step), z, mask)

  gradient = jax.grad(lambda shift: jnp.sum(log_p(shift).log_likelihood))
  result = log_p(jnp.zeros([4, 3]))
  assert np.all(result.feasible)
  close(gradient(jnp.zeros([4, 3])), result.posterior.sum(1), atol=1e-5)


def test_derivatives_in_both_modes():
  """By logits and weights: finite differences in double precision."""
  with jax.enable_x64(True):
    z, mask = draw_bags([3, 5], 2)
    rng = np.random.default_rng(0)
    step = jnp.asarray(rng.standard_normal([2, 3, 2, 3]))
    step = step.at[:, 0, 1, 2].set(-jnp.inf)

    @jax.jit
    def value(z, start, finite, end):
      automaton = automata.Automaton(start, step + finite, end)
      return automata.infer(automaton, z, mask).log_likelihood

    zeros = jnp.zeros([2, 3])
    args = jnp.asarray(z, float), zeros, jnp.zeros([2, 3, 2, 3]), zeros
    check_grads(value, args, order=1, modes=['fwd', 'rev'])


def test_one_automaton_or_one_for_each_bag():
  z, mask = draw_bags([4, 6], 2)
  shared = automata.count_automaton(2, 4)
  each = automata.count_automaton(np.array([2, 2]), 4)
  a = automata.infer(shared, z, mask)
  mapped = jax.jit(jax.vmap(automata.infer, (None, 0, 0)))(shared, z, mask)
  compiled = jax.jit(automata.infer)(each, z, mask)
  for other in mapped, compiled:
    jax.tree.map(close, other, a)
  # Four kinds of evidence about each of the two.
  grid = automata.count_automaton(np.arange(4)[:, None], 4)
  result = jax.jit(automata.infer)(grid, z, mask)
  assert result.posterior.shape == (4, 2, M, 2)
  close(result.log_likelihood[2], a.log_likelihood)


def test_long_bags_stay_precise():
  """A sum of thousands has no digits left for the differences of states."""
  m = 2000
  z = np.random.default_rng(0).standard_normal([m, 2])
  automaton = automata.count_automaton(3, 3)
  single = jax.jit(automata.infer)(automaton, jnp.asarray(z, jnp.float32))
  with jax.enable_x64(True):
    double = jax.jit(automata.infer)(automaton, jnp.asarray(z))
    assert double.posterior.dtype == np.float64
    close(double.posterior[:, 1].sum(), 3, rtol=1e-9)
  close(single.posterior, double.posterior, rtol=1e-4)
  close(single.log_likelihood, double.log_likelihood)


def test_devices():
  """The carry of a scan has to vary over the mapped axis as its inputs do."""
  z, mask = draw_bags(np.arange(1, 9), 2)
  n = np.minimum(np.arange(8), 1)
  counts = np.stack([mask.sum(1) - n, n], axis=-1)

  def both(z, mask, counts):
    shared = automata.infer(automata.at_least_automaton(1, 1), z, mask)
    joint = automata.joint_count(z, counts, mask, states=2)
    return shared, joint, automata.pair(z[:, :2], automata.comparison())

  expected = jax.jit(both)(z, mask, counts)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  for check_vma in (True, False):
    split = jax.shard_map(
      both,
      mesh=mesh,
      in_specs=P('data'),
      out_specs=P('data'),
      check_vma=check_vma,
    )
    jax.tree.map(close, jax.jit(split)(z, mask, counts), expected)


# --- hard cases --------------------------------------------------------------


def count_two(z, mask):
  return automata.infer(automata.count_automaton(2, 2), z, mask)


def joint_two(z, mask):
  n = jnp.sum(mask, -1)
  counts = jnp.stack([n - 2, jnp.full_like(n, 2)], axis=-1)
  return automata.joint_count(z, counts, mask, states=3)


def unequal(z, mask):
  del mask
  return automata.pair(z[:, :2], automata.similarity(jnp.array(False)))


def half_sure(z, mask):
  return automata.positive_confidence(z, jnp.full(z.shape[:-1], 0.5), mask)


CONSTRAINTS = [count_two, joint_two, unequal, half_sure]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('infer', CONSTRAINTS)
def test_extreme_logits(infer, dtype):
  """All sure of class 0, of class 1, half of each; likely or contradicted."""
  rows = np.array([[1, 0], [0, 1]])
  signs = [[0] * 4, [1] * 4, [0, 0, 1, 1], [0, 1, 1, 1]]
  z = jnp.asarray(1e4 * rows[signs], dtype)
  mask = np.array([[True] * 4] * 3 + [[True] * 2 + [False] * 2])
  result, gradient = solve(infer, z, mask)
  assert result.log_likelihood.dtype == result.posterior.dtype == np.float32
  assert gradient.dtype == dtype
  assert np.all(result.feasible)
  assert np.all(np.isfinite(result.log_likelihood))
  assert np.all(np.isfinite(np.asarray(gradient, np.float32)))
  inner = mask[:, :2] if infer is unequal else mask
  close(result.posterior.sum(-1)[inner], 1)
  if infer is count_two:
    # Bags of four need two flips of 1e4, two, none; the last one flip.
    top = float(jnp.asarray(1e4, dtype))
    close(result.log_likelihood[2], 0, atol=1e-3)
    close(result.log_likelihood[:2], [-2 * top] * 2, rtol=1e-3)
    close(result.posterior[0, :, 1], 0.5, rtol=1e-2)


@pytest.mark.parametrize('infer', CONSTRAINTS)
def test_impossible_label(infer):
  """A logit of -inf is a probability of 0."""
  z = np.zeros([3, 4, 2], np.float32)
  z[0, 0, 1] = -np.inf  # the first is negative
  z[1, :, 1] = -np.inf  # all are
  z[2, 0, 0] = -np.inf  # the first is positive
  result, gradient = solve(infer, z, np.ones([3, 4], bool))
  assert result.posterior[0, 0, 0] == result.posterior[2, 0, 1] == 1
  assert not np.any(np.isnan(gradient))
  assert result.feasible.tolist() == [True, infer is half_sure, True]
  if infer is not half_sure:
    assert result.log_likelihood[1] == -np.inf
    np.testing.assert_array_equal(gradient[1], 0)
    close(result.posterior[1, :, 0], 1)


@pytest.mark.parametrize('counts', [-1, 4, 9])
def test_impossible_count_inside_jit(counts):
  z, mask = draw_bags([3, 3], 2)

  def infer(z, mask, counts):
    return automata.infer(automata.count_automaton(counts, 5), z, mask)

  result, gradient = solve(infer, z, mask, jnp.array([counts, 2]))
  assert result.feasible.tolist() == [False, True]
  assert result.log_likelihood[0] == -np.inf
  np.testing.assert_array_equal(gradient[0], 0)
  own = mask[0]
  close(result.posterior[0][own], jax.nn.softmax(z[0])[own])
  assert np.any(gradient[1] != 0)


def test_masked_slots_may_hold_anything():
  z, mask = draw_bags([3, 5], 2)
  spoiled = np.where(mask[..., None], z, np.nan)
  for infer in count_two, joint_two, half_sure:
    expected = solve(infer, z, mask)
    jax.tree.map(close, solve(infer, spoiled, mask), expected)


def test_empty_bags_inside_jit():
  """What the automaton says of the empty string."""
  z, mask = draw_bags([0, 2], 2)
  for least, possible in [(0, True), (1, False)]:
    automaton = automata.at_least_automaton(least, 1)
    result, gradient = solve(general, z, mask, automaton)
    assert result.feasible.tolist() == [possible, True]
    close(result.log_likelihood[0], 0 if possible else -np.inf)
    assert not np.any(np.isnan(gradient))


# --- pairs -------------------------------------------------------------------

UNIT = np.array([0.0, 0.3, 0.5, 1.0], np.float32)
TABLES = {
  'similarity': (
    lambda: automata.similarity(jnp.array([True, False, True, False])),
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]]] * 2,
  ),
  'prior': (
    lambda: automata.similarity(UNIT < 0.4, prior=np.float32(0.3)),
    [[[0.49, 0], [0, 0.09]]] * 2 + [[[0, 0.21], [0.21, 0]]] * 2,
  ),
  'priors': (
    lambda: automata.similarity(UNIT < 2, prior=UNIT),
    [[[(1 - p) ** 2, 0], [0, p**2]] for p in UNIT],
  ),
  'comparison': (automata.comparison, [[[1, 0], [1, 1]]] * 4),
  'confidence': (
    lambda: automata.similarity_confidence(UNIT),
    [[[s, 1 - s], [1 - s, s]] for s in UNIT],
  ),
  'difference': (
    lambda: automata.confidence_difference(np.array([-1, -0.3, 0, 0.6])),
    [
      [[0, 1], [0, 0]],
      [[0.7, 0.3], [0, 0.7]],
      [[1, 0], [0, 1]],
      [[0.4, 0], [0.6, 0.4]],
    ],
  ),
  'random': (
    lambda: jnp.log(jnp.arange(36.0).reshape(4, 3, 3)),
    np.arange(36.0).reshape(4, 3, 3),
  ),
}


def two(z, mask, table):
  del mask
  return automata.pair(z, table)


@pytest.mark.parametrize('name', TABLES)
def test_pairs(name):
  table, weights = TABLES[name]
  table, weights = table(), np.array(weights)
  full = np.broadcast_to(jnp.exp(table), weights.shape)
  close(full, weights)
  z = draw_bags([2] * 4, weights.shape[-1])[0][:, :2]
  mask = np.ones([4, 2], bool)
  weighs = [lambda y, w=w: w[y[:, 0], y[:, 1]] for w in weights]
  result, gradient = solve(two, z, mask, table)
  assert_exact(result, gradient, z, mask, weighs)
  read = automata.pair_automaton(table)
  jax.tree.map(close, solve(general, z, mask, read)[0], result)


def test_pair_automaton_reads_two_labels():
  z, mask = draw_bags([1, 2, 3], 2)
  automaton = automata.pair_automaton(jnp.zeros([2, 2]))
  result, _ = solve(general, z, mask, automaton)
  assert result.feasible.tolist() == [False, True, False]


def test_impossible_pair():
  z = jnp.zeros([2, 2])
  value, back = jax.vjp(
    lambda z, w: automata.pair(z, w), z, jnp.full([2, 2], -jnp.inf)
  )
  assert value.log_likelihood == -np.inf
  assert not value.feasible
  close(value.posterior, 0.5)
  zeros = jax.tree.map(np.zeros_like, value)
  tangent = zeros._replace(
    log_likelihood=np.ones([], np.float32),
    feasible=np.zeros([], jax.dtypes.float0),
  )
  for gradient in back(tangent):
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  'table',
  [
    automata.similarity_confidence,
    automata.confidence_difference,
    lambda c: automata.similarity(c < 2, prior=c),
    lambda c: automata.similarity(c > 2, prior=c),
  ],
)
def test_sure_evidence_has_finite_gradients(table):
  z = draw_bags([2] * 4, 2)[0][:, :2]

  def total(z, c):
    value = automata.pair(z, table(c)).log_likelihood
    return jnp.sum(jnp.where(jnp.isfinite(value), value, 0))

  gradients = jax.jit(jax.grad(total, (0, 1)))(z, UNIT)
  assert all(np.all(np.isfinite(g)) for g in gradients)


def test_positive_confidence():
  rng = np.random.default_rng(0)
  z, mask = draw_bags([1, 3, 6, 8], 2)
  c = rng.random(mask.shape).astype(np.float32)
  c[3, :2] = [0, 1]

  def infer(z, mask, c):
    return automata.positive_confidence(z, c, mask)

  result, gradient = solve(infer, z, mask, c)
  weighs = [
    lambda y, c=c[here]: np.prod(np.where(y == 1, c, 1 - c), axis=1)
    for c, here in zip(c, mask, strict=True)
  ]
  assert_exact(result, gradient, z, mask, weighs)
  close(result.posterior[3, :2, 1], [0, 1])
  by_c = jax.grad(lambda c: jnp.sum(infer(z, mask, c).log_likelihood))(c)
  assert np.all(np.isfinite(by_c))


# --- count vectors -----------------------------------------------------------


def vectors(c, m):
  return np.unique(np.sort(strings(c, m), axis=1), axis=0)


def histograms(c, m):
  """All count vectors of m instances, [n, c]."""
  return (vectors(c, m)[:, :, None] == np.arange(c)).sum(1)


def joint(z, mask, counts):
  return automata.joint_count(z, counts, mask, states=36)


@pytest.mark.parametrize(('c', 'longest'), [(2, 8), (3, 6), (4, 5)])
def test_count_vectors_of_all_lengths(c, longest):
  counts = [histograms(c, m) for m in range(1, longest + 1)]
  counts = np.concatenate(counts)[-126:]
  z, mask = draw_bags(counts.sum(1), c)
  result, gradient = solve(joint, z, mask, counts)
  weighs = [
    lambda y, n=n: np.all((y[:, :, None] == np.arange(c)).sum(1) == n, axis=1)
    for n in counts
  ]
  assert_exact(result, gradient, z, mask, weighs)
  close(result.posterior.sum(1), counts, atol=1e-5)
  if c == 2:
    one = automata.count_automaton(counts[:, 1], M)
    jax.tree.map(close, solve(general, z, mask, one)[0], result)


def test_probabilities_of_count_vectors_sum_to_one():
  z, _ = draw_bags([M], 3)
  counts = histograms(3, 6)
  bags = np.broadcast_to(z[:, :6], (len(counts), 6, 3))
  result = automata.joint_count(bags, counts)
  close(jnp.exp(result.log_likelihood).sum(), 1)


def test_order_of_classes():
  z, mask = draw_bags([5, 6], 3)
  counts, order = np.array([[2, 0, 3], [1, 4, 1]]), [2, 0, 1]
  result, _ = solve(joint, z, mask, counts)
  renamed, _ = solve(joint, z[..., order], mask, counts[:, order])
  close(renamed.log_likelihood, result.log_likelihood)
  close(renamed.posterior, result.posterior[..., order], atol=1e-5)


def test_impossible_count_vectors_inside_jit():
  """Another sum, a negative one, and one that needs more than the states."""
  counts = np.array(
    [[2, 1, 1], [1, 1, 1], [5, -1, 0], [0, 0, 5], [2**30, 2**30, 2**30]]
  )
  z, mask = draw_bags([4] * 5, 3)

  def infer(z, mask, counts):
    return automata.joint_count(z, counts, mask, states=4)

  result, gradient = solve(infer, z, mask, counts)
  assert result.feasible.tolist() == [True] + [False] * 4
  assert np.all(result.log_likelihood[1:] == -np.inf)
  np.testing.assert_array_equal(gradient[1:], 0)
  assert not np.any(np.isnan(result.posterior))
  z, mask = draw_bags([4], 3)
  few = jax.jit(lambda n: automata.joint_count(z, n, mask, states=3))
  assert not few(np.array([[2, 1, 1]])).feasible
  assert few(np.array([[2, 2, 0]])).feasible


def test_many_classes_that_do_not_occur():
  """Fifty classes, three present: no more states than those three need."""
  counts = np.zeros([50], np.int32)
  counts[[3, 17, 40]] = 2
  z = np.random.default_rng(0).standard_normal([6, 50])
  result = automata.joint_count(z, counts, states=9)
  assert result.feasible
  close(result.posterior.sum(0), counts)


# --- bad inputs --------------------------------------------------------------

Z = np.zeros([2, 3, 2], np.float32)
ONE = automata.count_automaton(1, 1)
MASK = np.ones([2, 3], bool)


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: automata.infer(ONE, Z.astype(int)), TypeError, 'floating'),
    (lambda: automata.infer(ONE, Z[0, 0]), ValueError, 'logits must be'),
    (lambda: automata.infer(ONE, Z, MASK[0]), ValueError, 'mask must be'),
    (lambda: automata.infer(ONE, Z, MASK.astype(int)), TypeError, 'bool'),
    (lambda: automata.infer(ONE, Z, MASK & False), ValueError, 'empty'),
    (lambda: automata.infer(ONE, Z[:, :0]), ValueError, 'at least one'),
    (lambda: automata.infer(ONE, np.zeros([2, 3, 3])), ValueError, 'step'),
    (
      lambda: automata.infer(ONE._replace(end=jnp.zeros(3)), Z),
      ValueError,
      'automaton.end must be',
    ),
    (
      lambda: automata.infer(ONE._replace(start=jnp.array([1, 0])), Z),
      TypeError,
      'automaton.start must be floating',
    ),
    (
      lambda: automata.infer(automata.count_automaton(np.ones(3, int), 1), Z),
      ValueError,
      'automaton.end has the leading shape',
    ),
    (lambda: automata.count_automaton(3, 2), ValueError, 'counts must lie'),
    (lambda: automata.count_automaton(-1, 2), ValueError, 'counts must lie'),
    (lambda: automata.count_automaton(1.0, 2), TypeError, 'integers'),
    (lambda: automata.count_automaton(0, -1), ValueError, 'most'),
    (lambda: automata.at_least_automaton(3, 2), ValueError, 'least must'),
    (lambda: automata.interval_automaton(2, 1, 2), ValueError, 'low must not'),
    (lambda: automata.interval_automaton(0, 3, 2), ValueError, 'high must'),
    (
      lambda: automata.count_automaton(1, 2, counted=np.array([0, 1])),
      TypeError,
      'counted must be bool',
    ),
    (
      lambda: automata.count_automaton(1, 2, counted=np.array([[True, False]])),
      ValueError,
      'counted must be',
    ),
    (lambda: automata.all_equal_automaton(1), ValueError, 'k must'),
    (lambda: automata.pair_automaton(Z), ValueError, 'log_weights must be'),
    (lambda: automata.pair(Z, automata.comparison()), ValueError, '2, k'),
    (
      lambda: automata.pair(Z[:, :2], np.zeros([3, 3])),
      ValueError,
      'log_weights must be',
    ),
    (
      lambda: automata.pair(Z[:, :2], np.zeros([3, 2, 2])),
      ValueError,
      'leading shape',
    ),
    (
      lambda: automata.pair(Z[:, :2], np.ones([2, 2], int)),
      TypeError,
      'floating',
    ),
    (lambda: automata.similarity(1), TypeError, 'similar must be bool'),
    (
      lambda: automata.similarity(MASK, prior=1.2),
      ValueError,
      'prior must lie',
    ),
    (
      lambda: automata.similarity(MASK, prior=np.ones(3)),
      ValueError,
      'of shape',
    ),
    (
      lambda: automata.similarity_confidence(-0.1),
      ValueError,
      'confidence must lie',
    ),
    (
      lambda: automata.similarity_confidence(np.nan),
      ValueError,
      'confidence must lie',
    ),
    (
      lambda: automata.confidence_difference(1.1),
      ValueError,
      'difference must lie',
    ),
    (
      lambda: automata.positive_confidence(Z, np.ones(3)),
      ValueError,
      'confidence must be',
    ),
    (
      lambda: automata.positive_confidence(Z, np.full([2, 3], 2.0)),
      ValueError,
      'confidence must lie',
    ),
    (
      lambda: automata.joint_count(Z, np.ones([2, 2])),
      TypeError,
      'counts must be integers',
    ),
    (
      lambda: automata.joint_count(Z, np.ones([2], int)),
      ValueError,
      'counts must be',
    ),
    (
      lambda: automata.joint_count(Z, np.array([[1, 2], [1, 1]])),
      ValueError,
      'counts must sum',
    ),
    (
      lambda: automata.joint_count(Z, np.array([[1, 2], [4, -1]])),
      ValueError,
      'negative',
    ),
    (
      lambda: automata.joint_count(Z, np.array([[1, 2], [2, 1]]), states=1),
      ValueError,
      'needs 2 states',
    ),
    (
      lambda: automata.joint_count(Z, np.array([[1, 2], [2, 1]]), states=0),
      ValueError,
      'states must lie',
    ),
    (
      lambda: automata.joint_count(
        np.zeros([400, 200]), np.full([200], 2, np.int32)
      ),
      ValueError,
      'split the bag',
    ),
    (
      lambda: jax.jit(automata.joint_count)(Z, np.array([[1, 2], [2, 1]])),
      ValueError,
      'inside jit',
    ),
  ],
)
def test_bad_inputs(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_log_zero_is_finite():
  """So that tables can be added, scaled and differentiated."""
  tables = [automata.comparison(), *ONE, automata.similarity(MASK)]
  assert all(np.min(t) == np.float32(LOG_ZERO) for t in tables)
