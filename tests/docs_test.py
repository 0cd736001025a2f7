"""What the pages are made of: papers, their table, an entry for each name."""

import copy
import pathlib
import re
import shlex

import links
import papers
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'


@pytest.fixture(scope='module')
def found():
  return papers.find_papers()


@pytest.fixture
def known():
  return copy.deepcopy(papers.read_known())


def test_every_paper_has_one_row_and_every_row_a_paper(found, known):
  assert len(found) > 70
  papers.check_rows(found, known)
  assert 'methods.elr' in found[elr_of(found)]
  assert 'losses.elr_plus_labels' in found[elr_of(found)]  # "see ..."


def elr_of(found):
  return next(paper for paper in found if paper.arxiv == '2007.00151')


def test_what_does_not_agree_is_an_error(found, known):
  rows = known['groups'][0]['papers']
  rows['9999.00001'] = {'name': 'of nobody'}
  rows['2007.00151'] = {'name': 'ELR once more'}
  rows['1805.07836']['noisy_labels']['losses.ce'] = '100'
  rows['1712.09482'] = {'name': 'MAE', 'nowhere': {'losses.mae': '100'}}
  del rows['1908.06112']
  with pytest.raises(ValueError, match='9999') as error:
    papers.check_rows(found, known)
  for part in (
    'no Reference: names 9999.00001',
    '2007.00151 has two rows',
    '1805.07836 has a number of losses.ce, which does not refer to it',
    '1712.09482 has a number of nowhere, which is no setting',
    "['losses.rce', 'losses.sce'] refer to 1908.06112, which has no row",
  ):
    assert part in str(error.value)


def test_references_are_read():
  def read(text):
    return papers.papers_of('losses', 'mine', f'It.\n\nReference: {text}\n')

  both = read(
    'the code of A, B\nC, "One: a\nTitle?", ICML 2020, arXiv 2001.00001 (eq. '
    '3); A et\nal., "Two", 2019. More of it; see `gce`.'
  )
  assert both[:2] == [
    papers.Paper('One: a Title?', 'ICML 2020', '2001.00001'),
    papers.Paper('Two', '2019', None),
  ]
  assert both[2].arxiv == '1805.07836'
  assert papers.papers_of('losses', 'mine', 'It.') == []
  for text in (
    'Ye et al., NeurIPS 2023.',  # no title
    'A and B, Title, ICML 2020, arXiv 2001.00001.',
    'A, "Title", ICML 2020, arXiv 2001.00001; B, arXiv 2001.00002.',
    'the official code.',
  ):
    with pytest.raises(ValueError, match=r'losses\.mine: write the reference'):
      read(text)
  with pytest.raises(AttributeError):
    read('see `no_such_loss`.')


def test_a_paper_has_one_title(monkeypatch):
  monkeypatch.setattr(papers, 'ROOMS', ('ramps',))
  assert len(papers.find_papers()) == 4
  first = 'A, "Title", ICML 2020, arXiv 2001.00001'
  for other in (first.replace('ICML', 'ICLR'), first.replace('00001', '00002')):
    monkeypatch.setattr(
      papers,
      'functions',
      lambda room, other=other: {
        'f': function_with(first),
        'g': function_with(other),
      },
    )
    with pytest.raises(ValueError, match='told in two ways'):
      papers.find_papers()


def function_with(reference):
  def function():
    """."""

  function.__doc__ = f'It.\n\nReference: {reference}.'
  return function


def test_the_table_has_every_call(found, known):
  text = '\n'.join(papers.table(found, known))
  for names in found.values():
    for name in names:
      assert f'{{call}}`{name}`' in text


def test_commands_exist(known):
  for setting in known['settings'].values():
    python, script, *options = shlex.split(setting['command'])
    assert python == 'python'
    text = (ROOT / script).read_text()
    for option in options[::2]:
      assert re.search(rf'\b{option.removeprefix("--")}\b', text)


def test_every_public_name_has_an_entry():
  pages = {path.stem for path in (DOCS / 'api').glob('*.rst')} - {'index'}
  listed = (DOCS / 'api/index.rst').read_text().split()
  assert pages == set(papers.ROOMS)
  assert {f'jnl.{page}' for page in pages} <= set(listed)
  for room in papers.ROOMS:
    text = (DOCS / f'api/{room}.rst').read_text()
    assert text.endswith(f'\n.. room:: jnl.{room}\n')


def test_links_are_followed(tmp_path):
  (tmp_path / 'api').mkdir()
  (tmp_path / 'a.html').write_text(
    '<p id="here"><a href="#here"><a href="api/b.html#there">'
    '<a href="https://example.org/x"><a href="#gone"><img src="no.png">'
    '<a href="api/b.html#here"><a href="c.html">'
  )
  (tmp_path / 'api/b.html').write_text('<p id="there"><a href="../a.html">')
  broken = ['#gone', 'no.png', 'api/b.html#here', 'c.html']
  assert links.broken_links(tmp_path) == [f'a.html: {link}' for link in broken]
