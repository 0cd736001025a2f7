"""Mixtures against EM in numpy, and what people hand in."""

import functools

from fixture_programs import compiled
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from jnl import select
from jnl.select import _mixtures

N, C = 64, 4
ROUNDS = 30
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(N) % C).astype(np.int32)
NOISY = RNG.random(N) < 0.3
LOSSES = np.where(NOISY, RNG.normal(4, 0.6, N), 0.1 + RNG.gamma(2, 0.15, N))
LOSSES = (LOSSES + 0.3 * LABELS).astype(np.float32)


# --- data sets of one shape --------------------------------------------------


def made(change=lambda values, labels, mask, weights: None):
  """(values, labels, mask, weights), of which something is changed."""
  arrays = LOSSES.copy(), LABELS.copy(), np.ones(N, bool), np.ones(N, 'f4')
  change(*arrays)
  return arrays


def outside(values, labels, mask, weights):
  mask[::5], weights[1::5] = False, 0
  values[::5], values[1::5] = np.nan, -np.inf
  labels[::5], labels[1::5] = -1, 255


def weighted(values, labels, mask, weights):
  weights[:] = RNG.integers(1, 4, N)


def infinite(values, labels, mask, weights):
  values[:2], values[2] = np.inf, -np.inf


def lacking(values, labels, mask, weights):
  """Class 0 has no example that counts, class 1 has three."""
  mask[labels == 0] = False
  mask[np.flatnonzero(labels == 1)[3:]] = False


def level(values, labels, mask, weights):
  """The losses of class 2 are all the same."""
  values[labels == 2] = 0.5


def equal(values, labels, mask, weights):
  values[:] = 0.7


def nothing(values, labels, mask, weights):
  mask[:] = False


def single(values, labels, mask, weights):
  mask[1:] = False


def bad(values, labels, mask, weights):
  """Only inside jit: outside it is refused."""
  values[0], labels[1], labels[2] = np.nan, -1, 255


CHANGES = [
  outside,
  weighted,
  infinite,
  lacking,
  level,
  equal,
  nothing,
  single,
  bad,
]
DATA = {'plain': made(), **{f.__name__: made(f) for f in CHANGES}}
GAUSS = {'num_iter': ROUNDS, 'tol': 0.0}


# --- EM in numpy -------------------------------------------------------------


def em(x, weights):
  """Means, variances and shares of two Gaussians, after ROUNDS rounds."""
  m, v, w = np.array([0.0, 1]), np.full(2, 1 / 25), np.full(2, 0.5)
  for _ in range(ROUNDS):
    r = density(x, m, v, w)
    r *= (weights / r.sum(0))[None]
    n = r.sum(1)
    m = r @ x / n
    v = (r * (x - m[:, None]) ** 2).sum(1) / n + 5e-4
    w = n / n.sum()
  order = m.argsort()
  return m[order], v[order], w[order]


def density(x, m, v, w):
  m, v, w = (a[:, None] for a in (m, v, w))
  return w * np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(v)


def counted(name):
  """Scaled values, labels, weights of the rows that count, and which do."""
  values, labels, mask, weights = DATA[name]
  rows = mask & (weights > 0) & np.isfinite(values)
  x = values[rows].astype(np.float64)
  low, high = x.min(), x.max()
  return (x - low) / (high - low), labels[rows], weights[rows], rows


# --- one program -------------------------------------------------------------


@functools.cache
def found():
  """By name of the data set: what all functions say."""

  @compiled
  @jax.vmap
  def run(values, labels, mask, weights):
    rows = {'mask': mask, 'weights': weights}
    one = select.gaussian_mixture(values, **rows, **GAUSS)
    own = select.gaussian_mixture_by_class(values, labels, C, **rows, **GAUSS)
    beta = select.beta_mixture(values, **rows)
    asked = {
      'p': select.clean_probability(one, values, mask=mask),
      'posterior': select.clean_probability(
        one, values, mask=mask, monotone=False
      ),
      'own': select.clean_probability(own, values, labels, mask=mask),
      'beta': select.clean_probability(beta, values, mask=mask),
    }
    return one, own, beta, asked

  out = run(*map(np.stack, zip(*DATA.values(), strict=True)))
  return {
    name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(DATA)
  }


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('name', ['plain', 'outside', 'weighted', 'infinite'])
def test_em(name):
  x, labels, weights, rows = counted(name)
  one, own, _, asked = found()[name]
  m, v, w = em(x, weights)
  close(one.means, m)
  close(one.variances, v)
  close(one.weights, w)
  p = density(x, m, v, w)
  close(asked['posterior'][rows], p[0] / p.sum(0))
  assert not one.collapsed
  for k in range(C):
    of = labels == k
    m, v, w = em(x[of], weights[of])
    close(own.means[k], m)
    close(own.weights[k], w)
  assert not own.fallback.any()
  assert not own.collapsed.any()


def test_it_finds_the_noisy_ones():
  *_, asked = found()['plain']
  for name, least in {'p': 0.98, 'own': 0.98, 'beta': 0.95}.items():
    assert np.mean((asked[name] > 0.5) == ~NOISY) >= least, name


@pytest.mark.parametrize('name', ['plain', 'weighted', 'lacking'])
def test_no_larger_loss_is_cleaner(name):
  values, labels, mask, _ = DATA[name]
  asked = found()[name][-1]
  for key in ('p', 'beta'):
    p = asked[key][mask][values[mask].argsort()]
    assert np.all(np.diff(p) <= 1e-6), key
    assert np.all((p >= 0) & (p <= 1))
  for k in range(C):
    of = mask & (labels == k)
    assert np.all(np.diff(asked['own'][of][values[of].argsort()]) <= 1e-6)


def test_where_the_posterior_turns():
  """A wide component is likely on both sides of a narrow one."""
  two = lambda *x: jnp.array(x)
  rest = two(0.5, 0.5), jnp.array(0.0), jnp.array(1.0), *[jnp.array(False)] * 3
  gauss = select.GaussianMixture(two(0.4, 0.6), two(0.001, 0.1), *rest)
  beta = select.BetaMixture(two(2.0, 6.0), two(2.0, 3.0), *rest)
  dips = select.BetaMixture(two(3.0, 1.0), two(9.0, 1.5), *rest)
  x = np.linspace(0, 1, 101).astype(np.float32)

  @compiled
  def run(x):
    return [
      [select.clean_probability(m, x, monotone=hold) for hold in (True, False)]
      for m in (gauss, beta, dips)
    ]

  for held, free in run(x):
    assert np.any(np.diff(free) > 1e-3)
    assert np.all(np.diff(held) <= 1e-6)
    far = np.abs(held - free) > 1e-4
    assert far.any()
    # Held at its extreme, on one side; elsewhere they are the same.
    end = free.min() if far[-1] else free.max()
    np.testing.assert_allclose(held[far], end, atol=2e-3)
    assert far[-1] != far[0]


def test_infinite_values():
  *_, asked = found()['infinite']
  for p in asked.values():
    assert p[:3].tolist() == [0, 0, 1]


def test_a_class_that_lacks_examples():
  one, own, _, asked = found()['lacking']
  assert own.fallback.tolist() == [True, True, False, False]
  assert not own.collapsed.any()
  close(own.means[0], one.means)
  close(own.variances[1], one.variances)
  assert np.any(np.abs(own.means[2] - one.means) > 0.01)
  _, labels, mask, _ = DATA['lacking']
  close(asked['own'][labels == 1], asked['p'][labels == 1])
  assert np.all(asked['own'][~mask] == 0)
  one, own, *_ = found()['level']
  assert own.fallback.tolist() == [False, False, True, False]


@pytest.mark.parametrize('name', ['equal', 'nothing', 'single'])
def test_nothing_separates(name):
  """Everybody is clean, and the result says why."""
  one, own, beta, asked = found()[name]
  mask = DATA[name][2]
  for mixture in (one, own, beta):
    assert mixture.collapsed.all()
    assert all(np.isfinite(x).all() for x in mixture)
  assert own.fallback.all()
  for p in asked.values():
    np.testing.assert_array_equal(p, mask)


def test_what_is_bad_inside_jit():
  one, own, beta, asked = found()['bad']
  for mixture in (one, own, beta):
    assert all(np.isfinite(x).all() for x in mixture)
  assert np.isnan(asked['own'][:3]).all()
  assert np.isnan(asked['p'][0])
  assert np.isfinite(asked['own'][3:]).all()


CALLS = {
  'values must be \\[n\\]': lambda: select.gaussian_mixture(LOSSES[:, None]),
  'not empty': lambda: select.beta_mixture(LOSSES[:0]),
  'values must be floating': lambda: select.gaussian_mixture(LABELS),
  'mask must be bool': lambda: select.gaussian_mixture(LOSSES, mask=LABELS),
  'mask must be \\[n\\]': lambda: select.gaussian_mixture(
    LOSSES, mask=np.ones([N, 1], bool)
  ),
  'weights must lie': lambda: select.beta_mixture(LOSSES, weights=-LOSSES),
  'NaN, as in row 3': lambda: select.gaussian_mixture(
    np.where(np.arange(N) == 3, np.nan, LOSSES)
  ),
  'labels must lie': lambda: select.gaussian_mixture_by_class(
    LOSSES, LABELS - 1, C
  ),
  'labels must be \\[n\\]': lambda: select.beta_mixture_by_class(
    LOSSES, LABELS[:, None], C
  ),
  'num_classes': lambda: select.gaussian_mixture_by_class(LOSSES, LABELS, 0),
  'num_iter': lambda: select.gaussian_mixture(LOSSES, num_iter=0),
  'tol': lambda: select.beta_mixture(LOSSES, tol=-1.0),
  'floor': lambda: select.gaussian_mixture(LOSSES, floor=0.0),
  'labels are needed': lambda: select.clean_probability(
    found()['plain'][1], LOSSES
  ),
  'labels are for': lambda: select.clean_probability(
    found()['plain'][0], LOSSES, LABELS
  ),
}


@pytest.mark.parametrize('message', CALLS)
def test_bad_arguments_are_named(message):
  with pytest.raises((ValueError, TypeError), match=message):
    CALLS[message]()


def test_dtypes():
  shape = lambda dtype: jax.ShapeDtypeStruct((N,), dtype)
  half = jax.eval_shape(select.gaussian_mixture, shape(jnp.bfloat16))
  assert half.means.dtype == jnp.float32
  assert half.means.shape == (2,)
  by_class = functools.partial(select.gaussian_mixture_by_class, num_classes=C)
  own = jax.eval_shape(by_class, shape(jnp.float16), shape(jnp.uint8))
  assert own.means.shape == (C, 2)
  assert own.low.shape == ()
  assert own.converged.shape == own.collapsed.shape == (C,)


@pytest.mark.slow
@pytest.mark.parametrize('family', ['gaussian', 'beta'])
def test_on_eight_devices(family):
  """In jit, and under the checked shard_map: as on one."""
  own = getattr(select, f'{family}_mixture_by_class')

  def fit(values, labels, mask, weights):
    mixture = own(values, labels, C, mask=mask, weights=weights, tol=0.0)
    p = select.clean_probability(mixture, values, labels, mask=mask)
    return tuple(mixture), p

  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  split, whole = PartitionSpec('data'), PartitionSpec()
  mapped = jax.shard_map(
    fit, mesh=mesh, in_specs=split, out_specs=(whole, split)
  )
  placed = jax.device_put(DATA['lacking'], NamedSharding(mesh, split))
  program = jax.jit(fit).lower(*placed).compile()
  expected = jax.jit(fit)(*DATA['lacking'])
  for other in (jax.jit(mapped)(*placed), program(*placed)):
    jax.tree.map(close, other, expected)
  # One all-reduce in a round of EM, of the classes and of all.
  parts = [p for p in program.as_text().split('\n\n') if ' all-' in p]
  assert [p.count(' all-reduce(') for p in parts if 'ENTRY' not in p] == [1, 1]


@pytest.mark.slow
def test_classes_of_any_size_are_summed_alike():
  """Rows in groups of one class: sums by class are those of numpy."""
  rng = np.random.default_rng(1)
  for n, classes in ((7, 3), (97, 5), (1000, 2), (4096, 40)):
    labels = (rng.random(n) ** 3 * classes).astype(np.int32)
    values = rng.random(n).astype(np.float32)
    rows = rng.integers(0, 3, n).astype(np.float32)

    @jax.jit
    def sums(values, rows, labels, classes=classes):
      cells = _mixtures._cells(values, rows, labels, classes)
      parts = [cells.rows, cells.rows * cells.values]
      return _mixtures._total(cells, classes, parts)

    for found_, part in zip(
      sums(values, rows, labels), (rows, rows * values), strict=True
    ):
      expected = np.bincount(labels, part, minlength=classes)
      np.testing.assert_allclose(found_, expected, rtol=1e-5)
