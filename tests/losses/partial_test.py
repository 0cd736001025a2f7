"""Losses of candidate sets, against definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

B, C = 8, 5
RNG = np.random.default_rng(1)
LOGITS = RNG.normal(size=(B, C)).astype(np.float32) * 2
SETS = RNG.random((B, C)) < 0.5
SETS[:, 0] |= ~SETS.any(1)
SETS[-1] = True
WEIGHTS = RNG.dirichlet(np.ones(C), B).astype(np.float32)


def lws(z, s, **hp):
  return losses.lws(z, s, WEIGHTS[: len(z)], **hp)


def proden(z, s):
  return losses.proden(z, losses.proden_confidence(z, s))


LOSSES = [losses.cc, losses.uniform_candidates, losses.rule_out, lws, proden]
each = pytest.mark.parametrize('loss', LOSSES, ids=lambda f: f.__name__)
NAMED = [losses.cc, losses.uniform_candidates, losses.proden_confidence, lws]


def probs(z):
  p = np.exp(z - z.max(-1, keepdims=True), dtype=np.float64)
  return p / p.sum(-1, keepdims=True)


@functools.cache
def compiled(loss):
  def run(z, s):
    value, back = jax.vjp(lambda z: loss(z, s), z)
    return value, back(jnp.ones_like(value))[0]

  return jax.jit(run)


def test_definitions():
  p, s, w = probs(LOGITS), SETS, WEIGHTS
  q = p * s / (p * s).sum(1, keepdims=True)
  out = p * ~s / np.maximum((p * ~s).sum(1, keepdims=True), 1e-300)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  same(losses.cc(LOGITS, s), -np.log((p * s).sum(1)))
  same(
    losses.uniform_candidates(LOGITS, s),
    -(s * np.log(p)).sum(1) / s.sum(1),
  )
  same(losses.proden(LOGITS, w), -(w * np.log(p)).sum(1))
  same(losses.proden_confidence(LOGITS, s), q)
  same(losses.rule_out(LOGITS, s), -(~s * np.log1p(-p)).sum(1))
  same(
    losses.lws(LOGITS, s, w, lw=3.0, lw0=0.5),
    -(0.5 * w * s * np.log(p) + 3 * w * ~s * np.log1p(-p)).sum(1),
  )
  same(losses.lws_confidence(LOGITS, s), q + out)
  views = np.stack([LOGITS, LOGITS[::-1], LOGITS * 0.3], 1)
  mean = s * np.prod(probs(views), axis=1) ** (1 / 3)
  same(losses.rcr_confidence(views, s), mean / mean.sum(1, keepdims=True))


def test_identities():
  labels = RNG.integers(0, C, B)
  single, full = labels[:, None] == np.arange(C), np.ones((B, C), bool)
  ce = losses.ce(LOGITS, labels)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-5)
  for loss in (losses.cc, losses.uniform_candidates, proden):
    same(loss(LOGITS, single), ce)
  same(
    losses.rule_out(LOGITS, ~single), losses.negative_learning(LOGITS, labels)
  )
  for loss in (losses.cc, losses.rule_out):
    value, slope = compiled(loss)(LOGITS, full)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, 0)
  assert (losses.rule_out(LOGITS, SETS) <= losses.cc(LOGITS, SETS) + 1e-6).all()


def test_gradient_of_cc_is_prediction_less_posterior():
  _, slope = compiled(losses.cc)(LOGITS, SETS)
  p = jax.nn.softmax(LOGITS)
  expected = p - losses.proden_confidence(LOGITS, SETS)
  np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_weights_have_no_gradient():
  def total(z, w):
    learned = losses.proden_confidence(z, SETS) + losses.lws_confidence(z, SETS)
    return jnp.sum(losses.proden(z, w) + losses.lws(z, SETS, w)), learned

  jacobian = jax.jacobian(lambda z: total(z, WEIGHTS)[1])(jnp.asarray(LOGITS))
  assert not np.any(jacobian)
  assert not np.any(jax.grad(lambda w: total(LOGITS, w)[0])(WEIGHTS))


@each
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('magnitude', [200.0, 1e4])
def test_finite_at_extremes_and_dtype(loss, dtype, magnitude):
  with jax.enable_x64(dtype == 'float64'):
    rows = np.sign(RNG.normal(size=(B, C))) * (RNG.random((B, C)) < 0.8)
    z = jnp.asarray(rows * magnitude, dtype)
    value, slope = compiled(loss)(z, SETS)
    assert value.dtype == jnp.promote_types(dtype, jnp.float32)
    assert slope.dtype == z.dtype
    assert np.isfinite(value).all()
    assert np.isfinite(slope.astype(value.dtype)).all()


def test_gradient_survives_where_all_candidates_are_hopeless():
  z = jnp.full((1, C), -1e4).at[0, 0].set(1e4)
  s = jnp.arange(C)[None] > 0
  for loss in (losses.cc, losses.uniform_candidates, proden, losses.rule_out):
    value, slope = compiled(loss)(z, s)
    assert value[0] >= 1e4
    assert slope[0, 0] > 0.9


def test_the_official_offset_caps_and_rounds():
  z = jnp.full((1, C), -50.0).at[0, 0].set(50.0)
  s = jnp.arange(C)[None] > 0

  def capped(z):
    return losses.rule_out(z, s, offset=1e-7)[0]

  value, slope = jax.value_and_grad(capped)(z)
  np.testing.assert_allclose(value, -np.log(2.0**-23), rtol=1e-6)
  np.testing.assert_allclose(slope, 0, atol=1e-6)
  with jax.enable_x64(True):
    double = capped(z.astype(jnp.float64))
    np.testing.assert_allclose(double, -np.log(1e-7), rtol=1e-6)
  # A traced offset may be 0.
  traced = jax.jit(lambda offset: losses.rule_out(LOGITS, SETS, offset=offset))
  np.testing.assert_allclose(
    traced(0.0), losses.rule_out(LOGITS, SETS), rtol=1e-4, atol=1e-6
  )


def test_lws_offset_and_traced_hyperparameters():
  def run(lw, lw0, offset):
    return lws(LOGITS, SETS, lw=lw, lw0=lw0, offset=offset)

  p, w, eps = probs(LOGITS), WEIGHTS, 1e-3
  terms = np.where(SETS, np.log(p + eps), 2 * np.log(1 - p + eps))
  np.testing.assert_allclose(
    jax.jit(run)(2.0, 1.0, eps), -(w * terms).sum(1), rtol=1e-5
  )


@each
def test_an_empty_set_says_nothing_inside_jit(loss):
  s = SETS.copy()
  s[2] = False
  value, slope = compiled(loss)(LOGITS, s)
  whole, whole_slope = compiled(loss)(LOGITS, SETS)
  if loss is losses.rule_out:  # it has a meaning: no class at all
    np.testing.assert_allclose(
      value[2], -np.log1p(-probs(LOGITS[2])).sum(), rtol=1e-5
    )
    return
  assert value[2] == 0
  assert not np.any(slope[2])
  others = np.arange(B) != 2
  np.testing.assert_array_equal(value[others], whole[others])
  np.testing.assert_array_equal(slope[others], whole_slope[others])


@pytest.mark.parametrize('loss', NAMED, ids=lambda f: f.__name__)
def test_bad_inputs_are_named(loss):
  empty = SETS.copy()
  empty[2] = False
  for error, name, z, s in (
    (ValueError, 'candidates', LOGITS, empty),
    (ValueError, 'candidates', LOGITS, SETS[:, :3]),
    (TypeError, 'candidates', LOGITS, SETS.astype(np.float32)),
    (TypeError, 'logits', SETS, SETS),
    (ValueError, 'logits', LOGITS[:, :1], SETS[:, :1]),
  ):
    with pytest.raises(error, match=name):
      loss(z, s)


def test_bad_confidences_and_hyperparameters_are_named():
  for error, w in ((TypeError, SETS), (ValueError, WEIGHTS[:, :2])):
    with pytest.raises(error, match='confidence'):
      losses.proden(LOGITS, w)
    with pytest.raises(error, match='confidence'):
      losses.lws(LOGITS, SETS, w)
  with pytest.raises(ValueError, match='confidence'):
    losses.lws(LOGITS, SETS, -WEIGHTS)
  losses.proden(LOGITS, 0 * WEIGHTS)  # of an empty set
  for name in ('lw', 'lw0', 'offset'):
    with pytest.raises(ValueError, match=name):
      lws(LOGITS, SETS, **{name: -1.0})
  with pytest.raises(ValueError, match='offset'):
    losses.rule_out(LOGITS, SETS, offset=-1.0)
  with pytest.raises(ValueError, match='logits'):
    losses.rcr_confidence(LOGITS[0], SETS[0])


@each
def test_leading_dimensions_permutations_and_shifts(loss):
  value, slope = compiled(loss)(LOGITS, SETS)
  if loss is not lws:
    shaped = loss(LOGITS.reshape(2, 4, C), SETS.reshape(2, 4, C))
    np.testing.assert_allclose(shaped.reshape(B), value, rtol=1e-5, atol=1e-6)
    order = RNG.permutation(C)
    moved, moved_slope = compiled(loss)(LOGITS[:, order], SETS[:, order])
    np.testing.assert_allclose(moved, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved_slope, slope[:, order], atol=1e-5)
  np.testing.assert_allclose(np.sum(slope, 1), 0, atol=1e-5)
