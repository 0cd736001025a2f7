"""Small losses, corrected labels and prototypes, against numpy."""

import functools

from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

from jnl import select

B, C, D = 16, 3, 5
RNG = np.random.default_rng(0)
LOSSES = RNG.permutation(np.arange(B) // 2).astype(np.float32)  # ties
LOSSES[[2, 7]] = np.inf
LOSSES[[5, 11]] = np.nan
WHERE = RNG.random(B) < 0.7
WHERE[[2, 5]] = True, False
KS = np.array([0, 1, 5, 6.9, 8, B, 99, -3], np.float32)
LABELS = RNG.integers(0, C, B).astype(np.uint8)
FEATURES = RNG.normal(size=[B, D]).astype(np.float32)
PROBS = RNG.dirichlet(np.ones(C), B).astype(np.float32)


def chosen(losses, k, where):
  rows = [i for i in range(B) if where[i] and not np.isnan(losses[i])]
  rows = sorted(rows, key=lambda i: (losses[i], i))[: max(0, int(k))]
  return np.isin(np.arange(B), rows)


@functools.cache
def small():
  """By k: in the global view, on eight devices, and without `where`."""
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  split = PartitionSpec('data')
  of = lambda losses, k, where: select.small_loss(losses, k, where=where)
  # Swapped: what the first of two networks gets is chosen by the second.
  pair = lambda losses, k, where: select.co_teaching(
    losses, -losses, k, where=where
  )
  mapped = jax.shard_map(
    lambda x, k, w: (of(x, k, w), *pair(x, k, w)),
    mesh=mesh,
    in_specs=(split, PartitionSpec(), split),
    out_specs=split,
  )

  @compiled
  def run(losses, where):
    return [
      (of(losses, k, where), of(losses, k, None), *mapped(losses, k, where))
      for k in KS[1:6]
    ] + [jax.vmap(of, (None, 0, None))(losses, KS, where)]

  *each, every = run(LOSSES, WHERE)
  return each, every


def test_small_losses():
  each, every = small()
  for k, (one, free, on_eight, first, second) in zip(
    KS[1:6], each, strict=True
  ):
    expected = chosen(LOSSES, k, WHERE)
    for mask in (one, on_eight, second):
      np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(free, chosen(LOSSES, k, np.ones(B, bool)))
    np.testing.assert_array_equal(first, chosen(-LOSSES, k, WHERE))
  for k, mask in zip(KS, every, strict=True):
    np.testing.assert_array_equal(mask, chosen(LOSSES, k, WHERE))
  assert not every[0].any()
  np.testing.assert_array_equal(every[6], WHERE & ~np.isnan(LOSSES))


def test_two_networks():
  z1, z2 = RNG.normal(size=[2, B, C]).astype(np.float32)
  z1[0], z2[0] = [1, 1, 0], [0, 1, 0]  # a tie: the first class
  z1[1], z2[1] = [0, -np.inf, 1], [0, -np.inf, 2]
  labels = np.where(LABELS == 1, 0, LABELS)

  @compiled
  def run(z1, z2):
    slope = jax.grad(lambda z: select.jocor(z, z2, labels).sum())(z1)
    return (
      select.disagreement(z1, z2),
      *(select.jocor(z1, z2, labels, co_lambda=lam) for lam in (0.0, 0.4, 1)),
      slope,
    )

  differ, none, some, all_, slope = run(z1, z2)
  assert differ.tolist() == (z1.argmax(1) != z2.argmax(1)).tolist()
  assert np.isfinite(slope).all()
  np.testing.assert_allclose(some, 0.6 * none + 0.4 * all_, rtol=1e-5)
  p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (z1, z2))
  rows = np.arange(B)
  ce = -np.log(p[rows, labels]) - np.log(q[rows, labels])
  np.testing.assert_allclose(none, ce, rtol=1e-5)
  p, q = (np.maximum(x, 1e-30) for x in (p, q))
  kl = (p * np.log(p / q) + q * np.log(q / p)).sum(1)
  np.testing.assert_allclose(all_, kl, rtol=1e-4, atol=1e-6)


def test_corrected_labels():
  probs, mask = PROBS.copy(), np.arange(B) != 3
  probs[3] = np.nan
  labels = LABELS.copy()
  labels[3] = 255
  inside = labels.astype(np.int32)
  inside[4] = -1  # is refused outside jit

  @compiled
  def run(labels, probs, inside, delta):
    out = select.lrt_correct(labels, probs, delta=delta, mask=mask)
    every = [
      select.lrt_delta(delta, changed, mask=mask)
      for changed in (out.changed, mask, ~mask, mask & ~mask)
    ]
    bad = select.lrt_correct(inside, probs, delta=1.0, mask=mask)
    return out, every, select.lrt_delta(0.85, ~mask, mask=mask), bad

  out, every, most, bad = run(labels, probs, inside, np.float32(0.5))
  own = probs[np.arange(B), np.minimum(labels, C - 1)]
  changed = mask & (own < 0.5 * probs.max(1))
  np.testing.assert_array_equal(out.changed, changed)
  expected = np.where(changed, probs.argmax(1), labels)
  np.testing.assert_array_equal(out.labels, expected)
  assert out.labels.dtype == np.uint8
  assert 3 < changed.sum() < B
  np.testing.assert_allclose(every, [0.5, 0.5, 0.6, 0.6], rtol=1e-6)
  assert most == np.float32(0.9)
  assert bad.labels[4] == -1
  assert not bad.changed[4]


def unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def test_prototypes():
  features, weights = FEATURES.copy(), RNG.random(B).astype(np.float32)
  weights[::4], features[::4], features[1] = 0, np.nan, 0
  labels = LABELS.astype(np.int32)
  labels[::4] = -1
  classes = C + 1  # the last has no example
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  split, whole = PartitionSpec('data'), PartitionSpec()
  old = unit(RNG.normal(size=[classes, D])).astype(np.float32)
  old[0] = 0

  def both(features, labels, weights):
    means = select.class_means(features, labels, classes, weights=weights)
    return means, select.update_prototypes(
      old, features, labels, momentum=0.9, weights=weights
    )

  mapped = jax.shard_map(both, mesh=mesh, in_specs=split, out_specs=whole)

  @compiled
  def run(features, labels, weights):
    plain = select.class_means(
      features, labels, classes, weights=weights, normalize=False
    )
    means, moved = both(features, labels, weights)
    slope = jax.grad(lambda f: both(f, labels, weights)[0].sum())(features)
    of = select.nearest_prototype(
      jnp.where(jnp.isnan(features), 0, features), means
    )
    on_eight = mapped(features, labels, weights)
    return plain, means, moved, slope, of, on_eight

  plain, means, moved, slope, near, on_eight = run(features, labels, weights)
  for k in range(C):
    rows = (labels == k) & (weights > 0)
    w = weights[rows][:, None]
    np.testing.assert_allclose(
      plain[k], (w * features[rows]).sum(0) / w.sum(), rtol=1e-5, atol=1e-6
    )
    expected = (w * unit(features[rows])).sum(0)
    np.testing.assert_allclose(means[k], unit(expected), 1e-5, 1e-6)
  assert not means[C].any()
  assert not plain[C].any()
  np.testing.assert_allclose(moved[0], means[0], rtol=1e-6)
  expected = unit(0.9 * old[1:C] + 0.1 * means[1:C])
  np.testing.assert_allclose(moved[1:C], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(moved[C], old[C])
  assert np.isfinite(slope).all()
  assert not slope[::4].any()
  np.testing.assert_allclose(on_eight[0], means, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(on_eight[1], moved, rtol=1e-5, atol=1e-6)
  cosines = unit(np.nan_to_num(features)) @ means[:C].T
  np.testing.assert_allclose(near.similarity[:, :C], cosines, 1e-4, 1e-6)
  assert np.all(near.similarity[:, C] == -np.inf)
  np.testing.assert_array_equal(near.labels, near.similarity.argmax(1))
  assert near.labels[1] == 0


CALLS = {
  'losses must be \\[b\\]': lambda: select.small_loss(LOSSES[:, None], 3),
  'losses must be floating': lambda: select.small_loss(LABELS, 3),
  'k must be a scalar': lambda: select.small_loss(LOSSES, KS),
  'where must be bool': lambda: select.small_loss(LOSSES, 3, where=LABELS),
  'where must be \\[b\\]': lambda: select.small_loss(
    LOSSES, 3, where=WHERE[:, None]
  ),
  'losses_2 must': lambda: select.co_teaching(LOSSES, LOSSES[:3], 2),
  'logits_2 must': lambda: select.disagreement(PROBS, PROBS[:3]),
  'co_lambda': lambda: select.jocor(PROBS, PROBS, LABELS, co_lambda=1.5),
  'delta': lambda: select.lrt_correct(LABELS, PROBS, delta=-0.1),
  'probs must have rows': lambda: select.lrt_correct(LABELS, 2 * PROBS),
  'probs must be': lambda: select.lrt_correct(LABELS, PROBS[:3]),
  'labels must be \\[n\\], got': lambda: select.lrt_correct(
    LABELS[:, None], PROBS
  ),
  'labels must lie': lambda: select.lrt_correct(np.full(B, -1), PROBS),
  'changed must': lambda: select.lrt_delta(0.3, LABELS),
  'features must be \\[n, d\\]': lambda: select.class_means(LOSSES, LABELS, C),
  'features must be finite': lambda: select.class_means(
    FEATURES * np.inf, LABELS, C
  ),
  'weights must be': lambda: select.class_means(
    FEATURES, LABELS, C, weights=WHERE[:, None]
  ),
  'labels must be \\[n\\], \\(': lambda: select.class_means(
    FEATURES, LABELS[:, None], C
  ),
  'num_classes': lambda: select.class_means(FEATURES, LABELS, 0),
  'prototypes must be': lambda: select.nearest_prototype(FEATURES, PROBS),
  'momentum': lambda: select.update_prototypes(
    FEATURES[:C], FEATURES, LABELS, momentum=2
  ),
}


@pytest.mark.parametrize('message', CALLS)
def test_bad_arguments_are_named(message):
  with pytest.raises((ValueError, TypeError), match=message):
    CALLS[message]()


def test_half_precision():
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
  means = functools.partial(select.class_means, num_classes=C)
  out = jax.eval_shape(means, shape(B, D), jnp.asarray(LABELS))
  assert (out.shape, out.dtype) == ((C, D), jnp.float32)
  mask = jax.eval_shape(select.small_loss, shape(B), 3)
  assert (mask.shape, mask.dtype) == ((B,), bool)
