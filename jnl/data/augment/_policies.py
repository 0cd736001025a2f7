"""Random sequences of operations: RandAugment, FixMatch's, AutoAugment."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Key, check
from jnl.data.augment._basic import (
  check_images,
  check_rate,
  cutout,
  fold_in,
  integers,
  uniform,
)
from jnl.data.augment._ops import OPS, distort

Policy = Sequence[Sequence[tuple[str, float, float]]]
"""Sub-policies, each a sequence of (operation, probability, magnitude)."""

RAND_AUGMENT_OPS = (
  'identity',
  'autocontrast',
  'equalize',
  'rotate',
  'solarize',
  'color',
  'posterize',
  'contrast',
  'brightness',
  'sharpness',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
"""The 14 operations of RandAugment, and of FixMatch."""

CIFAR10_POLICY = (
  (('invert', 0.1, 7), ('contrast', 0.2, 6)),
  (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
  (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
  (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
  (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
  (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
  (('color', 0.4, 3), ('brightness', 0.6, 7)),
  (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
  (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
  (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
  (('color', 0.7, 7), ('translate_x', 0.5, 8)),
  (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
  (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
  (('brightness', 0.9, 6), ('color', 0.2, 8)),
  (('solarize', 0.5, 2), ('invert', 0.0, 3)),
  (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
  (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
  (('color', 0.9, 9), ('equalize', 0.6, 6)),
  (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
  (('brightness', 0.1, 3), ('color', 0.7, 0)),
  (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
  (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
  (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
  (('equalize', 0.8, 8), ('invert', 0.1, 3)),
  (('translate_y', 0.7, 9), ('autocontrast', 0.9, 1)),
)
"""The policy found on CIFAR-10 (Cubuk et al., 2019, appendix)."""

# The argument of an operation is base +- span * strength, strength in [0, 1],
# with a random sign where there is one. The bits of posterize are rounded down.
_AUTO_AUGMENT = {
  'posterize': (8.5, -4, False),
  'solarize': (256, -256, False),
  'solarize_add': (0, 110, False),
  'brightness': (1, 0.9, True),
  'color': (1, 0.9, True),
  'contrast': (1, 0.9, True),
  'sharpness': (1, 0.9, True),
  'rotate': (0, 30, True),
  'shear_x': (0, 0.3, True),
  'shear_y': (0, 0.3, True),
  'translate_x': (0, 150 / 331, True),
  'translate_y': (0, 150 / 331, True),
}
_FIXMATCH = {
  **_AUTO_AUGMENT,
  'posterize': (4, 4, False),
  'brightness': (0.05, 0.9, False),
  'color': (0.05, 0.9, False),
  'contrast': (0.05, 0.9, False),
  'sharpness': (0.05, 0.9, False),
  'translate_x': (0, 0.3, True),
  'translate_y': (0, 0.3, True),
}


def rand_augment(
  keys: Key,
  x: Array,
  *,
  ops: int = 2,
  magnitude: float | Array = 10.0,
  names: Sequence[str] = RAND_AUGMENT_OPS,
  fill: float | Array = 0.0,
) -> Array:
  """Images after RandAugment: random operations in turn, of one strength.

  The strength is a share of AutoAugment's ranges: rotations to 30 degrees,
  shears to 0.3, translations to 45% of the size, factors of brightness, color,
  contrast and sharpness 1 - 0.9 or 1 + 0.9, 4 bits, solarizing from level 0,
  adding 110 levels. Magnitude 0 leaves these operations without effect;
  autocontrast, equalize and invert have no strength. Directions are random.

  Args:
    keys: [b].
    x: [b, h, w, c] in [0, 1], c of 1 or 3.
    ops: N, how many operations, at least 0.
    magnitude: M in [0, 10], 10 the end of the ranges.
    names: the operations drawn from, of `OPS`.
    fill: for pixels from outside of the image: a number, or [c].

  Returns:
    The shape and dtype of `x`, in [0, 1].

  Raises:
    ValueError: if ops, magnitude or a name is unknown or out of range, or for a
      wrong shape.
    TypeError: if x is not floating point.

  >>> import jax
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> rand_augment(keys, jnp.ones((2, 8, 8, 3)), ops=1, magnitude=5).shape
  (2, 8, 8, 3)

  Reference: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data
  augmentation with a reduced search space", NeurIPS 2020, arXiv 1909.13719.
  Codes count differently. The TensorFlow one has 10 as here, also goes beyond,
  adds invert, solarize_add and cutout, and has a factor of 1 in the middle of
  the scale and full solarizing and posterizing at its beginning. The PyTorch
  ones count to 30: a third of that here; torchvision's magnitude 9 of 31 is 3.
  """
  x = check_images(keys, x)
  check(ops >= 0, f'ops must be at least 0, got {ops}')
  check(
    (magnitude >= 0) & (magnitude <= 10),
    f'magnitude must lie in [0, 10], got {magnitude}',
  )
  strength = jnp.full(x.shape[:1], magnitude / 10)
  for i in range(ops):
    op_draw, sign_draw = uniform(fold_in(keys, i), 2).T
    op = _places(names)[integers(op_draw, len(names))]
    argument = _argument(_AUTO_AUGMENT, op, strength, sign_draw)
    x = distort(x, op, argument, fill=fill)
  return x


def fixmatch_augment(
  keys: Key,
  x: Array,
  *,
  ops: int = 2,
  rate: float | Array = 0.5,
  sizes: tuple[int, int] = (16, 16),
  fill: float | Array = 0.0,
  cutout_fill: float | Array = 0.5,
) -> Array:
  """The strong view of FixMatch: RandAugment of random strength, then cutout.

  Each operation has a strength of its own, uniform over the ranges of the
  paper: factors of brightness, color, contrast and sharpness 0.05 to 0.95, 4 to
  7 bits, rotations to 30 degrees, shears and translations to 0.3.

  Args:
    keys: [b].
    x: [b, h, w, c] in [0, 1], c of 1 or 3.
    ops: how many operations, at least 0.
    rate: with which each of them is done, in [0, 1].
    sizes: the least and the largest side of the square that is cut out, in
      pixels; (0, 0) for none. 16 is half of CIFAR's images.
    fill: for pixels from outside of the image: a number, or [c].
    cutout_fill: what the square is covered with: a number, or [c].

  Returns:
    The shape and dtype of `x`, in [0, 1].

  Raises:
    ValueError: if ops, rate or sizes is out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> import jax
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> fixmatch_augment(keys, jnp.ones((2, 8, 8, 3)), sizes=(4, 4)).shape
  (2, 8, 8, 3)

  Reference: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
  Consistency and Confidence", NeurIPS 2020, arXiv 2001.07685. The defaults are
  those of the official code and of kekmodel/FixMatch-pytorch, whose strengths
  are 0.1, ..., 0.9; the official factors are 0.28 to 1.72. TorchSSL and USB,
  and with them the papers on imprecise labels, have `ops=3, rate=1, sizes=(0,
  16)`.
  """
  x = check_images(keys, x)
  check(ops >= 0, f'ops must be at least 0, got {ops}')
  check_rate(rate)
  check(
    0 <= sizes[0] <= sizes[1],
    f'sizes must be a least and a largest side, got {sizes}',
  )
  for i in range(ops):
    draws = uniform(fold_in(keys, i), 4).T
    op_draw, sign_draw, strength, rate_draw = draws
    op = _places(RAND_AUGMENT_OPS)[integers(op_draw, len(RAND_AUGMENT_OPS))]
    op = jnp.where(rate_draw < rate, op, OPS.index('identity'))
    argument = _argument(_FIXMATCH, op, strength, sign_draw)
    x = distort(x, op, argument, fill=fill)
  keys_size, keys_place = fold_in(keys, ops), fold_in(keys, ops + 1)
  size = integers(uniform(keys_size, 1)[:, 0], sizes[1] - sizes[0] + 1)
  return cutout(keys_place, x, size=sizes[0] + size, fill=cutout_fill)


def auto_augment(
  keys: Key,
  x: Array,
  *,
  policy: Policy = CIFAR10_POLICY,
  fill: float | Array = 0.0,
) -> Array:
  """Images after AutoAugment: a random sub-policy of a searched policy.

  The operations of the sub-policy are done one after the other, each with its
  own probability. Magnitudes 0, ..., 9 are spread evenly over the ranges that
  `rand_augment` states.

  Args:
    keys: [b].
    x: [b, h, w, c] in [0, 1], c of 1 or 3.
    policy: sub-policies of one length, each a sequence of (name in `OPS`,
      probability in [0, 1], magnitude in [0, 9]).
    fill: for pixels from outside of the image: a number, or [c].

  Returns:
    The shape and dtype of `x`, in [0, 1].

  Raises:
    ValueError: if the policy is empty, ragged, has an unknown name or a number
      out of range, or for a wrong shape.
    TypeError: if x is not floating point.

  >>> import jax
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> auto_augment(keys, jnp.ones((2, 8, 8, 3))).shape
  (2, 8, 8, 3)

  Reference: Cubuk, Zoph, Mane, Vasudevan, Le, "AutoAugment: Learning
  Augmentation Strategies from Data", CVPR 2019, arXiv 1805.09501. Sub-policies,
  ranges and random directions are the paper's, as in torchvision and
  DeepVoltaire/AutoAugment, except that the latter fills with gray and shears
  with cubic interpolation. The official code has 95 sub-policies, the strength
  magnitude / 10, factors from 0.1 to 1.9 that rise with it, and translations of
  at most 9 pixels.
  """
  x = check_images(keys, x)
  lengths = {len(sub_policy) for sub_policy in policy}
  check(
    len(lengths) == 1,
    f'policy must have sub-policies, all of one length, got lengths {lengths}',
  )
  names, rates, magnitudes = np.moveaxis(np.array(policy, object), 2, 0)
  rates, magnitudes = rates.astype(np.float32), magnitudes.astype(np.float32)
  check(
    ((rates >= 0) & (rates <= 1)).all(),
    'policy: probabilities must lie in [0, 1]',
  )
  check(
    ((magnitudes >= 0) & (magnitudes <= 9)).all(),
    'policy: magnitudes must lie in [0, 9]',
  )
  places = _places(names.ravel(), 'policy').reshape(names.shape)
  chosen = integers(uniform(keys, 1)[:, 0], len(policy))
  places, rates, strengths = (
    jnp.asarray(table)[chosen] for table in (places, rates, magnitudes / 9)
  )
  for i in range(places.shape[1]):
    rate_draw, sign_draw = uniform(fold_in(keys, i), 2).T
    done = rate_draw < rates[:, i]
    op = jnp.where(done, places[:, i], OPS.index('identity'))
    argument = _argument(_AUTO_AUGMENT, op, strengths[:, i], sign_draw)
    x = distort(x, op, argument, fill=fill)
  return x


def _places(names: Sequence[str], argument: str = 'names') -> Array:
  """The places of `names` in `OPS`."""
  check(len(names) > 0, f'{argument} must not be empty')
  unknown = sorted(set(names) - set(OPS))
  check(not unknown, f'{argument}: unknown {unknown}; known are {OPS}')
  return jnp.array([OPS.index(name) for name in names])


def _argument(
  ranges: Mapping[str, tuple[float, float, bool]],
  op: Array,
  strength: Array,
  sign_draw: Array,
) -> Array:
  """[b] arguments of `distort`.

  Args:
    ranges: base, span and whether the sign is random, by name.
    op: [b] places in `OPS`.
    strength: [b] in [0, 1].
    sign_draw: [b] uniform in [0, 1).
  """
  rows = [ranges.get(name, (0, 0, False)) for name in OPS]
  base, span, signed = jnp.array(rows, jnp.float32).T[:, op]
  sign = jnp.where((signed > 0) & (sign_draw < 0.5), -1, 1)
  return base + sign * span * strength
