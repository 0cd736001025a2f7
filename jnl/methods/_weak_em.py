"""Learning from weak evidence about bags of instances, by exact EM."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.automata import Inference
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
  check,
  check_batch,
  global_mean,
)
from jnl.steps import apply_to_bags, from_loss, mask_of


def weak_em(
  model: Model,
  tx: optax.GradientTransformation,
  infer: Callable[[Array, Batch], Inference],
  *,
  likelihood_weight: Scalar = 1.0,
  em_weight: Scalar = 1.0,
) -> Method:
  r"""EM on any evidence `jnl.automata` can infer from: counts, pairs, ...

  With z the logits of the instances of a bag, W what is known of it and z' the
  logits of the strong views (of the same view, where there is no other),

  .. math:: \ell = -\lambda_1 \log P(W \mid z)
    - \lambda_2\, \frac1m \sum_i \sum_k q_{ik} \log \mathrm{softmax}(z'_i)_k,
    \qquad q = \mathrm{sg}\, P(y \mid W, z)

  a mean over bags of the first term and over instances of the second. On one
  view the two have the same gradient, but for the weight of long bags.

  Batches have `x` [b, m, ...] (and `x_strong`, the same), `mask` [b, m] bool
  where bags are ragged, `index` and `weight` [b], and what `infer` reads. A bag
  whose evidence is impossible counts for nothing; the metric `infeasible` is
  the share of these. One with a logit that is NaN does count, so that the loss
  of a run that has diverged is NaN; one of weight 0 never does.

  Args:
    model: of instances.
    tx: the optimizer.
    infer: `(logits [b, m, c], batch) -> Inference`, such as `lambda logits,
      batch: automata.count(logits, batch['counts'], batch.get('mask'))`.
    likelihood_weight: lambda_1 >= 0.
    em_weight: lambda_2 >= 0.

  Returns:
    The method; `predict` is of instances, x [b, ...]. Metrics: `loss`, `nll`
    and `em`, its two terms, and `infeasible`.

  Raises:
    ValueError: if a weight is negative, or at trace time if a batch lacks an
      array.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> from jnl import automata
  >>> method = weak_em(model, optax.sgd(0.1), lambda logits, batch:
  ...   automata.pair(logits, automata.similarity(batch['similar'])))
  >>> batch = {'x': jnp.ones((2, 2, 2)), 'similar': jnp.array([True, False]),
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['em', 'infeasible', 'loss', 'nll']

  Reference: Chen et al., "A General Framework for Learning from Weak
  Supervision", ICML 2024, arXiv 2402.01922. The official code's recursions are
  not exact for counts, multiple instances and confidences; these are.
  """
  check(likelihood_weight >= 0, 'likelihood_weight must not be negative')
  check(em_weight >= 0, 'em_weight must not be negative')

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    check_batch(batch, 'x', 'weight', 'index')
    names = ['x', 'x_strong'] if 'x_strong' in batch else ['x']
    views = jnp.stack([batch[name] for name in names])
    outputs, stats = apply_to_bags(
      model, params, state.stats, views, batch, key
    )
    logits = outputs.logits
    found = infer(logits[0], batch)
    weight, mask = batch['weight'], mask_of(batch)
    usable = weight * found.feasible
    nll = global_mean(-found.log_likelihood, usable)
    targets = jax.lax.stop_gradient(found.posterior)
    # A distribution also where there is no instance, or none that is a number:
    # there the logits are NaN as well.
    known = mask[..., None] & ~jnp.isnan(targets)
    targets = jnp.where(known, targets, 1 / targets.shape[-1])
    em = global_mean(losses.ce(logits[-1], targets), usable[:, None] * mask)
    infeasible = global_mean(1.0 - found.feasible, weight)
    metrics = {'nll': nll, 'em': em, 'infeasible': infeasible}
    return likelihood_weight * nll + em_weight * em, Aux(stats, (), metrics)

  return from_loss(loss_fn, model, tx)
