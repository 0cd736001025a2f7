"""EM over annotators against the equations in numpy, and what it is for."""

import functools
import os
import pathlib

from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl import aggregate

FOLDER = pathlib.Path(
  os.environ.get('JNL_DATA', pathlib.Path(__file__).parents[3] / 'shared/data')
)
N, A, C = 96, 6, 3
STEPS = 12
BALANCE = np.array([0.2, 0.3, 0.5], np.float32)


def drawn(seed, missing=0.3):
  """Labels, and votes of annotators that are right in 80% to 50%."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, C, N)
  right = rng.random((N, A)) < np.linspace(0.8, 0.5, A)
  votes = np.where(right, labels[:, None], rng.integers(0, C, (N, A)))
  votes[rng.random((N, A)) < missing] = -1
  return votes.astype(np.int32)


def silent():
  """Items 3 and 9 and annotator 1 have no votes, annotator 5 has one."""
  votes = drawn(1)
  votes[[3, 9]] = -1
  votes[:, 1] = -1
  votes[1:, 5] = -1
  votes[0, 5] = 2
  return votes


def one_sided():
  """Four functions vote for class 1 or not at all, two for class 0."""
  rng = np.random.default_rng(0)
  own = (np.arange(A) < 4).astype(np.int32)
  fires = np.where(ONE_SIDED[:, None] == own, 0.5, 0.15)
  return np.where(rng.random((N, A)) < fires, own, -1)


ONE_SIDED = np.random.default_rng(5).integers(0, 2, N)  # their labels
DATA = {
  'sparse': drawn(0),
  'dense': drawn(3, missing=0),
  'silent': silent(),
  'one-sided': one_sided(),
  'nothing': np.full((N, A), -1, np.int32),
}
VARIANTS = {
  'dawid_skene': {},
  'symbol': {
    'abstain_informative': True,
    'smoothing': 0.5,
    'class_balance': BALANCE,
    'accuracy_prior': (3, 1),
  },
  'one_coin': {},
  'coin prior': {'class_balance': BALANCE, 'accuracy_prior': (700, 300)},
}


def fitted(votes, name, **changes):
  coin = name in ('one_coin', 'coin prior')
  fit = aggregate.one_coin if coin else aggregate.dawid_skene
  options = {'max_iter': STEPS, 'tol': 0.0} | VARIANTS[name] | changes
  return fit(votes, num_classes=C, **options)


# --- the equations -----------------------------------------------------------


def expected(votes, name):
  """By name; in probabilities, not in logarithms, and with loops."""
  options, coin = VARIANTS[name], name in ('one_coin', 'coin prior')
  right, wrong = options.get('accuracy_prior', (0, 0))
  smoothing = 0 if coin else options.get('smoothing', 0.01)
  if name == 'one_coin':
    right, wrong = 0.01, 0.01 * (C - 1)
  spread = (votes[..., None] == np.arange(C)).astype(float)
  counts = spread.sum(1)
  there = counts.sum(1) > 0
  posterior = np.full((N, C), 1 / C)
  posterior[there] = counts[there] / counts[there].sum(1, keepdims=True)
  if options.get('abstain_informative'):
    spread = np.concatenate([spread, (votes < 0)[..., None]], 2)
    there[:] = True
  prior = np.full((C, spread.shape[2]), float(smoothing))
  prior[:, :C] += np.where(np.eye(C), right, wrong / (C - 1))
  prior /= C if coin else 1  # of all classes together
  likelihoods = []
  for _ in range(STEPS):
    balance = posterior[there].sum(0) + smoothing
    balance = balance / balance.sum() if balance.any() else np.full(C, 1 / C)
    balance = options.get('class_balance', balance)
    confusion = np.einsum('ik,ial->akl', posterior, spread) + prior
    confusion /= confusion.sum(2, keepdims=True) if not coin else 1
    if coin:
      p = np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2))
      confusion = np.stack(
        [np.where(np.eye(C), x, (1 - x) / (C - 1)) for x in p]
      )
    says = np.einsum('akl,ial->iak', confusion, spread)
    says = np.where(spread.any(2)[..., None], says, 1)
    joint = balance * says.prod(1)
    posterior = joint / joint.sum(1, keepdims=True)
    likelihoods.append(np.log(joint.sum(1)).sum())
  says = balance[:, None] * confusion[:, :, :C]
  return {
    'posterior': posterior,
    'class_balance': balance,
    'confusion': confusion,
    'accuracy': np.trace(says, axis1=1, axis2=2) / says.sum((1, 2)),
    'log_likelihood': likelihoods[-1],
  }, likelihoods


@functools.cache
def found():
  """By name of the data and variant, in one program."""

  @compiled
  @jax.vmap
  def run(votes):
    out = {name: fitted(votes, name) for name in VARIANTS}
    law = out['symbol']
    again = (law.class_balance, law.confusion)
    out['again'] = aggregate.dawid_skene_posterior(votes, *again)
    return out

  out = run(np.stack(list(DATA.values())))
  return {
    name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(DATA)
  }


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('name', DATA)
def test_equations(name, variant):
  out = found()[name][variant]
  wanted, _ = expected(DATA[name], variant)
  for field, value in wanted.items():
    np.testing.assert_allclose(
      getattr(out, field), value, 2e-4, 1e-5, err_msg=field
    )
  assert out.converged or out.num_iter == STEPS


def test_a_step_never_lowers_the_likelihood():
  """Of the equations, which the test above holds the code to."""
  for name in ('sparse', 'dense', 'silent'):
    _, likelihoods = expected(DATA[name], 'one_coin')
    assert np.all(np.diff(likelihoods) > -1e-2)


def test_who_has_no_votes():
  out = found()['silent']['dawid_skene']
  np.testing.assert_allclose(
    out.posterior[[3, 9]], [out.class_balance] * 2, rtol=1e-6
  )
  np.testing.assert_allclose(out.confusion[1], 1 / C, rtol=1e-6)
  assert out.accuracy[1] == pytest.approx(1 / C)
  assert not out.one_sided[1]
  assert out.one_sided[5]  # one vote is of one class
  nothing = found()['nothing']
  for variant in ('dawid_skene', 'one_coin'):
    np.testing.assert_allclose(nothing[variant].posterior, 1 / C, rtol=1e-6)
    assert nothing[variant].log_likelihood == pytest.approx(0, abs=1e-4)
  np.testing.assert_allclose(
    nothing['coin prior'].posterior, [BALANCE] * N, rtol=1e-6
  )
  assert not any(nothing[variant].collapsed for variant in VARIANTS)


def test_who_only_votes_for_one_class_is_named():
  votes = DATA['one-sided']
  sided = [len(set(v) - {-1}) == 1 for v in votes.T]
  np.testing.assert_array_equal(
    found()['one-sided']['dawid_skene'].one_sided, sided
  )
  assert any(sided)
  assert not found()['dense']['dawid_skene'].one_sided.any()


def test_new_items():
  for name in DATA:
    np.testing.assert_allclose(
      found()[name]['again'], found()[name]['symbol'].posterior, rtol=1e-5
    )


def test_hundreds_of_votes_do_not_underflow():
  """.1^300 is no number of float32; of all who say 1 one can tell classes."""
  votes = np.ones((1, 300), np.int32)
  confusion = np.full((300, 2, 2), [[0.9, 0.1], [0.9, 0.1]])
  confusion[7] = [[2 / 3, 1 / 3], [1 / 3, 2 / 3]]
  posterior = aggregate.dawid_skene_posterior(votes, [0.5, 0.5], confusion)
  np.testing.assert_allclose(posterior, [[1 / 3, 2 / 3]], rtol=1e-4)


# --- across devices ----------------------------------------------------------


@pytest.mark.slow
def test_eight_devices_are_one():
  """Triples by jit, without moving items; a table per device."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  run = jax.jit(lambda votes: fitted(votes, 'dawid_skene'))
  votes = DATA['sparse']
  split = aggregate.triples_of(votes, shards=8)
  split = jax.device_put(split, NamedSharding(mesh, P('data')))
  program = run.lower(split).compile()
  for moved in ('all-gather', 'all-to-all', 'collective-permute'):
    assert moved not in program.as_text()
  own = aggregate.Aggregated(P('data'), *[P()] * 8)
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=own)
  one = run(votes)
  for other in (program(split), mapped(votes)):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 1e-6, 1e-6), other, one
    )


# --- what it is for ----------------------------------------------------------


def simulated(seed, n, systematic, accuracy=(0.4, 0.9), a=8, c=4):
  """Functions that vote on 70% of the items; a takes y for y + 1 + a or any."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, c, n)
  by = np.arange(a) % (c - 1) if systematic else rng.integers(0, c - 1, (n, a))
  right = rng.random((n, a)) < np.linspace(*accuracy, a)
  votes = np.where(right, labels[:, None], (labels[:, None] + 1 + by) % c)
  votes[rng.random((n, a)) > 0.7] = -1
  return votes.astype(np.int32), labels


@compiled
@jax.vmap
def compared(votes):
  """The labels by majority and by Dawid-Skene."""
  shares = aggregate.vote_shares(votes, num_classes=4)
  found = aggregate.dawid_skene(votes, num_classes=4)
  return jnp.argmax(shares, -1), jnp.argmax(found.posterior, -1)


def accuracies(*args, **kwargs):
  votes, labels = zip(
    *(simulated(seed, *args, **kwargs) for seed in range(4)), strict=True
  )
  guesses = compared(np.stack(votes))
  return [np.mean(guess == np.stack(labels)) for guess in guesses]


@pytest.mark.slow
def test_systematic_errors_are_seen_through_and_symmetric_ones_may_mislead():
  """Said in the docstring; .908 and .998, .79 and .75."""
  majority, matrices = accuracies(1500, True)
  assert matrices > majority + 0.05
  majority, matrices = accuracies(200, False, (0.5, 0.8), a=5)
  assert matrices < majority


def test_a_collapse_is_said():
  """EM that is free says class 1 of all that it has votes of."""
  free, strong = (found()['one-sided'][x] for x in ('one_coin', 'coin prior'))
  covered = (DATA['one-sided'] >= 0).any(1)
  assert free.collapsed
  assert free.one_sided.all()
  assert np.mean(free.posterior[covered].argmax(1) == 1) > 0.95
  assert not strong.collapsed
  right = strong.posterior.argmax(1) == ONE_SIDED
  assert right[covered].mean() > 0.75


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.exists(), reason=f'{FOLDER} is not here')
@pytest.mark.parametrize(('name', 'least'), [('bluebird', 0.89), ('dog', 0.84)])
def test_real_crowds(name, least):
  with np.load(FOLDER / f'crowd_{name}.npz') as data:
    votes = aggregate.triples(data['item'], data['worker'], data['answer'])
    truth = data['truth']
  found = aggregate.dawid_skene(votes)
  assert found.converged
  assert not found.collapsed
  assert np.mean(np.argmax(found.posterior, 1) == truth) >= least


# --- what is handed in -------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'class_balance': [0.5, 0.6]}, 'class_balance must have rows'),
    ({'class_balance': [[0.5, 0.5]]}, r'class_balance must be \[c\] = \[2\]'),
    ({'smoothing': -1.0}, 'smoothing must lie'),
    ({'accuracy_prior': (1, -1)}, 'accuracy_prior must lie'),
    ({'accuracy_prior': (1, 1, 1)}, 'accuracy_prior must be two'),
    ({'max_iter': 0}, 'max_iter must be at least 1'),
    ({'tol': -1.0}, 'tol must lie'),
    ({'num_classes': 1}, 'num_classes must be at least 2'),
  ],
)
def test_bad_options(options, match):
  with pytest.raises(ValueError, match=match):
    aggregate.dawid_skene([[0, 1]], **options)


def test_bad_laws():
  votes = aggregate.triples([0], [0], [1])
  with pytest.raises(ValueError, match='abstain_informative needs votes'):
    aggregate.dawid_skene(votes, abstain_informative=True)
  law = np.full((1, 2, 3), 1 / 3)
  with pytest.raises(ValueError, match=r'confusion must.*for triples'):
    aggregate.dawid_skene_posterior(votes, [0.5, 0.5], law)
  with pytest.raises(ValueError, match='confusion must be'):
    aggregate.dawid_skene_posterior(votes, [0.5, 0.5], law[0])
  with pytest.raises(ValueError, match='confusion must have rows'):
    aggregate.dawid_skene_posterior([[1]], [0.5, 0.5], law * np.nan)
  with pytest.raises(ValueError, match='class_balance must be'):
    aggregate.dawid_skene_posterior(votes, 0.5, law)
