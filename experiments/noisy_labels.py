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
  python experiments/noisy_labels.py --dataset cifar10 --published \\
    --methods elr --noise symmetric_inclusive --rate .4 --standardize

Out come a table, `results.jsonl` (one line for each method and seed),
`accuracy.png`, and the noisy labels of every seed as `draw_SEED.npz`, which
`--draw` reads again. An epoch is chosen by *noisy* validation, never by clean
labels.

The default setting is fixed and not tuned: pixels / 16 and no standardization,
with which the network memorizes before it has learned (ELR 82, CE 72).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jnl import data, losses
from jnl.base import Method, check, check_name, data_shards
from jnl.data import Dataset, PerRun, augment
from jnl.methods import Settings, elr, mislabeled, published
from jnl.steps import supervised
from jnl.train import (
  Fit,
  compare,
  curves,
  fit_many,
  option,
  parse,
  script,
  train_each,
  write_results,
)

LOSSES = (
  'ce', 'label_smoothing', 'gls', 'bootstrap_soft', 'bootstrap_hard', 'focal',
  'mae', 'rce', 'sce', 'gce', 'taylor_ce', 'js', 'bi_tempered',
  'nce', 'ngce', 'nfl', 'nnce', 'nnfl', 'nce_rce', 'nce_mae', 'nfl_rce',
  'nfl_mae', 'ngce_rce', 'ngce_mae', 'nce_agce', 'nce_aul', 'nce_ael', 'agce',
  'aul', 'ael', 'anorm', 'anl_ce', 'anl_fl',
)  # fmt: skip
METHODS = ('elr', *LOSSES)
AUGMENTS = {
  name: augment.views(view) if view else None
  for name, view in script.VIEWS.items()
}


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('ce', 'gce', 'sce', 'nce_rce', 'elr'),
    'elr, or per-example losses of jnl.losses',
  )
  dtype: str = option('float32', 'of the network: float32 or bfloat16')
  standardize: bool = option(False, 'each channel to mean 0 and deviation 1')
  augment: str = option('none', 'none, or crop_flip: shifts by 4 and mirrors')
  noise: str = option('symmetric', f'noise: {", ".join(data.NOISES)}')
  rate: float = option(0.4, 'noise rate, in [0, 1]; people have their own')
  draw: str = option('', 'file of noisy labels, instead of noise and rate')
  seeds: int = option(5, 'runs, each with its own noise draw')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  weight_decay: float = option(5e-4, 'L2, added to the gradient')
  beta: float = option(0.7, 'ELR: memory of the targets')
  lam: float = option(3.0, 'ELR: weight of the penalty')
  published: bool = option(
    False, 'each method as published for dataset, noise and rate, where known'
  )
  out: str = option('results/noisy_labels', 'folder for what comes out')


def main(config: Config) -> None:
  """Data -> noise -> networks and methods -> fits and report."""
  if config.smoke:
    config = dataclasses.replace(config, seeds=2, epochs=2)
  check_options(config)
  dataset = script.read(config)
  check(
    not np.issubdtype(dataset.train.x.dtype, np.integer),
    f'dataset {config.dataset} is of texts, whose tokens are no pixels: '
    'experiments/meta_rescaling.py has the networks and rates for them',
  )
  runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
  draws = [
    data.noisy(
      key,
      dataset,
      config.noise,
      config.rate,
      data_dir=config.data_dir,
      file=config.draw,
    )
    for key in runs[:, 0]
  ]
  noisy = np.stack([one.train for one in draws])
  held_out = np.stack([one.validation for one in draws])
  wrong = np.mean([one.draw.flipped for one in draws], axis=1)
  print(f'{len(draws[0].clean)} labels, {wrong.mean():.1%} of them wrong')
  data.save_noisy(config.out, draws)

  settings = {name: settings_of(name, config) for name in config.methods}
  methods = {name: build(settings[name], config, dataset) for name in settings}
  trained = train_each(
    methods,
    lambda name: fit_many(
      methods[name],
      {'x': dataset.train.x, 'labels': PerRun(noisy)},
      runs[:, 1],
      epochs=settings[name].epochs,
      batch_size=settings[name].batch_size,
      held_out={
        'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
        'validation': {'x': dataset.validation.x, 'labels': PerRun(held_out)},
      },
      augment=AUGMENTS[settings[name].views],
      checkpoint=script.checkpoint(config, name),
      label=name,
    ),
  )
  if 'elr' in trained:
    f1 = flag_f1(trained['elr'].fit, noisy, dataset.train.labels)
    trained['elr'] = trained['elr'].also({'flag_f1': f1})
  rows = compare(
    trained,
    about=script.about('noisy_labels', config) | as_published(settings, config),
    heads=('last epoch', 'best by noisy val.'),
    of_runs={'wrong_labels': wrong},
  )
  write_results(
    config.out,
    rows,
    curves(trained),
    title=f'{config.dataset}, {config.draw or config.noise}, '
    f'{wrong.mean():.0%} wrong, seeds: {config.seeds}',
    ylabel='test accuracy',
  )


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check_name('dtype', config.dtype, ('float32', 'bfloat16'))
  check_name('augment', config.augment, AUGMENTS)
  data.check_noise(config.noise, config.data_dir)
  for name in config.methods:
    settings_of(name, config)


def settings_of(name: str, config: Config) -> Settings:
  """How a method is trained: as published, or as the options say."""
  if not config.published:
    return Settings(
      source='',
      method=name,
      net=config.net,
      epochs=config.epochs,
      batch_size=config.batch_size,
      learning_rate=config.learning_rate,
      weight_decay=config.weight_decay,
      views=config.augment,
      arguments={'beta': config.beta, 'lam': config.lam}
      if name == 'elr'
      else {},
    )
  found = published(name, config.dataset, config.noise, config.rate)
  found = dataclasses.replace(found, views=found.views or config.augment)
  return dataclasses.replace(found, epochs=2) if config.smoke else found


def as_published(settings: dict[str, Settings], config: Config) -> dict:
  """What a row says in addition, where the options are not what was used."""
  used = {name: dataclasses.asdict(one) for name, one in settings.items()}
  return {'published': used} if config.published else {}


def build(settings: Settings, config: Config, dataset: Dataset) -> Method:
  """The method with these settings."""
  c, n = dataset.num_classes, len(dataset.train.labels)
  model = script.network(
    settings.net,
    c,
    dataset.train.x,
    dtype=config.dtype,
    standardize=config.standardize,
  )
  tx = settings.optimizer(n // settings.batch_size)
  if settings.method == 'elr':
    shards = data_shards(n, settings.batch_size)
    return elr(
      model,
      tx,
      num_examples=n,
      num_classes=c,
      shards=shards,
      **settings.arguments,
    )
  loss = getattr(losses, settings.method)
  return supervised(functools.partial(loss, **settings.arguments), model, tx)


def flag_f1(fitted: Fit, noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
  """F1 [runs] of ELR's flags against the labels that are truly wrong."""
  flagged = jax.vmap(mislabeled)(fitted.state, jnp.asarray(noisy))
  wrong = noisy != clean
  return 2 * (flagged & wrong).sum(1) / (flagged.sum(1) + wrong.sum(1))


if __name__ == '__main__':
  main(parse(Config, __doc__))
