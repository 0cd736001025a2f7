"""Targets made of predictions and of labels that are doubted."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jnl.pseudo import co_guess, co_refine, one_hot, sharpen

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
  ],
)
def test_bad_input_is_named(call, error, match):
  with pytest.raises(error, match=match):
    call()
