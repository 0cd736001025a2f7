"""Logits and weights for classes of uneven size, against NumPy in float64."""

import functools

from fixture_losses import close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses
from jnl.base import AXIS, global_mean

B, C = 16, 4
Z, Y = draw(B, C)
COUNTS = np.array([160, 40, 10, 3])
PRIOR = COUNTS / COUNTS.sum()
MARGINS = np.array([0.1, 0.2, 0.3, 0.5])
ROWS = np.arange(B)
FLIP = 0.8 * np.eye(C) + 0.05


def effective(counts, beta):
  """As a sum, term by term: 1 + beta + ... + beta^(n - 1)."""
  return np.array([np.sum(float(beta) ** np.arange(n)) for n in counts])


def normalized(weights):
  return weights * len(weights) / weights.sum()


# --- logits ------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_balanced_softmax_and_margins(dtype):
  """Values and gradients of cross-entropy on them."""
  adjusted = lambda z, y: losses.ce(losses.adjust_logits(z, PRIOR), y)
  less = lambda z, y: losses.ce(losses.subtract_margins(z, y, MARGINS), y)
  with jax.enable_x64(dtype == 'float64'):
    z = jnp.asarray(Z, dtype)
    found = run(
      lambda z: [value_and_slope(f, z, Y) for f in (adjusted, less)],
      z,
    )
    raised = jnp.promote_types(dtype, 'float32')
    assert losses.adjust_logits(z, PRIOR, tau=0.5).dtype == raised
    assert losses.subtract_margins(z, Y, MARGINS).dtype == raised
    found = jax.device_get(found)
  z = np.float64(z)
  hot = Y[:, None] == np.arange(C)
  balanced = COUNTS * np.exp(z)
  balanced /= balanced.sum(1, keepdims=True)
  pushed = softmax(z - hot * MARGINS)
  tolerance = {'float64': 1e-12, 'float32': 1e-5, 'bfloat16': 1e-2}[dtype]
  for (value, slope), p in zip(found, (balanced, pushed), strict=True):
    assert value.dtype == raised
    close(value, -np.log(p[ROWS, Y]), tolerance, tolerance)
    close(slope, p - hot, tolerance, tolerance)


def test_tau_and_the_way_back():
  def of(z):
    adjust = functools.partial(losses.adjust_logits, z)
    there = losses.adjust_logits(z, PRIOR, tau=1.7)
    each = np.tile(PRIOR, [B, 1]).astype(np.float32)
    return {
      'none': adjust(PRIOR, tau=0.0),
      'back': losses.adjust_logits(there, PRIOR, tau=-1.7),
      'some': there,
      'each': adjust(each, tau=1.7),
      'uniform': losses.ce(adjust(np.full(C, 1 / C)), Y),
      'ce': losses.ce(z, Y),
    }

  found = run(of, Z)
  np.testing.assert_array_equal(found['none'], Z)
  close(found['back'], Z)
  close(found['some'], Z + 1.7 * np.log(PRIOR))
  np.testing.assert_array_equal(found['each'], found['some'])
  close(found['uniform'], found['ce'])


def test_what_maximizes_the_balanced_likelihood():
  """Without features, logits that fit the labels are the same for all classes.

  Of plain cross-entropy they are the log of the prior, which `tau=-1` removes.
  """
  mean = lambda z, adjusted: jnp.dot(
    PRIOR,
    losses.ce(
      jnp.broadcast_to(
        losses.adjust_logits(z, PRIOR) if adjusted else z, (C, C)
      ),
      np.arange(C),
    ),
  )
  balanced, plain = run(
    lambda same, log: (
      jax.grad(mean)(same, True),
      jax.grad(mean)(log, False),
    ),
    np.full(C, 0.3, np.float32),
    np.log(PRIOR).astype(np.float32),
  )
  close(balanced, np.zeros(C))
  close(plain, np.zeros(C))
  back = losses.adjust_logits(np.log(PRIOR), PRIOR, tau=-1.0)
  close(back, np.zeros(C))


def test_they_compose_with_robust_losses():
  """GCE and forward of what comes out, with gradients of the whole."""
  adjust = lambda z: losses.adjust_logits(z, PRIOR)
  less = lambda z: losses.subtract_margins(z, Y, MARGINS)

  def of(z):
    pairs = (
      lambda z: losses.gce(adjust(z), Y, q=0.6),
      lambda z: losses.forward(adjust(z), Y, FLIP),
      lambda z: losses.gce(less(z), Y, q=0.6),
      lambda z: losses.forward(adjust(less(z)), Y, FLIP),
    )
    return [value_and_slope(lambda z, _, f=f: f(z), z, Y) for f in pairs]

  with jax.enable_x64(True):
    z = np.float64(Z)
    hot = Y[:, None] == np.arange(C)
    values = {
      'adjusted': z + np.log(PRIOR),
      'less': z - hot * MARGINS,
    }
    gce = lambda z: (1 - softmax(z)[ROWS, Y] ** 0.6) / 0.6
    forward = lambda z: -np.log((softmax(z) @ FLIP)[ROWS, Y])
    expected = (
      gce(values['adjusted']),
      forward(values['adjusted']),
      gce(values['less']),
      forward(values['less'] + np.log(PRIOR)),
    )
    compiled = jax.jit(of)
    found = jax.device_get(compiled(z))
    v = np.random.default_rng(1).standard_normal(z.shape)
    ahead, behind = (jax.device_get(compiled(z + s * v)) for s in (1e-5, -1e-5))
  for i, (value, slope) in enumerate(found):
    close(value, expected[i], 1e-10)
    steep = (ahead[i][0] - behind[i][0]) / 2e-5
    close((slope * v).sum(1), steep, 1e-7, 1e-8)


def test_a_class_of_prior_zero_is_masked():
  prior = np.array([0.5, 0.5, 0.0, 0.0], np.float32)
  labels = Y % 2

  def loss(z, prior, tau):
    adjusted = losses.adjust_logits(z, prior, tau=tau)
    return jnp.sum(losses.ce(adjusted, labels)), adjusted

  slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)
  results = run(
    lambda z, p: [slopes(z, p, tau) for tau in (1.0, -1.0, 0.0)], Z, prior
  )
  for ((_, adjusted), (slope, by_prior)), tau in zip(
    results, (1.0, -1.0, 0.0), strict=True
  ):
    if tau:
      assert np.all(adjusted[:, 2:] == -np.inf)
      np.testing.assert_array_equal(slope[:, 2:], 0)
    else:
      np.testing.assert_array_equal(adjusted, Z)
    assert np.all(np.isfinite(slope))
    assert np.all(np.isfinite(by_prior))
  traced = run(
    lambda z, tau: losses.adjust_logits(z, prior, tau=tau), Z, np.float32(0)
  )
  np.testing.assert_array_equal(traced, Z)
  masked = jnp.array([0.0, -jnp.inf, 1.0, 2.0])
  for tau in (1.0, -1.0):
    assert losses.adjust_logits(masked, PRIOR, tau=tau)[1] == -jnp.inf
  assert np.isinf(losses.ce(losses.adjust_logits(Z[0], prior), 3))


def test_logits_of_any_size():
  for size in (1e4, -1e4, 1e30):
    z = size * np.array([[1.0, -1.0, 0.0, 0.5]], np.float32)
    adjusted = losses.adjust_logits(z, PRIOR)
    less = losses.subtract_margins(z, np.array([1]), MARGINS)
    for found in (adjusted, less):
      assert np.all(np.isfinite(found))
      assert np.isfinite(losses.ce(found, np.array([1]))[0])


def test_labels_out_of_range_inside_jit():
  """NaN, without gradient: weight 0 leaves the row out."""
  labels = np.where(ROWS < 3, C, Y).astype(np.int32)
  weights = (ROWS >= 3).astype(np.float32)

  def loss(z, y):
    z = losses.subtract_margins(z, y, MARGINS)
    return global_mean(losses.gce(z, y), weights), z

  (value, less), slope = run(jax.value_and_grad(loss, has_aux=True), Z, labels)
  assert np.all(np.isnan(less[:3]))
  np.testing.assert_array_equal(slope[:3], 0)
  p = softmax(Z - (Y[:, None] == np.arange(C)) * MARGINS)[ROWS, Y]
  close(value, np.mean(((1 - p**0.7) / 0.7)[3:]))


# --- sizes of classes --------------------------------------------------------


@pytest.mark.parametrize('beta', [0.0, 0.5, 0.99, 0.9999, 1.0])
def test_effective_numbers(beta):
  expected = normalized(1 / effective(COUNTS, beta))
  close(losses.class_weights(COUNTS, beta=beta), expected, 1e-6)
  with jax.enable_x64(True):
    found = losses.class_weights(np.float64(COUNTS), beta=beta)
    assert found.dtype == np.float64
  found = np.asarray(found)
  close(found, expected, 1e-12)
  close(found.sum(), C, 1e-12)


def test_ends_of_beta():
  np.testing.assert_array_equal(losses.class_weights(COUNTS, beta=0.0), 1)
  inverse = normalized(1 / COUNTS)
  close(losses.class_weights(COUNTS, beta=1.0), inverse, 1e-6)
  found = run(
    lambda beta: losses.class_weights(COUNTS, beta=beta),
    np.float32(0.9),
  )
  close(found, normalized(1 / effective(COUNTS, 0.9)), 1e-5)
  many = run(
    jax.vmap(lambda beta: losses.class_weights(COUNTS, beta=beta)),
    np.float32([0.0, 1.0]),
  )
  close(many, [np.ones(C), inverse])


def test_weights_near_one_and_of_large_classes():
  """Where 1 - beta^n is rounded to nothing, or int32 is too small."""
  counts = np.array([3_000_000_000, 1_000_000, 1000, 10])
  for gap in (1e-4, 1e-7, 1e-10, 1e-13):
    gap = 1 - (1 - gap)  # what is left of it in float64
    log_beta = np.log1p(-np.longdouble(gap))
    number = -np.expm1(np.longdouble(counts) * log_beta) / gap
    found = losses.class_weights(counts, beta=1 - gap)
    close(found, normalized(np.float64(1 / number)), 1e-6, 1e-12)
  close(losses.class_weights([1e30, 1e38], beta=1.0), [2, 2e-8], 1e-6)
  margins = losses.ldam_margins(counts)
  close(margins, 0.5 * (10 / counts) ** 0.25, 1e-6)


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'bfloat16', 'float64'])
def test_margins(dtype):
  with jax.enable_x64(dtype == 'float64'):
    counts = jnp.asarray(COUNTS, dtype)
    found = losses.ldam_margins(counts, largest=0.7)
    expected = np.float32 if dtype != 'float64' else np.float64
    assert found.dtype == losses.class_weights(counts).dtype == expected
  close(found, 0.7 * (3 / COUNTS) ** 0.25, 1e-6)
  np.testing.assert_array_equal(losses.ldam_margins(COUNTS, largest=0.0), 0)


def test_ldam_is_that_of_scaled_cosines():
  """Margins before the scale are scaled margins after it."""
  cosines = np.tanh(Z)
  margins = losses.ldam_margins(COUNTS)
  before, after = run(
    lambda z: (
      losses.ce(30 * losses.subtract_margins(z, Y, margins), Y),
      losses.ce(losses.subtract_margins(30 * z, Y, 30 * margins), Y),
    ),
    cosines,
  )
  hot = Y[:, None] == np.arange(C)
  expected = softmax(30 * (np.float64(cosines) - hot * margins))[ROWS, Y]
  close(before, -np.log(expected), 1e-4)
  close(after, before, 1e-4)


def test_classes_without_examples():
  counts = np.array([100, 0, 10, 0])
  close(losses.ldam_margins(counts), [0.5 * 0.1**0.25, 0.5, 0.5, 0.5])
  for beta in (0.0, 0.9, 0.9999, 1.0):
    found = np.asarray(losses.class_weights(counts, beta=beta))
    close(found[[0, 2]], losses.class_weights(counts[[0, 2]], beta=beta))
    np.testing.assert_array_equal(found[[1, 3]], 0)
  nobody = run(losses.class_weights, np.zeros(C, np.float32))
  np.testing.assert_array_equal(nobody, 0)
  np.testing.assert_array_equal(
    run(losses.ldam_margins, np.zeros(C, np.float32)), 0.5
  )


def test_two_means_of_weighted_losses():
  """Over the weights as in PyTorch, or over the rows; on eight devices too."""
  own = losses.class_weights(COUNTS)

  def means(z, y):
    loss = losses.ce(z, y)
    return (
      global_mean(loss, own[y]),
      global_mean(own[y] * loss, jnp.ones(y.shape)),
    )

  mesh = jax.make_mesh((8,), (AXIS,), (jax.sharding.AxisType.Auto,))
  split, whole = jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()
  by_device = jax.shard_map(means, mesh=mesh, in_specs=split, out_specs=whole)
  loss, w = -np.log(softmax(Z)[ROWS, Y]), np.asarray(own)[Y]
  expected = (loss * w).sum() / w.sum(), (loss * w).mean()
  assert abs(expected[0] - expected[1]) > 0.1
  for found in (run(means, Z, Y), run(by_device, Z, Y)):
    close(found, expected)


# --- what cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda: losses.adjust_logits(Z, COUNTS), TypeError, 'prior must be float'),
    (
      lambda: losses.adjust_logits(Z, np.float32(COUNTS)),
      ValueError,
      'prior must have rows >= 0 that sum to one.* sums to 213',
    ),
    (
      lambda: losses.adjust_logits(Z, PRIOR[:3]),
      ValueError,
      r'prior must be \[4\] or have the shape of the logits',
    ),
    (
      lambda: losses.adjust_logits(Z, np.array([1.2, -0.2, 0, 0])),
      ValueError,
      'prior must have rows >= 0',
    ),
    (
      lambda: losses.adjust_logits(Z, np.array([np.nan, 0.5, 0.5, 0])),
      ValueError,
      'prior must have rows >= 0',
    ),
    (
      lambda: losses.adjust_logits(Z, PRIOR, tau=np.ones(C)),
      ValueError,
      'tau must be a scalar',
    ),
    (
      lambda: losses.subtract_margins(Z, Y, MARGINS[:3]),
      ValueError,
      r'margins must be \[4\]',
    ),
    (
      lambda: losses.subtract_margins(Z, Y, COUNTS),
      TypeError,
      'margins must be floating-point',
    ),
    (
      lambda: losses.subtract_margins(Z, Y, MARGINS * np.inf),
      ValueError,
      'margins must be finite',
    ),
    (
      lambda: losses.subtract_margins(Z, Y[:, None], MARGINS),
      ValueError,
      r'labels must be \[...\] int',
    ),
    (
      lambda: losses.subtract_margins(Z, np.full(B, C), MARGINS),
      ValueError,
      r'labels must lie in \[0, 4\), got 4 in row 0',
    ),
    (
      lambda: losses.subtract_margins(Z, softmax(Z), MARGINS),
      ValueError,
      r'labels must be \[...\] int',
    ),
    (
      lambda: losses.subtract_margins(Z, np.ones(B), MARGINS),
      TypeError,
      'labels must be integers',
    ),
    (
      lambda: losses.ldam_margins(COUNTS, largest=-1.0),
      ValueError,
      'largest must lie in',
    ),
    (lambda: losses.class_weights(COUNTS, beta=1.1), ValueError, 'beta must'),
    *(
      (lambda f=f, counts=counts: f(counts), error, message)
      for f in (losses.ldam_margins, losses.class_weights)
      for counts, error, message in (
        ([3, -1], ValueError, r'counts must lie in \[0,'),
        ([3.0, np.nan], ValueError, r'counts must lie in \[0,'),
        ([3.0, np.inf], ValueError, r'counts must lie in \[0,'),
        ([0, 0], ValueError, 'counts must be positive for some class'),
        ([3], ValueError, r'counts must be \[c\] with c >= 2'),
        ([[3, 2]], ValueError, r'counts must be \[c\] with c >= 2'),
        (['a', 'b'], TypeError, 'counts must be numbers'),
      )
    ),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=message):
    call()
