"""Small networks for texts: hashed n-grams, and a transformer encoder.

Inputs are ids [b, length] as `jnl.data.token_ids` and `ngram_ids` give them:
whole numbers in [0, buckets), of any dtype, and 0 is padding. Logits and
features do not depend on how much padding follows a text. A text that is all
padding has the features 0.
"""

from flax import linen as nn
import jax.numpy as jnp

from jnl.base import Array, Key, Outputs, check
from jnl.nets._layers import Dropout


def masked_mean(x: Array, mask: Array) -> Array:
  """The mean over the places of a text: x [b, length, d], mask [b, length].

  Returns:
    [b, d]; 0 where the mask is empty.

  >>> x = jnp.array([[[1.], [3.], [9.]]])
  >>> masked_mean(x, jnp.array([[True, True, False]])).tolist()
  [[2.0]]
  """
  total = jnp.where(mask[..., None], x, 0).sum(1, dtype=jnp.float32)
  count = jnp.maximum(mask.sum(1, keepdims=True), 1)
  return (total / count).astype(x.dtype)


class NgramClassifier(nn.Module):
  """A linear text classifier: the mean embedding of n-grams, one dense layer.

  It starts from wider embeddings than fastText, U(-1 / width, 1 / width), for
  Adam at a rate of 3e-3.

  Attributes:
    num_classes: number of classes.
    buckets: ids lie in [0, buckets), as given to `ngram_ids`.
    width: of the embedding, the features.
    dropout: rate on the features.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: Joulin, Grave, Bojanowski, Mikolov, "Bag of Tricks for Efficient
  Text Classification", EACL 2017, arXiv 1607.01759.
  """

  num_classes: int
  buckets: int = 8192
  width: int = 32
  dropout: float = 0.1
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    ids = x.astype(jnp.int32)
    embedding = nn.Embed(self.buckets, self.width, dtype=self.dtype)
    features = masked_mean(embedding(ids), ids != 0)
    features = Dropout(self.dropout)(features, keys, train)
    return Outputs(
      nn.Dense(self.num_classes, dtype=self.dtype)(features), features
    )


class EncoderBlock(nn.Module):
  """x + attention(norm(x)), then h + dense(gelu(dense(norm(h)))).

  Attributes:
    heads: of the attention; they divide the width.
    dropout: rate on what each half adds.
    tag: of the first dropout; the second has the next one.
    dtype: of the computation.
  """

  heads: int
  dropout: float
  tag: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, keys: Key | None, train: bool
  ) -> Array:
    width = x.shape[-1]
    attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)
    h = nn.LayerNorm(dtype=self.dtype)(x)
    h = attend(h, mask=mask[:, None, None, :])
    x = x + Dropout(self.dropout, self.tag)(h, keys, train)
    h = nn.LayerNorm(dtype=self.dtype)(x)
    h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(h))
    h = nn.Dense(width, dtype=self.dtype)(h)
    return x + Dropout(self.dropout, self.tag + 1)(h, keys, train)


class TextTransformer(nn.Module):
  """A small transformer encoder: the mean over its tokens, and a dense layer.

  With learned positions and GELU as in BERT, and normalized before each half of
  a block. Attention weights have no dropout. For Adam at 1e-3.

  Attributes:
    num_classes: number of classes.
    buckets: ids lie in [0, buckets), as given to `token_ids`.
    length: of the longest input.
    width: of the embedding, the features.
    heads: of the attention; they divide the width.
    layers: how many blocks.
    dropout: rate on the embedding and on what each half of a block adds.
    dtype: of the computation (parameters are float32), for example bfloat16.

  Reference: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser,
  Polosukhin, "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762;
  normalized as in Xiong et al., "On Layer Normalization in the Transformer
  Architecture", ICML 2020, arXiv 2002.04745.
  """

  num_classes: int
  buckets: int = 8192
  length: int = 64
  width: int = 32
  heads: int = 4
  layers: int = 2
  dropout: float = 0.1
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Array, keys: Key | None, train: bool) -> Outputs:
    ids, length = x.astype(jnp.int32), x.shape[1]
    check(
      length <= self.length,
      f'x has {length} tokens in a row, more than length = {self.length}',
    )
    check(
      self.width % self.heads == 0,
      f'heads must divide width = {self.width}, got {self.heads}',
    )
    mask = ids != 0
    init = nn.initializers.normal(0.02)
    position = self.param('position', init, (self.length, self.width))
    embedding = nn.Embed(
      self.buckets, self.width, embedding_init=init, dtype=self.dtype
    )
    h = embedding(ids)
    h = h + position[:length].astype(h.dtype)
    h = Dropout(self.dropout, tag=0)(h, keys, train)
    for i in range(self.layers):
      block = EncoderBlock(self.heads, self.dropout, 2 * i + 1, self.dtype)
      h = block(h, mask, keys, train)
    features = masked_mean(nn.LayerNorm(dtype=self.dtype)(h), mask)
    return Outputs(
      nn.Dense(self.num_classes, dtype=self.dtype)(features), features
    )
