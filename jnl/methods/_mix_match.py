"""MixMatch: guesses sharpened, and everything mixed with everything."""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

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
)
from jnl.inputs import check_range
from jnl.methods._elr_plus import read_labels
from jnl.methods._mixing import (
  RATIO_TAG,
  mixed_losses,
  mixed_views,
  probs_of_views,
)
from jnl.methods._published import few_labels
from jnl.methods._weak_strong import correct_of, read_batch
from jnl.pseudo import co_guess
from jnl.ramps import linear_rampup
from jnl.steps import apply_views, from_loss, mixup_ratio, model_keys


class _Numbers(NamedTuple):
  """The hyperparameters of a step."""

  lam: Scalar
  ramp: Scalar
  temperature: Scalar
  alpha: Scalar


def mix_match(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  lam: Scalar = 75.0,
  ramp: Scalar = 16_000,
  temperature: Scalar = 0.5,
  alpha: Scalar = 0.75,
) -> Method:
  r"""Few labels: guesses of two views, sharpened, are mixed with all others.

  .. math::
    t_i = y_i \text{ if labeled, else }
      \mathrm{sharpen}\left(\tfrac12 (p_i + p'_i), T\right)

  with p and p' of the views `x` and `x_strong`, without gradient. In each view
  an example is mixed with a partner j of either kind, and counts as what it was
  itself:

  .. math::
    \bar x_i = r x_i + (1 - r) x_j, \quad \bar t_i = r t_i + (1 - r) t_j, \quad
    r = \max(r', 1 - r'),\ r' \sim \mathrm{Beta}(\alpha, \alpha)

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[
          -\langle \bar t_i, \log \bar p_i \rangle \right]
      + \lambda(s) \operatorname{mean}_{\text{unlabeled}} \left[
          \lVert \bar p_i - \bar t_i \rVert^2 / c \right]

  where lambda(s) rises from 0 to `lam` on a line in `ramp` steps.

  What differs from the official code: guesses are made with the running batch
  statistics and without dropout, there in training mode. Labeled examples are
  learned by both views, there by one. Partners are drawn within a view, and
  within the shards of a batch.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer.
    lam: >= 0. The official scripts: 75 on CIFAR-10, 150 on CIFAR-100, 250 on
      SVHN.
    ramp: >= 0, steps; for short runs a part of them, such as .4.
    temperature: T > 0.
    alpha: > 0, of the Beta distribution.

  Returns:
    A method over batches of `x` and `x_strong`, floating-point, two views of
    one kind (the name is that of any second view), `labels` [b] int, `labeled`
    [b] bool, `weight` and `index`; what labels unlabeled rows have is not
    looked at. Or over unlabeled rows and a stream `l` of labeled ones, as
    `steps.join_labeled` takes them. Metrics: `loss`, and its terms `supervised`
    and `unsupervised` before lambda. If batches carry `truth` [b] int, for a
    report and nothing else, `correct` is the share of guesses that agree with
    it.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `x` is not
      floating-point or `labeled` not bool.
    ValueError: if a number is out of range, or at trace time, if a batch lacks
      an array or one is malformed.

  >>> from jnl.steps import linear
  >>> method = mix_match(linear(2, 2), optax.sgd(0.1), ramp=100)
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, -1]), 'labeled': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['loss', 'supervised', 'unsupervised']

  Reference: Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel,
  "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019,
  arXiv 1905.02249.
  """
  for name, value in (('lam', lam), ('ramp', ramp)):
    check_range(name, value, 0)
  for name, value in (('temperature', temperature), ('alpha', alpha)):
    check_range(name, value, 0, open_low=True)
  numbers = _Numbers(lam, ramp, temperature, alpha)
  return from_loss(functools.partial(_loss, model, numbers), model, tx)


def _loss(
  model: Model,
  numbers: _Numbers,
  params: Params,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  batch, present, missing = read_batch(batch, 'x_strong', state.extra)
  views, there = [batch['x'], batch['x_strong']], batch['weight'] > 0
  probs = probs_of_views(model, lax.stop_gradient(params), state.stats, views)
  guessed = co_guess(jnp.stack(probs), temperature=numbers.temperature)
  c = guessed.shape[-1]
  labels, _ = read_labels({**batch, 'weight': present}, c)
  targets = jnp.where((present > 0)[:, None], labels, guessed)
  targets = jnp.where(there[:, None], targets, 1 / c)

  ratio = mixup_ratio(
    jax.random.fold_in(key, RATIO_TAG), numbers.alpha, major=True
  )
  mixed, targets = mixed_views(
    key, ratio, batch['index'], views, targets, there
  )
  outputs, stats = apply_views(
    model, params, state.stats, mixed, model_keys(key, batch), batch['weight']
  )
  supervised, unsupervised = mixed_losses(
    outputs.logits, targets, present, missing
  )
  metrics = {
    'supervised': supervised,
    'unsupervised': unsupervised,
    **correct_of(batch, guessed, missing),
  }
  rising = numbers.lam * linear_rampup(state.step, numbers.ramp)
  return supervised + rising * unsupervised, Aux(stats, state.extra, metrics)


SETTINGS = few_labels(
  'mix_match',
  {'lam': 100.0, 'ramp': 0.4 * 2**20, 'alpha': 0.5},
  {'lam': 150.0, 'ramp': 0.4 * 2**20, 'alpha': 0.5},
  unlabeled=64,
)
"""The paper's own optimizer, Adam with a decay of its own, is not of these."""
