"""Golden checks of `jnl.em` and losses of candidates; see golden_case.py."""

import jax
import jax.numpy as jnp
import numpy as np

from jnl import em, losses

OFFICIAL_OFFSET = 1e-7  # log(1.0000001 - p)
OFFICIAL_POSTERIOR_OFFSET = 1e-12
OFFICIAL_LWS_OFFSET = 1e-8


def _entropy_weight(case):
  return 0.1 if case.hp('entropy') else 0.0


def _value_and_grad(loss, *arguments):
  """((loss, aux), gradients by all arguments)."""
  by_all = tuple(range(len(arguments)))
  return jax.value_and_grad(loss, by_all, has_aux=True), *arguments


def _ones(logits):
  return np.ones(len(logits), logits.dtype)


def _noisy(case):
  z_w, z_s, w = case['logits_w'], case['logits_s'], case['noise_weight']
  labels, scale = case['labels'], case.hp('scale')
  entropy_weight = _entropy_weight(case)

  def loss(z_w, z_s, w):
    return em.noisy_loss(
      z_w,
      z_s,
      labels,
      _ones(z_w),
      w,
      scale=scale,
      entropy_weight=entropy_weight,
    )

  matrix = lambda w: em.noise_logits(w, scale=scale)
  both, *arguments = _value_and_grad(loss, z_w, z_s, w)
  ((total, parts), gradients), matrix = yield (
    lambda z_w, z_s, w: (both(z_w, z_s, w), matrix(w)),
    *arguments,
  )
  case.value(total, 'loss')
  case.value(parts['likelihood'], 'noise_loss')
  case.value(parts['posterior'], 'em_loss')
  case.value(parts['consistency'], 'con_loss')
  for name, gradient in zip(
    ('logits_w', 'logits_s', 'noise_weight'), gradients, strict=True
  ):
    case.gradient(gradient, f'grad_{name}')
  case.value(matrix, 'noise_matrix')


def _double(case, name):
  """The float64 number, where float32 made NaN of the official one."""
  case.skip(f'{name}_f32')
  return case.arrays[f'{name}_f64']


def _partial(case):
  z, candidates = case['logits_w_s_s2'], case['candidates'] > 0
  entropy_weight = _entropy_weight(case)

  def loss(z):
    return em.partial_loss(
      jnp.moveaxis(z, 0, 1),
      candidates,
      _ones(z[0]),
      entropy_weight=entropy_weight,
      offset=OFFICIAL_OFFSET,
    )

  (total, parts), (gradient,) = yield _value_and_grad(loss, z)
  case.value(parts['exclusion'], 'sup_loss')
  if not case.has('loss') or np.isfinite(case.expected('loss')):
    case.value(total, 'loss')
    case.value(parts['posterior'], 'unsup_loss')
    case.gradient(gradient, 'grad_logits')
    return
  # Candidates of probability 0 in float32: jnl is finite and has the float64
  # numbers, but for the first term, whose constant differs.
  assert case.precision == 'f32'
  unsup = _double(case, 'unsup_loss')
  rest = _double(case, 'loss') - case.arrays['sup_loss_f64']
  np.testing.assert_allclose(parts['posterior'], unsup, rtol=1e-5)
  np.testing.assert_allclose(total, case.expected('sup_loss') + rest, rtol=1e-5)
  expected = _double(case, 'grad_logits')
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def _semi(case):
  z_l, z_w, z_s = case['logits_lb'], case['logits_ulb_w'], case['logits_ulb_s']
  labels, p_hat = case['labels'], case['p_hat_before']
  entropy_weight = _entropy_weight(case)

  def loss(z_l, z_w, z_s):
    """One stream: labeled rows have no use for their strong view."""
    missing = jnp.full(len(z_w), -1)
    labeled = jnp.arange(len(z_l) + len(z_w)) < len(z_l)
    weak = jnp.concatenate([z_l, z_w])
    return em.semi_loss(
      weak,
      jnp.concatenate([jnp.zeros_like(z_l), z_s]),
      jnp.concatenate([labels, missing]),
      labeled,
      _ones(weak),
      p_hat,
      entropy_weight=entropy_weight,
    )

  (total, (moved, parts)), gradients = yield _value_and_grad(
    loss, z_l, z_w, z_s
  )
  case.value(total, 'loss')
  case.value(parts['supervised'], 'sup_loss')
  case.value(parts['unsupervised'], 'unsup_loss')
  case.value(moved, 'p_hat_after')
  for name, gradient in zip(
    ('grad_lb', 'grad_ulb_w', 'grad_ulb_s'), gradients, strict=True
  ):
    case.gradient(gradient, name)


def _mixed(case):
  arrays = [
    case[name]
    for name in ('logits_lb_w', 'logits_lb_s', 'logits_ulb_w', 'logits_ulb_s')
  ]
  w, p_hat = case['noise_weight'], case['p_hat_before']
  candidates, scale = case['candidates'] > 0, case.hp('scale')
  entropy_weight = _entropy_weight(case)

  def loss(lb_w, lb_s, ulb_w, ulb_s, w):
    weak = jnp.concatenate([lb_w, ulb_w])
    return em.mixed_loss(
      weak,
      jnp.concatenate([lb_s, ulb_s]),
      jnp.concatenate([candidates, jnp.ones(ulb_w.shape, bool)]),
      jnp.arange(len(weak)) < len(lb_w),
      _ones(weak),
      w,
      p_hat,
      scale=scale,
      entropy_weight=entropy_weight,
      offset=OFFICIAL_OFFSET,
      posterior_offset=OFFICIAL_POSTERIOR_OFFSET,
    )

  (total, (moved, parts)), gradients = yield _value_and_grad(loss, *arrays, w)
  case.value(total, 'loss')
  case.value(parts['exclusion'], 'sup_partial_noise_loss')
  case.value(parts['posterior'], 'em_partial_noise_loss')
  case.value(parts['unsupervised'], 'unsup_loss')
  case.value(moved, 'p_hat_after')
  lb_w, lb_s, ulb_w, ulb_s, noise = gradients
  case.gradient(lb_w, 'grad_lb_w')
  case.gradient(lb_s, 'grad_lb_s')
  case.gradient(ulb_s, 'grad_ulb_s')
  case.gradient(noise, 'grad_noise_weight')
  assert not np.any(ulb_w)  # no file has it: the official one is None


def _baselines(case):
  z, candidates = case['logits'], case['candidates'] > 0
  confidence, weights = case.get('confidence'), case.get('lws_confidence')
  variants = {
    'proden': lambda z: losses.proden(z, confidence),
    'cc': lambda z: losses.cc(z, candidates),
    'lws': lambda z: losses.lws(
      z, candidates, weights, offset=OFFICIAL_LWS_OFFSET
    ),
  }

  def run(z):
    means = {
      name: jax.value_and_grad(lambda z, loss=loss: jnp.mean(loss(z)))(z)
      for name, loss in variants.items()
      if case.has(f'{name}_loss') or case.has(f'{name}_grad')
    }
    if case.has('proden_new_conf'):
      return means, losses.proden_confidence(z, confidence > 0)
    return means, None

  means, moved = yield run, z
  for name, (value, gradient) in means.items():
    case.value(value, f'{name}_loss')
    case.gradient(gradient, f'{name}_grad')
  case.value(moved, 'proden_new_conf')


CHECKS = {
  ('ill', 'noisy_label_step'): _noisy,
  ('ill', 'partial_label_step'): _partial,
  ('ill', 'semisup_step'): _semi,
  ('ill', 'mixed_step'): _mixed,
  ('partial', 'baselines'): _baselines,
}
