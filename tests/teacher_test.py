"""Averages: that training goes on without them, or learns from them."""

import functools

import chex
from contract import DIM, SHARDS, Contract, N, network, optimizer
from fixture_methods import co_divide
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import PAD, Aux, Method, Refit, global_mean
from jnl.nets import MLP, WideResNet, from_linen, from_nnx
from jnl.steps import linear, model_keys, supervised, training_pass
from jnl.teacher import (
  Averaged,
  averaged,
  batch_statistics,
  follow,
  norm_parameters,
  part_of,
  restore,
  student,
  taught,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
  'x': RNG.normal(size=(6, 4)).astype(np.float32),
  'labels': RNG.integers(0, 3, 6),
  'index': np.arange(6),
  'weight': np.ones(6, np.float32),
}


def plain():
  net = MLP(3, (5,), batch_norm=True)
  return supervised(losses.ce, from_linen(net, (4,)), optax.sgd(0.5))


DECAYS = (0.0, 0.8, 1.0)


@functools.cache
def ran():
  """States of the plain method, of an averaged one, of several decays at once.

  The first one, and those after each of three steps.
  """
  inner = plain()
  init = jax.jit(inner.init)

  def walk(step, state):
    states, step = [state], jax.jit(step)
    for _ in range(3):
      states.append(step(states[-1], BATCH, KEY)[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

  def step(state, batch, key, decay=0.8):
    return averaged(inner, decay=decay).step(state, batch, key)

  def swept(states, batch, key):
    each = lambda state, decay: step(state, batch, key, decay)
    return jax.vmap(each)(states, np.float32(DECAYS))

  first = init(KEY)
  started = first._replace(extra=Averaged(first.params, ()))
  several = jax.tree.map(lambda a: np.stack([a] * len(DECAYS)), started)
  states = walk(swept, several)
  by_decay = jax.tree.map(lambda a: a.swapaxes(0, 1), states)
  return walk(inner.step, first), walk(step, started), by_decay


def at(states, *place):
  return jax.tree.map(lambda a: a[place], states)


def equal(a, b, rtol=0.0):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_the_average_starts_where_training_does():
  start = jax.jit(averaged(plain()).init)(KEY)
  assert isinstance(start.extra, Averaged)
  equal(start.extra.params, start.params)


def test_the_average_follows_and_training_does_not_know():
  plainly, found, _ = ran()
  equal(plainly, student(found), 1e-6)
  average = at(plainly, 0).params
  for i in range(4):
    params = at(plainly, i).params
    average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, params)
    equal(average, at(found, i).extra.params, 1e-5)


def test_predicts_with_the_average_and_current_statistics():
  inner = plain()
  method = averaged(inner, decay=0.8)

  @jax.jit
  def program(state):
    with_average = student(state)._replace(params=state.extra.params)
    return (
      inner.predict(with_average, BATCH['x']),
      method.predict(state, BATCH['x']),
      inner.predict(student(state), BATCH['x']),
    )

  expected, found, of_student = jax.device_get(program(at(ran()[1], -1)))
  equal(expected, found)
  assert np.abs(found.logits - of_student.logits).max() > 1e-3


@pytest.mark.parametrize(('decay', 'follows'), [(0.0, -1), (1.0, 0)])
def test_limits(decay, follows):
  states = at(ran()[2], DECAYS.index(decay))
  equal(at(states, -1).extra.params, at(states, follows).params)


def test_the_inner_refit_sees_and_changes_what_is_trained():
  inner = plain()

  def collect(state, batch, key):
    assert state.extra == ()
    return inner.predict(state, batch['x']).logits

  def update(state, tables, key):
    assert state.extra == ()
    return state._replace(step=state.step + tables)

  method = averaged(
    Method(*inner[:3], Refit(collect, update, lambda epoch: epoch > 3))
  )
  state = at(ran()[1], -1)
  found, expected = jax.jit(
    lambda state: (
      method.refit.collect(state, BATCH, KEY),
      inner.predict(student(state), BATCH['x']).logits,
    )
  )(state)
  equal(found, expected)
  new = method.refit.update(state, 10, KEY)
  assert new.step == 13
  assert isinstance(new.extra, Averaged)
  equal(new.extra.params, state.extra.params)
  assert [method.refit.when(epoch) for epoch in (3, 4)] == [False, True]
  assert averaged(inner).refit is None


def test_decay_is_checked_and_may_be_swept():
  with pytest.raises(ValueError, match='decay'):
    averaged(plain(), decay=1.1)
  _, alone, swept = ran()
  equal(at(swept, DECAYS.index(0.8)), alone, 1e-4)
  averages = [at(swept, i, -1).extra.params for i in (0, 1)]
  leaves = zip(*map(jax.tree.leaves, averages), strict=True)
  assert max(np.abs(a - b).max() for a, b in leaves) > 1e-3


# --- learning from the average ------------------------------------------------


def test_follow_keeps_dtypes_and_its_decay_is_looked_at():
  old = {'a': jnp.ones(2, jnp.bfloat16), 'b': np.float32([4])}
  new = {'a': jnp.zeros(2), 'b': np.float32([8])}
  found = follow(old, new, 0.75)
  assert found['a'].dtype == jnp.bfloat16
  equal(found, {'a': [0.75, 0.75], 'b': [5.0]})
  for decay in (-0.1, 1.5, np.nan):
    with pytest.raises(ValueError, match='decay must lie in'):
      follow(old, new, decay)
  with pytest.raises(ValueError, match='decay'):
    follow(old, new, np.ones(2))


def test_parts_are_of_all_streams_and_make_up_the_whole():
  """Who is in which part, the key and the index say: not the row."""
  rng = np.random.default_rng(0)
  batch = {
    'x': np.full(64, np.nan),
    'index': np.arange(64, dtype=np.int32),
    'weight': rng.choice(np.float32([0, 0.5, 2]), 64),
    'x_l': np.zeros(32),
    'index_l': np.where(np.arange(32) < 30, np.arange(32), PAD),
    'weight_l': (np.arange(32) < 30).astype(np.float32),
  }

  @jax.jit
  def three(batch):
    return [part_of(batch, KEY, k, 3) for k in range(3)]

  parts = jax.device_get(three(batch))
  for name in ('weight', 'weight_l'):
    weights = np.stack([part[name] for part in parts])
    assert ((weights > 0).sum(0) <= 1).all()
    np.testing.assert_array_equal(weights.sum(0), batch[name])
    assert ((weights > 0).mean(1) > 0.1).all()
  np.testing.assert_array_equal(parts[0]['x_l'], batch['x_l'])
  turned = jax.tree.map(lambda a: np.roll(a, 5, axis=0), batch)
  equal(three(turned)[1]['weight'], np.roll(parts[1]['weight'], 5))
  other = part_of(batch, jax.random.key(1), 1, 3)['weight']
  assert (other != parts[1]['weight']).any()
  bare = part_of({'index': batch['index']}, KEY, 1, 3)['weight']
  np.testing.assert_array_equal(bare * batch['weight'], parts[1]['weight'])
  with pytest.raises(ValueError, match="lacks 'index'"):
    part_of({'weight': batch['weight']}, KEY, 1, 3)


LESSON = {
  'x': RNG.normal(size=(8, DIM)).astype(np.float32),
  'index': np.arange(8, dtype=np.int32),
  'weight': np.float32([1, 1, 0, 2, 1, 1, 1, 1]),
}
LESSON['x'][2] = np.nan
NETWORK = network()


def imitate(params, teacher, state, batch, key):
  """It learns the teacher's classes turned by one, and counts its calls."""
  x, weight = batch['x'], batch['weight']
  outputs, stats = training_pass(
    *(NETWORK, params, state.stats, x, model_keys(key, batch), weight)
  )
  said = jnp.roll(jax.nn.softmax(teacher(x).logits), 1, axis=1)
  said = jnp.where(weight[:, None] > 0, said, 0.25)
  loss = global_mean(losses.ce(outputs.logits, said), weight)
  return loss, Aux(stats, state.extra + 1, {'counted': state.extra})


@functools.cache
def lessons():
  """The state before a step and what it becomes, by how much is restored."""
  make = lambda **options: taught(
    *(imitate, NETWORK, optimizer()),
    decay=lambda step: 0.5 + 0 * step,
    init_extra=lambda key: jnp.float32(0),
    **options,
  )
  ways = {
    'plain': make(),
    'ahead': make(look_ahead=2, last=False),
    'not_restored': make(look_ahead=2, restore=False),
  }
  start = jax.jit(ways['plain'].init)(KEY)

  @jax.jit
  def run(state, batch):
    return {k: method.step(state, batch, KEY) for k, method in ways.items()}

  started, _ = run(start, LESSON)['plain']  # student and teacher differ
  wrong = {**LESSON, 'x': np.where(np.eye(8)[:, 1:2] == 1, np.inf, LESSON['x'])}
  found = run(started, LESSON), run(started, wrong), ways['plain']
  return start, started, *found


def test_the_teacher_is_a_copy_of_the_student_at_first():
  start = lessons()[0]
  equal(start.params, start.extra.params)
  ours, theirs = map(jax.tree.leaves, (start.params, start.extra.params))
  for a, b in zip(ours, theirs, strict=True):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_a_step_ahead_moves_the_teacher_and_puts_the_student_back():
  _, before, found, _, method = lessons()
  ahead, kept, plain = (found[k][0] for k in sorted(found))
  equal(
    plain.extra.params, follow(before.extra.params, plain.params, 0.5), 1e-6
  )
  # It was taught by what is ahead, from where it stood.
  extra = Averaged(ahead.extra.params, before.extra.extra)
  single = before._replace(extra=extra)
  again, _ = jax.jit(method.step)(single, LESSON, KEY)
  equal(ahead.params, again.params, 1e-5)
  # Statistics are of one pass, and so is what the method counts.
  equal(ahead.stats, plain.stats, 1e-6)
  assert np.abs(kept.stats['mean'] - plain.stats['mean']).max() > 1e-4
  for state in (plain, ahead, kept):
    assert student(state).extra == before.extra.extra + 1
    assert state.step == before.step + 1


def test_predicts_with_the_teacher():
  _, state, _, _, method = lessons()
  found = jax.jit(method.predict)(state, LESSON['x'])
  outputs, _ = NETWORK.apply(
    state.extra.params, state.stats, LESSON['x'], None, False
  )
  equal(found.logits, outputs.logits, 1e-5)


def test_steps_that_are_not_finite_are_skipped():
  _, before, _, wrong, _ = lessons()
  for state, metrics in wrong.values():
    assert metrics['skipped'] == 1
    equal((state.params, state.opt), (before.params, before.opt))
    assert student(state).extra == before.extra.extra
    assert state.step == before.step + 1
    chex.assert_tree_all_finite(state)


def test_what_is_taught_is_looked_at():
  make = functools.partial(taught, imitate, NETWORK, optimizer())
  for change in (
    {'decay': 1.5},
    {'decay': -0.1},
    {'look_ahead': -1},
    {'look_ahead': 1.5},
    {'look_ahead': np.array([1, 2])},
    {'mode': 'deeper'},
  ):
    with pytest.raises(ValueError, match=next(iter(change))):
      make(**change)
  with pytest.raises(TypeError, match='model must be'):
    taught(imitate, 'mlp', optimizer())


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    method = co_divide(network(), optimizer(), N, SHARDS)
    return averaged(method, decay=0.9)


# --- networks that go on learning ---------------------------------------------


class Normed(nnx.Module):
  """An NNX network with both kinds of normalization, and dropout."""

  def __init__(self, rngs, rate):
    self.first = nnx.Linear(4, 5, rngs=rngs)
    self.batch = nnx.BatchNorm(5, rngs=rngs)
    self.layer_norm = nnx.LayerNorm(5, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    x = self.layer_norm(self.batch(self.first(x)))
    return self.out(self.dropout(x))


def nnx_network(rate):
  return from_nnx(lambda rngs: Normed(rngs, rate))


def test_which_parameters_are_of_norms():
  model = from_linen(WideResNet(3, 10, 1), (8, 8, 1))
  mask = norm_parameters(*jax.eval_shape(model.init, KEY))
  for path, chosen in jax.tree_util.tree_leaves_with_path(mask):
    assert chosen == ('BatchNorm' in jax.tree_util.keystr(path))
  mask = norm_parameters(*nnx_network(0.0).init(KEY))
  chosen = {name for name, own in mask.items() if all(own.values())}
  assert chosen == {'batch', 'layer_norm'}
  assert not any(jax.tree.leaves([mask['first'], mask['out']]))
  custom = {'norm': {'gain': 1.0, 'kernel': 2.0}, 'scale': 3.0, 'w': 4.0}
  assert not any(jax.tree.leaves(norm_parameters(custom, {})))
  mask = norm_parameters(custom, {'norm': {'mean': 0.0, 'var': 1.0}})
  assert mask == {
    'norm': {'gain': True, 'kernel': True}, 'scale': False, 'w': False
  }  # fmt: skip


@pytest.mark.parametrize('kind', ['linen', 'nnx'])
def test_the_batch_normalizes_whatever_is_asked_for(kind):
  nets = {
    'linen': lambda rate: from_linen(MLP(3, (5,), True, rate), (4,)),
    'nnx': nnx_network,
  }
  model = nets[kind](0.0)
  params, stats = model.init(KEY)
  x, mask = 3 + BATCH['x'], np.array([1, 1, 1, 0, 1, 1], bool)
  keys = model_keys(KEY, BATCH)
  normalizing = batch_statistics(model)
  for there in (None, mask):
    seen = mask if there is not None else np.ones(6, bool)
    wanted, _ = model.apply(params, stats, x, keys, True, jnp.asarray(seen))
    given = () if there is None else (jnp.asarray(there),)
    outputs, new = normalizing.apply(params, stats, x, None, False, *given)
    np.testing.assert_array_equal(outputs.logits, wanted.logits)
    chex.assert_trees_all_equal(new, stats)
  with pytest.raises(ValueError, match='draws random numbers'):
    batch_statistics(nets[kind](0.3)).apply(params, stats, x, None, False)
  with pytest.raises(ValueError, match='at least 2 examples'):
    normalizing.apply(params, stats, x[:1], None, False)


def test_a_network_without_statistics_answers_as_it_did():
  model = batch_statistics(linear(4, 3))
  params, stats = model.init(KEY)
  found, _ = model.apply(params, stats, BATCH['x'][:1], None, True)
  assert found.logits.shape == (1, 3)
  with pytest.raises(TypeError, match=r'must be a jnl\.Model'):
    batch_statistics(MLP(3))


def test_what_goes_back_to_the_source():
  source = {
    'w': np.zeros((40, 50), np.float32),
    'b': np.zeros(2000, np.float32),
    'n': np.int32(0),
    'half': jnp.zeros(9, jnp.bfloat16),
  }
  params = jax.tree.map(lambda a: jnp.ones_like(a), source)
  new, masks = jax.jit(restore)(KEY, params, source, 0.1)
  for name in ('w', 'b', 'half'):
    np.testing.assert_array_equal(np.float32(new[name]), 1 - masks[name])
    assert new[name].dtype == params[name].dtype
  assert new['n'] == 1
  assert not masks['n']
  for name in ('w', 'b'):  # four deviations of 2,000 draws
    assert abs(masks[name].mean() - 0.1) < 4 * (0.09 / 2000) ** 0.5
  # Each number by itself, and each array by a key of its own.
  assert 0 < masks['w'].mean(0).std() < 0.1
  assert np.any(masks['w'].reshape(-1) != masks['b'])
  for rate, wanted in ((0.0, params), (1.0, {**source, 'n': params['n']})):
    chex.assert_trees_all_equal(restore(KEY, params, source, rate)[0], wanted)
  for bad, error in (
    ({'rate': -0.1}, 'rate must lie'),
    ({'rate': 0.1, 'source': {'w': source['w']}}, 'a tree like params'),
    ({'rate': 0.1, 'source': {**source, 'w': source['b']}}, 'like params'),
    ({'rate': 0.1, 'key': 0}, 'key must be made'),
  ):
    given = {'key': KEY, 'params': params, 'source': source, **bad}
    with pytest.raises((ValueError, TypeError), match=error):
      restore(**given)


def test_averages_leave_whole_numbers_alone():
  old = {'w': jnp.zeros(2), 'n': jnp.int32(7)}
  new = {'w': jnp.ones(2), 'n': jnp.int32(7)}
  moved = jax.jit(follow)(old, new, 0.999)
  assert moved['n'] == 7
  assert moved['n'].dtype == jnp.int32
  np.testing.assert_allclose(moved['w'], 0.001, rtol=1e-4)
