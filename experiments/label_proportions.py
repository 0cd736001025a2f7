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

from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jnl import automata, losses, nets, noise
from jnl.base import (
  Array,
  Batch,
  Method,
  Model,
  Outputs,
  State,
  check,
  check_name,
  global_mean,
)
from jnl.data import Dataset, Examples, PerRun, from_arrays, load
from jnl.methods import (
  Decision,
  dllp,
  easy_llp,
  pseudo_labels,
  refine,
  similarity_graph,
  weak_em,
)
from jnl.neighbors import Graph, Metric
from jnl.steps import (
  bag_logits,
  mask_of,
  proportions_of,
  supervised,
  supervised_bags,
)
from jnl.train import (
  Fit,
  Predict,
  chosen_epoch,
  fit_many,
  option,
  parse,
  report,
  roc_auc,
)

Arrays = dict[str, np.ndarray]

METHODS = (
  'llp_bp',
  'dllp',
  'easy_llp',
  'dsq',
  'transport',
  'em',
  'bag_share',
  'supervised',
)


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  dataset: str = option('gaussians', 'gaussians, digits, or one in data-dir')
  data_dir: str = option('', 'folder of local files, see jnl/data/files.py')
  shift: float = option(2.5, 'of gaussians: between the classes, one column')
  positive: tuple[str, ...] = option(
    (), 'labels of the positive class; by default 1 of 2, and the odd of more'
  )
  methods: tuple[str, ...] = option((), 'some of these; by default all')
  bag_sizes: tuple[str, ...] = option(('8', '32'), 'instances in a bag')
  bags: str = option('random', 'random, order (of the file), or a feature, 0-')
  net: str = option('mlp', 'network: mlp (of these layers) or nets/names.py')
  hidden: tuple[str, ...] = option(('64',), 'widths of the layers of mlp')
  seeds: int = option(5, 'runs, each with its own bags')
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
  smoke: bool = option(False, 'seconds only: 2 seeds, 1 epoch, one bag size')


class Result(NamedTuple):
  """Of one method, [runs] each.

  Attributes:
    auc: at the last epoch.
    best: AUC at the epoch with the least loss of held-out bags.
    accuracy: at the last epoch.
    seconds: for all runs.
    labels: accuracy of the pseudo-labels, of those who make them.
    converged: whether propagation came to rest.
  """

  auc: np.ndarray
  best: np.ndarray
  accuracy: np.ndarray
  seconds: float
  labels: np.ndarray | None = None
  converged: np.ndarray | None = None


class Task(NamedTuple):
  """What the methods of one bag size share, with a leading axis of runs.

  Attributes:
    instances: `x` [n, ...], the same in all runs, and `labels` [runs, n].
    members: [runs, k, m], which of these each bag has; any in padding.
    train: bags: `x`, `mask`, `counts` and, for the ceiling, `instance_labels`.
    held_out: the arrays that are scored.
    keys: [runs].
  """

  instances: Arrays
  members: np.ndarray
  train: Arrays
  held_out: dict[str, dict[str, Any]]
  keys: Array


def main(config: Config) -> None:
  """Data -> bags -> methods -> fits and report, for each bag size."""
  check_options(config)
  methods = config.methods or METHODS
  if config.smoke:
    methods = config.methods or ('llp_bp', 'easy_llp', 'em', 'supervised')
    config = dataclasses.replace(
      config,
      seeds=2,
      epochs=1,
      batch_size=256,
      bag_sizes=config.bag_sizes[:1],
    )
  dataset = binary(config, read(config))
  print(f'{len(dataset.train.labels)} instances, {share(dataset):.1%} positive')
  rows: list[dict] = []
  curves: dict[str, list[np.ndarray]] = {}
  for size in map(int, config.bag_sizes):
    task = make_task(config, dataset, size)
    results: dict[str, Result] = {}
    for name in methods:
      results |= run(name, config, task)
    k, m = task.members.shape[1:]
    print(f'\n{config.dataset}, {k} bags of up to {m}, seeds: {config.seeds}\n')
    print(table(results))
    for name, result in results.items():
      rows += rows_of(name, result, config, size)
      curves.setdefault(name, []).append(result.auc)
  report.write_jsonl(f'{config.out}/results.jsonl', rows)
  report.plot_curves(
    f'{config.out}/auc.png',
    {name: np.stack(values, axis=1) for name, values in curves.items()},
    title=f'{config.dataset}, seeds: {config.seeds}',
    ylabel='test AUC, last epoch',
    x=[int(size) for size in config.bag_sizes],
    xlabel='bag size',
  )
  print(f'\nwrote results.jsonl and auc.png to {config.out}')


def check_options(config: Config) -> None:
  """Raises for what cannot be, before any work."""
  for method in config.methods:
    check_name('method', method, METHODS)
  check_name('metric', config.metric, get_args(Metric))
  check_name('decision', config.decision, get_args(Decision))
  for name in ('bag_sizes', 'positive', 'hidden'):
    values = getattr(config, name)
    check(
      all(value.isdigit() for value in values),
      f'{name} must be numbers, with commas, got {values}',
    )
  check(
    len(config.bag_sizes) >= 1 and min(map(int, config.bag_sizes)) >= 1,
    f'bag_sizes must be at least 1, got {config.bag_sizes}',
  )
  check(
    config.bags in ('random', 'order') or config.bags.isdigit(),
    f'bags must be random, order or a feature, got {config.bags!r}',
  )
  check(config.seeds >= 1, f'seeds must be at least 1, got {config.seeds}')
  check(config.rounds >= 1, f'rounds must be at least 1, got {config.rounds}')
  nets.build(config.net, 2)


# --- data --------------------------------------------------------------------


def read(config: Config) -> Dataset:
  """The data set of that name; few rows of it for a smoke test."""
  if config.dataset == 'gaussians':
    return gaussians(config.shift)
  dataset = load(config.dataset, data_dir=config.data_dir or None)
  if not config.smoke:
    return dataset
  few = lambda part: Examples(*(values[:600] for values in part))
  return dataset._replace(train=few(dataset.train), test=few(dataset.test))


def gaussians(shift: float, n: int = 2000, d: int = 4) -> Dataset:
  """Two classes, 3 to 7, of which one is shifted in the first column."""
  rng = np.random.default_rng(0)

  def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = (rng.random(n) < 0.3).astype(np.int32)
    x = rng.normal(size=(n, d)).astype(np.float32)
    x[:, 0] += shift * labels
    return x, labels

  # 2000 to learn from, 400 held out.
  train, test = draw(n * 6 // 5), draw(10_000)
  return from_arrays(*train, *test, name='gaussians', validation=1 / 6)


def binary(config: Config, dataset: Dataset) -> Dataset:
  """The data set with the labels 0 and 1."""
  two = dataset.num_classes == 2
  default = (1,) if two else range(1, dataset.num_classes, 2)
  positive = [int(label) for label in config.positive] or list(default)

  def relabeled(part: Examples) -> Examples:
    labels = np.isin(part.labels, positive).astype(np.int32)
    return part._replace(labels=labels)

  train, validation, test = map(
    relabeled, (dataset.train, dataset.validation, dataset.test)
  )
  check(
    0 < test.labels.mean() < 1,
    f'positive must leave both classes in the test set, got {config.positive}',
  )
  return Dataset(dataset.name, 2, train, validation, test)


def share(dataset: Dataset) -> float:
  """The share of positives in the training set: the bags tell it as well."""
  return float(dataset.train.labels.mean())


def bags_of(
  config: Config, part: Examples, size: int, key: Array
) -> noise.Bags:
  """All examples in bags."""
  n = len(part.labels)
  if config.bags == 'random':
    order = np.asarray(jax.random.permutation(key, n))
  elif config.bags == 'order':
    order = np.argsort(part.id)
  else:
    columns = part.x.reshape(n, -1)
    check(
      int(config.bags) < columns.shape[1],
      f'bags: there are {columns.shape[1]} features, got {config.bags}',
    )
    order = np.argsort(columns[:, int(config.bags)], kind='stable')
  return noise.cut_bags(order, size)


def arrays_of(part: Examples, bags: noise.Bags) -> Arrays:
  """Bags [k, m] with all that any method may be told of them."""
  labels = noise.rows_of_bags(part.labels, bags)
  return {
    'x': noise.rows_of_bags(part.x, bags),
    'mask': np.asarray(bags.mask),
    'counts': labels.sum(1),
    'instance_labels': labels,
  }


def per_run(arrays: Arrays) -> dict[str, Any]:
  """Arrays [runs, k, ...] that differ from run to run."""
  return {name: PerRun(values) for name, values in arrays.items()}


def make_task(config: Config, dataset: Dataset, size: int) -> Task:
  """Bags of each run, from its key."""
  runs = jax.random.split(jax.random.key(0), (config.seeds, 3))
  train, held_out = (
    [bags_of(config, part, size, key) for key in runs[:, i]]
    for i, part in enumerate((dataset.train, dataset.validation))
  )
  of_all = functools.partial(jax.tree.map, lambda *rows: np.stack(rows))
  # The whole test set is one bag: an AUC is no mean over batches.
  test = {'x': dataset.test.x[None], 'instance_labels': dataset.test.labels}
  test['instance_labels'] = test['instance_labels'][None]
  return Task(
    {
      'x': dataset.train.x,
      'labels': np.stack([dataset.train.labels] * config.seeds),
    },
    np.stack([np.where(bags.mask, bags.index, 0) for bags in train]),
    of_all(*[arrays_of(dataset.train, bags) for bags in train]),
    {
      'test': test,
      'accuracy': test,
      'validation': per_run(
        of_all(*[arrays_of(dataset.validation, bags) for bags in held_out])
      ),
    },
    runs[:, 2],
  )


# --- scores ------------------------------------------------------------------


def score_auc(predict: Predict, state: State, batch: Batch) -> Array:
  """AUC on the test set, one bag."""
  logits = predict(state, batch['x'][0]).logits
  return roc_auc(logits[:, 1] - logits[:, 0], batch['instance_labels'][0])


def score_accuracy(predict: Predict, state: State, batch: Batch) -> Array:
  """Accuracy on the test set, one bag."""
  prediction = jnp.argmax(predict(state, batch['x'][0]).logits, -1)
  return jnp.mean(prediction == batch['instance_labels'][0])


def bag_loss(predict: Predict, state: State, batch: Batch) -> Array:
  """How far mean predictions of held-out bags are from their proportions."""
  logits = bag_logits(predict, state, batch['x'])
  values = losses.dllp(logits, proportions_of(batch), mask_of(batch))
  return global_mean(values, batch['weight'])


SCORES = {
  'test': score_auc,
  'accuracy': score_accuracy,
  'validation': bag_loss,
}


# --- methods -----------------------------------------------------------------


def network(config: Config, shape: Sequence[int]) -> Model:
  """The network of instances."""
  net = nets.build(config.net, 2)
  if config.net == 'mlp':
    net = nets.MLP(2, tuple(map(int, config.hidden)))
  return nets.from_linen(net, shape)


def of_bags(name: str, config: Config, task: Task) -> Method:
  """A method that learns from bags."""
  model = network(config, task.instances['x'].shape[1:])
  tx = optimizer(config)

  def transport(logits: Array, batch: Batch) -> Array:
    counts = batch['counts']
    both = jnp.stack([jnp.sum(batch['mask'], axis=1) - counts, counts], -1)
    return losses.transport(logits, both, batch['mask'])

  def bag_share(logits: Array, batch: Batch) -> Array:
    soft = jnp.broadcast_to(proportions_of(batch)[:, None], logits.shape)
    return jnp.mean(losses.ce(logits, soft), axis=1, where=batch['mask'])

  if name == 'dllp':
    return dllp(model, tx)
  if name in ('easy_llp', 'dsq'):
    counts, sizes = task.train['counts'], task.train['mask'].sum(2)
    prior = counts[0].sum() / sizes[0].sum()
    loss = losses.dsq if name == 'dsq' else losses.easy_llp
    return easy_llp(model, tx, prior=prior, loss=loss)
  if name == 'em':
    return weak_em(
      model, tx, lambda z, b: automata.count(z, b['counts'], b['mask'])
    )
  per_bag = transport if name == 'transport' else bag_share
  return supervised_bags(per_bag, model, tx)


def optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW, as published for LLP-BP."""
  return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


def run(name: str, config: Config, task: Task) -> dict[str, Result]:
  """The results of a method; of LLP-BP those of every round."""
  start = time.perf_counter()
  if name == 'llp_bp':
    return llp_bp(config, task)
  if name == 'supervised':
    fitted = fit_instances(name, task.instances['labels'], config, task)
  else:
    fitted = fit_bags(name, of_bags(name, config, task), {}, config, task)
  return {name: result_of(fitted, start)}


def llp_bp(config: Config, task: Task) -> dict[str, Result]:
  """Rounds of graph, beliefs, labels, embedding; a classifier for each."""
  results, x = {}, task.instances['x']
  graphs = [graph_of(config, x.reshape(len(x), -1))] * config.seeds
  log_odds = [None] * config.seeds
  model = network(config, x.shape[1:])
  width = nets.feature_width(model, x[:1])
  head = nets.from_linen(nets.MLP(2, (64,)), (width,))
  method = refine(model, head, optimizer(config))
  for r in range(config.rounds):
    start, name = time.perf_counter(), f'llp_bp_{r}'
    found = [
      pseudo_labels(
        graphs[run],
        task.members[run],
        task.train['mask'][run],
        task.train['counts'][run],
        pair_strength=config.pair_strength,
        bag_strength=config.bag_strength,
        log_odds=log_odds[run],
        iterations=config.iterations,
        decision=cast(Decision, config.decision),
      )
      for run in range(config.seeds)
    ]
    labels = np.stack([one.labels for one in found])
    fitted = fit_instances(name, labels, config, task)
    right = (labels == task.instances['labels']).mean(1)
    rest = np.array([one.converged for one in found])
    results[name] = result_of(fitted, start)._replace(
      labels=right, converged=rest
    )
    if r + 1 < config.rounds:
      own = {'instance_labels': in_bags(labels, task)}
      refined = fit_bags(f'refine {r}', method, own, config, task)
      outputs = outputs_of(method, refined.state, x)
      graphs = [graph_of(config, features) for features, _ in outputs]
      if config.logits:
        log_odds = [np.clip(z[:, 1] - z[:, 0], -10, 10) for _, z in outputs]
  return results


def graph_of(config: Config, covariates: np.ndarray) -> Graph:
  """Who is like whom, [n, d]."""
  return similarity_graph(
    jnp.asarray(covariates),
    k=config.neighbors,
    metric=cast(Metric, config.metric),
    scale=config.scale or None,
  )


def fit_bags(
  label: str, method: Method, own: Arrays, config: Config, task: Task
) -> Fit:
  """Trains on bags, all runs; `own` replaces some of their arrays."""
  k, m = task.members.shape[1:]
  return fit_many(
    method,
    per_run({**task.train, **own}),
    task.keys,
    epochs=config.epochs,
    batch_size=min(k, max(1, config.batch_size // m)),
    held_out=task.held_out,
    scores=SCORES,
    label=label,
  )


def fit_instances(
  label: str, labels: np.ndarray, config: Config, task: Task
) -> Fit:
  """Trains a classifier on labels [runs, n] of instances."""
  x = task.instances['x']
  method = supervised(
    losses.ce, network(config, x.shape[1:]), optimizer(config)
  )
  return fit_many(
    method,
    {'x': x, 'labels': PerRun(labels)},
    task.keys,
    epochs=config.epochs,
    batch_size=config.batch_size,
    held_out=task.held_out,
    scores=SCORES,
    label=label,
  )


def in_bags(labels: np.ndarray, task: Task) -> np.ndarray:
  """Labels [runs, n] as [runs, k, m]."""
  bags = map(noise.Bags, task.members, task.train['mask'])
  return np.stack(list(map(noise.rows_of_bags, labels, bags)))


@functools.partial(jax.jit, static_argnums=0)
def predict(of_method: Predict, state: State, x: np.ndarray) -> Outputs:
  """Compiled once for a method, not once for each round."""
  return of_method(state, x)


def outputs_of(
  method: Method, states: State, x: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Of each run features and logits of all instances, some thousand at once."""

  def of_run(state: State) -> tuple[np.ndarray, np.ndarray]:
    parts = [
      predict(method.predict, state, x[i : i + 8192])[:2]
      for i in range(0, len(x), 8192)
    ]
    logits, features = (np.concatenate(p) for p in zip(*parts, strict=True))
    return features, logits

  runs = states.step.shape[0]
  return [
    of_run(jax.tree.map(lambda leaf, r=r: leaf[r], states)) for r in range(runs)
  ]


# --- report ------------------------------------------------------------------


def result_of(fitted: Fit, start: float) -> Result:
  """What the curves of the runs end with."""
  return Result(
    fitted.history['test'][:, -1],
    chosen_epoch(fitted, 'lower'),
    fitted.history['accuracy'][:, -1],
    time.perf_counter() - start,
  )


def table(results: dict[str, Result]) -> str:
  """AUC and accuracy of all methods."""
  header = [
    'method',
    'AUC, last epoch',
    'AUC, best by bag loss',
    'accuracy',
    'labels',
    'converged',
    'seconds',
  ]
  return report.table(
    header,
    [
      [
        name,
        report.mean_sd(result.auc),
        report.mean_sd(result.best),
        report.mean_sd(result.accuracy),
        '' if result.labels is None else report.mean_sd(result.labels),
        '' if result.converged is None else f'{result.converged.mean():.1f}',
        f'{result.seconds:.1f}',
      ]
      for name, result in results.items()
    ],
  )


def rows_of(name: str, result: Result, config: Config, size: int) -> list[dict]:
  """A row for each run."""
  skipped = (
    'methods', 'dataset', 'data_dir', 'bag_sizes', 'seeds', 'out', 'smoke'
  )  # fmt: skip
  fields = dataclasses.asdict(config)
  setting = {k: v for k, v in fields.items() if k not in skipped}
  about = {
    'experiment': 'label_proportions',
    'dataset': config.dataset,
    'setting': {**setting, 'bag_size': size},
    'metric': 'AUC',
  }
  columns = {
    column: getattr(result, column)
    for column in ('accuracy', 'labels', 'converged')
    if getattr(result, column) is not None
  }
  return report.result_rows(
    about, name, result.auc, result.best, result.seconds, columns
  )


if __name__ == '__main__':
  main(parse(Config, __doc__))
