"""What a page is made of: tags that escape, tables, pictures, bars, a style."""

import base64
from collections.abc import Mapping, Sequence
import html
import io
from typing import Any

import numpy as np

from jnl.base import check

SMALL, LARGE = 64, 128
"""Pixels: images up to SMALL stay as they are, larger ones shrink to LARGE."""
BINS = 25
"""Of a histogram."""
VOID = ('img', 'input', 'meta')
"""Tags without an end."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded and nothing runs, whatever a page holds."""
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#59636e;
--line:#d8dde3;--wash:#f5f6f8;--accent:#1a5fb4}
@media (prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e6e8eb;
--soft:#a3acb7;--line:#353b43;--wash:#1f2227;--accent:#82b4f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:2rem 1rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:3rem 0 .5rem;padding-top:1rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{max-width:42rem;margin:.5rem 0 1rem}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin-top:1.5rem}
dl{margin:1.5rem 0 0}
dd{margin:0;overflow-wrap:anywhere}
dt{color:var(--soft);font-size:.875rem}
.numbers{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr))}
.numbers dd{font-size:1.5rem;font-variant-numeric:tabular-nums}
.facts div{display:grid;gap:0 1rem;padding:.25rem 0;
grid-template-columns:minmax(6rem,11rem) 1fr}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .75rem;text-align:left;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:400;font-size:.875rem;
vertical-align:bottom}
tbody th{font-weight:400}
th:first-child{padding-left:0}
.number{text-align:right}
figure{margin:0}
.beside{display:flex;flex-wrap:wrap;gap:1rem 2rem}
.histogram{flex:1 1 18rem;max-width:28rem}
svg{display:block;width:100%;height:auto;fill:var(--soft);font-size:11px}
svg path{stroke:var(--line)}
svg .axis{stroke:var(--soft)}
svg .accent{fill:var(--accent)}
img{display:block;max-width:100%;object-fit:contain}
img.small{image-rendering:pixelated}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.filter{display:flex;flex-wrap:wrap;gap:.5rem;position:relative}
.filter input{position:absolute;opacity:0}
.filter label{border:1px solid var(--line);border-radius:1rem;
padding:.1rem .75rem;cursor:pointer;overflow-wrap:anywhere}
.filter label span{color:var(--soft);font-variant-numeric:tabular-nums}
.filter input:checked+label{border-color:var(--accent);
box-shadow:inset 0 0 0 1px var(--accent)}
.filter input:focus-visible+label{outline:2px solid var(--accent);
outline-offset:2px}
.filter .cards{flex:0 0 100%;margin-top:.5rem}
#choice0:checked~.cards .more{display:none}
.cards{display:grid;gap:1.25rem 1rem;
grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr))}
.cards.wide{grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr))}
.card{min-width:0;font-size:.875rem;line-height:1.4}
.card img{width:100%;aspect-ratio:1;background:var(--wash);margin-bottom:.4rem}
.card blockquote{margin:0 0 .4rem;padding:.5rem .75rem;background:var(--wash);
white-space:pre-wrap;overflow-wrap:anywhere}
.card div{display:flex;justify-content:space-between;gap:.5rem;
overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.card .given,.card .row{color:var(--soft)}
.card .suggested{color:var(--accent);font-weight:600}
.card .row{font-size:.8125rem}
.card span{white-space:nowrap}
.matrix tbody th,.matrix thead th:first-child{position:sticky;left:0;
max-width:9rem;overflow-wrap:break-word;background:var(--paper)}
.matrix td{padding:.3rem .35rem;min-width:2.6rem;text-align:right}
.matrix td.same{color:var(--soft)}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);
text-align:left;padding:.5rem .3rem;border:0}
.matrix thead th:first-child{writing-mode:horizontal-tb;transform:none;
padding-left:0}
"""


class Html(str):
  """Text that is markup; all other text is escaped where it meets a tag."""


def tag(name: str, /, *inner: Any, **attributes: Any) -> Html:
  """An element.

  Args:
    name: of the tag.
    *inner: what is in it, in turn: `Html` as it is, anything else escaped.
    **attributes: by name, `class_` for class and `aria_label` for aria-label;
      one that is None is left out.

  Returns:
    The markup.

  >>> print(tag('b', '1 < 2', tag('i', 3), title='"'))
  <b title="&quot;">1 &lt; 2<i>3</i></b>
  """
  opened = name + ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  if name in VOID:
    return Html(f'<{opened}>')
  return Html(f'<{opened}>{join(*inner)}</{name}>')


def join(*inner: Any) -> Html:
  """One piece of markup of several, and of texts, which are escaped."""
  return Html(
    ''.join(x if isinstance(x, Html) else html.escape(str(x)) for x in inner)
  )


def document(title: str, body: Html) -> str:
  """A whole page that neither loads nor runs anything.

  Args:
    title: of the window.
    body: what is seen.

  Returns:
    Its text.
  """
  head = tag(
    'head',
    tag('meta', charset='utf-8'),
    tag('meta', http_equiv='Content-Security-Policy', content=POLICY),
    tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
    tag('title', title),
    tag('style', Html(STYLE)),
  )
  whole = tag('html', head, '\n', tag('body', body), '\n', lang='en')
  return f'<!doctype html>\n{whole}\n'


def table(
  header: Sequence[str], rows: Sequence[Sequence[Any]], label: str
) -> Html:
  """A table in a box of its own, which scrolls where it is too wide.

  Args:
    header: of the columns.
    rows: of cells, of which the first is the name of the row.
    label: what it shows, for those who do not see it.

  Returns:
    The markup.
  """
  heads = [
    tag('th', name, scope='col', class_='number' if i else None)
    for i, name in enumerate(header)
  ]
  body = [
    tag(
      'tr',
      tag('th', name, scope='row'),
      *(tag('td', value, class_='number') for value in values),
    )
    for name, *values in rows
  ]
  return scrolled(
    tag('table', tag('thead', tag('tr', *heads)), tag('tbody', *body)), label
  )


def scrolled(inner: Html, label: str) -> Html:
  """What scrolls in a box of its own, also by the keyboard."""
  return tag(
    'div', inner, class_='scroll', tabindex=0, role='region', aria_label=label
  )


def facts(values: Mapping[str, Any], style: str) -> Html:
  """A list of names and values."""
  pairs = [
    tag('div', tag('dt', name), tag('dd', value))
    for name, value in values.items()
  ]
  return tag('dl', *pairs, class_=style)


def picture(image: Any, alt: str) -> Html:
  """An image within the page: a PNG of a small one, a JPEG of a large one.

  Args:
    image: [h, w] or [h, w, 1, 3 or 4]: bytes, or floats in [0, 1]; others are
      stretched to their range, and what is not finite is 0.
    alt: what it shows, for those who do not see it.

  Returns:
    The markup.

  Raises:
    ValueError: if the shape is another one.
  """
  from PIL import Image  # slow to import

  pixels = np.asarray(image)
  check_image(pixels)
  if pixels.dtype != np.uint8:
    pixels = np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
    low, high = pixels.min(), pixels.max()
    if low >= 0 and high <= 1:
      low, high = 0, 1
    pixels = (255 * (pixels - low) / max(high - low, 1e-12)).round()
  pixels = pixels.astype(np.uint8)
  drawn = Image.fromarray(
    pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
  )
  stored, small = io.BytesIO(), max(drawn.size) <= SMALL
  if small:
    drawn.save(stored, 'png', optimize=True)
  else:
    drawn = drawn.convert('RGB') if drawn.mode == 'RGBA' else drawn
    drawn.thumbnail((LARGE, LARGE))
    drawn.save(stored, 'jpeg', quality=80)
  code = base64.b64encode(stored.getvalue()).decode()
  return tag(
    'img',
    src=f'data:image/{"png" if small else "jpeg"};base64,{code}',
    alt=alt,
    class_='small' if small else None,
  )


def check_image(image: Any) -> None:
  """Raises ValueError for what `picture` cannot show."""
  shape = np.shape(image)
  check(
    np.prod(shape) and shape[2:] in ((), (1,), (3,), (4,)) and len(shape) >= 2,
    f'images must be [h, w] or [h, w, 1, 3 or 4] each, got shape {shape}',
  )


def histogram(
  values: np.ndarray,
  limits: tuple[float, float],
  title: str,
  style: str | None = None,
) -> Html:
  """How many values are where, as bars on a logarithmic scale.

  Args:
    values: [n]; what is not finite is left out.
    limits: the smallest and the largest value there is room for.
    title: above the bars.
    style: `'accent'` for bars in the color of the page.

  Returns:
    The markup.
  """
  low, high = limits if limits[0] < limits[1] else (limits[0], limits[0] + 1)
  values = values[np.isfinite(values)]
  counts, edges = np.histogram(values, BINS, (low, high))
  left, width, top, base = 40, 280, 8, 118
  step, most = width / BINS, int(counts.max())
  # Logarithms of 1 + count, so that one is seen and none is not.
  height = lambda count: (base - top) * np.log1p(count) / np.log1p(max(most, 1))
  grid = [10**k for k in range(len(str(max(most, 1))))]
  lines = [
    join(
      tag('path', d=f'M{left} {base - height(count):.1f}h{width}'),
      _words(f'{count:,}', left - 5, base - height(count) + 4, 'end'),
    )
    for count in grid
  ]
  bars = [
    tag(
      'rect',
      tag('title', f'{edges[k]:.3g} to {edges[k + 1]:.3g}: {count:,}'),
      x=f'{left + k * step + 0.5:g}',
      y=f'{base - height(count):.1f}',
      width=f'{step - 1:g}',
      height=f'{height(count):.1f}',
      class_=style,
    )
    for k, count in enumerate(counts)
    if count
  ]
  ticks = [
    _words(f'{low + x * (high - low):.3g}', left + x * width, base + 15, anchor)
    for anchor, x in (('start', 0), ('middle', 0.5), ('end', 1))
  ]
  svg = tag(
    'svg',
    *lines,
    *bars,
    tag('path', d=f'M{left} {base}h{width}', class_='axis'),
    *ticks,
    viewBox=f'0 0 {left + width} {base + 20}',
    role='img',
    aria_label=f'{title}: {len(values):,} values in {BINS} bars from {low:.3g} '
    f'to {high:.3g}; the highest, {most:,}, begins at '
    f'{edges[counts.argmax()]:.3g}',
  )
  return tag('figure', tag('figcaption', title), svg, class_='histogram')


def _words(text: str, x: float, y: float, anchor: str) -> Html:
  return tag('text', text, x=f'{x:g}', y=f'{y:g}', text_anchor=anchor)
