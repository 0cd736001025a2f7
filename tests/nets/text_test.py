"""Networks for texts: padding, dropout by example, learning a toy task."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from jnl.base import example_keys
from jnl.data import ngram_ids, token_ids
from jnl.losses import ce
from jnl.nets import NgramClassifier, TextTransformer, build, from_linen
from jnl.nets._text import masked_mean
from jnl.steps import supervised
from jnl.train import data_mesh

KEY = jax.random.key(0)
LENGTH, LONGER = 7, 12
NETS = {
  'ngram': NgramClassifier(3, buckets=40, width=6, dropout=0.5),
  'transformer': TextTransformer(
    3, buckets=40, length=LONGER, width=8, heads=2, layers=1, dropout=0.3
  ),
}
NGRAM, TRANSFORMER = NETS.values()
both = pytest.mark.parametrize('name', NETS)
# Texts of 7, 4, 1 and 0 tokens, and 4 more.
COUNTS = np.array([7, 4, 1, 0, 7, 6, 2, 5])
IDS = np.random.default_rng(0).integers(1, 40, (8, LENGTH), np.int32)
IDS = np.where(np.arange(LENGTH) < COUNTS[:, None], IDS, 0)
PADDED = np.pad(IDS, ((0, 0), (0, LONGER - LENGTH)))
KEYS = jax.jit(example_keys)(KEY, np.arange(8))


@functools.cache
def initialized(name, dtype=None):
  """The model, and parameters away from zero, so that biases count, too."""
  model = from_linen(NETS[name].clone(dtype=dtype), (LENGTH,))
  shapes, stats = jax.eval_shape(model.init, KEY)
  assert stats == {}
  rng = np.random.default_rng(1)
  draw = lambda a: 0.5 * rng.normal(size=a.shape).astype(a.dtype)
  return model, jax.tree.map(draw, shapes)


@functools.cache
def applied(name, dtype=None):
  """Outputs by ids [8, L] and keys, evaluated and trained: compiled once an L.

  With gradients of the sum of the logits where L is LONGER.
  """
  model, params = initialized(name, dtype)

  @jax.jit
  def program(ids, keys):
    def total(params, train):
      outputs, _ = model.apply(params, {}, ids, keys, train)
      return outputs.logits.sum(), outputs

    if ids.shape[1] == LENGTH:
      return {train: total(params, train)[1] for train in (False, True)}
    grad = jax.grad(total, has_aux=True)
    return {train: grad(params, train) for train in (False, True)}

  return lambda ids, keys=KEYS: jax.device_get(program(ids, keys))


@functools.cache
def said(name):
  """Of IDS, evaluated (False) and trained (True)."""
  return applied(name)(IDS)


def assert_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), a, b)


def parameters(net):
  params, _ = jax.eval_shape(from_linen(net, (LENGTH,)).init, KEY)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_networks_have_the_parameters_of_their_description():
  assert parameters(NGRAM) == 40 * 6 + 7 * 3
  attention = 4 * (8 * 8 + 8)
  block = attention + 2 * 16 + (8 + 1) * 32 + (32 + 1) * 8
  for layers in (1, 3):
    net = TRANSFORMER.clone(layers=layers)
    assert parameters(net) == (40 + 12) * 8 + layers * block + 16 + 9 * 3


@both
def test_shapes(name):
  model, params = initialized(name)
  outputs = said(name)[False]
  assert outputs.logits.shape == (8, 3)
  assert outputs.features.shape == (8, NETS[name].width)
  # As arrays of one's own come, through from_arrays; without keys.
  evaluate = jax.jit(lambda ids: model.apply(params, {}, ids, None, False)[0])
  again = evaluate(IDS.astype(np.float32))
  jax.tree.map(np.testing.assert_array_equal, outputs, again)


def test_the_ngram_net_is_a_mean_of_embeddings_and_a_dense_layer():
  _, params = initialized('ngram')
  outputs = said('ngram')[False]
  table, dense = params['Embed_0']['embedding'], params['Dense_0']
  for row, count, logits, features in zip(
    IDS, COUNTS, *outputs[:2], strict=True
  ):
    expected = table[row[:count]].mean(0) if count else np.zeros(6)
    assert_close(features, expected)
    assert_close(logits, expected @ dense['kernel'] + dense['bias'])


@both
@pytest.mark.parametrize('train', [False, True])
def test_padding_changes_nothing(name, train):
  gradient, padded = applied(name)(PADDED)[train]
  assert_close(padded, said(name)[train])
  # And its embedding and position get no gradient.
  assert (gradient['Embed_0']['embedding'][0] == 0).all()
  assert (gradient['Embed_0']['embedding'][1:] != 0).any()
  if name == 'transformer':
    assert (gradient['position'][LENGTH:] == 0).all()
    assert (gradient['position'][:LENGTH] != 0).any()


@both
@pytest.mark.parametrize(
  'dtype', [None, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)]
)
def test_a_row_of_padding_is_finite_and_has_no_features(name, dtype):
  nothing = applied(name, dtype)(np.zeros_like(PADDED))
  gradient, trained = nothing[True]
  assert np.isfinite(trained.logits.sum())
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  _, evaluated = nothing[False]
  assert (evaluated.features == 0).all()
  assert evaluated.logits.dtype == (dtype or jnp.float32)


@both
def test_bfloat16_computes_low_and_keeps_parameters_high(name):
  model, params = initialized(name, jnp.bfloat16)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  apply = lambda params: model.apply(params, {}, IDS, None, False)[0]
  assert jax.eval_shape(apply, params).logits.dtype == jnp.bfloat16


@both
def test_dropout_depends_on_the_keys_of_examples_alone(name):
  plain, dropped = (said(name)[train].logits for train in (False, True))
  others = jax.jit(example_keys)(jax.random.key(2), np.arange(8))
  for different in (plain, applied(name)(IDS, others)[True].logits):
    assert (np.abs(dropped - different) > 1e-3).any()
  order = np.array([5, 0, 4, 4, 4, 4, 4, 4])
  some = applied(name)(IDS[order], KEYS[order])[True]
  assert_close(some, jax.tree.map(lambda a: a[order], said(name)[True]))


@both
@pytest.mark.parametrize(
  'how', [pytest.param('jit', marks=pytest.mark.slow), 'shard_map']
)
def test_eight_devices_give_the_numbers_of_one(name, how):
  model, params = initialized(name)
  mesh = data_mesh()
  apply = lambda ids, keys: model.apply(params, {}, ids, keys, True)[0]
  if how == 'shard_map':
    apply = jax.shard_map(
      apply, mesh=mesh, in_specs=P('data'), out_specs=P('data')
    )
  split = NamedSharding(mesh, P('data'))
  found = jax.jit(apply)(*jax.device_put((IDS, KEYS), split))
  assert_close(found, said(name)[True])


@both
def test_order_matters_to_the_transformer_alone(name):
  turned = np.concatenate([IDS[:1, ::-1], IDS[1:]])
  first, second = said(name)[False], applied(name)(turned)[False]
  difference = np.abs(first.logits[0] - second.logits[0]).max()
  assert (difference > 1e-3) == (name == 'transformer')


def test_bad_sizes_are_named():
  model, params = initialized('transformer')
  apply = lambda ids, train: jax.eval_shape(
    lambda params: model.apply(params, {}, ids, None, train), params
  )
  with pytest.raises(ValueError, match=r'x has 13 tokens.* length = 12'):
    apply(np.ones((1, 13), np.int32), False)
  with pytest.raises(ValueError, match='heads must divide width = 8, got 3'):
    jax.eval_shape(from_linen(TRANSFORMER.clone(heads=3), (LENGTH,)).init, KEY)
  with pytest.raises(ValueError, match='keys must be given'):
    apply(IDS, True)


def test_masked_mean_leaves_nan_out():
  x = np.array([[1.0, np.nan], [3.0, 5.0]], np.float32)[..., None]
  mask = np.array([[True, False], [True, True]])
  assert jax.jit(masked_mean)(x, mask).tolist() == [[1.0], [4.0]]


def test_names_and_ids_fit_each_other():
  texts = ['buy this now', 'what a song']
  for name, ids in (
    ('ngram', ngram_ids(texts)),
    ('text_transformer', token_ids(texts)),
  ):
    net = build(name, 4)
    assert net.num_classes == 4
    model = from_linen(net, ids.shape[1:])
    shapes, _ = jax.eval_shape(model.init, KEY)
    table = shapes['Embed_0']['embedding']
    assert table.shape[0] == 8192, 'as many as the default of ids'
    assert ids.max() < 8192
    outputs, _ = jax.eval_shape(
      lambda p, x, m=model: m.apply(p, {}, x, None, False), shapes, ids
    )
    assert outputs.logits.shape == (2, 4)


def toy(n, seed):
  """Texts of 3 to 12 words; whether 'not' stands right before 'good'."""
  rng = np.random.default_rng(seed)
  words = ['the', 'song', 'is', 'a', 'bit', 'long', 'and', 'loud', 'here', 'so']
  texts, labels = [], rng.integers(0, 2, n)
  for label in labels:
    text = list(rng.choice(words, rng.integers(1, 11)))
    pair = ['not', 'good'] if label else ['good', 'not']
    place = rng.integers(0, len(text) + 1)
    texts.append(' '.join(text[:place] + pair + text[place:]))
  return texts, labels.astype(np.int32)


@pytest.mark.parametrize(
  ('net', 'ids', 'rate', 'epochs'),
  [
    (NgramClassifier(2, 512), functools.partial(ngram_ids, length=24), 1e-2, 6),
    pytest.param(
      TextTransformer(2, 64, length=12, layers=1),
      functools.partial(token_ids, length=12),
      5e-3,
      16,
      marks=pytest.mark.slow,
    ),
  ],
  ids=['ngram', 'transformer'],
)
def test_the_order_of_two_words_is_learned(net, ids, rate, epochs):
  (texts, labels), (test_texts, test_labels) = toy(512, 0), toy(256, 1)
  x, x_test = (ids(part, buckets=net.buckets) for part in (texts, test_texts))
  model = from_linen(net, x.shape[1:])
  method = supervised(ce, model, optax.adam(rate))
  state = jax.jit(method.init)(KEY)
  step = jax.jit(method.step)
  for i in range(epochs * 16):
    rows = np.random.default_rng(i).permutation(len(x))[:32]
    batch = {
      'x': x[rows],
      'labels': labels[rows],
      'index': rows.astype(np.int32),
      'weight': np.ones(32, np.float32),
    }
    state, _ = step(state, batch, jax.random.fold_in(KEY, i))
  predicted = jax.jit(method.predict)(state, x_test).logits.argmax(-1)
  accuracy = float((predicted == test_labels).mean())
  print(f'accuracy {accuracy:.3f}')
  assert accuracy > 0.95
