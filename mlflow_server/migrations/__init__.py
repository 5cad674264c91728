"""Tables of ledger, decisions and alerts: each change is a revision of Alembic, never edited."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from core.errors import RegistryError

HEAD = "0001"
"""The newest revision in versions/."""


def migrate(connection: Connection) -> None:
    """Bring the tables to HEAD, in a transaction that locked them. RegistryError: newer ones."""
    is_known = inspect(connection).has_table("alembic_version")
    if (
        is_known
        and connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD
    ):
        return
    from alembic import command, config, util  # noqa: PLC0415  (0.4 s, once in a release)

    given = config.Config(attributes={"connection": connection})
    given.set_main_option(
        "script_location", str(Path(__file__).parent).replace("%", "%%")
    )
    try:
        command.upgrade(given, HEAD)
    except util.CommandError as exc:
        made = "ledger and decisions are of a newer release"
        raise RegistryError(f"{made}: go on with the one that made them") from exc
