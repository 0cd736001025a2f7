"""Weaker than a label: candidate sets and bags."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import PAD, Array, Key, Scalar, check
from jnl.noise._inputs import check_classes, check_rate, read_vector


class Candidates(NamedTuple):
  """Partial labels.

  Attributes:
    candidates: [n, c] bool, S_i as its indicator.
    dropped: [n] bool, where the true class is not a candidate.
    probs: [c, c], P(j in S | clean = i); rows sum to the expected size of S.
  """

  candidates: Array
  dropped: Array
  probs: Array


def candidate_sets(
  key: Key, labels: Any, num_classes: int, q: Scalar
) -> Candidates:
  """Partial labels: the true class, and each other one with probability q.

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    q: in [0, 1], the partial ratio. Sets may be the true class alone, or all.

  Returns:
    `Candidates`, none dropped.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `labels` are not integers.

  Reference: Lv et al., "Progressive Identification of True Labels for
  Partial-Label Learning", ICML 2020, arXiv 2002.08053.
  """
  check_classes(num_classes)
  check_rate('q', q)
  labels = read_vector('labels', labels, num_classes)
  true = labels[:, None] == jnp.arange(num_classes)
  others = jax.random.uniform(key, true.shape) < q
  eye = jnp.eye(num_classes)
  probs = eye + q * (1 - eye)
  return Candidates(true | others, jnp.zeros(len(labels), bool), probs)


def noisy_candidate_sets(
  key: Key, labels: Any, num_classes: int, q: Scalar, eta: Scalar
) -> Candidates:
  r"""Partial labels that may miss the true class.

  A set of `candidate_sets` is corrupted with probability eta: the true class is
  dropped, and a random class that was no candidate is added. A set of all
  classes has none to add and stays as it is, true class included. So

  .. math:: P(i \in S) = 1 - \eta\, (1 - q^{c-1}),\qquad
    P(j \in S) = q + \eta\, \frac{1 - q^{c-1}}{c - 1}

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    q: in [0, 1], the partial ratio.
    eta: in [0, 1], the noise ratio.

  Returns:
    `Candidates`; `dropped` says which sets were corrupted. A set is never empty
    and keeps its size.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `labels` are not integers.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922: its code.
  """
  check_rate('eta', eta)
  key_sets, key_drop, key_add = jax.random.split(key, 3)
  sets, _, probs = candidate_sets(key_sets, labels, num_classes, q)
  n, c = sets.shape
  true = jnp.asarray(labels)[:, None] == jnp.arange(c)
  dropped = jax.random.uniform(key_drop, (n,)) < eta
  dropped &= ~jnp.all(sets, axis=1)
  scores = jnp.where(sets, -1, jax.random.uniform(key_add, (n, c)))
  added = jnp.argmax(scores, axis=1)[:, None] == jnp.arange(c)
  noisy = jnp.where(dropped[:, None], (sets & ~true) | added, sets)
  moved = eta * (1 - jnp.asarray(q) ** (c - 1))
  eye = jnp.eye(c)
  probs = probs + moved * ((1 - eye) / (c - 1) - eye)
  return Candidates(noisy, dropped, probs)


class Bags(NamedTuple):
  """Bags of examples, padded to the longest.

  Attributes:
    index: [k, m] int32, examples in [0, n); `PAD` where there is none.
    mask: [k, m] bool, where there is one.
  """

  index: Array  # type: ignore[assignment]  # hides tuple.index; as in batches
  mask: Array


def bags(key: Key, n: int, num_bags: int, *, mean: float, std: float) -> Bags:
  """Draws bags of examples, with replacement.

  Args:
    key: PRNG key.
    n: number of examples, >= 1.
    num_bags: k >= 1.
    mean: of the length of a bag before rounding; 10 in GLWS.
    std: >= 0, of the length; 1 in GLWS.

  Returns:
    `Bags` with m the longest length, max(2, int(N(mean, std^2))). On the host:
    m depends on the draw, so the key cannot be traced.

  Raises:
    ValueError: if an argument is out of range.

  GLWS goes on to reject bags until each combination of target classes has its
  share; that depends on the task and is not done here.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922: its code.
  """
  check(n >= 1, f'n must be at least 1, got {n}')
  check(num_bags >= 1, f'num_bags must be at least 1, got {num_bags}')
  check(np.isfinite(mean), f'mean must be finite, got {mean}')
  check(
    np.isfinite(std) and std >= 0, f'std must be finite and >= 0, got {std}'
  )
  key_lengths, key_index = jax.random.split(key)
  normal = np.asarray(jax.random.normal(key_lengths, (num_bags,)))
  lengths = np.maximum(2, np.trunc(mean + std * normal).astype(int))
  m = int(lengths.max())
  mask = jnp.asarray(np.arange(m) < lengths[:, None])
  index = jax.random.randint(key_index, (num_bags, m), 0, n, jnp.int32)
  return Bags(jnp.where(mask, index, PAD), mask)
