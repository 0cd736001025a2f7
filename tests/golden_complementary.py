"""Golden checks of complementary labels; see golden_case.py."""

import jax
import jax.numpy as jnp
import numpy as np

from jnl import losses, noise
from jnl.base import global_mean

OFFSET, FLOOR = 1e-6, 1e-18
GCE_Q = 0.7


def per_example(z, y, q):
  """libcll's losses of an example, by the names of its numbers."""
  c = z.shape[-1]
  forward = losses.forward(z, y, q, offset=OFFSET)
  uniform = noise.complementary(c)
  return {
    # 1 - p + OFFSET, over c - 1.
    'SCL_NL': losses.forward(z, y, uniform, offset=OFFSET / (c - 1))
    - np.log(c - 1).astype(z.dtype),
    'SCL_EXP': losses.scl_exp(z, y),
    'SCL_FWD': forward,
    'FWD_none': forward,
    'DM_none': losses.discriminative(z, y, offset=OFFSET),
    'CPE_I': losses.ce(z, y),
    'CPE_F': forward,
    # Its matrix is the softmax of a parameter that begins at log Q.
    'CPE_T': losses.forward(
      z, y, jax.nn.softmax(jnp.log(q), axis=-1), offset=OFFSET
    ),
    'OP_none': losses.order_preserving(z, y, offset=OFFSET, floor=FLOOR),
    'PC_none': losses.pairwise_comparison(z, y),
  }


def of_sets(z, excluded):
  return {
    'MCL_MAE': losses.mcl_mae(z, excluded),
    'MCL_EXP': losses.mcl_exp(z, excluded),
    'MCL_LOG': losses.mcl_log(z, excluded),
  }


def of_batch(z, y, q, prior, weights):
  """Risks are by label; without a T their matrix is the uniform one."""
  uniform = noise.complementary(len(q)).astype(z.dtype)
  plain, given = (
    losses.complementary_risks(z, y, matrix, prior, weights, by='label')
    for matrix in (uniform, q)
  )
  return {
    'URE_NN': losses.clip_risks(plain),
    'URE_GA': losses.ascend_risks(plain),
    'URE_TNN': losses.clip_risks(given),
    'URE_TGA': losses.ascend_risks(given),
    'SCARCE_none': losses.scarce(z, y, weights),
  }


def check_libcll(case):
  """Means over the batch, of MCL sums."""
  y, q, prior = case['comp_labels'], case['Q'], case['class_priors']
  excluded = np.asarray(case['mcl_multi_hot'] > 0)
  ones = np.ones(len(y), case.dtype)

  def all_of(z):
    return {
      **{k: global_mean(v, ones) for k, v in per_example(z, y, q).items()},
      **{k: jnp.sum(v) for k, v in of_sets(z, excluded).items()},
      **of_batch(z, y, q, prior, ones),
    }

  def run(z):
    left = y[:, None] != jnp.arange(z.shape[-1])
    ruled_out = jnp.mean(losses.rule_out(z, left, offset=OFFSET))
    unbiased = jnp.mean(losses.backward(z, y, q))
    return all_of(z), jax.jacrev(all_of)(z), ruled_out, unbiased

  values, slopes, ruled_out, unbiased = yield run, case['logits']
  compare(case, values, slopes)
  case.value(unbiased, 'valid_URE', 10.0)
  case.value(values['FWD_none'], 'valid_SCEL')
  # In float32 1 + 1e-6 is 1 + 9.5e-7, which `rule_out` takes p from.
  double = case.precision == 'f64'
  case.close(ruled_out, 'loss_SCL_NL', rtol=1e-9 if double else 5e-3)


def compare(case, values, slopes):
  """With the tolerances that the official numbers allow."""
  for name, value in values.items():
    names = f'loss_{name}', f'grad_{name}'
    single = name.startswith(('URE', 'SCARCE'))
    official = case.expected(names[1]) if case.has(names[1]) else slopes[name]
    if single and case.precision == 'f64':
      # Officially 1 / counts, 1 - 1 / c and matrices stay in float32.
      case.close(value, names[0], rtol=2e-7)
      case.close(slopes[name], names[1], rtol=2e-7, atol=1e-9)
    elif name == 'CPE_I' and not np.isfinite(official).all():
      # The logarithm of a softmax that is nearly 0: in float32 it has lost its
      # digits, and its gradient is infinite.
      case.close(value, names[0], rtol=1e-3)
      rows = np.isfinite(official).all(axis=1)
      np.testing.assert_allclose(
        slopes[name][rows], official[rows], rtol=1e-4, atol=1e-5
      )
    else:
      case.value(value, names[0], 10.0)
      case.gradient(slopes[name], names[1], 10.0)


def check_ishida_and_climage(case):
  """The first code has risks by class, CLImage both; Q is uniform."""
  y, prior = case['comp_labels'], case['class_priors']
  c = len(prior)
  q, ones = noise.complementary(c), np.ones(len(y), case.dtype)
  by_class = {
    'mae': lambda z, y: 2 * losses.mae(z, y),
    'cce': losses.ce,
    # Weighted by the columns of the inverse: their sums are all 1.
    'wmae': lambda z, y: 2 * losses.mae(z, y),
    'gce': lambda z, y: losses.gce(z, y, q=GCE_Q),
    # Not 4 (1 - p_y), as reverse cross-entropy is.
    'sl': lambda z, y: 0.1 * losses.ce(z, y) + 3 + losses.mae(z, y),
  }

  def risks(z, by='class', **loss):
    return losses.complementary_risks(z, y, q, prior, ones, by=by, **loss)

  def first_pc(z):
    mean = jnp.mean(losses.pairwise_comparison(z, y))
    return (c - 1) * mean - (c - 1) * (c - 3) / 2

  def totals(z):
    return {
      'free': jnp.sum(risks(z)),
      'nn': losses.clip_risks(risks(z)),
      'forward': jnp.mean(losses.forward(z, y, q)),
      'pc': first_pc(z),
      'ga': losses.ascend_risks(risks(z, 'label')),
    }

  def run(z):
    vectors = {k: risks(z, loss=loss) for k, loss in by_class.items()}
    return totals(z), jax.jacrev(totals)(z), vectors, risks(z, 'label')

  values, slopes, vectors, by_label = yield run, case['logits']
  for name in ('free', 'nn', 'forward', 'pc'):
    case.value(values[name], f'loss_{name}', 10.0)
    case.gradient(slopes[name], f'grad_{name}', 10.0)
  case.value(values['ga'], 'climage_ga_loss', 10.0)
  case.gradient(slopes['ga'], 'climage_ga_grad', 10.0)
  case.value(by_label, 'climage_ga_loss_vec', 10.0)
  for name, vector in vectors.items():
    case.value(vector, f'climage_rob_{name}_vec', 10.0)
  for name in ('free', 'nn'):
    case.close(
      vectors['cce'], f'class_loss_vector_{name}', rtol=1e-4, atol=1e-5
    )


CHECKS = {
  ('libcll', 'losses'): check_libcll,
  ('complementary', 'ishida_and_climage'): check_ishida_and_climage,
}
