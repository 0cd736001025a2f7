"""The papers of the `Reference:` lines, and what papers.toml knows of them."""

from collections.abc import Iterator, Mapping
import importlib
import inspect
import pathlib
import re
import tomllib
from typing import Any, NamedTuple

ROOMS = (
  'losses',
  'methods',
  'audit',
  'aggregate',
  'select',
  'pseudo',
  'transition',
  'noise',
  'em',
  'automata',
  'belief',
  'meta',
  'neighbors',
  'ramps',
  'teacher',
  'steps',
  'nets',
  'data',
  'data.augment',
  'train',
  'train.scores',
  'train.report',
  'train.page',
  'train.script',
  'estimator',
  'base',
  'inputs',
  'logspace',
)
"""The public modules, each with a page, in the order of the pages."""

REFERENCE = re.compile(
  r'(?P<authors>[A-Z][^";:]*?), "(?P<title>[^"]+)",'
  r' (?P<venue>[^,;.:"]*\b(?:19|20)\d\d(?: workshop)?)'
  r'(?:, arXiv (?P<arxiv>\d{4}\.\d{4,5}|[a-z-]+/\d{7}))?(?=[.,;:) ]|$)'
)
"""Authors, "Title", venue and year, arXiv number: how a paper is named."""


KNOWN = pathlib.Path(__file__).parent.parent / 'papers.toml'


class Paper(NamedTuple):
  """What a `Reference:` says of a paper."""

  title: str
  venue: str
  arxiv: str | None

  @property
  def key(self) -> str:
    """What papers.toml calls it: the number, or without one the title."""
    return self.arxiv or self.title


def public(room: str) -> dict[str, Any]:
  """The public names of a module, without modules: as users find them."""
  module = importlib.import_module(f'jnl.{room}')
  own = [
    name
    for name, value in vars(module).items()
    if getattr(value, '__module__', '') == module.__name__
    and not name.startswith('_')
  ]
  names = getattr(module, '__all__', own)
  found = {name: getattr(module, name) for name in names}
  return {n: v for n, v in found.items() if not inspect.ismodule(v)}


def functions(room: str) -> dict[str, Any]:
  """The public functions and classes of a module: each has an entry."""
  return {
    name: value
    for name, value in public(room).items()
    if inspect.isclass(value)
    or inspect.isroutine(value)
    or hasattr(value, '__wrapped__')  # behind jax.jit
  }


def reference_of(doc: str) -> str | None:
  """The text after `Reference:` in a docstring, on one line."""
  found = re.search(
    r'^Reference:(.*?)(?=^\s*$|\Z)', doc, re.MULTILINE | re.DOTALL
  )
  return ' '.join(found[1].split()) if found else None


def papers_of(room: str, name: str, doc: str) -> list[Paper]:
  """The papers that a public name refers to, itself or by ``see `other```.

  Raises:
    ValueError: if it has a reference that names no paper as `REFERENCE` says.
  """
  text = reference_of(doc)
  if text is None:
    return []
  papers = [
    Paper(m['title'], m['venue'], m['arxiv']) for m in REFERENCE.finditer(text)
  ]
  for other in re.findall(r'(?:^|[;:.] )[Ss]ee `([\w.]+)`', text):
    at, _, last = other.rpartition('.')
    there = getattr(importlib.import_module(f'jnl.{at or room}'), last)
    papers += papers_of(at or room, last, inspect.getdoc(there) or '')
  told = {paper.arxiv for paper in papers}
  numbers = set(re.findall(r'\d{4}\.\d{4,5}', text))
  if not papers or numbers - told:
    raise ValueError(
      f'jnl.{room}.{name}: write the reference as Authors, "Title", venue '
      f'year, arXiv number; got {text!r}'
    )
  return list(dict.fromkeys(papers))


def find_papers() -> dict[Paper, list[str]]:
  """Each paper, and the public names that refer to it, as `losses.gce`.

  Raises:
    ValueError: if a reference cannot be read, or a paper has two titles.
  """
  found: dict[Paper, list[str]] = {}
  for room in ROOMS:
    for name, value in functions(room).items():
      for paper in papers_of(room, name, inspect.getdoc(value) or ''):
        found.setdefault(paper, []).append(f'{room}.{name}')
  for one in found:
    for other in found:
      same = one.key == other.key or one.title == other.title
      if same and one != other:
        raise ValueError(
          f'one paper, told in two ways: {one} by {found[one]}, {other} by '
          f'{found[other]}'
        )
  return found


# --- the table ---------------------------------------------------------------


def check_rows(
  papers: Mapping[Paper, list[str]], known: Mapping[str, Any]
) -> None:
  """Holds the papers of docstrings against papers.toml, both ways.

  Raises:
    ValueError: if a paper has no row or more than one, or a row names a paper,
      a setting or a call of a paper that is not there; lists all of them.
  """
  calls = {paper.key: names for paper, names in papers.items()}
  wrong = []
  seen = set()
  for group in known['groups']:
    for key, row in group['papers'].items():
      if key in seen:
        wrong.append(f'{key} has two rows')
      seen.add(key)
      if key not in calls:
        wrong.append(f'no Reference: names {key}, which papers.toml has')
        continue
      for setting, results in row.items():
        if setting == 'name':
          continue
        if setting not in known['settings']:
          wrong.append(f'{key} has a number of {setting}, which is no setting')
          continue
        wrong += [
          f'{key} has a number of {call}, which does not refer to it'
          for call in results
          if call not in calls[key]
        ]
  wrong += [
    f'{calls[key]} refer to {key}, which has no row in papers.toml'
    for key in calls
    if key not in seen
  ]
  if wrong:
    raise ValueError('\n'.join(wrong))


def table(
  papers: Mapping[Paper, list[str]], known: Mapping[str, Any]
) -> Iterator[str]:
  """The lines of the table of papers, in Markdown."""
  paper_of = {paper.key: paper for paper in papers}
  settings = known['settings']
  for group in known['groups']:
    rows = group['papers']
    numbers = any(len(row) > 1 for row in rows.values())
    yield f'\n## {group["title"]}\n\n```{{table}}\n:class: papers\n'
    yield '| paper | calls |' + ' number |' * numbers
    yield '|---|---|' + '---|' * numbers
    for key, row in rows.items():
      paper = paper_of[key]
      calls = ', '.join(f'{{call}}`{name}`' for name in papers[paper])
      line = f'| {_name(paper, row["name"])} | {calls} |'
      yield line + f' {_numbers(row, settings)} |' * numbers
    yield '```'
  yield '\n## What the numbers are\n'
  for name, setting in settings.items():
    yield f'({_anchor(name)})=\n### {setting["title"]}\n'
    yield f'{setting["about"].strip()}\n\n```bash\n{setting["command"]}\n```\n'


def _anchor(setting: str) -> str:
  return 'of-' + setting.replace('_', '-')


def _name(paper: Paper, name: str) -> str:
  told = f'**{name}**<br>{paper.title}, {paper.venue}'
  if paper.arxiv:
    told += f', [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})'
  return told


def _numbers(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  parts = []
  for setting, results in row.items():
    if setting != 'name':
      told = [
        f'{{call}}`{call}` {number}'.replace(' +- ', '\xa0±\xa0')
        for call, number in results.items()
      ]
      where = f'[{settings[setting]["title"]}](#{_anchor(setting)})'
      parts.append('<br>'.join([f'{where}:', *told]))
  return '<br>'.join(parts)


def read_known() -> dict[str, Any]:
  """What papers.toml says."""
  return tomllib.loads(KNOWN.read_text())
