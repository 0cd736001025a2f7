"""Networks of all kinds as models: how they are called, and what they return.

The networks here are written as the guides of Flax write theirs.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import Model, Outputs
from jnl.methods import (
  dllp,
  easy_llp,
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
  storm,
  supervised,
  supervised_bags,
  weak_em,
)
from jnl.nets import MLP, from_linen, from_nnx

KEY = jax.random.key(0)
TX = optax.sgd(0.1)


def shapes(model, *shape, train=True):
  """The outputs and new statistics, abstractly."""

  def run(key):
    keys = jax.random.split(key, shape[0]) if train else None
    return model.apply(*model.init(key), jnp.zeros(shape), keys, train)

  return jax.eval_shape(run, KEY)


# --- how they are called ------------------------------------------------------


HEARD = []


def hears(**told):
  HEARD.append(told)


class Plain(nn.Module):
  def __call__(self, x):
    hears()
    return x


class Train(nn.Module):
  def __call__(self, x, train):
    hears(train=train)
    return x


class TrainByName(nn.Module):
  def __call__(self, x, *, train):
    hears(train=train)
    return x


class Training(nn.Module):
  @nn.compact
  def __call__(self, inputs, training=True, width=3):
    hears(training=training, width=width)
    return inputs


class Deterministic(nn.Module):
  def __call__(self, x, deterministic: bool):
    hears(deterministic=deterministic)
    return x


class RunningAverage(nn.Module):
  def __call__(self, x, *, use_running_average=None):
    hears(use_running_average=use_running_average)
    return x


class Ours(nn.Module):
  def __call__(self, x, keys, train):
    hears(keys=keys is not None, train=train)
    return x


class Anything(nn.Module):
  def __call__(self, *args, **kwargs):
    hears(args=len(args), **kwargs)
    return args[0]


class Tutorial(nnx.Module):
  def __init__(self, rngs):
    self.mode = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x, rngs: nnx.Rngs | None = None):
    hears(rngs=rngs is not None, deterministic=self.mode.deterministic)
    return self.mode(x, rngs=rngs)


class Both(Tutorial):
  def __call__(self, x, train):
    hears(train=train, deterministic=self.mode.deterministic)
    return x


HOW = {
  Plain: ({}, {}),
  Train: ({'train': True}, {'train': False}),
  TrainByName: ({'train': True}, {'train': False}),
  Training: (
    {'training': True, 'width': 3},
    {'training': False, 'width': 3},
  ),
  Deterministic: ({'deterministic': False}, {'deterministic': True}),
  RunningAverage: (
    {'use_running_average': False},
    {'use_running_average': True},
  ),
  Ours: ({'keys': True, 'train': True}, {'keys': False, 'train': False}),
  Anything: ({'args': 1}, {'args': 1}),
  Tutorial: (
    {'rngs': True, 'deterministic': False},
    {'rngs': False, 'deterministic': True},
  ),
  Both: (
    {'train': True, 'deterministic': False},
    {'train': False, 'deterministic': True},
  ),
}


@pytest.mark.parametrize('net', HOW)
def test_a_network_hears_what_its_signature_asks_for(net):
  linen = issubclass(net, nn.Module)
  model = from_linen(net(), (3,)) if linen else from_nnx(net)
  for train, told in zip((True, False), HOW[net], strict=True):
    outputs, stats = shapes(model, 2, 3, train=train)
    assert HEARD[-1] == told
    # What is an array is logits, and the features.
    assert outputs.logits.shape == outputs.features.shape == (2, 3)
    assert outputs.aux == ()
    assert stats == {}


def test_the_mode_of_a_module_is_set_before_a_call_of_ones_own():
  def call(module, x, keys, train):
    hears(deterministic=module.mode.deterministic, train=train)
    return Outputs(module.mode(x), x[:, :1])

  model = from_nnx(Tutorial, call=call)
  for train in (True, False):
    outputs, _ = shapes(model, 2, 3, train=train)
    assert HEARD[-1] == {'deterministic': not train, 'train': train}
    assert outputs.features.shape == (2, 1)


# --- networks as the guides of Flax have them ---------------------------------


class Perceptron(nn.Module):
  widths: Sequence[int]

  @nn.compact
  def __call__(self, x):
    for width in self.widths[:-1]:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.widths[-1])(x)


class Bottleneck(nn.Module):
  """With `setup`, of other modules, and more methods than one."""

  width: int
  outputs: int

  def setup(self):
    self.down = Perceptron([8, self.width])
    self.up = Perceptron([8, self.outputs])

  def __call__(self, x):
    return self.up(self.encode(x))

  def encode(self, x):
    return self.down(x)


class Pixels(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(features=4, kernel_size=(3, 3))(x))
    x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = nn.relu(nn.Dense(features=8)(x.reshape((x.shape[0], -1))))
    return nn.log_softmax(nn.Dense(features=10)(x))


class Layers(nnx.Module):
  """Batch statistics and dropout, which are told by the module's mode."""

  def __init__(self, inputs, width, outputs, rngs: nnx.Rngs):
    self.first = nnx.Linear(inputs, width, rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.last = nnx.Linear(width, outputs, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.dropout(self.norm(self.first(x))))
    return self.last(x)


class Handed(nnx.Module):
  """Dropout that gets its random numbers with every call."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.conv = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
    self.dropout = nnx.Dropout(rate=0.5)
    self.last = nnx.Linear(4 * 14 * 14, 10, rngs=rngs)

  def __call__(self, x, rngs: nnx.Rngs | None = None):
    x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
    x = self.dropout(x.reshape(x.shape[0], -1), rngs=rngs)
    return self.last(x)


GUIDES = {
  'perceptron': (lambda: from_linen(Perceptron([12, 8, 4]), (10,)), (10,), 4),
  'bottleneck': (lambda: from_linen(Bottleneck(3, 10), (10,)), (10,), 10),
  'pixels': (lambda: from_linen(Pixels(), (28, 28, 1)), (28, 28, 1), 10),
  'linen layers': (
    lambda: from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), [5]),
    (5,),
    2,
  ),
  'layers': (
    lambda: from_nnx(lambda rngs: Layers(2, 64, 3, rngs=rngs)),
    (2,),
    3,
  ),
  'handed': (
    lambda: from_nnx(lambda rngs: Handed(rngs=rngs)),
    (28, 28, 1),
    10,
  ),
  'nnx layers': (
    lambda: from_nnx(
      lambda rngs: nnx.Sequential(
        nnx.Linear(5, 4, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        nnx.relu,
        nnx.Linear(4, 2, rngs=rngs),
      )
    ),
    (5,),
    2,
  ),
}


@pytest.mark.parametrize('name', GUIDES)
def test_networks_of_the_guides_are_models_as_they_are(name):
  make, shape, classes = GUIDES[name]
  model = make()
  for train in (True, False):
    outputs, _ = shapes(model, 5, *shape, train=train)
    assert outputs.logits.shape == (5, classes)


def test_a_method_trains_a_network_that_returns_logits():
  model = from_nnx(lambda rngs: Layers(2, 64, 3, rngs=rngs))
  method = elr(model, TX, num_examples=4, num_classes=3)
  batch = {
    'x': np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32),
    'labels': np.array([0, 1, 2, 0]),
    'index': np.arange(4),
    'weight': np.array([1.0, 1, 1, 0], np.float32),
  }

  @jax.jit
  def two_steps(key):
    state = first = method.init(key)
    for i in range(2):
      state, metrics = method.step(state, batch, jax.random.fold_in(key, i))
    return first, state, metrics

  first, state, metrics = jax.device_get(two_steps(KEY))
  assert np.isfinite(metrics['loss'])
  for before, after in (
    (first.params['last']['kernel'], state.params['last']['kernel']),
    (first.stats['norm']['mean'], state.stats['norm']['mean']),
  ):
    assert (before != after).any()


def test_each_dropout_of_a_module_draws_for_itself():
  class Twice(nnx.Module):
    def __init__(self, rngs):
      self.one = nnx.Dropout(0.5, rngs=rngs)
      self.two = nnx.Dropout(0.5, rngs=rngs)
      self.handed = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
      drops = self.one(x), self.two(x), self.handed(x, rngs=rngs)
      return jnp.stack(drops, -1)

  model = from_nnx(Twice)
  run = lambda keys: (
    model.apply({}, {}, jnp.ones((4, 64)), keys, True)[0].logits
  )
  keys = jax.jit(lambda k: jax.random.split(k, (2, 4)))(KEY)
  run = jax.jit(run)
  first, again, other = (
    np.asarray(run(k)) for k in (keys[0], keys[0], keys[1])
  )
  np.testing.assert_array_equal(first, again)
  masks = [*np.moveaxis(first > 0, -1, 0), *np.moveaxis(other > 0, -1, 0)]
  for i, mask in enumerate(masks):
    assert 0.3 < mask.mean() < 0.7
    for earlier in masks[:i]:
      assert 0.3 < (mask != earlier).mean() < 0.7


# --- what to write instead ----------------------------------------------------


class Pair(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x), x


class Masked(nn.Module):
  def __call__(self, x, mask, scale=1.0):
    return x


class NoInput(nn.Module):
  def __call__(self):
    return 0


class NoCall(nn.Module):
  width: int = 3


MISTAKES = {
  'a tuple': (
    lambda: shapes(from_linen(Pair(), (3,)), 2, 3),
    r'must return logits \[b, c\], or jnl.Outputs.*a tuple of 2.*call=lambda',
  ),
  'an unknown argument': (
    lambda: from_linen(Masked(), (3,)),
    r"Masked.__call__\(x, mask, scale=1.0\) needs 'mask'.*call=lambda.*mask=",
  ),
  'no input': (lambda: from_linen(NoInput(), (3,)), 'takes no input x'),
  'no call': (lambda: from_linen(NoCall(), (3,)), 'NoCall has no __call__'),
  'a class': (
    lambda: from_linen(Pixels, (28, 28, 1)),
    r'such as Pixels\(\), got the class Pixels',
  ),
  'an NNX module': (
    lambda: from_linen(Tutorial(nnx.Rngs(0)), (3,)),
    r'NNX module: nets.from_nnx\(lambda rngs: Tutorial\(..., rngs=rngs\)\)',
  ),
  'an NNX class': (lambda: from_linen(Tutorial, (3,)), 'NNX module: nets'),
  'shape first': (lambda: from_linen((3,), Plain()), 'Linen module, got tuple'),
  'a number for a shape': (
    lambda: from_linen(Plain(), 3),
    r'shape must be .* without the batch, such as \(28, 28, 1\), got 3',
  ),
  'an instance': (
    lambda: from_nnx(Tutorial(nnx.Rngs(0))),
    r'lambda rngs: Tutorial\(..., rngs=rngs\)\), got a Tutorial',
  ),
  'a class of more arguments': (
    lambda: from_nnx(Layers),
    r'inputs.*cannot be called with the rngs alone: nets.from_nnx\(lambda',
  ),
  'rngs by name alone': (
    lambda: from_nnx(Handed),
    r'lambda rngs: Handed\(..., rngs=rngs\)',
  ),
  'a Linen module': (
    lambda: from_nnx(Plain()),
    r'Linen module: nets.from_linen\(Plain\(...\), shape\)',
  ),
  'a Linen class': (lambda: from_nnx(Plain), 'Linen module: nets.from_linen'),
  'a Linen module, built': (
    lambda: from_nnx(lambda rngs: Plain()),
    'must make an NNX module, got Plain',
  ),
  'no function': (lambda: from_nnx(3), 'function of nnx.Rngs, got int'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_say_what_to_write(name):
  run, message = MISTAKES[name]
  with pytest.raises(TypeError, match=message):
    run()


MANY = {'num_examples': 4, 'num_classes': 3}
METHODS = {
  'supervised': functools.partial(supervised, losses.ce),
  'supervised_bags': functools.partial(supervised_bags, lambda z, batch: z),
  'elr': functools.partial(elr, **MANY),
  'proden': functools.partial(proden, **MANY),
  'ill_noisy': lambda m, tx: ill_noisy(m, tx, tx, num_classes=3),
  'ill_partial': ill_partial,
  'ill_semi': functools.partial(ill_semi, num_classes=3),
  'ill_mixed': lambda m, tx: ill_mixed(m, tx, tx, num_classes=3),
  'dllp': dllp,
  'easy_llp': functools.partial(easy_llp, prior=0.5),
  'weak_em': lambda m, tx: weak_em(m, tx, lambda z, batch: z),
  'l2rw': functools.partial(l2rw, num_examples=4),
  'mwn': lambda m, tx: mwn(m, tx, tx, num_examples=4),
  'mslc': lambda m, tx: mslc(m, tx, tx, **MANY),
  'mlc': functools.partial(mlc, num_features=3, **MANY),
  'storm': functools.partial(storm, batch_size=2, **MANY),
}


@pytest.mark.parametrize('name', METHODS)
def test_a_method_says_how_a_network_becomes_a_model(name):
  for net in (MLP(3), MLP, Tutorial(nnx.Rngs(0)), lambda x: x):
    with pytest.raises(TypeError, match=r'model must.*from_linen\(.*from_nnx'):
      METHODS[name](net, TX)
  assert METHODS[name](Model(lambda key: ({}, {}), lambda *args: args), TX)
