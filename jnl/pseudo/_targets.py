"""Targets made of predictions and of labels that are doubted."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check, is_concrete
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
  return jax.nn.softmax(safe_log(_read('probs', probs)) / temperature, axis=-1)


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
  targets, probs = _read('targets', targets), _read('probs', probs)
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
  probs = _read('probs', probs)
  check(
    probs.ndim >= 2 and len(probs) > 0,
    f'probs must be [v, ..., c] with v >= 1, got shape {probs.shape}',
  )
  mean = jnp.mean(probs, axis=0)
  return lax.stop_gradient(sharpen(mean, temperature))


def _read(name: str, probs: ArrayLike) -> Array:
  """[..., c], at least float32; NaN stays."""
  probs = read_floats(name, probs)
  check(probs.ndim >= 1, f'{name} must be [..., c], got a scalar')
  if is_concrete(low := probs < -BELOW_ZERO):
    check(
      not low.any(),
      f'{name} must not be negative; of logits they are the softmax',
    )
  return probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
