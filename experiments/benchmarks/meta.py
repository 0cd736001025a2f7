"""Meta: steps of meta rescaling, against cross-entropy on the same batch.

With meta batches of the same size and of a quarter: L2RW at most 2.7 and 2.0
times, Meta-Weight-Net 3.3 and 2.6. STORM with three passes against the passes
that it counts, each a call of its own (the pass along a tangent with the
forward one that it needs): at most 1.25 times.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.clock import Timed, in_turns
from benchmarks.em import NETS, SMOKE, Options, check_options
from benchmarks.steps import images, stepping
from jnl import losses, nets
from jnl.base import Array, Batch, Model, data_shards
from jnl.methods import l2rw, mwn, storm
from jnl.steps import supervised

__all__ = ['SMOKE', 'UNIT', 'Options', 'check_options', 'measure']

UNIT = 'times a step of cross-entropy; STORM: its own passes'


def measure(options: Options) -> Iterator[dict]:
  """Steps with a meta batch against those without; first against itself."""
  n, size, dtype = options.examples, options.batch_size, options.dtype
  shards, rounds = data_shards(n, size), 5 * options.rounds
  shape, sgd = [size, 28, 28, 1], optax.sgd(0.05)
  for net in options.nets:
    about = {'shape': shape, 'kind': net}
    module = NETS[net](10, dtype=getattr(jnp, dtype), dropout=0.1)
    model, tx = nets.from_linen(module, shape[1:]), optax.sgd(0.05, 0.9)
    known = {
      'l2rw': l2rw(model, tx, num_examples=n, shards=shards),
      'mwn': mwn(model, tx, sgd, num_examples=n, shards=shards),
    }
    methods = {k: v for k, v in known.items() if k in options.weighers}
    plain = stepping(options, supervised(losses.ce, model, tx), n)
    items = [Timed(f'ce {net}', plain, about=about)] + [
      Timed(
        f'{name} {m} {net}',
        stepping(options, method, n, with_meta(size, m)),
        about=about,
      )
      for name, method in methods.items()
      for m in (size, size // 4)
    ]
    yield from in_turns(plain, items, rounds)
    if 'storm' not in options.weighers:
      continue
    data = with_meta(size, size)
    of_storm = storm(
      model, sgd, num_examples=n, num_classes=10, batch_size=size, shards=shards
    )
    call = stepping(options, of_storm, n, data)
    item = Timed(f'storm {net}', call, about=about)
    yield from in_turns(counted_passes(model, data), [item], rounds)


def with_meta(size: int, size_meta: int) -> dict[str, np.ndarray]:
  """A batch of `images` and the first of them once more, as meta stream."""
  data = images(size)
  return {**data, **{f'{k}_meta': a[:size_meta] for k, a in data.items()}}


def counted_passes(model: Model, data: Batch) -> Callable[[], Any]:
  """What STORM's docstring counts, for three passes, call by call."""
  params, stats = model.init(jax.random.key(0))
  x, y = jax.device_put((data['x'], data['labels']))
  keys = jax.random.split(jax.random.key(1), len(x))

  def per_example(params: Any) -> Array:
    outputs, _ = model.apply(params, stats, x, keys, True)
    return losses.ce(outputs.logits, y)

  forward = jax.jit(per_example)
  gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(per_example(p))))
  tangent = jax.jit(lambda p: jax.jvp(per_example, (p,), (p,)))
  passes = [*2 * [gradient, forward, forward], tangent]
  return lambda: [run(params) for run in passes]
