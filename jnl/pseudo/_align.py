"""Alignment of guesses: their mean is moved to what classes ought to have."""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

from jnl.base import Array, Scalar, check, check_name
from jnl.em import align
from jnl.inputs import check_range
from jnl.logspace import safe_log
from jnl.pseudo._rule import Rule, Seen, follow, mean_rows, read, some

TARGETS = ('uniform', 'model')


class Means(NamedTuple):
  """The memory of `ema_alignment`.

  Attributes:
    unlabeled: [c], the average prediction for unlabeled rows.
    labeled: [c], that for labeled rows, of the target 'model'; 1 / c else.
    started: [] bool, whether there has been an unlabeled row.
  """

  unlabeled: Array
  labeled: Array
  started: Array


def ema_alignment(
  num_classes: int,
  *,
  target: str = 'uniform',
  momentum: Scalar = 0.999,
  offset: Scalar = 1e-6,
) -> Rule:
  r"""Guesses over a moving average of them, times the target, normalized.

  .. math:: r_{ik} \propto p_{ik} \frac{t_k + \epsilon}{\hat p_k + \epsilon}

  The average starts at the first batch's mean over unlabeled rows; every batch
  is in it before its own rows are aligned.

  Args:
    num_classes: c >= 2.
    target: t: 'uniform', or 'model', a moving average of the predictions for
      labeled rows, which starts at 1 / c (AdaMatch).
    momentum: of the averages, in [0, 1].
    offset: epsilon >= 0.

  Returns:
    A rule that gives probabilities [b, c] and remembers `Means`. Labeled rows
    keep theirs; a batch without rows of a kind leaves its average as it is.

  Raises:
    ValueError: if an argument is out of range.

  >>> rule = ema_alignment(num_classes=2)
  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.array([1, 0]), jnp.array([0, 1]), jnp.arange(2),
  ...   jnp.array(0))
  >>> rule.apply(rule.init(), seen)[1].round(3).tolist()
  [[0.5, 0.5], [0.6000000238418579, 0.4000000059604645]]

  Reference: Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang, Raffel,
  "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and
  Augmentation Anchoring", ICLR 2020, arXiv 1911.09785.
  """
  _check(num_classes, target, offset)
  check_range('momentum', momentum, 0, 1)

  def init() -> Means:
    # Two arrays, not one twice: a step may donate its state.
    share = jnp.float32(1 / num_classes)
    unlabeled, labeled = (jnp.full(num_classes, share) for _ in range(2))
    return Means(unlabeled, labeled, jnp.bool_(False))

  def apply(memory: Means, seen: Seen) -> tuple[Means, Array]:
    given, seen = seen.probs, read(seen, num_classes)
    here, known = some(seen.unlabeled), memory.labeled
    if target == 'model':
      mean = mean_rows(seen.probs, seen.labeled)
      known = follow(known, mean, momentum, some(seen.labeled))
    kept = jnp.where(memory.started, momentum, 0)
    mean = mean_rows(seen.probs, seen.unlabeled)
    average = follow(memory.unlabeled, mean, kept, here)
    aligned = _aligned(given, seen, average, known, offset)
    return Means(average, known, memory.started | here), aligned

  return Rule(init, apply)


class Queues(NamedTuple):
  """The memory of `queue_alignment`.

  Attributes:
    unlabeled: [length, c], mean predictions for the unlabeled rows of the last
      batches, the newest first, 0 where there has not been one.
    labeled: [length, c], the same for labeled rows, of the target 'model';
      1 / c else.
  """

  unlabeled: Array
  labeled: Array


def queue_alignment(
  num_classes: int,
  *,
  length: int = 32,
  target: str = 'uniform',
  offset: Scalar = 0.0,
) -> Rule:
  r"""Guesses over the mean of the last batches, times the target, normalized.

  .. math:: r_{ik} \propto p_{ik} \frac{t_k + \epsilon}{\hat p_k + \epsilon}

  with p-hat the mean over all slots of a queue, the newest batch in it. Slots
  that are still empty hold 0, which changes the scale of p-hat alone: with an
  offset that counts, without one it cancels.

  Args:
    num_classes: c >= 2.
    length: batches that are remembered, at least 1.
    target: t: 'uniform', or 'model', from a queue of the predictions for
      labeled rows; as long as there have been none, uniform.
    offset: epsilon >= 0; 0 in ShrinkMatch, 1e-6 in the queue of USB.

  Returns:
    A rule that gives probabilities [b, c] and remembers `Queues`. Labeled rows
    keep theirs; a batch without rows of a kind leaves its queue as it is.

  Raises:
    ValueError: if an argument is out of range.

  >>> rule = queue_alignment(num_classes=2)
  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.array([1, 0]), jnp.array([0, 1]), jnp.arange(2),
  ...   jnp.array(0))
  >>> rule.apply(rule.init(), seen)[1].round(3).tolist()
  [[0.5, 0.5], [0.6000000238418579, 0.4000000059604645]]

  Reference: see `shrunk_cross_entropy`.
  """
  _check(num_classes, target, offset)
  check(length >= 1, f'length must be at least 1, got {length}')

  def init() -> Queues:
    shape, flat = (length, num_classes), 1 / num_classes
    known = jnp.full(shape, 0 if target == 'model' else flat, jnp.float32)
    return Queues(jnp.zeros(shape, jnp.float32), known)

  def apply(memory: Queues, seen: Seen) -> tuple[Queues, Array]:
    given, seen = seen.probs, read(seen, num_classes)
    known = memory.labeled
    if target == 'model':
      known = _push(known, seen.probs, seen.labeled)
    queue = _push(memory.unlabeled, seen.probs, seen.unlabeled)
    average, goal = jnp.mean(queue, axis=0), jnp.mean(known, axis=0)
    goal = jnp.where(jnp.any(goal > 0), goal, 1 / num_classes)
    return Queues(queue, known), _aligned(given, seen, average, goal, offset)

  return Rule(init, apply)


def _push(queue: Array, probs: Array, weights: Array) -> Array:
  """The queue with the mean of a batch as its newest, if it has any rows."""
  mean = mean_rows(probs, weights).astype(queue.dtype)
  pushed = jnp.roll(queue, 1, axis=0).at[0].set(mean)
  return jnp.where(some(weights), pushed, queue)


def _aligned(
  given: Array, seen: Seen, average: Array, target: Array, offset: Scalar
) -> Array:
  """Probabilities [b, c], aligned in rows without a label.

  Others stay as they are, those too that are not finite: so the next rule sees
  that they are to be left out.
  """
  log_p = safe_log(seen.probs)
  aligned = align(log_p, average, target=target, offset=offset)
  given = lax.stop_gradient(jnp.asarray(given)).astype(aligned.dtype)
  return jnp.where((seen.unlabeled > 0)[:, None], aligned, given)


def _check(num_classes: int, target: str, offset: Scalar) -> None:
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check_name('target', target, TARGETS)
  check_range('offset', offset, 0)
