"""The accelerator script: all of it, tiny; its limits; what it leaves out."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import processes
import pytest

import jnl
from jnl.train import parse

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / 'experiments'))  # as for a script that is run
script = importlib.import_module('benchmarks.accelerator')


def run(*argv):
  script.main(parse(script.Config, '', [str(a) for a in argv]))


@pytest.mark.slow
def test_smoke(tmp_path):
  """As a user would, from elsewhere."""
  done = subprocess.run(
    ['bash', ROOT / 'experiments/accelerator.sh', '--smoke', '--out', 'out'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**processes.users(), 'PYTHON': sys.executable},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads((tmp_path / 'out/results.json').read_text())
  assert list(found['sections']) == list(script.SECTIONS)
  for section in found['sections'].values():
    assert section['state'] == 'done'
    assert len(section['rows']) >= 1
    for row in section['rows']:
      assert {'name', 'shape', 'compile_s'} <= set(row)
      assert row['ms'] > 0
      assert row['ratio'] > 0
  assert found['platform'] == 'cpu'
  names = [row['name'] for row in found['sections']['em']['rows']]
  assert 'ill_noisy mlp' in names
  *many, one = found['sections']['counts']['rows']
  assert [row['shape'] for row in many] == 3 * [[8, 8, 2]]
  assert one['shape'] == [1, 32, 2]
  assert one['temp_mb'] > 0
  table = (tmp_path / 'out/table.md').read_text()
  assert table in done.stdout
  for name in ('elr', *names, 'l2rw 16 mlp', 'eight', '64 x 8', 'count'):
    assert f'{name} ' in table
  assert re.search(r'made-up images \|.*elr .*images/s; 2 epochs', table)
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'results.json',
    'table.md',
  ]


def test_a_section_has_a_process_and_its_rows_are_kept(tmp_path, monkeypatch):
  """The process is played by this one."""
  asked = []

  def measure(config):
    asked.append((config.dataset, config.data_dir))
    yield {'name': 'one', 'ms': 2.0, 'floor_ms': 1.0, 'ratio': 2.0}

  def started(command, env, timeout):
    assert command[:3] == [sys.executable, '-m', 'benchmarks.accelerator']
    assert 0 < timeout <= 15
    with monkeypatch.context() as patch:
      patch.setenv(script.clock.ROWS, env[script.clock.ROWS])
      run(*command[3:])
    return subprocess.CompletedProcess(command, 0)

  section = script.SECTIONS['counts']._replace(measure=measure)
  monkeypatch.setattr(script, 'SECTIONS', {'counts': section})
  monkeypatch.setattr(script.subprocess, 'run', started)
  run('--dataset', 'mine', '--data-dir', 'here', '--out', tmp_path)
  found = json.loads((tmp_path / 'results.json').read_text())
  assert asked == [('mine', 'here')]
  assert found['platform'] == 'cpu'
  own = found['sections']['counts']
  assert own['state'] == 'done'
  assert own['rows'] == [{'name': 'one', 'ms': 2, 'floor_ms': 1, 'ratio': 2}]


def test_it_takes_eight_minutes_at_most():
  assert sum(section.limit for section in script.SECTIONS.values()) < 480 - 5


def test_what_is_out_of_time_or_missing_is_said(tmp_path, monkeypatch, capsys):
  late = script.SECTIONS['counts']._replace(limit=0.01)
  left_out = late._replace(needs=('flax', 'no_such_package'))
  monkeypatch.setattr(script, 'SECTIONS', {'late': late, 'absent': left_out})
  with pytest.raises(SystemExit, match='late was out of time after 0 s'):
    run('--out', tmp_path / 'out')
  found = json.loads((tmp_path / 'out/results.json').read_text())['sections']
  assert found['late']['rows'] == found['absent']['rows'] == []
  missing = 'left out: no_such_package is not installed'
  assert found['absent']['state'] == missing
  assert missing in capsys.readouterr().out
  assert missing in (tmp_path / 'out/table.md').read_text()


def test_what_is_finished_stays_when_the_rest_is_interrupted(
  tmp_path, monkeypatch
):
  def interrupted(command, env, timeout):
    rows = pathlib.Path(env[script.clock.ROWS])
    rows.parent.mkdir(parents=True, exist_ok=True)
    row = {'name': 'count', 'ms': 2.5, 'floor_ms': 1.25, 'ratio': 2.0}
    device = {'device': 'a card', 'platform': 'gpu'}
    rows.write_text(json.dumps(device) + '\n' + json.dumps(row) + '\n')
    raise KeyboardInterrupt

  monkeypatch.setattr(script.subprocess, 'run', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run('--sections', 'counts,belief', '--out', tmp_path)
  table = (tmp_path / 'table.md').read_text()
  assert table.startswith('a card, jax ')
  assert '| 1.25 | count 2.5 (2.00) |' in table
  assert 'counts was interrupted' in table
  assert not (tmp_path / 'counts.jsonl').exists()


def test_epochs_end_when_it_is_enough(monkeypatch):
  now = iter([0.0, 9.0, 11.0, 13.0, 15.0, 99.0])
  monkeypatch.setattr(script.time, 'perf_counter', lambda: next(now))

  def train(epochs, log):
    for epoch in range(epochs):
      log({'epoch': epoch + 1, 'test_accuracy': 0.1})

  row, log = script.epochs(train, seconds=5)
  assert row == {'ms': 2000.0, 'compile_s': 7.0}
  assert [r['epoch'] for r in log] == [1, 2, 3, 4]


def test_images_are_those_that_can_be_read(tmp_path, monkeypatch, capsys):
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 256, (90, 32, 32, 3)), np.arange(90) % 10
  np.savez(tmp_path / 'mine.npz', x=x.astype(np.uint8), y=y)
  config = script.Config(dataset='mine', data_dir=str(tmp_path), smoke=True)
  assert script.images(config).name == 'mine'

  def no_pillow(*_, **__):
    raise ImportError("No module named 'PIL'")

  assert capsys.readouterr().out == ''
  monkeypatch.setattr(jnl.data, 'load', no_pillow)
  made_up = script.images(config)
  assert made_up.name == 'made-up images'
  assert made_up.train.x.shape[1:] == (32, 32, 3)
  assert "No module named 'PIL': made-up images" in capsys.readouterr().out


def test_bad_options_are_named(tmp_path):
  with pytest.raises(ValueError, match="unknown section 'count'; did you mean"):
    run('--sections', 'count', '--out', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
