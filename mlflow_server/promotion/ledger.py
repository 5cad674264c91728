"""The ledger: one SQL row per change of a role, unique on (model, sequence)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

import sqlalchemy as sql
from pydantic import TypeAdapter
from pydantic_core import ArgsKwargs
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from core.errors import DataError, RegistryError
from core.locks import one_writer
from core.settings import SCHEMAS, Settings
from mlflow_server.tables import LEDGER, make_tables

WAIT_SECONDS = 20
"""How long a writer waits for another; longer than a promotion takes with a slow MLflow."""
CONNECT_SECONDS = 5
SUBJECT = "promotion ledger"
Action = Literal[
    "promote",
    "rollback",
    "automatic rollback",
    "rollout",
    "release",
    "by hand",
    "by stage",
]
"""Why a role changed: a command, the monitor, a step of a rollout, or somebody in MLflow."""


@dataclass(frozen=True)
class LedgerRow:
    """One change, in the order of the table's columns; `sequence` counts from 1 without a gap.

    percent: share of the requests that the version answers (a shadow: scores); 0 with no version.
    applied_at: when MLflow had the change. None: under way if the row is the newest, else void.
    action: the word for it, on pages and in `gyre ledger`.
    created: when the model was registered: rows of one that was deleted say nothing of its heir.
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
    action: Action = "promote"
    created: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the row under the names of its columns; times as ISO 8601, UTC."""
        values = dict(zip(LEDGER.columns.keys(), astuple(self), strict=True))
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        return values | {"time": self.time.isoformat(), "applied_at": applied_at}


ROW = TypeAdapter(LedgerRow)


class Store:
    """Tables of the database, open until the block ends, for several processes and threads.

    Raises:
        RegistryError: The database does not answer.

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = database(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()


class Ledger(Store):
    """Rows of every model; write only inside `exclusive`.

    Raises:
        RegistryError: The database does not answer, or another writer takes longer than 20 s.

    """

    def rows(self, model: str, created: int | None = None) -> list[LedgerRow]:
        """Return rows of a model, oldest first.

        Args:
            model: Its name.
            created: Only of the model that was registered then; None: of all of this name.

        """
        query = sql.select(LEDGER).filter_by(model=model).order_by(LEDGER.c.sequence)
        if created is not None:
            query = query.filter_by(created=created)
        with refused(), self._engine.connect() as connection:
            # Pydantic makes times of texts.
            return [
                ROW.validate_python(ArgsKwargs(tuple(values)))
                for values in connection.execute(query)
            ]

    def next_sequence(self, model: str) -> int:
        """Return the number of the next row of a model."""
        query = sql.select(sql.func.max(LEDGER.c.sequence)).filter_by(model=model)
        with refused(), self._engine.connect() as connection:
            return (connection.scalar(query) or 0) + 1

    def insert(self, row: LedgerRow) -> None:
        """Commit a new row."""
        with refused(), self._engine.begin() as connection:
            connection.execute(sql.insert(LEDGER).values(row.as_json()))

    def stamp(self, row: LedgerRow) -> LedgerRow:
        """Commit that the row is applied, and return it with the time."""
        applied = replace(row, applied_at=now())
        update = sql.update(LEDGER).filter_by(model=row.model, sequence=row.sequence)
        with refused(), self._engine.begin() as connection:
            connection.execute(update.values(applied.as_json()))
        return applied

    @contextmanager
    def exclusive(self, model: str) -> Iterator[None]:
        """Be the only writer until the block ends: MLflow cannot compare and swap an alias."""
        address = self._settings.ledger_url
        with (
            refused(),
            one_writer(self._settings, f"ledger.{model}", WAIT_SECONDS, address),
        ):
            yield


def now() -> datetime:
    return datetime.now(UTC)


def database(settings: Settings) -> sql.Engine:
    """Open the database of ledger and alerts; in a new one, make the tables.

    In PostgreSQL the schemas too, those of Airflow, Feast and MLflow among them.

    Raises:
        RegistryError: The database does not answer, or has another layout.

    """
    is_server = not settings.ledger_address.startswith("sqlite")
    options = {"connect_timeout": CONNECT_SECONDS}
    if not is_server:
        settings.home.mkdir(parents=True, exist_ok=True)
        options = {"timeout": WAIT_SECONDS}
    engine = sql.create_engine(
        settings.ledger_address, connect_args=options, pool_pre_ping=True
    )
    subject = SUBJECT
    if is_server:
        variable = "GYRE_LEDGER_URL" if settings.ledger_url else "GYRE_DATABASE_URL"
        subject = f"{variable} {engine.url.set(query={})}"  # without its password
    try:
        with refused(subject), engine.begin() as connection:
            lock_tables(connection, "gyre.tables")  # of two processes one makes them
            if is_server:
                schemas = sql.inspect(connection).get_schema_names()
                for schema in {*SCHEMAS}.difference(schemas):
                    connection.execute(CreateSchema(schema))
            make_tables(connection)
    except RegistryError:
        engine.dispose()
        raise
    return engine


def lock_tables(connection: sql.Connection, name: str) -> None:
    """Be the only writer of what `name` stands for (SQLite: of all) until the transaction ends."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(
            sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(name)))
        )


@contextmanager
def refused(subject: str = SUBJECT) -> Iterator[None]:
    """Raise errors of the database as RegistryError, in one line that begins with the subject."""
    try:
        yield
    except DataError as exc:  # of a lock
        raise RegistryError(f"{exc}: try again") from exc
    except SQLAlchemyError as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"{subject}: the database refused: {line}") from exc
