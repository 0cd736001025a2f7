"""Positives and unlabeled examples: equations, branches, edges, devices."""

import functools

from fixture_losses import close, grad, run
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest
import scipy.special

from jnl import losses
from jnl.base import AXIS, global_grad
from jnl.steps import mix

B, C = 40, 3
RNG = np.random.default_rng(0)
SCORES = (2 * RNG.standard_normal([B, C])).astype(np.float32)
POSITIVE = RNG.random([B, C]) < [0.5, 0.2, 0.3]
WEIGHTS = (RNG.random(B) * (RNG.random(B) < 0.7)).astype(np.float32)
PRIOR = np.array([0.2, 0.5, 0.7], np.float32)
ONES = np.ones(B, np.float32)
BOTH = (losses.sigmoid_loss, losses.logistic_loss)
expit = scipy.special.expit


def mean(values, weights):
  """In float64, of a column."""
  total = weights.sum()
  return (weights * values).sum() / total if total else 0.0


def reference(x, positive, prior, weights, logistic, every):
  """R_P and R_N of one class."""
  softplus = functools.partial(np.logaddexp, 0)
  loss_of = (lambda v: softplus(-v)) if logistic else (lambda v: expit(-v))
  x, weights = np.float64(x), np.float64(weights)
  known = weights * positive
  rest = weights if every else weights * ~positive
  as_positive = prior * mean(loss_of(x), known)
  return as_positive, mean(loss_of(-x), rest) - prior * mean(loss_of(-x), known)


@pytest.mark.parametrize('every', [False, True])
def test_risks_are_ratios_of_weighted_sums(every):
  def both():
    return [
      losses.pu_risks(
        SCORES, POSITIVE, PRIOR, WEIGHTS, loss=f, all_unlabeled=every
      )
      for f in BOTH
    ]

  for logistic, found in enumerate(run(both)):
    for k in range(C):
      expected = reference(
        *(SCORES[:, k], POSITIVE[:, k], PRIOR[k], WEIGHTS, logistic, every)
      )
      close([risk[k] for risk in found], expected)


def test_the_risk_of_the_right_prior_is_that_of_the_labels():
  """Of both losses; the others being a sample of all, or all themselves."""
  truth = RNG.random(B) < 0.5
  x = SCORES[:, 0]
  for loss in BOTH:
    # Every positive is known, and stands once more among the unlabeled.
    scores = jnp.concatenate([x[truth], x])
    positive = np.arange(len(scores)) < truth.sum()
    found = losses.upu(
      scores, positive, truth.mean(), np.ones(len(scores)), loss=loss
    )
    again = losses.upu(
      x, truth, truth.mean(), ONES, loss=loss, all_unlabeled=True
    )
    expected = np.mean(loss(np.where(truth, x, -x)))
    close(found, expected)
    close(again, expected)


def test_below_zero_the_way_back_is_that_of_the_negative_risk_alone():
  """By class: the value of one risk, the gradient of the other."""
  prior, beta, gamma = np.float32([0.1, 0.9, 0.6]), 0.05, 0.5
  total = lambda part: lambda x: part(x).sum()
  nnpu = functools.partial(
    losses.nnpu,
    positive=POSITIVE,
    prior=prior,
    weights=ONES,
    beta=beta,
    gamma=gamma,
  )
  risks = lambda x: losses.pu_risks(x, POSITIVE, prior, ONES)
  value, slope = run(lambda: (nnpu(SCORES), grad(total(nnpu))(SCORES)))
  positive, negative = run(lambda: risks(SCORES))
  of_both = grad(lambda x: sum(map(jnp.sum, risks(x))))(SCORES)
  of_negative = grad(lambda x: risks(x)[1].sum())(SCORES)
  back = negative < -beta
  assert back.tolist() == [False, True, False]
  close(value, np.where(back, positive - beta, positive + negative))
  close(slope, np.where(back, -gamma * of_negative, of_both), atol=1e-7)
  assert np.abs(slope[:, back]).max() > 1e-3
  # To clip is not the same: descent then goes on with the positives.
  clipped = grad(
    lambda x: sum(
      jnp.sum(r) for r in (risks(x)[0], losses.clip_risks(risks(x)[1][:, None]))
    )
  )(SCORES)
  assert np.abs(slope - clipped).max() > 1e-3


def test_variational_losses_are_their_equations():
  x, w = np.float64(SCORES), np.float64(WEIGHTS)
  gamma, alpha = 0.7, 0.2
  found = run(
    lambda: (
      losses.vpu(SCORES, POSITIVE, WEIGHTS),
      losses.vpu(SCORES, POSITIVE, WEIGHTS, all_unlabeled=True),
      losses.pu_mlc(SCORES, POSITIVE, WEIGHTS, gamma=gamma, alpha=alpha),
    )
  )
  for k in range(C):
    known, s = w * POSITIVE[:, k], expit(x[:, k])
    last = mean(np.log(s), known)
    close(found[0][k], np.log(mean(s, w * ~POSITIVE[:, k])) - last)
    close(found[1][k], np.log(mean(s, w)) - last)
    center = mean(x[:, k], w)
    tau = alpha * mean((x[:, k] - center) ** 2, w) ** 0.5
    assert 0.01 < tau < 1
    s = expit(x[:, k] / tau)
    share = mean(s, w)
    expected = share**gamma * np.log(share) - mean(np.log(s), known)
    close(found[2][k], expected)


def test_temperature_and_weight_have_no_gradient():
  def held(x):
    tau = jax.lax.stop_gradient(
      losses.pu_mlc_temperature(x, WEIGHTS, alpha=0.2)
    )
    of_all = jnp.log(
      (WEIGHTS[:, None] * jax.nn.sigmoid(x / tau)).sum(0) / WEIGHTS.sum()
    )
    share = jax.lax.stop_gradient(jnp.exp(of_all))
    known = WEIGHTS[:, None] * POSITIVE
    last = (known * jax.nn.log_sigmoid(x / tau)).sum(0) / known.sum(0)
    return (share**0.85 * of_all - last).sum()

  ours = lambda x: losses.pu_mlc(x, POSITIVE, WEIGHTS, alpha=0.2).sum()
  close(grad(ours)(SCORES), grad(held)(SCORES), atol=1e-6)


def test_mixed_targets_are_mixed_and_learned_too():
  own, mixed = SCORES, SCORES[::-1] / 2
  ratio = RNG.random(B).astype(np.float32)
  ratio[:2] = 0, 1

  def loss(own, mixed, ratio):
    log = jnp.where(POSITIVE, 0, jax.nn.log_sigmoid(own))
    return losses.mixup_log_consistency(mixed, log, log[::-1], ratio)

  t = np.where(POSITIVE, 1, expit(np.float64(own)))
  r = np.float64(ratio)[:, None]
  gap = np.log(mix(r, t, t[::-1])) - np.log(expit(np.float64(mixed)))
  close(run(loss, own, mixed, ratio), gap**2, atol=1e-5)
  of = jax.jit(jax.grad(lambda *a: loss(*a).sum(), (0, 1)))
  of_targets, of_mixed = of(own, mixed, ratio)
  assert np.all(np.isfinite(of_mixed))
  assert np.all(np.asarray(of_targets)[POSITIVE] == 0)
  share = r * (1 - t) * t / mix(r, t, t[::-1])
  partner = (1 - r) * (1 - t[::-1]) * t[::-1] / mix(r, t, t[::-1])
  slope = 2 * (gap * share + (gap * partner)[::-1])
  close(of_targets, np.where(POSITIVE, 0, slope), atol=1e-5)


# --- edges -------------------------------------------------------------------

EVERY = {
  'upu': lambda x, p, w: losses.upu(x, p, 0.4, w),
  'upu logistic': lambda x, p, w: losses.upu(
    x, p, 0.4, w, loss=losses.logistic_loss
  ),
  'nnpu': lambda x, p, w: losses.nnpu(x, p, 0.4, w),
  'nnpu logistic': lambda x, p, w: losses.nnpu(
    x, p, 0.4, w, loss=losses.logistic_loss, all_unlabeled=True
  ),
  'vpu': losses.vpu,
  'vpu offset': lambda x, p, w: losses.vpu(x, p, w, offset=1e-10),
  'pu_mlc': losses.pu_mlc,
  'pu_mlc offset': lambda x, p, w: losses.pu_mlc(x, p, w, offset=2e-10),
}


def values_and_slopes(x, positive, weights):
  def of(loss):
    total = lambda x: (loss(x, positive, weights).sum(), ())
    return global_grad(total)(x)

  return {name: of(loss) for name, loss in EVERY.items()}


def test_edges_are_defined_and_finite():
  """No positives, positives alone, nobody, one row, scores of +-1e4 alike."""
  cases = {
    'none': (SCORES, POSITIVE & False, ONES),
    'all': (SCORES, POSITIVE | True, ONES),
    'nobody': (SCORES, POSITIVE, 0 * ONES),
    'one': (SCORES, POSITIVE, ONES * (np.arange(B) == 3)),
    'large': (1e4 * np.sign(SCORES), POSITIVE, ONES),
    'high': (0 * SCORES + 1e4, POSITIVE, ONES),
    'low': (0 * SCORES - 1e4, POSITIVE, ONES),
    'equal': (0 * SCORES, POSITIVE, ONES),
  }
  stacked = jax.tree.map(lambda *a: np.stack(a), *cases.values())
  found = run(jax.vmap(values_and_slopes), *stacked)
  for name, ((value, _), slope) in found.items():
    for i, case in enumerate(cases):
      assert np.isfinite(value[i]), (name, case)
      assert np.all(np.isfinite(slope[i])), (name, case)
  value = {name: value[0][0] for name, value in found.items()}
  rows = list(cases)
  close(value['upu'][rows.index('none')], expit(SCORES).mean(0).sum(), 1e-5)
  assert all(v[rows.index('nobody')] == 0 for v in value.values())
  # The positives are pulled up, and one that is surely right is left alone.
  assert np.all(found['vpu'][1][rows.index('low')][POSITIVE] < 0)
  assert np.all(found['vpu'][1][rows.index('high')] == 0)


def test_an_offset_of_zero_may_be_traced():
  x, positive = np.full(4, -1e4, np.float32), np.arange(4) == 0
  for loss in (losses.vpu, losses.pu_mlc):
    of = jax.value_and_grad(
      lambda x, offset, f=loss: f(x, positive, np.ones(4), offset=offset)
    )
    found, plain = run(of, x, np.float32(0)), of(x, 0.0)
    assert np.isfinite(found[1]).all()
    for a, b in zip(found, plain, strict=True):
      close(a, b)


def test_infinite_log_targets_are_harmless_with_an_offset():
  x, never = np.zeros(3, np.float32), np.full(3, -np.inf, np.float32)

  def loss(x, own, other):
    ratio = np.float32([0, 0.5, 1])
    return losses.mixup_log_consistency(x, own, other, ratio, offset=1e-10)

  value = run(loss, x, never, never)
  close(value, np.full(3, (np.log(1e-10) - np.log(0.5)) ** 2))
  slopes = run(jax.grad(lambda *a: loss(*a).sum(), (0, 1, 2)), x, never, never)
  assert np.isfinite(slopes).all()


def test_one_row_and_scores_without_classes():
  x, positive = np.float32([0.5]), np.array([True])
  assert losses.pu_mlc_temperature(x, np.ones(1)) == np.float32(0.01)
  for loss in EVERY.values():
    for known in (positive, ~positive):
      found = loss(x, known, np.ones(1))
      assert found.shape == ()
      assert np.isfinite(found)
  both = losses.nnpu(SCORES, POSITIVE, 0.4, ONES)
  one = losses.nnpu(SCORES[:, 1], POSITIVE[:, 1], 0.4, ONES)
  close(both[1], one)


def test_precision():
  """At least float32; float64 stays; the prior and weights follow."""
  half = losses.upu(jnp.asarray(SCORES, jnp.bfloat16), POSITIVE, PRIOR, ONES)
  assert half.dtype == np.float32
  with jax.enable_x64(True):
    x = np.float64(SCORES)
    for loss in EVERY.values():
      assert loss(x, POSITIVE, ONES).dtype == np.float64
    assert losses.upu(x, POSITIVE, PRIOR, ONES).dtype == np.float64
    assert losses.nnpu(SCORES, POSITIVE, 0.4, ONES).dtype == np.float32


def test_rows_of_weight_zero_hold_anything():
  spoiled = np.where((WEIGHTS == 0)[:, None], np.nan, SCORES)
  turned = POSITIVE ^ (WEIGHTS == 0)[:, None]
  expected = run(values_and_slopes, SCORES, POSITIVE, WEIGHTS)
  found = run(values_and_slopes, spoiled, turned, WEIGHTS)
  for name, (value, slope) in found.items():
    close(value[0], expected[name][0][0], err_msg=name)
    close(slope, expected[name][1], err_msg=name)


def test_a_score_that_is_no_number_shows():
  broken = SCORES.copy()
  broken[5] = np.nan
  for (value, _), _ in run(values_and_slopes, broken, POSITIVE, ONES).values():
    assert np.isnan(value)


@pytest.mark.parametrize(
  ('change', 'error', 'match'),
  [
    ({'prior': 0.0}, ValueError, r'prior must lie in \(0, 1\)'),
    ({'prior': 1.0}, ValueError, 'prior'),
    ({'prior': float('nan')}, ValueError, 'prior'),
    ({'prior': np.array([0.2, 0.5, 1.5])}, ValueError, 'prior.*1.5'),
    ({'prior': np.full(2, 0.5)}, ValueError, r'prior.*\(3,\)'),
    ({'positive': POSITIVE.astype(int)}, TypeError, 'positive must be bool'),
    ({'positive': POSITIVE[:, :1]}, ValueError, 'positive'),
    ({'weights': ONES[:, None]}, ValueError, 'weights'),
    ({'weights': -ONES}, ValueError, 'weights must lie'),
    ({'scores': SCORES.astype(int)}, TypeError, 'scores'),
    ({'beta': -1.0}, ValueError, 'beta'),
    ({'gamma': -1.0}, ValueError, 'gamma'),
    ({'loss': jnp.sum}, ValueError, 'loss'),
    ({'loss': lambda scores: 1.0}, ValueError, r'loss must .*got \(\)'),
  ],
)
def test_what_cannot_be_is_named(change, error, match):
  given = {'scores': SCORES, 'positive': POSITIVE, 'weights': ONES}
  with pytest.raises(error, match=match):
    losses.nnpu(**{**given, 'prior': 0.4, **change})


@pytest.mark.parametrize('name', ['gamma', 'alpha', 'least', 'offset'])
def test_numbers_of_pu_mlc_are_checked(name):
  with pytest.raises(ValueError, match=name):
    losses.pu_mlc(SCORES, POSITIVE, ONES, **{name: -1.0})


def test_targets_and_ratio_are_checked():
  loss, log = losses.mixup_log_consistency, -np.abs(SCORES)
  with pytest.raises(ValueError, match='partner_log_targets'):
    loss(SCORES, log, log[0], 0.5)
  for bad in (1.5, np.nan, ONES[:, None]):
    with pytest.raises(ValueError, match='ratio'):
      loss(SCORES, log, log, bad)


def test_priors_may_be_swept():
  priors = np.linspace(0.1, 0.9, 3, dtype=np.float32)
  sweep = run(
    jax.vmap(lambda prior: losses.nnpu(SCORES, POSITIVE, prior, ONES)), priors
  )
  close(sweep[1], losses.nnpu(SCORES, POSITIVE, priors[1], ONES))


# --- devices -----------------------------------------------------------------


def test_eight_devices_take_one_branch():
  """Each alone would take another one than all together, some of them."""
  devices = 8
  x = np.where(POSITIVE, 3, -3) + SCORES
  x[:5] = 6  # unlabeled rows of the first device are far on the wrong side
  positive = POSITIVE.copy()
  positive[:5] = False
  prior = 0.5
  alone = [
    losses.pu_risks(x[i : i + 5], positive[i : i + 5], prior, ONES[:5])[1]
    for i in range(0, B, 5)
  ]
  together = losses.pu_risks(x, positive, prior, ONES)[1]
  assert np.any((np.array(alone) < 0) != (np.asarray(together) < 0))

  def step(shift, x, positive, weights):
    def of(loss):
      total = lambda shift: (
        loss(x + shift * x**2 / 10, positive, weights).sum(),
        (),
      )
      return global_grad(total)(shift)

    return {name: of(loss) for name, loss in EVERY.items()}

  same, data = PartitionSpec(), PartitionSpec(AXIS)
  split = jax.shard_map(
    step,
    mesh=jax.make_mesh((devices,), (AXIS,), (AxisType.Auto,)),
    in_specs=(same, data, data, data),
    out_specs=same,
  )
  given = np.float32(0.1), x, positive, WEIGHTS
  expected, found = run(step, *given), run(split, *given)
  for name, ((value, _), slope) in found.items():
    close(value, expected[name][0][0], err_msg=name)
    close(slope, expected[name][1], 1e-4, 1e-5, err_msg=name)
    assert abs(slope) > 1e-4, name
