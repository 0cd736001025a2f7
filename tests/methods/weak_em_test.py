"""Exact EM as a method: its terms, its masks, and learning from counts."""

import functools

from contract import Contract, bags, instance_network, optimizer
from fixture_methods import accuracy, batches, mlp, smooth, train
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import automata, losses
from jnl.data import load
from jnl.methods import weak_em
from jnl.nets import MLP, from_linen
from jnl.steps import bag_logits, supervised_bags
from jnl.train import fit_many

KEY = jax.random.key(0)


def infer(logits, batch):
  return automata.count(logits, batch['counts'], batch['mask'])


def small(**kwargs):
  return weak_em(smooth(3, 4, 2), optax.sgd(0.1), infer, **kwargs)


def batch_of(counts, weight=(1.0, 1.0, 1.0)):
  rng = np.random.default_rng(0)
  return {
    'x': rng.normal(size=(3, 4, 3)).astype(np.float32),
    'mask': np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool),
    'counts': np.array(counts),
    'index': np.arange(3),
    'weight': np.array(weight, np.float32),
  }


@functools.cache
def compiled():
  """A state to start from, and a step that is compiled once for all tests."""
  method = small(likelihood_weight=0.5, em_weight=2.0)
  return jax.jit(method.init)(KEY), jax.jit(method.step)


@jax.jit
def seen(state, batch):
  """Log-probabilities of instances, and what is inferred of them."""
  logits = bag_logits(small().predict, state, batch['x'])
  return jax.nn.log_softmax(logits), infer(logits, batch)


@pytest.mark.slow
def test_its_terms_are_those_of_the_posterior():
  (state, step), batch = compiled(), batch_of([2, 1, 3], [1.0, 2.0, 0.0])
  log_p, found = jax.device_get(seen(state, batch))
  _, metrics = step(state, batch, KEY)
  nll = -(found.log_likelihood * batch['weight']).sum() / 3
  entropy = -(found.posterior * log_p).sum(-1)
  instances = batch['mask'] * batch['weight'][:, None]
  em = (entropy * instances).sum() / instances.sum()
  np.testing.assert_allclose(metrics['nll'], nll, rtol=1e-5)
  np.testing.assert_allclose(metrics['em'], em, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], 0.5 * nll + 2 * em, rtol=1e-5)


def test_the_strong_view_learns_what_the_weak_one_infers():
  (state, step), batch = compiled(), batch_of([2, 1, 3])
  strong = batch['x'] + 1
  _, found = jax.device_get(seen(state, batch))
  log_p, _ = jax.device_get(seen(state, {**batch, 'x': strong}))
  entropy = -(found.posterior * log_p).sum(-1)
  expected = entropy[batch['mask']].mean()
  _, metrics = step(state, {**batch, 'x_strong': strong}, KEY)
  np.testing.assert_allclose(metrics['em'], expected, rtol=1e-5)


def test_an_impossible_bag_counts_for_nothing_and_is_reported():
  start, step = compiled()
  with_it, metrics = step(start, batch_of([2, 3, 3]), KEY)  # 3 of 2 instances
  without, _ = step(start, batch_of([2, 1, 3], [1.0, 0.0, 1.0]), KEY)
  jax.tree.map(np.testing.assert_array_equal, with_it.params, without.params)
  np.testing.assert_allclose(metrics['infeasible'], 1 / 3, rtol=1e-6)
  assert np.isfinite(metrics['loss'])


def test_a_run_that_diverges_shows_it():
  """No hang on an overflow, no loss of 0 from then on."""
  method = weak_em(from_linen(MLP(2, (4,)), (3,)), optax.sgd(1e10), infer)
  step, state, losses_ = jax.jit(method.step), jax.jit(method.init)(KEY), []
  for _ in range(8):
    state, metrics = step(state, batch_of([1, 1, 2]), KEY)
    losses_.append(float(metrics['loss']))
  assert np.isfinite(losses_[0])
  assert np.isnan(losses_[-1])
  assert np.all(np.isnan(losses_) | (np.array(losses_) > 0))


def test_bags_of_weight_0_leave_no_trace():
  """Whatever they hold, and however it is counted."""
  state, step = compiled()
  plain = batch_of([2, 1, 0], [1.0, 2.0, 0.0])
  expected = step(state, plain, KEY)
  assert np.isfinite(expected[1]['loss'])
  for count, fill in (-1, np.nan), (99, np.inf), (3, 1e30):
    full, empty = batch_of([2, 1, count]), plain['mask'].copy()
    full['x'][2], full['weight'], empty[2] = fill, plain['weight'], False
    for other in (full, {**full, 'mask': empty}):  # padding has no instances
      found = step(state, other, KEY)
      jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('name', ['likelihood_weight', 'em_weight'])
def test_weights_are_checked(name):
  with pytest.raises(ValueError, match=name):
    small(**{name: -1.0})


def test_masked_instances_do_not_matter():
  (state, step), batch = compiled(), batch_of([2, 1, 3])
  other = np.where(batch['mask'][..., None], batch['x'], np.float32(99))
  one, two = (step(state, {**batch, 'x': x}, KEY) for x in (batch['x'], other))
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope='module')
def digits():
  """Is a digit 5 or more? 150 bags of 8, of which the counts are known."""
  data = load('digits')
  labels = (data.train.labels >= 5).reshape(150, 8)
  test = {'x': data.test.x, 'labels': (data.test.labels >= 5).astype(np.int32)}
  return data.train.x.reshape(150, 8, 8, 8, 1), labels, test


MODEL = mlp(64, 128, 2)


def of_single_images(method, digits, counts):
  x, _, test = digits
  arrays = {'x': x, 'counts': counts, 'mask': np.ones((150, 8), bool)}
  state = train(method, batches(arrays, epochs=12, batch_size=1))
  return accuracy(method, state, test['x'], test['labels'])


@pytest.mark.slow
def test_counts_teach_single_instances(digits):
  """With 4 seeds: 96.6."""
  counts = digits[1].sum(1)
  method = weak_em(MODEL, optax.adam(1e-3), infer)
  assert of_single_images(method, digits, counts) > 0.94


@pytest.mark.slow
def test_shares_of_a_bag_teach_less(digits):
  """With 4 seeds: 80.6."""

  def share(logits, batch):
    uninformed = infer(jnp.zeros_like(logits), batch).posterior
    return losses.ce(logits, uninformed).mean(1)

  counts = digits[1].sum(1)
  method = supervised_bags(share, MODEL, optax.adam(1e-3))
  assert of_single_images(method, digits, counts) < 0.89


@pytest.mark.slow
def test_wrong_counts_teach_nothing(digits):
  counts = np.random.default_rng(0).permutation(digits[1].sum(1))
  method = weak_em(MODEL, optax.adam(1e-3), infer)
  assert of_single_images(method, digits, counts) < 0.75


@pytest.mark.slow
def test_a_trainer_teaches_as_much(digits):
  """The mean of two seeds."""
  x, labels, test = digits
  fitted = fit_many(
    weak_em(MODEL, optax.adam(1e-3), infer),
    {'x': x, 'counts': labels.sum(1), 'mask': np.ones((150, 8), bool)},
    jax.random.split(KEY),
    epochs=12,
    batch_size=1,
    held_out={'test': test},
    devices=jax.devices()[:1],
  )
  assert fitted.history['test_accuracy'][:, -1].mean() > 0.94


def count_of_labels(logits, batch):
  return automata.count(logits, batch['labels'], batch['mask'])


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return weak_em(instance_network(), optimizer(), count_of_labels)

  def arrays(self):
    return bags()
