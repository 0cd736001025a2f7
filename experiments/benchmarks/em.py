"""EM: training steps of imprecise label learning, against cross-entropy.

Cross-entropy has as many passes over the same two views. An MLP and a strided
CNN, batch 128, 10 classes. At most 1.15 times.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.clock import Timed, in_turns
from benchmarks.steps import Rows, Training, check_training, images, stepping
from jnl import losses, nets
from jnl.base import Batch, Key, Method, State, check_name
from jnl.methods import ill_mixed, ill_noisy, ill_partial, ill_semi
from jnl.steps import supervised
from jnl.train import option

UNIT = 'times a step of cross-entropy on both views'
SMOKE = {
  'nets': ('mlp',), 'kinds': ('noisy',), 'weighers': ('l2rw',),
  'examples': 512, 'batch_size': 64,
}  # fmt: skip
KINDS = ('noisy', 'partial', 'semi', 'mixed')
WEIGHERS = ('l2rw', 'mwn', 'storm')
NETS: dict[str, Callable[..., Any]] = {
  'mlp': functools.partial(nets.MLP, hidden=(256,)),
  'strided_cnn': nets.StridedCNN,
}


@dataclasses.dataclass(frozen=True)
class Options(Training, Rows):
  """What this section reads, and `meta` too."""

  nets: tuple[str, ...] = option(
    ('mlp', 'strided_cnn'), 'em, meta: of which nets'
  )
  kinds: tuple[str, ...] = option(KINDS, 'em: of which labels')
  weighers: tuple[str, ...] = option(WEIGHERS, 'meta: which methods')


def check_options(options: Options) -> None:
  """Raises for an option that cannot be, before any work."""
  for name in options.nets:
    check_name('net', name, NETS)
  for name in options.kinds:
    check_name('kind', name, KINDS)
  for name in options.weighers:
    check_name('weigher', name, WEIGHERS)
  check_training(options, options.examples)


def measure(options: Options) -> Iterator[dict]:
  """Steps on two views against cross-entropy on them; first against itself."""
  n, dtype = options.examples, getattr(jnp, options.dtype)
  tx, noise_tx = optax.sgd(0.05, momentum=0.9), optax.sgd(0.05)
  shape = [options.batch_size, 28, 28, 1]
  for net in options.nets:
    model = nets.from_linen(NETS[net](10, dtype=dtype), (28, 28, 1))
    kinds = {
      'noisy': ill_noisy(model, tx, noise_tx, num_classes=10),
      'partial': ill_partial(model, tx),
      'semi': ill_semi(model, tx, num_classes=10),
      'mixed': ill_mixed(model, tx, noise_tx, num_classes=10),
    }
    methods = {'ce': on_both_views(supervised(losses.ce, model, tx))}
    methods |= {f'ill_{kind}': kinds[kind] for kind in options.kinds}
    data = views(options.batch_size)
    items = [
      Timed(
        f'{name} {net}',
        stepping(options, method, n, data),
        about={'shape': shape, 'kind': net},
      )
      for name, method in methods.items()
    ]
    yield from in_turns(items[0].call, items, 5 * options.rounds)


def views(n: int) -> dict[str, np.ndarray]:
  """`images` with a second view, and labels of all kinds."""
  rng = np.random.default_rng(1)
  data = images(n)
  own = data['labels'][:, None] == np.arange(10)
  return {
    **data,
    'x_strong': rng.standard_normal(data['x'].shape, np.float32),
    'candidates': own | (rng.random([n, 10]) < 0.3),
    'labeled': rng.random(n) < 0.5,
    'noisy': rng.random(n) < 0.5,
  }


def on_both_views(method: Method) -> Method:
  """The method on the views of each example side by side, in one pass."""

  def step(state: State, batch: Batch, key: Key) -> Any:
    both = {k: jnp.repeat(batch[k], 2) for k in ('labels', 'weight', 'index')}
    x = jnp.stack([batch['x'], batch['x_strong']], axis=1)
    return method.step(state, {**both, 'x': x.reshape(-1, *x.shape[2:])}, key)

  return method._replace(step=step)
