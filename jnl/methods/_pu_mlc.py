"""PU-MLC: several labels, of which some that hold are known, and no other."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Params,
  Scalar,
  State,
  check,
  check_batch,
  global_mean,
  shuffle_within,
)
from jnl.inputs import check_range
from jnl.logspace import is_zero
from jnl.methods._mixing import MIX_TAG, RATIO_TAG
from jnl.steps import apply_views, from_loss, mix, mixup_ratio, model_keys


class _Numbers(NamedTuple):
  """The hyperparameters of a step."""

  gamma: Scalar
  alpha: Scalar
  mixup: Scalar
  mixup_alpha: Scalar
  offset: Scalar


def pu_mlc(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  gamma: Scalar = 0.85,
  alpha: Scalar = 2.0,
  mixup: Scalar = 1.0,
  mixup_alpha: Scalar = 0.3,
  offset: Scalar = 1e-10,
) -> Method:
  r"""PU-MLC: labels that are not known to hold are unlabeled, not negative.

  .. math::
    L = \sum_k \left[ w_k \log \operatorname{mean}_i s_{ik}
      - \operatorname{mean}_{i \in P_k} \log s_{ik} \right]
      + \lambda \sum_k \operatorname{mean}_i \left[
        \log \bar t_{ik} - \log \sigma(\bar x_{ik}) \right]^2

  See `losses.pu_mlc` for the first term, which is of each label alone and needs
  no prior, and `losses.mixup_log_consistency` for the second: what is said of
  a mixture of two examples is the mixture of what is said of both, where a
  label that is known to hold counts as 1.

  What differs from the official code: there one half of a batch is mixed with
  the other, here every example with another one of its shard. With two labels
  of a rare kind in a batch the first term is noisy: batches are to be large.

  The mixed term costs a second pass, and on tables of features it gained
  nothing. Scores fall there as training goes on: choose the epoch. See
  experiments/positive_unlabeled.py.

  Args:
    model: the network; its logits [b, c] are log-odds of c labels, each a
      question of its own. The paper evaluates its average, with a decay of
      .991 (VOC) or .9997 (COCO): `teacher.averaged`.
    tx: its optimizer.
    gamma: >= 0, how little rare labels weigh; .55 on COCO.
    alpha: >= 0, of the temperature; 1 on COCO.
    mixup: lambda >= 0; 0 leaves the mixed pass out.
    mixup_alpha: > 0, of the Beta distribution.
    offset: >= 0, added in all logarithms; it bounds the squares.

  Returns:
    A method over batches of `x`, `positive` [b, c] bool, `weight` and `index`;
    `x` floating-point if it is mixed. `predict` has the log-odds as `logits`.
    Metrics: `loss`, and its terms `variational` and `consistency` before
    lambda, the latter 0 without the mixed pass.

  Raises:
    TypeError: if `model` is no `Model`; at trace time if `positive` is not
      bool, or `x` not floating-point.
    ValueError: if a number is out of range; at trace time, if a batch lacks an
      array or one is malformed.

  >>> from jnl.steps import linear
  >>> method = pu_mlc(linear(2, 3), optax.sgd(0.1))
  >>> batch = {'x': jnp.eye(2), 'positive': jnp.eye(2, 3, dtype=bool),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['consistency', 'loss', 'variational']

  Reference: Yuan, Zhang, Huang, "Positive Label Is All You Need for Multi-Label
  Classification", ICME 2024, arXiv 2306.16016.
  """
  for name, value in (
    ('gamma', gamma),
    ('alpha', alpha),
    ('mixup', mixup),
    ('offset', offset),
  ):
    check_range(name, value, 0)
  check_range('mixup_alpha', mixup_alpha, 0, open_low=True)
  numbers = _Numbers(gamma, alpha, mixup, mixup_alpha, offset)
  return from_loss(functools.partial(_loss, model, numbers), model, tx)


def _loss(
  model: Model,
  numbers: _Numbers,
  params: Params,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  check_batch(batch, 'x', 'positive', 'weight', 'index')
  weight, index = jnp.asarray(batch['weight']), batch['index']
  x, positive = batch['x'], jnp.asarray(batch['positive'])
  there, mixes = weight > 0, not is_zero(numbers.mixup)
  check(
    positive.ndim == 2 and weight.shape == positive.shape[:1],
    'positive must be [b, c] and weight [b], got shapes '
    f'{positive.shape} and {weight.shape}',
  )
  ratio = mixup_ratio(jax.random.fold_in(key, RATIO_TAG), numbers.mixup_alpha)
  key_pairs = jax.random.fold_in(key, MIX_TAG)
  views = [x]
  if mixes:
    partners = shuffle_within(key_pairs, index, x, where=there)
    views.append(mix(ratio, x, partners))
  keys = model_keys(key, batch)
  outputs, stats = apply_views(model, params, state.stats, views, keys, weight)
  wide = jnp.promote_types(outputs.logits.dtype, jnp.float32)
  scores = outputs.logits.astype(wide)
  own = scores[:, 0]
  variational = jnp.sum(
    losses.pu_mlc(
      own,
      positive,
      weight,
      gamma=numbers.gamma,
      alpha=numbers.alpha,
      offset=2 * numbers.offset,
    )
  )
  consistency = jnp.zeros_like(variational)
  if mixes:
    known = positive & there[:, None]
    log = jnp.where(known, 0, jax.nn.log_sigmoid(own))
    # The same draw as that of the inputs.
    others = shuffle_within(key_pairs, index, log, where=there)
    terms = losses.mixup_log_consistency(
      scores[:, 1], log, others, ratio, offset=numbers.offset
    )
    consistency = global_mean(jnp.sum(terms, axis=-1), weight)
  metrics = {'variational': variational, 'consistency': consistency}
  return variational + numbers.mixup * consistency, Aux(stats, (), metrics)
