"""What STORM looks at: how losses and confidences vary, alone and in groups.

Nothing here has a gradient: STORM's rescaler is trained through the weights
that it gives, not through the features that it is given.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from jnl.base import Array, check, gather

SIGMA_FLOOR = 1e-8
"""Standard deviation of a group of one, and the least that overlaps see."""
KL_CEILING = 1e15
"""Where divergences stop: the variance of more would not be finite."""


class Memory(NamedTuple):
  """The latest examples of each class, as STORM saw them.

  Attributes:
    rows: [c, m, 5]: mean and deviation of the loss, mean and deviation of the
      confidence, agreement; the latest last.
    filled: [c] int32, how many of the rows, from the last on, are there.
  """

  rows: Array
  filled: Array


def storm_memory(num_classes: int, size: int) -> Memory:
  """A memory of nothing yet.

  Args:
    num_classes: c.
    size: m, rows for each class: at least a whole batch. The paper: one batch,
      and a new memory in every epoch.

  Returns:
    The memory.

  Reference: see `rescaler`.
  """
  check(size >= 1, f'size must be at least 1, got {size}')
  return Memory(
    jnp.zeros([num_classes, size, 5], jnp.float32),
    jnp.zeros([num_classes], jnp.int32),
  )


def storm_features(
  losses: Array,
  logits: Array,
  labels: Array,
  memory: Memory,
  mask: Array | None = None,
) -> tuple[Array, Memory]:
  r"""The 19 features of each example, and the memory with the batch in it.

  An example has the mean and the deviation of its loss over the passes, and the
  same of its largest probability. It agrees with its label if most passes
  predict that (at a tie, if the first one does). Its group are the examples
  with its label and its agreement, in the memory that has the batch in it. With
  q one of the four numbers above,

  .. math:: q_i,\quad \operatorname{mean}_{j \in \text{group}} q_j,\quad
    \operatorname{std}_{j \in \text{group}} q_j

  are 12 features. Then come, as triples of the same kind, the divergence KL(N_i
  || N) and the overlap of the density of the example's loss, N_i = N(mean, std
  of i), and that of its group, N = N(mean of the means, mean of the stds); then
  the agreement. Deviations are unbiased (G - 1); of a group of one it is 1e-8,
  of a single pass 0. The divergence is 0 where a deviation is, and at most
  1e15; overlaps see deviations of at least 1e-8.

  Args:
    losses: [G, b], of G stochastic passes.
    logits: [G, b, c].
    labels: [b] int.
    memory: of what was there before; see `storm_memory`.
    mask: [b], 0 for examples that are not there. Nor is one whose numbers are
      not finite: its features are zeros.

  Returns:
    [b, 19], and the new memory, the same on all devices. In order: the triples
    of the mean loss, of its deviation, of the mean confidence, of its
    deviation, of the divergence, of the overlap; the agreement, 0 or 1.

  Raises:
    ValueError, TypeError: if a shape or dtype does not fit, or if there are
      more classes, or more examples in a batch, than the memory is made for.

  Reference: see `rescaler`. The agreement is that of the official code: of the
  label against all other classes together.
  """
  losses, logits = lax.stop_gradient((losses, logits))
  _check(losses, logits, labels, memory)
  mask = jnp.ones(labels.shape) if mask is None else mask
  rows = _rows(losses, logits, labels)
  there = (mask > 0) & jnp.all(jnp.isfinite(rows), axis=1)
  rows = jnp.where(there[:, None], rows, 0)
  dtype, memory = memory.rows.dtype, _remember(memory, rows, labels, there)
  features = jnp.where(there[:, None], _features(rows, labels, memory), 0)
  return features, Memory(memory.rows.astype(dtype), memory.filled)


def _check(losses: Array, logits: Array, labels: Array, memory: Memory) -> None:
  check(losses.ndim == 2, f'losses must be [G, b], got shape {losses.shape}')
  check(
    logits.ndim == 3 and logits.shape[:2] == losses.shape,
    f'logits must be [G, b, c] for losses {losses.shape}, got {logits.shape}',
  )
  check(
    labels.shape == losses.shape[1:],
    f'labels must be [b] = {losses.shape[1:]}, got {labels.shape}',
  )
  check(
    jnp.issubdtype(labels.dtype, jnp.integer),
    f'labels must be integer, got {labels.dtype}',
    TypeError,
  )
  classes, built_for = logits.shape[-1], memory.rows.shape[0]
  check(
    classes <= built_for,
    f'logits have {classes} classes; num_classes, of the rescaler and of the '
    f'memory, is {built_for}',
  )


def _rows(losses: Array, logits: Array, labels: Array) -> Array:
  """[b, 5]: four numbers of the example alone, and its agreement."""
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  hits = jnp.argmax(logits, axis=-1) == labels
  twice = 2 * jnp.sum(hits, axis=0)
  tie = twice == losses.shape[0]
  agree = jnp.where(tie, hits[0], twice > losses.shape[0])
  columns = [
    *_over_passes(losses),
    *_over_passes(confidence.astype(losses.dtype)),
    agree.astype(losses.dtype),
  ]
  return jnp.stack(columns, axis=1)


def _over_passes(values: Array) -> tuple[Array, Array]:
  """Mean and deviation over the first axis, which is exactly 0 of equals."""
  passes = values.shape[0]
  away = values - values[0]
  mean = jnp.mean(away, axis=0)
  if passes == 1:
    return values[0], jnp.zeros_like(mean)
  variance = jnp.sum((away - mean) ** 2, axis=0) / (passes - 1)
  return values[0] + mean, jnp.sqrt(variance)


def _remember(
  memory: Memory, rows: Array, labels: Array, there: Array
) -> Memory:
  """The last m rows of each class, the batch of all devices among them."""
  rows, labels = gather((rows, labels))
  there = gather(there.astype(rows.dtype)) > 0
  classes, size = memory.rows.shape[:2]
  b = labels.shape[0]
  check(
    b <= size,
    f'a batch of {b} does not fit a memory of {size} rows for each class',
  )
  old = jnp.arange(size) >= size - memory.filled[:, None]
  new = there & (labels == jnp.arange(classes)[:, None])
  known = jnp.concatenate([old, new], axis=1)
  order = jnp.argsort(known, axis=1, stable=True)[:, b:]
  every = jnp.concatenate(
    [
      memory.rows.astype(rows.dtype),
      jnp.broadcast_to(rows, (classes, *rows.shape)),
    ],
    axis=1,
  )
  kept = jnp.take_along_axis(every, order[..., None], axis=1)
  count = jnp.minimum(memory.filled + jnp.sum(new, axis=1), size)
  return Memory(kept, count.astype(memory.filled.dtype))


def _features(rows: Array, labels: Array, memory: Memory) -> Array:
  """[b, 19], of the rows [b, 5] of examples that are in the memory."""
  known, known_agree = memory.rows[..., :4], memory.rows[..., 4:] > 0
  own, agree = rows[:, :4], rows[:, 4:] > 0
  classes, size = known.shape[:2]
  there = jnp.arange(size) >= size - memory.filled[:, None]
  members = jnp.stack(
    [there & ~known_agree[..., 0], there & known_agree[..., 0]], axis=1
  )

  def of_group(*parts: Array) -> Array:
    both = jnp.concatenate(parts, axis=-1)[labels]
    return jnp.where(agree, both[:, 1], both[:, 0])

  mean, std = _mean_and_std(known, members)  # [c, 2, 4]
  centers = jnp.where(known_agree, mean[:, 1:], mean[:, :1])
  every = jnp.concatenate([known.reshape(-1, 4), own])
  distances = _distances(
    every, jnp.concatenate([centers.reshape(-1, 4), of_group(mean)])
  )
  known_pairs = distances[: classes * size].reshape(classes, size, 2)
  pair_mean, pair_std = _mean_and_std(known_pairs, members)
  own = jnp.concatenate([own, distances[classes * size :]], axis=1)
  triples = [own, of_group(mean, pair_mean), of_group(std, pair_std)]
  features = jnp.stack(triples, axis=-1).reshape(-1, 18)
  return jnp.concatenate([features, agree.astype(features.dtype)], axis=1)


def _mean_and_std(values: Array, members: Array) -> tuple[Array, Array]:
  """Over the members [c, 2, m] of groups; values [c, m, k] -> [c, 2, k]."""
  w = members.astype(values.dtype)
  count = jnp.sum(w, axis=-1, keepdims=True)
  divisor = jnp.maximum(count, 1)
  mean = jnp.einsum('cgm,cmk->cgk', w, values) / divisor
  away = (values[:, None] - mean[:, :, None]) ** 2
  square = jnp.sum(w[..., None] * away, axis=2)
  std = jnp.sqrt(square / jnp.maximum(count - 1, 1))
  return mean, jnp.where(count > 1, std, SIGMA_FLOOR)


def _distances(own: Array, group: Array) -> Array:
  """[..., 2]: divergence and overlap of the losses of two rows [..., 4]."""
  pair = own[..., 0], own[..., 1], group[..., 0], group[..., 1]
  return jnp.stack([_divergence(*pair), _overlap(*pair)], axis=-1)


def _divergence(mean: Array, std: Array, other: Array, spread: Array) -> Array:
  """KL(N(mean, std) || N(other, spread)); 0 where a deviation is."""
  defined = (std > 0) & (spread > 0)
  std, spread = (jnp.where(defined, s, 1) for s in (std, spread))
  ratio, away = std / spread, (mean - other) / spread
  # Squares of more would not be finite.
  away = jnp.clip(away, -(KL_CEILING**0.5) * 2, KL_CEILING**0.5 * 2)
  kl = jnp.log(spread) - jnp.log(std) + (ratio**2 + away**2) / 2 - 0.5
  return jnp.where(defined, jnp.minimum(kl, KL_CEILING), 0)


def _overlap(mean: Array, std: Array, other: Array, spread: Array) -> Array:
  r"""The integral of the lower of two normal densities.

  In units of the narrower one, centered on it, with r >= 1 the other deviation
  and d >= 0 the distance, the densities cross where (r^2 - 1) u^2 + 2 d u = d^2
  + 2 r^2 log r. Between the two roots the wider one is lower.
  """
  std, spread = (jnp.maximum(s, SIGMA_FLOOR) for s in (std, spread))
  narrow, wide = jnp.minimum(std, spread), jnp.maximum(std, spread)
  r, d = wide / narrow, jnp.abs(mean - other) / narrow
  a = (r - 1) * (r + 1)
  log_r = jnp.log(r)
  # A sum of two terms that are not negative: nothing cancels in either root.
  q = d + r * jnp.sqrt(d**2 + 2 * a * log_r)
  low = jnp.where(a > 0, -q / jnp.where(a > 0, a, 1), -jnp.inf)
  high = (d**2 + 2 * r**2 * log_r) / jnp.where(q > 0, q, 1)
  below, above, until, since = ndtr(
    jnp.stack([low, -high, (high - d) / r, (low - d) / r])
  )
  return jnp.where(q > 0, below + above + (until - since), 1)
