"""The site of docs/, built by its own tool: every link leads somewhere, nothing comes from afar."""

import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from core.project import PROJECT
from docs.browser import PHONE, browser
from tests.conftest import answers, new_settings
from tests.support.tools.clone import Copy
from tests.support.tools.programs import needs_chromium

pytestmark = pytest.mark.journey

BUILD = "python -m docs.site"
TOOL = ".venv-docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the clone in which the site has been built."""
    subprocess.run(["make", "--silent", f"{TOOL}/gyre.stamp"], cwd=PROJECT, check=True)
    folder = tmp_path_factory.mktemp("site")
    copy = Copy(folder, new_settings(folder / ".gyre"))
    (folder / TOOL).symlink_to(PROJECT / TOOL)
    assert "/site/html/index.html: " in copy.run(BUILD)
    return copy


def test_the_site_has_every_page_and_the_code_that_pages_name(site):
    html = site.folder / "site" / "html"
    docs = PROJECT / "docs"
    pages = [path.relative_to(docs) for path in docs.rglob("*.md")]
    names = [page.with_name(page.name.replace("README", "index")) for page in pages]
    assert not [
        name for name in names if not (html / name).with_suffix(".html").exists()
    ]
    code = html / "source" / "serving"
    assert "RegistryWatcher" in (code / "watcher.py.html").read_text()
    assert "kserve_v1.py.html" in (code / "additions" / "index.html").read_text()


@needs_chromium
def test_a_page_loads_nothing_from_other_hosts_and_fits_a_phone(site):
    handler = partial(SimpleHTTPRequestHandler, directory=site.folder / "site" / "html")
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        browser() as chromium,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        for page in ("index", "reference/routes", "source/serving/watcher.py"):
            url = f"http://{address}/{page}.html"
            assert answers(url)
            chromium.open(url, PHONE)
            size = chromium.do("Page.getLayoutMetrics")["cssContentSize"]
            assert size["width"] == PHONE
    urls = [url for url in chromium.requests if not url.startswith("data:")]
    assert {urlsplit(url).netloc for url in urls} == {address}
