"""The page of an audit shows what is there, and nothing else happens in it."""

import base64
import csv
import html.parser
import io
import re

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jnl.train import _html, _sections, page

N, C = 120, 4
NAMES = ['cat', '<b onload="x()">dog</b>', '=1+1, "frog"\nnew', "O'Neill & co"]
ALLOWED = """html head meta title style body main section h1 h2 h3 p dl dt dd
  div nav a input label span figure figcaption blockquote bdi img table thead
  tbody tr th td svg rect path text"""
ATTACK = '</style></title><script>alert(1)</script><img src=x onerror=alert(1)>'


def problem():
  """Labels of which every fifth is wrong, and what a model says of them."""
  rng = np.random.default_rng(0)
  true = rng.permutation(N) % C
  labels = np.where(np.arange(N) % 5, true, (true + 1) % C)
  probs = rng.dirichlet(np.ones(C), N) + 3 * np.eye(C)[true]
  return labels, (probs / probs.sum(1, keepdims=True)).astype(np.float32)


LABELS, PROBS = problem()
SCORES = PROBS[np.arange(N), LABELS]
ISSUES = np.flatnonzero(PROBS.argmax(1) != LABELS)
ISSUES = ISSUES[np.argsort(SCORES[ISSUES])]
JOINT = np.histogram2d(LABELS, PROBS.argmax(1), C, [[0, C], [0, C]])[0] / N
LABELED = page.Labeled(LABELS, PROBS, class_names=NAMES)
IMAGES = np.random.default_rng(1).integers(0, 256, (N, 5, 6, 3), np.uint8)
GROUPS = np.where(np.arange(N) < 12, np.arange(N) // 3, -1)


class Tags(html.parser.HTMLParser):
  """What a browser finds: all tags, which must be closed, and the text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _html.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  def all(self, name):
    return [attributes for tag, attributes in self.tags if tag == name]

  def cards(self):
    found = [a['class'].split() for a in self.all('figure')]
    return [names for names in found if 'card' in names]

  @property
  def text(self):
    return ' '.join(' '.join(self.texts).split())


@pytest.fixture
def written(tmp_path):
  """Writes a page and reads it."""

  def write(labeled, issues=ISSUES, scores=SCORES, joint=JOINT, **options):
    path = tmp_path / 'audit.html'
    page.audit_page(path, labeled, issues, scores, joint, **options)
    return Tags(path.read_text(encoding='utf-8'))

  return write


def test_everything_is_there_and_nothing_runs_or_is_loaded(written):
  texts = [f'{ATTACK} {i} \ud800 \u202e' for i in range(N)]
  found = written(
    LABELED._replace(images=IMAGES, texts=texts),
    groups=GROUPS,
    typical=SCORES,
    title=ATTACK,
    about={ATTACK: ATTACK, 'epochs': 3},
  )
  assert ATTACK in found.text
  for name in NAMES:
    assert ' '.join(name.split()) in found.text
  assert {tag for tag, _ in found.tags} == set(ALLOWED.split())
  ids = [a['id'] for _, a in found.tags if 'id' in a]
  assert len(ids) == len(set(ids))
  for _, attributes in found.tags:
    assert not [name for name in attributes if name.startswith('on')]
    assert attributes.get('src', 'data:image/').startswith('data:image/')
    assert attributes.get('href', '#')[0] == '#'
    assert attributes.get('href', f'#{ids[0]}')[1:] in ids
    assert attributes.get('for', ids[0]) in ids
  policy = [a for a in found.all('meta') if 'http-equiv' in a]
  assert policy[0]['content'].startswith("default-src 'none'")
  assert all(a['alt'].startswith('row ') for a in found.all('img'))
  for words in ('url(', '@import', 'http:', 'https:', 'javascript:'):
    assert words not in found.text.replace(ATTACK, '')


def test_numbers(written):
  found = written(LABELED._replace(class_names=list('abcd')), groups=GROUPS)
  m = len(ISSUES)
  assert f'{m} of {N} labels look wrong' in found.text
  assert f'look wrong {m} of all {100 * m / N:.1f}%' in found.text
  wrong = 100 * (1 - JOINT.trace())
  assert f'estimated wrong {wrong:.1f}% near-duplicates 12' in found.text
  # The noise matrix: a row for each true class.
  noise = 100 * JOINT.T / JOINT.sum(0)[:, None]
  cells = [[f'{x:.1f}' if x else '' for x in row] for row in noise]
  rows = [
    f'{name} {" ".join(c for c in row if c)}'
    for name, row in zip('abcd', cells, strict=True)
  ]
  assert f'a b c d {" ".join(rows)}' in found.text
  worst = ISSUES[0]
  given, guess = LABELS[worst], PROBS[worst].argmax()
  assert (
    f'{"abcd"[given]} {100 * PROBS[worst, given]:.0f}% '
    f'{"abcd"[guess]} {100 * PROBS[worst, guess]:.0f}% row {worst} '
    f'{SCORES[worst]:.4f}'
  ) in found.text
  differ = sum(len(set(LABELS[3 * k : 3 * k + 3])) > 1 for k in range(4))
  assert f'in 4 groups. In {differ} of these the labels differ' in found.text


def test_a_pair_of_classes_is_chosen_without_a_script(written):
  # Of 100 wrong labels 80 are of one pair, and that one has the worst scores.
  labels = np.zeros(100, int)
  probs = np.tile([0.1, 0.9, 0.0], (100, 1))
  probs[80:] = [0.3, 0.0, 0.7]
  labeled = page.Labeled(labels, probs)
  found = written(labeled, np.arange(100), probs[:, 0], np.eye(3) / 3)
  cards, style = found.cards(), found.text
  of_pair = [[f'pair{k}' in names for names in cards] for k in (1, 2)]
  more = ['more' in names for names in cards]
  assert np.sum(of_pair, 1).tolist() == [_sections.WORST, _sections.OF_A_PAIR]
  assert np.flatnonzero(more).tolist() == np.flatnonzero(of_pair[1]).tolist()
  assert '0 → 1 (80) 0 → 2 (20)' in found.text
  radios = found.all('input')
  assert [a.get('checked') for a in radios] == ['', None, None]
  assert '#choice0:checked~.cards .more{display:none}' in style
  assert '#choice2:checked~.cards .card:not(.pair2){display:none}' in style


def decoded(image):
  source = re.search('base64,([^"]+)"', _html.picture(image, 'alt'))[1]
  drawn = Image.open(io.BytesIO(base64.b64decode(source)))
  return drawn.format, np.asarray(drawn)


def test_images_are_kept_stretched_or_shrunk():
  rng = np.random.default_rng(0)
  for shape in ((5, 6), (5, 6, 3), (5, 6, 4), (64, 1)):
    image = rng.integers(0, 256, shape, np.uint8)
    kind, found = decoded(image)
    assert kind == 'PNG'
    np.testing.assert_array_equal(found, image)
  flat = np.array([[0.2, 0.4]])
  for image, expected in (
    (flat, [[51, 102]]),
    (flat[..., None].astype(np.float16), [[51, 102]]),
    (jnp.asarray(flat, jnp.bfloat16), [[51, 102]]),
    (flat > 0.3, [[0, 255]]),
    ([[-2.0, 0.0, 2.0]], [[0, 128, 255]]),
    ([[0, 1000, np.nan, np.inf]], [[0, 255, 0, 0]]),
    (np.full((1, 2), 7), [[0, 0]]),
  ):
    np.testing.assert_array_equal(decoded(image)[1], expected)
  for shape, expected in (
    ((200, 300, 3), (85, 128, 3)),
    ((1, 900), (1, 128)),
    ((90, 65, 4), (90, 65, 3)),
  ):
    kind, found = decoded(np.zeros(shape, np.uint8))
    assert (kind, found.shape) == ('JPEG', expected)


def test_a_page_stays_small(written, tmp_path):
  class Noise:
    """The worst there is to compress, made when it is asked for."""

    def __len__(self):
      return N

    def __getitem__(self, row):
      rng = np.random.default_rng(row)
      return rng.integers(0, 256, (64, 64, 3), np.uint8)

  labeled = LABELED._replace(images=Noise(), texts=['😀' * 5000] * N)
  rows = np.arange(N)
  found = written(labeled, rows, groups=rows // 2, typical=SCORES)
  shown = _sections.WORST + _sections.UNUSUAL + 2 * _sections.GROUPS
  assert len(found.cards()) >= shown
  assert (tmp_path / 'audit.html').stat().st_size < 3e6


def test_the_list(tmp_path):
  path = tmp_path / 'issues.csv'
  options = {'rule': 'both', 'groups': GROUPS}
  page.write_issues(path, LABELED, ISSUES, SCORES, **options)
  with path.open(encoding='utf-8', newline='') as file:
    header, *rows = csv.reader(file)
  assert ','.join(header) == 'row,given,suggested,score,rule,duplicate group'
  assert [int(row[0]) for row in rows] == ISSUES.tolist()
  assert {row[1] for row in rows} <= set(NAMES)
  for row in rows:
    i = int(row[0])
    assert row[1:3] == [NAMES[LABELS[i]], NAMES[PROBS[i].argmax()]]
    assert float(row[3]) == pytest.approx(SCORES[i], rel=1e-5)
    assert row[4:] == ['both', str(GROUPS[i]) if i < 12 else '']
  page.write_issues(path, LABELED, [], SCORES)
  assert len(path.read_text().splitlines()) == 1


def test_little_is_enough(written):
  one = page.Labeled(np.uint8([1]), jnp.asarray([[0.75, 0.25]], jnp.bfloat16))
  found = written(one, [0], [0.25], np.eye(2) / 2, groups=[-1], typical=[9.0])
  assert '1 of 1 labels look wrong' in found.text
  assert '1 25% 0 75% row 0 0.2500' in found.text
  assert 'There are none.' in found.text
  found = written(one, [], [np.nan], np.eye(2) / 2, typical=[np.nan])
  assert 'None of 1 labels looks wrong.' in found.text
  assert 'No two classes are taken for one another.' in found.text
  # A class that nobody is of, and of many classes those that are confused.
  c = _sections.CLASSES + 5
  joint = np.eye(c)
  joint[:, 0] = 0
  joint[0, c - 1] = 1
  rows = np.arange(c)
  many = page.Labeled(rows, np.eye(c), class_names=[f'k{k}' for k in rows])
  found = written(many, [3], np.ones(c), joint / joint.sum())
  assert f'Shown are the {_sections.CLASSES} of {c} classes with' in found.text
  assert 'k0 and k24 1 4.00%' in found.text
  assert 'k0' + ' -' * _sections.CLASSES in found.text


BAD = [
  ('labels', None, 'lacks labels'),
  ('pred_probs', None, 'lacks pred_probs'),
  ('labels', np.array([0, None] * 60), 'labels: Object arrays cannot'),
  ('texts', np.array(['a', None] * 60), 'texts: Object arrays cannot'),
  ('labels', LABELS[:-1], r'labels must be \[n\] = \[120\], .* shape \(119,\)'),
  ('labels', LABELS[:, None], r'labels must be .* got shape \(120, 1\)'),
  ('labels', LABELS.astype(float), 'labels must be integers, got float'),
  ('labels', LABELS - 1, r'labels must lie in \[0, 4\), got -1 in row'),
  ('labels', np.where(LABELS, LABELS, 255), 'labels must lie in .* got 255'),
  ('pred_probs', PROBS[:, :3], r'labels must lie in \[0, 3\), got 3'),
  ('pred_probs', PROBS[:, 0], r'pred_probs must be \[n, c\]'),
  ('pred_probs', PROBS[:, :1], 'pred_probs must be .* c >= 2'),
  ('images', IMAGES[1:], 'images must be of length 120, .* got 119'),
  ('images', IMAGES[..., :2], r'images must be \[h, w\] .* \(5, 6, 2\)'),
  ('features', np.zeros((3, 2)), 'features must be of length 120'),
  ('class_names', NAMES[1:], 'class_names must be of length 4, .* got 3'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'value', 'message'), BAD)
def test_a_file_that_is_malformed(name, value, message, tmp_path):
  path = tmp_path / 'mine.npz'
  arrays = {'labels': LABELS, 'pred_probs': PROBS, name: value}
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  with pytest.raises((ValueError, TypeError), match=message):
    page.read_labeled(path)


def test_files(tmp_path):
  path = tmp_path / 'mine.npz'
  names = np.array(['ä'.encode(), b'\xff', b'c', b'd'])
  other = np.array([object()])  # is not read
  np.savez(path, **LABELED._replace(class_names=names)._asdict(), other=other)
  with pytest.raises(ValueError, match='images: Object'):  # None
    page.read_labeled(path)
  arrays = {'labels': np.uint8(LABELS), 'pred_probs': PROBS}
  np.savez(path, **arrays, class_names=names, other=other)
  found = page.read_labeled(path)
  np.testing.assert_array_equal(found.labels, LABELS)
  assert found.images is None
  page.write_issues(tmp_path / 'list.csv', found, ISSUES, SCORES)
  listed = (tmp_path / 'list.csv').read_text(encoding='utf-8')
  assert 'ä' in listed
  assert '\ufffd' in listed
  whole = path.read_bytes()
  at = whole.index(PROBS.tobytes()[:40])
  path.write_bytes(whole[:at] + b'\0' + whole[at + 1 :])
  with pytest.raises(ValueError, match='pred_probs: Bad CRC'):
    page.read_labeled(path)
  for content in (whole[:200], b'', None):
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r'mine\.npz is not there, or is no'):
      page.read_labeled(path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'issues': [N]}, rf'issues must lie in \[0, {N}\), got {N}'),
    ({'issues': np.zeros(N, bool)}, 'issues must be integers, got bool'),
    ({'issues': [[0]]}, r'issues must be \[m\]'),
    ({'scores': SCORES[:, None]}, r'scores must be .* got shape \(120, 1\)'),
    ({'joint': np.eye(3)}, r'joint must be \[4, 4\], got shape \(3, 3\)'),
    ({'joint': np.eye(4)}, 'joint must not be negative and sum to one'),
    ({'joint': np.full((4, 4), np.nan)}, 'joint must'),
    ({'groups': GROUPS[1:]}, r'groups must be \[n\]'),
    ({'typical': SCORES[1:]}, r'typical must be \[n\]'),
    ({'labeled': LABELED._replace(images=[np.zeros(3)] * N)}, 'images must be'),
    (
      {'labeled': LABELED._replace(images=[IMAGES[0], *([[]] * (N - 1))])},
      'images must be',
    ),
  ],
)
def test_what_is_wrong_is_named_and_the_old_page_stays(
  change, message, tmp_path
):
  path = tmp_path / 'audit.html'
  path.write_text('old')
  given = {
    'labeled': LABELED,
    'issues': ISSUES,
    'scores': SCORES,
    'joint': JOINT,
  }
  with pytest.raises((ValueError, TypeError), match=message):
    page.audit_page(path, **{**given, **change})
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]
