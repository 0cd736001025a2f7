"""Crops, flips, holes and noise, and how augmentations are put together."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Batch, Key, check, is_concrete

Augmentation = Callable[[Key, Array], Array]
"""`(keys [b], x [b, ...]) -> x`, the same shape and dtype."""


# --- images ------------------------------------------------------------------


def pad_crop(
  keys: Key,
  x: Array,
  *,
  padding: int = 4,
  mode: Literal['reflect', 'constant'] = 'reflect',
) -> Array:
  """Images padded on all sides and cut to their size at a random place.

  The (2 padding + 1)^2 places are equally likely.

  Args:
    keys: [b].
    x: [b, h, w, c].
    padding: pixels on each side, at least 0, and below h and w to reflect.
    mode: `'reflect'` mirrors without repeating the edge, as FixMatch does;
      `'constant'` pads with zeros, as most supervised training does.

  Returns:
    The shape and dtype of `x`.

  Raises:
    ValueError: if padding or mode is out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> pad_crop(keys, jnp.ones((2, 8, 8, 1)), padding=2).shape
  (2, 8, 8, 1)
  """
  x = check_images(keys, x)
  h, w = x.shape[1:3]
  modes = ('reflect', 'constant')
  check(mode in modes, f'mode must be one of {modes}, got {mode!r}')
  check(padding >= 0, f'padding must be at least 0, got {padding}')
  check(
    mode == 'constant' or padding < min(h, w),
    f'padding must be below the height and width of x, {h} and {w}, to '
    f'reflect; got {padding}',
  )
  start = integers(uniform(keys, 2), 2 * padding + 1) - padding
  row, column = jnp.arange(h) + start[:, :1], jnp.arange(w) + start[:, 1:]
  fill = 0.0 if mode == 'constant' else None
  if mode == 'reflect':
    row, column = _reflect(row, h), _reflect(column, w)
  return pick(x, row[:, :, None], column[:, None, :], fill)


def _reflect(i: Array, n: int) -> Array:
  """Mirrors what lies outside of 0 .. n - 1 at the two ends."""
  return n - 1 - jnp.abs(n - 1 - jnp.abs(i))


def flip(keys: Key, x: Array, *, rate: float | Array = 0.5) -> Array:
  """Images mirrored left to right with probability `rate`.

  Args:
    keys: [b].
    x: [b, h, w, c].
    rate: in [0, 1].

  Returns:
    The shape and dtype of `x`.

  Raises:
    ValueError: if rate is out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 1)
  >>> x = jnp.array([1., 2., 3.]).reshape(1, 1, 3, 1)
  >>> flip(keys, x, rate=1).ravel().tolist()
  [3.0, 2.0, 1.0]
  """
  x = check_images(keys, x)
  check_rate(rate)
  column = jnp.arange(x.shape[2])
  column = jnp.where(uniform(keys, 1) < rate, column[::-1], column)
  # Selecting between x and its mirror image would have XLA:CPU compute twice
  # what comes before, because it fuses it into both.
  mirror = jax.vmap(lambda x, j: x.at[:, j].get(mode='promise_in_bounds'))
  return mirror(x, column)


def cutout(
  keys: Key,
  x: Array,
  *,
  size: int | Array,
  fill: float | Array = 0.5,
) -> Array:
  """Images with a square covered at a random place.

  The center is any pixel with equal probability; what reaches over the border
  is cut off, so that between a quarter of the square and all of it is seen.

  Args:
    keys: [b].
    x: [b, h, w, c].
    size: the side in pixels, at least 0; an int, or [b] ints.
    fill: what it is covered with: a number, or [c]. The paper's 0 comes after
      standardization, hence gray.

  Returns:
    The shape and dtype of `x`.

  Raises:
    ValueError: if size is negative, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 1)
  >>> int((cutout(keys, jnp.ones((1, 9, 9, 1)), size=1) == 0.5).sum())
  1

  Reference: DeVries, Taylor, "Improved Regularization of Convolutional Neural
  Networks with Cutout", 2017, arXiv 1708.04552.
  """
  x = check_images(keys, x)
  size = jnp.asarray(size)
  check((size >= 0).all(), f'size must be at least 0, got {size}')
  h, w = x.shape[1:3]
  place = uniform(keys, 2)
  size = jnp.broadcast_to(size, x.shape[:1])[:, None]

  def covered(place: Array, n: int) -> Array:
    first = integers(place, n) - size // 2
    return (jnp.arange(n) >= first) & (jnp.arange(n) < first + size)

  row, column = covered(place[:, :1], h), covered(place[:, 1:], w)
  hole = row[:, :, None, None] & column[:, None, :, None]
  return jnp.where(hole, jnp.asarray(fill, x.dtype), x)


# --- arrays of any shape -----------------------------------------------------


def gaussian_noise(keys: Key, x: Array, *, scale: float | Array) -> Array:
  """Examples plus independent normal noise, not clipped.

  Args:
    keys: [b].
    x: [b, ...].
    scale: the standard deviation, at least 0; or one for each value of an
      example, such as a column of a table.

  Returns:
    The shape and dtype of `x`.

  Raises:
    ValueError: if scale is negative, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> gaussian_noise(keys, jnp.ones((2, 3)), scale=0.0).tolist()
  [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
  """
  x = check_examples(keys, x)
  check(
    not is_concrete(scale) or np.all(np.asarray(scale) >= 0),
    f'scale must be at least 0, got {scale}',
  )
  noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
  return x + jnp.asarray(scale, x.dtype) * noise(keys)


def feature_dropout(keys: Key, x: Array, *, rate: float | Array = 0.2) -> Array:
  """Examples with values set to zero at a rate, the others rescaled.

  Those kept are divided by 1 - rate, as in a dropout layer, so that the
  expectation stays. With `gaussian_noise` after it, a strong view of tabular
  data, for which images' augmentations have no meaning.

  Args:
    keys: [b].
    x: [b, ...].
    rate: in [0, 1).

  Returns:
    The shape and dtype of `x`.

  Raises:
    ValueError: if rate is out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> keys = jax.random.split(jax.random.key(0), 1)
  >>> sorted(set(feature_dropout(keys, jnp.ones((1, 99)), rate=.5).tolist()[0]))
  [0.0, 2.0]
  """
  x = check_examples(keys, x)
  check((rate >= 0) & (rate < 1), f'rate must lie in [0, 1), got {rate}')
  keep = 1 - jnp.asarray(rate, x.dtype)
  mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))
  return jnp.where(mask(keys), x / keep, 0)


# --- put together ------------------------------------------------------------


def compose(*functions: Augmentation) -> Augmentation:
  """The augmentation that applies several, each with numbers of its own.

  Args:
    *functions: `(keys, x) -> x`; the i-th gets the keys with i folded in. None
      at all is the identity.

  Returns:
    `(keys, x) -> x`.

  >>> weak = compose(pad_crop, flip)
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> jax.jit(weak)(keys, jnp.ones((2, 8, 8, 3))).shape
  (2, 8, 8, 3)
  """

  def composed(keys: Key, x: Array) -> Array:
    for i, function in enumerate(functions):
      x = function(fold_in(keys, i), x)
    return x

  return composed


def views(
  weak: Augmentation,
  *strong: Augmentation,
  names: Sequence[str] = ('x',),
) -> Callable[[Key, Batch], Batch]:
  """The augmentation of batches that makes the views, for `fit(augment=)`.

  Args:
    weak: replaces the examples; `compose()` leaves them as they are.
    *strong: further views of the raw examples, under the name with `_strong`,
      `_strong_2`, `_strong_3`, ... appended.
    names: the arrays of the batch that hold examples. Each of them and each
      view has random numbers of its own.

  Returns:
    `(keys [b], batch) -> batch` with the views; all else is handed on.

  Raises:
    ValueError: at the call, if the batch has no array of a name.

  >>> augment = views(flip, compose(flip, pad_crop))
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> batch = augment(keys, {'x': jnp.ones((2, 8, 8, 1)), 'labels': [0, 1]})
  >>> sorted(batch)
  ['labels', 'x', 'x_strong']
  """

  def augment(keys: Key, batch: Batch) -> Batch:
    augmented = dict(batch)
    for i, name in enumerate(names):
      check(name in batch, f'names: {name!r} is not in {sorted(batch)}')
      for j, view in enumerate((weak, *strong)):
        own = fold_in(keys, i * (1 + max(1, len(strong))) + j)
        suffix = ('', '_strong')[j] if j < 2 else f'_strong_{j}'
        augmented[name + suffix] = view(own, batch[name])
    return augmented

  return augment


# --- shared with the policies ------------------------------------------------


def check_examples(keys: Key, x: Array) -> Array:
  """`x` [b, ...] as an array, once it and `keys` [b] are in order."""
  x = jnp.asarray(x)
  check(
    jnp.issubdtype(x.dtype, jnp.floating),
    f'x must be floating point, got {x.dtype}',
    TypeError,
  )
  check(x.ndim >= 1, 'x must be [b, ...], got a scalar')
  check(
    keys.shape[:1] == x.shape[:1],
    f'keys must be [b], one for each of the {x.shape[0]} examples of x, got '
    f'shape {keys.shape}',
  )
  return x


def check_images(keys: Key, x: Array) -> Array:
  """`x` [b, h, w, c] as an array, once it and `keys` [b] are in order."""
  x = check_examples(keys, x)
  check(x.ndim == 4, f'x must be [b, h, w, c], got shape {x.shape}')
  return x


def check_rate(rate: float | Array) -> None:
  """Raises unless `rate` is in [0, 1]."""
  check((rate >= 0) & (rate <= 1), f'rate must lie in [0, 1], got {rate}')


def fold_in(keys: Key, tag: int) -> Key:
  """`tag` folded into every one of keys [b]."""
  check(len(keys.shape) > 0, 'keys must be [b], got a single key')
  return jax.vmap(jax.random.fold_in, (0, None))(keys, tag)


def uniform(keys: Key, count: int) -> Array:
  """[b, count] in [0, 1), each row from its own key."""
  return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def integers(u: Array, n: int) -> Array:
  """Uniform numbers in [0, 1) as int32 in 0 .. n - 1."""
  return jnp.floor(u * n).astype(jnp.int32)


def pick(
  x: Array, row: Array, column: Array, fill: float | Array | None
) -> Array:
  """Pixels of images by row and column.

  One gather. On CPU as fast as taking rows and then columns, and 2, 5 and 30
  times faster than slices of padded images, one-hot products and shifts.

  Args:
    x: [b, h, w, c].
    row: int, [b, h, w] or broadcast to it.
    column: the same.
    fill: for pixels that do not exist: a number, or [c]; None if all do.

  Returns:
    [b, h, w, c].
  """
  h, w = x.shape[1:3]
  take = jax.vmap(lambda x, i, j: x.at[i, j].get(mode='promise_in_bounds'))
  if fill is None:
    return take(x, row, column)
  inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
  picked = take(x, jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1))
  return jnp.where(inside[..., None], picked, jnp.asarray(fill, x.dtype))
