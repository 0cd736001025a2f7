"""What evidence, posteriors and terms share: checks, and log weights."""

from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import logspace
from jnl.base import LOG_ZERO, Array, check, is_concrete
from jnl.inputs import (
  read_candidates,
  read_floats,
  read_logits,
  read_transition,
)
from jnl.logspace import safe_log


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


def stopped_probs(logits: ArrayLike) -> Array:
  """softmax, at least float32, without gradient."""
  return lax.stop_gradient(logspace.probs(read_logits(logits)))


def read_evidence(
  logits: ArrayLike, evidence: ArrayLike
) -> tuple[Array, Array]:
  """Checks logits and evidence [..., c]; both in at least float32."""
  logits = read_logits(logits, masked=True)
  evidence = jnp.asarray(evidence)
  check_like('evidence', evidence, logits)
  return logits, evidence.astype(logits.dtype)


def check_like(name: str, array: ArrayLike, logits: Array) -> None:
  """Floating-point, and of the shape of the logits."""
  array = read_floats(name, array)
  check(
    array.shape == logits.shape,
    f'{name} must be {logits.shape}, as the logits, got shape {array.shape}',
  )


def read_square(name: str, matrix: ArrayLike) -> Array:
  """A square matrix in at least float32."""
  matrix = read_floats(name, matrix)
  check(
    matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2,
    f'{name} must be [c, c] with c >= 2, got shape {matrix.shape}',
  )
  return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))


def log_transition(
  transition: ArrayLike, *, columns: bool = False
) -> tuple[Array, Array]:
  """T by the law of `read_transition`, without negatives from rounding.

  Returns:
    T and its logarithm, `LOG_ZERO` for log 0.
  """
  transition = read_transition(transition, columns=columns)
  transition = jnp.where(transition < 0, 0, transition)
  return transition, safe_log(transition)


def read_sets(
  candidates: ArrayLike, noisy: ArrayLike, classes: int
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
