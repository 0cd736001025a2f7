"""JAX noisy labels: learning when labels are wrong, partial or missing.

`jnl.losses.gce(logits, labels)` and the like need jax, numpy and optax alone;
`jnl.nets`, `jnl.data` and `jnl.train` load what else they need when first used.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from jnl.base import Method, Model, Outputs, State, Table

if TYPE_CHECKING:
  from jnl import (
    automata,
    base,
    belief,
    data,
    em,
    inputs,
    logspace,
    losses,
    meta,
    methods,
    neighbors,
    nets,
    noise,
    ramps,
    steps,
    teacher,
    train,
  )

__version__ = '0.1.0'
"""The one place that says it; pyproject.toml reads it from here."""

__all__ = [
  'Method',
  'Model',
  'Outputs',
  'State',
  'Table',
  'automata',
  'base',
  'belief',
  'data',
  'em',
  'inputs',
  'logspace',
  'losses',
  'meta',
  'methods',
  'neighbors',
  'nets',
  'noise',
  'ramps',
  'steps',
  'teacher',
  'train',
]

if not TYPE_CHECKING:  # to mypy, a name that is not there is an error

  def __getattr__(name: str) -> ModuleType:
    if name in __all__:
      return importlib.import_module(f'jnl.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return __all__
