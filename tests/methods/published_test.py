"""Published settings: they fit what they are for, and train as they say."""

import inspect

import jax
import numpy as np
import pytest

from jnl import losses, methods, nets, noise
from jnl.data import NOISES
from jnl.methods._published import (
  LOSSES,
  Settings,
  known_settings,
  published,
)
from jnl.train import script

OF_METHODS = (
  'elr', 'elr_plus', 'divide_mix', 'co_teaching', 'co_teaching_plus', 'jocor',
  'sop', 'sop_plus', 'gjs', 'dynamic_bootstrap', 'cores', 'peer', 'forward_t',
  'dual_t', 't_revision', 'vol_min', 'ill_noisy', 'ill_partial', 'mix_match',
  'pseudo_label', 'uda', 'fixmatch', 'flexmatch', 'freematch', 'softmatch',
  'adamatch', 'dash', 'shrinkmatch', 'mean_teacher',
)  # fmt: skip


@pytest.mark.parametrize('name', [*OF_METHODS, *LOSSES])
def test_settings_fit_what_they_are_for(name):
  known = known_settings(name)
  home = losses if name in LOSSES else methods
  takes = inspect.signature(getattr(home, name)).parameters
  assert known
  for (_, generator, rate), settings in known.items():
    assert settings.method == name
    assert settings.source
    assert set(settings.arguments) <= set(takes)
    assert generator in (*NOISES, 'missing') or hasattr(noise, generator)
    assert rate is None or 0 < rate < 1
    assert settings.views in ('', *script.VIEWS)
    assert settings.epochs > max(settings.drops, default=0)
    nets.build(settings.net, 10)


def test_what_is_quoted():
  elr = published('elr', 'cifar100', 'cifar100_index_blocks', 0.3)
  assert elr.arguments == {'beta': 0.9, 'lam': 7}
  assert (elr.epochs, elr.drops, elr.drop) == (150, (80, 120), 0.01)
  ill = published('ill_noisy', 'cifar100', 'symmetric_inclusive', 0.8)
  assert ill.arguments['scale'] == 2.5
  # Of any rate; one loss has another penalty than the rest.
  sce = published('sce', 'cifar100', 'symmetric', 0.35)
  anl = published('anl_ce', 'cifar100', 'symmetric')
  assert sce.arguments == {'alpha': 6, 'beta': 0.1}
  assert (sce.weight_decay, sce.l1) == (1e-5, 0)
  assert (anl.weight_decay, anl.l1) == (0, 5e-7)
  # Of few labels, however many: 2^20 steps, to the nearest epoch.
  mixed = published('mix_match', 'cifar100', 'missing')
  assert mixed.arguments['lam'] == 150
  assert (mixed.batch_size, mixed.labeled, mixed.weight_decay) == (64, 64, 1e-3)
  steps = mixed.epochs * (50_000 // mixed.batch_size)
  np.testing.assert_allclose(steps, 2**20, rtol=1e-3)


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (('elr', 'cifar10', 'pair_flip', 0.4), 'cifar10, symmetric_inclusive, 0.2'),
    (
      ('elr', 'cifar10', 'symmetric_inclusive', 0.3),
      'symmetric_inclusive, 0.3',
    ),
    (('gce', 'mnist', 'symmetric', 0.4), 'cifar10, symmetric, any rate; '),
    (('cc', 'cifar10', 'symmetric', 0.4), 'settings of cc .* none at all'),
  ],
)
def test_what_is_not_known_is_an_error_that_lists_what_is(argv, message):
  with pytest.raises(ValueError, match=message):
    published(*argv)


def test_the_optimizer_is_what_it_says():
  """Against the steps written out: L1, shortened, L2, momentum, cosine."""
  settings = Settings(
    '', 'ce', 'mlp', epochs=2, batch_size=1, learning_rate=0.5, l1=2.0,
    max_norm=1.0, weight_decay=0.1, cosine_to=0.1,
  )  # fmt: skip
  tx, w = settings.optimizer(steps=2), np.float32([1, -2])
  gradient = np.float32([1, -2])
  state, step = jax.jit(tx.init)(w), jax.jit(tx.update)
  own, trace = np.array(w), np.zeros(2)
  for i in range(5):
    update, state = step(gradient, state, w)
    w = w + np.asarray(update)
    slope = gradient + 2 * np.sign(own)
    slope = slope / max(1, np.linalg.norm(slope)) + 0.1 * own
    trace = slope + 0.9 * trace
    rate = 0.1 + 0.4 * (1 + np.cos(np.pi * min(i / 4, 1))) / 2
    own = own - rate * trace
    np.testing.assert_allclose(w, own, rtol=1e-5)


def test_a_rate_may_fall_along_a_part_of_a_cosine():
  settings = Settings(
    '', 'fixmatch', 'mlp', 2, 1, 0.03, momentum=0.0, cosine_turn=7 / 16
  )
  tx, w = settings.optimizer(steps=2), np.ones(2, np.float32)
  state, step = jax.jit(tx.init)(w), jax.jit(tx.update)
  for i in (0, 1, 2, 3, 4, 4):  # and stays where it ends
    update, state = step(w, state, w)
    np.testing.assert_allclose(
      update, -0.03 * np.cos(7 / 16 * np.pi * i / 4), rtol=1e-5
    )
