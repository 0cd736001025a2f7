"""What a user meets says what it computes, takes and returns."""

import inspect
import re

from papers import ROOMS, functions
import pytest

# What rooms share, and the files of reports, say less.
WHOLE = [r for r in ROOMS if r not in ('inputs', 'logspace', 'train.report')]


def arguments_of(doc):
  """The names in `Args:`, of which a line may have several."""
  section = re.search(r'^Args:\n((?: +.*\n|\n)*)', doc + '\n', re.MULTILINE)
  names = re.compile(r'^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):', re.MULTILINE)
  lines = names.findall(section[1]) if section else []
  return {name.strip(' *') for line in lines for name in line.split(',')}


@pytest.mark.parametrize('room', WHOLE)
def test_docstrings_are_whole(room):
  lacking = {}
  for name, value in functions(room).items():
    doc = inspect.getdoc(value) or ''
    first, *rest = doc.split('\n')
    faults = []
    if not first.endswith('.') or rest[:1] not in ([], ['']):
      faults.append('a first line that is one line and ends with a period')
    if not inspect.isclass(value):
      signature = inspect.signature(value)
      missing = signature.parameters.keys() - arguments_of(doc)
      faults += [f'Args: {argument}' for argument in sorted(missing)]
      silent = signature.return_annotation in (None, 'None')
      if not silent and not re.search(r'^(Returns|Yields):$', doc, re.M):
        faults.append('Returns')
    if faults:
      lacking[name] = faults
  assert not lacking
