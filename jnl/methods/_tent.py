"""Adapters that normalize by the batch, and TENT, which learns on it.

Also what adapters share, from `read_stream` on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import (
  Adapter,
  Array,
  Batch,
  Inputs,
  Key,
  Model,
  Outputs,
  Params,
  PyTree,
  State,
  Stats,
  check,
  check_batch,
  global_grad,
  global_mean,
  global_sum,
)
from jnl.steps import (
  guarded_step,
  positions,
  select,
  training_pass,
)
from jnl.teacher import batch_statistics, norm_parameters


def batch_norm_adapt(model: Model) -> Adapter:
  r"""Answers by the statistics of the batch; nothing is learned.

  .. math:: y = \gamma\, \frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}} + \beta

  in every layer of batch normalization, with the mean and variance of the batch
  that is asked about. The cheapest repair for fog, noise and blur, and what the
  other adapters start from. It needs batches of many examples and of about the
  classes of training: on a stream sorted by class it harms.

  Args:
    model: the trained network, with batch normalization and without dropout.

  Returns:
    An adapter over batches of `x` [b, ...]; `weight` [b] is optional, and a row
    of weight 0 is in no statistics. The state never changes, but for its step.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: from `init`, if the network has no batch statistics; from the
      step, as `teacher.batch_statistics`.

  >>> from jnl.nets import MLP, from_linen
  >>> model = from_linen(MLP(2, (4,), batch_norm=True), (3,))
  >>> adapter = batch_norm_adapt(model)
  >>> state = adapter.init(*model.init(jax.random.key(0)))
  >>> state, outputs = adapter.step(state, {'x': jnp.eye(3)}, jax.random.key(1))
  >>> outputs.logits.shape
  (3, 2)

  Reference: Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek, "Evaluating
  Prediction-Time Batch Normalization for Robustness under Covariate Shift",
  2020, arXiv 2006.10963; the row `BN` of Wang, Shelhamer, Liu, Olshausen,
  Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR
  2021, arXiv 2006.10726.
  """
  normalized = batch_statistics(model)

  def init(params: Params, stats: Stats) -> State:
    check(
      len(jax.tree.leaves(stats)) > 0,
      'stats is empty: the network has no batch normalization, so that its '
      'answers would be what they are without this',
    )
    params, stats = own_copy((params, stats))
    return State(jnp.int32(0), params, stats, (), ())

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Outputs]:
    del key
    batch = read_stream(batch, 'x')
    see = seen_by(normalized, state.stats, batch['x'], batch['weight'])
    outputs = see(state.params)
    return state._replace(step=state.step + 1), outputs

  return Adapter(init, step)


def tent(model: Model, tx: optax.GradientTransformation) -> Adapter:
  r"""Answers by the batch's statistics, then makes its own entropy smaller.

  .. math::
    L = \operatorname{mean}_B \Big[ -\sum_k p_k(x) \log p_k(x) \Big]

  by a step on the scales and biases of the normalization layers alone. The
  answers are those before the step.

  Entropy has a minimum where everything is one class: with a large rate, small
  batches or a long stream it gets there, without a sign. Watch the metric
  `loss`, and how many classes are answered.

  Args:
    model: the trained network, with normalization and without dropout.
    tx: of those parameters; in the paper Adam at .001 (batches of 200) on
      CIFAR-10, SGD of momentum .9 at .00025 (of 64) on ImageNet.

  Returns:
    An adapter over batches of `x` [b, ...]; `weight` [b] is optional, and a row
    of weight 0 leaves no trace. `outputs.aux` has rows `loss`, the entropy, and
    `skipped`, 1 for a batch whose loss or step is not finite, which changes
    nothing.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: from `init`, if the network has no normalization layer; from the
      step, as `teacher.batch_statistics`.

  >>> from jnl.nets import MLP, from_linen
  >>> model = from_linen(MLP(2, (4,), batch_norm=True), (3,))
  >>> adapter = tent(model, optax.adam(1e-3))
  >>> params, stats = model.init(jax.random.key(0))
  >>> state = adapter.init(params, stats)
  >>> state, outputs = adapter.step(state, {'x': jnp.eye(3)}, jax.random.key(1))
  >>> outputs.logits.shape, sorted(outputs.aux)
  ((3, 2), ['loss', 'skipped'])

  Reference: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time
  Adaptation by Entropy Minimization", ICLR 2021, arXiv 2006.10726.
  """
  normalized = batch_statistics(model)

  def init(params: Params, stats: Stats) -> State:
    mask = norm_parameters(params, stats)
    check(
      any(jax.tree.leaves(mask)),
      'params has no scale and bias of a normalization layer, which are what '
      'TENT learns, see teacher.norm_parameters',
    )
    params, stats = own_copy((params, stats))
    return State(jnp.int32(0), params, stats, tx.init(part(params, mask)), ())

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Outputs]:
    del key
    batch = read_stream(batch, 'x')
    weight = batch['weight']
    see = seen_by(normalized, state.stats, batch['x'], weight)
    mask = norm_parameters(state.params, state.stats)
    new, done, outputs = descend(tx, state, mask, see, losses.entropy, weight)
    return select(done, new, state), outputs

  return Adapter(init, step)


# --- shared by adapters -------------------------------------------------------


def read_stream(batch: Batch, *names: str) -> Batch:
  """A batch that has these arrays, its weights, and an index.

  Args:
    batch: what of it lacks is filled in: weights of 1, positions in the batch.
    *names: what must be there; the first one says how many rows there are.

  Returns:
    The batch.

  Raises:
    ValueError: if an array lacks, or `weight` or `index` is not [b].
  """
  check_batch(batch, *names)
  b = jax.tree.leaves(batch[names[0]])[0].shape[0]
  filled = {'weight': jnp.ones(b), 'index': positions(b), **batch}
  for name in ('weight', 'index'):
    check(
      jnp.shape(filled[name]) == (b,),
      f'{name} must be [b] = ({b},), got shape {jnp.shape(filled[name])}',
    )
  return filled


def own_copy(tree: PyTree) -> PyTree:
  """Arrays that nobody else holds: a step may donate its state."""
  return jax.tree.map(jnp.copy, tree)


def seen_by(
  model: Model, stats: Stats, x: Inputs, weight: Array
) -> Callable[[Params], Outputs]:
  """How a network sees a batch: `params -> Outputs`, rows of weight 0 hidden.

  Args:
    model: of `batch_statistics`.
    stats: of the trained network.
    x: [b, ...].
    weight: [b].
  """

  def see(params: Params) -> Outputs:
    outputs, _ = training_pass(model, params, stats, x, None, weight)
    return outputs._replace(aux={})

  return see


def part(params: Params, mask: PyTree) -> Params:
  """The parameters that a mask counts; None in the place of the others."""
  return jax.tree.map(lambda p, m: p if m else None, params, mask)


def with_part(own: Params, params: Params) -> Params:
  """Parameters of which a `part` is replaced."""
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    *(own, params),
    is_leaf=lambda leaf: leaf is None,
  )


def stays_finite(new: PyTree, old: PyTree) -> Array:
  """Whether no number that was finite has become infinite or NaN, [] bool.

  A finite gradient may lead there: by squares that an optimizer sums, or by a
  quotient in float16. Then all that comes after would be lost.

  Args:
    new: of arrays, such as parameters and the optimizer's state.
    old: a tree like it.
  """
  kept = [
    jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    if jnp.issubdtype(jnp.result_type(a), jnp.inexact)
  ]
  return jnp.all(jnp.array(kept, bool))


def descend(
  tx: optax.GradientTransformation,
  state: State,
  mask: PyTree,
  see: Callable[[Params], Outputs],
  loss: Callable[[Array], Array],
  weight: Array,
) -> tuple[State, Array, Outputs]:
  """A step on the mean loss of a batch, by the parameters of a mask alone.

  Args:
    tx: whose state is of these parameters.
    state: before.
    mask: a tree like the parameters, of Python bools.
    see: see `seen_by`.
    loss: `logits [b, c] -> [b]`.
    weight: [b].

  Returns:
    The state after; whether that is one to go on from, [] bool: the loss, its
    gradient and what they lead to are finite, and a row counts; and the outputs
    before, with rows `loss` and `skipped`.
  """

  def mean_loss(own: Params) -> tuple[Array, tuple[Outputs, Array]]:
    outputs = see(with_part(own, state.params))
    rows = loss(outputs.logits)
    return global_mean(rows, weight), (outputs, rows)

  own = part(state.params, mask)
  (value, (outputs, rows)), gradient = global_grad(mean_loss)(own)
  there = global_sum(jnp.sum(weight > 0)) > 0
  (new, _, opt), done = guarded_step(
    *(tx, gradient, (own, {}, state.opt), {}),
    jnp.isfinite(value) & there,
  )
  done &= stays_finite((new, opt), (own, state.opt))
  params = with_part(new, state.params)
  new = state._replace(step=state.step + 1, params=params, opt=opt)
  skipped = jnp.broadcast_to(1 - done.astype(jnp.float32), rows.shape)
  return new, done, outputs._replace(aux={'loss': rows, 'skipped': skipped})
