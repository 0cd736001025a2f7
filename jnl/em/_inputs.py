"""What evidence, posteriors and terms share: checks, and log weights."""

from jax import lax
import jax.numpy as jnp

from jnl.base import LOG_ZERO, Array, check, check_auto, is_concrete
from jnl.inputs import read_transition
from jnl.losses import _inputs
from jnl.losses._inputs import read_logits
from jnl.losses.partial import read_candidates


def weigh(logits: Array, evidence: Array) -> tuple[Array, Array, Array]:
  """Logits with evidence, for a softmax that loses no digits.

  Returns:
    The sum less a shift, [..., c], -inf where a class is impossible; the shift,
    [..., 1], the largest logit of a possible class: near it the evidence is
    added, else large logits would round it away; whether any is, [..., 1]. If
    none is the evidence is left out.
  """
  possible = ~(evidence <= LOG_ZERO / 2)  # NaN stays NaN, to be seen
  feasible = jnp.any(possible, axis=-1, keepdims=True)
  kept = possible | ~feasible
  logits = jnp.where(kept, logits, -jnp.inf)
  shift = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  return (logits - shift) + jnp.where(possible, evidence, 0), shift, feasible


def stopped_probs(logits: Array) -> Array:
  """softmax, at least float32, without gradient."""
  return lax.stop_gradient(_inputs.probs(read_logits(logits)))


def read_evidence(logits: Array, evidence: Array) -> tuple[Array, Array]:
  """Checks logits and evidence [..., c]; both in at least float32."""
  logits = read_logits(logits, masked=True)
  evidence = jnp.asarray(evidence)
  check_like('evidence', evidence, logits)
  return logits, evidence.astype(logits.dtype)


def check_like(name: str, array: Array, logits: Array) -> None:
  """Floating-point, and of the shape of the logits."""
  array = jnp.asarray(array)
  check(
    jnp.issubdtype(array.dtype, jnp.floating),
    f'{name} must be floating-point, got {array.dtype}',
    TypeError,
  )
  check(
    array.shape == logits.shape,
    f'{name} must be {logits.shape}, as the logits, got shape {array.shape}',
  )


def read_square(name: str, matrix: Array) -> Array:
  """A square matrix in at least float32."""
  matrix = jnp.asarray(matrix)
  check(
    jnp.issubdtype(matrix.dtype, jnp.floating),
    f'{name} must be floating-point, got {matrix.dtype}',
    TypeError,
  )
  check(
    matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2,
    f'{name} must be [c, c] with c >= 2, got shape {matrix.shape}',
  )
  return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))


def log_transition(
  transition: Array, *, columns: bool = False
) -> tuple[Array, Array]:
  """T by the law of `read_transition`, without what rounding made negative.

  Returns:
    T and its logarithm, `LOG_ZERO` for log 0.
  """
  transition = read_transition(transition, columns=columns)
  transition = jnp.where(transition < 0, 0, transition)
  return transition, safe_log(transition)


def read_labels(labels: Array, classes: int) -> tuple[Array, Array]:
  """Labels that are safe to gather, and which of them are in range."""
  check_auto(labels, 'labels')
  labels = jnp.asarray(labels)
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels must be integers, got {labels.dtype}',
    TypeError,
  )
  labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
  valid = (labels >= 0) & (labels < classes)
  if is_concrete(valid):
    check(jnp.all(valid), f'labels must lie in [0, {classes})')
  return jnp.where(valid, labels, 0), valid


def read_sets(
  candidates: Array, noisy: Array, classes: int
) -> tuple[Array, Array]:
  """Candidates [..., c] and noisy [...], both bool."""
  noisy = jnp.asarray(noisy)
  check(
    noisy.dtype == bool, f'noisy must be bool, got {noisy.dtype}', TypeError
  )
  shape = (*noisy.shape, classes)
  _, candidates = read_candidates(
    jnp.zeros(shape), candidates, may_be_empty=True
  )
  if is_concrete(candidates, noisy):
    check(
      jnp.all(noisy | jnp.any(candidates, axis=-1)),
      'candidates must hold at least one class in every row that is not noisy',
    )
  return candidates, noisy


def safe_log(x: Array) -> Array:
  """log of x >= 0: LOG_ZERO without gradient at 0."""
  zero = x <= 0
  return jnp.where(zero, LOG_ZERO, jnp.log(jnp.where(zero, 1, x)))
