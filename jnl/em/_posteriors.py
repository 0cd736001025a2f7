"""What labels are evidence of, and what follows: posterior and likelihood."""

from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import logspace, losses
from jnl.base import LOG_ZERO, Array, check, check_auto
from jnl.em._inputs import (
  log_transition,
  read_evidence,
  read_sets,
  stopped_probs,
  weigh,
)
from jnl.inputs import read_labels, read_logits
from jnl.logspace import safe_log


def noisy_evidence(labels: ArrayLike, transition: ArrayLike) -> Array:
  r"""The evidence of a noisy label: :math:`e_k = \log T_{k y}`.

  Args:
    labels: y, [...] int.
    transition: T, [c, c], rows on the simplex; zeros are allowed.

  Returns:
    [..., c], at least float32; `LOG_ZERO` for log 0, and 0 for a label out of
    range inside jit.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if a label
      is out of range, or a row of `transition` off the simplex.

  >>> noisy_evidence(jnp.array(0), jnp.array([[1., 0.], [.5, .5]])).tolist()
  [0.0, -0.6931471824645996]
  """
  _, log_t = log_transition(transition)
  check_auto(labels, 'labels')
  return _columns(log_t, *read_labels(labels, log_t.shape[0]))


def mixed_evidence(
  candidates: ArrayLike, noisy: ArrayLike, transition: ArrayLike
) -> Array:
  r"""The evidence of sets, each either true or read through the transition.

  .. math:: e_k = \sum_{j \in S} \log T_{kj} \text{ if noisy, else }
    \log 1[k \in S]

  A singleton is a noisy or a precise label, the set of all classes (not noisy)
  no label. Candidates of a noisy set are taken for independent draws, so its
  weights are not the probabilities of sets; an empty one says nothing.

  Args:
    candidates: S, [..., c] bool.
    noisy: [...] bool.
    transition: T, [c, c], rows on the simplex; zeros are allowed.

  Returns:
    [..., c], at least float32.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if a set
      that is not noisy is empty, or a row of `transition` off the simplex.

  >>> s, t = jnp.array([[True, False]] * 2), jnp.array([[.5, .5], [0., 1.]])
  >>> e = mixed_evidence(s, jnp.array([True, False]), t)
  >>> jnp.exp(e).tolist()
  [[0.5, 0.0], [1.0, 0.0]]
  """
  _, log_t = log_transition(transition)
  candidates, noisy = read_sets(candidates, noisy, log_t.shape[0])
  members = candidates.astype(log_t.dtype)
  # All digits: the weights are sums of logarithms, and LOG_ZERO is among them.
  through = jnp.matmul(members, log_t.T, precision=lax.Precision.HIGHEST)
  exact = jnp.where(candidates, 0, LOG_ZERO).astype(log_t.dtype)
  return jnp.where(noisy[..., None], through, exact)


def posterior(logits: ArrayLike, evidence: ArrayLike) -> Array:
  r"""The posterior of the labels (E-step): :math:`q_k \propto p_k e^{e_k}`.

  Args:
    logits: [..., c].
    evidence: e, [..., c], log weights; `LOG_ZERO` and below are impossible.

  Returns:
    [..., c], at least float32; softmax(logits) where nothing is possible. It
    has a gradient, by the logits and the evidence: stop it where the posterior
    is a target.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> posterior(jnp.zeros(2), jnp.log(jnp.array([3., 1.]))).round(2).tolist()
  [0.75, 0.25]

  Reference: see `noise_logits`.
  """
  weighed, _, _ = weigh(*read_evidence(logits, evidence))
  return logspace.probs(weighed)


def log_likelihood(logits: ArrayLike, evidence: ArrayLike) -> Array:
  r"""The log-likelihood of evidence: :math:`\log \sum_k p_k e^{e_k}`.

  Args:
    logits: [..., c].
    evidence: e, [..., c], log weights; `LOG_ZERO` and below are impossible.

  Returns:
    [...], at least float32; -inf without gradient where nothing is possible.
    Its gradient by the logits is `posterior` less softmax.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> e = jnp.array([[0., 0.], [0., LOG_ZERO]])
  >>> log_likelihood(jnp.zeros([2, 2]), e).tolist()
  [0.0, -0.6931471824645996]

  Reference: see `noise_logits`.
  """
  logits, evidence = read_evidence(logits, evidence)
  return _log_ratio(logits, evidence, jnp.zeros_like(evidence))


def noisy_posterior(
  logits: ArrayLike, labels: ArrayLike, transition: ArrayLike
) -> Array:
  """The posterior of the true label given a noisy one: :math:`p_k T_{k y}`.

  Up to its sum. The identity gives the label, a matrix of equal rows the
  prediction.

  Args:
    logits: [..., c].
    labels: y, [...] int.
    transition: T, [c, c], rows on the simplex; zeros are allowed.

  Returns:
    [..., c], see `posterior`; with gradient, also by the transition.

  Raises:
    TypeError, ValueError: as `posterior` and `noisy_evidence`.

  >>> t = jnp.array([[.75, .25], [.25, .75]])
  >>> noisy_posterior(jnp.zeros(2), jnp.array(1), t).round(2).tolist()
  [0.25, 0.75]

  Reference: see `noise_logits`.
  """
  _check_rows(logits, transition, 'labels', labels)
  return posterior(logits, noisy_evidence(labels, transition))


def noisy_log_likelihood(
  logits: ArrayLike, labels: ArrayLike, transition: ArrayLike
) -> Array:
  r"""The log-likelihood of a noisy label, normalized over all of them.

  .. math:: \log \frac{(p T)_y}{\sum_j (p T)_j}

  For a T with rows on the simplex the denominator is 1; the normalization lets
  the columns sum to one instead, as in the paper's code (`column_transition`).

  Args:
    logits: [..., c].
    labels: y, [...] int.
    transition: T, [c, c], rows or columns on the simplex; zeros are allowed.

  Returns:
    [...], at least float32; NaN for a label out of range inside jit.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if a label
      is out of range, or neither rows nor columns are on the simplex.

  >>> t = jnp.array([[.75, .25], [.25, .75]])
  >>> noisy_log_likelihood(jnp.array([0., 99.]), jnp.array(1), t).tolist()
  -0.28768208622932434

  Reference: see `noise_logits`.
  """
  _check_rows(logits, transition, 'labels', labels)
  transition, log_t = log_transition(transition, columns=True)
  check_auto(labels, 'labels')
  labels, valid = read_labels(labels, log_t.shape[0])
  total = safe_log(jnp.sum(transition, axis=1))
  evidence = _columns(log_t, labels, valid)
  logits, evidence = read_evidence(logits, evidence)
  value = _log_ratio(logits, evidence, jnp.broadcast_to(total, evidence.shape))
  return jnp.where(valid, value, jnp.nan)


def candidate_posterior(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""The posterior of the true label given a set: :math:`p_k 1[k \in S]`.

  Up to its sum. A single candidate is a precise label, all classes are no
  label.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.

  Returns:
    [..., c], at least float32; unlike `posterior` without gradient.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if a set
      is empty.

  >>> s = jnp.array([True, True, False])
  >>> candidate_posterior(jnp.zeros(3), s).tolist()
  [0.5, 0.5, 0.0]

  Reference: see `noise_logits`.
  """
  logits = read_logits(logits, masked=True)
  q = losses.proden_confidence(logits, candidates)
  some = jnp.any(candidates, axis=-1, keepdims=True)
  return jnp.where(some, q, stopped_probs(logits))


def candidate_log_likelihood(logits: ArrayLike, candidates: ArrayLike) -> Array:
  r"""The log-likelihood of candidates: :math:`\log \sum_{k \in S} p_k`.

  The negative of `losses.cc`.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.

  Returns:
    [...], at least float32, <= 0; exactly 0 for the set of all classes, and
    -inf without gradient for an empty one inside jit.

  Raises:
    TypeError, ValueError: if an array is malformed; outside jit also if a set
      is empty.

  >>> s = jnp.array([True, True, False, False])
  >>> jnp.exp(candidate_log_likelihood(jnp.zeros(4), s)).tolist()
  0.5

  Reference: see `noise_logits`.
  """
  value = -losses.cc(read_logits(logits, masked=True), candidates)
  return jnp.where(jnp.any(candidates, axis=-1), value, -jnp.inf)


def mixed_posterior(
  logits: ArrayLike,
  candidates: ArrayLike,
  noisy: ArrayLike,
  transition: ArrayLike,
) -> Array:
  """The posteriors of a batch in which each row has its own kind of label.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.
    noisy: [...] bool, where the set is read through the transition.
    transition: T, [c, c], rows on the simplex; zeros are allowed.

  Returns:
    [..., c], each row what `noisy_posterior` or `candidate_posterior` says of
    it; all have a gradient, as `posterior` has.

  Raises:
    TypeError, ValueError: as `posterior` and `mixed_evidence`.

  >>> s, t = jnp.array([[True, False]] * 2), jnp.array([[.8, .2], [.2, .8]])
  >>> q = mixed_posterior(jnp.zeros([2, 2]), s, jnp.array([True, False]), t)
  >>> q.round(1).tolist()
  [[0.800000011920929, 0.20000000298023224], [1.0, 0.0]]

  Reference: see `noise_logits`.
  """
  _check_rows(logits, transition, 'noisy', noisy)
  return posterior(logits, mixed_evidence(candidates, noisy, transition))


def mixed_log_likelihood(
  logits: ArrayLike,
  candidates: ArrayLike,
  noisy: ArrayLike,
  transition: ArrayLike,
) -> Array:
  """The log-likelihoods of a batch whose rows have labels of several kinds.

  Args:
    logits: [..., c].
    candidates: S, [..., c] bool.
    noisy: [...] bool, where the set is read through the transition.
    transition: T, [c, c], rows on the simplex; zeros are allowed.

  Returns:
    [...], see `log_likelihood`.

  Raises:
    TypeError, ValueError: as `log_likelihood` and `mixed_evidence`.

  >>> s, t = jnp.array([[True, False]] * 2), jnp.array([[.8, .2], [.2, .8]])
  >>> noisy = jnp.array([True, False])
  >>> value = mixed_log_likelihood(jnp.array([[99., 0.]] * 2), s, noisy, t)
  >>> jnp.exp(value).round(1).tolist()
  [0.800000011920929, 1.0]

  Reference: see `noise_logits`.
  """
  _check_rows(logits, transition, 'noisy', noisy)
  return log_likelihood(logits, mixed_evidence(candidates, noisy, transition))


def _log_ratio(logits: Array, above: Array, below: Array) -> Array:
  """log sum_k exp(z + above)_k / sum_k exp(z + below)_k, [...]."""
  weighed, shift, feasible = weigh(logits, above)
  weighed_below, shift_below, _ = weigh(logits, below)
  rest, log_sum = logspace.shift_and_log_sum(weighed)
  rest_below, log_sum_below = logspace.shift_and_log_sum(weighed_below)
  value = (
    (shift - shift_below) + (rest - rest_below) + (log_sum - log_sum_below)
  )
  same = jnp.all(above == below, axis=-1, keepdims=True)
  value = jnp.where(same, 0, value)  # also its gradient
  return jnp.where(feasible, value, -jnp.inf)[..., 0]


def _columns(log_t: Array, labels: Array, valid: Array) -> Array:
  """Columns y of the matrix, [..., c]; 0 where the label is not valid."""
  return jnp.where(valid[..., None], log_t.T[labels], 0)


def _check_rows(
  logits: ArrayLike, transition: ArrayLike, name: str, rows: ArrayLike
) -> None:
  """Whether arrays belong together, before evidence is made of them."""
  shape, found = np.shape(logits), np.shape(rows)
  check(
    found == shape[:-1],
    f'{name} must have shape {shape[:-1]} for logits {shape}, got {found}',
  )
  found = np.shape(transition)
  check(
    found == shape[-1:] * 2,
    f'transition must be [c, c] for logits {shape}, got shape {found}',
  )
