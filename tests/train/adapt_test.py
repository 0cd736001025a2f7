"""Streams that are answered while an adapter learns from them."""

import functools
import os
import shutil

import chex
from contract import CLASSES, DIM, HIDDEN
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl.base import Adapter, Outputs, State
from jnl.methods import tent
from jnl.nets import MLP, from_linen
from jnl.train import Checkpoint, adapt

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, SIZE = 38, 16  # the last batch has 6: of 8 devices none of these divides it
X = RNG.normal(size=(N, DIM)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N)
STREAM = {'x': X, 'labels': LABELS}


@functools.cache
def adapter():
  """One object, so that it is compiled once."""
  return tent(model(), optax.adam(0.01))


@functools.cache
def model():
  return from_linen(MLP(CLASSES, (HIDDEN,), batch_norm=True), (DIM,))


def start():
  return adapter().init(*model().init(KEY))


@functools.cache
def on_one():
  return adapt(
    *(adapter(), start(), STREAM, KEY),
    batch_size=SIZE,
    devices=jax.devices()[:1],
  )


def assert_close(a, b):
  chex.assert_trees_all_close(a, b, atol=3e-6, rtol=3e-6)


def test_a_stream_is_answered_in_its_order():
  """As by a loop of one's own, the last batch at its own size."""
  state, answers = start(), []
  step = jax.jit(adapter().step)
  for i in range(0, N, SIZE):
    key = jax.random.fold_in(KEY, i // SIZE)
    state, outputs = step(state, {'x': X[i : i + SIZE]}, key)
    answers.append(outputs)
  found = on_one()
  assert int(found.state.step) == 3
  assert_close(found.state, state)
  whole = jax.tree.map(lambda *a: np.concatenate(a), *answers)
  assert_close(found.outputs, whole)
  assert isinstance(found.outputs.logits, np.ndarray)
  right = found.outputs.logits.argmax(1) == LABELS
  parts = [right[i : i + SIZE].mean() for i in range(0, N, SIZE)]
  np.testing.assert_allclose(found.metrics['accuracy'], parts, rtol=1e-6)
  loss = [o.aux['loss'].mean() for o in answers]
  np.testing.assert_allclose(found.metrics['loss'], loss, rtol=1e-5)
  assert found.metrics['skipped'].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
  'how',
  [
    'jit',
    *(pytest.param(h, marks=pytest.mark.slow) for h in ('shard_map', 'pmap')),
  ],
)
def test_eight_devices_answer_as_one(how):
  found = adapt(*(adapter(), start(), STREAM, KEY), batch_size=SIZE, how=how)
  assert_close(on_one(), found)


def test_streams_go_on():
  """Two parts one after the other are the whole, but for the keys."""
  options = {'batch_size': SIZE, 'devices': jax.devices()[:1]}
  first = adapt(adapter(), start(), {'x': X[:SIZE]}, KEY, **options)
  rest = adapt(adapter(), first.state, {'x': X[SIZE:]}, KEY, **options)
  assert_close(rest.state, on_one().state)
  assert 'accuracy' not in rest.metrics


def test_idle_devices_are_named():
  with pytest.warns(UserWarning, match='5 of 8 devices are used'):
    adapt(adapter(), start(), {'x': X[:20]}, KEY, batch_size=10)


def saying(rows):
  """An adapter that answers by the batch itself, and counts its steps."""

  def init(params, stats):
    return State(jnp.int32(0), params, stats, (), ())

  def step(state, batch, key):
    del key
    assert 'labels' not in batch
    outputs = Outputs(batch['x'], batch['x'], rows(batch))
    return state._replace(step=state.step + 1), outputs

  return Adapter(init, step)


def test_weights_and_unknown_labels_in_the_metrics():
  echo = saying(lambda batch: {'place': batch['index'], 'wide': batch['x']})
  x = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
  labels = np.array([0, 1, 0, -1, -1, -1])
  weight = np.array([1, 0, 3, 1, 1, 1], np.float32)
  data = {'x': x, 'labels': labels, 'weight': weight}
  found = adapt(
    *(echo, echo.init({}, {}), data, KEY),
    batch_size=4,
    devices=jax.devices()[:1],
  )
  np.testing.assert_array_equal(found.outputs.aux['place'], np.arange(6))
  np.testing.assert_allclose(found.metrics['accuracy'], [0.25, np.nan])
  np.testing.assert_allclose(found.metrics['place'], [9 / 5, 4.5])
  assert sorted(found.metrics) == ['accuracy', 'place']
  np.testing.assert_array_equal(found.outputs.logits, x)


def test_a_stream_that_was_interrupted_goes_on(tmp_path):
  folder = tmp_path / 'checkpoints'
  options = {'batch_size': SIZE, 'devices': jax.devices()[:1]}
  args = adapter(), start(), STREAM, KEY
  saved = Checkpoint(folder, every=1)
  whole = adapt(*args, **options, checkpoint=saved)
  chex.assert_trees_all_equal(whole, on_one())
  assert sorted(os.listdir(folder)) == ['1', '2', '3']
  for last in ('3', '2'):
    shutil.rmtree(folder / last)
  again = saved._replace(resume=True)
  chex.assert_trees_all_equal(adapt(*args, **options, checkpoint=again), whole)
  chex.assert_trees_all_equal(adapt(*args, **options, checkpoint=again), whole)
  shutil.rmtree(folder / '3')
  options['devices'] = None  # all of them, instead of one
  assert_close(adapt(*args, **options, checkpoint=again), whole)
  other = {**STREAM, 'x': X + 1}
  with pytest.raises(ValueError, match='belongs to another run'):
    adapt(*args[:2], other, KEY, **options, checkpoint=again)
  params = jax.tree.map(lambda a: a + 1, args[1].params)
  moved = args[1]._replace(params=params)
  with pytest.raises(ValueError, match='belongs to another run'):
    adapt(args[0], moved, STREAM, KEY, **options, checkpoint=again)
  with pytest.raises(ValueError, match='already holds checkpoints'):
    adapt(*args, **options, checkpoint=saved)


BAD = {
  'an array': ({'data': X}, 'data must be a dict of arrays'),
  'no arrays': ({'data': {}}, 'has no arrays'),
  'no rows': ({'data': {'x': X[:0]}}, 'one length above 0'),
  'lengths': ({'data': {'x': X, 'labels': LABELS[:3]}}, 'one length above 0'),
  'labels [n, 1]': ({'data': {'x': X, 'labels': LABELS[:, None]}}, 'labels'),
  'labels are floats': (
    {'data': {'x': X, 'labels': LABELS / 1}},
    'labels must be',
  ),
  'a weight below 0': (
    {'data': {'x': X, 'weight': 1.0 - (LABELS == 0) * 2}},
    'at least 0; row',
  ),
  'index': ({'data': {'x': X, 'index': LABELS}}, 'place in the stream'),
  'a last batch of one': ({'data': {'x': X[:33]}}, 'at least 2 examples'),
  'pixels': ({'data': {'x': LABELS[:, None] + np.zeros(DIM, int)}}, 'pixels'),
  'size': ({'batch_size': 0}, 'batch_size must be'),
  'how': ({'how': 'vmap'}, 'how must be one of'),
  'devices': ({'devices': []}, 'devices must have'),
  'a seed': ({'key': 0}, 'key must be made'),
  'params': ({'state': {}}, 'state must be'),
  'a method': ({'adapter': tent}, 'adapter must be'),
  'checkpoint': ({'checkpoint': 'folder'}, 'checkpoint must be'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_is_named_before_anything_is_computed(name):
  change, message = BAD[name]
  given = {
    'adapter': adapter(),
    'state': start(),
    'data': STREAM,
    'key': KEY,
    'batch_size': SIZE,
    'devices': jax.devices()[:1],
  }
  with pytest.raises((ValueError, TypeError), match=message):
    adapt(**{**given, **change})


def test_adapters_that_give_something_else():
  state = saying(None).init({}, {})
  one = saying(lambda batch: {'loss': batch['x'].mean()})
  with pytest.raises(ValueError, match=r"aux\['loss'\] of shape"):
    adapt(one, state, {'x': X}, KEY, batch_size=8)
  forgets = Adapter(one.init, lambda s, b, k: (s.step, Outputs(b['x'], b['x'])))
  with pytest.raises(ValueError, match='a state like the one'):
    adapt(forgets, state, {'x': X}, KEY, batch_size=8)
