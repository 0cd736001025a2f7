"""Local files of every format, arrays in memory, TFDS without TensorFlow."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile

from extras import needs
import numpy as np
from PIL import Image
import pytest

from jnl.data import _files as files
from jnl.data import _tfds as tfds
from jnl.data import from_arrays, human_labels, load, published_order

RNG = np.random.default_rng(0)
LABELS = np.arange(24) % 10
X = RNG.integers(0, 256, (24, 28, 28), np.uint8)
COLOR = RNG.integers(0, 256, (24, 32, 32, 3), np.uint8)


def idx(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def write_idx_set(folder, packed=True):
  folder.mkdir(parents=True)
  for (images, labels), rows in zip(
    files.IDX.values(), (slice(0, 14), slice(14, 24)), strict=True
  ):
    for name, array in ((images, X[rows]), (labels, LABELS[rows])):
      raw = idx(array.astype(np.uint8))
      if packed:
        (folder / f'{name}.gz').write_bytes(gzip.compress(raw, mtime=0))
      else:
        (folder / name).write_bytes(raw)


def write_cifar(path, name, x, labels):
  _, members, label_bytes = files.CIFAR[name]
  flat = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
  coarse = np.full((len(x), label_bytes - 1), 99, np.uint8)
  rows = np.concatenate([coarse, labels[:, None].astype(np.uint8), flat], 1)
  names = [n for group in members.values() for n in group]
  with tarfile.open(path, 'w:gz') as archive:
    for member, part in zip(
      names, np.array_split(rows, len(names)), strict=True
    ):
      info = tarfile.TarInfo(f'{name}-batches-bin/{member}')
      info.size = part.size
      archive.addfile(info, io.BytesIO(part.tobytes()))


def assert_holds(dataset, train, test):
  """Every row is in one part, at the place its id says."""
  (x, labels), (x_test, labels_test) = train, test
  scale = np.float32(x.max())
  whole = published_order(dataset)
  np.testing.assert_array_equal(whole.id, np.arange(len(labels)))
  np.testing.assert_array_equal(whole.labels, labels)
  np.testing.assert_array_equal(whole.x, x.astype(np.float32) / scale)
  np.testing.assert_array_equal(dataset.test.labels, labels_test)
  np.testing.assert_array_equal(
    dataset.test.x, x_test.astype(np.float32) / scale
  )


@pytest.mark.parametrize('packed', [True, False])
def test_idx_files(packed, tmp_path):
  write_idx_set(tmp_path / 'letters', packed)
  parts = (X[:14, ..., None], LABELS[:14]), (X[14:, ..., None], LABELS[14:])
  for folder in (tmp_path, tmp_path / 'letters'):
    dataset = load('letters', data_dir=folder)
    assert (dataset.name, dataset.num_classes) == ('letters', 10)
    assert_holds(dataset, *parts)
    assert len(dataset.validation.labels) == 1


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_archives(name, tmp_path):
  x = np.concatenate([COLOR, COLOR[::-1]])
  labels = np.concatenate([LABELS, LABELS[::-1]])
  write_cifar(tmp_path / files.CIFAR[name][0], name, x, labels)
  n = len(x) - len(x) // (6 if name == 'cifar10' else 2)
  dataset = load(name, data_dir=tmp_path)
  assert_holds(dataset, (x[:n], labels[:n]), (x[n:], labels[n:]))


def test_npz_with_a_test_set_and_labels_in_a_column(tmp_path):
  np.savez(
    tmp_path / 'mine.npz',
    x_train=COLOR,
    y_train=LABELS[:, None],
    x_test=COLOR[:5],
    y_test=LABELS[:5],
  )
  dataset = load('mine', data_dir=tmp_path)
  assert_holds(dataset, (COLOR, LABELS), (COLOR[:5], LABELS[:5]))


def test_npz_without_a_test_set_gives_a_quarter(tmp_path):
  np.savez(tmp_path / 'one.npz', x=X.reshape(24, -1) / 7.0, y=LABELS)
  dataset = load('one', data_dir=tmp_path)
  parts = dataset.train, dataset.validation, dataset.test
  assert [len(p.labels) for p in parts] == [16, 2, 6]
  ids = np.concatenate([p.id for p in parts])
  assert sorted(ids) == list(range(24))
  for part in parts:
    np.testing.assert_array_equal(part.labels, LABELS[part.id])
    expected = (X.reshape(24, -1) / 7.0).astype(np.float32)
    np.testing.assert_array_equal(part.x, expected[part.id])


def test_jpegs_in_one_array(tmp_path):
  smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3)
  x = np.stack([smooth.astype(np.uint8), 255 - smooth.astype(np.uint8)] * 12)
  encoded = []
  for image in x:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'jpeg', quality=95)
    encoded.append(buffer.getvalue())
  arrays = {
    'jpg': np.frombuffer(b''.join(encoded), np.uint8),
    'offsets': np.cumsum([0, *map(len, encoded)]),
    'label_train': LABELS[:20],
    'label_test': LABELS[20:],
  }
  np.savez(tmp_path / 'j.npz', **arrays)
  dataset = load('j', data_dir=tmp_path)
  whole = published_order(dataset)
  np.testing.assert_array_equal(whole.labels, LABELS[:20])
  assert np.abs(whole.x * 255 - x[:20]).mean() < 3, 'lossy, but not by much'
  cut = {**arrays, 'jpg': arrays['jpg'][:-100]}
  np.savez(tmp_path / 'cut.npz', **cut)
  with pytest.raises(ValueError, match=r'cut\.npz: 24 images'):
    load('cut', data_dir=tmp_path)
  # Bytes that no decoder takes.
  np.savez(tmp_path / 'bad.npz', **{**arrays, 'jpg': arrays['jpg'] * 0})
  with pytest.raises(ValueError, match=r'bad\.npz is truncated or not'):
    load('bad', data_dir=tmp_path)


def test_arrays_in_memory():
  x = RNG.normal(size=(24, 5))
  dataset = from_arrays(x, LABELS, x[:3], LABELS[:3], name='mine')
  whole = published_order(dataset)
  np.testing.assert_array_equal(whole.x, x.astype(np.float32))
  assert (dataset.name, dataset.num_classes) == ('mine', 10)
  # One shuffle for each seed, and not the order given.
  first, again, other = (
    from_arrays(x, LABELS, seed=seed).train.id for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  assert (np.diff(first) < 0).any()
  # A class without examples is fine where the number of classes is given.
  assert from_arrays(x, LABELS, num_classes=12).num_classes == 12


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    ({'labels': LABELS[:-1]}, ValueError, 'x, labels must have one length'),
    ({'labels': LABELS / 1.0}, TypeError, 'labels must be integers'),
    ({'labels': -LABELS}, ValueError, 'labels hold -9'),
    ({'labels': LABELS * 2}, ValueError, 'no example of class 1'),
    ({'x': np.full((24, 5), np.nan)}, ValueError, 'x holds NaN'),
    ({'x': np.ones(24)}, ValueError, r'x must be \[n, ...\]'),
    ({'num_classes': 9}, ValueError, r'labels must lie in \[0, 9\)'),
    ({'validation': 1.0}, ValueError, 'validation must lie'),
    ({'x_test': X[:3]}, ValueError, 'given together'),
    (
      {'x_test': np.ones((2, 7)), 'labels_test': LABELS[:2]},
      ValueError,
      'in the test set',
    ),
    ({'x': np.ones((1, 5)), 'labels': LABELS[:1]}, ValueError, 'too few'),
  ],
)
def test_bad_arrays_are_named(change, error, message):
  arguments = {'x': RNG.normal(size=(24, 5)), 'labels': LABELS, **change}
  with pytest.raises(error, match=message):
    from_arrays(**arguments)


def spoil(path, how):
  raw = path.read_bytes()
  if how == 'truncated':
    path.write_bytes(raw[: len(raw) // 2])
  elif how == 'foreign':
    path.write_bytes(b'not what you think')
  elif how == 'empty':
    path.write_bytes(b'')
  else:
    path.unlink()


@pytest.mark.parametrize('how', ['truncated', 'foreign', 'empty', 'missing'])
@pytest.mark.parametrize('file', ['npz', 'idx', 'labels', 'cifar'])
def test_spoiled_files_are_named(file, how, tmp_path):
  if file == 'npz':
    path = tmp_path / 'a.npz'
    np.savez(path, x=COLOR, y=LABELS)
    name = 'a'
  elif file == 'cifar':
    path = tmp_path / files.CIFAR['cifar10'][0]
    write_cifar(path, 'cifar10', COLOR, LABELS)
    name = 'cifar10'
  else:
    write_idx_set(tmp_path / 'a')
    which = files.IDX['test'][0 if file == 'idx' else 1]
    path = tmp_path / 'a' / f'{which}.gz'
    name = 'a'
  spoil(path, how)
  error = FileNotFoundError if how == 'missing' else ValueError
  with pytest.raises(error, match=path.name.replace('.gz', '')):
    load(name, data_dir=tmp_path)


def test_other_files_are_named(tmp_path):
  np.savez(tmp_path / 'strange.npz', z=X)
  with pytest.raises(ValueError, match=r"strange\.npz holds \['z'\]; it must"):
    load('strange', data_dir=tmp_path)
  np.savez(tmp_path / 'short.npz', x=X, y=LABELS[1:])
  with pytest.raises(ValueError, match=r'short\.npz must have one length'):
    load('short', data_dir=tmp_path)
  np.savez(tmp_path / 'pickled.npz', x=np.array([{}] * 3), y=LABELS[:3])
  with pytest.raises(ValueError, match=r'pickled\.npz is truncated or not'):
    load('pickled', data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match=r'no data set .absent.*looked'):
    load('absent', data_dir=tmp_path)
  raw = idx(X) + b'more'
  (tmp_path / 'long').write_bytes(raw)
  with pytest.raises(ValueError, match=r'long .*header says \(24, 28, 28\)'):
    files.read_idx(tmp_path / 'long')


def test_labels_by_people(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'cifar10_human_labels\.npz'):
    human_labels('cifar10n_worse', tmp_path)
  with pytest.raises(ValueError, match="unknown noise 'cifar10n_worst'; did"):
    human_labels('cifar10n_worst', tmp_path)
  path = tmp_path / 'cifar10_human_labels.npz'
  np.savez(path, clean_label=LABELS, worse_label=LABELS[::-1])
  noisy, clean = human_labels('cifar10n_worse', tmp_path)
  np.testing.assert_array_equal(noisy, LABELS[::-1])
  np.testing.assert_array_equal(clean, LABELS)
  with pytest.raises(ValueError, match=r'labels\.npz holds no aggre_label'):
    human_labels('cifar10n_aggre', tmp_path)
  np.savez(path, clean_label=LABELS, worse_label=LABELS[1:])
  with pytest.raises(ValueError, match=r'worse_label is \(23,\)'):
    human_labels('cifar10n_worse', tmp_path)


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A folder of small files in place of those that Fashion-MNIST publishes."""
  import tensorflow_datasets

  folder = tmp_path / 'downloads'
  write_idx_set(folder)
  stock = tensorflow_datasets.builder_cls('fashion_mnist')
  info = type(next(iter(stock.url_infos.values())))
  infos = {}
  for path in folder.iterdir():
    raw = path.read_bytes()
    infos[f'http://localhost:1/{path.name}'] = info(
      size=len(raw),
      checksum=hashlib.sha256(raw).hexdigest(),
      filename=path.name,
    )
  monkeypatch.setattr(stock, 'url_infos', infos)
  return folder


@needs('tensorflow_datasets')
def test_tfds_prepares_published_files_and_reads_them(published, tmp_path):
  root = tmp_path / 'tfds'
  tfds.prepare('fashion_mnist', downloads=published, root=root)
  for part, rows in zip(
    tfds.read('fashion_mnist', root=root),
    (slice(0, 14), slice(14, 24)),
    strict=True,
  ):
    np.testing.assert_array_equal(part.id, np.arange(len(part.id)))
    np.testing.assert_array_equal(part.x[..., 0], X[rows])
    np.testing.assert_array_equal(part.labels, LABELS[rows])


@needs('tensorflow_datasets')
def test_reading_tfds_needs_no_tensorflow(published, tmp_path):
  tfds.prepare('fashion_mnist', downloads=published, root=tmp_path / 'tfds')
  code = (
    'import sys, jnl.data; from jnl.data import load\n'
    "data = load('fashion_mnist')\n"
    "print(len(data.train.labels), 'tensorflow' in sys.modules)"
  )
  run = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env={**os.environ, 'TFDS_DATA_DIR': str(tmp_path / 'tfds')},
  )
  assert run.stdout.split() == ['13', 'False'], run.stderr


@needs('tensorflow_datasets')
def test_a_download_that_is_not_the_published_file_is_refused(
  published, tmp_path
):
  spoil(published / f'{files.IDX["test"][0]}.gz', 'truncated')
  with pytest.raises(RuntimeError, match='could not prepare fashion_mnist'):
    tfds.prepare('fashion_mnist', downloads=published, root=tmp_path / 'tfds')


@needs('tensorflow_datasets')
def test_unknown_names_are_answered_with_close_ones(tmp_path):
  with pytest.raises(ValueError, match="unknown dataset 'fashion_mnits'; did"):
    tfds.read('fashion_mnits', root=tmp_path)
