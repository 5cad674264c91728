"""A stack of its own: a folder, free ports, up, and down again unless it is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import typer

from stack.environment import process_environment
from stack.errors import StackError
from stack.preflight import ENV_FILE, free_ports
from stack.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

UP_SECONDS = 400
EXAMPLE = "customer_churn_model"
"""Of the shipped orders: what demo and replay show."""


@contextmanager
def folder(home: str | None, name: str, *, keep: bool) -> Iterator[Path]:
    """Give `home`, or one made for this, which is removed again if nothing is kept."""
    found = Path(home).resolve() if home else Path(mkdtemp(prefix=f"gyre-{name}-"))
    try:
        yield found
    finally:
        if not (home or keep):
            shutil.rmtree(found, ignore_errors=True)


def on_free_ports(home: Path, **more: object) -> Settings:
    """Settings of a new stack in `home`, whatever ports this shell names; kept there for others.

    more: further settings that belong to that home.

    Raises:
        StackError: there is a stack already.

    """
    if (home / "data").exists():
        raise StackError(f"{home} holds a stack already: choose another folder")
    home.mkdir(parents=True, exist_ok=True)
    own = free_ports() | more
    (home / ENV_FILE).write_text("".join(f"GYRE_{k.upper()}={v}\n" for k, v in own.items()))
    return load_settings(home=home, **own)


def bring_up(settings: Settings, *arguments: str) -> None:
    """Run `gyre up` for it, in a process of its own."""
    gyre = [str(Path(sys.executable).parent / "gyre"), "up", *arguments]
    subprocess.run(gyre, env=process_environment(settings), check=True, timeout=UP_SECONDS)


def stays_up(settings: Settings) -> None:
    """Say where it is and how to end it."""
    ours = settings.home == load_settings().home
    named = "" if ours else f"export GYRE_HOME={settings.home}; "
    typer.echo(f"It stays up, see {settings.console_address}/ ; to end it: {named}make down")
