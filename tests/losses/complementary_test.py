"""Losses of complementary labels, against definitions in float64."""

from fixture_losses import close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses, noise
from jnl.base import global_mean

B, C = 40, 5
Z, Y = draw(B, C)
Y[Y == 3] = 1  # a label that the batch lacks
RNG = np.random.default_rng(2)
Q = 0.1 * np.eye(C) + 0.9 * RNG.dirichlet(np.ones(C - 1), C)[
  np.arange(C)[:, None], (np.arange(C) - np.arange(C)[:, None] - 1) % C % 4
] * (1 - np.eye(C))
Q = np.float32(Q)
PRIOR = np.float32([0.3, 0.2, 0.1, 0.25, 0.15])
WEIGHTS = np.float32(RNG.random(B) * (np.arange(B) > 3))
UNIFORM = np.asarray(noise.complementary(C))


def risks(z, y, q, prior, weights, value=None):
  """v [c, c] by loops, of losses [b, c]."""
  values = -np.log(softmax(z)) if value is None else value
  inverse, v = np.linalg.inv(np.float64(q)), np.zeros([len(q), len(q)])
  for k in range(len(q)):
    own = weights * (y == k)
    if own.sum():
      mean = (own[:, None] * values).sum(0) / own.sum()
      v[k] = prior[k] * inverse[k] * mean
  return v


def of_all(z, y=Y, q=Q, prior=PRIOR, weights=WEIGHTS, **options):
  return losses.complementary_risks(z, y, q, prior, weights, **options)


def total(z, *rest, **options):
  return jnp.sum(of_all(z, *rest, **options))


# --- risks --------------------------------------------------------------------


def test_risks_by_class_and_by_label_are_those_of_loops():
  assert np.allclose(Q.sum(1), 1)
  p = softmax(Z)
  others = {
    'ce': (losses.ce, -np.log(p)),
    'mae': (lambda z, y: 2 * losses.mae(z, y), 2 * (1 - p)),
    'gce': (losses.gce, (1 - p**0.7) / 0.7),
    'by vmap': (lambda z, y: losses.ce(z, y), -np.log(p)),
  }

  def both(z):
    return {
      (name, by): value_and_slope(
        lambda z, y, loss=loss, by=by: of_all(z, y, loss=loss, by=by), z, Y
      )
      for name, (loss, _) in others.items()
      for by in ('class', 'label')
    }

  found = run(both, Z)
  for name, (_, value) in others.items():
    v = risks(Z, Y, Q, PRIOR, WEIGHTS, value)
    close(found[name, 'class'][0], v.sum(0), rtol=2e-5, atol=2e-6)
    close(found[name, 'label'][0], v.sum(1), rtol=2e-5, atol=2e-6)
    # The sums agree, and so do their gradients; corrections of them do not.
    close(found[name, 'class'][1], found[name, 'label'][1], 1e-4, 1e-6)
  for by in ('class', 'label'):
    for a, b in zip(found['by vmap', by], found['ce', by], strict=True):
      close(a, b, atol=2e-6)
  clipped = [np.maximum(found['ce', by][0], 0).sum() for by in BY]
  assert abs(clipped[0] - clipped[1]) > 0.1


BY = ('class', 'label')


@pytest.mark.slow
def test_with_the_shares_of_the_batch_the_sum_is_backward():
  shares = np.bincount(Y, WEIGHTS, C) / WEIGHTS.sum()
  mean = global_mean(losses.backward(Z, Y, Q), WEIGHTS)
  close(total(Z, Y, Q, np.float32(shares)), mean, rtol=2e-5)


def test_the_risk_is_that_of_true_labels_in_expectation():
  """Every example with each label it can get, as likely as it is."""
  z, true = Z.repeat(C, 0), Y.repeat(C)
  y, weights = np.tile(np.arange(C), B), Q[true, np.tile(np.arange(C), B)]
  prior = np.bincount(y, weights, C) / weights.sum()
  found = of_all(z, y, Q, np.float32(prior), np.float32(weights))
  value = -np.log(softmax(Z))[np.arange(B), Y]
  # By class, each is that of its class, so that it cannot be negative.
  close(found, np.bincount(Y, value, C) / B, rtol=1e-4, atol=1e-5)
  assert (np.asarray(found) >= -1e-5).all()


@pytest.mark.slow
def test_two_classes_are_flipped_labels():
  z, y = Z[:, :2], np.minimum(Y, 1)
  shares = np.float32(np.bincount(y, WEIGHTS, 2) / WEIGHTS.sum())
  q = noise.complementary(2)
  flipped = global_mean(losses.ce(z, 1 - y), WEIGHTS)
  for by in BY:
    close(total(z, y, q, shares, by=by), flipped)
  close(losses.forward(z, y, q), losses.ce(z, 1 - y))
  close(losses.negative_learning(z, y), losses.ce(z, 1 - y))
  close(losses.decode_complementary(z, q), (z[:, 1] > z[:, 0]) * -1 + 1)


@pytest.mark.slow
def test_several_labels_count_as_examples_of_each():
  sets = np.asarray(noise.complementary_sets(jax.random.key(0), Y, C, 2))
  soft = np.float32(sets / 2)
  row, label = np.nonzero(sets)
  for by in BY:
    found = of_all(Z, soft, by=by)
    expected = of_all(Z[row], label, Q, PRIOR, WEIGHTS[row] / 2, by=by)
    close(found, expected, rtol=1e-4, atol=1e-5)
  close(
    losses.scarce(Z, soft, WEIGHTS),
    losses.scarce(Z[row], label, WEIGHTS[row] / 2),
  )


def test_rows_of_weight_zero_leave_no_trace():
  z, y = Z.copy(), Y.copy()
  z[:2], z[2:4], y[:4] = np.nan, np.inf, 99

  def both(z, y):
    of = lambda z: jnp.stack([total(z, y), losses.scarce(z, y, WEIGHTS)])
    return of(z), jax.jacrev(of)(z)

  found, expected = run(both, z, y), run(both, Z, Y)
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])
  assert not np.any(found[1][:, :4])
  nothing = np.zeros(B, np.float32)
  assert not np.any(of_all(Z, weights=nothing))
  assert losses.scarce(Z, Y, nothing) == 0


def test_a_label_out_of_range_makes_nan_without_gradient():
  bad = np.where(np.arange(B) == 9, 99, Y)
  of = lambda z, y: (total(z, y), losses.scarce(z, y, WEIGHTS))
  values, slopes = run(lambda z, y: (of(z, y), jax.jacrev(of)(z, y)), Z, bad)
  assert np.isnan(values).all()
  assert not np.any(slopes)
  for f in (of_all, lambda z, y: losses.scarce(z, y, WEIGHTS)):
    with pytest.raises(ValueError, match=r'labels must lie in \[0, 5\)'):
      f(Z, bad)


def test_weights_that_cannot_be():
  """Named; where they cannot be looked at, NaN shows."""
  for bad in (-WEIGHTS, WEIGHTS * np.nan):
    for f in (lambda w: of_all(Z, weights=w), lambda w: losses.scarce(Z, Y, w)):
      with pytest.raises(ValueError, match='weights must lie in'):
        f(bad)
  broken = np.where(np.arange(B) == 9, np.nan, WEIGHTS)
  found = run(lambda w: (of_all(Z, weights=w), losses.scarce(Z, Y, w)), broken)
  assert all(np.isnan(value).any() for value in found)


def test_an_infinite_logit_of_the_label_compared_in_pairs():
  z = Z.copy()
  z[np.arange(B), Y] = np.inf
  for labels in (Y, np.eye(C, dtype=np.float32)[Y]):
    value, slope = value_and_slope(losses.pairwise_comparison, z, labels)
    np.testing.assert_array_equal(value, np.full(B, C - 1))
    assert not np.any(slope)


@pytest.mark.parametrize('size', [30.0, 1e4])
def test_extremes_are_finite(size):
  z = np.float32(size * np.sign(Z))

  def of(z):
    of_sets = [f(z, SETS) for f in MCL]
    return jnp.stack(
      [total(z), losses.scarce(z, Y, WEIGHTS), *map(sum, of_sets)]
    )

  value, slope = run(lambda z: (of(z), jax.jacrev(of)(z)), z)
  assert np.isfinite(value).all()
  assert np.isfinite(slope).all()


def test_a_matrix_without_an_inverse_is_named():
  same = np.full([C, C], 1 / C, np.float32)
  near = same + np.float32(1e-6) * (np.eye(C) - 1 / C).astype(np.float32)
  for q in (same, near, noise.complementary(C, miss=1 / C)):
    with pytest.raises(
      ValueError, match=r'transition must be invertible.*cond'
    ):
      of_all(Z, q=q)
    with pytest.raises(ValueError, match=r'condition number of at most 10000'):
      jax.jit(lambda z, q=q: of_all(z, q=q))(Z)
  # Where it is traced it is not looked at, and has a gradient.
  slope = jax.jit(jax.grad(lambda q: total(Z, Y, q)))(Q)
  step = np.zeros([C, C], np.float32)
  step[1, 2] = 1e-3
  ahead, behind = (
    risks(Z, Y, Q + s * step, PRIOR, WEIGHTS).sum() for s in (1, -1)
  )
  close(slope[1, 2], (ahead - behind) / 2e-3, rtol=1e-3)


def test_bad_arguments_are_named():
  for error, message, changed in (
    (ValueError, "unknown by 'clas'; did you mean 'class'", {'by': 'clas'}),
    (
      ValueError,
      r'prior must be \[5\], got shape \(4,\)',
      {'prior': PRIOR[:4]},
    ),
    (ValueError, 'prior must have rows', {'prior': 2 * PRIOR}),
    (ValueError, 'prior must be .*in the data set', {'prior': None}),
    (ValueError, r'weights must be \[b\] = \[40\]', {'weights': WEIGHTS[:9]}),
    (ValueError, r'transition must be \[c, c\]', {'q': Q[:4]}),
    (ValueError, 'transition must have rows', {'q': 2 * Q}),
    (ValueError, 'loss must be', {'loss': lambda z, y: jnp.mean(z)}),
    (TypeError, 'labels.*integer', {'y': np.float32(Y)}),
  ):
    with pytest.raises(error, match=message):
      of_all(Z, **changed)
  with pytest.raises(ValueError, match=r'logits must be \[b, c\]'):
    of_all(Z[0], Y[0])
  with pytest.raises(ValueError, match='prior must have rows'):
    losses.scarce(Z, Y, WEIGHTS, prior=2 * PRIOR)


@pytest.mark.slow
def test_half_precision_double_and_prior_as_a_list():
  assert of_all(Z.astype(jnp.bfloat16)).dtype == np.float32
  close(of_all(Z.tolist(), prior=PRIOR.tolist()), of_all(Z))
  with jax.enable_x64(True):
    found = of_all(np.float64(Z))
    assert found.dtype == np.float64
  close(found, risks(Z, Y, Q, PRIOR, WEIGHTS).sum(0), rtol=1e-6)


def test_scarce():
  ell, own = np.log1p(np.exp(Z, dtype=np.float64)), np.zeros([2, C])
  not_ell = ell - Z
  for k in range(C):
    w = WEIGHTS * (k == Y)
    if w.sum():
      own[:, k] = w @ ell[:, k] / w.sum(), w @ not_ell[:, k] / w.sum()
  for prior in (None, PRIOR):
    share = 1 - (1 / C if prior is None else np.float64(prior))
    left = WEIGHTS @ not_ell / WEIGHTS.sum() - share * own[1]
    expected = (share * own[0]).sum() + np.abs(left).sum()
    close(losses.scarce(Z, Y, WEIGHTS, prior=prior), expected)


# --- per example --------------------------------------------------------------


def test_definitions():
  """Of those whose other properties are those of every loss."""
  p, at = softmax(Z), (np.arange(B), Y)
  q = softmax(1 - p)
  minus = softmax(-Z)
  steep = softmax(1 / minus)
  above = 1 / (1 + np.exp(Z - Z[at][:, None], dtype=np.float64))
  found = run(
    lambda z, y: (
      losses.scl_exp(z, y),
      losses.discriminative(z, y),
      losses.discriminative(z, y, weighted=False, offset=0.1),
      losses.order_preserving(z, y),
      losses.order_preserving(z, y, offset=0.1, floor=0.01),
      losses.pairwise_comparison(z, y),
    ),
    *(Z, Y),
  )
  floored = softmax(1 / (minus + 0.01))
  for actual, expected in zip(
    found,
    (
      np.exp(p[at]),
      -np.log(q[at]) * (1 + (1 - p[at]) / (C - 1)),
      -np.log(q[at] + 0.1),
      -p[at] * steep[at] * np.log(minus[at]),
      -(p[at] * floored[at] + 0.1) * np.log(minus[at] + 0.01),
      above.sum(1) - 0.5,
    ),
    strict=True,
  ):
    close(actual, expected, rtol=2e-5, atol=2e-6)


def test_what_the_house_has_already():
  """With the uniform matrix FWD is SCL-NL and log(c - 1)."""
  left = Y[:, None] != np.arange(C)
  pairs = {
    'nl': lambda z: losses.negative_learning(z, Y),
    'cc': lambda z: losses.cc(z, left),
    'rule_out': lambda z: losses.rule_out(z, left),
    'fwd': lambda z: losses.forward(z, Y, UNIFORM) - np.log(C - 1),
    'fwd 1e-6': lambda z: (
      losses.forward(z, Y, UNIFORM, offset=1e-6 / (C - 1)) - np.log(C - 1)
    ),
    'mcl_log': lambda z: losses.mcl_log(z, ~left) / (2 * (C - 1)),
  }

  def both(z):
    of = lambda f: value_and_slope(lambda z, y: f(z), z, Y)
    return {name: of(f) for name, f in pairs.items()}

  found = run(both, Z)
  for name, (value, slope) in found.items():
    atol = 1e-4 if '1e-6' in name else 2e-6
    close(value, found['nl'][0], 1e-4, atol, err_msg=name)
    close(slope, found['nl'][1], 1e-4, atol, err_msg=name)


@pytest.mark.slow
def test_forward_with_an_offset():
  noisy = softmax(Z) @ np.float64(Q)
  of = lambda z: losses.forward(z, Y, Q, offset=0.01)
  value, slope = run(lambda z: (of(z), jax.grad(lambda z: of(z).sum())(z)), Z)
  at = noisy[np.arange(B), Y]
  close(value, -np.log(at + 0.01))
  plain = run(jax.grad(lambda z: losses.forward(z, Y, Q).sum()), Z)
  close(slope, plain * (at / (at + 0.01))[:, None], atol=2e-6)
  np.testing.assert_array_equal(
    losses.forward(Z, Y, Q, offset=0), losses.forward(Z, Y, Q)
  )
  soft = softmax(Z[:, ::-1])
  close(
    losses.forward(Z, np.float32(soft), Q, offset=0.01),
    -(soft * np.log(noisy + 0.01)).sum(1),
  )
  # Of a label that no class can turn into.
  hopeless = losses.forward([0.0, 1e4], 1, [[0, 1.0], [1, 0]], offset=1e-6)
  close(hopeless, -np.log(1e-6))
  # A run that has diverged is not a label that nothing can turn into.
  for labels in (Y, np.float32(soft)):
    for offset in (0.0, 1e-6):
      found = losses.forward(np.nan * Z, labels, Q, offset=offset)
      assert np.isnan(found).all()
  with pytest.raises(ValueError, match='offset must lie in'):
    losses.forward(Z, Y, Q, offset=-1.0)


# --- of several labels --------------------------------------------------------


SETS = np.asarray(
  noise.complementary_sets(
    jax.random.key(1), np.arange(B) % C, C, 1 + np.arange(B) % 4
  )
)
MCL = (losses.mcl_mae, losses.mcl_exp, losses.mcl_log)


def test_sets():
  r = (softmax(Z) * ~SETS).sum(1)
  scale = 2 * (C - 1) / SETS.sum(1)
  found = run(lambda z: [value_and_slope(f, z, SETS) for f in MCL], Z)
  p = softmax(Z)
  slope_of_r = p * (~SETS - r[:, None])
  for (value, slope), of_r, by_r in zip(
    found,
    (1 - r, np.exp(-r), -np.log(r)),
    (-np.ones(B), -np.exp(-r), -1 / r),
    strict=True,
  ):
    close(value, scale * of_r, rtol=2e-5, atol=5e-6)
    close(slope, (scale * by_r)[:, None] * slope_of_r, 1e-4, 5e-6)


def test_sets_of_no_and_of_all_classes():
  for f in MCL:
    value, slope = value_and_slope(
      f, jnp.zeros([1, 3]), jnp.zeros([1, 3], bool)
    )
    assert value == 0
    assert not np.any(slope)
    with pytest.raises(ValueError, match='excluded must leave at least one'):
      f(jnp.zeros(3), jnp.ones(3, bool))
    value, slope = run(
      lambda z, s, f=f: value_and_slope(f, z, s),
      *(np.zeros([1, 3], np.float32), np.ones([1, 3], bool)),
    )
    assert value == 0
    assert not np.any(slope)
    with pytest.raises(TypeError, match='excluded must be bool'):
      f(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match='excluded must have the shape'):
      f(jnp.zeros(3), jnp.zeros(2, bool))


def test_decoding():
  """Rows of the matrix are decoded to their classes; else the nearest in L1."""
  q = np.asarray(noise.complementary_biased(jax.random.key(3), C))
  log_q = np.log(np.maximum(q, 1e-30))
  np.testing.assert_array_equal(
    losses.decode_complementary(log_q, q), np.arange(C)
  )
  expected = np.abs(softmax(Z)[:, None] - q).sum(-1).argmin(1)
  np.testing.assert_array_equal(losses.decode_complementary(Z, q), expected)
  for sure in (1, 8):  # where p are as small as 1e-30
    lowest = losses.decode_complementary(sure * Z, UNIFORM)
    np.testing.assert_array_equal(lowest, Z.argmin(1))
