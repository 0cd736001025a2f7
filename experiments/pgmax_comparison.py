"""Belief propagation beside PGMax, on one law and one machine.

PGMax (google-deepmind, 2202.04110) has no factor for a count: each bag becomes
m (m - 1) / 2 pair factors, as in the published code of LLP-BP. Here the same
law is run by PGMax, by jnl with the same pair factors, and by jnl with exact
counts, interleaved, for as many iterations: time for one, seconds to build the
graph, memory. Then all go on until they rest, and their marginals are compared.
Of couplings as weak as these, since pair factors do not rest at stronger ones.

10,000 instances in bags of 64, five neighbors each, on two CPU cores: PGMax
28.3 ms an iteration, jnl 4.0 with its factors and 1.4 with exact counts.

  pip install --no-deps pgmax numba llvmlite
  python experiments/pgmax_comparison.py      # one minute

Without PGMax the two runs of jnl are left.
"""

from collections.abc import Callable
import dataclasses
import importlib.util
import resource
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jnl import belief, neighbors
from jnl.base import check
from jnl.train import option, parse, report


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  instances: int = option(10_000, 'how many')
  bag_size: int = option(64, 'instances in a bag')
  neighbors: int = option(5, 'that each instance names')
  pair_strength: float = option(0.2, 'weight of a similarity')
  bag_strength: float = option(0.005, 'weight of the square of a count')
  iterations: int = option(20, 'timed at a time')
  rest: int = option(300, 'iterations until all are at rest')
  rounds: int = option(5, 'turns')
  out: str = option('results/pgmax_comparison', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 64 instances')


def main(config: Config) -> None:
  """One law -> three ways to run it, in turn -> table."""
  if config.smoke:
    config = dataclasses.replace(
      config, instances=64, bag_size=8, iterations=2, rest=50, rounds=1
    )
  for name in ('instances', 'bag_size', 'iterations', 'rest', 'rounds'):
    value = getattr(config, name)
    check(value >= 1, f'{name.replace("_", "-")} must be >= 1, got {value}')
  problem = draw(config)
  ways = {
    'jnl, counts': lambda: run_jnl(problem, 'count'),
    'jnl, pairs': lambda: run_jnl(problem, 'pairwise'),
  }
  if importlib.util.find_spec('pgmax'):
    ways['PGMax, pairs'] = lambda: run_pgmax(problem)
  else:
    print('PGMax is not installed: the runs of jnl alone')
  rows = measure(config, ways)
  show(rows)
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  report.plot_bars(
    f'{config.out}/time.png',
    {row['name']: row['ms'] for row in rows},
    kinds=[row['name'].split(',')[0] for row in rows],
    title=f'{config.instances} instances in bags of {config.bag_size}',
    xlabel='ms for an iteration',
  )


def draw(config: Config) -> dict[str, Any]:
  """Two Gaussians, bags at random: what `label_proportions` makes a law of."""
  rng = np.random.default_rng(0)
  n, m = config.instances // config.bag_size * config.bag_size, config.bag_size
  labels = (rng.random(n) < 0.3).astype(int)
  x = rng.normal(size=(n, 4)).astype(np.float32)
  x[:, 0] += 2.5 * labels
  found = neighbors.knn(jnp.asarray(x), config.neighbors)
  graph = neighbors.graph_of_neighbors(
    found.index, neighbors.matern12(found.distances)
  )
  index = np.arange(n).reshape(-1, m)
  return {
    'graph': graph,
    'index': index,
    'mask': np.ones(index.shape, bool),
    'counts': labels.reshape(-1, m).sum(1),
    'pair_strength': config.pair_strength,
    'bag_strength': config.bag_strength,
  }


Run = Callable[[int], tuple[Any, Any]]
"""From a number of iterations to marginals [n] and the last residual []."""


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


def measure(config: Config, ways: dict[str, Callable[[], Run]]) -> list[dict]:
  """Builds each, times them in turn, and runs them to their rest."""
  runs, rows = {}, {}
  for name, build in ways.items():
    before, start = peak_mb(), time.perf_counter()
    runs[name] = build()
    build_s = time.perf_counter() - start
    jax.block_until_ready(runs[name](config.iterations))
    compile_s = time.perf_counter() - start - build_s
    rows[name] = {
      'name': name,
      'build_s': build_s,
      'compile_s': compile_s,
      'peak_mb': peak_mb() - before,
    }
  turns: dict[str, list[float]] = {name: [] for name in ways}
  for _ in range(config.rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run(config.iterations))
      turns[name].append((time.perf_counter() - start) / config.iterations)
  rested = {name: run(config.rest) for name, run in runs.items()}
  others = np.asarray(rested['jnl, pairs'][0])
  floor = np.array(turns['jnl, counts'])
  for name, row in rows.items():
    marginals, residual = rested[name]
    row |= {
      'experiment': 'pgmax_comparison',
      'shape': [config.instances, config.bag_size],
      'dtype': 'float32',
      'device': jax.devices()[0].device_kind,
      'ms': 1e3 * float(np.median(turns[name])),
      'floor_ms': 1e3 * float(np.median(floor)),
      'ratio': float(np.median(np.array(turns[name]) / floor)),
      'residual': float(residual),
      'from_pairs': float(np.abs(np.asarray(marginals) - others).max()),
    }
  return list(rows.values())


def peak_mb() -> float:
  """The most memory that this process ever had."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def show(rows: list[dict]) -> None:
  """Prints the table."""
  header = [
    'name', 'ms an iteration', 'times counts', 'build s', 'compile s',
    'peak MB more', 'residual', 'marginals from pairs',
  ]  # fmt: skip
  lines = [
    [
      row['name'],
      f'{row["ms"]:.3g}',
      f'{row["ratio"]:.3g}',
      f'{row["build_s"]:.2g}',
      f'{row["compile_s"]:.2g}',
      f'{row["peak_mb"]:.3g}',
      f'{row["residual"]:.1e}',
      f'{row["from_pairs"]:.1e}',
    ]
    for row in rows
  ]
  print(report.table(header, lines))


if __name__ == '__main__':
  main(parse(Config, __doc__))
