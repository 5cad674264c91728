"""The tables `decisions` and `checks`: decisions of monitoring runs and results of their checks.

Each table has a row for each model and moment of a run. `gyre maintain` deletes rows of more than
400 days.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from core.settings import Settings
from core.tables.query import query_table
from monitoring.check import CheckResult
from monitoring.decisions.decision import Verdict

DECISIONS_TABLE = "decisions"
CHECKS_TABLE = "checks"
RESULTS = TypeAdapter(list[CheckResult])
MOST_AT_ONCE = 1_000
MAX_FILES = 50
"""A table of more files is compacted: each run of a model adds a file."""


@dataclass(frozen=True)
class DecisionRow:
    """A row of the table `decisions`.

    Attributes:
        model: Name of the model.
        version: The version in production.
        as_of: Moment of the run, aware UTC.
        verdict: Verdict on the window: see monitoring/decisions/decision.py.
        action: Action of the decision.
        rule: Rule from which the action follows.
        reason: Reason in words.
        cause: Name of the cause that a retraining answers.
        words: The verdict in one sentence.
        inputs: Everything that the decision depended on, as JSON.
        entities: Number of entities in the window.
        serving: Counts of serving by replica, as JSON; None if they are unknown.
        created: Moment at which the model was registered: see `mlflow_server.roles.RoleAssignment`.

    """

    model: str
    version: str
    as_of: datetime
    verdict: Verdict
    action: str
    rule: str
    reason: str
    cause: str
    words: str
    inputs: str
    entities: int
    serving: str | None = None
    created: int = 0


def newest_decisions(
    settings: Settings,
    model: str,
    limit: int = 100,
    action: str | None = None,
    created: int | None = None,
) -> list[DecisionRow]:
    """Return the newest decisions by their moments, oldest first.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        limit: The largest number of decisions.
        action: Action of the decisions; None: any action.
        created: Moment at which the model was registered; None: all models of the name.

    Raises:
        DataError: The table cannot be read.

    """
    condition = f" AND action = '{action}'" if action else ""
    if created is not None:
        condition += f" AND created = {created}"
    query = (
        f"SELECT * FROM here WHERE model = '{model}'{condition} "  # noqa: S608  (ours)
        f"ORDER BY as_of DESC LIMIT {limit}"
    )
    return _queried_decisions(settings, query)


def decisions_since(
    settings: Settings, model: str, since: datetime, as_of: datetime
) -> list[DecisionRow]:
    """Return the oldest MOST_AT_ONCE decisions that are newer than `since` or of `as_of`."""
    query = (
        f"SELECT * FROM here WHERE model = '{model}' "  # noqa: S608  (ours)
        f"AND (as_of > '{since.isoformat()}' OR as_of = '{as_of.isoformat()}') "
        f"ORDER BY as_of LIMIT {MOST_AT_ONCE}"
    )
    return _queried_decisions(settings, query)


def sampled_decisions(
    settings: Settings, model: str, since: datetime, step: timedelta
) -> list[DecisionRow]:
    """Return a decision for each `step` of whole seconds, oldest first, without `inputs`.

    It is the newest decision that acted, else the newest bad one, else the newest.
    """
    seconds = step // timedelta(seconds=1)
    query = f"""
        SELECT DISTINCT ON (span) * EXCEPT (span), '' AS inputs
        FROM (
            SELECT * EXCEPT (inputs), date_bin(INTERVAL '{seconds} seconds', as_of) AS span
            FROM here
            WHERE model = '{model}' AND as_of >= '{since.isoformat()}'
        )
        ORDER BY span, action = 'nothing', verdict != 'bad', as_of DESC
    """  # noqa: S608  (ours)
    return _queried_decisions(settings, query)


def notable_decisions(
    settings: Settings, model: str, since: datetime
) -> list[DecisionRow]:
    """Return the newest decision of each day and action that acted or was bad, without `inputs`."""
    query = f"""
        SELECT DISTINCT ON (day, action) * EXCEPT (day), '' AS inputs
        FROM (
            SELECT * EXCEPT (inputs), date_bin(INTERVAL '24 hours', as_of) AS day
            FROM here
            WHERE model = '{model}' AND as_of >= '{since.isoformat()}'
                AND (action != 'nothing' OR verdict = 'bad')
        )
        ORDER BY day, action, as_of DESC
    """  # noqa: S608  (ours)
    return _queried_decisions(settings, query)


def _queried_decisions(settings: Settings, query: str) -> list[DecisionRow]:
    decisions = [
        DecisionRow(**row) for row in query_table(settings, DECISIONS_TABLE, query)
    ]
    return sorted(decisions, key=lambda decision: decision.as_of)


def store_decision(settings: Settings, row: DecisionRow) -> None:
    """Store a decision in place of an earlier try as of the same moment.

    Raises:
        DataError: The table cannot be written.

    """
    _store(settings, DECISIONS_TABLE, asdict(row))


def store_checks(
    settings: Settings, model: str, as_of: datetime, results: Sequence[CheckResult]
) -> None:
    """Store the results of a run in place of an earlier try as of the same moment.

    Raises:
        DataError: The table cannot be written.

    """
    text = RESULTS.dump_json([*results]).decode()
    _store(settings, CHECKS_TABLE, {"model": model, "as_of": as_of, "results": text})


def stored_checks(
    settings: Settings, model: str, moments: Iterable[datetime]
) -> dict[datetime, list[CheckResult]]:
    """Return the stored results of runs by their moments.

    Raises:
        DataError: The table cannot be read.

    """
    literals = ", ".join(f"'{moment.isoformat()}'" for moment in moments)
    if not literals:
        return {}
    rows = query_table(
        settings,
        CHECKS_TABLE,
        "SELECT as_of, results FROM here "  # noqa: S608  (ours)
        f"WHERE model = '{model}' AND as_of IN ({literals})",
    )
    return {row["as_of"]: RESULTS.validate_json(row["results"]) for row in rows}


def _store(settings: Settings, name: str, row: dict[str, Any]) -> None:
    """Store a row in place of the row of its model and moment."""
    # These take long to import, and the console only reads.
    import pyarrow as pa  # noqa: PLC0415

    from core.tables.table import Table  # noqa: PLC0415

    columns = dict.fromkeys(row, pa.string())
    columns["as_of"] = pa.timestamp("us", tz="UTC")
    for integer in ("entities", "created"):
        if integer in columns:
            columns[integer] = pa.int64()
    schema = pa.schema(columns)
    table = Table(settings, name, schema)
    rows = pa.Table.from_pylist([row], schema)
    table.merge(rows, key=["model", "as_of"], content=[*row])
    if len(table.names()) > MAX_FILES:
        table.compact()
