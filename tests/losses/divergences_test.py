"""Divergence losses: closed forms, limits, and the tempered softmax."""

import functools

from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

Z, Y = draw()
ONE_HOT, P = np.eye(C, dtype=np.float32)[Y], softmax(Z)
T = softmax(draw(seed=1)[0])

# --- Jensen-Shannon ----------------------------------------------------------


def kl(p, q):
  return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0), -1)


def test_js_definition_for_soft_labels():
  w = 0.3
  m = w * T + (1 - w) * P
  expected = (w * kl(T, m) + (1 - w) * kl(P, m)) / -((1 - w) * np.log(1 - w))
  close(run(lambda z: losses.js(z, np.float32(T), w0=w), Z), expected)


def test_js_closed_form_is_the_definition():
  weights = np.float32([0.01, 0.3, 0.9])
  js = lambda w0: [
    value_and_slope(losses.js, Z, y, w0=w0) for y in (Y, ONE_HOT)
  ]
  own, defined = run(jax.vmap(js), weights)
  close(own[0], defined[0], rtol=1e-4)
  close(own[1], defined[1], rtol=1e-3, atol=1e-5)


def test_js_limits():
  """Cross-entropy at one end, absolute error at the other."""
  z, y = draw(scale=1.0)
  own = softmax(z)[np.arange(B), y]
  small = np.float32([1e-3, 1e-5, 1e-7])  # in float32: nothing cancels
  js = jax.vmap(lambda w0: losses.js(z, y, w0=w0))
  found = run(js, np.append(small, np.float32([1 - 1e-7, 0.5])))
  for w0, values in zip(small, found, strict=False):
    close(values, -np.log(own), rtol=max(20 * w0, 1e-5))
  near, nearer = np.abs(found[3:] - (1 - own)).max(1)
  assert near < 0.1 < nearer


def test_gjs_of_equal_views_is_js():
  views, weights = np.stack([Z, Z, Z]), (0.4, 0.1, 0.2, 0.3)
  expected, *found = run(
    lambda z: (
      losses.js(z, Y, w0=0.4),
      losses.gjs(views, Y, weights=weights),
      losses.gjs_of_mean(views, Y, weights=weights),
      losses.gjs(z[None], Y, weights=(0.4, 0.6)),
    ),
    Z,
  )
  for values in found:
    close(values, expected)


def test_gjs_exceeds_its_mean_by_the_disagreement():
  views, weights = np.stack([Z, -Z]), (0.3, 0.5, 0.2)
  both, mean = run(
    lambda views: [
      loss(views, Y, weights=weights)
      for loss in (losses.gjs, losses.gjs_of_mean)
    ],
    views,
  )
  p = softmax(views)
  middle = (0.5 * p[0] + 0.2 * p[1]) / 0.7
  disagreement = 0.5 * kl(p[0], middle) + 0.2 * kl(p[1], middle)
  close(both - mean, disagreement / -(0.7 * np.log(0.7)), rtol=1e-4)


@pytest.mark.parametrize(
  'weights', [(0.5, 0.5), (0.3, 0.35, 0.45), (0.0, 0.5, 0.5)]
)
def test_gjs_names_its_weights(weights):
  for loss in (losses.gjs, losses.gjs_of_mean):
    with pytest.raises(ValueError, match='weights'):
      loss(np.stack([Z, Z]), Y, weights=weights)


# --- the asymmetric norm -----------------------------------------------------


def test_anorm_definition():
  of = lambda p: (np.sum(np.abs(1.5 * ONE_HOT - p) ** 0.9, -1) - 0.5**0.9) / 0.9
  plain, linear, clipped = run(
    lambda z: (
      losses.anorm(z, Y),
      losses.anorm(z, Y, a=1.0, p=1.0),
      losses.anorm(z, Y, clip=0.1),
    ),
    Z,
  )
  close(plain, of(P))
  close(linear, 2 * (1 - P[np.arange(B), Y]))
  close(clipped, of(np.clip(P, 0.1, 1)))


def test_anorm_gradient_is_finite_at_its_cusp():
  t = np.array([0.5, 0.25, 0.25], np.float32)
  loss = jax.grad(lambda z: losses.anorm(z, t, a=1.0, p=0.1))
  assert np.isfinite(run(loss, np.log(t))).all()


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


SCALES = [0.0, 2.0, 50.0, 1e4]


@functools.cache
def tempered():
  """All temperatures and scales at once: [temperatures, scales, 8, 100]."""
  z = np.stack([draw(b=8, c=100, scale=scale)[0] for scale in SCALES])
  swept = jax.vmap(lambda t: losses.tempered_log_softmax(z, t=t))
  return z, np.exp(run(swept, np.float32(TEMPERATURES)))


@pytest.mark.parametrize('t', TEMPERATURES)
@pytest.mark.parametrize('scale', SCALES)
def test_tempered_softmax_is_exact(t, scale):
  z, p = tempered()
  s = SCALES.index(scale)
  found = p[TEMPERATURES.index(t), s]
  close(found.sum(-1), 1.0, rtol=1e-5)
  close(found, bisected(z[s], np.float64(np.float32(t))), rtol=1e-4)


def test_a_temperature_that_is_known_does_as_one_that_is_traced():
  z, p = tempered()
  known = (0.5, 1.0, 2.0)
  found = run(lambda z: [losses.tempered_log_softmax(z, t=t) for t in known], z)
  for t, values in zip(known, found, strict=True):
    close(np.exp(values), p[TEMPERATURES.index(t)])


def bi_tempered(z, y, t1, t2):
  """The definition, in float64."""
  log_t = lambda x: np.log(x) if t1 == 1 else (x ** (1 - t1) - 1) / (1 - t1)
  p = bisected(z, t2)
  own = p[np.arange(len(p)), y]
  return -log_t(own) - (1 - np.sum(p ** (2 - t1), -1)) / (2 - t1)


BOTH = [(0.8, 1.2), (0.5, 4.0), (0.0, 1.5), (1.0, 2.0), (0.7, 1.0), (0.3, 0.6)]


@functools.cache
def values_and_slopes():
  with jax.enable_x64(True):
    of = lambda t1, t2: value_and_slope(
      losses.bi_tempered, np.float64(Z), Y, t1=t1, t2=t2
    )
    return run(jax.vmap(of), *np.array(BOTH).T)


@pytest.mark.parametrize(('t1', 't2'), BOTH)
def test_bi_tempered_value_and_slope(t1, t2):
  value, slope = (a[BOTH.index((t1, t2))] for a in values_and_slopes())
  close(value, bi_tempered(Z, Y, t1, t2), rtol=1e-9, atol=1e-10)
  for k in range(C):
    step = 1e-5 * np.eye(C)[k]
    ahead, behind = (bi_tempered(Z + s * step, Y, t1, t2) for s in (1, -1))
    close(slope[:, k], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-7)


def test_bi_tempered_at_one_is_cross_entropy():
  of = lambda t: value_and_slope(losses.bi_tempered, Z, Y, t1=t, t2=t)
  traced, known, ce = run(
    lambda t: (of(t), of(1.0), value_and_slope(losses.ce, Z, Y)),
    np.float32(1),
  )
  for found in (traced, known):
    close(found[0], ce[0])
    close(found[1], ce[1])


def test_bi_tempered_of_soft_labels_is_a_divergence():
  """Not negative, and 0 where the prediction is the label."""

  def both(t1, t2):
    t = jnp.exp(losses.tempered_log_softmax(Z, t=t2))
    return [losses.bi_tempered(z, t, t1=t1, t2=t2) for z in (Z, Z[::-1])]

  own, other = run(
    jax.vmap(both), *np.float32([[0.8, 0.3, 1.0], [1.2, 0.7, 1.0]])
  )
  close(own, 0, atol=2e-6)
  assert other.min() > 1e-3


def test_bi_tempered_is_bounded():
  z = np.array([[0.0, 1e4]], np.float32)
  loss = lambda z: losses.bi_tempered(z, jnp.array([0]), t1=0.5, t2=1.5)
  assert run(loss, z) < 1 / 0.5 + 1


@pytest.mark.parametrize(('t', 'order'), [(0.7, 1), (1.3, 2)])
def test_tempered_derivatives_of_logits_and_temperature(t, order):
  """In one direction, against differences in float64."""
  z = np.float64(draw(scale=0.5)[0])
  rng = np.random.default_rng(1)
  tangents = rng.standard_normal(z.shape), 0.5
  weights = rng.standard_normal(z.shape)

  def loss(z, t):
    return jnp.sum(weights * losses.tempered_log_softmax(z, t=t))

  def everything(z, t):
    of = loss if order == 1 else jax.grad(loss, (0, 1))
    value, along = jax.jvp(of, (z, t), tangents)
    return value, along, jax.grad(loss, (0, 1))(z, t)

  with jax.enable_x64(True):
    compiled = jax.jit(everything)
    at = lambda step: jax.device_get(
      compiled(z + step * tangents[0], t + step * tangents[1])
    )
    step = 1e-5
    (_, along, slope), ahead, behind = at(0.0), at(step), at(-step)
  for found, a, b in zip(
    *map(jax.tree.leaves, (along, ahead[0], behind[0])), strict=True
  ):
    close(found, (a - b) / (2 * step), rtol=1e-4, atol=1e-6)
  if order == 1:
    backward = np.sum(slope[0] * tangents[0]) + slope[1] * tangents[1]
    close(along, backward, rtol=1e-9)


def test_tempered_softmax_of_a_row_is_its_own():
  """A NaN, or a row that takes longer, does not end the steps of others."""
  other = Z.copy()
  other[3], other[4] = np.nan, 1e3 * Z[4]
  compiled = jax.jit(lambda z: losses.tempered_log_softmax(z, t=2.0))
  alone, beside = np.asarray(compiled(Z)), np.asarray(compiled(other))
  assert np.all(np.isnan(beside[3]))
  rest = np.delete(np.arange(B), [3, 4])
  np.testing.assert_array_equal(beside[rest], alone[rest])
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


@functools.cache
def coarse_and_exact():
  coarse = [
    {name: jnp.bfloat16.dtype.type(value) for name, value in values.items()}
    for _, values in HYPERPARAMETERS
  ]
  exact = [{k: float(v) for k, v in values.items()} for values in coarse]
  of = lambda values: [
    loss(Z, Y, **own)
    for (loss, _), own in zip(HYPERPARAMETERS, values, strict=True)
  ]
  return run(lambda coarse: (of(coarse), of(exact)), coarse)


@pytest.mark.parametrize('index', range(len(HYPERPARAMETERS)))
def test_hyperparameters_are_scalars_of_any_precision(index):
  """An array of them would make [b, b] losses; arithmetic is that of logits."""
  found, exact = (values[index] for values in coarse_and_exact())
  assert found.dtype == np.float32
  close(found, exact, rtol=2e-5, atol=2e-6)
  loss, values = HYPERPARAMETERS[index]
  for name, value in values.items():
    with pytest.raises(ValueError, match=f'{name} must be a scalar'):
      loss(Z, Y, **{name: np.full([B, 1], value)})
