"""Losses of bags by their definitions: enumeration, bags of one, masks."""

import functools
import itertools

from fixture_losses import run, softmax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses
from jnl.losses import _proportions as room

RNG = np.random.default_rng(0)
Z = RNG.normal(0, 2, (4, 5, 3)).astype(np.float32)
P = softmax(Z)
MASK = np.arange(5) < np.array([[5], [3], [1], [4]])
LABELS = RNG.integers(0, 3, (4, 5))
COUNTS = ((LABELS[..., None] == np.arange(3)) & MASK[..., None]).sum(1)
SHARES = COUNTS / MASK.sum(1, keepdims=True)
PRIOR = np.array([0.5, 0.3, 0.2])
WEIGHTS = RNG.normal(size=(2, 4))
KEY = jax.random.key(0)

OF_BAGS = {
  'dllp_l1': lambda z, mask: losses.dllp_l1(z, SHARES, mask),
  'dllp_squared': lambda z, mask: losses.dllp_squared(z, SHARES, mask),
  'easy_llp': lambda z, mask: losses.easy_llp(z, SHARES, PRIOR, mask),
  'easy_llp_sampled': lambda z, mask: losses.easy_llp_sampled(
    KEY, z, SHARES, PRIOR, mask
  ),
  'dsq': lambda z, mask: losses.dsq(z, SHARES, PRIOR, mask),
  'gen_bags': lambda z, mask: losses.gen_bags(z, COUNTS, WEIGHTS, mask),
  'transport': lambda z, mask: losses.transport(z, COUNTS, mask),
}
every_loss = pytest.mark.parametrize('name', OF_BAGS)


@functools.cache
def compiled():
  """Values, and gradients of their sums; of each dtype one program."""

  def of(loss):
    def total(z):
      values = loss(z, MASK)
      return values.sum(dtype='float32'), values

    return jax.grad(total, has_aux=True)

  return jax.jit(
    lambda z: {name: of(loss)(z) for name, loss in OF_BAGS.items()}
  )


@every_loss
def test_what_is_masked_is_not_read(name):
  hidden = np.where(MASK[..., None], Z, np.nan)
  gradient, value = jax.device_get(compiled()(Z))[name]
  also, again = jax.device_get(compiled()(hidden))[name]
  np.testing.assert_array_equal(value, again)
  np.testing.assert_array_equal(gradient, also)
  assert not np.any(gradient[~MASK])
  assert np.any(gradient[MASK])


HALF = [
  pytest.param(dtype, marks=pytest.mark.slow)
  for dtype in ('bfloat16', 'float16')
]


@every_loss
@pytest.mark.parametrize('dtype', ['float32', *HALF])
def test_finite_at_extremes(name, dtype):
  z = (1e4 * np.sign(Z)).astype(jnp.dtype(dtype))
  gradient, value = jax.device_get(compiled()(z))[name]
  assert value.dtype == np.float32
  assert np.isfinite(value).all()
  assert np.all(np.isfinite(gradient.astype(np.float32)))


def test_differences_of_proportions():
  mean = np.stack([row[m].mean(0) for row, m in zip(P, MASK, strict=True)])
  found = jax.device_get(compiled()(Z))
  off = SHARES - mean
  for name, expected in (('dllp_l1', np.abs(off)), ('dllp_squared', off**2)):
    np.testing.assert_allclose(found[name][1], expected.sum(1), rtol=1e-5)


def over_all_labels(estimate, m, classes, prior):
  """The mean over labels that are drawn from `prior`, one by one."""
  labels = np.array(list(itertools.product(range(classes), repeat=m)))
  shares = (labels[..., None] == np.arange(classes)).mean(1)
  estimates = run(jax.vmap(estimate), np.float32(shares))
  return np.prod(prior[labels], axis=1) @ np.float64(estimates)


@pytest.mark.parametrize('m', [1, 3])
def test_easy_llp_is_unbiased(m):
  z = Z[0, :m]
  estimate = lambda share: losses.easy_llp(z, share, PRIOR)
  found = over_all_labels(estimate, m, 3, PRIOR)
  ce = -np.log(P[0, :m])
  np.testing.assert_allclose(found, (ce @ PRIOR).mean(), rtol=1e-5)


def test_dsq_is_unbiased_up_to_a_constant():
  z, p = Z[:2, :3], P[:2, :3]
  estimate = lambda share: losses.dsq(z, jnp.stack([share, share]), PRIOR)
  found = over_all_labels(estimate, 3, 3, PRIOR)
  each = [((p - np.eye(3)[k]) ** 2).sum(-1) / 2 for k in range(3)]
  bias = found - (np.stack(each, axis=-1) @ PRIOR).mean(1)
  np.testing.assert_allclose(*bias, atol=1e-5)


def test_bags_of_one_are_labels():
  z, labels = Z[0][:, None], LABELS[0]
  share = np.eye(3)[labels]
  counts = share.astype(int)
  *are_ce, dsq = run(
    lambda z: (
      losses.easy_llp(z, share, PRIOR),
      losses.easy_llp_sampled(KEY, z, share, PRIOR),
      losses.dllp(z, share),
      losses.transport(z, counts),
      losses.dsq(z, share, PRIOR),
    ),
    z,
  )
  for found in are_ce:
    ce = -np.log(P[0][np.arange(5), labels])
    np.testing.assert_allclose(found, ce, rtol=1e-5)
  np.testing.assert_allclose(dsq, ((P[0] - share) ** 2).sum(1) / 2, rtol=1e-5)


def test_an_instance_is_sampled_from_the_bag():
  sampled = losses.easy_llp_sampled
  keys = jax.random.split(KEY, 4)
  draws, mean, some, alone = run(
    lambda many, keys: (
      jax.vmap(lambda key: sampled(key, Z, SHARES, PRIOR, MASK))(many),
      losses.easy_llp(Z, SHARES, PRIOR, MASK),
      sampled(keys, Z, SHARES, PRIOR, MASK),
      [
        sampled(keys[b], Z[b], SHARES[b], PRIOR, MASK[b])
        for b in (0, 3)  # a key of its own
      ],
    ),
    jax.random.split(KEY, 4000),
    keys,
  )
  draws = np.float64(draws)
  error = draws.std(0) / np.sqrt(4000)
  assert np.all(np.abs(draws.mean(0) - mean) < 5 * error + 1e-5)
  np.testing.assert_allclose(alone, some[[0, 3]], rtol=1e-6)
  sizes = MASK.sum(1)
  assert [len(np.unique(draws[:, b])) for b in range(4)] == sizes.tolist()


def test_combinations_of_bags():
  alone, mixed = run(
    lambda z: [
      losses.gen_bags(z, COUNTS, w, MASK) for w in (np.eye(4), WEIGHTS)
    ],
    Z,
  )
  off = np.where(MASK[..., None], P, 0).sum(1) - COUNTS
  np.testing.assert_allclose(alone, (off**2).sum(1) / 2, rtol=1e-4)
  expected = ((WEIGHTS @ off) ** 2).sum(1) / 2
  np.testing.assert_allclose(mixed, expected, rtol=1e-4)


@functools.cache
def transported():
  """Labels of `COUNTS`: of any logits and strength, run to the end."""
  return jax.jit(
    lambda z, reg: losses.transport_labels(
      z, COUNTS, MASK, reg=reg, iterations=5000
    )
  )


@pytest.mark.parametrize('reg', [0.1, 1.0])
def test_transport_holds_the_counts(reg):
  q = np.asarray(transported()(Z, np.float32(reg)))
  np.testing.assert_allclose(q.sum(-1), MASK, atol=1e-5)
  np.testing.assert_allclose(q.sum(1), COUNTS, atol=1e-3)
  # It is the prediction, scaled by rows and columns.
  log_ratio = np.log(np.maximum(q[0], 1e-30)) - Z[0] / reg
  some = COUNTS[0] > 0
  centered = log_ratio[:, some] - log_ratio[:, some].mean(1, keepdims=True)
  np.testing.assert_allclose(centered, centered[:1].repeat(5, 0), atol=1e-2)


def test_two_classes_are_a_case_of_sinkhorn():
  z = Z[..., :2]
  counts = np.array([[2, 3], [3, 0], [0, 1], [2, 2]])

  def both(z):
    log_p = jax.nn.log_softmax(z, axis=-1)
    return (
      losses.transport_labels(z, counts, MASK, reg=0.5),
      room._sinkhorn(log_p / 0.5, jnp.asarray(counts), MASK, 5000),
    )

  closed, general = run(both, z)
  general = np.where(MASK[..., None], general, 0)
  np.testing.assert_allclose(closed, general, atol=1e-4)


def test_hard_labels_are_the_top_and_the_limit():
  z, counts = Z[..., :2], np.array([[2, 3], [3, 0], [0, 1], [3, 1]])
  labels = functools.partial(losses.transport_labels, counts=counts, mask=MASK)
  hard, soft, same = run(
    lambda z: (
      labels(z, reg=0.0),
      labels(z, reg=0.005),
      labels(0 * z, reg=0.0),  # all alike, which has no one answer
    ),
    z,
  )
  np.testing.assert_array_equal(hard.sum(1), counts)
  np.testing.assert_allclose(soft, hard, atol=1e-3)
  np.testing.assert_array_equal(same.sum(1), counts)


def test_alike_instances_should_have_alike_scores():
  x, scores = np.float32(RNG.normal(size=(6, 2))), np.float32(RNG.random(6))
  same, found = run(
    lambda scores: [
      losses.similarity_smoothness(s, x) for s in (jnp.ones(6), scores)
    ],
    scores,
  )
  assert not np.any(same)
  distance = ((x[:, None] - x) ** 2).sum(-1)
  apart = (scores[:, None] - scores) ** 2
  expected = np.mean(np.exp(-distance) * apart, axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_reg_may_be_traced():
  """Also 0: hard labels of two classes, and NaN of more; NaN below."""
  z, counts = Z[..., :2], np.array([[2, 3], [3, 0], [0, 1], [3, 1]])
  two = lambda reg: losses.transport(z, counts, MASK, reg=reg)
  many = lambda reg: losses.transport(Z, COUNTS, MASK, reg=reg)
  swept, swept_many, alone, alone_many = run(
    lambda regs: (
      jax.vmap(two)(regs),
      jax.vmap(many)(regs),
      [two(reg) for reg in (0.0, 0.2, 1.0)],
      [many(reg) for reg in (0.2, 1.0)],
    ),
    np.float32([0.0, 0.2, 1.0, -1.0]),
  )
  np.testing.assert_allclose(swept[:3], alone, rtol=1e-5)
  np.testing.assert_allclose(swept_many[1:3], alone_many, rtol=1e-5)
  for nothing in (swept[3], swept_many[0], swept_many[3]):
    assert np.all(np.isnan(nothing))


def test_transport_of_a_bag_is_its_own():
  """Neither its neighbors nor a NaN among them decide when it is done."""
  other, reg = Z.copy(), np.float32(0.2)
  other[1], other[2] = np.nan, 50 * Z[2]
  q, beside = (np.asarray(transported()(z, reg)) for z in (Z, other))
  alone = run(
    lambda z: [
      losses.transport_labels(z[b], COUNTS[b], MASK[b], iterations=5000)
      for b in (0, 3)
    ],
    Z,
  )
  for bag, own in zip((0, 3), alone, strict=True):
    np.testing.assert_array_equal(beside[bag], q[bag])
    np.testing.assert_allclose(own, q[bag], rtol=1e-5, atol=1e-7)


def test_transport_where_a_class_is_ruled_out():
  """The others hold the counts, as if the instance were not there."""
  z = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]], np.float32)
  several = np.repeat(z[None], 3, axis=0)
  several[:, 0, 1] = [-np.inf, -1e30, -3e38]
  found, rest = run(
    lambda several: (
      losses.transport_labels(several, np.array([[2, 1]] * 3), reg=0.5),
      losses.transport_labels(z[1:], np.array([1, 1]), reg=0.5),
    ),
    several,
  )
  for q in found:
    np.testing.assert_allclose(q, [[1, 0], *rest], atol=1e-6)


# --- bad input ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: losses.dllp_l1(Z, SHARES[:2]), 'proportions must be'),
    (lambda: losses.easy_llp(Z, SHARES, PRIOR[:2]), r'prior must be \[c\]'),
    (
      lambda: losses.easy_llp_sampled(
        jax.random.split(KEY, 3), Z, SHARES, PRIOR
      ),
      'key must be one, or one for each bag',
    ),
    (lambda: losses.dsq(Z, SHARES, 0.5), r'prior must be \[c\]'),
    (lambda: losses.gen_bags(Z, COUNTS[:2], WEIGHTS), r'counts must be \[b, c'),
    (lambda: losses.gen_bags(Z, COUNTS, WEIGHTS[:, :2]), 'weights must be'),
    (lambda: losses.gen_bags(Z[0], COUNTS, WEIGHTS), 'logits must be'),
    (lambda: losses.transport(Z, COUNTS), 'counts must be >= 0 and add up'),
    (lambda: losses.transport(Z, SHARES, MASK), 'counts must be integers'),
    (lambda: losses.transport(Z, COUNTS[:1], MASK), 'counts must be'),
    (
      lambda: losses.transport(Z, COUNTS, MASK, reg=0.0),
      'reg must be positive',
    ),
    (lambda: losses.transport(Z, COUNTS, MASK, reg=-1.0), 'reg must lie in'),
    (
      lambda: losses.transport(Z, COUNTS, MASK, reg=np.ones((4, 1), 'f')),
      'reg must be a scalar',
    ),
    (
      lambda: losses.transport(Z, COUNTS, MASK, iterations=0),
      'iterations must be >= 1',
    ),
    (
      lambda: losses.similarity_smoothness(
        Z[0, :, 0], Z[0], np.ones((5, 1), 'f')
      ),
      'weights must be',
    ),
    (lambda: losses.similarity_smoothness(Z[0], Z[0]), r'scores must be \[n\]'),
    (lambda: losses.similarity_smoothness(Z[0, :, 0], Z[0, :2]), 'x must be'),
  ],
)
def test_bad_bags(call, message):
  with pytest.raises((TypeError, ValueError), match=message):
    call()
