"""From a table: columns, classes, groups, counts, and what is wrong."""

import copy
import pickle

from extras import marks
import numpy as np
import pytest

from jnl import data, noise
from jnl.data import Dataset, from_arrays, from_table, ngram_ids, token_ids

pytestmark = marks('pandas')
pd = pytest.importorskip('pandas', reason="pip install -e '.[test-slow]'")

N = 40
CITIES = ['north', 'east', 'south', 'east'] * (N // 4)


def table(**changes):
  """Numbers, truth values, categories, a group and its count."""
  region = [f'r{i // 8}' for i in range(N)][::-1]
  columns = {
    'age': np.arange(N) % 7,
    'rich': np.arange(N) % 3 == 0,
    'income': np.linspace(0, 1, N),
    'city': pd.Categorical(CITIES),
    'region': region,
    'positives': [float(name[1]) for name in region],
  }
  return pd.DataFrame({**columns, **changes}, index=np.arange(N) + 100)


COUNTS = {'r3': 3, 'r0': 0, 'r1': 1, 'r4': 4, 'r2': 2}
FEATURES = table().drop(columns=['region', 'positives'])


def read(frame=None, **changes):
  frame = table().drop(columns='positives') if frame is None else frame
  return from_table(frame, **{'group': 'region', 'count': COUNTS, **changes})


def test_numbers_stay_and_categories_are_columns_of_their_own():
  found = from_table(FEATURES)
  names = ('age', 'rich', 'income', 'city=east', 'city=north', 'city=south')
  assert found.columns == names
  assert found.x.dtype == np.float32
  expected = [
    *(FEATURES[name].astype(float) for name in ('age', 'rich', 'income')),
    *(np.array(CITIES) == name for name in ('east', 'north', 'south')),
  ]
  np.testing.assert_allclose(found.x, np.stack(expected, 1), rtol=1e-6)
  assert found.labels is found.bags is found.counts is None
  assert found.classes == ()
  with pytest.raises(ValueError, match=r'no bags: from_table\(group=\)'):
    _ = found.bag_arrays


def test_a_dict_and_a_structured_array_are_tables():
  columns = {'a': [1, 2], 'b': [0.5, 1.5]}
  rows = np.array([(1, 0.5), (2, 1.5)], [('a', int), ('b', float)])
  for frame in (columns, rows, pd.DataFrame(columns)):
    assert from_table(frame).x.tolist() == [[1, 0.5], [2, 1.5]]


def test_nullable_columns_are_numbers():
  frame = pd.DataFrame(
    {
      'a': pd.array([1, 2], dtype='Int64'),
      'b': pd.array([True, False], dtype='boolean'),
    }
  )
  assert from_table(frame).x.tolist() == [[1, 1], [2, 0]]


def test_another_frame_gets_the_columns_of_an_earlier_one():
  known = from_table(FEATURES)
  # Other order, other columns beside, strings for categories, fewer of them.
  other = table(city=np.array(['south', 'north'] * (N // 2), object))
  found = from_table(other[other.columns[::-1]], like=known)
  assert found.columns == known.columns
  np.testing.assert_array_equal(found.x[:, :3], known.x[:, :3])
  assert found.x[:2, 3:].tolist() == [[0, 0, 1], [0, 1, 0]]
  with pytest.raises(ValueError, match=r"'city' holds 'west' in row 5, a cat"):
    from_table(table(city=[*CITIES[:5], 'west', *CITIES[6:]]), like=known)
  with pytest.raises(ValueError, match="frame has no column 'age', which the"):
    from_table(FEATURES.drop(columns='age'), like=known)
  with pytest.raises(ValueError, match="frame has no column 'city', which the"):
    from_table(FEATURES.drop(columns='city'), like=known)


@pytest.mark.parametrize(
  'counts',
  [
    COUNTS,
    {**COUNTS, 'r4': np.float64(4)},
    pd.Series(COUNTS),
    pd.Series(COUNTS, dtype=float),
    pd.Series(COUNTS, dtype='Int64'),
    'positives',
  ],
)
def test_groups_are_bags_and_counts_stand_in_their_order(counts):
  frame = table() if isinstance(counts, str) else None
  found = read(frame, count=counts)
  assert found.bags.ids.tolist() == ['r0', 'r1', 'r2', 'r3', 'r4']
  assert found.bags.index[0].tolist() == list(range(32, 40))
  assert found.counts.tolist() == [0, 1, 2, 3, 4]
  assert found.counts.dtype == np.int32
  assert found.columns[-1] == 'city=south'
  arrays = found.bag_arrays
  assert {k: v.shape for k, v in arrays.items()} == {
    'x': (5, 8, 6),
    'mask': (5, 8),
    'counts': (5,),
    'weight': (5,),
  }
  np.testing.assert_array_equal(arrays['x'][0], found.x[32:])
  data.check_arrays(arrays)


@pytest.mark.parametrize('how', ['mapping', 'absent', 'column', 'nullable'])
def test_a_missing_count_is_told_and_can_have_weight_0(how):
  frame, count = None, dict(COUNTS)
  if how == 'absent':
    del count['r2']
  elif how == 'column':
    frame, count = table(), 'positives'
    frame.loc[frame.region == 'r2', 'positives'] = np.nan
  else:
    count['r2'] = np.nan if how == 'mapping' else pd.NA
  with pytest.raises(ValueError, match=r"'r2'. Drop the group, frame\[frame\["):
    read(frame, count=count)
  found = read(frame, count=count, missing='weight_0')
  assert found.weight.tolist() == [1, 1, 0, 1, 1]
  assert found.counts.tolist() == [0, 1, 0, 3, 4]
  assert len(found.x) == N
  data.check_arrays(found.bag_arrays)


def dates():
  return pd.to_datetime(['2026-01-02', '2026-01-01', '2026-01-02'])


@pytest.mark.parametrize(
  ('ids', 'names'),
  [
    ([7, 2, 7], [2, 7]),
    ([7.0, 2.0, 7.0], [2, 7]),
    (['b', 'a', 'b'], ['a', 'b']),
    (pd.Categorical(['b', 'a', 'b']), ['a', 'b']),
    ([True, False, True], [False, True]),
    (dates(), sorted(set(dates()))),
    (pd.Series([(1, 2), (0, 3), (1, 2)]), [(0, 3), (1, 2)]),
    (np.array(['b', 3, 'b'], object), ['b', 3]),
  ],
)
def test_groups_have_names_of_any_kind(ids, names):
  frame = pd.DataFrame({'x': [0, 1, 2], 'group': ids})
  order = [0, 1] if names == ['b', 3] else [1, 0]  # of first appearance
  counts = {names[order.index(0)]: 2, names[order.index(1)]: 1}
  found = from_table(frame, group='group', count=counts)
  assert found.bags.ids.tolist() == names
  assert found.counts[order.index(0)] == 2


def test_dates_and_truth_values_are_bags():
  days = np.array(['2026-01-02', 'NaT', '2026-01-02'], 'datetime64[D]')
  bags = noise.bags_of_ids(days[::2])
  assert noise.counts_of_ids(bags, {days[0]: 1.0}).tolist() == [1]
  with pytest.raises(TypeError, match=r'none missing.* in row 1'):
    noise.bags_of_ids(days)
  assert noise.bags_of_ids([True, False]).ids.tolist() == [False, True]


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    ({'age': [1, np.nan] * 20}, ValueError, "'age' holds nan in row 1"),
    ({'age': [1, 1e39] * 20}, ValueError, "'age' holds 1e\\+39 in row 1"),
    (
      {'age': pd.array([1, None] * 20, dtype='Int64')},
      ValueError,
      "'age' holds nan in row 1",
    ),
    ({'age': CITIES}, TypeError, r"'age' must.* 'north' in row 0.*'category'"),
    ({'age': [[1]] * N}, TypeError, "'age' must hold.*pandas.to_numeric"),
    ({'age': pd.Timestamp(0)}, TypeError, "'age' must hold numbers or cat"),
    ({'age': [1 + 2j] * N}, TypeError, "'age' must hold.*got complex128"),
    (
      {'city': pd.Categorical(['east', None] * 20)},
      ValueError,
      "'city' misses a value in row 1",
    ),
    ({'region': [1, np.nan] * 20}, ValueError, "'region' misses.* row 1: drop"),
    ({'region': [0.5] * N}, TypeError, "column 'region': ids must be integers"),
    ({'region': ['a', None] * 20}, TypeError, "'region': ids must.* in row 1"),
    (
      {'region': pd.Categorical(['r0'] * N, ['r0', 'r9'])},
      ValueError,
      "the category 'r9', and no row of it; .cat.remove_unused",
    ),
  ],
)
def test_bad_columns_are_named(change, error, message):
  with pytest.raises(error, match=message):
    read(table(**change).drop(columns='positives'))


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    ({'count': {**COUNTS, 'r9': 1}}, ValueError, r"no example.*\['r9'\]"),
    ({'count': {**COUNTS, 'r9': np.nan}}, ValueError, r"no example.*\['r9'\]"),
    ({'count': {**COUNTS, 'r3': 9}}, ValueError, "9 of the 8 inst.*bag 'r3'"),
    ({'count': {**COUNTS, 'r3': -1}}, ValueError, "-1 of the 8 inst.*bag 'r3'"),
    ({'count': {**COUNTS, 'r3': 0.5}}, ValueError, "0.5 of bag 'r3' is no wh"),
    ({'count': {**COUNTS, 'r3': 'x'}}, TypeError, 'counts must be integers'),
    ({'count': pd.Series([1, 2], ['r0'] * 2)}, ValueError, 'more than one'),
    ({'count': {}, 'missing': 'weight_0'}, ValueError, 'no group has one'),
    ({'count': [0, 1, 2, 3, 4]}, TypeError, 'the name of a column, or {group'),
    ({'count': 'city'}, TypeError, "column 'city' must hold numbers"),
    ({'count': 'age'}, ValueError, r"'age' must be the same.*group 'r0'"),
    ({'count': 'ages'}, ValueError, "count: frame has no column 'ages'"),
    ({'group': 'area'}, ValueError, "group: frame has no column 'area'"),
    ({'group': None}, ValueError, 'count= needs group='),
    ({'missing': 'drop'}, ValueError, 'missing must be one of'),
    ({'frame': np.ones((2, 2))}, TypeError, 'frame must be a DataFrame'),
    ({'frame': {'a': [1], 'b': [1, 2]}}, ValueError, 'columns of one length'),
    (
      {'frame': pd.DataFrame([[1, 2]], columns=['a', 'a'])},
      ValueError,
      r"more than one column \['a'\]",
    ),
    (
      {'frame': {'region': ['a']}, 'count': {'a': 1}},
      ValueError,
      'no column for x',
    ),
  ],
)
def test_what_does_not_fit_is_named(change, error, message):
  with pytest.raises(error, match=message):
    read(**change)


@pytest.mark.parametrize(
  ('labels', 'classes', 'first'),
  [
    (np.array(CITIES), ('east', 'north', 'south'), [1, 0, 2, 0]),
    (pd.Series(CITIES), ('east', 'north', 'south'), [1, 0, 2, 0]),
    (CITIES, ('east', 'north', 'south'), [1, 0, 2, 0]),
    (
      pd.Series(pd.Categorical(CITIES, ['south', 'north', 'east'])),
      ('south', 'north', 'east'),
      [1, 2, 0, 2],
    ),
    (np.arange(N) % 2 == 0, (False, True), [1, 0, 1, 0]),
    (pd.Series(np.arange(N) % 2, dtype='Int64'), (), [0, 1, 0, 1]),
    (pd.DataFrame({'y': np.arange(N) % 2})['y'], (), [0, 1, 0, 1]),
  ],
)
def test_classes_keep_their_names(labels, classes, first):
  dataset = from_arrays(FEATURES, labels, FEATURES[:4], labels[:4])
  assert dataset.classes == classes
  assert type(dataset.classes[0] if classes else '') in (str, bool)
  assert dataset.num_classes == (len(classes) or 2)
  assert dataset.test.labels.tolist() == first
  assert dataset.test.labels.dtype == np.int32
  found = from_table({'x': np.arange(N), 'y': labels}, label='y')
  assert (found.classes, found.columns) == (classes, ('x',))
  assert found.labels[:4].tolist() == first


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    (
      {'labels_test': ['east', 'west']},
      ValueError,
      r"labels_test holds 'west' in row 1, which is none of the classes",
    ),
    ({'labels_test': [0, 1]}, TypeError, 'labels_test must be of the classes'),
    (
      {'labels': np.arange(N) % 2},
      TypeError,
      "labels_test must be numbers as in training, got 'east'",
    ),
    ({'labels': [None, *CITIES[1:]]}, ValueError, 'labels misses .* in row 0'),
    (
      {'labels': np.array([1, *CITIES[1:]], object)},
      TypeError,
      "labels must be all strings or all numbers, got 'east' and 1",
    ),
    (
      {'labels': pd.Series(pd.Categorical(CITIES, ['west', *CITIES[:3]]))},
      ValueError,
      "no example of class 'west'",
    ),
    ({'num_classes': 4}, ValueError, 'labels have the 3 classes'),
    (
      {'x_test': FEATURES[:2].assign(city=pd.Categorical(['north', 'west']))},
      ValueError,
      "x_test: column 'city' holds 'west' in row 1",
    ),
    (
      {'x_test': FEATURES[:2].drop(columns='age')},
      ValueError,
      "x_test has no column 'age'",
    ),
    ({'ids': ngram_ids}, ValueError, 'ids= is for texts, and x is a table'),
  ],
)
def test_what_the_test_set_must_not_hold(change, error, message):
  arguments = {'x': FEATURES, 'labels': CITIES}
  arguments |= {'x_test': FEATURES[:2], 'labels_test': ['east', 'north']}
  with pytest.raises(error, match=message):
    from_arrays(**{**arguments, **change})


def test_labels_of_a_table_are_checked():
  frame = {'x': [0, 1, 2], 'y': [-1, 1, 1]}
  with pytest.raises(
    TypeError, match=r"'y' must be whole numbers from 0.*'cat"
  ):
    from_table(frame, label='y')


@pytest.mark.parametrize('kind', [list, np.array, pd.Series])
def test_texts_become_ids(kind):
  texts = ['some words', 'other words here'] * (N // 2)
  dataset = from_arrays(
    kind(texts), CITIES, kind(texts[:3]), CITIES[:3], ids=ngram_ids
  )
  np.testing.assert_array_equal(dataset.test.x, ngram_ids(texts[:3]))
  assert dataset.classes == ('east', 'north', 'south')
  one = from_arrays(kind(texts), CITIES, ids=token_ids).train
  np.testing.assert_array_equal(one.x[0], token_ids([texts[one.id[0]]])[0])
  with pytest.raises(ValueError, match=r'ids= is for texts, and x must be \[n'):
    from_arrays(np.ones((N, 2)), CITIES, ids=ngram_ids)


def test_a_dataset_knows_its_classes_and_columns():
  dataset = from_arrays(FEATURES, CITIES)
  name, num_classes, train, validation, test, *_ = dataset
  assert (name, num_classes) == ('arrays', 3)
  again = Dataset(name, num_classes, train, validation, test)
  assert (again.classes, again.columns) == ((), ())
  assert len(train.x) + len(validation.x) + len(test.x) == N
  for same in (
    dataset._replace(name='arrays'),
    copy.copy(dataset),
    pickle.loads(pickle.dumps(dataset)),
  ):
    assert same.classes == ('east', 'north', 'south')
    assert same.columns == from_table(FEATURES).columns
    np.testing.assert_array_equal(same.train.x, train.x)
  assert dataset._replace(classes=()).classes == ()
  assert dataset._replace(classes=()).test is test
