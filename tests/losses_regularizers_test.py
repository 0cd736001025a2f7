"""ELR, ELR+ and SOP."""

from fixture_losses import B, C, close, draw, grad, value_and_grad
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jnl import losses

# --- ELR ---------------------------------------------------------------------


def test_elr_targets_average_the_clipped_prediction():
  z, _ = draw(scale=10.0)
  rows = jax.nn.softmax(draw(seed=1)[0])
  p = np.clip(np.asarray(jax.nn.softmax(z)), 0.01, 0.99)
  expected = 0.9 * rows + 0.1 * p / p.sum(-1, keepdims=True)
  close(losses.elr_targets(rows, z, beta=0.9, clip=0.01), expected)
  unclipped = 0.9 * rows + 0.1 * jax.nn.softmax(z)
  close(losses.elr_targets(rows, z, beta=0.9, clip=0.0), unclipped)


def test_elr_targets_have_no_gradient():
  z, _ = draw()
  slope = grad(lambda z: losses.elr_targets(z, z).sum())(z)
  close(slope, 0)


def test_elr_penalty_gradient_is_lemma_2():
  """dr/dz_c = p_c / (1 - <t, p>) sum_k (t_k - t_c) p_k, where nothing clips."""
  z, _ = draw(scale=1.0)
  t, p = jax.nn.softmax(draw(seed=1)[0]), jax.nn.softmax(z)
  inner = jnp.sum(t * p, axis=-1, keepdims=True)
  expected = p / (1 - inner) * (inner - t)
  for clip in (0.0, 1e-4):
    value, back = jax.vjp(lambda z, c=clip: losses.elr_penalty(z, t, clip=c), z)
    close(value, jnp.log(1 - inner[:, 0]))
    close(back(jnp.ones(B))[0], expected)


def test_elr_penalty_clip_has_no_gradient_outside():
  z, t = draw(scale=6.0)[0], jax.nn.softmax(draw(seed=1)[0])

  def reference(z):
    p = jnp.clip(jax.nn.softmax(z), 1e-2, 1 - 1e-2)
    return jnp.log(1 - jnp.sum(t * p, axis=-1))

  ours = lambda z: losses.elr_penalty(z, t, clip=1e-2)
  close(ours(z), reference(z))
  slopes = [grad(lambda z, f=f: f(z).sum())(z) for f in (ours, reference)]
  close(*slopes)
  unclipped = grad(lambda z: losses.elr_penalty(z, t, clip=0.0).sum())(z)
  assert np.abs(unclipped - slopes[0]).max() > 1e-3


def test_elr_penalty_forward_and_reverse_mode():
  with jax.enable_x64(True):
    z = draw()[0].astype(jnp.float64)
    t = jax.nn.softmax(draw(seed=1)[0].astype(jnp.float64))
    check_grads(
      jax.jit(lambda z: losses.elr_penalty(z, t)), [z], order=2, rtol=1e-5
    )


def test_elr_targets_get_no_gradient_from_the_penalty():
  z, t = draw()[0], jax.nn.softmax(draw(seed=1)[0])
  close(grad(lambda t: losses.elr_penalty(z, t).sum())(t), 0)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_elr_is_finite_at_extremes(dtype):
  """1 - 1e-4 is 1 in bfloat16: the arithmetic has to be float32."""
  with jax.enable_x64(dtype == 'float64'):
    z = jnp.array([[1e4, -1e4, 0], [0, 0, 0], [1e4, 1e4, 1e4]], dtype)
    rows = losses.elr_targets(jnp.zeros([3, 3]), z, beta=0.0)
    assert rows.dtype == jnp.promote_types(jnp.zeros(1).dtype, jnp.float32)
    loss = lambda z: losses.elr_penalty(z, rows)
    assert loss(z).dtype == jnp.promote_types(dtype, jnp.float32)
    assert loss(z)[0] > -9.3
    value, slope = value_and_grad(lambda z: loss(z).sum())(z)
    assert np.isfinite(value)
    assert np.isfinite(slope.astype(jnp.float32)).all()


def test_elr_shapes_are_named():
  z = jnp.zeros([3, 4])
  with pytest.raises(ValueError, match='targets'):
    losses.elr_penalty(z, jnp.zeros([3, 5]))
  with pytest.raises(ValueError, match='rows'):
    losses.elr_targets(jnp.zeros([2, 4]), z)
  with pytest.raises(TypeError, match='targets'):
    losses.elr_penalty(z, jnp.zeros([3, 4], int))
  with pytest.raises(ValueError, match='beta'):
    losses.elr_targets(z, z, beta=1.5)


def test_elr_penalty_wants_agreement_with_the_target():
  """Descending it raises the class that the target believes in."""
  z, t = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.7, 0.1, 0.1])
  slope = grad(losses.elr_penalty)(z, t)
  assert slope[0] < 0
  assert slope[1] > 0


def test_elr_plus_labels():
  y, t = jnp.array([[0.6, 0.4, 0.0]]), jnp.array([[0.1, 0.3, 0.6]])
  close(losses.elr_plus_labels(y, t), [[1 / 3, 2 / 3, 0]])
  nothing = losses.elr_plus_labels(y, jnp.array([[0.0, 0.0, 1.0]]))
  close(nothing, y)


# --- SOP ---------------------------------------------------------------------


def sop_reference(z, y, u, v):
  """The definition with one-hot labels, differentiated as it stands."""
  y = jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype)
  add = jnp.minimum(u[:, None] ** 2 * y, 1)
  remove = jnp.minimum(v**2 * (1 - y), 1)
  p = jax.nn.softmax(z) + add - jax.lax.stop_gradient(remove)
  q = jnp.maximum(p, 1e-4)
  q = q / q.sum(-1, keepdims=True)
  top = jax.nn.one_hot(jnp.argmax(z, -1), z.shape[-1], dtype=z.dtype)
  square = jnp.sum((top + add - remove - y) ** 2, axis=-1)
  return -jnp.sum(y * jnp.log(q), axis=-1) + square


@pytest.mark.parametrize('soft', [False, True], ids=['hard', 'soft'])
@pytest.mark.parametrize('scale', [1e-8, 0.5, 1.5])
def test_sop_value_and_all_gradients(scale, soft):
  with jax.enable_x64(True):
    rng = np.random.default_rng(2)
    z, y = draw()
    z = z.astype(jnp.float64)
    u = jnp.asarray(scale * rng.standard_normal(B))
    v = jnp.asarray(scale * rng.standard_normal([B, C]))
    label = jax.nn.one_hot(y, C) if soft else y
    ours = lambda z, u, v: losses.sop(z, label, u, v)
    reference = lambda z, u, v: sop_reference(z, y, u, v)
    close(ours(z, u, v), reference(z, u, v), rtol=1e-10)
    slopes = [
      grad(lambda *a, f=f: f(*a).sum(), (0, 1, 2))(z, u, v)
      for f in (ours, reference)
    ]
    for mine, theirs in zip(*slopes, strict=True):
      close(mine, theirs, rtol=1e-9, atol=1e-30)


def test_sop_probs_are_what_the_loss_takes_the_logarithm_of():
  z, y = draw()
  u, v = jnp.full(B, 0.5), jnp.full([B, C], 0.3)
  q = losses.sop_probs(z, y, u, v)
  close(q.sum(-1), 1)
  right = jnp.argmax(z, -1)  # there the square is only that of U and V
  square = 0.5**4 + (C - 1) * 0.3**4
  q = losses.sop_probs(z, right, u, v)[np.arange(B), right]
  close(losses.sop(z, right, u, v), -jnp.log(q) + square)


def test_sop_shapes_are_named():
  z, y = draw()
  with pytest.raises(ValueError, match='u must'):
    losses.sop(z, y, jnp.zeros([B, 1]), z)
  with pytest.raises(ValueError, match='v must'):
    losses.sop(z, y, jnp.zeros(B), z[:, :-1])


def test_kl_consistency():
  z, other = draw()[0], draw(seed=1)[0]
  p, q = (np.asarray(jax.nn.softmax(a), np.float64) for a in (z, other))
  expected = np.sum(q * np.log(q / p), axis=-1)
  close(losses.kl_consistency(z, other), expected)
  slope = grad(lambda o: losses.kl_consistency(z, o).sum())(other)
  close(slope, 0)
  slope = grad(lambda z: losses.kl_consistency(z, other).sum())(z)
  close(slope, p - q)
  with pytest.raises(ValueError, match='other_logits'):
    losses.kl_consistency(z, other[:-1])
