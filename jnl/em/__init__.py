"""Expectation maximization, one example at a time: what do labels say of y?

Imprecise labels are evidence about a latent label: noisy, partial and missing
ones differ in the log weights e_k = log P(evidence | y = k) [..., c] alone. The
E-step is `posterior`, softmax(log p + e); `log_likelihood` is log sum_k p_k
exp(e_k), whose gradient by the logits is the posterior less p.

Evidence, posterior and likelihood
  posterior                 of the true label, given any evidence
  log_likelihood            of any evidence
  noisy_evidence            e of a noisy label
  noisy_posterior           given a noisy label
  noisy_log_likelihood      of a noisy label
  candidate_posterior       given a set of candidates
  candidate_log_likelihood  of a set of candidates
  mixed_evidence            e of a batch of all kinds
  mixed_posterior           given such a batch
  mixed_log_likelihood      of such a batch
A transition matrix that is learned
  noise_logits              its logits, from a free matrix
  row_transition            P(noisy | clean), rows on the simplex
  column_transition         columns on the simplex
Steps of imprecise label learning, as losses
  noisy_loss                noisy labels
  partial_loss              candidate sets
  semi_loss                 missing labels
  mixed_loss                labels of every kind
Their terms
  posterior_cross_entropy   to a posterior, under the same evidence (M-step)
  consistency               of one view to the prediction on another
  class_balance             of the mean prediction to uniform classes
  mean_prediction           over all examples of all devices
  align                     predictions over their running mean
  keep_top                  the k largest probabilities alone

Evidence that is impossible (as an empty set, or a label that no class can turn
into) has the log-likelihood -inf with gradient 0, and leaves the prediction as
it is. So does, inside jit, a label out of range; its likelihood is NaN.
"""

from jnl.em._ill import mixed_loss, noisy_loss, partial_loss, semi_loss
from jnl.em._posteriors import (
  candidate_log_likelihood,
  candidate_posterior,
  log_likelihood,
  mixed_evidence,
  mixed_log_likelihood,
  mixed_posterior,
  noisy_evidence,
  noisy_log_likelihood,
  noisy_posterior,
  posterior,
)
from jnl.em._terms import (
  align,
  class_balance,
  consistency,
  keep_top,
  mean_prediction,
  posterior_cross_entropy,
)
from jnl.em._transition import (
  column_transition,
  noise_logits,
  row_transition,
)

__all__ = [
  'align',
  'candidate_log_likelihood',
  'candidate_posterior',
  'class_balance',
  'column_transition',
  'consistency',
  'keep_top',
  'log_likelihood',
  'mean_prediction',
  'mixed_evidence',
  'mixed_log_likelihood',
  'mixed_loss',
  'mixed_posterior',
  'noise_logits',
  'noisy_evidence',
  'noisy_log_likelihood',
  'noisy_loss',
  'noisy_posterior',
  'partial_loss',
  'posterior',
  'posterior_cross_entropy',
  'row_transition',
  'semi_loss',
]


def __dir__() -> list[str]:
  return __all__
