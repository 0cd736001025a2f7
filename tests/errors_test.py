"""What people get wrong first, and what they are told to write instead."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import automata, losses, methods, noise
from jnl.base import check_batch, check_key
from jnl.data import check_arrays, check_labels
from jnl.inputs import read_labels
from jnl.noise._draws import _look_at_classes as look_at_classes
from jnl.steps import linear
from jnl.train import fit
from jnl.train._plan import make_plan

KEY = jax.random.key(0)
N, CLASSES, DIM = 8, 3, 2
MODEL, BINARY, TX = linear(DIM, CLASSES), linear(DIM, 2), optax.sgd(0.1)
X = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
LABELS = np.arange(N) % CLASSES
SETS = LABELS[:, None] == np.arange(CLASSES)

# --- one's own loop: what a batch lacks ---------------------------------------

COUNTED = {'index': np.arange(N), 'weight': np.ones(N, np.float32)}
LABELED = {**COUNTED, 'x': X, 'labels': LABELS}
PARTIAL = {**COUNTED, 'x': X, 'candidates': SETS}
STRONG = {'x_strong': X}
META = {'x_meta': X, 'labels_meta': LABELS}
BAGS = {**COUNTED, 'x': np.stack([X, X], 1), 'counts': np.ones(N, int)}
MANY = {'num_examples': N, 'num_classes': CLASSES}
METHODS = {
  'supervised': (methods.supervised(losses.gce, MODEL, TX), LABELED),
  'elr': (methods.elr(MODEL, TX, **MANY), LABELED),
  'proden': (methods.proden(MODEL, TX, **MANY), PARTIAL),
  'ill_noisy': (
    methods.ill_noisy(MODEL, TX, TX, num_classes=CLASSES),
    {**LABELED, **STRONG},
  ),
  'ill_partial': (methods.ill_partial(MODEL, TX), {**PARTIAL, **STRONG}),
  'ill_semi': (
    methods.ill_semi(MODEL, TX, num_classes=CLASSES),
    {**LABELED, **STRONG, 'labeled': LABELS > 0},
  ),
  'ill_mixed': (
    methods.ill_mixed(MODEL, TX, TX, num_classes=CLASSES),
    {**PARTIAL, **STRONG, 'noisy': LABELS > 0},
  ),
  'l2rw': (methods.l2rw(MODEL, TX, num_examples=N), {**LABELED, **META}),
  'mwn': (methods.mwn(MODEL, TX, TX, num_examples=N), {**LABELED, **META}),
  'mslc': (methods.mslc(MODEL, TX, TX, **MANY), {**LABELED, **META}),
  'mlc': (
    methods.mlc(MODEL, TX, num_features=DIM, **MANY),
    {**LABELED, **META},
  ),
  'storm': (
    methods.storm(MODEL, TX, batch_size=N, passes=1, **MANY),
    {**LABELED, **META},
  ),
  'dllp': (methods.dllp(BINARY, TX), BAGS),
  'easy_llp': (methods.easy_llp(BINARY, TX, prior=0.5), BAGS),
  'weak_em': (
    methods.weak_em(
      BINARY, TX, lambda z, batch: automata.count(z, batch['counts'])
    ),
    BAGS,
  ),
}
every_method = pytest.mark.parametrize('name', METHODS)
# An `infer` of one's own reads what it wants, and is in one's own file.
UNNAMED = {('weak_em', 'counts')}


@functools.cache
def start(name):
  return jax.eval_shape(METHODS[name][0].init, KEY)


@every_method
def test_a_method_says_what_its_batch_lacks_and_has(name):
  method, batch = METHODS[name]
  for missing in batch:
    if (name, missing) in UNNAMED:
      continue
    rest = {k: v for k, v in batch.items() if k != missing}
    with pytest.raises(ValueError, match='the batch lacks') as raised:
      jax.eval_shape(method.step, start(name), rest, KEY)
    said = str(raised.value)
    assert said.startswith(f"the batch lacks '{missing}'; it has "), said
    assert ', '.join(sorted(rest)) in said


@every_method
def test_int64_batches_of_numpy_pass_without_a_word(name):
  method, batch = METHODS[name]
  wide = {
    k: v.astype(np.int64 if v.dtype.kind == 'i' else v.dtype)
    for k, v in batch.items()
  }
  assert wide['index'].dtype == np.int64
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    jax.eval_shape(lambda state: method.step(state, wide, KEY), start(name))


def test_a_batch_that_lacks_something_says_what_that_is():
  for name, hint in (
    ('weight', r'jnp.ones\(b\)'),
    ('index', 'where each example stands in the training set'),
    ('x_u', r"fit\(streams=\{'u': ...\}\)"),
    ('x_strong', 'made by `augment`'),
  ):
    with pytest.raises(ValueError, match=f"lacks '{name}'; it has x. .*{hint}"):
      check_batch({'x': X}, 'x', name)


# --- keys ---------------------------------------------------------------------

FLIP = noise.symmetric(CLASSES, 0.4)
OF_KEYS = {
  'corrupt': lambda key: noise.corrupt(key, LABELS, FLIP),
  'corrupt_each': lambda key: noise.corrupt_each(key, LABELS[:3], FLIP),
  'fixed_count': lambda key: noise.fixed_count(key, LABELS, FLIP, 0.5),
  'in_place': lambda key: noise.cifar10_asymmetric_in_place(key, LABELS, 0.4),
  'fit': lambda key: fit(
    METHODS['supervised'][0],
    {'x': X, 'labels': LABELS},
    key,
    epochs=1,
    batch_size=4,
  ),
  'init': lambda key: METHODS['elr'][0].init(key),
  'init of two networks': lambda key: METHODS['mwn'][0].init(key),
  'step': lambda key: jax.eval_shape(
    lambda state: METHODS['elr'][0].step(state, LABELED, key), start('elr')
  ),
}


@pytest.mark.parametrize('name', OF_KEYS)
def test_a_seed_is_no_key(name):
  for seed, got in ((0, '0'), (np.int64(3), r'int64 of shape \(\)')):
    message = rf'key must be .* such as jax.random.key\(0\); got {got}'
    with pytest.raises(TypeError, match=message):
      OF_KEYS[name](seed)


def test_keys_old_and_new_are_keys():
  check_key(KEY)
  check_key(jax.random.PRNGKey(0))
  check_key(jax.eval_shape(lambda: jax.random.split(KEY, 3)), 'keys', 1)
  with pytest.raises(TypeError, match=r'keys .*jax.random.split\(.*, n\)'):
    check_key(KEY, 'keys', 1)


# --- labels -------------------------------------------------------------------


def test_a_label_out_of_range_is_named_with_its_row():
  z = np.zeros((2, 2, 3), np.float32)
  with pytest.raises(
    ValueError, match=r'labels must lie in \[0, 3\), got 7 in row 1, 0$'
  ):
    losses.ce(z, np.array([[0, 1], [7, -1]]))
  with pytest.raises(ValueError, match=r'in \[0, 3\), got -1$'):
    read_labels(np.int8(-1), 3)


def test_a_matrix_of_more_classes_than_the_labels_have_warns():
  many = np.arange(200) % CLASSES
  with pytest.warns(UserWarning, match='labels are of 3 classes and .* of 10'):
    noise.corrupt(KEY, many, np.eye(10))
  rare = np.where(np.arange(200) == 7, 9, many)  # all classes are there
  alone = np.zeros(200, int)  # of one class on purpose
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for labels in (many[:199], rare, alone, alone + 4):
      look_at_classes(labels, 10)
    jax.eval_shape(lambda y: noise.corrupt(KEY, y, np.eye(10)), many)


def test_sets_of_candidates_pass_as_labels():
  data = {'x': X, 'labels': SETS}
  assert check_arrays(data, CLASSES) == N
  empty = SETS.copy()
  empty[5] = False
  with pytest.raises(ValueError, match='the set of row 5 is empty'):
    check_labels(empty, CLASSES)
  check_arrays({'x': X, 'labels': empty, 'weight': np.arange(N) != 5}, CLASSES)
  for bad in (SETS[:, 0], SETS[:, :, None]):
    with pytest.raises(TypeError, match='must be integers, got bool'):
      check_labels(bad, CLASSES)
  plan(methods.supervised(losses.cc, MODEL, TX), data)
  with pytest.raises(TypeError, match=r'one-hot .*\.astype\(float\), got bool'):
    plan(methods.supervised(losses.ce, MODEL, TX), data)


# --- fit ----------------------------------------------------------------------


def plan(method, data, **given):
  """What `fit` looks at before it compiles anything."""
  settings = {
    'streams': {},
    'held_out': {},
    'epochs': 1,
    'batch_size': 4,
    'augment': None,
    'scores': {},
    'shards': None,
  }
  return make_plan(method, data, **{**settings, **given})


class Foreign:
  """An array of another library, as far as one can tell from outside."""

  shape, dtype = X.shape, 'torch.float32'

  def __array__(self, dtype=None, copy=None):
    return X

  def __len__(self):
    return N


DATA = {'x': X, 'labels': LABELS}
SUPERVISED = METHODS['supervised'][0]
MISTAKES = {
  'a constructor': (
    lambda: plan(methods.elr, DATA),
    TypeError,
    r'a jnl.Method, as methods.elr\(model, ...\) gives it, got elr',
  ),
  'a model': (lambda: plan(MODEL, DATA), TypeError, 'a jnl.Method.*got Model'),
  'a tuple': (
    lambda: plan(SUPERVISED, (X, LABELS)),
    TypeError,
    r"data must be a dict of arrays, \{'x': ..., 'labels': ...\}, got tuple",
  ),
  'a held-out tuple': (
    lambda: plan(SUPERVISED, DATA, held_out=(X, LABELS)),
    TypeError,
    r"held_out must be a dict of sets, \{'test': \{'x':.*got tuple",
  ),
  'a set that is a tuple': (
    lambda: plan(SUPERVISED, DATA, held_out={'test': (X, LABELS)}),
    TypeError,
    r"held_out\['test'\] must be a dict of arrays.*got tuple",
  ),
  'arrays for a set': (
    lambda: plan(SUPERVISED, DATA, held_out=DATA),
    TypeError,
    r"held_out\['x'\] must be a dict of arrays.*got ndarray",
  ),
  'a tuple for runs': (
    lambda: plan(SUPERVISED, (X, LABELS), runs=2),
    TypeError,
    'data must be a dict of arrays.*got tuple',
  ),
  'a tensor': (
    lambda: plan(SUPERVISED, {'x': Foreign(), 'labels': LABELS}),
    TypeError,
    'x must be numbers in an array of numpy or jax, got Foreign of torch',
  ),
  'labels called y': (
    lambda: plan(SUPERVISED, {'x': X, 'y': LABELS}),
    ValueError,
    "lacks 'labels'; it has index, weight, x, y",
  ),
  'a column of labels': (
    lambda: plan(SUPERVISED, {'x': X, 'labels': LABELS[:, None]}),
    ValueError,
    r'use labels\[..., 0\]',
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_fit_says_what_to_write(name):
  run, error, message = MISTAKES[name]
  with pytest.raises(error, match=message):
    run()


def test_a_loss_says_that_text_is_no_label():
  z = jnp.zeros((2, 3))
  with pytest.raises(TypeError, match='labels must be an array of numbers'):
    losses.ce(z, np.array(['cat', 'dog']))
