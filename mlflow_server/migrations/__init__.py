"""The tables of ledger, decisions and alerts: each change of them is a revision of Alembic.

A revision is a file in versions/; HEAD names the newest. Released ones are never changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql

from core.errors import RegistryError

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0001"


def migrate(connection: Connection) -> None:
    """Bring the tables to HEAD within the transaction of `connection`, which has locked them.

    Raises:
        RegistryError: a newer release made them.

    """
    if sql.inspect(connection).has_table("alembic_version"):
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if found == HEAD:
            return
    from alembic import command  # noqa: PLC0415  (0.2 s, and only once in a release)
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        remedy = "go on with the release that made them"
        raise RegistryError(f"ledger and decisions are of a newer release: {remedy}") from exc
