"""Golden checks of `jnl.belief`: enumeration, and messages in float64.

Trees are exact. Where there are loops, the file has what messages of its own
recursion come to, with one factor for each bag (`card_*`) and with the square
multiplied out (`pair_*`, which is PGMax on the published law).
"""

from golden_case import GRADIENT
import numpy as np
from scipy.special import expit

from jnl import belief, neighbors

ROUNDS = (1, 2, 5, 20)  # the rows of a trace
# A message passes through some hundred roundings of numbers of its size.
ATOL = {'f32': 2e-5, 'f64': 1e-8}
# From two messages that differ in the last digit on, a run that does not
# converge goes its own way; up to here it has not got far.
LOOPY = {'f32': 1e-4, 'f64': 1e-7}


def _bags(bag_id):
  """Index and mask [k, m] of the bags 0, 1, ...; -1 is none."""
  bag_id = np.asarray(bag_id)
  members = [np.flatnonzero(bag_id == b) for b in range(bag_id.max() + 1)]
  longest = max(map(len, members), default=1)
  index = np.zeros([len(members), longest], int)
  mask = np.zeros([len(members), longest], bool)
  for row, some in enumerate(members):
    index[row, : len(some)], mask[row, : len(some)] = some, True
  return index, mask


def _is_tree(edges, bag_id):
  """Whether no factor closes a loop: instances and factors, by union."""
  n = len(bag_id)
  parent = list(range(n + max(bag_id.max() + 1, 0)))

  def root(i):
    while parent[i] != i:
      i = parent[i]
    return i

  ties = [*edges, *((i, n + b) for i, b in enumerate(bag_id) if b >= 0)]
  for i, j in ties:
    i, j = root(i), root(j)
    if i == j:
      return False
    parent[i] = j
  return True


def _close(case, actual, name, atol):
  if not case.has(name):
    return
  np.testing.assert_allclose(
    np.asarray(actual),
    case.expected(name),
    rtol=GRADIENT[case.precision],
    atol=atol,
    err_msg=f'{name} ({case.precision})',
  )


def _rested(deltas, upto=1e-3):
  return deltas[-1] < upto


def _gibbs(case):
  edges, bag_id = np.asarray(case['edges']), np.asarray(case['bag_id'])
  weights = np.asarray(case['w'])
  n, theta = len(bag_id), case['theta']
  degree = int(np.bincount(edges.ravel()).max())  # nothing is spilled
  ties = neighbors.graph_of_edges(edges, weights, n, degree=degree)
  bags = (*_bags(bag_id), np.asarray(case['S']))
  strength = case.hp('lam_b')
  run = {'iterations': case.hp('iters'), 'damping': case.hp('damping')}
  tree = _is_tree(edges, bag_id)

  law = belief.label_proportions(ties, *bags, bag_strength=strength)
  law = belief.add_log_odds(law, theta)
  found = belief.propagate(law, tolerance=0, **run)
  _trace(case, 'card', law, found, run['damping'])
  if _rested(case.expected('card_deltas')):
    _close(case, found.marginals, 'card_marginals', ATOL[case.precision])
  else:
    case.skip('card_marginals')  # of a run that had not ended
  # The truth, up to what loops do to it.
  if tree:
    atol = ATOL[case.precision]
    _close(case, found.marginals, 'exact_marginals', atol)
    free = belief.bethe_free_energy(law, found)
    _close(case, -free, 'exact_logZ', atol)
    joint = belief.pair_probs(law, found)
    rows = _rows(ties, edges)
    _close(case, np.asarray(joint.neighbors)[rows], 'exact_pair', atol)
    best = belief.propagate(law, temperature=0.0, **run)
    np.testing.assert_array_equal(
      best.log_odds > 0, case.expected('exact_map') == 1
    )
  else:
    exact = case.expected('exact_marginals')
    if _rested(case.expected('card_deltas')):
      error = np.abs(found.marginals - exact).max()
      known = np.abs(case.expected('card_marginals') - exact).max()
      assert error <= known + ATOL[case.precision]
    case.skip('exact_')  # loops

  # The square multiplied out: the law of the file has one factor for a pair
  # y_i y_j, whose message is ours plus w, and starts at 0.
  law = belief.label_proportions(
    ties, *bags, bag_strength=strength, factorization='pairwise'
  )
  law = belief.add_log_odds(law, theta)
  _expanded(case, law)
  start = belief.no_product_messages(law)
  found = belief.propagate(law, tolerance=0, messages=start, **run)
  _trace(case, 'pair', law, found, run['damping'], start)
  if _rested(case.expected('pair_deltas')):
    _close(case, found.marginals, 'pair_marginals', ATOL[case.precision])
  else:
    case.skip('pair_marginals')  # of a run that had not ended


def _trace(case, kind, law, found, damping, start=None):
  """The beliefs after some rounds, the changes of each, and the last."""
  deltas, rows = (case.expected(f'{kind}_{x}') for x in ('deltas', 'trace'))
  tolerance = {'rtol': LOOPY[case.precision], 'atol': LOOPY[case.precision]}
  messages = start
  for rounds in range(1, max(ROUNDS) + 1):  # one by one: compiled once
    early = belief.propagate(
      law, iterations=1, tolerance=0, damping=damping, messages=messages
    )
    messages = early.messages
    if rounds in ROUNDS:
      row = rows[ROUNDS.index(rounds)]
      np.testing.assert_allclose(early.log_odds, row, **tolerance)
  residuals = np.asarray(found.residuals)
  # At rest ours may be 0, which ends a run.
  ran = ~np.isnan(residuals)
  assert ran.all() or deltas[ran.sum() - 1] < ATOL[case.precision]
  alike = slice(None) if _rested(deltas) else slice(max(ROUNDS))
  np.testing.assert_allclose(
    np.where(ran, residuals, 0)[alike],
    deltas[alike],
    **tolerance,
  )
  name = f'{kind}_logodds'
  if _rested(deltas):
    _close(case, found.log_odds, name, LOOPY[case.precision])
  else:
    case.skip(name)


def _rows(ties, edges):
  """Where in the table of `ties` each edge is; none may be spilled."""
  vertex = np.asarray(edges)[:, 0]
  return vertex, np.argmax(ties.neighbors[vertex] == edges[:, 1:], axis=1)


def _expanded(case, law):
  """The factors of the multiplied law are those of the file."""
  slots = np.asarray(law.slots)
  place = {slot: i for i, slot in enumerate(slots.tolist())}
  degree, slot = np.nonzero(law.weights[0])
  own = np.concatenate([slot, law.spill_slot[0]])
  other = [law.neighbors[0][degree, slot], law.spill_neighbors[0]]
  weight = [law.weights[0][degree, slot], law.spill_weights[0]]
  pairs, tied = {}, np.zeros(len(slots))
  for i, j, w in zip(
    own.tolist(), *(np.concatenate(x).tolist() for x in (other, weight)),
    strict=True,
  ):  # fmt: skip
    i, j = place[i], place[j]
    tied[i] += w
    pairs[min(i, j), max(i, j)] = 2 * w
  e2, w2 = case.expected('e2'), case.expected('w2')
  expected = {tuple(sorted(e)): w for e, w in zip(e2, w2, strict=True)}
  assert set(pairs) == {e for e, w in expected.items() if w}
  for pair, weight in pairs.items():
    np.testing.assert_allclose(weight, expected[pair], rtol=1e-6)
  unary = np.asarray(law.log_odds)[0][slots]
  _close(case, unary - tied, 'th2', ATOL[case.precision])


def _run_map_bp(case):
  x, m, k = np.asarray(case['X']), case.hp('bag_size'), case.hp('k')
  case.skip('y')  # the counts are given
  counts = np.asarray(case['bag_sums']).astype(int)
  n = m * len(counts)  # the code drops the rest

  found = neighbors.knn(x, k, metric='cosine', search='exact')
  np.testing.assert_allclose(
    found.distances, case.expected('knn_dist'), atol=1e-6
  )
  index = np.asarray(found.index)
  np.testing.assert_array_equal(index, case.expected('knn_idx'))
  similarity = neighbors.matern12(neighbors.pair_distances(x, found.index))
  np.testing.assert_array_equal(
    np.repeat(np.arange(len(x)), k), case.expected('edge_src')
  )
  np.testing.assert_array_equal(index.ravel(), case.expected('edge_dst'))
  np.testing.assert_allclose(
    np.ravel(similarity), case.expected('edge_sim'), rtol=1e-5
  )

  # The code leaves out ties that start in a bag with more than one positive.
  index, similarity = index[:n], np.asarray(similarity, case.dtype)[:n]
  few = counts[np.arange(n) // m] <= 1
  index = np.where(few[:, None] & (index < n), index, neighbors.PAD)
  ties = neighbors.graph_of_neighbors(index, similarity)
  kept = {tuple(sorted(p)) for p in case.expected('kept_pairs').tolist()}
  vertex, slot = np.nonzero(ties.weights)
  ours = np.stack([vertex, ties.neighbors[vertex, slot]], axis=1)
  ours = np.concatenate([ours, ties.spill])
  assert {tuple(sorted(p)) for p in ours.tolist()} == kept
  weights = np.concatenate([ties.weights[vertex, slot], ties.spill_weights])
  np.testing.assert_allclose(
    np.sort(weights)[::2],
    np.sort(case.expected('kept_w')),
    rtol=1e-5,
  )

  index = np.arange(n).reshape(-1, m)
  bags = (index, np.ones(index.shape, bool), counts)
  strengths = {
    'pair_strength': case.hp('sim_lambda'),
    'bag_strength': case.hp('bag_lambda'),
  }
  law = belief.label_proportions(
    ties, *bags, **strengths, factorization='pairwise'
  )
  start = belief.no_product_messages(law)
  result = belief.propagate(law, tolerance=0, messages=start)
  deltas = case.expected('f64_pair_deltas')
  if _rested(deltas):
    # From similarities in single precision.
    np.testing.assert_allclose(
      result.log_odds, case.expected('f64_pair_logodds'), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      result.marginals, case.expected('pgmax_marginals'), atol=1e-5
    )
    assert belief.propagate(law, iterations=300).converged
  else:
    case.skip('f64_pair_logodds', 'pgmax_marginals')  # chaotic
    assert not result.converged

  law = belief.label_proportions(ties, *bags, **strengths)
  result = belief.propagate(law, iterations=100, tolerance=0)
  if np.asarray(result.residuals)[-1] < 1e-4:
    np.testing.assert_allclose(
      result.marginals, case.expected('card_marginals'), atol=2e-5
    )
  else:
    case.skip('card_marginals')
  assert np.all(np.abs(expit(result.log_odds) - result.marginals) < 1e-6)


CHECKS = {
  ('bp', 'gibbs'): _gibbs,
  ('llp_bp', 'combined_run_map_bp'): _run_map_bp,
}
