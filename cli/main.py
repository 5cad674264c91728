"""The `gyre` command: a verb reads its arguments, calls what does the work, says what came."""

from __future__ import annotations

import shlex
import sys
import traceback
from typing import Annotated

import typer

from cli import features, registry, training, use_case, watch
from cli.verbs import AsJson, AsOf, log_to_stderr, moment, say
from stack.errors import GyreError
from stack.settings import load_settings
from stack.user_code import in_one_line

Dataset = Annotated[str, typer.Argument(help="A module of feature_repo/datasets/.")]
typer_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
    from cli.up import up as bring_up  # noqa: PLC0415  (other verbs need none of it)

    bring_up(load_settings(), None if as_of is None else moment(as_of))


@typer_app.command()
def demo(
    home: Annotated[
        str | None,
        typer.Option(help="Its folder. If absent: that of a stack to be, else a temporary one."),
    ] = None,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running.")] = False,
    week: Annotated[
        bool, typer.Option("--week", help="Seven stories: as if started on each of seven days.")
    ] = False,
) -> None:
    """Tell the loop's story on real history: drift in, a better version answering out."""
    from cli.demo import demo as tell  # noqa: PLC0415  (heavy)
    from cli.demo import demo_week  # noqa: PLC0415

    good = demo_week() if week else tell(home, keep=keep)
    raise typer.Exit(0 if good else 1)


@typer_app.command()
def replay(
    home: Annotated[
        str | None, typer.Option(help="Its folder, a new one; a temporary one if absent.")
    ] = None,
    months: Annotated[
        int, typer.Option(min=1, max=48, help="How much of the history, up to its end.")
    ] = 12,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running.")] = False,
) -> None:
    """Replay months of history as an Airflow backfill: score, mature, monitor, retrain."""
    from cli.replay import replay as run  # noqa: PLC0415  (heavy)

    run(home, months, keep=keep)


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
    """Say what is up, what serves, how fresh; exit code 1 unless all runs and serving is ready."""
    from cli.status import status as ask  # noqa: PLC0415
    from stack.status import lines  # noqa: PLC0415

    now = ask(load_settings())
    say("\n".join(lines(now)), now, as_json=as_json)
    raise typer.Exit(0 if now["up"] else 1)


@typer_app.command()
def env() -> None:
    """Print what a shell needs to talk to this stack: eval "$(gyre env)"."""
    from stack.environment import child_environment, write_feast_config  # noqa: PLC0415

    settings = load_settings()
    write_feast_config(settings)
    for name, value in sorted(child_environment(settings).items()):
        if name != "HOME":
            typer.echo(f"export {name}={shlex.quote(value)}")


@typer_app.command()
def ingest(
    dataset: Dataset = "orders",
    as_of: AsOf = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Read all of the source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset up to date: pull, validate, merge, features, online values."""
    log_to_stderr()
    time = moment(as_of)
    from feature_repo.ingest import ingest as run  # noqa: PLC0415  (Feast takes 3 s to import)

    report = run(load_settings(), dataset, time, full=full)
    say(report.summary(), report.as_json(), as_json=as_json)


@typer_app.command()
def consume() -> None:
    """Consume the events that serving puts on the stream, until it is ended; gyre up starts it."""
    log_to_stderr()
    from feature_repo.consumer import consume as run  # noqa: PLC0415  (Feast takes 3 s to import)

    run(load_settings())


@typer_app.command()
def maintain(
    as_of: AsOf = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free what is past its time: rows, files, logs, reports; exit code 1 if a part could not."""
    log_to_stderr()
    time = moment(as_of)
    from monitoring.maintain import maintain as keep_house  # noqa: PLC0415  (heavy)

    freed = keep_house(load_settings(), time, dry_run=dry_run)
    say("\n".join(part.line() for part in freed), [vars(part) for part in freed], as_json=as_json)
    raise typer.Exit(1 if any(part.problem for part in freed) else 0)


for _verb in (
    training.train, training.reproduce, training.score, features.parity, watch.monitor,
    watch.decide, watch.rollout, watch.compare, watch.backtest, registry.promote,
    registry.release, registry.rollback, registry.ledger, use_case.new, use_case.check,
):  # fmt: skip
    typer_app.command()(_verb)
typer_app.add_typer(features.quarantine, name="quarantine")
