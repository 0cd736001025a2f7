"""Packages whose files are loaded when one of their names is first used."""

from collections.abc import Callable, Collection, Mapping
import difflib
import importlib
import sys
from typing import Any


def names_of(
  package: str, files: Mapping[str, Collection[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """The `__getattr__` and `__dir__` of a package (PEP 562).

  Args:
    package: its name.
    files: the public names of each of its files; those of '' are modules, or
      there already.

  Returns:
    The two functions.
  """
  file_of = {name: file for file, names in files.items() for name in names}

  def find(name: str) -> Any:
    if name not in file_of:
      close = difflib.get_close_matches(name, file_of, 1)
      hint = f'; did you mean {close[0]!r}?' if close else ''
      raise AttributeError(
        f'module {package!r} has no attribute {name!r}{hint}'
      )
    if not file_of[name]:
      return importlib.import_module(f'{package}.{name}')
    file = importlib.import_module(f'{package}.{file_of[name]}')
    value = getattr(file, name)
    setattr(sys.modules[package], name, value)
    return value

  return find, lambda: sorted(file_of)
