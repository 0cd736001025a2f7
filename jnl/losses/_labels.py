"""The label of a loss: read once with the logits, and what the loss ends in.

A loss reads `logits` and `labels` once, writes its equation for "the value if
the label were k", and ends in `expect`. For integer labels these values are
gathered, [..., 1]; for soft ones they are [..., c], and `expect` averages them.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jnl.base import Array, check
from jnl.inputs import as_array, check_simplex, read_labels, read_logits
from jnl.logspace import bounded, log_prob_at, log_probs


class Label(NamedTuple):
  """Labels that passed the checks of `read`.

  Attributes:
    values: [..., 1] int in [0, c), or [..., c] soft in the dtype of the logits.
    valid: [...] bool, false where an integer label was out of range; None for
      soft labels.
  """

  values: Array
  valid: Array | None


def read(
  logits: Any,
  labels: Any,
  name: str = 'labels',
  *,
  where: Array | None = None,
) -> tuple[Array, Label]:
  """Logits in at least float32 and labels that are safe to gather, checked.

  Args:
    logits: [..., c] floating-point, c >= 2.
    labels: [...] int in [0, c), or [..., c] soft, on the simplex.
    name: what the errors call the labels.
    where: [...] bool, the rows whose labels have to be right; by default all.

  Returns:
    The logits in at least float32, and the label.

  Raises:
    TypeError: if `labels` [...] are not integers, `labels` [..., c] not
      floating point, or `logits` not floating-point.
    ValueError: if a shape does not match, or outside jit if an integer label is
      out of range or a soft one off the simplex. Inside jit the former makes
      the loss NaN with gradient zero, so that masked examples stay harmless;
      the latter is taken as it is.
  """
  logits = read_logits(logits)
  labels = as_array(name, labels)
  rows, classes = logits.shape[:-1], logits.shape[-1]
  integer = jnp.issubdtype(labels.dtype, jnp.integer)
  got = f'got shape {labels.shape} for logits {logits.shape}'
  check(
    not (integer and labels.shape == logits.shape and logits.ndim == 1),
    f'logits must be [..., c] for {name} [...], they lack the classes (or, if '
    f'{name} are one-hot, these must be floating); {got}',
  )
  hard = labels.shape == rows
  check(
    hard or labels.shape == logits.shape,
    f'{name} must be [...] int or [..., c] soft for logits [..., c]; {got}'
    + f'; use {name}[..., 0]' * (labels.shape == (*rows, 1)),
  )
  check(
    integer if hard else jnp.issubdtype(labels.dtype, jnp.floating),
    f'{name} of shape {labels.shape} for logits {logits.shape} must be '
    + ('integer' if hard else 'floating: one-hot ones are .astype(float)')
    + f', got {labels.dtype}',
    TypeError,
  )
  if not hard:
    check_simplex(name, labels, where=where)
    return bounded(logits), Label(labels.astype(logits.dtype), None)
  labels, valid = read_labels(labels, classes, name, where=where)
  return logits, Label(labels[..., None], valid)


def expect(values: Array, label: Label) -> Array:
  """Ends a loss: its value at the label, or the mean under a soft label.

  Args:
    values: [..., 1] or [..., c], the loss if the label were that class.
    label: from `read`.

  Returns:
    [...]; NaN without gradient where the label was out of range.
  """
  if label.valid is None:
    return jnp.sum(label.values * values, axis=-1)
  return settle(values[..., 0], label)


def settle(losses: Array, label: Label) -> Array:
  """NaN, without gradient, for losses [...] whose label was out of range."""
  if label.valid is None:
    return losses
  return jnp.where(label.valid, losses, jnp.nan)


def soft(label: Label, logits: Array) -> Array:
  """Labels as distributions [..., c]: where a formula has no gathered form."""
  if label.valid is None:
    return label.values
  return one_hot(label.values, logits)


def one_hot(index: Array, logits: Array) -> Array:
  """Index [..., 1] as a distribution; a comparison that XLA fuses."""
  classes = jnp.arange(logits.shape[-1], dtype=index.dtype)
  return (index == classes).astype(logits.dtype)


def log_prob(logits: Array, label: Label) -> Array:
  """Log-probabilities of the label: [..., 1], or [..., c] for soft labels."""
  if label.valid is None:
    return log_probs(logits)
  return log_prob_at(logits, label.values)
