"""Cross-entropy and what changes its target: smoothing, bootstrapping, mixing.

These losses are unbounded: they follow wrong labels as eagerly as right ones,
and get their robustness from the target (or, clipped logits, from the input).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jnl import inputs, logspace
from jnl.base import Array, Scalar
from jnl.inputs import check_range, read_weight
from jnl.losses._labels import expect, log_prob, read


def ce(logits: ArrayLike, labels: ArrayLike) -> Array:
  r"""Cross-entropy of the prediction against the label.

  .. math:: \ell(z, y) = -\log p_y,\qquad p = \mathrm{softmax}(z)

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.

  >>> ce(jnp.array([[0., 0.], [0., 9.]]), jnp.array([0, 1])).round(3).tolist()
  [0.6930000185966492, 0.0]
  """
  logits, label = read(logits, labels)
  return expect(-log_prob(logits, label), label)


def gls(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  rate: Scalar = -0.6,
  wa: Scalar = 0.0,
  wb: Scalar = 1.0,
) -> Array:
  r"""Generalized label smoothing: cross-entropy, with a rate below 0 too.

  .. math::
    \ell(z, y) = -(w_a + w_b (1 - r)) \log p_y
      - w_b\, r\, \frac1c \sum_k \log p_k

  A negative rate subtracts what smoothing adds, which the paper finds better
  the more labels are wrong; the loss is then unbounded below.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    rate: r <= 1. The official scripts sweep -8 to 0.8 and warm up with plain
      cross-entropy.
    wa: weight of the plain cross-entropy beside the smoothed one.
    wb: weight of the smoothed one.

  Returns:
    [...], at least float32.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if a hyperparameter is out of range.

  >>> z, y = jnp.array([[2., 0., 0.]]), jnp.array([0])
  >>> bool(gls(z, y, rate=-1.)[0] < gls(z, y, rate=0.)[0])
  True

  Reference: Wei, Liu, Liu, Niu, Sugiyama, Liu, "To Smooth or Not? When Label
  Smoothing Meets Noisy Labels", ICML 2022, arXiv 2106.04149.
  """
  check_range('rate', rate, high=1)
  check_range('wa', wa)
  check_range('wb', wb)
  logits, label = read(logits, labels)
  own = (wa + wb * (1 - rate)) * log_prob(logits, label)
  mean = logspace.mean_log_prob(logits)
  if logspace.may_be_zero(rate) or logspace.may_be_zero(wb):
    mean = logspace.bounded(mean)  # 0 times what is infinite for a masked class
  return expect(-own - wb * rate * mean, label)


def label_smoothing(
  logits: ArrayLike, labels: ArrayLike, *, smoothing: Scalar = 0.1
) -> Array:
  r"""Cross-entropy against a smoothed target.

  .. math:: \ell(z, y) = -(1 - s) \log p_y - \frac{s}{c} \sum_k \log p_k

  Some codebases report the Kullback-Leibler divergence to the smoothed target,
  which is smaller by the target's entropy, a constant.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    smoothing: s in [0, 1].

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `smoothing` is out of range.

  >>> z, y = jnp.array([[2., 0.]]), jnp.array([0])
  >>> bool(label_smoothing(z, y) == ce(z, jnp.array([[.95, .05]])))
  True

  Reference: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception
  Architecture for Computer Vision", CVPR 2016, arXiv 1512.00567.
  """
  check_range('smoothing', smoothing, 0, 1)
  return gls(logits, labels, rate=smoothing)


def bootstrap_soft(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  beta: Scalar = 0.95,
  clip: Scalar = 0.0,
) -> Array:
  r"""Soft bootstrapping: cross-entropy to the label mixed with the prediction.

  .. math:: \ell(z, y) = -\sum_k (\beta\, 1[k = y] + (1 - \beta)\, p_k) \log p_k

  The gradient also flows through p in the target, as in the official code.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    beta: weight of the label, in [0, 1].
    clip: probabilities inside the logarithm are raised to it, which stops the
      gradient below. Public implementations take 1e-7; the default keeps it.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `beta` or `clip` is out of range.

  >>> bootstrap_soft(jnp.zeros(2), jnp.array(0)).round(3).tolist()
  0.6930000185966492

  Reference: Reed, Lee, Anguelov, Szegedy, Erhan, Rabinovich, "Training Deep
  Neural Networks on Noisy Labels with Bootstrapping", ICLR 2015 workshop, arXiv
  1412.6596.
  """
  check_range('beta', beta, 0, 1)
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  own = logspace.floor(log_prob(logits, label), clip)
  if logspace.is_zero(clip):
    mean = logspace.negative_entropy(logits)
  else:
    log_p = logspace.log_probs(logits)
    terms = jnp.exp(log_p) * logspace.floor(log_p, clip)
    mean = jnp.sum(terms, axis=-1, keepdims=True)
  return expect(-beta * own - (1 - beta) * mean, label)


def bootstrap_hard(
  logits: ArrayLike, labels: ArrayLike, *, beta: Scalar = 0.8
) -> Array:
  r"""Hard bootstrapping: cross-entropy to the label mixed with the top class.

  .. math:: \ell(z, y) = -\beta \log p_y - (1 - \beta) \max_k \log p_k

  Where several classes are equally most probable the first is meant.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    beta: weight of the label, in [0, 1].

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `beta` is out of range.

  >>> z = jnp.array([0., 3.])
  >>> bool(bootstrap_hard(z, jnp.array(0)) < ce(z, jnp.array(0)))
  True

  Reference: Reed, Lee, Anguelov, Szegedy, Erhan, Rabinovich, "Training Deep
  Neural Networks on Noisy Labels with Bootstrapping", ICLR 2015 workshop, arXiv
  1412.6596.
  """
  check_range('beta', beta, 0, 1)
  logits, label = read(logits, labels)
  top = logspace.log_prob_at(logits, logspace.top_class(logits))
  return expect(-beta * log_prob(logits, label) - (1 - beta) * top, label)


def dynamic_bootstrap(
  logits: ArrayLike, labels: ArrayLike, guesses: ArrayLike, noisy_prob: Scalar
) -> Array:
  r"""Dynamic bootstrapping: the label mixed as its chance to be clean says.

  .. math:: \ell_i = -(1 - w_i) \log p_{y_i} - w_i \sum_k g_{ik} \log p_k

  M-DYR mixes this loss over two examples (with the logits of mixed inputs, see
  `mixup`), and adds `prior_mean_kl` over the batch.

  Args:
    logits: [..., c].
    labels: [...] int, or [..., c] soft.
    guesses: the network's own answer for the unmixed input: [...] int (the
      argmax: "hard"), or [..., c] (the softmax: "soft"). No gradient.
    noisy_prob: w in [0, 1], [...] or a scalar, the posterior probability that
      the label is wrong; the official code clips it to [1e-4, 1 - 1e-4].

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits`, `labels` or `guesses` are malformed.
    ValueError: if `noisy_prob` has another shape or is out of range.

  >>> z, y, guess = jnp.array([[1., 3.]]), jnp.array([0]), jnp.array([1])
  >>> bool(dynamic_bootstrap(z, y, guess, jnp.ones(1))[0] == ce(z, guess)[0])
  True

  Reference: Arazo, Ortego, Albert, O'Connor, McGuinness, "Unsupervised Label
  Noise Modeling and Loss Correction", ICML 2019, arXiv 1904.11238.
  """
  guesses = jax.lax.stop_gradient(guesses)
  own, other = _two_ce(logits, labels, guesses, 'guesses')
  weight = read_weight('noisy_prob', noisy_prob, own, 1)
  return (1 - weight) * own + weight * other


def mixup(
  logits: ArrayLike, labels: ArrayLike, partners: ArrayLike, ratio: Scalar
) -> Array:
  r"""Cross-entropy of mixed inputs against two labels.

  .. math:: \ell_i = -r_i \log p_{y_i} - (1 - r_i) \log p_{y'_i}

  Args:
    logits: [..., c], of the inputs r x + (1 - r) x'.
    labels: [...] int, or [..., c] soft.
    partners: y', the labels of x', like `labels`.
    ratio: r in [0, 1], a scalar or [...]; the paper draws one r ~ Beta(a, a)
      for each batch.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits`, `labels` or `partners` are malformed.
    ValueError: if `ratio` has another shape or is out of range.

  >>> z, y = jnp.array([[1., 3.]]), jnp.array([0])
  >>> bool(mixup(z, y, y, 0.3)[0] == ce(z, y)[0])
  True

  Reference: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk
  Minimization", ICLR 2018, arXiv 1710.09412.
  """
  own, other = _two_ce(logits, labels, partners, 'partners')
  weight = read_weight('ratio', ratio, own, 1)
  return weight * own + (1 - weight) * other


def _two_ce(
  logits: ArrayLike, labels: ArrayLike, others: ArrayLike, name: str
) -> tuple[Array, Array]:
  """Cross-entropy of both labels; the second are called `name`."""
  pairs = read(logits, labels), read(logits, others, name)
  own, other = (expect(-log_prob(z, y), y) for z, y in pairs)
  return own, other


def negative_learning(
  logits: ArrayLike, labels: ArrayLike, *, clip: Scalar = 0.0
) -> Array:
  r"""Negative learning: -log(1 - p_y) of a label that is said to be wrong.

  .. math:: \ell(z, \bar y) = -\log (1 - p_{\bar y})

  The paper draws the complementary label uniformly from the classes other than
  the given one (several for each example if there are many classes: broadcast
  the logits and add the losses up).

  Args:
    logits: [..., c].
    labels: complementary labels, [...] int, or [..., c] soft.
    clip: 1 - p is raised to it, which stops the gradient where the network is
      surely wrong. The public code takes 1e-5; the default keeps the gradient.

  Returns:
    [...], at least float32, >= 0.

  Raises:
    TypeError, ValueError: if `logits` or `labels` are malformed.
    ValueError: if `clip` is out of range.

  >>> negative_learning(jnp.array([0., -9e3]), jnp.array(0)).tolist()
  9000.0

  Reference: Kim, Yim, Yun, Kim, "NLNL: Negative Learning for Noisy Labels",
  ICCV 2019, arXiv 1908.07387.
  """
  check_range('clip', clip, 0, 1)
  logits, label = read(logits, labels)
  log_not_p = log_not(logits, log_prob(logits, label))
  return expect(-logspace.floor(log_not_p, clip), label)


def log_not(logits: Array, log_p: Array) -> Array:
  """log(1 - p) of one class: only the top class can need the other sum."""
  top = logspace.top_class(logits)
  others = jnp.where(top == jnp.arange(logits.shape[-1]), -jnp.inf, logits)
  shift, log_sum = logspace.shift_and_log_sum(logits)
  shift_others, log_sum_others = logspace.shift_and_log_sum(others)
  log_rest = (shift_others - shift) + (log_sum_others - log_sum)
  likely = log_p > -jnp.log(2.0)
  return jnp.where(
    likely, log_rest, jnp.log1p(-jnp.exp(jnp.where(likely, -1, log_p)))
  )


def clip_logits(
  logits: ArrayLike,
  *,
  tau: Scalar = 1.0,
  order: Scalar = 2.0,
  as_coded: bool = False,
) -> Array:
  r"""LogitClip: logits with their norm bounded, for any loss that follows.

  .. math:: z \cdot \min(1, \tau / \|z\|)

  Args:
    logits: [..., c].
    tau: the largest norm, > 0.
    order: of the norm, >= 1.
    as_coded: the official code gives logits longer than tau (their norm taken
      1e-7 larger) the norm 1 / tau, which is the paper's tau only for tau = 1.
      The default is the paper's form.

  Returns:
    [..., c], at least float32.

  Raises:
    TypeError, ValueError: if `logits` are malformed.
    ValueError: if `tau` or `order` is out of range.

  >>> clip_logits(jnp.array([3., 4.]), tau=10.).tolist()
  [3.0, 4.0]
  >>> clip_logits(jnp.array([3., 4.]), tau=1.).round(3).tolist()
  [0.6000000238418579, 0.800000011920929]

  Reference: Wei, Zhuang, Xie, Feng, Niu, An, Li, "Mitigating Memorization of
  Noisy Labels by Clipping the Model Prediction", ICML 2023, arXiv 2212.04055.
  """
  check_range('tau', tau, 0, open_low=True)
  check_range('order', order, 1)
  logits = inputs.read_logits(logits)
  norm = _norm(logits, order)
  if as_coded:
    norm = norm + 1e-7
  target = 1 / tau if as_coded else tau
  long = norm > tau
  return jnp.where(long, logits * (target / jnp.where(long, norm, 1)), logits)


def _norm(x: Array, order: Scalar) -> Array:
  """Norm over the classes [..., 1], scaled so that no power overflows."""
  x = jnp.abs(x)
  largest = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
  largest = jnp.where(largest > 0, largest, 1)
  total = jnp.sum(logspace.raise_to(x / largest, order), axis=-1, keepdims=True)
  return largest * logspace.raise_to(total, 1 / order)
