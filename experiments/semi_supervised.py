"""Few labels and many unlabeled examples: which guesses count, and how much.

Every method sees the same batches: some labeled rows, and seven times as many
without a label, of which a weak view is guessed on and a strong one learned.
The average of the weights is evaluated.

  supervised    cross-entropy on the labeled rows alone, weak view
  pseudo_label  sure guesses, learned on the weak view (Lee, 2013)
  uda           sure guesses, sharpened (Xie et al., 2020)
  fixmatch      sure guesses, as labels (Sohn et al., 2020)
  flexmatch     surer where a class has been learned (Zhang et al., 2021)
  freematch     as sure as the network is, by class (Wang et al., 2023)
  softmatch     all, the unsure ones less (Chen et al., 2023)
  adamatch      as sure as labeled rows, and aligned (Berthelot et al., 2022)
  dash          those of a small loss (Xu et al., 2021)
  shrinkmatch   and unsure ones among fewer classes (Yang et al., 2023)
  mix_match     the mean of two guesses, mixed examples (Berthelot et al., 2019)
  mean_teacher  the average of the weights, imitated (Tarvainen, Valpola, 2017)

  python experiments/semi_supervised.py                # digits, 2 of a class
  python experiments/semi_supervised.py --labels 40
  python experiments/semi_supervised.py --dataset fashion_mnist \\
    --data-dir DIR --labels 40 --examples 6000 --net strided_cnn \\
    --views crop_flip --steps 4000 --batch-size 56 --labeled 8 --seeds 3 \\
    --optimizer adam --learning-rate .001 \\
    --methods supervised,fixmatch,freematch
  python experiments/semi_supervised.py --dataset cifar10_small \\
    --data-dir DIR --labels 400 --net strided_cnn --views crop_flip --seeds 2 \\
    --steps 3000 --optimizer adam --learning-rate .001 \\
    --methods supervised,fixmatch,freematch

Out come a table, `results.jsonl` and plots: accuracy, and of the guesses the
share that is used (`used.png`; the table has its mean over the training) and
the share of these that is right (`correct.png`; the table has the last epoch),
which clean labels say, for the report alone. No epoch is chosen: there are no
labels to choose it by.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import methods, pseudo
from jnl.base import (
  Array,
  Batch,
  Key,
  Method,
  Metrics,
  Model,
  State,
  check,
  check_name,
)
from jnl.data import Dataset, augment
from jnl.methods import Settings, published, weak_strong
from jnl.teacher import averaged
from jnl.train import (
  Comparison,
  Fit,
  Stream,
  Trained,
  compare,
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

METHODS = (
  'supervised', 'pseudo_label', 'uda', 'fixmatch', 'flexmatch', 'freematch',
  'softmatch', 'adamatch', 'dash', 'shrinkmatch', 'mix_match', 'mean_teacher',
)  # fmt: skip

COLUMNS = {
  'used': 'guesses that count, of all',
  'correct': 'guesses that are right, of those that count',
}
"""What is known of guesses, and what plots call it."""


def contrast(keys: Key, x: Array) -> Array:
  """Images with their distance from the mean times .5 to 1.5."""
  draw = functools.partial(jax.random.uniform, minval=0.5, maxval=1.5)
  factor = jax.vmap(draw)(keys).reshape(-1, *(1,) * (x.ndim - 1))
  mean = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
  return (mean + factor * (x - mean)).astype(x.dtype)


shift = functools.partial(augment.pad_crop, padding=2, mode='constant')
VIEWS: dict[str, tuple[augment.Augmentation, augment.Augmentation]] = {
  'shift': (
    script.NEAR_VIEWS[0],
    augment.compose(script.near, contrast, script.hidden(3), script.faded(0.2)),
  ),
  'crop': (shift, augment.compose(shift, script.hidden(12))),
  'crop_flip': (script.crop_flip, script.STRONG_VIEWS['crop_flip']),
}
"""A weak view, and a strong one."""


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  labels: int = option(20, 'labeled rows, as many of each class')
  examples: int = option(0, 'first rows of the training set; 0 is all')
  views: str = option('shift', f'weak and strong: {", ".join(VIEWS)}')
  steps: int = option(1200, 'of training')
  batch_size: int = option(112, 'unlabeled rows in a step')
  labeled: int = option(16, 'labeled rows in a step')
  optimizer: str = option('sgd', 'sgd, with momentum .9, or adam')
  learning_rate: float = option(0.05, 'of it')
  threshold: float = option(0.95, 'of those that have one, but for uda: .8')
  momentum: float = option(0.99, 'of what methods remember; .999 in papers')
  ema: float = option(0.99, 'of the weights that are evaluated; .999 in papers')
  seeds: int = option(4, 'runs, each with labeled rows of its own')
  out: str = option('results/semi_supervised', 'folder for what comes out')
  published: bool = option(
    False, 'each method as published for the data set, as far as it is known'
  )
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two methods')


def main(config: Config) -> None:
  """Data -> few labels -> networks and methods -> fits and report."""
  if config.smoke:
    chosen = config.methods != METHODS
    few = config.methods if chosen else ('supervised', 'freematch')
    config = dataclasses.replace(config, methods=few, seeds=2)
  with options():
    check_options(config)
    dataset = script.first(script.read(config), config.examples)
    n = len(dataset.train.labels)
    ways = {name: settings_of(name, config, n) for name in config.methods}
    runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
    train, c = dataset.train, dataset.num_classes
    each = script.each_class(config.labels, c)
    rows = [script.few_rows(train, each, c, key) for key in runs[:, 0]]
    out = report.own_folder(config.out, resume=config.resume)
    config = dataclasses.replace(config, out=out)
  print(f'{config.labels} labels beside {n} examples')
  about = script.about('semi_supervised', config)
  if config.published:
    about['published'] = {name: way.source for name, way in ways.items()}
  comparison = Comparison(
    config.out,
    about,
    chosen_by=None,
    heads=('last epoch', ''),
  )
  draw_plots(config, comparison)

  def run_of(name: str) -> Fit:
    way = ways[name]
    weak, strong = VIEWS[way.views]
    second = weak if name in ('mix_match', 'mean_teacher') else strong
    labeled = script.labeled_stream(train, rows, way.labeled)
    stream = Stream(labeled, way.labeled, views(name, weak, weak))
    with script.logging(config, name) as log:
      return fit_many(
        build(way, config, dataset),
        {'x': dataset.train.x, 'truth': dataset.train.labels},
        runs[:, 1],
        epochs=way.epochs,
        batch_size=way.batch_size,
        streams={'l': stream},
        augment=views(name, weak, second),
        held_out={'test': {'x': dataset.test.x, 'labels': dataset.test.labels}},
        checkpoint=script.checkpoint(config, name),
        log=log,
        label=name,
      )

  def done(name: str, one: Trained) -> Trained:
    return record(comparison, name, one.also(guesses_of(one)))

  compare(comparison, train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def guesses_of(one: Trained) -> dict[str, np.ndarray]:
  """How many guesses were used in the whole training, and are right at last."""
  history, found = one.fit.history, {}
  if 'used' in history:
    shrunk = history.get('used_shrunk', np.float32(0))
    found['used'] = (history['used'] + shrunk).mean(1)
  if 'correct' in history:
    found['correct'] = one.last('correct')
  return found


def draw_plots(config: Config, comparison: Comparison) -> None:
  """Says what is to be drawn."""
  title = f'{config.dataset}, {config.labels} labels, seeds: {config.seeds}'
  plot(comparison, title, 'test accuracy')
  for column, what in COLUMNS.items():
    report.put_plot(
      config.out,
      f'{column}.png',
      group=comparison.group,
      column=column,
      title=title,
      ylabel=what,
    )


# --- options, labels and views ------------------------------------------------


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check_name('views', config.views, VIEWS)
  check_name('optimizer', config.optimizer, ('sgd', 'adam'))
  for name in ('labels', 'steps', 'batch_size', 'labeled'):
    size = getattr(config, name)
    check(size >= 1, f'{name} must be at least 1, got {size}')
  check(0 <= config.ema < 1, f'ema must lie in [0, 1), got {config.ema:g}')


def views(
  name: str, weak: augment.Augmentation, second: augment.Augmentation
) -> Callable[[Key, Batch], Batch]:
  """The views of a batch, as far as the method looks at them."""
  alone = name in ('supervised', 'pseudo_label')
  return augment.views(weak, *(() if alone else (second,)))


# --- methods -----------------------------------------------------------------


def settings_of(name: str, config: Config, n: int) -> Settings:
  """How a method is trained: as the options say, or as it was published."""
  if config.published:
    return published(name, config.dataset, 'missing', None)
  steps = max(1, n // config.batch_size)
  return Settings(
    source='',
    method=name,
    net=config.net,
    epochs=2 if config.smoke else math.ceil(config.steps / steps),
    batch_size=config.batch_size,
    labeled=config.labeled,
    learning_rate=config.learning_rate,
    weight_decay=5e-4,
    adam=config.optimizer == 'adam',
    views=config.views,
    arguments=arguments(name, config),
  )


def build(way: Settings, config: Config, dataset: Dataset) -> Method:
  """The method, evaluated by an average of its weights."""
  x, c = dataset.train.x, dataset.num_classes
  model = script.network(way.net, c, x, hidden=(128, 128))
  tx = way.optimizer(max(1, len(x) // way.batch_size))
  if way.method == 'supervised':
    method = supervised(model, tx)
  else:
    method = methods.build(
      *(way.method, model, tx),
      x=x,
      num_classes=c,
      batch_size=way.batch_size,
      **way.arguments,
    )
  if way.method == 'mean_teacher':
    return method
  decay = 0.999 if config.published else config.ema
  return averaged(method, decay=decay) if decay else method


def supervised(model: Model, tx: optax.GradientTransformation) -> Method:
  """The same batches, of which the labeled rows alone are learned."""
  nobody = pseudo.fixed(1.0, strict=True)
  method = weak_strong(model, tx, nobody, student='x')

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    state, metrics = method.step(state, batch, key)
    return state, {k: metrics[k] for k in ('loss', 'supervised')}

  return method._replace(step=step)


def arguments(name: str, config: Config) -> dict[str, Any]:
  """What a method is told beside its defaults: short runs, a few hundred rows.

  Weights that papers let rise in the first two fifths of the training do so
  here.
  """
  rise = 0.4 * config.steps
  found: dict[str, Any] = {}
  if name == 'supervised':
    return found
  if name == 'pseudo_label':
    found['weight'] = lambda step: jnp.minimum(step / rise, 1.0)
  if name == 'mix_match':
    found['ramp'] = rise
  if name == 'mean_teacher':  # it has an average of its own
    found['decay'] = config.ema
    found['weight'] = lambda step: 50 * jnp.minimum(step / rise, 1.0)
  if name != 'uda' and methods.takes(name, 'threshold'):
    found['threshold'] = config.threshold
  if methods.takes(name, 'momentum'):
    found['momentum'] = config.momentum
  return found


if __name__ == '__main__':
  run(main, Config, __doc__)
