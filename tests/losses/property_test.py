"""Properties that every per-example loss has, one suite over all of them.

Most run op by op on one shape, [64, 4]: its small kernels are compiled once and
shared by all losses. Each loss is compiled as a whole once.
"""

import functools
import inspect

from fixture_losses import close, draw, slope, value_and_slope
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jnl import losses
from jnl.base import global_mean


def symmetric(c, rate=0.3):
  return (1 - rate) * np.eye(c) + rate * (1 - np.eye(c)) / max(c - 1, 1)


# Every loss as a function of (logits, labels). Further arrays are made from
# these row by row, so that the properties below stay true.


def truncated_gce(z, y, **hp):
  return losses.truncated_gce(z, y, jnp.full(z.shape[:-1], 0.5), **hp)


def gjs(z, y, **hp):
  return losses.gjs(jnp.stack([z, z / 2]), y, **hp)


def gjs_of_mean(z, y, **hp):
  return losses.gjs_of_mean(jnp.stack([z, z / 2]), y, **hp)


def dynamic_bootstrap(z, y):
  return losses.dynamic_bootstrap(z, y, jax.nn.softmax(z), 0.3)


def mixup(z, y):
  return losses.mixup(z, y, y, 0.3)


def sop(z, y, **hp):
  return losses.sop(
    z, y, jnp.full(z.shape[:-1], 0.4), jnp.full(z.shape, 0.3), **hp
  )


def peer(z, y, **hp):
  return losses.peer(z, y, z / 2, y, **hp)


def f_divergence(z, y, **hp):
  return losses.f_divergence(z, y, z / 2, y, **hp)


def forward(z, y):
  return losses.forward(z, y, symmetric(z.shape[-1]))


def backward(z, y):
  return losses.backward(z, y, symmetric(z.shape[-1]))


def importance_reweight(z, y):
  return losses.importance_reweight(z, y, symmetric(z.shape[-1]))


def t_revision(z, y):
  c = z.shape[-1]
  return losses.t_revision(z, y, symmetric(c), 0.01 * jnp.ones([c, c]))


CLASSWISE = [
  losses.ce,
  losses.gls,
  losses.label_smoothing,
  losses.bootstrap_soft,
  losses.bootstrap_hard,
  losses.negative_learning,
  losses.mae,
  losses.rce,
  losses.sce,
  losses.gce,
  losses.taylor_ce,
  losses.agce,
  losses.aul,
  losses.ael,
  losses.nce,
  losses.nmae,
  losses.nrce,
  losses.ngce,
  losses.focal,
  losses.nfl,
  losses.nnce,
  losses.nnfl,
  losses.nce_rce,
  losses.nce_mae,
  losses.nfl_rce,
  losses.nfl_mae,
  losses.ngce_rce,
  losses.ngce_mae,
  losses.nce_agce,
  losses.nce_aul,
  losses.nce_ael,
  losses.anl_ce,
  losses.anl_fl,
  losses.cores2,
  truncated_gce,
  dynamic_bootstrap,
  mixup,
  forward,
  backward,
  importance_reweight,
  t_revision,
]
# `peer` and `f_divergence` are sums of two expected losses; the others compare
# distributions.
OTHERS = [
  losses.js,
  losses.anorm,
  losses.bi_tempered,
  gjs,
  gjs_of_mean,
  sop,
  peer,
  f_divergence,
]
LOSSES = CLASSWISE + OTHERS
PUBLIC_NOT_PER_EXAMPLE = {
  # functions of logits without labels, or not of the form [..., c] -> [...]
  'clip_logits',
  'cores2_sieve',
  'dmi',
  'elr_penalty',
  'elr_plus_labels',
  'elr_targets',
  'kl_consistency',
  'mean_entropy_gap',
  'prior_mean_kl',
  'sop_probs',
  'tempered_log_softmax',
  'truncated_gce_weights',
  # of candidate sets: losses_partial_test
  'cc',
  'lws',
  'lws_confidence',
  'proden',
  'proden_confidence',
  'rcr_confidence',
  'rule_out',
  'uniform_candidates',
  # of bags: automata_counts_test, losses_proportions_test
  'count_nll',
  'count_nll_joint',
  'count_nll_one_versus_rest',
  'dllp',
  'dllp_l1',
  'dllp_squared',
  'dsq',
  'easy_llp',
  'easy_llp_sampled',
  'gen_bags',
  'similarity_smoothness',
  'transport',
  'transport_labels',
  # of a network: losses_proportions_test
  'vat',
}
# Gradients that are meant to differ from the value's: see `detach` and beta.
DETACHED = {'nfl', 'nnfl', 'nfl_rce', 'nfl_mae', 'anl_fl'}
DETACHED |= {'importance_reweight', 'dynamic_bootstrap'}


@functools.cache
def program(loss):
  """The losses, their weighted mean and its slope: float32 on [2, 32, 4].

  Takes and gives [64, ...]; compiled once for all tests.
  """

  @jax.jit
  def run(z, y, weights):
    def mean(z):
      values = loss(z, y)
      return global_mean(values, weights), values

    (mean, values), got = jax.value_and_grad(mean, has_aux=True)(z)
    return mean, values, got

  def flat(z, y, weights):
    shaped = (a.reshape(2, 32, *a.shape[1:]) for a in (z, y, weights))
    mean, values, got = map(np.asarray, run(*shaped))
    return mean, values.reshape(64), got.reshape(64, 4)

  return flat


def compiled(loss):
  """Like `value_and_slope`; 64 times a mean's slope is exact."""

  def run(z, y):
    _, values, got = program(loss)(z, y, np.ones(64, np.float32))
    return values, got * np.float32(64)

  return run


every_loss = pytest.mark.parametrize('loss', LOSSES, ids=lambda f: f.__name__)


def test_list_is_complete():
  """A new loss has to be added above, or be named as not per example."""
  public = {
    name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))
  }
  assert public == {f.__name__ for f in LOSSES} | PUBLIC_NOT_PER_EXAMPLE


def extremes(magnitude, c=4):
  """Rows that are hard for a loss, with every label for each."""
  rows = np.stack(
    [
      np.zeros(c),
      np.full(c, magnitude),
      np.full(c, -magnitude),
      np.where(np.arange(c) == 0, magnitude, 0),
      np.where(np.arange(c) == 0, -magnitude, 0),
      np.where(np.arange(c) == 1, magnitude, -magnitude),
      np.where(np.arange(c) < 2, magnitude, -magnitude),
      np.linspace(-magnitude, magnitude, c),
    ]
  )
  return np.repeat(rows, c, axis=0), np.tile(np.arange(c), len(rows))


@every_loss
@pytest.mark.parametrize(
  'kind',
  [
    'float16 hard',
    'bfloat16 hard',
    'float32 hard',
    'float32 soft',
    'float64 hard',
    'float64 soft',
  ],
)
def test_finite_at_extremes_and_dtype(loss, kind):
  dtype, labels = kind.split()
  with jax.enable_x64(dtype == 'float64'):
    rows = [extremes(30.0), extremes(1e4)]
    z, y = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
    z, y = jnp.asarray(z, dtype), jnp.asarray(y)
    if labels == 'soft':
      y = (0.75 * jax.nn.one_hot(y, 4) + 0.0625).astype(dtype)
    run = (
      compiled(loss)
      if kind == 'float32 hard'
      else (functools.partial(value_and_slope, loss))
    )
    value, slope = run(z, y)
    assert value.dtype == jnp.promote_types(dtype, jnp.float32)
    assert slope.dtype == z.dtype
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope.astype(value.dtype)))


@every_loss
def test_finite_at_1e30(loss):
  """All of them happen to be, not only functions of log_softmax."""
  rows = [extremes(1e30), extremes(1e16)]
  z, y = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
  value, slope = compiled(loss)(jnp.asarray(z, jnp.float32), jnp.asarray(y))
  assert np.all(np.isfinite(value))
  assert np.all(np.isfinite(slope))


@every_loss
def test_gradient_survives_where_the_label_is_hopeless(loss):
  """p_y = e^-40: the value still falls when the logit of y rises."""
  z, y = jnp.zeros([64, 4]).at[:, 1].set(40), jnp.zeros(64, int)
  bounded = loss.__name__ in {
    'nnce',  # clipped by definition
    'nnfl',
    'negative_learning',  # wants p_y = 0
    'peer',  # here the other term has the same label
    'f_divergence',
    'importance_reweight',  # weight p_y
    't_revision',
    'bi_tempered',
  }
  own = compiled(loss)(z, y)[1][0, 0]
  assert own < 0 or bounded, own


@every_loss
def test_shift_of_logits_changes_nothing(loss):
  """Exact in binary, so that only a careless log-softmax can lose digits."""
  if loss.__name__ in ('gjs', 'gjs_of_mean', 'peer', 'f_divergence'):
    shift = 2048.0  # they halve the logits
  else:
    shift = 1024.0
  z, y = draw()
  z = jnp.round(z * 16) / 16
  np.testing.assert_allclose(
    loss(z + shift, y), loss(z, y), rtol=2e-6, atol=1e-6
  )


@every_loss
def test_permutation_of_classes(loss):
  """An exchange and a turn of the classes: they generate all permutations."""
  z, y = map(np.asarray, draw())
  value, got = compiled(loss)(z, y)
  for order in (np.array([1, 0, 2, 3]), np.array([1, 2, 3, 0])):
    moved = np.argsort(order)[y].astype(y.dtype)
    value_moved, got_moved = compiled(loss)(z[:, order], moved)
    close(value_moved, value, rtol=1e-4, atol=1e-5)
    close(got_moved, got[:, order], rtol=1e-3, atol=1e-5)


@every_loss
def test_jit_leading_dimensions_and_masked_bad_labels(loss):
  """One compiled program, on [2, 32, 4], against the ops on [64, 4].

  Inside jit a bad label makes the loss NaN; `global_mean` with weight 0 drops
  it, and no gradient is touched.
  """
  z, y = map(np.asarray, draw())
  weights = (np.arange(64) >= 4).astype(np.float32)
  mean, values, got = program(loss)(z, y, weights)
  expected, expected_slope = value_and_slope(loss, jnp.asarray(z), y)
  close(values, expected)
  close(mean, np.mean(values[4:]))
  close(got[4:] * 60, expected_slope[4:], rtol=1e-4, atol=1e-5)
  assert not np.any(got[:4])

  bad = np.concatenate([np.array([-1, 4, 2**31 - 1], y.dtype), y[3:]])
  mean_bad, values, got_bad = program(loss)(z, bad, weights)
  assert np.isnan(values[:3]).all()
  assert np.isfinite(values[3:]).all()
  np.testing.assert_array_equal(mean_bad, mean)
  np.testing.assert_array_equal(got_bad, got)


@every_loss
def test_rows_are_independent_and_may_be_none(loss):
  z, y = draw()
  close(jax.vmap(loss)(z, y), loss(z, y))  # the loss of logits [c]
  empty, empty_slope = jax.eval_shape(
    functools.partial(value_and_slope, loss), z[:0], y[:0]
  )
  assert empty.shape == (0,)
  assert empty_slope.shape == (0, 4)


@every_loss
def test_label_out_of_range_raises_when_it_can_be_seen(loss):
  z, y = map(np.asarray, draw())
  for bad in (np.int32(-1), np.int32(4), np.int8(-1), np.uint8(255)):
    labels = y.astype(bad.dtype)
    labels[0] = bad
    with pytest.raises(ValueError, match='labels'):
      loss(z, labels)


@every_loss
def test_malformed_inputs_are_named(loss):
  z, y = map(np.asarray, draw())
  soft = np.full([64, 4], 0.25, np.float32)
  off = [soft.copy() for _ in range(4)]
  off[0][5] = [1, 1, 0, 0]
  off[1][5] = [-1, 2, 0, 0]
  off[2][5] = np.nan
  off[3][5] *= 0.99
  for error, message, labels in (
    (TypeError, 'labels.*integer.*float32', y.astype(np.float32)),
    (TypeError, 'labels.*bool', y > 1),
    (TypeError, r'labels.*astype\(float\).*int', np.eye(4, dtype=int)[y]),
    (TypeError, r'labels.*astype\(float\).*bool', np.eye(4, dtype=bool)[y]),
    (TypeError, 'labels must be an array of numbers', y.astype(str)),
    (ValueError, 'labels', y[:-1]),
    (ValueError, 'labels', np.eye(5)[y]),
    (ValueError, 'labels', y[:, None, None]),
    (ValueError, r'use labels\[..., 0\]', y[:, None]),
    *((ValueError, 'labels.*one; row 5 .*sums to', bad) for bad in off),
  ):
    with pytest.raises(error, match=message):
      loss(z, labels)
  loss(z, soft * np.float32(1.0009))  # loose: they are averaged and rounded
  with pytest.raises(ValueError, match='logits'):
    loss(z[:, :1], jnp.zeros_like(y))
  if loss not in (gjs, gjs_of_mean):  # halving made floats of them above
    with pytest.raises(TypeError, match='logits'):
      loss(jnp.zeros([64, 4], jnp.int32), y)


def test_labels_of_other_losses_are_looked_at_too():
  z, y = map(np.asarray, draw())
  with pytest.raises(ValueError, match=r'logits.*lack the classes'):
    losses.ce(z[:, 0], y)
  off = np.ones([64, 4], np.float32)
  for name, loss in (
    ('guesses', lambda t: losses.dynamic_bootstrap(z, y, t, 0.3)),
    ('partners', lambda t: losses.mixup(z, y, t, 0.3)),
    ('peer_labels', lambda t: losses.peer(z, y, z, t)),
    ('peer_labels', lambda t: losses.f_divergence(z, y, z, t)),
    ('confidence', lambda t: losses.proden(z, t)),
    ('prior', lambda t: losses.cores2(z, y, prior=t[0])),
    ('prior', lambda t: losses.prior_mean_kl(z, np.ones(64), prior=t[0])),
  ):
    with pytest.raises(ValueError, match=f'{name} must have rows'):
      loss(off)
  # Rounded to bfloat16 a row may be off by more than 1e-3.
  t = np.asarray(jax.nn.softmax(z * 3)).astype(jnp.bfloat16)
  assert np.abs(t.astype(np.float32).sum(1) - 1).max() > 1e-3
  assert losses.ce(z, t).dtype == jnp.float32


MASKED = [
  *LOSSES,
  *(
    functools.update_wrapper(
      functools.partial(loss, **hp), loss, assigned=['__name__']
    )
    for loss, hp in (
      (losses.gce, {'q': 0.0}),
      (losses.ngce, {'q': 0.0}),
      (losses.agce, {'a': 0.0}),
      (losses.nfl, {'detach': False}),
      (losses.bi_tempered, {'t1': 1.0, 't2': 1.0}),
      (losses.bootstrap_soft, {'clip': 1e-7}),
      (losses.label_smoothing, {'smoothing': 0.0}),
    )
  ),
]
# Infinite, since they compare all classes (or about 1e30), but never NaN.
COMPARES_ALL = {'gls', 'label_smoothing', 'cores2', 'backward'}


def test_a_masked_class_counts_for_nothing():
  """Of logit -inf and label 0: values and gradients as with -1e30."""
  z, y = map(np.asarray, draw())
  z, y = np.array(z[:16]), np.minimum(y[:16], 2)
  soft = np.array(jax.nn.softmax(z))
  soft[:, 3] = 0
  soft /= soft.sum(1, keepdims=True)
  soft[:8] = np.eye(4)[y[:8]]
  labels = (y, soft)
  z[:, 3] = -np.inf
  sets = np.array([True, False, True, False])[None].repeat(16, 0)
  weights = np.where(soft > 0, soft, 0)

  @jax.jit
  def run(z):
    every = [value_and_slope(loss, z, y) for loss in MASKED for y in labels]
    partial = [
      value_and_slope(loss, z, s)
      for loss, s in (
        (losses.cc, sets),
        (losses.uniform_candidates, np.arange(4) < 3 + 0 * sets),
        (losses.rule_out, sets),
        (losses.proden, weights),
        (lambda z, s: losses.lws(z, s, losses.lws_confidence(z, s)), sets),
        (lambda z, s: losses.lws_confidence(z, s), np.arange(4) < 3 + 0 * sets),
      )
    ]
    return every + partial

  names = [loss.__name__ for loss in MASKED for _ in labels]
  names += ['partial'] * 6
  low = np.where(z == -np.inf, np.float32(-1e30), z)
  for name, (value, got), (expected, own) in zip(
    names, run(z), run(low), strict=True
  ):
    assert not np.isnan(value).any(), name
    assert np.isfinite(got).all(), name
    if name not in COMPARES_ALL or np.abs(expected).max() < 1e3:
      close(value, expected)
      close(got, own)
      assert not np.any(got[:, 3]), name


@pytest.mark.parametrize('loss', CLASSWISE, ids=lambda f: f.__name__)
def test_soft_label_is_the_expected_loss(loss):
  z, _ = draw()
  t = jax.nn.softmax(draw(seed=1)[0])
  each = jnp.stack([loss(z, jnp.full(64, k)) for k in range(4)], axis=-1)
  np.testing.assert_allclose(
    loss(z, t), jnp.sum(t * each, axis=-1), rtol=1e-5, atol=1e-6
  )


@every_loss
def test_one_hot_is_the_integer_label(loss):
  z, y = draw()
  t = jax.nn.one_hot(y, 4)
  np.testing.assert_allclose(loss(z, t), loss(z, y), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    slope(loss, z, t), slope(loss, z, y), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  'loss',
  [loss for loss in LOSSES if loss.__name__ not in DETACHED],
  ids=lambda f: f.__name__,
)
def test_derivatives(loss):
  with jax.enable_x64(True):
    z, y = draw(scale=1.0)
    z = z.astype(jnp.float64)
    check_grads(lambda z: loss(z, y), [z], order=1, rtol=1e-6)


def hyperparameters():
  """Every float hyperparameter of every loss."""
  for loss in LOSSES:
    source = getattr(losses, loss.__name__)
    for name, p in inspect.signature(source).parameters.items():
      if p.kind == p.KEYWORD_ONLY and type(p.default) is float:
        yield pytest.param(loss, name, p.default, id=f'{loss.__name__}-{name}')


@pytest.mark.parametrize(('loss', 'name', 'default'), list(hyperparameters()))
def test_hyperparameters_may_be_traced(loss, name, default):
  """A sweep by vmap gives what the calls one by one give."""
  z, y = draw()
  other = {'clip': 1e-3, 'offset': 1e-2, 'max_prob': 0.9, 'rate': 0.5}
  other = other.get(name, 0.97 * default + (0.01 if default == 0 else 0))
  values = np.array([default, other], np.float32)
  sweep = jax.vmap(lambda v: loss(z, y, **{name: v}))(values)
  assert sweep.dtype == jnp.float32
  for v, got in zip((default, other), sweep, strict=True):
    expected = loss(z, y, **{name: v})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  assert not np.allclose(sweep[0], sweep[1], rtol=0, atol=1e-9) or name in (
    'clip',  # inactive at moderate logits
    'min_prob',
    'max_prob',
  )


def scalars():
  """Every float hyperparameter of everything public, of bags too."""
  for public in losses.__all__:
    loss = getattr(losses, public)
    if inspect.isfunction(loss):
      for name, p in inspect.signature(loss).parameters.items():
        if p.kind == p.KEYWORD_ONLY and type(p.default) is float:
          yield loss, name, p.default
  yield losses.mixup, 'ratio', 0.3
  yield losses.dynamic_bootstrap, 'noisy_prob', 0.3
  yield losses.truncated_gce, 'weights', 0.3


def test_an_array_where_a_scalar_is_meant_is_named():
  """[b, 1] would broadcast with losses [b] to [b, b], in silence."""
  z, y = map(np.asarray, draw(b=8))
  soft = np.full([8, 4], 0.25, np.float32)
  known = {'logits': z, 'peer_logits': z, 'x': z, 'direction': z}
  known |= {'labels': y, 'peer_labels': y, 'guesses': y, 'partners': y}
  known |= dict.fromkeys(('rows', 'targets', 'v', 'confidence'), soft)
  known |= {'candidates': soft > 0, 'u': soft[:, 0], 'weights': soft[:, 0]}
  known |= {'predict': lambda x: x, 'mask': None, 'noisy_prob': 0.3}
  known |= {'ratio': 0.3}
  checked = 0
  for loss, name, default in scalars():
    parameters = inspect.signature(loss).parameters.values()
    arguments = {
      p.name: known.get(p.name) for p in parameters if p.kind != p.KEYWORD_ONLY
    }
    if 'counts' in arguments:  # [bags, m, c]
      arguments |= {'logits': z[None], 'counts': np.array([[2, 2, 2, 2]])}
    if loss is losses.gjs or loss is losses.gjs_of_mean:
      arguments['logits'] = np.stack([z, z])
    call = functools.partial(loss, **arguments)
    wrong = np.full([8, 1], default, np.float32)
    with pytest.raises(ValueError, match=f'^{name} must be a scalar'):
      call(**{name: wrong})
    with pytest.raises(ValueError, match=f'^{name} must be a scalar'):
      jax.eval_shape(lambda v, f=call, name=name: f(**{name: v}), wrong)
    checked += 1
  assert checked > 70


def test_weights_of_examples():
  z, y = draw()
  for loss, name in (
    (lambda v: losses.mixup(z, y, y, v), 'ratio'),
    (lambda v: losses.dynamic_bootstrap(z, y, y, v), 'noisy_prob'),
    (lambda v: losses.truncated_gce(z, y, v), 'weights'),
  ):
    for bad in (-0.1, np.full(64, np.nan), np.full(64, -2.0)):
      with pytest.raises(ValueError, match=f'{name} must lie in'):
        loss(bad)
    if name != 'weights':
      with pytest.raises(ValueError, match=f'{name} must lie in'):
        loss(2.0)
    each = np.linspace(0, 1, 64, dtype=np.float32)
    swept = jax.vmap(loss)(each[::21])
    close(swept[1], loss(np.full(64, each[21])))


def test_peers_do_not_broadcast():
  z, y = draw()
  for loss in (losses.peer, losses.f_divergence):
    with pytest.raises(ValueError, match='peer_logits'):
      loss(z, y, z[None], y[None])


@pytest.mark.parametrize(
  ('loss', 'name', 'bad'),
  [
    (losses.sce, 'alpha', -1.0),
    (losses.nce_rce, 'beta', float('nan')),
    (losses.gls, 'wa', float('nan')),
    (losses.gce, 'q', 1.5),
    (losses.gce, 'q', float('nan')),
    (losses.gce, 'clip', -0.1),
    (losses.ngce, 'q', -0.1),
    (losses.rce, 'log_zero', 1.0),
    (losses.truncated_gce_weights, 'k', 0.0),
    (losses.label_smoothing, 'smoothing', -0.1),
    (losses.gls, 'rate', 1.1),
    (losses.bootstrap_soft, 'beta', 1.1),
    (losses.bootstrap_hard, 'beta', -0.1),
    (losses.agce, 'a', -0.1),
    (losses.agce, 'q', -0.1),
    (losses.aul, 'a', 0.9),
    (losses.aul, 'q', 0.0),
    (losses.ael, 'a', 0.0),
    (losses.anorm, 'a', 0.5),
    (losses.anorm, 'p', 0.0),
    (losses.js, 'w0', 0.0),
    (losses.js, 'w0', 1.0),
    (losses.bi_tempered, 't1', 1.5),
    (losses.bi_tempered, 't2', 0.0),
    (losses.focal, 'gamma', -1.0),
    (losses.nfl, 'gamma', -1.0),
    (losses.nnce, 'min_prob', 0.0),
    (losses.nnce, 'min_prob', 0.3),
    (losses.nnce, 'max_prob', 0.1),
    (losses.nnfl, 'min_prob', 0.3),
    (losses.taylor_ce, 'order', 0),
    (losses.negative_learning, 'clip', 2.0),
    (losses.cores2, 'offset', -1.0),
  ],
  ids=lambda v: getattr(v, '__name__', str(v)),
)
def test_hyperparameters_out_of_range_are_named(loss, name, bad):
  z, y = draw()
  with pytest.raises(ValueError, match=name):
    loss(z, y, **{name: bad})


def test_numpy_scalars_and_lists_are_welcome():
  z, y = draw()
  expected = losses.gce(z, y, q=0.5)
  got = losses.gce(np.asarray(z).tolist(), np.asarray(y), q=np.float64(0.5))
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert losses.gce(z, y.astype(jnp.int8)).dtype == jnp.float32


def test_small_label_dtype_with_many_classes():
  """c = 300 does not fit int8: the range check must not wrap."""
  z = jnp.zeros([2, 300])
  values = jax.jit(losses.ce)(z, jnp.array([5, -1], jnp.int8))
  np.testing.assert_allclose(values[0], np.log(300), rtol=1e-6)
  assert np.isnan(values[1])


def test_maps_of_small_labels_with_void():
  """[b, h, w] with 255 or -1: NaN inside jit, without gradient."""
  z = jnp.zeros([2, 3, 3, 4])
  for void in (np.uint8(255), np.int8(-1)):
    y = np.zeros([2, 3, 3], void.dtype)
    y[0, 1] = void
    value, got = jax.jit(functools.partial(value_and_slope, losses.ce))(z, y)
    np.testing.assert_array_equal(np.isnan(value), y == void)
    assert not np.any(got[0, 1])
    assert np.any(got[1, 1])
    with pytest.raises(ValueError, match='labels'):
      losses.ce(z, y)
