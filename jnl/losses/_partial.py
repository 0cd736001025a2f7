"""Losses for partial labels: sets of candidates, one of them the true class.

`candidates` [..., c] are bool. An empty set raises ValueError; inside jit,
where it cannot be seen, it says nothing: its loss is 0 with gradient 0.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import inputs, logspace
from jnl.base import Array, Scalar, check
from jnl.inputs import check_range, read_candidates
from jnl.losses._cross_entropy import log_not


def cc(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""Classifier-consistent loss: -log of the probability of the candidates.

  .. math:: \ell(z, S) = -\log \sum_{k \in S} p_k

  A single candidate gives cross-entropy, the set of all classes exactly 0. The
  gradient is p less p restricted to S and normalized.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed.

  >>> cc(jnp.zeros(4), jnp.array([True, True, False, False])).round(4).tolist()
  0.6930999755859375

  Reference: Feng, Lv, Han, Xu, Niu, Geng, An, Sugiyama, "Provably Consistent
  Partial-Label Learning", NeurIPS 2020, arXiv 2007.08929.
  """
  logits, candidates = read_candidates(logits, candidates, masked=False)
  kept = _kept(candidates)
  shift, log_sum = logspace.shift_and_log_sum(logits)
  shift_in, log_sum_in = logspace.shift_and_log_sum(
    jnp.where(kept, logits, -jnp.inf)
  )
  losses = ((shift - shift_in) + (log_sum - log_sum_in))[..., 0]
  # Certain by definition: not left to two sums that round alike.
  return jnp.where(jnp.all(kept, axis=-1), 0, losses)


def uniform_candidates(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""Cross-entropy against all candidates alike, the naive baseline.

  .. math:: \ell(z, S) = -\frac{1}{|S|} \sum_{k \in S} \log p_k

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed.

  >>> z, s = jnp.array([0., 0., -9.]), jnp.array([True, True, False])
  >>> uniform_candidates(z, s).round(3).tolist()
  0.6930000185966492
  """
  logits, candidates = read_candidates(logits, candidates)
  log_p = jnp.where(candidates, logspace.log_probs(logits), 0)
  size = jnp.maximum(jnp.sum(candidates, axis=-1), 1)
  return -jnp.sum(log_p, axis=-1) / size


def proden(logits: ArrayLike, confidence: ArrayLike) -> Array:
  r"""Cross-entropy against the confidence in each candidate.

  .. math:: \ell(z, w) = -\sum_k w_k \log p_k

  PRODEN, RC and R-CR minimize it with confidences of their own. PRODEN has
  `proden_confidence` of the last epoch's prediction, at first `1 / |S|` for
  each candidate; RC the same of the present prediction, so that for one example
  its loss is this one; R-CR has `rcr_confidence`.

  Args:
    logits: [..., c].
    confidence: w, [..., c] floating-point, on the simplex over the candidates,
      or all 0 for an empty set. No gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `confidence` are malformed; the
      latter, outside jit, also if a row is off the simplex.

  >>> proden(jnp.zeros(2), jnp.array([0.5, 0.5])).round(3).tolist()
  0.6930000185966492

  Reference: Lv, Xu, Feng, Niu, Geng, Sugiyama, "Progressive Identification of
  True Labels for Partial-Label Learning", ICML 2020, arXiv 2002.08053. RC: see
  `cc`.
  """
  logits = inputs.read_logits(logits, masked=True)
  weights = _read_confidence(confidence, logits)
  inputs.check_simplex('confidence', jnp.asarray(confidence), may_be_zero=True)
  return -jnp.sum(weights * logspace.log_probs(logits), axis=-1)


def proden_confidence(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""The probability of each candidate, given that one of them is right.

  .. math:: w_k = p_k\, 1[k \in S] \Big/ \sum_{j \in S} p_j

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool; `confidence > 0` of an earlier one.

  Returns:
    [..., c], at least float32, without gradient: on the simplex, or all 0 for
    an empty set.

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed.

  >>> s = jnp.array([True, False, True])
  >>> proden_confidence(jnp.array([1., 5., 1.]), s).tolist()
  [0.5, 0.0, 0.5]

  Reference: see `proden`.
  """
  return jax.lax.stop_gradient(_within(*read_candidates(logits, candidates)))


def rcr_confidence(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""The confidence of R-CR: geometric mean of the views of an example.

  .. math:: w_k \propto 1[k \in S] \prod_v p_{vk}^{1 / V}

  R-CR minimizes the mean over examples of `rule_out` of the first view, and of
  `proden` of every view against this confidence, times min(epoch / 100, 1).

  Args:
    logits: [..., V, c], of V views of an example.
    candidates: S, [..., c] bool.

  Returns:
    [..., c], as `proden_confidence`.

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed.

  >>> views = jnp.array([[0., 2., 0.], [2., 0., 0.]])
  >>> rcr_confidence(views, jnp.array([True, True, False])).tolist()
  [0.5, 0.5, 0.0]

  Reference: Wu, Wang, Zhang, "Revisiting Consistency Regularization for Deep
  Partial Label Learning", ICML 2022.
  """
  logits = inputs.read_logits(logits)
  check(
    logits.ndim >= 2 and logits.shape[-2] >= 1,
    f'logits must be [..., V, c] with V >= 1 views, got shape {logits.shape}',
  )
  # log p_v and z_v differ by a constant of the view, which normalizing removes.
  return proden_confidence(jnp.mean(logits, axis=-2), candidates)


def rule_out(
  logits: ArrayLike, candidates: ArrayLike, *, offset: Scalar = 0.0
) -> Array:
  r"""Negative learning on sets: -log(1 - p) of every class outside the set.

  .. math:: \ell(z, S) = -\sum_{k \notin S} \log(1 - p_k + \epsilon)

  Negative learning of each excluded class: the supervised term of R-CR, and of
  imprecise label learning. At most `cc`: the product of all 1 - p_k is at least
  1 less their sum. The set of all classes
  gives 0; an empty set is allowed and rules out every class.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.
    offset: epsilon >= 0; 1e-7 in the official code, which caps a term at 16.12
      without gradient (15.94 in float32, where 1 + 1e-7 is 1 + 1.19e-7). The
      default keeps value and gradient.

  Returns:
    [...], at least float32, >= 0 (down to -c epsilon with an offset).

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed, or
      `offset` is negative.

  >>> rule_out(jnp.array([9e3, 0.]), jnp.array([False, True])).tolist()
  9000.0

  Reference: see `rcr_confidence`.
  """
  check_range('offset', offset, 0)
  logits, candidates = read_candidates(logits, candidates, may_be_empty=True)
  excluded = jnp.where(candidates, 0, 1).astype(logits.dtype)
  if logspace.is_zero(offset):
    log_left = log_not(logits, logspace.log_probs(logits))
    return -jnp.sum(excluded * log_left, axis=-1)
  # In probabilities, so that float32 rounds as it does in the official code.
  left = (1 + jnp.asarray(offset, logits.dtype)) - logspace.probs(logits)
  left = jnp.where(left > 0, left, jnp.finfo(left.dtype).tiny)
  return -jnp.sum(excluded * jnp.log(left), axis=-1)


def lws(
  logits: ArrayLike,
  candidates: ArrayLike,
  confidence: ArrayLike,
  *,
  lw: Scalar = 2.0,
  lw0: Scalar = 1.0,
  offset: Scalar = 0.0,
) -> Array:
  r"""Leveraged weighted loss: candidates pulled up, the others pushed down.

  .. math:: \ell(z, S, w) = -\lambda_0 \sum_{k \in S} w_k \log(p_k + \epsilon)
    - \lambda \sum_{k \notin S} w_k \log(1 - p_k + \epsilon)

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.
    confidence: w >= 0, [..., c] floating-point, see `lws_confidence`. No
      gradient.
    lw: lambda, the leverage, >= 0.
    lw0: lambda_0, >= 0.
    offset: epsilon >= 0, 1e-8 in the official code.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed, or a hyperparameter is
      negative.

  >>> s, w = jnp.array([True, False]), jnp.ones(2)
  >>> lws(jnp.zeros(2), s, w, lw=0.).round(3).tolist()
  0.6930000185966492

  Reference: Wen, Cui, Hang, Liu, Wang, Lin, "Leveraged Weighted Loss for
  Partial Label Learning", ICML 2021, arXiv 2106.05731; its cross-entropy form.
  """
  for name, value in (('lw', lw), ('lw0', lw0), ('offset', offset)):
    check_range(name, value, 0)
  logits, candidates = read_candidates(logits, candidates)
  confidence = _read_confidence(confidence, logits)
  log_p = logspace.log_probs(logits)
  inside = logspace.add_offset(log_p, offset)
  outside = logspace.add_offset(log_not(logits, log_p), offset)
  terms = jnp.where(candidates, lw0 * inside, lw * outside)
  losses = -jnp.sum(confidence * terms, axis=-1)
  return jnp.where(jnp.any(candidates, axis=-1), losses, 0)


def lws_confidence(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""The weights of LWS: p normalized inside the set, and outside of it.

  .. math:: w_k = p_k \Big/ \sum_j p_j\, 1[j \in S \Leftrightarrow k \in S]

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.

  Returns:
    [..., c], at least float32, without gradient. Sums to one over the set, and
    to one over the other classes if there are any.

  Raises:
    TypeError, ValueError: if `logits` or `candidates` are malformed.

  >>> lws_confidence(jnp.zeros(3), jnp.array([True, False, False])).tolist()
  [1.0, 0.5, 0.5]

  Reference: see `lws`.
  """
  logits, candidates = read_candidates(logits, candidates)
  both = _within(logits, candidates) + _within(logits, ~candidates)
  return jax.lax.stop_gradient(both)


# --- the pieces --------------------------------------------------------------


def _kept(candidates: Array) -> Array:
  """The candidates, and all classes where there are none."""
  return candidates | ~jnp.any(candidates, axis=-1, keepdims=True)


def _within(logits: Array, mask: Array) -> Array:
  """softmax over the classes of a mask; 0 outside, and if it is empty."""
  p = logspace.probs(jnp.where(_kept(mask), logits, -jnp.inf))
  return jnp.where(mask, p, 0)


def _read_confidence(confidence: ArrayLike, logits: Array) -> Array:
  confidence = inputs.read_floats('confidence', confidence)
  check(
    confidence.shape == logits.shape,
    f'confidence must have the shape of the logits, {logits.shape}, got '
    f'{confidence.shape}',
  )
  inputs.check_between('confidence', confidence, 0)
  return jax.lax.stop_gradient(confidence.astype(logits.dtype))
