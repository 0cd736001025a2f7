"""Every row is predicted by the run that has not seen it, and by no other."""

import functools
import inspect

from fixture_methods import cross_entropy
from fixture_train import CLASSES, arrays, network
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import data, losses, noise
from jnl.base import data_shards
from jnl.data import PerRun
from jnl.methods import elr, supervised
from jnl.nets import MLP, StridedCNN, from_linen
from jnl.train import (
  _out_of_fold,
  fit,
  fit_many,
  out_of_fold,
  training_size,
)
from jnl.train._out_of_fold import _deal, _strata

N, FOLDS = 40, 6  # four folds of 7 rows, two of 6
M = training_size(N, FOLDS)
KEY = jax.random.key(3)
ONE, SIX = jax.devices()[:1], jax.devices()[:6]
SETTING = {'epochs': 3, 'batch_size': 8}


@functools.cache
def method():
  """With dropout, batch statistics, and a memory of each example."""
  return elr(
    network(), optax.sgd(0.5), num_examples=M, num_classes=CLASSES,
    shards=data_shards(M, 8),
  )  # fmt: skip


def run(own=None, key=KEY, **given):
  given = {'folds': FOLDS, 'devices': SIX, **given}
  return out_of_fold(method(), own or arrays(N), key, **{**SETTING, **given})


@functools.cache
def of_all():
  return run()


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def predicted(state, x):
  """What `network` says, in numpy."""
  state = jax.device_get(state)
  return softmax((x - state.stats['mean']) @ state.params)


def by_hand(fold):
  """A loop over folds: of each the probabilities, the memory, and the loss."""
  own, keys = arrays(N), jax.random.split(KEY, FOLDS + 1)
  probs, fits = np.zeros((N, CLASSES)), []
  for k in range(FOLDS):
    rows = np.flatnonzero(fold != k)
    missing = M - len(rows)  # filled by anything of weight 0
    part = {
      'x': np.pad(own['x'][rows], ((0, missing), (0, 0)), constant_values=1e9),
      'labels': np.pad(own['labels'][rows], (0, missing), constant_values=-1),
      'weight': np.pad(np.ones(len(rows), np.float32), (0, missing)),
    }
    fitted = fit(method(), part, keys[1 + k], devices=ONE, **SETTING)
    probs[fold == k] = predicted(fitted.state, own['x'][fold == k])
    fits.append((fitted.state.extra.rows, fitted.history['loss']))
  return probs, *map(np.stack, zip(*fits, strict=True))


@pytest.mark.slow
def test_it_is_a_loop_of_fits_by_hand():
  found = of_all()
  assert found.pred_probs.shape == (N, CLASSES)
  assert found.pred_probs.dtype == np.float32
  probs, memory, loss = by_hand(found.fold)
  for way in (found, run(vectorize=False, devices=ONE)):
    np.testing.assert_array_equal(way.fold, found.fold)
    np.testing.assert_allclose(way.pred_probs, probs, atol=1e-5)
    np.testing.assert_allclose(way.fit.state.extra.rows, memory, atol=1e-5)
    np.testing.assert_allclose(way.fit.history['loss'], loss, atol=1e-5)


def test_a_run_knows_nothing_of_its_fold():
  found, own, row = of_all(), arrays(N), 11
  mine = found.fold == found.fold[row]
  x = np.where(np.arange(N)[:, None] == row, -own['x'], own['x'])
  other = run({**own, 'x': x})
  np.testing.assert_array_equal(other.fold, found.fold)
  same = (other.pred_probs == found.pred_probs).all(1)
  np.testing.assert_array_equal(same | (np.arange(N) == row), mine)
  states = jax.device_get(found.fit.state)
  for k in range(FOLDS):
    probs = predicted(jax.tree.map(lambda leaf, k=k: leaf[k], states), own['x'])
    same = np.isclose(found.pred_probs, probs, atol=1e-6).all(1)
    np.testing.assert_array_equal(same, found.fold == k)


def test_a_further_call_compiles_nothing(caplog):
  of_all()
  with jax.log_compiles():
    other, again = run(key=jax.random.key(4)), run()
  assert 'Compiling' not in caplog.text
  assert (other.fold != again.fold).any()
  np.testing.assert_array_equal(again.pred_probs, of_all().pred_probs)


def test_what_has_weight_0_leaves_no_trace():
  own, absent = arrays(N), np.arange(N) % 9 == 4
  weight = np.where(absent, 0, 2).astype(np.float32)
  ways = []
  for x, label in ((0, 0), (np.nan, -1)):
    x = np.where(absent[:, None], np.float32(x), own['x'])
    labels = np.where(absent, label, own['labels']).astype(np.int32)
    ways.append(run({'x': x, 'labels': labels, 'weight': weight}))
  zeros, gone = ways
  np.testing.assert_array_equal(zeros.fold, gone.fold)
  np.testing.assert_array_equal(
    np.where(absent[:, None], np.nan, zeros.pred_probs), gone.pred_probs
  )
  assert np.isfinite(zeros.pred_probs).all()
  assert np.ptp(np.bincount(gone.fold[absent], minlength=FOLDS)) <= 1


@pytest.mark.parametrize('folds', [2, 3, 7, N])
def test_classes_are_spread_evenly(folds):
  labels = np.repeat([0, 1, 2, 5, -1], [17, 3, 1, 11, 8])[_shuffled()]
  fold = _deal(KEY, labels, folds)
  assert fold.dtype == np.int32
  for own in [np.ones(N, bool), *(labels == c for c in np.unique(labels))]:
    assert np.ptp(np.bincount(fold[own], minlength=folds)) <= 1
  held_out = np.bincount(fold)
  assert training_size(N, folds) == N - held_out.min()


def _shuffled():
  return np.random.default_rng(0).permutation(N)


def test_rows_that_say_no_class_are_a_class_of_their_own():
  x, weight = np.zeros((4, 1), np.float32), np.array([1, 0, 2, 1])
  labels = np.array([1, 255, 0, 255], np.uint8)
  labeled = np.array([True, True, True, False])
  own = {'x': x, 'labels': labels, 'weight': weight, 'labeled': labeled}
  assert _strata(own).tolist() == [1, -1, 0, -1]


def test_rare_classes_are_a_warning():
  labels = np.repeat([0, 1, 2], [34, 5, 1])
  own = {'x': arrays(N)['x'], 'labels': labels}
  said = (
    '2 of 3 classes have fewer rows than there are folds, 6.*The fewest, 1, '
    'are of class 2: that row is predicted by a model that never saw its class'
  )
  # What is wrong is found afterwards, and before anything is compiled.
  with (
    pytest.warns(UserWarning, match=said) as warned,
    pytest.raises(ValueError, match='batch_size'),
  ):
    run(own, batch_size=36)
  assert warned[0].filename == __file__
  own['labels'] = np.repeat([0, 1], [35, 5])
  with (
    pytest.warns(UserWarning, match='1 of 2 classes.*of class 1$'),
    pytest.raises(ValueError, match='batch_size'),
  ):
    run(own, batch_size=36)


X, LABELS = arrays(N)['x'], arrays(N)['labels']
INTEGERS = r'data: labels must be \[n\] integers.*got '
BAD = {
  'one fold': ({'folds': 1}, ValueError, 'folds must lie between 2 and .*40'),
  'more folds than rows': ({'folds': 41}, ValueError, 'rows, 40, got 41'),
  'part of a fold': ({'folds': 2.5}, TypeError, 'folds must be an integer'),
  'truth': ({'folds': True}, TypeError, 'folds must be an integer, got True'),
  'a seed': ({'key': 0}, TypeError, 'key must be made by jax.random'),
  'a large batch': (
    {'batch_size': 36},
    ValueError,
    'batch_size must lie between 1 and n = 34, got 36',
  ),
  'a memory of all rows': (
    {'folds': 5},
    ValueError,
    'build the method with num_examples=32 and shards=8',
  ),
  'no dict': ({'own': [X]}, TypeError, 'data must be a dict of arrays'),
  'no labels': ({'own': {'x': X}}, ValueError, "data lacks 'labels'"),
  'no inputs': ({'own': {'labels': LABELS}}, ValueError, "data lacks 'x'"),
  'lengths': (
    {'own': {'x': X[1:], 'labels': LABELS}},
    ValueError,
    r"one length above 0, got {'x': 39, 'labels': 40}",
  ),
  'float labels': (
    {'own': {'x': X, 'labels': LABELS * 1.0}},
    TypeError,
    INTEGERS + 'float64',
  ),
  'a column': (
    {'own': {'x': X, 'labels': LABELS[:, None]}},
    TypeError,
    INTEGERS + r'int32 of shape \(40, 1\)',
  ),
  'a label too high': (
    {'own': {'x': X, 'labels': np.where(LABELS == 2, 255, LABELS)}},
    ValueError,
    r'labels must lie in \[0, 3\).*to 255',
  ),
  'no label': (
    {'own': {'x': X, 'labels': np.where(LABELS == 2, -1, LABELS)}},
    ValueError,
    r'labels must lie in \[0, 3\).*from -1',
  ),
  'of runs': (
    {'own': {'x': X, 'labels': PerRun(LABELS[None])}},
    TypeError,
    'data: labels must be an array',
  ),
  'a column of weights': (
    {'own': {'x': X, 'labels': LABELS, 'weight': np.ones((N, 1))}},
    ValueError,
    r'weight must be \[n\]',
  ),
  'no rows that count': (
    {'own': {'x': X, 'labels': LABELS, 'weight': np.eye(N)[0]}},
    ValueError,
    'at least two rows must count .* 1 of 40 do',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  given, error, said = BAD[name]
  with pytest.raises(error, match=said):
    run(**given)


def test_what_is_of_fit_is_handed_to_it(monkeypatch):
  ours = inspect.signature(out_of_fold).parameters
  own = {name: object() for name in inspect.signature(fit_many).parameters}
  given = {name: one for name, one in own.items() if name in ours}
  assert own.keys() - given.keys() == {'keys'}
  handed = {}

  def stop(method, data, keys, **rest):
    handed.update(rest, method=method)
    raise StopIteration

  monkeypatch.setattr(_out_of_fold, 'fit_many', stop)
  with pytest.raises(StopIteration):
    out_of_fold(**{**given, 'data': arrays(N), 'key': KEY}, folds=2)
  assert handed == {k: v for k, v in given.items() if k not in ('data', 'key')}


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float64'])
def test_other_dtypes_and_arrays_of_jax(dtype):
  own = arrays(13)
  own = {
    'x': jnp.asarray(own['x'], 'bfloat16') if dtype == 'bfloat16'
    else own['x'].astype(dtype),
    'labels': own['labels'].astype(np.uint8),
  }  # fmt: skip
  loss = supervised(cross_entropy, network(), optax.sgd(0.5))
  found = out_of_fold(
    loss, own, KEY, folds=3, epochs=30, batch_size=4, devices=ONE
  )
  assert found.pred_probs.dtype == np.float32
  np.testing.assert_allclose(found.pred_probs.sum(1), 1, atol=1e-5)
  assert (found.pred_probs.argmax(1) == own['labels']).mean() > 0.6


@pytest.mark.slow
def test_every_row_a_fold_and_more_runs_than_devices():
  loss = supervised(cross_entropy, network(), optax.sgd(0.5))
  with pytest.warns(UserWarning, match='class|devices'):
    found = out_of_fold(
      loss, arrays(13), KEY, folds=13, epochs=30, batch_size=4,
      devices=SIX, held_out={'test': arrays(9, 1)},
    )  # fmt: skip
  assert np.sort(found.fold).tolist() == list(range(13))
  assert found.fit.history['test_accuracy'].shape == (13, 30)
  assert (found.pred_probs.argmax(1) == arrays(13)['labels']).mean() > 0.7


@pytest.mark.slow
def test_convolutions_run_one_after_the_other():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 30)
  x = rng.normal(size=(30, 8, 8, 1)) + 2 * labels[:, None, None, None]
  model = from_linen(StridedCNN(2), (8, 8, 1))
  found = out_of_fold(
    supervised(losses.ce, model, optax.adam(1e-2)),
    {'x': x.astype(np.float32), 'labels': labels},
    KEY, folds=3, epochs=10, batch_size=10, devices=ONE,
  )  # fmt: skip
  assert (found.pred_probs.argmax(1) == labels).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ce', 'elr'])
def test_they_are_honest_of_wrong_labels(name):
  """Digits, 20% symmetric: CE believes wrong labels, but none held out."""
  train = data.load('digits').train
  n, c, b = len(train.labels), 10, 100
  labels = noise.corrupt(KEY, train.labels, noise.symmetric(c, 0.2)).labels
  wrong = labels != train.labels
  model = from_linen(MLP(c, (64,)), (8, 8, 1))
  tx = optax.sgd(0.1, momentum=0.9)

  def make(size):
    if name == 'ce':
      return supervised(losses.ce, model, tx)
    return elr(
      model, tx, num_examples=size, num_classes=c, shards=data_shards(size, b)
    )

  setting = {'epochs': 60, 'batch_size': b, 'devices': ONE}
  own = {'x': train.x, 'labels': labels}
  found = out_of_fold(make(training_size(n, 5)), own, KEY, folds=5, **setting)
  held_out = found.pred_probs.argmax(1)
  clean = (held_out == train.labels).mean()
  fooled = (held_out == labels)[wrong].mean()
  told = (held_out == train.labels)[wrong].mean()
  print(f'{name}: {clean:.3f} right, of wrong labels {told:.3f} told, ', end='')
  print(f'{fooled:.3f} predicted held out')
  assert min(clean, told) > {'ce': 0.7, 'elr': 0.9}[name]
  assert fooled < 0.1
  if name == 'ce':
    method = make(n)
    state = fit(method, own, KEY, **setting).state
    seen = jax.device_get(method.predict(state, train.x)).logits.argmax(1)
    believed = (seen == labels)[wrong].mean()
    print(f'{believed:.3f} predicted if seen')
    assert believed > 5 * fooled
