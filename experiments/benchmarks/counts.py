"""Counts: inference from the counts of bags, against their likelihood alone.

1,024 bags of 64 against the least that gives their likelihood: one recursion
over prefixes, of probabilities and not of their logarithms. `count` at most 6
times, better 4. And of a single bag of 4,096, with the memory of its
temporaries.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from benchmarks import clock
from benchmarks.clock import Timed, check_split, in_turns, mesh_of
from jnl import automata, losses
from jnl.base import AXIS, Array, check
from jnl.train import option

UNIT = 'times a recursion over prefixes'
SMOKE = {'bags': 8, 'instances': 8, 'single': 32}


@dataclasses.dataclass(frozen=True)
class Options(clock.Options):
  """What this section reads."""

  bags: int = option(1024, 'counts: bags')
  instances: int = option(64, 'counts: instances in each')
  single: int = option(4096, 'counts: instances in a single bag')


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in ('instances', 'single'):
    value = getattr(options, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')
  check_split('bags', options.bags, options.bags, options)


def measure(options: Options) -> Iterator[dict]:
  """Inference from counts, of many bags and of one."""
  mesh = mesh_of(options)
  prefixes, count = jax.jit(prefix_recursion), jax.jit(automata.count)
  log_probs = jax.jit(automata.count_log_probs)
  gradient = jax.jit(count_gradient)
  for single, bags, m in (
    (False, options.bags, options.instances),
    (True, 1, options.single),
  ):
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal([bags, m, 2]), rng.integers(0, m + 1, bags)
    logits, counts = jax.device_put(
      (drawn[0].astype(options.dtype), drawn[1].astype(np.int32)),
      NamedSharding(mesh, P() if single else P(AXIS)),
    )
    p = jax.jit(lambda z: jax.nn.softmax(z.astype('float32'))[..., 1].T)(logits)
    log_odds = logits[..., 1] - logits[..., 0]
    calls = {
      'count': functools.partial(count, logits, counts),
      'count_log_probs': functools.partial(log_probs, log_odds),
      'gradient of count_nll': functools.partial(gradient, logits, counts),
    }
    about = {'shape': [bags, m, 2], 'kind': f'bags of {m}'}
    if single:
      calls = {f'count of {m}': calls['count']}
    items = [Timed(name, call, about=about) for name, call in calls.items()]
    for row in in_turns(functools.partial(prefixes, p), items, options.rounds):
      if single:
        compiled = count.lower(logits, counts).compile()
        memory = cast(Any, compiled.memory_analysis())
        row['temp_mb'] = memory.temp_size_in_bytes / 1e6
        row['note'] = f'temporaries of {row["temp_mb"]:.2g} MB'
      yield row


def prefix_recursion(p: Array) -> Array:
  """P(N = n) [b, m + 1] of probabilities [m, b], instance by instance."""

  def add(a: Array, p: Array) -> tuple[Array, None]:
    p = p[:, None]
    return a * (1 - p) + jnp.pad(a[:, :-1], ((0, 0), (1, 0))) * p, None

  start = jnp.zeros([p.shape[1], len(p) + 1]).at[:, 0].set(1)
  return jax.lax.scan(add, start, p)[0]


def count_gradient(logits: Array, counts: Array) -> Array:
  """The gradient of the sum over bags."""
  return jax.grad(lambda z: jnp.sum(losses.count_nll(z, counts)))(logits)
