"""Evidence about two instances as a table of weights; and soft labels of one.

Tables are log weights [..., 2, 2] of (first label, second label); label 1 is
the positive one. They go into `pair`, or by `pair_automaton` into `infer`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl.automata._general import check_broadcast, read_table
from jnl.automata._inputs import Inference, conclude
from jnl.base import LOG_ZERO, Array, Scalar, check
from jnl.inputs import read_bags


def pair(logits: ArrayLike, log_weights: ArrayLike) -> Inference:
  r"""Posteriors and likelihood, given a relation of two instances.

  .. math:: P = \sum_{ab} w_{ab}\, p_1(a)\, p_2(b),\qquad
    q_1(a) = \frac1P \sum_b w_{ab}\, p_1(a)\, p_2(b)

  Args:
    logits: [..., 2, k], both instances.
    log_weights: log w, [..., k, k] of (first, second); -inf (or anything <=
      -1e30) for what is impossible. Broadcasts against the pairs.

  Returns:
    `Inference`, the posterior [..., 2, k].

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9]]))
  >>> result = jax.jit(pair)(z, similarity(jnp.array(True)))
  >>> [f'{q:.3f}' for q in result.posterior[:, 1]]
  ['0.900', '0.900']

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922.
  """
  log_probs, mask = read_bags(logits, None)
  log_weights = read_table(log_weights).astype(log_probs.dtype)
  *bags, two, k = log_probs.shape
  check(two == 2, f'logits must be [..., 2, k], got shape {log_probs.shape}')
  check(
    log_weights.shape[-1] == k,
    f'log_weights must be [..., {k}, {k}], got shape {log_weights.shape}',
  )
  check_broadcast('log_weights', log_weights.shape[:-2], tuple(bags))
  joint = jnp.maximum(log_weights, LOG_ZERO)
  joint += log_probs[..., 0, :, None] + log_probs[..., 1, None, :]
  value = jax.nn.logsumexp(joint, axis=(-2, -1))
  both = jax.nn.softmax(joint, axis=(-2, -1))
  posterior = jnp.stack([jnp.sum(both, -1), jnp.sum(both, -2)], axis=-2)
  log_probs = jnp.broadcast_to(log_probs, posterior.shape)
  mask = jnp.broadcast_to(mask, posterior.shape[:-1])
  return conclude(value, posterior, log_probs, mask)


def similarity(
  similar: ArrayLike, *, prior: Array | float | None = None
) -> Array:
  r"""The log weights of two labels that are known to be equal, or unequal.

  .. math:: w_{ab} = 1[(a = b) = \text{similar}]\; \pi_a \pi_b,\qquad
    \pi = (1 - \text{prior}, \text{prior})

  without the factors of pi if `prior` is None.

  Args:
    similar: [...] bool.
    prior: [] or [...] in [0, 1], of the positive class, for predictions that
      leave it out.

  Returns:
    [..., 2, 2] log weights.

  Raises:
    TypeError: if `similar` is not bool.
    ValueError: if `prior` is not in [0, 1] or of another shape.

  >>> jnp.exp(similarity(jnp.array(False))).tolist()
  [[0.0, 1.0], [1.0, 0.0]]

  The official code gives the negative pair the weight prior^2 and the positive
  one (1 - prior)^2; for these, pass 1 - prior.

  Reference: Bao, Niu, Sugiyama, "Classification from Pairwise Similarity and
  Unlabeled Data", ICML 2018, arXiv 1802.04381; see `pair`.
  """
  similar = jnp.asarray(similar)
  check(
    similar.dtype == bool,
    f'similar must be bool, got {similar.dtype}',
    TypeError,
  )
  equal = jnp.eye(2, dtype=bool) == similar[..., None, None]
  if prior is None:
    return jnp.where(equal, 0, LOG_ZERO).astype(float)
  prior = _read_number('prior', prior)
  check(
    prior.shape in ((), similar.shape),
    f'prior must be a number or of shape {similar.shape}, got {prior.shape}',
  )
  log_prior = _log(jnp.stack([1 - prior, prior], axis=-1))
  both = log_prior[..., :, None] + log_prior[..., None, :]
  return jnp.where(equal, both, LOG_ZERO)


def comparison(*, ties: Scalar = 1.0) -> Array:
  """The log weights of a first label at least as positive as the second.

  All pairs are possible but (0, 1).

  Args:
    ties: weight of two equal labels. With 1 the evidence is that (0, 1) is
      excluded, whose likelihood is largest if everything is positive (or
      everything negative): it cannot be learned from alone. With 1/2 it is the
      outcome of a comparison that a coin decides between equals, which can.

  Returns:
    [2, 2] log weights.

  Raises:
    ValueError: outside jit, if `ties` is not in [0, 1].

  >>> jnp.exp(comparison()).tolist()
  [[1.0, 0.0], [1.0, 1.0]]

  Reference: Feng et al., "Pointwise Binary Classification with Pairwise
  Confidence Comparisons", ICML 2021, arXiv 2010.01875; see `pair`.
  """
  check((ties >= 0) & (ties <= 1), f'ties must lie in [0, 1], got {ties}')
  weights = jnp.array([[ties, 0], [1, ties]], float)
  return _log(weights)


def similarity_confidence(confidence: ArrayLike) -> Array:
  r"""The log weights of two labels that are equal with a known probability s.

  .. math:: w_{ab} = s \text{ if } a = b \text{ else } 1 - s

  Args:
    confidence: s, [...] in [0, 1].

  Returns:
    [..., 2, 2] log weights.

  Raises:
    ValueError: if `confidence` is not in [0, 1].

  >>> jnp.exp(similarity_confidence(0.75)).tolist()
  [[0.75, 0.25], [0.25, 0.75]]

  Reference: Cao et al., "Learning from Similarity-Confidence Data", ICML 2021,
  arXiv 2102.06879; see `pair`. The official code leaves the confidence out of
  the second posterior.
  """
  s = _read_number('confidence', confidence)[..., None, None]
  return jnp.where(jnp.eye(2, dtype=bool), _log(s), _log(1 - s))


def confidence_difference(difference: ArrayLike) -> Array:
  r"""The log weights of two labels whose chances to be positive differ by d.

  .. math:: w_{00} = w_{11} = 1 - |d|,\qquad w_{10} = \max(d, 0),\qquad
    w_{01} = \max(-d, 0)

  Args:
    difference: d, [...] in [-1, 1], P(first positive) - P(second positive). The
      paper below has the second less the first: pass its negative.

  Returns:
    [..., 2, 2] log weights.

  Raises:
    ValueError: if `difference` is not in [-1, 1].

  >>> jnp.exp(confidence_difference(0.25)).tolist()
  [[0.75, 0.0], [0.25, 0.75]]

  Reference: Wang et al., "Binary Classification with Confidence Difference",
  NeurIPS 2023, arXiv 2310.05632; see `pair`.
  """
  d = _read_number('difference', difference, -1)[..., None, None]
  weights = jnp.where(
    jnp.eye(2, dtype=bool),
    1 - jnp.abs(d),
    jnp.where(jnp.array([[False, False], [True, False]]), d, -d),
  )
  return _log(weights)


def positive_confidence(
  logits: ArrayLike, confidence: ArrayLike, mask: ArrayLike | None = None
) -> Inference:
  r"""Posteriors and likelihood, given each instance's chance to be positive.

  .. math:: q_i \propto p_i \cdot (1 - c_i, c_i),\qquad
    P = \prod_i (p_{i0} (1 - c_i) + p_{i1} c_i)

  Args:
    logits: [..., m, 2].
    confidence: c, [..., m] in [0, 1].
    mask: [..., m] bool, true where there is an instance.

  Returns:
    `Inference`. The likelihood is that of the whole bag: for a value of each
    instance, pass bags of one, [..., 1, 2].

  Raises:
    TypeError, ValueError: if an array is malformed or out of range, or if
      outside jit a bag is empty.

  >>> z, c = jnp.zeros([1, 2]), jnp.array([0.75])
  >>> [f'{q:.2f}' for q in jax.jit(positive_confidence)(z, c).posterior[0]]
  ['0.25', '0.75']

  Reference: Ishida, Niu, Sugiyama, "Binary Classification from
  Positive-Confidence Data", NeurIPS 2018, arXiv 1710.07138; see `pair`.
  """
  log_probs, mask = read_bags(logits, mask, classes=2)
  confidence = jnp.asarray(confidence)
  check(
    confidence.shape == mask.shape,
    f'confidence must be [..., m] = {mask.shape}, got {confidence.shape}',
  )
  # Slots without an instance may hold anything.
  c = _read_number('confidence', jnp.where(mask, confidence, 0.5))
  c = c.astype(log_probs.dtype)
  joint = log_probs + _log(jnp.stack([1 - c, c], axis=-1))
  each = jax.nn.logsumexp(joint, axis=-1)
  value = jnp.sum(jnp.where(mask, each, 0), axis=-1)
  return conclude(value, jax.nn.softmax(joint), log_probs, mask)


# --- the pieces --------------------------------------------------------------


def _log(weights: Array) -> Array:
  """log of weights, with a finite log 0 that has no gradient."""
  some = weights > 0
  return jnp.where(some, jnp.log(jnp.where(some, weights, 1)), LOG_ZERO)


def _read_number(name: str, values: ArrayLike, low: int = 0) -> Array:
  """Checks numbers in [low, 1], at least float32."""
  values = jnp.asarray(values)
  check(
    jnp.all((values >= low) & (values <= 1)),
    f'{name} must lie in [{low}, 1]',
  )
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))
