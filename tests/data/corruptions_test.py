"""Corruptions against SciPy and Pillow, and the views of CoTTA."""

import colorsys
import functools
import io
import itertools
import re

from cost import slow
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage, stats

from jnl.base import example_keys
from jnl.data.augment import CIFAR_C, MNIST_C, corrupt, cotta_views
from jnl.data.augment import _corruptions as corruptions
from jnl.data.augment._basic import uniform

KEYS = jax.jit(example_keys)(jax.random.key(0), np.arange(100))
TABLES = {'cifar': CIFAR_C, 'mnist': MNIST_C}
PUBLISHED = """
gaussian_noise .04 .06 .08 .09 .10 | .08 .12 .18 .26 .38
shot_noise 500 250 100 75 50 | 60 25 12 5 3
impulse_noise .01 .02 .03 .05 .07 | .03 .06 .09 .17 .27
speckle_noise .06 .1 .12 .16 .2 | .15 .2 .35 .45 .6
gaussian_blur .4 .6 .7 .8 1 | 1 2 3 4 6
brightness .05 .1 .15 .2 .3 | .1 .2 .3 .4 .5
contrast .75 .5 .4 .3 .15 | .4 .3 .2 .1 .05
pixelate .95 .9 .85 .75 .65 | .6 .5 .4 .3 .25
jpeg 80 65 58 50 40 | 25 18 15 10 7
"""
COTTA_PARTS = (
  *('brightness', 'contrast', 'saturation', 'hue', 'gamma', 'degrees'),
  *('translate', 'scale', 'blur', 'flip', 'noise'),
)
NOTHING = dict.fromkeys(COTTA_PARTS)
COLOR, GRAY, ODD = (32, 32, 3), (28, 28, 1), (27, 21, 3)
every = pytest.mark.parametrize('name', CIFAR_C)
shapes = pytest.mark.parametrize('shape', [COLOR, GRAY, ODD], ids=str)


@functools.cache
def levels(shape=COLOR, b=16):
  """Smooth images with some grain, of 256 levels, [b, h, w, c]."""
  rng = np.random.default_rng(0)
  x = ndimage.gaussian_filter(rng.normal(size=(b, *shape)), (0, 3, 3, 0))
  x = 0.5 + x / (4 * x.std((1, 2, 3), keepdims=True))
  x += rng.normal(size=x.shape, scale=0.02)
  return (255 * x).clip(0, 255).round().astype(np.uint8)


def images(shape=COLOR, b=16):
  return (levels(shape, b) / 255).astype(np.float32)


def corrupted(name, severity, shape=COLOR, b=16, table=CIFAR_C):
  y = corrupt(KEYS[:b], images(shape, b), name, severity, table=table)
  return np.asarray(y)


# --- against others' code ----------------------------------------------------


def test_the_published_numbers():
  assert list(CIFAR_C) == list(MNIST_C)
  for line in PUBLISHED.strip().split('\n'):
    name, *numbers = line.replace('|', '').split()
    found = (*CIFAR_C[name], *MNIST_C[name])
    assert found == tuple(map(float, numbers))
  fog = [level[:2] for level in (*CIFAR_C['fog'], *MNIST_C['fog'])]
  amounts, decays = zip(*fog, strict=True)
  assert amounts == (0.2, 0.5, 0.75, 1, 1.5, 1.5, 2, 2.5, 2.5, 3)
  assert decays == (3, 3, 2.5, 2, 1.75, 2, 2, 1.7, 1.5, 1.4)
  assert {level[2] for level in MNIST_C['fog']} == {256}
  defocus = (*CIFAR_C['defocus_blur'], *MNIST_C['defocus_blur'])
  radii, sigmas = zip(*defocus, strict=True)
  assert radii == (0.3, 0.4, 0.5, 1, 1.5, 3, 4, 6, 8, 10)
  assert sigmas == (0.4, 0.5, 0.6, 0.2, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5)
  zoom = (*CIFAR_C['zoom_blur'], *MNIST_C['zoom_blur'])
  last, step = zip(*zoom, strict=True)
  assert last == (1.05, 1.1, 1.15, 1.2, 1.25, 1.1, 1.15, 1.2, 1.24, 1.3)
  assert step == (*[0.01] * 7, 0.02, 0.02, 0.03)


def scipy_gaussian(x, sigma):
  sigmas = (0, sigma, sigma, 0)
  return ndimage.gaussian_filter(x, sigmas, mode='nearest', truncate=4)


def scipy_defocus(x, level):
  radius, sigma = level
  side = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
  disk = np.float64(np.hypot(*np.meshgrid(side, side)) <= radius + 1e-9)
  place = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
  kernel = stats.norm.pdf(place, scale=sigma)
  disk /= disk.sum()
  for axis in (0, 1):
    disk = ndimage.correlate1d(disk, kernel / kernel.sum(), axis, mode='mirror')
  y = ndimage.correlate(x, disk[None, :, :, None], mode='mirror')
  return y.clip(0, 1)


def scipy_zoom(x, level):
  last, step = level
  factors = np.linspace(1, last, round((last - 1) / step) + 1).round(6)
  total = x.copy()
  for factor, image in itertools.product(factors, range(len(x))):
    part = x[image]
    for axis in (0, 1):
      n = x.shape[axis + 1]
      cut = int(np.ceil(n / factor))
      part = part.take(np.arange(cut) + (n - cut) // 2, axis)
    part = ndimage.zoom(part, (factor, factor, 1), order=1)
    for axis in (0, 1):
      n = x.shape[axis + 1]
      part = part.take(np.arange(n) + (part.shape[axis] - n) // 2, axis)
    total[image] += part
  return total / (len(factors) + 1)


@shapes
@pytest.mark.parametrize(
  ('name', 'reference'),
  [
    ('gaussian_blur', scipy_gaussian),
    ('defocus_blur', scipy_defocus),
    ('zoom_blur', scipy_zoom),
  ],
)
def test_blurs_are_those_of_scipy(name, reference, shape):
  x = images(shape, 2).astype(np.float64)
  for table, severity in itertools.product(TABLES.values(), (1, 3, 5)):
    expected = reference(x, table[name][severity - 1])
    found = corrupted(name, severity, shape, 2, table)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def pillow(x, change):
  """uint8 [b, h, w, c] after a change of Pillow images."""
  many = [np.asarray(change(Image.fromarray(i.squeeze()))) for i in x]
  return np.stack(many).reshape(x.shape)


def pillow_jpeg(image, quality):
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=int(quality))
  return Image.open(file)


def pillow_pixelate(image, share):
  small = [max(int(n * share), 1) for n in image.size]
  return image.resize(small, Image.BOX).resize(image.size, Image.BOX)


@shapes
def test_jpeg_and_pixelate_are_those_of_pillow(shape):
  for table, severity in itertools.product(TABLES.values(), (1, 2, 3, 4, 5)):
    for name, change, mean, most in (
      ('jpeg', pillow_jpeg, 1, 64),
      ('pixelate', pillow_pixelate, 0.6, 1.01),
    ):
      level = table[name][severity - 1]
      expected = pillow(levels(shape), lambda i: change(i, level))  # noqa: B023
      found = 255 * corrupted(name, severity, shape, table=table)
      error = np.abs(found - expected)
      assert error.mean() < mean
      assert error.max() < most
      assert (
        np.abs(levels(shape) - expected.astype(float)).mean() > error.mean()
      )


@shapes
def test_brightness_and_contrast(shape):
  x = images(shape, 2)
  x[0, :2] = 0
  x[0, 2:4] = 1
  for severity in (1, 5):
    amount = CIFAR_C['brightness'][severity - 1]
    found = corrupt(KEYS[:2], x, 'brightness', severity)
    rgb = np.broadcast_to(x, (*x.shape[:3], 3)).reshape(-1, 3)
    hsv = [colorsys.rgb_to_hsv(*map(float, pixel)) for pixel in rgb]
    rgb = [colorsys.hsv_to_rgb(h, s, min(v + amount, 1)) for h, s, v in hsv]
    expected = np.reshape(rgb, (*x.shape[:3], 3))[..., : shape[2]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    factor = CIFAR_C['contrast'][severity - 1]
    mean = x.mean((1, 2), dtype=np.float64, keepdims=True)
    found = corrupt(KEYS[:2], x, 'contrast', severity)
    expected = mean + factor * (x - mean)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# --- noise -------------------------------------------------------------------


@pytest.mark.parametrize('level', [0.25, 0.5])
def test_noises_have_their_moments(level):
  b = 100
  x = np.full((b, *COLOR), level, np.float32)
  x[:, 16:] = 0.6
  x[:, :, 16:] = 0.3
  size = b * 16 * 16 * 3
  for name, spread in {
    'gaussian_noise': lambda v, p: p,
    'speckle_noise': lambda v, p: p * v,
    'shot_noise': lambda v, p: np.sqrt(v / p),
  }.items():
    y = np.asarray(corrupt(KEYS, x, name, 1), np.float64)
    for place in (np.s_[:, :16, :16], np.s_[:, 16:, :16], np.s_[:, :16, 16:]):
      part, value = y[place], x[place].flat[0]
      scale = spread(value, CIFAR_C[name][0])
      assert abs(part.mean() - value) < 5 * scale / np.sqrt(size)
      assert abs(part.std() / scale - 1) < 5 / np.sqrt(2 * size)
      shared = np.corrcoef(part[..., 0].ravel(), part[..., 1].ravel())[0, 1]
      assert abs(shared) < 5 / np.sqrt(size / 3)
  y = np.asarray(corrupt(KEYS, x, 'impulse_noise', 5))
  for value in (0, 1):
    share = (y == value).mean()
    assert abs(share - 0.035) < 5 * np.sqrt(0.035 / y.size)
  assert ((y == x) | (y == 0) | (y == 1)).all()
  # Each value by itself: colors, too.
  assert abs((y == 0).all(3).mean() - 0.035**3) < 1e-3


@pytest.mark.slow
def test_counts_of_photons_are_poissons():
  u = ((np.arange(100_000) + 0.5) / 100_000).astype(np.float32)
  for rate in (0.0, 1e-6, 0.01, 0.5, 3, 9.99, 10.01, 30, 120, 500):
    found = corruptions._poisson(jnp.array(u), jnp.full(u.shape, rate), 500)
    expected = stats.poisson.ppf(u.astype(np.float64), rate)
    wrong = np.abs(found - expected)
    assert wrong.max() <= 1, rate
    assert wrong.mean() < (1e-3 if rate > 10 else 2e-5), rate
  extreme = jnp.array([0, 1 - 2**-24], jnp.float32)
  for rate in (0.0, 1.0, 10.0, 500.0):
    low, high = corruptions._poisson(extreme, jnp.full(2, rate), 500)
    assert 0 <= low <= rate <= high <= rate + 7 * np.sqrt(rate) + 6


# --- fog ---------------------------------------------------------------------


def slow_fractal(draws, side, decay):
  """Point by point, from the same draws."""
  y, width, n = np.zeros((side, side)), 100.0, 1
  while n < side:
    noise = width**2 * draws[n * n : 4 * n * n].reshape(3, n, n)
    step = side // n
    half = step // 2

    def at(i, j):
      return y[i % side, j % side]

    for i, j in itertools.product(range(n), repeat=2):
      p, q = i * step, j * step
      corners = at(p, q) + at(p + step, q) + at(p, q + step)
      corners += at(p + step, q + step)
      y[p + half, q + half] = corners / 4 + noise[0, i, j]
    for i, j in itertools.product(range(n), repeat=2):
      p, q = i * step, j * step
      for k, (a, c) in enumerate(((p, q + half), (p + half, q)), 1):
        around = at(a - half, c) + at(a + half, c)
        around += at(a, c - half) + at(a, c + half)
        y[a, c] = around / 4 + noise[k, i, j]
    width /= decay
    n *= 2
  y -= y.min()
  return y / y.max()


def test_fog_is_a_fractal():
  x = images(b=3)
  draws = jax.vmap(
    lambda key: jax.random.uniform(key, (1024,), jnp.float32, -1)
  )(KEYS[:3])
  amount, decay = CIFAR_C['fog'][3]
  found = corrupted('fog', 4, b=3)
  for image, draw, y in zip(x, draws, found, strict=True):
    f = slow_fractal(np.asarray(draw, np.float64), 32, decay)[..., None]
    expected = (image + amount * f) * image.max() / (image.max() + amount)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  ('table', 'side', 'whole'),
  [
    ('cifar', 28, 32),
    slow('cifar', 40, 64),
    slow('mnist', 28, 256),
    slow('mnist', 32, 256),
  ],
)
def test_fog_on_images_of_other_sizes(table, side, whole):
  x = np.full((2, side, side, 1), 0.5, np.float32)
  y = corrupt(KEYS[:2], x, 'fog', 1, table=TABLES[table])
  amount, decay = TABLES[table]['fog'][0][:2]
  fractal = (y[..., 0] * (0.5 + amount) / 0.5 - 0.5) / amount
  expected = corruptions._fractal(KEYS[:2], whole, decay, np.float32)
  np.testing.assert_allclose(fractal, expected[:, :side, :side], atol=1e-5)
  black = corrupt(KEYS[:2], 0 * x, 'fog', 1, table=TABLES[table])
  assert not np.any(black)


# --- all of them -------------------------------------------------------------

# (table, name): severities after which the mean squared change is smaller: the
# fog of the same amount and finer; 28 pixels to 16 and to 14, to 8 and to 7.
FALLS = {('mnist', 'fog'): {3}, ('mnist', 'pixelate'): {1, 4}}


@pytest.mark.slow
@pytest.mark.parametrize('table', TABLES)
@every
def test_damage_rises_with_severity(name, table):
  shape = COLOR if table == 'cifar' else GRAY
  x = images(shape, 100)
  damage = [
    np.square(corrupted(name, s, shape, 100, TABLES[table]) - x).mean()
    for s in range(1, 6)
  ]
  rises = {s for s in range(1, 5) if damage[s] > damage[s - 1]}
  assert rises | FALLS.get((table, name), set()) == {1, 2, 3, 4}
  assert damage[4] > damage[0] > 0


def all_corruptions(index, x, names=tuple(CIFAR_C)):
  keys = example_keys(jax.random.key(1), index)
  y = {name: corrupt(keys, x, name, 3) for name in names}
  return y | {'cotta': cotta_views(keys, x)}


# Of the kinds that there are: noise, products of matrices, fog.
SOME = ('speckle_noise', 'defocus_blur', 'fog')
one_device = jax.jit(all_corruptions, static_argnames='names')


@pytest.mark.parametrize(
  'names', [SOME, slow(tuple(CIFAR_C))], ids=['some', 'all']
)
def test_what_happens_is_of_the_key_and_the_image_alone(names):
  x, index = images((8, 8, 3)), np.arange(16)
  together = jax.device_get(one_device(index, x, names=names))
  order = np.random.default_rng(1).permutation(16)
  x[3, 2, 2, 0] = np.nan
  again = jax.device_get(one_device(index[order], x[order], names=names))
  for name, expected in together.items():
    others = order != 3
    np.testing.assert_array_equal(again[name][others], expected[order][others])
    assert np.isnan(again[name][~others]).any(), name
    assert (expected >= 0).all()
    assert (expected <= 1).all()
    assert expected.shape == x.shape
    assert expected.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize('how', ['jit', 'shard_map'])
def test_eight_devices_give_what_one_gives(how):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, P('data'))
  f = all_corruptions
  if how == 'shard_map':
    f = jax.shard_map(f, mesh=mesh, in_specs=P('data'), out_specs=P('data'))
  x, index = images((8, 8, 3)), np.arange(16)
  arguments = jax.device_put((index, x), split)
  compiled = jax.jit(f).lower(*arguments).compile()
  expected = one_device(index, x)
  for name, found in compiled(*arguments).items():
    assert found.sharding.is_equivalent_to(split, found.ndim), name
    np.testing.assert_allclose(found, expected[name], atol=2e-6, err_msg=name)
  collective = r'all-(gather|reduce|to-all)|collective-permute'
  assert not re.search(collective, compiled.as_text())


@every
def test_the_smallest_images(name):
  for shape in ((1, 1, 1, 1), (1, 1, 3, 3)):
    x = np.full(shape, 0.5, np.float32)
    y = corrupt(KEYS[:1], x, name, 5, table={**MNIST_C, 'fog': CIFAR_C['fog']})
    assert y.shape == shape
    assert np.isfinite(y).all()


def test_no_images():
  none = np.zeros((0, 8, 8, 3), np.float32)
  assert corrupt(KEYS[:0], none, 'shot_noise', 1).shape == none.shape
  assert cotta_views(KEYS[:0], none).shape == none.shape


def test_dtypes_stay_and_values_outside_are_clipped():
  x = images((8, 8, 1), 2)
  wide = np.where(x > 0.6, 7, x)
  for name in ('contrast', 'gaussian_blur', 'impulse_noise'):
    expected = corrupt(KEYS[:2], x.clip(0, 1), name, 2)
    for dtype in (jnp.bfloat16, jnp.float16):
      found = corrupt(KEYS[:2], x.astype(dtype), name, 2)
      assert found.dtype == dtype
      np.testing.assert_allclose(found.astype(float), expected, atol=0.01)
    found = corrupt(KEYS[:2], wide, name, 2)
    np.testing.assert_array_equal(
      found, corrupt(KEYS[:2], wide.clip(0, 1), name, 2)
    )
  found = cotta_views(KEYS[:2], x.astype(jnp.bfloat16))
  assert found.dtype == jnp.bfloat16


@pytest.mark.slow
def test_float64_stays():
  x = images((8, 8, 3), 2).astype(np.float64)
  with jax.enable_x64(True):
    for name in ('shot_noise', 'zoom_blur', 'fog', 'jpeg'):
      found = corrupt(KEYS[:2], x, name, 2)
      assert found.dtype == np.float64
      assert np.isfinite(found).all()
    assert cotta_views(KEYS[:2], x).dtype == np.float64


def test_a_table_of_ones_own():
  x = images(b=2)
  table = {'contrast': [0.5] * 5, 'fog': [[0.5, 2]] * 5}
  np.testing.assert_array_equal(
    corrupt(KEYS[:2], x, 'contrast', 1, table=table),
    corrupted('contrast', 2, b=2),
  )
  assert corrupt(KEYS[:2], x, 'fog', np.int64(5), table=table).shape == x.shape
  with pytest.raises(ValueError, match='Known: fog, contrast'):
    corrupt(KEYS[:2], x, 'jpeg', 1, table=table)


# --- views of CoTTA ----------------------------------------------------------


def views(x, keys=None, **parts):
  keys = KEYS[: len(x)] if keys is None else keys
  return np.asarray(cotta_views(keys, x, **{**NOTHING, **parts}))


def luma(x):
  return (x @ np.array([0.299, 0.587, 0.114]))[..., None]


def blend(x, other, factor):
  return np.clip(factor * x + (1 - factor) * other, 0, 1)


def turned(x, turns):
  hsv = [colorsys.rgb_to_hsv(*map(float, pixel)) for pixel in x.reshape(-1, 3)]
  return np.reshape(
    [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in hsv], x.shape
  )


CHANGES = {
  'brightness': lambda x, factor: blend(x, 0, factor),
  'contrast': lambda x, factor: blend(x, luma(x).mean(), factor),
  'saturation': lambda x, factor: blend(x, luma(x), factor),
  'hue': turned,
  'gamma': lambda x, factor: x**factor,
}


@pytest.mark.slow
def test_colors_change_in_the_order_drawn():
  x = images((6, 6, 3), 12)
  x[0, 0] = [0.25, 0.25, 0.25]
  x[0, 1] = 0
  x[0, 2] = [1, 0, 0]
  u = np.asarray(uniform(KEYS[:12], 16), np.float64)
  parts = {
    'brightness': (0.6, 1.4),
    'contrast': (0.7, 1.3),
    'saturation': (0.5, 1.5),
    'hue': 0.06,
    'gamma': (0.7, 1.3),
  }
  for used in (
    ([name] for name in CHANGES),
    [list(CHANGES), ['hue', 'contrast']],
  ):
    for names in used:
      found = views(x, **{name: parts[name] for name in names})
      orders = set()
      for i, image in enumerate(x):
        y = image.astype(np.float64)
        turns = {name: u[i, 11 + k] for k, name in enumerate(CHANGES)}
        order = sorted(names, key=turns.get)
        for name in order:
          part = parts[name]
          low, high = part if name != 'hue' else (-part, part)
          amount = low + (high - low) * u[i, list(CHANGES).index(name)]
          y = CHANGES[name](y, amount)
        orders.add(tuple(order))
        np.testing.assert_allclose(found[i], y, rtol=0, atol=1e-5)
      assert len(orders) >= min(2, len(names))


def test_gray_images_have_no_saturation_and_no_hue():
  x = images(GRAY, 4)
  np.testing.assert_array_equal(views(x, saturation=(0, 2), hue=0.5), x)
  y = views(x, contrast=(0.5, 0.5))
  mean = x.mean((1, 2, 3), keepdims=True)
  np.testing.assert_allclose(y, mean + 0.5 * (x - mean), atol=1e-6)


@pytest.mark.parametrize('edge', [True, False])
@shapes
def test_affine_maps_are_those_of_scipy(shape, edge):
  x = images(shape, 6)
  h, w, _ = shape
  u = np.asarray(uniform(KEYS[:6], 16), np.float64)
  padding = 0.5 if edge else None
  found = views(
    x, degrees=15, translate=1 / 16, scale=(0.9, 1.1), flip=0.5, padding=padding
  )
  for i, image in enumerate(x):
    angle, scale = np.deg2rad(-15 + 30 * u[i, 5]), 0.9 + 0.2 * u[i, 6]
    sides = np.array([h + 2 * (h // 2), w + 2 * (w // 2)] if edge else [h, w])
    shift = np.round(sides / 16 * (2 * u[i, [9, 8]] - 1))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) / scale
    center = (np.array([h, w]) - 1) / 2
    offset = center - matrix @ (center + shift)
    mode = 'nearest' if edge else 'grid-constant'
    for channel in range(shape[2]):
      expected = ndimage.affine_transform(
        image[..., channel], matrix, offset, order=1, mode=mode
      )
      expected = expected[:, ::-1] if u[i, 10] < 0.5 else expected
      error = np.abs(found[i, ..., channel] - expected)
      assert error.max() < 2e-5


def test_shifts_are_of_whole_pixels_up_to_a_16th_of_the_padded_side():
  x = np.zeros((100, *COLOR), np.float32)
  x[:, 16, 16] = 1
  places = np.argwhere(views(x, translate=1 / 16)[..., 0])
  assert len(places) == 100
  np.testing.assert_array_equal(np.unique(places[:, 1:] - 16), np.arange(-4, 5))


def test_views_are_blurred_mirrored_and_noisy():
  x = images(b=100)
  kernel = stats.norm.pdf(np.arange(-2, 3), scale=0.5)
  expected = x[:4].astype(np.float64)
  for axis in (1, 2):
    expected = ndimage.correlate1d(
      expected, kernel / kernel.sum(), axis, mode='nearest'
    )
  found = views(x[:4], blur=(0.5, 0.5))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(
    views(x[:4], blur=(0.001, 0.001)), x[:4], atol=1e-6
  )
  y = views(x, flip=0.5)
  mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
  assert ((y == x).all((1, 2, 3)) ^ mirrored).all()
  assert 35 <= mirrored.sum() <= 65
  difference = (views(0.5 + 0 * x, noise=0.005) - 0.5).astype(np.float64)
  assert abs(difference.std() / 0.005 - 1) < 0.01
  assert abs(difference.mean()) < 5 * 0.005 / np.sqrt(difference.size)


def test_parts_left_out_leave_the_others_as_they_are():
  x = images(b=8)
  np.testing.assert_array_equal(views(2 * x - 0.5), (2 * x - 0.5).clip(0, 1))
  alone = views(x, brightness=(0.6, 1.4), flip=0.5)
  parts = {'flip': 0.5, 'noise': 0.0, 'blur': (0.001, 0.001), 'scale': (1, 1)}
  with_others = views(x, brightness=(0.6, 1.4), translate=0.0, **parts)
  np.testing.assert_allclose(alone, with_others, atol=1e-5)


def test_views_stay_near_their_images_and_differ():
  x = images(b=32)
  y = np.asarray(cotta_views(KEYS[:32], x))
  assert (y >= 0).all()
  assert (y <= 1).all()
  assert 0.01 < np.square(y - x).mean() ** 0.5 < 0.4
  same = np.asarray(cotta_views(KEYS[:32], x[:1].repeat(32, 0)))
  assert len(np.unique(same.reshape(32, -1).sum(1))) == 32


# --- errors ------------------------------------------------------------------

ONE = np.zeros((2, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
  ('error', 'message', 'call'),
  [
    (ValueError, 'severity must be 1 .. 5, got 0', {'severity': 0}),
    (ValueError, 'severity must be 1 .. 5, got 6', {'severity': 6}),
    (TypeError, 'severity must be a Python int', {'severity': 1.0}),
    (TypeError, 'severity must be a Python int', {'severity': True}),
    (ValueError, "did you mean 'gaussian_", {'name': 'gausian_noise'}),
    (TypeError, 'uint8: divide levels by 255', {'x': ONE.astype(np.uint8)}),
    (ValueError, 'c of 1 or 3', {'x': np.zeros((2, 8, 8, 2))}),
    (ValueError, r'x must be \[b, h, w, c\]', {'x': np.zeros((2, 8, 8))}),
    (ValueError, 'keys must be', {'x': np.zeros((3, 8, 8, 1))}),
  ],
)
def test_errors_name_the_argument(error, message, call):
  arguments = {'x': ONE, 'name': 'contrast', 'severity': 1, **call}
  with pytest.raises(error, match=message):
    corrupt(KEYS[:2], **arguments)


@pytest.mark.parametrize(
  ('message', 'parts'),
  [
    (r'brightness must be \(low, high\)', {'brightness': 0.4}),
    ('contrast must be .* in order', {'contrast': (1.3, 0.7)}),
    ('scale must be .* above 0', {'scale': (0, 1)}),
    ('blur must be .* above 0', {'blur': (0, 1)}),
    ('hue must be at most 0.5', {'hue': 0.6}),
    ('degrees must be at least 0', {'degrees': -1}),
    ('noise must be at least 0', {'noise': -1}),
    ('rate must lie in', {'flip': 2}),
  ],
)
def test_errors_of_views_name_the_argument(message, parts):
  with pytest.raises(ValueError, match=message):
    cotta_views(KEYS[:2], ONE, **parts)


def test_more_errors():
  with pytest.raises(TypeError, match='divide levels by 255'):
    cotta_views(KEYS[:2], ONE.astype(np.uint8))
  with pytest.raises(ValueError, match='quality of jpeg'):
    corrupt(KEYS[:2], ONE, 'jpeg', 1, table={'jpeg': [0] * 5})
  for name, levels, message in (
    ('fog', [1.0] * 5, 'fog must have 2 or 3 numbers'),
    ('contrast', [-1.0] * 5, 'contrast must have 1 numbers, at least 0'),
    ('zoom_blur', [(1.1, 0.0)] * 5, 'step > 0'),
  ):
    with pytest.raises(ValueError, match=message):
      corrupt(KEYS[:2], ONE, name, 1, table={name: levels})
  for name in ('gaussian_blur', 'shot_noise', 'impulse_noise', 'speckle_noise'):
    y = corrupt(KEYS[:2], ONE, name, 1, table={name: [0.0] * 5})
    np.testing.assert_array_equal(y, ONE)
  traced = jax.jit(lambda s: corrupt(KEYS[:2], ONE, 'contrast', s))
  with pytest.raises(TypeError, match='severity must be a Python int'):
    traced(1)
