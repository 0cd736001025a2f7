"""Epochs: `fit` against its bare steps, and streamed from the host or not.

10,000 images, a strided CNN, batch 128.
"""

from collections.abc import Iterator
import dataclasses
import time
from typing import Any, cast

import jax
import numpy as np

from benchmarks.clock import seconds
from benchmarks.steps import Training, build, check_training, images, stepping
from jnl.base import Method, check
from jnl.train import fit, option

UNIT = 'times what it is compared with'
SMOKE = {'images': 256, 'batch_size': 64, 'workers': 0}


@dataclasses.dataclass(frozen=True)
class Options(Training):
  """What this section reads."""

  images: int = option(10_000, 'epochs: images')
  workers: int = option(2, 'epochs: processes that stream; 0 is a thread')


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  check(options.workers >= 0, f'workers must be >= 0, got {options.workers}')
  check_training(options, options.images)


def measure(options: Options) -> Iterator[dict]:
  """Epochs of `fit`: against its bare steps, and streamed against not."""
  n = options.images
  steps = n // options.batch_size
  about = {'shape': [n, 28, 28, 1], 'kind': options.parallel}
  method = build(options, 'ce', n)
  bare = stepping(options, method, n)
  seconds(bare)
  first, memory = epoch_seconds(options, method, None)
  floors = [seconds(lambda: [bare() for _ in range(steps)][-1]) for _ in memory]
  yield epoch_row('from device memory', about, first, memory, floors)
  first, stream = epoch_seconds(options, method, options.workers)
  name = f'streamed by {options.workers or "no"} workers'
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
  options: Options, method: Method, workers: int | None
) -> tuple[float, list[float]]:
  """How long the first epoch of `fit` takes, and how long each of the others.

  A row is logged when all work of an epoch is done.
  """
  ends = [time.perf_counter()]
  fit(
    method,
    images(options.images),
    jax.random.key(0),
    epochs=options.rounds + 1,
    batch_size=options.batch_size,
    how=cast(Any, options.parallel),
    devices=jax.devices()[: options.devices],
    stream=workers,
    log=lambda row: ends.append(time.perf_counter()),
    label='throughput',
  )
  first, *rest = np.diff(ends).tolist()
  return first, rest
