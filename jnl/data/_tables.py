"""Tables of numbers and categories as rows of floats; DataFrames among them.

No library of tables is imported: a frame is what has columns by name, and what
is asked of a column are its `dtype`, `to_numpy` and, of categories, `cat`.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from jnl import noise
from jnl.base import check
from jnl.inputs import is_missing

ARRAYS = tuple(
  f'{kind}_{part}' for kind in ('num', 'cat', 'y') for part in ('train', 'test')
)


def rows_of_table(
  arrays: Mapping[str, np.ndarray], argument: str
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of a table as numbers: standardized columns, categories one-hot.

  Args:
    arrays: `num_train`, `num_test` [n, d] and `cat_train`, `cat_test` [n, q],
      category numbers in [0, categories of the column): as many as there are
      up to the largest in either part.
    argument: what the arrays are called in errors.

  Returns:
    Training and test rows [n, d + categories] float32. A column of one number
    is zeros.

  Raises:
    ValueError: if an array is malformed.
  """
  numbers = [arrays[f'num_{part}'] for part in ('train', 'test')]
  categories = [arrays[f'cat_{part}'] for part in ('train', 'test')]
  for kind, (train, test) in (('num', numbers), ('cat', categories)):
    check(
      train.ndim == test.ndim == 2 and train.shape[1] == test.shape[1],
      f'{argument}: {kind}_train and {kind}_test must be [n, columns], got '
      f'{train.shape} and {test.shape}',
    )
  for part, of_numbers, of_categories in zip(
    ('train', 'test'), numbers, categories, strict=True
  ):
    check(
      len(of_numbers) == len(of_categories),
      f'{argument}: num_{part} has {len(of_numbers)} rows, cat_{part} '
      f'{len(of_categories)}',
    )
    check(
      of_numbers.dtype.kind in 'buif' and np.all(np.isfinite(of_numbers)),
      f'{argument}: num_{part} must be finite numbers, none missing, got '
      f'{of_numbers.dtype}',
    )
    check(
      np.issubdtype(of_categories.dtype, np.integer)
      and np.all(of_categories >= 0),
      f'{argument}: cat_{part} must be integers >= 0, got '
      f'{of_categories.dtype}: np.unique(column, return_inverse=True) numbers '
      'the values of a column',
    )
  mean, std = numbers[0].mean(0), numbers[0].std(0)
  sizes = np.concatenate(categories).max(0).astype(int) + 1

  def rows(of_numbers: np.ndarray, of_categories: np.ndarray) -> np.ndarray:
    standard = (of_numbers - mean) / np.where(std > 0, std, 1)
    one_hot = [
      column[:, None] == np.arange(size)
      for column, size in zip(of_categories.T, sizes, strict=True)
    ]
    return np.concatenate([standard, *one_hot], axis=1).astype(np.float32)

  train, test = map(rows, numbers, categories)
  return train, test


# --- frames ------------------------------------------------------------------

Missing = Literal['error', 'weight_0']
"""What is done with a group whose count is not known."""


class Tabular(NamedTuple):
  """A table as arrays: rows, and what is known of them or of their groups.

  Attributes:
    x: [n, d] float32.
    columns: d names, of a category with its value: `('age', 'job=clerk')`.
    labels: [n] int32, or None.
    classes: what the labels were called, in the order of their numbers; ()
      where they were numbers.
    bags: the rows of each group, with `ids`; or None.
    counts: [k] int32, the positives of each bag, 0 where it is not known; or
      None.
    weight: [k] float32, 0 for a bag whose count is not known, else 1; or None.
  """

  x: np.ndarray
  columns: tuple[str, ...]
  labels: np.ndarray | None = None
  classes: tuple[Any, ...] = ()
  bags: noise.Bags | None = None
  counts: np.ndarray | None = None
  weight: np.ndarray | None = None

  @property
  def bag_arrays(self) -> dict[str, np.ndarray]:
    """What methods of bags train on: `fit(method, table.bag_arrays, key)`.

    `x` [k, m, d], `mask` [k, m], and where counts are known `counts` [k] and
    `weight` [k].
    """
    check(self.bags is not None, 'the table has no bags: from_table(group=)')
    assert self.bags is not None
    x, mask = noise.rows_of_bags(self.x, self.bags), np.asarray(self.bags.mask)
    arrays = {'x': x, 'mask': mask}
    if self.counts is not None and self.weight is not None:
      arrays |= {'counts': self.counts, 'weight': self.weight}
    return arrays


def from_table(
  frame: Any,
  *,
  label: Hashable = None,
  group: Hashable = None,
  count: Any = None,
  missing: Missing = 'error',
  like: Tabular | None = None,
) -> Tabular:
  """The rows of a DataFrame, and what its columns tell of labels and groups.

  All columns but those of the label, the group and the count become `x`:
  numbers and truth values as they are, not scaled; of a column of categories
  (`astype('category')`) a column of zeros and ones for each category. A column
  of other strings is an error: whether it is a category, a text or a name is
  not for a library to say.

  Args:
    frame: a DataFrame; or a dict of columns, or a structured array.
    label: the column of labels: whole numbers from 0, strings, categories or
      truth values.
    group: the column that says which group a row is in: numbers, strings, dates
      or categories.
    count: how many rows of each group are positive: a column that is constant
      within a group, or {group: count}, as a dict or a Series.
    missing: what is done with a group whose count is missing (NaN, or not in
      the mapping): 'error', or 'weight_0', which keeps its rows and gives the
      bag the weight 0, so that methods learn nothing from it.
    like: an earlier result; x then has its columns, in its order. Other columns
      are left out, and strings may stand for known categories.

  Returns:
    `Tabular`.

  Raises:
    TypeError, ValueError: naming the column, and the row, category or group: if
      a value is missing or infinite, a column is neither numbers nor
      categories or not there, a category is not known (`like`), or a group has
      no row, no count, two counts, or one that its rows cannot hold.

  >>> columns = {'age': [30, 40, 50], 'city': ['a', 'b', 'a']}
  >>> table = from_table(columns, group='city', count={'a': 1, 'b': 0})
  >>> table.x.tolist(), table.bags.ids.tolist(), table.counts.tolist()
  ([[30.0], [40.0], [50.0]], ['a', 'b'], [1, 0])
  >>> sorted(table.bag_arrays)
  ['counts', 'mask', 'weight', 'x']
  """
  check(
    missing in get_args(Missing),
    f'missing must be one of {get_args(Missing)}, got {missing!r}',
  )
  check(count is None or group is not None, 'count= needs group=')
  columns = columns_of(frame, 'frame')
  own = {'label': label, 'group': group}
  in_column = not hasattr(count, 'items')
  if in_column:
    check(
      isinstance(count, Hashable),
      'count must be the name of a column, or {group: count}, a dict or a '
      f'Series; got {type(count).__name__}',
      TypeError,
    )
    own['count'] = count
  for argument, name in own.items():
    check(
      name is None or name in columns,
      f'{argument}: frame has no column {name!r}, only {list(columns)}',
    )
  known = None if like is None else like.columns
  x, names = rows_of_frame(frame, 'frame', own.values(), known)
  table = Tabular(x, names)
  if label is not None:
    labels, classes = read_labels(columns[label], f'label: column {label!r}')
    _check_numbered(labels, label)
    table = table._replace(labels=labels.astype(np.int32), classes=classes)
  if group is None:
    return table
  bags = _bags_of(columns[group], group)
  table = table._replace(bags=bags)
  if count is None:
    return table
  if in_column:
    count = _counts_of_column(columns[count], bags, count)
  counts, weight = _counts_of(count, bags, group, missing)
  return table._replace(counts=counts, weight=weight)


def is_frame(values: Any) -> bool:
  """Whether this has columns by name.

  >>> is_frame({'age': [30]}), is_frame([[30]])
  (True, False)
  """
  named = getattr(getattr(values, 'dtype', None), 'names', None)
  return (
    isinstance(values, Mapping) or hasattr(values, 'columns') or bool(named)
  )


def columns_of(frame: Any, argument: str) -> dict[Any, Any]:
  """The columns of a table by name, all of one length.

  Raises:
    TypeError, ValueError: if it is none, or names a column twice.
  """
  check(
    is_frame(frame),
    f'{argument} must be a DataFrame, or a dict of columns, got '
    f'{type(frame).__name__}',
    TypeError,
  )
  if isinstance(frame, Mapping):
    names = list(frame)
  elif isinstance(frame, np.ndarray):
    names = list(frame.dtype.names or ())
  else:
    names = list(frame.columns)
  twice = [name for name, times in Counter(names).items() if times > 1]
  check(not twice, f'{argument} has more than one column {twice[:1]}')
  columns = {name: frame[name] for name in names}
  lengths = {name: len(column) for name, column in columns.items()}
  check(
    len(set(lengths.values())) == 1 and min(lengths.values(), default=0) > 0,
    f'{argument} must have columns of one length above 0, got {lengths}',
  )
  return columns


def rows_of_frame(
  frame: Any,
  argument: str,
  skipped: Collection[Any] = (),
  like: Collection[str] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Rows [n, d] float32 of a table, and the names of their columns.

  Args:
    frame: as for `from_table`.
    argument: what errors call it.
    skipped: names of columns that are left out.
    like: names of an earlier result, which these rows then have.

  Raises:
    TypeError, ValueError: naming column and row.
  """
  made: dict[str, np.ndarray] = {}
  bases = set()
  columns = columns_of(frame, argument)
  for name, column in columns.items():
    if name in skipped:
      continue
    coded = like is not None and any(k.startswith(f'{name}=') for k in like)
    if like is not None and not coded and str(name) not in like:
      continue
    one = f'{argument}: column {name!r}'
    levels = _levels_of(column, one, coded)
    if levels is None:
      made[str(name)] = _numbers_of(column, one)
      continue
    bases.add(f'{name}=')
    made |= _one_hot(name, *levels, one, like)
  check(
    len(made) > 0 or like is not None,
    f'{argument} has no column for x: only {list(columns)}',
  )
  order = tuple(made) if like is None else tuple(like)
  n = len(next(iter(columns.values())))
  for k in order:
    check(
      k in made or k.partition('=')[0] + '=' in bases,
      f'{argument} has no column {k.partition("=")[0]!r}, which the earlier '
      f'one had; it has {list(columns)}',
    )
  rows = [made.get(k, np.zeros(n, np.float32)) for k in order]
  return np.stack(rows, axis=1), order


def _one_hot(
  name: Any,
  codes: np.ndarray,
  levels: list[Any],
  argument: str,
  like: Collection[str] | None,
) -> dict[str, np.ndarray]:
  """A column for each category; raises for one that is not known."""
  made = {}
  for i, level in enumerate(levels):
    rows, column = codes == i, f'{name}={level}'
    check(
      like is None or column in like or not rows.any(),
      f'{argument} holds {level!r} in row {rows.argmax()}, a category that the '
      'earlier table has not',
    )
    made[column] = rows.astype(np.float32)
  return made


def _levels_of(
  column: Any, argument: str, coded: bool = False
) -> tuple[np.ndarray, list[Any]] | None:
  """Codes [n] and categories of a column that has them, else None.

  Args:
    column: of a frame.
    argument: what errors call it.
    coded: whether its values are known to be categories, strings among them.
  """
  categories = getattr(getattr(column, 'dtype', None), 'categories', None)
  if categories is not None and hasattr(column, 'cat'):
    codes, levels = np.asarray(column.cat.codes), list(categories)
  elif coded:
    values = np.asarray(column)
    codes, levels = _codes_of(values)
  else:
    return None
  check(
    not (codes < 0).any(),
    f'{argument} misses a value in row {(codes < 0).argmax()}: drop the row, '
    'or make it a category of its own',
  )
  return codes, levels


def _codes_of(values: np.ndarray) -> tuple[np.ndarray, list[Any]]:
  """Numbers of values, -1 where one is missing, and the values, sorted."""
  there = np.array([not is_missing(value) for value in values.tolist()], bool)
  codes = np.full(len(values), -1)
  levels, codes[there] = np.unique(values[there], return_inverse=True)
  return codes, levels.tolist()


def values_of(column: Any) -> np.ndarray:
  """A column as an array of numpy, floats with NaN where numbers are missing.

  Integers and truth values stay what they are where none is missing.
  """
  dtype = getattr(column, 'dtype', None)
  kind = getattr(dtype, 'kind', 'O')
  if dtype is None or isinstance(dtype, np.dtype) or kind not in 'iufb':
    return np.asarray(column)
  plain = {'i': np.int64, 'u': np.uint64, 'f': np.float64, 'b': bool}[kind]
  if kind != 'f' and not np.asarray(column.isna()).any():
    return column.to_numpy(dtype=plain)
  return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _numbers_of(column: Any, argument: str) -> np.ndarray:
  """A column as float32; raises for what is no number, and says what it is."""
  values = values_of(column)
  check(
    values.ndim == 1,
    f'{argument} must be [n], got shape {values.shape}',
  )
  if values.dtype.kind in 'OUST':
    text = [isinstance(v, str | bytes) for v in values.tolist()]
    row = text.index(True) if any(text) else 0
    told = (
      "make it categories by frame[...].astype('category'), a number, or leave "
      'it out'
      if any(text)
      else 'pandas.to_numeric makes numbers of it'
    )
    raise TypeError(
      f'{argument} must hold numbers or categories, got '
      f'{values.tolist()[row]!r} in row {row}: {told}'
    )
  check(
    values.dtype.kind in 'biuf',
    f'{argument} must hold numbers or categories, got {values.dtype}: make '
    'numbers of it, or leave it out',
    TypeError,
  )
  with np.errstate(over='ignore'):
    numbers = values.astype(np.float32)
  bad = ~np.isfinite(numbers)
  row = int(bad.argmax())
  check(
    not bad.any(),
    f'{argument} holds {values[row]} in row {row}: fill in a number or drop '
    'the row',
  )
  return numbers


# --- labels, groups and counts -----------------------------------------------


def read_labels(
  labels: Any, argument: str, classes: tuple[Any, ...] | None = None
) -> tuple[np.ndarray, tuple[Any, ...]]:
  """Labels as numbers, and what they were called.

  Args:
    labels: [n]: strings, categories or truth values; anything else is handed
      on as an array, for others to check.
    argument: what errors call them.
    classes: those of earlier labels, in whose order these are numbered.

  Returns:
    [n], and the classes: in the order of the categories, else sorted; () where
    labels are numbers.

  Raises:
    ValueError: naming the row, if one is missing or not among `classes`.
    TypeError: if these are names of classes and the earlier ones numbers.
  """
  found = _levels_of(labels, argument)
  if found is None:
    values = values_of(labels)
    if values.dtype.kind == 'O' and values.ndim == 1:
      gone = np.array([is_missing(value) for value in values], bool)
      check(not gone.any(), f'{argument} misses a value in row {gone.argmax()}')
      words = [isinstance(value, str) for value in values]
      check(
        all(words) or not any(words),
        f'{argument} must be all strings or all numbers, got '
        f'{values[words.index(True)]!r} and {values[words.index(False)]!r}'
        if len(set(words)) == 2
        else '',
        TypeError,
      )
      values = np.array(values.tolist())
    if values.dtype.kind not in 'bUST' or values.ndim != 1:
      check(
        not classes,
        f'{argument} must be of the classes {list(classes or ())[:5]}, got '
        f'{values.dtype}',
        TypeError,
      )
      return values, ()
    found = _codes_of(values)
  codes, levels = found
  if classes is None:
    return codes.astype(np.int32), tuple(levels)
  check(
    len(classes) > 0,
    f'{argument} must be numbers as in training, got {levels[0]!r}',
    TypeError,
  )
  number = {name: i for i, name in enumerate(classes)}
  for i, level in enumerate(levels):
    rows = codes == i
    check(
      level in number or not rows.any(),
      f'{argument} holds {level!r} in row {rows.argmax()}, which is none of '
      f'the classes {list(classes)[:5]}',
    )
  mapped = np.array([number.get(level, -1) for level in levels], np.int32)
  return mapped[codes], classes


def _check_numbered(labels: np.ndarray, label: Any) -> None:
  """Raises unless labels are integers from 0."""
  check(
    np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0,
    f'label: column {label!r} must be whole numbers from 0, got '
    f'{labels.dtype} from {labels.min()}: names of classes are strings or '
    "categories, frame[...].astype('category')",
    TypeError,
  )


def _bags_of(column: Any, group: Any) -> noise.Bags:
  """The bags of the group column; a category without a row is an error."""
  argument = f'group: column {group!r}'
  found = _levels_of(column, argument)
  if found is not None:
    codes, levels = found
    empty = np.bincount(codes, minlength=len(levels)) == 0
    check(
      not empty.any(),
      f'{argument} has the category {levels[empty.argmax()]!r}, and no row of '
      'it; .cat.remove_unused_categories() drops it',
    )
  values = values_of(column)
  if values.dtype.kind == 'f':  # as integers are where one was missing
    gone = np.isnan(values)
    check(
      not gone.any(),
      f'{argument} misses a value in row {gone.argmax()}: drop the row',
    )
    whole = bool((values == np.round(values)).all())
    column = values.astype(np.int64) if whole else values
  try:
    return noise.bags_of_ids(column)
  except (TypeError, ValueError) as error:
    raise type(error)(f'{argument}: {error}') from None


def _counts_of_column(
  column: Any, bags: noise.Bags, count: Any
) -> dict[Any, Any]:
  """{group: count} of a column that is constant within each group."""
  values = values_of(column)
  if values.dtype.kind == 'O':
    values = np.array([np.nan if is_missing(v) else v for v in values])
  check(
    values.dtype.kind in 'biuf' and values.ndim == 1,
    f'count: column {count!r} must hold numbers, got {values.dtype}',
    TypeError,
  )
  of_bags = noise.rows_of_bags(values, bags)
  first = of_bags[:, :1]
  same = (of_bags == first) | ((of_bags != of_bags) & (first != first))
  varies = ~np.all(same | ~np.asarray(bags.mask), axis=1)
  assert bags.ids is not None
  names, b = bags.ids.tolist(), int(varies.argmax())
  seen = list(dict.fromkeys(of_bags[b][np.asarray(bags.mask[b])].tolist()))
  check(
    not varies.any(),
    f'count: column {count!r} must be the same in all rows of a group, got '
    f'{seen[:3]} in group {names[b]!r}',
  )
  return dict(zip(names, of_bags[:, 0].tolist(), strict=True))


def _counts_of(
  count: Any, bags: noise.Bags, group: Any, missing: Missing
) -> tuple[np.ndarray, np.ndarray]:
  """Counts [k] of the bags, and weights [k]: 0 where there is none."""
  assert bags.ids is not None
  names, given = bags.ids.tolist(), list(count.items())
  twice = [k for k, times in Counter(k for k, _ in given).items() if times > 1]
  check(not twice, f'count: group {twice[:1]} has more than one')
  counts = {k: 0 if is_missing(v) else v for k, v in given}
  gone = {k for k, v in given if is_missing(v)} | (set(names) - set(counts))
  unknown = [name for name in names if name in gone]
  first = unknown[0] if unknown else None
  check(
    missing == 'weight_0' or not unknown,
    f'count: {len(unknown)} of {len(names)} groups have none, the first is '
    f'{first!r}. Drop the group, frame[frame[{group!r}] != {first!r}], or pass '
    "missing='weight_0', which keeps its rows and gives the bag weight 0",
  )
  check(len(unknown) < len(names), 'count: no group has one')
  weight = np.array([name not in gone for name in names], np.float32)
  counts |= dict.fromkeys(unknown, 0)
  return noise.counts_of_ids(bags, counts), weight
