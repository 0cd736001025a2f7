"""Few labels: steps of methods against those of FixMatch, on the same views.

A strided CNN, batch 128, 10 classes. FlexMatch and FreeMatch at most 1.05
times; FlexMatch's rule alone, with a million examples, at most 1.2 times what
it takes with ten thousand.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.clock import Timed, in_turns
from benchmarks.em import views
from benchmarks.steps import (
  Rows,
  Training,
  check_training,
  first_batch,
  stepping,
)
from jnl import methods, nets, pseudo
from jnl.base import check_name, data_shards
from jnl.pseudo import Seen
from jnl.train import option

UNIT = 'times a step of FixMatch'
SMOKE = {'policies': ('flexmatch',), 'examples': 512, 'batch_size': 64}
POLICIES = (
  'flexmatch', 'freematch', 'softmatch', 'adamatch', 'dash', 'shrinkmatch',
  'uda', 'ill_semi', 'mix_match',
)  # fmt: skip
SIZES = (10_000, 1_000_000)
"""Of the tables of the rule that is timed alone."""


@dataclasses.dataclass(frozen=True)
class Options(Training, Rows):
  """What this section reads."""

  policies: tuple[str, ...] = option(
    POLICIES[:3], f'few_labels: some of {", ".join(POLICIES)}'
  )


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in options.policies:
    check_name('policy', name, POLICIES)
  check_training(options, options.examples)


def measure(options: Options) -> Iterator[dict]:
  """Steps of methods against those of FixMatch; first against itself."""
  n, dtype = options.examples, getattr(jnp, options.dtype)
  shape = [options.batch_size, 28, 28, 1]
  model = nets.from_linen(nets.StridedCNN(10, dtype=dtype), shape[1:])
  data = views(options.batch_size)
  items = []
  for name in ('fixmatch', *options.policies):
    method = methods.build(
      *(name, model, optax.sgd(0.05, momentum=0.9)),
      x=np.broadcast_to(np.float32(0), (n, *shape[1:])),
      num_classes=10,
      batch_size=options.batch_size,
    )
    call = stepping(options, method, n, data)
    items.append(Timed(name, call, about={'shape': shape}))
  yield from in_turns(items[0].call, items, 10 * options.rounds)
  if 'flexmatch' in options.policies:
    few, many = (ruling(options, size) for size in SIZES)
    rule = Timed('flexmatch, the rule, 10^6', many, about={'shape': shape})
    yield from in_turns(few, [rule], 50 * options.rounds)


def ruling(options: Options, n: int) -> Callable[[], Any]:
  """FlexMatch's rule on a batch, each time with the memory that it left."""
  b, rng = options.batch_size, np.random.default_rng(0)
  shards = data_shards(n, b)
  rule = pseudo.flexmatch(n, 10, threshold=0.3, shards=shards)
  probs = jax.nn.softmax(2 * rng.standard_normal((b, 10), np.float32))
  index = first_batch(n, b, shards)
  seen = Seen(probs, jnp.ones(b), jnp.zeros(b), index, jnp.int32(0))
  apply = jax.jit(rule.apply, donate_argnums=0)
  memory = [jax.device_put(rule.init())]

  def call() -> Any:
    memory[0], weights = apply(memory[0], seen)
    return memory[0], weights

  return call
