"""Golden checks of the losses of bags; see golden_case.py.

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
  return np.stack([1 - positive, positive], axis=-1)


def _value_and_slope(loss, z):
  """Values, and the gradient of their sum."""
  value, back = jax.vjp(loss, z)
  return value, back(jnp.ones_like(value))[0]


def _binary(case):
  z, mask = case['logits'], case['mask'] == 1
  m = mask.sum(1)
  positive = case['counts']
  proportions = _both(positive / m)
  prior = _both(case['prior'])
  counts = np.stack([m - positive, positive], axis=-1)
  whole = np.round(counts).astype(int)

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

  x, weights, reg = (case.get(name) for name in ('sim_x', 'genbags_w', 'reg'))
  # The reference takes a sigmoid of probabilities, of padding too.
  twice = lambda z: jax.nn.sigmoid(jax.nn.sigmoid(z)).ravel()
  of_pairs = {
    'dllp_mse': lambda p: losses.dllp_squared(p, proportions, mask) / 2,
    'easyllp_bce_bagmean': lambda p: losses.easy_llp(
      p, proportions, prior, mask
    ),
    'easyllp_square_bagmean': lambda p: losses.easy_llp(
      p, proportions, prior, mask, loss=square
    ),
    'dsq': lambda p: losses.dsq(p, proportions, prior, mask),
    'genbags': lambda p: losses.gen_bags(p, counts, weights, mask).sum()[None],
    'ot_hard_bce': lambda p: losses.transport(p, whole, mask, reg=0.0),
    'erot_bce': lambda p: losses.transport(p, whole, mask, reg=reg),
  }
  functions = {
    'dllp_bce': clipped,
    'sim_loss': lambda z: (
      losses.similarity_smoothness(twice(z), x).sum()[None] / len(x)
    ),
    **{
      name: lambda z, loss=loss: loss(_pairs(z))
      for name, loss in of_pairs.items()
    },
  }

  def run(z):
    labels = {
      name: losses.transport_labels(_pairs(z), whole, mask, reg=strength)
      for name, strength in (('ot_hard_labels', 0.0), ('erot_soft_labels', reg))
      if case.has(name)
    }
    return labels, {
      name: _value_and_slope(loss, z)
      for name, loss in functions.items()
      if case.has(name) or case.has(f'dlogits_{name}')
    }

  labels, found = yield run, z
  for name, both in labels.items():
    case.value(both[..., 1], name)
  for name, (value, gradient) in found.items():
    case.value(value, name)
    case.gradient(gradient, f'dlogits_{name}')


def _proportion(case):
  z, proportions = case['logits'], case['proportions']
  bags = z.shape[0]
  variants = {
    'ce': losses.dllp,
    'l1': losses.dllp_l1,
    'mse': losses.dllp_squared,
  }

  def run(z):
    return {
      name: jax.value_and_grad(lambda z, f=f: f(z, proportions).sum() / bags)(z)
      for name, f in variants.items()
    }

  for name, (value, gradient) in (yield run, z).items():
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
  lengths = np.asarray(eps * np.linalg.norm(d, axis=1), case.dtype)
  d = np.asarray(d, case.dtype)

  def loss(w, w2):
    predict = lambda x: jnp.tanh(x @ w2.T) @ w.T
    vat = functools.partial(losses.vat, predict, power=0)
    values = jax.vmap(lambda x, d, eps: vat(x[None], d[None], eps=eps))
    return jnp.mean(values(x, d, lengths))

  value, gradients = yield (
    jax.value_and_grad(loss, (0, 1)),
    case['W'],
    case['W2'],
  )
  if case.precision == 'f32':
    case.value(value, 'loss')
    case.gradient(gradients[0], 'dW')
    case.gradient(gradients[1], 'dW2')
    return
  # The direction is a ratio of numbers as small as 1e-8.
  for own, name in zip((value, *gradients), ('loss', 'dW', 'dW2'), strict=True):
    case.close(own, name, rtol=1e-7, atol=1e-10)


CHECKS = {
  ('llp_losses', 'binary'): _binary,
  ('llp_losses', 'proportion'): _proportion,
  ('llp_losses', 'vat'): _vat,
}
