"""Teachers: what is evaluated or imitated is not what is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
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
  check_batch,
  check_name,
  example_keys,
  global_grad,
  unplaced,
)
from jnl.inputs import check_int, check_range
from jnl.ramps import Schedule, at_step
from jnl.steps import check_model, ema, guarded_step, select

Teacher = Callable[[Inputs], Outputs]
"""What a teacher says of inputs, without gradient."""
MODES = ('deep', 'wide')
AHEAD_TAG = 4
"""Tag of the keys of virtual steps."""


class Averaged(NamedTuple):
  """The memory of a method that has a teacher.

  Attributes:
    params: of the teacher, the moving average of the parameters.
    extra: the memory of the method itself.
  """

  params: Params
  extra: PyTree


def follow(average: Params, params: Params, decay: Scalar) -> Params:
  r"""The parameters of a teacher that follows its student.

  .. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta

  Args:
    average: theta-bar, a tree of arrays.
    params: theta, a tree like it.
    decay: d in [0, 1].

  Returns:
    A tree like `average`, of its dtypes.

  Raises:
    ValueError: if `decay` is out of range.

  >>> follow(jnp.array([1.0]), jnp.array([0.0]), 0.75).tolist()
  [0.75]

  Reference: see `averaged`.
  """
  check_range('decay', decay, 0, 1)
  return ema(average, params, decay)


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
  check_range('decay', decay, 0, 1)

  def wrap(state: State, params: Params) -> State:
    return state._replace(extra=Averaged(params, state.extra))

  def init(key: Key) -> State:
    state = method.init(key)
    return wrap(state, state.params)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    new, metrics = method.step(student(state), batch, key)
    return wrap(new, follow(state.extra.params, new.params, decay)), metrics

  def predict(state: State, x: Inputs) -> Outputs:
    return method.predict(student(state)._replace(params=state.extra.params), x)

  return Method(init, step, predict, _refit(method.refit))


def taught(
  loss_fn: Callable[[Params, Teacher, State, Batch, Key], tuple[Array, Aux]],
  model: Model,
  tx: optax.GradientTransformation,
  *,
  decay: Scalar | Schedule = 0.999,
  look_ahead: int = 0,
  mode: str = 'deep',
  restore: bool = True,
  last: bool = True,
  init_extra: Callable[[Key], PyTree] = lambda key: (),
) -> Method:
  r"""A method that learns from the moving average of its own parameters.

  The teacher follows after every step, see `follow`. With `look_ahead` K it
  follows a student of the future: K times it follows, and the student takes a
  virtual step; it follows once more; the student goes back to where it was and
  takes the real step, taught by what is ahead of it.

  Nearly all that this gains is a quicker average, of K + 2 updates in a step
  (see experiments/look_ahead.py): compare it with `decay ** (K + 1)`.

  Args:
    loss_fn: `(params, teacher, state, batch, key) -> (loss, Aux)` as for
      `steps.from_loss`; `teacher(x) -> Outputs` has no gradient, no dropout and
      the running batch statistics.
    model: the network.
    tx: its optimizer.
    decay: d in [0, 1], or a function of the step, such as `lambda step:
      ramps.ema_rate_warmup(step, rate=0.99)`.
    look_ahead: K >= 0; 0 is Mean Teacher.
    mode: 'deep', virtual steps one after the other, on the batch; or 'wide':
      each from where the student is, on a K-th part of the batch that is drawn
      anew, and the teacher follows their average.
    restore: after the virtual steps the optimizer's state and the batch
      statistics go back as well. The official codes leave them: momentum then
      gathers K + 1 gradients a step.
    last: the teacher follows after the real step too. One of the official codes
      does not.
    init_extra: `key -> Aux.extra` at first; virtual steps do not change it.

  Returns:
    A method over the batches that `loss_fn` takes. `predict` is the teacher's.
    `state.extra` is an `Averaged`; functions of an inner state take
    `student(state)`, which `loss_fn` sees too. A step whose gradient is not
    finite is skipped, virtual or real; metric `skipped` is 1 where the real one
    was.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range.

  >>> from jnl.steps import linear
  >>> def loss_fn(params, teacher, state, batch, key):
  ...   x, stats = batch['x'], state.stats
  ...   outputs, stats = model.apply(params, stats, x, None, True)
  ...   target = teacher(x).logits
  ...   return ((outputs.logits - target) ** 2).mean(), Aux(stats)
  >>> model = linear(2, 3)
  >>> method = taught(loss_fn, model, optax.sgd(0.1), look_ahead=2)
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = method.step(state, {'x': jnp.eye(2)}, jax.random.key(1))
  >>> float(metrics['loss'])  # the teacher is the student at first
  0.0

  Reference: Tarvainen, Valpola, "Mean teachers are better role models:
  Weight-averaged consistency targets improve semi-supervised deep learning
  results", NeurIPS 2017, arXiv 1703.01780; looking ahead: Du, Shen, Wang, Fei,
  Li, Wu, Zhao, Fu, Liu, "Learning from Future: A Novel Self-Training Framework
  for Semantic Segmentation", NeurIPS 2022, arXiv 2209.06993.
  """
  check_model(model)
  check_name('mode', mode, MODES)
  check_int('look_ahead', look_ahead, 0)
  if not callable(decay):
    check_range('decay', decay, 0, 1)
  way = _Way(loss_fn, model, tx, look_ahead, mode, restore)

  def init(key: Key) -> State:
    key_model, key_extra = jax.random.split(key)
    params, stats = model.init(key_model)
    own = jax.tree.map(jnp.copy, params)  # a step may donate its state
    extra = Averaged(own, init_extra(key_extra))
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    rate = at_step(decay, state.step)
    average, inner = state.extra.params, student(state)
    if look_ahead:
      future, average = _ahead(way, inner, average, rate, batch, key)
      if not restore:
        inner = inner._replace(stats=future.stats, opt=future.opt)
    new, metrics = _learn(way, inner, average, batch, key)
    if last:
      average = follow(average, new.params, rate)
    metrics = {**metrics, **unplaced(new.extra, batch)}
    return new._replace(extra=Averaged(average, new.extra)), metrics

  def predict(state: State, x: Inputs) -> Outputs:
    return model.apply(state.extra.params, state.stats, x, None, False)[0]

  return Method(init, step, predict)


class _Way(NamedTuple):
  """What `taught` was given."""

  loss_fn: Callable[[Params, Teacher, State, Batch, Key], tuple[Array, Aux]]
  model: Model
  tx: optax.GradientTransformation
  look_ahead: int
  mode: str
  restore: bool


def _learn(
  way: _Way, state: State, average: Params, batch: Batch, key: Key
) -> tuple[State, Metrics]:
  """A step of the student, taught by an average; `extra` is the inner one."""

  def teacher(x: Inputs) -> Outputs:
    stats = lax.stop_gradient(state.stats)
    outputs, _ = way.model.apply(average, stats, x, None, False)
    return lax.stop_gradient(outputs)

  def loss(params: Params, state: State, batch: Batch, key: Key) -> Any:
    return way.loss_fn(params, teacher, state, batch, key)

  (value, aux), gradient = global_grad(loss)(state.params, state, batch, key)
  old = state.params, state.stats, state.opt
  (params, stats, opt), done = guarded_step(way.tx, gradient, old, aux.stats)
  extra = select(done, aux.extra, state.extra)
  new = State(state.step + 1, params, stats, opt, extra)
  skipped = {'skipped': 1 - done.astype(jnp.float32)}
  return new, {'loss': value, **aux.metrics, **skipped}


def _ahead(
  way: _Way,
  state: State,
  average: Params,
  rate: Scalar,
  batch: Batch,
  key: Key,
) -> tuple[State, Params]:
  """The student after virtual steps, and the teacher that followed it."""
  start, ends = state, []
  for k in range(way.look_ahead):
    own = jax.random.fold_in(jax.random.fold_in(key, AHEAD_TAG), k)
    if way.mode == 'deep':
      average = follow(average, state.params, rate)
      state, _ = _learn(way, state, average, batch, own)
    else:
      state = (start if way.restore else state)._replace(params=start.params)
      part = part_of(batch, key, k, way.look_ahead)
      state, _ = _learn(way, state, average, part, own)
      ends.append(state.params)
  soup = state.params
  if ends:
    soup = jax.tree.map(lambda *a: sum(a) / len(a), *ends)
  return state, follow(average, soup, rate)


def part_of(batch: Batch, key: Key, k: int, parts: int) -> Batch:
  """The k-th of so many parts of a batch: weights of the other rows are 0.

  Args:
    batch: with `index` and those of streams; weights that lack are 1. A stream
      without an index is of all parts.
    key: of the step; it says which rows are of which part.
    k: in [0, parts).
    parts: how many.

  Returns:
    The batch, with other weights.

  Raises:
    ValueError: if the batch has no `index`, or it is not [b].

  >>> batch = {'index': jnp.arange(6), 'weight': jnp.ones(6)}
  >>> own = [part_of(batch, jax.random.key(0), k, 2)['weight'] for k in (0, 1)]
  >>> sum(own).tolist()
  [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
  """
  check_batch(batch, 'index')
  found = dict(batch)
  for name in [name for name in batch if name.split('_')[0] == 'index']:
    keys = example_keys(jax.random.fold_in(key, AHEAD_TAG), batch[name])
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, parts))(keys)
    weight = 'weight' + name.removeprefix('index')
    given = batch.get(weight, jnp.ones(drawn.shape))
    found[weight] = jnp.where(drawn == k, given, 0)
  return found


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
