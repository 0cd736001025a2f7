"""The throughput script, and the rewritings that made losses faster."""

import json
import pathlib
import re
import runpy

from fixture_losses import close, draw, grad
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import automata, logspace, losses
from jnl.train import parse

SCRIPT = pathlib.Path(__file__).parent.parent / 'experiments' / 'throughput.py'
FIELDS = 'name shape dtype ms floor_ms ratio compile_s device ratios'


@pytest.fixture(scope='module')
def script():
  """The script's globals; its measuring processes are those of a user."""
  return runpy.run_path(str(SCRIPT))


def run(script, *argv):
  script['main'](parse(script['Config'], '', [str(a) for a in argv]))


def small(script, **changes):
  """A config of seconds, smaller than that of --smoke."""
  return script['Config'](
    **{
      'sections': ('losses',),
      'losses': ('gce', 'elr'),
      'batch': 8,
      'classes': 4,
      'examples': 16,
      'images': 16,
      'batch_size': 8,
      'rounds': 1,
      **changes,
    }
  )


def test_two_devices_and_two_processes(script, tmp_path, capfd):
  """What --smoke has not; that is run in experiments_test.py."""
  out = str(tmp_path / 'out')
  changes = {'devices': 2, 'dtype': 'bfloat16', 'processes': 2, 'out': out}
  script['main'](small(script, **changes))
  lines = (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row['name'] for row in rows] == ['np.copyto', 'gce', 'elr']
  for row in rows:
    assert set(FIELDS.split()) <= set(row)
    assert row['shape'] == [8, 4]
    assert row['dtype'] == 'bfloat16'
    assert row['device'].startswith('2 x ')
    assert len(row['ratios']) == 2
    assert 0 < row['ms'] < 1e3
    assert row['ratio'] == np.median(row['ratios'])
  assert (tmp_path / 'out' / 'losses.png').stat().st_size > 1000
  assert 'with rows of memory' in capfd.readouterr().out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ('--sections loses', "unknown section 'loses'; did you mean 'losses'"),
    ('--losses gcc', "unknown loss 'gcc'; did you mean"),
    ('--methods erl', "unknown method 'erl'; did you mean 'elr'"),
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
  ],
)
def test_bad_options_are_named_and_nothing_is_written(
  script, argv, message, tmp_path
):
  with pytest.raises(ValueError, match=re.escape(message)):
    run(script, *argv.split(), '--out', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_process_that_measures_starts_no_other(script, monkeypatch, tmp_path):
  monkeypatch.setenv(script['ROWS'], str(tmp_path / 'rows.jsonl'))
  started = []
  monkeypatch.setattr(script['subprocess'], 'run', started.append)
  script['main'](small(script, losses=('ce',)))
  rows = (tmp_path / 'rows.jsonl').read_text().splitlines()
  assert [json.loads(row)['name'] for row in rows] == ['np.copyto', 'ce']
  assert not started


def test_what_is_timed_is_the_value_and_the_gradient(script):
  config = small(script, classes=6)
  mesh = script['data_mesh'](jax.devices()[:2])
  arrays = script['draw_arrays'](config, jnp.float32, mesh)
  z, y, weight = arrays['z'], arrays['y'], arrays['weight']
  for name in ('ce', 'nce', 'nfl'):
    loss = script['LOSSES'][name]
    value, back = script['value_and_gradient'](loss, arrays)
    plain = getattr(losses, name)
    close(value, plain(z, y))
    weighted = lambda z, f=plain: jnp.sum(weight * f(z, y))
    close(back['z'], grad(weighted)(z), rtol=1e-4)


def test_first_batch_is_laid_out_shard_by_shard(script):
  index = script['first_batch'](10, 4, 2)
  assert index.tolist() == [0, 1, 5, 6]


def test_both_views_are_the_two_of_one_pass(script):
  """What `em` is compared with: the mean cross-entropy of both views."""
  config = small(script)
  data = {**script['views'](8), 'index': np.arange(8), 'weight': np.ones(8)}
  method = script['build'](config, 'ce', 16)
  state, key = method.init(jax.random.key(0)), jax.random.key(1)
  loss = lambda m, x: m.step(state, {**data, 'x': x}, key)[1]['loss']
  apart = loss(method, data['x']) + loss(method, data['x_strong'])
  both = loss(script['on_both_views'](method), data['x'])
  close(both, apart / 2, rtol=1e-5)


def test_the_recursion_is_the_likelihood_that_is_inferred(script):
  log_odds = draw(64, 5)[0]
  p = script['prefix_recursion'](jax.nn.sigmoid(log_odds).T)
  close(jnp.log(p), automata.count_log_probs(log_odds), rtol=1e-3, atol=1e-4)


def test_a_single_bag_is_measured_with_its_memory(script):
  changes = {'devices': 2, 'bags': 4, 'instances': 4, 'single': 8}
  many, log_probs, slope, one = script['time_counts'](small(script, **changes))
  assert many['shape'] == log_probs['shape'] == slope['shape'] == [4, 4, 2]
  assert one['shape'] == [1, 8, 2]
  assert one['temp_mb'] > 0


# --- what was rewritten for speed --------------------------------------------


@pytest.mark.parametrize('classes', [2, 3, 10, 12, 101])
def test_top_class_is_the_argmax_first_among_equals(classes):
  z = jnp.round(draw(200, classes, scale=0.7)[0])  # many ties
  z = z.at[0].set(0).at[1].set(-jnp.inf).at[1, -1].set(0)
  z = z.reshape(4, 50, classes)
  expected = jnp.argmax(z, axis=-1, keepdims=True)
  for top_class in (logspace.top_class, jax.jit(jax.vmap(logspace.top_class))):
    np.testing.assert_array_equal(top_class(z), expected)


@pytest.mark.parametrize(
  'loss', [losses.focal, losses.nfl, losses.nnfl], ids=lambda f: f.__name__
)
@pytest.mark.parametrize('detach', [True, False])
def test_the_square_root_is_the_power(loss, detach):
  """gamma = 1/2 has a form of its own; a traced gamma takes the general one."""
  z, y = draw(scale=4.0)
  z = z.at[0].set(jnp.array([200.0, 0, 0, 0])).at[1].set(0)  # p = 1, p = 1/4
  tangent = draw(seed=1)[0]

  def derivatives(gamma):
    def slope(z):
      value, back = jax.vjp(lambda z: loss(z, y, gamma=gamma, detach=detach), z)
      return value, back(jnp.ones_like(value))[0]

    return *slope(z), jax.jvp(lambda z: slope(z)[1], [z], [tangent])[1][2:]

  own = jax.jit(lambda: derivatives(0.5))()
  general = jax.jit(derivatives)(jnp.float32(0.5))
  for a, b in zip(own, general, strict=True):
    assert np.isfinite(a).all()
    close(a, b, rtol=1e-3, atol=2e-5)


def sop_as_defined(z, y, u, v, clip=1e-4):
  """The equations, with every label one-hot."""
  y = jax.nn.one_hot(y, z.shape[-1])
  add = jnp.clip(u[:, None] ** 2 * y, 0, 1)
  remove = jnp.clip(v**2 * (1 - y), 0, 1)
  shift = add - jax.lax.stop_gradient(remove)
  q = jnp.maximum(jax.nn.softmax(z) + shift, clip)
  q = q / q.sum(-1, keepdims=True)
  top = jax.nn.one_hot(jnp.argmax(z, -1), z.shape[-1])
  square = jnp.sum((top + add - remove - y) ** 2, axis=-1)
  return -jnp.sum(y * jnp.log(q), axis=-1) + square


@pytest.mark.parametrize('scale', [1.0, 8.0])
def test_sop_of_integer_labels_is_the_equation(scale):
  """Value, gradient, and the derivative of the gradient, as a meta step has."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    z, y = draw(scale=scale)
    u, v = rng.uniform(-1.2, 1.2, 64), rng.uniform(-1.2, 1.2, z.shape)
    wrt = (z.astype(jnp.float64), jnp.asarray(u), jnp.asarray(v))
    tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), wrt)

    def everything(loss):
      total = lambda z, u, v: jnp.sum(loss(z, y, u, v))
      slope = jax.grad(total, argnums=(0, 1, 2))
      return loss(wrt[0], y, *wrt[1:]), *jax.jvp(slope, wrt, tangent)

    own = everything(losses.sop)
    jax.tree.map(
      lambda a, b: close(a, b, rtol=1e-6, atol=1e-9),
      own,
      everything(sop_as_defined),
    )


def test_mean_log_prob_survives_a_large_common_offset():
  """The differences to the largest logit are summed, not the logits."""
  z = jnp.full([1, 1000], 1e30)
  close(logspace.mean_log_prob(z), -np.log(1000), rtol=1e-6)
  jitted = jax.jit(losses.label_smoothing)
  close(jitted(z, jnp.array([3])), np.log(1000), rtol=1e-6)
