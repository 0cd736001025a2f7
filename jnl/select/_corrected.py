"""Labels that a network's prediction corrects."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check, global_mean, whole
from jnl.inputs import as_array, check_range, check_simplex, read_labels


class Corrected(NamedTuple):
  """Labels after a correction.

  Attributes:
    labels: [n], in the dtype of those given.
    changed: [n] bool, which of them are others than before.
  """

  labels: Array
  changed: Array


def lrt_correct(
  labels: ArrayLike,
  probs: ArrayLike,
  *,
  delta: Scalar = 0.3,
  mask: ArrayLike | None = None,
) -> Corrected:
  r"""Labels moved to the prediction where the likelihood ratio is small.

  .. math:: y' = \arg\max_k p_k \text{ if } p_y < \delta \max_k p_k,
     \text{ else } y

  Args:
    labels: [n] int in [0, c).
    probs: [n, c], predictions; rows sum to one.
    delta: in [0, 1], traced or not; see `lrt_delta`.
    mask: [n] bool, the rows that may change, whatever the others hold.

  Returns:
    A `Corrected`. Of classes of the same probability the first is taken; inside
    jit a label out of range stays as it is.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> probs = jnp.array([[.9, .1], [.6, .4]])
  >>> lrt_correct(jnp.array([1, 1]), probs).labels.tolist()
  [0, 1]

  Reference: Zheng, Wu, Goswami, Goswami, Metaxas, Chen, "Error-Bounded
  Correction of Noisy Labels", ICML 2020, arXiv 2011.10077; Zhang, Zheng, Wu,
  Goswami, Chen, "Learning with Feature-Dependent Label Noise: A Progressive
  Approach", ICLR 2021, arXiv 2103.07756.
  """
  given, probs = as_array('labels', labels), as_array('probs', probs)
  check(given.ndim == 1, f'labels must be [n], got shape {given.shape}')
  check(
    probs.ndim == 2 and len(probs) == len(given) and probs.shape[1] >= 2,
    f'probs must be [n, c] with n = {len(given)} and c >= 2, got shape '
    f'{probs.shape}',
  )
  check_range('delta', delta, 0, 1)
  rows = _read_mask(mask, given)
  check_simplex('probs', probs, where=rows)
  own, valid = read_labels(given, probs.shape[1], where=rows)
  given, own, rows, probs = map(whole, (given, own, rows & valid, probs))
  at_label = jnp.take_along_axis(probs, own[:, None], axis=1)[:, 0]
  changed = rows & (at_label < delta * jnp.max(probs, axis=1))
  best = jnp.argmax(probs, axis=1).astype(given.dtype)
  return Corrected(jnp.where(changed, best, given), changed)


def lrt_delta(
  delta: Scalar,
  changed: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  least: Scalar = 1e-3,
  step: Scalar = 0.1,
  most: Scalar = 0.9,
) -> Array:
  """The next threshold of `lrt_correct`: higher if hardly a label changed.

  Args:
    delta: the threshold that was used.
    changed: [n] bool, of `lrt_correct`.
    mask: [n] bool, the rows that count.
    least: the share of changed labels below which delta rises by `step`.
    step: >= 0.
    most: delta does not rise beyond.

  Returns:
    [], float32.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> float(lrt_delta(0.5, jnp.array([False, False]), step=0.25))
  0.75

  Reference: Zhang, Zheng, Wu, Goswami, Chen, "Learning with Feature-Dependent
  Label Noise: A Progressive Approach", ICLR 2021, arXiv 2103.07756.
  """
  changed = as_array('changed', changed)
  check(
    changed.dtype == bool and changed.ndim == 1,
    f'changed must be [n] bool, got {changed.dtype} of shape {changed.shape}',
  )
  check_range('step', step, 0)
  share = global_mean(changed.astype(jnp.float32), _read_mask(mask, changed))
  raised = jnp.maximum(delta, jnp.minimum(delta + step, most))
  return jnp.where(share < least, raised, delta)


def _read_mask(mask: ArrayLike | None, rows: Array) -> Array:
  if mask is None:
    return jnp.ones(rows.shape, bool)
  mask = jnp.asarray(mask)
  check(mask.dtype == bool, f'mask must be bool, got {mask.dtype}', TypeError)
  check(
    mask.shape == rows.shape,
    f'mask must be [n], {rows.shape}, got {mask.shape}',
  )
  return mask
