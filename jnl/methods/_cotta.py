"""CoTTA: a student that learns from its own average over views of a stream."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl import em, losses
from jnl.base import (
  Adapter,
  Array,
  Batch,
  Inputs,
  Key,
  Model,
  Outputs,
  Params,
  Scalar,
  State,
  Stats,
  check,
  check_key,
  example_keys,
  global_mean,
)
from jnl.inputs import check_int, check_range
from jnl.methods._tent import (
  descend,
  own_copy,
  part,
  read_stream,
  seen_by,
  with_part,
)
from jnl.steps import check_model, select
from jnl.teacher import batch_statistics, follow
from jnl.teacher import restore as go_back

VIEWS_TAG, RESTORE_TAG = 1, 2
"""Tags of the keys of views, and of what goes back to the source."""
ROWS = 1024
"""Rows that are looked at at once for a quantile."""


class Adapting(NamedTuple):
  """The memory of `cotta`.

  Attributes:
    teacher: parameters, the moving average of the student's.
    source: parameters, as they came.
  """

  teacher: Params
  source: Params


def cotta(
  model: Model,
  tx: optax.GradientTransformation,
  augment: Callable[[Key, Inputs], Inputs],
  *,
  decay: Scalar = 0.999,
  restore: Scalar = 0.01,
  threshold: Scalar = 0.92,
  views: int = 32,
  symmetric: bool = False,
) -> Adapter:
  r"""Answers by an average of the weights, and over views where unsure.

  .. math::
    z &= \begin{cases}
      \frac1N \sum_{i \le N} f_{\bar\theta}(a_i(x)) &
        \operatorname{mean}_B \max_k f^{p}_{\theta_0}(x)_k < \tau \\
      f_{\bar\theta}(x) & \text{otherwise}
    \end{cases} \\
    L &= \operatorname{mean}_B \Big[ -\sum_k \mathrm{softmax}(z)_k
      \log \mathrm{softmax}(f_\theta(x))_k \Big]

  with logits f and probabilities f^p. The source theta_0 says whether the batch
  is a hard one. Then the student theta takes a step on all its parameters, the
  teacher follows it, and a random part of the student goes back to the source,
  in this order. The answer is z, of the teacher before it followed.

  Logits are averaged, not probabilities. All three networks normalize by the
  batch. Views that are not used are not computed, and those that are come one
  after the other, so that memory is that of one.

  The views have to be ones that the source is used to: on Fashion-MNIST, whose
  shoes all look one way, mirrored and shifted views cost all that adaptation
  gains. Over `batch_norm_adapt` it gains little or nothing on small problems,
  see experiments/test_time.py; `restore` keeps the student near the source.

  Args:
    model: the trained network, without dropout.
    tx: of all its parameters; in the paper Adam at .001 on CIFAR-10 with
      batches of 200, SGD on ImageNet.
    augment: `(keys [b], x) -> x`, a random view, such as
      `data.augment.cotta_views`.
    decay: d of the teacher in [0, 1], see `teacher.follow`.
    restore: the share of the student's numbers that goes back at each step, in
      [0, 1], see `teacher.restore`; .001 on ImageNet.
    threshold: tau in [0, 1], `.92` on CIFAR-10, `.72` on CIFAR-100, `.1` on
      ImageNet; for other sources `confidence_quantile`.
    views: N >= 1.
    symmetric: `losses.symmetric_consistency`, as the code for ImageNet has it.

  Returns:
    An adapter over batches of `x` [b, ...]; `weight` [b] and `index` [b] (by
    default positions in the batch; views follow from it) are optional, and a
    row of weight 0 leaves no trace. `state.params` is the student,
    `state.extra` an `Adapting`. `outputs.aux` has rows `loss`, `confidence` of
    the source, `unsure`, 1 where the batch was answered by views, and
    `skipped`, 1 for a batch whose loss or step is not finite: it is answered,
    and leaves everything as it was. Parameters that are not floating point
    stay.

  Raises:
    TypeError: if `model` is no `Model`, or from the step for a key that is
      none.
    ValueError: if a number is out of range; from the step, as
      `teacher.batch_statistics`.

  >>> from jnl.steps import linear
  >>> adapter = cotta(linear(3, 2), optax.sgd(0.1), lambda keys, x: x, views=2)
  >>> state = adapter.init(*linear(3, 2).init(jax.random.key(0)))
  >>> state, outputs = adapter.step(state, {'x': jnp.eye(3)}, jax.random.key(1))
  >>> outputs.logits.shape, float(outputs.aux['unsure'][0])
  ((3, 2), 1.0)

  Reference: Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation",
  CVPR 2022, arXiv 2203.13591. Its code for CIFAR computes the views of sure
  batches too, and does not use them.
  """
  normalized = batch_statistics(model)
  for name, value in (
    ('decay', decay),
    ('restore', restore),
    ('threshold', threshold),
  ):
    check_range(name, value, 0, 1)
  check_int('views', views)
  check(callable(augment), 'augment must be (keys [b], x) -> x', TypeError)
  agree = losses.symmetric_consistency if symmetric else em.consistency

  def init(params: Params, stats: Stats) -> State:
    own = [own_copy(params) for _ in range(3)]
    opt = tx.init(part(own[0], _floating(params)))
    extra = Adapting(own[1], own[2])
    return State(jnp.int32(0), own[0], own_copy(stats), opt, extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Outputs]:
    check_key(key)
    batch = read_stream(batch, 'x')
    said = _answer(normalized, augment, threshold, views, state, batch, key)
    see = seen_by(normalized, state.stats, batch['x'], batch['weight'])
    mask = _floating(state.params)
    loss = lambda logits: agree(logits, said.logits)
    learned = descend(tx, state, mask, see, loss, batch['weight'])
    new, done, outputs = learned
    teacher, source = state.extra
    own = follow(part(teacher, mask), part(new.params, mask), decay)
    extra = Adapting(with_part(own, teacher), source)
    restore_key = jax.random.fold_in(key, RESTORE_TAG)
    params, _ = go_back(restore_key, new.params, source, restore)
    new = new._replace(params=params, extra=extra)
    rows = {**said.aux, **outputs.aux}
    return select(done, new, state), said._replace(aux=rows)

  return Adapter(init, step)


def _answer(
  model: Model,
  augment: Callable[[Key, Inputs], Inputs],
  threshold: Scalar,
  views: int,
  state: State,
  batch: Batch,
  key: Key,
) -> Outputs:
  """What the teacher says, of views if the source is unsure; and that."""
  x, weight, stats = batch['x'], batch['weight'], state.stats
  teacher, source = state.extra
  see = seen_by(model, stats, x, weight)
  confidence = jnp.max(jax.nn.softmax(see(source).logits), axis=-1)
  unsure = global_mean(confidence, weight) < threshold
  keys = example_keys(jax.random.fold_in(key, VIEWS_TAG), batch['index'])

  def of_view(key: Key) -> Outputs:
    return _summable(seen_by(model, stats, augment(key, x), weight)(teacher))

  said = lax.cond(
    unsure,
    lambda: _mean_of_views(of_view, keys, views),
    lambda: _summable(see(teacher)),
  )
  rows = {
    'confidence': confidence,
    'unsure': jnp.broadcast_to(jnp.float32(unsure), confidence.shape),
  }
  return said._replace(aux=rows)


def _floating(params: Params) -> Params:
  """Which parameters are numbers that can be learned."""
  return jax.tree.map(
    lambda p: jnp.issubdtype(jnp.result_type(p), jnp.floating), params
  )


def _summable(outputs: Outputs) -> Outputs:
  """Outputs in at least float32."""
  return jax.tree.map(
    lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), outputs
  )


def _mean_of_views(
  of_view: Callable[[Key], Outputs], keys: Key, views: int
) -> Outputs:
  """The mean of logits, and of features, over views that come in turn."""

  def one(i: Array) -> Outputs:
    return of_view(jax.vmap(jax.random.fold_in, (0, None))(keys, i))

  def add(total: Outputs, i: Array) -> tuple[Outputs, None]:
    return jax.tree.map(jnp.add, total, one(i)), None

  nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, jnp.int32(0)))
  total, _ = lax.scan(add, nothing, jnp.arange(views))
  return jax.tree.map(lambda a: a / views, total)


def confidence_quantile(
  model: Model, params: Params, stats: Stats, x: Inputs, q: float = 0.05
) -> Array:
  r"""How sure a network is of nearly all of the data it was trained on.

  The q-quantile over examples of max softmax, by its running statistics: a
  batch of a stream that is less sure on average is a hard one, the `threshold`
  of `cotta`.

  Args:
    model: the network.
    params: its parameters.
    stats: its batch statistics.
    x: [n, ...], of the source's own data, read 1,024 rows at a time.
    q: in [0, 1]; the 5% of the paper.

  Returns:
    [] float32 in [0, 1].

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if `q` is out of range, or there are no rows.

  >>> from jnl.steps import linear
  >>> model = linear(3, 2)
  >>> params, stats = model.init(jax.random.key(0))
  >>> float(confidence_quantile(model, params, stats, jnp.eye(3)))
  0.5

  Reference: see `cotta`.
  """
  check_model(model)
  check_range('q', q, 0, 1)
  n = jax.tree.leaves(x)[0].shape[0]
  check(n >= 1, 'x must have at least one row')

  @jax.jit
  def sure(rows: Inputs) -> Array:
    logits = model.apply(params, stats, rows, None, False)[0].logits
    return jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)

  parts = [
    sure(jax.tree.map(lambda a, i=i: a[i : i + ROWS], x))
    for i in range(0, n, ROWS)
  ]
  return jnp.quantile(jnp.concatenate(parts), q)
