"""Cross-entropy and its variants against their defining equations."""

from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

Z, Y = draw()
ONE_HOT, P = np.eye(C, dtype=np.float32)[Y], softmax(Z)
LOG_P = np.log(P)


def ce(labels):
  """Cross-entropy of labels [b] or [b, c], in float64."""
  labels = np.eye(C)[labels] if labels.ndim == 1 else labels
  return -np.sum(labels * LOG_P, axis=-1)


def test_label_smoothing_is_ce_of_the_smoothed_target():
  smoothed, plain, soft = run(
    lambda z, target: (
      losses.label_smoothing(z, Y, smoothing=0.2),
      losses.label_smoothing(z, Y, smoothing=0.0),
      losses.ce(z, target),
    ),
    Z,
    0.8 * ONE_HOT + np.float32(0.2 / C),
  )
  close(smoothed, ce(0.8 * ONE_HOT + 0.2 / C))
  close(smoothed, soft)
  close(plain, ce(Y))


def test_gls_with_negative_rate():
  r, wa, wb = -3.0, 0.5, 2.0
  own, mean = -ce(Y), LOG_P.mean(-1)
  expected = -(wa + wb * (1 - r)) * own - wb * r * mean
  close(run(lambda z: losses.gls(z, Y, rate=r, wa=wa, wb=wb), Z), expected)


def test_bootstrap_limits():
  plain, (soft, hard) = run(
    lambda z: [
      [loss(z, Y, beta=beta) for loss in BOOTSTRAPS] for beta in (1.0, 0.0)
    ],
    Z,
  )
  close(plain, [ce(Y), ce(Y)])
  close(soft, ce(P))
  close(hard, -np.log(P.max(-1)))


BOOTSTRAPS = losses.bootstrap_soft, losses.bootstrap_hard


def test_bootstrap_clip_reproduces_the_clamped_logarithm():
  z, y = draw(scale=10.0)

  def clamped(z, _):
    p = jax.nn.softmax(z)
    target = 0.7 * jax.nn.one_hot(y, C) + 0.3 * p
    return -jnp.sum(target * jnp.log(jnp.clip(p, 1e-3, 1.0)), axis=-1)

  def loss(z, y, clip=1e-3):
    return losses.bootstrap_soft(z, y, beta=0.7, clip=clip)

  own, expected, unclipped = run(
    lambda z: (
      value_and_slope(loss, z, y),
      value_and_slope(clamped, z, y),
      loss(z, y, clip=0.0),
    ),
    z,
  )
  close(own[0], expected[0])
  close(own[1], expected[1])
  assert not np.allclose(own[0], unclipped)


def test_hard_bootstrap_at_a_tie_takes_the_first_class():
  z = np.array([1.0, 3.0, 3.0], np.float32)
  loss = lambda z: losses.bootstrap_hard(z, jnp.array(0), beta=0.0)
  close(run(jax.grad(loss), z), softmax(z) - [0.0, 1.0, 0.0])


def test_dynamic_bootstrap_trusts_label_or_guess():
  guess = np.argmax(Z, axis=-1)

  def both(z):
    of = lambda trust: losses.dynamic_bootstrap(z, Y, guess, trust)
    trusts = np.zeros(B), np.ones(B), 0.2
    return [of(t) for t in trusts], losses.bootstrap_hard(z, Y, beta=0.8)

  (label, prediction, some), hard = run(both, Z)
  close(label, ce(Y))
  close(prediction, ce(guess))
  close(some, hard)


def test_dynamic_bootstrap_has_no_gradient_through_the_guess():
  loss = lambda g: losses.dynamic_bootstrap(Z, Y, jax.nn.softmax(g), 0.5)
  assert not np.any(run(jax.grad(lambda g: loss(g).sum()), Z))


def test_mixup_is_ce_of_mixed_labels():
  ratio = np.linspace(0, 1, B, dtype=np.float32)
  mixed = ratio[:, None] * ONE_HOT + (1 - ratio)[:, None] * ONE_HOT[::-1]
  close(run(lambda z: losses.mixup(z, Y, Y[::-1], ratio), Z), ce(mixed))


def test_negative_learning_equation_and_far_tail():
  z = np.array([50.0, 0.0], np.float32)
  loss = jax.value_and_grad(lambda z: losses.negative_learning(z, jnp.array(0)))
  drawn, (value, slope), (_, tail) = run(
    lambda z: (losses.negative_learning(Z, Y), loss(z), loss(-z)), z
  )
  close(drawn, -np.log1p(-np.exp(-ce(Y))), rtol=1e-4)
  # p_y = 1 - e^-50 rounds to 1; the loss is 50 and its gradient 1.
  close(value, 50.0)
  close(slope, [1.0, -1.0])
  # p_y = e^-50: the gradient p_y is not lost against 1.
  close(tail, np.exp(-50) * np.array([1, -1]), rtol=1e-5, atol=0)


def test_negative_learning_clip_stops_the_gradient():
  loss = lambda z: losses.negative_learning(z, jnp.array(0), clip=1e-5)
  value, slope = run(jax.value_and_grad(loss), np.array([50.0, 0.0], 'f'))
  close(value, -np.log(1e-5))
  close(slope, 0)


ORDERS = [1.0, 2.0, 3.5]


def test_clip_logits_bounds_the_norm():
  z, _ = draw(scale=3.0)
  found = run(
    lambda z: [
      [losses.clip_logits(z, tau=tau, order=order) for tau in (2.0, 100.0)]
      for order in ORDERS
    ],
    z,
  )
  for order, (clipped, short) in zip(ORDERS, found, strict=True):
    norm = np.linalg.norm(z, ord=order, axis=-1)
    assert (norm > 2).any()
    bounded = np.linalg.norm(clipped, ord=order, axis=-1)
    close(bounded, np.minimum(norm, 2), rtol=1e-4, err_msg=order)
    np.testing.assert_array_equal(short, z)


def test_clip_logits_paper_and_code_agree_at_one_only():
  paper, code = run(
    lambda z: [
      [losses.clip_logits(z, tau=tau, as_coded=flag) for tau in (1.0, 1.5)]
      for flag in (False, True)
    ],
    Z,
  )
  close(paper[0], code[0])
  assert np.abs(paper[1] - code[1]).max() > 0.1


def test_clip_logits_is_finite():
  z = np.array([[0, 0, 0], [1e4, -1e4, 0], [1e4, 1e4, 1e4]])
  large = np.array([1e30, -1e30], np.float32)

  def of(z, as_coded):
    clip = lambda z: losses.clip_logits(z, as_coded=as_coded).sum()
    return jax.value_and_grad(clip)(z)

  found, bounded = run(
    lambda *zs: (
      [of(z, as_coded) for z in zs for as_coded in (False, True)],
      losses.clip_logits(large),
    ),
    *(z.astype(dtype) for dtype in (jnp.float16, jnp.bfloat16, np.float32)),
  )
  for value, slope in found:
    assert np.isfinite(value)
    assert np.isfinite(slope.astype(np.float32)).all()
  close(bounded, np.array([1, -1]) / np.sqrt(2))


@pytest.mark.parametrize(('name', 'bad'), [('tau', 0.0), ('order', 0.5)])
def test_clip_logits_names_what_is_wrong(name, bad):
  with pytest.raises(ValueError, match=name):
    losses.clip_logits(np.ones(3, np.float32), **{name: bad})
  with pytest.raises(TypeError, match='logits'):
    losses.clip_logits(np.ones(3, int))


def test_mixup_names_the_partner():
  with pytest.raises(ValueError, match='partners'):
    losses.mixup(Z, Y, Y[:-1], 0.5)
