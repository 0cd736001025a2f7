"""Networks and adapters: shapes, dropout by example, global statistics."""

import functools
import itertools

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


KEYS = jax.jit(example_keys)(KEY, np.arange(64))
normal = np.random.default_rng(0).normal


def drawn(model):
  """Parameters and statistics, without compiling an initialization."""
  rng = np.random.default_rng(1)
  draw = lambda a: rng.normal(size=a.shape).astype(np.float32)
  params, stats = jax.tree.map(draw, jax.eval_shape(model.init, KEY))
  return params, jax.tree.map(np.abs, stats)


def shapes_of(model, x, train=False):
  """Abstract parameters, statistics, outputs and new statistics."""
  params, stats = jax.eval_shape(model.init, KEY)
  apply = lambda params, stats: model.apply(params, stats, x, None, train)
  return params, stats, *jax.eval_shape(apply, params, stats)


def parameters(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def assert_close(a, b, rtol=1e-7, atol=0.0):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def test_mlp_has_the_parameters_of_its_description():
  model = from_linen(MLP(10), (8, 8, 1))
  params, stats, outputs, _ = shapes_of(model, np.ones((3, 8, 8, 1)))
  assert parameters(params) == 65 * 256 + 257 * 256 + 257 * 10
  assert stats == {}
  assert outputs.logits.shape == (3, 10)
  assert outputs.features.shape == (3, 256)


def test_strided_cnn_has_the_parameters_of_its_description():
  model = from_linen(StridedCNN(10), (28, 28, 1))
  params, _, outputs, _ = shapes_of(model, np.ones((2, 28, 28, 1)))
  assert (
    parameters(params) == 160 + 16 * 32 * 9 + 32 + 7 * 7 * 32 * 64 + 64 + 650
  )
  assert outputs.logits.shape == (2, 10)
  assert outputs.features.shape == (2, 64)


@pytest.mark.parametrize('net', [MLP, StridedCNN])
def test_bfloat16_computes_low_and_keeps_parameters_high(net):
  model = from_linen(net(3, dtype=jnp.bfloat16, batch_norm=True), (8, 8, 1))
  x = np.ones((4, 8, 8, 1), np.float32)
  params, stats, outputs, new = shapes_of(model, x, True)
  assert {a.dtype for a in jax.tree.leaves((params, stats, new))} == {
    jnp.dtype('float32')
  }
  assert jax.tree.leaves(stats)
  assert outputs.logits.dtype == jnp.bfloat16


def test_dropout_masks_each_example_by_its_own_key():
  x, order = np.ones((64, 50), np.float32), np.array([5, 3, 40])

  @jax.jit
  def program(x, keys):
    drop = lambda rows, keys, tag=0, train=True: Dropout(0.25, tag).apply(
      {}, rows, keys, train
    )
    return (
      drop(x, keys),
      drop(x[:3], keys[order]),
      drop(x, None, train=False),
      drop(x, keys, 1),
    )

  dropped, again, evaluated, other = jax.device_get(program(x, KEYS))
  assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
  assert abs(float((dropped == 0).mean()) - 0.25) < 0.03
  # The same examples in another order and another batch: the same masks.
  np.testing.assert_array_equal(again, dropped[order])
  np.testing.assert_array_equal(evaluated, x)
  assert (other != dropped).any()


def test_dropout_arguments_are_checked():
  with pytest.raises(ValueError, match='rate'):
    Dropout(1.0).apply({}, np.ones((1, 2)), KEYS[:1], True)
  with pytest.raises(ValueError, match='keys'):
    Dropout(0.5).apply({}, np.ones((1, 2)), None, True)


DROPPING = from_linen(MLP(3, (5,), batch_norm=True, dropout=0.5), (4,))
NORMED = from_linen(MLP(3, (5,), batch_norm=True), (4,))
WEIGHTS = drawn(NORMED)
# Devices that differ in location and scale; one has no example that counts.
SPREAD = normal(size=(16, 4)) * np.arange(16)[:, None]
THERE = np.array([0, 0, 1, 1] + [1, 0] * 4 + [1, 1, 1, 0], bool)


def passes(x, keys, mask):
  """Of all examples with dropout, and of those that count."""
  return (
    DROPPING.apply(*WEIGHTS, x, keys, True),
    NORMED.apply(*WEIGHTS, x, None, True, mask),
  )


@functools.cache
def normalized(how):
  """`passes` on one device or on eight; of the examples that are there."""
  x = SPREAD.astype(np.float32)
  if how == 'alone':
    alone = lambda x: NORMED.apply(*WEIGHTS, x, None, True)
    return jax.device_get(jax.jit(alone)(x[THERE]))
  if how == 'one':
    return jax.device_get(jax.jit(passes)(x, KEYS[:16], THERE))
  mapped = jax.shard_map(
    passes,
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=((P('data'), P()), (P('data'), P())),
    check_vma=how == 'checked',
  )
  return jax.device_get(jax.jit(mapped)(x, KEYS[:16], THERE))


HOW = ['checked', pytest.param('unchecked', marks=pytest.mark.slow)]


@pytest.mark.parametrize('how', HOW)
def test_batch_norm_sees_the_global_batch(how):
  assert_close(normalized('one')[0], normalized(how)[0], atol=1e-5)


@pytest.mark.parametrize('how', ['one', *HOW])
def test_batch_norm_counts_its_mask_wherever_that_lies(how):
  """Uneven over devices, one of which has no example at all."""
  expected, kept = normalized('alone')
  found, new = normalized(how)[1]
  np.testing.assert_allclose(
    found.logits[THERE], expected.logits, rtol=1e-4, atol=1e-5
  )
  assert_close(new, kept, rtol=1e-4)


def test_a_mask_of_examples_fits_layers_of_more_rows():
  mask = np.array([True, False])
  rows = jax.jit(rows_of)(mask, np.ones((6, 3, 2)))
  assert rows.shape == (6, 1, 1)
  np.testing.assert_array_equal(np.ravel(rows), [1, 1, 1, 0, 0, 0])
  with pytest.raises(ValueError, match='5 rows, which a mask of 2'):
    jax.eval_shape(rows_of, mask, np.ones((5, 3)))


def test_batch_norm_is_that_of_flax():
  ours = batch_norm(True)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
  x = (normal(size=(6, 3, 3, 4)) * 3 + 1).astype(np.float32)

  @jax.jit
  def program(x):
    variables = theirs.init(KEY, x)
    pairs = [
      layer.apply(variables, x, mutable='batch_stats')
      for layer in (theirs, ours)
    ]
    return pairs, variables, ours.init(KEY, x)

  ((y, new), (z, own)), variables, initial = jax.device_get(program(x))
  np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-6)
  assert_close(own, new, rtol=1e-6)
  assert jax.tree.structure(initial) == jax.tree.structure(variables)


def test_batch_statistics_of_bfloat16_are_computed_in_float32():
  x = (normal(size=(4096, 2)) + 3).astype(jnp.bfloat16)
  layer = batch_norm(True, momentum=0.0, dtype=jnp.bfloat16)
  zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
  variables = {
    'params': {'scale': ones, 'bias': zeros},
    'batch_stats': {'mean': zeros, 'var': ones},
  }
  apply = functools.partial(layer.apply, mutable='batch_stats')
  y, new = jax.jit(apply)(variables, x)
  exact = np.asarray(x, np.float64)
  new = new['batch_stats']
  np.testing.assert_allclose(new['mean'], exact.mean(0), rtol=1e-5)
  np.testing.assert_allclose(new['var'], exact.var(0), rtol=1e-4)
  assert y.dtype == jnp.bfloat16


SHAPES = [(2, 6, 4, 3), (2, 7, 5, 3), (1, 3, 3, 1)]


@functools.cache
def pooled():
  """Values and gradients of ours and of Flax's, and of an image of ties."""

  def both(x, size):
    pool = lambda x: max_pool(x, size)
    theirs = lambda x: nn.max_pool(x, (size, size), (size, size))
    weight = jax.random.normal(jax.random.key(1), theirs(x).shape)
    grad = lambda f: jax.grad(lambda x: (f(x) * weight).sum())(x)
    return [(f(x), grad(f)) for f in (pool, theirs)]

  @jax.jit
  def program(xs):
    ties = jax.grad(lambda x: max_pool(x, 2).sum())(jnp.ones((1, 2, 2, 1)))
    return [[both(x, size) for size in (2, 3)] for x in xs], ties

  pairs, ties = jax.device_get(
    program([normal(size=shape).astype(np.float32) for shape in SHAPES])
  )
  of_sizes = [dict(zip((2, 3), of_shape, strict=True)) for of_shape in pairs]
  return dict(zip(SHAPES, of_sizes, strict=True)), ties


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [2, 3])
def test_max_pool_is_that_of_flax_and_so_is_its_gradient(shape, size):
  ours, theirs = pooled()[0][shape][size]
  np.testing.assert_array_equal(ours[0], theirs[0])
  np.testing.assert_array_equal(ours[1], theirs[1])
  assert (theirs[1] != 0).any()


def test_max_pool_shares_the_gradient_of_ties_and_checks_the_size():
  np.testing.assert_array_equal(pooled()[1], np.full((1, 2, 2, 1), 0.25))
  with pytest.raises(ValueError, match='size = 2 rows and columns, got 4 by 1'):
    max_pool(np.ones((1, 4, 1, 1)), 2)


MEANS, STDS = [0.4, [0.1, 0.2, 0.3]], [0.5, [0.5, 0.6, 0.7]]


@functools.cache
def standardized():
  """What the network says, of inputs and of those standardized by hand."""
  model = from_linen(MLP(2, (5,), batch_norm=True), (4, 4, 3))
  x = np.random.default_rng(0).random((6, 4, 4, 3)).astype(np.float32)

  def case(mean, std):
    ours = standardize(model, mean, std)
    by_hand = (x - np.float32(mean)) / np.float32(std)
    params, stats = model.init(KEY)
    said = [
      (
        ours.apply(params, stats, x, None, train),
        model.apply(params, stats, by_hand, None, train),
      )
      for train in (True, False)
    ]
    return ours.init(KEY), (params, stats), said

  cases = itertools.product(range(2), range(2))
  program = jax.jit(
    lambda: {f'{m}{s}': case(MEANS[m], STDS[s]) for m, s in cases}
  )
  return jax.device_get(program())


@pytest.mark.parametrize('mean', [0, 1])
@pytest.mark.parametrize('std', [0, 1])
def test_standardize_does_so_before_the_network(mean, std):
  own, initial, said = standardized()[f'{mean}{std}']
  jax.tree.map(np.testing.assert_array_equal, own, initial)
  for ours, by_hand in said:
    assert_close(ours, by_hand, rtol=1e-4, atol=1e-6)


def test_standardize_checks_its_arguments():
  model = from_linen(MLP(2), (4, 4, 1))
  with pytest.raises(ValueError, match='std must be positive'):
    standardize(model, 0.0, [0.2, 0.0])
  x = np.ones((2, 4, 4, 1), np.float32)
  for mean, std in [([0.1, 0.2, 0.3], 1.0), (0.0, [1.0, 1.0, 1.0])]:
    with pytest.raises(ValueError, match=r'ch = 1, got \(3,\)'):
      shapes_of(standardize(model, mean, std), x)


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


FOREIGN = {
  'linen': from_linen(ForeignLinen(), (4,), call=linen_call),
  'nnx': from_nnx(ForeignNNX),
}
PRESENT = np.array([1, 0, 1, 1, 0, 1], bool)


@functools.cache
def foreign(kind):
  """What a foreign network does: in one program, run twice."""
  model = FOREIGN[kind]

  @jax.jit
  def program(x, keys):
    params, stats = model.init(KEY)
    apply = lambda x, keys, train, *mask: model.apply(
      params, stats, x, keys, train, *mask
    )
    return {
      'weights': (params, stats),
      'trained': apply(x, keys[:6], True),
      'other keys': apply(x, keys[3:9], True),
      'evaluated': apply(x, None, False),
      'present': apply(x[PRESENT], keys[:4], True),
      'masked': apply(x, keys[:6], True, PRESENT),
    }

  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  first, again = (jax.device_get(program(x, KEYS[:9])) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  return first


@pytest.mark.parametrize('kind', FOREIGN)
def test_foreign_networks_train_and_evaluate(kind):
  found = foreign(kind)
  params, stats = found['weights']
  assert parameters(params) == 4 * 7 + 7 + 14 + 14 + 2
  trained, new = found['trained']
  assert jax.tree.structure(new) == jax.tree.structure(stats)
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True)
  )
  assert (found['other keys'][0].logits != trained.logits).any()
  jax.tree.map(np.testing.assert_array_equal, found['evaluated'][1], stats)
  init = jax.vmap(FOREIGN[kind].init)
  many, _ = jax.eval_shape(init, jax.random.split(KEY, 2))
  assert {leaf.shape[0] for leaf in jax.tree.leaves(many)} == {2}


@pytest.mark.parametrize('kind', FOREIGN)
def test_foreign_batch_statistics_leave_out_what_is_masked(kind):
  names = ('present', 'masked', 'trained')
  expected, found, every = (foreign(kind)[name][1] for name in names)
  assert_close(found, expected, rtol=1e-5)
  with pytest.raises(AssertionError):
    assert_close(every, expected, rtol=1e-2)
