"""Classes of uneven size: logits and weights, for any loss that follows.

What these functions give is handed to a loss, so that each of them composes
with losses for wrong labels. They answer unevenness and nothing else: a loss
that learns wrong labels by heart goes on doing so on adjusted logits.
"""

from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from jnl.base import Array, Scalar, check, is_concrete
from jnl.inputs import (
  as_array,
  check_between,
  check_range,
  check_simplex,
  read_floats,
  read_labels,
  read_logits,
)

# --- logits ------------------------------------------------------------------


def adjust_logits(
  logits: ArrayLike, prior: ArrayLike, *, tau: Scalar = 1.0
) -> Array:
  r"""Logits plus the log of the class prior, for any loss that follows.

  .. math:: z_k + \tau \log \pi_k

  A network that is trained on these leaves the prior out of its own logits z,
  which then say what is likely where all classes are; what is evaluated are
  those, without adjustment. With tau = 1, cross-entropy of them is the balanced
  softmax.

  It serves after training too, on the logits of a network that was trained
  without: `adjust_logits(z, prior, tau=-1.0)` takes the prior out. Either, not
  both.

  Where labels are wrong, pi is the prior of what p means in the loss: of the
  true classes for one that withstands noise (`gce`, or `forward`, which then
  multiplies p by T), of the labels as given for one that fits them. On the
  latter it gains nothing: `experiments/long_tail.py`.

  Args:
    logits: z, [..., c].
    prior: pi, [c], or [..., c] for each example, on the simplex. Of counts it
      is `counts / counts.sum()`; counts themselves would give the same softmax,
      but not the same logits, and are refused.
    tau: its weight; negative takes it out.

  Returns:
    [..., c], at least float32. A class of prior 0, of which training says
    nothing, is masked: -inf whatever the sign of tau; a label of that class has
    an infinite cross-entropy. If tau is 0, the logits as they are. (Official
    code adds 1e-12 to the prior, raised to tau, where here is no bound.)

  Raises:
    TypeError: if `logits` or `prior` are not floating-point.
    ValueError: if a shape does not match, `tau` is no scalar, or `prior` not
      being traced is off the simplex.

  >>> prior = jnp.array([0.75, 0.25])
  >>> jnp.exp(adjust_logits(jnp.zeros(2), prior)).tolist()
  [0.75, 0.25]
  >>> z = adjust_logits(jnp.array([1.0, 0.5]), prior, tau=-1.0)
  >>> int(z.argmax())  # the rare class, once the prior is taken out
  1

  Reference: Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail Learning
  via Logit Adjustment", ICLR 2021, arXiv 2007.07314. Ren, Yu, Sheng, Ma, Zhao,
  Yi, Li, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS
  2020, arXiv 2007.10740.
  """
  check_range('tau', tau)
  logits = read_logits(logits)
  prior = read_floats('prior', prior)
  check(
    prior.shape in (logits.shape[-1:], logits.shape),
    f'prior must be [{logits.shape[-1]}] or have the shape of the logits, '
    f'{logits.shape}, got {prior.shape}',
  )
  check_simplex('prior', prior)
  prior = prior.astype(logits.dtype)
  empty = prior <= 0
  shift = tau * jnp.log(jnp.where(empty, 1, prior))
  adjusted = logits + shift.astype(logits.dtype)
  return jnp.where(empty & (jnp.asarray(tau) != 0), -jnp.inf, adjusted)


def subtract_margins(
  logits: ArrayLike, labels: ArrayLike, margins: ArrayLike
) -> Array:
  r"""Logits with a margin off that of the label, for any loss that follows.

  .. math:: z_k - m_k 1[k = y]

  The label has to win by its margin before the loss is content. LDAM is
  cross-entropy of this with `ldam_margins`, on cosines: margins of at most .5
  mean something where logits are cosines in [-1, 1], which are scaled by 30
  afterwards, `ce(30 * subtract_margins(cosines, labels, margins), labels)`. A
  head that is scaled already, such as `methods.class_vectors(v, scale=30.0)` on
  the features, takes `30 * margins`. On plain logits, which grow as they like,
  they do next to nothing. Its deferred re-weighting (DRW) is that loss times 1
  for four fifths of the training, and then times `class_weights(counts)[y]`.

  Args:
    logits: z, [..., c]; margins are for training alone.
    labels: [...] int in [0, c).
    margins: m, [c], finite.

  Returns:
    [..., c], at least float32; NaN without gradient for a row whose label,
    inside jit, is out of range.

  Raises:
    TypeError: if `logits` or `margins` are not floating-point, or `labels` not
      integers: a soft label has no logit of its own.
    ValueError: if a shape does not match, or outside jit if a label is out of
      range or a margin not finite.

  >>> z, margins = jnp.array([2.0, 1.0]), jnp.array([0.25, 0.5])
  >>> subtract_margins(z, jnp.array(1), margins).tolist()
  [2.0, 0.5]

  Reference: Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with
  Label-Distribution-Aware Margin Loss", NeurIPS 2019, arXiv 1906.07413.
  """
  logits = read_logits(logits)
  c = logits.shape[-1]
  labels = as_array('labels', labels)
  check(
    labels.shape == logits.shape[:-1],
    f'labels must be [...] int for logits [..., c]; got shape {labels.shape} '
    f'for logits {logits.shape}',
  )
  labels, valid = read_labels(labels, c)
  margins = read_floats('margins', margins)
  check(margins.shape == (c,), f'margins must be [{c}], got {margins.shape}')
  if is_concrete(margins):
    check(jnp.all(jnp.isfinite(margins)), 'margins must be finite')
  own = labels[..., None] == jnp.arange(c, dtype=labels.dtype)
  less = logits - jnp.where(own, margins.astype(logits.dtype), 0)
  return jnp.where(valid[..., None], less, jnp.nan)


# --- of the sizes of classes --------------------------------------------------


def ldam_margins(counts: ArrayLike, *, largest: Scalar = 0.5) -> Array:
  r"""Margins of classes by their size, for `subtract_margins` (LDAM).

  .. math:: m_k = m_{\max} \Big(\frac{\min_j n_j}{n_k}\Big)^{1/4}

  the minimum over classes that have examples.

  Args:
    counts: n, [c], of the training set, >= 0; the examples of each class.
    largest: the margin of the smallest class, >= 0.

  Returns:
    [c], at least float32; `largest` for a class without examples, which no
    label will meet (in the official code all margins are NaN then).

  Raises:
    TypeError: if `counts` are no numbers.
    ValueError: if `counts` is not [c], c >= 2, `largest` is negative, or
      outside jit if a count is negative or not finite, or all are 0.

  >>> ldam_margins(jnp.array([1600, 100, 0])).tolist()
  [0.25, 0.5, 0.5]

  Reference: Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with
  Label-Distribution-Aware Margin Loss", NeurIPS 2019, arXiv 1906.07413.
  """
  check_range('largest', largest, 0)
  counts, there = _read_counts(counts)
  least = jnp.min(jnp.where(there, counts, jnp.inf))
  share = jnp.where(there, least / counts, 1)
  return (largest * jnp.sqrt(jnp.sqrt(share))).astype(counts.dtype)


def class_weights(counts: ArrayLike, *, beta: Scalar = 0.9999) -> Array:
  r"""Weights of classes by how many examples their size amounts to.

  .. math::
    w_k \propto \frac{1}{E_k},\qquad E_k = \frac{1 - \beta^{n_k}}{1 - \beta}

  with the sum c. The effective number E is n where n is far below
  1 / (1 - beta), and stays below that: beta = 0 weights all classes alike,
  beta = 1 by 1 / n.

  `class_weights(counts)[labels]` are weights of examples (of soft labels,
  `labels @ class_weights(counts)`), which balance what each class adds to the
  loss. There are two means: `global_mean(loss, weight * own)` divides by the
  sum of these weights (LDAM's code, PyTorch), so that a batch without rare
  classes counts as much as any; `global_mean(own * loss, weight)` divides by
  the number of rows (the code of the paper), and so does a loss
  `lambda z, y: own[y] * ce(z, y)` for `methods.supervised`.

  Args:
    counts: n, [c], of the training set, >= 0; the examples of each class.
    beta: in [0, 1]. A Python float is exact to the last digit near 1; a traced
      one is as exact as float32 has it.

  Returns:
    [c], at least float32, without gradient. A class without examples has weight
    0, and the others have their number as sum (in the official code all weights
    are NaN then).

  Raises:
    TypeError: if `counts` are no numbers.
    ValueError: if `counts` is not [c], c >= 2, `beta` is out of range, or
      outside jit if a count is negative or not finite, or all are 0.

  >>> class_weights(jnp.array([30, 10]), beta=1.0).tolist()
  [0.5, 1.5]
  >>> class_weights(jnp.array([30, 10]), beta=0.0).tolist()
  [1.0, 1.0]

  Reference: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on
  Effective Number of Samples", CVPR 2019, arXiv 1901.05555.
  """
  check_range('beta', beta, 0, 1)
  counts, there = _read_counts(counts)
  # Of a float of Python in its own float64: in float32 .9999 is off by so much
  # that 1 - beta has three digits.
  gap = jnp.asarray(1 - beta, counts.dtype)
  inner = jnp.where(gap > 0, gap, 0.5)
  effective = -jnp.expm1(counts * jnp.log1p(-inner)) / inner
  effective = jnp.where(gap > 0, effective, counts)
  # Of ratios, since 1 / E may be too small to be added up.
  least = jnp.min(jnp.where(there, effective, jnp.inf))
  weights = jnp.where(there, least / effective, 0)
  total = jnp.sum(weights)
  number = jnp.sum(there)
  return lax.stop_gradient(weights * (number / jnp.where(number, total, 1)))


def _read_counts(counts: ArrayLike) -> tuple[Array, Array]:
  """Counts [c], 1 in place of 0, in at least float32; and which are not 0."""
  given = np.asarray(counts) if is_concrete(counts) else jnp.asarray(counts)
  check(
    jnp.issubdtype(given.dtype, jnp.number),
    f'counts must be numbers, got {given.dtype}',
    TypeError,
  )
  check(
    given.ndim == 1 and given.size >= 2,
    f'counts must be [c] with c >= 2 classes, got shape {given.shape}',
  )
  check_between('counts', given, 0, float(np.finfo(np.float32).max))
  if is_concrete(given):
    check((given > 0).any(), 'counts must be positive for some class')
  if not jnp.issubdtype(given.dtype, jnp.floating):
    given = given.astype(np.float32)  # int32 has no room for all of int64
  values = jnp.asarray(given)
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  there = values > 0
  return jnp.where(there, values, 1), there
