"""Properties that every per-example loss has, one suite over all of them.

What costs time is compiling: `found` runs ten losses in one program, and all
inputs have one shape, [64, 4].
"""

import functools
import inspect

from cost import slow
from fixture_losses import close, draw, run, softmax, value_and_slope
import jax
import jax.numpy as jnp
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


def forward(z, y, **hp):
  return losses.forward(z, y, symmetric(z.shape[-1]), **hp)


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
  losses.scl_exp,
  losses.discriminative,
  losses.order_preserving,
  losses.pairwise_comparison,
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
  'entropy',
  'kl_consistency',
  'mean_entropy_gap',
  'prior_mean_kl',
  'sop_probs',
  'symmetric_consistency',
  'tempered_log_softmax',
  'truncated_gce_weights',
  # of risks, and of complementary labels: risks_test, complementary_test
  'abs_risks',
  'ascend_risks',
  'clip_risks',
  'complementary_risks',
  'decode_complementary',
  'mcl_exp',
  'mcl_log',
  'mcl_mae',
  'scarce',
  # of the sizes of classes: imbalance_test
  'adjust_logits',
  'class_weights',
  'ldam_margins',
  'subtract_margins',
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
  # of scores, of which some are known to be positive: positive_unlabeled_test
  'logistic_loss',
  'mixup_log_consistency',
  'nnpu',
  'pu_mlc',
  'pu_mlc_temperature',
  'pu_risks',
  'sigmoid_loss',
  'upu',
  'vpu',
}
# Gradients that are meant to differ from the value's: see `detach` and beta.
DETACHED = {'nfl', 'nnfl', 'nfl_rce', 'nfl_mae', 'anl_fl'}
DETACHED |= {'importance_reweight', 'dynamic_bootstrap'}


def extremes(*magnitudes, c=4):
  """Rows that are hard for a loss, with every label for each."""
  rows = np.concatenate(
    [
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
      for magnitude in magnitudes
    ]
  )
  return np.repeat(rows, c, axis=0), np.tile(np.arange(c), len(rows))


def masked():
  """A class of logit -inf and label 0, and the labels as distributions."""
  z, y = Z.copy(), np.minimum(Y, 2)
  t = softmax(Z)
  t[:, 3] = 0
  t /= t.sum(1, keepdims=True)
  t[::2] = np.eye(4)[y[::2]]
  z[:, 3] = -np.inf
  return z, y, t


Z, Y = draw()
T = softmax(draw(seed=1)[0])
ROUND = np.round(Z * 16) / 16
HOPELESS = np.where(np.arange(4) == 1, 40, np.zeros([64, 1]))
SWAP, TURN = np.array([1, 0, 2, 3]), np.array([1, 2, 3, 0])
BAD = np.concatenate([[-1, 4, 2**31 - 1], Y[3:]])
MASKED_Z, MASKED_Y, MASKED_T = masked()
LOW_Z = np.where(np.isinf(MASKED_Z), np.float32(-1e30), MASKED_Z)
STEP = 1e-5
INPUTS = {
  'drawn': (Z, Y),
  'one-hot': (Z, np.eye(4)[Y]),
  'soft': (Z, T),
  **{f'label {k}': (Z, np.full(64, k)) for k in range(4)},
  'extreme': extremes(30.0, 1e4),
  'extreme soft': (
    extremes(30.0, 1e4)[0],
    0.75 * np.eye(4)[extremes(30.0, 1e4)[1]] + 0.0625,
  ),
  'extreme in bfloat16': (
    extremes(30.0, 1e4)[0].astype(jnp.bfloat16),
    extremes(30.0, 1e4)[1],
  ),
  'most extreme': extremes(1e30, 1e16),
  'hopeless': (HOPELESS, np.zeros(64, int)),
  'rounded': (ROUND, Y),
  **{f'shifted {s}': (ROUND + s, Y) for s in (1024, 2048)},
  'swapped': (Z[:, SWAP], np.argsort(SWAP)[Y]),
  'turned': (Z[:, TURN], np.argsort(TURN)[Y]),
  'bad': (Z, BAD),
  'masked': (MASKED_Z, MASKED_Y),
  'masked soft': (MASKED_Z, MASKED_T),
  'low': (LOW_Z, MASKED_Y),
  'low soft': (LOW_Z, MASKED_T),
  **{
    f'class {k} {sign}': (Z + sign * STEP * np.eye(4)[k], Y)
    for k in range(4)
    for sign in (1, -1)
  },
}
WEIGHTS = np.float32(np.arange(64) >= 4)  # of `BAD` none counts
GROUPS = 5


def weighted(loss, z, y, weights):
  """A loss of [2, 32, 4]: its mean, its values and the slope of the mean."""

  def mean(z):
    values = loss(z, y)
    return global_mean(values, weights), values

  (mean, values), slope = jax.value_and_grad(mean, has_aux=True)(z)
  return mean, values, slope


def row_by_row(loss, z, y, weights):
  """The same of [64, 4], by `vmap` of the loss of logits [4]."""
  flat = (a.reshape(64, *a.shape[2:]) for a in (z, y, weights))
  return weighted(jax.vmap(loss), *flat)


@functools.cache
def program(group, how):
  """Every fifth of the losses, compiled together."""
  these = LOSSES[group::GROUPS]
  return jax.jit(lambda *inputs: [how(loss, *inputs) for loss in these])


@functools.cache
def outputs(group, name, dtype, how, weights):
  z, y = INPUTS[name]
  y = y.astype(np.int32 if y.ndim == 1 else dtype)
  flat = z.astype(dtype), y, WEIGHTS if weights else np.ones(64, np.float32)
  shaped = (a.reshape(2, 32, *a.shape[1:]) for a in flat)
  with jax.enable_x64(dtype == 'float64'):
    every = jax.device_get(program(group, how)(*shaped))
  return [
    (mean, values.reshape(64), slope.reshape(64, 4))
    for mean, values, slope in every
  ]


def found(loss, name, dtype='float32', how=weighted, weights=False):
  """Mean, values and the slope of the mean for `INPUTS[name]`."""
  number = LOSSES.index(loss)
  every = outputs(number % GROUPS, name, dtype, how, weights)
  return every[number // GROUPS]


every_loss = pytest.mark.parametrize('loss', LOSSES, ids=lambda f: f.__name__)


def test_list_is_complete():
  """A new loss has to be added above, or be named as not per example."""
  public = {
    name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))
  }
  assert public == {f.__name__ for f in LOSSES} | PUBLIC_NOT_PER_EXAMPLE


KINDS = [
  pytest.param('float32', '', id='float32 hard'),
  # After the first cast they do what the others do.
  *(
    pytest.param(
      dtype,
      soft,
      id=f'{dtype} {soft.strip() or "hard"}',
      marks=pytest.mark.slow,
    )
    for dtype, soft in (
      ('float16', ''),
      ('float32', ' soft'),
      ('float64', ''),
      ('float64', ' soft'),
    )
  ),
]


@every_loss
@pytest.mark.parametrize(('dtype', 'soft'), KINDS)
def test_finite_at_extremes_and_dtype(loss, dtype, soft):
  how = row_by_row if dtype == 'float64' and not soft else weighted
  _, value, slope = found(loss, 'extreme' + soft, dtype, how)
  assert value.dtype == jnp.promote_types(dtype, jnp.float32)
  assert slope.dtype == dtype
  assert np.all(np.isfinite(value))
  assert np.all(np.isfinite(slope.astype(value.dtype)))


@pytest.mark.slow
@every_loss
def test_bfloat16_has_the_range_of_float32_and_its_values(loss):
  """At extremes: computed in float32, as what rounds to bfloat16 is."""
  value, slope = jax.eval_shape(
    functools.partial(value_and_slope, loss),
    jax.ShapeDtypeStruct([64, 4], jnp.bfloat16),
    jax.ShapeDtypeStruct([64], np.int32),
  )
  assert (value.dtype, slope.dtype) == (np.float32, jnp.bfloat16)
  _, value, slope = found(loss, 'extreme in bfloat16')
  assert np.all(np.isfinite(value))
  assert np.all(np.isfinite(slope))


@every_loss
def test_half_precision_gives_float32_and_a_batch_may_be_empty(loss):
  shapes = (
    jax.ShapeDtypeStruct([0, 4], jnp.bfloat16),
    jax.ShapeDtypeStruct([0], np.int32),
  )
  found = jax.eval_shape(loss, *shapes)
  assert found.shape == (0,)
  assert found.dtype == np.float32


@every_loss
def test_finite_at_1e30(loss):
  """All of them happen to be, not only functions of log_softmax."""
  _, value, slope = found(loss, 'most extreme')
  assert np.all(np.isfinite(value))
  assert np.all(np.isfinite(slope))


@every_loss
def test_gradient_survives_where_the_label_is_hopeless(loss):
  """p_y = e^-40: the value still falls when the logit of y rises."""
  bounded = loss.__name__ in {
    'nnce',  # clipped by definition
    'nnfl',
    'negative_learning',  # wants p_y = 0
    'scl_exp',
    'discriminative',
    'order_preserving',
    'pairwise_comparison',
    'peer',  # here the other term has the same label
    'f_divergence',
    'importance_reweight',  # weight p_y
    't_revision',
    'bi_tempered',
  }
  own = found(loss, 'hopeless')[2][0, 0]
  assert own < 0 or bounded, own


@every_loss
def test_shift_of_logits_changes_nothing(loss):
  """Exact in binary, so that only a careless log-softmax can lose digits."""
  halved = loss.__name__ in ('gjs', 'gjs_of_mean', 'peer', 'f_divergence')
  _, shifted, _ = found(loss, f'shifted {2048 if halved else 1024}')
  close(shifted, found(loss, 'rounded')[1], rtol=2e-6)


@every_loss
def test_permutation_of_classes(loss):
  """An exchange and a turn of the classes: they generate all permutations."""
  _, value, slope = found(loss, 'drawn')
  for name, order in (('swapped', SWAP), ('turned', TURN)):
    _, moved, moved_slope = found(loss, name)
    close(moved, value, rtol=1e-4, atol=1e-5)
    close(64 * moved_slope, 64 * slope[:, order], rtol=1e-3, atol=1e-5)


@every_loss
def test_masked_bad_labels(loss):
  """Inside jit a bad label makes the loss NaN without gradient.

  `global_mean` with weight 0 drops it.
  """
  _, expected, expected_slope = found(loss, 'drawn')
  mean, values, slope = found(loss, 'drawn', weights=True)
  np.testing.assert_array_equal(values, expected)
  close(mean, np.mean(values[4:]))
  close(60 * slope[4:], 64 * expected_slope[4:], rtol=1e-4, atol=1e-5)
  assert not np.any(slope[:4])
  mean_bad, values, slope_bad = found(loss, 'bad', weights=True)
  assert np.isnan(values[:3]).all()
  assert np.isfinite(values[3:]).all()
  np.testing.assert_array_equal(mean_bad, mean)
  np.testing.assert_array_equal(slope_bad, slope)


@every_loss
def test_rows_are_independent_and_leading_dimensions_are_free(loss):
  """[2, 32, 4] in float32 against the loss of logits [4] in float64."""
  _, values, slope = found(loss, 'drawn')
  _, alone, alone_slope = found(loss, 'drawn', 'float64', row_by_row)
  close(values, alone)
  close(64 * slope, 64 * alone_slope, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_loss
def test_ops_one_by_one_do_what_a_program_does(loss):
  values, slope = value_and_slope(loss, jnp.asarray(Z), Y)
  close(values, found(loss, 'drawn')[1])
  close(slope, 64 * found(loss, 'drawn')[2], rtol=1e-4, atol=1e-5)
  loss(Z, np.float32(T * 1.0009))  # loose: they are averaged and rounded


@every_loss
def test_label_out_of_range_raises_when_it_can_be_seen(loss):
  for bad in (np.int32(-1), np.int32(4), np.int8(-1), np.uint8(255)):
    labels = Y.astype(bad.dtype)
    labels[0] = bad
    with pytest.raises(ValueError, match='labels'):
      loss(Z, labels)


@every_loss
def test_malformed_inputs_are_named(loss):
  soft = np.full([64, 4], 0.25, np.float32)
  off = [soft.copy() for _ in range(4)]
  off[0][5] = [1, 1, 0, 0]
  off[1][5] = [-1, 2, 0, 0]
  off[2][5] = np.nan
  off[3][5] *= 0.99
  for error, message, labels in (
    (TypeError, 'labels.*integer.*float32', Y.astype(np.float32)),
    (TypeError, 'labels.*bool', Y > 1),
    (TypeError, r'labels.*astype\(float\).*int', np.eye(4, dtype=int)[Y]),
    (TypeError, r'labels.*astype\(float\).*bool', np.eye(4, dtype=bool)[Y]),
    (TypeError, 'labels must be an array of numbers', Y.astype(str)),
    (ValueError, 'labels', Y[:-1]),
    (ValueError, 'labels', np.eye(5)[Y]),
    (ValueError, 'labels', Y[:, None, None]),
    (ValueError, r'use labels\[..., 0\]', Y[:, None]),
    *((ValueError, 'labels.*one; row 5 .*sums to', bad) for bad in off),
  ):
    with pytest.raises(error, match=message):
      loss(Z, labels)
  with pytest.raises(ValueError, match='logits'):
    loss(Z[:, :1], 0 * Y)
  if loss not in (gjs, gjs_of_mean):  # halving made floats of them above
    with pytest.raises(TypeError, match='logits'):
      loss(np.zeros([64, 4], np.int32), Y)


def test_labels_of_other_losses_are_looked_at_too():
  with pytest.raises(ValueError, match=r'logits.*lack the classes'):
    losses.ce(Z[:, 0], Y)
  off = np.ones([64, 4], np.float32)
  for name, loss in (
    ('guesses', lambda t: losses.dynamic_bootstrap(Z, Y, t, 0.3)),
    ('partners', lambda t: losses.mixup(Z, Y, t, 0.3)),
    ('peer_labels', lambda t: losses.peer(Z, Y, Z, t)),
    ('peer_labels', lambda t: losses.f_divergence(Z, Y, Z, t)),
    ('confidence', lambda t: losses.proden(Z, t)),
    ('prior', lambda t: losses.cores2(Z, Y, prior=t[0])),
    ('prior', lambda t: losses.prior_mean_kl(Z, np.ones(64), prior=t[0])),
  ):
    with pytest.raises(ValueError, match=f'{name} must have rows'):
      loss(off)


def test_rows_of_soft_labels_may_be_rounded():
  losses.ce(Z, np.float32(T * 1.0009))
  # Rounded to bfloat16 a row may be off by more than 1e-3.
  t = softmax(Z * 3).astype(jnp.bfloat16)
  assert np.abs(t.astype(np.float32).sum(1) - 1).max() > 1e-3
  assert losses.ce(Z, t).dtype == jnp.float32


# Infinite, since they compare all classes (or about 1e30), but never NaN.
COMPARES_ALL = {'gls', 'label_smoothing', 'cores2', 'backward'}
COMPARES_ALL |= {'order_preserving'}


def check_masked(name, found, low):
  """Values and gradients as with -1e30, where these say anything."""
  (value, slope), (expected, own) = found, low
  assert not np.isnan(value).any(), name
  assert np.isfinite(slope).all(), name
  if name not in COMPARES_ALL or np.abs(expected).max() < 1e3:
    close(value, expected, err_msg=name)
    close(slope, own, err_msg=name)
    assert not np.any(slope[:, 3]), name


@every_loss
@pytest.mark.parametrize('soft', ['', slow(' soft')], ids=['hard', 'soft'])
def test_a_masked_class_counts_for_nothing(loss, soft):
  """Of logit -inf and label 0."""
  of = lambda name: (lambda _, v, s: (v, 64 * s))(*found(loss, name + soft))
  check_masked(loss.__name__, of('masked'), of('low'))


@pytest.mark.slow
def test_a_masked_class_counts_for_nothing_elsewhere_either():
  """At limits of the hyperparameters, and in losses of candidates."""
  sets = np.array([True, False, True, False])[None].repeat(64, 0)
  three = np.arange(4) < 3 + 0 * sets

  @jax.jit
  def both(z):
    at_limits = [
      (loss.__name__, value_and_slope(loss, z, y, **hp))
      for loss, hp in (
        (losses.gce, {'q': 0.0}),
        (losses.ngce, {'q': 0.0}),
        (losses.agce, {'a': 0.0}),
        (losses.nfl, {'detach': False}),
        (losses.bi_tempered, {'t1': 1.0, 't2': 1.0}),
        (losses.bootstrap_soft, {'clip': 1e-7}),
        (losses.label_smoothing, {'smoothing': 0.0}),
      )
      for y in (MASKED_Y, np.float32(MASKED_T))
    ]
    of_sets = [
      ('of sets', value_and_slope(loss, z, s))
      for loss, s in (
        (losses.cc, sets),
        (losses.uniform_candidates, three),
        (losses.rule_out, sets),
        (losses.proden, np.float32(MASKED_T)),
        (lambda z, s: losses.lws(z, s, losses.lws_confidence(z, s)), sets),
        (losses.lws_confidence, three),
      )
    ]
    names.extend(name for name, _ in at_limits + of_sets)
    return [pair for _, pair in at_limits + of_sets]

  names = []
  here, low = jax.device_get((both(MASKED_Z), both(LOW_Z)))
  for name, pair, expected in zip(names, here, low, strict=True):
    check_masked(name, pair, expected)


@pytest.mark.parametrize('loss', CLASSWISE, ids=lambda f: f.__name__)
def test_soft_label_is_the_expected_loss(loss):
  each = np.stack([found(loss, f'label {k}')[1] for k in range(4)], axis=-1)
  close(found(loss, 'soft')[1], np.sum(T * each, axis=-1))


@every_loss
def test_one_hot_is_the_integer_label(loss):
  _, value, slope = found(loss, 'one-hot')
  _, expected, expected_slope = found(loss, 'drawn')
  close(value, expected)
  close(64 * slope, 64 * expected_slope, rtol=1e-4)


@pytest.mark.parametrize(
  'loss',
  [loss for loss in LOSSES if loss.__name__ not in DETACHED],
  ids=lambda f: f.__name__,
)
def test_derivatives(loss):
  """Of every row by every class, against differences in float64."""
  of = lambda name: found(loss, name, 'float64', row_by_row)
  slope = 64 * of('drawn')[2]
  for k in range(4):
    ahead, behind = (of(f'class {k} {sign}')[1] for sign in (1, -1))
    difference = (ahead - behind) / (2 * STEP)
    close(slope[:, k], difference, rtol=1e-6, atol=1e-8)


def floats(loss):
  """The float hyperparameters of a loss and their defaults."""
  parameters = inspect.signature(getattr(losses, loss.__name__)).parameters
  return {
    name: p.default
    for name, p in parameters.items()
    if p.kind == p.KEYWORD_ONLY and type(p.default) is float
  }


def another(name, default):
  other = {'clip': 1e-3, 'offset': 1e-2, 'max_prob': 0.9, 'rate': 0.5}
  return other.get(name, 0.97 * default + (0.01 if default == 0 else 0))


@functools.cache
def swept(group):
  """By loss: at the defaults, each changed, all changed; and all as numbers."""

  def both(loss):
    default = floats(loss)
    if not default:
      return None
    other = {name: another(name, value) for name, value in default.items()}
    row, moved = (np.float32([*v.values()]) for v in (default, other))
    each = np.where(np.eye(len(row)), moved, row)
    values = np.stack([row, *each, moved])
    sweep = jax.vmap(lambda v: loss(Z, Y, **dict(zip(default, v, strict=True))))
    return sweep(values), loss(Z, Y, **other)

  return run(lambda: [both(loss) for loss in LOSSES[group::GROUPS]])


WITH_FLOATS = [loss for loss in LOSSES if floats(loss)]


@pytest.mark.slow
@pytest.mark.parametrize('loss', WITH_FLOATS, ids=lambda f: f.__name__)
def test_hyperparameters_may_be_traced(loss):
  """A sweep by vmap gives what the calls one by one give."""
  number = LOSSES.index(loss)
  sweep, other = swept(number % GROUPS)[number // GROUPS]
  assert sweep.dtype == np.float32
  close(sweep[0], found(loss, 'drawn')[1])
  close(sweep[-1], other)
  for name, values in zip(floats(loss), sweep[1:-1], strict=True):
    inactive = ('clip', 'min_prob', 'max_prob')  # at moderate logits
    changed = not np.allclose(values, sweep[0], rtol=0, atol=1e-9)
    assert changed or name in inactive, name


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


def arguments_of(loss):
  """What a loss may be called with: its arrays, by name."""
  soft = np.full([64, 4], 0.25, np.float32)
  known = dict.fromkeys(('logits', 'peer_logits', 'x', 'direction'), Z)
  known |= dict.fromkeys(('labels', 'peer_labels', 'guesses', 'partners'), Y)
  known |= dict.fromkeys(('rows', 'targets', 'v', 'confidence'), soft)
  known |= dict.fromkeys(('u', 'weights', 'ratio', 'noisy_prob'), soft[:, 0])
  known |= {'other_logits': Z, 'old_targets': soft, 'scores': soft[:, 0]}
  known |= {
    'risks': Z,
    'margins': soft[0],
    'excluded': Y[:, None] == np.arange(4),
  }
  known |= {'candidates': soft > 0, 'predict': lambda x: x, 'mask': None}
  known |= {'transition': symmetric(4), 'revision': 0.01 * np.eye(4)}
  known |= {'prior': soft[0], 'key': jax.random.key(0)}
  parameters = inspect.signature(loss).parameters
  if 'counts' in parameters or 'proportions' in parameters:  # [bags, m, c]
    known |= {'logits': Z.reshape(8, 8, 4), 'mask': np.ones([8, 8], bool)}
    known |= {'counts': np.full([8, 4], 2), 'proportions': soft[:8]}
    known |= {'weights': np.ones([3, 8], np.float32)}
  if loss is losses.count_nll:
    known |= {'logits': Z.reshape(8, 16, 2)[:, :8], 'counts': np.full(8, 2)}
  if loss in (losses.gjs, losses.gjs_of_mean):
    known |= {'logits': np.stack([Z, Z]), 'weights': None}
  if 'positive' in parameters or 'log_targets' in parameters:
    known |= {'scores': Z, 'positive': Z > 0, 'weights': soft[:, 0]}
    known |= dict.fromkeys(('log_targets', 'partner_log_targets'), -soft)
  if loss is losses.rcr_confidence:
    known |= {'logits': np.stack([Z, Z], -2)}
  return {name: known[name] for name in parameters if name in known}


def test_an_array_where_a_scalar_is_meant_is_named():
  """[b, 1] would broadcast with losses [b] to [b, b], in silence."""
  checked = 0
  for loss, name, default in scalars():
    arguments = arguments_of(loss)
    wrong = np.full([64, 1], default, np.float32)
    arguments.pop(name, None)
    call = functools.partial(loss, **arguments)
    with pytest.raises(ValueError, match=f'^{name} must be a scalar'):
      jax.eval_shape(lambda v, f=call, name=name: f(**{name: v}), wrong)
    checked += 1
  assert checked > 70


def test_weights_of_examples():
  each = np.linspace(0, 1, 64, dtype=np.float32)

  def both(loss):
    return jax.vmap(loss)(each[::21])[1], loss(np.full(64, each[21]))

  of_weights = {
    'ratio': lambda v: losses.mixup(Z, Y, Y, v),
    'noisy_prob': lambda v: losses.dynamic_bootstrap(Z, Y, Y, v),
    'weights': lambda v: losses.truncated_gce(Z, Y, v),
  }
  for name, loss in of_weights.items():
    bads = [-0.1, np.full(64, np.nan), np.full(64, -2.0)]
    for bad in bads + [2.0] * (name != 'weights'):
      with pytest.raises(ValueError, match=f'{name} must lie in'):
        loss(bad)
  for pair in run(lambda: [both(loss) for loss in of_weights.values()]):
    close(*pair)


def test_peers_do_not_broadcast():
  for loss in (losses.peer, losses.f_divergence):
    with pytest.raises(ValueError, match='peer_logits'):
      loss(Z, Y, Z[None], Y[None])


def arrays():
  """Every array that a loss takes, by the name of its argument."""
  of_any_shape = (
    *('abs_risks', 'ascend_risks', 'clip_risks', 'logistic_loss'),
    *('pu_mlc_temperature', 'sigmoid_loss'),
  )
  for public in losses.__all__:
    loss = getattr(losses, public)
    if inspect.isfunction(loss) and public not in of_any_shape:
      for name, value in arguments_of(loss).items():
        if isinstance(value, np.ndarray):
          yield loss, name, value


def test_an_array_of_one_dimension_too_many_is_named():
  """[b, 1] of every argument [b], and so on."""
  checked = 0
  for loss, name, value in arrays():
    wrong = {**arguments_of(loss), name: value[..., None]}
    call = functools.partial(loss, **wrong)
    with pytest.raises((TypeError, ValueError), match=name):
      jax.eval_shape(call)
    checked += 1
  assert checked > 150


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
  with pytest.raises(ValueError, match=name):
    loss(Z, Y, **{name: bad})


def test_numpy_scalars_and_lists_are_welcome():
  expected = losses.gce(Z, Y, q=0.5)
  got = losses.gce(Z.tolist(), Y, q=np.float64(0.5))
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert losses.gce(Z, Y.astype(np.int8)).dtype == np.float32


def test_small_label_dtype_with_many_classes():
  """c = 300 does not fit int8: the range check must not wrap."""
  values = run(losses.ce, np.zeros([2, 300], 'f'), np.array([5, -1], np.int8))
  np.testing.assert_allclose(values[0], np.log(300), rtol=1e-6)
  assert np.isnan(values[1])


def test_maps_of_small_labels_with_void():
  """[b, h, w] with 255 or -1: NaN inside jit, without gradient."""
  z = np.zeros([2, 3, 3, 4], np.float32)
  for void in (np.uint8(255), np.int8(-1)):
    y = np.zeros([2, 3, 3], void.dtype)
    y[0, 1] = void
    value, got = run(functools.partial(value_and_slope, losses.ce), z, y)
    np.testing.assert_array_equal(np.isnan(value), y == void)
    assert not np.any(got[0, 1])
    assert np.any(got[1, 1])
    with pytest.raises(ValueError, match='labels'):
      losses.ce(z, y)
