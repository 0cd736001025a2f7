"""FST: guesses of a teacher that follows a student of the future."""

import functools

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
  Model,
  Params,
  Scalar,
  State,
  global_mean,
)
from jnl.inputs import check_range
from jnl.methods._mean_teacher import read_lesson
from jnl.methods._weak_strong import check_weight, correct_of
from jnl.pseudo import Rule, Seen
from jnl.ramps import Schedule, at_step, ema_rate_warmup
from jnl.teacher import Teacher, taught


def fst(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  decay: Scalar | Schedule = 0.99,
  look_ahead: int = 3,
  mode: str = 'deep',
  policy: Rule | None = None,
  weight: Scalar | Schedule = 1.0,
  restore: bool = True,
  last: bool = True,
) -> Method:
  r"""Few labels: a teacher that looks ahead guesses on a weak view.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[ -\log p_y(x) \right]
      + \lambda \operatorname{mean}_{\text{unlabeled}, w} \left[
        -\log p_{\hat y}(x') \right],
    \qquad \hat y = \operatorname{argmax}_k \bar p_k(x)

  with p-bar of the teacher, which has followed K virtual steps of the student
  when it guesses for the real one, see `teacher.taught`; the student sees
  `x_strong`, the teacher `x`. The second mean is over the guesses that count, w
  from the policy.

  Nearly all that looking ahead gains is a quicker average, as it updates K + 2
  times in a step: `decay ** (K + 1)` with K = 0 gives about the same for a
  (K + 1)-th of the time, see experiments/look_ahead.py.

  What differs from the official code for few labels: it multiplies the second
  term by the rows over those that count, a constant of a percentile (1.25 for
  80%), and is infinite where none counts, here 0. The code for domain
  adaptation has no virtual steps in the first step, and without `last` its
  teacher does not follow after the real one; in both `restore` is False. Wide
  steps are on parts of this batch, there on batches to come.

  Args:
    model: the network.
    tx: its optimizer.
    decay: d in [0, 1], at first less: `ramps.ema_rate_warmup(step, rate=d)`; or
      a function of the step. The paper: .99 and .999.
    look_ahead: K >= 0, virtual steps, each of the cost of a real one; 0 is
      Mean Teacher's rule with hard guesses.
    mode: 'deep' (FST-D), one after the other; or 'wide' (FST-W), side by side.
    policy: which guesses count, a rule of `jnl.pseudo`; None for
      `pseudo.low_entropy(80)`, the official one.
    weight: lambda >= 0, or a function of the step.
    restore: see `teacher.taught`.
    last: see `teacher.taught`.

  Returns:
    A method over batches as of `mean_teacher`. `predict` is the teacher's. A
    step whose loss is not finite is skipped, virtual or real. Metrics: `loss`,
    its terms `supervised` and `unsupervised` before lambda, `used`, the mean of
    w over unlabeled rows, `skipped`; and `correct`, the share of used guesses
    that agree with `truth` [b] int where batches carry it.

  Raises:
    TypeError: if `model` is no `Model`, or at trace time if `labeled` is not
      bool.
    ValueError: if a number is out of range, or at trace time, if a batch lacks
      an array or one is malformed.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = fst(linear(2, 2), optax.sgd(0.1), policy=pseudo.everything())
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2),
  ...   'labels': jnp.array([0, -1]), 'labeled': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> float(metrics['used'])
  1.0

  Reference: Du, Shen, Wang, Fei, Li, Wu, Zhao, Fu, Liu, "Learning from Future:
  A Novel Self-Training Framework for Semantic Segmentation", NeurIPS 2022,
  arXiv 2209.06993.
  """
  check_weight(weight)
  rate = decay
  if not callable(rate):
    check_range('decay', rate, 0, 1)
    rate = functools.partial(ema_rate_warmup, rate=rate)
  policy = pseudo.low_entropy() if policy is None else policy
  return taught(
    *(functools.partial(_loss, model, policy, weight), model, tx),
    decay=rate,
    look_ahead=look_ahead,
    mode=mode,
    restore=restore,
    last=last,
    init_extra=lambda key: policy.init(),
  )


def _loss(
  model: Model,
  policy: Rule,
  weight: Scalar | Schedule,
  params: Params,
  teacher: Teacher,
  state: State,
  batch: Batch,
  key: Key,
) -> tuple[Array, Aux]:
  lesson = read_lesson(model, params, teacher, state, batch, key)
  present, missing = lesson.present, lesson.missing
  index, probs = lesson.batch['index'], lesson.probs
  memory, w = policy.apply(
    state.extra, Seen(probs, missing, present, index, state.step)
  )
  w = lax.stop_gradient(w)
  targets = jnp.where((w > 0)[:, None], pseudo.hard(probs), lesson.labels)
  learned = (present > 0) | (w > 0)  # others: 0 times NaN is NaN
  values = losses.ce(jnp.where(learned[:, None], lesson.logits, 0), targets)
  supervised = global_mean(values, present)
  unsupervised = global_mean(values, missing * w)
  metrics = {
    'supervised': supervised,
    'unsupervised': unsupervised,
    'used': global_mean(w, missing),
    **correct_of(lesson.batch, targets, missing * w),
  }
  loss = supervised + at_step(weight, state.step) * unsupervised
  return loss, Aux(lesson.stats, memory, metrics)
