"""How many rows of each class are guessed, and other sets of guesses."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import (
  AXIS,
  Array,
  Key,
  Scalar,
  axis_is_bound,
  check,
  check_key,
  check_name,
  gather,
  global_sum,
  own_rows,
  whole,
)
from jnl.inputs import (
  as_array,
  check_int,
  check_range,
  check_simplex,
  read_floats,
  read_labels,
)

KINDS = 'all', 'agree', 'frequent'
GRID = 0.01
"""Between the thresholds that `balanced_copies` tries."""


def top_per_class(
  probs: ArrayLike, k: int, *, where: ArrayLike | None = None
) -> tuple[Array, Array]:
  """For each class the k rows that are most probably of it.

  A row may be among those of several classes, and what is found does not depend
  on the order of the rows, but for ties.

  Args:
    probs: [n, c].
    k: at least 1, fixed while tracing.
    where: [n] bool, the rows to choose from; by default all.

  Returns:
    Indices [c, k] int32, the most probable first, of equal ones that of lowest
    index; and which of them are valid, [c, k] bool: where there are fewer than
    k rows the last are not, and are 0. A row that is not finite is never
    chosen. Under shard_map they are of all devices, on every device.

  Raises:
    TypeError, ValueError: if an argument is malformed; outside jit also if a
      row to choose from is no probabilities, NaN among them.

  >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
  >>> index, valid = top_per_class(probs, 2)
  >>> index.tolist(), bool(valid.all())
  ([[0, 1], [2, 1]], True)

  Reference: Menghini, Delworth, Bach, "Enhancing CLIP with CLIP: Exploring
  Pseudolabeling for Limited-Label Prompt Tuning", NeurIPS 2023, arXiv
  2306.01669.
  """
  check_int('k', k)
  probs, ok = _read(probs, where)
  scores = gather(jnp.where(ok[:, None], probs, -jnp.inf)).T
  there = min(k, scores.shape[1])
  best, index = lax.top_k(scores, there)  # of equal ones the lowest index first
  pad = (0, 0), (0, k - there)
  valid = jnp.pad(best > -jnp.inf, pad)
  return jnp.where(valid, jnp.pad(index, pad), 0), valid


def growing_quota(round: int, n: int, num_classes: int, rounds: int) -> int:
  r"""How many rows of each class GRIP guesses in a round, until it has all.

  .. math::
    k_i = \max(1, \min(\lfloor (i + 1) \lfloor n / I \rfloor / c \rfloor,
      \lfloor n / c \rfloor))

  Official code has no 1: where n is below I c it guesses nobody in its first
  rounds, and has nothing to train on.

  Args:
    round: i, from 0. From I on, as official code has one, the quota is the
      largest.
    n: how many rows there are to guess.
    num_classes: c.
    rounds: I, 10 in the paper.

  Returns:
    k, an int of at least 1.

  Raises:
    ValueError: if a number is no int or out of range.

  >>> [growing_quota(i, 1000, 47, 10) for i in (0, 1, 9, 10)]
  [2, 4, 21, 21]

  Reference: see `top_per_class`.
  """
  check_int('round', round, 0)
  check_int('n', n)
  check_int('num_classes', num_classes)
  check_int('rounds', rounds)
  grown = (round + 1) * (n // rounds) // num_classes
  return max(1, int(min(grown, n // num_classes)))


def leaderboard(probs: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Pseudo-labels as FPL published them: one pass, each row on one board.

  A row goes to the board of its most probable class, if that has fewer than k,
  or if it is more probable there than the last: then the board is sorted and
  its last falls off, for good. Otherwise the next most probable class is tried.
  What is found depends on the order of the rows: `top_per_class` is what
  is meant, and this is for comparisons with published numbers.

  Args:
    probs: [n, c], concrete.
    k: at least 1, the places of a board.

  Returns:
    Row indices [m] and their labels [m], int64 arrays of numpy, board by board.

  Raises:
    TypeError, ValueError: if an argument is malformed, or a row is no
      probabilities, NaN among them.

  >>> index, labels = leaderboard([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], 1)
  >>> index.tolist(), labels.tolist()  # row 1 was there before row 2
  ([0, 2], [0, 1])

  Reference: see `top_per_class`.
  """
  check_int('k', k)
  probs = np.asarray(_read(probs)[0])
  boards: list[list[int]] = [[] for _ in range(probs.shape[1])]
  for row, classes in enumerate(np.argsort(-probs, axis=1, kind='stable')):
    for a in classes:
      board = boards[a]
      if len(board) < k:
        board.append(row)
        break
      if probs[row, a] > probs[board[-1], a]:
        board.append(row)
        board.sort(key=lambda i: -probs[i, a])
        board.pop()
        break
  sizes = [len(board) for board in boards]
  index = np.array([row for board in boards for row in board], np.int64)
  return index, np.repeat(np.arange(len(boards)), sizes)


def sub_labels(
  weak: ArrayLike,
  guessed: ArrayLike,
  num_classes: int,
  *,
  kind: str = 'all',
  keep: int | None = None,
) -> Array:
  r"""Sub-concepts: a weak label and what a teacher guesses, as one label.

  .. math:: s = w c + t

  Where both agree (w = t) it is a class; the others lie between two. Nothing is
  filtered. A network trained on them gets another head for the c classes.

  Args:
    weak: w, [n] int in [0, c).
    guessed: t, [n] int in [0, c), the argmax of the teacher.
    num_classes: c.
    kind: 'all', the c^2 pairs; 'agree' (SPL-B), 2 c labels: w where both agree,
      c + w where not; 'frequent' (SPL-D), the `keep` most frequent pairs.
    keep: how many pairs, of 'frequent' alone: its labels are 0 for the most
      frequent pair, 1 for the next (of equal ones that of the lower s), and -1
      for pairs that are not kept.

  Returns:
    [n] int32; inside jit -1 also where `weak` or `guessed` is out of range, and
    such rows are not counted.

  Raises:
    TypeError: if `weak` or `guessed` are not integers.
    ValueError: if a shape does not fit, if `kind` is unknown or `keep` not
      given with it, or outside jit if a label is out of range.

  >>> weak, guessed = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1])
  >>> sub_labels(weak, guessed, 2).tolist()
  [0, 1, 3, 3]
  >>> sub_labels(weak, guessed, 2, kind='frequent', keep=2).tolist()
  [1, -1, 0, 0]

  Reference: Li, Zhang, Wu, Xiong, Lee, Lu, Fu, Pfister, "Learning from
  Weakly-labeled Web Videos via Exploring Sub-Concepts", AAAI 2022, arXiv
  2101.03713.
  """
  check_name('kind', kind, KINDS)
  check_int('num_classes', num_classes)
  check(
    (kind == 'frequent') == (keep is not None),
    f"keep is needed by kind='frequent', and by no other; got {keep} of "
    f'{kind!r}',
  )
  c = num_classes
  w, weak_is = read_labels(weak, c, 'weak')
  t, guess_is = read_labels(guessed, c, 'guessed')
  check(w.ndim == 1, f'weak must be [n], got shape {w.shape}')
  check(
    t.shape == w.shape,
    f'guessed must be [n] like weak, {w.shape}, got shape {t.shape}',
  )
  valid, pair = weak_is & guess_is, (w * c + t).astype(jnp.int32)
  if kind == 'agree':
    pair = jnp.where(w == t, w, c + w).astype(jnp.int32)
  if keep is not None:
    check_int('keep', keep)
    pair, valid = whole(pair), whole(valid)
    counts = jnp.zeros(c * c, jnp.int32).at[pair].add(valid)
    order = jnp.argsort(-global_sum(counts), stable=True)
    rank = jnp.zeros_like(counts).at[order].set(jnp.arange(c * c, dtype='i4'))
    pair = rank[pair]
    valid &= pair < keep
  return jnp.where(valid, pair, -1)


def balanced_copies(
  key: Key, probs: ArrayLike, per_class: Scalar, *, least: float = 0.3
) -> Array:
  r"""How often each row is to be learned, so that guesses are of all classes.

  .. math::
    \tau_k = \max \{\tau : m_k(\tau) \ge m\},\qquad
    m_k(\tau) = \#\{i : \operatorname{argmax} p_i = k, p_{ik} \ge \tau\}

  with tau on a grid of .01 from `least` up, which it is where even that leaves
  fewer than m. A row counts if its probability reaches the threshold of its
  guess, k, and is learned m / m_k times: the whole part of that, and once more
  with the probability of the rest. So a class has m copies on average, unless
  it has none. Of too many rows at a threshold, a random part is left out, as
  official code has it; the paper speaks of the most confident.

  Args:
    key: of the draws, one for each row; the same on all devices.
    probs: [n, c].
    per_class: m, at least 1.
    least: the lowest threshold, in [0, 1], fixed while tracing.

  Returns:
    [n] int32 >= 0; 0 for rows that do not count, or that are not finite.

  Raises:
    TypeError, ValueError: if an argument is malformed; outside jit also if a
      row is no probabilities, NaN among them.

  >>> probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
  >>> balanced_copies(jax.random.key(0), probs, 2).tolist()
  [1, 1, 2]

  Reference: Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves
  ImageNet classification", CVPR 2020, arXiv 1911.04252.
  """
  check_key(key)
  check_range('per_class', per_class, 1)
  check_range('least', least, 0, 1)
  probs, ok = _read(probs)
  probs, ok = whole(probs), whole(ok)
  n, c = probs.shape
  steps = int((1 - least) / GRID + 1e-6) + 1
  grid = np.round(least + GRID * np.arange(steps), 6).astype(probs.dtype)
  sure, guess = jnp.max(probs, axis=1), jnp.argmax(probs, axis=1)
  # The thresholds that a row reaches are the first of the grid, so many:
  reached = jnp.where(ok, jnp.searchsorted(grid, sure, side='right'), 0)
  counts = jnp.zeros((c, steps + 1), jnp.int32)
  counts = counts.at[guess, reached].add(1)
  # [c, steps]: how many rows are found at each threshold
  found = lax.cumsum(global_sum(counts)[:, 1:], axis=1, reverse=True)
  level = jnp.sum(found >= per_class, axis=1).clip(1)
  found = jnp.take_along_axis(found, level[:, None] - 1, axis=1)[:, 0]
  ratio = (per_class / jnp.maximum(found, 1))[guess]
  rest = own_rows(jax.random.uniform(key, (_devices() * n,)), n)
  copies = jnp.floor(ratio) + (rest < ratio - jnp.floor(ratio))
  return jnp.where(reached >= level[guess], copies, 0).astype(jnp.int32)


def _devices() -> int:
  return lax.axis_size(AXIS) if axis_is_bound() else 1


def _read(
  probs: ArrayLike, where: ArrayLike | None = None
) -> tuple[Array, Array]:
  """[n, c], at least float32, and [n] bool: rows of `where` that are finite."""
  given = read_floats('probs', probs)
  check(
    given.ndim == 2 and given.shape[1] >= 1,
    f'probs must be [n, c], got shape {given.shape}',
  )
  rows = given.shape[:1]
  ok = jnp.ones(rows, bool) if where is None else as_array('where', where)
  check(ok.dtype == bool, f'where must be bool, got {ok.dtype}', TypeError)
  check(ok.shape == rows, f'where must be [n] = {rows}, got shape {ok.shape}')
  check_simplex('probs', given, where=ok)
  ok &= jnp.all(jnp.isfinite(given), axis=1)
  return given.astype(jnp.promote_types(given.dtype, jnp.float32)), ok
