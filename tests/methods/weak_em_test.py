"""Exact EM as a method: its terms, its masks, and learning from counts."""

from contract import EveryMode, bags, instance_network, optimizer
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
  model = from_linen(MLP(2, (4,)), (3,))
  return weak_em(model, optax.sgd(0.1), infer, **kwargs)


def batch_of(counts, weight=(1.0, 1.0, 1.0)):
  rng = np.random.default_rng(0)
  return {
    'x': jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32),
    'mask': jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool),
    'counts': jnp.array(counts),
    'index': jnp.arange(3),
    'weight': jnp.array(weight),
  }


def test_its_terms_are_those_of_the_posterior():
  method = small(likelihood_weight=0.5, em_weight=2.0)
  state, batch = method.init(KEY), batch_of([2, 1, 3], [1.0, 2.0, 0.0])
  logits = bag_logits(method.predict, state, batch['x'])
  found = infer(logits, batch)
  _, metrics = method.step(state, batch, KEY)
  nll = -(found.log_likelihood * batch['weight']).sum() / 3
  entropy = -(found.posterior * jax.nn.log_softmax(logits)).sum(-1)
  instances = batch['mask'] * batch['weight'][:, None]
  em = (entropy * instances).sum() / instances.sum()
  np.testing.assert_allclose(metrics['nll'], nll, rtol=1e-5)
  np.testing.assert_allclose(metrics['em'], em, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], 0.5 * nll + 2 * em, rtol=1e-5)


def test_the_strong_view_learns_what_the_weak_one_infers():
  method = small(likelihood_weight=0.0)
  state, batch = method.init(KEY), batch_of([2, 1, 3])
  strong = batch['x'] + 1
  logits = bag_logits(method.predict, state, strong)
  found = infer(bag_logits(method.predict, state, batch['x']), batch)
  entropy = -(found.posterior * jax.nn.log_softmax(logits)).sum(-1)
  expected = entropy[batch['mask']].mean()
  _, metrics = method.step(state, {**batch, 'x_strong': strong}, KEY)
  np.testing.assert_allclose(metrics['em'], expected, rtol=1e-5)


def test_an_impossible_bag_counts_for_nothing_and_is_reported():
  step = jax.jit(small().step)
  start = small().init(KEY)
  with_it, metrics = step(start, batch_of([2, 3, 3]), KEY)  # 3 of 2 instances
  without, _ = step(start, batch_of([2, 1, 3], [1.0, 0.0, 1.0]), KEY)
  jax.tree.map(np.testing.assert_array_equal, with_it.params, without.params)
  np.testing.assert_allclose(metrics['infeasible'], 1 / 3, rtol=1e-6)
  assert np.isfinite(metrics['loss'])


def test_a_run_that_diverges_shows_it():
  """No hang on an overflow, no loss of 0 from then on."""
  model = from_linen(MLP(2, (4,)), (3,))
  method = weak_em(model, optax.sgd(1e10), infer)
  step, state, seen = jax.jit(method.step), method.init(KEY), []
  for _ in range(8):
    state, metrics = step(state, batch_of([1, 1, 2]), KEY)
    seen.append(float(metrics['loss']))
  assert np.isfinite(seen[0])
  assert np.isnan(seen[-1])
  assert np.all(np.isnan(seen) | (np.array(seen) > 0))


def test_bags_of_weight_0_leave_no_trace():
  """Whatever they hold, and however it is counted."""
  step, state = jax.jit(small().step), small().init(KEY)
  plain = batch_of([2, 1, 0], [1.0, 2.0, 0.0])
  expected = step(state, plain, KEY)
  assert np.isfinite(expected[1]['loss'])
  for count, fill in (-1, np.nan), (99, np.inf), (3, 1e30):
    counts, x = plain['counts'].at[2].set(count), plain['x'].at[2].set(fill)
    found = step(state, {**plain, 'counts': counts, 'x': x}, KEY)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    mask = plain['mask'].at[2].set(False)  # padding: a bag without instances
    padded = {**plain, 'counts': counts, 'x': x, 'mask': mask}
    jax.tree.map(
      np.testing.assert_array_equal, step(state, padded, KEY), expected
    )


@pytest.mark.parametrize('name', ['likelihood_weight', 'em_weight'])
def test_weights_are_checked(name):
  with pytest.raises(ValueError, match=name):
    small(**{name: -1.0})


def test_masked_instances_do_not_matter():
  method = small()
  state, batch = method.init(KEY), batch_of([2, 1, 3])
  other = jnp.where(batch['mask'][..., None], batch['x'], 99.0)
  one = method.step(state, batch, KEY)
  two = method.step(state, {**batch, 'x': other}, KEY)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope='module')
def digits():
  """Is a digit 5 or more? 150 bags of 8, of which the counts are known."""
  data = load('digits')
  labels = (data.train.labels >= 5).reshape(150, 8)
  test = {'x': data.test.x, 'labels': (data.test.labels >= 5).astype(np.int32)}
  return data.train.x.reshape(150, 8, 8, 8, 1), labels, test


def accuracy(method, digits, counts):
  """On single test images, mean of two seeds."""
  x, _, test = digits
  fitted = fit_many(
    method,
    {'x': x, 'counts': counts, 'mask': np.ones((150, 8), bool)},
    jax.random.split(KEY),
    epochs=12,
    batch_size=1,
    held_out={'test': test},
    devices=jax.devices()[:1],
  )
  return fitted.history['test_accuracy'][:, -1].mean()


def test_counts_teach_single_instances(digits):
  model = from_linen(MLP(2, (128,)), (8, 8, 1))
  counts = digits[1].sum(1)

  def share(logits, batch):
    uninformed = infer(jnp.zeros_like(logits), batch).posterior
    return losses.ce(logits, uninformed).mean(1)

  tx = optax.adam(1e-3)
  em = accuracy(weak_em(model, tx, infer), digits, counts)
  shared = accuracy(supervised_bags(share, model, tx), digits, counts)
  # With 4 seeds: 96.6 and 80.6.
  assert em > 0.94
  assert em > shared + 0.05


def test_wrong_counts_teach_nothing(digits):
  model = from_linen(MLP(2, (128,)), (8, 8, 1))
  counts = np.random.default_rng(0).permutation(digits[1].sum(1))
  em = accuracy(weak_em(model, optax.adam(1e-3), infer), digits, counts)
  assert em < 0.75


def count_of_labels(logits, batch):
  return automata.count(logits, batch['labels'], batch['mask'])


class TestContract(EveryMode):
  def make(self):
    return weak_em(instance_network(), optimizer(), count_of_labels)

  def arrays(self):
    return bags()
