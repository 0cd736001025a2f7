"""The training loop: same numbers everywhere, refits, weights, clear errors."""

import functools
import json
import re
import warnings

import chex
from cost import slow
from fixture_methods import cross_entropy
from fixture_train import CLASSES, N, arrays, network, raw_keys, with_key
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import (
  Aux,
  Refit,
  data_shards,
  global_mean,
  unpack_rows,
)
from jnl.data import augment
from jnl.data._batches import PerRun, check_arrays
from jnl.methods import elr
from jnl.nets import StridedCNN, build, from_linen
from jnl.steps import from_loss, linear, supervised
from jnl.train import (
  Checkpoint,
  Score,
  _fit,
  data_mesh,
  evaluate,
  fit,
  fit_many,
  padded_batches,
  place,
)
from jnl.train import _program as programs
from jnl.train._plan import make_plan

KEY = jax.random.key(0)
ONE = jax.devices()[:1]


# One object for equal methods: what `fit` compiled for it is used again.
@functools.cache
def plain():
  return supervised(cross_entropy, linear(2, CLASSES), optax.sgd(0.1))


def jitter(keys, batch):
  noise = jax.random.key_data(keys)[:, -2:] % 100 / 500
  return {**batch, 'x': batch['x'] + noise}


@functools.cache
def of_plain(held_out=False):
  """An epoch on one device."""
  held_out = {'test': arrays(33, 1)} if held_out else None
  return fit(
    plain(), arrays(), KEY, epochs=1, batch_size=16, held_out=held_out,
    devices=ONE,
  )  # fmt: skip


@functools.cache
def elr_method():
  """Keeps a table of what it predicted."""
  tx, shards = optax.sgd(0.1, momentum=0.9), data_shards(N, 16)
  return elr(network(), tx, num_examples=N, num_classes=CLASSES, shards=shards)


@functools.cache
def of_elr(devices=1, how='jit', loop='python'):
  """Some epochs, augmented and scored."""
  return fit(
    elr_method(), arrays(), KEY, epochs=6, batch_size=16,
    held_out={'test': arrays(33, 1)}, augment=jitter, how=how, loop=loop,
    devices=jax.devices()[:devices],
  )  # fmt: skip


def test_it_learns_and_says_so():
  fitted = of_elr()
  accuracy = fitted.history['test_accuracy']
  assert fitted.history['loss'].shape == accuracy.shape == (6,)
  assert accuracy[-1] > 0.95 > accuracy[0]
  assert fitted.state.step == 6 * (N // 16)
  predict, test = elr_method().predict, arrays(33, 1)
  found = evaluate(predict, fitted.state, test, batch_size=24)
  assert found['accuracy'] == pytest.approx(accuracy[-1])


@pytest.mark.parametrize(
  ('devices', 'how'), [(4, 'jit'), (8, 'shard_map'), slow(8, 'pmap')]
)
def test_the_number_of_devices_changes_nothing(devices, how):
  chex.assert_trees_all_close(
    of_elr(), of_elr(devices, how), atol=2e-6, rtol=1e-5
  )


@pytest.mark.parametrize(('devices', 'expected'), [(6, 4), (5, 4), (3, 2)])
def test_devices_that_do_not_divide_are_used_or_it_is_said(devices, expected):
  devices = jax.devices()[:devices]
  said = f'{expected} of {len(devices)} devices are used.*shards={len(devices)}'
  with pytest.warns(UserWarning, match=said):
    some = fit(
      plain(), arrays(), KEY, epochs=1, batch_size=16, devices=devices,
      held_out={'test': arrays(33, 1)},
    )  # fmt: skip
  kernel = jax.tree.leaves(some.state.params)[0]
  assert len(kernel.sharding.device_set) == expected
  chex.assert_trees_all_close(of_plain(True), some, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
def test_shards_that_are_asked_for_use_every_device():
  fits = []
  for devices in (jax.devices()[:6], ONE):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      method = elr(
        linear(2, CLASSES), optax.sgd(0.1), num_examples=60,
        num_classes=CLASSES, shards=6,
      )  # fmt: skip
      fits.append(
        fit(
          method, arrays(60), KEY, epochs=1, batch_size=18, shards=6,
          devices=devices,
        )
      )  # fmt: skip
  assert len(fits[0].state.extra.rows.sharding.device_set) == 6
  chex.assert_trees_all_close(*fits, atol=2e-6, rtol=1e-5)
  for shards, message in [(5, 'divide the batch size, 18'), (18, 'too few')]:
    with pytest.raises(ValueError, match=message):
      fit(plain(), arrays(), KEY, epochs=1, batch_size=18, shards=shards)


def eventful():
  """ELR with a key in its state, whose table a refit fills."""
  method = with_key(elr_method())

  def collect(state, batch, key):
    return method.predict(state, batch['x']).logits + key_noise(key)

  def update(state, table, key):
    return state._replace(extra=[table, jax.random.fold_in(key, 1)])

  return method._replace(refit=Refit(collect, update))


def key_noise(key):
  return jax.random.key_data(key)[-1] % 100 / 500


RUN_KEYS = jax.random.split(KEY, 3)
DRAWS = np.stack([np.roll(arrays()['labels'], r) for r in range(3)])


@functools.cache
def three_runs(vectorize):
  """On two devices: at once, one run is trained twice and dropped."""
  rows = []
  data = {'x': arrays()['x'], 'labels': PerRun(DRAWS)}
  many = fit_many(
    eventful(), data, RUN_KEYS, epochs=2, batch_size=16,
    held_out={'train': data}, vectorize=vectorize, log=rows.append,
    devices=jax.devices()[:2],
  )  # fmt: skip
  return raw_keys(many), rows[-1]['train_accuracy']


@pytest.mark.slow
def test_many_runs_are_the_single_runs():
  many, _ = three_runs(False)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(many.state))
  for r in range(3):
    data = {**arrays(), 'labels': DRAWS[r]}
    one = fit(
      eventful(), data, RUN_KEYS[r], epochs=2, batch_size=16,
      held_out={'train': data}, devices=ONE,
    )  # fmt: skip
    run = jax.tree.map(lambda a, r=r: a[r], many)
    chex.assert_trees_all_close(raw_keys(one), run, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_many_runs_at_once_are_those_one_by_one():
  many, accuracy = three_runs(True)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(many.state))
  assert accuracy.shape == (3,)
  chex.assert_trees_all_close(three_runs(False)[0], many, atol=1e-5, rtol=1e-5)


def five_runs(loop):
  with pytest.warns(UserWarning, match='5 of 8 devices are used.*5 runs, 1 on'):
    return fit_many(
      plain(), arrays(), jax.random.split(KEY, 5), epochs=1, batch_size=16,
      loop=loop,
    )  # fmt: skip


@pytest.mark.slow
def test_five_runs_have_five_of_eight_devices_in_either_loop():
  fits = [five_runs(loop) for loop in ('python', 'compiled')]
  for fitted in fits:
    kernel = jax.tree.leaves(fitted.state.params)[0]
    assert len(kernel.sharding.device_set) == 5
    assert kernel.addressable_shards[0].data.shape[0] == 1
  chex.assert_trees_all_close(*fits, atol=1e-6, rtol=1e-5)


def test_no_device_ever_holds_more_than_its_part_of_the_data():
  x = np.zeros((128, 500), np.float32)  # 256 kB, and 64 kB held out
  data = {'x': x, 'labels': arrays(128)['labels']}
  held_out = {'x': x[:32], 'labels': arrays(32)['labels']}
  method = supervised(cross_entropy, linear(500, CLASSES), optax.sgd(0.1))
  held = []

  def of_each_device():
    total = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
      for shard in array.addressable_shards:
        total[shard.device] += shard.data.nbytes
    return np.array(list(total.values()))

  before = of_each_device()
  # What goes from device to device was whole on one of them.
  with jax.transfer_guard_device_to_device('disallow_explicit'):
    options = {'epochs': 1, 'batch_size': 16, 'augment': None}
    plan = make_plan(method, data, {}, {}, scores={}, shards=None, **options)
    program = programs.compile_one(plan)
    tables = programs.put_data(program, {'': data})['']
  assert len(tables['x'].rows.sharding.device_set) == 8
  del tables
  fit(
    method, data, KEY, epochs=1, batch_size=16, held_out={'test': held_out},
    log=lambda row: held.append(of_each_device() - before),
  )  # fmt: skip
  assert (held[0] < 1.4 * (256_000 + 64_000) / 8).all(), held


def test_an_evaluation_compiles_once_and_is_split_over_devices(caplog):
  state, predict = place(plain().init(KEY), data_mesh()), plain().predict
  with jax.log_compiles():
    for seed in range(3):
      evaluate(predict, state, arrays(33, seed))
  assert len(re.findall(r'Compiling jit\(collect_rows\)', caplog.text)) == 1
  part = r'ShapedArray\(float32\[40,2\]\)|float32\[40,2\]'
  assert re.search(part, caplog.text), 'padded to a multiple of eight'


def test_convolutions_run_one_by_one(monkeypatch):
  monkeypatch.setattr(programs, 'compile_many', lambda *_: 1 / 0)
  monkeypatch.setattr(programs, 'compile_one', lambda *_, **__: [][0])
  run = functools.partial(
    fit_many, keys=jax.random.split(KEY, 2), epochs=1, batch_size=8
  )
  x = np.zeros((16, 8, 8, 1), np.float32)
  cnn = from_linen(StridedCNN(CLASSES, (4,)), (8, 8, 1))
  with pytest.raises(IndexError):  # one
    run(supervised(cross_entropy, cnn, optax.sgd(0.1)), {**arrays(16), 'x': x})
  with pytest.raises(ZeroDivisionError):  # many
    run(plain(), arrays())


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
    loss_fn, linear(2, CLASSES), optax.sgd(0.1), init_extra=lambda key: start,
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
      log=rows.append, checkpoint=Checkpoint(tmp_path, every=7), devices=ONE,
    )  # fmt: skip
  compiled = re.findall(
    r'Compiling jit\((run_compiled|step|take)\)', caplog.text
  )
  assert compiled == ['run_compiled']
  assert [row['epoch'] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
  ('devices', 'how'),
  [(1, 'jit'), slow(8, 'shard_map'), slow(8, 'jit'), slow(1, 'shard_map')],
)
def test_the_compiled_loop_gives_the_same_numbers(devices, how):
  fits = [of_elr(devices, how, loop) for loop in ('python', 'compiled')]
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
  ]  # fmt: skip
  chex.assert_trees_all_equal(*fits)


def test_a_log_has_a_line_for_each_epoch(tmp_path, capfd):
  log = tmp_path / 'new' / 'log.jsonl'
  fitted = fit(
    plain(), arrays(), KEY, epochs=3, batch_size=16, log=log,
    held_out={'test': arrays(33, 1)}, devices=ONE,
  )  # fmt: skip
  rows = [json.loads(line) for line in log.read_text().splitlines()]
  assert [row['epoch'] for row in rows] == [1, 2, 3]
  np.testing.assert_allclose(
    [row['test_accuracy'] for row in rows], fitted.history['test_accuracy']
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
  'strings': (
    {'x': np.array(['a.png'] * N)},
    {},
    TypeError,
    'x must be numbers.*<U5',
  ),
  'objects': (
    {'name': np.array(['a'] * N, object)},
    {},
    TypeError,
    'name must be num',
  ),
  'per run': ({'x': PerRun(np.zeros((1, N)))}, {}, TypeError, 'got PerRun'),
  'soft off one': (
    {
      'labels': np.eye(3)[np.arange(N) % 3]
      + np.eye(3)[0] * (np.arange(N) == 5)[:, None]
    },
    {},
    ValueError,
    'labels: soft labels.*row [05] ',
  ),
  'soft negative': (
    {'labels': np.tile([-1.0, 2, 0], (N, 1))},
    {},
    ValueError,
    'from -1 to 2',
  ),
  'pixels': (
    {'x': np.full((N, 2), 200, np.uint8)},
    {},
    TypeError,
    r'data: x .*x / 255',
  ),
  'integers': (
    {'x': np.full((N, 2), 200)},
    {},
    TypeError,
    r'whole numbers \(int32\)',
  ),
  'pixels held out': (
    {},
    {'held_out': {'t': {**arrays(9), 'x': np.zeros((9, 2), np.uint8)}}},
    TypeError,
    r"held_out\['t'\]: x holds whole",
  ),
  'held out soft': (
    {},
    {'held_out': {'t': {'x': np.zeros((3, 2)), 'labels': np.eye(3)}}},
    TypeError,
    r"held_out\['t'\]: labels must be integers for the accuracy",
  ),
  'held out of no weight': (
    {},
    {'held_out': {'t': {**arrays(9), 'weight': np.zeros(9)}}},
    ValueError,
    r"held_out\['t'\]: weight is 0 everywhere",
  ),
  'image augmentation': (
    {},
    {'augment': augment.pad_crop},
    TypeError,
    'augment.views',
  ),
  'no batch': (
    {},
    {'augment': lambda keys, b: b['x']},
    TypeError,
    'augment must be',
  ),
  'checkpoint': (
    {},
    {'checkpoint': 'folder'},
    TypeError,
    r'Checkpoint\(folder\), got .fol',
  ),
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


def test_what_is_no_data_and_no_key_is_named():
  run = functools.partial(fit, plain(), epochs=1, batch_size=16)
  with pytest.raises(TypeError, match=r"data must be a dict .*'labels'.*tuple"):
    run((arrays()['x'], arrays()['labels']), KEY)
  for missing in ('labels', 'x'):
    some = {k: v for k, v in arrays().items() if k != missing}
    with pytest.raises(ValueError, match=f"(reads|lacks) '{missing}'"):
      run(some, KEY)
  for key in (0, jax.random.split(KEY)):
    with pytest.raises(TypeError, match=r'key must be made.*jax.random.key\(0'):
      run(arrays(), key)
  many = functools.partial(fit_many, plain(), epochs=1, batch_size=16)
  with pytest.raises(TypeError, match=r'keys must be made .*split'):
    many(arrays(), KEY)


class PassedError(Exception):
  pass


@pytest.fixture
def checks(monkeypatch):
  """Passes what `fit` would go on to compile."""

  def compile_one(*args):
    raise PassedError

  monkeypatch.setattr(programs, 'compile_one', compile_one)

  def passes(method, data, **options):
    with pytest.raises(PassedError):
      fit(method, data, KEY, epochs=1, batch_size=16, **options)

  return passes


def test_what_a_row_of_no_weight_holds_is_not_looked_at(checks):
  data, weight = arrays(), np.ones(N, np.float32)
  weight[3] = 0
  labels = data['labels'].copy()
  labels[3] = -1
  checks(plain(), {**data, 'labels': labels, 'weight': weight})
  checks(plain(), {**data, 'labels': labels, 'labeled': weight > 0})
  held_out = {'t': {**data, 'labels': labels, 'weight': weight}}
  checks(plain(), data, held_out=held_out)
  soft = np.eye(CLASSES)[data['labels']]
  soft[3] = 7
  of_soft = supervised(losses.ce, linear(2, CLASSES), optax.sgd(0.1))
  checks(of_soft, {**data, 'labels': soft, 'weight': weight})
  labels[4] = 9
  with pytest.raises(ValueError, match=r'labels must lie.*to 9'):
    checks(plain(), {**data, 'labels': labels, 'weight': weight})


def test_whole_numbers_may_be_scaled_or_looked_up(checks):
  pixels = {**arrays(), 'x': np.full((N, 2), 200, np.uint8)}

  def scaled(keys, batch):
    return {**batch, 'x': batch['x'] / 255}

  checks(plain(), pixels, augment=scaled)
  with pytest.raises(TypeError, match=r"held_out\['t'\]: x holds whole"):
    checks(plain(), pixels, augment=scaled, held_out={'t': pixels})
  tokens = {**arrays(), 'x': np.ones((N, 4), np.int32)}
  ngram = from_linen(build('ngram', CLASSES), (4,))
  ngram = supervised(cross_entropy, ngram, optax.sgd(0.1))
  checks(ngram, tokens, held_out={'t': tokens})


def test_runs_must_match_their_keys():
  with pytest.raises(ValueError, match='labels is PerRun'):
    fit_many(
      plain(),
      {'x': arrays()['x'], 'labels': PerRun(np.zeros((3, N), int))},
      jax.random.split(KEY, 2),
      epochs=1,
      batch_size=16,
    )


def test_tables_of_another_size_are_found_out():
  for n, shards in [(N, 1), (40, 8), (100, 8)]:
    method = elr(
      linear(2, CLASSES), optax.sgd(0.1), num_examples=n, num_classes=CLASSES,
      shards=shards,
    )  # fmt: skip
    with pytest.raises(ValueError, match='num_examples=62 and shards=8'):
      fit(method, arrays(), KEY, epochs=1, batch_size=16)


def test_held_out_sets_may_have_scores_of_their_own():
  mean_logit = Score(
    lambda outputs, batch: outputs.logits[:, 0],
    lambda rows, arrays: {'logit': global_mean(rows, arrays['weight'])},
  )
  data, method = arrays(), plain()
  held_out = np.stack([data['x'][:7] + 1, data['x'][:7] - 1])
  fitted = fit_many(
    method,
    {**data, 'x': PerRun(np.stack([data['x']] * 2))},
    jax.random.split(KEY),
    epochs=2,
    batch_size=16,
    held_out={'mean': {'x': PerRun(held_out), 'further': PerRun(held_out)}},
    scores={'mean': mean_logit},
    devices=ONE,
  )
  for r in range(2):
    state = jax.tree.map(lambda a, r=r: a[r], fitted.state)
    params = jax.device_get(state.params)
    logits = held_out[r] @ params['weights'] + params['bias']
    found = fitted.history['mean_logit'][r, -1]
    np.testing.assert_allclose(found, logits[:, 0].mean(), rtol=1e-5)
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


def test_the_same_method_and_shapes_are_compiled_once(monkeypatch):
  built = []
  one = programs._one
  count = lambda plan, **rest: built.append(plan) or one(plan, **rest)
  monkeypatch.setattr(programs, '_one', count)
  method = supervised(losses.gce, linear(2, CLASSES), optax.sgd(0.1))
  again = supervised(losses.gce, linear(2, CLASSES), optax.sgd(0.1))

  def run(method, seed=0, n=N):
    how = {'epochs': 1, 'batch_size': 16, 'devices': ONE}
    return fit(method, arrays(n, seed), KEY, **how).history['loss']

  first, other = run(method), run(method, seed=1)
  assert len(built) == 1
  assert first != other
  assert run(method) == first == run(again)
  assert len(built) == 2  # a method that is built anew is another one
  monkeypatch.setattr(programs, 'KEPT', 1)
  run(method, n=N + 16)
  assert len(built) == 3
  assert len(programs._kept) == 1


def test_progress_is_told_without_a_terminal(monkeypatch, capsys):
  monkeypatch.setattr(_fit, 'SECONDS_BETWEEN_LINES', 0)
  fit(
    plain(), arrays(), KEY, epochs=1, batch_size=16, label='ce', devices=ONE,
  )  # fmt: skip
  steps = N // 16
  said = capsys.readouterr().err.splitlines()
  assert [line.rpartition(',')[0] for line in said] == [
    f'ce: {done} of {steps} steps' for done in range(steps + 1)
  ]
