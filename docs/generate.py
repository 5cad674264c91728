"""`python -m docs.generate`: write docs/reference/ from what the code says of itself.

With `--check` nothing is written. Pages that differ from the code, and links of the documentation
that lead to no file, are printed, and the exit code is 1.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined

from core.errors import GyreError
from core.project import CLONE, PROJECT
from core.settings import Settings
from docs.python_names import python
from docs.routes import routes
from docs.spec_fields import spec
from monitoring.console.loop_metrics import METRICS
from serving import metrics as serving_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = CLONE / "docs" / "reference"
GENERATED = "<!-- Written by `make docs`: edit {}. -->\n\n"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")
"""The file of a link such as `[text](file.md#section)`."""
REPEATED = re.compile(
    r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n|\*\*Options\*\*:\n\n\* `--help`.*\n\n|\* `--help`.*\n"
)
"""The first words of the sections that follow, and the option that every command has."""
SETTINGS_HEAD = """# Settings

Environment variables, or lines of `GYRE_HOME/gyre.env` such as `GYRE_MLFLOW_PORT=5001`. A variable
of the environment wins. A running stack keeps the environment of its `gyre up`. Tests run every
setting.

| variable | default | meaning |
|---|---|---|
"""
EXIT_CODES_HEAD = """
## Exit codes

An error is one message on stderr. `-h` and `--help` describe a command.

| code | reason |
|---|---|
| 0 | The command did what it was asked. |
"""
METRICS_HEAD = """# Metrics

Prometheus reads them. [Console](../console.md#metrics) has the rules and the dashboard.

## Serving

They are at `/metrics` of serving: sums over all processes.

| metric | kind | labels | meaning |
|---|---|---|---|
"""
LOOP_HEAD = """
## The loop

They are at `/metrics` of the console. [Console](../console.md#metrics) names their labels.

| metric | meaning |
|---|---|
"""


def commands() -> str:
    """Return what Typer's own command for documentation prints of `gyre`."""
    typer = [sys.executable, "-m", "typer", "cli.main", "utils", "docs"]
    named = ["--name", "gyre", "--title", "Commands"]
    page = subprocess.run(
        [*typer, *named], cwd=CLONE, check=True, capture_output=True, text=True
    )
    useful = REPEATED.sub("", html.unescape(page.stdout)).strip()
    return f"{useful}\n{EXIT_CODES_HEAD}{''.join(exit_codes())}"


def exit_codes() -> Iterator[str]:
    """Yield a row for each error with an exit code of its own, from the tree of errors."""
    errors: list[type[GyreError]] = [GyreError]
    for error in errors:
        errors += error.__subclasses__()
    notes = {
        1: " Also any other error, and results for which a command names this code.",
        2: " Also a wrong argument or option.",
    }
    for error in errors:
        if "exit_code" in vars(error):
            code = error.exit_code
            reason = " ".join((error.__doc__ or "").split())
            yield f"| {code} | {reason}{notes.get(code, '')} |\n"


def settings() -> str:
    """Return a table of every field of `Settings`; its meaning is the text below the field."""
    page = SETTINGS_HEAD
    for name, field in Settings.model_fields.items():
        value = field.default
        if isinstance(value, Path):
            value = (
                value.relative_to(PROJECT) if value.is_relative_to(PROJECT) else value
            )
            value = None if value == Path() else value  # the clone
        default = "" if value in {None, "", PydanticUndefined} else f"`{value}`"
        meaning = " ".join((field.description or "").split())
        page += f"| `GYRE_{name.upper()}` | {default} | {meaning} |\n"
    return page


def metrics() -> str:
    """Return tables of what serving counts, and of what the console says of the loop."""
    page = METRICS_HEAD
    for metric in vars(serving_metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(metric._labelnames)  # noqa: SLF001  (no public way to ask)
            page += (
                f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n"
            )
    page += LOOP_HEAD
    return page + "".join(
        f"| `gyre_{name}` | {text} |\n" for name, text in METRICS.items()
    )


def broken_links() -> Iterator[str]:
    pages = [*CLONE.glob("*.md"), *(CLONE / "docs").rglob("*.md")]
    for page in sorted(pages):
        for target in LINK.findall(page.read_text("utf-8")):
            if not (page.parent / target).exists():
                yield f"{page.relative_to(CLONE)}: no such file: {target}"


SOURCES = {
    commands: "cli/, core/errors.py",
    python: "gyre/",
    settings: "core/settings.py",
    routes: "serving/",
    spec: "core/*_spec.py",
    metrics: "serving/metrics.py, monitoring/console/loop_metrics.py",
}
"""Each page and what it is made of."""

if __name__ == "__main__":
    wanted = {
        REFERENCE / f"{page.__name__}.md": GENERATED.format(source) + page()
        for page, source in SOURCES.items()
    }
    if "--check" in sys.argv:
        there = {path: path.read_text("utf-8") for path in REFERENCE.glob("*.md")}
        stale = [path for path, page in wanted.items() if there.get(path) != page]
        problems = [
            f"{path.relative_to(CLONE)}: stale, run: make docs" for path in stale
        ]
        sys.exit("\n".join([*problems, *broken_links()]) or 0)
    for path, page in wanted.items():
        path.write_text(page, "utf-8")
