"""Training that survives wrong labels: losses and methods against plain CE.

The memorization curve of Liu et al. (ELR, NeurIPS 2020, arXiv 2007.00151)
on real scans: under 40% symmetric label noise the clean test accuracy of
cross-entropy rises and then falls, as the network first learns the digits and
then the wrong labels; robust losses, ELR, two networks (DivideMix), learned
noise (SOP) and others hold on. They are told what `arguments` below says.

  python experiments/noisy_labels.py                 # digits, 5 seeds, a minute
  python experiments/noisy_labels.py --methods ce,elr --noise pair_flip
  python experiments/noisy_labels.py --rate .2,.4,.6  # accuracy against rate
  python experiments/noisy_labels.py \\
    --noise symmetric:.2,symmetric:.4,pair_flip:.4,part_dependent:.4
  python experiments/noisy_labels.py --dataset fashion_mnist --seeds 1 \\
    --examples 10000 --net strided_cnn --batch-size 128 --epochs 10

On accelerators (not run here: none was at hand):

  python experiments/noisy_labels.py --dataset cifar10 --batch-size 128 \\
    --net preact_resnet18 --dtype bfloat16 --augment crop_flip --standardize \\
    --methods ce,elr,elr_plus,divide_mix --learning-rate .02 --epochs 120
  python experiments/noisy_labels.py --dataset cifar10 --published \\
    --methods elr --noise symmetric_inclusive --rate .4 --standardize

Out come, as each method ends, `results.jsonl` (one line for each method, noise,
rate and seed) and `curves.npz`; then a table, plots, which `python -m
jnl.train.report FOLDER` draws again, and the noisy labels of every seed as
`draw_SEED.npz`, which `--draw` reads again. An epoch is chosen by *noisy*
validation, never by clean labels.

The default setting is fixed and not tuned: pixels / 16 and no standardization,
with which the network memorizes before it has learned (ELR 82, CE 72).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import data, losses, methods
from jnl.base import Batch, Key, Method, check, check_name
from jnl.data import Dataset, PerRun, augment
from jnl.methods import Settings, mislabeled, published, takes
from jnl.train import (
  Comparison,
  Fit,
  Trained,
  compare,
  compare_groups,
  fit_many,
  option,
  options,
  plot,
  record,
  report,
  run,
  script,
  train_each,
)

LOSSES = (
  'ce', 'label_smoothing', 'gls', 'bootstrap_soft', 'bootstrap_hard', 'focal',
  'mae', 'rce', 'sce', 'gce', 'taylor_ce', 'js', 'bi_tempered',
  'nce', 'ngce', 'nfl', 'nnce', 'nnfl', 'nce_rce', 'nce_mae', 'nfl_rce',
  'nfl_mae', 'ngce_rce', 'ngce_mae', 'nce_agce', 'nce_aul', 'nce_ael', 'agce',
  'aul', 'ael', 'anorm', 'anl_ce', 'anl_fl',
)  # fmt: skip
OWN = (
  'elr', 'elr_plus', 'divide_mix', 'co_teaching', 'co_teaching_plus',
  'decoupling', 'jocor', 'sop', 'sop_plus', 'dynamic_bootstrap', 'cores',
  'peer', 'gjs', 'forward_t', 'dual_t', 't_revision', 'vol_min', 'cpc',
)  # fmt: skip
METHODS = {
  **{name: getattr(methods, name) for name in OWN},
  **{name: getattr(losses, name) for name in LOSSES},
}
REVISION = optax.adam(1e-4)
"""What T-Revision ends with on digits; published is 5e-7, for more steps."""


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('ce', 'gce', 'sce', 'nce_rce', 'elr'),
    'some of those below',
  )
  dtype: str = option('float32', 'of the network: float32 or bfloat16')
  standardize: bool = option(False, 'each channel to mean 0 and deviation 1')
  augment: str = option('none', 'none, or crop_flip: shifts by 4 and mirrors')
  noise: tuple[str, ...] = option(
    ('symmetric',),
    f'one or several of {", ".join(data.NOISES)}; NAME:RATE has a rate of its '
    'own',
  )
  rate: tuple[float, ...] = option(
    (0.4,), 'rates of the others, in [0, 1]; people have their own'
  )
  draw: str = option('', 'file of noisy labels, instead of noise and rate')
  examples: int = option(0, 'first rows of the training set; 0 is all')
  seeds: int = option(5, 'runs, each with its own noise draw')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  drops: tuple[int, ...] = option((), 'epochs after which it is a tenth')
  weight_decay: float = option(5e-4, 'L2, added to the gradient')
  beta: float = option(0.7, 'ELR: memory of the targets')
  lam: float = option(3.0, 'ELR: weight of the penalty')
  published: bool = option(
    False, 'each method as published for dataset, noise and rate, where known'
  )
  out: str = option('results/noisy_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, ce and elr')


class Cell(NamedTuple):
  """A noise and a rate, with wrong labels for each seed.

  Attributes:
    noise: its name.
    rate: of it.
    draws: of the seeds.
  """

  noise: str
  rate: float
  draws: list[data.Noisy]

  @property
  def train(self) -> np.ndarray:
    """Labels [seeds, n] of the training set."""
    return np.stack([one.train for one in self.draws])

  @property
  def validation(self) -> np.ndarray:
    """Labels [seeds, m] of the validation set."""
    return np.stack([one.validation for one in self.draws])

  @property
  def wrong(self) -> np.ndarray:
    """The share [seeds] of wrong labels."""
    return np.mean([one.draw.flipped for one in self.draws], axis=1)

  @property
  def name(self) -> str:
    """As tables and plots have it; people have no rate to be told."""
    return self.noise + f'_{self.rate:g}' * (self.noise not in data.HUMAN)


def main(config: Config) -> str:
  """Data -> noise -> networks and methods -> fits and report, in a folder."""
  if config.smoke:
    chosen = config.methods != type(config).methods
    few = config.methods if chosen else ('ce', 'elr')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  with options():
    check_options(config)
    dataset = read(config)
    cells = [spoil(config, dataset, *one) for one in noises_of(config)]
    ways = {
      name: [settings_of(name, config, cell) for cell in cells]
      for name in config.methods
    }
    out = report.own_folder(config.out, resume=config.resume)
    config = dataclasses.replace(config, out=out)
  for cell in cells:
    print(f'{cell.name}: {cell.wrong.mean():.1%} of the labels are wrong')
    own = '' if len(cells) == 1 else f'/{cell.name}'
    data.save_noisy(config.out + own, cell.draws)
  comparisons = [
    compared(config, {name: ways[name][i] for name in ways}, cell, cells)
    for i, cell in enumerate(cells)
  ]
  noisy = np.concatenate([cell.train for cell in cells])

  def done(name: str, one: Trained) -> Trained:
    if name == 'elr':
      one = one.also({'flag_f1': flag_f1(one.fit, noisy, dataset.train.labels)})
    return record_cells(comparisons, config, cells, name, one)

  plan_plots(config, cells, comparisons)
  trained = train_each(
    config.methods,
    lambda name: train(name, ways[name], config, dataset, cells),
    done,
  )
  print_table(config, comparisons, trained)
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')
  return config.out


def keys_of(config: Config) -> jax.Array:
  """For each seed a key of its labels and one of its training."""
  return jax.random.split(jax.random.key(0), (config.seeds, 2))


def train(
  name: str,
  ways: list[Settings],
  config: Config,
  dataset: Dataset,
  cells: list[Cell],
) -> Fit:
  """All runs of a method: those of the first cell, of the second, and so on.

  Cells in which it is trained alike are runs of one program.
  """
  if len(set(map(repr, ways))) > 1:
    fits = [
      train(name, [way], config, dataset, [cell])
      for way, cell in zip(ways, cells, strict=True)
    ]
    return jax.tree.map(lambda *runs: np.concatenate(runs), *fits)
  way = ways[0]
  noisy, held_out = (
    PerRun(np.concatenate([getattr(cell, part) for cell in cells]))
    for part in ('train', 'validation')
  )
  folder = f'{name}/{cells[0].name}' if len(cells) == 1 else name
  with script.logging(config, name) as log:
    return fit_many(
      build(way, config, dataset),
      {'x': dataset.train.x, 'labels': noisy},
      jnp.tile(keys_of(config)[:, 1], len(cells)),
      epochs=way.epochs,
      batch_size=way.batch_size,
      held_out={
        'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
        'validation': {'x': dataset.validation.x, 'labels': held_out},
      },
      augment=views(way),
      checkpoint=script.checkpoint(config, folder),
      log=log,
      label=name,
    )


def views(way: Settings) -> Callable[[Key, Batch], Batch] | None:
  """What is done to the examples of a batch, and what further views there are.

  DivideMix guesses on two views of one kind, if anything is done to examples.
  """
  weak = script.VIEWS[way.views]
  if way.method in methods.TWO_VIEWS:
    own = weak or augment.compose()
    return augment.views(own, script.STRONG_VIEWS[way.views])
  if weak is None:
    return None
  return augment.views(weak, *(weak,) * (way.method == 'divide_mix'))


def of_cell(one: Trained, i: int, seeds: int) -> Trained:
  """The runs of the i-th cell."""
  return one.runs(slice(i * seeds, (i + 1) * seeds))


# --- labels and options -------------------------------------------------------


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check_name('dtype', config.dtype, ('float32', 'bfloat16'))
  check_name('augment', config.augment, script.VIEWS)
  noises = noises_of(config)
  check(noises, 'noise and rate must name at least one')
  check(len(set(noises)) == len(noises), 'noise names the same one twice')
  for name, rate in noises:
    data.check_noise(name, config.data_dir)
    check(0 <= rate <= 1, f'rate must lie in [0, 1], got {rate:g}')
  check(
    len(noises) == 1 or not config.draw,
    'several noises or rates cannot be had with draw',
  )
  check(
    len(config.rate) == 1 or not {*config.noise} & {*data.HUMAN},
    f'people have their own rate: give one for {", ".join(data.HUMAN)}',
  )
  for name in config.methods if config.published else ():
    for one in noises:
      published(name, config.dataset, *one)


def noises_of(config: Config) -> list[tuple[str, float]]:
  """Each noise with each rate."""
  noises = []
  for text in config.noise:
    name, _, own = text.partition(':')
    try:
      rates = (float(own),) if own else config.rate
    except ValueError:
      raise ValueError(f'noise must be NAME or NAME:RATE, got {text}') from None
    noises += [(name, rate) for rate in rates]
  return noises


def read(config: Config) -> Dataset:
  """The data set, of images or tables."""
  dataset = script.read(config)
  check(
    not np.issubdtype(dataset.train.x.dtype, np.integer),
    f'dataset {config.dataset} is of texts, whose tokens are no pixels: '
    'experiments/meta_rescaling.py has the networks and rates for them',
  )
  return script.first(dataset, config.examples)


def spoil(config: Config, dataset: Dataset, noise: str, rate: float) -> Cell:
  """Wrong labels of a noise and rate for each seed."""
  keys = keys_of(config)[:, 0]
  draw = functools.partial(
    data.noisy, data_dir=config.data_dir, file=config.draw
  )
  return Cell(noise, rate, [draw(k, dataset, noise, rate) for k in keys])


# --- what comes out -----------------------------------------------------------


def compared(
  config: Config,
  ways: Mapping[str, Settings],
  cell: Cell,
  cells: list[Cell],
) -> Comparison:
  """How methods are compared in a cell."""
  about = script.about('noisy_labels', config)
  own = {'noise': cell.noise, 'rate': cell.rate}
  about['setting'] = {**about['setting'], **own}
  if config.published:
    used = {name: dataclasses.asdict(one) for name, one in ways.items()}
    about['published'] = used
  return Comparison(
    config.out,
    about,
    heads=('last epoch', 'best by noisy val.'),
    of_runs={'wrong_labels': cell.wrong},
    group=cell.name if len(cells) > 1 else 'runs',
  )


def plan_plots(
  config: Config, cells: list[Cell], comparisons: list[Comparison]
) -> None:
  """Says what is to be drawn: curves of each cell, accuracy by rate."""
  for cell, comparison in zip(cells, comparisons, strict=True):
    what = config.draw or cell.noise
    wrong = f'{what}, {cell.wrong.mean():.0%} wrong'
    plot(
      comparison,
      f'{config.dataset}, {wrong}, seeds: {config.seeds}',
      'test accuracy',
      'accuracy.png' if len(cells) == 1 else f'curves_{cell.name}.png',
    )
  for noise, of_noise in by_noise(cells).items():
    report.put_plot(
      config.out,
      f'accuracy_{noise}.png',
      group=f'{noise}_by_rate',
      column='test_accuracy',
      title=f'{config.dataset}, {noise}, seeds: {config.seeds}',
      ylabel='test accuracy, last epoch',
      x=[cells[i].rate for i in of_noise],
      xlabel='rate of wrong labels',
    )


def by_noise(cells: list[Cell]) -> dict[str, list[int]]:
  """By noise the cells of its rates, if there are several."""
  found: dict[str, list[int]] = {}
  for i, cell in enumerate(cells):
    found.setdefault(cell.noise, []).append(i)
  return {noise: of_noise for noise, of_noise in found.items() if of_noise[1:]}


def record_cells(
  comparisons: list[Comparison],
  config: Config,
  cells: list[Cell],
  name: str,
  one: Trained,
) -> Trained:
  """Records a method in all cells, and its accuracy by rate."""
  for i, comparison in enumerate(comparisons):
    record(comparison, name, of_cell(one, i, config.seeds))
  last = one.last('test_accuracy').reshape(len(cells), config.seeds)
  for noise, of_noise in by_noise(cells).items():
    by_rate = {f'{noise}_by_rate/{name}/test_accuracy': last[of_noise].T}
    report.put_curves(config.out, by_rate)
  return one


def print_table(
  config: Config,
  comparisons: list[Comparison],
  trained: Mapping[str, Trained],
) -> None:
  """A row for each method; for each cell, if there are several, a column."""
  per_cell = [
    {k: of_cell(one, i, config.seeds) for k, one in trained.items()}
    for i in range(len(comparisons))
  ]
  if len(comparisons) == 1:
    compare(comparisons[0], per_cell[0])
  else:
    compare_groups(comparisons, per_cell)


def settings_of(name: str, config: Config, cell: Cell) -> Settings:
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
      drops=config.drops,
      views=config.augment,
      arguments=arguments(name, config, cell),
    )
  found = published(name, config.dataset, cell.noise, cell.rate)
  found = dataclasses.replace(found, views=found.views or config.augment)
  return dataclasses.replace(found, epochs=2) if config.smoke else found


def arguments(name: str, config: Config, cell: Cell) -> dict[str, Any]:
  """What a method is told beside its defaults.

  Lengths are parts of the training, since published ones are of hundreds of
  epochs of hundreds of steps. Digits are learned by heart within fifteen
  epochs, so that what holds against it must begin sooner there. Who must know
  the rate of wrong labels is told it.
  """
  part = lambda share: max(1, round(share * config.epochs))
  points = lambda *at: tuple((a * config.epochs, float(v)) for a, v in at)
  quick = config.dataset == 'digits'
  own: dict[str, dict[str, Any]] = {
    'elr': {'beta': config.beta, 'lam': config.lam},
    'sop': dict.fromkeys(('u_rate', 'v_rate'), 30 / config.epochs),
    'sop_plus': dict.fromkeys(('u_rate', 'v_rate'), 30 / config.epochs),
    'gjs': {'weights': (0.9, 0.05, 0.05)},
    'divide_mix': {'warmup': part(0.1), 'ramp': part(0.16)},
    'co_teaching_plus': {'warmup': part(0.1)},
    'decoupling': {'warmup': part(0.05)},
    'jocor': {'co_lambda': 0.5},
    'dynamic_bootstrap': {'warmup': part(0.2)},
    'cores': {
      'beta': points((0.05, 0), (0.3, 4))
      if quick
      else points((0.2, 0), (0.6, 2)),
      'sieve': part(0.25 if quick else 0.5),
    },
    'peer': {
      'alpha': points((0.03, 0), (0.08, 1), (0.2, 3))
      if quick
      else points((0.2, 0), (0.6, 1))
    },
    'cpc': {'warmup': part(0.1), 'round_epochs': part(0.1)},
    'forward_t': {'warmup': part(0.1)},
    'dual_t': {'warmup': part(0.2), 'quantile': None},
    't_revision': {
      'warmup': part(0.1),
      'revise': part(0.1) + part(0.15 if quick else 0.5),
      **({'revision_tx': REVISION} if quick else {}),
    },
  }
  told = own.get(name, {})
  if takes(name, 'rate'):
    told = {**told, 'rate': round(float(cell.wrong.mean()), 3)}
  return told


def build(settings: Settings, config: Config, dataset: Dataset) -> Method:
  """The method with these settings."""
  model = script.network(
    settings.net,
    dataset.num_classes,
    dataset.train.x,
    dtype=config.dtype,
    standardize=config.standardize,
  )
  steps = len(dataset.train.labels) // settings.batch_size
  return methods.build(
    settings.method,
    model,
    settings.optimizer(steps),
    x=dataset.train.x,
    num_classes=dataset.num_classes,
    batch_size=settings.batch_size,
    **settings.arguments,
  )


def flag_f1(fitted: Fit, noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
  """F1 [runs] of ELR's flags against the labels that are truly wrong."""
  flagged = jax.vmap(mislabeled)(fitted.state, jnp.asarray(noisy))
  wrong = noisy != clean
  return 2 * (flagged & wrong).sum(1) / (flagged.sum(1) + wrong.sum(1))


if __name__ == '__main__':
  run(main, Config, __doc__ + script.listing(METHODS))
