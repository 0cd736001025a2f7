"""Labeling functions: moments, likelihoods, triplets, by their equations."""

import functools

from fixture_programs import compiled
import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import aggregate

N, A, C = 400, 5, 3
BALANCE = np.array([0.2, 0.3, 0.5], np.float32)
RIGHT = np.array([0.9, 0.8, 0.7, 0.75, 0.6])


def drawn():
  """Labels, and votes of functions that err evenly; one never votes."""
  rng = np.random.default_rng(0)
  labels = rng.choice(C, N, p=BALANCE)
  wrong = (labels[:, None] + rng.integers(1, C, (N, A))) % C
  votes = np.where(rng.random((N, A)) < RIGHT, labels[:, None], wrong)
  votes[rng.random((N, A)) < 0.3] = -1
  votes[:5] = -1
  return np.insert(votes, 3, -1, axis=1).astype(np.int32), labels


VOTES, LABELS = drawn()
COVERED = (VOTES >= 0).any(1)
SPREAD = (VOTES[..., None] == np.arange(C)).astype(float)


@functools.cache
def found():
  @compiled
  def run(votes, binary):
    options = {'num_classes': C, 'num_steps': 200}
    moments = aggregate.label_model(votes, class_balance=BALANCE, **options)
    likely = aggregate.generative_model(votes, **options)
    law = likely.class_balance, likely.mu
    silence = 1 - likely.mu.sum(-1, keepdims=True)
    confusion = jax.numpy.concatenate([likely.mu, silence], -1)

    def total(confusion):
      return aggregate.marginal_nll(votes, law[0], confusion).sum()

    return {
      'moments': aggregate.vote_moments(votes, num_classes=C),
      'label_model': moments,
      'again': aggregate.label_model_posterior(votes, moments.mu, BALANCE),
      'generative': likely,
      'nll': aggregate.marginal_nll(votes, law[0], confusion),
      'gradient': jax.grad(total)(confusion),
      'triplets': aggregate.triplet_accuracies(binary),
    }

  return run(VOTES, np.where(VOTES == 2, 1, VOTES))


def test_moments():
  moments = np.einsum('iak,ibl->akbl', SPREAD, SPREAD) / N
  np.testing.assert_allclose(found()['moments'], moments, 1e-6, 1e-7)


def test_label_model():
  """It is right, knows how good functions are, and explains the moments."""
  out, moments = found()['label_model'], found()['moments']
  joint = out.mu * BALANCE[:, None]
  together = np.einsum('ayk,byl->akbl', joint, out.mu)
  off = (moments - together) ** 2 * ~np.eye(A + 1, dtype=bool)[:, None, :, None]
  own = np.einsum('akak->ak', moments) - joint.sum(1)
  assert out.loss == pytest.approx(off.sum() + (own**2).sum(), rel=0.02)
  seen = np.delete(np.arange(A + 1), 3)
  np.testing.assert_allclose(out.accuracy[seen], RIGHT, atol=0.08)
  np.testing.assert_allclose(out.mu[3], 1 / N, rtol=1e-5)  # the least
  assert not out.one_sided.any()
  assert not out.collapsed
  logits = np.log(BALANCE) + np.einsum('iak,ayk->iy', SPREAD, np.log(out.mu))
  likely = np.exp(logits - logits.max(1, keepdims=True))
  likely /= likely.sum(1, keepdims=True)
  for posterior in (out.posterior, found()['again']):
    np.testing.assert_allclose(posterior, likely, 1e-3, 1e-6)
  np.testing.assert_allclose(out.posterior[:5], [BALANCE] * 5, rtol=1e-5)
  assert np.mean(out.posterior.argmax(1)[COVERED] == LABELS[COVERED]) > 0.85


def test_generative_model():
  out = found()['generative']
  seen = np.delete(np.arange(A + 1), 3)
  np.testing.assert_allclose(out.accuracy[seen], RIGHT, atol=0.08)
  np.testing.assert_allclose(out.class_balance, BALANCE, atol=0.07)
  np.testing.assert_allclose(
    out.mu.sum(2), np.tile((VOTES >= 0).mean(0)[:, None], C), rtol=1e-5
  )
  assert np.mean(out.posterior.argmax(1)[COVERED] == LABELS[COVERED]) > 0.85
  right = [np.diag(mu) / mu.sum(1) for mu in out.mu[seen]]
  prior = np.sum(0.7 * np.log(right) + 0.3 * np.log1p(-np.array(right)))
  prior += C * (0.7 * np.log(0.7) + 0.3 * np.log(0.3))  # of who never votes
  votes = np.einsum('iak,ayk->iay', SPREAD, out.mu)
  votes = np.where(SPREAD.any(2)[..., None], votes, 1)
  votes /= np.where(SPREAD.any(2), out.mu[:, 0].sum(1), 1)[..., None]
  likely = np.log((out.class_balance * votes.prod(1)).sum(1))
  loss = -(likely.sum() + prior) / COVERED.sum()
  assert out.loss == pytest.approx(loss, rel=1e-4)


def test_marginal_likelihood_with_silence():
  out = found()['generative']
  spread = np.concatenate([SPREAD, (VOTES < 0)[..., None]], 2)
  law = np.concatenate([out.mu, 1 - out.mu.sum(2, keepdims=True)], 2)
  votes = np.einsum('iak,ayk->iay', spread, law)
  joint = out.class_balance * votes.prod(1)
  np.testing.assert_allclose(found()['nll'], -np.log(joint.sum(1)), rtol=1e-3)
  posterior = joint / joint.sum(1, keepdims=True)
  expected = np.einsum('iy,iak->ayk', posterior, spread)
  gradient = -expected / np.where(expected > 0, law, 1)
  np.testing.assert_allclose(found()['gradient'], gradient, 1e-3, 1e-3)


def test_triplets():
  """By loops over pairs; of who never votes nothing is known."""
  s = np.where(VOTES < 0, 0, np.where(VOTES == 0, -1, 1))
  met = np.abs(s).T @ np.abs(s)
  m = np.abs(s.T @ s / np.maximum(met, 1))
  for a in range(A + 1):
    others = [b for b in range(A + 1) if b not in (a, 3)]
    pairs = [(b, c) for b in others for c in others if b != c]
    product = sum(m[a, b] * m[a, c] * m[b, c] for b, c in pairs)
    r = np.sqrt(product / sum(m[b, c] ** 2 for b, c in pairs))
    wanted = np.nan if a == 3 else (1 + min(r, 1)) / 2
    assert found()['triplets'][a] == pytest.approx(wanted, nan_ok=True)


@pytest.mark.slow
def test_eight_devices_are_one():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))

  def run(votes):
    return [
      fit(votes, num_classes=C, num_steps=3)
      for fit in (aggregate.label_model, aggregate.generative_model)
    ]

  own = aggregate.LabelModel(P('data'), *[P()] * 6)
  mapped = jax.shard_map(
    run, mesh=mesh, in_specs=P('data'), out_specs=[own, own]
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6),
    jax.jit(mapped)(VOTES),
    jax.jit(run)(VOTES),
  )


@pytest.mark.parametrize(
  'fit', [aggregate.label_model, aggregate.triplet_accuracies]
)
def test_votes_that_tell_nothing(fit):
  with pytest.raises(ValueError, match='at least 3 functions, got 2'):
    fit([[0, 1]])
  with pytest.raises(ValueError, match='an item with two of them'):
    fit([[0, -1, -1], [-1, 1, -1]])


def test_bad_options():
  votes = [[0, 1, 1]]
  for fit in (aggregate.label_model, aggregate.generative_model):
    with pytest.raises(ValueError, match='class_balance must be'):
      fit(votes, class_balance=[1.0])
    with pytest.raises(ValueError, match='num_steps must be at least 1'):
      fit(votes, num_steps=0)
    with pytest.raises(ValueError, match='learning_rate must lie'):
      fit(votes, learning_rate=0.0)
  with pytest.raises(ValueError, match='accuracy_prior must lie'):
    aggregate.generative_model(votes, accuracy_prior=(1, 0))
  with pytest.raises(ValueError, match=r'mu must be \[a, c, c\]'):
    aggregate.label_model_posterior(votes, np.ones((2, 2)), [0.5, 0.5])
  with pytest.raises(ValueError, match='mu must lie'):
    aggregate.label_model_posterior(votes, -np.ones((3, 2, 2)), [0.5, 0.5])
  with pytest.raises(ValueError, match='mu must be'):
    aggregate.label_model_loss(
      np.ones((3, 2)), np.ones((3, 2, 3, 2)), [0.5] * 2
    )
  with pytest.raises(ValueError, match='votes must lie in'):
    aggregate.triplet_accuracies([[0, 1, 2]])
