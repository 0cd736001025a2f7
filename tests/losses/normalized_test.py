"""Normalized losses and their combinations."""

from fixture_losses import B, C, close, draw, grad, slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses


@pytest.mark.parametrize(
  ('loss', 'hp', 'total'),
  [
    (losses.nce, {}, 1),
    (losses.nmae, {}, 1),
    (losses.nrce, {}, 1),
    (losses.ngce, {'q': 0.3}, 1),
    (losses.nfl, {'gamma': 1.5}, 1),
    (losses.nnce, {}, C - 1),
    (losses.nnfl, {'gamma': 1.5}, C - 1),
  ],
  ids=lambda v: getattr(v, '__name__', ''),
)
@pytest.mark.parametrize('scale', [0.0, 2.0, 1e4])
def test_normalized_losses_are_symmetric(loss, hp, total, scale):
  z, _ = draw(scale=scale)
  values = sum(loss(z, jnp.full(B, k), **hp) for k in range(C))
  close(values, total, rtol=2e-5)


def test_limits():
  z, y = draw()
  for q in (0.0, 1e-5):
    close(losses.ngce(z, y, q=q), losses.nce(z, y), rtol=1e-4)
  close(losses.ngce(z, y, q=1.0), losses.nmae(z, y))
  close(slope(losses.ngce, z, y, q=0.0), slope(losses.nce, z, y), rtol=1e-4)
  close(losses.nfl(z, y, gamma=0.0), losses.nce(z, y))
  close(losses.nnfl(z, y, gamma=0.0), losses.nnce(z, y))
  close(losses.focal(z, y, gamma=0.0), losses.ce(z, y))
  close(losses.nrce(z, y), losses.nmae(z, y))


def test_ngce_clip_is_the_clipped_form():
  z, y = draw(scale=10.0)
  p = np.clip(np.asarray(jax.nn.softmax(z)), 1e-3, 1)
  expected = (1 - p[np.arange(B), y] ** 0.4) / (C - (p**0.4).sum(-1))
  close(losses.ngce(z, y, q=0.4, clip=1e-3), expected, rtol=1e-4)


def test_focal_gradients():
  z, y = draw()
  one_hot, p = jax.nn.one_hot(y, C), jax.nn.softmax(z)
  own = jnp.sum(one_hot * p, axis=-1, keepdims=True)
  d_log_p = one_hot - p
  constant = -((1 - own) ** 1.5) * d_log_p
  through = 1.5 * jnp.sqrt(1 - own) * own * jnp.log(own) * d_log_p
  close(slope(losses.focal, z, y, gamma=1.5, detach=True), constant)
  close(slope(losses.focal, z, y, gamma=1.5), constant + through)


def test_nfl_detaches_by_default():
  z, y = draw()
  factor = (1 - jax.nn.softmax(z)) ** 0.5

  def reference(z):
    terms = factor * jax.nn.log_softmax(z)
    own = jnp.take_along_axis(terms, y[:, None], axis=-1)[:, 0]
    return own / jnp.sum(terms, axis=-1)

  expected = grad(lambda z: reference(z).sum())(z)
  close(slope(losses.nfl, z, y), expected, rtol=1e-4)
  assert not np.allclose(slope(losses.nfl, z, y, detach=False), expected)


def test_nnce_equation_and_dead_classes():
  z, y = draw(scale=10.0)
  a = -np.log(1e-3)
  surplus = np.maximum(a + np.asarray(jax.nn.log_softmax(z)), 0)
  expected = 1 - surplus[np.arange(B), y] / surplus.sum(-1)
  close(losses.nnce(z, y, min_prob=1e-3), expected)
  dead = losses.nnce(jnp.array([0.0, 50.0]), jnp.array(0))
  close(dead, 1.0)
  gradient = slope(losses.nnce, jnp.array([0.0, 50.0]), jnp.array(0))
  close(gradient, 0)


COMBINED = [
  (losses.nce_rce, losses.nce, losses.rce, {}, {}),
  (losses.nce_mae, losses.nce, losses.mae, {}, {}),
  (losses.nfl_rce, losses.nfl, losses.rce, {'gamma': 0.7}, {}),
  (losses.nfl_mae, losses.nfl, losses.mae, {'gamma': 0.7}, {}),
  (losses.ngce_rce, losses.ngce, losses.rce, {'q': 0.4}, {}),
  (losses.ngce_mae, losses.ngce, losses.mae, {'q': 0.4}, {}),
  (losses.nce_agce, losses.nce, losses.agce, {}, {'a': 1.8, 'q': 3.0}),
  (losses.nce_aul, losses.nce, losses.aul, {}, {'a': 6.0, 'q': 3.0}),
  (losses.nce_ael, losses.nce, losses.ael, {}, {'a': 1.5}),
  (losses.anl_ce, losses.nce, losses.nnce, {}, {'min_prob': 1e-5}),
  (losses.anl_fl, losses.nfl, losses.nnfl, {'gamma': 0.7}, {'gamma': 0.7}),
]


@pytest.mark.parametrize(
  ('loss', 'first', 'second', 'hp1', 'hp2'),
  COMBINED,
  ids=lambda v: getattr(v, '__name__', ''),
)
def test_combinations_are_weighted_sums(loss, first, second, hp1, hp2):
  z, y = draw()
  got = loss(z, y, alpha=0.3, beta=1.7, **{**hp1, **hp2})
  close(got, 0.3 * first(z, y, **hp1) + 1.7 * second(z, y, **hp2))


@pytest.mark.parametrize('loss', [losses.nce_rce, losses.nfl_rce])
def test_combinations_hand_on_the_clip_and_log_zero(loss):
  z, y = draw(scale=10.0)
  plain = loss(z, y)
  assert not np.allclose(loss(z, y, clip=1e-2), plain)
  assert not np.allclose(loss(z, y, log_zero=-4.0), plain)
