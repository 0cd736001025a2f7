"""Regularizers: with a memory for each example (ELR, ELR+, SOP), and VAT.

The memory itself (targets, u, v) lives in the caller's tables; these functions
map the rows of a batch to new rows and to loss terms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import logspace
from jnl.base import Array, Scalar, check
from jnl.inputs import check_range, read_floats, read_logits
from jnl.losses import _labels
from jnl.losses._labels import read


def elr_targets(
  rows: ArrayLike,
  logits: ArrayLike,
  *,
  beta: Scalar = 0.7,
  clip: Scalar = 1e-4,
) -> Array:
  r"""The next running average of the predictions for each example.

  .. math:: t \leftarrow \beta t + (1 - \beta)\, \tilde p / \textstyle\sum_k
    \tilde p_k,\qquad \tilde p = \mathrm{clip}(p, \epsilon, 1 - \epsilon)

  Rows start at zero and are not corrected for it: the penalty is weak at first.
  The paper does not clip, the official code does; it is followed. ELR+ averages
  the predictions of the other network's teacher without a clip: `clip=0`.
  Where the argmax of a row differs from the label, the label is suspect.

  Args:
    rows: t, [..., c], zeros at first, of any floating-point dtype; averaged in
      at least float32.
    logits: [..., c].
    beta: in [0, 1]; .7 for CIFAR-10 (.9 with asymmetric noise), .9 for
      CIFAR-100.
    clip: epsilon in [0, 1/2].

  Returns:
    The new rows, [..., c], without gradient, in the dtype of `rows`.

  Raises:
    TypeError, ValueError: if `rows` or `logits` are malformed.
    ValueError: if `beta` or `clip` is out of range.

  >>> elr_targets(jnp.zeros(2), jnp.zeros(2), beta=0.5).tolist()
  [0.25, 0.25]

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151.
  """
  check_range('beta', beta, 0, 1)
  check_range('clip', clip, 0, 0.5)
  logits, dtype = read_logits(logits), jnp.asarray(rows).dtype
  rows = _like(rows, logits, 'rows')
  beta, clip = (jnp.asarray(a, logits.dtype) for a in (beta, clip))
  p = jnp.clip(logspace.probs(logits), clip, 1 - clip)
  p = p / logspace.unfused(jnp.sum(p, axis=-1, keepdims=True))
  return jax.lax.stop_gradient(beta * rows + (1 - beta) * p).astype(dtype)


def elr_penalty(
  logits: ArrayLike, targets: ArrayLike, *, clip: Scalar = 1e-4
) -> Array:
  r"""The penalty of ELR, log(1 - <target, prediction>), without its weight.

  .. math:: r = \log(1 - \langle t, \tilde p \rangle),\qquad
    \tilde p = \mathrm{clip}(p, \epsilon, 1 - \epsilon)

  Added to cross-entropy with lambda = 3 (CIFAR-10), 1 (asymmetric noise) or 7
  (CIFAR-100), `targets` being the rows already updated with this prediction.
  The clip, of the official code and not of the paper, stops the gradient of
  classes outside [epsilon, 1 - epsilon]; without it the paper's Lemma 2 gives
  dr/dz_c = p_c / (1 - <t, p>) sum_k (t_k - t_c) p_k.

  Args:
    logits: [..., c].
    targets: t, [..., c], rows of `elr_targets`; no gradient.
    clip: epsilon in [0, 1/2].

  Returns:
    [...], at least float32, <= 0 for targets that sum to at most one.

  Raises:
    TypeError, ValueError: if `logits` or `targets` are malformed.
    ValueError: if `clip` is out of range.

  >>> elr_penalty(jnp.zeros(2), jnp.array([1., 0.])).round(3).tolist()
  -0.6930000185966492

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151.
  """
  check_range('clip', clip, 0, 0.5)
  logits = read_logits(logits)
  targets = _like(targets, logits, 'targets').astype(logits.dtype)
  return _log_one_minus(logits, targets, jnp.asarray(clip, logits.dtype))


def elr_plus_labels(targets: ArrayLike, rows: ArrayLike) -> Array:
  r"""Labels reweighted by the running predictions, as ELR+ does on CIFAR-100.

  .. math:: \tilde y_k = y_k t_k \Big/ \sum_j y_j t_j

  ELR+ is `ce` against mixed labels plus lambda times a ramp times `elr_penalty`
  with equally mixed rows, which `elr_targets` with `clip=0` updates by the
  other network's teacher. The official code reweights the mixed labels for 100
  classes only.

  Args:
    targets: y, [..., c], the mixed labels.
    rows: t, [..., c], the mixed rows.

  Returns:
    [..., c] without gradient; `targets` where the sum is 0.

  Raises:
    TypeError, ValueError: if `targets` or `rows` are malformed.

  >>> elr_plus_labels(jnp.array([.5, .5]), jnp.array([.3, .1])).tolist()
  [0.75, 0.25]

  Reference: see `elr_targets`.
  """
  targets = read_logits(targets, 'targets')
  product = targets * _like(rows, targets, 'rows').astype(targets.dtype)
  total = jnp.sum(product, axis=-1, keepdims=True)
  some = total > 0
  labels = jnp.where(some, product / jnp.where(some, total, 1), targets)
  return jax.lax.stop_gradient(labels)


def sop(
  logits: ArrayLike,
  labels: ArrayLike,
  u: ArrayLike,
  v: ArrayLike,
  *,
  clip: Scalar = 1e-4,
  min_prob: Scalar = 0.0,
) -> Array:
  r"""Sparse over-parameterization: cross-entropy and square with learned noise.

  .. math::
    \ell = -\sum_k y_k \log q_k + \| h + U - V - y \|^2

  with q of `sop_probs`, h the one-hot argmax of the logits, U = clip(u^2 y, 0,
  1) and V = clip(v^2 (1 - y), 0, 1). Cross-entropy trains the network and u (V
  is constant there), the square u and v. SOP+ adds a `kl_consistency` between
  two views (0.9) and `prior_mean_kl` of log q (0.1), as a cross-entropy, which
  is larger by log c.

  The network descends the mean over a batch. u and v belong to one example and
  descend, by plain gradients, the loss of that example: that is of the sum over
  the batch, as below. The official code gives them the gradient of the mean of
  128, at rates of 10 and 10 (CIFAR-10; 10 and 100 with asymmetric noise) or 1
  and 10 (CIFAR-100; .1 and 100); of the sum these are 128 times smaller, as in
  `methods.sop`.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    u: [...], rows of the caller's table, at first about 1e-8 N(0, 1), with a
      rate of its own.
    v: [..., c], likewise. Their squares are about 1e-16 at first: keep them in
      float32 or more.
    clip: what the probabilities are raised to before they are normalized, in
      [0, 1]; with 0 the loss can be infinite.
    min_prob: what q is raised to after, in [0, 1], without gradient below. The
      official code does it with 1e-4, the default keeps the gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `u` or `v` has another shape, or `clip` or `min_prob` is out
      of range.

  >>> z, y = jnp.array([5., 0.]), jnp.array(0)
  >>> f'{jax.jit(sop)(z, y, jnp.array(0.), jnp.zeros(2)):.4f}'  # as ce(z, y)
  '0.0067'
  >>> @jax.jit
  ... def step(w, u, v):
  ...   loss = lambda w, u, v: sop(x @ w, y, u, v)
  ...   dw = jax.grad(lambda w: loss(w, u, v).mean())(w)
  ...   du, dv = jax.grad(lambda *uv: loss(w, *uv).sum(), (0, 1))(u, v)
  ...   return w - dw, u - du, v - 10 * dv
  >>> x, y = jnp.ones([4, 1]), jnp.array([0, 0, 0, 1])  # the last one is wrong
  >>> w, u, v = jnp.zeros([1, 2]), jnp.full(4, 1e-3), jnp.full([4, 2], 1e-3)
  >>> for _ in range(9):
  ...   w, u, v = step(w, u, v)
  >>> jnp.minimum(u * u, 1).round(2).tolist()  # how wrong each label is
  [0.0, 0.0, 0.0, 1.0]

  Reference: Liu, Zhu, Qu, You, "Robust Training under Label Noise by
  Over-parameterization", ICML 2022, arXiv 2202.14026.
  """
  check_range('clip', clip, 0, 1)
  check_range('min_prob', min_prob, 0, 1)
  logits, label = read(logits, labels)
  u, v = _read_sop(logits, u, v)
  clip = jnp.asarray(clip, logits.dtype)
  p = jnp.exp(_labels.log_prob(logits, label))
  if label.valid is None:
    add, remove = _sop_noise(logits, label, u, v)
    shift = add - jax.lax.stop_gradient(remove)
    own = jnp.maximum(p + shift, clip)
    total = _raised_sum(logits, shift, clip)
  else:
    # The label's term is put right afterwards: a comparison of every class with
    # the label costs a pass over them on CPU.
    remove = jax.lax.stop_gradient(_unit(v * v))
    own = jnp.maximum(p + _unit(u * u), clip)
    without = jnp.maximum(p - logspace.take(remove, label.values), clip)
    total = _raised_sum(logits, -remove, clip) - without + own
  log_q = logspace.floor(jnp.log(own) - jnp.log(total), min_prob)
  return _labels.expect(-log_q, label) + _sop_square(logits, label, u, v)


def sop_probs(
  logits: ArrayLike,
  labels: ArrayLike,
  u: ArrayLike,
  v: ArrayLike,
  *,
  clip: Scalar = 1e-4,
  min_prob: Scalar = 0.0,
) -> Array:
  r"""The probabilities that `sop` compares with the label.

  .. math:: q_k \propto \max(p_k + U_k - V_k, \epsilon)

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    u: [...], see `sop`.
    v: [..., c], see `sop`; no gradient.
    clip: epsilon in [0, 1].
    min_prob: what q is raised to, see `sop`.

  Returns:
    [..., c], at least float32; on the simplex as far as `min_prob` raises none.

  Raises:
    TypeError, ValueError: as `sop`.

  >>> z, y = jnp.zeros(2), jnp.array(0)
  >>> sop_probs(z, y, jnp.array(1.), jnp.zeros(2)).tolist()
  [0.75, 0.25]

  Reference: see `sop`.
  """
  check_range('clip', clip, 0, 1)
  check_range('min_prob', min_prob, 0, 1)
  logits, label = read(logits, labels)
  clip, min_prob = (jnp.asarray(a, logits.dtype) for a in (clip, min_prob))
  add, remove = _sop_noise(logits, label, *_read_sop(logits, u, v))
  p = logspace.probs(logits)
  q = jnp.maximum(p + add - jax.lax.stop_gradient(remove), clip)
  return jnp.maximum(q / jnp.sum(q, axis=-1, keepdims=True), min_prob)


def kl_consistency(logits: ArrayLike, other_logits: ArrayLike) -> Array:
  r"""Divergence of one view's prediction from another's, held fixed.

  .. math:: \ell = \sum_k \bar p_k (\log \bar p_k - \log p_k)

  Args:
    logits: [..., c], of the view that learns.
    other_logits: [..., c], of the view that teaches; no gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `other_logits` are malformed.

  >>> kl_consistency(jnp.array([0., 1.]), jnp.array([0., 1.])).tolist()
  0.0
  """
  logits = read_logits(logits, masked=True)
  other = _like(other_logits, logits, 'other_logits')
  other = read_logits(other, 'other_logits', masked=True)
  other = other.astype(logits.dtype)
  log_p, log_other = (logspace.log_probs(z) for z in (logits, other))
  log_other = jax.lax.stop_gradient(log_other)
  return jnp.sum(jnp.exp(log_other) * (log_other - log_p), axis=-1)


def symmetric_consistency(logits: ArrayLike, target_logits: ArrayLike) -> Array:
  r"""Cross-entropy of two views against each other, one of them held fixed.

  .. math::
     \ell = -\tfrac12 \sum_k p'_k \log p_k - \tfrac12 \sum_k p_k \log p'_k

  CoTTA on ImageNet; elsewhere the first sum alone, twice, `em.consistency`. The
  second draws to where the target is sure.

  Args:
    logits: z with p = softmax(z), [..., c], of the view that learns.
    target_logits: z', [..., c], of the view that teaches; no gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `target_logits` are malformed.

  >>> z = jnp.array([0., 0.])
  >>> round(float(symmetric_consistency(z, z)), 3)
  0.693

  Reference: Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation",
  CVPR 2022, arXiv 2203.13591; the form of its code for ImageNet.
  """
  logits = read_logits(logits, masked=True)
  target = _like(target_logits, logits, 'target_logits')
  target = read_logits(target, 'target_logits', masked=True)
  target = jax.lax.stop_gradient(target.astype(logits.dtype))

  def cross(weigh: Array, z: Array) -> Array:
    p = logspace.probs(weigh)
    terms = p * jnp.where(p == 0, 0, logspace.log_probs(z))  # 0 log 0 = 0
    return -jnp.sum(terms, axis=-1)

  return (cross(target, logits) + cross(logits, target)) / 2


def entropy(logits: ArrayLike) -> Array:
  r"""Entropy of a prediction: how unsure it is, in nats.

  .. math:: -\sum_k p_k \log p_k, \qquad p = \mathrm{softmax}(z)

  What TENT makes small on a stream without labels.

  Args:
    logits: z, [..., c].

  Returns:
    [...], at least float32, in [0, log c].

  Raises:
    TypeError, ValueError: if `logits` are malformed.

  >>> entropy(jnp.array([[0., 0.], [1e4, -1e4]])).round(3).tolist()
  [0.6930000185966492, 0.0]

  Reference: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time
  Adaptation by Entropy Minimization", ICLR 2021, arXiv 2006.10726.
  """
  logits = read_logits(logits, masked=True)
  return 0 - logspace.negative_entropy(logits)[..., 0]  # never -0


def vat(
  predict: Callable[[Array], Array],
  x: ArrayLike,
  direction: ArrayLike,
  *,
  eps: Scalar = 6.0,
  power: int = 1,
) -> Array:
  r"""Virtual adversarial loss: the divergence under the worst small change.

  .. math:: \ell = KL(p(x) \,\|\, p(x + \epsilon d)),\qquad
    d \propto J^\top (\mathrm{diag}\, p - p p^\top) J d

  with p(x) and d held fixed and J the derivative of the logits by x: the power
  method on the Hessian of the divergence, exactly. Published code differences
  the divergence over a step xi, of which this is the limit for xi to 0.

  Each example has a direction of its own, whoever is beside it in the batch,
  and however sure its prediction is. Where the prediction does not depend on x
  (at first order), the direction stays what it was.

  Args:
    predict: `x [b, ...] -> logits [b, c]`, deterministic, each row of its own
      input alone. It is differentiated in forward and reverse mode.
    x: [b, ...] floating-point.
    direction: like x, where d starts: noise of a normal distribution. It is
      scaled to length 1 for each example.
    eps: > 0, the length of the change; 6 in LLP-VAT.
    power: >= 0 steps of the power method; 0 takes `direction` as it is.

  Returns:
    [b], at least float32, >= 0 up to rounding.

  Raises:
    TypeError: if `x` or `direction` is not floating-point.
    ValueError: if `direction` is not like `x`, the logits are not [b, c], or a
      number is out of range.

  >>> x, w = jnp.array([[1., 0.]]), jnp.array([[0., 0.], [0., 3.]])
  >>> loss = vat(lambda x: x @ w, x, jnp.array([[.9, .1]]), eps=.1)
  >>> round(float(loss[0]), 4)  # only the second input counts: .1 (3 .1)^2 / 8
  0.0112

  Reference: Miyato et al., "Virtual Adversarial Training: A Regularization
  Method for Supervised and Semi-Supervised Learning", TPAMI 2018, arXiv
  1704.03976; for label proportions Tsai, Lin, "Learning from Label Proportions
  with Consistency Regularization", ACML 2020, arXiv 1910.13188.
  """
  x, direction = read_floats('x', x), read_floats('direction', direction)
  check(
    direction.shape == x.shape and x.ndim >= 1,
    f'direction must have the shape of x, {x.shape}, got {direction.shape}',
  )
  check_range('eps', eps, 0, open_low=True)
  check(power >= 0, f'power must be >= 0, got {power}')
  logits, pull = jax.vjp(predict, x)
  check(
    logits.shape[:-1] == x.shape[:1],
    f'predict must give logits [b, c] with b = {len(x)}, got {logits.shape}',
  )
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  d = _unit_rows(direction.astype(dtype))
  for _ in range(power):
    _, change = jax.jvp(predict, (x,), (d.astype(x.dtype),))
    slope = _fisher(read_logits(logits), change)
    (turned,) = pull(slope.astype(logits.dtype))
    d = _unit_rows(turned.astype(dtype), d)
  step = jnp.asarray(eps, dtype) * jax.lax.stop_gradient(d)
  return kl_consistency(predict((x + step).astype(x.dtype)), logits)


def _unit_rows(d: Array, otherwise: Array | float = 0) -> Array:
  """Rows [b, ...] of length 1, however small; `otherwise` where they are 0."""
  axes = tuple(range(1, d.ndim))
  largest = jnp.max(jnp.abs(d), axis=axes, keepdims=True, initial=0)
  some = largest > 0
  d = d / jnp.where(some, largest, 1)
  norm = jnp.sqrt(jnp.sum(d * d, axis=axes, keepdims=True))
  return jnp.where(some, d / jnp.where(some, norm, 1), otherwise)


def _fisher(logits: Array, change: Array) -> Array:
  """(diag p - p p^T) change [b, c], up to a positive factor for each row.

  In units of the second largest probability, and with the largest's entry from
  the rule that all add up to 0: the matrix of a sure prediction is smaller than
  the rounding of `p * (change - sum(p * change))`, and then than any number.
  """
  log_p, top = logspace.log_probs(logits), logspace.top_class(logits)
  change = change.astype(logits.dtype)
  is_top = _labels.one_hot(top, logits) > 0
  others = jnp.where(is_top, -jnp.inf, log_p)
  others = jnp.exp(others - jnp.max(others, axis=-1, keepdims=True))
  change = change - logspace.take(change, top)
  mean = jnp.sum(jnp.exp(log_p) * change, axis=-1, keepdims=True)
  slope = others * (change - mean)
  slope = jnp.where(is_top, -jnp.sum(slope, axis=-1, keepdims=True), slope)
  largest = jnp.max(jnp.abs(slope), axis=-1, keepdims=True)
  return slope / jnp.where(largest > 0, largest, 1)


def _like(x: ArrayLike, logits: Array, name: str) -> Array:
  """Checks an array [..., c] beside the logits; at least float32."""
  x = jnp.asarray(x)
  check(
    x.shape == logits.shape,
    f'{name} must have the shape of logits, {logits.shape}, got {x.shape}',
  )
  x = read_floats(name, x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# Differentiating through clip(softmax) is slow on CPU; the rule below is the
# same gradient in one pass. A jvp rule rather than a vjp one, because the meta
# methods differentiate losses forward.
@jax.custom_jvp
def _log_one_minus(logits: Array, targets: Array, clip: Array) -> Array:
  p = jnp.clip(logspace.probs(logits), clip, 1 - clip)
  return jnp.log(_remainder(targets, p))


def _remainder(targets: Array, p: Array) -> Array:
  tiny = jnp.finfo(p.dtype).eps
  return jnp.maximum(1 - jnp.sum(targets * p, axis=-1), tiny)


@_log_one_minus.defjvp
def _log_one_minus_jvp(primals, tangents):
  logits, targets, clip = primals
  p = logspace.probs(logits)
  # As a factor: a sum over a `where` takes XLA twice as long on CPU.
  inside = ((p >= clip) & (p <= 1 - clip)).astype(p.dtype)
  clipped = jnp.clip(p, clip, 1 - clip)
  remainder = _remainder(targets, clipped)
  mass = targets * p * inside
  total = logspace.unfused(jnp.sum(mass, axis=-1, keepdims=True))
  slope = p * total - mass
  d = jnp.sum(slope * tangents[0], axis=-1) / remainder
  return jnp.log(remainder), d


def _read_sop(logits: Array, u: ArrayLike, v: ArrayLike) -> tuple[Array, Array]:
  """Checks u and v: [..., 1] and [..., c] in the dtype of the logits."""
  u, v = jnp.asarray(u), _like(v, logits, 'v')
  check(
    u.shape == logits.shape[:-1],
    f'u must have shape {logits.shape[:-1]}, got {u.shape}',
  )
  return u[..., None].astype(logits.dtype), v.astype(logits.dtype)


def _sop_noise(
  logits: Array, label: _labels.Label, u: Array, v: Array
) -> tuple[Array, Array]:
  """U and V, [..., c]."""
  y = _labels.soft(label, logits)
  return _unit(u * u * y), _unit(v * v * (1 - y))


def _sop_square(
  logits: Array, label: _labels.Label, u: Array, v: Array
) -> Array:
  """| h + U - V - y |^2, [...]."""
  top = logspace.top_class(logits)
  if label.valid is None:
    add, remove = _sop_noise(logits, label, u, v)
    noise = _labels.one_hot(top, logits) + add - remove - label.values
    return jnp.sum(jnp.square(noise), axis=-1)
  # h and y differ from 0 at one class each: a plain sum of squares, corrected
  # there, which is many times faster on CPU than comparing every class.
  miss = (top != label.values).astype(logits.dtype)
  at_label, at_top = (
    _unit(jnp.square(logspace.take(v, k))) for k in (label.values, top)
  )
  rest = jnp.sum(jnp.square(_unit(v * v)), axis=-1, keepdims=True)
  rest = rest - jnp.square(at_label) + miss * (1 - 2 * at_top)
  return (jnp.square(_unit(u * u) - miss) + rest)[..., 0]


def _unit(x: Array) -> Array:
  """Clips x >= 0 to [0, 1]."""
  return jnp.where(x > 1, 1, x)


@jax.custom_jvp
def _raised_sum(logits: Array, shift: Array, clip: Array) -> Array:
  """The sum of max(p_k + shift_k, clip), [..., 1]; for the rule see above."""
  p = logspace.probs(logits)
  return jnp.sum(jnp.maximum(p + shift, clip), axis=-1, keepdims=True)


@_raised_sum.defjvp
def _raised_sum_jvp(primals, tangents):
  logits, shift, clip = primals
  p = logspace.probs(logits)
  inside = p + shift > clip
  raised = jnp.where(inside, p + shift, clip)
  live = jnp.where(inside, p, 0)
  total = logspace.unfused(jnp.sum(live, axis=-1, keepdims=True))
  slope = live - p * total
  d = slope * tangents[0] + jnp.where(inside, tangents[1], 0)
  return tuple(jnp.sum(x, axis=-1, keepdims=True) for x in (raised, d))
