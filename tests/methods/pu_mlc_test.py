"""PU-MLC as a method: what it descends, with and without the mixed pass."""

from contract import CLASSES, Contract, examples, network, optimizer
from fixture_methods import smooth
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import losses
from jnl.base import shuffle_within
from jnl.methods import pu_mlc
from jnl.methods._mixing import MIX_TAG, RATIO_TAG
from jnl.steps import linear, mix, mixup_ratio
from jnl.teacher import averaged

KEY = jax.random.key(0)
B, DIM = 24, 5


@pytest.mark.slow
class TestContract(Contract):
  def make(self):
    return pu_mlc(network(), optimizer())

  def arrays(self):
    known = examples()
    candidates = known['candidates'] & ~known['candidates'].all(1)[:, None]
    return {'x': known['x'], 'positive': candidates}


def batch_of(**change):
  rng = np.random.default_rng(0)
  batch = {
    'x': rng.normal(size=(B, DIM)).astype(np.float32),
    'positive': rng.random((B, CLASSES)) < 0.3,
    'index': np.arange(B, dtype=np.int32),
    'weight': (rng.random(B) * (rng.random(B) < 0.8)).astype(np.float32),
    **change,
  }
  return {k: v for k, v in batch.items() if v is not None}


def written_out(params, batch, mixup):
  """The loss of the batch from the losses, with pairs drawn again."""
  model = smooth(DIM, 8, CLASSES)
  apply = lambda x: model.apply(params, {}, x, None, True)[0].logits
  x, positive, weight = batch['x'], batch['positive'], batch['weight']
  there, index = weight > 0, batch['index']
  ratio = mixup_ratio(jax.random.fold_in(KEY, RATIO_TAG), 0.3)
  log = jnp.where(positive, 0, jax.nn.log_sigmoid(apply(x)))
  rows = jnp.arange(B)
  partner = shuffle_within(
    jax.random.fold_in(KEY, MIX_TAG), index, rows, where=there
  )
  said = apply(mix(ratio, jnp.asarray(x), x[partner]))
  terms = losses.mixup_log_consistency(
    said, log, log[partner], ratio, offset=1e-10
  )
  mixed = (weight[:, None] * terms).sum() / weight.sum()
  first = losses.pu_mlc(apply(x), positive, weight, offset=2e-10).sum()
  return first + mixup * mixed, (first, mixed)


def test_a_step_descends_both_terms():
  model, batch = smooth(DIM, 8, CLASSES), batch_of()
  params, _ = model.init(KEY)
  for mixup in (0.0, 0.5):
    method = pu_mlc(model, optax.sgd(1.0), mixup=mixup)
    state, metrics = jax.jit(method.step)(method.init(KEY), batch, KEY)
    of = jax.jit(
      jax.value_and_grad(written_out, has_aux=True), static_argnums=2
    )
    (value, (first, mixed)), slope = of(params, batch, mixup)
    close = np.testing.assert_allclose
    close(metrics['loss'], value, rtol=1e-5)
    close(metrics['variational'], first, rtol=1e-5)
    close(metrics['consistency'], mixed if mixup else 0, rtol=1e-5)
    for name, moved in state.params.items():
      close(params[name] - moved, slope[name], rtol=1e-4, atol=1e-5)


def test_it_finds_labels_that_are_not_known():
  """Of rows that are told apart easily, a third of the labels known."""
  rng = np.random.default_rng(1)
  truth = rng.random((256, 3)) < 0.4
  x = np.float32(2 * truth - 1) + rng.normal(size=truth.shape) / 3
  batch = {
    'x': x.astype(np.float32),
    'positive': truth & (rng.random(truth.shape) < 0.3),
    'index': np.arange(256),
    'weight': np.ones(256, np.float32),
  }
  method = averaged(pu_mlc(linear(3, 3), optax.adam(0.05)), decay=0.9)
  step = lambda state, i: method.step(state, batch, jax.random.fold_in(KEY, i))
  state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(100)))(
    method.init(KEY)
  )
  scores = method.predict(state, batch['x']).logits
  for k in range(3):
    ranked = truth[np.argsort(-scores[:, k]), k]
    assert ranked[: truth[:, k].sum()].mean() > 0.9


@pytest.mark.parametrize(
  ('change', 'error', 'match'),
  [
    ({'positive': None}, ValueError, 'positive'),
    ({'positive': np.ones((B, CLASSES), np.int32)}, TypeError, 'positive'),
    ({'positive': np.ones((B, CLASSES + 1), bool)}, ValueError, 'positive'),
    ({'positive': np.ones((B - 1, CLASSES), bool)}, ValueError, 'positive'),
    ({'positive': np.ones(B, bool)}, ValueError, r'positive must be \[b, c\]'),
    ({'weight': np.ones((B, 1), np.float32)}, ValueError, 'weight'),
    ({'x': np.ones((B, DIM), np.int32)}, TypeError, 'floating'),
  ],
)
def test_a_batch_that_does_not_fit_is_refused(change, error, match):
  method = pu_mlc(linear(DIM, CLASSES), optax.sgd(0.1))
  batch = batch_of(**change)
  with pytest.raises(error, match=match):
    jax.eval_shape(lambda: method.step(method.init(KEY), batch, KEY))


@pytest.mark.parametrize(
  'name', ['gamma', 'alpha', 'mixup', 'mixup_alpha', 'offset']
)
def test_numbers_are_checked(name):
  with pytest.raises(ValueError, match=name):
    pu_mlc(linear(2, 3), optax.sgd(0.1), **{name: -1.0})
