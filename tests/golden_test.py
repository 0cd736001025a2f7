"""Numbers computed with official implementations, against the public API.

Reads every `<system>__<function>__<case>.npz` in the folder JNL_GOLDEN
(default: `golden` beside this file) and runs it through a table `(system,
function) -> check`; sizes and hyperparameters come from the file. A check must
read all the numbers of a file, or say why not.
"""

import os
import pathlib

import golden_automata
import golden_belief
from golden_case import Case
import golden_em
import golden_losses
import golden_meta
import golden_noise
import golden_proportions
import jax
import numpy as np
import pytest

DEFAULT = pathlib.Path(__file__).parent / 'golden'
FOLDER = pathlib.Path(os.environ.get('JNL_GOLDEN', DEFAULT))
FILES = sorted(FOLDER.glob('*.npz'))
CHECKS = {
  **golden_automata.CHECKS,
  **golden_belief.CHECKS,
  **golden_em.CHECKS,
  **golden_losses.CHECKS,
  **golden_meta.CHECKS,
  **golden_noise.CHECKS,
  **golden_proportions.CHECKS,
}


def pair(path):
  return tuple(path.stem.split('__')[:2])


def runs():
  """Every file in the table, in every precision it has numbers of."""
  for path in FILES:
    if pair(path) in CHECKS:
      with np.load(path) as file:
        precisions = Case(dict(file), 'f32').precisions()
      for precision in precisions:
        yield pytest.param(path, precision, id=f'{path.stem}-{precision}')


@pytest.mark.parametrize(('path', 'precision'), list(runs()))
def test_golden(path, precision):
  with np.load(path) as file:
    case = Case(dict(file), precision)
  with jax.enable_x64(precision == 'f64'):
    CHECKS[pair(path)](case)
  assert case.compared, f'{path.name}: nothing was compared'
  assert not case.unread(), f'{path.name}: not compared: {case.unread()}'


def test_every_check_has_a_file():
  """A misspelt name in the table would otherwise check nothing."""
  assert set(CHECKS) <= {pair(path) for path in DEFAULT.glob('*.npz')}


def test_folder_is_not_empty():
  assert FILES, f'no golden files in {FOLDER}'


def test_report_what_is_not_built(record_property, capsys):
  """Names the files whose function has no check yet; their number may fall."""
  missing = sorted(
    {'__'.join(pair(p)) for p in FILES} - {'__'.join(key) for key in CHECKS}
  )
  record_property('not_built', missing)
  with capsys.disabled():
    for name in missing:
      print(f'\nnot built: {name}', end='')
  # The folder of the repository holds only what is built.
  assert FOLDER != DEFAULT or not missing
