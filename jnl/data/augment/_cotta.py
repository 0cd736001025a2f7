"""The views over which CoTTA averages its teacher's logits."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Key, check
from jnl.data.augment._basic import check_rate, fold_in, pick, uniform
from jnl.data.augment._corruptions import check_unit_images

Range = Sequence[float | Array]
"""The lowest and the highest of what is drawn uniformly."""

_COLORS = ('brightness', 'contrast', 'saturation', 'hue', 'gamma')


def cotta_views(
  keys: Key,
  x: Array,
  *,
  brightness: Range | None = (0.6, 1.4),
  contrast: Range | None = (0.7, 1.3),
  saturation: Range | None = (0.5, 1.5),
  hue: float | Array | None = 0.06,
  gamma: Range | None = (0.7, 1.3),
  degrees: float | Array | None = 15.0,
  translate: float | Array | None = 1 / 16,
  scale: Range | None = (0.9, 1.1),
  padding: float | None = 0.5,
  blur: Range | None = (0.001, 0.5),
  flip: float | Array | None = 0.5,
  noise: float | Array | None = 0.005,
) -> Array:
  r"""Images in other light, turned, moved, scaled, blurred, mirrored, noisy.

  In this order: the five changes of color in an order drawn for each image;
  padded by its edges; one affine map about the center, bilinear; a Gaussian
  blur of 5 x 5; cut to its size; mirrored; normal noise; clipped. Any part may
  be None, which leaves it out. In short, for a pixel at p and the center m,

  .. math:: y(p) = x(m + R^{-1} (p - m - t) / s)

  with an angle, a shift t of whole pixels and a scale s.

  Use views that the network is used to: an average over others is worse than
  no average. Where classes look one way, as the shoes of Fashion-MNIST do, or
  fill the image to its edges, flips and large shifts hurt: set `flip=None` and
  a smaller `translate`. The weaker variant of CoTTA's code has brightness .8 to
  1.2, contrast and gamma .85 to 1.15, saturation .75 to 1.25, hue .03, 8
  degrees, scale .95 to 1.05 and blur .001 to .25.

  The defaults are those of the code for CIFAR-10, which draws one set of
  numbers for a whole batch; here every image has its own, from its own key. A
  gray image has no saturation or hue to change.

  Args:
    keys: [b].
    x: [b, h, w, c] in [0, 1], c of 1 or 3; values outside are clipped first.
    brightness: the factor of the image.
    contrast: the factor of the distance from the mean of its luma.
    saturation: the factor of the distance from its luma.
    hue: the most that it is turned by either way, in turns, at most 1/2.
    gamma: the exponent.
    degrees: the most that it is rotated by either way.
    translate: the most that it is moved by either way, as a share of the padded
      height and width: 4 pixels of 32 by default. Rounded to whole pixels.
    scale: its magnification.
    padding: pixels on each side for `translate`, as a share of height and
      width; what comes from outside repeats the edge. None: what comes from
      outside is black, and `translate` a share of the image.
    blur: sigma in pixels.
    flip: the probability of mirroring left to right.
    noise: the standard deviation.

  Returns:
    The shape and dtype of `x`, in [0, 1].

  Raises:
    ValueError: if a parameter is out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> gentle = functools.partial(cotta_views, flip=None, translate=None)
  >>> gentle(keys, jnp.ones((2, 8, 8, 1))).shape
  (2, 8, 8, 1)

  Reference: Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation",
  CVPR 2022, arXiv 2203.13591.
  """
  x = check_unit_images(keys, x)
  ranges = {
    'brightness': brightness,
    'contrast': contrast,
    'saturation': saturation,
    'gamma': gamma,
    'scale': scale,
    'blur': blur,
  }
  for name, between in ranges.items():
    _check_range(name, between, positive=name in ('scale', 'blur'))
  both = {'hue': hue, 'degrees': degrees, 'translate': translate}
  for name, value in {**both, 'padding': padding, 'noise': noise}.items():
    ok = value is None or value >= 0
    check(ok, f'{name} must be at least 0, or None, got {value}')
  check(hue is None or hue <= 0.5, f'hue must be at most 0.5, got {hue}')
  if flip is not None:
    check_rate(flip)
  # What is drawn to both sides alike is a range as well.
  ranges |= {k: None if v is None else (-v, v) for k, v in both.items()}
  return _views(keys, x, ranges, flip, noise, padding=padding)


def _check_range(name: str, value: Range | None, positive: bool) -> None:
  if value is None:
    return
  pair = isinstance(value, Sequence | jax.Array | np.ndarray)
  check(
    pair and len(value) == 2,
    f'{name} must be (low, high), or None, got {value!r}',
  )
  low, high = value
  least = 'above 0' if positive else 'at least 0'
  check(
    (low > 0 if positive else low >= 0) & (low <= high),
    f'{name} must be (low, high), {least} and in order, got {value}',
  )


@functools.partial(jax.jit, static_argnames='padding')
def _views(
  keys: Key,
  x: Array,
  ranges: dict[str, Range | None],
  flip: Array | None,
  noise: Array | None,
  *,
  padding: float | None,
) -> Array:
  """One program, also for those who call it outside of jit."""
  dtype = x.dtype
  x = jnp.clip(x.astype(jnp.promote_types(dtype, jnp.float32)), 0, 1)
  h, w = x.shape[1:3]
  # All parts draw, also those left out: the others are then the same without.
  u = uniform(keys, 16).T.astype(x.dtype)
  unit = dict(zip((*_COLORS, 'degrees', 'scale', 'blur'), u, strict=False))
  drawn = {}
  for name, value in unit.items():
    between = ranges[name]
    if between is not None:
      low, high = between
      drawn[name] = jnp.asarray(low + (high - low) * value, x.dtype)
  if ranges['translate'] is not None:
    share = padding or 0.0
    most = ranges['translate'][1]
    for name, value, n in (('right', u[8], w), ('down', u[9], h)):
      side = n + 2 * int(share * n)
      drawn[name] = jnp.round(most * side * (2 * value - 1))
  if flip is not None:
    drawn['mirrored'] = u[10] < flip
  x = _recolored(x, drawn, u[11:].T)
  if drawn.keys() - _COLORS:
    x = _moved(x, drawn, 2 if 'blur' in drawn else 0, padding is not None)
  if 'blur' in drawn:
    x = _blurred(x, drawn['blur'])
  if noise is not None:
    x += noise * _normal(keys, x)
  return jnp.clip(x, 0, 1).astype(dtype)


def _normal(keys: Key, x: Array) -> Array:
  """Normal numbers in the shape of `x`."""
  b, h, w, c = x.shape
  draw = jax.vmap(lambda key: jax.random.normal(key, (h * w,), x.dtype))

  # In a loop, because XLA:CPU would otherwise compute them one by one, amid the
  # gathers of what they are added to: twice the time of all of a view.
  own = jnp.stack([fold_in(keys, i) for i in range(1, c + 1)])
  _, planes = jax.lax.scan(lambda _, keys: (None, draw(keys)), None, own)
  return jnp.moveaxis(planes, 0, 2).reshape(b, h, w, c)


# --- color; planes [c, b, h * w], along which the machine computes -----------


def _recolored(x: Array, drawn: dict[str, Array], order: Array) -> Array:
  """The changes of color one after the other, by the order of [b, 5] numbers.

  Each turn computes what all of them would do and takes, for each image, what
  its turn is; three of them are one blend.
  """
  b, h, w, c = x.shape
  without = ('saturation', 'hue') if c == 1 else ()
  names = [n for n in _COLORS if n in drawn and n not in without]
  if not names:
    return x
  order = jnp.argsort(order[:, [_COLORS.index(n) for n in names]], 1)
  factors = jnp.stack([drawn[n] for n in names], 1)
  factors = jnp.take_along_axis(factors, order, 1)
  planes = jnp.moveaxis(x.reshape(b, h * w, c), 2, 0)

  # In a loop, because unrolled XLA:CPU computes each turn twice, for its mean
  # and for its values, with all turns before it.
  def turn(planes: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
    which, factor = (a[:, None] for a in now)
    is_now = {n: which == i for i, n in enumerate(names)}
    return _turn(planes, is_now, factor), None

  planes, _ = jax.lax.scan(turn, planes, (order.T, factors.T))
  return jnp.moveaxis(planes, 0, 2).reshape(x.shape)


def _turn(planes: Array, is_now: dict[str, Array], factor: Array) -> Array:
  """One change of color for each image.

  Args:
    planes: [c, b, p].
    is_now: [b, 1] bool by change, true for one of them.
    factor: [b, 1].

  Returns:
    [c, b, p].
  """
  no = jnp.zeros_like(factor, bool)
  luma = planes[0]
  if len(planes) == 3:
    luma = 0.299 * planes[0] + 0.587 * planes[1] + 0.114 * planes[2]
  other = jnp.where(is_now.get('saturation', no), luma, 0)
  if 'contrast' in is_now:
    mean = luma.mean(1, keepdims=True)
    other = jnp.where(is_now['contrast'], mean, other)
  changed = jnp.clip(factor * planes + (1 - factor) * other, 0, 1)
  if 'gamma' in is_now:
    power = jnp.exp(factor * jnp.log(jnp.maximum(planes, 1e-8)))
    changed = jnp.where(is_now['gamma'], power, changed)
  if 'hue' in is_now:
    turned = _turned(planes, factor)
    changed = jnp.where(is_now['hue'], turned, changed)
  return changed


def _turned(planes: Array, turns: Array) -> Array:
  """Red, green, blue [3, b, p] with their hue turned by [b, 1]."""
  red, green, blue = planes
  high = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
  per = 1 / jnp.where(chroma > 0, chroma, 1)
  # In sixths of a turn, from red.
  hue = jnp.where(
    high == red,
    (green - blue) * per,
    jnp.where(high == green, (blue - red) * per + 2, (red - green) * per + 4),
  )
  # A color is lacking in the sixths around the opposite of its own.
  place = jnp.array([5, 3, 1], planes.dtype)[:, None, None] + hue + 6 * turns
  place -= 6 * jnp.floor(place / 6)
  lacking = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
  return high - chroma * lacking


# --- geometry ----------------------------------------------------------------


def _moved(x: Array, drawn: dict[str, Array], border: int, edge: bool) -> Array:
  """Images under their affine maps, with a border around them.

  Args:
    x: [b, h, w, c].
    drawn: [b] by name.
    border: pixels around the result.
    edge: whether what comes from outside repeats the edge, or is black.

  Returns:
    [b, h + 2 border, w + 2 border, c].
  """
  b, h, w, _ = x.shape
  zero = jnp.zeros((b, 1, 1), x.dtype)

  def each(name: str) -> Array:
    return drawn[name][:, None, None] if name in drawn else zero

  row = jnp.arange(-border, h + border, dtype=x.dtype)[:, None]
  column = jnp.arange(-border, w + border, dtype=x.dtype)
  column = jnp.where(each('mirrored'), w - 1 - column, column)
  down = row - (h - 1) / 2 - each('down')
  right = column - (w - 1) / 2 - each('right')
  angle = jnp.deg2rad(each('degrees'))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  scale = each('scale') if 'scale' in drawn else zero + 1
  row = (cos * down - sin * right) / scale + (h - 1) / 2
  column = (cos * right + sin * down) / scale + (w - 1) / 2
  row, column = jnp.clip(row, -1, h), jnp.clip(column, -1, w)
  # Each place has the four pixels from it on side by side, for one gather.
  around = ((0, 0), (1, 1), (1, 1), (0, 0))
  y = jnp.pad(x, around, mode='edge' if edge else 'constant')
  y = jnp.concatenate([y[:, :-1], y[:, 1:]], 3)
  y = jnp.concatenate([y[:, :, :-1], y[:, :, 1:]], 3)
  top = jnp.clip(jnp.floor(row), -1, h - 1)
  left = jnp.clip(jnp.floor(column), -1, w - 1)
  places = (top.astype(jnp.int32) + 1, left.astype(jnp.int32) + 1)
  before, after = jnp.split(pick(y, *places, None), 2, 3)
  lower, rest = (row - top)[..., None], (column - left)[..., None]
  y = (1 - rest) * before + rest * after
  upper_row, lower_row = jnp.split(y, 2, 3)
  return (1 - lower) * upper_row + lower * lower_row


def _blurred(x: Array, sigma: Array) -> Array:
  """Weighted means of 5 x 5 pixels; [b, h + 4, w + 4, c] to [b, h, w, c]."""
  b, h, w, c = x.shape
  h, w = h - 4, w - 4
  weights = jnp.exp(-0.5 * (jnp.arange(-2, 3)[:, None] / sigma) ** 2)
  weights = (weights / weights.sum(0))[..., None, None].astype(x.dtype)
  # Rows of all channels, along which the machine computes.
  x = x.reshape(b, h + 4, (w + 4) * c)
  parts = [weights[i] * x[:, i : i + h] for i in range(5)]
  x = functools.reduce(jnp.add, parts)
  parts = [weights[i] * x[:, :, c * i : c * (i + w)] for i in range(5)]
  return functools.reduce(jnp.add, parts).reshape(b, h, w, c)
