"""Losses that couple examples: the same on one device and on eight."""

import functools
import math

from cost import slow
from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

from jnl import losses
from jnl.base import AXIS, global_grad, global_mean

Z, Y = draw()
P = softmax(Z)
LOG_P = np.log(P)
ROWS, ONES = np.arange(B), np.ones(B, np.float32)
PRIOR = np.array([0.1, 0.2, 0.3, 0.4], np.float32)

# --- devices -----------------------------------------------------------------


def per_example(loss):
  """The global mean of a loss whose peers the caller drew."""
  return lambda z, y, w: global_mean(loss(z, y, z / 2, 3 - y), w)


OF_MEANS = {  # a logit that is NaN in a row of weight 0 is not seen
  'dmi': losses.dmi,
  'dmi mean': lambda z, y, w: losses.dmi(z, y, w, offset=1e-4, mean=True),
  'mean_entropy_gap': lambda z, y, w: losses.mean_entropy_gap(z, w, clip=0.01),
  'prior_mean_kl': lambda z, y, w: losses.prior_mean_kl(z, w, prior=PRIOR),
}
COUPLED = {
  **OF_MEANS,
  'peer': per_example(losses.peer),
  'f_divergence': per_example(losses.f_divergence),
  'cores2': lambda z, y, w: global_mean(
    losses.cores2(z, y), w * losses.cores2_sieve(z, y)
  ),
}


def every_value_and_gradient(params, x, y, weights, broken):
  def of(name, loss):
    def total(params):
      z = x @ params
      if name in OF_MEANS:
        z = jnp.where(broken[:, None], jnp.nan, z)
      return loss(z, y, weights), ()

    (value, _), gradient = global_grad(total)(params)
    return value, gradient

  return {name: of(name, loss) for name, loss in COUPLED.items()}


@functools.cache
def on_devices(check_vma):
  """On eight devices, or on one (None)."""
  weights = np.random.default_rng(3).random(B).astype(np.float32)
  weights[:7], weights[9] = 0, 5.0
  params = 1 + 0.1 * np.arange(16.0, dtype=np.float32).reshape(4, 4)
  step = every_value_and_gradient
  if check_vma is not None:
    data, same = PartitionSpec(AXIS), PartitionSpec()
    step = jax.shard_map(
      step,
      mesh=jax.make_mesh((8,), (AXIS,), (AxisType.Auto,)),
      in_specs=(same, data, data, data, data),
      out_specs=same,
      check_vma=check_vma,
    )
  return run(step, params, Z, Y, weights, ROWS == 2)


@pytest.mark.parametrize(
  'name', [slow(name) if name == 'dmi' else name for name in COUPLED]
)
@pytest.mark.parametrize(
  'check_vma', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_eight_devices_agree_with_one(name, check_vma):
  """With weights, labels and masked NaNs spread unevenly over the devices."""
  value, gradient = on_devices(None)[name]
  assert np.isfinite(value)
  assert np.abs(gradient).max() > 1e-4
  value8, gradient8 = on_devices(check_vma)[name]
  close(value8, value)
  # Relative to the largest entry: the inverse in the gradient of a
  # log-determinant multiplies rounding by its condition number.
  close(gradient8, gradient, rtol=0, atol=3e-5 * np.abs(gradient).max())


# --- DMI ---------------------------------------------------------------------


def test_dmi_definition():
  one_hot = np.eye(C, dtype=np.float32)[Y]
  weights = np.linspace(0, 2, B, dtype=np.float32)
  summed, mean, soft = run(
    lambda z: (
      losses.dmi(z, Y, weights),
      losses.dmi(z, Y, weights, offset=1e-4, mean=True),
      losses.dmi(z, one_hot, weights, offset=1e-4, mean=True),
    ),
    Z,
  )
  det = np.linalg.det(one_hot.T @ (weights[:, None] * P))
  close(summed, -np.log(abs(det) + 1e-3))
  close(mean, -np.log(abs(det / weights.sum(dtype=float) ** 4) + 1e-4))
  close(soft, mean)


def test_dmi_ranks_classifiers_alike_under_noise():
  """det(T' U) = det T det U: noise adds a constant (paper, theorem)."""
  _, y = draw(scale=3.0)
  z = np.stack([draw(scale=3.0, seed=seed)[0] for seed in range(4)])
  transition = 0.6 * np.eye(4) + 0.1
  noisy = np.float32(transition[y])  # the expected noisy label

  def gap(z):
    of = lambda labels: losses.dmi(z, labels, ONES, offset=1e-20)
    return of(noisy) - of(y)

  close(run(jax.vmap(gap), z), -np.log(np.linalg.det(transition)), rtol=1e-3)


def test_dmi_of_a_singular_batch_is_constant():
  y = ROWS % 3  # class 3 does not occur
  value, slope = run(jax.value_and_grad(losses.dmi), Z, y, ONES)
  close(value, -np.log(1e-3))
  close(slope, 0)


def test_dmi_does_not_overflow_with_many_classes():
  """det U is about 1e60, beyond float32."""
  z = np.float32(50 * np.tile(np.eye(60), (10, 1)))
  y, ones = np.tile(np.arange(60), 10), np.ones(600, np.float32)
  value, slope = run(jax.value_and_grad(losses.dmi), z, y, ones)
  close(value, -60 * np.log(10))
  assert np.isfinite(slope).all()


def test_dmi_weights():
  kept = ROWS < 25
  nan, bad, worse = Z.copy(), Y.copy(), Y.copy()
  nan[28], bad[30], worse[3] = np.nan, -1, 7
  compiled = jax.jit(losses.dmi)
  expected = run(lambda z: losses.dmi(z, Y[:25], ONES[:25]), Z[:25])
  close(compiled(nan, bad, kept), expected)
  assert np.isnan(compiled(Z, worse, kept))
  close(losses.dmi(Z, bad, kept), expected)  # outside jit too
  with pytest.raises(ValueError, match='labels'):
    losses.dmi(Z, worse, kept)
  with pytest.raises(ValueError, match='weights'):
    losses.dmi(Z, Y, ONES[1:])
  with pytest.raises(ValueError, match='offset'):
    losses.dmi(Z, Y, kept, offset=0.0)


# --- terms of the mean prediction --------------------------------------------

TERMS = [losses.mean_entropy_gap, losses.prior_mean_kl]


def test_mean_terms():
  weights = np.linspace(0, 1, B, dtype=np.float32)
  prior = np.array([0.4, 0.6, 0.0, 0.0], np.float32)
  gap, uniform, given = run(
    lambda z: (
      losses.mean_entropy_gap(z, weights),
      losses.prior_mean_kl(z, weights),
      losses.prior_mean_kl(z, weights, prior=prior),
    ),
    Z,
  )
  m = np.average(P, axis=0, weights=weights)
  close(gap, np.log(4) + np.sum(m * np.log(m)))
  close(uniform, -np.log(4) - np.mean(np.log(m)))
  close(given, np.sum(prior[:2] * np.log(prior[:2] / m[:2])))


@pytest.mark.parametrize('term', TERMS)
def test_mean_terms_at_their_edges(term):
  ones, none = np.ones(3, np.float32), np.zeros(0, np.float32)
  dead = np.array([[1e4, -1e4, 0, 0]] * 3, np.float32)
  of_zero, (value, slope), unselected, empty = run(
    lambda z: (
      term(0 * z, ones),
      jax.value_and_grad(term)(z, ones),
      term(z, 0 * ones),  # an empty selection
      term(z[:0], none),
    ),
    dead,
  )
  for found in (of_zero, unselected, empty):
    close(found, 0)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()
  with pytest.raises(ValueError, match='weights'):
    term(dead, np.ones(4, np.float32))


def test_prior_is_named():
  for loss in (
    lambda **hp: losses.prior_mean_kl(Z, ONES, **hp),
    lambda **hp: losses.cores2(Z, Y, **hp),
  ):
    with pytest.raises(ValueError, match='prior'):
      loss(prior=np.ones(3) / 3)


# --- peers -------------------------------------------------------------------

Z1, Y2 = Z[::-1], np.roll(Y, 3)


def test_peer_definition():
  offset, plain = run(
    lambda z: (
      losses.peer(z, Y, Z1, Y2, alpha=0.7, offset=1e-2),
      losses.peer(z, Y, Z1, Y2, alpha=0.7),
    ),
    Z,
  )
  for found, add in ((offset, 1e-2), (plain, 0.0)):
    own, peer = (np.log(p[ROWS, y] + add) for p, y in ((P, Y), (P[::-1], Y2)))
    close(found, -own + 0.7 * peer)


def test_cores_is_peer_in_the_mean_over_labels():
  z, y = np.repeat(Z, C, axis=0), np.repeat(Y, C)
  label = np.tile(np.arange(C), B)
  each, plain, weighted = run(
    lambda z: (
      losses.peer(z, y, z, label, alpha=1.5),
      losses.cores2(Z, Y, beta=1.5),
      losses.cores2(Z, Y, beta=1.5, prior=PRIOR),
    ),
    z,
  )
  each = each.reshape(B, C)
  close(plain, each.mean(1))
  close(weighted, each @ PRIOR)


def test_cores_sieve_keeps_what_is_likelier_than_the_mean():
  expected = LOG_P[ROWS, Y] >= LOG_P.mean(-1)
  np.testing.assert_array_equal(run(losses.cores2_sieve, Z, Y), expected)
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


@functools.cache
def variational():
  """Of every divergence: activation and conjugate, of many v."""
  v = np.linspace(-12, 12, 200_001)
  with jax.enable_x64(True):  # in float32, tanh may fall by a rounding
    return run(
      lambda v: {
        name: (pair.activation(v), pair.conjugate(v))
        for name, (pair, _) in DIVERGENCES.items()
      },
      v,
    )


@pytest.mark.parametrize('name', DIVERGENCES)
@pytest.mark.parametrize('u', [0.3, 1.0, 2.5])
def test_activation_and_conjugate_belong_together(name, u):
  """f(u) = sup_t (t u - f*(t)), t = g(v): Fenchel's equation."""
  activation, conjugate = variational()[name]
  _, f = DIVERGENCES[name]
  close(np.max(u * activation - conjugate), f(u), rtol=1e-4, atol=1e-4)
  assert activation.dtype == np.float64
  assert np.all(np.diff(activation[::1000]) >= 0)


def test_f_divergence_definition_and_direction():
  def loss(z, y, pair):
    return losses.f_divergence(z, y, Z1, Y2, divergence=pair)

  found = run(
    lambda z: {
      name: value_and_slope(loss, z, Y, pair=pair)
      for name, (pair, _) in DIVERGENCES.items()
    },
    Z,
  )
  own, peer = P[ROWS, Y], P[::-1][ROWS, Y2]
  close(found['KL'][0], np.exp(peer - 1) - own)
  for name, (_, slope) in found.items():
    assert (slope[ROWS, Y] < 0).all(), name


def test_malformed_peers_are_named():
  for loss in (losses.peer, losses.f_divergence):
    with pytest.raises(ValueError, match='labels'):
      loss(Z, Y, Z, Y[:-1])
