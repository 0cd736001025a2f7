"""Noise that depends on the example: the equations, and what they refuse."""

import functools
from unittest import mock

from fixture_programs import compiled
import jax
import numpy as np
import pytest

from jnl import noise
from jnl.noise import _inputs

KEY = jax.random.key(0)
C, N = 4, 2000
LABELS = np.arange(N) % C
IMAGES = np.random.default_rng(0).normal(size=(N, 3, 2)).astype(np.float32)
ETA = np.random.default_rng(1).dirichlet(np.ones(C), N).astype(np.float32)
BINARY_ETA = np.random.default_rng(2).uniform(size=N).astype(np.float32)


@functools.cache
def part_dependent(shared=False):
  """draw(images, rate)."""
  return compiled(
    lambda x, rate: noise.part_dependent(KEY, x, LABELS, C, rate, shared=shared)
  )


@pytest.mark.parametrize('shared', [False, True])
def test_part_dependent_equation(shared):
  rng = np.random.default_rng(0)
  n, f = 9, 6
  x, q = rng.normal(size=(n, f)), rng.uniform(size=n)
  labels = rng.integers(0, C, n)
  weights = rng.normal(size=(f, C) if shared else (C, f, C))
  probs = compiled(noise.part_dependent_probs)(x, labels, q, weights)
  for i, y in enumerate(labels):
    scores = x[i] @ (weights if shared else weights[y])
    scores[y] = -np.inf
    expected = np.exp(scores) / np.exp(scores).sum() * q[i]
    expected[y] = 1 - q[i]
    np.testing.assert_allclose(probs[i], expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)


def test_part_dependent_blocks_do_not_matter():
  weights = np.random.default_rng(0).normal(size=(C, 6, C)).astype(np.float32)
  args = IMAGES[:50], LABELS[:50], np.full(50, 0.3, np.float32), weights
  found = []
  for block in (_inputs.BLOCK, 7 * 6 * C, 1):  # 7 rows, one short
    run = compiled(lambda *args: noise.part_dependent_probs(*args))
    with mock.patch.object(_inputs, 'BLOCK', block):
      found.append(run(*args))
  whole, *others = found
  for other in others:
    np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('rate', [0.2, 0.4, 0.6])
def test_part_dependent_flips_about_the_rate(rate):
  draw = part_dependent()(IMAGES, rate)
  own = draw.probs[np.arange(N), LABELS]
  assert 1 - own.mean() == pytest.approx(rate, abs=0.02)
  # 2000 labels: four standard deviations more.
  assert draw.flipped.mean() == pytest.approx(rate, abs=0.065)


def test_weights_are_shared_or_of_each_class():
  """Shared ones give two classes the same order of the others."""
  x = np.broadcast_to(IMAGES[:1], IMAGES.shape)
  for shared, same in ((True, True), (False, False)):
    draw = part_dependent(shared)(x, 0.5)
    first, second = draw.probs[:2]  # of classes 0 and 1
    assert np.isclose(first[2] / first[3], second[2] / second[3]) == same


def test_integer_images_are_read_as_they_are():
  images = np.random.default_rng(0).integers(0, 4, (N, 6)).astype(np.uint8)
  weights = np.full((C, 6, C), 0.1, np.float32)
  args = LABELS, np.full(N, 0.5, np.float32), weights
  run = compiled(noise.part_dependent_probs)
  np.testing.assert_array_equal(
    run(images, *args), run(images.astype(np.float32), *args)
  )


@pytest.mark.parametrize('scale', [0.0, 1e30])
def test_extreme_inputs_give_probabilities(scale):
  draw = part_dependent()(IMAGES * np.float32(scale), 0.4)
  assert np.isfinite(draw.probs).all()
  np.testing.assert_allclose(draw.probs.sum(1), 1, rtol=1e-6)


def test_truncated_rates():
  run = compiled(lambda r: noise.truncated_rates(KEY, 4000, r))
  rates = run(0.4)
  assert rates.mean() == pytest.approx(0.4, abs=0.01)
  assert rates.std() == pytest.approx(0.1, abs=0.01)
  for rate, mean in ((0.0, 0.08), (1.0, 0.92)):
    rates = run(rate)
    assert rates.min() >= 0
    assert rates.max() <= 1
    assert rates.mean() == pytest.approx(mean, abs=0.01)
  with pytest.raises(ValueError, match='rate'):
    noise.truncated_rates(KEY, 5, 1.2)
  with pytest.raises(ValueError, match='std'):
    noise.truncated_rates(KEY, 5, 0.2, std=0.0)


def test_truncated_rates_of_many_means():
  rates = lambda r: noise.truncated_rates(KEY, 5, r)
  run = compiled(lambda two: (jax.vmap(rates)(two), rates(0.4)))
  traced, one = run(np.float32([0.2, 0.4]))
  np.testing.assert_allclose(traced[1], one, rtol=1e-5)


@pytest.mark.parametrize(
  ('change', 'error', 'name'),
  [
    ({'x': np.full((3, 2), np.nan)}, ValueError, 'x must be finite'),
    ({'x': np.full((3, 2), np.inf)}, ValueError, 'x must be finite'),
    ({'x': np.ones((2, 2))}, ValueError, 'x has shape'),
    ({'x': np.float32(1)}, ValueError, 'x has shape'),
    ({'labels': np.array([0, 1, 4])}, ValueError, 'labels'),
    ({'labels': np.array([0.0, 1, 2])}, TypeError, 'labels'),
    ({'labels': np.array([[0], [1], [2]])}, ValueError, 'labels'),
    ({'flip_rates': np.full(3, 1.5)}, ValueError, 'flip_rates'),
    ({'flip_rates': np.full(3, np.nan)}, ValueError, 'flip_rates'),
    ({'flip_rates': np.full(2, 0.5)}, ValueError, 'flip_rates'),
    ({'weights': np.ones((2, 2, 4))}, ValueError, 'weights'),
    ({'weights': np.ones((3, 4))}, ValueError, 'weights'),
  ],
)
def test_part_dependent_checks_its_input(change, error, name):
  arguments = {
    'x': np.ones((3, 2)),
    'labels': np.array([0, 1, 2]),
    'flip_rates': np.full(3, 0.5),
    'weights': np.ones((4, 2, 4)),
    **change,
  }
  with pytest.raises(error, match=name):
    noise.part_dependent_probs(**arguments)
  if not change.keys() & {'flip_rates', 'weights'}:
    with pytest.raises(error, match=name):
      noise.part_dependent(KEY, arguments['x'], arguments['labels'], 4, 0.2)


def test_part_dependent_checks_its_numbers():
  for wrong in ({'num_classes': 1}, {'rate': -1.0}, {'std': -1.0}):
    arguments = {'num_classes': 2, 'rate': 0.2, 'std': 0.1, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
      noise.part_dependent(KEY, np.ones((2, 2)), np.zeros(2, int), **arguments)


KINDS = 1, 2, 3


@functools.cache
def of_kinds():
  """{kind: (probs, labels, rates of two classes, of equal posteriors)}."""
  even = np.full((1, 2), 0.5)

  @compiled
  def run(eta):
    return {
      kind: (
        noise.pmd_probs(eta, kind=kind, factor=1.2),
        noise.pmd(KEY, LABELS, eta, kind=kind, factor=1.2).labels,
        noise.binary_pmd_rates(BINARY, kind=kind),
        noise.pmd_probs(even, kind=kind, factor=1.0),
      )
      for kind in KINDS
    }

  return run(ETA)


@pytest.mark.parametrize('kind', KINDS)
def test_pmd_has_mass_on_the_likeliest_two(kind):
  probs, labels, *_ = of_kinds()[kind]
  order = np.argsort(-ETA, axis=1)
  assert (np.take_along_axis(probs, order, 1)[:, 2:] == 0).all()
  np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)
  top = np.take_along_axis(ETA.astype(float), order, 1)
  d = top[:, 0] - top[:, 1]
  keep = {1: 0.5 + 0.5 * d**2, 2: d**3, 3: (d + d**2 + d**3) / 3}[kind] / 1.2
  own = np.take_along_axis(probs, order, 1)[:, 0]
  np.testing.assert_allclose(own, keep, rtol=1e-4, atol=1e-6)
  drawn = labels[:, None]
  assert ((drawn == order[:, :1]) | (drawn == order[:, 1:2])).all()


SURE = np.array([[1.0, 0.0, 0.0]])


@pytest.mark.parametrize('kind', KINDS)
def test_pmd_factors_that_are_too_small(kind):
  np.testing.assert_array_equal(
    noise.pmd_probs(SURE, kind=kind, factor=1.0), SURE
  )
  for factor in (0.9, 0.0, -1.0, np.nan):
    with pytest.raises(ValueError, match='factor'):
      noise.pmd_probs(SURE, kind=kind, factor=factor)


def test_pmd_factors_that_are_too_small_inside_jit():
  run = compiled(
    lambda g: [noise.pmd_probs(SURE, kind=kind, factor=g) for kind in KINDS]
  )
  for traced in run(0.9):
    np.testing.assert_array_equal(traced, SURE)


def test_posteriors_that_sum_to_a_bit_more_are_no_factor_too_small():
  eta = np.array([[1.0005, -1e-7, 0.0]])
  probs = noise.pmd_probs(eta, kind=1, factor=1.0)
  np.testing.assert_array_equal(probs, [[1, 0, 0]])


def test_pmd_of_equal_posteriors():
  expected = {1: [0.5, 0.5], 2: [0, 1], 3: [0, 1]}
  for kind, probs in expected.items():
    np.testing.assert_array_equal(of_kinds()[kind][3], [probs])


def test_pmd_checks_its_input():
  for kind in (0, 4):
    with pytest.raises(ValueError, match='kind'):
      noise.pmd_probs(ETA, kind=kind, factor=1.2)
    with pytest.raises(ValueError, match='kind'):
      noise.binary_pmd_rates(BINARY_ETA, kind=kind)
  for eta in (ETA * 2, ETA - 0.1, ETA[:, :1], ETA[0], ETA * np.nan):
    with pytest.raises(ValueError, match='eta'):
      noise.pmd_probs(eta, kind=1, factor=2.0)
  with pytest.raises(ValueError, match='labels'):
    noise.pmd(KEY, LABELS[:3], ETA, kind=1, factor=1.2)


BINARY = np.array([0.0, 0.2, 0.5, 0.9, 1.0])


def test_binary_pmd():
  expected = {
    1: [0, 0.036, 0, 0.288, 0.5],
    2: [0, 0.2, 0.5, 0.1, 0],
    3: [0, 0.32, 0.5, 0.18, 0],
  }
  for kind, rates in expected.items():
    np.testing.assert_allclose(of_kinds()[kind][2], rates, atol=1e-6)
  labels = LABELS // 2
  draw = compiled(lambda y: noise.binary_pmd(KEY, y, BINARY_ETA, kind=3))(
    labels
  )
  assert not draw.flipped[labels == 0].any()
  assert draw.flipped[labels == 1].any()


def test_binary_pmd_checks_its_input():
  for wrong in ([1.1], [-0.1], [np.nan]):
    with pytest.raises(ValueError, match='eta'):
      noise.binary_pmd_rates(wrong, kind=1)
  with pytest.raises(ValueError, match='eta'):
    noise.binary_pmd(KEY, [0, 1], BINARY_ETA, kind=1)
  with pytest.raises(ValueError, match='labels'):
    noise.binary_pmd(KEY, [0, 2], [0.5, 0.5], kind=1)
