"""The step that methods of few labels share: guess on one view, learn another.

What they differ in is which guesses count and how much, a rule of `jnl.pseudo`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jnl import losses, pseudo
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Metrics,
  Model,
  Outputs,
  Params,
  PyTree,
  Scalar,
  State,
  check,
  check_batch,
  global_mean,
  tables_of,
)
from jnl.pseudo import Rule, Seen
from jnl.ramps import Schedule, at_step
from jnl.steps import (
  apply_views,
  check_losses,
  from_loss,
  join_labeled,
  labels_of,
  model_keys,
)

Target = Callable[[Array, Array], Array]
"""What is learned, by (probabilities [b, c], the step []): [b, c]."""
Term = Callable[[PyTree, Seen, Outputs, Array], tuple[Array, Metrics]]
"""A further term of the loss, see `weak_strong`."""


class Guessing(NamedTuple):
  """The memory of `weak_strong`.

  Attributes:
    policy: of the rule that says which guesses count.
    align: of the rule that aligns them, `()` without one.
  """

  policy: PyTree
  align: PyTree


def weak_strong(
  model: Model,
  tx: optax.GradientTransformation,
  policy: Rule,
  *,
  align: Rule | None = None,
  target: Target = pseudo.hard,
  loss: Callable[[Array, Array], Array] = losses.ce,
  student: str = 'x_strong',
  weight: Scalar | Schedule = 1.0,
  anneal: Schedule | None = None,
  term: Term | None = None,
) -> Method:
  r"""Few labels: guesses on a weak view, where they count, teach a strong one.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[ -\log p_y \right]
      + \lambda \operatorname{mean}_{\text{unlabeled}}
        \left[ w\, \ell(z', t) \right]

  with p of the weak view `x`, z' of the strong one, t = `target` of p without
  gradient, and w from the policy. Means are over all rows of a kind, those that
  do not count (w = 0) too, of all devices.

  Args:
    model: the network. Papers evaluate its average: `teacher.averaged`.
    tx: its optimizer.
    policy: which guesses count, a rule of `jnl.pseudo`. It sees what is
      aligned.
    align: what is done to predictions before they are guesses, such as
      `pseudo.ema_alignment`; None for nothing.
    target: t, `(probs [b, c], step []) -> [b, c]`: `pseudo.hard`, or
      `pseudo.soft(temperature)`.
    loss: of the strong view, `(logits [b, c], targets [b, c]) -> [b]`.
    student: the view that learns; 'x' for the weak one itself.
    weight: lambda >= 0, or a function of the step.
    anneal: labeled rows with p_y above this function of the step count for
      nothing, as `pseudo.annealing_threshold`; None for all.
    term: `(policy's memory, seen, outputs of the student's view, w [b]) ->
      (loss [], metrics)`, added to the loss as it is.

  Returns:
    A method over batches of `x`, `x_strong`, `labels` [b] int, `labeled` [b]
    bool, `weight` and `index`; what labels unlabeled rows have is not looked
    at. Or over unlabeled rows and a stream `l` of labeled ones, as
    `steps.join_labeled` takes them. `state.extra` is a `Guessing`. Metrics:
    `loss`, `supervised` and `unsupervised` (before lambda), `used`, the mean of
    w over unlabeled rows, and those of `term`. If batches carry `truth` [b]
    int, for a report and nothing else, `correct` is the share of used guesses
    that agree with it.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `labeled` is not
      bool.
    ValueError: if a number is out of range, or at trace time, if a batch lacks
      an array or one is malformed.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = weak_strong(model, optax.sgd(0.1), pseudo.everything())
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, -1]), 'labeled': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['used'])
  1.0

  Reference: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel,
  "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
  Confidence", NeurIPS 2020, arXiv 2001.07685.
  """
  check_weight(weight)

  def init_extra(key: Key) -> Guessing:
    del key
    return Guessing(policy.init(), align.init() if align else ())

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    batch, present, missing = read_batch(batch, student, state.extra)
    weak, strong, stats = _views(
      model, params, state, batch, key, student, present + missing, missing
    )
    seen = Seen(
      jax.nn.softmax(lax.stop_gradient(_floats(weak))),
      *(missing, present, batch['index'], state.step),
    )
    memory, seen, w = _guess(policy, align, state.extra, seen)
    c = weak.shape[-1]
    targets = lax.stop_gradient(target(seen.probs, state.step))
    used = (w > 0)[:, None]  # others must not reach a loss: 0 times NaN is NaN
    targets = jnp.where(used, targets, 1 / c)
    values = loss(jnp.where(used, strong.logits, 0), targets)
    check_losses(values, w)
    parts = {
      'supervised': _supervised(weak, batch, present, anneal, state.step),
      'unsupervised': global_mean(values, missing * w, missing),
    }
    lam = at_step(weight, state.step)
    total = parts['supervised'] + lam * parts['unsupervised']
    if term is not None:
      added, own = term(memory.policy, seen, strong, w)
      total, parts = total + added, {**parts, **own}
    parts['used'] = global_mean(w, missing)
    parts |= correct_of(batch, targets, missing * w)
    return total, Aux(stats, memory, parts)

  return from_loss(loss_fn, model, tx, init_extra=init_extra)


def check_weight(weight: Scalar | Schedule) -> None:
  """Raises ValueError if a weight is a negative number.

  Args:
    weight: or a function of the step.
  """
  check(
    callable(weight) or weight >= 0, f'weight must be at least 0, got {weight}'
  )


def read_batch(
  batch: Batch, second: str, extra: PyTree
) -> tuple[Batch, Array, Array]:
  """A batch of rows of both kinds, and the weights of each kind.

  Args:
    batch: of one stream with a mask, or of two, see `weak_strong`.
    second: the name of the second view that it must have.
    extra: the memory, whose tables streams have to fit.

  Returns:
    The batch, joined; [b] weights of labeled rows, and of the others, 0 else.

  Raises:
    TypeError: if `labeled` is not bool.
    ValueError: if an array lacks or does not fit.
  """
  if 'x_l' in batch:
    sizes = [jax.tree.leaves(batch[k])[0].shape[0] for k in ('x', 'x_l')]
    for table in tables_of(extra):
      shards = table.rows.shape[0]
      check(
        all(size % shards == 0 for size in sizes),
        f'x and x_l must have numbers of rows that {shards}, the shards of the '
        f'memory, divides; got {sizes[0]} and {sizes[1]}',
      )
  batch = join_labeled(batch)
  check_batch(batch, 'x', second, 'labels', 'labeled', 'weight', 'index')
  labeled, weight = jnp.asarray(batch['labeled']), jnp.asarray(batch['weight'])
  check(
    labeled.dtype == bool,
    f'labeled must be bool, got {labeled.dtype}',
    TypeError,
  )
  check(weight.ndim == 1, f'weight must be [b], got shape {weight.shape}')
  check(
    labeled.shape == weight.shape,
    f'labeled must be [b], as weight is: {weight.shape}, got {labeled.shape}',
  )
  return batch, jnp.where(labeled, weight, 0), jnp.where(labeled, 0, weight)


def correct_of(batch: Batch, targets: Array, weights: Array) -> Metrics:
  """The share of guesses that agree with `truth`, if batches carry it.

  Args:
    batch: perhaps with `truth` [b] int.
    targets: [b, c], the guesses.
    weights: [b], of those that count.

  Returns:
    `{'correct': []}`, or nothing.

  Raises:
    ValueError: if `truth` is not [b].
  """
  if 'truth' not in batch:
    return {}
  truth = jnp.asarray(batch['truth'])
  check(
    truth.shape == weights.shape,
    f'truth must be [b], as weight is: {weights.shape}, got {truth.shape}',
  )
  right = jnp.argmax(targets, axis=-1) == truth
  return {'correct': global_mean(right, weights)}


def _views(
  model: Model,
  params: Params,
  state: State,
  batch: Batch,
  key: Key,
  student: str,
  weak_weight: Array,
  strong_weight: Array,
) -> tuple[Array, Outputs, PyTree]:
  """Logits of the weak view, outputs of the other one, new statistics."""
  names, weights = ['x'], [weak_weight]
  if student != 'x':
    names, weights = [*names, student], [*weights, strong_weight]
  outputs, stats = apply_views(
    *(model, params, state.stats, [batch[name] for name in names]),
    *(model_keys(key, batch), jnp.stack(weights, axis=1)),
  )
  strong = jax.tree.map(lambda a: a[:, -1], outputs)
  return outputs.logits[:, 0], strong, stats


def _guess(
  policy: Rule, align: Rule | None, extra: Guessing, seen: Seen
) -> tuple[Guessing, Seen, Array]:
  """The memory after a batch, what is seen aligned, and the weights."""
  aligned: PyTree = ()
  if align is not None:
    aligned, probs = align.apply(extra.align, seen)
    seen = seen._replace(probs=probs)
  memory, weights = policy.apply(extra.policy, seen)
  return Guessing(memory, aligned), seen, lax.stop_gradient(weights)


def _supervised(
  logits: Array,
  batch: Batch,
  present: Array,
  anneal: Schedule | None,
  step: Array,
) -> Array:
  """Cross-entropy of labeled rows; others may have any label."""
  labels = labels_of({**batch, 'weight': present})
  if labels.ndim == 1:
    labels = jnp.where(present > 0, labels, 0)
  values = losses.ce(jnp.where(present[:, None] > 0, logits, 0), labels)
  if anneal is None:
    return global_mean(values, present)
  kept = lax.stop_gradient(jnp.exp(-values)) <= anneal(step)
  return global_mean(values, present * kept, present)


def _floats(logits: Array) -> Array:
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
