"""What the verbs share: how a time is given, who is asking, how a report is printed."""

from __future__ import annotations

import getpass
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from stack.errors import SettingsError
from stack.moment import parse_moment


def _said(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("say why: it stands in the ledger for ever")
    return text.strip()


AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", help="ISO 8601 with an offset, such as 2026-11-01T00:00Z. Now if absent."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]
Reason = Annotated[str, typer.Option("--reason", callback=_said, help="Why; kept for ever.")]


def moment(text: str | None, option: str = "--as-of") -> datetime:
    """Return the aware UTC time that an option names, now if it names none.

    Raises:
        SettingsError: not ISO 8601, without an offset, or in the future.

    """
    try:
        return datetime.now(tz=UTC) if text is None else parse_moment(text, option)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


def who() -> str:
    """Who is asking, for the ledger: the user of this shell."""
    return f"shell:{getpass.getuser()}"


def say(line: str, document: Any, *, as_json: bool) -> None:
    typer.echo(json.dumps(document, indent=2, default=str) if as_json else line)


def log_to_stderr() -> None:
    """Progress goes to stderr, so that stdout is the report alone."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.captureWarnings(capture=True)  # what libraries deprecate is no news for who trains
    for noisy in ("py.warnings", "great_expectations"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for room in ("training", "feature_repo", "mlflow_server", "monitoring"):
        logging.getLogger(room).setLevel(logging.INFO)
