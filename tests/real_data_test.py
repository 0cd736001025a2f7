"""Real data sets, where a developer has them: JNL_DATA or ../shared/data."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jnl import audit, noise
from jnl.data import (
  PerRun,
  human_labels,
  load,
  load_text,
  ngram_ids,
  published_order,
)
from jnl.data import _files as files
from jnl.data import _tfds as tfds
from jnl.losses import ce
from jnl.nets import build, from_linen
from jnl.steps import supervised
from jnl.train import fit_many

FOLDER = pathlib.Path(
  os.environ.get('JNL_DATA', pathlib.Path(__file__).parents[2] / 'shared/data')
)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not FOLDER.exists(), reason=f'{FOLDER} is not here'),
]
# Wei et al., Learning with Noisy Labels Revisited, ICLR 2022, arXiv 2110.12088.
PUBLISHED = {
  'cifar10n_aggre': 0.0901,
  'cifar10n_random1': 0.1723,
  'cifar10n_random2': 0.1812,
  'cifar10n_random3': 0.1764,
  'cifar10n_worse': 0.4021,
  'cifar100n': 0.4020,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_people_are_wrong_as_often_as_published(name):
  noisy, clean = human_labels(name, FOLDER)
  assert noise.noise_rate(clean, noisy) == pytest.approx(
    PUBLISHED[name], abs=1e-4
  )
  classes = 100 if name == 'cifar100n' else 10
  matrix = np.asarray(noise.empirical_transition(clean, noisy, classes))
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
  # The classes are equally large, so that the rate is one minus the mean trace.
  assert 1 - matrix.trace() / classes == pytest.approx(
    noise.noise_rate(clean, noisy), abs=1e-5
  )


def test_fashion_mnist_through_tfds_is_that_of_the_files(tmp_path, monkeypatch):
  """Every 20th row of the files, which TFDS verifies as they are."""

  def some(paths):
    return [files.Examples(*(a[::20] for a in part)) for part in read(paths)]

  read = files.read_idx_set
  monkeypatch.setattr(files, 'read_idx_set', some)
  tfds.prepare(
    'fashion_mnist', downloads=FOLDER / 'fashion_mnist', root=tmp_path
  )
  through_tfds = tfds.read('fashion_mnist', root=tmp_path)
  from_files = files.read_folder('fashion_mnist', FOLDER)
  for a, b in zip(through_tfds, from_files, strict=True):
    np.testing.assert_array_equal(a.id, b.id)
    np.testing.assert_array_equal(a.x[..., 0], b.x)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_the_images_are_those_that_people_labeled(tmp_path):
  """The first 4000 and every 20th of the others; all take 20 s to decode."""
  _, clean = human_labels('cifar10n_worse', FOLDER)
  lossless = published_order(load('cifar10_small', data_dir=FOLDER))
  first = len(lossless.x)
  rows = np.r_[:first, first:50_000:20, 50_000:60_000:20]
  file = files.read_npz(FOLDER / 'cifar10_jpg.npz')
  np.testing.assert_array_equal(file['label_train'], clean)
  images = np.split(file['jpg'], file['offsets'][1:-1])
  images = [images[i] for i in rows]
  file['jpg'] = np.concatenate(images)
  file['offsets'] = np.cumsum([0, *map(len, images)])
  file['label_train'] = clean[rows[rows < 50_000]]
  file['label_test'] = file['label_test'][::20]
  np.savez(tmp_path / 'cifar10_jpg.npz', **file)
  some = published_order(load('cifar10_jpg', data_dir=tmp_path))
  np.testing.assert_array_equal(some.labels, file['label_train'])
  difference = np.abs(lossless.x - some.x[:first])
  assert difference.mean() < 0.03, 'a lossy copy of the same images'


@pytest.mark.parametrize(
  ('name', 'counts', 'test'),
  [
    ('youtube_spam', [755, 831], 370),
    ('trec6', [1162, 1250, 86, 1223, 835, 896], 500),
    ('rt_polarity', None, 2665),
  ],
)
def test_text_sets_have_their_published_sizes(name, counts, test):
  texts = load_text(name, data_dir=FOLDER)
  whole = published_order(texts)
  assert len(texts.test.labels) == test
  if counts is None:
    labels = np.concatenate([whole.labels, texts.test.labels])
    counts, found = [5331, 5331], np.bincount(labels)
  else:
    found = np.bincount(whole.labels)
  assert found.tolist() == counts
  dataset = load(name, data_dir=FOLDER)
  np.testing.assert_array_equal(dataset.test.x, ngram_ids(list(texts.test.x)))
  np.testing.assert_array_equal(dataset.test.labels, texts.test.labels)


@pytest.mark.parametrize(
  ('name', 'clean', 'best', 'fall'),
  [('youtube_spam', 0.86, 0.7, 0.04), ('trec6', 0.8, 0.74, 0.15)],
)
def test_plain_training_on_texts_learns_and_then_fits_the_noise(
  name, clean, best, fall
):
  dataset = load(name, data_dir=FOLDER)
  c, train = dataset.num_classes, dataset.train
  length = 32  # of 64; few texts are longer
  model = from_linen(build('ngram', c), (length,))
  key = jax.random.key(0)
  noisy = noise.corrupt(key, train.labels, noise.symmetric(c, 0.3)).labels
  test = {'x': dataset.test.x[:, :length], 'labels': dataset.test.labels}
  curves = fit_many(
    supervised(ce, model, optax.adam(1e-2)),
    {
      'x': train.x[:, :length],
      'labels': PerRun(np.stack([train.labels, noisy])),
    },
    jnp.stack([key, key]),
    epochs=8,
    batch_size=128,
    devices=jax.devices()[:1],
    held_out={'test': test},
  ).history['test_accuracy']
  print(curves.round(3).tolist())
  assert curves[0][-1] > clean
  assert curves[1].max() > best
  assert curves[1].max() - curves[1][-1] > fall


@pytest.mark.parametrize(
  ('name', 'found', 'precision'),
  [('cifar10', 244, 0.211), ('mnist', 15, 0.467), ('20news', 55, 0.870)],
)
@pytest.mark.filterwarnings('ignore:pred_probs are float16')
def test_what_looks_wrong_people_find_wrong(name, found, precision):
  """Of the labels that were taken and that people looked at."""
  with np.load(FOLDER / f'label_errors_{name}_test_set.npz') as file:
    labels, probs = file['given_label'], file['pred_probs']
    seen, wrong = file['mturk_index'], file['votes_given'] < 3
  rule = 'confident_learning'
  taken = audit.find_label_issues(labels, probs, filter_by=rule)
  assert taken.sum() == found
  assert wrong[taken[seen]].mean() == pytest.approx(precision, abs=5e-4)
