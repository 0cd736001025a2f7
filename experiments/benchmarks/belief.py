"""Belief: an iteration with exact counts, against a pass over its ties.

On a random graph in which each of n instances names five others (the worst
there is for a cache), in bags of m. It says nothing of accuracy: so few
iterations converge nowhere.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any, cast

import jax
import numpy as np

from benchmarks import clock
from benchmarks.clock import Timed, in_turns, mesh_of
from jnl import belief, neighbors
from jnl.train import option

UNIT = 'times a pass over its ties'
SMOKE = {'graphs': ('64x8',)}
ITERATIONS = 10
"""Timed at a time."""


@dataclasses.dataclass(frozen=True)
class Options(clock.Options):
  """What this section reads."""

  graphs: tuple[str, ...] = option(
    ('10000x64', '100000x64', '100000x2048', '1000000x64'),
    'belief: instances x bag size',
  )


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in options.graphs:
    read_size('graphs', name)


def measure(options: Options) -> Iterator[dict]:
  """Iterations of belief propagation; ten are timed at a time."""
  mesh = mesh_of(options)
  touch = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree))
  for name in options.graphs:
    n, m = read_size('graphs', name)
    law = random_law(n, m, options.devices)
    if options.devices > 1:
      law = belief.place(law, mesh)
    silent = belief.no_messages(law)
    ties = (law.neighbors, law.weights, silent.pair_in, silent.pair_out)
    call = functools.partial(
      belief.propagate, law, iterations=ITERATIONS, tolerance=0
    )
    degree, spilled = law.weights.shape[1], law.spill_weights.size
    memory = cast(Any, compiled_memory(law))
    about = {
      'shape': [n, m],
      'kind': f'bags of {m}',
      'temp_mb': memory.temp_size_in_bytes / 1e6,
      'note': f'{degree} slots, {spilled} ties spilled, temporaries of '
      f'{memory.temp_size_in_bytes / 1e6:.3g} MB',
    }
    item = Timed(f'{n} x {m}', call, passes=ITERATIONS, about=about)
    for row in in_turns(functools.partial(touch, ties), [item], options.rounds):
      yield a_single_one(row, ITERATIONS)


def read_size(name: str, text: str) -> tuple[int, int]:
  """Instances and bag size of '10000x64'."""
  n, _, m = text.partition('x')
  if n.isdecimal() and m.isdecimal() and 1 <= int(m) <= int(n):
    return int(n), int(m)
  raise ValueError(f'{name} must be instances x bag size, 64x8, got {text!r}')


def a_single_one(row: dict, iterations: int) -> dict:
  """The row of one iteration, of several that were timed."""
  return {**row, **{k: row[k] / iterations for k in ('ms', 'floor_ms')}}


def random_law(n: int, m: int, shards: int) -> belief.FactorGraph:
  """n instances in bags of m, each tied to five that are drawn, to the last."""
  rng = np.random.default_rng(0)
  index = rng.integers(0, n, [n, 5])
  ties = neighbors.graph_of_neighbors(index, rng.random([n, 5], np.float32))
  bags = -(-n // m)
  members = np.arange(bags * m).reshape(bags, m)
  mask = members < n
  counts = rng.integers(0, mask.sum(1) + 1)
  return belief.label_proportions(ties, members, mask, counts, shards=shards)


def compiled_memory(law: belief.FactorGraph) -> Any:
  """What a run of ten iterations needs."""
  run = jax.jit(functools.partial(belief.propagate, iterations=ITERATIONS))
  return run.lower(law).compile().memory_analysis()
