"""Ramps: ends, lengths of zero, tracing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import ramps

RAMPS = [
  (ramps.sigmoid_rampup, np.exp(-5), 1.0),
  (ramps.sigmoid_rampdown, 1.0, np.exp(-12.5)),
  (ramps.linear_rampup, 0.0, 1.0),
  (ramps.cosine_rampup, 0.0, 1.0),
]
every_ramp = pytest.mark.parametrize(('ramp', 'first', 'last'), RAMPS)


@functools.cache
def ramped():
  """Values by name of the ramp, in one program."""

  def values(ramp):
    return {
      'ends': ramp(np.array([0, 10, 25]), 10),
      'rise': ramp(np.arange(41), 40),
      'zero': ramp(np.arange(3), 0),
      'slope': jax.grad(lambda s: ramp(s, 0))(1.0),
      'one': [ramp(jnp.int32(3), length) for length in (0, 7)],
    }

  program = jax.jit(lambda: {ramp.__name__: values(ramp) for ramp, *_ in RAMPS})
  return program()


@every_ramp
def test_ends_and_beyond(ramp, first, last):
  values = ramped()[ramp.__name__]['ends']
  np.testing.assert_allclose(values, [first, last, last], rtol=1e-6, atol=1e-7)


@every_ramp
def test_monotone(ramp, first, last):
  steps = np.diff(ramped()[ramp.__name__]['rise'])
  assert (steps * np.sign(last - first) > 0).all()


@every_ramp
def test_length_zero_is_one(ramp, first, last):
  del first, last
  values = ramped()[ramp.__name__]
  np.testing.assert_array_equal(values['zero'], np.ones(3))
  assert np.isfinite(values['slope'])


@every_ramp
def test_traced_as_eager_and_strongly_typed(ramp, first, last):
  del first, last
  for length, traced in zip(
    (0, 7), ramped()[ramp.__name__]['one'], strict=True
  ):
    eager = ramp(3, length)
    np.testing.assert_allclose(traced, eager, rtol=1e-6)
    assert traced.dtype == jnp.float32
    assert not traced.weak_type
    assert not eager.weak_type


@every_ramp
def test_negative_length_is_named(ramp, first, last):
  del first, last
  with pytest.raises(ValueError, match='length'):
    ramp(1, -1)


def test_ema_rate():
  assert ramps.ema_rate(40_000) == jnp.float32(0.997)
  expected = 0.9 * np.exp(-5 * (1 - 3 / 10) ** 2)
  got = ramps.ema_rate(2, rate=0.9, length=10)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ema_rate_warmup_is_a_plain_mean_at_first():
  """After s steps the average weighs all s + 1 values alike."""
  average = 0.0
  for step, value in enumerate([3.0, 5.0, 10.0]):
    rate = float(ramps.ema_rate_warmup(step))
    average = rate * average + (1 - rate) * value
  np.testing.assert_allclose(average, 6.0, rtol=1e-6)
  assert ramps.ema_rate_warmup(10**9, rate=0.99) == jnp.float32(0.99)


def test_forget_rate():
  """A line of L points, then the rate itself; also where L is 0 or 1."""
  rate = jax.jit(functools.partial(ramps.forget_rate, rate=0.4, exponent=2))
  step = np.arange(7)
  expected = np.where(step < 5, np.linspace(0, 0.16, 7) * 6 / 4, 0.4)
  np.testing.assert_allclose(rate(step, length=5), expected, rtol=1e-6)
  np.testing.assert_allclose(rate(4.5, length=5), 0.16, rtol=1e-6)
  assert rate(step, length=1).tolist() == [0.0, *[np.float32(0.4)] * 6]
  assert rate(0, length=0) == np.float32(0.4)
  for name, value in {'rate': 1.5, 'length': -1, 'exponent': 0}.items():
    with pytest.raises(ValueError, match=name):
      ramps.forget_rate(1, **{'rate': 0.4, name: value})


def test_piecewise_linear():
  line = functools.partial(
    ramps.piecewise_linear, points=[(10, 0.5), (20, 2.0), (30, 1.0)]
  )
  found = jax.jit(line)(np.array([0, 10, 15, 20, 25, 99]))
  np.testing.assert_allclose(found, [0.5, 0.5, 1.25, 2, 1.5, 1], rtol=1e-6)
  assert ramps.piecewise_linear(3, [(0, 0.25)]) == 0.25
  for points, match in (
    ([], 'points must be pairs'),
    ([(1, 2, 3)], 'points must be pairs'),
    ([(5, 0.0), (5, 1.0)], 'must rise'),
  ):
    with pytest.raises(ValueError, match=match):
      ramps.piecewise_linear(1, points)
