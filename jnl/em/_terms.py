"""The terms of the published steps: one value per example, or of the batch."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import logspace
from jnl.base import Array, Scalar, check, global_mean, is_concrete
from jnl.em._inputs import check_like, read_evidence, stopped_probs, weigh
from jnl.inputs import as_array, check_range, read_logits
from jnl.logspace import safe_log


def posterior_cross_entropy(
  logits: ArrayLike, posterior: ArrayLike, evidence: ArrayLike | None = None
) -> Array:
  r"""Cross-entropy to a posterior under the same evidence, the M-step.

  .. math:: -\sum_k q_k \log \mathrm{softmax}(z + e)_k

  The network is compared with q after it has seen the same evidence, so that
  the gradient is softmax(z + e) - q: 0 where both views agree. Without evidence
  it is `losses.ce(logits, q)`, for a q that may be off the simplex.

  Args:
    logits: z, [..., c], of the strong view.
    posterior: q, [..., c], of the weak view. No gradient.
    evidence: e, [..., c], that q was made with; None is 0. No gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z, q, e = jnp.zeros(2), jnp.array([0.5, 0.5]), jnp.zeros(2)
  >>> posterior_cross_entropy(z, q, e).round(3).tolist()
  0.6930000185966492

  Reference: see `noise_logits`; a form of the code.
  """
  logits = read_logits(logits, masked=True)
  check_like('posterior', posterior, logits)
  if evidence is None:
    log_p = logspace.log_probs(logits)
  else:
    logits, evidence = read_evidence(logits, evidence)
    weighed, _, _ = weigh(logits, lax.stop_gradient(evidence))
    log_p = logspace.log_probs(weighed)
    log_p = jnp.where(weighed == -jnp.inf, 0, log_p)  # q is 0: no 0 * -inf
  return -jnp.sum(lax.stop_gradient(posterior) * log_p, axis=-1)


def consistency(logits: ArrayLike, target_logits: ArrayLike) -> Array:
  r"""Cross-entropy of one view against the prediction on another.

  .. math:: -\sum_k \mathrm{softmax}(z')_k \log \mathrm{softmax}(z)_k

  Args:
    logits: z, [..., c], of the strong view.
    target_logits: z', [..., c], of the weak view. No gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> consistency(jnp.zeros(2), jnp.array([9., 1.])).round(3).tolist()
  0.6930000185966492
  """
  logits, target = read_logits(logits), stopped_probs(target_logits)
  check_like('target_logits', target, logits)
  return posterior_cross_entropy(logits, target)


def class_balance(
  logits: ArrayLike, weights: ArrayLike, *, clip: Scalar = 1e-6
) -> Array:
  r"""Cross-entropy of the mean prediction against uniform classes.

  .. math:: -\frac1c \sum_k \log \max(m_k, \epsilon),\qquad
    m = \sum_i w_i p_i \Big/ \sum_i w_i

  So that no class dies out. Batch-coupled: one value for the batch, over all
  devices, as a mean has no value for each example. `losses.prior_mean_kl` is
  the same less log c, with a clip at the smallest float.

  Args:
    logits: [..., c].
    weights: [...], >= 0.
    clip: epsilon > 0, below which a class has no gradient.

  Returns:
    [], at least float32, the same on every device; 0 if all weights are.

  Raises:
    TypeError, ValueError: if an array is malformed, or `clip` out of range.

  >>> class_balance(jnp.zeros([3, 2]), jnp.ones(3)).round(3).tolist()
  0.6930000185966492

  Reference: see `noise_logits`; a term of the code, with the weight .1.
  """
  check_range('clip', clip, 0, 1, open_low=True)
  mean, some = mean_prediction(logits, weights)
  kept = jnp.where(mean <= clip, clip, mean)  # not a NaN
  return jnp.where(some, -jnp.mean(jnp.log(kept)), 0)


def mean_prediction(
  logits: ArrayLike, weights: ArrayLike
) -> tuple[Array, Array]:
  """The mean of softmax over all examples of all devices.

  Args:
    logits: [..., c].
    weights: [...], >= 0.

  Returns:
    The mean [c], and whether any weight is not 0, [] bool.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> mean, some = mean_prediction(jnp.array([[0., 0.], [9., 9.]]), jnp.ones(2))
  >>> mean.tolist(), bool(some)
  ([0.5, 0.5], True)
  """
  logits, weights = read_logits(logits), jnp.asarray(weights)
  check(
    weights.shape == logits.shape[:-1],
    f'weights must have shape {logits.shape[:-1]}, got {weights.shape}',
  )
  logits = jnp.where(weights[..., None] != 0, logits, 0)  # a masked NaN
  mean = jax.vmap(global_mean, (-1, None))(logspace.probs(logits), weights)
  return mean, lax.stop_gradient(jnp.sum(mean)) != 0  # a NaN is some


def align(
  logits: ArrayLike,
  prior: ArrayLike,
  *,
  target: ArrayLike | None = None,
  offset: Scalar = 0.0,
) -> Array:
  r"""Distribution alignment: predictions over their running mean, normalized.

  .. math:: r_k \propto p_k \frac{t_k + \epsilon}{\hat p_k + \epsilon}

  Args:
    logits: [..., c]; log-probabilities are logits too.
    prior: p-hat, [c], a running mean of predictions, >= 0.
    target: t, [c] >= 0, the mean that predictions are to have; None is uniform.
    offset: epsilon >= 0, which keeps what is aligned bounded.

  Returns:
    [..., c] on the simplex, at least float32. A prior of 0 counts as the
    smallest normal number.

  Raises:
    TypeError, ValueError: if an array is malformed, or `offset` negative.

  >>> p = jnp.array([.75, .25])
  >>> align(jnp.log(p), p).tolist()
  [0.5, 0.5]

  Reference: Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang, Raffel,
  "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and
  Augmentation Anchoring", ICLR 2020, arXiv 1911.09785.
  """
  logits = read_logits(logits)
  check_range('offset', offset, 0)
  prior = _read_mean('prior', prior, logits)
  least = jnp.finfo(logits.dtype).tiny
  shift = jnp.max(logits, axis=-1, keepdims=True)  # so that small priors count
  below = jnp.log(jnp.maximum(prior + offset, least))
  logits = (logits - shift) - below
  if target is not None:
    target = _read_mean('target', target, logits)
    logits = logits + safe_log(target + offset)
  return logspace.probs(logits)


def _read_mean(name: str, mean: ArrayLike, logits: Array) -> Array:
  """A mean prediction [c], in the dtype of the logits."""
  mean, c = as_array(name, mean), logits.shape[-1]
  check(mean.shape == (c,), f'{name} must be [{c}], got shape {mean.shape}')
  if is_concrete(mean):
    check(~jnp.any(mean < 0), f'{name} must not be negative')
  return mean.astype(logits.dtype)


def keep_top(probs: ArrayLike, *, k: int = 3) -> Array:
  """The k largest probabilities, normalized; 0 for the others.

  Args:
    probs: [..., c], >= 0.
    k: >= 1, static; more than c keeps all. Of equal ones the first are kept.

  Returns:
    [..., c], at least float32; all 0 where `probs` are.

  Raises:
    ValueError: if `k` is less than 1.

  >>> keep_top(jnp.array([.2, .5, .2, .1]), k=1).tolist()
  [0.0, 1.0, 0.0, 0.0]

  Reference: see `noise_logits`; a step of the code, with k = 3.
  """
  check(k >= 1, f'k must be at least 1, got {k}')
  probs = jnp.asarray(probs)
  probs = probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
  classes = probs.shape[-1]
  if k < classes:
    _, top = lax.top_k(probs, k)
    kept = jnp.any(top[..., None] == jnp.arange(classes), axis=-2)
    probs = jnp.where(kept, probs, 0)
  total = jnp.sum(probs, axis=-1, keepdims=True)
  return probs / jnp.where(total > 0, total, 1)
