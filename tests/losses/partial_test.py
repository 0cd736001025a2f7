"""Losses of candidate sets, against definitions in float64."""

import functools

from fixture_losses import run, value_and_slope
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
def compiled():
  """All of them in one program for each dtype."""
  return jax.jit(lambda z, s: [value_and_slope(loss, z, s) for loss in LOSSES])


def found(loss, z, s):
  """Value and slope."""
  return jax.device_get(compiled()(z, s))[LOSSES.index(loss)]


def close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(actual, expected, rtol, atol)


def test_definitions():
  p, s, w = probs(LOGITS), SETS, WEIGHTS
  q = p * s / (p * s).sum(1, keepdims=True)
  out = p * ~s / np.maximum((p * ~s).sum(1, keepdims=True), 1e-300)
  views = np.stack([LOGITS, LOGITS[::-1], LOGITS * np.float32(0.3)], 1)
  mean = s * np.prod(probs(views), axis=1) ** (1 / 3)
  expected = {
    'cc': -np.log((p * s).sum(1)),
    'uniform_candidates': -(s * np.log(p)).sum(1) / s.sum(1),
    'proden': -(w * np.log(p)).sum(1),
    'proden_confidence': q,
    'rule_out': -(~s * np.log1p(-p)).sum(1),
    'lws': -(0.5 * w * s * np.log(p) + 3 * w * ~s * np.log1p(-p)).sum(1),
    'lws_confidence': q + out,
    'rcr_confidence': mean / mean.sum(1, keepdims=True),
  }
  own = run(
    lambda z: {
      'cc': losses.cc(z, s),
      'uniform_candidates': losses.uniform_candidates(z, s),
      'proden': losses.proden(z, w),
      'proden_confidence': losses.proden_confidence(z, s),
      'rule_out': losses.rule_out(z, s),
      'lws': losses.lws(z, s, w, lw=3.0, lw0=0.5),
      'lws_confidence': losses.lws_confidence(z, s),
      'rcr_confidence': losses.rcr_confidence(views, s),
    },
    LOGITS,
  )
  for name, values in expected.items():
    np.testing.assert_allclose(own[name], values, 1e-5, 1e-6, err_msg=name)


def test_identities():
  labels = RNG.integers(0, C, B)
  single, full = labels[:, None] == np.arange(C), np.ones((B, C), bool)
  ce, negative = run(
    lambda z: (losses.ce(z, labels), losses.negative_learning(z, labels)),
    LOGITS,
  )
  for loss in (losses.cc, losses.uniform_candidates, proden):
    close(found(loss, LOGITS, single)[0], ce, atol=0)
  close(found(losses.rule_out, LOGITS, ~single)[0], negative, atol=0)
  for loss in (losses.cc, losses.rule_out):
    value, slope = found(loss, LOGITS, full)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, 0)
  out, cc = (
    found(loss, LOGITS, SETS)[0] for loss in (losses.rule_out, losses.cc)
  )
  assert (out <= cc + 1e-6).all()


def test_gradient_of_cc_is_prediction_less_posterior():
  _, slope = found(losses.cc, LOGITS, SETS)
  p = probs(LOGITS)
  q = p * SETS / (p * SETS).sum(1, keepdims=True)
  close(slope, p - q, rtol=1e-4)


def test_weights_have_no_gradient():
  def learned(z):
    return losses.proden_confidence(z, SETS) + losses.lws_confidence(z, SETS)

  def total(w):
    return jnp.sum(losses.proden(LOGITS, w) + losses.lws(LOGITS, SETS, w))

  jacobian, slope = run(
    lambda z, w: (jax.jacobian(learned)(z), jax.grad(total)(w)), LOGITS, WEIGHTS
  )
  assert not np.any(jacobian)
  assert not np.any(slope)


HALF = [
  pytest.param(dtype, marks=pytest.mark.slow)
  for dtype in ('bfloat16', 'float16')
]


@each
@pytest.mark.parametrize('dtype', [*HALF, 'float32', 'float64'])
@pytest.mark.parametrize('magnitude', [200.0, 1e4])
def test_finite_at_extremes_and_dtype(loss, dtype, magnitude):
  with jax.enable_x64(dtype == 'float64'):
    rows = np.sign(RNG.normal(size=(B, C))) * (RNG.random((B, C)) < 0.8)
    z = (rows * magnitude).astype(jnp.dtype(dtype))
    value, slope = found(loss, z, SETS)
    assert value.dtype == jnp.promote_types(dtype, jnp.float32)
    assert slope.dtype == z.dtype
    assert np.isfinite(value).all()
    assert np.isfinite(slope.astype(value.dtype)).all()


def test_gradient_survives_where_all_candidates_are_hopeless():
  z = np.full((B, C), -1e4, np.float32)
  z[:, 0] = 1e4
  s = np.arange(C) > np.zeros([B, 1])
  for loss in (losses.cc, losses.uniform_candidates, proden, losses.rule_out):
    value, slope = found(loss, z, s)
    assert value[0] >= 1e4
    assert slope[0, 0] > 0.9


def test_the_official_offset_caps_and_rounds():
  z = np.full((1, C), -50.0)
  z[0, 0] = 50.0
  s = np.arange(C)[None] > 0

  def capped(z):
    return losses.rule_out(z, s, offset=1e-7)[0]

  (value, slope), traced = run(
    lambda z, offset: (
      jax.value_and_grad(capped)(z),
      losses.rule_out(LOGITS, SETS, offset=offset),
    ),
    np.float32(z),
    np.float32(0),  # a traced offset may be 0
  )
  np.testing.assert_allclose(value, -np.log(2.0**-23), rtol=1e-6)
  np.testing.assert_allclose(slope, 0, atol=1e-6)
  with jax.enable_x64(True):
    np.testing.assert_allclose(run(capped, z), -np.log(1e-7), rtol=1e-6)
  close(traced, found(losses.rule_out, LOGITS, SETS)[0], rtol=1e-4)


def test_lws_offset_and_traced_hyperparameters():
  def loss(lw, lw0, offset):
    return lws(LOGITS, SETS, lw=lw, lw0=lw0, offset=offset)

  p, w, eps = probs(LOGITS), WEIGHTS, 1e-3
  terms = np.where(SETS, np.log(p + eps), 2 * np.log(1 - p + eps))
  close(run(loss, *np.float32([2.0, 1.0, eps])), -(w * terms).sum(1), atol=0)


@each
def test_an_empty_set_says_nothing_inside_jit(loss):
  s = SETS.copy()
  s[2] = False
  value, slope = found(loss, LOGITS, s)
  whole, whole_slope = found(loss, LOGITS, SETS)
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


@functools.cache
def shaped():
  shape = (2, 4, C)
  of = lambda z, s: [loss(z, s) for loss in LOSSES if loss is not lws]
  return run(of, LOGITS.reshape(shape), SETS.reshape(shape))


@each
def test_leading_dimensions_permutations_and_shifts(loss):
  value, slope = found(loss, LOGITS, SETS)
  if loss is not lws:
    without = [other for other in LOSSES if other is not lws]
    close(shaped()[without.index(loss)].reshape(B), value)
    order = RNG.permutation(C)
    moved, moved_slope = found(loss, LOGITS[:, order], SETS[:, order])
    close(moved, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved_slope, slope[:, order], atol=1e-5)
  np.testing.assert_allclose(np.sum(slope, 1), 0, atol=1e-5)
