"""A threshold that parts scores into two groups, each of least variance."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, check, is_concrete, whole
from jnl.inputs import check_int, read_floats, read_row_mask


def split_threshold(
  scores: ArrayLike, mask: ArrayLike | None = None, *, grid: int = 100
) -> Array:
  r"""Where to part scores, so that they vary least within the two sides.

  .. math:: \operatorname{argmin}_{t \in \{0, 1/g, \ldots, (g - 1)/g\}}
     w_0 \operatorname{var}\{s < t\} + w_1 \operatorname{var}\{s \ge t\}

  with w the share of the rows on a side, and variances that divide by their
  number. Otsu's rule, with all splits in reach looked at: there are no bins
  whose middle stands for what is in them. Of splits that are equal the first
  counts. Memory and time are O(n + g^2).

  Rows that lie on several devices must be gathered first, `base.gather`: each
  device has the threshold of what it is given.

  Args:
    scores: [n] floating-point, mostly in [0, 1): what lies below 0 is on the
      lower side of every split, what lies above 1 on the upper. Infinite ones
      are not there; inside jit, neither is NaN.
    mask: [n] bool, the rows that count; what the others hold leaves no trace.
    grid: g >= 1, how many thresholds are tried, those of float64: .57 is
      57 * .01 = .5700000000000001.

  Returns:
    [], at least float32. 0 where no split has rows on both sides: of fewer than
    two scores, or of equal ones, and then `scores > 0` is all of them. In
    float32 it is rounded down, so that `scores > threshold` are the rows that
    they are in float64.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if a
      score that counts is NaN.

  >>> round(float(split_threshold(jnp.array([0.1, 0.2, 0.15, 0.8, 0.9]))), 2)
  0.21

  Reference: Otsu, "A Threshold Selection Method from Gray-Level Histograms",
  IEEE Transactions on Systems, Man, and Cybernetics 9(1), 1979; on this grid
  Cao, Zhong, Zhou, Liu, Liu, Han, "Noisy Test-Time Adaptation in
  Vision-Language Models", ICLR 2025, arXiv 2502.14604.
  """
  scores = read_floats('scores', scores)
  check(scores.ndim == 1, f'scores must be [n], got shape {scores.shape}')
  n = len(scores)
  there = jnp.ones(n, bool) if mask is None else read_row_mask(mask, n)
  check_int('grid', grid)
  if is_concrete(scores, there):
    rows = np.isnan(np.asarray(scores, np.float64)) & np.asarray(there)
    first = np.flatnonzero(rows)[:1]
    check(not len(first), f'scores must not be NaN; row {first} is')
  return _split(whole(scores), whole(there), int(grid))[0]


@functools.partial(jax.jit, static_argnums=2)
def _split(scores: Array, there: Array, grid: int) -> tuple[Array, Array]:
  """The threshold [], and what each split is worth, [grid]."""
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  there = there & jnp.isfinite(scores)
  scores = jnp.where(there, scores, 0)
  lows, highs = _edges(grid, scores.dtype)
  count, mean, spread = _bins(scores, there, jnp.asarray(highs))
  bins = jnp.arange(grid + 1)
  upper = bins > jnp.arange(grid)[:, None]  # of each split, the bins above it

  def side(own: Array) -> tuple[Array, Array]:
    """How many rows, and their squared distances from their mean."""
    of = lambda values: jnp.sum(jnp.where(own, values, 0), axis=1)
    n = of(count)
    middle = of(count * mean) / jnp.maximum(n, 1)
    return n, of(spread + count * (mean - middle[:, None]) ** 2)

  (below, within_below), (above, within_above) = side(~upper), side(upper)
  both = (below > 0) & (above > 0)
  value = (within_below + within_above) / jnp.maximum(below + above, 1)
  value = jnp.where(both, value, jnp.inf)
  # A split is the one before it if no row lies between: then that comes first,
  # however the sums are rounded.
  first = jnp.argmin(jnp.where(count[:-1] > 0, value, jnp.inf))
  return jnp.where(jnp.any(both), jnp.asarray(lows)[first], 0), value


def _edges(grid: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
  """The grid of float64 in another dtype, rounded down, and rounded up.

  s >= t of a float32 s is s >= t rounded up, and s > t is s > t rounded down.
  """
  exact = np.arange(grid) * (1 / grid)
  near = exact.astype(dtype)
  up, down = near.dtype.type(np.inf), near.dtype.type(-np.inf)
  lows = np.where(near > exact, np.nextafter(near, down), near)
  return lows, np.where(near < exact, np.nextafter(near, up), near)


def _bins(
  scores: Array, there: Array, edges: Array
) -> tuple[Array, Array, Array]:
  """How many rows each bin has, their mean and squares about it, [grid + 1].

  Bin i is of scores from edge i - 1 up to edge i.
  """
  bins = len(edges) + 1
  place = jnp.searchsorted(edges, scores, side='right')
  place = jnp.where(there, place, bins)  # which is dropped

  def total(values: Array) -> Array:
    zeros = jnp.zeros(bins, scores.dtype)
    return zeros.at[place].add(values, mode='drop')

  count = total(jnp.ones_like(scores))
  # From the edge, not from 0: sums of small numbers round less.
  start = jnp.concatenate([edges[:1], edges])
  own = lambda of_bins: of_bins[jnp.minimum(place, bins - 1)]
  mean = start + total(scores - own(start)) / jnp.maximum(count, 1)
  return count, mean, total((scores - own(mean)) ** 2)
