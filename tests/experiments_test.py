"""Every experiment runs in a process of its own and writes what it promises."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from jnl.train.cli import parse

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
    ('--augment crop', "unknown augment 'crop'; did you mean 'crop_flip'"),
    ('--dtype float8', "unknown dtype 'float8'; did you mean 'float32'"),
    ('--noise cifar10n_worse', 'cifar10n_worse is read from files: give data'),
    ('--dataset mine --data-dir .', "no data set 'mine' in data_dir ."),
    ('--draw absent.npz', 'absent.npz'),
  ],
)
def test_bad_options_are_named_and_nothing_is_written(argv, message, tmp_path):
  out = tmp_path / 'out'
  script = runpy.run_path(str(ROOT / 'experiments' / 'noisy_labels.py'))
  argv = [*argv.split(), '--out', str(out)]
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
    script['main'](parse(script['Config'], '', argv))
  assert not out.exists()


def test_data_of_ones_own_and_a_draw_that_is_read_again(tmp_path):
  rng = np.random.default_rng(0)
  labels = rng.permutation(300) % 3
  x = rng.integers(0, 99, (300, 12, 12, 3)) + 50 * labels[:, None, None, None]
  x = x.astype(np.uint8)
  np.savez(tmp_path / 'mine.npz', x=x, y=labels)
  options = [
    *[
      '--dataset',
      'mine',
      '--smoke',
      '--methods',
      'ce,elr',
      '--batch-size',
      '16',
    ],
    *['--net', 'strided_cnn', '--dtype', 'bfloat16', '--standardize'],
    *[
      '--augment',
      'crop_flip',
      '--noise',
      'symmetric_inclusive',
      '--rate',
      '.5',
    ],
    *('--data-dir', tmp_path),
  ]
  first, again = tmp_path / 'first', tmp_path / 'again'
  done = run('noisy_labels.py', *options, '--out', first)
  assert done.returncode == 0, done.stderr
  saved = np.load(first / 'draw_1.npz')
  assert (saved['generator'], saved['rate']) == ('symmetric_inclusive', 0.5)
  # Every row of the file but those held out for the test.
  assert len(saved['labels']) == 225
  np.testing.assert_array_equal(saved['clean'], labels[saved['id']])
  done = run(
    'noisy_labels.py', *options, '--draw', first / 'draw_1.npz', '--out', again
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(x) for x in (again / 'results.jsonl').open()]
  share = (saved['labels'] != saved['clean']).mean()
  assert {round(row['wrong_labels'], 6) for row in rows} == {round(share, 6)}
  # It is of no use for other data of that name.
  np.savez(tmp_path / 'mine.npz', x=x[::-1], y=labels[::-1])
  done = run('noisy_labels.py', *options, '--draw', first / 'draw_1.npz')
  assert done.returncode != 0
  assert 'draw_1.npz' in done.stderr
