"""`gyre alerts`: open incidents; a person acknowledges one, or mutes its cause for a time."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.terminal import table
from cli.verbs import AsJson, say, who
from core.settings import load_settings


class _ListByDefault(TyperGroup):
    """Reads `gyre alerts MODEL` as `gyre alerts list MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "--help", "-h"}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


alerts = typer.Typer(
    cls=_ListByDefault, help="List open incidents; acknowledge one, or mute its cause."
)
Number = Annotated[int, typer.Argument(metavar="ID", help="As gyre alerts lists it.")]
Why = Annotated[str, typer.Option("--reason", help="Shown beside your name.")]


@alerts.command("list")
def list_open(
    subject: Annotated[str | None, typer.Argument(metavar="MODEL")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the open incidents of a model or dataset, or all."""
    from mlflow_server.alerts import Alerts, silence_text  # noqa: PLC0415  (0.2 s)

    now = datetime.now(UTC)
    with Alerts(load_settings()) as store:
        incidents = store.open_rows(now, subject)
    lines = [
        (
            incident["sequence"],
            incident["model"],
            datetime.fromisoformat(incident["first"]),
            incident["count"],
            incident["message"],
            silence_text(incident, now) or "open",
        )
        for incident in incidents
    ]
    text = table(("id", "of", "since", "seen", "what", "state"), lines)
    say(text if lines else "no incident is open", incidents, as_json=as_json)


@alerts.command()
def acknowledge(number: Number, why: Why = "") -> None:
    """Say that you take care of an incident: it is no longer an urgent problem."""
    _silence(number, why, until=None)


@alerts.command()
def mute(
    number: Number,
    hours: Annotated[float, typer.Option(min=0, help="0 ends a mute.")],
    why: Why = "",
) -> None:
    """Deliver no alert of the cause of an incident for some hours; after them, if it goes on."""
    _silence(number, why, until=datetime.now(UTC) + timedelta(hours=hours))


def _silence(number: int, why: str, until: datetime | None) -> None:
    from mlflow_server.alerts import Alerts, silence_text  # noqa: PLC0415  (0.2 s)

    now = datetime.now(UTC)
    with Alerts(load_settings()) as store:
        row = store.silence(number, now, who=who(), why=why, until=until)
    typer.echo(f"{row['model']}: {row['cause']}: {silence_text(row, now)}")
