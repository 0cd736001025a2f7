"""Automata, pairs and count vectors against enumeration of all label strings.

All evidence of one kind is one padded batch: compiling is what takes the time.
"""

import functools
import itertools

from fixture_losses import close
from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import automata
from jnl.base import LOG_ZERO

M = 8
STATES = 9


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


def draw_bags(lengths, k, slots=M, seed=0):
  """Logits [b, slots, k], a mask with `lengths` instances in random slots."""
  rng = np.random.default_rng(seed)
  z = (2 * rng.standard_normal([len(lengths), slots, k])).astype(np.float32)
  mask = rng.permuted(np.arange(slots) < np.asarray(lengths)[:, None], axis=1)
  return z, mask


def differentiate(infer, z, *args):
  """The result, and the gradient of the likelihoods that are finite."""

  def total(z):
    result = infer(z, *args)
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


def random_automata(b, k, s, seed=0):
  """One for each bag, a third of all transitions impossible."""
  rng = np.random.default_rng(seed)
  shapes = [(b, s), (b, s, k, s), (b, s)]
  weights = [rng.standard_normal(shape) for shape in shapes]
  impossible = -np.inf
  for weight in weights:
    weight[rng.random(weight.shape) < 0.35] = impossible
  return automata.Automaton(*(w.astype(np.float32) for w in weights))


# --- evidence of one number of classes, in one program -----------------------

LENGTHS = np.arange(1, M + 1)
COUNTED = np.array([False, True, True, False])
COUNTS = {
  kind: np.array(
    [
      (m, low, high)
      for m in LENGTHS
      for low in range(m + 1)
      for high in range(low, m + 1)
      if {'count': low == high, 'at least': high == m, 'interval': True}[kind]
    ]
  ).T
  for kind in ('count', 'at least', 'interval')
}
ORDER_OF_INSTANCES = np.random.default_rng(1).permutation(M)
ORDER_OF_CLASSES = [2, 0, 3, 1]
RANDOM = {2: (5, 8), 3: (4, 7), 4: (3, 6)}  # states, longest bag
UNIT = np.array([0.0, 0.3, 0.5, 1.0], np.float32)
TABLES = {
  'similarity': (
    lambda: automata.similarity(np.array([True, False, True, False])),
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
    lambda: jnp.log(jnp.arange(64.0).reshape(4, 4, 4)),
    np.arange(64.0).reshape(4, 4, 4),
  ),
}


def classes_of(name):
  return len(TABLES[name][1][0])


def pair_bags(k):
  return draw_bags([2] * 4, k)[0], np.tile(np.arange(M) < 2, (4, 1))


def evidence(k):
  """{name: (automaton, bags)}; the automaton is built in the program."""
  tied = {
    name: (lambda make=make: automata.pair_automaton(make()), pair_bags(k))
    for name, (make, _) in TABLES.items()
    if classes_of(name) == k
  }
  states, longest = RANDOM[k]
  lengths = np.resize(np.arange(1, longest + 1), 12)
  drawn = random_automata(12, k, states)
  tied['any'] = lambda: drawn, draw_bags(lengths, k)
  return tied | {2: two_classes, 3: dict, 4: four_classes}[k]()


def two_classes():
  n, low = COUNTS['count'][1], COUNTS['at least'][1]
  _, least, high = COUNTS['interval']
  z, mask = draw_bags(LENGTHS, 2)
  order = ORDER_OF_INSTANCES
  bounds = lambda: automata.interval_automaton(1, 3, 3)
  lengths = {kind: cases[0] for kind, cases in COUNTS.items()}
  return {
    'count': (
      lambda: automata.count_automaton(n, M),
      draw_bags(lengths['count'], 2),
    ),
    'at least': (
      lambda: automata.at_least_automaton(low, M),
      draw_bags(lengths['at least'], 2),
    ),
    'interval': (
      lambda: automata.interval_automaton(least, high, M),
      draw_bags(lengths['interval'], 2),
    ),
    'saturated': (lambda: automata.at_least_automaton(2, 2), (z, mask)),
    'bounds': (bounds, (z, mask)),
    'bounds, permuted': (bounds, (z[:, order], mask[:, order])),
    'out of range': (
      lambda: automata.count_automaton(jnp.array([-1, 4, 9, 2]), 5),
      draw_bags([3] * 4, 2),
    ),
    'any count': (
      lambda: automata.at_least_automaton(0, 1),
      draw_bags([0, 2], 2),
    ),
    'some': (lambda: automata.at_least_automaton(1, 1), draw_bags([0, 2], 2)),
    'two labels': (
      lambda: automata.pair_automaton(np.zeros([2, 2])),
      draw_bags([1, 2, 3], 2),
    ),
  }


def four_classes():
  z, mask = bags = draw_bags(LENGTHS[:6], 4)
  n = np.array([0, 1, 2, 4, 2, 3])
  equal = lambda: automata.all_equal_automaton(4)
  return {
    'counted': (
      lambda: automata.count_automaton(n, 5, counted=COUNTED),
      bags,
    ),
    'equal': (equal, bags),
    'equal, renamed': (equal, (z[..., ORDER_OF_CLASSES], mask)),
  }


def padded(automaton, bags):
  """One automaton for each of the bags; the states added are not reached."""
  k, more = automaton.step.shape[-2], (0, STATES - automaton.start.shape[-1])
  widths = [(more,), (more, (0, 0), more), (more,)]
  s = automaton.start.shape[-1]
  return [
    jnp.pad(
      jnp.broadcast_to(weight, (bags, *shape)),
      ((0, 0), *width),
      constant_values=LOG_ZERO,
    )
    for weight, shape, width in zip(
      automaton, [(s,), (s, k, s), (s,)], widths, strict=True
    )
  ]


@functools.cache
def solved(k):
  """{name: (result, gradient, z, mask)} of all evidence about k classes."""
  parts = evidence(k)
  sizes = [len(z) for _, (z, _) in parts.values()]
  pairs = [pair for _, pair in parts.values()]
  bags = [np.concatenate(x) for x in zip(*pairs, strict=True)]

  @compiled
  def run(z, mask):
    each = [
      padded(make(), size)
      for (make, _), size in zip(parts.values(), sizes, strict=True)
    ]
    weights = map(jnp.concatenate, zip(*each, strict=True))
    infer = functools.partial(automata.infer, automata.Automaton(*weights))
    return differentiate(infer, z, mask)

  found = *run(*bags), *bags
  ends = np.cumsum(sizes)
  return {
    name: jax.tree.map(lambda x, a=end - size, b=end: x[a:b], found)
    for name, size, end in zip(parts, sizes, ends, strict=True)
  }


# --- builders ----------------------------------------------------------------


@pytest.mark.parametrize('kind', COUNTS)
def test_counts_of_all_lengths(kind):
  _, low, high = COUNTS[kind]
  weighs = [
    lambda y, a=a, b=b: (a <= y.sum(1)) & (y.sum(1) <= b)
    for a, b in zip(low, high, strict=True)
  ]
  result, *_ = found = solved(2)[kind]
  assert_exact(*found, weighs)
  expected = result.posterior[..., 1].sum(1)
  assert np.all(expected > low - 1e-4)
  assert np.all(expected < high + 1e-4)
  if kind == 'count':
    close(expected, low, atol=1e-5)


def test_at_least_saturates():
  result, *_ = found = solved(2)['saturated']
  assert_exact(*found, [lambda y: y.sum(1) >= 2] * M)
  assert result.feasible.tolist() == [False] + [True] * (M - 1)


def test_counts_of_a_set_of_classes():
  n = np.array([0, 1, 2, 4, 2, 3])
  result, *_ = found = solved(4)['counted']
  weighs = [lambda y, n=n: COUNTED[y].sum(1) == n for n in n]
  assert_exact(*found, weighs)
  close(result.posterior[..., COUNTED].sum((1, 2)), n, atol=1e-5)


def test_all_equal_does_not_know_the_classes():
  result, *_ = found = solved(4)['equal']
  assert_exact(*found, [lambda y: np.all(y == y[:, :1], axis=1)] * 6)
  renamed = solved(4)['equal, renamed'][0]
  close(renamed.posterior, result.posterior[..., ORDER_OF_CLASSES])


def test_order_of_instances():
  result, permuted = (
    solved(2)[name][0] for name in ('bounds', 'bounds, permuted')
  )
  close(permuted.log_likelihood, result.log_likelihood)
  close(permuted.posterior, result.posterior[:, ORDER_OF_INSTANCES])


# --- any automaton -----------------------------------------------------------


def path_sums(automaton, i):
  """Weights of strings as products of matrices."""
  start, step, end = (np.exp(np.asarray(w[i], np.float64)) for w in automaton)

  def weigh(y):
    state = np.repeat(start[None], len(y), axis=0)
    for labels in y.T:
      state = np.einsum('ns,snt->nt', state, step[:, labels])
    return state @ end

  return weigh


@pytest.mark.parametrize('k', [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_random_weighted_automata(k):
  automaton = random_automata(12, k, RANDOM[k][0])
  weighs = [path_sums(automaton, i) for i in range(12)]
  assert_exact(*solved(k)['any'], weighs)


def test_posterior_is_the_gradient_by_log_probabilities():
  """A label's log-probability is a weight that all automata share."""
  z, mask = draw_bags([5, 8, 1, 3], 3)
  automaton = random_automata(4, 3, 4, seed=1)

  @compiled
  @functools.partial(jax.grad, has_aux=True)
  def run(shift):
    # Softmax takes no shift of one class; a step's weight does.
    step = automaton.step + shift[:, None, :, None]
    result = automata.infer(automaton._replace(step=step), z, mask)
    return jnp.sum(result.log_likelihood), result

  gradient, result = run(np.zeros([4, 3], np.float32))
  assert np.all(result.feasible)
  close(gradient, result.posterior.sum(1), atol=1e-5)


def test_derivatives_in_both_modes():
  """By logits and weights: finite differences in double precision."""
  rng = np.random.default_rng(0)
  z, mask = draw_bags([3, 5], 2)
  step = rng.standard_normal([2, 3, 2, 3])
  step[:, 0, 1, 2] = -np.inf
  shapes = z.shape, (2, 3), step.shape, (2, 3)
  direction = [rng.standard_normal(shape) for shape in shapes]
  weights = rng.standard_normal(2)

  def value(z, start, finite, end):
    automaton = automata.Automaton(start, step + finite, end)
    return automata.infer(automaton, z, mask).log_likelihood

  @compiled
  def run(*args):
    found, back = jax.vjp(value, *args)
    reverse = map(jnp.vdot, back(weights), direction)
    return found, jax.jvp(value, args, tuple(direction))[1], sum(reverse)

  with jax.enable_x64(True):
    at = [z.astype(float), *(np.zeros(shape) for shape in shapes[1:])]
    above, below = (
      run(*(a + h * d for a, d in zip(at, direction, strict=True)))[0]
      for h in (1e-5, -1e-5)
    )
    _, forward, reverse = run(*at)
  slope = (above - below) / 2e-5
  close(forward, slope)
  close(reverse, slope @ weights)


@functools.cache
def broadcast():
  """One automaton or many, and one bag or many, in one program."""
  bags = draw_bags([4, 6], 2)

  @compiled
  def run(z, mask):
    count = automata.count_automaton
    two = count(2, 4)
    return {
      'shared': automata.infer(two, z, mask),
      'mapped': jax.vmap(automata.infer, (None, 0, 0))(two, z, mask),
      'each': automata.infer(count(np.array([2, 2]), 4), z, mask),
      # Nine kinds of evidence about each of the two.
      'grid': automata.infer(count(np.arange(M + 1)[:, None], M), z, mask),
    }

  return run(*bags)


def test_one_automaton_or_one_for_each_bag():
  found = broadcast()
  for other in 'mapped', 'each':
    jax.tree.map(close, found[other], found['shared'])
  assert found['grid'].posterior.shape == (M + 1, 2, M, 2)
  close(found['grid'].log_likelihood[2], found['shared'].log_likelihood)


def test_count_probabilities_sum_to_one():
  z, mask = draw_bags([4, 6], 2)
  p = np.exp(broadcast()['grid'].log_likelihood)
  close(p.sum(0), 1)
  positive = np.where(mask, np.exp(log_softmax(z))[..., 1], 0)
  close(np.arange(M + 1) @ p, positive.sum(1))


def test_long_bags_stay_precise():
  """A sum of thousands has no digits left for the differences of states."""
  z = np.random.default_rng(0).standard_normal([2000, 2])
  run = compiled(lambda z: automata.infer(automata.count_automaton(3, 3), z))
  single = run(z.astype(np.float32))
  with jax.enable_x64(True):
    double = run(z)
  assert double.posterior.dtype == np.float64
  close(double.posterior[:, 1].sum(), 3, rtol=1e-9)
  close(single.posterior, double.posterior, rtol=1e-4)
  close(single.log_likelihood, double.log_likelihood)


@pytest.mark.parametrize(
  'check_vma', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_devices(check_vma):
  """The carry of a scan has to vary over the mapped axis as its inputs do."""
  z, mask = draw_bags(np.arange(1, 9), 2)
  n = np.minimum(np.arange(8), 1)
  counts = np.stack([mask.sum(1) - n, n], axis=-1)

  def both(z, mask, counts):
    shared = automata.infer(automata.at_least_automaton(1, 1), z, mask)
    joint = automata.joint_count(z, counts, mask, states=2)
    return shared, joint, automata.pair(z[:, :2], automata.comparison())

  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = jax.shard_map(
    both,
    mesh=mesh,
    in_specs=P('data'),
    out_specs=P('data'),
    check_vma=check_vma,
  )
  shared, joint, pair = compiled(split)(z, mask, counts)
  first = np.tile(np.arange(M) < 2, (8, 1))
  cases = [
    (shared, mask, [lambda y: y.any(1)] * 8),
    (joint, mask, [lambda y, n=n: y.sum(1) == n for n in n]),
    (pair, first[:, :2], [lambda y: y[:, 0] >= y[:, 1]] * 8),
  ]
  for result, here, weighs in cases:
    for i, weigh in enumerate(weighs):
      own = here[i]
      value, posterior = enumerate_bag(
        z[i, : len(own)][own].astype(np.float64), weigh
      )
      close(result.log_likelihood[i], value, atol=1e-5)
      close(result.posterior[i][own], posterior, atol=2e-6)


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


def hard_bags():
  """Logits [11, 4, 2] and a mask; what of them is what is in `HARD`."""
  signs = [[0] * 4, [1] * 4, [0, 0, 1, 1], [0, 1, 1, 1]]
  extreme = 1e4 * np.array([[1, 0], [0, 1]])[signs]
  certain = np.zeros([3, 4, 2])
  certain[0, 0, 1] = -np.inf  # the first is negative
  certain[1, :, 1] = -np.inf  # all are
  certain[2, 0, 0] = -np.inf  # the first is positive
  z, few = draw_bags([2, 3], 2, slots=4)
  spoiled = np.where(few[..., None], z, np.nan)
  full = np.ones([6, 4], bool)
  mask = np.concatenate([full[:3], [np.arange(4) < 2], full[:3], few, few])
  return np.concatenate([extreme, certain, z, spoiled]), mask


HARD = {
  'extreme': slice(4),
  'certain': slice(4, 7),
  'plain': slice(7, 9),
  'spoiled': slice(9, 11),
}


def constrain(z, mask):
  return [differentiate(infer, z, mask) for infer in CONSTRAINTS]


@functools.cache
def constrained(dtype):
  """[(result, gradient)] of all constraints on all hard bags."""
  z, mask = hard_bags()
  return compiled(constrain)(z.astype(dtype), mask)


def found_of(infer, part, dtype=jnp.float32):
  """Of `part` of the hard bags; and the mask."""
  found = constrained(dtype)[CONSTRAINTS.index(infer)]
  result, gradient = jax.tree.map(lambda x: x[HARD[part]], found)
  return result, gradient, hard_bags()[1][HARD[part]]


@pytest.mark.parametrize(
  'dtype',
  [
    jnp.float32,
    pytest.param(jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(jnp.float16, marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('infer', CONSTRAINTS)
def test_extreme_logits(infer, dtype):
  """All sure of class 0, of class 1, half of each; likely or contradicted."""
  result, gradient, mask = found_of(infer, 'extreme', dtype)
  assert result.log_likelihood.dtype == result.posterior.dtype == np.float32
  assert gradient.dtype == dtype
  assert np.all(result.feasible)
  assert np.all(np.isfinite(result.log_likelihood))
  assert np.all(np.isfinite(gradient.astype(np.float32)))
  inner = mask[:, :2] if infer is unequal else mask
  close(result.posterior.sum(-1)[inner], 1)
  if infer is count_two:
    # Bags of four need two flips of 1e4, two, none; the last one flip.
    top = float(np.asarray(1e4, dtype))
    close(result.log_likelihood[2], 0, atol=1e-3)
    close(result.log_likelihood[:2], [-2 * top] * 2, rtol=1e-3)
    close(result.posterior[0, :, 1], 0.5, rtol=1e-2)


def test_results_are_in_float32_and_gradients_in_the_dtype_of_logits():
  z = jax.ShapeDtypeStruct((11, 4, 2), jnp.bfloat16)
  mask = jax.ShapeDtypeStruct((11, 4), bool)
  for result, gradient in jax.eval_shape(constrain, z, mask):
    assert result.log_likelihood.dtype == result.posterior.dtype == np.float32
    assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize('infer', CONSTRAINTS)
def test_impossible_label(infer):
  """A logit of -inf is a probability of 0."""
  result, gradient, _ = found_of(infer, 'certain')
  assert result.posterior[0, 0, 0] == result.posterior[2, 0, 1] == 1
  assert not np.any(np.isnan(gradient))
  assert result.feasible.tolist() == [True, infer is half_sure, True]
  if infer is not half_sure:
    assert result.log_likelihood[1] == -np.inf
    np.testing.assert_array_equal(gradient[1], 0)
    close(result.posterior[1, :, 0], 1)


def test_masked_slots_may_hold_anything():
  for infer in count_two, joint_two, half_sure:
    expected, found = (found_of(infer, part) for part in ('plain', 'spoiled'))
    jax.tree.map(close, found, expected)


def test_impossible_count_inside_jit():
  """-1, 4 and 9 of the three in a bag."""
  result, gradient, z, mask = solved(2)['out of range']
  assert result.feasible.tolist() == [False] * 3 + [True]
  np.testing.assert_array_equal(result.log_likelihood[:3], -np.inf)
  np.testing.assert_array_equal(gradient[:3], 0)
  prediction = np.exp(log_softmax(z))
  close(result.posterior[:3][mask[:3]], prediction[:3][mask[:3]])
  assert np.any(gradient[3] != 0)


def test_empty_bags_inside_jit():
  """What the automaton says of the empty string."""
  for name, possible in [('any count', True), ('some', False)]:
    result, gradient, *_ = solved(2)[name]
    assert result.feasible.tolist() == [possible, True]
    close(result.log_likelihood[0], 0 if possible else -np.inf)
    assert not np.any(np.isnan(gradient))


# --- pairs -------------------------------------------------------------------


@functools.cache
def solved_pairs():
  """{name: (table, result, gradient)} of `pair`, one call for all of k."""

  @compiled
  def run():
    found = {}
    for k in 2, 4:
      names = [name for name in TABLES if classes_of(name) == k]
      tables = [
        jnp.broadcast_to(TABLES[name][0](), (4, k, k)) for name in names
      ]
      z = jnp.tile(pair_bags(k)[0][:, :2], (len(names), 1, 1))
      infer = functools.partial(
        automata.pair, log_weights=jnp.concatenate(tables)
      )
      both = differentiate(infer, z)
      for i, name in enumerate(names):
        own = slice(4 * i, 4 * i + 4)
        found[name] = tables[i], *jax.tree.map(lambda x, o=own: x[o], both)
    return found

  return run()


@pytest.mark.parametrize('name', TABLES)
def test_pairs(name):
  table, result, gradient = solved_pairs()[name]
  weights = np.array(TABLES[name][1])
  k = classes_of(name)
  close(np.exp(table), weights)
  weighs = [lambda y, w=w: w[y[:, 0], y[:, 1]] for w in weights]
  z, mask = (x[:, :2] for x in pair_bags(k))
  assert_exact(result, gradient, z, mask, weighs)
  read = solved(k)[name][0]
  jax.tree.map(close, read._replace(posterior=read.posterior[:, :2]), result)


def test_pair_automaton_reads_two_labels():
  result = solved(2)['two labels'][0]
  assert result.feasible.tolist() == [False, True, False]


def test_impossible_pair():
  @compiled
  def run(z, w):
    value, back = jax.vjp(lambda z, w: automata.pair(z, w), z, w)
    zeros = jax.tree.map(jnp.zeros_like, value)
    feasible = np.zeros([], jax.dtypes.float0)
    one = jnp.ones([])
    return value, back(zeros._replace(log_likelihood=one, feasible=feasible))

  zeros = np.zeros([2, 2], np.float32)
  value, gradients = run(zeros, zeros - np.inf)
  assert value.log_likelihood == -np.inf
  assert not value.feasible
  close(value.posterior, 0.5)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


def test_sure_evidence_has_finite_gradients():
  z = draw_bags([2] * 4, 2)[0][:, :2]
  tables = [
    automata.similarity_confidence,
    automata.confidence_difference,
    lambda c: automata.similarity(c < 2, prior=c),
    lambda c: automata.similarity(c > 2, prior=c),
  ]

  def total(z, c, table):
    value = automata.pair(z, table(c)).log_likelihood
    return jnp.sum(jnp.where(jnp.isfinite(value), value, 0))

  run = compiled(
    lambda *args: [jax.grad(total, (0, 1))(*args, table) for table in tables]
  )
  for i, gradients in enumerate(run(z, UNIT)):
    assert all(np.all(np.isfinite(g)) for g in gradients), i


def test_positive_confidence():
  rng = np.random.default_rng(0)
  z, mask = draw_bags([1, 3, 6, 8], 2)
  c = rng.random(mask.shape).astype(np.float32)
  c[3, :2] = [0, 1]

  @compiled
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def run(z, c):
    result = automata.positive_confidence(z, c, mask)
    return jnp.sum(result.log_likelihood), result

  (gradient, by_c), result = run(z, c)
  weighs = [
    lambda y, c=c[here]: np.prod(np.where(y == 1, c, 1 - c), axis=1)
    for c, here in zip(c, mask, strict=True)
  ]
  assert_exact(result, gradient, z, mask, weighs)
  close(result.posterior[3, :2, 1], [0, 1])
  assert np.all(np.isfinite(by_c))


# --- count vectors -----------------------------------------------------------


def vectors(c, m):
  return np.unique(np.sort(strings(c, m), axis=1), axis=0)


def histograms(c, m):
  """All count vectors of m instances, [n, c]."""
  return (vectors(c, m)[:, :, None] == np.arange(c)).sum(1)


@functools.cache
def all_vectors(c):
  """Of all lengths."""
  longest = {2: 8, 3: 6, 4: 5}[c]
  return np.concatenate([histograms(c, m) for m in range(1, longest + 1)])


RENAMED = [-50, -38]  # of the vectors: 3 1 0 1 and 2 0 1 2


@functools.cache
def solved_vectors(c):
  """(counts, result, gradient, z, mask); of four classes also two more.

  All vectors about one bag of five, and two bags with the classes renamed.
  """
  counts = all_vectors(c)
  z, mask = draw_bags(counts.sum(1), c)
  if c == 4:
    five = histograms(4, 5)
    one = np.broadcast_to(z[:1], (len(five), M, 4))
    first = np.broadcast_to(np.arange(M) < 5, (len(five), M))
    z = np.concatenate([z, one, z[RENAMED][..., ORDER_OF_CLASSES]])
    mask = np.concatenate([mask, first, mask[RENAMED]])
    counts = np.concatenate(
      [counts, five, counts[RENAMED][:, ORDER_OF_CLASSES]]
    )
  run = compiled(
    functools.partial(
      differentiate, functools.partial(automata.joint_count, states=36)
    )
  )
  return counts, *run(z, counts, mask), z, mask


@pytest.mark.parametrize(
  'c',
  [
    pytest.param(2, marks=pytest.mark.slow),
    pytest.param(3, marks=pytest.mark.slow),
    4,
  ],
)
def test_count_vectors_of_all_lengths(c):
  n = len(all_vectors(c))
  counts, *found = jax.tree.map(lambda x: x[:n], solved_vectors(c))
  weighs = [
    lambda y, n=n: np.all((y[:, :, None] == np.arange(c)).sum(1) == n, axis=1)
    for n in counts
  ]
  assert_exact(*found, weighs)
  result = found[0]
  close(result.posterior.sum(1), counts, atol=1e-5)
  if c == 2:
    np.testing.assert_array_equal(counts[:, 1], COUNTS['count'][1])
    jax.tree.map(close, solved(2)['count'][0], result)


def test_probabilities_of_count_vectors_sum_to_one():
  result, n = solved_vectors(4)[1], len(all_vectors(4))
  close(np.exp(result.log_likelihood[n:-2]).sum(), 1)


@pytest.mark.slow
def test_states_are_those_that_the_bags_need():
  counts = histograms(3, 6)
  z = np.broadcast_to(draw_bags([6], 3, slots=6)[0], (len(counts), 6, 3))
  result = automata.joint_count(z, counts)
  close(np.exp(result.log_likelihood).sum(), 1)


def test_order_of_classes():
  counts, result, *_ = solved_vectors(4)
  n = len(all_vectors(4))
  plain, renamed = np.arange(n)[RENAMED], [-2, -1]
  assert counts[plain].tolist() == [[3, 1, 0, 1], [2, 0, 1, 2]]
  close(result.log_likelihood[renamed], result.log_likelihood[plain])
  close(
    result.posterior[renamed],
    result.posterior[plain][..., ORDER_OF_CLASSES],
    atol=1e-5,
  )


def test_impossible_count_vectors_inside_jit():
  """Another sum, a negative one, and those that need more than the states."""
  many = 2**30
  counts = np.array(
    [
      [2, 1, 1],
      [4, 0, 0],
      [1, 1, 1],
      [5, -1, 0],
      [0, 0, 5],
      [many] * 3,
      [2, 2, 1],
    ]
  )
  z, mask = draw_bags([4] * 6 + [5], 3)

  @compiled
  def run(z, counts, mask):
    infer = functools.partial(automata.joint_count, states=4)
    return differentiate(infer, z, counts, mask)

  result, gradient = run(z, counts, mask)
  assert result.feasible.tolist() == [True, True] + [False] * 5
  assert np.all(result.log_likelihood[2:] == -np.inf)
  np.testing.assert_array_equal(gradient[2:], 0)
  assert not np.any(np.isnan(result.posterior))


def test_many_classes_that_do_not_occur():
  """Fifty classes, three present: no more states than those three need."""
  counts = np.zeros([50], np.int32)
  counts[[3, 17, 40]] = 2
  z = np.random.default_rng(0).standard_normal([6, 50]).astype(np.float32)
  run = compiled(lambda z: automata.joint_count(z, counts, states=9))
  result = run(z)
  assert result.feasible
  close(result.posterior.sum(0), counts)


# --- bad inputs --------------------------------------------------------------

Z = np.zeros([2, 3, 2], np.float32)
ONE = compiled(lambda: automata.count_automaton(1, 1))()
MASK = np.ones([2, 3], bool)


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: automata.infer(ONE, Z.astype(int)), TypeError, 'floating'),
    (lambda: automata.infer(ONE, Z[0, 0]), ValueError, 'logits must be'),
    (lambda: automata.infer(ONE, Z, MASK[0]), ValueError, 'mask must be'),
    (lambda: automata.infer(ONE, Z, MASK.astype(int)), TypeError, 'bool'),
    (lambda: automata.infer(ONE, Z[:, :0]), ValueError, 'at least one'),
    (lambda: automata.infer(ONE, np.zeros([2, 3, 3])), ValueError, 'step'),
    (
      lambda: automata.infer(ONE._replace(end=np.zeros(3)), Z),
      ValueError,
      'automaton.end must be',
    ),
    (
      lambda: automata.infer(ONE._replace(start=np.array([1, 0])), Z),
      TypeError,
      'automaton.start must be floating',
    ),
    (
      lambda: automata.infer(automata.count_automaton(np.ones(3, int), 1), Z),
      ValueError,
      'automaton.end has the leading shape',
    ),
    (lambda: automata.count_automaton(1.0, 2), TypeError, 'integers'),
    (lambda: automata.count_automaton(0, -1), ValueError, 'most'),
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
      lambda: automata.similarity(MASK, prior=np.ones(3)),
      ValueError,
      'of shape',
    ),
    (
      lambda: automata.positive_confidence(Z, np.ones(3)),
      ValueError,
      'confidence must be',
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
      lambda: jax.jit(automata.joint_count)(Z, np.array([[1, 2], [2, 1]])),
      ValueError,
      'inside jit',
    ),
  ],
)
def test_bad_inputs(call, error, message):
  """Whatever the values: also inside jit."""
  with pytest.raises(error, match=message):
    jax.eval_shape(call)


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: automata.infer(ONE, Z, MASK & False), ValueError, 'empty'),
    (lambda: automata.count_automaton(3, 2), ValueError, 'counts must lie'),
    (lambda: automata.count_automaton(-1, 2), ValueError, 'counts must lie'),
    (lambda: automata.at_least_automaton(3, 2), ValueError, 'least must'),
    (lambda: automata.interval_automaton(2, 1, 2), ValueError, 'low must not'),
    (lambda: automata.interval_automaton(0, 3, 2), ValueError, 'high must'),
    (
      lambda: automata.similarity(MASK, prior=1.2),
      ValueError,
      'prior must lie',
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
      lambda: automata.positive_confidence(Z, np.full([2, 3], 2.0)),
      ValueError,
      'confidence must lie',
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
  ],
)
def test_bad_values(call, error, message):
  """Outside jit."""
  with pytest.raises(error, match=message):
    call()


def test_log_zero_is_finite():
  """So that tables can be added, scaled and differentiated."""
  make = lambda: [automata.comparison(), automata.similarity(MASK)]
  tables = [*ONE, *compiled(make)()]
  assert all(np.min(t) == np.float32(LOG_ZERO) for t in tables)
