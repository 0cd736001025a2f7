"""Two networks that choose for each other: Co-teaching, Decoupling, between.

A wrong label shows by its loss, until a network knows it by heart. The second
one, which errs elsewhere, did not see the same examples.
"""

from collections.abc import Callable, Sequence

from jax import lax
import jax.numpy as jnp
import optax

from jnl import losses, select
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Metrics,
  Model,
  Params,
  Scalar,
  State,
  check,
  check_batch,
  global_mean,
  global_sum,
)
from jnl.inputs import check_range
from jnl.methods._published import Case, Settings
from jnl.ramps import forget_rate
from jnl.steps import (
  check_losses,
  each_optimizer,
  from_loss,
  labels_of,
  model_keys,
  pair,
  training_pass,
)

LEAST = 0.1
"""The share of a batch that Decoupling divides by at least."""

Lesson = Callable[[Array, Array, Array, Array], tuple[Array, Metrics]]
"""`(logits [2, b, c], labels, weight [b], epoch []) -> (loss, metrics)`."""


def co_teaching(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  rate: Scalar = 0.2,
  ramp: Scalar = 10,
  exponent: Scalar = 1.0,
) -> Method:
  r"""Co-teaching: each network learns from the small losses of the other.

  .. math::
    L = \operatorname{mean}_{i \in S_2} \ell(z^1_i, y_i)
      + \operatorname{mean}_{i \in S_1} \ell(z^2_i, y_i), \qquad
    S_m = \text{the } k \text{ examples of smallest } \ell(z^m_i, y_i)

  with l the cross-entropy and k the whole part of (1 - R) times the number of
  examples in the batch, on all devices, and at least 1. R, the share that is
  left out, rises from 0 to `rate`, see `ramps.forget_rate`.

  Accuracy on digits after 100 epochs of 12 steps, 40% symmetric noise, 2 seeds
  (cross-entropy 68): with rate .4 and a ramp of 1, 10 or 30 epochs 92.8, 93.6
  and 93.6; with rate .5, which leaves out some clean labels too, 89.7, 96.5 and
  97.0. At 40% pair flips, where wrong labels are as many as right ones almost,
  rate .4 has 85.4 and .5 81.0.

  The official code divides both means by k once more (see `select.
  co_teaching`); it trains with Adam, which hardly feels it. With SGD it is k
  times the learning rate.

  Args:
    model: the network; there are two of it, with different parameters at first.
    tx: the optimizer of one network; each has its own.
    steps_per_epoch: of batches, n // batch_size; >= 1.
    rate: tau in [0, 1], what is left out in the end: the share of wrong labels.
    ramp: >= 0, epochs until then: what is left out before the networks know
      anything is left out by chance, and stays out.
    exponent: c > 0, see `ramps.forget_rate`.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`, [b] int or
    [b, c] soft labels. `state.params` are stacked, [2, ...], and `predict` has
    the mean of both logits, those of each in `aux`. Metrics: `loss`, the sum of
    both; `kept`, the share of examples that a network learns from; `agree`, the
    share on which both predict the same class. Inside jit a label that is out
    of range (-1, or c) makes the loss NaN, and all that follow, unless its
    weight is 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = co_teaching(
  ...   model, optax.sgd(0.1), steps_per_epoch=5, rate=0.5, ramp=0)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['kept'])
  0.5

  Reference: Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching: Robust
  Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
  arXiv 1804.06872.
  """
  check_ramp(rate, ramp)
  check_range('exponent', exponent, 0, open_low=True)

  def lesson(
    logits: Array, labels: Array, weight: Array, epoch: Array
  ) -> tuple[Array, Metrics]:
    forget = forget_rate(epoch, rate=rate, length=ramp, exponent=exponent)
    return _small_losses(logits, labels, weight, forget, weight > 0)

  return two_networks(model, tx, steps_per_epoch, lesson)


def co_teaching_plus(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  rate: Scalar = 0.2,
  warmup: Scalar = 20,
  ramp: Scalar = 10,
) -> Method:
  r"""Co-teaching+: Co-teaching where the two networks disagree.

  .. math::
    D = \{i : \arg\max z^1_i \ne \arg\max z^2_i\}, \qquad
    L = \operatorname{mean}_{i \in S_2} \ell(z^1_i, y_i)
      + \operatorname{mean}_{i \in S_1} \ell(z^2_i, y_i)

  with S the k examples of smallest loss among D, and k the whole part of
  1 - R times the size of D, at least 1. It keeps the networks different, which
  Co-teaching makes alike in the long run. The first `warmup` epochs are
  `co_teaching`.

  Means of the few that are left are noisy: SGD wants a smaller rate than with
  Co-teaching (seen: digits, batches of 50, rate .2, 30% against 95%).

  A batch on which both agree is one of `co_teaching`, and counts in the metric
  `fallback`. The official code takes such a batch whole at the beginning of
  each epoch, and not at all after it. The paper is followed where that code
  takes the softmax twice, which makes the loss a bounded one, and divides by k
  once more, as in `co_teaching`; warm-up is in the code alone.

  Args:
    model: the network; there are two of it. What starts alike never disagrees:
      parameters must be random at first, unlike those of `steps.linear`.
    tx: the optimizer of one network; each has its own.
    steps_per_epoch: of batches, n // batch_size; >= 1.
    rate: tau in [0, 1], what is left out in the end: the share of wrong labels.
    warmup: >= 0, epochs of Co-teaching. The code: 20 on CIFAR-10, 5 on
      CIFAR-100, 0 on MNIST.
    ramp: >= 0, epochs until R is `rate`, from the very beginning.

  Returns:
    As `co_teaching`, with the metric `fallback`: 1 for a batch after the
    warm-up on which both networks agree, else 0.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = co_teaching_plus(
  ...   model, optax.sgd(0.1), steps_per_epoch=5, warmup=0)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['agree']), float(metrics['fallback'])  # of zeros, they do
  (1.0, 1.0)

  Reference: Yu, Han, Yao, Niu, Tsang, Sugiyama, "How does Disagreement Help
  Generalization against Label Corruption?", ICML 2019, arXiv 1901.04215.
  """
  check_ramp(rate, ramp)
  check_range('warmup', warmup, 0)

  def lesson(
    logits: Array, labels: Array, weight: Array, epoch: Array
  ) -> tuple[Array, Metrics]:
    differ = select.disagreement(*logits) & (weight > 0)
    some, started = global_sum(jnp.sum(differ)) > 0, epoch >= warmup
    among = jnp.where(some & started, differ, weight > 0)
    forget = forget_rate(epoch, rate=rate, length=ramp)
    loss, metrics = _small_losses(logits, labels, weight, forget, among)
    fallback = jnp.float32(started & ~some)
    return loss, {**metrics, 'fallback': fallback}

  return two_networks(model, tx, steps_per_epoch, lesson)


def decoupling(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  steps_per_epoch: int,
  warmup: Scalar = 1,
) -> Method:
  r"""Decoupling: two networks learn where they disagree, and nowhere else.

  .. math::
    D = \{i : \arg\max z^1_i \ne \arg\max z^2_i\}, \qquad
    L = \sum_m \frac{\sum_{i \in D} \ell(z^m_i, y_i)}{\max(|D|, b / 10)}

  with l the cross-entropy: what both got right needs no step, and what both
  call wrong is no longer learned by heart. The first `warmup` epochs learn from
  all. A batch on which both agree teaches nothing, its loss is 0. That D
  counts as a tenth of the batch at least is in the official code and not in the
  paper, which collects a whole batch of disagreement.

  Where they disagree it learns wrong labels too: what is wrong is learned more
  slowly, not left out; see `co_teaching_plus` for what came of it.

  Args:
    model: the network; there are two of it. What starts alike never disagrees:
      parameters must be random at first, unlike those of `steps.linear`.
    tx: the optimizer of one network; each has its own.
    steps_per_epoch: of batches, n // batch_size; >= 1.
    warmup: >= 0, epochs of learning from all; the official code counts steps.

  Returns:
    As `co_teaching`. The metric `kept` is 1 - `agree` after the warm-up.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = decoupling(model, optax.sgd(0.1), steps_per_epoch=5, warmup=0)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['agree']), float(metrics['loss'])  # of zeros, they do
  (1.0, 0.0)

  Reference: Malach, Shalev-Shwartz, "Decoupling 'when to update' from 'how to
  update'", NeurIPS 2017, arXiv 1706.02613.
  """
  check_range('warmup', warmup, 0)

  def lesson(
    logits: Array, labels: Array, weight: Array, epoch: Array
  ) -> tuple[Array, Metrics]:
    differ = select.disagreement(*logits) | (epoch < warmup)
    loss, metrics = learned_from(
      _cross_entropies(logits, labels, weight), (differ, differ), weight
    )
    share = global_mean(differ, weight)
    return loss * jnp.minimum(share / LEAST, 1), metrics

  return two_networks(model, tx, steps_per_epoch, lesson)


# --- what the methods share ---------------------------------------------------


def check_ramp(rate: Scalar, ramp: Scalar) -> None:
  """Raises unless this is a share to leave out, and a length to get there."""
  check_range('rate', rate, 0, 1)
  check_range('ramp', ramp, 0)


def two_networks(
  model: Model,
  tx: optax.GradientTransformation,
  steps_per_epoch: int,
  lesson: Lesson,
) -> Method:
  """Two networks on the same batches, with an optimizer each.

  Args:
    model: one network.
    tx: its optimizer.
    steps_per_epoch: of batches; the epoch is `state.step` divided by it.
    lesson: what they learn from their logits. `agree` is reported beside its
      metrics.

  Returns:
    The method.
  """
  both = pair(model)
  check(
    steps_per_epoch >= 1,
    f'steps_per_epoch must be at least 1, got {steps_per_epoch}',
  )

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    weight = jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      both, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    logits, epoch = outputs.aux.logits, state.step // steps_per_epoch
    loss, metrics = lesson(logits, labels_of(batch), weight, epoch)
    agree = global_mean(~select.disagreement(*logits), weight > 0)
    return loss, Aux(stats, metrics={**metrics, 'agree': agree})

  return from_loss(loss_fn, both, each_optimizer(tx))


def how_many(among: Array, forget: Scalar) -> Array:
  """k, the whole part of (1 - forget) of `among`, on all devices; at least 1.

  Args:
    among: [b] bool.
    forget: the share that is left out.

  Returns:
    [], a whole number: of what misses one by rounding, that one.

  >>> float(how_many(jnp.ones(10, bool), jnp.float32(0.6)))  # not 3.9999998
  4.0
  """
  count = global_sum(jnp.sum(among))
  return jnp.maximum(jnp.floor((1 - forget + 1e-6) * count), 1)


def _small_losses(
  logits: Array, labels: Array, weight: Array, forget: Array, among: Array
) -> tuple[Array, Metrics]:
  """Each learns from the small losses of the other, of those in `among`."""
  ce = _cross_entropies(logits, labels, weight)
  k = how_many(among, forget)
  one, two = lax.stop_gradient(ce)
  masks = select.co_teaching(one, two, k, where=among)
  return learned_from(ce, masks, weight)


def _cross_entropies(logits: Array, labels: Array, weight: Array) -> Array:
  """[2, b]."""
  ce = jnp.stack([losses.ce(z, labels) for z in logits])
  check_losses(ce[0], weight)
  return ce


def learned_from(
  values: Array, masks: Sequence[Array], weight: Array
) -> tuple[Array, Metrics]:
  """The sum of the means of what is learned from, and the share of it.

  Args:
    values: losses, [m, b].
    masks: m of [b] bool, what was chosen. NaN, which is never a small loss, is
      learned from as well, so that it shows.
    weight: [b].

  Returns:
    [], and the metric `kept`.
  """
  chosen = jnp.stack(masks) | jnp.isnan(values)
  means = [
    global_mean(values[m], weight * chosen[m]) for m in range(len(masks))
  ]
  kept = global_mean(chosen.T, weight > 0)
  return sum(means[1:], means[0]), {'kept': kept}


# --- published settings -------------------------------------------------------


def settings_of(
  method: str, source: str, net: str, falls_from: int, **arguments: float
) -> Settings:
  """What the code of Co-teaching, Co-teaching+ and JoCoR has in common.

  Args:
    method: its name.
    source: whose code.
    net: the network.
    falls_from: the epoch from which the learning rate falls.
    **arguments: of the method, but for `ramp`.

  Returns:
    The settings.
  """
  return Settings(
    source=f'{source}; Adam has its first decay at .1 where the rate falls',
    method=method,
    net=net,
    epochs=200,
    batch_size=128,
    learning_rate=1e-3,
    adam=True,
    falls_from=falls_from,
    views='none',
    arguments={'ramp': 10, **arguments},
  )


def _published(
  dataset: str,
  method: str,
  source: str,
  net: str,
  falls_from: int = 80,
  **arguments: float,
) -> dict[Case, Settings]:
  source += ', which divides the loss by k once more'
  return {
    (dataset, noise, rate): settings_of(
      method, source, net, falls_from, rate=rate, **arguments
    )
    for noise, rate in (
      ('symmetric', 0.2), ('symmetric', 0.5), ('pair_flip', 0.45),
    )
  }  # fmt: skip


_OURS = (
  'co_teaching',
  'code of arXiv 1804.06872 (net: the nearest to its CNN of 9 layers)',
  'cnn8',
)
SETTINGS = {
  **_published('mnist', *_OURS),
  **_published('cifar10', *_OURS),
  **_published('cifar100', *_OURS, falls_from=100),
}
"""By data set, noise and rate. With Adam, a loss divided by k is much the same.

Of an epoch of MNIST the code takes the first 401 of 468 batches.
"""

_PLUS = 'co_teaching_plus', 'code of arXiv 1901.04215 (net: the nearest to '
PLUS_SETTINGS = {
  **_published(
    'mnist', _PLUS[0], _PLUS[1] + 'its one hidden layer)', 'mlp', warmup=0
  ),
  **_published(
    'cifar10',
    _PLUS[0],
    _PLUS[1] + 'its convolutions of 6 and 16 channels)',
    'strided_cnn',
    warmup=20,
  ),
  **_published(
    'cifar100', _PLUS[0], _PLUS[1] + 'its 6 convolutions)', 'cnn8', warmup=5
  ),
}
"""By data set, noise and rate; it also takes the softmax twice."""
