"""What is trained, looked at before anything is compiled.

`make_plan` checks a method, its data, streams, held-out sets and scores against
each other, by shapes and by one look at the values, and traces a step. What
comes out is a `Plan`, from which `jnl.train._program` compiles.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import (
  Batch,
  Key,
  Method,
  PyTree,
  State,
  check,
  data_shards,
  example_keys,
  name_tag,
  suffixed,
  tables_of,
)
from jnl.data._batches import PerRun, check_arrays, check_numbers, of_run
from jnl.train import _traced as traced
from jnl.train._evaluate import check_score, collect_rows
from jnl.train._score import Score
from jnl.train.scores import accuracy

Arrays = Mapping[str, Any]
"""Arrays [n, ...] by name; `fit_many` takes `PerRun` ones among them."""
Augment = Callable[[Key, Batch], Batch]

AUGMENT_TAG = 1 << 16
"""Tag of the keys that augmentation gets, apart from those of a step."""


class Stream(NamedTuple):
  """A second stream of examples beside the data: unlabeled, clean, of a domain.

  It has an order of its own and starts anew as often as it ends. What an array
  is called in batches ends in the stream's name: `x_u`, `labels_u`, `index_u`,
  `weight_u`.

  Attributes:
    arrays: [n, ...] by name, as the data of `fit`; in `fit_many` some may be
      `PerRun`.
    batch_size: examples of it in a step, over all devices; at most n.
    augment: `(keys [b], batch) -> batch`, of its own batches, without suffix.
  """

  arrays: Arrays
  batch_size: int
  augment: Augment | None = None


class Source(NamedTuple):
  """Where a part of a batch comes from: the data, or a stream.

  Attributes:
    n: examples.
    shards: of the source and its tables.
    batch_size: examples in a step.
    batch: shapes and dtypes, before augmentation.
    augment: `(keys [b], batch) -> batch`, or None.
  """

  n: int
  shards: int
  batch_size: int
  batch: Mapping[str, jax.ShapeDtypeStruct]
  augment: Augment | None = None


class Plan(NamedTuple):
  """What is trained.

  Attributes:
    method: the method.
    sources: by the name of the stream, '' for the data, which come first.
    scores: for the name of every held-out set, what it is scored by.
    columns: for the name of every held-out set, the names of its scores.
    metrics: shapes and dtypes of those of a step.
    traced: the jaxpr of a step, for what can be read off it.
  """

  method: Method
  sources: Mapping[str, Source]
  scores: Mapping[str, Score] = types.MappingProxyType({})
  columns: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
  metrics: Mapping[str, jax.ShapeDtypeStruct] = types.MappingProxyType({})
  traced: Any = None

  @property
  def main(self) -> Source:
    """The data."""
    return self.sources['']

  @property
  def steps(self) -> int:
    """Steps in an epoch."""
    return self.main.n // self.main.batch_size

  @property
  def batches(self) -> dict[str, Mapping[str, jax.ShapeDtypeStruct]]:
    """Shapes of what a step is made of, by source."""
    return {name: source.batch for name, source in self.sources.items()}


def seen_by_step(plan: Plan, batches: Mapping[str, Batch], key: Key) -> Batch:
  """The batch that the method sees: augmented, streams with their suffix."""
  seen: dict[str, Any] = {}
  for name, batch in batches.items():
    batch = augmented(plan.sources[name], name, batch, key)
    seen |= {suffixed(k, name): v for k, v in batch.items()}
  return seen


def augmented(source: Source, name: str, batch: Batch, key: Key) -> Batch:
  """A batch of a source after its augmentation, with the key of the step."""
  if source.augment is None:
    return batch
  tagged = jax.random.fold_in(key, AUGMENT_TAG)
  tagged = jax.random.fold_in(tagged, name_tag(name)) if name else tagged
  return source.augment(example_keys(tagged, batch['index']), batch)


def history_name(held_out: str, score: str) -> str:
  """What a score of a held-out set is called in the history.

  >>> history_name('test', 'accuracy')
  'test_accuracy'
  """
  return f'{held_out}_{score}'


# --- checks ------------------------------------------------------------------


def make_plan(
  method: Method,
  data: Arrays,
  streams: Mapping[str, Stream],
  held_out: Mapping[str, Arrays],
  *,
  epochs: int,
  batch_size: int,
  augment: Augment | None,
  scores: Mapping[str, Score],
  shards: int | None,
  runs: int | None = None,
) -> Plan:
  """Checks everything that can be checked before anything is compiled.

  Args:
    method: what to train.
    data: as for `fit`.
    streams: as for `fit`.
    held_out: as for `fit`.
    epochs: as for `fit`.
    batch_size: as for `fit`.
    augment: as for `fit`.
    scores: as for `fit`.
    shards: as for `fit`.
    runs: how many there are, or None for `fit`.

  Returns:
    The plan.

  Raises:
    ValueError, TypeError: naming the argument.
  """
  check(epochs >= 1, f'epochs must be at least 1, got {epochs}')
  _check_kinds(method, held_out)
  _check_streams(streams)
  _check_scores(scores, held_out)
  sets = {'data': data}
  sets |= {f'streams[{k!r}]': stream.arrays for k, stream in streams.items()}
  sets |= {f'held_out[{k!r}]': arrays for k, arrays in held_out.items()}
  first = {name: _first_run(v, name, runs) for name, v in sets.items()}
  abstract = jax.eval_shape(method.init, jax.random.key(0))
  num_classes = _num_classes(method, abstract, list(first.values()))
  for name, arrays in sets.items():
    _check_values(arrays, num_classes, name, runs)
  main = Stream(first['data'], batch_size, augment)
  sources = {'': _source(main, shards, '')}
  for name, stream in streams.items():
    stream = stream._replace(arrays=first[f'streams[{name!r}]'])
    sources[name] = _source(stream, shards, f'streams[{name!r}]: ')
  plan = Plan(
    method, sources, {name: scores.get(name, accuracy) for name in held_out}
  )
  _check_names(plan)
  _check_tables(plan, abstract)
  plan = plan._replace(columns=_columns(plan, abstract, first))
  seen_by_method = _augmented(plan)
  plan = _with_trace(plan, abstract)
  _check_whole_numbers(plan, abstract, first, seen_by_method)
  return plan


def _columns(
  plan: Plan, abstract: State, first: Mapping[str, Arrays]
) -> dict[str, tuple[str, ...]]:
  """The names of the numbers of each held-out set; raises for a bad score."""
  columns = {}
  for name, score in plan.scores.items():
    held_out = f'held_out[{name!r}]'
    columns[name] = check_score(
      score,
      plan.method.predict,
      abstract,
      first[held_out],
      f'scores[{name!r}]',
      held_out,
    )
  return columns


def _check_kinds(method: Any, held_out: Any) -> None:
  check(
    isinstance(method, Method),
    'method must be a jnl.Method, as methods.elr(model, ...) gives it, got '
    f'{getattr(method, "__name__", type(method).__name__)}',
    TypeError,
  )
  check(
    isinstance(held_out, Mapping),
    "held_out must be a dict of sets, {'test': {'x': ..., 'labels': ...}}, got "
    f'{type(held_out).__name__}',
    TypeError,
  )
  for name, arrays in held_out.items():
    check(
      isinstance(arrays, Mapping),
      f"held_out[{name!r}] must be a dict of arrays, {{'x': ..., 'labels': "
      f'...}}, got {type(arrays).__name__}',
      TypeError,
    )


def _check_streams(streams: Any) -> None:
  check(
    isinstance(streams, Mapping),
    f'streams must be a dict, {{name: Stream(arrays, batch_size)}}, got '
    f'{type(streams).__name__}',
    TypeError,
  )
  for name, stream in streams.items():
    check(
      isinstance(name, str) and name.isidentifier(),
      f'streams: the name of a stream ends the names of its arrays (x_u), so '
      f'it must be a word, got {name!r}',
    )
    check(
      isinstance(stream, Stream),
      f'streams[{name!r}] must be a Stream(arrays, batch_size), got '
      f'{type(stream).__name__}',
      TypeError,
    )


def _check_names(plan: Plan) -> None:
  """Raises if two sources make an array of the same name."""
  taken: dict[str, str] = {}
  for name, source in plan.sources.items():
    for array in source.batch:
      made = suffixed(array, name)
      check(
        made not in taken,
        f'streams[{name!r}] makes {made!r} of its {array!r}, and '
        f'{taken.get(made)} has an array of that name: rename the stream',
      )
      taken[made] = f'streams[{name!r}]' if name else 'data'


def _check_scores(
  scores: Mapping[str, Score], held_out: Mapping[str, Arrays]
) -> None:
  """Whether every held-out set has what it is scored by."""
  check(
    set(scores) <= set(held_out),
    f'scores has {sorted(set(scores) - set(held_out))}, which held_out has not',
  )
  for name, arrays in held_out.items():
    own = name in scores
    check(
      own or {'x', 'labels'} == set(arrays) - {'weight'},
      f'held_out[{name!r}] must hold x and labels, or have a score of its own; '
      f'got {sorted(arrays)}',
    )
    labels = arrays.get('labels')
    labels = labels.values if isinstance(labels, PerRun) else labels
    dtype = getattr(labels, 'dtype', np.dtype(int))
    check(
      own or jnp.issubdtype(dtype, jnp.integer),
      f'held_out[{name!r}]: labels must be integers for the accuracy, got '
      f'{dtype}; soft labels need a score of their own (scores=)',
      TypeError,
    )


def _check_values(
  arrays: Arrays, num_classes: int | None, name: str, runs: int | None
) -> None:
  """Looks at the values; at what runs share, once."""
  shared = [k for k, v in arrays.items() if not isinstance(v, PerRun)]
  for r in range(1 if len(shared) == len(arrays) else runs or 1):
    checked = shared if r > 0 else ()
    check_arrays(of_run(arrays, r), num_classes, name, checked)
    if name.startswith('held_out') and 'weight' in arrays:
      check(
        np.sum(of_run(arrays, r)['weight']) > 0,
        f'{name}: weight is 0 everywhere',
      )


def _source(stream: Stream, shards: int | None, name: str) -> Source:
  """The source of a stream of one run; errors begin with `name`."""
  n = len(next(iter(stream.arrays.values())))
  try:
    cut = _shards(n, stream.batch_size, shards)
  except ValueError as error:
    raise ValueError(f'{name}{error}') from None
  batch = _abstract_batch(stream.arrays, stream.batch_size)
  return Source(n, cut, stream.batch_size, batch, stream.augment)


def _first_run(arrays: Arrays, argument: str, runs: int | None) -> Arrays:
  """The arrays of one run; raises unless all are arrays, of so many runs."""
  if runs is None or not isinstance(arrays, Mapping):
    check_numbers(arrays, argument)
    return arrays
  own = {k: v for k, v in dict(arrays).items() if isinstance(v, PerRun)}
  check_numbers({k: v.values for k, v in own.items()}, f'{argument}, PerRun')
  for name, values in own.items():
    check(
      values.values.shape[0] == runs,
      f'{argument}: {name} is PerRun: its leading size must be {runs}, as that '
      f'of keys; its shape is {values.values.shape}',
    )
  first = of_run(arrays, 0)
  check_numbers(first, argument)
  return first


def _shards(n: int, batch_size: int, shards: int | None) -> int:
  """Those that were asked for if they can be, or the default."""
  if shards is None:
    return data_shards(n, batch_size)
  check(
    shards >= 1 and batch_size % shards == 0,
    f'shards must divide the batch size, {batch_size}, got {shards}',
  )
  check(
    data_shards(n, batch_size, shards) == shards,
    f'shards is {shards}, and the last of them would have too few of the {n} '
    f'examples for the {n // batch_size} steps of an epoch: take fewer',
  )
  return shards


def _num_classes(
  method: Method, abstract: State, sets: Sequence[Arrays]
) -> int | None:
  """Of the first labeled examples; bags, which have no labels, are not `x`."""
  for arrays in sets:
    if {'x', 'labels'} <= set(arrays):
      row = jnp.asarray(arrays['x'][:1])
      return jax.eval_shape(method.predict, abstract, row).logits.shape[-1]
  return None


def _abstract_batch(
  data: Arrays, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """What `take_batch` gives."""
  batch = {
    name: jax.ShapeDtypeStruct(
      (batch_size, *values.shape[1:]), jnp.asarray(values[:1]).dtype
    )
    for name, values in data.items()
  }
  weight = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
  index = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  return {'weight': weight, **batch, 'index': index}


def _check_tables(plan: Plan, abstract: State) -> None:
  for table in tables_of(abstract):
    name = table.stream
    check(
      name in plan.sources,
      f'the method keeps a table of the stream {name!r}, and streams has '
      f'{sorted(k for k in plan.sources if k)}',
    )
    source = plan.sources[name]
    rows = -(-source.n // source.shards)
    of = f' of streams[{name!r}]' if name else ''
    check(
      table.rows.shape[:2] == (source.shards, rows),
      f'the method keeps a table of {table.rows.shape[:2]} (shards, rows); '
      f'{source.n} examples{of} in batches of {source.batch_size} need '
      f'{(source.shards, rows)}: build the method with num_examples={source.n} '
      f'and shards={source.shards}, that is data_shards(n, batch_size) unless '
      'fit is given other shards',
    )


def _with_trace(plan: Plan, abstract: State) -> Plan:
  """The plan with its step traced, and the names of its metrics checked."""

  def step(state: State, batches: Any, key: Key) -> Any:
    return plan.method.step(state, seen_by_step(plan, batches, key), key)

  with _naming_what_is_missing(plan):
    jaxpr, (_, metrics) = jax.make_jaxpr(step, return_shape=True)(
      abstract, plan.batches, jax.random.key(0)
    )
  own = ('epoch', 'run')
  columns = [history_name(k, c) for k, v in plan.columns.items() for c in v]
  for taken, names, what in (
    (own, metrics, 'the method has a metric'),
    ((*own, *metrics), columns, 'there is a score'),
  ):
    clash = sorted(set(names) & set(taken))
    check(
      not clash,
      f'{what} called {clash}, which is also the name of something else in the '
      f'history ({", ".join(taken)}): rename it',
    )
  repeated = sorted({c for c in columns if columns.count(c) > 1})
  check(
    not repeated,
    f'held_out: two sets have scores called {repeated}: rename one of the sets',
  )
  return plan._replace(metrics=dict(metrics), traced=jaxpr)


@contextlib.contextmanager
def _naming_what_is_missing(plan: Plan) -> Iterator[None]:
  """Says which array a step looks for in vain."""
  try:
    yield
  except KeyError as error:
    name = error.args[0] if error.args else None
    if not isinstance(name, str) or name in _array_names(plan):
      raise
    own = set(plan.main.batch) - {'index', 'weight'}
    raise ValueError(
      f'a step reads {name!r}, which is not in data: it has {sorted(own)}, and '
      f'index and weight are added{_streams_of(plan)}'
    ) from error


def _array_names(plan: Plan) -> set[str]:
  """What the arrays of a step are called."""
  batches = plan.batches.items()
  return {suffixed(array, name) for name, batch in batches for array in batch}


def _streams_of(plan: Plan) -> str:
  names = sorted(name for name in plan.sources if name)
  return f'; streams are {", ".join(names)}' if names else ''


def _augmented(plan: Plan) -> Batch:
  """The shapes of the batch that the method sees."""
  seen: dict[str, Any] = {}
  for name, source in plan.sources.items():
    where = f'streams[{name!r}]: ' * bool(name)
    called = f'{where}augment must be a function (keys [b], batch) -> batch'
    hint = (
      'what takes images alone, as augment.pad_crop does, is wrapped: '
      'augment.views(augment.pad_crop), with augment of jnl.data'
    )
    one = functools.partial(augmented, source, name)
    with _naming_what_is_missing(plan):
      try:
        batch = jax.eval_shape(one, source.batch, jax.random.key(0))
      except KeyError:
        raise
      except Exception as error:
        raise TypeError(
          f'{called}, and failed on {sorted(source.batch)}; {hint}. It said: '
          f'{error}'
        ) from error
    check(isinstance(batch, Mapping), f'{called}; {hint}', TypeError)
    seen |= {suffixed(k, name): v for k, v in batch.items()}
  return seen


def _check_whole_numbers(
  plan: Plan,
  abstract: State,
  first: Mapping[str, Arrays],
  seen_by_method: Batch,
) -> None:
  """Raises if pixels or tokens are multiplied by weights as they are."""
  of_step: tuple[Callable, Any, tuple] = (
    plan.method.step,
    seen_by_method,
    (jax.random.key(0),),
  )
  seen = {'data': of_step}
  for name in plan.scores:
    of_set = first[f'held_out[{name!r}]']
    size = min(1024, len(next(iter(of_set.values()))))
    batch = _abstract_batch(of_set, size)
    del batch['index']
    predict = plan.method.predict
    one = functools.partial(collect_rows, predict, plan.scores[name])
    seen[f'held_out[{name!r}]'] = one, batch, ()
  for argument, (f, batch, rest) in seen.items():
    check_scaled(argument, f, abstract, batch, *rest)


def check_scaled(
  argument: str, f: Callable, state: PyTree, batch: Batch, *rest: Any
) -> None:
  """Raises if pixels or tokens are multiplied by weights as they are.

  Args:
    argument: what the error calls the arrays.
    f: `(state, batch, *rest) -> ...`, traced.
    state: of a method, or its shapes.
    batch: arrays by name, or their shapes; those called x are looked at.
    *rest: further arguments of `f`.

  Raises:
    TypeError: naming the array.
  """
  for name, values in batch.items():
    dtype = getattr(values, 'dtype', bool)
    if not (name.startswith('x') and jnp.issubdtype(dtype, jnp.integer)):
      continue
    tree: PyTree = (state, batch, *rest)
    jaxpr = jax.make_jaxpr(f)(*tree)
    raw = jax.tree.map(lambda _: False, tree)
    raw[1][name] = True
    check(
      not traced.multiplied_raw(jaxpr, jax.tree.leaves(raw)),
      f'{argument}: {name} holds whole numbers ({values.dtype}), and the '
      'network multiplies them by its weights as they are. Scale pixels '
      '(x / 255; data.from_arrays does), on the host or in augment; give '
      'tokens a network that looks them up, such as nets.build("ngram", c); '
      'or mean it: x.astype(np.float32)',
      TypeError,
    )
