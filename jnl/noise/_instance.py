"""Noise that depends on the example: on its input, or on its posterior."""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import (
  Array,
  Key,
  Scalar,
  check,
  check_auto,
  check_key,
  is_concrete,
)
from jnl.inputs import read_rows_of_probs
from jnl.noise._draws import NoisyLabels, corrupt_each
from jnl.noise._inputs import (
  by_rows,
  check_classes,
  check_length,
  check_rate,
  read_labels,
  read_vector,
)

# --- part-dependent noise ----------------------------------------------------


def truncated_rates(
  key: Key, n: int, rate: Scalar, *, std: Scalar = 0.1
) -> Array:
  r"""Flip rates of examples, normal around a mean and truncated.

  .. math:: q_i \sim N(r, s^2) \text{ given } 0 \le q_i \le 1

  Args:
    key: PRNG key.
    n: how many, >= 0.
    rate: r in [0, 1]. It is the mean of the q_i unless it is within a few s of
      0 or 1: r = 0 gives .8 s.
    std: s > 0.

  Returns:
    [n], in [0, 1].

  Raises:
    ValueError: if `rate` or `std` is out of range.
  """
  check_key(key)
  check_rate('rate', rate)
  check(std > 0, f'std must be positive, got {std}')
  lower, upper = (0 - rate) / std, (1 - rate) / std
  z = jax.random.truncated_normal(key, lower, upper, (n,))
  return jnp.clip(rate + std * z, 0, 1)


def part_dependent_probs(
  x: ArrayLike, labels: ArrayLike, flip_rates: ArrayLike, weights: ArrayLike
) -> Array:
  r"""The label probabilities of part-dependent noise.

  .. math:: P_{ij} = (1 - q_i)\, 1[j = y_i] +
    q_i\, \mathrm{softmax}_{j \ne y_i}\big(x_i^T W^{(y_i)}\big)_j

  Inputs that look alike get alike wrong labels.

  Args:
    x: [n, ...], flattened to [n, f]; integers are read as float32. Its scale
      matters: see `part_dependent`.
    labels: y, [n] int, clean, in [0, c).
    flip_rates: q, [n] in [0, 1].
    weights: W, [c, f, c], one matrix for each class; or [f, c], shared by all.

  Returns:
    [n, c], P(noisy = j | x_i, y_i). Rows are computed in blocks, whose weights
    are at most 64 MiB at once (or one row's).

  Raises:
    ValueError: if shapes do not match, `flip_rates` or `labels` are out of
      range, or `x` is not finite (outside jit).
    TypeError: if `labels` are not integers.

  Reference: Xia et al., "Part-dependent Label Noise: Towards Instance-dependent
  Label Noise", NeurIPS 2020, arXiv 2006.07836, and its code.
  """
  weights, flip_rates = jnp.asarray(weights), jnp.asarray(flip_rates)
  c = weights.shape[-1]
  labels = read_vector('labels', labels, c)
  x = _read_inputs(x, len(labels))
  n, f = x.shape
  check(
    weights.shape in ((c, f, c), (f, c)) and c >= 2,
    f'weights must be [c, f, c] or [f, c] with f = {f} and c >= 2, got shape '
    f'{weights.shape}',
  )
  check(
    flip_rates.shape == (n,),
    f'flip_rates must be [{n}], got shape {flip_rates.shape}',
  )
  if is_concrete(flip_rates):
    ok = jnp.all((flip_rates >= 0) & (flip_rates <= 1))
    check(ok, 'flip_rates must lie in [0, 1]')

  def row(i: Array) -> Array:
    own = weights if weights.ndim == 2 else weights[labels[i]]
    # In full: an accelerator's default would round the inputs to bfloat16.
    scores = jnp.matmul(x[i].astype(own.dtype), own, precision='highest')
    other = jnp.arange(c) != labels[i]
    wrong = jax.nn.softmax(jnp.where(other, scores, -jnp.inf))
    return jnp.where(other, flip_rates[i] * wrong, 1 - flip_rates[i])

  if n == 0:  # no row to trace
    return jnp.zeros((0, c), weights.dtype)
  return by_rows(row, n, f * c)


def _read_inputs(x: Any, n: int) -> Array:
  """[n, ...] -> [n, f], finite."""
  check_auto(x, 'x')
  x = jnp.asarray(x)
  check_length('x', x, n)
  x = x.reshape(n, math.prod(x.shape[1:]))
  if is_concrete(x) and x.size and jnp.issubdtype(x.dtype, jnp.floating):
    # NaN wins every min: two reductions, and no array of flags as large as x.
    ok = jnp.isfinite(jnp.min(x)) & jnp.isfinite(jnp.max(x))
    check(ok, 'x must be finite')
  return x


def part_dependent(
  key: Key,
  x: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  rate: Scalar,
  *,
  std: Scalar = 0.1,
  shared: bool = False,
) -> NoisyLabels:
  r"""Noisy labels of part-dependent noise: rates, weights, then labels drawn.

  .. math:: q_i \sim N(r, s^2)|_{[0, 1]},\quad W \sim N(0, 1),\quad
    \tilde y_i \sim P_i

  with P of `part_dependent_probs`.

  Args:
    key: PRNG key.
    x: [n, ...], flattened.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    rate: r in [0, 1], the mean share of wrong labels (see `truncated_rates`).
    std: s > 0, of the rates between examples.
    shared: one W [f, c] for all classes, as in CORES, instead of one for each,
      [c, f, c].

  Returns:
    `NoisyLabels` with probs [n, c].

  Raises:
    ValueError: if an argument is out of range, shapes do not match, or `x` is
      not finite (outside jit).
    TypeError: if `labels` are not integers.

  The code of the paper gives raw pixels, 0 to 255, to an x^T W whose spread is
  `|x|`: nearly every wrong label is the one class with the largest score. With
  x scaled to [0, 1] the same holds for images of thousands of pixels; inputs of
  norm about 1 spread the wrong labels over the classes.

  Reference: Xia et al., "Part-dependent Label Noise: Towards Instance-dependent
  Label Noise", NeurIPS 2020, arXiv 2006.07836; `shared`: Cheng, Zhu, Li, Gong,
  Sun, Liu, "Learning with Instance-Dependent Label Noise: A Sample Sieve
  Approach", ICLR 2021, arXiv 2010.02347.
  """
  check_key(key)
  check_classes(num_classes)
  labels = read_vector('labels', labels, num_classes)
  n = len(labels)
  x = _read_inputs(x, n)
  key_rates, key_weights, key_labels = jax.random.split(key, 3)
  flip_rates = truncated_rates(key_rates, n, rate, std=std)
  shape = (x.shape[1], num_classes)
  weights = jax.random.normal(
    key_weights, shape if shared else (num_classes, *shape)
  )
  probs = part_dependent_probs(x, labels, flip_rates, weights)
  return corrupt_each(key_labels, labels, probs)


# --- polynomial-margin diminishing noise -------------------------------------


def _check_kind(kind: int) -> None:
  check(kind in (1, 2, 3), f'kind must be 1, 2 or 3, got {kind}')


def pmd_probs(eta: ArrayLike, *, kind: int, factor: Scalar) -> Array:
  r"""The label probabilities of polynomial-margin diminishing noise.

  It is wrong where the classes are close. With u and s the likeliest two
  classes, d = eta_u - eta_s and g the factor,

  .. math:: P(u) = \frac{1 + d^2}{2 g},\quad \frac{d^3}{g},\quad
    \frac{d^3 + d^2 + d}{3 g}\quad (\text{kind } 1, 2, 3),\qquad
    P(s) = 1 - P(u)

  Args:
    eta: [n, c] posteriors, rows summing to one as in `corrupt`. Of equal ones
      the first class counts as the likelier.
    kind: 1, 2 or 3.
    factor: g > 0, large enough for P(u) <= 1. Published for 35% noise: CIFAR-10
      1.43, 1.32, 1.35 (kind 1, 2, 3), CIFAR-100 1.08, 1.02 (kind 1, 2); for 70%
      CIFAR-10 3.40, 3.10, 3.20.

  Returns:
    [n, c], with mass on u and s alone. The clean label does not enter, and in
    kinds 2 and 3 small margins make s the likelier.

  Raises:
    ValueError: if the rows of `eta` are not probabilities, `kind` is unknown,
      or `factor` too small (outside jit, where P(u) is clipped to 1).

  The official code replaces 1 + d^2 by its maximum with 1, which it never is
  below.

  >>> p = pmd_probs(jnp.array([[.5, .25, .25]]), kind=1, factor=2.)
  >>> p.tolist()
  [[0.265625, 0.734375, 0.0]]

  Reference: Zhang, Zheng, Wu, Goswami, Chen, "Learning with Feature-Dependent
  Label Noise: A Progressive Approach", ICLR 2021, arXiv 2103.07756.
  """
  check_auto(eta, 'eta')
  eta = read_rows_of_probs(eta, 'eta')
  _check_kind(kind)
  check(factor > 0, f'factor must be positive, got {factor}')
  top, classes = lax.top_k(eta, 2)
  d = jnp.minimum(top[:, 0] - top[:, 1], 1)  # the row may sum to a bit more
  if kind == 1:
    keep = (1 + d**2) / 2
  elif kind == 2:
    keep = d**3
  else:
    keep = (d**3 + d**2 + d) / 3
  keep = keep / factor
  if is_concrete(keep):
    # The factor may be the largest numerator but for rounding.
    ok = jnp.all(keep <= 1 + 1e-5)
    check(ok, f'factor = {factor} is too small: a probability exceeds 1')
  keep = jnp.clip(keep, 0, 1)[:, None]
  first, second = classes[:, :1], classes[:, 1:]
  of_class = jnp.arange(eta.shape[1])
  rest = jnp.where(of_class == second, 1 - keep, 0)
  return jnp.where(of_class == first, keep, rest)


def pmd(
  key: Key, labels: ArrayLike, eta: ArrayLike, *, kind: int, factor: Scalar
) -> NoisyLabels:
  """Noisy labels of polynomial-margin diminishing noise.

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c); they only decide what counts as flipped.
    eta: [n, c] posteriors. PLC takes the softmax of a network trained on the
      clean labels for 25 epochs.
    kind: 1, 2 or 3; see `pmd_probs`.
    factor: see `pmd_probs`. Wrong labels depend on eta too: check the rate.

  Returns:
    `NoisyLabels` with labels [n] that are one of the likeliest two classes of
    eta, and probs [n, c].

  Raises:
    ValueError: as `pmd_probs`, or if `labels` do not fit `eta`.
    TypeError: if `labels` are not integers.

  PLC first draws new labels y ~ eta, "so that eta is the true posterior". For
  more than two classes they are overwritten without being looked at, so the
  result does not depend on it; for two see `binary_pmd`.

  Reference: Zhang, Zheng, Wu, Goswami, Chen, "Learning with Feature-Dependent
  Label Noise: A Progressive Approach", ICLR 2021, arXiv 2103.07756.
  """
  return corrupt_each(key, labels, pmd_probs(eta, kind=kind, factor=factor))


def binary_pmd_rates(eta: ArrayLike, *, kind: int) -> Array:
  r"""The rates at which the noise of PLC turns positives into negatives.

  .. math:: 2 \eta (\eta - \tfrac12)^2,\quad \min(\eta, 1 - \eta),\quad
    \tfrac12 - 2 (\eta - \tfrac12)^2\quad (\text{kind } 1, 2, 3)

  Args:
    eta: [...] in [0, 1], P(y = 1 | x).
    kind: 1, 2 or 3.

  Returns:
    [...] in [0, .5], P(noisy = 0 | x, y = 1). Negatives stay as they are.

  Raises:
    ValueError: if `eta` is out of range or `kind` unknown.

  >>> binary_pmd_rates(jnp.array([0.25, 0.5]), kind=3).tolist()
  [0.375, 0.5]

  Reference: Zhang, Zheng, Wu, Goswami, Chen, "Learning with Feature-Dependent
  Label Noise: A Progressive Approach", ICLR 2021, arXiv 2103.07756, and its
  code.
  """
  _check_kind(kind)
  eta = jnp.asarray(eta)
  eta = eta.astype(jnp.promote_types(eta.dtype, jnp.float32))
  if is_concrete(eta):
    check(jnp.all((eta >= 0) & (eta <= 1)), 'eta must lie in [0, 1]')
  if kind == 1:
    return 2 * eta * (eta - 0.5) ** 2
  if kind == 2:
    return jnp.minimum(eta, 1 - eta)
  return 0.5 - 2 * (eta - 0.5) ** 2


def binary_pmd(
  key: Key, labels: ArrayLike, eta: ArrayLike, *, kind: int
) -> NoisyLabels:
  """Noisy labels of PLC for two classes: some positives become negatives.

  Args:
    key: PRNG key.
    labels: [n] int, 0 or 1. PLC draws them anew first, y ~ eta.
    eta: [n] in [0, 1], P(y = 1 | x).
    kind: 1, 2 or 3; see `binary_pmd_rates`.

  Returns:
    `NoisyLabels` with probs [n, 2].

  Raises:
    ValueError: if an argument is out of range or lengths differ.
    TypeError: if `labels` are not integers.
  """
  labels = read_labels('labels', labels, 2)
  rates = binary_pmd_rates(eta, kind=kind)
  check(
    rates.shape == labels.shape,
    f'eta must have the shape of labels, {labels.shape}, got {rates.shape}',
  )
  down = jnp.where(labels == 1, rates, 1)
  return corrupt_each(key, labels, jnp.stack([down, 1 - down], axis=-1))
