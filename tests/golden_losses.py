"""Golden checks of `jnl.losses` and `jnl.ramps`; see golden_case.py."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses, ramps

OFFICIAL_CLIP = 1e-7
OFFICIAL_SOP_CLIP = 1e-4  # before the probabilities are normalized, and after


def _per_example(case, loss, mean=None, scale=1.0):
  """Values of each example, their mean, and the gradient of the mean.

  `scale` is the size of the terms that the loss is a difference of.
  """
  z, y = case['logits'], case['labels']
  if mean is None:
    values, (total, gradient) = yield _value_and_mean(loss, y), z
  else:
    values, (total, gradient) = yield (
      lambda z: (loss(z, y), jax.value_and_grad(mean)(z)),
      z,
    )
  case.value(values, 'loss_per_example', scale)
  case.value(total, 'loss_mean', scale)
  # A mean of b values: what cancels is of size 1 / b.
  for name in ('grad', 'grad_logits_of_mean'):
    case.gradient(gradient, name, scale / len(y))


def _value_and_mean(loss, y):
  """z -> the values, and their mean with its gradient."""

  def mean(z):
    values = loss(z, y)
    return jnp.mean(values), values

  def run(z):
    (total, values), gradient = jax.value_and_grad(mean, has_aux=True)(z)
    return values, (total, gradient)

  return run


def _all(losses_by_name, z, y):
  """The same of several losses."""
  return lambda z: {
    name: _value_and_mean(loss, y)(z) for name, loss in losses_by_name.items()
  }, z


def _check(loss, *names, **fixed):
  """A check of `loss` whose hyperparameters `names` are read from the file."""

  def check(case):
    hyperparameters = {name: case.hp(name) for name in names}
    return _per_example(
      case, functools.partial(loss, **hyperparameters, **fixed)
    )

  return check


def _asymmetric(loss, *names):
  """Like `_check`, for differences of powers of a: their size is theirs."""

  def check(case):
    hyperparameters = {name: case.hp(name) for name in names}
    q, scale = hyperparameters['q'], hyperparameters.get('beta', 1.0)
    scale *= (hyperparameters['a'] + 1) ** q / q
    loss_of = functools.partial(loss, **hyperparameters)
    return _per_example(case, loss_of, scale=scale)

  return check


def _label_smoothing_gjs(case):
  # The official value is a divergence: less the entropy of the target.
  s, c = case.hp('t'), case['logits'].shape[-1]
  target = np.full(c, s / c)
  target[0] += 1 - s
  entropy = -np.sum(target * np.log(target))
  return _per_example(
    case, lambda z, y: losses.label_smoothing(z, y, smoothing=s) - entropy
  )


def _bootstrap_soft_gjs(case):
  loss = functools.partial(
    losses.bootstrap_soft, beta=1 - case.hp('t'), clip=OFFICIAL_CLIP
  )
  return _per_example(case, loss)


def _nrce_as_coded(case):
  c = case['logits'].shape[-1]
  factor = -math.log(1e-4) * (c - 1) ** 2 / 4
  return _per_example(
    case,
    lambda z, y: factor * losses.nrce(z, y, clip=OFFICIAL_CLIP),
    scale=factor,
  )


def _nmae_apl(case):
  return _per_example(case, lambda z, y: losses.nmae(z, y) / 2)


def _anl_ce(case):
  assert case.hp('delta') == 0  # the L1 norm of parameters there are none of
  return _check(losses.anl_ce, 'alpha', 'beta', 'min_prob')(case)


def _anl_ce_er(case):
  least = case.hp('min_prob')
  anl = functools.partial(
    losses.anl_ce,
    alpha=case.hp('alpha'),
    beta=case.hp('beta'),
    min_prob=least,
    max_prob=1 - least,
  )
  factor = case.hp('lamb')

  def batch(z, y):
    gap = losses.mean_entropy_gap(z, jnp.ones(len(z), z.dtype), clip=least)
    return jnp.mean(anl(z, y)) + factor * gap

  def alone(z, y):  # official values per example are of batches of one
    return jax.vmap(lambda z, y: batch(z[None], y[None]))(z, y)

  return _per_example(case, alone, lambda z: batch(z, case['labels']))


def _gjs(case):
  z, y, weights = case['logits_views'], case['labels'], case['weights']
  w0 = case.arrays['weights'][0]
  scale = -(1 - w0) * np.log1p(-w0)
  gjs = functools.partial(losses.gjs, weights=weights, clip=OFFICIAL_CLIP)
  variants = {
    'scaled': gjs,
    'unscaled': lambda z, y: scale * gjs(z, y),
    'noconsistency': functools.partial(
      losses.gjs_of_mean, weights=weights, clip=OFFICIAL_CLIP, as_coded=True
    ),
  }
  results = yield _all(variants, z, y)
  for name, (values, (total, gradient)) in results.items():
    case.value(values, f'{name}_loss_per_example')
    case.value(total, f'{name}_loss_mean')
    case.gradient(gradient, f'{name}_grad_logits', scale=1 / len(y))


def _keras_family(case):
  # The official code clips probabilities to [1e-7, 1 - 1e-7], which is active
  # in none of these numbers unless a case has extreme logits.
  z, y = case['logits'], case['labels']
  c, transition = z.shape[-1], case['T'] if case.has('T') else None
  lsr = 0.1  # the file's: 1 - e - e / 10 on the label, e / 10 elsewhere
  smoothed = np.full(z.shape, lsr / 10, z.dtype)
  smoothed += np.eye(c, dtype=z.dtype)[y] * (1 - lsr - lsr / 10)
  families = {
    'sce': lambda a, b: functools.partial(losses.sce, alpha=a, beta=b),
    'lsr_as_coded': lambda: lambda z, _: losses.ce(z, smoothed),
    'gce_noclip': lambda: losses.gce,
    'boot_soft': lambda b: functools.partial(losses.bootstrap_soft, beta=b),
    'boot_hard': lambda b: functools.partial(losses.bootstrap_hard, beta=b),
    'forward': lambda: lambda z, y: losses.forward(z, y, transition),
    'backward': lambda: lambda z, y: losses.backward(z, y, transition),
  }
  # Which variants there are, and with which numbers, the names say:
  # sce_a0p1_b1_mean is of alpha .1 and beta 1.
  number, result = r'_[a-z](\d+(?:p\d+)?)', r'(.*)_(mean|grad|per_example)'
  found = (re.fullmatch(result, name) for name in case.arrays)
  names = sorted({match[1] for match in found if match})
  variants = {
    name: families[re.sub(number, '', name)](
      *(float(n.replace('p', '.')) for n in re.findall(number, name))
    )
    for name in names
  }
  results = yield _all(variants, z, y)
  for name, (values, (total, gradient)) in results.items():
    case.value(values, f'{name}_per_example')
    case.value(total, f'{name}_mean')
    case.gradient(gradient, f'{name}_grad', scale=1 / len(y))


def _truncated_gce(case):
  z, y, index = case['logits'], case['labels'], case['indices']
  q, k, n = case.hp('q'), case.hp('k'), case.hp('num_examples')

  def run(z):
    def mean(z, weights):
      return jnp.mean(losses.truncated_gce(z, y, weights, q=q, k=k))

    of = jax.value_and_grad(mean)
    table = jnp.ones([n, 1], z.dtype)
    before = of(z, table[index, 0])
    weights = losses.truncated_gce_weights(z, y, k=k)
    table = table.at[index, 0].set(weights)
    return before, table, of(z, table[index, 0])

  before, table, after = yield run, z
  case.value(table, 'weights_after')
  for (loss, gradient), suffix in ((before, 'before'), (after, 'after')):
    case.value(loss, f'loss_mean_{suffix}')
    case.gradient(gradient, f'grad_{suffix}', scale=1 / len(y))


def _dmi(case):
  z, y = case['logits'], case['labels']
  weights = np.ones(len(y), z.dtype)
  loss, gradient = yield jax.value_and_grad(losses.dmi), z, y, weights
  case.value(loss, 'loss')
  # The inverse in the gradient of a log-determinant multiplies rounding by its
  # condition number: absolute to ten times the largest entry.
  case.gradient(gradient, 'grad', scale=10 * np.abs(gradient).max())


def _negative_learning(case):
  z, negatives = case['logits'], case['neg_labels']
  case.skip('labels')  # only the complementary ones enter the loss

  def loss(z):
    views = jnp.broadcast_to(z[:, None], (*negatives.shape, z.shape[-1]))
    terms = losses.negative_learning(views, negatives, clip=1e-5)
    return jnp.mean(jnp.sum(terms, axis=-1))

  value, gradient = yield jax.value_and_grad(loss), z
  case.value(value, 'loss')
  case.gradient(gradient, 'grad', scale=1 / len(z))


def _logitclip_as_coded(case):
  clip = functools.partial(
    losses.clip_logits, tau=case.hp('temp'), order=case.hp('lp'), as_coded=True
  )
  z, y = case['logits'], case['labels']
  loss = lambda z: jnp.mean(losses.ce(clip(z), y))
  clipped, (value, gradient) = yield (
    lambda z: (clip(z), jax.value_and_grad(loss)(z)),
    z,
  )
  case.value(clipped, 'clipped_logits')
  case.value(value, 'ce_of_clipped')
  case.gradient(gradient, 'grad', scale=1 / len(y))


def _peer_and_cores(case):
  z, y = case['logits'], case['labels']

  first, second = case.get('perm_inputs'), case.get('perm_labels')
  alpha, beta, epoch = (case.get(k) for k in ('alpha', 'beta', 'epoch'))

  def peer(z):
    return jnp.mean(
      losses.peer(z, y, z[first], y[second], alpha=alpha, offset=1e-5)
    ), ()

  def cores(z):
    kept = losses.cores2_sieve(z, y, offset=1e-8) | (epoch <= 30)
    values = losses.cores2(z, y, beta=beta, offset=1e-8)
    return jnp.sum(jnp.where(kept, values, 0)) / jnp.sum(kept), kept

  parts = {
    loss: jax.value_and_grad(loss, has_aux=True)
    for loss in (peer, cores)
    if any(name.startswith(f'{loss.__name__}_') for name in case.arrays)
  }
  found = yield lambda z: {f.__name__: of(z) for f, of in parts.items()}, z
  for name, ((value, kept), gradient) in found.items():
    case.value(value, f'{name}_loss')
    case.gradient(gradient, f'{name}_grad', scale=1 / len(y))
    if name == 'cores':
      case.equal(kept, 'cores_mask')


def _m_dyr_h(case):
  z, y, perm = case['logits'], case['labels'], case['perm']
  ratio, factor = case['mixup_lambda'], case.hp('reg')
  noisy = np.clip(case['noisy_prob_B'], 1e-4, 1 - 1e-4)
  guesses = np.argmax(z, axis=-1)
  mixed = ratio * z + (1 - ratio) * z[perm]  # an identity network with a bias

  def loss(bias):
    own = losses.dynamic_bootstrap(mixed + bias, y, guesses, noisy)
    other = losses.dynamic_bootstrap(
      mixed + bias, y[perm], guesses[perm], noisy[perm]
    )
    prior = losses.prior_mean_kl(mixed + bias, np.ones(len(y), z.dtype))
    return jnp.mean(ratio * own + (1 - ratio) * other) + factor * prior

  value, gradient = yield jax.value_and_grad(loss), np.zeros_like(z[0])
  case.value(value, 'loss')
  case.gradient(gradient, 'grad_bias')


def _elr_sequence(case):
  beta, factor = case.hp('beta'), case.hp('lambda')
  logits, indices = case['logits_steps'], case['indices_steps']
  labels = case['labels_all'][indices]
  table = np.zeros([case.hp('num_examples'), logits.shape[-1]], logits.dtype)

  def step(table, batch):
    z, y, index = batch
    rows = losses.elr_targets(table[index], z, beta=beta)

    def loss(z):
      cross_entropy = jnp.mean(losses.ce(z, y))
      penalty = jnp.mean(losses.elr_penalty(z, rows))
      return cross_entropy + factor * penalty, cross_entropy

    (value, part), gradient = jax.value_and_grad(loss, has_aux=True)(z)
    table = table.at[index].set(rows)
    return table, (value, part, gradient, table)

  _, (values, parts, gradients, tables) = yield (
    functools.partial(jax.lax.scan, step),
    table,
    (logits, labels, indices),
  )
  case.value(values, 'loss')
  case.value(parts, 'ce_part')
  case.gradient(gradients, 'grad', scale=factor)
  case.value(tables, 'target_after')


def _elr_plus_step(case):
  logits, teacher = case['logits_mixed_steps'], case['logits_ema_steps']
  case.skip('labels_steps')  # the file has them mixed, in mixed_targets
  ratios, perms = case['mixup_lambda'], case['perm']
  beta, factor, length = (
    case.hp('beta'),
    case.hp('lambda'),
    case.hp('coef_step'),
  )
  first, targets = case.hp('iteration0'), case['mixed_targets']
  classes = logits.shape[-1]
  table = np.zeros([case.hp('num_examples'), classes], logits.dtype)

  def step(table, batch):
    i, index, z, teacher, ratio, perm, y = batch
    rows = losses.elr_targets(table[index], teacher, beta=beta, clip=0.0)
    q = ratio * rows + (1 - ratio) * rows[perm]
    if classes == 100:
      y = losses.elr_plus_labels(y, q)
    # A float step keeps its precision; an integer one would give float32.
    ramp = ramps.sigmoid_rampup((first + i).astype(q.dtype), length)

    def loss(z):
      penalty = losses.elr_penalty(z, q)
      return jnp.mean(losses.ce(z, y) + ramp * factor * penalty)

    result = jax.value_and_grad(loss)(z)
    table = table.at[index].set(rows)
    return table, (*result, q, table)

  index = case['indices_steps']
  batches = np.arange(len(index), dtype=np.int32), index, logits, teacher
  _, (values, gradients, mixed, tables) = yield (
    functools.partial(jax.lax.scan, step),
    table,
    (*batches, ratios, perms, targets),
  )
  case.value(values, 'loss')
  case.gradient(gradients, 'grad')
  case.value(mixed, 'q')
  case.value(tables, 'pred_hist_after')


def _ramps(case):
  step, length = case['current'].astype(case.dtype), case.hp('length')
  names = (
    'sigmoid_rampup',
    'sigmoid_rampdown',
    'linear_rampup',
    'cosine_rampup',
  )

  def run(step):
    found = {name: getattr(ramps, name)(step, length) for name in names}
    return found | {'rampup_len40000': ramps.sigmoid_rampup(step, 40_000)}

  for name, found in (yield run, step).items():
    case.value(found, name)


def _sop(case):
  index, y = case['indices'], case['labels']
  factor_views = case.hp('ratio_consistency')
  factor_prior = case.hp('ratio_balance')
  assert len(case['u']) == case.hp('num_examples')
  b = len(y)
  clips = {'clip': OFFICIAL_SOP_CLIP, 'min_prob': OFFICIAL_SOP_CLIP}

  def loss(z, u, v):
    first, second = (z, None) if len(z) == b else (z[:b], z[b:])
    u, v = u[index, 0], v[index]
    total = jnp.mean(losses.sop(first, y, u, v, **clips))
    if factor_prior:
      # As coded: `prior_mean_kl` would normalize what the second clip raised.
      mean = jnp.mean(losses.sop_probs(first, y, u, v, **clips), axis=0)
      total -= factor_prior * jnp.mean(jnp.log(mean))
    if factor_views:
      total += factor_views * jnp.mean(losses.kl_consistency(second, first))
    return total

  value, gradients = yield (
    jax.value_and_grad(loss, (0, 1, 2)),
    case['logits'],
    case['u'],
    case['v'],
  )
  case.value(value, 'loss')
  for gradient, name in zip(gradients, ('logits', 'u', 'v'), strict=True):
    case.gradient(gradient, f'grad_{name}', scale=1 / b)


def _reweight_and_correction(case):
  y, transition, revision = case['labels'], case['T'], case['dT']
  times = np.arange(1, len(y) + 1, dtype=case.dtype)

  def loop(z, transition, revision):
    # As coded upstream, example i sees the revision added i + 1 times.
    def one(z, y, times):
      return losses.t_revision(z, y, transition, times * revision)

    return jax.vmap(one)(z, y, times)

  def reweight(z, transition, revision):
    return losses.importance_reweight(z, y, transition)

  def revised(z, transition, revision):
    return losses.importance_reweight(z, y, transition + revision)

  variants = {
    'reweight_loop': reweight,
    'reweight_v2': reweight,
    'revision_v2': revised,
    'revision_loop': loop,
    'forward': lambda z, t, _: losses.forward(z, y, t),
    'backward': lambda z, t, _: losses.backward(z, y, t),
  }

  def run(z, transition, revision):
    def mean(loss):
      return lambda z, r: jnp.mean(loss(z, transition, r))

    return {
      name: jax.value_and_grad(mean(loss), (0, 1))(z, revision)
      for name, loss in variants.items()
    }

  # The matrices are traced: T + dT need not have rows that sum to one.
  results = yield run, case['logits'], transition, revision
  for name, (value, (gradient, of_revision)) in results.items():
    case.value(value, f'{name}_loss')
    case.gradient(gradient, f'{name}_grad', scale=1 / len(y))
    if name == 'revision_loop':
      case.gradient(of_revision, f'{name}_gradT')


_clipped = functools.partial(_check, clip=OFFICIAL_CLIP)

CHECKS = {
  ('robust', 'ce'): _check(losses.ce),
  ('robust', 'label_smoothing_torch'): lambda case: _per_example(
    case,
    functools.partial(
      losses.label_smoothing, smoothing=case.hp('label_smoothing')
    ),
  ),
  ('robust', 'label_smoothing_gjs'): _label_smoothing_gjs,
  ('robust', 'gls'): lambda case: _per_example(
    case,
    functools.partial(
      losses.gls,
      rate=case.hp('smooth_rate'),
      wa=case.hp('wa'),
      wb=case.hp('wb'),
    ),
  ),
  ('robust', 'bootstrap_soft_gjs'): _bootstrap_soft_gjs,
  ('robust', 'mae'): _check(losses.mae),
  ('robust', 'rce'): _clipped(losses.rce),
  ('robust', 'sce'): _clipped(losses.sce, 'alpha', 'beta'),
  ('robust', 'gce'): _clipped(losses.gce, 'q'),
  ('robust', 'truncated_gce'): _truncated_gce,
  ('robust', 'taylor_ce'): _check(losses.taylor_ce, 'order'),
  ('robust', 'agce'): _asymmetric(losses.agce, 'a', 'q'),
  ('robust', 'aul'): _asymmetric(losses.aul, 'a', 'q'),
  ('robust', 'ael'): _check(losses.ael, 'a'),
  ('robust', 'anorm'): _check(losses.anorm, 'a', 'p', clip=1e-5),
  ('robust', 'js'): _clipped(losses.js, 'w0'),
  ('robust', 'gjs'): _gjs,
  ('robust', 'nce'): _check(losses.nce),
  ('robust', 'nrce_as_coded'): _nrce_as_coded,
  ('robust', 'nmae_apl'): _nmae_apl,
  ('robust', 'ngce'): _clipped(losses.ngce, 'q'),
  ('robust', 'focal'): _check(losses.focal, 'gamma', detach=True),
  ('robust', 'nfl'): _check(losses.nfl, 'gamma'),
  ('robust', 'nnce'): _check(losses.nnce, 'min_prob'),
  ('robust', 'nnfl'): _check(losses.nnfl, 'gamma', 'min_prob'),
  ('robust', 'nce_rce'): _clipped(losses.nce_rce, 'alpha', 'beta'),
  ('robust', 'nce_mae'): _check(losses.nce_mae, 'alpha', 'beta'),
  ('robust', 'nfl_rce'): _clipped(losses.nfl_rce, 'alpha', 'beta', 'gamma'),
  ('robust', 'nfl_mae'): _check(losses.nfl_mae, 'alpha', 'beta', 'gamma'),
  ('robust', 'ngce_rce'): _clipped(losses.ngce_rce, 'alpha', 'beta', 'q'),
  ('robust', 'nce_agce'): _asymmetric(
    losses.nce_agce, 'alpha', 'beta', 'a', 'q'
  ),
  ('robust', 'nce_aul'): _asymmetric(losses.nce_aul, 'alpha', 'beta', 'a', 'q'),
  ('robust', 'nce_ael'): _check(losses.nce_ael, 'alpha', 'beta', 'a'),
  ('robust', 'anl_ce'): _anl_ce,
  ('robust', 'anl_ce_er'): _anl_ce_er,
  ('robust', 'dmi'): _dmi,
  ('robust', 'negative_learning'): _negative_learning,
  ('robust', 'logitclip_as_coded'): _logitclip_as_coded,
  ('robust', 'peer_and_cores'): _peer_and_cores,
  ('robust', 'keras_family'): _keras_family,
  ('bootstrap', 'm_dyr_h'): _m_dyr_h,
  ('elr', 'sequence'): _elr_sequence,
  ('elr_plus', 'step'): _elr_plus_step,
  ('elr_plus', 'ramps'): _ramps,
  ('sop', 'step'): _sop,
  ('transition', 'reweight_and_correction'): _reweight_and_correction,
}
