"""Real data sets, where a developer has them: JNL_DATA or ../shared/data."""

import os
import pathlib

import jax
import numpy as np
import optax
import pytest

from jnl import noise
from jnl.data import _files as files
from jnl.data import _tfds as tfds
from jnl.data import human_labels, load, load_text, ngram_ids, published_order
from jnl.losses import ce
from jnl.nets import build, from_linen
from jnl.steps import supervised
from jnl.train import fit

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


def test_fashion_mnist_through_tfds_is_that_of_the_files(tmp_path):
  tfds.prepare(
    'fashion_mnist', downloads=FOLDER / 'fashion_mnist', root=tmp_path
  )
  through_tfds = tfds.read('fashion_mnist', root=tmp_path)
  from_files = files.read_folder('fashion_mnist', FOLDER)
  for a, b in zip(through_tfds, from_files, strict=True):
    np.testing.assert_array_equal(a.id, b.id)
    np.testing.assert_array_equal(a.x[..., 0], b.x)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_the_images_are_those_that_people_labeled():
  whole = published_order(load('cifar10_jpg', data_dir=FOLDER))
  _, clean = human_labels('cifar10n_worse', FOLDER)
  np.testing.assert_array_equal(whole.labels, clean)
  small = load('cifar10_small', data_dir=FOLDER)
  lossless = published_order(small)
  difference = np.abs(lossless.x - whole.x[: len(lossless.x)])
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
  model = from_linen(build('ngram', c), train.x.shape[1:])
  method = supervised(ce, model, optax.adam(3e-3))
  key = jax.random.key(0)
  noisy = noise.corrupt(key, train.labels, noise.symmetric(c, 0.3)).labels
  curves = [
    fit(
      method,
      {'x': train.x, 'labels': np.asarray(labels)},
      key,
      epochs=20,
      batch_size=32,
      devices=jax.devices()[:1],
      held_out={'test': {'x': dataset.test.x, 'labels': dataset.test.labels}},
    ).history['test_accuracy']
    for labels in (train.labels, noisy)
  ]
  print([curve.round(3).tolist() for curve in curves])
  assert curves[0][-1] > clean
  assert curves[1].max() > best
  assert curves[1].max() - curves[1][-1] > fall
