"""Imprecise labels: noisy, partial, missing, or all of these in one batch.

Imprecise label learning (Chen et al., ILL, NeurIPS 2024, arXiv 2305.12715)
treats every label as evidence about a latent one, and learns by EM from two
views, beside what is usual for each kind of label, on the same labels:

  ce            cross-entropy, uniform over the candidates
  cc            likelihood of the candidates (Feng et al., 2020)
  proden        confidences that follow the predictions (Lv et al., 2020)
  pseudo_label  cross-entropy against the likeliest candidate (Lee, 2013)
  fixmatch      of missing labels, sure guesses on the weak view (Sohn et al.,
                2020), and
  freematch     as sure as the network is (Wang et al., 2023)
  *_strong      the same on the strong view, since part of what ILL gains is
                gained by augmentation alone

  python experiments/imprecise_labels.py                   # digits, 40% noise
  python experiments/imprecise_labels.py --setting partial  # q = .5
  python experiments/imprecise_labels.py --setting semi     # 40 labels
  python experiments/imprecise_labels.py --setting mixed    # a third of each
  python experiments/imprecise_labels.py --setting partial_noisy \\
    --dataset fashion_mnist --views crop --net strided_cnn --epochs 20 --seeds 1

`mixed` makes a third of the rows noisy, a third partial and a third unlabeled;
`partial_noisy` has candidate sets that miss the truth at the noise rate. Every
setting has the recipe below, not tuned. Out come a table, `results.jsonl` and
`accuracy.png`. An epoch is chosen by how many predictions are candidates of
held-out rows, never by clean labels.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import losses, noise
from jnl.base import (
  Array,
  Aux,
  Batch,
  Key,
  Method,
  Model,
  Params,
  State,
  check_name,
  data_shards,
  global_mean,
)
from jnl.data import Dataset, Examples, augment
from jnl.methods import (
  fixmatch,
  freematch,
  ill_mixed,
  ill_noisy,
  ill_partial,
  ill_semi,
  proden,
)
from jnl.steps import from_loss, model_keys, training_pass
from jnl.teacher import averaged
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

METHODS = {
  'noisy': ('ill', 'ce', 'ce_strong'),
  'partial': ('ill', 'ce', 'cc', 'cc_strong', 'proden', 'pseudo_label'),
  'semi': ('ill', 'ce', 'ce_strong', 'pseudo_label', 'fixmatch', 'freematch'),
  'mixed': ('ill', 'ce', 'cc', 'cc_strong', 'proden', 'pseudo_label'),
  'partial_noisy': ('ill', 'ce', 'cc', 'cc_strong', 'proden', 'pseudo_label'),
}
"""What differs in each setting: of single candidates cc and the like are ce."""


class Recipe(NamedTuple):
  """How a setting is trained unless options say otherwise."""

  hidden: tuple[int, ...]
  optimizer: str
  learning_rate: float
  epochs: int
  rate: float = 0.4
  ratio: float = 0.5


RECIPES = {
  'noisy': Recipe((256, 256), 'sgd', 0.05, 100),
  'partial': Recipe((256,), 'adam', 1e-3, 40),
  'semi': Recipe((256,), 'adam', 1e-3, 100),
  'mixed': Recipe((256, 256), 'sgd', 0.05, 100),
  'partial_noisy': Recipe((256, 256), 'sgd', 0.05, 100, rate=0.2, ratio=0.1),
}
shift = functools.partial(augment.pad_crop, padding=2)
fade = functools.partial(augment.gaussian_noise, scale=0.1)
noise_view = script.noise_view
square = functools.partial(augment.cutout, size=8)
crop_view = augment.compose(shift, square, fade)
strong_view = script.STRONG_VIEWS['crop_flip']
VIEWS = {
  'noise': augment.views(augment.compose(), noise_view, noise_view),
  'crop': augment.views(shift, crop_view, crop_view),
  'crop_flip': augment.views(script.crop_flip, strong_view, strong_view),
}
"""A weak view and two strong ones, of which the second serves `partial`."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  setting: str = option('noisy', f'kind of labels: {", ".join(METHODS)}')
  methods: tuple[str, ...] = option((), 'some of those for this setting')
  rate: float = option(
    -1.0, 'of wrong labels, symmetric: by default .4, partial_noisy .2'
  )
  ratio: float = option(
    -1.0, 'at which wrong classes are candidates: .5, partial_noisy .1'
  )
  labels: int = option(40, 'labeled rows of `semi`, as many of each class')
  views: str = option('noise', f'strong views: {", ".join(VIEWS)}')
  optimizer: str = option('', "sgd or adam; by default the setting's")
  learning_rate: float = option(0.0, "by default the setting's")
  epochs: int = option(0, "passes over the training set; 0: the setting's")
  batch_size: int = option(100, 'examples in a step')
  scale: float = option(1.0, 'ILL: sharpness of the learned transition matrix')
  ema: float = option(0.0, 'evaluate an average of the weights, .999 say')
  seeds: int = option(4, 'runs, each with its own labels')
  out: str = option('results/imprecise_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, ill and ce')


def main(config: Config) -> None:
  """Data -> imprecise labels -> networks and methods -> fits and report."""
  with options():
    check_options(config)
    config = with_recipe(config)
    dataset = script.read(config)
    runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
    train, held_out = (
      script.per_run(
        [weaken(config, part, dataset.num_classes, key) for key in runs[:, i]]
      )
      for i, part in enumerate((dataset.train, dataset.validation))
    )
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  describe({k: v.values for k, v in train.items()}, dataset.train.labels)
  names = config.methods or METHODS[config.setting]
  methods = {name: build(name, config, dataset) for name in names}
  comparison = Comparison(
    config.out,
    script.about('imprecise_labels', config),
    chosen_by='validation_coverage',
    heads=('last epoch', 'best by candidates hit'),
  )

  plot(
    comparison,
    f'{config.dataset}, {config.setting} labels, seeds: {config.seeds}',
    'test accuracy',
  )

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        methods[name],
        {'x': dataset.train.x, **train},
        runs[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out={
          'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
          'validation': {
            'x': dataset.validation.x,
            'candidates': held_out['candidates'],
          },
        },
        scores={'validation': scores.coverage},
        augment=VIEWS[config.views],
        log=log,
        label=name,
      )

  done = functools.partial(record, comparison)
  compare(comparison, train_each(methods, run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  check_name('setting', config.setting, METHODS)
  script.check_common(config, METHODS[config.setting])
  check_name('views', config.views, VIEWS)
  if config.optimizer:
    check_name('optimizer', config.optimizer, ('sgd', 'adam'))


def with_recipe(config: Config) -> Config:
  """The config with what was left open filled in."""
  recipe = RECIPES[config.setting]
  config = dataclasses.replace(
    config,
    optimizer=config.optimizer or recipe.optimizer,
    learning_rate=config.learning_rate or recipe.learning_rate,
    epochs=config.epochs or recipe.epochs,
    rate=recipe.rate if config.rate == -1 else config.rate,
    ratio=recipe.ratio if config.ratio == -1 else config.ratio,
  )
  if config.smoke:
    few = config.methods or ('ill', 'ce')
    config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
  return config


# --- what is left of the labels ----------------------------------------------


def weaken(config: Config, part: Examples, c: int, key: Array) -> Arrays:
  """What methods may see of the labels, under the names they read.

  Everything is a set of candidates; where it is `noisy` the set may miss the
  truth. `labels` are those of single candidates, `labeled` where the set is not
  that of all classes.
  """
  name, clean = config.setting, part.labels
  key_noise, key_sets, key_kind = jax.random.split(key, 3)
  noisy = noise.corrupt(key_noise, clean, noise.symmetric(c, config.rate))
  single = np.eye(c, dtype=bool)[noisy.labels]
  sets = noise.candidate_sets(key_sets, clean, c, config.ratio).candidates
  missed = noise.noisy_candidate_sets(
    key_sets, clean, c, config.ratio, config.rate
  ).candidates
  everything = np.ones_like(single)
  if name == 'semi':
    per_class = max(1, config.labels // c)
    order = jax.random.permutation(key_kind, len(clean))
    kind = np.where(script.per_class(clean, per_class, order), 0, 3)
  elif name == 'mixed':
    kind = np.asarray(jax.random.randint(key_kind, clean.shape, 1, 4))
  else:
    of_all = {'noisy': 1, 'partial': 2, 'partial_noisy': 4}[name]
    kind = np.full(clean.shape, of_all)
  kinds = [np.eye(c, dtype=bool)[clean], single, sets, everything, missed]
  candidates = np.stack(kinds)[kind, np.arange(len(clean))]
  return {
    'candidates': candidates,
    'noisy': np.isin(kind, (1, 4)),
    'labels': candidates.argmax(1).astype(np.int32),
    'labeled': ~candidates.all(1),
  }


def describe(train: Arrays, clean: np.ndarray) -> None:
  """Prints how imprecise the labels are."""
  sets, labeled = train['candidates'], train['labeled']
  right = np.take_along_axis(sets, clean[None, :, None], 2)[..., 0]
  print(
    f'{len(clean)} rows, {labeled.mean():.1%} labeled, by '
    f'{sets.sum(2)[labeled].mean():.2f} candidates, which hold the truth in '
    f'{right[labeled].mean():.1%}'
  )


# --- methods -----------------------------------------------------------------


def build(name: str, config: Config, dataset: Dataset) -> Method:
  """The method of that name."""
  c, n = dataset.num_classes, len(dataset.train.labels)
  hidden = RECIPES[config.setting].hidden
  model = script.network(config.net, c, dataset.train.x, hidden=hidden)
  tx = script.optimizer(config.optimizer, config.learning_rate, 5e-4)
  if name == 'ill':
    method = ill(config, model, tx, c)
  elif name == 'proden':
    shards = data_shards(n, config.batch_size)
    method = proden(model, tx, num_examples=n, num_classes=c, shards=shards)
  elif name == 'fixmatch':
    method = fixmatch(model, tx)
  elif name == 'freematch':
    method = freematch(model, tx, num_classes=c)
  else:
    view = 'x_strong' if name.endswith('_strong') else 'x'
    method = from_candidates(
      BASELINES[name.removesuffix('_strong')], model, tx, view
    )
  return averaged(method, decay=config.ema) if config.ema else method


def ill(
  config: Config, model: Model, tx: optax.GradientTransformation, c: int
) -> Method:
  """The configuration of ILL for the setting."""
  noise_tx = optax.sgd(config.learning_rate)
  return {
    'noisy': lambda: ill_noisy(
      model, tx, noise_tx, num_classes=c, scale=config.scale
    ),
    'partial': lambda: ill_partial(model, tx),
    'semi': lambda: ill_semi(model, tx, num_classes=c),
    'mixed': lambda: ill_mixed(
      model, tx, noise_tx, num_classes=c, scale=config.scale
    ),
    'partial_noisy': lambda: ill_mixed(
      model, tx, noise_tx, num_classes=c, scale=config.scale
    ),
  }[config.setting]()


def ce(logits: Array, candidates: Array) -> Array:
  """Uniform over the candidates; nothing from a row without a label."""
  labeled = ~jnp.all(candidates, axis=-1)
  return jnp.where(labeled, losses.uniform_candidates(logits, candidates), 0)


def pseudo_label(logits: Array, candidates: Array) -> Array:
  """Against the likeliest candidate; without a label, once it has 95%."""
  confidence = losses.proden_confidence(logits, candidates)
  labeled = ~jnp.all(candidates, axis=-1)
  sure = labeled | (jnp.max(confidence, axis=-1) >= 0.95)
  return jnp.where(sure, losses.ce(logits, jnp.argmax(confidence, axis=-1)), 0)


BASELINES = {'ce': ce, 'cc': losses.cc, 'pseudo_label': pseudo_label}


def from_candidates(
  loss: Callable[[Array, Array], Array],
  model: Model,
  tx: optax.GradientTransformation,
  view: str,
) -> Method:
  """Trains on `candidates` as `supervised` does on labels."""

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    weight, keys = batch['weight'], model_keys(key, batch)
    outputs, stats = training_pass(
      model, params, state.stats, batch[view], keys, weight
    )
    per_example = loss(outputs.logits, batch['candidates'])
    return global_mean(per_example, weight), Aux(stats)

  return from_loss(loss_fn, model, tx)


if __name__ == '__main__':
  run(main, Config, __doc__)
