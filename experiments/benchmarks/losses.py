"""Losses: value and gradient, against a copy of the logits in memory.

[8192, 1000] logits, against the least that can be done with them: `z * (1 +
eps)`, which reads and writes every one once. The rest is what a loss costs
beyond the memory it touches. ELR's part of a step is compared with two such
passes: it also reads and writes the rows of a Table, which is donated.
`np.copyto` is there to judge the pass itself.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from benchmarks.clock import Timed, check_split, in_turns, mesh_of
from benchmarks.steps import Rows, first_batch
from jnl import losses
from jnl.base import (
  AXIS,
  Array,
  Table,
  check,
  check_name,
  pack_rows,
  read_rows,
  write_rows,
)
from jnl.train import option, place

UNIT = 'times a pass over the logits'
SMOKE = {
  'losses': ('ce', 'sop', 'elr'), 'batch': 64, 'classes': 16, 'examples': 512,
}  # fmt: skip

ONE_SUM, TWO_SUMS, MEMORY, OTHER = (
  'one sum over classes',
  'two sums over classes',
  'with rows of memory',
  'more than that',
)
NOTES = {
  'negative_learning': 'a second softmax, without the top class',
  'anl_ce': 'the sums of nce and of nnce',
  'anl_fl': 'the sums of nfl and of nnfl',
  'anorm': 'a power with an exponent of its own for each class',
  'bi_tempered': "some five rounds of Newton's method for the normalizer",
  'forward': 'a product with the transition matrix, 2 c^2 flops a row',
  'gjs': 'two views: twice the logits, a logarithm of each mixture',
  'mixup': 'cross-entropy twice, from one softmax',
  'elr': 'loss, targets, rows of a donated Table',
  'sop': 'gradients of v [b, c] too',
}


@dataclasses.dataclass(frozen=True)
class Options(Rows):
  """What this section reads."""

  losses: tuple[str, ...] = option((), 'losses: which; by default all')
  batch: int = option(8192, 'losses: rows of logits')
  classes: int = option(1000, 'losses: classes')


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in options.losses:
    check_name('loss', name, LOSSES)
  check(options.classes >= 2, f'classes must be >= 2, got {options.classes}')
  check_split('batch', options.batch, options.examples, options)


Arrays = dict[str, Any]


class Loss(NamedTuple):
  """A loss as a function of named arrays.

  Attributes:
    of: `arrays -> losses [b]`.
    kind: what it costs.
    wrt: what it is differentiated by.
    passes: [b, c] numbers that are read, and written, at the least, in units of
      the logits.
  """

  of: Callable[[Arrays], Array]
  kind: str
  wrt: tuple[str, ...] = ('z',)
  passes: float = 1.0


def plain(name: str, kind: str) -> Loss:
  """A loss of logits and labels, by its name in `jnl.losses`."""
  return Loss(lambda a: getattr(losses, name)(a['z'], a['y']), kind)


def truncated_gce(a: Arrays) -> Array:
  return losses.truncated_gce(a['z'], a['y'], a['weight'])


def sop(a: Arrays) -> Array:
  return losses.sop(a['z'], a['y'], a['u'], a['v'])


LOSSES = {
  **{
    name: plain(name, ONE_SUM)
    for name in (
      'ce', 'label_smoothing', 'mae', 'rce', 'sce', 'gce', 'nce', 'agce', 'aul',
      'ael', 'js', 'taylor_ce', 'focal', 'bootstrap_hard',
    )
  },
  'truncated_gce': Loss(truncated_gce, ONE_SUM),
  **{
    name: plain(name, TWO_SUMS)
    for name in ('nfl', 'ngce', 'nnce', 'nnfl', 'bootstrap_soft')
  },
  'sop_logits': Loss(sop, TWO_SUMS),
  'sop': Loss(sop, MEMORY, ('z', 'u', 'v'), passes=2),
  'elr': Loss(lambda a: losses.ce(a['z'], a['y']), MEMORY, passes=2),
  **{
    name: plain(name, OTHER)
    for name in (
      'nce_rce', 'negative_learning', 'anl_ce', 'anl_fl', 'anorm',
      'bi_tempered',
    )
  },
  'forward': Loss(lambda a: losses.forward(a['z'], a['y'], a['t']), OTHER),
  'mixup': Loss(
    lambda a: losses.mixup(a['z'], a['y'], a['y'][::-1], 0.3), OTHER
  ),
  'gjs': Loss(
    lambda a: losses.gjs(a['views'], a['y']), OTHER, ('views',), passes=2
  ),
}  # fmt: skip


def measure(options: Options) -> Iterator[dict]:
  """Value and gradient, for a given weight of each example."""
  mesh, shape = mesh_of(options), [options.batch, options.classes]
  arrays = draw_arrays(options, getattr(jnp, options.dtype), mesh)
  one_pass = jax.jit(lambda z: z * (1 + jnp.finfo(z.dtype).eps))

  def timed(name: str, loss: Loss) -> Timed:
    about = {'kind': loss.kind, 'shape': shape, 'note': NOTES.get(name, '')}
    if name == 'elr':
      call = elr_part(options, arrays, mesh)
    else:
      run = jax.jit(functools.partial(value_and_gradient, loss))
      call = functools.partial(run, arrays)
    return Timed(name, call, loss.passes, about)

  items = [timed(name, LOSSES[name]) for name in options.losses or LOSSES]
  if jax.default_backend() == 'cpu':
    items.insert(0, copyto(np.asarray(arrays['z']), {'shape': shape}))
  # One kind after the other: what there is stays if the rest takes too long.
  for _, some in itertools.groupby(items, lambda item: item.about.get('kind')):
    yield from in_turns(
      lambda: one_pass(arrays['z']), list(some), options.rounds
    )


def draw_arrays(
  options: Options, dtype: Any, mesh: jax.sharding.Mesh
) -> Arrays:
  """What the losses are functions of, split over the devices by example."""
  b, c = options.batch, options.classes
  rng = np.random.default_rng(0)
  z = 2 * rng.standard_normal([b, c])
  off_diagonal = 0.3 / (c - 1)
  arrays = {
    'z': jnp.asarray(z, dtype),
    'y': jnp.asarray(rng.integers(0, c, b), jnp.int32),
    'weight': jnp.asarray(rng.uniform(0.5, 1.5, b), jnp.float32),
    'u': jnp.asarray(1e-8 * rng.standard_normal(b), jnp.float32),
    'v': jnp.asarray(1e-8 * rng.standard_normal([b, c]), jnp.float32),
    'views': jnp.asarray(np.stack([z, z[:, ::-1]]), dtype),
    't': jnp.full([c, c], off_diagonal) + (0.7 - off_diagonal) * jnp.eye(c),
  }
  specs = {'views': P(None, AXIS), 't': P()}
  return {
    name: jax.device_put(a, NamedSharding(mesh, specs.get(name, P(AXIS))))
    for name, a in arrays.items()
  }


def value_and_gradient(loss: Loss, arrays: Arrays) -> tuple[Array, Arrays]:
  """Losses [b], and the gradient of their weighted sum."""
  wrt = {name: arrays[name] for name in loss.wrt}
  value, back = jax.vjp(lambda own: loss.of({**arrays, **own}), wrt)
  return value, back(arrays['weight'])[0]


def elr_part(
  options: Options, arrays: Arrays, mesh: jax.sharding.Mesh
) -> Callable[[], Any]:
  """What `methods.elr` does between the logits and their gradient."""

  def part(table: Table, arrays: Arrays, index: Array) -> Any:
    weight, old = arrays['weight'], read_rows(table, index)

    def loss(z: Array) -> tuple[Array, Array]:
      targets = losses.elr_targets(old, z)
      penalty = losses.elr_penalty(z, targets)
      return losses.ce(z, arrays['y']) + 3.0 * penalty, targets

    value, back, targets = jax.vjp(loss, arrays['z'], has_aux=True)
    table = write_rows(table, index, targets, where=weight > 0)
    return table, (value, back(weight))

  run = jax.jit(part, donate_argnums=0)
  empty = jnp.zeros([options.examples, options.classes], jnp.float32)
  memory = [place(pack_rows(empty, options.devices), mesh)]
  index = first_batch(options.examples, options.batch, options.devices)

  def call() -> Any:
    memory[0], rest = run(memory[0], arrays, index)
    return memory[0], rest

  return call


def copyto(z: np.ndarray, about: Mapping[str, Any]) -> Timed:
  """NumPy's copy into an array that is there already, by one thread."""
  target = np.empty_like(z)
  return Timed('np.copyto', lambda: np.copyto(target, z), about=about)
