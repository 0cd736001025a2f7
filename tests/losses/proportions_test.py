"""Losses of bags by their definitions: enumeration, bags of one, masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl import losses
from jnl.losses import _proportions as room

RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(0, 2, (4, 5, 3)), jnp.float32)
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


@every_loss
def test_what_is_masked_is_not_read(name):
  @jax.jit
  def run(z):
    return jax.value_and_grad(lambda z: OF_BAGS[name](z, MASK).sum())(z)

  value, gradient = run(Z)
  hidden = jnp.where(MASK[..., None], Z, jnp.nan)
  again, also = run(hidden)
  assert value == again
  np.testing.assert_array_equal(gradient, also)
  assert not np.any(np.asarray(gradient)[~MASK])
  assert np.any(np.asarray(gradient)[MASK])


@every_loss
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_finite_at_extremes(name, dtype):
  z = (1e4 * jnp.sign(Z)).astype(dtype)
  value, gradient = jax.value_and_grad(
    lambda z: OF_BAGS[name](z, MASK).sum(dtype='float32')
  )(z)
  assert OF_BAGS[name](z, MASK).dtype == jnp.float32
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient.astype('float32')))


def test_differences_of_proportions():
  p = np.asarray(jax.nn.softmax(Z, axis=-1))
  mean = np.stack([row[m].mean(0) for row, m in zip(p, MASK, strict=True)])
  np.testing.assert_allclose(
    losses.dllp_l1(Z, SHARES, MASK), np.abs(SHARES - mean).sum(1), rtol=1e-5
  )
  np.testing.assert_allclose(
    losses.dllp_squared(Z, SHARES, MASK),
    ((SHARES - mean) ** 2).sum(1),
    rtol=1e-5,
  )


def over_all_labels(estimate, m, classes, prior):
  """The mean over labels that are drawn from `prior`, one by one."""
  total = 0.0
  for labels in itertools.product(range(classes), repeat=m):
    share = np.bincount(labels, minlength=classes) / m
    total += np.prod(prior[list(labels)]) * float(estimate(share))
  return total


@pytest.mark.parametrize('m', [1, 3])
def test_easy_llp_is_unbiased(m):
  z = Z[0, :m]
  estimate = jax.jit(lambda share: losses.easy_llp(z, share, PRIOR))
  found = over_all_labels(estimate, m, 3, PRIOR)
  every = jnp.stack([losses.ce(z, jnp.full(m, k)) for k in range(3)], axis=-1)
  np.testing.assert_allclose(found, (every @ PRIOR).mean(), rtol=1e-5)


def test_dsq_is_unbiased_up_to_a_constant():
  def bias(z):
    p = jax.nn.softmax(z, axis=-1)
    estimate = jax.jit(lambda share: losses.dsq(z, share, PRIOR))
    found = over_all_labels(estimate, 3, 3, PRIOR)
    each = [((p - np.eye(3)[k]) ** 2).sum(-1) / 2 for k in range(3)]
    return found - float((jnp.stack(each, axis=-1) @ PRIOR).mean())

  np.testing.assert_allclose(bias(Z[0, :3]), bias(Z[1, :3]), atol=1e-5)


def test_bags_of_one_are_labels():
  z, labels = Z[0][:, None], LABELS[0]
  share = np.eye(3)[labels]
  counts = share.astype(int)
  ce = losses.ce(Z[0], labels)
  p = jax.nn.softmax(Z[0], axis=-1)
  for found in (
    losses.easy_llp(z, share, PRIOR),
    losses.easy_llp_sampled(KEY, z, share, PRIOR),
    losses.dllp(z, share),
    losses.transport(z, counts),
  ):
    np.testing.assert_allclose(found, ce, rtol=1e-5)
  np.testing.assert_allclose(
    losses.dsq(z, share, PRIOR), ((p - share) ** 2).sum(1) / 2, rtol=1e-5
  )


def test_an_instance_is_sampled_from_the_bag():
  run = jax.vmap(
    lambda key: losses.easy_llp_sampled(key, Z, SHARES, PRIOR, MASK)
  )
  draws = np.asarray(run(jax.random.split(KEY, 4000)), np.float64)
  mean = losses.easy_llp(Z, SHARES, PRIOR, MASK)
  error = draws.std(0) / np.sqrt(4000)
  assert np.all(np.abs(draws.mean(0) - mean) < 5 * error + 1e-5)
  keys = jax.random.split(KEY, 4)
  some = losses.easy_llp_sampled(keys, Z, SHARES, PRIOR, MASK)
  for bag in (0, 3):  # a key of its own
    alone = losses.easy_llp_sampled(
      keys[bag], Z[bag], SHARES[bag], PRIOR, MASK[bag]
    )
    np.testing.assert_allclose(alone, some[bag], rtol=1e-6)
  sizes = MASK.sum(1)
  assert [len(np.unique(draws[:, b])) for b in range(4)] == sizes.tolist()


def test_combinations_of_bags():
  alone = losses.gen_bags(Z, COUNTS, np.eye(4), MASK)
  p = np.where(MASK[..., None], jax.nn.softmax(Z, axis=-1), 0)
  off = p.sum(1) - COUNTS
  np.testing.assert_allclose(alone, (off**2).sum(1) / 2, rtol=1e-4)
  np.testing.assert_allclose(
    losses.gen_bags(Z, COUNTS, WEIGHTS, MASK),
    ((WEIGHTS @ off) ** 2).sum(1) / 2,
    rtol=1e-4,
  )


@pytest.mark.parametrize('reg', [0.1, 1.0])
def test_transport_holds_the_counts(reg):
  q = losses.transport_labels(Z, COUNTS, MASK, reg=reg, iterations=5000)
  np.testing.assert_allclose(q.sum(-1), MASK, atol=1e-5)
  np.testing.assert_allclose(q.sum(1), COUNTS, atol=1e-3)
  # It is the prediction, scaled by rows and columns.
  log_ratio = np.log(np.maximum(q[0], 1e-30)) - np.asarray(Z[0]) / reg
  some = COUNTS[0] > 0
  centered = log_ratio[:, some] - log_ratio[:, some].mean(1, keepdims=True)
  np.testing.assert_allclose(centered, centered[:1].repeat(5, 0), atol=1e-2)


def test_two_classes_are_a_case_of_sinkhorn():
  z = Z[..., :2]
  counts = np.array([[2, 3], [3, 0], [0, 1], [2, 2]])
  closed = losses.transport_labels(z, counts, MASK, reg=0.5)
  log_p = jax.nn.log_softmax(z, axis=-1)
  general = room._sinkhorn(log_p / 0.5, jnp.asarray(counts), MASK, 5000)
  np.testing.assert_allclose(
    closed, np.where(MASK[..., None], general, 0), atol=1e-4
  )


def test_hard_labels_are_the_top_and_the_limit():
  z, counts = Z[..., :2], np.array([[2, 3], [3, 0], [0, 1], [3, 1]])
  hard = losses.transport_labels(z, counts, MASK, reg=0.0)
  np.testing.assert_array_equal(hard.sum(1), counts)
  soft = losses.transport_labels(z, counts, MASK, reg=0.005)
  np.testing.assert_allclose(soft, hard, atol=1e-3)
  # Also where all are alike, which has no one answer.
  same = losses.transport_labels(0 * z, counts, MASK, reg=0.0)
  np.testing.assert_array_equal(same.sum(1), counts)


def test_alike_instances_should_have_alike_scores():
  x = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
  assert not np.any(losses.similarity_smoothness(jnp.ones(6), x))
  scores = jnp.asarray(RNG.random(6), jnp.float32)
  found = losses.similarity_smoothness(scores, x)
  expected = [
    np.mean(
      [
        np.exp(-np.sum((x[i] - x[j]) ** 2)) * (scores[i] - scores[j]) ** 2
        for j in range(6)
      ]
    )
    for i in range(6)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_reg_may_be_traced():
  """Also 0: hard labels of two classes, and NaN of more; NaN below."""
  z, counts = Z[..., :2], np.array([[2, 3], [3, 0], [0, 1], [3, 1]])
  regs = jnp.array([0.0, 0.2, 1.0, -1.0])
  swept = jax.jit(
    jax.vmap(lambda reg: losses.transport(z, counts, MASK, reg=reg))
  )(regs)
  alone = [
    losses.transport(z, counts, MASK, reg=reg) for reg in (0.0, 0.2, 1.0)
  ]
  np.testing.assert_allclose(swept[:3], alone, rtol=1e-5)
  many = jax.jit(
    jax.vmap(lambda reg: losses.transport(Z, COUNTS, MASK, reg=reg))
  )
  swept_many = many(regs)
  np.testing.assert_allclose(
    swept_many[1:3],
    [losses.transport(Z, COUNTS, MASK, reg=reg) for reg in (0.2, 1.0)],
    rtol=1e-5,
  )
  for nothing in (swept[3], swept_many[0], swept_many[3]):
    assert np.all(np.isnan(nothing))


def test_transport_of_a_bag_is_its_own():
  """Neither its neighbors nor a NaN among them decide when it is done."""
  run = jax.jit(
    lambda z: losses.transport_labels(z, COUNTS, MASK, iterations=5000)
  )
  q, beside = run(Z), run(Z.at[1].set(jnp.nan).at[2].multiply(50))
  for bag in (0, 3):
    np.testing.assert_array_equal(beside[bag], q[bag])
    alone = losses.transport_labels(
      Z[bag], COUNTS[bag], MASK[bag], iterations=5000
    )
    np.testing.assert_allclose(alone, q[bag], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('never', [-jnp.inf, -1e30, -3e38])
def test_transport_where_a_class_is_ruled_out(never):
  """The others hold the counts, as if the instance were not there."""
  z = jnp.array([[0.0, never], [0.0, 1.0], [0.0, -1.0]])
  q = losses.transport_labels(z, jnp.array([2, 1]), reg=0.5)
  rest = losses.transport_labels(z[1:], jnp.array([1, 1]), reg=0.5)
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
      lambda: losses.transport(Z, COUNTS, MASK, reg=jnp.ones((4, 1))),
      'reg must be a scalar',
    ),
    (
      lambda: losses.transport(Z, COUNTS, MASK, iterations=0),
      'iterations must be >= 1',
    ),
    (
      lambda: losses.similarity_smoothness(Z[0, :, 0], Z[0], jnp.ones((5, 1))),
      'weights must be',
    ),
    (lambda: losses.similarity_smoothness(Z[0], Z[0]), r'scores must be \[n\]'),
    (lambda: losses.similarity_smoothness(Z[0, :, 0], Z[0, :2]), 'x must be'),
  ],
)
def test_bad_bags(call, message):
  with pytest.raises((TypeError, ValueError), match=message):
    call()
