"""Weak evidence about bags of instances, by exact recursions.

A bag is a row of instances whose labels are not seen; what is seen is a count,
an interval of counts, a relation of two, or anything else that a finite
automaton can check by reading the labels in order.
"""

from jnl.automata._counts import (
  at_least,
  count,
  count_one_versus_rest,
  interval,
  multiple_instance,
  one_versus_rest,
)
from jnl.automata._general import (
  Automaton,
  all_equal_automaton,
  at_least_automaton,
  count_automaton,
  infer,
  interval_automaton,
  pair_automaton,
)
from jnl.automata._inputs import Inference
from jnl.automata._joint import (
  joint_count,
)
from jnl.automata._max_counts import (
  max_count_messages,
)
from jnl.automata._pairs import (
  comparison,
  confidence_difference,
  pair,
  positive_confidence,
  similarity,
  similarity_confidence,
)
from jnl.automata._tree import (
  CountMessages,
  count_log_probs,
  count_messages,
)

__all__ = [
  'Automaton',
  'CountMessages',
  'Inference',
  'all_equal_automaton',
  'at_least',
  'at_least_automaton',
  'comparison',
  'confidence_difference',
  'count',
  'count_automaton',
  'count_log_probs',
  'count_messages',
  'count_one_versus_rest',
  'infer',
  'interval',
  'interval_automaton',
  'joint_count',
  'max_count_messages',
  'multiple_instance',
  'one_versus_rest',
  'pair',
  'pair_automaton',
  'positive_confidence',
  'similarity',
  'similarity_confidence',
]
