"""Golden checks of `jnl.automata`.

`exact_*` are enumerations: all are compared. `official_*` are compared where
they are a known function of exact quantities; where they are not, the check
says why. Counts and bags go through every way there is to compute them.
"""

from golden_case import VALUE
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, logsumexp

from jnl import automata

# The official code keeps probabilities off 0 and 1 by this.
CLIP = 1e-12


def _probability(case, log_prob, name):
  """Compares a probability, also where it is far below `ABSOLUTE`.

  The relative error of a probability is the absolute error of its logarithm,
  to which the input adds a few roundings of its own size.
  """
  if not case.has(name):
    return
  log_prob = np.asarray(log_prob)
  case.value(np.exp(log_prob), name)
  expected = np.asarray(case.expected(name), np.float64)
  some = expected >= np.finfo(expected.dtype).tiny
  np.testing.assert_allclose(
    log_prob[some],
    np.log(expected[some]),
    rtol=16 * np.finfo(case.dtype).eps,
    atol=VALUE[case.precision],
    err_msg=f'log {name} ({case.precision})',
  )
  assert np.all(log_prob[~some] < np.log(np.finfo(np.float64).tiny) + 1)


def _clipped(log_prob):
  return np.clip(np.exp(log_prob), CLIP, 1 - CLIP)


def _log_odds(logits):
  return logits[..., 1] - logits[..., 0]


def _padded(z, fill):
  """Bags [..., m, 2] of a length that many share: compiled once for all."""
  extra = -z.shape[-2] % 8
  width = [(0, 0)] * (z.ndim - 2) + [(0, extra), (0, 0)]
  return np.pad(z, width, constant_values=fill)


@jax.jit
def _proportion(z, count, mask):
  """All that is compared, each in both ways."""
  m = len(z)
  none = jnp.zeros_like(count)
  every = automata.count_automaton(jnp.arange(m + 1), m)
  return {
    'exactly': [
      automata.infer(automata.count_automaton(count, m), z, mask),
      automata.count(z, count, mask),
    ],
    'up_to': [
      automata.infer(automata.interval_automaton(none, count, m), z, mask),
      automata.interval(z, none, count, mask),
    ],
    'distribution': [
      automata.infer(every, z, mask).log_likelihood,
      automata.count_log_probs(_log_odds(z), mask),
    ],
    'official': jax.grad(_official_sup)(z, count, mask),
  }


def _official_sup(z, count, mask):
  """-log of P(= c) / P(<= c), without gradient where that is clipped."""
  ratio = (
    automata.count(z, count, mask).log_likelihood
    - automata.interval(z, jnp.zeros_like(count), count, mask).log_likelihood
  )
  sup = jnp.exp(ratio)
  return jnp.where((sup >= CLIP) & (sup <= 1 - CLIP), -ratio, 0)


def _label_proportion(case):
  case.skip('probs')  # the exponentials
  case.skip('official_em')  # one wrong emission in its backward pass
  z = case['log_probs']
  m = len(z)
  padded = _padded(z, jnp.nan)
  ours = jax.device_get(
    _proportion(padded, case['count'], np.arange(len(padded)) < m)
  )
  for result in ours['exactly']:
    case.value(result.posterior[:m], 'exact_em')
    _probability(case, result.log_likelihood, 'exact_prob_count_eq_c')
    case.value(_clipped(result.log_likelihood)[None], 'countloss_prob')
  for result in ours['up_to']:
    _probability(case, result.log_likelihood, 'exact_prob_count_le_c')
  for log_probs in ours['distribution']:
    _probability(case, log_probs[: m + 1], 'exact_count_distribution')
  for exactly, up_to in zip(ours['exactly'], ours['up_to'], strict=True):
    ratio = exactly.log_likelihood - up_to.log_likelihood
    case.value(_clipped(ratio), 'official_sup')
  gradient = ours['official'][:m]
  case.gradient(gradient, 'official_grad_neglogsup_wrt_logprobs')


@jax.jit
def _instances(z, mask):
  """Evidence of some and of no positives, each in two ways."""
  ones, zeros = jnp.ones(len(z), int), jnp.zeros(len(z), int)
  return [
    (
      automata.infer(automata.at_least_automaton(1, 1), z, mask),
      automata.infer(automata.count_automaton(0, 0), z, mask),
    ),
    (automata.at_least(z, ones, mask), automata.count(z, zeros, mask)),
    (
      automata.multiple_instance(z, ones == 1, mask),
      automata.multiple_instance(z, zeros == 1, mask),
    ),
  ]


def _multiple_instance(case):
  z, positive = case['log_probs'], np.asarray(case['bag_targets']) == 1
  case.skip('probs')  # the exponentials
  case.skip('official_em')  # two slips in its forward and backward passes
  bags, m, _ = z.shape
  padded = _padded(z, jnp.nan)
  lengths = np.asarray(case['lengths'])[:, None]
  mask = np.arange(padded.shape[1]) < lengths
  alike = -(-bags // 4) * 4  # bags are repeated to one number: compiled once
  results = _instances(
    np.resize(padded, (alike, *padded.shape[1:])),
    np.resize(mask, (alike, mask.shape[1])),
  )
  results = jax.device_get(results)
  # The reference puts class 0 into slots without an instance; we put nothing.
  empty = np.eye(2, dtype=case.dtype)[0]
  for some, none in results:
    posterior = np.where(
      positive[:, None, None], some.posterior[:bags], none.posterior[:bags]
    )
    posterior = np.where(mask[..., None], posterior, empty)[:, :m]
    case.value(posterior, 'exact_em')
    value = some.log_likelihood[:bags]
    _probability(case, value, 'exact_prob_positive_bag')
    case.value(_clipped(value), 'official_sup')


@jax.jit
def _both_ways(z, table):
  """Through `pair` and through `infer`."""
  return [
    automata.pair(z, table),
    automata.infer(automata.pair_automaton(table), z),
  ]


def _equal(case, z, official_shape=None):
  """exact_prob and official_sup are P(equal), whatever the evidence."""
  for result in _both_ways(z, automata.similarity(jnp.array(True))):
    _probability(case, result.log_likelihood, 'exact_prob')
    sup = _clipped(result.log_likelihood)
    case.value(sup.reshape(official_shape or sup.shape), 'official_sup')


def _pair_similarity(case):
  z, similar = case['log_probs'], case['pair_targets'] == 1
  case.skip('probs', 'prior')  # the exponentials; not used by the reference
  for result in _both_ways(z, automata.similarity(similar)):
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')
  _equal(case, z)


def _pair_similarity_prior(case):
  z, similar = case['log_probs'], case['pair_targets'] == 1
  case.skip('probs')  # the exponentials
  # The reference gives the negative pair the weight prior^2.
  table = automata.similarity(similar, prior=1 - case['prior'])
  for result in _both_ways(z, table):
    case.value(result.posterior, 'exact_em')
    if case.precision == 'f32':
      case.value(result.posterior, 'official_em')
  case.skip('official_em')  # its weights are in single precision even in f64
  _equal(case, z)


def _pair_comparison(case):
  z = case['log_probs']
  case.skip('probs', 'prior', 'pair_targets')  # the exponentials; not used
  case.skip('official_sup')  # identically 1
  for result in _both_ways(z, automata.comparison()):
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')
    _probability(case, result.log_likelihood, 'exact_prob')


def _pair_sim_conf(case):
  z = case['log_probs']
  case.skip('probs', 'prior')  # the exponentials; not used
  table = automata.similarity_confidence(case['pair_targets'])
  for result in _both_ways(z, table):
    q = result.posterior
    case.value(q, 'exact_em')
    # The official code leaves the confidence out of the second instance.
    case.value(q.at[:, 1].set(jax.nn.softmax(z[:, 1])), 'official_em')
  _equal(case, z, (-1, 1))


def _pair_conf_diff(case):
  z, difference = case['log_probs'], case['pair_targets']
  case.skip('probs', 'prior')  # the exponentials; not used
  case.skip('exact_prob')  # not a number
  table = automata.confidence_difference(difference)
  for result in _both_ways(z, table):
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')

  # official_sup: the four pairs, those of the wrong sign left out, and the
  # others without the weights.
  forward = automata.comparison()
  sign = jnp.where(difference[:, None, None] >= 0, forward, forward.T)
  first, second = jnp.array([0, 1, 1, 0]), jnp.array([0, 1, 0, 1])
  only = jnp.full([4, 1, 2, 2], -jnp.inf)
  only = only.at[jnp.arange(4), 0, first, second].set(0)
  total, _ = _both_ways(z, sign)
  for cell in _both_ways(z, only + sign):
    sup = _clipped(cell.log_likelihood - total.log_likelihood)
    case.value(sup.T, 'official_sup')


def _positive_confidence(case):
  z, confidence = jnp.log(case['probs']), case['confidence']
  infer = jax.jit(automata.positive_confidence)
  case.value(infer(z, confidence).posterior, 'official_em')
  each = infer(z[:, None], confidence[:, None])
  case.value(each.posterior[:, 0], 'official_em')


@jax.jit
def _messages(log_odds, factor, mask):
  messages, log_z = automata.count_messages(log_odds, factor, mask)
  return messages, log_z, automata.count_log_probs(log_odds, mask)


def _count_messages(case):
  log_odds, factor = np.asarray(case['L']), np.asarray(case['logphi'])
  mask = np.asarray(case['mask'], bool)
  bags, m = log_odds.shape
  # Repeated to one number of bags, and most padded to one length, as
  # everywhere with what must not be read: compiled once for many.
  extra = 16 - m if 5 < m < 16 else 0
  alike = lambda a, extra, fill: np.resize(
    np.pad(a, ((0, 0), (0, extra)), constant_values=fill),
    (6, a.shape[1] + extra),
  )
  padded = alike(log_odds, extra, np.nan), alike(mask, extra, False)
  found = _messages(padded[0], alike(factor, extra, 0.0), padded[1])
  messages, log_z, log_probs = (np.asarray(a)[:bags] for a in found)
  messages, log_probs = messages[:, :m], log_probs[:, : m + 1]
  expected = case.expected('M')
  np.testing.assert_array_equal(np.isinf(messages), np.isinf(expected))
  finite = np.isfinite(expected)
  # A rounding of the input is one of each message and of log Z: 60 and more.
  scale = np.abs(np.where(mask, log_odds, 0)).max(initial=1)
  atol = 4 * np.finfo(case.dtype).eps * scale + VALUE[case.precision] / 10
  np.testing.assert_allclose(
    np.where(finite, messages, 0), np.where(finite, expected, 0), atol=atol
  )
  np.testing.assert_array_equal(
    np.asarray(messages)[~finite], expected[~finite]
  )
  posterior = np.where(mask, expit(log_odds + messages), 0)
  np.testing.assert_allclose(posterior, case.expected('marginals'), atol=atol)
  np.testing.assert_allclose(
    log_z, case.expected('logZ'), rtol=VALUE[case.precision], atol=m * atol
  )
  # The whole distribution, in log space.
  joint = log_probs + factor
  found = joint - logsumexp(joint, axis=-1, keepdims=True)
  expected = case.expected('log_count_post')
  np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
  possible = np.isfinite(expected)
  np.testing.assert_allclose(
    np.asarray(found)[possible],
    expected[possible],
    rtol=10 * VALUE[case.precision],
    atol=m * atol,
  )


CHECKS = {
  ('bp', 'count_messages'): _count_messages,
  ('nfa', 'label_proportion'): _label_proportion,
  ('nfa', 'multiple_instance'): _multiple_instance,
  ('nfa', 'pair_similarity'): _pair_similarity,
  ('nfa', 'pair_similarity_prior'): _pair_similarity_prior,
  ('nfa', 'pair_comparison'): _pair_comparison,
  ('nfa', 'pair_sim_conf'): _pair_sim_conf,
  ('nfa', 'pair_conf_diff'): _pair_conf_diff,
  ('nfa', 'positive_confidence'): _positive_confidence,
}
