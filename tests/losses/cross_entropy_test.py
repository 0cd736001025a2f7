"""Cross-entropy and its variants against their defining equations."""

from fixture_losses import B, C, close, draw, grad, value_and_grad
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses


def log_p(z):
  return np.asarray(jax.nn.log_softmax(z))


def test_label_smoothing_is_ce_of_the_smoothed_target():
  z, y = draw()
  target = 0.8 * jax.nn.one_hot(y, C) + 0.2 / C
  close(losses.label_smoothing(z, y, smoothing=0.2), losses.ce(z, target))
  close(losses.label_smoothing(z, y, smoothing=0.0), losses.ce(z, y))


def test_gls_with_negative_rate():
  z, y = draw()
  own, mean = log_p(z)[np.arange(B), y], log_p(z).mean(-1)
  r, wa, wb = -3.0, 0.5, 2.0
  expected = -(wa + wb * (1 - r)) * own - wb * r * mean
  close(losses.gls(z, y, rate=r, wa=wa, wb=wb), expected)


def test_bootstrap_limits():
  z, y = draw()
  p = np.exp(log_p(z))
  for loss in (losses.bootstrap_soft, losses.bootstrap_hard):
    close(loss(z, y, beta=1.0), losses.ce(z, y))
  entropy = -np.sum(p * np.log(p), axis=-1)
  close(losses.bootstrap_soft(z, y, beta=0.0), entropy)
  close(losses.bootstrap_hard(z, y, beta=0.0), -np.log(p.max(-1)))


def test_bootstrap_clip_reproduces_the_clamped_logarithm():
  z, y = draw(scale=10.0)

  def clamped(z):
    p = jax.nn.softmax(z)
    target = 0.7 * jax.nn.one_hot(y, C) + 0.3 * p
    return -jnp.sum(target * jnp.log(jnp.clip(p, 1e-3, 1.0)), axis=-1)

  def loss(z):
    return losses.bootstrap_soft(z, y, beta=0.7, clip=1e-3)

  close(loss(z), clamped(z))
  assert not np.allclose(loss(z), losses.bootstrap_soft(z, y, beta=0.7))
  gradients = [grad(lambda z, f=f: f(z).sum())(z) for f in (loss, clamped)]
  close(*gradients)


def test_hard_bootstrap_at_a_tie_takes_the_first_class():
  z, y = jnp.array([1.0, 3.0, 3.0]), jnp.array(0)
  slope = grad(lambda z: losses.bootstrap_hard(z, y, beta=0.0))(z)
  close(slope, jax.nn.softmax(z) - jnp.array([0.0, 1.0, 0.0]))


def test_dynamic_bootstrap_trusts_label_or_guess():
  z, y = draw()
  guess = jnp.argmax(z, axis=-1)
  zero, one = jnp.zeros(B), jnp.ones(B)
  close(losses.dynamic_bootstrap(z, y, guess, zero), losses.ce(z, y))
  close(losses.dynamic_bootstrap(z, y, guess, one), losses.ce(z, guess))
  close(
    losses.dynamic_bootstrap(z, y, guess, 0.2),
    losses.bootstrap_hard(z, y, beta=0.8),
  )


def test_dynamic_bootstrap_has_no_gradient_through_the_guess():
  z, y = draw()
  slope = grad(
    lambda g: losses.dynamic_bootstrap(z, y, jax.nn.softmax(g), 0.5).sum()
  )(z)
  close(slope, 0)


def test_mixup_is_ce_of_mixed_labels():
  z, y = draw()
  partner = y[::-1]
  ratio = jnp.linspace(0, 1, B)
  mixed = ratio[:, None] * jax.nn.one_hot(y, C)
  mixed += (1 - ratio)[:, None] * jax.nn.one_hot(partner, C)
  close(losses.mixup(z, y, partner, ratio), losses.ce(z, mixed))


def test_negative_learning_equation_and_far_tail():
  z, y = draw()
  p = np.exp(log_p(z))[np.arange(B), y]
  close(losses.negative_learning(z, y), -np.log1p(-p), rtol=1e-4)
  # p_y = 1 - e^-50 rounds to 1; the loss is 50 and its gradient 1.
  z, y = jnp.array([50.0, 0.0]), jnp.array(0)
  value, slope = value_and_grad(losses.negative_learning)(z, y)
  close(value, 50.0)
  close(slope, [1.0, -1.0])
  # p_y = e^-50: the gradient p_y is not lost against 1.
  slope = grad(losses.negative_learning)(-z, y)
  close(slope, np.exp(-50) * np.array([1, -1]), rtol=1e-5, atol=0)


def test_negative_learning_clip_stops_the_gradient():
  z, y = jnp.array([50.0, 0.0]), jnp.array(0)
  value, slope = value_and_grad(losses.negative_learning)(z, y, clip=1e-5)
  close(value, -np.log(1e-5))
  close(slope, 0)


@pytest.mark.parametrize('order', [1.0, 2.0, 3.5])
def test_clip_logits_bounds_the_norm(order):
  z, _ = draw(scale=3.0)
  clipped = losses.clip_logits(z, tau=2.0, order=order)
  norm = np.linalg.norm(np.asarray(z), ord=order, axis=-1)
  assert (norm > 2).any()
  close(
    np.linalg.norm(clipped, ord=order, axis=-1), np.minimum(norm, 2), rtol=1e-4
  )
  short = losses.clip_logits(z, tau=100.0, order=order)
  np.testing.assert_array_equal(short, z)


def test_clip_logits_paper_and_code_agree_at_one_only():
  z, _ = draw()
  paper, code = (
    [losses.clip_logits(z, tau=tau, as_coded=flag) for tau in (1.0, 1.5)]
    for flag in (False, True)
  )
  close(paper[0], code[0], rtol=1e-5)
  assert np.abs(paper[1] - code[1]).max() > 0.1


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
@pytest.mark.parametrize('as_coded', [False, True])
def test_clip_logits_is_finite(dtype, as_coded):
  z = jnp.array([[0, 0, 0], [1e4, -1e4, 0], [1e4, 1e4, 1e4]], dtype)
  function = lambda z: losses.clip_logits(z, as_coded=as_coded).sum()
  value, slope = value_and_grad(function)(z)
  assert np.isfinite(value)
  assert np.isfinite(slope.astype(jnp.float32)).all()
  large = losses.clip_logits(jnp.array([1e30, -1e30], jnp.float32))
  close(large, np.array([1, -1]) / np.sqrt(2))


@pytest.mark.parametrize(('name', 'bad'), [('tau', 0.0), ('order', 0.5)])
def test_clip_logits_names_what_is_wrong(name, bad):
  with pytest.raises(ValueError, match=name):
    losses.clip_logits(jnp.ones(3), **{name: bad})
  with pytest.raises(TypeError, match='logits'):
    losses.clip_logits(jnp.ones(3, int))


def test_mixup_names_the_partner():
  z, y = draw()
  with pytest.raises(ValueError, match='partners'):
    losses.mixup(z, y, y[:-1], 0.5)
