"""What the README and docs/choose.md name exists; .ci/wheel runs its code."""

import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'README.md').read_text()
PAGES = ('README.md', 'docs/choose.md')
FIRST = re.search(r'```python\n(.*?)```', TEXT, re.DOTALL)[1]
NAME = r'`(jnl\.[a-z_.0-9]+|[a-z_]+\.[a-z_0-9]+)[`(]'
NUMBER = r'\b\d\d?\.\d \+- \d+\.\d'


def without_code(page):
  text = (ROOT / page).read_text().replace('±', '+-')
  return re.sub(r'```.*?```', '', text, flags=re.DOTALL)


def rows_of(page):
  return [r for r in without_code(page).splitlines() if r.startswith('|')]


def test_the_readme_fits_three_screens():
  assert TEXT.count('\n') <= 125


def test_the_first_example_is_short_and_early():
  assert TEXT[: TEXT.index(FIRST)].count('\n') < 10
  end = TEXT.index(FIRST) + len(FIRST)
  assert TEXT[:end].count('\n') <= 30


def test_the_two_commands_stand_alone():
  for command in (
    'pip install -e ".[experiments]" && python experiments/noisy_labels.py',
    'pip install -e ".[test]" && pytest',
  ):
    assert f'\n{command}\n' in TEXT


@pytest.mark.parametrize('page', PAGES)
def test_calls_exist(page):
  names = re.findall(NAME, without_code(page))
  assert len(names) >= 10
  for name in names:
    ours = not name.startswith(('jnl.', 'jax.'))
    pkgutil.resolve_name('jnl.' + name if ours else name)


@pytest.mark.parametrize('page', PAGES)
def test_files_exist(page):
  text = (ROOT / page).read_text()
  scripts = re.findall(r'experiments/\w+\.py', text)
  tests = re.findall(r'pytest (tests/[\w/.]+)', text)
  assert scripts
  for file in scripts + tests:
    assert (ROOT / file).exists(), file
  links = re.findall(r'\]\((?!https?:)([^)#]+)', text)
  assert links
  for link in links:
    assert ((ROOT / page).parent / link).exists(), link


def test_methods_to_choose_from_have_a_number_and_its_command():
  rows = [r for r in rows_of('README.md') if re.search(NUMBER, r)]
  assert len(rows) == 17
  for row in rows:
    _, _, call, _, command, _ = row.split('|')
    assert re.search(NAME, call)
    assert 'python experiments/' in command or 'docs/choose.md#' in command


def test_numbers_are_those_of_the_experiments():
  """As experiments/README.md has them, beside their commands."""
  measured = re.findall(NUMBER, (ROOT / 'experiments/README.md').read_text())
  for page in PAGES:
    numbers = re.findall(NUMBER, '\n'.join(rows_of(page)))
    assert len(numbers) >= 10
    assert set(numbers) <= set(measured), page
