"""The README's code runs, and says what it prints."""

import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def test_the_first_example_is_short_and_early():
  assert TEXT[: TEXT.index(BLOCKS[0])].count('\n') < 10
  end = TEXT.index(BLOCKS[0]) + len(BLOCKS[0])
  assert TEXT[:end].count('\n') <= 30


@pytest.mark.parametrize('code', BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(code, capsys):
  exec(compile(code, 'README.md', 'exec'), {})
  printed = capsys.readouterr().out
  if 'print(' in code:
    assert float(printed) > 0.93


def test_the_two_commands_stand_alone():
  for command in (
    'pip install -e ".[experiments]" && python experiments/noisy_labels.py',
    'pip install -e ".[test]" && pytest',
  ):
    assert f'\n{command}\n' in TEXT


def test_the_table_names_what_exists():
  """Every `call` of the paper table, and every script of its commands."""
  rows = [r for r in TEXT.splitlines() if r.startswith('|') and '`' in r]
  assert rows
  for row in rows:
    for name in re.findall(r'`(jnl\.[a-z_.0-9]+|[a-z_]+\.[a-z_0-9]+)`', row):
      pkgutil.resolve_name('jnl.' + name.removeprefix('jnl.'))
    for script in re.findall(r'experiments/\w+\.py', row):
      assert (ROOT / script).exists()
