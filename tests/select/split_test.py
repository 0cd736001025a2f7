"""The threshold of least variance, against all splits in float64."""

import functools

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl.select import split_threshold

N = 90


def best(scores, grid=100):
  """The first of all splits, one by one."""
  scores, values = np.asarray(scores, np.float64), []
  for i in range(grid):
    own = scores >= i * (1 / grid)
    sides = [own.sum(), (~own).sum()]
    if min(sides):
      within = [np.var(scores[own]), np.var(scores[~own])]
      values.append(np.dot(sides, within) / len(scores))
    else:
      values.append(np.inf)
  return np.argmin(values) * (1 / grid)


def draws():
  """[runs, N]: two groups, one, few values, outside [0, 1), two of them."""
  rng = np.random.default_rng(0)
  runs = [rng.beta(a, b, N) for a, b in ((0.4, 0.9), (2, 5), (0.1, 3), (9, 1))]
  runs += [rng.integers(0, 4, N) / 8, rng.normal(0.5, 0.6, N)]
  runs += [rng.choice([0.1, 0.7], N), 0.29 + 1e-3 * rng.random(N)]
  return np.array(runs, np.float32), rng.random((len(runs), N)) < 0.7


@functools.cache
def programs():
  of = split_threshold
  return compiled(
    lambda scores, mask, dirty: (
      jax.vmap(of)(scores),
      jax.vmap(of)(dirty, mask),
      jax.vmap(functools.partial(of, grid=7))(scores),
      of(scores[0], jnp.zeros(N, bool)),
      of(dirty[0].astype(jnp.bfloat16), mask[0]),
      of(jnp.where(mask[1], scores[1], jnp.nan)),
    )
  )


def test_it_is_the_first_of_all_splits():
  scores, mask = draws()
  dirty = np.where(mask, scores, np.float32(np.nan))
  dirty[::2] = np.where(mask[::2], scores[::2], np.float32(-np.inf))
  whole, masked, coarse, empty, short, unknown = programs()(scores, mask, dirty)
  for own, (run, there) in enumerate(zip(scores, mask, strict=True)):
    np.testing.assert_allclose(whole[own], best(run), atol=1e-7)
    np.testing.assert_allclose(masked[own], best(run[there]), atol=1e-7)
    np.testing.assert_allclose(coarse[own], best(run, 7), atol=1e-7)
    # Rounded down: above it are the rows that are above it in float64.
    above = run.astype(np.float64) > best(run)
    np.testing.assert_array_equal(run > whole[own], above)
  assert len({*whole.tolist()}) > 4
  assert empty == 0
  rounded = np.asarray(jnp.asarray(scores[0][mask[0]], jnp.bfloat16))
  np.testing.assert_allclose(short, best(rounded), atol=1e-7)
  assert short.dtype == np.float32
  # Traced, NaN is not there; so is infinity.
  np.testing.assert_allclose(unknown, best(scores[1][mask[1]]), atol=1e-7)


@pytest.mark.parametrize('scores', [[], [0.4], [0.4] * 9, [np.inf, 0.2]])
def test_nothing_to_part(scores):
  assert split_threshold(jnp.array(scores, jnp.float32)) == 0


def test_scores_on_the_grid_lie_on_the_side_that_they_lie_on_in_float64():
  """.57 is below 57 * .01, and so is its float32."""
  with jax.enable_x64(True):
    for value in (0.57, 57 * 0.01, 0.29, 0.0, 0.99):
      for dtype in (np.float32, np.float64):
        scores = np.array([value, 1.0, value, value - 0.2], dtype)
        found = split_threshold(scores)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, best(scores), rtol=1e-7)
        wide = scores.astype(np.float64)
        np.testing.assert_array_equal(scores > found, wide > best(scores))


@pytest.mark.parametrize(
  ('args', 'grid', 'error', 'match'),
  [
    ((np.zeros(3, int),), 100, TypeError, 'scores must be floating-point'),
    ((np.zeros((3, 1)),), 100, ValueError, r'scores must be \[n\]'),
    ((np.zeros(3), np.ones(3)), 100, TypeError, 'mask must be bool'),
    ((np.zeros(3), np.ones(2, bool)), 100, ValueError, 'mask must be'),
    ((np.zeros(3),), 0, ValueError, 'grid must be an int'),
    ((np.array([0, np.nan]),), 100, ValueError, 'NaN; row .1. is'),
  ],
)
def test_bad_input_is_named(args, grid, error, match):
  with pytest.raises(error, match=match):
    split_threshold(*args, grid=grid)
