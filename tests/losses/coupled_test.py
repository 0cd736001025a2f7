"""Losses that couple examples: the same on one device and on eight."""

import math

from fixture_losses import B, close, draw, grad, value_and_grad
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

from jnl import losses
from jnl.base import AXIS, global_grad, global_mean

# --- devices -----------------------------------------------------------------


def per_example(loss):
  """The global mean of a loss whose peers the caller drew."""
  return lambda z, y, w: global_mean(loss(z, y, z / 2, 3 - y), w)


COUPLED = {
  'dmi': losses.dmi,
  'dmi mean': lambda z, y, w: losses.dmi(z, y, w, offset=1e-4, mean=True),
  'mean_entropy_gap': lambda z, y, w: losses.mean_entropy_gap(z, w, clip=0.01),
  'prior_mean_kl': lambda z, y, w: losses.prior_mean_kl(
    z, w, prior=jnp.array([0.1, 0.2, 0.3, 0.4])
  ),
  'peer': per_example(losses.peer),
  'f_divergence': per_example(losses.f_divergence),
  'cores2': lambda z, y, w: global_mean(
    losses.cores2(z, y), w * losses.cores2_sieve(z, y)
  ),
}


@pytest.mark.parametrize('loss', COUPLED.values(), ids=COUPLED)
@pytest.mark.parametrize('check_vma', [True, False])
def test_eight_devices_agree_with_one(loss, check_vma):
  """With weights, labels and masked NaNs spread unevenly over the devices."""
  x, y = draw()
  weights = jnp.asarray(np.random.default_rng(3).random(B), jnp.float32)
  weights = weights.at[:7].set(0).at[9].set(5.0)
  broken = jnp.zeros(B, bool).at[2].set(loss in MASKS_LOGITS)
  params = 1 + 0.1 * jnp.arange(16.0).reshape(4, 4)

  def step(params, x, y, w, broken):
    def of(params):
      z = jnp.where(broken[:, None], jnp.nan, x @ params)
      return loss(z, y, w), ()

    (value, _), gradient = global_grad(of)(params)
    return value, gradient

  mesh = jax.make_mesh((8,), (AXIS,), (AxisType.Auto,))
  data, same = PartitionSpec(AXIS), PartitionSpec()
  sharded = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(same, data, data, data, data),
    out_specs=(same, same),
    check_vma=check_vma,
  )
  value, gradient = jax.jit(step)(params, x, y, weights, broken)
  assert np.isfinite(value)
  assert np.abs(gradient).max() > 1e-4
  value8, gradient8 = jax.jit(sharded)(params, x, y, weights, broken)
  close(value8, value)
  # Relative to the largest entry: the inverse in the gradient of a
  # log-determinant multiplies rounding by its condition number.
  close(gradient8, gradient, rtol=0, atol=3e-5 * np.abs(gradient).max())


MASKS_LOGITS = {
  COUPLED[name]
  for name in ('dmi', 'dmi mean', 'mean_entropy_gap', 'prior_mean_kl')
}


# --- DMI ---------------------------------------------------------------------


def test_dmi_definition():
  z, y = draw()
  p, one_hot = np.asarray(jax.nn.softmax(z), np.float64), np.eye(4)[y]
  weights = np.linspace(0, 2, B)
  det = np.linalg.det(one_hot.T @ (weights[:, None] * p))
  close(losses.dmi(z, y, weights), -np.log(abs(det) + 1e-3))
  det /= weights.sum() ** 4
  got = losses.dmi(z, y, weights, offset=1e-4, mean=True)
  close(got, -np.log(abs(det) + 1e-4))
  close(
    losses.dmi(z, one_hot.astype(np.float32), weights, offset=1e-4, mean=True),
    got,
  )


def test_dmi_ranks_classifiers_alike_under_noise():
  """det(T' U) = det T det U: noise adds a constant (paper, theorem)."""
  z, y = draw(b=64, scale=3.0)
  others = [draw(b=64, scale=3.0, seed=s)[0] for s in range(1, 4)]
  transition = 0.6 * np.eye(4) + 0.1
  noisy = jnp.asarray(transition[y], jnp.float32)  # the expected noisy label
  ones = jnp.ones(64)
  gaps = [
    losses.dmi(a, noisy, ones, offset=1e-20)
    - losses.dmi(a, y, ones, offset=1e-20)
    for a in (z, *others)
  ]
  close(gaps, -np.log(np.linalg.det(transition)), rtol=1e-3)


def test_dmi_of_a_singular_batch_is_constant():
  z, _ = draw()
  y = jnp.arange(B) % 3  # class 3 does not occur
  value, slope = value_and_grad(losses.dmi)(z, y, jnp.ones(B))
  close(value, -np.log(1e-3))
  close(slope, 0)


def test_dmi_does_not_overflow_with_many_classes():
  """det U is about 1e60, beyond float32."""
  z = 50 * jnp.tile(jnp.eye(60), (10, 1))
  y = jnp.tile(jnp.arange(60), 10)
  value, slope = value_and_grad(losses.dmi)(z, y, jnp.ones(600))
  close(value, -60 * np.log(10))
  assert np.isfinite(slope).all()


def test_dmi_weights():
  z, y = draw()
  kept = jnp.arange(B) < 25
  expected = losses.dmi(z[:25], y[:25], jnp.ones(25))
  bad = jax.jit(losses.dmi)(z.at[28].set(jnp.nan), y.at[30].set(-1), kept)
  close(bad, expected)
  assert np.isnan(jax.jit(losses.dmi)(z, y.at[3].set(7), kept))
  close(losses.dmi(z, y.at[30].set(-1), kept), expected)  # outside jit too
  with pytest.raises(ValueError, match='labels'):
    losses.dmi(z, y.at[3].set(7), kept)
  with pytest.raises(ValueError, match='weights'):
    losses.dmi(z, y, jnp.ones(B - 1))
  with pytest.raises(ValueError, match='offset'):
    losses.dmi(z, y, kept, offset=0.0)


# --- terms of the mean prediction --------------------------------------------


def test_mean_terms():
  z, _ = draw()
  weights = jnp.linspace(0, 1, B)
  p = np.asarray(jax.nn.softmax(z), np.float64)
  m = np.average(p, axis=0, weights=weights)
  close(losses.mean_entropy_gap(z, weights), np.log(4) + np.sum(m * np.log(m)))
  close(losses.prior_mean_kl(z, weights), -np.log(4) - np.mean(np.log(m)))
  prior = np.array([0.4, 0.6, 0.0, 0.0])
  expected = np.sum(prior[:2] * np.log(prior[:2] / m[:2]))
  close(losses.prior_mean_kl(z, weights, prior=prior), expected)


@pytest.mark.parametrize(
  'term', [losses.mean_entropy_gap, losses.prior_mean_kl]
)
def test_mean_terms_at_their_edges(term):
  ones = jnp.ones(3)
  close(term(jnp.zeros([3, 4]), ones), 0)
  dead = jnp.array([[1e4, -1e4, 0, 0]] * 3)
  value, slope = value_and_grad(term)(dead, ones)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()
  close(term(dead, jnp.zeros(3)), 0)  # an empty selection
  close(term(jnp.zeros([0, 4]), jnp.zeros(0)), 0)
  with pytest.raises(ValueError, match='weights'):
    term(dead, jnp.ones(4))


def test_prior_is_named():
  z, y = draw()
  for loss in (
    lambda **hp: losses.prior_mean_kl(z, jnp.ones(B), **hp),
    lambda **hp: losses.cores2(z, y, **hp),
  ):
    with pytest.raises(ValueError, match='prior'):
      loss(prior=jnp.ones(3) / 3)


# --- peers -------------------------------------------------------------------


def test_peer_definition():
  z, y = draw()
  z1, y2 = z[::-1], jnp.roll(y, 3)
  log = lambda z, y: np.log(
    np.asarray(jax.nn.softmax(z))[np.arange(B), y] + 1e-2
  )
  expected = -log(z, y) + 0.7 * log(z1, y2)
  close(losses.peer(z, y, z1, y2, alpha=0.7, offset=1e-2), expected)
  plain = losses.ce(z, y) - 0.7 * losses.ce(z1, y2)
  close(losses.peer(z, y, z1, y2, alpha=0.7), plain)


def test_cores_is_peer_in_the_mean_over_labels():
  z, y = draw()
  each = [losses.peer(z, y, z, jnp.full(B, k), alpha=1.5) for k in range(4)]
  prior = jnp.array([0.1, 0.2, 0.3, 0.4])
  close(losses.cores2(z, y, beta=1.5), sum(each) / 4)
  mean = sum(p * e for p, e in zip(prior, each, strict=True))
  close(losses.cores2(z, y, beta=1.5, prior=prior), mean)


def test_cores_sieve_keeps_what_is_likelier_than_the_mean():
  z, y = draw()
  log_p = np.asarray(jax.nn.log_softmax(z))
  expected = log_p[np.arange(B), y] >= log_p.mean(-1)
  np.testing.assert_array_equal(losses.cores2_sieve(z, y), expected)
  assert 0 < expected.sum() < B


def xlogx(u):
  return u * math.log(u)


DIVERGENCES = {
  # name: (pair, f)
  'TV': (losses.TOTAL_VARIATION, lambda u: abs(u - 1) / 2),
  'JS': (
    losses.JENSEN_SHANNON,
    lambda u: xlogx(u) - (u + 1) * math.log((u + 1) / 2),
  ),
  'KL': (losses.KULLBACK_LEIBLER, xlogx),
  'reverse KL': (losses.REVERSE_KL, lambda u: -math.log(u)),
  'Pearson': (losses.PEARSON, lambda u: (u - 1) ** 2),
  'Neyman': (losses.NEYMAN, lambda u: (1 - u) ** 2 / u),
  'Hellinger': (losses.SQUARED_HELLINGER, lambda u: (math.sqrt(u) - 1) ** 2),
}


@pytest.mark.parametrize(
  ('divergence', 'f'), DIVERGENCES.values(), ids=DIVERGENCES
)
@pytest.mark.parametrize('u', [0.3, 1.0, 2.5])
def test_activation_and_conjugate_belong_together(divergence, f, u):
  """f(u) = sup_t (t u - f*(t)), t = g(v): Fenchel's equation."""
  v = jnp.linspace(-12, 12, 200_001)
  bound = u * divergence.activation(v) - divergence.conjugate(v)
  close(jnp.max(bound), f(u), rtol=1e-4, atol=1e-4)
  with jax.enable_x64(True):  # in float32, tanh may fall by a rounding
    rising = jnp.diff(divergence.activation(jnp.linspace(-12, 12, 201)))
    assert rising.dtype == jnp.float64
    assert jnp.all(rising >= 0)


def test_f_divergence_definition_and_direction():
  z, y = draw()
  z1, y2 = z[::-1], jnp.roll(y, 3)
  p = lambda z, y: jax.nn.softmax(z)[jnp.arange(B), y]
  pair = losses.KULLBACK_LEIBLER
  expected = jnp.exp(p(z1, y2) - 1) - p(z, y)
  close(losses.f_divergence(z, y, z1, y2, divergence=pair), expected)
  for divergence, _ in DIVERGENCES.values():
    slope = grad(
      lambda z, d=divergence: losses.f_divergence(
        z, y, z1, y2, divergence=d
      ).sum()
    )(z)
    assert (slope[jnp.arange(B), y] < 0).all()


def test_malformed_peers_are_named():
  z, y = draw()
  for loss in (losses.peer, losses.f_divergence):
    with pytest.raises(ValueError, match='labels'):
      loss(z, y, z, y[:-1])
