"""Golden checks of CoTTA, and of what it and TENT descend."""

from unittest import mock

from golden_pseudo import _suffixed
import jax
import jax.numpy as jnp
import optax

from jnl import em, losses
from jnl.base import Model, Outputs, example_keys
from jnl.methods import _cotta

KEY = jax.random.key(0)


def check_entropies(case):
  """Three losses of a batch, and the gradient of their means."""
  _suffixed(case)
  functions = {
    'cotta_cifar': em.consistency,
    'cotta_imagenet_sym': losses.symmetric_consistency,
    'tent': lambda z, _: losses.entropy(z),
  }

  def run(student, teacher):
    def both(f):
      mean = lambda z: jnp.mean(f(z, teacher))
      return f(student, teacher), jax.grad(mean)(student)

    return {name: both(f) for name, f in functions.items()}

  found = yield run, case['x'], case['x_ema']
  for name, (values, slope) in found.items():
    case.value(values, name)
    case.gradient(slope, f'{name}_gradmean')


def apply(params, stats, x, *rest):
  del rest
  return Outputs(x @ params['w'].T + params['b'], x), stats


def check_full_step(case):
  """The step itself: only what is random is in the place of a draw."""
  decay, rate, threshold, lr, views, adam = case['hyper'].tolist()
  tx = optax.adam(lr) if adam else optax.sgd(lr)
  start = {'w': case['w0'], 'b': case['b0']}
  masks = {'w': case['mask_w'], 'b': case['mask_b']}
  model = Model(lambda key: (start, {}), apply)

  def run(start, x, noise, masks):
    keys = example_keys(
      jax.random.fold_in(KEY, _cotta.VIEWS_TAG), jnp.arange(1)
    )
    count = jnp.arange(noise.shape[1])
    known = jax.vmap(lambda i: jax.random.fold_in(keys[0], i))(count)

    def step(state, given):
      x, noise, masks = given

      def augment(keys, x):  # which of the views it is, its keys say
        drawn = jax.random.key_data(keys[0]) == jax.random.key_data(known)
        return x + noise[jnp.argmax(jnp.all(drawn, axis=-1))]

      def go_back(key, params, source, rate):
        del key, rate
        choose = lambda m, p0, p: jnp.where(m > 0, p0, p)
        return jax.tree.map(choose, masks, source, params), masks

      adapter = _cotta.cotta(
        *(model, tx, augment),
        decay=decay,
        restore=rate,
        threshold=threshold,
        views=int(views),
      )
      with mock.patch.object(_cotta, 'go_back', go_back):
        state, outputs = adapter.step(state, {'x': x}, KEY)
      shown = state.params, state.extra.teacher, outputs
      return state, shown

    init = _cotta.cotta(model, tx, lambda keys, x: x).init
    return jax.lax.scan(step, init(start, {}), (x, noise, masks))[1]

  request = run, start, case['x'], case['noise'], masks
  student, teacher, outputs = yield request
  case.value(outputs.logits, 'outputs')
  for name, params in (('student', student), ('teacher', teacher)):
    for k, values in params.items():
      case.value(values, f'{name}_{k}')
  case.close(outputs.aux['confidence'].mean(axis=1), 'anchor_conf', rtol=1e-6)


CHECKS = {
  ('cotta', 'softmax_entropy'): check_entropies,
  ('cotta', 'full_step'): check_full_step,
}
