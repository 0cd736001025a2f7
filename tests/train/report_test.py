"""What is written is whole, or not there; options are what the fields say."""

import dataclasses
import json

from extras import needs
import jax.numpy as jnp
import numpy as np
import pytest

from jnl.train import option, parse, report


def test_jsonl_round_trip(tmp_path):
  path = tmp_path / 'new' / 'rows.jsonl'
  rows = [{'a': jnp.float32(0.5), 'b': np.arange(2)}, {'a': 1, 'c': 'text'}]
  report.write_jsonl(path, rows)
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert found == [{'a': 0.5, 'b': [0, 1]}, {'a': 1, 'c': 'text'}]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path):
  path = tmp_path / 'rows.jsonl'
  report.write_jsonl(path, [{'a': 1}])
  with pytest.raises(TypeError):
    report.write_jsonl(path, [{'a': 2}, {'a': object()}])
  assert json.loads(path.read_text()) == {'a': 1}
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['rows.jsonl']


def test_mean_and_deviation():
  assert report.mean_sd([0.9]) == '90.0'
  assert report.mean_sd([0.8, 0.9]) == '85.0 +- 7.1'


def test_plot(tmp_path):
  path = tmp_path / 'plot.png'
  curves = {'a': np.random.default_rng(0).random((3, 5)), 'b': np.ones((1, 5))}
  report.plot_curves(path, curves, title='title', ylabel='y')
  assert path.read_bytes().startswith(b'\x89PNG')


@dataclasses.dataclass(frozen=True)
class Config:
  rate: float = option(0.4, 'rate')
  batch_size: int = option(100, 'batch')
  methods: tuple[str, ...] = option(('ce', 'elr'), 'methods')
  out: str = option('results', 'out')
  smoke: bool = option(False, 'smoke')


def test_options_are_the_fields(capsys):
  assert parse(Config, '', []) == Config()
  argv = ['--rate=.2', '--batch-size=10', '--methods=ce,', '--smoke', '--out=x']
  assert parse(Config, '', argv) == Config(0.2, 10, ('ce',), 'x', True)
  with pytest.raises(SystemExit):
    parse(Config, '', ['--rate', 'much'])
  assert '--rate' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    parse(Config, 'What it does.', ['--help'])
  assert 'What it does.' in (shown := capsys.readouterr().out)
  assert 'batch (default: 100)' in shown
  assert 'default: ce,elr' in shown


@needs('tensorboard')
def test_tensorboard_reads_what_fit_logs(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
  )

  with report.tensorboard(tmp_path) as write:
    write({'epoch': 1, 'loss': np.float32(0.5), 'test': [0.25, 0.75]})
    write({'epoch': 2, 'loss': np.float32(0.25), 'test': [0.5, 1.0]})
  events = EventAccumulator(str(tmp_path))
  events.Reload()
  read = lambda tag: [(e.step, e.value) for e in events.Scalars(tag)]
  assert read('loss') == [(1, 0.5), (2, 0.25)]
  assert read('test/1') == [(1, 0.75), (2, 1.0)]
