"""Golden checks of `jnl.automata`.

`exact_*` are enumerations: all are compared. `official_*` are compared where
they are a known function of exact quantities; where they are not, the check
says why. Counts and bags go through every way there is to compute them, those
of all files together, padded to one length with what must not be read.
"""

from golden_case import VALUE
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
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


def _bags_together(function):
  """All bags at once, of pairs `([bags, m, ...], what it is padded with)`.

  The first of them is the one whose m is made that of the longest.
  """

  def together(requests):
    longest = max(request[0][0].shape[1] for request in requests)

    def padded(request):
      extra = longest - request[0][0].shape[1]
      return [
        np.pad(
          array,
          [(0, 0), (0, extra), (0, 0)][: array.ndim],
          constant_values=fill,
        )
        for array, fill in request
      ]

    arrays = zip(*map(padded, requests), strict=True)
    found = jax.device_get(jax.jit(function)(*map(np.concatenate, arrays)))
    ends = np.cumsum([len(request[0][0]) for request in requests])[:-1]
    parts = [np.split(leaf, ends) for leaf in jax.tree.leaves(found)]
    whole = jax.tree.structure(found)
    return [
      jax.tree.unflatten(whole, leaves) for leaves in zip(*parts, strict=True)
    ]

  return together


def _proportion(z, mask, count):
  """All that is compared of a bag, each in both ways."""
  m = len(z)
  none = jnp.zeros_like(count)
  every = automata.count_automaton(jnp.arange(m + 1), m)

  def official_sup(z):
    """-log of P(= c) / P(<= c), without gradient where that is clipped."""
    exactly = automata.count(z, count, mask)
    up_to = automata.interval(z, none, count, mask)
    ratio = exactly.log_likelihood - up_to.log_likelihood
    sup = jnp.exp(ratio)
    inside = (sup >= CLIP) & (sup <= 1 - CLIP)
    return jnp.where(inside, -ratio, 0), (exactly, up_to)

  gradient, (exactly, up_to) = jax.grad(official_sup, has_aux=True)(z)
  exact_count = automata.count_automaton(count, m)
  exact_interval = automata.interval_automaton(none, count, m)
  return {
    'exactly': [automata.infer(exact_count, z, mask), exactly],
    'up_to': [automata.infer(exact_interval, z, mask), up_to],
    'distribution': [
      automata.infer(every, z, mask).log_likelihood,
      automata.count_log_probs(_log_odds(z), mask),
    ],
    'official': gradient,
  }


def _label_proportion(case):
  case.skip('probs')  # the exponentials
  case.skip('official_em')  # one wrong emission in its backward pass
  z = case['log_probs']
  m = len(z)
  bag = (z[None], np.nan), (np.ones([1, m], bool), False)
  ours = yield (*bag, (case['count'][None], 0))
  ours = jax.tree.map(lambda a: a[0], ours)
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


def _instances(z, mask):
  """Evidence of some and of no positives, each in two ways."""
  ones, zeros = np.ones(len(z), int), np.zeros(len(z), int)
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
  m = z.shape[1]
  mask = np.arange(m) < case['lengths'][:, None]
  results = yield (z, np.nan), (mask, False)
  # The reference puts class 0 into slots without an instance; we put nothing.
  empty = np.eye(2, dtype=case.dtype)[0]
  for some, none in results:
    posterior = np.where(
      positive[:, None, None], some.posterior[:, :m], none.posterior[:, :m]
    )
    posterior = np.where(mask[..., None], posterior, empty)
    case.value(posterior, 'exact_em')
    value = some.log_likelihood
    _probability(case, value, 'exact_prob_positive_bag')
    case.value(_clipped(value), 'official_sup')


def _both_ways(z, table):
  """Through `pair` and through `infer`."""
  return [
    automata.pair(z, table),
    automata.infer(automata.pair_automaton(table), z),
  ]


def _with_equal(z, table):
  """And of the pair being equal, whatever the evidence."""
  return _both_ways(z, table), _both_ways(z, automata.similarity(np.True_))


def _compare_equal(case, results, official_shape=None):
  """exact_prob and official_sup are P(equal), whatever the evidence."""
  for result in results:
    _probability(case, result.log_likelihood, 'exact_prob')
    sup = _clipped(result.log_likelihood)
    case.value(sup.reshape(official_shape or sup.shape), 'official_sup')


def _pair_similarity(case):
  z, similar = case['log_probs'], case['pair_targets'] == 1
  case.skip('probs', 'prior')  # the exponentials; not used by the reference
  results, equal = yield (
    lambda z: _with_equal(z, automata.similarity(similar)),
    z,
  )
  for result in results:
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')
  _compare_equal(case, equal)


def _pair_similarity_prior(case):
  z, similar = case['log_probs'], case['pair_targets'] == 1
  case.skip('probs')  # the exponentials
  # The reference gives the negative pair the weight prior^2.
  results, equal = yield (
    lambda z, prior: _with_equal(
      z, automata.similarity(similar, prior=1 - prior)
    ),
    z,
    case['prior'],
  )
  for result in results:
    case.value(result.posterior, 'exact_em')
    if case.precision == 'f32':
      case.value(result.posterior, 'official_em')
  case.skip('official_em')  # its weights are in single precision even in f64
  _compare_equal(case, equal)


def _pair_comparison(case):
  z = case['log_probs']
  case.skip('probs', 'prior', 'pair_targets')  # the exponentials; not used
  case.skip('official_sup')  # identically 1
  results = yield lambda z: _both_ways(z, automata.comparison()), z
  for result in results:
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')
    _probability(case, result.log_likelihood, 'exact_prob')


def _pair_sim_conf(case):
  z = case['log_probs']
  case.skip('probs', 'prior')  # the exponentials; not used
  results, equal = yield (
    lambda z, targets: _with_equal(z, automata.similarity_confidence(targets)),
    z,
    case['pair_targets'],
  )
  for result in results:
    q = result.posterior.copy()
    case.value(q, 'exact_em')
    # The official code leaves the confidence out of the second instance.
    q[:, 1] = scipy.special.softmax(z[:, 1], axis=-1)
    case.value(q, 'official_em')
  _compare_equal(case, equal, (-1, 1))


def _pair_conf_diff(case):
  z, difference = case['log_probs'], case['pair_targets']
  case.skip('probs', 'prior')  # the exponentials; not used
  case.skip('exact_prob')  # not a number
  # official_sup: the four pairs, those of the wrong sign left out, and the
  # others without the weights.
  only = np.full([4, 1, 2, 2], -np.inf, case.dtype)
  only[np.arange(4), 0, [0, 1, 1, 0], [0, 1, 0, 1]] = 0

  def run(z, difference):
    forward = automata.comparison()
    sign = jnp.where(difference[:, None, None] >= 0, forward, forward.T)
    table = automata.confidence_difference(difference)
    return [_both_ways(z, t) for t in (table, sign, only + sign)]

  results, (total, _), cells = yield run, z, difference
  for result in results:
    case.value(result.posterior, 'exact_em')
    case.value(result.posterior, 'official_em')
  for cell in cells:
    sup = _clipped(cell.log_likelihood - total.log_likelihood)
    case.value(sup.T, 'official_sup')


def _positive_confidence(case):
  z, confidence = np.log(case['probs']), case['confidence']
  infer = automata.positive_confidence
  alone, each = yield (
    lambda z, c: (infer(z, c), infer(z[:, None], c[:, None])),
    z,
    confidence,
  )
  case.value(alone.posterior, 'official_em')
  case.value(each.posterior[:, 0], 'official_em')


def _messages(log_odds, mask, factor):
  messages, log_z = automata.count_messages(log_odds, factor, mask)
  return messages, log_z, automata.count_log_probs(log_odds, mask)


def _count_messages(case):
  log_odds, factor = case['L'], case['logphi']
  mask = case['mask'] == 1
  m = log_odds.shape[1]
  found = yield (log_odds, np.nan), (mask, False), (factor, 0.0)
  messages, log_z, log_probs = found
  messages, log_probs = messages[:, :m], log_probs[:, : m + 1]
  # A rounding of the input is one of each message and of log Z: 60 and more.
  scale = np.abs(np.where(mask, log_odds, 0)).max(initial=1)
  value = VALUE[case.precision]
  atol = 4 * np.finfo(case.dtype).eps * scale + value / 10
  case.close(messages, 'M', rtol=1e-7, atol=atol)
  posterior = np.where(mask, expit(log_odds + messages), 0)
  case.close(posterior, 'marginals', rtol=1e-7, atol=atol)
  case.close(log_z, 'logZ', rtol=value, atol=m * atol)
  # The whole distribution, in log space.
  joint = log_probs + factor
  found = joint - logsumexp(joint, axis=-1, keepdims=True)
  case.close(found, 'log_count_post', rtol=10 * value, atol=m * atol)


CHECKS = {
  ('bp', 'count_messages'): (_count_messages, _bags_together(_messages)),
  ('nfa', 'label_proportion'): (
    _label_proportion,
    _bags_together(jax.vmap(_proportion)),
  ),
  ('nfa', 'multiple_instance'): (
    _multiple_instance,
    _bags_together(_instances),
  ),
  ('nfa', 'pair_similarity'): _pair_similarity,
  ('nfa', 'pair_similarity_prior'): _pair_similarity_prior,
  ('nfa', 'pair_comparison'): _pair_comparison,
  ('nfa', 'pair_sim_conf'): _pair_sim_conf,
  ('nfa', 'pair_conf_diff'): _pair_conf_diff,
  ('nfa', 'positive_confidence'): _positive_confidence,
}
