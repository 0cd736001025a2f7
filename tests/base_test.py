"""What base.py promises: means, gradients, tables, keys, in every mode."""

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
from jnl.data import epoch_order, take_batch
from jnl.losses import gce
from jnl.steps import supervised
from jnl.train import data_mesh, parallel, place, shardings, specs

KEY = jax.random.key(0)
MODES = ['shard_map', 'shard_map_vma', 'pmap', 'vmap']


def per_device(f, how, *args):
  """Runs `f` on eight devices over `args` split on the first axis."""
  if how == 'vmap' or how == 'pmap':
    mapping = jax.vmap if how == 'vmap' else jax.pmap
    split = [a.reshape(8, -1, *a.shape[1:]) for a in args]
    out = mapping(f, axis_name='data')(*split)
    return jax.tree.map(lambda a: a[3], out)
  return jax.shard_map(
    f,
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=P(),
    check_vma=how == 'shard_map_vma',
  )(*args)


def uneven():
  rng = np.random.default_rng(0)
  values = rng.normal(size=16).astype(np.float32)
  weights = np.array([0, 0, 5, 1, 0, 0, 2, 0] + [0] * 6 + [1, 3], np.float32)
  return values, weights


# --- the name of the axis ----------------------------------------------------


def test_another_mapped_axis_is_an_error_that_names_both():
  values = jnp.arange(8.0)
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
  runs = jax.vmap(local, axis_name='run')(values.reshape(2, 4))
  np.testing.assert_array_equal(runs, [1.5, 5.5])
  mesh = jax.make_mesh((2, 4), ('run', 'data'), axis_types=(AxisType.Auto,) * 2)
  both = jax.shard_map(
    lambda v: local(v)[None],
    mesh=mesh,
    in_specs=P(('run', 'data')),
    out_specs=P('run'),
  )
  np.testing.assert_array_equal(both(values), [1.5, 5.5])


# --- global_mean -------------------------------------------------------------


def test_global_mean_is_the_weighted_mean():
  values, weights = uneven()
  expected = np.average(values, weights=weights)
  np.testing.assert_allclose(global_mean(values, weights), expected, rtol=1e-6)


@pytest.mark.parametrize('how', MODES)
def test_global_mean_over_devices_is_not_a_mean_of_means(how):
  values, weights = uneven()
  expected = np.average(values, weights=weights)
  found = per_device(global_mean, how, values, weights)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_global_mean_forgets_what_has_no_weight():
  values = jnp.array([1.0, jnp.nan, jnp.inf])
  weights = jnp.array([1, 0, 0])
  assert global_mean(values, weights) == 1
  gradient = jax.grad(global_mean)(values, weights)
  np.testing.assert_array_equal(gradient, [1, 0, 0])


def test_global_mean_of_nothing_is_zero_with_zero_gradient():
  values, nothing = jnp.ones(3), jnp.zeros(3)
  value, gradient = jax.value_and_grad(global_mean)(values, nothing)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_global_mean_with_a_denominator_of_its_own():
  values, weights = uneven()
  mask = values > 0
  found = global_mean(values, weights * mask, denominator=weights)
  expected = (values * weights * mask).sum() / weights.sum()
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_global_mean_broadcasts_leading_weights():
  values = jnp.arange(6.0).reshape(2, 3)
  assert global_mean(values, jnp.array([True, False])) == 1
  with pytest.raises(ValueError, match='weights'):
    global_mean(values, jnp.ones(3))
  with pytest.raises(ValueError, match='denominator'):
    global_mean(values, jnp.ones(2), denominator=jnp.ones(4))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'int32', 'float32'])
def test_global_mean_is_at_least_float32(dtype):
  assert global_mean(jnp.ones(3, dtype), jnp.ones(3)).dtype == jnp.float32


# --- global_grad -------------------------------------------------------------


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


@pytest.mark.parametrize('how', MODES)
def test_global_grad_is_the_gradient_of_the_global_loss(how):
  rng = np.random.default_rng(1)
  x = rng.normal(size=(16, 3)).astype(np.float32)
  params = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  _, weights = uneven()
  (loss, aux), gradient = global_grad(loss_through_everything)(
    params, x, weights
  )
  found = per_device(
    lambda x, w: global_grad(loss_through_everything)(params, x, w),
    how,
    x,
    weights,
  )
  np.testing.assert_allclose(found[0][0], loss, rtol=2e-6)
  np.testing.assert_allclose(found[0][1]['mean'], aux['mean'], rtol=2e-6)
  np.testing.assert_allclose(found[1], gradient, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('how', MODES)
def test_gather_keeps_the_global_order(how):
  x = np.arange(16.0)
  np.testing.assert_array_equal(per_device(gather, how, x), x)
  np.testing.assert_array_equal(gather(x), x)


# --- tables ------------------------------------------------------------------


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('n', [8, 11])
def test_pack_and_unpack_keep_index_order(n, shards):
  values = np.arange(2 * n).reshape(n, 2)
  table = pack_rows(values, shards)
  m = -(-n // shards)
  assert table.rows.shape == (shards, m, 2)
  i = n - 1
  np.testing.assert_array_equal(table.rows[i // m, i % m], values[i])
  np.testing.assert_array_equal(unpack_rows(table, n), values)


@pytest.mark.parametrize('shards', [1, 2, 4])
def test_read_and_write_are_exact(shards):
  values = np.arange(22.0).reshape(11, 2)
  table = pack_rows(values, shards)
  m = table.rows.shape[1]
  index = np.concatenate([m * s + np.array([1, 0]) for s in range(shards)])
  index[-1] = PAD
  read = read_rows(table, jnp.asarray(index))
  np.testing.assert_array_equal(read[:-1], values[index[:-1]])
  np.testing.assert_array_equal(read[-1], 0)
  written = write_rows(table, jnp.asarray(index), read + 100)
  expected = values.copy()
  expected[index[:-1]] += 100
  np.testing.assert_array_equal(unpack_rows(written, 11), expected)


def test_indices_out_of_place_raise_or_are_dropped():
  table = pack_rows(jnp.arange(8.0), 2)
  for bad in ([4, 0], [0, 8], [-1, 4]):
    with pytest.raises(ValueError, match='index'):
      read_rows(table, jnp.array(bad))


@pytest.mark.parametrize(
  ('index', 'expected'), [([4, 0], [0, 0]), ([1, 8], [1, 0]), ([-1, 5], [0, 5])]
)
def test_inside_jit_indices_out_of_place_touch_nothing(index, expected):
  table = pack_rows(jnp.arange(8.0), 2)
  index = jnp.array(index)
  np.testing.assert_array_equal(jax.jit(read_rows)(table, index), expected)
  written = jax.jit(write_rows)(table, index, jnp.full(2, 9.0))
  changed = unpack_rows(written, 8) != unpack_rows(table, 8)
  np.testing.assert_array_equal(
    np.flatnonzero(changed), np.trim_zeros(expected)
  )


def test_table_arguments_are_checked():
  table = pack_rows(jnp.arange(8.0), 2)
  with pytest.raises(ValueError, match='index must be'):
    read_rows(table, jnp.array([0, 1, 2]))
  with pytest.raises(TypeError, match='index must be integer'):
    read_rows(table, jnp.array([0.0, 4.0]))
  with pytest.raises(ValueError, match='rows must be'):
    write_rows(table, jnp.array([0, 4]), jnp.zeros((2, 3)))


def test_rows_take_the_dtype_of_the_table():
  table = pack_rows(jnp.zeros(4, jnp.bfloat16), 1)
  written = write_rows(table, jnp.array([1]), jnp.array([0.5]))
  assert written.rows.dtype == jnp.bfloat16
  assert pack_rows(jnp.array([True, False])).rows.dtype == bool


def test_tables_communicate_nothing_under_jit():
  mesh = data_mesh()
  table = place(pack_rows(jnp.zeros((64, 5)), 8), mesh)
  on_data = NamedSharding(mesh, P('data'))
  index = jnp.asarray(np.arange(16) // 2 * 8 + np.arange(16) % 2)

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
  table = pack_rows(jnp.zeros(4))
  index, rows = jnp.array([2, 0, 3]), jnp.array([1.0, jnp.nan, 5.0])
  new = write_rows(table, index, rows, where=jnp.array([True, False, True]))
  np.testing.assert_array_equal(new.rows, [[0, 0, 1, 5]])
  with pytest.raises(ValueError, match='where must be'):
    write_rows(table, index, rows, where=jnp.ones((3, 1), bool))


def test_rows_without_a_place_are_a_metric_inside_jit():
  """In another layout, or a table too small; who is not there needs none."""
  share = jax.jit(lambda table, batch: unplaced(table, batch).get('unplaced'))
  sharded, ordinary = pack_rows(jnp.zeros(64), 8), pack_rows(jnp.zeros(64))
  for table in (sharded, {'a': ordinary, 'b': sharded}):
    assert share(table, {'index': np.arange(16)}) == 7 / 8
  index = np.array([3, 63, 64, 1000, PAD, -1, 5, 80])
  weight = np.array([1, 1, 1, 1, 1, 2, 1, 0])
  found = share(ordinary, {'index': index, 'weight': weight})
  assert found == np.float32(4 / 7)
  assert unplaced(jnp.zeros(64), {'index': index}) == {}


def test_parallel_looks_at_the_layout_on_the_host():
  state = State(jnp.int32(0), jnp.ones(3), {}, (), pack_rows(jnp.zeros(32), 8))
  step = parallel(lambda s, b, k: (s, unplaced(s, b)), state)
  key, right = jax.random.key(0), np.arange(8) * 4
  for wrong in (right[::-1].copy(), right + 4, jnp.arange(8)):
    with pytest.raises(ValueError, match='has no place in a table of 8 shards'):
      parallel(step, state)(state, {'index': wrong}, key)
  _, metrics = step(place(state, data_mesh()), {'index': right}, key)
  assert metrics['unplaced'] == 0
  gone = {'index': np.r_[right[:7], 99], 'weight': np.r_[np.ones(7), 0]}
  step(place(state, data_mesh()), gone, key)  # the last one need not be there
  with pytest.raises(ValueError, match='does not divide over 6 devices'):
    parallel(step, state, mesh=data_mesh(jax.devices()[:6]))


@pytest.mark.parametrize('how', ['jit', 'shard_map', 'pmap'])
def test_explicit_meshes_are_taken_as_automatic_ones(how):
  """`jax.make_mesh` makes them so; arrays may lie on one, too."""
  method = supervised(gce, linear(), optax.sgd(0.1))
  state, key = method.init(jax.random.key(0)), jax.random.key(1)
  batch = {
    'x': np.arange(16, dtype=np.float32).reshape(8, 2) / 16,
    'labels': np.arange(8) % 2,
    'weight': np.array([0, 1, 2, 0, 0, 0, 3, 1], np.float32),
    'index': np.arange(8),
  }
  expected, _ = method.step(state, batch, key)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  split = jax.device_put(batch, NamedSharding(mesh, P('data')))
  step = parallel(method.step, state, how, mesh=mesh)
  for given in (batch, split):
    found, _ = step(place(state, mesh), given, key)
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-6)
  with pytest.raises(ValueError, match=r'explicit mesh axes .*AxisType\.Auto'):
    jax.jit(method.step)(state, split, key)
  table = pack_rows(jnp.zeros(8))
  for use in (read_rows, lambda t, i: write_rows(t, i, jnp.ones(8))):
    with pytest.raises(ValueError, match=r'AxisType\.Auto'):
      jax.jit(use)(table, split['index'])


def test_specs_split_tables_and_replicate_the_rest():
  table = pack_rows(jnp.zeros(8), 8)
  found = specs({'table': table, 'other': jnp.zeros(8)})
  assert found == {'table': Table(P('data')), 'other': P()}
  with pytest.raises(ValueError, match='does not divide'):
    place(pack_rows(jnp.zeros(8), 4), data_mesh())


def test_placing_copies_what_a_donating_step_will_take():
  state = State(jnp.int32(0), jnp.ones(3), {}, ())
  step = parallel(
    lambda s, b, k: (s._replace(params=s.params + b['x'].sum()), {}), state
  )
  batch = {'x': jnp.ones(8)}
  step(place(state, data_mesh()), batch, jax.random.key(0))
  np.testing.assert_array_equal(state.params, 1)


# --- shards and randomness ---------------------------------------------------


@pytest.mark.parametrize('n', [1, 7, 8, 10, 62, 63, 1200, 1201])
@pytest.mark.parametrize('batch_size', [1, 6, 8, 100, 128])
def test_shards_divide_the_batch_and_lose_no_step(n, batch_size):
  if batch_size > n:
    with pytest.raises(ValueError, match='batch_size'):
      data_shards(n, batch_size)
    return
  shards = data_shards(n, batch_size)
  assert 8 % shards == 0
  assert batch_size % shards == 0
  order = epoch_order(jax.random.key(0), n, shards)
  steps = n // batch_size
  take = jax.vmap(lambda i: take_batch({}, order, i, batch_size)['index'])
  seen = np.asarray(take(jnp.arange(steps)))
  assert len(np.unique(seen)) == seen.size == steps * batch_size
  assert seen.max() < n


def test_example_keys_depend_on_the_example_alone():
  key = jax.random.key(0)
  keys = example_keys(key, jnp.array([5, 2, 9]))
  alone = example_keys(key, jnp.array([2]))
  assert (jax.random.key_data(keys)[1] == jax.random.key_data(alone)[0]).all()


@pytest.mark.parametrize('how', ['shard_map', 'shard_map_vma', 'vmap'])
def test_shuffles_stay_within_shards_and_do_not_know_devices(how):
  key, index = jax.random.key(0), jnp.arange(32)
  tree = (index, jnp.stack([index, -index], 1))
  whole = shuffle_within(key, index, tree)
  np.testing.assert_array_equal(whole[0], whole[1][:, 0])
  np.testing.assert_array_equal(whole[0] // 4, index // 4)
  assert (whole[0] != index).any()
  assert sorted(whole[0].tolist()) == index.tolist()

  def split(index):
    return gather(shuffle_within(key, index, index))

  np.testing.assert_array_equal(per_device(split, how, index), whole[0])


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
