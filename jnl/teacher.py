"""Teachers: what is evaluated or imitated is not what is trained."""

from typing import NamedTuple

from jnl.base import (
  Batch,
  Inputs,
  Key,
  Method,
  Metrics,
  Outputs,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  check,
)
from jnl.steps import ema


class Averaged(NamedTuple):
  """The memory of an averaged method.

  Attributes:
    params: the moving average of the parameters.
    extra: the memory of the method that is averaged.
  """

  params: Params
  extra: PyTree


def averaged(method: Method, *, decay: Scalar = 0.999) -> Method:
  r"""A method that predicts with the moving average of its parameters.

  .. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta

  after every step, from the initial parameters on. Training goes on as without
  it. Batch statistics are the current ones: they are moving averages already.

  Args:
    method: what to train.
    decay: d in [0, 1]; 0.999 in FixMatch and the methods that follow it.

  Returns:
    A method over the same batches. `state.extra` is an `Averaged`, `state.
    params` the parameters in training; functions of a state of `method` itself
    take `student(state)`.

  Raises:
    ValueError: if `decay` is out of range.

  >>> import jax, optax
  >>> from jnl.losses import ce
  >>> from jnl.steps import linear, supervised
  >>> model = linear(2, 3)
  >>> method = averaged(supervised(ce, model, optax.sgd(1.)))
  >>> state = method.init(jax.random.key(0))
  >>> jax.tree.map(lambda p: p.shape, state.extra)
  Averaged(params={'bias': (3,), 'weights': (2, 3)}, extra=())

  Reference: Tarvainen, Valpola, "Mean teachers are better role models:
  Weight-averaged consistency targets improve semi-supervised deep learning
  results", NeurIPS 2017, arXiv 1703.01780; the average is used for evaluation
  alone, as in Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
  Consistency and Confidence", NeurIPS 2020, arXiv 2001.07685.
  """
  check((decay >= 0) & (decay <= 1), f'decay must lie in [0, 1], got {decay}')

  def wrap(state: State, params: Params) -> State:
    return state._replace(extra=Averaged(params, state.extra))

  def init(key: Key) -> State:
    state = method.init(key)
    return wrap(state, state.params)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    new, metrics = method.step(student(state), batch, key)
    return wrap(new, ema(state.extra.params, new.params, decay)), metrics

  def predict(state: State, x: Inputs) -> Outputs:
    return method.predict(student(state)._replace(params=state.extra.params), x)

  return Method(init, step, predict, _refit(method.refit))


def student(state: State) -> State:
  """The state of the method that `averaged` averages: what is being trained.

  Args:
    state: of a method built by `averaged`.

  Returns:
    The state, as the inner method has it.
  """
  return state._replace(extra=state.extra.extra)


def _refit(inner: Refit | None) -> Refit | None:
  """The inner refit, which sees and changes what is trained."""
  if inner is None:
    return None

  def collect(state: State, batch: Batch, key: Key) -> PyTree:
    return inner.collect(student(state), batch, key)

  def update(state: State, tables: PyTree, key: Key) -> State:
    new = inner.update(student(state), tables, key)
    return new._replace(extra=Averaged(state.extra.params, new.extra))

  return Refit(collect, update, inner.when)
