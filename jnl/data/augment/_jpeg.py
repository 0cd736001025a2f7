"""What JPEG takes from images, without its coding, which loses nothing."""

import jax.numpy as jnp
import numpy as np

from jnl.base import Array, check

# The steps of the 8 x 8 frequencies at quality 50, of brightness and of color
# (Annex K of the standard, ITU-T T.81).
_LUMA = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ]
)
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [
  [17, 18, 24, 47],
  [18, 21, 26, 66],
  [24, 26, 56, 99],
  [47, 66, 99, 99],
]


def jpeg(x: Array, quality: float) -> Array:
  """Images as they come out of a JPEG file, color at half the resolution.

  As libjpeg does it, whose steps scale with 50 / quality below 50 and with 2 -
  quality / 50 above: levels rounded to 256, luma and chroma, chroma averaged
  over 2 x 2 pixels, cosine transforms of 8 x 8 blocks rounded to their steps,
  and back, chroma interpolated. A gray image has luma alone.

  Args:
    x: [b, h, w, c] in [0, 1], c of 1 or 3.
    quality: 1 .. 100, a whole number.

  Returns:
    [b, h, w, c], of 256 levels.

  Raises:
    ValueError: if quality is out of range.
  """
  check(
    1 <= quality <= 100 and quality == int(quality),
    f'the quality of jpeg must be a whole number 1 .. 100, got {quality}',
  )
  level = jnp.round(255 * x)
  if x.shape[3] == 1:
    return _coded(level[..., 0], _LUMA, quality)[..., None] / 255
  h, w = x.shape[1:3]
  red, green, blue = jnp.moveaxis(level, 3, 0)
  luma = jnp.round(0.299 * red + 0.587 * green + 0.114 * blue)
  blueness = 128 - 0.168736 * red - 0.331264 * green + 0.5 * blue
  redness = 128 + 0.5 * red - 0.418688 * green - 0.081312 * blue
  # Side by side in an image, not in the batch, which devices may share.
  chroma = jnp.round(jnp.stack([blueness, redness], 1)).reshape(-1, h, w)
  luma = _coded(luma, _LUMA, quality)
  half = _coded(_halved(chroma), _CHROMA, quality)[:, :, : (w + 1) // 2]
  full = _doubled(_doubled(half, h, 1), w, 2).reshape(-1, 2, h, w)
  blueness, redness = jnp.moveaxis(jnp.round(full) - 128, 1, 0)
  colors = [
    luma + 1.402 * redness,
    luma - 0.344136 * blueness - 0.714136 * redness,
    luma + 1.772 * blueness,
  ]
  return jnp.clip(jnp.round(jnp.stack(colors, 3)), 0, 255) / 255


def _halved(x: Array) -> Array:
  """Means of 2 x 2 pixels [b, h, w], rounded up and down in turn.

  To the right with those of the edge repeated to whole blocks; below, libjpeg
  repeats the means.
  """
  h, w = x.shape[1:]
  x = jnp.pad(x, ((0, 0), (0, h % 2), (0, -w % 16)), mode='edge')
  rows = x[:, ::2] + x[:, 1::2]
  total = rows[:, :, ::2] + rows[:, :, 1::2]
  return jnp.floor((total + 1 + jnp.arange(total.shape[2]) % 2) / 4)


def _doubled(x: Array, n: int, axis: int) -> Array:
  """`x` [b, h, w] at n places along an axis, each 3/4 of the nearer pixel."""
  i = np.arange(x.shape[axis])
  before = x.take(np.maximum(i - 1, 0), axis)
  after = x.take(np.minimum(i + 1, i[-1]), axis)
  pairs = jnp.stack([3 * x + before, 3 * x + after], axis + 1) / 4
  shape = (*x.shape[:axis], 2 * len(i), *x.shape[axis + 1 :])
  return pairs.reshape(shape).take(np.arange(n), axis)


def _coded(level: Array, steps: np.ndarray, quality: float) -> Array:
  """Levels [b, h, w] after their frequencies are rounded to steps."""
  b, h, w = level.shape
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  steps = ((steps * scale + 50) // 100).clip(1, 255).reshape(64)
  frequency, place = np.arange(8)[:, None], np.arange(8)
  cosine = np.cos(np.pi * frequency * (2 * place + 1) / 16) / 2
  cosine[0] /= np.sqrt(2)
  # All 64 frequencies of a block by one matrix.
  transform = jnp.asarray(np.kron(cosine, cosine), level.dtype)
  rows, columns = -(-h // 8), -(-w // 8)
  around = ((0, 0), (0, 8 * rows - h), (0, 8 * columns - w))
  y = jnp.pad(level - 128, around, mode='edge')
  y = y.reshape(b, rows, 8, columns, 8).swapaxes(2, 3).reshape(-1, 64)
  y = jnp.matmul(y, transform.T, precision='highest')
  y = jnp.round(y / steps) * steps
  y = jnp.matmul(y, transform, precision='highest')
  y = y.reshape(b, rows, columns, 8, 8).swapaxes(2, 3)
  y = y.reshape(b, 8 * rows, 8 * columns)[:, :h, :w]
  return jnp.clip(jnp.round(y + 128), 0, 255)
