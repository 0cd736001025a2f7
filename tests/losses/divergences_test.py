"""Divergence losses: closed forms, limits, and the tempered softmax."""

from fixture_losses import C, close, draw, slope
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jnl import losses

# --- Jensen-Shannon ----------------------------------------------------------


def kl(p, q):
  return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0), -1)


def test_js_definition_for_soft_labels():
  z, _ = draw()
  t = np.asarray(jax.nn.softmax(draw(seed=1)[0]), np.float64)
  p = np.asarray(jax.nn.softmax(z), np.float64)
  w = 0.3
  m = w * t + (1 - w) * p
  expected = (w * kl(t, m) + (1 - w) * kl(p, m)) / -((1 - w) * np.log(1 - w))
  close(losses.js(z, jnp.asarray(t, jnp.float32), w0=w), expected)


@pytest.mark.parametrize('w0', [0.01, 0.3, 0.9])
def test_js_closed_form_is_the_definition(w0):
  z, y = draw()
  one_hot = jax.nn.one_hot(y, C)
  close(losses.js(z, y, w0=w0), losses.js(z, one_hot, w0=w0), rtol=1e-4)
  close(
    slope(losses.js, z, y, w0=w0),
    slope(losses.js, z, one_hot, w0=w0),
    rtol=1e-3,
    atol=1e-5,
  )


def test_js_limits():
  """Cross-entropy at one end, absolute error at the other."""
  z, y = draw(scale=1.0)
  for w0 in (1e-3, 1e-5, 1e-7):  # in float32: nothing cancels
    close(losses.js(z, y, w0=w0), losses.ce(z, y), rtol=max(20 * w0, 1e-5))
  near = losses.js(z, y, w0=1 - 1e-7) - losses.mae(z, y)
  nearer = losses.js(z, y, w0=0.5) - losses.mae(z, y)
  assert np.abs(near).max() < 0.1 < np.abs(nearer).max()


def test_gjs_of_equal_views_is_js():
  z, y = draw()
  views = jnp.stack([z, z, z])
  weights = (0.4, 0.1, 0.2, 0.3)
  expected = losses.js(z, y, w0=0.4)
  close(losses.gjs(views, y, weights=weights), expected)
  close(losses.gjs_of_mean(views, y, weights=weights), expected)
  close(losses.gjs(z[None], y, weights=(0.4, 0.6)), expected)


def test_gjs_exceeds_its_mean_by_the_disagreement():
  z, y = draw()
  views, weights = jnp.stack([z, -z]), (0.3, 0.5, 0.2)
  gap = losses.gjs(views, y, weights=weights)
  gap -= losses.gjs_of_mean(views, y, weights=weights)
  p = np.asarray(jax.nn.softmax(views), np.float64)
  mean = (0.5 * p[0] + 0.2 * p[1]) / 0.7
  disagreement = 0.5 * kl(p[0], mean) + 0.2 * kl(p[1], mean)
  close(gap, disagreement / -(0.7 * np.log(0.7)), rtol=1e-4)


@pytest.mark.parametrize(
  'weights', [(0.5, 0.5), (0.3, 0.35, 0.45), (0.0, 0.5, 0.5)]
)
def test_gjs_names_its_weights(weights):
  z, y = draw()
  for loss in (losses.gjs, losses.gjs_of_mean):
    with pytest.raises(ValueError, match='weights'):
      loss(jnp.stack([z, z]), y, weights=weights)


# --- the asymmetric norm -----------------------------------------------------


def test_anorm_definition():
  z, y = draw()
  t = np.asarray(jax.nn.one_hot(y, C))
  p = np.asarray(jax.nn.softmax(z))
  expected = (np.sum(np.abs(1.5 * t - p) ** 0.9, -1) - 0.5**0.9) / 0.9
  close(losses.anorm(z, y), expected)
  close(losses.anorm(z, y, a=1.0, p=1.0), 2 * losses.mae(z, y))
  clipped = np.clip(p, 0.1, 1)
  expected = (np.sum(np.abs(1.5 * t - clipped) ** 0.9, -1) - 0.5**0.9) / 0.9
  close(losses.anorm(z, y, clip=0.1), expected)


def test_anorm_gradient_is_finite_at_its_cusp():
  z = jnp.log(jnp.array([0.5, 0.25, 0.25]))
  t = jnp.array([0.5, 0.25, 0.25])
  assert np.isfinite(slope(losses.anorm, z, t, a=1.0, p=0.1)).all()


# --- bi-tempered -------------------------------------------------------------

TEMPERATURES = [0.2, 0.5, 0.9, 0.999, 1.0, 1.001, 1.2, 2.0, 4.0]


def exp_t(x, t):
  if t == 1:
    return np.exp(x)
  return np.maximum(1 + (1 - t) * x, 0) ** (1 / (1 - t))


def bisected(z, t):
  """The tempered softmax in float64, by 200 halvings."""
  z = np.asarray(z, np.float64)
  high = z.max(-1, keepdims=True)
  c = z.shape[-1]
  low, width = high, np.log(c) if t == 1 else (c ** (t - 1) - 1) / (t - 1)
  high = high + width + 1e-9
  for _ in range(200):
    middle = (low + high) / 2
    over = exp_t(z - middle, t).sum(-1, keepdims=True) > 1
    low, high = np.where(over, middle, low), np.where(over, high, middle)
  return exp_t(z - low, t)


@pytest.mark.parametrize('t', TEMPERATURES)
@pytest.mark.parametrize('scale', [0.0, 2.0, 50.0, 1e4])
def test_tempered_softmax_is_exact(t, scale):
  z, _ = draw(b=8, c=100, scale=scale)
  p = np.exp(losses.tempered_log_softmax(z, t=t))
  close(p.sum(-1), 1.0, rtol=1e-5)
  close(p, bisected(z, t), rtol=1e-4, atol=1e-6)


def bi_tempered(z, y, t1, t2):
  """The definition, in float64."""
  log_t = lambda x: np.log(x) if t1 == 1 else (x ** (1 - t1) - 1) / (1 - t1)
  p = bisected(z, t2)
  own = p[np.arange(len(p)), y]
  return -log_t(own) - (1 - np.sum(p ** (2 - t1), -1)) / (2 - t1)


@pytest.mark.parametrize(
  ('t1', 't2'),
  [(0.8, 1.2), (0.5, 4.0), (0.0, 1.5), (1.0, 2.0), (0.7, 1.0), (0.3, 0.6)],
)
def test_bi_tempered_value_and_slope(t1, t2):
  with jax.enable_x64(True):
    z, y = draw()
    z = z.astype(jnp.float64)
    loss = lambda z: losses.bi_tempered(z, y, t1=t1, t2=t2)
    close(loss(z), bi_tempered(z, y, t1, t2), rtol=1e-9, atol=1e-10)
    analytic = np.asarray(slope(lambda z, y: loss(z), z, y))
    for k in range(C):
      step = 1e-5 * np.eye(C)[k]
      ahead, behind = (
        bi_tempered(np.asarray(z) + s * step, y, t1, t2) for s in (1, -1)
      )
      close(analytic[:, k], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-7)


def test_bi_tempered_at_one_is_cross_entropy():
  z, y = draw()
  close(losses.bi_tempered(z, y, t1=1.0, t2=1.0), losses.ce(z, y))
  both = jax.jit(
    lambda t: (
      losses.bi_tempered(z, y, t1=t, t2=t),
      slope(losses.bi_tempered, z, y, t1=t, t2=t),
    )
  )(1.0)
  close(both[0], losses.ce(z, y))
  close(both[1], slope(losses.ce, z, y))


def test_bi_tempered_of_soft_labels_is_a_divergence():
  """Not negative, and 0 where the prediction is the label."""
  z, _ = draw()
  for t1, t2 in ((0.8, 1.2), (0.3, 0.7), (1.0, 1.0)):
    t = jnp.exp(losses.tempered_log_softmax(z, t=t2))
    close(losses.bi_tempered(z, t, t1=t1, t2=t2), 0, atol=2e-6)
    assert losses.bi_tempered(z[::-1], t, t1=t1, t2=t2).min() > 1e-3


def test_bi_tempered_is_bounded():
  z, y = jnp.array([[0.0, 1e4]]), jnp.array([0])
  assert losses.bi_tempered(z, y, t1=0.5, t2=1.5) < 1 / 0.5 + 1


@pytest.mark.parametrize(('t', 'order'), [(0.7, 1), (1.3, 2)])
def test_tempered_derivatives_of_logits_and_temperature(t, order):
  with jax.enable_x64(True):
    z = draw(scale=0.5)[0].astype(jnp.float64)
    check_grads(
      jax.jit(lambda z, t: losses.tempered_log_softmax(z, t=t)),
      (z, jnp.float64(t)),
      order=order,
      rtol=1e-4,
    )


def test_tempered_softmax_of_a_row_is_its_own():
  """A NaN, or a row that takes longer, does not end the steps of others."""
  z = draw()[0]
  run = jax.jit(lambda z: losses.tempered_log_softmax(z, t=2.0))
  beside = run(z.at[3].set(jnp.nan).at[4].multiply(1e3))
  assert np.all(np.isnan(beside[3]))
  rest = np.delete(np.arange(len(z)), [3, 4])
  np.testing.assert_array_equal(beside[rest], run(z)[rest])
  close(np.exp(beside[rest]).sum(-1), 1)


# --- hyperparameters ---------------------------------------------------------


def of_views(loss):
  return lambda z, y, **h: loss(jnp.stack([z, -z]), y, **h)


HYPERPARAMETERS = [
  (losses.js, {'w0': 0.3, 'clip': 1e-3}),
  (losses.anorm, {'a': 1.5, 'p': 0.9, 'clip': 1e-3}),
  (losses.bi_tempered, {'t1': 0.8, 't2': 1.2}),
  (of_views(losses.gjs), {'clip': 1e-3}),
  (of_views(losses.gjs_of_mean), {'clip': 1e-3}),
  (lambda z, y, t: losses.tempered_log_softmax(z, t=t), {'t': 1.2}),
]


@pytest.mark.parametrize(('loss', 'values'), HYPERPARAMETERS)
def test_hyperparameters_are_scalars_of_any_precision(loss, values):
  """An array of them would make [b, b] losses; arithmetic is that of logits."""
  z, y = draw()
  coarse = {name: jnp.bfloat16(value) for name, value in values.items()}
  found = jax.jit(lambda h: loss(z, y, **h))(coarse)
  assert found.dtype == jnp.float32
  exact = {name: float(value) for name, value in coarse.items()}
  close(found, loss(z, y, **exact), rtol=2e-5, atol=2e-6)
  for name, value in values.items():
    with pytest.raises(ValueError, match=f'{name} must be a scalar'):
      loss(z, y, **{name: jnp.full([len(z), 1], value)})
