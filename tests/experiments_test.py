"""Every experiment runs in a process of its own and writes what it promises."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / 'experiments').glob('*.py'))
FIELDS = 'experiment method dataset setting seed metric last best_val seconds'


def run(script, *argv):
  """As a user would: without the forced devices of the tests."""
  return subprocess.run(
    [sys.executable, ROOT / 'experiments' / script, *argv],
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_smoke(script, tmp_path):
  done = run(script.name, '--smoke', '--out', tmp_path / 'out')
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert rows
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['experiment'] == script.stem
    assert 0 <= row['last'] <= 1
    assert 0 <= row['best_val'] <= 1
  assert list((tmp_path / 'out').glob('*.png'))
  assert all(row['method'] in done.stdout for row in rows)


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ('--methods ce,ecl', "unknown method 'ecl'; did you mean"),
    ('--net mpl', "unknown net 'mpl'; did you mean 'mlp'"),
    ('--noise symetric', "unknown noise 'symetric'; did you mean 'symmetric"),
    ('--dataset digit', "unknown dataset 'digit'; did you mean 'digits'"),
    ('--rate 1.4', 'rate must lie in [0, 1], got 1.4'),
    ('--seeds 0', 'seeds must be at least 1'),
  ],
)
def test_bad_options_are_named_and_nothing_is_written(argv, message, tmp_path):
  out = tmp_path / 'out'
  done = run('noisy_labels.py', *argv.split(), '--out', out)
  assert done.returncode != 0
  assert message in done.stderr
  assert not out.exists()
