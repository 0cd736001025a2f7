"""The tree of counts: long bags, saturated evidence, gradients, memory."""

import functools

from cost import slow
from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp, softmax

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


BAGS, SLOTS = 60, 7


@compiled
def _run(z, counts, mask):
  def total(z):
    found = automata.count(z, counts, mask)
    return jnp.where(found.feasible, found.log_likelihood, 0).sum(), found

  def nll(z):
    found = losses.count_nll(z, counts, mask)
    return found.sum(), found

  gradient, found = jax.grad(total, has_aux=True)(z)
  slope, value = jax.grad(nll, has_aux=True)(z)
  return found, gradient, value, slope


def solve(z, counts, mask=None):
  """`count` and its gradient, `count_nll` and its; in one program for all."""
  b, m, _ = z.shape
  room = np.zeros([BAGS, SLOTS, 2], np.float32)
  own, seen = np.zeros([BAGS], int), np.zeros([BAGS, SLOTS], bool)
  room[:b, :m], own[:b] = z, counts
  seen[:b, :m] = True if mask is None else mask
  found, gradient, nll, slope = _run(room, own, seen)
  found = found._replace(posterior=found.posterior[:, :m])
  found = jax.tree.map(lambda x: x[:b], found)
  return found, gradient[:b, :m], nll[:b], slope[:b, :m]


def binary(log_odds):
  """Logits of labels with these log-odds."""
  log_odds = np.asarray(log_odds, np.float32)
  return np.stack([np.zeros_like(log_odds), log_odds], axis=-1)


M = 30
FACTORS = {
  'count': one_count(7, M),
  'none': one_count(0, M),
  'all': one_count(M, M),
  'soft': quadratic(7.5, M, 0.05),
  'hard': quadratic(25, M, 10.0),
  'flat': np.zeros(M + 1),
  'at least one': np.where(np.arange(M + 1) >= 1, 0, -np.inf),
  'between': np.where(abs(np.arange(M + 1) - 19) <= 3, 0, -np.inf),
  'half line': -3.0 * np.arange(M + 1),
}
SPREADS = {'moderate': (3, 0), 'saturated': (60, 0), 'far': (2, -9)}


@functools.cache
def solved(dtype):
  """{(spread, factor): (log-odds, factor, messages, log_z)}, in one call."""
  rng = np.random.default_rng(0)
  odds = {k: rng.normal(b, a, M) for k, (a, b) in SPREADS.items()}
  names = [(s, f) for s in odds for f in FACTORS]
  log_odds = np.stack([odds[s] for s, _ in names])
  factors = np.stack([FACTORS[f] for _, f in names])
  with jax.enable_x64(dtype == np.float64):
    run = compiled(automata.count_messages)
    found = run(log_odds.astype(dtype), factors.astype(dtype))
  each = zip(log_odds, factors, *found, strict=True)
  return dict(zip(names, each, strict=True))


@pytest.mark.parametrize(
  'dtype', [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('spread', SPREADS)
def test_messages_equal_those_of_the_others(spread, factor, dtype):
  log_odds, log_factor, messages, z = solved(dtype)[spread, factor]
  expected, log_z = reference_messages(log_odds, log_factor)
  finite = np.isfinite(expected)
  # The float32 input differs from this one by a rounding of |log-odds|.
  single = 1e-6 * (10 + np.abs(log_odds).max())
  atol = single if dtype == np.float32 else 1e-9
  np.testing.assert_array_equal(np.isfinite(messages), finite)
  posterior, marginals = expit(log_odds + messages), expit(log_odds + expected)
  np.testing.assert_allclose(posterior, marginals, atol=atol)
  np.testing.assert_allclose(z, log_z, rtol=1e-6, atol=atol)
  # Where no other instance is in doubt a message is as large as its smallest
  # number; every message that a posterior could feel is exact.
  felt = finite & (np.abs(expected - log_odds.mean()) < 60)
  felt &= np.abs(log_odds + expected) < 60
  np.testing.assert_allclose(
    messages[felt], expected[felt], atol=10 * atol, rtol=1e-5
  )


@functools.cache
def long_bag(m):
  """Log-odds, a count, and the program for it."""
  log_odds, n = RNG.normal(-1, 3, m).astype(np.float32), m // 3

  def run(z):
    found = automata.count(z, np.array([n]))
    return found.log_likelihood.sum(), found

  run = jax.jit(jax.value_and_grad(run, has_aux=True))
  return log_odds, n, run.lower(binary(log_odds)[None]).compile()


LONG = pytest.mark.parametrize('m', [slow(256), slow(4096)])


@LONG
def test_long_bags_equal_a_float64_recursion(m):
  log_odds, n, program = long_bag(m)
  expected = reference(log_odds)
  log_p = compiled(automata.count_log_probs)(log_odds)
  near = np.abs(np.arange(m + 1) - n) < m // 4
  np.testing.assert_allclose(log_p[near], expected[near], rtol=2e-5, atol=1e-3)
  (_, found), _ = jax.tree.map(np.asarray, program(binary(log_odds)[None]))
  np.testing.assert_allclose(found.log_likelihood[0], expected[n], rtol=1e-5)
  posterior = found.posterior[0, :, 1]
  np.testing.assert_allclose(posterior.sum(), n, rtol=1e-5)
  # Posteriors of some instances, from the distribution of all the others.
  for i in RNG.integers(0, m, 3):
    rest = reference(np.delete(log_odds, i))
    log_q = log_odds[i] + rest[n - 1] - rest[n]
    np.testing.assert_allclose(posterior[i], expit(log_q), atol=1e-4)


@LONG
def test_a_long_bag_needs_no_quadratic_memory(m):
  """With its gradient: m^2 floats are m / 100 times as many."""
  *_, program = long_bag(m)
  assert program.memory_analysis().temp_size_in_bytes < 4 * m * 100


def test_the_recursion_equals_the_gradient():
  log_odds = RNG.normal(0, 2, (5, 7)).astype(np.float32)
  counts = np.array([0, 3, 4, 7, 1])

  def log_p(u):
    picked = jnp.take_along_axis(
      automata.count_log_probs(u), counts[:, None], axis=1
    )
    return picked.sum()

  # Posterior less prior.
  value, shift = compiled(jax.value_and_grad(log_p))(log_odds)
  z = binary(log_odds)
  found, _, _, slope = solve(z, counts)
  expected = expit(log_odds) + shift
  np.testing.assert_allclose(found.posterior[..., 1], expected, atol=2e-6)
  np.testing.assert_allclose(found.log_likelihood.sum(), value, rtol=1e-6)
  p = softmax(z, axis=-1)
  np.testing.assert_allclose(slope, p - found.posterior, atol=1e-6)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param('log_z', marks=pytest.mark.slow),
    pytest.param('messages', marks=pytest.mark.slow),
    'gradient',
  ],
)
def test_gradients_of_messages_and_second_derivatives(name):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    u = rng.normal(0, 2, (2, 3))
    factor = np.stack([quadratic(2, 3, 0.3), one_count(1, 3)])
    direction, mix = rng.normal(size=u.shape), rng.normal(size=u.shape)
    run = lambda u: automata.count_messages(u, factor)
    log_z = lambda u: run(u).log_z.sum()
    f = {
      'log_z': log_z,
      'messages': lambda u: (mix * run(u).messages).sum(),
      'gradient': lambda u: (mix * jax.grad(log_z)(u)).sum(),
    }[name]

    @compiled
    def both(u):
      value, forward = jax.jvp(f, (u,), (direction,))
      return value, forward, jnp.vdot(jax.grad(f)(u), direction)

    step = 1e-5
    above, below = (both(u + s * direction)[0] for s in (step, -step))
    _, forward, reverse = both(u)
  slope = (above - below) / (2 * step)
  np.testing.assert_allclose(forward, slope, rtol=1e-6)
  np.testing.assert_allclose(reverse, slope, rtol=1e-6)


def test_gradient_by_the_factor_is_the_posterior_of_the_count():
  u = RNG.normal(0, 2, 6).astype(np.float32)
  factor = quadratic(2, 6, 0.3).astype(np.float32)
  log_z = lambda f: automata.count_messages(u, f).log_z
  gradient = compiled(jax.grad(log_z))(factor)
  expected = softmax(reference(u) + factor)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_extreme_logits_stay_finite():
  """And exact, also where many are alike: the count is shared by them."""
  rng = np.random.default_rng(0)
  z = 1e4 * np.sign(rng.normal(size=(60, 7, 2)))
  counts = np.tile([0, 3, 7], 20)
  found, gradient, *_ = solve(z, counts)
  assert np.isfinite(found.log_likelihood).all()
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(found.posterior[..., 1].sum(1), counts, rtol=1e-5)


BIG = np.finfo(np.float32).max
SURE = [[0, np.inf], [0, BIG], [-BIG, BIG], [0, 1e30], [0, 1e20], [-BIG, 0]]
"""Logits of an instance that is positive, by an overflow."""
CERTAIN = [*SURE, [-np.inf, 0], [-np.inf, np.inf]]
LOST = [[np.nan, 0], [0, np.nan], [np.inf, np.inf], [-np.inf, -np.inf]]


def evidence(z):
  """{name: (of bags [b, 3, 2] that one or more are positive, its chance)}.

  The first one is; of the others nothing is known.
  """
  one = np.ones(len(z), int)
  both = np.stack([2 * one, one], axis=-1)
  return {
    'interval': (lambda z: automata.interval(z, one, one), 1 / 4),
    'at least': (lambda z: automata.at_least(z, one), 1),
    'multiple instance': (lambda z: automata.multiple_instance(z, one), 1),
    'apart': (lambda z: automata.count_one_versus_rest(z, both), 1 / 16),
    'joint': (lambda z: automata.joint_count(z, both, states=2), 1 / 4),
    'automaton': (
      lambda z: automata.infer(automata.count_automaton(1, 1), z),
      1 / 4,
    ),
    'pair': (
      lambda z: automata.pair(z[:, :2], automata.similarity(np.array(False))),
      1 / 2,
    ),
    'confidence': (
      lambda z: automata.positive_confidence(z, np.full(z.shape[:2], 0.5)),
      1 / 8,
    ),
  }


FREE = 'at least', 'multiple instance', 'confidence'
"""The other two may be anything."""


def first_of_three(rows):
  """Bags [b, 3, 2]; of two instances nothing is known."""
  z = np.zeros([len(rows), 3, 2], np.float32)
  z[:, 0] = rows
  return z


def assert_certain(name, found, gradient, chance):
  known = len(CERTAIN)
  np.testing.assert_array_equal(gradient[:known, 0], 0, err_msg=name)
  assert found.feasible.all(), name
  log_p, q = found.log_likelihood[:known], found.posterior[:known, :, 1]
  np.testing.assert_allclose(log_p, np.log(chance), atol=1e-6, err_msg=name)
  rest = 0.5 if name in FREE else 0.0
  np.testing.assert_allclose(q[:, 0], 1, atol=1e-6, err_msg=name)
  np.testing.assert_allclose(q[:, 1:], rest, atol=1e-6, err_msg=name)
  assert np.isnan(found.log_likelihood[known:]).all(), name


@pytest.mark.parametrize(
  'names',
  [
    slow(('joint', 'automaton', 'pair', 'confidence')),
    slow(('interval', 'at least', 'multiple instance', 'apart')),
  ],
)
def test_infinite_logits_are_certain_labels_and_nan_is_nan(names):
  """No loop that does not end, no bag that counts for nothing in silence."""
  z = first_of_three([*CERTAIN, *LOST])
  kinds = {name: evidence(z)[name] for name in names}

  def total(z):
    found = {name: infer(z) for name, (infer, _) in kinds.items()}
    return sum(jnp.sum(each.log_likelihood) for each in found.values()), found

  gradient, found = compiled(jax.grad(total, has_aux=True))(z)
  for name, (_, chance) in kinds.items():
    assert_certain(name, found[name], gradient, chance)


def test_counts_with_infinite_logits():
  z = first_of_three([*CERTAIN, *LOST])
  one = np.ones(len(z), int)
  found, gradient, nll, _ = solve(z, one)
  assert_certain('count', found, gradient, 1 / 4)
  assert np.isnan(nll[len(CERTAIN) :]).all()
  # Nor does any of it matter where there is no instance.
  found, gradient, *_ = solve(z, one, np.tile(np.arange(3) > 0, (len(z), 1)))
  np.testing.assert_allclose(found.log_likelihood, np.log(1 / 2), atol=1e-6)
  assert np.isfinite(gradient).all()


def test_overflow_costs_and_a_label_ruled_out_is_impossible():
  """No positives in a bag whose first instance is one."""
  z = first_of_three([*CERTAIN, [-3, 3]])
  zeros = np.zeros(len(z), int)

  by_tree, *_ = solve(z, zeros)
  none = lambda z: automata.infer(automata.count_automaton(0, 0), z)
  by_states = compiled(none)(z)
  costs = [True] * len(SURE) + [False, True, True]
  for found, bound in (by_tree, 2.0**22), (by_states, 1e20):
    np.testing.assert_array_equal(found.feasible, costs)
    log_p = found.log_likelihood
    np.testing.assert_allclose(log_p[: len(SURE)], -bound, rtol=1e-5)
    assert log_p[len(SURE)] == -np.inf
    np.testing.assert_allclose(log_p[-1], -6.0 - 2 * np.log(2), atol=3e-3)


@pytest.mark.parametrize(
  'names', [('float16', 'bfloat16'), ('float64',)], ids=['half', 'float64']
)
def test_overflow_in_other_dtypes(names):
  with jax.enable_x64('float64' in names):
    bags = []
    for name in names:
      dtype, top = jnp.dtype(name), jnp.finfo(name).max
      z = np.zeros([2, 3, 2], dtype)
      z[:, 0, 1] = np.inf
      z[1, 0] = [-top, top]
      bags.append(np.concatenate([z, z]))
    run = lambda z: losses.count_nll(z, np.array([1, 1, 0, 0]))
    found = compiled(lambda bags: [run(z) for z in bags])(bags)
  for nll in found:
    loss, against = nll[:2], nll[2:]
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
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
  z = binary(log_odds)
  found, gradient, *_ = solve(z, counts)
  top = -np.sort(-log_odds.astype(np.float64), axis=1)
  best = [row[:n].sum() for row, n in zip(top, counts, strict=True)]
  expected = best - np.maximum(top, 0).sum(1)
  # Of equal ones log C(7, n) <= 3.6 labelings are as good.
  np.testing.assert_allclose(
    found.log_likelihood, expected, rtol=1e-6, atol=3.6
  )
  np.testing.assert_allclose(found.posterior[..., 1].sum(1), counts, atol=1e-5)
  shift = found.posterior - softmax(z, axis=-1)
  np.testing.assert_allclose(gradient, shift, atol=1e-6)


def test_messages_of_infinite_log_odds():
  """By sums and by maxima, and the distribution of the count."""
  odd = np.array([np.inf, BIG, -np.inf, -BIG, np.nan])
  log_odds = np.zeros([5, 3], np.float32)
  log_odds[:, 0], log_odds[:, 2] = odd, 1
  one = np.tile(one_count(1, 3), (5, 1))
  run = compiled(
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
  z = rng.normal(size=(3, 7, 2)).astype(np.float32)
  counts = np.array([3, 4, 5])
  expected, *_ = solve(z, counts)
  z[1, 2] = np.nan
  found, *_ = solve(z, counts)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours[::2], theirs[::2])
  assert np.isnan(found.log_likelihood[1])


def test_impossible_counts_inside_jit():
  z = RNG.normal(size=(4, 3, 2)).astype(np.float32)
  mask = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
  found, _, _, slope = solve(z, np.array([4, 3, -1, 0]), mask)
  np.testing.assert_array_equal(found.feasible, [False, False, False, True])
  np.testing.assert_array_equal(found.log_likelihood, [-np.inf] * 3 + [0])
  np.testing.assert_array_equal(slope, 0)
  prediction = np.where(mask[..., None], softmax(z, axis=-1), 0)
  np.testing.assert_allclose(found.posterior, prediction, atol=1e-6)


def test_one_versus_rest_keeps_small_rests():
  z = np.array([[30.0, 0, 0], [0, 1, 2], [-1e4, 0, 1e4]], np.float32)
  rest, own = np.moveaxis(compiled(automata.one_versus_rest)(z), -1, 0)
  p = log_softmax(z.astype(np.float64), axis=-1)
  own_out = np.where(np.eye(3, dtype=bool), -np.inf, z[:, None, :])
  others = logsumexp(own_out.astype(np.float64), axis=-1)
  # exp() of float32 log-probabilities near -30 is right to three digits.
  expected = -np.logaddexp(0, z - others)
  np.testing.assert_allclose(rest, expected, rtol=2e-3)
  np.testing.assert_allclose(own, p, rtol=1e-6, atol=1e-7)


@functools.cache
def apart():
  """Of two bags, and of one in which a class is counted more than it can be."""
  z = RNG.normal(size=(3, 5, 3)).astype(np.float32)
  counts = np.array([[1, 2, 2], [0, 5, 0], [3, 1, 0]])
  mask = np.arange(5) < np.array([[5], [5], [2]])

  def nll(z):
    found = losses.count_nll_one_versus_rest(z, counts, mask)
    return found.sum(), found

  def run(z):
    gradient, loss = jax.grad(nll, has_aux=True)(z)
    found = automata.count_one_versus_rest(z, counts, mask)
    return found, loss, gradient, automata.one_versus_rest(z)

  return z, counts, *compiled(run)(z)


@pytest.mark.slow
def test_classes_counted_apart():
  _, counts, found, nll, _, of_class = apart()
  bags = np.concatenate([of_class[:2, :, k] for k in range(3)])
  one = solve(bags, counts[:2].T.ravel())[0]
  total = one.log_likelihood.reshape(3, 2).sum(0)
  own = np.moveaxis(one.posterior[..., 1].reshape(3, 2, 5), 0, -1)
  np.testing.assert_allclose(found.log_likelihood[:2], total, rtol=1e-6)
  np.testing.assert_allclose(
    found.posterior[:2], own / own.sum(-1, keepdims=True), atol=1e-6
  )
  np.testing.assert_array_equal(found.posterior[1].argmax(-1), 1)
  np.testing.assert_allclose(nll[:2], -total, rtol=1e-6)


@pytest.mark.slow
def test_of_two_classes_one_count_is_the_other():
  z = RNG.normal(size=(2, 5, 2)).astype(np.float32)
  run = compiled(automata.count_one_versus_rest)
  both, one = run(z, np.array([[3, 2], [5, 0]])), solve(z, [2, 0])[0]
  np.testing.assert_allclose(both.posterior, one.posterior, atol=1e-6)
  np.testing.assert_allclose(
    both.log_likelihood, 2 * one.log_likelihood, rtol=1e-5
  )


def test_one_impossible_class_makes_the_bag_impossible():
  z, _, found, nll, gradient, _ = apart()
  assert nll[2] == 0
  np.testing.assert_array_equal(gradient[2], 0)
  assert not found.feasible[2]
  prediction = softmax(z[2, :2], axis=-1)
  np.testing.assert_allclose(found.posterior[2, :2], prediction, atol=1e-6)


def test_joint_counts_are_less_likely_than_any_one_of_them():
  z = RNG.normal(size=(1, 6, 3)).astype(np.float32)
  counts = np.array([1, 2, 3])
  run = compiled(
    lambda z: (
      losses.count_nll_joint(z[0], counts, states=6),
      automata.one_versus_rest(z),
    )
  )
  joint, of_class = run(z)
  one = solve(np.moveaxis(of_class[0], 1, 0), counts)[0]
  assert (-one.log_likelihood < joint).all()


def test_mean_matching():
  z = RNG.normal(size=(2, 4, 3)).astype(np.float32)
  mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  share = np.array([[0.5, 0.25, 0.25], [1, 0, 0]])
  p = softmax(z, axis=-1)
  mean = np.stack([p[0].mean(0), p[1, :2].mean(0)])
  expected = -(share * np.log(mean)).sum(-1)

  def run(z):
    found = losses.dllp(z, share, mask)
    return found.sum(), found

  run = compiled(jax.value_and_grad(run, has_aux=True))
  np.testing.assert_allclose(run(z)[0][1], expected, rtol=1e-6)
  assert np.isfinite(run(1e4 * z)[1]).all()


def test_the_tilted_mean_is_within_a_standard_deviation_of_the_count():
  """What `_tilt` promises, and all that the tree needs."""
  cases, args = [], []
  for m, scales in (64, [3, 0]), (256, [30]), (7, [1]):
    wide = [RNG.normal(0, scale, (m, 5)) for scale in scales]
    n = np.tile([1, m // 4, m // 2, 3 * m // 4, m - 1], len(scales))
    log_odds = np.concatenate(wide, axis=1).astype(np.float32)
    factor = np.where(np.arange(m + 1)[:, None] == n, 0.0, -1e30)
    cases.append((m, log_odds, n))
    args.append((log_odds, factor, np.ones(log_odds.shape, bool)))
  found = compiled(lambda args: [tree._tilt(*each) for each in args])(args)
  for (m, log_odds, n), (t, center) in zip(cases, found, strict=True):
    p = expit((log_odds + t).astype(float))
    deviation = np.sqrt((p * (1 - p)).sum(0))
    assert (np.abs(p.sum(0) - n) <= deviation + 1e-3).all(), m
    np.testing.assert_array_equal(center, n)


Z = np.zeros((2, 3, 2), np.float32)
TWO = np.array([1, 2])
MASK = np.ones((2, 3), bool)
SHORT = np.array([[1, 1, 1], [1, 1, 0]], bool)
EMPTY = np.array([[1, 1, 1], [0, 0, 0]], bool)
ODDS = Z[..., 0]


def ints(*values):
  return np.array(values)


@pytest.mark.parametrize(
  ('name', 'args', 'error', 'message'),
  [
    ('count', (Z, np.array([1.0, 2.0])), TypeError, 'counts must be int'),
    ('count', (Z, ints(1, 4)), ValueError, 'counts must lie'),
    ('count', (Z, ints(-1, 2)), ValueError, 'counts must lie'),
    ('count', (Z, ints(1)), ValueError, 'counts must have the shape'),
    ('count', (Z, TWO, MASK[:, :2]), ValueError, 'mask must be'),
    ('count', (Z, TWO, MASK * 1.0), TypeError, 'mask must be bool'),
    ('count', (Z, TWO, EMPTY), ValueError, 'mask must not leave a bag empty'),
    ('count', (Z, ints(1, 3), SHORT), ValueError, 'counts must lie'),
    ('count', (np.zeros((2, 3, 3)), TWO), ValueError, 'logits must be'),
    ('count', (Z.astype(int), TWO), TypeError, 'logits must be floating'),
    ('interval', (Z, TWO, ints(1, 1)), ValueError, 'low must not be above'),
    ('at_least', (Z, ints(0, 4)), ValueError, 'least must lie'),
    ('multiple_instance', (Z, ints(0, 2)), ValueError, 'labels of bags'),
    ('count_messages', (ODDS, ODDS), ValueError, 'log_factor must be'),
    ('count_log_probs', (np.array(1.0),), ValueError, 'log_odds must be'),
    ('count_log_probs', (TWO,), TypeError, 'log_odds must be floating'),
    ('count_one_versus_rest', (Z, TWO), ValueError, 'counts must be'),
    ('dllp', (Z, np.ones((2, 3))), ValueError, 'proportions must be'),
    ('count_nll', (Z, ints(1, 4)), ValueError, 'counts must lie'),
  ],
)
def test_bad_input(name, args, error, message):
  room = automata if hasattr(automata, name) else losses
  run = functools.partial(getattr(room, name), *args)
  of_values = 'lie' in message or 'empty' in message or 'above' in message
  with pytest.raises(error, match=message):
    run() if of_values or 'labels' in message else jax.eval_shape(run)
