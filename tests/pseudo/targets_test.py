"""Targets made of predictions and of labels that are doubted."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.pseudo import (
  annealing_threshold,
  class_fairness,
  co_guess,
  co_refine,
  hard,
  one_hot,
  sharpen,
  soft,
)

RNG = np.random.default_rng(0)
B, C, V = 16, 4, 3
PROBS = RNG.dirichlet(np.ones(C), (V, B)).astype(np.float32)
LABELS = RNG.integers(0, C, B, np.uint8)
CLEAN = RNG.random(B).astype(np.float32)


def powered(p, t):
  p = p ** (1 / t)
  return p / p.sum(-1, keepdims=True)


def all_targets(probs, labels, clean, t):
  """Of predictions [v, b, c]; and how they follow from these."""
  refine = lambda p: co_refine(one_hot(labels, C), p, clean, temperature=t)
  ends = jax.grad(lambda p: jnp.sum(refine(p[0]) + co_guess(p)))(probs)
  slope = jax.grad(lambda p: jnp.sum(sharpen(p, t)[..., 0]))(probs)
  found = (
    sharpen(probs, t),
    refine(probs[0]),
    co_guess(probs, temperature=t),
  )
  return found, ends, slope


def test_targets_are_as_defined():
  """Sharpened; without gradient where they are to be learned."""
  run = jax.jit(all_targets)
  mixed = CLEAN[:, None] * np.eye(C)[LABELS] + (1 - CLEAN[:, None]) * PROBS[0]
  for t in 0.5, 1.0, 0.05:
    found, ends, slope = run(PROBS, LABELS, CLEAN, t)
    expected = [powered(p, t) for p in (PROBS, mixed, PROBS.mean(0))]
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7)
    np.testing.assert_array_equal(ends, 0)
    assert np.any(slope)
  # Probabilities that are 0, in part or all, have targets and gradients.
  edge = np.zeros_like(PROBS)
  edge[0, :, 1] = 1
  found, _, slope = run(edge, LABELS, np.ones_like(CLEAN), 1e-6)
  np.testing.assert_array_equal(found[0][0], np.eye(C)[np.ones(B, int)])
  np.testing.assert_array_equal(found[0][1], 1 / C)
  np.testing.assert_array_equal(found[1], np.eye(C)[LABELS])
  assert np.all(np.isfinite(slope))


def test_hard_takes_the_first_of_equals_and_soft_looks_at_no_step():
  p = np.float32([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0, 0, 0], [1, 0, 0]])
  rows = jax.jit(
    lambda p: [hard(p), hard(p, 7), soft(0.5)(p, 7), soft()(p), sharpen(p)]
  )
  *same, squared, whole, sharp = rows(p)
  for guess in same:
    np.testing.assert_array_equal(guess.argmax(1), [1, 0, 0, 0])
    np.testing.assert_array_equal(guess.sum(1), 1)
  np.testing.assert_array_equal(squared, sharp)
  np.testing.assert_allclose(whole, [*p[:2], [1 / 3] * 3, p[3]], rtol=1e-6)
  half = jax.eval_shape(rows, jnp.ones((2, 3), jnp.bfloat16))
  assert {a.dtype for a in half} == {np.dtype(np.float32)}


def fairness(z, weights, tilde, h):
  """In float64, of the rows that count alone."""
  z, w = (a[weights > 0].astype(float) for a in (z, weights))
  p = np.exp(z - z.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  share = lambda v: np.average(v, axis=0, weights=w)
  own = share(np.eye(C)[p.argmax(1)])

  def shares(v, counts):
    ratios = np.where(counts > 0, v / np.where(counts > 0, counts, 1), 0)
    return ratios / ratios.sum()

  return shares(tilde, h) @ np.log(shares(share(p), own) + 1e-12)


def test_fairness_is_of_all_rows_that_count_on_all_devices():
  z = RNG.normal(size=(B, C)).astype(np.float32) * 3
  z[:, 0] -= 9  # nobody's guess
  tilde = np.float32([0.1, 0.3, 0.4, 0.2])
  shares = np.float32([[0.2, 0.5, 0.2, 0.1], [0, 0.5, 0.5, 0], [0, 0, 0, 0]])
  weights = np.stack([CLEAN * (CLEAN > 0.4), np.eye(B)[3], 0 * CLEAN])
  weights = weights.astype(np.float32)
  z[weights[0] == 0] = np.nan
  z[3] = 2
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  every = jax.vmap(class_fairness, (None, 0, None, 0))
  mapped = jax.shard_map(
    every,
    mesh=mesh,
    in_specs=(P('data'), P(None, 'data'), P(), P()),
    out_specs=P(),
  )

  @jax.jit
  def run(z, *rest):
    slope = jax.grad(lambda z, *rest: every(z, *rest).sum(), (0, 2, 3))
    return every(z, *rest), mapped(z, *rest), slope(z, *rest)

  arguments = z, weights, tilde, shares
  one, eight, (slope, *none) = jax.device_get(run(*arguments))
  expected = [
    *(fairness(z, weights[i], tilde, shares[i]) for i in range(2)), 0
  ]  # fmt: skip
  np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)
  counts = weights.sum(0) > 0
  assert np.all(np.isfinite(slope))
  assert np.any(slope[counts])
  np.testing.assert_array_equal(slope[~counts], 0)
  assert not np.any(np.concatenate([a.ravel() for a in none]))


def test_annealing_lets_more_and_more_pass():
  step = np.array([-1, 0, 5, 10, 99])
  line, fast, slow = jax.jit(
    lambda s: [
      annealing_threshold(s, 10, C, schedule=name)
      for name in ('linear', 'exp', 'log')
    ]
  )(step)
  t = np.clip(step / 10, 0, 1)
  for found, a in (
    (line, t), (fast, np.exp(5 * t - 5)), (slow, 1 - np.exp(-5 * t))
  ):  # fmt: skip
    np.testing.assert_allclose(found, a * (1 - 1 / C) + 1 / C, rtol=1e-5)
  assert annealing_threshold(0, 0, C) == 1


def test_devices_draws_and_precision_change_nothing():
  t = np.float32(0.5)
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = P(None, 'data'), P('data'), P('data'), P()

  def targets(*arguments):
    return all_targets(*arguments)[0]

  def several(*arguments):
    half = lambda a: jnp.asarray(a, jnp.bfloat16)
    probs, labels, clean, t = arguments
    rows = jax.vmap(targets, (1, 0, 0, None), (1, 0, 0))
    mapped = jax.shard_map(
      targets,
      mesh=mesh,
      in_specs=split,
      out_specs=(P(None, 'data'), P('data'), P('data')),
    )
    return (
      targets(*arguments),
      rows(*arguments),
      mapped(*arguments),
      targets(half(probs), labels, half(clean), t),
    )

  arguments = PROBS, LABELS, CLEAN, t
  placed = [
    jax.device_put(a, jax.NamedSharding(mesh, spec))
    for a, spec in zip(arguments, split, strict=True)
  ]
  expected, *found, low = jax.device_get(jax.jit(several)(*placed))
  for other in found:
    for a, b in zip(other, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)
  for a, b in zip(low, expected, strict=True):
    assert a.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=0.03)


def test_labels_out_of_range_are_named_or_nan():
  """What does not count is uniform, whatever it holds."""
  labels = np.array([0, 2, 255, -1])
  soft = np.float32([[1, 0], [np.nan, 1], [0.25, 0.75], [7, 7]])
  counts, some = np.arange(4) < 2, np.arange(4) % 2 == 0

  @jax.jit
  def found(labels, soft):
    return (
      one_hot(labels, 3),
      one_hot(labels, 3, where=counts),
      one_hot(soft, 2, where=some),
    )

  hard, counted, kept = found(labels, soft)
  own = np.where(counts[:, None], np.eye(3)[[0, 2, 0, 0]], np.nan)
  np.testing.assert_array_equal(hard, own)
  np.testing.assert_allclose(counted, np.where(counts[:, None], own, 1 / 3))
  np.testing.assert_array_equal(kept, np.where(some[:, None], soft, 0.5))
  with pytest.raises(ValueError, match='got 255 in row 2'):
    one_hot(labels, 3)
  with pytest.raises(ValueError, match='row 3 is'):
    one_hot(soft, 2, where=np.arange(4) != 1)
  np.testing.assert_array_equal(one_hot(labels, 3, where=counts), counted)


F = np.float32
Y, W = np.eye(2, dtype=F), np.ones(2, F)


@pytest.mark.parametrize(
  ('call', 'error', 'match'),
  [
    (lambda: one_hot(F([0, 1, 2]), 4), ValueError, r'\[\.\.\., c\] soft'),
    (lambda: one_hot(['one'], 2), TypeError, 'labels must be an array'),
    (lambda: one_hot([True], 2), TypeError, 'labels must be integers'),
    (lambda: one_hot([0], 0), ValueError, 'num_classes must be at least 1'),
    (lambda: one_hot([0, 1], 2, where=W), TypeError, 'such as weight > 0'),
    (
      lambda: one_hot([0, 1], 2, where=np.ones((2, 1), bool)),
      ValueError,
      r'labels, of shape \(2,\); got shape \(2, 1\)',
    ),
    (lambda: sharpen(Y, 0.0), ValueError, 'temperature must lie in'),
    (lambda: sharpen(Y, W), ValueError, 'temperature must be a scalar'),
    (lambda: sharpen([1, 0]), TypeError, 'probs must be floating-point'),
    (lambda: sharpen(F(1)), ValueError, 'got a scalar'),
    (lambda: sharpen(-Y), ValueError, 'logits they are the softmax'),
    (lambda: co_refine(Y, Y[:1], W), ValueError, 'targets must have the shape'),
    (lambda: co_refine(Y, Y, W[:, None]), ValueError, 'clean must be'),
    (lambda: co_refine(Y, Y, 2 * W), ValueError, r'clean must lie in \[0, 1\]'),
    (lambda: co_refine([0, 1], Y, W), TypeError, 'targets must be floating'),
    (lambda: co_guess(W), ValueError, r'\[v, \.\.\., c\]'),
    (lambda: co_guess(np.zeros((0, 2, 2), F)), ValueError, 'v >= 1'),
    (lambda: hard([1, 0]), TypeError, 'probs must be floating-point'),
    (lambda: hard(-Y), ValueError, 'logits they are the softmax'),
    (lambda: soft(0.0), ValueError, 'temperature must lie in'),
    (lambda: class_fairness(Y, W[:, None], W, W), ValueError, 'weights must'),
    (lambda: class_fairness(Y, -W, W, W), ValueError, 'weights must lie in'),
    (lambda: class_fairness(Y, W, Y, W), ValueError, r'probs must be \[2\]'),
    (lambda: class_fairness(Y, W, W, W[:1]), ValueError, 'shares must be'),
    (lambda: annealing_threshold(0, 1, 0), ValueError, 'num_classes must be'),
    (lambda: annealing_threshold(0, -1, 2), ValueError, 'length must be'),
    (
      lambda: annealing_threshold(0, 1, 2, schedule='none'),
      ValueError,
      "unknown schedule 'none'",
    ),
  ],
)
def test_bad_input_is_named(call, error, match):
  with pytest.raises(error, match=match):
    call()
