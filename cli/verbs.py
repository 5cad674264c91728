"""What the verbs share: how a time is given, who is asking, how a report is printed."""

import getpass
import json
import logging
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.console import RenderableType

from cli.terminal import Lines, show
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec
from core.timestamps import parse_timestamp


def _not_empty(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("say why: it stands in the ledger for ever")
    return text.strip()


AS_OF_HELP = "ISO 8601 with an offset, such as 2026-11-01T00:00Z. Now if absent."
AsOf = Annotated[str | None, typer.Option("--as-of", help=AS_OF_HELP)]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document instead of lines.")
]
Reason = Annotated[
    str, typer.Option("--reason", callback=_not_empty, help="Why; kept for ever.")
]


def moment(text: str | None, option: str = "--as-of") -> datetime:
    """Return the aware UTC time that an option names, now if it names none.

    Raises:
        SettingsError: not ISO 8601, without an offset, or in the future.

    """
    return datetime.now(tz=UTC) if text is None else parse_timestamp(text, option)


def begin(model: str, as_of: str | None) -> tuple[Settings, ModelSpec, datetime]:
    log_to_stderr()
    return load_settings(), load_spec(model), moment(as_of)


def who() -> str:
    """Who is asking, for the ledger: the user of this shell."""
    return f"shell:{getpass.getuser()}"


def say(text: RenderableType, document: object, *, as_json: bool) -> None:
    """Print a report's text or table, or `document` as JSON."""
    if as_json or isinstance(text, str):
        typer.echo(
            json.dumps(to_jsonable_python(document), indent=2) if as_json else text
        )
    else:
        show(text)


def log_to_stderr() -> None:
    """Progress goes to stderr, so that stdout is the report alone."""
    logging.basicConfig(handlers=[Lines()], level=logging.WARNING, format="%(message)s")
    # What libraries deprecate is no news for who trains.
    logging.captureWarnings(capture=True)
    for noisy in ("py.warnings", "great_expectations"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for package in ("training", "feature_repo", "mlflow_server", "monitoring"):
        logging.getLogger(package).setLevel(logging.INFO)
