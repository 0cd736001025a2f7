"""What is made of partial risks, against its definition."""

from fixture_losses import close, run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

RISKS = np.array(
  [[0.5, 2.0, 1.0], [0.5, -0.25, 1.0], [-1.0, -2.0, 0.5], [0.0, 0.0, 0.0]],
  np.float32,
)


def ascend(r, beta, gamma):
  """By a loop: values, and slopes by each risk."""
  values, slopes = [], []
  for row in r:
    back = bool(row.min() < -beta)
    negative = row < 0
    values.append(-gamma * row[negative].sum() if back else row.sum())
    slopes.append(-gamma * negative if back else np.ones(3))
  return np.array(values), np.array(slopes)


def test_definitions_and_gradients():
  ways = [(0.0, 1.0), (0.3, 1.0), (0.3, 0.5), (5.0, 1.0)]

  def all_of(r):
    value_and_slope = lambda f: (f(r), jax.grad(lambda r: f(r).sum())(r))
    return (
      value_and_slope(losses.clip_risks),
      value_and_slope(losses.abs_risks),
      [
        value_and_slope(
          lambda r, b=b, g=g: losses.ascend_risks(r, beta=b, gamma=g)
        )
        for b, g in ways
      ],
    )

  clipped, sizes, ascended = run(all_of, RISKS)
  close(clipped[0], np.maximum(RISKS, 0).sum(1))
  np.testing.assert_array_equal(clipped[1], RISKS >= 0)
  close(sizes[0], np.abs(RISKS).sum(1))
  np.testing.assert_array_equal(sizes[1][:3], np.sign(RISKS[:3]))
  for (beta, gamma), (value, slope) in zip(ways, ascended, strict=True):
    expected, expected_slope = ascend(RISKS, beta, gamma)
    close(value, expected)
    np.testing.assert_array_equal(slope, expected_slope)


def test_a_step_against_the_gradient_raises_what_is_negative():
  """And what is not stays where it is."""
  f = lambda r: losses.ascend_risks(r, gamma=0.5)
  moved = RISKS[1] - 0.1 * jax.grad(f)(RISKS[1])
  close(moved, RISKS[1] + np.array([0, 0.05, 0]))


def test_nan_infinite_half_and_traced():
  bad = np.array([np.nan, -1.0, 2.0], np.float32)
  for f in (losses.clip_risks, losses.abs_risks, losses.ascend_risks):
    assert np.isnan(f(bad))
    assert np.isfinite(f(np.float32([1e4, -1e4, 0])))
    assert f(jnp.ones(3, jnp.bfloat16)).dtype == np.float32
    with pytest.raises(TypeError, match='risks must be floating-point'):
      f(np.arange(3))
    with pytest.raises(ValueError, match=r'risks must be \[..., k\]'):
      f(1.0)
  for name in ('beta', 'gamma'):
    with pytest.raises(ValueError, match=f'{name} must lie in'):
      losses.ascend_risks(RISKS, **{name: -0.1})
    with pytest.raises(ValueError, match=f'{name} must be a scalar'):
      losses.ascend_risks(RISKS, **{name: np.ones(4)})
  sweep = jax.vmap(lambda b: losses.ascend_risks(RISKS[1], beta=b))
  close(sweep(np.float32([0, 0.3])), [0.25, 1.25])
