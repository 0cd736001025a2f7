"""What comes out of an experiment: JSON lines, a table, plots."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

PathLike = str | pathlib.Path
Row = Mapping[str, Any]


def plain(value: Any) -> Any:
  """What JSON can hold of an array, a scalar, or a mapping of them.

  >>> plain({'a': np.float32(0.5), 'b': np.arange(2), 'c': 'd'})
  {'a': 0.5, 'b': [0, 1], 'c': 'd'}
  """
  if isinstance(value, Mapping):
    return {name: plain(inner) for name, inner in value.items()}
  return np.asarray(value).tolist() if hasattr(value, 'dtype') else value


def _line(row: Row) -> str:
  return json.dumps(plain(row))


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path to write; it becomes `path` when all went well.

  The folder is made if need be. A reader never sees half a file, and after an
  exception an older file is still there.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # mkstemp would leave the file readable by its owner alone; a folder does not.
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
    partial = pathlib.Path(folder) / path.name
    yield partial
    os.replace(partial, path)


def result_rows(
  about: Row,
  method: str,
  last: np.ndarray,
  best_val: np.ndarray,
  seconds: float,
  columns: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
  """A row of `results.jsonl` for each run of a method.

  Args:
    about: what all rows share: `experiment`, `dataset`, `setting`, `metric`.
    method: its name.
    last: [runs], the score after the last epoch.
    best_val: [runs], that at the epoch that validation chooses.
    seconds: for all runs.
    columns: further ones, [runs] each.
  """
  return [
    {
      **about,
      'method': method,
      'seed': r,
      'last': last[r],
      'best_val': best_val[r],
      'seconds': seconds,
      **{name: values[r] for name, values in columns.items()},
    }
    for r in range(len(last))
  ]


def write_jsonl(path: PathLike, rows: Iterable[Row]) -> None:
  """Writes rows as JSON lines, all or nothing."""
  with replacing(path) as partial:
    partial.write_text(''.join(_line(row) + '\n' for row in rows))


@contextlib.contextmanager
def append_jsonl(
  path: PathLike | None, *, known: Sequence[str] = ()
) -> Iterator[Callable[[Row], None]]:
  """Gives a function that adds a row, at once and whole, to a file (if any).

  Args:
    path: of the file, or None.
    known: names of fields; a row that agrees in them with one that is in the
      file already is not added again, and a torn last line is dropped. For runs
      that go on after a crash. By default every row is added.
  """
  if path is None:
    yield lambda row: None
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  key = lambda row: tuple(row.get(name) for name in known)
  seen = set()
  if known and path.exists():
    rows = [row for row in map(_parsed, path.open()) if row is not None]
    seen = {key(row) for row in rows}
    write_jsonl(path, rows)
  with open(path, 'a', buffering=1) as file:

    def write(row: Row) -> None:
      if not known or key(row) not in seen:
        file.write(_line(row) + '\n')

    yield write


def _parsed(line: str) -> Row | None:
  try:
    return json.loads(line)
  except json.JSONDecodeError:
    return None


@contextlib.contextmanager
def tensorboard(folder: PathLike) -> Iterator[Callable[[Row], None]]:
  """Gives a function that adds the numbers of a row to a TensorBoard log.

  For `fit(log=)`; a row of several runs is drawn as curves `name/0`, `name/1`.
  The package tensorboard is needed, TensorFlow is not.

  Args:
    folder: what TensorBoard is pointed at with `--logdir`.

  Raises:
    ImportError: if tensorboard is not installed.
  """
  from tensorboard.compat.proto.event_pb2 import Event
  from tensorboard.compat.proto.summary_pb2 import Summary
  from tensorboard.summary.writer.event_file_writer import EventFileWriter

  writer = EventFileWriter(str(folder))

  def write(row: Row) -> None:
    run = f'run_{row["run"]}/' if 'run' in row else ''
    values = []
    for name, value in row.items():
      numbers = np.atleast_1d(np.asarray(value, float))
      for r, number in enumerate(numbers):
        tag = f'{run}{name}/{r}' if len(numbers) > 1 else f'{run}{name}'
        values.append(Summary.Value(tag=tag, simple_value=number))
    writer.add_event(
      Event(
        wall_time=time.time(), step=row['epoch'], summary=Summary(value=values)
      )
    )

  try:
    yield write
  finally:
    writer.close()


def mean_sd(values: np.ndarray | Sequence[float]) -> str:
  """`'93.1 +- 0.4'`: mean and sample deviation of fractions, in percent."""
  percent = 100 * np.asarray(values, float)
  if len(percent) < 2:
    return f'{percent.mean():.1f}'
  return f'{percent.mean():.1f} +- {percent.std(ddof=1):.1f}'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table in plain text (and in Markdown), columns aligned.

  >>> print(table(['method', 'last'], [['ce', 70.1], ['elr', 97]]))
  | method | last |
  |--------|------|
  | ce     | 70.1 |
  | elr    | 97   |
  """
  cells = [[str(c) for c in row] for row in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

  def line(row: Sequence[str]) -> str:
    padded = (c.ljust(w) for c, w in zip(row, widths, strict=True))
    return '| ' + ' | '.join(padded) + ' |'

  rule = '|' + '|'.join('-' * (w + 2) for w in widths) + '|'
  return '\n'.join([line(cells[0]), rule, *map(line, cells[1:])])


def plot_curves(
  path: PathLike,
  curves: Mapping[str, np.ndarray],
  *,
  title: str,
  ylabel: str,
  x: Sequence[float] | None = None,
  xlabel: str = 'epoch',
) -> None:
  """Plots each curve [runs, points] as its mean and the range of its runs.

  Args:
    path: of the PNG.
    curves: by name.
    title: above.
    ylabel: of what the curves show.
    x: [points], on a logarithmic axis; by default epochs, 1, 2, ...
    xlabel: of these.
  """
  import matplotlib  # slow to import

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  many = len(curves) > 10
  figure, axes = plt.subplots(figsize=(9 if many else 7, 4.2))
  if many:
    axes.set_prop_cycle(color=matplotlib.colormaps['tab20'](range(20)))
  for name, values in curves.items():
    places = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)
    marker = '' if x is None else 'o'
    (line,) = axes.plot(places, values.mean(0), label=name, marker=marker)
    axes.fill_between(
      places, values.min(0), values.max(0), color=line.get_color(), alpha=0.15
    )
  axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
  if x is None:
    axes.margins(x=0)
  else:
    axes.set_xscale('log', base=2)
    axes.set_xticks(x, [f'{place:g}' for place in x])
  axes.grid(alpha=0.3)
  axes.legend(
    loc='center left',
    bbox_to_anchor=(1, 0.5),
    ncols=-(-len(curves) // 18),
    fontsize='small',
    frameon=False,
  )
  with replacing(path) as partial:
    figure.savefig(partial, dpi=150, bbox_inches='tight')
  plt.close(figure)


def plot_bars(
  path: PathLike,
  bars: Mapping[str, float],
  *,
  kinds: Sequence[str],
  title: str,
  xlabel: str,
) -> None:
  """Plots a horizontal bar for each value, in one color for each kind."""
  import matplotlib  # slow to import

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(figsize=(7, 0.8 + 0.24 * len(bars)))
  names = list(bars)
  for kind in dict.fromkeys(kinds):
    own = [name for name, k in zip(names, kinds, strict=True) if k == kind]
    places = [names.index(name) for name in own]
    drawn = axes.barh(places, [bars[name] for name in own], label=kind or None)
    axes.bar_label(drawn, fmt='%.2g', padding=2, fontsize='small')
  axes.set_yticks(range(len(names)), names)
  axes.invert_yaxis()
  axes.axvline(1, color='black', linewidth=0.8)
  axes.set(title=title, xlabel=xlabel)
  axes.margins(x=0.1, y=0.01)
  axes.legend(fontsize='small', frameon=False)
  with replacing(path) as partial:
    figure.savefig(partial, dpi=150, bbox_inches='tight')
  plt.close(figure)
