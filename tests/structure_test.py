"""The house stands as designed: arrows between rooms, and light imports."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'jnl').rglob('*.py'))
OUTER = ('nets', 'data', 'train')
# What each outer library may be imported by; anywhere in a file, also lazily.
OWNERS = {
  'flax': ('jnl.nets',),
  'tensorflow_datasets': ('jnl.data',),
  'grain': ('jnl.data',),
  'sklearn': ('jnl.data',),
  'orbax': ('jnl.train._checkpoint',),
  'matplotlib': ('jnl.train.report',),
  'tqdm': ('jnl.train._fit',),
  'tensorboard': ('jnl.train.report',),
  'PIL': ('jnl.data',),
  'absl': ('jnl.data',),
  'faiss': ('jnl.neighbors',),
  'chex': (),
  'tensorflow': (),
}


def module_of(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports_of(path):
  """Every module a file imports, `from jnl import losses` as jnl.losses."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      if node.module == 'jnl':
        found |= {f'jnl.{alias.name}' for alias in node.names}
      else:
        found.add(node.module)
  return found


def level(module):
  """How high a room of jnl stands; imports run down, or within a level."""
  room = module.split('.')[1] if '.' in module else ''
  if room in ('base', 'logspace', 'inputs'):
    return 0
  if room in ('tasks', 'methods'):
    return {'tasks': 2, 'methods': 3}[room]
  return 4 if room in OUTER else 1


@pytest.mark.parametrize('path', FILES, ids=module_of)
def test_imports_run_one_way(path):
  module = module_of(path)
  if module == 'jnl':
    assert {m for m in imports_of(path) if m.startswith('jnl')} == {'jnl.base'}
    return
  for imported in imports_of(path):
    if imported.startswith('jnl.'):
      assert level(imported) <= level(module), f'{module} imports {imported}'
    owners = OWNERS.get(imported.split('.')[0])
    if owners is not None:
      assert owners, f'{module} imports {imported}'
      assert module.startswith(owners), f'{module} imports {imported}'


def test_no_room_imports_itself_through_others():
  """Within a level arrows may run any way, but not in a circle."""
  room = lambda module: module.split('.')[1] if '.' in module else module
  below = {}
  for path in FILES:
    own = room(module_of(path))
    rooms = {room(m) for m in imports_of(path) if m.startswith('jnl.')}
    below.setdefault(own, set()).update(rooms - {own})
  # Sorted from the ground up; what is left over lies on a circle or above it.
  graphlib.TopologicalSorter(below).prepare()


@pytest.mark.parametrize('path', FILES, ids=module_of)
def test_the_core_needs_jax_numpy_optax_alone(path):
  module = module_of(path)
  if module != 'jnl' and level(module) == 4:
    return
  allowed = {'jnl', 'jax', 'numpy', 'optax'} | sys.stdlib_module_names
  # Optional: what it does is done without it, too.
  allowed |= {'faiss'} if module == 'jnl.neighbors' else set()
  assert {m.split('.')[0] for m in imports_of(path)} <= allowed


@pytest.mark.parametrize('path', FILES, ids=module_of)
def test_every_file_says_what_it_is_for(path):
  tree = ast.parse(path.read_text())
  assert ast.get_docstring(tree), f'{path} has no docstring'
  for node in tree.body:
    public = isinstance(node, ast.FunctionDef | ast.ClassDef)
    if public and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{path}: {node.name} has no docstring'


def test_import_jnl_loads_little():
  code = (
    'import sys, jnl, jnl.losses, jnl.neighbors, jnl.methods._elr\n'
    "heavy = 'flax orbax grain tensorflow_datasets chex sklearn faiss '\\\n"
    "'matplotlib'\n"
    'print(*(m for m in heavy.split() if m in sys.modules))'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert run.stdout.strip() == ''
