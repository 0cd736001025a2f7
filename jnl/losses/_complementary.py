"""Losses for complementary labels: what an example is said not to be.

`labels` are complementary ones: class k of an example is drawn from row k of
`transition`, P(complementary label = l | class = k), whose diagonal is how
often people err. Where an example has several, `labels` [..., c] share one
among them (each 1 / their number), as if it came once with each of them.

Some are in the house already. SCL-NL is `negative_learning`, or `cc` and
`rule_out` of the other classes; FWD is `forward` with this matrix; CPE-I is
`ce`, read by `decode_complementary`; of several labels `cc` of those that are
left is `mcl_log` without its factor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl import inputs, logspace
from jnl.base import (
  Array,
  Scalar,
  check,
  check_name,
  global_sum,
  is_concrete,
  whole,
)
from jnl.inputs import check_range, read_transition
from jnl.losses import _labels
from jnl.losses._cross_entropy import ce
from jnl.losses._labels import expect, log_prob, read
from jnl.losses._partial import cc
from jnl.losses._risks import abs_risks

Loss = Callable[[Array, Array], Array]
MOST, STEEP = 60, 25
"""Where 1 / q of `order_preserving` ends, as an exponent, and its gradient."""
CONDITION = 1e4
"""From here on the inverse of a matrix magnifies more than rows can average."""


# --- of the whole batch -------------------------------------------------------


def complementary_risks(
  logits: ArrayLike,
  labels: ArrayLike,
  transition: ArrayLike,
  prior: ArrayLike,
  weights: ArrayLike,
  *,
  by: str = 'class',
  loss: Loss = ce,
) -> Array:
  r"""Partial risks whose sum is the risk under the true labels, unbiased (URE).

  .. math::
    v_{kj} = \pi_k\, (Q^{-1})_{kj}
      \frac{\sum_i w_i\, 1[\bar y_i = k]\, \ell(z_i, j)}
           {\sum_i w_i\, 1[\bar y_i = k]},\qquad
    R_j = \sum_k v_{kj} \quad\text{or}\quad R_k = \sum_j v_{kj}

  The sums of both groups are the same, and fall without end as a network
  overfits; what `clip_risks` (NN) and `ascend_risks` (GA) make of them is not.
  By class, as the first code has it and theory wants it, a risk is that of a
  true class and cannot be negative; by label, as in later code, it can, and
  learns better (measured on digits).

  Batch-coupled: means over the rows of each label of all devices. A label that
  the batch lacks adds 0. With two classes these are flipped labels.

  Args:
    logits: [b, c].
    labels: complementary, [b] int, or [b, c] soft.
    transition: Q, [c, c], rows on the simplex, invertible. Traced, it is not
      looked at.
    prior: pi, [c] on the simplex, the shares of the complementary labels *in
      the data set*. With those of the batch (then the sum is the mean of
      `backward`) GA by class learned nothing: it ended at 0.2% on digits.
    weights: [b], >= 0; rows of weight 0 count for nothing, whatever they hold.
    by: 'class' or 'label', what a risk is of.
    loss: any (logits [..., c], labels [...]) -> [...] of this room. It is
      taken at every class: of `ce` in one pass, of others in c.

  Returns:
    [c], at least float32, the same on every device; all NaN, without gradient,
    if inside jit a label is out of range.

  Raises:
    TypeError, ValueError: if an array is malformed, or `by` is unknown.
    ValueError: if `transition`, not being traced, is singular or so
      ill-conditioned that rounding and chance are all that is left.

  >>> z, y = jnp.array([[0., 0.], [0., 0.]]), jnp.array([1, 0])
  >>> q, half = jnp.array([[0., 1.], [1., 0.]]), jnp.array([.5, .5])
  >>> risks = complementary_risks(z, y, q, half, jnp.ones(2))
  >>> bool(jnp.allclose(jnp.sum(risks), jnp.log(2.)))
  True

  Reference: Ishida, Niu, Menon, Sugiyama, "Complementary-Label Learning for
  Arbitrary Losses and Models", ICML 2019, arXiv 1810.04327; with other losses:
  Wang, Mai, Ye, Lin, Lin, "CLImage: Human-Annotated Datasets for
  Complementary-Label Learning", TMLR 2025, arXiv 2305.08295.
  """
  check_name('by', by, ('class', 'label'))
  check(
    prior is not None,
    'prior must be [c], the shares of the complementary labels in the data set',
  )
  batch = _read_batch(logits, labels, weights)
  inverse = _inverse(transition, batch.logits)
  prior = _read_prior(prior, batch.logits)
  values = whole(_at_every_class(loss, batch.logits))
  own = whole(batch.own)
  sums, counts = global_sum(
    (
      jnp.matmul(own.T, values, precision=lax.Precision.HIGHEST),
      jnp.sum(own, axis=0),
    )
  )
  parts = prior[:, None] * inverse * _ratio(sums, counts[:, None])
  risks = jnp.sum(parts, axis=0 if by == 'class' else 1)
  return jnp.where(batch.broken, jnp.nan, risks)


def scarce(
  logits: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  *,
  prior: ArrayLike | None = None,
) -> Array:
  r"""One classifier against the rest for each class, of what it is not.

  .. math::
    \sum_k (1 - \pi_k) M_k[\mathrm{softplus}(z_k)]
      + \sum_k \bigl|M[\mathrm{softplus}(-z_k)]
      - (1 - \pi_k) M_k[\mathrm{softplus}(-z_k)]\bigr|

  M is the mean over all rows, M_k that over those of label k. Needs no matrix:
  a label says that the row is drawn from what is not of class k. The second
  term, what is left for class k, cannot be negative.

  Batch-coupled: one value for the batch. A label that it lacks has the mean 0.

  Args:
    logits: [b, c], log-odds of each class by itself.
    labels: complementary, [b] int, or [b, c] soft.
    weights: [b], >= 0; rows of weight 0 count for nothing, whatever they hold.
    prior: pi, [c] on the simplex, the shares of the true classes; uniform by
      default.

  Returns:
    [], at least float32, >= 0, the same on every device; NaN, without gradient,
    if inside jit a label is out of range.

  Raises:
    TypeError, ValueError: if an array is malformed.

  >>> z, y = 9 * jnp.eye(2)[::-1] - 4.5, jnp.array([0, 1])
  >>> f'{float(scarce(z, y, jnp.ones(2))):.3f}'
  '0.022'

  Reference: Wang, Ishida, Zhang, Niu, Sugiyama, "Learning with Complementary
  Labels Revisited: The Selected-Completely-at-Random Setting Is More
  Practical", ICML 2024, arXiv 2311.15502.
  """
  batch = _read_batch(logits, labels, weights)
  share = 1 - _read_prior(prior, batch.logits)
  weights = batch.weights[:, None]
  values = jax.nn.softplus(batch.logits), jax.nn.softplus(-batch.logits)
  is_not, is_one, every, counts, total = global_sum(
    tuple(
      jnp.sum(rows, axis=0)
      for rows in (
        *(batch.own * v for v in values),
        weights * values[1],
        batch.own,
        weights,
      )
    )
  )
  left = _ratio(every, total) - share * _ratio(is_one, counts)
  value = jnp.sum(share * _ratio(is_not, counts)) + abs_risks(left)
  return jnp.where(batch.broken, jnp.nan, value)


# --- per example --------------------------------------------------------------


def scl_exp(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""Exponential of the probability of what the example is not (SCL-EXP).

  .. math:: \ell(z, \bar y) = \exp(p_{\bar y})

  Bounded, where `negative_learning` (SCL-NL) is not.

  Args:
    logits: [..., c].
    labels: complementary, [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, in [1, e].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> scl_exp(jnp.array([-9e3, 0.]), jnp.array(0)).tolist()
  1.0

  Reference: Chou, Niu, Lin, Sugiyama, "Unbiased Risk Estimators Can Mislead: A
  Case Study of Learning with Complementary Labels", ICML 2020, arXiv
  2007.02235.
  """
  logits, label = read(logits, labels)
  return expect(jnp.exp(jnp.exp(log_prob(logits, label))), label)


def discriminative(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  weighted: bool = True,
  offset: Scalar = 0.0,
) -> Array:
  r"""Cross-entropy of softmax(1 - p) against what the example is not (L-W).

  .. math::
    \ell(z, \bar y) = -\Bigl(1 + \frac{1 - p_{\bar y}}{c - 1}\Bigr)
      \log(q_{\bar y} + \epsilon),\qquad q = \mathrm{softmax}(1 - p)

  Bounded: q lies within a factor e of the uniform distribution.

  Args:
    logits: [..., c].
    labels: complementary, [...] int, or [..., c] soft.
    weighted: False leaves the factor out (L-UW).
    offset: epsilon >= 0; 1e-6 in public code.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed, or `offset` is
      negative.

  >>> z, y = jnp.zeros(2), jnp.array(0)
  >>> plain = discriminative(z, y, weighted=False)
  >>> f'{float(discriminative(z, y) / plain):.2f}'
  '1.50'

  Reference: Gao, Zhang, "Discriminative Complementary-Label Learning with
  Weighted Loss", ICML 2021.
  """
  check_range('offset', offset, 0)
  logits, label = read(logits, labels)
  log_q = logspace.add_offset(log_prob(-logspace.probs(logits), label), offset)
  losses = -log_q
  if weighted:
    not_p = -logspace.expm1(log_prob(logits, label))
    losses *= 1 + not_p / (logits.shape[-1] - 1)
  return expect(losses, label)


def order_preserving(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  offset: Scalar = 0.0,
  floor: Scalar = 0.0,
) -> Array:
  r"""Cross-entropy of softmax(-z), weighted where the prediction is large (OP).

  .. math::
    \ell(z, \bar y) = -(p_{\bar y}\, s_{\bar y} + \epsilon)
      \log(q_{\bar y} + \delta),\qquad
    q = \mathrm{softmax}(-z),\quad s = \mathrm{softmax}(1 / (q + \delta))

  The gradient flows through the weight too (without a delta not that of 1 / q
  above e^25, where s is one-hot or as good as a jump). Of examples whose
  likeliest class is not the label little is left with epsilon 0.

  Args:
    logits: [..., c].
    labels: complementary, [...] int, or [..., c] soft.
    offset: epsilon >= 0; 1e-6 in public code.
    floor: delta >= 0; 1e-18 in public code, which stops the gradient where q is
      below. Without it 1 / q stops at e^60.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed, or a
      hyperparameter is negative.

  >>> f'{float(order_preserving(jnp.zeros(2), jnp.array(0))):.3f}'
  '0.173'

  Reference: Liu, Cao, Zhang, Feng, An, "Consistent Complementary-Label Learning
  via Order-Preserving Losses", AISTATS 2023; as in libcll.
  """
  check_range('offset', offset, 0)
  check_range('floor', floor, 0)
  logits, label = read(logits, labels)
  logits = logspace.bounded(logits)
  log_q = logspace.add_offset(logspace.log_probs(-logits), floor)
  if logspace.is_zero(floor):
    steep = _exp_of_some_slope(-log_q)
  else:
    steep = jnp.exp(jnp.minimum(-log_q, MOST))
  log_weight = log_prob(logits, label) + log_prob(steep, label)
  at_label = log_q
  if label.valid is not None:
    at_label = logspace.take(log_q, label.values)
  return expect(-(jnp.exp(log_weight) + offset) * at_label, label)


def pairwise_comparison(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""How far the label's logit is above each of the others (PC).

  .. math:: \ell(z, \bar y) = \sum_{j \ne \bar y} \sigma(z_{\bar y} - z_j)

  As in libcll, where the sum has j = y too, less its .5. The first code has (c
  - 1) times that sum, less c (c - 1) / 2 and plus c - 1, which is (c - 1) times
  this loss less (c - 1) (c - 3) / 2: the same gradient but for the factor. Soft
  labels need memory of [..., c, c].

  Args:
    logits: [..., c].
    labels: complementary, [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, in [0, c - 1].

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> pairwise_comparison(jnp.zeros(4), jnp.array(0)).tolist()
  1.5

  Reference: Ishida, Niu, Hu, Sugiyama, "Learning from Complementary Labels",
  NeurIPS 2017, arXiv 1705.07541.
  """
  logits, label = read(logits, labels)
  logits, classes = logspace.bounded(logits), jnp.arange(logits.shape[-1])
  if label.valid is None:
    index, at_label = classes[:, None], logits
  else:
    index, at_label = (
      label.values[..., None],
      logspace.take(logits, label.values),
    )
  own = index == classes
  # Selected before too: of an infinite logit inf - inf has no gradient.
  gap = at_label[..., None] - jnp.where(own, 0, logits[..., None, :])
  above = jnp.where(own, 0, jax.nn.sigmoid(gap))
  return expect(jnp.sum(above, axis=-1), label)


# --- of several labels --------------------------------------------------------


def mcl_mae(logits: ArrayLike, excluded: ArrayLike) -> Array:
  r"""The probability of what the example is not, of several labels (MCL-MAE).

  .. math:: \ell(z, \bar S) = \frac{2 (c - 1)}{|\bar S|} (1 - r),\qquad
    r = \sum_{k \notin \bar S} p_k

  The official code adds these up over the batch: a rate for it is larger here
  by the size of the batch.

  Args:
    logits: [..., c].
    excluded: the set of complementary labels, [..., c] bool. An empty one says
      nothing: 0, without gradient.

  Returns:
    [...], at least float32, >= 0; 0 without gradient if inside jit all classes
    are excluded.

  Raises:
    TypeError, ValueError: if `logits` or `excluded` are malformed; the latter,
      outside jit, also if no class is left.

  >>> mcl_mae(jnp.zeros(4), jnp.array([True, True, False, False])).tolist()
  1.5

  Reference: Feng, Kaneko, Han, Niu, An, Sugiyama, "Learning with Multiple
  Complementary Labels", ICML 2020, arXiv 1912.12927.
  """
  losses, scale = _left(logits, excluded)
  return scale * -logspace.expm1(-losses)


def mcl_exp(logits: ArrayLike, excluded: ArrayLike) -> Array:
  r"""Exponential form of `mcl_mae` (MCL-EXP).

  .. math:: \ell(z, \bar S) = \frac{2 (c - 1)}{|\bar S|} \exp(-r),\qquad
    r = \sum_{k \notin \bar S} p_k

  Args:
    logits: [..., c].
    excluded: as `mcl_mae`.

  Returns:
    [...], as `mcl_mae`; at least 2 (c - 1) / (e c) of a set that is not empty.

  Raises:
    TypeError, ValueError: as `mcl_mae`.

  >>> f'{float(mcl_exp(jnp.array([-9., 0.]), jnp.array([True, False]))):.3f}'
  '0.736'

  Reference: see `mcl_mae`.
  """
  losses, scale = _left(logits, excluded)
  return scale * jnp.exp(-jnp.exp(-losses))


def mcl_log(logits: ArrayLike, excluded: ArrayLike) -> Array:
  r"""Logarithmic form of `mcl_mae` (MCL-LOG): `cc` of what is left.

  .. math:: \ell(z, \bar S) = -\frac{2 (c - 1)}{|\bar S|} \log r,\qquad
    r = \sum_{k \notin \bar S} p_k

  Args:
    logits: [..., c].
    excluded: as `mcl_mae`.

  Returns:
    [...], as `mcl_mae`.

  Raises:
    TypeError, ValueError: as `mcl_mae`.

  >>> mcl_log(jnp.array([9e3, 0.]), jnp.array([True, False])).tolist()
  18000.0

  Reference: see `mcl_mae`.
  """
  losses, scale = _left(logits, excluded)
  return scale * losses


def decode_complementary(logits: ArrayLike, transition: ArrayLike) -> Array:
  r"""The class of a network that predicts complementary labels (CPE).

  .. math:: \arg\min_k \sum_l |p_l - Q_{kl}|

  For what is trained by `ce` on complementary labels (CPE-I) the nearest row is
  the class; of equally near ones the first. With two classes, the other one.

  Args:
    logits: [..., c], of the complementary label.
    transition: Q, [c, c], rows on the simplex.

  Returns:
    [...] int32, without gradient.

  Raises:
    TypeError, ValueError: if `logits` or `transition` are malformed.

  >>> flip = jnp.array([[0., 1.], [1., 0.]])
  >>> decode_complementary(jnp.array([0., 3.]), flip).tolist()
  0

  Reference: Lin, Lin, "Reduction from Complementary-Label Learning to
  Probability Estimates", PAKDD 2023, arXiv 2209.09500.
  """
  logits = lax.stop_gradient(inputs.read_logits(logits))
  transition = read_transition(transition, logits.shape[-1])
  p = logspace.probs(logits)
  rows = transition.astype(p.dtype)
  # Half the distance, as both sum to 1, but for what it is of all rows: in that
  # a small p is lost, which decides where a network is sure.
  most = jnp.minimum(p, jnp.max(rows, axis=0))
  above = jnp.sum(jnp.maximum(most[..., None, :] - rows, 0), axis=-1)
  return jnp.argmin(above, axis=-1).astype(jnp.int32)


# --- the pieces ---------------------------------------------------------------


def _exp_of_some_slope(x: Array) -> Array:
  """e^x up to e^MOST, with a gradient up to e^STEEP."""
  held = jnp.exp(jnp.minimum(lax.stop_gradient(x), MOST))
  return jnp.where(x > STEEP, held, jnp.exp(jnp.minimum(x, STEEP)))


class _Batch(NamedTuple):
  """What `_read_batch` makes of a batch.

  Attributes:
    logits: [b, c], 0 in rows of weight 0.
    own: [b, c], the weight of each row at its label.
    weights: [b].
    broken: [] bool, whether a label that counts is out of range, anywhere.
  """

  logits: Array
  own: Array
  weights: Array
  broken: Array


def _read_batch(
  logits: ArrayLike, labels: ArrayLike, weights: ArrayLike
) -> _Batch:
  shape, weights = np.shape(logits), inputs.as_array('weights', weights)
  check(len(shape) == 2, f'logits must be [b, c], got shape {shape}')
  check(
    weights.shape == shape[:1],
    f'weights must be [b] = [{shape[0]}], got shape {weights.shape}',
  )
  inputs.check_between('weights', weights, 0)
  counts = weights != 0
  logits, label = read(logits, labels, where=counts)
  logits = logspace.bounded(jnp.where(counts[:, None], logits, 0))
  weights = weights.astype(logits.dtype)
  soft = jnp.where(counts[:, None], _labels.soft(label, logits), 0)
  valid = counts if label.valid is None else label.valid
  broken = global_sum(jnp.sum(counts & ~valid)) > 0
  return _Batch(logits, weights[:, None] * soft, weights, broken)


def _ratio(sums: Array, counts: Array) -> Array:
  """sums / counts; 0 where there is nothing."""
  return sums / jnp.where(counts == 0, 1, counts)  # a weight that is NaN shows


def _at_every_class(loss: Loss, logits: Array) -> Array:
  """The loss if the label were each class, [b, c]."""
  if loss is ce:  # one pass, and no select for each class backward
    return -logspace.log_probs(logits)
  zero = jnp.zeros_like(logits[..., 0], jnp.int32)
  classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  each = jax.vmap(lambda k: loss(logits, zero + k), out_axes=-1)
  values = each(classes)
  check(
    values.shape == logits.shape,
    'loss must be (logits [..., c], labels [...]) -> [...], got shape '
    f'{values.shape[:-1]} for logits {logits.shape}',
  )
  return values


def _inverse(transition: ArrayLike, logits: Array) -> Array:
  """The inverse of a matrix, looked at if it can be."""
  matrix = read_transition(transition, logits.shape[-1])
  if is_concrete(transition):
    # On the host: inside jit, where it is a constant, too.
    condition = np.linalg.cond(np.asarray(transition, np.float64))
    check(
      condition <= CONDITION,
      'transition must be invertible, with a condition number of at most '
      f'{CONDITION:g}, got {condition:.3g}: risks through its inverse would be '
      'rounding and chance. `forward` needs no inverse',
    )
  return jnp.linalg.inv(matrix.astype(logits.dtype))


def _read_prior(prior: ArrayLike | None, logits: Array) -> Array:
  """[c] on the simplex; uniform if None."""
  c = logits.shape[-1]
  if prior is None:
    return jnp.full([c], 1 / c, logits.dtype)
  prior = inputs.as_array('prior', prior)
  check(prior.shape == (c,), f'prior must be [{c}], got shape {prior.shape}')
  inputs.check_simplex('prior', prior)
  return prior.astype(logits.dtype)


def _left(logits: ArrayLike, excluded: ArrayLike) -> tuple[Array, Array]:
  """-log of the probability that is left, and 2 (c - 1) / |set|, 0 if empty."""
  logits = inputs.read_logits(logits)
  excluded = inputs.as_array('excluded', excluded)
  check(
    excluded.dtype == bool,
    f'excluded must be bool, got {excluded.dtype}',
    TypeError,
  )
  check(
    excluded.shape == logits.shape,
    f'excluded must have the shape of the logits, {logits.shape}, got '
    f'{excluded.shape}',
  )
  if is_concrete(excluded):
    check(
      jnp.all(~jnp.all(excluded, axis=-1)),
      'excluded must leave at least one class in every row',
    )
  c, size = logits.shape[-1], jnp.sum(excluded, axis=-1)
  some = (size > 0) & (size < c)
  scale = jnp.where(some, 2 * (c - 1) / jnp.where(some, size, 1), 0)
  return cc(logits, ~excluded), scale.astype(logits.dtype)
