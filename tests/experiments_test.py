"""Every experiment runs, and writes what it promises.

One script is run as users run it; the others, and that one with all its
methods, in this process.
"""

import csv
import dataclasses
import functools
import json
import os
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

from jnl.data import load
from jnl.methods import _published
from jnl.train import _fit, _plan, parse, run

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = {path.stem for path in (ROOT / 'experiments').glob('*.py')}
OTHERS = {  # see their tests
  'throughput', 'label_audit', 'noise_rates', 'cifar10n',
}  # fmt: skip
EXPERIMENTS = sorted(SCRIPTS - OTHERS)
OWN = (
  'elr,elr_plus,divide_mix,co_teaching,co_teaching_plus,decoupling,jocor,sop,'
  'sop_plus,dynamic_bootstrap,cores,peer,gjs,forward_t,dual_t,t_revision,'
  'vol_min,cpc'
)
CHANGED = """--dtype bfloat16 --standardize --augment crop_flip
  --noise symmetric_inclusive --rate .5"""
SPAM = pathlib.Path(
  os.environ.get('JNL_DATA', ROOT.parent / 'shared' / 'data'),
  'youtube_spam.npz',
)
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


@pytest.fixture(autouse=True)
def devices(request, monkeypatch):
  """One, as most users have: eight are slower here. One script runs on all."""
  if request.node.name != 'test_smoke[noisy_labels]':
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda: one)


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
  changed = {
    'label_proportions': '--bags 0 --bag-sizes 7 --logits',
    'crowd': '--methods crowdlab,truth',
    'labeling_functions': '--soft --methods dawid_skene_balance,truth',
  }
  argv = changed.get(name, '').split()
  here(name, *argv, '--smoke', '--out', tmp_path)
  seeds = 1 if name == 'label_proportions' else 2
  printed = capsys.readouterr().out
  assert len(check_results(name, tmp_path, printed, seeds)) > 1


@pytest.mark.slow
def test_several_labels_a_row_are_read_from_a_file(tmp_path, capsys):
  rng = np.random.default_rng(0)
  labels = rng.random((300, 4)) < 0.4
  x = labels @ rng.normal(size=(4, 8)) + rng.normal(size=(300, 8)) / 9
  np.savez(
    tmp_path / 'multilabel_mine.npz',
    x_train=x[:200],
    y_train=labels[:200],
    x_test=x[200:],
    y_test=labels[200:],
  )
  argv = ['--dataset', 'multilabel_mine', '--data-dir', tmp_path, '--smoke']
  names = 'assume_negative', 'pu_mlc', 'pu_mlc_plain', 'nnpu', 'supervised'
  out = tmp_path / 'out'
  here('positive_unlabeled', *argv, '--methods', ','.join(names), '--out', out)
  printed = capsys.readouterr().out
  assert check_results('positive_unlabeled', out, printed) == set(names)
  assert {r['metric'] for r in rows_in(out)} == {'mean_average_precision'}


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
    ('--draw a.npz --rate .2,.4', 'several noises or rates cannot be had with'),
    ('--noise cifar10n_worse --data-dir . --rate .2,.4', 'their own rate'),
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
    ('complementary_labels', '--labels 10', 'labels must be below 10, got 10'),
    ('complementary_labels', '--labels 0', 'labels must be at least 1, got 0'),
    ('complementary_labels', '--labels 2 --bias', 'labels: several a row are'),
    ('complementary_labels', '--noise .1', 'noise: with 0.1 of the labels'),
    ('complementary_labels', '--noise 1', 'noise must lie in [0, 1), got 1'),
    ('imprecise_labels', '--setting partal', "unknown setting 'partal'; did"),
    ('long_tail', '--ratio 400', 'ratio must leave the last class a row'),
    ('long_tail', '--noise 1.5', 'noise must lie in [0, 1), got 1.5'),
    ('noisy_stream', '--features pixel', "unknown features 'pixel'; did you"),
    ('test_time', '--corruptions fogg', "unknown corruption 'fogg'; did you"),
    (
      'test_time',
      '--per-corruption 999',
      'per_corruption must lie in [0, 477]',
    ),
    ('positive_unlabeled', '--methods pu_mlc', "unknown method 'pu_mlc'"),
    ('positive_unlabeled', '--known 9999', 'known: there are'),
    ('positive_unlabeled', '--known .5', 'known must be a number of rows'),
    ('positive_unlabeled', '--prior 1', 'prior must lie in (0, 1)'),
    ('positive_unlabeled', '--dataset multilabel_x', 'x is read from a file'),
    ('semi_supervised', '--labels 25', 'labels must be a multiple of the 10'),
    ('semi_supervised', '--views shfit', "unknown views 'shfit'; did you mean"),
    ('semi_supervised', '--ema 1', 'ema must lie in [0, 1)'),
    ('self_training', '--labels 25', 'labels must be a multiple of the 10'),
    ('imprecise_labels', '--methods cc', "unknown method 'cc'"),
    ('imprecise_labels', '--views crops', "unknown views 'crops'; did you"),
    ('imprecise_labels', '--optimizer lion', "unknown optimizer 'lion'"),
    ('meta_rescaling', '--methods storms', "unknown method 'storms'; did you"),
    ('meta_rescaling', '--noise uniform', "unknown noise 'uniform'; "),
    ('meta_rescaling', '--optimizer adamw', "unknown optimizer 'adamw'; did"),
    ('meta_rescaling', '--rate 1.5', 'rate must lie in [0, 1], got 1.5'),
    ('meta_rescaling', '--epochs 5,0', 'epochs must be numbers from 1 on'),
    ('meta_rescaling', '--imbalance .1', 'imbalance must be at least 1'),
    ('label_audit', '--npz absent.npz', 'absent.npz is not there, or is no np'),
    ('label_audit', '--rule bot', "unknown rule 'bot'; did you mean 'both'"),
    ('label_audit', '--method elrs', "unknown method 'elrs'; did you mean 'el"),
    ('label_audit', '--rows -1', 'rows must not be negative, got -1'),
    ('label_audit', '--noise human', "unknown noise 'human'; "),
    ('benchmark_errors', '--methods cnns', "unknown method 'cnns'; did you me"),
    ('benchmark_errors', '--methods guesser', 'methods must name one to train'),
    ('benchmark_errors', '--prevalence 5', 'prevalence must lie in [0, 1], g'),
    ('benchmark_errors', '--methods mlp,guesser', "errors '' lacks pred_prob"),
    ('crowd', '--methods dawid', "unknown method 'dawid'"),
    ('crowd', '--errors systemic', "unknown errors 'systemic'; did you mean"),
    ('crowd', '--accuracy .5', 'accuracy must be two numbers in [0, 1], got'),
    ('crowd', '--present 0', 'present must lie in (0, 1], got 0'),
    ('relation_noise', '--negative x', 'negative must be numbers'),
    ('relation_noise', '--negative 12', 'negative must be some of the 10'),
    ('relation_noise', '--k 500', 'k must be at most the number of trusted'),
    ('relation_noise', '--net tfidf', 'net tfidf is not for images'),
    ('labeling_functions', '--methods coin', "unknown method 'coin'"),
    ('labeling_functions', '--functions 0', 'functions must be at least 1'),
    ('labeling_functions', '--words 50', 'functions and words: only '),
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
    ('benchmark_errors', '--errors absent.npz', 'absent.npz'),
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


def check_audit(out, printed, known):
  """What an audit promises: tables, rows of them, a list, a page."""
  rows, ranks = rows_in(out)[:7], rows_in(out)[7:]
  assert bool(ranks) == known
  for row in rows + ranks:
    assert row['experiment'] == 'label_audit'
    assert f'| {row.get("rule") or row["score"]} ' in printed
  assert all(('precision' in row) == known for row in rows)
  with (out / 'issues.csv').open(newline='') as file:
    issues = list(csv.DictReader(file))
  assert len(issues) == rows[0]['look_wrong'] > 0
  assert {row['rule'] for row in issues} == {rows[0]['rule']}
  page = (out / 'audit.html').read_text()
  assert 'Content-Security-Policy' in page
  assert f'{len(issues)} of' in page
  return issues, page


def test_an_audit_of_a_file(tmp_path, capsys):
  label, text = '<b>b</b>', '<script>alert(1)</script>'
  labels = np.arange(60) % 3
  probs = np.full((60, 3), 0.1) + 0.7 * np.eye(3)[labels]
  labels[7] = 2  # it was 1
  texts, names = [f'{i} {text}' for i in range(60)], ['a', label, 'c, "d"']
  arrays = {'labels': labels, 'pred_probs': probs, 'class_names': names}
  np.savez(tmp_path / 'mine.npz', **arrays, texts=texts)
  out = tmp_path / 'out'
  here('label_audit', '--npz', tmp_path / 'mine.npz', '--out', out)
  issues, page = check_audit(out, capsys.readouterr().out, known=False)
  (found,) = issues
  assert (found['row'], found['duplicate group']) == ('7', '')
  assert (found['given'], found['suggested']) == (names[2], label)
  assert '7 &lt;script&gt;alert(1)&lt;/script&gt;' in page
  assert text not in page
  assert label not in page


@pytest.mark.slow
def test_an_audit_of_a_data_set(tmp_path, capsys):
  argv_elr = '--method elr --noise pair_flip --rows 1000 --standardize'
  for argv, rows in (('', 1320), (argv_elr, 1000)):
    out = tmp_path / f'out{argv[:3]}'
    here('label_audit', '--smoke', *argv.split(), '--out', out)
    printed = capsys.readouterr().out
    issues, page = check_audit(out, printed, known=True)
    assert f'of {rows} are wrong' in printed
    assert len(issues) > 100
    assert 'data:image/png' in page
    rules, ranks = rows_in(out)[:7], rows_in(out)[7:]
    assert all(0 < row['precision'] < 1 for row in rules)
    aucs = {row['score']: row['auc'] for row in ranks}
    assert len(aucs) == (11 if 'elr' in argv else 10)
    assert ('flags of elr' in aucs) == ('elr' in argv)
    # Those that do not see the label are no better than a coin.
    assert all(0.55 < v < 1 for k, v in aucs.items() if 'ood_probs' not in k)
    assert all(0.15 < row['average_precision'] < 1 for row in ranks)
  # A file of features and images, in which two rows are the same.
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 9, 9), np.uint8)
  images[30] = images[0]
  probs = rng.dirichlet(np.ones(3), 40)
  arrays = {'labels': np.arange(40) % 3, 'pred_probs': probs, 'images': images}
  for features in ({}, {'features': images.reshape(40, -1)[:, :50]}):
    np.savez(tmp_path / 'mine.npz', **arrays, **features)
    out = tmp_path / f'file{len(features)}'
    argv = '--npz', tmp_path / 'mine.npz', '--out', out
    here('label_audit', *argv, '--rule', 'predicted_neq_given')
    assert '2 examples, labels agree' in (out / 'audit.html').read_text()


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
    ('noisy_labels', f'--methods {OWN} --noise symmetric:.2,pair_flip:.4', 18),
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
    ('imprecise_labels', '--setting semi --ema .9', 6),
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
    ('benchmark_errors', '', 4),
  ],
)
def test_every_method_and_kind_of_evidence(
  name, argv, methods, traced, tmp_path, capsys
):
  """All but the running, at full size; how methods learn: tests/methods."""
  here(name, *argv.split(), '--seeds', 2, '--out', tmp_path)
  found = check_results(name, tmp_path, capsys.readouterr().out)
  assert len(found) == methods


@pytest.mark.slow
def test_labels_that_people_gave(mine, traced, tmp_path, monkeypatch, capsys):
  """Of ten classes, in their order; published settings of each set."""
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  data = load('mine', data_dir=mine[3])
  parts = data.train, data.validation, data.test
  ids = np.concatenate([part.id for part in parts[:2]])
  labels = np.concatenate([part.labels for part in parts[:2]])
  clean = np.zeros(ids.max() + 1, np.uint8)
  clean[ids] = labels
  wrong = (clean + (np.arange(len(clean)) % 3 == 0)).astype(np.uint8) % 10
  arrays = {f'random_label{i}': wrong for i in (1, 2, 3)}
  arrays |= {'aggre_label': clean, 'worse_label': wrong, 'clean_label': clean}
  np.savez(pathlib.Path(mine[3]) / 'cifar10_human_labels.npz', **arrays)
  out = tmp_path / 'out'
  argv = (*mine[:4], '--net', 'mlp', '--seeds', 2, '--out', out)
  here('cifar10n', *argv, '--methods', 'ce,co_teaching', '--augment', 'none')
  rows, printed = rows_in(out), capsys.readouterr().out
  assert len(rows) == 5 * 2 * 2
  shares = {row['setting']['noise']: row['wrong_labels'] for row in rows}
  assert shares['cifar10n_aggre'] == 0
  assert 0.25 < shares['cifar10n_random2'] < 0.4
  last = [row['last'] for row in rows if row['method'] == 'ce']
  three = np.mean(last[2:8])  # the random ones, of two seeds each
  assert f'| ce          | {100 * np.mean(last[:2]):.1f}' in printed
  assert f'| {100 * three:.1f} +- ' in printed
  known = {
    ('mine', name, None): _published.Settings('a paper', 'gce', 'mlp', 2, 64, r)
    for r, name in enumerate(shares)
  }
  monkeypatch.setitem(_published.LOSSES, 'gce', known)
  here('cifar10n', *argv, '--published', '--methods', 'gce')
  rows = rows_in(tmp_path / 'out-2')
  rates = [row['published']['gce']['learning_rate'] for row in rows[::2]]
  assert rates == [0, 1, 2, 3, 4]
  with pytest.raises(ValueError, match='noise must be of cifar10n_aggre'):
    here('cifar10n', *argv, '--noise', 'symmetric')


@pytest.mark.slow
def test_votes_of_people_and_the_model_that_asked_them(mine, traced, tmp_path):
  test = load('mine', data_dir=mine[3]).test
  given, index = test.labels[:20], np.arange(20)
  guessed = (given + 1) % 10
  own = np.r_[guessed, test.labels[20:]]  # and so the guesser's
  arrays = {
    'mturk_index': index,
    'given_original_label': given,
    'our_guessed_label': guessed,
    'pred_probs': np.eye(10)[own],
    'votes_given': np.where(index < 10, 1, 5),
    'votes_guessed': np.where(index < 10, 4, 0),
    'votes_neither': np.zeros(20, int),
  }
  script = functools.partial(here, 'benchmark_errors', *mine)
  errors, out = tmp_path / 'errors.npz', tmp_path / 'out'
  argv = ['--methods', 'linear,guesser', '--errors', errors, '--out', out]
  np.savez(errors, **arrays)
  script(*argv)
  assert check_results('benchmark_errors', out, 'linear') == {'linear'}
  lines = (out / 'prevalence.jsonl').read_text().splitlines()
  found = {
    (row['labels'], row['share']): [row['accuracy'], row['low'], row['high']]
    for row in map(json.loads, lines)
    if row['model'] == 'guesser'
  }
  # Ten rows of 150 are errors; ten of the guesses were rejected.
  right = found['corrected', 0.0]
  assert right[0] == pytest.approx(130 / 140)
  assert right[1] < right[0] < right[2]
  assert found['given', 0.5] == pytest.approx([x / 2 for x in right])
  assert found['corrected', 0.5] == pytest.approx([(1 + x) / 2 for x in right])
  assert ('given', 10 / 150) in found
  (flip,) = map(json.loads, (out / 'flips.jsonl').read_text().splitlines())
  assert flip['models'] == ['guesser', 'linear']
  assert flip['flip'] is None
  for name, value, message in (
    ('votes_neither', None, 'lacks votes_neither'),
    ('given_original_label', guessed, 'are not of the test set of mine'),
    ('mturk_index', index + 140, 'are not of the test set of mine'),
    ('pred_probs', np.eye(10), 'are not of the test set of mine'),
  ):
    other = {**arrays, name: value}
    np.savez(errors, **{k: v for k, v in other.items() if v is not None})
    with pytest.raises(ValueError, match=message):
      script(*argv)


@pytest.mark.slow
def test_a_crowd_of_a_file(tmp_path, capsys):
  """Three annotators of five take every third class for the next one."""
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 3, 300)
  item, worker = np.nonzero(rng.random((300, 5)) < 0.8)
  answer = truth[item]
  answer[(worker > 1) & (answer == 2)] = 0
  arrays = {'item': item, 'worker': worker, 'answer': answer, 'truth': truth}
  np.savez(tmp_path / 'mine.npz', **arrays)
  argv = '--dataset', 'mine', '--data-dir', tmp_path, '--out', tmp_path / 'out'
  here('crowd', *argv, '--methods', 'majority,dawid_skene,crowdlab,truth')
  rows = {row['method']: row for row in rows_in(tmp_path / 'out')}
  assert set(rows) == {'majority', 'dawid_skene', 'crowdlab'}
  assert rows['dawid_skene']['labels'] > 0.97
  assert rows['majority']['last'] < 0.9
  assert '300 items, 3 classes, 5 annotators' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not SPAM.exists(), reason=f'{SPAM} is not here')
def test_keywords_of_spam():
  """What a prior saves: five functions only ever say spam, five never do."""
  script = script_of('labeling_functions')
  argv = ['--dataset', SPAM.stem, '--data-dir', str(SPAM.parent)]
  config = parse(script['Config'], '', argv)
  task = script['read'](config)
  assert np.bincount(task.part).tolist() == [350, 350, 438, 448, 370]
  rows = task.part != 4
  votes = script['votes_of'](task, script['pick'](config, task, rows))[None]
  covered = rows & (votes >= 0).any(2)
  assert 0.84 < covered.sum() / rows.sum() < 0.9
  found = {
    name: script['labels_of'](name, task, votes, covered).known
    for name in ('majority', 'one_coin', 'one_coin_strong')
  }
  right = {name: known['labels'][0] for name, known in found.items()}
  assert right['majority'] > 0.9
  assert right['one_coin_strong'] > 0.9
  assert right['one_coin'] < 0.65
  assert [bool(known['collapsed'][0]) for known in found.values()] == [
    False,
    True,
    False,
  ]
