"""Second streams: their order, wherever and however they are read."""

import functools

import chex
from cost import slow
from fixture_train import CLASSES, N, network
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import (
  PAD,
  Aux,
  Method,
  Table,
  data_shards,
  global_mean,
  pack_rows,
  read_rows,
  unpack_rows,
  unplaced,
  write_rows,
)
from jnl.data import PerRun, stream_order
from jnl.steps import (
  from_loss,
  linear,
  model_keys,
  of_stream,
  training_pass,
)
from jnl.train import (
  Checkpoint,
  Stream,
  check_layout,
  data_mesh,
  fit,
  fit_many,
  parallel,
  place,
)

N_U, BATCH, BATCH_U = 63, 16, 24
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DATA = {
  'x': RNG.normal(size=(N, 2)).astype(np.float32),
  'labels': RNG.integers(0, CLASSES, N).astype(np.int32),
}
UNLABELED = {'x': RNG.normal(size=(N_U, 2)).astype(np.float32)}
STREAMS = {'u': Stream(UNLABELED, BATCH_U)}
OPTIONS = {'epochs': 3, 'batch_size': BATCH}


def consistent(model) -> Method:
  """Learns labels, and to be sure elsewhere; counts how often u has come."""

  def loss_fn(params, state, batch, key):
    own = of_stream(batch, 'u')
    outputs, stats = training_pass(
      model, params, state.stats, batch['x'], model_keys(key, batch),
      batch['weight'],
    )  # fmt: skip
    unsure, _ = training_pass(
      model, params, stats, own['x'], model_keys(key, own, 'u'), own['weight']
    )
    loss = global_mean(
      losses.ce(outputs.logits, batch['labels']), batch['weight']
    )
    entropy = global_mean(jax.nn.softmax(unsure.logits).max(-1), own['weight'])
    seen = read_rows(state.extra, own['index']) + 1
    extra = write_rows(state.extra, own['index'], seen, where=own['weight'] > 0)
    return loss - 0.1 * entropy, Aux(stats, extra, {'sure': entropy})

  return from_loss(
    loss_fn,
    model,
    optax.sgd(0.1),
    init_extra=lambda key: pack_rows(jnp.zeros(N_U), 8, 'u'),
  )


def summing() -> Method:
  """Has the sums of a stream as gradients, and their mean as a metric."""

  def loss_fn(params, state, batch, key):
    del key
    logits = batch['x_u'] @ params['weights']
    loss = global_mean(logits.sum(-1), batch['weight_u'])
    mean = global_mean(batch['x_u'], batch['weight_u'])
    return loss, Aux(state.stats, metrics={'mean': mean})

  return from_loss(loss_fn, linear(2, CLASSES), optax.sgd(0.1))


def assert_same(a, b, atol=2e-6):
  chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


def train(devices=1, **options):
  return fit(
    consistent(network()), DATA, KEY, devices=jax.devices()[:devices],
    **{'streams': STREAMS, **OPTIONS, **options},
  )  # fmt: skip


@functools.cache
def expected():
  return train()


def test_a_stream_goes_over_its_examples_again_and_again():
  per_pass, columns = N_U // BATCH_U, BATCH_U // 8
  order = jax.jit(
    functools.partial(stream_order, KEY), static_argnums=(0, 1, 2),
    static_argnames='steps',
  )  # fmt: skip
  whole = order(N_U, 8, BATCH_U, first=0, steps=9)
  for first in (0, 3, 4):
    part = order(N_U, 8, BATCH_U, first=first, steps=5)
    assert part.shape == (8, 5 * columns)
    np.testing.assert_array_equal(
      part, whole[:, first * columns : (first + 5) * columns]
    )
  one = np.asarray(order(7, 1, 3, first=0, steps=40))[0]
  for number in range(20):  # passes of two batches, with one example left out
    own = one[6 * number : 6 * number + 6]
    assert len(set(own)) == 6
    assert set(own) < set(range(7))
  assert len({tuple(one[6 * i : 6 * i + 6]) for i in range(20)}) > 10
  assert per_pass == 2
  assert (np.asarray(whole) < N_U).all()
  assert not (np.asarray(whole) == PAD).any()


def test_every_example_of_a_stream_is_seen_where_it_belongs():
  seen = np.asarray(unpack_rows(expected().state.extra, N_U))
  assert seen.sum() == 3 * (N // BATCH) * BATCH_U
  assert (seen > 0).all()
  assert (expected().history['unplaced'] == 0).all()
  assert expected().history['sure'].shape == (3,)


@pytest.mark.parametrize(
  ('devices', 'options'),
  [
    (8, {}),
    slow(8, {'how': 'shard_map'}),
    slow(2, {'loop': 'compiled'}),
    slow(4, {'stream': 0}),
  ],
)
def test_streams_are_the_same_on_any_number_of_devices(devices, options):
  assert_same(expected(), train(devices, **options))


def test_a_run_is_resumed_to_the_bit(tmp_path):
  at = functools.partial(Checkpoint, tmp_path, every=5)
  train(epochs=2, checkpoint=at())
  more = train(checkpoint=at(resume=True))
  chex.assert_trees_all_equal(expected(), more)
  other = {'u': Stream({'x': UNLABELED['x'] + 1}, BATCH_U)}
  with pytest.raises(ValueError, match='streams'):
    train(streams=other, epochs=4, checkpoint=at(resume=True))


@pytest.mark.slow
def test_runs_have_parts_of_a_stream_to_themselves():
  keys = jax.random.split(KEY, 3)
  own = np.stack([UNLABELED['x'] * r for r in range(3)])
  extra = RNG.normal(size=(N_U, 2)).astype(np.float32)  # shared, not copied
  many = fit_many(
    summing(), DATA, keys, devices=jax.devices()[:2], **OPTIONS,
    streams={'u': Stream({'x': PerRun(own), 'other': extra}, BATCH_U)},
  )  # fmt: skip
  for r in (0, 2):
    one = fit(
      summing(), DATA, keys[r], devices=jax.devices()[:1], **OPTIONS,
      streams={'u': Stream({'x': own[r], 'other': extra}, BATCH_U)},
    )  # fmt: skip
    assert_same(jax.tree.map(lambda a, r=r: a[r], many), one, atol=1e-5)
  assert np.ptp(many.history['mean'], axis=0).min() > 1e-3


def test_a_stream_has_an_augmentation_of_its_own():
  seen = []

  def doubled(keys, batch):
    assert keys.shape == (BATCH_U,)
    assert set(batch) == {'x', 'index', 'weight'}
    return {**batch, 'x': 2 * batch['x'], 'x_strong': batch['x']}

  def loss_fn(params, state, batch, key):
    del key
    seen.append(sorted(batch))
    good = global_mean(
      jnp.all(batch['x_u'] == 2 * batch['x_strong_u'], -1), batch['weight_u']
    )
    zero = 0.0 * sum(jnp.sum(p) for p in jax.tree.leaves(params))
    return zero, Aux(state.stats, metrics={'good': good})

  method = from_loss(loss_fn, linear(2, CLASSES), optax.sgd(0.1))
  streams = {'u': Stream(UNLABELED, BATCH_U, doubled)}
  found = fit(method, DATA, KEY, streams=streams, **OPTIONS)
  assert (found.history['good'] == 1).all()
  assert seen[0] == [
    'index', 'index_u', 'labels', 'weight', 'weight_u', 'x', 'x_strong_u', 'x_u'
  ]  # fmt: skip


def test_tables_know_whose_examples_they_are_of():
  main, of_u = pack_rows(jnp.zeros(8), 2), pack_rows(jnp.zeros(12), 2, 'u')
  batch = {'index': np.array([0, 1, 4, 5]), 'index_u': np.array([0, 5, 6, 11])}
  state = {'main': main, 'u': of_u}
  assert float(unplaced(state, batch)['unplaced']) == 0
  check_layout(state, batch)
  wrong = {**batch, 'index_u': np.array([0, 5, 6, 12])}
  assert float(unplaced(state, wrong)['unplaced']) == 0.25
  with pytest.raises(ValueError, match='index_u: example 12, number 3'):
    check_layout(state, wrong)
  written = write_rows(of_u, batch['index_u'], jnp.ones(4))
  assert written.stream == 'u'
  assert isinstance(written, Table)
  mesh = data_mesh(jax.devices()[:2])
  step = parallel(
    lambda s, b, k: (s, {'n': b['index_u'].size}), state, mesh=mesh
  )
  with pytest.raises(ValueError, match='index_u: example 12'):
    step(place(state, mesh), wrong, KEY)


@pytest.mark.parametrize(
  ('streams', 'error', 'message'),
  [
    ({'u': Stream(UNLABELED, 64)}, ValueError,
     r"streams\['u'\]: batch_size must lie between 1 and n = 63, got 64"),
    ({'u': Stream(UNLABELED, 20)}, ValueError,
     r"streams\['u'\]: shards must divide the batch size, 20, got 8"),
    ({'u': (UNLABELED, 8)}, TypeError, r"streams\['u'\] must be a Stream"),
    ([Stream(UNLABELED, 8)], TypeError, 'streams must be a dict'),
    ({'': Stream(UNLABELED, 8)}, ValueError, 'the name of a stream'),
    ({'u v': Stream(UNLABELED, 8)}, ValueError, 'the name of a stream'),
    ({'u': Stream({'x': np.full((16, 2), np.nan)}, 8)}, ValueError,
     r"streams\['u'\]: x holds NaN"),
    ({'u': Stream({**UNLABELED, 'labels': np.full(N_U, 3)}, 24)}, ValueError,
     r"streams\['u'\]: labels must lie"),
    ({'u': Stream(UNLABELED, 24, lambda x: x)}, TypeError,
     r"streams\['u'\]: augment must be a function"),
    ({'v': Stream(UNLABELED, 24)}, ValueError,
     r"a table of the stream 'u', and streams has \['v'\]"),
    ({'u': Stream({'x': np.zeros((72, 2), np.float32)}, 24)}, ValueError,
     r"72 examples of streams\['u'\] in batches of 24 need \(8, 9\)"),
    ({'u': Stream({'x': np.zeros((N_U, 2), np.uint8)}, 24)}, TypeError,
     'x_u holds whole numbers'),
  ],
)  # fmt: skip
def test_bad_streams_are_named(streams, error, message):
  with pytest.raises(error, match=message):
    fit(
      consistent(linear(2, CLASSES)), DATA, KEY, streams=streams, shards=8,
      **OPTIONS,
    )  # fmt: skip


def test_a_name_that_hides_an_array_and_one_that_is_missing():
  data = {**DATA, 'x_u': DATA['x']}
  with pytest.raises(ValueError, match=r"\['u'\] makes 'x_u' of its 'x'"):
    fit(summing(), data, KEY, streams=STREAMS, **OPTIONS)
  with pytest.raises(ValueError, match=r"lacks 'x_u'.*fit\(streams=\{'u'"):
    of_stream(DATA, 'u')
  assert data_shards(N_U, BATCH_U) == 8
