"""The published steps of imprecise label learning (ILL), as losses of arrays.

For a loop of one's own; `jnl.methods.ill_noisy` and its kin train with them.
The equations are those of `jnl.em`: the weak view of an example and its label
give a posterior, which the strong view learns. The losses are means over the
batch, over all devices; an example of weight 0 leaves no trace, whatever its
logits, label or set hold: also -1, 255 or NaN.

Reference: see `jnl.methods.ill_noisy`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import losses
from jnl.base import Array, Metrics, Scalar, check, global_mean, is_concrete
from jnl.em._posteriors import (
  candidate_posterior,
  log_likelihood,
  mixed_evidence,
  noisy_evidence,
  noisy_log_likelihood,
  posterior,
)
from jnl.em._terms import (
  align,
  class_balance,
  consistency,
  keep_top,
  mean_prediction,
  posterior_cross_entropy,
)
from jnl.em._transition import column_transition, row_transition
from jnl.inputs import check_range


def noisy_loss(
  logits_w: ArrayLike,
  logits_s: ArrayLike,
  labels: ArrayLike,
  weights: Array,
  noise_weights: ArrayLike,
  *,
  scale: Scalar = 1.0,
  entropy_weight: Scalar = 0.1,
) -> tuple[Array, Metrics]:
  r"""The loss of the step for noisy labels, and its parts.

  .. math::
    L = -\log \frac{(p U)_y}{\sum_j (p U)_j}
      - \sum_k q_k \log \mathrm{softmax}(z' + \log T_{\cdot y})_k
      - \sum_k \bar p_k \log p'_k + \lambda B,
    \qquad q_k \propto \bar p_k T_{k y}

  in the mean over the batch: p of the weak view (p-bar: without gradient), p'
  of the strong one, T = `em.row_transition` without gradient, U =
  `em.column_transition`, B = `em.class_balance` of the weak view. The gradient
  to the matrix and to the weak view comes from the first term (and B).

  Args:
    logits_w: [b, c], of the weak view.
    logits_s: [b, c], of the strong view.
    labels: y, [b] int.
    weights: [b], >= 0.
    noise_weights: [c, c], learned, the identity at first.
    scale: see `em.noise_logits`.
    entropy_weight: lambda >= 0.

  Returns:
    The loss [], and its parts: `likelihood`, `posterior`, `consistency`,
    `balance` (before its weight).

  Raises:
    TypeError, ValueError: if an array is malformed, or a hyperparameter out of
      range.

  Reference: see `noise_logits`.
  """
  check_range('entropy_weight', entropy_weight, 0)
  logits_w = _hide('logits_w', logits_w, weights)
  logits_s = _hide('logits_s', logits_s, weights)
  labels = _hide('labels', labels, weights)
  read_through = column_transition(noise_weights, scale=scale)
  likelihood = noisy_log_likelihood(logits_w, labels, read_through)
  transition = row_transition(lax.stop_gradient(noise_weights), scale=scale)
  evidence = noisy_evidence(labels, transition)
  q = posterior(lax.stop_gradient(logits_w), evidence)
  parts = {
    'likelihood': global_mean(-likelihood, weights),
    'posterior': global_mean(
      posterior_cross_entropy(logits_s, q, evidence), weights
    ),
    'consistency': global_mean(consistency(logits_s, logits_w), weights),
  }
  return _total(parts, logits_w, weights, entropy_weight)


def partial_loss(
  logits: ArrayLike,
  candidates: ArrayLike,
  weights: Array,
  *,
  entropy_weight: Scalar = 0.1,
  offset: Scalar = 0.0,
) -> tuple[Array, Metrics]:
  r"""The loss of the step for candidate sets, and its parts.

  .. math::
    L = -\sum_{k \notin S} \log(1 - p_k + \epsilon)
      - \frac1V \sum_v \sum_k q_k \log p^v_k + \lambda B,
    \qquad q_k \propto \bar p_k 1[k \in S]

  in the mean over the batch: p of the weak view, the first of V (p-bar: without
  gradient), B its `em.class_balance`. The paper has the likelihood of S in
  place of the first term, for which the code has R-CR's `losses.rule_out`.

  Args:
    logits: [b, V, c], of V views, the weak one first; the paper's code has 3.
    candidates: S, [b, c] bool. Inside jit, an example with an empty set counts
      for nothing.
    weights: [b], >= 0.
    entropy_weight: lambda >= 0.
    offset: epsilon >= 0, see `losses.rule_out`; 1e-7 in the official code.

  Returns:
    The loss [], and its parts: `exclusion`, `posterior`, `balance` (before its
    weight).

  Raises:
    TypeError, ValueError: if an array is malformed (outside jit also if a set
      is empty), or a hyperparameter out of range.

  Reference: see `noise_logits`.
  """
  check_range('entropy_weight', entropy_weight, 0)
  check(
    np.ndim(logits) == 3,
    f'logits must be [b, V, c], got shape {np.shape(logits)}',
  )
  candidates = _hide('candidates', candidates, weights, True)
  weights = jnp.where(jnp.any(candidates, axis=-1), weights, 0)
  logits = _hide('logits', logits, weights)
  weak = logits[:, 0]
  q = candidate_posterior(weak, candidates)
  views = losses.proden(logits, jnp.broadcast_to(q[:, None], logits.shape))
  parts = {
    'exclusion': global_mean(
      losses.rule_out(weak, candidates, offset=offset), weights
    ),
    'posterior': global_mean(views, weights),
  }
  return _total(parts, weak, weights, entropy_weight)


def semi_loss(
  logits_w: ArrayLike,
  logits_s: ArrayLike,
  labels: ArrayLike,
  labeled: ArrayLike,
  weights: Array,
  p_hat: Array,
  *,
  momentum: Scalar = 0.999,
  top: int = 3,
  entropy_weight: Scalar = 0.1,
) -> tuple[Array, tuple[Array, Metrics]]:
  r"""The loss of the step for missing labels, and its parts.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} [-\log p_y]
      + \operatorname{mean}_{\text{unlabeled}} \Big[
        -\sum_k q_k \log p'_k \Big] + \lambda B,
    \qquad q = \mathrm{top}(\bar p / \hat p)

  with p of the weak view (p-bar: without gradient), p' of the strong one, the
  three largest ratios kept and normalized, and B = `em.class_balance` of the
  weak view of unlabeled examples, through which alone they have a gradient
  there. p-hat is the running mean of p over unlabeled examples, this batch
  included; a batch without any leaves it as it is.

  Args:
    logits_w: [b, c], of the weak view.
    logits_s: [b, c], of the strong view; unused where labeled.
    labels: y, [b] int; anything where not labeled.
    labeled: [b] bool.
    weights: [b], >= 0.
    p_hat: [c] before the step, uniform at first.
    momentum: of p-hat, in [0, 1].
    top: how many classes q keeps, see `em.keep_top`.
    entropy_weight: lambda >= 0.

  Returns:
    The loss [], and (p-hat after the step, parts of the loss): `supervised`,
    `unsupervised`, `balance` (before its weight).

  Raises:
    TypeError, ValueError: if an array is malformed, or a hyperparameter out of
      range.

  Reference: see `noise_logits`.
  """
  check_range('entropy_weight', entropy_weight, 0)
  labeled = jnp.asarray(labeled)
  check(
    labeled.dtype == bool,
    f'labeled must be bool, got {labeled.dtype}',
    TypeError,
  )
  present = jnp.where(labeled, weights, 0)
  missing = jnp.where(labeled, 0, weights)
  logits_w = _hide('logits_w', logits_w, weights)
  logits_s = _hide('logits_s', logits_s, missing)
  labels = _hide('labels', labels, present)
  p_hat = _move(p_hat, logits_w, missing, momentum)
  q = keep_top(align(lax.stop_gradient(logits_w), p_hat), k=top)
  parts = {
    'supervised': global_mean(losses.ce(logits_w, labels), present),
    'unsupervised': global_mean(posterior_cross_entropy(logits_s, q), missing),
  }
  loss, metrics = _total(parts, logits_w, missing, entropy_weight)
  return loss, (p_hat, metrics)


def mixed_loss(
  logits_w: ArrayLike,
  logits_s: ArrayLike,
  candidates: ArrayLike,
  noisy: ArrayLike,
  weights: Array,
  noise_weights: ArrayLike,
  p_hat: Array,
  *,
  scale: Scalar = 1.0,
  momentum: Scalar = 0.999,
  entropy_weight: Scalar = 0.1,
  offset: Scalar = 0.0,
  posterior_offset: Scalar = 0.0,
) -> tuple[Array, tuple[Array, Metrics]]:
  r"""The loss of the step for labels of every kind, and its parts.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \Big[
      -\sum_{k \notin S} \log(1 - n_k + \epsilon) - \sum_k q_k \log p'_k \Big]
      + \operatorname{mean}_{\text{unlabeled}} \Big[
        -\sum_k r_k \log p'_k \Big] + \lambda B

  with q = `em.mixed_posterior` of the weak view; n = p U normalized where
  noisy, else p; r = `em.align` of the weak view with p-hat; B =
  `em.class_balance` of the weak view of labeled examples. T and U are as in
  `noisy_loss`, p-hat as in `semi_loss`, but r keeps all classes; q and r have
  no gradient.

  Unlabeled are the examples that are not noisy and have all candidates. In the
  paper every labeled one is noisy.

  Args:
    logits_w: [b, c], of the weak view.
    logits_s: [b, c], of the strong view.
    candidates: S, [b, c] bool. A noisy set may be empty. Inside jit, an example
      that is not noisy with an empty set counts for nothing.
    noisy: [b] bool, where S is read through the learned matrix.
    weights: [b], >= 0.
    noise_weights: [c, c], learned, the identity at first.
    p_hat: [c] before the step, uniform at first.
    scale: see `em.noise_logits`.
    momentum: of p-hat, in [0, 1].
    entropy_weight: lambda >= 0.
    offset: epsilon >= 0, see `losses.rule_out`; 1e-7 in the official code.
    posterior_offset: >= 0, added to the denominator of q; 1e-12 in the official
      code, which is more than the numerator for large noisy sets: their q fades
      away. The default keeps every q at sum one.

  Returns:
    The loss [], and (p-hat after the step, parts of the loss): `exclusion`,
    `posterior`, `unsupervised`, `balance` (before its weight).

  Raises:
    TypeError, ValueError: if an array is malformed (outside jit also if a set
      that is not noisy is empty), or a hyperparameter out of range.

  Reference: see `noise_logits`.
  """
  check_range('entropy_weight', entropy_weight, 0)
  transition = row_transition(lax.stop_gradient(noise_weights), scale=scale)
  check(
    posterior_offset >= 0,
    f'posterior_offset must not be negative, got {posterior_offset}',
  )
  candidates = _hide('candidates', candidates, weights, True)
  noisy = _hide('noisy', noisy, weights)
  evidence = mixed_evidence(candidates, noisy, transition)
  weights = jnp.where(noisy | jnp.any(candidates, axis=-1), weights, 0)
  logits_w = _hide('logits_w', logits_w, weights)
  logits_s = _hide('logits_s', logits_s, weights)
  q = _posterior(lax.stop_gradient(logits_w), evidence, posterior_offset)
  labeled = noisy | ~jnp.all(candidates, axis=-1)
  present = jnp.where(labeled, weights, 0)
  missing = jnp.where(labeled, 0, weights)
  read_through = column_transition(noise_weights, scale=scale)
  log_n = _log_read_through(logits_w, read_through)
  observed = jnp.where(noisy[:, None], log_n, logits_w)
  exclusion = losses.rule_out(observed, candidates, offset=offset)
  p_hat = _move(p_hat, logits_w, missing, momentum)
  r = align(lax.stop_gradient(logits_w), p_hat)
  # One cross-entropy: its targets are q or r, its two means apart.
  learned = posterior_cross_entropy(logits_s, jnp.where(labeled[:, None], q, r))
  parts = {
    'exclusion': global_mean(exclusion, present),
    'posterior': global_mean(learned, present),
    'unsupervised': global_mean(learned, missing),
  }
  loss, metrics = _total(parts, logits_w, present, entropy_weight)
  return loss, (p_hat, metrics)


# --- the pieces --------------------------------------------------------------


def _hide(name: str, rows: Any, weights: Array, instead: bool = False) -> Array:
  """Rows [b, ...] with zeros, or ones, where an example has no weight.

  Its loss would be left out anyway, but backward 0 times NaN is NaN, and a
  label or an empty set would be complained of.
  """
  rows, gone = jnp.asarray(rows), jnp.asarray(weights) == 0
  check(
    gone.ndim == 1 and rows.shape[:1] == gone.shape,
    f'{name} must have a row for each example, as weights [b] have: got shapes '
    f'{rows.shape} and {gone.shape}',
  )
  gone = gone.reshape(-1, *(1,) * (rows.ndim - 1))
  return jnp.where(gone, jnp.asarray(instead, rows.dtype), rows)


def _move(
  p_hat: Array, logits: Array, weights: Array, momentum: Scalar
) -> Array:
  """The running mean after this batch, as it is if all weights are 0."""
  mean, some = mean_prediction(lax.stop_gradient(logits), weights)
  moved = momentum * p_hat + (1 - momentum) * mean
  return jnp.where(some, moved, p_hat).astype(p_hat.dtype)


def _posterior(logits: Array, evidence: Array, offset: Scalar) -> Array:
  """The posterior, with an offset in its denominator."""
  q = posterior(logits, evidence)
  if is_concrete(offset) and offset == 0:
    return q
  log_odds = log_likelihood(logits, evidence) - jnp.log(offset)
  return q * jax.nn.sigmoid(log_odds)[:, None]


def _log_read_through(logits: Array, transition: Array) -> Array:
  """log (p T) [b, c] for a matrix without zeros."""
  dtype = jnp.promote_types(logits.dtype, transition.dtype)
  p = jax.nn.softmax(logits.astype(dtype))
  n = jnp.matmul(p, transition, precision=lax.Precision.HIGHEST)
  return jnp.log(jnp.maximum(n, jnp.finfo(n.dtype).tiny))


def _total(
  parts: Mapping[str, Array], logits: Array, weights: Array, factor: Scalar
) -> tuple[Array, Metrics]:
  """The sum of the parts and of a share of the balance."""
  balance = class_balance(logits, weights)
  loss = sum(parts.values()) + factor * balance
  return loss, {**parts, 'balance': balance}
