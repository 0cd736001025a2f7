"""T-Revision: a transition matrix that is estimated, and then revised."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jnl import losses, transition
from jnl.base import (
  Array,
  Key,
  Method,
  Model,
  Params,
  PyTree,
  Refit,
  Scalar,
  State,
  check,
)
from jnl.methods._estimated import (
  Estimated,
  Seen,
  WithMatrix,
  check_estimate,
  train_by_estimate,
  with_matrix,
)
from jnl.methods._published import Case, Settings
from jnl.steps import select

STEEPEST = 1e6
"""Most of a slope of Delta: where T rules a label out that is seen, it has no
bound, and Adam squares it."""


def t_revision(
  model: Model,
  tx: optax.GradientTransformation,
  *,
  num_examples: int,
  num_classes: int,
  warmup: int = 20,
  revise: int = 220,
  quantile: Scalar | None = 0.97,
  revision_tx: optax.GradientTransformation | None = None,
) -> Method:
  r"""T-Revision: examples weighted by a transition matrix, revised at last.

  .. math:: L = \operatorname{mean}_i -\beta_i \log p_{i y_i}, \qquad
    \beta_i = \frac{p_{i y_i}}{(p_i (T + \Delta))_{y_i}}

  In three stages. `warmup` epochs of cross-entropy, after which T is estimated
  by anchors (`transition.anchor`). The network goes on from there, with weights
  that have no gradient and Delta = 0 (`losses.importance_reweight`). From epoch
  `revise` on gradients flow through the weights too, and network and Delta
  move together (`losses.t_revision`), by an optimizer of their own.

  Such a loss gives up the labels that are not believed by then. In the setting
  of `forward_t`, 10 epochs of warm-up and the revision from epoch 25 of 100, T
  is .14 off before it, and accuracy at the end is 90.4 at the published rate,
  which moves nothing in so short a time; 93.4 by Adam at 1e-4, T + Delta .16
  off; 95.8 by SGD at the rate of the second stage, where T + Delta is no
  transition matrix any more, 1.2 off; 86.0 +- 12.3, 3 seeds, where SGD at that
  rate moves the network and Adam Delta. With the revision from epoch 60 wrong
  labels are memorized before it: 78.8 at the published rate.

  The loss of the third stage has a bad minimum: a label that is given no
  probability has weight 0 and loss 0. The published rate is too low to get
  there; by Adam at 1e-3 a convolutional network on Fashion-MNIST (40% symmetric
  noise, 80.8 before) fell to 47 within four epochs, at a loss of .02.

  Args:
    model: the network.
    tx: the optimizer of the first two stages. It starts again after the
      estimate, its schedules too.
    num_examples: n.
    num_classes: c.
    warmup: epochs before the estimate, >= 1; see `forward_t`.
    revise: the epoch with which the revision begins, > `warmup`. A network that
      memorizes what the weights leave of wrong labels is to stop here.
    quantile: as for `forward_t`.
    revision_tx: the optimizer of the revision, over a `WithMatrix` (labels for
      `optax.partition` are `WithMatrix('net', 'matrix')`); by default that of
      the paper's code, Adam at 5e-7 with an L2 of 1e-4, which moves an entry of
      Delta by some 5e-7 a step and needs tens of thousands of them.

  Returns:
    A method over batches of `x`, `labels`, `weight` and `index`. `state.params`
    is a `WithMatrix`, of the network and Delta; `state.extra` is an
    `Estimated`; `estimated_transition` gives T + Delta. The first refit
    estimates, the second begins the revision; in a loop of one's own call it
    twice. Metrics: as `forward_t`, and inside jit a label that is out of range
    makes the loss NaN.

  Raises:
    TypeError: if `model` is no `Model`.
    ValueError: if a number is out of range, or a batch lacks an array.

  >>> import jax
  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = t_revision(model, optax.sgd(0.1), num_examples=4, num_classes=2)
  >>> batch = {'x': jnp.eye(2), 'labels': jnp.array([0, 1]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> state.params.matrix.tolist(), round(float(metrics['loss']), 3)
  ([[0.0, 0.0], [0.0, 0.0]], 0.693)

  Reference: Xia, Liu, Wang, Han, Gong, Niu, Sugiyama, "Are Anchor Points Really
  Indispensable in Label-Noise Learning?", NeurIPS 2019, arXiv 1906.00189. The
  official code goes on from the epoch of best accuracy on held-out noisy
  labels at both ends, here it is from the last one; of the two losses of its
  third stage see `losses.t_revision`.
  """
  check_estimate(warmup, quantile, num_classes)
  check(revise > warmup, f'revise must exceed warmup = {warmup}, got {revise}')
  if revision_tx is None:
    decay = optax.add_decayed_weights(1e-4)
    revision_tx = optax.chain(decay, optax.adam(5e-7))

  def estimate(seen: Seen) -> transition.Anchors:
    return transition.anchor(seen.probs, quantile=quantile, mask=seen.there)

  method = train_by_estimate(
    _loss,
    with_matrix(model, jnp.zeros((num_classes, num_classes), jnp.float32)),
    _in_stages(tx, revision_tx),
    estimate,
    num_examples=num_examples,
    num_classes=num_classes,
    warmup=warmup,
    restart=False,
  )
  assert method.refit is not None
  collect, first, _ = method.refit

  def update(state: State, tables: PyTree, key: Key) -> State:
    new, again = first(state, tables, key), state.extra.rounds > 0
    extra = select(again, state.extra, new.extra)
    return new._replace(
      opt=new.opt._replace(revising=again),
      extra=extra._replace(rounds=new.extra.rounds),
    )

  refit = Refit(collect, update, lambda epoch: epoch in (warmup, revise))
  return method._replace(refit=refit)


def _loss(
  logits: Array, labels: Array, params: Params, extra: Estimated
) -> Array:
  """The weights have a gradient only in the revision."""
  matrix = extra.transition
  return jnp.where(
    extra.rounds > 1,
    losses.t_revision(logits, labels, matrix, params.matrix),
    losses.importance_reweight(logits, labels, matrix),
  )


class _Stages(NamedTuple):
  """State of the optimizer: whether Delta moves, and those of both parts."""

  revising: Array
  before: optax.OptState
  revision: optax.OptState


def _in_stages(
  tx: optax.GradientTransformation, revision_tx: optax.GradientTransformation
) -> optax.GradientTransformation:
  """`tx` moves the network, until `revision_tx` moves it and the matrix."""

  def init(params: Params) -> _Stages:
    parts = tx.init(params.net), revision_tx.init(params)
    return _Stages(jnp.array(False), *parts)

  def update(
    gradient: Params, opt: optax.OptState, params: Params | None = None
  ) -> tuple[Params, optax.OptState]:
    assert params is not None
    steep = jnp.clip(gradient.matrix, -STEEPEST, STEEPEST)
    gradient = gradient._replace(matrix=steep)
    net, before = tx.update(gradient.net, opt.before, params.net)
    every, revision = revision_tx.update(gradient, opt.revision, params)
    alone = WithMatrix(net, jnp.zeros_like(params.matrix))
    parts = select(opt.revising, (opt.before, revision), (before, opt.revision))
    return select(opt.revising, every, alone), _Stages(opt.revising, *parts)

  return optax.GradientTransformation(init, update)


def _published(net: str, warmup: int, quantile: float | None) -> Settings:
  return Settings(
    source='code of Xia et al., arXiv 1906.00189, whose warm-up has no momentum'
    + ' (there ResNet-18)' * (net != 'resnet34'),
    method='t_revision',
    net=net,
    epochs=warmup + 400,
    batch_size=128,
    learning_rate=0.01,
    weight_decay=1e-4,
    drops=(40, 80),
    views='crop_flip',
    arguments={
      'warmup': warmup, 'revise': warmup + 200, 'quantile': quantile
    },
  )  # fmt: skip


SETTINGS: dict[Case, Settings] = {
  ('cifar10', 'symmetric', None): _published('preact_resnet18', 20, 0.97),
  ('cifar100', 'symmetric', None): _published('resnet34', 15, None),
}
"""Of any rate: the code has one setting for a data set."""
