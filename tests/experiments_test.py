"""Every experiment runs, and writes what it promises.

One script is run as users run it; the others, and that one with all its
methods, in this process.
"""

import dataclasses
import functools
import json
import pathlib
import re
import runpy
import subprocess
import sys

from extras import marks
import jax
import numpy as np
import processes
import pytest

from jnl.methods import _published
from jnl.train import _fit, _plan, parse, run

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = {path.stem for path in (ROOT / 'experiments').glob('*.py')}
EXPERIMENTS = sorted(SCRIPTS - {'throughput'})  # that has a test of its own
CHANGED = """--dtype bfloat16 --standardize --augment crop_flip
  --noise symmetric_inclusive --rate .5"""
FIELDS = 'experiment method dataset setting seed metric last best_val seconds'


@functools.cache
def script_of(name):
  return runpy.run_path(str(ROOT / 'experiments' / f'{name}.py'))


def here(name, *argv):
  """Runs a script in this process, which is quicker."""
  script = script_of(name)
  script['main'](parse(script['Config'], '', [str(a) for a in argv]))


noisy_labels = functools.partial(here, 'noisy_labels')


def write_mine(folder, x, labels):
  np.savez(folder / 'mine.npz', x=x, y=labels)
  return ['--dataset', 'mine', '--data-dir', str(folder), '--smoke']


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
  """Options of a small data set: ten classes of images."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(600) % 10
  x = rng.integers(0, 60, (600, 8, 8, 1)) + 20 * labels[:, None, None, None]
  return write_mine(tmp_path_factory.mktemp('data'), x.astype(np.uint8), labels)


def rows_in(folder):
  lines = (folder / 'results.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def check_results(name, folder, printed, seeds=2):
  """What every experiment promises."""
  rows = rows_in(folder)
  assert rows
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['experiment'] == name
    assert 0 <= row['last'] <= 1
    assert 0 <= row['best_val'] <= 1
    assert row['method'] in printed
  assert {row['seed'] for row in rows} == set(range(seeds))
  assert (folder / 'curves.npz').exists()
  assert list(folder.glob('*.png'))
  return {row['method'] for row in rows}


def test_a_script_runs_as_users_run_it(mine, tmp_path):
  """In a process of its own, without the forced devices of the tests."""
  for name in ('flax', 'matplotlib'):
    pytest.importorskip(name, reason="pip install -e '.[test]'")
  script = ROOT / 'experiments' / 'noisy_labels.py'
  argv = [*mine, '--methods', 'ce', '--out', tmp_path / 'out']
  done = subprocess.run(
    [sys.executable, script, *argv],
    capture_output=True,
    text=True,
    env=processes.users(),
  )
  assert done.returncode == 0, done.stderr
  check_results('noisy_labels', tmp_path / 'out', done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_smoke(name, tmp_path, capsys):
  changed = {'label_proportions': '--bags 0 --bag-sizes 7 --logits'}
  argv = changed.get(name, '').split()
  here(name, *argv, '--smoke', '--out', tmp_path)
  seeds = 1 if name == 'label_proportions' else 2
  printed = capsys.readouterr().out
  assert len(check_results(name, tmp_path, printed, seeds)) > 1


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ('--methods ce,ecl', "unknown method 'ecl'; did you mean"),
    ('--net mpl', "unknown net 'mpl'; did you mean 'mlp'"),
    ('--noise symetric', "unknown noise 'symetric'; did you mean 'symmetric"),
    pytest.param(
      *('--dataset digit', "unknown dataset 'digit'; did you mean 'digits'"),
      marks=marks('tensorflow_datasets'),
    ),
    ('--seeds 0', 'seeds must be at least 1'),
    ('--augment crop', "unknown augment 'crop'; did you mean 'crop_flip'"),
    ('--dtype float8', "unknown dtype 'float8'; did you mean 'float32'"),
    ('--noise cifar10n_worse', 'cifar10n_worse is read from files: give data'),
    ('--dataset mine --data-dir .', "no data set 'mine' in data_dir ."),
    ('--checkpoint-every -1', 'checkpoint-every must not be negative'),
    ('--published', 'no published settings of ce are known for digits, symm'),
    ('--published --rate .2,.4', 'several noises or rates cannot be had with'),
    ('--rate 1.4', 'rate must lie in [0, 1], got 1.4'),
    ('--methods ,', 'methods must name at least one'),
  ],
)
def test_bad_options_are_named_and_nothing_is_written(argv, message, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
    noisy_labels(*argv.split(), '--out', out)
  assert not out.exists()


@pytest.mark.slow
def test_a_sweep_is_the_runs_one_by_one(mine, tmp_path, capsys):
  argv = [*mine, '--methods', 'gce', '--net', 'mlp', '--out']
  noisy_labels(*argv, tmp_path / 'both', '--rate', '.2,.4')
  noisy_labels(*argv, tmp_path / 'one', '--rate', '.4')
  assert '| symmetric_0.2' in capsys.readouterr().out
  both = rows_in(tmp_path / 'both')
  assert [row['setting']['rate'] for row in both] == [0.2, 0.2, 0.4, 0.4]
  found = [[row['last'], row['wrong_labels']] for row in both[2:]]
  one = rows_in(tmp_path / 'one')
  one = [[row['last'], row['wrong_labels']] for row in one]
  np.testing.assert_allclose(found, one, atol=0.02)
  assert (tmp_path / 'both' / 'accuracy_symmetric.png').exists()


def test_a_wrong_option_is_answered_without_a_traceback(tmp_path, capsys):
  script = script_of('noisy_labels')
  argv = ['--rate', '2', '--out', str(tmp_path / 'out')]
  with pytest.raises(SystemExit):
    run(script['main'], script['Config'], 'What it does.', argv)
  assert 'error: rate must lie in [0, 1], got 2' in capsys.readouterr().err


@pytest.mark.slow
def test_it_resumes(mine, tmp_path):
  argv = [*mine, '--methods', 'ce', '--out', tmp_path / 'out']
  argv += ['--checkpoint-every', '5', '--batch-size', '75']

  def rows():
    return [{**row, 'seconds': 0} for row in rows_in(tmp_path / 'out')]

  noisy_labels(*argv)
  first = rows()
  noisy_labels(*argv)  # nothing is overwritten
  assert rows() == first
  assert (tmp_path / 'out-2' / 'results.jsonl').exists()
  (tmp_path / 'out' / 'results.jsonl').unlink()
  noisy_labels(*argv, '--resume')
  assert rows() == first
  with pytest.raises(ValueError, match=r'config.lam: 3.0 saved, 1.0 here'):
    noisy_labels(*argv, '--resume', '--lam', '1')


@pytest.mark.slow
def test_data_of_ones_own_and_a_draw_that_is_read_again(tmp_path):
  rng = np.random.default_rng(0)
  labels = rng.permutation(300) % 3
  x = rng.integers(0, 99, (300, 12, 12, 3)) + 50 * labels[:, None, None, None]
  x = x.astype(np.uint8)
  options = [*write_mine(tmp_path, x, labels), '--batch-size', '75']
  first, again = tmp_path / 'first', tmp_path / 'again'
  noisy_labels(*options, '--methods', 'ce', *CHANGED.split(), '--out', first)
  saved = np.load(first / 'draw_1.npz')
  assert (saved['generator'], saved['rate']) == ('symmetric_inclusive', 0.5)
  # Every row of the file but those held out for the test.
  assert len(saved['labels']) == 225
  np.testing.assert_array_equal(saved['clean'], labels[saved['id']])
  options += ['--methods', 'ce', '--draw', first / 'draw_1.npz']
  noisy_labels(*options, '--out', again)
  rows = rows_in(again)
  share = (saved['labels'] != saved['clean']).mean()
  assert {round(row['wrong_labels'], 6) for row in rows} == {round(share, 6)}
  # It is of no use for other data of that name.
  write_mine(tmp_path, x[::-1], labels[::-1])
  with pytest.raises(ValueError, match=r'draw_1\.npz'):
    noisy_labels(*options, '--out', again)


@pytest.mark.slow
def test_a_method_as_it_was_published(mine, tmp_path, monkeypatch):
  settings = _published.Settings(
    'a paper', 'gce', 'mlp', 9, 120, 0.0, arguments={'q': 0.5}
  )
  known = {('mine', 'symmetric', None): settings}
  monkeypatch.setitem(_published.LOSSES, 'gce', known)
  argv = '--published --methods gce --batch-size 9999'
  noisy_labels(*mine, *argv.split(), '--out', tmp_path)
  rows = rows_in(tmp_path)
  used = rows[0]['published']['gce']
  settings = dataclasses.replace(settings, views='none', epochs=2)
  assert used == {**dataclasses.asdict(settings), 'drops': []}  # in JSON a list
  assert all(row['last'] < 0.3 for row in rows)  # with a rate of zero


def test_texts_are_not_read_as_pixels(tmp_path):
  labels = np.arange(40) % 2
  texts = [
    f'{"good" if y else "bad"} {i}'.encode() for i, y in enumerate(labels)
  ]
  np.savez(
    tmp_path / 'mine.npz',
    text=np.frombuffer(b''.join(texts), np.uint8),
    offsets=np.cumsum([0, *map(len, texts)]).astype(np.int32),
    y=labels.astype(np.uint8),
  )
  out = tmp_path / 'out'
  for net in ('mlp', 'ngram'):
    argv = ['--dataset', 'mine', '--data-dir', tmp_path, '--net', net]
    with pytest.raises(ValueError, match=r'mine is of texts.*meta_rescaling'):
      noisy_labels(*argv, '--batch-size', 10, '--out', out)
  assert not out.exists()


@pytest.mark.parametrize(
  ('name', 'argv', 'message'),
  [
    ('weak_supervision', '--evidence count', "unknown evidence 'count'; did"),
    ('weak_supervision', '--methods emm', "unknown method 'emm'; did you mean"),
    ('weak_supervision', '--evidence similarity', 'bag-size must be 2'),
    ('weak_supervision', '--positive nine', 'positive must be numbers'),
    ('label_proportions', '--methods dlp', "unknown method 'dlp'; did you me"),
    ('label_proportions', '--bags sorted', 'bags must be random, order or a'),
    ('label_proportions', '--bags 4', 'bags: there are 4 features, got 4'),
    ('label_proportions', '--bag-sizes 8,x', 'bag_sizes must be numbers'),
    ('label_proportions', '--bag-sizes 0', 'bag_sizes must be at least 1'),
    ('label_proportions', '--positive 7', 'positive must leave both classes'),
    ('imprecise_labels', '--setting partal', "unknown setting 'partal'; did"),
    ('imprecise_labels', '--methods cc', "unknown method 'cc'"),
    ('imprecise_labels', '--views crops', "unknown views 'crops'; did you"),
    ('imprecise_labels', '--optimizer lion', "unknown optimizer 'lion'"),
    ('meta_rescaling', '--methods storms', "unknown method 'storms'; did you"),
    ('meta_rescaling', '--noise uniform', "unknown noise 'uniform'; "),
    ('meta_rescaling', '--optimizer adamw', "unknown optimizer 'adamw'; did"),
    ('meta_rescaling', '--rate 1.5', 'rate must lie in [0, 1], got 1.5'),
    ('meta_rescaling', '--epochs 5,0', 'epochs must be numbers from 1 on'),
    ('meta_rescaling', '--imbalance .1', 'imbalance must be at least 1'),
  ],
)
def test_bad_options_of_others(name, argv, message, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match=re.escape(message)):
    here(name, *argv.split(), '--smoke', '--out', out)
  assert not out.exists()


@pytest.mark.parametrize(
  ('name', 'argv', 'message'),
  [
    ('noisy_labels', '--draw absent.npz', 'absent.npz'),
    ('weak_supervision', '--positive 17', 'positive must leave both classes'),
    ('imprecise_labels', '--ratio 1.5 --setting partial', 'q must lie in'),
    ('meta_rescaling', '--meta-per-class 500', 'meta_per_class must be less'),
    ('meta_rescaling', '--batch-size 9999', 'batch_size must be at most '),
    ('meta_rescaling', '--net ngram', 'net ngram is not for images'),
  ],
)
def test_options_that_the_data_forbid(name, argv, message, mine, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
    here(name, *mine, *argv.split(), '--out', out)
  assert not out.exists()


@pytest.mark.slow
def test_another_script_runs(mine, tmp_path, capsys):
  """With one method; in the second stage all of them, and all methods."""
  name, argv = 'label_proportions', '--bags order --net strided_cnn'
  here(name, *mine, *argv.split(), '--methods', 'dsq', '--out', tmp_path)
  assert len(check_results(name, tmp_path, capsys.readouterr().out, 1)) == 1


@pytest.fixture
def traced(monkeypatch):
  """Trainings are checked and traced as ever, and then made up, not run."""

  def train(run, log):
    del log
    plan, rng = run.program.plan, np.random.default_rng(0)
    names = [*plan.metrics]
    for held_out, columns in plan.columns.items():
      names += [_plan.history_name(held_out, score) for score in columns]
    draw = lambda s: rng.normal(size=s.shape).astype(s.dtype)
    state = jax.eval_shape(jax.vmap(plan.method.init), run.key)
    size = len(run.key), run.epochs
    curves = {name: rng.uniform(size=size) for name in names}
    return _fit.Fit(jax.tree.map(draw, state), curves)

  monkeypatch.setattr(_fit, '_train_at_once', train)
  monkeypatch.setattr(_fit, '_train_one_by_one', train)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'argv', 'methods'),
  [
    ('noisy_labels', '', 5),
    ('noisy_labels', '--methods ce,elr --net strided_cnn ' + CHANGED, 2),
    ('weak_supervision', '', 4),
    ('weak_supervision', '--evidence multiple_instance --bag-size 7', 3),
    ('weak_supervision', '--evidence similarity --bag-size 2', 2),
    ('weak_supervision', '--evidence comparison --bag-size 2', 3),
    (
      'label_proportions',
      '--bag-sizes 8 --methods '
      'dllp,easy_llp,dsq,transport,em,bag_share,supervised',
      7,
    ),
    (
      'label_proportions',
      '--dataset digits --bags order --net strided_cnn --methods dsq,dllp',
      2,
    ),
    ('imprecise_labels', '', 3),
    ('imprecise_labels', '--setting partial', 6),
    ('imprecise_labels', '--setting semi --ema .9', 4),
    ('imprecise_labels', '--setting mixed', 6),
    ('imprecise_labels', '--setting partial_noisy --views crop', 6),
    ('meta_rescaling', '', 7),
    (
      'meta_rescaling',
      '--methods plain_clean,mwn,storm_meta,storm_outer --net strided_cnn '
      '--augment crop_flip --noise class_imbalanced --imbalance 2 '
      '--meta-per-class 2',
      4,
    ),
  ],
)
def test_every_method_and_kind_of_evidence(
  name, argv, methods, traced, tmp_path, capsys
):
  """All but the running, at full size; how methods learn: tests/methods."""
  here(name, *argv.split(), '--seeds', 2, '--out', tmp_path)
  found = check_results(name, tmp_path, capsys.readouterr().out)
  assert len(found) == methods
