"""What a score is: rows of each example, then numbers of the whole set."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jnl.base import Array, Batch, Inputs, Outputs, PyTree, State

Predict = Callable[[State, Inputs], Outputs]


def of_x(predict: Predict, state: State, batch: Batch) -> Outputs:
  """What a method predicts of the `x` of a batch."""
  return predict(state, batch['x'])


class Score(NamedTuple):
  """Numbers of a whole held-out set; `jnl.train.scores` has the usual ones.

  Means over examples, and what is none: an area under a curve, a quantile, a
  score of the worst class. Both parts are pure; padding is taken away between
  them.

  Attributes:
    collect: `(outputs, batch) -> rows`, a tree of arrays [b, ...]: what is to
      be known of each example. Every device holds the rows of the whole set:
      collect what is small.
    reduce: `(rows, arrays) -> {name: []}`, called once, with the rows [n, ...]
      and the arrays [n, ...] of the set but for `x`, `weight` always among
      them. An example of weight 0 is not there.
    forward: `(predict, state, batch) -> outputs`, where they are not those of
      `x`: of bags of instances, say.

  >>> import jax
  >>> mean_top = Score(
  ...   collect=lambda outputs, batch: jax.nn.softmax(outputs.logits).max(-1),
  ...   reduce=lambda rows, arrays: {'mean_top': rows.mean()},
  ... )
  """

  collect: Callable[[Any, Batch], PyTree]
  reduce: Callable[[PyTree, Mapping[str, Array]], Mapping[str, Array]]
  forward: Callable[[Predict, State, Batch], Any] = of_x
