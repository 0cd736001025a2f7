"""What base.py promises: means, gradients, tables, keys, in every mode."""

import functools
import itertools
import re

from fixture_methods import linear
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from jnl.base import (
  PAD,
  State,
  Table,
  check,
  data_shards,
  example_keys,
  gather,
  global_grad,
  global_mean,
  pack_rows,
  read_rows,
  shuffle_within,
  unpack_rows,
  unplaced,
  write_rows,
)
from jnl.data import epoch_order, index_order, take_batch
from jnl.losses import gce
from jnl.steps import supervised
from jnl.train import data_mesh, parallel, place, shardings, specs

KEY = jax.random.key(0)
MODES = ['shard_map', 'shard_map_vma', 'pmap', 'vmap']


SHUFFLED = np.arange(32)


def uneven():
  rng = np.random.default_rng(0)
  values = rng.normal(size=16).astype(np.float32)
  weights = np.array([0, 0, 5, 1, 0, 0, 2, 0] + [0] * 6 + [1, 3], np.float32)
  return values, weights


def loss_through_everything(params, x, weights):
  """Means, gathered negatives and a global covariance inside the loss."""
  z = jnp.tanh(x @ params)
  negatives = gather(z)
  contrast = jax.nn.logsumexp(z @ negatives.T, axis=1)
  mean = global_mean(z[:, 0], weights)
  outer = jax.vmap(jnp.outer)(z, z)
  covariance = sum_outer(outer) + jnp.eye(z.shape[1])
  value = global_mean(contrast, weights) + mean**2
  return value + jnp.linalg.slogdet(covariance)[1], {'mean': mean}


def sum_outer(outer):
  local = outer.sum(0)
  try:
    return lax.psum(local, 'data')
  except NameError:
    return local


def everything(x, values, weights, index):
  """What communicates, of 16 examples and of 32 to be shuffled."""
  params = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
  return {
    'mean': global_mean(values, weights),
    'grad': global_grad(loss_through_everything)(params, x, weights),
    'gathered': gather(values),
    'shuffled': gather(shuffle_within(KEY, index, (index, -index))),
    'among': gather(shuffle_within(KEY, index, index, where=index % 3 > 0)),
  }


@functools.cache
def found(how):
  """`everything` on one device, or on eight: a program of each way."""
  x = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
  args = (x, *uneven(), SHUFFLED)
  if how == 'one':
    return jax.device_get(jax.jit(everything)(*args))
  if how in ('vmap', 'pmap'):
    split = [a.reshape(8, -1, *a.shape[1:]) for a in args]
    mapped = (
      jax.jit(jax.vmap(everything, axis_name='data'))
      if how == 'vmap'
      else jax.pmap(everything, axis_name='data')
    )
    return jax.tree.map(lambda a: a[3], jax.device_get(mapped(*split)))
  mapped = jax.shard_map(
    everything,
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=P(),
    check_vma=how == 'shard_map_vma',
  )
  return jax.device_get(jax.jit(mapped)(*args))


# --- the name of the axis ----------------------------------------------------


def test_another_mapped_axis_is_an_error_that_names_both():
  values = np.arange(8, dtype=np.float32)
  mesh = jax.make_mesh((8,), ('dp',), axis_types=(AxisType.Auto,))
  local = lambda v: global_mean(v, jnp.ones_like(v))
  by_pmap = jax.pmap(local, axis_name='batch')
  by_shard_map = jax.shard_map(
    local, mesh=mesh, in_specs=P('dp'), out_specs=P(), check_vma=False
  )
  with pytest.raises(ValueError, match=r"over 'batch' .* called 'data'"):
    by_pmap(values[:, None])
  with pytest.raises(ValueError, match=r"over 'dp' .* called 'data'"):
    by_shard_map(values)
  # Runs by vmap, and examples beside runs, are what they seem.
  runs = jax.jit(jax.vmap(local, axis_name='run'))
  np.testing.assert_array_equal(runs(values.reshape(2, 4)), [1.5, 5.5])
  mesh = jax.make_mesh((2, 4), ('run', 'data'), axis_types=(AxisType.Auto,) * 2)
  both = jax.shard_map(
    lambda v: local(v)[None],
    mesh=mesh,
    in_specs=P(('run', 'data')),
    out_specs=P('run'),
  )
  np.testing.assert_array_equal(jax.jit(both)(values), [1.5, 5.5])


# --- global_mean -------------------------------------------------------------


@functools.cache
def means():
  """Means of three, and of the uneven ones, in one program."""
  with_gradient = jax.value_and_grad(global_mean)
  values, weights = uneven()
  mask = values > 0

  @jax.jit
  def program(values, three):
    return {
      'mean': global_mean(values, weights),
      'masked': global_mean(values, weights * mask, denominator=weights),
      'forgets': with_gradient(three, np.array([1, 0, 0])),
      'nothing': with_gradient(jnp.ones(3), np.zeros(3)),
      'rows': global_mean(
        jnp.arange(6.0).reshape(2, 3), np.array([True, False])
      ),
    }

  three = np.array([1.0, np.nan, np.inf], np.float32)
  return jax.device_get(program(values, three))


def test_global_mean_is_the_weighted_mean():
  values, weights = uneven()
  expected = np.average(values, weights=weights)
  np.testing.assert_allclose(means()['mean'], expected, rtol=1e-6)


@pytest.mark.parametrize('how', MODES)
def test_global_mean_over_devices_is_not_a_mean_of_means(how):
  values, weights = uneven()
  expected = np.average(values, weights=weights)
  np.testing.assert_allclose(found(how)['mean'], expected, rtol=1e-6)


def test_global_mean_forgets_what_has_no_weight():
  value, gradient = means()['forgets']
  assert value == 1
  np.testing.assert_array_equal(gradient, [1, 0, 0])


def test_global_mean_of_nothing_is_zero_with_zero_gradient():
  value, gradient = means()['nothing']
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_global_mean_with_a_denominator_of_its_own():
  values, weights = uneven()
  expected = (values * weights * (values > 0)).sum() / weights.sum()
  np.testing.assert_allclose(means()['masked'], expected, rtol=1e-6)


def test_global_mean_broadcasts_leading_weights():
  assert means()['rows'] == 1
  values = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match='weights'):
    jax.eval_shape(global_mean, values, np.ones(3))
  with pytest.raises(ValueError, match='denominator'):
    jax.eval_shape(global_mean, values, np.ones(2), np.ones(4))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'int32', 'float32'])
def test_global_mean_is_at_least_float32(dtype):
  values = jax.ShapeDtypeStruct((3,), dtype)
  assert jax.eval_shape(global_mean, values, np.ones(3)).dtype == jnp.float32


# --- global_grad and gather --------------------------------------------------


@pytest.mark.parametrize('how', MODES)
def test_global_grad_is_the_gradient_of_the_global_loss(how):
  (loss, aux), gradient = found('one')['grad']
  (loss_8, aux_8), gradient_8 = found(how)['grad']
  np.testing.assert_allclose(loss_8, loss, rtol=2e-6)
  np.testing.assert_allclose(aux_8['mean'], aux['mean'], rtol=2e-6)
  np.testing.assert_allclose(gradient_8, gradient, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('how', ['one', *MODES])
def test_gather_keeps_the_global_order(how):
  np.testing.assert_array_equal(found(how)['gathered'], uneven()[0])


# --- tables ------------------------------------------------------------------


@functools.cache
def packed():
  """Tables of n rows, and their rows unpacked, by n and shards."""

  def both_ways(n, shards):
    table = pack_rows(np.arange(2 * n).reshape(n, 2), shards)
    return table.rows, unpack_rows(table, n)

  sizes = list(itertools.product((8, 11), (1, 2, 4)))
  tables = jax.jit(lambda: [both_ways(*size) for size in sizes])()
  return dict(zip(sizes, jax.device_get(tables), strict=True))


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('n', [8, 11])
def test_pack_and_unpack_keep_index_order(n, shards):
  values = np.arange(2 * n).reshape(n, 2)
  rows, unpacked = packed()[n, shards]
  m = -(-n // shards)
  assert rows.shape == (shards, m, 2)
  i = n - 1
  np.testing.assert_array_equal(rows[i // m, i % m], values[i])
  np.testing.assert_array_equal(unpacked, values)


def test_read_and_write_are_exact():
  values = np.arange(22, dtype=np.float32).reshape(11, 2)

  @jax.jit
  def program(indices):
    results = {}
    for shards, index in indices.items():
      table = pack_rows(values, shards)
      read = read_rows(table, index)
      written = write_rows(table, index, read + 100)
      results[shards] = read, unpack_rows(written, 11)
    return results

  indices = {}
  for shards in (1, 2, 4):
    m = -(-11 // shards)
    index = np.concatenate([m * s + np.array([1, 0]) for s in range(shards)])
    indices[shards] = np.where(index == index[-1], PAD, index)
  for shards, (read, written) in jax.device_get(program(indices)).items():
    index = indices[shards]
    np.testing.assert_array_equal(read[:-1], values[index[:-1]], str(shards))
    np.testing.assert_array_equal(read[-1], 0)
    expected = values.copy()
    expected[index[:-1]] += 100
    np.testing.assert_array_equal(written, expected, str(shards))


TWO = Table(np.arange(8, dtype=np.float32).reshape(2, 4))  # shards


@jax.jit
def read_and_write(table, index, rows, where):
  written = write_rows(table, index, rows, where=where)
  return read_rows(table, index), written.rows


def test_indices_out_of_place_raise_or_are_dropped():
  for bad in ([4, 0], [0, 8], [-1, 4]):
    with pytest.raises(ValueError, match='index'):
      read_rows(TWO, np.array(bad))


@pytest.mark.parametrize(
  ('index', 'expected'), [([4, 0], [0, 0]), ([1, 8], [1, 0]), ([-1, 5], [0, 5])]
)
def test_inside_jit_indices_out_of_place_touch_nothing(index, expected):
  rows, where = np.full(2, 9, np.float32), np.ones(2, bool)
  read, written = read_and_write(TWO, np.array(index), rows, where)
  np.testing.assert_array_equal(read, expected)
  changed = np.ravel(written) != np.arange(8)
  np.testing.assert_array_equal(
    np.flatnonzero(changed), np.trim_zeros(expected)
  )


def test_table_arguments_are_checked():
  with pytest.raises(ValueError, match='index must be'):
    read_rows(TWO, np.array([0, 1, 2]))
  with pytest.raises(TypeError, match='index must be integer'):
    read_rows(TWO, np.array([0.0, 4.0]))
  index = np.array([0, 4])
  with pytest.raises(ValueError, match='rows must be'):
    write_rows(TWO, index, np.zeros((2, 3), np.float32))
  with pytest.raises(ValueError, match='where must be'):
    write_rows(TWO, index, np.zeros(2), where=np.ones((2, 1), bool))


def test_rows_take_the_dtype_of_the_table():
  low = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
  table = jax.eval_shape(pack_rows, low)
  written = jax.eval_shape(write_rows, table, np.array([1]), np.ones(1))
  assert written.rows.dtype == jnp.bfloat16
  assert jax.eval_shape(pack_rows, np.ones(2, bool)).rows.dtype == bool


def test_tables_communicate_nothing_under_jit():
  mesh = data_mesh()
  table = place(Table(np.zeros((8, 8, 5), np.float32)), mesh)
  on_data = NamedSharding(mesh, P('data'))
  index = np.arange(16) // 2 * 8 + np.arange(16) % 2

  def update(table, index):
    return write_rows(table, index, read_rows(table, index) + 1)

  compiled = (
    jax.jit(
      update,
      in_shardings=(shardings(table, mesh), on_data),
      out_shardings=shardings(table, mesh),
    )
    .lower(table, index)
    .compile()
  )
  text = compiled.as_text()
  assert 'scatter' in text
  assert not re.findall(r'all-\w+|collective-\w+|reduce-scatter', text)


def test_rows_are_written_where_they_are_wanted():
  index, rows = np.array([2, 5]), np.array([9, np.nan], np.float32)
  where = np.array([True, False])
  _, written = read_and_write(TWO, index, rows, where)
  np.testing.assert_array_equal(written, [[0, 1, 9, 3], [4, 5, 6, 7]])


def test_rows_without_a_place_are_a_metric_inside_jit():
  """In another layout, or a table too small; who is not there needs none."""
  ordinary, sharded = (Table(np.zeros((s, 64 // s))) for s in (1, 8))
  index = np.array([3, 63, 64, 1000, PAD, -1, 5, 80])
  weight = np.array([1, 1, 1, 1, 1, 2, 1, 0])

  @jax.jit
  def shares(straight, index):
    return [
      unplaced(sharded, {'index': straight}),
      unplaced({'a': ordinary, 'b': sharded}, {'index': straight}),
      unplaced(ordinary, {'index': index, 'weight': weight}),
      unplaced(np.zeros(64), {'index': index}),
    ]

  alone, the_worse, weighted, none = shares(np.arange(16), index)
  assert alone['unplaced'] == the_worse['unplaced'] == 7 / 8
  assert weighted['unplaced'] == np.float32(4 / 7)
  assert none == {}


def test_parallel_looks_at_the_layout_on_the_host():
  zero, params = np.int32(0), np.ones(3, np.float32)
  state = State(zero, params, {}, (), Table(np.zeros((8, 4), np.float32)))
  step = parallel(lambda s, b, k: (s, unplaced(s, b)), state)
  right, ones = np.arange(8) * 4, np.ones(8)
  for wrong in (right[::-1].copy(), right + 4, jax.device_put(np.arange(8))):
    with pytest.raises(ValueError, match='has no place in a table of 8 shards'):
      parallel(step, state)(state, {'index': wrong}, KEY)
  placed = place(state, data_mesh())
  placed, metrics = step(placed, {'index': right, 'weight': ones}, KEY)
  assert metrics['unplaced'] == 0
  gone = {'index': np.r_[right[:7], 99], 'weight': np.r_[ones[:7], 0]}
  step(placed, gone, KEY)  # the last one need not be there


EXPLICIT = {
  'x': np.arange(16, dtype=np.float32).reshape(8, 2) / 16,
  'labels': np.arange(8) % 2,
  'weight': np.array([0, 1, 2, 0, 0, 0, 3, 1], np.float32),
  'index': np.arange(8),
}


@functools.cache
def explicit_case():
  """A method, its first state, the step taken on one device, a mesh."""
  method = supervised(gce, linear(), optax.sgd(0.1))
  state = jax.jit(method.init)(KEY)
  after, _ = jax.jit(method.step)(state, EXPLICIT, KEY)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  return method, jax.device_get(state), np.asarray(after.params), mesh


@pytest.mark.parametrize('how', ['jit', 'shard_map', 'pmap'])
def test_explicit_meshes_are_taken_as_automatic_ones(how):
  """`jax.make_mesh` makes them so; arrays may lie on one, too."""
  method, state, expected, mesh = explicit_case()
  split = jax.device_put(EXPLICIT, NamedSharding(mesh, P('data')))
  step = parallel(method.step, state, how, mesh=mesh)
  for given in (EXPLICIT, split):
    new, _ = step(place(state, mesh), given, KEY)
    np.testing.assert_allclose(new.params, expected, rtol=1e-6)


def test_rows_on_an_explicit_mesh_are_an_error_that_says_what_to_do():
  method, state, _, mesh = explicit_case()
  split = jax.device_put(EXPLICIT, NamedSharding(mesh, P('data')))
  with pytest.raises(ValueError, match=r'explicit mesh axes .*AxisType\.Auto'):
    jax.eval_shape(method.step, state, split, KEY)
  table = Table(np.zeros((1, 8), np.float32))
  for use in (read_rows, lambda t, i: write_rows(t, i, np.ones(8))):
    with pytest.raises(ValueError, match=r'AxisType\.Auto'):
      jax.jit(use)(table, split['index'])


def test_specs_split_tables_and_replicate_the_rest():
  table = Table(np.zeros((8, 1)))
  assert specs({'table': table, 'other': np.zeros(8)}) == {
    'table': Table(P('data')),
    'other': P(),
  }


def test_placing_copies_what_a_donating_step_will_take():
  state = jax.device_put(State(np.int32(0), np.ones(3, np.float32), {}, ()))
  step = parallel(
    lambda s, b, k: (s._replace(params=s.params + b['x'].sum()), {}), state
  )
  step(place(state, data_mesh()), {'x': np.ones(8, np.float32)}, KEY)
  np.testing.assert_array_equal(state.params, 1)


# --- numbers of devices that do not divide eight -----------------------------


def walk(state, batch, key):
  """Every row of a table raised by one, and what communicates as metrics."""
  loss = lambda p: (global_mean(batch['x'] @ p, batch['weight']), ())
  (value, _), gradient = global_grad(loss)(state.params)
  table = state.extra
  rows = read_rows(table, batch['index']) + 1
  return state._replace(extra=write_rows(table, batch['index'], rows)), {
    'loss': value,
    'gradient': gradient,
    'gathered': gather(batch['index']),
    'shuffled': gather(shuffle_within(key, batch['index'], batch['index'])),
    **unplaced(table, batch),
  }


@pytest.mark.parametrize(
  'how', ['jit', 'shard_map', pytest.param('pmap', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('devices', [5, 6, 7])
def test_any_number_of_devices_does_what_one_does(devices, how):
  """With as many shards, the last of which is short: its batch is padded."""
  mesh, n, size = data_mesh(jax.devices()[:devices]), 8 * devices - 1, 2
  batch_size = size * devices
  shards = data_shards(n, batch_size, most=devices)
  assert shards == devices
  x = np.random.default_rng(0).normal(size=(n + 1, 3)).astype(np.float32)
  x[n] = 1e3  # where there is no example
  params = np.arange(3, dtype=np.float32)
  table = Table(np.arange(n + 1, dtype=np.float32).reshape(devices, 8))
  state = place(State(np.int32(0), params, {}, (), table), mesh)
  step = parallel(walk, state, how, mesh=mesh)
  order = index_order(n, shards, batch_size)
  for columns in np.split(order, 4, axis=1):
    index = columns.reshape(-1)
    real = index[index != PAD]
    weight = np.where(index == PAD, 0, index + 1).astype(np.float32)
    rows = x[np.minimum(index, n)]
    batch = {'x': rows, 'weight': weight, 'index': index}
    state, metrics = step(state, batch, KEY)
    mean = np.average(x[real], 0, weights=real + 1)
    np.testing.assert_allclose(metrics['gradient'], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics['loss'], mean @ params, rtol=1e-5)
    np.testing.assert_array_equal(metrics['gathered'], index)
    shuffled = np.asarray(metrics['shuffled'])
    assert sorted(shuffled.tolist()) == sorted(index.tolist())
    if how != 'jit':  # within the device, which draws as it can
      own = shuffled.reshape(devices, -1)
      np.testing.assert_array_equal(np.sort(own), np.sort(columns))
    assert metrics['unplaced'] == 0
  expected = np.arange(1, n + 2)
  expected[n] = n  # the padding is not written
  np.testing.assert_array_equal(np.ravel(state.extra.rows), expected)


@pytest.mark.parametrize('devices', [5, 6, 7])
def test_eight_shards_do_not_divide_over_them(devices):
  table, mesh = Table(np.zeros((8, 1))), data_mesh(jax.devices()[:devices])
  message = f'8 shards does not divide over {devices} devices'
  with pytest.raises(ValueError, match=message):
    place(table, mesh)
  with pytest.raises(ValueError, match=message):
    parallel(walk, table, mesh=mesh)
  with pytest.raises(ValueError, match='4 shards does not divide over 8'):
    place(Table(np.zeros((4, 2))), data_mesh())


# --- shards and randomness ---------------------------------------------------


@pytest.mark.parametrize('most', [8, 5, 6, 7, 12])
@pytest.mark.parametrize('n', [1, 7, 8, 10, 62, 63, 1200, 1201])
@pytest.mark.parametrize('batch_size', [1, 5, 6, 8, 14, 100, 128])
def test_shards_divide_the_batch_and_lose_no_step(n, batch_size, most):
  if batch_size > n:
    with pytest.raises(ValueError, match='batch_size'):
      data_shards(n, batch_size, most)
    return
  shards = data_shards(n, batch_size, most)
  assert most % shards == 0
  assert batch_size % shards == 0
  # Of as many columns as full batches have, none has padding.
  columns = n // batch_size * (batch_size // shards)
  taken = index_order(n, shards, batch_size)[:, :columns]
  assert len(np.unique(taken)) == n // batch_size * batch_size
  assert taken.max() < n


def test_the_batches_of_an_epoch_have_each_example_once():
  sizes = [(10, 8), (63, 6), (1201, 100)]

  def epoch(n, batch_size):
    order = epoch_order(KEY, n, data_shards(n, batch_size))
    take = lambda i: take_batch({}, order, i, batch_size)['index']
    return jax.vmap(take)(jnp.arange(n // batch_size))

  epochs = jax.jit(lambda: [epoch(*size) for size in sizes])()
  for (n, batch_size), seen in zip(sizes, epochs, strict=True):
    assert seen.size == n // batch_size * batch_size
    assert len(np.unique(seen)) == seen.size
    assert np.max(seen) < n


def test_example_keys_depend_on_the_example_alone():
  data = lambda index: jax.random.key_data(example_keys(KEY, index))
  together, alone = jax.jit(lambda *indices: [data(i) for i in indices])(
    np.array([5, 2, 9]), np.array([2])
  )
  np.testing.assert_array_equal(together[1], alone[0])


def test_shuffles_stay_within_shards():
  index, negative = found('one')['shuffled']
  np.testing.assert_array_equal(index, -negative)
  np.testing.assert_array_equal(index // 4, SHUFFLED // 4)
  assert (index != SHUFFLED).any()
  assert sorted(index.tolist()) == SHUFFLED.tolist()


@pytest.mark.parametrize('how', MODES)
def test_shuffles_do_not_know_devices(how):
  np.testing.assert_array_equal(
    found(how)['shuffled'], found('one')['shuffled']
  )
  np.testing.assert_array_equal(found(how)['among'], found('one')['among'])


def test_examples_that_are_not_there_are_nobodys_partners():
  among, there = found('one')['among'], SHUFFLED % 3 > 0
  np.testing.assert_array_equal(among[~there], SHUFFLED[~there])
  np.testing.assert_array_equal(among // 4, SHUFFLED // 4)
  assert sorted(among.tolist()) == SHUFFLED.tolist()
  assert (among != SHUFFLED).sum() > 4
  garbled = np.where(there, SHUFFLED, PAD)
  among_garbled = jax.jit(functools.partial(shuffle_within, KEY))(
    garbled, SHUFFLED, where=there
  )
  np.testing.assert_array_equal(among_garbled, among)
  with pytest.raises(ValueError, match='where must be'):
    shuffle_within(KEY, SHUFFLED, SHUFFLED, where=there[:, None])


# --- checks ------------------------------------------------------------------


def test_check_skips_tracers_and_raises_what_it_is_told():
  def f(rate):
    check(rate <= 1, 'rate')
    return rate

  jax.jit(f)(2.0)
  with pytest.raises(ValueError, match='rate'):
    f(2.0)
  with pytest.raises(TypeError, match='dtype'):
    check(False, 'dtype', TypeError)


def test_unknown_parallel_mode():
  with pytest.raises(ValueError, match=r"how must be one of .*'pmpa'"):
    parallel(lambda s, b, k: (s, {}), {}, 'pmpa')
