"""Training that survives wrong labels: robust losses and ELR against plain CE.

The memorization curve of Liu et al. (ELR, NeurIPS 2020, arXiv 2007.00151)
on real scans: under 40% symmetric label noise the clean test accuracy of
cross-entropy rises and then falls, as the network first learns the digits and
then the wrong labels; robust losses and ELR hold on.

  python experiments/noisy_labels.py                 # digits, 5 seeds, a minute
  python experiments/noisy_labels.py --methods ce,elr --noise pair_flip
  python experiments/noisy_labels.py --dataset fashion_mnist --seeds 1 \\
    --net strided_cnn --batch-size 128 --epochs 30
  python experiments/noisy_labels.py --dataset cifar10 --batch-size 128 \\
    --net preact_resnet18 --dtype bfloat16 --augment crop_flip --standardize

Out come a table, `results.jsonl` (one line for each method and seed),
`accuracy.png`, and the noisy labels of every seed as `draw_SEED.npz`, which
`--draw` reads again. An epoch is chosen by *noisy* validation, never by clean
labels.

The default setting is fixed and not tuned: pixels / 16 and no standardization,
with which the network memorizes before it has learned (ELR 82, CE 72).
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, nets, noise
from jnl.base import Array, Method, Model, check, check_name, data_shards
from jnl.data import (
  Dataset,
  Examples,
  PerRun,
  augment,
  human_labels,
  load,
  published_order,
)
from jnl.data._files import HUMAN
from jnl.methods import elr, mislabeled
from jnl.noise import NoisyLabels
from jnl.steps import supervised
from jnl.train import Checkpoint, Columns, Fit, compare, option, parse

ANY_CLASSES = ('symmetric', 'symmetric_inclusive', 'pair_flip')
ONE_DATASET = (
  'mnist_asymmetric', 'cifar10_asymmetric', 'cifar100_superclasses',
  'cifar100_index_blocks',
)  # fmt: skip
NOISES = (
  *ANY_CLASSES, *ONE_DATASET, 'cifar10_asymmetric_in_place', 'part_dependent',
  *HUMAN,
)  # fmt: skip
LOSSES = (
  'ce', 'label_smoothing', 'gls', 'bootstrap_soft', 'bootstrap_hard', 'focal',
  'mae', 'rce', 'sce', 'gce', 'taylor_ce', 'js', 'bi_tempered',
  'nce', 'ngce', 'nfl', 'nnce', 'nnfl', 'nce_rce', 'nce_mae', 'nfl_rce',
  'nfl_mae', 'ngce_rce', 'ngce_mae', 'nce_agce', 'nce_aul', 'nce_ael', 'agce',
  'aul', 'ael', 'anorm', 'anl_ce', 'anl_fl',
)  # fmt: skip
METHODS = ('elr', *LOSSES)
SKIPPED = (
  'methods', 'dataset', 'seeds', 'out', 'smoke', 'data_dir', 'resume',
  'checkpoint_every',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('ce', 'gce', 'sce', 'nce_rce', 'elr'),
    'elr, or per-example losses of jnl.losses',
  )
  dataset: str = option(
    'digits', 'digits, an image set of TFDS, or one in data-dir'
  )
  data_dir: str = option('', 'folder of local files, see jnl/data/files.py')
  net: str = option('mlp', 'network, such as strided_cnn; see nets/names.py')
  dtype: str = option('float32', 'of the network: float32 or bfloat16')
  standardize: bool = option(False, 'each channel to mean 0 and deviation 1')
  augment: str = option('none', 'none, or crop_flip: shifts by 4 and mirrors')
  noise: str = option('symmetric', f'noise: {", ".join(NOISES)}')
  rate: float = option(0.4, 'noise rate, in [0, 1]; people have their own')
  draw: str = option('', 'file of noisy labels, instead of noise and rate')
  seeds: int = option(5, 'runs, each with its own noise draw')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  weight_decay: float = option(5e-4, 'L2, added to the gradient')
  beta: float = option(0.7, 'ELR: memory of the targets')
  lam: float = option(3.0, 'ELR: weight of the penalty')
  checkpoint_every: int = option(0, 'steps between checkpoints; 0 is none')
  resume: bool = option(False, 'go on from the checkpoints in out')
  out: str = option('results/noisy_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs')


def main(config: Config) -> None:
  """Data -> noise -> networks and methods -> fits and report."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=2)
  check_names(config)
  dataset = load(config.dataset, data_dir=config.data_dir or None)
  check(
    not np.issubdtype(dataset.train.x.dtype, np.integer),
    f'dataset {config.dataset} is of texts, whose tokens are no pixels: '
    'experiments/meta_rescaling.py has the networks and rates for them',
  )
  published = published_order(dataset)
  runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
  draws = [draw(config, dataset, published, key) for key in runs[:, 0]]
  train_labels = labels_of(dataset.train, draws, published)
  validation_labels = labels_of(dataset.validation, draws, published)
  wrong = np.mean([d.flipped for d in draws], axis=1)
  print(f'{len(published.labels)} labels, {wrong.mean():.1%} of them wrong')

  save_draws(config, draws, published, runs[:, 0])
  compare(
    {name: build(name, config, dataset) for name in config.methods},
    {'x': dataset.train.x, 'labels': PerRun(train_labels)},
    runs[:, 1],
    held_out={
      'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
      'validation': {
        'x': dataset.validation.x,
        'labels': PerRun(validation_labels),
      },
    },
    chosen_by='noisy val.',
    about={
      'experiment': 'noisy_labels',
      'dataset': config.dataset,
      'setting': setting(config),
      'metric': 'accuracy',
    },
    title=f'{config.dataset}, {config.draw or config.noise}, '
    f'{wrong.mean():.0%} wrong, seeds: {config.seeds}',
    out=config.out,
    epochs=config.epochs,
    batch_size=config.batch_size,
    augment=AUGMENTS[config.augment],
    checkpoint=lambda name: checkpoint(config, name),
    of_runs={'wrong_labels': wrong},
    of_fit=lambda name, fitted: flag_f1(
      name, fitted, train_labels, dataset.train.labels
    ),
  )


def check_names(config: Config) -> None:
  """Raises for a name that is not known, before any work."""
  for method in config.methods:
    check_name('method', method, METHODS)
  nets.build(config.net, 2)
  check_name('dtype', config.dtype, ('float32', 'bfloat16'))
  check_name('augment', config.augment, AUGMENTS)
  check_name('noise', config.noise, NOISES)
  every = config.checkpoint_every
  check(every >= 0, f'checkpoint-every must not be negative, got {every}')
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')
  check(
    config.noise not in HUMAN or config.data_dir,
    f'noise {config.noise} is read from files: give data-dir',
  )


def draw(
  config: Config, dataset: Dataset, published: Examples, key: Array
) -> NoisyLabels:
  """Noisy labels [n] for the training set in its published order."""
  labels, name, rate = published.labels, config.noise, config.rate
  if config.draw:
    saved = noise.load_draw(
      config.draw, dataset=config.dataset, clean=labels, id=published.id
    )
    return saved.draw
  if name in HUMAN:
    noisy, clean = human_labels(name, config.data_dir)
    check(
      published.id.max() < len(clean)
      and np.array_equal(clean[published.id], labels),
      f'the labels of {name} were given to other images than those of dataset '
      f'{config.dataset}, or in another order',
    )
    noisy = noisy[published.id]
    matrix = noise.empirical_transition(labels, noisy, dataset.num_classes)
    return NoisyLabels(noisy, noisy != labels, matrix)
  if name == 'cifar10_asymmetric_in_place':
    return noise.cifar10_asymmetric_in_place(key, labels, rate)
  if name == 'part_dependent':
    return noise.part_dependent(
      key, published.x, labels, dataset.num_classes, rate
    )
  generator = getattr(noise, name)
  if name in ONE_DATASET:
    return noise.corrupt(key, labels, generator(rate))
  return noise.corrupt(key, labels, generator(dataset.num_classes, rate))


def save_draws(
  config: Config,
  draws: Sequence[NoisyLabels],
  published: Examples,
  keys: Array,
) -> None:
  """Writes the draws for others to read, unless they were read themselves."""
  if config.draw or config.noise in HUMAN:
    return
  for seed, (labels, key) in enumerate(zip(draws, keys, strict=True)):
    noise.save_draw(
      f'{config.out}/draw_{seed}.npz',
      labels,
      published.labels,
      generator=config.noise,
      rate=config.rate,
      key=key,
      dataset=config.dataset,
      id=published.id,
    )


def labels_of(
  part: Examples, draws: Sequence[NoisyLabels], published: Examples
) -> np.ndarray:
  """The noisy labels [runs, n] of a part of the data."""
  rows = np.searchsorted(published.id, part.id)
  return np.stack([np.asarray(d.labels)[rows] for d in draws])


AUGMENTS = {
  'none': None,
  'crop_flip': augment.views(augment.compose(augment.pad_crop, augment.flip)),
}


def build_model(config: Config, dataset: Dataset) -> Model:
  """The network, for inputs as they are in the data set."""
  x = dataset.train.x
  dtype = getattr(jnp, config.dtype)
  net = nets.build(config.net, dataset.num_classes, dtype=dtype)
  model = nets.from_linen(net, x.shape[1:])
  if config.standardize:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes, dtype=np.float64)  # float32 sums of 1e8 pixels drift
    model = nets.standardize(model, mean, x.std(axes, dtype=np.float64))
  return model


def build(name: str, config: Config, dataset: Dataset) -> Method:
  """The method of that name, with the settings of the published ones."""
  c, n = dataset.num_classes, len(dataset.train.labels)
  model = build_model(config, dataset)
  tx = optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(config.learning_rate, momentum=0.9),
  )
  if name == 'elr':
    shards = data_shards(n, config.batch_size)
    return elr(
      model,
      tx,
      num_examples=n,
      num_classes=c,
      beta=config.beta,
      lam=config.lam,
      shards=shards,
    )
  return supervised(getattr(losses, name), model, tx)


def checkpoint(config: Config, name: str) -> Checkpoint | None:
  """Where the runs of a method are saved, if they are."""
  if not config.checkpoint_every and not config.resume:
    return None
  return Checkpoint(
    f'{config.out}/checkpoints/{name}',
    resume=config.resume,
    every=config.checkpoint_every or None,
    config={**setting(config), 'dataset': config.dataset, 'epochs': None},
  )


def setting(config: Config) -> dict:
  """What the numbers depend on."""
  return {
    k: v for k, v in dataclasses.asdict(config).items() if k not in SKIPPED
  }


def flag_f1(
  name: str, fitted: Fit, noisy: np.ndarray, clean: np.ndarray
) -> Columns:
  """F1 [runs] of ELR's flags against the labels that are truly wrong."""
  if name != 'elr':
    return {}
  flagged = jax.vmap(mislabeled)(fitted.state, jnp.asarray(noisy))
  wrong = noisy != clean
  f1 = 2 * (flagged & wrong).sum(1) / (flagged.sum(1) + wrong.sum(1))
  return {'flag_f1': f1}


if __name__ == '__main__':
  main(parse(Config, __doc__))
