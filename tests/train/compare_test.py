"""Results while they come: rows, curves, a line, tables, plots from files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jnl.train import (
  Comparison,
  Fit,
  Trained,
  compare,
  compare_groups,
  plot,
  record,
  report,
  train_each,
)

ABOUT = {'experiment': 'e', 'dataset': 'd', 'setting': {}, 'metric': 'AUC'}


def trained(scale=1.0, **columns):
  """Two runs of three epochs."""
  history = {
    'test_auc': scale * np.array([[0.2, 0.9, 0.4], [0.3, 0.5, 0.8]]),
    'validation_loss': np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0]]),
  }
  return Trained(Fit(None, history), 1.25, columns)


def of_auc(out='', **options):
  return Comparison(
    out,
    ABOUT,
    score='test_auc',
    chosen_by='validation_loss',
    better='lower',
    heads=('AUC, last', 'AUC, best'),
    **options,
  )


def rows_of(out):
  return [json.loads(row) for row in (out / 'results.jsonl').open()]


def test_a_table_of_the_runs(capsys):
  methods = {
    'a': trained(rest=np.array([True, False])),
    'b': trained(0.5).also({'f1': np.array([0.5, 0.25])}),
  }
  show = {'rest': ('at rest', lambda v: f'{v.mean():.1f}')}
  compare(of_auc(show=show), methods)
  assert capsys.readouterr().out.splitlines() == [
    '',
    '| method | AUC, last    | AUC, best    | at rest | f1    | seconds |',
    '|--------|--------------|--------------|---------|-------|---------|',
    '| a      | 60.0 +- 28.3 | 60.0 +- 42.4 | 0.5     |       | 1.2     |',
    '| b      | 30.0 +- 14.1 | 30.0 +- 21.2 |         | 0.375 | 1.2     |',
  ]
  halves = [of_auc(group='x'), of_auc(group='y')]
  compare_groups(halves, [methods, {k: trained() for k in methods}])
  assert '| b      | 30.0 +- 14.1 (30.0) | 60.0' in capsys.readouterr().out


def test_each_method_is_recorded_when_it_ends(tmp_path, capsys):
  """So a run that is stopped leaves what was done."""
  comparison = of_auc(tmp_path, of_runs={'wrong': np.array([0.3, 0.4])})

  def done(name, one):
    return record(comparison, name, one.also({'f1': np.array([0.5, 0.25])}))

  def train(name):
    if name == 'c':
      assert [row['method'] for row in rows_of(tmp_path)] == [
        'a',
        'a',
        'b',
        'b',
      ]
      raise KeyboardInterrupt
    return trained(0.5 if name == 'b' else 1.0).fit

  with pytest.raises(KeyboardInterrupt):
    train_each(['a', 'b', 'c'], train, done)
  out = capsys.readouterr().out.splitlines()
  assert out[1].startswith('b: 30.0 +- 14.1 AUC, last, 30.0 +- 21.2 AUC, best')
  found = rows_of(tmp_path)
  del found[1]['seconds']
  assert found[1] == {
    **ABOUT, 'method': 'a', 'seed': 1, 'last': 0.8, 'best_val': 0.3,
    'wrong': 0.4, 'f1': 0.25,
  }  # fmt: skip
  # A run that goes on has each row once, and the new one.
  record(comparison, 'a', trained(0.1))
  assert [row['method'] for row in rows_of(tmp_path)] == ['b', 'b', 'a', 'a']
  assert rows_of(tmp_path)[3]['last'] == pytest.approx(0.08)

  # Plots are drawn from the files alone.
  plot(comparison, 'title', 'test AUC', 'auc.png')
  plot(of_auc(tmp_path, group='none'), 'title', 'test AUC', 'none.png')
  command = [sys.executable, '-m', 'jnl.train.report', tmp_path]
  said = subprocess.run(command, capture_output=True, text=True, check=True)
  assert said.stdout == f'{tmp_path}: drew auc.png\n'
  assert (tmp_path / 'auc.png').read_bytes().startswith(b'\x89PNG')
  curves = report.get_curves(tmp_path)
  assert set(curves) == {
    f'runs/{method}/{column}'
    for method in 'ab'
    for column in ('test_auc', 'validation_loss')
  }
  with pytest.raises(ValueError, match=r'has no plots\.json'):
    report.redraw(tmp_path / 'nothing')


def test_some_runs_and_some_epochs():
  one = trained(f1=np.array([0.5, 0.25])).runs(slice(1, 2))
  assert one.fit.history['test_auc'].tolist() == [[0.3, 0.5, 0.8]]
  assert one.columns['f1'].tolist() == [0.25]
  last, best = of_auc().values(trained().until(1))
  assert (last.tolist(), best.tolist()) == ([0.2, 0.3], [0.2, 0.3])


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match=r"no 'test_accuracy', only \['test_auc"):
    compare(Comparison('', ABOUT), {'a': trained()})
  with pytest.raises(ValueError, match='at least one method'):
    compare(of_auc(), {})


def test_a_folder_of_another_run_gets_a_number(tmp_path, capsys):
  out = tmp_path / 'results'
  assert report.own_folder(out) == str(out)
  (out / 'other').mkdir()
  assert report.own_folder(out) == str(out)  # it holds folders alone
  (out / 'results.jsonl').write_text('')
  assert report.own_folder(out, resume=True) == str(out)
  assert not capsys.readouterr().out
  assert report.own_folder(out) == f'{out}-2'
  assert 'results holds the results of another' in capsys.readouterr().out
  (tmp_path / 'results-2' / 'checkpoints').mkdir()
  assert report.own_folder(out) == f'{out}-3'
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r"out is .*file/x', where nothing can be"):
    report.own_folder(tmp_path / 'file' / 'x')
