"""Golden checks of `jnl.noise`, and the tests of draws they share with others.

See golden_case.py. Official draws come from numpy generators: probabilities are
compared number by number, and the stored draws as well as our own with these
probabilities.
"""

import jax
import numpy as np
import scipy.stats

from jnl import noise

# So small that thousands of runs with other keys stay green; a wrong matrix
# is many orders of magnitude below (see the controls in noise_test.py).
SIGNIFICANCE = 1e-6
LEAST_EXPECTED = 10
KEY = jax.random.key(0)
# All our draws have this size: programs with random numbers compile slowly.
DRAWS = 1000


def p_value(noisy, probs):
  """How well labels [n] fit probabilities [n, c]; 0 for an impossible label.

  The smaller p-value of two chi-square tests: how often each class was drawn,
  and how often the likeliest, second likeliest, ... one of each row.
  """
  noisy = np.asarray(noisy)
  probs = np.asarray(probs, np.float64)
  if np.any(probs[np.arange(len(noisy)), noisy] == 0):
    return 0.0
  onehot = np.eye(probs.shape[1])[noisy]
  order = np.argsort(-probs, axis=1, kind='stable')
  pairs = [
    (onehot, probs),
    (
      np.take_along_axis(onehot, order, axis=1),
      np.take_along_axis(probs, order, axis=1),
    ),
  ]
  return min(_chi_square(o.sum(0), e.sum(0)) for o, e in pairs)


def _chi_square(observed, expected):
  """Cells that are expected too rarely are pooled, at need with one that is."""
  order = np.argsort(-expected)
  cells = np.stack([observed, expected])[:, order]
  often = cells[1] >= LEAST_EXPECTED
  pooled = cells[:, ~often].sum(axis=1)
  cells = cells[:, often]
  if pooled[1] >= LEAST_EXPECTED or not cells.size:
    cells = np.column_stack([cells, pooled])
  else:
    cells[:, -1] += pooled
  observed, expected = cells
  statistic = np.sum((observed - expected) ** 2 / expected)
  # Rows that differ vary less than one multinomial: conservative, as is not
  # taking one degree of freedom off.
  return scipy.stats.chi2.sf(statistic, len(expected))


def assert_drawn(noisy, probs):
  """The labels can have been drawn from these probabilities."""
  assert p_value(noisy, probs) > SIGNIFICANCE


def _matrix(transition, rate='noise', labels='labels', noisy='noisy_labels'):
  """A check of `transition(c, rate)` and of the draws, if there are any."""

  def check(case):
    c, p = len(case['P']), case.hp(rate)
    clean = case[labels] if labels in case else np.arange(c)
    some = np.resize(clean, DRAWS)

    def run():
      matrix = transition(c, p)
      draw = case.precision == 'f32' and noise.corrupt(KEY, some, matrix)
      return matrix, draw

    matrix, draw = yield (run,)
    case.value(matrix, 'P')
    case.skip('seed')  # of a numpy generator
    expected = np.float64(case.arrays['P'])
    if case.has(noisy):
      assert_drawn(case.expected(noisy), expected[clean])
    if draw:
      assert_drawn(draw.labels, expected[some])
      np.testing.assert_array_equal(draw.flipped, draw.labels != some)

  return check


def _own_draw(case, probs):
  """Our draws from the probabilities [n, c] of a file, each row repeatedly."""
  if case.precision == 'f64':
    return ()
  rows = np.resize(np.arange(len(probs)), DRAWS)
  labels, probs = case['labels'][rows], probs[rows]
  return labels, probs, noise.corrupt_each(KEY, labels, probs)


def _assert_own_draw(own):
  if own:
    labels, probs, draw = own
    assert_drawn(draw.labels, probs)
    np.testing.assert_array_equal(draw.flipped, draw.labels != labels)


def _true_superclass(case):
  case.equal(noise.CIFAR100_COARSE, 'fine_to_coarse_alphabetical')
  certain, some = yield (
    lambda: [noise.cifar100_superclasses(p) for p in (1.0, 0.4)],
  )
  case.equal(certain.argmax(1), 'next_fine')
  case.value(some, 'P_at_0p4')


def _part_dependent(case):
  x, labels, flip_rates = case['features'], case['labels'], case['flip_rates']
  rate, std = case.hp('rate'), case.hp('norm_std')

  def run(x, flip_rates, w):
    probs = noise.part_dependent_probs(x, labels, flip_rates, w)
    rates = noise.truncated_rates(KEY, DRAWS, rate, std=std)
    return probs, _own_draw(case, probs), rates

  probs, draw, own = yield run, x, flip_rates, case['W']
  assert probs.dtype == case.dtype
  # The official code computes in float32 whatever the file says, with scores
  # of size |x| that go through exp.
  case.close(probs, 'P', rtol=1e-5, atol=1e-5)
  if case.has('noisy_labels'):
    assert_drawn(case.expected('noisy_labels'), probs)
  _assert_own_draw(draw)
  rates = scipy.stats.truncnorm(-rate / std, (1 - rate) / std, rate, std)
  for sample in (case.expected('flip_rates'), own):
    assert scipy.stats.kstest(sample, rates.cdf).pvalue > SIGNIFICANCE


def _pmd(kind):
  def check(case):
    eta, factor = case['eta'], case.hp('factor')
    case.skip('labels')  # the noise does not look at them

    def run(eta):
      probs = noise.pmd_probs(eta, kind=kind, factor=factor)
      whole = noise.pmd_probs(eta, kind=kind, factor=1.0)
      return probs, whole, _own_draw(case, probs)

    probs, whole, draw = yield run, eta
    u, s = case['top2'].T
    rows = np.arange(len(eta))
    case.value(probs[rows, u], 'prob_top1')
    case.value(1 - probs[rows, s], 'prob_top1')
    case.value(1 - whole[rows, u], 'f_us')
    assert np.all(np.sum(probs > 0, axis=1) <= 2)
    if case.has('noisy_labels'):
      assert_drawn(case.expected('noisy_labels'), probs)
    _assert_own_draw(draw)

  return check


CHECKS = {
  ('noise', 'uniform_exclusive'): _matrix(noise.symmetric),
  ('noise', 'mnist_asym'): _matrix(lambda c, r: noise.mnist_asymmetric(r)),
  ('noise', 'cifar10_asym'): _matrix(lambda c, r: noise.cifar10_asymmetric(r)),
  ('noise', 'pairflip'): _matrix(noise.pair_flip),
  ('noise', 'cifar100_asym_index_blocks'): _matrix(
    lambda c, r: noise.cifar100_index_blocks(r)
  ),
  ('noise', 'cifar100_asym_true_superclass'): _true_superclass,
  ('noise', 'instance_dependent_pdn'): _part_dependent,
  ('noise', 'pmd_type1'): _pmd(1),
  ('noise', 'pmd_type2'): _pmd(2),
  ('noise', 'pmd_type3'): _pmd(3),
  ('echoalign', 'noise_symmetric'): _matrix(
    noise.symmetric, 'rate', 'y', 'noisy'
  ),
  ('echoalign', 'noise_pairflip'): _matrix(
    noise.pair_flip, 'rate', 'y', 'noisy'
  ),
}
