"""Learning from label proportions: only the counts of bags are known.

LLP-BP (Havaldar et al., ICLR 2024, arXiv 2310.08056) goes in rounds: belief
propagation over similar instances and counts makes pseudo-labels, an embedding
is trained on these and on the counts, and the next round has its neighbors in
that embedding; `llp_bp_0` is a classifier trained on the labels of round 0, and
so on. Beside it, on the same bags:

  dllp         the mean prediction of a bag matched (Ardehaly, Culotta, 2017)
  easy_llp     the loss of instances without bias (Busa-Fekete et al., 2023)
  dsq          the same for the squared loss
  transport    self-made labels that hold the counts (Liu et al., 2021)
  em           exact likelihood of the counts (Chen et al., GLWS, 2024)
  bag_share    the proportion of its bag as soft label of an instance
  supervised   the label of every instance, as the ceiling

  python experiments/label_proportions.py               # two Gaussians
  python experiments/label_proportions.py --dataset adult --data-dir DIR \\
    --bag-sizes 8,32,128,512
  python experiments/label_proportions.py --dataset mnist --data-dir DIR \\
    --net strided_cnn --bag-sizes 16,128
  python experiments/label_proportions.py --bags 0      # bags of like feature 0

No label of an instance is used in training, nor to choose an epoch: that is
done by `losses.dllp` on held-out bags. Every training example is in one bag;
the last bag may be short. Scores are of single test examples: AUC and accuracy.
The columns `labels` (the accuracy of pseudo-labels on the training set) and
`converged` (the share of runs whose propagation came to rest) are for LLP-BP.
Out come a table for each bag size, `results.jsonl` and `auc.png`.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import automata, losses, methods, nets, noise, train
from jnl.base import Array, Batch, Method, Outputs, check, check_name
from jnl.data import Dataset, Examples, PerRun, from_arrays
from jnl.steps import mask_of, proportions_of
from jnl.train import Fit, Trained, option, report, scores, script

OF_BAGS = ('dllp', 'easy_llp', 'dsq', 'transport', 'em', 'bag_share')
METHODS = ('llp_bp', *OF_BAGS, 'supervised')


@dataclasses.dataclass(frozen=True)
class Config(script.Common):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option((), 'some of these; by default all')
  dataset: str = option('gaussians', 'gaussians, digits, or one in data-dir')
  shift: float = option(2.5, 'of gaussians: between the classes, one column')
  positive: tuple[str, ...] = option(
    (), 'labels; by default 1 of 2, or the odd'
  )
  bag_sizes: tuple[str, ...] = option(('8', '32'), 'instances in a bag')
  bags: str = option('random', 'random, order (of the file), or a feature, 0-')
  hidden: tuple[str, ...] = option(('64',), 'widths of the layers of mlp')
  epochs: int = option(40, 'passes over the bags, of every network')
  batch_size: int = option(128, 'instances in a step, in whole bags')
  learning_rate: float = option(2e-3, 'of AdamW')
  weight_decay: float = option(0.0, 'of AdamW')
  neighbors: int = option(5, 'of an instance, in the graph')
  metric: str = option('euclidean', 'that finds them: euclidean or cosine')
  scale: float = option(0.0, 'of the kernel; 0 for twice the median distance')
  pair_strength: float = option(1.0, 'lambda_s of the law of LLP-BP')
  bag_strength: float = option(1.0, 'lambda_b of the law of LLP-BP')
  rounds: int = option(2, 'of LLP-BP')
  iterations: int = option(1000, 'of belief propagation, at the most')
  decision: str = option('threshold', 'on pseudo-labels: threshold or counts')
  logits: bool = option(False, 'later rounds start from the network as well')
  out: str = option('results/label_proportions', 'folder for what comes out')
  smoke: bool = option(
    False, 'seconds only: 1 seed, 1 epoch, one bag size, two methods'
  )


SHOWN: dict[str, Any] = {k: (k, report.mean_sd) for k in ('accuracy', 'labels')}
SHOWN['converged'] = 'converged', lambda rest: f'{rest.mean():.1f}'
Told = list[dict[str, np.ndarray]]
"""Of each run, what `script.bag_arrays` tells of its bags."""
OnBags = Callable[[str, Method, Told], Fit]
"""(name, method, arrays) -> the method trained on bags."""
OnInstances = Callable[[str, Any], Fit]
"""(name, labels of instances) -> a classifier trained on them."""


def main(config: Config) -> None:
  """Data -> bags -> methods -> fits and report, for each bag size."""
  with train.options():
    sizes = check_options(config)
    dataset = read(config)
    d = dataset.train.x[0].size
    known = not config.bags.isdigit() or int(config.bags) < d
    check(known, f'bags: there are {d} features, got {config.bags}')
    out = report.own_folder(config.out)
    config = dataclasses.replace(config, out=out)
  if config.smoke:
    few = config.methods or ('llp_bp', 'supervised')
    config = dataclasses.replace(
      config, methods=few, seeds=1, epochs=1, batch_size=256
    )
    sizes = sizes[:1]
  share = dataset.train.labels.mean()
  print(f'{len(dataset.train.labels)} instances, {share:.1%} positive')
  report.put_plot(
    config.out,
    'auc.png',
    group='by_bag_size',
    column='test_roc_auc',
    title=f'{config.dataset}, seeds: {config.seeds}',
    ylabel='test AUC, last epoch',
    x=sizes,
    xlabel='bag size',
    scale='log',
  )
  last = []
  for size in sizes:
    comparison = compared(config, size)
    trained = train_all(config, dataset, size, comparison)
    train.compare(comparison, trained)
    last.append({name: t.last('test_roc_auc') for name, t in trained.items()})
  report.put_curves(
    config.out,
    {
      f'by_bag_size/{name}/test_roc_auc': np.stack(
        [auc[name] for auc in last], axis=1
      )
      for name in last[0]
    },
  )
  report.redraw(config.out)
  print(f'\nresults, curves and plots are in {config.out}')


def compared(config: Config, size: int) -> train.Comparison:
  """How methods are compared on bags of a size."""
  about = script.about('label_proportions', config, metric='AUC')
  setting = script.setting(config, skipped=('bag_sizes',))
  return train.Comparison(
    config.out,
    {**about, 'setting': {**setting, 'bag_size': size}},
    score='test_roc_auc',
    chosen_by='validation_bag_loss',
    better='lower',
    heads=('AUC, last epoch', 'AUC, best by bag loss'),
    show=SHOWN,
    group=f'bags_of_{size}',
  )


def check_options(config: Config) -> list[int]:
  """The bag sizes; raises for what cannot be, before any work."""
  script.check_common(config, METHODS)
  check_name('metric', config.metric, ('euclidean', 'cosine'))
  check_name('decision', config.decision, ('threshold', 'counts'))
  known = config.bags in ('random', 'order') or config.bags.isdigit()
  check(known, f'bags must be random, order or a feature, got {config.bags!r}')
  check(config.rounds >= 1, f'rounds must be at least 1, got {config.rounds}')
  sizes = script.numbers('bag_sizes', config.bag_sizes)
  check(min(sizes, default=0) >= 1, f'bag_sizes must be at least 1: {sizes}')
  return sizes


# --- data --------------------------------------------------------------------


def read(config: Config) -> Dataset:
  """The data set with the labels 0 and 1; few rows for a smoke test."""
  if config.dataset == 'gaussians':
    dataset = gaussians(config.shift, 600 if config.smoke else 2000)
  else:
    dataset = script.read(config)
    if config.smoke:
      few = lambda part: Examples(*(values[:600] for values in part))
      known, test = few(dataset.train), few(dataset.test)
      dataset = dataset._replace(train=known, test=test)
  positive = script.numbers('positive', config.positive)
  return script.binary(dataset, positive or range(1, dataset.num_classes, 2))


def gaussians(shift: float, n: int, d: int = 4) -> Dataset:
  """Two classes, 3 to 7, of which one is shifted in the first column."""
  rng = np.random.default_rng(0)

  def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = (rng.random(n) < 0.3).astype(np.int32)
    x = rng.normal(size=(n, d)).astype(np.float32)
    x[:, 0] += shift * labels
    return x, labels

  # n to learn from, a fifth of that held out.
  known, test = draw(n * 6 // 5), draw(10_000)
  return from_arrays(*known, *test, name='gaussians', validation=1 / 6)


def bags_of(config: Config, part: Examples, m: int, keys: Array) -> list:
  """All examples in bags of m, for each run: at random, or along a column."""
  n, column = len(part.labels), part.id
  if config.bags.isdigit():
    columns, own = part.x.reshape(n, -1).T, int(config.bags)
    column = columns[own]
  ordered = np.argsort(column, kind='stable')
  draw = lambda key: jax.random.permutation(key, n)
  orders = [draw(k) if config.bags == 'random' else ordered for k in keys]
  return [noise.cut_bags(order, m) for order in orders]


# --- training ----------------------------------------------------------------


def bag_loss(logits: Array, batch: Batch) -> Array:
  """How far the mean prediction of a bag is from its proportion, [b]."""
  return losses.dllp(logits, proportions_of(batch), mask_of(batch))


SCORES = {
  'test': scores.join(scores.roc_auc, scores.accuracy),
  'validation': scores.mean('bag_loss', bag_loss, scores.bags),
}


def train_all(
  config: Config, dataset: Dataset, m: int, comparison: train.Comparison
) -> dict[str, Trained]:
  """All methods on bags of one size, each run with bags of its own."""
  keys = jax.random.split(jax.random.key(0), (config.seeds, 3))
  bags = bags_of(config, dataset.train, m, keys[:, 0])
  held_out = bags_of(config, dataset.validation, m, keys[:, 1])
  told = [script.bag_arrays(dataset.train, one) for one in bags]
  validation = [script.bag_arrays(dataset.validation, one) for one in held_out]
  test = {'x': dataset.test.x, 'labels': dataset.test.labels}
  x, k = dataset.train.x, len(bags[0].mask)
  fit = functools.partial(
    train.fit_many,
    keys=keys[:, 2],
    epochs=config.epochs,
    held_out={'test': test, 'validation': script.per_run(validation)},
    scores=SCORES,
  )

  def on_bags(label: str, of_bags: Method, told: Told) -> Fit:
    b = min(k, max(1, config.batch_size // m))
    with script.logging(config, f'{label}_{m}') as log:
      data = script.per_run(told)
      return fit(of_bags, data, batch_size=b, label=label, log=log)

  method = methods.supervised(losses.ce, *learner(config, x))  # compiled once

  def on_instances(label: str, labels: Any) -> Fit:
    data = {'x': x, 'labels': labels}
    b = config.batch_size
    with script.logging(config, f'{label}_{m}') as log:
      return fit(method, data, batch_size=b, label=label, log=log)

  trained: dict[str, Trained] = {}
  for name in config.methods or METHODS:
    start = time.perf_counter()
    if name == 'llp_bp':
      own = llp_bp(config, dataset, bags, told, on_bags, on_instances)
    elif name == 'supervised':
      labels = np.stack([dataset.train.labels] * config.seeds)
      own = {name: result(on_instances(name, PerRun(labels)), start)}
    else:
      fitted = on_bags(name, of_bags(name, config, dataset), told)
      own = {name: result(fitted, start)}
    for one in own:
      trained[one] = train.record(comparison, one, own[one])
  print(f'\n{config.dataset}, {k} bags of up to {m}, seeds: {config.seeds}')
  return trained


def result(fitted: Fit, start: float, **columns: np.ndarray) -> Trained:
  """What came of a method, its accuracy among the columns."""
  trained = Trained(fitted, time.perf_counter() - start)
  return trained.also({'accuracy': trained.last('test_accuracy'), **columns})


def learner(config: Config, x: np.ndarray) -> tuple:
  """A network of instances, and AdamW, as published for LLP-BP."""
  hidden = script.numbers('hidden', config.hidden)
  model = script.network(config.net, 2, x, hidden=hidden)
  decay = config.weight_decay
  return model, optax.adamw(config.learning_rate, weight_decay=decay)


# --- methods -----------------------------------------------------------------


def of_bags(name: str, config: Config, dataset: Dataset) -> Method:
  """A method that learns from bags."""
  model, tx = learner(config, dataset.train.x)

  def transport(logits: Array, batch: Batch) -> Array:
    counts = batch['counts']
    both = jnp.stack([jnp.sum(batch['mask'], axis=1) - counts, counts], -1)
    return losses.transport(logits, both, batch['mask'])

  def bag_share(logits: Array, batch: Batch) -> Array:
    soft = jnp.broadcast_to(proportions_of(batch)[:, None], logits.shape)
    return jnp.mean(losses.ce(logits, soft), axis=1, where=batch['mask'])

  if name == 'dllp':
    return methods.dllp(model, tx)
  if name in ('easy_llp', 'dsq'):
    # Every instance is in a bag: the counts tell the prior.
    prior = dataset.train.labels.sum() / len(dataset.train.labels)
    return methods.easy_llp(model, tx, prior=prior, loss=getattr(losses, name))
  if name == 'em':
    infer = lambda z, batch: automata.count(z, batch['counts'], batch['mask'])
    return methods.weak_em(model, tx, infer)
  per_bag = transport if name == 'transport' else bag_share
  return methods.supervised_bags(per_bag, model, tx)


def llp_bp(
  config: Config,
  dataset: Dataset,
  bags: list[noise.Bags],
  told: Told,
  on_bags: OnBags,
  on_instances: OnInstances,
) -> dict[str, Trained]:
  """Rounds of graph, beliefs, labels, embedding; a classifier for each."""
  trained, x, runs = {}, dataset.train.x, range(config.seeds)
  how: Any = {'k': config.neighbors, 'metric': config.metric}
  how |= {'scale': config.scale or None}
  graph_of: Callable = functools.partial(methods.similarity_graph, **how)
  graphs = [graph_of(jnp.asarray(x.reshape(len(x), -1)))] * config.seeds
  log_odds: list[Any] = [None] * config.seeds
  model, tx = learner(config, x)
  width = nets.feature_width(model, x[:1])
  head = nets.from_linen(nets.MLP(2, (64,)), (width,))
  method = methods.refine(model, head, tx)
  predict = jax.jit(method.predict)  # compiled once, not in each round
  for r in range(config.rounds):
    start, name = time.perf_counter(), f'llp_bp_{r}'
    found = [
      methods.pseudo_labels(
        graphs[run],
        bags[run].index,
        bags[run].mask,
        told[run]['counts'],
        pair_strength=config.pair_strength,
        bag_strength=config.bag_strength,
        log_odds=log_odds[run],
        iterations=config.iterations,
        decision=cast(Any, config.decision),
      )
      for run in runs
    ]
    labels = np.stack([one.labels for one in found])
    right = (labels == dataset.train.labels).mean(1)
    rest = np.array([one.converged for one in found])
    fitted = on_instances(name, PerRun(labels))
    trained[name] = result(fitted, start, labels=right, converged=rest)
    if r + 1 < config.rounds:
      rows = map(noise.rows_of_bags, labels, bags)
      own = [{**arrays, 'instance_labels': next(rows)} for arrays in told]
      states = on_bags(f'refine {r}', method, own).state
      for run in runs:
        state = jax.tree.map(lambda leaf, run=run: leaf[run], states)
        logits, features, _ = outputs_of(predict, state, x)
        graphs[run] = graph_of(features)
        if config.logits:
          log_odds[run] = np.clip(logits[:, 1] - logits[:, 0], -10, 10)
  return trained


def outputs_of(predict: Callable, state: Any, x: np.ndarray) -> Outputs:
  """Of all instances, some thousand at once."""
  parts = [predict(state, x[i : i + 8192]) for i in range(0, len(x), 8192)]
  return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


if __name__ == '__main__':
  train.run(main, Config, __doc__)
