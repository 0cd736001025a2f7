"""Methods and losses by name: what they are told, and what is refused."""

import jax
import numpy as np
import optax
import pytest

from jnl.methods import build, known_names, takes
from jnl.steps import linear


def test_sizes_are_read_off_the_training_set():
  args = linear(3, 2), optax.sgd(0.1)
  sizes = {'x': np.zeros((50, 3)), 'num_classes': 2, 'batch_size': 16}

  def start(name, **own):
    method = build(name, *args, **{**sizes, **own})
    return jax.eval_shape(method.init, jax.random.key(0))

  cpc = start('cpc', width=5)
  assert cpc.params[1].projection.shape == (3, 5)
  assert cpc.extra.posterior.rows.shape == (2, 25)
  assert start('elr', shards=1).extra.rows.shape == (1, 50, 2)
  assert takes('peer', 'steps_per_epoch')
  start('peer', batch_size=64)  # fewer rows are an epoch of one step
  assert not takes('elr', 'steps_per_epoch')


def test_names_of_both_are_methods_and_losses_train():
  assert {'elr', 'gce', 'peer', 'supervised'} & {*known_names()} == {
    'elr',
    'gce',
    'peer',
  }
  assert takes('peer', 'steps_per_epoch')
  args = linear(3, 2), optax.sgd(0.1)
  sizes = {'x': np.zeros((8, 3)), 'num_classes': 2, 'batch_size': 4}
  method = build('gce', *args, **sizes, q=0.5)
  batch = {
    'x': np.zeros((4, 3), np.float32),
    'labels': np.zeros(4, np.int32),
    'index': np.arange(4),
    'weight': np.ones(4, np.float32),
  }
  loss = lambda: method.step(
    method.init(jax.random.key(0)), batch, jax.random.key(0)
  )[1]['loss']
  np.testing.assert_allclose(jax.jit(loss)(), (1 - 0.5**0.5) / 0.5, rtol=1e-6)
  for name, own, match in (
    ('elrr', {}, "unknown method 'elrr'; did you mean 'elr'"),
    ('elr', {'lamb': 1}, "argument of elr 'lamb'; did you mean 'lam"),
    ('gce', {'qq': 1}, "argument of gce 'qq'; did you mean 'q'"),
  ):
    with pytest.raises(ValueError, match=match):
      build(name, *args, **sizes, **own)
