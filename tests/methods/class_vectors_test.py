"""Class vectors of frozen features, and the learner that is made of them."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.data import load
from jnl.methods import class_vectors, fit_vectors, fpl, grip
from jnl.steps import supervised
from jnl.train import data_mesh

N, D, C, SCALE = 24, 5, 3, 10.0
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(C, D)).astype(np.float32)
LABELS = np.arange(N) % C
X = (VECTORS[LABELS] + 0.3 * RNG.normal(size=(N, D))).astype(np.float32)
ONES = np.ones(N)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def learner(**kwargs):
  return fit_vectors(VECTORS, scale=SCALE, steps=20, **kwargs)


@pytest.fixture(scope='module')
def predicted():
  """Of all rows, after a fit on all rows."""
  return np.asarray(learner()(X, LABELS, ONES)(X))


def slope(params, x, model):
  """The gradient by the vectors of what a row of zeros must not spoil."""

  def total(params):
    outputs, _ = model.apply(params, {}, x, None, True)
    return jnp.sum(losses.ce(outputs.logits, LABELS)), outputs

  return jax.grad(total, has_aux=True)(params)


def test_logits_are_cosines_of_the_given_vectors():
  x = X.copy()
  x[3], x[4], x[5] = 0, 1e-30 * X[4], 1e30 * X[5]

  @jax.jit
  def both(key, scale, x):
    model = class_vectors(VECTORS * [[1], [7], [0.1]], scale)
    params, stats = model.init(key)
    assert stats == {}
    gradient, outputs = slope(params, x, model)
    return params, outputs, gradient

  params, outputs, gradient = both(jax.random.key(0), SCALE, x)
  np.testing.assert_allclose(params['vectors'], unit(VECTORS), rtol=1e-6)
  expected = SCALE * unit(X) @ unit(VECTORS).T
  expected[3] = 0
  np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
  np.testing.assert_array_equal(outputs.features, x)
  assert np.isfinite(gradient['vectors']).all()
  assert np.abs(gradient['vectors']).max() > 0
  # Lengths are of no use: no gradient goes along a vector.
  along = np.sum(gradient['vectors'] * params['vectors'], axis=1)
  np.testing.assert_allclose(along, 0, atol=1e-4)


def test_dtypes():
  """Half precision in, single precision out; runs at once."""
  model = class_vectors(VECTORS.astype(jnp.bfloat16))
  params, stats = jax.eval_shape(model.init, jax.random.key(0))
  assert params['vectors'].dtype == jnp.float32
  x = jax.ShapeDtypeStruct((2, N, D), jnp.bfloat16)
  apply = lambda x: model.apply(model.init(None)[0], stats, x, None, False)[0]
  outputs = jax.eval_shape(jax.vmap(apply), x)
  assert outputs.logits.dtype == jnp.float32
  assert outputs.logits.shape == (2, N, C)
  assert outputs.features.dtype == jnp.bfloat16


def test_a_step_on_eight_devices_is_that_on_one():
  """Every row's cosines are its own."""
  method = supervised(losses.ce, class_vectors(VECTORS, SCALE), optax.sgd(0.01))
  state = method.init(jax.random.key(0))
  batch = {'x': X, 'labels': LABELS, 'weight': np.float32(LABELS < 2)}
  batch['index'] = np.arange(N)
  where = {name: P('data') for name in batch}

  @jax.jit
  def both(batch):
    step = lambda batch: method.step(state, batch, jax.random.key(1))[0].params
    split = jax.shard_map(
      step, mesh=data_mesh(), in_specs=(where,), out_specs=P()
    )
    return step(batch), split(batch)

  one, eight = both(batch)
  np.testing.assert_allclose(one['vectors'], eight['vectors'], atol=1e-6)


def test_a_learner_learns_and_begins_anew(predicted):
  """Wrong labels, then right ones: the same as right ones alone."""
  fit = learner()
  wrong = fit(X, (LABELS + 1) % C, ONES)
  again = fit(X, LABELS, ONES)(X)
  np.testing.assert_array_equal(again, predicted)
  np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-5)
  at_first = SCALE * unit(X) @ unit(VECTORS).T
  at_first = at_first - np.log(np.exp(at_first).sum(1, keepdims=True))
  loss = lambda log_p: -np.mean(log_p[np.arange(N), LABELS])
  assert loss(np.log(predicted)) < 0.8 * loss(at_first)
  assert loss(np.log(wrong(X))) > 2 * loss(at_first)


def test_rows_of_weight_zero_leave_no_trace(predicted):
  """NaN, infinities and labels that are none; and padding is such a row."""
  more = [X, np.full((2, D), np.nan), np.full((2, D), np.inf)]
  labels = np.append(LABELS, [-1, 255, -1, 0])
  weights = np.append(ONES, np.zeros(4))
  found = learner()(np.concatenate(more), labels, weights)(X)
  np.testing.assert_allclose(found, predicted, atol=1e-6)
  twice = learner()(X, LABELS.astype(np.uint8), 2 * ONES)(X)
  np.testing.assert_allclose(twice, predicted, atol=1e-6)
  # A row of weight 2 is two rows.
  rows = np.append(np.arange(N), 0)
  double = learner()(X[rows], LABELS[rows], np.ones(N + 1))(X)
  single = learner()(X, LABELS, ONES + (np.arange(N) == 0))(X)
  np.testing.assert_allclose(double, single, atol=1e-5)


def test_scikit_learn_s_types_are_taken(predicted):
  """Arrays of float64 and int64, and lists."""
  found = learner()(X.astype(np.float64).tolist(), LABELS.tolist(), [1] * N)
  np.testing.assert_allclose(found(X.astype(np.float64)), predicted, atol=1e-5)


def test_grip_is_a_loop_around_it():
  at_first = np.exp(SCALE * unit(X) @ unit(VECTORS).T)
  probs = at_first / at_first.sum(1, keepdims=True)
  found = grip(learner(), X, probs, rounds=1)
  assert np.bincount(found.labels[found.labels >= 0]).max() <= N // C
  assert np.mean(found.probs.argmax(1) == LABELS) > 0.8


@pytest.mark.parametrize(
  ('vectors', 'scale', 'error', 'message'),
  [
    (VECTORS[0], 1.0, ValueError, r'vectors must be \[c, d\]'),
    (VECTORS[:1], 1.0, ValueError, 'c >= 2'),
    (VECTORS[:, :0], 1.0, ValueError, r'vectors must be \[c, d\]'),
    (VECTORS.astype(int), 1.0, TypeError, 'vectors must be floating'),
    (VECTORS * np.nan, 1.0, ValueError, 'vectors must be finite'),
    (VECTORS * [[1], [0], [1]], 1.0, ValueError, 'row of zeros'),
    (VECTORS, 0.0, ValueError, 'scale must lie in'),
    (VECTORS, np.nan, ValueError, 'scale must lie in'),
    (VECTORS, np.ones(C), ValueError, 'scale must be a scalar'),
  ],
)
def test_bad_vectors_are_named(vectors, scale, error, message):
  for of in (class_vectors, lambda v, scale: fit_vectors(v, scale=scale)):
    with pytest.raises(error, match=message):
      of(vectors, scale)


def test_bad_rows_are_named():
  model = class_vectors(VECTORS)
  apply = lambda x: model.apply(model.init(None)[0], {}, x, None, False)
  for x in (X[0], X[:, 1:], X[None]):
    with pytest.raises(ValueError, match='x must be features'):
      jax.eval_shape(apply, x)
  nan = np.where(np.arange(N)[:, None] == 2, np.nan, X)
  for x, labels, weights, message in (
    (X[:, 1:], LABELS, ONES, 'x must be features'),
    (nan, LABELS, ONES, 'x must be finite'),
    (X, LABELS[:, None], ONES, r'labels must be \[m\]'),
    (X, LABELS - 1, ONES, r'labels must lie in \[0, 3\)'),
    (X, LABELS, ONES[:, None], r'weights must be \[m\]'),
    (X, LABELS, -ONES, 'weights must lie in'),
    (X, LABELS, np.nan * ONES, 'weights must lie in'),
    (X, LABELS, 0 * ONES, 'weights must be positive for some row'),
    (X[:0], LABELS[:0], ONES[:0], 'weights must be positive for some row'),
  ):
    with pytest.raises(ValueError, match=message):
      learner()(x, labels, weights)
  for kwargs, message in (
    ({'steps': 0}, 'steps must be an int'),
    ({'steps': 1.5}, 'steps must be an int'),
    ({'learning_rate': 0.0}, 'learning_rate must lie in'),
  ):
    with pytest.raises(ValueError, match=message):
      fit_vectors(VECTORS, **kwargs)


# --- it works ----------------------------------------------------------------


@pytest.mark.slow
def test_quotas_of_classes_mend_spoiled_prototypes():
  """Seen, by experiments/clip_pseudolabels.py: .801, FPL .848, GRIP .890."""
  digits = load('digits').train
  x, labels = digits.x.reshape(-1, 64), digits.labels
  means = np.stack([x[labels == k].mean(0) for k in range(10)])
  rng = np.random.default_rng(0)
  vectors = (means + 0.22 * rng.normal(size=means.shape)).astype(np.float32)
  z = 20 * unit(x) @ unit(vectors).T
  probs = np.exp(z - z.max(1, keepdims=True))
  probs /= probs.sum(1, keepdims=True)
  fit = fit_vectors(vectors, scale=20.0)
  right = lambda probs: np.mean(np.argmax(probs, axis=1) == labels)
  zero_shot = right(probs)
  found = grip(fit, x, probs, rounds=4)
  assert right(found.probs) > zero_shot + 0.04
  assert right(found.probs) > right(fpl(fit, x, probs).probs)
  assert np.bincount(found.labels[found.labels >= 0]).max() <= len(x) // 10
