"""Held-out batches; scores are of the whole set, and fit it or are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnl.base import Method, Outputs, State
from jnl.data import PerRun
from jnl.train import Score, data_mesh, evaluate, fit, padded_batches, place

N, KEY = 37, jax.random.key(0)
RNG = np.random.default_rng(0)
ARRAYS = {
  'x': RNG.normal(size=(N, 3)).astype(np.float32),
  'labels': RNG.integers(0, 3, N).astype(np.int32),
  'group': RNG.integers(0, 4, N).astype(np.int32),
}


def predict(state, x):
  return Outputs(x * state.params, x)


def a_state():
  return State(jnp.int32(0), jnp.float32(2), {}, ())


def a_method():
  step = lambda state, batch, key: (state, {'loss': jnp.mean(batch['x'])})
  return Method(lambda key: a_state(), step, predict)


def of_top(logits, xp=jnp):
  return xp.max(logits, axis=-1)


TOP = Score(
  lambda outputs, batch: (of_top(outputs.logits), batch['x'][:, :2]),
  lambda rows, arrays: {
    'median': jnp.median(rows[0]),
    'spread': jnp.ptp(rows[1]),
    'of_group': jnp.max(
      jax.ops.segment_sum(rows[0] * arrays['weight'], arrays['group'], 4)
    ),
  },
)


def test_batches_are_padded_to_a_multiple_of_the_devices():
  x, weight = np.arange(13.0), np.arange(13) % 2.0
  runs = np.stack([x, -x])
  batches = padded_batches({'x': x, 'z': PerRun(runs), 'weight': weight}, 5, 4)
  assert [len(b['x']) for b in batches] == [8, 8]
  joined = np.concatenate([b['z'].values for b in batches], axis=1)
  np.testing.assert_array_equal(joined, np.pad(runs, ((0, 0), (0, 3))))
  own = np.concatenate([b['weight'] for b in batches])
  np.testing.assert_array_equal(own, np.pad(weight, (0, 3)))
  # Of so few rows every device has a copy: they are not padded.
  assert [len(b['x']) for b in padded_batches({'x': x[:3]}, 5, 4)] == [3]


@pytest.mark.parametrize('devices', [1, 8])
def test_a_score_is_of_the_whole_set(devices):
  weight = (np.arange(N) % 5 > 0).astype(np.float32)
  arrays = {**ARRAYS, 'weight': weight}
  state = place(a_state(), data_mesh(jax.devices()[:devices]))
  found = evaluate(predict, state, arrays, score=TOP, batch_size=10)
  top = of_top(2 * ARRAYS['x'], np)
  groups = [np.sum((top * weight)[ARRAYS['group'] == g]) for g in range(4)]
  expected = {
    'median': np.median(top),
    'spread': np.ptp(ARRAYS['x'][:, :2]),
    'of_group': max(groups),
  }
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_other_outputs_than_those_of_x():
  both = Score(
    lambda outputs, batch: outputs[0].logits - outputs[1].logits,
    lambda rows, arrays: {'gap': jnp.max(jnp.abs(rows))},
    forward=lambda predict, state, batch: (
      predict(state, batch['x']),
      predict(state, batch['x_other']),
    ),
  )
  arrays = {'x': ARRAYS['x'], 'x_other': ARRAYS['x'] + 1}
  found = evaluate(predict, a_state(), arrays, score=both)
  assert found['gap'] == pytest.approx(2, abs=1e-5)


ROWS = lambda outputs, batch: outputs.logits


@pytest.mark.parametrize(
  ('score', 'error', 'message'),
  [
    ('accuracy', TypeError, r"scores\['t'\] must be a Score"),
    (
      Score(
        lambda outputs, batch: outputs.logits.mean(), lambda r, a: {'m': r}
      ),
      ValueError,
      r"scores\['t'\]: collect must give rows \[b, ...\].* got shape \(\)",
    ),
    (
      Score(ROWS, lambda rows, arrays: {'m': rows['top'].mean()}),
      ValueError,
      r"scores\['t'\]: reduce does not take the rows.*\(37, 3\)",
    ),
    (
      Score(ROWS, lambda rows, arrays: jnp.mean(rows)),
      ValueError,
      r"scores\['t'\]: reduce must give numbers by name",
    ),
    (Score(ROWS, lambda r, a: {'m': r.mean(0)}), ValueError, r'\(3,\)'),
    (Score(ROWS, lambda r, a: {}), ValueError, 'numbers by name'),
    (
      Score(lambda o, batch: batch['counts'], lambda r, a: {'m': r.mean()}),
      ValueError,
      r"held_out\['t'\] lacks 'counts', which scores\['t'\] reads; it has",
    ),
    (
      Score(ROWS, lambda r, arrays: {'m': r.mean() * arrays['x'].mean()}),
      ValueError,
      r"what reduce is given of held_out\['t'\] lacks 'x'",
    ),
    (
      Score(ROWS, lambda r, arrays: {'a': r.mean()}),
      ValueError,
      r"two sets have scores called \['t_a_a'\]",
    ),
  ],
)
def test_scores_that_do_not_fit_are_named(score, error, message):
  held_out, scores = {'t': ARRAYS}, {'t': score}
  if 'two sets' in message:
    other = Score(ROWS, lambda r, a: {'a_a': r.mean()})
    held_out, scores = {'t': ARRAYS, 't_a': ARRAYS}, {'t': other, 't_a': score}
  with pytest.raises(error, match=message):
    fit(
      a_method(),
      ARRAYS,
      KEY,
      epochs=1,
      batch_size=8,
      held_out=held_out,
      scores=scores,
    )


def test_a_score_may_not_be_called_as_a_metric():
  method = a_method()
  step = lambda state, batch, key: (state, {'t_a': jnp.mean(batch['x'])})
  with pytest.raises(ValueError, match=r"a score called \['t_a'\]"):
    fit(
      method._replace(step=step),
      ARRAYS,
      KEY,
      epochs=1,
      batch_size=8,
      held_out={'t': ARRAYS},
      scores={'t': Score(ROWS, lambda r, a: {'a': r.mean()})},
    )
