"""Normalized losses and their combinations."""

from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses

Z, Y = draw()
SCALES = [0.0, 2.0, 1e4]
SYMMETRIC = [
  # loss, hyperparameters, its sum over all labels
  (losses.nce, {}, 1),
  (losses.nmae, {}, 1),
  (losses.nrce, {}, 1),
  (losses.ngce, {'q': 0.3}, 1),
  (losses.nfl, {'gamma': 1.5}, 1),
  (losses.nnce, {}, C - 1),
  (losses.nnfl, {'gamma': 1.5}, C - 1),
]


def test_normalized_losses_are_symmetric():
  z = np.repeat([draw(scale=scale)[0] for scale in SCALES], C, axis=1)
  y = np.tile(np.arange(C), [len(SCALES), B])
  found = run(lambda z: [loss(z, y, **hp) for loss, hp, _ in SYMMETRIC], z)
  for (loss, _, total), values in zip(SYMMETRIC, found, strict=True):
    sums = values.reshape(-1, C).sum(1)
    close(sums, total, rtol=2e-5, err_msg=loss.__name__)


def test_limits():
  pairs = {
    'ngce, q = 0': (lambda z: losses.ngce(z, Y, q=0.0), losses.nce, 1e-4),
    'ngce, small q': (lambda z: losses.ngce(z, Y, q=1e-5), losses.nce, 1e-4),
    'ngce, q = 1': (lambda z: losses.ngce(z, Y, q=1.0), losses.nmae, 1e-5),
    'nfl': (lambda z: losses.nfl(z, Y, gamma=0.0), losses.nce, 1e-5),
    'nnfl': (lambda z: losses.nnfl(z, Y, gamma=0.0), losses.nnce, 1e-5),
    'focal': (lambda z: losses.focal(z, Y, gamma=0.0), losses.ce, 1e-5),
    'nrce': (lambda z: losses.nrce(z, Y), losses.nmae, 1e-5),
  }
  found, slopes = run(
    lambda z: (
      {
        name: (loss(z), limit(z, Y)) for name, (loss, limit, _) in pairs.items()
      },
      [
        jax.grad(lambda z, f=f: f(z, Y).sum())(z)
        for f in (lambda z, y: losses.ngce(z, y, q=0.0), losses.nce)
      ],
    ),
    Z,
  )
  for name, (values, limit) in found.items():
    close(values, limit, rtol=pairs[name][2], err_msg=name)
  close(*slopes, rtol=1e-4)


def test_ngce_clip_is_the_clipped_form():
  z, y = draw(scale=10.0)
  p = np.clip(softmax(z), 1e-3, 1)
  expected = (1 - p[np.arange(B), y] ** 0.4) / (C - (p**0.4).sum(-1))
  found = run(lambda z: losses.ngce(z, y, q=0.4, clip=1e-3), z)
  close(found, expected, rtol=1e-4)


def test_focal_gradients():
  one_hot, p = np.eye(C)[Y], softmax(Z)
  own = np.sum(one_hot * p, axis=-1, keepdims=True)
  d_log_p = one_hot - p
  constant = -((1 - own) ** 1.5) * d_log_p
  through = 1.5 * np.sqrt(1 - own) * own * np.log(own) * d_log_p
  detached, whole = run(
    lambda z: [
      value_and_slope(losses.focal, z, Y, gamma=1.5, detach=detach)[1]
      for detach in (True, False)
    ],
    Z,
  )
  close(detached, constant)
  close(whole, constant + through)


def test_nfl_detaches_by_default():
  factor = (1 - softmax(Z).astype(np.float32)) ** 0.5

  def reference(z, y):
    terms = factor * jax.nn.log_softmax(z)
    own = jnp.take_along_axis(terms, y[:, None], axis=-1)[:, 0]
    return own / jnp.sum(terms, axis=-1)

  def attached(z, y):
    return losses.nfl(z, y, detach=False)

  found = (losses.nfl, reference, attached)
  slopes = run(lambda z: [value_and_slope(f, z, Y)[1] for f in found], Z)
  close(slopes[0], slopes[1], rtol=1e-4)
  assert not np.allclose(slopes[2], slopes[1])


def test_nnce_equation_and_dead_classes():
  z, y = draw(scale=10.0)
  a = -np.log(1e-3)
  surplus = np.maximum(a + np.log(softmax(z)), 0)
  expected = 1 - surplus[np.arange(B), y] / surplus.sum(-1)
  found, dead = run(
    lambda z: (
      losses.nnce(z, y, min_prob=1e-3),
      value_and_slope(losses.nnce, jnp.array([0.0, 50.0]), jnp.array(0)),
    ),
    z,
  )
  close(found, expected)
  close(dead[0], 1.0)
  close(dead[1], 0)


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


def test_combinations_are_weighted_sums():
  found = run(
    lambda z: {
      loss.__name__: (
        loss(z, Y, alpha=0.3, beta=1.7, **{**hp1, **hp2}),
        first(z, Y, **hp1),
        second(z, Y, **hp2),
      )
      for loss, first, second, hp1, hp2 in COMBINED
    },
    Z,
  )
  for name, (own, first, second) in found.items():
    close(own, 0.3 * first + 1.7 * second, err_msg=name)


def test_combinations_hand_on_the_clip_and_log_zero():
  z, y = draw(scale=10.0)
  variants = {}, {'clip': 1e-2}, {'log_zero': -4.0}
  found = run(
    lambda z: [
      [loss(z, y, **hp) for hp in variants]
      for loss in (losses.nce_rce, losses.nfl_rce)
    ],
    z,
  )
  for plain, clipped, other_zero in found:
    assert not np.allclose(clipped, plain)
    assert not np.allclose(other_zero, plain)
