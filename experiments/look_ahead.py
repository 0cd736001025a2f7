"""Teachers that look ahead, beside those whose average is quicker.

Two labels of each digit beside 1,200 images without one. A teacher, the moving
average of the weights, guesses on a weak view, and the student learns the
guesses on a strong one; the teacher is evaluated early, halfway and at last.

  mean_teacher   the average follows once a step (Tarvainen and Valpola, 2017)
  fst_deep       it follows K virtual steps first, FST-D (Du et al., 2022)
  fst_wide       the same side by side, each on a part of the batch, FST-W
  quick_average  no look ahead, but the average follows K + 1 times a step
  not_restored   FST-D as its official code has it: the virtual steps stay in
                 the momentum, which gathers K + 1 gradients a step

  python experiments/look_ahead.py

Out come a table, `results.jsonl` and the curves. `quick_average` says
whether the virtual steps, each of the cost of a real one, are worth it.
"""

import dataclasses
import math

import jax

from jnl import pseudo
from jnl.base import Method, Scalar, check
from jnl.data import Dataset, augment
from jnl.methods import fst
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
  'mean_teacher', 'fst_deep', 'fst_wide', 'quick_average', 'not_restored',
)  # fmt: skip
PARTS = {'at 20%': 0.2, 'at 50%': 0.5}
"""Of the training, after which the table has the accuracy too."""


WEAK, STRONG = script.NEAR_VIEWS


@dataclasses.dataclass(frozen=True)
class Config(script.Resumable):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(METHODS, 'some of those above')
  per_class: int = option(2, 'labeled rows of each class')
  look_ahead: int = option(3, 'K, virtual steps')
  decay: float = option(0.99, 'of the average, in one update')
  percent: float = option(100.0, 'of the guesses, by entropy, that count')
  weight: float = option(1.0, 'of the loss of guesses')
  steps: int = option(500, 'of training, to a whole epoch')
  batch_size: int = option(64, 'unlabeled rows in a step')
  labeled: int = option(20, 'labeled rows in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  seeds: int = option(10, 'runs, each with labeled rows of its own')
  out: str = option('results/look_ahead', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, two methods')


def main(config: Config) -> None:
  """Data -> few labels -> teachers -> fits and report."""
  with options():
    check_options(config)
    dataset = script.read(config)
    epochs = math.ceil(
      config.steps / max(1, len(dataset.train.labels) // config.batch_size)
    )
    if config.smoke:
      config = dataclasses.replace(
        config,
        methods=config.methods[:2],
        seeds=2,
        look_ahead=min(config.look_ahead, 1),
      )
      epochs = 2
    runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
    train, c = dataset.train, dataset.num_classes
    rows = [
      script.few_rows(train, config.per_class, c, key, 'per_class')
      for key in runs[:, 0]
    ]
    labeled = script.labeled_stream(train, rows, config.labeled)
    built = {name: build(name, config, dataset) for name in config.methods}
    out = report.own_folder(config.out, resume=config.resume)
    config = dataclasses.replace(config, out=out)
  comparison = Comparison(
    config.out,
    script.about('look_ahead', config),
    chosen_by=None,
    heads=('last epoch', ''),
    show={part: (part, report.mean_sd) for part in PARTS},
  )
  title = f'{config.dataset}, {config.per_class} labels a class'
  plot(comparison, f'{title}, seeds: {config.seeds}', 'accuracy of the teacher')

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        built[name],
        {'x': dataset.train.x, 'truth': dataset.train.labels},
        runs[:, 1],
        epochs=epochs,
        batch_size=config.batch_size,
        streams={'l': Stream(labeled, config.labeled, augment.views(WEAK))},
        augment=augment.views(WEAK, STRONG),
        held_out={'test': {'x': dataset.test.x, 'labels': dataset.test.labels}},
        checkpoint=script.checkpoint(config, name),
        log=log,
        label=name,
      )

  def done(name: str, one: Trained) -> Trained:
    curve = one.fit.history['test_accuracy']
    after = {
      part: curve[:, max(round(share * epochs), 1) - 1]
      for part, share in PARTS.items()
    }
    return record(comparison, name, one.also(after))

  compare(comparison, train_each(config.methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check(config.methods, 'methods must name at least one')
  check(0 <= config.decay < 1, f'decay must lie in [0, 1), got {config.decay}')
  for name in ('per_class', 'steps', 'batch_size', 'labeled'):
    size = getattr(config, name)
    check(size >= 1, f'{name} must be at least 1, got {size}')


def build(name: str, config: Config, dataset: Dataset) -> Method:
  """A student and its teacher."""
  x, c = dataset.train.x, dataset.num_classes
  decay: Scalar = config.decay
  if name == 'quick_average':
    decay = decay ** (config.look_ahead + 1)
  ahead = name in ('fst_deep', 'fst_wide', 'not_restored')
  policy = pseudo.low_entropy(config.percent)
  if config.percent == 100:  # with the rule one guess would still be left out
    policy = pseudo.everything()
  return fst(
    script.network(config.net, c, x, hidden=(128, 128)),
    script.optimizer('sgd', config.learning_rate),
    decay=lambda step: decay,
    look_ahead=config.look_ahead * ahead,
    mode='wide' if name == 'fst_wide' else 'deep',
    policy=policy,
    weight=config.weight,
    restore=name != 'not_restored',
  )


if __name__ == '__main__':
  run(main, Config, __doc__)
