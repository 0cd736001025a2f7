"""How well a label fits the probabilities of its row: low is suspicious."""

import functools
from typing import Any, Literal, get_args

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy.special import xlogy
import numpy as np

from jnl.audit._rows import (
  BLOCK,
  Rows,
  as_given,
  check_valid,
  class_means,
  doubles,
  numbers,
  own_of,
  own_probs,
  parts_of,
  read_given,
  read_probs,
  valid_rows,
)
from jnl.base import check, check_name
from jnl.inputs import check_simplex

Score = Literal[
  'self_confidence', 'normalized_margin', 'confidence_weighted_entropy'
]
SCORES = get_args(Score)
TEMPERATURES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 2e2)
LEAST = 1e-6
CHUNK = BLOCK << 2  # elements of a block: what is computed is a few times that


def label_quality(
  labels: Any,
  pred_probs: Any,
  *,
  method: Score = 'self_confidence',
  adjust: bool = False,
) -> Any:
  r"""Scores every label by how well it fits the probabilities of its row.

  .. math::
    \text{self confidence: } p_s,\qquad
    \text{normalized margin: } (p_s - \max_{k \ne s} p_k + 1) / 2,

  .. math::
    \text{confidence-weighted entropy: } \log(1 + q) / q,\qquad
    q = -\frac{1}{\log c} \sum_k p_k \log p_k \Big/ \max(p_s, 10^{-6})

  The last one is 1 - for the best label there is - where the row is sure of its
  label (q = 0), as the limit is; cleanlab gives 0 there, the worst score.

  Args:
    labels: s, [...] int in [0, c): of rows, tokens, pixels.
    pred_probs: p, [..., c], out-of-sample probabilities.
    method: which score.
    adjust: whether to take p_k - t_k + max(t) first, and divide by the sum, so
      that classes which a model is less sure of are not blamed; t are the
      thresholds of `confident_thresholds`. Not for the entropy.

  Returns:
    [...], the dtype of `pred_probs` (at least float32); low is suspicious.
    Inside jit that of a label out of range is NaN.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit if a row
      does not hold probabilities.

  >>> label_quality([0, 1], [[.75, .25], [.75, .25]])
  array([0.75, 0.25])

  Reference: Kuan, Mueller, "Model-agnostic label quality scoring to detect
  real-world label errors", ICML DataPerf 2022; Northcutt, Jiang, Chuang,
  "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021,
  arXiv 1911.00068.
  """
  check_name('method', method, SCORES)
  check(
    not (adjust and method == 'confidence_weighted_entropy'),
    'adjust shifts probabilities below 0: method must not be '
    "'confidence_weighted_entropy'",
  )
  probs = read_probs(pred_probs)
  c = probs.shape[-1]
  labels, known = read_given(labels, probs.shape[:-1], c)
  known = None if known is None else known.reshape(-1)
  flat = Rows(labels.reshape(-1), probs.reshape(-1, c), known)
  thresholds = class_means(flat, own_of(flat), None) if adjust else None
  return as_given(scores_of(flat, method, thresholds), probs).reshape(
    labels.shape
  )


def scores_of(rows: Rows, method: Score, thresholds: Any) -> Any:
  """The scores [n] of rows, in blocks where they lie on the host."""
  labels, probs, known = rows
  if not isinstance(probs, np.ndarray) or known is not None:
    check_simplex('pred_probs', probs)
    scores = _scores(labels, probs, thresholds, method)
    return scores if known is None else jnp.where(known, scores, jnp.nan)
  n, c = probs.shape
  scores = np.empty(n, probs.dtype)
  plain = method == 'self_confidence' and thresholds is None
  with doubles(probs.dtype):
    for part in parts_of(n, max(1, CHUNK // c)):
      given, block = labels[part], probs[part]
      check_valid(valid_rows(block).all(), block)
      if plain:
        scores[part] = own_probs(given, block)
      else:
        scores[part] = _scores(given, block, thresholds, method)
  return scores


@functools.partial(jax.jit, static_argnums=3)
def _scores(labels: Any, probs: Any, thresholds: Any, method: Score) -> Any:
  at = labels[:, None]
  if thresholds is not None:
    probs = probs - thresholds + jnp.max(thresholds)
    probs /= jnp.sum(probs, axis=1, keepdims=True)
  own = jnp.take_along_axis(probs, at, axis=1)[:, 0]
  if method == 'self_confidence':
    return own
  if method == 'normalized_margin':
    others = lax.broadcasted_iota(labels.dtype, probs.shape, 1) != at
    best = jnp.max(probs, axis=1, where=others, initial=-jnp.inf)
    return (own - best + 1) / 2
  entropy = -jnp.sum(xlogy(probs, probs), axis=1) / jnp.log(probs.shape[1])
  q = entropy / jnp.maximum(own, LEAST)
  some = q > LEAST
  return jnp.where(some, jnp.log1p(q) / jnp.where(some, q, 1), 1 - q / 2)


def ensemble_quality(
  labels: Any,
  pred_probs: Any,
  *,
  weights: Any = 'accuracy',
  method: Score = 'self_confidence',
  adjust: bool = False,
) -> Any:
  r"""Scores every label by several models: a weighted mean of `label_quality`.

  Args:
    labels: s, [n] int in [0, c).
    pred_probs: [m, n, c], out-of-sample probabilities of m models.
    weights: 'uniform'; 'accuracy', in proportion to how often a model puts the
      label first; 'log_loss_search', exp(-T L_m) with the T, of eight from 1e-4
      to 200, for which the mean of the probabilities has the least log loss L;
      or [m] numbers of yours.
    method: which score, see `label_quality`.
    adjust: as in `label_quality`, for each model.

  Returns:
    [n]; low is suspicious.

  Raises:
    TypeError, ValueError: as `label_quality`.

  >>> ensemble_quality([0], [[[.75, .25]], [[.25, .75]]], weights='uniform')
  array([0.5])

  Reference: Kuan, Mueller, "Model-agnostic label quality scoring to detect
  real-world label errors", ICML DataPerf 2022.
  """
  probs = read_probs(pred_probs)
  check(
    probs.ndim == 3,
    f'pred_probs must be [m, n, c] of m models, got shape {probs.shape}',
  )
  safe, _ = read_given(labels, probs.shape[1:2], probs.shape[2])
  scores = [
    label_quality(labels, p, method=method, adjust=adjust) for p in probs
  ]
  w = _weights_of(weights, safe, probs)
  xp = np if isinstance(probs, np.ndarray) else jnp
  return (w[:, None] * xp.stack(scores)).sum(0).astype(probs.dtype)


def _weights_of(weights: Any, labels: Any, probs: Any) -> Any:
  """What each of m models counts, [m]."""
  xp = np if isinstance(probs, np.ndarray) else jnp
  if not isinstance(weights, str):
    w = numbers('weights', weights)
    check(
      w.shape == probs.shape[:1],
      f'weights must be [{len(probs)}], one of each model, got {w.shape}',
    )
    return w
  check_name('weights', weights, ('uniform', 'accuracy', 'log_loss_search'))
  if weights == 'uniform':
    return xp.full(len(probs), 1 / len(probs))
  if weights == 'accuracy':
    right = (probs.argmax(-1) == labels).mean(-1)
    total = right.sum()
    return xp.where(total > 0, right / (total + (total == 0)), 1 / len(probs))

  def log_loss(p: Any) -> Any:
    own = xp.take_along_axis(p, labels[:, None], axis=-1)[:, 0]
    return -xp.log(xp.maximum(own, xp.finfo(p.dtype).eps)).mean()

  kept = xp.maximum(probs, LEAST)
  kept = kept / kept.sum(-1, keepdims=True)
  of_models = xp.stack([log_loss(p) for p in kept])
  factors = xp.exp(
    -xp.asarray(TEMPERATURES)[:, None] * (of_models - of_models.min())
  )
  factors = factors / factors.sum(1, keepdims=True)
  mixed = xp.stack(
    [log_loss((w[:, None, None] * probs).sum(0)) for w in factors]
  )
  return factors[mixed.argmin()]
