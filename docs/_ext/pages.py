"""What Sphinx is told of jnl: sections of docstrings, names, math, papers."""

import ast
import importlib
import inspect
import pathlib
import re
import textwrap
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from links import broken_links
from papers import (
  KNOWN,
  ROOMS,
  check_rows,
  find_papers,
  functions,
  public,
  read_known,
  table,
)
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

LOG = logging.getLogger(__name__)
SECTIONS = {
  'Args': 'Parameters',
  'Attributes': 'Attributes',
  'Returns': 'Returns',
  'Yields': 'Yields',
  'Raises': 'Raises',
}

# --- entries -----------------------------------------------------------------


class Rooms(SphinxDirective):
  """Modules, with the first lines of their docstrings."""

  has_content = True

  def run(self) -> list[nodes.Node]:
    """A table of them."""
    rows = ['.. list-table::', '   :class: index', '']
    for module in self.content:
      first = inspect.getdoc(importlib.import_module(module)).split('\n')[0]
      rows += [f'   * - `{module}`', f'     - {closed(first)}']
    text = [*rows, '', '.. toctree::', '   :hidden:', '']
    text += [f'   {module.removeprefix("jnl.")}' for module in self.content]
    return self.parse_text_to_nodes('\n'.join(text))


class Room(SphinxDirective):
  """The docstring of a module, and an entry for each of its names."""

  required_arguments = 1

  def run(self) -> list[nodes.Node]:
    """What autodoc makes of them."""
    module = self.arguments[0]
    text = [f'.. automodule:: {module}', '', f'.. currentmodule:: {module}', '']
    for name, value in in_order(module):
      if inspect.isclass(value):
        text += [f'.. autoclass:: {name}', '   :members:', '']
      elif callable(value):
        text += [f'.. autofunction:: {name}', '']
      else:
        text += [f'.. autodata:: {name}', '']
    return self.parse_text_to_nodes('\n'.join(text))


def in_order(module: str) -> list[tuple[str, Any]]:
  """What has an entry: as the index of the module has it, then the rest."""
  room = module.removeprefix('jnl.')
  there = importlib.import_module(module)
  found = functions(room)
  told = ModuleAnalyzer.for_module(module).find_attr_docs()
  for place, name in told:
    if place == '' and not name.startswith('_'):
      found[name] = getattr(there, name)

  def key(entry: tuple[int, str]) -> tuple[float, bool, int]:
    number, name = entry
    at = re.search(rf'^  {name}\b', there.__doc__, re.MULTILINE)
    listed = hasattr(there, '__all__')  # or in the order of the file
    is_class = listed and inspect.isclass(found[name])
    return at.start() if at else float('inf'), is_class, number

  order = sorted(enumerate(found), key=key)
  return [(name, found[name]) for _, name in order]


# --- docstrings --------------------------------------------------------------


def rewrite(
  app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Turns a docstring of jnl into reStructuredText, in place."""
  del app, obj, options
  text = '\n'.join(lines)
  if what == 'module':
    text = with_indexes(text, name)
  text = re.sub(r'^Reference:', '**Reference:**', text, flags=re.MULTILINE)
  text = re.sub(
    r'\barXiv\s+(\d{4}\.\d{4,5}|[a-z-]+/\d{7})',
    r'`arXiv \1 <https://arxiv.org/abs/\1>`__',
    with_sections(text),
  )
  lines[:] = closed(text).split('\n')


def closed(text: str) -> str:
  """The text with backticks that a letter may follow, as in `Table`s."""

  def with_end(code: re.Match[str]) -> str:
    after = text[code.end() : code.end() + 1]
    return code[0] + ('\\ ' if after.isalnum() else '')

  return re.sub(r'`[^`]+`', with_end, text)


def with_sections(text: str) -> str:
  """`Args:` and the like as fields, each argument as an item of a list."""
  pattern = rf'^({"|".join(SECTIONS)}):\n((?: +.*\n|\n)*)'

  def field(found: re.Match[str]) -> str:
    body = textwrap.dedent(found[2]).strip('\n')
    if found[1] not in ('Returns', 'Yields'):
      body = re.sub(
        r'^(\S[^:]*):\s', lambda m: f'- **{m[1]}**: ', body, flags=re.MULTILINE
      )
    return f':{SECTIONS[found[1]]}:\n{textwrap.indent(body, "  ")}\n\n'

  return re.sub(pattern, field, text + '\n', flags=re.MULTILINE)


def with_indexes(text: str, room: str) -> str:
  """The indexes of a module's docstring as tables, other blocks as they are.

  An index is an indented block whose lines begin with public names.
  """
  names = public(room.removeprefix('jnl.')) if room != 'jnl' else {}
  parts: list[str] = []
  for block in re.split(r'((?:^ +\S.*\n|^\n(?= ))+)', text + '\n', flags=re.M):
    before = parts[-1].rstrip('\n').split('\n')[-1] if parts else ''
    indented = block.lstrip('\n').startswith(' ')
    if not indented or before.startswith('.. '):
      parts.append(block)
      continue
    rows = [
      line.split(None, 1)
      for line in textwrap.dedent(block).split('\n')
      if line and line[0] != ' '
    ]
    if not all(row[0] in names for row in rows):
      parts.append(_literal(block))
      continue
    paragraph, heading = re.fullmatch(
      r'((?:.*\n\n)?)(.*)\n', parts[-1], re.DOTALL
    ).groups()
    if '\n' not in heading:
      parts[-1] = f'{paragraph}.. rubric:: {heading}\n'
    parts.append(_table(block))
  return ''.join(parts)


def _table(block: str) -> str:
  text = textwrap.dedent(block).strip('\n')
  rows = re.split(r'\n(?=\S)', text)
  cells = [re.sub(r'\s*\n\s*', ' ', row).split(None, 1) for row in rows]
  table = ''.join(f'   * - `{n}`\n     - {about}\n' for n, about in cells)
  return f'\n.. list-table::\n   :class: index\n\n{table}\n'


def _literal(block: str) -> str:
  return f'\n.. code-block:: text\n\n{textwrap.indent(block, " ")}\n'


def skip(
  app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
  """Leaves out fields, which `Attributes:` describes, and what is inherited."""
  del app, skip, options
  own = inspect.isfunction(obj) and obj.__module__.startswith('jnl')
  return True if what == 'class' and not own else None


# --- signatures --------------------------------------------------------------


def signature(
  app: Sphinx,
  what: str,
  name: str,
  obj: Any,
  options: Any,
  given: str | None,
  returns: str | None,
) -> tuple[str | None, str | None]:
  """The signature as it is written, where autodoc would evaluate the types."""
  del app, what, name, options
  try:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    node = ast.parse(source).body[0]
  except (OSError, TypeError, SyntaxError):
    return given, returns
  if isinstance(node, ast.FunctionDef):
    if node.args.args and node.args.args[0].arg == 'self':
      del node.args.args[0]
    result = ast.unparse(node.returns) if node.returns else ''
    return f'({ast.unparse(node.args)})', result
  if isinstance(node, ast.ClassDef):
    for part in node.body:
      if isinstance(part, ast.FunctionDef) and part.name == '__init__':
        del part.args.args[0]
        return f'({ast.unparse(part.args)})', None
    fields = [
      ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)
    ]
    return f'({", ".join(fields)})', None
  return given, returns


def unlinked(
  app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Any
) -> Any:
  """Types of signatures: those of jnl.base are linked, others are text."""
  del env
  if node.get('refdomain') != 'py' or 'jnl' in node['reftarget'].split('.')[:1]:
    return None
  domain = app.env.domains.python_domain
  target = f'jnl.base.{node["reftarget"]}'
  if target in domain.objects:
    return domain.resolve_xref(
      app.env, node['refdoc'], app.builder, 'obj', target, node, contnode
    )
  return contnode if node['reftype'] in ('class', 'data', 'obj') else None


# --- names -------------------------------------------------------------------


def full_name(text: str, module: str) -> str | None:
  """What a docstring of `module` means by a name or a call, or None."""
  head = re.fullmatch(r'([A-Za-z_][\w.]*)(\(.*\))?', text, re.DOTALL)
  if not head:
    return None
  for prefix in ('jnl.', '') if '.' in head[1] else ():
    if prefix + head[1] in MODULES:
      return prefix + head[1]
  name = head[1].removeprefix('jnl.')
  for prefix in (module, 'jnl', 'jnl.base', 'jnl.steps'):
    if f'{prefix}.{name}' in NAMES:
      return f'{prefix}.{name}'
  return None


MODULES = {f'jnl.{room}' for room in ROOMS}
NAMES = {f'jnl.{room}.{name}' for room in ROOMS for name in functions(room)}


class Name(SphinxRole):
  """Text in backticks: code, and where it is a name of jnl a link."""

  def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A literal, within a reference where there is something to refer to."""
    shown = nodes.literal(self.text, self.text, classes=['name'])
    module = self.env.ref_context.get('py:module', 'jnl')
    target = full_name(self.text, module)
    if target is None:
      if self.name == 'call':
        LOG.warning(f'no such name: {self.text}', location=self.get_location())
      return [shown], []
    link = pending_xref(
      '',
      shown,
      refdomain='py',
      reftype='obj',
      reftarget=target,
      refdoc=self.env.docname,
      refwarn=True,
    )
    return [link], []


# --- papers ------------------------------------------------------------------


class Papers(SphinxDirective):
  """The table of papers, of docstrings and papers.toml."""

  def run(self) -> list[nodes.Node]:
    """Its sections.

    Raises:
      ValueError: if docstrings and papers.toml do not agree.
    """
    self.env.note_dependency(str(KNOWN))
    self.env.note_reread()
    papers, known = find_papers(), read_known()
    check_rows(papers, known)
    text = '\n'.join(table(papers, known)).split('\n')
    parent = nodes.section()
    parent.document = self.state.document
    self.state.nested_parse(
      StringList(text, str(KNOWN)), 0, parent, match_titles=True
    )
    return parent.children


# --- equations ---------------------------------------------------------------


def as_docutils_reads(tex: str) -> str:
  """TeX in the words that docutils knows."""
  tex = re.sub(r'\\([bB]igg?)(?![a-zA-Z])', r'\\\1l', tex)
  # An index of a letter with an accent would stand below it.
  tex = re.sub(r'\\(bar|hat|tilde) (\w)_', r'{\\\1 \2{}}_', tex)
  tex = re.sub(r'\\(log|exp|det) (?=[a-zA-Z\\])', r'\\\1\, ', tex)
  return tex.replace(r'\dots', r'\ldots').replace(r'\textstyle', '')


def mathml(self: Any, node: nodes.Element) -> None:
  """Equations as MathML: nothing to load, and browsers draw it."""
  block = isinstance(node, nodes.math_block)
  tex = as_docutils_reads(node.astext())
  try:
    text = tex2mathml(tex, as_block=block)
  except MathError as error:
    LOG.warning(f'{error} {tex}', location=node)
    raise nodes.SkipNode from error
  self.body.append(f'<div class="math">{text}</div>' if block else text)
  raise nodes.SkipNode


def check_links(app: Sphinx, exception: Exception | None) -> None:
  """Fails the build if a link within the pages leads nowhere."""
  if exception is None and app.builder.name == 'html':
    broken = broken_links(pathlib.Path(app.outdir))
    if broken:
      raise ExtensionError('broken links:\n' + '\n'.join(broken))


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  app.connect('autodoc-process-docstring', rewrite)
  app.connect('autodoc-process-signature', signature)
  app.connect('autodoc-skip-member', skip)
  app.connect('missing-reference', unlinked)
  app.connect('build-finished', check_links)
  app.add_role('name', Name())
  app.add_role('call', Name())
  app.add_directive('papers', Papers)
  app.add_directive('room', Room)
  app.add_directive('rooms', Rooms)
  app.add_html_math_renderer('mathml', (mathml, None), (mathml, None))
  return {'parallel_read_safe': True}
