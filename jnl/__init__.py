"""JAX noisy labels: learning when labels are wrong, partial or missing.

First steps
  losses.gce(logits, labels)         in a loop of your own, in place of
                                     cross-entropy; `help(jnl.losses)` has more
  methods.elr(model, tx, ...)        what remembers, or has a second network;
                                     `help(jnl.methods)`: by kind of label
  nets.from_nnx, nets.from_linen     your network as a model
  data.from_arrays, from_table       your arrays, images, texts, tables
  train.fit(method, data, key, ...)  trains it
  train.adapt(adapter, state, ...)   goes on at test time, without labels
  estimator.NoisyLabelClassifier     all of it, as scikit-learn has it
Rooms
  audit       which labels are wrong: confident learning, scores, duplicates
  aggregate   what several votes say together: majority, EM, label models
  select      which examples to trust: small losses, mixtures, prototypes
  pseudo      targets made of predictions
  transition  what label turns into what: estimates of the matrix
  noise       wrong labels, candidates and bags, made to measure
  em          posteriors of imprecise labels and their losses
  automata    exact inference in bags: counts, relations
  belief      belief propagation, pseudo-labels of bags
  meta        weights of examples from a few clean ones
  neighbors   who is near whom; teacher, ramps: averages and schedules
  steps       what methods are built from; base, inputs, logspace: below it

`jnl.losses` and the like need jax, numpy and optax alone; `jnl.nets`,
`jnl.data`, `jnl.train` and `jnl.estimator` load what else they need when first
used. README.md, docs/ and `python experiments/noisy_labels.py --help` go on.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from jnl.base import Adapter as Adapter
from jnl.base import Method as Method
from jnl.base import Model as Model
from jnl.base import Outputs as Outputs
from jnl.base import State as State
from jnl.base import Table as Table

if TYPE_CHECKING:
  from jnl import (
    aggregate,
    audit,
    automata,
    base,
    belief,
    data,
    em,
    estimator,
    inputs,
    logspace,
    losses,
    meta,
    methods,
    neighbors,
    nets,
    noise,
    pseudo,
    ramps,
    select,
    steps,
    teacher,
    train,
    transition,
  )

__version__ = '0.1.0'
"""The one place that says it; pyproject.toml reads it from here."""

__all__ = [  # what `help(jnl)` shows; of the classes it would print tuple's own
  'aggregate',
  'audit',
  'automata',
  'base',
  'belief',
  'data',
  'em',
  'estimator',
  'inputs',
  'logspace',
  'losses',
  'meta',
  'methods',
  'neighbors',
  'nets',
  'noise',
  'pseudo',
  'ramps',
  'select',
  'steps',
  'teacher',
  'train',
  'transition',
]

if not TYPE_CHECKING:  # to mypy, a name that is not there is an error

  def __getattr__(name: str) -> ModuleType:
    if name in __all__:
      return importlib.import_module(f'jnl.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return [
    *('Adapter', 'Method', 'Model', 'Outputs', 'State', 'Table'),
    *__all__,
  ]
