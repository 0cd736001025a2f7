"""The script that compares estimates of T, and what they reach on digits."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from jnl.train import parse

PATH = pathlib.Path(__file__).parents[2] / 'experiments' / 'noise_rates.py'


def run(out, **options):
  """The rows that the script writes, by noise and method."""
  for name in ('flax', 'matplotlib'):
    pytest.importorskip(name, reason="pip install -e '.[test]'")
  script = runpy.run_path(str(PATH))
  argv = [f'--{key}={value}' for key, value in {**options, 'out': out}.items()]
  script['main'](parse(script['Config'], '', argv))
  lines = (out / 'results.jsonl').read_text().splitlines()
  rows = map(json.loads, lines)
  return {(row['noise'], row['method']): row for row in rows}


@pytest.mark.slow
def test_digits(tmp_path, monkeypatch):
  """One seed on one device; of HOC and of flags see hoc_test.py."""
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: one)
  methods = 'anchor', 'anchor_97', 'vol_min'
  options = {'methods': ','.join(methods), 'noise': 'pair_flip'}
  rows = run(tmp_path, **options, seeds=1)
  largest, below, learned = (rows['pair_flip', m]['error'] for m in methods)
  assert below < largest < 0.6
  assert learned <= 0.13
  assert (tmp_path / 'matrices.png').exists()
  with np.load(tmp_path / 'matrices.npz') as file:
    assert file['truth'].shape == file['vol_min'].shape == (1, 10, 10)
