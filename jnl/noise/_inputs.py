"""Arguments of the generators: checked on the host, left alone inside jit."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Scalar, check, is_concrete


def check_classes(num_classes: int) -> None:
  """At least two classes."""
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')


def check_rate(name: str, rate: Scalar) -> None:
  """A number in [0, 1]: an array would broadcast over the wrong axis."""
  check(jnp.ndim(rate) == 0, f'{name} must be a scalar, got {jnp.shape(rate)}')
  check((rate >= 0) & (rate <= 1), f'{name} must lie in [0, 1], got {rate}')


def check_length(name: str, array: Any, n: int) -> None:
  """One row for each of the n labels."""
  check(
    jnp.ndim(array) >= 1 and len(array) == n,
    f'{name} has shape {jnp.shape(array)}; it must have a row for each of the '
    f'{n} labels',
  )


def read_labels(name: str, labels: Any, num_classes: int) -> Array:
  """Labels as int32, in [0, c)."""
  labels = jnp.asarray(labels)
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'{name} must be integers, got {labels.dtype}',
    TypeError,
  )
  if is_concrete(labels):
    check(
      jnp.all((labels >= 0) & (labels < num_classes)),
      f'{name} must lie in [0, {num_classes})',
    )
  return labels.astype(jnp.int32)


def read_vector(name: str, labels: Any, num_classes: int) -> Array:
  """`read_labels` of one axis, [n]."""
  labels = read_labels(name, labels, num_classes)
  check(labels.ndim == 1, f'{name} must be [n], got shape {labels.shape}')
  return labels


def read_probs(name: str, probs: Any) -> Array:
  """Rows of probabilities [..., c], at least float32."""
  probs = jnp.asarray(probs)
  check(
    probs.ndim == 2 and probs.shape[1] >= 2,
    f'{name} must be rows of at least 2 probabilities, got shape {probs.shape}',
  )
  probs = probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
  if is_concrete(probs):
    rows = np.asarray(probs)
    sums = rows.sum(1)
    # Written so that NaN fails.
    wrong = ~(np.all(rows >= 0, axis=1) & (np.abs(sums - 1) <= 1e-5))
    check(
      not wrong.any(),
      f'the rows of {name} must be probabilities; row {wrong.argmax()} is '
      f'{rows[wrong.argmax()]}'
      if wrong.any()
      else '',
    )
  return probs


def read_transition(name: str, transition: Any) -> Array:
  """A square matrix [c, c] of such rows, c >= 2."""
  shape = jnp.shape(transition)
  check(
    len(shape) == 2 and shape[0] == shape[1] >= 2,
    f'{name} must be [c, c] with c >= 2, got shape {shape}',
  )
  return read_probs(name, transition)
