"""Training on arrays: scores, checkpoints, reports, what surrounds a method.

`fit` trains a method, `fit_many` several runs of one, `train_each` several
methods, and `record` and `compare` say what came of them; `evaluate` scores a
state on held-out data by a `Score`, of which `scores` has the usual ones.
`adapt` answers a stream that an adapter learns from, and `out_of_fold` gives
probabilities of every row by a model that has not seen it. `parallel` and
`place` wire a step of a loop of one's own to several devices. `report` writes
tables, JSON lines and plots, `page` what an audit of labels found, to be looked
at; `script` is for experiments.
"""

from typing import TYPE_CHECKING

from jnl._lazy import names_of

if TYPE_CHECKING:  # "as" says to type checkers that it is handed on
  from jnl.train import page as page
  from jnl.train import report as report
  from jnl.train import scores as scores
  from jnl.train import script as script
  from jnl.train._adapt import Adapted as Adapted
  from jnl.train._adapt import adapt as adapt
  from jnl.train._checkpoint import open_checkpoints as open_checkpoints
  from jnl.train._cli import option as option
  from jnl.train._cli import options as options
  from jnl.train._cli import parse as parse
  from jnl.train._cli import run as run
  from jnl.train._compare import Comparison as Comparison
  from jnl.train._compare import Trained as Trained
  from jnl.train._compare import compare as compare
  from jnl.train._compare import compare_groups as compare_groups
  from jnl.train._compare import plot as plot
  from jnl.train._compare import record as record
  from jnl.train._compare import train_each as train_each
  from jnl.train._evaluate import evaluate as evaluate
  from jnl.train._evaluate import padded_batches as padded_batches
  from jnl.train._fit import Checkpoint as Checkpoint
  from jnl.train._fit import Fit as Fit
  from jnl.train._fit import fit as fit
  from jnl.train._fit import fit_many as fit_many
  from jnl.train._out_of_fold import OutOfFold as OutOfFold
  from jnl.train._out_of_fold import out_of_fold as out_of_fold
  from jnl.train._out_of_fold import training_size as training_size
  from jnl.train._parallel import auto as auto
  from jnl.train._parallel import check_layout as check_layout
  from jnl.train._parallel import data_mesh as data_mesh
  from jnl.train._parallel import parallel as parallel
  from jnl.train._parallel import place as place
  from jnl.train._parallel import shardings as shardings
  from jnl.train._parallel import specs as specs
  from jnl.train._plan import Augment as Augment
  from jnl.train._plan import Stream as Stream
  from jnl.train._score import Score as Score

_NAMES = {
  '_adapt': ('Adapted', 'adapt'),
  '_checkpoint': ('open_checkpoints',),
  '_cli': ('option', 'options', 'parse', 'run'),
  '_compare': (
    'Comparison',
    'Trained',
    'compare',
    'compare_groups',
    'plot',
    'record',
    'train_each',
  ),
  '_evaluate': ('evaluate', 'padded_batches'),
  '_fit': ('Checkpoint', 'Fit', 'fit', 'fit_many'),
  '_out_of_fold': ('OutOfFold', 'out_of_fold', 'training_size'),
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
  '': ('page', 'report', 'scores', 'script'),
}
"""Which file has what: a file is loaded when one of its names is first used."""

if not TYPE_CHECKING:  # to mypy, a name that is not there is an error
  __getattr__, __dir__ = names_of(__name__, _NAMES)
  __all__ = __dir__()
