"""Networks and adapters: shapes, dropout by example, global statistics."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.base import Outputs, example_keys
from jnl.nets import (
  MLP,
  Dropout,
  StridedCNN,
  batch_norm,
  build,
  from_linen,
  from_nnx,
  max_pool,
  standardize,
)
from jnl.nets._layers import rows_of
from jnl.train import data_mesh

KEY = jax.random.key(0)


def keys_of(b):
  return example_keys(KEY, jnp.arange(b))


def parameters(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_mlp_has_the_parameters_of_its_description():
  model = from_linen(MLP(10), (8, 8, 1))
  params, stats = model.init(KEY)
  assert parameters(params) == 65 * 256 + 257 * 256 + 257 * 10
  assert stats == {}
  outputs, _ = model.apply(params, stats, jnp.ones((3, 8, 8, 1)), None, False)
  assert outputs.logits.shape == (3, 10)
  assert outputs.features.shape == (3, 256)


def test_strided_cnn_has_the_parameters_of_its_description():
  model = from_linen(StridedCNN(10), (28, 28, 1))
  params, _ = model.init(KEY)
  assert (
    parameters(params) == 160 + 16 * 32 * 9 + 32 + 7 * 7 * 32 * 64 + 64 + 650
  )
  outputs, _ = model.apply(params, {}, jnp.ones((2, 28, 28, 1)), None, False)
  assert outputs.logits.shape == (2, 10)
  assert outputs.features.shape == (2, 64)


@pytest.mark.parametrize('net', [MLP, StridedCNN])
def test_bfloat16_computes_low_and_keeps_parameters_high(net):
  model = from_linen(net(3, dtype=jnp.bfloat16, batch_norm=True), (8, 8, 1))
  params, stats = model.init(KEY)
  assert {a.dtype for a in jax.tree.leaves((params, stats))} == {
    jnp.dtype('float32')
  }
  outputs, stats = model.apply(
    params, stats, jnp.ones((4, 8, 8, 1)), None, True
  )
  assert outputs.logits.dtype == jnp.bfloat16
  assert jax.tree.leaves(stats)[0].dtype == jnp.float32


def test_dropout_masks_each_example_by_its_own_key():
  x = jnp.ones((64, 50))
  layer = Dropout(0.25)
  dropped = layer.apply({}, x, keys_of(64), True)
  assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
  assert abs(float((dropped == 0).mean()) - 0.25) < 0.03
  # The same examples in another order and another batch: the same masks.
  order = jnp.array([5, 3, 40])
  again = layer.apply({}, x[:3], keys_of(64)[order], True)
  np.testing.assert_array_equal(again, dropped[order])
  np.testing.assert_array_equal(layer.apply({}, x, None, False), x)
  other = Dropout(0.25, tag=1).apply({}, x, keys_of(64), True)
  assert (other != dropped).any()


def test_dropout_arguments_are_checked():
  with pytest.raises(ValueError, match='rate'):
    Dropout(1.0).apply({}, jnp.ones((1, 2)), keys_of(1), True)
  with pytest.raises(ValueError, match='keys'):
    Dropout(0.5).apply({}, jnp.ones((1, 2)), None, True)


@pytest.mark.parametrize('check_vma', [True, False])
def test_batch_norm_sees_the_global_batch(check_vma):
  model = from_linen(MLP(3, (5,), batch_norm=True, dropout=0.5), (4,))
  params, stats = model.init(KEY)
  # Devices that differ in location and scale.
  x = jax.random.normal(KEY, (16, 4)) * jnp.arange(16)[:, None]
  expected = model.apply(params, stats, x, keys_of(16), True)
  apply = jax.shard_map(
    lambda x, keys: model.apply(params, stats, x, keys, True),
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=(P('data'), P()),
    check_vma=check_vma,
  )
  found = apply(x, keys_of(16))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, found
  )


def test_batch_norm_counts_its_mask_wherever_that_lies():
  """Uneven over devices, one of which has no example at all."""
  model = from_linen(MLP(3, (5,), batch_norm=True), (4,))
  params, stats = model.init(KEY)
  there = np.array([0, 0, 1, 1] + [1, 0] * 4 + [1, 1, 1, 0], bool)
  x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  x *= np.arange(16)[:, None]
  expected, kept = model.apply(params, stats, x[there], None, True)
  apply = lambda x, mask: model.apply(params, stats, x, None, True, mask)
  mapped = jax.shard_map(
    apply,
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=(P('data'), P()),
  )
  for how in (apply, mapped):
    found, new = how(x, there)
    np.testing.assert_allclose(
      found.logits[there], expected.logits, rtol=1e-4, atol=1e-5
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), new, kept
    )


def test_a_mask_of_examples_fits_layers_of_more_rows():
  mask = jnp.array([True, False])
  rows = rows_of(mask, jnp.ones((6, 3, 2)))
  assert rows.shape == (6, 1, 1)
  np.testing.assert_array_equal(rows.ravel(), [1, 1, 1, 0, 0, 0])
  with pytest.raises(ValueError, match='5 rows, which a mask of 2'):
    rows_of(mask, jnp.ones((5, 3)))


def test_batch_norm_is_that_of_flax():
  ours = batch_norm(True)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
  x = jax.random.normal(KEY, (6, 3, 3, 4)) * 3 + 1
  variables = theirs.init(KEY, x)
  y, new = theirs.apply(variables, x, mutable='batch_stats')
  z, own = ours.apply(variables, x, mutable='batch_stats')
  np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, new
  )
  assert jax.tree.structure(ours.init(KEY, x)) == jax.tree.structure(variables)


def test_batch_statistics_of_bfloat16_are_computed_in_float32():
  x = (jax.random.normal(KEY, (4096, 2)) + 3).astype(jnp.bfloat16)
  layer = batch_norm(True, momentum=0.0, dtype=jnp.bfloat16)
  stats = {'mean': jnp.zeros(2), 'var': jnp.ones(2)}
  params = {'scale': jnp.ones(2), 'bias': jnp.zeros(2)}
  y, new = layer.apply(
    {'params': params, 'batch_stats': stats}, x, mutable='batch_stats'
  )
  exact = np.asarray(x, np.float64)
  new = new['batch_stats']
  np.testing.assert_allclose(new['mean'], exact.mean(0), rtol=1e-5)
  np.testing.assert_allclose(new['var'], exact.var(0), rtol=1e-4)
  assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize('shape', [(2, 6, 4, 3), (2, 7, 5, 3), (1, 3, 3, 1)])
@pytest.mark.parametrize('size', [2, 3])
def test_max_pool_is_that_of_flax_and_so_is_its_gradient(shape, size):
  x = jax.random.normal(KEY, shape)
  flax_pool = lambda x: nn.max_pool(x, (size, size), (size, size))
  np.testing.assert_array_equal(max_pool(x, size), flax_pool(x))
  weight = jax.random.normal(jax.random.key(1), flax_pool(x).shape)
  grad = lambda f: jax.grad(lambda x: (f(x) * weight).sum())(x)
  np.testing.assert_array_equal(
    grad(lambda x: max_pool(x, size)), grad(flax_pool)
  )


def test_max_pool_shares_the_gradient_of_ties_and_checks_the_size():
  grad = jax.grad(lambda x: max_pool(x, 2).sum())
  np.testing.assert_array_equal(
    grad(jnp.ones((1, 2, 2, 1))), jnp.full((1, 2, 2, 1), 0.25)
  )
  with pytest.raises(ValueError, match='size = 2 rows and columns, got 4 by 1'):
    max_pool(jnp.ones((1, 4, 1, 1)), 2)


@pytest.mark.parametrize('mean', [0.4, [0.1, 0.2, 0.3]])
@pytest.mark.parametrize('std', [0.5, [0.5, 0.6, 0.7]])
def test_standardize_does_so_before_the_network(mean, std):
  model = from_linen(MLP(2, (5,), batch_norm=True), (4, 4, 3))
  ours = standardize(model, mean, std)
  params, stats = ours.init(KEY)
  jax.tree.map(np.testing.assert_array_equal, (params, stats), model.init(KEY))
  x = jax.random.uniform(KEY, (6, 4, 4, 3))
  by_hand = (x - np.array(mean)) / np.array(std)
  for train in (True, False):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      ours.apply(params, stats, x, None, train),
      model.apply(params, stats, by_hand, None, train),
    )


def test_standardize_checks_its_arguments():
  model = from_linen(MLP(2), (4, 4, 1))
  with pytest.raises(ValueError, match='std must be positive'):
    standardize(model, 0.0, [0.2, 0.0])
  params, stats = model.init(KEY)
  x = jnp.ones((2, 4, 4, 1))
  for mean, std in [([0.1, 0.2, 0.3], 1.0), (0.0, [1.0, 1.0, 1.0])]:
    with pytest.raises(ValueError, match=r'ch = 1, got \(3,\)'):
      standardize(model, mean, std).apply(params, stats, x, None, False)


def test_build_knows_the_networks_by_name():
  assert build('mlp', 3) == MLP(3)
  assert build('strided_cnn', 3, dtype=jnp.bfloat16) == StridedCNN(
    3, dtype=jnp.bfloat16
  )
  with pytest.raises(ValueError, match=r"unknown net 'resnet43'.*'resnet34'"):
    build('resnet43', 3)


class ForeignLinen(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(7)(x))
    return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class ForeignNNX(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(4, 7, rngs=rngs)
    self.norm = nnx.BatchNorm(7, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(7, 2, rngs=rngs)

  def __call__(self, x):
    features = self.dropout(self.norm(self.first(x)))
    return Outputs(self.last(features), features)


def linen_call(module, x, keys, train):
  return Outputs(module(x, train=train), x)


@pytest.mark.parametrize(
  'model',
  [
    from_linen(ForeignLinen(), (4,), call=linen_call),
    from_nnx(ForeignNNX),
  ],
  ids=['linen', 'nnx'],
)
def test_foreign_networks_train_and_evaluate(model):
  params, stats = jax.jit(model.init)(KEY)
  assert parameters(params) == 4 * 7 + 7 + 14 + 14 + 2
  x = jax.random.normal(KEY, (6, 4))
  apply = jax.jit(model.apply, static_argnums=4)
  trained, new = apply(params, stats, x, keys_of(6), True)
  assert jax.tree.structure(new) == jax.tree.structure(stats)
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True)
  )
  other, _ = apply(params, stats, x, keys_of(9)[3:], True)
  assert (other.logits != trained.logits).any()
  first, kept = apply(params, stats, x, None, False)
  again, _ = apply(params, stats, x, None, False)
  np.testing.assert_array_equal(first.logits, again.logits)
  jax.tree.map(np.testing.assert_array_equal, kept, stats)
  many, _ = jax.vmap(model.init)(jax.random.split(KEY, 2))
  assert {leaf.shape[0] for leaf in jax.tree.leaves(many)} == {2}


@pytest.mark.parametrize(
  'model',
  [from_linen(ForeignLinen(), (4,), call=linen_call), from_nnx(ForeignNNX)],
  ids=['linen', 'nnx'],
)
def test_foreign_batch_statistics_leave_out_what_is_masked(model):
  params, stats = model.init(KEY)
  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  there = np.array([1, 0, 1, 1, 0, 1], bool)
  _, expected = model.apply(params, stats, x[there], keys_of(4), True)
  _, found = model.apply(params, stats, x, keys_of(6), True, there)
  _, every = model.apply(params, stats, x, keys_of(6), True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
  )
  with pytest.raises(AssertionError):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), every, expected
    )


def test_a_network_must_return_outputs():
  bare = from_linen(
    ForeignLinen(), (4,), call=lambda m, x, keys, train: m(x, train=train)
  )
  params, stats = bare.init(KEY)
  with pytest.raises(TypeError, match='Outputs'):
    bare.apply(params, stats, jnp.ones((1, 4)), None, False)
