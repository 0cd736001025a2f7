"""Golden checks of the losses of bags, in float64 and float32.

`llp_losses__binary` has logits of the positive class; ours are pairs (0, z), so
that a gradient is that by the second. Sums over two classes that are opposite
are halved where the file has one class.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jnl import losses

CLIP = 1e-7  # of probabilities, in the reference


def _pairs(z):
  return jnp.stack([jnp.zeros_like(z), z], axis=-1)


def _both(positive):
  """Of both classes, from those of the positive one."""
  return jnp.stack([1 - positive, positive], axis=-1)


def _compare(case, name, loss, z, per_bag=True):
  """Values, and the gradient of their sum."""
  value, gradient = jax.jit(
    jax.value_and_grad(lambda z: (loss(z).sum(), loss(z)), has_aux=True)
  )(z)
  own = value[1] if per_bag else value[0][None]
  case.value(own, name)
  case.gradient(gradient, f'dlogits_{name}')


def _binary(case):
  z, mask = case['logits'], case['mask'] == 1
  m = mask.sum(1)
  positive = case['counts']
  proportions = _both(positive / m)
  prior = _both(case['prior'])
  counts = jnp.stack([m - positive, positive], axis=-1)
  whole = jnp.round(counts).astype(int)

  def clipped(z):
    """The reference does not move where it clips."""
    mean = jnp.sum(jnp.where(mask, jax.nn.sigmoid(z), 0), axis=1) / m
    free = (mean >= CLIP) & (mean <= 1 - CLIP)
    ours = losses.dllp(_pairs(z), proportions, mask)
    edge = jnp.clip(mean, CLIP, 1 - CLIP)
    bound = -(positive / m) * jnp.log(edge) - (1 - positive / m) * jnp.log1p(
      -edge
    )
    return jnp.where(free, ours, jax.lax.stop_gradient(bound))

  def square(logits, labels):
    return (jax.nn.softmax(logits)[..., 1] - labels) ** 2

  _compare(case, 'dllp_bce', clipped, z)
  _compare(
    case,
    'dllp_mse',
    lambda z: losses.dllp_squared(_pairs(z), proportions, mask) / 2,
    z,
  )
  _compare(
    case,
    'easyllp_bce_bagmean',
    lambda z: losses.easy_llp(_pairs(z), proportions, prior, mask),
    z,
  )
  _compare(
    case,
    'easyllp_square_bagmean',
    lambda z: losses.easy_llp(_pairs(z), proportions, prior, mask, loss=square),
    z,
  )
  _compare(
    case,
    'dsq',
    lambda z: losses.dsq(_pairs(z), proportions, prior, mask),
    z,
  )
  weights = case['genbags_w']
  _compare(
    case,
    'genbags',
    lambda z: losses.gen_bags(_pairs(z), counts, weights, mask),
    z,
    per_bag=False,
  )
  hard = losses.transport_labels(_pairs(z), whole, mask, reg=0.0)
  case.value(hard[..., 1], 'ot_hard_labels')
  _compare(
    case,
    'ot_hard_bce',
    lambda z: losses.transport(_pairs(z), whole, mask, reg=0.0),
    z,
  )
  reg = case.hp('reg')
  soft = losses.transport_labels(_pairs(z), whole, mask, reg=reg)
  case.value(soft[..., 1], 'erot_soft_labels')
  _compare(
    case,
    'erot_bce',
    lambda z: losses.transport(_pairs(z), whole, mask, reg=reg),
    z,
  )
  x = case['sim_x']
  # The reference takes a sigmoid of probabilities, of padding too.
  twice = lambda z: jax.nn.sigmoid(jax.nn.sigmoid(z)).ravel()
  _compare(
    case,
    'sim_loss',
    lambda z: losses.similarity_smoothness(twice(z), x) / x.shape[0],
    z,
    per_bag=False,
  )


def _proportion(case):
  z, proportions = case['logits'], case['proportions']
  bags = z.shape[0]
  for name, loss in (
    ('ce', losses.dllp),
    ('l1', losses.dllp_l1),
    ('mse', losses.dllp_squared),
  ):
    value, gradient = jax.jit(
      jax.value_and_grad(lambda z, f=loss: f(z, proportions).sum() / bags)
    )(z)
    case.value(value, f'loss_{name}')
    case.gradient(gradient, f'dlogits_{name}')


def _published_direction(case):
  """LLP-VAT's finite difference, in float64: its limit for xi to 0 is ours.

  The gradient of the batch's mean divergence over a step xi, which at xi = 10
  is another direction, and at 1e-6 has no digits left in float32: there it is
  that of float64, and all that follows is compared in single precision.
  """
  x, d, w, w2 = (np.float64(case.arrays[k]) for k in ('x', 'd0', 'W', 'W2'))
  xi = case.hp('xi')

  def unit(d):
    return d / (np.linalg.norm(d, axis=1, keepdims=True) + 1e-8)

  def hidden_and_probs(x):
    hidden = np.tanh(x @ w2.T)
    return hidden, scipy.special.softmax(hidden @ w.T, axis=1)

  _, held = hidden_and_probs(x)
  hidden, probs = hidden_and_probs(x + xi * unit(d))
  slope = ((probs - held) @ w) * (1 - hidden**2)
  return unit(xi / len(x) * slope @ w2)


def _vat(case):
  x, eps, d = case['x'], case.hp('eps'), _published_direction(case)
  case.skip('d0')  # where it started
  # The 1e-8 above shortens a small gradient, each by its own factor.
  lengths = jnp.asarray(eps * np.linalg.norm(d, axis=1), case.dtype)
  d = jnp.asarray(d, case.dtype)

  def loss(w, w2):
    predict = lambda x: jnp.tanh(x @ w2.T) @ w.T
    vat = functools.partial(losses.vat, predict, power=0)
    values = jax.vmap(lambda x, d, eps: vat(x[None], d[None], eps=eps))
    return jnp.mean(values(x, d, lengths))

  value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(
    case['W'], case['W2']
  )
  if case.precision == 'f32':
    case.value(value, 'loss')
    case.gradient(gradients[0], 'dW')
    case.gradient(gradients[1], 'dW2')
    return
  # The direction is a ratio of numbers as small as 1e-8.
  for own, name in zip((value, *gradients), ('loss', 'dW', 'dW2'), strict=True):
    np.testing.assert_allclose(
      own, case.expected(name), rtol=1e-7, atol=1e-10, err_msg=name
    )


CHECKS = {
  ('llp_losses', 'binary'): _binary,
  ('llp_losses', 'proportion'): _proportion,
  ('llp_losses', 'vat'): _vat,
}
