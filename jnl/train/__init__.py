"""Training on arrays: scores, checkpoints, reports, what surrounds a method.

`fit` trains a method, `fit_many` several runs of one, `compare` several methods
side by side; `evaluate` scores a state on held-out data by a `Score`, of which
`scores` has the usual ones. `parallel` and `place` wire a step of a loop of
one's own to several devices. `report` writes tables, JSON lines and plots.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jnl.train import report, scores, script
  from jnl.train._checkpoint import open_checkpoints
  from jnl.train._cli import option, parse
  from jnl.train._compare import (
    Trained,
    compare,
    curves,
    train_each,
    write_results,
  )
  from jnl.train._evaluate import Score, evaluate, padded_batches
  from jnl.train._fit import Checkpoint, Fit, fit, fit_many
  from jnl.train._parallel import (
    auto,
    check_layout,
    data_mesh,
    parallel,
    place,
    shardings,
    specs,
  )
  from jnl.train._plan import Augment, Stream

_NAMES = {
  '_checkpoint': ('open_checkpoints',),
  '_cli': ('option', 'parse'),
  '_compare': ('Trained', 'compare', 'curves', 'train_each', 'write_results'),
  '_evaluate': ('Score', 'evaluate', 'padded_batches'),
  '_fit': ('Checkpoint', 'Fit', 'fit', 'fit_many'),
  '_parallel': (
    'auto',
    'check_layout',
    'data_mesh',
    'parallel',
    'place',
    'shardings',
    'specs',
  ),
  '_plan': ('Augment', 'Stream'),
}
"""Which file has what: a file is loaded when one of its names is first used."""
_MODULES = ('report', 'scores', 'script')
_FILE_OF = {name: file for file, names in _NAMES.items() for name in names}

__all__ = sorted([*_FILE_OF, *_MODULES])


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return importlib.import_module(f'jnl.train.{name}')
  if name not in _FILE_OF:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(f'{__name__}.{_FILE_OF[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__
