"""Code that verbs share: reading a time, naming the user, printing a report."""

import getpass
import logging
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import RenderableType

from cli.terminal import ErrorLines, show, table
from core.errors import StackError
from core.project import ENV_FILE
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec
from core.timestamps import parse_timestamp


def _not_empty(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("give a reason: the ledger keeps it")
    return text.strip()


CONSOLE = "monitoring.console"
"""The addition that judges the loop and shows it on pages."""
LOGGING_PACKAGES = (
    "core",
    "dags",
    "feature_engine",
    "feature_repo",
    "mlflow_server",
    "monitoring",
    "operations",
    "training",
)
"""Packages whose progress a verb prints on stderr."""
AS_OF_HELP = "ISO 8601 with an offset, such as 2026-11-01T00:00Z. Now if absent."
AsOf = Annotated[str | None, typer.Option("--as-of", help=AS_OF_HELP)]
Name = Annotated[str | None, typer.Argument()]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document instead of lines.")
]
Reason = Annotated[
    str,
    typer.Option("--reason", callback=_not_empty, help="Reason, kept in the ledger."),
]


def moment(text: str | None, option: str = "--as-of") -> datetime:
    """Return the time of an option, aware UTC; now if it is absent.

    Raises:
        SettingsError: The text is not ISO 8601, has no offset, or lies in the future.

    """
    return datetime.now(tz=UTC) if text is None else parse_timestamp(text, option)


def begin(model: str, as_of: str | None) -> tuple[Settings, ModelSpec, datetime]:
    """Return settings, spec and moment for a verb about a model, and send its log to stderr."""
    log_to_stderr()
    return load_settings(), load_spec(model), moment(as_of)


def who() -> str:
    """Return the user of this shell, as the ledger names who changed a role."""
    return f"shell:{getpass.getuser()}"


def signal(settings: Settings, asset: str) -> None:
    """Emit an Asset in Airflow; if Airflow does not answer, warn that its DAG starts by the clock."""
    if "airflow" in settings.without:
        return
    from stack.airflow_api import AirflowApi  # noqa: PLC0415  (0.1 s)

    try:
        with AirflowApi(settings, timeout=5) as airflow:
            airflow.emit(asset)
    except StackError as exc:
        typer.echo(
            f"Airflow got no event; its DAG starts by the clock: {exc}. Is there no Airflow? Write "
            f"GYRE_WITHOUT=airflow to {settings.home / ENV_FILE}",
            err=True,
        )


def say(text: RenderableType | list[Any], document: object, *, as_json: bool) -> None:
    """Print a report's text, table or rows, or `document` as JSON, in which NaN is null."""
    if as_json:
        typer.echo(to_json(document, indent=2, inf_nan_mode="null"))
    elif isinstance(text, str):
        typer.echo(text)
    elif isinstance(text, list):
        show(table(text[0] if text else (), map(dict.values, text)))
    else:
        show(text)


def log_to_stderr() -> None:
    """Send log records to stderr, so that stdout is the report alone."""
    logging.basicConfig(
        handlers=[ErrorLines()], level=logging.WARNING, format="%(message)s"
    )
    # Deprecations of libraries are of no use to a person who trains.
    logging.captureWarnings(capture=True)
    for library in ("py.warnings", "great_expectations"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for package in LOGGING_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
