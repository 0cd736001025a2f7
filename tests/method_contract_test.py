"""The contract that every method keeps: one test run over all of them.

Batches of 16 in 8 shards, whose weights lie unevenly over the 8 devices: what
is averaged per device and not globally cannot pass.
"""

import functools
import time

import chex
from fixture_methods import co_divide, reweight
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import optax
import pytest

from jnl import automata, losses
from jnl.base import PAD, Table, pack_rows, write_rows
from jnl.data import epoch_order, index_order, take_batch
from jnl.methods import (
  elr,
  ill_mixed,
  ill_noisy,
  ill_partial,
  ill_semi,
  l2rw,
  mlc,
  mslc,
  mwn,
  proden,
  refine,
  storm,
  weak_em,
)
from jnl.nets import MLP, from_linen
from jnl.steps import supervised, supervised_bags
from jnl.teacher import averaged
from jnl.train import data_mesh, parallel, place, shardings
from jnl.train._checkpoint import open_checkpoints

N, SHARDS, BATCH, CLASSES, DIM = 62, 8, 16, 4, 6
KEY = jax.random.key(5)


def network():
  """16-16 with batch normalization and dropout."""
  net = MLP(CLASSES, (16, 16), batch_norm=True, dropout=0.2)
  return from_linen(net, (DIM,))


def optimizer():
  return optax.sgd(0.1, momentum=0.9)


BAG = CLASSES - 1  # so that labels are counts, not all of them possible


def pixel_network():
  net = MLP(2, (16, 16), batch_norm=True, dropout=0.2)
  return from_linen(net, (DIM // BAG,))


def bag_network():
  net = MLP(2, (16,), batch_norm=True, dropout=0.2)
  return from_linen(net, (16,))


def count_of_labels(logits, batch):
  return automata.count(logits, batch['labels'], batch['mask'])


def of_bags(method):
  """Sees each example as a bag of three, the last often absent."""

  def bags(x):
    return x.reshape(-1, BAG, DIM // BAG)

  def step(state, batch, key):
    mask = jnp.arange(BAG) < 2 + batch['labeled'][:, None]
    views = {name: bags(batch[name]) for name in ('x', 'x_strong')}
    labels = (views['x'][..., 0] > 0).astype(jnp.int32)
    counts = jnp.sum(labels * mask, axis=1)
    known = {'mask': mask, 'instance_labels': labels, 'counts': counts}
    return method.step(state, {**batch, **views, **known}, key)

  def predict(state, x):
    return method.predict(state, x.reshape(-1, DIM // BAG))

  return method._replace(step=step, predict=predict)


METHODS = {
  'supervised': lambda: supervised(losses.gce, network(), optimizer()),
  'elr': lambda: elr(
    network(), optimizer(), num_examples=N, num_classes=CLASSES, shards=SHARDS
  ),
  'ill_noisy': lambda: ill_noisy(
    network(), optimizer(), optax.sgd(0.1), num_classes=CLASSES
  ),
  'ill_partial': lambda: ill_partial(network(), optimizer()),
  'ill_semi': lambda: ill_semi(network(), optimizer(), num_classes=CLASSES),
  'ill_mixed': lambda: ill_mixed(
    network(), optimizer(), optax.sgd(0.1), num_classes=CLASSES
  ),
  'proden': lambda: proden(
    network(), optimizer(), num_examples=N, num_classes=CLASSES, shards=SHARDS
  ),
  'weak_em': lambda: of_bags(
    weak_em(pixel_network(), optimizer(), count_of_labels)
  ),
  'supervised_bags': lambda: of_bags(
    supervised_bags(
      lambda z, batch: losses.count_nll(z, batch['labels'], batch['mask']),
      pixel_network(),
      optimizer(),
    )
  ),
  'refine': lambda: of_bags(
    refine(pixel_network(), bag_network(), optimizer())
  ),
  'averaged': lambda: averaged(
    co_divide(network(), optimizer(), N, SHARDS), decay=0.9
  ),
  'co_divide': lambda: co_divide(network(), optimizer(), N, SHARDS),
  'reweight': lambda: reweight(network(), optimizer()),
  # Weights come from inner products that cancel; without the momentum, which
  # would keep the sum of their roundings.
  'l2rw': lambda: l2rw(
    network(), optax.sgd(0.1), num_examples=N, shards=SHARDS
  ),
  'mwn': lambda: mwn(
    network(), optimizer(), optax.sgd(0.1), num_examples=N, shards=SHARDS
  ),
  # Losses are sums, so that a rate is that of an example; and divergences
  # magnify roundings, of which Adam would make steps.
  'storm': lambda: storm(
    network(),
    optax.sgd(0.1 / BATCH),
    num_examples=N,
    num_classes=CLASSES,
    batch_size=BATCH,
    rescaler_tx=optax.sgd(1e-3),
    shards=SHARDS,
  ),
  'mlc': lambda: mlc(
    network(),
    optimizer(),
    num_examples=N,
    num_features=16,
    num_classes=CLASSES,
    gradient_steps=2,
    shards=SHARDS,
  ),
  'mslc': lambda: mslc(
    network(),
    optimizer(),
    optax.sgd(0.1),
    num_examples=N,
    num_classes=CLASSES,
    warmup=1,
    shards=SHARDS,
  ),
}


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, DIM)).astype(np.float32)
  labels = rng.integers(0, CLASSES, N).astype(np.int32)
  kind = rng.integers(0, 3, N)  # of a label: noisy, partial or missing
  candidates = candidates_of(labels) | (rng.random((N, CLASSES)) < 0.3)
  return {
    'x': x,
    'labels': labels,
    'x_strong': x + rng.normal(size=x.shape).astype(np.float32),
    'candidates': candidates | (kind == 2)[:, None],
    'noisy': kind == 0,
    'labeled': kind < 2,
  }


def candidates_of(labels):
  return labels[..., None] == np.arange(CLASSES)


@functools.cache
def batches():
  """Three batches, a meta stream in each, and weights that shards differ in."""
  tables = {k: pack_rows(v, SHARDS) for k, v in arrays().items()}
  order = epoch_order(jax.random.key(3), N, SHARDS)
  made = []
  for i in range(3):
    batch = dict(take_batch(tables, order, i, BATCH))
    batch |= {
      k + '_meta': v for k, v in take_batch(tables, order, 0, BATCH).items()
    }
    weight = np.ones(BATCH, np.float32)
    weight[:3], weight[4:7], weight[-1] = 0, 3, 0.5
    batch['weight'] = jnp.asarray(np.roll(weight, 5 * i))
    batch['weight_meta'] = jnp.asarray(np.roll(weight, 1))
    made.append(batch)
  return made


def spoiled(batch):
  """The batch with rows of weight 0 that hold anything, some of them padded."""
  batch = {k: np.array(v) for k, v in batch.items()}
  for suffix in ('', '_meta'):
    gone = batch['weight' + suffix] == 0
    some = gone & (np.arange(gone.size) % 2 == 0)
    for name, value in (
      ('x', np.nan),
      ('x_strong', np.inf),
      ('labels', -1),
      ('candidates', False),
      ('labeled', True),
      ('noisy', False),
    ):
      batch[name + suffix][gone] = value
    batch['labels' + suffix][some] = 255
    batch['index' + suffix][some] = PAD
  return batch


def padded(batch):
  """The batch with a row beside each one that is padding, and of garbage."""
  twice = {k: np.repeat(np.asarray(v), 2, axis=0) for k, v in batch.items()}
  for suffix in ('', '_meta'):
    twice['weight' + suffix][1::2] = 0
    twice['index' + suffix][1::2] = PAD
  return spoiled(twice)


class Case:
  """A method and what several tests need of it, compiled once."""

  def __init__(self, method):
    self.method = method
    self.traces = 0
    self.step = jax.jit(self._counted)
    # Placed, as the states of a trainer are: placed differently, they would
    # compile anew.
    one = SingleDeviceSharding(jax.devices()[0])
    self.init = jax.jit(method.init, out_shardings=one)
    self.start = self.init(jax.random.key(0))
    self.refit = jax.jit(self._refit)

  def _counted(self, state, batch, key):
    self.traces += 1
    return self.method.step(state, batch, key)

  @functools.cached_property
  def expected(self):
    return self.run(self.step, self.start)

  def run(self, step, state, key=KEY, change=lambda batch: batch):
    """Two steps, a refit, one more step."""
    metrics = []
    for i, batch in enumerate(map(change, batches())):
      if i == 2:
        placed = jax.tree.map(lambda a: a.sharding, state)
        state = self.refit(jax.device_get(state), key)
        state = jax.device_put(jax.device_get(state), placed)
      state, m = step(state, batch, jax.random.fold_in(key, i))
      metrics.append(m)
    return state, metrics

  def _refit(self, state, key):
    """What the trainer does between epochs, by hand."""
    if self.method.refit is None:
      return state
    tables = {k: pack_rows(v, SHARDS) for k, v in arrays().items()}
    order = index_order(N, SHARDS, BATCH)
    collected = Table(jnp.zeros(()))
    for i in range(order.size // BATCH):
      batch = take_batch(tables, order, i, BATCH)
      rows = self.method.refit.collect(state, batch, key)
      if i == 0:
        collected = pack_rows(jnp.zeros((N, *rows.shape[1:])), SHARDS)
      collected = write_rows(collected, batch['index'], rows)
    return self.method.refit.update(state, collected, key)


@pytest.fixture(params=METHODS, scope='module')
def case(request):
  start = time.perf_counter()
  yield Case(METHODS[request.param]())
  print(f'\n[contract of {request.param}: {time.perf_counter() - start:.1f} s]')


def assert_close(a, b, atol=1e-6):
  chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-6)


def strongly_typed(tree):
  return not any(a.weak_type for a in jax.tree.leaves(tree))


def test_init_is_abstract_and_maps_over_keys(case):
  abstract = jax.eval_shape(case.method.init, jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(abstract, case.start)
  many = jax.eval_shape(
    jax.vmap(case.method.init), jax.random.split(jax.random.key(0), 3)
  )
  jax.tree.map(lambda a, b: chex.assert_shape(b, (3, *a.shape)), abstract, many)
  assert strongly_typed(case.start)


def test_step_keeps_structure_and_compiles_once(case):
  state, metrics = case.expected
  assert case.traces == 1
  chex.assert_trees_all_equal_structs(case.start, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(case.start, state)
  assert strongly_typed((state, metrics))
  assert int(state.step) == 3
  assert all(a.shape == () for m in metrics for a in m.values())


def test_the_key_decides(case):
  chex.assert_trees_all_equal(case.expected, case.run(case.step, case.start))
  other = case.run(case.step, case.start, jax.random.key(6))
  with pytest.raises(AssertionError):
    assert_close(case.expected, other)


def test_rows_of_weight_zero_leave_no_trace(case):
  found = case.run(case.step, case.start, change=spoiled)
  assert case.traces == 1
  assert_close(case.expected, found)


@pytest.mark.parametrize(
  'name', ['elr', 'ill_semi', 'weak_em', 'refine', 'mwn', 'mslc']
)
def test_padding_is_not_counted(name):
  """Not as rows of zeros either, by batch statistics for one."""
  case = Case(METHODS[name]())
  batch, key = batches()[0], KEY
  assert_close(
    case.step(case.start, batch, key), case.step(case.start, padded(batch), key)
  )


@pytest.mark.parametrize(
  ('how', 'check_vma'),
  [('jit', False), ('shard_map', False), ('shard_map', True), ('pmap', False)],
)
def test_eight_devices_equal_one(case, how, check_vma):
  mesh = data_mesh()
  assert mesh.size == 8
  state = place(case.start, mesh)
  step = parallel(case.method.step, state, how, mesh=mesh, check_vma=check_vma)
  state, metrics = case.run(step, state)
  assert_close(case.expected, (state, metrics))
  if how != 'pmap':
    expected = jax.tree.leaves(shardings(state, mesh))
    for a, sharding in zip(jax.tree.leaves(state), expected, strict=True):
      assert a.sharding.is_equivalent_to(sharding, a.ndim)


def restored(state, mesh, folder):
  """The state after a checkpoint, on another mesh."""
  with open_checkpoints(folder, {}, resume=False) as checkpoints:
    checkpoints.save(0, state, 0)
  abstract = jax.tree.map(
    lambda a, sharding: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=sharding
    ),
    state,
    shardings(state, mesh),
  )
  with open_checkpoints(folder, {}, resume=True) as checkpoints:
    found, _ = checkpoints.restore(abstract)
  chex.assert_trees_all_equal(state, found)
  chex.assert_trees_all_equal_structs(state, found)
  return found


def test_a_checkpoint_moves_to_another_number_of_devices(case, tmp_path):
  state, key = case.start, KEY
  for i, batch in enumerate(batches()):
    if i == 2:
      mesh = data_mesh(jax.devices()[:4])
      state = case.refit(jax.device_get(state), key)
      state = restored(state, mesh, tmp_path)
      step = parallel(case.method.step, state, mesh=mesh)
    else:
      step = case.step
    state, _ = step(state, batch, jax.random.fold_in(key, i))
  assert_close(case.expected[0], state)


def test_seeds_and_draws_at_once_equal_one_by_one(case):
  seeds = list(jax.random.split(jax.random.key(2), 3))
  labels = np.random.default_rng(1).integers(0, CLASSES, (3, BATCH), np.int32)
  batch = batches()[0]
  full = np.asarray(batch['candidates']).all(1)
  runs = []
  for key, y in zip(seeds, labels, strict=True):
    draw = {'labels': y, 'candidates': candidates_of(y) | full[:, None]}
    runs.append((case.init(key), {**batch, **draw}, key))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
  states, metrics = jax.jit(jax.vmap(case.method.step))(*stacked)
  for r, run in enumerate(runs):
    found = jax.tree.map(lambda a, r=r: a[r], (states, metrics))
    assert_close(case.step(*run), found)
  assert np.std(metrics['loss']) > 1e-3, 'the runs must differ to say anything'


@pytest.mark.parametrize('scale', [0.0, 1e4])
def test_extreme_logits_leave_everything_finite(case, scale):
  def extreme(path, leaf):
    last = f"['Dense_{2}']" in jax.tree_util.keystr(path)
    return jnp.where(leaf == 0, 1, jnp.sign(leaf)) * scale if last else leaf

  params, extra = jax.tree_util.tree_map_with_path(
    extreme, (case.start.params, case.start.extra)
  )
  start = case.start._replace(params=params, extra=extra)
  logits = case.method.predict(start, arrays()['x']).logits
  assert np.ptp(logits) == 0 if scale == 0 else np.ptp(logits) >= scale
  state, metrics = case.run(case.step, start)
  chex.assert_tree_all_finite((state, metrics))
