"""The `gyre` command: a verb reads its arguments, calls another package, and prints the result."""

import sys
import traceback
from itertools import chain
from typing import Annotated, Any

import typer

from cli import airflow_file, alerts, data, models, processes, project, use_case, watch
from core.access.private_home import make_home
from core.additions import missing_verbs
from core.errors import GyreError, SettingsError
from core.packages import DISTRIBUTION, package_version
from core.settings import load_settings
from core.user_code import in_one_line

PANELS: dict[str, dict[str, Any]] = {
    "Every day": {
        "up": processes.up,
        "status": processes.status,
        "predict": models.predict,
        "open": processes.open_page,
        "down": processes.down,
        "demo": processes.demo,
    },
    "Models": {
        "models": models.list_models,
        "train": models.train,
        "adopt": models.adopt,
        "evaluation": models.evaluation,
        "promote": models.promote,
        "release": models.release,
        "rollback": models.rollback,
        "ledger": models.ledger,
        "monitor": watch.monitor,
        "decide": watch.decide,
        "compare": watch.compare,
        "score": models.score,
        "reproduce": models.reproduce,
    },
    "Data": {
        "ingest": data.ingest,
        "parity": data.parity,
        "quarantine": data.quarantine,
        "forget": data.forget,
    },
    "Operate": {
        "alerts": alerts.alerts,
        "logs": processes.logs,
        "config": processes.config,
        "env": processes.env,
        "maintain": data.maintain,
        "backup": data.backup,
        "restore": data.restore,
        "consume": data.consume,
        "run": processes.run,
        "dags": airflow_file.dags,
    },
    "Write your own": {
        "init": project.init,
        "new": use_case.new,
        "check": use_case.check,
    },
}
"""Verbs by their group in `gyre --help`; verbs of additions that are not there are left out."""
OTHERS = {"demo", "init", "new", "run", "up"}
"""Verbs that use another home or none, or close it themselves."""
OF_HOME = {"step", *chain.from_iterable(PANELS.values())} - OTHERS
"""Verbs before which the home is made, or closed."""
HELP = ("--help", "-h")
ANY_KEY = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context of `forget`, whose option is the key of an entity, such as `--customer_id`."""

typer_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": [*HELP]},
)


def _add_verbs() -> None:
    """Add every verb whose packages are there to the command."""
    missing = missing_verbs()
    for panel, verbs in PANELS.items():
        for name, verb in verbs.items():
            if name in missing:
                continue
            if isinstance(verb, typer.Typer):
                typer_app.add_typer(verb, name=name, rich_help_panel=panel)
                continue
            context = ANY_KEY if name == "forget" else None
            command = typer_app.command(
                name, rich_help_panel=panel, context_settings=context
            )
            command(verb)
    typer_app.command("step", hidden=True)(airflow_file.step)


def _print_version(is_asked: bool) -> None:  # noqa: FBT001  (Typer calls it)
    if is_asked:
        typer.echo(f"gyre {package_version(DISTRIBUTION)}")
        raise typer.Exit


@typer_app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it."
        ),
    ] = False,
) -> None:
    """Close the model loop on Feast, MLflow, Evidently and Airflow."""


_add_verbs()


def app() -> None:
    """Run the command; an error is one message, and a log keeps the traceback of a foreign one."""
    try:
        _make_home(sys.argv[1:])
        typer_app()
    except GyreError as exc:
        typer.echo(f"gyre: {exc}", err=True)
        sys.exit(exc.exit_code)
    except Exception as exc:  # noqa: BLE001  (mostly raised by a dataset module)
        lines = f"gyre: {in_one_line(exc)}\ntraceback: {_keep_traceback(exc)}"
        typer.echo(lines, err=True)
        sys.exit(1)


def _make_home(arguments: list[str]) -> None:
    """Make the home, or close one that is open to other users, before a verb writes into it."""
    is_help = not set(HELP).isdisjoint(arguments)
    if is_help or not OF_HOME.intersection(arguments[:1]):
        return
    try:
        settings = load_settings()
    except SettingsError:  # the verb says so, if it needs them
        return
    try:
        line = make_home(settings)
    except OSError:  # of a disk that cannot be written: the verb says so, if it writes
        return
    if line:
        typer.echo(line, err=True)


def _keep_traceback(exc: Exception) -> str:
    """Append a traceback to a log of the home; return the path, or why it is not kept."""
    try:
        log = load_settings().home / "logs" / "errors.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            traceback.print_exception(exc, file=file)
    except (GyreError, OSError) as error:
        return f"not kept: {error}"
    return str(log)
