"""The transition matrix from how far neighbors agree, without any training."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from jnl.base import Array, Scalar, check, gather, global_sum
from jnl.inputs import check_range, read_transition
from jnl.neighbors import Neighbors
from jnl.transition._inputs import near_of, read_given, read_index, read_prior

MOST_CLASSES = 256
"""The third order holds c^3 numbers, and a step of the fit takes c^4 products:
of 256 classes 64 MiB and 4e9."""


class Consensus(NamedTuple):
  """How often labels come together: of a row, its nearest, and the next one.

  Attributes:
    first: c1, [c], of a row alone.
    second: c2, [c, c], of a row and its first neighbor.
    third: c3, [c, c, c], of a row, its first and its second neighbor.
  """

  first: Array
  second: Array
  third: Array


class Hoc(NamedTuple):
  """What `hoc` finds.

  Attributes:
    transition: T, [c, c], rows on the simplex.
    prior: p, [c], the frequencies of the clean classes.
    support: [c], how many clean rows there would be of each class, n p. Where
      it is near 0 the row of T is a guess.
    loss: [], how far the consensus of T and p is from what was counted. That it
      is small does not say that T is right: where neighbors are of other
      classes that looks like noise, and is fitted as such.
  """

  transition: Array
  prior: Array
  support: Array
  loss: Array


def consensus_counts(
  labels: ArrayLike,
  index: ArrayLike,
  num_classes: int,
  *,
  mask: ArrayLike | None = None,
) -> Consensus:
  r"""How often the labels of a row and of its two neighbors are i, j and k.

  .. math:: c^3_{ijk} = \#(\tilde y_n = i, \tilde y_{n_1} = j,
    \tilde y_{n_2} = k) / n

  and sums of it: c2 over k, c1 over j too.

  Args:
    labels: [n] int, noisy, in [0, c).
    index: [n, >= 2] int, neighbors of each row, nearest first, as
      `jnl.neighbors.knn` gives them; the row itself is none.
    num_classes: c, from 2 to 256.
    mask: [n] bool, the rows that count; by default all. A row counts where both
      of its neighbors do.

  Returns:
    `Consensus`. Where nothing counts it is 0.

  Raises:
    TypeError, ValueError: if an argument is malformed, or outside jit a label
      or an index is out of range, or a row its own neighbor.

  >>> near = jnp.array([[1, 2], [0, 3], [3, 0], [2, 1]])
  >>> consensus_counts([0, 0, 1, 0], near, 2).second.tolist()
  [[0.5, 0.25], [0.25, 0.0]]

  Reference: see `hoc`.
  """
  _check_classes(num_classes)
  labels, where = read_given(labels, num_classes, mask)
  index = read_index(index, len(labels), 2)
  return _shares(_count(labels, where, index, num_classes))


def consensus(transition: ArrayLike, prior: ArrayLike) -> Consensus:
  r"""How often labels would come together if all three are of one clean class.

  .. math:: c^1_i = \sum_y p_y T_{yi}, \quad
    c^2_{ij} = \sum_y p_y T_{yi} T_{yj}, \quad
    c^3_{ijk} = \sum_y p_y T_{yi} T_{yj} T_{yk}

  Args:
    transition: T, [c, c], rows on the simplex.
    prior: p, [c], the frequencies of the clean classes, on the simplex.

  Returns:
    `Consensus`.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> consensus(jnp.eye(2), [.75, .25]).second.tolist()
  [[0.75, 0.0], [0.0, 0.25]]

  Reference: see `hoc`.
  """
  transition = read_transition(transition)
  c = len(transition)
  _check_classes(c)
  return _consensus(transition, read_prior(prior, c))


def hoc(
  labels: ArrayLike,
  features: ArrayLike | Neighbors,
  num_classes: int,
  *,
  mask: ArrayLike | None = None,
  num_steps: int = 1500,
  learning_rate: Scalar = 0.1,
) -> Hoc:
  r"""The transition matrix and the clean classes' frequencies, from neighbors.

  .. math:: \min_{T, p} \sum_{k = 1}^3 \lVert c^k(T, p) - \hat c^k \rVert

  What `consensus_counts` counts is compared with `consensus`, by Frobenius
  norms that are not squared. T and p are the softmax of logits, 5 I - 1 and 0
  at first, which Adam moves in one compiled loop, at a rate that falls to 0 by
  a cosine. Nothing is trained and nothing is random; the result is that of the
  step where the loss was least. Programs that round differently differ by some
  thousandths in T.

  It holds as far as a row and its two neighbors are of one clean class and
  their labels are wrong independently, so look at the features first: of 2,000
  rows in Gaussian blobs of 5 classes, 20% to 30% of the labels wrong, the
  diagonal is .03 to .07 off where the nearest row is of the same class for 998
  of 1,000, and .1 to .5 where it is for 700 to 800. Features of a network that
  has memorized the labels hold what is wrong with them.

  Args:
    labels: [n] int, noisy, in [0, c).
    features: [n, d] floating-point, whose angles say who is near whom, finite
      (inside jit nobody looks); or
      `Neighbors`, of `jnl.neighbors.knn(features, k >= 2, metric='cosine')`,
      where they are known already.
    num_classes: c, from 2 to 256. The work grows as c^4: 10 classes take a
      tenth of a second and 100 about half a minute of a CPU.
    mask: [n] bool, the rows that count; by default all.
    num_steps: of Adam.
    learning_rate: of Adam, at first.

  Returns:
    `Hoc`. Duplicates are neighbors like others; of a class without labels
    `prior` is near 0.

  Raises:
    TypeError, ValueError: if an argument is malformed, outside jit if a label
      is out of range, a feature is not finite, or fewer than 3 rows count.

  The official code has the rate constant, and so ends somewhere around the
  least loss; it means to keep the best step, but keeps a reference to matrices
  that the optimizer goes on moving: the last one. It starts p at random, and
  counts on 50 random subsets of 90% of the rows, whose mean is close to the
  counts of all.

  >>> labels = jnp.arange(90) % 3
  >>> x = jnp.eye(3)[labels]
  >>> found = hoc(labels, x, 3)
  >>> bool(jnp.all(found.transition.diagonal() > .97))
  True

  Reference: Zhu, Song, Liu, "Clusterability as an Alternative to Anchor Points
  When Learning with Noisy Labels", ICML 2021, arXiv 2102.05291.
  """
  _check_classes(num_classes)
  check(num_steps >= 1, f'num_steps must be at least 1, got {num_steps}')
  check_range('learning_rate', learning_rate, 0, open_low=True)
  labels, where = read_given(labels, num_classes, mask)
  index = near_of(features, 2, where).index
  counts = _count(labels, where, index, num_classes)
  transition, prior, loss = _fit(
    _shares(counts), num_steps, jnp.asarray(learning_rate)
  )
  return Hoc(transition, prior, jnp.sum(counts) * prior, loss)


def _check_classes(c: int) -> None:
  check(
    2 <= c <= MOST_CLASSES,
    f'num_classes must lie between 2 and {MOST_CLASSES}, got {c}: how often '
    'three labels come together is c^3 numbers; merge classes, or estimate the '
    'matrix from a model with `anchor`',
  )


def _count(labels: Array, where: Array, index: Array, c: int) -> Array:
  """How many rows have the labels i, j, k, [c, c, c]."""
  every, counts = gather((labels, where))
  near = lambda x, fill: x.at[index].get(mode='fill', fill_value=fill)
  there = where & jnp.all(near(counts, False), axis=1)
  first, second = near(every, 0).T
  place = (labels * c + first) * c + second
  table = jnp.zeros(c**3, jnp.int32).at[place].add(there)
  return global_sum(table.reshape(c, c, c))


def _shares(counts: Array) -> Consensus:
  total = jnp.maximum(jnp.sum(counts), 1)
  second = jnp.sum(counts, axis=2)
  return Consensus(
    jnp.sum(second, axis=1) / total, second / total, counts / total
  )


def _consensus(transition: Array, prior: Array) -> Consensus:
  c = len(transition)
  weighted = prior[:, None] * transition
  pairs = weighted[:, :, None] * transition[:, None]
  times = lambda a: jnp.matmul(a.T, transition, precision='highest')
  third = times(pairs.reshape(c, c * c)).reshape(c, c, c)
  return Consensus(jnp.sum(weighted, axis=0), times(weighted), third)


@jax.jit(static_argnums=1)
def _fit(
  observed: Consensus, num_steps: int, learning_rate: Array
) -> tuple[Array, Array, Array]:
  """T, p and the loss of the best step."""
  c, dtype = len(observed.first), observed.first.dtype
  logits = 5 * jnp.eye(c, dtype=dtype) - 1, jnp.zeros(c, dtype)
  probs = lambda logits: jax.tree.map(jax.nn.softmax, logits)
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

  def loss(logits: tuple[Array, Array]) -> Array:
    apart = jax.tree.map(jnp.subtract, _consensus(*probs(logits)), observed)
    return sum(map(_norm, apart), jnp.zeros([], dtype))

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    logits, opt, best, least = carry
    value, gradient = jax.value_and_grad(loss)(logits)
    keep = lambda new, old: jnp.where(value < least, new, old)
    best = jax.tree.map(keep, logits, best)
    updates, opt = tx.update(gradient, opt)
    logits = optax.apply_updates(logits, updates)
    return (logits, opt, best, jnp.minimum(value, least)), None

  start = logits, tx.init(logits), logits, jnp.asarray(jnp.inf, dtype)
  (_, _, best, least), _ = lax.scan(step, start, None, length=num_steps)
  return *probs(best), least


def _norm(x: Array) -> Array:
  """The root of the sum of squares; its gradient at 0 is 0."""
  square = jnp.sum(x * x)
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)
