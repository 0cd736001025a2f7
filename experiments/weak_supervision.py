"""Learning from what is known of bags: counts, any positive at all, relations.

Exact EM (Chen et al., GLWS, ICML 2024, arXiv 2402.01922; the recursions here
are exact where the official ones are not) against what is usually done instead:
matching the mean prediction of a bag (`mean_matching`), and giving all its
instances one soft label (`bag_share`: the posterior of an uninformed network);
`supervised` sees the label of every instance, as the ceiling.

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

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import automata, losses, nets, noise
from jnl.automata import Inference
from jnl.base import Array, Batch, Method, State, check, check_name, global_mean
from jnl.data import Dataset, Examples, PerRun, load
from jnl.methods import dllp, weak_em
from jnl.steps import bag_logits, supervised_bags
from jnl.train import Predict, Score, compare, option, parse

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
class Config:
  """The settings; every field is an option of the command line."""

  evidence: str = option('counts', f'what is known: {", ".join(INFER)}')
  methods: tuple[str, ...] = option((), 'some of those for this evidence')
  dataset: str = option(
    'digits', 'digits, an image set of TFDS, or one in data-dir'
  )
  data_dir: str = option('', 'folder of local files, see jnl/data/files.py')
  positive: tuple[str, ...] = option(
    (), 'labels of the positive class; by default 5-9, and 9 for any positive'
  )
  bag_size: int = option(8, 'instances in a bag; relations are of 2')
  net: str = option('mlp', 'network: mlp (one layer) or one of nets/names.py')
  width: int = option(128, 'of the layer of mlp')
  seeds: int = option(4, 'runs, each with its own bags')
  epochs: int = option(12, 'passes over the bags')
  batch_size: int = option(1, 'bags in a step')
  learning_rate: float = option(1e-3, 'of Adam')
  out: str = option('results/weak_supervision', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 1 epoch, large batches')


def main(config: Config) -> None:
  """Data -> bags -> evidence -> methods -> fits and report."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=1, batch_size=15)
  check_options(config)
  dataset = load(config.dataset, data_dir=config.data_dir or None)
  runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
  train = stack([bags(config, dataset.train, key) for key in runs[:, 0]])
  held_out = stack(
    [bags(config, dataset.validation, key) for key in runs[:, 0]]
  )
  infer = INFER[config.evidence]
  k, m = train['mask'].shape[1:]
  print(f'{k} bags of up to {m}')
  compare(
    {
      name: build(name, config, dataset, infer)
      for name in config.methods or METHODS[config.evidence]
    },
    {name: PerRun(values) for name, values in train.items()},
    runs[:, 1],
    held_out={
      'test': instances(config, dataset.test),
      'validation': {k: PerRun(values) for k, values in held_out.items()},
    },
    scores={
      'test': score_named if config.evidence != 'similarity' else score_unnamed,
      'validation': nll_of(infer),
    },
    chosen_by='bag likelihood',
    better='lower',
    about={
      'experiment': 'weak_supervision',
      'dataset': config.dataset,
      'setting': setting(config),
      'metric': 'balanced accuracy',
    },
    title=f'{config.dataset}, {config.evidence}, bags of {m}, seeds: '
    f'{config.seeds}',
    out=config.out,
    epochs=config.epochs,
    batch_size=config.batch_size,
  )


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check_name('evidence', config.evidence, INFER)
  for method in config.methods:
    check_name('method', method, METHODS[config.evidence])
  nets.build(config.net, 2)
  pairs = config.evidence in ('comparison', 'similarity')
  check(config.bag_size >= 1, 'bag-size must be at least 1')
  check(
    not pairs or config.bag_size == 2,
    f'evidence {config.evidence} is of pairs: bag-size must be 2',
  )
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')
  check(
    all(label.isdigit() for label in config.positive),
    f'positive must be labels, with commas, got {config.positive}',
  )


def is_positive(config: Config, part: Examples) -> np.ndarray:
  """The binary labels [n]."""
  default = (9,) if config.evidence == 'multiple_instance' else range(5, 10)
  labels = [int(label) for label in config.positive] or list(default)
  return np.isin(part.labels, labels).astype(np.int32)


def instances(config: Config, part: Examples) -> Arrays:
  """Single images with labels, and weights under which classes are balanced."""
  labels = is_positive(config, part)
  share = np.bincount(labels, minlength=2) / len(labels)
  check(share.min() > 0, 'positive: both classes must be in the test set')
  return {
    'x': part.x,
    'labels': labels,
    'balance': (0.5 / share[labels]).astype(np.float32),
  }


def bags(config: Config, part: Examples, key: Array) -> Arrays:
  """Bags [k, m] of all images, with all that any method may be told of them.

  The last bag may be short; of an odd number of images one has no pair.
  """
  labels, m = is_positive(config, part), config.bag_size
  order = np.asarray(jax.random.permutation(key, len(labels)))
  if m == 2:
    order = order[: len(order) // 2 * 2]
  cut = noise.cut_bags(order, m)
  mask = np.asarray(cut.mask)
  index = np.where(mask, cut.index, 0)
  if config.evidence == 'comparison':  # the first is as positive as the second
    index = np.take_along_axis(index, np.argsort(-labels[index], axis=1), 1)
  labels = np.where(mask, labels[index], 0)
  counts = labels.sum(1)
  return {
    'x': part.x[index],
    'mask': mask,
    'counts': counts,
    'any_positive': counts > 0,
    'similar': (counts == 0) | (counts == mask.sum(1)),
    'instance_labels': labels,
  }


def stack(runs: Sequence[Arrays]) -> Arrays:
  """The arrays of all runs, [runs, ...] each."""
  return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def score_named(predict: Predict, state: State, batch: Batch) -> Array:
  """Balanced accuracy."""
  prediction = jnp.argmax(predict(state, batch['x']).logits, -1)
  right = (prediction == batch['labels']) * batch['balance']
  return global_mean(right, batch['weight'])


def score_unnamed(predict: Predict, state: State, batch: Batch) -> Array:
  """Balanced accuracy, or that with the two classes swapped."""
  score = score_named(predict, state, batch)
  return jnp.maximum(score, 1 - score)


def nll_of(infer: Infer) -> Score:
  """How unlikely the evidence about bags is."""

  def score(predict: Predict, state: State, batch: Batch) -> Array:
    found = infer(bag_logits(predict, state, batch['x']), batch)
    usable = batch['weight'] * found.feasible
    return global_mean(-found.log_likelihood, usable)

  return score


def build(name: str, config: Config, dataset: Dataset, infer: Infer) -> Method:
  """The method of that name."""
  net = nets.build(config.net, 2)
  if config.net == 'mlp':
    net = nets.MLP(2, (config.width,))
  model = nets.from_linen(net, dataset.train.x.shape[1:])
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


def setting(config: Config) -> dict:
  """What the numbers depend on."""
  skipped = ('methods', 'dataset', 'data_dir', 'seeds', 'out', 'smoke')
  fields = dataclasses.asdict(config)
  return {name: v for name, v in fields.items() if name not in skipped}


if __name__ == '__main__':
  main(parse(Config, __doc__))
