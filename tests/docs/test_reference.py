"""`make check` holds docs/reference to the code."""

from __future__ import annotations

import re

from core.settings import PROJECT
from core.spec import ModelSpec
from tests.cli.clone import Copy
from tests.conftest import new_settings

REFERENCE = PROJECT / "docs" / "reference"
NAMED = re.compile(r"\bgyre_[a-z_]+[a-z]")
OF_HISTOGRAM = re.compile("_(bucket|count|sum)$")


CHANGES = [
    (
        "serving/metrics.py",
        "Rows scored.",
        "Rows answered.",
        "metrics",
        "| Rows answered. |",
    ),
    (
        "monitoring/console/loop_metrics.py",
        '"alerts_open"',
        '"open"',
        "metrics",
        "`gyre_open`",
    ),
    (
        "core/monitoring_spec.py",
        "Field(5, ge",
        "Field(6, ge",
        "spec",
        "| whole number ≥ 1, ≤ 100 | `6` |",
    ),
    (
        "core/training_spec.py",
        "# of acting",
        "# of not acting",
        "spec",
        "of not acting on one row |",
    ),
    (
        "serving/status.py",
        '"/health/live"',
        '"/health/alive"',
        "routes",
        "`GET /health/alive`",
    ),
]
"""A file, what of it is changed into what, and where on which page that shows."""


def test_a_change_of_the_code_makes_its_page_stale(tmp_path):
    copy = Copy(tmp_path, new_settings(tmp_path / ".gyre"))
    for path, before, after, *_ in CHANGES:
        file = tmp_path / path
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
    stale = copy.run("python -m docs.generate --check", 1).splitlines()
    assert stale == [
        f"docs/reference/{p}.md: stale, run: make docs"
        for p in ("routes", "spec", "metrics")
    ]
    copy.run("python -m docs.generate")
    for *_, page, line in CHANGES:
        assert line in (tmp_path / "docs" / "reference" / f"{page}.md").read_text()


def test_every_field_of_a_spec_is_on_its_page():
    page = (REFERENCE / "spec.md").read_text()
    assert not [
        name for name in ModelSpec.model_fields if f"\n| `{name}` | " not in page
    ]


def test_every_metric_that_rules_and_dashboard_name_is_on_its_page():
    files = [
        *PROJECT.glob("deploy/prometheus/alerts.yml"),
        *PROJECT.glob("deploy/grafana/**/*.json"),
    ]
    page = set(NAMED.findall((REFERENCE / "metrics.md").read_text()))
    named = {name for file in files for name in NAMED.findall(file.read_text())}
    assert len(files) == 2
    assert {OF_HISTOGRAM.sub("", name) for name in named} <= page
