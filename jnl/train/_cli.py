"""Command-line options from a frozen dataclass, for the experiment scripts."""

import argparse
from collections.abc import Sequence
import dataclasses
from typing import Any, TypeVar

C = TypeVar('C')


def option(default: Any, help: str) -> Any:
  """A field of a config: its default and the line that `--help` shows.

  Args:
    default: of the field.
    help: one line.

  Returns:
    A `dataclasses.field`.
  """
  return dataclasses.field(default=default, metadata={'help': help})


def parse(
  config: type[C], description: str, argv: Sequence[str] | None = None
) -> C:
  """Reads a config from the command line.

  A field `batch_size: int` becomes `--batch-size`; a bool becomes a switch
  (`--smoke`); a tuple of strings is given with commas (`--methods ce,elr`).

  Args:
    config: a frozen dataclass whose fields are made by `option`.
    description: what `--help` says, the script's docstring.
    argv: by default the command line.

  Returns:
    The config.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   rate: float = option(0.4, 'share of wrong labels')
  ...   methods: tuple[str, ...] = option(('ce',), 'what to run')
  >>> parse(Config, '', ['--rate', '.2', '--methods', 'ce,elr'])
  Config(rate=0.2, methods=('ce', 'elr'))
  """
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    flag = '--' + field.name.replace('_', '-')
    help = f'{field.metadata["help"]} (default: {_shown(field.default)})'
    if field.type is bool:
      parser.add_argument(flag, action='store_true', help=help)
    else:
      kind = _comma_list if isinstance(field.default, tuple) else field.type
      parser.add_argument(flag, type=kind, default=field.default, help=help)
  return config(**vars(parser.parse_args(argv)))


def _comma_list(text: str) -> tuple[str, ...]:
  return tuple(part.strip() for part in text.split(',') if part.strip())


def _shown(default: Any) -> str:
  return ','.join(default) if isinstance(default, tuple) else str(default)
