"""Targets made of predictions and of labels that are doubted."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check
from jnl.inputs import check_range, read_floats, read_labels
from jnl.logspace import safe_log


def one_hot(
  labels: ArrayLike, num_classes: int, *, where: ArrayLike | None = None
) -> Array:
  """Labels as distributions.

  Args:
    labels: [...] int in [0, c); [..., c] soft ones pass.
    num_classes: c.
    where: [...] bool, the rows that count, such as `weight > 0`; the others
      become uniform, whatever they hold. By default all.

  Returns:
    [..., c], at least float32; inside jit NaN in rows whose label is out of
    range, so that a loss against them is NaN too.

  Raises:
    TypeError: if `labels` is neither.
    ValueError: if a shape does not fit, or outside jit if a label that counts
      is out of range.

  >>> one_hot(jnp.array([1, 0]), 2).tolist()
  [[0.0, 1.0], [1.0, 0.0]]
  """
  given = jnp.asarray(labels)
  if jnp.issubdtype(given.dtype, jnp.floating):
    check(
      given.shape[-1:] == (num_classes,),
      f'labels must be [...] int, or [..., c] soft with c = {num_classes}; got '
      f'{given.dtype} of shape {given.shape}',
    )
    values = given.astype(jnp.promote_types(given.dtype, jnp.float32))
  else:
    rows = None if where is None else jnp.asarray(where)
    index, valid = read_labels(labels, num_classes, where=rows)
    values = jax.nn.one_hot(index, num_classes, dtype=jnp.float32)
    values = jnp.where(valid[..., None], values, jnp.nan)
  if where is None:
    return values
  counts = jnp.asarray(where)
  check(
    counts.shape == values.shape[:-1],
    f'where must be [...] = {values.shape[:-1]}, got shape {counts.shape}',
  )
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
    TypeError, ValueError: if an argument is malformed.

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
    TypeError, ValueError: if an argument is malformed.

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
    TypeError, ValueError: if an argument is malformed.

  >>> two = jnp.array([[1.0, 0.0], [0.5, 0.5]])
  >>> [f'{t:.2f}' for t in co_guess(two).tolist()]
  ['0.90', '0.10']

  Reference: see `co_refine`.
  """
  probs = _read('probs', probs)
  check(probs.ndim >= 2, f'probs must be [v, ..., c], got shape {probs.shape}')
  mean = jnp.mean(probs, axis=0)
  return lax.stop_gradient(sharpen(mean, temperature))


def _read(name: str, probs: ArrayLike) -> Array:
  """[..., c], at least float32."""
  probs = read_floats(name, probs)
  check(probs.ndim >= 1, f'{name} must be [..., c], got a scalar')
  return probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
