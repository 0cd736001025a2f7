"""JAX noisy labels: learning when labels are wrong, partial or missing.

`jnl.losses.gce(logits, labels)` and the like need jax, numpy and optax alone;
`jnl.nets`, `jnl.data` and `jnl.train` load what else they need when first used.
"""

import importlib
from types import ModuleType

from jnl.base import Method, Model, Outputs, State, Table

_MODULES = (
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
)

__all__ = ['Method', 'Model', 'Outputs', 'State', 'Table', *_MODULES]


def __getattr__(name: str) -> ModuleType:
  if name in _MODULES:
    return importlib.import_module(f'jnl.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted(__all__)
