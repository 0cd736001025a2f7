"""Belief propagation on counts as a method, and the baselines beside it."""

import functools

from contract import (
  HIDDEN,
  Contract,
  bags,
  instance_network,
  network,
  optimizer,
)
from fixture_methods import smooth
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, noise
from jnl.methods import dllp, easy_llp, pseudo_labels, refine, similarity_graph
from jnl.steps import bag_logits

KEY = jax.random.key(0)
N, M = 200, 8


@pytest.fixture(scope='module')
def clusters():
  """Two Gaussians, far apart but for some; x, labels, bags, counts."""
  rng = np.random.default_rng(0)
  labels = (rng.random(N) < 0.3).astype(np.int32)
  x = rng.normal(size=(N, 2)).astype(np.float32)
  x[:, 0] += 4 * labels
  bags = noise.cut_bags(rng.permutation(N - 3), M)  # three are in no bag
  return x, labels, bags, noise.rows_of_bags(labels, bags).sum(1)


def infer(clusters, **changes):
  x, _, bags, counts = clusters
  bags = {'index': bags.index, 'mask': bags.mask}
  arguments = {'counts': counts, **bags, **changes}
  return pseudo_labels(graph(x), **arguments)


def graph(x, metric='euclidean', **changes):
  return similarity_graph(jnp.asarray(x), metric=metric, **changes)


def test_counts_and_neighbors_tell_the_labels(clusters):
  found = infer(clusters)
  assert found.converged
  assert found.residual <= 1e-3
  assert found.iterations < 200
  assert np.mean(found.labels == clusters[1]) > 0.96
  np.testing.assert_array_equal(found.labels, found.marginals > 0.5)
  # The counts alone say the same of all instances of a bag.
  alone = infer(clusters, pair_strength=0.0, bag_strength=np.inf)
  share = clusters[3] / clusters[2].mask.sum(1)
  of_bags = noise.rows_of_bags(alone.marginals, clusters[2])
  mask = clusters[2].mask
  expected = np.broadcast_to(share[:, None], mask.shape)
  np.testing.assert_allclose(of_bags[mask], expected[mask], atol=1e-4)


def test_ties_are_kernels_of_distances(clusters):
  x = clusters[0]
  tied = graph(x, metric='cosine', scale=2.0)
  one, slot = np.nonzero(np.asarray(tied.weights))
  other = np.asarray(tied.neighbors)[one, slot]
  expected = np.exp(-np.linalg.norm(x[one] - x[other], axis=1) / 2)
  found = np.asarray(tied.weights)[one, slot]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert len(one) >= 5 * N


def test_the_units_do_not_matter_by_default(clusters):
  one, two = graph(clusters[0]), graph(64 * clusters[0])
  np.testing.assert_allclose(two.weights, one.weights, rtol=1e-5)
  fixed = graph(clusters[0], scale=1.0)
  assert np.abs(fixed.weights - one.weights).max() > 0.1


def test_proportions_are_counts(clusters):
  share = clusters[3] / clusters[2].mask.sum(1)
  one = infer(clusters)
  two = infer(clusters, counts=None, proportions=share)
  np.testing.assert_array_equal(one.marginals, two.marginals)
  with pytest.raises(ValueError, match='proportions'):
    infer(clusters, counts=None, proportions=share * 0.9)
  with pytest.raises(ValueError, match='either counts or proportions'):
    infer(clusters, proportions=share)
  with pytest.raises(ValueError, match='either counts or proportions'):
    infer(clusters, counts=None)


@pytest.mark.parametrize('missing', [False, True])
def test_counts_of_a_table_are_not_taken_for_proportions(clusters, missing):
  """A missing one has made them floating-point; 0 and 1 are shares as well."""
  counts = np.minimum(clusters[3], 1).astype(float)
  if missing:
    counts[3] = np.nan
  with pytest.raises(
    TypeError, match=r'counts must be integers, .*proportions='
  ):
    infer(clusters, counts=counts)


def test_decided_by_counts_they_hold(clusters):
  found = infer(clusters, decision='counts')
  held = noise.rows_of_bags(found.labels, clusters[2]).sum(1)
  np.testing.assert_array_equal(held, clusters[3])


def test_what_a_learner_says_is_heard(clusters):
  sure = np.where(clusters[1], 9.0, -9.0).astype(np.float32)
  found = infer(clusters, log_odds=jnp.asarray(sure))
  np.testing.assert_array_equal(found.labels, clusters[1])


def test_bags_of_one_are_labels(clusters):
  x, labels, _, _ = clusters
  bags = noise.cut_bags(np.arange(N), 1)
  with pytest.warns(UserWarning, match='every bag is pure'):
    found = pseudo_labels(
      graph(x), bags.index, bags.mask, labels, decision='counts'
    )
  np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'counts': np.zeros(25, int)}, 'counts: of the instances none is pos'),
    ({'counts': np.r_[[M] * 24, 5]}, 'counts: of the instances all are pos'),
    ({'counts': np.r_[[3] * 24, 9]}, 'counts must lie between 0 and'),
    ({'counts': np.ones(3, int)}, 'counts must be'),
    ({'decision': 'top'}, 'decision'),
    ({'pair_strength': -1.0}, 'pair_strength'),
  ],
)
def test_pseudo_labels_check_their_input(clusters, changes, message):
  with pytest.raises(ValueError, match=message):
    infer(clusters, **changes)


def test_graphs_check_their_input(clusters):
  x = clusters[0]
  with pytest.raises(ValueError, match='scale'):
    graph(x, scale=0.0)
  with pytest.raises(ValueError, match='k must lie'):
    graph(x, k=N)
  x = x.copy()
  x[3, 1] = np.nan
  with pytest.raises(ValueError, match='finite'):
    graph(x)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_constant_and_repeated_rows_are_no_trouble(clusters, metric):
  _, _, bags, counts = clusters
  tied = graph(np.zeros((N, 2), np.float32), metric=metric)
  found = pseudo_labels(tied, bags.index, bags.mask, counts)
  assert np.all(np.isfinite(found.marginals))


def batch_of(clusters, k=4):
  x, labels, bags, counts = clusters
  bags = noise.Bags(bags.index[-k:], bags.mask[-k:])  # the last one is short
  return {
    'x': np.array(noise.rows_of_bags(x, bags)),
    'mask': np.array(bags.mask),
    'counts': np.array(counts[-k:]),
    'instance_labels': np.array(noise.rows_of_bags(labels, bags)),
    'index': np.arange(k),
    'weight': np.float32([1, 2, 0, 0.5]),
  }


MODEL, HEAD, TX = smooth(2, 5, 2), smooth(5, 3, 2), optax.sgd(0.1)
METHODS = {
  'refine': lambda: refine(MODEL, HEAD, TX, bag_weight=0.3),
  'dllp': lambda: dllp(MODEL, TX, loss=losses.dllp_squared),
  'easy_llp': lambda: easy_llp(MODEL, TX, prior=0.3),
}


@functools.cache
def compiled(name):
  """A state to start from, and a step that is compiled once for all tests."""
  method = METHODS[name]()
  return jax.jit(method.init)(KEY), jax.jit(method.step)


def test_both_heads_of_the_embedding_learn(clusters):
  (state, step), batch = compiled('refine'), batch_of(clusters)
  _, metrics = step(state, batch, KEY)

  @jax.jit
  def by_hand(state):
    """Sums over the instances of a bag, and its loss: bag after bag."""
    instances, bags = [], []
    for b, there in enumerate(batch['mask']):
      outputs = MODEL.apply(
        state.params[0], {}, batch['x'][b][there], None, False
      )[0]
      labels = batch['instance_labels'][b][there]
      instances.append(losses.ce(outputs.logits, labels).sum())
      pooled = outputs.features.mean(0, keepdims=True)
      logits = HEAD.apply(state.params[1], {}, pooled, None, False)[0].logits
      share = batch['counts'][b] / there.sum()
      bags.append(losses.ce(logits, np.float32([[1 - share, share]]))[0])
    return instances, bags

  instances, bags = by_hand(state)
  weight, sizes = batch['weight'], batch['mask'].sum(1)
  expected = np.dot(weight, instances) / np.dot(weight, sizes)
  np.testing.assert_allclose(metrics['instances'], expected, rtol=1e-5)
  of_bags = np.dot(weight, bags) / weight.sum()
  np.testing.assert_allclose(metrics['bags'], of_bags, rtol=1e-5)
  loss = metrics['instances'] + 0.3 * metrics['bags']
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-6)


def test_padding_does_not_matter(clusters):
  (state, step), batch = compiled('refine'), batch_of(clusters)
  other = batch_of(clusters)
  assert not batch['mask'].all()
  other['x'][~batch['mask']] = 77
  other['instance_labels'][~batch['mask']] = -5
  one, two = step(state, batch, KEY), step(state, other, KEY)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize('name', METHODS)
def test_bags_of_weight_0_leave_no_trace(clusters, name):
  """Whatever they hold, and however they are padded."""
  (state, step), batch = compiled(name), batch_of(clusters)
  expected = step(state, batch, KEY)  # the third has weight 0
  assert np.isfinite(expected[1]['loss'])
  for count, label, fill in (-1, -1, np.nan), (99, 255, np.inf), (0, 7, 1e30):
    garbage = batch_of(clusters)
    garbage['x'][2], garbage['counts'][2] = fill, count
    garbage['instance_labels'][2], garbage['mask'][2] = label, count >= 0
    found = step(state, garbage, KEY)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('name', ['dllp', 'easy_llp'])
def test_baselines_are_their_losses_on_proportions(clusters, name):
  (state, step), batch = compiled(name), batch_of(clusters)
  share = batch['counts'] / batch['mask'].sum(1)
  both = np.stack([1 - share, share], axis=1).astype(np.float32)

  @jax.jit
  def values(state):
    logits = bag_logits(METHODS[name]().predict, state, batch['x'])
    if name == 'dllp':
      return losses.dllp_squared(logits, both, batch['mask'])
    return losses.easy_llp(logits, both, np.float32([0.7, 0.3]), batch['mask'])

  _, metrics = step(state, batch, KEY)
  expected = np.dot(batch['weight'], values(state)) / batch['weight'].sum()
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_hyperparameters_are_checked():
  with pytest.raises(ValueError, match='prior'):
    easy_llp(MODEL, TX, prior=1.5)
  with pytest.raises(ValueError, match='bag_weight'):
    refine(MODEL, MODEL, TX, bag_weight=-1.0)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return refine(instance_network(), network(HIDDEN, 2), optimizer())

  def arrays(self):
    return bags()
