"""The house stands as designed: arrows between rooms, and light imports."""

import ast
import functools
import graphlib
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import jnl

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'jnl').rglob('*.py'))
TESTS = sorted((ROOT / 'tests').rglob('*_test.py'))
OUTER = ('nets', 'data', 'train', 'estimator')
LEVELS = (
  ('base', 'logspace', 'inputs'),
  ('steps',),
  (),  # the rooms of roles: losses, em, ...
  ('methods',),
  OUTER,
)
# What each outer library may be imported by; anywhere in a file, also lazily.
OWNERS = {
  'flax': ('jnl.nets',),
  'tensorflow_datasets': ('jnl.data',),
  'grain': ('jnl.data',),
  'sklearn': ('jnl.data', 'jnl.estimator'),
  'orbax': ('jnl.train._checkpoint',),
  'matplotlib': ('jnl.train.report',),
  'tqdm': ('jnl.train._fit',),
  'tensorboard': ('jnl.train.report',),
  'PIL': ('jnl.data', 'jnl.train._html'),
  'absl': ('jnl.data',),
  'faiss': ('jnl.neighbors',),
  'chex': (),
  'tensorflow': (),
}
# Roles that are built from steps: they train networks of their own.
STEPS_IN = ('jnl.teacher', 'jnl.meta._networks')
PUBLIC = {
  'data/augment',
  *(f'train/{name}' for name in ('page', 'report', 'scores', 'script')),
}
CONTRACTS = {'Contract', 'EveryMode', 'AdapterContract'}
LONG = {}  # functions of more than 50 lines of code, and their numbers


def module_of(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def tree_of(path):
  return ast.parse(path.read_text())


def imports_in(path, nodes):
  """Every module that is imported, `from jnl import losses` as jnl.losses."""
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        found.add(inner if inner in MODULES else node.module)
  return found


@functools.cache
def imports_of(path):
  """What a file imports anywhere, also within functions."""
  return imports_in(path, ast.walk(tree_of(path)))


MODULES = {module_of(path): path for path in FILES}


def of_jnl(imported):
  return {m for m in imported if m.startswith('jnl.')}


def room(module):
  return module.split('.')[1] if '.' in module else ''


def level(module):
  """How high a room of jnl stands; imports run down, or within a level."""
  return next((i for i, at in enumerate(LEVELS) if room(module) in at), 2)


def test_imports_run_one_way():
  wrong = []
  for module, path in MODULES.items():
    if module == 'jnl':
      # The rest is loaded when used; here it stands for type checkers.
      assert of_jnl(imports_in(path, tree_of(path).body)) == {'jnl.base'}
      continue
    for imported in imports_of(path):
      if imported.startswith('jnl.'):
        up = level(imported) > level(module)
        steps = imported == 'jnl.steps' and level(module) == 2
        if up or (steps and module not in STEPS_IN):
          wrong.append(f'{module} imports {imported}')
      owners = OWNERS.get(imported.split('.')[0])
      if owners is not None and not (owners and module.startswith(owners)):
        wrong.append(f'{module} imports {imported}')
  assert wrong == []


def test_what_is_private_is_of_its_room_alone():
  assert [
    f'{module} imports {imported}'
    for module, path in MODULES.items()
    for imported in of_jnl(imports_of(path))
    if '._' in imported.removeprefix('jnl.') and room(imported) != room(module)
    if (room(module), room(imported)) != ('train', 'data')  # one trainer
  ] == []


def test_nothing_imports_itself_through_others():
  """Within a level arrows may run any way, but not in a circle."""
  rooms = {}  # by all imports; files by those that load with them
  for module, path in MODULES.items():
    below = {room(m) for m in of_jnl(imports_of(path))} - {room(module)}
    rooms.setdefault(room(module), set()).update(below)
  files = {
    module: of_jnl(imports_in(path, tree_of(path).body)) - {module}
    for module, path in MODULES.items()
  }
  # Sorted from the ground up; what is left over lies on a circle or above it.
  for below in (rooms, files):
    graphlib.TopologicalSorter(below).prepare()


def test_the_core_needs_jax_numpy_optax_alone():
  allowed = {'jnl', 'jax', 'numpy', 'optax'} | sys.stdlib_module_names
  for module, path in MODULES.items():
    if level(module) < len(LEVELS) - 1:
      # Optional: what it does is done without it, too.
      own = {'faiss'} if module == 'jnl.neighbors' else set()
      found = {m.split('.')[0] for m in imports_of(path)} - allowed - own
      assert not found, f'{module} imports {found}'


def test_every_file_says_what_it_is_for():
  for path in FILES:
    assert ast.get_docstring(tree_of(path)), f'{path} has no docstring'
    for node in tree_of(path).body:
      public = isinstance(node, ast.FunctionDef | ast.ClassDef)
      if public and not node.name.startswith('_'):
        assert ast.get_docstring(node), f'{path}: {node.name} has no docstring'


def test_files_of_rooms_are_private():
  """A room hands on its names: `jnl.losses.gce`, of a file with underscore."""
  parts = [module.split('.')[1:] for module in MODULES]
  inner = {'/'.join(p) for p in parts if len(p) > 1 and p[-1][0] != '_'}
  assert inner == PUBLIC


@pytest.mark.parametrize(
  'name',
  ['losses', 'methods', 'noise', 'em', 'automata', 'belief', 'meta', 'nets'],
)
def test_a_room_shows_what_it_is_for(name):
  module = importlib.import_module(f'jnl.{name}')
  shown = [n for n in dir(module) if not n.startswith('_')]
  assert len(shown) > 5
  values = [getattr(module, n) for n in shown]
  assert not [v for v in values if isinstance(v, types.ModuleType)]


@pytest.mark.parametrize('name', ['methods', 'train'])
def test_names_are_loaded_from_where_type_checkers_find_them(name):
  module = importlib.import_module(f'jnl.{name}')
  path = ROOT / 'jnl' / name
  blocks = [n for n in tree_of(path / '__init__.py').body if type(n) is ast.If]
  told = {
    (node.module, alias.name)
    for node in ast.walk(blocks[0])
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }
  tables = {
    (f'jnl.{name}.{file}', n)
    for file, names in module._NAMES.items()
    for n in names
    if file
  }
  modules = [p.stem for p in path.glob('[a-z]*.py')]
  public = {(f'jnl.{name}', n) for n in modules}
  assert told == tables | public
  private = {f.stem for f in path.glob('_*.py')} - {'__init__'}
  assert set(module._NAMES) <= private | {''}
  for n in dir(module):
    assert getattr(module, n) is not None


def code_lines(path, node):
  """Of a function, without its docstring, comments and empty lines."""
  lines = set(range(node.lineno, node.end_lineno + 1))
  if ast.get_docstring(node):
    lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  text = path.read_text().splitlines()
  return sum(text[i - 1].strip()[:1] not in ('', '#') for i in lines)


def test_functions_are_short():
  long = {
    f'{module}.{node.name}': code_lines(path, node)
    for module, path in MODULES.items()
    for node in ast.walk(tree_of(path))
    if isinstance(node, ast.FunctionDef)
    if node.end_lineno - node.lineno > 50 and code_lines(path, node) > 50
  }
  assert long == LONG, 'shorten it, or write down why it cannot be shorter'
  assert len(LONG) <= 4


def names_of(nodes):
  """`Contract` of `Contract` and of `contract.Contract`."""
  return {getattr(node, 'attr', getattr(node, 'id', None)) for node in nodes}


def test_every_method_keeps_the_contract():
  """What returns a `Method` is made by a `Contract` beside its tests.

  And an `Adapter` by an `AdapterContract`.
  """
  constructors = {
    node.name
    for path in [*(ROOT / 'jnl/methods').glob('_*.py'), MODULES['jnl.steps']]
    for node in tree_of(path).body
    if isinstance(node, ast.FunctionDef) and node.name in jnl.methods.__all__
    if isinstance(node.returns, ast.Name)
    and node.returns.id in ('Method', 'Adapter')
  }
  made = {
    getattr(call.func, 'id', None)
    for path in TESTS
    for node in tree_of(path).body
    if isinstance(node, ast.ClassDef) and CONTRACTS & names_of(node.bases)
    for call in ast.walk(node)
    if isinstance(call, ast.Call)
  }
  assert len(constructors) >= 34
  assert constructors - made == {'build'}  # by name, whichever it is
  assert 'averaged' in made


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
