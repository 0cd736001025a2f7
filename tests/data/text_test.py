"""Texts: tokens, hashed ids, the files they are published in, TFDS."""

import csv
import functools
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from jnl.data import _tfds as tfds
from jnl.data import (
  encode_text,
  from_arrays,
  load,
  load_text,
  ngram_ids,
  published_order,
  token_ids,
  tokenize,
)
from jnl.data._text import PAD_ID, hashed_id

TEXTS = [
  'Check out my channel!',
  'great song',
  '',
  "I don't know \u00fcber 日本",
  'check out this',
  'I love this, so much',
  'subscribe to me now',
  'the song of the year',
]
LABELS = [1, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
  ('text', 'tokens'),
  [
    ('', []),
    (' \t\n', []),
    ('Hello, WORLD', ['hello', ',', 'world']),
    ("isn't it 'so'", ["isn't", 'it', "'", 'so', "'"]),
    ('a_b 3.5 :-)', ['a_b', '3', '.', '5', ':', '-', ')']),
    ('ÜBER\u00a0日本\ufeff', ['über', '日本']),
  ],
)
def test_tokens(text, tokens):
  assert tokenize(text) == tokens


def test_ids_are_what_they_have_always_been():
  # The check value of CRC-32 for this text, 0xCBF43926.
  assert hashed_id('123456789', 2**32 + 1) == 0xCBF43926 + 1
  assert hashed_id('\ud800', 10) >= 1, 'half a surrogate pair'
  assert token_ids(TEXTS[:3], length=6).tolist() == [
    [4248, 7451, 4442, 1597, 4955, 0],
    [7960, 3614, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
  ]
  assert ngram_ids(TEXTS[3:4], buckets=1000, length=8).tolist() == [
    [227, 116, 914, 714, 365, 414, 624, 217]
  ]


@pytest.mark.slow  # the test above fixes them, in a process of any hash seed
def test_ids_are_the_same_in_another_process():
  code = (
    'from jnl.data import ngram_ids; '
    f'print(ngram_ids({TEXTS!r}).tobytes().hex())'
  )
  run = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONHASHSEED': '1'},
  )
  assert run.stdout.strip() == ngram_ids(TEXTS).tobytes().hex(), run.stderr


def test_ids_lie_in_range_and_padding_follows():
  for make in (token_ids, ngram_ids):
    for buckets in (2, 3, 100):
      ids = make(TEXTS, buckets=buckets, length=9)
      assert ids.dtype == np.int32
      assert ids.shape == (8, 9)
      assert ids.max() < buckets
      words = ids != PAD_ID
      assert (words[:, :-1] >= words[:, 1:]).all(), 'nothing behind padding'
      assert not words[2].any()
      # Of other lengths, the same row, cut or filled up.
      short = make(TEXTS, buckets=buckets, length=4)
      long = make(TEXTS, buckets=buckets, length=50)
      np.testing.assert_array_equal(short, ids[:, :4])
      np.testing.assert_array_equal(long[:, :9], ids)
      assert (long[:, 20:] == PAD_ID).all()


def test_ngrams_come_by_the_token_they_begin_with():
  ids = functools.partial(hashed_id, buckets=8192)
  expected = ['a', 'a b', 'a b a', 'b', 'b a', 'a']
  found = ngram_ids(['A b a'], sizes=(1, 2, 3), length=7)
  assert found.tolist() == [[*map(ids, expected), PAD_ID]]
  only_pairs = ngram_ids(['A b a'], sizes=(2,), length=3)
  assert only_pairs.tolist() == [[ids('a b'), ids('b a'), PAD_ID]]
  # All pairs of a text that fits, also where tokens are as many as the row.
  assert ngram_ids(['a b c d'], sizes=(2,), length=3).all()


@pytest.mark.parametrize('make', [token_ids, ngram_ids])
@pytest.mark.parametrize(
  ('texts', 'options', 'error', 'message'),
  [
    ([], {}, ValueError, 'texts must hold at least one'),
    ('one text', {}, TypeError, 'texts must be a sequence of strings, got one'),
    (['a', None], {}, TypeError, 'texts must be strings, got NoneType at 1'),
    ([b'a'], {}, TypeError, 'texts must be strings, got bytes at 0'),
    (['a'], {'buckets': 1}, ValueError, 'buckets must be at least 2, got 1'),
    (['a'], {'length': 0}, ValueError, 'length must be at least 1, got 0'),
  ],
)
def test_bad_arguments_are_named(make, texts, options, error, message):
  with pytest.raises(error, match=message):
    make(texts, **options)


@pytest.mark.parametrize('sizes', [(), (0, 1)])
def test_sizes_are_checked(sizes):
  with pytest.raises(ValueError, match='sizes must hold'):
    ngram_ids(['a'], sizes=sizes)


# --- files -------------------------------------------------------------------


def packed(texts, labels, part=''):
  raw = [text.encode() for text in texts]
  return {
    f'text{part}': np.frombuffer(b''.join(raw), np.uint8),
    f'offsets{part}': np.cumsum([0, *map(len, raw)]).astype(np.int32),
    f'y{part}': np.array(labels, np.uint8),
  }


def write_youtube(folder):
  """Two comments on each of the first four videos, three on the last."""
  folder.mkdir()
  singers = ('Psy', 'KatyPerry', 'LMFAO', 'Eminem', 'Shakira')
  texts, labels, videos = [], [], []
  for i, singer in enumerate(singers, 1):
    path = folder / f'Youtube0{i}-{singer}.csv'
    with open(path, 'w', newline='', encoding='utf-8') as file:
      writer = csv.writer(file)
      writer.writerow(['COMMENT_ID', 'AUTHOR', 'DATE', 'CONTENT', 'CLASS'])
      for k in range(3 if i == 5 else 2):
        texts.append(f'comment {k}, "quoted"\non {singer}')
        labels.append(k % 2)
        videos.append(i)
        writer.writerow([f'z{k}', 'someone', '', texts[-1], labels[-1]])
  return texts, labels, videos


def write_trec(folder):
  folder.mkdir()
  (folder / 'train_5500.label').write_bytes(
    b'DESC:manner How did it go ?\nENTY:animal What is a cat ?\n'
    b'ABBR:exp What is the sister\xf0city ?\nHUM:ind Who is it ?\n'
    b'LOC:city Where is it ?\r\nNUM:date When ?\nNUM:count How many ?\n'
  )
  (folder / 'TREC_10.label').write_bytes(b'NUM:dist How far ?\n')


def write_polarity(folder):
  folder.mkdir()
  (folder / 'rt-polarity.neg').write_bytes(b'so dull . \n' * 6)
  (folder / 'rt-polarity.pos').write_bytes(b'clich\xe9-free . \n' * 6)


def test_the_comments_of_five_videos(tmp_path):
  texts, labels, videos = write_youtube(tmp_path / 'youtube_spam')
  from_csv = load_text('youtube_spam', data_dir=tmp_path)
  (tmp_path / 'npz').mkdir()
  path = tmp_path / 'npz' / 'youtube_spam.npz'
  np.savez(path, **packed(texts, labels), video=np.array(videos, np.uint8))
  from_npz = load_text('youtube_spam', data_dir=path.parent)
  for dataset in (from_csv, from_npz):
    whole = published_order(dataset)
    assert [*whole.x, *dataset.test.x] == texts
    assert [*whole.labels, *dataset.test.labels] == labels
    assert len(dataset.test.labels) == 3, 'the last video'
    assert dataset.num_classes == 2


def test_questions_with_a_published_test_set(tmp_path):
  write_trec(tmp_path / 'trec6')
  dataset = load_text('trec6', data_dir=tmp_path)
  whole = published_order(dataset)
  assert whole.labels.tolist() == [0, 1, 2, 3, 4, 5, 5]
  assert whole.x[2] == 'What is the sister city ?'
  assert whole.x[4] == 'Where is it ?'
  assert (dataset.num_classes, list(dataset.test.x)) == (6, ['How far ?'])


def test_sentences_without_a_test_set_give_a_seeded_quarter(tmp_path):
  write_polarity(tmp_path / 'rt_polarity')
  dataset = load_text('rt_polarity', data_dir=tmp_path)
  assert [len(p.labels) for p in dataset[2:5]] == [8, 1, 3]
  ids = np.concatenate([p.id for p in dataset[2:5]])
  assert sorted(ids) == list(range(12))
  for part in dataset[2:5]:
    for text, label in zip(part.x, part.labels, strict=True):
      assert text == ('so dull .', 'cliché-free .')[label]
  other = load_text('rt_polarity', data_dir=tmp_path, seed=1)
  assert (other.test.id != dataset.test.id).any()


def test_texts_of_ones_own_and_the_choice_of_ids(tmp_path):
  np.savez(
    tmp_path / 'mine.npz',
    **packed(TEXTS, LABELS, '_train'),
    **packed(TEXTS[:2], LABELS[:2], '_test'),
  )
  texts = load_text('mine', data_dir=tmp_path)
  assert list(published_order(texts).x) == TEXTS
  dataset = load('mine', data_dir=tmp_path)
  np.testing.assert_array_equal(published_order(dataset).x, ngram_ids(TEXTS))
  np.testing.assert_array_equal(dataset.test.x, ngram_ids(TEXTS[:2]))
  assert dataset.train.x.dtype == np.int32
  short = functools.partial(token_ids, buckets=50, length=5)
  encoded = encode_text(texts, short)
  np.testing.assert_array_equal(published_order(encoded).x, short(TEXTS))
  for a, b in zip(texts[2:5], encoded[2:5], strict=True):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.id, b.id)


def test_only_texts_are_texts(tmp_path):
  np.savez(tmp_path / 'numbers.npz', x=np.ones((8, 2)), y=LABELS)
  with pytest.raises(ValueError, match='numbers is no text data set'):
    load_text('numbers', data_dir=tmp_path)
  with pytest.raises(ValueError, match='digits is no text data set'):
    load_text('digits')
  with pytest.raises(ValueError, match='arrays holds no texts'):
    encode_text(from_arrays(np.ones((8, 2)), np.array(LABELS)))


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    ({'y': np.zeros(7, np.uint8)}, ValueError, '8 texts, but labels of shape'),
    ({'y': np.array(LABELS) - 1}, ValueError, 'labels hold -1'),
    ({'y': np.array(LABELS) / 1.0}, TypeError, 'labels must be integers'),
    ({'text': np.zeros(3, np.uint8)}, ValueError, 'but there are 3 bytes'),
    (
      {'offsets': np.array([0, 9, 5, 5, 6, 7, 8, 9, 10])},
      ValueError,
      'row 1: its text ends before it starts',
    ),
    ({'video': np.ones(8)}, ValueError, 'all texts are of one video'),
    ({'video': np.ones(7)}, ValueError, r'8 texts, but video has shape \(7,\)'),
  ],
)
def test_arrays_that_do_not_fit_are_named(change, error, message, tmp_path):
  np.savez(tmp_path / 'bad.npz', **{**packed(TEXTS, LABELS), **change})
  with pytest.raises(error, match=r'bad\.npz.*' + message):
    load('bad', data_dir=tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
  arrays = packed(TEXTS, LABELS)
  arrays['text'] = arrays['text'].copy()
  arrays['text'][arrays['offsets'][4]] = 0xFF
  np.savez(tmp_path / 'bad.npz', **arrays)
  with pytest.raises(ValueError, match=r"bad\.npz.*row 4: 'utf-8' codec"):
    load('bad', data_dir=tmp_path)


HEADER = b'COMMENT_ID,CONTENT,CLASS\n'


@pytest.mark.parametrize(
  ('name', 'file', 'raw', 'message'),
  [
    ('youtube_spam', 'Youtube02-KatyPerry.csv', b'', 'line 1: no columns'),
    ('youtube_spam', 'Youtube02-KatyPerry.csv', HEADER, 'it holds no texts'),
    (
      'youtube_spam',
      'Youtube05-Shakira.csv',
      HEADER + b'a,"two\nlines",1\nb,text,spam\n',
      "line 4: CLASS must be 0 or 1, got 'spam'",
    ),
    (
      'youtube_spam',
      'Youtube05-Shakira.csv',
      HEADER + b'a,text,1\ncut',
      'line 3: CLASS must be 0 or 1, got None',
    ),
    (
      'youtube_spam',
      'Youtube01-Psy.csv',
      HEADER + b'a,"' + b'never closed' * 20_000,
      'line 2: field larger',
    ),
    (
      'trec6',
      'train_5500.label',
      b'DESC:manner How ?\nWHAT:is this ?\n',
      "line 2: must be a class of DESC, .*got 'WHAT:is this",
    ),
    ('trec6', 'TREC_10.label', b'NUM:date\n', 'line 1: must be a class'),
    ('trec6', 'TREC_10.label', b'NUM:date When ?\n\n\n', 'line 2 is empty'),
    ('rt_polarity', 'rt-polarity.pos', b'good .\n \nbad', 'line 2 is empty'),
  ],
)
def test_malformed_lines_are_named(name, file, raw, message, tmp_path):
  folder = tmp_path / name
  write = {
    'youtube_spam': write_youtube,
    'trec6': write_trec,
    'rt_polarity': write_polarity,
  }
  write[name](folder)
  (folder / file).write_bytes(raw)
  with pytest.raises(ValueError, match=rf'{file} is truncated.*{message}'):
    load(name, data_dir=tmp_path)
  (folder / file).unlink()
  with pytest.raises(FileNotFoundError, match=file):
    load(name, data_dir=tmp_path)


def test_what_was_looked_for_is_said(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'trec6\.npz.* or trec6/train_5500\.label'
  ):
    load('trec6', data_dir=tmp_path)


# --- TFDS --------------------------------------------------------------------


class Source(list):
  def __getitems__(self, rows):
    return [self[i] for i in rows]


class Builder:
  """A prepared data set of TFDS."""

  def __init__(self, name, splits):
    self.info = types.SimpleNamespace(
      name=name, splits=splits, features=dict.fromkeys(splits['train'][0])
    )

  def as_data_source(self, split):
    return Source(self.info.splits[split])


@pytest.mark.parametrize('label', ['label', 'label-coarse'])
def test_texts_of_tfds(label, monkeypatch):
  rows = [
    {'text': text.encode(), label: np.int64(y)}
    for text, y in zip(TEXTS, LABELS, strict=True)
  ]
  builder = Builder('trec', {'train': rows, 'test': rows[:2]})
  monkeypatch.setattr(tfds, '_prepared', lambda name, root: builder)
  texts = load_text('trec')
  assert list(published_order(texts).x) == TEXTS
  assert list(texts.test.x) == TEXTS[:2]
  dataset = load('trec')
  np.testing.assert_array_equal(published_order(dataset).x, ngram_ids(TEXTS))
  np.testing.assert_array_equal(published_order(dataset).labels, LABELS)


def test_a_data_set_of_tfds_without_text_or_image_is_named(monkeypatch):
  builder = Builder('squad', {'train': [{'context': b'', 'id': b''}]})
  monkeypatch.setattr(tfds, '_prepared', lambda name, root: builder)
  with pytest.raises(ValueError, match=r'squad of TFDS has no .* context, id'):
    load('squad')
