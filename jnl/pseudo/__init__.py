"""Pseudo-labels: which guesses count, what they are, how many of each class.

A rule (`Rule`) looks at predictions, may remember, and says how much the guess
of each row counts; an alignment is a rule that changes predictions. The batch
of a step and the whole set of a round are the same to it. `methods.weak_strong`
trains with any of them.

What a rule is
  Rule           two functions, `init` and `apply`
  Seen           what it may look at
Rules of a step: which guesses count
  everything        all
  fixed             the sure ones
  relative          those as sure as labeled rows are (AdaMatch)
  flexmatch         a threshold for each class, by what has been learned
  freematch         a threshold for each class, by how sure the network is
  softmatch         all, the unsure ones less
  dash              those of a small loss; `dash_threshold` says how small
  dash_targets      what they are then
  low_entropy       those of the lowest entropies (FST)
Their memories
  Learned           of `flexmatch`
  Levels            of `freematch`
  Spread            of `softmatch`
Rules of a round, for a whole set
  most_confident    the k surest
  curriculum        a share that grows, up to all
  share_per_class   a share of the guesses of each class (CBST)
  transductive      those above thresholds that bound their errors best
  boards            the k most probable of each class; a row may be on several
Quotas and sets of guesses
  top_per_class     the k rows that are most probably of each class
  growing_quota     how many in each round (GRIP)
  leaderboard       pseudo-labels as FPL published them, in one pass
  balanced_copies   how often to learn each row, for classes of equal size
  sub_labels        a weak label and a guess as one label (SPL)
Targets
  one_hot           labels as distributions
  hard              the most probable class alone
  soft              all of the prediction, sharpened
  sharpen           distributions with more of their mass at the largest class
  co_refine         a label mixed with predictions as it is trusted (DivideMix)
  co_guess          the mean of several predictions, sharpened (DivideMix)
Alignments: predictions whose mean is moved to where it ought to be
  ema_alignment     by a moving average; it remembers `Means`
  queue_alignment   by the last batches; it remembers `Queues`
Beside the loss of guesses
  class_fairness         that guesses favor no class (FreeMatch)
  annealing_threshold    labeled rows that are sure are left out (UDA)
  shrinking              the rule of ShrinkMatch; it remembers `Shrinking`
  shrunk_cross_entropy   unsure guesses, learned among fewer classes
  shrinkable             which guesses that can be

`select` says which labels are trusted, `steps.mix` mixes examples.
"""

from jnl.pseudo._adaptive import (
  Learned,
  Levels,
  Spread,
  flexmatch,
  freematch,
  softmatch,
)
from jnl.pseudo._align import (
  Means,
  Queues,
  ema_alignment,
  queue_alignment,
)
from jnl.pseudo._quotas import (
  balanced_copies,
  growing_quota,
  leaderboard,
  sub_labels,
  top_per_class,
)
from jnl.pseudo._rounds import (
  boards,
  curriculum,
  most_confident,
  share_per_class,
  transductive,
)
from jnl.pseudo._rule import Rule, Seen
from jnl.pseudo._rules import (
  dash,
  dash_targets,
  dash_threshold,
  everything,
  fixed,
  low_entropy,
  relative,
)
from jnl.pseudo._shrink import (
  Shrinking,
  shrinkable,
  shrinking,
  shrunk_cross_entropy,
)
from jnl.pseudo._targets import (
  annealing_threshold,
  class_fairness,
  co_guess,
  co_refine,
  hard,
  one_hot,
  sharpen,
  soft,
)

__all__ = [
  'Learned',
  'Levels',
  'Means',
  'Queues',
  'Rule',
  'Seen',
  'Shrinking',
  'Spread',
  'annealing_threshold',
  'balanced_copies',
  'boards',
  'class_fairness',
  'co_guess',
  'co_refine',
  'curriculum',
  'dash',
  'dash_targets',
  'dash_threshold',
  'ema_alignment',
  'everything',
  'fixed',
  'flexmatch',
  'freematch',
  'growing_quota',
  'hard',
  'leaderboard',
  'low_entropy',
  'most_confident',
  'one_hot',
  'queue_alignment',
  'relative',
  'share_per_class',
  'sharpen',
  'shrinkable',
  'shrinking',
  'shrunk_cross_entropy',
  'soft',
  'softmatch',
  'sub_labels',
  'top_per_class',
  'transductive',
]


def __dir__() -> list[str]:
  return __all__
