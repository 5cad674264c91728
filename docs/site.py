"""`python -m docs.site`: make a site of docs/ in site/html, and check every link in it.

Pages name files of the code. The site shows each such file as a page of its own, so that it is
whole without another host. An error ends the command with 1: a link that leads nowhere, an anchor
that is not there, and whatever a page would load from another host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from core.project import CLONE

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = CLONE / "docs"
SITE = CLONE / "site"
PAGES, HTML = SITE / "pages", SITE / "html"
ZENSICAL = CLONE / ".venv-docs" / "bin" / "zensical"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")
"""The file of a link such as `[text](file.md#section)`."""
TOP_PAGES = [CLONE / "CHANGELOG.md", CLONE / "CONTRIBUTING.md"]
"""Pages of the site that stand beside docs/."""
SHOWN = {".md", ".png", ".svg", ".css", ".yml", ".ipynb"}
"""Files of docs/ that are part of the site."""
NO_SEARCH = "---\nsearch:\n  exclude: true\n---\n"
STYLE_URL = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""")
LOADS = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
}
LAZY = {"mermaid", "glightbox"}
"""Classes for which the theme's script loads another script from another host."""


def write_pages() -> None:
    """Copy the pages of docs/ and TOP_PAGES; add a page for each file that they name."""
    shutil.rmtree(SITE, ignore_errors=True)
    named = dict[Path, None]()
    pages = [path for path in sorted(DOCS.rglob("*")) if path.suffix in SHOWN]
    for path in [*pages, *TOP_PAGES]:
        target = _place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copy(path, target)
            continue
        text = LINK.sub(partial(_linked, path, named), path.read_text("utf-8"))
        target.write_text(text, "utf-8")
    for path in (path for path in named if not _place(path).exists()):
        target = _place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_folder(path) if path.is_dir() else _source(path), "utf-8")


def _place(path: Path) -> Path:
    """Return where a file or folder of the clone is a page."""
    if path in TOP_PAGES:
        return PAGES / path.name
    own = path.is_relative_to(DOCS)
    place = (
        PAGES / path.relative_to(DOCS)
        if own
        else PAGES / "source" / path.relative_to(CLONE)
    )
    if path.is_dir():
        return place / "README.md"
    return place if own else place.with_name(f"{path.name}.md")


def _linked(page: Path, named: dict[Path, None], link: re.Match[str]) -> str:
    """Return the link between both pages; what is linked becomes a key of `named`."""
    target = (page.parent / link[0]).resolve()
    if not target.exists():
        return link[0]
    named[target] = None
    if target.is_dir() and not target.is_relative_to(DOCS):
        named |= dict.fromkeys(_files(target))
    return os.path.relpath(_place(target), _place(page).parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.is_file())


def _folder(path: Path) -> str:
    """Return a page that lists the files of a folder; a page of docs/ by its title."""
    text = f"# {path.relative_to(CLONE)}\n\n"
    for file in _files(path):
        content = file.read_text("utf-8")
        title = (
            content.partition("\n")[0].removeprefix("# ")
            if file.suffix == ".md"
            else file.name
        )
        text += f"- [{title}]({_place(file).name})\n"
    return text


def _source(path: Path) -> str:
    code = path.read_text("utf-8")
    return f"{NO_SEARCH}# {path.relative_to(CLONE)}\n\n`````{path.suffix[1:]}\n{code}\n`````\n"


class Page(HTMLParser):
    """What a page of the site links, loads and can be linked by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.classes = set[str](), set[str]()
        self.links, self.loads = set[str](), set[str]()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"}:
                self.anchors.add(value or "")
            elif name == "class":
                self.classes.update((value or "").split())
            elif (tag, name) in LOADS and "canonical" not in dict(attrs).values():
                self.loads.add(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.add(value or "")


def problems() -> Iterator[str]:
    """Yield each link that leads nowhere, and what a page would load from another host."""
    pages = {path: Page(path) for path in HTML.rglob("*.html")}
    for path, page in pages.items():
        where = path.relative_to(HTML)
        yield from (
            f"{where}: loads from another host: {url}"
            for url in page.loads
            if "//" in url
        )
        yield from (
            f"{where}: class {name} loads a script" for name in page.classes & LAZY
        )
        for link in sorted(page.links | page.loads):
            if not _leads(pages, path, link):
                yield f"{where}: leads nowhere: {link}"
    for style in HTML.rglob("*.css"):
        for url in STYLE_URL.findall(style.read_text("utf-8")):
            yield f"{style.relative_to(HTML)}: loads from another host: {url}"


def _leads(pages: dict[Path, Page], page: Path, link: str) -> bool:
    url = urlsplit(link)
    if url.scheme or url.netloc or page.name == "404.html":
        return True
    target = (page.parent / unquote(url.path)).resolve() if url.path else page
    target = target / "index.html" if target.is_dir() else target
    anchor = unquote(url.fragment)
    return target.is_file() and (
        not anchor or target not in pages or anchor in pages[target].anchors
    )


def main() -> None:
    began = time.monotonic()
    write_pages()
    shutil.copy(DOCS / "zensical.toml", SITE)
    if subprocess.run(
        [ZENSICAL, "build", "--strict"], cwd=SITE, check=False
    ).returncode:
        sys.exit("the site is not built: see above")
    if found := [*problems()]:
        sys.exit("\n".join(found))
    files = [path for path in HTML.rglob("*") if path.is_file()]
    pages = sum(path.suffix == ".html" for path in files)
    size = sum(path.stat().st_size for path in files) / 1e6
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"{HTML}/index.html: {pages} pages, {size:.1f} MB, {seconds:.1f} s\n"
    )


if __name__ == "__main__":
    main()
