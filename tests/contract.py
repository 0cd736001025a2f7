"""What every method keeps, as tests to inherit beside the tests of a method.

  from contract import CLASSES, N, SHARDS, Contract, network, optimizer

  class TestContract(Contract):
    def make(self):
      return mine(
        network(), optimizer(), num_examples=N, num_classes=CLASSES,
        shards=SHARDS,
      )

`examples` shows the arrays that such a method finds in a batch; one that wants
others overrides `arrays`, and `streams` if it learns from a second one. Batches
of 16 in 8 shards, whose weights lie unevenly over the 8 devices: what is
averaged per device and not globally cannot pass. `AdapterContract` is what
every adapter keeps.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import optax
import pytest

from jnl.base import PAD, Model, Outputs, global_sum, pack_rows
from jnl.data import index_order
from jnl.nets import MLP, from_linen
from jnl.train import data_mesh, open_checkpoints, parallel, shardings

N, SHARDS, BATCH, CLASSES, DIM, HIDDEN = 62, 8, 16, 4, 6, 16
BAG = CLASSES - 1  # so that labels are counts of bags
KEY = jax.random.key(5)
LAST = ("['logits']", "['Dense_1']")  # the last layers of both networks
GARBAGE = {'f': (np.nan, np.inf), 'i': (-1, 255), 'b': (False, True)}


def network(dim=DIM, classes=CLASSES):
  """16 hidden units, batch statistics and dropout; quick to compile.

  What is random is read off the bits of the keys.
  """
  rng = np.random.default_rng(0)
  shapes = {'hidden': (2, dim, HIDDEN), 'logits': (2, HIDDEN, classes)}
  drawn = {
    k: (rng.normal(size=shape) / shape[1] ** 0.5).astype(np.float32)
    for k, shape in shapes.items()
  }

  def init(key):
    share = jax.random.key_data(key)[-1] % 1000 / 1000
    params = {k: share * a + (1 - share) * b for k, (a, b) in drawn.items()}
    return params, {'mean': jnp.zeros(HIDDEN)}

  def apply(params, stats, x, keys, train, mask=None):
    h, mean = x @ params['hidden'], stats['mean']
    if train:
      counted = jnp.where(mask[:, None], h, 0).sum(0), mask.sum()
      total, count = map(global_sum, counted)
      mean = total / count
      stats = {'mean': 0.9 * stats['mean'] + 0.1 * mean}
    h = jnp.tanh(h - mean)
    if train:
      bits = jax.random.key_data(keys)[:, -1:] >> np.arange(HIDDEN)
      h = jnp.where(bits & 3 > 0, h, 0)
    return Outputs(h @ params['logits'], h), stats

  return Model(init, apply)


def linen_network():
  """The same as users have it: with batch normalization, of Flax."""
  return from_linen(
    MLP(CLASSES, (HIDDEN,), batch_norm=True, dropout=0.2), (DIM,)
  )


def instance_network():
  """The same of the instances of `bags`, of two classes."""
  return network(DIM // BAG, 2)


def optimizer():
  return optax.sgd(0.1, momentum=0.9)


def examples():
  """[N, ...], by turns of noisy, partial and missing labels."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, DIM)).astype(np.float32)
  labels = rng.integers(0, CLASSES, N, np.int32)
  kind = rng.integers(0, 3, N)
  candidates = labels[:, None] == np.arange(CLASSES)
  candidates |= rng.random((N, CLASSES)) < 0.3
  return {
    'x': x,
    'x_strong': x + rng.normal(size=x.shape).astype(np.float32),
    'labels': labels,
    'candidates': candidates | (kind == 2)[:, None],
    'noisy': kind == 0,
    'labeled': kind < 2,
  }


def bags():
  """[N, ...], bags of three, of which the last is often absent."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, BAG, DIM // BAG)).astype(np.float32)
  mask = np.arange(BAG) < rng.integers(2, BAG + 1, N)[:, None]
  truth = (x[..., 0] > 0).astype(np.int32)
  return {
    'x': x,
    'x_strong': x + rng.normal(size=x.shape).astype(np.float32),
    'mask': mask,
    'instance_labels': truth,
    'counts': (truth * mask).sum(1, dtype=np.int32),
    'labels': rng.integers(0, CLASSES, N, np.int32),  # counts, some impossible
  }


def uneven(size, shift):
  """Weights [size] in which the devices differ."""
  weight = np.ones(size, np.float32)
  weight[:3], weight[4:7], weight[-1] = 0, 3, 0.5
  return np.roll(weight, shift)


def random_order():
  """As `data.epoch_order` has it, [SHARDS, m]: what is absent comes last."""
  rows = np.arange(-(-N // SHARDS) * SHARDS).reshape(SHARDS, -1)
  order = np.random.default_rng(3).permuted(rows, axis=1)
  last = np.argsort(order >= N, axis=1, kind='stable')
  return np.take_along_axis(order, last, axis=1)


def taken(arrays, order, i, size):
  """The i-th batch along an order, as `data.take_batch` has it."""
  columns = size // SHARDS
  index = order[:, i * columns : (i + 1) * columns].reshape(-1)
  there = index < N  # the others are padding

  def rows(values):
    picked = values[np.where(there, index, 0)]
    picked[~there] = 0
    return picked

  batch = jax.tree.map(rows, arrays)
  return {**batch, 'index': index, 'weight': there.astype(np.float32)}


def spoiled(batch):
  """The batch with rows of weight 0 that hold anything, some of them padded."""
  rng = np.random.default_rng(1)
  gone = batch['weight'] == 0

  def garbled(values):
    low, high = GARBAGE[values.dtype.kind]
    pick, values = rng.random(len(values)) < 0.5, values.copy()
    values[gone & pick], values[gone & ~pick] = low, high
    return values

  index = np.where(gone & (rng.random(len(gone)) < 0.5), PAD, batch['index'])
  rest = {k: v for k, v in batch.items() if k not in ('index', 'weight')}
  return {**batch, **jax.tree.map(garbled, rest), 'index': index}


def padded(batch):
  """The batch with a row beside each one that is padding, and of garbage."""
  twice = jax.tree.map(lambda v: np.repeat(v, 2, axis=0), batch)
  twice['weight'][1::2], twice['index'][1::2] = 0, PAD
  return spoiled(twice)


def joined(streams, change=lambda batch: batch):
  """The batch that a step sees: `x`, and `x_u` of the stream `u`."""
  return {
    f'{k}_{name}' if name else k: values
    for name, batch in streams.items()
    for k, values in change(batch).items()
  }


class Case:
  """A method and what several tests need of it, compiled once."""

  def __init__(self, contract):
    self.method = contract.make()
    self.arrays = contract.arrays()
    sizes = {'': BATCH, **contract.streams()}
    self.batches = [self._streams(i, sizes) for i in range(3)]
    self.traces = 0
    self.step = jax.jit(self._counted)
    # Placed, as the states of a trainer are: placed differently, they would
    # compile anew.
    one = SingleDeviceSharding(jax.devices()[0])
    self.init = jax.jit(self.method.init, out_shardings=one)
    self.start = self.init(jax.random.key(0))
    if self.method.refit is not None:
      self.collect = jax.jit(self.method.refit.collect)
      self.update = jax.jit(self.method.refit.update)

  def _streams(self, i, sizes):
    """A batch of each stream, by name; that of the first one is empty."""
    order = random_order()
    return {
      name: {
        **taken(self.arrays, order, 0 if name else i, size),
        'weight': uneven(size, 1 if name else 5 * i),
      }
      for name, size in sizes.items()
    }

  def _counted(self, state, batch, key):
    self.traces += 1
    return self.method.step(state, batch, key)

  @functools.cached_property
  def expected(self):
    return self.run(self.step, self.start)

  @functools.cached_property
  def on_eight(self):
    """The step in the strictest mode there is."""
    return parallel(self.method.step, self.start, 'shard_map')

  def run(self, step, state, key=KEY, **change):
    """Two steps, a refit, one more step."""
    metrics = []
    for i, streams in enumerate(self.batches):
      if i == 2:
        placed = jax.tree.map(lambda a: a.sharding, state)
        state = jax.device_put(jax.device_get(self.refit(state, key)), placed)
      batch, key_step = joined(streams, **change), jax.random.fold_in(key, i)
      state, m = step(state, batch, key_step)
      metrics.append(m)
    return state, metrics

  def refit(self, state, key):
    """What the trainer does between epochs, by hand."""
    state = jax.device_get(state)
    if self.method.refit is None:
      return state
    order = index_order(N, SHARDS, BATCH)
    batches = [
      taken(self.arrays, order, i, BATCH) for i in range(order.size // BATCH)
    ]
    rows = [self.collect(state, batch, key) for batch in batches]
    index = np.concatenate([batch['index'] for batch in batches])
    in_order = np.argsort(index)[:N]  # padding comes last
    tables = jax.tree.map(
      lambda *rows: pack_rows(np.concatenate(rows)[in_order], SHARDS), *rows
    )
    return self.update(state, tables, key)


# One at a time: what was compiled for a method goes with its last test.
case_of = functools.lru_cache(maxsize=1)(lambda contract: Case(contract()))


def assert_close(a, b, atol=3e-6):
  """But for some thirty roundings: sums over devices have another order."""
  chex.assert_trees_all_close(a, b, atol=atol, rtol=3e-6)


def strongly_typed(tree):
  return not any(a.weak_type for a in jax.tree.leaves(tree))


def check_eight(case, step):
  """Eight devices do what one does; the state that they end with."""
  mesh = data_mesh()
  assert mesh.size == 8
  start = jax.device_put(
    jax.device_get(case.start), shardings(case.start, mesh)
  )
  state, metrics = case.run(step, start)
  assert_close(case.expected, (state, metrics))
  return state


def check_placed(state):
  """Everything lies where the state of a trainer lies."""
  jax.tree.map(
    lambda a, where: chex.assert_equal(
      a.sharding.is_equivalent_to(where, a.ndim), True
    ),
    state,
    shardings(state, data_mesh()),
  )


def check_mode(case, how):
  """In the global view, by pmap, or without the check of shard_map."""
  step = parallel(case.method.step, case.start, how, check_vma=False)
  state = check_eight(case, step)
  if how == 'jit':
    check_placed(state)


def restored(state, mesh, folder):
  """The state after a checkpoint, on a mesh."""
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


class Contract:
  """What every method keeps.

  Attributes:
    pads: whether it takes batches of another size.
  """

  pads = True

  def make(self):
    """The method, of N examples in SHARDS, CLASSES and batches of BATCH."""
    raise NotImplementedError

  def arrays(self):
    """The training set, arrays [N, ...] by name."""
    return examples()

  def streams(self):
    """Second streams of the same arrays: their names, and their batch sizes."""
    return {}

  @property
  def case(self):
    return case_of(type(self))

  def test_init_is_abstract_and_maps_over_keys(self):
    init, start = self.case.method.init, self.case.start
    abstract = jax.eval_shape(init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, start)
    keys = jax.random.split(jax.random.key(0), 3)
    jax.tree.map(
      lambda a, b: chex.assert_shape(b, (3, *a.shape)),
      abstract,
      jax.eval_shape(jax.vmap(init), keys),
    )
    assert strongly_typed(start)

  def test_step_keeps_structure_and_compiles_once(self):
    start, (state, metrics) = self.case.start, self.case.expected
    assert self.case.traces == 1
    chex.assert_trees_all_equal_structs(start, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, state)
    assert strongly_typed((state, metrics))
    assert int(state.step) == 3
    assert all(a.shape == () for m in metrics for a in m.values())
    assert all(m.get('unplaced', 0) == 0 for m in metrics)

  def test_the_key_decides(self):
    case = self.case
    chex.assert_trees_all_equal(case.expected, case.run(case.step, case.start))
    other = case.run(case.step, case.start, jax.random.key(6))
    with pytest.raises(AssertionError):
      assert_close(case.expected, other)

  def test_rows_of_weight_zero_leave_no_trace(self):
    case, expected = self.case, self.case.expected
    found = case.run(case.step, case.start, change=spoiled)
    assert case.traces == 1
    assert_close(expected, found)

  def test_eight_devices_equal_one(self):
    check_placed(check_eight(self.case, self.case.on_eight))

  def test_a_checkpoint_moves_to_another_number_of_devices(self, tmp_path):
    state, step = self.case.start, self.case.step
    for i, streams in enumerate(self.case.batches):
      if i == 2:
        state = jax.device_put(self.case.refit(state, KEY))
        state = restored(state, data_mesh(), tmp_path)
        step = self.case.on_eight
      state, _ = step(state, joined(streams), jax.random.fold_in(KEY, i))
    assert_close(self.case.expected[0], state)

  def test_padded_seeds_and_draws_at_once_equal_one_by_one(self):
    """Padding is not counted as rows of zeros either, by a mean for one."""
    case = self.case
    keys = jax.random.split(jax.random.key(2), 3)
    starts = [case.init(key) for key in keys]
    change = padded if self.pads else spoiled
    batches = [joined(streams, change) for streams in case.batches]
    stacked = jax.tree.map(
      lambda *leaves: np.stack(leaves),
      *zip(jax.device_get(starts), batches, strict=True),
    )
    found = jax.jit(jax.vmap(case.method.step))(*stacked, keys)
    states, metrics = jax.device_get(found)
    for r, streams in enumerate(case.batches):
      expected = case.step(starts[r], joined(streams), keys[r])
      found = jax.tree.map(lambda a, r=r: a[r], (states, metrics))
      assert_close(expected, found)
    assert np.std(metrics['loss']) > 1e-3, 'the runs must differ to say this'

  @pytest.mark.parametrize('scale', [0.0, 1e4])
  def test_extreme_logits_leave_everything_finite(self, scale):
    def extreme(path, leaf):
      if not any(name in jax.tree_util.keystr(path) for name in LAST):
        return leaf
      signs = np.where(leaf == 0, 1, np.sign(leaf)).astype(leaf.dtype)
      return jax.device_put(signs * scale, leaf.sharding)

    case, start = self.case, self.case.start
    params, extra = jax.tree_util.tree_map_with_path(
      extreme, (start.params, start.extra)
    )
    start = start._replace(params=params, extra=extra)
    x = case.arrays['x'].reshape(-1, *case.arrays['x'].shape[-1:])
    logits = jax.jit(case.method.predict)(start, x).logits
    assert np.ptp(logits) == 0 if scale == 0 else np.ptp(logits) >= scale
    state, metrics = case.run(case.step, start)
    chex.assert_tree_all_finite((state, metrics))


class EveryMode(Contract):
  """The contract of one method of every kind, in other modes as well.

  A table, bags, networks with a refit, meta gradients over two streams. What
  the modes differ in is how a step is placed, not what it computes.
  """

  @pytest.mark.slow
  @pytest.mark.parametrize('how', ['jit', 'shard_map', 'pmap'])
  def test_eight_devices_equal_one_in_other_modes(self, how):
    check_mode(self.case, how)


# --- adapters -----------------------------------------------------------------


class AdapterCase:
  """An adapter and what several tests need of it, compiled once."""

  def __init__(self, contract):
    self.method = self.adapter = contract.make()
    arrays = contract.stream()
    self.batches = [
      {
        **jax.tree.map(lambda a, i=i: a[i * BATCH : (i + 1) * BATCH], arrays),
        'index': np.arange(i * BATCH, (i + 1) * BATCH, dtype=np.int32),
        'weight': uneven(BATCH, 5 * i),
      }
      for i in range(3)
    ]
    self.traces = 0
    self.step = jax.jit(self._counted)
    one = SingleDeviceSharding(jax.devices()[0])
    self.start = jax.device_put(
      self.adapter.init(*contract.trained(jax.random.key(0))), one
    )

  def _counted(self, state, batch, key):
    self.traces += 1
    return self.adapter.step(state, batch, key)

  @functools.cached_property
  def expected(self):
    return self.run(self.step, self.start)

  @functools.cached_property
  def on_eight(self):
    """The step in the strictest mode there is."""
    return self.parallel('shard_map')

  def parallel(self, how, **options):
    step = self.adapter.step
    return parallel(step, self.start, how, per_example=True, **options)

  def run(self, step, state, key=KEY, change=lambda batch: batch):
    """Three steps: the state, and all answers."""
    answers = []
    for i, batch in enumerate(self.batches):
      state, outputs = step(state, change(batch), jax.random.fold_in(key, i))
      answers.append(outputs)
    return state, answers


adapter_case_of = functools.lru_cache(maxsize=1)(
  lambda contract: AdapterCase(contract())
)


class AdapterContract:
  """What every adapter keeps.

  Attributes:
    random: whether anything is drawn.
    learns: whether the parameters move.
  """

  random = True
  learns = True

  def make(self):
    """The adapter, of the network of `trained`."""
    raise NotImplementedError

  def trained(self, key):
    """`(params, stats)` of a network."""
    raise NotImplementedError

  def stream(self):
    """Arrays [N, ...] by name."""
    return {'x': examples()['x']}

  @property
  def case(self):
    return adapter_case_of(type(self))

  def test_init_is_abstract_and_owns_its_arrays(self):
    adapter, start = self.case.adapter, self.case.start
    trained = self.trained(jax.random.key(0))
    abstract = jax.eval_shape(adapter.init, *trained)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, start)
    assert strongly_typed(start)
    state = adapter.init(*trained)
    jax.block_until_ready(jax.jit(lambda s: s, donate_argnums=0)(state))
    jax.block_until_ready(trained)  # not donated with the state

  def test_step_keeps_structure_and_compiles_once(self):
    start, (state, answers) = self.case.start, self.case.expected
    assert self.case.traces == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(start, state)
    assert strongly_typed((state, answers))
    assert int(state.step) == 3
    chex.assert_tree_all_finite((state, answers))
    for outputs in answers:
      assert all(len(a) == BATCH for a in jax.tree.leaves(outputs))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, state)
    assert any(jax.tree.leaves(moved.params)) == self.learns

  def test_the_key_decides(self):
    case = self.case
    chex.assert_trees_all_equal(case.expected, case.run(case.step, case.start))
    other = case.run(case.step, case.start, jax.random.key(6))
    if self.random:
      with pytest.raises(AssertionError):
        assert_close(case.expected, other)
    else:
      chex.assert_trees_all_equal(case.expected, other)

  def test_rows_of_weight_zero_leave_no_trace(self):
    case, (state, answers) = self.case, self.case.expected
    found, other = case.run(case.step, case.start, change=spoiled)
    assert case.traces == 1
    assert_close(state, found)
    for batch, a, b in zip(case.batches, answers, other, strict=True):
      rows = np.flatnonzero(batch['weight'] > 0)
      assert_close(*jax.tree.map(lambda v, rows=rows: v[rows], (a, b)))

  def test_a_batch_that_is_not_finite_leaves_everything(self):
    case, (state, _) = self.case, self.case.expected
    # A row that counts, and all arrays of numbers.
    i = np.argmax(case.batches[0]['weight'] > 0)

    def ruined(name, values):
      if name == 'weight' or values.dtype.kind != 'f':
        return values
      values = values.copy()
      values[i] = np.nan
      return values

    batch = {k: ruined(k, v) for k, v in case.batches[0].items()}
    after, outputs = case.step(state, batch, KEY)
    assert len(outputs.logits) == BATCH
    if self.learns:
      assert outputs.aux['skipped'].tolist() == [1.0] * BATCH
      chex.assert_trees_all_equal(state, after)
    else:
      chex.assert_trees_all_equal(state.params, after.params)

  def test_eight_devices_equal_one(self):
    check_placed(check_eight(self.case, self.case.on_eight))

  @pytest.mark.slow
  @pytest.mark.parametrize('how', ['jit', 'shard_map', 'pmap'])
  def test_eight_devices_equal_one_in_other_modes(self, how):
    state = check_eight(self.case, self.case.parallel(how, check_vma=False))
    if how == 'jit':
      check_placed(state)

  def test_a_checkpoint_in_mid_stream_moves_to_other_devices(self, tmp_path):
    state, step = self.case.start, self.case.step
    for i, batch in enumerate(self.case.batches):
      if i == 2:
        state = restored(state, data_mesh(), tmp_path)
        step = self.case.on_eight
      state, _ = step(state, batch, jax.random.fold_in(KEY, i))
    assert_close(self.case.expected[0], state)

  def test_streams_at_once_equal_one_by_one(self):
    case = self.case
    keys = jax.random.split(jax.random.key(2), 3)
    starts = [case.adapter.init(*self.trained(key)) for key in keys]
    stacked = jax.tree.map(
      lambda *leaves: np.stack(leaves),
      *zip(jax.device_get(starts), case.batches, strict=True),
    )
    found = jax.device_get(jax.jit(jax.vmap(case.adapter.step))(*stacked, keys))
    for r, batch in enumerate(case.batches):
      expected = case.step(starts[r], batch, keys[r])
      assert_close(expected, jax.tree.map(lambda a, r=r: a[r], found))
