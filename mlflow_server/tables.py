"""Tables of the ledger, of alerts, of silences and of hash keys. Times are ISO 8601 texts in UTC."""

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
    """Return a column of texts that are never null."""
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
"""A row for each change of a role. created: See `RoleAssignment`."""
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
"""A row for each incident. details: A DriftAlert as JSON."""
SILENCES = Table(
    "silences",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("cause", Text, primary_key=True),
    text("who"),
    text("why"),
    text("silenced_at"),
    Column("until", Text),
)
"""The newest word of a person about a cause. until: End of its mute; null: the incident that was
open at `silenced_at` is acknowledged."""
HASH_KEYS = Table(
    "hash_keys",
    METADATA,
    Column("id", Text, primary_key=True),
    text("secret"),
    text("made_at"),
)
"""A row for each key of hashes that files hold. secret: Its bytes in hexadecimal."""
LAYOUTS = Table("alembic_version", METADATA, text("version_num"))
"""The layout of the tables, in one row. Alembic gave the table its name in earlier databases."""


def make_tables(connection: Connection) -> None:
    """Make the tables in a new database, within a transaction that holds its lock.

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
    for table in (SILENCES, HASH_KEYS):
        table.create(connection, checkfirst=True)  # older databases have none
