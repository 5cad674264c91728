"""The ledger: one SQL row per change of a role, unique on (model, sequence)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

State = Literal["pending", "applied", "superseded"]
WAIT_SECONDS = 20
"""How long a writer waits for another; longer than a promotion takes with a slow MLflow."""

TABLE = sql.Table(
    "ledger",
    sql.MetaData(),
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("role", sql.String(16), nullable=False),
    sql.Column("percent", sql.Integer, nullable=False),
    sql.Column("from", sql.String(16)),
    sql.Column("to", sql.String(16)),
    sql.Column("who", sql.Text, nullable=False),
    sql.Column("why", sql.Text, nullable=False),
    sql.Column("evidence", sql.Text),
    sql.Column("state", sql.String(16), nullable=False),
    # ISO 8601, UTC: the same text on every database
    sql.Column("time", sql.String(32), nullable=False),
)


@dataclass(frozen=True)
class LedgerRow:
    """One change, in the order of the table's columns.

    `sequence` counts from 1 without a gap; a version None is "no version". percent: the share of
    requests that the version answers from here on (a shadow: that it scores); 0 with no version.
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
    state: State
    time: datetime

    def as_json(self) -> dict[str, Any]:
        """Return the row under the names of its columns; `time` as ISO 8601, UTC."""
        values = dict(zip(TABLE.c.keys(), astuple(self), strict=True))
        return values | {"time": self.time.isoformat()}


class Ledger:
    """Rows of every model. Safe to use from several processes and threads.

    as_of: the moment that whoever writes acts as of; it counts in a replay's home alone.

    Raises:
        RegistryError: the database does not answer, or stays locked for 20 s.

    """

    def __init__(self, settings: Settings, as_of: datetime | None = None) -> None:
        self._replayed = as_of if settings.replay else None
        self._engine = database(settings)
        with self.exclusive("") as book:
            book.connection.execute(CreateTable(TABLE, if_not_exists=True))

    def now(self) -> datetime:
        """When a row is from that is written now: by the clock; in a replay, as of its moment."""
        return self._replayed or now()

    def rows(self, model: str) -> list[LedgerRow]:
        """Every row of `model`, oldest first. Waits for no writer but while it commits."""
        with refused(), self._engine.connect() as connection:
            return Book(connection).rows(model)

    @contextmanager
    def exclusive(self, model: str) -> Iterator[Book]:
        """Be the only writer until the block ends; kept if it returns, undone if it raises.

        A process that dies inside lets go at once, whatever the signal. This is what lets an
        alias, which MLflow cannot compare and swap, be moved by one process at a time.
        """
        with refused(), self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver's own comes too late
            elif connection.dialect.name == "postgresql":
                key = sql.func.hashtext(f"gyre.ledger.{model}")
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(key)))
            yield Book(connection)

    def close(self) -> None:
        self._engine.dispose()


@dataclass(frozen=True)
class Book:
    """The ledger inside one transaction."""

    connection: sql.Connection

    def rows(self, model: str) -> list[LedgerRow]:
        query = sql.select(TABLE).where(TABLE.c.model == model).order_by(TABLE.c.sequence)
        found = self.connection.execute(query).all()
        return [LedgerRow(*[*row[:-1], datetime.fromisoformat(row[-1])]) for row in found]

    def append(self, row: LedgerRow) -> None:
        """Insert `row` with its sequence.

        Raises:
            PromotionRefusedError: the sequence is taken, somebody else was first.

        """
        try:
            self.connection.execute(sql.insert(TABLE).values(row.as_json()))
        except IntegrityError as exc:
            raise PromotionRefusedError(
                f"{row.model}: ledger row {row.sequence} was written by somebody else: look again"
            ) from exc

    def settle(self, row: LedgerRow) -> None:
        """Give the row that is there already the state of `row`."""
        which = (TABLE.c.model == row.model) & (TABLE.c.sequence == row.sequence)
        self.connection.execute(sql.update(TABLE).where(which).values(state=row.state))


def now() -> datetime:
    return datetime.now(UTC)


def database(settings: Settings) -> sql.Engine:
    """Where the ledger is, and decisions and alerts (records.py) beside it."""
    sqlite = settings.ledger_address.startswith("sqlite")
    if sqlite:
        settings.home.mkdir(parents=True, exist_ok=True)
    waits = {"timeout": WAIT_SECONDS} if sqlite else {}
    return sql.create_engine(settings.ledger_address, connect_args=waits, pool_pre_ping=not sqlite)


@contextmanager
def refused(what: str = "promotion ledger") -> Iterator[None]:
    """Raise what the database says as RegistryError, in one line, of `what` it is about."""
    try:
        yield
    except SQLAlchemyError as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"{what}: the database refused: {line}") from exc
