"""Decisions of the monitor and alerts, as rows beside the promotion ledger.

`gyre maintain` forgets alerts not seen for 400 days, and decisions as old that did nothing: those
that acted stay for ever, and so do the newest 1,000 of each verdict on a model.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from mlflow_server.ledger import database, refused
from mlflow_server.roles import last_applied

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow_server.ledger import Ledger, LedgerRow
    from stack.settings import Settings

META = sql.MetaData()
LONGEST = 256
"""Characters of a cause that is a key; PostgreSQL refuses a longer one."""
HASHED = 16
DECISIONS = sql.Table(
    "decisions",
    META,
    sql.Column("sequence", sql.Integer, primary_key=True),
    sql.Column("model", sql.String(64), nullable=False, index=True),
    sql.Column("version", sql.String(16), nullable=False),
    sql.Column("as_of", sql.String(32), nullable=False),
    sql.Column("verdict", sql.String(32), nullable=False),
    sql.Column("action", sql.String(16), nullable=False),
    sql.Column("rule", sql.String(32), nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("cause", sql.Text, nullable=False),
    sql.Column("inputs", sql.Text, nullable=False),
    sql.Column("figures", sql.Text, nullable=False),
    sql.Column("counted", sql.Text),
)
ALERTS = sql.Table(
    "alerts",
    META,
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("cause", sql.String(LONGEST), primary_key=True),
    sql.Column("message", sql.Text, nullable=False),
    sql.Column("count", sql.Integer, nullable=False),
    sql.Column("first", sql.String(32), nullable=False),
    sql.Column("last", sql.String(32), nullable=False),
    sql.Column("delivered", sql.Boolean, nullable=False),
    sql.Column("details", sql.Text),
    sql.Column("tried", sql.String(32), nullable=False),
    sql.Column("over", sql.String(32)),
    sql.Column("whole", sql.Text),
)
"""cause: one that is too long is cut (`_key`); `whole` is all of it, and what is read.
details: a DriftAlert (alerts.py) as JSON. tried: when delivery was last begun. over: when the
cause ended; `message` and `delivered` are of its end from then on.
"""
KEPT = 1_000
"""Decisions of each verdict on a model that stay whatever their age: looks go by the newest."""
OPEN = timedelta(hours=24)
"""An alert is open for so long after its cause was last seen."""
IN_HAND = timedelta(seconds=30)
"""A delivery takes less; until then another process may be at it."""


@dataclass(frozen=True)
class DecisionRow:
    """One decision: `inputs` is all it depended on, as JSON, `figures` what was measured.

    counted: what serving had counted by then (monitoring/failures.py), as JSON; None if unknown.
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
    """Rows of every model. Safe to use from several processes.

    Raises:
        RegistryError: the database does not answer.

    """

    def __init__(self, settings: Settings) -> None:
        self._engine = database(settings, META)

    def decisions(self, model: str, limit: int = 100, **of: str) -> list[DecisionRow]:
        """Decisions on the newest moments of `model`, oldest first; `of` one action or verdict."""
        query = sql.select(DECISIONS).filter_by(model=model, **of)
        with self._begin() as connection:
            found = connection.execute(query.order_by(DECISIONS.c.as_of.desc()).limit(limit)).all()
        return [_row(row) for row in reversed(found)]

    def last_by_action(self, model: str) -> dict[str, datetime]:
        """When each action was last decided for `model`, by action."""
        newest = sql.func.max(DECISIONS.c.as_of)
        query = sql.select(DECISIONS.c.action, newest).filter_by(model=model)
        with self._begin() as connection:
            found = connection.execute(query.group_by(DECISIONS.c.action)).all()
        return {action: datetime.fromisoformat(as_of) for action, as_of in found}

    def keep(self, row: DecisionRow) -> None:
        """Store `row`, in place of what an earlier try decided at the same moment."""
        values = asdict(row) | {"as_of": row.as_of.isoformat(), "figures": json.dumps(row.figures)}
        same = (DECISIONS.c.model == row.model) & (DECISIONS.c.as_of == values["as_of"])
        with self._begin() as connection:
            connection.execute(sql.delete(DECISIONS).where(same))
            connection.execute(sql.insert(DECISIONS).values(values))

    def count_alert(
        self, model: str, cause: str, message: str, at: datetime, details: str | None = None
    ) -> bool:
        """Note that `cause` was seen at `at`; say whether the caller must deliver it.

        One that was over begins anew. The same moment once more is the caller's own next try.
        """
        which, now = _alert(model, cause), at.isoformat()
        said = {"message": message, "details": details}
        more = sql.update(ALERTS).where(which)
        with self._begin() as connection:
            begun = {"count": 1, "first": now, "last": now, "delivered": False, "tried": now}
            begun |= said | {"over": None}
            count = more.values(count=ALERTS.c.count + 1)
            # Writing first: one process at a time goes on from here.
            if not connection.execute(count).rowcount:
                key = _key(cause)
                named = {"model": model, "cause": key, "whole": None if key == cause else cause}
                with suppress(IntegrityError), connection.begin_nested():
                    connection.execute(sql.insert(ALERTS).values(named | begun))
                    return True
                # PostgreSQL locks no row that is not there: another process was quicker.
                connection.execute(count)
            known = connection.execute(sql.select(ALERTS).where(which)).one()
            if known.over is None:
                connection.execute(more.values(last=now, **said))
                return _take(connection, known, at)
            connection.execute(more.values(begun))
            return True

    def end_alert(self, model: str, cause: str, message: str | None, at: datetime) -> bool:
        """Note that `cause` is over; say whether the caller must deliver `message`, now the row's.

        Without one nothing is to be told. Of several processes one is told to deliver.
        """
        now = at.isoformat()
        said = {"message": message, "delivered": False, "tried": now} if message else {}
        goes_on = _alert(model, cause) & ALERTS.c.over.is_(None)
        with self._begin() as connection:
            ended = connection.execute(sql.update(ALERTS).where(goes_on).values(over=now, **said))
            return bool(ended.rowcount and message)

    def take_alert(self, model: str, cause: str, at: datetime) -> bool:
        """Whether the caller must deliver the alert at `at`, which no other has in hand."""
        which = _alert(model, cause)
        with self._begin() as connection:
            connection.execute(sql.update(ALERTS).where(which).values(count=ALERTS.c.count))
            return _take(connection, connection.execute(sql.select(ALERTS).where(which)).one(), at)

    def alert_delivered(self, model: str, cause: str) -> None:
        with self._begin() as connection:
            done = sql.update(ALERTS).where(_alert(model, cause)).values(delivered=True)
            connection.execute(done)

    def undelivered(self, model: str) -> list[dict[str, Any]]:
        """Alerts of `model`, or their ends, that no address has taken yet; the oldest first."""
        return [row for row in self.alerts(model) if not row["delivered"]]

    def alerts(self, model: str) -> list[dict[str, Any]]:
        """Alerts of `model`, the newest cause last."""
        query = sql.select(ALERTS).where(ALERTS.c.model == model).order_by(ALERTS.c.first)
        with self._begin() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001
        return [row | {"cause": row.pop("whole") or row["cause"]} for row in rows]

    def forget_alerts(self, before: datetime) -> int:
        """Delete alerts last seen before a moment; return how many."""
        old = ALERTS.c.last < before.isoformat()
        with self._begin() as connection:
            return connection.execute(sql.delete(ALERTS).where(old)).rowcount

    def forget_decisions(self, before: datetime, kept: int = KEPT) -> int:
        """Delete decisions on moments before one that did nothing; return how many.

        kept: so many of each verdict on a model stay whatever their age, the newest.
        """
        of = (DECISIONS.c.model, DECISIONS.c.verdict)
        newest = sql.func.row_number().over(partition_by=of, order_by=DECISIONS.c.as_of.desc())
        numbered = sql.select(DECISIONS.c.sequence, newest.label("nth")).subquery()
        late = sql.select(numbered.c.sequence).where(numbered.c.nth > kept)
        old = (DECISIONS.c.as_of < before.isoformat()) & (DECISIONS.c.action == "nothing")
        with self._begin() as connection:
            gone = sql.delete(DECISIONS).where(old & DECISIONS.c.sequence.in_(late))
            return connection.execute(gone).rowcount

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        with refused("decisions and alerts"), self._engine.begin() as connection:
            yield connection


@dataclass(frozen=True)
class ModelRows:
    """What the database says of a model.

    ledger, decisions: oldest first. last: when each action was last decided.
    """

    ledger: Sequence[LedgerRow]
    decisions: Sequence[DecisionRow]
    last: Mapping[str, datetime]
    alerts: Sequence[Mapping[str, Any]]

    def newest(self, role: str) -> LedgerRow | None:
        """Return the row that put into `role` what the ledger says is there."""
        return last_applied(self.ledger, role)

    def open_alerts(self, now: datetime) -> list[Mapping[str, Any]]:
        ongoing = [alert for alert in self.alerts if not alert["over"]]
        return [a for a in ongoing if now - datetime.fromisoformat(a["last"]) <= OPEN]

    def undelivered(self) -> list[Mapping[str, Any]]:
        return [alert for alert in self.alerts if not alert["delivered"]]


def model_rows(ledger: Ledger, records: Records, model: str) -> ModelRows:
    decisions, last = records.decisions(model), records.last_by_action(model)
    return ModelRows(ledger.rows(model), decisions, last, records.alerts(model))


def _alert(model: str, cause: str) -> sql.ColumnElement[bool]:
    return (ALERTS.c.model == model) & (ALERTS.c.cause == _key(cause))


def _key(cause: str) -> str:
    """Return a cause that a column takes; of a longer one the beginning and what tells it apart."""
    if len(cause) <= LONGEST:
        return cause
    return f"{cause[: LONGEST - HASHED - 1]}~{sha256(cause.encode()).hexdigest()[:HASHED]}"


def _take(connection: sql.Connection, row: Any, at: datetime) -> bool:
    """Whether to deliver `row` at `at`, which is noted: nobody took it, or too long ago."""
    passed = abs(at - datetime.fromisoformat(row.tried))
    if row.delivered or timedelta(0) < passed <= IN_HAND:  # at 0 it is the caller's own try
        return False
    taken = sql.update(ALERTS).where(_alert(row.model, row.cause))
    connection.execute(taken.values(tried=at.isoformat()))
    return True


def _row(found: Any) -> DecisionRow:
    values = {name: getattr(found, name) for name in DecisionRow.__annotations__}
    values |= {"as_of": datetime.fromisoformat(found.as_of), "figures": json.loads(found.figures)}
    return DecisionRow(**values)
