"""The training loop: same numbers everywhere, refits, weights, clear errors."""

import functools
import json
import re

import chex
from fixture_methods import co_divide, cross_entropy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import (
  Aux,
  Refit,
  data_shards,
  from_loss,
  global_mean,
  supervised,
  unpack_rows,
)
from jnl.data.batches import check_arrays
from jnl.methods.elr import elr
from jnl.nets import MLP, StridedCNN, from_linen
from jnl.train import fit as fit_module
from jnl.train.evaluate import evaluate, padded_batches
from jnl.train.fit import Checkpoint, fit, fit_many

N, CLASSES = 62, 3
KEY = jax.random.key(0)
ONE = jax.devices()[:1]


def arrays(n=N, seed=0):
  """Three separable classes in the plane."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, n).astype(np.int32)
  angle = 2 * np.pi * labels / CLASSES
  x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * rng.normal(
    size=(n, 2)
  )
  return {'x': x.astype(np.float32), 'labels': labels}


def mlp(**kwargs):
  return from_linen(MLP(CLASSES, (16,), **kwargs), (2,))


def sgd():
  return optax.sgd(0.1, momentum=0.9)


def plain(**kwargs):
  return supervised(cross_entropy, mlp(**kwargs), sgd())


def jitter(keys, batch):
  noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
  return {**batch, 'x': batch['x'] + 0.1 * noise}


def test_it_learns_and_says_so():
  test = arrays(200, seed=1)
  fitted = fit(
    plain(), arrays(), KEY, epochs=20, batch_size=16, held_out={'test': test}
  )
  assert fitted.history['loss'].shape == fitted.history['test'].shape == (20,)
  assert fitted.history['test'][-1] > 0.95 > fitted.history['test'][0]
  assert fitted.state.step == 20 * (N // 16)
  accuracy = evaluate(plain().predict, fitted.state, test, batch_size=48)
  assert accuracy == pytest.approx(fitted.history['test'][-1])


@pytest.mark.parametrize(
  ('devices', 'how'), [(4, 'jit'), (8, 'shard_map'), (8, 'pmap')]
)
def test_the_number_of_devices_changes_nothing(devices, how):
  method = elr(
    mlp(batch_norm=True, dropout=0.2),
    sgd(),
    N,
    CLASSES,
    shards=data_shards(N, 16),
  )
  fits = [
    fit(
      method,
      arrays(),
      KEY,
      epochs=2,
      batch_size=16,
      held_out={'test': arrays(33, 1)},
      augment=jitter,
      how=mode,
      devices=jax.devices()[:count],
    )
    for count, mode in [(1, 'jit'), (devices, how)]
  ]
  chex.assert_trees_all_close(*fits, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('vectorize', [True, False])
def test_many_runs_are_the_single_runs(vectorize):
  method = co_divide(mlp(), sgd(), N, data_shards(N, 16))
  keys = jax.random.split(KEY, 2)
  draws = np.stack([arrays()['labels'], np.roll(arrays()['labels'], 1)])
  options = {'epochs': 2, 'batch_size': 16}
  many = fit_many(
    method,
    {'x': arrays()['x'], 'labels': draws},
    keys,
    per_run=('labels',),
    held_out={'train': {'x': arrays()['x'], 'labels': draws}},
    vectorize=vectorize,
    **options,
  )
  for r in range(2):
    data = {'x': arrays()['x'], 'labels': draws[r]}
    one = fit(
      method, data, keys[r], held_out={'train': data}, devices=ONE, **options
    )
    run = jax.tree.map(lambda a, r=r: a[r], many)
    chex.assert_trees_all_close(one, run, atol=1e-5, rtol=1e-5)


def test_vectorized_runs_spread_over_devices():
  fitted = fit_many(
    plain(), arrays(), jax.random.split(KEY, 4), epochs=1, batch_size=16
  )
  kernel = jax.tree.leaves(fitted.state.params)[0]
  assert len(kernel.sharding.device_set) == 4
  assert kernel.addressable_shards[0].data.shape[0] == 1


def test_convolutions_run_one_by_one(monkeypatch):
  chosen = []
  monkeypatch.setattr(
    fit_module, 'compile_many', lambda *a: chosen.append('many') or 1 / 0
  )
  images = {
    'x': np.zeros((16, 8, 8, 1), np.float32),
    'labels': arrays(16)['labels'],
  }
  cnn = supervised(
    cross_entropy, from_linen(StridedCNN(3, (4,)), (8, 8, 1)), sgd()
  )
  fit_many(cnn, images, jax.random.split(KEY, 2), epochs=1, batch_size=8)
  assert not chosen
  with pytest.raises(ZeroDivisionError):
    fit_many(
      plain(), arrays(), jax.random.split(KEY, 2), epochs=1, batch_size=8
    )


def recording(when):
  """A method whose refit hands each example's first input on to its memory."""

  def collect(state, batch, key):
    del state, key
    return batch['x'][:, 0]

  def update(state, table, key):
    del key
    return state._replace(extra=(unpack_rows(table, N), state.extra[1] + 1))

  start = (jnp.zeros(N), jnp.int32(0))
  loss_fn = lambda params, state, batch, key: (
    0.0 * sum(jnp.sum(p) for p in jax.tree.leaves(params)),
    Aux(state.stats, state.extra),
  )
  return from_loss(
    loss_fn, mlp(), sgd(), init_extra=lambda key: start,
    refit=Refit(collect, update, when),
  )  # fmt: skip


@pytest.mark.parametrize('devices', [1, 8])
def test_a_refit_sees_every_example_in_its_place_when_asked(devices):
  fitted = fit(
    recording(lambda epoch: epoch in (1, 3)),
    arrays(),
    KEY,
    epochs=5,
    batch_size=16,
    devices=jax.devices()[:devices],
  )
  seen, times = fitted.state.extra
  np.testing.assert_array_equal(seen, arrays()['x'][:, 0])
  assert times == 2


def test_every_part_compiles_once(caplog):
  with jax.log_compiles():
    fit(plain(), arrays(), KEY, epochs=3, batch_size=16)
  compiled = re.findall(r'Compiling jit\((init|order|take|step)\)', caplog.text)
  assert sorted(compiled) == ['init', 'order', 'step', 'take']


def test_the_compiled_loop_compiles_once_whatever_its_bounds(caplog, tmp_path):
  rows = []
  with jax.log_compiles():
    fit(
      plain(), arrays(), KEY, epochs=3, batch_size=4, loop='compiled',
      log=rows.append, checkpoint=Checkpoint(tmp_path, every=7),
    )  # fmt: skip
  compiled = re.findall(
    r'Compiling jit\((run_compiled|step|take)\)', caplog.text
  )
  assert compiled == ['run_compiled']
  assert [row['epoch'] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('how', ['jit', 'shard_map'])
def test_the_compiled_loop_gives_the_same_numbers(devices, how):
  method = elr(mlp(batch_norm=True), sgd(), N, CLASSES, shards=8)
  fits = [
    fit(
      method, arrays(), KEY, epochs=2, batch_size=16, how=how, loop=loop,
      devices=jax.devices()[:devices], held_out={'test': arrays(33, 1)},
      augment=jitter,
    )
    for loop in ('python', 'compiled')
  ]  # fmt: skip
  chex.assert_trees_all_close(*fits, atol=1e-6, rtol=1e-5)


def test_many_runs_in_one_compiled_loop():
  fits = [
    fit_many(
      plain(), arrays(), jax.random.split(KEY, 2), epochs=2, batch_size=16,
      loop=loop,
    )
    for loop in ('python', 'compiled')
  ]  # fmt: skip
  chex.assert_trees_all_close(*fits, atol=1e-6, rtol=1e-5)


def test_examples_without_weight_are_not_there():
  data = {**arrays(), 'weight': np.ones(N, np.float32)}
  data['weight'][::2] = 0
  wrong = data['labels'].copy()
  wrong[::2] = (wrong[::2] + 1) % CLASSES
  fits = [
    fit(
      plain(),
      {**data, 'labels': labels},
      KEY,
      epochs=2,
      batch_size=16,
      devices=ONE,
    )
    for labels in (data['labels'], wrong)
  ]
  chex.assert_trees_all_equal(*fits)


def test_a_log_has_a_line_for_each_epoch(tmp_path, capfd):
  log = tmp_path / 'new' / 'log.jsonl'
  fitted = fit(
    plain(), arrays(), KEY, epochs=3, batch_size=16, log=log,
    held_out={'test': arrays(30, 1)},
  )  # fmt: skip
  rows = [json.loads(line) for line in log.read_text().splitlines()]
  assert [row['epoch'] for row in rows] == [1, 2, 3]
  np.testing.assert_allclose(
    [row['test'] for row in rows], fitted.history['test']
  )
  out, err = capfd.readouterr()
  assert out == err == '', 'no bar where there is no terminal'


def test_padding_counts_for_nothing():
  batches = padded_batches(arrays(10), 4)
  assert [b['x'].shape for b in batches] == [(4, 2)] * 3
  assert sum(b['weight'].sum() for b in batches) == 10


BAD = {
  'epochs': ({}, {'epochs': 0}, ValueError, 'epochs'),
  'batch of none': ({}, {'batch_size': 0}, ValueError, 'batch_size'),
  'batch above n': ({}, {'batch_size': 63}, ValueError, 'batch_size'),
  'label high': (
    {'labels': np.full(N, 3)},
    {},
    ValueError,
    r'labels.*\[0, 3\)',
  ),
  'label low': ({'labels': np.full(N, -1)}, {}, ValueError, 'labels'),
  'float labels': ({'labels': np.zeros(N)}, {}, TypeError, 'labels'),
  'lengths': ({'labels': np.zeros(9, int)}, {}, ValueError, 'length'),
  'nan': ({'x': np.full((N, 2), np.nan)}, {}, ValueError, 'x holds NaN'),
  'weight': ({'weight': np.full(N, -1.0)}, {}, ValueError, 'weight'),
  'list': ({'x': [[0.0, 0.0]] * N}, {}, TypeError, 'x must be an array'),
  'reserved': ({'index': np.arange(N)}, {}, ValueError, "'index'"),
  'how': ({}, {'how': 'pmpa'}, ValueError, 'how'),
  'held out': (
    {},
    {'held_out': {'t': {'x': 0}}},
    ValueError,
    r"held_out\['t'\]",
  ),
  'held out label': (
    {},
    {'held_out': {'t': {'x': np.zeros((2, 2)), 'labels': np.array([0, 7])}}},
    ValueError,
    r"held_out\['t'\]: labels",
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_names_the_argument(case, tmp_path):
  changes, options, error, message = BAD[case]
  options = {'epochs': 1, 'batch_size': 16, 'log': tmp_path / 'log', **options}
  with pytest.raises(error, match=message):
    fit(plain(), {**arrays(), **changes}, KEY, **options)
  assert not (tmp_path / 'log').exists(), 'nothing is written before the checks'


def test_runs_must_match_their_keys():
  with pytest.raises(ValueError, match='labels is per run'):
    fit_many(
      plain(),
      {'x': arrays()['x'], 'labels': np.zeros((3, N), int)},
      jax.random.split(KEY, 2),
      per_run=('labels',),
      epochs=1,
      batch_size=16,
    )


def test_tables_of_another_size_are_found_out():
  with pytest.raises(ValueError, match='num_examples=62 and shards=8'):
    fit(elr(mlp(), sgd(), N, CLASSES), arrays(), KEY, epochs=1, batch_size=16)


def test_held_out_sets_may_have_scores_of_their_own():
  def mean_logit(predict, state, batch):
    return global_mean(predict(state, batch['x']).logits[:, 0], batch['weight'])

  data, method = arrays(), supervised(cross_entropy, mlp(), sgd())
  held_out = np.stack([data['x'][:7] + 1, data['x'][:7] - 1])
  fitted = fit_many(
    method,
    {**data, 'x': np.stack([data['x']] * 2)},
    jax.random.split(KEY),
    per_run=('x', 'further'),
    epochs=2,
    batch_size=16,
    held_out={'mean': {'x': held_out, 'further': held_out}},
    scores={'mean': mean_logit},
    devices=ONE,
  )
  for r in range(2):
    state = jax.tree.map(lambda a, r=r: a[r], fitted.state)
    expected = method.predict(state, held_out[r]).logits[:, 0].mean()
    found = fitted.history['mean'][r, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  run = functools.partial(fit, method, data, KEY, epochs=1, batch_size=16)
  with pytest.raises(ValueError, match=r"scores has \['test'\]"):
    run(scores={'test': mean_logit})
  with pytest.raises(ValueError, match='or have a score of its own'):
    run(held_out={'bags': {'x': data['x']}})


@pytest.mark.parametrize(
  ('arrays', 'error', 'message'),
  [
    ({'candidates': np.zeros((3, 4), bool)}, ValueError, 'row 0 is empty'),
    ({'candidates': np.eye(3)}, TypeError, r'candidates must be \[n, c\] bool'),
    ({'mask': np.array([[1, 0], [0, 0], [1, 1]], bool)}, ValueError,
     'mask: bag 1 is empty'),
    ({'mask': np.ones((3, 2))}, TypeError, r'mask must be \[n, m\] bool'),
    ({'counts': np.array([0, 1, 3])}, ValueError, 'that of bag 2 does not'),
    ({'counts': np.array([0, -1, 3])}, ValueError, 'that of bag 1 does not'),
    ({'counts': np.array([0, 1, 0.5])}, TypeError, 'counts must be integers'),
    ({'counts': np.array([[2, 0], [0, 3], [1, 1]])}, ValueError, 'bag 1 does'),
  ],
)  # fmt: skip
def test_imprecise_labels_are_checked(arrays, error, message):
  with pytest.raises(error, match=message):
    check_arrays({'x': np.zeros((3, 2, 5), np.float32), **arrays})
