"""Complementary labels: every row says one class that it is not.

A label that rules out one of ten classes says little; how it was drawn, a
matrix Q, may say a lot. By the same network, optimizer and labels:

  ce                   cross-entropy of the true labels, the ceiling
  scl_nl, scl_exp      surrogates of the label alone (Chou et al., 2020)
  fwd                  the likelihood of the label, through Q (Yu et al., 2018)
  ure                  the unbiased risk through the inverse of Q (Ishida et
                       al., 2019), and what is done about parts of it that fall
                       below zero:
  nn_class, ga_class   clipped, or ascended, by true class, as in theory
  nn_label, ga_label   the same by complementary label, as in later code
  mcl_mae, mcl_exp     for several labels a row (Feng et al., 2020)
  mcl_log              the same, for one label scl_nl
  l_w, op, pc          discriminative, order preserving, pairwise (see losses)
  scarce               a classifier of each class (Wang et al., 2024)

  python experiments/complementary_labels.py                # digits, one a row
  python experiments/complementary_labels.py --bias         # some preferred
  python experiments/complementary_labels.py --noise .0393  # wrong, as people
  python experiments/complementary_labels.py --bias --noise .1
  python experiments/complementary_labels.py --labels 4     # four a row

With `--noise` so many labels name the true class. If a tenth does and there is
no bias, all ten classes are named alike, and labels say nothing.

Q is known, as are the shares of the labels in the training set; `--noise` is in
Q. Out come a table, `results.jsonl` and `accuracy.png`. An epoch is chosen by
`losses.forward` of held-out complementary labels, never by true ones.
"""

from collections.abc import Callable
import dataclasses
import functools

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
  check,
  global_mean,
)
from jnl.data import Examples
from jnl.steps import from_loss, model_keys, training_pass
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

MOST = 1e4
"""The condition of a Q whose inverse is of use."""
Loss = Callable[[Array, Batch, Array], Array]
"""Of logits, the batch and Q: the loss of the batch, []."""


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  bias: bool = option(False, 'labels prefer a third of the classes: .75, .24')
  noise: float = option(0.0, 'share of labels that name the true class')
  labels: int = option(1, 'complementary labels of each row')
  learning_rate: float = option(1e-3, 'of Adam')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(100, 'examples in a step')
  seeds: int = option(3, 'runs, each with its own labels')
  out: str = option('results/complementary_labels', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, few methods')


def main(config: Config) -> None:
  """Data -> complementary labels -> networks and methods -> fits and report."""
  with options():
    check_options(config)
    dataset = script.read(config)
    c = dataset.num_classes
    check(config.labels < c, f'labels must be below {c}, got {config.labels}')
    if config.smoke:
      few = config.methods or ('scl_nl', 'fwd', 'ga_label')
      config = dataclasses.replace(config, methods=few, seeds=2, epochs=2)
    q = matrix(config, c)
    runs = jax.random.split(jax.random.key(0), (config.seeds, 2))
    train, held_out = (
      script.per_run([weaken(config, part, q, key) for key in runs[:, i]])
      for i, part in enumerate((dataset.train, dataset.validation))
    )
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  describe(train['excluded'].values, dataset.train.labels, q)
  names = config.methods or tuple(LOSSES)
  model = script.network(config.net, c, dataset.train.x, hidden=(128,))
  tx = script.optimizer('adam', config.learning_rate)
  comparison = Comparison(
    config.out,
    script.about('complementary_labels', config),
    chosen_by='validation_weak_loss',
    better='lower',
    heads=('last epoch', 'best by weak labels'),
  )
  plot(
    comparison,
    f'{config.dataset}, complementary labels, seeds: {config.seeds}',
    'test accuracy',
  )

  def run_of(name: str) -> Fit:
    with script.logging(config, name) as log:
      return fit_many(
        method(LOSSES[name], q, model, tx),
        {'x': dataset.train.x, 'labels': dataset.train.labels, **train},
        runs[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        held_out={
          'test': {'x': dataset.test.x, 'labels': dataset.test.labels},
          'validation': {'x': dataset.validation.x, **held_out},
        },
        scores={'validation': weak_loss(q)},
        log=log,
        label=name,
      )

  done = functools.partial(record, comparison)
  compare(comparison, train_each(dict.fromkeys(names), run_of, done))
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  script.check_common(config, LOSSES)
  check(0 <= config.noise < 1, f'noise must lie in [0, 1), got {config.noise}')
  check(config.labels >= 1, f'labels must be at least 1, got {config.labels}')
  check(
    config.labels == 1 or not (config.bias or config.noise),
    'labels: several a row are drawn evenly and are right, without bias and '
    'noise',
  )


# --- the labels ---------------------------------------------------------------


def matrix(config: Config, c: int) -> Array:
  """Q, the same in all runs, if labels of it say anything."""
  if config.bias:
    key = jax.random.key(1)
    q = noise.complementary_biased(key, c, miss=config.noise)
  else:
    q = noise.complementary(c, miss=config.noise)
  condition = np.linalg.cond(np.asarray(q, np.float64))
  check(
    condition < MOST,
    f'noise: with {config.noise} of the labels naming the true class, they say '
    f'next to nothing; the condition of Q is {condition:.3g}',
  )
  return q


def weaken(
  config: Config, part: Examples, q: Array, key: Key
) -> dict[str, np.ndarray]:
  """The sets of complementary labels, and the shares of each class in them."""
  c = len(q)
  if config.labels > 1:
    excluded = noise.complementary_sets(key, part.labels, c, config.labels)
  else:
    labels = noise.corrupt(key, part.labels, q).labels
    excluded = labels[:, None] == jnp.arange(c)
  shares = jnp.mean(soft(excluded), axis=0)
  prior = np.broadcast_to(np.asarray(shares), excluded.shape)
  return {'excluded': np.asarray(excluded), 'prior': prior}


def soft(excluded: Array) -> Array:
  """A label [..., c] that the classes of a set share."""
  size = jnp.sum(excluded, axis=-1, keepdims=True)
  return excluded / jnp.maximum(size, 1).astype(jnp.float32)


def describe(excluded: np.ndarray, true: np.ndarray, q: Array) -> None:
  """Prints what the labels are like."""
  wrong = np.take_along_axis(excluded, true[None, :, None], 2).mean()
  print(
    f'{len(true)} rows, {excluded.sum(2).mean():.0f} complementary labels each;'
    f' of {wrong:.1%} one is the true class; condition of Q '
    f'{np.linalg.cond(np.asarray(q, np.float64)):.3g}'
  )


def weak_loss(q: Array) -> scores.Score:
  """How likely held-out complementary labels are."""
  return scores.mean(
    'weak_loss',
    lambda outputs, batch: losses.forward(
      outputs.logits, soft(batch['excluded']), q
    ),
  )


# --- methods ------------------------------------------------------------------


def of_label(loss: Callable[[Array, Array], Array]) -> Loss:
  """The mean of a loss of each example."""
  return lambda logits, batch, q: global_mean(
    loss(logits, soft(batch['excluded'])), batch['weight']
  )


def of_set(loss: Callable[[Array, Array], Array]) -> Loss:
  return lambda logits, batch, q: global_mean(
    loss(logits, batch['excluded']), batch['weight']
  )


def of_risks(correct: Callable[[Array], Array], by: str) -> Loss:
  """What is made of the risks of the batch."""

  def loss(logits: Array, batch: Batch, q: Array) -> Array:
    weight = batch['weight']
    # The same in all rows of the data set.
    prior = jax.vmap(global_mean, (-1, None))(batch['prior'], weight)
    return correct(
      losses.complementary_risks(
        logits, soft(batch['excluded']), q, prior, weight, by=by
      )
    )

  return loss


LOSSES: dict[str, Loss] = {
  'ce': lambda logits, batch, q: global_mean(
    losses.ce(logits, batch['labels']), batch['weight']
  ),
  'scl_nl': of_label(losses.negative_learning),
  'scl_exp': of_label(losses.scl_exp),
  'fwd': lambda logits, batch, q: global_mean(
    losses.forward(logits, soft(batch['excluded']), q), batch['weight']
  ),
  'ure': of_risks(jnp.sum, 'class'),
  'nn_class': of_risks(losses.clip_risks, 'class'),
  'ga_class': of_risks(losses.ascend_risks, 'class'),
  'nn_label': of_risks(losses.clip_risks, 'label'),
  'ga_label': of_risks(losses.ascend_risks, 'label'),
  'mcl_mae': of_set(losses.mcl_mae),
  'mcl_exp': of_set(losses.mcl_exp),
  'mcl_log': of_set(losses.mcl_log),
  'l_w': of_label(losses.discriminative),
  'op': of_label(functools.partial(losses.order_preserving, offset=1e-6)),
  'pc': of_label(losses.pairwise_comparison),
  'scarce': lambda logits, batch, q: losses.scarce(
    logits, soft(batch['excluded']), batch['weight']
  ),
}


def method(
  loss: Loss, q: Array, model: Model, tx: optax.GradientTransformation
) -> Method:
  """Trains on complementary labels as `supervised` does on true ones."""

  def loss_fn(
    params: Params, state: State, batch: Batch, key: Key
  ) -> tuple[Array, Aux]:
    outputs, stats = training_pass(
      *(model, params, state.stats, batch['x']),
      *(model_keys(key, batch), batch['weight']),
    )
    return loss(outputs.logits, batch, q), Aux(stats)

  return from_loss(loss_fn, model, tx)


if __name__ == '__main__':
  run(main, Config, __doc__)
