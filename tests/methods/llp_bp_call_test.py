"""LLP-BP as one method: its parts by hand, rounds, what is not known."""

from contract import Contract, bags, instance_network, network, optimizer
from fixture_methods import smooth
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import belief, neighbors, nets, noise
from jnl.methods import llp_bp, pseudo_labels, refine, similarity_graph
from jnl.steps import linear
from jnl.train import fit

KEY = jax.random.key(0)
N, M = 93, 8


def clusters(n=N, m=M):
  """Two Gaussians far apart; x, labels, bags of which one is short, counts."""
  rng = np.random.default_rng(0)
  labels = (rng.random(n) < 0.4).astype(np.int32)
  x = rng.normal(size=(n, 2)).astype(np.float32)
  x[:, 0] += 5 * labels
  bags = noise.cut_bags(rng.permutation(n), m)
  return x, labels, bags, noise.rows_of_bags(labels, bags).sum(1)


X, LABELS, BAGS, COUNTS = clusters()
MODEL, TX = smooth(2, 5, 2), optax.sgd(0.1)


def make(**changes):
  arguments = {'x': X, 'bags': BAGS, 'counts': COUNTS, **changes}
  return llp_bp(model=MODEL, tx=TX, **arguments)


def arrays(**changes):
  x = noise.rows_of_bags(X, BAGS)
  return {'x': x, 'mask': BAGS.mask, 'counts': COUNTS, **changes}


@pytest.fixture(scope='module')
def method():
  return make()


@pytest.mark.slow
def test_the_first_labels_are_those_of_the_parts(method):
  start = method.init(KEY)
  graph = similarity_graph(jnp.asarray(X), metric='euclidean')
  found = pseudo_labels(graph, BAGS.index, BAGS.mask, COUNTS, iterations=1000)
  expected = noise.rows_of_bags(found.labels, BAGS)
  np.testing.assert_array_equal(start.extra.labels, expected)
  assert bool(start.extra.converged)
  right = noise.rows_of_bags(LABELS, BAGS)[BAGS.mask]
  assert np.mean(start.extra.labels[BAGS.mask] == right) > 0.95


def test_a_step_is_that_of_refine_on_its_labels(method):
  rows = np.array([3, 0, 11, 5])
  batch = {k: v[rows] for k, v in arrays().items()}
  batch |= {'index': rows, 'weight': np.float32([1, 2, 1, 0])}
  state = method.init(KEY)
  labels = {'instance_labels': state.extra.labels[rows]}
  inner = refine(MODEL, linear(5, 2), TX)

  @jax.jit
  def both(state):
    one = inner.step(state._replace(extra=()), {**batch, **labels}, KEY)
    return method.step(state, batch, KEY), one

  (new, metrics), (expected, of_parts) = both(state)
  jax.tree.map(np.testing.assert_array_equal, new.params, expected.params)
  np.testing.assert_array_equal(new.extra.labels, state.extra.labels)
  assert metrics == {**of_parts, 'converged': 1}


@pytest.mark.slow
def test_ties_under_jit_are_those_of_the_graph():
  """A law that is tied again has the beliefs of one that is laid out anew."""
  points = X[:40]
  bag = np.arange(40).reshape(5, 8)[:, ::-1], np.ones((5, 8), bool)
  counts = LABELS[:40].reshape(5, 8).sum(1)
  near = neighbors.knn(points, 3)
  weights = neighbors.matern12(near.distances)
  no_ties = neighbors.graph_of_edges(
    np.zeros((0, 2), int), np.zeros(0, np.float32), 40
  )
  graph = neighbors.graph_of_neighbors(near.index, weights)
  expected = belief.propagate(belief.label_proportions(graph, *bag, counts))
  law = belief.label_proportions(no_ties, *bag, counts)
  found = belief.propagate(belief.tie_neighbors(law, near.index, weights))
  np.testing.assert_allclose(found.log_odds, expected.log_odds, atol=1e-4)
  assert int(found.iterations) == int(expected.iterations)
  with pytest.raises(ValueError, match='index and weights must be'):
    belief.tie_neighbors(law, near.index[1:], weights)
  two = belief.label_proportions(no_ties, *bag, counts, shards=2)
  with pytest.raises(ValueError, match='one shard, got 2'):
    belief.tie_neighbors(two, near.index, weights)


@pytest.mark.slow
def test_bags_in_groups_of_a_size_are_those_in_one(monkeypatch):
  """Few bags are padded to the longest; many are sorted by their size."""
  sizes = [1, 8, 3, 2, 7, 1]
  bags = noise.bags_of_ids(np.repeat(np.arange(6), sizes))
  counts = np.array([1, 3, 0, 1, 7, 0])
  n = sum(sizes)
  graph = similarity_graph(jnp.asarray(X[:n]), k=2)
  laws = []
  for few in (belief._factors.FEW, 0):
    monkeypatch.setattr(belief._factors, 'FEW', few)
    laws.append(
      belief.label_proportions(graph, bags.index, bags.mask, counts, shards=2)
    )
  assert [len(law.groups) for law in laws] == [1, 4]
  one, four = (belief.propagate(law, iterations=30) for law in laws)
  np.testing.assert_allclose(one.log_odds, four.log_odds, atol=1e-4)
  both = [belief.count_log_probs(laws[i], b) for i, b in enumerate((one, four))]
  np.testing.assert_allclose(*both, atol=1e-3)


def test_rounds_begin_after_so_many_epochs(method):
  assert [e for e in range(61) if method.refit.when(e)] == [20, 40, 60]


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    ({'counts': COUNTS / 8}, TypeError, 'counts must be integers, got float'),
    ({'counts': COUNTS[1:]}, ValueError, r'counts must be \[k\] with k = 12'),
    ({'counts': COUNTS * 0}, ValueError, 'none is positive, in every bag'),
    ({'counts': COUNTS * 9}, ValueError, 'counts must lie between 0 and'),
    ({'x': X[1:]}, ValueError, 'bags must be of the 92 instances of x, got 92'),
    ({'x': np.r_[X, X[:1]]}, ValueError, '1 of 94 .* in no bag.* is 93'),
    ({'weight': np.ones(3)}, ValueError, r'weight must be \[k\] with k = 12'),
    (
      {'weight': np.zeros(12)},
      ValueError,
      'weight must be .* not 0 everywhere',
    ),
    ({'round_epochs': 0}, ValueError, 'round_epochs must be at least 1'),
    ({'decision': 'top'}, ValueError, 'decision must be one of'),
    ({'pair_strength': -1.0}, ValueError, 'pair_strength must be finite'),
    ({'bag_strength': -1.0}, ValueError, 'strength must be >= 0'),
    ({'bag_weight': -1.0}, ValueError, 'bag_weight must be >= 0'),
    ({'k': N}, ValueError, 'k must lie between'),
  ],
)
def test_arguments_are_checked(changes, error, message):
  with pytest.raises(error, match=message):
    make(**changes)


def test_other_bags_are_an_error(method):
  batch = {'x': np.zeros((2, 5, 2)), 'index': np.arange(2)}
  with pytest.raises(ValueError, match=r'given, \[b, 8, ...\], got shape \(2'):
    jax.eval_shape(method.step, method.init(KEY), batch, KEY)


def test_beliefs_that_do_not_rest_are_told():
  with pytest.warns(UserWarning, match='did not come to rest in 1 iterations'):
    found = make(iterations=1)
  assert not found.init(KEY).extra.converged


@pytest.mark.slow
def test_a_count_that_is_not_known_says_nothing():
  weight = np.ones(12, np.float32)
  weight[4] = 0
  found = []
  for count in (np.nan, 99, 0):
    counts = COUNTS.astype(float)
    counts[4] = count
    found.append(make(counts=counts, weight=weight).init(KEY).extra)
  np.testing.assert_array_equal(found[0].labels, found[1].labels)
  np.testing.assert_array_equal(found[0].labels, found[2].labels)
  right = noise.rows_of_bags(LABELS, BAGS)[4]
  assert np.mean(found[0].labels[4] == right) > 0.8  # by their neighbors


@pytest.mark.slow
@pytest.mark.parametrize('decision', ['threshold', 'counts'])
def test_single_rows_are_learned_in_two_rounds(decision):
  """Labels of the second round come from the features of the network."""
  model = nets.from_linen(nets.MLP(2, (16,)), (2,))
  method = llp_bp(
    X,
    BAGS,
    COUNTS,
    model,
    optax.adam(1e-2),
    round_epochs=15,
    decision=decision,
  )
  found = fit(
    method,
    arrays(),
    KEY,
    epochs=30,
    batch_size=4,
    held_out={'test': {'x': X, 'labels': LABELS}},
    devices=jax.devices()[:1],
  )
  accuracy, loss = (found.history[k] for k in ('test_accuracy', 'loss'))
  assert accuracy[14] > 0.95
  assert accuracy[-1] > 0.95
  assert loss[15] > 2 * loss[14], 'the network has not started anew'
  first = method.init(KEY).extra.labels
  assert np.mean(first == found.state.extra.labels) > 0.9
  if decision == 'counts':
    held = (np.asarray(found.state.extra.labels) * BAGS.mask).sum(1)
    np.testing.assert_array_equal(held, COUNTS)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    given = bags()
    mask = given['mask']
    index = np.full(mask.shape, 2**31 - 1, np.int32)
    index[mask] = np.arange(mask.sum())
    return llp_bp(
      given['x'][mask],
      noise.Bags(index, mask),
      given['counts'],
      instance_network(),
      optimizer(),
      bag_head=network(16, 2),
    )

  def arrays(self):
    return bags()
