"""Evidence, posteriors and likelihoods, against definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import em, losses
from jnl.base import LOG_ZERO

B, C = 6, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, C)).astype(np.float32) * 2
LABELS = RNG.integers(0, C, B)
TRANSITION = RNG.dirichlet(np.ones(C), C).astype(np.float32)
NOISY = np.array([True, False, True, False, True, False])
SETS = np.array(
  [
    [1, 0, 0, 0],
    [0, 1, 1, 0],
    [1, 0, 1, 1],
    [1, 1, 1, 1],
    [0] * 4,
    [0, 0, 1, 0],
  ],
  bool,
)
FILLED = np.where(SETS.any(1, keepdims=True), SETS, True)


def probs(z):
  p = np.exp(z - z.max(-1, keepdims=True), dtype=np.float64)
  return p / p.sum(-1, keepdims=True)


def weights_of(kind):
  """exp(e), by the definition."""
  t = TRANSITION.astype(np.float64)
  if kind == 'noisy':
    return t[:, LABELS].T
  if kind == 'candidate':
    return FILLED.astype(np.float64)
  through = np.stack([t[:, s].prod(1) for s in SETS])
  return np.where(NOISY[:, None], through, SETS)


ARGUMENTS = {
  'noisy': (LABELS, TRANSITION),
  'candidate': (FILLED,),
  'mixed': (SETS, NOISY, TRANSITION),
}
KINDS = pytest.mark.parametrize('kind', ARGUMENTS)


@jax.jit
def run(z):
  """By kind: posterior, log-likelihood and its gradient."""
  found = {}
  for kind, arguments in ARGUMENTS.items():
    likelihood = getattr(em, f'{kind}_log_likelihood')
    q = getattr(em, f'{kind}_posterior')(z, *arguments)
    value = with_slope(lambda z, f=likelihood, a=arguments: f(z, *a), z)
    found[kind] = q, *value
  return found


def with_slope(likelihood, z):
  """Values [b], and the gradient of their sum."""
  value, back = jax.vjp(likelihood, z)
  return value, back(jnp.ones_like(value))[0]


# A class that the network rules out; no set is this class alone.
DEAD = np.where(np.arange(C) == 3, -np.inf, LOGITS)


@pytest.mark.parametrize('z', [LOGITS, DEAD], ids=['all', 'one of logit -inf'])
@KINDS
def test_definition_and_that_the_gradient_is_posterior_less_prediction(kind, z):
  p, w = probs(z), weights_of(kind)
  mass = (p * w).sum(1)
  q = p * w / mass[:, None]
  found, value, slope = run(z)[kind]
  np.testing.assert_allclose(found, q, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(value, np.log(mass), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(slope, q - p, rtol=1e-4, atol=1e-6)


def test_terms_of_a_class_of_logit_minus_infinity():
  """It has probability 0 and no gradient; 0 log 0 is 0."""
  p, other = probs(DEAD), probs(DEAD[::-1])
  w = weights_of('noisy')
  q, after = other * w, p * w
  q, after = (x / x.sum(1, keepdims=True) for x in (q, after))
  mean = p.mean(0)
  expected = {
    'consistency': -(other[:, :3] * np.log(p[:, :3])).sum(),
    'posterior_cross_entropy': -(q[:, :3] * np.log(after[:, :3])).sum(),
    'class_balance': -np.log(np.maximum(mean, 1e-6)).mean(),
  }

  def to_posterior(z):
    evidence = em.noisy_evidence(LABELS, TRANSITION)
    q = em.posterior(DEAD[::-1], evidence)
    return jnp.sum(em.posterior_cross_entropy(z, q, evidence))

  terms = {
    'consistency': lambda z: jnp.sum(em.consistency(z, DEAD[::-1])),
    'posterior_cross_entropy': to_posterior,
    'class_balance': lambda z: em.class_balance(z, np.ones(B)),
  }

  @jax.jit
  def found(z):
    r = em.align(z, np.full(C, 1 / C, np.float32))
    values = {k: jax.value_and_grad(term)(z) for k, term in terms.items()}
    return values, r, em.keep_top(r, k=C)

  values, r, top = found(DEAD)
  slopes = {'consistency': p - other, 'posterior_cross_entropy': after - q}
  for name, (value, slope) in values.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
    assert finite(slope), name
    np.testing.assert_array_equal(slope[:, 3], 0)
    if name in slopes:
      np.testing.assert_allclose(slope, slopes[name], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(r, p, rtol=1e-5)
  np.testing.assert_allclose(top, p, rtol=1e-5)


def test_the_only_possible_class_may_be_of_logit_minus_infinity():
  """As improbable as can be said, and finite."""
  sets = np.broadcast_to(np.arange(C) == 3, (B, C))
  evidence = np.where(sets, 0, LOG_ZERO).astype(np.float32)
  likelihoods = (
    lambda z: em.log_likelihood(z, evidence),
    lambda z: em.candidate_log_likelihood(z, sets),
  )

  @jax.jit
  def found(z):
    posteriors = em.posterior(z, evidence), em.candidate_posterior(z, sets)
    return posteriors, [with_slope(f, z) for f in likelihoods]

  posteriors, values = found(DEAD)
  for q in posteriors:
    np.testing.assert_array_equal(q, sets)
  for value, slope in values:
    np.testing.assert_allclose(value, LOG_ZERO, rtol=1e-6)
    np.testing.assert_allclose(slope, -probs(DEAD), rtol=1e-4, atol=1e-6)


def test_which_posteriors_have_a_gradient():
  @jax.jit
  def slopes(z):
    return {
      kind: jax.grad(
        lambda z, k=kind: getattr(em, f'{k}_posterior')(z, *ARGUMENTS[k])[1, 1]
      )(z)
      for kind in ARGUMENTS
    }

  seen = slopes(LOGITS)
  assert np.any(seen['noisy'])
  assert np.any(seen['mixed'])
  assert not np.any(seen['candidate'])


def test_identities():
  eye, flat = np.eye(C, dtype=np.float32), np.full((C, C), 1 / C, np.float32)
  one_hot, full = eye[LABELS], np.ones((B, C), bool)

  @jax.jit
  def sides(z):
    """Pairs that are equal, and what says nothing."""
    p, ce = jax.nn.softmax(z), losses.ce(z, LABELS)
    nll = lambda t: -em.noisy_log_likelihood(z, LABELS, t)
    pairs = {
      'eye': (em.noisy_posterior(z, LABELS, eye), one_hot),
      'flat': (em.noisy_posterior(z, LABELS, flat), p),
      'ce': (nll(eye), ce),
      'forward': (nll(TRANSITION), losses.forward(z, LABELS, TRANSITION)),
      'single': (em.candidate_posterior(z, one_hot > 0), one_hot),
      'single ce': (-em.candidate_log_likelihood(z, one_hot > 0), ce),
      'full': (em.candidate_posterior(z, full), p),
    }
    nothing = (
      with_slope(lambda z: em.candidate_log_likelihood(z, full), z),
      with_slope(lambda z: em.log_likelihood(z, np.zeros((B, C))), z),
    )
    return pairs, nothing

  pairs, nothing = sides(LOGITS)
  for name, (a, b) in pairs.items():
    rtol = {'forward': 1e-5, 'eye': 1e-7, 'single': 1e-7}.get(name, 1e-6)
    np.testing.assert_allclose(a, b, rtol=rtol, err_msg=name)
  for value, slope in nothing:
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, 0)


def test_mixed_rows_are_those_of_their_kind():
  @jax.jit
  def found(z):
    label = np.array([0])  # of row 0, a noisy singleton
    return (
      (
        em.candidate_posterior(z, FILLED),
        em.candidate_log_likelihood(z, FILLED),
      ),
      (
        em.noisy_posterior(z[:1], label, TRANSITION),
        em.noisy_log_likelihood(z[:1], label, TRANSITION),
      ),
    )

  q, value, _ = run(LOGITS)['mixed']
  (partial, likelihood), (of_noisy, noisy_likelihood) = found(LOGITS)
  np.testing.assert_allclose(q[~NOISY], partial[~NOISY], rtol=1e-6)
  np.testing.assert_allclose(
    value[~NOISY], likelihood[~NOISY], rtol=1e-5, atol=1e-7
  )
  np.testing.assert_allclose(q[:1], of_noisy, rtol=1e-6)
  np.testing.assert_allclose(value[:1], noisy_likelihood, rtol=1e-5)
  np.testing.assert_allclose(q[4], probs(LOGITS)[4], rtol=1e-6)
  assert value[4] == 0  # an empty noisy set says nothing


def test_published_likelihood_normalizes_a_matrix_whose_columns_sum_to_one():
  u = jax.jit(lambda w: em.column_transition(w, scale=2.0))(
    TRANSITION - np.float32(0.3)
  )
  assert np.abs(u.sum(1) - 1).max() > 1e-2
  n = probs(LOGITS) @ np.asarray(u, np.float64)
  expected = np.log(n[np.arange(B), LABELS] / n.sum(1))
  found = em.noisy_log_likelihood(
    LOGITS, LABELS, u
  )  # a transition that is read
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_is_right_is_no_error_outside_jit():
  """Where values are looked at."""
  for kind, (q, value, _) in run(LOGITS).items():
    for name, expected in (('posterior', q), ('log_likelihood', value)):
      found = getattr(em, f'{kind}_{name}')(LOGITS, *ARGUMENTS[kind])
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  some = em.align(LOGITS, np.array([0, 0.5, 0.5, 0], np.float32))
  np.testing.assert_allclose(some.sum(1), 1, rtol=1e-6)


EXTREME = np.array(
  [[1, -1, -1, -1], [1, 1, -1, -1], [-1, 0, 1, 0], [0, 0, 0, 1]]
)


@KINDS
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('magnitude', [200.0, 1e4])
def test_finite_at_extremes_and_dtype(kind, dtype, magnitude):
  with jax.enable_x64(dtype == 'float64'):
    z = (np.resize(EXTREME, (B, C)) * magnitude).astype(jnp.dtype(dtype))
    q, value, slope = run(z)[kind]
    assert q.dtype == value.dtype == jnp.promote_types(dtype, jnp.float32)
    assert slope.dtype == z.dtype
    for a in (q, value, slope):
      assert np.isfinite(np.asarray(a, np.float64)).all()
    np.testing.assert_allclose(np.asarray(q, np.float64).sum(1), 1, rtol=1e-5)


def test_evidence_is_not_rounded_away_by_large_logits():
  z, t = np.full((1, 2), 1e4, np.float32), [[0.6, 0.4], [0.59, 0.41]]
  q = jax.jit(em.noisy_posterior)(z, np.array([0]), np.array(t, np.float32))
  np.testing.assert_allclose(q[0], [0.6 / 1.19, 0.59 / 1.19], rtol=1e-5)


def finite(value_and_grad):
  return all(np.isfinite(a).all() for a in jax.tree.leaves(value_and_grad))


@jax.jit
def impossible(z, t):
  """Likelihoods and posteriors where nothing is possible, and gradients."""
  empty, noisy = jnp.zeros((B, C), bool), jnp.zeros(B, bool)
  y = jnp.full(B, 1)
  likelihoods = {
    'noisy': lambda z, t: em.noisy_log_likelihood(z, y, t),
    'candidate': lambda z, t: em.candidate_log_likelihood(z, empty),
    'mixed': lambda z, t: em.mixed_log_likelihood(z, empty, noisy, t),
  }
  posteriors = (
    em.noisy_posterior(z, y, t),
    em.candidate_posterior(z, empty),
    em.mixed_posterior(z, empty, noisy, t),
  )
  values = {k: f(z, t) for k, f in likelihoods.items()}
  slopes = {
    k: jax.grad(lambda z, t, f=f: jnp.sum(f(z, t)), argnums=(0, 1))(z, t)
    for k, f in likelihoods.items()
  }
  return values, slopes, posteriors


def test_nan_is_not_taken_for_impossible():
  z, e = LOGITS.copy(), np.zeros((B, C), np.float32)
  z[0, 0] = e[0, 0] = np.nan
  flat = np.full(C, 1 / C, np.float32)  # a constant of the program
  broken = jax.jit(
    lambda z, e, t: (
      em.posterior(LOGITS, e)[0],
      em.log_likelihood(LOGITS, e)[0],
      em.noisy_posterior(LOGITS, LABELS, t)[0],
      em.posterior_cross_entropy(z, np.full((B, C), 1 / C, np.float32), e * 0)[
        0
      ],
      em.consistency(z, LOGITS)[0],
      em.consistency(LOGITS, z)[0],
      em.class_balance(z, np.ones(B)),
      em.align(z, flat)[0],
    )
  )(z, e, TRANSITION * np.float32(np.nan))
  assert all(np.isnan(x).any() for x in broken)


def test_impossible_evidence_inside_jit():
  t = TRANSITION.copy()
  t[:, 1] = 0
  values, slopes, posteriors = impossible(LOGITS, t)
  for value in values.values():
    np.testing.assert_array_equal(value, -np.inf)
  for slope in jax.tree.leaves(slopes):
    np.testing.assert_array_equal(slope, 0)
  for q in posteriors:
    np.testing.assert_allclose(q, probs(LOGITS), rtol=1e-6)


def test_a_bad_label_inside_jit_is_nan_without_gradient():
  y = LABELS.copy()
  y[:2] = -1, C

  @jax.jit
  def found(z, y):
    value = with_slope(lambda z: em.noisy_log_likelihood(z, y, TRANSITION), z)
    return *value, em.noisy_posterior(z, y, TRANSITION)

  value, slope, q = found(LOGITS, y)
  assert np.isnan(value[:2]).all()
  assert np.isfinite(value[2:]).all()
  assert not np.any(slope[:2])
  np.testing.assert_allclose(q[:2], probs(LOGITS)[:2], rtol=1e-6)


OFF = TRANSITION * 1.1
NEGATIVE = np.eye(C, dtype=np.float32) * 2 - np.roll(np.eye(C), 1, 1)
EMPTY = FILLED & (np.arange(B) != 1)[:, None]


@pytest.mark.parametrize(
  ('function', 'arguments', 'error', 'name'),
  [
    ('noisy_posterior', (LABELS, OFF), ValueError, 'transition .* row 0 sums'),
    ('noisy_posterior', (LABELS, NEGATIVE), ValueError, 'transition .* row 0'),
    # Only the likelihood is normalized for columns that sum to one.
    ('noisy_posterior', (LABELS, TRANSITION.T), ValueError, 'transition'),
    ('noisy_log_likelihood', (LABELS, OFF), ValueError, 'transition'),
    ('noisy_log_likelihood', (LABELS, NEGATIVE), ValueError, 'transition'),
    ('noisy_posterior', (LABELS, TRANSITION[:3]), ValueError, 'transition'),
    ('noisy_posterior', (LABELS + C, TRANSITION), ValueError, 'labels'),
    ('noisy_posterior', (LABELS * 1.0, TRANSITION), TypeError, 'labels'),
    ('noisy_log_likelihood', (LABELS[:2], TRANSITION), ValueError, 'labels'),
    ('candidate_posterior', (EMPTY,), ValueError, 'candidates'),
    ('candidate_log_likelihood', (EMPTY,), ValueError, 'candidates'),
    ('candidate_posterior', (FILLED * 1,), TypeError, 'candidates'),
    ('candidate_posterior', (FILLED[:, :3],), ValueError, 'candidates'),
    ('mixed_posterior', (EMPTY, NOISY, TRANSITION), ValueError, 'candidates'),
    ('mixed_posterior', (SETS, NOISY[:2], TRANSITION), ValueError, 'noisy'),
    ('mixed_posterior', (SETS, NOISY * 1, TRANSITION), TypeError, 'noisy'),
    ('mixed_log_likelihood', (SETS, NOISY, OFF), ValueError, 'transition'),
    ('posterior', (LOGITS[:, :2],), ValueError, 'evidence'),
    ('class_balance', (np.ones(2),), ValueError, 'weights'),
    ('consistency', (LOGITS[:, :2],), ValueError, 'target_logits'),
    ('align', (np.full(3, 1 / 3),), ValueError, 'prior'),
    ('align', (np.array([0.5, 0.6, -0.1, 0]),), ValueError, 'prior'),
  ],
)
def test_bad_inputs_are_named(function, arguments, error, name):
  with pytest.raises(error, match=name):
    getattr(em, function)(LOGITS, *arguments)


def test_bad_hyperparameters_are_named():
  with pytest.raises(ValueError, match='scale'):
    em.noise_logits(np.eye(3), scale=0.0)
  with pytest.raises(ValueError, match='weights'):
    em.noise_logits(np.ones((2, 3)))
  with pytest.raises(ValueError, match='clip'):
    em.class_balance(LOGITS, np.ones(B), clip=0.0)
  with pytest.raises(ValueError, match='k must'):
    em.keep_top(LOGITS, k=0)
  flat = np.full(C, 1 / C)
  with pytest.raises(ValueError, match='offset must lie in'):
    em.align(LOGITS, flat, offset=-1.0)
  with pytest.raises(ValueError, match='target must be'):
    em.align(LOGITS, flat, target=flat[:3])
  with pytest.raises(ValueError, match='target must not be negative'):
    em.align(LOGITS, flat, target=-flat)


# --- the learned matrix ------------------------------------------------------


def test_matrix_and_its_two_transitions():
  w = RNG.normal(size=(C, C)).astype(np.float32)
  m = w.T / np.linalg.norm(w.T, axis=0)
  m = 2.5 * m / np.linalg.norm(m, axis=1, keepdims=True)
  functions = em.noise_logits, em.row_transition, em.column_transition
  logits, rows, columns = jax.jit(
    lambda w: [f(w, scale=2.5) for f in functions]
  )(w)
  np.testing.assert_allclose(logits, m, rtol=1e-5)
  np.testing.assert_allclose(rows, probs(m), rtol=1e-5)
  np.testing.assert_allclose(columns, probs(m.T).T, rtol=1e-5)
  np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)


def test_matrix_has_a_finite_gradient_at_zeros():
  w = RNG.normal(size=(C, C)).astype(np.float32)
  column, row = w.copy(), w.copy()
  column[:, 1], row[2] = 0, 0

  @jax.jit
  @jax.value_and_grad
  def loss(w):
    u = em.column_transition(w)
    return -jnp.sum(em.noisy_log_likelihood(LOGITS, LABELS, u))

  for zeros in (column, row, w * 0):
    assert finite(loss(zeros))


# --- terms -------------------------------------------------------------------


def test_posterior_cross_entropy():
  strong = LOGITS[::-1] * np.float32(0.7)

  def loss(z, q, e):
    return jnp.sum(em.posterior_cross_entropy(z, q, e))

  @jax.jit
  def found(z, strong):
    e = em.noisy_evidence(LABELS, TRANSITION)
    q = em.posterior(z, e)
    plain = [
      em.posterior_cross_entropy(strong, q, none)
      for none in (jnp.zeros_like(e), None)
    ]
    with_slopes = jax.value_and_grad(loss, (0, 1, 2))(strong, q, e)
    return q, with_slopes, plain, losses.ce(strong, q)

  q, (value, slopes), plain, ce = found(LOGITS, strong)
  after = probs(strong) * weights_of('noisy')
  after /= after.sum(1, keepdims=True)
  expected = -(np.asarray(q, np.float64) * np.log(after)).sum()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(slopes[0], after - q, rtol=1e-4, atol=1e-6)
  assert not np.any(slopes[1])  # what is learned is not learned from
  assert not np.any(slopes[2])
  for values in plain:
    np.testing.assert_allclose(values, ce, rtol=1e-5)


def test_posterior_cross_entropy_where_classes_are_impossible():
  evidence = np.where(SETS, 0, LOG_ZERO).astype(np.float32)  # one has no class

  def run(z):
    q = em.posterior(z, evidence)
    losses_ = em.posterior_cross_entropy(z, q, evidence)
    return jnp.sum(losses_), losses_

  (_, values), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(
    LOGITS * np.float32(1e3)
  )
  assert finite((values, slope))
  np.testing.assert_allclose(values[0], 0, atol=1e-6)


def test_consistency_stops_the_target():
  weak = LOGITS[::-1]

  def total(a, b):
    return jnp.sum(em.consistency(a, b))

  value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(LOGITS, weak)
  expected = -(probs(weak) * np.log(probs(LOGITS))).sum()
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(
    slopes[0], probs(LOGITS) - probs(weak), rtol=1e-4, atol=1e-6
  )
  assert not np.any(slopes[1])


def test_class_balance():
  weights = np.array([1, 0, 2, 1, 0, 0.5], np.float32)
  mean = (probs(LOGITS) * weights[:, None]).sum(0) / weights.sum()

  @jax.jit
  def found(z, weights):
    value, slope = jax.value_and_grad(em.class_balance)(z, weights)
    return value, slope, losses.prior_mean_kl(z, weights)

  value, _, kl = found(LOGITS, weights)
  np.testing.assert_allclose(value, -np.log(mean).mean(), rtol=1e-5)
  np.testing.assert_allclose(value, kl + np.log(C), rtol=1e-5)
  broken = LOGITS.copy()
  broken[1] = np.nan
  again, slope, _ = found(broken, weights)
  np.testing.assert_allclose(again, value, rtol=1e-6)
  assert finite(slope)
  assert found(LOGITS, weights * 0)[0] == 0
  certain = np.zeros((B, C), np.float32)
  certain[:, 0] = 1e4
  clipped, slope, _ = found(certain, weights)
  np.testing.assert_allclose(clipped, -np.log(1e-6) * (C - 1) / C, rtol=1e-5)
  assert not np.any(slope)


def test_align():
  prior = RNG.dirichlet(np.ones(C)).astype(np.float32)
  r = probs(LOGITS) / prior
  r /= r.sum(1, keepdims=True)
  some = np.array([0, 0.5, 0.5, 0], np.float32)

  @jax.jit
  def aligned(z):
    return (
      em.align(z, prior),
      em.align(z, np.full(C, 1 / C)),
      em.align(z * 1e4, some),
      em.align(np.float32([0, -80]), np.float32([1, np.exp(-80)])),
      em.align(z, prior, target=some, offset=0.1),
      em.align(z, prior * 0, target=prior, offset=0.1),
      em.align(z, prior, target=some),
    )

  own, flat, gone, rare, moved, alone, without = aligned(LOGITS)
  np.testing.assert_allclose(own, r, rtol=1e-5)
  r = probs(LOGITS) * (some + 0.1) / (prior + 0.1)
  np.testing.assert_allclose(moved, r / r.sum(1, keepdims=True), rtol=1e-5)
  r = probs(LOGITS) * (prior + 0.1)
  np.testing.assert_allclose(alone, r / r.sum(1, keepdims=True), rtol=1e-5)
  np.testing.assert_array_equal(without == 0, np.tile(some == 0, (B, 1)))
  np.testing.assert_allclose(flat, probs(LOGITS), rtol=1e-5)
  assert finite(gone)
  np.testing.assert_allclose(gone.sum(1), 1, rtol=1e-6)
  # Also where the probability itself is 0 in float32.
  np.testing.assert_allclose(rare, 0.5, rtol=1e-4)


def test_keep_top():
  p = [[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0] * 4]
  p, third = np.array(p, np.float32), 1 / 3
  expected = [[0, 4 / 9, 3 / 9, 2 / 9], [third, third, third, 0], [0] * 4]
  three, nine, one = jax.jit(
    lambda p: (em.keep_top(p), em.keep_top(p, k=9), em.keep_top(p, k=1))
  )(p)
  np.testing.assert_allclose(three, expected, rtol=1e-6)
  np.testing.assert_allclose(nine[:2], p[:2], rtol=1e-6)
  np.testing.assert_array_equal(one[0], [0, 1, 0, 0])


def test_hyperparameters_may_be_traced():
  scales = np.array([0.5, 2.0], np.float32)

  @jax.jit
  def both(scales):
    swept = jax.vmap(lambda s: em.row_transition(TRANSITION, scale=s))(scales)
    return swept, [em.row_transition(TRANSITION, scale=s) for s in (0.5, 2.0)]

  found, expected = both(scales)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
