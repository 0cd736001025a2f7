"""Losses corrected by a transition matrix."""

import functools

from fixture_losses import B, close, draw, run, softmax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

CORRECTED = [losses.forward, losses.backward, losses.importance_reweight]
Z, Y = draw()
P = softmax(Z)
OWN = P[np.arange(B), Y]
FLIP = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
NEVER = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)  # the second label
EYE, ZERO = np.eye(4, dtype=np.float32), np.zeros([4, 4], np.float32)


def matrix(c=4, seed=0):
  noise = np.random.default_rng(seed).dirichlet(np.ones(c), c)
  return np.float32(0.6 * np.eye(c) + 0.4 * noise)


def test_no_noise_is_cross_entropy():
  for found in run(lambda z: [loss(z, Y, EYE) for loss in CORRECTED], Z):
    close(found, -np.log(OWN))


def test_definitions():
  t = matrix()
  change = np.float32(0.1 * np.random.default_rng(1).random([4, 4]))
  forward, reweight, revision = run(
    lambda z: (
      losses.forward(z, Y, t),
      losses.importance_reweight(z, Y, t),
      losses.t_revision(z, Y, t, change),
    ),
    Z,
  )
  noisy, revised = ((P @ m)[np.arange(B), Y] for m in (t, t + change))
  close(forward, -np.log(noisy))
  close(reweight, -OWN / noisy * np.log(OWN))
  close(revision, -OWN / revised * np.log(OWN), 1e-4)


def test_backward_is_unbiased():
  """The mean over the noisy labels of class i is the clean loss at i."""
  t = matrix()
  z, y = np.repeat(Z, 4, axis=0), np.tile(np.arange(4), B)
  per_label = run(lambda z: losses.backward(z, y, t), z).reshape(B, 4)
  close(per_label @ t.T, -np.log(P), rtol=1e-4, atol=1e-4)
  assert per_label.min() < 0


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_zeros_in_the_matrix_and_extreme_logits(dtype):
  """In probabilities p T would underflow to 0 here."""
  z = np.array([[-1e4, 1e4], [1e4, -1e4], [0, 0]], dtype)
  y = np.array([1, 1, 1])

  def each(z):
    def total(z, loss):
      values = loss(z, y, FLIP)
      return values.sum(), values

    of = jax.grad(total, has_aux=True)
    return [of(z, loss) for loss in CORRECTED]

  found = run(each, z)
  for slope, values in found:
    assert np.isfinite(values).all()
    assert np.isfinite(slope.astype(np.float32)).all()
  slope, values = found[0]  # forward
  close(values, [2e4, 0, np.log(2)], rtol=1e-3)
  expected = [[-1, 1], [0, 0], [-0.5, 0.5]]
  close(slope.astype(np.float32), expected, atol=1e-3)


def all_four(change):
  return [
    *CORRECTED,
    lambda z, y, t: losses.t_revision(z, y, t, change),
  ]


@functools.cache
def values_and_slopes(soft):
  """Of one shape: logits of scale 1, and of 300, where p T underflows."""
  flip = np.roll(EYE, 1, 1)

  def of(z, y):
    if soft:
      y = jax.nn.one_hot(y, 4)

    def total(z, t, change):
      values = [loss(z, y, t) for loss in all_four(change)]
      return [jnp.sum(v) for v in values], values

    return jax.jacobian(total, (0, 2), has_aux=True)(z, flip, ZERO)

  drawn = [draw(b=16, scale=scale) for scale in (1.0, 300.0)]
  return run(jax.vmap(of), *map(np.stack, zip(*drawn, strict=True)))


@pytest.mark.parametrize('scale', [0, 1], ids=['1', '300'])
def test_soft_labels_are_as_exact_as_integer_ones(scale):
  """At 300 the product p T underflows, and classes are summed one by one."""
  of = lambda soft: jax.tree.leaves(values_and_slopes(soft))
  for hard, soft in zip(of(False), of(True), strict=True):
    a, b = hard[scale], soft[scale]
    assert np.isfinite(a).all()
    close(b, a, rtol=1e-4, atol=1e-5 * max(1, np.abs(a).max()))


@pytest.mark.parametrize('index', range(4))
@pytest.mark.parametrize(
  'slopes', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_soft_labels_need_no_array_of_batch_times_matrix(index, slopes):
  b, c = 256, 1000
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  labels = jax.ShapeDtypeStruct([b], jnp.int32), shape([b, c])
  loss = all_four(np.zeros([c, c], np.float32))[index]

  def value_and_slopes(z, y, t):
    return jax.value_and_grad(lambda z, t: loss(z, y, t).sum(), (0, 1))(z, t)

  hard, soft = (
    jax.jit(value_and_slopes if slopes else loss)
    .lower(shape([b, c]), y, shape([c, c]))
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    for y in labels
  )
  assert soft <= 10 * hard


def test_weights_stay_finite_where_the_definition_does_not():
  z, y = np.array([2.0, 0.0], np.float32), jnp.array(1)
  flipped, never, revised = run(
    lambda z: (
      losses.importance_reweight(z, y, FLIP),
      losses.importance_reweight(z, y, NEVER),
      losses.t_revision(z, y, FLIP, -2 * FLIP),
    ),
    z,
  )
  p = softmax(z)
  close(flipped, -p[1] / p[0] * np.log(p[1]))
  close(never, 0)
  # A revision can make the probability of a label negative.
  close(revised, 0)


def test_impossible_label_is_large_finite_and_without_gradient():
  loss = lambda z: losses.forward(z, jnp.array(1), NEVER)
  value, slope = run(jax.value_and_grad(loss), np.array([1.0, 2.0], 'f'))
  assert value == np.float32(1e30)
  close(slope, 0)


def test_reweight_has_no_gradient_through_the_weight_but_revision_has():
  t = matrix()
  noisy = (P @ t)[np.arange(B), Y]
  weight = np.float32(OWN / noisy)
  of = lambda f: jax.grad(lambda z: jnp.sum(f(z)), has_aux=False)
  found = {
    'constant': lambda z: weight * losses.ce(z, Y),
    'reweighted': lambda z: losses.importance_reweight(z, Y, t),
    'revised': lambda z: losses.t_revision(z, Y, t, ZERO),
  }
  values, slopes = run(
    lambda z: (
      {name: f(z) for name, f in found.items()},
      {name: of(f)(z) for name, f in found.items()},
    ),
    Z,
  )
  close(values['revised'], values['reweighted'])
  close(slopes['reweighted'], slopes['constant'])
  assert np.abs(slopes['revised'] - slopes['constant']).max() > 0.01


def differences(values, x, step=1e-4):
  """The derivatives of [x.size, ...] by every entry of x, from `values(xs)`."""
  steps = step * np.eye(x.size).reshape(-1, *x.shape)
  ahead, behind = (values(x + sign * steps) for sign in (1, -1))
  return (ahead - behind) / (2 * step)


def test_revision_learns_from_zero_entries_too():
  """T = I: the entries off the diagonal start at 0, and must move."""
  z, y = draw(scale=0.5, dtype=np.float64)
  loss = lambda r: losses.t_revision(z, y, np.eye(4), r).sum()
  with jax.enable_x64(True):
    both = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    zero = np.zeros([4, 4])
    slope = both(np.tile(zero, [16, 1, 1]))[1][0]
    expected = differences(lambda r: np.asarray(both(r)[0]), zero)
  close(slope.ravel(), expected, rtol=1e-6)
  others = slope[:, int(y[0])]
  assert (np.abs(others) > 1e-6).all()


def test_forward_learns_the_matrix():
  """First and second derivatives, by the logits and by the matrix."""
  z, y = draw(b=8, scale=0.5, dtype=np.float64)
  t = np.float64(matrix())
  size = z.size

  def loss(x):
    z, t = x[:size].reshape(8, 4), x[size:].reshape(4, 4)
    return losses.forward(z, y, t).sum()

  def everything(x, v):
    slope, second = jax.jvp(jax.grad(loss), (x,), (v,))
    return loss(x), slope, second

  with jax.enable_x64(True):
    x = np.concatenate([z.ravel(), t.ravel()])
    v = np.random.default_rng(1).standard_normal(x.size)
    v[size:] *= 0.1
    compiled = jax.jit(jax.vmap(everything, (0, None)))
    of = lambda xs: [np.asarray(a) for a in compiled(xs, v)]
    _, slopes, seconds = of(np.tile(x, [x.size, 1]))
    expected = differences(lambda xs: of(xs)[0], x)
    step = 1e-4 * v
    ahead, behind = (of(np.tile(x + s, [x.size, 1]))[1] for s in (step, -step))
  close(slopes[0], expected, rtol=1e-5, atol=1e-7)
  close(seconds[0], (ahead[0] - behind[0]) / 2e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('loss', CORRECTED)
@pytest.mark.parametrize(
  'bad',
  [
    np.eye(3),
    np.ones([4]),
    2 * np.eye(4),
    np.eye(4) + 0.5 * (np.roll(np.eye(4), 1, 1) - np.roll(np.eye(4), 2, 1)),
    np.full([4, 4], np.nan),
  ],
  ids=['size', 'rank', 'sum', 'negative', 'nan'],
)
def test_a_bad_matrix_is_named(loss, bad):
  with pytest.raises(ValueError, match='transition'):
    loss(Z, Y, bad)


def test_singular_matrix():
  uniform = np.full([4, 4], 0.25, np.float32)
  with pytest.raises(ValueError, match='transition'):
    losses.backward(Z, Y, uniform)
  assert not np.isfinite(run(losses.backward, Z, Y, uniform)).any()


def test_revision_is_named():
  with pytest.raises(ValueError, match='revision'):
    losses.t_revision(Z, Y, np.eye(4), np.zeros([3, 4]))


def test_vmap_over_matrices():
  several = np.stack([matrix(seed=s) for s in range(3)])
  loss = lambda t: losses.forward(Z, Y, t)
  swept, alone = run(
    lambda several: (jax.vmap(loss)(several), [loss(t) for t in several]),
    several,
  )
  close(swept, alone)
