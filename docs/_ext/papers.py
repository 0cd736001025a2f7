"""The papers of the `Reference:` lines, and what papers.toml knows of them."""

from collections.abc import Iterable, Mapping
import importlib
import inspect
import pathlib
import re
import tomllib
from typing import Any, NamedTuple

ROOMS = (
  'losses',
  'methods',
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
  'train.script',
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
