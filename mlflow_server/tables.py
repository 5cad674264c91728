"""The tables of ledger and alerts. Times are ISO 8601, UTC."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
)

from core.errors import RegistryError
from core.settings import LAYOUT

METADATA = MetaData()


def text(name: str) -> Column[str]:
    """Return a column of a text that is always there."""
    return Column(name, Text, nullable=False)


LEDGER = Table(
    "ledger",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    text("role"),
    Column("percent", Integer, nullable=False),
    Column("from", Text),
    Column("to", Text),
    text("who"),
    text("why"),
    Column("evidence", Text),
    text("time"),
    Column("applied_at", Text),
    text("action"),
    Column("created", BigInteger, nullable=False),
)
"""One row per change of a role. created: of `RoleAssignment`."""
ALERTS = Table(
    "alerts",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("model", Text, nullable=False, index=True),
    text("cause"),
    text("message"),
    text("first"),
    text("last"),
    Column("details", Text),
    Column("count", Integer, nullable=False),
    Column("delivered", Boolean, nullable=False),
)
"""One row per incident. details: a DriftAlert as JSON."""
LAYOUTS = Table("alembic_version", METADATA, text("version_num"))
"""One row: the layout of the tables. It has the name that Alembic gave it in earlier databases."""


def make_tables(connection: Connection) -> None:
    """Make the tables in a new database, in a transaction that locked it.

    Raises:
        RegistryError: The database has another layout.

    """
    if not inspect(connection).has_table(LAYOUTS.name):
        METADATA.create_all(connection)
        connection.execute(insert(LAYOUTS).values(version_num=LAYOUT))
    layout = connection.scalar(select(LAYOUTS.c.version_num))
    if layout != LAYOUT:
        raise RegistryError(
            f"the database has layout {layout}, this release needs layout {LAYOUT}: "
            "name a new database, or use the release that made it"
        )
