"""The `gyre` command: each verb calls one function of another room."""

from __future__ import annotations

import json
import shlex
import sys

import typer

from cli import loop, registry
from cli.verbs import AsJson  # noqa: TC001  (typer reads the annotations)
from stack.errors import GyreError
from stack.settings import load_settings

typer_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def app() -> None:
    """Run the command; an error a person can act on is one message, not a traceback."""
    try:
        typer_app()
    except GyreError as exc:
        typer.echo(f"gyre: {exc}", err=True)
        sys.exit(exc.exit_code)


@typer_app.command()
def up() -> None:
    """Start the stack, ingest, train the first version, predict."""
    from cli.up import up as bring_up  # noqa: PLC0415  (other verbs need none of it)

    bring_up(load_settings())


@typer_app.command()
def down() -> None:
    """End every process of the stack, and only those."""
    from stack.ending import end_stack  # noqa: PLC0415

    ended = end_stack(load_settings())
    for line in ended:
        typer.echo(f"ended {line}")
    typer.echo(f"{len(ended)} processes ended" if ended else "nothing was running")


@typer_app.command()
def status(*, as_json: AsJson = False) -> None:
    """Say what is up, what serves, how fresh; exit code 1 if a process is not running."""
    from cli.status import status as ask  # noqa: PLC0415
    from stack.status import lines  # noqa: PLC0415

    now = ask(load_settings())
    typer.echo(json.dumps(now, indent=2) if as_json else "\n".join(lines(now)))
    raise typer.Exit(0 if now["up"] else 1)


@typer_app.command()
def env() -> None:
    """Print what a shell needs to talk to this stack: eval "$(gyre env)"."""
    from stack.environment import child_environment  # noqa: PLC0415

    for name, value in sorted(child_environment(load_settings()).items()):
        if name != "HOME":
            typer.echo(f"export {name}={shlex.quote(value)}")


for _verb in (loop.ingest, loop.train, registry.promote, registry.rollback, registry.ledger):
    typer_app.command()(_verb)
