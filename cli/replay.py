"""`gyre replay`: months of the loop in minutes, as an Airflow backfill in a home of its own.

The shipped history is dated to lie behind today. Airflow runs `replay_<MODEL>` (dags/replay.py) for
every moment of its schedule, one after another; each ends in a line here. In such a home promotions
are of the moment they are made as of (`GYRE_REPLAY` in its `gyre.env`), so that nothing is stale.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from typing import TYPE_CHECKING

import typer

from cli.own_stack import EXAMPLE, bring_up, folder, on_free_ports, stays_up
from feature_repo.datasets import load_dataset
from feature_repo.source import AHEAD, date_demo
from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from stack.airflow_api import AirflowApi
from stack.ending import end_stack
from stack.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stack.settings import Settings
    from stack.spec import DriftLimits, ModelSpec

MONTH = timedelta(days=365.25 / 12)
RUN_SECONDS = 900


def replay(home: str | None, months: int, *, keep: bool) -> None:
    """Replay the last `months` of the default model's history, and end with a table of them.

    Raises:
        StackError: a run failed; nothing after it is run.

    """
    last = datetime.now(UTC).date()
    with folder(home, "replay", keep=keep) as place, ExitStack() as after:
        settings = on_free_ports(place, replay=last)
        spec = load_spec(settings.default_model or EXAMPLE)
        date_history(settings, spec, last)
        after.callback(stays_up if keep else end_stack, settings)
        bring_up(settings)
        end = datetime.combine(last, clock(), UTC)
        moments = follow(settings, spec, end - months * MONTH, end)
        typer.echo("\n" + "\n".join(table(settings, spec, moments)))


def date_history(settings: Settings, spec: ModelSpec, last: date) -> None:
    """Have the shipped orders, where they are the source, end within the week before `last`."""
    dataset = load_dataset(spec.dataset)
    if dataset.name not in settings.sources:
        date_demo(settings, dataset, last - AHEAD - timedelta(weeks=1))


def follow(settings: Settings, spec: ModelSpec, begin: datetime, end: datetime) -> list[datetime]:
    """Have Airflow replay it, a line for each run as it ends; return the runs' moments."""
    dag, began = f"replay_{spec.name}", time.monotonic()
    with AirflowApi(settings) as airflow:
        number = airflow.backfill(dag, begin, end)
        try:
            runs = sorted(airflow.last_runs(dag, 100), key=lambda run: run["logical_date"])
            typer.echo(f"{len(runs)} moments, {begin:%Y-%m-%d} to {end:%Y-%m-%d}")
            for run in runs:
                done = airflow.follow(dag, run["dag_run_id"], lambda _: None, RUN_SECONDS)
                took = time.monotonic() - began
                typer.echo(f"[{took:5.0f} s] {run['logical_date'][:10]}  {done['note']}")
        except BaseException:
            airflow.cancel_backfill(number)
            raise
    return [datetime.fromisoformat(run["logical_date"]) for run in runs]


def table(settings: Settings, spec: ModelSpec, moments: Sequence[datetime]) -> list[str]:
    """Lines of what ledger and decisions hold of each moment, and who is in production then.

    Log loss: of the version looked at, on labels that matured after it was evaluated, if any.
    """
    with closing(Ledger(settings)) as ledger, closing(Records(settings)) as records:
        rows = [row for row in ledger.rows(spec.name) if row.applied_at]
        seen = {row.as_of: row for row in records.decisions(spec.name)}
    lines = ["| as of | entities | largest PSI | log loss | verdict | decision | in production |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for moment in moments:
        row = seen.get(moment)
        held = [each for each in rows if each.role == "production" and each.time <= moment]
        version = f"version {held[-1].to_version}" if held else "nothing"
        if held and held[-1].time == moment:
            version += ", new"
        told = " |  |  |  | "
        if row:
            figures = row.figures
            lost = figures.get("replay_log_loss")
            told = (
                f"{figures['entities']:.0f} | {largest(spec.drift, figures)} | "
                f"{'' if lost is None else f'{lost:.3f}'} | {row.verdict} | "
                f"{row.action} ({row.rule})"
            )
        lines.append(f"| {moment:%Y-%m-%d} | {told} | {version} |")
    return lines


def largest(limits: DriftLimits, figures: Mapping[str, float]) -> str:
    """Name the feature that drifted most of those that are acted on."""
    psi = limits.acted_on(figures)
    name = max(psi, key=psi.__getitem__, default=None)
    return "" if name is None else f"{psi[name]:.2f} {name}"
