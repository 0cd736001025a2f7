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


def functions(kind):
  return getattr(em, f'{kind}_posterior'), getattr(em, f'{kind}_log_likelihood')


def run(kind, z):
  """Posterior, log-likelihood and its gradient."""
  posterior, likelihood = functions(kind)
  arguments = ARGUMENTS[kind]
  value, back = jax.vjp(lambda z: likelihood(z, *arguments), z)
  return posterior(z, *arguments), value, back(jnp.ones_like(value))[0]


# A class that the network rules out; no set is this class alone.
DEAD = np.where(np.arange(C) == 3, -np.inf, LOGITS)


@pytest.mark.parametrize('z', [LOGITS, DEAD], ids=['all', 'one of logit -inf'])
@KINDS
def test_definition_and_that_the_gradient_is_posterior_less_prediction(kind, z):
  p, w = probs(z), weights_of(kind)
  mass = (p * w).sum(1)
  q = p * w / mass[:, None]
  found, value, slope = run(kind, jnp.asarray(z))
  np.testing.assert_allclose(found, q, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(value, np.log(mass), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(slope, q - p, rtol=1e-4, atol=1e-6)


def test_terms_of_a_class_of_logit_minus_infinity():
  """It has probability 0 and no gradient; 0 log 0 is 0."""
  evidence = em.noisy_evidence(LABELS, TRANSITION)
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
  terms = {
    'consistency': lambda z: jnp.sum(em.consistency(z, DEAD[::-1])),
    'posterior_cross_entropy': lambda z: jnp.sum(
      em.posterior_cross_entropy(
        z, em.posterior(DEAD[::-1], evidence), evidence
      )
    ),
    'class_balance': lambda z: em.class_balance(z, jnp.ones(B)),
  }
  slopes = {'consistency': p - other, 'posterior_cross_entropy': after - q}
  for name, term in terms.items():
    value, slope = jax.value_and_grad(term)(jnp.asarray(DEAD))
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
    assert finite(slope), name
    np.testing.assert_array_equal(slope[:, 3], 0)
    if name in slopes:
      np.testing.assert_allclose(slope, slopes[name], rtol=1e-4, atol=1e-6)
  r = em.align(DEAD, np.full(C, 1 / C, np.float32))
  np.testing.assert_allclose(r, p, rtol=1e-5)
  np.testing.assert_allclose(em.keep_top(r, k=C), p, rtol=1e-5)


def test_the_only_possible_class_may_be_of_logit_minus_infinity():
  """As improbable as can be said, and finite."""
  z, one = jnp.asarray(DEAD), jnp.arange(C) == 3
  evidence = jnp.broadcast_to(jnp.where(one, 0, LOG_ZERO), (B, C))
  sets = jnp.broadcast_to(one, (B, C))
  for q in (em.posterior(z, evidence), em.candidate_posterior(z, sets)):
    np.testing.assert_array_equal(q, sets)
  for likelihood in (
    lambda z: em.log_likelihood(z, evidence),
    lambda z: em.candidate_log_likelihood(z, sets),
  ):
    value, back = jax.vjp(likelihood, z)
    np.testing.assert_allclose(value, LOG_ZERO, rtol=1e-6)
    slope = back(jnp.ones_like(value))[0]
    np.testing.assert_allclose(slope, -probs(DEAD), rtol=1e-4, atol=1e-6)


def test_which_posteriors_have_a_gradient():
  seen = {
    kind: jax.grad(lambda z, k=kind: functions(k)[0](z, *ARGUMENTS[k])[1, 1])(
      jnp.asarray(LOGITS)
    )
    for kind in ARGUMENTS
  }
  assert np.any(seen['noisy'])
  assert np.any(seen['mixed'])
  assert not np.any(seen['candidate'])


def test_identities():
  p = jax.nn.softmax(LOGITS)
  one_hot = jax.nn.one_hot(LABELS, C)
  eye, flat = jnp.eye(C), jnp.full((C, C), 1 / C)
  same = np.testing.assert_allclose
  same(em.noisy_posterior(LOGITS, LABELS, eye), one_hot, atol=0)
  same(em.noisy_posterior(LOGITS, LABELS, flat), p, rtol=1e-6)
  ce = losses.ce(LOGITS, LABELS)
  same(-em.noisy_log_likelihood(LOGITS, LABELS, eye), ce, rtol=1e-6)
  same(
    -em.noisy_log_likelihood(LOGITS, LABELS, TRANSITION),
    losses.forward(LOGITS, LABELS, TRANSITION),
    rtol=1e-5,
  )
  single, full = one_hot > 0, jnp.ones((B, C), bool)
  same(em.candidate_posterior(LOGITS, single), one_hot, atol=0)
  same(-em.candidate_log_likelihood(LOGITS, single), ce, rtol=1e-6)
  same(em.candidate_posterior(LOGITS, full), p, rtol=1e-6)
  for likelihood in (
    lambda z: em.candidate_log_likelihood(z, full),
    lambda z: em.log_likelihood(z, jnp.zeros((B, C))),
  ):
    value, slope = jax.jit(
      jax.value_and_grad(lambda z, f=likelihood: jnp.sum(f(z)))
    )(jnp.asarray(LOGITS))
    assert value == 0
    assert not np.any(slope)


def test_mixed_rows_are_those_of_their_kind():
  q = em.mixed_posterior(LOGITS, SETS, NOISY, TRANSITION)
  value = em.mixed_log_likelihood(LOGITS, SETS, NOISY, TRANSITION)
  partial = em.candidate_posterior(LOGITS, FILLED)
  np.testing.assert_allclose(q[~NOISY], partial[~NOISY], rtol=1e-6)
  likelihood = em.candidate_log_likelihood(LOGITS, FILLED)
  np.testing.assert_allclose(
    value[~NOISY], likelihood[~NOISY], rtol=1e-5, atol=1e-7
  )
  label = jnp.array([0])  # of row 0, a noisy singleton
  np.testing.assert_allclose(
    q[:1], em.noisy_posterior(LOGITS[:1], label, TRANSITION), rtol=1e-6
  )
  np.testing.assert_allclose(
    value[:1], em.noisy_log_likelihood(LOGITS[:1], label, TRANSITION), rtol=1e-5
  )
  np.testing.assert_allclose(q[4], jax.nn.softmax(LOGITS[4]), rtol=1e-6)
  assert value[4] == 0  # an empty noisy set says nothing


def test_published_likelihood_normalizes_a_matrix_whose_columns_sum_to_one():
  u = em.column_transition(jnp.asarray(TRANSITION) - 0.3, scale=2.0)
  assert np.abs(u.sum(1) - 1).max() > 1e-2
  n = probs(LOGITS) @ np.asarray(u, np.float64)
  expected = np.log(n[np.arange(B), LABELS] / n.sum(1))
  found = em.noisy_log_likelihood(LOGITS, LABELS, u)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


EXTREME = np.array(
  [[1, -1, -1, -1], [1, 1, -1, -1], [-1, 0, 1, 0], [0, 0, 0, 1]]
)


@KINDS
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('magnitude', [200.0, 1e4])
def test_finite_at_extremes_and_dtype(kind, dtype, magnitude):
  with jax.enable_x64(dtype == 'float64'):
    z = jnp.asarray(np.resize(EXTREME, (B, C)) * magnitude, dtype)
    q, value, slope = run(kind, z)
    assert q.dtype == value.dtype == jnp.promote_types(dtype, jnp.float32)
    assert slope.dtype == z.dtype
    for a in (q, value, slope):
      assert np.isfinite(np.asarray(a, np.float64)).all()
    np.testing.assert_allclose(np.asarray(q, np.float64).sum(1), 1, rtol=1e-5)


def test_evidence_is_not_rounded_away_by_large_logits():
  z = jnp.full((1, 2), 1e4).at[0].set(jnp.array([1e4, 1e4]))
  t = jnp.array([[0.6, 0.4], [0.59, 0.41]])
  q = em.noisy_posterior(z, jnp.array([0]), t)
  np.testing.assert_allclose(q[0], [0.6 / 1.19, 0.59 / 1.19], rtol=1e-5)


def finite(value_and_grad):
  return all(np.isfinite(a).all() for a in jax.tree.leaves(value_and_grad))


@jax.jit
def impossible(z, t):
  """Likelihoods and posteriors where nothing is possible, and gradients."""
  empty = jnp.zeros((B, C), bool)
  noisy = jnp.zeros(B, bool)
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
  z, t = jnp.asarray(LOGITS).at[0, 0].set(jnp.nan), jnp.asarray(TRANSITION)
  e = jnp.zeros((B, C)).at[0, 0].set(jnp.nan)
  flat = jnp.full(C, 1 / C)  # a constant of the program
  broken = jax.jit(
    lambda z, e, t: (
      em.posterior(LOGITS, e)[0],
      em.log_likelihood(LOGITS, e)[0],
      em.noisy_posterior(LOGITS, LABELS, t)[0],
      em.posterior_cross_entropy(z, jnp.full((B, C), 1 / C), e * 0)[0],
      em.consistency(z, LOGITS)[0],
      em.consistency(LOGITS, z)[0],
      em.class_balance(z, jnp.ones(B)),
      em.align(z, flat)[0],
    )
  )(z, e, t * jnp.nan)
  assert all(np.isnan(x).any() for x in broken)


def test_impossible_evidence_inside_jit():
  t = jnp.asarray(TRANSITION).at[:, 1].set(0)
  values, slopes, posteriors = impossible(jnp.asarray(LOGITS), t)
  for value in values.values():
    np.testing.assert_array_equal(value, -np.inf)
  for slope in jax.tree.leaves(slopes):
    np.testing.assert_array_equal(slope, 0)
  for q in posteriors:
    np.testing.assert_allclose(q, jax.nn.softmax(LOGITS), rtol=1e-6)


def test_a_bad_label_inside_jit_is_nan_without_gradient():
  y = jnp.asarray(LABELS).at[:2].set(jnp.array([-1, C]))

  @jax.jit
  def run(z, y):
    value, back = jax.vjp(
      lambda z: em.noisy_log_likelihood(z, y, TRANSITION), z
    )
    q = em.noisy_posterior(z, y, TRANSITION)
    return value, back(jnp.ones_like(value))[0], q

  value, slope, q = run(jnp.asarray(LOGITS), y)
  assert np.isnan(value[:2]).all()
  assert np.isfinite(value[2:]).all()
  assert not np.any(slope[:2])
  np.testing.assert_allclose(q[:2], jax.nn.softmax(LOGITS[:2]), rtol=1e-6)


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
    em.noise_logits(jnp.eye(3), scale=0.0)
  with pytest.raises(ValueError, match='weights'):
    em.noise_logits(jnp.ones((2, 3)))
  with pytest.raises(ValueError, match='clip'):
    em.class_balance(LOGITS, jnp.ones(B), clip=0.0)
  with pytest.raises(ValueError, match='k must'):
    em.keep_top(LOGITS, k=0)


# --- the learned matrix ------------------------------------------------------


def test_matrix_and_its_two_transitions():
  w = RNG.normal(size=(C, C)).astype(np.float32)
  m = w.T / np.linalg.norm(w.T, axis=0)
  m = 2.5 * m / np.linalg.norm(m, axis=1, keepdims=True)
  np.testing.assert_allclose(em.noise_logits(w, scale=2.5), m, rtol=1e-5)
  rows = em.row_transition(w, scale=2.5)
  np.testing.assert_allclose(rows, probs(m), rtol=1e-5)
  columns = em.column_transition(w, scale=2.5)
  np.testing.assert_allclose(columns, probs(m.T).T, rtol=1e-5)
  np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)


def test_matrix_has_a_finite_gradient_at_zeros():
  w = jnp.asarray(RNG.normal(size=(C, C)), jnp.float32)
  loss = jax.jit(
    jax.value_and_grad(
      lambda w: (
        -jnp.sum(
          em.noisy_log_likelihood(LOGITS, LABELS, em.column_transition(w))
        )
      )
    )
  )
  for zeros in (w.at[:, 1].set(0), w.at[2].set(0), jnp.zeros((C, C))):
    assert finite(loss(zeros))


# --- terms -------------------------------------------------------------------


def test_posterior_cross_entropy():
  evidence = em.noisy_evidence(LABELS, TRANSITION)
  q = em.posterior(LOGITS, evidence)

  def loss(z, q, e):
    return jnp.sum(em.posterior_cross_entropy(z, q, e))

  strong = LOGITS[::-1] * 0.7
  value, slopes = jax.value_and_grad(loss, (0, 1, 2))(strong, q, evidence)
  after = probs(strong) * weights_of('noisy')
  after /= after.sum(1, keepdims=True)
  expected = -(np.asarray(q, np.float64) * np.log(after)).sum()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(slopes[0], after - q, rtol=1e-4, atol=1e-6)
  assert not np.any(slopes[1])  # what is learned is not learned from
  assert not np.any(slopes[2])
  for none in (jnp.zeros_like(evidence), None):
    np.testing.assert_allclose(
      em.posterior_cross_entropy(strong, q, none),
      losses.ce(strong, q),
      rtol=1e-5,
    )


def test_posterior_cross_entropy_where_classes_are_impossible():
  evidence = jnp.where(SETS, 0, LOG_ZERO)  # one row allows none

  def run(z):
    q = em.posterior(z, evidence)
    losses_ = em.posterior_cross_entropy(z, q, evidence)
    return jnp.sum(losses_), losses_

  (_, values), slope = jax.value_and_grad(run, has_aux=True)(
    jnp.asarray(LOGITS * 1e3)
  )
  assert finite((values, slope))
  np.testing.assert_allclose(values[0], 0, atol=1e-6)


def test_consistency_stops_the_target():
  weak = LOGITS[::-1]
  value, slopes = jax.value_and_grad(
    lambda a, b: jnp.sum(em.consistency(a, b)), (0, 1)
  )(LOGITS, weak)
  expected = losses.ce(LOGITS, jax.nn.softmax(weak)).sum()
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(
    slopes[0], probs(LOGITS) - probs(weak), rtol=1e-4, atol=1e-6
  )
  assert not np.any(slopes[1])


def test_class_balance():
  weights = np.array([1, 0, 2, 1, 0, 0.5], np.float32)
  mean = (probs(LOGITS) * weights[:, None]).sum(0) / weights.sum()
  found = em.class_balance(LOGITS, weights)
  np.testing.assert_allclose(found, -np.log(mean).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    found, losses.prior_mean_kl(LOGITS, weights) + np.log(C), rtol=1e-5
  )
  broken = jnp.asarray(LOGITS).at[1].set(jnp.nan)
  again, slope = jax.value_and_grad(em.class_balance)(broken, weights)
  np.testing.assert_allclose(again, found, rtol=1e-6)
  assert finite(slope)
  assert em.class_balance(LOGITS, jnp.zeros(B)) == 0
  certain = jnp.eye(C)[jnp.zeros(B, int)] * 1e4
  clipped, slope = jax.value_and_grad(em.class_balance)(certain, jnp.ones(B))
  np.testing.assert_allclose(clipped, -np.log(1e-6) * (C - 1) / C, rtol=1e-5)
  assert not np.any(slope)


def test_align():
  prior = RNG.dirichlet(np.ones(C)).astype(np.float32)
  r = probs(LOGITS) / prior
  r /= r.sum(1, keepdims=True)
  np.testing.assert_allclose(em.align(LOGITS, prior), r, rtol=1e-5)
  np.testing.assert_allclose(
    em.align(LOGITS, np.full(C, 1 / C)), probs(LOGITS), rtol=1e-5
  )
  gone = em.align(LOGITS * 1e4, np.array([0, 0.5, 0.5, 0], np.float32))
  assert finite(gone)
  np.testing.assert_allclose(gone.sum(1), 1, rtol=1e-6)
  # Also where the probability itself is 0 in float32.
  rare = em.align(jnp.array([0.0, -80.0]), jnp.array([1.0, np.exp(-80)]))
  np.testing.assert_allclose(rare, 0.5, rtol=1e-4)


def test_keep_top():
  p = jnp.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0] * 4])
  third = 1 / 3
  expected = [[0, 4 / 9, 3 / 9, 2 / 9], [third, third, third, 0], [0] * 4]
  np.testing.assert_allclose(em.keep_top(p), expected, rtol=1e-6)
  np.testing.assert_allclose(em.keep_top(p, k=9)[:2], p[:2], rtol=1e-6)
  np.testing.assert_array_equal(em.keep_top(p, k=1)[0], [0, 1, 0, 0])


def test_hyperparameters_may_be_traced():
  w = jnp.asarray(TRANSITION)
  scales = jnp.array([0.5, 2.0])
  found = jax.vmap(lambda s: em.row_transition(w, scale=s))(scales)
  for f, s in zip(found, scales, strict=True):
    np.testing.assert_allclose(f, em.row_transition(w, scale=s), rtol=1e-6)
