"""Noisy labels of a data set, by the name of the noise."""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

import numpy as np

from jnl import noise
from jnl.base import Key, check, check_name
from jnl.data._datasets import Dataset, published_order
from jnl.data._files import HUMAN, human_labels
from jnl.noise import NoisyLabels

ANY_CLASSES = ('symmetric', 'symmetric_inclusive', 'pair_flip')
ONE_DATASET = (
  'mnist_asymmetric', 'cifar10_asymmetric', 'cifar100_superclasses',
  'cifar100_index_blocks',
)  # fmt: skip
NOISES = (
  *ANY_CLASSES, *ONE_DATASET, 'cifar10_asymmetric_in_place', 'part_dependent',
  *HUMAN,
)  # fmt: skip
"""What `noisy` knows: functions of `jnl.noise`, and labels by people."""


class Noisy(NamedTuple):
  """Noisy labels of all rows that are trained or validated on.

  Attributes:
    train: [n] int32, of `dataset.train`.
    validation: [v] int32, of `dataset.validation`.
    draw: of both, in the order of the published file.
    clean: their true labels.
    id: their rows in that file.
    about: how they were drawn, as `noise.save_draw` writes it; empty if they
      were read from a file.
  """

  train: np.ndarray
  validation: np.ndarray
  draw: NoisyLabels
  clean: np.ndarray
  id: np.ndarray
  about: dict


def noisy(
  key: Key,
  dataset: Dataset,
  name: str,
  rate: float,
  *,
  data_dir: str | pathlib.Path | None = None,
  file: str | pathlib.Path | None = None,
) -> Noisy:
  """Noisy labels for the training and validation rows of a data set.

  They are drawn on the rows in the order of the published file, so that they
  depend on the key and that file alone, not on how rows are split here.

  Args:
    key: of the draw.
    dataset: whose labels are taken to be true.
    name: one of `NOISES`.
    rate: of the noise, in [0, 1]; labels by people have their own.
    data_dir: a folder with the labels of people, as for `human_labels`.
    file: labels that `save_noisy` wrote, instead of name and rate.

  Returns:
    The labels.

  Raises:
    ValueError: if the name is not known, the rate is out of range, there is no
      data_dir for labels by people, or labels belong to other data.

  >>> import jax
  >>> from jnl.data import load
  >>> found = noisy(jax.random.key(0), load('digits'), 'symmetric', .4)
  >>> found.train.shape, found.validation.shape
  ((1200,), (120,))
  """
  check_noise(name, data_dir)
  parts = dataset.train, dataset.validation
  ids = np.concatenate([part.id for part in parts])
  order = np.argsort(ids)
  id = ids[order]
  clean = np.concatenate([part.labels for part in parts])[order]
  about = {}
  if file:
    saved = noise.load_draw(file, dataset=dataset.name, clean=clean, id=id)
    draw = saved.draw
  elif name in HUMAN:
    assert data_dir is not None
    draw = _by_people(name, data_dir, dataset, clean, id)
  else:
    draw = _drawn(key, dataset, name, rate, clean)
    about = {
      'generator': name, 'rate': rate, 'key': key, 'dataset': dataset.name
    }  # fmt: skip
  labels = np.asarray(draw.labels)
  train, validation = (labels[np.searchsorted(id, part.id)] for part in parts)
  return Noisy(train, validation, draw, clean, id, about)


def check_noise(name: str, data_dir: str | pathlib.Path | None = None) -> None:
  """Raises unless `noisy` can draw, or find, noise of that name.

  Args:
    name: as for `noisy`.
    data_dir: where the labels that people gave lie, if they are asked for.

  Raises:
    ValueError: for an unknown name, or without the folder that it needs.
  """
  check_name('noise', name, NOISES)
  check(
    name not in HUMAN or data_dir,
    f'noise {name} is read from files: give data-dir',
  )


def save_noisy(folder: str | pathlib.Path, draws: Sequence[Noisy]) -> None:
  """Writes the labels of each run as `draw_RUN.npz`, for `noisy(file=)`.

  Those that were themselves read from a file are not written again.

  Args:
    folder: where; it is made if there is none.
    draws: one for each run, in order.
  """
  for run, one in enumerate(draws):
    if one.about:
      path = pathlib.Path(folder) / f'draw_{run}.npz'
      noise.save_draw(path, one.draw, one.clean, id=one.id, **one.about)


def _by_people(
  name: str,
  data_dir: str | pathlib.Path,
  dataset: Dataset,
  clean: np.ndarray,
  id: np.ndarray,
) -> NoisyLabels:
  given, true = human_labels(name, data_dir)
  check(
    id.max() < len(true) and np.array_equal(true[id], clean),
    f'the labels of {name} were given to other images than those of dataset '
    f'{dataset.name}, or in another order',
  )
  labels = given[id]
  matrix = noise.empirical_transition(clean, labels, dataset.num_classes)
  return NoisyLabels(labels, labels != clean, matrix)


def _drawn(
  key: Key, dataset: Dataset, name: str, rate: float, clean: np.ndarray
) -> NoisyLabels:
  c = dataset.num_classes
  if name == 'cifar10_asymmetric_in_place':
    return noise.cifar10_asymmetric_in_place(key, clean, rate)
  if name == 'part_dependent':
    x = published_order(dataset).x
    return noise.part_dependent(key, x, clean, c, rate)
  generator = getattr(noise, name)
  matrix = generator(rate) if name in ONE_DATASET else generator(c, rate)
  return noise.corrupt(key, clean, matrix)
