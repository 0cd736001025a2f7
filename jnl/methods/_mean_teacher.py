"""Mean Teacher: the average of a network says what its strong view should."""

import functools
from typing import Any, NamedTuple

import jax
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
  PyTree,
  Scalar,
  State,
  check,
)
from jnl.methods._elr_plus import read_labels
from jnl.methods._mixing import mixed_losses
from jnl.methods._published import few_labels
from jnl.methods._weak_strong import check_weight, correct_of, read_batch
from jnl.ramps import Schedule, at_step, linear_rampup
from jnl.steps import model_keys, training_pass
from jnl.teacher import Teacher, taught


class Lesson(NamedTuple):
  """A batch as a student and its teacher see it.

  Attributes:
    batch: joined, as `read_batch` gives it.
    logits: [b, c], the student's: of `x` where labeled, of `x_strong` else.
    probs: [b, c], the teacher's of `x`, at least float32, without gradient;
      uniform in rows of weight 0.
    labels: [b, c], uniform where there is none.
    present: [b], the weights of labeled rows.
    missing: [b], of the others.
    stats: batch statistics after the student's pass.
  """

  batch: Batch
  logits: Array
  probs: Array
  labels: Array
  present: Array
  missing: Array
  stats: PyTree


def mean_teacher(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  decay: Scalar | Schedule = 0.999,
  weight: Scalar | Schedule = 50.0,
) -> Method:
  r"""Few labels: a student learns to say what the average of its weights says.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[ -\log p_y(x) \right]
      + \lambda \operatorname{mean}_{\text{unlabeled}}
        \left[ \lVert p(x') - \bar p(x) \rVert^2 / c \right]

  with p-bar of the teacher, whose parameters follow the student's after every
  step (`teacher.follow`), without gradient. The student sees `x_strong`, the
  teacher `x`: in the paper two views of one kind.

  What differs from the paper: it compares the two on labeled rows as well;
  here, as in USB, on all of the others and those alone. The teacher has the
  running batch statistics and no dropout. USB's own code compares the teacher
  with itself, which has no gradient: it trains on labeled rows alone.

  Args:
    model: the network.
    tx: its optimizer.
    decay: d in [0, 1], or a function of the step; in the paper .99 at first,
      .999 later.
    weight: lambda >= 0, or a function of the step. It has to rise, the teacher
      knows nothing at first: `lambda step: 50 * ramps.linear_rampup(step,
      length)` with .4 of the training in USB.

  Returns:
    A method over batches of `x` and `x_strong`, `labels` [b] int or [b, c]
    soft, `labeled` [b] bool, `weight` and `index`; what labels unlabeled rows
    have is not looked at. Or over unlabeled rows and a stream `l` of labeled
    ones, as `steps.join_labeled` takes them. `predict` is the teacher's. A step
    whose loss is not finite is skipped. Metrics: `loss`, its terms `supervised`
    and `unsupervised` before lambda, `skipped`. If batches carry `truth` [b]
    int, for a report and nothing else, `correct` is the share of unlabeled rows
    where the teacher agrees with it.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `labeled` is not
      bool.
    ValueError: if a number is out of range, or at trace time, if a batch lacks
      an array or one is malformed.

  >>> from jnl.steps import linear
  >>> method = mean_teacher(linear(2, 2), optax.sgd(0.1), weight=1.0)
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, -1]), 'labeled': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['loss', 'skipped', 'supervised', 'unsupervised']

  Reference: Tarvainen, Valpola, "Mean teachers are better role models:
  Weight-averaged consistency targets improve semi-supervised deep learning
  results", NeurIPS 2017, arXiv 1703.01780.
  """
  check_weight(weight)
  loss_fn = functools.partial(_loss, model, weight)
  return taught(loss_fn, model, tx, decay=decay)


def _loss(
  model: Model,
  weight: Scalar | Schedule,
  params: Params,
  teacher: Teacher,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  lesson = read_lesson(model, params, teacher, state, batch, key)
  present, missing = lesson.present, lesson.missing
  targets = jnp.where((missing > 0)[:, None], lesson.probs, lesson.labels)
  supervised, unsupervised = mixed_losses(
    *(lesson.logits[:, None], targets[:, None], present, missing)
  )
  metrics = {
    'supervised': supervised,
    'unsupervised': unsupervised,
    **correct_of(lesson.batch, targets, missing),
  }
  loss = supervised + at_step(weight, state.step) * unsupervised
  return loss, Aux(lesson.stats, state.extra, metrics)


def read_lesson(
  model: Model,
  params: Params,
  teacher: Teacher,
  state: State,
  batch: Batch,
  key: Key,
) -> Lesson:
  """What a student and its teacher say of a batch, in one pass of each.

  Args:
    model: the network.
    params: of the student.
    teacher: as `teacher.taught` hands it on.
    state: the inner one.
    batch: see `mean_teacher`.
    key: of the step.

  Returns:
    See `Lesson`.

  Raises:
    TypeError, ValueError: as `read_batch`, or if the two views differ in shape.
  """
  batch, present, missing = read_batch(batch, 'x_strong', state.extra)

  def of_student(weak: Any, strong: Any) -> Array:
    weak, strong = jnp.asarray(weak), jnp.asarray(strong)
    check(
      weak.shape == strong.shape and weak.shape[:1] == present.shape,
      f'x and x_strong must both be [b, ...], with b as weight has it, '
      f'{present.shape}, got shapes {weak.shape} and {strong.shape}',
    )
    known = (present > 0).reshape(-1, *(1,) * (weak.ndim - 1))
    return jnp.where(known, weak, strong)

  x = jax.tree.map(of_student, batch['x'], batch['x_strong'])
  outputs, stats = training_pass(
    *(model, params, state.stats, x, model_keys(key, batch), batch['weight'])
  )
  said = teacher(batch['x']).logits
  c, wide = said.shape[-1], jnp.promote_types(said.dtype, jnp.float32)
  labels, _ = read_labels({**batch, 'weight': present}, c)
  there = (present + missing)[:, None] > 0
  probs = jnp.where(there, jax.nn.softmax(said.astype(wide)), 1 / c)
  return Lesson(batch, outputs.logits, probs, labels, present, missing, stats)


def _published_weight(step: Array) -> Array:
  return 50 * linear_rampup(step, 0.4 * 2**20)


SETTINGS = few_labels(
  'mean_teacher', {'weight': _published_weight, 'decay': 0.999}, unlabeled=64
)
