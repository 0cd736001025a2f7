"""One vector for each class, learned on features that stay as they are."""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from jnl import losses
from jnl.base import (
  Array,
  Key,
  Method,
  Model,
  Outputs,
  Params,
  Scalar,
  State,
  Stats,
  check,
  is_concrete,
)
from jnl.inputs import (
  check_between,
  check_int,
  check_range,
  read_floats,
  read_labels,
)
from jnl.methods._self_training import Learner, Predict
from jnl.select import class_means, nearest_prototype
from jnl.steps import supervised

WARM_UP = 20
"""The rate rises in one of so many parts of the steps."""


def class_vectors(vectors: ArrayLike, scale: Scalar = 100.0) -> Model:
  r"""Logits of frozen features: their cosines with a vector of each class.

  .. math:: z_k = s \, \langle x \rangle \cdot \langle v_k \rangle,\qquad
     \langle x \rangle = x / |x|

  At first this is the zero-shot classifier of CLIP, if x are its image features
  and v what its text encoder makes of the names of classes. What is learned are
  the vectors. It is a reconstruction: FPL, IFPL and GRIP learn a prompt, tokens
  before the name (or patches before the image), of which a frozen encoder makes
  the vectors, all classes from the same few; here there is no encoder, and the
  vectors have their own way.

  Args:
    vectors: v, [c, d], c >= 2: of the text encoder, the last layer of a
      network, or `select.class_means`. None is zeros.
    scale: s > 0, the inverse of the temperature; CLIP has learned 100.

  Returns:
    A model of inputs x [b, d], which are its features; a row of zeros has the
    logit 0 of every class. `params['vectors']` [c, d], at least float32, begin
    as `vectors` scaled to length one, whatever the key.

  Raises:
    TypeError: if `vectors` are not floating-point.
    ValueError: if their shape does not fit, `scale` is out of range, or outside
      jit if a vector is not finite or zeros.

  >>> model = class_vectors(jnp.array([[2.0, 0.0], [0.0, 1.0]]), scale=5.0)
  >>> params, stats = model.init(jax.random.key(0))
  >>> x = jnp.array([[0.0, 3.0], [0.0, 0.0]])
  >>> model.apply(params, stats, x, None, False)[0].logits.tolist()
  [[0.0, 5.0], [0.0, 0.0]]

  Reference: Menghini, Delworth, Bach, "Enhancing CLIP with CLIP: Exploring
  Pseudolabeling for Limited-Label Prompt Tuning", NeurIPS 2023, arXiv
  2306.01669. Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell,
  Mishkin, Clark, Krueger, Sutskever, "Learning Transferable Visual Models From
  Natural Language Supervision", ICML 2021, arXiv 2103.00020.
  """
  vectors = _read_vectors(vectors)
  check_range('scale', scale, 0, open_low=True)
  c, d = vectors.shape

  def init(key: Key) -> tuple[Params, Stats]:
    del key
    return {'vectors': class_means(vectors, jnp.arange(c), c)}, {}

  def apply(
    params: Params, stats: Stats, x: Array, keys: Key | None, train: bool
  ) -> tuple[Outputs, Stats]:
    del keys, train
    x = read_floats('x', x)
    check(
      x.ndim == 2 and x.shape[1] == d,
      f'x must be features [b, d] = [b, {d}], got shape {x.shape}',
    )
    logits = scale * nearest_prototype(x, params['vectors']).similarity
    return Outputs(logits, x), stats

  return Model(init, apply)


def fit_vectors(
  vectors: ArrayLike,
  *,
  scale: float = 100.0,
  learning_rate: float = 16.0,
  steps: int = 200,
) -> Learner:
  r"""A learner for `grip` and its kin: class vectors, from the given ones anew.

  The mean cross-entropy of all rows is descended at once, by SGD of momentum .9
  whose rate rises in the first twentieth of the steps and falls as a cosine.
  The learning rate is in units of :math:`1 / s^2`, since the curvature of the
  loss is of order :math:`s^2`. Nothing is random. (The paper: prompts, rate .1,
  cosine, 5 epochs of warm-up, 150 epochs of batches of 16.)

  Args:
    vectors: see `class_vectors`; each fit begins with them.
    scale: see `class_vectors`.
    learning_rate: > 0, the highest.
    steps: at least 1.

  Returns:
    `(x [m, d], labels [m], weights [m]) -> (x -> probs [m, c])`, for
    `self_train`, `fpl`, `ifpl` and `grip`. A row of weight 0 leaves no trace,
    whatever it holds. It is compiled for numbers of rows that are powers of two
    alone, to which rows are padded.

  Raises:
    TypeError, ValueError: see `class_vectors`; if a number is out of range; by
      the learner naming `x`, `labels` or `weights`, if they are malformed, or
      all weights are 0.

  >>> x = np.array([[1.0, 0.1], [0.1, 1.0], [0.8, 0.6]])
  >>> fit = fit_vectors(jnp.eye(2), scale=5.0)
  >>> predict = fit(x, np.array([0, 1, 1]), np.ones(3))
  >>> predict(x).argmax(1).tolist()
  [0, 1, 1]

  Reference: see `class_vectors`.
  """
  vectors = _read_vectors(vectors)
  for name, value in (('scale', scale), ('learning_rate', learning_rate)):
    check_range(name, value, 0, open_low=True)
  check_int('steps', steps)
  numbers = scale, learning_rate

  def fit(x: Any, labels: np.ndarray, weights: np.ndarray) -> Predict:
    rows = _read_rows(x, labels, weights, *vectors.shape)
    state = _descend(vectors, *rows, *numbers, steps=int(steps))

    def predict(x: Any) -> Array:
      return _probs(vectors, state, read_floats('x', x), *numbers)

    return predict

  return fit


def _read_vectors(vectors: ArrayLike) -> Array:
  """[c, d], at least float32; outside jit finite, and none is zeros."""
  vectors = read_floats('vectors', vectors)
  check(
    vectors.ndim == 2 and vectors.shape[0] >= 2 and vectors.shape[1] >= 1,
    f'vectors must be [c, d] with c >= 2, got shape {vectors.shape}',
  )
  if is_concrete(vectors):
    check(jnp.all(jnp.isfinite(vectors)), 'vectors must be finite')
    check(
      jnp.all(jnp.any(vectors != 0, axis=1)),
      'vectors must not have a row of zeros, which has no direction: a class '
      'without examples has no mean',
    )
  return vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))


def _read_rows(
  x: Any, labels: ArrayLike, weights: ArrayLike, c: int, d: int
) -> tuple[np.ndarray, Array, np.ndarray]:
  """What a learner is given; rows of weight 0 are zeros, of label 0.

  There are more of these behind them, so that the number is a power of two.
  """
  features = np.asarray(read_floats('x', x))
  check(
    features.ndim == 2 and features.shape[1] == d,
    f'x must be features [m, d] = [m, {d}], got shape {features.shape}',
  )
  m = len(features)
  for name, values in (('labels', labels), ('weights', weights)):
    shape = np.shape(values)
    check(shape == (m,), f'{name} must be [m] = [{m}], got shape {shape}')
  check_between('weights', weights, 0, float(np.finfo(np.float32).max))
  more = 0, (1 << max(m - 1, 0).bit_length()) - m
  weights = np.pad(np.asarray(weights, np.float32), more)
  there = weights > 0
  check(there.any(), 'weights must be positive for some row')
  labels = np.pad(np.asarray(labels), more)
  own, _ = read_labels(labels, c, where=jnp.asarray(there))
  features = np.where(there[:, None], np.pad(features, (more, (0, 0))), 0)
  check(np.isfinite(features).all(), 'x must be finite where weights are > 0')
  return features, own.astype(jnp.int32), weights


def _method(
  vectors: Array, scale: Scalar, learning_rate: Scalar, steps: int
) -> Method:
  part = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // WARM_UP, steps)
  tx = optax.sgd(
    lambda step: learning_rate / scale**2 * part(step), momentum=0.9
  )
  return supervised(losses.ce, class_vectors(vectors, scale), tx)


@functools.partial(jax.jit, static_argnames='steps')
def _descend(
  vectors: Array,
  x: Array,
  labels: Array,
  weights: Array,
  scale: Array,
  learning_rate: Array,
  *,
  steps: int,
) -> State:
  method, key = _method(vectors, scale, learning_rate, steps), jax.random.key(0)
  index = jnp.arange(len(x))
  batch = {'x': x, 'labels': labels, 'weight': weights, 'index': index}

  def step(state: State, _: None) -> tuple[State, None]:
    return method.step(state, batch, key)[0], None

  return lax.scan(step, method.init(key), length=steps)[0]


@jax.jit
def _probs(
  vectors: Array, state: State, x: Array, scale: Array, learning_rate: Array
) -> Array:
  method = _method(vectors, scale, learning_rate, 1)
  return jax.nn.softmax(method.predict(state, x).logits)
