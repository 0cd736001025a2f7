"""The published networks: their sizes, and their equations in plain numpy."""

import functools

from cost import slow
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from jnl.base import State, example_keys
from jnl.losses import ce
from jnl.nets import (
  CNN8,
  Dropout,
  PreActResNet,
  ResNet,
  WideResNet,
  build,
  from_linen,
)
from jnl.steps import supervised
from jnl.train import data_mesh

KEY = jax.random.key(0)

# Every network cut down, with its number of features.
SMALL = {
  'cnn8': (CNN8(3, (4, 6), 7), 7),
  'resnet': (ResNet(3, (1, 2), 4), 8),
  'preact': (PreActResNet(3, (1, 2), 4), 8),
  'preact_identity': (PreActResNet(3, (1, 2), 4, identity=True), 8),
  'wide': (WideResNet(3, 10, 1, slope=0.1, momentum=0.999), 64),
  'wide_relu': (WideResNet(3, 10, 1), 64),
}


# One of each code.
FAMILIES = ('cnn8', 'resnet', 'preact', 'wide')


def at_first(*names, of=tuple(SMALL)):
  """These networks at once, the others in the slow stage."""
  others = sorted(set(of) - set(names))
  later = [slow(name) for name in others]
  return pytest.mark.parametrize('name', [*names, *later])


# One even and one odd side: strides pad alike at both ends.
X = np.random.default_rng(0).normal(size=(8, 8, 7, 3)).astype(np.float32)
KEYS = jax.jit(example_keys)(KEY, np.arange(8))


def drawn(tree, seed):
  """Every leaf of size .15 to .45, either sign: no scale is 1, no bias 0."""
  rng = np.random.default_rng(seed)

  def draw(a):
    sign = rng.choice([-1, 1], a.shape)
    return np.float32(sign * rng.uniform(0.15, 0.45, a.shape))

  return jax.tree.map(draw, tree)


def weights(name, seed=1):
  """Parameters and statistics, without compiling an initialization."""
  model = from_linen(SMALL[name][0], X.shape[1:])
  params, stats = jax.eval_shape(model.init, KEY)
  return drawn(params, seed), jax.tree.map(np.abs, drawn(stats, seed + 1))


@functools.cache
def applied(name, train, dtype=None):
  """The compiled pass of a network, for the inputs X: one for all tests."""
  model = from_linen(SMALL[name][0].copy(dtype=dtype), X.shape[1:])
  return jax.jit(
    lambda params, stats: model.apply(params, stats, X, KEYS, train)
  )


@functools.cache
def passed(name, train, dtype=None):
  return jax.device_get(applied(name, train, dtype)(*weights(name)))


# --- sizes -------------------------------------------------------------------


def conv(i, o, size=3):
  return size * size * i * o


def bn(channels):
  return 2 * channels


def dense(i, o):
  return i * o + o


def count(params):
  return sum(a.size for a in jax.tree.leaves(params))


def cnn8(classes):
  total = 0
  for i, o in [
    (3, 64),
    (64, 64),
    (64, 128),
    (128, 128),
    (128, 196),
    (196, 196),
  ]:
    total += conv(i, o) + o + bn(o)
  return total + dense(4 * 4 * 196, 256) + bn(256) + dense(256, classes)


def resnet34(classes):
  total, i = conv(3, 64) + bn(64), 64
  for o, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
    for _ in range(blocks):
      total += conv(i, o) + bn(o) + conv(o, o) + bn(o)
      total += conv(i, o, 1) + bn(o) if i != o else 0
      i = o
  return total + dense(512, classes)


def preact_stages(stages, i):
  total = 0
  for o, blocks in stages:
    for _ in range(blocks):
      total += bn(i) + conv(i, o) + bn(o) + conv(o, o)
      total += conv(i, o, 1) if i != o else 0
      i = o
  return total


def kuangliu_preact(blocks, classes):
  stages = zip((64, 128, 256, 512), blocks, strict=True)
  return conv(3, 64) + preact_stages(stages, 64) + dense(512, classes)


def dividemix_preact(blocks, classes):
  return kuangliu_preact(blocks, classes) + bn(64)


def wide_resnet(depth, k, classes):
  n = (depth - 4) // 6
  stages = [(16 * k, n), (32 * k, n), (64 * k, n)]
  stages = preact_stages(stages, 16)
  return conv(3, 16) + stages + bn(64 * k) + dense(64 * k, classes)


@pytest.mark.parametrize(
  ('name', 'classes', 'table', 'expected', 'features'),
  [
    ('cnn8', 10, cnn8(10), 1_639_794, 256),
    ('resnet34', 10, resnet34(10), 21_282_122, 512),
    (
      'preact_resnet18',
      10,
      dividemix_preact((2, 2, 2, 2), 10),
      11_171_274,
      512,
    ),
    slow(
      'preact_resnet34', 10, dividemix_preact((3, 4, 6, 3), 10), 21_279_434, 512
    ),
    ('wide_resnet28_2', 10, wide_resnet(28, 2, 10), 1_467_610, 128),
    ('wide_resnet28_10', 10, wide_resnet(28, 10, 10), 36_479_194, 640),
  ],
)
def test_sizes_are_those_of_the_official_codes(
  name, classes, table, expected, features
):
  model = from_linen(build(name, classes, dtype=jnp.bfloat16), (32, 32, 3))
  params, stats = jax.eval_shape(model.init, KEY)
  assert count(params) == table == expected
  assert {a.dtype for a in jax.tree.leaves((params, stats))} == {
    jnp.dtype('float32')
  }
  apply = lambda *args: model.apply(*args, None, True)
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  outputs, new = jax.eval_shape(apply, params, stats, x)
  assert outputs.logits.shape == (2, classes)
  assert outputs.features.shape == (2, features)
  assert outputs.logits.dtype == outputs.features.dtype == jnp.bfloat16
  assert new == stats


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'table', 'expected'),
  [
    ('cnn8', cnn8(100), 1_662_924),
    ('resnet34', resnet34(100), 21_328_292),
    ('preact_resnet18', dividemix_preact((2, 2, 2, 2), 100), 11_217_444),
    ('preact_resnet34', dividemix_preact((3, 4, 6, 3), 100), 21_325_604),
    ('wide_resnet28_2', wide_resnet(28, 2, 100), 1_479_220),
    ('wide_resnet28_10', wide_resnet(28, 10, 100), 36_536_884),
  ],
)
def test_sizes_with_a_hundred_classes(name, table, expected):
  module = build(name, 100)
  x = np.zeros((1, 32, 32, 3), np.float32)
  outputs, variables = jax.eval_shape(
    lambda key: module.init_with_output(key, x, None, False), KEY
  )
  assert count(variables['params']) == table == expected
  assert outputs.logits.shape == (1, 100)


def test_sizes_are_those_of_the_papers():
  millions = lambda count: round(count / 1e6, 1)
  # As the papers give them, in millions.
  assert millions(wide_resnet(28, 10, 10)) == 36.5
  assert millions(wide_resnet(28, 2, 10)) == 1.5


def test_the_preactivated_network_of_the_paper_has_one_norm_more_at_the_end():
  model = from_linen(PreActResNet(10, identity=True), (32, 32, 3))
  params, _ = jax.eval_shape(model.init, KEY)
  # kuangliu/pytorch-cifar counts 11,171,146 without that norm.
  assert kuangliu_preact((2, 2, 2, 2), 10) == 11_171_146
  assert count(params) == 11_171_146 + bn(512)


@pytest.mark.parametrize('depth', [4, 27, 30])
def test_depth_of_a_wide_network_is_checked(depth):
  model = from_linen(WideResNet(10, depth), (8, 8, 3))
  with pytest.raises(ValueError, match=r'6 n \+ 4'):
    jax.eval_shape(model.init, KEY)


# --- equations ---------------------------------------------------------------


class Reference:
  """The networks in float64 numpy, with the parameters by their names."""

  def __init__(self, params, stats, train, slope=0.0):
    f64 = lambda a: np.asarray(a, np.float64)
    self.params = jax.tree.map(f64, params)
    self.stats = jax.tree.map(f64, stats.get('batch_stats', {}))
    self.train, self.slope = train, slope

  def inside(self, name):
    self_of = Reference({}, {}, self.train, self.slope)
    self_of.params, self_of.stats = self.params[name], self.stats[name]
    return self_of

  def conv(self, i, x, stride=1):
    """Cross-correlation padded alike on all sides, offset by offset."""
    p = self.params[f'Conv_{i}']
    kernel = p['kernel']
    size = kernel.shape[0]
    pad = (size - 1) // 2
    h, w = x.shape[1:3]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = p.get('bias', 0.0)
    for di in range(size):
      for dj in range(size):
        window = x[:, di : di + h : stride, dj : dj + w : stride]
        out = out + window @ kernel[di, dj]
    return out

  def bn(self, i, x):
    name = f'BatchNorm_{i}'
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    if not self.train:
      mean, var = self.stats[name]['mean'], self.stats[name]['var']
    p = self.params[name]
    return (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']

  def act(self, x):
    return np.where(x > 0, x, self.slope * x)

  def dense(self, i, x):
    p = self.params[f'Dense_{i}']
    return x @ p['kernel'] + p['bias']

  def preact_block(self, x, stride, change, identity):
    active = self.act(self.bn(0, x))
    h = self.act(self.bn(1, self.conv(0, active, stride)))
    h = self.conv(1, h)
    if change:
      return h + self.conv(2, active, stride)
    return h + (x if identity else active)

  def basic_block(self, x, stride, change):
    h = self.act(self.bn(0, self.conv(0, x, stride)))
    h = self.bn(1, self.conv(1, h))
    skip = self.bn(2, self.conv(2, x, stride)) if change else x
    return self.act(h + skip)

  def read_out(self, x):
    features = x.mean((1, 2))
    return self.dense(0, features), features

  def cnn8(self, x):
    for i in range(4):
      x = self.act(self.bn(i, self.conv(i, x)))
      if i % 2:
        b, h, w, ch = x.shape
        even = x[:, : h // 2 * 2, : w // 2 * 2]
        x = even.reshape(b, h // 2, 2, w // 2, 2, ch).max((2, 4))
    features = self.act(self.bn(4, self.dense(0, x.reshape(len(x), -1))))
    return self.dense(1, features), features

  def resnet(self, x):
    x = self.act(self.bn(0, self.conv(0, x)))
    x = self.inside('BasicBlock_0').basic_block(x, 1, False)
    x = self.inside('BasicBlock_1').basic_block(x, 2, True)
    x = self.inside('BasicBlock_2').basic_block(x, 1, False)
    return self.read_out(x)

  def preact(self, x):
    x = self.act(self.bn(0, self.conv(0, x)))
    x = self.inside('PreActBlock_0').preact_block(x, 1, False, False)
    x = self.inside('PreActBlock_1').preact_block(x, 2, True, False)
    x = self.inside('PreActBlock_2').preact_block(x, 1, False, False)
    return self.read_out(x)

  def preact_identity(self, x):
    x = self.conv(0, x)
    x = self.inside('PreActBlock_0').preact_block(x, 1, False, True)
    x = self.inside('PreActBlock_1').preact_block(x, 2, True, True)
    x = self.inside('PreActBlock_2').preact_block(x, 1, False, True)
    return self.read_out(self.act(self.bn(0, x)))

  def wide(self, x):
    x = self.conv(0, x)
    x = self.inside('PreActBlock_0').preact_block(x, 1, False, True)
    x = self.inside('PreActBlock_1').preact_block(x, 2, True, True)
    x = self.inside('PreActBlock_2').preact_block(x, 2, True, True)
    return self.read_out(self.act(self.bn(0, x)))

  wide_relu = wide


def check_equations(name, train):
  params, stats = weights(name)
  found, new = passed(name, train)
  slope = getattr(SMALL[name][0], 'slope', 0.0)
  reference = Reference(params, stats, train, slope)
  logits, features = getattr(reference, name)(np.asarray(X, np.float64))
  assert features.shape == (8, SMALL[name][1])
  np.testing.assert_allclose(found.logits, logits, rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(found.features, features, rtol=2e-4, atol=2e-4)
  if not train:
    jax.tree.map(np.testing.assert_array_equal, new, stats)


@at_first('cnn8', 'resnet', 'preact', 'preact_identity', 'wide')
def test_equations_in_training_are_those_of_the_paper(name):
  check_equations(name, train=True)


@at_first('preact')
def test_equations_of_the_evaluation_are_those_of_the_paper(name):
  check_equations(name, train=False)


@pytest.mark.parametrize(
  ('name', 'first', 'momentum'),
  [
    ('resnet', None, 0.9),
    ('preact', None, 0.9),
    ('wide', 'PreActBlock_0', 0.999),
    slow('wide_relu', 'PreActBlock_0', 0.9),
  ],
)
def test_running_statistics_move_as_in_pytorch(name, first, momentum):
  params, stats = weights(name)
  _, new = passed(name, True)
  h = Reference(params, stats, True).conv(0, np.asarray(X, np.float64))
  old, new = (s['batch_stats'] for s in (stats, new))
  if first:
    old, new = old[first], new[first]
  for key, batch in [('mean', h.mean((0, 1, 2))), ('var', h.var((0, 1, 2)))]:
    before, after = (s['BatchNorm_0'][key] for s in (old, new))
    expected = momentum * before + (1 - momentum) * batch
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('module', 'path', 'expected'),
  [
    # PyTorch's default: U(-a, a) with a = 1 / sqrt(fan in).
    slow(ResNet(3, (1,)), ('BasicBlock_0', 'Conv_1'), (3 * 576) ** -0.5),
    (PreActResNet(3, (1,)), ('PreActBlock_0', 'Conv_0'), (3 * 576) ** -0.5),
    # N(0, 2 / fan out).
    (WideResNet(3, 10, 2), ('PreActBlock_1', 'Conv_0'), (2 / 576) ** 0.5),
    # He's and Glorot's uniform.
    (CNN8(3, (64,)), ('Conv_1',), (2 / 576) ** 0.5),
    (CNN8(3, (64,)), ('Dense_0',), (2 / (1024 + 256)) ** 0.5),
  ],
)
def test_kernels_start_as_in_the_official_codes(module, path, expected):
  model = from_linen(module, (8, 8, 3))

  @jax.jit  # The other kernels are not drawn: their compilation is slow.
  def kernel_of(key):
    kernel = model.init(key)[0]
    for part in (*path, 'kernel'):
      kernel = kernel[part]
    return kernel

  kernel = np.asarray(kernel_of(KEY))
  assert kernel.std() == pytest.approx(expected, rel=0.02)
  largest = abs(kernel).max() / expected
  if isinstance(module, WideResNet):
    assert largest > 3
  else:
    assert 1.7 < largest <= 3**0.5 + 1e-5


# --- behavior ----------------------------------------------------------------


@at_first('preact', of=FAMILIES)
def test_a_few_steps_decrease_the_loss(name):
  model = from_linen(SMALL[name][0], X.shape[1:])
  tx = optax.sgd(0.05, 0.9)
  batch = {
    'x': X,
    'labels': np.arange(8) % 3,
    'weight': np.ones(8, np.float32),
    'index': np.arange(8),
  }
  params, stats = weights(name)
  state = State(jnp.int32(0), params, stats, jax.jit(tx.init)(params))
  step = jax.jit(supervised(ce, model, tx).step)
  values = []
  for i in range(20):
    state, metrics = step(state, batch, jax.random.fold_in(KEY, i))
    values.append(float(metrics['loss']))
  assert values[-1] < 0.8 * values[0], values


@at_first('preact', of=FAMILIES)
def test_bfloat16_is_close_to_float32(name):
  expected, new = passed(name, True)
  found, new_low = passed(name, True, jnp.bfloat16)
  for a, b in zip(found[:2], expected[:2], strict=True):
    assert a.dtype == jnp.bfloat16
    error = np.linalg.norm(a.astype(np.float32) - b)
    assert error < 0.05 * np.linalg.norm(b)
  for a, b in zip(*map(jax.tree.leaves, (new_low, new)), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


@at_first('preact', of=FAMILIES)
def test_networks_are_mapped_over_seeds(name):
  model = from_linen(SMALL[name][0], X.shape[1:])
  one = jax.eval_shape(model.init, KEY)
  many = jax.eval_shape(jax.vmap(model.init), jax.random.split(KEY, 2))
  assert jax.tree.map(lambda a: (2, *a.shape), one) == jax.tree.map(
    lambda a: a.shape, many
  )
  seeds = [weights(name, seed) for seed in (1, 3)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
  together = jax.jit(jax.vmap(applied(name, True)))(*stacked)
  alone = [applied(name, True)(*seed) for seed in seeds]
  alone = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    together,
    alone,
  )


@pytest.mark.parametrize(
  ('name', 'check_vma'),
  [
    ('preact', True),
    slow('resnet', True),
    slow('wide', False),
  ],
)
def test_statistics_are_of_the_global_batch(name, check_vma):
  model = from_linen(SMALL[name][0], X.shape[1:])
  params, stats = weights(name)
  # A device has one example: by its own statistics it would say otherwise.
  run = jax.jit(lambda x, keys: model.apply(params, stats, x, keys, True))
  alone, _ = run(X[:1], KEYS[:1])
  expected = passed(name, True)
  assert (abs(alone.logits - expected[0].logits[:1]) > 0.03).any()
  apply = jax.shard_map(
    lambda x, keys: model.apply(params, stats, x, keys, True),
    mesh=data_mesh(),
    in_specs=P('data'),
    out_specs=(P('data'), P()),
    check_vma=check_vma,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    jax.jit(apply)(X, KEYS),
    expected,
  )


def test_wide_networks_drop_units_by_the_example_key_and_by_block():
  # The slope leaves no unit at zero but those that are dropped.
  module = WideResNet(3, 16, 1, dropout=0.4, slope=0.1)
  shapes = jax.eval_shape(from_linen(module, (8, 8, 3)).init, KEY)
  params, stats = (
    drawn(shapes[0], 1),
    jax.tree.map(np.abs, drawn(shapes[1], 2)),
  )

  @jax.jit
  def apply(x, keys):
    """Logits, and where the dropout of the first two blocks let through."""
    outputs, new = module.apply(
      {'params': params, **stats},
      x,
      keys,
      True,
      mutable=['intermediates', 'batch_stats'],
      capture_intermediates=lambda m, _: isinstance(m, Dropout),
    )
    blocks = [new['intermediates'][f'PreActBlock_{i}'] for i in range(2)]
    return outputs.logits, [b['Dropout_0']['__call__'][0] != 0 for b in blocks]

  x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
  logits, (first, second) = jax.device_get(apply(x, KEYS[:4]))
  assert float(first.mean()) == pytest.approx(0.6, abs=0.03)
  assert float((first != second).mean()) == pytest.approx(0.48, abs=0.03)
  order = np.array([2, 0, 3, 1])
  again, (first_again, _) = apply(x[order], KEYS[order])
  np.testing.assert_array_equal(first_again, first[order])
  np.testing.assert_allclose(again, logits[order], rtol=1e-3, atol=1e-4)
  _, (other, _) = jax.device_get(apply(x, KEYS[4:]))
  assert (other != first).any()
