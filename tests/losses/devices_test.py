"""All losses on eight devices: the same numbers in every view of them.

One program holds them all, the values of each and how they change with what the
examples bring. It runs per device under `jax.shard_map` as it comes, and in the
global view on an explicit mesh, as `jax.make_mesh` makes it by default; that is
slow, and in the first stage the values of a third are computed, per device.
"""

import functools
import inspect

from cost import slow
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jnl import losses
from jnl.base import AXIS, global_grad, global_mean

B, C, M = 120, 4, 3  # examples, classes, instances of a bag; 8, 5 divide B
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
PRIOR = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
SIZES = np.array([90, 30, 9, 1])
TRANSITION = (0.6 * np.eye(C) + 0.1).astype(np.float32)
REVISION = (0.01 * RNG.standard_normal([C, C])).astype(np.float32)
PARAMS = RNG.standard_normal([C, C]).astype(np.float32)
WEIGHTS = (RNG.random(B) * (RNG.random(B) < 0.7)).astype(np.float32)
WEIGHTS[:17] = 0  # a device of eight has none
BAG_WEIGHTS = (RNG.standard_normal([3, B]) * (WEIGHTS > 0)).astype(np.float32)


def draw():
  """What examples bring, [b, ...]: what is differentiated, and the rest."""
  normal = lambda *shape: RNG.standard_normal([B, *shape]).astype(np.float32)
  soft = np.exp(normal(C))
  soft /= soft.sum(-1, keepdims=True)
  labels = RNG.integers(0, C, B)
  candidates = RNG.random([B, C]) < 0.4
  candidates[np.arange(B), labels] = True
  mask = np.arange(M) < RNG.integers(1, M + 1, [B, 1])
  members = RNG.integers(0, C, [B, M, 1]) == np.arange(C)
  counts = (members & mask[..., None]).sum(1)
  floats = {
    'z': 2 * normal(C),
    'z2': normal(C),
    'bags': normal(M, C),
    'u': normal(),
    'v': normal(C),
  }
  rest = {
    'y': labels,
    'y2': labels[::-1].copy(),
    'soft': soft,
    'candidates': candidates,
    'confidence': candidates / candidates.sum(-1, keepdims=True, dtype='f4'),
    'mask': mask,
    'counts': counts,
    'shares': (counts / counts.sum(-1, keepdims=True)).astype(np.float32),
    'direction': normal(C),
    'keys': np.asarray(jax.random.bits(KEY, [B, 2])),
  }
  return floats, rest


FLOATS, REST = draw()


def close(found, expected, rtol=1e-5, atol=1e-6, err_msg=''):
  np.testing.assert_allclose(found, expected, rtol, atol, err_msg=err_msg)


def network(x):
  return jnp.tanh(0.2 * x @ PARAMS) @ PARAMS


FUNCTIONS = {
  name: getattr(losses, name)
  for name in losses.__all__
  if inspect.isfunction(getattr(losses, name))
}


def of(**arguments):
  """All losses with just these required arguments, and what they are of."""
  empty = inspect.Parameter.empty

  def required(f):
    parameters = inspect.signature(f).parameters.values()
    return [p.name for p in parameters if p.default is empty]

  def call(f):
    return lambda d: f(*(d[name] for name in arguments.values()))

  return {
    n: call(f) for n, f in FUNCTIONS.items() if required(f) == [*arguments]
  }


def views(d, axis):
  return jnp.stack([d['z'], d['z2']], axis)


# name: the values [b, ...] of what examples bring.
OF_EXAMPLES = {
  **of(logits='z', labels='y'),
  **of(logits='z', candidates='candidates'),
  **of(logits='z', excluded='candidates'),
  **of(risks='z'),
  **of(logits='z', labels='y', peer_logits='z2', peer_labels='y2'),
  'adjust_logits': lambda d: losses.adjust_logits(d['z'], PRIOR),
  'backward': lambda d: losses.backward(d['z'], d['y'], TRANSITION),
  'class_weights': lambda d: d['soft'] @ losses.class_weights(SIZES),
  'clip_logits': lambda d: losses.clip_logits(d['z']),
  'count_nll': lambda d: losses.count_nll(
    d['bags'][..., :2], d['counts'][:, 0], d['mask']
  ),
  'count_nll_joint': lambda d: losses.count_nll_joint(
    d['bags'], d['counts'], d['mask'], states=8
  ),
  'count_nll_one_versus_rest': lambda d: losses.count_nll_one_versus_rest(
    d['bags'], d['counts'], d['mask']
  ),
  'decode_complementary': lambda d: losses.decode_complementary(
    d['z'], TRANSITION
  ),
  'dllp': lambda d: losses.dllp(d['bags'], d['shares'], d['mask']),
  'dllp_l1': lambda d: losses.dllp_l1(d['bags'], d['shares'], d['mask']),
  'dllp_squared': lambda d: losses.dllp_squared(
    d['bags'], d['shares'], d['mask']
  ),
  'dsq': lambda d: losses.dsq(d['bags'], d['shares'], PRIOR, d['mask']),
  'dynamic_bootstrap': lambda d: losses.dynamic_bootstrap(
    d['z'], d['y'], d['y2'], d['soft'][:, 0]
  ),
  'easy_llp': lambda d: losses.easy_llp(
    d['bags'], d['shares'], PRIOR, d['mask']
  ),
  'easy_llp_sampled': lambda d: losses.easy_llp_sampled(
    d['keys'], d['bags'], d['shares'], PRIOR, d['mask']
  ),
  'elr_penalty': lambda d: losses.elr_penalty(d['z'], d['soft']),
  'elr_plus_labels': lambda d: losses.elr_plus_labels(
    d['soft'], d['confidence']
  ),
  'elr_targets': lambda d: losses.elr_targets(d['soft'], d['z']),
  'entropy': lambda d: losses.entropy(d['z']),
  'forward': lambda d: losses.forward(d['z'], d['y'], TRANSITION),
  'gjs': lambda d: losses.gjs(views(d, 0), d['y']),
  'gjs_of_mean': lambda d: losses.gjs_of_mean(views(d, 0), d['y']),
  'importance_reweight': lambda d: losses.importance_reweight(
    d['z'], d['y'], TRANSITION
  ),
  'kl_consistency': lambda d: losses.kl_consistency(d['z'], d['z2']),
  'ldam_margins': lambda d: d['soft'] @ losses.ldam_margins(SIZES),
  'logistic_loss': lambda d: losses.logistic_loss(d['z']),
  'lws': lambda d: losses.lws(d['z'], d['candidates'], d['confidence']),
  'mixup_log_consistency': lambda d: losses.mixup_log_consistency(
    d['z'], -jnp.abs(d['z2']), -jnp.abs(d['v']), d['soft'][:, 0]
  ),
  'mixup': lambda d: losses.mixup(d['z'], d['y'], d['y2'], d['soft'][:, 0]),
  'proden': lambda d: losses.proden(d['z'], d['confidence']),
  'rcr_confidence': lambda d: losses.rcr_confidence(
    views(d, -2), d['candidates']
  ),
  'sigmoid_loss': lambda d: losses.sigmoid_loss(d['z']),
  'sop': lambda d: losses.sop(d['z'], d['y'], d['u'], d['v']),
  'sop_probs': lambda d: losses.sop_probs(d['z'], d['y'], d['u'], d['v']),
  'subtract_margins': lambda d: losses.subtract_margins(d['z'], d['y'], PRIOR),
  'symmetric_consistency': lambda d: losses.symmetric_consistency(
    d['z'], d['z2']
  ),
  't_revision': lambda d: losses.t_revision(
    d['z'], d['y'], TRANSITION, REVISION
  ),
  'tempered_log_softmax': lambda d: losses.tempered_log_softmax(d['z'], t=0.7),
  'transport': lambda d: losses.transport(d['bags'], d['counts'], d['mask']),
  'transport_labels': lambda d: losses.transport_labels(
    d['bags'], d['counts'], d['mask']
  ),
  'truncated_gce': lambda d: losses.truncated_gce(
    d['z'], d['y'], d['soft'][:, 0]
  ),
  'vat': lambda d: losses.vat(network, d['z'], d['direction']),
  # Where soft labels or another number of classes have code of their own.
  'bi_tempered soft': lambda d: losses.bi_tempered(d['z'], d['soft']),
  'forward offset': lambda d: losses.forward(
    d['z'], d['y'], TRANSITION, offset=1e-2
  ),
  'forward soft': lambda d: losses.forward(d['z'], d['soft'], TRANSITION),
  'gce soft': lambda d: losses.gce(d['z'], d['soft']),
  'sop soft': lambda d: losses.sop(d['z'], d['soft'], d['u'], d['v']),
  'transport binary': lambda d: losses.transport(
    d['bags'][..., :2],
    jnp.stack([d['counts'][:, 0], d['counts'][:, 1:].sum(-1)], -1),
    d['mask'],
  ),
}
# name: the loss of logits, what else examples bring, and weights [b].
COUPLED = {
  'complementary_risks': lambda z, d, w: losses.ascend_risks(
    losses.complementary_risks(z, d['y'], TRANSITION, PRIOR, w)
  ),
  'dmi': lambda z, d, w: losses.dmi(z, d['y'], w),
  'gen_bags': lambda z, d, w: losses.gen_bags(
    z[:, None] * d['bags'], d['counts'], d['bag_weights'].T, d['mask']
  ).sum(),
  'mean_entropy_gap': lambda z, d, w: losses.mean_entropy_gap(z, w, clip=0.01),
  'prior_mean_kl': lambda z, d, w: losses.prior_mean_kl(z, w, prior=PRIOR),
  'similarity_smoothness': lambda z, d, w: global_mean(
    losses.similarity_smoothness(jax.nn.sigmoid(z[:, 0]), z, w), w
  ),
  # Per example, but its own derivatives are taken inside.
  'vat': lambda z, d, w: global_mean(
    losses.vat(lambda x: network(x) + z, z, d['direction']), w
  ),
  # Per example too, and solved by loops.
  'bi_tempered': lambda z, d, w: global_mean(losses.bi_tempered(z, d['y']), w),
  'transport': lambda z, d, w: global_mean(
    losses.transport(z[:, None] * d['bags'], d['counts'], d['mask']), w
  ),
  # The risks are chosen from by all devices alike.
  'complementary_risks gce': lambda z, d, w: losses.clip_risks(
    losses.complementary_risks(
      *(z, d['y'], TRANSITION, PRIOR, w), by='label', loss=losses.gce
    )
  ),
  'scarce': lambda z, d, w: losses.scarce(z, d['y'], w),
  # Of each class, added up.
  'pu_risks': lambda z, d, w: sum(
    jnp.sum((k + 1) * risk)
    for k, risk in enumerate(losses.pu_risks(z, d['known'], PRIOR, w))
  ),
  'upu': lambda z, d, w: losses.upu(
    z, d['known'], PRIOR, w, loss=losses.logistic_loss
  ).sum(),
  'nnpu': lambda z, d, w: losses.nnpu(
    z, d['known'], 0.7, w, all_unlabeled=True
  ).sum(),
  'vpu': lambda z, d, w: losses.vpu(z, d['known'], w).sum(),
  'pu_mlc': lambda z, d, w: losses.pu_mlc(z, d['known'], w, alpha=0.1).sum(),
  'pu_mlc_temperature': lambda z, d, w: (  # without a derivative of its own
    losses.pu_mlc_temperature(z, w, alpha=0.1).sum() * global_mean(z, w)
  ),
}
# Without a derivative.
HELD = {
  'class_weights',
  'cores2_sieve',
  'decode_complementary',
  'elr_targets',
  'elr_plus_labels',
  'ldam_margins',
  'lws_confidence',
  'proden_confidence',
  'rcr_confidence',
  'transport_labels',
  'truncated_gce_weights',
}


def test_every_loss_is_here():
  """A new one has to be added."""
  here = {name.split()[0] for name in {**OF_EXAMPLES, **COUPLED}}
  assert here == set(FUNCTIONS)


def mesh_of(devices, axis_type=AxisType.Auto):
  return jax.make_mesh(
    (devices,), (AXIS,), (axis_type,), devices=jax.devices()[:devices]
  )


SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def values(losses_by_name, floats, rest):
  return {
    name: loss({**floats, **rest}) for name, loss in losses_by_name.items()
  }


def mapped(f, devices=8, **specs):
  """Per device, as `jax.shard_map` does by default: with its check."""
  specs = {'in_specs': SPLIT, 'out_specs': SPLIT, **specs}
  return jax.jit(jax.shard_map(f, mesh=mesh_of(devices), **specs))


SOME = dict(list(OF_EXAMPLES.items())[::3])


def check_moved(run, names):
  """Examples moved to other devices, beside others, have the same values."""
  turned = jax.tree.map(lambda a: np.roll(a, 7, axis=0), (FLOATS, REST))
  found, again = jax.device_get((run(FLOATS, REST), run(*turned)))
  assert found.keys() == names.keys()
  for name, value in found.items():
    assert value.shape[0] == B, name
    assert np.all(np.isfinite(value)), name
    close(again[name], np.roll(value, 7, axis=0), atol=1e-5, err_msg=name)


def test_what_a_device_computes_does_not_depend_on_the_others():
  """A third of the losses; in the second stage all."""
  check_moved(mapped(functools.partial(values, SOME)), SOME)


def of_examples(floats, rest):
  """The values of every loss, and their derivatives in one direction.

  Forward, which compiles in half the time: of the gradient of an example by
  what it brings itself, the other direction says no more about devices.
  """
  of = lambda floats: values(OF_EXAMPLES, floats, rest)
  return jax.jvp(of, (floats,), (jax.tree.map(jnp.cos, floats),))


@pytest.mark.slow
def test_all_losses_per_device_and_on_an_explicit_mesh():
  split = NamedSharding(mesh_of(8, AxisType.Explicit), SPLIT)
  inputs = jax.device_put((FLOATS, REST), split)
  expected, slopes = jax.device_get(jax.jit(of_examples)(*inputs))
  per_device = mapped(of_examples)
  check_moved(lambda *given: per_device(*given)[0], OF_EXAMPLES)
  found, found_slopes = jax.device_get(per_device(FLOATS, REST))
  assert found.keys() == OF_EXAMPLES.keys()
  for name, value in found.items():
    assert np.all(np.isfinite(expected[name])), name
    close(value, expected[name], atol=1e-5, err_msg=name)
    if name not in HELD:
      size = np.abs(slopes[name]).max()
      assert size > 1e-3, name
      close(found_slopes[name], slopes[name], 1e-4, 1e-5 * size, err_msg=name)


def coupled(some, params, x, rest, weights):
  """Value and gradient by replicated parameters of coupled losses."""

  def value_and_grad(loss):
    def of(params):
      z = jnp.where(rest['broken'][:, None], jnp.nan, x @ params)
      return loss(z, rest, weights), ()

    (value, _), gradient = global_grad(of)(params)
    return value, gradient

  return {name: value_and_grad(COUPLED[name]) for name in some}


CLEAN = {
  **{name: REST[name] for name in ('y', 'counts', 'mask', 'direction')},
  'known': REST['candidates'],
  'bags': FLOATS['bags'],
  'bag_weights': BAG_WEIGHTS.T,
  'broken': np.zeros(B, bool),
}
BROKEN = {**CLEAN, 'broken': WEIGHTS == 0}


@functools.cache
def on_one_device(some):
  of = jax.jit(functools.partial(coupled, some))
  return jax.device_get(of(PARAMS, FLOATS['z'], CLEAN, WEIGHTS))


def check_coupled(some, found):
  expected = on_one_device(some)
  assert found.keys() == expected.keys()
  for name, (value, gradient) in found.items():
    size = np.abs(expected[name][1]).max()
    assert size > 1e-5, name
    close(value, expected[name][0], err_msg=name)
    close(gradient, expected[name][1], atol=3e-5 * size, err_msg=name)


# Losses of a batch, and others of a loop or of a derivative of their own.
TOGETHER, ALONE = tuple(COUPLED)[:6], tuple(COUPLED)[6:]


@pytest.mark.parametrize(
  ('some', 'devices'),
  [(TOGETHER, 8), slow(TOGETHER, 5), slow(ALONE, 8)],
)
def test_coupled_losses_on_several_devices(some, devices):
  """With weights spread unevenly, and NaN in rows of weight 0."""
  run = mapped(
    functools.partial(coupled, some),
    devices,
    in_specs=(WHOLE, SPLIT, SPLIT, SPLIT),
    out_specs=WHOLE,
  )
  check_coupled(some, run(PARAMS, FLOATS['z'], BROKEN, WEIGHTS))


@pytest.mark.slow
def test_coupled_losses_on_an_explicit_mesh():
  mesh = mesh_of(8, AxisType.Explicit)
  params, rows = (
    jax.device_put(a, NamedSharding(mesh, spec))
    for a, spec in (
      (PARAMS, WHOLE),
      ((FLOATS['z'], BROKEN, WEIGHTS), SPLIT),
    )
  )
  for some in (TOGETHER, ALONE):
    check_coupled(
      some, jax.jit(functools.partial(coupled, some))(params, *rows)
    )
