"""Decisions of the monitor and alerts, as rows beside the promotion ledger."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from mlflow_server.ledger import WAIT_SECONDS
from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

META = sql.MetaData()
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
)
ALERTS = sql.Table(
    "alerts",
    META,
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("cause", sql.String(256), primary_key=True),
    sql.Column("message", sql.Text, nullable=False),
    sql.Column("count", sql.Integer, nullable=False),
    sql.Column("first", sql.String(32), nullable=False),
    sql.Column("last", sql.String(32), nullable=False),
    sql.Column("delivered", sql.Boolean, nullable=False),
)
IN_HAND = timedelta(seconds=30)
"""A delivery takes less; until then another process may be at it."""


@dataclass(frozen=True)
class DecisionRow:
    """One decision: `inputs` is all it depended on, as JSON, `figures` what was measured."""

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


class Records:
    """Rows of every model. Safe to use from several processes.

    Raises:
        RegistryError: the database does not answer.

    """

    def __init__(self, settings: Settings) -> None:
        sqlite = settings.ledger_address.startswith("sqlite")
        waits = {"timeout": WAIT_SECONDS} if sqlite else {}
        self._engine = sql.create_engine(settings.ledger_address, connect_args=waits)
        with self._begin() as connection:
            for table in META.sorted_tables:  # create_all looks first, and another may be quicker
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def decisions(
        self, model: str, limit: int = 100, *, action: str | None = None
    ) -> list[DecisionRow]:
        """Decisions on the newest moments of `model` (with `action`, if given), oldest first."""
        query = sql.select(DECISIONS).where(DECISIONS.c.model == model)
        if action is not None:
            query = query.where(DECISIONS.c.action == action)
        with self._begin() as connection:
            found = connection.execute(query.order_by(DECISIONS.c.as_of.desc()).limit(limit)).all()
        return [_row(row) for row in reversed(found)]

    def keep(self, row: DecisionRow) -> None:
        """Store `row`, in place of what an earlier try decided at the same moment."""
        values = asdict(row) | {"as_of": row.as_of.isoformat(), "figures": json.dumps(row.figures)}
        same = (DECISIONS.c.model == row.model) & (DECISIONS.c.as_of == values["as_of"])
        with self._begin() as connection:
            connection.execute(sql.delete(DECISIONS).where(same))
            connection.execute(sql.insert(DECISIONS).values(values))

    def count_alert(self, model: str, cause: str, message: str, at: datetime) -> bool:
        """Note that `cause` was seen at `at`; say whether the caller must deliver it.

        The same moment once more is the caller's own next try.
        """
        which = (ALERTS.c.model == model) & (ALERTS.c.cause == cause)
        more = sql.update(ALERTS).where(which)
        with self._begin() as connection:
            # Writing first: one process at a time goes on from here.
            connection.execute(more.values(count=ALERTS.c.count + 1, message=message))
            known = connection.execute(sql.select(ALERTS).where(which)).one_or_none()
            if known is None:
                first = at.isoformat()
                connection.execute(
                    sql.insert(ALERTS).values(
                        model=model, cause=cause, message=message, count=1, first=first,
                        last=first, delivered=False,
                    )
                )  # fmt: skip
                return True
            connection.execute(more.values(last=at.isoformat()))
            passed = abs(at - datetime.fromisoformat(known.last))
            return not known.delivered and (not passed or passed > IN_HAND)

    def alert_delivered(self, model: str, cause: str) -> None:
        which = (ALERTS.c.model == model) & (ALERTS.c.cause == cause)
        with self._begin() as connection:
            connection.execute(sql.update(ALERTS).where(which).values(delivered=True))

    def alerts(self, model: str) -> list[dict[str, Any]]:
        """Alerts of `model`, the newest cause last."""
        query = sql.select(ALERTS).where(ALERTS.c.model == model).order_by(ALERTS.c.first)
        with self._begin() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
            raise RegistryError(f"decisions and alerts: the database refused: {line}") from exc


def _row(found: Any) -> DecisionRow:
    values = {name: getattr(found, name) for name in DecisionRow.__annotations__}
    values |= {"as_of": datetime.fromisoformat(found.as_of), "figures": json.loads(found.figures)}
    return DecisionRow(**values)
