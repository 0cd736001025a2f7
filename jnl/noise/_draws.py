"""Draws of noisy labels from a matrix, and what a draw turned out to be."""

from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import (
  Array,
  Key,
  Scalar,
  check,
  check_auto,
  check_key,
  is_concrete,
)
from jnl.inputs import read_rows_of_probs, read_transition
from jnl.noise import _matrices as matrices
from jnl.noise._inputs import (
  by_rows,
  check_classes,
  check_length,
  check_rate,
  fits,
  read_labels,
  read_vector,
)

TICKETS = 2.0**30
"""How many are dealt out among the classes; twice as many fit int32."""


class NoisyLabels(NamedTuple):
  """Noisy labels, where they are wrong, and what they were drawn from.

  Attributes:
    labels: [...] int32, noisy.
    flipped: [...] bool, where they differ from the clean ones.
    probs: what they were drawn from: [c, c] P(noisy = j | clean = i), or [n, c]
      P(noisy = j | x_i, clean_i).
  """

  labels: Array
  flipped: Array
  probs: Array


def corrupt(key: Key, labels: ArrayLike, transition: ArrayLike) -> NoisyLabels:
  """Noisy labels, drawn for each clean one independently.

  Args:
    key: PRNG key.
    labels: [...] int, clean, in [0, c).
    transition: [c, c], see `jnl.inputs.read_transition`. It alone says what c
      is: labels of fewer classes become noisy ones of all c. Where that looks
      like a mistake (all classes up to one below c - 1 are there, no later one,
      though 20 c labels are) it warns, outside jit.

  Returns:
    `NoisyLabels` with labels [...] ~ transition[clean] and probs = transition.
    The memory beside them is that of c^2 numbers and of 2^24 at most (some 200
    MB), whatever the number of labels.

  Raises:
    ValueError: if `transition` is not square, has a negative entry or a row
      that does not sum to one, or if a label is out of range (outside jit).
    TypeError: if `labels` are not integers, or `key` is no key.

  >>> corrupt(jax.random.key(0), [0, 1, 1], 1 - jnp.eye(2)).labels.tolist()
  [1, 0, 0]
  """
  check_key(key)
  transition = read_transition(transition)
  labels = read_labels('labels', labels, len(transition))
  _look_at_classes(labels, len(transition))
  noisy = _draw(key, transition, labels)
  return NoisyLabels(noisy, noisy != labels, transition)


def _look_at_classes(labels: Array, c: int) -> None:
  """Warns if labels of fewer classes meet a matrix of c."""
  # So few by chance, were the classes equally frequent: less than once in 1e8.
  if labels.size < 20 * c or not is_concrete(labels):
    return
  present = np.bincount(np.asarray(labels).ravel(), minlength=c) > 0
  last = np.flatnonzero(present)[-1]
  if 1 <= last < c - 1 and present[: last + 1].all():
    warnings.warn(
      f'labels are of {last + 1} classes and transition of {c}: the noisy '
      f'labels will be of all {c}',
      stacklevel=3,
    )


def corrupt_each(key: Key, labels: ArrayLike, probs: ArrayLike) -> NoisyLabels:
  """Noisy labels, drawn for each example by probabilities of its own.

  Args:
    key: PRNG key.
    labels: [n] int, clean, in [0, c); they only decide what counts as flipped.
    probs: [n, c], rows summing to one as in `corrupt`.

  Returns:
    `NoisyLabels` with labels [n] ~ probs and these probs; memory as in
    `corrupt`.

  Raises:
    ValueError: if the rows of `probs` are not probabilities, or not one for
      each label, or if a label is out of range (outside jit).
    TypeError: if `labels` are not integers, or `key` is no key.
  """
  check_key(key)
  check_auto(probs, 'probs')
  probs = read_rows_of_probs(probs)
  labels = read_vector('labels', labels, probs.shape[1])
  check_length('probs', probs, len(labels))
  noisy = _draw(key, probs, jnp.arange(len(labels)))
  return NoisyLabels(noisy, noisy != labels, probs)


def _draw(key: Key, probs: Array, rows: Array) -> Array:
  """A draw from probs[i], [m, c], for each i of `rows` [...]; int32.

  Few are drawn by c Gumbels each. Many by one ticket each, of those that are
  dealt out among the classes: far quicker, and in whole numbers, whose sums are
  the same however they are added (on any number of devices).
  """
  n, c = rows.size, probs.shape[1]
  if fits(n, c):
    logits = jnp.log(jnp.maximum(probs, 0))
    return jax.random.categorical(key, logits[rows], axis=-1).astype(jnp.int32)

  def last_tickets(probs: Array) -> Array:
    dealt = jnp.round(TICKETS * jnp.maximum(probs, 0)).astype(jnp.int32)
    return jnp.cumsum(dealt, axis=-1, dtype=jnp.int32)

  shared = len(probs) < n
  table, flat = last_tickets(probs) if shared else probs, rows.ravel()

  def one(i: Array) -> Array:
    last = table[flat[i]] if shared else last_tickets(table[flat[i]])
    ticket = jax.random.randint(jax.random.fold_in(key, i), (), 0, last[-1])
    return jnp.sum(last <= ticket, dtype=jnp.int32)

  return by_rows(one, n, c).reshape(rows.shape)


def fixed_count(
  key: Key,
  labels: ArrayLike,
  replacement: ArrayLike,
  rate: Scalar,
  *,
  per_class: bool = False,
) -> NoisyLabels:
  r"""Noisy labels of which exactly a share is redrawn, of all or of each class.

  .. math:: k = \lfloor r n \rfloor,\qquad
    T = (1 - \tfrac kn) I + \tfrac kn R

  k random examples get a label from R; the others keep theirs.

  Args:
    key: PRNG key.
    labels: [...] int, clean, in [0, c).
    replacement: R, [c, c], the matrix of the noise at rate 1. With
      `symmetric_inclusive(c, 1)` a redrawn label may be the old one.
    rate: r in [0, 1], the share of redrawn labels; with `per_class` also [c],
      one for each class.
    per_class: k_i = floor(r n_i) examples of each class i are redrawn, instead
      of k of all.

  Returns:
    `NoisyLabels` with probs T [c, c], of the k / n (or k_i / n_i) that was
    really redrawn.

  Raises:
    ValueError: if `rate` is out of range, the rows of `replacement` are not
      probabilities, a label is out of range, or with `per_class` a class has no
      example (outside jit, where such a row of T is that of the identity).
    TypeError: if `labels` are not integers, or `key` is no key.

  k is the integer part, as int(r n) of DivideMix and APL; an r n that is an
  integer but for rounding counts as that integer (.29 of 100 are 29), so that
  traced rates give the same. ELR, SOP, GJS and GLWS round up. At CIFAR sizes
  and whole percents all agree. APL takes int(r n / c) of each class whatever
  its size, which differs where classes do, as in MNIST: that is the `rate`
  r n / (c n_i).

  >>> out = fixed_count(jax.random.key(0), [0] * 9, 1 - jnp.eye(2), 0.35)
  >>> int(out.flipped.sum())
  3
  """
  check_key(key)
  replacement = read_transition(replacement, name='replacement')
  c = len(replacement)
  labels = read_labels('labels', labels, c)
  if per_class and np.shape(rate) == (c,):
    rate = jnp.asarray(rate)
    ok = jnp.all((rate >= 0) & (rate <= 1))
    check(ok, f'rate must lie in [0, 1], got {rate}')
  else:
    check_rate('rate', rate)
  if per_class and is_concrete(labels):
    missing = np.setdiff1d(np.arange(c), np.asarray(labels))
    check(not missing.size, f'labels has no example of the classes {missing}')
  groups = labels if per_class else jnp.zeros_like(labels)
  return _redraw(key, labels, replacement, rate, groups, c if per_class else 1)


def _redraw(
  key: Key,
  labels: Array,
  replacement: Array,
  rate: Scalar,
  groups: Array,
  num_groups: int,
) -> NoisyLabels:
  """Redraws floor(rate n_g) labels of each group; see `fixed_count`."""
  key_choice, key_labels = jax.random.split(key)
  chosen, share = _choose(key_choice, groups.ravel(), rate, num_groups)
  drawn = corrupt(key_labels, labels, replacement).labels
  noisy = jnp.where(chosen.reshape(labels.shape), drawn, labels)
  share = share[:, None]
  probs = (1 - share) * jnp.eye(len(replacement)) + share * replacement
  return NoisyLabels(noisy, noisy != labels, probs)


def _choose(
  key: Key, groups: Array, rate: Scalar, num_groups: int
) -> tuple[Array, Array]:
  """The chosen [n] bool of each group, and the share [num_groups] chosen."""
  n = groups.size
  sizes = jnp.zeros(num_groups, jnp.int32).at[groups].add(1)
  wanted = rate * sizes
  # A few roundings of float32, in which a traced rate is.
  whole = jnp.round(wanted)
  close = jnp.abs(wanted - whole) <= 2.0**-21 * wanted
  counts = jnp.where(close, whole, jnp.floor(wanted)).astype(jnp.int32)
  order = jnp.lexsort((jax.random.bits(key, (n,)), groups))
  groups = groups[order]
  first = jnp.cumsum(sizes) - sizes
  chosen = jnp.arange(n) - first[groups] < counts[groups]
  chosen = jnp.zeros(n, bool).at[order].set(chosen)
  return chosen, counts / jnp.maximum(sizes, 1)


def cifar10_asymmetric_in_place(
  key: Key, labels: ArrayLike, rate: Scalar
) -> NoisyLabels:
  """CIFAR-10 asymmetric noise as coded by ELR, SOP, GJS and APL.

  They redraw one class after the other within one array. Cats have become dogs
  when the dogs' turn comes, and the same share of them turns back: r of the
  dogs are wrong, but r (1 - r) of the cats; of all labels .184 instead of .2
  for r = .4. GLWS reads the clean labels instead: `fixed_count(key, labels,
  cifar10_asymmetric(1), rate, per_class=True)`.

  Args:
    key: PRNG key.
    labels: [...] int, clean, in [0, 10).
    rate: r in [0, 1], the share of the current labels 2, 3, 4, 5 and 9 that is
      flipped; counted as in `fixed_count` with `per_class`.

  Returns:
    `NoisyLabels` with probs [10, 10], the product of the two steps. Examples
    of the same class are exchangeable, so it is exact for each.

  Raises:
    ValueError: if `rate` or a label is out of range.
    TypeError: if `labels` are not integers, or `key` is no key.

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151: `data_loader/cifar10.py`.
  """
  check_key(key)
  labels = read_labels('labels', labels, 10)
  check_rate('rate', rate)
  dogs = matrices.class_map([0, 1, 2, 3, 4, 3, 6, 7, 8, 9], 1)
  others = matrices.class_map([0, 1, 0, 5, 7, 5, 6, 7, 8, 1], 1)
  key_others, key_dogs = jax.random.split(key)
  first = _redraw(key_others, labels, others, rate, labels, 10)
  second = _redraw(key_dogs, first.labels, dogs, rate, first.labels, 10)
  probs = jnp.matmul(first.probs, second.probs, precision='highest')
  return NoisyLabels(second.labels, second.labels != labels, probs)


def empirical_transition(
  clean: ArrayLike, noisy: ArrayLike, num_classes: int
) -> Array:
  r"""The transition matrix that was drawn: row-normalized counts.

  .. math:: \hat T_{ij} = \#(y = i, \tilde y = j) / \#(y = i)

  Args:
    clean: y, [...] int in [0, c).
    noisy: [...] int in [0, c).
    num_classes: c >= 2.

  Returns:
    [c, c], `T[i, j]` the share of label j among the examples of class i.

  Raises:
    ValueError: if shapes differ, a label is out of range, or `clean` has no
      example of a class (outside jit, where the row is 0).
    TypeError: if labels are not integers.

  >>> empirical_transition([0, 0, 1, 1], [0, 1, 1, 1], 2).tolist()
  [[0.5, 0.5], [0.0, 1.0]]
  """
  check_classes(num_classes)
  clean = read_labels('clean', clean, num_classes)
  noisy = read_labels('noisy', noisy, num_classes)
  _check_same_shape(clean, noisy)
  counts = jnp.zeros([num_classes, num_classes], jnp.int32)
  counts = counts.at[clean, noisy].add(1)
  sizes = counts.sum(1)
  if is_concrete(sizes):
    missing = np.flatnonzero(np.asarray(sizes) == 0)
    check(not missing.size, f'clean has no example of the classes {missing}')
  return counts / jnp.maximum(sizes, 1)[:, None]


def noise_rate(clean: ArrayLike, noisy: ArrayLike) -> float:
  """The share of wrong labels, in [0, 1].

  Args:
    clean: [...] int, at least one.
    noisy: [...] int.

  Returns:
    The share of labels that differ.

  Raises:
    ValueError: if shapes differ, or there are no labels.

  >>> noise_rate([0, 1, 1, 1], [0, 1, 1, 0])
  0.25
  """
  clean, noisy = np.asarray(clean), np.asarray(noisy)
  _check_same_shape(clean, noisy)
  check(clean.size > 0, 'clean has no labels')
  return float(np.mean(clean != noisy))


def _check_same_shape(clean: Any, noisy: Any) -> None:
  check(
    clean.shape == noisy.shape,
    f'clean and noisy must have the same shape, got {clean.shape} and '
    f'{noisy.shape}',
  )
