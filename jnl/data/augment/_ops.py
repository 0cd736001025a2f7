"""The elementary operations of AutoAugment and its relatives, as in PIL."""

import jax
import jax.numpy as jnp

from jnl.base import Array, check
from jnl.data.augment._basic import pick

OPS = (
  'identity',
  'autocontrast',
  'equalize',
  'invert',
  'posterize',
  'solarize',
  'solarize_add',
  'brightness',
  'color',
  'contrast',
  'sharpness',
  'rotate',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
"""The names of the operations; `distort` takes places in this tuple."""


def distort(
  x: Array,
  op: Array,
  argument: Array,
  *,
  fill: float | Array = 0.0,
) -> Array:
  """Images, each changed by an operation of its own.

  On images of 256 levels each agrees with PIL's up to PIL's truncation to whole
  levels, at most 1/255. The operations and their arguments are

  - identity, invert; autocontrast and equalize for each channel;
  - posterize: the bits kept, 0 .. 8;
  - solarize: levels from this one on, 0 .. 256, are inverted;
  - solarize_add: levels to add, where the level is below 128;
  - brightness, color, contrast, sharpness: the factor f >= 0 of
    f x + (1 - f) d, where d is black, the gray image, its mean, or the
    smoothed image;
  - rotate: degrees counterclockwise;
  - shear_x, shear_y: pixels for each pixel of the other direction;
  - translate_x, translate_y: a share of the width or height; the content moves
    to the left or up by whole pixels, rounded towards zero.

  The choice is data, so that all of them are computed for all images: the five
  geometric ones as one affine map, nearest neighbor, which is what PIL and
  torchvision do by default; the others fuse into one pass, but for the
  histogram and the lookup of equalize.

  Args:
    x: [b, h, w, c] in [0, 1], c of 1 or 3.
    op: [b] int, places in `OPS`.
    argument: [b], ignored where an operation has none.
    fill: for pixels from outside of the image: a number, or [c].

  Returns:
    The shape and dtype of `x`, in [0, 1].

  Raises:
    ValueError: for a wrong shape.
    TypeError: if x is not floating point.

  >>> x, invert = jnp.array([[[[0.], [.25]]]]), jnp.array([OPS.index('invert')])
  >>> distort(x, invert, jnp.zeros(1)).ravel().tolist()
  [1.0, 0.75]
  """
  x = jnp.asarray(x)
  check(
    jnp.issubdtype(x.dtype, jnp.floating),
    f'x must be floating point, got {x.dtype}',
    TypeError,
  )
  check(
    x.ndim == 4 and x.shape[3] in (1, 3),
    f'x must be [b, h, w, c] with c of 1 or 3, got shape {x.shape}',
  )
  for name, value in {'op': op, 'argument': argument}.items():
    check(
      value.shape == x.shape[:1],
      f'{name} must be [b] = {x.shape[:1]}, got {value.shape}',
    )
  return _distort(x, op, argument, fill)


@jax.jit  # One program instead of 200, for those who call it outside of jit.
def _distort(
  x: Array, op: Array, argument: Array, fill: float | Array
) -> Array:
  dtype = x.dtype
  x = x.astype(jnp.promote_types(dtype, jnp.float32))
  a = argument[:, None, None, None]
  level = jnp.round(255 * x)
  gray = _gray(level)
  results = {
    'autocontrast': _autocontrast(x, level),
    'equalize': _equalize(level) / 255,
    'invert': 1 - x,
    'posterize': _posterize(level, a) / 255,
    'solarize': jnp.where(level < a, x, 1 - x),
    'solarize_add': jnp.where(level < 128, jnp.clip(x + a / 255, 0, 1), x),
    'brightness': _blend(x, 0.0, a),
    'color': _blend(x, gray / 255, a),
    'contrast': _blend(x, _mean(gray) / 255, a),
    'sharpness': _blend(x, _smooth(level) / 255, a),
  }
  result = _warp(x, _matrix(op, argument, *x.shape[1:3]), fill)
  for name, changed in results.items():
    chosen = op[:, None, None, None] == OPS.index(name)
    result = jnp.where(chosen, changed, result)
  return result.astype(dtype)


# --- colors, [b, h, w, c]; levels are whole numbers 0 .. 255, as floats ------
# Floats, because converting to integers costs more than all of the arithmetic
# on CPU; sums stay exact below 2^24.


def _blend(x: Array, degenerate: Array | float, factor: Array) -> Array:
  """Between a degenerate image (0), `x` (1), and beyond."""
  return jnp.clip(factor * x + (1 - factor) * degenerate, 0, 1)


def _gray(level: Array) -> Array:
  """Luma of each pixel in PIL's fixed point, [b, h, w, 1]."""
  if level.shape[3] == 1:
    return level
  red, green, blue = jnp.split(level, 3, axis=3)
  total = 19595 * red + 38470 * green + 7471 * blue
  return jnp.floor((total + 32768) / 65536)


def _mean(level: Array) -> Array:
  """Rounded mean level of each image, [b, 1, 1, 1]."""
  return jnp.floor(level.mean((1, 2, 3), keepdims=True) + 0.5)


def _smooth(level: Array) -> Array:
  """Weighted mean of each pixel (5) and its neighbors (1); the border stays."""
  h, w = level.shape[1:3]
  rows = level[:, :-2] + level[:, 1:-1] + level[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  total += 4 * level[:, 1:-1, 1:-1]
  inner = jnp.floor(total / 13 + 0.5)
  i, j = jnp.arange(h)[:, None, None], jnp.arange(w)[:, None]
  border = (i == 0) | (i == h - 1) | (j == 0) | (j == w - 1)
  around = ((0, 0), (1, h - 1 - inner.shape[1]), (1, w - 1 - inner.shape[2]))
  return jnp.where(border, level, jnp.pad(inner, (*around, (0, 0))))


def _posterize(level: Array, bits: Array) -> Array:
  """The highest bits of each level."""
  bits = jnp.clip(bits.astype(jnp.int32), 0, 8)
  step = (1 << (8 - bits)).astype(level.dtype)
  return jnp.floor(level / step) * step


def _autocontrast(x: Array, level: Array) -> Array:
  """Stretches each channel to 0 .. 255; one of a single level stays."""
  low = level.min((1, 2), keepdims=True)
  high = level.max((1, 2), keepdims=True)
  stretched = (255 * x - low) / jnp.maximum(high - low, 1)
  return jnp.where(high > low, jnp.clip(stretched, 0, 1), x)


def _equalize(level: Array) -> Array:
  """Maps each level to its rank among the pixels of its channel.

  In steps of a 255th of the pixels below the highest level, rounded down; a
  channel with fewer than 255 of them stays.
  """
  b, h, w, c = level.shape
  bins = (level.astype(jnp.int32) + 256 * jnp.arange(c)).reshape(b, -1)
  zeros = jnp.zeros(256 * c, level.dtype)
  count = jax.vmap(lambda i: zeros.at[i].add(1, mode='drop'))(bins)
  count = count.reshape(b, c, 256)
  below = jnp.cumsum(count, axis=2) - count
  # All h w pixels lie below the empty bins at the end, fewer below the others.
  below_highest = jnp.where(below < h * w, below, 0).max(2)
  # Halves keep quotients of whole numbers away from where floor jumps, also on
  # machines that divide approximately.
  step = jnp.floor((below_highest + 0.5) / 255)[:, None, None]
  look_up = jax.vmap(lambda t, i: t.at[i].get(mode='promise_in_bounds'))
  rank = look_up(below.reshape(b, -1), bins).reshape(level.shape)
  rank = (rank + jnp.floor(step / 2) + 0.5) / jnp.maximum(step, 1)
  return jnp.where(step > 0, jnp.minimum(jnp.floor(rank), 255), level)


# --- geometry ----------------------------------------------------------------


def _matrix(op: Array, argument: Array, h: int, w: int) -> Array:
  """[b, 2, 3]: from x, y, 1 of the result to x, y of the image."""
  zero = jnp.zeros_like(argument)

  def only(name: str) -> Array:
    return jnp.where(op == OPS.index(name), argument, zero)

  angle = jnp.deg2rad(only('rotate'))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  right = jnp.trunc(only('translate_x') * w)
  down = jnp.trunc(only('translate_y') * h)
  # About the center, which is the only place that a rotation leaves alone.
  x0 = w / 2 - cos * (w / 2) + sin * (h / 2)
  y0 = h / 2 - sin * (w / 2) - cos * (h / 2)
  x_row = jnp.stack([cos, only('shear_x') - sin, x0 + right], 1)
  y_row = jnp.stack([only('shear_y') + sin, cos, y0 + down], 1)
  return jnp.stack([x_row, y_row], 1)


def _warp(x: Array, matrix: Array, fill: float | Array) -> Array:
  """The nearest pixels under an affine map of pixel centers.

  In PIL's fixed point, 16 bits after the point: which pixel is nearest is then
  no matter of how a machine rounds.
  """
  h, w = x.shape[1:3]
  center = matrix[:, :, 2] + (matrix[:, :, 0] + matrix[:, :, 1]) / 2
  matrix = matrix.at[:, :, 2].set(center)
  fixed = jnp.floor(65536 * matrix + 0.5).astype(jnp.int32)
  across, down, start = jnp.moveaxis(fixed[..., None, None], 2, 0)
  i, j = jnp.arange(h)[:, None], jnp.arange(w)
  column, row = jnp.moveaxis(start + across * j + down * i >> 16, 1, 0)
  return pick(x, row, column, fill)
