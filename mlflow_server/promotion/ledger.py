"""The ledger: an SQL row for each change of a role, unique on (model, sequence)."""

from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sql
from pydantic import TypeAdapter
from pydantic_core import ArgsKwargs

from mlflow_server.database import WAIT_SECONDS, Store
from mlflow_server.tables import LEDGER

LedgerAction = Literal[
    "promote",
    "rollback",
    "automatic rollback",
    "rollout",
    "release",
    "by hand",
    "by stage",
]
"""Cause of a change: a command, the monitor, a step of a rollout, or a person in MLflow."""


@dataclass(frozen=True)
class LedgerRow:
    """One change of a role, in the order of the table's columns.

    Attributes:
        model: Name of the registered model.
        sequence: Number of the row, from 1 without a gap.
        role: The role.
        percent: Percent of requests that the version answers (a shadow: scores); 0: no version.
        from_version: Version that leaves the role.
        to_version: Version that enters the role.
        who: Author of the change.
        why: Reason of the change.
        evidence: Ground of the change, such as a run.
        time: Time of the row.
        applied_at: Time at which MLflow had the change. None: it is under way if the row is the
            newest, else void.
        action: Word for the change, on pages and in `gyre ledger`.
        created: Time of the model's registration. Rows of a deleted model do not count for a later
            model of its name.

    """

    model: str
    sequence: int
    role: str
    percent: int
    from_version: str | None
    to_version: str | None
    who: str
    why: str
    evidence: str | None
    time: datetime
    applied_at: datetime | None = None
    action: LedgerAction = "promote"
    created: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the row under the names of its columns; times as ISO 8601, UTC."""
        values = dict(zip(LEDGER.columns.keys(), astuple(self), strict=True))
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        return values | {"time": self.time.isoformat(), "applied_at": applied_at}


LEDGER_ROW = TypeAdapter(LedgerRow)


class Ledger(Store):
    """Rows of every model; write only inside `exclusive`.

    Raises:
        RegistryError: The database does not answer, or another writer takes longer than 20 s.

    """

    def rows(self, model: str, created: int | None = None) -> list[LedgerRow]:
        """Return rows of a model, oldest first.

        Args:
            model: Its name.
            created: Time of the model's registration; None: rows of all models of this name.

        """
        query = sql.select(LEDGER).filter_by(model=model).order_by(LEDGER.c.sequence)
        if created is not None:
            query = query.filter_by(created=created)
        with self._begin() as connection:
            # Pydantic turns texts into times.
            return [
                LEDGER_ROW.validate_python(ArgsKwargs(tuple(values)))
                for values in connection.execute(query)
            ]

    def next_sequence(self, model: str) -> int:
        """Return the number of the next row of a model."""
        query = sql.select(sql.func.max(LEDGER.c.sequence)).filter_by(model=model)
        with self._begin() as connection:
            return (connection.scalar(query) or 0) + 1

    def insert(self, row: LedgerRow) -> None:
        """Commit a new row."""
        with self._begin() as connection:
            connection.execute(sql.insert(LEDGER).values(row.as_json()))

    def stamp(self, row: LedgerRow) -> LedgerRow:
        """Commit that the row is applied; return it with the time."""
        applied = replace(row, applied_at=now())
        update = sql.update(LEDGER).filter_by(model=row.model, sequence=row.sequence)
        with self._begin() as connection:
            connection.execute(update.values(applied.as_json()))
        return applied

    def exclusive(self, model: str) -> AbstractContextManager[None]:
        """Hold the model's lock until the block ends: MLflow cannot compare and swap an alias."""
        return self._lock(f"ledger.{model}", WAIT_SECONDS)


def now() -> datetime:
    return datetime.now(UTC)
