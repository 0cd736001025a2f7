"""Eight devices, quick compilation and a cache of programs, set before jax.

Nearly all the time of these tests is spent on compiling small programs. XLA is
told to optimize little; with XLA_FLAGS=--xla_backend_optimization_level=3, as a
stage of .ci/run has it, what runs is what users run.
"""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib

import cost
import pytest

flags = os.environ.get('XLA_FLAGS', '').split()
flags.append('--xla_force_host_platform_device_count=8')
if not any('optimization_level' in flag for flag in flags):
  flags.append('--xla_backend_optimization_level=0')
  # XLA ends the process at a flag that it does not know.
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags.append('--xla_cpu_use_fusion_emitters=false')
# A program in one part: in parts for several threads it takes a seventh more.
flags.append('--xla_cpu_parallel_codegen_split_count=1')
os.environ['XLA_FLAGS'] = ' '.join(flags)
os.environ['JAX_PLATFORMS'] = 'cpu'  # which can have eight
# Of BLAS, which numpy starts: beside other workers they spin and wait.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

cache = pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

gc.set_threshold(50_000, 20, 100)  # jax makes many objects that stay

pytest.register_assert_rewrite('contract')  # plain asserts, outside of tests

EXTRAS = {
  'test': 'chex flax grain hypothesis matplotlib orbax PIL sklearn tqdm',
  'test-slow': """array_record faiss importlib_resources pandas tensorboard
    tensorflow_datasets""",
}


def pytest_addoption(parser):
  group = parser.getgroup('jnl')
  group.addoption('--cpu-limit', type=float, default=8)
  group.addoption('--cpu-report', metavar='FILE')


def pytest_configure(config):
  config.pluginmanager.register(cost)  # a conftest would not see the doctests


def pytest_terminal_summary(terminalreporter):
  for extra, names in EXTRAS.items():
    missing = [m for m in names.split() if importlib.util.find_spec(m) is None]
    if missing:
      terminalreporter.write_line(
        f'not installed: {", ".join(missing)}; '
        f"pip install -e '.[{extra}]' has them",
        red=extra == 'test',
      )
