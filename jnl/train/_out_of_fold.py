"""Probabilities of every row from a model that was not trained on it.

What looks for wrong labels (`jnl.audit`) needs them: a model that has seen a
label believes it. The data are cut into folds; one run for each fold is trained
on all others, and predicts its own.
"""

from collections.abc import Mapping, Sequence
import functools
import types
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from jnl.base import Array, Key, Method, PyTree, State, check, check_key
from jnl.data._batches import PerRun, check_arrays, check_numbers
from jnl.train._evaluate import padded_batches, put_batch
from jnl.train._fit import Checkpoint, Fit, Log, fit_many
from jnl.train._parallel import data_mesh
from jnl.train._plan import Arrays, Augment, Stream
from jnl.train._program import Loop
from jnl.train._score import Predict, Score


class OutOfFold(NamedTuple):
  """What `out_of_fold` gives.

  Row i is row i of the data, and so of what else is known of it, such as
  `Examples.id`.

  Attributes:
    pred_probs: [n, c] float32, the softmax of the logits of the one run that
      was not trained on the row.
    fold: [n] int32, the number of that run. Run k was trained on the rows
      `np.flatnonzero(fold != k)`, which are numbered so in its memory.
    fit: of all runs: states and history with a leading axis of folds.
  """

  pred_probs: np.ndarray
  fold: np.ndarray
  fit: Fit


def training_size(n: int, folds: int) -> int:
  r"""The number of rows that each run of `out_of_fold` is trained on.

  .. math:: m = n - \lfloor n / K \rfloor

  A method with a memory of each example, such as `methods.elr`, is made for so
  many.

  Args:
    n: rows.
    folds: K, in [2, n].

  Returns:
    m.

  Raises:
    ValueError: if there are fewer than 2 folds, or more than rows.
    TypeError: if `folds` is no integer.

  >>> training_size(40, 5), training_size(41, 5)
  (32, 33)
  """
  check(
    isinstance(folds, int | np.integer) and not isinstance(folds, bool),
    f'folds must be an integer, got {folds!r}',
    TypeError,
  )
  check(
    2 <= folds <= n,
    f'folds must lie between 2 and the number of rows, {n}, got {folds}',
  )
  return int(n - n // folds)


def out_of_fold(
  method: Method,
  data: Arrays,
  key: Key,
  *,
  folds: int,
  epochs: int,
  batch_size: int,
  streams: Mapping[str, Stream] = types.MappingProxyType({}),
  held_out: Mapping[str, Arrays] | None = None,
  scores: Mapping[str, Score] = types.MappingProxyType({}),
  augment: Augment | None = None,
  vectorize: bool | None = None,
  devices: Sequence[jax.Device] | None = None,
  shards: int | None = None,
  loop: Loop | None = None,
  checkpoint: Checkpoint | None = None,
  log: Log | None = None,
  label: str = 'fit',
) -> OutOfFold:
  r"""Probabilities of every row by a model that was trained without it.

  .. math::
    p_i = \mathrm{softmax}(f_{\theta_k}(x_i)), \qquad
    \theta_k = \mathrm{fit}(\{(x_j, y_j) : k(j) \ne k\}), \quad k = k(i)

  Folds are stratified: each class, and all rows, are dealt out at random so
  that their numbers in two folds differ by at most one. All training sets have
  the size m = `training_size(n, folds)`; where that is one more than is left, a
  row comes twice, the second time with weight 0, so that it counts for nothing.

  Rows that say no class, of `weight` 0 or where `labeled` is False, may have
  any label. They are dealt out as a class of their own, and predicted as all
  others; a row of NaN gets NaN.

  Args:
    method: what to train, made for m examples: `elr(..., num_examples=m,
      shards=data_shards(m, batch_size))`. Further calls with the same object,
      such as for other seeds and labels, compile nothing.
    data: arrays [n, ...], as for `fit`, with `x` and `labels` [n] int. Each row
      is copied for the K - 1 runs that are trained on it.
    key: of `keys = jax.random.split(key, folds + 1)` the first one deals the
      folds out, and run k is trained with `keys[1 + k]`.
    folds: K, in [2, n]: so many runs.
    epochs: as for `fit`.
    batch_size: as for `fit`; at most m.
    streams: as for `fit_many`; all runs see them.
    held_out: as for `fit_many`, beside the folds: a test set, for one.
    scores: as for `fit`, of `held_out`.
    augment: as for `fit`, in training alone.
    vectorize: as for `fit_many`. One run after the other, a device holds the
      rows of one.
    devices: as for `fit_many`; predictions are split over them.
    shards: as for `fit`.
    loop: as for `fit`.
    checkpoint: as for `fit_many`.
    log: as for `fit_many`.
    label: as for `fit`.

  Returns:
    Probabilities, folds and what was trained, in the order of the rows.

  Raises:
    ValueError, TypeError: naming the argument, before anything is compiled. A
      class with fewer rows than folds is a warning: some folds lack it, and if
      it has one row, that is predicted by a model that never saw the class.
    OSError: if a checkpoint cannot be written.

  >>> import optax
  >>> from jnl import losses
  >>> from jnl.steps import linear, supervised
  >>> labels = np.arange(60) % 3
  >>> x = np.eye(3, dtype=np.float32)[labels]
  >>> labels[7] = 2  # is wrong: it was 1
  >>> method = supervised(losses.ce, linear(3, 3), optax.sgd(0.5))
  >>> found = out_of_fold(method, {'x': x, 'labels': labels}, jax.random.key(0),
  ...   folds=4, epochs=20, batch_size=15, devices=jax.devices()[:1])
  >>> np.flatnonzero(found.pred_probs.argmax(-1) != labels)
  array([7])
  >>> np.bincount(found.fold)
  array([15, 15, 15, 15])
  """
  strata = _strata(data)
  size = training_size(len(strata), folds)
  check_key(key)
  _warn_of_rare(strata, folds)
  keys = jax.random.split(key, folds + 1)
  fold = _deal(keys[0], strata, folds)
  fitted = fit_many(
    method,
    _training_sets(data, fold, size),
    keys[1:],
    epochs=epochs,
    batch_size=batch_size,
    streams=streams,
    held_out=held_out,
    scores=scores,
    augment=augment,
    vectorize=vectorize,
    devices=devices,
    shards=shards,
    loop=loop,
    checkpoint=checkpoint,
    log=log,
    label=label,
  )
  probs = _predict(method.predict, fitted.state, data['x'], fold, devices)
  return OutOfFold(probs, fold, fitted)


# --- folds -------------------------------------------------------------------


def _strata(data: Arrays) -> np.ndarray:
  """The class [n] of each row, -1 where it says none; raises for bad data."""
  check_numbers(data)
  for name in ('x', 'labels'):
    check(name in data, f'data lacks {name!r}; it has {sorted(data)}')
  labels = np.asarray(data['labels'])
  check(
    labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
    f'data: labels must be [n] integers, from which folds are stratified, got '
    f'{labels.dtype} of shape {labels.shape}',
    TypeError,
  )
  n = check_arrays(data)
  known = np.ones(n, bool)
  for name in ('weight', 'labeled'):
    if name in data:
      own = np.asarray(data[name])
      check(
        own.shape == (n,), f'data: {name} must be [{n}], got shape {own.shape}'
      )
      known &= own != 0
  check(
    known.sum() >= 2,
    f'data: at least two rows must count (have a weight above 0, and a label), '
    f'and {known.sum()} of {n} do',
  )
  return np.where(known, labels.astype(np.int64), -1)


def _warn_of_rare(strata: np.ndarray, folds: int) -> None:
  """Warns the caller of `out_of_fold` of classes that not every fold has."""
  classes, counts = np.unique(strata[strata >= 0], return_counts=True)
  rare = counts < folds
  if not rare.any():
    return
  least = counts.argmin()
  said = (
    f'{rare.sum()} of {len(classes)} classes have fewer rows than there are '
    f'folds, {folds}: some folds lack them. The fewest, {counts[least]}, are '
    f'of class {classes[least]}'
  )
  if counts[least] == 1:
    said += ': that row is predicted by a model that never saw its class'
  warnings.warn(said, stacklevel=3)


def _deal(key: Key, strata: np.ndarray, folds: int) -> np.ndarray:
  """The fold [n] of each row: class after class, shuffled, dealt in turn."""
  shuffled = np.asarray(jax.random.permutation(key, len(strata)))
  order = shuffled[np.argsort(strata[shuffled], kind='stable')]
  fold = np.empty(len(strata), np.int32)
  fold[order] = np.arange(len(strata)) % folds
  return fold


def _rows(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The rows [folds, m] that are chosen [folds, n], and which of them are new.

  The last one is repeated where a fold has fewer than another.
  """
  parts = [np.flatnonzero(own) for own in chosen]
  size = max(map(len, parts))
  rows = [np.pad(own, (0, size - len(own)), mode='edge') for own in parts]
  new = [np.arange(size) < len(own) for own in parts]
  return np.stack(rows), np.stack(new)


def _training_sets(data: Arrays, fold: np.ndarray, size: int) -> Arrays:
  """The arrays of all runs: without their fold, of one size."""
  number = np.arange(fold.max() + 1)[:, None]
  rows, new = _rows(fold != number)
  assert rows.shape[1] == size, 'which methods are made for'
  arrays = {name: np.asarray(values) for name, values in data.items()}
  weight = np.asarray(arrays.get('weight', np.ones(len(fold))), np.float32)
  arrays['weight'] = weight
  sets = {name: values[rows] for name, values in arrays.items()}
  sets['weight'] *= new
  return {name: PerRun(values) for name, values in sets.items()}


# --- predictions -------------------------------------------------------------


def _predict(
  predict: Predict,
  states: State,
  x: Any,
  fold: np.ndarray,
  devices: Sequence[jax.Device] | None,
) -> np.ndarray:
  """Probabilities [n, c]: of each row by the state of its fold.

  One state after the other, and its rows split over the devices: at once,
  convolutions would be slow on a CPU.
  """
  mesh = data_mesh(devices)
  x, found = np.asarray(x), []
  rows, _ = _rows(fold == np.arange(fold.max() + 1)[:, None])
  for k, own in enumerate(rows):
    state = jax.device_put(_of_run(states, k), NamedSharding(mesh, P()))
    batches = padded_batches({'x': x[own]}, multiple=mesh.size)
    split = [put_batch(batch, mesh)['x'] for batch in batches]
    parts = [_probabilities(predict, state, part) for part in split]
    found.append(np.concatenate(jax.device_get(parts))[: len(own)])
  probs = np.empty((len(fold), found[0].shape[-1]), np.float32)
  probs[rows.ravel()] = np.concatenate(found)
  return probs


@jax.jit
def _of_run(states: PyTree, run: Array) -> PyTree:
  return jax.tree.map(lambda leaf: leaf[run], states)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(predict: Predict, state: State, x: Array) -> Array:
  return jax.nn.softmax(predict(state, x).logits.astype(jnp.float32))
