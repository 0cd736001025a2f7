"""Tables and rows of trained methods; a plot labeled by what it shows."""

import json

import numpy as np
import pytest

from jnl.train import (
  Fit,
  Trained,
  compare,
  curves,
  report,
  train_each,
  write_results,
)

ABOUT = {'experiment': 'e', 'dataset': 'd', 'setting': {}, 'metric': 'AUC'}


def trained(scale=1.0, **columns):
  """Two runs of three epochs."""
  history = {
    'test_auc': scale * np.array([[0.2, 0.9, 0.4], [0.3, 0.5, 0.8]]),
    'validation_loss': np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0]]),
  }
  return Trained(Fit(None, history), 1.25, columns)


def of_auc(methods, **options):
  return compare(
    methods,
    about=ABOUT,
    score='test_auc',
    chosen_by='validation_loss',
    better='lower',
    heads=('AUC, last', 'AUC, best'),
    **options,
  )


def test_a_table_and_rows_of_the_runs(capsys):
  methods = {
    'a': trained(rest=np.array([True, False])),
    'b': trained(0.5).also({'f1': np.array([0.5, 0.25])}),
  }
  show = {'rest': ('at rest', lambda v: f'{v.mean():.1f}')}
  wrong = np.array([0.3, 0.4])
  rows = of_auc(methods, of_runs={'wrong': wrong}, show=show)
  assert capsys.readouterr().out.splitlines() == [
    '| method | AUC, last    | AUC, best    | at rest | f1    | seconds |',
    '|--------|--------------|--------------|---------|-------|---------|',
    '| a      | 60.0 +- 28.3 | 60.0 +- 42.4 | 0.5     |       | 1.2     |',
    '| b      | 30.0 +- 14.1 | 30.0 +- 21.2 |         | 0.375 | 1.2     |',
  ]
  assert rows[1] == {
    **ABOUT, 'method': 'a', 'seed': 1, 'last': 0.8, 'best_val': 0.3,
    'seconds': 1.25, 'wrong': 0.4, 'rest': False,
  }  # fmt: skip
  assert [row['method'] for row in rows] == ['a', 'a', 'b', 'b']
  assert rows[2]['f1'] == 0.5
  assert 'rest' not in rows[2]


def test_the_first_epochs_alone():
  rows = of_auc({'a': trained().until(1)})
  assert [(row['last'], row['best_val']) for row in rows] == [
    (0.2, 0.2),
    (0.3, 0.3),
  ]


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match=r"of a has no 'test_accuracy', only"):
    compare({'a': trained()}, about=ABOUT)
  with pytest.raises(ValueError, match='at least one method'):
    of_auc({})


def test_methods_are_trained_in_turn_and_timed():
  seen = []
  found = train_each(['b', 'a'], lambda name: seen.append(name) or name)
  assert seen == ['b', 'a']
  assert [(one.fit, one.seconds >= 0) for one in found.values()] == [
    ('b', True),
    ('a', True),
  ]


def test_a_plot_is_labeled_by_what_it_shows(tmp_path, monkeypatch, capsys):
  labels = []
  monkeypatch.setattr(
    report,
    'plot_curves',
    lambda path, curves, *, ylabel, **_: labels.append((path, ylabel, *curves)),
  )
  shown = curves({'a': trained()}, 'test_auc')
  write_results(
    tmp_path, [{'a': 1}], shown, title='', ylabel='test AUC', plot='auc.png'
  )
  assert labels == [(f'{tmp_path}/auc.png', 'test AUC', 'a')]
  assert json.loads((tmp_path / 'results.jsonl').read_text()) == {'a': 1}
  assert 'wrote results.jsonl and auc.png to' in capsys.readouterr().out
