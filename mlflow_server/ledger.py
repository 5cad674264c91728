"""The ledger: one SQL row per change of a role, unique on (model, sequence)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

WAIT_SECONDS = 20
"""How long a writer waits for another; longer than a promotion takes with a slow MLflow."""
META = sql.MetaData()
TABLE = sql.Table(
    "ledger",
    META,
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("role", sql.String(16), nullable=False),
    sql.Column("percent", sql.Integer, nullable=False),
    sql.Column("from", sql.String(16)),
    sql.Column("to", sql.String(16)),
    sql.Column("who", sql.Text, nullable=False),
    sql.Column("why", sql.Text, nullable=False),
    sql.Column("evidence", sql.Text),
    # ISO 8601, UTC: the same text on every database
    sql.Column("time", sql.String(32), nullable=False),
    sql.Column("applied_at", sql.String(32)),
)


@dataclass(frozen=True)
class LedgerRow:
    """One change, in the order of the table's columns.

    `sequence` counts from 1 without a gap; a version None is "no version". percent: the share of
    requests that the version answers from here on (a shadow: that it scores); 0 with no version.
    applied_at: when MLflow had the change; None: it is under way if the row is the newest, else
    it never took effect.
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

    def as_json(self) -> dict[str, Any]:
        """Return the row under the names of its columns; times as ISO 8601, UTC."""
        values = dict(zip(TABLE.c.keys(), astuple(self), strict=True))
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        return values | {"time": self.time.isoformat(), "applied_at": applied_at}


class Ledger:
    """Rows of every model. Safe to use from several processes and threads.

    as_of: the moment that whoever writes acts as of; it counts in a replay's home alone.

    Raises:
        RegistryError: the database does not answer, or another writer takes longer than 20 s.

    """

    def __init__(self, settings: Settings, as_of: datetime | None = None) -> None:
        self._replayed = as_of if settings.replay else None
        self._lock = settings.home / "ledger.lock"
        self._engine = database(settings, META)

    def now(self) -> datetime:
        """When a row is from that is written now: by the clock; in a replay, as of its moment."""
        return self._replayed or now()

    def rows(self, model: str) -> list[LedgerRow]:
        """Every row of `model`, oldest first."""
        query = sql.select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.sequence)
        with refused(), self._engine.connect() as connection:
            return [_row(*values) for values in connection.execute(query)]

    def insert(self, row: LedgerRow) -> None:
        """Commit a new row. Hold `exclusive`."""
        with refused(), self._engine.begin() as connection:
            connection.execute(sql.insert(TABLE).values(row.as_json()))

    def stamp(self, row: LedgerRow) -> LedgerRow:
        """Commit that the row is applied, and return it so. Hold `exclusive`."""
        applied = replace(row, applied_at=self.now())
        same = (TABLE.c.model == row.model) & (TABLE.c.sequence == row.sequence)
        values = {"applied_at": applied.as_json()["applied_at"]}
        with refused(), self._engine.begin() as connection:
            connection.execute(sql.update(TABLE).where(same).values(values))
        return applied

    @contextmanager
    def exclusive(self, model: str) -> Iterator[None]:
        """Be the only writer until the block ends, across any number of commits.

        A process that dies inside lets go at once, whatever the signal. This is what lets an
        alias, which MLflow cannot compare and swap, be moved by one process at a time.
        """
        if self._engine.dialect.name == "postgresql":
            with refused(), self._engine.begin() as connection:
                _lock(connection, f"gyre.ledger.{model}")
                yield
            return
        try:
            with FileLock(self._lock, timeout=WAIT_SECONDS):
                yield
        except Timeout as exc:
            raise RegistryError(
                f"{model}: another promotion has held {self._lock} for {WAIT_SECONDS} s: try again"
            ) from exc

    def close(self) -> None:
        self._engine.dispose()


def _row(*values: Any) -> LedgerRow:
    applied_at = datetime.fromisoformat(values[-1]) if values[-1] else None
    return LedgerRow(*[*values[:-2], datetime.fromisoformat(values[-2]), applied_at])


def now() -> datetime:
    return datetime.now(UTC)


def database(settings: Settings, tables: sql.MetaData) -> sql.Engine:
    """Open the database of the ledger, of decisions and of alerts; create missing `tables`."""
    sqlite = settings.ledger_address.startswith("sqlite")
    if sqlite:
        settings.home.mkdir(parents=True, exist_ok=True)
    waits = {"timeout": WAIT_SECONDS} if sqlite else {}
    engine = sql.create_engine(
        settings.ledger_address, connect_args=waits, pool_pre_ping=not sqlite
    )
    with refused(), engine.begin() as connection:
        if sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # of two processes one creates
        else:
            _lock(connection, "gyre.tables")
        tables.create_all(connection)
    return engine


def _lock(connection: sql.Connection, name: str) -> None:
    """Hold PostgreSQL's lock of that name until the transaction ends."""
    connection.execute(sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(name))))


@contextmanager
def refused(what: str = "promotion ledger") -> Iterator[None]:
    """Raise what the database says as RegistryError, in one line, of `what` it is about."""
    try:
        yield
    except SQLAlchemyError as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"{what}: the database refused: {line}") from exc
