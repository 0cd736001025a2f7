"""Targets made of predictions and of labels that are doubted."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import em, ramps
from jnl.base import Array, Scalar, check, check_name, global_mean, is_concrete
from jnl.inputs import (
  BELOW_ZERO,
  as_array,
  check_between,
  check_range,
  check_simplex,
  read_floats,
  read_labels,
)
from jnl.logspace import safe_log

FAIRNESS_OFFSET = 1e-12
"""Added to shares in a logarithm, as FreeMatch's code has it."""
SCHEDULES = ('linear', 'exp', 'log')


def one_hot(
  labels: ArrayLike, num_classes: int, *, where: ArrayLike | None = None
) -> Array:
  """Labels as distributions.

  Args:
    labels: [...] int in [0, c); soft ones, [..., c], pass.
    num_classes: c.
    where: [...] bool, the rows that count, such as `weight > 0`; the others
      become uniform, whatever they hold. By default all.

  Returns:
    [..., c], at least float32; inside jit NaN in rows whose label is out of
    range, so that a loss against them is NaN too.

  Raises:
    TypeError: if `labels` are neither, or `where` is not bool.
    ValueError: if a shape does not fit, or outside jit if a label that counts
      is out of range, or a soft one off the simplex.

  >>> one_hot(jnp.array([1, 0]), 2).tolist()
  [[0.0, 1.0], [1.0, 0.0]]
  """
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  given = as_array('labels', labels)
  soft = jnp.issubdtype(given.dtype, jnp.floating)
  check(
    not soft or given.shape[-1:] == (num_classes,),
    f'labels must be [...] int, or [..., c] soft with c = {num_classes}; got '
    f'{given.dtype} of shape {given.shape}',
  )
  rows = given.shape[:-1] if soft else given.shape
  counts = jnp.ones(rows, bool) if where is None else as_array('where', where)
  check(
    counts.dtype == bool,
    f'where must be bool, such as weight > 0; got {counts.dtype}',
    TypeError,
  )
  check(
    counts.shape == rows,
    f'where must have one value for each of the labels, of shape {rows}; got '
    f'shape {counts.shape}',
  )
  if soft:
    check_simplex('labels', given, where=counts)
    values = given.astype(jnp.promote_types(given.dtype, jnp.float32))
  else:
    index, valid = read_labels(given, num_classes, where=counts)
    values = jax.nn.one_hot(index, num_classes, dtype=jnp.float32)
    values = jnp.where(valid[..., None], values, jnp.nan)
  return jnp.where(counts[..., None], values, 1 / num_classes)


def sharpen(probs: ArrayLike, temperature: Scalar = 0.5) -> Array:
  r"""Distributions with more of their mass at the largest class.

  .. math:: t_k = p_k^{1 / T} \Big/ \sum_j p_j^{1 / T}

  Args:
    probs: p, [..., c] >= 0.
    temperature: T > 0; 1 changes nothing, towards 0 the largest class has all.

  Returns:
    [..., c], at least float32; uniform where all of p is 0.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit out of
      range.

  >>> [f'{t:.2f}' for t in sharpen(jnp.array([0.75, 0.25]), 0.5).tolist()]
  ['0.90', '0.10']

  Reference: Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel,
  "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019,
  arXiv 1905.02249.
  """
  check_range('temperature', temperature, 0, open_low=True)
  return jax.nn.softmax(
    safe_log(read_probs('probs', probs)) / temperature, axis=-1
  )


def hard(probs: ArrayLike, step: Scalar | None = None) -> Array:
  """The most probable class alone, the first of equals.

  Args:
    probs: [..., c] >= 0.
    step: not looked at; targets of `methods.weak_strong` may.

  Returns:
    [..., c], at least float32, one 1 in each row; without gradient.

  Raises:
    TypeError, ValueError: if `probs` are malformed, or outside jit negative.

  >>> hard(jnp.array([[0.2, 0.7, 0.1], [0.5, 0.0, 0.5]])).tolist()
  [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
  """
  del step
  probs = read_probs('probs', probs)
  top = jnp.argmax(probs, axis=-1)
  return jax.nn.one_hot(top, probs.shape[-1], dtype=probs.dtype)


def soft(temperature: Scalar = 1.0) -> Callable[..., Array]:
  """Whole predictions as targets, sharpened.

  Args:
    temperature: T > 0, see `sharpen`: .4 in UDA; 1 changes nothing.

  Returns:
    `(probs [..., c], step) -> [..., c]`, at least float32, without gradient;
    the step may be left out, and is not looked at.

  Raises:
    ValueError: if `temperature` is out of range.

  >>> [f'{t:.2f}' for t in soft(0.5)(jnp.array([0.75, 0.25])).tolist()]
  ['0.90', '0.10']

  Reference: Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for
  Consistency Training", NeurIPS 2020, arXiv 1904.12848, whose known code leaves
  the temperature out.
  """
  check_range('temperature', temperature, 0, open_low=True)

  def target(probs: ArrayLike, step: Scalar | None = None) -> Array:
    del step
    return lax.stop_gradient(sharpen(probs, temperature))

  return target


def co_refine(
  targets: ArrayLike,
  probs: ArrayLike,
  clean: ArrayLike,
  *,
  temperature: Scalar = 0.5,
) -> Array:
  r"""A label mixed with the prediction as far as it is doubted, sharpened.

  .. math:: t_i = \mathrm{sharpen}(w_i y_i + (1 - w_i) p_i, T)

  Args:
    targets: y, [..., c], see `one_hot`.
    probs: p, [..., c], the prediction of the network that learns, the mean over
      its views.
    clean: w in [0, 1], [...], the probability that the label is clean, by the
      other network's losses.
    temperature: T > 0.

  Returns:
    [..., c], at least float32, without gradient.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit out of
      range.

  >>> y, p = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
  >>> [f'{t:.2f}' for t in co_refine(y, p, jnp.array(0.5)).tolist()]
  ['0.90', '0.10']

  Reference: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as
  Semi-supervised Learning", ICLR 2020, arXiv 2002.07394.
  """
  targets, probs = read_probs('targets', targets), read_probs('probs', probs)
  check(
    targets.shape == probs.shape,
    f'targets must have the shape of probs, {probs.shape}, got {targets.shape}',
  )
  clean = read_floats('clean', clean)
  check_between('clean', clean, 0, 1)
  check(
    clean.shape == probs.shape[:-1],
    f'clean must be [...] = {probs.shape[:-1]}, got shape {clean.shape}',
  )
  clean = clean[..., None]
  mixed = clean * targets + (1 - clean) * probs
  return lax.stop_gradient(sharpen(mixed, temperature))


def co_guess(probs: ArrayLike, *, temperature: Scalar = 0.5) -> Array:
  r"""The mean of several predictions of an example, sharpened.

  .. math:: t_i = \mathrm{sharpen}(\operatorname{mean}_v p_{vi}, T)

  Args:
    probs: [v, ..., c], of v predictions: of two networks, of their views.
    temperature: T > 0.

  Returns:
    [..., c], at least float32, without gradient.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit out of
      range.

  >>> two = jnp.array([[1.0, 0.0], [0.5, 0.5]])
  >>> [f'{t:.2f}' for t in co_guess(two).tolist()]
  ['0.90', '0.10']

  Reference: see `co_refine`.
  """
  probs = read_probs('probs', probs)
  check(
    probs.ndim >= 2 and len(probs) > 0,
    f'probs must be [v, ..., c] with v >= 1, got shape {probs.shape}',
  )
  mean = jnp.mean(probs, axis=0)
  return lax.stop_gradient(sharpen(mean, temperature))


def class_fairness(
  logits: ArrayLike, weights: ArrayLike, probs: ArrayLike, shares: ArrayLike
) -> Array:
  r"""FreeMatch's fairness: how little the guesses of a batch favor classes.

  .. math::
    \sum_k a_k \log(b_k + 10^{-12}),\qquad
    a \propto \tilde p / h,\quad b \propto \bar p / \bar h

  with p-bar the mean of softmax(z) over the rows that count, h-bar the shares
  of their most probable classes, and 1 / 0 = 0; a and b sum to one. It is added
  to the loss. The gradient flows through p-bar alone. Batch-coupled: one value
  for the batch, over all devices.

  Args:
    logits: z, [b, c], of the strong view.
    weights: [b] >= 0, of the rows that count: those whose guesses are used.
    probs: p-tilde, [c], the average prediction, of `Levels`.
    shares: h, [c], the average shares of guesses, of `Levels`.

  Returns:
    [], at least float32, <= 0 but for the offset; 0 if no row counts.

  Raises:
    TypeError, ValueError: if an array is malformed, or outside jit negative.

  >>> flat = jnp.array([0.5, 0.5])
  >>> z = jnp.array([[2.0, 0.0], [0.0, 2.0]])
  >>> f'{class_fairness(z, jnp.ones(2), flat, flat):.3f}'
  '-0.693'

  Reference: Wang, Chen, Heng, Hou, Fan, Wu, Wang, Savvides, Shinozaki, Raj,
  Schiele, Xie, "FreeMatch: Self-adaptive Thresholding for Semi-supervised
  Learning", ICLR 2023, arXiv 2205.07246.
  """
  mean, some = em.mean_prediction(logits, weights)
  check_between('weights', weights, 0)

  def average(name: str, values: ArrayLike) -> Array:
    values = lax.stop_gradient(read_probs(name, values))
    check(
      values.shape == mean.shape,
      f'{name} must be {list(mean.shape)}, got shape {values.shape}',
    )
    return values.astype(mean.dtype)

  fair = _shares(average('probs', probs), average('shares', shares))
  hits = jax.nn.one_hot(jnp.argmax(logits, -1), len(mean), dtype=mean.dtype)
  found = jax.vmap(global_mean, (-1, None))(hits, jnp.asarray(weights))
  logs = jnp.log(_shares(mean, found) + FAIRNESS_OFFSET)
  return jnp.where(some, jnp.sum(fair * logs), 0)


def _shares(probs: Array, shares: Array) -> Array:
  """Ratios [c] over their sum; 0 where the share is."""
  there = shares > 0
  ratios = jnp.where(there, probs / jnp.where(there, shares, 1), 0)
  total = jnp.sum(ratios)
  return ratios / jnp.where(total > 0, total, 1)


def annealing_threshold(
  step: Scalar, length: Scalar, num_classes: int, *, schedule: str = 'linear'
) -> Array:
  r"""Training-signal annealing: labeled rows that are surer are left out.

  .. math:: \eta(s) = a(t) (1 - 1/c) + 1/c,\qquad t = \min(s, L) / L

  with a(t) = t, e^{5 (t - 1)} or 1 - e^{-5 t}, by the schedule: the exponential
  one for few labels, the logarithmic one, which ends at .993, for many.

  Args:
    step: s >= 0, int or float, any shape.
    length: L >= 0, in the units of `step`.
    num_classes: c >= 1.
    schedule: 'linear', 'exp' or 'log'.

  Returns:
    The shape of `step`, at least float32, in [1 / c, 1].

  Raises:
    ValueError: if an argument is out of range.

  >>> annealing_threshold(jnp.array([0, 5, 10]), 10, 2).tolist()
  [0.5, 0.75, 1.0]

  Reference: Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for
  Consistency Training", NeurIPS 2020, arXiv 1904.12848.
  """
  check_name('schedule', schedule, SCHEDULES)
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  t = ramps.linear_rampup(step, length)
  if schedule == 'exp':
    t = jnp.exp(5 * (t - 1))
  elif schedule == 'log':
    t = -jnp.expm1(-5 * t)
  return t * (1 - 1 / num_classes) + 1 / num_classes


def read_probs(name: str, probs: ArrayLike) -> Array:
  """Probabilities [..., c], at least float32; NaN stays.

  Args:
    name: what the errors call them.
    probs: [..., c] >= 0.

  Returns:
    [..., c].

  Raises:
    TypeError, ValueError: if they are malformed, or outside jit negative.
  """
  probs = read_floats(name, probs)
  check(probs.ndim >= 1, f'{name} must be [..., c], got a scalar')
  if is_concrete(low := probs < -BELOW_ZERO):
    check(
      not low.any(),
      f'{name} must not be negative; of logits they are the softmax',
    )
  return probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
