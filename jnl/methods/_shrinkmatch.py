"""ShrinkMatch: sure guesses, and unsure ones among the classes left to them."""

import math

import jax
import jax.numpy as jnp
import optax

from jnl import pseudo
from jnl.base import (
  Array,
  Inputs,
  Key,
  Method,
  Metrics,
  Model,
  Outputs,
  Params,
  Scalar,
  Stats,
  check,
  global_mean,
)
from jnl.methods._published import few_labels
from jnl.methods._weak_strong import weak_strong
from jnl.pseudo import Rule, Seen, Shrinking
from jnl.ramps import Schedule, at_step
from jnl.steps import check_model

SLOPE = 0.1
"""Of the leaky ReLU in the auxiliary head."""


def auxiliary_head(model: Model, num_features: int, num_classes: int) -> Model:
  """A network with a second head on its features, in `Outputs.aux`.

  Of three layers, d to d / 4 to d / 4 to c, with leaky ReLUs between them. The
  official head has batch normalization, of strong views of unlabeled examples
  alone; this one has none, as a network sees all rows of a batch.

  Args:
    model: the network; what it has in `Outputs.aux` is replaced.
    num_features: d of its features; `steps.feature_width(model, x[:1])`.
    num_classes: c.

  Returns:
    A model whose parameters are `'net'` and `'head'`, and `Outputs.aux` logits
    [b, c]. Logits and features are those of the network.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is less than 1.

  >>> from jnl.steps import linear
  >>> model = auxiliary_head(linear(8, 3), num_features=8, num_classes=3)
  >>> params, stats = model.init(jax.random.key(0))
  >>> model.apply(params, stats, jnp.ones((5, 8)), None, False)[0].aux.shape
  (5, 3)

  Reference: see `shrinkmatch`.
  """
  check_model(model)
  for name, size in (
    ('num_features', num_features),
    ('num_classes', num_classes),
  ):
    check(size >= 1, f'{name} must be at least 1, got {size}')
  hidden = max(1, num_features // 4)
  widths = (num_features, hidden, hidden, num_classes)

  def init(key: Key) -> tuple[Params, Stats]:
    key_net, *keys = jax.random.split(key, len(widths))
    net, stats = model.init(key_net)
    head = [
      {
        'weights': jax.random.normal(k, (d, e)) * math.sqrt(2 / d),
        'bias': jnp.zeros(e),
      }
      for k, d, e in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    return {'net': net, 'head': head}, stats

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    *mask: Array,
  ) -> tuple[Outputs, Stats]:
    outputs, stats = model.apply(params['net'], stats, x, keys, train, *mask)
    z = outputs.features
    for i, layer in enumerate(params['head']):
      z = jax.nn.leaky_relu(z, SLOPE) if i else z
      z = z @ layer['weights'] + layer['bias']
    return outputs._replace(aux=z), stats

  return Model(init, apply)


def shrinkmatch(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  num_features: int | None = None,
  threshold: Scalar = 0.95,
  momentum: Scalar = 0.999,
  align: Rule | None = None,
  weight: Scalar | Schedule = 1.0,
) -> Method:
  r"""ShrinkMatch: a guess that is not sure is learned among fewer classes.

  .. math::
    L = \operatorname{mean}_{\text{labeled}} \left[ -\log p_y \right]
      + \lambda \operatorname{mean}_{\text{unlabeled}} \left[
        1[\max p \ge \tau] H(p, p') + \rho\, \ell(a', p) \right]

  with p of the weak view, p' of the strong one, a' the logits of its auxiliary
  head, l `pseudo.shrunk_cross_entropy`, and rho the moving average of the share
  of sure guesses, see `pseudo.shrinking`.

  Args:
    model: the network. The paper evaluates its average: `teacher.averaged`.
    tx: its optimizer. The paper on CIFAR: SGD, rate .03, Nesterov momentum .9,
      weight decay 5e-4 (CIFAR-100: 1e-3), cosine(7/16) over 2^20 steps of 64
      labeled and 448 unlabeled rows.
    num_classes: c.
    num_features: d of the network's features, on which `auxiliary_head` puts a
      head. None if `Outputs.aux` are the logits [b, c] of one already.
    threshold: tau in [0, 1]; .7 on ImageNet.
    momentum: of rho, in [0, 1].
    align: see `weak_strong`; `pseudo.queue_alignment(c)` in the code.
    weight: lambda, see `weak_strong`; 10 on ImageNet.

  Returns:
    A method as of `weak_strong`, with two more metrics: `shrunk`, the last term
    before lambda, and `used_shrunk`, the share of unlabeled rows that it is of.
    `predict` has the logits of the first head.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or at trace time, if a batch lacks
      an array or the network an auxiliary head.

  >>> from jnl.steps import linear
  >>> model, tx = linear(4, 3), optax.sgd(0.1)
  >>> method = shrinkmatch(model, tx, num_classes=3, num_features=4)
  >>> batch = {'x': jnp.eye(4), 'x_strong': jnp.eye(4),
  ...   'labels': jnp.array([0, -1, -1, -1]), 'labeled': jnp.arange(4) < 1,
  ...   'index': jnp.arange(4), 'weight': jnp.ones(4)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(state.params), float(metrics['used_shrunk'])
  (['head', 'net'], 0.0)

  Reference: Yang, Zhao, Qi, Qiao, Shi, Zhao, "Shrinking Class Space for
  Enhanced Certainty in Semi-Supervised Learning", ICCV 2023, arXiv 2308.06777.
  """
  check(num_classes >= 2, f'num_classes must be at least 2, got {num_classes}')
  if num_features is not None:
    model = auxiliary_head(model, num_features, num_classes)

  def term(
    memory: Shrinking, seen: Seen, outputs: Outputs, weights: Array
  ) -> tuple[Array, Metrics]:
    del weights
    logits, expected = outputs.aux, (len(seen.probs), num_classes)
    check(
      getattr(logits, 'shape', None) == expected,
      f'model must have the logits {expected} of an auxiliary head in '
      '`Outputs.aux`; num_features=d puts one on its features [b, d]',
    )
    values = pseudo.shrunk_cross_entropy(
      logits, seen.probs, threshold=threshold
    )
    counts = pseudo.shrinkable(seen.probs, threshold=threshold)
    shrunk = memory.ratio * global_mean(values, seen.unlabeled)
    return at_step(weight, seen.step) * shrunk, {
      'shrunk': shrunk,
      'used_shrunk': global_mean(counts, seen.unlabeled),
    }

  return weak_strong(
    *(model, tx, pseudo.shrinking(threshold, momentum=momentum)),
    align=align,
    target=pseudo.soft(),
    weight=weight,
    term=term,
  )


# --- published settings ------------------------------------------------------

SETTINGS = few_labels(
  'shrinkmatch',
  *(
    {'threshold': 0.95, 'align': pseudo.queue_alignment(num_classes)}
    for num_classes in (10, 100)
  ),
  source='official code of arXiv 2308.06777, CIFAR/shrinkmatch.py, with --DA; '
  'it was run with 40 labels of CIFAR-10 and 400 of CIFAR-100',
  net='wide_resnet28_8',
)
