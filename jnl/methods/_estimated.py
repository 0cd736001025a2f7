"""What methods share that keep a transition matrix: its estimate, its place."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jnl.base import (
  Array,
  Aux,
  Batch,
  Inputs,
  Key,
  Method,
  Metrics,
  Model,
  Outputs,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  Stats,
  Table,
  check,
  check_batch,
  global_mean,
  unpack_rows,
)
from jnl.inputs import check_range
from jnl.steps import (
  check_losses,
  check_model,
  from_loss,
  labels_of,
  model_keys,
  predict_with,
  training_pass,
)
from jnl.transition import Anchors, DualT, vol_min_transition


class Estimated(NamedTuple):
  """A transition matrix that was estimated between two epochs.

  Attributes:
    transition: T, [c, c]; the identity before the estimate.
    support: [c] int32, how many examples hold this class for the likeliest.
      Where it is 0 after the estimate, the row of T is a guess.
    rounds: [] int32, refits so far.
  """

  transition: Array
  support: Array
  rounds: Array


class WithMatrix(NamedTuple):
  """The parameters of a network and a matrix that is learned beside it.

  Attributes:
    net: of the network.
    matrix: [c, c]: in `t_revision` what is added to T, in `vol_min` the weights
      that T is made of.
  """

  net: Params
  matrix: PyTree


class Seen(NamedTuple):
  """What a refit knows of each example.

  Attributes:
    probs: softmax of the network in evaluation, [n, c].
    labels: [n], as given.
    there: [n] bool, whether it counts.
  """

  probs: PyTree
  labels: PyTree
  there: PyTree


Loss: TypeAlias = Callable[[Array, Array, Params, Estimated], Array]
"""`(logits [b, c], labels, params, extra) -> [b]`."""


def estimated_transition(state: State) -> Array:
  """The transition matrix that a method has estimated, or was given.

  Args:
    state: of a method built by `forward_t`, `dual_t`, `t_revision` or
      `vol_min`. Of many runs (`fit_many`): `jax.vmap` of this.

  Returns:
    T, [c, c], P(noisy = j | clean = i); of `t_revision` with the revision, so
    that its rows sum to one only nearly. Before the estimate the identity, of
    `vol_min` what it has learned so far.

  Raises:
    TypeError: if the state is of another method.

  >>> extra = Estimated(jnp.eye(2), jnp.ones(2, jnp.int32), jnp.int32(1))
  >>> state = State(jnp.int32(0), {}, {}, (), extra)
  >>> estimated_transition(state).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  beside = isinstance(state.params, WithMatrix)
  if isinstance(state.extra, Estimated):
    found = state.extra.transition
    return found + state.params.matrix if beside else found
  check(
    beside,
    'state must be of forward_t, dual_t, t_revision or vol_min; this one has '
    'no transition matrix',
    TypeError,
  )
  return vol_min_transition(state.params.matrix)


def with_matrix(model: Model, first: Array) -> Model:
  """A network whose parameters are a `WithMatrix`, at first of `first`."""
  check_model(model)

  def init(key: Key) -> tuple[Params, Stats]:
    net, stats = model.init(key)
    return WithMatrix(net, first), stats

  def apply(
    params: Params, stats: Stats, x: Inputs, keys: Key | None, *rest: Any
  ) -> tuple[Outputs, Stats]:
    return model.apply(params.net, stats, x, keys, *rest)

  return Model(init, apply)


def check_estimate(
  warmup: int, quantile: Scalar | None, num_classes: int
) -> None:
  """Raises for what `transition.anchor` could make nothing of."""
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check(
    warmup >= 1,
    f'warmup must be at least 1 epoch, got {warmup}: a network that has '
    'learned nothing knows no transition matrix',
  )
  if quantile is None:
    return
  check_range('quantile', quantile, 0, 1, open_low=True)
  check(
    quantile > 1 - 1 / num_classes,
    f'quantile must leave some rows of each of {num_classes} classes, so lie '
    f'above {1 - 1 / num_classes:g}, or be None; got {quantile}',
  )


def kept(transition: Array) -> Array:
  """The mean probability that a label is kept, [], a metric."""
  return jnp.mean(jnp.diagonal(transition))


def train_by_estimate(
  loss: Loss,
  model: Model,
  tx: optax.GradientTransformation,
  estimate: Callable[[Seen], Anchors | DualT],
  *,
  num_examples: int,
  num_classes: int,
  warmup: int,
  restart: bool,
) -> Method:
  """A method whose loss reads a matrix, estimated once before epoch `warmup`.

  After the estimate the state of the optimizer starts again, so that schedules
  begin with it, and where `restart` the network too. With the identity the loss
  has to be cross-entropy.
  """

  def update(state: State, tables: PyTree, key: Key) -> State:
    found = estimate(_rows(tables, num_examples))
    extra = Estimated(*found[:2], state.extra.rounds + 1)
    params, stats = state.params, state.stats
    if restart:
      _, params, stats, *_ = method.init(key)
    return State(state.step, params, stats, tx.init(params), extra)

  method = train_by(
    loss,
    model,
    tx,
    jnp.eye(num_classes, dtype=jnp.float32),
    Refit(functools.partial(_collect, model), update, lambda e: e == warmup),
  )
  return method


def train_by(
  loss: Loss,
  model: Model,
  tx: optax.GradientTransformation,
  transition: Array,
  refit: Refit | None = None,
) -> Method:
  """A method whose loss reads a matrix, which is `transition` at first."""

  def init_extra(key: Key) -> Estimated:
    del key
    none = jnp.zeros(len(transition), jnp.int32)
    return Estimated(transition, none, jnp.int32(0))

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'labels', 'weight', 'index')
    weight = jnp.asarray(batch['weight'])
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch), weight
    )
    own = loss(outputs.logits, labels_of(batch), params, state.extra)
    check_losses(own, weight)
    metrics = _metrics(state._replace(params=params))
    return global_mean(own, weight), Aux(stats, state.extra, metrics)

  return from_loss(loss_fn, model, tx, init_extra=init_extra, refit=refit)


def _metrics(state: State) -> Metrics:
  guessed = (state.extra.support == 0) & (state.extra.rounds > 0)
  return {
    'kept': kept(estimated_transition(state)),
    'guessed': jnp.mean(guessed, dtype=jnp.float32),
  }


def _collect(model: Model, state: State, batch: Batch, key: Key) -> Seen:
  del key
  logits = predict_with(model)(state, batch['x']).logits
  return Seen(
    jax.nn.softmax(logits.astype(jnp.float32)),
    jnp.asarray(batch['labels']),
    jnp.asarray(batch['weight']) > 0,
  )


def _rows(tables: PyTree, n: int) -> Seen:
  def rows(table: Table) -> Array:
    return unpack_rows(table, n)

  return Seen(*map(rows, tables))
