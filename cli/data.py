"""`gyre ingest`, `consume`, `forget`, `quarantine`, `parity`, `maintain`, `backup`, `restore`."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import progress, table
from cli.verbs import AsJson, AsOf, begin, log_to_stderr, moment, say
from core.errors import RegistryError, SettingsError
from core.settings import SHARED, load_settings

MONTH = timedelta(days=31)
MODULE = "A module of feature_repo/datasets/."
KEY = re.compile(r"--([^\0]+?)(?:\0(?!--)|=(?=.))([^\0]*)", re.DOTALL)
"""Words of a shell, with \\0 between them: --COLUMN VALUE, or --COLUMN=VALUE."""
OfDataset = Annotated[str, typer.Option("--dataset", help=MODULE)]
quarantine = typer.Typer(no_args_is_help=True, help="Rows that were set aside.")


def ingest(
    dataset: Annotated[str, typer.Argument(help=MODULE)] = "orders",
    as_of: AsOf = None,
    *,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Read all of the source, write every value online again, and move rows that "
            "break a view to quarantine.",
        ),
    ] = False,
    topic_from: Annotated[
        str | None,
        typer.Option(
            "--topic-from",
            help="Read the dataset's topic from a time on, such as 2026-11-01T00:00Z, and not its "
            "source.",
        ),
    ] = None,
    source_wins: Annotated[
        bool,
        typer.Option(
            "--source-wins",
            help="Read all of the source, and let each of its rows count, whatever events have said.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset up to date: pull, validate, merge, features, online values."""
    log_to_stderr()
    time = moment(as_of)
    since = moment(topic_from, "--topic-from") if topic_from else None
    settings = load_settings()
    with progress(f"ingest {dataset}"):
        from feature_engine.ingest.pipeline import ingest as run  # noqa: PLC0415  (Feast takes 3 s to import)
        from mlflow_server.alerts import Alerts  # noqa: PLC0415

        report = run(
            settings,
            dataset,
            time,
            full=full,
            topic_from=since,
            source_wins=source_wins,
        )
        with suppress(RegistryError), Alerts(settings) as alerts:
            alerts.end_failures("ingest", f"ingest_{dataset}")
    say(report.summary(), report, as_json=as_json)


def consume() -> None:
    """Consume the events that serving puts on the stream, until it is ended; gyre up starts it."""
    log_to_stderr()
    from feature_engine.ingest.consumer import consume as run  # noqa: PLC0415

    run(load_settings())


def maintain(as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Delete expired rows, files, logs and reports; exit code 1 if a part failed."""
    log_to_stderr()
    time = moment(as_of)
    settings = load_settings()
    with progress("maintain"):
        from operations.maintain import maintain as clean_up  # noqa: PLC0415

        parts = clean_up(settings, time)
    say("\n".join(part.line() for part in parts), parts, as_json=as_json)
    raise typer.Exit(1 if any(part.problem for part in parts) else 0)


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write all data of the stack and its secrets to a new folder; the stack may run."""
    settings = load_settings()
    with progress("backup"):
        from operations.backup import backup as write  # noqa: PLC0415  (seconds)

        report = write(settings, target.resolve())
    places = [f"GYRE_{name.upper()}" for name in SHARED[1:] if getattr(settings, name)]
    exception = f"; without the data at {', '.join(places)}" if places else ""
    size = f"{report.files:,} files, {report.size / 1e6:,.1f} MB"
    say(f"{target}: {size}, secrets too{exception}", report, as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that gyre backup wrote.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into GYRE_HOME, which must be empty; then: gyre up."""
    settings = load_settings()
    with progress("restore"):
        from operations.backup import restore as read  # noqa: PLC0415  (seconds)

        report = read(settings, source.resolve())
    text = f"{settings.home} is restored from {source}; now: gyre up"
    say(text, report, as_json=as_json)


def parity(
    model: str,
    as_of: AsOf = None,
    moments: Annotated[int, typer.Option(min=1, help="Number of moments.")] = 12,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare a model's features offline and online, every entity; exit code 1 if any differ.

    It compares at the newest starts of a day, week or month, as `snapshots.every` of the spec says.
    """
    settings, spec, time = begin(model, as_of)
    with progress(f"parity {model}"):
        from feature_engine.parity import parity as compare  # noqa: PLC0415
        from training.data.snapshots import period_starts  # noqa: PLC0415

        newest = period_starts(spec.snapshots.every, time - moments * MONTH, time)[
            -moments:
        ]
        report = compare(settings, spec.feature_service, newest)
    say(report.summary(), report, as_json=as_json)
    raise typer.Exit(1 if report.differences else 0)


def forget(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL_OR_DATASET")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count rows, change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Erase every row of one entity, named by its key, such as --customer_id 4; keep it out.

    Searches every dataset and model with the key. Exit code 1: no row found, or rows remain. A
    column with the name of an option, such as json, stands behind --, as in -- --json 4.
    """
    log_to_stderr()
    option = KEY.fullmatch("\0".join(context.args))
    if context.args and option is None:
        words = " ".join(context.args)
        raise SettingsError(f"expected one key, --COLUMN VALUE, found {words}")
    column, value = option.groups() if option else ("", "")
    settings = load_settings()
    with progress(f"forget {name}"):
        from operations.forget import OUT_OF_REACH, named_key  # noqa: PLC0415
        from operations.forget import forget as erase  # noqa: PLC0415

        key = named_key(name, column, value)
        row_counts = erase(settings, key, dry_run=dry_run)
    lines = [f"{place}: {count:,} rows" for place, count in row_counts.items()]
    if not lines:
        lines = ["nothing is found"]
    say("\n".join([*lines, OUT_OF_REACH]), row_counts, as_json=as_json)


@quarantine.command("list")
def list_quarantined(
    dataset: OfDataset = "orders",
    *,
    as_json: AsJson = False,
) -> None:
    """List the rows in quarantine: since when, the rules that they broke, and their values."""
    from feature_engine.ingest.quarantine import quarantined  # noqa: PLC0415
    from feature_repo.datasets import load_dataset  # noqa: PLC0415

    rows = quarantined(load_settings(), load_dataset(dataset))
    lines = [(row["quarantined_at"], row["rules"], row["row"]) for row in rows]
    text = table(("since", "rules it broke", "row"), lines)
    say(text if rows else f"{dataset}: quarantine is empty", rows, as_json=as_json)


@quarantine.command("release")
def release_quarantined(
    dataset: OfDataset = "orders",
    *,
    as_json: AsJson = False,
) -> None:
    """Move the rows in quarantine that pass today's rules to the dataset.

    A row stays if the dataset has a row of its key. The next ingest computes features of the rows;
    it accepts by itself rows that the source delivers again.
    """
    log_to_stderr()
    settings = load_settings()
    with progress(f"quarantine release {dataset}"):
        from feature_engine.ingest.exact_types import as_text  # noqa: PLC0415
        from feature_engine.ingest.quarantine import release  # noqa: PLC0415
        from feature_repo.datasets import load_dataset  # noqa: PLC0415  (Feast takes 3 s to import)

        report = release(settings, load_dataset(dataset), datetime.now(UTC))
    lines = [
        f"{dataset}: rows released: {report.released}; now: gyre ingest {dataset}",
        f"rows that stay, as they break a rule or are not as {dataset}: {report.refused}",
        f"rows that stay, as the dataset has a row of their key: {len(report.conflicts)}",
    ]
    if report.forgotten:
        lines.append(f"rows of forgotten entities, removed: {report.forgotten}")
    for row, stored in report.conflicts:
        lines += [
            f"in quarantine: {as_text(row)}",
            f"in the dataset: {as_text(stored)}",
        ]
    say("\n".join(lines), report, as_json=as_json)
