"""Losses corrected by a transition matrix."""

import functools

from fixture_losses import B, close, draw, grad, value_and_grad
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jnl import losses

CORRECTED = [losses.forward, losses.backward, losses.importance_reweight]


def matrix(c=4, seed=0):
  noise = np.random.default_rng(seed).dirichlet(np.ones(c), c)
  return jnp.asarray(0.6 * np.eye(c) + 0.4 * noise, jnp.float32)


@pytest.mark.parametrize('loss', CORRECTED)
def test_no_noise_is_cross_entropy(loss):
  z, y = draw()
  close(loss(z, y, jnp.eye(4)), losses.ce(z, y))


def test_definitions():
  z, y = draw()
  t = np.asarray(matrix())
  p = np.asarray(jax.nn.softmax(z))
  own, noisy = p[np.arange(B), y], (p @ t)[np.arange(B), y]
  close(losses.forward(z, y, t), -np.log(noisy))
  close(losses.importance_reweight(z, y, t), -own / noisy * np.log(own))
  change = 0.1 * np.random.default_rng(1).random([4, 4])
  noisy = (p @ (t + change))[np.arange(B), y]
  close(losses.t_revision(z, y, t, change), -own / noisy * np.log(own), 1e-4)


def test_backward_is_unbiased():
  """The mean over the noisy labels of class i is the clean loss at i."""
  z, _ = draw()
  t = matrix()
  per_label = jnp.stack(
    [losses.backward(z, jnp.full(B, j), t) for j in range(4)], axis=-1
  )
  clean = -jax.nn.log_softmax(z)
  close(per_label @ t.T, clean, rtol=1e-4, atol=1e-4)
  assert per_label.min() < 0


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_zeros_in_the_matrix_and_extreme_logits(dtype):
  """In probabilities p T would underflow to 0 here."""
  flip = jnp.array([[0.0, 1.0], [1.0, 0.0]])
  z = jnp.array([[-1e4, 1e4], [1e4, -1e4], [0, 0]], dtype)
  y = jnp.array([1, 1, 1])
  for loss in CORRECTED:
    value, slope = value_and_grad(lambda z, loss=loss: loss(z, y, flip).sum())(
      z
    )
    assert np.isfinite(value)
    assert np.isfinite(slope.astype(jnp.float32)).all()
  close(losses.forward(z, y, flip), [2e4, 0, np.log(2)], rtol=1e-3)
  slope = grad(lambda z: losses.forward(z, y, flip).sum())(z)
  close(slope.astype(jnp.float32), [[-1, 1], [0, 0], [-0.5, 0.5]], atol=1e-3)


def all_four(change):
  return [
    *CORRECTED,
    lambda z, y, t: losses.t_revision(z, y, t, change),
  ]


@pytest.mark.parametrize('scale', [1.0, 300.0])
def test_soft_labels_are_as_exact_as_integer_ones(scale):
  """At 300 the product p T underflows, and classes are summed one by one."""
  z, y = draw(b=16, scale=scale)
  flip = np.roll(np.eye(4, dtype=np.float32), 1, 1)

  @jax.jit
  def run(y):
    def total(z, t, change):
      return [jnp.sum(loss(z, y, t)) for loss in all_four(change)]

    values = [loss(z, y, flip) for loss in all_four(jnp.zeros([4, 4]))]
    slopes = jax.jacobian(total, (0, 2))(z, flip, jnp.zeros([4, 4]))
    return values, slopes

  (values, slopes), (soft, soft_slopes) = run(y), run(jax.nn.one_hot(y, 4))
  assert np.isfinite(np.asarray(values)).all()
  for a, b in zip(
    jax.tree.leaves((values, slopes)),
    jax.tree.leaves((soft, soft_slopes)),
    strict=True,
  ):
    close(b, a, rtol=1e-4, atol=1e-5 * max(1, np.abs(a).max()))


@pytest.mark.parametrize('index', range(4))
def test_soft_labels_need_no_array_of_batch_times_matrix(index):
  b, c = 256, 1000
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  labels = jax.ShapeDtypeStruct([b], jnp.int32), shape([b, c])
  loss = all_four(jnp.zeros([c, c]))[index]

  def value_and_slopes(z, y, t):
    return jax.value_and_grad(lambda z, t: loss(z, y, t).sum(), (0, 1))(z, t)

  for f in (loss, value_and_slopes):
    hard, soft = (
      jax.jit(f)
      .lower(shape([b, c]), y, shape([c, c]))
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
      for y in labels
    )
    assert soft <= 10 * hard


def test_corrections_on_an_explicit_mesh():
  """A gather from the matrix has to say how its rows are laid out."""
  z, y = draw()
  mesh = jax.make_mesh((8,), ('data',))
  assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
  split = jax.NamedSharding(mesh, jax.P('data'))
  run = jax.jit(
    lambda z, y: [f(z, y, matrix()) for f in all_four(jnp.zeros([4, 4]))]
  )
  close(run(*jax.device_put((z, y), split)), run(z, y))


def test_weights_stay_finite_where_the_definition_does_not():
  flip = jnp.array([[0.0, 1.0], [1.0, 0.0]])
  z, y = jnp.array([2.0, 0.0]), jnp.array(1)
  p = np.asarray(jax.nn.softmax(z))
  expected = -p[1] / p[0] * np.log(p[1])
  close(losses.importance_reweight(z, y, flip), expected)
  never = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  close(losses.importance_reweight(z, y, never), 0)
  # A revision can make the probability of a label negative.
  close(losses.t_revision(z, y, flip, -2 * flip), 0)


def test_impossible_label_is_large_finite_and_without_gradient():
  never = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  loss = lambda z: losses.forward(z, jnp.array(1), never)
  value, slope = value_and_grad(loss)(jnp.array([1.0, 2.0]))
  assert value == jnp.float32(1e30)
  close(slope, 0)


def test_reweight_has_no_gradient_through_the_weight_but_revision_has():
  z, y = draw()
  t, zero = matrix(), jnp.zeros([4, 4])
  close(losses.t_revision(z, y, t, zero), losses.importance_reweight(z, y, t))
  weight = losses.importance_reweight(z, y, t) / losses.ce(z, y)
  constant = grad(lambda z: jnp.sum(weight * losses.ce(z, y)))(z)
  reweighted, revised = (
    grad(lambda z, f=f: jnp.sum(f(z)))(z)
    for f in (
      lambda z: losses.importance_reweight(z, y, t),
      lambda z: losses.t_revision(z, y, t, zero),
    )
  )
  close(reweighted, constant)
  assert np.abs(revised - constant).max() > 0.01


def test_revision_learns_from_zero_entries_too():
  """T = I: the entries off the diagonal start at 0, and must move."""
  with jax.enable_x64(True):
    z, y = draw(scale=0.5, dtype=jnp.float64)
    loss = lambda r: losses.t_revision(z, y, jnp.eye(4), r).sum()
    zero = jnp.zeros([4, 4])
    check_grads(jax.jit(loss), [zero], order=1, rtol=1e-6)
    others = grad(loss)(zero)[:, int(y[0])]
    assert (np.abs(others) > 1e-6).all()


def test_forward_learns_the_matrix():
  with jax.enable_x64(True):
    z, y = draw(scale=0.5, dtype=jnp.float64)
    t = matrix().astype(jnp.float64)
    check_grads(
      jax.jit(lambda z, t: losses.forward(z, y, t)), (z, t), order=2, rtol=1e-4
    )


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
  z, y = draw()
  with pytest.raises(ValueError, match='transition'):
    loss(z, y, bad)


def test_singular_matrix():
  z, y = draw()
  uniform = jnp.full([4, 4], 0.25)
  with pytest.raises(ValueError, match='transition'):
    losses.backward(z, y, uniform)
  assert not np.isfinite(jax.jit(losses.backward)(z, y, uniform)).any()


def test_revision_is_named():
  z, y = draw()
  with pytest.raises(ValueError, match='revision'):
    losses.t_revision(z, y, np.eye(4), np.zeros([3, 4]))


def test_vmap_over_matrices():
  z, y = draw()
  several = jnp.stack([matrix(seed=s) for s in range(3)])
  swept = jax.vmap(lambda t: losses.forward(z, y, t))(several)
  close(swept, jnp.stack([losses.forward(z, y, t) for t in several]))
