"""Rules that remember how sure the network is, of each class or of all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jnl.base import (
  Array,
  PyTree,
  Scalar,
  Table,
  check,
  global_mean,
  global_quantile,
  global_sum,
  pack_rows,
  read_rows,
  write_rows,
)
from jnl.inputs import check_range
from jnl.pseudo._rule import (
  Rule,
  Seen,
  follow,
  mean_rows,
  read,
  some,
  top,
  weights_of,
)
from jnl.pseudo._targets import hard


class Learned(NamedTuple):
  """The memory of `flexmatch`.

  Attributes:
    chosen: [n] int32, the class that an example was last sure of, -1 at first.
    counts: [c] int32, how many examples of each class there are among these.
    learned: [c] float32 in [0, 1], how far each class has been learned.
  """

  chosen: Table
  counts: Array
  learned: Array


def flexmatch(
  num_examples: int,
  num_classes: int,
  *,
  threshold: Scalar = 0.95,
  warmup: bool = True,
  num_unlabeled: int | None = None,
  shards: int = 1,
) -> Rule:
  r"""A threshold for each class, the lower the less of it has been learned.

  .. math::
    w_i = 1\left[ \max_k p_{ik} \ge \tau \frac{b}{2 - b} \right],\qquad
    b = \frac{s_{k}}{\max(\max_j s_j, n - \sum_j s_j)},\quad
    k = \arg\max_k p_{ik}

  where s counts the examples by the class that they were last sure of, with
  max p >= tau. The batch is weighed before it is counted. Counts are moved from
  class to class, and the examples are not looked through again. As long as
  nobody has been sure, b = 0 and all guesses count; where all are of one class,
  b stays.

  Args:
    num_examples: n; `seen.index` is in [0, n) and has no example twice.
    num_classes: c.
    threshold: tau in [0, 1].
    warmup: the examples that have not been sure count as a class, so that b is
      small at first; else b = s / max s from the beginning.
    num_unlabeled: n in the equation, where fewer of the examples have no label.
    shards: of the table: `data_shards(n, batch_size)` for `fit`.

  Returns:
    A rule that remembers `Learned`.

  Raises:
    ValueError: if a number is out of range.

  >>> rule = flexmatch(num_examples=3, num_classes=2)
  >>> probs = jnp.array([[0.97, 0.03], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(0))
  >>> memory, weights = rule.apply(rule.init(), seen)
  >>> weights.tolist(), memory.counts.tolist(), memory.learned.tolist()
  ([1.0, 1.0], [1, 0], [0.5, 0.0])

  Reference: Zhang, Wang, Hou, Wu, Wang, Okumura, Shinozaki, "FlexMatch:
  Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS
  2021, arXiv 2110.08263.
  """
  check_range('threshold', threshold, 0, 1)
  for name, size in (
    ('num_examples', num_examples),
    ('num_classes', num_classes),
  ):
    check(size >= 1, f'{name} must be at least 1, got {size}')
  n = num_examples if num_unlabeled is None else num_unlabeled
  check(
    1 <= n <= num_examples,
    f'num_unlabeled must lie between 1 and {num_examples}, got {n}',
  )

  def init() -> Learned:
    nobody = jnp.full(num_examples, -1, jnp.int32)
    counts = jnp.zeros(num_classes, jnp.int32)
    return Learned(pack_rows(nobody, shards), counts, jnp.zeros(num_classes))

  def apply(memory: Learned, seen: Seen) -> tuple[Learned, Array]:
    seen = read(seen, num_classes)
    sure, guess = top(seen)
    b = memory.learned[guess]
    there = seen.unlabeled > 0
    weights = weights_of(seen, sure >= threshold * (b / (2 - b)))
    moved = there & (sure >= threshold)
    old = read_rows(memory.chosen, seen.index)
    # Never below -1: what is written waits for what is read, or XLA would copy
    # the table.
    new = jnp.where(old < -1, old, guess.astype(jnp.int32))
    counted = lambda k: jnp.sum(
      jax.nn.one_hot(jnp.where(moved, k, -1), num_classes, dtype=int), axis=0
    )
    added = counted(new) - counted(old)
    counts = memory.counts + global_sum(added.astype(jnp.int32))
    chosen = write_rows(memory.chosen, seen.index, new, where=moved)
    most, none = jnp.max(counts), n - jnp.sum(counts)
    whole = jnp.maximum(most, none) if warmup else most
    known = (most > 0) & (jnp.maximum(most, none) < n)
    learned = counts / jnp.maximum(whole, 1).astype(jnp.float32)
    learned = jnp.where(known, learned, memory.learned)
    return Learned(chosen, counts, learned), weights

  return Rule(init, apply)


class Levels(NamedTuple):
  """The memory of `freematch`.

  Attributes:
    sure: [], the average of the largest probability.
    probs: [c], the average prediction.
    shares: [c], the average share of each class among the guesses.
  """

  sure: Array
  probs: Array
  shares: Array


def freematch(
  num_classes: int,
  *,
  momentum: Scalar = 0.999,
  quantile: Scalar | None = None,
  clip: Scalar | None = None,
) -> Rule:
  r"""A threshold for each class that follows how sure the network is.

  .. math::
    w_i = 1\left[ \max_k p_{ik} \ge \tau \frac{\tilde p_{k}}{\max_j \tilde p_j}
    \right],\qquad k = \arg\max_k p_{ik}

  with moving averages, this batch included: tau of the mean largest
  probability, p-tilde of the mean prediction. All start at 1 / c.

  Args:
    num_classes: c.
    momentum: of the averages, in [0, 1].
    quantile: tau follows this quantile in the place of the mean; .8 in the
      official code, where it does.
    clip: the most that tau may be; .95 in the official code, where there is
      one.

  Returns:
    A rule that remembers `Levels`.

  Raises:
    ValueError: if a number is out of range.

  >>> rule = freematch(num_classes=2, momentum=0.5)
  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(0))
  >>> memory, weights = rule.apply(rule.init(), seen)
  >>> f'{memory.sure:.3f}', weights.tolist()
  ('0.625', [1.0, 0.0])

  Reference: Wang, Chen, Heng, Hou, Fan, Wu, Wang, Savvides, Shinozaki, Raj,
  Schiele, Xie, "FreeMatch: Self-adaptive Thresholding for Semi-supervised
  Learning", ICLR 2023, arXiv 2205.07246.
  """
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  check_range('momentum', momentum, 0, 1)
  if quantile is not None:
    check_range('quantile', quantile, 0, 1)
  if clip is not None:
    check_range('clip', clip, 0, 1)

  def init() -> Levels:
    share = jnp.float32(1 / num_classes)
    # Two arrays, not one twice: a step may donate its state.
    return Levels(share, *(jnp.full(num_classes, share) for _ in range(2)))

  def apply(memory: Levels, seen: Seen) -> tuple[Levels, Array]:
    seen = read(seen, num_classes)
    sure, guess = top(seen)
    if quantile is None:
      level = global_mean(sure, seen.unlabeled)
    else:
      level = global_quantile(sure, seen.unlabeled > 0, quantile)
    both = seen.probs, hard(seen.probs)
    here = Levels(level, *(mean_rows(v, seen.unlabeled) for v in both))
    new = follow(memory, here, momentum, some(seen.unlabeled))
    if clip is not None:
      new = new._replace(sure=jnp.minimum(new.sure, clip))
    of_class = new.probs / jnp.max(new.probs)
    return new, weights_of(seen, sure >= new.sure * of_class[guess])

  return Rule(init, apply)


class Spread(NamedTuple):
  """The memory of `softmatch`.

  Attributes:
    mean: [], the average of the largest probability.
    variance: [], that of its variance in a batch.
    align: of the alignment; `()` without one.
  """

  mean: Array
  variance: Array
  align: PyTree


def softmatch(
  num_classes: int,
  *,
  n_sigma: Scalar = 2.0,
  momentum: Scalar = 0.999,
  align: Rule | None = None,
) -> Rule:
  r"""All guesses count: by a Gaussian below the mean confidence, fully above.

  .. math::
    w_i = \exp\left( -\frac{\min(q_i - \mu, 0)^2}{2 \sigma^2 / n^2} \right),
    \qquad q_i = \max_k r_{ik}

  with r the prediction, aligned, and moving averages of the mean and the
  unbiased variance of q in a batch, this one included. They start at 1 / c and
  1. One row alone has no variance, and leaves it as it is. What is aligned is
  weighed alone: guesses are of `seen.probs` as they are.

  Args:
    num_classes: c.
    n_sigma: n > 0, the larger the narrower.
    momentum: of the averages, in [0, 1].
    align: gives r, as `ema_alignment(num_classes)`; None for p itself.

  Returns:
    A rule that remembers `Spread`.

  Raises:
    ValueError: if a number is out of range.

  >>> rule = softmatch(num_classes=2, momentum=0.0)
  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4]])
  >>> seen = Seen(probs, jnp.ones(2), jnp.zeros(2), jnp.arange(2), jnp.array(0))
  >>> memory, weights = rule.apply(rule.init(), seen)
  >>> [f'{w:.3f}' for w in weights.tolist()]
  ['1.000', '0.368']

  Reference: Chen, Tao, Fan, Wang, Wang, Schiele, Xie, Raj, Savvides,
  "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised
  Learning", ICLR 2023, arXiv 2301.10921.
  """
  check(num_classes >= 1, f'num_classes must be at least 1, got {num_classes}')
  check_range('n_sigma', n_sigma, 0, open_low=True)
  check_range('momentum', momentum, 0, 1)

  def init() -> Spread:
    memory = align.init() if align else ()
    return Spread(jnp.float32(1 / num_classes), jnp.float32(1), memory)

  def apply(memory: Spread, seen: Seen) -> tuple[Spread, Array]:
    seen = read(seen, num_classes)
    aligned: PyTree = ()
    if align is not None:
      aligned, probs = align.apply(memory.align, seen)
      seen = seen._replace(probs=probs)
    sure, _ = top(seen)
    there = seen.unlabeled > 0
    mean = global_mean(sure, seen.unlabeled)
    rows = global_sum(jnp.sum(there))
    unbiased = rows / jnp.maximum(rows - 1, 1)
    spread = global_mean(jnp.square(sure - mean), seen.unlabeled) * unbiased
    new = Spread(
      follow(memory.mean, mean, momentum, rows > 0),
      follow(memory.variance, spread, momentum, rows > 1),
      aligned,
    )
    below = jnp.minimum(sure - new.mean, 0)
    least = jnp.finfo(sure.dtype).tiny
    narrow = jnp.maximum(2 * new.variance / n_sigma**2, least)
    weights = jnp.exp(-jnp.square(below) / narrow)
    return new, jnp.where(there, weights, 0)

  return Rule(init, apply)
