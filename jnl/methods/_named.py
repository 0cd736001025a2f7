"""Methods and losses by their names: for scripts, configurations, sweeps."""

from collections.abc import Callable
import functools
import inspect
from types import ModuleType
from typing import Any

import jax
import optax

from jnl import losses, methods
from jnl.base import (
  Inputs,
  Method,
  Model,
  check_name,
  data_shards,
)
from jnl.steps import feature_width, supervised

TWO_VIEWS = ('gjs', 'ill_noisy', 'sop_plus')
"""Methods of wrong labels that compare `x` with a second view, `x_strong`."""


def build(
  name: str,
  model: Model,
  tx: optax.GradientTransformation,
  *,
  x: Inputs,
  num_classes: int,
  batch_size: int,
  **arguments: Any,
) -> Method:
  """The method of a name, for a training set of this size.

  What a method must know of the training set (`num_examples`, `num_classes`,
  `num_features`, `steps_per_epoch`, `shards`) is read off it.

  Args:
    name: of `jnl.methods` ('elr'), or of `jnl.losses` ('gce'), with which
      `supervised` trains. A name that both have is a method.
    model: the network.
    tx: the optimizer.
    x: [n, ...], the inputs of the training set; only their shapes are looked
      at.
    num_classes: c.
    batch_size: examples in a step.
    **arguments: of the method or the loss: `lam=1.0`.

  Returns:
    The method, as `fit` takes it.

  Raises:
    ValueError: if the name is not known, or has no such argument.

  >>> from jnl.steps import linear
  >>> import numpy as np
  >>> method = build(
  ...   'elr', linear(3, 2), optax.sgd(0.1), x=np.zeros((12, 3)), num_classes=2,
  ...   batch_size=4, lam=1.0)
  >>> method.init(jax.random.key(0)).extra.rows.shape
  (4, 3, 2)
  """
  check_name('method', name, known_names())
  if name not in _of(methods):
    loss = _of(losses)[name]
    _check_arguments(name, loss, arguments)
    return supervised(functools.partial(loss, **arguments), model, tx)
  method = _of(methods)[name]
  _check_arguments(name, method, arguments)
  first = jax.tree.leaves(x)[0]
  sizes: dict[str, Callable[[], int]] = {
    'num_examples': lambda: len(first),
    'num_classes': lambda: num_classes,
    'num_features': lambda: feature_width(
      model, jax.tree.map(lambda a: a[:1], x)
    ),
    'steps_per_epoch': lambda: max(1, len(first) // batch_size),
    'shards': lambda: data_shards(len(first), batch_size),
  }
  taken = inspect.signature(method).parameters
  own = {
    k: size() for k, size in sizes.items() if k in taken and k not in arguments
  }
  return method(model, tx, **own, **arguments)


def known_names() -> list[str]:
  """The names that `build` knows: of methods, and of losses.

  Returns:
    The names, sorted.

  >>> {'elr', 'gce'} <= set(known_names())
  True
  """
  return sorted({*_of(methods), *_of(losses)})


def takes(name: str, argument: str) -> bool:
  """Whether a method or a loss has an argument of that name.

  Args:
    name: one of `known_names`.
    argument: such as 'rate'.

  Returns:
    A bool.

  >>> takes('elr', 'lam'), takes('gce', 'lam')
  (True, False)
  """
  check_name('method', name, known_names())
  room = methods if name in _of(methods) else losses
  return argument in inspect.signature(_of(room)[name]).parameters


def _check_arguments(name: str, f: Callable, arguments: dict[str, Any]) -> None:
  options = list(inspect.signature(f).parameters)[2:]
  for argument in arguments:
    check_name(f'argument of {name}', argument, options)


@functools.cache
def _of(room: ModuleType) -> dict[str, Callable]:
  """The losses of labels, or what trains a model, by name."""
  begins = ['logits', 'labels'] if room is losses else ['model', 'tx']
  named = {name: getattr(room, name) for name in dir(room)}
  return {
    name: f
    for name, f in named.items()
    if inspect.isfunction(f)
    and list(inspect.signature(f).parameters)[:2] == begins
  }
