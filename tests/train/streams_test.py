"""Second streams: their order, wherever and however they are read."""

import functools

import chex
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
from jnl.nets import MLP, from_linen
from jnl.steps import from_loss, model_keys, of_stream, training_pass
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

N, N_U, BATCH, BATCH_U, CLASSES = 62, 63, 16, 24, 3
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DATA = {
  'x': RNG.normal(size=(N, 2)).astype(np.float32),
  'labels': RNG.integers(0, CLASSES, N).astype(np.int32),
}
UNLABELED = {'x': RNG.normal(size=(N_U, 2)).astype(np.float32)}
STREAMS = {'u': Stream(UNLABELED, BATCH_U)}
OPTIONS = {'epochs': 3, 'batch_size': BATCH}


def consistent(shards=8) -> Method:
  """Learns labels, and to be sure elsewhere; counts how often u has come."""
  model = from_linen(MLP(CLASSES, (8,), dropout=0.2), (2,))

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
    init_extra=lambda key: pack_rows(jnp.zeros(N_U), shards, 'u'),
  )


def assert_same(a, b, atol=2e-6):
  chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


@functools.cache
def expected():
  return fit(
    consistent(),
    DATA,
    KEY,
    streams=STREAMS,
    devices=jax.devices()[:1],
    **OPTIONS,
  )


def test_a_stream_goes_over_its_examples_again_and_again():
  per_pass, shards = N_U // BATCH_U, 8
  for first in (0, 3, 4):
    order = stream_order(KEY, N_U, shards, BATCH_U, first=first, steps=5)
    assert order.shape == (shards, 5 * BATCH_U // shards)
    whole = stream_order(KEY, N_U, shards, BATCH_U, first=0, steps=9)
    columns = BATCH_U // shards
    np.testing.assert_array_equal(
      order, whole[:, first * columns : (first + 5) * columns]
    )
  one = np.asarray(stream_order(KEY, 7, 1, 3, first=0, steps=40))[0]
  for number in range(20):  # passes of two batches, with one example left out
    own = one[6 * number : 6 * number + 6]
    assert len(set(own)) == 6
    assert set(own) < set(range(7))
  assert len({tuple(one[6 * i : 6 * i + 6]) for i in range(20)}) > 10
  assert per_pass == 2
  assert (np.asarray(order) < N_U).all()
  assert not (np.asarray(order) == PAD).any()


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
    (8, {'how': 'shard_map'}),
    (2, {'loop': 'compiled'}),
    (4, {'stream': 0}),
  ],
)
def test_streams_are_the_same_on_any_number_of_devices(devices, options):
  found = fit(
    consistent(),
    DATA,
    KEY,
    streams=STREAMS,
    devices=jax.devices()[:devices],
    **OPTIONS,
    **options,
  )
  assert_same(expected(), found)


def test_a_run_is_resumed_to_the_bit(tmp_path):
  at = functools.partial(Checkpoint, tmp_path, every=5)
  run = functools.partial(
    fit, consistent(), DATA, KEY, devices=jax.devices()[:1], batch_size=BATCH
  )
  run(streams=STREAMS, epochs=2, checkpoint=at())
  more = run(streams=STREAMS, epochs=3, checkpoint=at(resume=True))
  chex.assert_trees_all_equal(expected(), more)
  other = {'u': Stream({'x': UNLABELED['x'] + 1}, BATCH_U)}
  with pytest.raises(ValueError, match='streams'):
    run(streams=other, epochs=4, checkpoint=at(resume=True))


def test_runs_have_parts_of_a_stream_to_themselves():
  keys = jax.random.split(KEY, 3)
  own = np.stack([UNLABELED['x'] * r for r in range(3)])
  extra = RNG.normal(size=(N_U, 2)).astype(np.float32)  # shared, not copied
  many = fit_many(
    consistent(),
    DATA,
    keys,
    streams={'u': Stream({'x': PerRun(own), 'other': extra}, BATCH_U)},
    devices=jax.devices()[:2],
    **OPTIONS,
  )
  for r in (0, 2):
    one = fit(
      consistent(),
      DATA,
      keys[r],
      streams={'u': Stream({'x': own[r], 'other': extra}, BATCH_U)},
      devices=jax.devices()[:1],
      **OPTIONS,
    )
    assert_same(jax.tree.map(lambda a, r=r: a[r], many), one, atol=1e-5)


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

  method = from_loss(loss_fn, from_linen(MLP(3, ()), (2,)), optax.sgd(0.1))
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
    fit(consistent(), DATA, KEY, streams=streams, shards=8, **OPTIONS)


def test_a_name_that_hides_an_array_and_one_that_is_missing():
  data = {**DATA, 'x_u': DATA['x']}
  with pytest.raises(ValueError, match=r"\['u'\] makes 'x_u' of its 'x'"):
    fit(consistent(), data, KEY, streams=STREAMS, **OPTIONS)
  with pytest.raises(ValueError, match=r"lacks 'x_u'.*fit\(streams=\{'u'"):
    of_stream(DATA, 'u')
  assert data_shards(N_U, BATCH_U) == 8
