"""Votes against the equations in numpy, and what people hand in."""

import functools
import itertools
import warnings

from fixture_programs import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import audit

N, A, C = 12, 4, 3
NONE = -1
VARIANTS = [
  (consensus, quality)
  for consensus in ('best_quality', 'majority_vote')
  for quality in ('crowdlab', 'agreement')
]


# --- data sets of one shape --------------------------------------------------


def drawn(seed=0, missing=0.5, wrong=0.3):
  """Votes that are wrong, or not there, at random."""
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, C, N)
  votes = np.where(
    rng.random((N, A)) < wrong, rng.integers(0, C, (N, A)), truth[:, None]
  )
  votes[rng.random((N, A)) < missing] = NONE
  return votes.astype(np.int32)


def made(**changes):
  """A draw of which some rows or columns are replaced."""
  votes = drawn(1, missing=0.2)
  for change in changes.values():
    change(votes)
  return votes


def alone():
  votes = np.full((N, A), NONE, np.int32)
  votes[np.arange(N), np.arange(N) % A] = drawn(2, missing=0)[:, 0]
  return votes


def lonely(votes):
  """Annotator 3 votes on two items, where nobody else does."""
  votes[:, 3] = NONE
  votes[:2] = NONE
  votes[:2, 3] = 1, 2


def silent(votes):
  """Items 3 and 7, and annotator 1, have no votes; annotator 2 has one."""
  votes[[3, 7]] = NONE
  votes[:, 1] = NONE
  votes[1:, 2] = NONE
  votes[0, [0, 2]] = 1


def agreed(votes):
  votes[:] = np.where(votes < 0, NONE, np.arange(N)[:, None] % C)


def tied(votes):
  """By the model, by frequency, by annotators, and by none of them."""
  votes[:4] = [
    [0, 1, 2, 2],
    [0, 1, NONE, NONE],
    [1, 0, NONE, NONE],
    [0, 1, 2, NONE],
  ]


DATA = {
  'sparse': drawn(0),
  'dense': drawn(3, missing=0),
  'alone': alone(),
  'lonely': made(lonely=lonely),
  'silent': made(silent=silent),
  'agreed': made(agreed=agreed),
  'one class': np.where(drawn(4) < 0, NONE, 1).astype(np.int32),
  'tied': made(tied=tied),
  'nothing': np.full((N, A), NONE, np.int32),
}
NAMES = list(DATA)
PROBS = np.random.default_rng(5).dirichlet(np.ones(C), (len(DATA), N))
for votes, probs in zip(DATA.values(), PROBS, strict=True):
  probs += 0.5 * np.eye(C + 1)[votes, :C].sum(1)  # it has learned something
  probs /= probs.sum(1, keepdims=True)
PROBS[..., :4, :] = np.array([0.25, 0.25, 0.5])  # ties of the model
PROBS = PROBS.astype(np.float32)


# --- the equations, vote by vote ---------------------------------------------


def majority(votes, probs):
  counts = np.array([[np.sum(row == k) for k in range(C)] for row in votes])
  left = [np.flatnonzero(row == row.max()) for row in counts]
  clear = [i for i in range(len(votes)) if len(left[i]) == 1]
  agreement = []
  for a in range(votes.shape[1]):
    own = [votes[i, a] == left[i][0] for i in clear if votes[i, a] >= 0]
    agreement.append(np.mean(own) if own else np.nan)
  agreement = np.array(agreement)
  if np.isfinite(agreement).any():
    agreement[np.isnan(agreement)] = np.nanmean(agreement)
  rarity = -counts.sum(0)

  def best(classes, score):
    scores = np.array([score(k) for k in classes])
    return classes[scores >= scores.max() - 1e-6]

  def one(i):
    classes = best(left[i], lambda k: probs[i, k])
    classes = best(classes, lambda k: rarity[k])
    if len(classes) > 1 and counts[i].any():
      classes = best(classes, lambda k: agreement[votes[i] == k].mean())
    return classes[0]

  return np.array([one(i) for i in range(len(votes))])


def weights_of(votes, probs, labels):
  """(P, w_M, w_a) of items and annotators that all have votes."""
  number = (votes >= 0).sum(1)
  several = number > 1 if (number > 1).any() else number > 0
  share = np.array(
    [np.mean(v[v >= 0] == k) for v, k in zip(votes, labels, strict=True)]
  )
  commonest = np.bincount(labels[several], minlength=C).argmax()
  error = max(np.mean(labels[several] != commonest), 1e-6)
  model = np.mean(probs.argmax(1)[several] != labels[several])
  model = max(1 - model / error, 1e-6) * np.sqrt(number.mean())
  errors = []
  for a in range(votes.shape[1]):
    other = np.delete(votes, a, 1)
    met = (votes[:, [a]] >= 0) & (other >= 0)
    differ = met & (other != votes[:, [a]])
    errors.append(differ.sum() / met.sum() if met.any() else np.nan)
  errors = np.array(errors)
  fill = np.nanmean(errors) if np.isfinite(errors).any() else 0
  errors = np.where(np.isnan(errors), fill, errors)
  weights = np.maximum(1 - errors / error, 1e-6)
  return share[several].mean(), model, weights, several, share


def crowd_of(votes, probs, labels, quality):
  """By name: what is said where all items and annotators have votes."""
  likely, model, weights, several, share = weights_of(votes, probs, labels)
  if quality == 'agreement':
    likely, model, weights = 1, 0, np.ones(votes.shape[1])
  posterior = np.zeros(probs.shape)
  for i, k in np.ndindex(posterior.shape):
    voters = np.flatnonzero(votes[i] >= 0)
    says = [
      likely if votes[i, a] == k else (1 - likely) / (C - 1) for a in voters
    ]
    posterior[i, k] = np.average(
      [probs[i, k], *says], weights=[model, *weights[voters]]
    )
  one = np.take_along_axis(posterior, np.maximum(votes, 0), 1)
  one = np.where(votes >= 0, one, np.nan)
  crowd = weights.sum() * (votes >= 0).sum(1).mean() / votes.shape[1]
  w = model / (model + crowd)
  quality_of = []
  for a in range(votes.shape[1]):
    met = several & (votes[:, a] >= 0)
    right = np.mean(votes[met, a] == labels[met]) if met.any() else np.nan
    quality_of.append(w * np.nanmean(one[:, a]) + (1 - w) * right)
  return {
    'labels': labels,
    'quality': posterior[np.arange(len(labels)), labels],
    'agreement': share,
    'annotator_quality': np.array(quality_of),
    'vote_quality': one,
    'model_weight': model,
    'annotator_weights': weights,
    'posterior': posterior,
  }


def expected(votes, probs, consensus, quality):
  labels = majority(votes, probs)
  if consensus == 'best_quality':
    posterior = crowd_of(votes, probs, labels, quality)['posterior']
    top = posterior >= posterior.max(1, keepdims=True) - 1e-6
    labels = np.where(top.sum(1) == 1, posterior.argmax(1), labels)
  return crowd_of(votes, probs, labels, quality)


# --- one program -------------------------------------------------------------


@functools.cache
def found():
  """By name of the data set: (by variant a crowd, majority, whom to ask)."""

  @compiled
  @jax.vmap
  def run(votes, probs):
    crowds = {
      f'{consensus} {quality}': audit.crowdlab(
        votes, probs, consensus=consensus, quality=quality
      )
      for consensus, quality in VARIANTS
    }
    crowds['coded'] = audit.crowdlab(
      votes, probs, quality='agreement', as_coded=True
    )
    asked = audit.active_learning_scores(votes, probs)
    without = audit.majority_vote(votes, num_classes=C)
    return crowds, audit.majority_vote(votes, probs), without, asked

  # What the model says of an item without votes may be anything, in jit.
  probs = PROBS.copy()
  probs[NAMES.index('silent'), 3] = np.nan
  out = run(np.stack(list(DATA.values())), probs)
  return {
    name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(NAMES)
  }


def given(name):
  """Its votes and probabilities, of the items and annotators that have some."""
  votes, probs = DATA[name], PROBS[NAMES.index(name)].astype(np.float64)
  rows, columns = (votes >= 0).any(1), (votes >= 0).any(0)
  return votes[rows][:, columns], probs[rows], rows, columns


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('name', [n for n in NAMES if n != 'nothing'])
def test_equations(name, variant):
  """Also that who has no votes leaves no trace in what is said of others."""
  votes, probs, rows, columns = given(name)
  crowd = found()[name][0][' '.join(variant)]
  for field, value in expected(votes, probs, *variant).items():
    actual = getattr(crowd, field)
    if np.ndim(value):
      of_items = len(actual) == N
      actual = actual[rows] if of_items else actual[columns]
      actual = actual[:, columns] if field == 'vote_quality' else actual
    np.testing.assert_allclose(actual, value, 1e-5, 1e-6, err_msg=field)


@pytest.mark.parametrize('name', ['sparse', 'dense', 'tied'])
def test_counts_of_the_official_code(name):
  """Classes of an item take the first places, whichever they are."""
  votes, _, rows, _ = given(name)
  shares = np.zeros((len(votes), C))
  for share, row in zip(shares, votes, strict=True):
    _, counts = np.unique(row[row >= 0], return_counts=True)
    share[: len(counts)] = counts / counts.sum()
  coded = found()[name][0]['coded']
  np.testing.assert_allclose(coded.posterior[rows], shares, rtol=1e-6)
  np.testing.assert_array_equal(coded.quality[rows], coded.agreement[rows])
  usual = found()[name][0]['best_quality agreement']
  assert np.any(coded.labels[rows] != usual.labels[rows])


def test_who_has_no_votes():
  crowd, probs = (
    found()['silent'][0]['best_quality crowdlab'],
    PROBS[NAMES.index('silent')],
  )
  assert crowd.annotator_weights[1] == 0
  assert np.isnan(crowd.annotator_quality[1])
  assert np.isnan(crowd.agreement[7])
  assert np.isnan(crowd.vote_quality[7]).all()
  np.testing.assert_array_equal(crowd.posterior[7], probs[7])
  assert crowd.labels[7] == probs[7].argmax()
  assert crowd.quality[7] == probs[7].max()
  nobody = found()['nothing'][0]['best_quality crowdlab']
  np.testing.assert_array_equal(nobody.posterior, PROBS[-1])
  np.testing.assert_array_equal(nobody.annotator_weights, 0)


def test_one_vote_each_ranks_as_the_model_does():
  crowd, majority_vote, _, asked = (
    found()['alone'][0]['best_quality crowdlab'],
    *found()['alone'][1:],
  )
  labels = DATA['alone'].max(1)
  np.testing.assert_array_equal(crowd.labels, labels)
  np.testing.assert_array_equal(majority_vote, labels)
  own = PROBS[NAMES.index('alone'), np.arange(N), labels]
  assert np.all(np.diff(crowd.quality[np.argsort(own)]) >= 0)
  np.testing.assert_allclose(asked, (2 * own + 1 / C) / 3, rtol=1e-5)


def test_nobody_differs():
  crowd = found()['agreed'][0]['best_quality crowdlab']
  np.testing.assert_array_equal(crowd.agreement, 1)
  np.testing.assert_allclose(crowd.annotator_weights, 1, rtol=1e-6)
  assert np.isfinite(crowd.posterior).all()
  one = found()['one class'][0]['best_quality crowdlab']
  some = (DATA['one class'] >= 0).any(1)
  assert np.all(one.labels[some] == 1)
  assert np.isfinite(one.posterior).all()


@pytest.mark.parametrize('name', NAMES)
def test_majority(name):
  votes, probs, rows, _ = given(name)
  _, by_model, without, _ = found()[name]
  assert by_model.dtype == np.int32
  np.testing.assert_array_equal(by_model[rows], majority(votes, probs))
  alike = np.zeros_like(probs)
  np.testing.assert_array_equal(without[rows], majority(votes, alike))
  assert np.all(without[~rows] == -1)


def padded(votes):
  """To the one shape, with items and annotators without votes."""
  out = np.full((N, A), NONE)
  for i, row in enumerate(votes):
    out[i, : len(row)] = row
  return out


def test_ties_end_with_the_lowest_class():
  labels = audit.majority_vote(padded([[1, 0], [0, 1], [2, 2], [2, 2]]))
  assert isinstance(labels, np.ndarray)
  assert labels.tolist()[:5] == [0, 0, 2, 2, -1]
  # Annotator 1 is right where it is clear: the last tie is hers.
  votes = [[0, 0, 0], [1, 1, 0], [2, 2, 2], [2, 2, 0], [0, 1], [1, NONE, 0]]
  assert audit.majority_vote(padded(votes)).tolist()[4:6] == [1, 1]


# --- whom to ask -------------------------------------------------------------


def tempered(probs, temperature):
  scaled = np.log(probs.astype(np.float64)) / temperature
  scaled = np.exp(scaled - scaled.max(1, keepdims=True))
  return scaled / scaled.sum(1, keepdims=True)


@pytest.mark.parametrize('name', ['sparse', 'dense', 'lonely', 'tied'])
def test_whom_to_ask(name):
  votes, probs, rows, _ = given(name)
  shares = np.array(
    [[np.mean(v[v >= 0] == k) for k in range(C)] for v in votes]
  )
  loss = lambda t: -np.mean(np.sum(shares * np.log(tempered(probs, t)), 1))
  coarse = [0.1, 0.2, 0.5, 0.8, 1, 2, 3, 5, 8]
  best = int(np.argmin([loss(t) for t in coarse]))
  knots = coarse[max(best - 1, 0) : best + 2]
  fine = [
    low + step / 4 * (high - low)
    for low, high in itertools.pairwise(knots)
    for step in range(5)
  ]
  probs = tempered(probs, fine[int(np.argmin([loss(t) for t in fine]))])
  crowd = expected(votes, probs, 'best_quality', 'crowdlab')
  weights = crowd['annotator_weights']
  known = crowd['model_weight'] + (votes >= 0) @ weights
  scores = (known * crowd['quality'] + weights.mean() / C) / (
    known + weights.mean()
  )
  np.testing.assert_allclose(found()[name][3][rows], scores, 1e-5)
  assert np.all((found()[name][3] > 0) & (found()[name][3] <= 1))


def test_who_has_no_votes_is_asked_with_the_others():
  """More votes that agree make an item less urgent; none make it most."""
  votes = padded([[0, 0, 0], [0, 0], [], [1, 1, 2], [2, 2, 2]])
  probs = np.full((N, C), 1 / 3, np.float32)
  probs[3] = 0.1, 0.6, 0.3
  scores = audit.active_learning_scores(votes, probs)
  assert isinstance(scores, np.ndarray)
  assert scores[2] == scores.min()
  assert scores[0] > scores[1] > scores[2]


# --- what is handed in -------------------------------------------------------


def test_kinds_of_arrays():
  votes, probs = drawn(), PROBS[0]
  crowd = audit.crowdlab(votes, probs)
  assert all(isinstance(x, np.ndarray) for x in crowd)
  crowd.labels[0] = 0  # can be written to
  kinds = {field: x.dtype for field, x in crowd._asdict().items()}
  assert kinds.pop('labels') == np.int32
  assert set(kinds.values()) == {np.dtype(np.float32)}
  for pair in ((jnp.asarray(votes), probs), (votes, jnp.asarray(probs))):
    assert all(isinstance(x, jax.Array) for x in audit.crowdlab(*pair))
  small = audit.crowdlab(votes.astype(np.int8).tolist(), probs)
  jax.tree.map(np.testing.assert_array_equal, small[1:], crowd[1:])
  with pytest.warns(UserWarning, match='bfloat16'):
    half = audit.crowdlab(votes, jnp.asarray(probs, jnp.bfloat16))
  np.testing.assert_allclose(half.quality, crowd.quality, atol=0.02)
  assert half.quality.dtype == jnp.float32


@pytest.mark.parametrize(
  ('votes', 'error', 'match'),
  [
    ([[0, np.nan]], TypeError, r'votes .*isnan.*-1.*fillna'),
    (np.array([[0, None]]), TypeError, 'votes .*object.*fillna'),
    ([['a', 'b']], TypeError, 'votes must be integers'),
    ([[True, False]], TypeError, 'votes must be integers.*bool'),
    ([[0, 3]], ValueError, r'votes must lie in \[0, 3\).*got 3 in row 0, col'),
    ([[0, -2]], ValueError, 'got -2 in row 0, column 1'),
    (np.array([[0, 255]], np.uint8), ValueError, 'got 255'),
    (np.array([[0, -1]]).astype(np.uint32), ValueError, 'got 4294967295'),
    (np.array([[0, 1 << 32]]), ValueError, 'got 4294967296'),
    ([0, 1], ValueError, r'votes must be \[n, a\]'),
    (np.zeros((1, 0), int), ValueError, r'votes must be \[n, a\]'),
    (np.zeros((3, 1), int), ValueError, 'votes must have a row of each'),
  ],
)
def test_bad_votes(votes, error, match):
  probs = np.full((1, 3), 1 / 3)
  for run in (
    audit.crowdlab,
    audit.majority_vote,
    audit.active_learning_scores,
  ):
    with pytest.raises(error, match=match):
      run(votes, probs)


@pytest.mark.parametrize(
  ('probs', 'error', 'match'),
  [
    ([[0.5, 0.6]], ValueError, 'pred_probs must have rows'),
    ([[np.nan, 1]], ValueError, 'pred_probs must have rows'),
    ([[1.0]], ValueError, 'pred_probs must be'),
    ([0.5, 0.5], ValueError, r'pred_probs must be \[n, c\]'),
    ([[0, 1]], TypeError, 'pred_probs must be floating-point'),
  ],
)
def test_bad_probs(probs, error, match):
  with pytest.raises(error, match=match):
    audit.crowdlab([[0, 0]], np.array(probs))


def test_bad_options():
  votes, probs = [[0, 1]], np.array([[0.5, 0.5]])
  with pytest.raises(ValueError, match='consensus'):
    audit.crowdlab(votes, probs, consensus='majority')
  with pytest.raises(ValueError, match='quality'):
    audit.crowdlab(votes, probs, quality='dawid')
  with pytest.raises(ValueError, match='num_classes is 3'):
    audit.majority_vote(votes, probs, num_classes=3)
  with pytest.raises(ValueError, match='num_classes must be at least 2'):
    audit.majority_vote(votes, num_classes=1)
  with pytest.raises(ValueError, match='num_classes'):
    jax.eval_shape(audit.majority_vote, jnp.array(votes))


def test_nothing_to_compare_is_warned_of():
  probs = PROBS[0]
  with pytest.warns(UserWarning, match='no item of votes has two'):
    audit.crowdlab(DATA['alone'], probs)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    audit.active_learning_scores(DATA['alone'], probs)


def test_votes_out_of_range_are_none_inside_jit():
  votes = drawn()
  bad = np.where(votes < 0, 200, votes).astype(np.uint8)
  run = lambda votes: audit.crowdlab(votes, PROBS[0])
  assert jax.eval_shape(run, bad[:, :1]).vote_quality.shape == (N, 1)
  crowd = jax.jit(run)(bad)
  whole = audit.crowdlab(votes, PROBS[0])
  np.testing.assert_allclose(crowd.posterior, whole.posterior, rtol=1e-6)
