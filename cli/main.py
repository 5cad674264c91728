"""The `gyre` command: a verb reads its arguments, calls what does the work, says what came."""

import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from cli import data, models, project, use_case, watch
from cli.terminal import working
from cli.verbs import AsJson, AsOf, moment, say
from core.errors import GyreError, StackError
from core.settings import load_settings
from core.user_code import in_one_line

Home = Annotated[
    Path | None, typer.Option(help="Its folder. A temporary one if absent.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the stack running.")]
COMMAND_HELP = (
    "After `--`: what `gyre run task` becomes, a task of Airflow in a pod of its own."
)
Command = Annotated[list[str] | None, typer.Argument(help=COMMAND_HELP)]
typer_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def app() -> None:
    """Run the command; an error is one message, and the traceback of one not ours in a log."""
    try:
        typer_app()
    except GyreError as exc:
        typer.echo(f"gyre: {exc}", err=True)
        sys.exit(exc.exit_code)
    except Exception as exc:  # noqa: BLE001  (mostly of a dataset module)
        log = load_settings().home / "logs" / "errors.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            traceback.print_exception(exc, file=file)
        typer.echo(f"gyre: {in_one_line(exc)}\ntraceback: {log}", err=True)
        sys.exit(1)


@typer_app.command()
def up(as_of: AsOf = None) -> None:
    """Start the stack, ingest, train the first version (as of --as-of), predict."""
    settings, first_as_of = load_settings(), None if as_of is None else moment(as_of)
    from stack.machine import problems  # noqa: PLC0415

    if found := problems(settings):
        raise StackError("\n".join(found))
    from cli.up import up as bring_up  # noqa: PLC0415  (seconds)

    bring_up(settings, first_as_of)


@typer_app.command()
def demo(home: Home = None, *, keep: Keep = False) -> None:
    """Close the loop on real history: drift in, a better version answering out."""
    from cli.demo import demo as run  # noqa: PLC0415  (heavy)

    raise typer.Exit(0 if run(home, keep=keep) else 1)


@typer_app.command()
def run(program: str, command: Command = None) -> None:
    """Become one program of a stack, as in a container; `gyre run init` first prepares for all."""
    from stack.programs import run as become  # noqa: PLC0415

    become(load_settings(), program, command or [])


@typer_app.command()
def down() -> None:
    """End every process of the stack, and only those."""
    from stack.processes import end_stack  # noqa: PLC0415

    with working(settings := load_settings(), "down"):
        ended = end_stack(settings)
    for line in ended:
        typer.echo(f"ended {line}")
    typer.echo(f"{len(ended)} processes ended" if ended else "nothing was running")


@typer_app.command()
def status(*, as_json: AsJson = False) -> None:
    """Say what is up, what serves, how fresh; exit code 1 unless all runs and serving is ready."""
    with working(settings := load_settings(), "status"):
        from cli.status import read_status, shown  # noqa: PLC0415

        now = read_status(settings)
    say(shown(now), now, as_json=as_json)
    raise typer.Exit(0 if now["up"] else 1)


@typer_app.command()
def logs(
    program: str,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows.")
    ] = False,
) -> None:
    """Print the newest lines of a program's log."""
    known = {
        file.stem: f"{file}" for file in (load_settings().home / "logs").glob("*.log")
    }
    if program not in known:
        raise StackError(
            f"{program}: expected {', '.join(sorted(known)) or 'a stack that was started'}"
        )
    os.execvp("tail", ["tail", "-n40", *(["-F"] if follow else []), known[program]])  # noqa: S606


@typer_app.command()
def env() -> None:
    """Print what a shell needs to talk to this stack: eval "$(gyre env)"."""
    from feature_repo.feast_config import write_feast_config  # noqa: PLC0415
    from stack.environment import child_environment  # noqa: PLC0415

    settings = load_settings()
    write_feast_config(settings)
    for name, value in sorted(child_environment(settings).items()):
        if name != "HOME":
            typer.echo(f"export {name}={shlex.quote(value)}")


for _verb in (
    data.ingest,
    data.consume,
    data.maintain,
    data.backup,
    data.restore,
    models.train,
    models.evaluation,
    models.reproduce,
    models.score,
    data.parity,
    watch.monitor,
    watch.decide,
    watch.compare,
    watch.backtest,
    models.promote,
    models.release,
    models.rollback,
    models.ledger,
    project.init,
    use_case.new,
    use_case.check,
):
    typer_app.command()(_verb)
of_any_key = {"allow_extra_args": True, "ignore_unknown_options": True}
typer_app.command(context_settings=of_any_key)(data.forget)
typer_app.add_typer(data.quarantine, name="quarantine")
