"""What comes out of an experiment: JSON lines, curves, a table, plots.

A folder of results has `results.jsonl`, a row for each method and run;
`curves.npz`, every column of every history, as `GROUP/METHOD/COLUMN` [runs,
epochs]; and `plots.json`, which says what is drawn of them. So plots can be
drawn again from the files alone, also where a run was stopped:

  python -m jnl.train.report results/noisy_labels
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from jnl.base import check

PathLike = str | pathlib.Path
Row = Mapping[str, Any]

RESULTS, CURVES, PLOTS = 'results.jsonl', 'curves.npz', 'plots.json'
"""The files of a folder of results, beside the plots."""


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


def own_folder(out: PathLike, resume: bool = False) -> str:
  """The folder for the results of a new run: `out`, or `out-2` and so on.

  A folder that holds files, or checkpoints, belongs to another run. Then a
  number is added, and a line says so.

  Args:
    out: the folder that was asked for; it is made.
    resume: go on in it, whatever it holds.

  Returns:
    The folder.

  Raises:
    OSError: naming `out`, if the folder cannot be written.
  """
  out = pathlib.Path(out)
  numbered = (out.with_name(f'{out.name}-{i}') for i in itertools.count(2))
  for folder in itertools.chain([out], numbered):
    if resume or not _is_taken(folder):
      break
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise OSError(
      f'out is {str(folder)!r}, where nothing can be written: {error}'
    ) from error
  if folder != out:
    print(f'{out} holds the results of another run; these go to {folder}')
  return str(folder)


def _is_taken(folder: pathlib.Path) -> bool:
  """Whether there are files, or checkpoints."""
  if not folder.is_dir():
    return folder.exists()
  return any(
    inner.is_file() or inner.name == 'checkpoints' for inner in folder.iterdir()
  )


def put_rows(
  folder: PathLike, rows: Sequence[Row], same: Sequence[str]
) -> None:
  """Adds rows to `results.jsonl`, at once and whole.

  Args:
    folder: of the results.
    rows: to add.
    same: names of fields; an older row that agrees in them with a new one is
      dropped, so that a run that goes on after a crash has each row once.
  """
  path = pathlib.Path(folder) / RESULTS
  key = lambda row: json.dumps([plain(row.get(name)) for name in same])
  new = {key(row) for row in rows}
  old = map(_parsed, path.open()) if path.exists() else ()
  kept = [row for row in old if row is not None and key(row) not in new]
  write_jsonl(path, [*kept, *rows])


def put_curves(folder: PathLike, curves: Mapping[str, np.ndarray]) -> None:
  """Adds arrays to `curves.npz`, in place of those of the same names.

  Args:
    folder: of the results.
    curves: [runs, points] by `GROUP/METHOD/COLUMN`.
  """
  path = pathlib.Path(folder) / CURVES
  whole: Any = {**get_curves(folder), **curves}
  with replacing(path) as partial:
    np.savez_compressed(partial, **whole)


def get_curves(folder: PathLike) -> dict[str, np.ndarray]:
  """The arrays of `curves.npz`, [runs, points] by `GROUP/METHOD/COLUMN`.

  Args:
    folder: of the results.

  Returns:
    By name; none, if there is no such file yet.
  """
  path = pathlib.Path(folder) / CURVES
  if not path.exists():
    return {}
  with np.load(path) as file:
    return {name: file[name] for name in file.files}


def put_plot(folder: PathLike, plot: str, **options: Any) -> None:
  """Says in `plots.json` that there is a plot, for `redraw`.

  Args:
    folder: of the results.
    plot: the name of its PNG.
    **options: `group` and `column` of the curves, and what else `plot_curves`
      takes; with `kind='quantiles'` what `plot_quantiles` takes, of all columns
      that begin with `column`.
  """
  path = pathlib.Path(folder) / PLOTS
  plots = json.loads(path.read_text()) if path.exists() else {}
  with replacing(path) as partial:
    partial.write_text(json.dumps({**plots, plot: options}, indent=1) + '\n')


def redraw(folder: PathLike) -> list[str]:
  """Draws all plots of `plots.json`, as far as there are curves.

  Args:
    folder: of the results.

  Returns:
    The names of the PNGs that were drawn.

  Raises:
    ValueError: if the folder has no `plots.json` or no `curves.npz`.
  """
  folder = pathlib.Path(folder)
  for name in (PLOTS, CURVES):
    check((folder / name).exists(), f'folder {folder} has no {name}')
  plots, curves = json.loads((folder / PLOTS).read_text()), get_curves(folder)
  return [plot for plot in plots if _draw(folder, plot, plots[plot], curves)]


def _draw(
  folder: PathLike,
  plot: str,
  options: Mapping[str, Any],
  curves: Mapping[str, np.ndarray],
) -> bool:
  """Whether there was anything to draw."""
  rest = dict(options)
  kind = rest.pop('kind', 'curves')
  draw: Callable = plot_curves if kind == 'curves' else plot_quantiles
  group, column = rest.pop('group'), rest.pop('column')
  own: dict[str, Any] = {}
  for name, values in curves.items():
    in_group, method, in_column = name.split('/', 2)
    if in_group == group and in_column.startswith(column):
      own.setdefault(method, {})[in_column.removeprefix(column)] = values
  if kind == 'curves':
    own = {name: found[''] for name, found in own.items() if '' in found}
  if own:
    draw(pathlib.Path(folder) / plot, own, **rest)
  return bool(own)


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


DASHES = ('-', '--', ':', '-.')


def plot_curves(
  path: PathLike,
  curves: Mapping[str, np.ndarray],
  *,
  title: str,
  ylabel: str,
  x: Sequence[float] | None = None,
  xlabel: str = 'epoch',
  scale: str = 'linear',
) -> None:
  """Plots each curve [runs, points] as its mean and the range of its runs.

  Shares are drawn in percent, as tables have them. Ranges are drawn of at most
  five curves; the legend has the order of the last values.

  Args:
    path: of the PNG.
    curves: by name; values in [0, 1] are shares.
    title: above.
    ylabel: of what the curves show.
    x: [points]; by default epochs, 1, 2, ...
    xlabel: of these.
    scale: of x: 'linear', or 'log' to the base 2.
  """
  from matplotlib.figure import Figure  # slow to import

  flat = np.concatenate([np.ravel(values) for values in curves.values()])
  finite = flat[np.isfinite(flat)]
  shares = finite.size > 0 and finite.min() >= 0 and finite.max() <= 1
  figure = Figure((9 if len(curves) > 10 else 7, 4.2))
  axes = figure.subplots()
  lines = _draw_curves(axes, curves, 100 if shares else 1, x)
  axes.set(
    title=title, xlabel=xlabel, ylabel=f'{ylabel}, %' if shares else ylabel
  )
  if x is None:
    axes.margins(x=0)
    _whole_epochs(axes)
  else:
    if scale == 'log':
      axes.set_xscale('log', base=2)
    axes.set_xticks(x, [f'{place:g}' for place in x])
  axes.grid(alpha=0.3)
  # In the order of the curves at the right edge; what is no number comes last.
  last = {name: np.mean(values[:, -1]) for name, values in curves.items()}
  order = sorted(curves, key=lambda k: np.nan_to_num(-last[k], nan=np.inf))
  axes.legend(
    [lines[name] for name in order],
    order,
    loc='center left',
    bbox_to_anchor=(1, 0.5),
    ncols=-(-len(curves) // 18),
    fontsize='small',
    frameon=False,
    handlelength=3,
  )
  _save(path, figure)


def _draw_curves(
  axes: Any,
  curves: Mapping[str, np.ndarray],
  unit: float,
  x: Sequence[float] | None,
) -> dict[str, Any]:
  """The line of each, which also differ by dashes; ranges if they are few."""
  from matplotlib import colormaps

  cycle, lines = colormaps['tab20' if len(curves) > 10 else 'tab10'], {}
  for i, (name, values) in enumerate(curves.items()):
    places = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)
    shown, color = unit * np.asarray(values), cycle(i % cycle.N)
    (lines[name],) = axes.plot(
      places,
      shown.mean(0),
      color=color,
      linestyle=DASHES[i % len(DASHES)],
      marker='' if len(places) > 1 and x is None else 'o',
      markersize=4,
    )
    if len(curves) <= 5:
      low, high = shown.min(0), shown.max(0)
      axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
  return lines


def _whole_epochs(axes: Any) -> None:
  from matplotlib.ticker import MaxNLocator

  axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _save(path: PathLike, figure: Any) -> None:
  with replacing(path) as partial:
    figure.savefig(partial, dpi=150, bbox_inches='tight')


def plot_quantiles(
  path: PathLike,
  panels: Mapping[str, Mapping[str, np.ndarray]],
  *,
  kinds: Sequence[str],
  title: str,
  ylabel: str,
) -> None:
  """Plots quantiles over the epochs: a panel for each method, bands by kind.

  Args:
    path: of the PNG.
    panels: by method, then `KIND_0` to `KIND_4`, quantiles [runs, epochs] from
      the lowest to the highest, of which the third is a line.
    kinds: what there are quantiles of.
    title: above.
    ylabel: of what the quantiles are.
  """
  from matplotlib.figure import Figure  # slow to import

  width = 1.2 + 3 * len(panels)
  figure = Figure((width, 3.4), layout='constrained')
  drawn = figure.subplots(1, len(panels), squeeze=False)[0]
  for axes, (name, columns) in zip(drawn, panels.items(), strict=True):
    for i, kind in enumerate(kinds):
      low, below, middle, above, high = (
        np.mean(columns[f'{kind}_{k}'], axis=0) for k in range(5)
      )
      epochs, color = np.arange(1, len(middle) + 1), ('C0', 'C3', 'C2')[i % 3]
      axes.plot(
        epochs, middle, color=color, linestyle=DASHES[i % 2], label=kind
      )
      for band in ((low, high), (below, above)):
        axes.fill_between(epochs, *band, color=color, alpha=0.15, linewidth=0)
    axes.set(title=name, xlabel='epoch', xmargin=0)
    _whole_epochs(axes)
    axes.grid(alpha=0.3)
  drawn[0].set_ylabel(ylabel)
  figure.legend(
    *drawn[0].get_legend_handles_labels(),
    loc='outside right center',
    fontsize='small',
    frameon=False,
  )
  figure.suptitle(title)
  _save(path, figure)


def plot_bars(
  path: PathLike,
  bars: Mapping[str, float],
  *,
  kinds: Sequence[str],
  title: str,
  xlabel: str,
) -> None:
  """Plots a horizontal bar for each value, in one color for each kind."""
  from matplotlib.figure import Figure  # slow to import

  figure = Figure((7, 0.8 + 0.24 * len(bars)))
  axes = figure.subplots()
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
  _save(path, figure)


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit('usage: python -m jnl.train.report FOLDER ...')
  for given in sys.argv[1:]:
    try:
      print(f'{given}: drew {", ".join(redraw(given))}')
    except ValueError as error:
      sys.exit(f'error: {error}')
