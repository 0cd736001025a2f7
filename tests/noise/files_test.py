"""Draws in files: the round trip, and every way a file can be wrong."""

import io
import pickle

from fixture_programs import compiled
import jax
import numpy as np
import pytest

from jnl import noise

KEY = jax.random.key(7)
C, N = 4, 40
CLEAN = np.arange(N) % C
corrupt = compiled(noise.corrupt)
FLIP = 0.6 * np.eye(C) + 0.4 * np.roll(np.eye(C), 1, axis=1)
DRAW = corrupt(KEY, CLEAN, FLIP.astype(np.float32))
NAME = 'toy/train'


def save(path, **changes):
  arguments = {
    'draw': DRAW,
    'clean': CLEAN,
    'generator': 'pair_flip',
    'rate': 0.4,
    'key': KEY,
    'dataset': NAME,
    **changes,
  }
  noise.save_draw(path, **arguments)
  return path


@pytest.fixture
def path(tmp_path):
  return save(tmp_path / 'draw.npz')


def arrays_of(path):
  with np.load(path) as file:
    return dict(file)


def test_round_trip(path):
  saved = noise.load_draw(path, dataset=NAME, clean=CLEAN)
  for read, made in zip(saved.draw, DRAW, strict=True):
    np.testing.assert_array_equal(read, made)
    assert read.dtype == made.dtype
  assert (saved.generator, saved.rate) == ('pair_flip', 0.4)
  assert jax.random.key_impl(saved.key) == jax.random.key_impl(KEY)
  again = corrupt(saved.key, CLEAN, np.asarray(saved.draw.probs))
  np.testing.assert_array_equal(again.labels, DRAW.labels)


def test_any_part_in_any_order(tmp_path):
  """A draw made in the order of a shuffle, read in that of another."""
  rows = np.random.default_rng(0).permutation(3 * N)[:N]
  save(tmp_path / 'draw.npz', id=rows)
  pick = np.random.default_rng(1).permutation(N)[:11]
  saved = noise.load_draw(
    str(tmp_path / 'draw.npz'), dataset=NAME, clean=CLEAN[pick], id=rows[pick]
  )
  np.testing.assert_array_equal(saved.draw.labels, DRAW.labels[pick])
  np.testing.assert_array_equal(saved.draw.flipped, DRAW.flipped[pick])
  assert (np.diff(arrays_of(tmp_path / 'draw.npz')['id'].astype(int)) > 0).all()


def test_the_file_is_small_and_plain(path):
  arrays = arrays_of(path)
  assert arrays['labels'].dtype == arrays['clean'].dtype == np.uint8
  assert arrays['id'].dtype == np.uint8
  assert all(a.dtype.kind in 'iufU' for a in arrays.values())
  wide = noise.NoisyLabels(DRAW.labels, DRAW.flipped, np.eye(300))
  assert arrays_of(save(path, draw=wide))['labels'].dtype == np.uint16


def test_keys_of_every_kind(path):
  for key in (jax.random.PRNGKey(3), jax.random.key(3, impl='rbg')):
    saved = noise.load_draw(save(path, key=key), dataset=NAME, clean=CLEAN)
    data = jax.random.key_data(key)
    np.testing.assert_array_equal(jax.random.key_data(saved.key), data)
    assert str(jax.random.key_impl(saved.key)) == str(jax.random.key_impl(key))


def test_probabilities_of_examples_become_those_of_classes(path):
  probs = np.random.default_rng(0).dirichlet(np.ones(5), N)
  draw = compiled(noise.corrupt_each)(
    KEY, CLEAN, probs
  )  # of class 4 there is none
  save(path, draw=draw, rate=None)
  saved = noise.load_draw(path, dataset=NAME, clean=CLEAN)
  assert saved.rate is None
  assert saved.draw.probs.shape == (5, 5)
  for i in range(4):
    expected = probs[i == CLEAN].mean(0)
    np.testing.assert_allclose(saved.draw.probs[i], expected, rtol=1e-5)
  np.testing.assert_array_equal(saved.draw.probs[4], np.eye(5)[4])
  # What was read can be written again.
  save(path, draw=saved.draw)
  again = noise.load_draw(path, dataset=NAME, clean=CLEAN)
  np.testing.assert_array_equal(again.draw.labels, draw.labels)


def test_files_are_replaced_whole(path, monkeypatch):
  before = path.read_bytes()

  def fail(file, **arrays):
    file.write(b'half of it')
    raise OSError('disk full')

  monkeypatch.setattr(np, 'savez_compressed', fail)
  with pytest.raises(OSError, match='disk full'):
    save(path, rate=0.1)
  assert path.read_bytes() == before
  assert list(path.parent.iterdir()) == [path]
  monkeypatch.undo()
  save(path, rate=0.1)
  assert list(path.parent.iterdir()) == [path]
  assert noise.load_draw(path, dataset=NAME, clean=CLEAN).rate == 0.1
  nested = path.parent / 'a' / 'b' / 'no_suffix'
  assert save(nested).is_file()


def test_the_same_draw_gives_the_same_bytes(path):
  before = path.read_bytes()
  assert save(path).read_bytes() == before


@pytest.mark.parametrize(
  ('changes', 'error', 'name'),
  [
    ({'clean': CLEAN[1:]}, ValueError, 'draw has'),
    ({'clean': CLEAN[::-1]}, ValueError, 'draw was not made'),
    ({'clean': CLEAN.astype(float)}, TypeError, 'clean'),
    ({'clean': CLEAN.reshape(2, -1)}, ValueError, 'clean'),
    ({'id': np.arange(N - 1)}, ValueError, 'id has'),
    ({'id': np.arange(N) // 2}, ValueError, 'id must not repeat'),
    ({'id': np.arange(N) - 1}, ValueError, 'id must not be negative'),
    ({'id': np.arange(N) / 2}, TypeError, 'id'),
    ({'draw': DRAW._replace(probs=np.eye(3))}, ValueError, 'must lie in'),
    ({'draw': DRAW._replace(probs=np.ones((3, 4)))}, ValueError, 'probs'),
  ],
)
def test_what_cannot_be_saved(tmp_path, changes, error, name):
  with pytest.raises(error, match=name):
    save(tmp_path / 'draw.npz', **changes)
  assert not list(tmp_path.iterdir())


def test_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'gone\.npz'):
    noise.load_draw(tmp_path / 'gone.npz', dataset=NAME, clean=CLEAN)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'dataset': 'toy/test'}, "'toy/train', not for 'toy/test'"),
    ({'clean': CLEAN[:-1]}, 'labels of 40 examples, clean has 39'),
    ({'id': np.arange(N) + 1}, 'no labels for 1 of the examples'),
    ({'clean': CLEAN[::-1]}, 'another data set or another order'),
    ({'id': np.arange(N)[::-1]}, 'another data set or another order'),
  ],
)
def test_draws_of_something_else(path, change, message):
  arguments = {'dataset': NAME, 'clean': CLEAN, **change}
  with pytest.raises(ValueError, match=message) as raised:
    noise.load_draw(path, **arguments)
  assert str(path) in str(raised.value)


def test_bad_requests_name_the_argument(path):
  with pytest.raises(ValueError, match='id has 3 rows'):
    noise.load_draw(path, dataset=NAME, clean=CLEAN, id=np.arange(3))
  with pytest.raises(TypeError, match='clean'):
    noise.load_draw(path, dataset=NAME, clean=CLEAN / 2)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-100])


def flip_bits(path):
  content = bytearray(path.read_bytes())
  at = content.index(b'labels.npy') + 60
  content[at : at + 8] = bytes(255 - b for b in content[at : at + 8])
  path.write_bytes(bytes(content))


def npy():
  """One array as numpy writes it."""
  content = io.BytesIO()
  np.save(content, CLEAN)
  return content.getvalue()


def rewrite(**changes):
  """Replaces arrays of the file; None takes one away."""

  def change(path):
    arrays = {**arrays_of(path), **changes}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    np.savez(path, **arrays)

  return change


DAMAGE = {
  'truncated': truncate,
  'flipped bits': flip_bits,
  'empty': lambda path: path.write_bytes(b''),
  'text': lambda path: path.write_text('not a draw'),
  'array': lambda path: path.write_bytes(npy()),
  'pickle': lambda path: path.write_bytes(pickle.dumps({'labels': CLEAN})),
  'pickled': rewrite(labels=np.array([None] * N)),
  'foreign': lambda path: np.savez(path, images=CLEAN),
  'folder': lambda path: (path.unlink(), path.mkdir()),
  'signed': rewrite(labels=CLEAN),
  'shorter': rewrite(labels=CLEAN[1:].astype(np.uint8)),
  'unsorted': rewrite(id=np.arange(N)[::-1].astype(np.uint8)),
  'repeated': rewrite(id=np.zeros(N, np.uint8)),
  'other classes': rewrite(probs=np.eye(2)),
  'no scalar': rewrite(rate=np.array('much')),
  'key of another kind': rewrite(key_impl=np.array('dice')),
}
NAMES = 'labels clean id probs generator rate key_data key_impl dataset version'


@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_and_foreign_files(path, name):
  DAMAGE[name](path)
  with pytest.raises(ValueError, match='not a saved draw, or is damaged') as e:
    noise.load_draw(path, dataset=NAME, clean=CLEAN)
  assert str(path) in str(e.value)


@pytest.mark.parametrize('name', NAMES.split())
def test_files_that_lack_something(path, name):
  assert set(arrays_of(path)) == set(NAMES.split())
  rewrite(**{name: None})(path)
  with pytest.raises(ValueError, match='not a saved draw, or is damaged') as e:
    noise.load_draw(path, dataset=NAME, clean=CLEAN)
  assert str(path) in str(e.value)


def test_files_of_another_version(path):
  rewrite(version=np.array(2))(path)
  with pytest.raises(ValueError, match='format version 2') as raised:
    noise.load_draw(path, dataset=NAME, clean=CLEAN)
  assert str(path) in str(raised.value)
