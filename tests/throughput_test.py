"""The throughput script, its clock, and what its sections compare."""

import functools
import importlib
import json
import pathlib
import re
import subprocess
import sys

from fixture_losses import close
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import automata, losses
from jnl.train import data_mesh, parse

# As for a script that is run: what lies beside it can be imported.
sys.path.append(str(pathlib.Path(__file__).parent.parent / 'experiments'))
script = importlib.import_module('throughput')
FIELDS = 'name shape dtype ms floor_ms ratio compile_s device ratios'
TINY = {'batch': 8, 'classes': 4, 'examples': 16, 'rounds': 1}


def run(*argv):
  script.main(parse(script.Config, '', [str(a) for a in argv]))


def rows_in(folder):
  lines = (folder / 'results.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_smoke(tmp_path, capfd):
  own = 'losses,epochs,neighbors,pgmax_comparison'  # the rest: accelerator_test
  run('--smoke', '--sections', own, '--out', tmp_path)
  rows, printed = rows_in(tmp_path), capfd.readouterr().out
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['name'] in printed
  plots = {path.stem for path in tmp_path.glob('*.png')}
  assert plots == {row['section'] for row in rows}
  assert plots == set(own.split(','))


@pytest.mark.slow
def test_all_that_is_compared_with_cross_entropy(monkeypatch):
  """Traced, and not run: --smoke runs some of it."""

  def stepping(options, method, n, data=None):
    size = options.batch_size
    batch = {
      **(data or script.steps.images(size)),
      'index': np.arange(size),
      'weight': np.ones(size, np.float32),
    }
    key = jax.random.key(0)
    return lambda: method.step(method.init(key), batch, key)

  def in_turns(floor, items, rounds):
    for call in (floor, *(item.call for item in items)):
      jax.eval_shape(call)
    return [item.name for item in items]

  named = {
    'em': 'ce,ill_noisy,ill_partial,ill_semi,ill_mixed',
    'meta': 'ce,l2rw 128,l2rw 32,mwn 128,mwn 32,storm',
  }
  for section, expected in named.items():
    module = script.SECTIONS[section]
    monkeypatch.setattr(module, 'stepping', stepping)
    monkeypatch.setattr(module, 'in_turns', in_turns)
    assert list(module.measure(module.Options(nets=('mlp',)))) == [
      f'{name} mlp' for name in expected.split(',')
    ]
  module = script.SECTIONS['few_labels']
  monkeypatch.setattr(module, 'stepping', stepping)
  monkeypatch.setattr(module, 'in_turns', in_turns)
  own = module.Options(policies=module.POLICIES, examples=1000)
  expected = ['fixmatch', *module.POLICIES, 'flexmatch, the rule, 10^6']
  assert list(module.measure(own)) == expected


@pytest.mark.slow
def test_two_devices_in_a_process_of_its_own(tmp_path, capfd):
  """What --smoke has not."""
  argv = '--sections losses --losses gce,elr --batch 8 --classes 4 --rounds 1 '
  argv += '--examples 16 --devices 2 --dtype bfloat16 --processes 1'
  run(*argv.split(), '--out', tmp_path / 'out')
  rows = rows_in(tmp_path / 'out')
  assert [row['name'] for row in rows] == ['np.copyto', 'gce', 'elr']
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['shape'] == [8, 4]
    assert row['dtype'] == 'bfloat16'
    assert row['device'].startswith('2 x ')
    assert len(row['ratios']) == 1
    assert 0 < row['ms'] < 1e3
    assert row['ratio'] == np.median(row['ratios'])
  assert (tmp_path / 'out' / 'losses.png').stat().st_size > 1000
  assert 'with rows of memory' in capfd.readouterr().out


def test_processes_are_told_the_options_and_their_medians_reported(
  monkeypatch, tmp_path, capsys
):
  """The process is played by this one: of losses, on two devices."""
  told = []

  def started(command, env):
    told.append(command[2:])
    monkeypatch.setenv(script.clock.ROWS, env[script.clock.ROWS])
    script.main(parse(script.Config, '', command[2:]))
    monkeypatch.delenv(script.clock.ROWS)
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(script.clock.subprocess, 'run', started)
  argv = '--sections losses --losses elr --batch 8 --classes 4 --rounds 1 '
  argv += '--examples 16 --devices 2 --processes 2 --out'
  run(*argv.split(), tmp_path)
  assert len(told) == 2
  assert {'--losses=elr', '--devices=2', '--batch=8'} <= set(told[0])
  rows = rows_in(tmp_path)
  assert [row['name'] for row in rows] == ['np.copyto', 'elr']
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['shape'] == [8, 4]
    assert row['device'].startswith('2 x ')
    assert len(row['ratios']) == 2
    assert 0 < row['ms'] < 1e4
    assert row['ratio'] == np.median(row['ratios'])
  assert (tmp_path / 'losses.png').stat().st_size > 1000
  assert 'with rows of memory' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ('--sections loses', "unknown section 'loses'; did you mean 'losses'"),
    ('--losses gcc', "unknown loss 'gcc'; did you mean"),
    ('--methods erl', "unknown method 'erl'; did you mean 'elr'"),
    ('--kinds semy', "unknown kind 'semy'; did you mean 'semi'"),
    ('--weighers storms', "unknown weigher 'storms'; did you mean 'storm'"),
    ('--nets mpl', "unknown net 'mpl'; did you mean 'mlp'"),
    ('--dtype float16', "unknown dtype 'float16'; did you mean 'bfloat16'"),
    ('--parallel smap', "unknown parallel 'smap'; did you mean"),
    ('--devices 0', 'devices must be at least 1, got 0'),
    ('--devices 3', 'batch must be a multiple of the 3 devices'),
    ('--rounds 0', 'rounds must be at least 1, got 0'),
    ('--workers -1', 'workers must be >= 0, got -1'),
    ('--batch-size 60000', 'batch-size must be'),
    ('--bags 0', 'bags must be a multiple of the 1 devices'),
    ('--single 0', 'single must be at least 1, got 0'),
    ('--graphs 64', "graphs must be instances x bag size, 64x8, got '64'"),
    ('--points 5', "points must be numbers above 5, got '5'"),
    ('--law 8x64', "law must be instances x bag size, 64x8, got '8x64'"),
    ('--rest 0', 'rest must be at least 1, got 0'),
  ],
)
def test_bad_options_are_named_and_nothing_is_written(argv, message, tmp_path):
  with pytest.raises(ValueError, match=re.escape(message)):
    run(*argv.split(), '--out', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_options_of_other_sections_are_not_looked_at():
  config = script.Config(sections=('losses',), bags=0, images=1)
  script.check_options(config)


def test_what_is_timed_is_the_value_and_the_gradient():
  section, names = script.losses, ('ce', 'nce', 'nfl')
  options = section.Options(**{**TINY, 'classes': 6})
  mesh = data_mesh(jax.devices()[:2])
  arrays = section.draw_arrays(options, jnp.float32, mesh)
  timed = [
    functools.partial(section.value_and_gradient, section.LOSSES[name])
    for name in names
  ]
  found = jax.jit(lambda arrays: [f(arrays) for f in timed])(arrays)
  z, y, weight = (np.asarray(arrays[name]) for name in ('z', 'y', 'weight'))

  def weighted(z, name):
    value = getattr(losses, name)(z, y)
    return jnp.sum(weight * value), value

  expected = jax.jit(
    lambda z: [jax.grad(weighted, has_aux=True)(z, name) for name in names]
  )(z)
  for (value, back), (slope, plain) in zip(found, expected, strict=True):
    close(value, plain)
    close(back['z'], slope, rtol=1e-4)


def test_first_batch_is_laid_out_shard_by_shard():
  index = script.steps.first_batch(10, 4, 2)
  assert index.tolist() == [0, 1, 5, 6]


@pytest.mark.slow
def test_both_views_are_the_two_of_one_pass():
  """What `em` is compared with: the mean cross-entropy of both views."""
  views = script.em.views(8)
  data = {**views, 'index': np.arange(8), 'weight': np.ones(8)}
  method = script.steps.build(script.steps.Options(batch_size=8), 'ce', 16)
  state, key = method.init(jax.random.key(0)), jax.random.key(1)
  loss = lambda m, x: m.step(state, {**data, 'x': x}, key)[1]['loss']
  one, other, both = jax.jit(
    lambda x, strong: (
      loss(method, x),
      loss(method, strong),
      loss(script.em.on_both_views(method), x),
    )
  )(data['x'], data['x_strong'])
  close(both, (one + other) / 2, rtol=1e-5)


def test_the_recursion_is_the_likelihood_that_is_inferred():
  log_odds = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
  p, log_probs = jax.jit(
    lambda z: (
      script.counts.prefix_recursion(jax.nn.sigmoid(z).T),
      automata.count_log_probs(z),
    )
  )(log_odds)
  close(np.log(p), log_probs, rtol=1e-3, atol=1e-4)
