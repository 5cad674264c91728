"""`gyre parity` and `gyre quarantine`: are features the same everywhere, and which rows are not."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from cli.verbs import AsJson, AsOf, Reason, log_to_stderr, moment, say, who
from stack.errors import SettingsError
from stack.settings import load_settings
from stack.spec import load_spec

MONTH = timedelta(days=31)
Dataset = Annotated[str, typer.Option("--dataset", help="A module of feature_repo/datasets/.")]
RowId = Annotated[str, typer.Argument(help="As `list` shows it; its beginning is enough.")]
quarantine = typer.Typer(no_args_is_help=True, help="Rows that were set aside, and their way back.")


def parity(
    model: str,
    as_of: AsOf = None,
    months: Annotated[int, typer.Option(min=1, help="Newest month ends to compare at.")] = 12,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare a model's features offline and online, every entity; exit code 1 if any differ."""
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (Feast takes 3 s to import)
    from feature_repo.parity import parity as compare  # noqa: PLC0415
    from training.snapshots import month_starts  # noqa: PLC0415

    ends = month_starts(time - months * MONTH, time)[-months:]
    dataset = load_dataset(spec.dataset)
    report = compare(
        settings, dataset, spec.feature_service, spec.entity_key, ends,
        lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    say(report.summary(), report.as_json(), as_json=as_json)
    raise typer.Exit(1 if report.differences else 0)


@quarantine.command("list")
def list_held(dataset: Dataset = "orders", *, as_json: AsJson = False) -> None:
    """List the rows in quarantine: id, since when, the rules they broke."""
    from feature_repo.datasets import load_dataset  # noqa: PLC0415
    from feature_repo.quarantine import held  # noqa: PLC0415

    rows = held(load_settings(), load_dataset(dataset))
    lines = [f"{row.id}  {row.quarantined_at:%Y-%m-%d %H:%M}Z  {row.rules}" for row in rows]
    say("\n".join(lines) or f"{dataset}: nothing is in quarantine",
        [vars(row) for row in rows], as_json=as_json)  # fmt: skip


@quarantine.command()
def show(row_id: RowId, dataset: Dataset = "orders", *, as_json: AsJson = False) -> None:
    """Show a row in quarantine, column by column."""
    from feature_repo.datasets import load_dataset  # noqa: PLC0415
    from feature_repo.quarantine import find  # noqa: PLC0415

    row = find(load_settings(), load_dataset(dataset), row_id)
    lines = [f"{row.id}: {row.rules}", *(f"  {key}: {value}" for key, value in row.row.items())]
    say("\n".join(lines), vars(row), as_json=as_json)


@quarantine.command()
def release(row_id: RowId, reason: Reason, dataset: Dataset = "orders", as_of: AsOf = None) -> None:
    """Put a row back that holds to the rules by now: tables, features, online."""
    _back(dataset, row_id, as_of, {}, reason)


@quarantine.command()
def repair(
    row_id: RowId,
    values: Annotated[list[str], typer.Argument(metavar="COLUMN=VALUE...")],
    reason: Reason,
    dataset: Dataset = "orders",
    as_of: AsOf = None,
) -> None:
    """Put a row back with some columns changed; it must hold to the rules then."""
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise SettingsError(f"expected COLUMN=VALUE, found {wrong[0]!r}")
    _back(dataset, row_id, as_of, {name: value for name, _, value in pairs}, reason)


def _back(
    dataset: str, row_id: str, as_of: str | None, changes: dict[str, str], reason: str
) -> None:
    log_to_stderr()
    time = moment(as_of)
    from feature_repo.datasets import load_dataset  # noqa: PLC0415
    from feature_repo.quarantine import release as put_back  # noqa: PLC0415

    row = put_back(
        load_settings(), load_dataset(dataset), row_id, time, changes=changes, who=who(), why=reason
    )
    typer.echo(f"{dataset}: {', '.join(f'{key} {value}' for key, value in row.items())}")
