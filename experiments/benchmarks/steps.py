"""Steps: training steps of methods against those of plain cross-entropy.

A strided CNN, batch 128, 50,000 examples, 10 classes. SOP at most 1.1 times,
Co-teaching, which trains two networks, 2.3; DivideMix at most 1.2 times the
passes that it counts, each a call of its own: two steps of cross-entropy and
two forward passes. Here is also what the other sections that train share.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from benchmarks import clock
from benchmarks.clock import Timed, check_split, in_turns, mesh_of
import jnl
from jnl import methods
from jnl.base import AXIS, Array, Batch, Method, check_name, data_shards
from jnl.train import option, parallel, place

UNIT = 'times a step of cross-entropy'
SMOKE = {'methods': ('elr',), 'examples': 512, 'batch_size': 64}
METHODS = (
  'elr', 'sop', 'co_teaching', 'jocor', 'elr_plus', 'divide_mix',
  'dynamic_bootstrap', 'cores', 'peer', 'vol_min', 'gce', 'sce', 'mae',
  'label_smoothing', 'bootstrap_soft', 'js',
  'nce_rce', 'anl_ce', 'bi_tempered',
)  # fmt: skip
PARALLEL = ('jit', 'shard_map', 'pmap')


@dataclasses.dataclass(frozen=True)
class Rows(clock.Options):
  """How many examples a table has."""

  examples: int = option(50_000, 'losses, steps, em, meta: rows of a Table')


@dataclasses.dataclass(frozen=True)
class Training(clock.Options):
  """How steps are run."""

  batch_size: int = option(128, 'steps, epochs, em, meta: examples in a step')
  parallel: str = option(
    'jit', 'of steps, epochs, em, meta: jit, shard_map or pmap'
  )


@dataclasses.dataclass(frozen=True)
class Options(Training, Rows):
  """What this section reads."""

  methods: tuple[str, ...] = option(
    ('gce', 'sce', 'elr', 'sop', 'co_teaching', 'divide_mix'), 'steps: of what'
  )


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in options.methods:
    check_name('method', name, METHODS)
  check_training(options, options.examples)


def check_training(options: Training, n: int) -> None:
  """The same, for what sections that train have in common."""
  check_name('parallel', options.parallel, PARALLEL)
  check_split('batch-size', options.batch_size, n, options)


def measure(options: Options) -> Iterator[dict]:
  """Steps of methods against those of cross-entropy; first against itself."""
  n = options.examples
  about = {'shape': [options.batch_size, 28, 28, 1], 'kind': options.parallel}
  calls = {
    name: stepping(options, build(options, name, n), n)
    for name in ('ce', *options.methods)
  }
  items = [Timed(name, call, about=about) for name, call in calls.items()]
  yield from in_turns(calls['ce'], items, 20 * options.rounds)
  if 'divide_mix' in calls:
    name = 'divide_mix, of its passes'
    own = Timed(name, calls['divide_mix'], about=about)
    counted = passes_of_divide_mix(options, n)
    yield from in_turns(counted, [own], 20 * options.rounds)


def passes_of_divide_mix(options: Training, n: int) -> Callable[[], Any]:
  """For each network a step over the batch, and a guess on it."""
  method = build(options, 'ce', n)
  steps = [stepping(options, method, n) for _ in range(2)]
  state = jax.jit(method.init)(jax.random.key(0))
  x = jax.device_put(images(options.batch_size)['x'])
  forward = jax.jit(method.predict)
  guesses = 2 * [lambda: forward(state, x)]
  return lambda: [run() for run in (*steps, *guesses)]


def build(options: Training, name: str, n: int) -> Method:
  """A method over 28 x 28 images of 10 classes."""
  nets = jnl.nets  # not above: losses are measured without Flax, too
  net = nets.build('strided_cnn', 10, dtype=getattr(jnp, options.dtype))
  return methods.build(
    name,
    nets.from_linen(net, (28, 28, 1)),
    optax.sgd(0.05, momentum=0.9),
    x=np.broadcast_to(np.float32(0), (n, 28, 28, 1)),
    num_classes=10,
    batch_size=options.batch_size,
  )


def images(n: int) -> dict[str, np.ndarray]:
  """Images [n, 28, 28, 1] of noise, with labels."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal([n, 28, 28, 1], np.float32)
  return {'x': x, 'labels': rng.integers(0, 10, n).astype(np.int32)}


def stepping(
  options: Training, method: Method, n: int, data: Batch | None = None
) -> Callable[[], Any]:
  """Steps of a method, each from the state that the last one left."""
  mesh = mesh_of(options)
  key = jax.random.key(0)
  state = [place(jax.jit(method.init)(key), mesh)]
  how = cast(Any, options.parallel)
  run = parallel(method.step, state[0], how, mesh=mesh)
  size = options.batch_size
  batch = {
    **(data or images(size)),
    'index': first_batch(n, size, data_shards(n, size)),
    'weight': np.ones(size, np.float32),
  }
  batch = jax.device_put(batch, NamedSharding(mesh, P(AXIS)))

  def call() -> Any:
    state[0], metrics = run(state[0], batch, key)
    return state[0], metrics

  return call


def first_batch(n: int, batch_size: int, shards: int) -> Array:
  """The global indices of a batch, laid out shard by shard."""
  first = -(-n // shards) * np.arange(shards)[:, None]
  return jnp.asarray(first + np.arange(batch_size // shards)).reshape(-1)
