"""Limits and identities of the robust losses, from their papers."""

from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

Z, Y = draw()
OWN = softmax(Z)[np.arange(B), Y]  # the probability of the label


def test_symmetric_losses_have_constant_sums():
  z, y = np.repeat(Z, C, axis=0), np.tile(np.arange(C), B)
  found = run(
    lambda z: {
      'mae': losses.mae(z, y),
      'rce': losses.rce(z, y),
      'rce -4': losses.rce(z, y, log_zero=-4.0),
      'ce': losses.ce(z, y),
    },
    z,
  )
  sums = {name: v.reshape(B, C).sum(1) for name, v in found.items()}
  close(sums['mae'], C - 1)
  close(sums['rce'], -(C - 1) * np.log(1e-4))
  close(sums['rce -4'], 4 * (C - 1))
  assert np.ptp(sums['ce']) > 1  # cross-entropy is not symmetric


def test_gce_limits():
  gce = lambda q: value_and_slope(losses.gce, Z, Y, q=q)
  (zero, near, one), traced, ce, mae = run(
    lambda q: (
      [gce(q) for q in (0.0, 1e-4, 1.0)],
      gce(q),
      value_and_slope(losses.ce, Z, Y),
      value_and_slope(losses.mae, Z, Y),
    ),
    np.float32(0),
  )
  for of in (0, 1):  # values and slopes
    close(zero[of], ce[of])
    close(near[of], ce[of], rtol=2e-3)
    close(one[of], mae[of])
    close(traced[of], ce[of])


def test_gce_gradient_keeps_its_digits_at_small_probabilities():
  """-p^q (1[k=y] - p_k), down to p = e^-60, where expm1 + 1 would be 0."""
  loss = jax.grad(lambda z: losses.gce(z, jnp.array(0)))
  expected = np.exp(-60 * 0.7) * np.array([-1.0, 1.0])
  close(run(loss, np.array([0.0, 60.0], 'f')), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
  ('loss', 'clipped'),
  [
    (losses.gce, lambda p, y: (1 - p[y] ** 0.7) / 0.7),
    (losses.rce, lambda p, y: -np.log(1e-4) * (p.sum() - p[y])),
  ],
)
def test_clip_reproduces_value_and_gradient_of_clipped_probabilities(
  loss, clipped
):
  z, y = np.array([1.0, 20.0, 0.0, -3.0]), 3

  def reference(z):
    return clipped(jnp.clip(jax.nn.softmax(z), 1e-7, 1.0), y)

  def ours(z, **hp):
    return loss(z, jnp.array(y), **hp)

  with jax.enable_x64(True):
    (value, slope), (expected, expected_slope), unclipped = run(
      lambda z: (
        jax.value_and_grad(lambda z: ours(z, clip=1e-7))(z),
        jax.value_and_grad(reference)(z),
        jax.grad(ours)(z),
      ),
      z,
    )
  close(value, expected, rtol=1e-12)
  close(slope, expected_slope, rtol=1e-7, atol=1e-15)
  assert unclipped[3] < 0


def test_sce_is_its_two_terms():
  sce, ce, rce = run(
    lambda z: (
      losses.sce(z, Y, alpha=0.3, beta=2.0, log_zero=-4.0),
      losses.ce(z, Y),
      losses.rce(z, Y, log_zero=-4.0),
    ),
    Z,
  )
  close(sce, 0.3 * ce + 2 * rce)


def test_truncated_gce():
  z, y = draw(scale=4.0)
  expected_kept = softmax(z)[np.arange(B), y] > 0.3

  def everything(z):
    kept = losses.truncated_gce_weights(z, y, k=0.3)
    loss = lambda z, y: losses.truncated_gce(z, y, kept, q=0.5, k=0.3)
    return kept, *value_and_slope(loss, z, y), losses.gce(z, y, q=0.5)

  kept, values, slope, gce = run(everything, z)
  np.testing.assert_array_equal(kept, expected_kept)
  assert 0 < kept.sum() < B
  close(values, kept * (gce - (1 - 0.3**0.5) / 0.5))
  assert np.all(values <= 0)
  np.testing.assert_array_equal(np.any(slope != 0, axis=-1), kept > 0)
  with pytest.raises(ValueError, match='weights'):
    losses.truncated_gce(z, y, kept[:-1])


def test_taylor_between_mae_and_ce():
  z, y = draw(scale=0.5)
  rest = 1 - softmax(z)[np.arange(B), y]
  orders = (1, 3, 300)
  one, three, many = run(
    lambda z: [losses.taylor_ce(z, y, order=order) for order in orders], z
  )
  close(one, rest)
  close(three, rest + rest**2 / 2 + rest**3 / 3)
  close(many, -np.log(1 - rest), rtol=1e-4)


def test_mae_is_the_rest_of_the_probability():
  close(run(lambda z: losses.mae(z, Y), Z), 1 - OWN)


def test_agce_limits():
  of = {
    (0.0, 0.4): (1 - OWN**0.4) / 0.4,  # gce
    (2.0, 1.0): 1 - OWN,  # mae
    (2.0, 3.0): (27 - (2 + OWN) ** 3) / 3,
    (2.0, 0.0): np.log(3 / (2 + OWN)),
  }
  found = run(lambda z: [losses.agce(z, Y, a=a, q=q) for a, q in of], Z)
  for own, (where, expected) in zip(found, of.items(), strict=True):
    close(own, expected, err_msg=where)


def test_aul_limits():
  # At a = 1 and p = 1 the power has an infinite derivative.
  edge = jax.value_and_grad(lambda z: losses.aul(z, jnp.array(0), a=1.0, q=0.1))
  linear, power, (value, slope) = run(
    lambda z: (
      losses.aul(z, Y, a=3.0, q=1.0),
      losses.aul(z, Y, a=3.0, q=0.1),
      edge(jnp.array([200.0, 0.0])),
    ),
    Z,
  )
  close(linear, 1 - OWN)
  close(power, ((3 - OWN) ** 0.1 - 2**0.1) / 0.1, 1e-4)
  close(value, 0)
  close(slope, 0)


def test_ael_equation_and_minimum():
  drawn, sure = run(
    lambda z: (
      losses.ael(z, Y, a=1.5),
      losses.ael(jnp.array([200.0, 0.0]), jnp.array(0), a=2.0),
    ),
    Z,
  )
  close(drawn, np.exp(-OWN / 1.5))
  close(sure, np.exp(-0.5))
