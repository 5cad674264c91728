"""axe-core in headless Chromium on each page of a console with a year of monitoring runs."""

import json
import shutil
import subprocess
from itertools import product

import pytest

from docs.browser import PHONE, browser
from tests.support.monitoring.year_pages import PAGES, console, year  # noqa: F401  (a fixture)
from tests.support.tools.programs import needs_chromium

WIDE = 1280
AXE = "axe-core@4.14.1"
SHA512 = (
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5"
)
"""Of the package, as npm's registry states it."""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script, out of the package as npm delivers it."""
    folder = tmp_path_factory.mktemp("axe")
    fetch = f"npm pack --silent {AXE} && echo '{SHA512} ' *.tgz | sha512sum --check"
    subprocess.run(f"{fetch} && tar xf *.tgz", cwd=folder, shell=True, check=True)
    return (folder / "package" / "axe.min.js").read_text()


@pytest.mark.nightly
@needs_chromium
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
