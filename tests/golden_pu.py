"""Golden checks of positive and unlabeled examples; see golden_case.py.

Both official codes divide by numbers of examples in float32, also where the
rest is float64. Of nnPU the weights that this makes are known and taken back.
PU-MLC is exact to 1e-7 alone there. Where it writes 1e-10 into a logarithm
twice, that is 2e-10 of `offset`; and once into a sum over the rows that are not
positive, where it is less than that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses
from jnl.steps import mix

OFFSET = 1e-10
IN_FLOAT32 = 1e-7
LINEAR = 3e-9  # the reference takes softplus for linear from 20 on


def _official(prior, positive):
  """What the official weights, float32, make of the prior and of the risk.

  Those of unlabeled rows sum to k, nearly 1: k times the risk of prior / k.
  """
  known, rest = max(1, positive.sum()), max(1, (~positive).sum())
  k = np.float64(np.float32(1) / np.float32(rest)) * rest
  share = np.float64(np.float32(prior) / np.float32(known)) * known
  return share / k, k


def _pu_loss(case):
  positive = case['t'] > 0
  weights = np.ones(len(positive), case.dtype)
  logistic = case['is_logistic'] == 1
  loss = losses.logistic_loss if logistic else losses.sigmoid_loss
  prior, k = (case.dtype(a) for a in _official(case['prior'], positive))
  numbers = {'beta': case['beta'] / k, 'gamma': case['gamma']}
  variants = {
    'upu': functools.partial(losses.upu, loss=loss),
    'nnpu': functools.partial(losses.nnpu, loss=loss, **numbers),
  }

  def run(x, prior):
    def of(risk):
      total = lambda x: k * risk(x, positive[:, None], prior, weights)[0]
      return jax.value_and_grad(total)(x)

    return {name: of(risk) for name, risk in variants.items()}

  found = yield run, case['x'], prior
  for name, (value, gradient) in found.items():
    case.value(value, f'loss_{name}')
    if logistic and case.precision == 'f64':
      case.close(gradient, f'grad_{name}', rtol=LINEAR)
    else:
      case.gradient(gradient, f'grad_{name}')


def _vpu_loss(case):
  x, positive = case['logits'], case['targets'] == 1
  weights = np.ones(len(x), case.dtype)
  gamma, alpha = case['gamma'], case['alpha']

  def run(x):
    def total(x):
      return losses.pu_mlc(
        x, positive, weights, gamma=gamma, alpha=alpha, offset=2 * OFFSET
      ).sum()

    tau = losses.pu_mlc_temperature(x, weights, alpha=alpha)
    return tau, jax.value_and_grad(total)(x)

  tau, (value, gradient) = yield run, x
  case.value(tau, 'tau')
  if case.precision == 'f32':
    case.value(value, 'loss')
    case.gradient(gradient, 'grad')
  else:
    assert value.dtype == gradient.dtype == np.float64
    case.close(value, 'loss', rtol=IN_FLOAT32)
    case.close(gradient, 'grad', rtol=2 * IN_FLOAT32, atol=1e-9)


def _mixup_reg(case):
  """Half of the rows, permuted, mixed with the other half; one may be left."""
  positive, perm, ratio = case['targets'] == 1, case['perm'], case['lam']
  x = case['X'].reshape(len(positive), -1)
  first, last = perm, np.arange(len(x) - len(perm), len(x))

  def loss(weights):
    own = jax.nn.log_sigmoid(x @ weights)
    targets = jnp.where(positive, 0, own)
    mixed = mix(ratio, jnp.asarray(x[first]), jnp.asarray(x[last]))
    terms = losses.mixup_log_consistency(
      mixed @ weights, targets[first], targets[last], ratio, offset=OFFSET
    )
    return jnp.mean(terms.sum(1))

  value, gradient = yield jax.value_and_grad(loss), case['W']
  case.value(value, 'loss')
  case.gradient(gradient, 'grad_W')


CHECKS = {
  ('nnpu', 'pu_loss'): _pu_loss,
  ('pumlc', 'vpu_loss'): _vpu_loss,
  ('pumlc', 'mixup_reg'): _mixup_reg,
}
