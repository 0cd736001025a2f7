"""What a user meets says what it computes, takes and returns."""

import importlib
import inspect
import re

import pytest

ROOMS = (
  'automata',
  'base',
  'belief',
  'data',
  'data.augment',
  'em',
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
  'train.scores',
  'train.script',
)


def public(room):
  """Public functions and classes, by name: those handed on, or of the file."""
  module = importlib.import_module(f'jnl.{room}')
  own = [
    name
    for name, value in vars(module).items()
    if getattr(value, '__module__', '') == module.__name__
    and not name.startswith('_')
  ]
  names = getattr(module, '__all__', own)
  found = {name: getattr(module, name) for name in names}
  return {
    name: value
    for name, value in found.items()
    if inspect.isclass(value) or inspect.isroutine(value) or wrapped(value)
  }


def wrapped(value):
  """A function behind `jax.jit`."""
  return callable(value) and hasattr(value, '__wrapped__')


def arguments_of(doc):
  """The names in `Args:`, of which a line may have several."""
  section = re.search(r'^Args:\n((?: +.*\n|\n)*)', doc + '\n', re.MULTILINE)
  names = re.compile(r'^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):', re.MULTILINE)
  lines = names.findall(section[1]) if section else []
  return {name.strip(' *') for line in lines for name in line.split(',')}


@pytest.mark.parametrize('room', ROOMS)
def test_docstrings_are_whole(room):
  lacking = {}
  for name, value in public(room).items():
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
