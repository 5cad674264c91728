"""`python -m docs.generate`: write docs/reference/ from Typer's commands and pydantic's settings.

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

from pydantic_core import PydanticUndefined

from core.settings import CLONE, PROJECT, Settings

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
of the environment wins. The processes of a running stack read the file alone. Tests run every
setting but one whose text says that it is not tested.

| variable | default | meaning |
|---|---|---|
"""


def commands() -> str:
    """Return what Typer's own command for documentation prints of `gyre`."""
    typer = [sys.executable, "-m", "typer", "cli.main", "utils", "docs"]
    named = ["--name", "gyre", "--title", "Commands"]
    page = subprocess.run([*typer, *named], cwd=CLONE, check=True, capture_output=True, text=True)
    useful = REPEATED.sub("", html.unescape(page.stdout)).strip()
    return f"{GENERATED.format('cli/')}{useful}\n"


def settings() -> str:
    """Return a table of every field of `Settings`; its meaning is the text below the field."""
    page = GENERATED.format("core/settings.py") + SETTINGS_HEAD
    for name, field in Settings.model_fields.items():
        value = field.default
        if isinstance(value, Path):
            value = value.relative_to(PROJECT) if value.is_relative_to(PROJECT) else value
        default = "" if value in {None, "", PydanticUndefined} else f"`{value}`"
        meaning = " ".join((field.description or "").split())
        page += f"| `GYRE_{name.upper()}` | {default} | {meaning} |\n"
    return page


def broken_links() -> Iterator[str]:
    pages = [*CLONE.glob("*.md"), *(CLONE / "docs").rglob("*.md")]
    for page in sorted(pages):
        for target in LINK.findall(page.read_text("utf-8")):
            if not (page.parent / target).exists():
                yield f"{page.relative_to(CLONE)}: no such file: {target}"


if __name__ == "__main__":
    wanted = {REFERENCE / "commands.md": commands(), REFERENCE / "settings.md": settings()}
    if "--check" in sys.argv:
        stale = [path for path, page in wanted.items() if path.read_text("utf-8") != page]
        problems = [f"{path.relative_to(CLONE)}: stale, run: make docs" for path in stale]
        sys.exit("\n".join([*problems, *broken_links()]) or 0)
    for path, page in wanted.items():
        path.write_text(page, "utf-8")
