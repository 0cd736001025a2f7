"""All that is measured on one accelerator: what `accelerator.sh` runs.

Sections run one after the other, each in a process of its own that is ended at
its limit; what one leaves of its time is there for those after it (all in one
process, and without limits, for a smoke test). In units of what
`experiments/throughput.py` compares with:

- losses, in both precisions, at a size that no cache holds;
- steps of ELR, imprecise label learning and meta rescaling;
- a PreAct-ResNet-18 in bfloat16: steps, and epochs of CIFAR-10 (where
  `--data-dir` has it) or of made-up images, ELR after cross-entropy;
- eight seeds at once, against one;
- belief propagation, and inference from counts.

After every section results.json and table.md are written anew, so that what is
finished stays, whatever happens to the rest.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import belief, clock, counts, losses, steps
import jnl
from jnl.base import check_name
from jnl.train import option, options, report, run


@dataclasses.dataclass(frozen=True)
class Config:
  """The options."""

  sections: tuple[str, ...] = option((), 'which; by default all')
  dataset: str = option('cifar10', 'images to train on, of those in data-dir')
  data_dir: str = option('', 'folder of local files; none: made-up images')
  out: str = option('results/accelerator', 'folder for what comes out')
  smoke: bool = option(False, 'tiny, on any machine, in one process')


# --- what is measured --------------------------------------------------------


def sized(section: ModuleType, config: Config, **sizes: Any) -> Any:
  """The options of a section of throughput.py."""
  tiny = {**section.SMOKE, 'rounds': 1} if config.smoke else {}
  return section.Options(**{**sizes, **tiny})


def of_losses(dtype: str, config: Config) -> Iterator[dict]:
  """Losses, with the least of bytes that they move in a second."""
  options = sized(losses, config, dtype=dtype, batch=1 << 17, examples=1 << 17)
  for row in losses.measure(options):
    loss = losses.LOSSES.get(row['name'])
    if loss is not None:
      size = math.prod(row['shape']) * jnp.dtype(dtype).itemsize
      gigabytes = 2e-9 * loss.passes * size
      row['gb_per_s'] = 1e3 * gigabytes / row['ms']
      row['floor_gb_per_s'] = 1e3 * gigabytes / row['floor_ms']
    yield row


def of_steps(name: str, config: Config) -> Iterator[dict]:
  """Steps large enough that the device is busy and not Python."""
  section = importlib.import_module(f'benchmarks.{name}')
  nets = {} if name == 'steps' else {'nets': ('strided_cnn',)}
  return section.measure(sized(section, config, batch_size=4096, **nets))


def of_belief(config: Config) -> Iterator[dict]:
  graphs = ('100000x64', '1000000x64')
  return belief.measure(sized(belief, config, graphs=graphs))


def of_counts(config: Config) -> Iterator[dict]:
  return counts.measure(sized(counts, config, bags=1 << 14))


def of_resnet(config: Config) -> Iterator[dict]:
  """Steps, then epochs for half a minute each, with 40% of the labels wrong."""
  from jnl import losses, methods, noise
  from jnl.data import augment
  from jnl.train import script

  dataset = images(config)
  x, clean = dataset.train.x, dataset.train.labels
  name, size = ('mlp', 32) if config.smoke else ('preact_resnet18', 512)
  model = script.network(name, 10, x, dtype='bfloat16', standardize=True)
  tx, n = script.optimizer('sgd', 0.1, 5e-4), len(x)
  shards = jnl.base.data_shards(n, size)
  built = {
    'ce': methods.supervised(losses.ce, model, tx),
    'elr': methods.elr(
      model, tx, num_examples=n, num_classes=10, shards=shards
    ),
  }
  labels = np.asarray(
    noise.corrupt(jax.random.key(0), clean, noise.symmetric(10, 0.4)).labels
  )

  options = steps.Options(batch_size=size)
  batch = {'x': x[:size], 'labels': labels[:size]}
  calls = {k: steps.stepping(options, m, n, batch) for k, m in built.items()}
  about = {'shape': [size, *x.shape[1:]], 'kind': f'{name}, a step of {size}'}
  items = [clock.Timed(k, call, about=about) for k, call in calls.items()]
  for row in clock.in_turns(calls['ce'], items, 1 if config.smoke else 30):
    yield {**row, 'note': f'{1e3 * size / row["ms"]:.0f} images/s'}

  floor = None
  for key, method in built.items():
    train = functools.partial(
      jnl.train.fit,
      method,
      {'x': x, 'labels': labels},
      jax.random.key(1),
      batch_size=size,
      held_out={'test': {'x': dataset.test.x, 'labels': dataset.test.labels}},
      augment=augment.views(script.crop_flip),
    )
    row, log = epochs(train, seconds=0 if config.smoke else 30)
    curve = [float(epoch['test_accuracy']) for epoch in log]
    floor = floor or row['ms']
    yield {
      'name': key,
      'kind': f'{name}, an epoch of {n}: {dataset.name}',
      'shape': list(x.shape),
      **against(floor, row),
      'test_accuracy': curve,
      'note': f'{1e3 * n / row["ms"]:.0f} images/s; {len(curve)} epochs, '
      f'{100 * curve[-1]:.1f}%',
    }


def images(config: Config) -> Any:
  """CIFAR-10, or images of its shape with classes that can be learned."""
  from jnl import data

  why = 'no --data-dir'
  if config.data_dir:
    try:
      return data.load(config.dataset, data_dir=config.data_dir)
    except ImportError as error:  # JPEG files need pillow
      why = str(error)
  print(f'{why}: made-up images, whose accuracies say nothing')
  rng = np.random.default_rng(0)
  n = 500 if config.smoke else 60_000
  labels = rng.integers(0, 10, n)
  means = rng.standard_normal([10, 4, 4, 3], np.float32)
  means = means.repeat(8, axis=1).repeat(8, axis=2)
  x = rng.standard_normal([n, 32, 32, 3], np.float32)
  x = np.clip(0.5 + 0.1 * means[labels] + 0.2 * x, 0, 1)
  test = n // 6
  return data.from_arrays(
    x[test:], labels[test:], x[:test], labels[:test], name='made-up images'
  )


def of_seeds(config: Config) -> Iterator[dict]:
  """Epochs of eight runs in one program, against those of one run."""
  import optax

  from benchmarks.em import NETS
  from jnl import losses, methods, nets

  n = 256 if config.smoke else 25_600
  train: dict[str, Any] = {'data': steps.images(n), 'batch_size': 128}
  for name in ('mlp',) if config.smoke else NETS:
    model = nets.from_linen(NETS[name](10), (28, 28, 1))
    method = methods.supervised(losses.ce, model, optax.sgd(0.05, 0.9))
    key = jax.random.key(0)
    runs = {
      'one': functools.partial(jnl.train.fit, method, key=key, **train),
      'eight': functools.partial(
        jnl.train.fit_many,
        method,
        keys=jax.random.split(key, 8),
        vectorize=True,
        **train,
      ),
    }
    floor = None
    for label, one in runs.items():
      row, _ = epochs(one, seconds=0 if config.smoke else 2)
      floor = floor or row['ms']
      about = {'kind': f'{name}, an epoch of {n}', 'shape': [n, 28, 28, 1]}
      yield {'name': label, **about, **against(floor, row)}


class Enough(Exception):  # noqa: N818
  """Enough epochs."""


def epochs(
  train: Callable[..., Any], seconds: float
) -> tuple[dict[str, float], list[dict]]:
  """Trains until so long after the first epoch; the time of one, and the log.

  `train` is `fit` or `fit_many` of everything but `epochs` and `log`.
  """
  ends, rows = [time.perf_counter()], []

  def log(row: Any) -> None:
    ends.append(time.perf_counter())
    rows.append(dict(row))
    if len(rows) > 1 and ends[-1] - ends[1] >= seconds:
      raise Enough

  with contextlib.suppress(Enough):
    train(epochs=100_000, log=log)
  first, *rest = np.diff(ends).tolist()
  epoch = float(np.median(rest))
  return {'ms': 1e3 * epoch, 'compile_s': max(0.0, first - epoch)}, rows


def against(floor_ms: float, row: dict[str, float]) -> dict[str, float]:
  """The row with what it is compared with."""
  return {**row, 'floor_ms': floor_ms, 'ratio': row['ms'] / floor_ms}


class Section(NamedTuple):
  """What is measured, and for how many seconds at most.

  Attributes:
    measure: `config -> rows`.
    limit: of seconds, the start of the process among them.
    unit: of the ratios.
    needs: what has to be installed beside jax, numpy and optax.
  """

  measure: Callable[[Config], Iterator[dict]]
  limit: float
  unit: str
  needs: tuple[str, ...] = ('flax',)


PASS, CE = losses.UNIT, steps.UNIT
SECTIONS = {
  'losses_float32': Section(
    functools.partial(of_losses, 'float32'), 60, PASS, ()
  ),
  'losses_bfloat16': Section(
    functools.partial(of_losses, 'bfloat16'), 50, PASS, ()
  ),
  'steps': Section(functools.partial(of_steps, 'steps'), 40, CE),
  'em': Section(functools.partial(of_steps, 'em'), 45, f'{CE} on both views'),
  'meta': Section(
    functools.partial(of_steps, 'meta'), 55, f'{CE}; STORM: its own passes'
  ),
  'resnet': Section(of_resnet, 130, 'times cross-entropy'),
  'seeds': Section(of_seeds, 40, 'times one run'),
  'belief': Section(of_belief, 35, belief.UNIT, ()),
  'counts': Section(of_counts, 15, counts.UNIT, ()),
}
"""In eight minutes together."""


# --- processes and reports ---------------------------------------------------


def main(config: Config) -> None:
  """Sections in processes of their own -> results.json, table.md."""
  names = config.sections or tuple(SECTIONS)
  with options():
    for name in names:
      check_name('section', name, SECTIONS)
  if clock.ROWS in os.environ:
    measure_here(config, names[0], os.environ[clock.ROWS])
    return
  with options():
    config = dataclasses.replace(config, out=report.own_folder(config.out))
  found: dict[str, Any] = {
    'date': datetime.date.today().isoformat(),
    'device': None,
    'jax': jax.__version__,
    'jnl': jnl.__version__,
    'python': platform.python_version(),
    'smoke': config.smoke,
    'sections': {},
  }
  start, until = time.monotonic(), 0.0
  for name in names:
    until += SECTIONS[name].limit
    try:
      run_section(config, name, start + until - time.monotonic(), found)
    finally:
      found['seconds'] = time.monotonic() - start
      write(config, found)
  print(f'\n{table(found)}\nwrote results.json and table.md to {config.out}')
  states = [section['state'] for section in found['sections'].values()]
  bad = [s for s in states if s != 'done' and not s.startswith('left out')]
  if bad:
    sys.exit(f'not everything was measured: {"; ".join(bad)}')


def measure_here(config: Config, name: str, path: report.PathLike) -> None:
  """Measures a section, each row written when it is there."""
  device = jax.devices()[0]
  with report.append_jsonl(path) as write_row:
    write_row({'device': device.device_kind, 'platform': device.platform})
    for row in SECTIONS[name].measure(config):
      write_row(row)


def run_section(
  config: Config, name: str, limit: float, found: dict[str, Any]
) -> None:
  """Runs a section and adds what came of it to `found`, even if interrupted."""
  section = SECTIONS[name]
  own: dict[str, Any] = {'unit': section.unit, 'rows': []}
  found['sections'][name] = own
  missing = [m for m in section.needs if importlib.util.find_spec(m) is None]
  if missing:
    own['state'] = f'left out: {", ".join(missing)} is not installed'
    print(f'\n=== {name} {own["state"]}', flush=True)
    return
  most = '' if config.smoke else f', {limit:.0f} s at most'
  print(f'\n=== {name}{most}', flush=True)
  rows = pathlib.Path(config.out) / f'{name}.jsonl'
  rows.unlink(missing_ok=True)
  command = [
    *(sys.executable, '-m', 'benchmarks.accelerator', f'--sections={name}'),
    *(f'--dataset={config.dataset}', f'--data-dir={config.data_dir}'),
  ]
  env = {**os.environ, clock.ROWS: str(rows.absolute())}
  start, own['state'] = time.monotonic(), f'{name} was interrupted'
  try:
    if config.smoke:
      code = 0
      measure_here(config, name, rows)
    else:
      code = subprocess.run(command, env=env, timeout=limit).returncode
    own['state'] = f'{name} failed, exit status {code}' if code else 'done'
  except subprocess.TimeoutExpired:
    own['state'] = f'{name} was out of time after {limit:.0f} s'
  finally:
    own['seconds'] = time.monotonic() - start
    lines = rows.read_text().splitlines() if rows.exists() else []
    rows.unlink(missing_ok=True)
    for device in lines[:1]:
      found.update(json.loads(device))
    own['rows'] = [json.loads(line) for line in lines[1:]]
  print(f'{own["state"]}, {own["seconds"]:.0f} s', flush=True)


def write(config: Config, found: dict[str, Any]) -> None:
  """Both files, all or nothing."""
  out = pathlib.Path(config.out)
  with report.replacing(out / 'results.json') as path:
    path.write_text(json.dumps(report.plain(found), indent=1) + '\n')
  with report.replacing(out / 'table.md') as path:
    path.write_text(table(found))


def table(found: dict[str, Any]) -> str:
  """What was found, in Markdown: a line for what is compared with the same."""
  lines = [
    f'{found["device"]}, jax {found["jax"]}, Python {found["python"]}, '
    f'{found["date"]}, {found.get("seconds", 0):.0f} s in all'
    + (': a smoke test, whose numbers mean nothing' if found['smoke'] else ''),
    '',
    '| section | what | that, ms | each: ms (times that) |',
    '|---|---|---|---|',
  ]
  for name, section in found['sections'].items():
    groups = itertools.groupby(section['rows'], lambda row: row.get('kind', ''))
    for kind, rows in groups:
      own = list(rows)
      each = ', '.join(
        f'{row["name"]} {row["ms"]:.3g} ({row["ratio"]:.2f}'
        + (f'; {row["note"]})' if name == 'resnet' else ')')
        for row in own
      )
      least = f'{min(row["floor_ms"] for row in own):.3g}'
      if 'floor_gb_per_s' in own[0]:
        speed = np.median([row['floor_gb_per_s'] for row in own])
        least += f' ({speed:.0f} GB/s)'
      lines.append(f'| {name}, {section["unit"]} | {kind} | {least} | {each} |')
    if section['state'] != 'done':
      lines.append(f'| {name} | {section["state"]} | | |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child too
  run(main, Config, __doc__)
