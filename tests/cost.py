"""What tests cost: CPU seconds and memory are counted, and bounded.

A test that is not marked slow and takes more than 8 CPU seconds (`--cpu-limit`)
fails: mark it, or make it smaller. `--cpu-report=FILE` writes a table of CPU
seconds and memory by test file. What a file compiled is forgotten after it, so
that a worker does not grow with the number of files. Examples of docstrings are
slow, all of them: `pytest -m slow jnl`.
"""

import collections
import functools
import gc
import os
import pathlib
import resource
import sys

import pytest

# Begun first, so that both workers end together.
COSTLY = tuple(
  f'tests/{name}'
  for name in ('golden', 'experiments', 'train', 'losses', 'methods', 'belief')
)
# A case of a parametrized test, for the second stage.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
START = pytest.StashKey[float]()
# By test file, of all workers: CPU seconds, tests, and the most memory in GB
# that a worker had held when it ended a test of it.
measured = collections.defaultdict(lambda: [0.0, 0, 0.0])


def cpu_seconds():
  """Of this process, and of those that it started and that have ended."""
  used = os.times()
  return used[0] + used[1] + used[2] + used[3]


def peak_memory():
  """In GB, of this process."""
  unit = 1e9 if sys.platform == 'darwin' else 1e6  # bytes there, KB elsewhere
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  yield
  jax = sys.modules.get('jax')
  if jax:
    jax.clear_caches()
  gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  for item in items:  # compiled one operation at a time
    if isinstance(item, pytest.DoctestItem):
      item.add_marker('slow')
  items.sort(key=lambda item: not item.nodeid.startswith(COSTLY))


def pytest_collection_finish():
  gc.freeze()  # what is imported stays: no collection need look at it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  item.stash[START] = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  result = yield
  used = cpu_seconds() - item.stash[START]
  limit = item.config.getoption('--cpu-limit')
  free = any(map(item.get_closest_marker, ('slow', 'unbounded')))
  if used > limit and not free:
    pytest.fail(f'{used:.1f} CPU seconds, more than {limit:g}: mark it slow')
  return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
  item.user_properties += [
    ('cpu', cpu_seconds() - item.stash[START]),
    ('memory', peak_memory()),
  ]


def pytest_runtest_logreport(report):
  found = dict(report.user_properties)
  if report.when == 'teardown' and 'cpu' in found:
    row = measured[report.nodeid.split('::')[0]]
    row[0] += found['cpu']
    row[1] += 1
    row[2] = max(row[2], found['memory'])


def pytest_terminal_summary(terminalreporter, config):
  total = sum(row[0] for row in measured.values())
  peak = max((row[2] for row in measured.values()), default=0)
  terminalreporter.write_line(
    f'{total:.0f} CPU seconds, at most {peak:.1f} GB in a process'
  )
  if config.getoption('--cpu-report'):
    lines = ['| file | CPU seconds | tests | GB so far |', '|---|---|---|---|']
    for file, (used, tests, memory) in sorted(
      measured.items(), key=lambda item: -item[1][0]
    ):
      lines.append(f'| {file} | {used:.1f} | {tests} | {memory:.1f} |')
    text = '\n'.join(lines) + '\n'
    pathlib.Path(config.getoption('--cpu-report')).write_text(text)
