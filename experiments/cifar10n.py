"""CIFAR-10N: methods on the labels that people gave to CIFAR-10.

The protocol of Wei et al. (ICLR 2022, arXiv 2110.12088): five sets of labels
for the same 50,000 images, by three people each. "aggregate" is the majority
(9.0% wrong), "random" the mean over the three (17.2, 18.1 and 17.6%), "worst" a
wrong one wherever there is one (40.2%). Clean test accuracy, ResNet-34, 100
epochs of SGD at .1, .01 from epoch 60.

  python experiments/cifar10n.py --data-dir DIR              # 7 methods
  python experiments/cifar10n.py --data-dir DIR --noise cifar10n_worse \\
    --methods ce,elr_plus --net preact_resnet18 --dtype bfloat16 --seeds 1
  python experiments/cifar10n.py --data-dir DIR --dataset cifar10_small \\
    --net strided_cnn --epochs 10 --seeds 1                  # 4,000 images

DIR has `cifar10_human_labels.npz`, the authors' labels (see `jnl.data.
human_labels`), and CIFAR-10 itself unless TFDS has it. It is `noisy_labels.py`
with these settings: all its options are here too, and its results come out. A
table at the end has the mean over the three random sets.

Worst labels, as others have reproduced them (PreAct-ResNet-18 and ResNet-34):
cross-entropy 83.9, ELR 87.9, ELR+ 91.8, DivideMix 93.1, SOP+ 92.9. The run
above on 50,000 images has not been made here: no accelerator was at hand.
"""

import dataclasses
import json
import pathlib

import noisy_labels
import numpy as np

from jnl import data
from jnl.base import check
from jnl.train import option, options, report, run, script

SETS = tuple(name for name in data.HUMAN if name.startswith('cifar10n'))
COLUMNS = {
  'aggregate': ('cifar10n_aggre',),
  'random 1-3': tuple(name for name in SETS if 'random' in name),
  'worst': ('cifar10n_worse',),
}


@dataclasses.dataclass(frozen=True)
class Config(noisy_labels.Config):
  """The settings; every field is an option of the command line."""

  methods: tuple[str, ...] = option(
    ('ce', 'gce', 'co_teaching', 'elr', 'elr_plus', 'divide_mix', 'sop_plus'),
    'some of those below',
  )
  dataset: str = option('cifar10', 'CIFAR-10, or the first rows of it')
  net: str = option('resnet34', 'network, a name of nets.build')
  standardize: bool = option(True, 'each channel to mean 0 and deviation 1')
  augment: str = option('crop_flip', 'none, or shifts by 4 and mirrors')
  noise: tuple[str, ...] = option(SETS, 'sets of labels')
  seeds: int = option(5, 'runs of a set of labels')
  epochs: int = option(100, 'passes over the training set')
  batch_size: int = option(128, 'examples in a step')
  learning_rate: float = option(0.1, 'of SGD with momentum .9')
  drops: tuple[int, ...] = option(
    (60,), 'epochs after which the rate is a tenth'
  )
  out: str = option('results/cifar10n', 'folder for what comes out')
  smoke: bool = option(False, 'seconds only: 2 seeds, 2 epochs, ce and elr')


def main(config: Config) -> None:
  """`noisy_labels.py` with these settings, and the table of the protocol."""
  with options():
    check(
      {*config.noise} <= {*SETS},
      f'noise must be of {", ".join(SETS)}, got {", ".join(config.noise)}',
    )
  out = noisy_labels.main(config)
  print('\n' + table(pathlib.Path(out) / 'results.jsonl'))


def table(results: pathlib.Path) -> str:
  """Accuracy after the last epoch, by method and set of labels."""
  found: dict[str, dict[str, list[float]]] = {}
  for text in results.read_text().splitlines():
    row = json.loads(text)
    of_method = found.setdefault(row['method'], {})
    of_method.setdefault(row['setting']['noise'], []).append(row['last'])
  lines = []
  for method, of_set in found.items():
    line = [method]
    for names in COLUMNS.values():
      values = [value for name in names for value in of_set.get(name, ())]
      line.append(report.mean_sd(np.array(values)) if values else '')
    lines.append(line)
  return report.table(['last epoch', *COLUMNS], lines)


if __name__ == '__main__':
  run(main, Config, __doc__ + script.listing(noisy_labels.METHODS))
