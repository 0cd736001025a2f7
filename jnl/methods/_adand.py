"""AdaND: what of a stream is no class of the classifier, learned on the way."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jnl import losses
from jnl.base import (
  Adapter,
  Array,
  Batch,
  Key,
  Outputs,
  Params,
  State,
  Stats,
  check,
  check_batch,
  check_key,
  gather,
  global_grad,
  global_mean,
)
from jnl.inputs import check_int, read_floats, read_logits
from jnl.methods._tent import stays_finite
from jnl.select import split_threshold
from jnl.steps import guarded_step, select


class Ring(NamedTuple):
  """The last scores of a stream.

  Attributes:
    scores: [memory], the newest at the end, zeros before the first.
    filled: [] int32, how many of them there are.
  """

  scores: Array
  filled: Array


class Rings(NamedTuple):
  """What `adand` remembers, its `State.extra`.

  Attributes:
    zero_shot: scores of the frozen classifier.
    detector: scores of the detector, since it decides.
  """

  zero_shot: Ring
  detector: Ring


class _Seen(NamedTuple):
  """A batch; zeros where a row has weight 0."""

  features: Array
  scores: Array
  injected: Array
  weight: Array
  there: Array


def adand(
  tx: optax.GradientTransformation | None = None,
  *,
  warmup: int = 10,
  memory: int = 512,
) -> Adapter:
  r"""Noise found in a stream: by a detector that a frozen classifier teaches.

  .. math::
    s(x) = 1 - \max_k p_k(x),\qquad
    L = \operatorname{mean} \left[ -\log q_{\hat y}(x) \right],\quad
    \hat y = \mathrm{noise} \text{ where } s(x) > t
      \text{ or } x \text{ was injected, else clean}

  with p of the classifier, t the `select.split_threshold` of the last `memory`
  scores, those of this batch among them, and q of a linear detector on its
  features, class 0 noise and 1 clean, which takes one step on every batch. At
  first s decides; after the warm-up the detector's probability of noise does,
  as it was before the step, by a threshold of its own last scores.

  Images that are surely noise, see `noise_images`, injected among the others,
  about one for eight, and marked, are what keeps it right where nearly all is
  clean: some rows lie above a threshold in any case.

  It can only amplify what the scores know. Where they find a half of the noise
  or less (the recall of `zero_shot_noise`), its labels teach the detector that
  noise is clean: it then finds less than they do, and injected images, easy to
  tell, make it worse. Nothing in the stream tells this; a few rows that are
  known do. See experiments/noisy_stream.py.

  Args:
    tx: the optimizer of the detector; None for `optax.adam(5e-4)`.
    warmup: >= 0; the detector decides once more batches than so many lie behind
      it, as in the official code: 10 is from the 12th batch on.
    memory: scores that a threshold is of, >= 1; the official code has 64 where
      batches are single images.

  Returns:
    An adapter over batches of `features` [b, d] and `logits` [b, c] of any
    frozen model, as they are, such as CLIP's; and, where there are some,
    `injected` [b] bool and `weight` [b]. Rows of weight 0 leave no trace. Its
    `init` takes the first parameters of the detector, those of
    `steps.linear(d, 2)`.

    `Outputs` are the frozen ones: the logits say which class an example is of
    that is one. In `aux` are rows [b]: `noise`, the decision; `score` of noise
    and `threshold` that it is of, and `confidence`, 1 - score;
    `zero_shot_noise`, `zero_shot_score` and `zero_shot_threshold`; the `loss`;
    and `skipped`, 1 for a batch with a score, a loss or a step that is not
    finite: it leaves the state as it was. A score that is NaN is noise. Where
    all scores are alike the threshold is 0, and all above it are noise.

  Raises:
    TypeError, ValueError: if a number is malformed; of `init` and, at trace
      time, of `step` if an array is.

  >>> from jnl.steps import linear
  >>> adapter = adand()
  >>> state = adapter.init(*linear(2, 2).init(jax.random.key(0)))
  >>> logits = jnp.array([[9.0, 0.0], [0.0, 0.0]])
  >>> batch = {'features': jnp.eye(2), 'logits': logits}
  >>> state, outputs = jax.jit(adapter.step)(state, batch, jax.random.key(1))
  >>> outputs.aux['noise'].tolist()
  [False, True]

  Reference: Cao, Zhong, Zhou, Liu, Liu, Han, "Noisy Test-Time Adaptation in
  Vision-Language Models", ICLR 2025, arXiv 2502.14604.
  """
  check_int('warmup', warmup, 0)
  check_int('memory', memory)
  tx = optax.adam(5e-4) if tx is None else tx

  def init(params: Params, stats: Stats | None = None) -> State:
    params = _read_detector(params)
    dtype = jnp.promote_types(params['weights'].dtype, jnp.float32)
    empty = lambda: Ring(jnp.zeros(memory, dtype), jnp.int32(0))
    stats = {} if stats is None else stats
    extra = Rings(empty(), empty())
    return State(jnp.int32(0), params, stats, tx.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Outputs]:
    del key
    return _step(tx, warmup, state, batch)

  return Adapter(init, step)


def noise_images(key: Key, n: int, shape: Sequence[int]) -> Array:
  r"""Images that are surely noise, to be injected into a stream.

  .. math:: x = (z - \min z) / (\max z - \min z),\qquad z \sim \mathcal N(0, 1)

  with the extremes of each image, over all its channels.

  Args:
    key: of `jax.random`.
    n: how many, >= 0; the paper has an eighth of the stream.
    shape: of an image, such as (28, 28, 1).

  Returns:
    [n, h, w, c], float32 in [0, 1]; an image of one pixel is 0.

  Raises:
    TypeError, ValueError: if an argument is malformed.

  >>> x = noise_images(jax.random.key(0), 2, (4, 4, 3))
  >>> x.shape, x.min((1, 2, 3)).tolist(), x.max((1, 2, 3)).round(6).tolist()
  ((2, 4, 4, 3), [0.0, 0.0], [1.0, 1.0])

  Reference: see `adand`.
  """
  check_key(key)
  check_int('n', n, 0)
  for size in shape:
    check_int('each size in shape', size)
  z = jax.random.normal(key, (n, *shape), jnp.float32)
  axes = tuple(range(1, z.ndim))
  z = z - jnp.min(z, axis=axes, keepdims=True)
  high = jnp.max(z, axis=axes, keepdims=True)
  # By a reciprocal, as compiled, the quotient may be a rounding above 1.
  return jnp.minimum(z / jnp.where(high > 0, high, 1), 1)


def _step(
  tx: optax.GradientTransformation, warmup: int, state: State, batch: Batch
) -> tuple[State, Outputs]:
  seen = _read(state, batch)
  rings: Rings = state.extra
  first, first_threshold = _pushed(rings.zero_shot, seen.scores, seen.there)
  first_noise = _above(seen.scores, first_threshold)
  guess = first_noise | seen.injected
  (loss, (own, values)), gradient = global_grad(_loss)(
    state.params, seen, guess
  )
  second, second_threshold = _pushed(rings.detector, own, seen.there)
  decides = state.step > warmup
  every, there = gather((seen.scores, seen.there))
  allowed = jnp.all(jnp.isfinite(every)) & jnp.any(there) & jnp.isfinite(loss)
  old = state.params, state.stats, state.opt
  new, done = guarded_step(tx, gradient, old, state.stats, allowed)
  done &= stays_finite(new, old)
  extra = Rings(first, select(decides, second, rings.detector))
  score = jnp.where(decides, own, seen.scores)
  like = lambda scalar: jnp.full_like(score, scalar)
  aux = {
    'noise': jnp.where(decides, _above(own, second_threshold), guess),
    'score': score,
    'threshold': like(jnp.where(decides, second_threshold, first_threshold)),
    'confidence': 1 - score,
    'zero_shot_noise': first_noise,
    'zero_shot_score': seen.scores,
    'zero_shot_threshold': like(first_threshold),
    'loss': values,
    'skipped': like(jnp.where(done, 0, 1)),
  }
  after = select(done, State(state.step + 1, *new, extra), state)
  frozen = Outputs(*(jnp.asarray(batch[k]) for k in ('logits', 'features')))
  return after, frozen._replace(aux=aux)


def _read_detector(params: Params) -> dict[str, Array]:
  """The parameters of `steps.linear(d, 2)`."""
  names = ('bias', 'weights')
  known = isinstance(params, dict) and tuple(sorted(params)) == names
  check(
    known,
    'params must be those of the detector, as jnl.steps.linear(d, 2).init(key) '
    f'gives them first, a dict of weights [d, 2] and bias [2], got '
    f'{sorted(params) if isinstance(params, dict) else type(params).__name__}',
  )
  # Copies: a state is donated, and these may be shared with another one.
  params = {
    k: jnp.array(read_floats(f'params[{k!r}]', params[k])) for k in names
  }
  weights, bias = params['weights'].shape, params['bias'].shape
  check(
    len(weights) == 2 and weights[1:] == bias == (2,),
    "params must hold 'weights' [d, 2] and 'bias' [2] of the detector, got "
    f'shapes {weights} and {bias}',
  )
  return params


def _read(state: State, batch: Batch) -> _Seen:
  """The batch, with scores of the classifier; all of its arrays are checked."""
  check_batch(batch, 'features', 'logits')
  features = read_floats('features', batch['features'])
  logits = read_logits(batch['logits'])
  d = state.params['weights'].shape[0]
  check(
    features.ndim == 2 and features.shape[1] == d,
    f'features must be [b, {d}], as the detector has weights for, got shape '
    f'{features.shape}',
  )
  b = len(features)
  check(
    logits.ndim == 2 and len(logits) == b,
    f'logits must be [b, c] with b = {b} as features have, got shape '
    f'{logits.shape}',
  )
  weight = jnp.asarray(batch.get('weight', jnp.ones(b)))
  injected = jnp.asarray(batch.get('injected', jnp.zeros(b, bool)))
  for name, rows in (('weight', weight), ('injected', injected)):
    check(rows.shape == (b,), f'{name} must be [{b}], got shape {rows.shape}')
  check(
    injected.dtype == bool,
    f'injected must be bool, got {injected.dtype}',
    TypeError,
  )
  there = weight > 0
  scores = 1 - jnp.max(jax.nn.softmax(logits), axis=-1)
  scores = scores.astype(state.extra.zero_shot.scores.dtype)
  return _Seen(
    jnp.where(there[:, None], features, 0),
    jnp.where(there, scores, 0),
    injected,
    weight,
    there,
  )


def _above(scores: Array, threshold: Array) -> Array:
  """Where scores are above a threshold, or are NaN."""
  return ~(scores <= threshold)


def _pushed(ring: Ring, scores: Array, there: Array) -> tuple[Ring, Array]:
  """The ring after the scores of a batch on all devices, and its threshold."""
  scores, there = gather((jnp.where(there, scores, 0), there))
  size = len(ring.scores)
  every = jnp.concatenate([ring.scores, scores.astype(ring.scores.dtype)])
  known = jnp.concatenate([_known(ring), there])
  # Those that count move to the end, in their order.
  order = jnp.argsort(known, stable=True)[-size:]
  filled = jnp.minimum(ring.filled + jnp.sum(there, dtype=jnp.int32), size)
  ring = Ring(every[order], filled)
  return ring, split_threshold(ring.scores, _known(ring))


def _known(ring: Ring) -> Array:
  """Which of its scores there are, [memory] bool."""
  size = len(ring.scores)
  return jnp.arange(size) >= size - ring.filled


def _loss(
  params: Params, seen: _Seen, noise: Array
) -> tuple[Array, tuple[Array, Array]]:
  """The loss, the probability of noise [b], and the loss of each row."""
  logits = seen.features @ params['weights'] + params['bias']
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  values = losses.ce(logits, jnp.where(noise, 0, 1))
  own = jax.nn.softmax(logits)[:, 0]
  return global_mean(values, seen.weight), (own, values)
