"""Several methods on the same data: results while they come, a table, a plot.

A `Comparison` says what is compared and where it goes. Methods are trained by
`train_each`; each is `record`ed as it ends, so that a run that is stopped
leaves the results of the methods that were done. `compare` prints a table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import time
import types
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jnl.base import check
from jnl.train import report
from jnl.train._fit import Fit

Columns = Mapping[str, np.ndarray]
"""By name, [runs] each."""
Better = Literal['higher', 'lower']
Shown = tuple[str, Callable[[np.ndarray], str]]
"""The head of a column in a table, and [runs] -> its text."""


class Trained(NamedTuple):
  """A method after all its runs.

  Attributes:
    fit: of `fit_many`: the history has the scores, [runs, epochs] each.
    seconds: for all runs.
    columns: what else is known of the runs, [runs] each: columns of the table
      and of the rows of the results.
  """

  fit: Fit
  seconds: float
  columns: Columns = types.MappingProxyType({})

  def last(self, score: str) -> np.ndarray:
    """A score [runs] of the history after the last epoch."""
    return self.fit.history[score][:, -1]

  def best(
    self, score: str, chosen_by: str, better: Better = 'higher'
  ) -> np.ndarray:
    """A score [runs] after the epoch at which another one is best."""
    judge = self.fit.history[chosen_by]
    epoch = (judge if better == 'higher' else -judge).argmax(axis=1)
    values = self.fit.history[score]
    return np.take_along_axis(values, epoch[:, None], axis=1)[:, 0]

  def until(self, epochs: int) -> 'Trained':
    """The same with the history of the first so many epochs."""
    history = {k: v[:, :epochs] for k, v in self.fit.history.items()}
    return self._replace(fit=self.fit._replace(history=history))

  def runs(self, which: slice) -> 'Trained':
    """The same with some of the runs, and the seconds of all."""
    state, history, columns = jax.tree.map(
      lambda leaf: leaf[which],
      (self.fit.state, dict(self.fit.history), dict(self.columns)),
    )
    return self._replace(fit=Fit(state, history), columns=columns)

  def also(self, columns: Columns) -> 'Trained':
    """The same with further columns, [runs] each."""
    return self._replace(columns={**self.columns, **columns})


class Comparison(NamedTuple):
  """What is compared of methods, and where it goes.

  Attributes:
    out: the folder of the results, see `report.own_folder`.
    about: what all rows share: `experiment`, `dataset`, `setting`, and
      `metric`, the name of the score.
    score: the column of the histories that is compared.
    chosen_by: the column that chooses an epoch for `best_val`; it must not know
      clean labels. None where nothing can: that is the last one then, and
      tables do not have it.
    better: whether a higher or a lower value of it is.
    heads: of the table, over the score at the last and at the chosen epoch.
    of_runs: further columns [runs] of the rows, the same for all methods, which
      the table leaves out.
    show: how a column of the methods is shown, by its name; by default under
      it, as the mean with three digits.
    group: what the curves are kept under, and what lines begin with where there
      is more than one comparison in a folder; without a slash.
  """

  out: report.PathLike
  about: Mapping[str, Any]
  score: str = 'test_accuracy'
  chosen_by: str | None = 'validation_accuracy'
  better: Better = 'higher'
  heads: tuple[str, str] = ('last epoch', 'best by validation')
  of_runs: Columns = types.MappingProxyType({})
  show: Mapping[str, Shown] = types.MappingProxyType({})
  group: str = 'runs'

  def values(self, trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """The score [runs] after the last epoch, and after the chosen one."""
    chosen_by = self.chosen_by or self.score
    for column in (self.score, chosen_by):
      check(
        column in trained.fit.history,
        f'the history has no {column!r}, only {sorted(trained.fit.history)}',
      )
    last = trained.last(self.score)
    if self.chosen_by is None:
      return last, last
    return last, trained.best(self.score, chosen_by, self.better)


SAME = ('experiment', 'dataset', 'setting', 'published', 'method', 'seed')
"""Rows that agree in these are of the same run."""


def train_each(
  methods: Iterable[str],
  train: Callable[[str], Fit],
  done: Callable[[str, Trained], Trained] = lambda name, trained: trained,
) -> dict[str, Trained]:
  """Trains methods one after the other, and takes the time.

  Args:
    methods: their names.
    train: the name of a method -> its runs, by `fit_many`.
    done: called when a method ends, with its name and what came of it: adds
      columns, records it, and gives it back.

  Returns:
    What came of each, by name.
  """
  trained = {}
  for name in methods:
    start = time.perf_counter()
    fitted = train(name)
    trained[name] = done(name, Trained(fitted, time.perf_counter() - start))
  return trained


def record(comparison: Comparison, name: str, trained: Trained) -> Trained:
  """Writes and prints what came of a method: its rows, curves and a line.

  Args:
    comparison: what is compared, and where it goes.
    name: of the method, without a slash.
    trained: what came of it.

  Returns:
    `trained`, as it is.

  Raises:
    ValueError: if its history lacks a column.
  """
  last, best = comparison.values(trained)
  out, group, heads = comparison.out, comparison.group, comparison.heads
  rows = report.result_rows(
    comparison.about,
    name,
    last,
    best,
    trained.seconds,
    {**comparison.of_runs, **trained.columns},
  )
  curves = {f'{group}/{name}/{k}': v for k, v in trained.fit.history.items()}
  report.put_curves(out, curves)
  report.put_rows(out, rows, SAME)
  where = '' if group == 'runs' else f'{group}, '
  values = (last,) if comparison.chosen_by is None else (last, best)
  said = [
    f'{report.mean_sd(v)} {head}'
    for v, head in zip(values, heads, strict=False)
  ]
  print(
    f'{where}{name}: {", ".join(said)}, {trained.seconds:.1f} s', flush=True
  )
  return trained


def compare(comparison: Comparison, trained: Mapping[str, Trained]) -> None:
  """Prints a table of methods.

  Args:
    comparison: what is compared.
    trained: what came of each method, by name.

  Raises:
    ValueError: if there is no method, or a history lacks a column.
  """
  check(len(trained) > 0, 'trained must hold at least one method')
  columns = list(dict.fromkeys(k for t in trained.values() for k in t.columns))
  shown = {name: (name, _mean) for name in columns} | dict(comparison.show)
  ways = 1 if comparison.chosen_by is None else 2
  lines = []
  for name, one in trained.items():
    own = [
      shown[k][1](one.columns[k]) if k in one.columns else '' for k in columns
    ]
    headline = [report.mean_sd(v) for v in comparison.values(one)[:ways]]
    lines.append([name, *headline, *own, f'{one.seconds:.1f}'])
  heads = (*comparison.heads[:ways], *(shown[k][0] for k in columns))
  print('\n' + report.table(['method', *heads, 'seconds'], lines))


def compare_groups(
  comparisons: Sequence[Comparison],
  trained: Sequence[Mapping[str, Trained]],
) -> None:
  """Prints a table of methods with a column for each of several comparisons.

  Args:
    comparisons: what is compared; their `group`s are the heads.
    trained: for each what came of the methods, by name.
  """
  lines = []
  for name in trained[0]:
    cells = []
    for comparison, own in zip(comparisons, trained, strict=True):
      last, best = comparison.values(own[name])
      cells.append(f'{report.mean_sd(last)} ({100 * best.mean():.1f})')
    lines.append([name, *cells, f'{trained[0][name].seconds:.1f}'])
  at_last, at_best = comparisons[0].heads
  print(f'\n{at_last} ({at_best})\n')
  heads = [one.group for one in comparisons]
  print(report.table(['method', *heads, 'seconds'], lines))


def plot(
  comparison: Comparison,
  title: str,
  ylabel: str,
  file: str = 'accuracy.png',
) -> None:
  """Says that the score of all methods is to be drawn, by `report.redraw`.

  Said before anything is trained, it also serves a run that is stopped.

  Args:
    comparison: what is compared, and where it goes.
    title: of the plot.
    ylabel: what the score is.
    file: the name of the PNG.
  """
  report.put_plot(
    comparison.out,
    file,
    group=comparison.group,
    column=comparison.score,
    title=title,
    ylabel=ylabel,
  )


def _mean(values: np.ndarray) -> str:
  return f'{np.mean(values):.3f}'
