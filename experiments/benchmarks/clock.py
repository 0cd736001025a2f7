"""The clock: things timed in turn, in processes of their own, and medians."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jnl.base import check
from jnl.train import data_mesh, option

MALLOC = {
  'MALLOC_ARENA_MAX': '1',
  'MALLOC_MMAP_THRESHOLD_': str(1 << 30),
  'MALLOC_TRIM_THRESHOLD_': str(1 << 34),
  'MALLOC_TOP_PAD_': str(1 << 28),
}
ROWS = 'JNL_THROUGHPUT_ROWS'
"""Set for a process that measures: the file its rows go to."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What every section reads."""

  devices: int = option(1, 'number of devices; on CPU so many are made up')
  dtype: str = option('float32', 'of logits and networks: float32 or bfloat16')
  rounds: int = option(15, 'turns; steps: times 20, em, meta: times 5')


def mesh_of(options: Options) -> jax.sharding.Mesh:
  """The devices, as many as were asked for."""
  return data_mesh(jax.devices()[: options.devices])


def check_split(name: str, size: int, most: int, options: Options) -> None:
  """Raises where a size cannot be split over the devices."""
  check(
    options.devices <= size <= most and size % options.devices == 0,
    f'{name} must be a multiple of the {options.devices} devices and at most '
    f'{most}, got {size}',
  )


# --- things to time ----------------------------------------------------------


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


# --- processes ---------------------------------------------------------------


def in_process(script: str, config: Options) -> list[dict]:
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
    done = subprocess.run([sys.executable, script, *options], env=env)
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
