"""The sections of a page of an audit: each is made of what was found."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jnl import audit
from jnl.train._html import (
  Html,
  facts,
  histogram,
  join,
  picture,
  scrolled,
  table,
  tag,
)

WORST, PAIRS, OF_A_PAIR = 60, 10, 6
"""Labels that are shown; pairs of classes to choose, and how many of each."""
CLASSES, OVERLAPS = 20, 10
"""Rows of a table; of more classes, those with the most confusion."""
GROUPS, OF_A_GROUP, UNUSUAL = 6, 4, 12
"""Near-duplicates and outliers that are shown."""
LETTERS, OF_A_NAME = 400, 40
"""What is shown of a text, and of the name of a class."""
STRONGEST = 50
"""Percent of the accent in a cell: text can be read on it, light and dark."""


class Found(NamedTuple):
  """What an audit found, read and checked; see `page.audit_page`."""

  labels: np.ndarray
  probs: np.ndarray
  names: list[str]
  images: Sequence | np.ndarray | None
  texts: Sequence | np.ndarray | None
  issues: np.ndarray
  scores: np.ndarray
  joint: np.ndarray
  groups: np.ndarray | None
  typical: np.ndarray | None


def text_of(value: Any) -> str:
  """A string; bytes are read as UTF-8."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  return str(value)


def _short(text: str, length: int) -> str:
  return text if len(text) <= length else text[:length].rstrip() + '…'


def _name(found: Found, label: int) -> str:
  return _short(found.names[label], OF_A_NAME)


def _share(value: float) -> str:
  return f'{100 * value:.1f}%'


def _decimals(value: float) -> str:
  return '<0.0001' if 0 < value < 1e-4 else f'{value:.4f}'


# --- examples -----------------------------------------------------------------


def numbers(found: Found) -> Html:
  """What comes first: how many labels look wrong."""
  n, m = len(found.labels), len(found.issues)
  values = {
    'labels': f'{n:,}',
    'classes': f'{len(found.names):,}',
    'look wrong': f'{m:,}',
    'of all': _share(m / n),
    'estimated wrong': _share(1 - found.joint.trace()),
  }
  if found.groups is not None:
    values['near-duplicates'] = f'{(found.groups >= 0).sum():,}'
  return facts(values, 'numbers')


def suspicious(found: Found) -> Html:
  """The worst of all, and of the commonest pairs, with a choice of pairs."""
  issues, c = found.issues, len(found.names)
  n, m = len(found.labels), len(issues)
  if not m:
    return tag('p', f'None of {n:,} labels looks wrong.')
  guess = found.probs[issues].argmax(1)
  pairs = found.labels[issues].astype(np.int64) * c + guess
  kinds, counts = np.unique(pairs, return_counts=True)
  common = kinds[np.argsort(-counts, kind='stable')[:PAIRS]].tolist()
  shown = set(range(min(WORST, m)))
  for pair in common:
    shown |= set(np.flatnonzero(pairs == pair)[:OF_A_PAIR].tolist())

  def style_of(i: int) -> str:
    pair = int(pairs[i])
    own = f' pair{common.index(pair) + 1}' if pair in common else ''
    return own + (' more' if i >= WORST else '')

  cards = [_card(found, issues[i], style=style_of(i)) for i in sorted(shown)]
  choices = [
    (
      f'{_name(found, pair // c)} → {_name(found, pair % c)}',
      (pairs == pair).sum(),
    )
    for pair in common
  ]
  return join(
    tag(
      'p',
      f'{m:,} of {n:,} labels look wrong; the worst come first. The given label'
      ' stands above the one that the model finds most likely, each with its '
      'probability; then the row and the score of the label.',
    ),
    _filter([('all', m), *choices], _cards(found, cards)),
  )


def _filter(choices: list[tuple[str, int]], cards: Html) -> Html:
  """Cards, and which of them are seen: by rules of style, without a script."""
  chosen = ''.join(
    f'#choice{k}:checked~.cards .card:not(.pair{k}){{display:none}}'
    for k in range(1, len(choices))
  )
  buttons = [
    join(
      tag(
        'input',
        type='radio',
        name='choice',
        id=f'choice{k}',
        checked=None if k else '',
      ),
      tag('label', name, ' ', tag('span', f'({count:,})'), for_=f'choice{k}'),
    )
    for k, (name, count) in enumerate(choices)
  ]
  return join(
    tag('style', Html(chosen)), tag('div', *buttons, cards, class_='filter')
  )


def _cards(found: Found, cards: list[Html]) -> Html:
  wide = found.texts is not None
  return tag('div', *cards, class_='cards wide' if wide else 'cards')


def _card(
  found: Found, row: int, score: float | None = None, style: str = ''
) -> Html:
  """An example: what it is, its labels, its row and score."""
  probs, label = found.probs[row].astype(float), found.labels[row]
  guess = probs.argmax()
  given, suggested = _name(found, label), _name(found, guess)
  parts = []
  if found.images is not None:
    alt = f'row {row}: given {given}, suggested {suggested}'
    parts += [picture(found.images[row], alt)]
  if found.texts is not None:
    text = _short(text_of(found.texts[row]), LETTERS)
    parts += [tag('blockquote', text, dir='auto')]
  score = found.scores[row] if score is None else score
  parts += [
    tag('div', tag('bdi', left, title=kind), tag('span', right), class_=kind)
    for kind, left, right in (
      ('given', given, f'{100 * probs[label]:.0f}%'),
      ('suggested', suggested, f'{100 * probs[guess]:.0f}%'),
      ('row', f'row {row}', _decimals(score)),
    )
  ]
  return tag('figure', *parts, class_=f'card{style}')


def duplicates(found: Found) -> Html | None:
  """Groups of them: first those whose labels differ, then the largest."""
  if found.groups is None:
    return None
  rows = np.flatnonzero(found.groups >= 0)
  rows = rows[np.argsort(found.groups[rows], kind='stable')]
  ends = np.flatnonzero(np.diff(found.groups[rows])) + 1
  groups = np.split(rows, ends) if len(rows) else []
  differ = [len(np.unique(found.labels[group])) > 1 for group in groups]
  text = (
    f'{len(rows):,} examples are nearly the same as others, in {len(groups):,} '
    f'groups. In {sum(differ):,} of these the labels differ; if the examples '
    'are the same, some label is wrong.'
  )
  order = sorted(
    range(len(groups)), key=lambda i: (-differ[i], -len(groups[i]))
  )
  blocks = [
    join(
      tag(
        'h3',
        f'{len(groups[i]):,} examples, labels '
        f'{"differ" if differ[i] else "agree"}',
      ),
      _cards(found, [_card(found, row) for row in groups[i][:OF_A_GROUP]]),
    )
    for i in order[:GROUPS]
  ]
  return join(tag('p', text if groups else 'There are none.'), *blocks)


def outliers(found: Found) -> Html | None:
  """The least typical ones, and how typical all are."""
  if found.typical is None:
    return None
  finite = np.flatnonzero(np.isfinite(found.typical))
  order = finite[np.argsort(found.typical[finite], kind='stable')]
  cards = [_card(found, row, found.typical[row]) for row in order[:UNUSUAL]]
  text = (
    'The examples that are least like others; the last number says how usual '
    'each is. They may belong to none of the classes.'
  )
  return join(
    tag('p', text),
    _cards(found, cards),
    tag('h3', 'How usual examples are'),
    tag(
      'div',
      histogram(found.typical, _limits(found.typical), 'All examples'),
      class_='beside',
    ),
  )


# --- classes ------------------------------------------------------------------


def scores(found: Found) -> Html:
  """Where the scores of all labels are, and of those that look wrong."""
  limits = _limits(found.scores)
  flagged = found.scores[found.issues]
  return join(
    tag(
      'p',
      'Low scores are suspicious. Numbers of labels, on a logarithmic scale.',
    ),
    tag(
      'div',
      histogram(found.scores, limits, 'All labels'),
      histogram(flagged, limits, 'Labels that look wrong', 'accent'),
      class_='beside',
    ),
  )


def _limits(values: np.ndarray) -> tuple[float, float]:
  """From 0 to 1 if all values are there, else from the least to the most."""
  finite = values[np.isfinite(values)]
  if not finite.size or (finite.min() >= 0 and finite.max() <= 1):
    return 0.0, 1.0
  return float(finite.min()), float(finite.max())


def _confused(joint: np.ndarray) -> np.ndarray:
  """The classes of a table: all, or those with the most confusion, in order."""
  off = joint.sum(0) + joint.sum(1) - 2 * joint.diagonal()
  return np.sort(np.argsort(-off, kind='stable')[:CLASSES])


def _noise(joint: np.ndarray) -> np.ndarray:
  """Row i, column j: how many of true class i have label j; NaN of no one."""
  total = joint.sum(0)[:, None]
  return np.where(total > 0, joint.T / np.where(total > 0, total, 1), np.nan)


def matrix(found: Found) -> Html:
  """Which class has the label of which, as a heat map of numbers."""
  noise, chosen = _noise(found.joint), _confused(found.joint)
  off = np.nan_to_num(noise[np.ix_(chosen, chosen)])
  np.fill_diagonal(off, 0)
  most = off.max() or 1

  def cell(i: int, j: int) -> Html:
    value = noise[i, j]
    if np.isnan(value):
      return tag('td', '-', class_='same')
    if i == j:
      return tag('td', f'{100 * value:.1f}', class_='same')
    depth = STRONGEST * value / most
    color = f'color-mix(in srgb,var(--accent) {depth:.0f}%,transparent)'
    shown = f'{100 * value:.1f}' if value >= 5e-4 else ''
    return tag('td', shown, style=f'background:{color}' if depth >= 1 else None)

  heads = [tag('th', _name(found, j), scope='col') for j in chosen]
  rows = [
    tag(
      'tr',
      tag('th', _name(found, i), scope='row'),
      *(cell(i, j) for j in chosen),
    )
    for i in chosen
  ]
  whole = tag(
    'table',
    tag('thead', tag('tr', tag('th', 'true \\ given'), *heads)),
    tag('tbody', *rows),
    class_='matrix',
  )
  c = len(found.names)
  some = f' Shown are the {CLASSES} of {c:,} classes with the most confusion.'
  return join(
    tag(
      'p',
      'Of 100 examples that truly are of the class of a row, how many have the '
      'label of a column, as estimated. The stronger the color, the more are '
      f'wrong; right labels have none.{some if c > CLASSES else ""}',
    ),
    scrolled(whole, 'Noise matrix, a row for each true class'),
  )


def classes(found: Found) -> Html:
  """Numbers of each class, the worst first."""
  c = len(found.names)
  sizes = np.bincount(found.labels, minlength=c)
  flagged = np.bincount(found.labels[found.issues], minlength=c)
  ranked = audit.rank_classes(found.joint, len(found.labels))
  rows = [
    (
      *(_name(found, k), f'{sizes[k]:,}', f'{flagged[k]:,}'),
      *(_share(ranked.noise[i]), _share(ranked.missed_rate[i])),
    )
    for i, k in enumerate(ranked.index[:CLASSES])
  ]
  text = (
    'Wrong: of the labels of a class, the share that is estimated to be wrong. '
    'Missed: of the examples that truly are of a class, the share with another '
    'label.'
  )
  some = f' Shown are the worst {CLASSES} of {c:,} classes.'
  return join(
    tag('p', text + (some if c > CLASSES else '')),
    table(
      ('class', 'labels', 'look wrong', 'wrong', 'missed'), rows, 'Classes'
    ),
  )


def overlaps(found: Found) -> Html:
  """Pairs of classes, those that are taken for one another most often first."""
  pairs = audit.overlapping_classes(found.joint, len(found.labels))
  rows = [
    (
      f'{_name(found, a)} and {_name(found, b)}',
      f'{number:,}',
      f'{100 * share:.2f}%',
    )
    for a, b, number, share in zip(*(x[:OVERLAPS] for x in pairs), strict=True)
    if number
  ]
  if not rows:
    return tag('p', 'No two classes are taken for one another.')
  return join(
    tag(
      'p',
      'Examples that are estimated to have the label of one class and to '
      'be of the other.',
    ),
    table(('classes', 'examples', 'of all'), rows, 'Overlapping classes'),
  )
