"""Self-training: what is learned in which round, and when it ends.

Learners and rules are numpy's where they can be; tests/golden_pseudo.py has
scikit-learn's loop.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jnl import pseudo
from jnl.data import load
from jnl.methods import fpl, grip, ifpl, self_train
from jnl.pseudo import Rule, growing_quota

RNG = np.random.default_rng(0)
N, C = 24, 3
PROBS = RNG.dirichlet(np.ones(C), (9, N))  # of each learner
GUESS, SURE = PROBS.argmax(2), PROBS.max(2)
LABELS = np.where(np.arange(N) % 4 == 0, np.arange(N) // 4 % C, -1)
GIVEN = LABELS >= 0
X = np.arange(N)[:, None] * 10.0


def learner(probs=PROBS):
  """Predicts what it is told to, and says what it was given."""
  seen = []

  def fit(x, labels, weights):
    probs_here = probs[len(seen)]
    seen.append((np.asarray(x)[:, 0] // 10, labels, weights))
    return lambda x: probs_here

  return fit, seen


def rule(threshold=0.7):
  """Above a threshold; remembers how often it was asked."""

  def apply(memory, seen):
    assert (seen.step, seen.probs.shape) == (memory, (N, C))
    np.testing.assert_array_equal(seen.index, np.arange(N))
    np.testing.assert_array_equal(seen.labeled, GIVEN)
    assert not np.any(seen.unlabeled * seen.labeled)
    # That it is also of rows which are not to be guessed does not matter.
    return memory + 1, np.max(seen.probs, axis=1) > threshold

  return Rule(lambda: 0, apply)


def check_learned(seen, guessed, labels):
  """Rows in their order, each kind with half of a mean of 1."""
  rows, own, weights = seen
  np.testing.assert_array_equal(rows, np.flatnonzero(GIVEN | guessed))
  np.testing.assert_array_equal(own, labels[GIVEN | guessed])
  assert own.dtype == np.int32
  given = GIVEN[rows.astype(int)]
  m, z = given.sum(), (~given).sum()
  half = (m + z) / 2 if z else m
  expected = np.where(given, half / m, half / max(z, 1))
  np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize('keep', [True, False])
def test_what_is_learned_in_each_round(keep):
  fit, seen = learner()
  found = self_train(fit, X, LABELS, rule(), rounds=4, keep=keep)
  labels, guessed = LABELS.copy(), np.zeros(N, bool)
  since = np.where(GIVEN, 0, -1)
  check_learned(seen[0], guessed, labels)
  for r in range(4):
    new = (SURE[r] > 0.7) & ~GIVEN
    if keep:
      new &= ~guessed
    else:
      guessed, since = np.zeros(N, bool), np.where(GIVEN, 0, -1)
    labels = np.where(new, GUESS[r], np.where(guessed | GIVEN, labels, -1))
    guessed, since = guessed | new, np.where(new, r + 1, since)
    check_learned(seen[r + 1], guessed, labels)
  assert (len(seen), found.rounds) == (5, 4)
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_array_equal(found.round, since)
  np.testing.assert_array_equal(found.probs, PROBS[4])
  assert found.predict(X) is not None
  assert {a.dtype for a in found[:2]} == {np.dtype(np.int32)}
  assert set(since) == ({-1, 0, 1, 2, 3, 4} if keep else {-1, 0, 4})


def test_it_ends_when_nobody_is_chosen_and_when_all_are_labeled():
  fit, seen = learner()
  found = self_train(fit, X, LABELS, rule(1.0), rounds=5)
  assert (found.rounds, len(seen)) == (1, 2)
  np.testing.assert_array_equal(found.labels, LABELS)
  np.testing.assert_array_equal(found.round, np.where(GIVEN, 0, -1))
  fit, seen = learner()
  found = self_train(fit, X, LABELS, rule(0.0), rounds=5)
  assert (found.rounds, len(seen)) == (1, 2)
  assert (found.round == ~GIVEN).all()
  # Guessed anew, all may change.
  fit, seen = learner()
  found = self_train(fit, X, LABELS, rule(0.0), rounds=5, keep=False)
  assert (found.rounds, len(seen)) == (5, 6)
  np.testing.assert_array_equal(found.labels[~GIVEN], GUESS[4][~GIVEN])
  # What was guessed before does not count when nobody is chosen any more.
  fit, seen = learner(np.where(np.arange(9)[:, None, None] == 1, 1 / C, PROBS))
  found = self_train(fit, X, LABELS, rule(), rounds=5, keep=False)
  assert (found.rounds, len(seen)) == (2, 3)
  np.testing.assert_array_equal(found.labels, LABELS)
  # Nothing to guess: labels are learned, and that is all.
  fit, seen = learner()
  found = self_train(fit, X, np.arange(N) % C, rule(), rounds=5)
  assert (found.rounds, len(seen), found.round.max()) == (0, 1, 0)


def test_weights_of_guesses_and_rows_of_several_classes():
  weights = np.zeros((N, C))
  weights[1], weights[2, 1], weights[0] = (0.5, 0, 1), 1, 1  # row 0 is labeled
  fit, seen = learner()
  own = Rule(tuple, lambda memory, seen: (memory, weights))
  found = self_train(fit, X, LABELS, own, rounds=1)
  rows, classes, w = seen[1]
  place = (rows == 1) | (rows == 2)
  pairs = sorted(zip(rows[place], classes[place], w[place], strict=True))
  half = (6 + 3) / 2
  assert pairs == [(1, 0, half / 6), (1, 2, half / 3), (2, 1, half / 3)]
  np.testing.assert_allclose(w[~place], half / 6)
  assert found.labels[1] == (2 if PROBS[0, 1, 2] > PROBS[0, 1, 0] else 0)
  assert found.labels[2] == 1
  # Without labels weights are those of the rule; the first guesses are given.
  fit, seen = learner(PROBS[1:])
  soft = Rule(tuple, lambda memory, seen: (memory, SURE[0]))
  found = self_train(fit, X, None, soft, rounds=1, start=PROBS[0])
  assert len(seen) == 1
  np.testing.assert_array_equal(seen[0][1], GUESS[0])
  np.testing.assert_array_equal(seen[0][2], SURE[0])
  np.testing.assert_array_equal(found.probs, PROBS[1])


def test_what_x_and_labels_and_predictions_may_be():
  expected = self_train(learner()[0], X, LABELS, rule(), rounds=2)
  for x in (jnp.asarray(X), X.tolist(), scipy.sparse.csr_array(X)):
    dense = lambda x: x.toarray() if scipy.sparse.issparse(x) else x
    fit, _ = learner()
    own = lambda x, *rest, fit=fit, dense=dense: fit(dense(x), *rest)
    found = self_train(own, x, LABELS.tolist(), rule(), rounds=2)
    for a, b in zip(found[:4], expected[:4], strict=True):
      np.testing.assert_array_equal(a, b)
  whole = (np.arange(N) % C).astype(np.uint8)
  found = self_train(learner()[0], X, whole, rule(), rounds=2)
  np.testing.assert_array_equal(found.labels, whole)
  half = jnp.asarray(PROBS, jnp.bfloat16)
  found = self_train(learner(half)[0], X, LABELS, rule(), rounds=2)
  assert found.probs.dtype == jnp.bfloat16


def largest(probs, k, free):
  """For each class the k rows of the largest probabilities."""
  order = np.argsort(-np.where(free[:, None], probs, -1), axis=0, kind='stable')
  return {(row, a) for a in range(C) for row in order[:k, a]}


@pytest.mark.parametrize('labels', [None, LABELS])
def test_quotas_of_fpl_ifpl_and_grip(labels):
  free = np.ones(N, bool) if labels is None else ~GIVEN
  n = free.sum()
  grown = [growing_quota(i, n, C, 2) for i in range(2)]
  assert grown[1] == n // C > grown[0]
  quotas = {fpl: [4], ifpl: [4, 4], grip: grown}
  for method, ks in quotas.items():
    fit, seen = learner(PROBS[1:])
    more = {fpl: {'k': 4}, ifpl: {'k': 4, 'rounds': 2}, grip: {'rounds': 2}}
    found = method(fit, X, PROBS[0], labels=labels, **more[method])
    assert (len(seen), found.rounds) == (len(ks), len(ks))
    for r, k in enumerate(ks):
      rows, classes, weights = seen[r]
      own = free[rows.astype(int)]
      pairs = set(zip(rows[own], classes[own], strict=True))
      assert len(pairs) == own.sum() == k * C
      assert pairs == largest(PROBS[r].astype(np.float32), k, free)
      total = weights[own].sum(), weights[~own].sum()
      assert labels is None or total == pytest.approx([len(rows) / 2] * 2)
    np.testing.assert_array_equal(found.probs, PROBS[len(ks)])


def gives(change):
  """A learner whose predictions are changed."""
  probs = PROBS.copy()
  return learner(change(probs))[0]


def nan(probs):
  probs[1, 5, 0] = np.nan
  return probs


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'fit': 3}, 'fit must be a function'),
    ({'rule': 0.9}, 'rule must be a Rule of jnl.pseudo, got 0.9'),
    ({'fit': lambda x, labels, weights: 3}, 'fit must give a function, got 3'),
    ({'fit': gives(nan)}, 'what fit predicts must have rows >= 0 that sum to'),
    ({'fit': gives(lambda p: 9 * p)}, 'what fit predicts must have rows'),
    (
      {'fit': gives(lambda p: p[:, :5])},
      'what fit predicts must be [n, c] = (',
    ),
    ({'fit': gives(lambda p: p[:, :, 0])}, 'what fit predicts must be [n, c]'),
    ({'fit': gives(lambda p: p[:, :, :1] ** 0)}, 'be of two classes at least'),
    ({'fit': learner([PROBS[0], np.full((N, 4), 0.25)])[0]}, f'{(N, C)}, got'),
    (
      {'labels': np.where(GIVEN, LABELS + 1, -1)},
      'labels up to 3; there are 3',
    ),
    ({'labels': LABELS.astype(np.uint8)}, 'labels up to 255; there are 3'),
    ({'labels': LABELS - 1}, 'labels must be -1 or a class, got -2'),
    ({'labels': LABELS[:-1]}, 'labels must be [n] = (24,) as x has rows'),
    ({'labels': LABELS[:, None]}, 'labels must be [n] = (24,) as x has rows'),
    ({'labels': np.full(N, -1)}, 'labels must be of two classes at least'),
    ({'labels': None}, 'labels must be of two classes at least'),
    ({'labels': np.minimum(LABELS, 0)}, 'labels must be of two classes'),
    ({'labels': np.minimum(LABELS, 0.5)}, 'labels must be integers, got float'),
    ({'x': X[:0]}, 'x must have rows'),
    ({'x': 3.0}, 'x must have rows'),
    ({'rounds': 0}, 'rounds must be an int of at least 1, got 0'),
    ({'rounds': 2.5}, 'rounds must be an int of at least 1, got 2.5'),
    (
      {'start': PROBS[0, :5]},
      'start must be [n, c] = (24, 3), got shape (5, 3',
    ),
    ({'start': 2 * PROBS[0]}, 'start must have rows >= 0 that sum to one'),
    ({'weights': np.ones(5)}, 'rule must give weights [n] = (24,), or [n, c]'),
    ({'weights': np.ones((N, 1))}, 'rule must give weights [n] = (24,), or'),
    ({'weights': np.full(N, -1)}, 'rule must give weights that are finite and'),
    ({'weights': np.full(N, np.nan)}, 'rule must give weights that are finite'),
    (
      {'weights': np.zeros(N), 'labels': None, 'start': PROBS[0]},
      'rule chose nobody, and there are no labels to learn',
    ),
  ],
)
def test_what_cannot_be_is_named(changed, message):
  weights = changed.pop('weights', np.ones(N))
  own = Rule(tuple, lambda memory, seen: (memory, weights))
  given = {'fit': learner()[0], 'x': X, 'labels': LABELS, 'rounds': 2}
  with pytest.raises((ValueError, TypeError), match=re.escape(message)):
    self_train(**given | {'rule': own} | changed)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'k': 0}, 'k must be an int of at least 1, got 0'),
    ({'k': N}, 'k must be below the number of rows to guess, 24, or each'),
    ({'k': 2.0}, 'k must be an int of at least 1, got 2.0'),
    ({'probs': PROBS[0, :5]}, 'start must be [n, c] = (24, 3), got shape (5'),
    ({'labels': LABELS[:5]}, 'labels must be [n] = (24,) as x has rows'),
  ],
)
def test_what_fpl_cannot_do_is_named(changed, message):
  given = {'fit': learner()[0], 'x': X, 'probs': PROBS[0], 'k': 4}
  with pytest.raises(ValueError, match=re.escape(message)):
    fpl(**given | changed)
  if 'k' not in changed:
    del given['k']
    with pytest.raises(ValueError, match=re.escape(message)):
      grip(**given | changed)


@pytest.mark.slow
def test_rounds_beat_the_labels_alone_and_a_fixed_threshold():
  """On digits, three labels of a class; guesses get worse as there are more."""
  from sklearn.decomposition import PCA
  from sklearn.linear_model import LogisticRegression

  digits = load('digits')
  truth = digits.train.labels
  x = digits.train.x.reshape(len(truth), -1)
  x = PCA(20, random_state=0).fit_transform(x)

  def fit(x, labels, weights):
    model = LogisticRegression(max_iter=1000)
    return model.fit(x, labels, sample_weight=weights).predict_proba

  gains = []
  for seed in range(3):
    order, labels = np.random.default_rng(seed).permutation(len(truth)), None
    labels = np.full(len(truth), -1)
    for k in range(10):
      labels[order[truth[order] == k][:3]] = k
    policies = (
      (pseudo.fixed(0.95, strict=True), 8, True),
      (pseudo.fixed(0.8, strict=True), 8, True),
      (pseudo.most_confident(100), 30, True),
      (pseudo.curriculum(0.2), 5, False),
    )
    found = [
      self_train(fit, x, labels, own, rounds=rounds, keep=keep)
      for own, rounds, keep in policies
    ]
    assert (found[0].rounds, (found[0].labels >= 0).sum()) == (1, 30)
    assert (found[2].labels >= 0).all()
    since, right = found[2].round, found[2].labels == truth
    assert right[since == 1].mean() > right[since == since.max()].mean()
    free = labels < 0
    score = [(one.probs.argmax(1) == truth)[free].mean() for one in found]
    gains.append(np.array(score) - score[0])
  _, fixed, added, curriculum = np.mean(gains, axis=0)
  assert min(added, curriculum) > max(0.02, fixed)
