"""axe-core in headless Chromium on each page of a console with a year of monitoring runs."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from itertools import product

import pytest

from docs.browser import NAMES, PHONE, browser
from tests.console.test_year import PAGES, console, year  # noqa: F401  (a fixture)

WIDE = 1280
AXE = "axe-core@4.14.1"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
"""Of the package, base64, as npm writes it into a lock file."""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script, out of the package as npm delivers it."""
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        ["npm", "pack", "--silent", AXE],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    package = (folder / packed.stdout.strip()).read_bytes()
    assert base64.b64encode(hashlib.sha512(package).digest()).decode() == SHA512
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()  # type: ignore[union-attr]


@pytest.mark.nightly
@pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason="Chromium is not installed"
)
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_no_page_has_a_serious_accessibility_problem(axe, year):
    problems = {}
    with console(year) as (client, _), browser() as chromium:
        for path, width, dark in product(PAGES[:-1], (WIDE, PHONE), (False, True)):
            chromium.open(f"{client.base_url}{path}", width, dark=dark)
            chromium.do("Runtime.evaluate", expression=axe)
            run = "axe.run().then(JSON.stringify)"
            answer = chromium.do("Runtime.evaluate", expression=run, awaitPromise=True)
            report = json.loads(answer["result"]["value"])
            assert len(report["passes"]) > 10
            for problem in report["violations"]:
                if problem["impact"] in {"serious", "critical"}:
                    problems[path, width, dark] = problem["id"]
    assert problems == {}
