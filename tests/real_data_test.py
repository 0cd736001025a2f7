"""Real data sets, where a developer has them: JNL_DATA or ../shared/data."""

import os
import pathlib

import numpy as np
import pytest

from jnl import noise
from jnl.data import files, human_labels, load, published_order, tfds

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
