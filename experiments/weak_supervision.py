"""Learning from what is known of bags: counts, any positive at all, relations.

Exact EM (Chen et al., GLWS, ICML 2024, arXiv 2402.01922; the recursions here
are exact where the official ones are not) against what is usually done instead:

  em             the exact posterior of every instance, as its label
  mean_matching  the mean prediction of a bag matched to its counts
  bag_share      one soft label for all of a bag: what an uninformed network
                 would infer
  supervised     the label of every instance, as the ceiling

  python experiments/weak_supervision.py             # digits, counts, 4 seeds
  python experiments/weak_supervision.py --evidence multiple_instance
  python experiments/weak_supervision.py --evidence comparison --bag-size 2
  python experiments/weak_supervision.py --evidence similarity --bag-size 2
  python experiments/weak_supervision.py --dataset mnist --data-dir DIR \\
    --evidence multiple_instance --net strided_cnn --bag-size 10 --batch-size 16

The task is binary: is the label in `--positive`? Every training image is in one
bag. The score is balanced accuracy on single test images, with `similarity` up
to the names of the two classes, which pairs cannot tell. An epoch is chosen by
how likely the evidence about held-out bags is, never by labels.

Out come a table, `results.jsonl` and `accuracy.png`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import automata, losses, noise
from jnl.automata import Inference
from jnl.base import Array, Batch, Method, check, check_name
from jnl.data import Dataset, Examples
from jnl.methods import dllp, weak_em
from jnl.steps import supervised_bags
from jnl.train import (
  Comparison,
  Fit,
  compare,
  fit_many,
  option,
  options,
  plot,
  record,
  report,
  run,
  scores,
  script,
  train_each,
)

Arrays = dict[str, np.ndarray]
Infer = Callable[[Array, Batch], Inference]

METHODS = {
  'counts': ('em', 'mean_matching', 'bag_share', 'supervised'),
  'multiple_instance': ('em', 'bag_share', 'supervised'),
  'comparison': ('em', 'bag_share', 'supervised'),
  'similarity': ('em', 'supervised'),
}
"""What can learn from which evidence."""
INFER: dict[str, Infer] = {
  'counts': lambda z, batch: automata.count(z, batch['counts'], batch['mask']),
  'multiple_instance': lambda z, batch: automata.multiple_instance(
    z, batch['any_positive'], batch['mask']
  ),
  'comparison': lambda z, batch: automata.pair(
    z, automata.comparison(ties=0.5)
  ),
  'similarity': lambda z, batch: automata.pair(
    z, automata.similarity(batch['similar'])
  ),
}


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  evidence: str = option('counts', f'what is known: {", ".join(INFER)}')
  methods: tuple[str, ...] = option((), 'some of those for this evidence')
  positive: tuple[str, ...] = option(
    (), 'labels of the positive class; by default 5-9, and 9 for any positive'
  )
  bag_size: int = option(8, 'instances in a bag; relations are of 2')
  net: str = option('mlp', 'network: mlp (one layer) or one of nets.build')
  width: int = option(128, 'of the layer of mlp')
  seeds: int = option(4, 'runs, each with its own bags')
  epochs: int = option(12, 'passes over the bags')
  batch_size: int = option(1, 'bags in a step')
  learning_rate: float = option(1e-3, 'of Adam')
  out: str = option('results/weak_supervision', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 1 epoch, two methods')


def main(config: Config) -> None:
  """Data -> bags -> evidence -> methods -> fits and report."""
  if config.smoke:
    few = config.methods or ('em', 'supervised')
    config = dataclasses.replace(
      config, methods=few, seeds=2, epochs=1, batch_size=15
    )
  with options():
    check_options(config)
    dataset = script.binary(script.read(config), positive(config))
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
  train, held_out = (
    script.per_run([bags(config, part, key) for key in runs[:, 0]])
    for part in (dataset.train, dataset.validation)
  )
  infer = INFER[config.evidence]
  k, m = train['mask'].values.shape[1:]
  print(f'{k} bags of up to {m}')
  names = config.methods or METHODS[config.evidence]
  methods = {name: build(name, config, dataset, infer) for name in names}
  named = config.evidence != 'similarity'
  comparison = Comparison(
    config.out,
    script.about('weak_supervision', config, 'balanced accuracy'),
    score='test_balanced_accuracy',
    chosen_by='validation_nll',
    better='lower',
    heads=('last epoch', 'best by bag likelihood'),
  )

  plot(
    comparison,
    f'{config.dataset}, {config.evidence}, bags of {m}, seeds: {config.seeds}',
    'test balanced accuracy',
  )

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        methods[name],
        train,
        runs[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out={
          'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
          'validation': held_out,
        },
        scores={
          'test': scores.balanced_accuracy if named else unnamed,
          'validation': scores.bag_nll(infer),
        },
        log=log,
        label=name,
      )

  done = functools.partial(record, comparison)
  compare(comparison, train_each(methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check_name('evidence', config.evidence, INFER)
  script.check_common(config, METHODS[config.evidence])
  pairs = config.evidence in ('comparison', 'similarity')
  check(config.bag_size >= 1, 'bag-size must be at least 1')
  check(
    not pairs or config.bag_size == 2,
    f'evidence {config.evidence} is of pairs: bag-size must be 2',
  )
  script.numbers('positive', config.positive)


def positive(config: Config) -> list[int]:
  """The labels of the positive class."""
  default = [9] if config.evidence == 'multiple_instance' else range(5, 10)
  return script.numbers('positive', config.positive) or list(default)


def bags(config: Config, part: Examples, key: Array) -> Arrays:
  """Bags [k, m] of all images, with all that any method may be told of them.

  The last bag may be short; of an odd number of images one has no pair.
  """
  order = np.asarray(jax.random.permutation(key, len(part.labels)))
  if config.bag_size == 2:
    order = order[: len(order) // 2 * 2]
  cut = noise.cut_bags(order, config.bag_size)
  if config.evidence == 'comparison':  # the first is as positive as the second
    first = np.argsort(-part.labels[cut.index], axis=1)
    cut = cut._replace(index=np.take_along_axis(cut.index, first, 1))
  arrays = script.bag_arrays(part, cut)
  counts = arrays['counts']
  return {
    **arrays,
    'any_positive': counts > 0,
    'similar': (counts == 0) | (counts == arrays['mask'].sum(1)),
  }


def _either_way(rows: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
  found = scores.balanced_accuracy.reduce(rows, arrays)
  return {name: jnp.maximum(v, 1 - v) for name, v in found.items()}


unnamed = scores.balanced_accuracy._replace(reduce=_either_way)
"""Balanced accuracy, or that with the two classes swapped."""


def build(name: str, config: Config, dataset: Dataset, infer: Infer) -> Method:
  """The method of that name."""
  x, hidden = dataset.train.x, (config.width,)
  model = script.network(config.net, 2, x, hidden=hidden)
  tx = optax.adam(config.learning_rate)

  def mean_over_bag(values: Array, batch: Batch) -> Array:
    return jnp.mean(values, axis=1, where=batch['mask'])

  def bag_share(logits: Array, batch: Batch) -> Array:
    uninformed = infer(jnp.zeros_like(logits), batch).posterior
    return mean_over_bag(losses.ce(logits, uninformed), batch)

  def supervised(logits: Array, batch: Batch) -> Array:
    return mean_over_bag(losses.ce(logits, batch['instance_labels']), batch)

  if name == 'em':
    return weak_em(model, tx, infer)
  if name == 'mean_matching':
    return dllp(model, tx)
  of_bags = {
    'bag_share': bag_share,
    'supervised': supervised,
  }
  return supervised_bags(of_bags[name], model, tx)


if __name__ == '__main__':
  run(main, Config, __doc__)
