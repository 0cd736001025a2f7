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
  each_optimizer,
  ema,
  from_loss,
  guarded_step,
  mix,
  mixup_ratio,
  model_keys,
  of_stream,
  pair,
  per_example_step,
  supervised,
  supervised_bags,
  training_pass,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_each_unrolls_and_stacks():
  @jax.jit
  def scaled(stacked, factors):
    return each(lambda p, s: p['a'] * s, 2, stacked, factors)

  stacked = {'a': np.arange(4).reshape(2, 2)}
  found = scaled(stacked, np.array([1, 10]))
  np.testing.assert_array_equal(found, [[0, 1], [20, 30]])
  with pytest.raises(ValueError, match='count = 3'):
    each(lambda p: p, 3, stacked)


def test_a_pair_is_two_networks_with_keys_and_steps_of_their_own():
  model, x = network(), np.float32(RNG.normal(size=(5, 6)))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))

  @jax.jit
  def run(x):
    both, keys = pair(model), jax.random.split(KEY, 5)
    params, stats = both.init(KEY)
    there = np.ones(5, bool)
    trained, new = both.apply(params, stats, x, keys, True, there)
    outputs, _ = both.apply(params, stats, x, None, False)
    gradient = jax.tree.map(
      lambda p: p * np.float32([1, 100])[:, None, None], params
    )
    one = jax.tree.map(lambda g: g[1], gradient)
    own = each_optimizer(tx)
    steps = (
      own.update(gradient, own.init(gradient), gradient)[0],
      tx.update(one, tx.init(one), one)[0],
    )
    return params, trained, new, outputs, steps

  params, trained, new, outputs, (updates, alone) = jax.device_get(run(x))
  logits = outputs.aux.logits
  assert logits.shape == (2, 5, 4)
  for k in range(2):
    h = np.tanh(x @ params['hidden'][k])
    np.testing.assert_allclose(logits[k], h @ params['logits'][k], atol=1e-5)
    np.testing.assert_allclose(
      outputs.features[:, k * 16 : (k + 1) * 16], h, atol=1e-5
    )
  np.testing.assert_allclose(outputs.logits, logits.mean(0), rtol=1e-5)
  # Dropout falls differently, and so do statistics.
  dropped = trained.aux.features == 0
  assert (dropped[0] != dropped[1]).any()
  assert (new['mean'][0] != new['mean'][1]).any()
  # A clip by the norm is of each network alone.
  one = jax.tree.map(lambda u: u[1], updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), one, alone)


def test_mixed_examples():
  x = {'a': np.float32([[1, 0], [0, 1]]), 'b': jnp.ones(2, jnp.bfloat16)}
  found = mix(np.float32(0.75), x, jax.tree.map(lambda a: a[::-1], x))
  np.testing.assert_array_equal(found['a'], [[0.75, 0.25], [0.25, 0.75]])
  assert found['b'].dtype == jnp.bfloat16
  with pytest.raises(TypeError, match='floating-point inputs, got int'):
    mix(0.5, np.arange(2), np.arange(2))
  draws = lambda alpha, **kw: jax.vmap(
    lambda key: mixup_ratio(key, alpha, **kw)
  )(jax.random.split(KEY, 4000))
  found = jax.jit(
    lambda: [(draws(a), draws(a, major=True)) for a in (0.1, 1.0, 32.0)]
  )()
  for alpha, (ratio, major) in zip((0.1, 1.0, 32.0), found, strict=True):
    variance = 1 / (4 * (2 * alpha + 1))  # of a Beta(alpha, alpha)
    assert abs(ratio.mean() - 0.5) < 0.05 * variance**0.5
    np.testing.assert_allclose(ratio.var(), variance, rtol=0.06)
    kurtosis = ((ratio - 0.5) ** 4).mean() / variance**2
    np.testing.assert_allclose(kurtosis, 3 - 6 / (2 * alpha + 3), rtol=0.08)
    np.testing.assert_allclose(major, np.maximum(ratio, 1 - ratio), atol=1e-6)
  with pytest.raises(ValueError, match='alpha must be positive'):
    mixup_ratio(KEY, 0.0)


def test_supervised_is_gradient_descent_on_the_weighted_mean():
  squared = lambda z, y: ((z - jax.nn.one_hot(y, 3)) ** 2).sum(-1)
  method = supervised(squared, linear(), optax.sgd(0.1))
  batch = {
    'x': np.eye(2, dtype=np.float32),
    'labels': np.array([0, 2]),
    'weight': np.array([3, 1], np.float32),
    'index': np.array([0, 1]),
  }

  @jax.jit
  def stepped(batch):
    state, metrics = method.step(method.init(KEY), batch, KEY)
    return state, metrics, method.predict(state, batch['x']).logits

  state, metrics, logits = stepped(batch)
  assert metrics['loss'] == 1
  expected = np.zeros((2, 3))
  expected[0, 0], expected[1, 2] = 0.1 * 2 * 0.75, 0.1 * 2 * 0.25
  np.testing.assert_allclose(state.params, expected, rtol=1e-6)
  assert state.step == 1
  np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_rows_of_weight_zero_are_not_seen_by_the_network():
  def apply(params, stats, x, keys, train, mask=None):
    del keys, train
    seen = jnp.sum(jnp.where(mask[:, None], x, 0)) / jnp.sum(mask)
    return Outputs(x @ params, x), {'mean': seen}

  params, stats = np.ones((2, 2), np.float32), {'mean': np.float32(7)}
  model = Model(lambda key: (params, stats), apply)
  x = np.float32([[1, 2], [np.nan, np.inf], [3, 4]])

  @jax.jit
  def run(weight, x):
    def total(params):
      outputs, new = training_pass(model, params, stats, x, None, weight)
      return global_mean(outputs.logits, weight), new

    return jax.value_and_grad(total, has_aux=True)(params)

  (value, new), gradient = run(np.float32([1, 0, 1]), x)
  (same, kept), other = run(np.ones(2, np.float32), x[::2])
  np.testing.assert_array_equal(gradient, other)
  assert value == same == 5
  assert new['mean'] == kept['mean'] == 5
  (value, new), gradient = run(np.zeros(3, np.float32), x)
  assert value == 0
  assert new['mean'] == 7, 'nobody was there'
  np.testing.assert_array_equal(gradient, 0)
  with pytest.raises(ValueError, match=r'weight must be \[b\]'):
    run(np.ones((3, 1), np.float32), x)


def trace(method, batch):
  jax.eval_shape(method.step, jax.eval_shape(method.init, KEY), batch, KEY)


def test_soft_labels_of_weight_zero_may_be_anything():
  model, rng = network(), np.random.default_rng(0)
  labels = rng.dirichlet(np.ones(4), 5).astype(np.float32)
  batch = {
    'x': rng.normal(size=(5, 6)).astype(np.float32),
    'labels': labels,
    'index': np.arange(5),
    'weight': np.float32([1, 0, 2, 1, 0]),
  }
  method = supervised(losses.ce, model, optax.sgd(0.1))
  step, start = jax.jit(method.step), jax.jit(method.init)(KEY)
  expected = step(start, batch, KEY)
  garbled = labels.copy()
  garbled[1], garbled[4] = np.nan, [7, -1, 0, np.inf]
  found = step(start, {**batch, 'labels': garbled}, KEY)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_loss_that_was_broadcast_is_an_error():
  """[b, b] where [b] is meant passes `global_mean`, but no step."""
  spread = lambda z, y: losses.gce(z, y) * jnp.ones((4, 1))
  batch = {
    'x': np.ones((4, 2), np.float32),
    'labels': np.zeros(4, np.int32),
    'weight': np.ones(4, np.float32),
    'index': np.arange(4),
  }
  method = supervised(spread, linear(), optax.sgd(0.1))
  with pytest.raises(ValueError, match=r'one value for each .*\(4, 4\)'):
    trace(method, batch)
  for name in batch:
    lacking = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f'the batch lacks {name!r}; it has'):
      trace(method, lacking)


def test_a_loss_that_loses_the_memory_is_found_out():
  def forgetful(params, state, batch, key):
    return jnp.sum(params), Aux(state.stats)

  method = from_loss(
    forgetful, linear(), optax.sgd(0.1), init_extra=lambda key: jnp.zeros(3)
  )
  with pytest.raises(ValueError, match=r'Aux\.extra'):
    trace(method, {})


def noisy_pass(params, stats, x, keys, train, mask=None):
  """Adds noise of each example's key; its statistics are the mean input."""
  del train
  noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
  there = jnp.ones(len(x), bool) if mask is None else mask
  mean = global_mean(x, there[:, None] & jnp.ones(x.shape, bool))
  return Outputs(x @ params + noise, x), {**stats, 'mean': mean}


def test_views_pass_together_and_have_keys_of_their_own():
  params, stats = np.ones((2, 3), np.float32), {'mean': np.float32(0)}
  model = Model(lambda key: (params, {}), noisy_pass)
  one, two = RNG.normal(size=(2, 4, 2)).astype(np.float32)
  weight = np.array([1, 2, 0, 1], np.float32)

  @jax.jit
  def passed(one, two):
    """Both views, the first one alone, and the noise of its first row."""
    keys = jax.random.split(KEY, 4)
    first = jax.random.normal(jax.random.split(keys[0], 1)[0], (3,))
    both, alone = (
      apply_views(model, params, stats, views, keys, weight)
      for views in ((one, two), (one,))
    )
    return both, alone[0], first

  (outputs, new), alone, first = jax.device_get(passed(one, two))
  there = weight > 0
  np.testing.assert_allclose(outputs.features[there, 0], one[there])
  np.testing.assert_allclose(outputs.features[there, 1], two[there])
  np.testing.assert_array_equal(outputs.features[~there], 0)
  both = np.stack([one[there], two[there]])
  np.testing.assert_allclose(new['mean'], both.mean(), rtol=1e-5)
  noise = outputs.logits - outputs.features @ params
  assert len(np.unique(np.round(noise.reshape(-1), 4))) == noise.size
  # A view does not hear of the others that come after it.
  expected = one[:1] @ params + first
  np.testing.assert_allclose(alone.logits[:1, 0], expected, rtol=1e-5)
  with pytest.raises(ValueError, match='views must all have one shape'):
    passed(one, two[:, :1])


def test_a_stream_is_a_batch_with_keys_of_its_own():
  batch = {'x': np.ones(2), 'index': np.arange(2), 'x_u': np.zeros((3, 1))}
  index_u = np.array([5, 0, 1])

  @jax.jit
  def of_keys(batch):
    keys = model_keys(KEY, batch), model_keys(KEY, of_stream(batch, 'u'), 'u')
    given = of_stream({**batch, 'index_u': index_u}, 'u')
    return *map(jax.random.key_data, keys), of_stream(batch, 'u'), given

  first, second, stream, given = jax.device_get(of_keys(batch))
  np.testing.assert_array_equal(stream['weight'], 1)
  np.testing.assert_array_equal(stream['index'], [0, 1, 2])
  assert not np.any(np.all(first[:2] == second[:2], axis=1))
  np.testing.assert_array_equal(given['index'], index_u)
  with pytest.raises(ValueError, match="lacks 'x_meta'"):
    of_stream(batch, 'meta')


def test_a_step_is_guarded_against_what_is_not_finite():
  tx, params = optax.adam(0.1), {'w': np.ones(2, np.float32)}
  old = params, {'mean': np.float32(1)}, jax.jit(tx.init)(params)
  stats = {'mean': np.float32(2)}

  @jax.jit
  def stepped(gradient, allowed):
    return guarded_step(tx, {'w': gradient}, old, stats, allowed)

  new, done = stepped(np.float32([1, -1]), np.True_)
  assert done
  np.testing.assert_allclose(new[0]['w'], [0.9, 1.1], rtol=1e-5)
  assert new[1]['mean'] == 2
  for gradient, allowed in (([1, np.inf], np.True_), ([1, 1], np.False_)):
    kept, done = stepped(np.float32(gradient), allowed)
    jax.tree.map(np.testing.assert_array_equal, kept, old)
    assert not done


def test_rows_of_examples_descend_one_by_one():
  gradient = np.float32([[1, 2], [4, 4], [np.nan, 0]])

  @jax.jit
  def descended(index, gradient, where):
    table = pack_rows(jnp.ones((4, 2)))
    table = per_example_step(table, index, gradient, 0.5, where=where)
    return unpack_rows(table, 4)

  new = descended(np.array([3, 0, 1]), gradient, np.array([True, True, False]))
  np.testing.assert_array_equal(new, [[-1, -1], [1, 1], [1, 1], [0.5, 0]])


def test_averages_keep_their_dtype():
  average = {'a': np.ones(2, jnp.bfloat16), 'b': np.zeros(1, np.float32)}
  values = {'a': np.zeros(2, np.float32), 'b': np.ones(1, np.float32)}
  new = jax.jit(ema)(average, values, np.float32(0.25))
  assert new['a'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(new['a'], 0.25)
  np.testing.assert_array_equal(new['b'], 0.75)


class TestSupervised(Contract):
  def make(self):
    return supervised(losses.gce, network(), optimizer())


@pytest.mark.slow
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


@pytest.mark.slow
class TestASecondStream(Contract):
  def make(self):
    return reweight(network(), optimizer())

  def streams(self):
    return {'meta': BATCH + SHARDS}
