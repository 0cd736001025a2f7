"""What methods are built from: passes, losses, steps; and two methods of it."""

from contract import (
  BATCH,
  SHARDS,
  Contract,
  EveryMode,
  N,
  bags,
  instance_network,
  network,
  optimizer,
)
from fixture_methods import co_divide, linear, reweight
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import (
  Aux,
  Model,
  Outputs,
  global_mean,
  pack_rows,
  unpack_rows,
)
from jnl.steps import (
  apply_views,
  each,
  ema,
  from_loss,
  guarded_step,
  model_keys,
  of_stream,
  per_example_step,
  supervised,
  supervised_bags,
  training_pass,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_each_unrolls_and_stacks():
  stacked = {'a': jnp.arange(4.0).reshape(2, 2)}
  found = each(lambda p, s: p['a'] * s, 2, stacked, jnp.array([1.0, 10.0]))
  np.testing.assert_array_equal(found, [[0, 1], [20, 30]])
  with pytest.raises(ValueError, match='count = 3'):
    each(lambda p: p, 3, stacked)


def test_supervised_is_gradient_descent_on_the_weighted_mean():
  squared = lambda z, y: ((z - jax.nn.one_hot(y, 3)) ** 2).sum(-1)
  method = supervised(squared, linear(), optax.sgd(0.1))
  batch = {
    'x': jnp.array([[1.0, 0.0], [0.0, 1.0]]),
    'labels': jnp.array([0, 2]),
    'weight': jnp.array([3.0, 1.0]),
    'index': jnp.array([0, 1]),
  }
  state, metrics = method.step(
    method.init(jax.random.key(0)), batch, jax.random.key(1)
  )
  assert metrics['loss'] == 1
  expected = np.zeros((2, 3))
  expected[0, 0], expected[1, 2] = 0.1 * 2 * 0.75, 0.1 * 2 * 0.25
  np.testing.assert_allclose(state.params, expected, rtol=1e-6)
  assert state.step == 1
  logits = method.predict(state, batch['x']).logits
  np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_rows_of_weight_zero_are_not_seen_by_the_network():
  def apply(params, stats, x, keys, train, mask=None):
    del keys, train
    seen = jnp.sum(jnp.where(mask[:, None], x, 0)) / jnp.sum(mask)
    return Outputs(x @ params, x), {'mean': seen}

  model = Model(lambda key: (jnp.ones((2, 2)), {'mean': jnp.float32(7)}), apply)
  params, stats = model.init(KEY)
  x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf], [3.0, 4.0]])

  def run(weight, x):
    def total(params):
      outputs, new = training_pass(model, params, stats, x, None, weight)
      return global_mean(outputs.logits, weight), new

    return jax.value_and_grad(total, has_aux=True)(params)

  (value, new), gradient = run(jnp.array([1.0, 0.0, 1.0]), x)
  (same, kept), other = run(jnp.array([1.0, 1.0]), x[::2])
  np.testing.assert_array_equal(gradient, other)
  assert value == same == 5
  assert new['mean'] == kept['mean'] == 5
  (value, new), gradient = run(jnp.zeros(3), x)
  assert value == 0
  assert new['mean'] == 7, 'nobody was there'
  np.testing.assert_array_equal(gradient, 0)
  with pytest.raises(ValueError, match=r'weight must be \[b\]'):
    run(jnp.ones((3, 1)), x)


def test_a_loss_that_was_broadcast_is_an_error():
  """[b, b] where [b] is meant passes `global_mean`, but no step."""
  spread = lambda z, y: losses.gce(z, y) * jnp.ones((4, 1))
  batch = {
    'x': jnp.ones((4, 2)),
    'labels': jnp.zeros(4, jnp.int32),
    'weight': jnp.ones(4),
    'index': jnp.arange(4),
  }
  method = supervised(spread, linear(), optax.sgd(0.1))
  state = method.init(KEY)
  with pytest.raises(ValueError, match=r'one value for each .*\(4, 4\)'):
    method.step(state, batch, KEY)
  for name in batch:
    lacking = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f'the batch lacks {name!r}; it has'):
      method.step(state, lacking, KEY)


def test_a_loss_that_loses_the_memory_is_found_out():
  def forgetful(params, state, batch, key):
    return jnp.sum(params), Aux(state.stats)

  method = from_loss(
    forgetful, linear(), optax.sgd(0.1), init_extra=lambda key: jnp.zeros(3)
  )
  with pytest.raises(ValueError, match=r'Aux\.extra'):
    method.step(method.init(jax.random.key(0)), {}, jax.random.key(0))


def noisy_pass(params, stats, x, keys, train, mask=None):
  """Adds noise of each example's key; its statistics are the mean input."""
  del train
  noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
  there = jnp.ones(len(x), bool) if mask is None else mask
  mean = global_mean(x, there[:, None] & jnp.ones(x.shape, bool))
  return Outputs(x @ params + noise, x), {**stats, 'mean': mean}


def test_views_pass_together_and_have_keys_of_their_own():
  model = Model(lambda key: (jnp.ones((2, 3)), {}), noisy_pass)
  params, stats = jnp.ones((2, 3)), {'mean': jnp.float32(0)}
  one, two = RNG.normal(size=(2, 4, 2)).astype(np.float32)
  keys, weight = jax.random.split(KEY, 4), jnp.array([1.0, 2.0, 0.0, 1.0])

  @jax.jit
  def passed(*views):
    return apply_views(model, params, stats, views, keys, weight)

  outputs, new = passed(one, two)
  there = weight > 0
  np.testing.assert_allclose(outputs.features[there, 0], one[there])
  np.testing.assert_allclose(outputs.features[there, 1], two[there])
  np.testing.assert_array_equal(outputs.features[~there], 0)
  both = np.stack([one[there], two[there]])
  np.testing.assert_allclose(new['mean'], both.mean(), rtol=1e-5)
  noise = outputs.logits - outputs.features @ params
  assert len(np.unique(np.round(noise.reshape(-1), 4))) == noise.size
  # A view does not hear of the others that come after it.
  alone, _ = passed(one)
  split = jax.random.split(keys[0], 1)
  expected = one[:1] @ params + jax.random.normal(split[0], (3,))
  np.testing.assert_allclose(alone.logits[:1, 0], expected, rtol=1e-5)
  with pytest.raises(ValueError, match='views must all have one shape'):
    passed(one, two[:, :1])


def test_a_stream_is_a_batch_with_keys_of_its_own():
  batch = {'x': jnp.ones(2), 'index': jnp.arange(2), 'x_u': jnp.zeros((3, 1))}
  stream = of_stream(batch, 'u')
  np.testing.assert_array_equal(stream['weight'], 1)
  np.testing.assert_array_equal(stream['index'], [0, 1, 2])
  bits = lambda keys: jax.random.key_data(keys)[:2]
  first, second = model_keys(KEY, batch), model_keys(KEY, stream, 'u')
  assert not np.any(np.all(bits(first) == bits(second), axis=1))
  given = of_stream({**batch, 'index_u': jnp.array([5, 0, 1])}, 'u')
  np.testing.assert_array_equal(given['index'], [5, 0, 1])
  with pytest.raises(ValueError, match="lacks 'x_meta'"):
    of_stream(batch, 'meta')


def test_a_step_is_guarded_against_what_is_not_finite():
  tx, params = optax.adam(0.1), {'w': jnp.ones(2)}
  old = params, {'mean': jnp.float32(1)}, tx.init(params)
  stats = {'mean': jnp.float32(2)}

  def stepped(gradient, allowed=True):
    return guarded_step(tx, {'w': jnp.array(gradient)}, old, stats, allowed)

  new, done = stepped([1.0, -1.0])
  assert done
  np.testing.assert_allclose(new[0]['w'], [0.9, 1.1], rtol=1e-5)
  assert new[1]['mean'] == 2
  for skipped in (
    stepped([1.0, jnp.inf]),
    stepped([1.0, 1.0], jnp.array(False)),
  ):
    jax.tree.map(np.testing.assert_array_equal, skipped[0], old)
    assert not skipped[1]


def test_rows_of_examples_descend_one_by_one():
  table, index = pack_rows(jnp.ones((4, 2))), jnp.array([3, 0, 1])
  gradient = jnp.array([[1.0, 2.0], [4.0, 4.0], [jnp.nan, 0.0]])
  where = jnp.array([True, True, False])
  new = per_example_step(table, index, gradient, 0.5, where=where)
  expected = [[-1, -1], [1, 1], [1, 1], [0.5, 0]]
  np.testing.assert_array_equal(unpack_rows(new, 4), expected)


def test_averages_keep_their_dtype():
  average = {'a': jnp.ones(2, jnp.bfloat16), 'b': jnp.zeros(1)}
  values = {'a': jnp.zeros(2), 'b': jnp.ones(1)}
  new = ema(average, values, jnp.float32(0.25))
  assert new['a'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(new['a'], 0.25)
  np.testing.assert_array_equal(new['b'], 0.75)


class TestSupervised(Contract):
  def make(self):
    return supervised(losses.gce, network(), optimizer())


class TestSupervisedBags(Contract):
  def make(self):
    def per_bag(logits, batch):
      return losses.count_nll(logits, batch['labels'], batch['mask'])

    return supervised_bags(per_bag, instance_network(), optimizer())

  def arrays(self):
    return bags()


class TestTwoNetworksAndARefit(EveryMode):
  def make(self):
    return co_divide(network(), optimizer(), N, SHARDS)


class TestASecondStream(Contract):
  def make(self):
    return reweight(network(), optimizer())

  def streams(self):
    return {'meta': BATCH + SHARDS}
