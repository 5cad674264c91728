"""Printing: tables and progress that fit a terminal, and lines for grep elsewhere."""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

OUT = Console(markup=False, highlight=False, emoji=False)
ERR = Console(markup=False, highlight=False, emoji=False, stderr=True)
PIPE_WIDTH = 10_000
"""Characters of a line outside a terminal, where a row is one line."""
STYLES = {
    "ok": "green",
    "healthy": "green",
    "unknown": "yellow",
    "attention": "bold red",
    "bad": "bold red",
    "fatal": "bold red",
}
MODEL_PROBLEMS = (
    "harmful",
    "unserved",
    "mismatched",
    "degraded",
    "drifted",
    "stale",
    "alerted",
)
STYLES |= dict.fromkeys(MODEL_PROBLEMS, "bold red")
"""Styles of words of a state: green is good, yellow unknown, red wrong."""
MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def tell(line: str, console: Console = OUT) -> None:
    """Print a line unchanged, above the progress if there is one."""
    console.print(line, soft_wrap=True)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table of values; values of the first column are not broken into lines."""
    columns = [Column(name, overflow="fold") for name in head]
    columns[0].no_wrap = True
    text_table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        text_table.add_row(*[_cell(value) for value in row])
    return text_table


def _cell(value: object) -> Text:
    """Return a value in one line, without control characters."""
    line = " ".join(as_text(value).split())
    text = "".join(sign for sign in line if sign.isprintable())
    return Text(text, STYLES.get(text, ""))


def as_text(value: object) -> str:
    """Return a value as a person writes it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, list | tuple):
        return ", ".join(as_text(part) for part in value)
    if isinstance(value, bool | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def age(moment: datetime) -> str:
    """Return how long ago a moment was, such as `3 min ago`."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < MINUTE:
        return "just now"
    if seconds < HOUR:
        return f"{seconds // MINUTE:.0f} min ago"
    if seconds < 2 * DAY:
        return f"{seconds // HOUR:.0f} h ago"
    return f"{seconds // DAY:.0f} days ago"


def show(renderable: RenderableType) -> None:
    """Print a table or text; outside a terminal without blanks at the ends of lines."""
    if OUT.is_terminal:
        OUT.print(renderable)
        return
    OUT.width = PIPE_WIDTH
    with OUT.capture() as capture:
        OUT.print(renderable)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


class ErrorLines(logging.Handler):
    """Prints log records on stderr, above the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        tell(self.format(record), ERR)


def progress(name: str, console: Console = ERR) -> Progress:
    """Show on a terminal, until the block ends, the name of a work and its seconds."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # it may be a file
        disable=not console.is_terminal,
    )
    bar.add_task(name, total=None)
    return bar
