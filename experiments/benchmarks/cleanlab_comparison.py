"""Confident learning beside cleanlab: seconds, memory, the same masks.

Synthetic probabilities in float32 with 10% wrong labels, as people hold them:
numpy in, numpy out, checks and transfers included, and also with jax arrays
that lie on the device already. In turns in one process, medians.

  pip install cleanlab
  python experiments/throughput.py --sections cleanlab_comparison

Without cleanlab the runs of jnl are left.
"""

from collections.abc import Iterator
import dataclasses
import importlib.util
import pathlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clock
from benchmarks.belief import read_size
from benchmarks.clock import Timed, in_turns
from jnl import audit
from jnl.train import option

UNIT = 'times cleanlab'
SMOKE = {'audit': '2000x10,500x80'}


@dataclasses.dataclass(frozen=True)
class Options(clock.Options):
  """What this section reads."""

  audit: str = option(
    '1000000x10,50000x1000', 'cleanlab_comparison: rows x classes'
  )


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for size in options.audit.split(','):
    read_size('audit', size)


def measure(options: Options) -> Iterator[dict]:
  """Every size -> joint and issues, by cleanlab and by jnl, in turns."""
  warnings.simplefilter('ignore')
  for size in options.audit.split(','):
    yield from measure_size(*read_size('audit', size), options.rounds)


def measure_size(n: int, c: int, rounds: int) -> Iterator[dict]:
  """Rows of one size."""
  labels, probs = draw(n, c)
  device = jax.block_until_ready((jnp.asarray(labels), jnp.asarray(probs)))
  each = np.bincount(labels, minlength=c)

  def joint(labels: Any, probs: Any) -> Any:
    counts = audit.confident_joint(labels, probs).counts
    return audit.calibrate_joint(np.asarray(counts), each)

  calls = {
    'joint': lambda: joint(labels, probs),
    'joint, on device': lambda: joint(*device),
    'issues': lambda: audit.find_label_issues(labels, probs),
    'issues, on device': lambda: audit.find_label_issues(*device),
  }
  for kind, floor in (by_cleanlab(labels, probs) or calls).items():
    found = np.asarray(floor())
    ours = {k: f for k, f in calls.items() if k.split(',')[0] == kind}
    about = {'shape': [n, c], 'kind': kind}
    ours = {f'{k} {n}x{c}': f for k, f in ours.items()}
    items = [Timed(k, f, about=about) for k, f in ours.items()]
    for row in in_turns(floor, items, rounds):
      call = ours[row['name']]
      own = {
        'differ': int((found != np.asarray(call())).sum()),
        'more_memory': peak_over(call) / probs.nbytes,
        'times_as_fast': row['floor_ms'] / row['ms'],
      }
      note = (
        '{times_as_fast:.1f} times as fast, {differ} entries differ, memory '
        'of {more_memory:.2f} times the probabilities'
      )
      yield {**row, **own, 'note': note.format(**own)}


def draw(n: int, c: int) -> tuple[np.ndarray, np.ndarray]:
  """Labels, a tenth of them wrong, and probabilities that know it mostly."""
  rng = np.random.default_rng(0)
  truth = rng.integers(0, c, n)
  wrong = rng.random(n) < 0.1
  labels = np.where(wrong, rng.integers(0, c, n), truth)
  probs = np.empty((n, c), np.float32)
  for first in range(0, n, 1 << 14):  # so that little memory is touched
    part = slice(first, min(first + (1 << 14), n))
    logits = rng.standard_normal((part.stop - first, c), np.float32)
    logits[np.arange(len(logits)), truth[part]] += 2 + np.log(c) / 2
    np.exp(logits, out=logits)
    probs[part] = logits / logits.sum(1, keepdims=True)
  return labels, probs


def by_cleanlab(labels: np.ndarray, probs: np.ndarray) -> dict[str, Any]:
  """The same by cleanlab, where it is installed."""
  if importlib.util.find_spec('cleanlab') is None:
    print('cleanlab is not installed: the runs of jnl alone')
    return {}
  from cleanlab.count import compute_confident_joint
  from cleanlab.filter import find_label_issues

  return {
    'joint': lambda: compute_confident_joint(labels, probs),
    'issues': lambda: find_label_issues(labels, probs, n_jobs=1),
  }


def peak_over(call: Any) -> float:
  """By how many bytes the memory of the process rises during a call; Linux."""
  status, reset = (
    pathlib.Path('/proc/self/status'),
    pathlib.Path('/proc/self/clear_refs'),
  )
  if not reset.exists():
    return float('nan')

  def read(name: str) -> float:
    lines = status.read_text().splitlines()
    return float(next(x.split()[1] for x in lines if x.startswith(name))) * 1e3

  reset.write_text('5')
  before = read('VmRSS')
  jax.block_until_ready(call())
  return read('VmHWM') - before
