"""The tree of counts: long bags, saturated evidence, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import automata, losses
from jnl.automata import _tree as tree

RNG = np.random.default_rng(0)


def reference(log_odds):
  """log P(N = n) [m + 1] in float64, one instance after the other."""
  u = np.asarray(log_odds, np.float64)
  log_p = np.full(len(u) + 1, -np.inf)
  log_p[0] = 0
  for x in u:
    shifted = np.concatenate([[-np.inf], log_p[:-1]])
    own, not_own = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    log_p = np.logaddexp(log_p + not_own, shifted + own)
  return log_p


def reference_messages(log_odds, log_factor):
  """Messages [m] and log_z in float64, from the others of each instance."""
  log_odds = np.asarray(log_odds, np.float64)
  logsumexp = np.logaddexp.reduce
  messages = []
  for i in range(len(log_odds)):
    rest = reference(np.delete(log_odds, i))
    messages.append(
      logsumexp(log_factor[1:] + rest) - logsumexp(log_factor[:-1] + rest)
    )
  return np.array(messages), logsumexp(log_factor + reference(log_odds))


def one_count(n, m):
  return np.where(np.arange(m + 1) == n, 0, -np.inf)


def quadratic(n, m, weight):
  return -weight * (np.arange(m + 1) - n) ** 2.0


M = 48
FACTORS = {
  'count': one_count(11, M),
  'none': one_count(0, M),
  'all': one_count(M, M),
  'soft': quadratic(11.5, M, 0.05),
  'hard': quadratic(40, M, 10.0),
  'flat': np.zeros(M + 1),
  'at least one': np.where(np.arange(M + 1) >= 1, 0, -np.inf),
  'between': np.where(abs(np.arange(M + 1) - 30) <= 4, 0, -np.inf),
  'half line': -3.0 * np.arange(M + 1),
}
SPREADS = {'moderate': (3, 0), 'saturated': (60, 0), 'far': (2, -9)}


@pytest.fixture(scope='module')
def solved():
  """All factors on all bags in one call, float32 and float64."""
  odds = {k: RNG.normal(b, a, M) for k, (a, b) in SPREADS.items()}
  names = [(s, f) for s in odds for f in FACTORS]
  log_odds = np.stack([odds[s] for s, _ in names])
  factors = np.stack([FACTORS[f] for _, f in names])
  found = {}
  for dtype in (np.float32, np.float64):
    with jax.enable_x64(dtype == np.float64):
      solve = jax.jit(automata.count_messages)
      args = jnp.asarray(log_odds, dtype), jnp.asarray(factors, dtype)
      found[dtype] = jax.tree.map(np.asarray, solve(*args))
  return {
    name: (
      log_odds[i],
      factors[i],
      {d: (m[i], z[i]) for d, (m, z) in found.items()},
    )
    for i, name in enumerate(names)
  }


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('spread', SPREADS)
def test_messages_equal_those_of_the_others(solved, spread, factor):
  log_odds, log_factor, found = solved[spread, factor]
  expected, log_z = reference_messages(log_odds, log_factor)
  marginals = 1 / (1 + np.exp(-(log_odds + expected)))
  finite = np.isfinite(expected)
  # The float32 input differs from this one by a rounding of |log-odds|.
  tolerance = {
    np.float32: 1e-6 * (10 + np.abs(log_odds).max()),
    np.float64: 1e-9,
  }
  for dtype, (messages, z) in found.items():
    atol = tolerance[dtype]
    np.testing.assert_array_equal(np.isfinite(messages), finite)
    posterior = 1 / (1 + np.exp(-(log_odds + messages)))
    np.testing.assert_allclose(posterior, marginals, atol=atol)
    np.testing.assert_allclose(z, log_z, rtol=1e-6, atol=atol)
    # Where no other instance is in doubt a message is as large as its smallest
    # number; every message that a posterior could feel is exact.
    felt = finite & (np.abs(expected - log_odds.mean()) < 60)
    felt &= np.abs(log_odds + expected) < 60
    np.testing.assert_allclose(
      messages[felt], expected[felt], atol=10 * atol, rtol=1e-5
    )


@pytest.mark.parametrize('m', [2048, 4096])
def test_long_bags_equal_a_float64_recursion(m):
  log_odds = RNG.normal(-1, 3, m)
  n = m // 3
  expected = reference(log_odds.astype(np.float32))
  log_p = automata.count_log_probs(jnp.asarray(log_odds, jnp.float32))
  near = np.abs(np.arange(m + 1) - n) < m // 4
  np.testing.assert_allclose(log_p[near], expected[near], rtol=2e-5, atol=1e-3)
  z = jnp.stack([jnp.zeros(m), jnp.asarray(log_odds, jnp.float32)], -1)
  found = automata.count(z, jnp.array(n))
  np.testing.assert_allclose(found.log_likelihood, expected[n], rtol=1e-5)
  np.testing.assert_allclose(found.posterior[:, 1].sum(), n, rtol=1e-5)
  # Posteriors of some instances, from the distribution of all the others.
  for i in RNG.integers(0, m, 3):
    rest = reference(np.delete(log_odds, i))
    log_q = log_odds[i] + rest[n - 1] - rest[n]
    np.testing.assert_allclose(
      found.posterior[i, 1], 1 / (1 + np.exp(-log_q)), atol=1e-4
    )


def test_a_long_bag_needs_no_quadratic_memory():
  m = 4096
  z, n = jnp.zeros((1, m, 2)), jnp.array([1000])

  def value(z):
    return automata.count(z, n).log_likelihood.sum()

  for f in (lambda z: automata.count(z, n), jax.grad(value)):
    memory = jax.jit(f).lower(z).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * m * 100  # m^2 floats are 40 times it


def test_the_recursion_equals_the_gradient():
  log_odds = jnp.asarray(RNG.normal(0, 2, (5, 9)), jnp.float32)
  counts = jnp.array([0, 3, 4, 9, 1])

  def log_p(u):
    picked = jnp.take_along_axis(
      automata.count_log_probs(u), counts[:, None], axis=1
    )
    return picked.sum()

  shift = jax.jit(jax.grad(log_p))(log_odds)  # posterior less prior
  z = jnp.stack([jnp.zeros_like(log_odds), log_odds], -1)
  found = automata.count(z, counts)
  expected = jax.nn.sigmoid(log_odds) + shift
  np.testing.assert_allclose(found.posterior[..., 1], expected, atol=2e-6)
  np.testing.assert_allclose(
    found.log_likelihood.sum(), log_p(log_odds), rtol=1e-6
  )
  nll = jax.jit(jax.grad(lambda z: losses.count_nll(z, counts).sum()))
  p = jax.nn.softmax(z)
  np.testing.assert_allclose(nll(z), p - found.posterior, atol=1e-6)


def test_gradients_of_messages_and_second_derivatives():
  with jax.enable_x64(True):
    u = jnp.asarray(RNG.normal(0, 2, (2, 5)))
    factor = jnp.asarray(np.stack([quadratic(2, 5, 0.3), one_count(3, 5)]))
    direction = jnp.asarray(RNG.normal(size=u.shape))
    mix = jnp.asarray(RNG.normal(size=u.shape))
    solve = lambda u: automata.count_messages(u, factor)
    log_z = lambda u: solve(u).log_z.sum()
    functions = {
      'log_z': log_z,
      'messages': lambda u: (mix * solve(u).messages).sum(),
      'gradient': lambda u: (
        mix * jax.grad(lambda u: solve(u).log_z.sum())(u)
      ).sum(),
    }
    step = 1e-5
    for name, f in functions.items():

      @jax.jit
      def both(u, f=f):
        _, forward = jax.jvp(f, (u,), (direction,))
        return f(u), forward, jnp.vdot(jax.grad(f)(u), direction)

      above, below = u + step * direction, u - step * direction
      slope = (both(above)[0] - both(below)[0]) / (2 * step)
      _, forward, reverse = both(u)
      np.testing.assert_allclose(forward, slope, rtol=1e-6, err_msg=name)
      np.testing.assert_allclose(reverse, slope, rtol=1e-6, err_msg=name)


def test_gradient_by_the_factor_is_the_posterior_of_the_count():
  u = jnp.asarray(RNG.normal(0, 2, 6), jnp.float32)
  factor = jnp.asarray(quadratic(2, 6, 0.3), jnp.float32)
  log_z = lambda f: automata.count_messages(u, f).log_z
  gradient = jax.jit(jax.grad(log_z))(factor)
  expected = jax.nn.softmax(automata.count_log_probs(u) + factor)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_extreme_logits_stay_finite():
  """And exact, also where many are alike: the count is shared by them."""
  rng = np.random.default_rng(0)
  z = 1e4 * jnp.asarray(np.sign(rng.normal(size=(60, 7, 2))), jnp.float32)
  counts = jnp.tile(jnp.array([0, 3, 7]), 20)

  def total(z):
    found = automata.count(z, counts)
    return found.log_likelihood.sum(), found

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  (value, found), gradient = run(z)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(found.posterior[..., 1].sum(1), counts, rtol=1e-5)


BIG = np.finfo(np.float32).max
SURE = [[0, np.inf], [0, BIG], [-BIG, BIG], [0, 1e30], [0, 1e20], [-BIG, 0]]
"""Logits of an instance that is positive, by an overflow."""
CERTAIN = [*SURE, [-np.inf, 0], [-np.inf, np.inf]]
LOST = [[np.nan, 0], [0, np.nan], [np.inf, np.inf], [-np.inf, -np.inf]]


def all_kinds(z):
  """Of bags [b, 3, 2], evidence that one or more of three are positive."""
  one = jnp.ones(len(z), int)
  both = jnp.stack([2 * one, one], axis=-1)
  return [
    automata.count(z, one),
    automata.interval(z, one, one),
    automata.at_least(z, one),
    automata.multiple_instance(z, one),
    automata.count_one_versus_rest(z, both),
    automata.joint_count(z, both, states=2),
    automata.infer(automata.count_automaton(1, 1), z),
    automata.pair(z[:, :2], automata.similarity(jnp.array(False))),
    automata.positive_confidence(z, jnp.full(z.shape[:2], 0.5)),
  ]


def test_infinite_logits_are_certain_labels_and_nan_is_nan():
  """No loop that does not end, no bag that counts for nothing in silence."""
  rows = jnp.array([*CERTAIN, *LOST], jnp.float32)
  z = jnp.zeros([len(rows), 3, 2]).at[:, 0].set(rows)

  def total(z):
    found = all_kinds(z)
    return sum(jnp.sum(each.log_likelihood) for each in found), found

  gradient, found = jax.jit(jax.grad(total, has_aux=True))(z)
  chances = [1 / 4, 1 / 4, 1, 1, 1 / 16, 1 / 4, 1 / 4, 1 / 2, 1 / 8]
  known, alike = len(CERTAIN), (2, 3, 8)
  np.testing.assert_array_equal(gradient[:known, 0], 0)
  for kind, (each, chance) in enumerate(zip(found, chances, strict=True)):
    assert each.feasible.all(), kind
    log_p, q = each.log_likelihood[:known], each.posterior[:known, :, 1]
    np.testing.assert_allclose(log_p, np.log(chance), atol=1e-6)
    rest = 0.5 if kind in alike else 0.0
    np.testing.assert_allclose(q[:, 0], 1, atol=1e-6)
    np.testing.assert_allclose(q[:, 1:], rest, atol=1e-6)
    assert np.isnan(each.log_likelihood[known:]).all(), kind
  assert np.isnan(losses.count_nll(z, jnp.ones(len(z), int))[known:]).all()
  # Nor does any of it matter where there is no instance.
  counts, mask = jnp.ones(len(z), int), jnp.arange(3) > 0

  def masked(z):
    return automata.count(z, counts, jnp.tile(mask, (len(z), 1))).log_likelihood

  value, back = jax.vjp(masked, z)
  np.testing.assert_allclose(value, np.log(1 / 2), atol=1e-6)
  assert np.isfinite(back(value)[0]).all()


def test_overflow_costs_and_a_label_ruled_out_is_impossible():
  """No positives in a bag whose first instance is one."""
  rows = jnp.array([*CERTAIN, [-3, 3]], jnp.float32)
  z = jnp.zeros([len(rows), 3, 2]).at[:, 0].set(rows)
  none = automata.count_automaton(0, 0)
  by_tree = jax.jit(automata.count)(z, jnp.zeros(len(z), int))
  by_states = jax.jit(automata.infer)(none, z)
  costs = [True] * len(SURE) + [False, True, True]
  for found, bound in (by_tree, 2.0**22), (by_states, 1e20):
    np.testing.assert_array_equal(found.feasible, costs)
    log_p = found.log_likelihood
    np.testing.assert_allclose(log_p[: len(SURE)], -bound, rtol=1e-5)
    assert log_p[len(SURE)] == -np.inf
    np.testing.assert_allclose(log_p[-1], -6.0 - 2 * np.log(2), atol=3e-3)


@pytest.mark.parametrize('name', ['float16', 'bfloat16', 'float64'])
def test_overflow_in_other_dtypes(name):
  with jax.enable_x64(name == 'float64'):
    z = jnp.zeros([2, 3, 2], name).at[:, 0, 1].set(jnp.inf)
    top = jnp.finfo(name).max
    z = z.at[1, 0].set(jnp.array([-top, top], name))
    loss = losses.count_nll(z, jnp.array([1, 1]))
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
    against = losses.count_nll(z, jnp.array([0, 0]))
    assert (against > 1e5).all()
    assert np.isfinite(against).all()


def test_counts_are_right_up_to_the_bound():
  """Labels that contradict: as many flips as it takes, of the smallest."""
  rng = np.random.default_rng(0)
  sizes = np.repeat([1e4, 1e5, 1e6, 4e6], 15)[:, None]
  apart = rng.uniform(-1, 1, (60, 7))
  spread = np.where(rng.random((60, 1)) < 0.5, np.sign(apart), apart)
  log_odds = (sizes * spread).astype(np.float32)
  counts = np.tile([0, 3, 7, 4, 1], 12)
  z = jnp.stack([jnp.zeros_like(log_odds), log_odds], axis=-1)

  def total(z):
    found = automata.count(z, counts)
    return found.log_likelihood.sum(), found

  gradient, found = jax.jit(jax.grad(total, has_aux=True))(z)
  top = -np.sort(-log_odds.astype(np.float64), axis=1)
  best = [row[:n].sum() for row, n in zip(top, counts, strict=True)]
  expected = best - np.maximum(top, 0).sum(1)
  # Of equal ones log C(7, n) <= 3.6 labelings are as good.
  np.testing.assert_allclose(
    found.log_likelihood, expected, rtol=1e-6, atol=3.6
  )
  np.testing.assert_allclose(found.posterior[..., 1].sum(1), counts, atol=1e-5)
  shift = found.posterior - jax.nn.softmax(z)
  np.testing.assert_allclose(gradient, shift, atol=1e-6)


def test_messages_of_infinite_log_odds():
  """By sums and by maxima, and the distribution of the count."""
  odd = np.array([np.inf, BIG, -np.inf, -BIG, np.nan])
  log_odds = jnp.zeros([5, 3]).at[:, 0].set(odd).at[:, 2].set(1)
  one = jnp.tile(jnp.asarray(one_count(1, 3)), (5, 1))
  run = jax.jit(
    lambda u, phi: (
      automata.count_messages(u, phi),
      automata.max_count_messages(u, phi),
      automata.count_log_probs(u),
    )
  )
  (messages, log_z), best, log_p = run(log_odds, one)
  rest = reference([0, 1])  # the first instance's count is known
  n = np.array([0, 0, 1, 1])
  np.testing.assert_allclose(log_z[:4], rest[n], atol=1e-6)
  np.testing.assert_allclose(messages[:4, 0], rest[0] - rest[1], atol=1e-5)
  assert (messages[:2, 1:] < -80).all()
  np.testing.assert_allclose(messages[2:4, 1:], [[-1, 0]] * 2, atol=1e-5)
  np.testing.assert_allclose(best[:4, 0], -1, atol=1e-6)
  assert (best[:2, 1:] < -1e6).all()
  np.testing.assert_allclose(best[2:4, 1:], [[-1, 0]] * 2, atol=1e-6)
  for k in range(2):
    np.testing.assert_allclose(log_p[k, 1:], rest, atol=1e-6)
    np.testing.assert_allclose(log_p[2 + k, :3], rest, atol=1e-6)
  for nothing in messages, log_z, best, log_p:
    assert np.isnan(nothing[4]).all()


def test_a_bag_that_has_diverged_leaves_the_others_alone():
  rng = np.random.default_rng(0)
  z = jnp.asarray(rng.normal(size=(3, 9, 2)), jnp.float32)
  counts = jnp.array([3, 4, 5])
  run = jax.jit(automata.count)
  expected, found = run(z, counts), run(z.at[1, 2].set(jnp.nan), counts)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours[::2], theirs[::2])
  assert np.isnan(found.log_likelihood[1])


def test_impossible_counts_inside_jit():
  z = jnp.asarray(RNG.normal(size=(4, 3, 2)), jnp.float32)
  mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)

  @jax.jit
  def run(counts):
    def loss(z):
      found = automata.count(z, counts, mask)
      return losses.count_nll(z, counts, mask).sum(), found

    return jax.grad(loss, has_aux=True)(z)

  gradient, found = run(jnp.array([4, 3, -1, 0]))
  np.testing.assert_array_equal(found.feasible, [False, False, False, True])
  np.testing.assert_array_equal(found.log_likelihood, [-np.inf] * 3 + [0])
  np.testing.assert_array_equal(gradient, 0)
  prediction = np.where(mask[..., None], jax.nn.softmax(z), 0)
  np.testing.assert_allclose(found.posterior, prediction, atol=1e-6)


def test_one_versus_rest_keeps_small_rests():
  z = jnp.array([[30.0, 0, 0], [0, 1, 2], [-1e4, 0, 1e4]])
  rest, own = np.moveaxis(automata.one_versus_rest(z), -1, 0)
  with jax.enable_x64(True):
    p = jax.nn.log_softmax(jnp.asarray(z, jnp.float64))
    others = jnp.where(jnp.eye(3, dtype=bool), -jnp.inf, p[:, None, :])
    expected = jax.nn.logsumexp(others, axis=-1)
  # exp() of float32 log-probabilities near -30 is right to three digits.
  np.testing.assert_allclose(rest, expected, rtol=2e-3)
  np.testing.assert_allclose(own, p, rtol=1e-6, atol=1e-7)


def test_classes_counted_apart():
  z = jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32)
  counts = jnp.array([[1, 2, 2], [0, 5, 0]])
  count = jax.jit(automata.count)
  apart = jax.jit(automata.count_one_versus_rest)
  found = apart(z, counts)
  total, own = 0, []
  for k in range(3):
    one = count(automata.one_versus_rest(z)[..., k, :], counts[:, k])
    total += one.log_likelihood
    own.append(one.posterior[..., 1])
  own = jnp.stack(own, -1)
  np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-6)
  np.testing.assert_allclose(
    found.posterior, own / own.sum(-1, keepdims=True), atol=1e-6
  )
  np.testing.assert_array_equal(found.posterior[1].argmax(-1), 1)
  nll = losses.count_nll_one_versus_rest(z, counts)
  np.testing.assert_allclose(nll, -total, rtol=1e-6)
  # Of two classes one count is the other.
  binary = apart(z[..., :2], jnp.array([[3, 2], [5, 0]]))
  expected = count(z[..., :2], jnp.array([2, 0]))
  np.testing.assert_allclose(binary.posterior, expected.posterior, atol=1e-6)
  np.testing.assert_allclose(
    binary.log_likelihood, 2 * expected.log_likelihood, rtol=1e-5
  )


def test_one_impossible_class_makes_the_bag_impossible():
  z = jnp.asarray(RNG.normal(size=(1, 2, 3)), jnp.float32)
  run = jax.jit(
    jax.value_and_grad(
      lambda z, n: losses.count_nll_one_versus_rest(z, n).sum()
    )
  )
  value, gradient = run(z, jnp.array([[3, 1, 0]]))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
  found = jax.jit(automata.count_one_versus_rest)(z, jnp.array([[3, 1, 0]]))
  assert not found.feasible[0]
  np.testing.assert_allclose(found.posterior, jax.nn.softmax(z), atol=1e-6)


def test_joint_counts_are_less_likely_than_any_one_of_them():
  z = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
  counts = jnp.array([1, 2, 3])
  joint = losses.count_nll_joint(z, counts)
  for k in range(3):
    one = automata.one_versus_rest(z)[..., k, :]
    assert losses.count_nll(one, counts[k]) < joint


def test_mean_matching():
  z = jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  share = jnp.array([[0.5, 0.25, 0.25], [1, 0, 0]])
  mean = np.stack(
    [jax.nn.softmax(z[0]).mean(0), jax.nn.softmax(z[1, :2]).mean(0)]
  )
  expected = -(share * np.log(mean)).sum(-1)
  np.testing.assert_allclose(losses.dllp(z, share, mask), expected, rtol=1e-6)
  extreme = jax.grad(lambda z: losses.dllp(1e4 * z, share, mask).sum())(z)
  assert np.isfinite(extreme).all()


def test_the_tilted_mean_is_within_a_standard_deviation_of_the_count():
  """What `_tilt` promises, and all that the tree needs."""
  for m, scale in (64, 3), (64, 0), (256, 30), (7, 1):
    log_odds = jnp.asarray(RNG.normal(0, scale, (m, 5)), jnp.float32)
    n = jnp.array([1, m // 4, m // 2, 3 * m // 4, m - 1])
    factor = jnp.where(jnp.arange(m + 1)[:, None] == n, 0.0, -1e30)
    t, center = tree._tilt(log_odds, factor, jnp.ones((m, 5), bool))
    p = np.asarray(jax.nn.sigmoid(log_odds + t), float)
    deviation = np.sqrt((p * (1 - p)).sum(0))
    assert (np.abs(p.sum(0) - n) <= deviation + 1e-3).all(), (m, scale)
    np.testing.assert_array_equal(center, n)


Z = jnp.zeros((2, 3, 2))
TWO = jnp.array([1, 2])
MASK = np.ones((2, 3), bool)
SHORT = np.array([[1, 1, 1], [1, 1, 0]], bool)
EMPTY = np.array([[1, 1, 1], [0, 0, 0]], bool)
ODDS = Z[..., 0]


def ints(*values):
  return jnp.array(values)


@pytest.mark.parametrize(
  ('name', 'args', 'error', 'message'),
  [
    ('count', (Z, jnp.array([1.0, 2.0])), TypeError, 'counts must be int'),
    ('count', (Z, ints(1, 4)), ValueError, 'counts must lie'),
    ('count', (Z, ints(-1, 2)), ValueError, 'counts must lie'),
    ('count', (Z, ints(1)), ValueError, 'counts must have the shape'),
    ('count', (Z, TWO, MASK[:, :2]), ValueError, 'mask must be'),
    ('count', (Z, TWO, MASK * 1.0), TypeError, 'mask must be bool'),
    ('count', (Z, TWO, EMPTY), ValueError, 'mask must not leave a bag empty'),
    ('count', (Z, ints(1, 3), SHORT), ValueError, 'counts must lie'),
    ('count', (jnp.zeros((2, 3, 3)), TWO), ValueError, 'logits must be'),
    ('count', (Z.astype(int), TWO), TypeError, 'logits must be floating'),
    ('interval', (Z, TWO, ints(1, 1)), ValueError, 'low must not be above'),
    ('at_least', (Z, ints(0, 4)), ValueError, 'least must lie'),
    ('multiple_instance', (Z, ints(0, 2)), ValueError, 'labels of bags'),
    ('count_messages', (ODDS, ODDS), ValueError, 'log_factor must be'),
    ('count_log_probs', (jnp.array(1.0),), ValueError, 'log_odds must be'),
    ('count_log_probs', (TWO,), TypeError, 'log_odds must be floating'),
    ('count_one_versus_rest', (Z, TWO), ValueError, 'counts must be'),
    ('dllp', (Z, jnp.ones((2, 3))), ValueError, 'proportions must be'),
    ('count_nll', (Z, ints(1, 4)), ValueError, 'counts must lie'),
  ],
)
def test_bad_input(name, args, error, message):
  room = automata if hasattr(automata, name) else losses
  with pytest.raises(error, match=message):
    getattr(room, name)(*args)
