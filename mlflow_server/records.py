"""Decisions of the monitor and alerts, as rows beside the promotion ledger.

`gyre maintain` forgets alerts not seen for 400 days, decisions as old that did nothing, and details
as old of all: decisions that acted stay for ever.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql

from core.settings import Settings
from mlflow_server.ledger import (
    Ledger,
    LedgerRow,
    database,
    lock_tables,
    one_at_a_time,
    refused,
)
from mlflow_server.roles import ROLES, last_applied
from mlflow_server.window_details import DETAILS, WindowDetails

TEXTS = (
    "version",
    "as_of",
    "verdict",
    "action",
    "rule",
    "reason",
    "cause",
    "inputs",
    "figures",
)
DECISIONS = sql.table(
    "decisions", *map(sql.column, ("sequence", "model", *TEXTS, "counted"))
)
INCIDENT = (
    "sequence",
    "model",
    "cause",
    "message",
    "first",
    "last",
    "details",
    "count",
)
ALERTS = sql.table(
    "alerts", *map(sql.column, INCIDENT), sql.column("delivered", sql.Boolean)
)
"""One row per incident. details: a DriftAlert (alerts.py) as JSON."""
WINDOWS = sql.table("windows", *map(sql.column, ("model", "as_of", "details")))
"""Details of the decision of the same moment, as JSON."""
QUIET = timedelta(hours=3)
"""An incident is over once its cause was not seen for so long: most are looked for every hour."""
BEFALLS = re.compile(
    r"(?:parked: |drift of |skew of |too few predictions of )*version (\d+)"
)
"""Causes of alerts that concern a version only while it is in a role."""
YEAR = timedelta(days=365)
SHOWN = 24
"""The newest decisions that `ModelRows` holds."""


@dataclass(frozen=True)
class DecisionRow:
    """One decision: `inputs` is all it depended on, as JSON, `figures` what was measured.

    counted: what serving had counted (monitoring/serving_status.py), as JSON; None if unknown.
    """

    model: str
    version: str
    as_of: datetime
    verdict: str
    action: str
    rule: str
    reason: str
    cause: str
    inputs: str
    figures: dict[str, float]
    counted: str | None = None


class Records:
    """Rows of every model, for several processes; RegistryError if the database is down."""

    def __init__(self, settings: Settings) -> None:
        self._engine = database(settings)

    def decisions(self, model: str, limit: int = 100, **of: str) -> list[DecisionRow]:
        """Decisions on the newest moments of `model`, oldest first; `of` one action or verdict."""
        query = sql.select(DECISIONS).filter_by(model=model, **of)
        with self._begin() as connection:
            newest = connection.execute(
                query.order_by(DECISIONS.c.as_of.desc()).limit(limit)
            )
            return [_row(row) for row in reversed(newest.mappings().all())]

    def decisions_since(
        self, model: str, since: datetime, hours: int = 1, *, notable: bool = False
    ) -> list[DecisionRow]:
        """One decision for each `hours` of a day from `since` on, oldest first, without `inputs`.

        The one that acted, else a bad one, else the newest. notable: of each action one of the two.
        """
        at, acted = DECISIONS.c.as_of, DECISIONS.c.action != "nothing"
        bad = DECISIONS.c.verdict == "bad"
        day, hour = sql.func.substr(at, 1, 10), sql.func.substr(at, 12, 2)
        span = (
            day,
            sql.cast(hour, sql.Integer) // hours,
            *([DECISIONS.c.action] * notable),
        )
        order = (sql.case((acted, 0), (bad, 1), else_=2), at.desc())
        rank = (
            sql.func.row_number().over(partition_by=span, order_by=order).label("rank")
        )
        ranked = sql.select(DECISIONS.c.sequence, rank).filter_by(model=model)
        ranked = ranked.where(
            at >= since.isoformat(), (acted | bad) if notable else sql.true()
        )
        found = ranked.subquery()
        columns = [column for column in DECISIONS.c if column.name != "inputs"]
        query = sql.select(*columns, sql.literal("").label("inputs"))
        query = query.join(found, found.c.sequence == DECISIONS.c.sequence)
        with self._begin() as connection:
            rows = connection.execute(
                query.where(found.c.rank == 1).order_by(at)
            ).mappings()
            return [_row(row) for row in rows]

    def keep_details(self, model: str, as_of: datetime, details: WindowDetails) -> None:
        """Store `details` in place of what an earlier try measured at the same moment."""
        moment = {"model": model, "as_of": as_of.isoformat()}
        values = moment | {"details": DETAILS.dump_json(details).decode()}
        with self._begin() as connection:
            connection.execute(sql.delete(WINDOWS).filter_by(**moment))
            connection.execute(sql.insert(WINDOWS).values(values))

    def details(
        self, model: str, since: datetime, moments: Sequence[datetime] | None = None
    ) -> dict[datetime, WindowDetails]:
        """Details of moments from `since` on, or of these `moments` among them, oldest first."""
        query = sql.select(WINDOWS.c.as_of, WINDOWS.c.details).filter_by(model=model)
        query = query.where(WINDOWS.c.as_of >= since.isoformat()).order_by(
            WINDOWS.c.as_of
        )
        if moments is not None:
            query = query.where(WINDOWS.c.as_of.in_([at.isoformat() for at in moments]))
        with self._begin() as connection:
            found = connection.execute(query).all()
        return {
            datetime.fromisoformat(at): DETAILS.validate_json(text)
            for at, text in found
        }

    def last_by_action(self, model: str) -> dict[str, datetime]:
        """When each action was last decided for `model`."""
        newest = sql.func.max(DECISIONS.c.as_of)
        query = sql.select(DECISIONS.c.action, newest).filter_by(model=model)
        with self._begin() as connection:
            found = connection.execute(query.group_by(DECISIONS.c.action)).all()
        return {action: datetime.fromisoformat(as_of) for action, as_of in found}

    def keep(self, row: DecisionRow) -> None:
        """Store `row`, in place of what an earlier try decided at the same moment."""
        values = asdict(row) | {
            "as_of": row.as_of.isoformat(),
            "figures": json.dumps(row.figures),
        }
        same = sql.delete(DECISIONS).filter_by(model=row.model, as_of=values["as_of"])
        with self._begin() as connection:
            connection.execute(same)
            connection.execute(sql.insert(DECISIONS).values(values))

    def count_alert(
        self,
        model: str,
        cause: str,
        message: str,
        at: datetime,
        details: str | None = None,
    ) -> None:
        """Count the open incident of `cause`, or begin one."""
        seen = {"message": message, "details": details, "last": at.isoformat()}
        new = {
            "model": model,
            "cause": cause,
            "count": 1,
            "first": seen["last"],
            "delivered": False,
        }
        same = sql.update(ALERTS).filter_by(model=model, cause=cause)
        ongoing = same.where(ALERTS.c.last >= (at - QUIET).isoformat())
        again = ongoing.values(count=ALERTS.c.count + 1, **seen)
        with self._begin() as connection:
            lock_tables(connection, "gyre.alerts")  # of two processes one begins it
            if not connection.execute(again).rowcount:
                connection.execute(sql.insert(ALERTS).values(new | seen))

    def alert_delivered(self, sequence: int) -> None:
        row = sql.update(ALERTS).filter_by(sequence=sequence)
        with self._begin() as connection:
            connection.execute(row.values(delivered=True))

    def undelivered(self, model: str) -> list[dict[str, Any]]:
        """Alerts of `model` that no address has taken yet, the oldest first."""
        return [row for row in self.alerts(model) if not row["delivered"]]

    def alerts(self, model: str) -> list[dict[str, Any]]:
        """Alerts of `model`, a row per incident, the newest last."""
        query = sql.select(ALERTS).filter_by(model=model)
        with self._begin() as connection:
            rows = connection.execute(query.order_by(ALERTS.c.first, ALERTS.c.sequence))
            return [dict(row) for row in rows.mappings()]

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait for other processes that deliver alerts."""
        return one_at_a_time(self._engine, "gyre.alerts.delivery")

    def forget_alerts(self, before: datetime) -> int:
        """Delete alerts last seen before a moment; return how many."""
        return self._delete(
            sql.delete(ALERTS).where(ALERTS.c.last < before.isoformat())
        )

    def forget_decisions(self, before: datetime) -> int:
        """Delete decisions that did nothing, and all details; return how many."""
        old = (DECISIONS.c.as_of < before.isoformat()) & (
            DECISIONS.c.action == "nothing"
        )
        details = self._delete(
            sql.delete(WINDOWS).where(WINDOWS.c.as_of < before.isoformat())
        )
        return details + self._delete(sql.delete(DECISIONS).where(old))

    def close(self) -> None:
        self._engine.dispose()

    def _delete(self, rows: sql.Delete) -> int:
        with self._begin() as connection:
            return connection.execute(rows).rowcount

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        with refused("decisions and alerts"), self._engine.begin() as connection:
            yield connection


@dataclass(frozen=True)
class ModelRows:
    """What the database says of a model, oldest first; last: when each action was last decided.

    alerts: of the model and of its dataset. details: of the newest decision, if it has any.
    notable: of each day of a year in which one acted or was bad, one decision of each action.
    """

    ledger: Sequence[LedgerRow]
    decisions: Sequence[DecisionRow]
    last: Mapping[str, datetime]
    alerts: Sequence[Mapping[str, Any]]
    details: WindowDetails | None = None
    notable: Sequence[DecisionRow] = ()

    def newest(self, role: str) -> LedgerRow | None:
        """Return the row that put into `role` what the ledger says is there."""
        return last_applied(self.ledger, role)

    def open_alerts(self, now: datetime) -> list[Mapping[str, Any]]:
        """Alerts seen of late; what befell a version is over with its role, but for its harm."""
        taken = {row.to_version for row in map(self.newest, ROLES) if row}
        found = [(alert, BEFALLS.match(alert["cause"])) for alert in self.alerts]
        return [a for a, of in found if is_open(a, now) and (not of or of[1] in taken)]

    def undelivered(self) -> list[Mapping[str, Any]]:
        return [alert for alert in self.alerts if not alert["delivered"]]


def model_rows(
    ledger: Ledger, records: Records, model: str, datasets: Sequence[str]
) -> ModelRows:
    decisions, last = records.decisions(model, SHOWN), records.last_by_action(model)
    alerts = [
        alert for subject in (*datasets, model) for alert in records.alerts(subject)
    ]
    details = records.details(model, decisions[-1].as_of) if decisions else {}
    newest = next(iter(details.values()), None)
    notable = records.decisions_since(
        model, datetime.now(UTC) - YEAR, hours=24, notable=True
    )
    return ModelRows(ledger.rows(model), decisions, last, alerts, newest, notable)


def is_open(alert: Mapping[str, Any], now: datetime) -> bool:
    return datetime.fromisoformat(alert["last"]) >= now - QUIET


def _row(row: sql.RowMapping) -> DecisionRow:
    values = {name: row[name] for name in DecisionRow.__annotations__}
    values["as_of"] = datetime.fromisoformat(row["as_of"])
    values["figures"] = json.loads(row["figures"])
    return DecisionRow(**values)
