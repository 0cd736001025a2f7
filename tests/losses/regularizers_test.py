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


def test_elr_targets_of_rows_in_bfloat16():
  """Averaged in float32, as are hyperparameters: 1 - 1e-4 is 1 in bfloat16."""
  z, rows = draw()[0], jax.nn.softmax(draw(seed=1)[0]).astype(jnp.bfloat16)
  beta, clip = jnp.bfloat16(0.7), jnp.bfloat16(0.1)
  found = jax.jit(losses.elr_targets)(rows, z, beta=beta, clip=clip)
  assert found.dtype == jnp.bfloat16
  wide = losses.elr_targets(
    rows.astype(jnp.float32), z, beta=float(beta), clip=float(clip)
  )
  np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))
  half = losses.elr_targets(rows, z, beta=0.0, clip=0.5)
  close(half.astype(jnp.float32), 1 / C, rtol=1e-2)


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


def sop_reference(z, y, u, v, min_prob=0.0):
  """The definition with one-hot labels, differentiated as it stands."""
  y = jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype)
  add = jnp.minimum(u[:, None] ** 2 * y, 1)
  remove = jnp.minimum(v**2 * (1 - y), 1)
  p = jax.nn.softmax(z) + add - jax.lax.stop_gradient(remove)
  q = jnp.maximum(p, 1e-4)
  q = jnp.maximum(q / q.sum(-1, keepdims=True), min_prob)
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
    least = (0.0, 0.1)  # the second is above many probabilities

    def ours(*z_u_v):
      z, u, v = z_u_v
      found = [losses.sop(z, label, u, v, min_prob=m) for m in least]
      return jnp.stack(found)

    def reference(z, u, v):
      return jnp.stack([sop_reference(z, y, u, v, m) for m in least])

    assert np.any(ours(z, u, v)[1] < ours(z, u, v)[0])
    close(ours(z, u, v), reference(z, u, v), rtol=1e-10)
    slopes = [
      jax.jit(jax.jacobian(lambda *a, f=f: f(*a).sum(-1), (0, 1, 2)))(z, u, v)
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
  raised = losses.sop_probs(z, y, u, v, min_prob=0.1)
  close(raised, np.maximum(losses.sop_probs(z, y, u, v), 0.1))


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


# --- virtual adversarial training --------------------------------------------

D, H = 6, 16
PUSH = np.random.default_rng(5).standard_normal([D, H])
PULL = np.random.default_rng(6).standard_normal([H, C])


def network(dtype):
  """Rows alone, and their sums in float32: in every batch in the same order."""
  w, w2 = jnp.asarray(PUSH / 3, dtype), jnp.asarray(PULL / 2, dtype)

  def predict(x):
    x = x.reshape(len(x), D)
    hidden = jnp.tanh(jnp.sum(x[:, :, None] * w, axis=1))
    return jnp.sum(hidden[:, :, None] * w2, axis=1)

  return predict


def inputs(b, dtype, seed=7):
  rng = np.random.default_rng(seed)
  shape = [b, D // 2, 2]  # more than one dimension makes an input
  return [jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2)]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_vat_finds_more_than_chance_whoever_is_beside(dtype):
  with jax.enable_x64(dtype == 'float64'):
    predict, (x, d) = network(dtype), inputs(256, dtype)
    run = jax.jit(
      lambda x, d: (
        losses.vat(predict, x, d),
        losses.vat(predict, x, d, power=0),
      )
    )
    found, chance = run(x, d)
    alone, _ = run(x[3:4], d[3:4])
    broken, _ = run(x.at[:3].set(jnp.nan), d)
    assert found.shape == (256,)
    assert found.dtype == jnp.promote_types(dtype, jnp.float32)
    assert found.mean() > 1.5 * chance.mean() > 0.1
    assert np.mean(found > chance) > 0.8
    # Half precision: the roundings of the network itself, of bigger sums.
    rtol = {'float64': 1e-12, 'float32': 1e-5}.get(dtype, 0.02)
    close(alone[0], found[3], rtol=rtol)
    close(broken[3:], found[3:], rtol=rtol)


def test_vat_is_the_limit_of_the_published_difference():
  """An error that falls with the step, in float64."""
  with jax.enable_x64(True):
    predict, (x, d) = network('float64'), inputs(8, 'float64')

    def differenced(d, xi):
      held = predict(x)
      divergence = lambda d: losses.kl_consistency(predict(x + xi * d), held)
      return jax.grad(lambda d: divergence(d).sum())(d)

    unit = d / jnp.sqrt(jnp.sum(d * d, axis=(1, 2), keepdims=True))
    ours = jax.jit(lambda: losses.vat(predict, x, d))()
    gaps = []
    for xi in (1e-2, 1e-4):
      step = jax.jit(differenced)(unit, xi)
      theirs = losses.vat(predict, x, step, power=0)
      gaps.append(np.abs(theirs - ours).max())
    assert 1e-7 < gaps[0] < 1e-2
    assert gaps[1] < 0.02 * gaps[0]


@pytest.mark.parametrize('sure', [0.0, 30.0, 300.0])
def test_vat_of_a_sure_prediction(sure):
  """Its Fisher matrix is below all rounding, and then below all numbers."""
  w = np.random.default_rng(8).standard_normal([4, 3])
  x = np.random.default_rng(9).standard_normal([5, 4])
  d = np.random.default_rng(10).standard_normal([5, 4])
  logits = x @ w + np.array([sure, 0.0, -1.0])
  # In units of the second class, exactly: log-odds against the first.
  odds = np.exp(logits - logits.max(1, keepdims=True))
  change = d @ w - (d @ w)[:, :1]
  p = odds / odds.sum(1, keepdims=True)
  scaled = odds / odds[:, 1:].max(1, keepdims=True)
  slope = scaled * (change - (p * change).sum(1, keepdims=True))
  slope[:, 0] = -slope[:, 1:].sum(1)
  step = slope @ w.T
  single = [jnp.asarray(a, jnp.float32) for a in (x, d, step)]
  predict = lambda x: x @ jnp.asarray(w, jnp.float32) + jnp.array([sure, 0, -1])
  big = 40.0 + sure  # so long a change that it tells on a sure prediction
  run = jax.jit(
    lambda x, d, step: (
      losses.vat(predict, x, d, eps=big),
      losses.vat(predict, x, step, eps=big, power=0),
    )
  )
  found, expected = run(*single)
  close(found, expected, rtol=1e-4)
  assert np.any(found > 1)


def test_vat_where_nothing_changes_the_prediction():
  """The direction stays what it was, and all is finite."""
  x, d = (a.reshape(5, D) for a in inputs(5, 'float32'))
  dead = jnp.array([True, False, True, False, False])

  def loss(scale, x):
    live = jnp.where(dead[:, None], jnp.maximum(-jnp.abs(x), 0), x)
    return losses.vat(lambda x: scale * (live - x + x) @ PUSH[:, :C], x, d)

  value, slope = value_and_grad(lambda s: loss(s, x).sum())(1.0)
  assert np.isfinite(value)
  assert np.isfinite(slope)
  flat = lambda x: jnp.ones((len(x), 3)) + 0 * x[:, :1]
  value, slope = value_and_grad(lambda x: losses.vat(flat, x, d).sum())(x)
  assert value == 0
  assert not np.any(slope)
  # A kink: the first order sees nothing, the change itself does.
  kinked = lambda x: jnp.maximum(x - 3, 0) @ PUSH[:, :C]
  close(
    losses.vat(kinked, jnp.zeros_like(x), d),
    losses.vat(kinked, jnp.zeros_like(x), d, power=0),
  )
  close(losses.vat(kinked, jnp.zeros_like(x), 0 * d), 0)


def test_vat_finds_the_direction_of_the_largest_change():
  w = jnp.asarray(PUSH[:, :C], jnp.float32)
  x, d = (a.reshape(5, D) for a in inputs(5, 'float32'))
  run = jax.jit(
    lambda power: losses.vat(lambda x: x @ w, x, d, eps=0.1, power=power),
    static_argnums=0,
  )
  p = np.asarray(jax.nn.softmax(x @ w, axis=-1))
  best = [
    np.linalg.eigvalsh(w @ (np.diag(q) - np.outer(q, q)) @ w.T)[-1] for q in p
  ]
  close(run(30), 0.5 * 0.1**2 * np.array(best), rtol=0.1)
  assert np.all(run(0) < run(30))


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    (
      {'direction': jnp.ones((3, D))},
      ValueError,
      'direction must have the sha',
    ),
    (
      {'direction': jnp.ones((5, D), int)},
      TypeError,
      'direction must be float',
    ),
    ({'x': np.ones((5, D), np.uint8)}, TypeError, 'x must be floating-point'),
    ({'eps': -1.0}, ValueError, 'eps must lie in'),
    ({'eps': jnp.ones((5, 1))}, ValueError, 'eps must be a scalar'),
    ({'power': -1}, ValueError, 'power must be >= 0'),
    ({'predict': lambda x: jnp.ones((3, 2))}, ValueError, 'predict must give'),
  ],
)
def test_bad_vat(change, error, message):
  arguments = {
    'predict': lambda x: x,
    'x': jnp.ones((5, D)),
    'direction': jnp.ones((5, D)),
    **change,
  }
  with pytest.raises(error, match=message):
    losses.vat(**arguments)


@pytest.mark.parametrize(
  'call',
  [
    lambda z, y, h: losses.elr_targets(z, z, beta=h),
    lambda z, y, h: losses.elr_targets(z, z, clip=h),
    lambda z, y, h: losses.elr_penalty(z, z, clip=h),
    lambda z, y, h: losses.sop(z, y, z[:, 0], z, clip=h),
    lambda z, y, h: losses.sop(z, y, z[:, 0], z, min_prob=h),
    lambda z, y, h: losses.sop_probs(z, y, z[:, 0], z, min_prob=h),
  ],
)
def test_hyperparameters_are_scalars(call):
  z, y = draw(b=4)
  with pytest.raises(ValueError, match='must be a scalar'):
    call(z, y, jnp.full([4, 1], 0.3))


def test_consistency_counts_a_masked_class_for_nothing():
  """-inf in either view is as -1e30: 0 log 0 is 0."""
  z = np.array([[1.0, 2.0, -np.inf], [0.5, -np.inf, 1.0]], np.float32)
  other = np.array([[0.0, 1.0, -np.inf], [3.0, -np.inf, 0.0]], np.float32)
  run = jax.value_and_grad(lambda *z: losses.kl_consistency(*z).sum())
  value, slope = run(z, other)
  low = [np.maximum(a, np.float32(-1e30)) for a in (z, other)]
  expected, own = run(*low)
  assert 0 < value < 10
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(slope, own)
