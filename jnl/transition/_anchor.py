"""The transition matrix as it shows in a model of the noisy labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Scalar, check, gather, global_sum
from jnl.inputs import check_range
from jnl.transition._inputs import read_given, read_probs


class Anchors(NamedTuple):
  """What `anchor` finds.

  Attributes:
    transition: T, [c, c], rows on the simplex.
    support: [c] int32, how many rows hold this class for the likeliest. Where
      it is 0 the model never says the class, and the row of T is a guess.
    index: [c] int32, the row that stands for each class.
  """

  transition: Array
  support: Array
  index: Array  # type: ignore[assignment]  # hides tuple.index; as in batches


class DualT(NamedTuple):
  """What `dual_t` finds.

  Attributes:
    transition: T, [c, c], the product of the two matrices below.
    support: [c] int32, how many rows hold this class for the likeliest. Where
      it is 0 nothing was counted of it.
    anchor: [c, c], P(predicted = l | clean = i), from the anchors.
    counted: [c, c], P(noisy = j | predicted = l), shares of labels; a row of
      the identity where the class is never predicted.
  """

  transition: Array
  support: Array
  anchor: Array
  counted: Array


def anchor(
  probs: ArrayLike,
  *,
  quantile: Scalar | None = None,
  mask: ArrayLike | None = None,
) -> Anchors:
  r"""A transition matrix from one example of each class, its anchor.

  .. math:: T_{ij} = \eta_j(x^i), \qquad x^i = \arg\max_x \eta_i(x)

  where eta is the posterior of the *noisy* labels: an example that surely is of
  class i has the label j with probability T_ij. Of a model that has memorized
  labels the largest probability is 1, and T near the identity; hence the
  quantile, which passes over the few rows of largest probability. It has to
  leave some of the class: with 100 classes .97 passes over all of it.

  Args:
    probs: eta, [n, c], what a model that was trained on noisy labels says.
    quantile: q in (0, 1]: the anchor has the largest probability below the
      q-quantile of the class (.97 for CIFAR-10 in the paper's code), which is
      the value of the row ceil(q (n - 1)) in ascending order. None is the
      largest of all, as the code has it for CIFAR-100.
    mask: [n] bool, the rows that count; by default all.

  Returns:
    `Anchors`. Of equal probabilities the first row is the anchor; where nothing
    lies below the quantile, that of the quantile itself.

  Raises:
    TypeError, ValueError: if an argument is malformed, a row that counts holds
      no probabilities, or outside jit no row counts.

  The official code of the quantile writes zeros into the probabilities, which
  rows of T that are read later may show; here nothing is written.

  >>> probs = jnp.array([[.75, .25], [.5, .5], [.125, .875]])
  >>> anchor(probs).transition.tolist()
  [[0.75, 0.25], [0.125, 0.875]]

  Reference: Patrini, Rozza, Menon, Nock, Qu, "Making Deep Neural Networks
  Robust to Label Noise: a Loss Correction Approach", CVPR 2017, arXiv
  1609.03683.
  """
  rows, where = gather(read_probs(probs, mask))
  return _anchor(rows, where, quantile)


def dual_t(
  probs: ArrayLike,
  labels: ArrayLike,
  *,
  quantile: Scalar | None = None,
  mask: ArrayLike | None = None,
) -> DualT:
  r"""A transition matrix by way of predicted classes, from anchors and counts.

  .. math:: T_{ij} = \sum_l \eta_l(x^i)\,
    \frac{\#(\hat y = l, \tilde y = j)}{\#(\hat y = l)}, \qquad
    \hat y = \arg\max_l \eta_l(x)

  The first factor is that of `anchor`, the second is counted. It helps where
  errors of the posterior prevail. Where the posterior is good it is worse than
  its own anchors, because the noise then comes twice: the anchors have it
  already, and so do the labels that are counted.

  Args:
    probs: eta, [n, c], what a model that was trained on noisy labels says.
    labels: [n] int, noisy, in [0, c).
    quantile: as for `anchor`.
    mask: [n] bool, the rows that count; by default all.

  Returns:
    `DualT`.

  Raises:
    TypeError, ValueError: as `anchor`, or if `labels` are malformed.

  >>> probs = jnp.array([[.75, .25], [.75, .25], [.0, 1.]])
  >>> dual_t(probs, [0, 1, 1]).counted.tolist()
  [[0.5, 0.5], [0.0, 1.0]]

  Reference: Yao, Liu, Han, Gong, Deng, Niu, Sugiyama, "Dual T: Reducing
  Estimation Error for Transition Matrix in Label-noise Learning", NeurIPS 2020,
  arXiv 2006.07805.
  """
  rows, where = read_probs(probs, mask)
  n, c = rows.shape
  shape = np.shape(labels)
  check(shape == (n,), f'labels must be [n] = [{n}], got shape {shape}')
  labels, where = read_given(labels, c, where)
  first = _anchor(gather(rows), gather(where), quantile)
  pairs = jnp.zeros((c, c), jnp.int32)
  pairs = pairs.at[jnp.argmax(rows, axis=1), labels].add(where)
  pairs = global_sum(pairs)
  total = jnp.sum(pairs, axis=1, keepdims=True)
  shares = pairs / jnp.maximum(total, 1).astype(rows.dtype)
  counted = jnp.where(total > 0, shares, jnp.eye(c, dtype=rows.dtype))
  both = jnp.matmul(first.transition, counted, precision='highest')
  return DualT(both, first.support, first.transition, counted)


def _anchor(probs: Array, where: Array, quantile: Scalar | None) -> Anchors:
  """The anchors of checked rows."""
  counted = where[:, None]
  candidates = jnp.broadcast_to(counted, probs.shape)
  if quantile is not None:
    check_range('quantile', quantile, 0, 1, open_low=True)
    ascending = jnp.sort(jnp.where(counted, probs, jnp.inf), axis=0)
    number = jnp.sum(where)
    place = jnp.ceil(quantile * (number - 1)).astype(jnp.int32)
    limit = ascending[jnp.maximum(place, 0)]
    below = counted & (probs < limit)
    some = jnp.any(below, axis=0)
    candidates = jnp.where(some, below, counted & (probs <= limit))
  best = jnp.argmax(jnp.where(candidates, probs, -1), axis=0)
  likeliest = jax.nn.one_hot(jnp.argmax(probs, axis=1), probs.shape[1])
  support = jnp.sum(jnp.where(counted, likeliest, 0), axis=0)
  return Anchors(probs[best], support.astype(jnp.int32), best.astype(jnp.int32))
