"""ELR, ELR+, SOP and virtual adversarial training."""

import functools

from fixture_losses import B, C, close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses

Z, Y = draw()
P, T = softmax(Z), softmax(draw(seed=1)[0])
T32 = np.float32(T)
ROWS = np.arange(B)

# --- ELR ---------------------------------------------------------------------


def test_elr_targets_average_the_clipped_prediction():
  z, _ = draw(scale=10.0)
  clipped, unclipped = run(
    lambda z: [
      losses.elr_targets(T32, z, beta=0.9, clip=clip) for clip in (0.01, 0.0)
    ],
    z,
  )
  p = np.clip(softmax(z), 0.01, 0.99)
  close(clipped, 0.9 * T + 0.1 * p / p.sum(-1, keepdims=True))
  close(unclipped, 0.9 * T + 0.1 * softmax(z))


def test_elr_targets_of_rows_in_bfloat16():
  """Averaged in float32, as are hyperparameters: 1 - 1e-4 is 1 in bfloat16."""
  rows = T.astype(jnp.bfloat16)
  beta, clip = (jnp.bfloat16.dtype.type(x) for x in (0.7, 0.1))
  wide_rows, wide = rows.astype(np.float32), {'beta': beta, 'clip': clip}
  wide = {name: float(value) for name, value in wide.items()}
  found, expected, half = run(
    lambda rows, beta, clip: (
      losses.elr_targets(rows, Z, beta=beta, clip=clip),
      losses.elr_targets(wide_rows, Z, **wide).astype(jnp.bfloat16),
      losses.elr_targets(rows, Z, beta=0.0, clip=0.5),
    ),
    rows,
    beta,
    clip,
  )
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, expected)
  close(half.astype(np.float32), 1 / C, rtol=1e-2)


def test_elr_targets_have_no_gradient():
  of_rows_and_logits = lambda z: losses.elr_targets(z, z).sum()
  close(run(jax.grad(of_rows_and_logits), Z), 0)


def test_elr_penalty_gradient_is_lemma_2():
  """dr/dz_c = p_c / (1 - <t, p>) sum_k (t_k - t_c) p_k, where nothing clips."""
  z, _ = draw(scale=1.0)
  p = softmax(z)
  inner = np.sum(T * p, axis=-1, keepdims=True)
  penalty = lambda z, t, clip: losses.elr_penalty(z, t, clip=clip)
  for value, slope in run(
    lambda z: [
      value_and_slope(penalty, z, T32, clip=clip) for clip in (0.0, 1e-4)
    ],
    z,
  ):
    close(value, np.log(1 - inner[:, 0]))
    close(slope, p / (1 - inner) * (inner - T))


def test_elr_penalty_clip_has_no_gradient_outside():
  z, _ = draw(scale=6.0)

  def reference(z, t):
    p = jnp.clip(jax.nn.softmax(z), 1e-2, 1 - 1e-2)
    return jnp.log(1 - jnp.sum(t * p, axis=-1))

  ours, expected, unclipped = run(
    lambda z: (
      value_and_slope(losses.elr_penalty, z, T32, clip=1e-2),
      value_and_slope(reference, z, T32),
      value_and_slope(losses.elr_penalty, z, T32, clip=0.0),
    ),
    z,
  )
  close(ours[0], expected[0])
  close(ours[1], expected[1])
  assert np.abs(unclipped[1] - ours[1]).max() > 1e-3


def test_elr_penalty_forward_and_reverse_mode():
  """First and second derivatives, against differences in float64."""
  z, v = np.float64(Z), np.random.default_rng(2).standard_normal(Z.shape)

  def everything(z):
    slope = lambda z: value_and_slope(losses.elr_penalty, z, T)
    (value, slope), (along, second) = jax.jvp(slope, (z,), (v,))
    return value, slope, along, second

  with jax.enable_x64(True):
    compiled = jax.jit(everything)
    here, ahead, behind = (
      jax.device_get(compiled(z + step * v)) for step in (0, 1e-5, -1e-5)
    )
  value, slope, along, second = here
  difference = lambda i: (ahead[i] - behind[i]) / 2e-5
  close(along, difference(0), rtol=1e-5, atol=1e-8)
  close(np.sum(slope * v, -1), along, rtol=1e-9, atol=1e-12)
  close(second, difference(1), rtol=1e-5, atol=1e-8)
  assert np.all(value < 0)


def test_elr_targets_get_no_gradient_from_the_penalty():
  close(run(jax.grad(lambda t: losses.elr_penalty(Z, t).sum()), T32), 0)


@functools.cache
def elr_at_extremes(double):
  z = np.array([[1e4, -1e4, 0], [0, 0, 0], [1e4, 1e4, 1e4]])
  halves = jnp.float16, jnp.bfloat16, np.float32
  dtypes = [np.dtype(d) for d in ([np.float64] if double else halves)]

  def of(z):
    rows = losses.elr_targets(jnp.zeros([3, 3]), z, beta=0.0)
    return rows, *value_and_slope(losses.elr_penalty, z, rows)

  with jax.enable_x64(double):
    found = run(lambda *zs: list(map(of, zs)), *map(z.astype, dtypes))
  return {d.name: values for d, values in zip(dtypes, found, strict=True)}


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_elr_is_finite_at_extremes(dtype):
  """1 - 1e-4 is 1 in bfloat16: the arithmetic has to be float32."""
  rows, value, slope = elr_at_extremes(dtype == 'float64')[dtype]
  own = np.float64 if dtype == 'float64' else np.float32
  assert rows.dtype == own
  assert value.dtype == own
  assert slope.dtype == dtype
  assert value[0] > -9.3
  assert np.isfinite(value).all()
  assert np.isfinite(slope.astype(np.float32)).all()


def test_elr_shapes_are_named():
  z = np.zeros([3, 4], np.float32)
  with pytest.raises(ValueError, match='targets'):
    losses.elr_penalty(z, np.zeros([3, 5]))
  with pytest.raises(ValueError, match='rows'):
    losses.elr_targets(np.zeros([2, 4]), z)
  with pytest.raises(TypeError, match='targets'):
    losses.elr_penalty(z, np.zeros([3, 4], int))
  with pytest.raises(ValueError, match='beta'):
    losses.elr_targets(z, z, beta=1.5)


def test_elr_penalty_wants_agreement_with_the_target():
  """Descending it raises the class that the target believes in."""
  z, t = (np.float32(a) for a in ([0.0, 1.0, 0.0], [0.7, 0.1, 0.1]))
  slope = run(jax.grad(losses.elr_penalty), z, t)
  assert slope[0] < 0
  assert slope[1] > 0


def test_elr_plus_labels():
  y = np.float32([[0.6, 0.4, 0.0]] * 2)
  t = np.float32([[0.1, 0.3, 0.6], [0.0, 0.0, 1.0]])
  found = run(losses.elr_plus_labels, y, t)
  close(found, [[1 / 3, 2 / 3, 0], y[1]])


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


SCALES = [1e-8, 0.5, 1.5]
LEAST = (0.0, 0.1)  # the second is above many probabilities


@functools.cache
def sop_everything():
  """Of hard labels, soft ones and the definition, at all scales: values [m, b]
  and gradients of their sums."""
  rng = np.random.default_rng(2)
  u, v = rng.standard_normal(B), rng.standard_normal([B, C])
  z, one_hot = np.float64(Z), np.eye(C)[Y]
  kinds = {
    'hard': lambda z, u, v, m: losses.sop(z, Y, u, v, min_prob=m),
    'soft': lambda z, u, v, m: losses.sop(z, one_hot, u, v, min_prob=m),
    'defined': lambda z, u, v, m: sop_reference(z, Y, u, v, m),
  }

  def of(loss):
    def total(*arguments):
      values = jnp.stack([loss(*arguments, m) for m in LEAST])
      return values.sum(-1), values

    slopes = jax.jacobian(total, (0, 1, 2), has_aux=True)
    return jax.vmap(lambda scale: slopes(z, scale * u, scale * v))

  with jax.enable_x64(True):
    return run(
      lambda scales: {kind: of(loss)(scales) for kind, loss in kinds.items()},
      np.array(SCALES),
    )


@pytest.mark.parametrize('kind', ['hard', 'soft'])
@pytest.mark.parametrize('scale', SCALES)
def test_sop_value_and_all_gradients(scale, kind):
  s, found = SCALES.index(scale), sop_everything()
  slopes, values = found[kind]
  expected_slopes, expected = found['defined']
  assert np.any(values[s, 1] < values[s, 0])
  close(values[s], expected[s], rtol=1e-10)
  for mine, theirs in zip(slopes, expected_slopes, strict=True):
    close(mine[s], theirs[s], rtol=1e-9, atol=1e-30)


def test_sop_probs_are_what_the_loss_takes_the_logarithm_of():
  u, v = np.full(B, 0.5, np.float32), np.full([B, C], 0.3, np.float32)
  right = np.argmax(Z, -1)  # there the square is only that of U and V
  q, q_right, loss, raised = run(
    lambda z: (
      losses.sop_probs(z, Y, u, v),
      losses.sop_probs(z, right, u, v),
      losses.sop(z, right, u, v),
      losses.sop_probs(z, Y, u, v, min_prob=0.1),
    ),
    Z,
  )
  close(q.sum(-1), 1)
  square = 0.5**4 + (C - 1) * 0.3**4
  close(loss, -np.log(q_right[ROWS, right]) + square)
  close(raised, np.maximum(q, 0.1))


def test_sop_shapes_are_named():
  with pytest.raises(ValueError, match='u must'):
    losses.sop(Z, Y, np.zeros([B, 1]), Z)
  with pytest.raises(ValueError, match='v must'):
    losses.sop(Z, Y, np.zeros(B), Z[:, :-1])


def test_kl_consistency():
  other, _ = draw(seed=1)
  total = lambda z, other: losses.kl_consistency(z, other).sum()
  value, slopes = run(
    lambda *zs: (losses.kl_consistency(*zs), jax.grad(total, (0, 1))(*zs)),
    Z,
    other,
  )
  close(value, np.sum(T * np.log(T / P), axis=-1))
  close(slopes[0], P - T)
  close(slopes[1], 0)
  with pytest.raises(ValueError, match='other_logits'):
    losses.kl_consistency(Z, other[:-1])


def test_consistency_counts_a_masked_class_for_nothing():
  """-inf in either view is as -1e30: 0 log 0 is 0."""
  z = np.array([[1.0, 2.0, -np.inf], [0.5, -np.inf, 1.0]], np.float32)
  other = np.array([[0.0, 1.0, -np.inf], [3.0, -np.inf, 0.0]], np.float32)
  both = jax.jit(jax.value_and_grad(lambda *z: losses.kl_consistency(*z).sum()))
  value, slope = both(z, other)
  low = [np.maximum(a, np.float32(-1e30)) for a in (z, other)]
  expected, own = both(*low)
  assert 0 < value < 10
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(slope, own)


def test_entropy_and_symmetric_consistency():
  other, _ = draw(seed=1)
  p = np.exp(np.float64(other))
  p /= p.sum(-1, keepdims=True)

  def both(z, other):
    value = losses.entropy(z), losses.symmetric_consistency(z, other)
    slopes = [
      jax.grad(lambda z: losses.entropy(z).sum())(z),
      *jax.grad(lambda *zs: losses.symmetric_consistency(*zs).sum(), (0, 1))(
        z, other
      ),
    ]
    return value, slopes

  (entropy, symmetric), slopes = run(both, Z, other)
  close(entropy, -np.sum(P * np.log(P), -1))
  close(symmetric, -np.sum(p * np.log(P) + P * np.log(p), -1) / 2)
  mean = lambda a: np.sum(P * a, -1, keepdims=True)
  close(slopes[0], -P * (np.log(P) - mean(np.log(P))))
  close(slopes[1], (P - p - P * (np.log(p) - mean(np.log(p)))) / 2)
  close(slopes[2], 0)
  assert losses.entropy(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_entropies_are_finite_at_extremes():
  """Of +-1e4, and with a masked class, which counts for nothing."""
  z = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, -np.inf]], np.float32)
  zs = z, z[:, [1, 0, 2]]
  total = lambda *zs: (
    losses.entropy(zs[0]).sum() + losses.symmetric_consistency(*zs).sum()
  )
  (entropy, same), slope = run(
    lambda *zs: (
      (losses.entropy(zs[0]), losses.symmetric_consistency(*zs)),
      jax.grad(total)(*zs),
    ),
    *zs,
  )
  np.testing.assert_allclose(entropy, [0, np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(same, [2e4, np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(slope, [[0.5, -0.5, 0], [0, 0, 0]], atol=1e-6)
  assert not np.signbit(entropy).any()


# --- virtual adversarial training --------------------------------------------

D, H = 6, 16
PUSH = np.random.default_rng(5).standard_normal([D, H])
PULL = np.random.default_rng(6).standard_normal([H, C])


def network(dtype):
  """Rows alone, and their sums in float32: in every batch in the same order."""
  w, w2 = (PUSH / 3).astype(dtype), (PULL / 2).astype(dtype)

  def predict(x):
    x = x.reshape(len(x), D)
    hidden = jnp.tanh(jnp.sum(x[:, :, None] * w, axis=1))
    return jnp.sum(hidden[:, :, None] * w2, axis=1)

  return predict


def inputs(b, dtype, seed=7):
  rng = np.random.default_rng(seed)
  shape = [b, D // 2, 2]  # more than one dimension makes an input
  return [rng.standard_normal(shape).astype(dtype) for _ in range(2)]


HALF = [
  pytest.param(dtype, marks=pytest.mark.slow)
  for dtype in ('bfloat16', 'float16')
]


@pytest.mark.parametrize('dtype', ['float32', *HALF, 'float64'])
def test_vat_finds_more_than_chance_whoever_is_beside(dtype):
  own = jnp.bfloat16.dtype if dtype == 'bfloat16' else np.dtype(dtype)
  predict, (x, d) = network(own), inputs(256, own)
  broken = x.copy()
  broken[:3] = np.nan
  vat = functools.partial(losses.vat, predict)
  with jax.enable_x64(dtype == 'float64'):
    found, chance, alone, beside = run(
      lambda x, d, broken: (
        vat(x, d),
        vat(x, d, power=0),
        vat(x[3:4], d[3:4]),
        vat(broken, d),
      ),
      x,
      d,
      broken,
    )
  assert found.shape == (256,)
  assert found.dtype == (np.float64 if dtype == 'float64' else np.float32)
  assert found.mean() > 1.5 * chance.mean() > 0.1
  assert np.mean(found > chance) > 0.8
  # Half precision: the roundings of the network itself, of bigger sums.
  rtol = {'float64': 1e-12, 'float32': 1e-5}.get(dtype, 0.02)
  close(alone[0], found[3], rtol=rtol)
  close(beside[3:], found[3:], rtol=rtol)


def test_vat_is_the_limit_of_the_published_difference():
  """An error that falls with the step, in float64."""
  predict, (x, d) = network(np.float64), inputs(8, np.float64)
  unit = d / np.sqrt(np.sum(d * d, axis=(1, 2), keepdims=True))
  vat = functools.partial(losses.vat, predict)

  def differenced(d, xi):
    held = predict(x)
    divergence = lambda d: losses.kl_consistency(predict(x + xi * d), held)
    return jax.grad(lambda d: divergence(d).sum())(d)

  def gap(xi):
    return jnp.abs(vat(x, differenced(unit, xi), power=0) - vat(x, d)).max()

  with jax.enable_x64(True):
    coarse, fine = run(jax.vmap(gap), np.array([1e-2, 1e-4]))
  assert 1e-7 < coarse < 1e-2
  assert fine < 0.02 * coarse


SURE = [0.0, 30.0, 300.0]


@functools.cache
def vat_of_the_sure():
  """What is found, and what the direction in closed form gives."""
  w = np.random.default_rng(8).standard_normal([4, 3])
  x = np.random.default_rng(9).standard_normal([5, 4])
  d = np.random.default_rng(10).standard_normal([5, 4])

  def direction(sure):
    logits = x @ w + np.array([sure, 0.0, -1.0])
    # In units of the second class, exactly: log-odds against the first.
    odds = np.exp(logits - logits.max(1, keepdims=True))
    change = d @ w - (d @ w)[:, :1]
    p = odds / odds.sum(1, keepdims=True)
    scaled = odds / odds[:, 1:].max(1, keepdims=True)
    slope = scaled * (change - (p * change).sum(1, keepdims=True))
    slope[:, 0] = -slope[:, 1:].sum(1)
    return slope @ w.T

  w32, x32, d32 = (np.float32(a) for a in (w, x, d))

  def both(sure, step):
    predict = lambda x: x @ w32 + jnp.stack([sure, 0 * sure, 0 * sure - 1])
    big = 40.0 + sure  # so long a change that it tells on a sure prediction
    return (
      losses.vat(predict, x32, d32, eps=big),
      losses.vat(predict, x32, step, eps=big, power=0),
    )

  steps = np.float32([direction(sure) for sure in SURE])
  return run(jax.vmap(both), np.float32(SURE), steps)


@pytest.mark.parametrize('sure', SURE)
def test_vat_of_a_sure_prediction(sure):
  """Its Fisher matrix is below all rounding, and then below all numbers."""
  found, expected = (a[SURE.index(sure)] for a in vat_of_the_sure())
  close(found, expected, rtol=1e-4)
  assert np.any(found > 1)


@pytest.mark.slow
def test_vat_where_nothing_changes_the_prediction():
  """The direction stays what it was, and all is finite."""
  x, d = (a.reshape(5, D) for a in inputs(5, np.float32))
  dead, push = (
    np.array([[1], [0], [1], [0], [0]], bool),
    np.float32(PUSH[:, :C]),
  )

  def loss(scale, x):
    live = jnp.where(dead, jnp.maximum(-jnp.abs(x), 0), x)
    predict = lambda x: scale * (live - x + x) @ push
    return losses.vat(predict, x, d).sum()

  flat = lambda x: jnp.ones((len(x), 3)) + 0 * x[:, :1]
  # A kink: the first order sees nothing, the change itself does.
  kinked = lambda x: jnp.maximum(x - 3, 0) @ push
  of_some, of_none, (found, expected, still) = run(
    lambda x: (
      jax.value_and_grad(loss)(1.0, x),
      jax.value_and_grad(lambda x: losses.vat(flat, x, d).sum())(x),
      (
        losses.vat(kinked, 0 * x, d),
        losses.vat(kinked, 0 * x, d, power=0),
        losses.vat(kinked, 0 * x, 0 * d),
      ),
    ),
    x,
  )
  assert np.isfinite(of_some[0])
  assert np.isfinite(of_some[1])
  assert of_none[0] == 0
  assert not np.any(of_none[1])
  close(found, expected)
  close(still, 0)


def test_vat_finds_the_direction_of_the_largest_change():
  w = np.float32(PUSH[:, :C])
  x, d = (a.reshape(5, D) for a in inputs(5, np.float32))
  vat = functools.partial(losses.vat, lambda x: x @ w)
  converged, chance = run(
    lambda x: [vat(x, d, eps=0.1, power=power) for power in (15, 0)], x
  )
  best = [
    np.linalg.eigvalsh(w @ (np.diag(q) - np.outer(q, q)) @ w.T)[-1]
    for q in softmax(x @ w)
  ]
  close(converged, 0.5 * 0.1**2 * np.array(best), rtol=0.1)
  assert np.all(chance < converged)


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    (
      {'direction': np.ones((3, D), 'f')},
      ValueError,
      'direction must have the sha',
    ),
    (
      {'direction': np.ones((5, D), int)},
      TypeError,
      'direction must be float',
    ),
    ({'x': np.ones((5, D), np.uint8)}, TypeError, 'x must be floating-point'),
    ({'eps': -1.0}, ValueError, 'eps must lie in'),
    ({'eps': np.ones((5, 1), 'f')}, ValueError, 'eps must be a scalar'),
    ({'power': -1}, ValueError, 'power must be >= 0'),
    (
      {'predict': lambda x: np.ones((3, 2), 'f')},
      ValueError,
      'predict must give',
    ),
  ],
)
def test_bad_vat(change, error, message):
  arguments = {
    'predict': lambda x: x,
    'x': np.ones((5, D), np.float32),
    'direction': np.ones((5, D), np.float32),
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
  with pytest.raises(ValueError, match='must be a scalar'):
    call(Z, Y, np.full([B, 1], 0.3, np.float32))
