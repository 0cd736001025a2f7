"""The small networks of the papers, as plain `Model`s.

Weights are drawn as PyTorch's `Linear` draws them, uniformly within 1 over the
root of the inputs, where the papers' code leaves it at that.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jnl.base import (
  AXIS,
  Array,
  Inputs,
  Key,
  Model,
  Outputs,
  Params,
  Stats,
  axis_is_bound,
  check,
  global_sum,
)
from jnl.steps import training_pass

FEATURES = 19
"""Of STORM, see `storm_features`."""
VARIANCE_FLOOR = 1e-5
"""Added to the variances of a batch, as PyTorch's normalization does."""


def weigher(hidden: int = 100) -> Model:
  r"""Meta-Weight-Net: from the loss of an example to its weight.

  .. math:: v(\ell) = \sigma(b_2 + w_2^\top \mathrm{relu}(b_1 + w_1 \ell))

  Args:
    hidden: width of the hidden layer.

  Returns:
    A model of losses [b, 1], whose logits are [b, 1]; `weigh` takes the
    sigmoid. Its parameters are `{'hidden', 'out'}`, each with `kernel` [in,
    out] and `bias`.

  Reference: Shu, Xie, Yi, Zhao, Zhou, Xu, Meng, "Meta-Weight-Net: Learning an
  Explicit Mapping For Sample Weighting", NeurIPS 2019, arXiv 1902.07379.
  """

  def init(key: Key) -> tuple[Params, Stats]:
    first, last = jax.random.split(key)
    return {
      'hidden': _dense(first, 1, hidden),
      'out': _dense(last, hidden, 1),
    }, {}

  def apply(
    params: Params, stats: Stats, x: Inputs, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    del keys, train
    h = jax.nn.relu(_apply(params['hidden'], x))
    return Outputs(_apply(params['out'], h), h), stats

  return Model(init, apply)


def weigh(
  model: Model,
  params: Params,
  stats: Stats,
  losses: Array,
  keys: Key | None,
  mask: Array | None = None,
) -> tuple[Array, Stats]:
  """What a weigher makes of losses.

  Args:
    model: such as `weigher()`.
    params: its parameters.
    stats: its statistics.
    losses: [b].
    keys: [b], for a weigher that is random.
    mask: [b], 0 for examples that are not there; None if all are.

  Returns:
    Weights [b] in (0, 1), and the new statistics.
  """
  mask = jnp.ones(losses.shape, bool) if mask is None else mask
  outputs, stats = training_pass(
    model, params, stats, losses[:, None], keys, mask
  )
  check(
    outputs.logits.shape == (*losses.shape, 1),
    f'a weigher must have logits [b, 1], got {outputs.logits.shape}',
  )
  return jax.nn.sigmoid(outputs.logits[:, 0]), stats


def rescaler(num_classes: int, features: int = FEATURES) -> Model:
  r"""STORM's weigher: a network for each class, normalized over the batch.

  .. math:: w_i = \mathrm{softmax}(\mathrm{bn}(W_2\, \mathrm{relu}(
    \mathrm{bn}(W_1 f_i))))_1

  with the W of the class that i is labeled with. The statistics of each network
  are those of the whole batch, whatever the labels (so weights are spread from
  the first step on), over all devices, without the examples of weight 0. Biases
  would go with the means; without effect, Adam would move them by the signs of
  roundings.

  Args:
    num_classes: c.
    features: number of features.

  Returns:
    A model of `(features [b, f], labels [b] int, mask [b])`, whose logits are
    [b, 2]; `rescale` takes the softmax. Its parameters are the kernels
    `{'hidden' [c, f, f], 'out' [c, f, 2]}`. A label out of [0, c) makes the
    logits NaN.

  Raises:
    ValueError: when applied to a batch of one.

  Reference: Heck, Geishauser, Lubis, van Niekerk, Feng, Lin, Ruppik, Vukovic,
  Gasic, "Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss
  Rescaling", AAAI 2025, arXiv 2412.12955.
  """

  def init_one(key: Key) -> Params:
    first, last = jax.random.split(key)
    return {
      'hidden': _dense(first, features, features)['kernel'],
      'out': _dense(last, features, 2)['kernel'],
    }

  def init(key: Key) -> tuple[Params, Stats]:
    return jax.vmap(init_one)(jax.random.split(key, num_classes)), {}

  def apply(
    params: Params, stats: Stats, x: Inputs, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    del keys, train
    values, labels, mask = x
    _check_batch_size(values)

    def one(params: Params) -> tuple[Array, Array]:
      h = jax.nn.relu(_normalize(values @ params['hidden'], mask))
      return _normalize(h @ params['out'], mask), h

    logits, hidden = jax.vmap(one)(params)  # [c, b, ...]
    return Outputs(_of_class(logits, labels), _of_class(hidden, labels)), stats

  return Model(init, apply)


def rescale(
  model: Model,
  params: Params,
  stats: Stats,
  features: Array,
  labels: Array,
  mask: Array,
  keys: Key | None = None,
) -> tuple[Array, Stats]:
  """What a rescaler makes of features.

  Args:
    model: such as `rescaler(num_classes)`.
    params: its parameters.
    stats: its statistics.
    features: [b, 19].
    labels: [b] int.
    mask: [b], 0 for examples that are not there.
    keys: [b], for a rescaler that is random.

  Returns:
    Weights [b] in (0, 1), and the new statistics.
  """
  x = (features, labels, mask)
  outputs, stats = training_pass(model, params, stats, x, keys, mask)
  logits = outputs.logits
  check(
    logits.shape == (labels.shape[0], 2),
    f'a rescaler must have logits [b, 2], got {logits.shape}',
  )
  # The softmax of two, without its cancellation.
  return jax.nn.sigmoid(logits[:, 1] - logits[:, 0]), stats


def corrector(
  num_features: int,
  num_classes: int,
  *,
  embedding: int = 64,
  hidden: Sequence[int] = (128, 128),
  skip: bool = False,
) -> Model:
  r"""MLC's network: from features and a label to a better label.

  .. math:: q = \mathrm{softmax}(\mathrm{net}([h, e_y])) \qquad\text{or}\qquad
    q = (1 - a)\, \mathrm{softmax}(\cdot) + a\, 1_y

  with tanh between the layers; a is a sigmoid of one more output.

  Args:
    num_features: d.
    num_classes: c.
    embedding: size of the vector e_y of each label.
    hidden: widths; two of 128 in the official code.
    skip: with the gate a, which the final version of that code does not have.

  Returns:
    A model of `(features [b, d], labels [b] int)`, whose logits [b, c] are log
    q. Its parameters are `{'embedding' [c, e], 'layers'}`.

  Reference: Zheng, Awadallah, Dumais, "Meta Label Correction for Noisy Label
  Learning", AAAI 2021, arXiv 1911.03809.
  """
  widths = (num_features + embedding, *hidden, num_classes + int(skip))

  def init(key: Key) -> tuple[Params, Stats]:
    first, *rest = jax.random.split(key, len(widths))
    bound = jnp.sqrt(6 / (num_classes + embedding))
    table = jax.random.uniform(
      first, [num_classes, embedding], minval=-bound, maxval=bound
    )
    layers = [
      {
        'kernel': jax.nn.initializers.glorot_normal()(key, (n, m), jnp.float32),
        'bias': jnp.zeros(m),
      }
      for key, n, m in zip(rest, widths[:-1], widths[1:], strict=True)
    ]
    return {'embedding': table, 'layers': layers}, {}

  def apply(
    params: Params, stats: Stats, x: Inputs, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    del keys, train
    features, labels = x
    h = jnp.concatenate([features, params['embedding'][labels]], axis=-1)
    *inner, last = params['layers']
    for layer in inner:
      h = jnp.tanh(_apply(layer, h))
    z = _apply(last, h)
    log_q = jax.nn.log_softmax(z[:, :num_classes])
    if skip:
      log_q = _gated(log_q, z[:, num_classes], labels)
    return Outputs(log_q, h), stats

  return Model(init, apply)


# --- the pieces --------------------------------------------------------------


def _dense(key: Key, inputs: int, outputs: int) -> Params:
  kernel, bias = jax.random.split(key)
  bound = inputs**-0.5
  return {
    'kernel': jax.random.uniform(
      kernel, [inputs, outputs], minval=-bound, maxval=bound
    ),
    'bias': jax.random.uniform(bias, [outputs], minval=-bound, maxval=bound),
  }


def _apply(params: Params, x: Array) -> Array:
  return x @ params['kernel'] + params['bias']


def _gated(log_q: Array, gate: Array, labels: Array) -> Array:
  """log((1 - a) q + a 1_y), a the sigmoid of the gate."""
  softened = log_q + jax.nn.log_sigmoid(-gate)[:, None]
  own = labels[:, None] == jnp.arange(log_q.shape[1])
  kept = jnp.logaddexp(softened, jax.nn.log_sigmoid(gate)[:, None])
  return jnp.where(own, kept, softened)


def _of_class(values: Array, labels: Array) -> Array:
  """The rows [b, ...] of `values` [c, b, ...] that the labels name."""
  index = labels.reshape(1, -1, *(1,) * (values.ndim - 2))
  # Negative labels would wrap: they are as wrong as those beyond c.
  index = jnp.where(index < 0, values.shape[0], index)
  return jnp.take_along_axis(
    values, index, axis=0, mode='fill', fill_value=jnp.nan
  )[0]


def _normalize(h: Array, mask: Array) -> Array:
  """Zero mean and unit variance over the batch of all devices."""
  w = (mask > 0).astype(h.dtype)[:, None]
  count = jnp.maximum(global_sum(jnp.sum(w)), 1)
  mean = global_sum(jnp.sum(w * h, axis=0)) / count
  centered = h - mean
  variance = global_sum(jnp.sum(w * centered**2, axis=0)) / count
  return centered * jax.lax.rsqrt(variance + VARIANCE_FLOOR)


def _check_batch_size(x: Array) -> None:
  devices = jax.lax.axis_size(AXIS) if axis_is_bound() else 1
  check(
    x.shape[0] * devices > 1,
    'x must hold at least two examples: the rescaler normalizes over the batch',
  )
