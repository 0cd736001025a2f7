"""Golden checks of `jnl.teacher` and of FST's loss."""

import functools
from unittest import mock

from golden_pseudo import _suffixed
import jax
import jax.numpy as jnp
import optax

from jnl import losses, pseudo, teacher
from jnl.base import Aux, Model, Outputs, global_mean
from jnl.pseudo import Seen
from jnl.ramps import ema_rate_warmup

KEY = jax.random.key(0)


def check_unsup_loss(case):
  """The mean of those that count, over their share, there in float32."""
  _suffixed(case)
  percent, labels = case.hp('percent'), case['labels']
  flat = lambda z: jnp.moveaxis(z, 1, -1).reshape(-1, z.shape[1])

  def run(student, said, labels):
    probs, labels = jax.nn.softmax(flat(said)), labels.reshape(-1)
    valid = (labels != 255).astype(student.dtype)
    index = jnp.arange(len(probs))
    seen = Seen(probs, valid, jnp.zeros_like(valid), index, jnp.int32(0))
    _, w = pseudo.low_entropy(percent).apply((), seen)

    def loss(student):
      values = losses.ce(flat(student), jnp.where(w > 0, labels, 0))
      share = jnp.float32(global_mean(w, jnp.ones_like(w)))
      return global_mean(values, w) * (1 / share).astype(w.dtype)

    return jax.value_and_grad(loss)(student)

  loss, slope = yield (
    *(run, case['student_logits'], case['teacher_logits'], labels),
  )
  case.value(loss, 'loss')
  case.gradient(slope, 'grad')


def of_futures(batch, key, k, parts):
  """In the place of `part_of`: the code takes batches to come."""
  del key, parts
  return {name: batch[f'{name}_fut'][k] for name in ('x', 'labels', 'x_u')}


def looking(case, plain, **options):
  """Students, teachers and what these said, in each step, of `plain` first."""
  alpha, rate, momentum = case['hyper'][1:].tolist()
  ahead = int(case['hyper'][0])

  def loss_fn(params, taught_by, state, batch, key):
    del state, key
    said = taught_by(batch['x_u']).logits
    own = [apply(params, {}, batch[k])[0].logits for k in ('x', 'x_u')]
    guess = jnp.argmax(said, axis=-1)
    loss = losses.ce(own[0], batch['labels']).mean()
    loss += losses.ce(own[1], guess).mean()
    return loss, Aux({}, (), {'said': jax.nn.softmax(said)})

  def apply(params, stats, x, *rest):
    del rest
    return Outputs(x @ params['w'].T + params['b'], x), stats

  def run(start, batches):
    dtype = start['w'].dtype
    made = lambda **how: teacher.taught(
      *(loss_fn, Model(lambda key: (start, {}), apply)),
      optax.sgd(rate, momentum or None),
      decay=lambda t: ema_rate_warmup(t.astype(dtype), rate=alpha),
      **how,
    )
    method = made(look_ahead=ahead, restore=False, **options)

    def walk(step, state, batch):
      state, metrics = step(state, batch, KEY)
      shown = state.params, state.extra.params, metrics['said']
      return state, shown

    state, before = method.init(KEY), []
    if plain:
      first = jax.tree.map(lambda a: a[0], batches)
      state, shown = walk(made().step, state, first)
      before = [jax.tree.map(lambda a: a[None], shown)]
    rest = jax.tree.map(lambda a: a[plain:], batches)
    with mock.patch.object(teacher, 'part_of', of_futures):
      _, after = jax.lax.scan(functools.partial(walk, method.step), state, rest)
    return jax.tree.map(lambda *a: jnp.concatenate(a), *before, after)

  batches = {
    'x': case['x_lab'],
    'labels': case['y_lab'],
    'x_u': case['x_unl'],
    'x_fut': case['x_fut_lab'],
    'labels_fut': case['y_fut_lab'],
    'x_u_fut': case['x_fut_unl'],
  }
  return run, {'w': case['w0'], 'b': case['b0']}, batches


def check_look_ahead(plain=0, **options):
  """The check of a code, of which so many steps are ordinary ones at first."""

  def check(case):
    student, average, said = yield looking(case, plain, **options)
    for name, params in (('student', student), ('teacher', average)):
      for k, values in params.items():
        case.value(values, f'{name}_{k}')
    case.value(said, 'teacher_probs_used')

  return check


CHECKS = {
  ('fst', 'unsup_loss'): check_unsup_loss,
  ('fst', 'lookahead_ssl'): check_look_ahead(),
  ('fst', 'lookahead_fstd'): check_look_ahead(1, last=False),
  ('fst', 'lookahead_fstw'): check_look_ahead(1, mode='wide'),
}
