"""Ramps: coefficients as functions of the step, safe to trace.

Those of a length start or end at 1, and are 1 throughout if it is 0.
"""

from collections.abc import Callable, Sequence
import itertools

import jax.numpy as jnp

from jnl.base import Array, Scalar, check
from jnl.inputs import check_range

Schedule = Callable[[Array], Scalar]
"""A number by the steps taken, [] int32."""


def at_step(value: Scalar | Schedule, step: Array) -> Scalar:
  """A number, or what a function of the step says.

  Args:
    value: either.
    step: [] int.

  Returns:
    The number.

  >>> at_step(2.0, 3), at_step(lambda step: step / 6, 3)
  (2.0, 0.5)
  """
  return value(step) if callable(value) else value


def _progress(step: Scalar, length: Scalar) -> Array:
  """step / length, held within [0, 1]; 1 for a ramp of length 0."""
  check(length >= 0, f'length must be at least 0, got {length}')
  step = jnp.asarray(step)
  dtype = jnp.promote_types(step.dtype, jnp.float32)
  some = jnp.where(jnp.asarray(length) > 0, length, 1).astype(dtype)
  return jnp.where(
    jnp.asarray(length) > 0, jnp.clip(step.astype(dtype) / some, 0, 1), 1
  )


def sigmoid_rampup(step: Scalar, length: Scalar) -> Array:
  r"""A weight that rises from e^-5 to 1 as the bell of a Gaussian does.

  .. math:: \exp(-5 (1 - \min(s, L) / L)^2)

  Args:
    step: s >= 0, int or float, any shape.
    length: L >= 0 in the units of `step`.

  Returns:
    The shape of `step`, at least float32, in [e^-5, 1].

  Raises:
    ValueError: if `length` is negative.

  >>> float(sigmoid_rampup(3, 0)), float(sigmoid_rampup(10, 10))
  (1.0, 1.0)

  Reference: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning",
  ICLR 2017, arXiv 1610.02242.
  """
  return jnp.exp(-5 * jnp.square(1 - _progress(step, length)))


def sigmoid_rampdown(step: Scalar, length: Scalar) -> Array:
  r"""A weight that falls from 1 to e^-12.5 as the bell of a Gaussian does.

  .. math:: \exp(-12.5\, (\min(s, L) / L)^2)

  Args:
    step: s >= 0, int or float, any shape; steps since the descent began.
    length: L >= 0.

  Returns:
    The shape of `step`, at least float32, in [e^-12.5, 1]; 1 if L = 0.

  Raises:
    ValueError: if `length` is negative.

  >>> float(sigmoid_rampdown(0, 10))
  1.0

  Reference: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning",
  ICLR 2017, arXiv 1610.02242.
  """
  return jnp.where(
    jnp.asarray(length) > 0, jnp.exp(-12.5 * _progress(step, length) ** 2), 1
  )


def linear_rampup(step: Scalar, length: Scalar) -> Array:
  """A weight that rises from 0 to 1 on a line: min(s, L) / L.

  Args:
    step: s >= 0, int or float, any shape.
    length: L >= 0.

  Returns:
    The shape of `step`, at least float32, in [0, 1].

  Raises:
    ValueError: if `length` is negative.

  >>> linear_rampup(jnp.array([0, 5, 20]), 10).tolist()
  [0.0, 0.5, 1.0]
  """
  return _progress(step, length)


def cosine_rampup(step: Scalar, length: Scalar) -> Array:
  """A weight that rises on half a cosine: (1 - cos(pi min(s, L) / L)) / 2.

  Args:
    step: s >= 0, int or float, any shape.
    length: L >= 0.

  Returns:
    The shape of `step`, at least float32, in [0, 1].

  Raises:
    ValueError: if `length` is negative.

  >>> float(cosine_rampup(5, 10))
  0.5
  """
  return 0.5 * (1 - jnp.cos(jnp.pi * _progress(step, length)))


def ema_rate(
  step: Scalar, *, rate: Scalar = 0.997, length: Scalar = 40_000
) -> Array:
  r"""The rate of the old average at a step of ELR+, with a ramp.

  .. math:: \alpha(s) = \alpha \exp(-5 (1 - \min(s + 1, L) / L)^2)

  Args:
    step: s >= 0, the steps taken before this one.
    rate: alpha in [0, 1).
    length: L >= 0.

  Returns:
    The shape of `step`, at least float32.

  Raises:
    ValueError: if `length` is negative.

  >>> ema_rate(0, rate=0.5, length=0).tolist()
  0.5

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151.
  """
  return rate * sigmoid_rampup(jnp.asarray(step) + 1, length)


def ema_rate_warmup(step: Scalar, *, rate: Scalar = 0.9999) -> Array:
  r"""The rate of the old average at a step: at first of a plain mean.

  .. math:: \alpha(s) = \min(1 - 1 / (s + 1), \alpha)

  ELR+ uses it on Clothing1M.

  Args:
    step: s >= 0, the steps taken before this one.
    rate: alpha in [0, 1).

  Returns:
    The shape of `step`, at least float32.

  >>> ema_rate_warmup(jnp.array([0, 1, 99]), rate=0.75).tolist()
  [0.0, 0.5, 0.75]

  Reference: Tarvainen, Valpola, "Mean teachers are better role models:
  Weight-averaged consistency targets improve semi-supervised deep learning
  results", NeurIPS 2017, arXiv 1703.01780.
  """
  step = jnp.asarray(step)
  step = step.astype(jnp.promote_types(step.dtype, jnp.float32))
  return jnp.minimum(1 - 1 / (step + 1), rate)


def forget_rate(
  step: Scalar, *, rate: Scalar, length: Scalar = 10, exponent: Scalar = 1
) -> Array:
  r"""The share of large losses that Co-teaching leaves out, with a ramp.

  .. math:: R(s) = \tau^c \min(s / (L - 1), 1) \text{ for } s < L,\qquad
     R(s) = \tau \text{ from then on}

  Args:
    step: s >= 0, int or float, any shape; the paper counts epochs.
    rate: tau in [0, 1], the rate of noise.
    length: L >= 0 in the units of `step`.
    exponent: c > 0. With another than 1 the rate jumps at L, as in the official
      code.

  Returns:
    The shape of `step`, at least float32, in [0, 1]; `rate` if L = 0.

  Raises:
    ValueError: if an argument is out of range.

  >>> forget_rate(jnp.array([0, 2, 4, 5]), rate=0.5, length=5).tolist()
  [0.0, 0.25, 0.5, 0.5]

  Reference: Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching: Robust
  Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
  arXiv 1804.06872.
  """
  check_range('rate', rate, 0, 1)
  check_range('length', length, 0)
  check_range('exponent', exponent, 0, open_low=True)
  rising = jnp.asarray(rate) ** exponent * _progress(
    step, jnp.maximum(length - 1, 1)
  )
  return jnp.where(jnp.asarray(step) < length, rising, rate)


def piecewise_linear(
  step: Scalar, points: Sequence[tuple[Scalar, Scalar]]
) -> Array:
  """A weight on the line through some points, constant before and after them.

  Args:
    step: s >= 0, int or float, any shape; in what units, the points say.
    points: (step, value), at least one, whose steps rise.

  Returns:
    The shape of `step`, at least float32.

  Raises:
    ValueError: if there are no points, or the steps do not rise.

  >>> piecewise_linear(jnp.array([0, 15, 99]), [(10, 0.0), (20, 2.0)]).tolist()
  [0.0, 1.0, 2.0]
  """
  check_points('points', points)
  step = jnp.asarray(step)
  dtype = jnp.promote_types(step.dtype, jnp.float32)
  at, values = (jnp.asarray(a, dtype) for a in zip(*points, strict=True))
  return jnp.interp(step.astype(dtype), at, values)


def check_points(name: str, points: Sequence[tuple[Scalar, Scalar]]) -> None:
  """Raises unless these are points for `piecewise_linear`.

  Args:
    name: what the error calls them.
    points: (step, value), at least one, whose steps rise.

  Raises:
    ValueError: if they are not.

  >>> check_points('beta', [(10, 0.0), (20, 2.0)])
  """
  check(
    hasattr(points, '__len__')
    and len(points) > 0
    and all(hasattr(p, '__len__') and len(p) == 2 for p in points),
    f'{name} must be pairs of a step and a value, as ((10, 0.0), (40, 2.0)), '
    f'got {points}',
  )
  for (before, _), (after, _) in itertools.pairwise(points):
    check(before < after, f'the steps of {name} must rise, got {points}')
