"""Which labels are wrong: a table, a list, and a page to look at them.

Confident learning (Northcutt et al., JAIR 2021, arXiv 1911.00068) on labels and
out-of-sample probabilities from a file, or on a data set, with noise that is
known and probabilities that are made here, out of fold:

  python experiments/label_audit.py --npz mine.npz --rule both
  python experiments/label_audit.py                        # digits, 20% wrong
  python experiments/label_audit.py --noise pair_flip --method elr
  python experiments/label_audit.py --dataset cifar10_jpg --data-dir DIR \\
    --noise cifar10n_worse --rows 10000 --net strided_cnn --standardize

The file has `labels` [n] and `pred_probs` [n, c], and what there is of `images`
[n, h, w] or [n, h, w, 1, 3 or 4], `texts` [n], `features` [n, d], in which
near-duplicates and outliers are looked for (by default the pixels), and
`class_names` [c]. Nothing is unpickled.

Out come a table of all rules, `results.jsonl` with a line for each,
`issues.csv` with the labels that one of them takes, the worst first, and
`audit.html`, a page without scripts that shows them. Rows of a data set are
those of its training set as published, without those kept for a test. Where it
is known which labels are wrong, a second table, and further lines, say how well
scores rank them: those of the page, out of sample, and what the runs that were
trained on a label make of it, their loss and the memory of ELR.
"""

import collections
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnl import audit, data, losses, train
from jnl.base import Method, State, check, check_name, data_shards
from jnl.methods import elr, mislabeled
from jnl.steps import supervised
from jnl.train import option, page, report, script
from jnl.train.scores import average_precision_of, roc_auc_of

RULES = (
  'prune_by_noise_rate', 'prune_by_class', 'both', 'confident_learning',
  'predicted_neq_given', 'low_normalized_margin', 'low_self_confidence',
)  # fmt: skip
LOSSES = {'ce': losses.ce, 'gce': losses.gce, 'sce': losses.sce}
EARLY = 5
"""The early loss is that after one of so many parts of the epochs."""


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings; every field is an option of the command line."""

  npz: str = option('', 'file of labels and pred_probs, instead of a data set')
  rule: str = option(RULES[0], f'whose labels are listed: {", ".join(RULES)}')
  dataset: str = option('digits', 'digits, a set of TFDS, or one in data-dir')
  data_dir: str = option('', 'folder of local files, see jnl.data.load')
  rows: int = option(0, 'the first so many rows of it alone; 0 is all')
  noise: str = option('symmetric', f'one of {", ".join(data.NOISES)}')
  rate: float = option(0.2, 'noise rate, in [0, 1]; people have their own')
  method: str = option('ce', f'what is trained: {", ".join(LOSSES)} or elr')
  net: str = option('mlp', 'network: mlp or another name of nets.build')
  standardize: bool = option(False, 'channels to mean 0 and deviation 1')
  folds: int = option(5, 'models, each trained without its part of the rows')
  epochs: int = option(20, 'passes over a training set')
  batch_size: int = option(100, 'examples in a step')
  learning_rate: float = option(0.05, 'of SGD with momentum .9')
  seed: int = option(0, 'of noise, folds and training')
  out: str = option('results/label_audit', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 folds, 2 epochs')


class Known(NamedTuple):
  """Which labels [n] are wrong, and scores [n] by name, high for suspicious."""

  wrong: np.ndarray
  scores: dict[str, np.ndarray]


def main(config: Config) -> None:
  """Probabilities -> rules and scores -> tables, list and page."""
  if config.smoke:
    config = dataclasses.replace(config, folds=2, epochs=2)
  with train.options():
    rule: Any = config.rule
    check_name('rule', rule, RULES)
    given, known = read(config.npz) if config.npz else learn(config)
    both = given.labels, given.pred_probs
    rules = [by_rule(each, given, known) for each in RULES]
    ranks = by_score(given, known) if known else []
    issues = audit.rank_label_issues(*both, filter_by=rule)
    quality = audit.label_quality(*both)
    counts = audit.confident_joint(*both).counts
    sizes = np.bincount(given.labels, minlength=len(counts))
    groups, typical = neighborhood(given)
    out = report.own_folder(config.out)
  about = about_of(config)
  page.audit_page(
    f'{out}/audit.html',
    given,
    issues,
    quality,
    audit.estimate_joint(counts, sizes),
    groups=groups,
    typical=typical,
    title=f'Labels of {about["dataset"]}',
    about={**about['setting'], 'rule': rule},
  )
  page.write_issues(
    f'{out}/issues.csv', given, issues, quality, rule=rule, groups=groups
  )
  lines = [{**about, **row} for row in rules + ranks]
  report.write_jsonl(f'{out}/results.jsonl', lines)
  show(rules)
  if known:
    print(f'\n{known.wrong.mean():.1%} of {len(known.wrong)} are wrong\n')
    show(ranks)
  print(f'\nthe page, the list and the tables are in {out}')


# --- labels and probabilities -------------------------------------------------


def read(path: str) -> tuple[page.Labeled, None]:
  """Those of a file; which labels are wrong, nobody knows."""
  return page.read_labeled(path), None


def learn(config: Config) -> tuple[page.Labeled, Known]:
  """Noisy labels of a data set, and out-of-fold probabilities."""
  check_name('method', config.method, (*LOSSES, 'elr'))
  check(config.rows >= 0, f'rows must not be negative, got {config.rows}')
  folder, first = config.data_dir or None, slice(config.rows or None)
  dataset = data.load(config.dataset, data_dir=folder)
  keys = jax.random.split(jax.random.key(config.seed))
  noise = config.noise, config.rate
  noisy = data.noisy(keys[0], dataset, *noise, data_dir=folder)
  x = data.published_order(dataset).x[first]
  labels = np.asarray(noisy.draw.labels)[first]
  method = build(config, dataset.num_classes, x)
  fit = functools.partial(
    train.out_of_fold,
    method,
    {'x': x, 'labels': labels},
    keys[1],
    folds=config.folds,
    batch_size=config.batch_size,
    label=config.method,
  )
  found = fit(epochs=config.epochs)
  early = fit(epochs=max(1, config.epochs // EARLY))
  tell = functools.partial(in_sample, config, method, x, labels)
  scores = {**tell(found), 'early loss': tell(early)['loss']}
  return page.Labeled(
    labels,
    found.pred_probs,
    images=x if x.ndim == 4 else None,
    features=x.reshape(len(x), -1),
    class_names=dataset.classes or None,
  ), Known(labels != noisy.clean[first], scores)


def build(config: Config, num_classes: int, x: np.ndarray) -> Method:
  """The method, for the rows that a fold leaves."""
  whiten = config.standardize
  model = script.network(config.net, num_classes, x, standardize=whiten)
  tx = script.optimizer('sgd', config.learning_rate)
  if config.method != 'elr':
    return supervised(LOSSES[config.method], model, tx)
  n = train.training_size(len(x), config.folds)
  shards = data_shards(n, config.batch_size)
  return elr(model, tx, num_examples=n, num_classes=num_classes, shards=shards)


def in_sample(
  config: Config,
  method: Method,
  x: np.ndarray,
  labels: np.ndarray,
  found: train.OutOfFold,
) -> dict[str, np.ndarray]:
  """What the runs that were trained on a row say of its label, the mean [n]."""

  @jax.jit
  def loss(state: State, batch: Any) -> jax.Array:
    return losses.ce(method.predict(state, batch['x']).logits, batch['labels'])

  sums: dict[str, Any] = collections.defaultdict(lambda: np.zeros(len(x)))
  for k in range(config.folds):
    state = jax.tree.map(lambda leaf, k=k: leaf[k], found.fit.state)
    rows = np.flatnonzero(found.fold != k)  # as its memory has them
    batches = train.padded_batches({'x': x[rows], 'labels': labels[rows]})
    parts = [loss(state, batch) for batch in batches]
    sums['loss'][rows] += np.concatenate(parts)[: len(rows)]
    if config.method == 'elr':
      sums['flags of elr'][rows] += mislabeled(state, jnp.asarray(labels[rows]))
  return {name: values / (config.folds - 1) for name, values in sums.items()}


# --- what comes out -----------------------------------------------------------


def by_rule(
  rule: Any, given: page.Labeled, known: Known | None
) -> dict[str, Any]:
  """How many labels a rule takes, and how well, where the truth is known."""
  both = given.labels, given.pred_probs
  taken = audit.find_label_issues(*both, filter_by=rule)
  row: dict[str, Any] = {'rule': rule, 'look_wrong': int(taken.sum())}
  if known:
    right = float((taken & known.wrong).sum())
    row['precision'] = right / max(taken.sum(), 1)
    row['recall'] = right / max(known.wrong.sum(), 1)
  return row


def by_score(given: page.Labeled, known: Known) -> list[dict[str, Any]]:
  """How well each score ranks wrong labels above right ones."""
  both, wrong = (given.labels, given.pred_probs), jnp.asarray(known.wrong)
  quality: Any = audit.label_quality
  unusual: Any = audit.ood_probs
  low = {}
  for name in ('self_confidence', 'normalized_margin'):
    low[name] = quality(*both, method=name)
    low[f'{name}, adjusted'] = quality(*both, method=name, adjust=True)
  name = 'confidence_weighted_entropy'
  low[name] = quality(*both, method=name)
  for name in ('entropy', 'least_confidence', 'gen'):
    low[f'ood_probs, {name}'] = unusual(given.pred_probs, method=name)
  scores = {name: -values for name, values in low.items()} | known.scores
  return [
    {
      'score': name,
      'auc': float(roc_auc_of(values, wrong)),
      'average_precision': float(average_precision_of(values, wrong)),
    }
    for name, values in scores.items()
  ]


def show(rows: list[dict[str, Any]]) -> None:
  """Prints a table."""
  cell = lambda x: f'{x:.3f}' if isinstance(x, float) else x
  print(report.table(list(rows[0]), [[*map(cell, r.values())] for r in rows]))


def neighborhood(given: page.Labeled) -> tuple[np.ndarray | None, np.ndarray]:
  """Groups of near-duplicates, where there are features; how usual rows are."""
  features = given.features
  if features is None and given.images is not None:
    features = given.images.reshape(len(given.images), -1)
  if features is None or len(features) < 2:
    return None, audit.ood_probs(given.pred_probs)
  features = features.astype(np.float32)
  groups = audit.near_duplicates(features).group
  return groups, audit.ood_features(features).scores


def about_of(config: Config) -> dict[str, Any]:
  """What all rows of the results share."""
  if config.npz:
    dataset, setting = pathlib.Path(config.npz).stem, {'npz': config.npz}
  else:
    dataset, setting = config.dataset, dataclasses.asdict(config)
    for name in ('npz', 'dataset', 'data_dir', 'rule', 'out', 'smoke'):
      del setting[name]
  return {'experiment': 'label_audit', 'dataset': dataset, 'setting': setting}


if __name__ == '__main__':
  train.run(main, Config, __doc__)
