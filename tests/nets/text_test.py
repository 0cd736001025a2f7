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
LENGTH = 7
NGRAM = NgramClassifier(3, buckets=40, width=6, dropout=0.5)
TRANSFORMER = TextTransformer(
  3, buckets=40, length=12, width=8, heads=2, layers=1, dropout=0.3
)
both = pytest.mark.parametrize(
  'net', [NGRAM, TRANSFORMER], ids=['ngram', 'transformer']
)
# Texts of 7, 4, 1 and 0 tokens, and 4 more.
IDS = jax.random.randint(KEY, (8, LENGTH), 1, 40)
COUNTS = jnp.array([7, 4, 1, 0, 7, 6, 2, 5])
IDS = jnp.where(jnp.arange(LENGTH) < COUNTS[:, None], IDS, 0)


def keys_of(b):
  return example_keys(KEY, jnp.arange(b))


def initialized(net):
  model = from_linen(net, (LENGTH,))
  model = model._replace(apply=jax.jit(model.apply, static_argnums=4))
  params, stats = jax.jit(model.init)(KEY)
  assert stats == {}
  # Away from zero, so that biases count, too.
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params
  )
  return model, params


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
def test_shapes(net):
  model, params = initialized(net)
  outputs, _ = model.apply(params, {}, IDS, None, False)
  assert outputs.logits.shape == (8, 3)
  assert outputs.features.shape == (8, net.width)
  # As arrays of one's own come, through from_arrays.
  again, _ = model.apply(params, {}, IDS.astype(jnp.float32), None, False)
  jax.tree.map(np.testing.assert_array_equal, outputs, again)


def test_the_ngram_net_is_a_mean_of_embeddings_and_a_dense_layer():
  model, params = initialized(NGRAM)
  outputs, _ = model.apply(params, {}, IDS, None, False)
  table, dense = params['Embed_0']['embedding'], params['Dense_0']
  for row, count, logits, features in zip(
    IDS, COUNTS, *outputs[:2], strict=True
  ):
    expected = table[row[:count]].mean(0) if count else jnp.zeros(6)
    assert_close(features, expected)
    assert_close(logits, expected @ dense['kernel'] + dense['bias'])


@both
@pytest.mark.parametrize('train', [False, True])
def test_padding_changes_nothing(net, train):
  model, params = initialized(net)
  short = model.apply(params, {}, IDS, keys_of(8), train)
  padded = jnp.pad(IDS, ((0, 0), (0, 5)))
  assert_close(model.apply(params, {}, padded, keys_of(8), train), short)
  # And its embedding and position get no gradient.
  loss = lambda params, ids: model.apply(params, {}, ids, keys_of(8), train)[
    0
  ].logits.sum()
  gradient = jax.jit(jax.grad(loss))(params, padded)
  assert (gradient['Embed_0']['embedding'][0] == 0).all()
  assert (gradient['Embed_0']['embedding'][1:] != 0).any()
  if net is TRANSFORMER:
    assert (gradient['position'][LENGTH:] == 0).all()
    assert (gradient['position'][:LENGTH] != 0).any()


@both
@pytest.mark.parametrize('dtype', [None, jnp.bfloat16])
def test_a_row_of_padding_is_finite_and_has_no_features(net, dtype):
  model, params = initialized(net.clone(dtype=dtype))
  ids = jnp.zeros((2, LENGTH), jnp.int32)
  loss = lambda params: model.apply(params, {}, ids, keys_of(2), True)[
    0
  ].logits.sum()
  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert jnp.isfinite(value)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
  outputs, _ = model.apply(params, {}, ids, None, False)
  assert (outputs.features == 0).all()
  assert outputs.logits.dtype == (dtype or jnp.float32)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


@both
def test_dropout_depends_on_the_keys_of_examples_alone(net):
  model, params = initialized(net)
  dropped, _ = model.apply(params, {}, IDS, keys_of(8), True)
  plain, _ = model.apply(params, {}, IDS, None, False)
  other = example_keys(jax.random.key(2), jnp.arange(8))
  for different in (plain, model.apply(params, {}, IDS, other, True)[0]):
    assert (jnp.abs(dropped.logits - different.logits) > 1e-3).any()
  order = jnp.array([5, 0, 4])
  some, _ = model.apply(params, {}, IDS[order], keys_of(8)[order], True)
  assert_close(some, jax.tree.map(lambda a: a[order], dropped))


@both
@pytest.mark.parametrize('how', ['jit', 'shard_map'])
def test_eight_devices_give_the_numbers_of_one(net, how):
  model, params = initialized(net)
  expected, _ = model.apply(params, {}, IDS, keys_of(8), True)
  mesh = data_mesh()
  apply = lambda ids, keys: model.apply(params, {}, ids, keys, True)[0]
  if how == 'shard_map':
    apply = jax.shard_map(
      apply, mesh=mesh, in_specs=P('data'), out_specs=P('data')
    )
  split = NamedSharding(mesh, P('data'))
  found = jax.jit(apply)(*jax.device_put((IDS, keys_of(8)), split))
  assert_close(found, expected)


def test_order_matters_to_the_transformer_alone():
  for net, matters in ((NGRAM, False), (TRANSFORMER, True)):
    model, params = initialized(net)
    first, _ = model.apply(params, {}, IDS[:1], None, False)
    turned, _ = model.apply(params, {}, IDS[:1, ::-1], None, False)
    difference = float(jnp.abs(first.logits - turned.logits).max())
    assert (difference > 1e-3) == matters


def test_bad_sizes_are_named():
  model, params = initialized(TRANSFORMER)
  with pytest.raises(ValueError, match=r'x has 13 tokens.* length = 12'):
    model.apply(params, {}, jnp.ones((1, 13), jnp.int32), None, False)
  with pytest.raises(ValueError, match='heads must divide width = 8, got 3'):
    from_linen(TRANSFORMER.clone(heads=3), (LENGTH,)).init(KEY)
  with pytest.raises(ValueError, match='keys must be given'):
    model.apply(params, {}, IDS, None, True)


def test_masked_mean_leaves_nan_out():
  x = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])[..., None]
  mask = jnp.array([[True, False], [True, True]])
  assert masked_mean(x, mask).tolist() == [[1.0], [4.0]]


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
    (
      TextTransformer(2, 64, length=12, layers=1),
      functools.partial(token_ids, length=12),
      5e-3,
      8,
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
