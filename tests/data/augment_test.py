"""Augmentation: PIL's operations, the published distributions, any devices."""

import functools
import itertools
import re

from cost import slow
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from PIL import Image, ImageEnhance, ImageOps
import pytest

from jnl.base import Aux, example_keys, global_mean
from jnl.data import augment
from jnl.data.augment import OPS, distort
from jnl.data.augment import _policies as policies
from jnl.nets import MLP, from_linen
from jnl.steps import from_loss, model_keys
from jnl.train import fit

KEY = jax.random.key(0)
INDEX = np.arange(100, 116)
KEYS = jax.jit(example_keys)(KEY, np.arange(2000))
FUNCTIONS = {
  'pad_crop': augment.pad_crop,
  'flip': augment.flip,
  'cutout': functools.partial(augment.cutout, size=4),
  'gaussian_noise': functools.partial(augment.gaussian_noise, scale=0.1),
  'feature_dropout': augment.feature_dropout,
  'rand_augment': functools.partial(augment.rand_augment, ops=1),
  'fixmatch_augment': functools.partial(
    augment.fixmatch_augment, ops=1, sizes=(2, 6)
  ),
  'auto_augment': functools.partial(
    augment.auto_augment, policy=[[(name, 0.9, 7)] for name in OPS]
  ),
}
AUGMENTATIONS = {
  'images': augment.compose(
    *(FUNCTIONS[name] for name in ('pad_crop', 'flip', 'cutout'))
  ),
  'vectors': augment.compose(
    *(FUNCTIONS[name] for name in ('gaussian_noise', 'feature_dropout'))
  ),
  'rand_augment': FUNCTIONS['rand_augment'],
  'fixmatch_augment': FUNCTIONS['fixmatch_augment'],
  'auto_augment': FUNCTIONS['auto_augment'],
}
every = pytest.mark.parametrize('name', AUGMENTATIONS)
every_function = pytest.mark.parametrize('name', FUNCTIONS)


def images(b=16, h=8, w=8, c=3, seed=0):
  """Images of 256 levels."""
  levels = np.random.default_rng(seed).integers(0, 256, (b, h, w, c))
  return (levels / 255).astype(np.float32)


def viewed(names=tuple(AUGMENTATIONS)):
  """(index, x) -> the views of all these, for a program of them together."""
  return lambda index, x: {
    name: AUGMENTATIONS[name](example_keys(KEY, index), x) for name in names
  }


one_device = jax.jit(viewed())


@functools.cache
def on_one_device(case):
  """The views of the images, of them in another order, ..."""
  x, index = images(), INDEX
  if case == 'ordered':
    order = np.random.default_rng(1).permutation(16)
    index, x = index[order], x[order]
  elif case == 'other images':
    x[1:] = 0.25
  elif case == 'other examples':
    index = index + 50
  elif case == 'constant':
    levels = np.resize(np.float32([0, 1, 0.3, 1e-7]), 16)
    x = np.broadcast_to(levels[:, None, None, None], x.shape)
  return jax.device_get(one_device(index, x))


# --- the contract ------------------------------------------------------------


# What rand_augment does, fixmatch_augment does too: once is enough on devices.
@pytest.mark.parametrize(
  ('how', 'names'),
  [
    slow('jit', ('images', 'vectors', 'auto_augment')),
    pytest.param('jit', ('fixmatch_augment',), marks=pytest.mark.slow),
    pytest.param(
      'shard_map',
      ('images', 'vectors', 'auto_augment', 'fixmatch_augment'),
      marks=pytest.mark.slow,
    ),
  ],
  ids=['jit', 'jit_fixmatch', 'shard_map'],
)
def test_eight_devices_give_what_one_gives(how, names):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('data'))
  f = viewed(names)
  if how == 'shard_map':
    f = jax.shard_map(f, mesh=mesh, in_specs=P('data'), out_specs=P('data'))
  arguments = jax.device_put((INDEX, images()), split)
  compiled = jax.jit(f).lower(*arguments).compile()
  for name, found in compiled(*arguments).items():
    assert found.sharding.is_equivalent_to(split, found.ndim), name
    expected = on_one_device('images')[name]
    np.testing.assert_array_equal(found, expected, name)
  collective = r'all-(gather|reduce|to-all)|collective-permute'
  assert not re.search(collective, compiled.as_text())


@every
def test_a_view_is_its_key_and_example_alone(name):
  together = on_one_device('images')[name]
  again = jax.device_get(one_device(INDEX, images()))[name]
  np.testing.assert_array_equal(together, again)
  order = np.random.default_rng(1).permutation(16)
  np.testing.assert_array_equal(on_one_device('ordered')[name], together[order])
  np.testing.assert_array_equal(
    on_one_device('other images')[name][0], together[0]
  )
  assert (on_one_device('other examples')[name] != together).any()


@pytest.mark.parametrize(
  'name', ['images', pytest.param('auto_augment', marks=pytest.mark.slow)]
)
def test_one_example_alone(name):
  alone = jax.jit(viewed((name,)))(INDEX[3:4], images()[3:4])[name]
  np.testing.assert_array_equal(alone[0], on_one_device('images')[name][3])


@pytest.mark.parametrize('name', sorted(set(AUGMENTATIONS) - {'vectors'}))
def test_values_stay_in_range_and_what_is_constant_stays_finite(name):
  for case in ('images', 'constant'):
    view = on_one_device(case)[name]
    assert np.isfinite(view).all()
    assert view.min() >= 0
    assert view.max() <= 1


@every_function
def test_shape_and_dtype_are_kept(name):
  f = FUNCTIONS[name]
  for dtype, shape in (
    (jnp.float32, (1, 6, 9, 1)),
    (jnp.bfloat16, (2, 8, 8, 3)),
  ):
    out = jax.eval_shape(f, KEYS[: shape[0]], np.zeros(shape, dtype))
    assert (out.shape, out.dtype) == (shape, dtype)


def test_float64_stays():
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(0), 2)
    x = np.float64(images(2))
    for name, f in FUNCTIONS.items():
      out = jax.eval_shape(f, keys, x)
      assert (out.shape, out.dtype) == (x.shape, x.dtype), name


# --- crops, flips, holes, noise ----------------------------------------------


PADDING = 4
CROPPED = 1 + np.arange(7 * 6 * 2, dtype=np.float32).reshape(7, 6, 2)
HOLE_FILL = np.float32([0.0, 0.5, 1.0])
HOLE_SIZES = (1, 4, 5)


@functools.cache
def drawn():
  """What 2000 examples get of each, in one program."""

  @jax.jit
  def program(keys, rows, holed):
    repeated = jnp.broadcast_to(CROPPED, (2000, *CROPPED.shape))
    ones = jnp.ones((2000, 10), jnp.float32)
    wide = jnp.zeros((2000, 40, 40, 1))
    composed = augment.compose(lambda keys, x: x, augment.flip)
    return {
      'crops': {
        mode: augment.pad_crop(keys, repeated, padding=PADDING, mode=mode)
        for mode in ('reflect', 'constant')
      },
      'flips': [augment.flip(keys, rows, rate=r) for r in (0.5, 1, 1 / 3)],
      'traced': augment.flip(keys, rows, rate=jnp.float32(1 / 3)),
      'default': augment.flip(keys, rows),
      'holes': {
        size: augment.cutout(keys, holed, size=size, fill=HOLE_FILL)
        for size in HOLE_SIZES
      },
      'sizes': augment.cutout(
        keys,
        wide,
        size=np.arange(2000) % 9,
        fill=1.0,
      ).sum((1, 2)),
      'fixmatch': augment.fixmatch_augment(
        keys, wide + 0.25, ops=0, sizes=(3, 5), cutout_fill=1.0
      ),
      'noise': augment.gaussian_noise(keys, ones, scale=0.3) - ones,
      'dropped': augment.feature_dropout(keys, ones, rate=0.2),
      'twice': augment.compose(augment.flip, augment.flip)(keys, rows),
      'second': composed(keys, rows),
      'folded': augment.flip(
        jax.vmap(jax.random.fold_in, (0, None))(keys, 1), rows
      ),
    }

  return jax.device_get(program(KEYS, ROWS, HOLED))


ROWS = images(2000, 1, 4, 1)
HOLED = np.full((2000, 8, 6, 3), 0.25, np.float32)


@pytest.mark.parametrize('mode', ['reflect', 'constant'])
def test_crops_are_numpys_and_all_places_are_reached(mode):
  h, w, _ = CROPPED.shape
  around = [(PADDING, PADDING), (PADDING, PADDING), (0, 0)]
  padded = np.pad(CROPPED, around, mode)
  places = itertools.product(range(2 * PADDING + 1), repeat=2)
  known = [padded[i : i + h, j : j + w].tobytes() for i, j in places]
  assert len(set(known)) == 81
  found = [known.index(crop.tobytes()) for crop in drawn()['crops'][mode]]
  counts = np.bincount(found, minlength=81)
  # Expected 24.7 with a standard deviation of 4.9.
  assert counts.min() >= 3
  assert counts.max() <= 50


@functools.cache
def untouched():
  """Images after each function with nothing to do, by numbers that are traced.

  RandAugment of the operations that have a strength is the last one.
  """

  @jax.jit
  def program(keys, x, zero, none):
    return [
      augment.pad_crop(keys, x, padding=0),
      augment.flip(keys, x, rate=zero),
      augment.cutout(keys, x, size=none),
      augment.gaussian_noise(keys, x, scale=zero),
      augment.feature_dropout(keys, x, rate=zero),
      augment.rand_augment(keys, x, ops=0),
      augment.fixmatch_augment(keys, x, ops=1, rate=zero, sizes=(0, 0)),
      augment.auto_augment(keys, x, policy=((('invert', 0.0, 9),),)),
      augment.compose()(keys, x),
      augment.rand_augment(keys, x, ops=1, magnitude=zero, names=tuple(ENDS)),
    ]

  return jax.device_get(program(KEYS[:16], images(), np.float32(0), 0))


def test_nothing_happens_where_nothing_should():
  for view in untouched()[:-1]:
    np.testing.assert_array_equal(view, images())


def test_hyperparameters_may_be_traced():
  np.testing.assert_allclose(untouched()[-1], images(), atol=1e-6)


def test_half_of_the_images_are_flipped():
  mirrored = ROWS[:, :, ::-1]
  half, always, third = drawn()['flips']
  np.testing.assert_array_equal(drawn()['default'], half)
  flipped = (half == mirrored).all((1, 2, 3))
  assert (flipped | (half == ROWS).all((1, 2, 3))).all()
  assert abs(flipped.mean() - 0.5) < 0.045, 'four standard deviations'
  np.testing.assert_array_equal(always, mirrored)
  np.testing.assert_array_equal(drawn()['traced'], third)
  assert abs((third == mirrored).all((1, 2, 3)).mean() - 1 / 3) < 0.045


@pytest.mark.parametrize('size', HOLE_SIZES)
def test_holes_are_squares_around_any_pixel(size):
  view = drawn()['holes'][size]
  holes = (view != HOLED).all(3)
  np.testing.assert_array_equal(
    view, np.where(holes[..., None], HOLE_FILL, HOLED)
  )
  h, w = HOLED.shape[1:3]
  expected = set()
  for i, j in itertools.product(range(h), range(w)):
    hole = np.zeros((h, w), bool)
    top, left = i - size // 2, j - size // 2
    hole[max(0, top) : top + size, max(0, left) : left + size] = True
    expected.add(hole.tobytes())
  assert {hole.tobytes() for hole in holes} == expected


def test_sizes_of_holes_may_differ_by_example():
  areas, sizes = drawn()['sizes'], np.arange(2000) % 9
  whole = np.array([areas[sizes == s].max() for s in range(9)])
  np.testing.assert_array_equal(whole, np.arange(9) ** 2)


def test_noise_is_normal_and_dropout_keeps_the_mean():
  noise, dropped = drawn()['noise'], drawn()['dropped']
  assert abs(noise.mean()) < 4 * 0.3 / np.sqrt(noise.size)
  assert abs(noise.std() - 0.3) < 0.01
  np.testing.assert_allclose(np.unique(dropped), [0, 1.25])
  assert abs((dropped == 0).mean() - 0.2) < 4 * 0.4 / np.sqrt(dropped.size)
  assert len(np.unique(dropped, axis=0)) > 300, 'every example has its own'


# --- PIL ---------------------------------------------------------------------

FACTORS = (0.0, 0.05, 0.3, 0.95, 1.0, 1.37, 1.5, 1.9)
SHEARS = (-0.3, -0.2, -0.05, 0.0, 0.1, 0.2, 0.23, 0.3)
LEVELS = (0, 1, 30, 64, 110, 127, 128, 255)
SHARES = (-0.45, -0.3, -0.05, 0.0, 0.1, 0.2, 150 / 331, 0.99)


def enhance(kind):
  return lambda image, factor: kind(image).enhance(factor)


def affine(image, *matrix):
  return image.transform(image.size, Image.Transform.AFFINE, matrix)


def solarize_add(image, add):
  """Torchvision and the official code have it, PIL does not."""
  dark = lambda level: min(level + add, 255) if level < 128 else level
  return image.point([dark(level) for level in range(256)] * len(image.mode))


PIL = {
  'identity': (lambda image, _: image, range(8)),
  'autocontrast': (lambda image, _: ImageOps.autocontrast(image), range(8)),
  'equalize': (lambda image, _: ImageOps.equalize(image), range(8)),
  'invert': (lambda image, _: ImageOps.invert(image), range(8)),
  'posterize': (ImageOps.posterize, range(1, 9)),
  'solarize': (ImageOps.solarize, (0, 1, 64, 127.5, 128, 200, 255, 256)),
  'solarize_add': (solarize_add, LEVELS),
  'brightness': (enhance(ImageEnhance.Brightness), FACTORS),
  'color': (enhance(ImageEnhance.Color), FACTORS),
  'contrast': (enhance(ImageEnhance.Contrast), FACTORS),
  'sharpness': (enhance(ImageEnhance.Sharpness), FACTORS),
  'rotate': (Image.Image.rotate, (-30, -17, -3.3, 0, 1, 20, 30, 90)),
  'shear_x': (lambda image, a: affine(image, 1, a, 0, 0, 1, 0), SHEARS),
  'shear_y': (lambda image, a: affine(image, 1, 0, 0, a, 1, 0), SHEARS),
  'translate_x': (
    lambda image, a: affine(image, 1, 0, int(a * image.width), 0, 1, 0),
    SHARES,
  ),
  'translate_y': (
    lambda image, a: affine(image, 1, 0, 0, 0, 1, int(a * image.height)),
    SHARES,
  ),
}


def levels_of(shape):
  """Images [6, h, w, c] of all sorts, uint8."""
  rng = np.random.default_rng(0)
  steps = rng.integers(0, 4, shape) * 60 + rng.integers(0, 2, shape)
  kinds = [
    rng.integers(0, 256, shape),
    rng.integers(60, 180, shape),
    np.minimum(rng.geometric(0.05, shape), 255),
    steps,
    np.full(shape, 17),
    np.broadcast_to(np.array([0, 128, 255])[: shape[2]], shape),
  ]
  return np.stack(kinds).astype(np.uint8)


@pytest.mark.parametrize('shape', [(32, 32, 3), (21, 28, 1)])
@pytest.mark.parametrize('name', PIL)
def test_operations_are_those_of_pil(name, shape):
  function, arguments = PIL[name]
  pairs = list(itertools.product(levels_of(shape), arguments))
  expected = [
    np.asarray(function(Image.fromarray(level.squeeze()), argument))
    for level, argument in pairs
  ]
  x = np.stack([level for level, _ in pairs]) / np.float32(255)
  found = distort(
    x,
    np.full(len(pairs), OPS.index(name)),
    np.array([argument for _, argument in pairs], np.float32),
  )
  error = np.asarray(found) * 255 - np.reshape(expected, found.shape)
  # PIL cuts fractions of levels off; what has none is the same.
  whole = name not in (
    'autocontrast',
    'brightness',
    'color',
    'contrast',
    'sharpness',
  )
  assert error.min() > -1e-3
  assert error.max() < (1e-3 if whole else 1 + 1e-3)


def test_every_operation_has_its_test():
  assert set(PIL) == set(OPS)


def test_what_comes_from_outside_is_filled():
  x = np.ones((1, 4, 4, 3), np.float32)
  found = np.asarray(
    distort(
      x,
      np.array([OPS.index('translate_x')]),
      np.array([0.5], np.float32),
      fill=np.float32([0.1, 0.2, 0.3]),
    )
  )
  np.testing.assert_allclose(found[:, :, :2], x[:, :, :2])
  expected = np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (1, 4, 2, 3))
  np.testing.assert_allclose(found[:, :, 2:], expected)


@pytest.mark.parametrize('h', [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_smallest_images(h):
  x = images(16, h, 1, 1)
  found = distort(x, np.arange(16), np.full(16, 0.7, np.float32))
  assert found.shape == x.shape
  assert np.isfinite(found).all()


# --- policies ----------------------------------------------------------------

# The arguments at the end of the ranges, Cubuk et al. 2019 (table 6).
ENDS = {
  'posterize': [4],
  'solarize': [0],
  'brightness': [0.1, 1.9],
  'color': [0.1, 1.9],
  'contrast': [0.1, 1.9],
  'sharpness': [0.1, 1.9],
  'rotate': [-30, 30],
  'shear_x': [-0.3, 0.3],
  'shear_y': [-0.3, 0.3],
  'translate_x': [-150 / 331, 150 / 331],
  'translate_y': [-150 / 331, 150 / 331],
}


@pytest.mark.parametrize('name', ENDS)
def test_the_strongest_operations_reach_the_ends_of_the_ranges(name):
  keys, x = KEYS[:16], np.repeat(images(1), 16, 0)
  op = np.full(16, OPS.index(name))
  at = lambda end: np.asarray(distort(x, op, np.full(16, end, np.float32)))
  ends = [at(end)[0] for end in ENDS[name]]
  for view in (
    augment.rand_augment(keys, x, ops=1, magnitude=10, names=(name,)),
    augment.auto_augment(keys, x, policy=(((name, 1.0, 9),),)),
  ):
    close = [abs(np.asarray(view) - end).max((1, 2, 3)) < 1e-5 for end in ends]
    assert np.all(np.any(close, 0)), 'each is one of the ends'
    assert np.all(np.any(close, 1)), 'each end is reached'
  view = augment.rand_augment(keys, x, ops=1, magnitude=0, names=(name,))
  np.testing.assert_allclose(view, x, atol=1e-6)


def test_the_ranges_of_fixmatch():
  """Table 12 of the paper, but for posterize: codes never reach 8 bits."""
  low_high = {
    'posterize': (4, 8 - 1e-3),
    'solarize': (0, 256),
    'brightness': (0.05, 0.95),
    'color': (0.05, 0.95),
    'contrast': (0.05, 0.95),
    'sharpness': (0.05, 0.95),
    'rotate': (-30, 30),
    'shear_x': (-0.3, 0.3),
    'shear_y': (-0.3, 0.3),
    'translate_x': (-0.3, 0.3),
    'translate_y': (-0.3, 0.3),
  }
  strength, sign = np.float32(list(itertools.product((0, 1 - 1e-4), (0, 1)))).T
  argument = jax.jit(functools.partial(policies._argument, policies._FIXMATCH))
  for name, expected in low_high.items():
    op = np.full(4, OPS.index(name))
    found = np.asarray(argument(op, strength, sign))
    np.testing.assert_allclose(
      (found.min(), found.max()),
      expected,
      rtol=1e-3,
      atol=0.03 * (expected[0] == 0),
    )


def test_operations_are_drawn_evenly_and_independently():
  x = np.full((2000, 1, 1, 1), 0.25, np.float32)
  names = ('identity', 'invert', 'identity', 'solarize')
  view = np.ravel(augment.rand_augment(KEYS, x, ops=1, names=names))
  assert abs((view == 0.75).mean() - 0.5) < 0.045
  # Inverted once and not twice: two draws that agree would always cancel.
  view = np.ravel(augment.rand_augment(KEYS, x, names=names))
  assert abs((view == 0.75).mean() - 0.5) < 0.045


def test_sub_policies_are_drawn_evenly_with_their_probabilities():
  x = np.full((2000, 1, 1, 1), 0.25, np.float32)
  policy = (
    (('invert', 0.4, 0), ('identity', 1.0, 0)),
    (('identity', 1.0, 0), ('solarize_add', 0.8, 9)),
  )
  view = np.asarray(augment.auto_augment(KEYS, x, policy=policy)).ravel()
  inverted = np.isclose(view, 0.75).mean()
  added = np.isclose(view, 0.25 + 110 / 255).mean()
  assert abs(inverted - 0.2) < 0.036
  assert abs(added - 0.4) < 0.044
  assert np.isclose(view, 0.25).mean() == pytest.approx(1 - inverted - added)


def test_magnitudes_are_ninths():
  x = images()
  policy = ((('solarize', 1.0, 3), ('posterize', 1.0, 7)),)
  view = augment.auto_augment(KEYS[:16], x, policy=policy)
  ops = [np.full(16, OPS.index(name)) for name in ('solarize', 'posterize')]
  expected = distort(x, ops[0], np.full(16, 256 * 2 / 3, np.float32))
  expected = distort(expected, ops[1], np.full(16, 5, np.float32))
  np.testing.assert_allclose(view, expected, atol=1e-6)


def test_the_published_policy():
  policy = augment.CIFAR10_POLICY
  assert len(policy) == 25
  assert {len(sub_policy) for sub_policy in policy} == {2}
  names = {name for sub_policy in policy for name, _, _ in sub_policy}
  assert names == set(OPS) - {'identity', 'shear_x', 'solarize_add'}
  rates = [rate for sub_policy in policy for _, rate, _ in sub_policy]
  assert sum(rates) == pytest.approx(26.5)


def test_fixmatch_cuts_a_hole_last():
  areas = set((drawn()['fixmatch'] == 1).sum((1, 2, 3)).tolist())
  assert {9, 16, 25} <= areas, 'all three sizes'
  assert max(areas) == 25
  assert min(areas) >= 2, 'never less than a quarter'
  strong = augment.fixmatch_augment(KEYS[:16], images(), sizes=(4, 4))
  assert ((np.asarray(strong) == 0.5).all(3).sum((1, 2)) >= 4).all()


def test_fixmatch_leaves_half_of_the_images_to_each_operation_alone():
  x = np.broadcast_to(images(1, 20, 20), (500, 20, 20, 3))
  f = functools.partial(augment.fixmatch_augment, ops=1, sizes=(0, 0))
  view = np.asarray(jax.jit(f)(KEYS[:500], x))
  same = np.isclose(view, x, atol=1e-6).all((1, 2, 3)).mean()
  # 1 - 0.5 * 13 / 14 = 0.536 from the rate, and a little more from rotations,
  # shears and translations by less than a pixel.
  assert 0.48 < same < 0.65


# --- put together ------------------------------------------------------------


def test_composed_functions_have_streams_of_their_own():
  kept = (drawn()['twice'] == ROWS).all((1, 2, 3)).mean()
  assert abs(kept - 0.5) < 0.045, 'the same stream would always flip back'
  np.testing.assert_array_equal(drawn()['second'], drawn()['folded'])


weak = functools.partial(augment.gaussian_noise, scale=0.1)


def assert_all_differ(views):
  views = [np.asarray(view) for view in views]
  for first, second in itertools.combinations(views, 2):
    assert (first != second).any((1, 2, 3)).mean() > 0.5


def test_views():
  x, x_u = images(16), images(16, seed=1)
  batch = {'x': x, 'x_u': x_u, 'labels': np.arange(16)}
  keys = KEYS[:16]
  only_weak = augment.views(weak)(keys, batch)
  assert set(only_weak) == {'x', 'x_u', 'labels'}
  assert only_weak['x_u'] is x_u
  assert only_weak['labels'] is batch['labels']
  both = augment.views(weak, weak, names=('x', 'x_u'))(keys, batch)
  assert set(both) == {'x', 'x_strong', 'x_u', 'x_u_strong', 'labels'}
  np.testing.assert_array_equal(both['x'], only_weak['x'])
  assert batch['x'] is x, 'the batch itself is left alone'
  # The same function and the same examples, and yet four different views.
  batch['x_u'] = x
  same = augment.views(weak, weak, names=('x', 'x_u'))(keys, batch)
  assert_all_differ(same[name] for name in sorted(set(both) - {'labels'}))


def test_views_may_be_many():
  x, keys = images(16), KEYS[:16]
  views = augment.views(weak, weak, weak)(keys, {'x': x})
  assert set(views) == {'x', 'x_strong', 'x_strong_2'}
  two = augment.views(weak, weak)(keys, {'x': x})
  np.testing.assert_array_equal(views['x_strong'], two['x_strong'])
  assert_all_differ(views.values())


@pytest.mark.slow
def test_fit_trains_on_both_views():
  model = from_linen(MLP(3, ()), (8, 8, 1))

  def loss_fn(params, state, batch, key):
    keys = model_keys(key, batch)
    losses = 0.0
    for name in ('x', 'x_strong'):
      outputs, stats = model.apply(params, {}, batch[name], keys, True)
      losses += optax.softmax_cross_entropy_with_integer_labels(
        outputs.logits, batch['labels']
      )
    distance = abs(batch['x'] - batch['x_strong']).mean((1, 2, 3))
    metrics = {'distance': global_mean(distance, batch['weight'])}
    return global_mean(losses, batch['weight']), Aux(stats, (), metrics)

  method = from_loss(loss_fn, model, optax.sgd(0.1))
  data = {'x': images(32, c=1), 'labels': np.arange(32, dtype=np.int32) % 3}
  both = augment.views(augment.flip, AUGMENTATIONS['images'])
  fitted = fit(
    method,
    data,
    KEY,
    epochs=1,
    batch_size=16,
    augment=both,
    devices=jax.devices()[:1],
  )
  assert fitted.state.step == 2
  assert np.isfinite(fitted.history['loss']).all()
  assert (fitted.history['distance'] > 0.05).all()


# --- errors ------------------------------------------------------------------


@every_function
def test_errors_name_the_keys_and_the_examples(name):
  f = FUNCTIONS[name]
  with pytest.raises(ValueError, match='keys must be'):
    f(KEYS[:3], images(2))
  with pytest.raises(ValueError, match='keys must be'):
    f(KEY, images(2))
  with pytest.raises(TypeError, match='x must be floating point'):
    f(KEYS[:2], np.zeros((2, 8, 8, 3), np.uint8))
  if name not in ('gaussian_noise', 'feature_dropout'):
    with pytest.raises(ValueError, match=r'x must be \[b, h, w, c\]'):
      f(KEYS[:2], np.zeros((2, 64), np.float32))


WRONG = [
  ('pad_crop', {'padding': 8}, 'padding must be below'),
  ('pad_crop', {'padding': -1}, 'padding must be at least 0'),
  ('pad_crop', {'mode': 'edge'}, 'mode must be'),
  ('flip', {'rate': 1.1}, 'rate must lie'),
  ('cutout', {'size': -1}, 'size must be'),
  ('gaussian_noise', {'scale': -0.1}, 'scale must be'),
  ('feature_dropout', {'rate': 1.0}, 'rate must lie'),
  ('rand_augment', {'ops': -1}, 'ops must be'),
  ('rand_augment', {'magnitude': 11}, 'magnitude must lie'),
  ('rand_augment', {'names': ('rotat',)}, r"names: unknown \['rotat'\]"),
  ('rand_augment', {'names': ()}, 'names must not be empty'),
  ('fixmatch_augment', {'rate': -0.1}, 'rate must lie'),
  ('fixmatch_augment', {'sizes': (4, 2)}, 'sizes must be'),
  ('auto_augment', {'policy': ()}, 'policy must have'),
  ('auto_augment', {'policy': ((('hue', 1, 1),),)}, 'policy: unknown'),
  ('auto_augment', {'policy': ((('invert', 2, 1),),)}, 'probabilities'),
  ('auto_augment', {'policy': ((('invert', 1, 10),),)}, 'magnitudes'),
]


@pytest.mark.parametrize(('name', 'arguments', 'message'), WRONG)
def test_errors_name_the_argument(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    getattr(augment, name)(KEYS[:2], images(2), **arguments)


def test_more_errors_that_name_the_argument():
  x, op, argument = images(2), np.zeros(2, int), np.zeros(2, np.float32)
  with pytest.raises(ValueError, match='c of 1 or 3'):
    distort(images(2, c=2), op, argument)
  with pytest.raises(ValueError, match='op must be'):
    distort(x, op[:1], argument)
  with pytest.raises(ValueError, match='argument must be'):
    distort(x, op, argument[0])
  with pytest.raises(TypeError, match='x must be floating'):
    distort(x.astype(int), op, argument)
  with pytest.raises(ValueError, match="names: 'x_u' is not in"):
    augment.views(augment.flip, names=('x_u',))(KEYS[:2], {'x': x})
  # Padding larger than the image is fine where nothing is mirrored.
  pad = functools.partial(augment.pad_crop, padding=9, mode='constant')
  jax.eval_shape(pad, KEYS[:2], x)
