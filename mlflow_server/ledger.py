"""The ledger: one SQL row per change of a role, unique on (model, sequence)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from core.errors import RegistryError
from core.settings import SCHEMAS, Settings
from mlflow_server.migrations import migrate

WAIT_SECONDS = 20
"""How long a writer waits for another; longer than a promotion takes with a slow MLflow."""
CONNECT_SECONDS = 5
LEDGER = "promotion ledger"
COLUMNS = (
    *("model", "sequence", "role", "percent", "from", "to"),
    *("who", "why", "evidence", "time", "applied_at"),
)
TABLE = sql.table("ledger", *map(sql.column, COLUMNS))
"""Its types, like those of all our tables, are in migrations/. Times are ISO 8601, UTC."""


@dataclass(frozen=True)
class LedgerRow:
    """One change, in the order of the table's columns; `sequence` counts from 1 without a gap.

    percent: share of the requests that the version answers (a shadow: scores); 0 with no version.
    applied_at: when MLflow had the change. None: under way if the row is the newest, else void.
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
        values = dict(zip(COLUMNS, astuple(self), strict=True))
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        return values | {"time": self.time.isoformat(), "applied_at": applied_at}


class Ledger:
    """Rows of every model, for several processes and threads; write only inside `exclusive`.

    Raises:
        RegistryError: the database does not answer, or another writer takes longer than 20 s.

    """

    def __init__(self, settings: Settings) -> None:
        self._engine = database(settings)

    def rows(self, model: str) -> list[LedgerRow]:
        """Every row of `model`, oldest first."""
        query = sql.select(TABLE).filter_by(model=model).order_by(TABLE.c.sequence)
        with refused(), self._engine.connect() as connection:
            return [_row(*values) for values in connection.execute(query)]

    def insert(self, row: LedgerRow) -> None:
        with refused(), self._engine.begin() as connection:
            connection.execute(sql.insert(TABLE).values(row.as_json()))

    def stamp(self, row: LedgerRow) -> LedgerRow:
        """Commit that the row is applied, and return it so."""
        applied = replace(row, applied_at=now())
        same = sql.update(TABLE).filter_by(model=row.model, sequence=row.sequence)
        with refused(), self._engine.begin() as connection:
            connection.execute(same.values(applied.as_json()))
        return applied

    def exclusive(self, model: str) -> AbstractContextManager[None]:
        """Be the only writer until the block ends: MLflow cannot compare and swap an alias."""
        return one_at_a_time(self._engine, f"gyre.ledger.{model}", WAIT_SECONDS)

    def close(self) -> None:
        self._engine.dispose()


def _row(*values: Any) -> LedgerRow:
    applied_at = datetime.fromisoformat(values[-1]) if values[-1] else None
    return LedgerRow(*[*values[:-2], datetime.fromisoformat(values[-2]), applied_at])


def now() -> datetime:
    return datetime.now(UTC)


def database(settings: Settings) -> sql.Engine:
    """Open the database of ledger, decisions and alerts, its tables brought to this release.

    In PostgreSQL the schemas too, those of Airflow, Feast and MLflow among them.
    """
    is_server = not settings.ledger_address.startswith("sqlite")
    waits = {"connect_timeout": CONNECT_SECONDS}
    if not is_server:
        settings.home.mkdir(parents=True, exist_ok=True)
        waits = {"timeout": WAIT_SECONDS}
    engine = sql.create_engine(
        settings.ledger_address, connect_args=waits, pool_pre_ping=True
    )
    variable = "GYRE_LEDGER_URL" if settings.ledger_url else "GYRE_DATABASE_URL"
    named = f"{variable} {engine.url.set(query={})}"  # without its password
    with refused(named if is_server else LEDGER), engine.begin() as connection:
        lock_tables(connection, "gyre.tables")  # of two processes one migrates
        if is_server:
            for schema in {*SCHEMAS} - {*sql.inspect(connection).get_schema_names()}:
                connection.execute(CreateSchema(schema))
        migrate(connection)
    return engine


@contextmanager
def one_at_a_time(engine: sql.Engine, name: str, seconds: float = -1) -> Iterator[None]:
    """Hold PostgreSQL's lock `name`, or a file's beside SQLite's; a dying process lets go."""
    if engine.dialect.name != "sqlite":
        with refused(), engine.begin() as connection:
            if seconds > 0:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds}s'")
            lock_tables(connection, name)
            yield
        return
    file = Path(str(engine.url.database)).resolve().with_name(f"{name}.lock")
    try:
        with FileLock(file, timeout=seconds):
            yield
    except Timeout as exc:
        raise RegistryError(
            f"{name}: another has held {file} for {seconds} s: try again"
        ) from exc


def lock_tables(connection: sql.Connection, name: str) -> None:
    """Be the only writer of what `name` stands for (SQLite: of all) until the transaction ends."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(
            sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(name)))
        )


@contextmanager
def refused(what: str = LEDGER) -> Iterator[None]:
    """Raise what the database says as RegistryError, in one line, of `what` it is about."""
    try:
        yield
    except SQLAlchemyError as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"{what}: the database refused: {line}") from exc
