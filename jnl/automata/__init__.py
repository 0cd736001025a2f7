"""Weak evidence about bags of instances, by exact recursions.

A bag is a row of instances whose labels are not seen; what is seen is a count,
an interval of counts, a relation of two, or anything else that a finite
automaton can check by reading the labels in order. The posteriors and the
likelihood, an `Inference`, given
  count                  the number of positives: label proportions, PU, UU
  interval               bounds on that number
  at_least               a lower bound on it
  multiple_instance      whether there is any positive
  count_one_versus_rest  the count of each class, taken on its own
  joint_count            the counts of all classes at once
  pair                   a relation of two instances, by its log weights
  positive_confidence    each instance's chance to be positive
  infer                  that an automaton accepts the labels
Log weights of two labels, for `pair`
  similarity             equal, or unequal
  similarity_confidence  equal with a known probability
  comparison             the first at least as positive as the second
  confidence_difference  how much surer the first is positive
An `Automaton`, for `infer`, that accepts
  count_automaton        an exact count
  interval_automaton     a count within bounds
  at_least_automaton     a count of some or more
  all_equal_automaton    labels that are all of one class
  pair_automaton         two labels, by their log weights
The pieces
  count_messages         `CountMessages` of a factor on the count
  max_count_messages     the same with maxima for sums
  likeliest              the positives of the likeliest labels with a count
  count_log_probs        the log-probabilities of all counts
  one_versus_rest        binary logits of each class against the others
  Inference              what evidence says
  Automaton              states, steps and ends
  CountMessages          messages, and the likelihood
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
from jnl.automata._max_counts import likeliest, max_count_messages
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
  'likeliest',
  'max_count_messages',
  'multiple_instance',
  'one_versus_rest',
  'pair',
  'pair_automaton',
  'positive_confidence',
  'similarity',
  'similarity_confidence',
]


def __dir__() -> list[str]:
  return __all__
