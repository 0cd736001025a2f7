"""Noise generators: matrices, draws, instance dependence, sets and bags."""

import functools
import warnings
import zlib

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
def drawn(name, seed=0):
  """The draw of a generator; many tests look at the same ones."""
  return GENERATORS[name](jax.random.key(seed), LABELS)


def clean_of(name):
  return CLEAN.get(name, LABELS)


def rows_of(draw, clean):
  """The probabilities [n, c] that each label was drawn from."""
  probs = np.asarray(draw.probs)
  return probs if len(probs) == len(clean) else probs[clean]


# --- matrices ----------------------------------------------------------------


@pytest.mark.parametrize('name', MATRICES)
@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
def test_rows_are_probabilities(name, rate):
  transition = np.asarray(MATRICES[name](rate))
  assert (transition >= 0).all()
  np.testing.assert_allclose(transition.sum(1), 1, rtol=1e-6)
  wrong = 1 - np.diag(transition)
  factor = (C - 1) / C if name == 'symmetric_inclusive' else 1
  assert wrong.max() == pytest.approx(rate * factor, abs=1e-6)
  noisy = np.asarray(MATRICES[name](0.5 if name != 'pair_flip' else 0.4))
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
  rates = jnp.array([0.0, 0.2, 1.0])
  together = jax.vmap(MATRICES[name])(rates)
  one_by_one = jnp.stack([MATRICES[name](r) for r in rates])
  np.testing.assert_allclose(together, one_by_one, atol=1e-7)


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
  transition = noise.symmetric_inclusive(10, 0.4)
  np.testing.assert_allclose(1 - np.diag(transition), 0.36, rtol=1e-6)
  np.testing.assert_allclose(transition, noise.symmetric(10, 0.36), atol=1e-7)


def test_pair_flip_goes_to_the_next_class():
  expected = [[0.7, 0.3, 0], [0, 0.7, 0.3], [0.3, 0, 0.7]]
  np.testing.assert_allclose(noise.pair_flip(3, 0.3), expected, rtol=1e-6)


def test_pair_flip_warns_when_the_clean_class_is_not_the_likeliest():
  for rate in (0.5, np.float32(0.7)):
    with pytest.warns(UserWarning, match='pair_flip'):
      noise.pair_flip(3, rate)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    noise.pair_flip(3, 0.49)
    noise.pair_flip(3, 1.0)
    jax.vmap(lambda r: noise.pair_flip(3, r))(jnp.array([0.7]))


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
  assert moves(noise.cifar10_asymmetric(0.4)) == cifar
  mnist = {7: 1, 2: 7, 3: 8, 5: 6, 6: 5}
  assert moves(noise.mnist_asymmetric(0.4)) == mnist


def test_index_blocks_are_not_superclasses():
  blocks = moves(noise.cifar100_index_blocks(0.4))
  supers = moves(noise.cifar100_superclasses(0.4))
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
  seen = set()
  for seed in range(20):
    pairs = moves(noise.cifar100_pair_swaps(jax.random.key(seed), 0.4))
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
    noise.pair_flip(C, 0.3).T,
    noise.pair_flip(C, 0.4),
    noise.pair_flip(C, 0.2),
    noise.symmetric(C, 0.3),
    noise.class_map([1, 2, 3, 3], 0.3),
  ],
  ids=['transposed', 'too much', 'too little', 'symmetric', 'one class'],
)
def test_wrong_matrices_are_found(wrong):
  """The control: what the tests of draws must not let pass."""
  labels = drawn('corrupt').labels
  assert p_value(labels, np.asarray(wrong)[LABELS]) < SIGNIFICANCE


@pytest.mark.parametrize('name', GENERATORS)
def test_the_key_decides_the_draw(name):
  again = GENERATORS[name](KEY, LABELS)
  np.testing.assert_array_equal(again.labels, drawn(name).labels)
  assert (drawn(name, seed=1).labels != again.labels).any()


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
  labels = np.asarray(drawn(name).labels, np.uint8)
  assert zlib.crc32(labels.tobytes()) == KNOWN[name]


@pytest.mark.parametrize('name', GENERATORS)
def test_many_keys_at_once_equal_one_by_one(name):
  keys = jnp.stack([jax.random.key(seed) for seed in (1, 0)])
  both = jax.vmap(lambda k: GENERATORS[name](k, LABELS).labels)(keys)
  np.testing.assert_array_equal(both[0], drawn(name, seed=1).labels)
  np.testing.assert_array_equal(both[1], drawn(name).labels)


# Compiled without optimization, which halves the time of these tests.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def split(array):
  """The rows over eight devices."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.device_put(array, sharding)


@pytest.mark.parametrize('name', GENERATORS)
def test_eight_devices_draw_the_same(name):
  assert jax.device_count() == 8
  one, labels = drawn(name), split(LABELS)
  assert len(labels.sharding.device_set) == 8
  eight = jit(GENERATORS[name])(KEY, labels)
  np.testing.assert_array_equal(one.labels, eight.labels)
  np.testing.assert_array_equal(one.flipped, eight.flipped)
  np.testing.assert_allclose(one.probs, eight.probs, rtol=1e-5, atol=1e-6)


def test_eight_devices_draw_the_same_of_split_images():
  draw = jit(lambda k, x, y: noise.part_dependent(k, x, y, C, 0.4))
  eight = draw(KEY, split(IMAGES), split(LABELS))
  np.testing.assert_array_equal(drawn('part_dependent').labels, eight.labels)


def test_labels_keep_their_shape():
  labels = np.arange(12).reshape(2, 6) % C
  certain = noise.pair_flip(C, 1.0)
  assert noise.corrupt(KEY, labels, certain).labels.tolist() == (
    ((labels + 1) % C).tolist()
  )
  draw = noise.fixed_count(KEY, labels, certain, 0.5)
  assert draw.labels.shape == (2, 6)
  assert draw.flipped.sum() == 6


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
  draw = noise.corrupt(KEY, labels, noise.pair_flip(1000, 1.0))
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


@pytest.fixture
def many(monkeypatch):
  """As if 2000 examples of 4 classes were too many: 301 rows at once."""
  monkeypatch.setattr(_inputs, 'BLOCK', 301 * C)


MANY = ['corrupt', 'fixed_count_per_class', 'pmd']  # draws of both kinds


@pytest.mark.parametrize('name', MANY)
def test_many_labels_follow_the_probabilities(name, many):
  draw = GENERATORS[name](KEY, LABELS)
  few = drawn(name)
  assert (draw.labels != few.labels).any()
  rows = rows_of(draw, LABELS)
  assert_drawn(draw.labels, rows)
  for i in range(C):
    assert_drawn(draw.labels[i == LABELS], rows[i == LABELS])
  np.testing.assert_allclose(draw.probs, few.probs, atol=1e-7)
  assert (
    GENERATORS[name](jax.random.key(1), LABELS).labels != draw.labels
  ).any()
  assert p_value(draw.labels, np.roll(rows, 1, axis=1)) < SIGNIFICANCE


@pytest.mark.parametrize('name', MANY)
def test_many_labels_are_the_same_in_every_mode(name, many):
  draw = GENERATORS[name](KEY, LABELS)
  # A function of its own: the generator itself was traced before, for few.
  eight = jit(lambda k, y: GENERATORS[name](k, y))(KEY, split(LABELS))
  np.testing.assert_array_equal(draw.labels, eight.labels)
  keys = jnp.stack([jax.random.key(1), KEY])
  both = jax.vmap(lambda k: GENERATORS[name](k, LABELS).labels)(keys)
  np.testing.assert_array_equal(draw.labels, both[1])


def test_tickets_never_win_what_is_impossible(many):
  """Also next to a row's ends, and where rounding left a bit below zero."""
  row = np.array([0, 0.3, -1e-7, 0.7, 0])
  matrix = np.stack([np.roll(row, -i) for i in range(5)])
  labels = np.arange(N) % 5
  draw = noise.corrupt(KEY, labels, matrix)
  assert_drawn(draw.labels, np.maximum(matrix, 0)[labels])
  certain = noise.corrupt(KEY, labels, np.eye(5))
  assert not certain.flipped.any()
  shaped = noise.corrupt(KEY, labels.reshape(-1, 2), matrix)
  np.testing.assert_array_equal(shaped.labels.ravel(), draw.labels)


def test_memory_does_not_grow_with_labels_times_classes():
  """Five arrays of 2e8 numbers were 4 GB here, and seven of `pmd` 5.6 GB."""
  n, c = 200_000, 1000
  labels = jax.ShapeDtypeStruct((n,), jnp.int32)
  matrix = jax.ShapeDtypeStruct((c, c), jnp.float32)
  rows = jax.ShapeDtypeStruct((n, c), jnp.float32)

  def temporaries(draw, *arrays):
    compiled = jit(draw).lower(KEY, *arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  block = 4 * _inputs.BLOCK
  assert temporaries(noise.corrupt, labels, matrix) < 8 * block
  assert temporaries(noise.corrupt_each, labels, rows) < 8 * block
  sets = lambda k, y: noise.noisy_candidate_sets(k, y, c, 0.1, 0.2).candidates
  assert temporaries(sets, labels) < 8 * block + 2 * n * c


# --- fixed counts ------------------------------------------------------------


def test_exactly_the_integer_part_is_chosen():
  flip = noise.pair_flip(C, 1.0)
  # In Python int(.5005 * 2000) is 1000.
  wanted = {0.5005: 1001, 0.0035: 7, 0.3999: 799, 0.3: 600, 0.0: 0, 1.0: N}
  for rate, count in wanted.items():
    draw = noise.fixed_count(KEY, LABELS, flip, rate)
    assert draw.flipped.sum() == count
    np.testing.assert_allclose(1 - np.diag(draw.probs), count / N, atol=1e-6)
  rates = jnp.array(list(wanted))
  traced = jax.vmap(lambda r: noise.fixed_count(KEY, LABELS, flip, r))(rates)
  assert traced.flipped.sum(1).tolist() == list(wanted.values())
  np.testing.assert_array_equal(traced.labels[-1], (LABELS + 1) % C)


def test_traced_rates_count_exactly_at_the_size_of_cifar():
  labels, flip = jnp.zeros(45_000, jnp.int32), noise.pair_flip(2, 1.0)
  count = jit(
    jax.vmap(lambda r: noise.fixed_count(KEY, labels, flip, r).flipped.sum())
  )
  np.testing.assert_array_equal(
    count(jnp.arange(1, 20) / 20), np.arange(1, 20) * 2250
  )


def test_counts_per_class_are_exact():
  labels = np.repeat(np.arange(C), [10, 25, 7, N - 42])
  flip = noise.pair_flip(C, 1.0)
  draw = noise.fixed_count(KEY, labels, flip, 0.3, per_class=True)
  counts = np.bincount(labels[np.asarray(draw.flipped)])
  assert counts.tolist() == [3, 7, 2, 587]
  np.testing.assert_allclose(
    1 - np.diag(draw.probs), [3 / 10, 7 / 25, 2 / 7, 587 / 1958], rtol=1e-5
  )
  np.testing.assert_allclose(
    draw.probs, noise.empirical_transition(labels, draw.labels, C), rtol=1e-5
  )
  # APL on MNIST: the same number of each class, whatever its size.
  rates = 5 / np.bincount(labels)
  draw = noise.fixed_count(KEY, labels, flip, rates, per_class=True)
  assert np.bincount(labels[np.asarray(draw.flipped)]).tolist() == [5] * C


def test_all_examples_are_chosen_alike():
  keys = jax.random.split(KEY, 4000)
  labels, flip = np.arange(12) % 3, noise.pair_flip(3, 1.0)
  flipped = jax.vmap(
    lambda k: noise.fixed_count(k, labels, flip, 0.5, per_class=True).flipped
  )(keys)
  # 4000 draws of probability .5: five standard deviations.
  np.testing.assert_allclose(flipped.mean(0), 0.5, atol=0.04)
  # Of the four of a class, all six pairs.
  assert len(np.unique(np.asarray(flipped)[:, labels == 1], axis=0)) == 6


def test_a_class_without_examples_has_no_count():
  with pytest.raises(ValueError, match=r'labels has no example .* \[1\]'):
    noise.fixed_count(
      KEY, np.array([0, 2]), noise.pair_flip(3, 1.0), 0.5, per_class=True
    )
  noise.fixed_count(KEY, np.array([0, 2]), noise.pair_flip(3, 1.0), 0.5)
  draw = jax.jit(
    lambda y: noise.fixed_count(
      KEY, y, noise.pair_flip(3, 1.0), 0.5, per_class=True
    )
  )(np.array([0, 2]))
  np.testing.assert_array_equal(draw.probs[1], [0, 1, 0])


@pytest.mark.parametrize(
  ('rate', 'per_class'),
  [(1.1, False), (-0.1, True), ([0.1, 0.1], False), ([0.1] * 3, True)],
)
def test_rates_of_counts_are_checked(rate, per_class):
  with pytest.raises(ValueError, match='rate'):
    noise.fixed_count(
      KEY, [0, 1], noise.pair_flip(2, 1.0), np.array(rate), per_class=per_class
    )
  with pytest.raises(ValueError, match='rate'):
    noise.fixed_count(
      KEY, [0, 1], np.eye(2), np.array([0.1, 1.1]), per_class=True
    )


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.4, 1.0])
def test_in_place_noise_turns_cats_back(rate):
  labels = np.arange(N) % 10
  draw = noise.cifar10_asymmetric_in_place(KEY, labels, rate)
  assert moves(draw.probs).keys() == (
    {2, 3, 4, 5, 9} if 0 < rate < 1 else ({2, 4, 5, 9} if rate else set())
  )
  wrong = 1 - np.diag(draw.probs)
  expected = [0, 0, rate, rate * (1 - rate), rate, rate, 0, 0, 0, rate]
  np.testing.assert_allclose(wrong, expected, atol=1e-6)
  assert_drawn(draw.labels, np.asarray(draw.probs)[labels])
  np.testing.assert_array_equal(draw.flipped, draw.labels != labels)
  # The official loop, in numpy: its rates are these, class by class.
  official, rng = labels.copy(), np.random.default_rng(0)
  for i in range(10):
    index = rng.permutation(np.flatnonzero(official == i))
    target = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}.get(i, i)
    official[index[: int(np.ceil(rate * len(index)))]] = target
  assert_drawn(official, np.asarray(draw.probs)[labels])


def test_in_place_noise_checks_its_input():
  with pytest.raises(ValueError, match='labels'):
    noise.cifar10_asymmetric_in_place(KEY, [10], 0.1)
  with pytest.raises(ValueError, match='rate'):
    noise.cifar10_asymmetric_in_place(KEY, [1], 1.1)


# --- what a draw turned out to be --------------------------------------------


def test_empirical_transition_and_rate():
  clean, draw = LABELS, drawn('corrupt')
  counted = noise.empirical_transition(clean, draw.labels, C)
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


@pytest.mark.parametrize('rate', [0.0, 1.0])
def test_one_example_of_two_classes(rate):
  """Rates 0 and 1 are certain, and one example is enough."""
  wrong = int(rate)
  for make in (noise.symmetric, noise.pair_flip):
    assert noise.corrupt(KEY, [0], make(2, rate)).labels.tolist() == [wrong]
    draw = noise.fixed_count(KEY, [1], make(2, 1.0), rate)
    assert draw.labels.tolist() == [1 - wrong]
    assert draw.flipped.tolist() == [bool(wrong)]
  x, labels = np.ones((1, 1)), np.array([1])
  weights = np.ones((2, 1, 2))
  probs = noise.part_dependent_probs(x, labels, np.array([rate]), weights)
  np.testing.assert_allclose(probs, [[wrong, 1 - wrong]])
  assert noise.part_dependent(KEY, x, labels, 2, rate).labels.shape == (1,)
  sets = noise.candidate_sets(KEY, labels, 2, rate)
  assert sets.candidates.tolist() == [[bool(wrong), True]]
  sets = noise.noisy_candidate_sets(KEY, labels, 2, rate, 1.0)
  assert sets.candidates.tolist() == [[True, bool(wrong)]]


def test_no_examples():
  none = np.zeros(0, int)
  assert noise.corrupt(KEY, none, np.eye(2)).labels.shape == (0,)
  assert noise.fixed_count(KEY, none, np.eye(2), 0.5).labels.shape == (0,)
  draw = noise.part_dependent(KEY, np.zeros((0, 3)), none, 2, 0.1)
  assert draw.probs.shape == (0, 2)
