"""Command-line options from a frozen dataclass, for the experiment scripts."""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
from typing import Any, TypeVar

import jax

C = TypeVar('C')


class OptionError(ValueError):
  """What an option says cannot be done."""


@contextlib.contextmanager
def options() -> Iterator[None]:
  """Whatever is wrong inside is wrong with the options, and `run` says so.

  Yields:
    Nothing.

  Raises:
    ValueError: one that `run` knows, for a ValueError, TypeError or OSError.

  >>> with options():
  ...   raise FileNotFoundError('no folder data')
  Traceback (most recent call last):
  jnl.train._cli.OptionError: no folder data
  """
  try:
    yield
  except (ValueError, TypeError, OSError) as error:
    raise OptionError(str(error)) from error


def run(
  main: Callable[[C], object],
  config: type[C],
  description: str,
  argv: Sequence[str] | None = None,
) -> None:
  """Calls a script's `main` with the options of the command line.

  What `main` checks in `with options():` ends the script as any other wrong
  option does: with the usage, one line that says why, and exit status 2. With
  `--smoke` XLA optimizes little, since then nearly all of the time is its.

  Args:
    main: of the script.
    config: as for `parse`, with a field `smoke`.
    description: as for `parse`.
    argv: as for `parse`.
  """
  parser = _parser(config, description)
  given = parser.parse_args(argv)
  jax.config.update('jax_disable_most_optimizations', given.smoke)
  try:
    main(config(**vars(given)))
  except OptionError as error:
    parser.error(str(error))


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
  (`--smoke`); a tuple is given with commas (`--methods ce,elr --rate .2,.4`).

  Args:
    config: a frozen dataclass whose fields are made by `option`.
    description: what `--help` says, the script's docstring.
    argv: by default the command line.

  Returns:
    The config.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   rate: tuple[float, ...] = option((0.4,), 'shares of wrong labels')
  ...   methods: tuple[str, ...] = option(('ce',), 'what to run')
  >>> parse(Config, '', ['--rate', '.2,.4', '--methods', 'ce,elr'])
  Config(rate=(0.2, 0.4), methods=('ce', 'elr'))
  """
  return config(**vars(_parser(config, description).parse_args(argv)))


def _parser(config: type, description: str) -> argparse.ArgumentParser:
  """Of the options that the fields of a config are."""
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
      kind: Any = field.type
      if field.type == tuple[float, ...]:
        kind = _floats
      elif isinstance(field.default, tuple):
        kind = _comma_list
      parser.add_argument(flag, type=kind, default=field.default, help=help)
  return parser


def _comma_list(text: str) -> tuple[str, ...]:
  return tuple(part.strip() for part in text.split(',') if part.strip())


def _floats(text: str) -> tuple[float, ...]:
  try:
    return tuple(map(float, _comma_list(text)))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'must be numbers, with commas, got {text!r}'
    ) from None


def _shown(default: Any) -> str:
  if isinstance(default, tuple):
    return ','.join(map(str, default))
  return str(default)
