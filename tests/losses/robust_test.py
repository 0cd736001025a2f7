"""Limits and identities of the robust losses, from their papers."""

from fixture_losses import B, C, close, draw, grad, slope, value_and_grad
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses


def over_labels(loss, z, **hp):
  """The sum of a loss over all labels, [b]."""
  b, c = z.shape
  return sum(loss(z, jnp.full(b, k), **hp) for k in range(c))


def test_symmetric_losses_have_constant_sums():
  z, _ = draw()
  close(over_labels(losses.mae, z), C - 1)
  close(over_labels(losses.rce, z), -(C - 1) * np.log(1e-4))
  close(over_labels(losses.rce, z, log_zero=-4.0), 4 * (C - 1))
  spread = np.ptp(over_labels(losses.ce, z))
  assert spread > 1  # cross-entropy is not symmetric


def test_gce_limits():
  z, y = draw()
  value = lambda f, **hp: f(z, y, **hp)
  for of in (value, lambda f, **hp: slope(f, z, y, **hp)):
    close(of(losses.gce, q=0.0), of(losses.ce))
    close(of(losses.gce, q=1e-4), of(losses.ce), rtol=2e-3)
    close(of(losses.gce, q=1.0), of(losses.mae))
  traced = jax.jit(lambda q: losses.gce(z, y, q=q))
  close(traced(0.0), losses.ce(z, y))
  close(
    jax.jit(lambda q: slope(losses.gce, z, y, q=q))(0.0), slope(losses.ce, z, y)
  )


def test_gce_gradient_keeps_its_digits_at_small_probabilities():
  """-p^q (1[k=y] - p_k), down to p = e^-60, where expm1 + 1 would be 0."""
  z, y = jnp.array([0.0, 60.0]), jnp.array(0)
  expected = np.exp(-60 * 0.7) * np.array([-1.0, 1.0])
  close(grad(losses.gce)(z, y), expected, rtol=1e-5, atol=0)


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
  with jax.enable_x64(True):
    z, y = jnp.array([1.0, 20.0, 0.0, -3.0]), 3

    def reference(z):
      return clipped(jnp.clip(jax.nn.softmax(z), 1e-7, 1.0), y)

    def ours(z):
      return loss(z, jnp.array(y), clip=1e-7)

    close(ours(z), reference(z), rtol=1e-12)
    close(grad(ours)(z), grad(reference)(z), rtol=1e-7, atol=1e-15)
    assert grad(lambda z: loss(z, jnp.array(y)))(z)[3] < 0


def test_sce_is_its_two_terms():
  z, y = draw()
  expected = 0.3 * losses.ce(z, y) + 2 * losses.rce(z, y, log_zero=-4.0)
  close(losses.sce(z, y, alpha=0.3, beta=2.0, log_zero=-4.0), expected)


def test_truncated_gce():
  z, y = draw(scale=4.0)
  kept = losses.truncated_gce_weights(z, y, k=0.3)
  p = np.asarray(jax.nn.softmax(z))[np.arange(B), y]
  np.testing.assert_array_equal(kept, p > 0.3)
  assert 0 < kept.sum() < B
  values = losses.truncated_gce(z, y, kept, q=0.5, k=0.3)
  expected = kept * (losses.gce(z, y, q=0.5) - (1 - 0.3**0.5) / 0.5)
  close(values, expected)
  assert np.all(np.asarray(values) <= 0)
  gradient = slope(
    lambda z, y: losses.truncated_gce(z, y, kept, q=0.5, k=0.3), z, y
  )
  np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), kept > 0)
  with pytest.raises(ValueError, match='weights'):
    losses.truncated_gce(z, y, kept[:-1])


def test_taylor_between_mae_and_ce():
  z, y = draw(scale=0.5)
  close(losses.taylor_ce(z, y, order=1), losses.mae(z, y))
  rest = losses.mae(z, y)
  close(losses.taylor_ce(z, y, order=3), rest + rest**2 / 2 + rest**3 / 3)
  close(losses.taylor_ce(z, y, order=300), losses.ce(z, y), rtol=1e-4)


def test_agce_limits():
  z, y = draw()
  close(losses.agce(z, y, a=0.0, q=0.4), losses.gce(z, y, q=0.4))
  close(losses.agce(z, y, a=2.0, q=1.0), losses.mae(z, y))
  p = np.exp(-np.asarray(losses.ce(z, y)))
  close(losses.agce(z, y, a=2.0, q=3.0), (27 - (2 + p) ** 3) / 3)
  close(losses.agce(z, y, a=2.0, q=0.0), np.log(3 / (2 + p)))


def test_aul_limits():
  z, y = draw()
  close(losses.aul(z, y, a=3.0, q=1.0), losses.mae(z, y))
  p = np.exp(-np.asarray(losses.ce(z, y)))
  close(losses.aul(z, y, a=3.0, q=0.1), ((3 - p) ** 0.1 - 2**0.1) / 0.1, 1e-4)
  # At a = 1 and p = 1 the power has an infinite derivative.
  z, y = jnp.array([200.0, 0.0]), jnp.array(0)
  value, gradient = value_and_grad(losses.aul)(z, y, a=1.0, q=0.1)
  close(value, 0)
  close(gradient, 0)


def test_ael_equation_and_minimum():
  z, y = draw()
  p = np.exp(-np.asarray(losses.ce(z, y)))
  close(losses.ael(z, y, a=1.5), np.exp(-p / 1.5))
  sure = losses.ael(jnp.array([200.0, 0.0]), jnp.array(0), a=2.0)
  close(sure, np.exp(-0.5))
