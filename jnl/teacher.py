"""Teachers: what is evaluated or imitated is not what is trained.

A teacher is an average of its student's weights (`follow`, `averaged`,
`taught`), or the network that came, to which a student goes back in part
(`restore`). While the stream that is asked about is learned from,
`batch_statistics` normalizes by the batch, and `norm_parameters` are what may
be moved with little risk.
"""

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
  Stats,
  check,
  check_batch,
  check_key,
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


# --- networks that go on learning ---------------------------------------------


def batch_statistics(model: Model) -> Model:
  """A network that normalizes by the batch it is given, and remembers nothing.

  By its pass in training, whatever it is asked for; the statistics it came with
  stay as they are. Where the examples of a batch come from another distribution
  than those of training, this alone repairs much.

  Args:
    model: the network, trained. Without batch normalization its answers are
      what they were.

  Returns:
    A model whose `apply` needs no keys. It depends on the whole batch: one of
    few examples, or of one class, is answered badly.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: when it is applied, if its training pass is random (dropout); by
      networks of `jnl.nets` also for a batch that has a single value of each
      channel, which would be answered the same whatever it is.

  >>> from jnl.nets import MLP, from_linen
  >>> model = batch_statistics(from_linen(MLP(2, (4,), batch_norm=True), (3,)))
  >>> params, stats = model.init(jax.random.key(0))
  >>> outputs, new = model.apply(params, stats, jnp.eye(3), None, False)
  >>> new is stats, [round(float(m), 4) for m in outputs.features.mean(0)] != 0
  (True, True)

  Reference: Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek, "Evaluating
  Prediction-Time Batch Normalization for Robustness under Covariate Shift",
  2020, arXiv 2006.10963.
  """
  check_model(model)
  sure: set[Any] = set()  # shapes that were looked at

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    *mask: Array,
  ) -> tuple[Outputs, Stats]:
    del keys, train
    if not jax.tree.leaves(stats):
      mask = ()
    elif not mask:
      mask = (jnp.ones(jax.tree.leaves(x)[0].shape[:1], bool),)
    shapes = tuple((a.shape, a.dtype) for a in jax.tree.leaves(x))
    if shapes not in sure:
      _check_not_random(model, params, stats, x, mask)
      sure.add(shapes)
    return model.apply(params, stats, x, None, True, *mask)[0], stats

  return Model(model.init, apply)


def _check_not_random(
  model: Model,
  params: Params,
  stats: Stats,
  x: Inputs,
  mask: tuple[Array, ...],
) -> None:
  """Raises if the outputs of a training pass depend on its keys."""
  b = jax.tree.leaves(x)[0].shape[0]
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))

  def outputs(keys: Key, params: Params, stats: Stats, x: Inputs) -> Outputs:
    return model.apply(params, stats, x, keys, True, *mask)[0]

  traced = jax.make_jaxpr(outputs)(keys, params, stats, x).jaxpr
  first = [i == 0 for i in range(len(traced.invars))]
  check(
    not any(_reached(traced, first)),
    'the network draws random numbers in training (dropout), which its answers '
    'must not depend on: build it with a dropout rate of 0, the parameters are '
    'the same',
  )


def _reached(jaxpr: Any, marked: list[bool]) -> list[bool]:
  """Which results of a jaxpr depend on the arguments that are marked."""
  depends = {id(v) for v, m in zip(jaxpr.invars, marked, strict=True) if m}
  for equation in jaxpr.eqns:
    own = [id(v) in depends for v in equation.invars]
    if not any(own):
      continue
    inner = [
      getattr(p, 'jaxpr', p)
      for p in equation.params.values()
      if hasattr(getattr(p, 'jaxpr', p), 'eqns')
    ]
    results = [True] * len(equation.outvars)
    if len(inner) == 1 and len(inner[0].invars) == len(own):
      found = _reached(inner[0], own)
      results = found if len(found) == len(results) else results
    depends |= {
      id(v) for v, r in zip(equation.outvars, results, strict=True) if r
    }
  return [id(v) in depends for v in jaxpr.outvars]


def norm_parameters(params: Params, stats: Stats) -> PyTree:
  """Which parameters are the scales and biases of normalization layers.

  Args:
    params: a tree of nested mappings, as Flax has them.
    stats: batch statistics. A layer that has a `mean` and a `var` in them is
      batch normalization, whatever it is called; other layers count if they
      have nothing but a `scale` and a `bias` and a name that holds 'norm', such
      as `LayerNorm_0`.

  Returns:
    A tree like `params`, of Python bools.

  >>> params = {'Dense_0': {'bias': 0.0, 'kernel': 0.0},
  ...   'BatchNorm_0': {'bias': 0.0, 'scale': 0.0}}
  >>> stats = {'batch_stats': {'BatchNorm_0': {'mean': 0.0, 'var': 1.0}}}
  >>> norm_parameters(params, stats)['BatchNorm_0']
  {'bias': True, 'scale': True}
  >>> norm_parameters(params, {})['Dense_0']
  {'bias': False, 'kernel': False}
  """
  kept: dict[tuple[str, ...], set[str]] = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(stats):
    *layer, name = _names(path)
    kept.setdefault(tuple(layer), set()).add(name)
  batch = {layer for layer, names in kept.items() if {'mean', 'var'} <= names}
  batch |= {layer[1:] for layer in batch if layer[:1] == ('batch_stats',)}
  own: dict[tuple[str, ...], set[str]] = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    names = _names(path)
    own.setdefault(names[:-1], set()).add(names[-1])

  def counts(layer: tuple[str, ...]) -> bool:
    named = any('norm' in name.lower() for name in layer[-1:])
    alone = 'scale' in own[layer] and own[layer] <= {'scale', 'bias'}
    return layer in batch or (named and alone)

  return jax.tree_util.tree_map_with_path(
    lambda path, _: counts(_names(path)[:-1]), params
  )


def _names(path: Any) -> tuple[str, ...]:
  """The keys on the way to a leaf."""
  return tuple(
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
    for k in path
  )


def restore(
  key: Key, params: Params, source: Params, rate: Scalar
) -> tuple[Params, PyTree]:
  r"""Parameters of which a random part goes back to where they came from.

  .. math:: \theta \leftarrow m \theta_0 + (1 - m)\, \theta, \qquad m_i \sim
     \mathrm{Bernoulli}(\mathrm{rate})

  Each number by itself; whole layers, or teachers, are not what this is for.

  Args:
    key: of the step; each array has one of its own.
    params: theta, a tree of arrays. Those that are not floating point stay.
    source: theta_0, a tree like it.
    rate: in [0, 1], the share that goes back; .01 in the paper, .001 on
      ImageNet.

  Returns:
    The parameters; and the masks m, a tree like them, of bool.

  Raises:
    ValueError: if `rate` is out of range, or the trees do not fit.
    TypeError: if `key` is none.

  >>> restore(jax.random.key(0), jnp.ones(3), jnp.zeros(3), 1.0)[0].tolist()
  [0.0, 0.0, 0.0]

  Reference: Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation",
  CVPR 2022, arXiv 2203.13591.
  """
  check_key(key)
  check_range('rate', rate, 0, 1)
  leaves, tree = jax.tree.flatten(params)
  sources = jax.tree.leaves(source)
  check(
    str(jax.tree.structure(source)) == str(tree),
    f'source must be a tree like params, {tree}',
  )
  new, masks = [], []
  for i, (p, p0) in enumerate(zip(leaves, sources, strict=True)):
    p, p0 = jnp.asarray(p), jnp.asarray(p0)
    check(
      p.shape == p0.shape,
      f'source must be like params, got shapes {p0.shape} and {p.shape}',
    )
    mask = jnp.zeros(p.shape, bool)
    if jnp.issubdtype(p.dtype, jnp.floating):
      own = jax.random.fold_in(key, i)
      mask = jax.random.uniform(own, p.shape) < rate
    new.append(jnp.where(mask, p0, p))
    masks.append(mask)
  return jax.tree.unflatten(tree, new), jax.tree.unflatten(tree, masks)


# --- methods that have a teacher ----------------------------------------------


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
