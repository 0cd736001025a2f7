"""Few labels: papers that differ in which guesses count, each a rule.

All train by `weak_strong`, which says what batches hold and what is measured.
"""

import functools
import math

import optax

from jnl import pseudo
from jnl.base import Array, Method, Metrics, Model, Outputs, Scalar, check
from jnl.inputs import check_range
from jnl.methods._published import few_labels
from jnl.methods._weak_strong import weak_strong
from jnl.pseudo import Seen
from jnl.ramps import Schedule, linear_rampup


def pseudo_label(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  threshold: Scalar = 0.95,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """Pseudo-labels: sure guesses are learned on the view that they are of.

  Args:
    model: the network.
    tx: its optimizer.
    threshold: see `pseudo.fixed`.
    weight: see `weak_strong`. In the paper it rises from 0, such as
      `lambda step: ramps.linear_rampup(step, 4000)`.

  Returns:
    A method as of `weak_strong`, which needs no strong view.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = pseudo_label(linear(2, 2), optax.sgd(0.1))
  >>> method.init(jax.random.key(0)).extra  # no memory
  Guessing(policy=(), align=())

  Reference: see `pseudo.fixed`.
  """
  policy = pseudo.fixed(threshold)
  return weak_strong(model, tx, policy, student='x', weight=weight)


def uda(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  threshold: Scalar = 0.8,
  temperature: Scalar = 0.4,
  anneal: Schedule | None = None,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """Unsupervised data augmentation (UDA): sure guesses, sharpened, are learned.

  Args:
    model: the network.
    tx: its optimizer.
    threshold: see `pseudo.fixed`; it is of what is not sharpened.
    temperature: of the targets, > 0, see `pseudo.soft`.
    anneal: training signal annealing, a function of the step such as `lambda
      step: pseudo.annealing_threshold(step, 10_000, 10)`. A labeled row whose
      label is predicted with more than that counts for nothing; means are over
      all labeled rows.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> from jnl.steps import linear
  >>> method = uda(linear(2, 2), optax.sgd(0.1), temperature=0.5)

  Reference: Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for
  Consistency Training", NeurIPS 2020, arXiv 1904.12848.
  """
  return weak_strong(
    *(model, tx, pseudo.fixed(threshold)),
    target=pseudo.soft(temperature),
    weight=weight,
    anneal=anneal,
  )


def fixmatch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  threshold: Scalar = 0.95,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """FixMatch: sure guesses on a weak view are learned on a strong one.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The paper: SGD, rate .03, Nesterov momentum .9, weight
      decay 5e-4 (CIFAR-100: 1e-3), cosine(7/16) over 2^20 steps of 64 labeled
      and 448 unlabeled rows.
    threshold: see `pseudo.fixed`.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> import jax, jax.numpy as jnp
  >>> from jnl.steps import linear
  >>> method = fixmatch(linear(2, 2), optax.sgd(0.1))
  >>> state = method.init(jax.random.key(0))
  >>> batch = {'x': jnp.eye(2), 'x_strong': jnp.eye(2), 'index': jnp.arange(2),
  ...   'x_l': jnp.eye(2), 'labels_l': jnp.arange(2)}  # two rows with labels
  >>> _, metrics = jax.eval_shape(method.step, state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['loss', 'supervised', 'unsupervised', 'used']

  Reference: see `weak_strong`.
  """
  return weak_strong(model, tx, pseudo.fixed(threshold), weight=weight)


def flexmatch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  threshold: Scalar = 0.95,
  warmup: bool = True,
  weight: Scalar | Schedule = 1.0,
  shards: int = 1,
) -> Method:
  """FlexMatch: FixMatch, the threshold lower for what has been learned less.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The paper: as FixMatch's.
    num_examples: see `pseudo.flexmatch`: n of the data, without those of a
      stream `l`.
    num_classes: c.
    threshold: see `pseudo.flexmatch`.
    warmup: see `pseudo.flexmatch`.
    weight: see `weak_strong`.
    shards: see `pseudo.flexmatch`; the batch size of a stream `l` has to be a
      multiple of it.

  Returns:
    A method as of `weak_strong`. `state.extra.policy` is a `pseudo.Learned`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = flexmatch(
  ...   linear(2, 2), optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> method.init(jax.random.key(0)).extra.policy.chosen.rows.tolist()
  [[-1, -1, -1, -1]]

  Reference: see `pseudo.flexmatch`.
  """
  policy = pseudo.flexmatch(
    *(num_examples, num_classes),
    threshold=threshold,
    warmup=warmup,
    shards=shards,
  )
  return weak_strong(model, tx, policy, weight=weight)


def freematch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  momentum: Scalar = 0.999,
  quantile: Scalar | None = None,
  clip: Scalar | None = None,
  fairness: Scalar = 0.01,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """FreeMatch: FixMatch, with thresholds that follow how sure the network is.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The paper: as FixMatch's.
    num_classes: c.
    momentum: see `pseudo.freematch`.
    quantile: see `pseudo.freematch`.
    clip: see `pseudo.freematch`.
    fairness: >= 0, the weight of `pseudo.class_fairness`, which keeps classes
      from dying out. Official settings for CIFAR: .01, later .001.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`, with a metric `fairness`, before its weight.
    `state.extra.policy` is a `pseudo.Levels`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = freematch(linear(2, 2), optax.sgd(0.1), num_classes=2)
  >>> method.init(jax.random.key(0)).extra.policy.probs.tolist()
  [0.5, 0.5]

  Reference: see `pseudo.freematch`.
  """
  check_range('fairness', fairness, 0)

  def fair(
    memory: pseudo.Levels, seen: Seen, outputs: Outputs, weights: Array
  ) -> tuple[Array, Metrics]:
    rows = weights * seen.unlabeled
    term = pseudo.class_fairness(
      *(outputs.logits, rows, memory.probs, memory.shares)
    )
    return fairness * term, {'fairness': term}

  policy = pseudo.freematch(
    num_classes, momentum=momentum, quantile=quantile, clip=clip
  )
  return weak_strong(model, tx, policy, weight=weight, term=fair)


def softmatch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  n_sigma: Scalar = 2.0,
  momentum: Scalar = 0.999,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """SoftMatch: all guesses are learned, the unsure ones less.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The paper: as FixMatch's.
    num_classes: c.
    n_sigma: see `pseudo.softmatch`.
    momentum: of its averages and those of the alignment with uniform classes,
      by which rows are weighed; guesses are of what is not aligned.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`. `state.extra.policy` is a `pseudo.Spread`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> import jax
  >>> from jnl.steps import linear
  >>> method = softmatch(linear(2, 2), optax.sgd(0.1), num_classes=2)
  >>> float(method.init(jax.random.key(0)).extra.policy.variance)
  1.0

  Reference: see `pseudo.softmatch`.
  """
  align = pseudo.ema_alignment(num_classes, momentum=momentum)
  policy = pseudo.softmatch(
    num_classes, n_sigma=n_sigma, momentum=momentum, align=align
  )
  return weak_strong(model, tx, policy, weight=weight)


def adamatch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  threshold: Scalar = 0.95,
  momentum: Scalar = 0.999,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """AdaMatch: guesses aligned with labeled rows, if as sure as these are.

  What of the paper is for two domains, random logit interpolation, is not here.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer.
    num_classes: c.
    threshold: see `pseudo.relative`.
    momentum: of the mean predictions on labeled and on unlabeled rows, see
      `pseudo.ema_alignment`.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> from jnl.steps import linear
  >>> method = adamatch(linear(2, 2), optax.sgd(0.1), num_classes=2)

  Reference: see `pseudo.relative`.
  """
  align = pseudo.ema_alignment(num_classes, target='model', momentum=momentum)
  policy = pseudo.relative(threshold)
  return weak_strong(model, tx, policy, align=align, weight=weight)


def dash(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  steps_per_epoch: int,
  every: Scalar = 10,
  initial: Scalar | None = None,
  gamma: Scalar = 1.27,
  scale: Scalar = 1.0001,
  least: Scalar = 0.05,
  temperature: Scalar = 0.5,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  """Dash: guesses of a small loss, which has to be smaller and smaller.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer.
    num_classes: c.
    steps_per_epoch: n // batch size, >= 1.
    every: epochs after which the threshold falls, see `pseudo.dash_threshold`.
    initial: the mean loss on labeled rows when training starts, > 0; None is
      log c, that of a network that knows nothing. The paper trains it on
      labeled rows first.
    gamma: see `pseudo.dash_threshold`.
    scale: see `pseudo.dash_threshold`.
    least: see `pseudo.dash_threshold`.
    temperature: of the targets, until the threshold is least, see
      `pseudo.dash_targets`.
    weight: see `weak_strong`.

  Returns:
    A method as of `weak_strong`.

  Raises:
    TypeError, ValueError: as `weak_strong`.

  >>> from jnl.steps import linear
  >>> method = dash(
  ...   linear(2, 2), optax.sgd(0.1), num_classes=2, steps_per_epoch=9)

  Reference: see `pseudo.dash_threshold`.
  """
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  check(
    steps_per_epoch >= 1,
    f'steps_per_epoch must be at least 1, got {steps_per_epoch}',
  )
  check_range('every', every, 0, open_low=True)
  start = math.log(num_classes) if initial is None else initial
  period = every * steps_per_epoch
  falling = {
    'initial': start,
    'gamma': gamma,
    'scale': scale,
    'least': least,
  }
  policy = pseudo.dash(period, temperature=temperature, **falling)

  def target(probs: Array, step: Array) -> Array:
    rho = pseudo.dash_threshold(step, period, **falling)
    return pseudo.dash_targets(probs, rho, least=least, temperature=temperature)

  return weak_strong(model, tx, policy, target=target, weight=weight)


# --- published settings ------------------------------------------------------

SETTINGS = few_labels(
  'pseudo_label',
  {
    'threshold': 0.95,
    'weight': functools.partial(linear_rampup, length=0.4 * 2**20),
  },
  unlabeled=64,
)
UDA_SETTINGS = few_labels('uda', {'threshold': 0.8, 'temperature': 0.4})
FIXMATCH_SETTINGS = few_labels('fixmatch', {'threshold': 0.95})
FLEXMATCH_SETTINGS = few_labels(
  'flexmatch', {'threshold': 0.95, 'warmup': True}
)
FREEMATCH_SETTINGS = few_labels(
  'freematch', {'momentum': 0.999, 'fairness': 0.001}
)
SOFTMATCH_SETTINGS = few_labels(
  'softmatch', {'n_sigma': 2.0, 'momentum': 0.999}
)
ADAMATCH_SETTINGS = few_labels(
  'adamatch', {'threshold': 0.95, 'momentum': 0.999}
)
DASH_SETTINGS = few_labels(
  'dash',
  {
    # Ten epochs of 1,024 steps, where 50,000 // 448 are one here. It starts
    # from the loss after 2,048 steps on labeled rows.
    'every': 10 * 1024 / 111,
    'gamma': 1.27,
    'scale': 1.0001,
    'least': 0.05,
    'temperature': 0.5,
  },
)
