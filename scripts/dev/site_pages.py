"""Pages of the site that lie outside docs/, and links that fit there: a hook of mkdocs.yml.

Pages link to files of the clone by relative paths, so that they can be followed in an editor and
on a code host. On the site, a link to a page is that page; other files of the clone are not on the
site, so their name remains as text. A link to a file that does not exist is a warning, and with
`mkdocs build --strict` an error.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Page of the site: its file in the clone.
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "datasets.md": "data/README.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
logger = logging.getLogger("mkdocs.hooks.site_pages")


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links between files of the clone into links between pages."""
    uri = page.file.src_uri
    source = ROOT / OUTSIDE[uri] if uri in OUTSIDE else DOCS / uri

    def fitted(match: re.Match[str]) -> str:
        path = match["path"]
        if not path or ":" in path:
            return match[0]
        target = Path(os.path.normpath(source.parent / path))
        if not target.exists():
            logger.warning("%s: link to %s, which does not exist", source.relative_to(ROOT), path)
            return match[0]
        place = _page_of(target)
        if place is None:
            return match["text"]
        link = os.path.relpath(place, Path(uri).parent)
        return f"[{match['text']}]({Path(link).as_posix()}{match['anchor'] or ''})"

    parts = []
    start = 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(fitted, markdown[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, LINK.sub(fitted, markdown[start:])])


def _page_of(target: Path) -> str | None:
    """Name the page of the site that shows a file of the clone, or None."""
    for page, source in OUTSIDE.items():
        if target == ROOT / source:
            return page
    if target.is_file() and target.is_relative_to(DOCS) and target.suffix != ".json":
        return target.relative_to(DOCS).as_posix()
    return None
