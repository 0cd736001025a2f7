"""Golden checks of `jnl.aggregate`; see golden_case.py.

The official Dawid-Skene stops by a rule of its own, up to 10,000 steps, where
the posterior still moves in the fourth digit. The official label model starts
from a random multiple of its start and stops early: what is said of its `mu`
is compared, and ours has to be at least as good.
"""

import numpy as np

from jnl import aggregate

MANY = 300  # steps: more move nothing


def check_dawid_skene(case):
  votes = case['L']
  classes = int(votes.max()) + 1
  steps = min(case.hp('n_epochs'), MANY)

  def fit(votes, max_iter):
    return aggregate.dawid_skene(
      votes,
      num_classes=classes,
      abstain_informative=True,
      smoothing=0.0,
      max_iter=max_iter,
      tol=0.0,
    )

  def run(votes):
    shares = aggregate.vote_shares(votes, num_classes=classes)
    return shares, fit(votes, 1), fit(votes, steps)

  shares, first, last = yield run, votes
  case.value(shares, 'init')
  case.value(first.posterior, 'step1_posterior')
  case.value(first.class_balance, 'step1_marginals')
  # There silence is the first symbol.
  case.value(np.roll(first.confusion, 1, -1), 'step1_error_rates')
  exact = {'rtol': 1e-4, 'atol': 1e-5}
  if steps == MANY:
    exact = {'atol': 5e-4}
  case.close(last.posterior, 'posterior', **exact)
  case.close(last.class_balance, 'class_marginals', **exact)
  case.close(np.roll(last.confusion, 1, -1), 'error_rates', **exact)
  right = np.mean(last.posterior.argmax(1) == case['y_true'])
  case.close(right, 'acc', atol=1e-6)


def check_label_model(case):
  votes, balance = case['L'], case['p']
  a, c = votes.shape[1], len(balance)
  mu = np.swapaxes(case['mu'].reshape(a, c, c), 1, 2)
  # The start is random; lr, n_epochs and seed are of a way that is not ours.
  case.skip('mu_init', 'lr', 'n_epochs', 'seed')
  others = ~np.eye(a, dtype=bool)[:, None, :, None] & np.ones((c, 1, c), bool)
  np.testing.assert_array_equal(others.reshape(a * c, a * c), case['mask'])

  def run(votes, balance, mu):
    moments = aggregate.vote_moments(votes, num_classes=c)
    return (
      moments,
      aggregate.label_model_loss(mu, moments, balance),
      aggregate.label_model_posterior(votes, mu, balance),
      aggregate.coverage(votes, num_classes=c),
      aggregate.label_model(votes, num_classes=c, class_balance=balance),
    )

  moments, loss, posterior, coverage, own = yield run, votes, balance, mu
  case.close(moments.reshape(a * c, a * c), 'O', rtol=1e-5, atol=1e-7)
  case.close(loss, 'loss_at_mu', rtol=1e-5)
  case.close(posterior, 'proba', rtol=1e-5, atol=1e-6)
  right = np.einsum('ayy,y->a', mu, balance) / coverage
  case.close(np.clip(right, 1e-6, 1), 'weights', rtol=1e-5)
  if case.has('loss_at_mu'):
    assert own.loss <= case.expected('loss_at_mu') * 1.001
  np.testing.assert_allclose(own.mu, mu, atol=0.01)
  right = np.mean(own.posterior.argmax(1) == case['y_true'])
  case.close(right, 'acc', atol=0.004)


CHECKS = {
  ('dawidskene', 'wrench'): check_dawid_skene,
  ('snorkel', 'metal_label_model'): check_label_model,
}
