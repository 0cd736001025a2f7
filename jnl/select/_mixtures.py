"""Two-component mixtures of losses: which of them belong to clean labels."""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy.special import betaln
from jax.typing import ArrayLike
import numpy as np

from jnl.base import (
  AXIS,
  SHARDS,
  Array,
  Scalar,
  axis_is_bound,
  check,
  global_quantile,
  global_sum,
  is_concrete,
  whole,
)
from jnl.inputs import check_between, check_range, read_floats, read_labels
from jnl.logspace import safe_log

EDGE = 1e-4
"""How near to 0 and 1 a beta mixture lets a scaled value come."""
TRIM = 0.05
"""The share of the smallest and of the largest that it leaves out."""
LEAST = 1e-12
"""Its least density of a component in the E-step."""
NEAR = 0.02
"""Means of scaled values nearer to each other are those of one component."""
CELL = 256
"""Most rows of one class that are summed before classes are looked at."""


class GaussianMixture(NamedTuple):
  """Two Gaussians of scaled values; the first, of smaller mean, is clean.

  `...` is nothing, or [c] for a mixture of each class.

  Attributes:
    means: [..., 2], of (value - low) / (high - low).
    variances: [..., 2], of the same.
    weights: [..., 2], the share of each; they sum to one.
    low: [], the least of all values.
    high: [], the largest.
    converged: [...] bool, whether the likelihood had stopped rising.
    collapsed: [...] bool, whether nothing separates: all values are equal, the
      means differ by less than 2% of the range, or a component has no example.
      Then everybody is clean.
    fallback: [...] bool, whether a class has the mixture of all classes.
  """

  means: Array
  variances: Array
  weights: Array
  low: Array
  high: Array
  converged: Array
  collapsed: Array
  fallback: Array


class BetaMixture(NamedTuple):
  """Two beta distributions of scaled values; the first is clean.

  `...` is nothing, or [c] for a mixture of each class.

  Attributes:
    alphas: [..., 2] > 0; the mean alpha / (alpha + beta) of the first is the
      smaller one.
    betas: [..., 2] > 0.
    weights: [..., 2], the share of each; they sum to one.
    low: [], the 5th percentile of all values, which is scaled to 0.
    high: [], the 95th, scaled to 1.
    converged: [...] bool, as of `GaussianMixture`.
    collapsed: [...] bool, the same.
    fallback: [...] bool, the same.
  """

  alphas: Array
  betas: Array
  weights: Array
  low: Array
  high: Array
  converged: Array
  collapsed: Array
  fallback: Array


Mixture = GaussianMixture | BetaMixture
M = TypeVar('M', GaussianMixture, BetaMixture)


def gaussian_mixture(
  values: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  weights: ArrayLike | None = None,
  num_iter: Scalar = 100,
  tol: Scalar = 1e-6,
  floor: Scalar = 5e-4,
) -> GaussianMixture:
  r"""Two Gaussians fitted to losses, by EM: that of small losses is clean.

  .. math:: p(x) = \sum_{k=1}^2 w_k \mathcal N(x; m_k, v_k),\qquad
     x = (\ell - \min \ell) / (\max \ell - \min \ell)

  The start is always m = (0, 1), v = 1/25, w = 1/2. DivideMix takes
  `num_iter=10, tol=1e-2`, from random starts. A loss far above all others makes
  these one component: clip such losses.

  Args:
    values: [n] floating-point, a loss for each example. Infinite ones are not
      fitted.
    mask: [n] bool, the rows that count; what the others hold leaves no trace.
    weights: [n] >= 0, how much each row counts.
    num_iter: rounds at most, >= 1.
    tol: how little the mean log-likelihood may rise in the last round, >= 0.
    floor: > 0, added to the variances.

  Returns:
    A `GaussianMixture`, for `clean_probability`. Without any rows it has
    collapsed.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if a
      value that counts is NaN.

  >>> mixture = gaussian_mixture(jnp.array([.1, .2, .2, .2, 2., 2., 2.1, 2.1]))
  >>> mixture.weights.round(3).tolist()
  [0.5, 0.5]

  Reference: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as
  Semi-supervised Learning", ICLR 2020, arXiv 2002.07394.
  """
  values, rows = _read(values, mask, weights)
  _check_fit(num_iter, tol)
  check_range('floor', floor, 0, open_low=True)
  mixture = _fit_gaussian(values, rows, None, 0, num_iter, tol, floor, 1)
  return _of_one(mixture)


def gaussian_mixture_by_class(
  values: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  mask: ArrayLike | None = None,
  weights: ArrayLike | None = None,
  min_examples: Scalar = 5,
  num_iter: Scalar = 100,
  tol: Scalar = 1e-6,
  floor: Scalar = 5e-4,
) -> GaussianMixture:
  """Two Gaussians for each class: classes need not be equally hard.

  As `gaussian_mixture` of the rows of a class, but scaled by the range of all.
  A class with few examples, or whose own mixture has collapsed, gets that of
  all classes: `fallback` says so.

  Args:
    values: [n] floating-point, a loss for each example.
    labels: [n] int in [0, c), as given: they may be wrong.
    num_classes: c.
    mask: [n] bool, the rows that count.
    weights: [n] >= 0, how much each row counts.
    min_examples: how many a class needs for a mixture of its own.
    num_iter: rounds at most, >= 1.
    tol: as in `gaussian_mixture`, of each class.
    floor: > 0, added to the variances.

  Returns:
    A `GaussianMixture` with [c, 2] means.

  Raises:
    TypeError, ValueError: as `gaussian_mixture`, or if a label that counts is
      out of range; inside jit that row does not count.

  >>> easy, hard = jnp.array([0., .1, 2., 2.1]), jnp.array([3., 3.1, 8., 8.1])
  >>> losses, labels = jnp.concatenate([easy, hard]), jnp.arange(8) // 4
  >>> own = gaussian_mixture_by_class(losses, labels, 2, min_examples=4)
  >>> clean_probability(own, losses, labels).round(1).tolist()
  [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
  """
  values, rows = _read(values, mask, weights)
  labels, rows = _read_classes(labels, num_classes, values, rows)
  _check_fit(num_iter, tol)
  check_range('floor', floor, 0, open_low=True)
  return _fit_gaussian(
    values, rows, labels, min_examples, num_iter, tol, floor, num_classes
  )


def beta_mixture(
  values: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  weights: ArrayLike | None = None,
  num_iter: Scalar = 10,
  tol: Scalar = 1e-6,
) -> BetaMixture:
  r"""Two beta distributions fitted to losses: that of small losses is clean.

  .. math:: p(x) \propto \sum_{k=1}^2 w_k
     x^{\alpha_k - 1} (1 - x)^{\beta_k - 1} / B(\alpha_k, \beta_k)

  Losses are scaled so that their 5th and 95th percentiles are 0 and 1; those
  outside are not fitted. The M-step matches mean and variance, so this is no
  maximum of the likelihood: ten rounds from Beta(1, 2) and Beta(2, 1) are the
  method, and more may be worse. (The official code scales by percentiles that
  are moved by 1e-5.) Percentiles are of all rows that count, whatever their
  weights, and need all values on each device once.

  Args:
    values: [n] floating-point, a loss for each example.
    mask: [n] bool, the rows that count; what the others hold leaves no trace.
    weights: [n] >= 0, how much each row counts.
    num_iter: rounds at most, >= 1.
    tol: at how little a change of the mean log-likelihood to stop, >= 0.

  Returns:
    A `BetaMixture`, for `clean_probability`.

  Raises:
    TypeError, ValueError: as `gaussian_mixture`.

  >>> mixture = beta_mixture(jnp.array([.1, .2, .2, .3, 1.9, 2., 2.1]))
  >>> clean_probability(mixture, jnp.array([.2, 2.])).round(2).tolist()
  [1.0, 0.0]

  Reference: Arazo, Ortego, Albert, O'Connor, McGuinness, "Unsupervised Label
  Noise Modeling and Loss Correction", ICML 2019, arXiv 1904.11238.
  """
  values, rows = _read(values, mask, weights)
  _check_fit(num_iter, tol)
  return _of_one(_fit_beta(values, rows, None, 0, num_iter, tol, 1))


def beta_mixture_by_class(
  values: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  mask: ArrayLike | None = None,
  weights: ArrayLike | None = None,
  min_examples: Scalar = 5,
  num_iter: Scalar = 10,
  tol: Scalar = 1e-6,
) -> BetaMixture:
  """Two beta distributions for each class.

  To `beta_mixture` as `gaussian_mixture_by_class` to `gaussian_mixture`.

  Args:
    values: [n] floating-point, a loss for each example.
    labels: [n] int in [0, c), as given: they may be wrong.
    num_classes: c.
    mask: [n] bool, the rows that count.
    weights: [n] >= 0, how much each row counts.
    min_examples: how many a class needs between the percentiles for a mixture
      of its own.
    num_iter: rounds at most, >= 1.
    tol: as in `beta_mixture`, of each class.

  Returns:
    A `BetaMixture` with [c, 2] alphas.

  Raises:
    TypeError, ValueError: as `gaussian_mixture_by_class`.

  >>> own = beta_mixture_by_class(jnp.arange(20.), jnp.arange(20) % 2, 2)
  >>> own.alphas.shape, own.fallback.tolist()
  ((2, 2), [False, False])
  """
  values, rows = _read(values, mask, weights)
  labels, rows = _read_classes(labels, num_classes, values, rows)
  _check_fit(num_iter, tol)
  return _fit_beta(
    values, rows, labels, min_examples, num_iter, tol, num_classes
  )


def clean_probability(
  mixture: Mixture,
  values: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  mask: ArrayLike | None = None,
  monotone: bool = True,
) -> Array:
  r"""How probable it is that a loss is of the clean component.

  .. math:: w_1 p_1(x) / (w_1 p_1(x) + w_2 p_2(x))

  The ratio of the densities turns round once: the wider Gaussian wins on both
  sides, and of beta distributions any may at the ends. `monotone` holds it from
  there on, so that no larger loss is cleaner, as Arazo et al. do on a table of
  100 bins; without, it is the posterior of EM and of DivideMix.

  Args:
    mixture: of one of the functions here.
    values: [n] floating-point, which may be others than those fitted.
    labels: [n] int in [0, c) for a mixture by class, and only then.
    mask: [n] bool, the rows asked about.
    monotone: whether the probability may not rise with the value.

  Returns:
    [n] in [0, 1]; 1 where the mixture has collapsed, 0 for +inf and outside the
    mask. Inside jit NaN for what is NaN or has a label out of range.

  Raises:
    TypeError, ValueError: if an argument is malformed, labels are missing or of
      no use, or outside jit a value asked about is NaN or a label out of range.

  >>> losses = jnp.array([.1, .2, .2, 2., 2.1])
  >>> clean_probability(gaussian_mixture(losses), losses).round(2).tolist()
  [1.0, 1.0, 1.0, 0.0, 0.0]
  """
  values, rows = _read(values, mask, None)
  by_class = mixture.weights.ndim == 2
  lacking = 'labels are needed for a mixture by class'
  useless = 'labels are for a mixture by class, and this is one of all'
  check(by_class == (labels is not None), lacking if by_class else useless)
  asked = rows > 0
  if labels is not None:
    classes = len(mixture.weights)
    labels, rows = _read_classes(labels, classes, values, rows)
    low, high = mixture.low, mixture.high
    mixture = type(mixture)(*(x[labels] if x.ndim else x for x in mixture))
    mixture = mixture._replace(low=low, high=high)
  inside = jnp.isfinite(values)
  x = _scaled(jnp.where(inside, values, 0), mixture.low, mixture.high)
  if isinstance(mixture, GaussianMixture):
    odds = _gaussian_odds(mixture, x, monotone)
  else:
    odds = _beta_odds(mixture, x, monotone)
  clean = jnp.where(mixture.collapsed, 1, jax.nn.sigmoid(odds))
  clean = jnp.where(inside, clean, values == -jnp.inf)
  clean = jnp.where(jnp.isnan(values) | (rows <= 0), jnp.nan, clean)
  return jnp.where(asked, clean, 0)


# --- posteriors --------------------------------------------------------------


def _gaussian_odds(mixture: GaussianMixture, x: Array, hold: bool) -> Array:
  """log(w_1 p_1 / (w_2 p_2)) [n], a parabola in x [n]."""
  (m0, m1), (v0, v1), (w0, w1) = (jnp.moveaxis(y, -1, 0) for y in mixture[:3])
  if hold:
    sharper = 1 / v0 - 1 / v1
    turn = (m0 / v0 - m1 / v1) / jnp.where(sharper == 0, 1, sharper)
    x = jnp.where(sharper > 0, jnp.maximum(x, turn), x)
    x = jnp.where(sharper < 0, jnp.minimum(x, turn), x)
  constant = safe_log(w0) - safe_log(w1) - jnp.log(v0 / v1) / 2
  return constant - (x - m0) ** 2 / (2 * v0) + (x - m1) ** 2 / (2 * v1)


def _beta_odds(mixture: BetaMixture, x: Array, hold: bool) -> Array:
  """The same of beta distributions, log x and log(1 - x) on a line."""
  (a0, a1), (b0, b1), (w0, w1) = (jnp.moveaxis(y, -1, 0) for y in mixture[:3])
  da, db = a1 - a0, b1 - b0
  if hold:
    turn = da / jnp.where(da + db == 0, 1, da + db)
    x = jnp.where((da > 0) & (db > 0), jnp.minimum(x, turn), x)
    x = jnp.where((da < 0) & (db < 0), jnp.maximum(x, turn), x)
  x = jnp.clip(x, EDGE, 1 - EDGE)
  constant = safe_log(w0) - safe_log(w1) - betaln(a0, b0) + betaln(a1, b1)
  return constant - da * jnp.log(x) - db * jnp.log1p(-x)


# --- rows --------------------------------------------------------------------


def _read(
  values: ArrayLike, mask: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Array, Array]:
  """Values [n] in at least float32, and weights [n], 0 outside the mask."""
  values = read_floats('values', values)
  check(
    values.ndim == 1 and values.size > 0,
    f'values must be [n], not empty, got shape {values.shape}',
  )
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  rows = jnp.ones(values.shape, values.dtype)
  if weights is not None:
    _check_rows('weights', weights, values)
    check_between('weights', weights, 0)
    rows = jnp.asarray(weights).astype(values.dtype)
  if mask is not None:
    mask = jnp.asarray(mask)
    check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
    _check_rows('mask', mask, values)
    rows = jnp.where(mask, rows, 0)
  values, rows = whole(values), whole(rows)
  bad = jnp.isnan(values) & (rows > 0)
  if is_concrete(bad):
    first = int(jnp.argmax(bad))
    check(not bad[first], f'values must not be NaN, as in row {first}')
  return values, rows


def _read_classes(
  labels: ArrayLike, num_classes: int, values: Array, rows: Array
) -> tuple[Array, Array]:
  """Labels [n] that are safe to gather, and weights, 0 where they were not."""
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  _check_rows('labels', labels, values)
  labels, valid = read_labels(labels, num_classes, where=rows > 0)
  return whole(labels), jnp.where(whole(valid), rows, 0)


def _check_rows(name: str, x: ArrayLike, values: Array) -> None:
  check(
    np.shape(x) == values.shape,
    f'{name} must be [n] like values, {values.shape}, got {np.shape(x)}',
  )


def _check_fit(num_iter: Scalar, tol: Scalar) -> None:
  check_range('num_iter', num_iter, 1)
  check_range('tol', tol, 0)


def _scaled(values: Array, low: Array, high: Array) -> Array:
  """0 at low and 1 at high; 0 where these are equal up to rounding."""
  # Of the largest floats the range would overflow, or its inverse underflow.
  values, low, high = values / 16, low / 16, high / 16
  size = jnp.maximum(jnp.abs(low), jnp.abs(high))
  equal = high - low <= 8 * jnp.finfo(size.dtype).eps * size
  x = (values - low) / jnp.where(equal, 1, high - low)
  return jnp.where(equal, 0, x)


def _extremes(values: Array, rows: Array) -> tuple[Array, Array]:
  """The least and the largest value of the rows that count; 0 without any."""
  least = lambda x: jnp.min(jnp.where(rows > 0, x, jnp.inf))
  ends = jnp.stack([least(values), least(-values)])
  if axis_is_bound():
    ends = lax.pmin(ends, AXIS)
  ends = jnp.where(jnp.isinf(ends), 0, ends)
  return ends[0], -ends[1]


# --- EM ----------------------------------------------------------------------


class _Cells(NamedTuple):
  """Rows [g, m], g groups of one class each: sums by class are sums by row."""

  values: Array
  rows: Array  # their weights
  own: Array  # [g] classes


class _Fit(NamedTuple):
  """Two components of each of c classes, and how they came about."""

  mean: Array  # [2, c], as the others
  variance: Array
  weight: Array
  likelihood: Array  # [c], as the next
  converged: Array
  round: Array


class _Family(NamedTuple):
  """What distributions are given by a mean and a variance.

  `terms` are rows [2, c] that depend on (mean, variance, log weight). `logs`
  gives the log-density of both components of what `basis` makes of values, and
  takes their distances to the means, and terms.
  """

  start: tuple[tuple[float, float], float]
  basis: Callable[[Array], tuple[Array, ...]]
  terms: Callable[[Array, Array, Array], list[Array]]
  logs: Callable[..., list[Array]]


def _gaussian_terms(mean: Array, variance: Array, log: Array) -> list[Array]:
  return [1 / (2 * variance), log - jnp.log(variance) / 2]


def _gaussian_logs(
  basis: tuple[Array, ...], apart: list[Array], terms: list[Array]
) -> list[Array]:
  return [
    constant - d * d * sharp
    for d, sharp, constant in zip(apart, *terms, strict=True)
  ]


def _beta_terms(mean: Array, variance: Array, log: Array) -> list[Array]:
  a, b = _beta_of(mean, variance)
  return [a - 1, b - 1, log - betaln(a, b)]


def _beta_logs(
  basis: tuple[Array, ...], apart: list[Array], terms: list[Array]
) -> list[Array]:
  log, log_rest = basis
  return [
    jnp.maximum(a * log + b * log_rest + constant, math.log(LEAST))
    for a, b, constant in zip(*terms, strict=True)
  ]


def _beta_of(mean: Array, variance: Array) -> tuple[Array, Array]:
  """alpha and beta, of a mean and a variance."""
  widest = mean * (1 - mean)
  a = mean * (widest / jnp.maximum(variance, LEAST) - 1)
  return a, a * (1 - mean) / mean


_GAUSSIAN = _Family(
  ((0, 1), 1 / 25), lambda x: (), _gaussian_terms, _gaussian_logs
)
_BETA = _Family(
  ((1 / 3, 2 / 3), 1 / 18),  # Beta(1, 2) and Beta(2, 1)
  lambda x: (jnp.log(x), jnp.log1p(-x)),
  _beta_terms,
  _beta_logs,
)


def _cells(
  values: Array, rows: Array, labels: Array | None, classes: int
) -> _Cells:
  """Rows by class, each class filled up to whole groups, within each shard.

  Once, so that a round of EM neither gathers nor scatters what is [n].
  """
  if labels is None:
    return _Cells(values[None], rows[None], jnp.zeros(1, jnp.int32))
  shards = 1 if axis_is_bound() else math.gcd(SHARDS, len(values))
  values, rows, labels = (x.reshape(shards, -1) for x in (values, rows, labels))
  m = values.shape[1]
  size = max(1, min(CELL, m // (4 * classes)))
  groups = m // size + classes
  count = jax.vmap(lambda x: jnp.bincount(x, length=classes))(labels)
  needed = -(-count // size)
  start, first = (jnp.cumsum(x, axis=1) - x for x in (count, needed))
  of_group = lambda ends: jnp.searchsorted(
    ends, jnp.arange(groups), side='right'
  )
  own = jax.vmap(of_group)(first + needed).clip(max=classes - 1)
  at = lambda x: jnp.take_along_axis(x, own, axis=1)[..., None]
  place = (jnp.arange(groups) - at(first)[..., 0])[..., None] * size
  place = place + jnp.arange(size)
  there = place < at(count)
  index = jnp.where(there, place + at(start), 0).reshape(shards, -1)
  index = jnp.take_along_axis(_by_label(labels, classes), index, axis=1)
  take = lambda x: jnp.take_along_axis(x, index, axis=1).reshape(-1, size)
  there = there.reshape(-1, size)
  return _Cells(take(values), jnp.where(there, take(rows), 0), own.reshape(-1))


def _by_label(labels: Array, classes: int) -> Array:
  """argsort of labels [shards, m]; of one number each, six times as fast."""
  m = labels.shape[1]
  if m * classes >= 1 << 31:
    return jnp.argsort(labels, axis=1)
  own = labels.astype(jnp.int32) * m + jnp.arange(m, dtype=jnp.int32)
  return jnp.sort(own, axis=1) % m


def _total(cells: _Cells, classes: int, parts: list[Array]) -> Array:
  """Sums of [g, m] by class, [parts, c], over all devices."""
  sums = jnp.stack([jnp.sum(part, axis=1) for part in parts], axis=1)
  return global_sum(jax.ops.segment_sum(sums, cells.own, classes)).T


def _em(
  family: _Family,
  cells: _Cells,
  classes: int,
  num_iter: Scalar,
  tol: Scalar,
  floor: Scalar,
) -> _Fit:
  """EM, at most num_iter rounds; a class stays where it has converged."""
  values, rows, own = cells
  basis, dtype = family.basis(values), values.dtype
  count = _total(cells, classes, [rows])[0]

  def one_round(fit: _Fit) -> _Fit:
    terms = family.terms(fit.mean, fit.variance, safe_log(fit.weight))
    mean, *terms = [x[:, own, None] for x in (fit.mean, *terms)]
    apart = [values - mean[0], values - mean[1]]
    log = family.logs(basis, apart, terms)
    odds = log[1] - log[0]
    second = rows * jax.nn.sigmoid(odds)
    share = [rows - second, second]
    first = [s * d for s, d in zip(share, apart, strict=True)]
    squares = [s * d for s, d in zip(first, apart, strict=True)]
    likely = rows * (log[0] + jax.nn.softplus(odds))
    sums = _total(cells, classes, [*share, *first, *squares, likely])
    n = sums[:2] + 10 * jnp.finfo(dtype).eps
    step = sums[2:4] / n
    likelihood = sums[6] / jnp.where(count > 0, count, 1)
    new = _Fit(
      fit.mean + step,
      jnp.maximum(sums[4:6] / n - step * step, 0) + floor,
      n / jnp.sum(n, axis=0),
      likelihood,
      jnp.abs(likelihood - fit.likelihood) < tol,
      fit.round + 1,
    )
    keep = lambda old, new: jnp.where(fit.converged, old, new)
    return jax.tree.map(keep, fit, new)._replace(round=new.round)

  means, variance = family.start
  both = lambda x: jnp.repeat(jnp.array(x, dtype)[:, None], classes, axis=1)
  first = _Fit(
    both(means),
    both([variance] * 2),
    both([0.5] * 2),
    jnp.full(classes, -jnp.inf, dtype),
    count <= 0,
    jnp.int32(0),
  )
  going_on = lambda fit: (fit.round < num_iter) & ~jnp.all(fit.converged)
  return lax.while_loop(going_on, one_round, first)


def _fit(
  family: _Family,
  values: Array,
  rows: Array,
  labels: Array | None,
  classes: int,
  min_examples: Scalar,
  num_iter: Scalar,
  tol: Scalar,
  floor: Scalar,
) -> tuple[_Fit, Array, Array]:
  """Also which classes collapsed, and which have the mixture of all."""

  def one(labels: Array | None, classes: int, num_iter: Scalar):
    cells = _cells(values, rows, labels, classes)
    fit = _em(family, cells, classes, num_iter, tol, floor)
    n = _total(cells, classes, [(cells.rows > 0).astype(values.dtype)])[0]
    order = jnp.argsort(fit.mean, axis=0)
    mean, variance, weight = (
      jnp.take_along_axis(x, order, axis=0) for x in fit[:3]
    )
    fit = fit._replace(mean=mean, variance=variance, weight=weight)
    empty = jnp.min(fit.weight, axis=0) * n < 0.5
    return fit, empty | (fit.mean[1] - fit.mean[0] < NEAR), n

  fit, collapsed, n = one(labels, classes, num_iter)
  if labels is None:
    return fit, collapsed, jnp.zeros(classes, bool)
  fallback = collapsed | (n < min_examples)
  rounds = jnp.where(jnp.any(fallback), num_iter, 0)  # 0: costs nothing
  every, all_collapsed, _ = one(None, 1, rounds)
  pick = lambda own, of_all: jnp.where(fallback, of_all, own)
  return jax.tree.map(pick, fit, every), fallback & all_collapsed, fallback


@functools.partial(jax.jit, static_argnums=7)
def _fit_gaussian(
  values: Array,
  rows: Array,
  labels: Array | None,
  min_examples: Scalar,
  num_iter: Scalar,
  tol: Scalar,
  floor: Scalar,
  classes: int,
) -> GaussianMixture:
  rows = jnp.where(jnp.isfinite(values), rows, 0)
  low, high = _extremes(values, rows)
  values = jnp.where(rows > 0, _scaled(values, low, high), 0)
  fit, collapsed, fallback = _fit(
    _GAUSSIAN, values, rows, labels, classes, min_examples, num_iter, tol, floor
  )
  m, v, w = fit.mean.T, fit.variance.T, fit.weight.T
  return GaussianMixture(m, v, w, low, high, fit.converged, collapsed, fallback)


@functools.partial(jax.jit, static_argnums=6)
def _fit_beta(
  values: Array,
  rows: Array,
  labels: Array | None,
  min_examples: Scalar,
  num_iter: Scalar,
  tol: Scalar,
  classes: int,
) -> BetaMixture:
  rows = jnp.where(jnp.isfinite(values), rows, 0)
  ends = jnp.array([TRIM, 1 - TRIM])
  low, high = global_quantile(values, rows > 0, ends)
  rows = jnp.where((values >= low) & (values <= high), rows, 0)
  values = jnp.where(rows > 0, _scaled(values, low, high), 0)
  values = jnp.clip(values, EDGE, 1 - EDGE)
  fit, collapsed, fallback = _fit(
    _BETA, values, rows, labels, classes, min_examples, num_iter, tol, 0.0
  )
  a, b = _beta_of(fit.mean, fit.variance)
  return BetaMixture(
    a.T, b.T, fit.weight.T, low, high, fit.converged, collapsed, fallback
  )


def _of_one(mixture: M) -> M:
  """A mixture of one class as one of all."""
  return type(mixture)(*(x[0] if x.ndim else x for x in mixture))
