"""Whether the links of built pages lead somewhere."""

from html.parser import HTMLParser
import pathlib
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
  """The links of a page, and the places within it that may be linked to."""

  def __init__(self, text: str):
    super().__init__()
    self.links: list[str] = []
    self.ids = {'', 'top'}
    self.feed(text)

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    """Collects `href`, `src` and `id`."""
    for name, value in attrs:
      if name in ('href', 'src') and value:
        self.links.append(value)
      if name == 'id' and value:
        self.ids.add(value)


def broken_links(folder: pathlib.Path) -> list[str]:
  """`page: link` of each link within a folder of pages that leads nowhere."""
  pages = {
    path.resolve(): Page(path.read_text(encoding='utf-8'))
    for path in sorted(folder.rglob('*.html'))
  }
  broken = []
  for path, page in pages.items():
    for link in page.links:
      parts = urlsplit(link)
      if parts.scheme or parts.netloc:
        continue
      there = (path.parent / unquote(parts.path)).resolve()
      there = there if parts.path else path
      ids = pages[there].ids if there in pages else None
      if not there.exists() or (ids and unquote(parts.fragment) not in ids):
        broken.append(f'{path.relative_to(folder.resolve())}: {link}')
  return broken
