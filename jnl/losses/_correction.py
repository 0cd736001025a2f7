"""Corrections of cross-entropy by a transition matrix.

`transition[i, j] = P(noisy label j | true class i)`; rows sum to one. The
network learns the true classes, its loss is read through the matrix.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.base import Array, Scalar, check, is_concrete
from jnl.inputs import as_array, check_range, read_transition
from jnl.logspace import add_offset, bounded, log_probs
from jnl.losses._labels import Label, expect, log_prob, read, settle

IMPOSSIBLE = -1e30
"""The logarithm of the probability of a label that the matrix rules out."""
LARGEST = 60
"""Exponents stop here: e^60 times a loss still fits float32."""


def forward(
  logits: ArrayLike,
  labels: ArrayLike,
  transition: ArrayLike,
  *,
  offset: Scalar = 0.0,
) -> Array:
  r"""Forward loss correction: the cross-entropy of p T, no forward pass.

  .. math:: \ell(z, y) = -\log ((p T)_y + \epsilon)

  The prediction is read through the matrix before it meets the noisy label. The
  identity matrix gives cross-entropy. Differentiable in the matrix too.

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    transition: T, [c, c], rows on the simplex.
    offset: epsilon >= 0; 1e-6 in libcll, for complementary labels (FWD), which
      caps the loss at 13.8. The default keeps value and gradient.

  Returns:
    [...], at least float32, >= 0 (down to -epsilon with an offset); 1e30
    without gradient for a label that no class can turn into.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `transition` is not [c, c], or not being traced has rows off
      the simplex, or `offset` is negative.

  >>> flip = jnp.array([[0., 1.], [1., 0.]])
  >>> forward(jnp.array([0., 40.]), jnp.array(1), flip).tolist()
  40.0

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  check_range('offset', offset, 0)
  logits, label = read(logits, labels)
  transition = _read_transition(transition, logits)
  log_noisy = _log_noisy_prob(logits, label, transition)
  return expect(-add_offset(log_noisy, offset), label)


def backward(
  logits: ArrayLike, labels: ArrayLike, transition: ArrayLike
) -> Array:
  r"""Backward loss correction: cross-entropy through the inverse of T, no pass.

  .. math:: \ell(z, y) = -\sum_k (T^{-1})_{yk} \log p_k

  An unbiased estimate of the clean cross-entropy: its mean over the noisy label
  of class i is the cross-entropy at i. It can be negative, and is unbounded
  below.

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    transition: T, [c, c], rows on the simplex, invertible.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `transition` is not [c, c], or not being traced has rows off
      the simplex or no inverse (NaN inside jit).

  >>> z, noise = jnp.array([0., 3.]), jnp.array([[.8, .2], [.4, .6]])
  >>> [f'{float(backward(z, jnp.array(y), noise)):.3f}' for y in (0, 1)]
  ['4.549', '-2.951']

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  logits, label = read(logits, labels)
  inverse = jnp.linalg.inv(_read_transition(transition, logits))
  if is_concrete(inverse):
    check(jnp.all(jnp.isfinite(inverse)), 'transition must be invertible')
  if label.valid is None:
    rows = jnp.matmul(label.values, inverse, precision=lax.Precision.HIGHEST)
  else:
    rows = _rows(inverse, label.values[..., 0])
  return settle(-jnp.sum(rows * log_probs(bounded(logits)), axis=-1), label)


def importance_reweight(
  logits: ArrayLike, labels: ArrayLike, transition: ArrayLike
) -> Array:
  r"""Cross-entropy weighted by how much likelier the label is when clean.

  .. math:: \ell(z, y) = -\beta \log p_y,\qquad \beta = p_y / (p T)_y

  The weight has no gradient; in `t_revision` it has. It is at most 1 / T_yy; if
  that is infinite it is capped at e^60, and it is 0 for a label that no class
  can turn into.

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    transition: T, [c, c], rows on the simplex.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `transition` is not [c, c], or not being traced has rows off
      the simplex.

  >>> z, y = jnp.array([0., 3.]), jnp.array(1)
  >>> f'{float(importance_reweight(z, y, jnp.eye(2))):.4f}'
  '0.0486'

  Reference: Liu, Tao, "Classification with Noisy Labels by Importance
  Reweighting", TPAMI 2016, arXiv 1411.7718.
  """
  logits, label = read(logits, labels)
  transition = _read_transition(transition, logits)
  log_p = log_prob(logits, label)
  weight = _weight(log_p, _log_noisy_prob(logits, label, transition))
  return expect(-lax.stop_gradient(weight) * log_p, label)


def t_revision(
  logits: ArrayLike,
  labels: ArrayLike,
  transition: ArrayLike,
  revision: ArrayLike,
) -> Array:
  r"""`importance_reweight` by a transition matrix and a learned revision of it.

  .. math:: \ell(z, y) = -\beta \log p_y,\qquad
    \beta = p_y / (p (T + \Delta))_y

  The gradient flows through the weight, to the logits and to the revision. (The
  official code has two versions: in one the weight is detached, so that the
  revision learns nothing; the other, followed here, adds the revision once more
  for every example of the batch, which is not.)

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    transition: T, [c, c], an estimate, rows on the simplex.
    revision: Delta, [c, c], zero at first, learned at a small rate (Adam with
      5e-7 in the paper's code).

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `transition` or `revision` is not [c, c], or `transition` not
      being traced has rows off the simplex.

  >>> z, y = jnp.array([0., 3.]), jnp.array(1)
  >>> f'{float(t_revision(z, y, jnp.eye(2), jnp.zeros([2, 2]))):.4f}'
  '0.0486'

  Reference: Xia, Liu, Wang, Han, Gong, Niu, Sugiyama, "Are Anchor Points Really
  Indispensable in Label-Noise Learning?", NeurIPS 2019, arXiv 1906.00189.
  """
  logits, label = read(logits, labels)
  transition = _read_transition(transition, logits)
  revision, c = as_array('revision', revision), logits.shape[-1]
  check(
    revision.shape == (c, c),
    f'revision must be [c, c] = [{c}, {c}], got shape {revision.shape}',
  )
  log_p = log_prob(logits, label)
  matrix = transition + revision.astype(logits.dtype)
  log_noisy = _log_noisy_prob(logits, label, matrix)
  return expect(-_weight(log_p, log_noisy) * log_p, label)


def _read_transition(transition: ArrayLike, logits: Array) -> Array:
  return read_transition(transition, logits.shape[-1]).astype(logits.dtype)


def _rows(matrix: Array, index: Array) -> Array:
  """Rows [..., c] of a matrix, laid out over devices as the index [...] is."""
  sharding = jax.typeof(index).sharding
  if sharding.mesh.explicit_axes:  # jax asks for the layout there
    spec = jax.P(*sharding.spec, None)
    out = jax.NamedSharding(sharding.mesh, spec)
    return matrix.at[index].get(out_sharding=out)
  return matrix[index]


def _weight(log_p: Array, log_noisy: Array) -> Array:
  """p / noisy: capped, and 0 where the label is impossible."""
  weight = jnp.exp(jnp.minimum(log_p - log_noisy, LARGEST))
  return jnp.where(log_noisy == IMPOSSIBLE, 0, weight)


def _log_noisy_prob(logits: Array, label: Label, transition: Array) -> Array:
  """log (p T)_y, [..., 1]; for soft labels of all classes, [..., c]."""
  log_p = log_probs(logits)
  if label.valid is None:
    return _log_noisy_probs(log_p, transition)
  columns = _rows(transition.T, label.values[..., 0])
  return _log_mean(log_p, columns)[..., None]


def _log_noisy_probs(log_p: Array, transition: Array) -> Array:
  """log (p T), [..., c], without an array [..., c, c].

  A product of the probabilities over the largest one, unless a sum underflows
  in it: then class by class, as exactly as for integer labels.
  """
  shift = lax.stop_gradient(jnp.max(log_p, axis=-1, keepdims=True))
  total = jnp.matmul(
    jnp.exp(log_p - shift), transition, precision=lax.Precision.HIGHEST
  )
  possible = jnp.any(transition > 0, axis=0)
  underflows = jnp.any(possible & (jnp.abs(total) < math.exp(-LARGEST)))

  def each_class() -> Array:
    each = jax.checkpoint(lambda column: _log_mean(log_p, column))
    return jnp.moveaxis(lax.map(each, transition.T), 0, -1)

  return lax.cond(underflows, each_class, lambda: _log(total, shift))


def _log_mean(log_p: Array, columns: Array) -> Array:
  """log sum_k p_k columns_k, [...]; columns are [..., c], or one for all, [c].

  The sum over true classes is scaled by the most probable one among those that
  can turn into y, so that it cannot underflow; entries of T that are 0 keep
  their gradient (up to a scale of e^60), since a revision starts from there.
  """
  possible = jnp.where(columns > 0, log_p, -jnp.inf)
  shift = jnp.max(possible, axis=-1)
  shift = lax.stop_gradient(jnp.where(jnp.isfinite(shift), shift, 0))
  scaled = jnp.exp(jnp.minimum(log_p - shift[..., None], LARGEST))
  return _log(jnp.sum(scaled * columns, axis=-1), shift)


def _log(total: Array, shift: Array) -> Array:
  """log(total e^shift), finite and without gradient if there is nothing."""
  none = total <= 0  # what is NaN stays so
  return jnp.where(none, IMPOSSIBLE, jnp.log(jnp.where(none, 1, total)) + shift)
