"""Golden checks of `jnl.belief`: enumeration, and messages in float64.

Trees are exact. Where there are loops, the file has what messages of its own
recursion come to, with one factor for each bag (`card_*`) and with the square
multiplied out (`pair_*`, which is PGMax on the published law).

Graphs are laid out on the host and differ in shape: files run one by one
(`list` computes nothing), all that a check does comes after its `yield`.
"""

from golden_case import GRADIENT
import numpy as np
from scipy.special import expit

from jnl import belief, neighbors

ROUNDS = (1, 2, 5, 20)  # the rows of a trace
PART = 128  # rounds
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
  case.close(actual, name, rtol=GRADIENT[case.precision], atol=atol)


def _rested(deltas, upto=1e-3):
  return deltas[-1] < upto


def _propagate(law, iterations, messages=None, **how):
  """`propagate` in parts that one program does, which is compiled once."""
  residuals = []
  for some in range(0, iterations, PART):
    found = belief.propagate(
      law,
      iterations=min(PART, iterations - some),
      tolerance=0,
      messages=messages,
      **how,
    )
    messages = found.messages
    residuals.append(np.asarray(found.residuals)[: found.iterations])
    if found.iterations < PART:
      break
  return found, np.concatenate(residuals)


def _gibbs(case):
  yield
  edges, bag_id, weights = case['edges'], case['bag_id'], case['w']
  n, theta = len(bag_id), case['theta']
  degree = int(np.bincount(edges.ravel()).max())  # nothing is spilled
  ties = neighbors.graph_of_edges(edges, weights, n, degree=degree)
  bags = (*_bags(bag_id), case['S'])
  strength = case.hp('lam_b')
  run = {'iterations': case.hp('iters'), 'damping': case.hp('damping')}
  atol = ATOL[case.precision]

  law = belief.label_proportions(ties, *bags, bag_strength=strength)
  law = belief.add_log_odds(law, theta)
  found, rested = _run(case, 'card', law, **run)
  # The truth, up to what loops do to it.
  if _is_tree(edges, bag_id):
    _close(case, found.marginals, 'exact_marginals', atol)
    if case.has('exact_logZ'):
      _close(case, -belief.bethe_free_energy(law, found), 'exact_logZ', atol)
    if case.has('exact_pair'):
      joint = belief.pair_probs(law, found)
      rows = _rows(ties, edges)
      _close(case, np.asarray(joint.neighbors)[rows], 'exact_pair', atol)
    if case.has('exact_map'):
      best, _ = _propagate(law, temperature=0.0, **run)
      case.equal(best.log_odds > 0, 'exact_map')
  elif rested and case.has('exact_marginals') and case.has('card_marginals'):
    exact = case.expected('exact_marginals')
    error = np.abs(found.marginals - exact).max()
    known = np.abs(case.expected('card_marginals') - exact).max()
    assert error <= known + atol
  case.skip('exact_')  # loops

  # The square multiplied out: the law of the file has one factor for a pair
  # y_i y_j, whose message is ours plus w, and starts at 0.
  multiplied = ('th2', 'e2', 'pair_logodds', 'pair_marginals', 'pair_trace')
  if not any(case.has(name) for name in (*multiplied, 'pair_deltas')):
    return
  law = belief.label_proportions(
    ties, *bags, bag_strength=strength, factorization='pairwise'
  )
  law = belief.add_log_odds(law, theta)
  _expanded(case, law)
  _run(case, 'pair', law, belief.no_product_messages(law), **run)


def _run(case, kind, law, start=None, *, iterations, damping):
  """The beliefs after some rounds, the changes of each, and the last."""
  found, residuals = _propagate(law, iterations, start, damping=damping)
  rested = _rested(residuals)
  tolerance = {'rtol': LOOPY[case.precision], 'atol': LOOPY[case.precision]}
  if case.has(f'{kind}_deltas'):
    deltas = case.expected(f'{kind}_deltas')
    rested = _rested(deltas)
    # At rest ours may be 0, which ends a run.
    ran = len(residuals)
    assert ran == len(deltas) or deltas[ran - 1] < ATOL[case.precision]
    residuals = np.pad(residuals, (0, len(deltas) - ran))
    alike = slice(None) if rested else slice(max(ROUNDS))
    np.testing.assert_allclose(residuals[alike], deltas[alike], **tolerance)
  if case.has(f'{kind}_trace'):
    rows = case.expected(f'{kind}_trace')
    messages = start
    for rounds in range(1, max(ROUNDS) + 1):  # one by one: compiled once
      early = belief.propagate(
        law, iterations=1, tolerance=0, damping=damping, messages=messages
      )
      messages = early.messages
      if rounds in ROUNDS:
        row = rows[ROUNDS.index(rounds)]
        np.testing.assert_allclose(early.log_odds, row, **tolerance)
  if rested:
    _close(case, found.log_odds, f'{kind}_logodds', LOOPY[case.precision])
    _close(case, found.marginals, f'{kind}_marginals', ATOL[case.precision])
  else:
    case.skip(f'{kind}_logodds', f'{kind}_marginals')  # it had not ended
  return found, rested


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
  ours = np.sort(list(pairs.values()))
  if case.has('w2'):
    weights = case.expected('w2')
    np.testing.assert_allclose(ours, np.sort(weights[weights != 0]), rtol=1e-6)
  if case.has('e2'):
    edges = [tuple(sorted(e)) for e in case.expected('e2').tolist()]
    assert set(pairs) <= set(edges)
    if case.has('w2'):
      expected = dict(zip(edges, weights, strict=True))
      for pair, weight in pairs.items():
        np.testing.assert_allclose(weight, expected[pair], rtol=1e-6)
  unary = np.asarray(law.log_odds)[0][slots]
  _close(case, unary - tied, 'th2', ATOL[case.precision])


def _run_map_bp(case):
  yield
  x, m, k = case['X'], case.hp('bag_size'), case.hp('k')
  case.skip('y')  # the counts are given
  counts = case['bag_sums'].astype(int)
  n = m * len(counts)  # the code drops the rest

  found = neighbors.knn(x, k, metric='cosine', search='exact')
  index = np.asarray(found.index)
  similarity = neighbors.matern12(neighbors.pair_distances(x, found.index))
  case.close(found.distances, 'knn_dist', atol=1e-6)
  case.equal(index, 'knn_idx')
  case.equal(np.repeat(np.arange(len(x)), k), 'edge_src')
  case.equal(index.ravel(), 'edge_dst')
  case.close(np.ravel(similarity), 'edge_sim', rtol=1e-5)

  # The code leaves out ties that start in a bag with more than one positive.
  index, similarity = index[:n], np.asarray(similarity, case.dtype)[:n]
  few = counts[np.arange(n) // m] <= 1
  index = np.where(few[:, None] & (index < n), index, neighbors.PAD)
  ties = neighbors.graph_of_neighbors(index, similarity)
  vertex, slot = np.nonzero(ties.weights)
  if case.has('kept_pairs'):
    kept = {tuple(sorted(p)) for p in case.expected('kept_pairs').tolist()}
    ours = np.stack([vertex, ties.neighbors[vertex, slot]], axis=1)
    ours = np.concatenate([ours, ties.spill])
    assert {tuple(sorted(p)) for p in ours.tolist()} == kept
  if case.has('kept_w'):
    weights = np.concatenate([ties.weights[vertex, slot], ties.spill_weights])
    kept = np.sort(case.expected('kept_w'))
    np.testing.assert_allclose(np.sort(weights)[::2], kept, rtol=1e-5)

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
  deltas = result.residuals
  if case.has('f64_pair_deltas'):
    deltas = case.expected('f64_pair_deltas')
  if _rested(np.nan_to_num(deltas)):
    # From similarities in single precision.
    case.close(result.log_odds, 'f64_pair_logodds', rtol=1e-4, atol=1e-5)
    case.close(result.marginals, 'pgmax_marginals', atol=1e-5)
    longer, _ = _propagate(law, 300 - len(result.residuals), result.messages)
    assert longer.residuals[-1] < 1e-4
  else:
    case.skip('f64_pair_logodds', 'pgmax_marginals')  # chaotic
    assert not result.converged

  law = belief.label_proportions(ties, *bags, **strengths)
  result = belief.propagate(law, iterations=100, tolerance=0)
  if np.asarray(result.residuals)[-1] < 1e-4:
    case.close(result.marginals, 'card_marginals', atol=2e-5)
  else:
    case.skip('card_marginals')
  assert np.all(np.abs(expit(result.log_odds) - result.marginals) < 1e-6)


CHECKS = {
  ('bp', 'gibbs'): (_gibbs, list),
  ('llp_bp', 'combined_run_map_bp'): (_run_map_bp, list),
}
