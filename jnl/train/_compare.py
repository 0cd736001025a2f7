"""Several methods on the same data: a table, a file of results, a plot."""

from collections.abc import Callable, Mapping
import time
from typing import Any, Literal

import numpy as np

from jnl.base import Key, Method
from jnl.train import report
from jnl.train._evaluate import Score
from jnl.train._fit import Arrays, Checkpoint, Fit, fit_many
from jnl.train._program import Augment

Columns = Mapping[str, np.ndarray]
"""By name, [runs] each."""


def compare(
  methods: Mapping[str, Method],
  data: Arrays,
  keys: Key,
  *,
  about: Mapping[str, Any],
  title: str,
  out: str,
  epochs: int,
  batch_size: int,
  held_out: Mapping[str, Arrays],
  chosen_by: str,
  better: Literal['higher', 'lower'] = 'higher',
  scores: Mapping[str, Score] | None = None,
  augment: Augment | None = None,
  checkpoint: Callable[[str], Checkpoint | None] = lambda name: None,
  of_runs: Columns | None = None,
  of_fit: Callable[[str, Fit], Columns] = lambda name, fitted: {},
) -> dict[str, Fit]:
  """Trains each method with the same keys, and reports them side by side.

  Prints a table and writes `results.jsonl` (a row for each method and run) and
  `accuracy.png` to a folder, once all are trained.

  Args:
    methods: by name.
    data: as for `fit_many`; a method reads the arrays it needs.
    keys: [runs], of the runs of every method.
    about: what all rows of the results share: `experiment`, `dataset`,
      `setting`, and `metric`, which names the score of `test`.
    title: of the plot.
    out: the folder.
    epochs: as for `fit`.
    batch_size: as for `fit`.
    held_out: as for `fit_many`: `test`, whose score is reported, and
      `validation`, which chooses an epoch and must not know clean labels.
    chosen_by: what the score of `validation` is, for the head of the table.
    better: whether a higher or a lower score of `validation` is.
    scores: as for `fit`.
    augment: as for `fit`.
    checkpoint: the name of a method -> where its runs are saved, if anywhere.
    of_runs: further columns [runs] of the rows, the same for all methods.
    of_fit: (name, fit) -> further columns [runs] of its rows, whose means are
      columns of the table as well.

  Returns:
    The fits, by name.
  """
  fits, rows, lines = {}, [], []
  for name, method in methods.items():
    start = time.perf_counter()
    fitted = fit_many(
      method,
      data,
      keys,
      epochs=epochs,
      batch_size=batch_size,
      held_out=held_out,
      scores=scores or {},
      augment=augment,
      checkpoint=checkpoint(name),
      label=name,
    )
    seconds = time.perf_counter() - start
    fits[name] = fitted
    last, best = fitted.history['test'][:, -1], chosen_epoch(fitted, better)
    further = {**(of_runs or {}), **of_fit(name, fitted)}
    rows += report.result_rows(about, name, last, best, seconds, further)
    lines.append((name, last, best, of_fit(name, fitted), seconds))
  print(_table(lines, chosen_by))
  report.write_jsonl(f'{out}/results.jsonl', rows)
  report.plot_curves(
    f'{out}/accuracy.png',
    {name: fitted.history['test'] for name, fitted in fits.items()},
    title=title,
    ylabel=f'test {about["metric"]}',
  )
  print(f'\nwrote results.jsonl and accuracy.png to {out}')
  return fits


def chosen_epoch(
  fitted: Fit, better: Literal['higher', 'lower'] = 'higher'
) -> np.ndarray:
  """The test score [runs] at the epoch of the best validation score."""
  score = fitted.history['validation']
  epoch = (score if better == 'higher' else -score).argmax(axis=1)
  return np.take_along_axis(fitted.history['test'], epoch[:, None], 1)[:, 0]


def _table(lines: list, chosen_by: str) -> str:
  columns = list(dict.fromkeys(name for line in lines for name in line[3]))
  header = ['method', 'last epoch', f'best by {chosen_by}', *columns, 'seconds']
  return report.table(
    header,
    [
      [
        name,
        report.mean_sd(last),
        report.mean_sd(best),
        *(f'{np.mean(own[c]):.3f}' if c in own else '' for c in columns),
        f'{seconds:.1f}',
      ]
      for name, last, best, own, seconds in lines
    ],
  )
