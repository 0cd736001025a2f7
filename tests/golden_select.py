"""Golden checks of `jnl.select` and its schedule; see golden_case.py."""

from golden_case import side_by_side
import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses, ramps
from jnl.select import (
  beta_mixture,
  clean_probability,
  co_teaching,
  gaussian_mixture,
  gaussian_mixture_by_class,
  jocor,
  lrt_correct,
  lrt_delta,
  small_loss,
)

CONVERGED = {'num_iter': 500, 'tol': 1e-8}


def alike(case, probability, name, share):
  """Of a random start: which are clean, for all but a few."""
  if case.has(name):
    assert np.mean((probability > 0.5) == (case.expected(name) > 0.5)) >= share


def check_partition(case):
  """From the same start: round by round the same numbers, in float64."""
  values, labels = case['losses'], case['labels']
  classes = labels.max() + 1

  def run(values, labels):
    one = gaussian_mixture(values, **CONVERGED)
    own = gaussian_mixture_by_class(values, labels, classes, **CONVERGED)
    p = clean_probability(one, values, monotone=False)
    return one, p, clean_probability(own, values, labels, monotone=False)

  one, p, own = yield run, values, labels
  # In float32 the last rounds move the mean likelihood by less than it holds.
  near = {'f32': {'rtol': 0, 'atol': 3e-3}, 'f64': {'rtol': 1e-9}}
  near = near[case.precision]
  case.value((values - one.low) / (one.high - one.low), 'losses_norm')
  case.close(one.means, 'means_fixedinit', **near)
  case.close(one.variances, 'covs_fixedinit', **near)
  case.close(one.weights, 'weights_fixedinit', **near)
  case.close(p, 'p_fixedinit', **near)
  case.close(own, 'p_perclass', **near)
  alike(case, p, 'p_default', 0.98)
  # Classes of different difficulty are what a mixture of each is for.
  clean = ~case.arrays['is_noisy']
  case.inputs.add('is_noisy')
  if clean.size == 600:
    gain = np.mean((own > 0.5) == clean) - np.mean((p > 0.5) == clean)
    assert gain > 0.01


def check_mixtures(case):
  values = case['losses']
  bins = case.arrays.get('bmm_lookup', np.zeros(100)).size
  case.skip('is_noisy')  # of nothing that is compared

  def run(values):
    gauss = gaussian_mixture(values, **CONVERGED)
    beta = beta_mixture(values, tol=0.0)
    middle = jnp.linspace(0, 1, bins) * (beta.high - beta.low) + beta.low
    scaled = [(values - m.low) / (m.high - m.low) for m in (gauss, beta)]
    return (
      *(gauss, clean_probability(gauss, values, monotone=False)),
      *(beta, 1 - clean_probability(beta, middle), scaled),
    )

  gauss, p, beta, table, scaled = yield run, values
  case.value(scaled[0], 'gmm_norm')
  near = {'f32': 3e-5, 'f64': 1e-7}[case.precision]
  case.close(gauss.means, 'gmm_converged_means', rtol=near)
  case.close(gauss.variances, 'gmm_converged_vars', rtol=near)
  case.close(gauss.weights, 'gmm_converged_weights', rtol=near)
  case.close(p, 'gmm_converged_prob_clean', rtol=0, atol=near)
  alike(case, p, 'gmm_prob_clean', 0.97)  # ten rounds, from a random start
  # The code moves the percentiles by 1e-5 and 1e-6 before it scales by them,
  # and reads the posterior from a table of bins.
  inside = (scaled[1] >= 0) & (scaled[1] <= 1)
  case.close(scaled[1][inside], 'bmm_norm_train', rtol=0, atol=3e-6)
  case.close(beta.alphas, 'bmm_alphas', rtol=1e-4)
  case.close(beta.betas, 'bmm_betas', rtol=1e-4)
  case.close(beta.weights, 'bmm_weight', rtol=1e-4)
  case.close(table, 'bmm_lookup', rtol=0, atol=2e-4)
  edge = 1e-3  # where it puts what lies outside
  bin_of = np.clip(scaled[1], edge, 1 - edge) * bins
  binned = table[np.floor(bin_of + 1e-4).astype(int).clip(max=bins - 1)]
  if case.has('bmm_posterior_noisy'):
    off = np.abs(binned - case.expected('bmm_posterior_noisy'))
    assert np.mean(off < 2e-4) > 0.99, 'but for those at the border of a bin'


def check_small_loss(case):
  z1, z2, labels = case['logits1'], case['logits2'], case['labels']
  clean, k = case['clean_mask'], case.hp('k')
  assert k == int((1 - case.hp('forget_rate')) * len(labels))

  def run(z1, z2, labels):
    ce = [losses.ce(z, labels) for z in (z1, z2)]
    masks = co_teaching(*ce, k)

    def taught(z, mask):  # the code divides the mean by k once more
      return jnp.sum(losses.ce(z, labels) * mask) / k**2

    def joint(z1, z2):
      each = jocor(z1, z2, labels)
      mask = small_loss(each, k)
      return jnp.sum(each * mask) / k, mask

    pairs = zip((z1, z2), masks, strict=True)
    each = [jax.value_and_grad(taught)(*pair) for pair in pairs]
    both = jax.value_and_grad(joint, (0, 1), has_aux=True)(z1, z2)
    return ce, masks, each, both

  ce, masks, each, ((value, joint), slopes) = yield run, z1, z2, labels
  for i in (0, 1):
    mask, n = masks[1 - i], i + 1  # the small losses of i teach the other
    index = np.flatnonzero(mask)
    case.equal(index[np.argsort(ce[i][index])], f'idx_small_{n}')
    case.close(clean[index].mean(), f'pure_ratio_{n}')
    case.value(each[i][0], f'coteach_loss{n}')
    case.gradient(each[i][1], f'coteach_grad{n}')
    case.gradient(slopes[i], f'jocor_grad{n}')
  case.value(value, 'jocor_loss')
  case.close(clean[joint].mean(), 'jocor_pure_ratio')


def check_schedule(case):
  rate, length = case.hp('forget_rate'), case.hp('num_gradual')
  exponent = case.hp('exponent')

  def run(step):
    return ramps.forget_rate(step, rate=rate, length=length, exponent=exponent)

  found = yield run, np.arange(20, dtype=case.dtype)
  case.value(found, 'schedule')


def check_correction(case):
  delta = case.hp('delta')

  def run(labels, probs):
    corrected = lrt_correct(labels, probs, delta=delta)
    return corrected, lrt_delta(delta, corrected.changed)

  corrected, after = yield run, case['labels'], case['probs']
  for name in ('', 'prob_'):  # which differ in when the threshold rises
    case.equal(corrected.labels, f'{name}corrected')
    case.close(after, f'{name}delta_after', rtol=1e-6)


def apart(requests):
  """In a program of their own: beside others it would take too long."""
  return side_by_side(requests)


CHECKS = {
  ('cpc', 'gmm_partition'): (check_partition, apart),
  ('select', 'coteaching_jocor'): check_small_loss,
  ('select', 'coteaching_schedule'): check_schedule,
  ('select', 'loss_mixtures'): check_mixtures,
  ('select', 'lrt_correction'): check_correction,
}
