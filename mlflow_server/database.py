"""The database of ledger and alerts: it is opened and locked here, and its errors translated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from core.access.private_home import make_home
from core.errors import DataError, RegistryError
from core.locks import LOCK_SECONDS, one_writer
from core.settings import SCHEMAS, Settings
from mlflow_server.tables import make_tables

WAIT_SECONDS = 20
"""Time that a writer waits for another: longer than a promotion takes with a slow MLflow."""
CONNECT_SECONDS = 5


class Store:
    """The open database, until the block ends. Processes and threads may share it.

    Raises:
        RegistryError: The database does not answer.

    """

    subject = "promotion ledger"
    """Beginning of messages about errors."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = open_database(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        """Yield a connection within a transaction."""
        with database_errors(self.subject), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _lock(self, name: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold a lock for longer than a transaction: see `one_writer`."""
        address = self._settings.ledger_url
        with (
            database_errors(self.subject),
            one_writer(self._settings, name, seconds, address),
        ):
            yield


def open_database(settings: Settings) -> sql.Engine:
    """Open the database of ledger and alerts; make the tables if it is new.

    In a new PostgreSQL it makes the schemas too, also for Airflow, Feast and MLflow.

    Raises:
        RegistryError: The database does not answer, or has another layout.

    """
    is_server = not settings.ledger_address.startswith("sqlite")
    options = {"connect_timeout": CONNECT_SECONDS}
    if not is_server:
        make_home(settings)
        options = {"timeout": WAIT_SECONDS}
    engine = sql.create_engine(
        settings.ledger_address, connect_args=options, pool_pre_ping=True
    )
    subject = Store.subject
    if is_server:
        variable = "GYRE_LEDGER_URL" if settings.ledger_url else "GYRE_DATABASE_URL"
        subject = f"{variable} {engine.url.set(query={})}"  # without its password
    try:
        with database_errors(subject), engine.begin() as connection:
            lock_tables(connection, "gyre.tables")  # one of two processes makes them
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
    """Hold the lock `name` until the transaction ends; SQLite locks the whole database."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(
            sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(name)))
        )


@contextmanager
def database_errors(subject: str) -> Iterator[None]:
    """Raise errors of the database as RegistryError, in one line that begins with the subject."""
    try:
        yield
    except DataError as exc:  # raised by a lock
        raise RegistryError(f"{exc}: try again") from exc
    except SQLAlchemyError as exc:
        line = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise RegistryError(f"{subject}: the database refused: {line}") from exc
