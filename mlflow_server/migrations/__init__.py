"""Tables of ledger and alerts. Alembic's revision of a database is its layout."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from core.errors import RegistryError
from core.settings import LAYOUT


def migrate(connection: Connection) -> None:
    """Make the tables in a new database, in a transaction that locked it.

    Raises:
        RegistryError: The database has another layout.

    """
    if inspect(connection).has_table("alembic_version"):
        layout = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if layout != LAYOUT:
            raise RegistryError(
                f"the database has layout {layout}, this release needs layout {LAYOUT}: "
                "name a new database, or use the release that made it"
            )
        return
    from alembic import command, config  # noqa: PLC0415  (0.4 s, once in a database)

    alembic_config = config.Config(attributes={"connection": connection})
    folder = str(Path(__file__).parent)
    alembic_config.set_main_option("script_location", folder.replace("%", "%%"))
    command.upgrade(alembic_config, LAYOUT)
