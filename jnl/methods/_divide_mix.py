"""DivideMix: two networks that divide the training set for each other."""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import (
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Model,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  Stats,
  Table,
  check,
  global_mean,
  pack_rows,
  read_rows,
  unpack_rows,
)
from jnl.inputs import check_range
from jnl.methods._elr_plus import read_labels
from jnl.methods._mixing import (
  RATIO_TAG,
  mixed_losses,
  mixed_views,
  probs_of_views,
)
from jnl.methods._published import Case, Settings
from jnl.pseudo import co_guess, co_refine
from jnl.ramps import linear_rampup
from jnl.select import clean_probability, gaussian_mixture
from jnl.steps import (
  apply_views,
  each,
  each_optimizer,
  from_loss,
  mixup_ratio,
  model_keys,
  pair,
)

ROUNDS = 10
"""Of EM, for a mixture."""


class Divided(NamedTuple):
  """The memory of DivideMix.

  Attributes:
    clean: [n, 2], for each network how far it trusts a label: P(the label is
      clean) by the losses of the other one; 1 before the first division.
    past: [n, averaged, 2], the scaled losses of both networks in the last
      epochs, the newest last; `()` if `averaged` is 1.
    rounds: [] int32, divisions so far.
    collapsed: [2] bool, the networks that trust all labels, since the last
      division had no two parts.
  """

  clean: Table
  past: PyTree
  rounds: Array
  collapsed: Array


class _Seen(NamedTuple):
  """What a refit knows of each example."""

  losses: Array  # [n, 2]
  there: Array  # [n]


class _Terms(NamedTuple):
  """What a loss is made of, []."""

  labeled: Array
  guessed: Array
  prior: Array


class _Numbers(NamedTuple):
  """The hyperparameters of a step; the lengths in epochs."""

  steps_per_epoch: int
  warmup: int
  lam: Scalar
  ramp: Scalar
  temperature: Scalar
  alpha: Scalar
  threshold: Scalar
  confidence_penalty: Scalar


def divide_mix(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  steps_per_epoch: int,
  warmup: int = 10,
  lam: Scalar = 25.0,
  ramp: Scalar = 16,
  temperature: Scalar = 0.5,
  alpha: Scalar = 4.0,
  threshold: Scalar = 0.5,
  averaged: int = 1,
  confidence_penalty: Scalar = 0.0,
  shards: int = 1,
) -> Method:
  r"""DivideMix: small losses keep their labels, large ones are unlabeled.

  Before each epoch a mixture of two Gaussians is fitted to the losses of each
  of two networks, and gives w, the probability that a label is clean, to the
  *other* one. For that network an example with w above `threshold` is labeled
  and the others are not:

  .. math::
    t_i = \mathrm{sharpen}(w_i y_i + (1 - w_i) \bar p_i, T)
      \text{ if labeled, else } \mathrm{sharpen}(\bar{\bar p}_i, T)

  with p-bar its own prediction, and p-double-bar the mean of both networks'.
  Each example is mixed with a partner j of either kind, and counts as what it
  was itself:

  .. math::
    x'_i = r x_i + (1 - r) x_j, \quad t'_i = r t_i + (1 - r) t_j, \quad
    r = \max(r', 1 - r'),\ r' \sim \mathrm{Beta}(\alpha, \alpha)

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[
          -\langle t'_i, \log p'_i \rangle \right]
      + \lambda(e) \operatorname{mean}_{\text{unlabeled}} \left[
          \lVert p'_i - t'_i \rVert^2 / c \right]
      + \mathrm{KL}(1 / c \,\Vert\, \operatorname{mean}_i p'_i)

  where lambda(e) rises from 0 to `lam` in the `ramp` epochs after the warm-up,
  step by step. The first `warmup` epochs are cross-entropy alone, and
  `confidence_penalty` times the negative entropy of predictions.

  With an array `x_strong`, a second view, predictions are means over both
  views, and each view is mixed and trained on; the official code has two views
  of one augmentation.

  What differs from the official code: both networks train in one step on one
  batch, where it trains one for an epoch, then the other. A batch holds labeled
  and unlabeled examples as they come, where it takes equally many of both and
  an epoch ends with the labeled ones, so that the mean prediction in the last
  term is of half of each. Guesses are made without dropout and with the running
  batch statistics of both networks; there, the network that learns guesses in
  training mode. Partners are drawn within a view, and one r serves both
  networks in a step. The mixture starts from a fixed place and does all of its
  10 rounds.

  A division without two parts (a mixture that has collapsed, or nobody above
  `threshold`) leaves all labels trusted in that epoch, w = 1. Where a batch has
  no labeled example, or no unlabeled one, that term is 0.

  Args:
    model: one network; two are trained.
    tx: the optimizer; each network has its own.
    num_examples: n; batches carry `index` in [0, n).
    num_classes: c.
    steps_per_epoch: n // batch size, >= 1.
    warmup: epochs of cross-entropy. The paper: 10 on CIFAR-10, 30 on CIFAR-100.
    lam: >= 0, the weight of unlabeled examples. The paper: 0 to 150, the more
      the noisier.
    ramp: >= 0, epochs.
    temperature: T > 0.
    alpha: > 0, of the Beta distribution.
    threshold: in [0, 1]. The paper: .6 for 90% noise.
    averaged: >= 1, the epochs over which losses are averaged for the mixture.
      The official code: 5 for 90% noise.
    confidence_penalty: >= 0. The official code: 1 for asymmetric noise.
    shards: of the tables: `data_shards(n, batch_size)` for `fit`, 1 in a loop
      of one's own.

  Returns:
    A method over batches of `x`, floating-point, `labels` [b] int, `weight`,
    `index` and perhaps `x_strong`. Parameters and statistics are stacked, [2,
    ...]; logits of `predict` are the mean of both networks'. `state.extra` is a
    `Divided`. Metrics: `loss`, the sum over both networks, and its terms
    `labeled`, `guessed` and `prior`; `clean`, the share of labeled examples,
    and `collapsed`, the share of networks that trust all, means of both;
    `unplaced`, see `base.unplaced`. Inside jit a label that is out of range
    (-1, or c) makes the loss NaN unless its weight is 0.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `x` is not
      floating-point.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = divide_mix(
  ...   model, optax.sgd(0.1), num_examples=4, num_classes=2, steps_per_epoch=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['clean']), float(metrics['guessed'])  # warming up
  (1.0, 0.0)

  Reference: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as
  Semi-supervised Learning", ICLR 2020, arXiv 2002.07394. Mixing is MixMatch's,
  see `pseudo.sharpen`.
  """
  numbers = _Numbers(
    *(steps_per_epoch, warmup, lam, ramp, temperature, alpha, threshold),
    confidence_penalty,
  )
  _check_numbers(numbers, averaged)

  def init_extra(key: Key) -> Divided:
    del key
    clean = pack_rows(jnp.ones((num_examples, 2)), shards)
    none = jnp.zeros((num_examples, averaged, 2))
    past = pack_rows(none, shards) if averaged > 1 else ()
    return Divided(clean, past, jnp.int32(0), jnp.zeros(2, bool))

  def update(state: State, tables: PyTree, key: Key) -> State:
    del key
    seen = _Seen(*(unpack_rows(table, num_examples) for table in tables))
    return state._replace(extra=_divide(seen, state.extra, threshold, shards))

  return from_loss(
    functools.partial(_loss, model, num_classes, numbers),
    pair(model),
    each_optimizer(tx),
    init_extra=init_extra,
    refit=Refit(
      functools.partial(_collect, model), update, lambda epoch: epoch >= warmup
    ),
  )


def _check_numbers(numbers: _Numbers, averaged: int) -> None:
  for name, count, least in (
    ('steps_per_epoch', numbers.steps_per_epoch, 1),
    ('warmup', numbers.warmup, 0),
    ('averaged', averaged, 1),
  ):
    check(count >= least, f'{name} must be at least {least}, got {count}')
  for name in ('lam', 'ramp', 'confidence_penalty'):
    check_range(name, getattr(numbers, name), 0)
  for name in ('temperature', 'alpha'):
    check_range(name, getattr(numbers, name), 0, open_low=True)
  check_range('threshold', numbers.threshold, 0, 1)


# --- the step -----------------------------------------------------------------


def _loss(
  model: Model,
  num_classes: int,
  numbers: _Numbers,
  params: Params,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  labels, weight = read_labels(batch, num_classes)
  index = batch['index']
  there, started = weight > 0, state.extra.rounds > 0
  views = [batch[name] for name in ('x', 'x_strong') if name in batch]
  guesses = _guesses(model, lax.stop_gradient(params), state.stats, views)
  clean = read_rows(state.extra.clean, index).T
  labeled = clean > numbers.threshold
  targets = _targets(guesses, labels, clean, labeled, numbers.temperature)
  targets = jnp.where(there[:, None], targets, 1 / num_classes)

  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2))
  key_ratio = jax.random.fold_in(key, RATIO_TAG)
  drawn = mixup_ratio(key_ratio, numbers.alpha, major=True)
  ratio = jnp.where(started, drawn, 1)
  mixed, targets = jax.vmap(mixed_views, (0, None, None, None, 0, None))(
    keys, ratio, index, views, targets, there
  )

  def one(
    params: Params, stats: Stats, key: Key, mixed: list[Inputs]
  ) -> tuple[Array, Stats]:
    outputs, stats = apply_views(
      model, params, stats, mixed, model_keys(key, batch), weight
    )
    return outputs.logits, stats

  logits, stats = each(one, 2, params, state.stats, keys, mixed)
  each_terms = jax.vmap(_terms, (0, 0, 0, None))
  terms = _weighed(
    jax.tree.map(jnp.sum, each_terms(logits, targets, labeled, weight)),
    jnp.sum(jax.vmap(_negative_entropy, (0, None))(logits, weight)),
    *(numbers, state.step, started),
  )
  metrics = {
    **terms._asdict(),
    'clean': global_mean(jnp.mean(labeled, axis=0), weight),
    'collapsed': jnp.mean(state.extra.collapsed),
  }
  return sum(terms, jnp.float32(0)), Aux(stats, state.extra, metrics)


def _guesses(
  model: Model, params: Params, stats: Stats, views: list[Inputs]
) -> Array:
  """What both networks predict of each view, [views, 2, b, c]."""

  def one(params: Params, stats: Stats) -> list[Array]:
    return probs_of_views(model, params, stats, views)

  return jnp.stack(each(one, 2, params, stats))


def _targets(
  guesses: Array, labels: Array, clean: Array, labeled: Array, t: Scalar
) -> Array:
  """What both networks are to learn, [2, b, c].

  Args:
    guesses: [views, 2, b, c].
    labels: [b, c].
    clean: [2, b].
    labeled: [2, b] bool.
    t: the temperature.
  """
  own = jnp.mean(guesses, axis=0)
  refined = co_refine(jnp.stack([labels] * 2), own, clean, temperature=t)
  guessed = co_guess(guesses.reshape(-1, *own.shape[1:]), temperature=t)
  return jnp.where(labeled[..., None], refined, guessed)


def _terms(
  logits: Array, targets: Array, labeled: Array, weight: Array
) -> _Terms:
  """The terms of one network, without their factors.

  Args:
    logits: [b, views, c].
    targets: [b, views, c].
    labeled: [b] bool.
    weight: [b].
  """
  rows = jnp.broadcast_to(weight[:, None], logits.shape[:-1])
  return _Terms(
    *mixed_losses(logits, targets, weight * labeled, weight * ~labeled),
    losses.prior_mean_kl(logits, rows),
  )


def _negative_entropy(logits: Array, weight: Array) -> Array:
  return -global_mean(losses.ce(logits, jax.nn.softmax(logits)), weight)


def _weighed(
  terms: _Terms, entropy: Array, numbers: _Numbers, step: Array, started: Array
) -> _Terms:
  """The terms as they are added up: in the warm-up cross-entropy alone."""
  epoch = step / numbers.steps_per_epoch
  lam = numbers.lam * linear_rampup(epoch - numbers.warmup, numbers.ramp)
  confident = jnp.where(started, 0, numbers.confidence_penalty)
  return _Terms(
    terms.labeled + confident * entropy,
    lam * terms.guessed,
    jnp.where(started, terms.prior, 0),
  )


# --- the division -------------------------------------------------------------


def _collect(model: Model, state: State, batch: Batch, key: Key) -> _Seen:
  del key

  def one(params: Params, stats: Stats) -> Array:
    outputs, _ = model.apply(params, stats, batch['x'], None, False)
    return losses.ce(outputs.logits, batch['labels'])

  own = each(one, 2, state.params, state.stats).T
  return _Seen(own, jnp.asarray(batch['weight']) > 0)


def _divide(
  seen: _Seen, old: Divided, threshold: Scalar, shards: int
) -> Divided:
  """Who is clean for each network, by the losses of the other one."""
  values, past = seen.losses, old.past
  if isinstance(past, Table):
    newest = _scaled(values, seen.there)[:, None]
    last = unpack_rows(past, len(values))[:, 1:]
    rows = jnp.concatenate([last, newest], axis=1)
    values = jnp.sum(rows, 1) / jnp.minimum(old.rounds + 1, rows.shape[1])
    past = pack_rows(rows, shards)

  def divide(values: Array) -> tuple[Array, Array]:
    # All rounds: where EM stops by itself a rounding decides, and another
    # number of devices would go another way.
    mixture = gaussian_mixture(
      values, mask=seen.there, num_iter=ROUNDS, tol=0.0
    )
    clean = clean_probability(mixture, values, mask=seen.there, monotone=False)
    whole = mixture.collapsed | ~jnp.any(clean > threshold)
    return jnp.where(whole, 1, clean), whole

  clean, collapsed = jax.vmap(divide, 1, (1, 0))(values[:, ::-1])
  return Divided(pack_rows(clean, shards), past, old.rounds + 1, collapsed)


def _scaled(values: Array, there: Array) -> Array:
  """Losses [n, 2], those that are there and finite from 0 to 1."""
  known = there[:, None] & jnp.isfinite(values)
  low = jnp.min(values, 0, where=known, initial=jnp.inf)
  span = jnp.max(values, 0, where=known, initial=-jnp.inf) - low
  scaled = (values - low) / jnp.where(span > 0, span, 1)
  return jnp.where(there[:, None], scaled, 0)


def _published(
  dataset: str, noise: str, weights: dict[float, float]
) -> dict[Case, Settings]:
  asymmetric = noise == 'cifar10_asymmetric'
  found: dict[Case, Settings] = {}
  for rate, lam in weights.items():
    arguments: dict[str, float] = {
      'lam': lam,
      'warmup': 10 if dataset == 'cifar10' else 30,
    }
    if rate == 0.9:
      arguments |= {'threshold': 0.6, 'averaged': 5}
    if asymmetric:
      arguments |= {'confidence_penalty': 1.0}
    found[dataset, noise, rate] = Settings(
      source='arXiv 2002.07394, section 4.2, and its official code; lam by '
      'noise is table 7, as people cite it in issues of that code',
      method='divide_mix',
      net='preact_resnet18',
      epochs=300,
      batch_size=128,
      learning_rate=0.02,
      weight_decay=5e-4,
      drops=(150,),
      views='crop_flip',
      arguments=arguments,
    )
  return found


SETTINGS = {
  **_published(
    'cifar10',
    'symmetric_inclusive',
    {0.2: 0.0, 0.5: 25.0, 0.8: 25.0, 0.9: 50.0},
  ),
  **_published('cifar10', 'cifar10_asymmetric', {0.4: 0.0}),
  **_published(
    'cifar100',
    'symmetric_inclusive',
    {0.2: 25.0, 0.5: 150.0, 0.8: 150.0, 0.9: 150.0},
  ),
}
"""By data set, noise and rate; noise was drawn in fixed counts."""
