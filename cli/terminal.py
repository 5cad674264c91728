"""How verbs show things: tables and progress fitted to a terminal; elsewhere lines for grep."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from core.files import replace_file
from core.settings import Settings

OUT, ERR = (
    Console(stderr=e, markup=False, highlight=False, emoji=False) for e in (False, True)
)
WIDE = 10_000  # characters, off a terminal: a row is one line
STYLES = {"ok": "green", "unknown": "yellow"} | dict.fromkeys(
    ("look", "bad", "fatal"), "bold red"
)
SHORT = 2.0  # seconds; what takes less says nothing of the next time


def tell(line: str, console: Console = OUT) -> None:
    """Print a line as it is, above the progress if there is one."""
    console.print(line, soft_wrap=True)


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> Table:
    columns = (
        Column(name, overflow="fold", no_wrap=not n) for n, name in enumerate(head)
    )
    made = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        lines = (" ".join(as_text(value).split()) for value in row)
        # No signs for terminals.
        cells = ("".join(filter(str.isprintable, line)) for line in lines)
        made.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in cells))
    return made


def as_text(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    return "-" if value is None else f"{value}"


def show(what: RenderableType) -> None:
    if not OUT.is_terminal:
        OUT.width = WIDE
    with OUT.capture() as capture:
        OUT.print(what)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


class Lines(logging.Handler):
    """Prints what is logged on stderr, above the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record), ERR)


class Clock(ProgressColumn):
    """Seconds so far, and those left if it takes as long as the last time."""

    def render(self, task: Task) -> Text:
        so_far, usual = task.elapsed or 0.0, task.fields["usual"]
        left = f", about {max(usual - so_far, 0):.0f} s left" if usual else ""
        return Text(f"{so_far:.0f} s{left}")


@contextmanager
def working(settings: Settings, name: str, console: Console = ERR) -> Iterator[None]:
    """Show on a terminal that `name` goes on, and for how long; remember how long it took."""
    file, began = settings.home / "run" / "took.json", time.monotonic()
    known = json.loads(file.read_text()) if file.exists() else {}
    how: dict[str, Any] = {"console": console, "transient": True}
    # Stdout may be a file.
    how |= {
        "redirect_stdout": False,
        "disable": not console.is_terminal,
    }
    with Progress(SpinnerColumn(), TextColumn(name), Clock(), **how) as bar:
        bar.add_task(name, total=None, usual=known.get(name))
        yield
    if (took := time.monotonic() - began) > SHORT and file.parent.exists():
        with suppress(OSError):
            replace_file(file, json.dumps(known | {name: round(took, 1)}))
