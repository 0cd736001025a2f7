"""Golden checks of `jnl.transition`; see golden_case.py.

The official fit of HOC ends somewhere around the least loss, at a constant
rate; here the loss is less, and T and p within .02.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jnl import base, transition
from jnl.neighbors import knn

QUANTILE = 0.97


def check_anchors(case):
  """The filter that writes into the array gave what the pure one gives."""
  probs, labels = case['noisy_posterior'], case['noisy_labels']
  case.skip('T_true')  # of nothing that is compared

  def run(probs, labels):
    return (
      transition.anchor(probs).transition,
      transition.dual_t(probs, labels, quantile=QUANTILE),
    )

  largest, dual = yield run, probs, labels
  case.value(largest, 'T_anchor')
  for name in ('filtered_official', 'filtered_pure'):
    case.value(dual.anchor, f'T_anchor_{name}')
  case.value(dual.anchor, 'T_club')
  case.value(dual.counted, 'T_spade')
  case.value(dual.transition, 'T_dual')


def check_vol_min(case):
  logits, labels, weights = case['logits'], case['labels'], case['w']
  lam = case.hp('lam')
  case.skip('hp_init')  # how the weights were drawn

  def run(logits, labels, weights):
    matrix = transition.vol_min_transition(weights)
    loss = lambda logits, weights: base.global_mean(
      transition.vol_min_loss(logits, labels, weights, lam=lam),
      jnp.ones(len(labels)),
    )
    return (
      matrix,
      transition.vol_min_penalty(matrix),
      transition.vol_min_loss(logits, labels, weights, lam=0).mean(),
      jax.value_and_grad(loss, (0, 1))(logits, weights),
    )

  matrix, volume, fit, (loss, gradients) = yield run, logits, labels, weights
  case.value(matrix, 'T')
  case.value(volume, 'vol')
  case.value(fit, 'ce')
  case.value(loss, 'loss')
  case.gradient(gradients[0], 'grad_logits')
  case.gradient(gradients[1], 'grad_w')


def check_neighbors(case):
  """Neighbors, counts and votes, and the fit."""
  x, labels = case['X'], case['labels']
  matrix, prior = case['T_in'], case['p_in']
  c = len(prior)
  case.skip('true', 'p0')  # of nothing that is compared; p starts uniform here

  def run(x, labels, matrix, prior):
    near = knn(x, 9, metric='cosine')
    return (
      near.index,
      transition.consensus_counts(labels, near.index, c),
      transition.consensus(matrix, prior),
      transition.hoc(labels, near, c),
      transition.simifeat_votes(labels, x, c),
    )

  index, counted, made, found, flags = yield run, x, labels, matrix, prior
  near = np.concatenate([labels[:, None], labels[index[:, :2]]], axis=1)
  case.equal(near, 'knn3_labels')
  for i, name in enumerate(('c1', 'c2', 'c3')):
    case.value(counted[i], name)
    shape = case.expected(f'{name}_an').shape if case.has(f'{name}_an') else ()
    case.value(made[i].reshape(shape or made[i].shape), f'{name}_an')
  case.value(flags.votes, 'knn_votes_k10')
  case.value(flags.scores, 'scores')
  case.equal(flags.flags, 'mv_flag')
  case.close(found.transition, 'T_fit', atol=0.02)
  case.close(found.prior[:, None], 'p_fit', atol=0.02)
  if case.has('loss_fit'):
    assert 0.98 <= found.loss / case.expected('loss_fit') <= 1


CHECKS = {
  ('docta', 'hoc_simifeat'): check_neighbors,
  ('transition', 'anchor_and_dual_t'): check_anchors,
  ('transition', 'volminnet'): check_vol_min,
}
