"""Turns Flax modules into `Model`s, and fits a `Model` to its inputs."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from jnl.base import Array, Inputs, Key, Model, Outputs, Params, Stats, check
from jnl.nets._layers import counting, rows_of


def _call_linen(
  module: nn.Module, x: Inputs, keys: Key | None, train: bool
) -> Outputs:
  return module(x, keys, train)


def _call_nnx(
  module: nnx.Module, x: Inputs, keys: Key | None, train: bool
) -> Outputs:
  del keys
  if train:
    module.train()
  else:
    module.eval()
  return module(x)


def _check_outputs(outputs: Any) -> Outputs:
  check(
    isinstance(outputs, Outputs),
    f'the network must return jnl.Outputs(logits, features), got '
    f'{type(outputs).__name__}; wrap it with the argument `call`',
    TypeError,
  )
  return outputs


def from_linen(
  module: nn.Module,
  shape: Sequence[int],
  *,
  call: Callable[[nn.Module, Inputs, Key | None, bool], Outputs] = _call_linen,
) -> Model:
  """A Flax Linen module as a `Model`.

  Args:
    module: by default called as `module(x, keys, train) -> Outputs`, as the
      networks of jnl are.
    shape: of one input, without the batch.
    call: how to call a foreign module, for example
      `lambda m, x, keys, train: Outputs(m(x, train=train), features=x)`. Its
      own dropout finds a `'dropout'` key: right in distribution, but not the
      same masks on another number of devices. Its own `nn.BatchNorm` leaves out
      examples of weight 0; over devices of shard_map and pmap it averages their
      means, though they may hold more or fewer: `nets.BatchNorm` does not.

  Returns:
    The model; `stats` are all collections other than `'params'`.

  Raises:
    TypeError: when it is applied, if the network does not return `Outputs`.

  >>> from jnl.nets import MLP
  >>> model = from_linen(MLP(num_classes=3, hidden=(8,)), (4,))
  >>> params, stats = model.init(jax.random.key(0))
  >>> outputs, _ = model.apply(params, stats, jnp.zeros((2, 4)), None, False)
  >>> outputs.logits.shape, stats
  ((2, 3), {})
  """

  def init(key: Key) -> tuple[Params, Stats]:
    x = jnp.zeros((1, *shape))
    variables = dict(module.init(key, x, None, False, method=call))
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
      outputs = module.apply(variables, x, keys, False, rngs=rngs, method=call)
      return _check_outputs(outputs), stats
    with nn.intercept_methods(counting(mask)):
      outputs, updated = module.apply(
        variables,
        x,
        keys,
        True,
        rngs=rngs,
        method=call,
        mutable=list(stats),
      )
    return _check_outputs(outputs), {**stats, **updated}

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


def from_nnx(
  build: Callable[[nnx.Rngs], nnx.Module],
  *,
  call: Callable[[nnx.Module, Inputs, Key | None, bool], Outputs] = _call_nnx,
) -> Model:
  """A Flax NNX module as a `Model`.

  Args:
    build: `rngs -> module`, for example `lambda rngs: Net(10, rngs=rngs)`.
    call: how to call it. By default `module.train()` or `module.eval()`, then
      `module(x) -> Outputs`. Its `nnx.BatchNorm`s leave out examples of weight
      0, whoever calls them.

  Returns:
    The model; `params` are the `nnx.Param`s and `stats` all other variables but
    the random streams, which are reseeded from the first example's key: right
    in distribution, but not the same masks on another number of devices. Batch
    normalization of NNX is synchronized under jit; under shard_map and pmap it
    is if built with `axis_name='data'`, which then cannot run elsewhere.

  Raises:
    TypeError: when it is applied, if the network does not return `Outputs`.
  """
  graph, _, streams, _ = _split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

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
    rngs = jax.tree.map(
      lambda s: (
        key
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key)
        else jnp.zeros(s.shape, s.dtype)
      ),
      nnx.to_pure_dict(streams),
    )
    module = nnx.merge(graph, {}, params, rngs, stats)
    if mask is not None:
      _count(module, mask)
    outputs = _check_outputs(call(module, x, keys, train))
    _, _, _, new = _split(module)
    return outputs, nnx.to_pure_dict(new) if train else stats

  return Model(init, apply)


def feature_width(model: Model, x: Inputs) -> int:
  """The size of the features of a network, for heads on top of it.

  Args:
    model: the network.
    x: [b, ...], inputs such as it takes; nothing is computed on them.

  Returns:
    d of the features [..., d].

  >>> from jnl.nets import MLP
  >>> feature_width(from_linen(MLP(2, (16,)), (4,)), jnp.zeros((1, 4)))
  16
  """

  def features(key: Key) -> Array:
    return model.apply(*model.init(key), x, None, False)[0].features

  return jax.eval_shape(features, jax.random.key(0)).shape[-1]


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
