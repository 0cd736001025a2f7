"""Corrections of cross-entropy by a transition matrix.

`transition[i, j] = P(noisy label j | true class i)`; rows sum to one. The
network learns the true classes, its loss is read through the matrix.
"""

import jax
import jax.numpy as jnp

from jnl.base import Array, check, is_concrete
from jnl.losses._inputs import Label, expect, log_prob, log_probs, read

IMPOSSIBLE = -1e30
"""The logarithm of the probability of a label that the matrix rules out."""
LARGEST = 60
"""Exponents stop here: e^60 times a loss still fits float32."""


def forward(logits: Array, labels: Array, transition: Array) -> Array:
  r"""Forward correction: cross-entropy of the noisy labels' probability.

  .. math:: \ell(z, y) = -\log (p T)_y

  The identity matrix gives cross-entropy. Differentiable in the matrix too.

  Args:
    logits: [..., c].
    labels: noisy, [...] int, or [..., c] soft.
    transition: T, [c, c], rows on the simplex.

  Returns:
    [...], at least float32, >= 0; 1e30 without gradient for a label that no
    class can turn into.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `transition` is not [c, c], or not being traced has rows off
      the simplex.

  >>> flip = jnp.array([[0., 1.], [1., 0.]])
  >>> forward(jnp.array([0., 40.]), jnp.array(1), flip).tolist()
  40.0

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  logits, label = read(logits, labels)
  transition = _read_transition(transition, logits)
  return expect(-_log_noisy_prob(logits, label, transition), label)


def backward(logits: Array, labels: Array, transition: Array) -> Array:
  r"""Backward correction: an unbiased estimate of the clean cross-entropy.

  .. math:: \ell(z, y) = -\sum_k (T^{-1})_{yk} \log p_k

  Its mean over the noisy label of class i is the cross-entropy at i. It can be
  negative, and is unbounded below.

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
  rows = _rows(inverse, label)
  losses = -jnp.sum(rows * log_probs(logits)[..., None, :], axis=-1)
  return expect(losses, label)


def importance_reweight(
  logits: Array, labels: Array, transition: Array
) -> Array:
  r"""Importance reweighting: how much more likely is the label when clean?

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
  return expect(-jax.lax.stop_gradient(weight) * log_p, label)


def t_revision(
  logits: Array, labels: Array, transition: Array, revision: Array
) -> Array:
  r"""Importance reweighting by a matrix that is learned further.

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
  revision = _read_square(revision, logits, 'revision')
  log_p = log_prob(logits, label)
  log_noisy = _log_noisy_prob(logits, label, transition + revision)
  return expect(-_weight(log_p, log_noisy) * log_p, label)


def _read_square(matrix: Array, logits: Array, name: str) -> Array:
  matrix, c = jnp.asarray(matrix), logits.shape[-1]
  check(
    matrix.shape == (c, c),
    f'{name} must be [c, c] = [{c}, {c}], got shape {matrix.shape}',
  )
  return matrix.astype(logits.dtype)


def _read_transition(transition: Array, logits: Array) -> Array:
  transition = _read_square(transition, logits, 'transition')
  if is_concrete(transition):
    # Loose: matrices are estimated, stored and multiplied in float32 or less.
    off = jnp.abs(jnp.sum(transition, axis=1) - 1)
    check(
      jnp.all(transition >= -1e-6) & jnp.all(off < 1e-3),
      'transition must have non-negative rows that sum to one',
    )
  return transition


def _rows(matrix: Array, label: Label) -> Array:
  """Row y of a matrix [..., 1, c]; for soft labels all rows, [c, c]."""
  if label.valid is None:
    return matrix
  return matrix[label.values]


def _weight(log_p: Array, log_noisy: Array) -> Array:
  """p / noisy: capped, and 0 where the label is impossible."""
  weight = jnp.exp(jnp.minimum(log_p - log_noisy, LARGEST))
  return jnp.where(log_noisy == IMPOSSIBLE, 0, weight)


def _log_noisy_prob(logits: Array, label: Label, transition: Array) -> Array:
  """log (p T)_y, [..., 1]; for soft labels of all classes, [..., c].

  The sum over true classes is scaled by the most probable one among those that
  can turn into y, so that it cannot underflow; entries of T that are 0 keep
  their gradient (up to a scale of e^60), since a revision starts from there.
  """
  columns = _rows(transition.T, label)  # [..., 1 or c, c]
  log_p = log_probs(logits)[..., None, :]
  possible = jnp.where(columns > 0, log_p, -jnp.inf)
  shift = jnp.max(possible, axis=-1, keepdims=True)
  shift = jnp.where(jnp.isfinite(shift), shift, 0)
  shift = jax.lax.stop_gradient(shift)
  scaled = jnp.exp(jnp.minimum(log_p - shift, LARGEST))
  total = jnp.sum(scaled * columns, axis=-1)
  some = total > 0
  log_total = jnp.log(jnp.where(some, total, 1)) + shift[..., 0]
  return jnp.where(some, log_total, IMPOSSIBLE)
