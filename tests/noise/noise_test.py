"""Noise generators: matrices, draws, instance dependence, sets and bags."""

import functools
from unittest import mock
import warnings
import zlib

from cost import slow
from fixture_programs import compiled
from golden_noise import SIGNIFICANCE, assert_drawn, p_value
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jnl import noise
from jnl.noise import _inputs

KEY = jax.random.key(0)
C, N = 4, 2000
EYE = np.eye(C)
LABELS = np.arange(N) % C
IMAGES = np.random.default_rng(0).normal(size=(N, 3, 2)).astype(np.float32)
ETA = np.random.default_rng(1).dirichlet(np.ones(C), N).astype(np.float32)
BINARY_ETA = np.random.default_rng(2).uniform(size=N).astype(np.float32)
MATRICES = {
  'symmetric': lambda r: noise.symmetric(C, r),
  'symmetric_inclusive': lambda r: noise.symmetric_inclusive(C, r),
  'pair_flip': lambda r: noise.pair_flip(C, r),
  'class_map': lambda r: noise.class_map([1, 1, 3, 0], r),
  'mnist_asymmetric': noise.mnist_asymmetric,
  'cifar10_asymmetric': noise.cifar10_asymmetric,
  'cifar100_index_blocks': noise.cifar100_index_blocks,
  'cifar100_superclasses': noise.cifar100_superclasses,
  'cifar100_pair_swaps': lambda r: noise.cifar100_pair_swaps(KEY, r),
}
# Every generator of labels, (key, labels) -> NoisyLabels.
GENERATORS = {
  'corrupt': lambda k, y: noise.corrupt(k, y, noise.pair_flip(C, 0.3)),
  'fixed_count': lambda k, y: noise.fixed_count(
    k, y, noise.symmetric_inclusive(C, 1.0), 0.4
  ),
  'fixed_count_per_class': lambda k, y: noise.fixed_count(
    k, y, noise.symmetric(C, 1.0), 0.4, per_class=True
  ),
  'cifar10_asymmetric_in_place': lambda k, y: noise.cifar10_asymmetric_in_place(
    k, 2 + y, 0.4
  ),
  'part_dependent': lambda k, y: noise.part_dependent(k, IMAGES, y, C, 0.4),
  'part_dependent_shared': lambda k, y: noise.part_dependent(
    k, IMAGES, y, C, 0.4, shared=True
  ),
  'pmd': lambda k, y: noise.pmd(k, y, ETA, kind=3, factor=1.2),
  'binary_pmd': lambda k, y: noise.binary_pmd(k, y // 2, BINARY_ETA, kind=2),
}
CLEAN = {
  'cifar10_asymmetric_in_place': LABELS + 2,
  'binary_pmd': LABELS // 2,
}


@functools.cache
def program(name):
  return jax.jit(GENERATORS[name])


@functools.cache
def drawn(name, seed=0):
  """The draw of a generator; many tests look at the same ones."""
  draw = program(name)(jax.random.key(seed), LABELS)
  return jax.tree.map(np.asarray, draw)


def clean_of(name):
  return CLEAN.get(name, LABELS)


def rows_of(draw, clean):
  """The probabilities [n, c] that each label was drawn from."""
  probs = draw.probs
  return probs if len(probs) == len(clean) else probs[clean]


# --- matrices ----------------------------------------------------------------


RATES = [0.0, 0.3, 0.4, 1.0]


@functools.cache
def matrices():
  """{name: [of each rate]}, and of all rates at once where they are traced."""

  @compiled
  def run(rates):
    one_by_one = {
      name: [make(rate) for rate in RATES] for name, make in MATRICES.items()
    }
    swept = {name: jax.vmap(make)(rates) for name, make in MATRICES.items()}
    others = {
      'inclusive': noise.symmetric_inclusive(10, 0.4),
      'exclusive': noise.symmetric(10, 0.36),
      'next': noise.pair_flip(3, 0.3),
    }
    return one_by_one, swept, others

  return run(np.float32(RATES))


def matrix(name, rate):
  return matrices()[0][name][RATES.index(rate)]


@pytest.mark.parametrize('name', MATRICES)
@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
def test_rows_are_probabilities(name, rate):
  transition = matrix(name, rate)
  assert (transition >= 0).all()
  np.testing.assert_allclose(transition.sum(1), 1, rtol=1e-6)
  wrong = 1 - np.diag(transition)
  factor = (C - 1) / C if name == 'symmetric_inclusive' else 1
  assert wrong.max() == pytest.approx(rate * factor, abs=1e-6)
  noisy = matrix(name, 0.4)
  shares = {
    'class_map': 3 / 4,
    'mnist_asymmetric': 1 / 2,
    'cifar10_asymmetric': 1 / 2,
    'cifar100_pair_swaps': 2 / 5,
  }
  share = np.mean(np.diag(noisy) < 1)
  assert share == pytest.approx(shares.get(name, 1))


@pytest.mark.parametrize('name', MATRICES)
def test_rates_may_be_traced(name):
  one_by_one, together, _ = (each.get(name) for each in matrices())
  np.testing.assert_allclose(together, np.stack(one_by_one), atol=1e-7)


@pytest.mark.parametrize('rate', [-0.1, 1.1, np.nan])
@pytest.mark.parametrize('name', MATRICES)
def test_rates_are_checked(name, rate):
  with pytest.raises(ValueError, match='rate'):
    MATRICES[name](rate)


@pytest.mark.parametrize('name', MATRICES)
def test_a_rate_per_class_would_go_to_the_wrong_axis(name):
  with pytest.raises(ValueError, match='rate must be a scalar'):
    MATRICES[name](np.full(C, 0.1))


@pytest.mark.parametrize(
  'matrix', [noise.symmetric, noise.symmetric_inclusive, noise.pair_flip]
)
def test_classes_are_checked(matrix):
  with pytest.raises(ValueError, match='num_classes'):
    matrix(1, 0.1)


def test_inclusive_40_percent_are_36():
  found = matrices()[-1]
  transition = found['inclusive']
  np.testing.assert_allclose(1 - np.diag(transition), 0.36, rtol=1e-6)
  np.testing.assert_allclose(transition, found['exclusive'], atol=1e-7)


def test_pair_flip_goes_to_the_next_class():
  expected = [[0.7, 0.3, 0], [0, 0.7, 0.3], [0.3, 0, 0.7]]
  np.testing.assert_allclose(matrices()[-1]['next'], expected, rtol=1e-6)


def test_pair_flip_warns_when_the_clean_class_is_not_the_likeliest():
  for rate in (0.5, np.float32(0.7)):
    with pytest.warns(UserWarning, match='pair_flip'):
      noise.pair_flip(3, rate)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    noise.pair_flip(3, 0.49)
    noise.pair_flip(3, 1.0)
    jax.eval_shape(lambda r: noise.pair_flip(3, r), np.float32(0.7))


@pytest.mark.parametrize(
  ('targets', 'error'),
  [
    ([0.0, 1.0], TypeError),
    ([0, 2], ValueError),
    ([0, -1], ValueError),
    ([[0, 1]], ValueError),
    ([0], ValueError),
  ],
)
def test_class_maps_are_checked(targets, error):
  with pytest.raises(error, match='targets'):
    noise.class_map(np.array(targets), 0.1)


def moves(transition):
  """{class: what it turns into} of the classes that change."""
  off = np.asarray(transition) * (1 - np.eye(len(transition)))
  return {int(i): int(off[i].argmax()) for i in np.flatnonzero(off.any(1))}


def test_only_the_listed_classes_change():
  cifar = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
  assert moves(matrix('cifar10_asymmetric', 0.4)) == cifar
  mnist = {7: 1, 2: 7, 3: 8, 5: 6, 6: 5}
  assert moves(matrix('mnist_asymmetric', 0.4)) == mnist


def test_index_blocks_are_not_superclasses():
  blocks = moves(matrix('cifar100_index_blocks', 0.4))
  supers = moves(matrix('cifar100_superclasses', 0.4))
  assert [blocks[i] for i in range(6)] == [1, 2, 3, 4, 0, 6]
  coarse = noise.CIFAR100_COARSE
  assert all(coarse[i] == coarse[j] for i, j in supers.items())
  assert sorted(supers.values()) == list(range(100))
  assert np.mean([coarse[i] == coarse[j] for i, j in blocks.items()]) < 0.1
  # Aquatic mammals, alphabetically: beaver, dolphin, otter, seal, whale.
  assert [supers[i] for i in (4, 30, 55, 72, 95)] == [30, 55, 72, 95, 4]
  with pytest.raises(ValueError, match='read-only'):
    coarse[0] = 1


def test_pair_swaps_take_two_classes_of_each_block():
  swaps = jax.vmap(lambda key: noise.cifar100_pair_swaps(key, 0.4))
  seen = set()
  for swap in compiled(lambda key: swaps(jax.random.split(key, 20)))(KEY):
    pairs = moves(swap)
    assert len(pairs) == 40
    assert all(pairs[j] == i and i // 5 == j // 5 for i, j in pairs.items())
    assert len({i // 5 for i in pairs}) == 20
    seen |= {(i % 5, j % 5) for i, j in pairs.items()}
  assert len(seen) == 20  # all of them occur


# --- draws -------------------------------------------------------------------


@pytest.mark.parametrize('name', GENERATORS)
def test_labels_follow_the_probabilities(name):
  clean = clean_of(name)
  draw = drawn(name)
  rows = rows_of(draw, clean)
  assert_drawn(draw.labels, rows)
  for i in np.unique(clean):
    assert_drawn(draw.labels[clean == i], rows[clean == i])
  assert draw.labels.dtype == jnp.int32
  np.testing.assert_array_equal(draw.flipped, draw.labels != clean)
  assert draw.flipped.any()
  np.testing.assert_allclose(np.sum(draw.probs, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  'wrong',
  [
    0.7 * EYE + 0.3 * np.roll(EYE, 1, axis=0),
    0.6 * EYE + 0.4 * np.roll(EYE, 1, axis=1),
    0.8 * EYE + 0.2 * np.roll(EYE, 1, axis=1),
    0.6 * EYE + 0.1,
    0.7 * EYE + 0.3 * EYE[[1, 2, 3, 3]],
  ],
  ids=['transposed', 'too much', 'too little', 'symmetric', 'one class'],
)
def test_wrong_matrices_are_found(wrong):
  """The control: what the tests of draws must not let pass."""
  labels = drawn('corrupt').labels
  assert p_value(labels, wrong[LABELS]) < SIGNIFICANCE


@pytest.mark.parametrize('name', GENERATORS)
def test_the_key_decides_the_draw(name):
  again = np.asarray(program(name)(KEY, LABELS).labels)
  np.testing.assert_array_equal(again, drawn(name).labels)
  assert (drawn(name, seed=1).labels != again).any()


@pytest.mark.slow
@pytest.mark.parametrize('name', GENERATORS)
def test_draws_are_the_same_outside_jit(name):
  draw = jax.tree.map(np.asarray, GENERATORS[name](KEY, LABELS))
  np.testing.assert_array_equal(draw.labels, drawn(name).labels)
  np.testing.assert_array_equal(draw.flipped, drawn(name).flipped)
  np.testing.assert_allclose(
    draw.probs, drawn(name).probs, rtol=1e-5, atol=1e-6
  )


# Checksums of what was drawn when the results in README were measured.
KNOWN = {
  'corrupt': 925193473,
  'fixed_count': 2235766039,
  'fixed_count_per_class': 1781418683,
  'cifar10_asymmetric_in_place': 2912374773,
  'pmd': 2337688027,
}


@pytest.mark.parametrize('name', KNOWN)
def test_keys_give_the_draws_that_they_always_gave(name):
  labels = drawn(name).labels.astype(np.uint8)
  assert zlib.crc32(labels.tobytes()) == KNOWN[name]


def keys():
  return jnp.stack([jax.random.key(1), KEY])


def over_keys(f):
  """`f` of a stack of keys and one array of labels."""
  return jax.vmap(f, (0, None))


def split(array):
  """The rows over eight devices."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.device_put(array, sharding)


# One of each code; the others are slow.
@pytest.mark.parametrize(
  'name',
  [
    'corrupt',
    'fixed_count_per_class',
    'cifar10_asymmetric_in_place',
    'part_dependent',
    'pmd',
    slow('fixed_count'),
    slow('part_dependent_shared'),
    slow('binary_pmd'),
  ],
)
def test_many_keys_on_eight_devices_equal_one_by_one(name):
  assert jax.device_count() == 8
  labels = split(LABELS)
  assert len(labels.sharding.device_set) == 8
  both = compiled(over_keys(GENERATORS[name]))(keys(), labels)
  for i, seed in enumerate((1, 0)):
    one = drawn(name, seed)
    np.testing.assert_array_equal(both.labels[i], one.labels)
    np.testing.assert_array_equal(both.flipped[i], one.flipped)
    np.testing.assert_allclose(both.probs[i], one.probs, rtol=1e-5, atol=1e-6)


def test_eight_devices_draw_the_same_of_split_images():
  draw = compiled(lambda k, x, y: noise.part_dependent(k, x, y, C, 0.4))
  eight = draw(KEY, split(IMAGES), split(LABELS))
  np.testing.assert_array_equal(drawn('part_dependent').labels, eight.labels)


def test_labels_keep_their_shape():
  labels = np.arange(12).reshape(2, 6) % C
  certain = np.roll(EYE, 1, axis=1)
  run = compiled(
    lambda y: (
      noise.corrupt(KEY, y, certain),
      noise.fixed_count(KEY, y, certain, 0.5),
    )
  )
  every, half = run(labels)
  np.testing.assert_array_equal(every.labels, (labels + 1) % C)
  assert half.labels.shape == (2, 6)
  assert half.flipped.sum() == 6


@pytest.mark.parametrize(
  ('labels', 'transition', 'error', 'name'),
  [
    ([0, 4], np.eye(4), ValueError, 'labels'),
    ([0, -1], np.eye(4), ValueError, 'labels'),
    (np.uint8([0, 255]), np.eye(4), ValueError, 'labels'),
    ([0.0, 1.0], np.eye(4), TypeError, 'labels'),
    ([0, 1], np.ones((4, 4)), ValueError, 'row 0'),
    ([0, 1], np.full((4, 4), np.nan), ValueError, 'row 0'),
    ([0, 1], np.ones((4, 3)), ValueError, 'must be'),
    ([0, 0], np.ones((1, 1)), ValueError, 'must be'),
    ([0, 1], np.eye(4) - np.eye(4)[1], ValueError, 'negative; row 0'),
  ],
)
def test_bad_input_names_the_argument(labels, transition, error, name):
  labels = np.array(labels)
  with pytest.raises(error, match=name) as raised:
    noise.corrupt(KEY, labels, transition)
  assert name == 'labels' or 'transition' in str(raised.value)
  with pytest.raises(error, match=name) as raised:
    noise.fixed_count(KEY, labels, transition, 0.5)
  assert name == 'labels' or 'replacement' in str(raised.value)


@pytest.mark.parametrize(
  ('labels', 'probs', 'error', 'name'),
  [
    ([0, 4], np.full((2, 4), 0.25), ValueError, 'labels'),
    ([[0, 1]], np.full((2, 4), 0.25), ValueError, 'labels'),
    ([0, 1, 2], np.full((2, 4), 0.25), ValueError, 'probs'),
    ([0, 1], np.full((2, 4), 0.2), ValueError, 'probs'),
    ([0, 1], np.full(4, 0.25), ValueError, 'probs'),
    ([0, 0], np.ones((2, 1)), ValueError, 'probs'),
  ],
)
def test_bad_rows_name_the_argument(labels, probs, error, name):
  with pytest.raises(error, match=name):
    noise.corrupt_each(KEY, np.array(labels), probs)


def test_small_integers_hold_labels_of_many_classes():
  labels = np.uint8([0, 255])
  run = lambda y: noise.corrupt(KEY, y, noise.pair_flip(1000, 1.0))
  draw = compiled(run)(labels)
  assert draw.labels.tolist() == [1, 256]


def test_explicit_mesh_axes_are_refused_by_name():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  put = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec('data')))
  for run in (
    lambda: noise.corrupt(KEY, put(LABELS), np.eye(C)),
    lambda: noise.corrupt_each(KEY, LABELS, put(ETA)),
    lambda: noise.part_dependent(KEY, put(IMAGES), LABELS, C, 0.4),
    lambda: noise.pmd(KEY, LABELS, put(ETA), kind=1, factor=2.0),
  ):
    with pytest.raises(
      ValueError, match=r'explicit mesh axes .*AxisType\.Auto'
    ):
      run()


# --- many numbers ------------------------------------------------------------


MANY = ['corrupt', 'fixed_count_per_class', 'pmd']  # draws of both kinds
# As if 2000 examples of 4 classes were too many: 301 rows at once.
many = functools.partial(mock.patch.object, _inputs, 'BLOCK', 301 * C)


@functools.cache
def drawn_of_many(name):
  """Of both keys. A function of its own: the generator was traced for few."""
  run = compiled(lambda k, y: GENERATORS[name](k, y))
  with many():
    return run(KEY, LABELS), run(jax.random.key(1), LABELS)


@pytest.mark.parametrize(
  'name', ['corrupt', slow('fixed_count_per_class'), 'pmd']
)
def test_many_labels_follow_the_probabilities(name):
  (draw, other), few = drawn_of_many(name), drawn(name)
  assert (draw.labels != few.labels).any()
  rows = rows_of(draw, LABELS)
  assert_drawn(draw.labels, rows)
  for i in range(C):
    assert_drawn(draw.labels[i == LABELS], rows[i == LABELS])
  np.testing.assert_allclose(draw.probs, few.probs, atol=1e-7)
  assert (other.labels != draw.labels).any()
  assert p_value(draw.labels, np.roll(rows, 1, axis=1)) < SIGNIFICANCE


@pytest.mark.parametrize('name', ['corrupt', *map(slow, MANY[1:])])
def test_many_labels_and_keys_on_eight_devices_are_the_same(name):
  run = compiled(over_keys(lambda k, y: GENERATORS[name](k, y).labels))
  with many():
    both = run(keys(), split(LABELS))
  draw, other = drawn_of_many(name)
  np.testing.assert_array_equal(draw.labels, both[1])
  np.testing.assert_array_equal(other.labels, both[0])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['corrupt', 'pmd'])
def test_many_labels_are_the_same_outside_jit(name):
  with many():
    found = GENERATORS[name](KEY, LABELS).labels
  np.testing.assert_array_equal(found, drawn_of_many(name)[0].labels)


def test_tickets_never_win_what_is_impossible():
  """Also next to a row's ends, and where rounding left a bit below zero."""
  row = np.array([0, 0.3, -1e-7, 0.7, 0])
  matrix = np.stack([np.roll(row, -i) for i in range(5)])
  labels = np.arange(N) % 5
  run = compiled(lambda y, transition: noise.corrupt(KEY, y, transition))
  with many():
    draw = run(labels, matrix)
    certain = run(labels, np.eye(5))
    shaped = run(labels.reshape(-1, 2), matrix)
  assert_drawn(draw.labels, np.maximum(matrix, 0)[labels])
  assert not certain.flipped.any()
  np.testing.assert_array_equal(shaped.labels.ravel(), draw.labels)


def temporaries(name):
  """Bytes that 200,000 labels of 1000 classes need."""
  n, c = 200_000, 1000
  labels = jax.ShapeDtypeStruct((n,), jnp.int32)
  draw, *arrays = {
    'corrupt': (noise.corrupt, jax.ShapeDtypeStruct((c, c), jnp.float32)),
    'each': (noise.corrupt_each, jax.ShapeDtypeStruct((n, c), jnp.float32)),
    'sets': (
      lambda k, y: noise.noisy_candidate_sets(k, y, c, 0.1, 0.2).candidates,
    ),
  }[name]
  program = jax.jit(draw).lower(KEY, labels, *arrays).compile()
  return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
  ('name', 'result'),
  [
    ('corrupt', 0),
    pytest.param('each', 0, marks=pytest.mark.slow),
    pytest.param('sets', 2 * 200_000 * 1000, marks=pytest.mark.slow),
  ],
)
def test_memory_does_not_grow_with_labels_times_classes(name, result):
  """Five arrays of 2e8 numbers were 4 GB here, and seven of `pmd` 5.6 GB."""
  assert temporaries(name) < 8 * 4 * _inputs.BLOCK + result


# --- fixed counts ------------------------------------------------------------


# In Python int(.5005 * 2000) is 1000.
WANTED = {0.5005: 1001, 0.0035: 7, 0.3999: 799, 0.3: 600, 0.0: 0, 1.0: N}
NEXT = np.roll(EYE, 1, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize('rate', WANTED)
def test_exactly_the_integer_part_is_chosen(rate):
  draw = noise.fixed_count(KEY, LABELS, NEXT, rate)
  assert np.asarray(draw.flipped).sum() == WANTED[rate]
  wrong = 1 - np.diag(draw.probs)
  np.testing.assert_allclose(wrong, WANTED[rate] / N, atol=1e-6)


def test_exactly_the_integer_part_is_chosen_of_traced_rates():
  run = jax.vmap(lambda r: noise.fixed_count(KEY, LABELS, NEXT, r))
  draw = compiled(run)(np.float32(list(WANTED)))
  counts = np.array(list(WANTED.values()))
  np.testing.assert_array_equal(draw.flipped.sum(1), counts)
  wrong = 1 - np.diagonal(draw.probs, axis1=1, axis2=2)
  expected = np.repeat(counts[:, None] / N, C, axis=1)
  np.testing.assert_allclose(wrong, expected, atol=1e-6)
  np.testing.assert_array_equal(draw.labels[-1], (LABELS + 1) % C)


def test_traced_rates_count_exactly_at_the_size_of_cifar():
  labels, flip = np.zeros(45_000, np.int32), np.eye(2)[::-1]
  count = compiled(
    jax.vmap(lambda r: noise.fixed_count(KEY, labels, flip, r).flipped.sum())
  )
  rates = np.arange(1, 20, dtype=np.float32) / np.float32(20)
  np.testing.assert_array_equal(count(rates), np.arange(1, 20) * 2250)


SIZES = [10, 25, 7, N - 42]


def test_counts_per_class_are_exact():
  labels = np.repeat(np.arange(C), SIZES)

  @compiled
  def run(labels):
    make = functools.partial(noise.fixed_count, per_class=True)
    draw = make(KEY, labels, NEXT, 0.3)
    counted = noise.empirical_transition(labels, draw.labels, C)
    # APL on MNIST: the same number of each class, whatever its size.
    return draw, counted, make(KEY, labels, NEXT, 5 / np.float32(SIZES))

  draw, counted, five = run(labels)
  counts = np.bincount(labels[draw.flipped])
  assert counts.tolist() == [3, 7, 2, 587]
  np.testing.assert_allclose(
    1 - np.diag(draw.probs), [3 / 10, 7 / 25, 2 / 7, 587 / 1958], rtol=1e-5
  )
  np.testing.assert_allclose(draw.probs, counted, rtol=1e-5)
  assert np.bincount(labels[five.flipped]).tolist() == [5] * C


def test_all_examples_are_chosen_alike():
  labels, flip = np.arange(12) % 3, np.roll(np.eye(3), 1, axis=1)
  draw = lambda k: noise.fixed_count(k, labels, flip, 0.5, per_class=True)
  run = compiled(
    lambda key: jax.vmap(draw)(jax.random.split(key, 4000)).flipped
  )
  flipped = run(KEY)
  # 4000 draws of probability .5: five standard deviations.
  np.testing.assert_allclose(flipped.mean(0), 0.5, atol=0.04)
  # Of the four of a class, all six pairs.
  assert len(np.unique(flipped[:, labels == 1], axis=0)) == 6


def test_a_class_without_examples_has_no_count():
  labels, flip = np.array([0, 2]), np.roll(np.eye(3), 1, axis=1)
  draw = functools.partial(noise.fixed_count, KEY)
  with pytest.raises(ValueError, match=r'labels has no example .* \[1\]'):
    draw(labels, flip, 0.5, per_class=True)
  draw = compiled(lambda y: draw(y, flip, 0.5, per_class=True))(labels)
  np.testing.assert_array_equal(draw.probs[1], [0, 1, 0])


@pytest.mark.parametrize(
  ('rate', 'per_class'),
  [(1.1, False), (-0.1, True), ([0.1, 0.1], False), ([0.1] * 3, True)],
)
def test_rates_of_counts_are_checked(rate, per_class):
  with pytest.raises(ValueError, match='rate'):
    noise.fixed_count(
      KEY, [0, 1], np.eye(2)[::-1], np.array(rate), per_class=per_class
    )
  with pytest.raises(ValueError, match='rate'):
    noise.fixed_count(
      KEY, [0, 1], np.eye(2), np.array([0.1, 1.1]), per_class=True
    )


@compiled
def in_place(labels, rate):
  return noise.cifar10_asymmetric_in_place(KEY, labels, rate)


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.4, 1.0])
def test_in_place_noise_turns_cats_back(rate):
  labels = np.arange(N) % 10
  draw = in_place(labels, rate)
  assert moves(draw.probs).keys() == (
    {2, 3, 4, 5, 9} if 0 < rate < 1 else ({2, 4, 5, 9} if rate else set())
  )
  wrong = 1 - np.diag(draw.probs)
  expected = [0, 0, rate, rate * (1 - rate), rate, rate, 0, 0, 0, rate]
  np.testing.assert_allclose(wrong, expected, atol=1e-6)
  assert_drawn(draw.labels, draw.probs[labels])
  np.testing.assert_array_equal(draw.flipped, draw.labels != labels)
  # The official loop, in numpy: its rates are these, class by class.
  official, rng = labels.copy(), np.random.default_rng(0)
  for i in range(10):
    index = rng.permutation(np.flatnonzero(official == i))
    target = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}.get(i, i)
    official[index[: int(np.ceil(rate * len(index)))]] = target
  assert_drawn(official, draw.probs[labels])


def test_in_place_noise_checks_its_input():
  with pytest.raises(ValueError, match='labels'):
    noise.cifar10_asymmetric_in_place(KEY, [10], 0.1)
  with pytest.raises(ValueError, match='rate'):
    noise.cifar10_asymmetric_in_place(KEY, [1], 1.1)


# --- what a draw turned out to be --------------------------------------------


def test_empirical_transition_and_rate():
  clean, draw = LABELS, drawn('corrupt')
  count = compiled(lambda *labels: noise.empirical_transition(*labels, C))
  counted = count(clean, draw.labels)
  np.testing.assert_allclose(counted, draw.probs, atol=0.1)
  np.testing.assert_allclose(counted.sum(1), 1, rtol=1e-6)
  by_hand = [
    [np.sum((clean == i) & (draw.labels == j)) for j in range(C)]
    for i in range(C)
  ]
  np.testing.assert_allclose(counted, np.array(by_hand) / (N // C), rtol=1e-6)
  rate = noise.noise_rate(clean, draw.labels)
  assert isinstance(rate, float)
  assert rate == pytest.approx(float(draw.flipped.mean()))
  assert noise.noise_rate([1], [1]) == 0


@pytest.mark.parametrize(
  ('clean', 'noisy', 'error', 'name'),
  [
    ([0, 0], [0, 1], ValueError, 'clean'),
    ([0, 2], [0, 1], ValueError, 'clean'),
    ([0, 1], [0, 2], ValueError, 'noisy'),
    ([0, 1], [0.0, 1.0], TypeError, 'noisy'),
    ([0, 1], [0, 1, 1], ValueError, 'clean and noisy'),
  ],
)
def test_counts_of_bad_labels(clean, noisy, error, name):
  with pytest.raises(error, match=name):
    noise.empirical_transition(np.array(clean), np.array(noisy), 2)


def test_empirical_transition_of_an_empty_class_inside_jit_is_zero():
  count = jax.jit(lambda y: noise.empirical_transition(y, y, 2))
  np.testing.assert_array_equal(count(np.zeros(3, int)), [[1, 0], [0, 0]])


@pytest.mark.parametrize(
  ('clean', 'noisy'), [([0, 1], [0, 1, 1]), ([], []), ([[0, 1]], [0, 1])]
)
def test_rates_of_bad_labels(clean, noisy):
  with pytest.raises(ValueError, match='clean'):
    noise.noise_rate(clean, noisy)


# --- extremes ----------------------------------------------------------------


@compiled
def smallest(rate):
  """What all draws give for one example of two classes."""
  one, x, weights = np.array([1]), np.ones((1, 1)), np.ones((2, 1, 2))
  found = {}
  for make in (noise.symmetric, noise.pair_flip):
    drawn = noise.corrupt(KEY, [0], make(2, rate))
    counted = noise.fixed_count(KEY, one, make(2, 1.0), rate)
    found[make.__name__] = drawn.labels, counted.labels, counted.flipped
  rates = jnp.reshape(rate, [1])
  found['probs'] = noise.part_dependent_probs(x, one, rates, weights)
  found['parts'] = noise.part_dependent(KEY, x, one, 2, rate).labels
  found['sets'] = noise.candidate_sets(KEY, one, 2, rate).candidates
  noisy = noise.noisy_candidate_sets(KEY, one, 2, rate, 1.0)
  return found | {'noisy sets': noisy.candidates}


@pytest.mark.parametrize('rate', [0.0, 1.0])
def test_one_example_of_two_classes(rate):
  """Rates 0 and 1 are certain, and one example is enough."""
  wrong, found = int(rate), smallest(rate)
  for make in ('symmetric', 'pair_flip'):
    drawn, labels, flipped = found[make]
    assert drawn.tolist() == [wrong]
    assert labels.tolist() == [1 - wrong]
    assert flipped.tolist() == [bool(wrong)]
  np.testing.assert_allclose(found['probs'], [[wrong, 1 - wrong]])
  assert found['parts'].shape == (1,)
  assert found['sets'].tolist() == [[bool(wrong), True]]
  assert found['noisy sets'].tolist() == [[True, bool(wrong)]]


def test_no_examples():
  none = np.zeros(0, int)
  run = compiled(
    lambda x, y: (
      noise.corrupt(KEY, y, np.eye(2)).labels,
      noise.fixed_count(KEY, y, np.eye(2), 0.5).labels,
      noise.part_dependent(KEY, x, y, 2, 0.1).probs,
    )
  )
  shapes = [found.shape for found in run(np.zeros((0, 3)), none)]
  assert shapes == [(0,), (0,), (0, 2)]
