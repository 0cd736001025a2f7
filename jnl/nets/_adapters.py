"""Turns Flax modules into `Model`s, and fits a `Model` to its inputs."""

from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from jnl.base import Array, Inputs, Key, Model, Outputs, Params, Stats, check
from jnl.nets._layers import counting, rows_of

RNGS_TAG = 1 << 30
"""Tag of the `rngs` of a call, apart from the streams of the module itself."""
Call = Callable[[Any, Inputs, Key | None, bool], Any]
"""How a network is called: `(module, x, keys, train) -> Outputs or logits`."""
GIVEN: Mapping[str, Callable[[Key | None, bool], Any]] = {
  'keys': lambda keys, train: keys,
  'rngs': lambda keys, train: _own_rngs(keys),
  'train': lambda keys, train: train,
  'training': lambda keys, train: train,
  'deterministic': lambda keys, train: not train,
  'use_running_average': lambda keys, train: not train,
}
"""What a network is told if its `__call__` has a parameter of that name."""


def _own_rngs(keys: Key | None) -> nnx.Rngs | None:
  if keys is None:
    return None
  return nnx.Rngs(jax.random.fold_in(keys[0], RNGS_TAG))


def _call_of(module: nn.Module | nnx.Module) -> Call:
  """How to call a network, seen from the signature of its `__call__`."""
  kind = type(module).__name__
  check(
    callable(module),
    f'{kind} has no __call__; give from_linen or from_nnx a `call`',
    TypeError,
  )
  # Flax does not declare __call__, and it was just looked for.
  signature = inspect.signature(module.__call__)  # type: ignore[operator]
  parameters = list(signature.parameters.values())
  check(
    any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters[:1]),
    f'{kind}.__call__{signature} takes no input x; give a `call`',
    TypeError,
  )
  for p in parameters[1:]:
    variadic = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    check(
      variadic or p.name in GIVEN or p.default is not p.empty,
      f'{kind}.__call__{signature} needs {p.name!r}, which jnl does not know '
      f'(it gives {", ".join(GIVEN)}); say how to call it: '
      f'call=lambda m, x, keys, train: m(x, {p.name}=...)',
      TypeError,
    )
  told = [p.name for p in parameters[1:] if p.name in GIVEN]

  def call(module: Any, x: Inputs, keys: Key | None, train: bool) -> Any:
    return module(x, **{name: GIVEN[name](keys, train) for name in told})

  return call


def _as_outputs(found: Any) -> Outputs:
  """What a network returned: `Outputs`, or logits, which are the features."""
  if isinstance(found, Outputs):
    return found
  kind = type(found).__name__
  if isinstance(found, tuple):
    kind += f' of {len(found)}'
  check(
    isinstance(found, jax.Array),
    'the network must return logits [b, c], or jnl.Outputs(logits, features), '
    f'got a {kind}; or say what to make of it, such as '
    'call=lambda m, x, keys, train: jnl.Outputs(*m(x))',
    TypeError,
  )
  return Outputs(found, found)


def _check_linen(module: Any, shape: Any) -> None:
  kind = module if isinstance(module, type) else type(module)
  name = kind.__name__
  check(
    not issubclass(kind, nnx.Module),
    f'{name} is an NNX module: nets.from_nnx(lambda rngs: {name}(..., '
    'rngs=rngs))',
    TypeError,
  )
  check(
    kind is not module,
    f'module must be a network, such as {name}(), got the class {name}',
    TypeError,
  )
  check(
    isinstance(module, nn.Module),
    f'module must be a Flax Linen module, got {name}',
    TypeError,
  )
  check(
    isinstance(shape, Sequence) and all(map(_is_size, shape)),
    'shape must be that of one input, without the batch, such as (28, 28, 1), '
    f'got {shape!r}',
    TypeError,
  )


def _is_size(size: Any) -> bool:
  return isinstance(size, (int, np.integer))


def _check_nnx(build: Any) -> None:
  kind = build if isinstance(build, type) else type(build)
  name = kind.__name__
  check(
    not issubclass(kind, nn.Module),
    f'{name} is a Linen module: nets.from_linen({name}(...), shape), with the '
    'shape of one input',
    TypeError,
  )
  check(
    not isinstance(build, nnx.Module),
    f'build must make the network, for each key another: '
    f'nets.from_nnx(lambda rngs: {name}(..., rngs=rngs)), got a {name}',
    TypeError,
  )
  check(
    callable(build),
    f'build must be a function of nnx.Rngs, got {name}',
    TypeError,
  )
  if kind is build and issubclass(kind, nnx.Module):
    signature = inspect.signature(kind.__init__)
    try:  # Net(*, rngs) and Net(width, rngs) do not take this
      signature.bind(None, None)
    except TypeError:
      raise TypeError(
        f'{name}.__init__{signature} cannot be called with the rngs alone: '
        f'nets.from_nnx(lambda rngs: {name}(..., rngs=rngs))'
      ) from None


def from_linen(
  module: nn.Module,
  shape: Sequence[int],
  *,
  call: Call | None = None,
) -> Model:
  """A Flax Linen module as a `Model`.

  Its `__call__` takes x [b, ...] and, by name, what it needs of: `train` or
  `training`, `deterministic` or `use_running_average` (not `train`), and `keys`
  [b], one for each example. It returns logits [b, c], which are the features
  then, or `Outputs(logits, features)`.

  Flax's own dropout finds a `'dropout'` key: right in distribution, but not the
  same masks on another number of devices; `nets.Dropout` has them. Flax's own
  `nn.BatchNorm` leaves out examples of weight 0; over devices of shard_map and
  pmap it averages their means, though they may hold more or fewer:
  `nets.BatchNorm` does not.

  Args:
    module: the network, such as `CNN()`.
    shape: of one input, without the batch.
    call: how to call a module that takes or returns anything else, for example
      `lambda m, x, keys, train: Outputs(*m(x, is_training=train))`. `keys` are
      None where nothing is random.

  Returns:
    The model; `stats` are all collections other than `'params'`.

  Raises:
    TypeError: if `module` is no Linen module, or takes an argument that is not
      known; when it is initialized or applied, if it returns anything else.

  >>> from jnl.nets import MLP
  >>> model = from_linen(MLP(num_classes=3, hidden=(8,)), (4,))
  >>> params, stats = model.init(jax.random.key(0))
  >>> outputs, _ = model.apply(params, stats, jnp.zeros((2, 4)), None, False)
  >>> outputs.logits.shape, stats
  ((2, 3), {})
  """
  _check_linen(module, shape)
  how = _call_of(module) if call is None else call

  def called(
    module: nn.Module, x: Inputs, keys: Key | None, train: bool
  ) -> Outputs:
    return _as_outputs(how(module, x, keys, train))

  def init(key: Key) -> tuple[Params, Stats]:
    x = jnp.zeros((1, *shape))
    variables = dict(module.init(key, x, None, False, method=called))
    return variables.pop('params', {}), variables

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    mask: Array | None = None,
  ) -> tuple[Outputs, Stats]:
    variables = {'params': params, **stats}
    rngs = {} if keys is None else {'dropout': keys[0]}
    if not train:
      args = (variables, x, keys, False)
      outputs: Any = module.apply(*args, rngs=rngs, method=called)
      return outputs, stats
    with nn.intercept_methods(counting(mask)):
      outputs, updated = module.apply(
        variables,
        x,
        keys,
        True,
        rngs=rngs,
        method=called,
        mutable=list(stats),
      )
    return outputs, {**stats, **updated}

  return Model(init, apply)


def _count(module: nnx.Module, mask: Array) -> None:
  """Has the batch normalizations of a module count the rows of a mask [b]."""

  class Counting(nnx.BatchNorm):
    """One that is told by nobody what to count, and knows."""

    def __call__(
      self, x: Array, use_running_average: bool | None = None, **given: Any
    ) -> Array:
      given = {'mask': rows_of(mask, x), **given}
      return super().__call__(x, use_running_average, **given)

  for _, inner in nnx.iter_graph(module):
    if type(inner) is nnx.BatchNorm:
      object.__setattr__(inner, '__class__', Counting)


def _split(module: nnx.Module) -> Any:
  """(graph, parameters, random streams, other variables) of a module."""
  return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _reseeded(streams: Any, key: Key) -> Any:
  """Random streams that start anew, each from a key of its own."""
  leaves, tree = jax.tree.flatten(nnx.to_pure_dict(streams))
  fresh = [
    jax.random.fold_in(key, i)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else jnp.zeros(leaf.shape, leaf.dtype)
    for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, fresh)


def from_nnx(
  build: Callable[[nnx.Rngs], nnx.Module],
  *,
  call: Call | None = None,
) -> Model:
  """A Flax NNX module as a `Model`.

  Its `__call__` takes x [b, ...] and, by name, what it needs of: `rngs` (None
  in evaluation), and what `from_linen` names. It returns logits [b, c], which
  are the features then, or `Outputs(logits, features)`. Before each call it is
  set to `module.train()` or `module.eval()`. Its `nnx.BatchNorm`s leave out
  examples of weight 0.

  Args:
    build: `rngs -> module`, for example `lambda rngs: Net(10, rngs=rngs)`.
    call: how to call a module that takes or returns anything else, for example
      `lambda m, x, keys, train: Outputs(*m(x))`; the mode is set by then.

  Returns:
    The model; `params` are the `nnx.Param`s and `stats` all other variables but
    the random streams, which are reseeded from the first example's key: right
    in distribution, but not the same masks on another number of devices. Batch
    normalization of NNX is synchronized under jit; under shard_map and pmap it
    is if built with `axis_name='data'`, which then cannot run elsewhere.

  Raises:
    TypeError: if `build` makes no NNX module, or one that takes an argument
      that is not known; when it is applied, if it returns anything else.

  >>> class Net(nnx.Module):
  ...   def __init__(self, classes, rngs):
  ...     self.linear = nnx.Linear(4, 8, rngs=rngs)
  ...     self.dropout = nnx.Dropout(0.5, rngs=rngs)
  ...     self.out = nnx.Linear(8, classes, rngs=rngs)
  ...
  ...   def __call__(self, x):
  ...     return self.out(self.dropout(nnx.relu(self.linear(x))))
  >>> model = from_nnx(lambda rngs: Net(3, rngs=rngs))
  >>> params, stats = model.init(jax.random.key(0))
  >>> outputs, _ = model.apply(params, stats, jnp.zeros((2, 4)), None, False)
  >>> outputs.logits.shape
  (2, 3)
  """
  _check_nnx(build)

  def built(rngs: nnx.Rngs) -> nnx.Module:
    module = build(rngs)
    check(
      isinstance(module, nnx.Module),
      f'build must make an NNX module, got {type(module).__name__}',
      TypeError,
    )
    return module

  abstract = nnx.eval_shape(lambda: built(nnx.Rngs(0)))
  how = _call_of(abstract) if call is None else call
  graph, _, streams, _ = _split(abstract)

  def init(key: Key) -> tuple[Params, Stats]:
    _, params, _, stats = _split(build(nnx.Rngs(key)))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    mask: Array | None = None,
  ) -> tuple[Outputs, Stats]:
    key = jax.random.key(0) if keys is None else keys[0]
    module = nnx.merge(graph, {}, params, _reseeded(streams, key), stats)
    if train:
      module.train()
    else:
      module.eval()
    if mask is not None:
      _count(module, mask)
    outputs = _as_outputs(how(module, x, keys, train))
    _, _, _, new = _split(module)
    return outputs, nnx.to_pure_dict(new) if train else stats

  return Model(init, apply)


def standardize(
  model: Model,
  mean: float | Sequence[float] | Array,
  std: float | Sequence[float] | Array,
) -> Model:
  """A model whose inputs are standardized first: x -> (x - mean) / std.

  So data stay raw, and augmentation works on pixels.

  Args:
    model: the network.
    mean: [] or [ch], in the units of the inputs [b, ..., ch].
    std: [] or [ch], > 0.

  Returns:
    The model, of the same parameters and statistics.

  Raises:
    ValueError: if a `std` is not positive, or a shape does not fit the inputs.

  >>> from jnl.nets import MLP
  >>> model = standardize(from_linen(MLP(2), (8, 8, 3)), [0.5, 0.4, 0.4], 0.2)
  >>> params, stats = model.init(jax.random.key(0))
  >>> x = jnp.ones((5, 8, 8, 3))
  >>> model.apply(params, stats, x, None, False)[0].logits.shape
  (5, 2)
  """
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  check(jnp.all(std > 0), f'std must be positive, got {std}')

  def apply(
    params: Params,
    stats: Stats,
    x: Inputs,
    keys: Key | None,
    train: bool,
    *mask: Array,
  ) -> tuple[Outputs, Stats]:
    for name, a in (('mean', mean), ('std', std)):
      check(
        a.shape in ((), x.shape[-1:]),
        f'{name} must be [] or [ch] with ch = {x.shape[-1]}, got {a.shape}',
      )
    return model.apply(params, stats, (x - mean) / std, keys, train, *mask)

  return Model(model.init, apply)
