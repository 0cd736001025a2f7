"""The package: one version, types that are seen, and what a build packs."""

import ast
import pathlib
import re
import tomllib

import pytest

import jnl

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_the_version_is_said_once():
  project, setuptools = PROJECT['project'], PROJECT['tool']['setuptools']
  assert 'version' not in project
  assert project['dynamic'] == ['version']
  assert setuptools['dynamic']['version'] == {'attr': 'jnl.__version__'}
  # setuptools reads a literal; of anything else it would import jnl, and jax.
  tree = ast.parse((ROOT / 'jnl/__init__.py').read_text())
  values = [
    node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == '__version__'
  ]
  assert [v.value for v in values] == [jnl.__version__]
  assert re.fullmatch(r'\d+\.\d+\.\d+', jnl.__version__)


def test_those_that_tell_of_versions_know_this_one():
  cited = (ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {jnl.__version__}\n' in cited
  headings = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
  assert headings[0] == jnl.__version__


def test_a_build_packs_all_of_jnl():
  """Folders are packages, and what is no Python is named in pyproject.toml."""
  files = [p for p in (ROOT / 'jnl').rglob('*') if '__pycache__' not in p.parts]
  folders = {p for p in files if p.is_dir()}
  assert {p.parent for p in files if p.name == '__init__.py'} == {
    ROOT / 'jnl',
    *folders,
  }
  data = PROJECT['tool']['setuptools']['package-data']
  other = [p.relative_to(ROOT / 'jnl').as_posix() for p in files]
  other = [p for p in other if '.' in p and not p.endswith('.py')]
  assert other == data['jnl'] == ['py.typed']


def names_for_type_checkers(path):
  """What stands under `if TYPE_CHECKING:`, by name: as what it is handed on."""
  block = next(n for n in ast.parse(path.read_text()).body if type(n) is ast.If)
  return {
    alias.name: alias.asname
    for node in ast.walk(block)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }


def test_type_checkers_find_the_rooms():
  names = names_for_type_checkers(ROOT / 'jnl/__init__.py')
  eager = {'Adapter', 'Method', 'Model', 'Outputs', 'State', 'Table'}
  assert set(names) == set(jnl.__all__)
  assert set(dir(jnl)) == {*names, *eager}


@pytest.mark.parametrize('room', ['methods', 'train'])
def test_type_checkers_see_what_is_handed_on(room):
  """Without `as` an imported name is private to pyright and mypy --strict."""
  names = names_for_type_checkers(ROOT / 'jnl' / room / '__init__.py')
  assert names == {name: name for name in names}
  assert len(names) > 20
