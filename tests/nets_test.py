"""Networks and adapters: shapes, dropout by example, global statistics."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.base import Outputs, example_keys
from jnl.nets import MLP, Dropout, StridedCNN, from_linen, from_nnx
from jnl.train.parallel import data_mesh

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


def test_a_network_must_return_outputs():
  bare = from_linen(
    ForeignLinen(), (4,), call=lambda m, x, keys, train: m(x, train=train)
  )
  params, stats = bare.init(KEY)
  with pytest.raises(TypeError, match='Outputs'):
    bare.apply(params, stats, jnp.ones((1, 4)), None, False)
