"""The ledger: one SQL row per change of a role, unique on (model, sequence)."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from stack.settings import Settings

State = Literal["pending", "applied", "superseded"]
JSON_NAMES = {"from_version": "from", "to_version": "to"}
WAIT_SECONDS = 20
"""How long a writer waits for another; longer than a promotion takes with a slow MLflow."""

TABLE = sql.Table(
    "ledger",
    sql.MetaData(),
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("role", sql.String(16), nullable=False),
    sql.Column("percent", sql.Integer, nullable=False),
    sql.Column("from", sql.String(16), key="from_version"),
    sql.Column("to", sql.String(16), key="to_version"),
    sql.Column("who", sql.Text, nullable=False),
    sql.Column("why", sql.Text, nullable=False),
    sql.Column("evidence", sql.Text),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column(
        "time", sql.String(32), nullable=False
    ),  # ISO 8601, UTC: the same text on every database
)


@dataclass(frozen=True)
class LedgerRow:
    """One change. `sequence` counts from 1 without a gap; a version None is "no version"."""

    model: str
    sequence: int
    role: str
    percent: int
    from_version: str | None
    to_version: str | None
    who: str
    why: str
    evidence: str | None
    state: State
    time: datetime

    def as_json(self) -> dict[str, Any]:
        """Return the row under the names of its columns; `time` as ISO 8601, UTC."""
        row = {JSON_NAMES.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        return row | {"time": self.time.isoformat()}


class Ledger:
    """Rows of every model. Safe to use from several processes and threads.

    Raises:
        RegistryError: the database does not answer, or stays locked for 20 s.

    """

    def __init__(self, settings: Settings) -> None:
        self._engine = _engine(settings)
        with self.exclusive("") as book:
            book.create()

    def rows(self, model: str) -> list[LedgerRow]:
        """Every row of `model`, oldest first. Never waits for a writer."""
        with _translated(), self._engine.begin() as connection:
            return Book(connection).rows(model)

    @contextmanager
    def exclusive(self, model: str) -> Iterator[Book]:
        """Be the only writer until the block ends; kept if it returns, undone if it raises.

        A process that dies inside lets go at once, whatever the signal. This is what lets an
        alias, which MLflow cannot compare and swap, be moved by one process at a time.
        """
        with _translated(), self._engine.connect() as plain:
            connection = plain.execution_options(gyre_exclusive=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    key = {"key": f"gyre.ledger.{model}"}
                    connection.execute(
                        sql.text("SELECT pg_advisory_xact_lock(hashtext(:key))"), key
                    )
                yield Book(connection)

    def close(self) -> None:
        self._engine.dispose()


class Book:
    """The ledger inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self) -> None:
        self._connection.execute(CreateTable(TABLE, if_not_exists=True))

    def rows(self, model: str) -> list[LedgerRow]:
        query = sql.select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.sequence)
        return [
            LedgerRow(**{**row, "time": datetime.fromisoformat(row["time"])})
            for row in map(_by_key, self._connection.execute(query).all())
        ]

    def append(self, row: LedgerRow) -> LedgerRow:
        """Insert `row` with its sequence.

        Raises:
            PromotionRefusedError: the sequence is taken, somebody else was first.

        """
        values = {f.name: getattr(row, f.name) for f in fields(row)}
        try:
            self._connection.execute(
                sql.insert(TABLE).values(values | {"time": row.time.isoformat()})
            )
        except IntegrityError as exc:
            raise PromotionRefusedError(
                f"{row.model}: ledger row {row.sequence} was written by somebody else: look again"
            ) from exc
        return row

    def settle(self, row: LedgerRow, state: State) -> LedgerRow:
        """Turn a pending row into `state`."""
        which = (TABLE.c.model == row.model) & (TABLE.c.sequence == row.sequence)
        self._connection.execute(sql.update(TABLE).where(which).values(state=state))
        return replace(row, state=state)


def now() -> datetime:
    return datetime.now(UTC)


def _by_key(row: Any) -> dict[str, Any]:
    return dict(zip((column.key for column in TABLE.c), row, strict=True))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, Timeout) as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"promotion ledger: the database refused: {line}") from exc


def _engine(settings: Settings) -> Engine:
    if not settings.ledger_address.startswith("sqlite"):
        return sql.create_engine(settings.ledger_address, pool_pre_ping=True)
    settings.home.mkdir(parents=True, exist_ok=True)
    engine = sql.create_engine(settings.ledger_address, connect_args={"timeout": WAIT_SECONDS})

    @sql.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below

    @sql.event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        exclusive = connection.get_execution_options().get("gyre_exclusive")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if exclusive else "BEGIN")

    # Readers shall never wait for a writer. SQLite keeps the mode in the file, but does not wait
    # for others when it changes, so the first of several processes changes it alone.
    alone = FileLock(settings.home / "ledger.lock", timeout=WAIT_SECONDS)
    with _translated(), alone, closing(engine.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    return engine
