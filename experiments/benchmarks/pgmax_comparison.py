"""Belief propagation beside PGMax, on one law and one machine.

PGMax (google-deepmind, 2202.04110) has no factor for a count: each bag becomes
m (m - 1) / 2 pair factors, as in the published code of LLP-BP. Here the same
law is run by PGMax, by jnl with the same pair factors, and by jnl with exact
counts, for as many iterations: time for one against exact counts, seconds to
build the graph, memory (of a process that measures nothing else). Then all go
on until they rest, and their marginals are compared. Of couplings as weak as
these, since pair factors do not rest at stronger ones.

  pip install --no-deps pgmax numba llvmlite
  python experiments/throughput.py --sections pgmax_comparison

10,000 instances in bags of 64, five neighbors each, on two CPU cores: PGMax
28.3 ms an iteration, jnl 4.0 with its factors and 1.4 with exact counts.
Without PGMax the two runs of jnl are left.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import importlib.util
import resource
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clock
from benchmarks.belief import a_single_one, read_size
from benchmarks.clock import Timed, in_turns, seconds
from jnl import belief, neighbors
from jnl.base import check
from jnl.train import option

UNIT = 'times exact counts'
SMOKE = {'law': '64x8', 'rest': 50}
ITERATIONS = 20
"""Timed at a time."""


@dataclasses.dataclass(frozen=True)
class Options(clock.Options):
  """What this section reads."""

  law: str = option('10000x64', 'pgmax_comparison: instances x bag size')
  rest: int = option(300, 'pgmax_comparison: iterations until all are at rest')


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  read_size('law', options.law)
  check(options.rest >= 1, f'rest must be at least 1, got {options.rest}')


def measure(options: Options) -> Iterator[dict]:
  """One law -> three ways to run it, in turn, and at rest."""
  n, m = read_size('law', options.law)
  problem = draw(n // m * m, m)
  ways: dict[str, Callable[[], Run]] = {
    'jnl, counts': lambda: run_jnl(problem, 'count'),
    'jnl, pairs': lambda: run_jnl(problem, 'pairwise'),
  }
  if importlib.util.find_spec('pgmax'):
    ways['PGMax, pairs'] = lambda: run_pgmax(problem)
  else:
    print('PGMax is not installed: the runs of jnl alone')
  built = {name: build(way) for name, way in ways.items()}
  rested = {name: run(options.rest) for name, (run, _) in built.items()}
  calls = {
    name: functools.partial(run, ITERATIONS) for name, (run, _) in built.items()
  }
  items = [
    Timed(name, call, about={'shape': [n, m], 'kind': name.split(',')[0]})
    for name, call in calls.items()
  ]
  others = np.asarray(rested['jnl, pairs'][0])
  for row in in_turns(calls['jnl, counts'], items, options.rounds):
    marginals, residual = rested[row['name']]
    row = {
      **a_single_one(row, ITERATIONS),
      **built[row['name']][1],
      'residual': float(residual),
      'from_pairs': float(np.abs(np.asarray(marginals) - others).max()),
    }
    note = (
      '{build_s:.2g} s to build, {peak_mb:.3g} MB more, residual '
      '{residual:.1e}, marginals {from_pairs:.1e} from pairs'
    )
    yield {**row, 'note': note.format(**row)}


Run = Callable[[int], tuple[Any, Any]]
"""From a number of iterations to marginals [n] and the last residual []."""


def build(way: Callable[[], Run]) -> tuple[Run, dict[str, float]]:
  """Builds and compiles; seconds, and by how much the peak of memory rose."""
  before, start = peak_mb(), time.perf_counter()
  run = way()
  build_s = time.perf_counter() - start
  compile_s = seconds(lambda: run(ITERATIONS))
  costs = {'build_s': build_s, 'compile_s': compile_s}
  return run, {**costs, 'peak_mb': peak_mb() - before}


def peak_mb() -> float:
  """The most memory that this process ever had."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def draw(n: int, m: int) -> dict[str, Any]:
  """Two Gaussians, bags at random: what `label_proportions` makes a law of."""
  rng = np.random.default_rng(0)
  labels = (rng.random(n) < 0.3).astype(int)
  x = rng.normal(size=(n, 4)).astype(np.float32)
  x[:, 0] += 2.5 * labels
  found = neighbors.knn(jnp.asarray(x), 5)
  graph = neighbors.graph_of_neighbors(
    found.index, neighbors.matern12(found.distances)
  )
  index = np.arange(n).reshape(-1, m)
  return {
    'graph': graph,
    'index': index,
    'mask': np.ones(index.shape, bool),
    'counts': labels.reshape(-1, m).sum(1),
    'pair_strength': 0.2,
    'bag_strength': 0.005,
  }


def run_jnl(problem: dict[str, Any], factorization: Any) -> Run:
  """Builds the graph of either kind."""
  law = belief.label_proportions(**problem, factorization=factorization)
  if factorization == 'count':
    start = belief.no_messages(law)
  else:
    start = belief.no_product_messages(law)  # as in PGMax

  def run(iterations: int) -> tuple[Any, Any]:
    found = belief.propagate(
      law, iterations=iterations, tolerance=0, messages=start
    )
    last = jnp.maximum(found.iterations - 1, 0)
    return found.marginals, found.residuals[last]

  return run


def run_pgmax(problem: dict[str, Any]) -> Run:
  """Builds PGMax's graph of the pair factors."""
  if not hasattr(jax.lib, 'xla_bridge'):  # PGMax 0.6.1 asks jax < 0.5 for it
    from jax.extend import backend

    bridge = types.SimpleNamespace(get_backend=backend.get_backend)
    jax.lib.xla_bridge = bridge  # type: ignore[attr-defined]
  from pgmax import fgraph, fgroup, infer, vgroup

  law = belief.label_proportions(**problem, factorization='pairwise')
  edges, couplings, unary = expanded(law)
  variables = vgroup.NDVarArray(num_states=2, shape=(len(unary),))
  names = [variables[i] for i in range(len(unary))]
  graph = fgraph.FactorGraph(variable_groups=variables)
  potentials = np.zeros([len(edges), 2, 2], np.float32)
  potentials[:, 1, 1] = couplings
  graph.add_factors(
    fgroup.PairwiseFactorGroup(
      variables_for_factors=[[names[i], names[j]] for i, j in edges],
      log_potential_matrix=potentials,
    )
  )
  inferer = infer.BP(graph.bp_state, temperature=1.0)
  evidence = np.stack([np.zeros_like(unary), unary], axis=1)
  start = inferer.init(evidence_updates={variables: evidence})

  def beliefs(iterations: int) -> tuple[Any, Any]:
    arrays, deltas = inferer.run_with_diffs(start, iterations, damping=0.5)
    marginals = infer.get_marginals(inferer.get_beliefs(arrays))
    return marginals[variables][law.slots, 1], deltas[-1]

  return jax.jit(beliefs, static_argnums=0)


def expanded(
  law: belief.FactorGraph,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The law as J_ij y_i y_j and theta_i y_i of its slots, [e, 2], [e], [n]."""
  theta, table = np.asarray(law.log_odds[0]), np.asarray(law.weights[0])
  place, slot = np.nonzero(table)
  own = np.concatenate([slot, law.spill_slot[0]])
  other = np.asarray(law.neighbors[0])[place, slot]
  other = np.concatenate([other, law.spill_neighbors[0]])
  weights = np.concatenate([table[place, slot], law.spill_weights[0]])
  once = own < other  # a tie is held at both of its ends
  edges = np.stack([own, other], axis=1)[once]
  unary = theta - np.bincount(own, weights, len(theta))
  return edges, 2 * weights[once], unary.astype(np.float32)
