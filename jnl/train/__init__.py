"""Training on arrays: scores, checkpoints, reports, what surrounds a method.

`fit` trains a method, `fit_many` several runs of one, `compare` several methods
side by side; `evaluate` scores a state on held-out data by a `Score`, of which
`scores` has the usual ones. `parallel` and `place` wire a step of a loop of
one's own to several devices. `report` writes tables, JSON lines and plots.
"""

from typing import TYPE_CHECKING

from jnl._lazy import names_of

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
  from jnl.train._evaluate import evaluate, padded_batches
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
  from jnl.train._score import Score

_NAMES = {
  '_checkpoint': ('open_checkpoints',),
  '_cli': ('option', 'parse'),
  '_compare': ('Trained', 'compare', 'curves', 'train_each', 'write_results'),
  '_evaluate': ('evaluate', 'padded_batches'),
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
  '_score': ('Score',),
  '': ('report', 'scores', 'script'),
}
"""Which file has what: a file is loaded when one of its names is first used."""

__getattr__, __dir__ = names_of(__name__, _NAMES)
__all__ = __dir__()
