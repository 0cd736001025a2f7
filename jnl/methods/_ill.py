"""Imprecise label learning (ILL): noisy, partial, missing labels, and mixtures.

One framework: the weak view of an example and its label give a posterior
(`jnl.em`), which the strong view learns. The steps, as losses of arrays for a
loop of one's own, are `em.noisy_loss` and its kin.

Reference: Chen, Shah, Wang, Tao, Wang, Li, Xie, Sugiyama, Singh, Raj, Imprecise
Label Learning: A Unified Framework for Learning with Various Imprecise Label
Configurations, NeurIPS 2024, arXiv 2305.12715, and the official code, which is
followed where the two differ.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jnl import em
from jnl.base import (
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Model,
  Outputs,
  Params,
  Scalar,
  State,
  Stats,
  check,
  check_batch,
)
from jnl.inputs import check_range
from jnl.methods._published import Case, Settings
from jnl.steps import apply_views, check_model, from_loss, model_keys

_TWO = ('x', 'x_strong')


class Marginal(NamedTuple):
  """The memory of `ill_semi` and `ill_mixed`, their mean prediction.

  Attributes:
    p_hat: [c] float32, the running mean prediction for unlabeled examples.
  """

  p_hat: Array


def ill_noisy(
  model: Model,
  tx: optax.GradientTransformation,
  noise_tx: optax.GradientTransformation,
  *,
  num_classes: int,
  scale: Scalar = 1.0,
  entropy_weight: Scalar = 0.1,
) -> Method:
  """Imprecise label learning (ILL) on noisy labels and their transition.

  The transition matrix is learned too.

  Args:
    model: the network.
    tx: its optimizer. The paper: SGD, rate .02, momentum .9, weight decay 1e-3,
      cosine to 2e-4 over 300 epochs of batches of 128.
    noise_tx: the matrix's optimizer, of which `tx` knows nothing. The paper's
      code: `optax.sgd` at the first rate of `tx`, neither momentum, nor decay,
      nor schedule.
    num_classes: c.
    scale: see `em.noise_logits`.
    entropy_weight: see `em.noisy_loss`.

  Returns:
    A method over batches of `x` (weak view), `x_strong`, `labels`, `weight` and
    `index`. `state.params` are `'net'` and `'noise'` [c, c]; see
    `learned_transition`. Metrics: `loss` and the parts of `em.noisy_loss`.

  Raises:
    ValueError: if a hyperparameter is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> tx = optax.sgd(0.1)
  >>> method = ill_noisy(model, tx, optax.sgd(0.1), num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(state.params), state.params['noise'].shape
  (['net', 'noise'], (2, 2))

  Reference: Chen, Shah, Wang, Tao, Wang, Li, Xie, Sugiyama, Singh, Raj,
  "Imprecise Label Learning: A Unified Framework for Learning with Various
  Imprecise Label Configurations", NeurIPS 2024, arXiv 2305.12715.
  """
  _check_scale(scale)
  check_range('entropy_weight', entropy_weight, 0)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, *_TWO, 'labels', 'weight', 'index')
    logits, stats = _logits_of_views(
      model, params['net'], state.stats, batch, key, _TWO
    )
    loss, parts = em.noisy_loss(
      logits[:, 0],
      logits[:, 1],
      batch['labels'],
      batch['weight'],
      params['noise'],
      scale=scale,
      entropy_weight=entropy_weight,
    )
    return loss, Aux(stats, state.extra, parts)

  return from_loss(loss_fn, *_with_noise(model, tx, noise_tx, num_classes))


def ill_partial(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  entropy_weight: Scalar = 0.1,
  offset: Scalar = 0.0,
) -> Method:
  """Imprecise label learning (ILL) on candidate sets.

  Args:
    model: the network.
    tx: its optimizer. The code's settings for CIFAR: SGD, rate .1, momentum .9,
      weight decay 1e-4, times .1 after epochs 100 and 150 of 200, batches of
      64.
    entropy_weight: see `em.partial_loss`.
    offset: see `em.partial_loss`.

  Returns:
    A method over batches of `x` (weak view), `x_strong`, `candidates`, `weight`
    and `index`, and `x_strong_2` if there is one, a third view as in the paper.
    Metrics: `loss` and the parts of `em.partial_loss`.

  Raises:
    ValueError: if a hyperparameter is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = ill_partial(model, optax.sgd(0.1))
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'candidates': jnp.array([[True, False], [True, True]]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.params['weights'].shape, bool(jnp.isfinite(metrics['loss']))
  ((2, 2), True)

  Reference: see `ill_noisy`.
  """
  check_range('entropy_weight', entropy_weight, 0)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, *_TWO, 'candidates', 'weight', 'index')
    names = (*_TWO, 'x_strong_2') if 'x_strong_2' in batch else _TWO
    logits, stats = _logits_of_views(
      model, params, state.stats, batch, key, names
    )
    loss, parts = em.partial_loss(
      logits,
      batch['candidates'],
      batch['weight'],
      entropy_weight=entropy_weight,
      offset=offset,
    )
    return loss, Aux(stats, state.extra, parts)

  return from_loss(loss_fn, model, tx)


def ill_semi(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  momentum: Scalar = 0.999,
  top: int = 3,
  entropy_weight: Scalar = 0.1,
) -> Method:
  """Imprecise label learning (ILL) where most labels are missing.

  Labeled and unlabeled examples come in one stream. Each kind has a mean of its
  own, as from two loaders, however many of it a batch holds.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The code's settings: SGD, rate .03, Nesterov momentum .9,
      weight decay 5e-4, cosine(7/16) over 2^18 steps of 64 + 448 examples.
    num_classes: c.
    momentum: see `em.semi_loss`.
    top: see `em.semi_loss`.
    entropy_weight: see `em.semi_loss`.

  Returns:
    A method over batches of `x` (weak view), `x_strong`, `labels`, `labeled`
    [b] bool, `weight` and `index`. `state.extra` is a `Marginal`. Metrics:
    `loss` and the parts of `em.semi_loss`.

  Raises:
    ValueError: if a hyperparameter is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = ill_semi(model, optax.sgd(0.1), num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, -1]), 'labeled': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.extra.p_hat.shape
  (2,)

  Reference: see `ill_noisy`.
  """
  _check_momentum(momentum)
  check_range('entropy_weight', entropy_weight, 0)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, *_TWO, 'labels', 'labeled', 'weight', 'index')
    logits, stats = _logits_of_views(
      model, params, state.stats, batch, key, _TWO
    )
    loss, (p_hat, parts) = em.semi_loss(
      logits[:, 0],
      logits[:, 1],
      batch['labels'],
      batch['labeled'],
      batch['weight'],
      state.extra.p_hat,
      momentum=momentum,
      top=top,
      entropy_weight=entropy_weight,
    )
    return loss, Aux(stats, Marginal(p_hat), parts)

  return from_loss(loss_fn, model, tx, init_extra=_uniform(num_classes))


def ill_mixed(
  model: Model,
  tx: optax.GradientTransformation,
  noise_tx: optax.GradientTransformation,
  *,
  num_classes: int,
  scale: Scalar = 1.0,
  momentum: Scalar = 0.999,
  entropy_weight: Scalar = 0.1,
  offset: Scalar = 0.0,
  posterior_offset: Scalar = 0.0,
) -> Method:
  """Imprecise label learning (ILL) on labels of all kinds at once.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The code's settings: SGD, rate .02, momentum .9, weight
      decay 1e-3, cosine to 1e-4 over 307200 steps of 64 + 192 examples.
    noise_tx: see `ill_noisy`.
    num_classes: c.
    scale: see `em.noise_logits`.
    momentum: see `em.mixed_loss`.
    entropy_weight: see `em.mixed_loss`.
    offset: see `em.mixed_loss`.
    posterior_offset: see `em.mixed_loss`.

  Returns:
    A method over batches of `x` (weak view), `x_strong`, `candidates` [b, c]
    bool, `noisy` [b] bool, `weight` and `index`. `state.params` are as for
    `ill_noisy`, `state.extra` is a `Marginal`. Metrics: `loss` and the parts of
    `em.mixed_loss`.

  Raises:
    ValueError: if a hyperparameter is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> tx = optax.sgd(0.1)
  >>> method = ill_mixed(model, tx, optax.sgd(0.1), num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'candidates': jnp.array([[True, False], [True, True]]),
  ...   'noisy': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, _ = jax.eval_shape(method.step, state, batch, jax.random.key(1))
  >>> state.params['noise'].shape, state.extra.p_hat.shape
  ((2, 2), (2,))

  Reference: see `ill_noisy`.
  """
  _check_scale(scale)
  _check_momentum(momentum)
  check_range('entropy_weight', entropy_weight, 0)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, *_TWO, 'candidates', 'noisy', 'weight', 'index')
    logits, stats = _logits_of_views(
      model, params['net'], state.stats, batch, key, _TWO
    )
    loss, (p_hat, parts) = em.mixed_loss(
      logits[:, 0],
      logits[:, 1],
      batch['candidates'],
      batch['noisy'],
      batch['weight'],
      params['noise'],
      state.extra.p_hat,
      scale=scale,
      momentum=momentum,
      entropy_weight=entropy_weight,
      offset=offset,
      posterior_offset=posterior_offset,
    )
    return loss, Aux(stats, Marginal(p_hat), parts)

  return from_loss(
    loss_fn,
    *_with_noise(model, tx, noise_tx, num_classes),
    init_extra=_uniform(num_classes),
  )


def learned_transition(state: State, *, scale: Scalar = 1.0) -> Array:
  """The transition matrix that a method has learned.

  Args:
    state: of a method built by `ill_noisy` or `ill_mixed`.
    scale: as the method was built with.

  Returns:
    [c, c], P(noisy = j | clean = k), rows on the simplex.
  """
  return em.row_transition(state.params['noise'], scale=scale)


# --- published settings ------------------------------------------------------


def _noisy_settings(scale: float, net: str = 'preact_resnet18') -> Settings:
  return Settings(
    source='official YAML of noisy-label runs; strong view: AutoAugment',
    method='ill_noisy',
    net=net,
    epochs=300,
    batch_size=128,
    learning_rate=0.02,
    weight_decay=1e-3,
    cosine_to=2e-4,
    arguments={'scale': scale, 'entropy_weight': 0.1},
  )


_PARTIAL = Settings(
  source='official YAML of partial-label runs; paper: ResNet-18, cosine',
  method='ill_partial',
  net='wide_resnet34_10',
  epochs=200,
  batch_size=64,
  learning_rate=0.1,
  weight_decay=1e-4,
  drops=(100, 150),
  arguments={'entropy_weight': 0.1},
)
SETTINGS: dict[Case, Settings] = {
  ('cifar10', 'symmetric_inclusive', None): _noisy_settings(1.0),
  ('cifar10', 'cifar10_asymmetric', None): _noisy_settings(1.0),
  ('cifar100', 'symmetric_inclusive', 0.2): _noisy_settings(2.0),
  ('cifar100', 'symmetric_inclusive', 0.5): _noisy_settings(2.25),
  ('cifar100', 'symmetric_inclusive', 0.8): _noisy_settings(2.5),
  ('cifar100', 'cifar100_pair_swaps', 0.4): _noisy_settings(2.0),
  **{
    ('cifar10', f'cifar10n_{name}', None): _noisy_settings(1.0, 'resnet34')
    for name in ('aggre', 'random1', 'random2', 'random3', 'worse')
  },
  ('cifar100', 'cifar100n', None): _noisy_settings(2.0, 'resnet34'),
  **{('cifar10', 'candidate_sets', q): _PARTIAL for q in (0.1, 0.3, 0.5, 0.7)},
  **{
    ('cifar100', 'candidate_sets', q): _PARTIAL for q in (0.01, 0.05, 0.1, 0.2)
  },
}
"""By data set, noise and rate; those of `ill_noisy` and of `ill_partial`."""


# --- the pieces --------------------------------------------------------------


def _check_scale(scale: Scalar) -> None:
  check(scale > 0, f'scale must be positive, got {scale}')


def _check_momentum(momentum: Scalar) -> None:
  check(
    (momentum >= 0) & (momentum <= 1),
    f'momentum must lie in [0, 1], got {momentum}',
  )


def _logits_of_views(
  model: Model,
  params: Params,
  stats: Stats,
  batch: Batch,
  key: Key,
  names: tuple[str, ...],
) -> tuple[Array, Stats]:
  """Logits [b, views, c] of the views of these names, in one training pass."""
  views = [batch[name] for name in names]
  outputs, stats = apply_views(
    model, params, stats, views, model_keys(key, batch), batch['weight']
  )
  return outputs.logits, stats


def _with_noise(
  model: Model,
  tx: optax.GradientTransformation,
  noise_tx: optax.GradientTransformation,
  num_classes: int,
) -> tuple[Model, optax.GradientTransformation]:
  """The network and a matrix beside it, each with its own optimizer."""
  check_model(model)

  def init(key: Key) -> tuple[Params, Stats]:
    net, stats = model.init(key)
    return {'net': net, 'noise': jnp.eye(num_classes, dtype=jnp.float32)}, stats

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    *mask: Array,
  ) -> tuple[Outputs, Stats]:
    return model.apply(params['net'], stats, x, keys, train, *mask)

  both = optax.multi_transform(
    {'net': tx, 'noise': noise_tx}, {'net': 'net', 'noise': 'noise'}
  )
  return Model(init, apply), both


def _uniform(num_classes: int) -> Callable[[Key], Marginal]:
  def init_extra(key: Key) -> Marginal:
    del key
    return Marginal(jnp.full([num_classes], 1 / num_classes, jnp.float32))

  return init_extra
