"""Labels that say what an example is not: matrices, and sets of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Key, Scalar, check, check_key, is_concrete
from jnl.inputs import as_array
from jnl.noise._inputs import by_rows, check_classes, check_rate, read_vector
from jnl.noise._matrices import symmetric


def complementary(num_classes: int, *, miss: Scalar = 0.0) -> Array:
  r"""The transition to a complementary label: any class that is not the true.

  .. math:: Q = m I + \frac{1 - m}{c - 1} (1 - I)

  The labels themselves are drawn by `corrupt(key, y, Q)`. It is the matrix of
  `symmetric(c, 1 - m)`.

  Args:
    num_classes: c >= 2.
    miss: m in [0, 1], how often a label wrongly names the true class; of people
      who were asked about CIFAR-10, .0393. At 1 / c labels say nothing.

  Returns:
    [c, c], `Q[k, l] = P(complementary = l | true = k)`.

  Raises:
    ValueError: if `num_classes` or `miss` is out of range.

  >>> complementary(3).tolist()
  [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]

  Reference: Ishida, Niu, Hu, Sugiyama, "Learning from Complementary Labels",
  NeurIPS 2017, arXiv 1705.07541; people's: Wang, Mai, Ye, Lin, Lin,
  "CLImage: Human-Annotated Datasets for Complementary-Label Learning", TMLR
  2025, arXiv 2305.08295.
  """
  check_classes(num_classes)
  check_rate('miss', miss)
  return symmetric(num_classes, 1 - miss)


def complementary_biased(
  key: Key,
  num_classes: int,
  *,
  shares: Sequence[float] = (0.75, 0.24, 0.01),
  miss: Scalar = 0.0,
) -> Array:
  """The transition to a complementary label that prefers some classes.

  For every class the others are cut at random into as many parts as there are
  shares, as even as can be; a part gets its share, spread evenly.

  Args:
    key: PRNG key; decides the parts.
    num_classes: c >= 2.
    shares: positive, they sum to one; at most c - 1. By default the strong bias
      of the paper, whose weak one is (.45, .3, .25).
    miss: in [0, 1], how often a label wrongly names the true class.

  Returns:
    [c, c], `Q[k, l] = P(complementary = l | true = k)`.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `key` is no key.

  >>> q = complementary_biased(jax.random.key(0), 4, shares=(.5, .25, .25))
  >>> [float(x) for x in jnp.sort(q[0])]
  [0.0, 0.25, 0.25, 0.5]

  Reference: Yu, Liu, Gong, Tao, "Learning with Biased Complementary Labels",
  ECCV 2018, arXiv 1711.09535; these shares: Gao, Zhang, "Discriminative
  Complementary-Label Learning with Weighted Loss", ICML 2021.
  """
  check_key(key)
  check_classes(num_classes)
  check_rate('miss', miss)
  parts = np.asarray(shares, np.float64)
  others = num_classes - 1
  check(
    parts.ndim == 1 and 1 <= len(parts) <= others,
    f'shares must be at most c - 1 = {others} numbers, got {shares}',
  )
  check(
    (parts > 0).all() and abs(parts.sum() - 1) < 1e-6,
    f'shares must be positive and sum to one, got {shares}',
  )
  part = np.arange(others) * len(parts) // others
  row = jnp.asarray((parts / np.bincount(part))[part], jnp.float32)

  def of_class(key: Key, k: Array) -> Array:
    mixed = jax.random.permutation(key, row)
    to = (k + 1 + jnp.arange(others)) % num_classes
    return jnp.zeros(num_classes, row.dtype).at[to].set(mixed)

  keys = jax.random.split(key, num_classes)
  q = jax.vmap(of_class)(keys, jnp.arange(num_classes))
  return (1 - miss) * q + miss * jnp.eye(num_classes)


def complementary_sets(
  key: Key, labels: ArrayLike, num_classes: int, size: ArrayLike
) -> Array:
  """Several complementary labels: distinct classes, none the true one.

  All sets of a size are equally likely. Row i has a key of its own, so that it
  is the same whatever comes after it.

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c).
    num_classes: c >= 2.
    size: of each set, in [1, c - 1]: an int, or [n] of them.

  Returns:
    [n, c] bool, true where a class is excluded.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if `labels` or `size` are not integers, or `key` is no key.

  >>> complementary_sets(jax.random.key(0), [1], 3, 2).tolist()
  [[True, False, True]]

  Reference: Feng, Kaneko, Han, Niu, An, Sugiyama, "Learning with Multiple
  Complementary Labels", ICML 2020, arXiv 1912.12927.
  """
  check_key(key)
  check_classes(num_classes)
  labels = read_vector('labels', labels, num_classes)
  size = _read_size(size, len(labels), num_classes)
  if not len(labels):
    return jnp.zeros([0, num_classes], bool)

  def row(i: Array) -> Array:
    scores = jax.random.uniform(jax.random.fold_in(key, i), (num_classes,))
    scores = jnp.where(jnp.arange(num_classes) == labels[i], 2, scores)
    return jnp.argsort(jnp.argsort(scores)) < size[i]

  return by_rows(row, len(labels), num_classes)


def _read_size(size: ArrayLike, n: int, num_classes: int) -> Array:
  """[n] ints in [1, c - 1]."""
  size = as_array('size', size)
  check(
    jnp.issubdtype(size.dtype, jnp.integer),
    f'size must be an integer, got {size.dtype}',
    TypeError,
  )
  check(
    size.shape in ((), (n,)),
    f'size must be a scalar or [n] = [{n}], got shape {size.shape}',
  )
  if is_concrete(size):
    found = np.asarray(size)
    check(
      ((found >= 1) & (found < num_classes)).all(),
      f'size must lie in [1, {num_classes - 1}], got {size}',
    )
  return jnp.broadcast_to(size, (n,))
