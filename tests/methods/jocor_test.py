"""JoCoR: a step against numpy, and that agreement finds the clean labels."""

from contract import Contract, network, optimizer
from fixture_methods import noisy_digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses, select
from jnl.base import State
from jnl.methods import jocor, known_settings, published
from jnl.nets import MLP, from_linen
from jnl.steps import linear, supervised

KEY = jax.random.key(0)
B, D, C, LAM = 20, 3, 3, 0.3


def small(**kwargs):
  """Two steps make an epoch; R is 0, .2, then .4."""
  own = {'steps_per_epoch': 2, 'rate': 0.4, 'ramp': 3, 'co_lambda': LAM}
  return jocor(linear(D, C), optax.sgd(0.5), **{**own, **kwargs})


def drawn():
  """Two networks, and a batch whose last two rows are garbage of weight 0."""
  rng = np.random.default_rng(0)
  params = {
    'weights': rng.normal(size=(2, D, C)).astype(np.float32),
    'bias': rng.normal(size=(2, C)).astype(np.float32),
  }
  batch = {
    'x': rng.normal(size=(B, D)).astype(np.float32),
    'labels': rng.integers(0, C, B, np.uint8),
    'index': np.arange(B),
    'weight': rng.choice(np.float32([0.5, 1, 2]), B),
  }
  batch['x'][-2:], batch['labels'][-2:] = np.nan, 255
  batch['weight'][-2:] = 0
  return params, batch


@jax.jit
def stepped(params, batch, step):
  state = State(step, params, {}, optax.sgd(0.5).init(()))
  state, metrics = small().step(state, batch, KEY)
  return state.params['weights'], metrics


def test_a_step_is_that_of_the_paper():
  """With gradients through both predictions, by the weights of examples."""
  params, batch = drawn()
  n = B - 2
  x, weight = batch['x'][:n].astype(float), batch['weight'][:n]
  eye = np.eye(C)[batch['labels'][:n]]
  z = x @ params['weights'].astype(float) + params['bias'][:, None]
  log = z - np.log(np.exp(z).sum(-1, keepdims=True))
  p = np.exp(log)
  apart = log - log[::-1]
  joint = (1 - LAM) * -(log * eye).sum((0, 2)) + LAM * (p * apart).sum((0, 2))
  # d KL(p, q) / dz = p (log p / q - KL), d KL(q, p) / dz = p - q
  within = p * (apart - (p * apart).sum(-1, keepdims=True))
  slope = (1 - LAM) * (p - eye) + LAM * (within + p - p[::-1])
  agree = np.mean(z[0].argmax(1) == z[1].argmax(1))
  for step, k in (0, 18), (2, 14), (4, 10):  # the whole parts of 14.4 and 10.8
    learned = np.zeros(n)
    learned[np.argsort(joint)[:k]] = 1
    own = weight * learned / (weight * learned).sum()
    moved = np.einsum('bd,mbc->mdc', x, slope * own[:, None])
    weights, metrics = stepped(params, batch, np.int32(step))
    np.testing.assert_allclose(
      weights, params['weights'] - 0.5 * moved, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
      [metrics[name] for name in ('loss', 'kept', 'agree')],
      [(own * joint).sum(), k / n, agree],
      rtol=1e-5,
    )


def test_nobody_there_and_labels_that_are_none():
  params, batch = drawn()
  nobody = {**batch, 'weight': np.zeros(B, np.float32)}
  weights, metrics = stepped(params, nobody, np.int32(4))
  np.testing.assert_array_equal(weights, params['weights'])
  assert metrics['loss'] == metrics['kept'] == 0
  batch['labels'][3] = 255
  assert np.isnan(stepped(params, batch, np.int32(4))[1]['loss'])


@pytest.mark.parametrize(
  ('name', 'value'),
  [('steps_per_epoch', 0), ('rate', -0.1), ('ramp', -1), ('co_lambda', 1.1)],
)
def test_arguments_are_checked(name, value):
  with pytest.raises(ValueError, match=name):
    small(**{name: value})


def test_bad_batches():
  method, (_, batch) = small(), drawn()
  with pytest.raises(TypeError, match='model'):
    jocor('cnn', optax.sgd(0.1), steps_per_epoch=1)
  for name in ('labels', 'weight'):
    wrong = {**batch, name: batch[name][:, None]}
    with pytest.raises(ValueError, match=r'\(20, 1\)'):
      jax.eval_shape(lambda b: method.step(method.init(KEY), b, KEY), wrong)


def test_published_settings_are_arguments():
  for settings in known_settings('jocor').values():
    small(**settings.arguments)
  loud = published('jocor', 'cifar10', 'symmetric', 0.8)
  assert loud.arguments == {'rate': 0.8, 'ramp': 10, 'co_lambda': 0.65}
  # Half of the classes have no wrong labels.
  half = published('jocor', 'cifar10', 'cifar10_asymmetric', 0.4)
  assert half.arguments['rate'] == 0.2


@pytest.mark.slow
def test_agreement_grows_with_lambda_and_what_is_kept_is_clean():
  """Digits, 40% wrong labels; lambda 0, .5. Seen: CE 84, both 95, clean 96."""
  rng = np.random.default_rng(0)
  digits, noisy = noisy_digits(rng)
  x, clean, test = digits.train.x, digits.train.labels, digits.test
  order = np.concatenate([rng.permutation(len(x)) for _ in range(40)])
  net, tx = from_linen(MLP(10, (128,)), (64,)), optax.sgd(0.1, momentum=0.9)

  def trained(method, x, noisy, order):
    def step(state, index):
      batch = {'x': x[index], 'labels': noisy[index], 'index': index}
      batch['weight'] = jnp.ones(len(index))
      return method.step(state, batch, KEY)

    state, metrics = jax.lax.scan(step, method.init(KEY), order)
    out = method.predict(state, jnp.concatenate([x, test.x]))
    right = jnp.mean(out.logits[len(x) :].argmax(1) == test.labels)
    return right, out.aux, metrics

  @jax.jit
  def both(x, noisy, order):
    ce = trained(supervised(losses.ce, net, tx), x, noisy, order)[0]

    def joint(lam):
      own = {'steps_per_epoch': len(x) // 100, 'rate': 0.4, 'co_lambda': lam}
      right, out, metrics = trained(jocor(net, tx, **own), x, noisy, order)
      each = select.jocor(*out.logits[:, : len(x)], noisy, co_lambda=lam)
      small = select.small_loss(each, 0.6 * len(x))
      pure = jnp.sum(small & (noisy == clean)) / jnp.sum(small)
      return right, pure, metrics['agree']

    return ce, jax.vmap(joint)(jnp.array([0, 0.5]))

  found = both(x, noisy, order.reshape(-1, 100))
  ce, (right, pure, agree) = jax.device_get(found)
  apart = 1 - agree[:, 120:].mean(1)  # seen .018 and .009
  assert apart[1] < 0.7 * apart[0]
  assert np.all(pure > 0.9)
  assert np.all(right > ce + 0.1)


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return jocor(network(), optimizer(), steps_per_epoch=1, rate=0.4, ramp=2)
