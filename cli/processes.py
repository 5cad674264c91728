"""`gyre up`, `down`, `status`, `open`, `logs`, `env`, `config`, `demo`, `run`: a stack's processes."""

import os
import shlex
import time
from pathlib import Path
from signal import SIG_IGN, SIGCHLD, SIGTERM, default_int_handler, signal
from typing import Annotated, Literal

import typer
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from cli.terminal import progress
from cli.verbs import CONSOLE, AsJson, AsOf, Name, moment, say
from core.additions import is_present
from core.errors import SettingsError, StackError
from core.project import ENV_FILE, PROJECT, SHIPPED
from core.settings import Settings, is_secret, load_settings
from core.spec import MODELS

COMMAND_HELP = (
    "After `--`: the command of `gyre run task`, a task of Airflow in a pod of its own."
)
WITHOUT_HELP = (
    "airflow, mlflow or redis: it is not started, as a team has its own; repeatable. See "
    "GYRE_WITHOUT."
)
STAY_HELP = (
    "Stay until Ctrl-C or SIGTERM and then end the stack, as a container has to."
)
STAY_SECONDS = 2.0
"""Time between two looks at the stack by `gyre up --stay`."""
LEFT_OUT = {"HOME", "GYRE_AIRFLOW_PASSWORD", "GYRE_AIRFLOW_TOKEN"}
"""Variables that `gyre env` does not print."""
CANARY_HELP = (
    "The new version takes over by a canary: a shadow, then 5, 25, 50 and 100 percent, "
    "then production."
)


def up(
    as_of: AsOf = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="PROGRAM", help=WITHOUT_HELP)
    ] = None,
    *,
    stay: Annotated[bool, typer.Option("--stay", help=STAY_HELP)] = False,
) -> None:
    """Start the stack, ingest, train the first version (as of --as-of), predict."""
    overrides = {"without": without} if without else {}
    settings = load_settings(**overrides)
    if stay:
        # The first process of a container gets no signal that it does not ask for.
        signal(SIGTERM, default_int_handler)
    first_as_of = None if as_of is None else moment(as_of)
    from stack.machine import machine_problems  # noqa: PLC0415

    lines = machine_problems(settings)
    if lines:
        raise StackError("\n".join(lines))
    from cli.up import up as bring_up  # noqa: PLC0415  (seconds)

    bring_up(settings, first_as_of)
    if stay:
        _stay(settings)


def _stay(settings: Settings) -> None:
    """Wait for Ctrl-C or SIGTERM, then end the stack.

    Raises:
        StackError: The stack has ended by itself.

    """
    from stack.supervisor import end_stack, states  # noqa: PLC0415

    signal(SIGCHLD, SIG_IGN)  # in a container, orphans become children of this process
    try:
        while states(settings) is not None:
            time.sleep(STAY_SECONDS)
    except KeyboardInterrupt:
        end_stack(settings)
        return
    raise StackError("the stack has ended: gyre logs supervisord")


def down() -> None:
    """End every process of the stack, and no other process."""
    from stack.supervisor import end_stack  # noqa: PLC0415

    with progress("down"):
        processes = end_stack(load_settings())
    for process in processes:
        typer.echo(f"ended {process}")
    if processes:
        typer.echo(f"{len(processes)} processes ended")
    else:
        typer.echo("nothing was running")


def status(*, as_json: AsJson = False) -> None:
    """Show problems, models and processes; exit code 1 unless all run and serving is ready."""
    settings = load_settings()
    with progress("status"):
        from cli.status import read_status, status_tables  # noqa: PLC0415

        document = read_status(settings)
    say(status_tables(document), document, as_json=as_json)
    if not as_json and is_present(CONSOLE):
        typer.echo(f"console: {settings.link('console')}/")
    raise typer.Exit(0 if document["up"] else 1)


def open_page(
    page: Annotated[
        Literal["console", "mlflow", "airflow", "docs"],
        typer.Argument(help="docs: serving's routes, to try them."),
    ],
) -> None:
    """Open a page of the stack in the browser, and print its address."""
    if page == "console" and not is_present(CONSOLE):
        raise StackError(f"no console: the package {CONSOLE} is not there")
    settings = load_settings()
    address = f"{settings.link('serving')}/docs"
    if page != "docs":
        address = f"{settings.link(page)}/"
    typer.echo(address)
    typer.launch(address)


def logs(
    program: str,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines as they come.")
    ] = False,
) -> None:
    """Print the newest lines of a program's log."""
    folder = load_settings().home / "logs"
    files = {file.stem: str(file) for file in folder.glob("*.log")}
    if program not in files:
        expected = ", ".join(sorted(files)) or "a started stack"
        raise StackError(f"{program}: expected {expected}")
    options = ["-n40", "-F"] if follow else ["-n40"]
    os.execvp("tail", ["tail", *options, files[program]])  # noqa: S606


def env() -> None:
    """Print the variables that a shell needs to work with this stack: eval "$(gyre env)"."""
    from feature_repo.published.config import write_feast_config  # noqa: PLC0415
    from stack.environment import child_environment  # noqa: PLC0415

    settings = load_settings()
    write_feast_config(settings)
    for name, value in sorted(child_environment(settings).items()):
        if name not in LEFT_OUT:
            typer.echo(f"export {name}={shlex.quote(value)}")


def config(name: Name = None, *, as_json: AsJson = False) -> None:
    """List each setting with its value and source; with NAME one setting with its meaning.

    The value of a secret is not shown: it is `set`.
    """
    settings = load_settings()
    # load_settings sets the home in any case.
    sources = dict.fromkeys(settings.model_fields_set - {"home"}, "secret file")
    file_source = DotEnvSettingsSource(Settings, settings.home / ENV_FILE)
    sources |= dict.fromkeys(file_source(), ENV_FILE)
    sources |= dict.fromkeys(EnvSettingsSource(Settings)(), "environment")
    rows = []
    for field, value in settings.model_dump(mode="json").items():
        variable = f"GYRE_{field.upper()}"
        if name not in {None, variable}:
            continue
        # A setting with an alias is there by its variable.
        source = sources.get(variable) or sources.get(field, "default")
        is_hidden = source == "secret file" or is_secret(field, str(value))
        row = {
            "setting": variable,
            "value": "set" if value and is_hidden else value,
            "source": source,
        }
        if name:
            row["meaning"] = Settings.model_fields[field].description
        rows.append(row)
    if not rows:
        raise SettingsError(f"{name} is not a setting; gyre config lists all settings")
    say(rows, rows, as_json=as_json)


def demo(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of its stack; a temporary one if absent."),
    ] = None,
    *,
    canary: Annotated[bool, typer.Option("--canary", help=CANARY_HELP)] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack running.")
    ] = False,
) -> None:
    """Show the loop on real history: drift, a training, a better version that answers.

    It takes three to five minutes on 2 cores, and one to three more with --canary.
    """
    from cli.demo import EXAMPLE, demo_of_example  # noqa: PLC0415  (heavy)
    from cli.demo import demo as run_demo  # noqa: PLC0415

    if PROJECT == SHIPPED or not (MODELS / f"{EXAMPLE}.toml").exists():
        raise typer.Exit(demo_of_example(keep=keep))
    raise typer.Exit(0 if run_demo(home, canary=canary, keep=keep) else 1)


def run(
    program: str,
    command: Annotated[list[str] | None, typer.Argument(help=COMMAND_HELP)] = None,
) -> None:
    """Run one program of a stack, as in a container, after `gyre run init`."""
    from stack.programs import run as become  # noqa: PLC0415

    become(load_settings(), program, command or [])
