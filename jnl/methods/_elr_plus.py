"""ELR+: two networks, which regularize each other by averages of themselves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jnl import losses, ramps
from jnl.base import (
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Metrics,
  Model,
  Params,
  Scalar,
  State,
  Stats,
  Table,
  check,
  check_batch,
  global_mean,
  pack_rows,
  read_rows,
  shuffle_within,
  write_rows,
)
from jnl.methods._published import Case, Settings
from jnl.pseudo import one_hot
from jnl.steps import (
  each,
  each_optimizer,
  ema,
  from_loss,
  mix,
  mixup_ratio,
  model_keys,
  pair,
  training_pass,
)

NETWORK_TAG, AVERAGE_TAG = 1, 2
"""Tags of the keys of the two networks, and of their averages."""
RATIO_TAG, PARTNER_TAG = 1, 2
"""Tags of the keys of a network's mixup."""


class Taught(NamedTuple):
  """The memory of ELR+.

  Attributes:
    average: the moving averages of the two networks' parameters, stacked
      [2, ...].
    targets: [n, 2, c]; row [i, k] is what the average of the *other* network
      said of example i, averaged over time, by which network k is held; zeros
      at first.
  """

  average: Params
  targets: Table


def elr_plus(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  beta: Scalar = 0.7,
  lam: Scalar = 3.0,
  ramp_steps: Scalar = 0,
  average_rate: Callable[[Array], Scalar] = ramps.ema_rate,
  alpha: Scalar = 1.0,
  reweight_labels: bool = False,
  shards: int = 1,
) -> Method:
  r"""ELR+: two networks, averages of their weights, mixup, and ELR.

  The targets of a network are the running mean of what the average of the other
  one says of the examples as they are; it learns on mixed ones,

  .. math::
    t^k_i \leftarrow \beta t^k_i
      + (1 - \beta)\, \mathrm{softmax}\, f(x_i; \bar\theta^{3 - k}), \qquad
    (\tilde x, \tilde y, \tilde t)_i
      = r\, (x, y, t^k)_i + (1 - r)\, (x, y, t^k)_j

  .. math::
    L^k = \operatorname{mean}_i \left[ -\langle \tilde y_i, \log p_i \rangle
      + \lambda\, w(s) \log(1 - \langle \tilde t_i, p_i \rangle) \right], \qquad
    p_i = \mathrm{softmax}\, f(\tilde x_i; \theta^k)

  with r = max(u, 1 - u) for a u of Beta(alpha, alpha), one for a batch and
  network, j a partner within the shard, and w a ramp. Then

  .. math::
    \bar\theta^k \leftarrow a(s)\, \bar\theta^k + (1 - a(s))\, \theta^k

  s counts the steps, this one included. See `losses.elr_targets` (clip 0),
  `losses.elr_penalty` and `ramps.sigmoid_rampup`.

  As in the official code, an average has the batch statistics (and the dropout)
  of the batch that it speaks of, as in training, and these are thrown away: no
  statistics of its own are kept. Otherwise than there, both networks take a
  step on the same batch, each with its own mixture and partners. On one GPU the
  official code trains one of them for an epoch on batches of its own, then the
  other; on two, both at once, with averages of the epoch before. Averages begin
  as the networks themselves, there as others, which the low rates of the first
  steps forget at once.

  Args:
    model: the network; there are two of it, stacked.
    tx: the optimizer, of each.
    num_examples: n; batches carry `index` in [0, n).
    num_classes: c.
    beta: [0, 1), memory of the targets. The paper: .7 on CIFAR-10 with
      symmetric noise, .9 with asymmetric noise and on CIFAR-100.
    lam: >= 0, weight of the penalty. The paper: 3, 1, and 7 on CIFAR-100.
    ramp_steps: >= 0, in which the weight of the penalty rises by `ramps.
      sigmoid_rampup`; 40,000 in the official code on CIFAR-100.
    average_rate: s -> a in [0, 1], the share of the old average, for an int32
      s >= 1. By default that on CIFAR, which takes 40,000 steps to rise to
      .997: `functools.partial(ramps.ema_rate, length=...)` for shorter
      training. `ramps.ema_rate_warmup` is that on Clothing1M.
    alpha: > 0, of the mixup.
    reweight_labels: whether the mixed labels are weighed by the mixed targets,
      `losses.elr_plus_labels`. The official code does so if c is 100.
    shards: of the table of targets: `data_shards(n, batch_size)` for `fit`, 1
      in a loop of one's own.

  Returns:
    A method over batches of `x` (floating-point), `labels` ([b] int, or [b, c]
    soft), `weight` and `index`. Parameters are stacked, `state.extra` is a
    `Taught`, which `mislabeled` reads. `predict` has the mean of both networks'
    logits, as the official code on one GPU; the averages only teach. Metrics:
    `loss`, the sum of both; `cross_entropy`, `penalty`, means of both;
    `agreement`, the share of examples in whose likeliest class the targets of
    both agree; `average_rate`; and `unplaced`, see `base.unplaced`. Inside jit
    a label that is out of range (-1, or c) makes the loss NaN, and all that
    follow, unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`, or `average_rate` no function; at trace
      time if `x` is not floating-point.
    ValueError: if a number is out of range, or an array of a batch lacks or has
      another shape.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = elr_plus(model, optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.extra.targets.rows.shape, round(float(metrics['cross_entropy']), 3)
  ((1, 4, 2, 2), 0.693)

  Reference: Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning
  Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020, arXiv
  2007.00151. The ramps, the clip of p and the weighing of labels are in the
  official code; it is followed.
  """
  check((beta >= 0) & (beta < 1), f'beta must lie in [0, 1), got {beta}')
  check(lam >= 0, f'lam must not be negative, got {lam}')
  check(ramp_steps >= 0, f'ramp_steps must not be negative, got {ramp_steps}')
  check(alpha > 0, f'alpha must be positive, got {alpha}')
  both = pair(model)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    labels, weight = read_labels(batch, num_classes)
    targets = _new_targets(both, state, batch, key, beta)
    keys = jax.random.split(jax.random.fold_in(key, NETWORK_TAG))
    x, y, t = _mixed(keys, batch, labels, targets, alpha)
    y = losses.elr_plus_labels(y, t) if reweight_labels else y
    z, stats = _logits(model, params, state.stats, {**batch, 'x': x}, keys)
    cross_entropy, penalty = (
      global_mean(jnp.mean(values, axis=0), weight)
      for values in (losses.ce(z, y), losses.elr_penalty(z, t))
    )
    ramp = ramps.sigmoid_rampup(state.step + 1, ramp_steps)
    first, second = jnp.argmax(targets, axis=-1).T
    metrics = {
      'cross_entropy': cross_entropy,
      'penalty': penalty,
      'agreement': global_mean(first == second, weight),
    }
    table = write_rows(
      state.extra.targets, batch['index'], targets, where=weight > 0
    )
    # Twice the mean of both networks: each descends its own.
    loss = 2 * (cross_entropy + lam * ramp * penalty)
    return loss, Aux(stats, state.extra._replace(targets=table), metrics)

  plain = from_loss(loss_fn, both, each_optimizer(tx))

  def no_targets() -> Table:
    return pack_rows(jnp.zeros((num_examples, 2, num_classes)), shards)

  return _with_memory(plain, average_rate, no_targets)


def _with_memory(
  plain: Method,
  average_rate: Callable[[Array], Scalar],
  targets: Callable[[], Table],
) -> Method:
  """The method of a loss, with a `Taught` and averages after each step."""
  check(
    callable(average_rate),
    f'average_rate must be a function of the step, got {average_rate!r}',
    TypeError,
  )

  def init(key: Key) -> State:
    state = plain.init(key)
    return state._replace(extra=Taught(state.params, targets()))

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    new, metrics = plain.step(state, batch, key)
    rate = jnp.asarray(average_rate(new.step), jnp.float32)
    average = ema(new.extra.average, new.params, rate)
    new = new._replace(extra=new.extra._replace(average=average))
    return new, {**metrics, 'average_rate': rate}

  return plain._replace(init=init, step=step)


def read_labels(batch: Batch, num_classes: int) -> tuple[Array, Array]:
  """The labels of a batch as distributions, and its weight.

  Args:
    batch: with `x`, `labels`, `weight` and `index`.
    num_classes: c.

  Returns:
    [b, c], uniform in rows of weight 0; [b].

  Raises:
    ValueError: if an array lacks, or labels are neither [b] nor [b, c].
  """
  check_batch(batch, 'x', 'labels', 'weight', 'index')
  weight, shape = jnp.asarray(batch['weight']), jnp.shape(batch['labels'])
  check(
    shape in (weight.shape, (*weight.shape, num_classes)),
    f'labels must be [b] int, or [b, c] soft, with b as weight has it, '
    f'{weight.shape}, and c = {num_classes}; got shape {shape}',
  )
  labels = one_hot(batch['labels'], num_classes, where=weight > 0)
  return labels, weight


def _new_targets(
  both: Model, state: State, batch: Batch, key: Key, beta: Scalar
) -> Array:
  """The rows of the batch [b, 2, c], moved to what the other's average says."""
  keys = model_keys(jax.random.fold_in(key, AVERAGE_TAG), batch)
  said, _ = training_pass(
    both, state.extra.average, state.stats, batch['x'], keys, batch['weight']
  )
  of_the_other = jnp.moveaxis(said.aux.logits[::-1], 0, 1)
  old = read_rows(state.extra.targets, batch['index'])
  return losses.elr_targets(old, of_the_other, beta=beta, clip=0.0)


def _mixed(
  keys: Key, batch: Batch, labels: Array, targets: Array, alpha: Scalar
) -> tuple[Inputs, Array, Array]:
  """What each network learns from: inputs, labels, targets, all [2, b, ...]."""
  there = jnp.asarray(batch['weight']) > 0

  def of_one(key: Key, targets: Array) -> Any:
    own = batch['x'], labels, targets
    key_partners = jax.random.fold_in(key, PARTNER_TAG)
    partners = shuffle_within(key_partners, batch['index'], own, where=there)
    key_ratio = jax.random.fold_in(key, RATIO_TAG)
    return mix(mixup_ratio(key_ratio, alpha, major=True), own, partners)

  return jax.vmap(of_one)(keys, jnp.moveaxis(targets, 1, 0))


def _logits(
  model: Model, params: Params, stats: Stats, batch: Batch, keys: Key
) -> tuple[Array, Stats]:
  """Logits [2, b, c] of both networks, each of its own inputs."""

  def of_one(
    params: Params, stats: Stats, x: Inputs, key: Key
  ) -> tuple[Array, Stats]:
    keys = model_keys(key, batch)
    outputs, stats = training_pass(
      model, params, stats, x, keys, batch['weight']
    )
    return outputs.logits, stats

  return each(of_one, 2, params, stats, batch['x'], keys)


def _published(
  dataset: str, noise: str, rates: tuple[float, ...], **arguments: Any
) -> dict[Case, Settings]:
  ten = dataset == 'cifar10'
  file = 'cifar10_asym' if 'asymmetric' in noise else dataset
  settings = Settings(
    source=f'official code of arXiv 2007.00151, ELR_plus/config_{file}.json, '
    'for the rates of table 2',
    method='elr_plus',
    net='preact_resnet18',
    epochs=200 if ten else 250,
    batch_size=128,
    learning_rate=0.02,
    weight_decay=5e-4,
    drops=(150,) if ten else (200,),
    views='crop_flip',
    arguments=arguments,
  )
  return {(dataset, noise, rate): settings for rate in rates}


_SYMMETRIC, _ASYMMETRIC = (0.2, 0.5, 0.8, 0.9), (0.4,)
_HUNDRED = {
  'beta': 0.9, 'lam': 7.0, 'ramp_steps': 40_000, 'reweight_labels': True,
}  # fmt: skip
SETTINGS = {
  **_published('cifar10', 'symmetric_inclusive', _SYMMETRIC, beta=0.7, lam=3.0),
  **_published(
    'cifar10', 'cifar10_asymmetric_in_place', _ASYMMETRIC, beta=0.9, lam=1.0
  ),
  **_published('cifar100', 'symmetric_inclusive', _SYMMETRIC, **_HUNDRED),
  **_published('cifar100', 'cifar100_index_blocks', _ASYMMETRIC, **_HUNDRED),
}
"""By data set, noise and rate; symmetric noise was drawn in fixed counts."""
