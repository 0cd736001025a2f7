"""Scores on held-out data, in padded batches of one shape."""

from collections.abc import Callable, Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Batch, Inputs, Outputs, State, check, global_mean

Predict = Callable[[State, Inputs], Outputs]
Score = Callable[[Predict, State, Batch], Array]
"""The mean [] over a held-out batch, by its `weight` [b], of what is scored."""


def accuracy(predict: Predict, state: State, batch: Batch) -> Array:
  """The share of examples whose likeliest class is their label.

  Args:
    predict: of a method.
    state: its state.
    batch: `x` [b, ...], `labels` [b] and `weight` [b].

  Returns:
    [] float32 in [0, 1].
  """
  logits = predict(state, batch['x']).logits
  return global_mean(
    (jnp.argmax(logits, -1) == batch['labels']).astype(jnp.float32),
    batch['weight'],
  )


def roc_auc(scores: Array, labels: Array) -> Array:
  """The area under the ROC curve: how often a positive scores above a negative.

  Ties count half.

  Args:
    scores: [n], of being positive.
    labels: [n] int, 1 for positives and 0.

  Returns:
    [] float32 in [0, 1]; one half where a class is absent.

  >>> float(roc_auc(jnp.array([.1, .4, .4, .8]), jnp.array([0, 0, 1, 1])))
  0.875
  """
  order = jnp.argsort(scores)
  ranked, positive = scores[order], (labels[order] == 1).astype(jnp.float32)
  # Counted up to 2^24 without rounding.
  negatives = jnp.concatenate([jnp.zeros(1), jnp.cumsum(1 - positive)])
  below = negatives[jnp.searchsorted(ranked, ranked, method='sort')]
  upto = negatives[jnp.searchsorted(ranked, ranked, 'right', method='sort')]
  pairs = jnp.sum(positive) * negatives[-1]
  wins = jnp.sum(positive * (below + upto) / 2)
  return jnp.where(pairs > 0, wins / jnp.where(pairs > 0, pairs, 1), 0.5)


def padded_batches(
  arrays: Mapping[str, np.ndarray], batch_size: int = 1024
) -> list[Mapping[str, np.ndarray]]:
  """Cuts arrays [n, ...] into batches of one size, the last one padded.

  Returns:
    Batches with `weight` [b]: 1, or 0 for padding.

  Raises:
    ValueError: if the lengths differ or are 0.
  """
  lengths = {name: len(values) for name, values in arrays.items()}
  n = min(lengths.values())
  check(
    n > 0 and n == max(lengths.values()),
    f'held-out arrays must have one length above 0, got {lengths}',
  )
  size = min(batch_size, n)
  total = size * math.ceil(n / size)

  def pad(values: np.ndarray) -> np.ndarray:
    padding = [(0, total - n)] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, padding)

  padded = {name: pad(np.asarray(v)) for name, v in arrays.items()}
  padded['weight'] = pad(np.ones(n, np.float32))
  return [
    {name: v[i : i + size] for name, v in padded.items()}
    for i in range(0, total, size)
  ]


def evaluate(
  predict: Predict,
  state: State,
  arrays: Mapping[str, np.ndarray],
  *,
  batch_size: int = 1024,
) -> float:
  """Accuracy on held-out `x` and `labels`.

  Args:
    predict: of a method.
    state: its state.
    arrays: `x` [n, ...] and `labels` [n].
    batch_size: examples in one pass.

  Returns:
    The accuracy in [0, 1].
  """
  score = jax.jit(lambda state, batch: accuracy(predict, state, batch))
  batches = padded_batches(arrays, batch_size)
  return float(average([score(state, b) for b in batches], batches))


def average(
  scores: list, batches: list[Mapping[str, np.ndarray]]
) -> np.ndarray:
  """The mean of per-batch means [...], weighted by what each batch holds."""
  counts = [np.sum(batch['weight']) for batch in batches]
  return np.average(jax.device_get(scores), axis=0, weights=counts)
