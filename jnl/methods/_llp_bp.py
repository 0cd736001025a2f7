"""Label proportions by belief propagation, and learning from what it says.

The method goes in rounds: beliefs over similar instances and counts make
pseudo-labels, a network is trained on these, and the next round has its
neighbors in what the network sees. `llp_bp` is all of it, as a method:

  method = llp_bp(x, bags, counts, model, tx)
  fit(method, {'x': rows_of_bags(x, bags), ...}, key, epochs=40)

Its parts are for rounds of one's own, on the host:

  covariates = x                                            # of all instances
  for _ in range(2):
    graph = similarity_graph(covariates)
    found = pseudo_labels(graph, index, mask, counts)
    # train `refine` on bags with found.labels; then the features of x:
    covariates = predict(state, x).features

and at the end a plain classifier on the last labels. `experiments/
label_proportions.py` is that loop with `fit`. No label of an instance is used.
"""

from collections.abc import Callable
import functools
from typing import Any, Literal, NamedTuple, get_args
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import belief, losses, neighbors, noise
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
  Refit,
  Scalar,
  State,
  Table,
  check,
  check_batch,
  global_mean,
  unpack_rows,
)
from jnl.neighbors import Graph, Metric, Search
from jnl.steps import (
  apply_to_bags,
  feature_width,
  from_loss,
  linear,
  mask_of,
  model_keys,
  proportions_of,
  training_pass,
)

Decision = Literal['threshold', 'counts']
HEAD_TAG = 1
"""Tag of the keys of the head on bags."""


class PseudoLabels(NamedTuple):
  """Pseudo-labels and marginals of instances, and how propagation ended.

  Attributes:
    labels: [n] int32, decided.
    marginals: [n], P(y_i = 1).
    converged: whether propagation came to rest. If not, the marginals are
      nothing in particular, though their order may still be of use.
    iterations: how many there were.
    residual: the largest change of a message in the last one.
  """

  labels: np.ndarray
  marginals: np.ndarray
  converged: bool
  iterations: int
  residual: float


def similarity_graph(
  covariates: Array,
  *,
  k: int = 5,
  metric: Metric = 'cosine',
  search: Search = 'exact',
  scale: float | None = None,
) -> Graph:
  r"""The graph of ties between instances that are most alike.

  .. math:: s_{ij} = \exp(-|z_i - z_j| / \sigma)

  for the k nearest (Matern 1/2, of Euclidean distances also where the cosine
  finds the neighbors).

  Args:
    covariates: z, [n, d] floating-point: inputs or an embedding.
    k: neighbors of each instance, in [1, n - 1].
    metric: of the search.
    search: how, as in `neighbors.knn`.
    scale: sigma > 0, 1 in the published code; by default twice the median
      distance of neighbors, so that ties weigh about .6 whatever the units: at
      a fixed scale an image, or an embedding that grew, has none.

  Returns:
    `Graph` of n vertices.

  Raises:
    TypeError, ValueError: if an argument is malformed, or a covariate is not
      finite.

  >>> z = jnp.array([[0., 1.], [1., 0.], [0., 2.], [2., 0.]])
  >>> similarity_graph(z, k=1).neighbors[:, 0].tolist()
  [2, 3, 0, 1]

  Reference: see `pseudo_labels`.
  """
  index, weights = _ties(covariates, k, metric, search, scale)
  return neighbors.graph_of_neighbors(index, weights)


def _ties(
  covariates: Array,
  k: int,
  metric: Metric,
  search: Search,
  scale: float | None,
) -> tuple[Array, Array]:
  """The neighbors [n, k] of instances and their similarities, under jit too."""
  check(scale is None or scale > 0, f'scale must be positive, got {scale}')
  near = neighbors.knn(covariates, k, metric=metric, search=search)
  distances = near.distances
  if metric != 'euclidean':
    distances = neighbors.pair_distances(covariates, near.index)
  if scale is not None:
    return near.index, neighbors.matern12(distances, scale=scale)
  median = jnp.median(distances)
  scale_of = jnp.where(median > 0, 2 * median, 1)
  return near.index, neighbors.matern12(distances, scale=scale_of)


def pseudo_labels(
  graph: Graph,
  index: Any,
  mask: Any,
  counts: Any = None,
  *,
  proportions: Any = None,
  pair_strength: float = 1.0,
  bag_strength: float = 1.0,
  log_odds: Array | None = None,
  iterations: int = 200,
  tolerance: Scalar = 1e-3,
  damping: Scalar = 0.7,
  decision: Decision = 'threshold',
) -> PseudoLabels:
  r"""Pseudo-labels of instances by belief propagation, given bag counts.

  Beliefs are propagated in the law

  .. math:: \log p(y) = \sum_i \theta_i y_i
    - \lambda_s \sum_{ij} s_{ij} (y_i - y_j)^2
    - \lambda_b \sum_b \Big(\sum_{i \in b} y_i - S_b\Big)^2 + const

  Args:
    graph: s, of n instances, as from `similarity_graph`.
    index: [k, m] int32, the instances of each bag, as in `noise.Bags`.
    mask: [k, m] bool, where there is one.
    counts: S, [k] int.
    proportions: S / m, [k] floating-point in [0, 1], in place of counts.
    pair_strength: lambda_s >= 0. The published code has 10 for both, with which
      propagation often does not converge; the paper tunes them for every set.
    bag_strength: lambda_b >= 0; infinity binds.
    log_odds: theta, [n], as of a learner's logits; not in the paper.
    iterations: the most there may be; 100 in the published code.
    tolerance: of the largest change of a message, in log-odds.
    damping: in [0, 1); .5 in the published code.
    decision: 'threshold' has the label 1 above a marginal of one half, as the
      published code does; 'counts' gives it to the S likeliest of each bag.

  Returns:
    `PseudoLabels`.

  Warns:
    UserWarning: if all bags are pure, so that there is nothing to infer.

  Raises:
    TypeError: if an array is of another kind; floating-point counts are, since
      they may be proportions.
    ValueError: if an argument is malformed, or not one of counts and
      proportions is given; if no instance or every instance of all bags is
      positive, so that no classifier can be learned.

  Reference: Havaldar, Sharma, Sareen, Shanmugam, Raghuveer, "Learning from
  Label Proportions: Bootstrapping Supervised Learners via Belief Propagation",
  ICLR 2024, arXiv 2310.08056, and its code; see `belief.label_proportions` for
  where they differ. There bags are products of pair factors; here exact counts.
  """
  _check_decision(decision)
  check(
    (counts is None) != (proportions is None),
    'pseudo_labels takes either counts or proportions',
  )
  if proportions is not None:
    counts = noise.counts_of_proportions(proportions, mask)
  counts = _read_counts(counts, mask)
  law = belief.label_proportions(
    graph,
    index,
    mask,
    counts,
    pair_strength=pair_strength,
    bag_strength=bag_strength,
  )
  if log_odds is not None:
    law = belief.add_log_odds(law, log_odds)
  found = belief.propagate(
    law, iterations=iterations, tolerance=tolerance, damping=damping
  )
  labels = _decided(found, decision, index, mask, counts)
  done = int(found.iterations)
  return PseudoLabels(
    np.asarray(labels, np.int32),
    np.asarray(found.marginals),
    bool(found.converged),
    done,
    float(found.residuals[done - 1]),
  )


def refine(
  model: Model,
  bag_head: Model,
  tx: optax.GradientTransformation,
  *,
  bag_weight: Scalar = 0.1,
) -> Method:
  r"""The second stage of LLP-BP: learns from pseudo-labels and from bags.

  The embedding that the next round ties by. With z the logits and h the
  features of the instances, y their pseudo-labels, and g the second head,

  .. math:: L = \operatorname{mean}_i \ell(z_i, y_i)
    + \lambda \operatorname{mean}_b \ell\Big(g\Big(\frac1{m_b}
      \sum_{i \in b} h_i\Big), \frac{S_b}{m_b}\Big)

  where l is the cross-entropy.

  Args:
    model: of instances, of two classes; its features are the embedding.
    bag_head: of mean embeddings [b, d], of two classes; published: one hidden
      layer of 64.
    tx: the optimizer.
    bag_weight: lambda >= 0.

  Returns:
    A method over batches of `x` [b, m, ...], `instance_labels` [b, m] int,
    `counts`, `index` and `weight` [b] and `mask` [b, m]; `predict` is of
    instances. Its parameters and statistics are pairs, those of `model` first.
    Metrics: `loss`, `instances` and `bags`, its two terms.

  Raises:
    ValueError: if `bag_weight` is negative.

  >>> from jnl.steps import linear
  >>> model = linear(2, 2)  # see `jnl.nets` for networks
  >>> method = refine(model, model, optax.sgd(0.1))  # of instances, of bags
  >>> labels = jnp.array([[0, 1, 0], [1, 1, 1]])  # as of `pseudo_labels`
  >>> batch = {'x': jnp.ones((2, 3, 2)), 'counts': jnp.array([1, 3]),
  ...   'instance_labels': labels,
  ...   'index': jnp.array([0, 3]), 'weight': jnp.ones(2)}
  >>> state = method.init(jax.random.key(0))
  >>> state, metrics = jax.jit(method.step)(state, batch, jax.random.key(1))
  >>> sorted(metrics)
  ['bags', 'instances', 'loss']

  Reference: Havaldar, Sharma, Sareen, Shanmugam, Raghuveer, "Learning from
  Label Proportions: Bootstrapping Supervised Learners via Belief Propagation",
  ICLR 2024, arXiv 2310.08056, and its code.
  """
  check(bag_weight >= 0, f'bag_weight must be >= 0, got {bag_weight}')

  def init(key: Key) -> tuple[Params, Any]:
    key_model, key_head = jax.random.split(key)
    both = model.init(key_model), bag_head.init(key_head)
    params, stats = zip(*both, strict=True)
    return params, stats

  def apply(
    params: Params, stats: Any, x: Inputs, keys: Key | None, train: bool
  ) -> tuple[Outputs, Any]:
    """Of the embedding alone; the loss applies the two one by one."""
    outputs, new = model.apply(params[0], stats[0], x, keys, train)
    return outputs, (new, stats[1])

  with_head = Model(init, apply)

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    stats, head_stats = state.stats
    outputs, stats = apply_to_bags(
      model, params[0], stats, batch['x'][None], batch, key
    )
    logits, features = outputs.logits[0], outputs.features[0]
    weight, mask = batch['weight'], mask_of(batch)
    labels = jnp.where(mask, batch['instance_labels'], 0)
    instances = global_mean(losses.ce(logits, labels), weight[:, None] * mask)
    there = jnp.where(mask[..., None], features, 0)
    sizes = jnp.maximum(jnp.sum(mask, axis=1), 1)
    pooled = jnp.sum(there, axis=1) / sizes[:, None]
    keys = model_keys(jax.random.fold_in(key, HEAD_TAG), batch)
    of_bags, head_stats = training_pass(
      bag_head, params[1], head_stats, pooled, keys, weight
    )
    bags = global_mean(losses.ce(of_bags.logits, proportions_of(batch)), weight)
    metrics = {'instances': instances, 'bags': bags}
    loss = instances + bag_weight * bags
    return loss, Aux((stats, head_stats), (), metrics)

  return from_loss(loss_fn, with_head, tx)


class Propagated(NamedTuple):
  """`State.extra` of `llp_bp`: the pseudo-labels of a round.

  Attributes:
    labels: [k, m] int32, of the instances of each bag; 0 in padding.
    converged: [] bool, whether propagation came to rest.
  """

  labels: Array
  converged: Array


def llp_bp(
  x: Any,
  bags: noise.Bags,
  counts: Any,
  model: Model,
  tx: optax.GradientTransformation,
  *,
  weight: Any = None,
  round_epochs: int = 20,
  bag_head: Model | None = None,
  bag_weight: Scalar = 0.1,
  k: int = 5,
  metric: Metric = 'euclidean',
  scale: float | None = None,
  pair_strength: float = 1.0,
  bag_strength: float = 1.0,
  iterations: int = 1000,
  tolerance: Scalar = 1e-3,
  damping: Scalar = 0.7,
  decision: Decision = 'threshold',
) -> Method:
  """LLP-BP: beliefs from counts and neighbors, a network on them, and again.

  The first pseudo-labels are made here, with neighbors in `x`; then `refine`
  trains on them. After so many epochs as a round has, a refit makes new ones,
  with neighbors in the features of the network, which starts anew: the last of
  the rounds is what predicts. `fit(epochs=2 * round_epochs)` has two, as
  published.

  Args:
    x: [n, ...], all instances, each in one bag.
    bags: k of up to m instances.
    counts: S, [k], the positives of each bag, whole numbers; anything, NaN too,
      where the weight is 0.
    model: of instances, of two classes; its features are the embedding.
    tx: the optimizer, which starts anew with each round.
    weight: [k]; 0 for a bag whose count is not known. Its instances are tied to
      others all the same.
    round_epochs: epochs of a round.
    bag_head: of mean embeddings, as for `refine`; by default linear (published:
      one hidden layer of 64).
    bag_weight: lambda >= 0, as for `refine`.
    k: neighbors of an instance.
    metric: that finds them; 'cosine' in the published code.
    scale: sigma, as for `similarity_graph`.
    pair_strength: lambda_s >= 0, as for `pseudo_labels`.
    bag_strength: lambda_b >= 0, as for `pseudo_labels`.
    iterations: of belief propagation, at the most.
    tolerance: as for `pseudo_labels`.
    damping: as for `pseudo_labels`.
    decision: as for `pseudo_labels`.

  Returns:
    A method over batches of the same bags: `x` [b, m, ...], `counts`, `index`
    and `weight` [b] and `mask` [b, m]; `predict` is of instances. Metrics:
    those of `refine`, and `converged`, 1 if the labels come from beliefs that
    came to rest.

  Warns:
    UserWarning: if all bags are pure, or propagation did not come to rest.

  Raises:
    TypeError, ValueError: as `pseudo_labels`; if an instance is in no bag, or a
      batch is of other bags.

  >>> from jnl.steps import linear
  >>> x = np.float32([[0, 1], [5, 1], [0, 2], [5, 2]])
  >>> bags = noise.bags_of_ids(['north', 'north', 'south', 'south'])
  >>> method = llp_bp(x, bags, [1, 1], linear(2, 2), optax.sgd(.1), k=1)
  >>> state = method.init(jax.random.key(0))
  >>> state.extra.labels.shape, bool(state.extra.converged)
  ((2, 2), True)

  Reference: Havaldar, Sharma, Sareen, Shanmugam, Raghuveer, "Learning from
  Label Proportions: Bootstrapping Supervised Learners via Belief Propagation",
  ICLR 2024, arXiv 2310.08056, and its code; see `belief.label_proportions` for
  where they differ. There a plain classifier is trained on the last labels.
  """
  check(
    round_epochs >= 1, f'round_epochs must be at least 1, got {round_epochs}'
  )
  x = np.asarray(x)
  if bag_head is None:
    bag_head = linear(feature_width(model, x[:1]), 2)
  inner = refine(model, bag_head, tx, bag_weight=bag_weight)
  places = _places(bags, len(x))
  infer = _inference(
    len(x),
    bags,
    counts,
    weight,
    functools.partial(_ties, k=k, metric=metric, search='exact', scale=scale),
    pair_strength=pair_strength,
    bag_strength=bag_strength,
    iterations=iterations,
    tolerance=tolerance,
    damping=damping,
    decision=decision,
  )
  first = jax.jit(infer)(jnp.asarray(x.reshape(len(x), -1), jnp.float32))
  if not first.converged:
    warnings.warn(
      f'belief propagation did not come to rest in {iterations} iterations: '
      'raise iterations or damping, or lower pair_strength',
      stacklevel=2,
    )
  return _in_rounds(inner, infer, jax.device_get(first), places, round_epochs)


def _inference(
  n: int,
  bags: noise.Bags,
  counts: Any,
  weight: Any,
  ties: Callable[[Array], tuple[Array, Array]],
  *,
  pair_strength: float,
  bag_strength: float,
  iterations: int,
  tolerance: Scalar,
  damping: Scalar,
  decision: Decision,
) -> Callable[[Array], Propagated]:
  """`covariates [n, d] -> Propagated`, of checked bags; runs under jit."""
  _check_decision(decision)
  check(
    0 <= pair_strength < np.inf,
    f'pair_strength must be finite and >= 0, got {pair_strength}',
  )
  index, mask = np.asarray(bags.index), np.asarray(bags.mask)
  known = _read_weight(weight, len(mask)) > 0
  counts = _read_counts(_of_known(counts, known), mask[known])
  of_known = index[known], mask[known], counts
  none = np.zeros([0, 2], int), np.zeros(0, np.float32)
  law = belief.label_proportions(
    neighbors.graph_of_edges(*none, n), *of_known, bag_strength=bag_strength
  )

  def infer(covariates: Array) -> Propagated:
    near, weights = ties(covariates)
    found = belief.propagate(
      belief.tie_neighbors(law, near, pair_strength * weights),
      iterations=iterations,
      tolerance=tolerance,
      damping=damping,
    )
    labels = _decided(found, decision, *of_known).astype(jnp.int32)
    of_bags = labels.at[index].get(mode='fill', fill_value=0)
    return Propagated(of_bags, found.converged)

  return infer


def _in_rounds(
  inner: Method,
  infer: Callable[[Array], Propagated],
  first: Propagated,
  places: np.ndarray,
  round_epochs: int,
) -> Method:
  """`refine` on pseudo-labels, the `first` and those of its own features."""
  k, m = first.labels.shape

  def init(key: Key) -> State:
    return inner.init(key)._replace(extra=jax.tree.map(jnp.asarray, first))

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    own = state.extra
    check_batch(batch, 'x', 'index')
    check(
      batch['x'].shape[1] == m,
      f'x must be of the bags that llp_bp was given, [b, {m}, ...], got shape '
      f'{batch["x"].shape}',
    )
    labels = own.labels.at[batch['index']].get(mode='fill', fill_value=0)
    batch = {**batch, 'instance_labels': labels}
    new, metrics = inner.step(state._replace(extra=()), batch, key)
    metrics = {**metrics, 'converged': own.converged.astype(jnp.float32)}
    return new._replace(extra=own), metrics

  def collect(state: State, batch: Batch, key: Key) -> Array:
    """Features [b, m, d] of the instances of bags."""
    del key
    rows = batch['x']
    flat = rows.reshape(-1, *rows.shape[2:])
    there = mask_of(batch).reshape(-1, *(1,) * (flat.ndim - 1))
    features = inner.predict(state, jnp.where(there, flat, 0)).features
    return features.astype(jnp.float32).reshape(*rows.shape[:2], -1)

  def update(state: State, table: Table, key: Key) -> State:
    features = unpack_rows(table, k)
    features = features.reshape(-1, features.shape[-1])[places]
    return inner.init(key)._replace(step=state.step, extra=infer(features))

  def when(epoch: int) -> bool:
    return epoch > 0 and epoch % round_epochs == 0

  return Method(init, step, inner.predict, Refit(collect, update, when))


def _places(bags: noise.Bags, n: int) -> np.ndarray:
  """Where each instance is among those of all bags, [n] in [0, k m)."""
  index, mask = np.asarray(bags.index), np.asarray(bags.mask)
  check(
    index[mask].max(initial=0) < n,
    f'bags must be of the {n} instances of x, got {index[mask].max()}',
  )
  places = np.full(n, -1)
  places[index[mask]] = np.flatnonzero(mask)
  check(
    (places >= 0).all(),
    f'bags: {(places < 0).sum()} of {n} instances are in no bag, the first is '
    f'{(places < 0).argmax()}; make a bag of them, with weight 0',
  )
  return places


def _of_known(counts: Any, known: np.ndarray) -> np.ndarray:
  counts = np.asarray(counts)
  check(
    counts.shape == known.shape,
    f'counts must be [k] with k = {len(known)} bags, got shape {counts.shape}',
  )
  counts = counts[known]
  whole = counts.dtype.kind == 'f' and bool((counts == np.round(counts)).all())
  return counts.astype(int) if whole else counts  # as a table has them


def _read_weight(weight: Any, k: int) -> np.ndarray:
  weight = np.ones(k) if weight is None else np.asarray(weight)
  check(
    weight.shape == (k,) and (weight >= 0).all() and weight.any(),
    f'weight must be [k] with k = {k}, not negative and not 0 everywhere, got '
    f'shape {weight.shape}',
  )
  return weight


def _check_decision(decision: str) -> None:
  check(
    decision in get_args(Decision),
    f'decision must be one of {get_args(Decision)}, got {decision!r}',
  )


def _decided(
  found: belief.Beliefs, decision: Decision, index: Any, mask: Any, counts: Any
) -> Array:
  """The labels [n] that beliefs say."""
  if decision == 'counts':
    return belief.top_of_bags(found.log_odds, index, mask, counts)
  return found.marginals > 0.5


def _read_counts(counts: Any, mask: Any) -> np.ndarray:
  """Checks counts; raises where there is but one class."""
  counts, sizes = np.asarray(counts), np.asarray(mask).sum(-1)
  check(
    np.issubdtype(counts.dtype, np.integer),
    f'counts must be integers, got {counts.dtype}: pass shares of the bags as '
    'proportions=; where counts became floating-point since some are missing '
    '(NaN), drop those bags, then counts.astype(int)',
    TypeError,
  )
  check(
    counts.shape == sizes.shape,
    f'counts must be [k] with k = {len(sizes)} bags, got shape {counts.shape}',
  )
  for nothing, what in ((0, 'none is'), (sizes, 'all are')):
    check(
      np.any(counts != nothing),
      f'counts: of the instances {what} positive, in every bag; the classifier '
      'would be degenerate, of one class',
    )
  if np.all((counts == 0) | (counts == sizes)):
    warnings.warn(
      'counts: every bag is pure, so that all labels are known; learn from '
      "these, or take decision='counts', which keeps them",
      stacklevel=3,
    )
  return counts
