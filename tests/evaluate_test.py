"""The area under the ROC curve."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jnl.train.evaluate import roc_auc


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
