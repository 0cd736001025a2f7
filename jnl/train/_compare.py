"""Several methods on the same data: a table, a file of results, a plot.

An experiment is `train_each`, or trainings of its own kept as `Trained`; then
`compare` for every table, and `write_results` once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import time
import types
from typing import Any, Literal, NamedTuple

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

  def also(self, columns: Columns) -> 'Trained':
    """The same with further columns, [runs] each."""
    return self._replace(columns={**self.columns, **columns})


def train_each(
  methods: Iterable[str], train: Callable[[str], Fit]
) -> dict[str, Trained]:
  """Trains methods one after the other, and takes the time.

  Args:
    methods: their names.
    train: the name of a method -> its runs, by `fit_many`.

  Returns:
    What came of each, by name.
  """
  trained = {}
  for name in methods:
    start = time.perf_counter()
    fitted = train(name)
    trained[name] = Trained(fitted, time.perf_counter() - start)
  return trained


def compare(
  trained: Mapping[str, Trained],
  *,
  about: Mapping[str, Any],
  score: str = 'test_accuracy',
  chosen_by: str = 'validation_accuracy',
  better: Better = 'higher',
  heads: tuple[str, str] = ('last epoch', 'best by validation'),
  of_runs: Columns = types.MappingProxyType({}),
  show: Mapping[str, Shown] = types.MappingProxyType({}),
) -> list[dict[str, Any]]:
  """Prints methods side by side, and gives the rows of their results.

  Args:
    trained: by name of the method.
    about: what all rows share: `experiment`, `dataset`, `setting`, and
      `metric`, the name of the score.
    score: the column of the histories that is compared.
    chosen_by: the column that chooses an epoch for `best_val`; it must not know
      clean labels.
    better: whether a higher or a lower value of it is.
    heads: of the table, over the score at the last and at the chosen epoch.
    of_runs: further columns [runs] of the rows, the same for all methods, which
      the table leaves out.
    show: how a column of the methods is shown, by its name; by default under
      it, as the mean with three digits.

  Returns:
    A row for each method and run, for `write_results`: `about`, `method`,
    `seed`, `last`, `best_val`, `seconds` and the further columns.

  Raises:
    ValueError: if there is no method, or a history lacks a column.
  """
  check(len(trained) > 0, 'trained must hold at least one method')
  columns = list(dict.fromkeys(k for t in trained.values() for k in t.columns))
  shown = {name: (name, _mean) for name in columns} | dict(show)
  rows, lines = [], []
  for name, one in trained.items():
    for column in (score, chosen_by):
      check(
        column in one.fit.history,
        f'the history of {name} has no {column!r}, only '
        f'{sorted(one.fit.history)}',
      )
    last, best = one.last(score), one.best(score, chosen_by, better)
    further = {**of_runs, **one.columns}
    rows += report.result_rows(about, name, last, best, one.seconds, further)
    own = [
      shown[k][1](one.columns[k]) if k in one.columns else '' for k in columns
    ]
    headline = [report.mean_sd(last), report.mean_sd(best)]
    lines.append([name, *headline, *own, f'{one.seconds:.1f}'])
  header = ['method', *heads, *(shown[k][0] for k in columns), 'seconds']
  print(report.table(header, lines))
  return rows


def _mean(values: np.ndarray) -> str:
  return f'{np.mean(values):.3f}'


def curves(
  trained: Mapping[str, Trained], score: str = 'test_accuracy'
) -> dict[str, np.ndarray]:
  """A column of the histories, [runs, epochs] by name, for `write_results`.

  Args:
    trained: fits by the name of their method.
    score: the column of `history`.

  Returns:
    [runs, epochs] by name.
  """
  return {name: one.fit.history[score] for name, one in trained.items()}


def write_results(
  out: report.PathLike,
  rows: Iterable[Mapping[str, Any]],
  curves: Mapping[str, np.ndarray],
  *,
  title: str,
  ylabel: str,
  plot: str = 'accuracy.png',
  x: Sequence[float] | None = None,
  xlabel: str = 'epoch',
) -> None:
  """Writes `results.jsonl` and a plot, and says so.

  Args:
    out: the folder.
    rows: of one or several calls of `compare`.
    curves: [runs, points], by name.
    title: of the plot.
    ylabel: what the curves show.
    plot: the name of the file.
    x: as for `report.plot_curves`.
    xlabel: as for `report.plot_curves`.
  """
  report.write_jsonl(f'{out}/results.jsonl', rows)
  report.plot_curves(
    f'{out}/{plot}', curves, title=title, ylabel=ylabel, x=x, xlabel=xlabel
  )
  print(f'\nwrote results.jsonl and {plot} to {out}')
