"""Transition matrices: P(noisy = j | clean = i), pure functions of a rate."""

from collections.abc import Sequence
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Key, Scalar, check, is_concrete
from jnl.noise._inputs import check_classes, check_rate

# fmt: off
CIFAR100_COARSE = np.array([
  4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
  6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
  5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
  10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
  16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
])
# fmt: on
CIFAR100_COARSE.flags.writeable = False
"""The superclass of each fine class of CIFAR-100, both in alphabetical order,
as in the published files and in torchvision; 20 superclasses of 5."""


def symmetric(num_classes: int, rate: Scalar) -> Array:
  r"""The transition of symmetric noise that excludes the true class.

  .. math:: T = (1 - r) I + \frac{r}{c - 1} (1 - I)

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1], the share of wrong labels.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.

  Some papers (ELR, DivideMix, SOP) draw the new label from all classes, the
  true one included: their rate r is that of `symmetric_inclusive`, and
  r (c - 1) / c here.

  >>> symmetric(3, 0.5).tolist()
  [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
  """
  check_classes(num_classes)
  check_rate('rate', rate)
  eye = jnp.eye(num_classes)
  return (1 - rate) * eye + rate / (num_classes - 1) * (1 - eye)


def symmetric_inclusive(num_classes: int, rate: Scalar) -> Array:
  r"""The transition of symmetric noise from all classes, the true one included.

  .. math:: T = (1 - r) I + \frac{r}{c} 1

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1]; the share of wrong labels is r (c - 1) / c, so "40%" of
      10 classes are 36%.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.

  >>> symmetric_inclusive(2, 0.5).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """
  check_classes(num_classes)
  check_rate('rate', rate)
  return (1 - rate) * jnp.eye(num_classes) + rate / num_classes


def class_imbalanced(num_classes: int, rate: Scalar) -> Array:
  r"""The transition of symmetric noise whose rate grows from class to class.

  .. math:: r_k = r - s + 2 s\, \frac{k}{c - 1}, \qquad s = \min(r, 1 - r)

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1], the mean of the rates.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.

  >>> class_imbalanced(3, 0.25).diagonal().tolist()
  [1.0, 0.75, 0.5]
  """
  check_classes(num_classes)
  check_rate('rate', rate)
  spread = jnp.minimum(rate, 1 - rate)
  rates = jnp.linspace(rate - spread, rate + spread, num_classes)[:, None]
  eye = jnp.eye(num_classes)
  return (1 - rates) * eye + rates / (num_classes - 1) * (1 - eye)


def pair_flip(num_classes: int, rate: Scalar) -> Array:
  """The transition of class i to class (i + 1) mod c.

  Args:
    num_classes: c >= 2.
    rate: r in [0, 1], the share of wrong labels. From .5 on the clean class is
      no longer the likeliest, so that nothing in the noisy labels tells which
      of the two is meant: warns, except for 1, the replacement of
      `fixed_count`.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `num_classes` or `rate` is out of range.

  Reference: Han et al., "Co-teaching: Robust Training of Deep Neural Networks
  with Extremely Noisy Labels", NeurIPS 2018, arXiv 1804.06872.
  """
  check_classes(num_classes)
  check_rate('rate', rate)
  if is_concrete(rate) and 0.5 <= rate < 1:
    warnings.warn(
      f'pair_flip with rate {rate} >= .5: the clean class is no longer the '
      'likeliest, and cannot be identified from the noisy labels',
      stacklevel=2,
    )
  return class_map((np.arange(num_classes) + 1) % num_classes, rate)


def class_map(targets: ArrayLike | Sequence[int], rate: Scalar) -> Array:
  r"""The transition of asymmetric noise: each class turns into one other.

  .. math:: T_{ij} = (1 - r)\, 1[i = j] + r\, 1[j = t_i]

  Args:
    targets: t, [c] int in [0, c), what each class turns into; classes that
      stay as they are map to themselves.
    rate: r in [0, 1], for every class that is not mapped to itself.

  Returns:
    [c, c], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    TypeError: if `targets` are not integers.
    ValueError: if `targets` or `rate` is out of range.

  >>> class_map([1, 1], 0.25).tolist()
  [[0.75, 0.25], [0.0, 1.0]]
  """
  targets = jnp.asarray(targets)
  check(targets.ndim == 1, f'targets must be [c], got shape {targets.shape}')
  check(
    jnp.issubdtype(targets.dtype, jnp.integer),
    f'targets must be integers, got {targets.dtype}',
    TypeError,
  )
  c = len(targets)
  check(c >= 2, f'targets must be of at least 2 classes, got {c}')
  if is_concrete(targets):
    ok = jnp.all((targets >= 0) & (targets < c))
    check(ok, f'targets must lie in [0, {c}), got {targets}')
  check_rate('rate', rate)
  eye = jnp.eye(c)
  return (1 - rate) * eye + rate * eye[targets]


def mnist_asymmetric(rate: Scalar) -> Array:
  """The transition of similar digits: 7 to 1, 2 to 7, 3 to 8, 5 and 6 swapped.

  Args:
    rate: r in [0, 1], for each of these five; about r / 2 of all labels.

  Returns:
    [10, 10], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `rate` is out of range.

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  return class_map([0, 1, 7, 8, 4, 6, 5, 1, 8, 9], rate)


def cifar10_asymmetric(rate: Scalar) -> Array:
  """The transition of similar CIFAR-10 objects; half of the classes stay clean.

  Truck (9) to automobile (1), bird (2) to airplane (0), deer (4) to horse (7),
  cat (3) and dog (5) swapped.

  Args:
    rate: r in [0, 1], for each of these five; r / 2 of all labels.

  Returns:
    [10, 10], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `rate` is out of range.

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  return class_map([0, 1, 0, 5, 7, 3, 6, 7, 8, 1], rate)


def _next_in_group(groups: np.ndarray) -> np.ndarray:
  """[c] -> the next class of the same group, the first after the last."""
  targets = np.empty_like(groups)
  for group in np.unique(groups):
    members = np.flatnonzero(groups == group)
    targets[members] = np.roll(members, -1)
  return targets


def cifar100_index_blocks(rate: Scalar) -> Array:
  """The transition to the next class within 5i, ..., 5i + 4, of CIFAR-100.

  The usual noise, cyclic.

  Args:
    rate: r in [0, 1], the share of wrong labels.

  Returns:
    [100, 100], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `rate` is out of range.

  Papers (Patrini, ELR, APL, LRT) say "within the superclass". Their code takes
  consecutive indices, and fine labels are in alphabetical order: the blocks
  are unrelated classes such as apple, aquarium fish, baby, bear, beaver. For
  the superclasses see `cifar100_superclasses`.
  """
  return class_map(_next_in_group(np.arange(100) // 5), rate)


def cifar100_superclasses(rate: Scalar) -> Array:
  """The transition to the next class within the superclass, of CIFAR-100.

  Alphabetical, cyclic.

  Args:
    rate: r in [0, 1], the share of wrong labels.

  Returns:
    [100, 100], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `rate` is out of range.

  Reference: Englesson, Azizpour, "Generalized Jensen-Shannon Divergence Loss
  for Learning with Noisy Labels", NeurIPS 2021, arXiv 2105.04522, which draws a
  fixed count (`fixed_count`).
  """
  return class_map(_next_in_group(CIFAR100_COARSE), rate)


def cifar100_pair_swaps(key: Key, rate: Scalar) -> Array:
  """The transition that swaps two random classes of each block 5i, ..., 5i + 4.

  Args:
    key: PRNG key; decides the pairs.
    rate: r in [0, 1], for the 40 classes in pairs; .4 r of all labels.

  Returns:
    [100, 100], `T[i, j] = P(noisy = j | clean = i)`.

  Raises:
    ValueError: if `rate` is out of range.

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922; Chen, Shah, Wang, Tao, Wang, Li,
  Xie, Sugiyama, Singh, Raj, "Imprecise Label Learning: A Unified Framework for
  Learning with Various Imprecise Label Configurations", NeurIPS 2024, arXiv
  2305.12715: their code. The index blocks are not superclasses (see
  `cifar100_index_blocks`).
  """
  order = jax.vmap(lambda k: jax.random.permutation(k, 5))(
    jax.random.split(key, 20)
  )
  pairs = order[:, :2] + 5 * jnp.arange(20)[:, None]
  targets = jnp.arange(100).at[pairs].set(pairs[:, ::-1])
  return class_map(targets, rate)
