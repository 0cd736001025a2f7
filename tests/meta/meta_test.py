"""Meta gradients, STORM's statistics, and the small networks."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, meta
from jnl.meta import _statistics as own
from jnl.nets import MLP, StridedCNN, from_linen

KEY = jax.random.key(0)


# --- gradients through a step ------------------------------------------------

OPTIMIZERS = {
  'sgd': optax.sgd(0.3),
  'momentum': optax.chain(
    optax.add_decayed_weights(1e-2), optax.sgd(0.3, momentum=0.9, nesterov=True)
  ),
  # Reverse mode is NaN for units that never were active, but for eps_root.
  'adam': optax.adam(1e-2, eps_root=1e-12),
  'first_adam': meta.first_adam(1e-2, eps=1e-3),
}
NETS = {
  'mlp': lambda: from_linen(MLP(3, (8,), batch_norm=True), (6, 6, 1)),
  'cnn': lambda: from_linen(
    StridedCNN(3, (3, 4), 5, batch_norm=True), (6, 6, 1)
  ),
}


def problem(model, seed=0, b=5):
  """Parameters, losses of a batch and a loss on another, in float64."""
  rng = np.random.default_rng(seed)
  params, stats = jax.jit(model.init)(KEY)
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, x_meta = rng.normal(size=(2, b, 6, 6, 1))
  y, y_meta = rng.integers(0, 3, (2, b))

  @jax.jit  # traced once for all that it is derived for
  def per_example(params, x, y):
    return losses.ce(model.apply(params, stats, x, None, True)[0].logits, y)

  return (
    params,
    lambda p: per_example(p, x, y),
    lambda p: jnp.mean(per_example(p, x_meta, y_meta)),
  )


@pytest.mark.parametrize(
  ('net', 'names'),
  [
    ('mlp', tuple(OPTIMIZERS)),
    pytest.param('cnn', ('momentum', 'adam'), marks=pytest.mark.slow),
  ],
)
def test_forward_is_reverse_second_order(net, names):
  with jax.enable_x64(True):
    params, per_example, meta_loss = problem(NETS[net]())

    @jax.jit
    def both(weights):
      """For each optimizer, in a state that has seen a gradient."""
      earlier = jax.grad(lambda p: jnp.sum(per_example(p) ** 2))(params)
      found = []
      for tx in map(OPTIMIZERS.get, names):
        opt = tx.update(earlier, tx.init(params), params)[1]
        rest = (weights, params, opt, tx)
        found.append(
          [
            f(per_example, meta_loss, *rest)
            for f in (meta.meta_gradient, meta.reverse_meta_gradient)
          ]
        )
      return found

    for name, (forward, reverse) in zip(
      names, both(np.array([0.3, 1.0, 0.0, 0.5, 2.0])), strict=True
    ):
      scale = np.abs(reverse.weights).max()
      assert scale > 0
      np.testing.assert_allclose(
        forward.weights, reverse.weights, atol=1e-5 * scale, err_msg=name
      )
      for ours, theirs in zip(
        jax.tree.leaves(forward[1:]), jax.tree.leaves(reverse[1:]), strict=True
      ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@functools.partial(jax.jit, static_argnames='tx')
def moved_and_pulled(g, direction, tx):
  """A first step along a gradient, and what its derivative makes of another."""
  moved, _, pull = meta.virtual_step(g, jnp.zeros(3), tx.init(g), tx)
  return moved, pull(direction)


def test_first_adam_by_hand():
  g, ones = np.array([2.0, -1e-3, 0.0], np.float32), np.ones(3, np.float32)
  tx = meta.first_adam(0.1, b2=0.99, eps=1e-4)
  moved, pulled = moved_and_pulled(g, ones, tx)
  effective = 1e-3
  np.testing.assert_allclose(moved, -0.1 * g / (np.abs(g) + effective), 1e-6)
  slope = -0.1 * effective / (np.abs(g) + effective) ** 2
  np.testing.assert_allclose(pulled, slope, rtol=1e-5)
  # Whatever optimizer it is of, Adam forgets all but the gradient's sign.
  plain, _ = moved_and_pulled(g, ones, optax.adam(0.1))
  np.testing.assert_allclose(moved[0], plain[0], rtol=1e-3)


def test_adam_has_no_slope_where_all_gradients_were_zero():
  g, tx = np.array([0.5, 0.0, 0.0], np.float32), optax.adam(0.1)
  _, pulled = moved_and_pulled(g, np.float32([1, 1, np.nan]), tx)
  assert np.isfinite(pulled[:2]).all()
  assert pulled[1] == 0
  assert np.isnan(pulled[2])  # before the optimizer as well: it stays that


def test_first_adam_checks_its_numbers():
  with pytest.raises(ValueError, match='b2'):
    meta.first_adam(0.1, b2=1.0)
  with pytest.raises(ValueError, match='eps'):
    meta.first_adam(0.1, eps=0.0)


# --- weights and labels ------------------------------------------------------


def test_l2rw_weights():
  @jax.jit
  def weights(alignment, weight):
    return meta.l2rw_weights(alignment, weight), meta.l2rw_weights(alignment)

  alignment = np.float32([3, -1, np.nan, 1])
  found, _ = weights(alignment, np.float32([1, 1, 0, 2]))
  np.testing.assert_allclose(found, [0.6, 0, 0, 0.4], rtol=1e-6)
  nobody = -np.ones(4, np.float32)
  for found in weights(nobody, -nobody):
    np.testing.assert_array_equal(found, 0)
  with pytest.raises(ValueError, match='weight'):
    meta.l2rw_weights(np.ones(3), np.ones(2))


def test_look_ahead_discount():
  discount = jax.jit(meta.look_ahead_discount)
  before, after = {'a': np.float32([3, 4])}, {'a': np.float32([1, 2])}
  pulled = {'a': np.float32(-0.1) * after['a']}
  found = discount(before, after, pulled)
  np.testing.assert_allclose(found, 0.9 * 11 / 25, rtol=1e-6)
  zero = {'a': np.zeros(2, np.float32)}
  assert discount(zero, after, pulled) == 0


def test_labels_of_mslc_are_distributions_with_three_limits():
  logits, soft = np.float32([[2, 0, 1]]), np.float32([[0.2, 0.5, 0.3]])
  of_weights = lambda a, b: meta.mslc_labels(logits, np.array([2]), soft, a, b)
  found = jax.jit(jax.vmap(of_weights))(
    np.float32([[1], [0], [0], [1 / 2]]), np.float32([[1], [1], [0], [1 / 3]])
  )[:, 0]
  np.testing.assert_allclose(found[0], [0, 0, 1])
  np.testing.assert_allclose(found[1], soft[0])
  softmax = np.exp(logits[0]) / np.exp(logits[0]).sum()
  np.testing.assert_allclose(found[2], softmax, rtol=1e-6)
  np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize('skip', [False, True])
def test_corrector_gives_distributions(skip):
  model = meta.corrector(4, 3, embedding=2, hidden=(5,), skip=skip)
  x, y = np.ones((2, 4), np.float32), np.array([0, 2])

  @jax.jit
  def distributions(key):
    """As it is at first, and with the gate open if there is one."""
    params, stats = model.init(key)
    found = [model.apply(params, stats, (x, y), None, True)[0].logits]
    if skip:
      bias = params['layers'][-1]['bias'].at[3].set(1e4)
      params['layers'][-1]['bias'] = bias
      found.append(model.apply(params, stats, (x, y), None, True)[0].logits)
    return jnp.exp(jnp.stack(found))

  first, *opened = distributions(KEY)
  np.testing.assert_allclose(first.sum(1), 1, rtol=1e-6)
  for q in opened:  # it leaves the label as it is
    np.testing.assert_allclose(q, np.eye(3)[y], atol=1e-6)


# --- what STORM sees ---------------------------------------------------------


def by_hand(losses, logits, labels, known):
  """The 19 features, loop by loop; `known` rows come before the batch."""
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  confidence = (probs / probs.sum(-1, keepdims=True)).max(-1)
  rows = []
  for i, label in enumerate(labels):
    votes = [int(np.argmax(z) == label) for z in logits[:, i]]
    half = len(votes) / 2
    agree = sum(votes) > half or (sum(votes) == half and votes[0] == 1)
    own = []
    for values in (losses[:, i], confidence[:, i]):
      spread = statistics.stdev(values) if len(values) > 1 else 0.0
      own += [statistics.fmean(values), spread]
    rows.append((label, agree, own))
  everyone, features = known + rows, []
  for label, agree, own in rows:
    group = [r[2] for r in everyone if r[0] == label and r[1] == agree]
    center = np.mean(group, axis=0)
    group = [[*q, *distances(q, center)] for q in group]
    triples = zip(
      [*own, *distances(own, center)],
      np.mean(group, axis=0),
      np.std(group, axis=0, ddof=1) if len(group) > 1 else [1e-8] * 6,
      strict=True,
    )
    features.append([*np.ravel(list(triples)), agree])
  return np.array(features), everyone


def distances(own, center):
  """Divergence and overlap of N(mean, std) and that of the group."""
  (mean, std), (other, spread) = own[:2], center[:2]
  kl = 0.0
  if std > 0 and spread > 0:
    kl = np.log(spread / std) - 0.5
    kl += (std**2 + (mean - other) ** 2) / (2 * spread**2)
  normal = statistics.NormalDist
  one, two = normal(mean, max(std, 1e-8)), normal(other, max(spread, 1e-8))
  return kl, one.overlap(two)


def draw(seed, passes=4, b=9, classes=3):
  rng = np.random.default_rng(seed)
  center = rng.normal(size=(b, classes))
  logits = center + rng.normal(size=(passes, b, classes))
  labels = rng.integers(0, classes, b)
  return cross_entropy(logits, labels), logits, labels


def cross_entropy(logits, labels):
  z = logits - logits.max(-1, keepdims=True)
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  return -log_p[:, np.arange(len(labels)), labels]


storm_features = jax.jit(meta.storm_features)


@pytest.mark.parametrize('passes', [1, 3, 4])
def test_features_by_hand_with_what_is_remembered(passes):
  with jax.enable_x64(True):
    memory = meta.storm_memory(3, 18)
    memory = memory._replace(rows=memory.rows.astype(jnp.float64))
    known = []
    for seed in range(2):
      values, logits, labels = draw(seed, passes)
      found, memory = storm_features(values, logits, labels, memory)
      expected, known = by_hand(values, logits, labels, known)
      np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    count = np.bincount([label for label, _, _ in known], minlength=3)
    np.testing.assert_array_equal(memory.filled, count)


def test_the_memory_keeps_the_last_of_each_class():
  seen = []
  with jax.enable_x64(True):
    memory = meta.storm_memory(3, 18)
    memory = memory._replace(rows=memory.rows.astype(jnp.float64))
    for seed in range(3):
      values, logits, labels = draw(seed)
      _, memory = storm_features(values, logits, labels * 0, memory)
      seen.append(values.mean(0))
    np.testing.assert_array_equal(memory.filled, [18, 0, 0])
    latest = np.concatenate(seen[1:])
    np.testing.assert_allclose(memory.rows[0, :, 0], latest, rtol=1e-6)


def test_who_is_not_there_is_not_seen():
  values, logits, labels = draw(1)
  values[0, 4] = np.nan
  mask = np.arange(9) != 7
  memory = meta.storm_memory(3, 9)
  found, seen = jax.device_get(
    storm_features(values, logits, labels, memory, mask)
  )
  rest = [i for i in range(9) if i not in (4, 7)]
  expected, alone = jax.device_get(
    storm_features(values[:, rest], logits[:, rest], labels[rest], memory)
  )
  np.testing.assert_allclose(found[rest], expected, rtol=2e-5)
  np.testing.assert_array_equal(found[[4, 7]], 0)
  np.testing.assert_array_equal(seen.filled, alone.filled)
  for k, count in enumerate(alone.filled):
    latest = slice(9 - int(count), 9)
    np.testing.assert_allclose(seen.rows[k, latest], alone.rows[k, latest])


@jax.jit
def slopes_of_weights(features, labels):
  """Of a new rescaler's weights, by its parameters."""
  model = meta.rescaler(3)
  params, stats = model.init(KEY)
  mask = np.ones(len(labels))
  return jax.jacrev(
    lambda p: meta.rescale(model, p, stats, features, labels, mask)[0]
  )(params)


@pytest.mark.parametrize('scale', [0.0, 1e-3, 1e4])
def test_features_are_finite(scale):
  _, logits, labels = draw(2)
  logits = np.float32(scale * logits)
  logits[:, :3] = logits[0, :3]  # no deviation
  values = cross_entropy(logits, labels)
  found, _ = storm_features(
    values, logits, labels, meta.storm_memory(3, 9), np.ones(9, bool)
  )
  found = np.asarray(found)
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found[:3, [3, 9, 12]], 0)
  assert (found[:, 15] >= 0).all()
  assert (found[:, 15] <= 1 + 1e-6).all()
  gradient = slopes_of_weights(found, labels)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_overlaps_of_known_pairs():
  one = np.float32([[0, 0, 0, 5, 0], [1, 1, 1, 1e-8, 1]])
  two = np.float32([[0, 2, 0, 5, 10], [1, 1, 2, 1e-3, 1]])
  overlap, normal = jax.jit(own._overlap), statistics.NormalDist
  found = overlap(*one, *two)
  expected = [
    normal(float(m), float(s)).overlap(normal(float(o), float(t)))
    for m, s, o, t in zip(*one, *two, strict=True)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  # Symmetric, and in single precision right where the tails are thin.
  np.testing.assert_array_equal(found, overlap(*two, *one))
  np.testing.assert_allclose(found[4], expected[4], rtol=1e-4)


def test_bad_input_of_features():
  values, logits, labels = draw(0)

  def memory_of(*size):
    return jax.eval_shape(lambda: meta.storm_memory(*size))

  features = functools.partial(jax.eval_shape, meta.storm_features)
  memory = memory_of(3, 9)
  with pytest.raises(ValueError, match='num_classes'):
    features(values, logits, labels, memory_of(2, 9))
  with pytest.raises(ValueError, match='does not fit a memory of 8'):
    features(values, logits, labels, memory_of(3, 8))
  with pytest.raises(ValueError, match='logits must'):
    features(values, logits[0], labels, memory)
  with pytest.raises(ValueError, match='losses must'):
    features(values[0], logits, labels, memory)
  with pytest.raises(ValueError, match='labels must'):
    features(values, logits, labels[:2], memory)
  with pytest.raises(TypeError, match='labels must be integer'):
    features(values, logits, labels * 1.0, memory)
  with pytest.raises(ValueError, match='size'):
    meta.storm_memory(3, 0)


def test_rescaler_normalizes_over_whoever_is_there():
  model = meta.rescaler(3)
  params, stats = jax.jit(model.init)(KEY)

  @jax.jit
  def rescale(features, labels, mask):
    return meta.rescale(model, params, stats, features, labels, mask)[0]

  features = np.random.default_rng(0).normal(size=(6, 19)).astype(np.float32)
  features[4] = 1e3
  labels = np.array([0, 2, 2, 0, 0, 2])  # nobody is in class 1
  mask = np.array([1, 1, 1, 1, 0, 0])
  found = rescale(features, labels, mask)[:4]
  alone = rescale(features[:4], labels[:4], mask[:4])
  np.testing.assert_allclose(found, alone, rtol=1e-4)
  # Networks of the classes differ, each sees all.
  same = rescale(features[[0, 0, 2, 3]], labels[:4], np.array([1, 1, 0, 0]))
  assert np.ptp(same[:2]) == 0
  other = rescale(features[:4], np.array([0, 2, 2, 1]), mask[:4])
  np.testing.assert_allclose(other[:3], alone[:3], rtol=1e-6)
  assert other[3] != alone[3]
  beyond = rescale(features[:4], np.array([0, 3, -1, 1]), mask[:4])
  np.testing.assert_array_equal(np.isnan(beyond), [0, 1, 1, 0])
  with pytest.raises(ValueError, match='at least two examples'):
    rescale(features[:1], labels[:1], mask[:1])
