"""How fast it is: losses against a copy in memory, steps, epochs, inference.

- `losses`: value and gradient of a loss, [8192, 1000] logits, against the least
  that can be done with them: `z * (1 + eps)`, which reads and writes every one
  once. The rest is what a loss costs beyond the memory it touches. ELR's part
  of a step is compared with two such passes: it also reads and writes the rows
  of a Table, which is donated. `np.copyto` is there to judge the pass itself.
- `steps`: training steps of methods against those of plain cross-entropy, a
  strided CNN, batch 128, 50,000 examples, 10 classes.
- `epochs`: `fit` on 10,000 images against its bare steps, and streamed from the
  host against the same from device memory.
- `em`: training steps of imprecise label learning against those of plain
  cross-entropy with as many passes over the same two views, an MLP and a
  strided CNN, batch 128, 10 classes. At most 1.15 times.
- `meta`: training steps of meta rescaling against those of cross-entropy on the
  same training batch, with meta batches of the same size and of a quarter: L2RW
  at most 2.7 and 2.0 times, Meta-Weight-Net 3.3 and 2.6. STORM with three
  passes against the passes that it counts, each a call of its own (the pass
  along a tangent with the forward one that it needs): at most 1.25 times.
- `counts`: inference from the counts of 1,024 bags of 64 against the least that
  gives their likelihood: one recursion over prefixes, of probabilities and not
  of their logarithms. `count` at most 6 times, better 4. And of a single bag of
  4,096, with the memory of its temporaries.
- `belief`: an iteration of belief propagation with exact counts, on a random
  graph in which each of n instances names five others (the worst there is for a
  cache), in bags of m, against one pass over the arrays of its ties. It says
  nothing of accuracy: so few iterations converge nowhere.
- `neighbors`: the five nearest neighbors of all of n points in 16 dimensions
  against scikit-learn's brute force.

  python experiments/throughput.py                   # twelve minutes
  python experiments/throughput.py --sections losses --dtype bfloat16
  python experiments/throughput.py --sections steps --devices 8 \\
    --parallel shard_map

A measurement and what it is compared with are taken in turn, and the ratio is
the median of theirs, turn by turn: a machine whose speed drifts, or is shared,
drifts in both. The whole is repeated in processes of its own and the median of
these is reported. Compilation is timed apart.

Out come tables, `results.jsonl` (one line for each row: `name, shape, dtype,
ms, floor_ms, ratio` and more) and a bar plot for each section.

On CPU the processes run with glibc's malloc set to keep what is freed: buffers
of this size are otherwise returned to the system and faulted in again at every
call, which takes longer than most losses. One arena, since those of XLA's
threads hold no more than 64 MB.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from jnl import automata, belief, losses, neighbors, nets
from jnl.base import (
  AXIS,
  Array,
  Batch,
  Key,
  Method,
  Model,
  Refit,
  State,
  Table,
  check,
  check_name,
  data_shards,
  pack_rows,
  read_rows,
  write_rows,
)
from jnl.methods import (
  elr,
  ill_mixed,
  ill_noisy,
  ill_partial,
  ill_semi,
  l2rw,
  mwn,
  storm,
)
from jnl.steps import supervised
from jnl.train import (
  How,
  data_mesh,
  fit,
  option,
  parallel,
  parse,
  place,
  report,
)

SECTIONS = {
  'losses': 'times a pass over the logits',
  'steps': 'times a step of cross-entropy',
  'epochs': 'times what it is compared with',
  'em': 'times a step of cross-entropy on both views',
  'meta': 'times a step of cross-entropy; STORM: its own passes',
  'counts': 'times a recursion over prefixes',
  'belief': 'times a pass over its ties',
  'neighbors': "times scikit-learn's",
}
METHODS = (
  'elr', 'gce', 'sce', 'mae', 'label_smoothing', 'bootstrap_soft', 'js',
  'nce_rce', 'anl_ce', 'bi_tempered',
)  # fmt: skip
DTYPES = ('float32', 'bfloat16')
EM_NETS: dict[str, Callable[..., Any]] = {
  'mlp': functools.partial(nets.MLP, hidden=(256,)),
  'strided_cnn': nets.StridedCNN,
}
PARALLEL = ('jit', 'shard_map', 'pmap')
MALLOC = {
  'MALLOC_ARENA_MAX': '1',
  'MALLOC_MMAP_THRESHOLD_': str(1 << 30),
  'MALLOC_TRIM_THRESHOLD_': str(1 << 34),
  'MALLOC_TOP_PAD_': str(1 << 28),
}
ROWS = 'JNL_THROUGHPUT_ROWS'
"""Set for a process that measures: the file its rows go to."""

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
class Config:
  """The settings; every field is an option of the command line."""

  sections: tuple[str, ...] = option(tuple(SECTIONS), 'what to measure')
  devices: int = option(1, 'number of devices; on CPU so many are made up')
  losses: tuple[str, ...] = option((), 'which losses; by default all')
  methods: tuple[str, ...] = option(('gce', 'sce', 'elr'), 'steps: of what')
  dtype: str = option('float32', 'of logits and networks: float32 or bfloat16')
  parallel: str = option(
    'jit', 'of steps, epochs, em, meta: jit, shard_map or pmap'
  )
  batch: int = option(8192, 'losses: rows of logits')
  classes: int = option(1000, 'losses: classes')
  examples: int = option(50_000, 'losses and steps: rows of a Table')
  images: int = option(10_000, 'epochs: images')
  batch_size: int = option(128, 'steps, epochs, em, meta: examples in a step')
  nets: tuple[str, ...] = option(
    ('mlp', 'strided_cnn'), 'em, meta: of which nets'
  )
  bags: int = option(1024, 'counts: bags')
  instances: int = option(64, 'counts: instances in each')
  single: int = option(4096, 'counts: instances in a single bag')
  graphs: tuple[str, ...] = option(
    ('10000x64', '100000x64', '100000x2048', '1000000x64'),
    'belief: instances x bag size',
  )
  points: tuple[str, ...] = option(
    ('20000', '100000'), 'neighbors: numbers of points'
  )
  workers: int = option(2, 'epochs: processes that stream; 0 is a thread')
  rounds: int = option(15, 'turns; steps: times 20, em, meta: times 5')
  processes: int = option(3, 'how often the whole is repeated')
  out: str = option('results/throughput', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: small shapes, one process')


def main(config: Config) -> None:
  """Measures in processes of its own -> medians -> report."""
  if config.smoke:
    config = dataclasses.replace(
      config, losses=('ce', 'sop', 'elr'), methods=('elr',), batch=64,
      classes=16, examples=512, images=256, batch_size=64, bags=8, instances=8,
      single=32, nets=('mlp',), graphs=('64x8',), points=('100',), workers=0,
      rounds=1, processes=1,
    )  # fmt: skip
  check_options(config)
  if ROWS in os.environ:
    report.write_jsonl(os.environ[ROWS], measure(config))
    return
  rows = medians([in_process(config) for _ in range(config.processes)])
  for section, unit in SECTIONS.items():
    own = [row for row in rows if row['section'] == section]
    if own:
      show(section, own)
      plot_section(config, section, unit, own)
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  print(f'\nwrote results.jsonl and a plot for each section to {config.out}')


def check_options(config: Config) -> None:
  """Raises for an option that cannot be, before any work."""
  check(config.sections, f'sections must name some of {tuple(SECTIONS)}')
  for section in config.sections:
    check_name('section', section, SECTIONS)
  for name in config.losses:
    check_name('loss', name, LOSSES)
  for name in config.methods:
    check_name('method', name, METHODS)
  for name in config.nets:
    check_name('net', name, EM_NETS)
  check_name('dtype', config.dtype, DTYPES)
  check_name('parallel', config.parallel, PARALLEL)
  for name in ('devices', 'instances', 'single', 'rounds', 'processes'):
    value = getattr(config, name)
    check(value >= 1, f'{name} must be at least 1, got {value}')
  check(config.classes >= 2, f'classes must be >= 2, got {config.classes}')
  check(config.workers >= 0, f'workers must be >= 0, got {config.workers}')
  for name, most in (
    ('batch', config.examples),
    ('batch_size', min(config.examples, config.images)),
    ('bags', config.bags),
  ):
    size = getattr(config, name)
    check(
      config.devices <= size <= most and size % config.devices == 0,
      f'{name.replace("_", "-")} must be a multiple of the {config.devices} '
      f'devices and at most {most}, got {size}',
    )


# --- processes ---------------------------------------------------------------


def in_process(config: Config) -> list[dict]:
  """The rows of a process of its own: malloc and XLA are set at its start."""
  flags = f'--xla_force_host_platform_device_count={config.devices}'
  options = [
    f'--{name.replace("_", "-")}='
    + (','.join(value) if isinstance(value, tuple) else str(value))
    for name, value in dataclasses.asdict(config).items()
    if name != 'smoke'
  ]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.jsonl'
    env = {
      **os.environ,
      **MALLOC,
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip(),
      ROWS: str(path),
    }
    done = subprocess.run([sys.executable, __file__, *options], env=env)
    if done.returncode:
      sys.exit(done.returncode)  # it has said why
    return [json.loads(line) for line in path.read_text().splitlines()]


def medians(runs: list[list[dict]]) -> list[dict]:
  """Each row with the medians over processes, and the ratio of each."""
  rows = []
  for row, *others in zip(*runs, strict=True):
    ratios = [r['ratio'] for r in (row, *others)]
    median = {
      name: float(np.median([r[name] for r in (row, *others)]))
      for name in ('ms', 'floor_ms', 'ratio', 'compile_s')
    }
    rows.append({**row, **median, 'ratios': ratios})
  return rows


def measure(config: Config) -> list[dict]:
  """All rows of this process."""
  check(
    config.devices <= jax.device_count(),
    f'devices must be at most {jax.device_count()}, got {config.devices}',
  )
  take = {
    'losses': time_losses,
    'steps': time_steps,
    'epochs': time_epochs,
    'em': time_em,
    'meta': time_meta,
    'counts': time_counts,
    'belief': time_belief,
    'neighbors': time_neighbors,
  }
  device = f'{config.devices} x {jax.devices()[0].device_kind}'
  common = {'dtype': config.dtype, 'device': device, 'rounds': config.rounds}
  return [
    {'experiment': 'throughput', 'section': section, **row, **common}
    for section in config.sections
    for row in take[section](config)
  ]


# --- the clock ---------------------------------------------------------------


class Timed(NamedTuple):
  """Something to time: `call` does it once and returns arrays to wait for."""

  name: str
  call: Callable[[], Any]
  passes: float = 1.0
  about: Mapping[str, Any] = {}


def seconds(call: Callable[[], Any]) -> float:
  """How long a call takes, to the last of its arrays."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def in_turns(
  floor: Callable[[], Any], items: list[Timed], rounds: int
) -> Iterator[dict]:
  """Times each item and the floor in turn; yields a row for each item.

  `floor_ms` is `passes` times the floor beside the item. The seconds to compile
  are those of a first call.
  """
  seconds(floor)
  compile_s = {item.name: seconds(item.call) for item in items}
  turns: dict[str, list] = {item.name: [] for item in items}
  for turn in range(rounds + 1):
    for item in items:
      pair = (item.passes * seconds(floor), seconds(item.call))
      if turn:  # the first only warms up
        turns[item.name].append(pair)
  for item in items:
    floors, own = np.array(turns[item.name]).T
    yield {
      'name': item.name,
      **item.about,
      'ms': 1e3 * np.median(own),
      'floor_ms': 1e3 * np.median(floors),
      'ratio': np.median(own / floors),
      'compile_s': compile_s[item.name],
    }


# --- losses ------------------------------------------------------------------

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


def time_losses(config: Config) -> Iterator[dict]:
  """Value and gradient, for a given weight of each example."""
  shape, dtype = [config.batch, config.classes], getattr(jnp, config.dtype)
  mesh = data_mesh(jax.devices()[: config.devices])
  arrays = draw_arrays(config, dtype, mesh)
  one_pass = jax.jit(lambda z: z * (1 + jnp.finfo(z.dtype).eps))

  def timed(name: str, loss: Loss) -> Timed:
    about = {'kind': loss.kind, 'shape': shape, 'note': NOTES.get(name, '')}
    if name == 'elr':
      call = elr_part(config, arrays, mesh)
    else:
      run = jax.jit(functools.partial(value_and_gradient, loss))
      call = functools.partial(run, arrays)
    return Timed(name, call, loss.passes, about)

  items = [timed(name, LOSSES[name]) for name in config.losses or LOSSES]
  if jax.default_backend() == 'cpu':
    items.insert(0, copyto(np.asarray(arrays['z']), {'shape': shape}))
  yield from in_turns(lambda: one_pass(arrays['z']), items, config.rounds)


def draw_arrays(config: Config, dtype: Any, mesh: jax.sharding.Mesh) -> Arrays:
  """What the losses are functions of, split over the devices by example."""
  b, c = config.batch, config.classes
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
  config: Config, arrays: Arrays, mesh: jax.sharding.Mesh
) -> Callable[[], Any]:
  """What `methods.elr` does between the logits and their gradient."""

  def part(table: Table, arrays: Arrays, index: Array) -> Any:
    weight, old = arrays['weight'], read_rows(table, index)

    def loss(z: Array) -> tuple[Array, Array]:
      targets = losses.elr_targets(old, z)
      penalty = losses.elr_penalty(z, targets)
      return losses.ce(z, arrays['y']) + 3.0 * penalty, targets

    value, back, targets = jax.vjp(loss, arrays['z'], has_aux=True)
    targets = jnp.where(weight[:, None] > 0, targets, old)
    return write_rows(table, index, targets), (value, back(weight))

  run = jax.jit(part, donate_argnums=0)
  empty = jnp.zeros([config.examples, config.classes], jnp.float32)
  memory = [place(pack_rows(empty, config.devices), mesh)]
  index = first_batch(config.examples, config.batch, config.devices)

  def call() -> Any:
    memory[0], rest = run(memory[0], arrays, index)
    return memory[0], rest

  return call


def first_batch(n: int, batch_size: int, shards: int) -> Array:
  """The global indices of a batch, laid out shard by shard."""
  first = -(-n // shards) * np.arange(shards)[:, None]
  return jnp.asarray(first + np.arange(batch_size // shards)).reshape(-1)


def copyto(z: np.ndarray, about: Mapping[str, Any]) -> Timed:
  """NumPy's copy into an array that is there already, by one thread."""
  target = np.empty_like(z)
  return Timed('np.copyto', lambda: np.copyto(target, z), about=about)


# --- steps -------------------------------------------------------------------


def build(config: Config, name: str, n: int) -> Method:
  """A method over 28 x 28 images of 10 classes."""
  net = nets.build('strided_cnn', 10, dtype=getattr(jnp, config.dtype))
  model = nets.from_linen(net, (28, 28, 1))
  tx = optax.sgd(0.05, momentum=0.9)
  if name == 'elr':
    return elr(
      model,
      tx,
      num_examples=n,
      num_classes=10,
      shards=data_shards(n, config.batch_size),
    )
  return supervised(getattr(losses, name), model, tx)


def images(n: int) -> dict[str, np.ndarray]:
  """Images [n, 28, 28, 1] of noise, with labels."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal([n, 28, 28, 1], np.float32)
  return {'x': x, 'labels': rng.integers(0, 10, n).astype(np.int32)}


def stepping(
  config: Config, method: Method, n: int, data: Batch | None = None
) -> Callable[[], Any]:
  """Steps of a method, each from the state that the last one left."""
  mesh = data_mesh(jax.devices()[: config.devices])
  key = jax.random.key(0)
  state = [place(jax.jit(method.init)(key), mesh)]
  how = cast(How, config.parallel)
  run = parallel(method.step, state[0], how, mesh=mesh)
  size = config.batch_size
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


def time_steps(config: Config) -> Iterator[dict]:
  """Steps of methods against those of cross-entropy; first against itself."""
  n = config.examples
  about = {'shape': [config.batch_size, 28, 28, 1], 'kind': config.parallel}
  calls = {
    name: stepping(config, build(config, name, n), n)
    for name in ('ce', *config.methods)
  }
  items = [Timed(name, call, about=about) for name, call in calls.items()]
  yield from in_turns(calls['ce'], items, 20 * config.rounds)


# --- epochs ------------------------------------------------------------------


def time_epochs(config: Config) -> Iterator[dict]:
  """Epochs of `fit`: against its bare steps, and streamed against not."""
  n = config.images
  steps = n // config.batch_size
  about = {'shape': [n, 28, 28, 1], 'kind': config.parallel}
  method = build(config, 'ce', n)
  bare = stepping(config, method, n)
  seconds(bare)
  first, memory = epoch_seconds(config, method, None)
  floors = [seconds(lambda: [bare() for _ in range(steps)][-1]) for _ in memory]
  yield epoch_row('from device memory', about, first, memory, floors)
  first, stream = epoch_seconds(config, method, config.workers)
  name = f'streamed by {config.workers or "no"} workers'
  yield epoch_row(name, about, first, stream, memory)


def epoch_row(
  name: str, about: dict, first: float, own: list, floors: list
) -> dict:
  """A row; what the first epoch took longer is taken for compilation."""
  ms, floor_ms = (1e3 * float(np.median(x)) for x in (own, floors))
  return {
    'name': name, **about, 'ms': ms, 'floor_ms': floor_ms,
    'ratio': ms / floor_ms, 'compile_s': max(0.0, first - ms / 1e3),
  }  # fmt: skip


def epoch_seconds(
  config: Config, method: Method, workers: int | None
) -> tuple[float, list[float]]:
  """How long the first epoch of `fit` takes, and how long each of the others.

  A refit that is never due is asked at the start of each epoch, when all work
  of the last one is done: a clock that needs nothing of the loop.
  """
  starts = []

  def clock(epoch: int) -> bool:
    starts.append(time.perf_counter())
    return False

  never = Refit(
    lambda state, batch, key: batch['weight'],
    lambda state, rows, key: state,
    clock,
  )
  fit(
    method._replace(refit=never),
    images(config.images),
    jax.random.key(0),
    epochs=config.rounds + 2,  # the last one has no end
    batch_size=config.batch_size,
    how=cast(How, config.parallel),
    devices=jax.devices()[: config.devices],
    stream=workers,
    label='throughput',
  )
  first, *rest = np.diff(starts).tolist()
  return first, rest


# --- em ----------------------------------------------------------------------


def views(n: int) -> dict[str, np.ndarray]:
  """`images` with a second view, and labels of all kinds."""
  rng = np.random.default_rng(1)
  data = images(n)
  own = data['labels'][:, None] == np.arange(10)
  return {
    **data,
    'x_strong': rng.standard_normal(data['x'].shape, np.float32),
    'candidates': own | (rng.random([n, 10]) < 0.3),
    'labeled': rng.random(n) < 0.5,
    'noisy': rng.random(n) < 0.5,
  }


def on_both_views(method: Method) -> Method:
  """The method on the views of each example side by side, in one pass."""

  def step(state: State, batch: Batch, key: Key) -> Any:
    both = {k: jnp.repeat(batch[k], 2) for k in ('labels', 'weight', 'index')}
    x = jnp.stack([batch['x'], batch['x_strong']], axis=1)
    return method.step(state, {**both, 'x': x.reshape(-1, *x.shape[2:])}, key)

  return method._replace(step=step)


def time_em(config: Config) -> Iterator[dict]:
  """Steps on two views against cross-entropy on them; first against itself."""
  n, dtype = config.examples, getattr(jnp, config.dtype)
  tx, noise_tx = optax.sgd(0.05, momentum=0.9), optax.sgd(0.05)
  shape = [config.batch_size, 28, 28, 1]
  for net in config.nets:
    model = nets.from_linen(EM_NETS[net](10, dtype=dtype), (28, 28, 1))
    methods = {
      'ce': on_both_views(supervised(losses.ce, model, tx)),
      'ill_noisy': ill_noisy(model, tx, noise_tx, num_classes=10),
      'ill_partial': ill_partial(model, tx),
      'ill_semi': ill_semi(model, tx, num_classes=10),
      'ill_mixed': ill_mixed(model, tx, noise_tx, num_classes=10),
    }
    data = views(config.batch_size)
    items = [
      Timed(
        f'{name} {net}',
        stepping(config, method, n, data),
        about={'shape': shape, 'kind': net},
      )
      for name, method in methods.items()
    ]
    yield from in_turns(items[0].call, items, 5 * config.rounds)


# --- meta --------------------------------------------------------------------


def with_meta(size: int, size_meta: int) -> dict[str, np.ndarray]:
  """A batch of `images` and the first of them once more, as meta stream."""
  data = images(size)
  return {**data, **{f'{k}_meta': a[:size_meta] for k, a in data.items()}}


def counted_passes(model: Model, data: Batch) -> Callable[[], Any]:
  """What STORM's docstring counts, for three passes, call by call."""
  params, stats = model.init(jax.random.key(0))
  x, y = jax.device_put((data['x'], data['labels']))
  keys = jax.random.split(jax.random.key(1), len(x))

  def per_example(params: Any) -> Array:
    outputs, _ = model.apply(params, stats, x, keys, True)
    return losses.ce(outputs.logits, y)

  forward = jax.jit(per_example)
  gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(per_example(p))))
  tangent = jax.jit(lambda p: jax.jvp(per_example, (p,), (p,)))
  passes = [*2 * [gradient, forward, forward], tangent]
  return lambda: [run(params) for run in passes]


def time_meta(config: Config) -> Iterator[dict]:
  """Steps with a meta batch against those without; first against itself."""
  n, size, dtype = config.examples, config.batch_size, config.dtype
  shards, rounds = data_shards(n, size), 5 * config.rounds
  shape, sgd = [size, 28, 28, 1], optax.sgd(0.05)
  for net in config.nets:
    about = {'shape': shape, 'kind': net}
    module = EM_NETS[net](10, dtype=getattr(jnp, dtype), dropout=0.1)
    model, tx = nets.from_linen(module, shape[1:]), optax.sgd(0.05, 0.9)
    methods = {
      'l2rw': l2rw(model, tx, num_examples=n, shards=shards),
      'mwn': mwn(model, tx, sgd, num_examples=n, shards=shards),
    }
    plain = stepping(config, supervised(losses.ce, model, tx), n)
    items = [Timed(f'ce {net}', plain, about=about)] + [
      Timed(
        f'{name} {m} {net}',
        stepping(config, method, n, with_meta(size, m)),
        about=about,
      )
      for name, method in methods.items()
      for m in (size, size // 4)
    ]
    yield from in_turns(plain, items, rounds)
    data = with_meta(size, size)
    of_storm = storm(
      model, sgd, num_examples=n, num_classes=10, batch_size=size, shards=shards
    )
    item = Timed(
      f'storm {net}', stepping(config, of_storm, n, data), about=about
    )
    yield from in_turns(counted_passes(model, data), [item], rounds)


# --- counts ------------------------------------------------------------------


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


def time_counts(config: Config) -> Iterator[dict]:
  """Inference from counts, of many bags and of one."""
  mesh = data_mesh(jax.devices()[: config.devices])
  prefixes, count = jax.jit(prefix_recursion), jax.jit(automata.count)
  log_probs = jax.jit(automata.count_log_probs)
  gradient = jax.jit(count_gradient)
  for single, bags, m in (
    (False, config.bags, config.instances),
    (True, 1, config.single),
  ):
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal([bags, m, 2]), rng.integers(0, m + 1, bags)
    logits, counts = jax.device_put(
      (drawn[0].astype(config.dtype), drawn[1].astype(np.int32)),
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
    for row in in_turns(functools.partial(prefixes, p), items, config.rounds):
      if single:
        compiled = count.lower(logits, counts).compile()
        memory = cast(Any, compiled.memory_analysis())
        row['temp_mb'] = memory.temp_size_in_bytes / 1e6
        row['note'] = f'temporaries of {row["temp_mb"]:.2g} MB'
      yield row


# --- belief ------------------------------------------------------------------


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


def time_belief(config: Config) -> Iterator[dict]:
  """Iterations of belief propagation; ten are timed at a time."""
  mesh = data_mesh(jax.devices()[: config.devices])
  iterations = 10
  touch = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree))
  for name in config.graphs:
    n, m = map(int, name.split('x'))
    law = random_law(n, m, config.devices)
    if config.devices > 1:
      law = belief.place(law, mesh)
    silent = belief.no_messages(law)
    ties = (law.neighbors, law.weights, silent.pair_in, silent.pair_out)
    call = functools.partial(
      belief.propagate, law, iterations=iterations, tolerance=0
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
    item = Timed(f'{n} x {m}', call, passes=iterations, about=about)
    for row in in_turns(functools.partial(touch, ties), [item], config.rounds):
      for unit in ('ms', 'floor_ms'):
        row[unit] /= iterations
      yield row


def compiled_memory(law: belief.FactorGraph) -> Any:
  """What a run of ten iterations needs."""
  run = jax.jit(functools.partial(belief.propagate, iterations=10))
  return run.lower(law).compile().memory_analysis()


def time_neighbors(config: Config) -> Iterator[dict]:
  """All neighbors of all points; both are given the same array."""
  from sklearn.neighbors import NearestNeighbors

  searches: list[neighbors.Search] = ['exact']
  if importlib.util.find_spec('faiss') is not None:
    searches.append('faiss')
  for points in map(int, config.points):
    x = np.random.default_rng(0).standard_normal([points, 16], np.float32)
    fitted = NearestNeighbors(n_neighbors=5, algorithm='brute').fit(x)
    items = [
      Timed(
        f'{search} {points}',
        functools.partial(neighbors.knn, jnp.asarray(x), 5, search=search),
        about={'shape': [points, 16], 'kind': search},
      )
      for search in searches
    ]
    yield from in_turns(fitted.kneighbors, items, 1)  # seconds long each


# --- report ------------------------------------------------------------------


def show(section: str, rows: list[dict]) -> None:
  """Prints the table of a section."""
  header = ['name', 'ms', 'floor ms', 'ratio', 'of each process', 'compile s']
  lines = [
    [
      row['name'],
      f'{row["ms"]:.2f}',
      f'{row["floor_ms"]:.2f}',
      f'{row["ratio"]:.2f}',
      ' '.join(f'{ratio:.2f}' for ratio in row['ratios']),
      f'{row["compile_s"]:.2f}',
      row.get('kind', ''),
      row.get('note', ''),
    ]
    for row in rows
  ]
  first = rows[0]
  print(f'\n{section}: {first["shape"]} {first["dtype"]}, {first["device"]}')
  print(report.table([*header, 'kind', 'note'], lines))


def plot_section(
  config: Config, section: str, unit: str, rows: list[dict]
) -> None:
  """Plots the ratios of a section."""
  report.plot_bars(
    f'{config.out}/{section}.png',
    {row['name']: row['ratio'] for row in rows},
    kinds=[row.get('kind', '') for row in rows],
    title=f'{section}: {rows[0]["shape"]} {config.dtype}, {rows[0]["device"]}',
    xlabel=unit,
  )


if __name__ == '__main__':
  main(parse(Config, __doc__))
