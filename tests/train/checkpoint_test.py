"""Checkpoints: killed anywhere, resumed on other devices, never mixed up."""

import contextlib
import functools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import chex
from cost import slow
import fixture_killed
from fixture_methods import co_divide, cross_entropy
from fixture_train import CLASSES, N, arrays, network, raw_keys, with_key
import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest

from jnl.base import data_shards
from jnl.data import PerRun
from jnl.methods import elr
from jnl.steps import linear, supervised
from jnl.train import Checkpoint, fit, fit_many
from jnl.train import _checkpoint as checkpoints

KEY = jax.random.key(0)
CHILD = pathlib.Path(__file__).parents[1] / 'fixture_killed.py'


# One object for equal methods: what `fit` compiled for it is used again.
@functools.cache
def elr_method(batch_size=16, rate=1e-2, lam=3.0):
  """A method with all that a state may hold."""
  return elr(
    network(),
    optax.adam(rate),
    num_examples=N,
    num_classes=CLASSES,
    lam=lam,
    shards=data_shards(N, batch_size),
  )


@functools.cache
def plain(rate=1e-2):
  return supervised(cross_entropy, linear(2, CLASSES), optax.adam(rate))


def train(checkpoint, method=None, **options):
  one = jax.devices()[:1]
  options = {'epochs': 3, 'batch_size': 16, 'devices': one, **options}
  return fit(
    plain() if method is None else method,
    options.pop('data', arrays()),
    options.pop('key', KEY),
    checkpoint=checkpoint,
    held_out={'train': options.pop('train', arrays())},
    **options,
  )


def train_elr(checkpoint, devices=1, loop='python'):
  devices = jax.devices()[:devices]
  return train(checkpoint, elr_method(), devices=devices, loop=loop)


@functools.cache
def whole(devices=1, loop='python'):
  """What was never interrupted."""
  return train_elr(None, devices, loop)


@pytest.fixture
def interrupted(monkeypatch):
  """A context in which training is told to stop at its k-th look."""

  @contextlib.contextmanager
  def after(k):
    looks = iter(range(10**9))

    @contextlib.contextmanager
    def noticing():
      yield lambda: next(looks) >= k

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, 'noticing_sigterm', noticing)
      with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == 143

  return after


@pytest.mark.parametrize(
  ('look', 'loop'), [slow(0, 'python'), slow(2, 'compiled'), (5, 'python')]
)
def test_an_interrupted_run_goes_on_to_the_bit(
  look, loop, interrupted, tmp_path, capfd
):
  # Cores race in reductions: a bit is only a bit on one of them.
  save = Checkpoint(tmp_path / 'run', every=4)
  with interrupted(look):
    train_elr(save, loop=loop)
  assert re.search(r'SIGTERM: saved epoch \d, step \d', capfd.readouterr().err)
  resumed = train_elr(save._replace(resume=True), loop=loop)
  chex.assert_trees_all_close(whole(loop=loop), resumed, atol=1e-7)
  assert resumed.state.step == 3 * (N // 16)


@pytest.mark.slow
@pytest.mark.parametrize(('first', 'then'), [(1, 8), (8, 1)])
def test_it_goes_on_with_another_number_of_devices(
  first, then, interrupted, tmp_path
):
  save = Checkpoint(tmp_path / 'run', every=4)
  with interrupted(1):
    train_elr(save, first)
  resumed = train_elr(save._replace(resume=True), then)
  chex.assert_trees_all_close(whole(first), resumed, atol=1e-6, rtol=1e-6)
  rows = resumed.state.extra.rows
  assert len(rows.sharding.device_set) == then


@pytest.mark.slow
@pytest.mark.parametrize('vectorize', [True, False])
def test_many_runs_go_on(vectorize, interrupted, tmp_path):
  method = elr_method()
  if vectorize:
    method = co_divide(network(), optax.sgd(0.1), N, data_shards(N, 16))
  options = {'epochs': 2, 'batch_size': 16, 'vectorize': vectorize}
  keys = jax.random.split(KEY, 2)
  save = Checkpoint(tmp_path / 'runs', every=2)
  with interrupted(4):
    fit_many(method, arrays(), keys, checkpoint=save, **options)
  save = save._replace(resume=True)
  resumed = fit_many(method, arrays(), keys, checkpoint=save, **options)
  whole = fit_many(method, arrays(), keys, **options)
  chex.assert_trees_all_close(whole, resumed, atol=1e-6)


@functools.cache
def keyed():
  return with_key(supervised(cross_entropy, network(), optax.adam(1e-2)))


def five_runs(**options):
  draws = np.stack([np.roll(arrays()['labels'], r) for r in range(5)])
  data = {'x': arrays()['x'], 'labels': PerRun(draws)}
  return fit_many(
    keyed(), data, jax.random.split(KEY, 5), epochs=2, batch_size=16, **options
  )


@functools.cache
def whole_five():
  return raw_keys(five_runs())


@pytest.mark.slow
@pytest.mark.parametrize('then', [1, 2])
def test_five_runs_go_on_with_another_number_of_devices(
  then, interrupted, tmp_path
):
  # Two devices train three each, and drop the sixth.
  save = Checkpoint(tmp_path / 'runs', every=2)
  with interrupted(4):
    five_runs(checkpoint=save, devices=jax.devices()[:then])
  resumed = five_runs(checkpoint=save._replace(resume=True))
  kernel = jax.tree.leaves(resumed.state.params)[0]
  assert kernel.shape[0] == len(kernel.sharding.device_set) == 5
  chex.assert_trees_all_close(whole_five(), raw_keys(resumed), atol=1e-6)


def diverging(after):
  """Its parameters are NaN from that step on."""
  rate = lambda step: jnp.where(step < after, 0.1, jnp.nan)
  return supervised(cross_entropy, linear(2, CLASSES), optax.sgd(rate))


def test_a_run_that_diverged_leaves_the_last_good_checkpoint(tmp_path, capfd):
  save = Checkpoint(tmp_path / 'run', every=2, keep=2)
  fitted = train(save, diverging(5), epochs=4)
  assert np.isnan(fitted.history['loss'][-1]), 'it goes on'
  assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['2', '4']
  said = capfd.readouterr().err
  assert said.count('not finite') == 1
  assert re.search(
    r'after epoch 2, step 0 .*this is not saved; .*run is 4', said
  )
  resumed = train(save._replace(resume=True), diverging(5), epochs=4)
  chex.assert_trees_all_equal(fitted, resumed)


def test_runs_that_did_not_diverge_are_saved(tmp_path, capfd):
  x = np.stack([arrays()['x'], 1e30 * arrays()['x']])
  growing = lambda z, y: jnp.sum((z + 1) ** 2, -1)  # from zeros
  fit_many(
    supervised(growing, linear(2, CLASSES), optax.sgd(0.1)),
    {**arrays(), 'x': PerRun(x)},
    jax.random.split(KEY),
    epochs=2,
    batch_size=16,
    checkpoint=Checkpoint(tmp_path / 'runs'),
  )
  assert (tmp_path / 'runs' / '6').exists()
  said = capfd.readouterr().err
  assert said.count('not finite') == 1
  assert 'not finite in runs [1]: the others are saved' in said


def test_checksums_are_of_what_the_devices_hold(monkeypatch):
  x = np.arange(10**6, dtype=np.float32).reshape(-1, 4)
  found = checkpoints.checksum(x)
  assert found == checkpoints.checksum(jnp.asarray(x))
  assert found == checkpoints.checksum(x.astype(np.float64))
  other = x.copy()
  other[-1, -1] = 0
  assert found != checkpoints.checksum(other)
  assert found != checkpoints.checksum(x[::-1])
  # Of larger arrays, some blocks: the first is one of them.
  monkeypatch.setattr(checkpoints, 'CHECKSUM_BYTES', 4096)
  found = checkpoints.checksum(x)
  other = x.copy()
  other[0, 0] = 1
  assert found != checkpoints.checksum(other)
  runs = PerRun(np.stack([x, other]))
  assert checkpoints.checksum(runs).split() == [
    found,
    checkpoints.checksum(other),
  ]


def test_the_log_has_every_epoch_once(interrupted, tmp_path):
  save = Checkpoint(tmp_path / 'run', every=3)
  log = tmp_path / 'log.jsonl'
  with interrupted(6):
    train(save, log=log)
  torn = log.read_text() + '{"epoch": 3, "lo'
  log.write_text(torn)
  train(save._replace(resume=True), log=log)
  rows = [json.loads(line) for line in log.read_text().splitlines()]
  assert [row['epoch'] for row in rows] == [1, 2, 3]


def test_the_last_ones_are_kept(tmp_path):
  train(Checkpoint(tmp_path / 'run', every=1, keep=2), epochs=1)
  assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['2', '3']


def test_a_finished_run_is_not_trained_again(tmp_path):
  save = Checkpoint(tmp_path / 'run')
  fitted = train(save, epochs=1)
  again = train(save._replace(resume=True), epochs=1)
  chex.assert_trees_all_equal(fitted, again)
  longer = train(save._replace(resume=True), epochs=2)
  assert longer.history['loss'].shape == (2,)
  with pytest.raises(ValueError, match=r'epochs is 1.*trained for 2'):
    train(save._replace(resume=True), epochs=1)


# --- what does not fit -------------------------------------------------------


def of_first():
  """A network that looks at the first column alone."""
  model = linear(1, CLASSES)

  def apply(params, stats, x, *rest):
    return model.apply(params, stats, x[:, :1], *rest)

  return model._replace(apply=apply)


OTHER = {
  'label': ({'label': 'gce'}, {}, 'method: fit saved, gce here'),
  'key': ({'key': jax.random.key(1)}, {}, 'key'),
  'batch': (
    {'batch_size': 20, 'method': elr_method(20)},
    {},
    'data.batch_size: 16 saved, 20 here; data.shards: 8 saved, 2 here',
  ),
  'config': ({}, {'config': {'lam': 3}}, 'config.lam: 1 saved, 3 here'),
  'labels': (
    {'data': {**arrays(), 'labels': arrays()['labels'][::-1]}},
    {},
    r'differ: checksums\.data\.labels: \w{8} saved, \w{8} here$',
  ),
  'inputs': (
    {'data': {**arrays(), 'x': jnp.asarray(2 * arrays()['x'])}},
    {},
    r'checksums\.data\.x: ',
  ),
  'held out': (
    {'train': {**arrays(), 'labels': arrays()['labels'][::-1]}},
    {},
    r'checksums\.held_out\.train\.labels: ',
  ),
  'learning rate': (
    {'method': elr_method(rate=2e-2)},
    {},
    r'another step: a hyperparameter.*Checkpoint\(same_step=False\)',
  ),
  'coefficient': ({'method': elr_method(lam=2.0)}, {}, 'another step'),
  'augment': (
    {'augment': lambda keys, batch: {**batch, 'x': 0.9 * batch['x']}},
    {},
    'another step',
  ),
  'shape': (
    {'method': supervised(cross_entropy, of_first(), optax.adam(1e-2))},
    {},
    r"weights'\]: \[\[2, 3\].* saved, \[\[1, 3\].* here",
  ),
  'dtype': (
    {
      'method': supervised(
        cross_entropy,
        linear(2, CLASSES),
        optax.adam(1e-2, mu_dtype=jnp.bfloat16),
      )
    },
    {},
    'float32.* saved.*bfloat16.* here',
  ),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A function that gives the folder of a method that was trained once."""

  @functools.cache
  def folder(make):
    path = tmp_path_factory.mktemp('trained') / 'run'
    train(Checkpoint(path, config={'lam': 1}), make(), epochs=1)
    return path

  return folder


@pytest.mark.parametrize('case', OTHER)
def test_a_checkpoint_of_another_run_is_refused(case, trained, tmp_path):
  options, changes, message = OTHER[case]
  make = plain if case in ('shape', 'dtype') else elr_method
  shutil.copytree(trained(make), tmp_path / 'run')
  save = Checkpoint(tmp_path / 'run', config={'lam': 1})
  options = {'method': make(), **options}
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(ValueError, match=message):
    train(save._replace(resume=True, **changes), **options)
  assert sorted(tmp_path.rglob('*')) == before, 'nothing is lost'


def test_another_step_may_be_meant_and_old_checkpoints_say_less(tmp_path):
  save = Checkpoint(tmp_path / 'run', resume=True)
  train(save, epochs=1)
  train(save._replace(same_step=False), plain(2e-2), epochs=2)
  with pytest.raises(ValueError, match='another step'):
    train(save, epochs=3)
  # One from before there were fingerprints and checksums.
  for path in (tmp_path / 'run').rglob('*'):
    if path.is_file() and '"about"' in path.read_bytes().decode('latin1'):
      record = json.loads(path.read_text())
      del record['step'], record['about']['checksums']
      path.write_text(json.dumps(record))
  other = {**arrays(), 'labels': arrays()['labels'][::-1]}
  fitted = train(save, epochs=3, data=other)
  assert fitted.history['loss'].shape == (3,)


def test_a_new_run_does_not_touch_old_checkpoints(tmp_path):
  train(Checkpoint(tmp_path / 'run'), epochs=1)
  with pytest.raises(ValueError, match='already holds checkpoints'):
    train(Checkpoint(tmp_path / 'run'))


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  for resume in (True, False):
    with pytest.raises(ValueError, match=r'thesis\.tex'):
      train(Checkpoint(tmp_path, resume=resume))
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_an_empty_folder_is_begun_and_that_is_said(tmp_path, capfd):
  train(Checkpoint(tmp_path / 'new', resume=True), epochs=1)
  assert 'nothing to resume in' in capfd.readouterr().err


def spoil(folder):
  for path in folder.rglob('*'):
    if path.is_file() and 'commit_success' not in path.name:
      path.write_bytes(b'x')


def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path, capfd):
  save = Checkpoint(tmp_path / 'run', every=3)
  whole = train(save)
  spoil(tmp_path / 'run' / '9' / 'state')
  resumed = train(save._replace(resume=True))
  assert 'checkpoint 9' in (err := capfd.readouterr().err)
  assert 'cannot be read' in err
  chex.assert_trees_all_close(whole, resumed, atol=1e-6)
  for folder in (tmp_path / 'run').iterdir():
    spoil(folder)
  with pytest.raises(ValueError, match=r'no checkpoint in .* can be read'):
    train(save._replace(resume=True))


def test_a_path_under_a_file_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match='file'):
    train(Checkpoint(tmp_path / 'file' / 'run'))


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, capfd):
  save = Checkpoint(tmp_path / 'run', every=3)
  train(save, epochs=1)
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
  try:
    with pytest.raises(OSError, match=r'could not write checkpoint 6.* is 3'):
      train(save._replace(resume=True), epochs=2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert [p.name for p in (tmp_path / 'run').iterdir()] == ['3']
  assert len(capfd.readouterr().err) < 2000, 'an error, not pages of them'
  train(save._replace(resume=True), epochs=2)


# --- kill -9 -----------------------------------------------------------------


def start(folder, epochs):
  process = subprocess.Popen(
    [sys.executable, CHILD, folder, folder, str(epochs)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=processes.users(),
  )
  assert process.stdout.readline() == 'training\n', process.stderr.read()
  return process


def numbers(folder):
  return [int(p.name) for p in folder.glob('*') if p.name.isdigit()]


def wait_for(folder, first):
  """Until there is a checkpoint from that step on."""
  until = time.monotonic() + 120
  while max(numbers(folder), default=0) < first:
    assert time.monotonic() < until
    time.sleep(0.01)


def assert_no_litter(folder, *left):
  assert {p.name for p in folder.iterdir()} == {str(n) for n in left}


def assert_same(folder, *names):
  """Two runs left the same arrays and the same log."""
  one, two = (np.load(folder / f'{name}.npz') for name in names)
  assert one.files == two.files
  for name in one.files:
    np.testing.assert_array_equal(one[name], two[name], err_msg=name)
  logs = [(folder / f'{name}.jsonl').read_text() for name in names]
  assert logs[0] == logs[1]


def train_child(folder, name):
  """What the process does, in this one."""
  fixture_killed.main(folder / name, folder / name, 2)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_bit(tmp_path):
  """At one place, and in this process; anywhere in the second stage."""
  process = start(tmp_path / 'run', 2)
  wait_for(tmp_path / 'run', 4)
  process.kill()
  process.communicate()
  assert not (tmp_path / 'run.npz').exists()
  for name in ('run', 'whole'):
    train_child(tmp_path, name)
  assert_same(tmp_path, 'run', 'whole')
  assert_no_litter(tmp_path / 'run', 12, 16, 20)


def test_sigterm_saves_and_says_so(tmp_path, capfd):
  def stop(row):
    if row['epoch'] == 2:
      signal.raise_signal(signal.SIGTERM)

  save = Checkpoint(tmp_path / 'run')
  with pytest.raises(SystemExit) as stopped:
    train(save, log=stop)
  assert stopped.value.code == 143
  assert 'SIGTERM: saved epoch 2, step 0' in capfd.readouterr().err
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  resumed = train(save._replace(resume=True))
  chex.assert_trees_all_equal(train(None), resumed)


# A process for each run, without imports of its own: it is forked before jax
# starts. Reads the folder and the epochs of a run, and a line once it may end.
FORKS = """
import os, sys
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import fixture_killed, jnl.train._checkpoint
for line in sys.stdin:
  folder, epochs = line.rsplit(maxsplit=1)
  run = os.fork()
  if not run:
    os.dup2(os.open(folder + '.err', os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
    print(os.getpid(), flush=True)
    fixture_killed.main(folder, folder, int(epochs))
    sys.exit()
  sys.stdin.readline()
  print(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def forking():
  """The process that forks, of one core."""
  env = processes.users()
  paths = [str(CHILD.parent), env.get('PYTHONPATH', '')]
  with subprocess.Popen(
    [sys.executable, '-c', FORKS],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**env, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
  ) as process:
    yield process


def fork(forks, folder, epochs, end=lambda pid: None):
  """A run that `end` may end: its exit status and what it said."""
  print(folder, epochs, file=forks.stdin, flush=True)
  pid = int(forks.stdout.readline())
  assert forks.stdout.readline() == 'training\n'
  end(pid)
  print(file=forks.stdin, flush=True)
  status = int(forks.stdout.readline())
  return status, pathlib.Path(f'{folder}.err').read_text()


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_bit(tmp_path):
  rng, reached, killed = np.random.default_rng(), [], tmp_path / 'killed'

  def kill(pid):
    time.sleep(rng.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)

  def terminate(pid):
    wait_for(killed, 44)
    os.kill(pid, signal.SIGTERM)

  with forking() as forks:
    assert fork(forks, tmp_path / 'warm', 4)[0] == 0
    begun = time.perf_counter()
    assert fork(forks, tmp_path / 'whole', 4)[0] == 0
    seconds = time.perf_counter() - begun
    for _ in range(8):
      status, errors = fork(forks, killed, 4, kill)
      assert status in (0, -signal.SIGKILL), errors
      assert 'cannot be read' not in errors
      reached.append(max(numbers(killed), default=0))
    assert reached == sorted(reached), 'what was saved is not lost'
    status, errors = fork(forks, killed, 8, terminate)
    assert status == 143, errors
    assert 'SIGTERM: saved epoch' in errors
    for name in ('whole', 'killed'):
      status, errors = fork(forks, tmp_path / name, 8)
      assert status == 0, errors
  assert_same(tmp_path, 'whole', 'killed')
  assert_no_litter(killed, 72, 76, 80)
