"""The area under the ROC curve; batches, and means over them."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jnl.data import PerRun
from jnl.train import padded_batches, roc_auc
from jnl.train._evaluate import average


@pytest.mark.parametrize('levels', [3, 50, 10**6])
def test_it_is_that_of_scikit_learn_with_and_without_ties(levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(0, levels, 3000).astype(np.float32)
  labels = (rng.random(3000) < 0.2 + 0.5 * scores / levels).astype(np.int32)
  expected = roc_auc_score(labels, scores)
  found = roc_auc(jnp.asarray(scores), jnp.asarray(labels))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_class_alone_has_no_order():
  assert roc_auc(jnp.arange(4.0), jnp.ones(4, int)) == 0.5
  assert roc_auc(jnp.arange(4.0), jnp.zeros(4, int)) == 0.5


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


def test_a_mean_over_batches_is_that_over_examples():
  score = np.arange(12.0)
  weight = np.array([1, 0, 2, 1, 0, 0, 0, 0, 0, 3, 1, 1.0])
  batches = [{'weight': w} for w in weight.reshape(3, 4)]
  with np.errstate(invalid='ignore'):
    means = [
      np.sum(v * w) / np.sum(w)  # NaN where there is no weight
      for v, w in zip(score.reshape(3, 4), weight.reshape(3, 4), strict=True)
    ]
  expected = np.average(score, weights=weight)
  np.testing.assert_allclose(average(means, batches), expected)
  # With weights of each run, and two scores.
  both = [np.tile(m, (2, 2)) for m in means]
  of_runs = [{'weight': PerRun(np.stack([b['weight']] * 2))} for b in batches]
  np.testing.assert_allclose(average(both, of_runs), np.full((2, 2), expected))
